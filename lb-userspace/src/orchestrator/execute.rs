//! Carrying out orders: a command, or a POST to a webhook.
//!
//! Owns: how an order is told (environment, body), its time-out, and the bounds of what is kept of the answer. Refuses to know:
//! why. Invariants: an executor is given the id of the intent and is expected to do nothing twice for one id; a command that
//! is stopped, for its time or because this process is the master no more, is stopped with all that it started.
//!
//! A command gets `WEIR_INTENT`, `WEIR_ACTION` (`create` or `remove`), `WEIR_NAME`, `WEIR_SUBJECT` (`nodes` or
//! `service/NAME`), `WEIR_RULE` and `WEIR_EPOCH`. Exit code 0 is success; the first line of its output is where the new
//! backend is (`ADDRESS:PORT`), which nodes need not say. A webhook gets the same as JSON, answers 2xx, and may answer
//! `{"address": "ADDRESS:PORT"}`.

use std::{net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use hyper::{Method, body::Bytes, header};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use super::{
    http,
    intent::{Executed, Order},
};

/// Bytes that are kept of what a command prints.
const OUTPUT_BYTES_MAX: usize = 16 << 10;
/// Characters of an error that are kept.
const ERROR_CHARS_MAX: usize = 500;

/// Who carries out orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Executor {
    /// A command.
    Exec {
        /// The program, an absolute path.
        program: PathBuf,
        /// Its arguments.
        arguments: Vec<String>,
        /// Time for one order.
        timeout: Duration,
    },
    /// An HTTP endpoint.
    Webhook {
        /// Where to POST.
        url: String,
        /// Time for one order.
        timeout: Duration,
    },
}

impl Executor {
    /// Carries out `order`. Dropping the future stops a command.
    pub async fn execute(&self, order: &Order) -> Executed {
        let executed = match self {
            Self::Exec { program, arguments, timeout } => exec(program, arguments, *timeout, order).await,
            Self::Webhook { url, timeout } => webhook(url, *timeout, order).await,
        };
        executed.map_err(|error| error.chars().take(ERROR_CHARS_MAX).collect())
    }
}

/// Kills a process group when it is dropped, unless the leader has ended by itself.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // What ended meanwhile cannot be killed, and need not be.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

async fn exec(program: &PathBuf, arguments: &[String], timeout: Duration, order: &Order) -> Executed {
    let name = program.display();
    let mut child = Command::new(program)
        .args(arguments)
        .env("WEIR_INTENT", &order.id)
        .env("WEIR_ACTION", order.action.to_string())
        .env("WEIR_NAME", &order.name)
        .env("WEIR_SUBJECT", order.subject.to_string())
        .env("WEIR_RULE", &order.rule)
        .env("WEIR_EPOCH", order.epoch.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot start {name}: {error}"))?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let run = async {
        // What it started in the background may hold the pipes open: the output ends with the command.
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = {
            let mut read = std::pin::pin!(async {
                tokio::join!(keep(stdout, &mut out), keep(stderr, &mut err));
            });
            let mut wait = std::pin::pin!(child.wait());
            let mut read_all = false;
            loop {
                tokio::select! {
                    () = &mut read, if !read_all => read_all = true,
                    status = &mut wait => {
                        if !read_all {
                            let _ = tokio::time::timeout(Duration::from_millis(200), &mut read).await;
                        }
                        break status;
                    }
                }
            }
        };
        (status, out, err)
    };
    let Ok((status, out, err)) = tokio::time::timeout(timeout, run).await else {
        return Err(format!("{name} did not end within {} s and was stopped", timeout.as_secs_f32()));
    };
    let status = status.map_err(|error| format!("{name}: {error}"))?;
    group.0 = None;
    if status.success() {
        return address(String::from_utf8_lossy(&out).lines().next().unwrap_or_default());
    }
    let said = String::from_utf8_lossy(&err);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(format!("{name} ended with {status}: {}", last.trim()))
}

