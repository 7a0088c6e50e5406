//! A Redis server as a lock node, through the `redis` crate.
//!
//! Owns: one multiplexed connection at a time, made anew when it breaks or stays silent, and what was learnt about the
//! server when it was made. Nothing reconnects by itself behind our back: each connection asks the server's set-up again.
//! Invariants: a request goes out on the connection that carried the requests before it, so a release follows the
//! acquisition that timed out; at most [`UNANSWERED_MAX`] requests wait on one connection; passwords stay in the client.

mod driven;
mod error;
mod link;
mod script;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::Shared};
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Value as Raw, io::tcp::TcpSettings};

use tokio::sync::watch;

use super::{BoxFuture, FenceGap, Node};
use crate::{
    command::{Command, Reply},
    error::{LockError, NodeError},
};
use link::Link;
use script::Keys;

/// Most requests that wait for an answer on one connection.
pub const UNANSWERED_MAX: u64 = 64;
/// A connection on which nothing was heard for so long is replaced.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// The first pause before a subscription is tried again, and the longest: each is up to twice the one before.
const LISTEN_PAUSE: Duration = Duration::from_millis(100);
const LISTEN_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Most steps of a walk over the keys.
const SCAN_STEPS_MAX: usize = 10_000;

/// How to reach Redis nodes.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// Keys begin with this and a colon.
    pub prefix: String,
    /// Time for a new connection; who waits for it may give up earlier, and it is still made.
    pub connect_timeout: Duration,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self { prefix: "weir".to_owned(), connect_timeout: Duration::from_secs(1) }
    }
}

/// A Redis node. Clones share the connection.
#[derive(Clone, Debug)]
pub struct RedisNode {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    client: Client,
    options: RedisOptions,
    keys: Keys,
    state: Mutex<State>,
}

type Connecting = Shared<BoxFuture<'static, Result<Arc<Link>, NodeError>>>;

#[derive(Debug, Default)]
struct State {
    link: Option<Arc<Link>>,
    connecting: Option<Connecting>,
}

impl RedisNode {
    /// The node at `url`, known as `name`, or as `host:port` without one. Connects at the first request.
    ///
    /// # Errors
    /// The URL is not one of Redis; the message does not repeat it, for it may hold a password.
    pub fn new(url: &str, name: Option<&str>, options: &RedisOptions) -> Result<Self, LockError> {
        let wrong = |what: &str| LockError::Config(format!("a lock node's URL is wrong: {what}"));
        let info =
            url.into_connection_info().map_err(|_| wrong("expected redis://[USER:PASSWORD@]HOST[:PORT][/DB]"))?;
        Self::of(info, name, options)
    }

