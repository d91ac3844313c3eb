//! Scrub (section 9): a node looks at its own copies, and marks in them what is not to be trusted.
//!
//! *Light*: each object's recorded checksums are compared with its peers', at one head only; copies at other
//! heads are looked at again later and never voted on. *Deep*: besides, every block is read and verified
//! against its checksum, so that rot is found before it is wanted (the store says `BadBlock`, and the block
//! is healed as after any read).
//!
//! What a node may do with what it finds: mark blocks of its own copy ([`crate::scrub::judge`]), durably,
//! before anybody is told. It changes no content: a copy that was outvoted is replaced by a Repair of its
//! leader, which is told; a group without a leader is named to the monitors. Blocks in
//! doubt are not read from, and a copy made from this one inherits the marks.
//!
//! It has a budget and gives way: bytes per tick for what is read, objects per tick for what is compared,
//! an eighth of both while clients are being served.

use super::{ConnId, Node, Output, ReadMode, ReadResult, Reading, Scrubbed, Ticket};
use crate::checksum::{HOLE, UNKNOWN};
use crate::ids::*;
use crate::limits::*;
use crate::message::{FromNode, PeerMsg, ScrubFound};
use crate::record::Record;
use crate::scrub::{Claim, Doubt, Mark, doubt_of, judge, table_sum, trimmed};
use std::collections::{BTreeMap, VecDeque};

/// Ticks that answers to one comparison are waited for.
const LOOK_WAIT_TICKS: u32 = 10;
/// While clients are being served, scrub takes one part in so many of its budget.
const GIVES_WAY: u64 = 8;

/// An object that is being compared.
#[derive(Debug)]
struct Look {
    /// The copy's head when its table was read.
    head: Head,
    /// Names the read of the table, and then the question.
    request: u64,
    /// This copy's checksums, once they are read.
    mine: Option<Box<[u64]>>,
    /// Peers asked, and what they have answered; `Unlike` for those that are gone.
    answers: Vec<(NodeId, Option<ScrubFound>)>,
    waited: u32,
    tries: u32,
    /// The walk waits for it.
    of_walk: bool,
}

/// A placement group that is being scrubbed.
#[derive(Debug)]
struct Walk {
    pg: PgId,
    deep: bool,
    /// Groups still to come, the next one last.
    groups: Vec<GroupId>,
    /// Objects of the present group still to come, the next one last.
    objects: Vec<ObjectId>,
    /// Comparisons under way.
    looking: usize,
    /// Deep: the object that is being read, the next block, and where it ends.
    reading: VecDeque<(ObjectId, u32, u32)>,
    /// Deep: the read under way.
    under_way: bool,
    found: Scrubbed,
}

/// What the node's scrub has under way.
#[derive(Debug, Default)]
pub(super) struct Scrubber {
    jobs: VecDeque<(PgId, bool)>,
    walk: Option<Walk>,
    looks: BTreeMap<ObjectId, Look>,
    /// Objects to be looked at: how often they were already, and when they are due.
    wanted: BTreeMap<ObjectId, (u32, u64)>,
    /// Peers' questions that are being answered.
    answering: usize,
    /// Bytes that may be read per tick, and those that may be read now.
    rate: u64,
    tokens: u64,
    /// Objects that the walk may still begin to compare before the next tick.
    objects_left: usize,
    /// Placement groups that may still be begun before the next tick: each begins with a search of the groups.
    walks_left: usize,
    ticks: u64,
}

impl<P: Clone> Node<P> {
    /// Bytes that scrub may read in each tick (a tenth of a second); 0 stops deep scrubs where they are.
    pub fn set_scrub_rate(&mut self, bytes_per_tick: u64) {
        self.scrub.rate = bytes_per_tick;
    }

    /// Placement groups that wait for their scrub or are being scrubbed.
    pub fn scrubs_open(&self) -> usize {
        self.scrub.jobs.len() + usize::from(self.scrub.walk.is_some())
    }

