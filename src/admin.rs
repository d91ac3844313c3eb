//! The administrator's connection to the monitors.
//!
//! Finds them (`--monitor`, `TREFOIL_MONITOR`, a running `trefoil up`), asks, and fails in words. No
//! answer is ever made up: what a monitor has not said is not shown.

use crate::cmd::Global;
use crate::failure::{Failure, Outcome};
use crate::up::{DIR_DEFAULT, dir, state::State};
use crate::view::Snapshot;
use anyhow::{Context, anyhow};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;
use trefoil_core::crush::CrushMap;
use trefoil_core::ids::{BlockRange, NodeId, PgId, PoolId, VolumeId};
use trefoil_core::map::admin::PoolChange;
use trefoil_core::map::{Ack, ClusterMap, Event, FailureDomain, MapError, MoveLimits, Out};
use trefoil_monitor::rpc::{MonitorsStatus, MovesStatus, PgStatus, RpcError, VolumeKey};
use trefoil_monitor::scrub::CopyDoubts;
use trefoil_monitor::{CallError, MonitorClient};
use trefoil_transport::{Hello, Role};

/// The environment variable that names monitors.
pub const MONITOR_ENV: &str = "TREFOIL_MONITOR";
/// Monitors that one command is told of.
const MONITORS_MAX: usize = 16;
/// How long one address may take to accept a connection.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// A volume to be made.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Its pool's name.
    pub pool: String,
    /// Bytes.
    pub size: u64,
    /// Bytes.
    pub object_size: u64,
    /// None: I/O waits.
    pub io_timeout_ms: Option<u64>,
}

/// How long one monitor may take to say how it is.
const EACH_TIMEOUT: Duration = Duration::from_secs(3);
/// A pool to be made.
#[derive(Clone, Debug)]
pub struct NewPool {
    /// Its name.
    pub name: String,
    /// Copies.
    pub copies: u8,
    /// Placement groups.
    pub pg_num: u32,
    /// What puts copies apart.
    pub domain: FailureDomain,
    /// When a write is acknowledged.
    pub ack: Ack,
}

/// What came of replacing the CRUSH map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// It is the map now.
    Done,
    /// Somebody has changed it since it was read. Nothing was done.
    Changed,
}

/// What came of an order to scrub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ordered {
    /// It is given.
    Done,
    /// Not now, and why.
    Later(String),
}

/// A connection to the monitors. Must be used within [`block_on`] or another `LocalSet`.
pub struct Admin {
    client: MonitorClient,
    /// The first that was found.
    found: SocketAddr,
}

/// Runs a short conversation to its end.
pub fn block_on<T>(conversation: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot make a runtime: are there file descriptors left?")?;
    tokio::task::LocalSet::new().block_on(&runtime, conversation)
}

/// What the monitors say now.
pub fn snapshot(global: &Global) -> Outcome<Snapshot> {
    block_on(async { Admin::connect(global)?.snapshot().await })
}

impl Admin {
    /// To the monitors that `global`, the environment or a running `up` name; checks that one of them
    /// is there.
    pub fn connect(global: &Global) -> Outcome<Admin> {
        let mut addresses = find(global)?;
        let address = probe(&addresses).map_err(Failure::unreachable)?;
        // Those before it have just not answered.
        let at = addresses.iter().position(|known| *known == address).unwrap_or(0);
        addresses.rotate_left(at);
        Ok(Admin::at(&addresses))
    }

    /// To monitors that are known to be there or to come: any of them will do. There must be one.
    pub fn at(addresses: &[SocketAddr]) -> Admin {
        // The cluster's id is learned from its first answer.
        let client = MonitorClient::new(addresses.to_vec(), Hello::new(Role::Client, [0; 16]));
        let found = addresses.first().copied().unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
        Admin { client, found }
    }

    /// The monitor that has answered last.
    fn address(&self) -> SocketAddr {
        self.client.address().unwrap_or(self.found)
    }

    fn failed(&self, error: CallError) -> Failure {
        let at = self.address();
        match &error {
            CallError::Answered(RpcError::NotLeading { .. }) => Failure::unreachable(anyhow!(
                "no monitor leads ({error}; at {at}): a majority must be up; see `trefoil monitor status`"
            )),
            CallError::Answered(_) => error.into(),
            CallError::Unavailable(_) => {
                Failure::unreachable(anyhow!("{error} (at {at}): see whether the monitor runs, and its log"))
            }
            CallError::Unsure => error.into(),
            CallError::Malformed(_) => {
                Failure::from(anyhow!("{error} (at {at}): is it another version of Trefoil?"))
            }
        }
    }

