//! The storage node's daemon: a store, the node's machine, and the connections of front ends, peers and
//! monitors, on one thread.
//!
//! | module | what |
//! |---|---|
//! | [`storage`] | what is asked of a store |
//! | [`engine`] | the machine between store and connections, in batches, without tasks |
//! | [`connections`] | the tasks around it |
//! | [`peers`] | connections to other nodes |
//! | [`verify`] | checksums of blocks that come off the wire |

pub(crate) mod connections;
pub(crate) mod engine;
pub(crate) mod peers;
pub(crate) mod storage;
pub(crate) mod verify;
