//! Placement groups that change hands: List (M3), Compare, and leaving (N7).
//!
//! A node that is no member of a placement group any more deletes what it has of it, and not before a
//! majority of those who have it now has shown that it holds at least as much. One group is compared at a
//! time; a record that changes anything of the placement group meanwhile begins it all anew.
//!
//! `left` and the deletion are one durable record: what is deleted cannot be had without `left`.

use super::{Node, Output};
use crate::ids::*;
use crate::limits::{LEAVE_PGS_PER_TICK, LEAVE_WAIT_TICKS_MAX};
use crate::map::VOLUMES_MAX;
use crate::message::{GroupList, Line, ListRequest, ListedGroup, ObjectVote, PeerMsg, Refusal};
use crate::placement::PgConfig;
use crate::record::{GroupState, Record};
use std::ops::Bound;

/// A placement group that is being left.
#[derive(Debug)]
pub(super) struct Leaving {
    pg: PgId,
    /// That of the configuration of which this node is no member.
    epoch: Epoch,
    /// Groups that are still to be compared, the present one last.
    groups: Vec<GroupId>,
    /// Names the Compare under way.
    request: u64,
    /// Who has answered it, and how.
    answers: Vec<(NodeId, bool)>,
    waited: u32,
}

impl Leaving {
    pub(super) fn pg(&self) -> PgId {
        self.pg
    }
}

/// Nothing in it that could be missed: no copy of anything. Its line is of no use either: the votes of a node that
/// is no member do not count. (Nobody could make the others hold as much of a group that a split has made, and in
/// which the volume has no object: it has no leader.)
fn is_empty(state: &GroupState) -> bool {
    state.objects.is_empty() && state.behind.is_empty()
}

impl<P: Clone> Node<P> {
    /// The node takes no part in the placement group, as far as its map goes.
    pub(super) fn is_outside(&self, pg: PgId) -> bool {
        self.configs.get(&pg).is_some_and(|config| !config.takes_part(self.id))
    }

    /// `left` is set.
    pub(super) fn has_left(&self, pg: PgId) -> bool {
        self.state.pgs.get(&pg).is_some_and(|pg| pg.left.is_some())
    }

    /// The highest epoch that the node has answered under.
    pub(super) fn epoch_of(&self, pg: PgId) -> Epoch {
        self.state.pgs.get(&pg).map_or(Epoch(0), |pg| pg.epoch)
    }

    /// A new configuration. A node that has lost state (N8) may have lost an epoch under which it had
    /// answered: what the map says is at least as high, and is kept, so that an older map in a later life
    /// does not take it back. Of the first epoch there is no older one.
    pub(super) fn learn_epoch(&mut self, pg: PgId, epoch: Epoch, out: &mut Vec<Output<P>>) {
        if self.state.amnesia && epoch > self.epoch_of(pg).max(Epoch(1)) {
            self.persist(Record::Epoch { pg, epoch, fences: Vec::new() }, out);
        }
    }

    /// The monitors want the groups of a placement group named, and none born under an older epoch.
    pub(super) fn list(&mut self, id: u64, request: ListRequest, out: &mut Vec<Output<P>>) {
        let ListRequest { pg, epoch, mut fences } = request;
        if epoch < self.epoch_of(pg) || fences.len() > VOLUMES_MAX {
            return; // they have moved on, and this List is late; or there are no so many volumes
        }
        // What the placement group is in that epoch only a map says that reaches to it: it may have been split.
        let late = |config: &PgConfig| config.epoch < epoch;
        let unknown = self.pools.contains_key(&pg.pool) && self.configs.get(&pg).is_none_or(late);
        if unknown || !self.knows_split(pg) {
            return; // asked again when it has come
        }
        self.split_for(pg, out);
        fences.retain(|(volume, generation)| *generation > self.fence(*volume));
        let raised = epoch > self.epoch_of(pg);
        #[cfg(feature = "deliberate-bugs")]
        let raised = raised && !crate::bugs::list_without_epoch();
        if raised || !fences.is_empty() {
            let epoch = if raised { epoch } else { self.epoch_of(pg) };
            self.persist(Record::Epoch { pg, epoch, fences }, out);
        }
        let groups =
            self.state.groups.iter().filter(|(group, state)| {
                group.pg == pg && (state.promised.ballot > Ballot::ZERO || state.lost)
            });
        let groups = groups.map(|(group, state)| ListedGroup {
            volume: group.volume,
            promised: state.promised.ballot,
            settled: state.settled.ballot,
            opened: state.settled.epoch,
            // At most GROUP_OBJECTS_MAX.
            behind: state.behind.len() as u32,
            lost: state.lost,
        });
        let list = GroupList { pg, epoch, groups: groups.collect(), amnesia: self.state.amnesia };
        // Held until the epoch, the fences, and the lines that it names are durable.
        self.hold(Output::Listed { id, list }, out);
    }

