//! Front ends against real machines of nodes over real sockets, with monitors that are a struct.

use super::exports::Volumes;
use super::front::FrontEnd;
use super::testing::{CLUSTER, Door, Monitors, cluster, cluster_with};
use crate::disk::*;
use bytes::Bytes;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use trefoil_core::map::{Holder, HolderKind};
use trefoil_transport::{Hello, Role};

fn local<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = tokio::task::LocalSet::new();
    runtime.block_on(tasks.run_until(async {
        timeout(Duration::from_secs(40), test).await.expect("the test hangs");
    }));
}

fn front(monitors: &Rc<Monitors>, boot: u64) -> Rc<FrontEnd> {
    let me = Holder { name: format!("test-{boot}"), boot, kind: HolderKind::FrontEnd };
    let door = Door { monitors: monitors.clone(), me };
    let front = FrontEnd::new(Rc::new(door), Hello::new(Role::FrontEnd, CLUSTER), Duration::ZERO);
    tokio::task::spawn_local(front.clone().ticks());
    tokio::task::spawn_local(front.clone().renewals());
    tokio::task::spawn_local(front.clone().follow_map());
    tokio::task::spawn_local(front.clone().heal());
    front
}

/// What a connection of the server is: a disk and a queue of answers.
struct Client {
    disk: Rc<dyn Disk>,
    done: Rc<Completions>,
    token: u64,
}

