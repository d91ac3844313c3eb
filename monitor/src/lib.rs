//! The monitors: the cluster map on Raft.
