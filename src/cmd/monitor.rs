//! `trefoil monitor list|status|add|remove|backup|restore`: the monitors of a cluster, for administrators.

use super::Global;
use crate::admin::{self, Admin};
use crate::failure::{EXIT_FAILED, Failure, Outcome};
use crate::output::{self, printable};
use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use trefoil_monitor::backup::{self, Backup};
use trefoil_monitor::rpc::MonitorsStatus;

/// `trefoil monitor ...`, beside running one.
#[derive(Subcommand, Debug)]
pub enum MonitorCommand {
    /// List the monitors, as the leader knows them
    #[command(after_help = "\
Examples:
  trefoil monitor list
  trefoil monitor list --json | jq -r '.[] | select(.up == false).address'")]
    List {
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask each monitor by itself how it is: also without a leader
    #[command(after_help = "\
Asks every monitor that is named and every one that these name. Exits with 1 where one does not answer or none
leads.

Examples:
  trefoil --monitor 10.0.0.1:10800,10.0.0.2:10800 monitor status")]
    Status {
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    Add(AddArgs),
    /// Take a monitor out of the cluster; then stop it
    #[command(after_help = "\
Refused where the monitors that are left and answer would be no majority.

Examples:
  trefoil monitor remove 3")]
    Remove {
        /// The monitor's number
        id: u64,
        /// Although those that are left and answer are no majority: they must come back before anything can be changed
        #[arg(long)]
        force: bool,
    },
    Backup(BackupArgs),
    Restore(RestoreArgs),
}

/// Make a monitor that waits to join one of the cluster
///
/// It is sent everything first, and votes then. May be repeated until it is done.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  trefoil monitor --id 4 --listen 10.0.0.4:10800 --data-dir /var/lib/trefoil/monitor \\
      --join 10.0.0.1:10800                 # on the new host: it waits
  trefoil monitor add 4 10.0.0.4:10800      # from anywhere
  trefoil monitor add 4 10.0.0.4:10800 --replace 2")]
pub struct AddArgs {
    /// Its number
    id: u64,
    /// Where it listens
    address: SocketAddr,
    /// The monitor whose place it takes, in one step
    #[arg(long, value_name = "ID")]
    replace: Option<u64>,
}

/// Write the cluster map to a file, with a checksum
///
/// From the running monitors, or with --data-dir from the directory of one that is stopped.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  trefoil monitor backup /backup/trefoil-$(date +%F)
  trefoil monitor backup /backup/last --data-dir /var/lib/trefoil/monitor    # it does not run

It has no data of volumes: that is on the nodes. See `trefoil monitor restore --help`.")]
pub struct BackupArgs {
    /// The file; must not exist
    file: PathBuf,
    /// The directory of a monitor that does not run
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Make a monitor from a backup: when every monitor is lost
///
/// While one monitor's directory is left, back that up (--data-dir) and restore it: it is newer.
#[derive(Args, Debug)]
#[command(after_help = "\
First stop every monitor of the cluster for good. The restored one is alone; add others to it, with empty
directories. Generations, volume ids and versions go far above those of the backup. Volumes made after the
backup are missing from the map; nodes keep their data. Volumes can be attached after one lease.

Examples:
  trefoil monitor restore /backup/last --data-dir /var/lib/trefoil/monitor
  trefoil monitor --data-dir /var/lib/trefoil/monitor --listen 10.0.0.1:10800")]
pub struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// The new monitor's directory: empty, or not there
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The new monitor's number
    #[arg(long, default_value_t = 1)]
    id: u64,
    /// Where it will listen
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10800")]
    listen: SocketAddr,
}

/// A monitor in `list`.
#[derive(Serialize)]
struct MonitorView {
    id: u64,
    address: String,
    voter: bool,
    leader: bool,
    up: Option<bool>,
    log: Option<u64>,
    incarnation: String,
}

/// A monitor in `status`.
#[derive(Serialize)]
struct AnswerView {
    address: String,
    id: Option<u64>,
    leads: bool,
    term: Option<u64>,
    log: Option<u64>,
    applied: Option<u64>,
    map_version: Option<u64>,
    error: Option<String>,
}

/// Runs the command.
pub fn run(command: &MonitorCommand, global: &Global, out: &mut dyn Write) -> Outcome {
    match command {
        MonitorCommand::List { json } => list(*json, global, out),
        MonitorCommand::Status { json } => status(*json, global, out),
        MonitorCommand::Add(args) => {
            let AddArgs { id, address, replace } = *args;
            admin::block_on(async { Admin::connect(global)?.add_monitor(id, address, replace).await })?;
            let replaced =
                replace.map_or_else(String::new, |old| format!(", in the place of {old}: stop that one"));
            writeln!(out, "monitor {id} at {address} is one of the cluster{replaced}")?;
            Ok(())
        }
        MonitorCommand::Remove { id, force } => {
            admin::block_on(async { Admin::connect(global)?.remove_monitor(*id, *force).await })?;
            writeln!(out, "monitor {id} is one of the cluster no more: stop it")?;
            Ok(())
        }
        MonitorCommand::Backup(args) => make_backup(args, global, out),
        MonitorCommand::Restore(args) => restore(args, out),
    }
}

fn list(json: bool, global: &Global, out: &mut dyn Write) -> Outcome {
    let found = admin::block_on(async { Admin::connect(global)?.monitors().await })?;
    let monitors: Vec<MonitorView> = found
        .monitors
        .iter()
        .map(|it| MonitorView {
            id: it.id,
            address: it.address.to_string(),
            voter: it.voter,
            leader: it.leader,
            up: it.up,
            log: it.log,
            incarnation: format!("{:016x}", it.incarnation),
        })
        .collect();
    if json {
        return output::json(out, &monitors);
    }
    let rows = monitors.iter().map(|it| {
        let state = match it.up {
            Some(true) => "up",
            Some(false) => "DOWN",
            None => "unknown",
        };
        let role = match (it.leader, it.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learning",
        };
        let log = it.log.map_or_else(|| "-".to_owned(), |log| log.to_string());
        vec![it.id.to_string(), it.address.clone(), state.to_owned(), role.to_owned(), log]
    });
    writeln!(out, "{}", output::table(&[">ID", "ADDRESS", "STATE", "ROLE", ">LOG"], rows))?;
    Ok(())
}

fn status(json: bool, global: &Global, out: &mut dyn Write) -> Outcome {
    let answers = admin::block_on(admin::each_monitor(global))?;
    let view = |(address, answer): &(SocketAddr, Result<MonitorsStatus, String>)| {
        let known = answer.as_ref().ok();
        AnswerView {
            address: address.to_string(),
            id: known.map(|it| it.answered_by),
            leads: known.is_some_and(|it| it.leads),
            term: known.map(|it| it.term),
            log: known.map(|it| it.log),
            applied: known.map(|it| it.applied),
            map_version: known.map(|it| it.version),
            error: answer.as_ref().err().cloned(),
        }
    };
    let answers: Vec<AnswerView> = answers.iter().map(view).collect();
    if json {
        output::json(out, &answers)?;
    } else {
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let rows = answers.iter().map(|it| {
            let state = match (&it.error, it.leads) {
                (Some(error), _) => format!("NO ANSWER: {}", printable(error)),
                (None, true) => "leads".to_owned(),
                (None, false) => "follows".to_owned(),
            };
            let numbers = [it.term, it.log, it.applied, it.map_version].map(number);
            let mut row = vec![number(it.id), it.address.clone()];
            row.extend(numbers);
            row.push(state);
            row
        });
        let headers = [">ID", "ADDRESS", ">TERM", ">LOG", ">APPLIED", ">MAP", "STATE"];
        writeln!(out, "{}", output::table(&headers, rows))?;
    }
    if answers.iter().any(|it| it.error.is_some()) || !answers.iter().any(|it| it.leads) {
        if !json && !answers.iter().any(|it| it.leads) {
            writeln!(
                out,
                "no monitor leads: nothing can be attached, created or changed until a majority is up"
            )?;
        }
        return Err(Failure::code(EXIT_FAILED));
    }
    Ok(())
}

fn make_backup(args: &BackupArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let (from, map) = match &args.data_dir {
        Some(dir) => (dir.display().to_string(), backup::of_stopped(dir)?),
        None => {
            let snapshot = admin::block_on(async { Admin::connect(global)?.map().await })?;
            (snapshot.0, snapshot.1)
        }
    };
    let taken = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let backup = Backup { taken, from, map };
    let bytes = backup::write(&args.file, &backup)?;
    // What was written is what can be read.
    backup::read(&args.file)?;
    let map = &backup.map;
    writeln!(
        out,
        "backed up cluster {} (map {}, {} volumes, {} nodes) to {}: {bytes} bytes",
        map.name,
        map.version,
        map.volumes.len(),
        map.nodes.len(),
        args.file.display()
    )?;
    Ok(())
}

fn restore(args: &RestoreArgs, out: &mut dyn Write) -> Outcome {
    let backup = backup::read(&args.file)?;
    let random = (random_number()?, random_number()?);
    backup::restore(&backup, &args.data_dir, args.id, args.listen, random)?;
    let age = output::ago(backup.taken, SystemTime::now());
    let map = &backup.map;
    writeln!(
        out,
        "restored monitor {} of cluster {} in {}, as it was {age} ago (map {}, {} volumes, {} nodes)\n\
         see that no monitor from before runs any more; then:\n  \
         trefoil monitor --id {} --data-dir {} --listen {}",
        args.id,
        map.name,
        args.data_dir.display(),
        map.version,
        map.volumes.len(),
        map.nodes.len(),
        args.id,
        args.data_dir.display(),
        args.listen
    )?;
    Ok(())
}

fn random_number() -> Outcome<u64> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read random bytes from /dev/urandom")?;
    match u64::from_le_bytes(bytes) {
        0 => Err(anyhow!("/dev/urandom gives zeros").into()),
        number => Ok(number),
    }
}
