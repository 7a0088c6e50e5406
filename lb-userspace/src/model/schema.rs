//! The configuration's vocabulary: every table and every key, with type, default and range, as data.
//!
//! Read by the parser (which keys are known), by hints (what else could be meant) and by the tests that hold the shipped
//! example complete. Refuses to know: how values are checked.

use std::fmt;

use super::algo::Kind;

/// A table of the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// The top level.
    Root,
    /// `[node]`.
    Node,
    /// `[node.limits]`.
    Limits,
    /// `[node.metrics]`.
    Metrics,
    /// `[node.api]`.
    Api,
    /// `[store]`.
    Store,
    /// `[[pool]]`.
    Pool,
    /// `[[service]]`.
    Service,
    /// `algo_config` of an algorithm.
    AlgoConfig(Kind),
    /// `[service.health_check]`.
    HealthCheck,
    /// `[[service.backends]]`.
    Backend,
    /// The top level of the file of `weir dns`.
    Dns,
    /// `[limits]` of that file.
    DnsLimits,
    /// `[metrics]` of that file.
    DnsMetrics,
    /// `[[key]]` of that file.
    DnsKey,
    /// `[[secondary]]` of that file.
    DnsSecondary,
    /// `[[update]]` of that file.
    DnsUpdate,
    /// The top level of the file of `weir orchestrator`.
    Orchestrator,
    /// `[zone]` of that file.
    OrchestratorZone,
    /// `[[zone.fixed]]` of that file.
    ZoneFixed,
    /// `[[scaling]]` of that file.
    Scaling,
    /// `[[replace]]` of that file.
    Replace,
    /// `exec` of a rule.
    RuleExec,
    /// `webhook` of a rule.
    RuleWebhook,
    /// `[[dns_server]]` of that file.
    DnsServer,
}

impl Table {
    /// Whether it is the top level of a file.
    pub const fn is_root(self) -> bool {
        matches!(self, Self::Root | Self::Dns | Self::Orchestrator)
    }

    const fn is_orchestrator(self) -> bool {
        matches!(
            self,
            Self::Orchestrator
                | Self::OrchestratorZone
                | Self::ZoneFixed
                | Self::Scaling
                | Self::Replace
                | Self::RuleExec
                | Self::RuleWebhook
                | Self::DnsServer
        )
    }

    const fn is_dns(self) -> bool {
        matches!(
            self,
            Self::Dns | Self::DnsLimits | Self::DnsMetrics | Self::DnsKey | Self::DnsSecondary | Self::DnsUpdate
        )
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AlgoConfig(kind) => return write!(f, "`algo_config` of `{kind}`"),
            Self::Root | Self::Dns | Self::Orchestrator => "the top level",
            Self::Node => "`[node]`",
            Self::Limits => "`[node.limits]`",
            Self::Metrics => "`[node.metrics]`",
            Self::Api => "`[node.api]`",
            Self::Store => "`[store]`",
            Self::Pool => "`[[pool]]`",
            Self::Service => "`[[service]]`",
            Self::HealthCheck => "`[service.health_check]`",
            Self::Backend => "`[[service.backends]]`",
            Self::DnsLimits => "`[limits]`",
            Self::DnsMetrics => "`[metrics]`",
            Self::DnsKey => "`[[key]]`",
            Self::DnsSecondary => "`[[secondary]]`",
            Self::DnsUpdate => "`[[update]]`",
            Self::OrchestratorZone => "`[zone]`",
            Self::ZoneFixed => "`[[zone.fixed]]`",
            Self::Scaling => "`[[scaling]]`",
            Self::Replace => "`[[replace]]`",
            Self::RuleExec => "`exec`",
            Self::RuleWebhook => "`webhook`",
            Self::DnsServer => "`[[dns_server]]`",
        })
    }
}

