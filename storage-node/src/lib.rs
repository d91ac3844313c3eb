//! The storage node: a log-structured store and its daemon.
