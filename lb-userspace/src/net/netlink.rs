//! Connections to rtnetlink and the errors that they end with.
//!
//! Refuses to know what is asked. Invariant: a connection's driver task ends when its [`Connection`] is dropped.

use std::io;

use futures_util::{Stream, StreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    sys::AsyncSocket,
};
use tokio::task::JoinHandle;

/// Why the kernel's network configuration could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be opened.
    #[error("cannot open a {what} socket: {source}")]
    Socket {
        /// Kind of socket.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    Refused {
        /// What was asked.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection ended or the answer made no sense.
    #[error("cannot {what}: {detail}")]
    Protocol {
        /// What was asked.
        what: String,
        /// What happened instead.
        detail: String,
    },
    /// There is no such interface.
    #[error("interface `{0}` does not exist in this network namespace; `ip link` lists those that do")]
    NoInterface(String),
    /// The interface has no Ethernet address.
    #[error("interface `{0}` is not an Ethernet interface")]
    NotEthernet(String),
    /// The background task is gone.
    #[error("the task behind it has ended")]
    Ended,
}

impl Error {
    /// Puts what was asked to what rtnetlink says.
    pub(super) fn from_rtnetlink(what: impl Into<String>, error: &rtnetlink::Error) -> Self {
        match errno(error) {
            Some(errno) => Self::Refused { what: what.into(), source: io::Error::from_raw_os_error(errno) },
            None => Self::Protocol { what: what.into(), detail: error.to_string() },
        }
    }
}

/// The positive errno of a refusal.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| code.get().abs()),
        _ => None,
    }
}

/// The first answer of a request that has one.
pub(super) async fn first<T>(
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Option<Result<T, rtnetlink::Error>> {
    std::pin::pin!(answers).next().await
}

/// Receive buffer of a socket that follows events: about 8,000 changes of neighbours between two turns of the loop.
const EVENT_BUFFER_BYTES: usize = 4 << 20;

/// What a notification socket tells.
#[derive(Debug)]
pub(super) enum Notice {
    /// Something changed.
    Message(RouteNetlinkMessage),
    /// Notifications were lost: read everything again.
    Overrun,
}

/// A connection with its driver.
pub(super) struct Connection {
    pub(super) handle: Handle,
    notices: futures_util::stream::BoxStream<'static, Notice>,
    driver: JoinHandle<()>,
}

impl Connection {
    /// Opens a connection that follows `groups`, in the network namespace of the calling thread.
    pub(super) fn open(groups: &[MulticastGroup]) -> Result<Self, Error> {
        let socket = |source| Error::Socket { what: "netlink", source };
        let (mut connection, handle, messages) = rtnetlink::new_multicast_connection(groups).map_err(socket)?;
        if !groups.is_empty() {
            // The kernel grants at most net.core.rmem_max; less room only means an earlier resync.
            let _ = connection.socket_mut().socket_mut().set_rx_buf_sz(EVENT_BUFFER_BYTES);
        }
        let notices = messages
            .filter_map(|(message, _): (NetlinkMessage<RouteNetlinkMessage>, _)| async move {
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => Some(Notice::Message(message)),
                    NetlinkPayload::Overrun(_) => Some(Notice::Overrun),
                    _ => None,
                }
            })
            .boxed();
        Ok(Self { handle, notices, driver: tokio::spawn(connection) })
    }

    /// The next notification; `None` once the connection has ended.
    pub(super) async fn notice(&mut self) -> Option<Notice> {
        self.notices.next().await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