/// A key of a table.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its table.
    pub table: Table,
    /// Its name.
    pub name: &'static str,
    /// What kind of value it takes, as "`port` takes ...".
    pub takes: &'static str,
    /// Its default as written in the file, or what happens without it.
    pub default: &'static str,
}

const fn key(table: Table, name: &'static str, takes: &'static str, default: &'static str) -> Key {
    Key { table, name, takes, default }
}

/// What each algorithm's `ring_size` takes.
const RING_SIZE: &str = "a prime number from 251 to 655373";

/// Every key, by table, in the order in which [`super::emit`] writes them.
pub const KEYS: &[Key] = &[
    key(Table::Root, "node", "a table, `[node]`", "required"),
    key(Table::Root, "store", "a table, `[store]`", "the services stand in this file"),
    key(Table::Root, "pool", "an array of tables, `[[pool]]`", "none"),
    key(Table::Root, "service", "an array of tables, `[[service]]`", "none"),
    key(Table::Node, "name", "1 to 64 letters, digits, `-`, `_` and `.`", "the host name"),
    key(Table::Node, "interfaces", "an array of 1 to 16 interface names", "required"),
    key(Table::Node, "interface", "one interface name, short for `interfaces`", "see interfaces"),
    key(Table::Node, "xdp_mode", "\"native\" or \"generic\"", "\"native\""),
    key(Table::Node, "announce", "\"address\" or \"none\"", "\"address\""),
    key(Table::Node, "outer_source_v4", "an IPv4 prefix of length 16", "\"198.18.0.0/16\""),
    key(Table::Node, "outer_source_v6", "an IPv6 prefix of length 64", "\"100::/64\""),
    key(Table::Node, "pin_dir", "an absolute path", "\"/sys/fs/bpf/weir\""),
    key(Table::Node, "state_dir", "an absolute path", "\"/var/lib/weir\""),
    key(Table::Node, "seed_file", "an absolute path", "none: the node draws a seed and keeps it in state_dir"),
    key(Table::Node, "limits", "a table, `[node.limits]`", "the defaults of its keys"),
    key(Table::Node, "metrics", "a table, `[node.metrics]`", "the defaults of its keys"),
    key(Table::Node, "api", "a table, `[node.api]`", "the defaults of its keys"),
    key(Table::Limits, "services_max", "a number from 1 to 65535", "4096"),
    key(Table::Limits, "backends_max", "a number from 1 to 4194304", "65536"),
    key(Table::Limits, "ring_slots_max", "a number from 512 to 536870912", "16777216"),
    key(Table::Limits, "flows_max", "a number from 1024 to 67108864", "1048576"),
    key(Table::Metrics, "listen", "an address with a port, or \"none\"", "\"127.0.0.1:9650\""),
    key(Table::Api, "socket", "an absolute path of at most 107 bytes", "\"/run/weir/api.sock\""),
    key(Table::Api, "group", "a group name", "none: only the owner"),
    key(Table::Store, "kind", "\"file\", \"embedded\" or \"redis\"", "\"file\""),
    key(Table::Store, "path", "an absolute path", "\"/var/lib/weir/store.redb\""),
    key(Table::Store, "listen", "an address with a port", "none: only this machine uses the database"),
    key(Table::Store, "url", "an address, as in \"rediss://redis.example.com:6379\"", "required for a store elsewhere"),
    key(Table::Store, "sentinels", "an array of 1 to 16 addresses", "none: `url` is the server"),
    key(Table::Store, "master_name", "the sentinels' name of the master", "required with sentinels"),
    key(Table::Store, "server_tls", "true or false", "as the sentinels are reached"),
    key(Table::Store, "sentinel_user", "a user of the sentinels", "the default user"),
    key(Table::Store, "sentinel_password_file", "an absolute path", "none: no password is sent to sentinels"),
    key(Table::Store, "user", "a user of Redis", "the default user"),
    key(Table::Store, "password_file", "an absolute path", "none: no password is sent"),
    key(Table::Store, "token_file", "an absolute path", "none: no token is sent or asked for"),
    key(Table::Store, "ca_file", "an absolute path", "for Redis the system's authorities"),
    key(Table::Store, "cert_file", "an absolute path", "none: no certificate is shown"),
    key(Table::Store, "key_file", "an absolute path", "none: see cert_file"),
    key(Table::Store, "insecure", "true or false", "false"),
    key(Table::Pool, "name", "1 to 64 letters, digits, `-`, `_` and `.`", "required"),
    key(Table::Pool, "prefix", "an IPv4 or IPv6 prefix", "required"),
    key(Table::Service, "name", "1 to 64 letters, digits, `-`, `_` and `.`", "required"),
    key(Table::Service, "vip", "an IPv4 or IPv6 address, or pool:NAME", "required"),
    key(Table::Service, "port", "a number from 1 to 65535, or \"all\"", "required"),
    key(Table::Service, "protocol", "\"tcp\" or \"udp\"", "\"tcp\""),
    key(Table::Service, "forward", "\"dsr\", \"ipip\" or \"nat\"", "required"),
    key(
        Table::Service,
        "algo",
        "\"maglev\", \"source_hash\", \"round_robin\", \"weighted_round_robin\", \"least_connections\", \
         \"weighted_least_connections\" or \"random_two\"",
        "\"maglev\"",
    ),
    key(Table::Service, "algo_config", "a table with the parameters of `algo`", "the defaults of its keys"),
    key(
        Table::Service,
        "track",
        "\"moved\" or \"all\"",
        "\"moved\", or \"all\" where the algorithm chooses, a backend has `max_connections` or UDP is sticky",
    ),
    key(
        Table::Service,
        "udp_flows",
        "\"stateless\" or \"sticky\"",
        "\"stateless\", or \"sticky\" where `track` is \"all\"",
    ),
    key(Table::Service, "on_marked_down", "\"rehash\", \"keep\" or \"reset\"", "\"rehash\""),
    key(
        Table::Service,
        "window",
        "a duration from \"1s\" to \"18h\", at most `flow_timeout`",
        "\"2h4m\", or \"5m\" for UDP, or `flow_timeout` if that is less",
    ),
    key(
        Table::Service,
        "flow_timeout",
        "a duration from \"1s\" to \"18h\"",
        "\"2h4m\", or \"5m\" for UDP, or `window` if that is more",
    ),
    key(Table::Service, "announce_for", "a duration from \"0s\" to \"60s\"", "\"4s\""),
    key(Table::Service, "drain_timeout", "a duration from \"0s\" to \"24h\"", "\"5m\", or \"30s\" for UDP"),
    key(Table::Service, "health_check", "a table, `[service.health_check]`", "none: every backend counts as up"),
    key(Table::Service, "backends", "an array of tables, `[[service.backends]]`", "none"),
    key(Table::AlgoConfig(Kind::Maglev), "ring_size", RING_SIZE, "65537"),
    key(Table::AlgoConfig(Kind::SourceHash), "ring_size", RING_SIZE, "65537"),
    key(Table::AlgoConfig(Kind::RoundRobin), "ring_size", RING_SIZE, "65537"),
    key(Table::AlgoConfig(Kind::WeightedRoundRobin), "ring_size", RING_SIZE, "65537"),
    key(Table::AlgoConfig(Kind::LeastConnections), "ring_size", RING_SIZE, "65537"),
    key(Table::AlgoConfig(Kind::WeightedLeastConnections), "ring_size", RING_SIZE, "65537"),
    key(Table::AlgoConfig(Kind::RandomTwo), "ring_size", RING_SIZE, "65537"),
    key(Table::HealthCheck, "type", "\"http\" or \"tcp\"", "required"),
    key(Table::HealthCheck, "path", "a path that starts with `/`", "\"/health\""),
    key(Table::HealthCheck, "host", "a host name, with or without port", "the backend's address and port"),
    key(Table::HealthCheck, "port", "a number from 1 to 65535", "the backend's port"),
    key(Table::HealthCheck, "interval", "a duration from \"100ms\" to \"1h\"", "\"2s\""),
    key(
        Table::HealthCheck,
        "timeout",
        "a duration from \"1ms\" to the interval",
        "\"1s\", or the interval if that is less",
    ),
    key(Table::HealthCheck, "rise", "a number from 1 to 100", "2"),
    key(Table::HealthCheck, "fall", "a number from 1 to 100", "3"),
    key(Table::Backend, "address", "an IPv4 or IPv6 address", "required"),
    key(Table::Backend, "port", "a number from 1 to 65535", "the service's port"),
    key(Table::Backend, "weight", "a number from 0 to 1000", "1"),
    key(Table::Backend, "max_connections", "a number from 0 to 67108864", "0"),
    key(Table::Backend, "admin_state", "\"ready\", \"drain\" or \"maint\"", "\"ready\""),
];

