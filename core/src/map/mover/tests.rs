//! The mover against made-up answers: what it asks, what it waits for, and what it never does.

use super::super::tests::{cluster, holder, volume};
use super::super::{Grant, Reply};
use super::*;

const PG: PgId = PgId { pool: PoolId(1), pg: 0 };

/// Five nodes, a volume with generation 1, and placement group 0 moving from node 2 to node 4.
fn moving() -> (ClusterMap, VolumeId) {
    let mut map = cluster(5);
    let disk = volume(&mut map, "disk0");
    let set = [0, 1, 2].map(NodeId).to_vec();
    assert!(map.pgs.set(PG, &PgConfig::simple(Epoch(1), set)));
    let grants = vec![Grant { volume: disk, seen: Generation(0), above: Generation(0) }];
    map.apply(&Command::GrantGenerations { grants, holder: holder("vm", 1) }).unwrap();
    let start = Command::StartMove { pg: PG, epoch: Epoch(1), from: NodeId(2), to: NodeId(4) };
    assert_eq!(map.apply(&start), Ok(Reply::Done));
    (map, disk)
}

/// No moves but those that a test has begun.
fn mover() -> Mover {
    Mover::new(Limits { cluster: 0, node: 0 })
}

fn group(volume: VolumeId, opened: u64, behind: u32) -> ListedGroup {
    let ballot = Ballot::new(Generation(1), opened).unwrap();
    ListedGroup { volume, promised: ballot, settled: ballot, opened: Epoch(opened), behind, lost: false }
}

fn step(mover: &mut Mover, map: &ClusterMap) -> Vec<Action> {
    let mut out = Vec::new();
    mover.step(map, &mut out);
    out
}

fn asked(actions: &[Action]) -> Vec<u32> {
    let node = |action: &Action| match action {
        Action::List { node, .. } => Some(node.0),
        _ => None,
    };
    actions.iter().filter_map(node).collect()
}

fn answer(mover: &mut Mover, map: &ClusterMap, node: u32, epoch: u64, groups: &[ListedGroup]) {
    mover.listed(
        map,
        NodeId(node),
        GroupList { pg: PG, epoch: Epoch(epoch), groups: groups.to_vec(), amnesia: false },
    );
}

#[test]
fn a_move_goes_on_when_a_majority_and_the_new_node_say_so() {
    let (mut map, disk) = moving();
    let mut mover = mover();
    for epoch in [2, 3] {
        let actions = step(&mut mover, &map);
        assert_eq!(asked(&actions), [0, 1, 2, 4]);
        let fences = vec![(disk, Generation(1))];
        let request = ListRequest { pg: PG, epoch: Epoch(epoch), fences };
        assert_eq!(actions[0], Action::List { node: NodeId(0), request });
        // One of the old set is no majority, whatever the new node says.
        answer(&mut mover, &map, 4, epoch, &[group(disk, epoch, 0)]);
        answer(&mut mover, &map, 0, epoch, &[group(disk, epoch, 0)]);
        assert_eq!(asked(&step(&mut mover, &map)).len(), 3);
        answer(&mut mover, &map, 1, epoch, &[group(disk, epoch, 0)]);
        // Behind, opened before this epoch, lost, not there: each is not enough.
        let lost = ListedGroup { lost: true, ..group(disk, epoch, 0) };
        for lacks in [&[group(disk, epoch, 1)][..], &[group(disk, epoch - 1, 0)], &[lost], &[]] {
            answer(&mut mover, &map, 4, epoch, lacks);
            let actions = step(&mut mover, &map);
            assert_eq!(asked(&actions), [2, 4], "epoch {epoch}");
            assert_eq!(actions.last(), Some(&Action::Open(GroupId { volume: disk, pg: PG })));
            assert_eq!(mover.progress(&map, PG).unwrap().lacking, vec![disk]);
        }
        answer(&mut mover, &map, 4, epoch, &[group(disk, epoch, 0)]);
        let advance = Command::AdvanceMove { pg: PG, epoch: Epoch(epoch) };
        assert_eq!(step(&mut mover, &map), [Action::Propose(advance.clone())]);
        map.apply(&advance).unwrap();
    }
    assert_eq!(step(&mut mover, &map), []);
    assert_eq!(map.members(PG).unwrap().new, [0, 1, 4].map(NodeId));
}

