//! Which volume is measured: one of our own, made for it and removed, or one that the user names.
//!
//! What a user has is not overwritten unless `--overwrite` says so, whatever the volume's state; an answer that is not
//! clear counts as data.

use super::super::progress_bar;
use super::ClusterArgs;
use super::probe::{self, Data};
use super::uri::{At, Uri};
use super::usage::{Process, Processes};
use crate::admin::{self, Admin, NewVolume};
use crate::cmd::Global;
use crate::failure::{Failure, Outcome};
use crate::size::Size;
use crate::up::{DIR_DEFAULT, dir, state::State};
use anyhow::{Context, anyhow};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use trefoil_core::limits::OBJECT_SIZE_DEFAULT;

/// Of a volume of our own, where `--size` does not say.
const SIZE: u64 = 2 << 30;
/// Smallest part of a volume that says anything.
const SIZE_MIN: u64 = 16 << 20;
/// Free space that is left alone, as a part of it: a full node is not to be met here.
const FREE_PART: u64 = 5;
/// How long a front end may take to let a volume go.
const RELEASE_WAIT: Duration = Duration::from_secs(60);
/// How often it is asked to.
const RELEASE_POLL: Duration = Duration::from_millis(200);

/// A front end and how to reach what stands behind it.
pub struct FrontEnd {
    /// Where it listens; with a volume's name, if the user gave one.
    uri: Uri,
    /// The monitors of its cluster.
    global: Global,
    /// What its cluster consists of.
    pub processes: Processes,
}

/// What is measured.
pub struct Target {
    /// With the volume's name.
    pub uri: Uri,
    /// Bytes from the beginning that are used.
    pub size: u64,
    /// What must be removed afterwards.
    own: Option<Own>,
}

struct Own {
    global: Global,
    id: u64,
    name: String,
}

impl FrontEnd {
    /// Finds it: `--uri`, or the `trefoil up` on `--dir`.
    pub fn find(args: &ClusterArgs, global: &Global) -> Outcome<FrontEnd> {
        let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(DIR_DEFAULT));
        let running = match args.uri.is_none() || args.dir.is_some() {
            true => Some(running(&dir)?),
            false => None,
        };
        let mut global = global.clone();
        let mut processes = Processes::default();
        let mut socket = None;
        if let Some((pid, state)) = running {
            if global.monitor.is_empty() && (args.dir.is_some() || std::env::var(admin::MONITOR_ENV).is_err())
            {
                global.monitor = state.monitors().iter().map(ToString::to_string).collect();
            }
            processes = Processes::of_up(&dir, pid)?;
            socket = Some(state.nbd_socket);
        }
        if !args.pids.is_empty() {
            let named = |pid: &i32| Process { name: command_of(*pid), pid: *pid };
            processes = Processes::new(args.pids.iter().map(named).collect())?;
        }
        let uri = match (&args.uri, socket) {
            (Some(text), _) => text.parse().map_err(Failure::usage)?,
            (None, Some(socket)) => Uri { at: At::Unix(socket), export: String::new() },
            // Not reached: without a URI a directory is looked at.
            (None, None) => return Err(Failure::usage(anyhow!("give --uri or --dir"))),
        };
        Ok(FrontEnd { uri, global, processes })
    }

    /// The volume to be measured; makes one where none is named.
    pub fn target(&self, args: &ClusterArgs) -> Outcome<Target> {
        let export = self.uri.export.as_str();
        let name = match (args.volume.as_deref(), export) {
            (None, "") => return self.own(args),
            (None, name) => name,
            (Some(name), export) if export.is_empty() || export == name => name,
            (Some(name), export) => {
                let told =
                    anyhow!("--volume {name} and --uri name two volumes ({name} and {export}): give one");
                return Err(Failure::usage(told));
            }
        };
        self.existing(args, name)
    }

    fn existing(&self, args: &ClusterArgs, name: &str) -> Outcome<Target> {
        let uri = self.uri.with_export(name);
        let wanted = args.size.map_or(SIZE, |size| size.0);
        // With leave to overwrite, what is there does not matter.
        let volume = probe::look(&uri, if args.overwrite { 0 } else { wanted })?;
        let advice = "leave the name out, and a volume is made for the benchmark and removed afterwards; or say \
                      --overwrite if nothing in it is needed any more";
        match volume.data {
            _ if args.overwrite => {}
            Data::None => {}
            Data::At(at) => {
                let told = "holds data (first at byte";
                return Err(anyhow!(
                    "volume {name} {told} {at}), and the benchmark would overwrite it: {advice}"
                )
                .into());
            }
            Data::Unknown => {
                let told = "may hold data (its server does not say)";
                return Err(
                    anyhow!("volume {name} {told}, and the benchmark would overwrite it: {advice}").into()
                );
            }
        }
        let size = match args.size {
            Some(size) if size.0 > volume.size => {
                let told = anyhow!("--size {size}: volume {name} has {}", Size(volume.size));
                return Err(Failure::usage(told));
            }
            Some(size) => size.0,
            None => volume.size.min(SIZE),
        };
        check_size(size)?;
        Ok(Target { uri, size, own: None })
    }

    fn own(&self, args: &ClusterArgs) -> Outcome<Target> {
        let size = args.size.map_or(SIZE, |size| size.0);
        check_size(size)?;
        let name = format!("trefoil-bench-{}", std::process::id());
        let wish = NewVolume {
            name: name.clone(),
            pool: args.pool.clone(),
            size,
            object_size: OBJECT_SIZE_DEFAULT,
            io_timeout_ms: None,
        };
        let made = admin::block_on(async {
            let mut admin = Admin::connect(&self.global)?;
            let snapshot = admin.snapshot().await?;
            let copies = snapshot.map.pool_named(&args.pool).map_or(3, |(_, pool)| u64::from(pool.size));
            let space = snapshot.status().space;
            let free = space.total_bytes.saturating_sub(space.used_bytes);
            if size.saturating_mul(copies) > free - free / FREE_PART {
                return Err(anyhow!(
                    "the cluster has {} free, which is too little for {copies} copies of {} with room to spare: give \
                     a smaller --size",
                    Size(free),
                    Size(size)
                )
                .into());
            }
            admin.create_volume(&wish).await
        });
        let id = made.map_err(|failure| {
            failure.context(
                "a volume for the benchmark cannot be made (--volume or --uri name one that there is)",
            )
        })?;
        let own = Own { global: self.global.clone(), id: id.0, name };
        Ok(Target { uri: self.uri.with_export(&own.name), size, own: Some(own) })
    }
}

