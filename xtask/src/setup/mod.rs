//! `cargo xtask setup`: finds what is missing for building weir and for its lab, and installs it.
//!
//! Deciding ([`plan`]) is pure: an inventory in, needs out. Invariants: each thing is named with its reason and its exact
//! command before it is installed; a repeated or interrupted run is harmless; nothing that was there is changed.

pub mod apt;
pub mod tool;

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::{capability, step};

/// `cargo xtask setup`.
#[derive(Debug, Default, ClapArgs)]
pub struct Args {
    /// Only tell what is missing (exit code 1 if something is)
    #[arg(long)]
    pub check: bool,
}

/// LLVM of Debian's rustc-web at the time of writing; what an installed compiler says wins.
const LLVM_MAJOR_DEFAULT: u32 = 22;
/// Releases of LLVM that this version of bpf-linker can be built with.
const LLVM_MAJORS: [u32; 3] = [21, 22, 23];

/// Programs that the lab and its tests start, with the Debian package that has them.
const PROGRAMS: [(&str, &str, &str); 11] = [
    ("ip", "iproute2", "lays out the lab's network namespaces"),
    ("ethtool", "ethtool", "switches checksum offloads of the lab's interfaces off"),
    ("nginx", "nginx-light", "the HTTP server of the lab's backends"),
    ("nsenter", "util-linux", "opens a shell in a host of the lab"),
    ("redis-server", "redis-server", "servers for the tests of locks and stores"),
    ("faketime", "faketime", "moves the clocks of those lock nodes"),
    ("dig", "bind9-dnsutils", "asks `weir dns` in the tests of the fleet"),
    ("named", "bind9", "transfers the zone and takes updates in those tests"),
    ("knotd", "knot", "transfers the zone in those tests"),
    ("prometheus", "prometheus", "what the orchestrator asks in those tests"),
    ("promtool", "prometheus", "tests the alert rules"),
];

/// What a machine has, as far as weir cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// A C compiler and linker.
    pub cc: bool,
    /// A C++ compiler, for building bpf-linker.
    pub cxx: bool,
    /// rustfmt and clippy of the toolchain in use.
    pub rust_components: bool,
    /// A compiler for BPF.
    pub rustc: Option<tool::BpfRustc>,
    /// Version of the linker for BPF.
    pub linker: Option<String>,
    /// LLVM release that the compiler for BPF uses.
    pub llvm_major: u32,
    /// Programs of [`PROGRAMS`] that are missing.
    pub programs_missing: Vec<&'static str>,
}

/// One thing that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Its name.
    pub name: String,
    /// What weir needs it for.
    pub why: &'static str,
    /// How it comes here.
    pub how: How,
}

/// How a missing thing is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// Debian packages.
    Packages(Vec<String>),
    /// `cargo install bpf-linker` against that LLVM release.
    Linker(u32),
    /// Components of the Rust toolchain in use.
    Components,
}

impl How {
    /// The exact command.
    fn command(&self) -> String {
        match self {
            Self::Packages(names) => step::command_line(&apt::install_command(names)),
            Self::Linker(llvm) => step::command_line(&linker_command(*llvm)),
            Self::Components => step::command_line(&components_command()),
        }
    }
}

/// Looks at this machine.
pub fn inventory() -> Inventory {
    let rustc = tool::bpf_rustc();
    let llvm_major = match &rustc {
        Some(tool::BpfRustc::Ready { rustc, .. }) => {
            tool::output_of(rustc, &["-vV"]).and_then(|text| llvm_major(&text)).unwrap_or(LLVM_MAJOR_DEFAULT)
        }
        _ => LLVM_MAJOR_DEFAULT,
    };
    Inventory {
        cc: tool::find("cc").is_some(),
        cxx: tool::find("c++").is_some(),
        rust_components: tool::output_of("cargo", &["fmt", "--version"]).is_some()
            && tool::output_of("cargo", &["clippy", "--version"]).is_some(),
        rustc,
        linker: tool::bpf_linker().map(|(_, version)| version),
        llvm_major,
        programs_missing: PROGRAMS.iter().map(|p| p.0).filter(|name| tool::find(name).is_none()).collect(),
    }
}

