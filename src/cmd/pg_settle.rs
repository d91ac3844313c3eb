//! `trefoil pg settle`: an administrator's word where copies differ and no majority says which is right.
//!
//! The word is soft state of the monitor that leads, and of the nodes that hear it. So the command does not
//! believe that it was given: it looks until the blocks are in doubt no more, and gives it again where it was lost.

use super::Global;
use crate::admin::{self, Admin};
use crate::failure::{Failure, Outcome};
use crate::output;
use anyhow::{Context, anyhow};
use clap::Args;
use std::io::Write;
use std::time::{Duration, Instant};
use trefoil_core::ids::{BlockRange, NodeId, ObjectId};
use trefoil_core::limits::OBJECT_BLOCKS_MAX;
use trefoil_core::scrub::Doubt;
use trefoil_monitor::rpc::VolumeKey;
use trefoil_monitor::scrub::CopyDoubts;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// The word is given again when the blocks are still disputed after so long. Longer than it takes to be heard.
const AGAIN: Duration = Duration::from_secs(10);
/// Between two words on how far it is.
const TELL: Duration = Duration::from_secs(5);

/// Say which copy of blocks is to be believed, where copies differ and no majority says it
#[derive(Args, Debug)]
#[command(after_help = "\
Nothing is guessed: reads of such blocks fail until they are written, until a third copy settles them, or
until this command is given. `trefoil pg show --object VOLUME/INDEX` shows which copy holds what. The copy that
is named is believed, and the others are replaced by it. What they held of these blocks is lost.

The command waits until no copy has these blocks in doubt any more, for at most --wait seconds.

Examples:
  trefoil pg settle --object disk0/3 --block 17 --from 2
  trefoil pg settle --object disk0/3 --from 2 --no-wait")]
pub struct SettleArgs {
    /// The object: its volume's name, and its number
    #[arg(long, value_name = "VOLUME/INDEX")]
    object: String,
    /// The block within the object; without it, all of its disputed blocks
    #[arg(long, value_name = "N")]
    block: Option<u32>,
    /// The node whose copy is to be believed
    #[arg(long, value_name = "NODE")]
    from: u32,
    /// Wait for at most so many seconds until it is done
    #[arg(long, value_name = "SECONDS", default_value_t = 120, conflicts_with = "no_wait")]
    wait: u32,
    /// Do not wait: the word is given once, and `trefoil health --detail` shows what comes of it
    #[arg(long)]
    no_wait: bool,
}

/// VOLUME/INDEX.
pub fn object_name(text: &str) -> Outcome<(&str, u32)> {
    let wrong = || anyhow!("--object {text:?}: give VOLUME/INDEX, as in disk0/3");
    let (volume, index) = text.rsplit_once('/').ok_or_else(|| Failure::usage(wrong()))?;
    let index = index.parse().with_context(|| format!("{:#}", wrong())).map_err(Failure::usage)?;
    Ok((volume, index))
}

