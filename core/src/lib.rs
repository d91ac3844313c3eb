//! The rules of Trefoil, and no I/O.
//!
//! Everything that decides anything lives here: placement ([`crush`]), the replication protocol
//! ([`node`], [`leader`]), the cluster map, the wire format and the records that a
//! storage node makes durable ([`record`]). The daemons and the simulator drive the same code.
//!
//! # Contract
//!
//! Nothing in this crate reads a clock, opens a file or a socket, starts a task or a thread, or draws a
//! random number. Time comes in as a [`Time`], other events as inputs; what is to be done goes out
//! as outputs. The same inputs give the same outputs, on every machine, in every run: maps that are
//! iterated are ordered or hashed with a fixed hasher.
//!
//! # Layout
//!
//! | module | what |
//! |---|---|
//! | [`ids`] | volume, node, group, ballot, head: the nouns of the protocol |
//! | [`message`] | what leaders and nodes say to each other |
//! | [`record`] | what a node makes durable, one record per step |
//! | [`node`] | the node's rules, N1 to N8 of `docs/protocol.md` |
//! | [`leader`] | the leader's rules, 5.1 to 6.5 |
//! | [`crush`] | placement: bit for bit what Ceph's crushtool computes |
//! | [`placement`] | configurations of a placement group, quorums |
//! | [`client`] | what a leader is asked and answers |
//! | [`map`] | the cluster map, leases, liveness: what the monitors agree on |
//! | [`wire`] | frames: what travels between daemons |
//! | [`scrub`] | the majority rule among copies that differ at one head |
//! | [`checksum`] | the 64-bit checksum of a block, which also names the block |
#![forbid(unsafe_code)]

#[cfg(feature = "deliberate-bugs")]
pub mod bugs;
pub mod checksum;
pub mod client;
pub mod crush;
pub mod ids;
pub mod leader;
pub mod limits;
pub mod map;
pub mod message;
pub mod node;
pub mod placement;
pub mod record;
pub mod scrub;
pub mod wire;

pub use ids::*;
