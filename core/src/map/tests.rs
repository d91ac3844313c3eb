//! The map under commands, sensible and random.

use super::*;
use crate::limits::OBJECT_SIZE_DEFAULT;
use crate::placement::{PgConfig, PgTable};
use proptest::prelude::*;

pub(super) fn register(n: u64) -> Command {
    Command::RegisterNode {
        id: None,
        incarnation: Incarnation(1000 + n),
        address: format!("127.0.0.1:{}", 7000 + n).parse().unwrap(),
        host: format!("host{n}"),
        class: None,
        size: 8 << 30,
        now: 1,
    }
}

pub(super) fn pool(name: &str, pg_num: u32, domain: FailureDomain) -> Command {
    Command::CreatePool { name: name.to_owned(), size: 3, pg_num, domain, ack: Ack::Majority }
}

pub(super) fn create(name: &str, size: u64) -> Command {
    Command::CreateVolume {
        name: name.to_owned(),
        pool: "default".to_owned(),
        size,
        object_size: OBJECT_SIZE_DEFAULT,
        io_timeout: None,
    }
}

/// A cluster with that many nodes and, if they are enough, the pool `default`.
pub(super) fn cluster(nodes: u64) -> ClusterMap {
    let mut map = ClusterMap::new();
    let cluster_id = [5; 16];
    let name = "test".to_owned();
    map.apply(&Command::Init { cluster_id, name }).unwrap();
    for n in 0..nodes {
        map.apply(&register(n)).unwrap();
    }
    if nodes >= 3 {
        map.apply(&pool("default", 32, FailureDomain::Host)).unwrap();
    }
    map
}

pub(super) fn holder(name: &str, boot: u64) -> Holder {
    Holder { name: name.to_owned(), boot, kind: HolderKind::FrontEnd }
}

