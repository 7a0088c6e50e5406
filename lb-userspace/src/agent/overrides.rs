//! Changes that an operator made at run time, on top of the configuration file: of backends and of services.
//!
//! An override remembers what the file said when it was made. It holds until it is reset or until the file changes that
//! very setting, because the later word counts; it goes with its backend or service. The settings of a service go together where a
//! new file contradicts them.
//!
//! Pure but for [`load`] and [`save`]. Invariant: an override never equals what the file says, it would say nothing.

use std::{collections::BTreeMap, io, net::IpAddr, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    api::backend_name,
    model::{
        AdminState, Backend, Config, Service, ServiceKey, WEIGHT_MAX,
        set::{self, SetError},
    },
    store::file::replace_file,
};

/// Version of the file's form.
const VERSION: u32 = 1;

/// Which backend of which service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackendId {
    /// The service.
    pub service: ServiceKey,
    /// Address of the backend.
    pub address: IpAddr,
    /// Port of the backend; 0 for a service on all ports.
    pub port: u16,
}

impl BackendId {
    /// The identity of `backend` within the service `key`.
    pub fn new(key: ServiceKey, backend: &Backend) -> Self {
        Self { service: key, address: backend.address, port: backend.port }
    }
}

/// One setting that is overridden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting<T> {
    /// What holds instead.
    pub value: T,
    /// What the file said when it was set.
    pub configured: T,
}

/// The overrides of one backend; at least one setting is present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// Administrative state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_state: Option<Setting<AdminState>>,
    /// Weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Setting<u16>>,
}

impl Override {
    fn is_empty(&self) -> bool {
        self.admin_state.is_none() && self.weight.is_none()
    }
}

/// A change that was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Forget both settings first.
    pub reset: bool,
    /// Set the administrative state.
    pub admin_state: Option<AdminState>,
    /// Set the weight, 0 to [`WEIGHT_MAX`].
    pub weight: Option<u16>,
}

/// Settings of one service that are overridden, by key of [`set::KEYS`]; at least one.
type Settings = BTreeMap<String, Setting<String>>;

/// An override that was dropped, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Of which service.
    pub service: ServiceKey,
    /// Of which of its backends, if of one.
    pub backend: Option<BackendId>,
    /// A sentence's end: `the configuration now says weight 3`.
    pub why: String,
}

/// All overrides of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    backends: BTreeMap<BackendId, Override>,
    services: BTreeMap<ServiceKey, Settings>,
}

/// `KEY=VALUE` each, in the order of [`set::KEYS`].
fn words(settings: &Settings) -> Vec<String> {
    let one = |key: &str| settings.get(key).map(|setting| format!("{key}={}", setting.value));
    set::KEYS.into_iter().filter_map(one).collect()
}

/// `KEY=VALUE KEY=VALUE`, as [`set::parse`] reads it.
fn text(settings: &Settings) -> String {
    words(settings).join(" ")
}

impl Overrides {
    /// The override of a backend, if there is one.
    pub fn get(&self, id: &BackendId) -> Option<&Override> {
        self.backends.get(id)
    }

    /// The settings of a service that are overridden, `KEY=VALUE` each.
    pub fn service(&self, key: &ServiceKey) -> Vec<String> {
        self.services.get(key).map(words).unwrap_or_default()
    }

    /// How many backends and services have one.
    pub fn len(&self) -> usize {
        self.backends.len() + self.services.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty() && self.services.is_empty()
    }

    /// Sets what `settings` says for the service that the file describes as `configured`, beside what is set already. What is set to the
    /// file's own value is no override any more. Returns whether anything changed.
    ///
    /// # Errors
    /// What is wrong with the settings, alone or together with those that are set already; nothing changed then.
    pub fn set(&mut self, configured: &Service, settings: &str) -> Result<bool, SetError> {
        let before = self.services.get(&configured.key).cloned().unwrap_or_default();
        let file = set::settings(configured);
        let mut now = before.clone();
        for (key, value) in set::pairs(settings) {
            let said = file.iter().find(|(known, _)| *known == key).map(|(_, said)| said.clone()).unwrap_or_default();
            now.insert(key.to_owned(), Setting { value: value.to_owned(), configured: said });
        }
        // Alone for what is no setting at all, then all together: what contradicts the file may agree with what is set beside it.
        match set::parse(configured, settings) {
            Ok(_) | Err(SetError::Refused(_)) => _ = set::parse(configured, &text(&now))?,
            Err(error) => return Err(error),
        }
        now.retain(|_, setting| setting.value != setting.configured);
        if !now.is_empty() {
            set::parse(configured, &text(&now))?;
        }
        let changed = now != before;
        if now.is_empty() {
            self.services.remove(&configured.key);
        } else {
            self.services.insert(configured.key, now);
        }
        Ok(changed)
    }

