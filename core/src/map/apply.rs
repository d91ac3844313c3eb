//! Applying commands. Each arm first checks everything, then changes; nothing is changed by a command
//! that fails.

use super::command::{Command, FailureDomain, Grant, MapError, Reply};
use super::{ClusterMap, types::*};
use crate::crush::CrushMap;
use crate::ids::*;
use crate::limits::{GROUP_OBJECTS_MAX, OBJECT_SIZE_MAX, OBJECT_SIZE_MIN};
use crate::placement::{PgConfig, PgTable};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

/// The rules that Init makes, by failure domain.
const RULE_HOST: &str = "replicated_host";
const RULE_OSD: &str = "replicated_osd";

/// Who needs to know of a change.
pub(super) enum Changed {
    /// Everybody.
    Layout,
    /// Only the monitors.
    Inside,
    /// It was so already.
    Nothing,
}

pub(super) type Applied = Result<(Reply, Changed), MapError>;

pub(super) fn done(changed: Changed) -> Applied {
    Ok((Reply::Done, changed))
}

pub(super) fn missing(what: &str, name: impl ToString) -> MapError {
    MapError::Missing { what: what.to_owned(), name: name.to_string() }
}

fn full(what: &str, max: u64) -> MapError {
    MapError::Full { what: what.to_owned(), max }
}

fn crush_error(error: impl ToString) -> MapError {
    MapError::Crush(error.to_string())
}

fn check_name(name: &str) -> Result<(), MapError> {
    if is_name(name) {
        return Ok(());
    }
    // The name came from outside: what is quoted is bounded.
    Err(MapError::BadName(name.chars().take(NAME_LEN_MAX + 1).collect()))
}

fn check_batch(entries: usize) -> Result<(), MapError> {
    if entries > BATCH_MAX {
        return Err(full("entries in one request", BATCH_MAX as u64));
    }
    Ok(())
}

/// A size as a CRUSH weight: TiB in 16.16, at least the smallest weight that is not zero.
fn weight(size: u64) -> u32 {
    let weight = (u128::from(size) << 16) >> 40;
    let max = u128::from(crate::crush::DEVICE_WEIGHT_MAX);
    // At most DEVICE_WEIGHT_MAX, which is a u32.
    weight.clamp(1, max) as u32
}

impl ClusterMap {
    /// Applies a command: the same map and command give the same map and answer everywhere.
    ///
    /// Errors: it is refused, and the map is as it was.
    pub fn apply(&mut self, command: &Command) -> Result<Reply, MapError> {
        let crush = self.crush.clone();
        let (reply, changed) = self.dispatch(command)?;
        match changed {
            Changed::Layout => {
                self.version += 1;
                self.layout = self.version;
                if !Arc::ptr_eq(&crush, &self.crush) {
                    self.crush_version = self.version;
                }
            }
            Changed::Inside => self.version += 1,
            Changed::Nothing => {}
        }
        Ok(reply)
    }

