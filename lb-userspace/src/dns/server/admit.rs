//! Who may have one more TCP connection.
//!
//! Owns: the counts. Invariants: never more than the limit in all, and never more than a share of it for one address, so that
//! one client cannot lock the others out; a dropped [`Place`] is free again.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// One address may have this part of all connections.
const SHARE: usize = 4;

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// The limit and the counts.
#[derive(Clone, Debug)]
pub struct Admission {
    max: usize,
    counts: Arc<Mutex<Counts>>,
}

/// The right to one connection.
#[derive(Debug)]
pub struct Place {
    client: IpAddr,
    admission: Admission,
}

impl Admission {
    /// A limit of `max` connections.
    pub fn new(max: usize) -> Self {
        Self { max, counts: Arc::default() }
    }

    /// A place for `client`, if there is one.
    pub fn enter(&self, client: IpAddr) -> Option<Place> {
        let client = client.to_canonical();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.by_address.get(&client).copied().unwrap_or(0);
        if counts.all >= self.max || own >= (self.max / SHARE).max(1) {
            return None;
        }
        counts.all += 1;
        counts.by_address.insert(client, own + 1);
        Some(Place { client, admission: self.clone() })
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).all
    }

    /// Whether more than half of the places are taken.
    pub fn is_crowded(&self) -> bool {
        self.open() * 2 > self.max
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.admission.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        if let Some(own) = counts.by_address.get_mut(&self.client) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                counts.by_address.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_a_share_and_all_have_a_limit() {
        let admission = Admission::new(8);
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        let mut places: Vec<_> = (0..2).map(|_| admission.enter(address(1)).unwrap()).collect();
        assert!(admission.enter(address(1)).is_none(), "a quarter is one address's share");
        assert!(!admission.is_crowded());
        places
            .extend((2..=4).flat_map(|n| [admission.enter(address(n)).unwrap(), admission.enter(address(n)).unwrap()]));
        assert!(admission.enter(address(5)).is_none() && admission.is_crowded());
        places.clear();
        assert_eq!(admission.open(), 0);
        assert!(admission.counts.lock().unwrap().by_address.is_empty());
        assert!(admission.enter(address(1)).is_some());
    }
}
