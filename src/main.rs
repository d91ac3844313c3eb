//! `trefoil`: every daemon and the administrator's command line in one binary.
fn main() {}
