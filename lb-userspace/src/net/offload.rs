//! Offloads and driver of an interface, by the ethtool ioctl.
//!
//! Every feature that `ethtool -k` lists is asked for by its name in the kernel, such as `rx-gro-hw`. Reads only. Refuses to know what is good or bad: that is [`super::doctor`]. Looks at the interface in the network
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
    /// Receive offload of the hardware that keeps segment boundaries (`rx-gro-hw`), as bad for XDP as `lro`.
    pub gro_hw: Option<bool>,
    /// Removal of VLAN tags on receipt (`rx-vlan-offload`): XDP does not see the tag.
    pub rx_vlan: Option<bool>,
}

const SIOCETHTOOL: u64 = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GRXCSUM: u32 = 0x14;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_GTSO: u32 = 0x1e;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
/// Bit of large receive offload in the answer to `ETHTOOL_GFLAGS`.
const ETH_FLAG_LRO: u32 = 1 << 15;
/// The set of feature names.
const ETH_SS_FEATURES: u32 = 4;
/// Bytes of a name in a set.
const ETH_GSTRING_LEN: usize = 32;
/// Features that are read, at most; Linux 6.18 has 63.
const FEATURES_MAX: usize = 256;

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

/// `struct ethtool_sset_info` that asks for one set.
#[repr(C, align(8))]
struct SetInfo {
    cmd: u32,
    reserved: u32,
    /// Bit `n` asks for the size of set `n`; the kernel clears it if there is no such set.
    sets: u64,
    len: u32,
}

/// `struct ethtool_gstrings` with room for [`FEATURES_MAX`] names.
#[repr(C)]
struct Names {
    cmd: u32,
    set: u32,
    len: u32,
    names: [[u8; ETH_GSTRING_LEN]; FEATURES_MAX],
}

/// `struct ethtool_get_features_block`, 32 features.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FeatureBlock {
    available: u32,
    requested: u32,
    active: u32,
    never_changed: u32,
}

/// `struct ethtool_gfeatures` with room for [`FEATURES_MAX`] features. The kernel fills at most `size` blocks.
#[repr(C)]
struct Features {
    cmd: u32,
    size: u32,
    blocks: [FeatureBlock; FEATURES_MAX / 32],
}

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
    let features = features(&socket, interface);
    let feature = |name: &str| features.iter().find(|(known, _)| known == name).map(|(_, active)| *active);
    Ok(Offloads {
        driver,
        rx_checksum: flag(ETHTOOL_GRXCSUM),
        tx_checksum: flag(ETHTOOL_GTXCSUM),
        tso: flag(ETHTOOL_GTSO),
        gro: flag(ETHTOOL_GGRO),
        lro: value(ETHTOOL_GFLAGS).map(|flags| flags & ETH_FLAG_LRO != 0),
        gro_hw: feature("rx-gro-hw"),
        rx_vlan: feature("rx-vlan-hw-parse"),
    })
}

/// Features by their names in the kernel, and whether they are active. Empty if the kernel does not tell.
fn features(socket: &OwnedFd, interface: &str) -> Vec<(String, bool)> {
    let mut info = SetInfo { cmd: ETHTOOL_GSSET_INFO, reserved: 0, sets: 1 << ETH_SS_FEATURES, len: 0 };
    // SAFETY: `SetInfo` has the layout of `struct ethtool_sset_info` with one number, and one set is asked for.
    let counted = unsafe { ask(socket, interface, (&raw mut info).cast()) };
    // The kernel writes as many names as it has, whatever is asked for: the room must be there before.
    let len = info.len as usize;
    if counted.is_err() || info.sets == 0 || len > FEATURES_MAX {
        return Vec::new();
    }
    let mut names =
        Box::new(Names { cmd: ETHTOOL_GSTRINGS, set: ETH_SS_FEATURES, len: info.len, names: [[0; 32]; FEATURES_MAX] });
    // SAFETY: the kernel fills as many names as it has just counted, for which `Names` has room.
    let named = unsafe { ask(socket, interface, (&raw mut *names).cast()) };
    let blocks = [FeatureBlock::default(); FEATURES_MAX / 32];
    let mut features = Features { cmd: ETHTOOL_GFEATURES, size: blocks.len() as u32, blocks };
    // SAFETY: the kernel fills at most `size` blocks, which is how many `Features` has.
    let read = unsafe { ask(socket, interface, (&raw mut features).cast()) };
    if named.is_err() || read.is_err() {
        return Vec::new();
    }
    let name = |bytes: &[u8; ETH_GSTRING_LEN]| {
        String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or(&[])).into_owned()
    };
    let bits = features.blocks.iter().flat_map(|block| (0..32).map(|bit| block.active >> bit & 1 == 1));
    names.names.iter().take(len).map(name).zip(bits).collect()
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

    fn socket_for_tests() -> OwnedFd {
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).expect("socket")
    }

    #[test]
    fn loopback_answers_and_nonsense_does_not() {
        let lo = read("lo").expect("lo");
        assert!(lo.tx_checksum.is_some() && lo.gro.is_some(), "{lo:?}");
        let features = features(&socket_for_tests(), "lo");
        let of = |name: &str| features.iter().find(|(known, _)| known == name).map(|(_, active)| *active);
        assert_eq!((lo.gro_hw, lo.rx_vlan), (Some(false), Some(false)), "{features:?}");
        assert_eq!((of("rx-gro"), of("loopback")), (lo.gro, Some(true)), "names and bits agree");
        for name in ["", "wnh-none", "a-name-that-is-far-too-long"] {
            assert!(matches!(read(name), Err(Error::NoInterface(n)) if n == name));
        }
    }
}
