//! What a front end asks of the monitors. One narrow door, so that sessions can be tested without any.

use crate::disk::LocalFuture;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trefoil_core::leader::report::NodeReport;
use trefoil_core::map::lease::Renewal;
use trefoil_core::map::{ClusterMap, Holder, HolderKind};
use trefoil_core::{Generation, GroupId, Incarnation, NodeId, VolumeId};

/// The monitors do not answer. What is attached goes on without them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the monitors do not answer: {0}")]
pub struct Unreachable(pub String);

/// A generation.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// It.
    pub generation: Generation,
    /// When the request was sent that was answered: the lease runs from here.
    pub sent: Instant,
    /// How long the lease lasts.
    pub lease: Duration,
}

/// Why a volume is not granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// Somebody else has it, and has been asked to let go.
    #[error("attached by {}", holder.name)]
    Busy {
        /// Who.
        holder: Holder,
        /// When its lease will have run out, unless it is renewed.
        retry_after: Duration,
    },
    /// There is no such volume.
    #[error("there is no such volume")]
    Missing,
    /// The monitors refuse for another reason.
    #[error("refused by the monitors: {0}")]
    Refused(String),
    /// See [`Unreachable`].
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
}

/// Why the monitors do not say whether a node has taken note of what it lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LostDataError {
    /// They do not take it: this process does not hold the volume with that generation any more, or the node is not
    /// one of the cluster. Telling it again changes nothing.
    #[error("refused by the monitors: {0}")]
    Refused(String),
    /// See [`Unreachable`].
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
}

/// The answer to a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewals {
    /// When the request was sent that was answered: leases run from here.
    pub sent: Instant,
    /// Volume by volume.
    pub volumes: Vec<(VolumeId, Renewal)>,
    /// Groups that nodes say differ: to be opened in the background.
    pub differing: Vec<GroupId>,
}

/// The monitors.
pub trait Cluster {
    /// The newest map that is known here.
    fn map(&self) -> Arc<ClusterMap>;
    /// Resolves when a map is known whose layout is another than `seen`.
    fn map_changed(&self, seen: u64) -> LocalFuture<()>;
    /// A node knows a newer map: ask for it soon.
    fn refresh(&self);
    /// Who has the volume now; asks the monitors, takes nothing.
    fn holder(&self, volume: VolumeId) -> LocalFuture<Result<Option<Holder>, Unreachable>>;
    /// Asks for a generation above `above`. If somebody else has the volume, it is asked to let go.
    fn attach(
        &self,
        volume: VolumeId,
        kind: HolderKind,
        above: Generation,
    ) -> LocalFuture<Result<Granted, AttachError>>;
    /// Renews leases, and tells what their leaders find of the nodes.
    fn renew(
        &self,
        volumes: Vec<(VolumeId, Generation)>,
        nodes: Vec<NodeReport>,
    ) -> LocalFuture<Result<Renewals, Unreachable>>;
    /// Gives generations back; the last says whether every copy is whole.
    fn release(&self, volumes: Vec<(VolumeId, Generation, bool)>) -> LocalFuture<Result<(), Unreachable>>;
    /// Tells that a node has lost what it had reported as durable (5.9), as the leader of that generation has found;
    /// true when the node has taken note. Until then it is to be told again.
    fn lost_data(
        &self,
        volume: VolumeId,
        generation: Generation,
        node: NodeId,
        incarnation: Incarnation,
    ) -> LocalFuture<Result<bool, LostDataError>>;
    /// Volumes that need a healer, each granted to this process as one; at most `max`.
    fn heal(&self, max: usize) -> LocalFuture<Result<Vec<(VolumeId, Granted)>, Unreachable>>;
    /// The name of this process and its boot, as the monitors know it.
    fn me(&self) -> Holder;
}
