//! `trefoil`: every daemon and the administrator's command line in one binary.
mod cmd;
fn main() {}