/// Runs `trefoil pg settle`.
pub fn settle(args: &SettleArgs, global: &Global, out: &mut dyn Write) -> Outcome {
    let (volume, index) = object_name(&args.object)?;
    let blocks = match args.block {
        None => BlockRange::new(0, OBJECT_BLOCKS_MAX),
        Some(block) if block < OBJECT_BLOCKS_MAX => BlockRange::new(block, 1),
        Some(block) => {
            let text = format!("--block {block}: an object has at most {OBJECT_BLOCKS_MAX} blocks");
            return Err(Failure::usage(anyhow!(text)));
        }
    };
    let (key, from) = (VolumeKey::Name(volume.to_owned()), NodeId(args.from));
    let text = admin::block_on(async {
        let mut admin = Admin::connect(global)?;
        let map = admin.map().await?.1;
        let group = map.volume_named(volume).and_then(|(id, _)| map.group_of(id, index));
        let before = match group {
            Some(group) => admin.doubts(group.pg).await?,
            None => Vec::new(), // the monitors say what is wrong with it
        };
        admin.settle_blocks(key.clone(), index, blocks, from).await?;
        let Some(group) = group.filter(|_| !args.no_wait) else { return Ok(given(args, from)) };
        let watch = Watch::new(ObjectId { group, index }, blocks, from, &before);
        let (began, mut again, mut told) = (Instant::now(), Instant::now(), Instant::now());
        loop {
            tokio::time::sleep(PAUSE).await;
            // A monitor that does not answer may be back before the time is over.
            let now = match admin.doubts(group.pg).await {
                Ok(said) => watch.look(&said),
                Err(error) => Progress::Waits(error.line().unwrap_or_default()),
            };
            match now {
                Progress::Done(text) => return Ok(format!("{}: {text}", args.object)),
                Progress::Unseen(text) => {
                    return Ok(format!("{}; it is not seen here when it is done: {text}", given(args, from)));
                }
                Progress::Waits(_) | Progress::Disputed(_)
                    if began.elapsed().as_secs() < u64::from(args.wait) =>
                {
                    if matches!(now, Progress::Disputed(_)) && again.elapsed() >= AGAIN {
                        again = Instant::now();
                        // Refused where it has been settled in this moment.
                        let _ = admin.settle_blocks(key.clone(), index, blocks, from).await;
                    }
                    if told.elapsed() >= TELL
                        && let Progress::Waits(why) | Progress::Disputed(why) = now
                    {
                        told = Instant::now();
                        output::tell(&format!(
                            "{}: the copy of {from} is to be believed; {why}",
                            args.object
                        ));
                    }
                }
                Progress::Waits(why) | Progress::Disputed(why) => {
                    return Err(Failure::from(anyhow!(
                        "{}: the word is given, and after {} s not all is done: {why}. `trefoil health --detail` \
                         shows when it is; if the block stays there, give the word again",
                        args.object,
                        args.wait
                    )));
                }
            }
        }
    })?;
    writeln!(out, "{text}")?;
    Ok(())
}

fn given(args: &SettleArgs, from: NodeId) -> String {
    format!(
        "{}: asked for the copy of {from} to be believed and the others to be replaced; `trefoil health --detail` \
         shows when it is done; if the block stays there, give the word again",
        args.object
    )
}

/// How far it is.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// No copy has the blocks in doubt.
    Done(String),
    /// The word has not been heard, or was lost.
    Disputed(String),
    /// It has been heard, and copies are to be replaced; or somebody is not there.
    Waits(String),
    /// So much is in doubt that not all is named.
    Unseen(String),
}

/// Looks whether blocks are still in doubt.
struct Watch {
    object: ObjectId,
    blocks: BlockRange,
    from: NodeId,
    /// Nodes that had them in doubt when the word was given.
    marked: Vec<NodeId>,
}

impl Watch {
    fn new(object: ObjectId, blocks: BlockRange, from: NodeId, before: &[CopyDoubts]) -> Watch {
        let mut watch = Watch { object, blocks, from, marked: Vec::new() };
        watch.marked = before.iter().filter(|it| watch.doubt(it).is_some()).map(|it| it.node).collect();
        watch
    }

    /// The worst that a copy says of the blocks.
    fn doubt(&self, copy: &CopyDoubts) -> Option<Doubt> {
        let here = copy
            .doubts
            .iter()
            .filter(|it| it.object == self.object && self.blocks.contains(BlockRange::new(it.block, 1)));
        here.map(|it| it.doubt).max()
    }

