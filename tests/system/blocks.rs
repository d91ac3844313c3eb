//! What a block may hold: contents that name themselves, and the ledger of what was acknowledged.
//!
//! Every block that a test writes says which block it is and which write it came from, in each of its
//! 16-byte words, so that a foreign, old, torn or shifted block is told from a right one without
//! keeping a copy of the data. The ledger knows, per block, the last write that was acknowledged and
//! those that were sent after it and never answered: nothing else may ever be read.

use std::fmt;

/// Bytes of a block: Trefoil's unit of checksums and of atomicity.
pub const BLOCK: usize = 4096;

/// A small generator (xorshift64*): the tests want a seed that they can print, not quality.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator; every seed but 0 gives a sequence of its own, and 0 that of a fixed one.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What one block holds.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Never written, or zeroed.
    Zero,
    /// Written by the write of this number, counted from 1.
    Written(u64),
}

fn word(salt: u64, block: u64, sequence: u64, index: u64) -> u64 {
    let mixed =
        (salt ^ block.rotate_left(32) ^ sequence).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 31)
}

/// The bytes of a content, put into `bytes` (one block).
pub fn fill(bytes: &mut [u8], salt: u64, block: u64, content: Content) {
    assert_eq!(bytes.len(), BLOCK, "one block at a time");
    let Content::Written(sequence) = content else {
        bytes.fill(0);
        return;
    };
    for (index, word_bytes) in bytes.chunks_exact_mut(16).enumerate() {
        word_bytes[..8].copy_from_slice(&sequence.to_le_bytes());
        word_bytes[8..].copy_from_slice(&word(salt, block, sequence, index as u64).to_le_bytes());
    }
}