    /// The map and the status.
    pub async fn snapshot(&mut self) -> Outcome<Snapshot> {
        let map = self.client.get_map(0).await.map_err(|error| self.failed(error))?;
        let map = map.ok_or_else(|| anyhow!("the monitor has no cluster map to show yet: try again"))?;
        let status = self.client.status().await.map_err(|error| self.failed(error))?;
        let from = self.address().to_string();
        Ok(Snapshot { from, map: (*map).clone(), status })
    }

    /// The whole map as it is now, and who gave it.
    pub async fn map(&mut self) -> Outcome<(String, ClusterMap)> {
        let map = self.client.get_map(0).await.map_err(|error| self.failed(error))?;
        let map = map.ok_or_else(|| anyhow!("the monitor has no cluster map to show yet: try again"))?;
        Ok((self.address().to_string(), (*map).clone()))
    }

    /// The monitors, as their leader knows them; as any of them does where none leads.
    pub async fn monitors(&mut self) -> Outcome<MonitorsStatus> {
        // What needs the leader takes the connection there.
        let _ = self.client.status().await;
        self.client.monitors().await.map_err(|error| self.failed(error))
    }

    /// Makes a monitor that waits to join one of the cluster.
    pub async fn add_monitor(&mut self, id: u64, address: SocketAddr, replaces: Option<u64>) -> Outcome {
        let added = self.client.add_monitor(id, address, replaces).await;
        added.map_err(|error| self.failed(error).context(format!("monitor {id} was not added")))
    }

    /// Takes a monitor out of the cluster.
    pub async fn remove_monitor(&mut self, id: u64, force: bool) -> Outcome {
        let removed = self.client.remove_monitor(id, force).await;
        removed.map_err(|error| self.failed(error).context(format!("monitor {id} was not removed")))
    }

    /// What has happened after the event of that number, and the number of the last one.
    pub async fn events(&mut self, after: u64, wait: Duration) -> Outcome<(Vec<Event>, u64)> {
        self.client.events(after, wait).await.map_err(|error| self.failed(error))
    }

    /// Takes nodes out, or in (`None`).
    pub async fn set_nodes_out(&mut self, nodes: Vec<(NodeId, Option<Out>)>) -> Outcome {
        self.client.set_nodes_out(nodes).await.map_err(|error| self.failed(error))
    }

    /// What is on the move.
    pub async fn moves(&mut self) -> Outcome<MovesStatus> {
        self.client.moves().await.map_err(|error| self.failed(error))
    }

    /// Moves stop where they are, or go on.
    pub async fn pause_moves(&mut self, paused: bool) -> Outcome {
        self.client.pause_moves(paused).await.map_err(|error| self.failed(error))
    }

    /// Undoes a placement group's move.
    pub async fn undo_move(&mut self, pg: PgId) -> Outcome {
        self.client.undo_move(pg).await.map_err(|error| self.failed(error))
    }

    /// Says how much may be moved at once.
    pub async fn set_move_limits(&mut self, limits: MoveLimits) -> Outcome {
        self.client.set_move_limits(limits).await.map_err(|error| self.failed(error))
    }

    /// What the nodes of a placement group have of it.
    pub async fn pg(&mut self, pg: PgId) -> Outcome<PgStatus> {
        self.client.pg(pg).await.map_err(|error| self.failed(error))
    }