#[test]
fn answers_of_another_epoch_say_nothing() {
    let (mut map, disk) = moving();
    let mut mover = mover();
    map.apply(&Command::AdvanceMove { pg: PG, epoch: Epoch(2) }).unwrap();
    for node in [0, 1, 2, 4] {
        answer(&mut mover, &map, node, 2, &[group(disk, 2, 0)]);
        answer(&mut mover, &map, 3, 3, &[group(disk, 3, 0)]);
    }
    assert_eq!(mover.progress(&map, PG).unwrap().answered, 0);
    // And those of before a step are forgotten with it.
    for node in [0, 1, 2, 4] {
        answer(&mut mover, &map, node, 3, &[group(disk, 3, 0)]);
    }
    assert!(mover.progress(&map, PG).unwrap().ready);
    map.apply(&Command::UndoMove { pg: PG, epoch: Epoch(3) }).unwrap();
    assert_eq!(mover.progress(&map, PG), None);
    assert_eq!(step(&mut mover, &map), []);
}

#[test]
fn an_answer_of_too_many_groups_is_none_and_groups_are_opened_in_turns() {
    let (mut map, _) = moving();
    let mut mover = mover();
    let group_of = |n: usize| group(VolumeId(1000 + n as u64), 2, 0);
    let many: Vec<ListedGroup> = (0..=super::super::VOLUMES_MAX).map(group_of).collect();
    answer(&mut mover, &map, 0, 2, &many);
    assert_eq!(mover.progress(&map, PG).unwrap().answered, 0);
    // Volumes that this map does not know yet are none that were deleted.
    map.next_volume = VolumeId(1);
    for node in [0, 1] {
        answer(&mut mover, &map, node, 2, &many[..2 * OPENS_PER_STEP + 3]);
    }
    let mut opened = BTreeSet::new();
    for turn in [OPENS_PER_STEP, OPENS_PER_STEP, 3, OPENS_PER_STEP] {
        let actions = step(&mut mover, &map);
        let opens =
            actions.iter().filter_map(|a| if let Action::Open(group) = a { Some(*group) } else { None });
        let before = opened.len();
        opened.extend(opens.clone());
        assert_eq!(opens.count(), turn);
        assert!(opened.len() == before + turn || opened.len() == 2 * OPENS_PER_STEP + 3);
    }
}

#[test]
fn groups_of_deleted_volumes_hold_nothing_up() {
    let (mut map, disk) = moving();
    let mut mover = mover();
    for node in [0, 1] {
        answer(&mut mover, &map, node, 2, &[group(disk, 1, 0)]);
    }
    answer(&mut mover, &map, 4, 2, &[]);
    assert!(!mover.progress(&map, PG).unwrap().ready);
    map.apply(&Command::RemoveVolume { volume: disk, expired: Some(Generation(1)) }).unwrap();
    assert!(mover.progress(&map, PG).unwrap().ready);
}

#[test]
fn a_paused_mover_does_nothing() {
    let (mut map, _) = moving();
    map.apply(&Command::PauseMoves { paused: true }).unwrap();
    assert_eq!(step(&mut Mover::default(), &map), []);
    map.apply(&Command::PauseMoves { paused: false }).unwrap();
    assert_ne!(step(&mut Mover::default(), &map), []);
}

#[test]
fn a_move_to_a_node_that_stays_away_is_undone() {
    let (mut map, _) = moving();
    let mut mover = mover();
    map.apply(&Command::SetNodesUp { nodes: vec![(NodeId(4), false)], now: 1 }).unwrap();
    for _ in 0..STALLED_STEPS_MAX {
        assert_eq!(asked(&step(&mut mover, &map)).len(), 4);
    }
    let undo = Command::UndoMove { pg: PG, epoch: Epoch(2) };
    assert_eq!(step(&mut mover, &map), [Action::Propose(undo)]);
}

