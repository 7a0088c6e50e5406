//! What a server may say instead of a vote, and what it is asked: typed per node, and never counted.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use lb_locks::{
    Lock, LockError, NodeError, NodeOutcome, Options, Redlock, Request, Single,
    command::Command,
    node::{
        Node,
        memory::MemoryNode,
        redis::{RedisNode, RedisOptions},
    },
    torture::server::{RedisServer, ServerOptions},
};

use super::fake::{FakeServer, array};

const TTL: Duration = Duration::from_secs(20);

fn options() -> Options {
    Options { node_timeout: Duration::from_secs(2), ..Options::default() }
}

fn node(url: &str) -> Arc<dyn Node> {
    Arc::new(RedisNode::new(url, None, &RedisOptions::default()).unwrap())
}

/// What a lock over one server that answers `line` to everything reports about it.
async fn outcome(line: &'static str) -> (NodeError, Vec<Vec<String>>) {
    let server = FakeServer::start(move |_| format!("{line}\r\n"));
    let single = Single::new(node(&server.url()), options()).unwrap();
    let error = single.acquire(Request::new("a", TTL)).await.unwrap_err();
    let LockError::NoQuorum { report, .. } = &error else { panic!("{line}: {error}") };
    let NodeOutcome::Failed(said) = &report.0[0].1 else { panic!("{line}: {report}") };
    // The same server among three, and asked first: the other two are a majority, and the one is no vote against it.
    let memory = |name: &str| Arc::new(MemoryNode::new(name)) as Arc<dyn Node>;
    let three = Redlock::fixed(vec![node(&server.url()), memory("b"), memory("c")], options()).unwrap();
    three.bootstrap(0).await.unwrap();
    assert!(three.acquire(Request::new("a", TTL)).await.unwrap().release().await.confirmed, "{line}");
    (said.clone(), server.asked())
}

#[tokio::test]
async fn errors_are_typed_and_no_votes() {
    let read_only = |code: &str| NodeError::ReadOnly(code.to_owned());
    for (line, wanted) in [
        ("-LOADING Redis is loading the dataset in memory", NodeError::Loading),
        ("-READONLY You can't write against a read only replica.", read_only("READONLY")),
        ("-MISCONF Redis is configured to save RDB snapshots", read_only("MISCONF")),
        ("-MASTERDOWN Link with MASTER is down", read_only("MASTERDOWN")),
        ("-NOREPLICAS Not enough good replicas to write.", read_only("NOREPLICAS")),
        ("-OOM command not allowed when used memory > 'maxmemory'.", NodeError::OutOfMemory),
        ("-NOAUTH Authentication required.", NodeError::Auth("NOAUTH".into())),
        ("-NOPERM this user has no permissions to run the 'fcall' command", NodeError::Auth("NOPERM".into())),
    ] {
        assert_eq!(outcome(line).await.0, wanted, "{line}");
    }
    let busy = outcome("-BUSY Redis is busy running a script.").await.0;
    assert!(matches!(&busy, NodeError::Store(text) if text.contains("BUSY")), "{busy:?}");
    let script = outcome("-ERR user_script:7: attempt to index a nil value script: abc, on @user_script:7.").await.0;
    assert!(matches!(&script, NodeError::Script(text) if text.contains("nil value")), "{script:?}");
}

#[tokio::test]
async fn a_server_that_never_learns_the_functions_is_not_taught_for_ever() {
    let unknown = "-ERR Function not found\r\n";
    for load in [unknown, "+library\r\n"] {
        let server = FakeServer::start(move |words| if words[0] == "FUNCTION" { load } else { unknown }.to_owned());
        let single = Single::new(node(&server.url()), options()).unwrap();
        let error = single.acquire(Request::new("a", TTL)).await.unwrap_err();
        let LockError::NoQuorum { report, .. } = &error else { panic!("{error}") };
        let NodeOutcome::Failed(NodeError::Script(text)) = &report.0[0].1 else { panic!("{report}") };
        assert!(text.contains("Function not found"), "{text}");
        // No vote is asked for again: it could come after its own release.
        let calls = |of: &str| {
            let asked = server.asked();
            asked.iter().filter(|words| words[0] == "FCALL" && words[1].starts_with(of)).count()
        };
        assert_eq!(calls("weir_acquire_"), 1);
        // What does no harm when it comes late is asked again, once.
        assert!(node(&server.url()).call(Arc::new(Command::Status)).await.is_err());
        assert_eq!(calls("weir_status_"), if load == unknown { 1 } else { 2 });
        assert_eq!(server.asked().iter().find(|words| words[0].starts_with('F')).unwrap()[..2], ["FUNCTION", "LOAD"]);
    }
}

