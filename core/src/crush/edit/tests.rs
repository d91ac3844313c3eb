//! Edits: what they make, what they refuse, and that they leave alone what they do not touch.

use super::*;
use crate::crush::{BucketAlg, MapDef};
use proptest::prelude::*;

/// Two hosts in a rack, two classes, and a weight set with two positions.
const MAP: &str = "
    tunable choose_local_tries 0
    tunable choose_local_fallback_tries 0
    tunable choose_total_tries 50
    tunable chooseleaf_descend_once 1
    tunable chooseleaf_vary_r 1
    tunable chooseleaf_stable 1
    tunable straw_calc_version 1
    device 0 osd.0 class ssd
    device 1 osd.1 class hdd
    device 2 osd.2 class ssd
    device 3 osd.3 class hdd
    type 0 osd
    type 1 host
    type 3 rack
    type 11 root
    host a { id -2 alg straw2 item osd.0 weight 1.5 item osd.1 weight 0.5 }
    host b { id -3 alg straw2 item osd.2 weight 1.25 item osd.3 weight 2 }
    rack r { id -4 alg straw2 item a weight 2 item b weight 3.25 }
    root default { id -1 alg straw2 item r weight 5.25 }
    rule one { id 0 type replicated step take default step chooseleaf firstn 0 type host step emit }
    rule ssd { id 1 type replicated step take default class ssd step choose firstn 0 type osd step emit }
";

const SETS: &str = "
    choose_args 18446744073709551615 {
      { bucket_id -2 weight_set [ [ 1.0 0.5 ] [ 0.25 2.0 ] ] }
      { bucket_id -3 weight_set [ [ 2.0 0.5 ] [ 0.25 2.0 ] ] }
      { bucket_id -4 weight_set [ [ 1.5 2.5 ] [ 2.25 2.25 ] ] }
      { bucket_id -1 weight_set [ [ 4 ] [ 4.5 ] ] }
    }
";

fn map() -> CrushMap {
    CrushMap::parse(MAP).expect("a valid map")
}

fn place(text: &str) -> Location {
    let pair = |it: &str| it.split_once('=').map(|(level, name)| (level.to_owned(), name.to_owned()));
    text.split_whitespace().map(|it| pair(it).expect("LEVEL=NAME")).collect()
}

fn add(device: &str, weight: u32, at: &str) -> Edit {
    Edit::Add { device: device.to_owned(), weight, location: place(at) }
}

fn shift(name: &str, to: &str) -> Edit {
    Edit::Move { name: name.to_owned(), location: place(to) }
}

fn bucket(name: &str, type_name: &str, at: &str) -> Edit {
    Edit::AddBucket { name: name.to_owned(), type_name: type_name.to_owned(), location: place(at) }
}

fn remove(name: &str) -> Edit {
    Edit::Remove { name: name.to_owned() }
}

fn reweight(name: &str, weight: u32) -> Edit {
    Edit::Reweight { name: name.to_owned(), weight }
}

/// The items of a bucket by name, with their weights in 1/4.
fn items(map: &CrushMap, name: &str) -> Vec<(String, u32)> {
    let def = map.def();
    let named = |id: i32| {
        let bucket = def.buckets.iter().find(|it| it.id == id).map(|it| it.name.clone());
        bucket.unwrap_or_else(|| def.devices.iter().find(|it| it.id == id).expect("a device").name.clone())
    };
    let bucket = def.buckets.iter().find(|it| it.name == name).expect("a bucket");
    bucket.items.iter().map(|item| (named(item.id), item.weight * 4 / WEIGHT_ONE)).collect()
}

fn owned(entries: &[(&str, u32)]) -> Vec<(String, u32)> {
    entries.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect()
}

fn done(map: &CrushMap, edit: &Edit) -> (CrushMap, Vec<String>) {
    map.edited(edit).unwrap_or_else(|error| panic!("{edit:?}: {error}"))
}

fn refused(map: &CrushMap, edit: &Edit) -> String {
    map.edited(edit).expect_err("refused").to_string()
}

