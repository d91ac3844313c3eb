//! The daemon around a store that does what a test tells it, over real sockets.

use super::connections::Daemon;
use super::engine::{Engine, HELD_MAX, LISTED_MAX};
use super::storage::{Storage, StorageEvent};
use crate::device::latency::DeviceStats;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::timeout;
use trefoil_core::checksum::block_checksum;
use trefoil_core::message::{FromNode, ListRequest, ToNode, WriteOp};
use trefoil_core::node::{Input, Node, NodeConfig, ReadMode, Ticket};
use trefoil_core::placement::PgConfig;
use trefoil_core::record::{Durable, Record};
use trefoil_core::wire::messages::Message;
use trefoil_core::*;
use trefoil_transport::*;

/// Keeps records until the test says that they are durable.
#[derive(Default)]
struct Script {
    given: RefCell<Vec<(Ticket, Record<Bytes>)>>,
    events: RefCell<Vec<StorageEvent>>,
    behind: Cell<bool>,
    /// What was polled has not been followed by a submit.
    unsubmitted: Cell<bool>,
    /// Blocks that there is no room for any more.
    taken: Cell<u64>,
    /// How many blocks any write would add; none: not known yet.
    growth: Cell<Option<u32>>,
    /// How often that was asked.
    asked: Cell<u32>,
}

const ROOM: u64 = 1_000_000;

struct ScriptedStore(Rc<Script>);

impl Storage for ScriptedStore {
    fn append(&mut self, ticket: Ticket, record: Record<Bytes>) {
        self.0.given.borrow_mut().push((ticket, record));
    }
    fn read(&mut self, _: u64, _: ObjectId, _: BlockRange, _: ReadMode) {}
    fn submit(&mut self) {
        self.0.unsubmitted.set(false);
    }
    fn poll(&mut self, events: &mut Vec<StorageEvent>) {
        self.0.unsubmitted.set(true);
        events.append(&mut self.0.events.borrow_mut());
    }
    fn room_blocks(&self) -> u64 {
        ROOM - self.0.taken.get()
    }
    fn growth(&mut self, _: ObjectId, _: BlockRange) -> Option<u32> {
        self.0.asked.set(self.0.asked.get() + 1);
        self.0.growth.get()
    }
    fn nearly_full(&self) -> bool {
        false
    }
    fn can_accept(&self) -> bool {
        !self.0.behind.get()
    }
    fn device(&self) -> DeviceStats {
        DeviceStats::default()
    }
}

struct Setup {
    script: Rc<Script>,
    daemon: Rc<Daemon<ScriptedStore>>,
    reader: Reader,
    sender: Sender,
    address: SocketAddr,
}

const CLUSTER: [u8; 16] = [3; 16];

fn object() -> ObjectId {
    let pg = PgId { pool: PoolId(1), pg: 0 };
    ObjectId { group: GroupId { volume: VolumeId(1), pg }, index: 0 }
}
fn ballot() -> Ballot {
    Ballot::new(Generation(1), 0).unwrap()
}

impl Setup {
    async fn new() -> Setup {
        let script = Rc::new(Script::default());
        let node = Node::new(NodeConfig { id: NodeId(0) }, Durable::default());
        let hello = |role| Hello::new(role, CLUSTER);
        let engine = Engine::new(node, ScriptedStore(script.clone()));
        let daemon = Daemon::new(engine, hello(Role::StorageNode), Duration::from_micros(50));
        let config = PgConfig::simple(Epoch(1), vec![NodeId(0), NodeId(1), NodeId(2)]);
        daemon.batch(|engine| engine.feed(Input::Config(vec![(object().group.pg, config)])));
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let roles = &[Role::FrontEnd];
        let policy = Policy { hello: hello(Role::StorageNode), roles, unknown_cluster: false };
        let serving = daemon.clone();
        tokio::task::spawn_local(serve(listener, ServeOptions::new(policy), move |connected| {
            serving.clone().serve(connected)
        }));
        let (reader, sender) = Setup::connect(address).await;
        Setup { script, daemon, reader, sender, address }
    }

