//! Blocks in doubt of a placement group, for `trefoil pg show`: which copy holds what.
//!
//! From what the nodes report of their own copies. A copy that is not in doubt says nothing of a block, and one that
//! does not report is unknown: neither is shown as if it agreed with another.

use crate::output;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use trefoil_core::NodeId;
use trefoil_core::ids::{ObjectIndex, VolumeId};
use trefoil_core::map::ClusterMap;
use trefoil_core::scrub::Doubt;
use trefoil_monitor::scrub::{CopyDoubts, DoubtReport};

/// Blocks that the table shows; `--json` has all that were named.
const SHOWN_MAX: usize = 32;

/// What a placement group has in doubt.
#[derive(Debug, Default, Serialize)]
pub struct DoubtsView {
    /// In order of volume, object and block.
    pub in_doubt: Vec<BlockView>,
    /// Nodes that have not reported lately: what they have in doubt is not known.
    pub doubts_unknown: Vec<u32>,
    /// Nodes that have more in doubt, in this placement group or others, than they name.
    pub doubts_unnamed: Vec<u32>,
}

/// A block that is in doubt at some node.
#[derive(Debug, Serialize)]
pub struct BlockView {
    volume: u64,
    name: Option<String>,
    object: u32,
    block: u32,
    /// No majority says what it holds: reads of it fail. Else a majority does, and some copy is to be replaced.
    disputed: bool,
    /// One for each node of the placement group.
    copies: Vec<BlockCopyView>,
}

/// What a node says of its copy of a block.
#[derive(Debug, Serialize)]
pub struct BlockCopyView {
    node: u32,
    /// `disputed`, `outvoted`, `not in doubt` (it agrees with a majority, or could not be compared: away, behind), or
    /// `unknown` (it does not report, or not all).
    state: &'static str,
    /// Of a copy in doubt: the checksum that it has recorded, in hexadecimal; copies with the same hold the same.
    checksum: Option<String>,
    /// Of a copy in doubt: the object's head there.
    head: Option<String>,
}

/// What the nodes say; of one object only, if one is named.
pub fn view(map: &ClusterMap, said: &[CopyDoubts], only: Option<(VolumeId, ObjectIndex)>) -> DoubtsView {
    let wanted = |it: &&DoubtReport| {
        only.is_none_or(|(volume, index)| it.object.group.volume == volume && it.object.index == index)
    };
    let mut blocks: BTreeMap<(VolumeId, ObjectIndex, u32), BTreeMap<NodeId, DoubtReport>> = BTreeMap::new();
    for copy in said {
        for it in copy.doubts.iter().filter(wanted) {
            let key = (it.object.group.volume, it.object.index, it.block);
            blocks.entry(key).or_default().insert(copy.node, *it);
        }
    }
    let copy = |of: &CopyDoubts, marked: &BTreeMap<NodeId, DoubtReport>| {
        let mark = marked.get(&of.node);
        BlockCopyView {
            node: of.node.0,
            state: match mark.map(|it| it.doubt) {
                Some(Doubt::Disputed) => "disputed",
                Some(Doubt::Outvoted) => "outvoted",
                None if !of.reported || of.unnamed > 0 => "unknown",
                None => "not in doubt",
            },
            checksum: mark.map(|it| format!("{:016x}", it.checksum)),
            head: mark.map(|it| it.head.to_string()),
        }
    };
    let blocks = blocks.into_iter().map(|((volume, object, block), marked)| BlockView {
        volume: volume.0,
        name: map.volumes.get(&volume).map(|it| it.name.clone()),
        object,
        block,
        disputed: marked.values().any(|it| it.doubt == Doubt::Disputed),
        copies: said.iter().map(|of| copy(of, &marked)).collect(),
    });
    let nodes =
        |test: fn(&CopyDoubts) -> bool| said.iter().filter(|it| test(it)).map(|it| it.node.0).collect();
    DoubtsView {
        in_doubt: blocks.collect(),
        doubts_unknown: nodes(|it| !it.reported),
        doubts_unnamed: nodes(|it| it.unnamed > 0),
    }
}

