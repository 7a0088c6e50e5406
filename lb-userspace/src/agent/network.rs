//! What the event loop asks of the network, and the thread of netlink behind it.
//!
//! Owns: the tasks that carry requests to `net`. Refuses to know: why an address is wanted. Invariant: nothing here makes the
//! event loop wait.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle};

use crate::net::{self, Announcer, Interface, Resolver, Table, interface::Links};

/// How often interfaces are looked at, for status and metrics.
const LINKS_INTERVAL: Duration = Duration::from_secs(2);
/// Pause before VIPs that could not be set are tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What the event loop asks of the network.
pub trait Network: Send {
    /// Replaces the addresses whose next hops are wanted.
    fn set_destinations(&mut self, destinations: BTreeSet<IpAddr>);
    /// Replaces the addresses that the node answers for.
    fn set_vips(&mut self, vips: BTreeSet<IpAddr>);
}

/// What the network tells the event loop.
#[derive(Clone, Debug)]
pub struct Views {
    /// Next hops.
    pub table: watch::Receiver<Arc<Table>>,
    /// Interfaces that carry the program.
    pub interfaces: watch::Receiver<Vec<Interface>>,
}

/// The machine's network.
#[derive(Debug)]
pub struct Live {
    resolver: Resolver,
    vips: Option<watch::Sender<BTreeSet<IpAddr>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Live {
    /// Starts resolving and looking at `interfaces`; with `announcer`, keeps the VIPs on its interface.
    ///
    /// # Errors
    /// Netlink is not to be had.
    pub async fn start(interfaces: Vec<String>, announcer: Option<Announcer>) -> Result<(Self, Views), net::Error> {
        let resolver = Resolver::start()?;
        let links = Links::open()?;
        let (send, seen) = watch::channel(look(links.all(), &interfaces).await?);
        let table = resolver.table();
        let mut tasks = vec![tokio::spawn(async move {
            loop {
                tokio::time::sleep(LINKS_INTERVAL).await;
                match look(links.all(), &interfaces).await {
                    Ok(now) => {
                        _ = send.send_if_modified(|old| {
                            *old != now && {
                                *old = now;
                                true
                            }
                        })
                    }
                    Err(error) => tracing::warn!(%error, "cannot look at the interfaces"),
                }
            }
        })];
        let vips = announcer.map(|announcer| {
            let (send, wanted) = watch::channel(BTreeSet::new());
            tasks.push(tokio::spawn(announce(announcer, wanted)));
            send
        });
        Ok((Self { resolver, vips, tasks }, Views { table, interfaces: seen }))
    }
}

impl Network for Live {
    fn set_destinations(&mut self, destinations: BTreeSet<IpAddr>) {
        self.resolver.set_destinations(destinations);
    }

    fn set_vips(&mut self, vips: BTreeSet<IpAddr>) {
        if let Some(wanted) = &self.vips {
            wanted.send_if_modified(|old| {
                *old != vips && {
                    *old = vips;
                    true
                }
            });
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The interfaces with these names, in the order of the names.
async fn look(
    all: impl Future<Output = Result<Vec<Interface>, net::Error>>,
    names: &[String],
) -> Result<Vec<Interface>, net::Error> {
    let mut all = all.await?;
    all.retain(|interface| names.contains(&interface.name));
    all.sort_by_key(|interface| names.iter().position(|name| *name == interface.name));
    Ok(all)
}

/// Keeps the VIPs as wanted; a failure is told and tried again.
async fn announce(announcer: Announcer, mut wanted: watch::Receiver<BTreeSet<IpAddr>>) {
    // The first set comes from the event loop; before it there is nothing to do.
    while wanted.changed().await.is_ok() {
        loop {
            let vips = wanted.borrow_and_update().clone();
            match announcer.set(vips).await {
                Ok(changes) => {
                    for vip in &changes.added {
                        tracing::info!(%vip, "announced");
                    }
                    for vip in &changes.removed {
                        tracing::info!(%vip, "withdrawn");
                    }
                    for (vip, why) in &changes.failed {
                        tracing::error!(%vip, %why, "cannot put the VIP on the interface; trying again");
                    }
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot announce the VIPs; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}
