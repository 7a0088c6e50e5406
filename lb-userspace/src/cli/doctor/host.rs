//! Checks of the host: kernel, BPF, capabilities, pins. Pure: facts in, findings out.

use super::Finding;

/// The oldest kernel whose verifier takes the program: compare-exchange in BPF and memory-mapped arrays are older, but no
/// release with long support before it has both.
const KERNEL_MIN: (u32, u32) = (5, 15);
/// The oldest kernel that weir is tested on.
const KERNEL_TESTED: (u32, u32) = (6, 1);
/// From here on BPF memory counts towards the control group and not towards the memlock limit.
const KERNEL_WITHOUT_MEMLOCK: (u32, u32) = (5, 11);

/// What is known about the host.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// `uname -r`.
    pub release: String,
    /// Whether the kernel offers its types (`/sys/kernel/btf/vmlinux`).
    pub btf: bool,
    /// `net.core.bpf_jit_enable`; `None` where the kernel compiles always and has no switch.
    pub jit: Option<String>,
    /// Effective capabilities of this process, as `CAP_...`; an error if they cannot be read.
    pub capabilities: Result<Vec<String>, String>,
    /// Soft limit of locked memory in bytes; `None` is unlimited.
    pub memlock_bytes: Option<u64>,
    /// Folder of the pins.
    pub pin_dir: String,
    /// Whether the folder, or the nearest one above it that exists, lies on a bpf file system.
    pub bpffs: bool,
    /// What is pinned.
    pub pins: Pins,
    /// What asking the agent gave: its version, or why it does not answer.
    pub agent: Result<String, String>,
}

/// What the pin folder holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pins {
    /// Nothing: no data plane is loaded.
    None,
    /// A data plane that this release can adopt.
    Fits,
    /// Something that it cannot adopt, and why.
    Unfit(String),
    /// It was not looked at, for want of a configuration or a privilege.
    Unknown(String),
}

/// Major and minor number of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Every check of the host.
pub fn check(facts: &HostFacts) -> Vec<Finding> {
    let mut findings = vec![
        kernel(facts),
        if facts.btf {
            Finding::ok("btf", "the kernel describes its types")
        } else {
            Finding::warn("btf", "/sys/kernel/btf/vmlinux is missing")
                .advice("use a kernel with CONFIG_DEBUG_INFO_BTF=y; without it verifier and bpftool say less")
        },
        jit(facts),
    ];
    findings.extend(capabilities(facts));
    findings.push(memlock(facts));
    findings.push(bpffs(facts));
    findings.push(pins(facts));
    findings.push(match &facts.agent {
        Ok(version) => Finding::ok("agent", format!("weir {version} answers")),
        Err(why) => Finding::warn("agent", why.as_str())
            .advice("start it with `weir agent --config FILE`; a pinned data plane forwards without it"),
    });
    findings
}

fn kernel(facts: &HostFacts) -> Finding {
    let release = &facts.release;
    match version(release) {
        None => Finding::warn("kernel", format!("release {release:?} is not understood")),
        Some(v) if v < KERNEL_MIN => Finding::fail("kernel", format!("{release} is too old"))
            .advice(format!("use {}.{} or newer", KERNEL_TESTED.0, KERNEL_TESTED.1)),
        Some(v) if v < KERNEL_TESTED => {
            Finding::warn("kernel", format!("{release}: the program should load, but is not tested there"))
                .advice(format!("use {}.{} or newer", KERNEL_TESTED.0, KERNEL_TESTED.1))
        }
        Some(_) => Finding::ok("kernel", release.as_str()),
    }
}

fn jit(facts: &HostFacts) -> Finding {
    match facts.jit.as_deref() {
        None => Finding::ok("jit", "no switch here: always on, or shown in the first network namespace only"),
        Some("1" | "2") => Finding::ok("jit", "net.core.bpf_jit_enable is on"),
        Some(value) => Finding::warn("jit", format!("net.core.bpf_jit_enable = {value}: programs are interpreted"))
            .advice("sysctl -w net.core.bpf_jit_enable=1"),
    }
}

fn capabilities(facts: &HostFacts) -> Vec<Finding> {
    let held = match &facts.capabilities {
        Ok(held) => held,
        Err(why) => return vec![Finding::warn("capabilities", why.as_str())],
    };
    let has = |name: &str| held.iter().any(|c| c == name);
    // CAP_SYS_ADMIN includes what CAP_BPF and CAP_PERFMON were split from (Linux 5.8).
    let admin = has("CAP_SYS_ADMIN");
    let needed = [
        ("CAP_NET_ADMIN", has("CAP_NET_ADMIN"), "attach programs and hold VIPs"),
        ("CAP_BPF", has("CAP_BPF") || admin, "load programs and maps"),
        ("CAP_PERFMON", has("CAP_PERFMON") || admin, "pass the verifier without speculation limits"),
        ("CAP_NET_RAW", has("CAP_NET_RAW"), "announce VIPs by ARP and neighbour discovery"),
    ];
    let mut findings: Vec<Finding> = needed
        .iter()
        .filter(|(_, held, _)| !held)
        .map(|(name, _, why)| {
            Finding::fail("capabilities", format!("{name} is missing here, the agent needs it to {why}"))
                .advice("run as root, or with the unit file's AmbientCapabilities")
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok("capabilities", "all that the agent needs"));
    }
    findings
}

