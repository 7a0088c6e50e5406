//! Queries and answers over TCP (RFC 7766).
//!
//! Invariants: connections are bounded in number, in all and for each address; each has a time to be silent, to finish a
//! query and to take an answer; the more connections there are, the shorter the silence may be.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{Shared, admit::Admission};
use crate::dns::answer::{Outcome, Transport};

/// Longest query that is read, in bytes.
const QUERY_BYTES_MAX: u16 = 4096;
/// Time from the first byte of a query to its last.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the client to take one message.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence that is borne once half of the connections are taken.
const CROWDED_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest life of a connection: a client that needs more opens another one.
const LIFE: Duration = Duration::from_secs(300);
/// Pause after an accept that failed, as when descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the task is dropped; connections are dropped with it.
pub(super) async fn serve(listener: TcpListener, admission: Admission, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        // One over the limit is closed at once: waiting in the queue would keep everybody waiting.
        let Some(place) = admission.enter(client.ip()) else {
            shared.metrics.dropped("connections");
            continue;
        };
        shared.metrics.connections(admission.open());
        let (admission, shared) = (admission.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            let _ = timeout(LIFE, connection(stream, client.ip(), &admission, &shared)).await;
            drop(place);
            shared.metrics.connections(admission.open());
        });
    }
}

async fn connection(mut stream: TcpStream, client: IpAddr, admission: &Admission, shared: &Shared) {
    // Answers are whole messages: waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    let mut query = Vec::new();
    loop {
        let idle = if admission.is_crowded() {
            CROWDED_TIMEOUT.min(shared.limits.tcp_idle_timeout)
        } else {
            shared.limits.tcp_idle_timeout
        };
        // The client is silent, has closed, or sends nonsense: in each case the connection ends.
        let Ok(Ok(length)) = timeout(idle, stream.read_u16()).await else { return };
        if length > QUERY_BYTES_MAX {
            return shared.metrics.dropped("unanswerable");
        }
        query.resize(usize::from(length), 0);
        let Ok(Ok(_)) = timeout(QUERY_TIMEOUT, stream.read_exact(&mut query)).await else { return };
        let answer = match shared.answer(&query, client, Transport::Tcp) {
            Outcome::Answer(answer) => answer,
            Outcome::Silence => return shared.metrics.dropped("unanswerable"),
        };
        for message in &answer.messages {
            let Ok(length) = u16::try_from(message.len()) else { return };
            let framed = [&length.to_be_bytes()[..], message].concat();
            let Ok(Ok(())) = timeout(WRITE_TIMEOUT, stream.write_all(&framed)).await else { return };
        }
        shared.metrics.answered("tcp", &answer.rcode.to_string());
        if let Some(transfer) = answer.transferred {
            let kind = transfer.kind();
            shared.metrics.transferred(kind);
            tracing::info!(%client, serial = transfer.serial, "{kind} served");
        }
    }
}