    /// Blocks of this node's copies that are in doubt, by object. Looks at no group without any.
    pub fn doubts(&self) -> impl Iterator<Item = (ObjectId, Head, &[Mark])> {
        self.tally.doubted().filter_map(|group| Some((group, self.group(group)?))).flat_map(
            |(group, state)| {
                let mut marked: Vec<ObjectIndex> = state.doubts.keys().copied().collect();
                marked.sort_unstable();
                marked.into_iter().map(move |index| {
                    let head = state.objects.get(&index).copied().unwrap_or_default();
                    (ObjectId { group, index }, head, state.marks(index))
                })
            },
        )
    }

    /// There is place for marks on this object.
    pub(super) fn may_mark(&self, object: ObjectId) -> bool {
        self.group(object.group).is_some_and(|state| state.doubts.contains_key(&object.index))
            || self.tally.doubted_objects() < NODE_DOUBTED_OBJECTS_MAX
    }

    /// A scrub of a placement group is wanted. One that waits already is not asked for twice; a deep one is
    /// a light one too.
    pub(super) fn order_scrub(&mut self, pg: PgId, deep: bool, out: &mut Vec<Output<P>>) {
        self.split_for(pg, out);
        if let Some(job) = self.scrub.jobs.iter_mut().find(|job| job.0 == pg) {
            job.1 |= deep;
        } else if self.scrub.jobs.len() < NODE_SCRUBS_MAX {
            self.scrub.jobs.push_back((pg, deep));
        }
    }

    /// The head of a copy that may be compared with others now.
    fn comparable(&self, object: ObjectId) -> Option<Head> {
        let state = self.group(object.group).filter(|state| !state.lost)?;
        let out = state.behind.contains_key(&object.index)
            || self.repairs.contains_key(&object)
            || self.damaged.contains(&object)
            || self.is_outside(object.group.pg)
            // Its peers may know it by another name by now.
            || self.needs_split(object.group.pg);
        state.objects.get(&object.index).copied().filter(|head| !out && *head != Head::ZERO)
    }

    /// Clients are being served right now.
    fn serves_clients(&self) -> bool {
        !self.held.is_empty() || self.reads.values().any(|what| matches!(what, Reading::Leader { .. }))
    }

    pub(super) fn tick_scrub(&mut self, out: &mut Vec<Output<P>>) {
        let busy = self.serves_clients();
        let scrub = &mut self.scrub;
        scrub.ticks += 1;
        let part = if busy { GIVES_WAY } else { 1 };
        // Not saved up for longer than a tick, or by as much as one piece: a pause gives no burst.
        let most = scrub.rate.max(u64::from(SCRUB_PIECE_BLOCKS) * BLOCK_SIZE as u64);
        scrub.tokens = (scrub.tokens + scrub.rate / part).min(most);
        scrub.objects_left = SCRUB_OBJECTS_PER_TICK / part as usize;
        scrub.walks_left = SCRUB_WALKS_PER_TICK;
        let late = |look: &mut Look| {
            look.waited += 1;
            look.waited > LOOK_WAIT_TICKS
        };
        let late: Vec<ObjectId> =
            scrub.looks.iter_mut().filter_map(|(object, look)| late(look).then_some(*object)).collect();
        for object in late {
            self.end_look(object, out);
        }
        if self.scrub.ticks.is_multiple_of(u64::from(DOUBTS_EVERY_TICKS)) {
            self.look_at_doubts(out);
        }
        let ticks = self.scrub.ticks;
        let due = self.scrub.wanted.iter().filter(|(_, (_, due))| *due <= ticks);
        let due: Vec<(ObjectId, u32)> =
            due.map(|(object, (tries, _))| (*object, *tries)).take(SCRUB_LOOKS_MAX).collect();
        for (object, tries) in due {
            if self.scrub.looks.len() < SCRUB_LOOKS_MAX && !self.scrub.looks.contains_key(&object) {
                self.scrub.wanted.remove(&object);
                self.start_look(object, tries, false, out);
            }
        }
        self.walk(out);
    }