/// Proposes and finishes moves as if nodes were always level, until nothing is left to be done; gives how
/// many there were and how many at once.
fn run_to_the_end(map: &mut ClusterMap, limits: Limits) -> (usize, usize) {
    let mut mover = Mover::new(limits);
    let (mut started, mut most) = (0, 0);
    for _ in 0..100_000 {
        let mut out = Vec::new();
        mover.step(map, &mut out);
        for action in out {
            match action {
                Action::List { node, request } => {
                    let list = GroupList {
                        pg: request.pg,
                        epoch: request.epoch,
                        groups: Vec::new(),
                        amnesia: false,
                    };
                    mover.listed(map, node, list);
                }
                Action::Propose(command) => {
                    started += usize::from(matches!(command, Command::StartMove { .. }));
                    map.apply(&command).unwrap();
                }
                Action::Open(_) => {}
            }
        }
        let active = map.moves.active.len();
        most = most.max(active);
        for node in map.nodes.keys() {
            let moves = map.moves.active.values().filter(|it| it.from == *node || it.to == *node);
            assert!(moves.count() <= limits.node);
        }
        if active == 0 && mover.settled == map.layout {
            return (started, most);
        }
    }
    panic!("moves without end");
}

#[test]
fn every_placement_group_gets_to_where_crush_wants_it() {
    let mut map = cluster(4);
    for n in 4..7 {
        map.apply(&super::super::tests::register(n)).unwrap();
    }
    let limits = Limits { cluster: 3, node: 2 };
    let (started, most) = run_to_the_end(&mut map, limits);
    assert!(started > 10 && most == 3, "{started} moves, {most} at once");
    let pool = map.pools[&PoolId(1)].clone();
    let mut placer = map.placer();
    for (pg, config) in map.pool_pgs(PoolId(1)) {
        let wanted: BTreeSet<NodeId> = placer.place(pg.pool, &pool, pg.pg).unwrap().into_iter().collect();
        assert_eq!(config.new.iter().copied().collect::<BTreeSet<_>>(), wanted);
    }
    // And stays there.
    assert_eq!(run_to_the_end(&mut map, limits).0, 0);
}

#[test]
fn nothing_is_started_while_a_third_of_the_nodes_is_away() {
    let mut map = cluster(4);
    for n in 4..7 {
        map.apply(&super::super::tests::register(n)).unwrap();
    }
    let starts = |map: &ClusterMap| step(&mut Mover::default(), map).len();
    assert!(starts(&map) > 0);
    map.apply(&Command::SetNodesUp { nodes: (0..3).map(|n| (NodeId(n), false)).collect(), now: 1 }).unwrap();
    assert_eq!(starts(&map), 0);
    map.apply(&Command::SetNodesUp { nodes: vec![(NodeId(0), true)], now: 1 }).unwrap();
    assert!(starts(&map) > 0);
}

/// w1 on A and C; A loses its state and forgets the group; C is away. What A and B name is not all there is.
#[test]
fn a_node_that_has_lost_state_may_have_had_a_group_of_every_volume() {
    let (map, disk) = moving();
    let mut mover = mover();
    let forgetful = GroupList { pg: PG, epoch: Epoch(2), groups: Vec::new(), amnesia: true };
    mover.listed(&map, NodeId(0), forgetful);
    answer(&mut mover, &map, 1, 2, &[]);
    answer(&mut mover, &map, 4, 2, &[]);
    let found = mover.progress(&map, PG).unwrap();
    assert!(!found.ready && found.lacking == [disk], "{found:?}");
    assert!(step(&mut mover, &map).contains(&Action::Open(GroupId { volume: disk, pg: PG })));
    answer(&mut mover, &map, 4, 2, &[group(disk, 2, 0)]);
    assert!(mover.progress(&map, PG).unwrap().ready, "a leader has found a quorum of votes");
}

fn started(actions: &[Action]) -> Vec<Move> {
    let start = |action: &Action| match action {
        Action::Propose(Command::StartMove { from, to, .. }) => Some(Move { from: *from, to: *to }),
        _ => None,
    };
    actions.iter().filter_map(start).collect()
}

/// Four nodes hold everything, and three more have just come.
fn grown() -> ClusterMap {
    let mut map = cluster(4);
    for n in 4..7 {
        map.apply(&super::super::tests::register(n)).unwrap();
    }
    map
}

fn rooms(map: &ClusterMap, used: u64) -> BTreeMap<NodeId, Room> {
    map.nodes.keys().map(|node| (*node, Room { total: 1 << 40, used })).collect()
}

