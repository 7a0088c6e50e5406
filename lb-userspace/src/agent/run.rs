//! Starting and stopping: the order in which the parts of the agent come to life, and how everything is removed.
//!
//! Invariants: nothing is touched before the configuration was read and found good; whatever forwarded before goes on when
//! a start fails; privileges are given up before the first thread and the first request from outside.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, anyhow};

use super::{
    api::{
        call::Calls,
        metrics, routes,
        serve::{Listener, serve},
        socket,
    },
    event_loop::{EventLoop, Parts},
    follow::{self, Following, News, health::Observations, judged::SILENCE_MAX},
    lock::Lock,
    mode,
    network::Live,
    node::{Carrier, Node},
    overrides::{self, BackendId, Overrides},
    owner::Owner,
    privilege, reload, secret,
    shared::Shared,
    state::{self, State},
    systemd,
    view::Process,
};
use crate::{
    api,
    dataplane::{
        Dataplane,
        kernel::KernelDataplane,
        load::{Attached, How, load, undo},
        loss::Losses,
        pin::Pins,
    },
    health::Checker,
    model::{Announce, Config, Incremental, Node as NodeConfig, SERVICE_OBJECT},
    net::{self, Announcer},
    plan::{MapSizes, Secrets},
    store::{self, FileStore, Key, Text, copy::COPY_FILE, document::document, follow::Times, object::HISTORY_MAX},
    telemetry::metrics::Metrics,
};

/// Where the configuration lies unless told otherwise.
pub const CONFIG_DEFAULT: &str = "/etc/weir/weir.toml";
/// How long the first publication of a fresh data plane waits for next hops.
const FIRST_RESOLUTION: Duration = Duration::from_secs(2);
/// Time for one request to the API: an apply builds every ring.
const API_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for one scrape.
const METRICS_TIMEOUT: Duration = Duration::from_secs(15);
/// Name of the file of overrides in the state folder.
const OVERRIDES_FILE: &str = "overrides.json";
/// Name of the file of leases in the state folder.
const LEASES_FILE: &str = "leases.json";
/// Longest wait of `--unload` until the store has taken leases back.
const GIVE_BACK: Duration = Duration::from_secs(3);
/// Longest wait for what the store knows about health and history.
const FIRST_HEALTH: Duration = Duration::from_secs(2);
/// How often it is said that the store is waited for.
const WAITING_TOLD: Duration = Duration::from_secs(10);

/// What the agent is told on the command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
}

/// Why the agent does not run, where the caller must tell cases apart.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration has errors; the findings follow the sentence.
    #[error("{message}\n\n{rendered}")]
    Config {
        /// One sentence.
        message: String,
        /// The findings with source lines.
        rendered: String,
    },
    /// Anything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// Reads and checks the configuration.
fn configuration(
    store: &FileStore,
    incremental: &mut Incremental,
    host_name: &str,
) -> Result<(Config, Text), StartError> {
    let text = store.read().map_err(|e| {
        anyhow!(e).context("the agent needs a configuration: write one, or name another file with --config FILE")
    })?;
    let file_name = store.path().display().to_string();
    let input = reload::Input::Text { file_name: &file_name, text: &text.text };
    Ok((accepted(reload::check(incremental, input, host_name))?, text))
}

/// A configuration that was checked; its warnings are told.
fn accepted(checked: Result<(Config, Vec<api::Diagnostic>), reload::Refused>) -> Result<Config, StartError> {
    match checked {
        Ok((config, warnings)) => {
            warnings.iter().for_each(|w| tracing::warn!("{}", w.rendered));
            Ok(config)
        }
        Err(reload::Refused::Invalid { message, rendered, .. }) => Err(StartError::Config { message, rendered }),
        Err(reload::Refused::Fixed { message, .. }) => Err(anyhow!(message).into()),
    }
}

/// What a node starts with that gets its services from a store.
struct Begun {
    shared: Shared,
    config: Config,
    health: Observations,
    /// What the objects were before the windows that are open now, for a node without maps.
    before: Option<Config>,
}