pub(super) fn volume(map: &mut ClusterMap, name: &str) -> VolumeId {
    match map.apply(&create(name, 1 << 30)) {
        Ok(Reply::Volume(id)) => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn placement_is_what_everybody_computes() {
    let mut map = cluster(5);
    let disk = volume(&mut map, "disk0");
    assert_eq!(map.volume_pgs(disk).count(), 32);
    assert_eq!(map.volume_nodes(disk).len(), 5);
    let groups = map.groups_of(disk);
    assert_eq!(groups.values().map(Vec::len).sum::<usize>(), 256);
    for (group, objects) in &groups {
        let pg = map.members(group.pg).unwrap();
        assert_eq!((pg.epoch, pg.old, pg.old.len()), (Epoch(1), pg.new, 3));
        assert!(objects.iter().all(|o| map.group_of(disk, *o) == Some(*group)));
    }
    assert_eq!(map.group_of(disk, 256), None);
    assert_eq!(map.group_of(VolumeId(99), 0), None);
}

#[test]
fn too_few_nodes_or_hosts_are_refused_in_clear_words() {
    let mut map = cluster(2);
    let text = map.apply(&pool("default", 32, FailureDomain::Host)).unwrap_err().to_string();
    assert!(text.contains("2 copies of 3: add nodes"), "{text}");
    assert!(map.pools.is_empty() && map.pgs.is_empty());

    // Three nodes on one host: not with one copy per host, but with one per node.
    let mut map = cluster(0);
    for n in 0..3 {
        let Command::RegisterNode { incarnation, address, size, now, .. } = register(n) else {
            unreachable!()
        };
        let host = "only".to_owned();
        map.apply(&Command::RegisterNode { id: None, incarnation, address, host, class: None, size, now })
            .unwrap();
    }
    map.apply(&pool("default", 8, FailureDomain::Host)).unwrap_err();
    map.apply(&pool("default", 8, FailureDomain::Osd)).unwrap();
}

#[test]
fn every_pool_that_can_be_made_has_groups_that_can_be_led() {
    let mut map = cluster(9);
    for size in 0..12 {
        let name = format!("p{size}");
        let (domain, ack) = (FailureDomain::Host, Ack::Majority);
        let made = map.apply(&Command::CreatePool { name, size, pg_num: 8, domain, ack });
        assert_eq!(made.is_ok(), [2, 3, 5].contains(&size), "{size}: {made:?}");
    }
    assert!(map.pgs.iter().all(|(_, pg)| pg.config().problem().is_none()));
}

#[test]
fn a_known_node_keeps_its_id_and_a_formatted_device_is_another_node() {
    let mut map = cluster(3);
    let before = map.clone();
    assert_eq!(map.apply(&register(1)), Ok(Reply::Node(NodeId(1))), "an answer was lost");
    assert_eq!(map, before);
    let again = |id, incarnation, port: u16| Command::RegisterNode {
        id: Some(NodeId(id)),
        incarnation: Incarnation(incarnation),
        address: format!("127.0.0.1:{port}").parse().unwrap(),
        host: "host1".to_owned(),
        class: None,
        size: 8 << 30,
        now: 2,
    };
    map.apply(&again(1, 1001, 9999)).unwrap();
    assert_eq!(map.nodes[&NodeId(1)].address.port(), 9999);
    assert!(map.version > before.version);
    let text = map.apply(&again(1, 77, 9999)).unwrap_err().to_string();
    assert!(text.contains("is a new node"), "{text}");
    assert!(matches!(map.apply(&again(8, 77, 9999)), Err(MapError::Missing { .. })));
}

#[test]
fn impossible_volumes_are_refused() {
    let mut map = cluster(3);
    for size in [0, 1, 4095, 4097, VOLUME_SIZE_MAX + 4096] {
        assert_eq!(map.apply(&create("v", size)), Err(MapError::BadSize(size)));
    }
    let Err(MapError::GroupTooLarge { .. }) = map.apply(&create("v", VOLUME_SIZE_MAX)) else {
        panic!("32 groups cannot hold that");
    };
    let long = "x".repeat(NAME_LEN_MAX + 1);
    for name in ["", "-x", ".x", "a b", "a/b", "ä", long.as_str()] {
        assert!(matches!(map.apply(&create(name, 4096)), Err(MapError::BadName(_))), "{name}");
    }
    map.apply(&create("v", 4096)).unwrap();
    assert!(matches!(map.apply(&create("v", 4096)), Err(MapError::Exists { .. })));
}

#[test]
fn ids_of_volumes_are_never_used_again_and_deletion_is_told_from_ignorance() {
    let mut map = cluster(3);
    let first = volume(&mut map, "a");
    assert!(!map.is_deleted(first));
    map.apply(&Command::RemoveVolume { volume: first, expired: None }).unwrap();
    assert!(map.is_deleted(first));
    let second = volume(&mut map, "a");
    assert!(second > first);
    assert!(!map.is_deleted(VolumeId(second.0 + 1)), "not issued yet: the map may be old");
}

#[test]
fn an_attached_volume_is_not_removed_unless_its_lease_has_run_out() {
    let mut map = cluster(3);
    let disk = volume(&mut map, "a");
    let seen = Generation(0);
    let above = Generation(0);
    let grants = vec![Grant { volume: disk, seen, above }];
    map.apply(&Command::GrantGenerations { grants, holder: holder("h", 1) }).unwrap();
    let remove = |expired| Command::RemoveVolume { volume: disk, expired };
    assert!(matches!(map.apply(&remove(None)), Err(MapError::Attached { .. })));
    assert!(matches!(map.apply(&remove(Some(Generation(9)))), Err(MapError::Attached { .. })));
    map.apply(&remove(Some(Generation(1)))).unwrap();
}

#[test]
fn attaching_does_not_change_the_layout() {
    let mut map = cluster(3);
    let disk = volume(&mut map, "a");
    let (version, layout) = (map.version, map.layout);
    let grants = vec![Grant { volume: disk, seen: Generation(0), above: Generation(40) }];
    map.apply(&Command::GrantGenerations { grants, holder: holder("h", 1) }).unwrap();
    assert_eq!(map.volumes[&disk].generation, Generation(41), "above what a node has promised");
    assert_eq!((map.version, map.layout), (version + 1, layout));
}

#[test]
fn a_map_survives_serialisation() {
    let mut map = cluster(4);
    volume(&mut map, "a");
    let bytes = postcard::to_stdvec(&map).unwrap();
    assert_eq!(postcard::from_bytes::<ClusterMap>(&bytes).unwrap(), map);
}

fn any_command() -> impl Strategy<Value = Command> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("-bad"), Just("")].prop_map(str::to_owned);
    let id = (0u64..12).prop_map(VolumeId);
    let generation = prop_oneof![9 => 0u64..6, 1 => any::<u64>()].prop_map(Generation);
    let grant = (id.clone(), generation.clone(), generation.clone())
        .prop_map(|(volume, seen, above)| Grant { volume, seen, above });
    prop_oneof![
        (0u64..12).prop_map(register),
        (0u32..12, 0u64..12, any::<u16>()).prop_map(|(id, n, port)| Command::RegisterNode {
            id: Some(NodeId(id)),
            incarnation: Incarnation(1000 + n),
            address: ([127, 0, 0, 1], port).into(),
            host: "default".to_owned(),
            class: None,
            size: u64::MAX,
            now: 3,
        }),
        prop::collection::vec((0u32..12, any::<bool>()), 0..4).prop_map(|nodes| {
            Command::SetNodesUp { nodes: nodes.into_iter().map(|(n, up)| (NodeId(n), up)).collect(), now: 4 }
        }),
        (0u32..12, any::<bool>()).prop_map(|(n, lost)| Command::SetNodeLost { node: NodeId(n), lost }),
        prop::collection::vec((0u32..12, any::<u64>()), 0..4).prop_map(|positions| {
            Command::ReportPositions {
                positions: positions.into_iter().map(|(n, p)| (NodeId(n), p)).collect(),
            }
        }),
        (name.clone(), 0u8..9, prop_oneof![0u32..40, any::<u32>()], 0u32..4).prop_map(
            |(name, size, pg_num, rule)| {
                let domain = match rule {
                    0 => FailureDomain::Host,
                    1 => FailureDomain::Osd,
                    rule => FailureDomain::Rule(rule - 2),
                };
                Command::CreatePool { name, size, pg_num, domain, ack: Ack::Majority }
            }
        ),
        (name.clone(), name, prop_oneof![any::<u64>(), (0u64..99).prop_map(|n| n << 24)], 14u32..26)
            .prop_map(|(name, pool, size, bits)| Command::CreateVolume {
                name,
                pool,
                size,
                object_size: 1 << bits,
                io_timeout: None,
            }),
        (id.clone(), prop::option::of(generation.clone()))
            .prop_map(|(volume, expired)| Command::RemoveVolume { volume, expired }),
        (prop::collection::vec(grant, 0..4), 0u64..3)
            .prop_map(|(grants, boot)| { Command::GrantGenerations { grants, holder: holder("h", boot) } }),
        prop::collection::vec((id, generation, any::<bool>()), 0..4)
            .prop_map(|volumes| Command::Release { volumes }),
        (0u32..8, any::<bool>(), 0u64..20)
            .prop_map(|(n, drain, seen)| { Command::DrainNode { node: NodeId(n), drain, seen } }),
        (0u32..8).prop_map(|n| Command::RemoveNode { node: NodeId(n) }),
        (0u8..7, 0u32..3, 0u8..4).prop_map(|(copies, rule, which)| Command::SetPool {
            pool: "a".to_owned(),
            change: match which {
                0 => admin::PoolChange::Rule(rule),
                1 => admin::PoolChange::Ack(Ack::AllInSync),
                2 => admin::PoolChange::Ack(Ack::Majority),
                _ => admin::PoolChange::Copies(copies),
            },
        }),
        (0u64..3, 0u64..9).prop_map(|(life, now)| Command::Died { daemon: "node.1".to_owned(), life, now }),
        Just(Command::AcknowledgeDeaths { daemons: vec![] }),
        (0u64..9, 0u64..9).prop_map(|(until, now)| Command::Mute {
            code: "NODE_DOWN".to_owned(),
            mute: mutes::Mute { until, count: 1, because: String::new() },
            now,
        }),
        Just(Command::Unmute { codes: vec![("NODE_DOWN".to_owned(), mutes::MuteEnd::Expired)] }),
    ]
}

