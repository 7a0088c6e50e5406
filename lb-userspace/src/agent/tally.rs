//! Counters of backends and services, steady while backends come and go.
//!
//! The maps count per backend id. A service's total must not fall when a backend goes, and a new backend must not start with
//! what its id counted for another: so the tally remembers what went, and where each new id started.
//!
//! Pure. Invariant: the total of a service never falls as long as the counters in the maps do not.

use std::collections::{BTreeMap, HashMap};

use lb_core::abi::stats::{Counter, FlowTotals};

use crate::{model::ServiceKey, plan::Present};

/// Counters by backend id.
pub type ById<C> = BTreeMap<u32, C>;

/// What is counted for a backend: some numbers that only grow.
pub trait Count: Copy + Default {
    /// What was counted beyond `base`; all of it if a number is below: it was cleared in between, so everything in it is new.
    #[must_use]
    fn minus(self, base: Self) -> Self;
    /// The sum.
    #[must_use]
    fn plus(self, other: Self) -> Self;
}

fn minus<const N: usize>(a: [u64; N], base: [u64; N]) -> [u64; N] {
    if a.iter().zip(&base).any(|(a, base)| a < base) {
        return a;
    }
    let mut out = a;
    out.iter_mut().zip(base).for_each(|(out, base)| *out -= base);
    out
}

fn plus<const N: usize>(a: [u64; N], b: [u64; N]) -> [u64; N] {
    let mut out = a;
    out.iter_mut().zip(b).for_each(|(out, b)| *out = out.saturating_add(b));
    out
}

impl Count for Counter {
    fn minus(self, base: Self) -> Self {
        bytemuck::cast(minus::<2>(bytemuck::cast(self), bytemuck::cast(base)))
    }

    fn plus(self, other: Self) -> Self {
        bytemuck::cast(plus::<2>(bytemuck::cast(self), bytemuck::cast(other)))
    }
}

impl Count for FlowTotals {
    fn minus(self, base: Self) -> Self {
        bytemuck::cast(minus::<4>(bytemuck::cast(self), bytemuck::cast(base)))
    }

