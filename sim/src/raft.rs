//! Consensus among simulated monitors: a small Raft, enough to be a cruel one.
//!
//! openraft is not sans-I/O, and what it does is tested elsewhere (`monitor/src/raft/simulated.rs`). What is to be
//! looked at here is what *rests* on consensus: reigns that overlap, decisions that are written late, followers
//! that lag, members that are replaced, a leader that does not know that it is none. So this one does the least
//! that is right: ballots as openraft has them (term and monitor, ordered; a later one supersedes), a log, commit by
//! a majority of the voters and only up from an entry of the leader's own ballot, one change of members at a time
//! (a voter more or a voter less), snapshots. No pre-vote and no leader's lease: they would only make leaders change
//! less often. What is said is durable when it is said; whoever drives it takes care of how long that takes.
//!
//! Pure, like the machines of `core`: messages in, messages out.

use std::rc::Rc;
use trefoil_core::map::ClusterMap;
use trefoil_core::map::reign::{Proposal, ReignId};

/// A monitor's data directory: the number of the monitor is another one when it has lost its directory.
pub type DirId = u64;

/// Entries in one message at most.
const ENTRIES_MAX: usize = 16;

/// Who takes part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// They decide.
    pub voters: Vec<DirId>,
    /// They are told.
    pub learners: Vec<DirId>,
}

impl Members {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = DirId> + '_ {
        self.voters.iter().chain(&self.learners).copied()
    }
}

/// What an entry of the log says.
#[derive(Clone, Debug)]
pub enum Payload {
    /// A new leader's first.
    Blank,
    /// These are the members from here on.
    Members(Rc<Members>),
    /// A command, with a number that no other one has.
    Command(u64, Rc<Proposal>),
}

/// An entry of the log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// By whom it was written, and when.
    pub written_in: ReignId,
    /// What it says.
    pub payload: Payload,
}

/// What the log up to an index has made.
#[derive(Clone, Debug)]
pub struct Base {
    /// The index of the last entry in it.
    pub index: u64,
    /// That entry's.
    pub written_in: ReignId,
    /// The members as of that entry.
    pub members: Rc<Members>,
    /// The map as of that entry.
    pub map: ClusterMap,
}

/// What a monitor keeps over a crash.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Whose directory it is.
    pub me: DirId,
    /// The greatest ballot that it has promised, or led in.
    pub ballot: ReignId,
    /// What is behind [`Disk::log`].
    pub base: Rc<Base>,
    /// From `base.index + 1` on.
    pub log: Vec<Entry>,
}

impl Disk {
    /// An empty one.
    pub fn new(me: DirId, base: Rc<Base>) -> Disk {
        Disk { me, ballot: ReignId::default(), base, log: Vec::new() }
    }

    /// The index of the last entry.
    pub fn last(&self) -> u64 {
        self.base.index + self.log.len() as u64
    }

    /// The entry of an index that is in the log.
    pub fn entry(&self, index: u64) -> Option<&Entry> {
        let at = index.checked_sub(self.base.index + 1)?;
        self.log.get(at as usize)
    }

    fn written_in(&self, index: u64) -> Option<ReignId> {
        if index == self.base.index {
            return Some(self.base.written_in);
        }
        self.entry(index).map(|entry| entry.written_in)
    }

    /// The members, as the whole log says.
    pub fn members(&self) -> Rc<Members> {
        let news = self.log.iter().rev().find_map(|entry| match &entry.payload {
            Payload::Members(members) => Some(members.clone()),
            _ => None,
        });
        news.unwrap_or_else(|| self.base.members.clone())
    }
}

/// What monitors say to each other.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Msg {
    /// Vote for me.
    Vote { ballot: ReignId, last: (ReignId, u64) },
    /// `yes`, or not; the greatest ballot that I have promised is `theirs`.
    Voted { ballot: ReignId, theirs: ReignId, yes: bool },
    /// The log behind `prev`, and how far it is committed.
    Append { ballot: ReignId, round: u64, prev: u64, prev_in: ReignId, entries: Vec<Entry>, commit: u64 },
    /// `matches`: the log is the leader's up to there; none: it is not at `prev`, try at `hint`.
    Appended { ballot: ReignId, theirs: ReignId, round: u64, matches: Option<u64>, hint: u64 },
    /// What the log's beginning has made.
    Snapshot { ballot: ReignId, round: u64, base: Rc<Base> },
}

