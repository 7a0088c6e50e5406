//! Collects what `weir doctor` judges: reads, asks, changes nothing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{
    Finding,
    host::{self, HostFacts, Pins},
    network::{self, InterfaceFacts, NetworkFacts, PathFacts},
    store,
};
use crate::{
    api::{self, backend_name, client::ClientError},
    cli::{
        config,
        shell::{Shell, block_on},
    },
    dataplane::{self, load},
    model::Config,
    net,
    plan::sizes::MapSizes,
};

/// Folder of the pins unless a configuration says otherwise.
const PIN_DIR_DEFAULT: &str = "/sys/fs/bpf/weir";

/// Every check that can be made: the configuration is the file's, else the agent's, else there is none and only the host is
/// checked.
pub fn findings(shell: &Shell, file: Option<&Path>) -> anyhow::Result<Vec<Finding>> {
    let status = shell.ask(async |client| Ok(client.status().await));
    let status = status?.map_err(|error: ClientError| error.to_string());
    let config = match file {
        Some(path) => Some(config::load(path)?),
        None if status.is_ok() => {
            let text = shell.ask(async |client| client.config().await)?;
            Some(config::parse(&text.text, &text.file)?)
        }
        None => None,
    };
    let pin_dir = config.as_ref().map_or_else(|| PathBuf::from(PIN_DIR_DEFAULT), |c| c.node.pin_dir.clone());
    let pins = pins(&pin_dir, config.as_ref());
    let agent = status.map(|status| status.version);
    let asked = agent.is_ok();
    let mut findings = host::check(&host(&pin_dir, pins, agent));
    match &config {
        Some(config) => {
            let backends = if asked { shell.ask(async |client| client.backends().await)? } else { Vec::new() };
            let addresses = config.services.iter().flat_map(|s| &s.backends).map(|b| b.address).collect();
            let routes = block_on(async { Ok(net::resolver::look(addresses).await?) })?;
            let facts = NetworkFacts { interfaces: interfaces(config)?, paths: paths(config, &backends, &routes) };
            findings.extend(network::check(&facts, config));
            findings.extend(block_on(async { Ok(store::check(&config.store).await) })?);
        }
        None => findings.push(
            Finding::warn("configuration", "none: interfaces and services were not checked")
                .advice("name it: weir doctor --config FILE"),
        ),
    }
    Ok(findings)
}

/// Whether what is pinned below `dir` can be adopted.
fn pins(dir: &Path, config: Option<&Config>) -> Pins {
    let pins = dataplane::pin::Pins::new(dir);
    match pins.map("NODE").try_exists() {
        Ok(false) => return Pins::None,
        Ok(true) => {}
        Err(error) => return Pins::Unknown(format!("cannot look below {}: {error}", dir.display())),
    }
    let Some(config) = config else {
        return Pins::Unknown("a data plane is loaded; whether it fits depends on the configuration's limits".into());
    };
    match load::check_shapes(&pins, &MapSizes::of(&config.node.limits)) {
        Ok(()) => Pins::Fits,
        Err(error) => Pins::Unfit(error.to_string()),
    }
}

fn interfaces(config: &Config) -> anyhow::Result<Vec<InterfaceFacts>> {
    let pinned = dataplane::pin::Pins::new(&config.node.pin_dir).interfaces().unwrap_or_default();
    let count = |v6| config.services.iter().flat_map(|s| &s.backends).filter(|b| b.address.is_ipv6() == v6).count();
    let mut modes: Vec<_> = config.services.iter().map(|s| s.forward).collect();
    modes.sort_unstable();
    modes.dedup();
    block_on(async {
        let links = net::interface::Links::open()?;
        let all = links.all().await?;
        let vlans = |below: u32| {
            let upon = |i: &&net::Interface| i.kind.as_deref() == Some("vlan") && i.lower == Some(below);
            all.iter().filter(upon).map(|i| i.name.clone()).collect()
        };
        let mut facts = Vec::new();
        for name in &config.node.interfaces {
            facts.push(match links.by_name(name).await {
                Err(error) => {
                    InterfaceFacts { name: name.clone(), missing: Some(error.to_string()), ..InterfaceFacts::default() }
                }
                Ok(interface) => InterfaceFacts {
                    name: name.clone(),
                    missing: None,
                    ours: pinned.iter().any(|p| p.ifindex == interface.ifindex),
                    link: net::doctor::Facts {
                        vlans: vlans(interface.ifindex),
                        interface,
                        settings: net::sysctl::read(name),
                        offloads: net::offload::read(name).unwrap_or_default(),
                        modes: modes.clone(),
                        backends_v4: count(false),
                        backends_v6: count(true),
                        vips_v6: config.services.iter().any(|s| s.key.vip.is_ipv6()),
                        generic: config.node.xdp_mode == crate::model::XdpMode::Generic,
                    },
                },
            });
        }
        Ok(facts)
    })
}

