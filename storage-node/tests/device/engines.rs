//! Both engines on files, without root: io_uring refused in every way that kernels refuse it, a log that
//! waits for no read, zeroing that leaves nothing for the file system to do.

use crate::common::*;
use nix::fcntl::{FcntlArg, Flock, FlockArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use trefoil_storage_node::device::file::{Engine, FileDevice, OpenDeviceError, RawDevice};
use trefoil_storage_node::device::{Completion, Device, Op, PART_BYTES, Prepare};

const CHILD: &str = "TREFOIL_TEST_FALLBACK_DIR";

/// Makes the kernel answer a system call with an error, for this process and its children, for good.
#[allow(unsafe_code)]
fn refuse(call: libc::c_long, errno: i32) -> io::Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    // The number of the call is at the start of what the filter is given.
    let filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: plain system calls; the kernel copies the program while it is called.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0
    };
    if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[test]
fn where_io_uring_is_refused_threads_do_the_work() {
    let myself = std::env::current_exe().expect("a path");
    // As `kernel.io_uring_disabled` and containers refuse it; as an old kernel does; a filter that lets a
    // ring be made and not used; no memory to lock.
    let refusals = [
        (libc::SYS_io_uring_setup, libc::EPERM),
        (libc::SYS_io_uring_setup, libc::ENOSYS),
        (libc::SYS_io_uring_setup, libc::ENOMEM),
        (libc::SYS_io_uring_enter, libc::EPERM),
        (libc::SYS_io_uring_enter, libc::ENOSYS),
        (libc::SYS_io_uring_register, libc::EACCES),
    ];
    for (call, errno) in refusals {
        let dir = tempfile::tempdir().expect("directory");
        File::create(dir.path().join("device")).and_then(|file| file.set_len(SIZE)).expect("made");
        let mut child = Command::new(&myself);
        child
            .args(["--exact", "engines::child_that_is_refused_io_uring", "--nocapture"])
            .env(CHILD, dir.path());
        // SAFETY: between fork and exec it makes two system calls and touches the stack alone.
        #[allow(unsafe_code)]
        unsafe {
            child.pre_exec(move || refuse(call, errno));
        }
        let output = child.output().expect("runs");
        let told =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "call {call}, error {errno}: {told}");
        assert!(told.contains("on threads"), "{told}");
    }
}

/// Not a test by itself.
#[test]
fn child_that_is_refused_io_uring() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = Path::new(&dir);
    let device = device(&dir.join("device"), Engine::Auto);
    assert!(!device.is_uring());
    drop(device);
    use_as_store(&dir.join("device"), dir, [Engine::Auto, Engine::Auto]);
    println!("on threads");
}

#[test]
fn on_threads_the_log_waits_for_no_read() {
    // Where writing is fast and reading is a matter of copying.
    let shm = Path::new("/dev/shm");
    let file =
        if shm.is_dir() { tempfile::NamedTempFile::new_in(shm) } else { tempfile::NamedTempFile::new() };
    let file = file.expect("file");
    file.as_file().set_len(16 << 20).expect("extended");
    const READS: u64 = 16;
    // The machine may be busy; a device that queues the write behind the reads fails each time, as the
    // write is then not begun before all but a few of them have ended.
    let early = (0..5).any(|_| {
        let raw = RawDevice::open(file.path(), false).expect("opens");
        let mut device = FileDevice::new(raw, Engine::Blocking).expect("starts");
        let ready: Vec<_> = (0..READS).map(|_| buffer(16 << 20, 0)).collect();
        let bufs = data(4096, 1);
        for (id, buf) in (0..READS).zip(ready) {
            device.start(id, Op::Read { offset: 0, buf });
        }
        device.start(READS, Op::Write { offset: 0, bufs, gently: false });
        device.submit().expect("submitted");
        let mut out = Vec::new();
        while (out.len() as u64) <= READS {
            device.completions(&mut out);
        }
        let at = out.iter().position(|c| c.id == READS).expect("has ended") as u64;
        eprintln!("the write ended after {at} of {READS} reads");
        at <= READS / 2
    });
    assert!(early);
}

