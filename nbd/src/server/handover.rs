//! Connections on their way from one shard's server to another's.
//!
//! Listeners are the first shard's. Which volume a client wants is known only when its handshake says so (GO,
//! EXPORT_NAME), and a volume is served by one shard: the connection goes there, between two steps of the handshake.
//! What goes with it is all that there is of it: the socket, the protocol's state with the option that waits for its
//! answer and the replies that were not sent, and the bytes that were read and not looked at. No request is under way
//! then, so nothing can be lost or done twice. It may go on from there to a third shard: the option may fail, and the
//! next one name another export.
//!
//! On its way it is nobody's, and nobody's deadline runs. It waits in a queue of [`QUEUE_MAX`]; where that is full, in
//! front of it, still served by the shard that it comes from. A shard that is stopped closes what it finds there.

use super::share::{Process, Slot};
use crate::proto::{Lookup, Session};
use bytes::BytesMut;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::Instant;
use trefoil_transport::LooseStream;

/// Connections that wait to be taken over by one shard.
const QUEUE_MAX: usize = 64;
/// How often one look-up may be passed on: each time the map has changed in between.
pub(super) const HOPS_MAX: u32 = 8;

/// A connection on its way.
pub(super) struct Moving {
    pub stream: LooseStream,
    /// Waits for the answer to the look-up below.
    pub session: Session,
    /// Read, and not parsed.
    pub unparsed: BytesMut,
    /// The end of the stream has been met.
    pub hung_up: bool,
    pub lookup: (Lookup, String),
    /// See [`crate::disk::Elsewhere::known`].
    pub known: u64,
    /// How often this look-up was passed on.
    pub hops: u32,
    /// The end of its time for the handshake.
    pub deadline: Option<Instant>,
    /// When it left.
    pub left: Instant,
    /// When it was last read from, if it was held back then.
    pub blocked_since: Option<Instant>,
    pub peer: String,
    pub slot: Slot,
}

/// A place in another shard's queue.
pub(super) type Place = mpsc::OwnedPermit<Moving>;

/// One shard's way to the others and theirs to it, and the limits that they share.
pub struct Door {
    pub(super) process: Arc<Process>,
    pub(super) to: Vec<mpsc::Sender<Moving>>,
    pub(super) inbox: mpsc::Receiver<Moving>,
}

/// Doors for so many servers, one each, in the order of the shards' numbers; each is to be given to
/// [`super::Server::behind`] on a thread of its own.
pub fn doors(shards: usize, bytes_max: u64) -> Vec<Door> {
    let process = Process::new(shards, bytes_max);
    let (to, inboxes): (Vec<_>, Vec<_>) = (0..shards).map(|_| mpsc::channel(QUEUE_MAX)).unzip();
    inboxes.into_iter().map(|inbox| Door { process: process.clone(), to: to.clone(), inbox }).collect()
}
