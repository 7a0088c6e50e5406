//! What a node says of itself to the store: which revision it applied or refused, and that it lives.
//!
//! Owns: when a report is due. Invariant: a report is at most [`BEAT`] old while the store takes reports; a change of what is
//! said is reported at once, an order to drain with the next beat.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::View;
use crate::{
    store::{
        Revision, Store,
        node::{NodeDrain, NodeReport, Outcome},
    },
    telemetry::metrics::Metrics,
};

/// Time between reports that say nothing new.
pub const BEAT: Duration = Duration::from_secs(3);
/// For how long a report counts.
pub const LEASE_MS: u64 = 10_000;
/// Longest time for one.
const PATIENCE: Duration = Duration::from_secs(3);

/// How it stands with the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The newest revision that was read, and why it was refused, if it was.
    pub read: Option<(Revision, Option<String>)>,
    /// The newest revision that the maps hold.
    pub applied: Option<Revision>,
    /// VIPs that it serves.
    pub addresses: Vec<IpAddr>,
    /// Whether it forwards.
    pub ready: bool,
    /// Where others reach its metrics.
    pub metrics: Option<SocketAddr>,
    /// Drains that are not over.
    pub drains: Vec<NodeDrain>,
}

/// Where others reach a listener on `listen`: nowhere if it is of this machine alone, and unknown if it is on all addresses.
pub fn reached_at(listen: SocketAddr) -> Option<SocketAddr> {
    Some(listen).filter(|at| !at.ip().is_loopback() && !at.ip().is_unspecified())
}

/// The report of a node that stands like this.
pub fn report(node: &str, standing: &Standing, draining: bool) -> NodeReport {
    let outcome = match standing.read.as_ref().and_then(|(_, refused)| refused.clone()) {
        Some(why) => Outcome::Refused(why),
        None => Outcome::Applied,
    };
    NodeReport {
        node: node.to_owned(),
        lease_ms: LEASE_MS,
        revision: standing.read.as_ref().map(|(revision, _)| *revision),
        outcome,
        applied: standing.applied,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        addresses: standing.addresses.clone(),
        ready: standing.ready,
        draining,
        metrics: standing.metrics,
        drains: standing.drains.clone(),
    }
}

/// Reports until its source ends.
pub async fn run(
    store: Arc<dyn Store>,
    node: String,
    mut standing: watch::Receiver<Standing>,
    view: watch::Receiver<View>,
    metrics: Arc<Metrics>,
) {
    let (mut failed, mut draining) = (false, false);
    // An agent that has not published yet has nothing to say, and what the one before it said still holds for the node.
    if standing.changed().await.is_err() {
        return;
    }
    loop {
        let mut now = standing.borrow_and_update().clone();
        // A node without a revision forwards for nobody.
        now.ready &= now.applied.is_some();
        let started = Instant::now();
        let tell = async {
            // While the store does not say, it is as it was.
            let drained = store.is_drained(&node).await?;
            if std::mem::replace(&mut draining, drained) != drained {
                tracing::info!(
                    "{}",
                    if drained { "the node is taken out: DNS is to leave it out" } else { "the node is taken back in" }
                );
            }
            store.report(&report(&node, &now, drained)).await
        };
        let sent = tokio::time::timeout(PATIENCE, tell).await;
        match sent {
            Ok(Ok(())) => {
                failed = false;
                metrics.store_answered(started.elapsed());
            }
            sent => {
                let up = view.borrow().up;
                if !std::mem::replace(&mut failed, true) && up {
                    let why = sent
                        .map_or_else(|_| "no answer".into(), |e| e.map_or_else(|e| e.to_string(), |()| String::new()));
                    tracing::warn!("the store takes no report: {why}");
                }
            }
        }
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(BEAT) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::object::Digest;

    #[test]
    fn only_a_listener_that_others_reach_is_reported() {
        for (listen, reached) in
            [("127.0.0.1:9650", false), ("0.0.0.0:9650", false), ("[::1]:1", false), ("[::]:1", false)]
                .into_iter()
                .chain([("10.0.0.1:9650", true), ("[2001:db8::1]:9650", true)])
        {
            let listen = listen.parse().unwrap();
            assert_eq!(reached_at(listen), reached.then_some(listen));
        }
    }

    #[test]
    fn a_refused_revision_is_reported_beside_the_one_in_force() {
        let revision = |number| Revision { number, digest: Digest::default() };
        let standing = Standing {
            read: Some((revision(8), Some("line 3".into()))),
            applied: Some(revision(7)),
            addresses: vec![[192, 0, 2, 1].into()],
            ready: true,
            metrics: Some(([192, 0, 2, 7], 9650).into()),
            drains: Vec::new(),
        };
        let said = report("n1", &standing, true);
        assert!(said.draining);
        assert_eq!((said.revision, said.applied), (Some(revision(8)), Some(revision(7))));
        assert_eq!(said.outcome, Outcome::Refused("line 3".into()));
        assert_eq!(said.metrics, standing.metrics);
        let said = report("n1", &Standing { read: Some((revision(8), None)), ..standing }, false);
        assert_eq!((said.outcome, said.draining), (Outcome::Applied, false));
    }
}
