//! Names as a client of the fleet's lab resolves them: a question to one DNS server after the other.
//!
//! Refuses to know: caches. Each connection asks anew, so what a client sees is what DNS says at that moment.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use domain::{
    base::{Message, MessageBuilder, Name, Rtype, iana::Rcode},
    rdata::A,
};
use tokio::{net::UdpSocket, time::timeout};

use super::topology::{DNS_SERVERS, Host};

/// How long one server may take to answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// Id of the next question.
static NEXT: AtomicU16 = AtomicU16::new(1);

/// Where DNS server `n` answers.
pub fn server(n: u8) -> SocketAddr {
    (Host::Dns(n).address(false), 53).into()
}

/// The IPv4 addresses of `name`, in the order of the answer; `turn` says which server is asked first, and the others
/// follow while there is no answer.
///
/// # Errors
/// No server answers, or the answer is an error.
pub async fn resolve(name: &str, turn: usize) -> Result<Vec<IpAddr>> {
    let mut last = Ok(Vec::new());
    for n in 0..DNS_SERVERS {
        // Few servers: the remainder fits.
        let number = 1 + ((turn + usize::from(n)) % usize::from(DNS_SERVERS)) as u8;
        last = ask(server(number), name).await;
        if last.is_ok() {
            break;
        }
    }
    last.with_context(|| format!("no DNS server answers for {name}"))
}

/// The IPv4 addresses of `name`, as one server says.
///
/// # Errors
/// It does not answer, or answers with an error.
pub async fn ask(server: SocketAddr, name: &str) -> Result<Vec<IpAddr>> {
    let name: Name<Vec<u8>> = name.parse().context("no name")?;
    let mut question = MessageBuilder::new_vec().question();
    // The socket is connected and its port is new: nobody here guesses ids.
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    question.header_mut().set_id(id);
    question.push((&name, Rtype::A)).context("the question does not fit")?;
    let socket = UdpSocket::bind("0.0.0.0:0").await.context("a socket")?;
    socket.connect(server).await.context("connecting")?;
    socket.send(&question.finish()).await.with_context(|| format!("asking {server}"))?;
    let mut buffer = [0; 1500];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await;
    let length = length.with_context(|| format!("{server} does not answer"))?.with_context(|| format!("{server}"))?;
    let answer = Message::from_octets(buffer.get(..length).unwrap_or_default()).context("no DNS message")?;
    ensure!(answer.header().id() == id, "an answer to another question");
    if answer.header().rcode() != Rcode::NOERROR {
        bail!("{server} answers {}", answer.header().rcode());
    }
    let records = answer.answer().context("no answer section")?.limit_to::<A>();
    records.map(|record| Ok(IpAddr::V4(record.context("a record")?.data().addr()))).collect()
}
