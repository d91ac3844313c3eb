//! The mark that a daemon leaves while it runs, and takes away when it stops: whoever finds one at its start knows that
//! the life before ended otherwise. (Killed, crashed, hung until a watchdog ended it, or without power.)
//!
//! A file in the daemon's own directory, with the number of the life in it. It says nothing about data: what a crash
//! left behind is found by reading the log. It is for people, who are told of each such end ([`trefoil_core::map::deaths`]).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The file's name.
const NAME: &str = "running";

/// A life that has begun.
#[derive(Debug)]
pub struct Life {
    path: PathBuf,
    /// The life before, if it ended without a stop.
    pub died: Option<u64>,
}

impl Life {
    /// Begins one. The directory is the daemon's alone, and exists.
    ///
    /// Errors: the mark cannot be written. The daemon can run without; it will not be known how it ended.
    pub fn begin(dir: &Path) -> io::Result<Life> {
        let path = dir.join(NAME);
        let died = match fs::read_to_string(&path) {
            // A mark that was torn is a mark.
            Ok(text) => Some(u64::from_str_radix(text.trim(), 16).unwrap_or(0)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut number = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut number)?;
        let number = u64::from_le_bytes(number);
        let mut file = File::create(&path)?;
        writeln!(file, "{number:016x}")?;
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(Life { path, died })
    }

    /// It ends as it should: what is durable is durable.
    pub fn end(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            let path = self.path.display();
            tracing::warn!(%error, "{path} cannot be removed: the next start will tell of an end that was none");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_without_a_stop_is_found_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let first = Life::begin(dir.path()).unwrap();
        assert_eq!(first.died, None);
        first.end();
        assert_eq!(Life::begin(dir.path()).unwrap().died, None, "it was stopped");
        // And now it is not.
        let third = Life::begin(dir.path()).unwrap().died.unwrap();
        let fourth = Life::begin(dir.path()).unwrap().died.unwrap();
        assert_ne!(third, fourth, "each life has its own number");
        fs::write(dir.path().join(NAME), "").unwrap();
        assert_eq!(Life::begin(dir.path()).unwrap().died, Some(0), "torn by the same crash");
        assert!(Life::begin(&dir.path().join("gone")).is_err());
    }
}
