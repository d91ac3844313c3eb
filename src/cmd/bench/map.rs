//! `trefoil bench map`: a cluster map of any size: what it costs to hold, to read, to change and to follow.
//!
//! Everything here happens in this process, without sockets: the map that the monitors would have, what they
//! would send, and what a daemon would do with it. Times are the best of several (the machine has other
//! things to do), or the mean where so many are measured that it does not matter.

use crate::failure::Outcome;
use crate::output;
use crate::size::Size;
use anyhow::{Context, anyhow};
use clap::Args;
use serde::Serialize;
use std::io::Write;
use std::time::Instant;
use trefoil_core::crush::{
    Bucket, BucketAlg, CrushMap, Device, Item, MapDef, Placement, Scratch, ceph_pg_to_x,
};
use trefoil_core::limits::OBJECT_SIZE_DEFAULT;
use trefoil_core::map::{
    Ack, ClusterMap, Command, FailureDomain, MapDelta, NODES_MAX, PGS_MAX, POOL_PGS_MAX, POOLS_MAX,
};
use trefoil_core::{Generation, Incarnation, NodeId, PgId, PoolId, VolumeId};
use trefoil_nbd::session::front::FrontEnd;

/// Nodes of a host, hosts of a rack; zones.
const HOST_NODES: u32 = 8;
const RACK_HOSTS: u32 = 20;
const ZONES: u32 = 5;
/// Of a node: 4 TiB, as a CRUSH weight.
const WEIGHT: u32 = 4 << 16;
/// Tries of what is measured by its best time.
const TRIES: usize = 5;
/// Maps that are held at once to see what one takes.
const COPIES: u64 = 4;
/// Placements measured at most.
const PLACEMENTS: u32 = 200_000;

const EXAMPLES: &str = "\
Examples:
  trefoil bench map
  trefoil bench map --nodes 300 --pgs 8192 --volumes 500
  trefoil bench map --json

Nothing is written, and no cluster is needed. Memory is what the process holds more of when it has the map, as
any daemon does. CHANGE is from one version of the map to the next: what the monitor does once (apply, diff),
what is sent to each daemon, and what that does with it (read and apply the difference, and find the placement
groups that are others).";

/// Measure a cluster map of a given size: memory, placements, reading it, changing it
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct MapArgs {
    /// Storage nodes
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(24..=NODES_MAX as i64))]
    nodes: u32,
    /// Placement groups, in pools of equal size
    #[arg(long, value_name = "N", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(PGS_MAX)))]
    pgs: u32,
    /// Volumes
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=30_000))]
    volumes: u32,
    /// Show the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// From one version to the next.
#[derive(Serialize)]
struct Change {
    change: &'static str,
    apply_us: f64,
    diff_us: f64,
    bytes: usize,
    read_us: f64,
    follow_us: f64,
    pgs_changed: usize,
}

#[derive(Serialize)]
struct View {
    nodes: usize,
    pools: usize,
    pgs: usize,
    volumes: usize,
    placements: u32,
    placement_us: f64,
    all_placements_s: f64,
    encoded_bytes: usize,
    encoded_bytes_per_pg: f64,
    encode_ms: f64,
    load_ms: f64,
    resident_bytes: u64,
    pgs_bytes: usize,
    pgs_bytes_per_pg: f64,
    clone_us: f64,
    spec_us: f64,
    changes: Vec<Change>,
}

/// The best of some tries, in microseconds, and what the last one gave.
fn best<T>(mut what: impl FnMut() -> T) -> (f64, T) {
    let mut once = || {
        let begin = Instant::now();
        let made = what();
        (begin.elapsed().as_secs_f64() * 1e6, made)
    };
    let (mut least, mut last) = once();
    for _ in 1..TRIES {
        let (time, made) = once();
        (least, last) = (least.min(time), made);
    }
    (least, last)
}

/// Bytes of the process that are in memory.
fn resident() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("/proc/self/status does not say how much memory is resident")? << 10)
}

