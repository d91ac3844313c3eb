//! 4 KiB random overwrites over a store that is filled to a given part of its capacity: write
//! amplification, longest stall, and what cleaning did.
//!
//! `cargo run --release -p trefoil-storage-node --example store_churn DIR SIZE_MIB FILL_PERCENT TIMES [DEPTH] [SKEW]`
//!
//! `SKEW` percent of the writes go to 10 % of the blocks.

use bytes::Bytes;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use trefoil_core::checksum::block_checksum;
use trefoil_core::message::WriteOp;
use trefoil_core::record::Record;
use trefoil_core::*;
use trefoil_storage_node::store::{FormatOptions, ReadMode, Store, StoreEvent, StoreOptions, format};

const OBJECT_BLOCKS: u64 = 1024;

fn object(n: u64) -> ObjectId {
    ObjectId { group: GroupId { volume: VolumeId(1), pg: PgId::default() }, index: n as u32 }
}

struct Load {
    store: Store,
    events: Vec<StoreEvent>,
    ticket: u64,
    durable: u64,
    data: Bytes,
    random: u64,
}

impl Load {
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 8
    }
    fn write(&mut self, block: u64, count: u32) {
        self.ticket += 1;
        let object = object(block / OBJECT_BLOCKS);
        let first = (block % OBJECT_BLOCKS) as u32;
        let sum = |n| block_checksum(object.group.volume, object.index, first + n, &self.data[..BLOCK_SIZE]);
        let op = WriteOp::Data {
            blocks: BlockRange::new(first, count),
            checksums: (0..count).map(sum).collect(),
            data: self.data.slice(..count as usize * BLOCK_SIZE),
        };
        let head = Head { ballot: Ballot(1 << 20), seq: self.ticket };
        self.store.append(self.ticket, Record::Write { object, head, snap: 0, op });
    }
    async fn wait(&mut self) {
        self.store.submit();
        self.store.ready().await.expect("eventfd");
        self.store.poll(&mut self.events);
        for event in self.events.drain(..) {
            match event {
                StoreEvent::Durable { up_to_ticket } => self.durable = up_to_ticket,
                other => panic!("{other:?}"),
            }
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |n: usize, default: u64| args.get(n).map_or(default, |a| a.parse().expect("a number"));
    let dir = PathBuf::from(args.first().map_or("store-churn", String::as_str));
    let (size, fill, times) = (number(1, 2048) << 20, number(2, 90), number(3, 2));
    let (depth, skew) = (number(4, 32), number(5, 10));
    std::fs::create_dir_all(&dir).expect("directory");
    let path = dir.join("device");
    format(
        &path,
        &FormatOptions {
            size: Some(size),
            cluster_id: [0; 16],
            node_id: NodeId(0),
            segment_bytes: None,
            preallocate: true,
            force: true,
        },
    )
    .expect("formatted");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("runtime");
    runtime.block_on(async {
        let options = StoreOptions::default();
        let (store, _) = Store::open(&path, &dir.join("index"), options, &mut |_, _| ()).expect("opened");
        let data = vec![0x5a; 1 << 20].into();
        let mut load = Load { store, events: Vec::new(), ticket: 0, durable: 0, data, random: 88172645463325252 };
        let space = load.store.stats().space;
        let blocks = (space.used + space.free) / BLOCK_SIZE as u64 * fill / 100 / 257 * 256;
        for block in (0..blocks).step_by(256) {
            while !load.store.can_accept() {
                load.wait().await;
            }
            load.write(block, 256);
            load.store.submit();
        }
        while load.durable < load.ticket {
            load.wait().await;
        }
        println!("filled {} MiB of {} MiB: {:?}", blocks >> 8, (space.used + space.free) >> 20, load.store.stats().space);
        let mut before = load.store.stats();
        let (first, start) = (before, Instant::now());
        let mut last = start;
        let mut worst = Duration::ZERO;
        let mut step = blocks / 2;
        let (mut n, total) = (0u64, blocks * times);
        let base = load.ticket;
        let mut refused = Duration::ZERO;
        while load.durable - base < total {
            let blocked = Instant::now();
            while load.ticket - load.durable < depth && n < total && load.store.can_accept() {
                let r = load.random();
                let hot = load.random() % 100 < skew;
                let block = if hot { r % (blocks / 10) } else { r % blocks };
                load.write(block, 1);
                n += 1;
            }
            let held = !load.store.can_accept();
            let was = load.durable;
            load.wait().await;
            if held {
                refused += blocked.elapsed();
            }
            if load.durable > was {
                worst = worst.max(last.elapsed());
                last = Instant::now();
            }
            if n >= step {
                step += blocks / 2;
                let now = load.store.stats();
                let user = (now.client_blocks - before.client_blocks) as f64;
                let share = |a: u64, b: u64| (a - b) as f64 / user;
                println!(
                    "{:>5.1}x  amplification {:.2} (moved {:.2}, pages {:.2}, rest {:.2})  free {}  longest wait \
                     {:.0} ms  {:.0} IOPS  held {:.0} ms  snapshots {} checkpoints {} cleaned {}",
                    n as f64 / blocks as f64,
                    share(now.bytes_written, before.bytes_written) / BLOCK_SIZE as f64,
                    share(now.moved_blocks, before.moved_blocks),
                    share(now.page_blocks, before.page_blocks),
                    share(now.bytes_written, before.bytes_written) / BLOCK_SIZE as f64
                        - 1.0
                        - share(now.moved_blocks, before.moved_blocks)
                        - share(now.page_blocks, before.page_blocks),
                    now.segments_free,
                    worst.as_secs_f64() * 1e3,
                    n as f64 / start.elapsed().as_secs_f64(),
                    refused.as_secs_f64() * 1e3,
                    now.snapshots - before.snapshots,
                    now.checkpoints - before.checkpoints,
                    now.segments_cleaned - before.segments_cleaned,
                );
                before = now;
                worst = Duration::ZERO;
                refused = Duration::ZERO;
            }
        }
        let now = load.store.stats();
        println!(
            "all: amplification {:.2}",
            (now.bytes_written - first.bytes_written) as f64 / BLOCK_SIZE as f64
                / (now.client_blocks - first.client_blocks) as f64
        );
        println!("{now:?}");
        let audit = load.store.audit();
        println!("audit clean: {} {audit:?}", audit.is_clean());
        let mut events = Vec::new();
        for block in (0..blocks).step_by(256) {
            let range = BlockRange::new((block % OBJECT_BLOCKS) as u32, 256);
            load.store.read(block, object(block / OBJECT_BLOCKS), range, ReadMode::All);
            while events.is_empty() {
                load.store.submit();
                load.store.ready().await.expect("eventfd");
                load.store.poll(&mut events);
            }
            for event in events.drain(..) {
                match event {
                    StoreEvent::Read { data, bad, checksums, .. } => {
                        assert!(bad.is_empty() && data.len() == 1 << 20 && !checksums.contains(&0), "block {block}");
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        println!("all blocks are there");
        let start = Instant::now();
        load.store.shutdown().expect("shut down");
        println!("shutdown {:?}", start.elapsed());
    });
    std::fs::remove_dir_all(&dir).expect("cleaned up");
}