#[tokio::test]
async fn a_server_whose_functions_were_taken_away_votes_at_the_next_attempt() {
    let server = RedisServer::start(ServerOptions::default()).unwrap();
    let single = Single::new(node(&server.url()), options()).unwrap();
    single.bootstrap(0).await.unwrap();
    server.command("FUNCTION FLUSH").unwrap();
    let error = single.acquire(Request::new("a", TTL)).await.unwrap_err();
    assert!(matches!(error.report().unwrap().0[0].1, NodeOutcome::Failed(NodeError::Script(_))), "{error}");
    let guard = single.acquire(Request::new("a", TTL)).await.unwrap();
    server.command("FUNCTION FLUSH").unwrap();
    assert!(guard.release().await.confirmed);
}

/// Two clients meet a new server: the second to teach it finds that it knows.
#[tokio::test]
async fn a_library_that_another_client_loaded_is_used() {
    let taught = Mutex::new(false);
    let server = FakeServer::start(move |words| {
        let mut taught = taught.lock().unwrap();
        match words[0].as_str() {
            "FUNCTION" => {
                *taught = true;
                "-ERR Library 'weir_locks' already exists\r\n".to_owned()
            }
            "FCALL" if *taught => "*3\r\n$7\r\ngranted\r\n:0\r\n$3\r\nrun\r\n".to_owned(),
            _ => "-ERR Function not found\r\n".to_owned(),
        }
    });
    let single = Single::new(node(&server.url()), options()).unwrap();
    single.acquire(Request::new("a", TTL)).await.unwrap().leave();
}

#[tokio::test]
async fn what_is_not_understood_is_no_vote() {
    for line in ["+OK", ":7", "$-1", "*0", "*1\r\n$5\r\nbogus", "*2\r\n$7\r\ngranted\r\n$1\r\nx", "*1\r\n:3"] {
        let error = outcome(line).await.0;
        assert!(matches!(error, NodeError::Protocol(_)), "{line:?}: {error:?}");
    }
}

/// A real server that reads its data: it takes connections, and says LOADING until it is done.
#[tokio::test]
async fn a_server_that_loads_its_data_is_no_vote() {
    let arguments = ["--key-load-delay", "3000", "--loading-process-events-interval-bytes", "1024"];
    let mut server = RedisServer::start(ServerOptions {
        arguments: arguments.map(str::to_owned).to_vec(),
        ..ServerOptions::default()
    })
    .unwrap();
    let mut redis = redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let fill = "for at = 1, 600 do redis.call('SET', 'k' .. at, string.rep('x', 200)) end";
    redis::cmd("EVAL").arg(fill).arg(0).query_async::<()>(&mut redis).await.unwrap();
    redis::cmd("SAVE").query_async::<()>(&mut redis).await.unwrap();
    let single = Single::new(node(&server.url()), options()).unwrap();
    let loading = tokio::task::spawn_blocking(move || server.restart(true).map(|()| server));
    let mut seen = false;
    while !seen && !loading.is_finished() {
        let error = single.acquire(Request::new("a", TTL)).await.unwrap_err();
        let LockError::NoQuorum { report, .. } = &error else { panic!("{error}") };
        seen = report.0[0].1 == NodeOutcome::Failed(NodeError::Loading);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(seen, "the server was up before it was asked");
    let _server = loading.await.unwrap().unwrap();
    single.bootstrap(0).await.unwrap();
    single.acquire(Request::new("a", TTL)).await.unwrap().release().await;
}

/// Everything that is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_server_that_may_evict_locks_is_warned_about() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _until_end = tracing::subscriber::set_default(subscriber);
    let policy = |policy: &str| ServerOptions {
        aof: true,
        arguments: vec!["--maxmemory-policy".into(), policy.into()],
        ..ServerOptions::default()
    };
    let text = || String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    let safe = RedisServer::start(policy("noeviction")).unwrap();
    Single::new(node(&safe.url()), options()).unwrap().bootstrap(0).await.unwrap();
    assert!(!text().contains("may evict"), "{}", text());
    let evicting = RedisServer::start(policy("allkeys-lru")).unwrap();
    let single = Single::new(node(&evicting.url()), options()).unwrap();
    single.bootstrap(0).await.unwrap();
    let (name, log) = (evicting.address().to_string(), text());
    assert!(log.contains("WARN") && log.contains(&name) && log.contains("allkeys-lru: it may evict a lock"), "{log}");
    // It may hold locks, and its counter cannot be trusted.
    single.acquire(Request::new("a", TTL)).await.unwrap().release().await;
    let error = single.acquire(Request::new("a", TTL).fenced()).await.unwrap_err();
    assert!(matches!(&error, LockError::FenceUnavailable { why } if why.contains("allkeys-lru")), "{error}");
}

