//! `weir lock release`.

use std::time::Duration;

use clap::Args;
use lb_locks::NodeOutcome;
use serde::Serialize;

use super::{handle, settled, stores::Stores};
use crate::{
    cli::{
        exit::{Exit, Failure},
        shell::Shell,
    },
    model,
};

/// `weir lock release`.
#[derive(Args, Clone, Debug)]
pub struct Release {
    #[command(flatten)]
    which: handle::Which,
    #[command(flatten)]
    stores: Stores,
}

#[derive(Serialize)]
struct Gone {
    name: String,
    released: bool,
    in_time: bool,
}

/// Runs `weir lock release`; a handle file goes with the lock.
pub fn run(shell: &Shell, args: &Release) -> anyhow::Result<Exit> {
    let held = args.which.read()?;
    settled(args.stores.open("")?, async |place| {
        place.refresh().await;
        let guard = place.lock.resume(&held).map_err(|e| super::failure(&e))?;
        let rest = guard.remaining();
        let released = guard.release().await;
        let name = held.name.clone();
        if !released.confirmed {
            let told = |outcome: &NodeOutcome| matches!(outcome, NodeOutcome::Ok | NodeOutcome::Gone);
            let answered = released.report.0.iter().filter(|(_, outcome)| told(outcome)).count();
            if answered * 2 > released.report.0.len() {
                remove(args);
                let message = format!("{name:?} was not held any more ({})", released.report);
                return Err(Failure::new(Exit::LockLost, message).into());
            }
            let message = format!("{name:?} was not given back by a majority ({})", released.report);
            let rest = model::duration::format(rest + Duration::from_secs(1));
            let hint = format!("try again, or let it expire, which takes about {rest}");
            return Err(Failure::new(Exit::NotReachable, message).hint(hint).into());
        }
        remove(args);
        let gone = Gone { name, released: true, in_time: released.in_time };
        shell.show(&gone, |gone| {
            let late =
                if gone.in_time { "" } else { ", after its validity had ended: another may have held it meanwhile" };
            format!("{}: released{late}\n", gone.name)
        })?;
        Ok(Exit::Ok)
    })
}

/// The handle is of no use any more. A file that cannot be removed does no harm.
fn remove(args: &Release) {
    if let Some(path) = &args.which.handle
        && let Err(error) = std::fs::remove_file(path)
    {
        eprintln!("weir: cannot remove {}: {error}", path.display());
    }
}
