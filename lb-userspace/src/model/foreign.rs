//! What other load balancers call things, and what weir calls them: keepalived, HAProxy and ipvsadm (with IPVS' words).
//!
//! Data for hints only; nothing here is accepted as configuration.

/// Whose word it is.
const KEEPALIVED: &str = "keepalived";
const HAPROXY: &str = "HAProxy";
const IPVSADM: &str = "ipvsadm";

/// A foreign name, whose it is, and what it is in weir (the rest of the sentence).
type Name = (&'static str, &'static str, &'static str);

const PERSISTENCE: &str =
    "has no counterpart in time: `algo = \"source_hash\"` keeps a client on a backend for as long as it is there";
const NO_LOWER_THRESHOLD: &str =
    "has no counterpart: a backend takes new flows again once it is below `max_connections`";
const STICK: &str =
    "has no counterpart: `algo = \"source_hash\"` keeps a client on a backend, and every flow keeps its own";

const NAMES: &[Name] = &[
    // keepalived.conf(5)
    ("virtual_server", KEEPALIVED, "is a `[[service]]` with `vip`, `port` and `protocol`"),
    ("virtual_server_group", KEEPALIVED, "is one `[[service]]` for each address"),
    ("real_server", KEEPALIVED, "is a `[[service.backends]]` with `address` and `port`"),
    ("lb_algo", KEEPALIVED, "is `algo`"),
    ("lvs_sched", KEEPALIVED, "is `algo`"),
    ("lb_kind", KEEPALIVED, "is `forward`: DR is \"dsr\", TUN is \"ipip\", NAT is \"nat\""),
    ("lvs_method", KEEPALIVED, "is `forward`: DR is \"dsr\", TUN is \"ipip\", NAT is \"nat\""),
    ("delay_loop", KEEPALIVED, "is `interval` in `[service.health_check]`, with a unit: \"6s\""),
    ("connect_timeout", KEEPALIVED, "is `timeout` in `[service.health_check]`, with a unit: \"3s\""),
    ("connect_port", KEEPALIVED, "is `port` in `[service.health_check]`"),
    ("connect_ip", KEEPALIVED, "has no counterpart: the backend's own address is checked"),
    ("retry", KEEPALIVED, "is `fall` in `[service.health_check]`: failures in a row until a backend is down"),
    ("nb_get_retry", KEEPALIVED, "is `fall` in `[service.health_check]`: failures in a row until a backend is down"),
    ("delay_before_retry", KEEPALIVED, "is `interval` in `[service.health_check]`, with a unit: \"1s\""),
    ("http_get", KEEPALIVED, "is `[service.health_check]` with `type = \"http\"`"),
    ("ssl_get", KEEPALIVED, "has no counterpart yet: `type` is \"http\" or \"tcp\""),
    ("tcp_check", KEEPALIVED, "is `[service.health_check]` with `type = \"tcp\"`"),
    ("misc_check", KEEPALIVED, "has no counterpart: `type` is \"http\" or \"tcp\""),
    ("url", KEEPALIVED, "is `path` in `[service.health_check]`"),
    ("status_code", KEEPALIVED, "has no counterpart: 200 to 299 are a success"),
    ("digest", KEEPALIVED, "has no counterpart: the status decides, 200 to 299 are a success"),
    ("virtualhost", KEEPALIVED, "is `host` in `[service.health_check]`"),
    ("sorry_server", KEEPALIVED, "has no counterpart: with no healthy backend a service uses all of them (fail open)"),
    ("persistence_timeout", KEEPALIVED, PERSISTENCE),
    ("persistence_granularity", KEEPALIVED, "has no counterpart: `algo = \"source_hash\"` hashes the whole address"),
    ("uthreshold", KEEPALIVED, "is `max_connections` of `[[service.backends]]`"),
    ("lthreshold", KEEPALIVED, NO_LOWER_THRESHOLD),
    ("ops", KEEPALIVED, "is `udp_flows = \"stateless\"`, the default"),
    ("quorum", KEEPALIVED, "has no counterpart: with no healthy backend a service uses all of them (fail open)"),
    ("inhibit_on_failure", KEEPALIVED, "has no counterpart: a failed backend leaves the ring"),
    ("global_defs", KEEPALIVED, "is `[node]`"),
    ("router_id", KEEPALIVED, "is `name` in `[node]`"),
    ("vrrp_instance", KEEPALIVED, "has no counterpart: see `announce` in `[node]`"),
    ("virtual_ipaddress", KEEPALIVED, "is the `vip` of each `[[service]]`"),
    // HAProxy configuration manual
    ("global", HAPROXY, "is `[node]`"),
    ("defaults", HAPROXY, "has no counterpart: each `[[service]]` says what differs from the built-in defaults"),
    ("frontend", HAPROXY, "is a `[[service]]` with `vip` and `port`"),
    ("listen", HAPROXY, "is a `[[service]]` with `vip` and `port`"),
    ("backend", HAPROXY, "is a `[[service]]` with one `[[service.backends]]` for each server"),
    ("server", HAPROXY, "is a `[[service.backends]]` with `address` and `port`"),
    ("balance", HAPROXY, "is `algo`"),
    ("hash-type", HAPROXY, "is `algo`"),
    ("bind", HAPROXY, "is `vip` and `port` of `[[service]]`"),
    (
        "mode",
        HAPROXY,
        "has no counterpart: `protocol` is \"tcp\" or \"udp\", HTTP passes as TCP; how packets travel is `forward`",
    ),
    ("check", HAPROXY, "is `[service.health_check]`, which checks every backend of the service"),
    ("option", HAPROXY, "has no counterpart: `option httpchk` is `[service.health_check]` with `type = \"http\"`"),
    ("httpchk", HAPROXY, "is `[service.health_check]` with `type = \"http\"`"),
    ("inter", HAPROXY, "is `interval` in `[service.health_check]`, with a unit: \"2s\""),
    ("fastinter", HAPROXY, "has no counterpart: probes are faster by themselves while a backend changes state"),
    ("downinter", HAPROXY, "has no counterpart: `interval` holds for backends that are down, too"),
    ("addr", HAPROXY, "is `address`"),
    ("maxconn", HAPROXY, "is `max_connections` of `[[service.backends]]`"),
    ("minconn", HAPROXY, "has no counterpart: `max_connections` of `[[service.backends]]` is the same at any load"),
    ("fullconn", HAPROXY, "has no counterpart: `max_connections` of `[[service.backends]]` is the same at any load"),
    (
        "maxqueue",
        HAPROXY,
        "has no counterpart: weir queues nothing, what is beyond `max_connections` goes to other backends",
    ),
    ("on-marked-up", HAPROXY, "has no counterpart: flows stay where they are when a backend comes up"),
    ("shutdown-sessions", HAPROXY, "is `on_marked_down = \"reset\"`"),
    ("stick-table", HAPROXY, STICK),
    ("stick", HAPROXY, STICK),
    ("hard-stop-after", HAPROXY, "is nearest to `drain_timeout` of `[[service]]`"),
    ("backup", HAPROXY, "has no counterpart: give a backend `weight = 0` and raise it when needed"),
    ("disabled", HAPROXY, "is `admin_state = \"maint\"`"),
    ("slowstart", HAPROXY, "has no counterpart: raise `weight` in steps"),
    ("cookie", HAPROXY, "has no counterpart: weir forwards packets and reads no HTTP"),
    ("acl", HAPROXY, "has no counterpart: weir forwards packets and reads no HTTP"),
    ("use_backend", HAPROXY, "has no counterpart: a `[[service]]` holds its own backends"),
    ("default_backend", HAPROXY, "has no counterpart: a `[[service]]` holds its own backends"),
    ("stats", HAPROXY, "is `[node.metrics]`, and `weir stats` on the command line"),
    ("nbthread", HAPROXY, "has no counterpart: each packet is handled on the CPU that received it"),
    // ipvsadm(8)
    ("scheduler", IPVSADM, "is `algo`"),
    ("sched-flags", IPVSADM, "is `algo_config`"),
    ("virtual-service", IPVSADM, "is a `[[service]]` with `vip`, `port` and `protocol`"),
    ("tcp-service", IPVSADM, "is a `[[service]]` with `protocol = \"tcp\"`"),
    ("udp-service", IPVSADM, "is a `[[service]]` with `protocol = \"udp\"`"),
    ("fwmark-service", IPVSADM, "has no counterpart: use `port = \"all\"` or one `[[service]]` for each port"),
    ("real-server", IPVSADM, "is a `[[service.backends]]` with `address` and `port`"),
    ("gatewaying", IPVSADM, "is `forward = \"dsr\"`"),
    ("tunneling", IPVSADM, "is `forward = \"ipip\"`"),
    ("ipip", IPVSADM, "is `forward = \"ipip\"`"),
    ("masquerading", IPVSADM, "is `forward = \"nat\"`"),
    ("persistent", IPVSADM, PERSISTENCE),
    ("one-packet", IPVSADM, "is `udp_flows = \"stateless\"`, the default"),
    ("u-threshold", IPVSADM, "is `max_connections` of `[[service.backends]]`"),
    ("l-threshold", IPVSADM, NO_LOWER_THRESHOLD),
    ("rr", IPVSADM, "is `algo = \"round_robin\"`"),
    ("wrr", IPVSADM, "is `algo = \"weighted_round_robin\"`"),
    ("lc", IPVSADM, "is `algo = \"least_connections\"`"),
    ("wlc", IPVSADM, "is `algo = \"weighted_least_connections\"`"),
    ("sh", IPVSADM, "is `algo = \"source_hash\"`"),
    ("mh", IPVSADM, "is `algo = \"maglev\"`"),
];

/// Words of one of weir's keys: the foreign word, whose it is, what it is here.
type Word = (&'static str, &'static str, &'static str, &'static str);

const NO_LOCALITY: &str = "has no counterpart: the destination is the VIP; \"maglev\" keeps a flow on its backend";
const NO_FAILOVER: &str = "has no counterpart: give backends `weight = 0` and raise it when needed";

const WORDS: &[Word] = &[
    ("forward", "dr", "keepalived", "is \"dsr\""),
    ("forward", "tun", "keepalived", "is \"ipip\""),
    ("forward", "direct", "LVS", "is \"dsr\""),
    ("forward", "droute", "LVS", "is \"dsr\""),
    ("forward", "gatewaying", "ipvsadm", "is \"dsr\""),
    ("forward", "tunneling", "ipvsadm", "is \"ipip\""),
    ("forward", "tunnel", "LVS", "is \"ipip\""),
    ("forward", "masquerading", "ipvsadm", "is \"nat\""),
    ("forward", "masq", "LVS", "is \"nat\""),
    ("forward", "fullnat", "LVS", "has no counterpart yet: \"nat\" rewrites the destination only"),
    ("forward", "gue", "LVS", "has no counterpart yet: \"ipip\" tunnels"),
    ("algo", "mh", "IPVS", "is \"maglev\", and \"source_hash\" without `mh-port`"),
    ("algo", "sh", "IPVS", "is \"source_hash\""),
    ("algo", "dh", "IPVS", "has no counterpart: the destination is the VIP; \"maglev\" hashes addresses and ports"),
    ("algo", "rr", "IPVS", "is \"round_robin\""),
    ("algo", "wrr", "IPVS", "is \"weighted_round_robin\""),
    ("algo", "lc", "IPVS", "is \"least_connections\""),
    ("algo", "wlc", "IPVS", "is \"weighted_least_connections\""),
    ("algo", "sed", "IPVS", "is nearest to \"weighted_least_connections\""),
    ("algo", "nq", "IPVS", "is nearest to \"weighted_least_connections\""),
    ("algo", "twos", "IPVS", "is \"random_two\""),
    ("algo", "lblc", "IPVS", NO_LOCALITY),
    ("algo", "lblcr", "IPVS", NO_LOCALITY),
    ("algo", "fo", "IPVS", NO_FAILOVER),
    ("algo", "ovf", "IPVS", NO_FAILOVER),
    ("algo", "roundrobin", "HAProxy", "heeds weights, as \"weighted_round_robin\" does"),
    ("algo", "static-rr", "HAProxy", "heeds weights, as \"weighted_round_robin\" does"),
    ("algo", "leastconn", "HAProxy", "heeds weights, as \"weighted_least_connections\" does"),
    ("algo", "random", "HAProxy", "draws two, as \"random_two\" does"),
    ("algo", "random(2)", "HAProxy", "is \"random_two\""),
    ("algo", "source", "HAProxy", "is \"source_hash\""),
    ("algo", "consistent", "HAProxy", "is \"maglev\""),
    ("algo", "first", "HAProxy", "has no counterpart: backends share the load"),
    ("on_marked_down", "shutdown-sessions", "HAProxy", "is \"reset\""),
    ("udp_flows", "ops", "IPVS", "is \"stateless\""),
    ("admin_state", "enabled", "HAProxy", "is \"ready\""),
    ("admin_state", "disabled", "HAProxy", "is \"maint\""),
    ("type", "http_get", "keepalived", "is \"http\""),
    ("type", "ssl_get", "keepalived", "has no counterpart yet: \"http\" or \"tcp\""),
    ("type", "tcp_check", "keepalived", "is \"tcp\""),
    ("type", "httpchk", "HAProxy", "is \"http\""),
    ("type", "tcp-check", "HAProxy", "is nearest to \"tcp\""),
    ("type", "ssl-hello-chk", "HAProxy", "has no counterpart yet: \"http\" or \"tcp\""),
    ("protocol", "http", "HAProxy", "passes as \"tcp\""),
    ("xdp_mode", "skb", "XDP", "is \"generic\""),
    ("xdp_mode", "drv", "XDP", "is \"native\""),
    ("xdp_mode", "driver", "XDP", "is \"native\""),
    ("xdp_mode", "xdpdrv", "iproute2", "is \"native\""),
    ("xdp_mode", "xdpgeneric", "iproute2", "is \"generic\""),
    ("xdp_mode", "hw", "XDP", "has no counterpart: \"native\" runs in the driver"),
];

fn same(a: &str, b: &str) -> bool {
    a.len() == b.len()
        && a.bytes().zip(b.bytes()).all(|(x, y)| {
            let fold = |c: u8| if c == b'-' { b'_' } else { c.to_ascii_lowercase() };
            fold(x) == fold(y)
        })
}

/// The hint for an unknown key that another load balancer knows. `-` and `_` count as the same, and so do cases.
pub fn key_hint(name: &str) -> Option<String> {
    let exact = NAMES.iter().find(|(foreign, _, _)| *foreign == name);
    let (foreign, whose, here) = exact.or_else(|| NAMES.iter().find(|(foreign, _, _)| same(foreign, name)))?;
    Some(format!("in weir, {} `{foreign}` {here}", possessive(whose)))
}

/// The hint for a word that `key` does not take but another load balancer would.
pub fn word_hint(key: &str, word: &str) -> Option<String> {
    let (_, foreign, whose, here) = WORDS.iter().find(|(k, foreign, _, _)| *k == key && same(foreign, word))?;
    Some(format!("in weir, {} \"{foreign}\" {here}", possessive(whose)))
}

fn possessive(name: &str) -> String {
    if name.ends_with('S') { format!("{name}'") } else { format!("{name}'s") }
}

/// The program whose configuration the text seems to be, with the byte range of the line that gives it away.
pub fn recognise(text: &str) -> Option<(&'static str, std::ops::Range<usize>)> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let words: Vec<&str> = line.split_whitespace().take(4).collect();
        let opens = line.trim_end().ends_with('{');
        let whose = match words.as_slice() {
            ["virtual_server" | "virtual_server_group" | "vrrp_instance" | "vrrp_script" | "global_defs", ..]
                if opens =>
            {
                Some("keepalived")
            }
            ["frontend" | "backend" | "listen", name] if !name.contains(['=', '{']) => Some("HAProxy"),
            ["defaults" | "global"] => Some("HAProxy"),
            ["-A" | "-a" | "--add-service" | "--add-server", "-t" | "-u" | "-f" | "--tcp-service", _, ..] => {
                Some("ipvsadm")
            }
            ["ipvsadm", option, ..] if option.starts_with('-') => Some("ipvsadm"),
            _ => None,
        };
        if let Some(whose) = whose {
            let indent = line.len() - line.trim_start().len();
            return Some((whose, start + indent..start + line.trim_end().len()));
        }
        start += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn no_foreign_name_shadows_a_key() {
        // `port`, `interval`, `rise` and others mean the same everywhere and must not appear among foreign names where
        // weir knows them.
        for (name, _, _) in NAMES {
            let known = schema::KEYS.iter().any(|key| key.name == *name);
            assert!(!known || matches!(*name, "listen" | "url"), "{name} is a key of weir");
        }
        assert!(WORDS.iter().all(|(key, ..)| schema::KEYS.iter().any(|k| k.name == *key)));
    }

    #[test]
    fn hints_name_the_other_program() {
        assert_eq!(key_hint("LB-ALGO").as_deref(), Some("in weir, keepalived's `lb_algo` is `algo`"));
        assert_eq!(word_hint("forward", "DR").as_deref(), Some("in weir, keepalived's \"dr\" is \"dsr\""));
        assert_eq!(
            word_hint("algo", "WLC").as_deref(),
            Some("in weir, IPVS' \"wlc\" is \"weighted_least_connections\"")
        );
        assert_eq!(key_hint("colour"), None);
    }

    #[test]
    fn recognises_files() {
        let table = [
            ("# c\nvirtual_server 10.0.0.1 80 {\n}\n", Some("keepalived")),
            ("frontend web\n    bind :80\n", Some("HAProxy")),
            ("-A -t 10.0.0.1:80 -s rr\n", Some("ipvsadm")),
            ("ipvsadm -A -t 10.0.0.1:80", Some("ipvsadm")),
            ("[node]\nlisten = 'x'\nbackend = 1\n", None),
        ];
        for (text, whose) in table {
            assert_eq!(recognise(text).map(|(whose, _)| whose), whose, "{text}");
        }
    }
}