impl Target {
    /// True if it was made for the benchmark.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Removes what was made, once the front end has let it go, which takes it some seconds.
    pub fn remove(self) -> Outcome {
        let Some(Own { global, id, name }) = self.own else { return Ok(()) };
        let bar = progress_bar();
        bar.set_message("removing the volume");
        let deadline = Instant::now() + RELEASE_WAIT;
        loop {
            let removed = admin::block_on(async { Admin::connect(&global)?.remove_volume(id).await });
            match removed {
                Ok(()) => {
                    bar.finish_and_clear();
                    return Ok(());
                }
                Err(_) if Instant::now() < deadline => std::thread::sleep(RELEASE_POLL),
                Err(failure) => {
                    return Err(failure.context(format!("run `trefoil volume remove {name}` later")));
                }
            }
        }
    }
}

fn check_size(size: u64) -> Outcome {
    if size < SIZE_MIN || !size.is_multiple_of(1 << 20) {
        let told = anyhow!(
            "{} cannot be measured: give a --size in whole MiB, at least {}",
            Size(size),
            Size(SIZE_MIN)
        );
        return Err(Failure::usage(told));
    }
    Ok(())
}

/// The `trefoil up` on `dir`.
fn running(dir: &Path) -> Outcome<(u32, State)> {
    let name = dir.display();
    let advice = "give --dir DIR of one that runs, or --uri with the NBD URI of a front end, such as \
                  nbd+unix:///?socket=/run/trefoil/nbd.sock";
    let pid = dir::running_on(dir);
    let pid = pid.ok_or_else(|| Failure::unreachable(anyhow!("no `trefoil up` runs on {name}: {advice}")))?;
    let state =
        State::load(dir)?.with_context(|| format!("`trefoil up` on {name} has just started: try again"))?;
    Ok((pid, state))
}

/// A process's own name for itself, and its number.
fn command_of(pid: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{}-{pid}", crate::output::printable(name.trim()))
}
