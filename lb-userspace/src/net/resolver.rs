//! The loop that keeps the next hops of all wanted addresses true, and their neighbours fresh.
//!
//! A thin shell: what messages mean is in [`super::events`], what follows from them in [`super::next_hop`]. Owns a netlink
//! connection, the timers and the last table. Invariants: bursts of notifications lead to one round of look-ups
//! ([`DEBOUNCE`] after the first); lost notifications, a lost connection and [`RESYNC`] lead to a full one; look-ups and
//! probes in flight are bounded; the table is published only when it differs.
//!
//! The kernel confirms neighbours by its own traffic, and XDP traffic is not that: so each neighbour in use is asked for
//! (`NTF_USE`) while it is unknown, failed or stale. Needs CAP_NET_ADMIN for this, and for nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    neighbour::{NeighbourFlags, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use rtnetlink::{Handle, MulticastGroup};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{
    events::{self, Effect},
    netlink::{Connection, Error, Notice, errno, first},
    next_hop::{Cause, Facts, Link, Neighbour, Resolution, Route},
};

/// Where each wanted address goes.
pub type Table = BTreeMap<IpAddr, Resolution>;

/// Time from the first notification of a burst to the look-ups.
pub const DEBOUNCE: Duration = Duration::from_millis(20);
/// Time between full rounds, give or take a tenth.
pub const RESYNC: Duration = Duration::from_secs(30);
/// Time between two looks at which neighbours want to be asked for.
const PROBE_TICK: Duration = Duration::from_secs(1);
/// Time between two questions for a neighbour that is unknown or failed.
const PROBE_UNKNOWN: Duration = Duration::from_secs(1);
/// Time between two questions for a neighbour that is stale.
const PROBE_STALE: Duration = Duration::from_secs(5);
/// Questions at each look, at most; the others follow at the next.
const PROBES_MAX: usize = 1024;
/// Requests in flight.
const REQUESTS_MAX: usize = 64;
/// Pause before a lost connection is opened again.
const RECONNECT: Duration = Duration::from_secs(1);

/// Handle of the loop; dropping it ends the loop.
#[derive(Debug)]
pub struct Resolver {
    wanted: watch::Sender<BTreeSet<IpAddr>>,
    table: watch::Receiver<Arc<Table>>,
    task: JoinHandle<()>,
}

