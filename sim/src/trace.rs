//! What happened, for people; and its hash, for the machine.
//!
//! The hash is always kept: two runs of a seed are the same run if and only if their hashes are equal.
//! The words are made only when asked for. A failing seed is run again with words, which is possible
//! because it is the same run.

use std::collections::VecDeque;
use trefoil_core::{ObjectIndex, VolumeId};

/// Lines kept.
const LINES_MAX: usize = 200_000;

/// What a line is about.
pub type About = Option<(VolumeId, Option<ObjectIndex>)>;

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// The step in which it happened.
    pub step: u64,
    /// When (µs).
    pub time: u64,
    /// What it is about; `None`: of interest whatever one looks for.
    pub about: About,
    /// The words.
    pub text: String,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>8} {:>12} µs  {}", self.step, self.time, self.text)
    }
}

/// The trace of a run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    lines: Option<VecDeque<Line>>,
}

impl Trace {
    /// With words, or only the hash.
    pub fn new(words: bool) -> Trace {
        Trace { hash: 0, lines: words.then(VecDeque::new) }
    }

    /// True if words are wanted.
    #[inline]
    pub fn wanted(&self) -> bool {
        self.lines.is_some()
    }

    /// Something happened that the hash depends on.
    #[inline]
    pub fn mix(&mut self, what: u64) {
        self.hash = (self.hash ^ what).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29);
    }

    /// The hash of all that happened.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Adds a line.
    pub fn line(&mut self, step: u64, time: u64, about: About, text: String) {
        if let Some(lines) = &mut self.lines {
            if lines.len() >= LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(Line { step, time, about, text });
        }
    }

    /// The last `count` lines that concern this object (or everything).
    pub fn last(&self, count: usize, object: Option<(VolumeId, ObjectIndex)>) -> Vec<Line> {
        let concerns = |line: &&Line| match (line.about, object) {
            (None, _) | (_, None) => true,
            (Some((volume, index)), Some((v, i))) => volume == v && index.is_none_or(|index| index == i),
        };
        let lines = self.lines.iter().flatten().rev().filter(concerns).take(count);
        let mut lines: Vec<Line> = lines.cloned().collect();
        lines.reverse();
        lines
    }
}
