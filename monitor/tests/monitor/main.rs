//! Monitors on loopback, with real clients and real time. One program for all of it: each one takes long to build.

mod common;
mod heard;
mod loopback;
mod lost;
mod moving;
mod several;
