//! Prometheus' text format, version 0.0.4.
//!
//! Written family by family, so that each has its HELP and TYPE once, in front of all of its samples; a family
//! that is begun twice is left out the second time. Everything is bounded: behind [`BYTES_MAX`] samples are
//! counted instead of written, and the count is a metric of its own.
//!
//! Why not a client library: those keep values of their own, behind locks or atomics and found by label. Here
//! all values exist already, as plain numbers, and what is left is a line of text for each.
//!
//! Reference: prometheus.io, "Exposition formats".

use crate::histogram::Histogram;
use std::collections::BTreeSet;
use std::fmt::{self, Display, Write};

/// A text is cut here: 100 bytes for each of 300,000 samples.
pub const BYTES_MAX: usize = 32 << 20;
/// The `Content-Type` of it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives. Its name ends with `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Samples are given by [`Family::histogram`].
    Histogram,
}

/// A value: integers are written exactly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// An integer.
    Int(u64),
    /// A fraction; written as `NaN` where it is none.
    Float(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Value {
        Value::Int(value)
    }
}
impl From<u32> for Value {
    fn from(value: u32) -> Value {
        Value::Int(value.into())
    }
}
impl From<usize> for Value {
    fn from(value: usize) -> Value {
        Value::Int(value as u64)
    }
}
impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Int(value.into())
    }
}
impl From<f64> for Value {
    fn from(value: f64) -> Value {
        Value::Float(value)
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Int(value) => write!(f, "{value}"),
            Value::Float(value) if value.is_infinite() => {
                f.write_str(if *value > 0.0 { "+Inf" } else { "-Inf" })
            }
            Value::Float(value) => write!(f, "{value}"),
        }
    }
}

/// Microseconds as the seconds that Prometheus wants.
pub fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// A text that is being written. See the module.
pub struct Text {
    out: String,
    bytes_max: usize,
    families: BTreeSet<&'static str>,
    dropped: u64,
}

impl Default for Text {
    fn default() -> Text {
        Text::with_bytes_max(BYTES_MAX)
    }
}

impl Text {
    /// An empty one that is cut after about so many bytes.
    pub fn with_bytes_max(bytes_max: usize) -> Text {
        Text { out: String::new(), bytes_max, families: BTreeSet::new(), dropped: 0 }
    }

    /// Begins a family. The one before it is complete.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let is_new = self.families.insert(name);
        debug_assert!(is_new, "the family {name} is written twice");
        debug_assert!(kind != Kind::Counter || name.ends_with("_total"), "{name} is a counter");
        if is_new {
            let word = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let help = help.replace('\\', "\\\\").replace('\n', "\\n");
            // Writing to a string cannot fail; so it is everywhere in here.
            let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {word}");
        }
        Family { text: self, name, is_new }
    }

    /// A family of one gauge without labels.
    pub fn gauge(&mut self, name: &'static str, help: &str, value: impl Into<Value>) {
        self.family(name, Kind::Gauge, help).sample(&[], value);
    }

    /// A family of one counter without labels.
    pub fn counter(&mut self, name: &'static str, help: &str, value: impl Into<Value>) {
        self.family(name, Kind::Counter, help).sample(&[], value);
    }

    /// The text, with what was left out of it as its last family.
    pub fn finish(mut self) -> String {
        let dropped = self.dropped;
        self.bytes_max = usize::MAX;
        self.gauge(
            "trefoil_exporter_samples_dropped",
            "Samples that this scrape left out because the text would have been too long.",
            dropped,
        );
        self.out
    }
}

/// The family that is being written.
pub struct Family<'t> {
    text: &'t mut Text,
    name: &'static str,
    is_new: bool,
}