#[test]
fn a_device_is_added_and_what_lacks_is_made() {
    let (made, told) = done(&map(), &add("osd.7", 7 * WEIGHT_ONE / 4, "root=default host=c rack=r"));
    assert_eq!(items(&made, "c"), owned(&[("osd.7", 7)]));
    assert_eq!(items(&made, "r"), owned(&[("a", 8), ("b", 13), ("c", 7)]));
    assert_eq!(items(&made, "default"), owned(&[("r", 28)]));
    assert_eq!(told, ["made host c", "added osd.7 to host c with weight 1.75000"]);
    // A number, and the name that Trefoil gives to nodes, are the same device.
    for name in ["7", "node.7"] {
        assert_eq!(done(&map(), &add(name, 7 * WEIGHT_ONE / 4, "root=default host=c rack=r")).0, made);
    }
    // The lowest level that exists is enough.
    assert_eq!(done(&made, &add("osd.7", 7 * WEIGHT_ONE / 4, "host=c")), (made.clone(), vec![]));
    // As in Ceph, adding what is there sets place and weight.
    let (moved, told) = done(&made, &add("osd.7", WEIGHT_ONE, "host=b"));
    assert_eq!(items(&moved, "b"), owned(&[("osd.2", 5), ("osd.3", 8), ("osd.7", 4)]));
    assert_eq!(items(&moved, "r"), owned(&[("a", 8), ("b", 17), ("c", 0)]));
    assert_eq!(told, ["moved osd.7 from c to host b", "reweighted osd.7 from 1.75000 to 1.00000"]);
}

#[test]
fn a_whole_branch_is_made_and_moved() {
    let (made, told) = done(&map(), &add("osd.4", WEIGHT_ONE, "host=h root=other rack=s"));
    assert_eq!(items(&made, "other"), owned(&[("s", 4)]));
    assert!(told.last().expect("a line").contains("other is below nothing"), "{told:?}");
    let (made, _) = done(&made, &shift("h", "rack=t root=default"));
    assert_eq!(items(&made, "default"), owned(&[("r", 21), ("t", 4)]));
    assert_eq!(items(&made, "t"), owned(&[("h", 4)]));
    assert_eq!((items(&made, "other"), items(&made, "s")), (owned(&[("s", 0)]), vec![]));
    // A root goes below another bucket with the weight of what is in it.
    let (made, _) = done(&made, &bucket("x", "rack", ""));
    let (made, _) = done(&made, &shift("h", "rack=x"));
    let (made, _) = done(&made, &shift("x", "root=default"));
    assert_eq!(items(&made, "default"), owned(&[("r", 21), ("t", 0), ("x", 4)]));
}

#[test]
fn weights_come_from_one_device_or_a_whole_branch() {
    let (made, told) = done(&map(), &reweight("osd.3", WEIGHT_ONE));
    assert_eq!(items(&made, "default"), owned(&[("r", 17)]));
    assert_eq!(told, ["reweighted osd.3 from 2.00000 to 1.00000"]);
    assert_eq!(done(&made, &reweight("3", WEIGHT_ONE)), (made.clone(), vec![]));
    let all = Edit::ReweightSubtree { name: "default".to_owned(), weight: WEIGHT_ONE };
    let (made, told) = done(&made, &all);
    assert_eq!(items(&made, "r"), owned(&[("a", 8), ("b", 8)]));
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(refused(&map(), &reweight("a", 1)).contains("no device `a`"));
    assert!(refused(&map(), &reweight("osd.0", u32::MAX)).contains("outside 0 to"));
}