    /// What is in doubt is told again, and compared again: a copy that was away may have come back.
    fn look_at_doubts(&mut self, out: &mut Vec<Output<P>>) {
        let marked: Vec<(ObjectId, bool, bool)> = self
            .doubts()
            .map(|(object, _, marks)| {
                let has = |doubt| marks.iter().any(|mark| mark.doubt == doubt);
                (object, has(Doubt::Outvoted), has(Doubt::Disputed))
            })
            .collect();
        for (object, outvoted, disputed) in marked {
            if disputed {
                self.want_look(object, 0);
            }
            if outvoted && self.comparable(object).is_some() {
                match self.conns.get(&object.group).copied() {
                    Some(conn) => self.tell_doubts(conn, object, out),
                    // Nobody leads the group: the monitors find somebody who does.
                    None => out.push(Output::Differs { group: object.group }),
                }
            }
        }
    }

    /// The object is to be looked at soon.
    fn want_look(&mut self, object: ObjectId, tries: u32) {
        let due = self.scrub.ticks + if tries == 0 { 0 } else { u64::from(SCRUB_AGAIN_TICKS) };
        if self.scrub.wanted.len() < SCRUB_WANTED_MAX || self.scrub.wanted.contains_key(&object) {
            self.scrub.wanted.entry(object).or_insert((tries, due));
        }
    }

    /// The walk through the placement group goes on as far as the budget allows.
    fn walk(&mut self, out: &mut Vec<Output<P>>) {
        loop {
            if self.scrub.walk.is_none() && !self.begin_walk() {
                return;
            }
            self.read_on(out);
            let Some(walk) = &mut self.scrub.walk else { return };
            let Some(object) = walk.objects.pop() else {
                let Some(group) = walk.groups.pop() else {
                    if walk.looking > 0 || walk.under_way || !walk.reading.is_empty() {
                        return;
                    }
                    if let Some(walk) = self.scrub.walk.take() {
                        out.push(Output::Scrubbed { pg: walk.pg, deep: walk.deep, found: walk.found });
                    }
                    continue;
                };
                let mut objects: Vec<ObjectIndex> = self
                    .group(group)
                    .map(|state| state.objects.keys().copied().collect())
                    .unwrap_or_default();
                objects.sort_unstable_by(|a, b| b.cmp(a));
                if let Some(walk) = &mut self.scrub.walk {
                    walk.objects = objects.into_iter().map(|index| ObjectId { group, index }).collect();
                }
                continue;
            };
            let full = self.scrub.looks.len() >= SCRUB_LOOKS_MAX || self.scrub.objects_left == 0;
            // One object's blocks at a time: what is being read was looked at just before.
            if full || (walk.deep && !walk.reading.is_empty()) {
                walk.objects.push(object);
                return;
            }
            self.scrub.objects_left -= 1;
            self.start_look(object, 0, true, out);
        }
    }

    fn begin_walk(&mut self) -> bool {
        if self.scrub.walks_left == 0 {
            return false;
        }
        let Some((pg, deep)) = self.scrub.jobs.pop_front() else { return false };
        self.scrub.walks_left -= 1;
        let mut groups: Vec<GroupId> = self.state.groups.keys().filter(|g| g.pg == pg).copied().collect();
        groups.reverse();
        self.scrub.walk = Some(Walk {
            pg,
            deep,
            groups,
            objects: Vec::new(),
            looking: 0,
            reading: VecDeque::new(),
            under_way: false,
            found: Scrubbed::default(),
        });
        true
    }

    /// Deep: the next piece, if the budget has it.
    fn read_on(&mut self, out: &mut Vec<Output<P>>) {
        let Some(walk) = &mut self.scrub.walk else { return };
        if walk.under_way {
            return;
        }
        let Some((object, first, end)) = walk.reading.front().copied() else { return };
        let blocks = BlockRange::new(first, SCRUB_PIECE_BLOCKS.min(end - first));
        let bytes = u64::from(blocks.count) * BLOCK_SIZE as u64;
        if self.scrub.tokens < bytes {
            return;
        }
        self.scrub.tokens -= bytes;
        walk.under_way = true;
        match blocks.end() < end {
            true => walk.reading[0].1 = blocks.end(),
            false => _ = walk.reading.pop_front(),
        }
        walk.found.bytes += bytes;
        self.counters.scrub_bytes += bytes;
        self.read(Reading::Deep, object, blocks, ReadMode::All, out);
    }

