//! What really passes an interface: a packet socket that checks every frame's lengths and checksums, into tunnels.
//!
//! Needs offloads off at both ends (a frame with a partial checksum, or one that GRO merged, is rightly called wrong).
//! Refuses to know: which frames should be there.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::libc;

use super::session::within;
use crate::craft;

/// Wrong frames that are kept with their reason.
const KEPT: usize = 8;

/// What a capture saw of one kind of traffic.
#[derive(Debug, Default)]
pub struct Seen {
    /// Frames that the filter took.
    pub frames: u64,
    /// Largest of them in bytes, from the Ethernet header on.
    pub largest: usize,
    /// Sources of their outermost IP headers, at most 64.
    pub sources: BTreeSet<Vec<u8>>,
    /// What was wrong with the first wrong ones.
    pub wrong: Vec<String>,
}

/// A running capture.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Capture {
    /// Captures on `interface` inside `netns`, frames in both directions for which `filter` holds.
    pub fn start(netns: &str, interface: &str, filter: impl Fn(&[u8]) -> bool + Send + 'static) -> Self {
        let socket = within(netns, || open(interface)).unwrap_or_else(|e| panic!("capture on {interface}: {e}"));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = stop.clone();
            move || {
                let mut seen = Seen::default();
                let mut buffer = vec![0; 1 << 16];
                while let Some(len) = receive(&socket, &mut buffer, &stop) {
                    let frame = &buffer[..len];
                    if filter(frame) {
                        note(&mut seen, frame);
                    }
                }
                seen
            }
        });
        Self { stop, thread }
    }

    /// Ends the capture, after frames that have arrived are looked at.
    pub fn finish(self) -> Seen {
        thread::sleep(std::time::Duration::from_millis(100));
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn note(seen: &mut Seen, frame: &[u8]) {
    seen.frames += 1;
    seen.largest = seen.largest.max(frame.len());
    let source = match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(26..30),
        Some([0x86, 0xdd]) => frame.get(22..38),
        _ => None,
    };
    if let Some(source) = source
        && seen.sources.len() < 64
    {
        seen.sources.insert(source.to_vec());
    }
    if let Some(reason) = craft::wrong(frame)
        && seen.wrong.len() < KEPT
    {
        let head: String = frame.iter().take(80).map(|byte| format!("{byte:02x}")).collect();
        seen.wrong.push(format!("{reason}: {} bytes {head}", frame.len()));
    }
}

fn open(interface: &str) -> io::Result<OwnedFd> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: socket(2) takes three integers and returns a new descriptor or -1.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned by the kernel and is owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: all-zero bytes are a valid sockaddr_ll, which has integers and byte arrays alone.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index as i32;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a live sockaddr_ll and `len` is its size.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let timeout = nix::sys::time::TimeVal::new(0, 50_000);
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimeout, &timeout)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &(32 << 20))?;
    Ok(socket)
}

/// The next frame's length, or `None` when the capture shall end and nothing is left.
fn receive(socket: &OwnedFd, buffer: &mut [u8], stop: &AtomicBool) -> Option<usize> {
    loop {
        match nix::sys::socket::recv(socket.as_raw_fd(), buffer, nix::sys::socket::MsgFlags::empty()) {
            Ok(len) => return Some(len),
            Err(_) if stop.load(Ordering::Relaxed) => return None,
            Err(_) => {}
        }
    }
}
