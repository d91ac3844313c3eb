//! How a command fails: one line for people, one exit code for scripts.
//!
//! Every command returns [`Outcome`]; `main` is the only place that turns it into output and an exit
//! code. The codes are part of the command line's contract and stand in `trefoil --help`.

use std::fmt::{self, Display};
use std::io::{self, ErrorKind, Write};

/// Refused or failed.
pub const EXIT_FAILED: u8 = 1;
/// Wrong usage, or a wrong configuration. clap exits with the same.
pub const EXIT_USAGE: u8 = 2;
/// No monitor answers.
pub const EXIT_UNREACHABLE: u8 = 3;
/// `status --exit-code` at HEALTH_WARN.
pub const EXIT_WARN: u8 = 4;
/// `status --exit-code` at HEALTH_ERR.
pub const EXIT_ERR: u8 = 5;

/// The table of exit codes for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused or failed: the message says what, where and what to do
  2  wrong usage or configuration
  3  no monitor answers
  4  HEALTH_WARN (only `trefoil status --exit-code`)
  5  HEALTH_ERR (only `trefoil status --exit-code`)";

/// What a command comes to.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What to tell; none where everything has been said on standard output.
    pub error: Option<anyhow::Error>,
}

impl Failure {
    /// Wrong usage or configuration.
    pub fn usage(error: anyhow::Error) -> Failure {
        Failure { code: EXIT_USAGE, error: Some(error) }
    }
    /// No monitor answers.
    pub fn unreachable(error: anyhow::Error) -> Failure {
        Failure { code: EXIT_UNREACHABLE, error: Some(error) }
    }
    /// An exit code and nothing more to say.
    pub fn code(code: u8) -> Failure {
        Failure { code, error: None }
    }
    /// With what was being done put in front of the reason.
    pub fn context(self, text: impl Display + Send + Sync + 'static) -> Failure {
        Failure { error: self.error.map(|error| error.context(text)), ..self }
    }
    /// True where the reader of our output has gone, which is no failure of ours. (A broken connection to
    /// a daemon is one, and has the same error number: hence the mark that [`StandardOutput`] leaves.)
    pub fn is_reader_gone(&self) -> bool {
        let causes = self.error.iter().flat_map(|error| error.chain());
        let mut errors = causes.filter_map(|cause| cause.downcast_ref::<io::Error>());
        errors.any(|error| error.get_ref().is_some_and(|inner| inner.is::<ReaderGone>()))
    }
    /// The message, in one line.
    pub fn line(&self) -> Option<String> {
        self.error.as_ref().map(one_line)
    }
}

/// Whoever read our standard output does not any more.
#[derive(Debug)]
struct ReaderGone;

impl std::error::Error for ReaderGone {}

impl Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads standard output any more")
    }
}

/// Standard output, or a stand-in for it, that marks its own broken pipe.
pub struct StandardOutput<W>(pub W);

impl<W: Write> Write for StandardOutput<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(marked)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(marked)
    }
}

fn marked(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::BrokenPipe => io::Error::new(ErrorKind::BrokenPipe, ReaderGone),
        _ => error,
    }
}

/// An error and its causes in one line, whatever they wrote. A cause that its effect has quoted already
/// is not said twice.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.ends_with(&text) {
            continue;
        }
        if !line.is_empty() {
            line += ": ";
        }
        line += &text;
    }
    line
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { code: EXIT_FAILED, error: Some(error.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_message_is_one_line() {
        let failure = Failure::usage(anyhow::anyhow!("a\n  b")).context("while c");
        assert_eq!(failure.line().as_deref(), Some("while c: a b"));
        assert_eq!(failure.code, EXIT_USAGE);
        assert_eq!(Failure::code(EXIT_WARN).line(), None);
    }

    #[test]
    fn what_was_quoted_is_not_said_again() {
        let inner = std::io::Error::other("no room");
        let outer = anyhow::Error::new(inner).context("disk: no room").context("store");
        assert_eq!(one_line(&outer), "store: disk: no room");
    }

    #[test]
    fn a_reader_that_is_gone_is_told_from_a_peer_that_is_gone() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let ours = StandardOutput(Closed).write_all(b"x").context("writing");
        assert!(Failure::from(ours.unwrap_err()).is_reader_gone());
        let theirs = Closed.write_all(b"x").context("asking the monitor");
        assert!(!Failure::from(theirs.unwrap_err()).is_reader_gone());
        assert!(!Failure::from(anyhow::anyhow!("other")).is_reader_gone());
    }
}
