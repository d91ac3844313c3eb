//! The simulator: whole clusters on one thread, under one seed.
//!
//! It drives the very machines that the daemons drive, [`trefoil_core::node::Node`] and
//! [`trefoil_core::leader::Leader`], with a made-up clock, network and disk, and checks after each step
//! that what they do is right. The same seed is the same run, to the last bit; a failing seed is a bug
//! report.
//!
//! A run has two phases. In the first, faults happen, of the kinds and as often as the seed says, and
//! nothing wrong may be seen. Then all faults stop, and everything must become well in bounded time.
//!
//! # Layout
//!
//! | module | what |
//! |---|---|
//! | [`plan`] | what a seed decides: topology, load, odds |
//! | [`world`] | the cluster, its network, its faults |
//! | [`check`] | what must hold, one property per file |
//! | [`runner`] | one seed, many seeds, failures for people |
//! | [`store`] | a node's store with crashes |
//! | [`raft`] | consensus among simulated monitors: the least that is right |
//! | [`payload`] | what stands for bytes |
//! | [`coverage`] | what happened, counted |
//!
//! It does not test the parts that the daemons add: sockets, the log on the device, openraft. Tests of those parts
//! and real processes do that.
#![forbid(unsafe_code)]

pub mod check;
pub mod coverage;
pub mod payload;
pub mod plan;
pub mod queue;
pub mod raft;
pub mod rng;
pub mod runner;
pub mod store;
pub mod trace;
pub mod world;
