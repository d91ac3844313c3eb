//! Volumes between NBD clients and storage nodes: who leads what, since when, and for whom.
//!
//! | module | what |
//! |---|---|
//! | [`core`] | sessions, leaders and block layers in batches, without tasks |
//! | [`links`] | connections to nodes: book-keeping |
//! | [`front`] | the tasks: nodes, monitors, time |
//! | [`lost`] | telling of nodes that have lost writes (5.9) |
//! | [`exports`] | volumes as NBD exports |
//! | [`cluster`] | what is asked of the monitors |

mod clock;
pub mod cluster;
pub mod core;
pub mod exports;
pub mod front;
pub mod links;
pub mod lost;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
