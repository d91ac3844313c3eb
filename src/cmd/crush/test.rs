//! `trefoil crush test`: what a CRUSH map would place where, without a cluster.
//!
//! For the administrator who wants to see what a map or a rule does before a cluster follows it,
//! and for comparing with Ceph: the output is that of `crushtool --test --show-mappings`. Reads
//! one file, writes to the given output, touches nothing else.

use super::file;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{bail, ensure};
use clap::Args;
use trefoil_core::crush::{CrushMap, Placement, REPLICAS_MAX, Scratch, WEIGHT_ONE};

/// Places a range of inputs by a rule of a CRUSH map and prints where they go.
#[derive(Args, Debug)]
pub struct CrushTestArgs {
    /// The map, in the text format of `crushtool -d`.
    #[arg(long, value_name = "FILE.txt")]
    pub map: PathBuf,
    /// The id of the rule.
    #[arg(long, value_name = "ID")]
    pub rule: u32,
    /// How many replicas to place.
    #[arg(long, value_name = "N")]
    pub num_rep: usize,
    /// The first input.
    #[arg(long, value_name = "X", default_value_t = 0)]
    pub min_x: u32,
    /// The last input.
    #[arg(long, value_name = "X", default_value_t = 1023)]
    pub max_x: u32,
    /// The share of inputs that a device keeps: 0 is out, 1 is in. Devices not named are in.
    #[arg(long = "weight", value_name = "OSD=W")]
    pub weights: Vec<Reweight>,
}

/// A `--weight OSD=W`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reweight {
    osd: u32,
    /// 16.16, at most 1.0.
    weight: u32,
}

impl FromStr for Reweight {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = "give OSD=W, such as 3=0.5, with the id of a device and a weight from 0 to 1";
        let (osd, weight) = text.split_once('=').ok_or(usage)?;
        let osd = osd.parse().map_err(|_| usage)?;
        let weight: f32 = weight.parse().map_err(|_| usage)?;
        if !(0.0..=1.0).contains(&weight) {
            return Err(usage.to_owned());
        }
        // Single precision and cut off, as crushtool computes it.
        Ok(Self { osd, weight: (weight * WEIGHT_ONE as f32) as u32 })
    }
}

/// Runs the command: one line `CRUSH rule R x X [a,b,c]` per input, 2147483647 for a hole.
///
/// # Errors
///
/// The map cannot be read or is not valid, or has no such rule or device; the range of inputs is
/// empty; the output cannot be written. A reader that has gone away is not an error.
pub fn run(args: &CrushTestArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    match print_mappings(args, out) {
        Err(error) if is_closed_pipe(&error) => Ok(()),
        result => result,
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == ErrorKind::BrokenPipe)
}

fn print_mappings(args: &CrushTestArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    ensure!(
        args.min_x <= args.max_x,
        "--min-x {} is greater than --max-x {}: swap them",
        args.min_x,
        args.max_x
    );
    ensure!(
        (1..=REPLICAS_MAX).contains(&args.num_rep),
        "--num-rep {} is outside 1 to {REPLICAS_MAX}",
        args.num_rep
    );
    let map = file::read(&args.map)?.map;
    if !map.has_rule(args.rule) {
        let rules = map.def().rules.iter();
        let rules: Vec<String> = rules.map(|rule| format!("{} ({})", rule.id, rule.name)).collect();
        bail!(
            "{} has no rule {}; its rules are: {}",
            args.map.display(),
            args.rule,
            if rules.is_empty() { "none".to_owned() } else { rules.join(", ") }
        );
    }
    let reweights = reweights(args, &map)?;
    let mut scratch = Scratch::default();
    let mut osds = Vec::new();
    // Lines are gathered, so that a plain file or terminal is not written to for each.
    let mut lines = Vec::with_capacity(FLUSH_BYTES + 1024);
    for x in args.min_x..=args.max_x {
        let placement = Placement {
            rule_id: args.rule,
            x,
            num_rep: args.num_rep,
            reweights: &reweights,
            choose_args_id: 0,
        };
        map.do_rule_into(&placement, &mut scratch, &mut osds)?;
        write!(lines, "CRUSH rule {} x {x} [", args.rule)?;
        for (i, osd) in osds.iter().enumerate() {
            write!(lines, "{}{osd}", if i == 0 { "" } else { "," })?;
        }
        lines.extend_from_slice(b"]\n");
        if lines.len() >= FLUSH_BYTES {
            out.write_all(&lines)?;
            lines.clear();
        }
    }
    out.write_all(&lines)?;
    out.flush()?;
    Ok(())
}

