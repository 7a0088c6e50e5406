//! `weir lock list`.

use clap::Args;
use lb_locks::{Holding, LockError};
use serde::Serialize;

use super::{inspect, settled, stores::Stores};
use crate::cli::{
    exit::{Exit, Failure},
    shell::Shell,
    table::{Column, table},
};

/// `weir lock list`.
#[derive(Args, Clone, Debug)]
pub struct List {
    /// Show this many at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
    #[command(flatten)]
    stores: Stores,
}

#[derive(Serialize)]
struct Entry {
    name: String,
    #[serde(flatten)]
    holding: Holding,
}

/// Runs `weir lock list`.
pub fn run(shell: &Shell, args: &List) -> anyhow::Result<Exit> {
    settled(args.stores.open("")?, async |place| {
        place.refresh().await;
        let limit = usize::from(args.limit);
        // One more tells whether there are more.
        let mut names = place.lock.names(limit + 1).await.map_err(|e| silent(&e))?;
        if names.len() > limit {
            names.truncate(limit);
            eprintln!("weir: there are more: --limit");
        }
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            let holding = place.lock.inspect(&name).await.map_err(|e| silent(&e))?;
            // It may have been released since.
            if !holding.holders.is_empty() || !holding.waiters.is_empty() {
                entries.push(Entry { name, holding });
            }
        }
        shell.show(&entries, |entries| text(entries, shell.colour))?;
        Ok(Exit::Ok)
    })
}

/// No node answered.
pub fn silent(error: &LockError) -> Failure {
    Failure { exit: Exit::NotReachable, ..super::failure(error) }
}

fn text(entries: &[Entry], colour: bool) -> String {
    if entries.is_empty() {
        return "no lock is held or waited for\n".to_owned();
    }
    let columns = [
        Column::Left("NAME"),
        Column::Left("MODE"),
        Column::Left("HOLDER"),
        Column::Right("EXPIRES IN"),
        Column::Right("NODES"),
        Column::Right("WAITERS"),
    ];
    let mut rows = Vec::new();
    for Entry { name, holding } in entries {
        let waiters = holding.waiters.len().to_string();
        for holder in &holding.holders {
            rows.push(vec![
                name.as_str().into(),
                inspect::mode(holder.mode).into(),
                inspect::owner(holder.owner.as_ref()).into(),
                inspect::time(holder.remaining_ms).into(),
                inspect::share(holder, holding.nodes),
                waiters.as_str().into(),
            ]);
        }
        if holding.holders.is_empty() {
            rows.push(vec![name.as_str().into(), "".into(), "(nobody)".into(), "".into(), "".into(), waiters.into()]);
        }
    }
    table(&columns, rows, colour)
}
