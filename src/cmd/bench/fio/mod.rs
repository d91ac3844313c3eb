//! `fio` as a child process: whether there is one, running it, and what it says ([`report`]).
//!
//! What a job is and which engine it uses, others say: [`raw`] for plain devices and files, the benchmark of a
//! cluster for NBD. One child at a time, which ends with us.

pub mod raw;
mod report;

pub use report::{Measured, Side};

use crate::failure::Outcome;
use crate::signals::Shutdown;
use anyhow::{Context, anyhow};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use trefoil_storage_node::bench::BenchError;

/// How often a child is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of its output that are read.
const OUTPUT_MAX: u64 = 4 << 20;
/// Where a user gets it.
const INSTALL: &str = "apt-get install fio, dnf install fio, or https://github.com/axboe/fio";

/// What every job of ours is given: nothing is repeated from the last run, and latency is from the moment that
/// a request is made to its answer.
pub const COMMON: &str = "--norandommap --randrepeat=0 --clat_percentiles=0 --lat_percentiles=1 \
                          --percentile_list=50:99:99.9 --output-format=json";

/// That there is one; its version. `why` says what it is needed for, and what can be done without it.
pub fn version(why: &str) -> Outcome<String> {
    let output = Command::new("fio").arg("--version").stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("fio is needed {why} ({INSTALL})"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// That it has an engine.
pub fn need_engine(engine: &str, package: &str) -> Outcome {
    let output = Command::new("fio").arg(format!("--enghelp={engine}")).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("fio cannot be run ({INSTALL})"))?;
    match output.status.success() && !output.stdout.is_empty() {
        true => Ok(()),
        false => Err(anyhow!(
            "this fio has no engine {engine}: install one that was built with {package}, as the packages of Debian \
             and Fedora are ({INSTALL})"
        )
        .into()),
    }
}

/// Runs it with these arguments and variables. `tick` is called again and again until it ends.
///
/// # Errors
///
/// It cannot be run, or fails, or says something unknown, or the user has had enough.
pub fn run(
    arguments: &[String],
    environment: &[(String, String)],
    shutdown: &Shutdown,
    tick: &mut dyn FnMut(),
) -> Outcome<Measured> {
    let mut command = Command::new("fio");
    command.args(arguments).envs(environment.iter().map(|(key, value)| (key, value)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let before = children_cpu()?;
    let mut child = command.spawn().context("cannot run fio")?;
    let outcome = wait(&mut child, shutdown, tick);
    if outcome.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let json = outcome?;
    let mut measured = report::parse(&json)
        .with_context(|| format!("fio has written something unknown: {:.200}", json.trim()))?;
    measured.process_cpu = children_cpu()?.saturating_sub(before);
    Ok(measured)
}

/// Processor time of all children that have ended.
fn children_cpu() -> anyhow::Result<Duration> {
    let usage =
        getrusage(UsageWho::RUSAGE_CHILDREN).context("cannot ask for the processor time of children")?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros.unsigned_abs()))
}

/// Its output, once it has ended well.
fn wait(child: &mut Child, shutdown: &Shutdown, tick: &mut dyn FnMut()) -> Outcome<String> {
    // Read elsewhere, so that it never waits for us.
    let reader = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            pipe.map(|pipe| pipe.take(OUTPUT_MAX).read_to_string(&mut text));
            text
        })
    };
    let out = reader(child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let errors = reader(child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for fio")? {
            break status;
        }
        if *shutdown.borrow() {
            return Err(BenchError::Stopped.into());
        }
        tick();
        std::thread::sleep(LOOK);
    };
    // A thread of ours that reads does not panic.
    let (text, errors) = (out.join().unwrap_or_default(), errors.join().unwrap_or_default());
    if !status.success() {
        let stopped = *shutdown.borrow();
        return Err(match stopped {
            true => BenchError::Stopped.into(),
            false => anyhow!("fio failed ({status}): {}", errors.trim()).into(),
        });
    }
    Ok(text)
}