/// A server that grants everything, says `command` about the commands that it has, and `delex` to that one.
fn granting(command: &'static str, delex: &'static str) -> FakeServer {
    FakeServer::start(move |words| match words[0].as_str() {
        "COMMAND" => command.to_owned(),
        "DELEX" => delex.to_owned(),
        // The functions with so many arguments are acquisitions.
        _ if words.len() > 12 => "*3\r\n$7\r\ngranted\r\n:0\r\n$3\r\nrun\r\n".to_owned(),
        _ => array(&["done"]),
    })
}

#[tokio::test]
async fn newer_commands_are_used_where_the_server_has_them_and_nowhere_else() {
    let new = "*1\r\n*1\r\n$5\r\ndelex\r\n";
    for (command, delex, used, calls) in [
        // As 8.4: one plain command gives the lock back.
        (new, ":1\r\n", true, 1),
        // It holds nothing of ours under this key: the function says whether it is a reader's lock or gone.
        (new, ":0\r\n", true, 2),
        // Another server behind the same address.
        (new, "-ERR unknown command 'DELEX'\r\n", true, 2),
        // As 7.0.
        ("*1\r\n*-1\r\n", ":1\r\n", false, 2),
        ("*1\r\n$-1\r\n", ":1\r\n", false, 2),
        ("-NOPERM no\r\n", ":1\r\n", false, 2),
    ] {
        let server = granting(command, delex);
        let single = Single::new(node(&server.url()), options()).unwrap();
        let guard = single.acquire(Request::new("a", TTL)).await.unwrap();
        let value = guard.value().to_owned();
        assert!(guard.release().await.confirmed, "{command:?} {delex:?}");
        let asked = server.asked();
        let sent: Vec<_> = asked.iter().filter(|words| words[0] == "DELEX").collect();
        assert_eq!(!sent.is_empty(), used, "{command:?} {delex:?}");
        assert!(sent.iter().all(|words| words[1..] == ["weir:w:a", "IFEQ", value.as_str()]), "{sent:?}");
        assert_eq!(asked.iter().filter(|words| words[0] == "FCALL").count(), calls, "{command:?} {delex:?}");
    }
}

/// What the README says that a user needs, and nothing else.
#[tokio::test]
async fn a_user_with_the_least_rights_locks() {
    const RIGHTS: &str = "+fcall +function|load +config|get +command|info +scan +subscribe +publish +info +time \
        +get +set +del +exists +pttl +pexpire +hget +hmget +hset +hdel +hincrby \
        +zadd +zrem +zcard +zrank +zscore +zrange +zrevrange +zrangebyscore +zremrangebyscore";
    let servers: Vec<_> =
        (0..3).map(|_| RedisServer::start(ServerOptions { aof: true, ..Default::default() }).unwrap()).collect();
    let give = |rights: &str| {
        for server in &servers {
            let user = format!("ACL SETUSER locker reset on >sesame ~weir:* &weir:nodes -@all {rights}");
            let said = server.command(&user).unwrap();
            assert!(said.starts_with("+OK"), "{said}");
        }
    };
    let urls: Vec<String> =
        servers.iter().map(|server| format!("redis://locker:sesame@{}", server.address())).collect();
    let client = || Redlock::redis(&urls, &RedisOptions::default(), options()).unwrap();
    give(RIGHTS);
    let (one, other) = (client(), client());
    one.bootstrap(0).await.unwrap();
    let guard = one.acquire(Request::new("a", TTL).fenced().everywhere()).await.unwrap();
    guard.extend().await.unwrap();
    let waiting = other.acquire(Request::new("a", TTL).first_come().wait(TTL));
    let release = async {
        while one.inspect("a").await.unwrap().waiters.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(one.names(9).await.unwrap(), ["a"]);
        guard.release().await
    };
    let (second, released) = tokio::join!(waiting, release);
    assert!(released.confirmed && second.unwrap().release().await.confirmed);
    let readers =
        [one.acquire(Request::new("a", TTL).shared()).await, other.acquire(Request::new("a", TTL).shared()).await];
    assert!(other.acquire(Request::new("a", TTL)).await.is_err());
    for reader in readers {
        let reader = reader.unwrap();
        reader.extend().await.unwrap();
        assert!(reader.release().await.confirmed);
    }
    // Without the right to ask how the server keeps its counters, there are locks and no tokens.
    give(&RIGHTS.replace("+config|get", ""));
    let third = client();
    third.acquire(Request::new("b", TTL)).await.unwrap().release().await;
    let error = third.acquire(Request::new("b", TTL).fenced()).await.unwrap_err();
    assert!(matches!(&error, LockError::FenceUnavailable { why } if why.contains("does not tell")), "{error}");
}
