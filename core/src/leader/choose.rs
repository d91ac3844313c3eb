//! The choice (5.2): what the votes of a group's members come to, object by object.
//!
//! Pure functions over answers. The leader chooses with them when it has opened a group; the offline tool
//! chooses with them among the stores of stopped nodes. There is no other place where it is decided which
//! copy counts. What is done about copies that do not (5.3, 5.4) is not here.

use crate::ids::*;
use crate::message::{Line, ObjectVote};
use crate::placement::PgConfig;
use crate::record::Durable;
use rustc_hash::FxHashMap;

/// What a node says of a group: its answer to an Open, or what it would answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The ballot in whose line the node last was brought.
    pub settled: Ballot,
    /// The node has lost what it knew of the group: no vote on any object (N8).
    pub lost: bool,
    /// By object.
    pub objects: FxHashMap<ObjectIndex, ObjectVote>,
}

impl Answer {
    /// From the parts of an `Opened`.
    pub fn new(settled: Ballot, lost: bool, objects: Vec<ObjectVote>) -> Answer {
        Answer { settled, lost, objects: objects.into_iter().map(|vote| (vote.index, vote)).collect() }
    }

    /// What a member with this durable state would answer. A group that it does not know is an empty one,
    /// or, where the node has forgotten something, a lost one.
    pub fn of(durable: &Durable, group: GroupId) -> Answer {
        match durable.groups.get(&group) {
            Some(state) => Answer::new(state.settled.ballot, state.lost, state.votes()),
            None => Answer { lost: durable.amnesia, ..Answer::default() },
        }
    }

    /// The vote on an object: `None` for a copy that was lost.
    pub fn vote(&self, index: ObjectIndex) -> Option<Vote> {
        if self.lost {
            return None;
        }
        match self.objects.get(&index) {
            None => Some(Vote { line: self.settled, head: Head::ZERO }),
            Some(vote) => match vote.behind {
                Some(Line::Lost) => None,
                Some(Line::At(line)) => Some(Vote { line, head: vote.head }),
                None => Some(Vote { line: self.settled, head: vote.head }),
            },
        }
    }

    /// The copy's head, vote or not.
    pub fn head(&self, index: ObjectIndex) -> Head {
        self.objects.get(&index).map_or(Head::ZERO, |vote| vote.head)
    }
}

/// True if a quorum has answered with its votes: the group can be decided. (Objects of which members
/// have lost their copies may still lack votes.)
pub fn enough<'a>(config: &PgConfig, answer: impl Fn(NodeId) -> Option<&'a Answer>) -> bool {
    config.is_quorum(|node| answer(node).is_some_and(|answer| !answer.lost))
}

/// The head of the greatest vote among the members' answers; `None` where too many have lost theirs, or
/// have not answered. Learners have no vote.
pub fn base<'a>(
    config: &PgConfig,
    answer: impl Fn(NodeId) -> Option<&'a Answer>,
    index: ObjectIndex,
) -> Option<Head> {
    let vote = |node| answer(node).and_then(|answer| answer.vote(index));
    if !config.is_quorum(|node| vote(node).is_some()) {
        return None;
    }
    // Who is in both sets is asked twice, which changes nothing.
    let members = config.old.iter().chain(&config.new).copied();
    #[cfg(feature = "deliberate-bugs")]
    if crate::bugs::stale_copy_without_vote() {
        let stale =
            |node| answer(node).is_some_and(|a| a.objects.get(&index).is_some_and(|v| v.behind.is_some()));
        let votes = members.filter(|node| !stale(*node)).filter_map(vote);
        return Some(votes.max().unwrap_or_default().head);
    }
    members.filter_map(vote).max().map(|vote| vote.head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{GroupState, Promise};

    fn vote(index: ObjectIndex, seq: u64, behind: Option<Line>) -> ObjectVote {
        ObjectVote { index, head: Head { ballot: Ballot(1), seq }, behind }
    }

    fn config() -> PgConfig {
        let nodes = [1, 2, 3].map(NodeId).to_vec();
        PgConfig { learners: vec![NodeId(4)], ..PgConfig::simple(Epoch(1), nodes) }
    }

    fn choose(answers: &[(u32, Answer)], index: ObjectIndex) -> Option<u64> {
        let of = |node: NodeId| answers.iter().find(|(n, _)| *n == node.0).map(|(_, answer)| answer);
        base(&config(), of, index).map(|head| head.seq)
    }

    #[test]
    fn the_line_goes_before_the_head_and_being_behind_keeps_the_old_line() {
        let new = Answer::new(Ballot(5), false, vec![vote(7, 1, None)]);
        let old = Answer::new(Ballot(4), false, vec![vote(7, 9, None)]);
        let behind = Answer::new(Ballot(5), false, vec![vote(7, 9, Some(Line::At(Ballot(4))))]);
        assert_eq!(choose(&[(1, new.clone()), (2, old)], 7), Some(1));
        assert_eq!(choose(&[(1, new.clone()), (3, behind.clone())], 7), Some(1));
        // Nothing is a vote too, and a learner has none.
        let empty = Answer::new(Ballot(6), false, Vec::new());
        assert_eq!(choose(&[(1, empty.clone()), (3, behind.clone())], 7), Some(0));
        assert_eq!(choose(&[(4, empty), (1, behind.clone()), (2, new)], 7), Some(1));
        assert_eq!(choose(&[(1, behind)], 7), None, "one of three");
    }

    #[test]
    fn what_was_lost_has_no_vote() {
        let one = Answer::new(Ballot(5), false, vec![vote(7, 1, None)]);
        let gone = Answer::new(Ballot(9), true, vec![vote(7, 9, None)]);
        let object = Answer::new(Ballot(9), false, vec![vote(7, 9, Some(Line::Lost))]);
        assert_eq!(choose(&[(1, one.clone()), (2, gone.clone())], 7), None);
        assert_eq!(choose(&[(1, one.clone()), (2, object.clone())], 7), None);
        assert_eq!(choose(&[(1, one.clone()), (2, object.clone())], 8), Some(0), "another object");
        assert_eq!(choose(&[(1, one.clone()), (2, gone.clone()), (3, one.clone())], 7), Some(1));
        let of = |node: NodeId| if node.0 == 1 { Some(&one) } else { Some(&gone) };
        assert!(!enough(&config(), of));
        let of = |node: NodeId| if node.0 == 1 { Some(&one) } else { Some(&object) };
        assert!(enough(&config(), of));
    }

    #[test]
    fn an_answer_is_what_the_node_would_say() {
        let group = GroupId::default();
        let mut durable = Durable::default();
        assert_eq!(Answer::of(&durable, group), Answer::default());
        durable.amnesia = true;
        assert!(Answer::of(&durable, group).lost);
        let mut state =
            GroupState { settled: Promise { ballot: Ballot(3), epoch: Epoch(1) }, ..GroupState::default() };
        state.objects.insert(1, Head { ballot: Ballot(1), seq: 4 });
        state.behind.insert(2, Line::At(Ballot(2)));
        durable.groups.insert(group, state);
        let answer = Answer::of(&durable, group);
        assert_eq!(
            [0, 1, 2].map(|index| answer.vote(index)),
            [
                Some(Vote { line: Ballot(3), head: Head::ZERO }),
                Some(Vote { line: Ballot(3), head: Head { ballot: Ballot(1), seq: 4 } }),
                Some(Vote { line: Ballot(2), head: Head::ZERO }),
            ]
        );
        assert_eq!(answer.head(1).seq, 4);
    }
}
