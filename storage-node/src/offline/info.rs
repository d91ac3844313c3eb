//! What a store is and what is in it, as `trefoil store info` shows it.
//!
//! Plain data with the field names of `--json`: a field is never renamed or given another meaning. 64-bit
//! names and checksums are hexadecimal texts, since not every JSON parser keeps 64 bits.

use super::{BareStore, OfflineStore, ReadMany};
use crate::store::view::{COPIES, NO_SEGMENT, Roots, SLOTS, Superblock};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use trefoil_core::{BLOCK_SIZE, VolumeId};

/// A copy of the superblock.
#[derive(Clone, Debug, Serialize)]
pub struct CopyInfo {
    /// Where it is.
    pub byte: u64,
    /// Why it cannot be used; none if it is good.
    pub damage: Option<String>,
}

/// A root, which names a snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct RootInfo {
    /// Where it is.
    pub byte: u64,
    /// Its number; the greater one counts.
    pub number: Option<u64>,
    /// LSN of the last batch that its snapshot covers; 0: there is none yet.
    pub covers: Option<u64>,
    /// The newer good one, which counts.
    pub used: bool,
}

/// Space, in segments and blocks.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SpaceInfo {
    /// Blocks that tables name, and the tables' own.
    pub live_blocks: u64,
    /// Bytes of them.
    pub live_bytes: u64,
    /// Segments that hold something that is needed, or are being written.
    pub segments_used: u64,
    /// Segments that may be used again, or were never used.
    pub segments_free: u64,
    /// Table pages of deleted objects that still count.
    pub dead_pages: u64,
    /// Blocks that damaged table pages may have left counted as live for good.
    pub leaked_blocks: u64,
}

/// The log.
#[derive(Clone, Debug, Serialize)]
pub struct LogInfo {
    /// LSN of the last batch: the node's log position.
    pub position: u64,
    /// The segment in which it lies.
    pub segment: u32,
    /// Its first block there.
    pub block: u32,
    /// Batches read to find the state.
    pub batches_read: u64,
    /// Records in them.
    pub records_read: u64,
    /// How often the store has been opened by a storage node.
    pub sessions: u64,
    /// A batch at the end that was not written whole, which was never acknowledged: no damage.
    pub torn_tail: Option<u64>,
    /// Damage found while the log was read, in words.
    pub damage: Vec<String>,
}

/// What a store has of a volume.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VolumeInfo {
    /// Its id.
    pub volume: u64,
    /// Leaders of generations below are refused.
    pub fence: Option<u64>,
    /// Groups: placement groups in which the volume was opened here.
    pub groups: u64,
    /// Groups of which the node has lost its votes (N8).
    pub groups_lost: u64,
    /// Objects with a head.
    pub objects: u64,
    /// Objects that are behind: the copy here is older than what was decided.
    pub behind: u64,
}

/// What can be said of a store without its log.
#[derive(Clone, Debug, Serialize)]
pub struct BareInfo {
    /// The path.
    pub device: String,
    /// Bytes that the store uses.
    pub size_bytes: u64,
    /// The node's number, as far as the superblock says; a node that got its number later shows none.
    pub node: Option<u32>,
    /// The cluster's id.
    pub cluster: String,
    /// The store's name.
    pub incarnation: String,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments.
    pub segments: u32,
    /// The superblock's copies.
    pub superblocks: Vec<CopyInfo>,
    /// The roots' places.
    pub roots: Vec<RootInfo>,
    /// Why the state of the store cannot be found, if so: there is nothing else to show then.
    pub trouble: Option<String>,
}

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// What is known without the log.
    #[serde(flatten)]
    pub bare: BareInfo,
    /// The log.
    pub log: LogInfo,
    /// Space.
    pub space: SpaceInfo,
    /// State that was once durable is lost, in words: the node would not vote (N8).
    pub lost: Option<String>,
    /// The node has lost state at some time: a group that it does not know is a lost one.
    pub amnesia: bool,
    /// Placement groups that it has answered for.
    pub pgs: u64,
    /// Groups.
    pub groups: u64,
    /// Objects with a head.
    pub objects: u64,
    /// Volumes.
    pub volumes: Vec<VolumeInfo>,
}

impl Info {
    /// True if something about the store is not as it should be, as far as opening it shows.
    pub fn is_damaged(&self) -> bool {
        self.lost.is_some()
            || !self.log.damage.is_empty()
            || self.bare.superblocks.iter().any(|copy| copy.damage.is_some())
    }
}

