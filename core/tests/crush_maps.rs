//! Text maps that are wrong, unusual or mutated, maps that a monitor builds, and what must hold
//! for every placement.

use std::collections::BTreeSet;

use proptest::prelude::*;
use trefoil_core::crush::{
    BuilderError, CrushMap, DoRuleError, ITEM_NONE, REPLICAS_MAX, Tunables, WEIGHT_ONE,
};

/// Every algorithm and every kind of step; legacy tunables with local retries.
const MAP: &str = "\
# begin crush map
tunable choose_total_tries 50
device 0 osd.0 class ssd
device 1 osd.1 class hdd
device 2 osd.2 class ssd
device 3 osd.3
device 5 osd.5 class hdd
device 6 osd.6 class hdd
device 7 osd.7 class hdd
device 8 osd.8 class hdd
type 0 osd
type 1 host
type 10 root
host a { id -2 alg straw2 hash 0 item osd.0 weight 1.5 item osd.1 weight 0.50021 }
host b { alg list hash rjenkins1 item osd.2 item osd.3 weight 2 }
host c { id -4 id -9 class hdd alg straw item osd.5 weight 1e0 pos 1 item osd.6 weight .25 }
host d { id -7 alg uniform item osd.7 weight 3 item osd.8 weight 3 }
root default { id -1 alg straw2 item a item b item c item d }
rule one { id 0 type replicated min_size 1 max_size 10
    step take default step chooseleaf firstn 0 type host step emit }
rule ssd-first { ruleset 1 type replicated
    step set_choose_tries 20 step set_chooseleaf_tries 3 step set_choose_local_tries 1
    step set_choose_local_fallback_tries 2 step set_chooseleaf_vary_r 1
    step set_chooseleaf_stable 1
    step take default class ssd step choose firstn 1 type osd step emit
    step take default class hdd step chooseleaf firstn -1 type host step emit }
rule ec { id 4 type erasure step take default step choose indep 0 type osd step emit }
choose_args 18446744073709551615 {
  { bucket_id -2 weight_set [ [ 1.0 0.5 ] [ 0.25 2.0 ] ] ids [ 100 -7 ] }
  { bucket_id -1 weight_set [ [ 1 1 1 1 ] ] }
}
";

fn map() -> CrushMap {
    CrushMap::parse(MAP).expect("a valid map")
}

#[test]
fn writing_and_reading_gives_the_same_map() {
    let map = map();
    let text = map.to_text();
    let again = CrushMap::parse(&text).expect("what was written");
    assert_eq!(again, map);
    assert_eq!(again.to_text(), text);
    assert!(text.contains("item osd.1 weight 0.5002\n"), "as many decimals as needed: {text}");
    let b = map.def().buckets.iter().find(|bucket| bucket.name == "b").expect("b");
    assert_eq!(b.id, -3, "the first free id");
    let c = map.def().buckets.iter().find(|bucket| bucket.name == "c").expect("c");
    assert!(c.class_ids.contains(&("hdd".to_owned(), -9)), "{:?}", c.class_ids);
    assert_eq!(c.items[1].id, 5, "pos 1");
    let reweights = map.full_reweights();
    for x in 0..200 {
        let place = |map: &CrushMap| map.do_rule(1, x, 3, &reweights).expect("a rule");
        assert_eq!(place(&map), place(&again));
    }
}