    async fn connect(address: SocketAddr) -> (Reader, Sender) {
        let expect = Expect { role: Role::StorageNode, identity: None };
        let hello = Hello::new(Role::FrontEnd, CLUSTER);
        let Connected { reader, sender, .. } =
            connect(address, hello, &expect, Options::default()).await.unwrap();
        (reader, sender)
    }

    /// Another front end.
    async fn another(&self) -> Setup {
        let (reader, sender) = Setup::connect(self.address).await;
        let (script, daemon) = (self.script.clone(), self.daemon.clone());
        Setup { script, daemon, reader, sender, address: self.address }
    }

    fn send(&self, msg: &ToNode<Bytes>) {
        self.sender.push(msg.kind(), |meta| msg.encode_meta(meta), msg.payload()).unwrap();
        self.sender.flush();
    }

    /// The answers of one read; an error is the end of the connection; none: nothing comes.
    async fn answers(&mut self) -> Option<Result<Vec<FromNode<Bytes>>, CloseReason>> {
        let mut frames = Vec::new();
        match timeout(Duration::from_millis(200), self.reader.read_batch(&mut frames)).await {
            Err(_) => None,
            Ok(Err(why)) => Some(Err(why)),
            Ok(Ok(())) => {
                let decode = |frame: Frame| FromNode::decode(frame.kind, &frame.meta, frame.payload).unwrap();
                Some(Ok(frames.into_iter().map(decode).collect()))
            }
        }
    }

    fn event(&self, event: StorageEvent) {
        self.script.events.borrow_mut().push(event);
        self.daemon.batch(|_| ());
    }

    fn all_durable(&self) {
        let ticket = self.script.given.borrow().last().map_or(0, |(ticket, _)| *ticket);
        self.event(StorageEvent::Durable { ticket });
    }

    async fn lead(&mut self) {
        self.send(&ToNode::Open { group: object().group, ballot: ballot(), epoch: Epoch(1) });
        assert!(self.answers().await.is_none(), "an answer before it is durable");
        self.all_durable();
        assert!(matches!(self.answers().await.unwrap().unwrap()[..], [FromNode::Opened { .. }]));
        self.send(&ToNode::Settle { group: object().group, ballot: ballot(), except: vec![] });
        assert!(self.answers().await.is_none(), "an answer before it is durable");
        self.all_durable();
        assert!(matches!(self.answers().await.unwrap().unwrap()[..], [FromNode::Settled { .. }]));
    }

    fn write(seq: u64, byte: u8) -> ToNode<Bytes> {
        let data = vec![byte; BLOCK_SIZE];
        let checksums = [block_checksum(VolumeId(1), 0, 0, &[7; BLOCK_SIZE])].into();
        let op = WriteOp::Data { blocks: BlockRange::new(0, 1), checksums, data: data.into() };
        ToNode::Write { object: object(), ballot: ballot(), seq, snap: 0, op }
    }
}

fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(test));
}

#[test]
fn nothing_is_answered_before_it_is_durable() {
    local(async {
        let mut setup = Setup::new().await;
        setup.lead().await;
        let writes = 3;
        for seq in 1..=writes {
            setup.send(&Setup::write(seq, 7));
        }
        assert!(setup.answers().await.is_none());
        setup.all_durable();
        let answers = setup.answers().await.unwrap().unwrap();
        assert!(matches!(answers.last(), Some(FromNode::Have { seq, .. }) if *seq == writes), "{answers:?}");
    });
}

#[test]
fn a_damaged_block_is_not_stored_and_ends_the_connection() {
    local(async {
        let mut setup = Setup::new().await;
        setup.lead().await;
        let before = setup.script.given.borrow().len();
        setup.send(&Setup::write(1, 8));
        assert!(matches!(setup.answers().await, Some(Err(_))));
        assert_eq!(setup.script.given.borrow().len(), before);
        assert_eq!(setup.daemon.look(|engine| engine.counters().damaged_on_wire), 1);
    });
}