/// The LLVM release in the output of `rustc -vV`.
fn llvm_major(verbose_version: &str) -> Option<u32> {
    let version = verbose_version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// What has to be installed, in the order in which it can be.
pub fn plan(have: &Inventory) -> Vec<Need> {
    let mut needs = Vec::new();
    if !have.cc || (!have.cxx && have.linker.is_none()) {
        needs.push(Need {
            name: "a C and C++ compiler".to_owned(),
            why: "links Rust programs and builds bpf-linker",
            how: How::Packages(vec!["build-essential".to_owned()]),
        });
    }
    if !have.rust_components {
        needs.push(Need {
            name: "rustfmt and clippy".to_owned(),
            why: "`cargo xtask test` runs both",
            how: How::Components,
        });
    }
    if have.rustc.is_none() {
        needs.push(Need {
            name: "a Rust compiler with `core` for BPF".to_owned(),
            why: "compiles the XDP program",
            how: How::Packages(vec!["rustc-web".to_owned(), "libstd-rust-web-dev-bpf".to_owned()]),
        });
    }
    if have.linker.is_none() {
        let llvm = have.llvm_major;
        let packages = [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")]
            .into_iter()
            .chain(["zlib1g-dev", "libzstd-dev", "libxml2-dev"].map(str::to_owned));
        needs.push(Need {
            name: format!("LLVM {llvm}"),
            why: "bpf-linker is built against the LLVM of the compiler for BPF",
            how: How::Packages(packages.collect()),
        });
        needs.push(Need {
            name: format!("bpf-linker {}", tool::BPF_LINKER_VERSION),
            why: "links the XDP program",
            how: How::Linker(llvm),
        });
    }
    for (program, package, why) in PROGRAMS {
        if have.programs_missing.contains(&program) {
            needs.push(Need { name: program.to_owned(), why, how: How::Packages(vec![package.to_owned()]) });
        }
    }
    needs
}

fn linker_command(llvm: u32) -> Command {
    let mut command = Command::new("cargo");
    command
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
        // A build that was interrupted goes on where it stopped.
        .env("CARGO_TARGET_DIR", crate::target_dir().join("xtask/bpf-linker"))
        .args(["install", "bpf-linker", "--locked", "--version", tool::BPF_LINKER_VERSION, "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")])
        .current_dir("/");
    command
}

fn components_command() -> Command {
    let mut command = Command::new("rustup");
    command.args(["component", "add", "rustfmt", "clippy"]);
    command
}

/// Installs what is missing, or only tells.
pub fn run(args: &Args) -> Result<()> {
    let have = inventory();
    let needs = plan(&have);
    report(&have);
    for need in &needs {
        println!("missing: {} ({})\n         {}", need.name, need.why, need.how.command());
    }
    if args.check {
        let refused = report_capabilities();
        if !needs.is_empty() {
            bail!("{} thing(s) missing; `cargo xtask setup` installs them", needs.len());
        }
        if refused {
            bail!("this kernel or user cannot run the lab (see above)");
        }
        println!("set-up: nothing is missing");
        return Ok(());
    }
    if !needs.is_empty() {
        install(&needs)?;
        let left = plan(&inventory());
        if let Some(need) = left.first() {
            bail!("{} is still missing after everything was installed: {}", need.name, need.how.command());
        }
    }
    report_capabilities();
    println!("set-up: complete");
    Ok(())
}

fn report(have: &Inventory) {
    if let Some(rustc) = &have.rustc {
        println!("found: {rustc}");
    }
    if let Some(linker) = &have.linker {
        println!("found: {linker}");
    }
}

/// Says what the kernel or the user's rights lack for the lab; building works without.
fn report_capabilities() -> bool {
    let refused = capability::missing(&capability::LAB);
    if let Some(reason) = &refused {
        println!("note: the lab, the demo and the tests of the loaded program cannot run here: {reason}");
    }
    refused.is_some()
}

fn install(needs: &[Need]) -> Result<()> {
    let packages: Vec<String> = needs
        .iter()
        .filter_map(|need| match &need.how {
            How::Packages(names) => Some(names.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    if !packages.is_empty() {
        apt::install(&packages).with_context(|| other_ways(&packages))?;
    }
    for need in needs {
        match need.how {
            How::Packages(_) => {}
            How::Components => step::run("rustfmt and clippy", "setup", &mut components_command())?,
            // The compiler may only now be here, and may use another LLVM than was assumed.
            How::Linker(assumed) => {
                let llvm = inventory().llvm_major;
                if !LLVM_MAJORS.contains(&llvm) {
                    bail!(
                        "the compiler for BPF uses LLVM {llvm}, bpf-linker {} takes {LLVM_MAJORS:?}",
                        tool::BPF_LINKER_VERSION
                    );
                }
                if llvm != assumed {
                    apt::install(&[format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")])?;
                }
                step::run("building bpf-linker", "setup", &mut linker_command(llvm))?;
            }
        }
    }
    Ok(())
}

/// What to do by hand where Debian's packages cannot be had.
fn other_ways(packages: &[String]) -> String {
    let mut text = format!("{}: could not install {}", tool::distribution(), packages.join(" "));
    if packages.iter().any(|name| name.contains("rust") || name.contains("llvm")) {
        text.push_str(&format!(
            "\nwithout Debian's packages the eBPF toolchain is:\n  \
             rustup toolchain install nightly --profile minimal --component rust-src\n  \
             a prebuilt bpf-linker {} or newer on PATH: `cargo binstall bpf-linker`, or the archive for this machine from\n  \
             https://github.com/aya-rs/bpf-linker/releases (its LLVM must be as new as nightly's)\n\
             and for the lab: iproute2, ethtool, nginx, util-linux, redis-server, faketime, bind9, bind9-dnsutils, knot, prometheus; then run `cargo xtask setup` again",
            tool::BPF_LINKER_VERSION
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Inventory {
        Inventory {
            cc: true,
            cxx: true,
            rust_components: true,
            rustc: Some(tool::BpfRustc::Nightly),
            linker: Some("bpf-linker 0.13.0".to_owned()),
            llvm_major: 22,
            programs_missing: Vec::new(),
        }
    }

    #[test]
    fn a_complete_machine_needs_nothing() {
        assert_eq!(plan(&complete()), []);
    }

    #[test]
    fn a_new_machine_needs_the_compiler_before_the_linker() {
        let bare = Inventory {
            cc: false,
            cxx: false,
            rust_components: false,
            rustc: None,
            linker: None,
            programs_missing: PROGRAMS.iter().map(|p| p.0).collect(),
            ..complete()
        };
        let names: Vec<_> = plan(&bare).into_iter().map(|need| need.name).collect();
        let at = |name: &str| {
            names.iter().position(|n| n.starts_with(name)).unwrap_or_else(|| panic!("{name} in {names:?}"))
        };
        assert!(
            at("a C and C++") < at("LLVM 22")
                && at("LLVM 22") < at("bpf-linker")
                && at("a Rust compiler") < at("bpf-linker")
        );
        assert!(PROGRAMS.iter().all(|(program, ..)| names.iter().any(|n| n == program)));
    }

    #[test]
    fn a_linker_on_path_needs_neither_llvm_nor_a_cpp_compiler() {
        assert_eq!(plan(&Inventory { cxx: false, ..complete() }), []);
        let needs = plan(&Inventory { linker: None, llvm_major: 21, ..complete() });
        assert!(matches!(&needs[0].how, How::Packages(p) if p.contains(&"llvm-21-dev".to_owned())));
        assert!(
            needs[1].how.command().contains("LLVM_PREFIX=/usr/lib/llvm-21")
                && needs[1].how.command().contains("llvm-21")
        );
    }

    #[test]
    fn the_llvm_release_is_read_from_the_compiler() {
        assert_eq!(llvm_major("rustc 1.96\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96\n"), None);
    }

    #[test]
    fn packages_that_cannot_be_had_name_the_other_toolchain() {
        let text = other_ways(&["rustc-web".to_owned()]);
        assert!(text.contains("rust-src") && text.contains("bpf-linker"), "{text}");
    }
}
