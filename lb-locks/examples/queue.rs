//! A remote queue that its developer left unprotected: three consumer processes read the first message, work, and then
//! delete it.
//!
//! `--unsafe` reads without the lock, and messages are read twice. With the lock each is read exactly once, though one
//! consumer is killed and one is paused for longer than the lock lives: its late write is refused by its fencing token.
//! The end of the output is the verdict; the exit code is 1 if it is not what was promised.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    time::Duration,
};

use lb_locks::{
    Lock, Options, Redlock, Request,
    fenced::fenced_script,
    node::redis::RedisOptions,
    torture::server::{RedisServer, ServerOptions},
};
use redis::aio::MultiplexedConnection;

const MESSAGES: usize = 60;
const TTL: Duration = Duration::from_millis(1_000);
/// Between two messages of one consumer.
const REST: Duration = Duration::from_millis(25);

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.first().map(String::as_str) {
        Some("consume") => runtime.block_on(consume(&arguments[1], &arguments[2], &arguments[3..])),
        Some("--unsafe") => runtime.block_on(run(false)),
        None => runtime.block_on(run(true)),
        Some(other) => Err(format!("unknown argument {other:?}; usage: queue [--unsafe]").into()),
    }
}

async fn run(safe: bool) -> Outcome<()> {
    let durable = || RedisServer::start(ServerOptions { aof: true, ..ServerOptions::default() });
    let queue = durable()?;
    let nodes = (0..3).map(|_| durable()).collect::<Result<Vec<_>, _>>()?;
    let urls: Vec<String> = nodes.iter().map(RedisServer::url).collect();
    Redlock::redis(&urls, &RedisOptions::default(), options())?.bootstrap(0).await?;
    for message in 0..MESSAGES {
        queue.command(&format!("RPUSH queue message-{message}"))?;
    }
    let start = |role: &str| -> Outcome<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("consume").arg(role).arg(queue.url()).stdin(Stdio::null());
        if safe {
            command.args(&urls);
        }
        Ok(command.spawn()?)
    };
    // With the lock, one of them pauses inside it for longer than it lives, and one dies inside it.
    let roles = if safe { ["steady", "pauses", "dies"] } else { ["steady"; 3] };
    let mut consumers = roles.iter().map(|role| start(role)).collect::<Outcome<Vec<_>>>()?;
    let mut killed = 0;
    for consumer in &mut consumers {
        killed += usize::from(consumer.wait()?.signal().is_some());
    }
    let count = async |key: &str| -> Outcome<usize> {
        let mut connection = connect(&queue.url()).await?;
        Ok(redis::cmd("HLEN").arg(key).query_async(&mut connection).await?)
    };
    let mut connection = connect(&queue.url()).await?;
    let reads: Vec<usize> = redis::cmd("HVALS").arg("read").query_async(&mut connection).await?;
    let refused: usize =
        redis::cmd("GET").arg("refused").query_async::<Option<usize>>(&mut connection).await?.unwrap_or(0);
    let twice = reads.iter().filter(|times| **times > 1).count();
    println!(
        "{} of {MESSAGES} messages read, {twice} of them more than once; late writes refused by the fence: {refused}; \
         consumers killed: {killed}",
        count("read").await?
    );
    let good = reads.len() == MESSAGES && if safe { twice == 0 && refused > 0 && killed == 1 } else { twice > 0 };
    if !good {
        return Err("this is not what was promised".into());
    }
    Ok(())
}

fn options() -> Options {
    Options { node_timeout: Duration::from_millis(200), max_ttl: TTL, ..Options::default() }
}

async fn connect(url: &str) -> Outcome<MultiplexedConnection> {
    Ok(redis::Client::open(url)?.get_multiplexed_async_connection().await?)
}

/// One consumer. Reading counts when the message is taken off: that is the write which the fence guards.
async fn consume(role: &str, queue: &str, nodes: &[String]) -> Outcome<()> {
    let mut connection = connect(queue).await?;
    let locks = match nodes {
        [] => None,
        nodes => Some(Redlock::redis(nodes, &RedisOptions::default(), options())?),
    };
    let body = "if redis.call('LINDEX', KEYS[2], 0) == ARGV[2] then redis.call('LPOP', KEYS[2]) end\n\
                return redis.call('HINCRBY', KEYS[3], ARGV[2], 1)";
    let script = fenced_script(body);
    for round in 0.. {
        let guard = match &locks {
            Some(locks) => Some(locks.acquire(Request::new("queue", TTL).fenced().wait(TTL * 20)).await?),
            None => None,
        };
        let first: Option<String> = redis::cmd("LINDEX").arg("queue").arg(0).query_async(&mut connection).await?;
        let Some(message) = first else { return Ok(()) };
        // The work.
        tokio::time::sleep(Duration::from_millis(5)).await;
        match (role, round) {
            ("dies", 0) => std::process::abort(),
            // A long garbage collection, a swapped-out page: the process stands still and does not know it. Longer than the lock of the
            // one that dies may live besides, so that somebody writes meanwhile.
            ("pauses", 0) => std::thread::sleep(TTL * 4),
            _ => {}
        }
        let fence = guard.as_ref().and_then(|guard| guard.fence()).unwrap_or(0);
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(&script).arg(3).arg("fence").arg("queue").arg("read").arg(fence).arg(&message);
        if let Err(error) = cmd.query_async::<usize>(&mut connection).await {
            if error.code() != Some("STALE") {
                return Err(error.into());
            }
            println!("{role}: {error}");
            redis::cmd("INCR").arg("refused").query_async::<usize>(&mut connection).await?;
        }
        if let Some(guard) = guard {
            guard.release().await;
            // Room for the others: who takes the lock again at once takes it nearly always.
            tokio::time::sleep(REST).await;
        }
    }
    Ok(())
}
