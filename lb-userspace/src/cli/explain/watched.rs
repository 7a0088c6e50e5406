//! Tables that remember what was asked of them: a decision that ends in a refusal does not say how far it came.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use lb_core::{
    abi::{
        backend::Backend,
        flow::{self, Word},
        fragment::{Fragment, FragmentKey},
        lookup::Bucket,
        node::Node,
        ring::{Line, Slot},
        service::Service,
        stats::FlowEvent,
        turns::Turns,
    },
    flow::{self as flows, Request},
    tables::{NextHop, Pair, Route, Tables},
};

/// A request that the ring alone did not decide.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// It.
    pub request: Request,
    /// The word that the flow table held for it, [`flow::BUSY`], or 0.
    pub word: u64,
    /// The program's clock then.
    pub now_s: u32,
}

/// Tables over `inner`. Fragments that pass are remembered here, so that those of one capture find each other and the maps
/// stay as they are.
pub struct Watched<'t, T> {
    inner: &'t T,
    backend: Cell<Option<u32>>,
    request: Cell<Option<Request>>,
    found: Cell<(u64, u32)>,
    turn: Cell<bool>,
    fragments: RefCell<BTreeMap<FragmentKey, Fragment>>,
}

impl<'t, T: Tables> Watched<'t, T> {
    /// Watches `inner`.
    pub fn new(inner: &'t T) -> Self {
        Self {
            inner,
            backend: Cell::new(None),
            request: Cell::new(None),
            found: Cell::new((0, 0)),
            turn: Cell::new(false),
            fragments: RefCell::default(),
        }
    }

    /// The backend that was asked for last since the last call of this.
    pub fn take_backend(&self) -> Option<u32> {
        self.backend.take()
    }

    /// The request that the flow table was asked for since the last call of this, and its answer.
    pub fn take_asked(&self) -> Option<Asked> {
        let (word, now_s) = self.found.take();
        self.request.take().map(|request| Asked { request, word, now_s })
    }

    /// Whether a CPU's turns decided who gets a new flow since the last call of this.
    pub fn take_turn(&self) -> bool {
        self.turn.take()
    }
}

impl<T: Tables> Tables for Watched<'_, T> {
    fn node(&self) -> Option<&Node> {
        self.inner.node()
    }

    fn bucket(&self, index: u32) -> Option<&Bucket> {
        self.inner.bucket(index)
    }

    fn service(&self, id: u32) -> Option<&Service> {
        self.inner.service(id)
    }

    fn line(&self, index: u32) -> Option<&Line> {
        self.inner.line(index)
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backend.set(Some(id));
        self.inner.backend(id)
    }

    /// The short way shows nothing of what it found: the long one decides alike.
    fn flow_known(&self, _: &Node, _: &Service, _: u64, _: u32, _: Slot) -> u32 {
        0
    }

    fn flow_resolve(&self, request: &Request) -> u64 {
        self.request.set(Some(*request));
        flows::resolve(self, request)
    }

    fn flow_find(&self, hash: u64, mask: u32, now_s: u32) -> u64 {
        let word = flows::table::find(self, hash, mask, now_s);
        self.found.set((word, now_s));
        word
    }

    /// Here turns learn, and decide nothing.
    fn flow_closed(&self, service: u32, backend: u32) {
        self.inner.flow_closed(service, backend);
    }

    fn owners(&self, index: u32) -> Option<&Line> {
        self.inner.owners(index)
    }

    fn flows(&self, index: u32) -> Option<&flow::Bucket> {
        self.inner.flows(index)
    }

    fn pair(&self) -> Option<Pair> {
        self.inner.pair()
    }

    fn flows_beside(&self, index: u32) -> Option<&flow::Bucket> {
        self.inner.flows_beside(index)
    }

    fn active(&self, id: u32) -> Option<&Word> {
        self.inner.active(id)
    }

    fn count(&self, event: FlowEvent) {
        self.inner.count(event);
    }

    fn count_flows(&self, backend: u32, flows: [u32; 4]) {
        self.inner.count_flows(backend, flows);
    }

    fn turns(&self, service: u32) -> Turns {
        self.turn.set(true);
        self.inner.turns(service)
    }

    fn set_turns(&self, service: u32, turns: Turns) {
        self.inner.set_turns(service, turns);
    }

    fn jiffies(&self) -> u64 {
        self.inner.jiffies()
    }

    fn load_u64(&self, word: &u64) -> u64 {
        self.inner.load_u64(word)
    }

    fn load_u32(&self, word: &u32) -> u32 {
        self.inner.load_u32(word)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        let seen = self.fragments.borrow().get(key).copied();
        seen.or_else(|| self.inner.fragment(key))
    }

    fn remember_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn next_hop(&self, route: &Route) -> NextHop {
        self.inner.next_hop(route)
    }
}
