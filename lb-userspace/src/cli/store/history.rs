//! What was: `weir config export|history|show REV|rollback REV|restore`.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use serde::Serialize;

use super::{
    super::{
        config::{coloured, diagnostics},
        exit::{Exit, Failure},
        shell::{Shell, block_on},
        table::{Cell, Column, Tone, printable, table},
        unit,
    },
    Shared, WriteArgs, failed,
    wait::{self, Waited},
    write::{self, compared},
};
use crate::{
    api,
    model::{Incremental, parse::document::state_dir},
    store::{
        Change, Objects, Revision, Snapshot, Store, Written,
        copy::{self, COPY_FILE},
        document,
        object::{HISTORY_MAX, RevisionName},
        past::{self, PastError},
    },
};

/// `weir config rollback`.
#[derive(Args, Clone, Debug)]
pub struct Rollback {
    /// The revision whose services are to come back: `42`, `42-1a2b3c4d`
    #[arg(value_name = "REV")]
    pub revision: RevisionName,
    #[command(flatten)]
    pub write: WriteArgs,
}

/// `weir config restore`.
#[derive(Args, Clone, Debug)]
pub struct Restore {
    /// A node's last good copy of the store [default: `store.json` in this node's `state_dir`]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub write: WriteArgs,
}

/// What `weir config export -o json` prints.
#[derive(Serialize)]
struct Export {
    revision: Option<Revision>,
    text: String,
}

/// Prints services and pools as a file would have them, and as `weir config apply` takes them for a store.
pub fn export(shell: &Shell, store: &Arc<dyn Store>) -> anyhow::Result<()> {
    let snapshot = block_on(async { Ok(store.snapshot().await.map_err(failed)?) })?;
    let (revision, objects) = snapshot.map(|snapshot| (snapshot.revision, snapshot.objects)).unzip();
    let export = Export { revision, text: document::join(&objects.unwrap_or_default()) };
    shell.show(&export, |export| export.text.clone())
}

/// Prints the newest changes.
pub fn history(shell: &Shell, shared: &Shared, limit: usize) -> anyhow::Result<()> {
    let changes = block_on(async { Ok(shared.store.history(limit).await.map_err(failed)?) })?;
    let entries: Vec<Entry> = changes.iter().map(Entry::new).collect();
    shell.show(&entries, |entries| list(entries, shell.colour))
}

/// A change without its texts: what `-o json` lists.
#[derive(Serialize)]
struct Entry {
    revision: Revision,
    previous: Revision,
    author: String,
    at_unix_ms: u64,
    message: String,
    /// `created`, `changed` or `deleted`, by object.
    objects: Vec<(String, &'static str)>,
}

impl Entry {
    fn new(change: &Change) -> Self {
        let what = |edit: &crate::store::Edit| match (&edit.before, &edit.after) {
            (None, _) => "created",
            (_, None) => "deleted",
            _ => "changed",
        };
        Self {
            revision: change.revision,
            previous: change.previous,
            author: change.author.clone(),
            at_unix_ms: change.at_unix_ms,
            message: change.message.clone(),
            objects: change.edits.iter().map(|edit| (edit.key.to_string(), what(edit))).collect(),
        }
    }