    fn plus(self, other: Self) -> Self {
        bytemuck::cast(plus::<4>(bytemuck::cast(self), bytemuck::cast(other)))
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Tally<C> {
    /// What the maps held when they were last counted on.
    live: Present,
    /// What an id had counted when its present backend got it.
    base: HashMap<u32, C>,
    /// What backends that went had counted.
    gone: HashMap<ServiceKey, C>,
}

impl<C: Count> Tally<C> {
    /// Starts from maps whose counters all belong to the backends that they hold.
    pub fn new(present: &Present) -> Self {
        Self { live: present.clone(), base: HashMap::new(), gone: HashMap::new() }
    }

    /// Ids that a change to `next` takes out of use or into use: their counters are read before it is applied.
    pub fn touched(&self, next: &Present) -> Vec<u32> {
        let (leaving, coming) = (self.live.backends_beyond(next), next.backends_beyond(&self.live));
        leaving.into_iter().chain(coming).map(|(id, _)| id).collect()
    }

    /// The maps hold `next` now. `read` has the counters of the touched ids, from just before.
    pub fn changed(&mut self, next: &Present, read: &ById<C>) {
        let counted = |id| read.get(&id).copied().unwrap_or_default();
        for (id, key) in self.live.backends_beyond(next) {
            let base = self.base.remove(&id).unwrap_or_default();
            let total = self.gone.entry(key).or_default();
            *total = total.plus(counted(id).minus(base));
        }
        for (id, _) in next.backends_beyond(&self.live) {
            self.base.insert(id, counted(id));
        }
        self.gone.retain(|key, _| next.service(key).is_some());
        self.live = next.clone();
    }

    fn backends(&self) -> impl Iterator<Item = (u32, &ServiceKey)> {
        self.live.services().flat_map(|(key, service)| service.backends.iter().map(move |backend| (backend.id, key)))
    }

    /// All ids in use.
    pub fn ids(&self) -> Vec<u32> {
        self.backends().map(|(id, _)| id).collect()
    }

    /// What the backend with an id counted.
    pub fn backend(&self, id: u32, read: &ById<C>) -> C {
        let base = self.base.get(&id).copied().unwrap_or_default();
        read.get(&id).copied().unwrap_or_default().minus(base)
    }

    /// What each service counted, gone backends included.
    pub fn services(&self, read: &ById<C>) -> HashMap<ServiceKey, C> {
        let mut totals = self.gone.clone();
        for (id, key) in self.backends() {
            let total = totals.entry(*key).or_default();
            *total = total.plus(self.backend(id, read));
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{NextHop, check},
        plan::{MapSizes, Secrets, Seen, diff, wanted},
    };

    fn count(packets: u64) -> Counter {
        Counter { packets, bytes: packets * 100 }
    }

    /// What the maps hold after `before` when the services 192.0.2.N have the backends 10.0.0.X, for each (N, all X).
    fn next(before: Option<&Present>, services: &[(u8, &[u8])]) -> Present {
        let mut text = String::from("[node]\ninterface = \"eth0\"\n[node.limits]\nring_slots_max = 20000\n");
        for (n, backends) in services {
            text += &format!("[[service]]\nname = \"s{n}\"\nvip = \"192.0.2.{n}\"\nport = 80\nforward = \"ipip\"\n");
            text += "algo_config = { ring_size = 251 }\n";
            backends.iter().for_each(|x| text += &format!("[[service.backends]]\naddress = \"10.0.0.{x}\"\n"));
        }
        let config = check("f", &text).config.unwrap();
        let hop = NextHop { ifindex: 1, mtu: 1500, src_mac: [2; 6], dst_mac: [2; 6] };
        let mut wanted = wanted(&config, &|_, _| Some(true), &|_| Some(hop));
        // Without windows, what is no longer wanted leaves at once.
        wanted.services.iter_mut().for_each(|service| service.policy.windows = false);
        let secrets = Secrets { hash_key: [1; lb_core::abi::node::HASH_KEY_WORDS], ring_seed: 1 };
        let empty = Present::empty(MapSizes::of(&config.node.limits), secrets, 250);
        diff(before.unwrap_or(&empty), &wanted, 1, Seen::rings(0, &|_| None)).unwrap().next
    }

    fn id(present: &Present, service: u8, backend: u8) -> u32 {
        let (key, _) =
            present.services().find(|(key, _)| key.vip == std::net::Ipv4Addr::new(192, 0, 2, service)).unwrap();
        present.backend(key, [10, 0, 0, backend].into(), 80).unwrap().id
    }

    #[test]
    fn totals_do_not_fall_and_ids_start_at_zero() {
        let one = next(None, &[(1, &[1, 2]), (2, &[9])]);
        let (key, _) = one.services().next().unwrap();
        let (a, b) = (id(&one, 1, 1), id(&one, 1, 2));
        let mut tally = Tally::new(&one);
        let read = ById::from([(a, count(5)), (b, count(7))]);
        assert_eq!(tally.services(&read)[key], count(12));
        // Backend 2 goes, with 9 counted in the end; 3 comes, whose id had counted 100 for somebody else.
        let two = next(Some(&one), &[(1, &[1, 3]), (2, &[9])]);
        let c = id(&two, 1, 3);
        let mut touched = tally.touched(&two);
        touched.sort_unstable();
        assert_eq!(touched, [b, c], "and nothing of what stays");
        tally.changed(&two, &ById::from([(b, count(9)), (c, count(100))]));
        assert_eq!(tally.ids(), [a, c, id(&two, 2, 9)]);
        let read = ById::from([(a, count(5)), (c, count(101))]);
        assert_eq!(tally.backend(c, &read), count(1));
        assert_eq!(tally.services(&read)[key], count(15));
        // The maps cleared the counter when the id was given out.
        assert_eq!(tally.backend(c, &ById::from([(c, count(4))])), count(4));
        // A service that goes takes its total along.
        let three = next(Some(&two), &[(2, &[9])]);
        tally.changed(&three, &ById::from([(a, count(5)), (c, count(101))]));
        assert!(!tally.services(&ById::new()).contains_key(key));
    }

    #[test]
    fn flows_are_tallied_alike() {
        let totals = |syns, fins, opened, closed| FlowTotals { syns, fins, opened, closed };
        let one = next(None, &[(1, &[1, 2])]);
        let (key, _) = one.services().next().unwrap();
        let (a, b) = (id(&one, 1, 1), id(&one, 1, 2));
        let mut tally = Tally::new(&one);
        let two = next(Some(&one), &[(1, &[1, 3])]);
        let c = id(&two, 1, 3);
        tally.changed(&two, &ById::from([(b, totals(9, 8, 7, 6)), (c, totals(100, 50, 0, 0))]));
        let read = ById::from([(a, totals(1, 1, 1, 1)), (c, totals(103, 51, 2, 1))]);
        assert_eq!(tally.backend(c, &read), totals(3, 1, 2, 1));
        assert_eq!(tally.services(&read)[key], totals(13, 10, 10, 8));
    }
}
