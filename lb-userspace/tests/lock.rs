//! `weir lock` as scripts meet it, on database files and on real redis-server processes, and its torture.
//!
//! All of it is in one module, by whose name `cargo xtask test` runs it with the locks and not with the quick tests.

mod real_servers {
    use std::{
        fs,
        os::unix::process::CommandExt as _,
        path::{Path, PathBuf},
        process::{Child, Command, Output, Stdio},
        time::{Duration, Instant},
    };

    use lb_locks::torture::server::{RedisServer, ServerOptions};
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    use serde_json::Value;

    const WEIR: &str = env!("CARGO_BIN_EXE_weir");
    /// For whatever has to happen at all.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Where locks are.
    struct Place {
        folder: tempfile::TempDir,
        nodes: Vec<RedisServer>,
    }

    impl Place {
        fn sqlite() -> Self {
            Self { folder: tempfile::tempdir().unwrap(), nodes: Vec::new() }
        }

        fn redis(count: usize) -> Self {
            let options = || ServerOptions { aof: true, ..Default::default() };
            let nodes = (0..count).map(|_| RedisServer::start(options()).unwrap()).collect();
            let place = Self { nodes, ..Self::sqlite() };
            assert_eq!(code(&place.weir(&["nodes", "bootstrap", "--yes"])), 0);
            place
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// The stores are in a file, with time for a machine under load: what is tested here is not how fast they are.
        fn command(&self, arguments: &[&str]) -> Command {
            let file = self.path("locks.toml");
            let urls: Vec<String> = self.nodes.iter().map(RedisServer::url).collect();
            let stores = if urls.is_empty() {
                format!("sqlite = {:?}", self.path("locks.db"))
            } else {
                format!("nodes = {urls:?}")
            };
            fs::write(&file, format!("[locks]\n{stores}\nnode_timeout = \"2s\"\n")).unwrap();
            let mut command = Command::new(WEIR);
            command.arg("lock").args(arguments).env("WEIR_LOCKS", &file).stdin(Stdio::null());
            command.env_remove("WEIR_LOCK_NODES").env_remove("WEIR_LOCK_SQLITE");
            command
        }

        fn weir(&self, arguments: &[&str]) -> Output {
            self.command(arguments).output().unwrap()
        }
    }

    fn code(output: &Output) -> i32 {
        output.status.code().unwrap_or(-1)
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    fn json(output: &Output) -> Value {
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}{}", text(&output.stdout), text(&output.stderr)))
    }

    /// Waits until `look` finds something.
    fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(started.elapsed() < PATIENCE, "{what} did not happen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(child: &Child, signal: Signal) {
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
    }

    fn exists(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
    }

    fn content(path: &Path) -> Option<String> {
        fs::read_to_string(path).ok().filter(|text| text.ends_with('\n')).map(|text| text.trim().to_owned())
    }

    #[test]
    fn run_ends_as_its_command_does() {
        let place = Place::sqlite();
        for (command, expected) in [
            (&["sh", "-c", "exit 0"][..], 0),
            (&["sh", "-c", "exit 7"], 7),
            (&["sh", "-c", "kill -TERM $$"], 143),
            (&["/nonexistent/command"], 127),
            (&["/etc/passwd"], 126),
        ] {
            let output = place.weir(&[&["run", "n", "--"], command].concat());
            assert_eq!(code(&output), expected, "{command:?}: {}", text(&output.stderr));
        }
        let named = place.weir(&["run", "n", "--fence", "--", "sh", "-c", "echo $WEIR_LOCK_NAME $WEIR_LOCK_FENCE"]);
        assert_eq!(text(&named.stdout), "n 1\n");
        // Its own failures have a number that commands do not use.
        assert_eq!(code(&place.weir(&["run", "n", "--ttl", "2m", "--", "true"])), 125);
        assert_eq!(code(&place.weir(&["run", "n", "--grace", "20s", "--", "true"])), 125);
        assert_eq!(code(&place.weir(&["run", "n"])), 2);
    }