    fn dispatch(&mut self, command: &Command) -> Applied {
        if let Command::Init { cluster_id, name } = command {
            return self.init(*cluster_id, name);
        }
        if self.version == 0 {
            return Err(MapError::NotInitialised);
        }
        match command {
            Command::Init { .. } => Err(MapError::AlreadyInitialised),
            Command::RegisterNode { id, incarnation, address, host, class, size, now } => {
                if let Some(node) = self.removed_node(*incarnation) {
                    return Err(MapError::Removed { node });
                }
                let known = match id {
                    // Made after the backup that this map was restored from: it keeps its number, which other
                    // nodes know it by.
                    Some(id) if self.is_forgotten_node(*id) => None,
                    Some(id) => Some(self.claimed(*id, *incarnation)?),
                    None => self.by_incarnation(*incarnation),
                };
                match known {
                    Some(id) => self.update_node(id, *address, *size),
                    None => self.add_node(
                        *id,
                        Node {
                            incarnation: *incarnation,
                            address: *address,
                            host: host.clone(),
                            class: class.clone(),
                            size: *size,
                            up: true,
                            since: *now,
                            lost: false,
                            out: None,
                            flaps: 0,
                            drained: None,
                        },
                    ),
                }
            }
            Command::SetNodesUp { nodes, now } => self.set_nodes_up(nodes, *now),
            Command::SetNodesOut { nodes } => self.set_nodes_out(nodes),
            Command::SetNodeLost { node, lost } => {
                if self.nodes.get(node).ok_or_else(|| missing("node", node))?.lost == *lost {
                    return done(Changed::Nothing);
                }
                if let Some(it) = self.nodes.get_mut(node) {
                    it.lost = *lost;
                }
                done(Changed::Layout)
            }
            Command::ReportPositions { positions } => self.report_positions(positions),
            Command::CreatePool { name, size, pg_num, domain, ack } => {
                self.create_pool(name, *size, *pg_num, *domain, *ack)
            }
            Command::CreateVolume { name, pool, size, object_size, io_timeout } => {
                self.create_volume(name, pool, *size, *object_size, *io_timeout)
            }
            Command::RemoveVolume { volume, expired } => self.remove_volume(*volume, *expired),
            Command::GrantGenerations { grants, holder } => self.grant(grants, holder),
            Command::Release { volumes } => self.release(volumes),
            Command::SetCrush { crush } => self.set_crush(crush),
            Command::ReplaceCrush { seen, crush } => self.replace_crush(*seen, crush),
            Command::StartMove { pg, epoch, from, to } => self.start_move(*pg, *epoch, *from, *to),
            Command::AdvanceMove { pg, epoch } => self.advance_move(*pg, *epoch),
            Command::UndoMove { pg, epoch } => self.undo_move(*pg, *epoch),
            Command::PauseMoves { paused } => self.pause_moves(*paused),
            Command::SetMoveLimits { limits } => self.limit_moves(*limits),
            Command::HoldMove { pg, epoch } => self.hold_move(*pg, *epoch),
            Command::AdoptLayout { configs, last } => self.adopt_layout(configs, *last),
            Command::Mute { code, mute, now } => self.mute(code, mute, *now),
            Command::Unmute { codes } => self.unmute(codes),
            Command::Died { daemon, life, now } => self.died(daemon, *life, *now),
            Command::AcknowledgeDeaths { daemons } => self.acknowledge_deaths(daemons),
            Command::DrainNode { node, drain, seen } => self.drain_node(*node, *drain, *seen),
            Command::RemoveNode { node } => self.remove_node(*node),
            Command::SetPool { pool, change } => self.set_pool(pool, *change),
            Command::SetPgNum { pool, seen, pg_num } => self.set_pg_num(*pool, *seen, *pg_num),
        }
    }

    fn init(&mut self, cluster_id: [u8; 16], name: &str) -> Applied {
        if self.version != 0 {
            return Err(MapError::AlreadyInitialised);
        }
        check_name(name)?;
        if cluster_id == [0; 16] {
            return Err(MapError::Invalid("the cluster id must not be zero".to_owned()));
        }
        let mut crush = CrushMap::with_root();
        crush.add_rule_chooseleaf_host(RULE_HOST).map_err(crush_error)?;
        crush.add_rule_choose_osd(RULE_OSD).map_err(crush_error)?;
        self.crush = Arc::new(crush);
        self.cluster_id = cluster_id;
        self.name = name.to_owned();
        done(Changed::Layout)
    }

    /// Checks that the node with that id has that store.
    fn claimed(&self, id: NodeId, given: Incarnation) -> Result<NodeId, MapError> {
        let known = self.nodes.get(&id).ok_or_else(|| missing("node", id))?.incarnation;
        if known != given {
            return Err(MapError::OtherIncarnation { node: id, known, given });
        }
        Ok(id)
    }

    fn by_incarnation(&self, incarnation: Incarnation) -> Option<NodeId> {
        let mut nodes = self.nodes.iter();
        nodes.find(|(_, node)| node.incarnation == incarnation).map(|(id, _)| *id)
    }

    fn update_node(&mut self, id: NodeId, address: SocketAddr, size: u64) -> Applied {
        let node = self.nodes.get(&id).ok_or_else(|| missing("node", id))?;
        if (node.address, node.size) == (address, size) {
            return Ok((Reply::Node(id), Changed::Nothing));
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            // The weight stays: it decides where data should live, and is the administrator's.
            (node.address, node.size) = (address, size);
        }
        Ok((Reply::Node(id), Changed::Layout))
    }

