//! What changes from one configuration to another, for `weir config diff` and for the log of an apply.
//!
//! A service is the same service as long as VIP, port and protocol are the same, a backend of it as long as address and port
//! are: a renamed service has changed, one with a new VIP is removed and added. The order in the file means nothing.

use std::{collections::HashMap, fmt, net::IpAddr};

use serde::Serialize;

use super::{
    Algo, Backend, BackendRef, Config, HealthCheck, Node, Pool, Probe, Service, ServiceKey, StoreConfig, XdpMode,
    duration, emit, forward_word, on_marked_down_word, schema,
};

/// The difference between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConfigDiff {
    /// Fields of `[node]`.
    pub node: Vec<FieldChange>,
    /// Fields of `[store]`.
    pub store: Vec<FieldChange>,
    /// Pools that appear, disappear or have other addresses.
    pub pools: Vec<PoolChange>,
    /// Services that only the old one has, in its order.
    pub services_removed: Vec<ServiceSummary>,
    /// Services that only the new one has, in its order.
    pub services_added: Vec<ServiceSummary>,
    /// Services of both that differ, in the new one's order.
    pub services_changed: Vec<ServiceChange>,
}

/// What a change needs before it takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Needs {
    /// An apply is enough.
    Apply,
    /// The agent is restarted; forwarding goes on meanwhile.
    AgentRestart,
    /// The data plane is loaded anew: `weir agent --unload`, then start. Forwarding stops meanwhile.
    Reload,
}

/// One field that differs; `None` is "not set".
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// Its name as in the configuration, with tables: `limits.services_max`, `health_check.interval`.
    pub field: &'static str,
    /// Old value.
    pub from: Option<String>,
    /// New value.
    pub to: Option<String>,
    /// What it needs.
    pub needs: Needs,
}

/// A pool that differs; `None` is "there is none".
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolChange {
    /// Its name.
    pub name: String,
    /// Old prefix.
    pub from: Option<String>,
    /// New prefix.
    pub to: Option<String>,
}

/// A service that appears or disappears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceSummary {
    /// Its name.
    pub name: String,
    /// VIP, port and protocol: `192.0.2.1:80/tcp`.
    pub key: String,
    /// Forwarding mode.
    pub forward: &'static str,
    /// Algorithm: `maglev(65537)`.
    pub algo: String,
    /// How many backends it has.
    pub backends: usize,
}

/// A service that stays and differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceChange {
    /// Its new name.
    pub name: String,
    /// VIP, port and protocol.
    pub key: String,
    /// Fields of the service and of its check.
    pub fields: Vec<FieldChange>,
    /// Backends that only the old one has.
    pub backends_removed: Vec<BackendSummary>,
    /// Backends that only the new one has.
    pub backends_added: Vec<BackendSummary>,
    /// Backends of both that differ.
    pub backends_changed: Vec<BackendChange>,
}

/// A backend that appears or disappears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendSummary {
    /// Its name.
    pub backend: BackendRef,
    /// Weight.
    pub weight: u16,
    /// Connections that it takes at most; 0 is no limit.
    pub max_connections: u32,
    /// Administrative state.
    pub admin_state: super::AdminState,
}

/// A backend that stays and differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendChange {
    /// Its name.
    pub backend: BackendRef,
    /// `weight`, `max_connections`, `admin_state`.
    pub fields: Vec<FieldChange>,
}

/// The difference from `old` to `new`.
pub fn diff(old: &Config, new: &Config) -> ConfigDiff {
    let before: HashMap<ServiceKey, &Service> = old.services.iter().map(|service| (service.key, service)).collect();
    let after: HashMap<ServiceKey, &Service> = new.services.iter().map(|service| (service.key, service)).collect();
    ConfigDiff {
        node: node(&old.node, &new.node),
        store: store(&old.store, &new.store),
        pools: pools(&old.pools, &new.pools),
        services_removed: old.services.iter().filter(|s| !after.contains_key(&s.key)).map(summary).collect(),
        services_added: new.services.iter().filter(|s| !before.contains_key(&s.key)).map(summary).collect(),
        services_changed: new.services.iter().filter_map(|s| service(before.get(&s.key)?, s)).collect(),
    }
}