fn memlock(facts: &HostFacts) -> Finding {
    let counts = version(&facts.release).is_none_or(|v| v < KERNEL_WITHOUT_MEMLOCK);
    match facts.memlock_bytes {
        Some(limit) if counts => Finding::warn("memlock", format!("limit {limit} bytes counts for BPF maps here"))
            .advice("set LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`"),
        Some(_) => Finding::ok("memlock", "limited, but this kernel does not count BPF maps"),
        None => Finding::ok("memlock", "unlimited"),
    }
}

fn bpffs(facts: &HostFacts) -> Finding {
    if facts.bpffs {
        return Finding::ok("bpffs", format!("{} lies on a bpf file system", facts.pin_dir));
    }
    Finding::warn("bpffs", format!("{} does not lie on a bpf file system", facts.pin_dir))
        .advice("mount -t bpf bpf /sys/fs/bpf (the agent does it when it may)")
}

fn pins(facts: &HostFacts) -> Finding {
    match &facts.pins {
        Pins::None => Finding::ok("pins", "no data plane is loaded"),
        Pins::Fits => Finding::ok("pins", "a data plane is loaded, and its maps fit this release"),
        Pins::Unfit(why) => Finding::fail("pins", why.as_str())
            .advice("`weir agent --unload` removes it (forwarding stops), then start the agent"),
        Pins::Unknown(why) => Finding::warn("pins", why.as_str()).advice("run doctor as root, with --config FILE"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;

    fn healthy() -> HostFacts {
        HostFacts {
            release: "6.1.0-28-amd64".into(),
            btf: true,
            jit: Some("1".into()),
            capabilities: Ok(["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_NET_RAW"].map(String::from).into()),
            memlock_bytes: Some(8 << 20),
            pin_dir: "/sys/fs/bpf/weir".into(),
            bpffs: true,
            pins: Pins::Fits,
            agent: Ok("0.1.0".into()),
        }
    }

    /// The level of check `name` after `change`; everything else must stay OK.
    fn level(name: &str, change: impl Fn(&mut HostFacts)) -> Level {
        let mut facts = healthy();
        change(&mut facts);
        let (mine, others): (Vec<_>, Vec<_>) = check(&facts).into_iter().partition(|f| f.check == name);
        assert!(others.iter().all(|f| f.level == Level::Ok), "{others:?}");
        let worst = mine.iter().max_by_key(|f| f.level).unwrap_or_else(|| panic!("no check {name}"));
        assert!(worst.level == Level::Ok || worst.advice.is_some(), "{worst:?} does not say what to do");
        worst.level
    }

    #[test]
    fn each_fact_is_judged() {
        assert_eq!(level("kernel", |_| ()), Level::Ok);
        assert_eq!(level("kernel", |f| f.release = "5.15.0".into()), Level::Warn);
        assert_eq!(level("kernel", |f| f.release = "5.14.21-x".into()), Level::Fail);
        assert_eq!(level("btf", |f| f.btf = false), Level::Warn);
        assert_eq!(level("jit", |f| f.jit = Some("0".into())), Level::Warn);
        assert_eq!(level("jit", |f| f.jit = None), Level::Ok);
        assert_eq!(level("capabilities", |f| f.capabilities = Ok(vec![])), Level::Fail);
        let admin = ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_NET_RAW"];
        assert_eq!(level("capabilities", |f| f.capabilities = Ok(admin.map(String::from).into())), Level::Ok);
        assert_eq!(level("bpffs", |f| f.bpffs = false), Level::Warn);
        assert_eq!(level("pins", |f| f.pins = Pins::None), Level::Ok);
        assert_eq!(level("pins", |f| f.pins = Pins::Unfit("ABI 9".into())), Level::Fail);
        assert_eq!(level("pins", |f| f.pins = Pins::Unknown("no".into())), Level::Warn);
        assert_eq!(level("agent", |f| f.agent = Err("no".into())), Level::Warn);
        assert_eq!(level("memlock", |f| f.memlock_bytes = None), Level::Ok);
    }

    #[test]
    fn the_memlock_limit_matters_only_to_old_kernels() {
        let mut facts = healthy();
        assert_eq!(memlock(&facts).level, Level::Ok);
        facts.release = "5.10.0-1-amd64".into();
        assert_eq!(memlock(&facts).level, Level::Warn);
    }

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(version("6.18.5"), Some((6, 18)));
        assert_eq!(version("6.1-rc1"), Some((6, 1)));
        assert_eq!(version("custom"), None);
    }
}
