//! What happened in a run, counted: a simulator that never gets into trouble proves nothing.

macro_rules! cover {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// Something worth counting.
        #[derive(Copy, Clone, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Cover { $($(#[$doc])* $name),* }
        /// All of them, with their names for people.
        pub const COVERS: &[(Cover, &str)] = &[$((Cover::$name, $text)),*];
    };
}

cover! {
    /// Leaders that were started.
    Leaders = "leaders",
    /// Healers that were started.
    Healers = "healers",
    /// Leaders that said `Attached`.
    Attached = "attached",
    /// Leaders that replaced one which was still alive.
    Takeovers = "takeovers",
    /// Leaders that were told that a newer one exists.
    Deposed = "deposed",
    /// Leaders that released.
    Released = "released",
    /// Of these, with every copy whole.
    ReleasedClean = "released clean",
    /// Leaders that died.
    LeaderDeaths = "leader deaths",
    /// Leaders that stood still for a time.
    LeaderPauses = "leader pauses",
    /// Opens of a second or later round.
    Rounds = "rounds",
    /// Opens that were answered.
    Opened = "opened",
    /// Opens that were refused.
    OpenRefused = "open refused",
    /// Fences that were refused.
    FenceRefused = "fence refused",
    /// Settles that listed objects as behind.
    Behind = "settles with objects behind",
    /// Repairs ordered.
    RepairsOrdered = "repairs ordered",
    /// Repairs installed.
    Repairs = "repairs",
    /// Of these, with more than one piece.
    RepairsOfPieces = "repairs of several pieces",
    /// Of these, with writes kept on top.
    RepairsWithOverlay = "repairs with writes on top",
    /// Gaps answered to writes.
    Gaps = "gaps",
    /// Repairs given up.
    RepairsGivenUp = "repairs given up",
    /// Writes refused for want of room.
    NoSpace = "no space",
    /// Writes of data that a full node took.
    FullOverwrites = "overwrites at full",
    /// Runs whose last front ends got through with nodes that stayed full.
    CalmAtFull = "everything read and written at full",
    /// Writes that waited until the store knew how many blocks they would add.
    GrowthUnknown = "waits for the table at full",
    /// Reads acknowledged.
    Reads = "reads",
    /// Writes acknowledged.
    Writes = "writes",
    /// Operations that ended with an error.
    OpErrors = "operations failed",
    /// Writes whose fate nobody was told.
    Indeterminate = "indeterminate writes",
    /// Reads without a lease, confirmed by others.
    Confirms = "confirms",
    /// Reads that a node refused.
    ReadRefused = "reads refused",
    /// Reads answered by bad blocks.
    BadReads = "bad reads",
    /// Blocks that went bad.
    Rot = "blocks gone bad",
    /// Bad blocks whose bytes were found again.
    Healed = "blocks healed",
    /// Node crashes.
    Crashes = "crashes",
    /// Crashes that lost records.
    LostSuffix = "crashes with a lost suffix",
    /// Crashes that kept records whose flush had not been answered.
    SurvivingSuffix = "crashes with a surviving suffix",
    /// All nodes crashed at once.
    PowerCuts = "power cuts",
    /// Leader connections broken.
    Breaks = "connections broken",
    /// Messages lost with their connection.
    LostMessages = "messages lost",
    /// Partitions.
    Partitions = "partitions",
    /// Front ends cut off with one node, while another one takes over.
    Isolated = "front ends isolated with a node",
    /// Node pauses.
    NodePauses = "node pauses",
    /// Grants made because a lease had run out.
    LeasesExpired = "leases expired",
    /// Times without a monitor.
    MonitorDown = "monitor down",
    /// Volumes found to differ by their nodes.
    Differs = "differences found by nodes",
    /// Healers that found everything whole.
    AllWhole = "all whole",
    /// Connections that a leader reset.
    Resets = "resets",
    /// Of these, of nodes that lagged.
    CutLoose = "laggards cut loose",
    /// Nodes that were a hundred times slower for a time.
    SlowNodes = "nodes slowed 100x",
    /// Reads that a second node was asked for.
    Hedged = "hedged reads",
    /// Of these, those that the second node answered first.
    HedgeWins = "hedges that won",
    /// Late reads for which there was no budget.
    HedgesDenied = "hedges denied",
    /// Reads of one block that were sent to avoided nodes.
    LatencyProbes = "probes of slow nodes",
    /// Acknowledgements of writes by a leader while a newer one was attached.
    LateAcks = "late acknowledgements",
    /// Reads of holes that more than one write could explain.
    Ambiguous = "ambiguous holes",
    /// Nodes that lost state which they had reported.
    LostState = "lost state",
    /// Of these, those that did not know it.
    SilentLoss = "state lost unnoticed",
    /// Leaders that noticed it.
    LostData = "lost data noticed",
    /// Nodes that were told, and took note.
    LossOrdered = "nodes told that they lost data",
    /// Groups in which such a node was counted again by the leader that had noticed.
    DistrustLifted = "distrust lifted",
    /// Leaders that noticed it, and had everything whole in the end.
    HealedByFinder = "volumes made whole by who noticed a loss",
    /// Writes whose answers waited for more copies than a majority.
    AnswersHeld = "answers held for all copies",
    /// Copies that were left behind, or nodes cut loose, because answers waited for them for too long.
    AnswersLate = "answers that waited for too long",
    /// Pools set to acknowledge otherwise.
    AckChanges = "pools set to acknowledge otherwise",
    /// Moves that were begun.
    MovesStarted = "moves started",
    /// Moves that became joint.
    MovesJoint = "moves joint",
    /// Moves that became final.
    MovesFinal = "moves final",
    /// Moves that were undone as learners.
    MovesUndone = "moves undone in learn",
    /// Moves that were undone in a joint epoch.
    JointUndone = "moves undone in joint",
    /// Commands of movers that had seen an older epoch.
    StaleMoves = "moves refused",
    /// Lists that were answered.
    Lists = "lists answered",
    /// Placement groups that a node left with something in them.
    Left = "nodes left",
    /// Compares that were answered with no.
    HoldsLess = "compares answered no",
    /// Nodes that came back to a placement group that they had left.
    CameBack = "nodes that left came back",
    /// Pieces of repairs from nodes at which some repair or piece had to wait for the budget.
    PutOff = "repairs that waited for a budget",
    /// Blocks that were made to lie, on one copy or two.
    Lies = "lies",
    /// Of these, those that a majority could settle, and that were found.
    LiesOutvoted = "lies outvoted",
    /// Of these, those that no majority could settle, and that were found.
    LiesDisputed = "lies disputed",
    /// Marks that nodes set on blocks of their copies.
    Doubts = "doubts",
    /// Objects whose last mark was taken away by a repair or a majority.
    DoubtsEnded = "doubts ended",
    /// Placement groups that a node has scrubbed.
    Scrubbed = "scrubbed",
    /// An administrator's word.
    Believed = "administrators believed",
    /// Times that a pool got more placement groups.
    PoolSplits = "pools split",
    /// Wishes for that which were refused.
    SplitsRefused = "splits refused",
    /// Placement groups that a node split.
    NodeSplits = "placement groups split by nodes",
    /// Of these, over more than one split of the pool.
    SplitsInOne = "several splits made as one",
    /// Of these, by a node that was leaving, or had left.
    SplitsOutside = "splits by nodes that take no part",
    /// Objects that went to another group.
    ObjectsSplit = "objects that went to a group that split off",
    /// Crashes right behind a step of a move or an answer to List.
    MoveCrashes = "crashes right behind a step",
    /// Reigns of monitors.
    Reigns = "reigns",
    /// Times when two monitors believed to lead.
    TwoLeaders = "two monitors that think they lead",
    /// Monitors that crashed.
    MonitorCrashes = "monitor crashes",
    /// Monitors that stood still for a time.
    MonitorPauses = "monitor pauses",
    /// Monitors cut off from others, in one direction or both.
    MonitorPartitions = "monitor partitions",
    /// Monitors whose directory was replaced by an empty one.
    MonitorsReplaced = "monitors replaced",
    /// Clusters that were restored from a backup.
    Restored = "backups restored",
    /// Commands that monitors agreed on.
    Committed = "commands committed",
    /// Commands that were decided in one reign and written in another.
    Superseded = "commands superseded",
    /// Entries of the log that were written and never committed.
    EntriesLost = "entries of deposed leaders lost",
    /// Snapshots that a monitor was sent.
    Snapshots = "snapshots installed by monitors",
    /// Renewals while a grant over the lease was under way.
    Undecided = "renewals while a grant is decided",
    /// Grants on top of a generation that was over.
    StaleGrants = "grants refused for a newer one",
    /// Processes that asked again, not knowing of their grant.
    AskedAgain = "grants to a process that had asked before",
    /// Front ends cut off from the monitors, and from nobody else.
    CutOff = "front ends cut off from monitors only",
    /// Fences that front ends sent again for want of a lease.
    Calls = "calls of front ends without a lease",
    /// Words of nodes that hear a leader, as they came to a monitor that leads.
    LeadersHeard = "words of nodes that hear a leader",
    /// Healers that did not get a volume whose front end was heard.
    HeldBack = "healers held back for a front end that is heard",
    /// Healers that did not get a volume since too few nodes had said whom they hear.
    NotKnown = "healers held back for want of words",
    /// Leases that were renewed after they had run out.
    RenewedLate = "leases renewed after they had run out",
}

/// The counters.
#[derive(Copy, Clone, Debug)]
pub struct Coverage {
    counts: [u64; COVERS.len()],
}

impl Default for Coverage {
    fn default() -> Coverage {
        Coverage { counts: [0; COVERS.len()] }
    }
}

impl Coverage {
    /// It happened.
    #[inline]
    pub fn count(&mut self, what: Cover) {
        self.counts[what as usize] += 1;
    }
    /// It happened so often.
    pub fn add(&mut self, what: Cover, times: u64) {
        self.counts[what as usize] += times;
    }
    /// How often it happened.
    pub fn get(&self, what: Cover) -> u64 {
        self.counts[what as usize]
    }
    /// Adds another run's.
    pub fn merge(&mut self, other: &Coverage) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
    }
}

impl std::fmt::Display for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (what, name) in COVERS {
            writeln!(f, "  {:>12}  {name}", self.get(*what))?;
        }
        Ok(())
    }
}
