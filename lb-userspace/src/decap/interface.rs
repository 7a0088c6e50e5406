//! What netlink says about one interface: index, addresses, and the XDP program that it runs.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use netlink_packet_route::{
    address::AddressAttribute,
    link::{LinkAttribute, LinkXdp, XdpAttached},
};
use rtnetlink::{Handle, new_connection};

use super::{DecapError, Mode};

/// An interface of the namespace that the calling thread is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub name: String,
    pub index: u32,
    pub addresses: Vec<IpAddr>,
    /// Mode and id of the XDP program that is attached.
    pub xdp: Option<(Mode, u32)>,
}

/// Asks netlink.
pub(super) async fn read(name: &str) -> Result<Interface, DecapError> {
    let (connection, handle, _) = new_connection().map_err(|source| DecapError::NetlinkSocket { source })?;
    let connection = tokio::spawn(connection);
    let result = query(&handle, name).await;
    connection.abort();
    result
}

async fn query(handle: &Handle, name: &str) -> Result<Interface, DecapError> {
    let failed = |source| DecapError::Netlink { interface: name.to_owned(), source };
    let link = match handle.link().get().match_name(name).execute().try_next().await {
        Ok(Some(link)) => link,
        Ok(None) => return Err(DecapError::NoInterface { interface: name.to_owned() }),
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::ENODEV => {
            return Err(DecapError::NoInterface { interface: name.to_owned() });
        }
        Err(source) => return Err(failed(source)),
    };
    let index = link.header.index;
    let xdp = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(parts) => attached(parts),
        _ => None,
    });

    let mut addresses = Vec::new();
    let mut messages = handle.address().get().set_link_index_filter(index).execute();
    while let Some(message) = messages.try_next().await.map_err(failed)? {
        // Without strict checking the kernel ignores the filter.
        if message.header.index != index {
            continue;
        }
        // `IFA_LOCAL` is the address itself, `IFA_ADDRESS` the peer's on a point-to-point link and the only one in IPv6.
        let local = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        addresses.extend(local.or(address));
    }
    addresses.sort();
    addresses.dedup();
    Ok(Interface { name: name.to_owned(), index, addresses, xdp })
}

fn attached(parts: &[LinkXdp]) -> Option<(Mode, u32)> {
    let mode = parts.iter().find_map(|part| match part {
        LinkXdp::Attached(XdpAttached::Driver | XdpAttached::Hardware) => Some(Mode::Native),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(Mode::Generic),
        _ => None,
    })?;
    let id = parts.iter().find_map(|part| match part {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    })?;
    Some((mode, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_and_id_are_read_together() {
        let parts = [LinkXdp::Attached(XdpAttached::Driver), LinkXdp::ProgId(7)];
        assert_eq!(attached(&parts), Some((Mode::Native, 7)));
        let parts = [LinkXdp::Attached(XdpAttached::SocketBuffer), LinkXdp::ProgId(8)];
        assert_eq!(attached(&parts), Some((Mode::Generic, 8)));
        assert_eq!(attached(&[LinkXdp::Attached(XdpAttached::None)]), None);
    }
}