#[test]
fn a_message_that_makes_no_sense_ends_the_connection_and_nothing_else() {
    local(async {
        let mut setup = Setup::new().await;
        setup.sender.push_slice(0x0103, b"nonsense", None).unwrap();
        setup.sender.flush();
        assert!(matches!(setup.answers().await, Some(Err(_))));
        assert_eq!(setup.daemon.look(|engine| engine.counters().malformed), 1);
        assert!(setup.daemon.look(|engine| engine.failed().is_none()));
    });
}

#[test]
fn a_failed_store_ends_every_connection_and_is_reported() {
    local(async {
        let mut setup = Setup::new().await;
        setup.lead().await;
        setup.send(&Setup::write(1, 7));
        assert!(setup.answers().await.is_none());
        setup.event(StorageEvent::Failed { error: "the device is gone".into() });
        assert!(matches!(setup.answers().await, Some(Err(_))));
        assert_eq!(setup.daemon.failed().await, "the device is gone");
        // Durable by mistake: nothing is answered any more, and nothing panics.
        setup.all_durable();
    });
}

#[test]
fn a_store_that_is_behind_is_given_nothing() {
    local(async {
        let mut setup = Setup::new().await;
        setup.lead().await;
        setup.script.behind.set(true);
        let before = setup.script.given.borrow().len();
        // The task waits in a read already: what that brings waits, too.
        for seq in 1..3 {
            setup.send(&Setup::write(seq, 7));
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(setup.script.given.borrow().len(), before, "it was fed although the store is behind");
        }
        setup.script.behind.set(false);
        setup.daemon.batch(|_| ());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(setup.script.given.borrow().len(), before + 2);
    });
}

#[test]
fn what_a_poll_has_made_possible_is_submitted_in_the_same_batch() {
    local(async {
        let setup = Setup::new().await;
        // Nothing to tell anybody: a page has been read, a batch of pages is durable.
        setup.daemon.batch(|_| ());
        assert!(!setup.script.unsubmitted.get(), "it would wait for the next tick");
    });
}