    /// Deep: a piece was read. What was bad in it the store has said by itself.
    pub(super) fn deep_read(&mut self, found: &ReadResult<P>, out: &mut Vec<Output<P>>) {
        if let Some(walk) = &mut self.scrub.walk {
            walk.under_way = false;
            walk.found.bad += found.bad.len() as u64;
        }
        self.walk(out);
    }

    /// Begins to compare an object with its peers, if its copy here can be.
    fn start_look(&mut self, object: ObjectId, tries: u32, of_walk: bool, out: &mut Vec<Output<P>>) {
        if of_walk && let Some(walk) = &mut self.scrub.walk {
            walk.found.objects += 1;
        }
        let comparable = self.comparable(object).filter(|_| !self.scrub.looks.contains_key(&object));
        let Some(head) = comparable else {
            if of_walk && let Some(walk) = &mut self.scrub.walk {
                walk.found.skipped += 1;
            }
            return;
        };
        if of_walk && let Some(walk) = &mut self.scrub.walk {
            walk.looking += 1;
        }
        let (request, answers) = (self.next_token, Vec::new());
        let look = Look { head, request, mine: None, answers, waited: 0, tries, of_walk };
        self.scrub.looks.insert(object, look);
        let blocks = BlockRange::new(0, OBJECT_BLOCKS_MAX);
        self.read(Reading::Look { object }, object, blocks, ReadMode::ChecksumsOnly, out);
    }

    /// This copy's table is there: its peers are asked.
    pub(super) fn look_read(
        &mut self,
        object: ObjectId,
        token: u64,
        found: ReadResult<P>,
        out: &mut Vec<Output<P>>,
    ) {
        let fits = |look: &&mut Look| look.request == token && look.mine.is_none();
        let Some(look) = self.scrub.looks.get_mut(&object).filter(fits) else { return };
        let mine: Box<[u64]> = trimmed(&found.checksums).into();
        let (head, of_walk) = (look.head, look.of_walk);
        let unknown = mine.contains(&UNKNOWN);
        let (sum, blocks) = (table_sum(&mine), mine.len() as u32);
        look.mine = Some(mine);
        if unknown {
            self.table_damaged(object, out);
            return self.end_look(object, out);
        }
        if of_walk
            && blocks > 0
            && let Some(walk) = self.scrub.walk.as_mut().filter(|walk| walk.deep)
        {
            walk.reading.push_back((object, 0, blocks));
        }
        let config = self.configs.get(&object.group.pg);
        let peers: Vec<NodeId> = config.map_or_else(Vec::new, |config| {
            let others = config.everyone().into_iter().filter(|node| *node != self.id);
            others.filter(|node| config.is_member(*node)).collect()
        });
        if let Some(look) = self.scrub.looks.get_mut(&object) {
            look.answers = peers.iter().map(|node| (*node, None)).collect();
            look.waited = 0;
        }
        for node in &peers {
            let msg = PeerMsg::ScrubAsk { object, request: token, head, sum };
            out.push(Output::ToPeer { node: *node, msg });
        }
        if peers.is_empty() {
            self.end_look(object, out);
        }
        self.walk(out);
    }

    /// A peer asks what this copy holds.
    pub(super) fn scrub_ask(
        &mut self,
        node: NodeId,
        object: ObjectId,
        (request, head, sum): (u64, Head, u64),
        out: &mut Vec<Output<P>>,
    ) {
        if self.comparable(object) != Some(head) || self.scrub.answering >= SCRUB_ANSWERS_MAX {
            let msg = PeerMsg::ScrubTell { object, request, found: ScrubFound::Unlike };
            return out.push(Output::ToPeer { node, msg });
        }
        self.scrub.answering += 1;
        let doubts = self.doubts_of(object);
        let what = Reading::ScrubAnswer { node, object, request, sum, doubts, after: self.given };
        self.read(what, object, BlockRange::new(0, OBJECT_BLOCKS_MAX), ReadMode::ChecksumsOnly, out);
    }

