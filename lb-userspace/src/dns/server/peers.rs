//! The tasks that tell one peer each: NOTIFY to a secondary, updates to another server.
//!
//! Invariant: a task ends only with the server; what fails is tried again with pauses, and logged once for each serial
//! number and when it gets well.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use domain::{base::iana::Rcode, tsig::Key};
use tokio::sync::watch;

use super::{unix_s, until};
use crate::{
    dns::{
        history::Serving,
        notify,
        retry::Retry,
        update::{self, Told},
        zone::Zone,
    },
    model::dns::UpdateTarget,
    telemetry::dns::DnsMetrics,
};

/// How one attempt ended.
enum Ended {
    Done(&'static str),
    /// Somebody else was faster: again after the pause.
    Again,
    Failed(String),
}

/// A peer, and the way in which it is told.
pub(super) enum Peer {
    /// A secondary.
    Notify(SocketAddr, Option<Arc<Key>>),
    /// A server that takes updates.
    Update(UpdateTarget, Arc<Key>),
}

impl Peer {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Notify(..) => "notify",
            Self::Update(..) => "update",
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Notify(address, _) => address.to_string(),
            Self::Update(target, _) => target.server.to_string(),
        }
    }

    async fn tell(&self, zone: &Zone) -> Ended {
        match self {
            Self::Notify(address, key) => match notify::send(zone, *address, key.as_ref(), unix_s()).await {
                Ok(Rcode::NOERROR) => Ended::Done("confirmed"),
                Ok(rcode) => Ended::Failed(format!("the secondary answers {rcode}")),
                Err(error) => Ended::Failed(error.to_string()),
            },
            Self::Update(target, key) => match update::tell(zone, target.server, &target.zone, key, unix_s()).await {
                Ok(Told::Updated) => Ended::Done("updated"),
                Ok(Told::Had) => Ended::Done("had it"),
                Ok(Told::Raced) => Ended::Again,
                Ok(Told::Refused(rcode)) => Ended::Failed(format!("the server answers {rcode}")),
                Err(error) => Ended::Failed(error.to_string()),
            },
        }
    }
}

/// Tells one peer about each serial number until it confirms. Ends with the server.
pub(super) async fn follow(peer: Peer, mut serving: watch::Receiver<Serving>, metrics: Arc<DnsMetrics>) {
    let (kind, name) = (peer.kind(), peer.name());
    let start = Instant::now();
    let mut retry = Retry::default();
    let mut ill = false;
    loop {
        let zone = serving.borrow_and_update().current().cloned();
        if let Some(zone) = &zone {
            retry.want(zone.serial(), start.elapsed());
        }
        metrics.behind(kind, &name, !retry.is_settled());
        if let (Some(zone), Some(serial)) = (&zone, retry.take(start.elapsed())) {
            match peer.tell(zone).await {
                Ended::Done(outcome) => {
                    retry.known(serial);
                    metrics.told(kind, &name, outcome);
                    tracing::info!(peer = name, serial, "{kind}: {outcome}");
                    ill = false;
                }
                Ended::Again => metrics.told(kind, &name, "raced"),
                Ended::Failed(error) => {
                    metrics.told(kind, &name, "failed");
                    if ill {
                        tracing::debug!(peer = name, serial, tries = retry.tries(), "{kind}: {error}");
                    } else {
                        tracing::warn!(peer = name, serial, "{kind}: {error}; trying again");
                    }
                    ill = true;
                }
            }
            continue;
        }
        let sleep = async {
            match until(retry.due(), start) {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = serving.changed() => if changed.is_err() { return },
            () = sleep => {}
        }
    }
}
