//! Framed, batched connections between Trefoil's daemons, over TCP, and within one host over
//! unix sockets.
//!
//! One thread, one tokio `current_thread` runtime with a `LocalSet`: nothing here is `Send`, and
//! nothing takes a lock. A connection has one [`Reader`], driven by one task, which hands over frames
//! in batches, and any number of [`Sender`]s, which append to a queue without I/O until somebody
//! flushes it.
//!
//! # Reading order
//!
//! [`connect`] and [`serve`] make connections; both begin with a [`Hello`] each way, so that daemons
//! of another cluster or version, and programs that are not Trefoil at all, are told so in words.
//! What travels then is [`trefoil_core::wire::frame`]'s; what it means is not this crate's business.
//!
//! # What it may not do
//!
//! Retry, reorder, drop a frame of a live connection, or wait for a slow peer: a peer whose queue is
//! full is a laggard and loses the connection ([`SendError::Laggard`]). There is no encryption
//! yet: daemons refuse to listen beyond loopback unless they are told to.

mod aligned;
mod connection;
mod handshake;
mod listener;
mod local;
mod poll;
mod rate;
mod stream;
mod unix;

pub use connection::{
    CloseReason, Options, Peer, QUEUE_BYTES_MAX, QUEUE_FRAMES_MAX, ReadError, Reader, SendError, Sender,
};
pub use handshake::{
    CONNECT_TIMEOUT, ConnectError, Connected, Expect, HANDSHAKE_TIMEOUT, Hello, LOCAL_TIMEOUT,
    PROTOCOL_VERSION, Policy, Role, connect,
};
pub use listener::{CONNECTIONS_MAX, ServeOptions, listen, serve};
pub use local::{LocalName, tune as tune_unix};
pub use poll::{BUSY_POLL_US, BUSY_POLL_US_MAX, POLL_DEPTH_MAX, Poller};
pub use rate::RateLimit;
pub use stream::{LooseStream, Stream};
pub use trefoil_core::wire::frame::{Frame, KIND_USER_MIN};
pub use unix::UnixSocket;