    #[test]
    fn a_lock_that_is_held_is_not_acquired() {
        let place = Place::sqlite();
        let handle = place.weir(&["acquire", "n"]);
        assert_eq!(code(&handle), 0, "{}", text(&handle.stderr));
        let marker = place.path("marker");
        let refused = place.weir(&["run", "n", "--wait", "100ms", "--", "touch", marker.to_str().unwrap()]);
        assert_eq!(code(&refused), 75);
        assert!(text(&refused.stderr).contains("held by another") && !marker.exists(), "{}", text(&refused.stderr));
        assert_eq!(code(&place.weir(&["acquire", "n"])), 75);
        let released = place.weir(&["release", text(&handle.stdout).trim()]);
        assert_eq!(text(&released.stdout), "n: released\n");
        assert_eq!(code(&place.weir(&["run", "n", "--", "true"])), 0);
    }

    #[test]
    fn shells_nest_and_each_knows_its_own_lock() {
        let place = Place::sqlite();
        let inner = |name: &str| {
            format!("{WEIR} lock run {name} -- sh -c 'echo \"$WEIR_LOCK_NAME:$WEIR_LOCK_FENCE\"'; echo $?")
        };
        let nested = place.weir(&["run", "outer", "--fence", "--", "sh", "-c", &inner("inner")]);
        assert_eq!(text(&nested.stdout), "inner:\n0\n", "the outer token is not the inner lock's");
        let same = place.weir(&["run", "outer", "--", "sh", "-c", &inner("outer")]);
        assert_eq!(text(&same.stdout), "75\n", "a lock is not taken twice");
    }

    #[test]
    fn signals_reach_the_command_and_a_killed_parent_takes_it_along() {
        let place = Place::sqlite();
        let ready = place.path("ready");
        let script = format!("trap 'exit 9' TERM; echo $$ > {}; while :; do sleep 0.02; done", ready.display());
        let start = || {
            let _ = fs::remove_file(&ready);
            let child = place.command(&["run", "n", "--", "sh", "-c", &script]).spawn().unwrap();
            (child, until("the command's start", || content(&ready)))
        };
        let (mut child, _) = start();
        signal(&child, Signal::SIGTERM);
        assert_eq!(child.wait().unwrap().code(), Some(9));
        assert_eq!(code(&place.weir(&["inspect", "n"])), 6, "it was released");
        let (mut child, pid) = start();
        child.kill().unwrap();
        child.wait().unwrap();
        until("the command's end", || (!exists(&pid)).then_some(()));
    }