impl Family<'_> {
    fn has_room(&mut self) -> bool {
        let room = self.is_new && self.text.out.len() < self.text.bytes_max;
        self.text.dropped += u64::from(!room);
        room
    }

    /// One sample. The labels must tell it from all others of the family.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Into<Value>) -> &mut Self {
        if self.has_room() {
            self.line("", labels, None, value.into());
        }
        self
    }

    /// The samples of a histogram.
    pub fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) -> &mut Self {
        if self.has_room() {
            let count = histogram.count();
            for (end, seen) in histogram.cumulative() {
                self.line("_bucket", labels, Some(Value::Float(seconds(end))), seen.into());
            }
            self.line("_bucket", labels, Some(Value::Float(f64::INFINITY)), count.into());
            self.line("_sum", labels, None, histogram.sum_seconds().into());
            self.line("_count", labels, None, count.into());
        }
        self
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], le: Option<Value>, value: Value) {
        let out = &mut self.text.out;
        let _ = write!(out, "{}{suffix}", self.name);
        let mut between = '{';
        for (label, text) in labels {
            let _ = write!(out, "{between}{label}=\"");
            escape(out, text);
            out.push('"');
            between = ',';
        }
        if let Some(le) = le {
            let _ = write!(out, "{between}le=\"{le}\"");
            between = ',';
        }
        if between == ',' {
            out.push('}');
        }
        let _ = writeln!(out, " {value}");
    }
}

/// Within the quotes of a label.
fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_samples_and_labels_are_written_as_the_format_wants_them() {
        let mut text = Text::default();
        text.counter("a_total", "One\nline with a \\.", u64::MAX);
        text.family("b", Kind::Gauge, "B.").sample(&[("x", "q\"\\\n"), ("y", "ü")], 1.5).sample(&[], true);
        let expected = "\
# HELP a_total One\\nline with a \\\\.
# TYPE a_total counter
a_total 18446744073709551615
# HELP b B.
# TYPE b gauge
b{x=\"q\\\"\\\\\\n\",y=\"ü\"} 1.5
b 1
# HELP trefoil_exporter_samples_dropped Samples that this scrape left out because the text would have been too long.
# TYPE trefoil_exporter_samples_dropped gauge
trefoil_exporter_samples_dropped 0
";
        assert_eq!(text.finish(), expected);
    }

    #[test]
    fn a_histogram_ends_with_all_there_were() {
        let mut histogram = Histogram::default();
        for us in [10, 100, 100_000_000] {
            histogram.record(us);
        }
        let mut text = Text::default();
        text.family("h_seconds", Kind::Histogram, "H.").histogram(&[("op", "read")], &histogram);
        let text = text.finish();
        assert!(text.contains("\nh_seconds_bucket{op=\"read\",le=\"0.000016\"} 1\n"), "{text}");
        assert!(text.contains("\nh_seconds_bucket{op=\"read\",le=\"16.777216\"} 2\n"), "{text}");
        assert!(text.contains("\nh_seconds_bucket{op=\"read\",le=\"+Inf\"} 3\n"), "{text}");
        assert!(text.contains("\nh_seconds_sum{op=\"read\"} 100.00011\n"), "{text}");
        assert!(text.contains("\nh_seconds_count{op=\"read\"} 3\n"), "{text}");
    }

    #[test]
    fn what_would_be_too_long_is_counted() {
        let mut text = Text::with_bytes_max(200);
        let mut family = text.family("b", Kind::Gauge, "B.");
        for n in 0..1000 {
            family.sample(&[("n", &n.to_string())], 0.0);
        }
        let text = text.finish();
        let written = text.lines().filter(|line| line.starts_with("b{")).count();
        assert!((10..20).contains(&written), "{text}");
        assert!(text.ends_with(&format!("trefoil_exporter_samples_dropped {}\n", 1000 - written)), "{text}");
    }

    #[test]
    fn special_numbers_have_their_names() {
        let texts = [f64::NAN, f64::INFINITY, -f64::INFINITY, 1e-6].map(|v| Value::Float(v).to_string());
        assert_eq!(texts, ["NaN", "+Inf", "-Inf", "0.000001"]);
    }
}