/// Zones of racks of hosts of nodes, with the rules that the cluster has.
fn hierarchy(base: &MapDef, nodes: u32) -> anyhow::Result<CrushMap> {
    let mut def = base.clone();
    let type_id = |name: &str| {
        let found = base.types.iter().find(|it| it.name == name);
        found.map(|it| it.id).ok_or_else(|| anyhow!("the CRUSH map has no type {name}"))
    };
    let (host, rack, zone) = (type_id("host")?, type_id("rack")?, type_id("zone")?);
    let class = Some("ssd".to_owned());
    def.devices =
        (0..nodes as i32).map(|id| Device { id, name: format!("osd.{id}"), class: class.clone() }).collect();
    let mut next = -2;
    let mut level = |name: &str, type_id: i32, below: Vec<Item>, size: usize, def: &mut MapDef| {
        let mut items = Vec::new();
        for (n, chunk) in below.chunks(size).enumerate() {
            let weight = chunk.iter().map(|item| item.weight).sum();
            let (id, name) = (next, format!("{name}{n}"));
            let (alg, items_of) = (BucketAlg::Straw2, chunk.to_vec());
            def.buckets.push(Bucket { id, name, type_id, alg, items: items_of, class_ids: Vec::new() });
            items.push(Item { id, weight });
            next -= 1;
        }
        items
    };
    let devices = (0..nodes as i32).map(|id| Item { id, weight: WEIGHT }).collect();
    let hosts = level("host", host, devices, HOST_NODES as usize, &mut def);
    let racks = level("rack", rack, hosts, RACK_HOSTS as usize, &mut def);
    let per_zone = racks.len().div_ceil(ZONES as usize);
    let zones = level("zone", zone, racks, per_zone, &mut def);
    let root = def.buckets.iter_mut().find(|it| it.id == -1).context("the CRUSH map has no root")?;
    root.items = zones;
    Ok(CrushMap::new(def)?)
}