    /// Somebody who is no member any more would delete its copy of a group.
    pub(super) fn compare(
        &mut self,
        node: NodeId,
        group: GroupId,
        (epoch, request): (Epoch, u64),
        settled: Ballot,
        objects: &[ObjectVote],
        out: &mut Vec<Output<P>>,
    ) {
        // With another map than the asker's: it is asked again when both have the newer one.
        let same = |config: &PgConfig| config.epoch == epoch && config.is_member(self.id);
        if !self.configs.get(&group.pg).is_some_and(same) || epoch < self.epoch_of(group.pg) {
            return;
        }
        if !self.knows_split(group.pg) {
            return;
        }
        self.split_for(group.pg, out);
        if epoch > self.epoch_of(group.pg) {
            self.persist(Record::Epoch { pg: group.pg, epoch, fences: Vec::new() }, out);
        }
        let yes = self.holds(group, settled, objects);
        // Held until the epoch, and whatever the votes rest on, is durable.
        self.hold(Output::ToPeer { node, msg: PeerMsg::AtLeast { group, epoch, request, yes } }, out);
    }

    /// Every vote here is at least as great, and of a copy that is not behind.
    fn holds(&self, group: GroupId, settled: Ballot, objects: &[ObjectVote]) -> bool {
        let Some(state) = self.group(group).filter(|state| !state.lost) else { return false };
        let mine = state.settled.ballot;
        mine >= settled
            && !self.has_left(group.pg)
            && objects.iter().all(|theirs| {
                let line = match theirs.behind {
                    Some(Line::At(line)) => line,
                    // What it has lost is not known to be less.
                    Some(Line::Lost) | None => settled,
                };
                let head = state.objects.get(&theirs.index).copied().unwrap_or_default();
                let whole = !state.behind.contains_key(&theirs.index)
                    && !self.damaged.contains(&ObjectId { group, index: theirs.index });
                whole && Vote { line: mine, head } >= Vote { line, head: theirs.head }
            })
    }

    pub(super) fn at_least(
        &mut self,
        node: NodeId,
        group: GroupId,
        (epoch, request): (Epoch, u64),
        yes: bool,
        out: &mut Vec<Output<P>>,
    ) {
        let Some(leaving) = &mut self.leaving else { return };
        let asked = (leaving.groups.last(), leaving.epoch, leaving.request);
        if asked != (Some(&group), epoch, request) || leaving.answers.iter().any(|(n, _)| *n == node) {
            return;
        }
        leaving.answers.push((node, yes));
        let said_yes = |node| leaving.answers.contains(&(node, true));
        if self.configs.get(&group.pg).is_some_and(|config| config.is_quorum(said_yes)) {
            leaving.groups.pop();
            self.leave_more(out);
        }
    }

