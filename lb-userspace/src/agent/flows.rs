//! Recorded flows in the words of the API, and which of them are meant.
//!
//! Pure: names and words of the flow table in, a list out.

use std::collections::HashMap;

use axum::http::StatusCode;
use lb_core::abi::flow::{FlowState, Record, is_record};

use super::{api::Refusal, view::no_backend, view::no_service};
use crate::{
    api::{FLOWS_LISTED_MAX, FlowEntry, FlowList, FlowQuery, FlushRequest, backend_name},
    dataplane::Flush,
    model::Config,
    plan::{Present, wanted::address},
};

/// Who backend ids are.
#[derive(Clone, Debug)]
pub struct Names {
    /// Service and name of the backend, by id; the name is `None` for one that is gone.
    backends: HashMap<u32, (Option<String>, Option<String>)>,
    /// Service ids by name.
    services: HashMap<String, u32>,
}

impl Names {
    /// The names in `config` of what the maps hold.
    pub fn new(present: &Present, config: &Config) -> Self {
        let (mut backends, mut services, mut by_id) = (HashMap::new(), HashMap::new(), HashMap::new());
        let names: HashMap<_, _> = config.services.iter().map(|s| (s.key, &s.name)).collect();
        for (key, service) in present.services() {
            let name = names.get(key).map(|name| (*name).clone());
            if let Some(name) = &name {
                services.insert(name.clone(), service.id);
                by_id.insert(service.id, name.clone());
            }
            for b in &service.backends {
                backends.insert(b.id, (name.clone(), Some(backend_name(address(b.key.addr), b.key.port))));
            }
        }
        for former in present.former() {
            backends.insert(former.id, (by_id.get(&former.service).cloned(), None));
        }
        Self { backends, services }
    }

    /// The ids behind names.
    ///
    /// # Errors
    /// 404 where there is none; 400 for a backend without its service.
    pub fn find(&self, service: Option<&str>, backend: Option<&str>) -> Result<Flush, Refusal> {
        let Some(name) = service else {
            return match backend {
                Some(_) => Err(Refusal::new(StatusCode::BAD_REQUEST, "a backend is named together with its service")),
                None => Ok(Flush::default()),
            };
        };
        let id = *self.services.get(name).ok_or_else(|| no_service(name))?;
        let Some(backend) = backend else { return Ok(Flush { service: id, backend: 0 }) };
        let found =
            self.backends.iter().find(|(_, (s, b))| s.as_deref() == Some(name) && b.as_deref() == Some(backend));
        let (backend, _) = found.ok_or_else(|| no_backend(&format!("{name}/{backend}")))?;
        Ok(Flush { service: id, backend: *backend })
    }

    /// As [`Names::find`], for a request.
    ///
    /// # Errors
    /// As [`Names::find`].
    pub fn flush(&self, request: &FlushRequest) -> Result<Flush, Refusal> {
        self.find(request.service.as_deref(), request.backend.as_deref())
    }
}

/// A list being made.
#[derive(Clone, Debug)]
pub struct Listing {
    names: Names,
    service: Option<String>,
    backend: u32,
    state: Option<FlowState>,
    limit: usize,
    now_s: u32,
    list: FlowList,
}

impl Listing {
    /// An empty list of what `query` asks for; `now_s` is the program's clock.
    ///
    /// # Errors
    /// As [`Names::find`], and 400 for a state that is none.
    pub fn new(names: Names, query: FlowQuery, now_s: u32) -> Result<Self, Refusal> {
        let asked = names.find(query.service.as_deref(), query.backend.as_deref())?;
        let state = match &query.state {
            None => None,
            Some(word) => Some(FlowState::ALL.into_iter().find(|state| state.name() == word).ok_or_else(|| {
                let words = FlowState::ALL.map(FlowState::name).join(", ");
                Refusal::new(StatusCode::BAD_REQUEST, format!("{word:?} is no state of a flow"))
                    .hint(format!("one of {words}"))
            })?),
        };
        let limit = query.limit.min(FLOWS_LISTED_MAX) as usize;
        Ok(Self {
            names,
            service: query.service,
            backend: asked.backend,
            state,
            limit,
            now_s,
            list: FlowList::default(),
        })
    }

    /// Takes a word of the flow table.
    pub fn take(&mut self, word: u64) {
        let record = Record::unpack(word);
        let left_s = record.left_s(self.now_s);
        if !is_record(word) || left_s == 0 {
            return;
        }
        self.list.records += 1;
        let (service, backend) = match self.names.backends.get(&record.backend) {
            Some((service, backend)) => (service.as_ref(), backend.as_ref()),
            None => (None, None),
        };
        let other = self.service.is_some() && self.service.as_ref() != service;
        if other
            || (self.backend != 0 && self.backend != record.backend)
            || self.state.is_some_and(|state| state != record.state)
        {
            return;
        }
        self.list.matched += 1;
        if self.list.flows.len() == self.limit {
            self.list.left_out += 1;
            return;
        }
        self.list.flows.push(FlowEntry {
            service: service.cloned(),
            slot: record.slot,
            backend: backend.cloned(),
            backend_id: record.backend,
            state: record.state.name().into(),
            left_s,
        });
    }

    /// The list.
    pub fn finish(self) -> FlowList {
        self.list
    }
}