/// Reads to the end and keeps the beginning.
async fn keep(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = [0; 4096];
    while let Ok(count) = stream.read(&mut buffer).await
        && count > 0
    {
        let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
}

async fn webhook(url: &str, timeout: Duration, order: &Order) -> Executed {
    #[derive(Deserialize)]
    struct Said {
        address: Option<String>,
    }
    let body = serde_json::to_vec(order).map_err(|error| error.to_string())?;
    let key = header::HeaderValue::from_str(&format!("{}-{}", order.id, order.action));
    let json = header::HeaderValue::from_static("application/json");
    let mut headers = vec![(header::CONTENT_TYPE, json)];
    // The usual name for "do nothing twice for this word".
    headers.extend(key.ok().map(|key| (header::HeaderName::from_static("idempotency-key"), key)));
    let (body, bytes_max) = (Bytes::from(body), OUTPUT_BYTES_MAX);
    let ask = http::Ask { method: Method::POST, url, headers, body, timeout, bytes_max };
    let answer = http::ask(ask).await.map_err(|error| error.to_string())?;
    if !(200..300).contains(&answer.status) {
        return Err(format!("the webhook answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body)));
    }
    if answer.body.trim_ascii().is_empty() {
        return Ok(None);
    }
    match serde_json::from_slice::<Said>(&answer.body) {
        Ok(Said { address: Some(text) }) => address(&text),
        // An answer in other words says that it was done, no more.
        _ => Ok(None),
    }
}

/// The address in an executor's answer; what is none is no answer.
fn address(text: &str) -> Executed {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    // Anything else that it prints is its own business.
    Ok(text.parse::<SocketAddr>().ok().map(|address| address.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{super::intent::Action, *};
    use crate::orchestrator::scale::Subject;

    fn order() -> Order {
        Order {
            id: "7-ab-1".into(),
            action: Action::Create,
            name: "lb-7-ab-1".into(),
            subject: Subject::Backends("web".into()),
            rule: "scaling/web".into(),
            epoch: 7,
        }
    }

    fn sh(script: &str, timeout_ms: u64) -> Executor {
        let timeout = Duration::from_millis(timeout_ms);
        Executor::Exec { program: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()], timeout }
    }

    #[tokio::test]
    async fn a_command_is_told_everything_and_answers() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("told");
        let script = format!(
            "echo $WEIR_INTENT $WEIR_ACTION $WEIR_NAME $WEIR_SUBJECT $WEIR_RULE $WEIR_EPOCH > {}; echo 10.0.0.9:80; echo more",
            file.display()
        );
        assert_eq!(sh(&script, 30_000).execute(&order()).await, Ok(Some("10.0.0.9:80".into())));
        let told = std::fs::read_to_string(file).unwrap();
        assert_eq!(told, "7-ab-1 create lb-7-ab-1 service/web scaling/web 7\n");
        assert_eq!(sh("true", 30_000).execute(&order()).await, Ok(None));
        assert_eq!(sh("echo created it", 30_000).execute(&order()).await, Ok(None));
    }

    #[tokio::test]
    async fn what_fails_says_so() {
        let error = sh("echo first >&2; echo no quota >&2; exit 3", 30_000).execute(&order()).await.unwrap_err();
        assert!(error.contains("exit status: 3") && error.ends_with("no quota"), "{error}");
        let none = Executor::Exec {
            program: "/no/such/program".into(),
            arguments: Vec::new(),
            timeout: Duration::from_secs(1),
        };
        assert!(none.execute(&order()).await.unwrap_err().contains("cannot start"));
        // Without end, and more than anybody keeps.
        let error = sh("yes", 300).execute(&order()).await.unwrap_err();
        assert!(error.contains("was stopped"), "{error}");
    }

    #[tokio::test]
    async fn a_child_in_the_background_is_not_waited_for_and_one_that_is_stopped_takes_its_children_along() {
        let started = Instant::now();
        assert_eq!(sh("sleep 60 & echo 10.0.0.9:80", 30_000).execute(&order()).await, Ok(Some("10.0.0.9:80".into())));
        assert!(started.elapsed() < Duration::from_secs(25));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 61 & echo $! > {}; wait", file.display());
        assert!(sh(&script, 2_000).execute(&order()).await.is_err());
        let pid: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !gone() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(gone(), "{pid} lives");
    }
}
