//! `weir lock extend`.

use clap::Args;

use super::{acquire::Kept, handle, settled, stores::Stores};
use crate::cli::{exit::Exit, shell::Shell};

/// `weir lock extend`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Prints the handle to go on with, unless it is in a file. A lock whose validity is over is never extended: \
                        another may have held it meanwhile."
)]
pub struct Extend {
    #[command(flatten)]
    which: handle::Which,
    #[command(flatten)]
    stores: Stores,
}

/// Runs `weir lock extend`.
pub fn run(shell: &Shell, args: &Extend) -> anyhow::Result<Exit> {
    let held = args.which.read()?;
    settled(args.stores.open("")?, async |place| {
        place.refresh().await;
        let guard = place.lock.resume(&held).map_err(|e| super::failure(&e))?;
        let extended = guard.extend().await;
        // Whatever became of it, it is not for this process to give the lock back.
        let left = guard.leave();
        extended.map_err(|e| super::failure(&e))?;
        Kept::new(&left, args.which.handle.as_deref())?.show(shell)?;
        Ok(Exit::Ok)
    })
}