#[test]
fn only_what_is_empty_and_not_taken_is_removed() {
    assert!(refused(&map(), &remove("a")).contains("`a` is not empty"));
    let (made, _) = done(&map(), &remove("osd.0"));
    let (made, _) = done(&made, &remove("1"));
    let (made, told) = done(&made, &remove("a"));
    assert_eq!((items(&made, "r"), told), (owned(&[("b", 13)]), vec!["removed a".to_owned()]));
    assert_eq!(made.def().devices.len(), 2);
    let (empty, _) = done(&map(), &bucket("spare", "root", ""));
    let rule = Edit::CreateRule {
        name: "on-spare".to_owned(),
        root: "spare".to_owned(),
        type_name: "osd".to_owned(),
        class: None,
    };
    let (made, _) = done(&empty, &rule);
    assert!(refused(&made, &remove("spare")).contains("rule `on-spare` takes `spare`"));
    let (made, _) = done(&made, &Edit::RemoveRule { name: "on-spare".to_owned() });
    assert_eq!(made, empty);
    assert_eq!(done(&made, &remove("spare")).0, map());
}

#[test]
fn names_and_classes_change_no_placement_they_do_not_name() {
    let rename = |from: &str, to: &str| Edit::Rename { from: from.to_owned(), to: to.to_owned() };
    let (made, told) = done(&map(), &rename("a", "z"));
    assert_eq!(told, ["renamed a to z"]);
    let full = map().full_reweights();
    for x in 0..200 {
        assert_eq!(made.do_rule(0, x, 2, &full), map().do_rule(0, x, 2, &full));
    }
    assert!(refused(&map(), &rename("a", "b")).contains("bucket `b` already"));
    for bad in ["", "a b", "osd.9", "9", "é", &"x".repeat(65)] {
        assert!(refused(&map(), &rename("a", bad)).contains("is no name"), "{bad}");
    }
    let class = |class: &str, devices: &[&str]| Edit::SetClass {
        class: class.to_owned(),
        devices: devices.iter().map(|it| (*it).to_owned()).collect(),
    };
    assert!(refused(&map(), &class("ssd", &["osd.0", "osd.1"])).contains("`osd.1` has class hdd already"));
    let (made, _) = done(&map(), &Edit::RemoveClass { devices: vec!["osd.1".to_owned()] });
    let (made, told) = done(&made, &class("ssd", &["osd.0", "osd.1"]));
    assert_eq!(told, ["osd.1 has class ssd"]);
    assert!((0..50).any(|x| made.do_rule(1, x, 3, &full).is_ok_and(|set| set.contains(&1))));
}

#[test]
fn a_rule_keeps_copies_apart_within_a_class() {
    let rule = |type_name: &str, class: Option<&str>| Edit::CreateRule {
        name: "fast".to_owned(),
        root: "default".to_owned(),
        type_name: type_name.to_owned(),
        class: class.map(str::to_owned),
    };
    let (made, _) = done(&map(), &rule("host", Some("ssd")));
    let full = made.full_reweights();
    for x in 0..50 {
        let mut set = made.do_rule(2, x, 2, &full).expect("a rule");
        set.sort_unstable();
        assert_eq!(set, [0, 2]);
    }
    assert!(refused(&made, &rule("host", None)).contains("rule `fast` already"));
    assert!(refused(&map(), &rule("shelf", None)).contains("its types are osd, host, rack, root"));
    assert!(refused(&map(), &rule("host", Some("nvme"))).contains("device class `nvme` is not defined"));
}

#[test]
fn places_that_make_no_sense_are_refused() {
    let told = |edit: Edit| refused(&map(), &edit);
    assert!(told(shift("a", "")).contains("root=default host=h1"));
    assert!(told(shift("none", "root=default")).contains("no bucket or device `none`"));
    assert!(told(shift("a", "shelf=s")).contains("no type `shelf`"));
    assert!(told(shift("osd.0", "host=a host=b")).contains("two buckets of type host"));
    assert!(told(shift("osd.0", "host=r")).contains("`r` is a rack: say rack=r"));
    assert!(told(shift("osd.0", "host=osd.1")).contains("`osd.1` is a osd"));
    assert!(told(shift("osd.0", "host=b rack=s")).contains("`b` is below rack=s, which it is not"));
    assert!(told(shift("r", "host=a")).contains("a rack cannot be below a host"));
    assert!(told(shift("a", "osd=osd.1")).contains("a host cannot be below a osd"));
    assert!(told(shift("a", "host=b")).contains("a host cannot be below a host"));
    assert!(told(bucket("a", "host", "root=default")).contains("bucket `a` already"));
    assert!(told(bucket("osd.5", "host", "root=default")).contains("is no name"));
    assert!(told(bucket("x", "osd", "")).contains("cannot be below"));
    assert!(told(add("osd.x", WEIGHT_ONE, "host=a")).contains("no device `osd.x`"));
    assert!(told(add("1048576", WEIGHT_ONE, "host=a")).contains("no device"));
    assert!(told(add("osd.9", WEIGHT_ONE, "")).contains("give a place"));
    let linked =
        MAP.replace("item a weight 2 item b", "item b").replace("item r weight 5.25", "item r item b");
    let linked = CrushMap::parse(&linked).expect("a valid map");
    assert!(refused(&linked, &shift("b", "root=default")).contains("more than one bucket"));
}

