//! The storage node.

mod daemon;
