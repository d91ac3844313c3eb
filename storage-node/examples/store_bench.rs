//! 4 KiB random writes and reads at depth 1 and 32 on a store on a plain file, with the CPU time that
//! they cost (utime + stime of the process, all threads).
//!
//! `cargo run --release -p trefoil-storage-node --example store_bench [DIR] [SECONDS]`

use bytes::Bytes;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use trefoil_core::checksum::block_checksum;
use trefoil_core::message::WriteOp;
use trefoil_core::record::Record;
use trefoil_core::*;
use trefoil_storage_node::store::{FormatOptions, ReadMode, Store, StoreEvent, StoreOptions, format};

const OBJECTS: u64 = 64;
const BLOCKS: u64 = 1024;

fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)
        .expect("getrusage of oneself");
    let of = |t: nix::sys::time::TimeVal| {
        Duration::from_micros(t.tv_sec() as u64 * 1_000_000 + t.tv_usec() as u64)
    };
    of(usage.user_time()) + of(usage.system_time())
}

struct Load {
    store: Store,
    events: Vec<StoreEvent>,
    random: u64,
    ticket: u64,
    data: Bytes,
}

impl Load {
    fn place(&mut self) -> (ObjectId, u32) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let n = self.random % (OBJECTS * BLOCKS);
        (object(n / BLOCKS), (n % BLOCKS) as u32)
    }
    fn write(&mut self, object: ObjectId, first: u32, count: u32) {
        self.ticket += 1;
        let checksums = (0..count)
            .map(|n| {
                let data = &self.data[..BLOCK_SIZE];
                block_checksum(object.group.volume, object.index, first + n, data)
            })
            .collect();
        let head = Head { ballot: Ballot(1 << 20), seq: self.ticket };
        let op = WriteOp::Data {
            blocks: BlockRange::new(first, count),
            checksums,
            data: self.data.slice(..count as usize * BLOCK_SIZE),
        };
        let record = Record::Write { object, head, snap: 0, op };
        self.store.append(self.ticket, record);
    }
    async fn wait(&mut self) {
        self.store.submit();
        self.store.ready().await.expect("eventfd");
        self.store.poll(&mut self.events);
    }
}

fn object(n: u64) -> ObjectId {
    ObjectId { group: GroupId { volume: VolumeId(1), pg: PgId::default() }, index: n as u32 }
}

async fn run(load: &mut Load, name: &str, reads: bool, depth: u64, seconds: u64) {
    let (start, cpu_start) = (Instant::now(), cpu());
    let before = load.store.stats();
    let mut started = 0u64;
    let mut done = 0u64;
    let first_ticket = load.ticket;
    while start.elapsed().as_secs() < seconds {
        while started - done < depth {
            let (object, block) = load.place();
            started += 1;
            if reads {
                let range = BlockRange::new(block, 1);
                load.store.read(started, object, range, ReadMode::All);
            } else {
                load.write(object, block, 1);
            }
        }
        load.wait().await;
        for event in load.events.drain(..) {
            match event {
                StoreEvent::Durable { up_to_ticket } => done = up_to_ticket - first_ticket,
                StoreEvent::Read { data, bad, .. } => {
                    assert!(bad.is_empty() && data.len() == BLOCK_SIZE);
                    done += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    let (wall, spent) = (start.elapsed(), cpu() - cpu_start);
    while done < started {
        load.wait().await;
        for event in load.events.drain(..) {
            match event {
                StoreEvent::Durable { up_to_ticket } => done = up_to_ticket - first_ticket,
                _ => done += 1,
            }
        }
    }
    let after = load.store.stats();
    println!(
        "{name:<22} {:>8.0} IOPS  {:>6.2} us CPU each  {:>8} batches",
        done as f64 / wall.as_secs_f64(),
        spent.as_secs_f64() * 1e6 / done as f64,
        after.batches - before.batches
    );
}

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().unwrap_or_else(|| "store-bench".to_owned()));
    let seconds = args.next().and_then(|s| s.parse().ok()).unwrap_or(3);
    std::fs::create_dir_all(&dir).expect("directory");
    let path = dir.join("device");
    let formatted = format(
        &path,
        &FormatOptions {
            size: Some(8 << 30),
            cluster_id: [0; 16],
            node_id: NodeId(0),
            segment_bytes: None,
            preallocate: true,
            force: true,
        },
    );
    formatted.expect("formatted");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("runtime");
    runtime.block_on(async {
        let options = StoreOptions::default();
        let (store, _) = Store::open(&path, &dir.join("index"), options, &mut |_, _| ()).expect("opened");
        let data = vec![0x5a; 1 << 20].into();
        let mut load = Load { store, events: Vec::new(), random: 88172645463325252, ticket: 0, data };
        for n in 0..OBJECTS {
            for part in 0..BLOCKS as u32 / 256 {
                load.write(object(n), part * 256, 256);
            }
            while load.store.stats().pending_bytes > 0 {
                load.wait().await;
            }
            load.events.clear();
        }
        run(&mut load, "4k random write, 1", false, 1, seconds).await;
        run(&mut load, "4k random write, 32", false, 32, seconds).await;
        run(&mut load, "4k random read, 1", true, 1, seconds).await;
        run(&mut load, "4k random read, 32", true, 32, seconds).await;
        println!("{:?}", load.store.stats());
        load.store.shutdown().expect("shut down");
    });
    std::fs::remove_dir_all(&dir).expect("cleaned up");
}
