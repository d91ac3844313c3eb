//! Healers and front ends that cannot reach the monitors.

use super::super::lease::{LeaseConfig, NotNow};
use super::super::reign::{Confirmed, Fate, NoGrant, Reign, ReignId};
use super::super::tests::{cluster, holder, volume};
use super::super::{Command, Grant, Holder, HolderKind, Out, Reply};
use super::*;

const REIGN: ReignId = ReignId { term: 1, monitor: 1 };
const SECOND: u64 = 1_000_000;

struct World {
    map: ClusterMap,
    reign: Reign,
    disk: VolumeId,
}

fn healer() -> Holder {
    Holder { kind: HolderKind::Healer, ..holder("healer", 9) }
}

impl World {
    fn new(nodes: u64) -> World {
        let mut map = cluster(nodes);
        let disk = volume(&mut map, "disk0");
        let reign = World::begin(&map, Time(0));
        World { map, reign, disk }
    }

    fn begin(map: &ClusterMap, now: Time) -> Reign {
        Reign::begin(Confirmed::by_majority(REIGN), LeaseConfig::default(), map, now)
    }

    fn ask(&mut self, who: &Holder, now: Time) -> Result<Grant, NoGrant> {
        self.reign.ask(Confirmed::by_majority(REIGN), &self.map, self.disk, who, Generation(0), now)
    }

    fn attach(&mut self, who: &Holder, now: Time) -> Generation {
        let grants = vec![self.ask(who, now).unwrap()];
        let command = Command::GrantGenerations { grants: grants.clone(), holder: who.clone() };
        let Ok(Reply::Granted(results)) = self.map.apply(&command) else { panic!("no grant") };
        self.reign.settle(&grants, Fate::Applied(&results), &self.map, now);
        *results[0].as_ref().unwrap()
    }

    /// These nodes say whom they hear.
    fn say(&mut self, nodes: impl IntoIterator<Item = u32>, leaders: &[(VolumeId, Generation)], now: Time) {
        let callers = Callers { leaders: leaders.to_vec(), more: false };
        for node in nodes {
            self.reign.node_hears(&self.map, NodeId(node), &callers, now);
        }
    }

