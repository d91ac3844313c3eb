//! Front ends against real machines of nodes over real sockets, with monitors that are a struct.

use super::exports::Volumes;
use super::front::FrontEnd;
use super::lost::{LOST_TELL_INTERVAL, LOST_TELLERS_MAX};
use super::testing::{CLUSTER, Door, Monitors, TestNode, cluster, cluster_with};
use crate::disk::*;
use crate::shards::{Place, home};
use bytes::Bytes;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use trefoil_core::map::{ClusterMap, Command, Holder, HolderKind};
use trefoil_core::{Generation, Incarnation, NodeId};
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

#[test]
fn a_panic_in_a_batch_or_a_task_is_told_of() {
    local(async {
        let (monitors, _nodes, _) = cluster().await;
        for in_batch in [true, false] {
            let front = front(&monitors, 1);
            assert!(timeout(Duration::from_millis(20), front.broken()).await.is_err(), "it is whole");
            let panics = front.clone();
            match in_batch {
                // A connection's task, say.
                true => _ = tokio::task::spawn_local(async move { panics.batch(|_| panic!("on purpose")) }),
                false => panics.task(async { panic!("on purpose") }),
            }
            front.broken().await;
        }
        let front = front(&monitors, 1);
        // Somebody else's panic is none of the front end's, not even when it is told of it.
        struct Tells(Rc<FrontEnd>);
        impl Drop for Tells {
            fn drop(&mut self) {
                self.0.batch(|core| core.tick());
            }
        }
        let tells = Tells(front.clone());
        let ended = tokio::task::spawn_local(async move {
            let _tells = tells;
            panic!("on purpose")
        });
        let ended: Result<(), _> = ended.await;
        assert!(ended.is_err());
        assert!(timeout(Duration::from_millis(20), front.broken()).await.is_err());
    });
}

#[test]
fn a_shard_names_the_one_that_a_volume_belongs_to_and_waits_for_its_map() {
    local(async {
        let (monitors, _nodes, volume) = cluster().await;
        let front = front(&monitors, 1);
        let shard = |number| Volumes::of_shard(front.clone(), None, Place { number, of: 3 });
        let at = home(volume, 3);
        let known = monitors.map.borrow().layout;
        for name in ["disk0", ""] {
            assert_eq!(shard(at).elsewhere(name), None);
            let other = (at + 1) % 3;
            assert_eq!(shard(other).elsewhere(name), Some(Elsewhere { shard: at, known }));
            assert_eq!(shard(other).describe(name).await.unwrap().name, "disk0", "any shard describes it");
        }
        assert_eq!(shard(0).elsewhere("none"), None, "what is not there is refused here");
        assert_eq!(shard(0).list(), ["disk0"]);
        // A volume that another shard knows already.
        let (exports, made) = (shard(at), monitors.clone());
        let begun = Instant::now();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_millis(120)).await;
            let (name, pool) = ("disk1".to_owned(), "rbd".to_owned());
            made.apply(Command::CreateVolume {
                name,
                pool,
                size: 1 << 20,
                object_size: 1 << 16,
                io_timeout: None,
            });
        });
        exports.catch_up(known + 1).await;
        assert_eq!(exports.list().len(), 2);
        assert!(begun.elapsed() < Duration::from_secs(4));
        exports.catch_up(known).await;
        // Not for ever.
        timeout(Duration::from_secs(15), exports.catch_up(u64::MAX)).await.expect("it gives up");
    });
}

#[test]
fn a_healer_makes_way_for_a_client_of_another_shard() {
    local(async {
        let (monitors, mut nodes, volume) = cluster().await;
        nodes[2].kill().await;
        let heals = front(&monitors, 1);
        monitors.heal.borrow_mut().push(volume);
        while heals.look(|core| core.session_of(volume)).is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let serves = front(&monitors, 2);
        let begun = Instant::now();
        let mut client = Client::open(&serves, 1).await;
        client.write(0, 1, 4096).await;
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}: no lease is waited for", begun.elapsed());
        while heals.look(|core| core.session_of(volume)).is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(client.read(0, 4096).await, vec![1; 4096]);
    });
}

/// Puts an older copy of its disk into a node that has acknowledged writes since.
async fn lose_writes(client: &mut Client, node: &mut TestNode) {
    client.write(0, 1, 1 << 20).await;
    let older = node.copy_disk();
    client.write(0, 2, 1 << 20).await;
    node.kill().await;
    node.put_disk(older);
    node.start().await;
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..1500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

#[test]
fn a_node_that_lost_writes_is_told_of_until_it_has_taken_note() {
    local(async {
        let (monitors, mut nodes, volume) = cluster().await;
        let front = front(&monitors, 1);
        let mut client = Client::open(&front, 1).await;
        client.write(0, 1, 4096).await;
        monitors.away.set(true);
        lose_writes(&mut client, &mut nodes[1]).await;
        // It is not counted, whether the monitors hear of it or not.
        assert_eq!(client.read(0, 1 << 20).await, vec![2; 1 << 20]);
        until("the task", || !front.telling.borrow().is_empty()).await;
        assert!(monitors.lost.borrow().is_empty());
        monitors.away.set(false);
        until("told again", || monitors.lost.borrow().len() >= 3).await;
        let expected = (volume, Generation(1), NodeId(1), Incarnation(101));
        assert!(monitors.lost.borrow().iter().all(|told| *told == expected), "{:?}", monitors.lost.borrow());
        assert_eq!(front.telling.borrow().len(), 1, "however many groups found it");
        monitors.noted.set(Some(true));
        until("its end", || front.telling.borrow().is_empty()).await;
        let told = monitors.lost.borrow().len();
        tokio::time::sleep(2 * LOST_TELL_INTERVAL).await;
        assert_eq!(monitors.lost.borrow().len(), told, "told on although the node has taken note");
    });
}

#[test]
fn what_the_monitors_refuse_is_not_told_again_and_tellers_are_bounded() {
    local(async {
        let (monitors, _nodes, volume) = cluster().await;
        let front = front(&monitors, 1);
        let loss = |n: u64| (volume, Generation(n), NodeId(1));
        for n in 0..LOST_TELLERS_MAX as u64 + 10 {
            front.tell_lost(loss(n));
            front.tell_lost(loss(n));
        }
        assert_eq!(front.telling.borrow().len(), LOST_TELLERS_MAX);
        front.tell_lost((volume, Generation(1), NodeId(77)));
        assert_eq!(front.telling.borrow().len(), LOST_TELLERS_MAX, "a node that nobody knows");
        until("all tell", || monitors.lost.borrow().len() >= LOST_TELLERS_MAX).await;
        monitors.noted.set(None);
        until("their end", || front.telling.borrow().is_empty()).await;
        let told = monitors.lost.borrow().len();
        tokio::time::sleep(2 * LOST_TELL_INTERVAL).await;
        assert_eq!(monitors.lost.borrow().len(), told);

        // Nor when the node is one of the cluster no more.
        monitors.noted.set(Some(false));
        front.tell_lost(loss(5));
        until("told", || monitors.lost.borrow().len() > told).await;
        let mut map = ClusterMap::clone(&monitors.map.borrow());
        map.nodes.remove(&NodeId(1));
        *monitors.map.borrow_mut() = map.into();
        until("its end", || front.telling.borrow().is_empty()).await;
    });
}