impl Resolver {
    /// Starts the loop on the current tokio runtime, without addresses, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn start() -> Result<Self, Error> {
        let connection = open()?;
        let (wanted, changes) = watch::channel(BTreeSet::new());
        let (publish, table) = watch::channel(Arc::default());
        let task = tokio::spawn(
            Loop {
                facts: Facts::default(),
                wanted: BTreeSet::new(),
                changes,
                publish,
                dirty: BTreeSet::new(),
                resync: true,
                asked: HashMap::new(),
            }
            .run(connection),
        );
        Ok(Self { wanted, table, task })
    }

    /// Replaces the set of addresses; returns at once. New ones appear in the table within milliseconds, at first perhaps
    /// as [`Cause::NeighbourIncomplete`].
    pub fn set_destinations(&self, destinations: BTreeSet<IpAddr>) {
        self.wanted.send_if_modified(|wanted| {
            let differs = *wanted != destinations;
            if differs {
                *wanted = destinations;
            }
            differs
        });
    }

    /// The table and its changes. Addresses that were just set may be missing from it for a moment: treat them as
    /// [`Cause::Pending`].
    pub fn table(&self) -> watch::Receiver<Arc<Table>> {
        self.table.clone()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Links and routes as they are now, once, without a loop; neighbours are not read. For those who only look: needs no
/// capability.
///
/// # Errors
/// [`Error::Socket`], or what the kernel said.
pub async fn look(destinations: BTreeSet<IpAddr>) -> Result<Facts, Error> {
    let connection = Connection::open(&[])?;
    let handle = &connection.handle;
    let mut facts = Facts { links: read_links(handle).await?, ..Facts::default() };
    let mut answers = look_up_all(handle, destinations);
    while let Some((destination, route)) = answers.next().await {
        facts.routes.insert(destination, route?);
    }
    drop(answers);
    Ok(facts)
}

fn open() -> Result<Connection, Error> {
    Connection::open(&[
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ])
}

/// How long after the last question a neighbour in this state is asked for again; `None`: not at all.
fn probe_after(neighbour: Option<Neighbour>) -> Option<Duration> {
    match neighbour {
        Some(Neighbour::Fresh(_) | Neighbour::Confirming(_)) => None,
        Some(Neighbour::Stale(_)) => Some(PROBE_STALE),
        Some(Neighbour::Incomplete | Neighbour::Failed) | None => Some(PROBE_UNKNOWN),
    }
}

/// [`RESYNC`] off by up to a tenth either way, so that nodes of a fleet do not work in step; `random` is uniform.
fn resync_delay(random: u64) -> Duration {
    RESYNC.mul_f64(0.9 + 0.2 * (random as f64 / u64::MAX as f64))
}

struct Loop {
    facts: Facts,
    wanted: BTreeSet<IpAddr>,
    changes: watch::Receiver<BTreeSet<IpAddr>>,
    publish: watch::Sender<Arc<Table>>,
    /// Destinations whose route must be asked for again.
    dirty: BTreeSet<IpAddr>,
    /// Links, neighbours and routes must be read anew.
    resync: bool,
    /// When each neighbour in use was last asked for.
    asked: HashMap<(u32, IpAddr), Instant>,
}

impl Loop {
    /// Runs until the handle is gone, over as many connections as it takes.
    async fn run(mut self, connection: Connection) {
        let mut connection = Some(connection);
        loop {
            let ended = match connection.take().map_or_else(open, Ok) {
                Ok(connection) => self.follow(connection).await,
                Err(error) => Err(error),
            };
            match ended {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "next hops: netlink connection lost, opening another"),
            }
            self.resync = true;
            sleep(RECONNECT).await;
        }
    }

    /// Follows one connection; `Ok` when the handle is gone, else why the connection is of no more use.
    async fn follow(&mut self, mut connection: Connection) -> Result<(), Error> {
        let mut round_at = Some(Instant::now());
        let mut resync_at = Instant::now() + resync_delay(getrandom::u64().unwrap_or(u64::MAX / 2));
        let mut probe_at = Instant::now() + PROBE_TICK;
        loop {
            tokio::select! {
                changed = self.changes.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.take_wanted();
                    round_at = Some(Instant::now());
                }
                notice = connection.notice() => {
                    match notice {
                        Some(Notice::Message(message)) => match events::apply(&mut self.facts, &message) {
                            Effect::Nothing => continue,
                            Effect::Decisions => {}
                            Effect::Routes(prefix) => self.dirty.extend(within(&self.wanted, prefix)),
                            Effect::AllRoutes => self.dirty.clone_from(&self.wanted),
                        },
                        Some(Notice::Overrun) => self.resync = true,
                        None => return Err(Error::Ended),
                    }
                    round_at.get_or_insert_with(|| Instant::now() + DEBOUNCE);
                }
                () = sleep_until(round_at.unwrap_or_else(Instant::now)), if round_at.is_some() => {
                    round_at = None;
                    self.round(&connection.handle).await?;
                    self.probe(&connection.handle).await;
                }
                () = sleep_until(resync_at) => {
                    resync_at = Instant::now() + resync_delay(getrandom::u64().unwrap_or(u64::MAX / 2));
                    self.resync = true;
                    round_at = Some(Instant::now());
                }
                () = sleep_until(probe_at) => {
                    probe_at = Instant::now() + PROBE_TICK;
                    self.probe(&connection.handle).await;
                }
            }
        }
    }

    fn take_wanted(&mut self) {
        let wanted = self.changes.borrow_and_update().clone();
        self.facts.routes.retain(|destination, _| wanted.contains(destination));
        self.dirty.retain(|destination| wanted.contains(destination));
        self.dirty.extend(wanted.difference(&self.wanted));
        self.wanted = wanted;
    }

    /// Looks up what must be looked up, decides, publishes.
    async fn round(&mut self, handle: &Handle) -> Result<(), Error> {
        if self.resync {
            self.facts.links = read_links(handle).await?;
            self.facts.neighbours = read_neighbours(handle).await?;
            self.dirty.clone_from(&self.wanted);
            self.resync = false;
        }
        let dirty = std::mem::take(&mut self.dirty);
        let mut answers = look_up_all(handle, dirty);
        while let Some((destination, route)) = answers.next().await {
            self.facts.routes.insert(destination, route?);
        }
        self.publish.send_if_modified(|table| {
            let decide = |address: &IpAddr| (*address, self.facts.resolve(*address, table.get(address)));
            let next: Table = self.wanted.iter().map(decide).collect();
            let differs = **table != next;
            if differs {
                *table = Arc::new(next);
            }
            differs
        });
        Ok(())
    }

    /// Asks for the neighbours in use that want to be asked for.
    async fn probe(&mut self, handle: &Handle) {
        let now = Instant::now();
        let used: BTreeSet<(u32, IpAddr)> =
            self.wanted.iter().filter_map(|destination| self.facts.neighbour_of(*destination)).collect();
        self.asked.retain(|key, _| used.contains(key));
        let due: Vec<(u32, IpAddr)> = used
            .into_iter()
            .filter(|key| {
                let Some(after) = probe_after(self.facts.neighbours.get(key).copied()) else { return false };
                self.asked.get(key).is_none_or(|asked| now.duration_since(*asked) >= after)
            })
            .take(PROBES_MAX)
            .collect();
        self.asked.extend(due.iter().map(|key| (*key, now)));
        stream::iter(due)
            .for_each_concurrent(REQUESTS_MAX, |(ifindex, neighbour)| async move {
                if let Err(error) = ask_for(handle, ifindex, neighbour).await {
                    tracing::debug!(%neighbour, ifindex, %error, "cannot ask for a neighbour");
                }
            })
            .await;
    }
}