    /// The blocks of a copy that are in doubt now.
    pub(super) fn doubts_of(&self, object: ObjectId) -> Vec<(u32, Doubt)> {
        let marks = self.group(object.group).map_or(&[][..], |state| state.marks(object.index));
        marks.iter().map(|mark| (mark.block, mark.doubt)).collect()
    }

    pub(super) fn scrub_answer_read(
        &mut self,
        node: NodeId,
        object: ObjectId,
        (request, sum, doubts, after): (u64, u64, Vec<(u32, Doubt)>, Ticket),
        found: ReadResult<P>,
        out: &mut Vec<Output<P>>,
    ) {
        self.scrub.answering = self.scrub.answering.saturating_sub(1);
        let here = self.state.place(object);
        let answer = if found.checksums.contains(&UNKNOWN) {
            self.table_damaged(here, out);
            ScrubFound::Unlike
        } else if table_sum(&found.checksums) == sum && doubts.is_empty() {
            ScrubFound::Same
        } else {
            if table_sum(&found.checksums) != sum {
                // So that both know at about the same time.
                self.want_look(here, 0);
            }
            ScrubFound::Sums { checksums: trimmed(&found.checksums).into(), doubts }
        };
        // Held until what it rests on is durable here: the asker marks its copy by it, for good.
        let msg = PeerMsg::ScrubTell { object, request, found: answer };
        self.hold_after(after, Output::ToPeer { node, msg }, out);
    }

    pub(super) fn scrub_tell(
        &mut self,
        node: NodeId,
        object: ObjectId,
        (request, found): (u64, ScrubFound),
        out: &mut Vec<Output<P>>,
    ) {
        let Some(look) = self.scrub.looks.get_mut(&object).filter(|look| look.request == request) else {
            return;
        };
        let Some((_, answer)) =
            look.answers.iter_mut().find(|(asked, answer)| *asked == node && answer.is_none())
        else {
            return;
        };
        *answer = Some(found);
        if look.answers.iter().all(|(_, answer)| answer.is_some()) {
            self.end_look(object, out);
            self.walk(out);
        }
    }

    /// A peer's answers will not come.
    pub(super) fn scrub_loses_peer(&mut self, node: NodeId, out: &mut Vec<Output<P>>) {
        let waits =
            |look: &Look| look.answers.iter().any(|(asked, answer)| *asked == node && answer.is_none());
        let lost: Vec<(ObjectId, u64)> =
            self.scrub.looks.iter().filter(|(_, l)| waits(l)).map(|(o, l)| (*o, l.request)).collect();
        for (object, request) in lost {
            self.scrub_tell(node, object, (request, ScrubFound::Unlike), out);
        }
    }

    /// All answers are there that will come.
    fn end_look(&mut self, object: ObjectId, out: &mut Vec<Output<P>>) {
        let Some(look) = self.scrub.looks.remove(&object) else { return };
        let marked = self.judge_look(object, &look, out);
        self.counters.scrub_objects += 1;
        if look.of_walk
            && let Some(walk) = &mut self.scrub.walk
        {
            walk.looking = walk.looking.saturating_sub(1);
            let count = |doubt| marked.iter().filter(|mark| mark.doubt == doubt).count() as u64;
            walk.found.outvoted += count(Doubt::Outvoted);
            walk.found.disputed += count(Doubt::Disputed);
        }
    }