/// Collects the fields that differ.
struct Fields(Vec<FieldChange>);

impl Fields {
    fn compare(
        &mut self,
        field: &'static str,
        needs: Needs,
        from: impl Into<Option<String>>,
        to: impl Into<Option<String>>,
    ) {
        let (from, to) = (from.into(), to.into());
        if from != to {
            self.0.push(FieldChange { field, from, to, needs });
        }
    }
}

fn node(old: &Node, new: &Node) -> Vec<FieldChange> {
    let mut fields = Fields(Vec::new());
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let mut compare = |field, needs, value: &dyn Fn(&Node) -> Option<String>| {
        fields.compare(field, needs, value(old), value(new));
    };
    // The mode is decided when a program is attached. What runs natively is welcome where generic is allowed; what may run
    // in generic mode is refused where it is not.
    let xdp_mode = match new.xdp_mode {
        XdpMode::Generic => Needs::AgentRestart,
        XdpMode::Native => Needs::Reload,
    };
    compare("name", Needs::Apply, &|n| Some(n.name.clone()));
    compare("interfaces", Needs::AgentRestart, &|n| Some(n.interfaces.join(" ")));
    compare("xdp_mode", xdp_mode, &|n| Some(n.xdp_mode.to_string()));
    compare("announce", Needs::AgentRestart, &|n| Some(n.announce.to_string()));
    compare("outer_source_v4", Needs::Apply, &|n| Some(n.outer_source_v4.to_string()));
    compare("outer_source_v6", Needs::Apply, &|n| Some(n.outer_source_v6.to_string()));
    compare("pin_dir", Needs::Reload, &|n| Some(path(&n.pin_dir)));
    compare("state_dir", Needs::AgentRestart, &|n| Some(path(&n.state_dir)));
    compare("seed_file", Needs::Reload, &|n| n.seed_file.as_deref().map(path));
    compare("limits.services_max", Needs::Reload, &|n| Some(n.limits.services_max.to_string()));
    compare("limits.backends_max", Needs::Reload, &|n| Some(n.limits.backends_max.to_string()));
    compare("limits.ring_slots_max", Needs::Reload, &|n| Some(n.limits.ring_slots_max.to_string()));
    compare("limits.flows_max", Needs::AgentRestart, &|n| Some(n.limits.flows_max.to_string()));
    compare("metrics.listen", Needs::AgentRestart, &|n| n.metrics_listen.map(|address| address.to_string()));
    compare("api.socket", Needs::AgentRestart, &|n| Some(path(&n.api_socket)));
    compare("api.group", Needs::AgentRestart, &|n| n.api_group.clone());
    fields.0
}

/// A store is opened when the agent starts.
fn store(old: &StoreConfig, new: &StoreConfig) -> Vec<FieldChange> {
    let mut fields = Fields(Vec::new());
    let (old, new) = (emit::store_settings(old), emit::store_settings(new));
    for key in schema::keys(schema::Table::Store) {
        let value = |settings: &[(&str, String)]| -> Option<String> {
            let (_, value) = settings.iter().find(|(name, _)| *name == key.name)?;
            Some(value.trim_matches('"').to_owned())
        };
        fields.compare(key.name, Needs::AgentRestart, value(&old), value(&new));
    }
    fields.0
}

fn pools(old: &[Pool], new: &[Pool]) -> Vec<PoolChange> {
    let prefix = |pools: &[Pool], name: &str| pools.iter().find(|p| p.name == name).map(|p| p.prefix.to_string());
    let gone = old.iter().filter(|pool| !new.iter().any(|other| other.name == pool.name));
    let all = gone.chain(new).map(|pool| PoolChange {
        name: pool.name.clone(),
        from: prefix(old, &pool.name),
        to: prefix(new, &pool.name),
    });
    all.filter(|change| change.from != change.to).collect()
}

fn summary(service: &Service) -> ServiceSummary {
    ServiceSummary {
        name: service.name.clone(),
        key: service.key.to_string(),
        forward: forward_word(service.forward),
        algo: service.algo.to_string(),
        backends: service.backends.len(),
    }
}

