//! Every reference case made by Ceph's own tools: CRUSH must give their answers bit for bit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use trefoil_core::crush::{
    CrushMap, Placement, Scratch, WEIGHT_ONE, ceph_object_hash, ceph_pg_to_x, ceph_stable_mod,
    ceph_str_hash_rjenkins, crush_hash32, crush_hash32_2, crush_hash32_3, crush_hash32_4, crush_hash32_5,
    pg_mask,
};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/crush-vectors")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&read(path)).expect("valid JSON")
}

fn map(path: &Path) -> CrushMap {
    CrushMap::parse(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn number(value: &Value) -> u32 {
    value.as_u64().expect("a number") as u32
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn string(value: &Value) -> &str {
    value.as_str().expect("a string")
}

/// `[1,2,3]`, as crushtool prints it.
fn listed(ids: &[i32]) -> String {
    let ids: Vec<String> = ids.iter().map(i32::to_string).collect();
    format!("[{}]", ids.join(","))
}

/// The maps of all cases, and that of `pg/`.
fn map_paths() -> Vec<PathBuf> {
    let entries = fs::read_dir(vectors()).expect("the reference data");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path().join("map.txt"))
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    assert!(paths.len() >= 13, "only {} maps", paths.len());
    paths
}

#[test]
fn placements() {
    let mut scratch = Scratch::default();
    let mut result = Vec::new();
    let mut lines = 0;
    for case in list(&json(&vectors().join("cases.json"))) {
        for run in list(&case["runs"]) {
            let file = string(&run["file"]);
            let map = map(&vectors().join(string(&run["map"])));
            let mut reweights = map.full_reweights();
            for (osd, weight) in run["reweight"].as_object().expect("reweight") {
                let osd: usize = osd.parse().expect("an osd id");
                let weight = weight.as_f64().expect("a weight") as f32;
                reweights[osd] = (weight * WEIGHT_ONE as f32) as u32;
            }
            let expected = read(&vectors().join(file));
            assert_eq!(expected.lines().count(), 1024, "{file}");
            for (x, expected) in (0..).zip(expected.lines()) {
                let placement = Placement {
                    rule_id: number(&run["rule"]),
                    x,
                    num_rep: number(&run["num_rep"]) as usize,
                    reweights: &reweights,
                    choose_args_id: 0,
                };
                map.do_rule_into(&placement, &mut scratch, &mut result).expect("a rule");
                assert_eq!(format!("{x} {}", listed(&result)), expected, "{file}");
                lines += 1;
            }
        }
    }
    assert!(lines > 80_000, "only {lines} placements");
}

#[test]
fn hashes() {
    let table = json(&vectors().join("hash.json"));
    let cases = |name: &str| -> Vec<(Vec<u32>, u32)> {
        let case = |case: &Value| (list(&case[0]).iter().map(number).collect(), number(&case[1]));
        let cases: Vec<_> = list(&table[name]).iter().map(case).collect();
        assert!(cases.len() >= 100, "only {} cases of {name}", cases.len());
        cases
    };
    for (a, expected) in cases("crush_hash32") {
        assert_eq!(crush_hash32(a[0]), expected, "{a:?}");
    }
    for (a, expected) in cases("crush_hash32_2") {
        assert_eq!(crush_hash32_2(a[0], a[1]), expected, "{a:?}");
    }
    for (a, expected) in cases("crush_hash32_3") {
        assert_eq!(crush_hash32_3(a[0], a[1], a[2]), expected, "{a:?}");
    }
    for (a, expected) in cases("crush_hash32_4") {
        assert_eq!(crush_hash32_4(a[0], a[1], a[2], a[3]), expected, "{a:?}");
    }
    for (a, expected) in cases("crush_hash32_5") {
        assert_eq!(crush_hash32_5(a[0], a[1], a[2], a[3], a[4]), expected, "{a:?}");
    }
    let strings = list(&table["ceph_str_hash_rjenkins"]);
    assert!(strings.len() >= 100);
    for case in strings {
        let hex = string(&case[0]);
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        assert_eq!(ceph_str_hash_rjenkins(&bytes), number(&case[1]), "{hex}");
    }
}

fn pools() -> BTreeMap<u32, Value> {
    let pools = json(&vectors().join("pg/pools.json"));
    list(&pools["pools"]).iter().map(|pool| (number(&pool["pool"]), pool.clone())).collect()
}

#[test]
fn objects_to_pgs() {
    let pools = pools();
    let mut objects = 0;
    for line in read(&vectors().join("pg/objects.jsonl")).lines() {
        let object: Value = serde_json::from_str(line).expect("valid JSON");
        let pool = number(&object["pool"]);
        let pg_num = number(&pools[&pool]["pg_num"]);
        let hash = ceph_object_hash(string(&object["namespace"]), string(&object["object"]));
        let pg = ceph_stable_mod(hash, pg_num, pg_mask(pg_num));
        assert_eq!(format!("{pool}.{hash:x}"), object["raw_pgid"], "{line}");
        assert_eq!(format!("{pool}.{pg:x}"), object["pgid"], "{line}");
        objects += 1;
    }
    assert!(objects > 100, "only {objects} objects");
}

#[test]
fn pgs_to_osds() {
    let map = map(&vectors().join("pg/map.txt"));
    let mut pgs = 0;
    for (id, pool) in pools() {
        for (state, out) in [("all-in", None), ("osd15-out", Some(15))] {
            let mut reweights = map.full_reweights();
            if let Some(osd) = out {
                reweights[osd] = 0;
            }
            let name = string(&pool["pool_name"]);
            let file = vectors().join(format!("pg/pgs.{name}.{state}.txt"));
            let mut count = 0;
            for line in read(&file).lines() {
                let fields: Vec<&str> = line.split('\t').collect();
                let (_, pg) = fields[0].split_once('.').expect("a pgid");
                let pg = u32::from_str_radix(pg, 16).expect("hex");
                let x = ceph_pg_to_x(id, pg, number(&pool["pg_placement_num"]));
                let size = number(&pool["size"]) as usize;
                let osds = map.do_rule(number(&pool["crush_rule"]), x, size, &reweights);
                let osds = osds.expect("a rule");
                assert_eq!(listed(&osds), fields[1], "{line} of {name}, {state}");
                assert_eq!(osds[0].to_string(), fields[2], "{line} of {name}, {state}");
                count += 1;
            }
            assert_eq!(count, number(&pool["pg_num"]), "{name}, {state}");
            pgs += count;
        }
    }
    assert!(pgs > 1000, "only {pgs} groups");
}

/// The tree of a map by bucket id: name, type, and items with their weights.
type Tree = BTreeMap<i64, (String, String, Vec<(i64, u64)>)>;

fn dumped_tree(dump: &Value) -> Tree {
    let item = |item: &Value| (item["id"].as_i64().unwrap(), item["weight"].as_u64().unwrap());
    let bucket = |bucket: &Value| {
        let items = list(&bucket["items"]).iter().map(item).collect();
        let names = (string(&bucket["name"]).to_owned(), string(&bucket["type_name"]).to_owned());
        (bucket["id"].as_i64().unwrap(), (names.0, names.1, items))
    };
    list(&dump["buckets"]).iter().map(bucket).collect()
}

/// What the parser makes of each text, against crushtool's own dump of the same map.
#[test]
fn parsed_maps() {
    for path in map_paths() {
        let map = map(&path);
        let def = map.def();
        let dump = json(&path.with_file_name("map.json"));
        let dumped = dumped_tree(&dump);
        let mut shadows = 0;
        for bucket in &def.buckets {
            let known = def.types.iter().find(|entry| entry.id == bucket.type_id).unwrap();
            let items = bucket.items.iter().map(|item| (item.id.into(), item.weight.into()));
            let parsed = (bucket.name.clone(), known.name.clone(), items.collect());
            assert_eq!(parsed, dumped[&i64::from(bucket.id)], "{}", path.display());
            for (class, id) in &bucket.class_ids {
                assert_eq!(dumped[&i64::from(*id)].0, format!("{}~{class}", bucket.name));
                shadows += 1;
            }
        }
        assert_eq!(dumped.len(), def.buckets.len() + shadows, "{}", path.display());
        let dumped = &dump["tunables"];
        let tunables = &def.tunables;
        for (name, parsed) in [
            ("choose_total_tries", tunables.choose_total_tries),
            ("choose_local_tries", tunables.choose_local_tries),
            ("choose_local_fallback_tries", tunables.choose_local_fallback_tries),
            ("chooseleaf_descend_once", tunables.chooseleaf_descend_once),
            ("chooseleaf_vary_r", tunables.chooseleaf_vary_r),
            ("chooseleaf_stable", tunables.chooseleaf_stable),
            ("straw_calc_version", tunables.straw_calc_version),
            ("allowed_bucket_algs", tunables.allowed_bucket_algs),
        ] {
            assert_eq!(parsed, number(&dumped[name]), "{name} in {}", path.display());
        }
        let dumped = list(&dump["rules"]);
        assert_eq!(def.rules.len(), dumped.len());
        for (rule, dumped) in def.rules.iter().zip(dumped) {
            assert_eq!(rule.id, number(&dumped["rule_id"]));
            assert_eq!(rule.name, string(&dumped["rule_name"]));
            assert_eq!(u32::from(rule.max_size), number(&dumped["max_size"]));
            assert_eq!(rule.steps.len(), list(&dumped["steps"]).len());
        }
    }
}

/// Writing a parsed map gives the very text that crushtool prints; storing it loses nothing.
#[test]
fn written_maps() {
    for path in map_paths() {
        let text = read(&path);
        let map = map(&path);
        assert_eq!(map.to_text(), text, "{}", path.display());
        let stored = serde_json::to_string(&map).expect("serialisable");
        let restored: CrushMap = serde_json::from_str(&stored).expect("valid");
        assert_eq!(restored, map);
        assert_eq!(restored.to_text(), text);
    }
}
