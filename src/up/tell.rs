//! What `up` says while it works: lines on standard output, warnings and a spinner on standard error.
//!
//! Nobody may be listening any more (a closed pipe, a closed terminal): that never stops a daemon.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a long wait is told where there is no terminal for a spinner.
const WAIT_INTERVAL: Duration = Duration::from_secs(10);

/// See the module.
pub struct Tell {
    spinner: Option<ProgressBar>,
    waiting: Option<(Instant, Instant)>,
}

impl Tell {
    /// With a spinner where standard error is a terminal.
    pub fn new() -> Tell {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                spinner.set_style(style);
            }
            spinner
        });
        Tell { spinner, waiting: None }
    }

    fn quietly(&self, write: impl FnOnce()) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(write),
            None => write(),
        }
    }

    /// A line for the user and for scripts.
    pub fn line(&self, text: &str) {
        self.quietly(|| {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{text}").and_then(|()| out.flush());
        });
    }

    /// Something that needs attention and stops nothing.
    pub fn warning(&self, text: &str) {
        self.quietly(|| {
            let _ = writeln!(std::io::stderr().lock(), "trefoil: warning: {text}");
        });
    }

    /// What is being waited for, from now on.
    pub fn waiting_for(&mut self, text: &str) {
        let now = Instant::now();
        self.waiting = Some((now, now));
        if let Some(spinner) = &self.spinner {
            spinner.reset_elapsed();
            spinner.set_message(text.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(120));
        }
    }

    /// Call it now and then during a wait: tells of a long one where no spinner does.
    pub fn still_waiting_for(&mut self, text: &str) {
        let Some((since, told)) = &mut self.waiting else { return };
        if self.spinner.is_none() && told.elapsed() >= WAIT_INTERVAL {
            *told = Instant::now();
            let seconds = since.elapsed().as_secs();
            let _ = writeln!(std::io::stderr().lock(), "trefoil: still waiting for {text} ({seconds} s)");
        }
    }

    /// The wait is over.
    pub fn waited(&mut self) {
        self.waiting = None;
        if let Some(spinner) = &self.spinner {
            spinner.disable_steady_tick();
            spinner.finish_and_clear();
        }
    }
}
