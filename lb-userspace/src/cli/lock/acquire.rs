//! `weir lock acquire`: takes a lock that outlives this process.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Wanted, family, handle, inspect, settled, stores::Stores};
use crate::cli::{
    exit::Exit,
    shell::{Format, Shell},
};

const AFTER_HELP: &str = "\
In a script:

    handle=$(weir lock acquire nightly --ttl 60s) || exit
    ...
    handle=$(weir lock extend \"$handle\") || exit
    ...
    weir lock release \"$handle\"

or with --handle FILE, which `extend` keeps up to date. Whoever has the handle can release the lock.";

/// `weir lock acquire`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Acquire {
    #[command(flatten)]
    wanted: Wanted,
    /// Write the handle into this file, which only its owner may read, instead of printing it
    #[arg(long, value_name = "FILE")]
    handle: Option<PathBuf>,
    /// What `inspect` shows about the holder; the calling process unless given
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    #[command(flatten)]
    stores: Stores,
}

/// What is said about a lock that is held.
#[derive(Serialize)]
pub struct Kept {
    /// The lock.
    pub name: String,
    /// Its handle, unless it is in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle: Option<String>,
    /// The token.
    pub fence: Option<u64>,
    /// The rest of its validity, in milliseconds.
    pub valid_ms: u64,
}

impl Kept {
    /// Hands on what a guard left: into `file`, or as a word.
    pub fn new(held: &lb_locks::Held, file: Option<&std::path::Path>) -> anyhow::Result<Self> {
        let handle = match file {
            Some(file) => {
                handle::write(file, held)?;
                None
            }
            None => Some(handle::encode(held)?),
        };
        let valid = held.valid_until().since(lb_locks::clock::BootTime::now());
        let valid_ms = u64::try_from(valid.as_millis()).unwrap_or(u64::MAX);
        Ok(Self { name: held.name.clone(), handle, fence: held.fence, valid_ms })
    }

    /// Shows it: the handle alone, for a script, or a sentence where the handle is in a file.
    pub fn show(&self, shell: &Shell) -> anyhow::Result<()> {
        let text = |kept: &Self| match &kept.handle {
            Some(handle) => format!("{handle}\n"),
            None => {
                let fence = kept.fence.map_or_else(String::new, |fence| format!(", fence {fence}"));
                format!("{}: held for {}{fence}\n", kept.name, inspect::time(kept.valid_ms))
            }
        };
        if let (Some(_), Some(fence), Format::Table) = (&self.handle, self.fence, shell.format) {
            eprintln!("weir: fence {fence}");
        }
        shell.show(self, text)
    }
}

/// Runs `weir lock acquire`.
pub fn run(shell: &Shell, args: &Acquire) -> anyhow::Result<Exit> {
    let label = args.label.clone().unwrap_or_else(family::caller);
    settled(args.stores.open(&label)?, async |place| {
        // This process ends before the nodes that were not needed for the majority would be asked.
        let guard = super::acquire(place, args.wanted.request().everywhere()).await?;
        // Until the handle is safe with the caller the guard releases if anything fails.
        let held = guard.leave();
        match Kept::new(&held, args.handle.as_deref()).and_then(|kept| kept.show(shell)) {
            Ok(()) => Ok(Exit::Ok),
            Err(error) => {
                place.lock.resume(&held)?.release().await;
                Err(error)
            }
        }
    })
}
