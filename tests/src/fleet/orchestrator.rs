//! `weir orchestrator run` as processes on one Redis: who is the master, and who comes after it.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use lb_userspace::orchestrator::{clock::PERIODS, report::Status};

use super::dns::process::{Process, eventually};
use crate::{lab::programs, store::rig};

/// One orchestrator with its files.
struct Orchestrator<'f> {
    folder: &'f Path,
    name: &'static str,
    process: Process,
}

impl<'f> Orchestrator<'f> {
    fn start(folder: &'f Path, name: &'static str, redis: SocketAddr) -> Self {
        Self::start_on(folder, name, &format!("kind = \"redis\"\nurl = \"redis://{redis}\"\n"))
    }

    fn start_on(folder: &'f Path, name: &'static str, store: &str) -> Self {
        let file = folder.join(format!("{name}.toml"));
        let text = format!(
            "name = \"{name}\"\nlisten = \"none\"\nsocket = \"{folder}/{name}.sock\"\n[store]\n{store}",
            folder = folder.display(),
        );
        fs::write(&file, text).expect("a file");
        let mut command = Command::new(&programs().weir);
        command.args(["orchestrator", "run", "--config"]).arg(&file);
        let log = folder.join(format!("{name}.log"));
        Self { folder, name, process: Process::start("weir orchestrator", "weir", log, &mut command) }
    }

    /// What `weir orchestrator status` says of it; `None` while it does not answer.
    fn status(&self) -> Option<Status> {
        let mut command = Command::new(&programs().weir);
        command.args(["orchestrator", "status", "-o", "json", "--at"]).arg(self.socket());
        let output = command.output().expect("weir runs");
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON of a status"))
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.join(format!("{}.sock", self.name))
    }

    /// The epoch in which it acts, as soon as it does.
    fn acts(&self) -> u64 {
        eventually("it is the master", || self.status()?.acting)
    }
}

#[test]
fn who_is_killed_is_followed_within_two_leases_and_who_ends_leaves_no_gap() {
    let redis = rig::redis();
    let folder = tempfile::tempdir().expect("a folder");
    let mut first = Orchestrator::start(folder.path(), "o1", redis.address());
    let epoch = first.acts();
    let mut second = Orchestrator::start(folder.path(), "o2", redis.address());
    let known = eventually("both work", || {
        let status = second.status()?;
        (status.workers.iter().filter(|worker| worker.assigned).count() == 2).then_some(status)
    });
    assert_eq!((known.acting, known.me.starts_with("o2/")), (None, true), "one is the master at a time");
    assert!(known.master.is_some_and(|master| master.holder.starts_with("o1/") && master.epoch == epoch));

    let killed = Instant::now();
    first.process.kill();
    let next = second.acts();
    let took = killed.elapsed();
    assert!(next > epoch, "{next} after {epoch}");
    assert!(took < 2 * PERIODS.lease, "{took:?}");
    // Nobody listens at the socket of who was killed: it starts again, and stands by.
    let again = Orchestrator::start(folder.path(), "o1", redis.address());
    eventually("it works again", || {
        let status = again.status()?;
        (status.master.as_ref()?.holder.starts_with("o2/") && status.acting.is_none()).then_some(())
    });

    let ended = Instant::now();
    assert!(second.process.terminate().success(), "SIGTERM is an orderly end");
    assert!(!second.socket().exists());
    assert!(again.acts() > next);
    let took = ended.elapsed();
    assert!(took < PERIODS.lease, "a mastership that is given back is not waited for: {took:?}");
}

#[test]
fn it_serves_the_database_that_it_owns() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a port").port();
    let at = format!("127.0.0.1:{port}");
    fs::write(path("token"), "70ce".repeat(10)).expect("a file");
    let (database, token) = (path("store.redb"), path("token"));
    let own = format!("kind = \"embedded\"\npath = \"{database}\"\nlisten = \"{at}\"\ntoken_file = \"{token}\"\n");
    let owner = Orchestrator::start_on(folder.path(), "o1", &own);
    let epoch = owner.acts();
    // Another one reaches it over the network, and stands by.
    let url = format!("kind = \"embedded\"\nurl = \"http://{at}\"\ntoken_file = \"{token}\"\n");
    let other = Orchestrator::start_on(folder.path(), "o2", &url);
    eventually("it works", || {
        let status = other.status()?;
        let known =
            status.master.as_ref().is_some_and(|master| master.holder.starts_with("o1/") && master.epoch == epoch);
        (known && status.acting.is_none()).then_some(())
    });
    // Command lines of this machine go through its socket, those elsewhere through the address; without a token nobody does.
    let node = "[node]\ninterfaces = [\"lo\"]\n[store]\n";
    for (name, store, good) in [
        ("here", format!("kind = \"embedded\"\npath = \"{database}\"\n"), true),
        ("there", url, true),
        ("stranger", format!("kind = \"embedded\"\nurl = \"http://{at}\"\n"), false),
    ] {
        fs::write(path(name), format!("{node}{store}")).expect("a file");
        let mut command = Command::new(&programs().weir);
        let output = command.args(["node", "list", "--config", &path(name)]).output().expect("weir runs");
        let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.success(), good, "{name}: {said}");
        assert_eq!(told.contains("no node has reported"), good, "{name}: {told}");
    }
}

#[test]
fn without_a_store_it_does_not_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("orchestrator.toml");
    fs::write(&file, "listen = \"none\"\n").expect("a file");
    let mut command = Command::new(&programs().weir);
    let started = Instant::now();
    let output = command.args(["orchestrator", "run", "--config"]).arg(&file).output().expect("weir runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("store") && started.elapsed() < Duration::from_secs(60), "{said}");
}