fn service(old: &Service, new: &Service) -> Option<ServiceChange> {
    // Most of them in a large configuration.
    if old == new {
        return None;
    }
    let mut fields = Fields(Vec::new());
    fields.compare("name", Needs::Apply, old.name.clone(), new.name.clone());
    fields.compare("vip", Needs::Apply, emit::vip(old), emit::vip(new));
    fields.compare("forward", Needs::Apply, forward_word(old.forward).to_owned(), forward_word(new.forward).to_owned());
    algo(old.algo, new.algo, &mut fields);
    flows(old, new, &mut fields);
    health_check(old.health_check.as_ref(), new.health_check.as_ref(), &mut fields);
    let by_place = |service: &Service| -> HashMap<(IpAddr, u16), Backend> {
        service.backends.iter().map(|backend| ((backend.address, backend.port), backend.clone())).collect()
    };
    let (before, after) = (by_place(old), by_place(new));
    let summary = |backend: &Backend| BackendSummary {
        backend: new.backend_ref(backend),
        weight: backend.weight,
        max_connections: backend.max_connections,
        admin_state: backend.admin_state,
    };
    let without = |service: &Service, other: &HashMap<(IpAddr, u16), Backend>| -> Vec<BackendSummary> {
        service.backends.iter().filter(|b| !other.contains_key(&(b.address, b.port))).map(summary).collect()
    };
    let changed = |backend: &Backend| -> Option<BackendChange> {
        let old = before.get(&(backend.address, backend.port))?;
        let mut fields = Fields(Vec::new());
        fields.compare("weight", Needs::Apply, old.weight.to_string(), backend.weight.to_string());
        fields.compare("max_connections", Needs::Apply, limit(old.max_connections), limit(backend.max_connections));
        fields.compare("admin_state", Needs::Apply, old.admin_state.to_string(), backend.admin_state.to_string());
        let fields = fields.0;
        (!fields.is_empty()).then(|| BackendChange { backend: new.backend_ref(backend), fields })
    };
    let change = ServiceChange {
        name: new.name.clone(),
        key: new.key.to_string(),
        fields: fields.0,
        backends_removed: without(old, &after),
        backends_added: without(new, &before),
        backends_changed: new.backends.iter().filter_map(changed).collect(),
    };
    let same = change.fields.is_empty()
        && change.backends_removed.is_empty()
        && change.backends_added.is_empty()
        && change.backends_changed.is_empty();
    (!same).then_some(change)
}

fn algo(old: Algo, new: Algo, fields: &mut Fields) {
    fields.compare("algo", Needs::Apply, old.word().to_owned(), new.word().to_owned());
    let (from, to) = (old.ring_size().to_string(), new.ring_size().to_string());
    fields.compare("algo_config.ring_size", Needs::Apply, from, to);
}

fn flows(old: &Service, new: &Service, fields: &mut Fields) {
    let mut compare = |field, value: &dyn Fn(&Service) -> Option<String>| {
        fields.compare(field, Needs::Apply, value(old), value(new));
    };
    compare("track", &|s| Some(s.flows.track.to_string()));
    compare("udp_flows", &|s| s.udp_flows().map(|udp_flows| udp_flows.to_string()));
    compare("on_marked_down", &|s| Some(on_marked_down_word(s.flows.on_marked_down).to_owned()));
    compare("window", &|s| Some(duration::format(s.flows.window)));
    compare("flow_timeout", &|s| Some(duration::format(s.flows.flow_timeout)));
    compare("announce_for", &|s| Some(duration::format(s.flows.announce_for)));
    compare("drain_timeout", &|s| Some(duration::format(s.flows.drain_timeout)));
}

fn health_check(old: Option<&HealthCheck>, new: Option<&HealthCheck>, fields: &mut Fields) {
    let mut compare = |field, value: &dyn Fn(&HealthCheck) -> Option<String>| {
        fields.compare(field, Needs::Apply, old.and_then(value), new.and_then(value));
    };
    compare("health_check.type", &|check| {
        Some(match check.probe {
            Probe::Http { .. } => "http".to_owned(),
            Probe::Tcp => "tcp".to_owned(),
        })
    });
    compare("health_check.path", &|check| match &check.probe {
        Probe::Http { path, .. } => Some(path.clone()),
        Probe::Tcp => None,
    });
    compare("health_check.host", &|check| match &check.probe {
        Probe::Http { host, .. } => host.clone(),
        Probe::Tcp => None,
    });
    compare("health_check.port", &|check| check.port.map(|port| port.to_string()));
    compare("health_check.interval", &|check| Some(duration::format(check.interval)));
    compare("health_check.timeout", &|check| Some(duration::format(check.timeout)));
    compare("health_check.rise", &|check| Some(check.rise.to_string()));
    compare("health_check.fall", &|check| Some(check.fall.to_string()));
}

