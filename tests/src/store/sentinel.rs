//! Redis under Sentinel: a fail-over loses no write that a replica confirmed, and what it loses is noticed.

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use lb_locks::torture::server::{RedisServer, ServerOptions};
use lb_userspace::store::{
    Outcome, Store,
    access::Put,
    follow::Loss,
    redis::{Login, RedisConfig, Replication, Servers},
};
use tempfile::TempDir;

use super::{
    faults::{Follower, insist},
    rig::{key, run, set, store, texts, until, write},
};

/// A master, two replicas and a Sentinel.
struct Group {
    servers: Vec<RedisServer>,
    sentinel: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Drop for Group {
    fn drop(&mut self) {
        // One that has ended already needs no killing.
        let _ = self.sentinel.kill();
        let _ = self.sentinel.wait();
    }
}

impl Group {
    async fn start() -> Self {
        let options = |arguments: &[&str]| ServerOptions {
            aof: true,
            arguments: ["--min-replicas-to-write", "1", "--repl-diskless-sync-delay", "0"]
                .iter()
                .chain(arguments)
                .map(|argument| (*argument).to_owned())
                .collect(),
            ..ServerOptions::default()
        };
        let master = RedisServer::start(options(&[])).expect("redis-server");
        let port = master.address().port().to_string();
        let mut servers = vec![master];
        for _ in 0..2 {
            servers.push(RedisServer::start(options(&["--replicaof", "127.0.0.1", &port])).expect("redis-server"));
        }
        let folder = tempfile::tempdir().unwrap();
        let address = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let file = folder.path().join("sentinel.conf");
        let text = format!(
            "bind 127.0.0.1\nport {}\nsentinel monitor weir 127.0.0.1 {port} 1\nsentinel down-after-milliseconds weir \
             1500\nsentinel failover-timeout weir 4000\n",
            address.port()
        );
        std::fs::write(&file, text).unwrap();
        let sentinel = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server");
        let group = Self { servers, sentinel, address, _folder: folder };
        until("the replicas are in step", async || {
            group.servers[0].command("INFO replication").unwrap().matches("state=online").count() == 2
        })
        .await;
        until("the Sentinel knows the replicas", async || {
            let told = ask(group.address, "SENTINEL MASTER weir");
            told.contains("num-slaves\r\n$1\r\n2")
        })
        .await;
        group
    }

    fn config(&self) -> RedisConfig {
        RedisConfig::new(Servers::Sentinel {
            master: "weir".into(),
            // The first one is not there.
            sentinels: vec![("127.0.0.1".into(), 1), ("127.0.0.1".into(), self.address.port())],
            login: Login::default(),
            tls: None,
        })
    }
}

/// The answer to one command, as far as it comes at once.
fn ask(address: SocketAddr, command: &str) -> String {
    use std::io::{Read as _, Write as _};
    let exchange = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut answer = vec![0; 8 << 10];
        let read = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
    };
    exchange().unwrap_or_default()
}

/// Writes an object until a replica confirms it; its text. A replica that is not through with its first copy, or with its disk, confirms
/// nothing for longer than a write waits for it, which is told. It takes changes in order, so once it confirms one it has all before it.
async fn confirmed(store: &Arc<dyn Store>, name: &str) -> String {
    for at in 0..60 {
        let text = at.to_string();
        if matches!(insist(store, name, &text).await, Outcome::Changed(written, _) if written.replicated) {
            return text;
        }
    }
    panic!("the replicas are there, and none confirms anything");
}

#[test]
fn a_fail_over_loses_no_write_that_a_replica_confirmed() {
    run(async {
        let mut group = Group::start().await;
        let store = store(group.config());
        let followers: Vec<_> = (0..2).map(|seed| Follower::start(Arc::clone(&store), seed)).collect();
        let mut wanted = std::collections::BTreeMap::new();
        for at in 0..30 {
            let name = format!("service/{at}");
            insist(&store, &name, "1").await;
            wanted.insert(name, "1".to_owned());
        }
        wanted.insert("service/last".into(), confirmed(&store, "service/last").await);
        for follower in &followers {
            follower.agrees(&store).await;
        }
        let asked = Replication::ask(&group.config()).await.unwrap();
        assert_eq!(asked, Replication { replicas: 2, required: true });
        group.servers[0].command("CONFIG SET min-replicas-to-write 0").unwrap();
        assert!(!Replication::ask(&group.config()).await.unwrap().required);
        group.servers[0].command("CONFIG SET min-replicas-to-write 1").unwrap();
        group.servers[0].kill();
        insist(&store, "service/after", "1").await;
        wanted.insert("service/after".into(), "1".into());
        assert_eq!(texts(&store).await, wanted);
        for follower in &followers {
            follower.agrees(&store).await;
            assert_eq!(follower.told.borrow().losses, []);
        }
    });
}

#[test]
fn a_write_that_no_replica_has_is_reported_and_its_loss_is_noticed() {
    run(async {
        let mut group = Group::start().await;
        let store = store(group.config());
        let follower = Follower::start(Arc::clone(&store), 1);
        confirmed(&store, "service/kept").await;
        // The replica that has just confirmed a change confirms a record soon.
        let record = |text: &str| Put::new(key("lease/a"), text);
        until("a record is replicated", async || store.record_put(record("1")).await.unwrap().replicated).await;
        follower.agrees(&store).await;
        for replica in &group.servers[1..] {
            replica.pause();
        }
        // What waits in a paused replica's socket is not lost, so the sockets are closed. A master that is set up as it
        // should be takes no writes then; this one was told otherwise.
        for command in ["CLIENT KILL TYPE replica", "CONFIG SET min-replicas-to-write 0"] {
            group.servers[0].command(command).unwrap();
        }
        let Outcome::Changed(written, _) = write(&store, &[set("service/lost", "1")]).await.unwrap() else { panic!() };
        assert!(!written.replicated, "stored, not replicated");
        assert!(!store.record_put(record("2")).await.unwrap().replicated, "nor is a record");
        until("the follower has it", async || {
            follower.copy.borrow().as_ref().is_some_and(|copy| copy.revision == written.revision)
        })
        .await;
        group.servers[0].kill();
        for replica in &group.servers[1..] {
            replica.resume();
        }
        until("the loss raises its alarm", async || follower.told.borrow().losses == [(Loss::WentBack, true)]).await;
        follower.agrees(&store).await;
        assert_eq!(texts(&store).await.into_keys().collect::<Vec<_>>(), ["service/kept"]);
        assert_eq!(&*store.record_get(key("lease/a")).await.unwrap().unwrap().value, "1");
        insist(&store, "service/new", "1").await;
        follower.agrees(&store).await;
    });
}