/// What `docs/operations.md` says of taking a device out in two steps, and of adding one with weight 0.
#[test]
fn a_device_of_weight_0_takes_no_part_in_any_choice() {
    let (light, _) = done(&map(), &reweight("osd.1", 0));
    let (gone, _) = done(&light, &remove("osd.1"));
    let (added, _) = done(&map(), &add("osd.9", 0, "host=c rack=r root=default"));
    let full = added.full_reweights();
    let moved = |one: &CrushMap, other: &CrushMap| {
        (0..500).filter(|x| one.do_rule(0, *x, 2, &full) != other.do_rule(0, *x, 2, &full)).count()
    };
    assert_eq!((moved(&light, &gone), moved(&map(), &added)), (0, 0));
    assert!(moved(&map(), &light) > 0);
    let (heavy, _) = done(&added, &reweight("osd.9", WEIGHT_ONE));
    let mut absent = full.clone();
    absent[9] = 0;
    let strays = (0..500).filter(|x| heavy.do_rule(0, *x, 2, &absent) != map().do_rule(0, *x, 2, &absent));
    assert!(strays.count() > 0, "it is chosen, given up, and others are chosen");
}

/// The weights of the plain buckets' sets, by bucket and position, in 1/4.
fn sets(map: &CrushMap) -> Vec<(i32, Vec<Vec<u32>>)> {
    let quarters = |weights: &Vec<u32>| weights.iter().map(|weight| weight * 4 / WEIGHT_ONE).collect();
    let args = map.def().choose_args.iter().flat_map(|set| &set.args);
    args.map(|arg| (arg.bucket_id, arg.weight_set.iter().map(quarters).collect())).collect()
}

/// What `crushtool --reweight-item osd.3 1.0` and `--remove-item osd.1` of Ceph 16.2.15 make of the sets.
#[test]
fn weight_sets_are_kept_in_step_as_crushtool_does() {
    let map = CrushMap::parse(&format!("{MAP}{SETS}")).expect("a valid map");
    let (made, _) = done(&map, &reweight("osd.3", WEIGHT_ONE));
    let expected = vec![
        (-1, vec![vec![18], vec![14]]),
        (-2, vec![vec![4, 2], vec![1, 8]]),
        (-3, vec![vec![8, 4], vec![1, 4]]),
        (-4, vec![vec![6, 12], vec![9, 5]]),
    ];
    assert_eq!(sets(&made), expected);
    let (made, _) = done(&map, &remove("osd.1"));
    let expected = vec![
        (-1, vec![vec![14], vec![10]]),
        (-2, vec![vec![4], vec![1]]),
        (-3, vec![vec![8, 2], vec![1, 8]]),
        (-4, vec![vec![4, 10], vec![1, 9]]),
    ];
    assert_eq!(sets(&made), expected);
}

