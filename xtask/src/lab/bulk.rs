//! Transfers that fill segments: 10 MB down, 10 MB up, and datagrams of any size, each byte compared.
//!
//! Runs on a thread that is in the client's namespace, as [`super::client`] does.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::UdpSocket, time::timeout};

use super::{
    client::{connect, runtime},
    server::{BIG_BYTES, big_byte},
};

/// How long 10 MB may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the echo of a datagram may take.
const ECHO_TIMEOUT: Duration = Duration::from_secs(2);

/// Fetches `/big` and compares each byte; the number of bytes.
pub fn download(target: SocketAddr) -> Result<usize> {
    runtime()?.block_on(async {
        timeout(TRANSFER_TIMEOUT, async {
            let stream = connect(None, target).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let request = Request::get("/big").header("host", "lab").body(Empty::<Bytes>::new())?;
            let response = sender.send_request(request).await?;
            ensure!(response.status() == 200, "status {}", response.status());
            let mut body = response.into_body();
            let mut at = 0;
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame?.into_data() else { continue };
                if let Some(wrong) = data.iter().enumerate().position(|(i, byte)| *byte != big_byte(at + i)) {
                    bail!("byte {} of the download is wrong", at + wrong);
                }
                at += data.len();
            }
            ensure!(at == BIG_BYTES, "the download has {at} bytes of {BIG_BYTES}");
            Ok(at)
        })
        .await
        .context("the download stalled")?
    })
}

/// Puts 10 MB to `/upload/NAME`. The caller compares what arrived with [`uploaded`].
pub fn upload(target: SocketAddr, name: &str) -> Result<()> {
    let body: Vec<u8> = (0..BIG_BYTES).map(big_byte).collect();
    runtime()?.block_on(async {
        timeout(TRANSFER_TIMEOUT, async {
            let stream = connect(None, target).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let request =
                Request::put(format!("/upload/{name}")).header("host", "lab").body(Full::new(Bytes::from(body)))?;
            let response = sender.send_request(request).await?;
            ensure!(response.status().is_success(), "status {}", response.status());
            Ok(())
        })
        .await
        .context("the upload stalled")?
    })
}

/// Whether the file `name` arrived whole at the backend whose nginx has this folder.
pub fn uploaded(nginx_folder: &Path, name: &str) -> Result<bool> {
    let path = nginx_folder.join("files/upload").join(name);
    let Ok(bytes) = std::fs::read(&path) else { return Ok(false) };
    ensure!(bytes.len() == BIG_BYTES, "{} has {} bytes of {BIG_BYTES}", path.display(), bytes.len());
    if let Some(wrong) = bytes.iter().enumerate().position(|(at, byte)| *byte != big_byte(at)) {
        bail!("byte {wrong} of {} is wrong", path.display());
    }
    Ok(true)
}

/// Sends `count` datagrams of `size` bytes over one flow, one after the other, and compares each echo; bytes each way.
pub fn echo(source: IpAddr, target: SocketAddr, size: usize, count: usize) -> Result<usize> {
    runtime()?.block_on(async {
        let socket = UdpSocket::bind(SocketAddr::new(source, 0)).await?;
        socket.connect(target).await?;
        let mut buffer = vec![0; size + 1];
        for number in 0..count {
            let datagram: Vec<u8> = (0..size).map(|at| big_byte(number * size + at)).collect();
            socket.send(&datagram).await.with_context(|| format!("datagram {number}"))?;
            let length = timeout(ECHO_TIMEOUT, socket.recv(&mut buffer))
                .await
                .with_context(|| format!("datagram {number} of {size} bytes: no echo"))??;
            ensure!(buffer.get(..length) == Some(&datagram[..]), "the echo of datagram {number} differs");
        }
        Ok(size * count)
    })
}
