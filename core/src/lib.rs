//! Placement, replication, formats: all of Trefoil's rules, and no I/O.

pub mod crush;