    /// Forgets what is set on a service. Returns whether anything was.
    pub fn reset(&mut self, key: &ServiceKey) -> bool {
        self.services.remove(key).is_some()
    }

    /// Carries out `change` for the backend `id`, which the file describes as `configured`. A setting that is set to what the
    /// file says is no override any more. Returns whether anything changed.
    pub fn change(&mut self, id: BackendId, configured: &Backend, change: Change) -> bool {
        let before = self.backends.get(&id).copied().unwrap_or_default();
        let mut now = if change.reset { Override::default() } else { before };
        if let Some(value) = change.admin_state {
            now.admin_state = setting(value, configured.admin_state);
        }
        if let Some(value) = change.weight {
            now.weight = setting(value, configured.weight);
        }
        if now.is_empty() {
            self.backends.remove(&id);
        } else {
            self.backends.insert(id, now);
        }
        now != before
    }

    /// Drops what a new configuration outdates and says what it dropped.
    pub fn reconcile(&mut self, config: &Config) -> Vec<Dropped> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut dropped = self.reconcile_services(config);
        let configured: BTreeMap<BackendId, &Backend> =
            config.services.iter().flat_map(|s| s.backends.iter().map(|b| (BackendId::new(s.key, b), b))).collect();
        self.backends.retain(|id, o| {
            let Some(backend) = configured.get(id) else {
                dropped.push(Dropped::of(id, "the backend left the configuration".into()));
                return false;
            };
            if o.admin_state.is_some_and(|s| s.configured != backend.admin_state) {
                o.admin_state = None;
                let why = format!("the configuration now says admin_state {}", word(backend.admin_state));
                dropped.push(Dropped::of(id, why));
            }
            if o.weight.is_some_and(|s| s.configured != backend.weight) {
                o.weight = None;
                let why = format!("the configuration now says weight {}", backend.weight);
                dropped.push(Dropped::of(id, why));
            }
            !o.is_empty()
        });
        dropped
    }

    fn reconcile_services(&mut self, config: &Config) -> Vec<Dropped> {
        let mut dropped = Vec::new();
        self.services.retain(|key, settings| {
            let mut drop = |why: String| dropped.push(Dropped { service: *key, backend: None, why });
            let Some(service) = config.services.iter().find(|s| s.key == *key) else {
                drop("the service left the configuration".into());
                return false;
            };
            let file = set::settings(service);
            settings.retain(|key, setting| {
                let now = file.iter().find(|(known, _)| known == key).map(|(_, now)| now.as_str()).unwrap_or_default();
                let same = setting.configured == now;
                if !same {
                    drop(format!("the configuration now says {key} {now}"));
                }
                same
            });
            if settings.is_empty() {
                return false;
            }
            if let Err(error) = set::parse(service, &text(settings)) {
                drop(format!("the configuration does not go with {}: {error}", text(settings)));
                return false;
            }
            true
        });
        dropped
    }

    /// The configuration with the overrides in force.
    pub fn apply(&self, config: &Config) -> Config {
        let mut config = config.clone();
        for service in &mut config.services {
            let key = service.key;
            // What does not go with the configuration was dropped when that came.
            let set = self.services.get(&key).and_then(|settings| set::parse(service, &text(settings)).ok());
            if let Some(set) = set {
                *service = set;
            }
            for backend in &mut service.backends {
                if let Some(o) = self.backends.get(&BackendId::new(key, backend)) {
                    backend.admin_state = o.admin_state.map_or(backend.admin_state, |s| s.value);
                    backend.weight = o.weight.map_or(backend.weight, |s| s.value);
                }
            }
        }
        config
    }
}

impl Dropped {
    fn of(id: &BackendId, why: String) -> Self {
        Self { service: id.service, backend: Some(*id), why }
    }
}

/// `192.0.2.1:80/tcp`, with the backend's name before it where it is about one.
impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(id) = &self.backend {
            write!(f, "{} of ", backend_name(id.address, id.port))?;
        }
        write!(f, "{}/{}", backend_name(self.service.vip, self.service.port), self.service.protocol)
    }
}

fn setting<T: PartialEq + Copy>(value: T, configured: T) -> Option<Setting<T>> {
    (value != configured).then_some(Setting { value, configured })
}

fn word(state: AdminState) -> &'static str {
    match state {
        AdminState::Ready => "ready",
        AdminState::Drain => "drain",
        AdminState::Maint => "maint",
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    overrides: Vec<Entry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    services: Vec<ServiceEntry>,
}

#[derive(Serialize, Deserialize)]
struct ServiceEntry {
    service: ServiceKey,
    settings: Settings,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    id: BackendId,
    #[serde(flatten)]
    settings: Override,
}

/// Why saved overrides cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is there but cannot be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// It is not what [`save`] writes.
    #[error("{0}")]
    Form(#[from] serde_json::Error),
    /// Another version wrote it.
    #[error("version {0} of the file is not known here")]
    Version(u32),
}