#[test]
fn the_weight_sets_of_classes_follow_their_originals() {
    let plain = CrushMap::parse(&format!("{MAP}{SETS}")).expect("a valid map");
    let shadow = |name: &str| {
        let bucket = plain.def().buckets.iter().find(|it| it.name == name).expect("a bucket");
        bucket.class_ids.iter().find(|entry| entry.0 == "ssd").expect("a class").1
    };
    let (a, r) = (shadow("a"), shadow("r"));
    let mut def: MapDef = plain.def().clone();
    for (bucket_id, weights) in [(a, vec![1]), (r, vec![1, 1])] {
        let weight_set = vec![weights];
        def.choose_args[0].args.push(crate::crush::ChooseArg { bucket_id, weight_set, ids: vec![] });
    }
    let map = CrushMap::new(def).expect("valid");
    let (made, _) = done(&map, &add("osd.6", WEIGHT_ONE, "host=a"));
    let (made, _) =
        done(&made, &Edit::SetClass { class: "ssd".to_owned(), devices: vec!["osd.6".to_owned()] });
    let found: Vec<_> = sets(&made).into_iter().filter(|(id, _)| [a, r].contains(id)).collect();
    // osd.0 as in the host's set, osd.6 with its weight; above them the sums, and host b by its weight.
    let expected = [(a, vec![vec![4, 4], vec![1, 4]]), (r, vec![vec![8, 5], vec![5, 5]])];
    assert_eq!(found, expected);
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let name = prop::sample::select(vec!["a", "b", "c", "r", "s", "default", "other", "osd.0", "osd.3", "9"]);
    let level = prop::sample::select(vec!["osd", "host", "rack", "root", "none"]);
    let location = prop::collection::vec((level.clone(), name.clone()), 0..4).prop_map(|pairs| {
        pairs.into_iter().map(|(level, name)| (level.to_owned(), name.to_owned())).collect::<Location>()
    });
    let weight = prop_oneof![Just(0u32), 1u32..(3 * WEIGHT_ONE), Just(100 * WEIGHT_ONE), any::<u32>()];
    let text = name.prop_map(str::to_owned);
    prop_oneof![
        (text.clone(), weight.clone(), location.clone()).prop_map(|(device, weight, location)| Edit::Add {
            device,
            weight,
            location
        }),
        (text.clone(), level.clone(), location.clone()).prop_map(|(name, level, location)| {
            Edit::AddBucket { name, type_name: level.to_owned(), location }
        }),
        (text.clone(), location).prop_map(|(name, location)| Edit::Move { name, location }),
        (text.clone(), weight.clone()).prop_map(|(name, weight)| Edit::Reweight { name, weight }),
        (text.clone(), weight).prop_map(|(name, weight)| Edit::ReweightSubtree { name, weight }),
        text.clone().prop_map(|name| Edit::Remove { name }),
        (text.clone(), text.clone()).prop_map(|(from, to)| Edit::Rename { from, to }),
        (text.clone(), text.clone())
            .prop_map(|(class, device)| Edit::SetClass { class, devices: vec![device] }),
        text.prop_map(|device| Edit::RemoveClass { devices: vec![device] }),
    ]
}

proptest! {
    /// Whatever edits come: what comes out can be written, read and edited on, its weights add up, and no
    /// edit makes an equal map and says that it did something, or the reverse.
    #[test]
    fn any_edits_leave_a_whole_map(edits in prop::collection::vec(any_edit(), 0..20), sets in any::<bool>()) {
        let text = if sets { format!("{MAP}{SETS}") } else { MAP.to_owned() };
        let mut map = CrushMap::parse(&text).expect("a valid map");
        for edit in &edits {
            let Ok((next, told)) = map.edited(edit) else { continue };
            prop_assert_eq!(told.is_empty(), next == map, "{:?}: {:?}", edit, told);
            map = next;
            prop_assert_eq!(&CrushMap::parse(&map.to_text()).expect("what was written"), &map);
            let def = map.def();
            for bucket in &def.buckets {
                prop_assert_eq!(bucket.alg, BucketAlg::Straw2);
                for item in bucket.items.iter().filter(|item| item.id < 0) {
                    let below = def.buckets.iter().find(|it| it.id == item.id).expect("a bucket");
                    let sum: u64 = below.items.iter().map(|item| u64::from(item.weight)).sum();
                    // 24 significant bits.
                    prop_assert!(u64::from(item.weight) <= sum && u64::from(item.weight) + 256 > sum);
                }
            }
        }
    }
}
