//! From an object to its placement group, and from that to nodes.

use crate::count::{case, measured};
use trefoil_core::crush::{CrushMap, Placement, Scratch, WEIGHT_ONE, ceph_pg_to_x, object_pg};

const HOSTS: i32 = 40;
const PGS: u32 = 1024;

pub fn cases() {
    case("placement: object to placement group", 256, |n, counts| {
        let pg = measured(counts, || object_pg(7, n, PGS));
        assert!(pg < PGS);
    });

    let mut map = CrushMap::with_root();
    for host in 0..HOSTS {
        let name = format!("host{host}");
        map.add_host(&name).expect("a new host");
        for k in 0..4 {
            map.add_osd(host * 4 + k, &name, WEIGHT_ONE, None).expect("a new device");
        }
    }
    let rule_id = map.add_rule_chooseleaf_host("spread").expect("a rule");
    let reweights = map.full_reweights();
    let (mut scratch, mut osds) = (Scratch::default(), Vec::new());
    case("placement: group to three of 160 nodes", 256, |n, counts| {
        let x = ceph_pg_to_x(1, n % PGS, PGS);
        let placement = Placement { rule_id, x, num_rep: 3, reweights: &reweights, choose_args_id: 0 };
        measured(counts, || map.do_rule_into(&placement, &mut scratch, &mut osds)).expect("a rule");
        assert_eq!(osds.len(), 3);
    });
}