    /// A command that ignores SIGTERM, with a child of its own, whose lock is lost because `happens` to a majority: it is
    /// dead before the lock's validity is over.
    fn stopped_when(happens: impl FnOnce(&mut [RedisServer])) {
        const TTL: Duration = Duration::from_secs(3);
        let mut place = Place::redis(3);
        let (pids, beats, asked) = (place.path("pids"), place.path("beats"), place.path("asked"));
        let script = format!(
            "trap 'echo yes > {asked}' TERM; setsid sleep 1000 & echo $$ $! > {pids}; \
             while :; do cut -d' ' -f1 /proc/uptime > {beats}; sleep 0.02; done",
            asked = asked.display(),
            pids = pids.display(),
            beats = beats.display()
        );
        let arguments = ["run", "n", "--ttl", "3s", "--node-timeout", "500ms", "--", "sh", "-c", &script];
        let child = place.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
        let running = until("the command's start", || content(&pids));
        // It lives longer than one lifetime: the lock is extended.
        std::thread::sleep(TTL + TTL / 2);
        assert!(running.split(' ').all(exists));
        happens(&mut place.nodes);
        let uptime = || fs::read_to_string("/proc/uptime").unwrap().split(' ').next().unwrap().parse::<f64>().unwrap();
        let validity_ends = uptime() + TTL.as_secs_f64();
        let output = child.wait_with_output().unwrap();
        assert_eq!(code(&output), 76, "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("was lost"), "{}", text(&output.stderr));
        assert!(asked.exists(), "it was asked to end first");
        assert!(running.split(' ').all(|pid| !exists(pid)), "neither the command nor what it started is left");
        let last = content(&beats).and_then(|beat| beat.parse::<f64>().ok());
        assert!(last.is_none_or(|last| last < validity_ends), "{last:?} {validity_ends}");
    }

    /// Both at once: nearly all of it is waiting.
    #[test]
    fn the_command_is_stopped_when_nodes_are_silent_and_when_they_are_emptied() {
        std::thread::scope(|scope| {
            scope.spawn(|| stopped_when(|nodes| nodes[..2].iter().for_each(RedisServer::pause)));
            scope.spawn(|| {
                stopped_when(|nodes| {
                    for node in &mut nodes[..2] {
                        node.command("FLUSHALL").unwrap();
                    }
                });
            });
        });
    }

    #[test]
    fn a_script_acquires_extends_inspects_and_releases() {
        for place in [Place::sqlite(), Place::redis(3)] {
            let file = place.path("handle");
            let file = file.to_str().unwrap();
            let taken = place.weir(&["acquire", "n", "--fence", "--handle", file, "--label", "nightly"]);
            assert_eq!(code(&taken), 0, "{}", text(&taken.stderr));
            assert!(text(&taken.stdout).ends_with("fence 1\n"), "{}", text(&taken.stdout));
            let before = fs::read_to_string(file).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(code(&place.weir(&["extend", "--handle", file])), 0);
            assert_ne!(fs::read_to_string(file).unwrap(), before, "its end is a later one");

            let list = json(&place.weir(&["list", "-o", "json"]));
            assert_eq!((&list[0]["name"], &list[0]["holders"][0]["owner"]["label"]), (&"n".into(), &"nightly".into()));
            let seen = place.weir(&["inspect", "n", "-o", "json"]);
            let view = json(&seen);
            let nodes = view["on_nodes"].as_array().unwrap();
            assert_eq!(nodes.len(), place.nodes.len().max(1));
            assert_eq!(view["holders"][0]["is_majority"], true);
            assert!(nodes.iter().filter(|node| node["fence"] == 1).count() * 2 > nodes.len(), "{view}");
            let rest = view["holders"][0]["remaining_ms"].as_u64().unwrap();
            assert!(rest > 0 && rest <= 30_000);
            assert!(text(&place.weir(&["inspect", "n"]).stdout).starts_with("n: held (exclusive) by "));
            assert!(text(&place.weir(&["list"]).stdout).contains(": nightly"));

            let released = json(&place.weir(&["release", "--handle", file, "-o", "json"]));
            assert_eq!((&released["released"], &released["in_time"]), (&true.into(), &true.into()));
            assert!(!Path::new(file).exists(), "a handle of nothing is of no use");
            assert_eq!(code(&place.weir(&["inspect", "n"])), 6);
            assert_eq!(text(&place.weir(&["list"]).stdout), "no lock is held or waited for\n");
        }
    }

    #[test]
    fn what_has_expired_is_neither_extended_nor_released() {
        let place = Place::sqlite();
        let handle = place.weir(&["acquire", "n", "-o", "json", "--ttl", "1s"]);
        let handle = json(&handle)["handle"].as_str().unwrap().to_owned();
        std::thread::sleep(Duration::from_millis(1_010));
        let extended = place.weir(&["extend", &handle]);
        assert_eq!(code(&extended), 76, "{}", text(&extended.stderr));
        assert_eq!(code(&place.weir(&["release", &handle])), 76);
        assert_eq!(code(&place.weir(&["release", "weirlock1-00"])), 2);
        assert_eq!(code(&place.weir(&["extend"])), 2);
    }

    #[test]
    fn a_list_of_nodes_changes_and_older_clients_follow() {
        let place = Place::redis(4);
        let urls: Vec<String> = place.nodes.iter().map(RedisServer::url).collect();
        let three = |arguments: &[&str]| {
            let mut command = place.command(&[arguments, &["--max-ttl", "2s"]].concat());
            command.env("WEIR_LOCK_NODES", urls[..3].join(",")).output().unwrap()
        };
        for node in &place.nodes {
            // As new: the set-up of all four is not wanted here.
            node.command("FLUSHALL").unwrap();
        }
        assert_eq!(text(&three(&["nodes", "bootstrap", "--yes"]).stdout), "3 of 3 nodes vote\n");
        let added = three(&["nodes", "add", &place.nodes[3].address().to_string()]);
        assert_eq!(code(&added), 0, "{}", text(&added.stderr));
        assert!(text(&added.stdout).starts_with("list 2 is "), "{}", text(&added.stdout));
        // This client names the list of before, and finds the new one.
        let nodes = json(&three(&["nodes", "list", "-o", "json"]));
        assert_eq!(nodes.as_array().unwrap().len(), 4);
        assert_eq!(code(&three(&["nodes", "remove", "nobody"])), 3);
    }

    #[test]
    fn no_password_is_shown_and_stores_come_from_a_file() {
        let arguments = vec!["--requirepass".to_owned(), "hunter2".to_owned()];
        let server = RedisServer::start(ServerOptions { arguments, ..Default::default() }).unwrap();
        let place = Place::sqlite();
        let with = |password: &str, arguments: &[&str]| {
            let file = place.path("passwords.toml");
            let url = format!("redis://:{password}@{}", server.address());
            fs::write(&file, format!("[locks]\nnodes = [\"a={url}\"]\nnode_timeout = \"2s\"\n")).unwrap();
            place.command(arguments).env("WEIR_LOCKS", &file).output().unwrap()
        };
        let booted = with("hunter2", &["nodes", "bootstrap", "--yes"]);
        assert_eq!(code(&booted), 0, "{}", text(&booted.stderr));
        assert!(text(&booted.stderr).contains("others may read it"), "{}", text(&booted.stderr));
        assert_eq!(code(&with("hunter2", &["run", "n", "--", "true"])), 0);
        for wrong in [&["acquire", "n"][..], &["nodes", "list"], &["inspect", "n"], &["list"], &["-o", "json", "list"]]
        {
            let output = with("sesame", wrong);
            let said = [text(&output.stdout), text(&output.stderr)].concat();
            assert!(
                code(&output) != 0 && !said.contains("sesame") && said.contains("credentials"),
                "{wrong:?}: {said}"
            );
        }
        let help = place.command(&["acquire", "--help"]).env("WEIR_LOCK_NODES", "redis://:hunter2@h").output().unwrap();
        assert!(!text(&help.stdout).contains("hunter2"));
        let bad = place.command(&["list", "--node", "redis//:hunter2@h"]).output().unwrap();
        assert!(code(&bad) == 3 && !text(&bad.stderr).contains("hunter2"), "{}", text(&bad.stderr));
    }

    /// Runs a torture and returns its exit code and verdict. Half a second of lifetime: ten seconds are twenty of them.
    fn torture(arguments: &[&str]) -> (i32, Value) {
        let common = ["torture", "-o", "json", "--duration", "10s", "--ttl", "500ms", "--node-timeout", "200ms"];
        let output = Place::sqlite().command(&[&common[..], &["--clients", "4"], arguments].concat()).output().unwrap();
        let outcome = json(&output);
        (code(&output), outcome["verdict"].clone())
    }

    fn number(verdict: &Value, path: &str) -> u64 {
        verdict.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {verdict}"))
    }

    #[test]
    fn torture_holds() {
        let (code, verdict) = torture(&["--seed", "1"]);
        assert_eq!(code, 0, "{verdict}");
        assert!(number(&verdict, "/acquisitions") > 5 && number(&verdict, "/writes") > 5, "{verdict}");
    }

    #[test]
    fn torture_without_quarantine_shows_two_holders() {
        let (code, verdict) = torture(&["--seed", "2", "--faults", "empty", "--without", "quarantine"]);
        assert!(code == 1 && number(&verdict, "/overlaps/count") > 0, "{verdict}");
    }

    #[test]
    fn torture_with_clocks_shows_two_holders_and_the_fence_stops_them() {
        let (code, verdict) = torture(&["--seed", "3", "--faults", "clock"]);
        assert!(code == 1 && number(&verdict, "/overlaps/count") > 0, "{verdict}");
        assert_eq!(number(&verdict, "/disordered_writes/count"), 0, "{verdict}");
        assert!(number(&verdict, "/refused") > 0, "{verdict}");
    }

    #[test]
    fn torture_without_fence_shows_late_writes() {
        let (code, verdict) = torture(&["--seed", "4", "--faults", "pause", "--without", "fence"]);
        assert!(code == 1 && number(&verdict, "/disordered_writes/count") > 0, "{verdict}");
        assert_eq!(number(&verdict, "/overlaps/count"), 0, "the lock itself is not to blame: {verdict}");
    }

    /// Children of all threads of a process.
    fn children(of: u32) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten();
        tasks
            .filter_map(|task| {
                let task = task.ok()?.file_name().into_string().ok()?;
                fs::read_to_string(format!("/proc/{of}/task/{task}/children")).ok()
            })
            .flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    /// What Ctrl-C on a terminal does: SIGINT to the whole foreground group.
    fn interrupt(child: &Child) {
        kill(Pid::from_raw(-child.id().cast_signed()), Signal::SIGINT).unwrap();
    }

    #[test]
    fn an_interrupted_torture_says_what_it_saw_and_leaves_nothing_behind() {
        let history = Place::sqlite();
        let file = history.path("history");
        let arguments = ["torture", "--duration", "1h", "--clients", "3", "--nodes", "3", "--faults", "", "-o", "json"];
        let mut command = history.command(&arguments);
        command.arg("--history").arg(&file).process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        // Three nodes, one resource, three workers; they are children of the thread that conducts.
        let all = until("the torture's start", || Some(children(child.id())).filter(|all| all.len() >= 7));
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        assert_eq!(code(&output), 130, "{}", text(&output.stderr));
        let outcome = json(&output);
        assert_eq!(outcome["interrupted"], true);
        assert_eq!(number(&outcome, "/verdict/overlaps/count"), 0);
        assert!(file.exists(), "the history until then is written too");
        assert!(all.iter().all(|pid| !exists(pid)), "{all:?}");
    }

    #[test]
    fn torture_in_memory_needs_no_server() {
        let arguments =
            ["torture", "--memory", "-o", "json", "--duration", "2s", "--ttl", "100ms", "--faults", "empty"];
        let run = |more: &[&str]| {
            // Nothing is found there.
            let mut command = Place::sqlite().command(&[&arguments[..], more].concat());
            command.env("PATH", "/nonexistent").output().unwrap()
        };
        let held = run(&["--seed", "1"]);
        assert_eq!(code(&held), 0, "{}{}", text(&held.stdout), text(&held.stderr));
        assert!(number(&json(&held), "/verdict/acquisitions") > 5, "{}", text(&held.stdout));
        let broken = run(&["--seed", "2", "--without", "quarantine"]);
        assert_eq!(code(&broken), 1, "{}", text(&broken.stdout));
        assert!(number(&json(&broken), "/verdict/overlaps/count") > 0, "{}", text(&broken.stdout));
    }

    #[test]
    fn an_interrupted_run_ends_its_command_and_gives_the_lock_back() {
        let place = Place::sqlite();
        let ready = place.path("ready");
        let script = format!("trap 'exit 9' INT; echo $$ > {}; while :; do sleep 0.02; done", ready.display());
        let start = |arguments: &[&str]| {
            let mut command = place.command(arguments);
            command.process_group(0).stderr(Stdio::null()).spawn().unwrap()
        };
        let mut child = start(&["run", "n", "--", "sh", "-c", &script]);
        let pid = until("the command's start", || content(&ready));
        // One that waits for the lock has nothing to end, and takes nothing after it.
        let marker = place.path("marker");
        let mut waiting = start(&["run", "n", "--wait", "1m", "--first-come", "--", "touch", marker.to_str().unwrap()]);
        until("a waiter", || {
            let seen = json(&place.weir(&["inspect", "n", "-o", "json"]));
            seen["waiters"].as_array().filter(|waiters| !waiters.is_empty()).map(|_| ())
        });
        interrupt(&waiting);
        assert_eq!(waiting.wait().unwrap().code(), Some(130));
        interrupt(&child);
        assert_eq!(child.wait().unwrap().code(), Some(9));
        assert!(!exists(&pid) && !marker.exists());
        assert_eq!(code(&place.weir(&["inspect", "n"])), 6, "nobody holds it and nobody waits");
    }
}