    fn add_node(&mut self, id: Option<NodeId>, node: Node) -> Applied {
        if node.incarnation.0 == 0 {
            return Err(MapError::Invalid("a node's incarnation must not be 0".to_owned()));
        }
        check_name(&node.host)?;
        if let Some(class) = &node.class {
            check_name(class)?;
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(full("nodes", NODES_MAX as u64));
        }
        let id = id.unwrap_or(self.next_node);
        let device = i32::try_from(id.0).map_err(crush_error)?;
        // An administrator's map may name the device already: that place is kept.
        if !self.crush.def().devices.iter().any(|it| it.id == device) {
            let mut crush = CrushMap::clone(&self.crush);
            let def = crush.def();
            let host_type = def.types.iter().find(|it| it.name == "host").map(|it| it.id);
            match def.buckets.iter().find(|it| it.name == node.host) {
                None => {
                    crush.add_host(&node.host).map_err(crush_error)?;
                }
                Some(bucket) if Some(bucket.type_id) == host_type => {}
                Some(_) => {
                    let text = format!("{:?} is a bucket, and no host", node.host);
                    return Err(MapError::Crush(text));
                }
            }
            let class = node.class.as_deref();
            crush.add_osd(device, &node.host, weight(node.size), class).map_err(crush_error)?;
            self.crush = Arc::new(crush);
        }
        self.nodes.insert(id, node);
        self.next_node = self.next_node.max(NodeId(id.0 + 1));
        Ok((Reply::Node(id), Changed::Layout))
    }

    fn set_nodes_up(&mut self, nodes: &[(NodeId, bool)], now: u64) -> Applied {
        check_batch(nodes.len())?;
        let mut changed = Changed::Nothing;
        for (id, up) in nodes {
            // A node that is gone by now does not hold up the others.
            if self.nodes.get(id).is_some_and(|node| node.up != *up)
                && let Some(node) = self.nodes.get_mut(id)
            {
                if *up {
                    // What was taken out for being down gets data again.
                    node.out = node.out.filter(|out| *out != Out::Automatic);
                } else {
                    let steady = now.saturating_sub(node.since) >= STEADY_MS;
                    node.flaps = if steady { 1 } else { node.flaps.saturating_add(1) };
                }
                (node.up, node.since) = (*up, now);
                changed = Changed::Layout;
            }
        }
        done(changed)
    }

    fn set_nodes_out(&mut self, nodes: &[(NodeId, Option<Out>)]) -> Applied {
        check_batch(nodes.len())?;
        if let Some((gone, _)) = nodes.iter().find(|(id, _)| !self.nodes.contains_key(id)) {
            return Err(missing("node", gone));
        }
        let mut changed = Changed::Nothing;
        for (id, out) in nodes {
            if let Some(node) = self.nodes.get_mut(id)
                && node.out != *out
            {
                node.out = *out;
                changed = Changed::Layout;
            }
        }
        done(changed)
    }

    fn report_positions(&mut self, positions: &[(NodeId, u64)]) -> Applied {
        check_batch(positions.len())?;
        let mut changed = Changed::Nothing;
        for (node, position) in positions {
            if !self.nodes.contains_key(node) {
                continue;
            }
            if *position > self.position(*node) {
                Arc::make_mut(&mut self.positions).insert(*node, *position);
                changed = Changed::Inside;
            }
        }
        done(changed)
    }

