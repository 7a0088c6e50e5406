//! One request to another DNS server and its answer: signed and verified, unless the peer has no key.
//!
//! Owns: sockets, time-outs and the check that the answer belongs to the request. Invariant: an answer to a signed request that
//! has no good signature is an error, whatever it says; only its response code is repeated, as a hint.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use domain::{
    base::{Message, iana::Rcode, message_builder::PushError},
    rdata::tsig::Time48,
    tsig::{ClientTransaction, Key, ValidationError},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::message::Tail;

/// Time for one exchange, connecting included.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The request is too large for a message.
    #[error("the message would be longer than DNS allows")]
    TooLarge(#[from] PushError),
    /// No contact.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    TimedOut,
    /// The answer is not signed as it should be.
    #[error("{rcode} without a good signature ({cause}): do name, algorithm, secret and clocks agree?")]
    Signature {
        /// Its response code.
        rcode: Rcode,
        /// What is wrong with it.
        cause: ValidationError,
    },
}

/// A request that waits for its answer.
pub struct Request {
    bytes: Vec<u8>,
    transaction: Option<ClientTransaction<Arc<Key>>>,
}

impl Request {
    /// Ends a request, with a signature if there is a key.
    ///
    /// # Errors
    /// [`ExchangeError::TooLarge`].
    pub fn new(mut tail: Tail, key: Option<&Arc<Key>>, now_unix_s: u64) -> Result<Self, ExchangeError> {
        tail.clear_push_limit();
        let now = Time48::from_u64(now_unix_s);
        let transaction = key.map(|key| ClientTransaction::request(Arc::clone(key), &mut tail, now)).transpose()?;
        Ok(Self { bytes: tail.finish().into_target(), transaction })
    }

    /// Sends it as a datagram and waits.
    ///
    /// # Errors
    /// [`ExchangeError`].
    pub async fn over_udp(self, peer: SocketAddr, now_unix_s: u64) -> Result<Message<Vec<u8>>, ExchangeError> {
        let exchange = async {
            let any: SocketAddr = if peer.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
            let socket = UdpSocket::bind(any).await?;
            // Connected: the kernel drops what others send.
            socket.connect(peer).await?;
            socket.send(&self.bytes).await?;
            let mut buffer = vec![0; 4096];
            loop {
                let length = socket.recv(&mut buffer).await?;
                let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                if let Some(answer) = self.verify(bytes, now_unix_s) {
                    return answer;
                }
            }
        };
        timeout(TIMEOUT, exchange).await.map_err(|_| ExchangeError::TimedOut)?
    }

    /// Sends it over a connection and waits.
    ///
    /// # Errors
    /// [`ExchangeError`].
    pub async fn over_tcp(self, peer: SocketAddr, now_unix_s: u64) -> Result<Message<Vec<u8>>, ExchangeError> {
        let exchange = async {
            let mut stream = TcpStream::connect(peer).await?;
            let length = u16::try_from(self.bytes.len()).map_err(|_| PushError::ShortBuf)?;
            stream.write_all(&[&length.to_be_bytes()[..], &self.bytes].concat()).await?;
            let length = stream.read_u16().await?;
            let mut bytes = vec![0; length.into()];
            stream.read_exact(&mut bytes).await?;
            let other = || io::Error::new(io::ErrorKind::InvalidData, "the answer belongs to another question");
            self.verify(bytes, now_unix_s).unwrap_or_else(|| Err(other().into()))
        };
        timeout(TIMEOUT, exchange).await.map_err(|_| ExchangeError::TimedOut)?
    }

    /// The answer, if `bytes` are one to this request at all.
    fn verify(&self, bytes: Vec<u8>, now_unix_s: u64) -> Option<Result<Message<Vec<u8>>, ExchangeError>> {
        let mut answer = Message::from_octets(bytes).ok()?;
        let asked = Message::from_octets(self.bytes.as_slice()).ok()?;
        let header = answer.header();
        if !header.qr() || header.id() != asked.header().id() || header.opcode() != asked.header().opcode() {
            return None;
        }
        let verified = self.transaction.as_ref().map(|t| t.answer(&mut answer, Time48::from_u64(now_unix_s)));
        Some(match verified {
            None | Some(Ok(())) => Ok(answer),
            Some(Err(cause)) => Err(ExchangeError::Signature { rcode: header.rcode(), cause }),
        })
    }
}
