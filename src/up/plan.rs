//! What a start of `up` will do: what was asked for, laid over what the directory holds.
//!
//! Pure: no file, no socket. Nothing that exists is ever made smaller, replaced or removed; a wish for
//! that is refused with what to do instead.

use super::state::{State, VolumeWanted};
use crate::size::Size;
use anyhow::{bail, ensure};
use std::str::FromStr;
use trefoil_core::ids::BLOCK_SIZE;
use trefoil_core::map::{NAME_LEN_MAX, VOLUME_SIZE_MAX, is_name};

/// Storage nodes where `--nodes` does not say.
pub const NODES_DEFAULT: usize = 3;
/// A majority of three copies needs three nodes.
pub const NODES_MIN: usize = 3;
/// Daemons on one machine, for a trial. A cluster has far more, on many machines.
pub const NODES_MAX: usize = 64;
/// Size of a node where `--node-size` does not say.
pub const NODE_SIZE_DEFAULT: Size = Size(8 << 30);
/// The smallest node: the store's segments and superblocks, and a little data.
pub const NODE_SIZE_MIN: Size = Size(512 << 20);
/// The largest node: what is surely a slip of the finger beyond it.
pub const NODE_SIZE_MAX: Size = Size(1 << 50);
/// The volume of a fresh directory where `--volume` does not say.
pub const VOLUME_DEFAULT: (&str, Size) = ("disk0", Size(1 << 30));
/// Volumes that one `up` is told to make.
pub const VOLUMES_MAX: usize = 256;

/// A `--volume NAME=SIZE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeArg(pub VolumeWanted);

impl FromStr for VolumeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<VolumeArg, String> {
        let (name, size) = text.split_once('=').ok_or("give NAME=SIZE, such as disk0=1GiB".to_owned())?;
        let size: Size = size.parse()?;
        check_volume(name, size).map_err(|error| error.to_string())?;
        Ok(VolumeArg(VolumeWanted { name: name.to_owned(), size }))
    }
}

/// Refuses names and sizes that no volume can have, before anything is started for them.
pub fn check_volume(name: &str, size: Size) -> anyhow::Result<()> {
    ensure!(
        is_name(name),
        "{name:?} is no name for a volume: use 1 to {NAME_LEN_MAX} of A-Z a-z 0-9 . _ -, beginning with a \
         letter or digit"
    );
    let block = BLOCK_SIZE as u64;
    ensure!(size.0 > 0, "volume {name}: a size of 0 is no disk; give at least 4K");
    ensure!(
        size.0 <= VOLUME_SIZE_MAX,
        "volume {name}: {size} is too large; the limit is {}",
        Size(VOLUME_SIZE_MAX)
    );
    ensure!(
        size.0.is_multiple_of(block),
        "volume {name}: {} bytes is not a multiple of {block}; the next possible size is {}",
        size.0,
        size.0.next_multiple_of(block)
    );
    Ok(())
}

/// What was asked for on the command line.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `--nodes`.
    pub nodes: Option<usize>,
    /// `--node-size`.
    pub node_size: Option<Size>,
    /// `--volume`, in order.
    pub volumes: Vec<VolumeWanted>,
}

/// What will be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Nodes that exist.
    pub kept: usize,
    /// Sizes of the nodes that are to be made.
    pub added: Vec<Size>,
    /// Volumes that must exist in the end, in order. Those that do are left as they are.
    pub volumes: Vec<VolumeWanted>,
    /// What to tell the user about it.
    pub notes: Vec<String>,
}

