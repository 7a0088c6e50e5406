//! A TCP proxy in front of a server that can cut the way there, or the way back only.
//!
//! Invariants: a connection lives no longer than the proxy; what is dropped is gone, as in a partition: it is not
//! delivered when the way opens again.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// Everything.
    Open = 0,
    /// Requests reach the server, its answers are lost.
    NoReplies = 1,
    /// Nothing in either direction.
    Cut = 2,
    /// Connections are closed, and new ones at once: everybody knows, and is back as soon as the way is open.
    Closed = 3,
}

/// A proxy on a port of 127.0.0.1.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    way: Arc<AtomicU8>,
    done: Arc<AtomicBool>,
}

impl Proxy {
    /// Listens, and forwards to `server`.
    ///
    /// # Errors
    /// No port.
    pub fn start(server: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (way, done) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicBool::new(false)));
        let (way_of, done_of) = (Arc::clone(&way), Arc::clone(&done));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if done_of.load(Ordering::Acquire) {
                    return;
                }
                let Ok(client) = client else { continue };
                if way_of.load(Ordering::Acquire) == Way::Closed as u8 {
                    continue;
                }
                let Ok(upstream) = TcpStream::connect_timeout(&server, Duration::from_secs(1)) else { continue };
                pump(&client, &upstream, &way_of, &done_of, Way::Cut);
                pump(&upstream, &client, &way_of, &done_of, Way::NoReplies);
            }
        });
        Ok(Self { address, way, done })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what passes.
    pub fn set(&self, way: Way) {
        self.way.store(way as u8, Ordering::Release);
    }
}

/// Forwards from `from` to `to` in a thread, and loses data while the way is `lost_from` or worse.
fn pump(from: &TcpStream, to: &TcpStream, way: &Arc<AtomicU8>, done: &Arc<AtomicBool>, lost_from: Way) {
    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { return };
    let (way, done) = (Arc::clone(way), Arc::clone(done));
    std::thread::spawn(move || {
        // The nodes' protocol is request and answer; small writes must not wait for each other.
        let _ = to.set_nodelay(true);
        let _ = from.set_read_timeout(Some(Duration::from_millis(200)));
        let mut lost = false;
        let mut buffer = [0; 16 * 1024];
        while !done.load(Ordering::Acquire) && way.load(Ordering::Acquire) != Way::Closed as u8 {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) if way.load(Ordering::Acquire) >= lost_from as u8 => lost = true,
                // A stream with a hole in it is of no use to anyone.
                Ok(_) if lost => break,
                Ok(read) => {
                    if to.write_all(&buffer[..read]).is_err() {
                        break;
                    }
                }
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
                Err(_) => break,
            }
        }
        // Whatever failed, the other side has to learn that it is over.
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        // Wakes the listener up; if that fails, the thread ends with the process.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(100));
    }
}