/// What is to be sent.
pub type Out = Vec<(DirId, Msg)>;

#[derive(Clone, Debug)]
struct Peer {
    id: DirId,
    next: u64,
    matched: u64,
    /// The last round that it has answered.
    round: u64,
}

#[derive(Clone, Debug)]
enum Role {
    Follower,
    Candidate { votes: Vec<DirId> },
    Leader { peers: Vec<Peer>, round: u64, first: u64 },
}

/// A monitor's Raft, from when it starts until it crashes.
#[derive(Clone, Debug)]
pub struct Raft {
    /// What stays.
    pub disk: Disk,
    role: Role,
    commit: u64,
    members: Rc<Members>,
    /// It has heard of a leader since this was set to false.
    pub heard: bool,
    /// Who leads, as far as it knows.
    pub leader: Option<DirId>,
}

impl Raft {
    /// Starts with what is on its disk.
    pub fn new(disk: Disk) -> Raft {
        let (commit, members) = (disk.base.index, disk.members());
        Raft { disk, role: Role::Follower, commit, members, heard: false, leader: None }
    }

    /// How far the log is committed, as far as it knows.
    pub fn commit(&self) -> u64 {
        self.commit
    }

    /// The reign in which it believes to lead.
    pub fn leads(&self) -> Option<ReignId> {
        matches!(self.role, Role::Leader { .. }).then_some(self.disk.ballot)
    }

    /// As its whole log says.
    pub fn members(&self) -> &Rc<Members> {
        &self.members
    }

    fn majority(&self, mut yes: impl FnMut(DirId) -> bool) -> bool {
        2 * self.members.voters.iter().filter(|id| yes(**id)).count() > self.members.voters.len()
    }

    fn push(&mut self, entry: Entry) {
        if let Payload::Members(members) = &entry.payload {
            self.members = members.clone();
        }
        self.disk.log.push(entry);
    }

    /// Wants to lead.
    pub fn elect(&mut self, out: &mut Out) {
        let me = self.disk.me;
        if !self.members.voters.contains(&me) || self.leads().is_some() {
            return;
        }
        self.disk.ballot = ReignId { term: self.disk.ballot.term + 1, monitor: me };
        self.role = Role::Candidate { votes: vec![me] };
        self.leader = None;
        let last = self.disk.last();
        let last = (self.disk.written_in(last).unwrap_or_default(), last);
        let ballot = self.disk.ballot;
        let others = self.members.voters.iter().filter(|id| **id != me);
        out.extend(others.map(|id| (*id, Msg::Vote { ballot, last })));
        self.count_votes(out);
    }

    fn count_votes(&mut self, out: &mut Out) {
        let Role::Candidate { votes } = &self.role else { return };
        if !self.majority(|id| votes.contains(&id)) {
            return;
        }
        let first = self.disk.last() + 1;
        self.role = Role::Leader { peers: Vec::new(), round: 0, first };
        self.leader = Some(self.disk.me);
        self.write(Payload::Blank, out);
    }

    /// Writes an entry, if it leads. Its index.
    pub fn write(&mut self, payload: Payload, out: &mut Out) -> Option<u64> {
        let written_in = self.leads()?;
        self.push(Entry { written_in, payload });
        self.beat(out);
        Some(self.disk.last())
    }

    /// Says that it leads, and what is in its log. The number of the round: see [`Raft::confirmed`].
    pub fn beat(&mut self, out: &mut Out) -> Option<u64> {
        let Role::Leader { peers, round, .. } = &mut self.role else { return None };
        *round += 1;
        let (me, last, number) = (self.disk.me, self.disk.last(), *round);
        peers.retain(|peer| self.members.all().any(|id| id == peer.id));
        for id in self.members.all().filter(|id| *id != me) {
            if !peers.iter().any(|peer| peer.id == id) {
                peers.push(Peer { id, next: last, matched: 0, round: 0 });
            }
        }
        for n in 0..peers.len() {
            self.tell(n, out);
        }
        self.advance();
        Some(number)
    }