/// Lays `request` over `state` (none: a fresh directory).
///
/// # Errors
///
/// Something impossible, or a change that this version does not make.
pub fn plan(request: &Request, state: Option<&State>) -> anyhow::Result<Plan> {
    if let Some(size) = request.node_size {
        check_node_size(size)?;
    }
    if let Some(nodes) = request.nodes {
        ensure!(
            nodes >= NODES_MIN,
            "--nodes {nodes}: Trefoil keeps three copies and a majority of them decides, so it needs at least \
             {NODES_MIN} storage nodes (pools with fewer copies come with a later version)"
        );
        ensure!(nodes <= NODES_MAX, "--nodes {nodes}: one `up` runs at most {NODES_MAX} nodes");
    }
    ensure!(request.volumes.len() <= VOLUMES_MAX, "at most {VOLUMES_MAX} --volume at once");
    for (i, volume) in request.volumes.iter().enumerate() {
        check_volume(&volume.name, volume.size)?;
        let twice = request.volumes[..i].iter().any(|other| other.name == volume.name);
        ensure!(!twice, "--volume {} is given twice: leave one out", volume.name);
    }
    let Some(state) = state else { return Ok(fresh(request)) };
    again(request, state)
}

fn check_node_size(size: Size) -> anyhow::Result<()> {
    ensure!(
        (NODE_SIZE_MIN..=NODE_SIZE_MAX).contains(&size),
        "--node-size {size} is outside {NODE_SIZE_MIN} to {NODE_SIZE_MAX}"
    );
    let block = BLOCK_SIZE as u64;
    ensure!(
        size.0.is_multiple_of(block),
        "--node-size: {} bytes is not a multiple of {block}; the next possible size is {}",
        size.0,
        size.0.next_multiple_of(block)
    );
    Ok(())
}

fn fresh(request: &Request) -> Plan {
    let size = request.node_size.unwrap_or(NODE_SIZE_DEFAULT);
    let nodes = request.nodes.unwrap_or(NODES_DEFAULT);
    let mut volumes = request.volumes.clone();
    if volumes.is_empty() {
        let (name, size) = VOLUME_DEFAULT;
        volumes.push(VolumeWanted { name: name.to_owned(), size });
    }
    let notes = vec![format!("new: a monitor and {nodes} storage nodes of {size} each (sparse until used)")];
    Plan { kept: 0, added: vec![size; nodes], volumes, notes }
}