/// The overrides that `path` holds; none if it does not exist. Weights above [`WEIGHT_MAX`] are left out.
///
/// # Errors
/// [`LoadError`].
pub fn load(path: &Path) -> Result<Overrides, LoadError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Overrides::default()),
        Err(e) => return Err(e.into()),
    };
    let file: File = serde_json::from_slice(&bytes)?;
    if file.version != VERSION {
        return Err(LoadError::Version(file.version));
    }
    let valid = |mut e: Entry| {
        e.settings.weight = e.settings.weight.filter(|w| w.value <= WEIGHT_MAX);
        (!e.settings.is_empty()).then_some((e.id, e.settings))
    };
    let services = file.services.into_iter().filter(|e| !e.settings.is_empty()).map(|e| (e.service, e.settings));
    Ok(Overrides { backends: file.overrides.into_iter().filter_map(valid).collect(), services: services.collect() })
}

/// Replaces `path` (mode 0600) with the overrides, atomically.
///
/// # Errors
/// What the system said; the file is as it was then.
pub fn save(path: &Path, overrides: &Overrides) -> io::Result<()> {
    let entries = overrides.backends.iter().map(|(id, o)| Entry { id: *id, settings: *o }).collect();
    let services = overrides.services.iter();
    let services = services.map(|(key, s)| ServiceEntry { service: *key, settings: s.clone() }).collect();
    let mut bytes = serde_json::to_vec_pretty(&File { version: VERSION, overrides: entries, services })?;
    bytes.push(b'\n');
    replace_file(path, &bytes, Some(0o600))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

    use super::*;
    use crate::model::{Algo, Announce, Flows, Forward, Limits, Node, Protocol, StoreConfig, Track, XdpMode};

    fn backend(last: u8, weight: u16, admin_state: AdminState) -> Backend {
        Backend { address: [10, 0, 0, last].into(), port: 80, weight, max_connections: 0, admin_state }
    }

    fn config(backends: Vec<Backend>) -> Config {
        let key = ServiceKey { vip: [192, 0, 2, 1].into(), port: 80, protocol: Protocol::Tcp };
        let node = Node {
            name: "lb".into(),
            interfaces: vec!["eth0".into()],
            xdp_mode: XdpMode::Native,
            announce: Announce::None,
            outer_source_v4: "198.18.0.0/16".parse().unwrap(),
            outer_source_v6: "100::/64".parse().unwrap(),
            limits: Limits::default(),
            metrics_listen: None,
            api_socket: PathBuf::new(),
            api_group: None,
            pin_dir: PathBuf::new(),
            state_dir: PathBuf::new(),
            seed_file: None,
        };
        let algo = Algo::Maglev { ring_size: 251 };
        let forward = Forward::Ipip;
        let flows = Flows::defaults(Protocol::Tcp, algo.kind());
        let services =
            vec![Service { name: "web".into(), key, pool: None, forward, algo, flows, health_check: None, backends }];
        Config { node, store: StoreConfig::File, pools: Vec::new(), services }
    }

    fn id(config: &Config, i: usize) -> BackendId {
        BackendId::new(config.services[0].key, &config.services[0].backends[i])
    }

    fn state(value: AdminState) -> Change {
        Change { admin_state: Some(value), ..Change::default() }
    }

    fn weight(value: u16) -> Change {
        Change { weight: Some(value), ..Change::default() }
    }

    #[test]
    fn a_life_of_an_override() {
        let file = config(vec![backend(1, 5, AdminState::Ready), backend(2, 5, AdminState::Drain)]);
        let (one, two) = (id(&file, 0), id(&file, 1));
        let configured = |i: usize| &file.services[0].backends[i];
        let mut o = Overrides::default();
        assert!(o.change(one, configured(0), state(AdminState::Drain)));
        assert!(!o.change(one, configured(0), state(AdminState::Drain)), "a second time changes nothing");
        assert!(o.change(one, configured(0), weight(9)));
        assert!(o.change(two, configured(1), state(AdminState::Ready)), "ready over a drain of the file is one too");
        let now = o.apply(&file);
        let seen: Vec<_> = now.services[0].backends.iter().map(|b| (b.weight, b.admin_state)).collect();
        assert_eq!(seen, [(9, AdminState::Drain), (5, AdminState::Ready)]);
        assert!(o.change(one, configured(0), state(AdminState::Ready)), "what the file says clears");
        assert_eq!(o.get(&one).map(|o| o.admin_state), Some(None));
        assert!(o.change(one, configured(0), Change { reset: true, ..Change::default() }));
        assert_eq!((o.get(&one), o.len()), (None, 1));
        // A reset with a new value keeps only that.
        o.change(one, configured(0), weight(9));
        o.change(one, configured(0), Change { reset: true, admin_state: Some(AdminState::Maint), weight: None });
        assert_eq!(o.get(&one).map(|o| o.weight), Some(None));
    }

    #[test]
    fn the_later_word_of_the_file_counts() {
        let file = config(vec![backend(1, 5, AdminState::Ready), backend(2, 5, AdminState::Ready)]);
        let mut o = Overrides::default();
        for i in 0..2 {
            o.change(id(&file, i), &file.services[0].backends[i], state(AdminState::Drain));
            o.change(id(&file, i), &file.services[0].backends[i], weight(1));
        }
        let before = o.clone();
        assert_eq!(o.reconcile(&file), []);
        assert_eq!(o, before, "an unchanged file drops nothing");
        // Another setting of the same backend changes: only that override goes.
        let dropped = o.reconcile(&config(vec![backend(1, 7, AdminState::Ready), backend(2, 5, AdminState::Ready)]));
        assert_eq!(dropped.len(), 1);
        assert!(dropped[0].why.contains("weight 7"));
        assert!(o.get(&id(&file, 0)).is_some_and(|o| o.weight.is_none() && o.admin_state.is_some()));
        // A backend leaves: its override leaves with it and does not come back.
        assert_eq!(o.reconcile(&config(vec![backend(1, 7, AdminState::Ready)])).len(), 1);
        assert_eq!(o.reconcile(&file), []);
        assert_eq!(o.len(), 1);
    }

    #[test]
    fn settings_of_a_service_go_as_backends_do() {
        let file = config(vec![backend(1, 5, AdminState::Ready)]);
        let (service, key) = (&file.services[0], file.services[0].key);
        let mut o = Overrides::default();
        assert_eq!(o.set(service, "algo=round_robin window=5m"), Ok(true));
        assert_eq!(o.set(service, "window=5m"), Ok(false), "a second time changes nothing");
        assert_eq!(o.service(&key), ["algo=round_robin", "window=5m"]);
        let now = o.apply(&file);
        assert_eq!((now.services[0].algo.word(), now.services[0].flows.track), ("round_robin", Track::All));
        assert_eq!(now.services[0].backends, file.services[0].backends);
        // Alone it would do, beside what is set it does not.
        let before = o.clone();
        assert!(o.set(service, "track=moved").is_err() && o.set(service, "colour=blue").is_err());
        assert_eq!(o, before);
        assert_eq!(o.set(service, "window=2h4m"), Ok(true), "what the file says clears");
        assert_eq!(o.service(&key), ["algo=round_robin"]);
        // The file's later word counts, for the setting that it is about.
        let mut other = file.clone();
        other.services[0].flows.announce_for = std::time::Duration::from_secs(1);
        assert_eq!(o.reconcile(&other), []);
        other.services[0].algo = Algo::SourceHash { ring_size: 251 };
        let dropped = o.reconcile(&other);
        assert!(dropped[0].why.contains("algo source_hash") && dropped.len() == 1, "{dropped:?}");
        assert_eq!(dropped[0].to_string(), "192.0.2.1:80/tcp");
        assert!(o.is_empty());
        // What only goes together is set together, in one step or in two.
        assert_eq!(o.set(service, "flow_timeout=5h"), Ok(true));
        assert_eq!(o.set(service, "window=4h"), Ok(true));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overrides.json");
        save(&path, &o).unwrap();
        assert_eq!(load(&path).unwrap(), o);
        // It goes with its service.
        let without = Config { services: Vec::new(), ..file.clone() };
        assert_eq!(o.clone().reconcile(&without).len(), 1);
        assert!(o.reset(&key) && !o.reset(&key) && o.is_empty());
    }

    #[test]
    fn saved_and_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overrides.json");
        assert_eq!(load(&path).unwrap(), Overrides::default());
        let file = config(vec![backend(1, 5, AdminState::Ready)]);
        let mut o = Overrides::default();
        o.change(id(&file, 0), &file.services[0].backends[0], state(AdminState::Maint));
        o.change(id(&file, 0), &file.services[0].backends[0], weight(0));
        save(&path, &o).unwrap();
        assert_eq!(load(&path).unwrap(), o);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for (text, form) in [("{", true), (r#"{"version":9,"overrides":[]}"#, false)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(matches!(load(&path), Err(LoadError::Form(_))), form, "{text}");
            assert!(load(&path).is_err());
        }
    }

    #[test]
    fn a_weight_beyond_the_limit_is_not_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overrides.json");
        let text = r#"{"version":1,"overrides":[{"service":{"vip":"192.0.2.1","port":80,"protocol":"tcp"},
            "address":"10.0.0.1","port":80,"weight":{"value":60000,"configured":5}}]}"#;
        std::fs::write(&path, text).unwrap();
        assert!(load(&path).unwrap().is_empty());
    }
}
