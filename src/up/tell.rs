//! What `up` says while it works: lines on standard output, warnings and a spinner on standard error.
//!
//! Nobody may be listening any more (a closed pipe, a closed terminal): that never stops a daemon.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a long wait is told where there is no terminal for a spinner.
const WAIT_INTERVAL: Duration = Duration::from_secs(10);
/// How often the spinner turns.
const SPINNER_INTERVAL: Duration = Duration::from_millis(120);

/// See the module.
#[derive(Default)]
pub struct Tell {
    wait: Option<Wait>,
}

struct Wait {
    text: String,
    /// On a terminal.
    spinner: Option<ProgressBar>,
    since: Instant,
    told: Instant,
}

impl Tell {
    fn quietly(&self, write: impl FnOnce()) {
        match self.wait.as_ref().and_then(|wait| wait.spinner.as_ref()) {
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

    /// What is being waited for, from now on. The same again goes on with the wait that it is.
    pub fn waiting_for(&mut self, text: &str) {
        if self.wait.as_ref().is_some_and(|wait| wait.text == text) {
            return;
        }
        self.waited();
        let spinner = std::io::stderr().is_terminal().then(|| {
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} waiting for {msg} ({elapsed})") {
                spinner.set_style(style);
            }
            spinner.set_message(text.to_owned());
            spinner.enable_steady_tick(SPINNER_INTERVAL);
            spinner
        });
        let now = Instant::now();
        self.wait = Some(Wait { text: text.to_owned(), spinner, since: now, told: now });
    }

    /// Call it now and then during a wait: tells of a long one where no spinner does.
    pub fn still_waiting(&mut self) {
        let Some(wait) = &mut self.wait else { return };
        if wait.spinner.is_none() && wait.told.elapsed() >= WAIT_INTERVAL {
            wait.told = Instant::now();
            let seconds = wait.since.elapsed().as_secs();
            let _ =
                writeln!(std::io::stderr().lock(), "trefoil: still waiting for {} ({seconds} s)", wait.text);
        }
    }

    /// The wait is over.
    pub fn waited(&mut self) {
        if let Some(Wait { spinner: Some(spinner), .. }) = self.wait.take() {
            spinner.finish_and_clear();
        }
    }
}