#[test]
fn zeroing_leaves_extents_that_are_written() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("device");
    let file = File::create(&path).expect("made");
    nix::fcntl::posix_fallocate(&file, 0, 16 << 20).expect("allocated");
    file.write_all_at(&[5; 4096], 10 << 20).expect("written");
    let unwritten = |from: u64, to: u64| -> Option<bool> {
        // Blocks of 4 KiB; a line per extent: number, logical first..last, physical, length, flags.
        let shown = run("filefrag", &["-v", "-b4096", path.to_str()?])?;
        let extents = shown.lines().filter_map(|line| {
            let range = line.split(':').nth(1)?.trim();
            let (first, last) = range.split_once("..")?;
            Some((
                first.trim().parse::<u64>().ok()?,
                last.trim().parse::<u64>().ok()?,
                line.contains("unwritten"),
            ))
        });
        Some(
            extents
                .filter(|(_, _, flag)| *flag)
                .any(|(first, last, _)| first < to / 4096 && last >= from / 4096),
        )
    };
    let mut device = device(&path, Engine::Auto);
    assert_eq!(device.prepare(), Prepare::Zero);
    let before = unwritten(2 << 20, 10 << 20);
    assert!(one(&mut device, Op::Zero { offset: 2 << 20, len: 8 << 20 }).result.is_ok());
    match (before, unwritten(2 << 20, 10 << 20)) {
        (Some(true), after) => assert_eq!(after, Some(false)),
        _ => eprintln!("skipped: filefrag tells of no unwritten extents on this file system"),
    }
    let mut after = [0; 4096];
    File::open(&path).and_then(|file| file.read_exact_at(&mut after, 10 << 20)).expect("read");
    assert_eq!(after, [5; 4096], "not a byte more than was named");
    // A discard of a file leaves its space and its content alone.
    assert!(one(&mut device, Op::Discard { offset: 10 << 20, len: 1 << 20 }).result.is_ok());
    let read = one(&mut device, Op::Read { offset: 10 << 20, buf: buffer(4096, 0) });
    assert_eq!(read.buf.expect("comes back")[..], [5; 4096]);
}

/// The log goes round a file whose segments are zeroed ahead of it.
#[test]
fn a_store_that_runs_behind_the_zeroing_keeps_its_data() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("device");
    File::create(&path).and_then(|file| file.set_len(SIZE)).expect("made");
    let freed = go_round(&path, &dir.path().join("index"));
    assert!(freed > 5, "{freed}");
}

#[test]
fn what_is_no_device_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let pipe = dir.path().join("pipe");
    // A pipe must not be waited for.
    assert!(run("mkfifo", &[pipe.to_str().expect("UTF-8")]).is_some());
    for path in [dir.path(), Path::new("/dev/null"), &pipe] {
        assert!(matches!(RawDevice::open(path, false), Err(OpenDeviceError::Kind { .. })), "{path:?}");
        assert!(matches!(RawDevice::open_read_only(path), Err(OpenDeviceError::Kind { .. })), "{path:?}");
    }
    let nothing = dir.path().join("nothing");
    assert!(matches!(RawDevice::open(&nothing, false), Err(OpenDeviceError::Open { .. })));
    assert!(matches!(RawDevice::open_read_only(&nothing), Err(OpenDeviceError::Open { .. })));
    assert!(!nothing.exists());
}

/// In parts that meet the buffers' bounds anyhow: nothing is left out, and nothing goes elsewhere.
#[test]
fn a_gentle_write_writes_what_any_other_does() {
    let lens = [4096, 300 << 10, 8192, 256 << 10, 4096, 1 << 20, 12 << 10, 512 << 10, 4096];
    let all: usize = lens.iter().sum();
    for engine in [Engine::Auto, Engine::Blocking] {
        for (lens, offset) in
            [(&lens[..], 1 << 20), (&lens[..1], 8192), (&lens[3..4], 0), (&lens[1..2], 4096)]
        {
            let dir = tempfile::tempdir().expect("directory");
            let path = dir.path().join("device");
            File::create(&path).and_then(|file| file.set_len(8 << 20)).expect("made");
            let mut device = device(&path, engine);
            let bufs: Vec<_> = (1..).zip(lens).flat_map(|(fill, len)| data(*len, fill)).collect();
            let wanted = bufs.concat();
            let done = one(&mut device, Op::Write { offset, bufs, gently: true });
            assert!(done.result.is_ok(), "{:?}", done.result);
            assert_eq!((device.stats().writes.ended, device.stats().in_flight), (1, 0));
            assert_eq!(device.stats().writes.bytes, wanted.len() as u64);
            drop(device);
            let file = std::fs::read(&path).expect("read");
            let (before, rest) = file.split_at(offset as usize);
            assert!(rest[..wanted.len()] == wanted[..], "{engine:?}: not what was written");
            assert!(before.iter().chain(&rest[wanted.len()..]).all(|byte| *byte == 0));
        }
    }
    assert!(all > 2 << 20, "several parts");
}

/// A device of 4 MiB of which only `there` is: memory that is sealed against growing. A write across its end is
/// short, and one behind it is refused.
fn cut_off(there: u64, engine: Engine) -> (FileDevice, File) {
    let memory = memfd_create("device", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING);
    let memory = File::from(memory.expect("memory"));
    memory.set_len(there).expect("extended");
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).expect("sealed");
    let device = instead_of_a_file(memory.try_clone().expect("a second handle"), engine);
    (device, memory)
}