/// How much output is gathered before it is written.
const FLUSH_BYTES: usize = 64 * 1024;

fn reweights(args: &CrushTestArgs, map: &CrushMap) -> anyhow::Result<Vec<u32>> {
    let mut reweights = map.full_reweights();
    let devices: BTreeMap<i64, &str> =
        map.def().devices.iter().map(|device| (device.id.into(), device.name.as_str())).collect();
    for entry in &args.weights {
        let slot = reweights.get_mut(entry.osd as usize);
        let known = devices.contains_key(&entry.osd.into());
        let Some(slot) = slot.filter(|_| known) else {
            bail!("--weight {}=...: {} has no such device", entry.osd, args.map.display());
        };
        *slot = entry.weight;
    }
    Ok(reweights)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "
        device 0 osd.0
        device 1 osd.1
        device 4 osd.4
        type 0 osd
        type 1 root
        root default { id -1 alg straw2 item osd.0 item osd.1 item osd.4 }
        rule all { id 0 type replicated step take default step choose firstn 0 type osd step emit }
        rule ec { id 3 type erasure step take default step choose indep 0 type osd step emit }
    ";

    fn test(map: &str, edit: impl FnOnce(&mut CrushTestArgs)) -> anyhow::Result<String> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("map.txt");
        std::fs::write(&path, map)?;
        let mut args = CrushTestArgs { map: path, rule: 0, num_rep: 3, min_x: 0, max_x: 1, weights: vec![] };
        edit(&mut args);
        let mut out = Vec::new();
        run(&args, &mut out)?;
        Ok(String::from_utf8(out)?)
    }

    fn failure(map: &str, edit: impl FnOnce(&mut CrushTestArgs)) -> String {
        format!("{:#}", test(map, edit).expect_err("bad input"))
    }

    #[test]
    fn prints_what_crushtool_prints() {
        let out = test(MAP, |_| ()).unwrap();
        assert_eq!(out, EXPECTED_FIRSTN);
        let all_out = |args: &mut CrushTestArgs| {
            args.rule = 3;
            args.max_x = 0;
            args.weights = ["1=0", "4=0.0"].map(|weight| weight.parse().unwrap()).to_vec();
        };
        let hole = "2147483647";
        let out = test(MAP, all_out).unwrap();
        assert_eq!(out.matches(hole).count(), 2, "{out}");
        assert!(out.starts_with("CRUSH rule 3 x 0 [") && out.ends_with("]\n"), "{out}");
    }

    /// crushtool 16.2.15's own output for this map.
    const EXPECTED_FIRSTN: &str = "CRUSH rule 0 x 0 [0,4,1]\nCRUSH rule 0 x 1 [4,0,1]\n";

    #[test]
    fn reweights_are_cut_off_as_in_crushtool() {
        let weight = |text: &str| text.parse::<Reweight>().map(|reweight| reweight.weight);
        assert_eq!(weight("7=0.3"), Ok(19660));
        assert_eq!(weight("7=1"), Ok(65536));
        for bad in ["", "7", "=", "7=", "-1=1", "a=1", "7=1.01", "7=-0.5", "7=nan", "7=inf"] {
            assert!(weight(bad).unwrap_err().contains("OSD=W"), "{bad}");
        }
    }

    #[test]
    fn bad_input_is_told() {
        let told = failure(MAP, |args| args.rule = 2);
        assert!(told.contains("no rule 2; its rules are: 0 (all), 3 (ec)"), "{told}");
        let told = failure(MAP, |args| args.weights = vec!["2=0.5".parse().unwrap()]);
        assert!(told.contains("--weight 2=") && told.contains("no such device"), "{told}");
        let told = failure(MAP, |args| (args.min_x, args.max_x) = (2, 1));
        assert!(told.contains("--min-x 2 is greater than --max-x 1"), "{told}");
        let told = failure(MAP, |args| args.num_rep = 0);
        assert!(told.contains("--num-rep 0 is outside 1 to"), "{told}");
        let told = failure(MAP, |args| args.map.push("missing"));
        assert!(told.contains("cannot open the map"), "{told}");
        let told = failure(&MAP.replace("straw2", "straw3"), |_| ());
        assert!(told.contains("line 7, column 34: unknown bucket algorithm `straw3`"), "{told}");
    }
}
