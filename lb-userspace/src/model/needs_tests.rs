//! Every key of the configuration, changed alone, and what `weir config diff` says that the change needs.
//!
//! Owns: one case for each key of [`schema::KEYS`]; a key without one fails. The agent's reload is held to the same cases.

use super::{
    Config,
    algo::Kind,
    diff::{self, ConfigDiff, Needs},
    schema::{self, Table},
};

/// What a change of one key is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    /// One field of `[node]`.
    Node(&'static str, Needs),
    /// A field of `[store]`, which is opened when the agent starts.
    Store(&'static str),
    /// A pool is another one; an apply is enough.
    Pool,
    /// A field of a service; an apply is enough.
    Service(&'static str),
    /// The service is another one.
    ServiceReplaced,
    /// A field of a backend; an apply is enough.
    Backend(&'static str),
    /// The backend is another one.
    BackendReplaced,
    /// A table, whose keys have their own cases, or a key whose change the case of another one shows.
    Table,
}
use Change::{Backend, BackendReplaced, Node, Service, ServiceReplaced, Store};
use Needs::{AgentRestart, Apply, Reload};

/// Table, key, value before and after (nothing is "not given"), and what the change is.
type Case = (Table, &'static str, &'static str, &'static str, Change);

const CASES: &[Case] = &[
    (Table::Root, "node", "", "", Change::Table),
    (Table::Root, "service", "", "", Change::Table),
    // Shown by status, read from the configuration in force.
    (Table::Node, "name", "\"a\"", "\"b\"", Node("name", Apply)),
    // Attached, detached and watched when the agent starts; others keep forwarding.
    (Table::Node, "interfaces", "[\"eth0\"]", "[\"eth0\", \"eth1\"]", Node("interfaces", AgentRestart)),
    (Table::Node, "interface", "\"eth0\"", "\"eth1\"", Node("interfaces", AgentRestart)),
    // A program that runs natively is welcome where generic is allowed.
    (Table::Node, "xdp_mode", "\"native\"", "\"generic\"", Node("xdp_mode", AgentRestart)),
    // One that runs in generic mode is refused by a restart, and a link cannot change its mode.
    (Table::Node, "xdp_mode", "\"generic\"", "\"native\"", Node("xdp_mode", Reload)),
    // The announcer starts with the agent, which also withdraws what is not announced any more.
    (Table::Node, "announce", "\"address\"", "\"none\"", Node("announce", AgentRestart)),
    (Table::Node, "announce", "\"none\"", "\"address\"", Node("announce", AgentRestart)),
    // Words of the map NODE, written like any other.
    (Table::Node, "outer_source_v4", "", "\"198.19.0.0/16\"", Node("outer_source_v4", Apply)),
    (Table::Node, "outer_source_v6", "", "\"2001:db8:1:2::/64\"", Node("outer_source_v6", Apply)),
    // A restart would find the interfaces taken by the old data plane.
    (Table::Node, "pin_dir", "", "\"/sys/fs/bpf/b\"", Node("pin_dir", Reload)),
    // Read when the agent starts; a data plane that runs keeps its seed.
    (Table::Node, "state_dir", "", "\"/var/lib/b\"", Node("state_dir", AgentRestart)),
    // Another seed moves every flow: a restart refuses it.
    (Table::Node, "seed_file", "", "\"/etc/weir/seed\"", Node("seed_file", Reload)),
    (Table::Node, "limits", "", "", Change::Table),
    (Table::Node, "metrics", "", "", Change::Table),
    (Table::Node, "api", "", "", Change::Table),
    // Sizes of maps, which cannot change: a restart refuses to adopt them.
    (Table::Limits, "services_max", "", "8192", Node("limits.services_max", Reload)),
    (Table::Limits, "backends_max", "", "131072", Node("limits.backends_max", Reload)),
    (Table::Limits, "flows_max", "", "2097152", Node("limits.flows_max", AgentRestart)),
    (Table::Limits, "ring_slots_max", "", "33554432", Node("limits.ring_slots_max", Reload)),
    // Sockets are opened before privileges are given up.
    (Table::Metrics, "listen", "", "\"none\"", Node("metrics.listen", AgentRestart)),
    (Table::Api, "socket", "", "\"/run/weir/b.sock\"", Node("api.socket", AgentRestart)),
    (Table::Api, "group", "", "\"adm\"", Node("api.group", AgentRestart)),
    (Table::Root, "store", "", "", Change::Table),
    (Table::Root, "pool", "", "", Change::Table),
    (Table::Store, "kind", "", "\"embedded\"", Change::Table),
    (Table::Store, "path", "", "\"/srv/store.redb\"", Store("path")),
    (Table::Store, "listen", "", "\"127.0.0.1:9653\"", Store("listen")),
    (Table::Store, "url", "\"redis://127.0.0.1\"", "\"redis://127.0.0.1:6380\"", Store("url")),
    (Table::Store, "sentinels", "[\"redis://[::1]:1\"]", "[\"redis://[::1]:2\"]", Store("sentinels")),
    (Table::Store, "master_name", "\"a\"", "\"b\"", Store("master_name")),
    (Table::Store, "server_tls", "", "true", Store("server_tls")),
    (Table::Store, "sentinel_user", "\"a\"", "\"b\"", Store("sentinel_user")),
    (Table::Store, "sentinel_password_file", "", "\"/etc/weir/sentinel\"", Store("sentinel_password_file")),
    (Table::Store, "user", "\"a\"", "\"b\"", Store("user")),
    (Table::Store, "password_file", "", "\"/etc/weir/password\"", Store("password_file")),
    (Table::Store, "token_file", "", "\"/etc/weir/token\"", Store("token_file")),
    (Table::Store, "ca_file", "", "\"/etc/weir/ca.pem\"", Store("ca_file")),
    (Table::Store, "cert_file", "\"/a\"", "\"/b\"", Store("cert_file")),
    (Table::Store, "key_file", "\"/a\"", "\"/b\"", Store("key_file")),
    (Table::Store, "insecure", "", "true", Store("insecure")),
    (Table::Pool, "name", "\"a\"", "\"b\"", Change::Pool),
    (Table::Pool, "prefix", "", "\"198.51.100.0/29\"", Change::Pool),
    (Table::Service, "name", "\"a\"", "\"b\"", Service("name")),
    (Table::Service, "vip", "\"192.0.2.1\"", "\"192.0.2.2\"", ServiceReplaced),
    (Table::Service, "port", "80", "81", ServiceReplaced),
    (Table::Service, "protocol", "\"tcp\"", "\"udp\"", ServiceReplaced),
    (Table::Service, "forward", "\"nat\"", "\"dsr\"", Service("forward")),
    (Table::Service, "algo", "", "\"source_hash\"", Service("algo")),
    (Table::Service, "track", "", "\"all\"", Service("track")),
    // One with `track`, which has a case; of TCP there is none.
    (Table::Service, "udp_flows", "", "", Change::Table),
    (Table::Service, "on_marked_down", "", "\"keep\"", Service("on_marked_down")),
    (Table::Service, "window", "", "\"1h\"", Service("window")),
    (Table::Service, "flow_timeout", "", "\"3h\"", Service("flow_timeout")),
    (Table::Service, "announce_for", "", "\"1s\"", Service("announce_for")),
    (Table::Service, "drain_timeout", "", "\"1s\"", Service("drain_timeout")),
    (Table::Service, "algo_config", "", "", Change::Table),
    (Table::Service, "health_check", "", "", Change::Table),
    (Table::Service, "backends", "", "", Change::Table),
    (Table::AlgoConfig(Kind::Maglev), "ring_size", "", "251", Service("algo_config.ring_size")),
    (Table::AlgoConfig(Kind::SourceHash), "ring_size", "", "251", Service("algo_config.ring_size")),
    (Table::AlgoConfig(Kind::RoundRobin), "ring_size", "", "251", Service("algo_config.ring_size")),
    (Table::AlgoConfig(Kind::WeightedRoundRobin), "ring_size", "", "251", Service("algo_config.ring_size")),
    (Table::AlgoConfig(Kind::LeastConnections), "ring_size", "", "251", Service("algo_config.ring_size")),
    (Table::AlgoConfig(Kind::WeightedLeastConnections), "ring_size", "", "251", Service("algo_config.ring_size")),
    (Table::AlgoConfig(Kind::RandomTwo), "ring_size", "", "251", Service("algo_config.ring_size")),
    (Table::HealthCheck, "type", "\"http\"", "\"tcp\"", Service("health_check.type")),
    (Table::HealthCheck, "path", "", "\"/ready\"", Service("health_check.path")),
    (Table::HealthCheck, "host", "", "\"example.com\"", Service("health_check.host")),
    (Table::HealthCheck, "port", "", "8081", Service("health_check.port")),
    (Table::HealthCheck, "interval", "", "\"5s\"", Service("health_check.interval")),
    (Table::HealthCheck, "timeout", "", "\"500ms\"", Service("health_check.timeout")),
    (Table::HealthCheck, "rise", "", "5", Service("health_check.rise")),
    (Table::HealthCheck, "fall", "", "5", Service("health_check.fall")),
    (Table::Backend, "address", "\"10.0.0.1\"", "\"10.0.0.2\"", BackendReplaced),
    (Table::Backend, "port", "80", "8080", BackendReplaced),
    (Table::Backend, "weight", "", "7", Backend("weight")),
    (Table::Backend, "admin_state", "", "\"drain\"", Backend("admin_state")),
    // With a limit, every flow is recorded: two fields, and `track` has a case.
    (Table::Backend, "max_connections", "", "", Change::Table),
];

/// A configuration in which `key` of `table` has this value, and all else is least.
fn text(table: Table, key: &str, value: &str) -> String {
    let lines = |of: Table, least: &[(&str, &str)]| -> Vec<String> {
        let mine = (of == table).then_some((key, value));
        let replaced =
            |name: &str| mine.is_some_and(|(key, _)| name == key || (name, key) == ("interfaces", "interface"));
        let rest = least.iter().filter(|(name, _)| !replaced(name)).copied();
        rest.chain(mine)
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name} = {value}"))
            .collect()
    };
    let algo = if let Table::AlgoConfig(kind) = table { kind } else { Kind::Maglev };
    let block = |of, least: &[(&str, &str)]| lines(of, least).join("\n");
    if table == Table::Store {
        let least: &[(&str, &str)] = match key {
            "kind" => &[],
            "path" => &[("kind", "\"embedded\"")],
            "listen" => &[("kind", "\"embedded\""), ("path", "\"/a\"")],
            "token_file" => &[("kind", "\"embedded\""), ("url", "\"http://[::1]:1\"")],
            "sentinel_user" => &[
                ("kind", "\"redis\""),
                ("sentinels", "[\"redis://[::1]:1\"]"),
                ("master_name", "\"m\""),
                ("sentinel_password_file", "\"/p\""),
            ],
            "sentinels" | "master_name" | "server_tls" | "sentinel_password_file" => {
                &[("kind", "\"redis\""), ("sentinels", "[\"redis://[::1]:1\"]"), ("master_name", "\"m\"")]
            }
            "user" => &[("kind", "\"redis\""), ("url", "\"redis://[::1]\""), ("password_file", "\"/p\"")],
            "cert_file" => &[("kind", "\"redis\""), ("url", "\"redis://[::1]\""), ("key_file", "\"/k\"")],
            "key_file" => &[("kind", "\"redis\""), ("url", "\"redis://[::1]\""), ("cert_file", "\"/c\"")],
            _ => &[("kind", "\"redis\""), ("url", "\"redis://[::1]\"")],
        };
        // Services stand in the store then.
        return format!("[node]\nname = \"n\"\ninterface = \"eth0\"\n[store]\n{}\n", block(Table::Store, least));
    }
    let pool = match table {
        Table::Pool => {
            let least = [("name", "\"a\""), ("prefix", "\"198.51.100.0/28\"")];
            format!(
                "[[pool]]\n{}\n",
                if value.is_empty() { lines(Table::Root, &least).join("\n") } else { block(Table::Pool, &least) }
            )
        }
        _ => String::new(),
    };
    format!(
        "[node]\n{}\n[node.limits]\n{}\n[node.metrics]\n{}\n[node.api]\n{}\n{pool}[[service]]\n{}\nalgo_config = {{ {} }}\n\
         [service.health_check]\n{}\n[[service.backends]]\n{}\n",
        block(Table::Node, &[("name", "\"n\""), ("interfaces", "[\"eth0\"]")]),
        block(Table::Limits, &[]),
        block(Table::Metrics, &[]),
        block(Table::Api, &[]),
        block(
            Table::Service,
            &[
                ("name", "\"web\""),
                ("vip", "\"192.0.2.1\""),
                ("port", "80"),
                ("forward", "\"nat\""),
                ("algo", &format!("\"{algo}\"")),
            ],
        ),
        lines(Table::AlgoConfig(algo), &[]).join(", "),
        block(Table::HealthCheck, &[("type", "\"http\"")]),
        block(Table::Backend, &[("address", "\"10.0.0.1\""), ("port", "80")]),
    )
}

fn needs_of(change: &Change) -> Needs {
    match change {
        Node(_, needs) => *needs,
        Store(_) => AgentRestart,
        _ => Apply,
    }
}

/// Texts before and after each change that is one, and what it needs.
pub(crate) fn changes() -> impl Iterator<Item = (String, String, Needs)> {
    CASES.iter().filter(|(.., change)| !matches!(change, Change::Table)).map(|(table, key, from, to, change)| {
        let needs = needs_of(change);
        (text(*table, key, from), text(*table, key, to), needs)
    })
}

fn config(text: &str) -> Config {
    let checked = super::check("test.toml", text);
    checked.config.clone().unwrap_or_else(|| panic!("{text}\n{}", checked.render(text, false)))
}

/// What a difference of one key consists of.
fn seen(diff: &ConfigDiff) -> Vec<Change> {
    let mut seen: Vec<Change> = diff.node.iter().map(|f| Node(f.field, f.needs)).collect();
    seen.extend(diff.store.iter().map(|f| Store(f.field)));
    seen.extend(diff.pools.first().map(|_| Change::Pool));
    seen.extend(diff.services_removed.iter().zip(&diff.services_added).map(|_| ServiceReplaced));
    for service in &diff.services_changed {
        seen.extend(service.fields.iter().map(|f| Service(f.field)));
        seen.extend(service.backends_removed.iter().zip(&service.backends_added).map(|_| BackendReplaced));
        seen.extend(service.backends_changed.iter().flat_map(|b| &b.fields).map(|f| Backend(f.field)));
        let fields = service.fields.iter().chain(service.backends_changed.iter().flat_map(|b| &b.fields));
        assert!(fields.clone().all(|f| f.needs == Apply), "nothing of a service needs more than an apply");
    }
    seen
}

#[test]
fn every_key_has_a_case() {
    for key in schema::KEYS {
        let cases = CASES.iter().filter(|(table, name, ..)| (*table, *name) == (key.table, key.name));
        assert!(cases.count() > 0, "{} of {} needs a case: what does a change of it need?", key.name, key.table);
    }
    for (table, name, ..) in CASES {
        assert!(schema::find(*table, name).is_some(), "{name} of {table} is no key any more");
    }
}

#[test]
fn a_change_of_one_key_is_told_with_what_it_needs() {
    for (table, key, from, to, change) in CASES {
        if *change == Change::Table {
            continue;
        }
        let diff = diff::diff(&config(&text(*table, key, from)), &config(&text(*table, key, to)));
        let seen = seen(&diff);
        match change {
            // Another type of check has other parameters.
            Service("health_check.type") => assert!(seen.contains(change), "{key}: {seen:?}"),
            _ => assert_eq!(seen, [*change], "{key} of {table}"),
        }
        let needs = needs_of(change);
        assert_eq!(diff.needs(), needs, "{key} of {table}");
    }
}

/// The shipped example marks keys with (R) for a restart and (U) for an unload, in the paragraph that shows them.
#[test]
fn the_example_says_what_each_key_needs() {
    let text = include_str!("../../assets/weir.toml");
    for (table, key, ..) in CASES.iter().filter(|(.., change)| matches!(change, Node(..) | Store(_))) {
        let shows = |line: &str| line.trim_start_matches("# ").split_once(" = ").is_some_and(|(name, _)| name == *key);
        let paragraph = text.split("\n\n").find(|paragraph| paragraph.lines().any(shows));
        let paragraph = paragraph.unwrap_or_else(|| panic!("{key} of {table} is not shown"));
        for (mark, needs) in [("(R)", AgentRestart), ("(U)", Reload)] {
            let needed = CASES.iter().any(|(t, k, .., change)| {
                (t, k) == (table, key) && matches!(change, Node(..) | Store(_)) && needs_of(change) == needs
            });
            assert_eq!(paragraph.contains(mark), needed, "{mark} at {key} of {table}");
        }
    }
}
