//! Volumes between NBD clients and storage nodes: who leads what, since when, and for whom.
//!
//! | module | what |
//! |---|---|
//! | [`core`] | sessions, leaders and block layers in batches, without tasks |
//! | [`links`] | connections to nodes: book-keeping |
//! | [`front`] | the tasks: nodes, monitors, time |
//! | [`exports`] | volumes as NBD exports |
//! | [`cluster`] | what is asked of the monitors |

mod clock;
pub mod cluster;
pub mod core;
pub mod exports;
pub mod front;
pub mod links;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
