//! How far a long reading is: a bar on standard error, if that is a terminal, and nothing else.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// What is done sooner than this has no bar.
const SHOW_AFTER: Duration = Duration::from_millis(500);

/// See the module. Gone when it is dropped.
pub struct Bar {
    text: String,
    since: Instant,
    terminal: bool,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// Says what is being done.
    pub fn new(text: String) -> Bar {
        Bar { text, since: Instant::now(), terminal: std::io::stderr().is_terminal(), bar: None }
    }

    /// How far it is.
    pub fn at(&mut self, done: u64, all: u64) {
        if !self.terminal || self.bar.is_none() && self.since.elapsed() < SHOW_AFTER {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(all);
            if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent}% ({eta} left)") {
                bar.set_style(style);
            }
            bar.set_message(self.text.clone());
            bar
        });
        bar.set_length(all);
        bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