/// Follows the store of `local`, and waits for its first state: the last good copy, or the store's answer.
async fn begin(
    local: &Config,
    adopted: bool,
    file_name: &str,
    text: &str,
    incremental: &mut Incremental,
    metrics: &Arc<Metrics>,
    own: Option<Owner>,
) -> Result<Begun, StartError> {
    let node = &local.node;
    let store = match own {
        Some(owner) => owner.serve().await?,
        None => store::open(&local.store).context("cannot use the store")?,
    };
    let copy_file = node.state_dir.join(COPY_FILE);
    let copy = follow::keep::load(&copy_file).unwrap_or_else(|error| {
        tracing::error!(%error, "the last good copy in {} cannot be used", copy_file.display());
        None
    });
    let leases_file = node.state_dir.join(LEASES_FILE);
    let options = follow::Options {
        node: node.name.clone(),
        copy_file,
        leases_file,
        times: Times::default(),
        silence_max: SILENCE_MAX,
    };
    let mut following = follow::start(Arc::clone(&store), copy, &options, Arc::clone(metrics));
    let news = first_news(&mut following, adopted).await;
    let present = document(file_name, text, &news.snapshot.objects);
    let input = reload::Input::Shared { document: &present, leases: &news.leases };
    let config = accepted(reload::check(incremental, input, &node.name))?;
    // What workers judge counts from the first publication on; what nodes observed, where nobody judges.
    let (health, _) = tokio::join!(
        tokio::time::timeout(FIRST_HEALTH, follow::health::inherited(&*store, &node.name)),
        tokio::time::timeout(FIRST_HEALTH, following.judged.changed()),
    );
    let health = health.ok().and_then(Result::ok).unwrap_or_default();
    let mut before = None;
    if !adopted {
        let kept = tokio::time::timeout(FIRST_HEALTH, store.history(HISTORY_MAX)).await;
        let history = kept.ok().and_then(Result::ok).unwrap_or_default();
        let window = |key: &Key| {
            let service = config.service(key.name()).filter(|_| key.kind() == SERVICE_OBJECT)?;
            Some(service.flows.window + service.flows.announce_for)
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let then = follow::join::before(&history, &news.snapshot.objects, &window, now.as_millis() as u64);
        if then != news.snapshot.objects {
            let past = document(file_name, text, &then);
            let input = reload::Input::Shared { document: &past, leases: &news.leases };
            // What was valid for another node need not be for this one; then this one has no owners to take over.
            before = reload::check(&mut Incremental::default(), input, &node.name).ok().map(|(config, _)| config);
        }
    }
    let mut shared = Shared::new(following, news);
    shared.standing.metrics = node.metrics_listen.and_then(follow::report::reached_at);
    Ok(Begun { shared, config, health, before })
}

/// The first state of the store. Without one nothing is touched, except that a node without maps may begin with an empty store.
async fn first_news(following: &mut Following, adopted: bool) -> Arc<News> {
    let mut told = Instant::now();
    loop {
        if let Some(news) = following.news.borrow_and_update().clone() {
            return news;
        }
        if following.view.borrow().vacant && !adopted {
            return Arc::new(News::nothing());
        }
        if told.elapsed() > WAITING_TOLD {
            told = Instant::now();
            let view = following.view.borrow();
            let why = view.why.as_deref().unwrap_or("it is empty, and this node forwards already");
            tracing::error!("waiting for the store {}, and nothing is touched meanwhile: {why}", view.store);
            systemd::waiting(&format!("waiting for the store: {why}"), WAITING_TOLD * 6);
        }
        // Both end with their task alone, and then there is no more news: the pause keeps this from turning in place.
        let changed = async {
            tokio::select! {
                news = following.news.changed() => news,
                view = following.view.changed() => view,
            }
        };
        if let Ok(Err(_)) = tokio::time::timeout(WAITING_TOLD, changed).await {
            tokio::time::sleep(WAITING_TOLD).await;
        }
    }
}

/// Health as observed before, by the backends that it speaks for.
fn known_health(config: &Config, health: &Observations) -> HashMap<BackendId, bool> {
    let mut known = HashMap::new();
    for service in &config.services {
        for backend in &service.backends {
            let Some(target) = state::target(service, backend) else { continue };
            if let Some(up) = health.0.get(&follow::health::name(target.address, &target.check)) {
                known.insert(BackendId::new(service.key, backend), *up);
            }
        }
    }
    known
}

/// Name of this machine; empty where the system knows none.
pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

fn runtime_dir(node: &NodeConfig) -> &Path {
    node.api_socket.parent().unwrap_or(Path::new("/"))
}

/// A data plane with what belongs to it.
struct Opened {
    data: KernelDataplane,
    carriers: Vec<Carrier>,
    losses: Option<Losses>,
}

async fn open(node: &NodeConfig) -> anyhow::Result<Opened> {
    let seed_file = node.seed_file.as_deref();
    let resolved = secret::resolve(seed_file, &node.state_dir)?;
    let pins = Pins::new(&node.pin_dir);
    let sizes = MapSizes::of(&node.limits);
    let fresh = !pins.hold_maps();
    let attached = load(&pins, &node.interfaces, node.xdp_mode, &sizes)?;
    if let Err(refused) = confirm_modes(node, &attached).await {
        undo(&pins, &attached, fresh)?;
        return Err(refused);
    }
    let data = KernelDataplane::open(&pins, sizes, resolved.0)?;
    let source = if data.adopted() {
        let held = data.present().node();
        let adopted = Secrets { hash_key: held.hash_key, ring_seed: held.ring_seed };
        secret::confirm(resolved, adopted, seed_file, &node.pin_dir)?
    } else {
        resolved.1
    };
    for a in &attached {
        match a.how {
            How::Native => tracing::info!(interface = %a.name, program = a.program_id, "attached, native XDP"),
            How::Generic => {
                tracing::warn!(interface = %a.name, program = a.program_id, "attached in generic mode, which is slow");
            }
            How::Kept => tracing::info!(interface = %a.name, program = a.program_id, "taken over"),
            How::Upgraded => {
                tracing::info!(interface = %a.name, program = a.program_id, "taken over, program upgraded")
            }
        }
    }
    let losses =
        Losses::attach(&pins).inspect_err(|why| tracing::warn!("losses after the verdict are not counted: {why}")).ok();
    let revision = data.present().revision();
    let what = if data.adopted() { "taken over" } else { "loaded" };
    tracing::info!(revision, pin_dir = %node.pin_dir.display(), seed = source.word(), "data plane {what}");
    // The links are pinned: dropping the handles detaches nothing.
    Ok(Opened { data, carriers: attached.iter().map(Carrier::from).collect(), losses })
}

/// Reads back in which modes the programs run, and refuses one that is not allowed.
async fn confirm_modes(node: &NodeConfig, attached: &[Attached]) -> anyhow::Result<()> {
    let modes = mode::read(attached).await.context("cannot read back the mode in which XDP runs")?;
    for (a, found) in attached.iter().zip(modes) {
        mode::judge(&a.name, node.xdp_mode, a.how, found)?;
    }
    Ok(())
}

/// Takes the VIPs that weir announced away from every interface with one of these indexes but `announcing`: an earlier
/// configuration had them there. Addresses without weir's mark stay. A failure is told and costs nothing else.
async fn withdraw_elsewhere(carriers: &BTreeSet<u32>, announcing: Option<&str>) {
    let interfaces = match net::interface::Links::open() {
        Ok(links) => links.all().await,
        Err(error) => Err(error),
    };
    let interfaces = interfaces.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot look for VIPs that an earlier configuration announced");
        Vec::new()
    });
    let former = |i: &net::Interface| carriers.contains(&i.ifindex) && i.mac.is_some();
    for interface in interfaces.iter().filter(|i| former(i) && Some(i.name.as_str()) != announcing) {
        let withdrawn = match Announcer::start(&interface.name, BTreeSet::new()).await {
            Ok(announcer) => announcer.withdraw().await,
            Err(error) => Err(error),
        };
        match withdrawn {
            Ok(changes) => changes.removed.iter().for_each(|vip| {
                tracing::info!(%vip, interface = %interface.name, "withdrawn, as it is not announced there any more");
            }),
            Err(error) => tracing::warn!(%error, interface = %interface.name, "cannot withdraw VIPs"),
        }
    }
}

