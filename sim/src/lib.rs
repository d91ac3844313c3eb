//! The simulator: whole clusters on one thread, under one seed.
