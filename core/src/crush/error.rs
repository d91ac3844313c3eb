//! Why a definition is not a valid CRUSH map, and which part of it is to be changed.
//!
//! No checks are made here but that of a range, which all others share.

use std::fmt;

use thiserror::Error;

/// Which part of a map an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The map as a whole.
    Map,
    /// The device with this id.
    Device(i32),
    /// The type with this id.
    Type(i32),
    /// The bucket with this id.
    Bucket(i32),
    /// The rule with this id.
    Rule(u32),
    /// The set of choose_args with this id.
    ChooseArgs(i64),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map => write!(f, "the map"),
            Self::Device(id) => write!(f, "device {id}"),
            Self::Type(id) => write!(f, "type {id}"),
            Self::Bucket(id) => write!(f, "the bucket with id {id}"),
            Self::Rule(id) => write!(f, "rule {id}"),
            Self::ChooseArgs(id) => write!(f, "choose_args {id}"),
        }
    }
}

/// Why a definition is not a valid map.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BuildError {
    /// A number or a count is outside its limits.
    #[error("{subject}: {what} {value} is outside {min} to {max}; choose one within")]
    OutOfRange {
        /// Where.
        subject: Subject,
        /// What number.
        what: &'static str,
        /// Its value.
        value: i64,
        /// The least allowed.
        min: i64,
        /// The greatest allowed.
        max: i64,
    },
    /// A name has characters that the text format cannot hold, or none.
    #[error("{subject}: the name `{name}` is not usable: take letters, digits, `-`, `_` and `.`")]
    BadName {
        /// Where.
        subject: Subject,
        /// The name.
        name: String,
    },
    /// A name or an id that must be unique is not.
    #[error("{subject}: {what} `{name}` is used twice; give one of the two another")]
    Duplicate {
        /// Where.
        subject: Subject,
        /// What kind of name or id.
        what: &'static str,
        /// The name or id.
        name: String,
    },
    /// A name or an id is used, but nowhere defined.
    #[error("{subject}: {what} `{name}` is not defined; define it or take it out")]
    Undefined {
        /// Where.
        subject: Subject,
        /// What kind of name or id.
        what: &'static str,
        /// The name or id.
        name: String,
    },
    /// A bucket contains itself, directly or through others.
    #[error("bucket `{name}` contains itself through its items; take one of them out")]
    Cycle {
        /// The bucket where the cycle was noticed.
        subject: Subject,
        /// Its name.
        name: String,
    },
    /// The items of a uniform bucket do not weigh the same.
    #[error("{subject}: the items of a uniform bucket must have equal weights; use straw2")]
    UnequalWeights {
        /// The bucket.
        subject: Subject,
    },
    /// The weights of a bucket add up to more than 32 bits hold.
    #[error("{subject}: the weights of its items add up to more than 65535; lower them")]
    WeightOverflow {
        /// The bucket, or its original for a shadow bucket.
        subject: Subject,
    },
    /// A weight needs more digits than the text format (32-bit floating point) keeps.
    #[error("{subject}: weight {weight}/65536 has more than 24 significant bits; round it")]
    WeightTooFine {
        /// Where.
        subject: Subject,
        /// The weight.
        weight: u32,
    },
    /// A rule takes a device class of a tree bucket, for which Ceph's answers are not defined.
    #[error(
        "{subject} takes a device class from tree bucket `{bucket}`, where Ceph's answers depend \
         on uninitialised memory; change the bucket to straw2 or take it without a class"
    )]
    TreeWithClass {
        /// The rule.
        subject: Subject,
        /// The name of the bucket.
        bucket: String,
    },
    /// Weights or ids of choose_args do not match the bucket's items in number.
    #[error(
        "{subject}: bucket {bucket_id} has {items} items, but the {what} has {count} entries; \
         give one for each item"
    )]
    ChooseArgsShape {
        /// The set.
        subject: Subject,
        /// The bucket.
        bucket_id: i32,
        /// How many items the bucket has.
        items: usize,
        /// "weight_set" or "ids".
        what: &'static str,
        /// How many entries were given.
        count: usize,
    },
}

impl BuildError {
    /// Which part of the map is to be changed.
    pub fn subject(&self) -> Subject {
        match self {
            Self::OutOfRange { subject, .. }
            | Self::BadName { subject, .. }
            | Self::Duplicate { subject, .. }
            | Self::Undefined { subject, .. }
            | Self::Cycle { subject, .. }
            | Self::UnequalWeights { subject }
            | Self::WeightOverflow { subject }
            | Self::WeightTooFine { subject, .. }
            | Self::TreeWithClass { subject, .. }
            | Self::ChooseArgsShape { subject, .. } => *subject,
        }
    }
}

/// Fails unless `value` is within `min` to `max`.
pub(super) fn range(
    subject: Subject,
    what: &'static str,
    value: i64,
    min: i64,
    max: i64,
) -> Result<(), BuildError> {
    let error = BuildError::OutOfRange { subject, what, value, min, max };
    if (min..=max).contains(&value) { Ok(()) } else { Err(error) }
}

pub(super) fn duplicate(subject: Subject, what: &'static str, name: impl ToString) -> BuildError {
    BuildError::Duplicate { subject, what, name: name.to_string() }
}

pub(super) fn undefined(subject: Subject, what: &'static str, name: impl ToString) -> BuildError {
    BuildError::Undefined { subject, what, name: name.to_string() }
}
