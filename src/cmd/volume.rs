//! `trefoil volume create|list|info|remove`.

use super::Global;
use crate::admin;
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::size::Size;
use crate::up::plan::check_volume;
use crate::view::{Snapshot, VolumeView};
use anyhow::{anyhow, bail, ensure};
use clap::{Args, Subcommand};
use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

/// The object size of a volume that does not say, as it stands in the help.
const OBJECT_SIZE_TEXT: &str = "4M";

/// `trefoil volume ...`.
#[derive(Subcommand, Debug)]
pub enum VolumeCommand {
    /// Make a volume: a virtual disk, served under its name by every NBD front end
    #[command(after_help = "\
Examples:
  trefoil volume create disk1 10G
  trefoil volume create disk2 1T --io-timeout 30s
  trefoil volume create disk3 512M --object-size 1M --json")]
    Create(CreateArgs),
    /// List volumes
    #[command(after_help = "\
Examples:
  trefoil volume list
  trefoil volume list --json | jq -r '.[].name'")]
    List {
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one volume: size, pool, generation, holder
    #[command(after_help = "\
Examples:
  trefoil volume info disk0
  trefoil volume info disk0 --json | jq .generation")]
    Info {
        /// The volume
        name: String,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a volume and all that is in it
    #[command(after_help = "\
A volume that is attached is not removed: detach it first (end its NBD clients).

Examples:
  trefoil volume remove disk1
  trefoil volume remove disk1 --yes")]
    Remove {
        /// The volume
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// `trefoil volume create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// The name: A-Z a-z 0-9 . _ -
    name: String,
    /// The size, such as 10G; a multiple of 4 KiB
    size: Size,
    /// The pool
    #[arg(long, value_name = "NAME", default_value = "default")]
    pool: String,
    /// Bytes of one object, a power of two; cannot be changed later
    #[arg(long, value_name = "SIZE", default_value = OBJECT_SIZE_TEXT)]
    object_size: Size,
    /// Fail an I/O that finds no majority for so long (500ms, 30s, 2m). Without it, it waits
    #[arg(long, value_name = "TIME", value_parser = time)]
    io_timeout: Option<Duration>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// `500ms`, `30s`, `2m`, `1h`.
fn time(text: &str) -> Result<Duration, String> {
    let usage = || format!("{text:?} is no time: give a whole number with ms, s, m or h, such as 30s");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(usage)?;
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().map_err(|_| usage())?;
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return Err(usage()),
    };
    if number == 0 {
        return Err("a timeout of 0 would fail everything: leave it out to wait".to_owned());
    }
    Ok(unit * number)
}

/// Runs the command.
pub fn run(command: &VolumeCommand, global: &Global, out: &mut dyn Write) -> Outcome {
    match command {
        VolumeCommand::Create(args) => create(args, global, out),
        VolumeCommand::List { json } => list(*json, global, out),
        VolumeCommand::Info { name, json } => {
            let view = find(&admin::snapshot(global)?, name)?;
            if *json { output::json(out, &view) } else { info(&view, out) }
        }
        VolumeCommand::Remove { name, yes } => remove(name, *yes, global, out),
    }
}

fn create(args: &CreateArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    check_volume(&args.name, args.size).map_err(Failure::usage)?;
    let wish = admin::NewVolume {
        name: args.name.clone(),
        pool: args.pool.clone(),
        size: args.size.0,
        object_size: args.object_size.0,
        io_timeout_ms: args.io_timeout.map(|time| time.as_millis() as u64),
    };
    let snapshot = admin::block_on(async {
        let mut admin = admin::Admin::connect(global)?;
        admin.create_volume(&wish).await?;
        admin.snapshot().await
    })?;
    let view = find(&snapshot, &args.name)?;
    if args.json {
        return output::json(out, &view);
    }
    writeln!(out, "made volume {} ({}, id {}) in pool {}", view.name, args.size, view.id, view.pool)?;
    Ok(())
}

fn find(snapshot: &Snapshot, name: &str) -> Outcome<VolumeView> {
    let volumes = snapshot.volumes();
    volumes.into_iter().find(|volume| volume.name == name).ok_or_else(|| {
        anyhow!("there is no volume {name:?}; `trefoil volume list` shows which there are").into()
    })
}

fn list(json: bool, global: &Global, out: &mut dyn Write) -> Outcome {
    let views = admin::snapshot(global)?.volumes();
    if json {
        return output::json(out, &views);
    }
    let row = |volume: &VolumeView| {
        vec![
            volume.name.clone(),
            volume.id.to_string(),
            Size(volume.size_bytes).to_string(),
            volume.pool.clone(),
            volume.state.to_owned(),
            volume.generation.to_string(),
            volume.holder.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    };
    let headers = ["NAME", ">ID", ">SIZE", "POOL", "STATE", ">GENERATION", "HOLDER"];
    writeln!(out, "{}", output::table(&headers, views.iter().map(row)))?;
    Ok(())
}

fn info(view: &VolumeView, out: &mut dyn Write) -> Outcome {
    let timeout = match view.io_timeout_ms {
        Some(millis) => format!("{millis} ms"),
        None => "none: I/O waits for a majority".to_owned(),
    };
    let holder = match &view.holder {
        Some(holder) => output::printable(holder),
        None => "nobody".to_owned(),
    };
    let clean = if view.clean { "yes: every copy was whole at the last release" } else { "no" };
    let lines = [
        ("name", view.name.clone()),
        ("id", view.id.to_string()),
        ("size", format!("{} ({} bytes)", Size(view.size_bytes), view.size_bytes)),
        ("object size", Size(view.object_size_bytes).to_string()),
        ("pool", view.pool.clone()),
        ("state", view.state.to_owned()),
        ("generation", view.generation.to_string()),
        ("holder", holder),
        ("clean", clean.to_owned()),
        ("I/O timeout", timeout),
    ];
    for (label, value) in lines {
        writeln!(out, "{label:<13}{value}")?;
    }
    Ok(())
}

fn remove(name: &str, yes: bool, global: &Global, out: &mut dyn Write) -> Outcome {
    let view = find(&admin::snapshot(global)?, name)?;
    if !yes {
        confirm(&view).map_err(Failure::from)?;
    }
    admin::block_on(async { admin::Admin::connect(global)?.remove_volume(view.id).await })?;
    writeln!(out, "removed volume {} (id {})", view.name, view.id)?;
    Ok(())
}

/// Asks a person; a script has to say `--yes`.
fn confirm(view: &VolumeView) -> anyhow::Result<()> {
    let (name, size) = (&view.name, Size(view.size_bytes));
    ensure!(
        std::io::stdin().is_terminal(),
        "removing volume {name} ({size}) destroys what is in it, and nobody is there to be asked: say --yes"
    );
    write!(std::io::stderr(), "This destroys volume {name} ({size}). Type its name to go on: ")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() != name {
        bail!("not confirmed: nothing was removed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_shows_the_default() {
        assert_eq!(OBJECT_SIZE_TEXT.parse(), Ok(Size(trefoil_core::limits::OBJECT_SIZE_DEFAULT)));
    }

    #[test]
    fn times_are_whole_numbers_with_a_unit() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "30", "s", "-1s", "1.5s", "1d", "99999999999s"] {
            assert!(time(bad).unwrap_err().contains("is no time"), "{bad}");
        }
        assert!(time("0s").unwrap_err().contains("would fail everything"));
    }
}
