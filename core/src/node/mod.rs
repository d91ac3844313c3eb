//! The node's machine: rules N1 to N8 of `docs/protocol.md`.
#![allow(missing_docs)]
mod api;
use crate::ids::*;
use crate::record::Durable;
pub use api::*;

/// Who a node is.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its number in the map.
    pub id: NodeId,
}

/// The machine.
pub struct Node<P> {
    p: std::marker::PhantomData<P>,
}

impl<P: Clone> Node<P> {
    /// A node that has recovered this state.
    pub fn new(_config: NodeConfig, _durable: Durable) -> Node<P> {
        Node {
            p: Default::default(),
        }
    }
    /// Takes one input, in the order in which things happened; adds what is to be done to `out`.
    pub fn handle(&mut self, _now: Time, _input: Input<P>, _out: &mut Vec<Output<P>>) {}
    /// Blocks of data that the store has room for. Said before each batch of inputs; writes that need
    /// more are refused before anything is applied.
    pub fn set_room(&mut self, _blocks: u64, _full: bool) {}
    /// The state as of the last record given out.
    pub fn state(&self) -> &Durable {
        unreachable!()
    }
}