fn check(before: &ClusterMap, after: &ClusterMap, result: &Result<Reply, MapError>) {
    assert!(after.version >= before.version && after.layout >= before.layout);
    assert!(after.layout <= after.version);
    if result.is_err() {
        assert_eq!(before, after, "a refused command changed the map");
    }
    if before.version == after.version {
        assert_eq!(before, after, "a change without a new version");
    }
    assert!(after.next_volume >= before.next_volume);
    for (id, volume) in &after.volumes {
        assert!(*id < after.next_volume);
        assert!(volume.objects() > 0 && after.pools.contains_key(&volume.pool));
        assert!(volume.generation.0 <= Ballot::GENERATION_MAX);
        match before.volumes.get(id) {
            Some(old) => {
                assert!(volume.generation >= old.generation);
                let granted = volume.generation > old.generation;
                assert!(granted || volume.holder.is_none() || volume.holder == old.holder);
            }
            None => assert!(*id >= before.next_volume, "{id} was used again"),
        }
        assert!(!(volume.clean && volume.holder.is_some()));
    }
    for id in before.volumes.keys().filter(|id| !after.volumes.contains_key(id)) {
        assert!(after.is_deleted(*id));
    }
    for (id, node) in &before.nodes {
        let Some(now) = after.nodes.get(id) else {
            assert_eq!((before.pgs_of(*id), after.removed_node(node.incarnation)), (0, Some(*id)));
            continue;
        };
        assert_eq!(now.incarnation, node.incarnation);
        assert!(after.position(*id) >= before.position(*id));
    }
    for (id, pool) in &after.pools {
        assert_eq!(after.pool_pgs(*id).count(), pool.pg_num as usize);
    }
    for (id, pg) in after.pgs.iter() {
        let pool = &after.pools[&id.pool];
        let members: BTreeSet<NodeId> = pg.nodes().collect();
        assert_eq!(members.len(), usize::from(pool.size));
        assert!(members.iter().all(|node| after.nodes.contains_key(node)));
        let resized = before.pools.get(&id.pool).is_some_and(|old| old.size != pool.size);
        let before = before.pgs.get(&id);
        let placed_anew = resized && before.is_some_and(|old| old.epoch < pg.epoch);
        assert!(placed_anew || before.is_none_or(|old| old == pg), "placement moved by itself");
    }
}

