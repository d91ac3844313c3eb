//! What must hold, one property per file. A checker sees what goes into and comes out of the machines
//! and the stores; it never asks a machine what it believes.
//!
//! | file | property |
//! |---|---|
//! | [`i1_acknowledged`] | an acknowledged write is read back until it is overwritten |
//! | [`i2_linearizable`] | per block, reads and writes of all sessions are linearizable |
//! | [`i3_one_content`] | one (object, ballot, seq) has one content; numbers are not skipped |
//! | [`i4_equal_heads`] | equal heads mean equal content, whatever the lines |
//! | [`i5_deletion`] | what a node deletes when it leaves, a majority of the others holds |
//! | [`i6_calm`] | when faults stop, every copy becomes equal |
//! | [`p1_majority`] | what is acknowledged, a majority has claimed durable |
//! | [`all_in_sync`] | in pools that want it so, every member whose copy is in line has, too |
//! | [`p4_one_writer`] | no write that began after a newer leader attached is acknowledged to an older one |
//! | [`agreement`] | monitors agree on one log and one map, and grant each generation once |
//! | [`one_lease`] | no two front ends believe in a lease of one volume at the same time |
//! | [`kept`] | no healer gets the volume of a front end that nodes hear |
//! | [`p6_budget`] | repairs that no client waits for stay within their node's budget |
//! | [`durable_first`] | what a node claims is durable there at that moment |
//! | [`never_back`] | promises, lines, fences and epochs never go back |
//! | [`split`] | a split keeps every promise, line and vote, and puts each object where its hash says |
//! | [`quorum_choice`] | the choice of every quorum is a legal one |

pub mod agreement;
pub mod all_in_sync;
pub mod doubted;
pub mod durable_first;
pub mod i1_acknowledged;
pub mod i2_linearizable;
pub mod i3_one_content;
pub mod i4_equal_heads;
pub mod i5_deletion;
pub mod i6_calm;
pub mod kept;
pub mod never_back;
pub mod one_lease;
pub mod p1_majority;
pub mod p4_one_writer;
pub mod p6_budget;
pub mod quorum_choice;
pub mod register;
pub mod split;

use crate::plan::{BLOCKS_MAX, OBJECTS_MAX, VOLUMES_MAX};
use trefoil_core::{ObjectId, ObjectIndex, VolumeId};

/// A point in the run: each thing that a checker orders has one of its own.
pub type Moment = u64;

/// After everything.
pub const NEVER: Moment = u64::MAX;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which property.
    pub invariant: &'static str,
    /// What was seen, with the values.
    pub what: String,
    /// The object, if it is about one.
    pub object: Option<(VolumeId, ObjectIndex)>,
}

impl Violation {
    /// About an object.
    pub fn of(invariant: &'static str, object: (VolumeId, ObjectIndex), what: String) -> Box<Violation> {
        Box::new(Violation { invariant, what, object: Some(object) })
    }
    /// About no object in particular.
    pub fn plain(invariant: &'static str, what: String) -> Box<Violation> {
        Box::new(Violation { invariant, what, object: None })
    }
}

/// What a check says.
pub type Checked = Result<(), Box<Violation>>;

/// Objects in a run at most.
pub const SLOTS: usize = VOLUMES_MAX * OBJECTS_MAX;

/// A number below [`SLOTS`] for an object of the run; `None` for any other object.
pub fn slot(volume: VolumeId, index: ObjectIndex) -> Option<usize> {
    let volume = usize::try_from(volume.0.checked_sub(1)?).ok()?;
    (volume < VOLUMES_MAX && (index as usize) < OBJECTS_MAX).then(|| volume * OBJECTS_MAX + index as usize)
}

/// [`slot`] of an object id.
pub fn slot_of(object: ObjectId) -> Option<usize> {
    slot(object.group.volume, object.index)
}

/// The object of a slot.
pub fn object_of(slot: usize) -> (VolumeId, ObjectIndex) {
    (VolumeId((slot / OBJECTS_MAX) as u64 + 1), (slot % OBJECTS_MAX) as u32)
}

/// One number per block of an object.
pub type PerBlock = [u64; BLOCKS_MAX];