    /// `service/web changed`, `12 objects`.
    fn what(&self) -> String {
        match &*self.objects {
            [] => "the store was restored".to_owned(),
            [(key, what)] => format!("{key} {what}"),
            [(a, x), (b, y)] => format!("{a} {x}, {b} {y}"),
            more => format!("{} objects", more.len()),
        }
    }
}

fn list(entries: &[Entry], colour: bool) -> String {
    if entries.is_empty() {
        return "the store was never written\n".into();
    }
    let columns = ["REVISION", "WHEN", "AUTHOR", "WHAT", "MESSAGE"].map(Column::Left);
    let row = |entry: &Entry| -> Vec<Cell> {
        vec![
            entry.revision.to_string().into(),
            Cell::toned(unit::utc(entry.at_unix_ms), Tone::Faint),
            entry.author.as_str().into(),
            entry.what().into(),
            entry.message.as_str().into(),
        ]
    };
    table(&columns, entries.iter().map(row).collect(), colour)
}

/// Newest state and history, newest first.
async fn past(shared: &Shared) -> anyhow::Result<(Snapshot, Vec<Change>)> {
    let snapshot = shared.store.snapshot().await.map_err(failed)?;
    let snapshot = snapshot.ok_or_else(|| Failure::new(Exit::NotFound, "the store was never written"))?;
    // Each store keeps so many unless it was told otherwise.
    let history = shared.store.history(HISTORY_MAX.saturating_mul(10)).await.map_err(failed)?;
    Ok((snapshot, history))
}

fn unknown(error: PastError) -> Failure {
    let exit = match error {
        PastError::Unknown { .. } => Exit::NotFound,
        PastError::Torn { .. } => Exit::Failure,
    };
    Failure::new(exit, error.to_string()).hint("`weir config history` lists the revisions that the store keeps")
}

/// Prints one change.
pub fn show(shell: &Shell, shared: &Shared, name: &RevisionName) -> anyhow::Result<()> {
    let (snapshot, history) = block_on(past(shared))?;
    let change = past::change(&history, snapshot.revision, name).map_err(unknown)?;
    shell.show(change, |change| {
        let entry = Entry::new(change);
        let mut out = format!(
            "revision {}\nauthor   {}\nwhen     {}\nmessage  {}\n",
            change.revision,
            printable(&change.author),
            unit::utc(change.at_unix_ms),
            printable(&change.message)
        );
        if entry.objects.is_empty() {
            out.push_str("the store was lost, and restored from a node's copy\n");
        }
        let before: Objects =
            change.edits.iter().filter_map(|edit| Some((edit.key.clone(), edit.before.clone()?))).collect();
        let edits: Vec<_> = change.edits.iter().map(|edit| (edit.key.clone(), edit.after.clone())).collect();
        out.push('\n');
        out + &coloured(&compared(&before, &edits), shell.colour)
    })
}

/// Brings the objects of an earlier revision back, as a new change.
pub fn rollback(shell: &Shell, shared: &Shared, args: &Rollback) -> anyhow::Result<Exit> {
    let (snapshot, history) = block_on(past(shared))?;
    let (revision, wanted) = past::objects_at(&snapshot, &history, &args.revision).map_err(unknown)?;
    let mut write = args.write.clone();
    // What somebody writes in between is not rolled back unseen.
    let head = || RevisionName { number: snapshot.revision.number, digest: snapshot.revision.digest.to_string() };
    write.expect_rev.get_or_insert_with(head);
    write::change(shell, shared, &write, &format!("rollback to {revision}"), |objects| {
        let gone = objects.keys().filter(|key| !wanted.contains_key(*key)).map(|key| (key.clone(), None));
        Ok(wanted.iter().map(|(key, text)| (key.clone(), Some(text.clone()))).chain(gone).collect())
    })
}

/// What `weir config restore -o json` prints.
#[derive(Debug, Serialize)]
struct Restored {
    revision: Revision,
    replicated: bool,
    objects: usize,
    dry_run: bool,
    /// With `--wait`: how the nodes stand to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<Waited>,
}

/// Puts `copy` back.
async fn put_back(shared: &Shared, args: &WriteArgs, copy: &Snapshot, subject: &str) -> anyhow::Result<Restored> {
    let intent = write::intent(args, subject);
    let objects = copy.objects.len();
    if args.dry_run {
        shared.store.lost(copy, &intent).await.map_err(failed)?;
        return Ok(Restored { revision: copy.revision, replicated: true, objects, dry_run: true, nodes: None });
    }
    let first = if args.wait.is_some() { wait::live(&shared.store).await? } else { BTreeSet::new() };
    let Written { revision, replicated } = shared.store.restore(copy, &intent).await.map_err(failed)?;
    let nodes = match args.wait {
        None => None,
        Some(seconds) => Some(wait::wait(&shared.store, &first, revision, Duration::from_secs(seconds.into())).await?),
    };
    Ok(Restored { revision, replicated, objects, dry_run: false, nodes })
}

/// Puts a node's last good copy back into a store that lost what it held.
pub fn restore(shell: &Shell, shared: &Shared, args: &Restore) -> anyhow::Result<Exit> {
    let path = match &args.file {
        Some(path) => path.clone(),
        None => state_dir(&shared.local).join(COPY_FILE),
    };
    let copy = copy::read(&path).map_err(|error| {
        Failure::new(Exit::Failure, format!("cannot read {}: {error}", path.display())).hint(
            "each node keeps its last good copy of the store as `store.json` in its `state_dir`; name one with FILE",
        )
    })?;
    let document = document::document(&shared.file_name, shared.local.clone(), &copy.objects);
    let checked = Incremental::default().document(&document);
    if checked.config.is_none() {
        let message = format!("{} would not be a valid configuration here: {}", path.display(), checked.summary());
        let failure = Failure::new(Exit::ConfigInvalid, message);
        return Err(Failure { diagnostics: api::diagnostics_in(&checked, &document.sources()), ..failure }.into());
    }
    let restored = block_on(put_back(shared, &args.write, &copy, &format!("restored from {}", path.display())))?;
    shell.show(&restored, |restored| {
        let mut out = diagnostics(&api::diagnostics_in(&checked, &document.sources()));
        let Restored { revision, objects, .. } = restored;
        out.push_str(&match (restored.dry_run, restored.replicated) {
            (true, _) => format!(
                "{objects} objects of revision {revision} would be written; all that the store holds would go\n"
            ),
            (false, true) => format!("restored {objects} objects as revision {revision}; nodes go on from there\n"),
            (false, false) => format!("restored {objects} objects as revision {revision}, not replicated yet\n"),
        });
        if let Some(nodes) = &restored.nodes {
            out.push_str(&nodes.words(*revision));
        }
        out
    })?;
    Ok(restored.nodes.as_ref().map_or(Exit::Ok, Waited::exit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        Key,
        memory::MemoryStore,
        node::{NodeStatus, Outcome},
        object::Digest,
    };

    fn copy() -> Snapshot {
        let objects = Objects::from([(Key::new("service/web").unwrap(), "[[service]]\nname = \"web\"\n".into())]);
        Snapshot {
            origin: Digest::new([3; 32]),
            revision: Revision { number: 41, digest: Digest::new([4; 32]) },
            objects,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_is_put_back_on_the_revision_that_somebody_saw() {
        let store = Arc::new(MemoryStore::default());
        let shared = Shared { store, local: "".into(), file_name: "weir.toml".into() };
        let put = async |args: WriteArgs| put_back(&shared, &args, &copy(), "restored").await;
        let expect = |rev: &str| WriteArgs { expect_rev: Some(rev.parse().unwrap()), ..WriteArgs::default() };
        for dry_run in [true, false] {
            let failure: Failure = put(WriteArgs { dry_run, ..expect("7") }).await.unwrap_err().downcast().unwrap();
            assert_eq!(failure.exit, Exit::Refused, "nothing was ever written in it: {}", failure.message);
        }
        let dry = put(WriteArgs { dry_run: true, ..expect("0") }).await.unwrap();
        assert!(dry.dry_run && shared.store.snapshot().await.unwrap().is_none());
        let lone = put(WriteArgs { wait: Some(60), ..expect("0") }).await.unwrap();
        assert_eq!((lone.revision.number, lone.nodes.unwrap().exit()), (42, Exit::TimedOut), "nobody is alive");
        // Nothing is lost any more, and a dry run says so.
        let failure: Failure = put(WriteArgs { dry_run: true, ..expect("42") }).await.unwrap_err().downcast().unwrap();
        assert!(failure.message.contains("has lost nothing"), "{}", failure.message);
    }

    #[tokio::test]
    async fn whoever_puts_it_back_may_wait_for_the_nodes() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let shared = Shared { store: Arc::clone(&store), local: "".into(), file_name: "weir.toml".into() };
        let agent = tokio::spawn(async move {
            let head = loop {
                if let Some(snapshot) = store.snapshot().await.unwrap() {
                    break snapshot.revision;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            let NodeStatus { report, .. } = wait::tests::node("a", Some(head), Outcome::Applied, true);
            store.report(&report).await.unwrap();
        });
        let args = WriteArgs { wait: Some(60), ..WriteArgs::default() };
        let restored = put_back(&shared, &args, &copy(), "restored").await.unwrap();
        agent.await.unwrap();
        let nodes = restored.nodes.unwrap();
        assert_eq!((&*nodes.applied, nodes.exit()), (&["a".to_owned()][..], Exit::Ok));
    }
}
