//! One connection to a Redis server, and finding the server.
//!
//! Owns: connecting, what is asked of a server before it is used, and whether the connection is known to be broken.
//! Nothing reconnects behind our back: a link that broke stays broken, and who needs another one makes it.
//!
//! Invariants: a server is used only after it said that it is a master, with a schema that is known; each call ends in
//! bounded time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, ErrorKind, FromRedisValue, PushInfo, PushKind, RedisError, ServerErrorKind, Value,
    aio::MultiplexedConnection,
};

use super::config::{Address, RedisConfig, Servers, client};
use crate::store::{access::StoreError, object::SCHEMA_VERSION};

/// Requests on their way at a time; the next one waits.
const CONCURRENCY_MAX: usize = 128;

/// How long an answer may be owed to somebody who then gives up on it.
const OWED_MAX: Duration = Duration::from_millis(500);

/// The scripts, in the order of [`Script`].
const SCRIPTS: [&str; 4] =
    [include_str!("commit.lua"), include_str!("since.lua"), include_str!("put.lua"), include_str!("list.lua")];

/// A script on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// Writes objects.
    Commit,
    /// Reads changes.
    Since,
    /// Writes a record.
    Put,
    /// Lists records.
    List,
}

/// A connection.
#[derive(Debug)]
pub struct Link {
    connection: MultiplexedConnection,
    /// Where it leads.
    pub address: Address,
    dead: Arc<AtomicBool>,
    digests: Vec<String>,
}

/// Takes what the server sends unasked.
pub type Pushed = Box<dyn Fn(PushInfo) + Send + Sync>;

impl Link {
    /// Finds the server, connects, and asks what it is.
    pub async fn open(config: &RedisConfig, pushed: Option<Pushed>) -> Result<Self, StoreError> {
        let address = master(config).await?;
        let dead = Arc::new(AtomicBool::new(false));
        let dead_too = Arc::clone(&dead);
        let client = config.server(&address)?;
        let connection = connect(config, client, move |push| {
            if push.kind == PushKind::Disconnection {
                dead_too.store(true, Ordering::Release);
            }
            if let Some(pushed) = &pushed {
                pushed(push);
            }
        })
        .await?;
        let mut link = Self { connection, address, dead, digests: Vec::new() };
        let known = tokio::time::timeout(config.connect_timeout + config.answer_timeout, link.learn(config));
        known.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the server does not say what it is".into())))?;
        Ok(link)
    }

    async fn learn(&mut self, config: &RedisConfig) -> Result<(), StoreError> {
        let role: Vec<Value> = self.ask(redis::cmd("ROLE")).await?;
        match role.first().cloned().and_then(text).as_deref() {
            Some("master") => {}
            role => {
                let (host, port) = &self.address;
                let role = role.unwrap_or("nothing it says");
                return Err(StoreError::Unavailable(format!("the server at {host}:{port} is a {role}, no master")));
            }
        }
        let mut schema = redis::cmd("HGET");
        schema.arg(format!("{}:meta", config.prefix)).arg("schema");
        check_schema(self.ask::<Option<String>>(schema).await?)?;
        for script in SCRIPTS {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(script);
            self.digests.push(self.ask(load).await?);
        }
        Ok(())
    }

    /// Whether it is still a master.
    pub async fn is_master(&self) -> Result<bool, StoreError> {
        let role: Vec<Value> = self.ask(redis::cmd("ROLE")).await?;
        Ok(role.first().cloned().and_then(text).as_deref() == Some("master"))
    }

    /// A call of `script` with its keys; arguments are for the caller to add.
    pub fn script(&self, script: Script, keys: &[&str]) -> redis::Cmd {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(self.digests.get(script as usize).map_or("", String::as_str)).arg(keys.len()).arg(keys);
        cmd
    }

    /// Whether it is known to be broken.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Never to be used again.
    pub fn condemn(&self) {
        self.dead.store(true, Ordering::Release);
    }

    /// Sends one command. Bounded by its caller.
    pub async fn ask<T: FromRedisValue>(&self, cmd: redis::Cmd) -> Result<T, StoreError> {
        cmd.query_async(&mut self.connection.clone()).await.map_err(|e| self.told(&e))
    }

    /// Sends several commands at once. Bounded by its caller.
    pub async fn ask_all<T: FromRedisValue>(&self, pipe: redis::Pipeline) -> Result<T, StoreError> {
        pipe.query_async(&mut self.connection.clone()).await.map_err(|e| self.told(&e))
    }

    /// Subscribes, and waits until the server has.
    pub async fn subscribe(&self, channels: &[String]) -> Result<(), StoreError> {
        let mut connection = self.connection.clone();
        connection.subscribe(channels).await.map_err(|e| self.told(&e))?;
        // Answers come in order: what is answered after the subscription was sent has seen it.
        self.ask::<Value>(redis::cmd("PING")).await.map(|_| ())
    }

    fn told(&self, error: &RedisError) -> StoreError {
        let error = store_error(error);
        if matches!(error, StoreError::Unavailable(_)) {
            self.condemn();
        }
        error
    }
}

async fn connect(
    config: &RedisConfig,
    client: redis::Client,
    pushed: impl Fn(PushInfo) + Send + Sync + 'static,
) -> Result<MultiplexedConnection, StoreError> {
    // The crate's own time-outs are set by hand: an answer with all objects takes longer than its default.
    let options = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(config.connect_timeout))
        .set_response_timeout(None)
        .set_concurrency_limit(CONCURRENCY_MAX)
        .set_push_sender(move |push| {
            pushed(push);
            Ok::<(), redis::aio::SendError>(())
        });
    let connecting = client.get_multiplexed_async_connection_with_config(&options);
    match tokio::time::timeout(config.connect_timeout, connecting).await {
        Ok(connected) => connected.map_err(|e| store_error(&e)),
        Err(_) => Err(StoreError::Unavailable("connecting took too long".into())),
    }
}