fn saved_overrides(file: &Path, config: &Config) -> Overrides {
    let mut saved = overrides::load(file).unwrap_or_else(|error| {
        tracing::error!(%error, "cannot read {}: overrides of earlier runs are not in force", file.display());
        Overrides::default()
    });
    for d in saved.reconcile(config) {
        tracing::info!(of = %d, "override dropped: {}", d.why);
    }
    if !saved.is_empty() {
        tracing::warn!("{} backends are overridden at run time, see `weir backend list`", saved.len());
    }
    saved
}

fn vips_held(data: &impl Dataplane) -> BTreeSet<IpAddr> {
    data.present().services().map(|(key, _)| key.vip).collect()
}

/// Runs the agent until a signal stops it. Needs a current-thread tokio runtime that has started no other thread yet.
///
/// # Errors
/// [`StartError`]; whatever forwarded before goes on.
pub async fn run(options: Options) -> Result<(), StartError> {
    let started = Instant::now();
    let host_name = host_name();
    let store = FileStore::new(&options.config);
    let mut incremental = Incremental::default();
    let (config, text) = configuration(&store, &mut incremental, &host_name)?;
    let node_config = config.node.clone();
    let _lock = Lock::acquire(runtime_dir(&node_config), &node_config.pin_dir).map_err(anyhow::Error::from)?;
    std::fs::create_dir_all(&node_config.state_dir)
        .with_context(|| format!("cannot make {} (state_dir)", node_config.state_dir.display()))?;

    let before = Pins::new(&node_config.pin_dir).interfaces().map_err(anyhow::Error::from)?;
    let Opened { data, carriers, losses } = open(&node_config).await?;
    let adopted = data.adopted();

    // Everything that needs a capability which is not kept opens here.
    let announcer = match (node_config.announce, node_config.interfaces.first()) {
        (Announce::Address, Some(first)) => {
            let started = Announcer::start(first, vips_held(&data)).await;
            Some(started.with_context(|| format!("cannot announce VIPs on {first}"))?)
        }
        _ => None,
    };
    let indexes = before.iter().map(|p| p.ifindex).chain(carriers.iter().map(|c| c.ifindex)).collect();
    let announcing = announcer.as_ref().and(node_config.interfaces.first()).map(String::as_str);
    withdraw_elsewhere(&indexes, announcing).await;
    let api = socket::listen(&node_config.api_socket, node_config.api_group.as_deref()).map_err(anyhow::Error::from)?;
    let scrapes = match node_config.metrics_listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let own = Owner::of(&config.store, node_config.api_group.as_deref())?;
    let dropped = privilege::give_up(&privilege::KEPT).map_err(anyhow::Error::from)?;
    tracing::debug!(dropped, "capabilities given up");

    let metrics = Arc::new(Metrics::new());
    let file_name = store.path().display().to_string();
    let overrides_file = node_config.state_dir.join(OVERRIDES_FILE);
    // Tasks may start threads from here on, which must not have what was given up.
    let (config, saved, shared, health, before) = if config.store.is_file() {
        let saved = saved_overrides(&overrides_file, &config);
        (config, saved, None, HashMap::new(), None)
    } else {
        let begun = begin(&config, adopted, &file_name, &text.text, &mut incremental, &metrics, own).await?;
        let health = known_health(&begun.config, &begun.health);
        (begun.config, Overrides::default(), Some(begun.shared), health, begun.before)
    };
    let inherited = |id: &BackendId| {
        data.present().inherited_up(&id.service, id.address, id.port).or_else(|| health.get(id).copied())
    };
    let state = State::new(config, saved, &inherited);

    let (network, views) =
        Live::start(node_config.interfaces.clone(), announcer).await.context("cannot follow the network")?;
    let watch = store.watch().inspect_err(|error| {
        tracing::error!(%error, "changes of the file are not noticed; `systemctl reload` and `weir config apply` work");
    });
    let (checker, events) = Checker::start(Default::default());
    let (calls, inbox) = Calls::new();
    let mut event_loop = EventLoop::new(Parts {
        node: Node::new(state, Box::new(data), carriers, losses),
        process: Process { started, adopted, config_file: file_name },
        store,
        shared,
        text,
        incremental,
        watch: watch.ok(),
        overrides_file,
        host_name,
        metrics: Arc::clone(&metrics),
        network: Box::new(network),
        views,
        checker,
        events,
        calls: inbox,
    });
    event_loop.spread();
    if !adopted {
        event_loop.first_resolution(FIRST_RESOLUTION).await;
    }
    if let Some(before) = before {
        event_loop.join(before).await;
    }
    let published = event_loop.first_publication().await.map_err(anyhow::Error::from)?;
    tracing::info!("revision {} in force: {}", published.revision, published.words());

    tokio::spawn(serve(Listener::Unix(api), routes::router(calls.clone()), API_TIMEOUT));
    if let Some(scrapes) = scrapes {
        tokio::spawn(serve(Listener::Tcp(scrapes), metrics::router(calls, metrics), METRICS_TIMEOUT));
    }
    systemd::ready(&format!("revision {} in force", published.revision));
    tracing::info!(api = %node_config.api_socket.display(), "ready");
    let signal = event_loop.run().await.context("cannot wait for signals")?;
    systemd::stopping("forwarding goes on without the agent");
    let _ = std::fs::remove_file(&node_config.api_socket);
    tracing::info!(
        "{signal}: the agent stops; forwarding stays in place, without health checks. To stop forwarding: weir agent --unload"
    );
    Ok(())
}