    fn create_pool(&mut self, name: &str, size: u8, pg_num: u32, domain: FailureDomain, ack: Ack) -> Applied {
        check_name(name)?;
        if self.pool_named(name).is_some() {
            return Err(MapError::Exists { what: "pool".to_owned(), name: name.to_owned() });
        }
        if self.pools.len() >= POOLS_MAX {
            return Err(full("pools", POOLS_MAX as u64));
        }
        // A node or leader takes no configuration of more than SLOTS_MAX: I/O would wait for ever.
        super::admin::check_copies(size)?;
        // At most PGS_MAX: it was checked each time that the map grew.
        let used = self.pgs.len() as u32;
        let most = POOL_PGS_MAX.min(PGS_MAX - used);
        if pg_num == 0 || pg_num > most {
            return Err(MapError::Invalid(format!(
                "{pg_num} placement groups: choose 1 to {most}; a pool may have {POOL_PGS_MAX}, a cluster \
                 {PGS_MAX} in all"
            )));
        }
        let rule = self.rule(domain)?;
        let id = self.next_pool;
        let pool = Pool { name: name.to_owned(), size, pg_num, pg_num_first: pg_num, rule, ack };
        let pgs = self.place(id, &pool)?;
        self.pgs.0.insert(id, pgs);
        self.pools.insert(id, pool);
        self.next_pool = PoolId(id.0 + 1);
        Ok((Reply::Pool(id), Changed::Layout))
    }

    fn rule(&self, domain: FailureDomain) -> Result<u32, MapError> {
        let name = match domain {
            FailureDomain::Host => RULE_HOST,
            FailureDomain::Osd => RULE_OSD,
            FailureDomain::Rule(id) if self.crush.has_rule(id) => return Ok(id),
            FailureDomain::Rule(id) => return Err(missing("CRUSH rule", id)),
        };
        let rule = self.crush.def().rules.iter().find(|rule| rule.name == name);
        rule.map(|rule| rule.id).ok_or_else(|| missing("CRUSH rule", name))
    }

    /// Where CRUSH puts the groups of a new pool. Nodes that are down count: they come back, and if they
    /// do not, their places are taken one at a time. Devices that no node has registered do not.
    fn place(&self, id: PoolId, pool: &Pool) -> Result<PgTable, MapError> {
        let mut placer = self.placer();
        let mut pgs = PgTable::default();
        for pg in 0..pool.pg_num {
            pgs.push(&PgConfig::simple(Epoch(1), placer.place(id, pool, pg)?));
        }
        Ok(pgs)
    }

    fn create_volume(
        &mut self,
        name: &str,
        pool: &str,
        size: u64,
        object_size: u64,
        io_timeout: Option<u64>,
    ) -> Applied {
        check_name(name)?;
        if self.volume_named(name).is_some() {
            return Err(MapError::Exists { what: "volume".to_owned(), name: name.to_owned() });
        }
        let (pool_id, it) = self.pool_named(pool).ok_or_else(|| missing("pool", pool))?;
        if size == 0 || !size.is_multiple_of(BLOCK_SIZE as u64) || size > VOLUME_SIZE_MAX {
            return Err(MapError::BadSize(size));
        }
        let possible = OBJECT_SIZE_MIN..=OBJECT_SIZE_MAX;
        if !object_size.is_power_of_two() || !possible.contains(&object_size) {
            return Err(MapError::BadObjectSize(object_size));
        }
        // Groups that a pool of 2^n + m has not split yet are twice as large as the others.
        let slices = u64::from(it.pg_num.checked_next_power_of_two().unwrap_or(u32::MAX));
        let slices = if u64::from(it.pg_num) == slices { slices } else { slices / 2 };
        let mean = size.div_ceil(object_size).div_ceil(slices);
        // Hashing spreads objects like balls over bins: for n that matter here, six deviations.
        let objects = mean + 6 * mean.isqrt();
        if objects > GROUP_OBJECTS_MAX as u64 || size.div_ceil(object_size) > u64::from(u32::MAX) {
            return Err(MapError::GroupTooLarge { objects });
        }
        if io_timeout == Some(0) {
            let text = "an I/O timeout of 0 ms would fail everything: leave it out to wait".to_owned();
            return Err(MapError::Invalid(text));
        }
        if self.volumes.len() >= VOLUMES_MAX {
            return Err(full("volumes", VOLUMES_MAX as u64));
        }
        let id = self.next_volume;
        let volume = Volume {
            name: name.to_owned(),
            pool: pool_id,
            size,
            object_size,
            generation: Generation(0),
            holder: None,
            clean: true,
            io_timeout,
            snapshots: Vec::new(),
        };
        self.volumes.insert(id, volume);
        self.next_volume = VolumeId(id.0 + 1);
        Ok((Reply::Volume(id), Changed::Layout))
    }