/// Those of `wanted` that lie in `prefix`.
fn within(wanted: &BTreeSet<IpAddr>, prefix: IpNet) -> impl Iterator<Item = IpAddr> {
    wanted.range(prefix.network()..=prefix.broadcast()).copied()
}

async fn read_links(handle: &Handle) -> Result<BTreeMap<u32, Link>, Error> {
    handle
        .link()
        .get()
        .execute()
        .try_filter_map(|message| async move { Ok(events::link(&message)) })
        .try_collect()
        .await
        .map_err(|error| Error::from_rtnetlink("list the interfaces", &error))
}

async fn read_neighbours(handle: &Handle) -> Result<BTreeMap<(u32, IpAddr), Neighbour>, Error> {
    handle
        .neighbours()
        .get()
        .execute()
        .try_filter_map(|message| async move { Ok(events::neighbour(&message)) })
        .try_collect()
        .await
        .map_err(|error| Error::from_rtnetlink("list the neighbours", &error))
}

/// Asks the kernel for the routes to all of them, a bounded number at a time.
fn look_up_all(
    handle: &Handle,
    destinations: BTreeSet<IpAddr>,
) -> impl Stream<Item = (IpAddr, Result<Route, Error>)> + Unpin {
    let ask = move |destination| async move { (destination, look_up(handle, destination).await) };
    Box::pin(stream::iter(destinations).map(ask).buffer_unordered(REQUESTS_MAX))
}

/// Asks the kernel for the route to one address.
async fn look_up(handle: &Handle, destination: IpAddr) -> Result<Route, Error> {
    let mut request = RouteMessage::default();
    (request.header.address_family, request.header.destination_prefix_length) = match destination {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    request.header.kind = RouteType::Unspec;
    request.attributes.push(RouteAttribute::Destination(RouteAddress::from(destination)));
    match first(handle.route().get(request).execute()).await {
        Some(Ok(message)) => Ok(events::route(&message)),
        Some(Err(error)) => match errno(&error) {
            Some(errno) => Ok(events::refused(errno)),
            None => Err(Error::from_rtnetlink(format!("look up the route to {destination}"), &error)),
        },
        None => Ok(Route::Not(Cause::NoRoute)),
    }
}

/// Makes the kernel resolve or confirm a neighbour as if a packet were sent to it. Never for permanent entries: it would
/// take that property from them.
async fn ask_for(handle: &Handle, ifindex: u32, neighbour: IpAddr) -> Result<(), rtnetlink::Error> {
    handle
        .neighbours()
        .add(ifindex, neighbour)
        .state(NeighbourState::None)
        .flags(NeighbourFlags::Use)
        .replace()
        .execute()
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_select_their_destinations() {
        let wanted: BTreeSet<IpAddr> = ["10.0.0.1", "10.0.0.255", "10.0.1.0", "fd00::1", "fd00:0:0:1::"]
            .iter()
            .map(|a| a.parse().expect("ip"))
            .collect();
        for (prefix, want) in [
            ("10.0.0.0/24", 2),
            ("10.0.0.0/16", 3),
            ("0.0.0.0/0", 3),
            ("::/0", 2),
            ("fd00::/64", 1),
            ("10.0.1.0/32", 1),
            ("192.0.2.0/24", 0),
        ] {
            assert_eq!(within(&wanted, prefix.parse().expect("prefix")).count(), want, "{prefix}");
        }
    }

    #[test]
    fn resyncs_spread_by_a_tenth() {
        assert_eq!(resync_delay(0), Duration::from_secs(27));
        assert_eq!(resync_delay(u64::MAX), Duration::from_secs(33));
    }

    #[test]
    fn only_entries_that_need_it_are_asked_for() {
        let mac = [2, 0, 0, 0, 0, 1];
        assert_eq!(probe_after(None), Some(PROBE_UNKNOWN));
        assert_eq!(probe_after(Some(Neighbour::Failed)), Some(PROBE_UNKNOWN));
        assert_eq!(probe_after(Some(Neighbour::Stale(mac))), Some(PROBE_STALE));
        assert_eq!(probe_after(Some(Neighbour::Confirming(mac))), None);
        assert_eq!(probe_after(Some(Neighbour::Fresh(mac))), None, "it might be permanent");
    }
}