    /// What the answers come to for this copy. Gives the marks that are new.
    fn judge_look(&mut self, object: ObjectId, look: &Look, out: &mut Vec<Output<P>>) -> Vec<Mark> {
        let Some(mine) = &look.mine else { return Vec::new() };
        let again = look.tries < SCRUB_TRIES_MAX;
        let (Some(state), Some(config)) = (self.group(object.group), self.configs.get(&object.group.pg))
        else {
            return Vec::new();
        };
        let old = state.marks(object.index).to_vec();
        let differs =
            |(_, answer): &(NodeId, Option<ScrubFound>)| matches!(answer, Some(ScrubFound::Sums { .. }));
        if old.is_empty() && !look.answers.iter().any(differs) {
            return Vec::new();
        }
        if self.comparable(object) != Some(look.head) {
            // Written to meanwhile: the answers are about what it was.
            if again {
                self.want_look(object, look.tries + 1);
            }
            return Vec::new();
        }
        // A copy that is away or at another head may still tell who is right.
        let absent = look.answers.iter().any(|(_, a)| matches!(a, None | Some(ScrubFound::Unlike)));
        let blocks = look.answers.iter().map(|(_, answer)| match answer {
            Some(ScrubFound::Sums { checksums, .. }) => checksums.len(),
            _ => 0,
        });
        let blocks = blocks.max().unwrap_or(0).max(mine.len());
        let sum = |sums: &[u64], block: usize| sums.get(block).copied().unwrap_or(HOLE);
        let (mut marks, mut undecided) = (Vec::new(), false);
        for at in 0..blocks {
            let block = at as u32;
            let before = doubt_of(&old, block);
            let mut claims = vec![Claim { node: self.id, checksum: sum(mine, at), doubt: before }];
            claims.extend(look.answers.iter().filter_map(|(node, answer)| match answer {
                Some(ScrubFound::Same) => Some(Claim { node: *node, checksum: sum(mine, at), doubt: None }),
                Some(ScrubFound::Sums { checksums, doubts }) => {
                    let doubt = doubts.iter().find(|(marked, _)| *marked == block).map(|(_, doubt)| *doubt);
                    Some(Claim { node: *node, checksum: sum(checksums, at), doubt })
                }
                _ => None,
            }));
            let equal =
                claims.iter().all(|claim| claim.checksum == claims[0].checksum && claim.doubt.is_none());
            let mut verdict = if equal { None } else { judge(config, self.id, &claims) };
            if verdict == Some(Doubt::Disputed) && before != verdict && absent && again {
                undecided = true;
                verdict = before;
            }
            if let Some(doubt) = verdict {
                marks.push(Mark { block, doubt, checksum: sum(mine, at) });
            }
        }
        if undecided {
            self.want_look(object, look.tries + 1);
        }
        let new: Vec<Mark> = marks.iter().filter(|mark| !old.contains(mark)).copied().collect();
        self.counters.scrub_outvoted +=
            new.iter().filter(|mark| mark.doubt == Doubt::Outvoted).count() as u64;
        self.counters.scrub_disputed +=
            new.iter().filter(|mark| mark.doubt == Doubt::Disputed).count() as u64;
        self.set_marks(object, &old, marks, out);
        new
    }

    /// Makes the marks durable, and tells the leader.
    fn set_marks(&mut self, object: ObjectId, old: &[Mark], marks: Vec<Mark>, out: &mut Vec<Output<P>>) {
        if marks == old || (!marks.is_empty() && !self.may_mark(object)) {
            return;
        }
        self.persist(Record::Doubt { object, marks }, out);
        if let Some(conn) = self.conns.get(&object.group).copied() {
            self.tell_doubts(conn, object, out);
        }
    }

    /// Tells a leader what is in doubt of a copy. Held until that is durable.
    pub(super) fn tell_doubts(&mut self, conn: ConnId, object: ObjectId, out: &mut Vec<Output<P>>) {
        let Some(state) = self.group(object.group) else { return };
        let ballot = state.settled.ballot;
        let marks = state.marks(object.index);
        let outvoted = marks.iter().any(|mark| mark.doubt == Doubt::Outvoted);
        let disputed = marks.iter().filter(|mark| mark.doubt == Doubt::Disputed);
        let disputed: Vec<u32> = disputed.map(|mark| mark.block).collect();
        self.hold_leader(conn, FromNode::Doubts { object, ballot, outvoted, disputed }, out);
    }