    fn of(info: ConnectionInfo, name: Option<&str>, options: &RedisOptions) -> Result<Self, LockError> {
        let name = name.map_or_else(|| info.addr().to_string(), str::to_owned);
        // A peer that vanished without a word is noticed by the kernel too.
        let tcp = TcpSettings::default().set_nodelay(true);
        let client = Client::open(info.set_tcp_settings(tcp))
            .map_err(|_| LockError::Config(format!("lock node {name}: the Redis client does not take its URL")))?;
        let keys = Keys::new(&options.prefix);
        let inner = Inner { name, client, options: options.clone(), keys, state: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The node at `address` (`host:port`), reached like `template`: same user, password and database.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn at(template: &str, address: &str, name: &str, options: &RedisOptions) -> Result<Self, LockError> {
        let wrong = || LockError::Config(format!("lock node {name} is at {address:?}, which is not HOST:PORT"));
        let info = template.into_connection_info().map_err(|_| wrong())?;
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let info = ConnectionAddr::Tcp(host, port)
            .into_connection_info()
            .map_err(|_| wrong())?
            .set_redis_settings(info.redis_settings().clone());
        Self::of(info, Some(name), options)
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.inner.client.get_connection_info().addr().to_string()
    }

    /// A client for the same server.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }
}

impl Inner {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Every change of the state is one assignment: a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection in use, or the one that is being made.
    async fn link(self: &Arc<Self>) -> Result<Arc<Link>, NodeError> {
        let connecting = {
            let mut state = self.state();
            if let Some(link) = state.link.clone() {
                if link.silence() > SILENCE_MAX && state.connecting.is_none() {
                    // The old one stays until the new one answers.
                    state.connecting = Some(self.connect());
                }
                return Ok(link);
            }
            state.connecting.get_or_insert_with(|| self.connect()).clone()
        };
        connecting.await
    }

    /// Connects in a task of its own: whoever gives up waiting does not stop it.
    fn connect(self: &Arc<Self>) -> Connecting {
        let inner = Arc::clone(self);
        let task = tokio::spawn(async move {
            let link = Link::open(&inner.name, &inner.client, inner.options.connect_timeout).await.map(Arc::new);
            let mut state = inner.state();
            state.connecting = None;
            if let Ok(link) = &link {
                state.link = Some(Arc::clone(link));
            }
            link
        });
        let joined = task.map(|joined| joined.unwrap_or_else(|e| Err(NodeError::Unreachable(e.to_string()))));
        joined.boxed().shared()
    }

    fn forget(&self, link: &Arc<Link>) {
        let mut state = self.state();
        if state.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            state.link = None;
        }
    }

    async fn call(self: Arc<Self>, command: Arc<Command>) -> Result<Reply, NodeError> {
        // Twice, for the connection may have died since it was last used.
        let mut last = NodeError::Unreachable("connection closed".into());
        for _ in 0..2 {
            let link = self.link().await?;
            match self.ask(&link, &command).await {
                Ok(reply) => return Ok(reply),
                Err(error @ NodeError::Unreachable(_)) => {
                    self.forget(&link);
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn ask(&self, link: &Link, command: &Command) -> Result<Reply, NodeError> {
        if let Command::Names { limit } = command {
            return self.names(link, *limit).await.map(Reply::Names);
        }
        if let Command::Release { name, value, ticket: None } = command
            && link.has_delex
        {
            let mut cmd = redis::cmd("DELEX");
            cmd.arg(self.keys.kind(script::WRITER) + name).arg("IFEQ").arg(value.as_str());
            if let Ok(Raw::Int(1)) = link.send(&cmd).await? {
                return Ok(Reply::Done);
            }
            // A reader's lock, or gone: the function tells which.
        }
        let cmd = script::encode(command, &self.keys)?;
        let answer = match link.send(&cmd).await? {
            // Every connection begins with the library: somebody took it away since.
            Err(error) if error::is_no_function(&error) => {
                match link.send(&script::load()).await? {
                    Err(error) if !error::is_loaded(&error) => return Err(error::node_error(&error)),
                    _ => {}
                }
                // Sent again, a request for a vote could come after the release of the attempt that it belongs to, and
                // nobody would give back what it takes. The next attempt finds the library.
                if matches!(command, Command::Acquire { .. }) { Err(error) } else { link.send(&cmd).await? }
            }
            answer => answer,
        };
        script::decode(answer.map_err(|error| error::node_error(&error))?)
    }

    /// Names of locks, by a walk over the keys in bounded steps: the server is never kept busy for long.
    async fn names(&self, link: &Link, limit: usize) -> Result<Vec<String>, NodeError> {
        let mut names = std::collections::BTreeSet::new();
        for kind in script::LIVE_KINDS {
            let prefix = self.keys.kind(kind);
            let pattern = format!("{}*", glob_escaped(&prefix));
            let mut cursor = "0".to_owned();
            for _ in 0..SCAN_STEPS_MAX {
                let mut cmd = redis::cmd("SCAN");
                cmd.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1_000);
                let answer = link.send(&cmd).await?.map_err(|error| error::node_error(&error))?;
                let Raw::Array(mut parts) = answer else { return Err(NodeError::Protocol("SCAN".into())) };
                let (keys, next) = (parts.pop(), parts.pop().and_then(script::text));
                if let Some(Raw::Array(keys)) = keys {
                    let found = keys.into_iter().filter_map(script::text);
                    names.extend(found.filter_map(|key| key.strip_prefix(&prefix).map(str::to_owned)));
                }
                cursor = next.unwrap_or_default();
                if cursor == "0" || cursor.is_empty() {
                    break;
                }
            }
        }
        Ok(names.into_iter().take(limit).collect())
    }

    /// Subscribes again and again; each time the server has confirmed it, `heard` is told.
    async fn listen(self: Arc<Self>, heard: Arc<watch::Sender<u64>>) {
        let mut pause = LISTEN_PAUSE;
        loop {
            let subscribe = async {
                let mut pubsub = self.client.get_async_pubsub().await?;
                pubsub.subscribe(self.keys.channel()).await?;
                Ok::<_, redis::RedisError>(pubsub)
            };
            // Without a subscription nothing is heard; the caller also looks on a timer.
            if let Ok(Ok(mut pubsub)) = tokio::time::timeout(self.options.connect_timeout, subscribe).await {
                pause = LISTEN_PAUSE;
                heard.send_modify(|_| {});
                let mut messages = pubsub.on_message();
                while let Some(message) = messages.next().await {
                    let epoch = message.get_payload().unwrap_or(0);
                    heard.send_modify(|known| *known = (*known).max(epoch));
                }
            }
            tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
            pause = (pause * 2).min(LISTEN_PAUSE_MAX);
        }
    }
}

/// `text` with the characters escaped that SCAN's patterns know.
fn glob_escaped(text: &str) -> String {
    text.chars().flat_map(|c| if "*?[]\\^-".contains(c) { vec!['\\', c] } else { vec![c] }).collect()
}

impl Node for RedisNode {
    fn name(&self) -> &str {
        &self.inner.name
    }

    fn call(&self, command: Arc<Command>) -> BoxFuture<'static, Result<Reply, NodeError>> {
        Box::pin(Arc::clone(&self.inner).call(command))
    }

    fn fence_support(&self) -> BoxFuture<'static, Result<(), FenceGap>> {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let link = inner.link().await.map_err(FenceGap::Unknown)?;
            link.fence.clone().map_err(FenceGap::Setup)
        })
    }

    fn listen(&self, heard: Arc<watch::Sender<u64>>) -> BoxFuture<'static, ()> {
        Box::pin(Arc::clone(&self.inner).listen(heard))
    }
}