/// Where the master is.
pub async fn master(config: &RedisConfig) -> Result<Address, StoreError> {
    let (name, sentinels, login, tls) = match &config.servers {
        Servers::Standalone(address) => return Ok(address.clone()),
        Servers::Sentinel { master, sentinels, login, tls } => (master, sentinels, login, tls.as_ref()),
    };
    let mut last = StoreError::Unavailable("no Sentinel is named".into());
    for sentinel in sentinels {
        let asked = async {
            let connection = connect(config, client(sentinel, login, tls, 0)?, |_| {}).await?;
            let mut cmd = redis::cmd("SENTINEL");
            cmd.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
            cmd.query_async::<Option<Address>>(&mut connection.clone()).await.map_err(|e| store_error(&e))
        };
        last = match tokio::time::timeout(config.connect_timeout * 2, asked).await {
            Ok(Ok(Some(address))) => return Ok(address),
            Ok(Ok(None)) => StoreError::Unavailable(format!("the Sentinel knows no master {name:?}")),
            Ok(Err(error)) => error,
            Err(_) => StoreError::Unavailable("the Sentinel does not answer".into()),
        };
    }
    Err(last)
}

/// Refuses a schema that this program does not know.
pub fn check_schema(schema: Option<String>) -> Result<(), StoreError> {
    match schema {
        Some(found) if found.parse() != Ok(SCHEMA_VERSION) => Err(StoreError::Schema { found }),
        _ => Ok(()),
    }
}

/// Text of one part of an answer.
pub fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        Value::VerbatimString { text, .. } => Some(text),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

/// What the `redis` crate reports, in the store's words. Passwords are in neither.
pub fn store_error(error: &RedisError) -> StoreError {
    let code = error.code().unwrap_or_default();
    let words = || format!("{code} {}", error.detail().unwrap_or_default()).trim().to_owned();
    match code {
        "NOAUTH" | "WRONGPASS" | "NOPERM" => return StoreError::Denied(words()),
        "READONLY" | "MISCONF" | "NOREPLICAS" | "MASTERDOWN" => return StoreError::ReadOnly(words()),
        "OOM" => return StoreError::Full(words()),
        "LOADING" | "BUSY" => return StoreError::Unavailable(words()),
        // The server forgot the scripts; a new connection brings them.
        "NOSCRIPT" => return StoreError::Unavailable("the server was restarted or its scripts were flushed".into()),
        _ => {}
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed => StoreError::Denied("authentication failed".into()),
        ErrorKind::Io => StoreError::Unavailable(error.to_string()),
        ErrorKind::Server(ServerErrorKind::ResponseError) => {
            passed_on(&words()).unwrap_or_else(|| StoreError::Refused(words()))
        }
        ErrorKind::Server(_) => StoreError::Refused(words()),
        _ if error.is_connection_dropped() || error.is_unrecoverable_error() => {
            StoreError::Unavailable("the connection was closed".into())
        }
        // Of several commands at once: what the first of them met stands in the words alone.
        _ => passed_on(&error.to_string()).unwrap_or_else(|| StoreError::Broken(error.to_string())),
    }
}

/// What a command inside a script or among several met, which is passed on behind words of another's.
fn passed_on(words: &str) -> Option<StoreError> {
    /// A word with the error that it stands for.
    type Known = (&'static str, fn(String) -> StoreError);
    let known: [Known; 8] = [
        ("NOREPLICAS", StoreError::ReadOnly),
        ("MASTERDOWN", StoreError::ReadOnly),
        ("MISCONF", StoreError::ReadOnly),
        ("READONLY", StoreError::ReadOnly),
        ("OOM", StoreError::Full),
        ("NOPERM", StoreError::Denied),
        ("permissions", StoreError::Denied),
        ("LOADING", StoreError::Unavailable),
    ];
    known.into_iter().find(|(part, _)| words.contains(part)).map(|(_, error)| error(words.to_owned()))
}

/// `future`'s answer, or [`StoreError::Unavailable`] after `timeout`, and then the link is not used again: answers come in
/// order, so it would only deliver this one first.
pub async fn bounded<T>(
    link: &Link,
    timeout: Duration,
    future: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let owed = Owed { link, since: Instant::now() };
    match tokio::time::timeout(timeout, future).await {
        Ok(answer) => {
            std::mem::forget(owed);
            answer
        }
        Err(_) => {
            link.condemn();
            Err(StoreError::Unavailable(format!("no answer within {} ms", timeout.as_millis())))
        }
    }
}

/// An answer that a link owes. Whoever gives up on it before the time that the link has, after a while, leaves a link that nobody waits for
/// behind it either: each would wait as long as its own patience, and none of them would find out.
struct Owed<'a> {
    link: &'a Link,
    since: Instant,
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        if self.since.elapsed() >= OWED_MAX {
            self.link.condemn();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_among_several_met_is_told_as_what_it_is() {
        let few = "Pipeline failure: [(Index 0, error: \"NOREPLICAS\": Not enough good replicas to write.)]";
        assert!(matches!(passed_on(few), Some(error @ StoreError::ReadOnly(_)) if error.is_passing()));
        assert_eq!(passed_on("something else"), None);
    }
}
