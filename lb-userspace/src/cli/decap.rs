//! `weir decap`.

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use lb_core::abi::decap::Reason;
use serde::Serialize;

use super::shell::{Shell, block_on};
use crate::decap::{self, Mode, Request, Status};

const AFTER_HELP: &str = "\
The program stays attached when the command ends, until `--detach` or a reboot; running the command again replaces it
without losing a packet. The interface's addresses are read at that moment: run it again after they change. Run it with
`nsenter --net=` rather than `ip netns exec`, which mounts a /sys of its own and takes what is pinned there with it.

Without --vip every packet passes untouched. That is the program which the peer of a veth must run when packets are sent
into that veth by XDP.";

/// `weir decap`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct DecapArgs {
    /// Interface that tunnel packets arrive on
    #[arg(short, long, value_name = "NAME")]
    interface: String,
    /// Accept packets for this VIP, an address or a prefix; may be repeated
    #[arg(long = "vip", value_name = "PREFIX", value_parser = prefix)]
    vips: Vec<IpNet>,
    /// Accept tunnel packets from this prefix; may be repeated [default: 198.18.0.0/16 and 100::/64]
    #[arg(long = "source", value_name = "PREFIX", value_parser = prefix)]
    sources: Vec<IpNet>,
    /// Where the program runs
    #[arg(long, value_enum, default_value_t = Where::Auto)]
    mode: Where,
    /// Take the program off the interface
    #[arg(long, conflicts_with_all = ["vips", "sources", "mode"])]
    detach: bool,
    /// Show mode, rules and counters of what is attached
    #[arg(long, conflicts_with_all = ["vips", "sources", "mode", "detach"])]
    status: bool,
}

/// `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Where {
    /// XDP in the driver, or nothing
    Native,
    /// XDP behind the driver
    Generic,
    /// tc ingress
    Tc,
    /// XDP in the driver, else tc ingress
    Auto,
}

#[derive(Serialize)]
struct Detached<'a> {
    interface: &'a str,
    detached: bool,
}

/// Runs `weir decap ...`.
pub fn run(shell: &Shell, args: &DecapArgs) -> anyhow::Result<()> {
    let interface = &args.interface;
    if args.detach {
        block_on(async { Ok(decap::detach(interface).await?) })?;
        return shell.show(&Detached { interface, detached: true }, |_| format!("{interface}: detached\n"));
    }
    let status = if args.status {
        block_on(async { Ok(decap::status(interface).await?) })?
    } else {
        let request = Request {
            interface: interface.clone(),
            vips: args.vips.clone(),
            sources: if args.sources.is_empty() { decap::default_sources() } else { args.sources.clone() },
            mode: match args.mode {
                Where::Native => Some(Mode::Native),
                Where::Generic => Some(Mode::Generic),
                Where::Tc => Some(Mode::Tc),
                Where::Auto => None,
            },
        };
        block_on(async { Ok(decap::attach(&request).await?) })?
    };
    if let Some(reason) = &status.native_refused {
        eprintln!("weir: tc is used, as {reason}");
    }
    if status.private_mount {
        eprintln!(
            "weir: this shell has mounts of its own (`ip netns exec`?): what is attached ends with it; use `nsenter --net=`"
        );
    }
    shell.show(&status, |status| text(status, args.status))
}

/// What is in force, and with `counters` what it did.
fn text(status: &Status, counters: bool) -> String {
    let mut out = format!("{}: attached in {} mode", status.interface, status.mode.name());
    if status.vips.is_empty() {
        out.push_str(", passes every packet (no VIP was given)\n");
    } else {
        out.push_str(", takes packets out of tunnels\n");
        out.push_str(&format!("  to    {}\n", list(&status.addresses, IpAddr::to_string)));
        out.push_str(&format!("  from  {}\n", list(&status.sources, IpNet::to_string)));
        out.push_str(&format!("  for   {}\n", list(&status.vips, IpNet::to_string)));
    }
    if counters {
        for reason in Reason::ALL {
            let packets = status.packets.get(reason.name()).copied().unwrap_or_default();
            out.push_str(&format!("  {:<18}  {packets}\n", reason.name()));
        }
    }
    out
}

fn list<T>(items: &[T], show: impl Fn(&T) -> String) -> String {
    items.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// An address or a prefix; bits behind the prefix are refused, as they are more often a mistake than meant.
fn prefix(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let net: IpNet = text.parse().map_err(|_| "expected an address or a prefix such as 192.0.2.0/24".to_owned())?;
    if net.addr() != net.network() {
        return Err(format!("bits are set behind the prefix; {} is meant?", net.trunc()));
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_strictly() {
        for (text, expected) in [
            ("192.0.2.1", Some("192.0.2.1/32")),
            ("192.0.2.0/24", Some("192.0.2.0/24")),
            ("2001:db8::1", Some("2001:db8::1/128")),
            ("2001:db8::/64", Some("2001:db8::/64")),
            ("192.0.2.1/24", None),
            ("192.0.2.0/33", None),
            ("vip", None),
        ] {
            assert_eq!(prefix(text).ok().map(|net| net.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_program_without_vips_says_that_it_passes_everything() {
        let status = Status {
            interface: "eth0".into(),
            mode: Mode::Native,
            program_id: 1,
            addresses: Vec::new(),
            sources: decap::default_sources(),
            vips: Vec::new(),
            packets: [("passed", 7)].into(),
            native_refused: None,
            private_mount: false,
        };
        assert_eq!(text(&status, false), "eth0: attached in native mode, passes every packet (no VIP was given)\n");
        assert!(text(&status, true).contains("passed              7\n"));
    }
}
