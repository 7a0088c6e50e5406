//! The Lua functions and the SQL are held to the model: random commands to a real store and to [`NodeModel`], answer by
//! answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use lb_locks::{
    command::{Command, List, ListId, Mode, Refusal, Reply, Terms, Ticket},
    model::NodeModel,
    node::{
        Node,
        memory::MemoryNode,
        redis::{RedisNode, RedisOptions},
        sqlite::SqliteNode,
    },
    torture::server::{RedisServer, ServerOptions},
    value::{Owner, Value},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// Lifetimes: over within one sleep, or not during the test.
const SHORT_MS: u64 = 300;
const LONG_MS: u64 = 50_000;
const SLEEP: Duration = Duration::from_millis(600);

fn list(epoch: u64, digest: &str) -> List {
    List { id: ListId { epoch, digest: digest.into() }, members: format!("a=a:{epoch}") }
}

fn random_command(random: &mut SmallRng, run: &str, lists: bool) -> Command {
    let owner = Owner { host: "h".into(), pid: 1, since_unix_ms: 0, label: String::new() };
    let value = Value::from_token(&[random.random_range(0..3); 20], &owner);
    let name = ["a", "b"][random.random_range(0..2)].to_owned();
    let ttl_ms = [SHORT_MS, LONG_MS, LONG_MS, LONG_MS + 60_000][random.random_range(0..4)];
    let epoch = if lists { random.random_range(0..3) } else { 0 };
    let digest = if epoch == 0 { "" } else { ["d", "e"][random.random_range(0..2)] };
    let quarantine = random.random_bool(0.8);
    let terms = Terms { list: ListId { epoch, digest: digest.into() }, max_ttl_ms: LONG_MS, quarantine };
    let ticket = random.random_bool(0.3).then(|| Ticket {
        id: format!("t{}", random.random_range(0..3)),
        order: random.random_bool(0.3).then(|| random.random_range(0..9)),
        patience_ms: [SHORT_MS, LONG_MS][random.random_range(0..2)],
    });
    match random.random_range(0..20) {
        0..8 => Command::Acquire {
            name,
            value,
            mode: if random.random_bool(0.5) { Mode::Exclusive } else { Mode::Shared },
            ttl_ms,
            fence: random.random_bool(0.5),
            ticket,
            terms,
        },
        8..10 => Command::Confirm { name, value, fence: random.random_range(0..50) },
        10..12 => Command::Extend { name, value, ttl_ms, terms },
        12..15 => Command::Release { name, value, ticket: ticket.map(|ticket| ticket.id) },
        15 => Command::Status,
        16 if random.random_bool(0.5) => Command::Ready {
            run_id: if random.random_bool(0.8) { run.to_owned() } else { "other".into() },
            fence: random.random_range(0..60),
            max_ttl_ms: LONG_MS,
            list: if lists { list(random.random_range(0..3), "d") } else { List::default() },
            force: random.random_bool(0.7),
        },
        17 if lists => Command::SetList {
            from: list(random.random_range(0..3), "d").id,
            list: list(random.random_range(1..4), ["d", "e"][random.random_range(0..2)]),
            join: random.random_bool(0.3),
        },
        18 => Command::Names { limit: 10 },
        _ => Command::Inspect { name },
    }
}

/// Remaining times are compared by whether they are short, long or over; readers in any order.
fn rough(reply: Reply) -> Reply {
    let class = |ms: u64| match ms {
        0 => 0,
        1..=SHORT_MS => SHORT_MS,
        301..=1_000 => 1_000,
        _ => LONG_MS,
    };
    match reply {
        Reply::Refused(Refusal::Held { remaining_ms }) => {
            Reply::Refused(Refusal::Held { remaining_ms: class(remaining_ms) })
        }
        Reply::Refused(Refusal::Quarantined { remaining_ms }) => {
            Reply::Refused(Refusal::Quarantined { remaining_ms: class(remaining_ms) })
        }
        Reply::Refused(Refusal::TooSoon { remaining_ms }) => {
            Reply::Refused(Refusal::TooSoon { remaining_ms: class(remaining_ms) })
        }
        Reply::Status(mut status) => {
            status.quarantine_ms = class(status.quarantine_ms);
            status.list_wait_ms = class(status.list_wait_ms);
            Reply::Status(status)
        }
        Reply::Inspection(mut found) => {
            found.holders.iter_mut().for_each(|(_, _, ms)| *ms = class(*ms));
            found.holders.sort_by(|a, b| a.1.cmp(&b.1));
            Reply::Inspection(found)
        }
        reply => reply,
    }
}

