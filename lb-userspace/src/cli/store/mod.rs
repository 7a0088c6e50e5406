//! What commands that go through the store share: finding it, changing it, waiting for its nodes.
//!
//! A command asks `[store]` of the node's file where services stand. In the file itself: the agent is asked, and overrides are its
//! affair. In a store: objects are edited, checked like a file and written, and the agents follow.

mod history;
mod wait;
mod write;

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use clap::Args;

use super::{
    config,
    exit::{Exit, Failure},
};
use crate::{
    agent::CONFIG_DEFAULT,
    model::{StoreConfig, parse::document},
    store::{self, Store, StoreError, edit::EditError, object::RevisionName, watched::WatchedFile},
};

pub use history::{Restore, Rollback, export, history, restore, rollback, show};
pub use write::{author, change, make};

/// Which store.
#[derive(Args, Clone, Debug, Default)]
pub struct StoreArgs {
    /// The node's configuration, whose [store] says where services stand [default: /etc/weir/weir.toml if there is one]
    #[arg(long, value_name = "FILE", env = "WEIR_CONFIG")]
    pub config: Option<PathBuf>,
}

/// How a change of the store is made.
#[derive(Args, Clone, Debug, Default)]
pub struct WriteArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Change nothing unless the store stands at this revision (`42`, `42-1a2b3c4d`)
    #[arg(long, value_name = "REV")]
    pub expect_rev: Option<RevisionName>,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Wait until all live nodes have applied the change, at most SECONDS (60 unless given)
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "60")]
    pub wait: Option<u32>,
    /// Who makes the change, for the history [default: you]
    #[arg(long, value_name = "NAME", env = "WEIR_AUTHOR")]
    pub author: Option<String>,
    /// Why, for the history
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
}

impl WriteArgs {
    /// Refuses what only a store can do; `but` is one that the command knows itself.
    pub fn refuse_without_store(&self, but: &str) -> Result<(), Failure> {
        let given = [
            ("--expect-rev", self.expect_rev.is_some()),
            ("--dry-run", self.dry_run),
            ("--wait", self.wait.is_some()),
            ("--message", self.message.is_some()),
        ];
        match given.into_iter().find(|(name, given)| *given && *name != but) {
            None => Ok(()),
            Some((name, _)) => Err(Failure::new(
                Exit::Usage,
                format!("{name} needs a store, and services stand in a file"),
            )
            .hint(
                "`[store]` in the node's configuration chooses one; `weir config diff` shows what a file would change",
            )),
        }
    }
}

/// Where services stand.
#[derive(Debug)]
pub enum Place {
    /// In the node's file: the agent is asked.
    File,
    /// In a store.
    Store(Shared),
}

impl Place {
    /// The store.
    ///
    /// # Errors
    /// [`Exit::Refused`] where services stand in the file.
    pub fn store(self, instead: &str) -> Result<Shared, Failure> {
        match self {
            Self::Store(shared) => Ok(shared),
            Self::File => {
                Err(Failure::new(Exit::Refused, "the services of this node stand in its file, not in a store").hint(
                    format!(
                        "{instead}; `[store]` in the node's configuration chooses a store, `--config` another file"
                    ),
                ))
            }
        }
    }
}

/// A store with the file of the node that uses it.
#[derive(Debug)]
pub struct Shared {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The node's file: changes must fit its limits.
    pub local: Arc<str>,
    /// Name of that file.
    pub file_name: String,
}

/// Finds out where services stand.
///
/// # Errors
/// A file that was named and cannot be read, and a `[store]` that is wrong.
pub fn place(args: &StoreArgs) -> anyhow::Result<Place> {
    let path = match &args.config {
        Some(path) => path.clone(),
        None if std::path::Path::new(CONFIG_DEFAULT).exists() => CONFIG_DEFAULT.into(),
        None => return Ok(Place::File),
    };
    let (text, file_name) = match config::read(&path) {
        Ok(read) => read,
        // Who may ask the agent need not be able to read its file.
        Err(_) if args.config.is_none() => return Ok(Place::File),
        Err(error) => return Err(error),
    };
    let store = document::store(&file_name, &text).map_err(|checked| config::invalid(&checked, &text))?;
    match store {
        StoreConfig::File => Ok(Place::File),
        store => {
            let store =
                store::open(&store).map_err(failed).with_context(|| format!("cannot open the store of {file_name}"))?;
            Ok(Place::Store(Shared { store, local: text.into(), file_name }))
        }
    }
}

/// What can be read as a store: the store, or the services and pools of the node's own file where they stand there.
///
/// # Errors
/// As [`place`]; a file that cannot be read.
pub fn readable(args: &StoreArgs) -> anyhow::Result<Arc<dyn Store>> {
    if let Place::Store(shared) = place(args)? {
        return Ok(shared.store);
    }
    let path = args.config.clone().unwrap_or_else(|| CONFIG_DEFAULT.into());
    config::read(&path)?;
    Ok(Arc::new(WatchedFile::new(&path).map_err(failed)?))
}

/// What went wrong, with its exit code.
pub fn failed(error: StoreError) -> Failure {
    let exit = match &error {
        StoreError::Unavailable(_) => Exit::NotReachable,
        StoreError::Conflict { .. }
        | StoreError::Denied(_)
        | StoreError::ReadOnly(_)
        | StoreError::Full(_)
        | StoreError::Form(_)
        | StoreError::Unsupported(_)
        | StoreError::Refused(_) => Exit::Refused,
        _ => Exit::Failure,
    };
    let hint = match &error {
        StoreError::Unavailable(_) => Some("nodes go on with what they have; nothing was changed"),
        StoreError::Conflict { .. } => {
            Some("somebody else was faster: `weir config history` says who; look, then try again")
        }
        StoreError::ReadOnly(_) => Some("nothing was changed; with Redis a fail-over is over after some seconds"),
        StoreError::Denied(_) => {
            Some("`user`, `password_file`, `token_file` and the TLS files of `[store]` say who asks")
        }
        _ => None,
    };
    let failure = Failure::new(exit, error.to_string());
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The same for an edit.
pub fn refused(error: EditError) -> Failure {
    let exit = match &error {
        error if error.is_not_found() => Exit::NotFound,
        error if error.is_usage() => Exit::Usage,
        EditError::Broken { .. } => Exit::ConfigInvalid,
        _ => Exit::Refused,
    };
    let hint = match &error {
        EditError::NoService { .. } => Some("`weir config export` shows the services of the store"),
        EditError::NoBackend { .. } => Some("`weir config export` shows the backends of each service"),
        EditError::ServiceExists(_) => Some("`weir service set` changes it, `weir service delete` removes it"),
        EditError::BackendExists { .. } => Some("`weir backend weight|drain|ready` change it"),
        EditError::Broken { .. } => Some("`weir config apply FILE` replaces it"),
        _ => None,
    };
    let failure = Failure::new(exit, error.to_string());
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
