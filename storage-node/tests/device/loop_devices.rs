//! Real block devices: loop devices with sectors of 512 and 4096 bytes. Skipped, with a reason on standard
//! error, where they cannot be had.

use crate::common::*;
use std::os::unix::fs::FileExt;
use trefoil_storage_node::device::file::{Engine, OpenDeviceError, RawDevice};
use trefoil_storage_node::device::info::{DeviceKind, WriteCache};
use trefoil_storage_node::device::signature::signatures;
use trefoil_storage_node::device::{Device, Op, PREPARE_QUEUE_MAX, Prepare};
use trefoil_storage_node::store::{FormatError, FormatHow, Store, format_with};

#[test]
fn a_store_on_sectors_of_512_bytes() {
    let Some(disk) = Loop::new(SIZE, 512) else { return };
    use_as_store(&disk.path, &disk.dir("index"), [Engine::Auto, Engine::Blocking]);
}

#[test]
fn a_store_on_sectors_of_4096_bytes() {
    let Some(disk) = Loop::new(SIZE, 4096) else { return };
    use_as_store(&disk.path, &disk.dir("index"), [Engine::Blocking, Engine::Auto]);
    let info = RawDevice::open(&disk.path, false).expect("opens").info;
    assert_eq!((info.logical_block, info.size), (Some(4096), SIZE));
}

/// The log goes round the device: what is freed is discarded, and written again.
#[test]
fn a_store_that_reuses_discarded_segments_keeps_its_data() {
    let Some(disk) = Loop::new(SIZE, 4096) else { return };
    let freed = go_round(&disk.path, &disk.dir("index"));
    assert!(freed > 10, "{freed}");
}

#[test]
fn what_the_kernel_knows_is_told() {
    let Some(disk) = Loop::new(SIZE, 512) else { return };
    let info = RawDevice::open(&disk.path, false).expect("opens").info;
    assert_eq!((info.kind, info.direct, info.logical_block), (DeviceKind::Block, true, Some(512)));
    assert_eq!(info.disk.as_deref(), disk.path.file_name().and_then(|name| name.to_str()));
    assert_eq!(info.model.as_deref(), disk.backing.to_str(), "of a loop device: its file");
    assert_ne!(info.write_cache, WriteCache::Unknown);
    assert!(info.to_string().contains("sectors of 512 bytes"), "{info}");
}

#[test]
fn a_discard_gives_space_back_and_zeroing_takes_it() {
    let Some(disk) = Loop::new(SIZE, 512) else { return };
    for engine in [Engine::Auto, Engine::Blocking] {
        let mut device = device(&disk.path, engine);
        if device.prepare() != Prepare::Discard {
            eprintln!("skipped: the file system of the backing file cannot punch holes");
            return;
        }
        let (offset, len) = (64 << 20, 8 << 20);
        assert!(one(&mut device, Op::Zero { offset, len }).result.is_ok());
        let written = disk.allocated();
        assert!(written >= len, "{written}");
        let write = Op::Write { offset: offset + len, bufs: data(4096, 7), gently: false };
        assert!(one(&mut device, write).result.is_ok());
        assert!(one(&mut device, Op::Discard { offset, len }).result.is_ok());
        assert!(disk.allocated() <= written - len + 4096, "{} of {written}", disk.allocated());
        // Not a byte more than was named.
        let read = one(&mut device, Op::Read { offset: offset + len, buf: buffer(4096, 0) });
        assert!(read.buf.expect("comes back").iter().all(|byte| *byte == 7));
        let stats = device.stats();
        assert_eq!((stats.prepares.ended, stats.prepares.bytes), (2, 2 * len));
        assert_eq!((stats.writes.ended, stats.reads.ended), (1, 1));
    }
}

