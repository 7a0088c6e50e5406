//! What DNS servers say all the time, as a client hears it.
//!
//! Owns: asking each of them several times a second. Refuses to know: what they should say.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use futures_util::future::join_all;
use xtask::lab::{
    client::runtime,
    fleet::{Fleet, control::NAME, resolve, topology::DNS_SERVERS, topology::Host},
};

/// Pause between two rounds of questions.
const EVERY: Duration = Duration::from_millis(100);

/// One answer.
#[derive(Clone, Debug)]
pub struct Said {
    /// When it came, or when waiting for it ended.
    pub at: Instant,
    /// Which server was asked.
    pub server: u8,
    /// Addresses; `None` where nobody answered.
    pub addresses: Option<Vec<IpAddr>>,
    /// What an answer said that was none of addresses.
    pub refused: Option<String>,
}

/// Asks until it is stopped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    said: Arc<Mutex<Vec<Said>>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Watch {
    /// Begins to ask, from where the clients are.
    pub fn start(fleet: &Fleet) -> Result<Self> {
        let (stop, said) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Said>>>::default());
        let (flag, kept) = (Arc::clone(&stop), Arc::clone(&said));
        let thread = fleet.ground.namespace(&Host::Client.name()).spawn(move || {
            runtime()?.block_on(async {
                while !flag.load(Ordering::Relaxed) {
                    let answers = (1..=DNS_SERVERS).map(async |server| {
                        let answer = resolve::ask(resolve::server(server), NAME).await;
                        (server, Instant::now(), answer)
                    });
                    let new = join_all(answers).await.into_iter().map(|(server, at, answer)| match answer {
                        Ok(addresses) => Said { at, server, addresses: Some(addresses), refused: None },
                        Err(error) => {
                            let words = format!("{error:#}");
                            let refused = words.contains(" answers ").then_some(words);
                            Said { at, server, addresses: None, refused }
                        }
                    });
                    kept.lock().unwrap_or_else(PoisonError::into_inner).extend(new);
                    tokio::time::sleep(EVERY).await;
                }
                Ok(())
            })
        })?;
        Ok(Self { stop, said, thread: Some(thread) })
    }

    /// What was said since `from`.
    pub fn since(&self, from: Instant) -> Vec<Said> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().filter(|one| one.at >= from).cloned().collect()
    }

    /// Ends it; the thread's error, if it had one.
    pub fn stop(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| anyhow!("the watch panicked"))?,
            None => Ok(()),
        }
    }
}
