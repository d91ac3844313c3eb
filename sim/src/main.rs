//! `trefoil-sim`.
fn main() {}