/// Gives leases back, so that other nodes may have the addresses at once; a failure leaves them to run out.
async fn give_back(config: &Config) {
    let _ = std::fs::remove_file(config.node.state_dir.join(LEASES_FILE));
    let given = async {
        let store = store::open(&config.store)?;
        follow::lease::give_back(&*store, &config.node.name).await
    };
    match tokio::time::timeout(GIVE_BACK, given).await {
        Ok(Ok(leases)) => tracing::info!(leases, "leases given back"),
        Ok(Err(error)) => tracing::warn!(%error, "leases are not given back, they run out by themselves"),
        Err(_) => tracing::warn!("the store does not answer: leases run out by themselves"),
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    let listener = tokio::net::TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot serve metrics on {address}; change or remove `metrics.listen`"))
}

/// Removes everything that the agent put in place: links, programs, maps, VIP addresses, socket. What is missing already is fine.
///
/// # Errors
/// [`StartError`]; what could be removed is removed.
pub async fn unload(options: Options) -> Result<(), StartError> {
    let store = FileStore::new(&options.config);
    let (config, _) = configuration(&store, &mut Incremental::default(), &host_name())?;
    let node = &config.node;
    let _lock = Lock::acquire(runtime_dir(node), &node.pin_dir).map_err(anyhow::Error::from)?;
    let pins = Pins::new(&node.pin_dir);
    // The addresses first: a VIP that nobody forwards any more should not be answered for either.
    let mut withdrawn = 0;
    if let Some(first) = node.interfaces.first() {
        let vips = config.services.iter().map(|s| s.key.vip).collect();
        match Announcer::start(first, vips).await {
            Ok(announcer) => match announcer.withdraw().await {
                Ok(changes) => withdrawn = changes.removed.len(),
                Err(error) => tracing::warn!(%error, "cannot withdraw the VIPs from {first}"),
            },
            Err(error) => tracing::warn!(%error, "cannot look for VIPs on {first}"),
        }
    }
    let existed = pins.remove_all().map_err(anyhow::Error::from)?;
    let _ = std::fs::remove_file(&node.api_socket);
    if !config.store.is_file() {
        give_back(&config).await;
    }
    if existed || withdrawn > 0 {
        tracing::info!(withdrawn, pin_dir = %node.pin_dir.display(), "unloaded: forwarding has stopped");
    } else {
        tracing::info!(pin_dir = %node.pin_dir.display(), "nothing was loaded");
    }
    Ok(())
}
