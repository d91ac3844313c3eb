//! What commands write: aligned tables for people, JSON for scripts.
//!
//! Everything goes through a `Write` that may fail: a reader that has gone away ends the command and is
//! not an error (see `main`). Texts that a peer chose never reach a terminal as control characters.

use crate::failure::Outcome;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::Write;
use std::time::{Duration, SystemTime};

/// Writes `value` as indented JSON, with a newline.
pub fn json(out: &mut dyn Write, value: &impl Serialize) -> Outcome {
    // Through a string: an interrupted write does not look like a failure to serialize.
    let text = serde_json::to_string_pretty(value)?;
    writeln!(out, "{text}")?;
    Ok(())
}

/// Says on standard error how far something is. Nobody has to listen.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "trefoil: {}", printable(text));
}

/// A table of aligned columns with a header and no borders. A header that begins with `>` makes its
/// column aligned to the right.
pub fn table(headers: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.force_no_tty();
    table.set_header(headers.iter().map(|header| header.trim_start_matches('>')));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for (column, header) in headers.iter().enumerate() {
        if let Some(column) = table.column_mut(column) {
            column.set_padding((0, 2));
            if header.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.trim_fmt()
}

/// `text` with everything replaced that could move a cursor or change a line.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// How long ago `millis` since 1970 was, in the one or two units that matter.
pub fn ago(millis: u64, now: SystemTime) -> String {
    let then = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    match now.duration_since(then) {
        // Clocks of two hosts differ a little: that is not worth a word.
        Err(_) => duration(0),
        Ok(elapsed) => duration(elapsed.as_secs()),
    }
}

/// Seconds in the one or two units that matter.
pub fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// `1 node`, `2 nodes`.
pub fn count(n: u64, noun: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_last_word() {
        let rows = [["a", "10", "x"], ["bcd", "9", ""]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        let text = table(&["NAME", ">SIZE", "STATE"], rows);
        assert_eq!(text, "NAME  SIZE  STATE\na       10  x\nbcd      9");
    }

    #[test]
    fn control_characters_of_peers_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }

    #[test]
    fn durations_have_at_most_two_units() {
        let texts = [0, 59, 61, 3600, 90_061].map(duration);
        assert_eq!(texts, ["0s", "59s", "1m01s", "1h00m", "1d01h"]);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(ago(40_000, now), "1m00s");
        assert_eq!(ago(140_000, now), "0s");
    }
}