    /// Asks about the next group; leaves when there is none.
    fn leave_more(&mut self, out: &mut Vec<Output<P>>) {
        let Some(leaving) = &mut self.leaving else { return };
        let (pg, epoch) = (leaving.pg, leaving.epoch);
        // The map, or a List, may have taken the node back meanwhile: this is the line before a deletion.
        let outside = |config: &&PgConfig| config.epoch == epoch && !config.takes_part(self.id);
        let late = epoch < self.state.pgs.get(&pg).map_or(Epoch(0), |pg| pg.epoch);
        let Some(config) = self.configs.get(&pg).filter(outside).filter(|_| !late) else {
            self.leaving = None;
            return;
        };
        #[cfg(feature = "deliberate-bugs")]
        if crate::bugs::delete_without_compare() {
            leaving.groups.clear();
        }
        let Some(group) = leaving.groups.last().copied() else { return self.leave(pg, epoch, out) };
        let Some(state) = self.state.groups.get(&group) else {
            self.leaving = None;
            return;
        };
        let request = self.next_token;
        self.next_token += 1;
        (leaving.request, leaving.waited) = (request, 0);
        leaving.answers.clear();
        let (settled, objects) = (state.settled.ballot, state.votes());
        for node in config.everyone().into_iter().filter(|node| config.is_member(*node)) {
            let objects = objects.clone();
            let msg = PeerMsg::Compare { group, epoch, request, settled, objects };
            out.push(Output::ToPeer { node, msg });
        }
    }

    fn leave(&mut self, pg: PgId, epoch: Epoch, out: &mut Vec<Output<P>>) {
        self.leaving = None;
        let led: Vec<GroupId> = self.conns.keys().filter(|group| group.pg == pg).copied().collect();
        self.heals.retain(|(object, _), _| object.group.pg != pg);
        self.damaged.retain(|object| object.group.pg != pg);
        self.counters.left += 1;
        self.persist(Record::Leave { pg, epoch }, out);
        for group in led {
            self.cancel_repairs(group);
            // It must hear nothing more from a leader that has opened it: a Settle on its way would make an
            // empty copy one of its line. The leader has an older map, and is told.
            let (conn, ballot) = (self.conns.remove(&group), self.group(group).map(|s| s.promised.ballot));
            if let (Some(conn), Some(ballot)) = (conn, ballot) {
                let msg = self.refusal(group, ballot, Refusal::NotMember);
                self.hold_leader(conn, msg, out);
            }
        }
    }

