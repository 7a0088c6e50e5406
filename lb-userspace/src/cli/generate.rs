//! `weir completions` and `weir man`: what packages install, made from the definitions of the command line.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::shell::Shell;

/// `weir completions`.
#[derive(Args, Clone, Debug)]
pub struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

/// `weir man`.
#[derive(Args, Clone, Debug)]
pub struct Man {
    /// An existing folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Prints the completion script.
pub fn completions(shell: &Shell, args: &Completions, mut command: clap::Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "weir", &mut script);
    shell.print(&String::from_utf8_lossy(&script))
}

/// Writes one page per command, `weir.1`, `weir-service.1`, `weir-service-list.1` ...
pub fn man(args: &Man, command: clap::Command) -> anyhow::Result<()> {
    clap_mangen::generate_to(command, &args.dir)
        .with_context(|| format!("cannot write man pages into {} (does the folder exist?)", args.dir.display()))
}