#[test]
fn answers_that_wait_for_the_store_are_bounded() {
    local(async {
        let mut setup = Setup::new().await;
        setup.lead().await;
        setup.send(&Setup::write(1, 7));
        // They wait behind the write.
        for n in 0..HELD_MAX as u64 {
            let confirm = ToNode::Confirm { group: object().group, ballot: ballot(), id: n };
            setup.send(&confirm);
            if n % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let held = setup.daemon.look(|engine| engine.node().held());
        assert!(held >= HELD_MAX, "{held}");
        let before = setup.script.given.borrow().len();
        setup.send(&Setup::write(2, 7));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(setup.script.given.borrow().len(), before, "read from although answers pile up");
        setup.all_durable();
        // Until no more come.
        while let Some(answers) = setup.answers().await {
            answers.expect("still connected");
        }
        assert_eq!(setup.script.given.borrow().len(), before + 1);
    });
}

#[test]
fn a_full_node_asks_the_store_before_it_refuses_and_others_do_not_wait() {
    local(async {
        let mut setup = Setup::new().await;
        setup.lead().await;
        setup.script.taken.set(ROOM);
        let before = setup.script.given.borrow().len();
        setup.send(&Setup::write(1, 7));
        setup.send(&ToNode::Confirm { group: object().group, ballot: ballot(), id: 9 });
        assert!(setup.answers().await.is_none(), "an answer, or the end: the order is kept");
        assert_eq!(setup.script.given.borrow().len(), before);
        assert!(setup.script.asked.get() > 1, "asked again after each batch");
        let mut other = setup.another().await;
        other.send(&ToNode::Fence { volume: VolumeId(2), generation: Generation(1) });
        tokio::time::sleep(Duration::from_millis(20)).await;
        other.all_durable();
        assert!(matches!(other.answers().await.unwrap().unwrap()[..], [FromNode::Fenced { .. }]));

        setup.script.growth.set(Some(0));
        setup.daemon.batch(|_| ());
        tokio::time::sleep(Duration::from_millis(20)).await;
        setup.all_durable();
        let answers = setup.answers().await.unwrap().unwrap();
        let expected =
            matches!(answers[..], [FromNode::Have { seq: 1, .. }, FromNode::Confirmed { id: 9, .. }]);
        assert!(expected, "{answers:?}");

        setup.script.growth.set(Some(1));
        setup.send(&Setup::write(2, 7));
        let answers = setup.answers().await.unwrap().unwrap();
        assert!(matches!(answers[..], [FromNode::NoSpace { seq: 2, .. }]), "{answers:?}");
    });
}

#[test]
fn a_connection_that_waits_for_the_store_ends_with_it() {
    local(async {
        let mut setup = Setup::new().await;
        setup.lead().await;
        setup.script.taken.set(ROOM);
        setup.send(&Setup::write(1, 7));
        assert!(setup.answers().await.is_none());
        setup.event(StorageEvent::Failed { error: "the device is gone".into() });
        assert!(matches!(setup.answers().await, Some(Err(_))));
        tokio::time::sleep(Duration::from_millis(20)).await;
        let Setup { daemon, sender, reader, .. } = setup;
        drop((sender, reader));
        let asked = daemon.look(|engine| engine.node().counters().no_space);
        assert_eq!(asked, 0, "nothing is answered any more");
    });
}

#[test]
fn the_monitors_are_told_what_is_durable_and_not_before() {
    local(async {
        let setup = Setup::new().await;
        let list = |epoch| {
            let fences = vec![(VolumeId(1), Generation(5))];
            let request = ListRequest { pg: object().group.pg, epoch: Epoch(epoch), fences };
            setup.daemon.batch(|engine| engine.feed(Input::List { id: 1, request }));
        };
        list(2);
        let early = timeout(Duration::from_millis(100), setup.daemon.listed()).await;
        assert!(early.is_err(), "an answer before its epoch and its fences are durable");
        setup.all_durable();
        let lists = timeout(Duration::from_secs(5), setup.daemon.listed()).await.expect("an answer");
        assert_eq!(lists.iter().map(|list| list.epoch).collect::<Vec<_>>(), [Epoch(2)]);
        // Nobody fetches them: they are asked for again.
        for _ in 0..LISTED_MAX + 10 {
            list(2);
        }
        assert_eq!(setup.daemon.listed().await.len(), LISTED_MAX);
        list(1);
        assert!(!setup.daemon.look(Engine::has_listed), "late");
    });
}

#[test]
fn a_settle_from_before_state_was_lost_gives_no_votes_back() {
    local(async {
        let mut setup = Setup::new().await;
        setup.lead().await;
        let lost =
            |setup: &Setup| setup.daemon.look(|engine| engine.node().state().groups[&object().group].lost);
        // It has been read, and waits for the store.
        setup.script.behind.set(true);
        setup.send(&ToNode::Settle { group: object().group, ballot: ballot(), except: vec![] });
        tokio::time::sleep(Duration::from_millis(100)).await;
        setup.daemon.batch(|engine| {
            engine.feed(Input::StateLost { fences: vec![] });
            engine.close_leaders("in a test");
        });
        assert!(lost(&setup));
        setup.script.behind.set(false);
        setup.daemon.batch(|_| ());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(lost(&setup), "a leader that had not heard of it has given the group its votes back");
        assert!(matches!(setup.answers().await, Some(Err(_))));

        // Who opens the group anew hears it, and may.
        let mut again = setup.another().await;
        let ballot = Ballot::new(Generation(1), 1).unwrap();
        again.send(&ToNode::Open { group: object().group, ballot, epoch: Epoch(1) });
        tokio::time::sleep(Duration::from_millis(100)).await;
        again.all_durable();
        let answers = again.answers().await.unwrap().unwrap();
        assert!(matches!(answers[..], [FromNode::Opened { lost: true, .. }]), "{answers:?}");
    });
}