    /// Goes on with the placement group that is being left, or looks for one.
    pub(super) fn tick_leaving(&mut self, out: &mut Vec<Output<P>>) {
        if let Some(leaving) = &mut self.leaving {
            leaving.waited += 1;
            if leaving.waited <= LEAVE_WAIT_TICKS_MAX {
                return;
            }
            // Those who have answered hold less: a leader has to make them whole. The others may have had
            // nothing to say. Some other placement group's turn.
            let group = leaving.groups.last().copied().filter(|_| leaving.answers.iter().any(|(_, y)| !y));
            self.leaving = None;
            out.extend(group.map(|group| Output::Differs { group }));
        }
        let from = self.leave_cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = None;
        let mut last = None;
        for (pg, state) in self.state.pgs.range((from, Bound::Unbounded)).take(LEAVE_PGS_PER_TICK) {
            last = Some(*pg);
            // Under an epoch below one that it has answered under, the node may have been a member since.
            let outside = self.configs.get(pg).filter(|c| !c.takes_part(self.id) && c.epoch >= state.epoch);
            if let (Some(config), None, true) = (outside, state.left, self.knows_split(*pg)) {
                found = Some((*pg, config.epoch));
                break;
            }
        }
        self.leave_cursor = last; // None at the end: begin again
        let Some((pg, epoch)) = found else { return };
        self.split_for(pg, out);
        let groups = self.state.groups.iter().filter(|(group, state)| group.pg == pg && !is_empty(state));
        let groups = groups.map(|(group, _)| *group).collect();
        self.leaving = Some(Leaving { pg, epoch, groups, request: 0, answers: Vec::new(), waited: 0 });
        self.leave_more(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{FromNode, ToNode, WriteOp};
    use crate::node::{Input, NodeConfig};
    use crate::record::Durable;

    const GROUP: GroupId = GroupId { volume: VolumeId(1), pg: PgId { pool: PoolId(1), pg: 0 } };
    const OTHER: GroupId = GroupId { volume: VolumeId(2), ..GROUP };

    struct Host {
        node: Node<u8>,
    }

    impl Host {
        /// Node 2, in epoch 1 with nodes 0 and 1.
        fn new() -> Host {
            let mut host = Host { node: Node::new(NodeConfig { id: NodeId(2) }, Durable::default()) };
            host.config(1, &[0, 1, 2]);
            host
        }
        fn tell(&mut self, input: Input<u8>) -> Vec<Output<u8>> {
            let mut out = Vec::new();
            self.node.handle(Time(0), input, &mut out);
            let ticket = self.node.given;
            self.node.handle(Time(0), Input::Durable { ticket }, &mut out);
            out
        }
        fn config(&mut self, epoch: u64, set: &[u32]) -> Vec<Output<u8>> {
            let config = PgConfig::simple(Epoch(epoch), set.iter().map(|n| NodeId(*n)).collect());
            self.tell(Input::Config(vec![(GROUP.pg, config)]))
        }
        fn leader(&mut self, msg: ToNode<u8>) -> Vec<Output<u8>> {
            self.tell(Input::Leader { conn: 1, msg })
        }
        fn open(&mut self, group: GroupId, round: u64, epoch: u64) -> Vec<Output<u8>> {
            self.leader(ToNode::Open { group, ballot: ballot(round), epoch: Epoch(epoch) })
        }
        fn write(&mut self, group: GroupId, round: u64, seq: u64) -> Vec<Output<u8>> {
            let op = WriteOp::Zero { blocks: BlockRange::new(0, 1) };
            let object = ObjectId { group, index: 0 };
            self.leader(ToNode::Write { object, ballot: ballot(round), seq, snap: 0, op })
        }
        /// Two groups with a write each, in round 1.
        fn with_data() -> Host {
            let mut host = Host::new();
            for group in [GROUP, OTHER] {
                host.open(group, 1, 1);
                host.leader(ToNode::Settle { group, ballot: ballot(1), except: vec![] });
                host.write(group, 1, 1);
            }
            host
        }
        fn answer(&mut self, from: u32, asked: &Output<u8>, yes: bool) -> Vec<Output<u8>> {
            let Output::ToPeer { msg: PeerMsg::Compare { group, epoch, request, .. }, .. } = asked else {
                panic!("{asked:?}")
            };
            let msg = PeerMsg::AtLeast { group: *group, epoch: *epoch, request: *request, yes };
            self.tell(Input::Peer { node: NodeId(from), msg })
        }
        /// Leaves under epoch 2, of nodes 0, 1 and 3.
        fn leave(&mut self) -> Vec<Output<u8>> {
            self.config(2, &[0, 1, 3]);
            let mut out = self.tell(Input::Tick);
            for _ in [GROUP, OTHER] {
                let asked = out[0].clone();
                assert!(!leaves(&self.answer(0, &asked, true)));
                out = self.answer(1, &asked, true);
            }
            assert!(leaves(&out), "{out:?}");
            out
        }
    }

    fn ballot(round: u64) -> Ballot {
        Ballot::new(Generation(1), round).expect("a ballot")
    }
    fn leaves(out: &[Output<u8>]) -> bool {
        out.iter().any(|o| matches!(o, Output::Persist { record: Record::Leave { epoch: Epoch(2), .. }, .. }))
    }
    fn persists(out: &[Output<u8>]) -> bool {
        out.iter().any(|o| matches!(o, Output::Persist { .. }))
    }
    fn refused(out: &[Output<u8>], wanted: Refusal) -> bool {
        let is = |o: &Output<u8>| matches!(o, Output::ToLeader { msg: FromNode::OpenRefused { why, .. }, .. } if *why == wanted);
        out.iter().any(is) && !persists(out)
    }

    #[test]
    fn a_node_leaves_when_a_majority_has_said_yes_for_each_group() {
        let mut host = Host::with_data();
        host.config(2, &[0, 1, 3]);
        let out = host.tell(Input::Tick);
        let to: Vec<u32> =
            out.iter().map(|o| if let Output::ToPeer { node, .. } = o { node.0 } else { 99 }).collect();
        assert_eq!(to, [0, 1, 3]);
        let asked = out[0].clone();
        assert!(host.answer(0, &asked, true).is_empty());
        assert!(host.answer(0, &asked, true).is_empty(), "the same one again");
        assert!(host.answer(3, &asked, false).is_empty());
        assert!(host.answer(2, &asked, true).is_empty(), "no member");
        let next = host.answer(1, &asked, true);
        assert!(host.answer(3, &asked, true).is_empty(), "that was another group's");
        assert!(host.answer(0, &next[0], true).is_empty());
        assert!(leaves(&host.answer(3, &next[0], true)));
        assert!(host.node.state().groups.values().all(is_empty) && host.node.counters().left == 1);
    }

    #[test]
    fn a_change_meanwhile_begins_it_anew() {
        let mut host = Host::with_data();
        host.config(2, &[0, 1, 3]);
        let asked = host.tell(Input::Tick)[0].clone();
        host.answer(0, &asked, true);
        assert!(persists(&host.write(OTHER, 1, 2)), "a leader that has not heard");
        assert!(host.answer(1, &asked, true).is_empty());
        host.tell(Input::Tick); // the end of the round
        let again = host.tell(Input::Tick);
        assert!(matches!(again[0], Output::ToPeer { msg: PeerMsg::Compare { .. }, .. }), "{again:?}");
        // And a map that takes the node back ends it.
        host.config(3, &[0, 1, 2]);
        for from in [0, 1, 3] {
            assert!(host.answer(from, &again[0], true).is_empty());
        }
        assert!(
            host.tell(Input::Tick)
                .iter()
                .all(|o| !matches!(o, Output::ToPeer { msg: PeerMsg::Compare { .. }, .. }))
        );
    }

    /// Found by the simulator: a node that had answered List as a learner to be left by its older map.
    #[test]
    fn a_list_of_a_later_epoch_ends_it() {
        let mut host = Host::with_data();
        host.config(2, &[0, 1, 3]);
        let asked = host.tell(Input::Tick)[0].clone();
        host.answer(0, &asked, true);
        let request = ListRequest { pg: GROUP.pg, epoch: Epoch(3), fences: vec![] };
        let listed = host.tell(Input::List { id: 1, request });
        assert!(matches!(listed.last(), Some(Output::Listed { .. })), "{listed:?}");
        assert!(host.answer(1, &asked, true).is_empty());
        host.tell(Input::Tick);
        assert!(host.tell(Input::Tick).is_empty(), "nor does it begin again with the older map");
    }

    #[test]
    fn no_answer_or_no_ends_it_for_a_while() {
        let mut host = Host::with_data();
        host.config(2, &[0, 1, 3]);
        let asked = host.tell(Input::Tick)[0].clone();
        host.answer(0, &asked, false);
        let mut differs = 0;
        for _ in 0..=LEAVE_WAIT_TICKS_MAX {
            let out = host.tell(Input::Tick);
            differs += out.iter().filter(|o| matches!(o, Output::Differs { .. })).count();
        }
        assert_eq!(differs, 1, "its leader is to make the others whole");
        assert!(host.answer(1, &asked, true).is_empty(), "too late");
        assert!(!host.node.state().groups.values().any(is_empty));
    }

    /// `PROTOCOL.md` section 10: a late Settle would find an empty copy in line, with a high line.
    #[test]
    fn who_has_left_takes_nothing_but_a_newer_open() {
        let mut host = Host::with_data();
        let told = host.leave();
        let refusals = |o: &&Output<u8>| {
            matches!(o, Output::ToLeader { msg: FromNode::OpenRefused { why: Refusal::NotMember, .. }, .. })
        };
        assert_eq!(told.iter().filter(refusals).count(), 2, "the leader of each group is told");
        let settle = |group| ToNode::Settle { group, ballot: ballot(1), except: vec![] };
        assert!(refused(&host.leader(settle(GROUP)), Refusal::NotMember));
        assert!(refused(&host.write(GROUP, 1, 2), Refusal::NotMember));
        let confirm = host.leader(ToNode::Confirm { group: GROUP, ballot: ballot(1), id: 7 });
        assert!(matches!(confirm[..], [Output::ToLeader { msg: FromNode::ReadRefused { .. }, .. }]));
        assert!(refused(&host.open(GROUP, 2, 1), Refusal::Epoch));
        assert!(refused(&host.open(GROUP, 2, 2), Refusal::NotMember));
        // It comes back. One group is opened: the other's old ballot is still over.
        host.config(3, &[0, 1, 2]);
        assert!(refused(&host.open(GROUP, 1, 3), Refusal::NotMember), "a ballot from before it left");
        let opened = host.open(GROUP, 2, 3);
        let empty = |o: &Output<u8>| {
            matches!(o, Output::ToLeader { msg: FromNode::Opened { settled: Ballot::ZERO, objects, .. }, .. }
                if objects.is_empty())
        };
        assert!(opened.iter().any(empty), "{opened:?}");
        assert!(!persists(&host.leader(settle(OTHER))), "late, of before it left");
        assert!(!persists(&host.write(OTHER, 1, 2)));
        assert!(refused(&host.open(OTHER, 1, 1), Refusal::Epoch));
    }

    #[test]
    fn compare_is_answered_by_what_is_held() {
        let mut host = Host::with_data();
        let line = ballot(1);
        let ask = |host: &mut Host, epoch: u64, settled: Ballot, head: Head| {
            let vote = ObjectVote { index: 0, head, behind: None };
            let msg = PeerMsg::Compare {
                group: GROUP,
                epoch: Epoch(epoch),
                request: 5,
                settled,
                objects: vec![vote],
            };
            let out = host.tell(Input::Peer { node: NodeId(1), msg });
            out.iter().find_map(|o| match o {
                Output::ToPeer { msg: PeerMsg::AtLeast { yes, .. }, .. } => Some(*yes),
                _ => None,
            })
        };
        let head = |seq| Head { ballot: line, seq };
        assert_eq!(ask(&mut host, 2, line, head(1)), None, "its map is older than the asker's");
        host.config(2, &[0, 2, 3]);
        assert_eq!(ask(&mut host, 2, line, head(1)), Some(true));
        assert_eq!(host.node.state().pgs[&GROUP.pg].epoch, Epoch(2), "durable before the answer");
        assert_eq!(ask(&mut host, 1, line, head(1)), None, "the asker's map is older");
        assert_eq!(ask(&mut host, 2, line, head(2)), Some(false));
        assert_eq!(ask(&mut host, 2, ballot(2), Head::ZERO), Some(false), "a later line");
        assert_eq!(ask(&mut host, 2, Ballot::ZERO, head(9)), Some(true), "of an older line");
        host.open(GROUP, 3, 2);
        host.leader(ToNode::Settle { group: GROUP, ballot: ballot(3), except: vec![0] });
        assert_eq!(ask(&mut host, 2, line, head(1)), Some(false), "behind");
        host.tell(Input::StateLost { fences: vec![] });
        assert_eq!(ask(&mut host, 2, Ballot::ZERO, Head::ZERO), Some(false), "lost");
    }

    #[test]
    fn a_list_of_too_many_fences_is_none() {
        let mut host = Host::new();
        let fences = vec![(VolumeId(1), Generation(7)); VOLUMES_MAX + 1];
        let request = |n: usize| ListRequest { pg: GROUP.pg, epoch: Epoch(2), fences: fences[..n].to_vec() };
        assert!(host.tell(Input::List { id: 1, request: request(VOLUMES_MAX + 1) }).is_empty());
        assert!(!host.tell(Input::List { id: 1, request: request(VOLUMES_MAX) }).is_empty());
        assert_eq!(host.node.state().fences[&VolumeId(1)], Generation(7));
    }

    #[test]
    fn a_list_says_that_state_was_lost() {
        let mut host = Host::with_data();
        let listed = |id, host: &mut Host| {
            let request = ListRequest { pg: GROUP.pg, epoch: Epoch(1), fences: vec![] };
            let out = host.tell(Input::List { id, request });
            let is = |o| if let Output::Listed { list, .. } = o { Some(list.amnesia) } else { None };
            out.into_iter().find_map(is).expect("an answer")
        };
        assert!(!listed(1, &mut host));
        host.tell(Input::StateLost { fences: vec![] });
        assert!(listed(2, &mut host));
    }

    #[test]
    fn after_lost_state_the_epochs_of_the_map_are_durable() {
        let mut host = Host::with_data();
        assert!(!persists(&host.config(2, &[0, 1, 2])), "not else");
        host.tell(Input::StateLost { fences: vec![] });
        assert!(persists(&host.config(3, &[0, 1, 2])));
        assert_eq!(host.node.state().pgs[&GROUP.pg].epoch, Epoch(3));
    }
}