/// What a block's bytes are, or why they are nothing that was ever written there.
pub fn parse(bytes: &[u8], salt: u64, block: u64) -> Result<Content, String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Content::Zero);
    }
    let sequence_at = |at: usize| -> u64 {
        bytes[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    let content = Content::Written(sequence_at(0));
    let mut expected = vec![0; BLOCK];
    fill(&mut expected, salt, block, content);
    match bytes.iter().zip(&expected).position(|(read, right)| read != right) {
        None => Ok(content),
        Some(at) => Err(format!(
            "not a block of this volume's: begins as {content:?}, differs from byte {at}, where the word says \
             {:?}",
            Content::Written(sequence_at(at & !15))
        )),
    }
}

#[derive(Clone, Debug)]
struct Entry {
    /// The last content that was acknowledged, or read back since.
    sure: Content,
    /// Sent after `sure`, oldest first, and not answered with success.
    open: Vec<Content>,
    /// A request for it is in flight.
    busy: bool,
}

/// What may be read of each block of a region. Every block has at most one change in flight, so that
/// the order of changes to it is the order of the ledger.
#[derive(Clone, Debug)]
pub struct Ledger {
    salt: u64,
    first_block: u64,
    entries: Vec<Entry>,
    next_sequence: u64,
    /// Changes that were acknowledged.
    pub acknowledged: u64,
}

/// What reading a region showed.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Blocks that were looked at.
    pub checked: u64,
    /// Changes that were never acknowledged and have happened, which is allowed.
    pub unacknowledged_seen: u64,
    /// What must not be: one line per block.
    pub wrong: Vec<String>,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} blocks checked, {} unacknowledged changes seen, {} wrong",
            self.checked,
            self.unacknowledged_seen,
            self.wrong.len()
        )?;
        for line in self.wrong.iter().take(20) {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

impl Ledger {
    /// A region of `blocks` blocks from `first_block` of the volume, all zero.
    pub fn new(salt: u64, first_block: u64, blocks: usize) -> Self {
        let entry = Entry { sure: Content::Zero, open: Vec::new(), busy: false };
        Self { salt, first_block, entries: vec![entry; blocks], next_sequence: 1, acknowledged: 0 }
    }

    /// Blocks of the region.
    pub fn blocks(&self) -> usize {
        self.entries.len()
    }

    /// Where a block of the region lies on the volume, in bytes.
    pub fn offset(&self, index: usize) -> u64 {
        (self.first_block + index as u64) * BLOCK as u64
    }

    /// Whether a change of these blocks may be sent: none of them has one in flight.
    pub fn is_free(&self, index: usize, count: usize) -> bool {
        index + count <= self.entries.len()
            && self.entries[index..index + count].iter().all(|entry| !entry.busy)
    }

    /// Begins a write of `count` blocks: the content that they all get, and their bytes.
    pub fn begin_write(&mut self, index: usize, count: usize) -> (Content, Vec<u8>) {
        let content = Content::Written(self.next_sequence);
        self.next_sequence += 1;
        self.begin(index, count, content);
        let mut bytes = vec![0; count * BLOCK];
        for (at, block) in bytes.chunks_exact_mut(BLOCK).enumerate() {
            fill(block, self.salt, self.first_block + (index + at) as u64, content);
        }
        (content, bytes)
    }

    /// Begins zeroing `count` blocks.
    pub fn begin_zero(&mut self, index: usize, count: usize) {
        self.begin(index, count, Content::Zero);
    }

    fn begin(&mut self, index: usize, count: usize, content: Content) {
        for entry in &mut self.entries[index..index + count] {
            assert!(!entry.busy, "one change in flight per block");
            entry.busy = true;
            entry.open.push(content);
        }
    }

    /// The change in flight was acknowledged: the blocks hold it, and nothing from before.
    pub fn acknowledge(&mut self, index: usize, count: usize, content: Content) {
        for entry in &mut self.entries[index..index + count] {
            entry.sure = content;
            entry.open.clear();
            entry.busy = false;
        }
        self.acknowledged += 1;
    }

    /// The change in flight was refused, or its answer never came: it may have happened or not.
    pub fn leave_open(&mut self, index: usize, count: usize) {
        for entry in &mut self.entries[index..index + count] {
            entry.busy = false;
        }
    }

    /// The content that a block has for sure: the last that was acknowledged or read.
    pub fn sure(&self, index: usize) -> Content {
        self.entries[index].sure
    }

    /// Blocks whose content is another than in an earlier copy of this ledger.
    pub fn changed_since(&self, earlier: &Self) -> usize {
        self.entries.iter().zip(&earlier.entries).filter(|(now, then)| now.sure != then.sure).count()
    }

    /// Compares what was read of the region from block `index` on. What is right becomes sure: once
    /// read, it must be read again, so a write that surfaces late is found by the next look.
    pub fn check(&mut self, index: usize, bytes: &[u8], findings: &mut Findings) {
        for (at, block_bytes) in bytes.chunks_exact(BLOCK).enumerate() {
            let block = self.first_block + (index + at) as u64;
            let entry = &mut self.entries[index + at];
            findings.checked += 1;
            match parse(block_bytes, self.salt, block) {
                Ok(found) if found == entry.sure || entry.open.contains(&found) => {
                    findings.unacknowledged_seen += u64::from(found != entry.sure);
                    if !entry.busy {
                        entry.sure = found;
                        entry.open.clear();
                    }
                }
                Ok(found) => findings.wrong.push(format!(
                    "block {block}: {found:?}, but {:?} was acknowledged and {:?} sent later",
                    entry.sure, entry.open
                )),
                Err(why) => {
                    findings.wrong.push(format!("block {block}: {why}; {:?} was acknowledged", entry.sure))
                }
            }
        }
    }
}

#[test]
fn contents_name_themselves() {
    let mut bytes = vec![0; BLOCK];
    assert_eq!(parse(&bytes, 7, 3), Ok(Content::Zero));
    fill(&mut bytes, 7, 3, Content::Written(12));
    assert_eq!(parse(&bytes, 7, 3), Ok(Content::Written(12)));
    assert!(parse(&bytes, 7, 4).is_err(), "another block's");
    assert!(parse(&bytes, 8, 3).is_err(), "another volume's");
    let mut torn = bytes.clone();
    fill(&mut torn, 7, 3, Content::Written(13));
    torn[2048..].copy_from_slice(&bytes[2048..]);
    assert!(parse(&torn, 7, 3).is_err(), "torn");
    bytes[4095] ^= 1;
    assert!(parse(&bytes, 7, 3).is_err(), "rotten");
}

#[test]
fn a_ledger_finds_what_is_lost_stale_or_comes_late() {
    let look = |ledger: &mut Ledger, bytes: &[u8]| {
        let mut findings = Findings::default();
        ledger.check(0, bytes, &mut findings);
        findings.wrong.len()
    };
    let mut ledger = Ledger::new(1, 0, 1);
    let (first, old) = ledger.begin_write(0, 1);
    ledger.acknowledge(0, 1, first);
    assert_eq!(look(&mut ledger, &[0; BLOCK]), 1, "lost");
    assert_eq!(look(&mut ledger, &old), 0);
    let (_, new) = ledger.begin_write(0, 1);
    ledger.leave_open(0, 1);
    assert_eq!(look(&mut ledger.clone(), &old), 0, "an unanswered write may not have happened");
    assert_eq!(look(&mut ledger, &new), 0, "or may have");
    assert_eq!(look(&mut ledger, &old), 1, "but having been read, it stays");
    let (third, _) = ledger.begin_write(0, 1);
    ledger.acknowledge(0, 1, third);
    assert_eq!(look(&mut ledger, &new), 1, "stale");
}