#[test]
fn what_only_spreads_copies_waits_while_a_placement_group_has_a_member_down() {
    let mut map = grown();
    let mut mover = Mover::default();
    assert!(!started(&step(&mut mover, &map)).is_empty());
    let down = |map: &mut ClusterMap, up| {
        map.apply(&Command::SetNodesUp { nodes: vec![(NodeId(0), up)], now: 1 }).unwrap();
    };
    down(&mut map, false);
    let mut mover = Mover::default();
    let begun = started(&step(&mut mover, &map));
    assert!(begun.iter().all(|it| it.from == NodeId(0)), "{begun:?}");
    assert!(mover.waits()[&Waits::Degraded] > 0);
    // When it is out, its copies are to be elsewhere: that does not wait.
    let out = Command::SetNodesOut { nodes: vec![(NodeId(0), Some(super::super::Out::Automatic))] };
    map.apply(&out).unwrap();
    let begun = started(&step(&mut Mover::default(), &map));
    assert!(!begun.is_empty() && begun.iter().all(|it| it.from == NodeId(0)), "{begun:?}");
    // The administrator may say otherwise.
    let limits = super::super::MoveLimits { while_degraded: true, ..map.moves.limits };
    map.apply(&Command::SetMoveLimits { limits }).unwrap();
    assert!(started(&step(&mut Mover::default(), &map)).iter().any(|it| it.from != NodeId(0)));
}

#[test]
fn nothing_begins_towards_a_node_without_room_or_that_was_not_heard_of() {
    let map = grown();
    let mut mover = Mover::default();
    let mut some = rooms(&map, 1 << 30);
    some.remove(&NodeId(4));
    some.insert(NodeId(5), Room { total: 1 << 40, used: 900 << 30 });
    mover.set_rooms(some);
    let begun = started(&step(&mut mover, &map));
    let shut = [NodeId(4), NodeId(5)];
    assert!(!begun.is_empty() && begun.iter().all(|it| !shut.contains(&it.to)), "{begun:?}");
    assert!(mover.waits()[&Waits::NoRoom] > 0, "{:?}", mover.waits());
    let mut two = rooms(&map, 1 << 30);
    two.retain(|node, _| !shut.contains(node));
    let mut mover = Mover::default();
    mover.set_rooms(two);
    let begun = started(&step(&mut mover, &map));
    assert!(begun.iter().all(|it| !shut.contains(&it.to)), "{begun:?}");
    assert!(mover.waits()[&Waits::TargetAway] > 0, "{:?}", mover.waits());
    // A monitor that has just begun to lead has heard of nobody.
    mover.set_rooms(BTreeMap::new());
    assert!(started(&step(&mut mover, &map)).is_empty());
    assert!(mover.waits().contains_key(&Waits::TooManyAway));
}

#[test]
fn the_limits_of_the_map_hold_and_may_change_under_way() {
    let mut map = grown();
    let limit = |map: &mut ClusterMap, cluster, node| {
        let limits = super::super::MoveLimits { cluster, node, while_degraded: false };
        map.apply(&Command::SetMoveLimits { limits }).unwrap();
    };
    limit(&mut map, 1, 1);
    let mut mover = Mover::default();
    let begun = step(&mut mover, &map);
    assert_eq!(started(&begun).len(), 1);
    for action in begun {
        if let Action::Propose(command) = action {
            map.apply(&command).unwrap();
        }
    }
    assert_eq!(started(&step(&mut mover, &map)).len(), 0);
    assert!(mover.waits().contains_key(&Waits::Limits));
    limit(&mut map, 3, 3);
    assert_eq!(started(&step(&mut mover, &map)).len(), 2);
}

#[test]
fn what_an_administrator_undid_is_not_begun_again() {
    let mut map = grown();
    let all: Vec<(PgId, Epoch)> = map.pgs.iter().map(|(pg, config)| (pg, config.epoch)).collect();
    for (pg, epoch) in all {
        map.apply(&Command::HoldMove { pg, epoch }).unwrap();
    }
    let mut mover = Mover::default();
    assert!(started(&step(&mut mover, &map)).is_empty());
    assert!(mover.waits()[&Waits::Held] > 0);
    map.apply(&Command::PauseMoves { paused: false }).unwrap();
    assert!(!started(&step(&mut mover, &map)).is_empty());
}

#[test]
fn steps_in_between_do_not_count_as_time() {
    let (mut map, _) = moving();
    let mut mover = mover();
    map.apply(&Command::SetNodesUp { nodes: vec![(NodeId(4), false)], now: 1 }).unwrap();
    for _ in 0..=STALLED_STEPS_MAX {
        let mut out = Vec::new();
        mover.step_between(&map, &mut out);
        assert_eq!(asked(&out).len(), 4);
    }
}