/// Every key of the file of `weir dns`, by table.
pub const DNS_KEYS: &[Key] = &[
    key(Table::Dns, "origin", "a host name, the zone's", "required"),
    key(Table::Dns, "listen", "an array of addresses with a port, for UDP and TCP", "[\"0.0.0.0:53\", \"[::]:53\"]"),
    key(Table::Dns, "zone_file", "an absolute path", "\"/var/lib/weir/zone.json\""),
    key(Table::Dns, "store", "a table, `[store]`, as in the nodes' weir.toml", "none: the zone is in zone_file"),
    key(Table::Dns, "state_dir", "an absolute path", "\"/var/lib/weir-dns\""),
    key(Table::Dns, "limits", "a table, `[limits]`", "the defaults of its keys"),
    key(Table::Dns, "metrics", "a table, `[metrics]`", "the defaults of its keys"),
    key(Table::Dns, "key", "an array of tables, `[[key]]`", "none"),
    key(Table::Dns, "secondary", "an array of tables, `[[secondary]]`", "none"),
    key(Table::Dns, "update", "an array of tables, `[[update]]`", "none"),
    key(Table::DnsLimits, "udp_payload_max", "a number from 512 to 4096", "1232"),
    key(Table::DnsLimits, "responses_per_s", "a number from 0 to 1000000", "200"),
    key(Table::DnsLimits, "tcp_connections_max", "a number from 4 to 10000", "256"),
    key(Table::DnsLimits, "tcp_idle_timeout", "a duration from \"1s\" to \"2m\"", "\"10s\""),
    key(Table::DnsMetrics, "listen", "an address with a port, or \"none\"", "\"127.0.0.1:9652\""),
    key(Table::DnsKey, "name", "a host name, that of the key at the other side", "required"),
    key(Table::DnsKey, "algorithm", "\"hmac-sha256\", \"hmac-sha384\" or \"hmac-sha512\"", "\"hmac-sha256\""),
    key(Table::DnsKey, "secret_file", "an absolute path", "required"),
    key(Table::DnsSecondary, "address", "an address with a port", "required"),
    key(
        Table::DnsSecondary,
        "key",
        "the name of a `[[key]]`",
        "none: its address alone is trusted, for servers without TSIG",
    ),
    key(Table::DnsSecondary, "transfer_from", "an array of addresses or prefixes", "the one of `address`"),
    key(Table::DnsUpdate, "server", "an address with a port", "required"),
    key(Table::DnsUpdate, "zone", "a host name, that of the server's zone", "the origin"),
    key(Table::DnsUpdate, "key", "the name of a `[[key]]`", "required"),
];