proptest! {
    #[test]
    fn random_commands_keep_the_invariants(commands in prop::collection::vec(any_command(), 1..60)) {
        let mut map = cluster(4);
        map.apply(&pool("a", 8, FailureDomain::Host)).unwrap();
        for command in &commands {
            let before = map.clone();
            let result = map.apply(command);
            check(&before, &map, &result);
            let mut again = before.clone();
            assert_eq!(again.apply(command), result);
            assert_eq!(again, map, "not deterministic");
        }
    }
}

#[test]
fn the_largest_map_is_within_its_limit() {
    // Not the limit itself (that takes minutes), but its parts by their largest sizes.
    let mut map = cluster(3);
    let volume_id = volume(&mut map, &"n".repeat(NAME_LEN_MAX));
    let empty = postcard::to_stdvec(&ClusterMap::new()).unwrap().len();
    let it = map.volumes.get_mut(&volume_id).unwrap();
    it.holder = Some(Holder { name: "h".repeat(HOLDER_LEN_MAX), boot: u64::MAX, kind: HolderKind::FrontEnd });
    (it.generation, it.size) = (Generation(u64::MAX), VOLUME_SIZE_MAX);
    let volume = postcard::to_stdvec(&*it).unwrap().len() + 10;
    // The worst: every group is being moved.
    let config = PgConfig {
        epoch: Epoch(u64::MAX),
        old: vec![NodeId(9999); 3],
        new: vec![NodeId(9998); 3],
        learners: vec![],
    };
    let pg = postcard::to_stdvec(&config).unwrap().len() + 6;
    // A node is named by itself, its device, its place in a bucket, and by its host at worst.
    let node = 250 + 2 * NAME_LEN_MAX;
    let total = empty + volume * VOLUMES_MAX + pg * PGS_MAX as usize + node * NODES_MAX;
    assert!(total < MAP_BYTES_MAX, "{total}");
}

/// Moves a placement group, as no command does yet.
fn move_pg(map: &mut ClusterMap, pool: PoolId, pg: u32, config: &PgConfig) {
    if map.pgs.set(PgId { pool, pg }, config) {
        map.version += 1;
        map.layout = map.version;
    }
}

fn any_config() -> impl Strategy<Value = PgConfig> {
    let set = |most| prop::collection::vec((0u32..9).prop_map(NodeId), 0..most);
    (0u64..4, set(4), set(4), set(2)).prop_map(|(epoch, old, new, learners)| PgConfig {
        epoch: Epoch(epoch),
        old,
        new,
        learners,
    })
}

proptest! {
    #[test]
    fn a_delta_makes_the_newer_map_of_the_older(
        first in prop::collection::vec(any_command(), 0..30),
        second in prop::collection::vec(any_command(), 0..30),
        moves in prop::collection::vec((0u32..4, 0u32..40, any_config()), 0..4),
        weight in prop::option::of((0i32..4, 1u32..0x20000)),
        shared in any::<bool>(),
    ) {
        let mut older = cluster(4);
        for command in &first {
            let _ = older.apply(command);
        }
        let mut newer = older.clone();
        if !shared {
            // As if it had come over the network: nothing is the same in memory.
            newer = postcard::from_bytes(&postcard::to_stdvec(&newer).unwrap()).unwrap();
        }
        for command in &second {
            let _ = newer.apply(command);
        }
        for (pool, pg, config) in &moves {
            move_pg(&mut newer, PoolId(*pool), *pg, config);
        }
        if let Some((device, weight)) = weight {
            let mut def = newer.crush.def().clone();
            let items = def.buckets.iter_mut().flat_map(|bucket| &mut bucket.items);
            items.filter(|item| item.id == device).for_each(|item| item.weight = weight);
            let crush = Box::new(CrushMap::new(def).unwrap());
            newer.apply(&Command::SetCrush { crush }).unwrap();
        }
        let delta = newer.diff(&older).unwrap();
        let bytes = postcard::to_stdvec(&delta).unwrap();
        let delta: MapDelta = postcard::from_bytes(&bytes).unwrap();
        let mut made = older.clone();
        made.apply_delta(&delta).unwrap();
        prop_assert_eq!(&made, &newer);
        // The other way round, too: what is gone, and tables that are shorter.
        let back = older.diff(&newer).unwrap();
        made.apply_delta(&back).unwrap();
        prop_assert_eq!(&made, &older);
    }
}

