//! `trefoil completions SHELL`.

use crate::failure::Outcome;
use clap::{Args, Command};
use clap_complete::Shell;
use std::io::Write;

const EXAMPLES: &str = "\
Examples:
  trefoil completions bash > ~/.local/share/bash-completion/completions/trefoil
  trefoil completions zsh  > ~/.zfunc/_trefoil
  trefoil completions fish > ~/.config/fish/completions/trefoil.fish";

/// Write a completion script for a shell
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Runs the command.
pub fn run(args: &CompletionsArgs, mut command: Command, out: &mut dyn Write) -> Outcome {
    // Into memory first: clap panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "trefoil", &mut script);
    out.write_all(&script)?;
    Ok(())
}
