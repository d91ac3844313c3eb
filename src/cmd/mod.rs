//! The administrator's commands, one file each.

pub mod crush;