#[test]
fn a_delta_lays_a_pool_out_anew_that_has_another_number_of_copies() {
    let mut older = cluster(5);
    let (name, domain, ack) = ("a".to_owned(), FailureDomain::Host, Ack::Majority);
    older.apply(&Command::CreatePool { name: name.clone(), size: 3, pg_num: 2, domain, ack }).unwrap();
    let mut newer = older.clone();
    newer.apply(&Command::SetPool { pool: name, change: admin::PoolChange::Copies(5) }).unwrap();
    let mut made = older.clone();
    made.apply_delta(&newer.diff(&older).unwrap()).unwrap();
    assert_eq!(made, newer);
    made.apply_delta(&older.diff(&newer).unwrap()).unwrap();
    assert_eq!(made, older);
}

#[test]
fn a_delta_is_for_one_version_of_one_cluster() {
    let older = cluster(4);
    let mut newer = older.clone();
    volume(&mut newer, "a");
    let delta = newer.diff(&older).unwrap();
    let before = newer.clone();
    let Err(DeltaError::Base { wanted, found }) = newer.apply_delta(&delta) else {
        panic!("applied to the map that it leads to");
    };
    assert_eq!((wanted, found), (older.version, newer.version));
    assert_eq!(newer, before);
    let mut other = ClusterMap::new();
    other.apply(&Command::Init { cluster_id: [6; 16], name: "test".to_owned() }).unwrap();
    assert_eq!(other.diff(&older), None);
}

#[test]
fn a_delta_that_does_not_fit_changes_nothing() {
    let older = cluster(4);
    let mut newer = older.clone();
    move_pg(&mut newer, PoolId(1), 31, &PgConfig::simple(Epoch(2), vec![NodeId(0); 3]));
    newer.apply(&Command::SetNodesUp { nodes: vec![(NodeId(0), false)], now: 9 }).unwrap();
    let delta = newer.diff(&older).unwrap();
    let mut shorter = older.clone();
    shorter.pgs.0.insert(PoolId(1), PgTable::default());
    let before = shorter.clone();
    assert!(matches!(shorter.apply_delta(&delta), Err(DeltaError::Misfit(_))));
    assert_eq!(shorter, before);
}

#[test]
fn a_small_change_of_a_large_map_is_a_small_delta() {
    let mut older = cluster(200);
    older.apply(&pool("large", 4096, FailureDomain::Host)).unwrap();
    let whole = postcard::to_stdvec(&older).unwrap().len();
    let bytes = |newer: &ClusterMap| postcard::to_stdvec(&newer.diff(&older).unwrap()).unwrap().len();
    let mut down = older.clone();
    down.apply(&Command::SetNodesUp { nodes: vec![(NodeId(7), false)], now: 9 }).unwrap();
    let mut moved = older.clone();
    move_pg(&mut moved, PoolId(2), 4000, &PgConfig::simple(Epoch(2), vec![NodeId(1), NodeId(2), NodeId(3)]));
    let mut added = older.clone();
    added.apply(&register(200)).unwrap();
    let costly = |newer: &ClusterMap| newer.diff(&older).unwrap().is_costly();
    assert_eq!((costly(&down), costly(&moved), costly(&added)), (false, false, true));
    assert!(bytes(&down) < 120 && bytes(&moved) < 60, "{} {}", bytes(&down), bytes(&moved));
    // The root's list of hosts is what it costs.
    assert!(bytes(&added) < whole / 10, "{} of {whole}", bytes(&added));
}

#[test]
fn daemons_are_not_sent_log_positions() {
    let mut map = cluster(3);
    map.apply(&Command::ReportPositions { positions: vec![(NodeId(1), 77)] }).unwrap();
    let sent = map.without_positions();
    assert_eq!((map.position(NodeId(1)), sent.position(NodeId(1))), (77, 0));
    assert_eq!((sent.version, &sent.nodes), (map.version, &map.nodes));
}