fn again(request: &Request, state: &State) -> anyhow::Result<Plan> {
    let kept = state.nodes.len();
    let nodes = request.nodes.unwrap_or(kept);
    if nodes < kept {
        bail!(
            "--nodes {nodes}: there are {kept} nodes, and taking nodes away would take copies away (this \
             version does not move them); leave --nodes out, or start afresh in another --dir"
        );
    }
    let mut sizes: Vec<Size> = state.nodes.iter().map(|node| node.size).collect();
    sizes.sort();
    sizes.dedup();
    let texts: Vec<String> = sizes.iter().map(Size::to_string).collect();
    let mut notes = vec![format!("kept: {kept} storage nodes of {}", texts.join(" or "))];
    let added = vec![request.node_size.unwrap_or(NODE_SIZE_DEFAULT); nodes - kept];
    match (request.node_size, added.first()) {
        (Some(size), None) if sizes != [size] => bail!(
            "--node-size {size}: the nodes have {}, and a node's size does not change; leave --node-size out, add \
             nodes of that size with --nodes, or start afresh in another --dir",
            texts.join(" or ")
        ),
        (_, Some(size)) => notes.push(format!(
            "added: {} storage nodes of {size}; volumes of pools that exist stay where they are",
            added.len()
        )),
        (_, None) => {}
    }
    // What an interrupted start still owes comes first; a wish with the same name replaces it.
    let owed = state.volumes_wanted.iter();
    let owed = owed.filter(|owed| !request.volumes.iter().any(|volume| volume.name == owed.name));
    let volumes = owed.chain(&request.volumes).cloned().collect();
    Ok(Plan { kept, added, volumes, notes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::state::NodeState;

    fn wanted(text: &str) -> VolumeWanted {
        text.parse::<VolumeArg>().unwrap().0
    }

    fn state(sizes: &[u64]) -> State {
        let address = "127.0.0.1:1".parse().unwrap();
        let node = |(i, size): (usize, &u64)| NodeState {
            name: format!("node-{i}"),
            size: Size(*size),
            address,
            made: true,
        };
        State {
            version: 1,
            monitor: address,
            more_monitors: vec![],
            nodes: sizes.iter().enumerate().map(node).collect(),
            volumes_wanted: vec![],
            nbd_listen: address,
            nbd_socket: "/x".into(),
            metrics: Default::default(),
        }
    }

    const G8: u64 = 8 << 30;

    #[test]
    fn a_fresh_directory_gets_the_defaults() {
        let plan = plan(&Request::default(), None).unwrap();
        assert_eq!((plan.kept, plan.added), (0, vec![NODE_SIZE_DEFAULT; 3]));
        assert_eq!(plan.volumes, [wanted("disk0=1GiB")]);
        let request = Request { volumes: vec![wanted("a=4K")], nodes: Some(5), ..Request::default() };
        let plan = super::plan(&request, None).unwrap();
        assert_eq!((plan.added.len(), plan.volumes), (5, vec![wanted("a=4K")]));
    }

    #[test]
    fn what_exists_is_kept_and_more_is_added() {
        let state = state(&[G8; 3]);
        let same = Request { nodes: Some(3), node_size: Some(Size(G8)), ..Request::default() };
        for request in [Request::default(), same] {
            let plan = plan(&request, Some(&state)).unwrap();
            assert_eq!((plan.kept, plan.added.len(), plan.volumes.len()), (3, 0, 0));
        }
        let size = Size(16 << 30);
        let more = Request { nodes: Some(5), node_size: Some(size), ..Request::default() };
        let plan = plan(&more, Some(&state)).unwrap();
        assert_eq!((plan.kept, plan.added), (3, vec![size; 2]));
        assert!(plan.notes[1].contains("added: 2 storage nodes of 16 GiB"), "{:?}", plan.notes);
    }

    #[test]
    fn an_interrupted_start_is_completed() {
        let mut state = state(&[G8; 3]);
        state.volumes_wanted = vec![wanted("a=1G"), wanted("b=1G")];
        let request = Request { volumes: vec![wanted("b=2G"), wanted("c=3G")], ..Request::default() };
        let plan = plan(&request, Some(&state)).unwrap();
        assert_eq!(plan.volumes, [wanted("a=1G"), wanted("b=2G"), wanted("c=3G")]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_do() {
        let told = |request: &Request, state: Option<&State>| plan(request, state).unwrap_err().to_string();
        let nodes = |n| Request { nodes: Some(n), ..Request::default() };
        let size = |size| Request { node_size: Some(Size(size)), ..Request::default() };
        let old = state(&[G8; 5]);
        assert!(told(&nodes(2), None).contains("needs at least 3 storage nodes"));
        assert!(told(&nodes(65), None).contains("at most 64"));
        assert!(told(&nodes(3), Some(&old)).contains("there are 5 nodes"));
        assert!(told(&size(16 << 30), Some(&old)).contains("the nodes have 8 GiB"));
        assert!(told(&size(1 << 20), None).contains("outside 512 MiB to 1 PiB"));
        assert!(told(&size(G8 + 1), None).contains("not a multiple of 4096"));
        let twice = Request { volumes: vec![wanted("a=4K"), wanted("a=8K")], ..Request::default() };
        assert!(told(&twice, None).contains("given twice"));
    }

    #[test]
    fn volume_arguments_are_checked() {
        let told = |text: &str| text.parse::<VolumeArg>().unwrap_err();
        assert!(told("disk0").contains("NAME=SIZE"));
        assert!(told("=1G").contains("is no name"));
        assert!(told("a/b=1G").contains("is no name"));
        assert!(told("a=0").contains("a size of 0"));
        assert!(told("a=5000").contains("the next possible size is 8192"));
        assert!(told("a=257T").contains("the limit is 256 TiB"));
        assert!(told("a=big").contains("is no size"));
    }
}
