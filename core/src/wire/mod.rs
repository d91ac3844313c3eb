//! What messages look like on the wire.
//!
//! Formats only: which message is sent when is the protocol's business, and bytes reach a socket in
//! the `trefoil-transport` crate. Everything here decodes bytes from outside and so never panics and
//! never allocates by a length that it has not checked.

mod fixed;
pub mod frame;
pub mod messages;