impl FieldChange {
    /// `4096 -> 8192`; a value that is not set is a dash.
    fn values(&self) -> String {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        format!("{} -> {}", shown(&self.from), shown(&self.to))
    }
}

/// `, ` and what else has to happen, or nothing.
fn needs_words(needs: Needs) -> &'static str {
    match needs {
        Needs::Apply => "",
        Needs::AgentRestart => " (needs a restart of the agent)",
        Needs::Reload => " (needs `weir agent --unload` and a start)",
    }
}

impl ConfigDiff {
    /// Whether the two configurations mean the same.
    pub fn is_empty(&self) -> bool {
        self.node.is_empty()
            && self.store.is_empty()
            && self.pools.is_empty()
            && self.services_removed.is_empty()
            && self.services_added.is_empty()
            && self.services_changed.is_empty()
    }

    /// The most that any of the changes needs.
    pub fn needs(&self) -> Needs {
        self.node.iter().chain(&self.store).map(|change| change.needs).max().unwrap_or(Needs::Apply)
    }

    /// The changes, a sentence each without full stop: `service web: backend 10.0.0.14:80 added, weight 2`.
    pub fn sentences(&self) -> Vec<String> {
        let mut out = Vec::new();
        for change in &self.node {
            out.push(format!("node: {} {}{}", change.field, change.values(), needs_words(change.needs)));
        }
        for change in &self.store {
            out.push(format!("store: {} {}{}", change.field, change.values(), needs_words(change.needs)));
        }
        for PoolChange { name, from, to } in &self.pools {
            out.push(match (from, to) {
                (None, Some(to)) => format!("pool {name}: added, {to}"),
                (Some(from), Some(to)) => format!("pool {name}: prefix {from} -> {to}"),
                (_, None) => format!("pool {name}: removed"),
            });
        }
        for (services, verb) in [(&self.services_removed, "removed"), (&self.services_added, "added")] {
            for s in services {
                let ServiceSummary { name, key, forward, algo, backends } = s;
                out.push(format!("service {name}: {verb}, {key}, {forward}, {algo}, {}", backends_words(*backends)));
            }
        }
        for service in &self.services_changed {
            let name = &service.name;
            for change in &service.fields {
                out.push(format!("service {name}: {} {}", change.field, change.values()));
            }
            for (backends, verb) in [(&service.backends_removed, "removed"), (&service.backends_added, "added")] {
                for b in backends {
                    let state = match b.admin_state {
                        super::AdminState::Ready => String::new(),
                        state => format!(", {state}"),
                    };
                    out.push(format!(
                        "service {name}: backend {} {verb}, weight {}{}{state}",
                        place(&b.backend),
                        b.weight,
                        limit_words(b, ", ")
                    ));
                }
            }
            for b in &service.backends_changed {
                let fields: Vec<String> = b.fields.iter().map(|f| format!("{} {}", f.field, f.values())).collect();
                out.push(format!("service {name}: backend {} {}", place(&b.backend), fields.join(", ")));
            }
        }
        out
    }
}

/// The reference without the service.
fn place(backend: &BackendRef) -> String {
    let text = backend.to_string();
    text.split_once('/').map_or(text.clone(), |(_, place)| place.to_owned())
}

/// `max_connections`; `None` is no limit.
fn limit(max_connections: u32) -> Option<String> {
    (max_connections > 0).then(|| max_connections.to_string())
}

/// The limit of a backend that appears or disappears, behind `separator`; nothing for none.
fn limit_words(backend: &BackendSummary, separator: &str) -> String {
    limit(backend.max_connections).map_or_else(String::new, |limit| format!("{separator}max_connections {limit}"))
}

