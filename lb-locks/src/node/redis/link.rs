//! One connection to a Redis server, and what the server said about itself when it was made.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{AsyncConnectionConfig, Client, Cmd, RedisError, Value as Raw};

use super::{UNANSWERED_MAX, driven::Driven, error, script};
use crate::{clock::BootTime, error::NodeError};

/// A connection.
#[derive(Debug)]
pub struct Link {
    connection: Driven,
    /// Why fencing tokens cannot be trusted here, if so.
    pub fence: Result<(), String>,
    /// Whether it has DELEX (Redis 8.4), which deletes a key that still has a value without a function of ours.
    pub has_delex: bool,
    /// Requests sent.
    sent: AtomicU64,
    /// Number of the last request that was answered; answers come in order.
    answered: AtomicU64,
    /// Since when requests wait without any answer.
    silent_since: Mutex<Option<BootTime>>,
}

impl Link {
    /// Connects, and asks for the settings that matter to locks.
    pub async fn open(name: &str, client: &Client, timeout: Duration) -> Result<Self, NodeError> {
        // The crate's own time-outs are set by hand: its defaults fit neither connecting nor locks. Answers have none
        // here, because the caller brings one for the whole round.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(UNANSWERED_MAX as usize);
        let connection = match tokio::time::timeout(timeout, Driven::connect(client, config)).await {
            Ok(connected) => connected.map_err(|e| error::node_error(&e))?,
            Err(_) => return Err(NodeError::Unreachable("connecting took too long".into())),
        };
        let mut link = Self {
            connection,
            fence: Ok(()),
            has_delex: false,
            sent: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            silent_since: Mutex::default(),
        };
        let setting = async |option: &str| link.setting(option).await;
        let asked = tokio::time::timeout(timeout, async {
            tokio::join!(
                setting("maxmemory-policy"),
                setting("appendonly"),
                setting("appendfsync"),
                link.has_command("DELEX"),
                link.teach()
            )
        });
        let Ok((policy, appendonly, appendfsync, has_delex, ())) = asked.await else {
            return Err(NodeError::Unreachable("no answer to CONFIG GET".into()));
        };
        if let Ok(policy) = &policy
            && policy != "noeviction"
        {
            tracing::warn!("lock node {name} has maxmemory-policy {policy}: it may evict a lock; set noeviction");
        }
        link.fence = trust(&policy, &appendonly, &appendfsync);
        link.has_delex = has_delex;
        Ok(link)
    }

    /// Gives the server the library, so that the first request finds it. Where it does not take it (it has it, it is loading,
    /// it is a replica, the user may not), the first request tells why.
    async fn teach(&self) {
        let _ = self.send(&script::load()).await;
    }

    async fn setting(&self, option: &str) -> Result<String, String> {
        let mut cmd = redis::cmd("CONFIG");
        cmd.arg("GET").arg(option);
        match self.send(&cmd).await {
            Ok(Ok(Raw::Array(mut parts))) if parts.len() == 2 => {
                Ok(parts.pop().and_then(script::text).unwrap_or_default())
            }
            Ok(Ok(_)) => Err(format!("the server does not tell its {option}")),
            Ok(Err(e)) => Err(format!("the server does not tell its {option}: {}", error::node_error(&e))),
            Err(e) => Err(format!("the server does not tell its {option}: {e}")),
        }
    }

    /// Whether the server knows `command`; no, if it does not say.
    async fn has_command(&self, command: &str) -> bool {
        let mut cmd = redis::cmd("COMMAND");
        cmd.arg("INFO").arg(command);
        // One entry for each name: nothing, or its description.
        let described = |entry: &Raw| matches!(entry, Raw::Array(parts) if !parts.is_empty());
        matches!(self.send(&cmd).await, Ok(Ok(Raw::Array(entries))) if entries.iter().any(described))
    }

    /// Sends one command. The outer error is about the connection, the inner one the server's.
    pub async fn send(&self, cmd: &Cmd) -> Result<Result<Raw, RedisError>, NodeError> {
        let number = self.sent.fetch_add(1, Ordering::Relaxed) + 1;
        // Whoever is turned away here leaves a gap in the numbers, which the next answer closes.
        if number.saturating_sub(self.answered.load(Ordering::Relaxed)) > UNANSWERED_MAX {
            self.sent.fetch_sub(1, Ordering::Relaxed);
            return Err(NodeError::Overloaded);
        }
        self.silent_since().get_or_insert_with(BootTime::now);
        let answer = self.connection.send(cmd).await.and_then(Raw::extract_error);
        self.answered.fetch_max(number, Ordering::Relaxed);
        let waiting = self.sent.load(Ordering::Relaxed) > self.answered.load(Ordering::Relaxed);
        *self.silent_since() = waiting.then(BootTime::now);
        match answer {
            Err(e) if e.is_io_error() || e.is_connection_dropped() || e.is_unrecoverable_error() => {
                Err(NodeError::Unreachable(e.to_string()))
            }
            answer => Ok(answer),
        }
    }

    /// For how long requests have waited without any answer.
    pub fn silence(&self) -> Duration {
        self.silent_since().map_or(Duration::ZERO, |since| BootTime::now().since(since))
    }

    fn silent_since(&self) -> std::sync::MutexGuard<'_, Option<BootTime>> {
        // The content is one word: a panic elsewhere cannot leave it half written.
        self.silent_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a counter survives on a server with these settings.
fn trust(
    policy: &Result<String, String>,
    appendonly: &Result<String, String>,
    appendfsync: &Result<String, String>,
) -> Result<(), String> {
    for (option, found, wanted) in [
        ("maxmemory-policy", policy, "noeviction"),
        ("appendonly", appendonly, "yes"),
        ("appendfsync", appendfsync, "always"),
    ] {
        match found {
            Ok(found) if found == wanted => {}
            Ok(found) => return Err(format!("{option} is {found}, fences need {wanted}")),
            Err(why) => return Err(why.clone()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_need_a_durable_server() {
        let yes = |text: &str| Ok(text.to_owned());
        assert_eq!(trust(&yes("noeviction"), &yes("yes"), &yes("always")), Ok(()));
        for (policy, appendonly, appendfsync, part) in [
            ("allkeys-lru", "yes", "always", "maxmemory-policy is allkeys-lru"),
            ("noeviction", "no", "always", "appendonly is no"),
            ("noeviction", "yes", "everysec", "appendfsync is everysec"),
        ] {
            let told = trust(&yes(policy), &yes(appendonly), &yes(appendfsync)).unwrap_err();
            assert!(told.contains(part), "{told}");
        }
        assert!(trust(&Err("hidden".into()), &yes("yes"), &yes("always")).is_err());
    }
}
