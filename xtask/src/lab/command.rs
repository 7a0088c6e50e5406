//! `cargo xtask lab up|down|shell`: the lab for playing.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, Subcommand};

use super::{
    Lab,
    agent::Node,
    topology::{HOSTS, Host, vip},
};
use crate::{setup, step};

/// `cargo xtask lab`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Verb,
    /// Name of the lab; labs of different names do not meet
    #[arg(long, global = true, default_value = "weir")]
    name: String,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build weir, lay out the lab, start the servers and the agent
    Up {
        /// Leave the agent to you
        #[arg(long)]
        no_agent: bool,
    },
    /// Take the lab down; nothing to take down is fine
    Down,
    /// Open a shell in a host of the lab, or run a command there
    Shell {
        /// client, lb, b1, b2, b3, gw, b4, b5 or switch
        #[arg(default_value = "client")]
        host: String,
        /// What to run instead of a shell
        #[arg(last = true)]
        command: Vec<String>,
    },
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        Verb::Up { no_agent } => up(&args.name, !no_agent),
        Verb::Down => {
            Lab::down(&args.name)?;
            println!("the lab `{}` is down", args.name);
            Ok(())
        }
        Verb::Shell { host, command } => shell(&args.name, host, command),
    }
}

/// Builds `weir`, unless the tests have it built already, and tells where it is.
pub fn build() -> Result<PathBuf> {
    if let Some(folder) = crate::test::programs_folder() {
        return Ok(folder.join("weir"));
    }
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--package", "lb-userspace", "--bin", "weir"]).current_dir(crate::root());
    step::run("building weir and its eBPF programs from source", "build", &mut cargo)?;
    Ok(crate::target_dir().join("debug/weir"))
}

/// The program that has the hidden commands: this one, unless this is a test.
pub fn xtask_binary(this: &Path) -> PathBuf {
    if this.file_name().is_some_and(|name| name == "xtask") {
        return this.to_owned();
    }
    crate::target_dir().join("debug/xtask")
}

/// Services of the lab that is for playing.
pub fn services() -> String {
    let mut text = String::new();
    for (name, number, v6) in [("web4", 0, false), ("web6", 0, true)] {
        text.push_str(&service(name, number, v6, "tcp", 80, "ipip", &[(Host::B1, 1), (Host::B2, 2), (Host::B3, 3)]));
        let name = name.replace("web", "echo");
        text.push_str(&service(&name, number, v6, "udp", 5353, "ipip", &[(Host::B1, 1), (Host::B2, 2), (Host::B3, 3)]));
    }
    text
}

/// One service with a health check that asks the backends' web servers every second.
pub fn service(
    name: &str,
    vip_number: u8,
    v6: bool,
    protocol: &str,
    port: u16,
    forward: &str,
    to: &[(Host, u16)],
) -> String {
    let backends: Vec<_> = to.iter().map(|(host, weight)| (host.address(v6), port, *weight)).collect();
    service_to(name, (vip(vip_number, v6), port), protocol, forward, &backends)
}

/// One service with backends given by address, port and weight.
pub fn service_to(
    name: &str,
    at: (std::net::IpAddr, u16),
    protocol: &str,
    forward: &str,
    backends: &[(std::net::IpAddr, u16, u16)],
) -> String {
    let mut text = format!(
        "[[service]]
name = \"{name}\"
vip = \"{}\"
port = {}
protocol = \"{protocol}\"
forward = \"{forward}\"

[service.health_check]
type = \"http\"
path = \"/health\"
port = 80
interval = \"1s\"
timeout = \"500ms\"

",
        at.0, at.1
    );
    for (address, port, weight) in backends {
        text.push_str(&format!("[[service.backends]]\naddress = \"{address}\"\nport = {port}\nweight = {weight}\n\n"));
    }
    text
}

fn up(name: &str, with_agent: bool) -> Result<()> {
    setup::run(&setup::Args::default())?;
    let weir = build()?;
    let mut lab = Lab::up(name, &weir)?;
    lab.write_config(&Node::default(), &services())?;
    if with_agent {
        let agent = lab.start_agent()?;
        let took = lab.wait_ready(&agent)?;
        println!("  the agent is ready after {:.1} s", took.as_secs_f32());
    }
    let hosts: Vec<_> = HOSTS.iter().map(|host| host.name()).collect();
    println!(
        "\nThe lab `{name}` is up: {}.\n{}\ncargo xtask lab shell client --name {name}\ncargo xtask lab down --name {name}",
        hosts.join(", "),
        hint(&lab)
    );
    Ok(())
}

fn hint(lab: &Lab) -> String {
    format!(
        "  requests, from `client`:  curl http://{v4}/    curl 'http://[{v6}]/'\n  \
         the node, from `lb`:      {weir} --socket {socket} status\n  \
         configuration:            {config}   (picked up on save)\n  \
         logs and files:           {folder}",
        v4 = vip(0, false),
        v6 = vip(0, true),
        weir = lab.weir_binary().display(),
        socket = lab.api_socket().display(),
        config = lab.config_file().display(),
        folder = lab.folder().display(),
    )
}

fn shell(name: &str, host: &str, words: &[String]) -> Result<()> {
    let host = Host::from_name(host)
        .with_context(|| format!("no host `{host}`; there are {}", HOSTS.map(|host| host.name()).join(", ")))?;
    let lab = Lab::open(name, &crate::target_dir().join("debug/weir"))?;
    let default = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
    let program = words.first().unwrap_or(&default);
    let mut command = lab.namespace(host).command(program)?;
    command.args(words.iter().skip(1)).env("WEIR_SOCKET", lab.api_socket());
    if words.is_empty() {
        println!("You are in `{}` of the lab `{name}`; leave with exit.\n{}", host.name(), hint(&lab));
        command.env("PS1", format!("{} # ", host.name()));
    }
    let error = command.exec();
    bail!("cannot start {program}: {error}");
}
