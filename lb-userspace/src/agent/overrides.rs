//! Changes that an operator made at run time, on top of the configuration file.
//!
//! An override remembers what the file said when it was made. It holds until it is reset or until the file changes that
//! very setting, because the later word counts; it goes with its backend.
//!
//! Pure but for [`load`] and [`save`]. Invariant: an override never equals what the file says, it would say nothing.

use std::{collections::BTreeMap, io, net::IpAddr, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    model::{AdminState, Backend, Config, ServiceKey, WEIGHT_MAX},
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

/// An override that was dropped, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Whose.
    pub backend: BackendId,
    /// A sentence's end: `the configuration now says weight 3`.
    pub why: String,
}

/// All overrides of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    backends: BTreeMap<BackendId, Override>,
}

impl Overrides {
    /// The override of a backend, if there is one.
    pub fn get(&self, id: &BackendId) -> Option<&Override> {
        self.backends.get(id)
    }

    /// How many backends have one.
    pub fn len(&self) -> usize {
        self.backends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty()
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
        if self.backends.is_empty() {
            return Vec::new();
        }
        let configured: BTreeMap<BackendId, &Backend> =
            config.services.iter().flat_map(|s| s.backends.iter().map(|b| (BackendId::new(s.key, b), b))).collect();
        let mut dropped = Vec::new();
        self.backends.retain(|id, o| {
            let Some(backend) = configured.get(id) else {
                dropped.push(Dropped { backend: *id, why: "the backend left the configuration".into() });
                return false;
            };
            if o.admin_state.is_some_and(|s| s.configured != backend.admin_state) {
                o.admin_state = None;
                let why = format!("the configuration now says admin_state {}", word(backend.admin_state));
                dropped.push(Dropped { backend: *id, why });
            }
            if o.weight.is_some_and(|s| s.configured != backend.weight) {
                o.weight = None;
                let why = format!("the configuration now says weight {}", backend.weight);
                dropped.push(Dropped { backend: *id, why });
            }
            !o.is_empty()
        });
        dropped
    }

    /// The configuration with the overrides in force.
    pub fn apply(&self, config: &Config) -> Config {
        let mut config = config.clone();
        for service in &mut config.services {
            let key = service.key;
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
    Ok(Overrides { backends: file.overrides.into_iter().filter_map(valid).collect() })
}

/// Replaces `path` (mode 0600) with the overrides, atomically.
///
/// # Errors
/// What the system said; the file is as it was then.
pub fn save(path: &Path, overrides: &Overrides) -> io::Result<()> {
    let entries = overrides.backends.iter().map(|(id, o)| Entry { id: *id, settings: *o }).collect();
    let mut bytes = serde_json::to_vec_pretty(&File { version: VERSION, overrides: entries })?;
    bytes.push(b'\n');
    replace_file(path, &bytes, Some(0o600))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

    use super::*;
    use crate::model::{Algo, Announce, Flows, Forward, Limits, Node, Protocol, Service, XdpMode};

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
        let services = vec![Service { name: "web".into(), key, forward, algo, flows, health_check: None, backends }];
        Config { node, services }
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