fn backends_words(n: usize) -> String {
    if n == 1 { "1 backend".to_owned() } else { format!("{n} backends") }
}

/// Aligned lines that begin with `+`, `-` or `~`; nothing for no difference.
impl fmt::Display for ConfigDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |changes: &[FieldChange]| changes.iter().map(|change| change.field.len()).max().unwrap_or(0);
        let fields = width(&self.node);
        for change in &self.node {
            writeln!(f, "~ node {:fields$}  {}{}", change.field, change.values(), needs_words(change.needs))?;
        }
        let listed = || self.services_removed.iter().chain(&self.services_added);
        let names = listed().map(|s| s.name.len()).max().unwrap_or(0);
        let keys = listed().map(|s| s.key.len()).max().unwrap_or(0);
        let algos = listed().map(|s| s.algo.len()).max().unwrap_or(0);
        for (services, sign) in [(&self.services_removed, '-'), (&self.services_added, '+')] {
            for s in services {
                let backends = backends_words(s.backends);
                writeln!(
                    f,
                    "{sign} service {:names$}  {:keys$}  {:4}  {:algos$}  {backends}",
                    s.name, s.key, s.forward, s.algo
                )?;
            }
        }
        for service in &self.services_changed {
            writeln!(f, "~ service {}  {}", service.name, service.key)?;
            let fields = width(&service.fields);
            for change in &service.fields {
                writeln!(f, "    ~ {:fields$}  {}", change.field, change.values())?;
            }
            let (removed, added) = (&service.backends_removed, &service.backends_added);
            let places = removed.iter().chain(added).map(|b| &b.backend);
            let places = places.chain(service.backends_changed.iter().map(|b| &b.backend));
            let width = places.map(|backend| place(backend).len()).max().unwrap_or(0);
            for (backends, sign) in [(removed, '-'), (added, '+')] {
                for b in backends {
                    let place = place(&b.backend);
                    let limit = limit_words(b, "  ");
                    writeln!(f, "    {sign} backend {place:width$}  weight {}{limit}  {}", b.weight, b.admin_state)?;
                }
            }
            for b in &service.backends_changed {
                let fields: Vec<String> = b.fields.iter().map(|f| format!("{} {}", f.field, f.values())).collect();
                writeln!(f, "    ~ backend {:width$}  {}", place(&b.backend), fields.join("  "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::sample, *};

    fn config(text: &str) -> Config {
        let checked = super::super::check("test.toml", text);
        checked.config.clone().unwrap_or_else(|| panic!("{}", checked.render(text, false)))
    }

    const OLD: &str = r#"
        node = { name = "n1", interface = "eth0" }
        [[service]]
        name = "web"
        vip = "192.0.2.1"
        port = 80
        forward = "ipip"
        health_check = { type = "http" }
        backends = [{ address = "10.0.0.11" }, { address = "10.0.0.12" }, { address = "2001:db8::13", weight = 3 }]
        [[service]]
        name = "old"
        vip = "192.0.2.2"
        port = "all"
        protocol = "udp"
        forward = "dsr"
    "#;
    const NEW: &str = r#"
        node = { name = "n1", interface = "eth0", limits = { services_max = 8192 }, announce = "none" }
        [[service]]
        name = "dns"
        vip = "2001:db8::53"
        port = 53
        protocol = "udp"
        forward = "dsr"
        backends = [{ address = "2001:db8::1" }]
        [[service]]
        name = "web"
        vip = "192.0.2.1"
        port = 80
        forward = "dsr"
        health_check = { type = "tcp", interval = "5s" }
        backends = [
            { address = "10.0.0.14", weight = 2, admin_state = "drain" },
            { address = "10.0.0.12", weight = 0, admin_state = "maint" },
            { address = "10.0.0.11" },
        ]
    "#;

    #[test]
    fn shows_what_changes() {
        let diff = diff(&config(OLD), &config(NEW));
        let expect = "\
~ node announce             address -> none (needs a restart of the agent)
~ node limits.services_max  4096 -> 8192 (needs `weir agent --unload` and a start)
- service old  192.0.2.2:all/udp      dsr   maglev(65537)  0 backends
+ service dns  [2001:db8::53]:53/udp  dsr   maglev(65537)  1 backend
~ service web  192.0.2.1:80/tcp
    ~ forward                ipip -> dsr
    ~ health_check.type      http -> tcp
    ~ health_check.path      /health -> -
    ~ health_check.interval  2s -> 5s
    - backend [2001:db8::13]:80  weight 3  ready
    + backend 10.0.0.14:80       weight 2  drain
    ~ backend 10.0.0.12:80       weight 1 -> 0  admin_state ready -> maint
";
        assert_eq!(diff.to_string(), expect);
        assert_eq!(diff.needs(), Needs::Reload);
        let sentences = diff.sentences();
        assert_eq!(sentences.len(), 11);
        assert!(
            sentences.contains(&"service web: backend 10.0.0.14:80 added, weight 2, drain".to_owned()),
            "{sentences:?}"
        );
        assert!(
            sentences.contains(&"service old: removed, 192.0.2.2:all/udp, dsr, maglev(65537), 0 backends".to_owned()),
            "{sentences:?}"
        );
        let json = serde_json::to_value(&diff).unwrap_or_default();
        assert_eq!(json["services_changed"][0]["backends_changed"][0]["backend"], "web/10.0.0.12:80");
        assert_eq!(json["node"][1]["needs"], "reload");
    }

    #[test]
    fn flows_change_at_once_and_their_table_does_not() {
        let text = |limits: &str, keys: &str, backends: &str| {
            let service = "name = \"dns\"\nvip = \"192.0.2.1\"\nport = 53\nprotocol = \"udp\"\nforward = \"dsr\"";
            config(&format!(
                "node = {{ interface = \"eth0\" {limits} }}\n[[service]]\n{service}\n{keys}\nbackends = [{backends}]"
            ))
        };
        let old = text("", "", "{ address = \"10.0.0.1\" }");
        let keys = "algo = \"random_two\"\nalgo_config = { ring_size = 10007 }\non_marked_down = \"keep\"\nwindow = \"90s\"\n\
                    flow_timeout = \"10m\"\nannounce_for = \"0s\"\ndrain_timeout = \"1h30m\"";
        let backends =
            "{ address = \"10.0.0.1\", max_connections = 9 }, { address = \"10.0.0.2\", max_connections = 8 }";
        let new = text("", keys, backends);
        let expect = "\
~ service dns  192.0.2.1:53/udp
    ~ algo                   maglev -> random_two
    ~ algo_config.ring_size  65537 -> 10007
    ~ track                  moved -> all
    ~ udp_flows              stateless -> sticky
    ~ on_marked_down         rehash -> keep
    ~ window                 5m -> 1m30s
    ~ flow_timeout           5m -> 10m
    ~ announce_for           4s -> 0s
    ~ drain_timeout          30s -> 1h30m
    + backend 10.0.0.2:53  weight 1  max_connections 8  ready
    ~ backend 10.0.0.1:53  max_connections - -> 9
";
        let change = diff(&old, &new);
        assert_eq!((change.to_string().as_str(), change.needs()), (expect, Needs::Apply));
        let sentence = "service dns: backend 10.0.0.2:53 added, weight 1, max_connections 8".to_owned();
        assert!(change.sentences().contains(&sentence), "{:?}", change.sentences());
        for (limit, needs) in [("flows_max", Needs::AgentRestart), ("backends_max", Needs::Reload)] {
            let table = text(&format!(", limits = {{ {limit} = 2048 }}"), keys, backends);
            assert_eq!(diff(&new, &table).needs(), needs, "{limit}");
        }
    }

    proptest! {
        #[test]
        fn empty_exactly_for_the_same_meaning(a in sample::config(), b in sample::config()) {
            prop_assert!(diff(&a, &a).is_empty());
            let mut turned = a.clone();
            turned.services.reverse();
            turned.services.iter_mut().for_each(|service| service.backends.reverse());
            prop_assert!(diff(&a, &turned).is_empty(), "the order means nothing");
            prop_assert_eq!(diff(&a, &b).is_empty(), diff(&b, &a).is_empty());
            prop_assert_eq!(diff(&a, &b).to_string().is_empty(), diff(&a, &b).is_empty());
            prop_assert_eq!(diff(&a, &b).services_added, diff(&b, &a).services_removed);
        }
    }
}