/// Commands that have to be compared, over all stores of one kind.
const COMPARED_MIN: usize = 2_000;
/// Most rounds for that: on a busy machine a run ends early.
const ROUNDS_MAX: u64 = 50;
/// Stores of one round, side by side: most of the time is that in which things expire.
const STORES: u64 = 4;

/// Plays commands to a new store until the machine is too slow to tell times apart; how many were compared.
async fn compare(node: &dyn Node, seed: u64, lists: bool, flush: impl Fn()) -> usize {
    let Reply::Status(status) = node.call(Arc::new(Command::Status)).await.unwrap() else { panic!() };
    let mut random = SmallRng::seed_from_u64(seed);
    let start = Instant::now();
    let mut model = NodeModel::new(&status.run_id);
    if !lists {
        let ready = Command::Ready {
            run_id: status.run_id.clone(),
            fence: 0,
            max_ttl_ms: LONG_MS,
            list: List::default(),
            force: true,
        };
        model.apply(&ready, 1_000_000);
        node.call(Arc::new(ready)).await.unwrap();
    }
    let mut compared = 0;
    let mut slept = Instant::now();
    for number in 0..600 {
        // Times are told apart only while little of the short lifetime is over.
        if number % 150 == 149 || slept.elapsed() > Duration::from_millis(SHORT_MS / 3) {
            tokio::time::sleep(SLEEP).await;
            slept = Instant::now();
        }
        if lists && random.random_bool(0.01) {
            flush();
            model.flush();
        }
        let command = random_command(&mut random, &status.run_id, lists);
        let now_ms = 1_000_000 + u64::try_from(start.elapsed().as_millis()).unwrap();
        let wanted = rough(model.apply(&command, now_ms));
        let got = rough(node.call(Arc::new(command.clone())).await.unwrap());
        if slept.elapsed() > Duration::from_millis(SHORT_MS / 2) {
            break;
        }
        compared += 1;
        assert_eq!(got, wanted, "seed {seed}, command {number}: {command:?}");
    }
    compared
}

/// A folder in memory where there is one: a busy disk would be all that is measured.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Plays commands to as many stores as it takes.
async fn compare_enough(mut round: impl AsyncFnMut(std::ops::Range<u64>) -> usize) {
    let mut compared = 0;
    for number in 0..ROUNDS_MAX {
        compared += round(number * STORES..(number + 1) * STORES).await;
        if compared >= COMPARED_MIN {
            return;
        }
    }
    panic!("too slow a machine: {compared} commands compared");
}

#[tokio::test]
async fn the_functions_are_the_model() {
    compare_enough(async |seeds| {
        let servers: Vec<_> = seeds.map(|seed| (seed, RedisServer::start(ServerOptions::default()).unwrap())).collect();
        let each = servers.iter().map(async |(seed, server)| {
            let node = RedisNode::new(&server.url(), None, &RedisOptions::default()).unwrap();
            let flush = || {
                server.command("FLUSHALL").unwrap();
            };
            compare(&node, *seed, true, flush).await
        });
        join_all(each).await.into_iter().sum()
    })
    .await;
}

#[tokio::test]
async fn the_sql_is_the_model() {
    compare_enough(async |seeds| {
        let each = seeds.map(async |seed| {
            let folder = folder();
            let node = SqliteNode::open(&folder.path().join("locks.db")).unwrap();
            compare(&node, seed, false, || {}).await
        });
        join_all(each).await.into_iter().sum()
    })
    .await;
}

#[tokio::test]
async fn memory_is_the_model() {
    assert!(compare(&MemoryNode::new("m"), 1, false, || {}).await > 0);
}