    /// What was sent and not answered may be lost: it is sent again from here on.
    pub fn resend(&mut self) {
        if let Role::Leader { peers, .. } = &mut self.role {
            peers.iter_mut().filter(|it| it.matched > 0).for_each(|it| it.next = it.matched + 1);
        }
    }

    fn tell(&mut self, n: usize, out: &mut Out) {
        let (ballot, last) = (self.disk.ballot, self.disk.last());
        let Role::Leader { peers, round, .. } = &mut self.role else { return };
        let (peer, round) = (&mut peers[n], *round);
        let prev = peer.next.saturating_sub(1).min(last);
        // The next message goes on behind this one.
        peer.next = (prev + ENTRIES_MAX as u64).min(last) + 1;
        let peer = peer.id;
        let Some(prev_in) = self.disk.written_in(prev) else {
            return out.push((peer, Msg::Snapshot { ballot, round, base: self.disk.base.clone() }));
        };
        let from = (prev - self.disk.base.index) as usize;
        let entries = self.disk.log.iter().skip(from).take(ENTRIES_MAX).cloned().collect();
        let commit = self.commit;
        out.push((peer, Msg::Append { ballot, round, prev, prev_in, entries, commit }));
    }

    /// The newest round of which a majority of the voters has said that this one leads; none before an entry of
    /// its own ballot is committed. Whoever asked for a round has a majority that was asked after that.
    pub fn confirmed(&self) -> Option<u64> {
        let Role::Leader { peers, round, first } = &self.role else { return None };
        if self.commit < *first {
            return None;
        }
        let answered = |id: DirId| {
            let peer = peers.iter().find(|peer| peer.id == id);
            if id == self.disk.me { *round } else { peer.map_or(0, |peer| peer.round) }
        };
        let mut rounds: Vec<u64> = self.members.voters.iter().map(|id| answered(*id)).collect();
        rounds.sort_unstable();
        rounds.get((rounds.len().checked_sub(1)?) / 2).copied()
    }

    /// How far the log must have been applied before anything is judged: all that was committed, and an entry of its
    /// own ballot.
    pub fn read_index(&self) -> u64 {
        match &self.role {
            Role::Leader { first, .. } => self.commit.max(*first),
            _ => self.commit,
        }
    }

    /// A learner has everything that is committed.
    pub fn is_level(&self, id: DirId) -> bool {
        let Role::Leader { peers, .. } = &self.role else { return false };
        peers.iter().any(|peer| peer.id == id && peer.matched >= self.commit)
    }

    /// It may change the members: an entry of its own ballot is committed, and so is the last change.
    pub fn may_change_members(&self) -> bool {
        let Role::Leader { first, .. } = &self.role else { return false };
        let committed = self.disk.log.iter().take((self.commit - self.disk.base.index) as usize);
        let changes = |entry: &&Entry| matches!(entry.payload, Payload::Members(_));
        let open = self.disk.log.iter().filter(changes).count() > committed.filter(changes).count();
        self.commit >= *first && !open
    }

    fn advance(&mut self) {
        let Role::Leader { peers, .. } = &self.role else { return };
        let has = |id: DirId| {
            let peer = peers.iter().find(|peer| peer.id == id);
            if id == self.disk.me { self.disk.last() } else { peer.map_or(0, |peer| peer.matched) }
        };
        let mut matched: Vec<u64> = self.members.voters.iter().map(|id| has(*id)).collect();
        matched.sort_unstable();
        let Some(at) = matched.len().checked_sub(1).map(|last| matched[last / 2]) else { return };
        // Only an entry of its own ballot makes those before it safe.
        if at > self.commit && self.disk.written_in(at) == Some(self.disk.ballot) {
            self.commit = at;
        }
    }

    /// Somebody leads, or wants to, in a later ballot.
    fn follow(&mut self, ballot: ReignId) {
        self.disk.ballot = ballot;
        self.role = Role::Follower;
    }

