//! The command line, really run. One program for all of it: each one takes long to build. A part of it:
//! `cargo test --test cli attach::`.

mod attach;
mod bench;
mod bench_cluster;
mod bench_floor;
mod common;
mod crush;
mod daemons;
mod doctor;
mod events;
mod format;
mod health;
mod init;
mod metrics;
mod monitoring;
mod nodes;
mod processes;
mod store;
mod up;
mod usage;
