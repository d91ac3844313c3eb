//! The administrator's commands, one file each, and what all of them share.

pub mod bench;
pub mod completions;
pub mod crush;
pub mod daemons;
pub mod doctor;
pub mod events;
pub mod format;
pub mod go_ahead;
pub mod health;
pub mod init;
pub mod lists;
pub mod monitor;
pub mod moves;
pub mod node;
pub mod pg;
pub mod pg_doubts;
pub mod pg_scrub;
pub mod pg_settle;
pub mod pool;
pub mod status;
pub mod store;
pub mod top;
pub mod volume;
pub mod wish;

use clap::Args;

/// Options that every command takes.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// A monitor's HOST:PORT; several with commas. Else TREFOIL_MONITOR, else that of the `trefoil up` which
    /// runs on ./trefoil-data
    #[arg(long, global = true, value_name = "ADDR", value_delimiter = ',', help_heading = "Global options")]
    pub monitor: Vec<String>,
    /// More log lines on standard error; twice for still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub verbose: u8,
    /// Which log lines: a level (error, warn, info, debug, trace) or TARGET=LEVEL,...; else TREFOIL_LOG
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Global options")]
    pub log: Option<String>,
}