    /// Another one has said something.
    pub fn handle(&mut self, from: DirId, msg: Msg, out: &mut Out) {
        match msg {
            Msg::Vote { ballot, last } => {
                let mine = self.disk.last();
                let mine = (self.disk.written_in(mine).unwrap_or_default(), mine);
                // It may know of the ballot by hearsay: that is no vote yet.
                let yes = ballot >= self.disk.ballot && last >= mine;
                if yes {
                    self.follow(ballot);
                    (self.leader, self.heard) = (None, true);
                }
                out.push((from, Msg::Voted { ballot, theirs: self.disk.ballot, yes }));
            }
            Msg::Voted { ballot, theirs, yes } => {
                if theirs > self.disk.ballot {
                    self.follow(theirs);
                } else if ballot == self.disk.ballot
                    && yes
                    && let Role::Candidate { votes } = &mut self.role
                {
                    if !votes.contains(&from) {
                        votes.push(from);
                    }
                    self.count_votes(out);
                }
            }
            Msg::Append { ballot, round, prev, prev_in, entries, commit } => {
                let mut answer = (None, 0);
                if ballot >= self.disk.ballot {
                    self.follow(ballot);
                    (self.leader, self.heard) = (Some(ballot.monitor), true);
                    answer = self.append(prev, prev_in, entries, commit);
                }
                let (theirs, (matches, hint)) = (self.disk.ballot, answer);
                out.push((from, Msg::Appended { ballot, theirs, round, matches, hint }));
            }
            Msg::Snapshot { ballot, round, base } => {
                let (mut matches, index) = (None, base.index);
                if ballot >= self.disk.ballot {
                    self.follow(ballot);
                    (self.leader, self.heard) = (Some(ballot.monitor), true);
                    self.install(base);
                    matches = Some(index);
                }
                let theirs = self.disk.ballot;
                out.push((from, Msg::Appended { ballot, theirs, round, matches, hint: index }));
            }
            Msg::Appended { ballot, theirs, round, matches, hint } => {
                if theirs > self.disk.ballot {
                    return self.follow(theirs);
                }
                if ballot != self.disk.ballot || theirs != ballot {
                    return;
                }
                let last = self.disk.last();
                let Role::Leader { peers, .. } = &mut self.role else { return };
                let Some(n) = peers.iter().position(|peer| peer.id == from) else { return };
                let peer = &mut peers[n];
                // A refusal for the log's sake says as well that it follows.
                peer.round = peer.round.max(round);
                match matches {
                    Some(at) => {
                        peer.matched = peer.matched.max(at);
                        peer.next = peer.next.max(peer.matched + 1);
                    }
                    None => peer.next = (hint + 1).min(last + 1).max(peer.matched + 1),
                }
                let behind = peer.next <= last;
                self.advance();
                if behind {
                    self.tell(n, out);
                }
            }
        }
    }

    /// How far the log is the leader's; or that it is not at `prev`, and where to try.
    fn append(
        &mut self,
        prev: u64,
        prev_in: ReignId,
        entries: Vec<Entry>,
        commit: u64,
    ) -> (Option<u64>, u64) {
        let base = self.disk.base.index;
        let end = prev + entries.len() as u64;
        // What is in the base was committed, and so is the same.
        if prev >= base && self.disk.written_in(prev) != Some(prev_in) {
            return (None, (prev - 1).min(self.disk.last()).max(self.commit));
        }
        for (index, entry) in (prev + 1..).zip(entries).filter(|(index, _)| *index > base) {
            match self.disk.written_in(index) {
                Some(written_in) if written_in == entry.written_in => continue,
                Some(_) => {
                    assert!(index > self.commit, "a committed entry is taken back: {index}");
                    self.disk.log.truncate((index - base - 1) as usize);
                    self.members = self.disk.members();
                }
                None => {}
            }
            self.push(entry);
        }
        self.commit = self.commit.max(commit.min(end));
        (Some(end), 0)
    }

    fn install(&mut self, base: Rc<Base>) {
        if base.index <= self.commit {
            return;
        }
        let keep = self.disk.written_in(base.index) == Some(base.written_in);
        let drop = (base.index - self.disk.base.index).min(self.disk.log.len() as u64) as usize;
        self.disk.log.drain(..if keep { drop } else { self.disk.log.len() });
        self.commit = base.index;
        self.disk.base = base;
        self.members = self.disk.members();
    }