/// Every key of the file of `weir orchestrator`, by table.
pub const ORCHESTRATOR_KEYS: &[Key] = &[
    key(Table::Orchestrator, "name", "1 to 64 letters, digits, `-`, `_` and `.`", "the host name"),
    key(Table::Orchestrator, "listen", "an address with a port, or \"none\"", "\"127.0.0.1:9651\""),
    key(Table::Orchestrator, "address", "a host or address with a port", "none: it is not listed for discovery"),
    key(Table::Orchestrator, "socket", "an absolute path of at most 107 bytes", "\"/run/weir/orchestrator.sock\""),
    key(Table::Orchestrator, "prometheus", "a URL, `http://HOST:PORT`", "required where there are rules"),
    key(Table::Orchestrator, "vantage_points", "a number from 1 to 16", "1"),
    key(Table::Orchestrator, "prefix", "1 to 32 letters, digits, `-`, `_` and `.`", "\"weir\""),
    key(Table::Orchestrator, "dead_after", "a duration from \"10s\" to \"24h\"", "\"5m\""),
    key(Table::Orchestrator, "ready_timeout", "a duration from \"1s\" to \"24h\"", "\"10m\""),
    key(Table::Orchestrator, "drain_timeout", "a duration from \"0s\" to \"24h\"", "\"5m\""),
    key(Table::Orchestrator, "store", "a table, `[store]`, as in the nodes' weir.toml", "required"),
    key(Table::Orchestrator, "zone", "a table, `[zone]`", "none: DNS is somebody else's"),
    key(Table::Orchestrator, "scaling", "an array of tables, `[[scaling]]`", "none"),
    key(Table::Orchestrator, "replace", "an array of tables, `[[replace]]`", "none"),
    key(Table::Orchestrator, "dns_server", "an array of tables, `[[dns_server]]`", "none"),
    key(Table::OrchestratorZone, "origin", "a host name, the zone's", "required"),
    key(Table::OrchestratorZone, "names", "an array of names, relative to the origin", "required"),
    key(Table::OrchestratorZone, "ttl", "a duration from \"1s\" to \"1h\"", "\"10s\""),
    key(Table::OrchestratorZone, "ns", "an array of host names, absolute", "required"),
    key(Table::OrchestratorZone, "contact", "a mailbox as a host name", "required"),
    key(Table::OrchestratorZone, "fixed", "an array of tables, `[[zone.fixed]]`", "none"),
    key(Table::ZoneFixed, "name", "a name, relative to the origin", "required"),
    key(Table::ZoneFixed, "addresses", "an array of IP addresses", "required"),
    key(Table::Scaling, "name", "1 to 64 letters, digits, `-`, `_` and `.`", "required"),
    key(Table::Scaling, "of", "\"nodes\" or \"service/NAME\"", "required"),
    key(Table::Scaling, "expr", "PromQL with one value, at most 8192 bytes", "required"),
    key(Table::Scaling, "target", "a number above 0", "required"),
    key(Table::Scaling, "tolerance", "a number from 0 to 0.9", "0.1"),
    key(Table::Scaling, "min", "a number from 1 to 1000", "required"),
    key(Table::Scaling, "max", "a number from 1 to 1000", "required"),
    key(Table::Scaling, "down_window", "a duration from \"1s\" to \"24h\"", "\"5m\""),
    key(Table::Scaling, "settle", "a duration from \"0s\" to \"1h\"", "\"30s\""),
    key(Table::Scaling, "every", "a duration from \"1s\" to \"1h\"", "\"15s\""),
    key(Table::Scaling, "exec", "a table, `exec`", "none: decisions are recorded and cannot be carried out"),
    key(Table::Scaling, "webhook", "a table, `webhook`", "none"),
    key(Table::Replace, "name", "1 to 64 letters, digits, `-`, `_` and `.`", "required"),
    key(Table::Replace, "of", "\"nodes\" or \"service/NAME\"", "required"),
    key(Table::Replace, "expr", "PromQL whose series are bad instances, at most 8192 bytes", "required"),
    key(Table::Replace, "label", "the name of a label", "\"instance\""),
    key(Table::Replace, "for", "a duration from \"1s\" to \"720h\"", "required"),
    key(Table::Replace, "every", "a duration from \"1s\" to \"1h\"", "\"1m\""),
    key(Table::Replace, "exec", "a table, `exec`", "none: decisions are recorded and cannot be carried out"),
    key(Table::Replace, "webhook", "a table, `webhook`", "none"),
    key(Table::RuleExec, "program", "an absolute path", "required"),
    key(Table::RuleExec, "arguments", "an array of words", "none"),
    key(Table::RuleExec, "timeout", "a duration from \"1s\" to \"1h\"", "\"5m\""),
    key(Table::RuleWebhook, "url", "a URL, `http://HOST:PORT/PATH`", "required"),
    key(Table::RuleWebhook, "timeout", "a duration from \"1s\" to \"1h\"", "\"30s\""),
    key(Table::DnsServer, "name", "1 to 64 letters, digits, `-`, `_` and `.`", "required"),
    key(Table::DnsServer, "metrics", "a host or address with a port", "required"),
];