    /// Why a healer does not get it.
    fn kept(&mut self, now: Time) -> Option<Kept> {
        match self.ask(&healer(), now) {
            Ok(grant) => {
                self.reign.settle(&[grant], Fate::Never, &self.map, now);
                None
            }
            Err(NoGrant::NotNow(NotNow::Kept(kept))) => Some(kept),
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn over() -> Time {
    let LeaseConfig { lease, margin, .. } = LeaseConfig::default();
    Time(lease + margin + 1)
}

#[test]
fn a_healer_gets_nothing_from_a_front_end_that_a_node_hears() {
    let mut w = World::new(3);
    let g1 = w.attach(&holder("a", 1), Time(0));
    let now = over();
    w.say([0, 2], &[], now);
    w.say([1], &[(w.disk, g1)], now);
    assert_eq!(w.kept(now), Some(Kept::HeardBy(NodeId(1))));
    // For as long as the node goes on saying so, and no longer.
    let disk = w.disk;
    for s in 1..600 {
        let now = now.after(s * SECOND);
        w.say([0, 2], &[], now);
        w.say([1], &[(disk, g1)], now);
        assert_eq!(w.kept(now), Some(Kept::HeardBy(NodeId(1))));
    }
    let last = now.after(599 * SECOND);
    let LeaseConfig { word, .. } = LeaseConfig::default();
    w.say([0, 1, 2], &[], last.after(word));
    assert_eq!(w.kept(last.after(word)), Some(Kept::HeardBy(NodeId(1))));
    assert_eq!(w.kept(last.after(word + 1)), None);
}

#[test]
fn a_client_gets_it_when_the_lease_has_run_out_whoever_is_heard() {
    let mut w = World::new(3);
    let g1 = w.attach(&holder("a", 1), Time(0));
    let disk = w.disk;
    w.say(0..3, &[(disk, g1)], over());
    let g2 = w.attach(&holder("b", 2), over());
    assert!(g2 > g1);
    // And the one that it was taken from does not keep it from being healed.
    let now = over().after(over().0);
    w.say(0..3, &[(disk, g1)], now);
    assert_eq!(w.kept(now), None);
    w.say([2], &[(disk, g2)], now);
    w.say([0], &[(disk, g1)], now);
    assert_eq!(w.kept(now), Some(Kept::HeardBy(NodeId(2))));
}

#[test]
fn silence_is_no_evidence() {
    let mut w = World::new(6);
    w.attach(&holder("a", 1), Time(0));
    assert_eq!(w.kept(over()), Some(Kept::Unknown), "nobody has said anything");
    w.say(0..3, &[], over());
    assert_eq!(w.kept(over()), Some(Kept::Unknown));
    w.say(3..4, &[], over());
    assert_eq!(w.kept(over()), None, "two of six may be away");
    // Another reign has been told nothing.
    w.reign = World::begin(&w.map, over());
    let now = over().after(over().0);
    assert_eq!(w.kept(now), Some(Kept::Unknown));
    w.say(0..3, &[], now);
    assert_eq!(w.kept(now), Some(Kept::Unknown));
    // Nodes that are out are not waited for.
    let out = vec![(NodeId(4), Some(Out::Administrator)), (NodeId(5), Some(Out::Administrator))];
    w.map.apply(&Command::SetNodesOut { nodes: out }).unwrap();
    assert_eq!(w.kept(now), None);
}

#[test]
fn time_in_which_no_majority_answers_makes_no_word_old() {
    let mut w = World::new(3);
    let g1 = w.attach(&holder("a", 1), Time(0));
    let disk = w.disk;
    (0..=35).for_each(|fifth| _ = w.reign.heard(Time(fifth * SECOND / 5)));
    w.say([0, 1], &[], Time(7 * SECOND));
    w.say([2], &[(disk, g1)], Time(7 * SECOND));
    w.reign.heard(Time(67 * SECOND));
    assert_eq!(w.kept(Time(68 * SECOND)), Some(Kept::HeardBy(NodeId(2))));
    assert_eq!(w.kept(Time(73 * SECOND)), Some(Kept::Unknown));
}

#[test]
fn who_released_and_a_healer_are_not_asked_for() {
    let mut w = World::new(3);
    let g1 = w.attach(&holder("a", 1), Time(0));
    let disk = w.disk;
    w.say(0..3, &[(disk, g1)], Time(1));
    w.map.apply(&Command::Release { volumes: vec![(disk, g1, false)] }).unwrap();
    assert!(w.reign.released(&w.map, disk, g1));
    assert_eq!(w.kept(Time(2)), None, "its front end says that it leads no more");
    // A healer hangs: another one gets the volume, whatever is heard.
    let g2 = w.attach(&healer(), Time(3));
    w.say(0..3, &[(disk, g2)], over().after(3));
    assert_eq!(w.kept(over().after(3)), None);
}

#[test]
fn a_node_that_hears_more_than_it_can_name_may_hear_anybody() {
    let mut w = World::new(3);
    w.attach(&holder("a", 1), Time(0));
    w.say([0, 1], &[], over());
    w.reign.node_hears(&w.map, NodeId(2), &Callers { leaders: vec![], more: true }, over());
    assert_eq!(w.kept(over()), Some(Kept::HeardBy(NodeId(2))));
    w.say([2], &[], over());
    assert_eq!(w.kept(over()), None);
}

#[test]
fn what_is_kept_is_bounded_by_the_map() {
    let mut w = World::new(3);
    let g1 = w.attach(&holder("a", 1), Time(0));
    let heard = &mut Heard::new(SECOND);
    let leaders = (0..100).map(|n| (VolumeId(n), g1)).collect();
    let callers = Callers { leaders, more: false };
    for node in 0..100 {
        heard.said(&w.map, NodeId(node), &callers, Time(0));
    }
    assert_eq!((heard.words.len(), heard.callers.len()), (3, 1));
    heard.forget_node(NodeId(1));
    heard.forget_volume(w.disk);
    assert_eq!((heard.words.len(), heard.callers.len()), (2, 0));
}