impl Client {
    async fn open(front: &Rc<FrontEnd>, conn: u64) -> Client {
        let exports = Volumes::new(front.clone(), None);
        let disk = exports.open("disk0").await.unwrap();
        Client { disk, done: Completions::new(ConnId(conn)), token: 0 }
    }
    async fn ask(&mut self, op: DiskOp) -> Result<DiskReply, DiskError> {
        self.give(op);
        self.answer().await
    }
    fn give(&mut self, op: DiskOp) {
        self.token += 1;
        let request = DiskRequest { token: self.token, reply_to: self.done.clone(), op };
        self.disk.submit(&mut vec![request]);
    }
    async fn answer(&mut self) -> Result<DiskReply, DiskError> {
        let mut done = Vec::new();
        poll_fn(|cx| self.done.poll_take(cx, &mut done)).await;
        assert_eq!(done.len(), 1);
        done.remove(0).1
    }
    async fn write(&mut self, offset: u64, byte: u8, len: usize) {
        let data = Bytes::from(vec![byte; len]);
        let reply = self.ask(DiskOp::Write { offset, data, fua: false }).await;
        assert_eq!(reply, Ok(DiskReply::Done));
    }
    async fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        match self.ask(DiskOp::Read { offset, len }).await.unwrap() {
            DiskReply::Data(chunks) => chunks
                .into_iter()
                .flat_map(|chunk| match chunk {
                    Chunk::Data(data) => data.to_vec(),
                    Chunk::Hole(len) => vec![0; len as usize],
                })
                .collect(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_was_written_is_read_also_from_another_front_end_after_a_clean_detach() {
    local(async {
        let (monitors, _nodes, volume) = cluster().await;
        let first = front(&monitors, 1);
        let mut client = Client::open(&first, 1).await;
        assert_eq!(client.read(0, 100).await, vec![0; 100]);
        client.write(1000, 0x11, 70_000).await;
        client.write(500, 0x22, 512).await;
        let mut expected = vec![0; 500];
        expected.extend([0x22; 512]);
        expected.extend([0x11; 70_000 - 12]);
        assert_eq!(client.read(0, 71_000).await, expected);
        drop(client);
        first.stop(Duration::from_secs(5)).await;
        let released = monitors.releases.borrow().clone();
        assert_eq!(released.len(), 1);
        assert_eq!((released[0].0, released[0].2), (volume, true), "a clean detach");

        let second = front(&monitors, 2);
        let begun = Instant::now();
        let mut client = Client::open(&second, 2).await;
        assert_eq!(client.read(0, 71_000).await, expected);
        assert!(begun.elapsed() < Duration::from_secs(2));
    });
}

#[test]
fn a_killed_node_stops_nothing_and_is_back_at_once() {
    local(async {
        let (monitors, mut nodes, _) = cluster().await;
        let front = front(&monitors, 1);
        let mut client = Client::open(&front, 1).await;
        client.write(0, 1, 1 << 20).await;
        nodes[1].kill().await;
        let begun = Instant::now();
        for object in 0..16 {
            client.write(object << 16, 10, 4096).await;
            assert_eq!(client.read(object << 16, 4096).await, vec![10; 4096]);
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        nodes[1].start().await;
        let begun = Instant::now();
        while front.batch(|core| core.links().connected().len()) < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(begun.elapsed() < Duration::from_millis(1200), "{:?}", begun.elapsed());
        // It is behind with what was written meanwhile, and is not read from for it.
        for object in 0..16 {
            assert_eq!(client.read(object << 16, 8192).await, [vec![10; 4096], vec![1; 4096]].concat());
        }
    });
}

#[test]
fn a_node_that_stops_in_the_middle_of_a_large_answer_holds_nobody_up() {
    local(async {
        let (monitors, nodes, _) = cluster_with(8 << 20, 1 << 20).await;
        let front = front(&monitors, 1);
        let mut client = Client::open(&front, 1).await;
        const MIB: usize = 1 << 20;
        for n in 0..8 {
            client.write((n * MIB) as u64, 1 + n as u8, MIB).await;
        }
        nodes.iter().take(1).for_each(|node| node.stuck.set(true));
        let begun = Instant::now();
        for round in 0..3 {
            for n in 0..8 {
                let read = client.read((n * MIB) as u64, MIB as u32).await;
                assert!(read == vec![1 + n as u8; MIB], "MiB {n} of round {round}");
            }
        }
        // Not because it was given up at the node timeout.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

#[test]
fn io_goes_on_without_monitors_beyond_the_lease() {
    local(async {
        let (monitors, _nodes, _) = cluster().await;
        let front = front(&monitors, 1);
        let mut client = Client::open(&front, 1).await;
        client.write(0, 5, 4096).await;
        monitors.away.set(true);
        tokio::time::sleep(Duration::from_secs(7)).await;
        client.write(4096, 6, 4096).await;
        assert_eq!(client.read(0, 4096).await, vec![5; 4096]);
        let status = front.look(|core| core.status());
        assert!(status[0].leader.confirms > 0, "the lease has run out: {status:?}");
    });
}

#[test]
fn a_second_front_end_gets_the_volume_with_its_first_request_and_keeps_it() {
    local(async {
        let (monitors, _nodes, volume) = cluster().await;
        let (a, b) = (front(&monitors, 1), front(&monitors, 2));
        let mut client_a = Client::open(&a, 1).await;
        client_a.write(0, 1, 4096).await;
        let mut client_b = Client::open(&b, 2).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let holder = || monitors.map.borrow().volumes[&volume].holder.clone().map(|h| h.boot);
        assert_eq!(holder(), Some(1), "opening alone takes nothing");
        assert_eq!(client_b.read(0, 4096).await, vec![1; 4096]);
        assert_eq!(holder(), Some(2));
        // The first front end's client is thrown out, comes back, and does not drive the other one out.
        assert_eq!(client_a.ask(DiskOp::Read { offset: 0, len: 1 }).await, Err(DiskError::Gone));
        let mut again = Client::open(&a, 3).await;
        again.give(DiskOp::Read { offset: 0, len: 1 });
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(holder(), Some(2), "held down");
        client_b.write(0, 2, 4096).await;
        // Once it is free there is nothing to wait for.
        b.stop(Duration::from_secs(5)).await;
        again.answer().await.unwrap();
        assert_eq!(again.read(0, 4096).await, vec![2; 4096]);
    });
}

#[test]
fn a_healer_makes_way_for_a_client_of_its_own_process() {
    local(async {
        let (monitors, mut nodes, volume) = cluster().await;
        nodes[2].kill().await;
        let front = front(&monitors, 1);
        monitors.heal.borrow_mut().push(volume);
        while front.look(|core| core.session_of(volume)).is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let healer = front.look(|core| core.session_of(volume)).unwrap();
        assert!(front.is_healer(healer));
        let mut client = Client::open(&front, 1).await;
        client.write(0, 1, 4096).await;
        let now = front.look(|core| core.session_of(volume)).unwrap();
        assert!(now != healer && !front.is_healer(now));
    });
}

#[test]
fn a_healer_releases_when_all_is_whole() {
    local(async {
        let (monitors, _nodes, volume) = cluster().await;
        let front = front(&monitors, 1);
        monitors.heal.borrow_mut().push(volume);
        while monitors.releases.borrow().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let released = monitors.releases.borrow().clone();
        assert_eq!((released[0].0, released[0].2), (volume, true));
        assert_eq!(front.look(|core| core.session_of(volume)), None);
    });
}

#[test]
fn a_healer_that_can_do_nothing_more_gives_its_place_away() {
    local(async {
        let (monitors, mut nodes, volume) = cluster().await;
        nodes[2].kill().await;
        let front = front(&monitors, 1);
        monitors.heal.borrow_mut().push(volume);
        while monitors.releases.borrow().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let released = monitors.releases.borrow().clone();
        assert_eq!((released[0].0, released[0].2), (volume, false), "a node is away: not all is whole");
        assert_eq!(front.look(|core| core.session_of(volume)), None);
    });
}