/// Every key of the file that a table belongs to.
pub fn siblings(table: Table) -> &'static [Key] {
    match table {
        table if table.is_dns() => DNS_KEYS,
        table if table.is_orchestrator() => ORCHESTRATOR_KEYS,
        _ => KEYS,
    }
}

/// The keys of a table.
pub fn keys(table: Table) -> impl Iterator<Item = &'static Key> {
    siblings(table).iter().filter(move |key| key.table == table)
}

/// The key `name` of a table.
pub fn find(table: Table, name: &str) -> Option<&'static Key> {
    keys(table).find(|key| key.name == name)
}

/// `a`, `b` and `c`, each in back-ticks.
pub fn list<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// The candidate nearest to `word` in spelling, if it is near enough to be a typing error.
pub fn nearest<'w>(word: &str, candidates: impl IntoIterator<Item = &'w str>) -> Option<(usize, &'w str)> {
    let most = match word.chars().count() {
        0..=2 => 1,
        3..=7 => 2,
        // Nobody mistypes by more; also bounds the work for absurdly long keys.
        8..=40 => 3,
        _ => return None,
    };
    let near = candidates.into_iter().map(|candidate| (distance(word, candidate), candidate));
    near.filter(|(d, _)| *d <= most).min_by_key(|(d, _)| *d)
}