fn build(args: &MapArgs) -> anyhow::Result<ClusterMap> {
    let mut map = ClusterMap::new();
    map.apply(&Command::Init { cluster_id: [1; 16], name: "bench".to_owned() })?;
    let crush = Box::new(hierarchy(map.crush.def(), args.nodes)?);
    map.apply(&Command::SetCrush { crush })?;
    for n in 0..args.nodes {
        let [_, b, c, d] = n.to_be_bytes();
        map.apply(&Command::RegisterNode {
            id: None,
            // As random as the real ones, which take most of a varint.
            incarnation: Incarnation((u64::from(n) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            address: ([10, b, c, d], 10_810).into(),
            host: format!("host{}", n / HOST_NODES),
            class: Some("ssd".to_owned()),
            size: 4 << 40,
            now: 1_800_000_000_000,
        })?;
    }
    let pools = args.pgs.div_ceil(POOL_PGS_MAX).clamp(1, POOLS_MAX as u32);
    for n in 0..pools {
        let (name, domain) = (format!("pool{n}"), FailureDomain::Host);
        let pg_num = args.pgs / pools + u32::from(n < args.pgs % pools);
        map.apply(&Command::CreatePool { name, size: 3, pg_num, domain, ack: Ack::Majority })?;
    }
    for n in 0..args.volumes {
        map.apply(&Command::CreateVolume {
            name: format!("volume-{n:06}"),
            pool: format!("pool{}", n % pools),
            size: 64 << 30,
            object_size: OBJECT_SIZE_DEFAULT,
            io_timeout: None,
        })?;
    }
    Ok(map)
}

/// What following a map costs: what storage nodes and front ends look for in a new one.
fn follow(older: &ClusterMap, newer: &ClusterMap) -> usize {
    newer.pgs.changed(Some(&older.pgs)).map(|(_, pg)| pg.config()).count()
}

fn measure_change(
    what: &'static str,
    older: &ClusterMap,
    change: impl Fn(&mut ClusterMap),
) -> anyhow::Result<Change> {
    // As the monitor's state machine does: a copy, and the change in it.
    let (apply_us, newer) = best(|| {
        let mut map = older.clone();
        change(&mut map);
        map
    });
    let (diff_us, bytes) = best(|| newer.diff(older).map(|delta| postcard::to_stdvec(&delta)));
    let bytes = bytes.context("no difference between two versions")??;
    let (read_us, made) = best(|| {
        let delta: MapDelta = postcard::from_bytes(&bytes)?;
        let mut map = older.clone();
        map.apply_delta(&delta)?;
        anyhow::Ok(map)
    });
    let made = made?;
    anyhow::ensure!(made == newer, "the difference has not made the newer map of the older one");
    let (follow_us, pgs_changed) = best(|| follow(older, &made));
    Ok(Change { change: what, apply_us, diff_us, bytes: bytes.len(), read_us, follow_us, pgs_changed })
}

fn changes(map: &ClusterMap) -> anyhow::Result<Vec<Change>> {
    let apply = |map: &mut ClusterMap, command: &Command| {
        if let Err(error) = map.apply(command) {
            tracing::error!(%error, "a command of the benchmark was refused");
        }
    };
    let down = Command::SetNodesUp { nodes: vec![(NodeId(7), false)], now: 1_800_000_001_000 };
    let host = (0..HOST_NODES).map(|n| (NodeId(n), false)).collect();
    let host = Command::SetNodesUp { nodes: host, now: 1_800_000_001_000 };
    let mut def = map.crush.def().clone();
    for bucket in &mut def.buckets {
        bucket.items.iter_mut().filter(|item| item.id == 7).for_each(|item| item.weight = WEIGHT / 2);
    }
    let weight = Command::SetCrush { crush: Box::new(CrushMap::new(def)?) };
    let create = Command::CreateVolume {
        name: "one-more".to_owned(),
        pool: "pool0".to_owned(),
        size: 64 << 30,
        object_size: OBJECT_SIZE_DEFAULT,
        io_timeout: None,
    };
    let move_pg = |map: &mut ClusterMap, pool: &PoolId, pg: u32| {
        let id = PgId { pool: *pool, pg };
        if let Some(mut config) = map.pgs.get(&id).map(|it| it.config()) {
            config.epoch.0 += 1;
            map.pgs.set(id, &config);
        }
    };
    let pools: Vec<PoolId> = map.pools.keys().copied().collect();
    let moved = |map: &mut ClusterMap, every: u32| {
        for pool in &pools {
            let count = map.pools.get(pool).map_or(0, |it| it.pg_num);
            (0..count).step_by(every as usize).for_each(|pg| move_pg(map, pool, pg));
        }
        (map.version, map.layout) = (map.version + 1, map.version + 1);
    };
    Ok(vec![
        measure_change("a node goes down", map, |map| apply(map, &down))?,
        measure_change("a host goes down", map, |map| apply(map, &host))?,
        measure_change("a node is reweighted", map, |map| apply(map, &weight))?,
        measure_change("a volume is created", map, |map| apply(map, &create))?,
        measure_change("a placement group moves", map, |map| {
            if let Some(pool) = pools.first() {
                move_pg(map, pool, 0);
            }
            (map.version, map.layout) = (map.version + 1, map.version + 1);
        })?,
        measure_change("every 1000th moves", map, |map| moved(map, 1000))?,
    ])
}

/// Placements by CRUSH alone, of the groups that the map has: how many, and microseconds for each.
fn placements(map: &ClusterMap) -> anyhow::Result<(u32, f64)> {
    let reweights = map.crush.full_reweights();
    let (mut scratch, mut found) = (Scratch::default(), Vec::new());
    let (mut count, mut sum) = (0, 0i64);
    let begin = Instant::now();
    'all: for (id, pool) in &map.pools {
        for pg in 0..pool.pg_num {
            if count == PLACEMENTS {
                break 'all;
            }
            let placement = Placement {
                rule_id: pool.rule,
                x: ceph_pg_to_x(id.0, pg, pool.pg_num),
                num_rep: usize::from(pool.size),
                reweights: &reweights,
                choose_args_id: i64::from(id.0),
            };
            map.crush.do_rule_into(&placement, &mut scratch, &mut found)?;
            sum += i64::from(found.first().copied().unwrap_or_default());
            count += 1;
        }
    }
    std::hint::black_box(sum);
    Ok((count, begin.elapsed().as_secs_f64() * 1e6 / f64::from(count.max(1))))
}

fn measure(args: &MapArgs) -> anyhow::Result<View> {
    let begin = Instant::now();
    let built = build(args)?;
    tracing::debug!(seconds = begin.elapsed().as_secs_f64(), "the map is built");
    let (placements, placement_us) = placements(&built)?;
    let (encode_us, bytes) = best(|| postcard::to_stdvec(&built));
    let bytes = bytes?;
    drop(built);
    // Memory is that of a map which came over the network: so it is in every daemon. The first one is put
    // where the map was that was built; those behind it tell.
    let first: ClusterMap = postcard::from_bytes(&bytes)?;
    let before = resident()?;
    let copies: Vec<ClusterMap> =
        (0..COPIES).map(|_| postcard::from_bytes(&bytes)).collect::<Result<_, _>>()?;
    let resident_bytes = resident()?.saturating_sub(before) / COPIES;
    drop(copies);
    let (load_us, map) = best(|| postcard::from_bytes::<ClusterMap>(&bytes));
    let map = map?;
    anyhow::ensure!(map == first, "the map is another one after it was encoded and read");
    drop(first);
    let (clone_us, _) = best(|| map.clone());
    let volume = map.volumes.keys().next().copied().unwrap_or(VolumeId(1));
    let (spec_us, spec) = best(|| FrontEnd::spec(&map, volume, Generation(1)));
    anyhow::ensure!(spec.is_some(), "the map does not have the volume that was created");
    let pgs = map.pgs.len();
    Ok(View {
        nodes: map.nodes.len(),
        pools: map.pools.len(),
        pgs,
        volumes: map.volumes.len(),
        placements,
        placement_us,
        all_placements_s: placement_us * pgs as f64 / 1e6,
        encoded_bytes: bytes.len(),
        encoded_bytes_per_pg: bytes.len() as f64 / pgs as f64,
        encode_ms: encode_us / 1e3,
        load_ms: load_us / 1e3,
        resident_bytes,
        pgs_bytes: map.pgs.heap_bytes(),
        pgs_bytes_per_pg: map.pgs.heap_bytes() as f64 / pgs as f64,
        clone_us,
        spec_us,
        changes: changes(&map)?,
    })
}

/// Runs the command.
pub fn run(args: &MapArgs, out: &mut dyn Write) -> Outcome {
    let view = measure(args)?;
    if args.json {
        return output::json(out, &view);
    }
    let v = &view;
    let digits = super::digits;
    writeln!(
        out,
        "{} nodes, {} placement groups in {} pools, {} volumes",
        v.nodes, v.pgs, v.pools, v.volumes
    )?;
    writeln!(
        out,
        "placement: {} µs each (of {}), {} s for all",
        digits(v.placement_us),
        v.placements,
        digits(v.all_placements_s)
    )?;
    let mib = |bytes: u64| digits(bytes as f64 / f64::from(1 << 20));
    writeln!(
        out,
        "encoded: {} MiB, {} ms; read again: {} ms",
        mib(v.encoded_bytes as u64),
        digits(v.encode_ms),
        digits(v.load_ms)
    )?;
    writeln!(
        out,
        "memory in a daemon: {} MiB, of these placement groups {} MiB, {} bytes each",
        mib(v.resident_bytes),
        mib(v.pgs_bytes as u64),
        digits(v.pgs_bytes_per_pg)
    )?;
    writeln!(
        out,
        "a copy of the map: {} µs; what the leader of a volume is told: {} µs\n",
        digits(v.clone_us),
        digits(v.spec_us)
    )?;
    let rows = v.changes.iter().map(|it| {
        vec![
            it.change.to_owned(),
            digits(it.apply_us),
            digits(it.diff_us),
            Size(it.bytes as u64).to_string(),
            digits(it.read_us),
            digits(it.follow_us),
            it.pgs_changed.to_string(),
        ]
    });
    let headers = ["CHANGE", ">APPLY µs", ">DIFF µs", ">SENT", ">READ µs", ">FOLLOW µs", ">PGS"];
    write!(out, "{}", output::table(&headers, rows))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_map_is_measured_and_adds_up() {
        let args = MapArgs { nodes: 64, pgs: 70_000, volumes: 3, json: true };
        let mut out = Vec::new();
        run(&args, &mut out).unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            (&shown["nodes"], &shown["pgs"], &shown["pools"]),
            (&64.into(), &70_000.into(), &2.into())
        );
        assert!(shown["pgs_bytes_per_pg"].as_f64().unwrap() < 24.0, "{shown}");
        let changes = shown["changes"].as_array().unwrap();
        let changed: Vec<u64> = changes.iter().map(|it| it["pgs_changed"].as_u64().unwrap()).collect();
        assert_eq!(changed, [0, 0, 0, 0, 1, 70]);
        // What is sent is a fraction of the map.
        let whole = shown["encoded_bytes"].as_u64().unwrap();
        assert!(changes.iter().all(|it| it["bytes"].as_u64().unwrap() < whole / 50), "{shown}");
    }
}