impl DoubtsView {
    /// For people. Nothing in doubt and everybody heard of is not worth a word.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.in_doubt.is_empty() {
            let headers = ["VOLUME", ">OBJECT", ">BLOCK", ">NODE", "CHECKSUM", "HEAD", "STATE"];
            let rows = self.in_doubt.iter().take(SHOWN_MAX).flat_map(BlockView::rows);
            text += &format!("\nblocks in doubt:\n{}\n", output::table(&headers, rows));
            let more = self.in_doubt.len().saturating_sub(SHOWN_MAX);
            if more > 0 {
                text += &format!("and {}: --json shows them\n", output::count(more as u64, "more block"));
            }
            let disputed: BTreeSet<String> =
                self.in_doubt.iter().filter(|it| it.disputed).map(BlockView::object).collect();
            if let Some(object) = disputed.first() {
                text += &format!(
                    "No majority says what disputed blocks hold: reads of them fail. They are settled by a further \
                     copy that comes back, by writing them, or by\n  trefoil pg settle --object {object} --from NODE\n"
                );
            }
        }
        let list =
            |nodes: &[u32]| nodes.iter().map(|node| format!("node.{node}")).collect::<Vec<_>>().join(", ");
        if !self.doubts_unknown.is_empty() {
            text += &format!("\nnot known what is in doubt at {}: no report\n", list(&self.doubts_unknown));
        }
        if !self.doubts_unnamed.is_empty() {
            text += &format!("\nmore is in doubt than is named here at {}\n", list(&self.doubts_unnamed));
        }
        text
    }
}

impl BlockView {
    fn volume(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("{} (not in the map)", self.volume))
    }

    fn object(&self) -> String {
        format!("{}/{}", self.volume(), self.object)
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let dash = || "-".to_owned();
        let row = |it: &BlockCopyView| {
            vec![
                self.volume(),
                self.object.to_string(),
                self.block.to_string(),
                it.node.to_string(),
                it.checksum.clone().unwrap_or_else(dash),
                it.head.clone().unwrap_or_else(dash),
                it.state.to_owned(),
            ]
        };
        self.copies.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::ids::{GroupId, Head, ObjectId, PgId, PoolId};

    fn doubt(index: u32, block: u32, doubt: Doubt, checksum: u64) -> DoubtReport {
        let group = GroupId { volume: VolumeId(1), pg: PgId { pool: PoolId(1), pg: 2 } };
        DoubtReport { object: ObjectId { group, index }, head: Head::ZERO, block, doubt, checksum }
    }

    fn said(node: u32, doubts: Vec<DoubtReport>) -> CopyDoubts {
        CopyDoubts { node: NodeId(node), reported: true, unnamed: 0, doubts }
    }

    #[test]
    fn each_copy_is_shown_with_what_it_holds_and_nothing_is_made_up() {
        let copies = [
            said(0, vec![doubt(3, 7, Doubt::Disputed, 0xa), doubt(4, 1, Doubt::Outvoted, 0xc)]),
            said(1, vec![doubt(3, 7, Doubt::Disputed, 0xb)]),
            CopyDoubts { reported: false, ..said(2, vec![]) },
        ];
        let map = ClusterMap::new();
        let all = view(&map, &copies, None);
        assert_eq!((all.in_doubt.len(), &all.doubts_unknown[..]), (2, &[2][..]));
        let first = &all.in_doubt[0];
        assert!(first.disputed && !all.in_doubt[1].disputed);
        let states: Vec<&str> = first.copies.iter().map(|it| it.state).collect();
        assert_eq!(states, ["disputed", "disputed", "unknown"]);
        assert_eq!(first.copies[1].checksum.as_deref(), Some("000000000000000b"));
        assert_eq!(first.copies[2].checksum, None);
        let text = all.text();
        assert!(text.contains("000000000000000a") && text.contains("pg settle --object"), "{text}");
        assert!(text.contains("not known what is in doubt at node.2"), "{text}");
        assert_eq!(view(&map, &copies, Some((VolumeId(1), 4))).in_doubt.len(), 1);
        assert_eq!(view(&map, &copies, Some((VolumeId(2), 4))).in_doubt.len(), 0);
    }

    #[test]
    fn nothing_in_doubt_is_not_worth_a_word_and_what_is_not_named_is() {
        let map = ClusterMap::new();
        assert_eq!(view(&map, &[said(0, vec![]), said(1, vec![])], None).text(), "");
        let much = CopyDoubts { unnamed: 9, ..said(1, vec![]) };
        let some = view(&map, &[said(0, vec![doubt(3, 7, Doubt::Outvoted, 1)]), much], None);
        assert_eq!(some.in_doubt[0].copies[1].state, "unknown");
        assert!(some.text().contains("more is in doubt than is named here at node.1"));
        let many = (0..40).map(|block| doubt(3, block, Doubt::Outvoted, 1)).collect();
        let text = view(&map, &[said(0, many)], None).text();
        assert!(text.contains("and 8 more blocks") && !text.contains("pg settle"), "{text}");
    }
}
