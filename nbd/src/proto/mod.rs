//! The NBD protocol, server side, sans I/O: fixed newstyle handshake and transmission.
//!
//! ```text
//!  bytes from the client ──► Session::feed ──► Event ──► the server: export look-up, Disk
//!                               │                              │
//!  bytes to the client  ◄── Outbox ◄── answer_* , complete ◄───┘
//! ```
//!
//! [`Session`] is one connection's state machine. It owns no socket, clock, task or export. Nothing
//! that a client sends makes it panic; what it holds is bounded by [`Limits`]. Payloads of writes are
//! slices of the receive buffer, payloads of reads go out as they came from the disk.
//!
//! | file | what |
//! |---|---|
//! | [`wire`] | the protocol's numbers |
//! | `limits` | every bound, and what happens there |
//! | `handshake` | flags, options, information about exports |
//! | `transmission` | requests: parsing and checking |
//! | `reply` | replies: simple, structured, errors |
//! | `outbox` | what waits to be sent |
//! | `session` | ties them together |

mod handshake;
mod limits;
mod outbox;
mod reply;
mod session;
#[cfg(test)]
mod tests;
mod transmission;
pub mod wire;

pub use limits::Limits;
pub use outbox::Outbox;
pub use session::{Close, Event, Lookup, Session};