    /// Replaces the log up to `index`, which is committed, by what it has made.
    pub fn compact(&mut self, index: u64, map: &ClusterMap) {
        let before = self.disk.base.clone();
        let Some(written_in) = self.disk.written_in(index) else { return };
        let count = (index - before.index) as usize;
        let members = self.disk.log.drain(..count).rev().find_map(|entry| match entry.payload {
            Payload::Members(members) => Some(members),
            _ => None,
        });
        let members = members.unwrap_or_else(|| before.members.clone());
        self.disk.base = Rc::new(Base { index, written_in, members, map: map.clone() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn disks(count: u64) -> Vec<Raft> {
        let voters = (1..=count).collect();
        let members = Rc::new(Members { voters, learners: Vec::new() });
        let map = ClusterMap::new();
        let base = Rc::new(Base { index: 0, written_in: ReignId::default(), members, map });
        (1..=count).map(|id| Raft::new(Disk::new(id, base.clone()))).collect()
    }

    /// Messages in any order, lost, said twice; elections at any time; crashes. What is committed anywhere is
    /// committed everywhere, and stays.
    #[test]
    fn what_is_committed_stays() {
        let mut committed_in_all = 0;
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let mut rafts = disks([1, 3, 5][seed as usize % 3]);
            let mut net: Vec<(DirId, DirId, Msg)> = Vec::new();
            let mut agreed: Vec<(ReignId, Option<u64>)> = Vec::new();
            for step in 0..600 {
                let mut out = Vec::new();
                let at = rng.index(rafts.len());
                let mut from = rafts[at].disk.me;
                match rng.below(20) {
                    0 => rafts[at].elect(&mut out),
                    1 => _ = rafts[at].beat(&mut out),
                    2 | 3 => {
                        let proposal = rafts[at].disk.ballot;
                        let command = trefoil_core::map::Command::PauseMoves { paused: true };
                        let proposal = Rc::new(Proposal { reign: proposal, at: 0, command });
                        rafts[at].write(Payload::Command(step, proposal), &mut out);
                    }
                    4 if rng.one_in(4) => rafts[at] = Raft::new(rafts[at].disk.clone()),
                    5 if rng.one_in(2) => {
                        let (index, map) = (rafts[at].commit(), ClusterMap::new());
                        rafts[at].compact(index, &map);
                    }
                    _ if !net.is_empty() => {
                        let n = rng.index(net.len());
                        let (sender, to, msg) =
                            if rng.one_in(10) { net[n].clone() } else { net.swap_remove(n) };
                        from = to;
                        if !rng.one_in(10) {
                            rafts[to as usize - 1].handle(sender, msg, &mut out);
                        }
                    }
                    _ => {}
                }
                net.extend(out.into_iter().map(|(to, msg)| (from, to, msg)));
                for raft in &rafts {
                    for index in raft.disk.base.index + 1..=raft.commit() {
                        let entry = raft.disk.entry(index).unwrap();
                        let id = match &entry.payload {
                            Payload::Command(id, _) => Some(*id),
                            _ => None,
                        };
                        let at = index as usize - 1;
                        if at == agreed.len() {
                            agreed.push((entry.written_in, id));
                        }
                        assert_eq!(agreed[at], (entry.written_in, id), "seed {seed}, index {index}");
                    }
                }
            }
            committed_in_all += agreed.len();
        }
        assert!(committed_in_all > 3_000, "{committed_in_all}");
    }

    #[test]
    fn nothing_is_confirmed_before_an_entry_of_its_own_is_committed() {
        let mut rafts = disks(3);
        let mut out = Vec::new();
        rafts[0].elect(&mut out);
        let mut voted = Vec::new();
        for (to, msg) in out.drain(..) {
            rafts[to as usize - 1].handle(1, msg, &mut voted);
        }
        rafts[0].handle(2, voted[0].1.clone(), &mut out);
        assert!(rafts[0].leads().is_some());
        let round = rafts[0].beat(&mut out).unwrap();
        assert_eq!(rafts[0].confirmed(), None, "nobody has answered");
        let mut answers = Vec::new();
        for (to, msg) in out.drain(..).filter(|it| it.0 == 2) {
            rafts[1].handle(1, msg, &mut answers);
            assert_eq!(to, 2);
        }
        for (_, answer) in answers {
            rafts[0].handle(2, answer, &mut out);
        }
        assert_eq!(rafts[0].confirmed(), Some(round));
        // An old answer confirms no later round.
        let later = rafts[0].beat(&mut out).unwrap();
        assert!(rafts[0].confirmed() < Some(later));
    }
}
