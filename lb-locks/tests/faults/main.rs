//! Real redis-server processes, and what happens to them while locks are held: each module is one kind of fault.

mod answers;
mod clocks;
mod fake;
mod question;
mod restarts;
mod silence;

use std::time::Duration;

use lb_locks::{
    Options, Redlock,
    node::redis::RedisOptions,
    torture::server::{RedisServer, ServerOptions},
};

/// So long that no lock and no quarantine runs out while a busy machine gets through a test.
const TTL: Duration = Duration::from_secs(30);

fn servers(count: usize, aof: bool) -> Vec<RedisServer> {
    (0..count).map(|_| RedisServer::start(ServerOptions { aof, ..Default::default() }).unwrap()).collect()
}

fn options(quarantine: bool) -> Options {
    Options { node_timeout: Duration::from_secs(1), max_ttl: TTL, quarantine, ..Options::default() }
}

fn redlock_with(servers: &[RedisServer], options: Options) -> Redlock {
    let urls: Vec<String> = servers.iter().map(RedisServer::url).collect();
    Redlock::redis(&urls, &RedisOptions::default(), options).unwrap()
}