    /// Tells a leader that settles this node, before it hears that it has.
    pub(super) fn tell_all_doubts(&mut self, conn: ConnId, group: GroupId, out: &mut Vec<Output<P>>) {
        let Some(state) = self.group(group).filter(|state| !state.doubts.is_empty()) else { return };
        let live = state.doubts.keys().filter(|index| !state.behind.contains_key(index));
        let mut objects: Vec<ObjectIndex> = live.copied().collect();
        objects.sort_unstable();
        for index in objects {
            self.tell_doubts(conn, ObjectId { group, index }, out);
        }
    }

    /// The placement group was split: what is under way goes on with what it was when it began. Comparisons begin
    /// anew, since peers know the objects by their new names or will soon.
    pub(super) fn scrub_follows_split(&mut self, pg: PgId, children: &[u32]) {
        let here = |state: &crate::record::Durable, object: ObjectId| match object.group.pg == pg {
            true => state.place(object),
            false => object,
        };
        let (scrub, state) = (&mut self.scrub, &self.state);
        let looks: Vec<(ObjectId, ObjectId)> = scrub
            .looks
            .keys()
            .map(|object| (*object, here(state, *object)))
            .filter(|(old, new)| old != new)
            .collect();
        let moved = scrub.wanted.keys().map(|object| (*object, here(state, *object)));
        let wanted: Vec<(ObjectId, ObjectId)> = moved.filter(|(old, new)| old != new).collect();
        for (old, new) in wanted {
            if let Some(when) = scrub.wanted.remove(&old) {
                scrub.wanted.insert(new, when);
            }
        }
        if let Some(walk) = &mut scrub.walk {
            walk.objects.iter_mut().for_each(|object| *object = here(state, *object));
            walk.reading.iter_mut().for_each(|(object, ..)| *object = here(state, *object));
            let split: Vec<GroupId> = walk.groups.iter().filter(|group| group.pg == pg).copied().collect();
            let off = |group: GroupId| {
                children.iter().map(move |child| GroupId { pg: PgId { pg: *child, ..pg }, ..group })
            };
            walk.groups.extend(split.into_iter().flat_map(off));
        }
        for (old, new) in looks {
            let Some(look) = self.scrub.looks.remove(&old) else { continue };
            if look.of_walk
                && let Some(walk) = &mut self.scrub.walk
            {
                walk.looking = walk.looking.saturating_sub(1);
                walk.found.skipped += 1;
            }
            self.want_look(new, 0);
        }
    }

    /// An administrator's word: of blocks that are disputed, the copy of `from` is to be believed. Here that
    /// copy is cleared, or every other one is outvoted; the leader does the rest, as after any vote.
    pub(super) fn believe(
        &mut self,
        object: ObjectId,
        blocks: BlockRange,
        from: NodeId,
        out: &mut Vec<Output<P>>,
    ) {
        self.split_for(object.group.pg, out);
        // What was asked before the word was given is not judged after it.
        if self.scrub.looks.remove(&object).is_some_and(|look| look.of_walk)
            && let Some(walk) = &mut self.scrub.walk
        {
            walk.looking = walk.looking.saturating_sub(1);
        }
        self.scrub.wanted.remove(&object);
        let Some(state) = self.group(object.group) else { return };
        let old = state.marks(object.index).to_vec();
        let named = |mark: &Mark| blocks.contains(BlockRange::new(mark.block, 1));
        let mut marks = old.clone();
        if from == self.id {
            marks.retain(|mark| !named(mark));
        } else {
            let disputed = |mark: &&mut Mark| named(mark) && mark.doubt == Doubt::Disputed;
            marks.iter_mut().filter(disputed).for_each(|mark| mark.doubt = Doubt::Outvoted);
        }
        self.set_marks(object, &old, marks, out);
    }
}
