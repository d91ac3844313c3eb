//! The store, on simulated devices and on files: histories, power cuts, faults, damage, limits, and what the offline
//! tool makes of it. One program for all of it: each one takes long to build.
//!
//! No test here may start a process: until that has become another program, it has the locks of the stores that other
//! tests have open, and sled does not wait for them. `tests/device` and `store_files.rs` do so. `store_bugs.rs` silences
//! panics, of which there is one hook in a process.

mod common;
mod crash;
mod crash_uring;
mod damage;
mod faults;
mod golden;
mod limits;
mod lives;
mod model;
mod offline_check;
mod offline_common;
mod offline_index;
mod offline_object;
mod offline_volume;
mod rot;
mod split;
