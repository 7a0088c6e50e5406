//! A proxy that loses published messages and nothing else.
//!
//! It reads the server's side of RESP3 just as far as it must: a push (`>`) of a `message` is one value, and is left out.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

#[derive(Default)]
struct Switch {
    dropping: AtomicBool,
    dropped: AtomicU32,
}

/// A running proxy.
pub struct Deaf {
    address: SocketAddr,
    switch: Arc<Switch>,
    task: JoinHandle<()>,
}

impl Deaf {
    pub fn start(server: SocketAddr) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let (address, switch) = (listener.local_addr()?, Arc::new(Switch::default()));
        let listener = TcpListener::from_std(listener)?;
        let switch_too = Arc::clone(&switch);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let switch = Arc::clone(&switch_too);
                connections.spawn(async move {
                    // A connection that breaks is over for both sides.
                    let _ = connection(client, server, &switch).await;
                });
            }
        });
        Ok(Self { address, switch, task })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn drop_messages(&self, dropping: bool) {
        self.switch.dropping.store(dropping, Ordering::Release);
    }

    pub fn dropped(&self) -> u32 {
        self.switch.dropped.load(Ordering::Acquire)
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(client: TcpStream, server: SocketAddr, switch: &Switch) -> std::io::Result<()> {
    let server = TcpStream::connect(server).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let requests = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(|_| ()) };
    let answers = async {
        let mut from_server = BufReader::new(from_server);
        loop {
            let mut bytes = Vec::new();
            value(&mut from_server, &mut bytes).await?;
            let message = bytes.starts_with(b">") && bytes.windows(9).take(20).any(|part| part == b"\r\nmessage");
            if message && switch.dropping.load(Ordering::Acquire) {
                switch.dropped.fetch_add(1, Ordering::AcqRel);
            } else {
                to_client.write_all(&bytes).await?;
            }
        }
    };
    tokio::select! {
        ended = requests => ended,
        ended = answers => ended,
    }
}

/// Reads one whole value behind `bytes`.
async fn value(from: &mut (impl AsyncBufRead + Unpin), bytes: &mut Vec<u8>) -> std::io::Result<()> {
    // Values that are still to come.
    let mut open: u64 = 1;
    while open > 0 {
        open -= 1;
        let start = bytes.len();
        if from.read_until(b'\n', bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(&bytes[start..]).into_owned();
        let number: i64 = line.get(1..).and_then(|text| text.trim().parse().ok()).unwrap_or(-1);
        let count = u64::try_from(number).unwrap_or(0);
        match line.as_bytes().first() {
            Some(b'$' | b'=' | b'!') if number >= 0 => {
                let mut body = vec![0; count as usize + 2];
                from.read_exact(&mut body).await?;
                bytes.extend(body);
            }
            Some(b'*' | b'>' | b'~') => open += count,
            Some(b'%' | b'|') => open += 2 * count,
            _ => {}
        }
    }
    Ok(())
}