/// `00112233-...` without the dashes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl<D: ReadMany> BareStore<D> {
    /// The superblock's copies, each looked at by itself.
    pub fn superblock_copies(&self) -> Vec<CopyInfo> {
        let look = |byte| {
            let damage = match self.read_raw(byte, 1) {
                Err(fault) => Some(fault.to_string()),
                Ok(bytes) if bytes[..] == Superblock::encode(self.superblock())[..] => None,
                Ok(_) => Some("it is not what was written at format".to_owned()),
            };
            CopyInfo { byte, damage }
        };
        COPIES.into_iter().map(look).collect()
    }

    /// What can be said without the log.
    pub fn info(&self) -> BareInfo {
        let sb = &self.sb;
        BareInfo {
            device: self.name().to_owned(),
            size_bytes: sb.size,
            node: Some(sb.node_id.0).filter(|id| *id != u32::MAX),
            cluster: hex(&sb.cluster_id),
            incarnation: format!("{:016x}", sb.incarnation.0),
            segment_bytes: u64::from(sb.segment_blocks) * BLOCK_SIZE as u64,
            segments: sb.segments,
            superblocks: self.superblock_copies(),
            roots: self.roots(),
            trouble: None,
        }
    }

    /// The places of the roots.
    pub fn roots(&self) -> Vec<RootInfo> {
        let good = Roots::read(&self.device, self.sb.incarnation).good;
        let look = |byte| {
            let root = good.iter().find(|root| root.offset() == byte);
            RootInfo {
                byte,
                number: root.map(|root| root.number),
                covers: root.map(|root| root.covers.lsn),
                used: root.is_some() && root == good.first(),
            }
        };
        SLOTS.into_iter().map(look).collect()
    }
}

impl<D: ReadMany> OfflineStore<D> {
    /// Whether a segment may be used by the log: it was never used, or has been freed.
    pub(crate) fn is_free(&self, segment: u32) -> bool {
        let state = self.recovery.state.segments.get(segment);
        let open = |end: &crate::store::view::StreamEnd| {
            end.segment == segment || end.next != NO_SEGMENT && end.next == segment
        };
        (state.free || state.last_lsn == 0) && !self.recovery.ends.iter().any(open)
    }

    fn space(&self) -> SpaceInfo {
        let free = (0..self.bare.sb.segments).filter(|segment| self.is_free(*segment)).count() as u64;
        let live_blocks = self.recovery.state.segments.live();
        SpaceInfo {
            live_blocks,
            live_bytes: live_blocks * BLOCK_SIZE as u64,
            segments_used: u64::from(self.bare.sb.segments) - free,
            segments_free: free,
            dead_pages: self.recovery.state.dead.len() as u64,
            leaked_blocks: self.recovery.state.segments.leaked,
        }
    }

    /// What the store has of each volume, in order.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let durable = self.durable();
        let mut volumes: BTreeMap<VolumeId, VolumeInfo> = BTreeMap::new();
        for (volume, fence) in &durable.fences {
            volumes.entry(*volume).or_default().fence = Some(fence.0);
        }
        for (group, state) in &durable.groups {
            let info = volumes.entry(group.volume).or_default();
            info.groups += 1;
            info.groups_lost += u64::from(state.lost);
            info.objects += state.objects.len() as u64;
            info.behind += state.behind.len() as u64;
        }
        volumes.into_iter().map(|(id, info)| VolumeInfo { volume: id.0, ..info }).collect()
    }

    /// See [`Info`].
    pub fn info(&self) -> Info {
        let durable = self.durable();
        let recovery = &self.recovery;
        let pgs: BTreeSet<_> = durable.pgs.keys().chain(durable.groups.keys().map(|g| &g.pg)).collect();
        Info {
            bare: self.bare.info(),
            space: self.space(),
            log: LogInfo {
                position: recovery.last.lsn,
                segment: recovery.last.segment,
                block: recovery.last.block,
                batches_read: recovery.how.batches,
                records_read: recovery.how.records,
                sessions: recovery.state.session,
                torn_tail: recovery.how.torn_tail.map(|(lsn, ..)| lsn),
                damage: recovery.how.damage.clone(),
            },
            lost: recovery.lost.clone(),
            amnesia: durable.amnesia,
            pgs: pgs.len() as u64,
            groups: durable.groups.len() as u64,
            objects: durable.groups.values().map(|state| state.objects.len() as u64).sum(),
            volumes: self.volumes(),
        }
    }
}