    /// Drains a node, or undoes it. `seen`: the version of the CRUSH map that was looked at.
    pub async fn drain_node(&mut self, node: NodeId, drain: bool, seen: u64) -> Outcome<Replaced> {
        match self.client.drain_node(node, drain, seen).await {
            Ok(()) => Ok(Replaced::Done),
            Err(CallError::Answered(RpcError::Refused(MapError::CrushChanged { .. }))) => {
                Ok(Replaced::Changed)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Removes a node that holds nothing.
    pub async fn remove_node(&mut self, node: NodeId) -> Outcome {
        self.client.remove_node(node).await.map_err(|error| self.failed(error))
    }

    /// Changes a setting of a pool.
    pub async fn set_pool(&mut self, pool: String, change: PoolChange) -> Outcome {
        let changed = self.client.set_pool(pool.clone(), change).await;
        changed.map_err(|error| self.failed(error).context(format!("pool {pool} was not changed")))
    }

    /// Mutes a health check that applies.
    pub async fn mute(&mut self, code: String, time: Duration, because: String) -> Outcome {
        self.client.mute(code, time, because).await.map_err(|error| self.failed(error))
    }

    /// Ends a mute.
    pub async fn unmute(&mut self, code: String) -> Outcome {
        self.client.unmute(code).await.map_err(|error| self.failed(error))
    }

    /// Takes note that daemons have died; all, where none is named.
    pub async fn acknowledge_deaths(&mut self, daemons: Vec<String>) -> Outcome {
        self.client.acknowledge_deaths(daemons).await.map_err(|error| self.failed(error))
    }

    /// Has each node of a placement group scrub it now. Not now: as many wait at one of its nodes as can.
    pub async fn order_scrub(&mut self, pg: PgId, deep: bool) -> Outcome<Ordered> {
        match self.client.order_scrub(pg, deep).await {
            Ok(()) => Ok(Ordered::Done),
            Err(CallError::Answered(RpcError::Later(why))) => Ok(Ordered::Later(why)),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Of disputed blocks, one node's copy is to be believed.
    pub async fn settle_blocks(
        &mut self,
        volume: VolumeKey,
        index: u32,
        blocks: BlockRange,
        from: NodeId,
    ) -> Outcome {
        let settled = self.client.settle_blocks(volume, index, blocks, from).await;
        settled.map_err(|error| self.failed(error).context("nothing was settled"))
    }

    /// What the nodes of a placement group have said of blocks there that are in doubt.
    pub async fn doubts(&mut self, pg: PgId) -> Outcome<Vec<CopyDoubts>> {
        self.client.doubts(pg).await.map_err(|error| self.failed(error))
    }

    /// Makes a volume.
    pub async fn create_volume(&mut self, wish: &NewVolume) -> Outcome<VolumeId> {
        let NewVolume { name, pool, size, object_size, io_timeout_ms } = wish.clone();
        let made = self.client.create_volume(name, pool, size, object_size, io_timeout_ms).await;
        let name = wish.name.clone();
        made.map_err(|error| self.failed(error).context(format!("volume {name} was not made")))
    }

    /// Makes a pool.
    pub async fn create_pool(&mut self, wish: &NewPool) -> Outcome<PoolId> {
        let NewPool { name, copies, pg_num, domain, ack } = wish.clone();
        let made = self.client.create_pool(name, copies, pg_num, domain, ack).await;
        let name = wish.name.clone();
        made.map_err(|error| self.failed(error).context(format!("pool {name} was not made")))
    }

    /// Gives a pool that has `seen` placement groups more of them.
    pub async fn set_pg_num(&mut self, pool: PoolId, seen: u32, pg_num: u32) -> Outcome {
        let error = match self.client.set_pg_num(pool, seen, pg_num).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // The answer was lost: the map says whether it was done.
        if matches!(error, CallError::Unsure | CallError::Answered(RpcError::Unsure(_))) {
            let map = self.snapshot().await?.map;
            if map.pools.get(&pool).is_some_and(|pool| pool.pg_num == pg_num) {
                return Ok(());
            }
        }
        Err(self.failed(error).context("the pool has as many placement groups as before"))
    }

    /// Replaces the CRUSH map of that version.
    pub async fn replace_crush(&mut self, seen: u64, crush: &CrushMap) -> Outcome<Replaced> {
        let error = match self.client.replace_crush(seen, crush.clone()).await {
            Ok(()) => return Ok(Replaced::Done),
            Err(error) => error,
        };
        match error {
            CallError::Answered(RpcError::Refused(MapError::CrushChanged { .. })) => Ok(Replaced::Changed),
            // The answer was lost: the map says whether it was done.
            error @ (CallError::Unsure | CallError::Answered(RpcError::Unsure(_))) => {
                let now = self.snapshot().await?.map;
                match *now.crush == *crush {
                    true => Ok(Replaced::Done),
                    false => Err(self.failed(error)),
                }
            }
            error => Err(self.failed(error).context("the CRUSH map was not changed")),
        }
    }

    /// Removes a volume and its data.
    pub async fn remove_volume(&mut self, id: u64) -> Outcome {
        let removed = self.client.remove_volume(VolumeKey::Id(VolumeId(id))).await;
        removed.map_err(|error| self.failed(error).context("the volume was not removed"))
    }
}

/// The monitors' addresses, from the first source that names any.
fn find(global: &Global) -> Outcome<Vec<SocketAddr>> {
    if !global.monitor.is_empty() {
        return named(global);
    }
    if let Ok(text) = std::env::var(MONITOR_ENV)
        && !text.trim().is_empty()
    {
        return addresses(text.split(','), MONITOR_ENV).map_err(Failure::usage);
    }
    let dir = Path::new(DIR_DEFAULT);
    let advice = format!("give --monitor ADDR:PORT or set {MONITOR_ENV}");
    if dir::running_on(dir).is_none() {
        return Err(Failure::unreachable(anyhow!(
            "no monitor is named and no `trefoil up` runs on {DIR_DEFAULT} here: {advice}"
        )));
    }
    match State::load(dir)? {
        Some(state) => Ok(state.monitors()),
        None => {
            Err(Failure::unreachable(anyhow!("`trefoil up` on {DIR_DEFAULT} has just started: try again")))
        }
    }
}

/// What each monitor says by itself: those that are named, and those that they name.
pub async fn each_monitor(global: &Global) -> Outcome<Vec<(SocketAddr, Result<MonitorsStatus, String>)>> {
    let mut addresses = find(global)?;
    let mut answers = Vec::new();
    let mut at = 0;
    while let Some(address) = addresses.get(at).copied() {
        at += 1;
        let client = MonitorClient::new(vec![address], Hello::new(Role::Client, [0; 16]));
        let answer = match tokio::time::timeout(EACH_TIMEOUT, client.monitors()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", EACH_TIMEOUT.as_secs())),
        };
        for monitor in answer.iter().flat_map(|known| &known.monitors) {
            if addresses.len() < MONITORS_MAX && !addresses.contains(&monitor.address) {
                addresses.push(monitor.address);
            }
        }
        answers.push((address, answer));
    }
    Ok(answers)
}

/// What `--monitor` names.
pub fn named(global: &Global) -> Outcome<Vec<SocketAddr>> {
    addresses(global.monitor.iter().map(String::as_str), "--monitor").map_err(Failure::usage)
}

/// Host names are looked up; each may have several addresses.
pub fn addresses<'a>(texts: impl Iterator<Item = &'a str>, from: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let mut found = Vec::new();
    for text in texts.map(str::trim).filter(|text| !text.is_empty()) {
        let looked_up = text.to_socket_addrs().with_context(|| {
            format!("{from}: {text:?} is no address of a monitor; give HOST:PORT, such as 127.0.0.1:10800")
        })?;
        found.extend(looked_up);
    }
    anyhow::ensure!(!found.is_empty(), "{from} names no monitor: give HOST:PORT");
    found.truncate(MONITORS_MAX);
    Ok(found)
}

/// The first that accepts a connection. Fails at once where nothing listens: the client itself would try
/// for a long time, as a daemon must.
fn probe(addresses: &[SocketAddr]) -> anyhow::Result<SocketAddr> {
    let mut reasons = Vec::new();
    for address in addresses {
        match TcpStream::connect_timeout(address, PROBE_TIMEOUT) {
            Ok(_) => return Ok(*address),
            Err(error) => reasons.push(format!("{address}: {error}")),
        }
    }
    Err(anyhow!(
        "no monitor answers ({}): see whether it runs, and whether the address is right",
        reasons.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_looked_up_and_wrong_ones_told() {
        let found = addresses(["127.0.0.1:1", " [::1]:2 ", ""].into_iter(), "--monitor").unwrap();
        assert_eq!(found, ["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse::<SocketAddr>().unwrap()]);
        for bad in ["127.0.0.1", "127.0.0.1:x", ":"] {
            let told = format!("{:#}", addresses([bad].into_iter(), "--monitor").unwrap_err());
            assert!(told.contains("is no address of a monitor"), "{told}");
        }
        let told = format!("{:#}", addresses(["", " "].into_iter(), "X").unwrap_err());
        assert!(told.contains("X names no monitor"), "{told}");
    }

    #[test]
    fn where_nothing_listens_the_answer_comes_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(probe(&["127.0.0.1:1".parse().unwrap(), address]).unwrap(), address);
        drop(listener);
        let told = format!("{:#}", probe(&[address]).unwrap_err());
        assert!(told.contains("no monitor answers") && told.contains(&address.to_string()), "{told}");
    }
}
