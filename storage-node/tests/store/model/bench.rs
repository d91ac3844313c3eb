//! The devices that the tests run on: the simulated one, and the real file with whatever engine the
//! kernel allows; both with and without faults in between.

use super::SEGMENT;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use trefoil_core::*;
use trefoil_storage_node::device::faulty::{Faults, Faulty};
use trefoil_storage_node::device::file::{Engine, FileDevice, RawDevice};
use trefoil_storage_node::device::image::{Content, Image, Observer};
use trefoil_storage_node::device::sim::{SimDevice, SimMedium};
use trefoil_storage_node::device::{Device, Prepare};
use trefoil_storage_node::store::{Superblock, format_device};

/// A medium on which devices run, one after the other.
pub trait Bench {
    /// The device.
    type D: Device;
    /// Powers it on.
    fn device(&self, seed: u64) -> Self::D;
    /// Another one of the same kind, that holds this.
    fn with(&self, content: Content) -> Self;
    /// Shows each change to `observer` from now on.
    fn observe(&self, observer: Option<Observer>);
    /// What is on it, and what is under way.
    fn image(&self) -> Image;
    /// True if an operation is under way.
    fn busy(&self) -> bool;
    /// Waits a little, where time passes.
    fn pause(&self);
    /// The image is exact also when a store was dropped with operations under way: what a real file gets of
    /// those is not seen.
    fn is_exact(&self) -> bool {
        true
    }
}

/// One that can lie and fail.
pub trait FaultyBench: Bench {
    /// An empty one of this size.
    fn empty(size: u64) -> Self;
    /// How.
    fn faults(&self) -> &Faults;
}

/// Formats a store with small segments.
pub fn format<B: Bench>(bench: &B) {
    format_with(bench, SEGMENT);
}

/// Formats a store with segments of so many bytes.
pub fn format_with<B: Bench>(bench: &B, segment: u64) {
    let mut device = bench.device(1);
    let sb = Superblock::new(device.size(), segment, Incarnation(0x7777), [3; 16], NodeId(1))
        .expect("large enough");
    format_device(&mut device, &sb).expect("formatted");
}

/// The simulated device as it is.
#[derive(Clone)]
pub struct SimBench {
    /// The medium.
    pub medium: SimMedium,
    /// See [`SimDevice`].
    pub done_percent: u64,
    /// See [`SimDevice`].
    pub prepare: Prepare,
    /// See [`SimDevice`].
    pub slow_reads: u32,
    /// See [`SimDevice`].
    pub slow_writes: u32,
}

impl SimBench {
    /// An empty one of this size.
    pub fn new(size: u64) -> SimBench {
        SimBench {
            medium: SimMedium::new(size),
            done_percent: 60,
            prepare: Prepare::Nothing,
            slow_reads: 0,
            slow_writes: 0,
        }
    }
}

impl Bench for SimBench {
    type D = SimDevice;
    fn device(&self, seed: u64) -> SimDevice {
        let mut device = self.medium.device(seed).expect("an eventfd");
        device.done_percent = self.done_percent;
        device.prepare = self.prepare;
        device.slow_reads = self.slow_reads;
        device.slow_writes = self.slow_writes;
        device
    }
    fn with(&self, content: Content) -> SimBench {
        SimBench { medium: SimMedium::of(content), ..self.clone() }
    }
    fn observe(&self, observer: Option<Observer>) {
        self.medium.observe(observer);
    }
    fn image(&self) -> Image {
        self.medium.image()
    }
    fn busy(&self) -> bool {
        self.medium.busy()
    }
    fn pause(&self) {}
}

/// The simulated device with faults.
#[derive(Clone)]
pub struct FaultySim {
    medium: SimMedium,
    faults: Faults,
}

impl Bench for FaultySim {
    type D = Faulty<SimDevice>;
    fn device(&self, seed: u64) -> Faulty<SimDevice> {
        Faulty::new(self.medium.device(seed).expect("an eventfd"), self.faults.clone())
    }
    fn with(&self, content: Content) -> FaultySim {
        FaultySim { medium: SimMedium::of(content), faults: Faults::new() }
    }
    fn observe(&self, observer: Option<Observer>) {
        self.medium.observe(observer);
    }
    fn image(&self) -> Image {
        self.medium.image()
    }
    fn busy(&self) -> bool {
        self.faults.busy()
    }
    fn pause(&self) {}
}

impl FaultyBench for FaultySim {
    fn empty(size: u64) -> FaultySim {
        let medium = SimMedium::new(size);
        medium.watch(false);
        FaultySim { medium, faults: Faults::new() }
    }
    fn faults(&self) -> &Faults {
        &self.faults
    }
}

/// A real file in a directory of its own, with faults.
#[derive(Clone)]
pub struct FaultyFile {
    dir: Rc<tempfile::TempDir>,
    faults: Faults,
}

impl FaultyFile {
    /// The file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("device")
    }
    fn of(content: &Content) -> FaultyFile {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().expect("a directory");
        let file = std::fs::File::create(dir.path().join("device")).expect("made");
        file.set_len(content.size()).expect("extended");
        content.blocks(|offset, block| file.write_all_at(block, offset)).expect("written");
        let faults = Faults::new();
        faults.record(content.clone());
        FaultyFile { dir: Rc::new(dir), faults }
    }
}

impl Bench for FaultyFile {
    type D = Faulty<FileDevice>;
    fn device(&self, _: u64) -> Faulty<FileDevice> {
        let raw = RawDevice::open(&self.path(), false).expect("opened");
        Faulty::new(FileDevice::new(raw, Engine::Auto).expect("started"), self.faults.clone())
    }
    fn with(&self, content: Content) -> FaultyFile {
        FaultyFile::of(&content)
    }
    fn observe(&self, observer: Option<Observer>) {
        self.faults.observe(observer);
    }
    fn image(&self) -> Image {
        self.faults.image().expect("kept")
    }
    fn busy(&self) -> bool {
        self.faults.busy()
    }
    fn is_exact(&self) -> bool {
        false
    }
    fn pause(&self) {
        std::thread::sleep(Duration::from_micros(20));
    }
}

impl FaultyBench for FaultyFile {
    fn empty(size: u64) -> FaultyFile {
        FaultyFile::of(&Content::new(size))
    }
    fn faults(&self) -> &Faults {
        &self.faults
    }
}
