//! The leader's machine: rules 5.1 to 6.5 of `docs/protocol.md`.
#![allow(missing_docs)]
mod api;
use crate::ids::*;
pub use api::*;

/// The machine: one volume, one generation.
pub struct Leader<P> {
    p: std::marker::PhantomData<P>,
}

impl<P: Clone> Leader<P> {
    /// A leader with a generation of its own.
    pub fn new(_now: Time, _spec: VolumeSpec, _options: Options) -> Leader<P> {
        Leader { p: Default::default() }
    }
    /// Takes one input, in the order in which things happened; adds what is to be done to `out`.
    pub fn handle(&mut self, _now: Time, _input: Input<P>, _out: &mut Vec<Output<P>>) {}
    /// When the next [`Input::Tick`] is wanted; `None`: not before another input.
    pub fn next_tick(&self) -> Option<Time> {
        None
    }
}
