//! The store on real files and block devices: loop devices, mounts, kernels without io_uring. All of it starts processes,
//! which no test in `tests/store` may.

mod common;
mod engines;
mod loop_devices;