/// A device of 4 MiB, opened as any other, whose operations go to `file`.
fn instead_of_a_file(file: File, engine: Engine) -> FileDevice {
    let opened = tempfile::NamedTempFile::new().expect("file");
    opened.as_file().set_len(4 << 20).expect("extended");
    let mut raw = RawDevice::open(opened.path(), false).expect("opens");
    raw.file = Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, errno)| errno).expect("locked");
    FileDevice::new(raw, engine).expect("starts")
}

/// Everything that ends until nothing is under way.
fn all_that_ends(device: &mut FileDevice) -> Vec<Completion> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut out = Vec::new();
    while device.in_flight() > 0 {
        device.completions(&mut out);
        assert!(Instant::now() < deadline, "it hangs with {} under way", device.in_flight());
        std::thread::sleep(Duration::from_micros(50));
    }
    // Nothing comes behind it either.
    std::thread::sleep(Duration::from_millis(5));
    device.completions(&mut out);
    out
}

/// Parts that went well are not acknowledged, those behind the one that did not are not written, and the device
/// goes on.
#[test]
fn a_gentle_write_that_fails_in_the_middle_is_one_error() {
    let part = PART_BYTES as u64;
    // Where the third part begins, and within it.
    for there in [2 * part, 2 * part + (100 << 10)] {
        for engine in [Engine::Auto, Engine::Blocking] {
            let (mut device, memory) = cut_off(there, engine);
            device.start(5, Op::Write { offset: 0, bufs: data(4 * PART_BYTES, 7), gently: true });
            // Others at the same time have nothing to do with it.
            device.start(6, Op::Write { offset: 0, bufs: data(4096, 8), gently: false });
            device.start(7, Op::Read { offset: part, buf: buffer(4096, 1) });
            device.submit().expect("submitted");
            let mut ended = all_that_ends(&mut device);
            ended.sort_by_key(|completion| completion.id);
            assert_eq!(ended.iter().map(|c| c.id).collect::<Vec<_>>(), [5, 6, 7], "each once");
            let error = ended[0].result.as_ref().expect_err("not all of it is there").to_string();
            let place = format!("write of {PART_BYTES} bytes at byte {}", 2 * part);
            assert!(error.starts_with(&place), "the part that failed: {error}");
            assert!(error.contains("fewer than when it was opened"), "{error}");
            assert!(ended[1].result.is_ok() && ended[2].result.is_ok());
            let writes = device.stats().writes;
            assert_eq!((writes.ended, writes.errors, writes.bytes), (2, 1, 4096));
            assert_eq!(memory.metadata().expect("there").len(), there, "nothing behind its end");
            // It takes the next one as if nothing had been.
            device.start(8, Op::Write { offset: 0, bufs: data(2 * PART_BYTES, 9), gently: true });
            device.submit().expect("submitted");
            let ended = all_that_ends(&mut device);
            assert!(ended.len() == 1 && ended[0].id == 8 && ended[0].result.is_ok());
            let mut bytes = vec![0; 2 * PART_BYTES];
            memory.read_exact_at(&mut bytes, 0).expect("read");
            assert!(bytes.iter().all(|byte| *byte == 9));
        }
    }
}

/// What was written and not flushed is not acknowledged. (`/dev/null` takes every write and knows no flush.)
#[test]
fn a_gentle_write_whose_flush_fails_is_one_error() {
    for engine in [Engine::Auto, Engine::Blocking] {
        let null = File::options().read(true).write(true).open("/dev/null").expect("there");
        let mut device = instead_of_a_file(null, engine);
        device.start(5, Op::Write { offset: 0, bufs: data(3 * PART_BYTES, 7), gently: true });
        device.submit().expect("submitted");
        let ended = all_that_ends(&mut device);
        assert_eq!((ended.len(), ended[0].id), (1, 5));
        assert!(ended[0].result.is_err(), "{engine:?}: acknowledged without a flush");
        assert_eq!((device.stats().writes.errors, device.in_flight()), (1, 0));
    }
}

/// The device is closed while gentle writes have parts left: it waits for what is with the kernel, and that ends.
#[test]
fn a_device_is_closed_in_the_middle_of_a_gentle_write() {
    for engine in [Engine::Auto, Engine::Blocking] {
        let (mut device, _memory) = cut_off(4 << 20, engine);
        for id in 0..4 {
            device.start(id, Op::Write { offset: 0, bufs: data(4 << 20, 7), gently: true });
        }
        device.submit().expect("submitted");
        let begun = Instant::now();
        drop(device);
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