    fn remove_volume(&mut self, id: VolumeId, expired: Option<Generation>) -> Applied {
        let volume = self.volumes.get(&id).ok_or_else(|| missing("volume", id))?;
        if let Some(holder) = &volume.holder
            && holder.kind == HolderKind::FrontEnd
            && expired != Some(volume.generation)
        {
            return Err(MapError::Attached { name: volume.name.clone(), holder: holder.name.clone() });
        }
        self.volumes.remove(&id);
        done(Changed::Layout)
    }

    fn grant(&mut self, grants: &[Grant], holder: &Holder) -> Applied {
        check_batch(grants.len())?;
        if holder.name.is_empty() || holder.name.len() > HOLDER_LEN_MAX || holder.boot == 0 {
            return Err(MapError::Invalid(format!(
                "a holder needs a name of 1 to {HOLDER_LEN_MAX} bytes and a boot id that is not 0"
            )));
        }
        // Who leads must know where the copies are.
        if self.restored.unchecked {
            return Err(MapError::Unchecked);
        }
        let mut seen = BTreeSet::new();
        if !grants.iter().all(|grant| seen.insert(grant.volume)) {
            let text = "a volume is named twice in one grant".to_owned();
            return Err(MapError::Invalid(text));
        }
        let results: Vec<_> = grants.iter().map(|it| self.grant_one(it, holder)).collect();
        let changed = match results.iter().any(Result::is_ok) {
            true => Changed::Inside,
            false => Changed::Nothing,
        };
        Ok((Reply::Granted(results), changed))
    }

    fn grant_one(&mut self, grant: &Grant, holder: &Holder) -> Result<Generation, MapError> {
        let gone = || missing("volume", grant.volume);
        let volume = self.volumes.get(&grant.volume).ok_or_else(gone)?;
        let current = volume.generation;
        if current != grant.seen {
            let given = grant.seen;
            return Err(MapError::Stale { given, current });
        }
        let next = Generation(current.max(grant.above).0.saturating_add(1));
        // A peer that claims an absurd promise must not use up the generations.
        if next.0 > Ballot::GENERATION_MAX {
            return Err(MapError::Invalid(format!("{next} is beyond the last generation")));
        }
        let volume = self.volumes.get_mut(&grant.volume).ok_or_else(gone)?;
        volume.generation = next;
        volume.holder = Some(holder.clone());
        volume.clean = false;
        Ok(next)
    }

    fn release(&mut self, volumes: &[(VolumeId, Generation, bool)]) -> Applied {
        check_batch(volumes.len())?;
        let mut changed = Changed::Nothing;
        for (id, generation, clean) in volumes {
            // One that is gone, or that somebody else holds by now, needs no release.
            let held = |it: &Volume| it.generation == *generation && it.holder.is_some();
            if self.volumes.get(id).is_some_and(|it| held(it))
                && let Some(volume) = self.volumes.get_mut(id)
            {
                volume.holder = None;
                volume.clean = *clean;
                changed = Changed::Inside;
            }
        }
        done(changed)
    }

    /// A CRUSH map without the rule of that pool.
    pub(super) fn rule_is_missing(&self, pool: &Pool) -> MapError {
        MapError::Crush(format!(
            "pool {:?} needs rule {}, which the new map does not have",
            pool.name, pool.rule
        ))
    }

    fn set_crush(&mut self, crush: &CrushMap) -> Applied {
        if let Some(pool) = self.pools.values().find(|pool| !crush.has_rule(pool.rule)) {
            return Err(self.rule_is_missing(pool));
        }
        self.crush = Arc::new(crush.clone());
        done(Changed::Layout)
    }

    fn replace_crush(&mut self, seen: u64, crush: &CrushMap) -> Applied {
        // Asked twice, or two had the same thought: there is nothing to lose.
        if *crush == *self.crush {
            return done(Changed::Nothing);
        }
        if seen != self.crush_version {
            return Err(MapError::CrushChanged { seen, current: self.crush_version });
        }
        self.set_crush(crush)
    }
}