/// Optimal string alignment distance: insertions, deletions, replacements and swaps of neighbours, ignoring case and
/// the difference between `-` and `_`.
fn distance(a: &str, b: &str) -> usize {
    let fold =
        |s: &str| -> Vec<char> { s.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect() };
    let (a, b) = (fold(a), fold(b));
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let at = |r: &[usize], k: usize| r.get(k).copied().unwrap_or(usize::MAX / 2);
            let mut d = (at(&above, j) + usize::from(x != y)).min(at(&above, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                d = d.min(at(&before, j - 1) + 1);
            }
            row.push(d);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        let table =
            [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("prot", "port", 1), ("Ring-Size", "ring_size", 0)];
        for (a, b, d) in table {
            assert_eq!((distance(a, b), distance(b, a)), (d, d), "{a} {b}");
        }
    }

    #[test]
    fn nearest_needs_to_be_near() {
        let names = || keys(Table::Service).map(|key| key.name);
        assert_eq!(nearest("forwrad", names()), Some((1, "forward")));
        assert_eq!(nearest("heath_check", names()), Some((1, "health_check")));
        assert_eq!(nearest("delay_loop", names()), None);
        assert_eq!(nearest("x", names()), None);
    }

    #[test]
    fn keys_are_unique() {
        for keys in [KEYS, DNS_KEYS, ORCHESTRATOR_KEYS] {
            for (i, a) in keys.iter().enumerate() {
                assert!(keys.iter().skip(i + 1).all(|b| (a.table, a.name) != (b.table, b.name)), "{}", a.name);
            }
        }
    }
}
