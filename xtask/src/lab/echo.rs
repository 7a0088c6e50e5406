//! The datagram server of a backend: answers `who` with its name, anything else with itself.
//!
//! One socket per address, so that an answer leaves from the address that was asked (a VIP).

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use tokio::net::UdpSocket;

/// What is asked to learn a server's name.
pub const WHO: &[u8] = b"who";
/// Room for the largest datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Arguments of the hidden `lab-echo` command.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Answer to `who`
    #[arg(long)]
    name: String,
    /// Addresses to listen on
    #[arg(long = "address")]
    addresses: Vec<IpAddr>,
    /// Ports to listen on, at each address
    #[arg(long = "port")]
    ports: Vec<u16>,
    /// File that is made once every socket is bound
    #[arg(long)]
    ready: PathBuf,
}

/// Serves until it is killed.
pub fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut servers = tokio::task::JoinSet::new();
        for &address in &args.addresses {
            for &port in &args.ports {
                let at = SocketAddr::new(address, port);
                let socket = UdpSocket::bind(at).await.with_context(|| format!("binding {at}"))?;
                servers.spawn(serve(socket, args.name.clone()));
            }
        }
        std::fs::write(&args.ready, "").with_context(|| args.ready.display().to_string())?;
        while let Some(ended) = servers.join_next().await {
            ended??;
        }
        Ok(())
    })
}

async fn serve(socket: UdpSocket, name: String) -> Result<()> {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An ICMP error about an earlier answer shows up here; the next datagram is none the worse.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(datagram) = buffer.get(..length) else { continue };
        let answer = if datagram == WHO { name.as_bytes() } else { datagram };
        socket.send_to(answer, from).await.ok();
    }
}