#[test]
fn discards_are_bounded_and_those_that_are_refused_say_so() {
    let Some(disk) = Loop::new(SIZE, 512) else { return };
    let mut device = device(&disk.path, Engine::Auto);
    let all = 3 * PREPARE_QUEUE_MAX as u64;
    for id in 0..all {
        device.start(id, Op::Zero { offset: (id % 16) << 24, len: 1 << 20 });
    }
    let mut out = Vec::new();
    device.completions(&mut out);
    let refused =
        out.iter().filter(|c| matches!(&c.result, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock));
    let refused = refused.count() as u64;
    assert!(refused >= all - PREPARE_QUEUE_MAX as u64 - 10, "{refused}");
    assert_eq!(device.in_flight() as u64, all - out.len() as u64);
    // The rest is not waited for when the device is closed.
    let begun = std::time::Instant::now();
    drop(device);
    assert!(begun.elapsed().as_secs() < 5);
}

#[test]
fn a_mounted_device_is_refused_and_told_where() {
    let Some(disk) = Loop::new(SIZE, 512) else { return };
    let Some(mount) = disk.mounted() else {
        eprintln!("skipped: ext4 cannot be mounted here");
        return;
    };
    let at = mount.at.display().to_string();
    for result in [RawDevice::open(&disk.path, false), RawDevice::open_read_only(&disk.path)] {
        match result {
            Err(OpenDeviceError::Held { by, .. }) => assert!(by.contains(&at), "{by}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("opened a mounted device"),
        }
    }
    // Force is for what is on a device, not for what somebody is using.
    let refused = Store::format(&disk.path, &options(true)).expect_err("mounted");
    assert!(matches!(refused, FormatError::Device(OpenDeviceError::Held { .. })), "{refused}");
    assert!(std::fs::write(mount.at.join("still-works"), "yes").is_ok());
    drop(mount);
    // No longer held, but not empty.
    match Store::format(&disk.path, &options(false)) {
        Err(FormatError::NotEmpty { what, .. }) => {
            assert!(what.contains("ext2/3/4 file system (a name)"), "{what}");
        }
        other => panic!("{other:?}"),
    }
    assert!(disk.mounted().is_some(), "untouched");
}

#[test]
fn what_others_know_a_device_by_is_gone_after_a_forced_format() {
    // Not a multiple of 4096, as a partition may be.
    let size = SIZE + 512 * 3;
    let Some(disk) = Loop::new(size, 512) else { return };
    let file = std::fs::OpenOptions::new().write(true).open(&disk.path).expect("opens");
    for (at, magic) in [(510, &[0x55, 0xaa][..]), (512, b"EFI PART"), (size - 512, b"EFI PART")] {
        file.write_all_at(magic, at).expect("written");
    }
    file.sync_all().expect("durable");
    drop(file);
    let mut asked = Vec::new();
    let how = FormatHow {
        discard: true,
        overwrite: &mut |device, found| {
            assert_eq!(device.size, size);
            asked = found.to_vec();
            false
        },
        progress: &mut |_, _| panic!("nothing may be discarded"),
    };
    let refused = format_with(&disk.path, &options(false), how).expect_err("refused");
    assert!(matches!(&refused, FormatError::NotEmpty { .. }), "{refused}");
    assert_eq!(asked.iter().map(|f| f.offset).collect::<Vec<_>>(), [512, size - 512]);
    let mut progress = (0, 0);
    let how = FormatHow {
        discard: true,
        overwrite: &mut |_, _| true,
        progress: &mut |done, of| progress = (done, of),
    };
    let made = format_with(&disk.path, &options(false), how).expect("formatted");
    assert_eq!((made.replaced.len(), made.discard_error), (2, None));
    if made.device.discard_granularity > 0 {
        assert_eq!((made.discarded, progress), (SIZE, (SIZE, SIZE)));
    }
    let left = signatures(&RawDevice::open(&disk.path, false).expect("opens")).expect("read");
    assert!(left.len() == 2 && left.iter().all(|f| f.what.contains("Trefoil store")), "{left:?}");
    assert!(left[0].what.contains("node 4") && left[0].what.contains(&"09".repeat(16)), "{left:?}");
}

#[test]
fn readers_share_and_a_store_is_alone() {
    let Some(disk) = Loop::new(SIZE, 512) else { return };
    let locked = |result: Result<RawDevice, OpenDeviceError>| match result {
        Err(OpenDeviceError::Locked { .. }) => {}
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened"),
    };
    let store = RawDevice::open(&disk.path, false).expect("opens");
    locked(RawDevice::open(&disk.path, false));
    locked(RawDevice::open_read_only(&disk.path));
    drop(store);
    let readers = [RawDevice::open_read_only(&disk.path), RawDevice::open_read_only(&disk.path)];
    let readers = readers.map(|reader| reader.expect("any number of them"));
    locked(RawDevice::open(&disk.path, false));
    assert_eq!(readers[0].prepare(), Prepare::Nothing);
    assert!(readers[0].write_now(0, &buffer(4096, 1)).is_err());
    assert!(readers[0].discard(0, 4096).is_err());
    drop(readers);
    assert!(RawDevice::open(&disk.path, false).is_ok());
}

#[test]
fn a_partition_is_a_device_and_its_disk_is_then_in_use() {
    let Some(disk) = Loop::new(SIZE, 512) else { return };
    // Told to the kernel directly: some are built without any kind of partition table.
    let added = run("addpart", &[disk.str(), "1", "2048", "1000000"]);
    let part = std::path::PathBuf::from(format!("{}p1", disk.str()));
    for _ in 0..100 {
        if added.is_none() || part.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    if !part.exists() {
        eprintln!("skipped: the kernel shows no partition {}", part.display());
        return;
    }
    use_as_store(&part, &disk.dir("index"), [Engine::Auto, Engine::Auto]);
    let open = RawDevice::open(&part, false).expect("opens");
    assert_eq!(
        (open.size, open.info.disk.as_deref()),
        (512_000_000, disk.path.file_name().and_then(|n| n.to_str()))
    );
    assert!(matches!(RawDevice::open(&disk.path, false), Err(OpenDeviceError::Held { .. })));
    drop(open);
    let Some(_mount) = disk.mounted_from(&part) else {
        eprintln!("skipped: ext4 cannot be mounted here");
        return;
    };
    match RawDevice::open(&disk.path, false) {
        Err(OpenDeviceError::Held { by, .. }) => assert!(by.contains("its partition loop"), "{by}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened a disk with a mounted partition"),
    }
}

#[test]
fn a_device_that_loses_its_medium_says_which_and_where() {
    let Some(disk) = Loop::new(SIZE, 512) else { return };
    for engine in [Engine::Auto, Engine::Blocking] {
        let mut device = device(&disk.path, engine);
        let file = std::fs::OpenOptions::new().write(true).open(&disk.backing).expect("opens");
        file.set_len(SIZE / 2).expect("cut off");
        let offset = SIZE - 8192;
        let ended = one(&mut device, Op::Read { offset, buf: buffer(4096, 0) });
        let error = ended.result.expect_err("nothing is there").to_string();
        assert!(error.contains(&offset.to_string()) && error.contains(disk.str()), "{error}");
        assert!(error.starts_with("read of 4096 bytes"), "{error}");
        assert!(ended.buf.is_some(), "the buffer comes back all the same");
        let stats = device.stats();
        assert_eq!((stats.reads.ended, stats.reads.errors, stats.reads.bytes), (1, 1, 0));
        file.set_len(SIZE).expect("extended");
    }
}

/// What the kernel makes of a disk that is pulled: one of no bytes.
#[test]
fn a_device_that_shrinks_under_a_store_is_not_called_full() {
    let Some(disk) = Loop::new(SIZE, 512) else { return };
    for engine in [Engine::Auto, Engine::Blocking] {
        let mut device = device(&disk.path, engine);
        let backing = std::fs::OpenOptions::new().write(true).open(&disk.backing).expect("opens");
        for (left, said) in [(SIZE / 2, "fewer than when it was opened"), (0, "The device has gone")] {
            backing.set_len(left).expect("cut off");
            run("losetup", &["--set-capacity", disk.str()]).expect("shrunk");
            let (offset, bufs) = (SIZE - 8192, data(4096, 1));
            let read = one(&mut device, Op::Read { offset, buf: buffer(4096, 0) }).result;
            let write = one(&mut device, Op::Write { offset, bufs, gently: false }).result;
            for error in [read, write].map(|result| result.expect_err("nothing is there").to_string()) {
                assert!(error.contains(said), "{error}");
                assert!(error.contains(&format!("at byte {offset} of {}", disk.str())), "{error}");
            }
        }
        backing.set_len(SIZE).expect("extended");
        run("losetup", &["--set-capacity", disk.str()]).expect("grown");
    }
}

#[test]
fn a_write_that_hangs_is_seen_while_it_does_and_stops_no_read() {
    let Some(disk) = Loop::new(SIZE, 512) else { return };
    let Some(mount) = disk.mounted() else {
        eprintln!("skipped: ext4 cannot be mounted here");
        return;
    };
    let path = mount.at.join("device");
    std::fs::write(&path, vec![3; 1 << 20]).expect("written");
    for engine in [Engine::Auto, Engine::Blocking] {
        let mut device = device(&path, engine);
        let at = mount.at.to_str().expect("UTF-8");
        if run("fsfreeze", &["--freeze", at]).is_none() {
            eprintln!("skipped: no fsfreeze");
            return;
        }
        device.start(1, Op::Write { offset: 0, bufs: data(4096, 4), gently: false });
        device.submit().expect("submitted");
        assert_eq!(device.stalled(), None, "not yet");
        let read = one(&mut device, Op::Read { offset: 8192, buf: buffer(4096, 0) });
        assert!(read.result.is_ok() && read.id == 77);
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert!(device.stalled().is_some_and(|long| long.as_millis() >= 1000));
        let stats = device.stats();
        assert_eq!((stats.in_flight, stats.stalled), (1, 1));
        assert!(stats.oldest_in_flight_us >= 1_000_000);
        run("fsfreeze", &["--unfreeze", at]).expect("unfrozen");
        let mut out = Vec::new();
        while out.is_empty() {
            device.completions(&mut out);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(out[0].id == 1 && out[0].result.is_ok());
        let stats = device.stats();
        assert!(device.stalled().is_none() && stats.writes.max_us >= 1_000_000, "{stats:?}");
    }
}

#[test]
fn no_space_below_a_sparse_file_says_so() {
    let Some(disk) = Loop::new(16 << 20, 512) else { return };
    let Some(mount) = disk.mounted() else {
        eprintln!("skipped: ext4 cannot be mounted here");
        return;
    };
    for (name, engine) in [("a", Engine::Auto), ("b", Engine::Blocking)] {
        let path = mount.at.join(name);
        std::fs::File::create(&path).and_then(|file| file.set_len(64 << 20)).expect("sparse");
        let mut device = device(&path, engine);
        assert_eq!(device.prepare(), Prepare::Zero);
        let zero = one(&mut device, Op::Zero { offset: 0, len: 64 << 20 }).result.expect_err("no room");
        assert!(zero.to_string().contains("run out of space"), "{zero}");
        let mut offset = 0;
        let error = loop {
            match one(&mut device, Op::Write { offset, bufs: data(4096, 1), gently: false }).result {
                Ok(()) => offset += 4096,
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains(&format!("at byte {offset} of {}", path.display())), "{error}");
        assert!(error.contains("run out of space") && error.contains("fallocate"), "{error}");
    }
}

#[test]
fn sectors_larger_than_a_block_are_refused() {
    let Some(disk) = Loop::new(SIZE, 8192) else { return };
    match RawDevice::open(&disk.path, false) {
        Err(error @ OpenDeviceError::LogicalBlock { logical: 8192, .. }) => {
            assert!(error.to_string().contains("at most 4096"), "{error}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened"),
    }
}
