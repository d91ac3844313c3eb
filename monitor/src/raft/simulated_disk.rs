//! A disk in memory for redb, with power cuts: of what was written and not synced, any part may be there afterwards.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Random numbers of a seed (splitmix64).
#[derive(Debug)]
pub(super) struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n.max(1)
    }
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    /// What has been written since the last sync: where, what was there, what is.
    unsynced: Vec<(usize, Vec<u8>, Vec<u8>)>,
    /// Counts power cuts: files that were opened before one are dead.
    life: u64,
}

/// The disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<Content>>);

/// What redb has opened.
#[derive(Debug)]
pub(super) struct File {
    disk: Disk,
    life: u64,
}

fn out_of_range() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the file")
}

impl Disk {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn open(&self) -> File {
        let life = self.content().life;
        File { disk: self.clone(), life }
    }

    /// The power is gone. Nothing that was opened before reaches the disk any more.
    pub fn crash(&self, rng: &mut Rng) {
        let mut content = self.content();
        content.life += 1;
        let unsynced = std::mem::take(&mut content.unsynced);
        for (at, before, _) in unsynced.iter().rev() {
            content.bytes[*at..at + before.len()].copy_from_slice(before);
        }
        for (at, _, after) in unsynced {
            if rng.percent(50) {
                content.bytes[at..at + after.len()].copy_from_slice(&after);
            }
        }
    }
}

impl File {
    fn content(&self) -> io::Result<MutexGuard<'_, Content>> {
        let content = self.disk.content();
        if content.life == self.life { Ok(content) } else { Err(io::Error::other("the power is gone")) }
    }
}

impl redb::StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content()?.bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.content()?;
        let at = offset as usize;
        let bytes = content.bytes.get(at..at + out.len()).ok_or_else(out_of_range)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut content = self.content()?;
        // A length is durable at once; what was written behind the end is no more.
        content.unsynced.retain(|(at, before, _)| at + before.len() <= len as usize);
        content.bytes.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.content()?.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut content = self.content()?;
        let at = offset as usize;
        let before = content.bytes.get(at..at + data.len()).ok_or_else(out_of_range)?.to_vec();
        content.bytes[at..at + data.len()].copy_from_slice(data);
        content.unsynced.push((at, before, data.to_vec()));
        Ok(())
    }
}