/// The way to each backend of the configuration: as the agent resolved it if it knows the backend, else as the routes say.
fn paths(config: &Config, resolved: &[api::Backend], routes: &net::next_hop::Facts) -> Vec<PathFacts> {
    let mut paths = Vec::new();
    for service in &config.services {
        for backend in &service.backends {
            let name = backend_name(backend.address, backend.port);
            let (mtu, cause) = match resolved.iter().find(|b| b.service == service.name && b.name == name) {
                Some(b) => (b.next_hop.mtu.filter(|_| b.next_hop.resolved), b.next_hop.cause.clone()),
                None => match routes.path(backend.address) {
                    Ok(path) => (Some(path.mtu), None),
                    Err(cause) => (None, Some(cause.to_string())),
                },
            };
            paths.push(PathFacts {
                backend: format!("{}/{name}", service.name),
                forward: service.forward.into(),
                address: backend.address,
                mtu,
                cause,
            });
        }
    }
    paths
}

/// What the host says; `pin_dir` is the configuration's, `agent` what asking it gave.
fn host(pin_dir: &Path, pins: Pins, agent: Result<String, String>) -> HostFacts {
    HostFacts {
        release: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        jit: read("/proc/sys/net/core/bpf_jit_enable"),
        capabilities: capabilities(),
        memlock_bytes: read("/proc/self/limits").and_then(|limits| memlock(&limits)),
        pin_dir: pin_dir.display().to_string(),
        bpffs: on_bpffs(pin_dir),
        pins,
        agent,
    }
}

/// A small file without its final newline.
fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn capabilities() -> Result<Vec<String>, String> {
    caps::read(None, caps::CapSet::Effective)
        .map(|held| held.iter().map(ToString::to_string).collect())
        .map_err(|e| format!("cannot read the capabilities of this process: {e}"))
}

/// The soft limit in the line of `/proc/self/limits`; `None` is unlimited.
fn memlock(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether `dir`, or the nearest folder above it that exists, lies on a bpf file system.
fn on_bpffs(dir: &Path) -> bool {
    let mut dir = PathBuf::from(dir);
    loop {
        if let Ok(stat) = statfs(&dir) {
            return stat.filesystem_type() == BPF_FS_MAGIC;
        }
        if !dir.pop() {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::sample,
        model,
        net::next_hop::{Cause, Facts, Link, Route},
    };

    #[test]
    fn the_memlock_line_is_read() {
        let line = "Limit   Soft Limit   Hard Limit   Units\nMax locked memory         8388608     8388608    bytes\n";
        assert_eq!(memlock(line), Some(8_388_608));
        assert_eq!(memlock("Max locked memory         unlimited   unlimited  bytes\n"), None);
        assert_eq!(memlock(""), None);
    }

    #[test]
    fn a_plain_folder_is_no_bpf_file_system() {
        assert!(!on_bpffs(Path::new("/proc/self/nonexistent/below")));
    }

    #[test]
    fn what_the_agent_resolved_goes_before_what_the_routes_say() {
        let mut config = sample::config(model::Forward::Ipip);
        let unknown = model::Backend { address: [10, 0, 0, 99].into(), ..config.services[0].backends[0].clone() };
        config.services[0].backends.push(unknown);
        let link = Link { name: "eth0".into(), mac: Some([2; 6]), mtu: 1500, up: true };
        let via = |mtu| Route::Via { ifindex: 2, gateway: None, mtu };
        let mut routes = Facts { links: [(2, link)].into(), ..Facts::default() };
        routes.routes.insert([10, 0, 0, 11].into(), via(Some(1300)));
        routes.routes.insert([10, 0, 0, 99].into(), via(Some(1400)));
        let mtus = |agent: &[api::Backend], routes: &Facts| -> Vec<(Option<u32>, Option<String>)> {
            paths(&config, agent, routes).into_iter().map(|p| (p.mtu, p.cause)).collect()
        };
        assert_eq!(mtus(&[], &routes), [(Some(1300), None), (Some(1400), None)]);
        assert_eq!(mtus(&[sample::backend(11)], &routes), [(Some(1500), None), (Some(1400), None)]);
        routes.routes.insert([10, 0, 0, 11].into(), Route::Not(Cause::NoRoute));
        assert_eq!(mtus(&[], &routes)[0], (None, Some("no route".into())));
    }

    #[test]
    fn this_host_answers() {
        let facts = host(Path::new("/sys/fs/bpf/weir"), Pins::None, Err("not asked".into()));
        assert!(facts.release.contains('.'), "{}", facts.release);
        assert!(facts.capabilities.is_ok());
    }
}
