//! `trefoil`: every daemon and the administrator's command line in one binary.
//!
//! | module | what |
//! |---|---|
//! | [`cmd`] | one file per command |
//! | [`up`] | `trefoil up`: a whole cluster on one machine |
//! | [`daemon`] | the three daemons, run on a thread |
//! | [`notify`] | what the service manager is told |
//! | [`doctor`] | whether a host is fit for daemons |
//! | [`admin`] | the connection to the monitors |
//! | [`view`] | what is shown, with the field names of `--json` |
//! | [`failure`] | errors and exit codes |
//!
//! No rule of replication or placement is here; the crates have them.

mod admin;
mod cmd;
mod config;
mod daemon;
mod doctor;
mod failure;
mod limits;
mod logging;
mod notify;
mod output;
mod signals;
mod size;
mod up;
mod view;

use clap::{CommandFactory, Parser, Subcommand};
use cmd::Global;
use failure::{EXIT_CODES, Outcome, StandardOutput};
use std::io::Write;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXAMPLES: &str = "\
Examples:
  trefoil up                          # a cluster on this machine, with a disk on it
  trefoil status
  trefoil volume create disk1 10G
  trefoil volume list --json

Every command has --help with examples.";

/// Replicated block storage for virtual machines
#[derive(Parser, Debug)]
#[command(name = "trefoil", version, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"), max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Up(up::UpArgs),
    Init(cmd::init::InitArgs),
    Doctor(cmd::doctor::DoctorArgs),
    Status(cmd::status::StatusArgs),
    Health(cmd::health::HealthArgs),
    Events(cmd::events::EventsArgs),
    Top(cmd::top::TopArgs),
    /// Make, list, show and remove volumes
    #[command(subcommand)]
    Volume(cmd::volume::VolumeCommand),
    /// Show storage nodes, drain and remove them, take them out and in
    #[command(subcommand)]
    Node(cmd::lists::NodeCommand),
    /// Show placement groups: where they live, and what each copy holds
    #[command(subcommand)]
    Pg(cmd::pg::PgCommand),
    /// Show, pause, undo and limit what is on the move
    #[command(subcommand)]
    Move(cmd::moves::MoveCommand),
    /// Make, show and change pools
    #[command(subcommand)]
    Pool(cmd::pool::PoolCommand),
    Monitor(cmd::daemons::MonitorArgs),
    StorageNode(cmd::daemons::NodeArgs),
    Nbd(cmd::daemons::NbdArgs),
    /// Look at, check and export the stores of storage nodes that do not run
    #[command(subcommand, after_help = cmd::store::EXIT_CODES)]
    Store(cmd::store::StoreCommand),
    /// Show, compare and change the CRUSH map: where copies should live
    #[command(subcommand)]
    Crush(cmd::crush::CrushCommand),
    /// Measure a running cluster, or this machine
    Bench(cmd::bench::BenchArgs),
    Completions(cmd::completions::CompletionsArgs),
}

/// Starts logging at `quiet` where neither `--log` nor TREFOIL_LOG says otherwise.
fn start_logging(global: &Global, quiet: &str) -> Outcome {
    let environment = std::env::var("TREFOIL_LOG").ok().filter(|text| !text.is_empty());
    let filter = global.log.clone().or(environment);
    logging::start(filter.as_deref(), quiet, global.verbose).map_err(failure::Failure::usage)
}

fn run(cli: &Cli, out: &mut dyn Write) -> Outcome {
    let global = &cli.global;
    let daemon = matches!(cli.command, Command::Monitor(_) | Command::StorageNode(_) | Command::Nbd(_));
    // What recovery would log, these commands say themselves.
    let quiet = if matches!(cli.command, Command::Store(_)) { "off" } else { "warn" };
    if !daemon {
        start_logging(global, quiet)?;
    }
    match &cli.command {
        Command::Up(args) => up::run(args, global),
        Command::Init(args) => cmd::init::run(args, out),
        Command::Doctor(args) => cmd::doctor::run(args, out),
        Command::Status(args) => cmd::status::run(args, global, out),
        Command::Health(args) => cmd::health::run(args, global, out),
        Command::Events(args) => cmd::events::run(args, global, out),
        Command::Top(args) => cmd::top::run(args, global, out),
        Command::Volume(command) => cmd::volume::run(command, global, out),
        Command::Node(command) => cmd::lists::node(command, global, out),
        Command::Pg(command) => cmd::pg::run(command, global, out),
        Command::Move(command) => cmd::moves::run(command, global, out),
        Command::Pool(command) => cmd::pool::run(command, global, out),
        Command::Monitor(args) => cmd::daemons::monitor(args, global, out),
        Command::StorageNode(args) => cmd::daemons::storage_node(args, global, out),
        Command::Nbd(args) => cmd::daemons::nbd(args, global),
        Command::Store(command) => cmd::store::run(command, out),
        Command::Crush(command) => cmd::crush::run(command, global, out),
        Command::Bench(args) => cmd::bench::run(args, global, out),
        Command::Completions(args) => cmd::completions::run(args, Cli::command(), out),
    }
}

fn main() -> ExitCode {
    // Wrong usage ends here, with code 2.
    let cli = Cli::parse();
    let mut out = StandardOutput(std::io::stdout());
    let outcome = run(&cli, &mut out).and_then(|()| Ok(out.flush()?));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // `trefoil ... | head` is no failure.
        Err(failure) if failure.is_reader_gone() => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(line) = failure.line() {
                let _ = writeln!(std::io::stderr(), "trefoil: error: {line}");
            }
            ExitCode::from(failure.code)
        }
    }
}