#[test]
fn faults_are_told_with_their_place() {
    let cases = [
        ("alg straw2 hash 0", "alg straw3 hash 0", "14:20", "unknown bucket algorithm `straw3`"),
        ("hash 0", "hash 1", "14:32", "unknown hash `1`"),
        ("weight 1.5", "weight 1.x", "14:52", "expected a weight"),
        ("weight 1.5", "weight -1", "14:52", "expected a weight"),
        ("weight 1.5", "weight nan", "14:52", "expected a weight"),
        ("weight 1.5", "weight 100.5", "14:6", "weight in 1/65536 6586368 is outside 0 to 6553600"),
        ("item osd.0", "item osd.4", "14:39", "unknown device or bucket `osd.4`"),
        ("id -2 ", "id -4 ", "16:6", "bucket id `-4` is used twice"),
        ("id -2 ", "id 2 ", "14:13", "expected a bucket id from -1 down"),
        ("id -2 ", "id -9999999 ", "14:6", "bucket id -9999999 is outside"),
        ("host b", "host a", "15:6", "the name `a` is given twice"),
        ("host b", "pod b", "15:1", "unknown type or keyword `pod`"),
        ("device 1 ", "device 99999999 ", "4:8", "device id 99999999 is outside 0 to 1048575"),
        ("device 1 osd.1", "device 0 osd.1", "4:8", "device id `0` is used twice"),
        ("osd.7 weight 3", "osd.7 weight 4", "17:6", "must have equal weights"),
        ("item a ", "item default ", "18:38", "contains itself"),
        ("pos 1", "pos 2", "16:47", "pos 2 is taken or not below"),
        ("total_tries 50", "total_tries 999999", "2:9", "choose_total_tries 999999 is outside"),
        ("choose_total", "choose_totl", "2:9", "unknown tunable `choose_totl_tries`"),
        ("take default class ssd", "take default class nvme", "21:6", "class `nvme` is not defined"),
        ("take default step", "take defaul step", "20:15", "unknown device or bucket `defaul`"),
        ("0 type host", "0 type hst", "20:53", "unknown type `hst`"),
        ("step emit }\nrule ssd", "step emt }\nrule ssd", "20:63", "unknown step `emt`"),
        ("firstn 0", "first 0", "20:39", "expected `firstn` or `indep`, found `first`"),
        ("rule ec { id 4", "rule ec { id 0", "27:6", "rule id `0` is used twice"),
        ("rule ec { id 4", "rule ec { id 256", "27:6", "rule id 256 is outside 0 to 255"),
        ("id 4 type", "type", "27:6", "rule `ec` has no `id`"),
        ("[ 1.0 0.5 ]", "[ 1.0 ]", "28:1", "has 2 items, but the weight_set has 1 entries"),
        ("bucket_id -1 ", "bucket_id -77 ", "28:1", "bucket id `-77` is not defined"),
        ("\n}\n", "\n", "31:1", "expected `{` before `bucket_id`, or `}`, found the end of the map"),
    ];
    let mut wrong = Vec::new();
    for (from, to, place, problem) in cases {
        assert!(MAP.contains(from), "{from}");
        let text = MAP.replacen(from, to, 1);
        let error = CrushMap::parse(&text).expect_err(to);
        let found = format!("{}:{}", error.line, error.column);
        if found != place || !error.to_string().contains(problem) {
            wrong.push(format!("{to} at {place}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn tree_buckets_are_read_but_not_by_class() {
    let tree = MAP
        .replace("alg list", "alg tree")
        .replace("item osd.2 item", "item osd.2 item osd.0 item osd.0 item");
    let error = CrushMap::parse(&tree).expect_err("a class of a tree");
    assert!(error.to_string().contains("tree bucket `b`"), "{error}");
    let text = tree.replace("take default class ssd", "take default");
    let text = text.replace("take default class hdd", "take default");
    let map = CrushMap::parse(&text).expect("no class is taken");
    assert_eq!(CrushMap::parse(&map.to_text()).expect("what was written"), map);
}

#[test]
fn cycles_and_deep_maps_are_refused() {
    let text = "type 1 host host a { alg straw2 item b } host b { alg straw2 item a }";
    let error = CrushMap::parse(text).expect_err("a cycle");
    assert!(error.to_string().contains("contains itself"), "{error}");
    let chain = |levels: usize| {
        let level = |i| format!("host h{i} {{ alg straw2 item h{} }} ", i + 1);
        let levels: String = (1..levels).map(level).collect();
        format!("type 1 host {levels} host h{} {{ alg straw2 }}", levels.matches("host").count() + 1)
    };
    CrushMap::parse(&chain(32)).expect("the limit");
    let error = CrushMap::parse(&chain(33)).expect_err("beyond the limit");
    assert!(error.to_string().contains("depth in levels 33 is outside 1 to 32"), "{error}");
}

#[test]
fn a_monitor_builds_a_map() {
    let mut map = CrushMap::with_root();
    assert_eq!(map, CrushMap::default());
    assert_eq!(map.def().tunables, Tunables::OPTIMAL);
    let by_host = map.add_rule_chooseleaf_host("by-host").expect("a rule");
    let by_osd = map.add_rule_choose_osd("by-osd").expect("a rule");
    assert_eq!((by_host, by_osd), (0, 1));
    assert_eq!(map.do_rule(by_host, 7, 3, &map.full_reweights()), Ok(vec![]));
    for host in 0..4 {
        map.add_host(&format!("host{host}")).expect("a host");
        for osd in 0..2 {
            let class = (osd == 0).then_some("ssd");
            map.add_osd(host * 2 + osd, &format!("host{host}"), 3 * WEIGHT_ONE / 2, class).expect("an osd");
        }
    }
    let root = |map: &CrushMap| {
        let buckets = map.def().buckets.iter();
        let root = buckets.clone().find(|bucket| bucket.name == "default").expect("the root");
        root.items.iter().map(|item| item.weight).collect::<Vec<u32>>()
    };
    assert_eq!(root(&map), [3 * WEIGHT_ONE; 4]);
    for x in 0..500 {
        let osds = map.do_rule(by_host, x, 3, &map.full_reweights()).expect("a rule");
        let hosts: BTreeSet<i32> = osds.iter().map(|osd| osd / 2).collect();
        assert_eq!((osds.len(), hosts.len()), (3, 3), "{osds:?}");
        assert_eq!(map.do_rule(by_osd, x, 3, &map.full_reweights()).expect("a rule").len(), 3);
    }
    map.set_osd_weight(0, 5 * WEIGHT_ONE).expect("a device");
    assert_eq!(root(&map)[0], 13 * WEIGHT_ONE / 2);
    map.remove_osd(1).expect("a device");
    assert_eq!(root(&map)[0], 5 * WEIGHT_ONE);
    assert_eq!(CrushMap::parse(&map.to_text()).expect("what was written"), map);

    let before = map.clone();
    let not_empty = BuilderError::NotEmpty("host0".to_owned());
    assert_eq!(map.remove_bucket("host0"), Err(not_empty));
    assert_eq!(map.remove_osd(77), Err(BuilderError::NoSuchDevice(77)));
    let nowhere = BuilderError::NoSuchBucket("nowhere".to_owned());
    assert_eq!(map.add_osd(50, "nowhere", WEIGHT_ONE, None), Err(nowhere));
    assert!(matches!(map.add_osd(0, "host0", 1, None), Err(BuilderError::Invalid(_))));
    assert!(matches!(map.add_osd(50, "host0", u32::MAX, None), Err(BuilderError::Invalid(_))));
    assert!(matches!(map.add_host("host0"), Err(BuilderError::Invalid(_))));
    assert!(matches!(map.add_host("two words"), Err(BuilderError::Invalid(_))));
    assert!(matches!(map.add_rule_choose_osd("by-osd"), Err(BuilderError::Invalid(_))));
    assert_eq!(map, before, "a refused edit changes nothing");
}

#[test]
fn limits_of_a_placement() {
    let map = map();
    let reweights = map.full_reweights();
    assert_eq!(map.do_rule(2, 0, 3, &reweights), Err(DoRuleError::NoSuchRule(2)));
    let many = REPLICAS_MAX + 1;
    assert_eq!(map.do_rule(0, 0, many, &reweights), Err(DoRuleError::TooManyReplicas(many)));
    assert_eq!(map.do_rule(0, 0, 0, &reweights), Ok(vec![]));
    assert_eq!(map.do_rule(0, 0, 3, &[]), Ok(vec![]), "without reweights every device is out");
    assert_eq!(map.do_rule(4, 0, 2, &[]), Ok(vec![ITEM_NONE; 2]));
    map.do_rule(4, 0, REPLICAS_MAX, &reweights).expect("the limit");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Whatever is done to a map's text: an error or a map that places and can be written.
    #[test]
    fn mutated_maps_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..4u8, any::<u8>()), 1..6),
    ) {
        let mut bytes = MAP.as_bytes().to_vec();
        for (at, kind, byte) in edits {
            let at = at.index(bytes.len());
            let other = (at * 31 + usize::from(byte)) % bytes.len();
            match kind {
                0 => bytes[at] = b"0123456789-{}[] .#\nabe"[usize::from(byte) % 22],
                1 => { bytes.remove(at); }
                2 => bytes.insert(at, byte),
                _ => bytes.swap(at, other),
            }
        }
        if let Ok(map) = CrushMap::parse(&String::from_utf8_lossy(&bytes)) {
            prop_assert_eq!(&CrushMap::parse(&map.to_text()).expect("what was written"), &map);
            let reweights = map.full_reweights();
            for rule in &map.def().rules {
                map.do_rule(rule.id, 42, 3, &reweights).expect("its own rule");
            }
        }
    }

    #[test]
    fn placements_are_distinct_and_in(
        x in any::<u32>(),
        num_rep in 1..9usize,
        rule in prop::sample::select(vec![0u32, 4]),
        weights in prop::collection::vec(0..=WEIGHT_ONE, 9),
        out in prop::collection::hash_set(0..9usize, 0..5),
    ) {
        let map = map();
        let mut reweights = weights;
        for &osd in &out {
            reweights[osd] = 0;
        }
        let osds = map.do_rule(rule, x, num_rep, &reweights).expect("a rule");
        let real: Vec<i32> = osds.iter().copied().filter(|&osd| osd != ITEM_NONE).collect();
        let distinct: BTreeSet<i32> = real.iter().copied().collect();
        prop_assert_eq!(distinct.len(), real.len(), "{:?}", osds);
        prop_assert!(real.iter().all(|&osd| !out.contains(&(osd as usize))), "{:?}", osds);
        prop_assert!(rule == 0 || osds.len() == num_rep);
        prop_assert!(osds.len() <= num_rep);
    }
}
