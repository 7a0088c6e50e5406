//! A connection of the `redis` crate without a task of its own: whoever waits for an answer drives it.
//!
//! The crate gives a connection together with the future that moves its bytes, and means that future to be spawned. Here the
//! waiting requests poll it: a request is on its socket in the moment in which it is begun, and an answer wakes those who
//! wait for one and no task in between. Invariants: the future is always polled with one waker, which wakes everybody who
//! waits, so that no one's giving up stops the others; who waits has said so before looking, so that nothing is missed.

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::future::select_ok;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, RedisError, RedisResult, Value as Raw,
    aio::MultiplexedConnection,
};
use tokio::net::{TcpStream, lookup_host};

use crate::node::BoxFuture;

/// A connection and, unless the crate spawned it, what moves its bytes.
pub struct Driven {
    connection: MultiplexedConnection,
    driver: Option<Driver>,
}

impl fmt::Debug for Driven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driven").field("is_inline", &self.driver.is_some()).finish_non_exhaustive()
    }
}

impl Driven {
    /// Connects. Over TLS and sockets of the file system the crate connects and drives by itself.
    ///
    /// # Errors
    /// What connecting and introducing oneself may end with.
    pub async fn connect(client: &Client, config: AsyncConnectionConfig) -> RedisResult<Self> {
        let info = client.get_connection_info();
        let ConnectionAddr::Tcp(host, port) = info.addr() else {
            let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            return Ok(Self { connection, driver: None });
        };
        // Whichever address of a name answers first.
        let connects: Vec<_> =
            lookup_host((host.as_str(), *port)).await?.map(|address| Box::pin(TcpStream::connect(address))).collect();
        if connects.is_empty() {
            return Err(RedisError::from((ErrorKind::Io, "the name of the server has no address")));
        }
        let (stream, _) = select_ok(connects).await?;
        stream.set_nodelay(true)?;
        let (connection, driver) =
            MultiplexedConnection::new_with_config(info.redis_settings(), stream, config).await?;
        Ok(Self { connection, driver: Some(Driver::new(Box::pin(driver))) })
    }

    /// Sends one command; it is on its way after the first poll.
    ///
    /// # Errors
    /// The connection's and the server's.
    pub async fn send(&self, cmd: &Cmd) -> RedisResult<Raw> {
        let mut connection = self.connection.clone();
        let request = pin!(connection.send_packed_command(cmd));
        match &self.driver {
            Some(driver) => driver.drive_until(request).await,
            None => request.await,
        }
    }
}

/// What moves the bytes of one connection.
struct Driver {
    /// Nothing once the connection has ended.
    future: Mutex<Option<BoxFuture<'static, ()>>>,
    waiting: Arc<Waiting>,
    waker: Waker,
    numbers: AtomicU64,
}

impl Driver {
    fn new(future: BoxFuture<'static, ()>) -> Self {
        let waiting = Arc::new(Waiting::default());
        let waker = Waker::from(Arc::clone(&waiting));
        Self { future: Mutex::new(Some(future)), waiting, waker, numbers: AtomicU64::new(0) }
    }

    /// Moves the connection on until `request` has its answer.
    async fn drive_until<T>(&self, mut request: Pin<&mut impl Future<Output = T>>) -> T {
        let place = Place { waiting: &self.waiting, number: self.numbers.fetch_add(1, Ordering::Relaxed) };
        poll_fn(|cx| {
            // The first poll hands the request to the connection; a later one finds what another has driven here.
            if let Poll::Ready(answer) = request.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            // Before the connection is looked at: what happens after that look wakes us.
            place.take(cx.waker());
            self.drive();
            request.as_mut().poll(cx)
        })
        .await
    }

    fn drive(&self) {
        // A future that panicked has ended: it is taken out before it is polled.
        let mut slot = self.future.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut future) = slot.take() else { return };
        if future.as_mut().poll(&mut Context::from_waker(&self.waker)).is_pending() {
            *slot = Some(future);
        }
    }
}

/// Who waits for answers of one connection.
#[derive(Default)]
struct Waiting(Mutex<Vec<(u64, Waker)>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Vec<(u64, Waker)>> {
        // A list of wakers is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let all = std::mem::take(&mut *self.lock());
        all.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

/// One request's place among those who wait; given up with it.
struct Place<'a> {
    waiting: &'a Waiting,
    number: u64,
}

impl Place<'_> {
    fn take(&self, waker: &Waker) {
        let mut all = self.waiting.lock();
        match all.iter_mut().find(|(number, _)| *number == self.number) {
            Some((_, known)) => known.clone_from(waker),
            None => all.push((self.number, waker.clone())),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.lock().retain(|(number, _)| *number != self.number);
    }
}
