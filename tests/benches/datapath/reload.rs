//! What a changed file costs: the agent's own event loop on real maps, from the save to the maps.
//!
//! The network is answered for, as nothing here has neighbours; all else (watch, check, plan, maps) is the agent's.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use lb_userspace::{
    agent::{
        api::call::{Call, Calls},
        event_loop::{EventLoop, Parts},
        network::{Network, Views},
        node::Node,
        overrides::Overrides,
        reload,
        state::State,
        view::Process,
    },
    health::Checker,
    model::Incremental,
    net::{Resolution, Table},
    store::FileStore,
    telemetry::metrics::Metrics,
};
use tokio::sync::watch;

use crate::{
    report::{Promise, Target, median},
    scene::{BACKENDS, large_configuration},
    weir::Weir,
};

/// Longest wait for a save to take effect.
const SAVE_MAX: Duration = Duration::from_secs(30);
/// How often the maps are looked at.
const POLL: Duration = Duration::from_micros(500);

struct Silent;

impl Network for Silent {
    fn set_destinations(&mut self, _: BTreeSet<IpAddr>) {}
    fn set_vips(&mut self, _: BTreeSet<IpAddr>) {}
}

/// Changes one backend at a time in the file, each time in another service; the median in milliseconds from the saved file
/// to maps that were read back.
pub fn one_save(interface: &str, egress: u32, services: u16, repeat: usize) -> Result<Target> {
    let text = large_configuration(interface, services);
    let weir = Weir::load(&text, egress)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let times = runtime.block_on(saves(&weir, &text, usize::from(services), repeat))?;
    let what = format!("one backend changed in the file among {services} services of {BACKENDS}, from save to maps");
    Ok(Target::at_most(Promise::Changes, what, " ms", median(times), 50.0))
}

async fn saves(weir: &Weir, text: &str, services: usize, repeat: usize) -> Result<Vec<f64>> {
    let folder = tempfile::tempdir()?;
    let store = FileStore::new(folder.path().join("weir.toml"));
    fs::write(store.path(), text)?;
    let (data, config) = weir.take_over()?;
    let mut incremental = Incremental::default();
    reload::check(&mut incremental, reload::Input::Text { file_name: "weir.toml", text }, "bench")
        .map_err(|refused| anyhow!("{}", refused.message()))?;
    let state = State::new(config, Overrides::default(), &|_| None);
    let way = Resolution::Resolved { next_hop: weir.next_hop(), gateway: None, interface: "egress".into() };
    let addresses: Table = state.addresses().into_iter().map(|address| (address, way.clone())).collect();
    let (next_hops, table) = watch::channel(Arc::new(Table::new()));
    next_hops.send_replace(Arc::new(addresses));
    let (_interfaces, interfaces) = watch::channel(Vec::new());
    let (checker, events) = Checker::start(Default::default());
    let (calls, inbox) = Calls::new();
    let mut agent = EventLoop::new(Parts {
        node: Node::new(state, Box::new(data), Vec::new(), None),
        process: Process { started: Instant::now(), adopted: true, config_file: "weir.toml".into() },
        watch: Some(store.watch()?),
        text: store.read()?,
        store: store.clone(),
        shared: None,
        incremental,
        overrides_file: folder.path().join("overrides.json"),
        host_name: "bench".into(),
        metrics: Arc::new(Metrics::new()),
        network: Box::new(Silent),
        views: Views { table, interfaces },
        checker,
        events,
        calls: inbox,
    });
    agent.spread();
    agent.first_resolution(SAVE_MAX).await;
    agent.first_publication().await?;
    let measured = async {
        let mut times = Vec::new();
        let mut changed = text.to_owned();
        for n in 0..repeat {
            let service = format!("name = \"s{}\"", n * services / repeat);
            let at = changed.find(&service).context("no such service")?;
            let at = at + changed.get(at..).and_then(|rest| rest.find("\naddress")).context("it has no backend")?;
            changed.insert_str(at, "\nweight = 3");
            let before = revision(&calls).await?;
            fs::write(store.path(), &changed)?;
            let saved = Instant::now();
            while revision(&calls).await? == before {
                if saved.elapsed() > SAVE_MAX {
                    bail!("the saved file did not take effect within {SAVE_MAX:?}");
                }
                tokio::time::sleep(POLL).await;
            }
            times.push(saved.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    };
    tokio::select! {
        times = measured => times,
        ended = agent.run() => bail!("the agent ended: {ended:?}"),
    }
}

async fn revision(calls: &Calls) -> Result<u64> {
    calls.ask(Call::Alive).await.map_err(|refusal| anyhow!("{}", refusal.error.error))
}