    fn look(&self, said: &[CopyDoubts]) -> Progress {
        let names = |test: &dyn Fn(&CopyDoubts) -> bool| {
            let nodes = said.iter().filter(|it| test(it)).map(|it| it.node.to_string());
            Some(nodes.collect::<Vec<_>>().join(", ")).filter(|names| !names.is_empty())
        };
        if let Some(nodes) = names(&|it| self.doubt(it) == Some(Doubt::Disputed)) {
            return Progress::Disputed(format!("still disputed at {nodes}"));
        }
        if let Some(nodes) = names(&|it| self.doubt(it).is_some()) {
            return Progress::Waits(format!("to be replaced: the copies of {nodes}"));
        }
        let missed =
            |it: &CopyDoubts| !it.reported && (it.node == self.from || self.marked.contains(&it.node));
        if let Some(nodes) = names(&missed) {
            return Progress::Waits(format!("not heard of: {nodes}"));
        }
        if let Some(nodes) = names(&|it| it.unnamed > 0) {
            return Progress::Unseen(format!("{nodes} has more blocks in doubt than it names"));
        }
        let away = names(&|it| !it.reported);
        let away = away.map(|nodes| format!("; {nodes} is away, and is brought in line when it is back"));
        Progress::Done(format!("settled by the copy of {}{}", self.from, away.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_core::ids::{GroupId, Head, PgId, PoolId, VolumeId};
    use trefoil_monitor::scrub::DoubtReport;

    fn object() -> ObjectId {
        let group = GroupId { volume: VolumeId(1), pg: PgId { pool: PoolId(1), pg: 2 } };
        ObjectId { group, index: 3 }
    }

    fn copy(node: u32, doubts: &[(u32, Doubt)]) -> CopyDoubts {
        let doubts = doubts.iter().map(|(block, doubt)| DoubtReport {
            object: object(),
            head: Head::ZERO,
            block: *block,
            doubt: *doubt,
            checksum: 7,
        });
        CopyDoubts { node: NodeId(node), reported: true, unnamed: 0, doubts: doubts.collect() }
    }

    fn silent(node: u32) -> CopyDoubts {
        CopyDoubts { reported: false, ..copy(node, &[]) }
    }

    #[test]
    fn it_is_done_when_nobody_who_was_in_doubt_is_any_more() {
        const DISPUTED: (u32, Doubt) = (17, Doubt::Disputed);
        const OUTVOTED: (u32, Doubt) = (17, Doubt::Outvoted);
        let before = [copy(0, &[DISPUTED]), copy(1, &[DISPUTED]), copy(2, &[])];
        let watch = Watch::new(object(), BlockRange::new(17, 1), NodeId(0), &before);
        assert_eq!(watch.marked, [NodeId(0), NodeId(1)]);
        assert!(matches!(watch.look(&before), Progress::Disputed(_)));
        let half = [copy(0, &[]), copy(1, &[OUTVOTED]), copy(2, &[])];
        assert_eq!(watch.look(&half), Progress::Waits("to be replaced: the copies of node.1".to_owned()));
        let other = [copy(0, &[(18, Doubt::Disputed)]), copy(1, &[]), copy(2, &[])];
        assert!(matches!(watch.look(&other), Progress::Done(_)), "another block");
        // A monitor that has just begun to lead knows nothing: that is not the end.
        let nothing = [silent(0), silent(1), silent(2)];
        assert!(matches!(watch.look(&nothing), Progress::Waits(_)));
        assert!(matches!(watch.look(&[copy(0, &[]), silent(1), copy(2, &[])]), Progress::Waits(_)));
        let Progress::Done(text) = watch.look(&[copy(0, &[]), copy(1, &[]), silent(2)]) else { panic!() };
        assert!(text.contains("node.2 is away"), "{text}");
        let much = CopyDoubts { unnamed: 3, ..copy(1, &[]) };
        assert!(matches!(watch.look(&[copy(0, &[]), much, copy(2, &[])]), Progress::Unseen(_)));
    }

    #[test]
    fn an_object_is_a_volumes_name_and_a_number() {
        assert!(matches!(object_name("a/b/3"), Ok(("a/b", 3))));
        for wrong in ["", "disk0", "disk0/", "disk0/x", "disk0/-1"] {
            assert_eq!(object_name(wrong).unwrap_err().code, crate::failure::EXIT_USAGE, "{wrong}");
        }
    }
}
