//! Lists of votes, as `Opened` and `Compare` carry them.

use super::DecodeError;
use super::get::{Get, put_head};
use crate::ids::*;
use crate::limits::GROUP_OBJECTS_MAX;
use crate::message::{Line, ObjectVote};
use bytes::{BufMut, BytesMut};

/// Bytes of one vote: keeps the answer of a full group below the frame's limit.
const VOTE_LEN: usize = 32;

/// How a vote's line is told: it is the group's.
const LINE_OF_GROUP: u32 = 0;
/// How a vote's line is told: the ballot follows.
const LINE_AT: u32 = 1;
/// How a vote's line is told: there is none.
const LINE_LOST: u32 = 2;

fn put_vote(out: &mut BytesMut, vote: &ObjectVote) {
    let (tag, line) = match vote.behind {
        None => (LINE_OF_GROUP, Ballot::ZERO),
        Some(Line::At(ballot)) => (LINE_AT, ballot),
        Some(Line::Lost) => (LINE_LOST, Ballot::ZERO),
    };
    out.put_u32_le(vote.index);
    out.put_u32_le(tag);
    put_head(out, &vote.head);
    out.put_u64_le(line.0);
}

fn get_vote(get: &mut Get<'_>) -> Result<ObjectVote, DecodeError> {
    let (index, tag) = (get.u32("object")?, get.u32("line kind")?);
    let (head, line) = (get.head()?, get.ballot()?);
    let behind = match tag {
        LINE_AT => Some(Line::At(line)),
        LINE_OF_GROUP if line == Ballot::ZERO => None,
        LINE_LOST if line == Ballot::ZERO => Some(Line::Lost),
        LINE_OF_GROUP | LINE_LOST => return Err(get.range("line", line.0)),
        tag => return Err(get.range("line kind", u64::from(tag))),
    };
    Ok(ObjectVote { index, head, behind })
}

/// A count and then the votes.
pub(super) fn put_votes(out: &mut BytesMut, votes: &[ObjectVote]) {
    out.reserve(4 + votes.len() * VOTE_LEN);
    // At most GROUP_OBJECTS_MAX.
    out.put_u32_le(votes.len() as u32);
    for vote in votes {
        put_vote(out, vote);
    }
}

/// At most as many votes as a group has objects.
pub(super) fn get_votes(get: &mut Get<'_>) -> Result<Vec<ObjectVote>, DecodeError> {
    let count = get.count("object count", GROUP_OBJECTS_MAX)?;
    if count * VOTE_LEN > get.left() {
        return Err(DecodeError::Short { kind: get.kind, field: "objects" });
    }
    let mut votes = Vec::with_capacity(count);
    for _ in 0..count {
        votes.push(get_vote(get)?);
    }
    Ok(votes)
}
