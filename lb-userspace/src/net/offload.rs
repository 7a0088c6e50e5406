//! Offloads and driver of an interface, by the ethtool ioctl.
//!
//! Reads only. Refuses to know what is good or bad: that is [`super::doctor`]. Looks at the interface in the network
//! namespace of the calling thread and needs no capability.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::netlink::Error;

/// Offloads in force. `None`: the driver does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Name of the driver, such as `veth` or `mlx5_core`.
    pub driver: Option<String>,
    /// Receive checksums (`rx`).
    pub rx_checksum: Option<bool>,
    /// Transmit checksums (`tx`): local packets leave with partial checksums.
    pub tx_checksum: Option<bool>,
    /// TCP segmentation (`tso`).
    pub tso: Option<bool>,
    /// Generic receive offload (`gro`).
    pub gro: Option<bool>,
    /// Large receive offload (`lro`), which XDP cannot be combined with.
    pub lro: Option<bool>,
}

const SIOCETHTOOL: u64 = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GRXCSUM: u32 = 0x14;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_GTSO: u32 = 0x1e;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GGRO: u32 = 0x2b;
/// Bit of large receive offload in the answer to `ETHTOOL_GFLAGS`.
const ETH_FLAG_LRO: u32 = 1 << 15;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    cmd: u32,
    data: u32,
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// Reads the offloads of `interface`.
///
/// # Errors
/// [`Error::NoInterface`] or [`Error::Socket`]; what the driver does not answer is `None`.
pub fn read(interface: &str) -> Result<Offloads, Error> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| Error::Socket { what: "datagram", source: errno.into() })?;
    if interface.is_empty() || interface.len() >= libc::IFNAMSIZ || interface.contains('\0') {
        return Err(Error::NoInterface(interface.into()));
    }
    let mut info = DriverInfo { cmd: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    // SAFETY: `DriverInfo` has the size and layout of what ETHTOOL_GDRVINFO fills.
    let driver = match unsafe { ask(&socket, interface, (&raw mut info).cast()) } {
        Ok(()) => {
            Some(String::from_utf8_lossy(info.driver.split(|&byte| byte == 0).next().unwrap_or(&[])).into_owned())
        }
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Err(Error::NoInterface(interface.into())),
        Err(_) => None,
    };
    let value = |cmd| {
        let mut value = Value { cmd, data: 0 };
        // SAFETY: all commands passed here fill a `struct ethtool_value`, which `Value` is.
        unsafe { ask(&socket, interface, (&raw mut value).cast()) }.ok().map(|()| value.data)
    };
    let flag = |cmd| value(cmd).map(|data| data != 0);
    Ok(Offloads {
        driver,
        rx_checksum: flag(ETHTOOL_GRXCSUM),
        tx_checksum: flag(ETHTOOL_GTXCSUM),
        tso: flag(ETHTOOL_GTSO),
        gro: flag(ETHTOOL_GGRO),
        lro: value(ETHTOOL_GFLAGS).map(|flags| flags & ETH_FLAG_LRO != 0),
    })
}

/// One ethtool request.
///
/// # Safety
/// `request` points to the structure that its command (the first word) reads and fills.
unsafe fn ask(socket: &OwnedFd, interface: &str, request: *mut libc::c_char) -> io::Result<()> {
    // SAFETY: all bytes zero is a valid `ifreq`: integers, and a union with a pointer that may be null.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in ifreq.ifr_name.iter_mut().zip(interface.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_data = request;
    // SAFETY: `ifreq` lives across the call and points to what the caller vouches for.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as libc::Ioctl, &raw mut ifreq) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_answers_and_nonsense_does_not() {
        let lo = read("lo").expect("lo");
        assert!(lo.tx_checksum.is_some() && lo.gro.is_some(), "{lo:?}");
        for name in ["", "wnh-none", "a-name-that-is-far-too-long"] {
            assert!(matches!(read(name), Err(Error::NoInterface(n)) if n == name));
        }
    }
}
