//! What a replicated read or write of Trefoil's shape costs at least on this machine: what `trefoil bench
//! floor` runs.
//!
//! The same processes, hops, sizes and device operations as in the product, and nothing else: no protocol, no
//! checksums, no tables, no placement. What the product costs beyond it is ours; what is left is the
//! machine's, and no code above it can remove it.
//!
//! ```text
//! client (plays fio) --unix socket--> front --tcp or unix--> three nodes, each with a file of zeros
//!   write: 96 B + payload to all three, answered after two; each node makes ONE device write of all that
//!          has come meanwhile, one at a time, as the store's log does
//!   read:  96 B to one node in turn, the payload comes back through the front
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`engine`] | the event loops that are compared: sockets and device, on epoll or on one ring |
//! | [`conn`] | a connection's frames: bytes received, bytes to be sent |
//! | [`part`] | the front and the node on an engine |
//! | [`load`] | the client, and the device by itself |
//!
//! The client may have several connections and takes the next one for each request, as the disks of many VMs do.
//!
//! The frames are for processes of one binary on one host. Nothing else may speak them.

pub mod conn;
pub mod engine;
pub mod load;
pub mod part;

use super::usage;
use nix::sys::resource::{UsageWho, getrusage};
use std::fmt;
use std::io;
use std::str::FromStr;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes in front of each payload: about what a request of the product has in front of it.
pub const HEADER: usize = size_of::<Header>();
/// Largest payload.
pub const PAYLOAD_MAX: usize = 4 << 20;
/// Most requests that a client may have under way; the low bits of [`Header::id`] number them.
pub const DEPTH_MAX: usize = 1024;
/// Most connections of the client.
pub const CLIENTS_MAX: usize = 64;
/// Nodes, each of which gets each write.
pub const NODES: usize = 3;
/// Answers after which a write counts.
pub const MAJORITY: u8 = 2;

/// What a frame is. An answer has its request's kind.
pub mod kind {
    /// The payload is to be written.
    pub const WRITE: u32 = 1;
    /// `want` bytes from `offset` are to be read.
    pub const READ: u32 = 2;
    /// The counters of the process are asked for; a front answers with those of all as the payload.
    pub const COUNTERS: u32 = 3;
}

/// What is in front of each payload. In the machine's own byte order: it never leaves the machine.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// See [`kind`].
    pub kind: u32,
    /// The client's place of the request in the low bits ([`DEPTH_MAX`]), above them a running number.
    pub id: u32,
    /// Where to read, in bytes.
    pub offset: u64,
    /// Bytes of payload that follow.
    pub len: u32,
    /// Bytes to read.
    pub want: u32,
    /// In the answer of a node to [`kind::COUNTERS`]; in its others [`Counters::device_ns`] of this request.
    pub counters: Counters,
    /// Up to the size of a request of the product.
    pub padding: u64,
}

impl Header {
    /// From the first bytes of a frame; `None` of fewer than [`HEADER`].
    pub fn of(frame: &[u8]) -> Option<Header> {
        Header::read_from_prefix(frame).ok().map(|(header, _)| header)
    }
}

/// What a process has used and done since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counters {
    /// Nanoseconds of processor time, of all threads.
    pub cpu_ns: u64,
    /// Times that it gave up the processor because there was nothing to do.
    pub switches: u64,
    /// System calls of the event loop.
    pub syscalls: u64,
    /// Times that the event loop brought something.
    pub turns: u64,
    /// Reads and writes of the device.
    pub device_ops: u64,
    /// Of the front: nanoseconds from each request's arrival there to the answer that decides it.
    pub nodes_ns: u64,
    /// Of the front: the part of `nodes_ns` in the node whose answer that was, from the request's arrival to
    /// the end of the device's operation. It says so in the answer: both are sums over the same answers.
    pub device_ns: u64,
    /// Those requests.
    pub decided: u64,
}

impl Counters {
    /// This process's, with what its engine has counted.
    fn now(counted: Counters) -> Counters {
        let switches = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |u| u.voluntary_context_switches());
        Counters {
            cpu_ns: usage::cpu().as_nanos() as u64,
            switches: u64::try_from(switches).unwrap_or(0),
            ..counted
        }
    }

    /// What has been added since `before`.
    pub fn since(&self, before: &Counters) -> Counters {
        self.with(before, u64::saturating_sub)
    }

    /// Of two processes together.
    pub fn and(&self, other: &Counters) -> Counters {
        self.with(other, u64::saturating_add)
    }

    fn with(&self, other: &Counters, op: impl Fn(u64, u64) -> u64) -> Counters {
        Counters {
            cpu_ns: op(self.cpu_ns, other.cpu_ns),
            switches: op(self.switches, other.switches),
            syscalls: op(self.syscalls, other.syscalls),
            turns: op(self.turns, other.turns),
            device_ops: op(self.device_ops, other.device_ops),
            nodes_ns: op(self.nodes_ns, other.nodes_ns),
            device_ns: op(self.device_ns, other.device_ns),
            decided: op(self.decided, other.decided),
        }
    }
}

/// How a process waits for its sockets and its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventLoop {
    /// epoll, `read` and `writev` for sockets; the device on io_uring, which rings an eventfd.
    Epoll,
    /// Sockets and device on one ring, one `io_uring_enter` for each wake-up.
    Ring,
    /// As `Ring`, but looks for a while, giving way to others in between, before it sleeps.
    Poll,
    /// As `Ring`, but with several requests under way it waits a moment for several completions.
    Batch,
}

impl EventLoop {
    /// All, in the order of the table.
    pub const ALL: [EventLoop; 4] = [EventLoop::Epoll, EventLoop::Ring, EventLoop::Poll, EventLoop::Batch];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            EventLoop::Epoll => "epoll",
            EventLoop::Ring => "ring",
            EventLoop::Poll => "poll",
            EventLoop::Batch => "batch",
        }
    }
}

impl fmt::Display for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EventLoop {
    type Err = String;

    fn from_str(text: &str) -> Result<EventLoop, String> {
        let found = EventLoop::ALL.into_iter().find(|how| how.name() == text);
        found.ok_or_else(|| "give epoll, ring, poll or batch".to_owned())
    }
}

/// A peer, which is a process of ours, has sent what it never sends.
fn nonsense(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_as_large_as_that_of_a_request_and_survives_the_way() {
        assert_eq!(HEADER, 96);
        let header = Header { kind: kind::READ, id: 7, offset: 1 << 40, want: 4096, ..Header::default() };
        let read = Header::of(header.as_bytes()).unwrap();
        assert_eq!((read.kind, read.id, read.offset, read.want), (kind::READ, 7, 1 << 40, 4096));
        assert!(Header::of(&header.as_bytes()[..HEADER - 1]).is_none());
    }

    #[test]
    fn counters_are_taken_from_one_another_field_by_field() {
        let one = Counters { cpu_ns: 5, switches: 4, syscalls: 3, turns: 2, ..Counters::default() };
        let two = one.and(&one);
        assert_eq!((two.cpu_ns, two.switches, two.syscalls, two.turns), (10, 8, 6, 4));
        assert_eq!(two.since(&one), one);
        assert_eq!(one.since(&two), Counters::default(), "never below zero");
    }

    #[test]
    fn event_loops_are_known_by_their_names() {
        for how in EventLoop::ALL {
            assert_eq!(how.to_string().parse(), Ok(how));
        }
        assert!("select".parse::<EventLoop>().is_err());
    }
}
