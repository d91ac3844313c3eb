//! Words and brackets of a text map with their places, and the errors that point at them.
//!
//! Knows numbers and names, but nothing of what a map consists of.

use std::str::FromStr;

use thiserror::Error;

use crate::crush::error::BuildError;
use crate::crush::{MAP_TEXT_BYTES_MAX, WEIGHT_ONE};

/// How much of a word an error repeats.
const QUOTE_CHARS_MAX: usize = 40;

/// Where and why a text is not a CRUSH map.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong there and what to do.
    pub problem: Problem,
}

/// What is wrong with a text map, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// The grammar wants something else here.
    #[error("expected {expected}, found {found}")]
    Unexpected {
        /// What may stand here.
        expected: &'static str,
        /// What does.
        found: String,
    },
    /// Not a number of the kind that belongs here.
    #[error("expected {expected}, found `{found}`")]
    BadNumber {
        /// The kind.
        expected: &'static str,
        /// The word.
        found: String,
    },
    /// A word that names nothing that is known.
    #[error("unknown {what} `{name}`: {hint}")]
    Unknown {
        /// What it should have named.
        what: &'static str,
        /// The word.
        name: String,
        /// What to do.
        hint: &'static str,
    },
    /// Something is given twice.
    #[error("{what} `{name}` is given twice; remove or rename one of the two")]
    Twice {
        /// What.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// A block ends without something that it must have.
    #[error("{block} `{name}` has no {what}; add one")]
    Missing {
        /// The kind of block.
        block: &'static str,
        /// Its name.
        name: String,
        /// What is missing.
        what: &'static str,
    },
    /// The position of an item is taken or beyond the bucket's end.
    #[error("pos {pos} is taken or not below the number of items, {items}; leave `pos` out")]
    BadPosition {
        /// The position.
        pos: usize,
        /// How many items the bucket has.
        items: usize,
    },
    /// The text is longer than [`MAP_TEXT_BYTES_MAX`].
    #[error("the map has {0} bytes, more than the {MAP_TEXT_BYTES_MAX} that are read")]
    TooLong(usize),
    /// The parts do not make a map.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// A place in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    line: usize,
    column: usize,
}

impl Place {
    pub const START: Self = Self { line: 1, column: 1 };

    pub fn error(self, problem: Problem) -> ParseError {
        ParseError { line: self.line, column: self.column, problem }
    }
}

/// A word, or one of `{ } [ ]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'t> {
    /// Empty at the end of the text only.
    pub text: &'t str,
    pub place: Place,
}

impl<'t> Token<'t> {
    fn is_bracket(self) -> bool {
        matches!(self.text, "{" | "}" | "[" | "]")
    }

    /// For error messages: the word in quotes, shortened.
    pub fn quote(self) -> String {
        if self.text.is_empty() {
            return "the end of the map".to_owned();
        }
        format!("`{}`", self.shortened())
    }

    pub fn shortened(self) -> String {
        self.text.chars().take(QUOTE_CHARS_MAX).collect()
    }

    pub fn unexpected(self, expected: &'static str) -> ParseError {
        self.place.error(Problem::Unexpected { expected, found: self.quote() })
    }

    pub fn unknown(self, what: &'static str, hint: &'static str) -> ParseError {
        self.place.error(Problem::Unknown { what, name: self.shortened(), hint })
    }

    pub fn twice(self, what: &'static str) -> ParseError {
        self.place.error(Problem::Twice { what, name: self.shortened() })
    }

    /// The word as a number; digits only, with a sign if the type has one.
    pub fn number<T: FromStr>(self, expected: &'static str) -> Result<T, ParseError> {
        let digits = self.text.strip_prefix('-').unwrap_or(self.text);
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = if plain { self.text.parse().ok() } else { None };
        let found = self.shortened();
        number.ok_or_else(|| self.place.error(Problem::BadNumber { expected, found }))
    }

    /// The word as a weight in 16.16: the nearest 32-bit float, times 65536, cut off, as Ceph's
    /// compiler computes it.
    pub fn weight(self) -> Result<u32, ParseError> {
        let expected = "a weight from 0 to 65535, such as 1.819";
        let real = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'-' | b'+');
        let parsed = if self.text.bytes().all(real) { self.text.parse::<f32>().ok() } else { None };
        match parsed.map(|weight| weight * WEIGHT_ONE as f32) {
            // A negative weight that rounds to 0 is one too many.
            Some(scaled) if (0.0..4_294_967_296.0).contains(&scaled) => Ok(scaled as u32),
            _ => {
                let found = self.shortened();
                Err(self.place.error(Problem::BadNumber { expected, found }))
            }
        }
    }
}

/// The tokens of a text, one ahead.
pub(super) struct Lexer<'t> {
    rest: &'t str,
    place: Place,
    next: Token<'t>,
}

impl<'t> Lexer<'t> {
    pub fn new(text: &'t str) -> Result<Self, ParseError> {
        if text.len() > MAP_TEXT_BYTES_MAX {
            return Err(Place::START.error(Problem::TooLong(text.len())));
        }
        let next = Token { text: "", place: Place::START };
        let mut lexer = Self { rest: text, place: Place::START, next };
        lexer.next = lexer.scan();
        Ok(lexer)
    }

    pub fn peek(&self) -> Token<'t> {
        self.next
    }

    pub fn next(&mut self) -> Token<'t> {
        let scanned = self.scan();
        std::mem::replace(&mut self.next, scanned)
    }

    /// The next token if it is this word.
    pub fn accept(&mut self, word: &str) -> bool {
        let hit = self.next.text == word;
        if hit {
            self.next();
        }
        hit
    }

    /// The next token must be this one, which `expected` describes.
    pub fn expect(&mut self, word: &str, expected: &'static str) -> Result<(), ParseError> {
        if self.accept(word) { Ok(()) } else { Err(self.next.unexpected(expected)) }
    }

    /// The next token must be a word, not a bracket or the end.
    pub fn word(&mut self, expected: &'static str) -> Result<Token<'t>, ParseError> {
        if self.next.text.is_empty() || self.next.is_bracket() {
            return Err(self.next.unexpected(expected));
        }
        Ok(self.next())
    }

    fn scan(&mut self) -> Token<'t> {
        self.skip_blank();
        let place = self.place;
        let ends = |c: char| c.is_ascii_whitespace() || c == '\x0b' || "{}[]#".contains(c);
        let length = match self.rest.find(ends) {
            // A bracket is a token by itself (blanks and comments have been skipped).
            Some(0) => 1,
            Some(end) => end,
            None => self.rest.len(),
        };
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        self.place.column += text.chars().count();
        Token { text, place }
    }

    fn skip_blank(&mut self) {
        while let Some(c) = self.rest.chars().next() {
            if c == '#' {
                let end = self.rest.find('\n').unwrap_or(self.rest.len());
                self.rest = &self.rest[end..];
            } else if c == '\n' {
                self.place = Place { line: self.place.line + 1, column: 1 };
                self.rest = &self.rest[1..];
            } else if c.is_ascii_whitespace() || c == '\x0b' {
                self.place.column += 1;
                self.rest = &self.rest[1..];
            } else {
                break;
            }
        }
    }
}
