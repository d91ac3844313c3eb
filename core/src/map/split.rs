//! More placement groups for a pool: those that it has are split, and nothing moves.
//!
//! A new placement group begins where the one is that it splits from ([`pg_split_parent`]), and both get an
//! epoch above all that the old one ever had: whatever a node or leader has of either, it has it under an older
//! one. Where CRUSH wants the new ones to live is another matter, and the mover's, later and one at a time.
//!
//! Only more: objects of two groups have histories of their own, and no ballot covers both.

use super::apply::{Applied, Changed, done, missing};
use super::{ClusterMap, MapError, PGS_MAX, POOL_PGS_MAX};
use crate::crush::{object_pg, pg_split_parent};
use crate::ids::*;
use crate::placement::PgConfig;

impl ClusterMap {
    /// True if a group of the volume in that placement group may have a leader, for all that the map knows. Not if
    /// the volume is gone; nor if it has no object there, although nodes may name the group: a split gives them one
    /// for each volume of the placement group that was split.
    ///
    /// Hashes objects until one is found, in a pool that was ever split.
    pub fn may_be_led(&self, volume: VolumeId, pg: PgId) -> bool {
        let Some(it) = self.volumes.get(&volume) else { return !self.is_deleted(volume) };
        let pool = self.pools.get(&it.pool).filter(|pool| pool.pg_num != pool.pg_num_first);
        pool.is_none_or(|pool| {
            (0..it.objects()).any(|index| object_pg(volume.0, index, pool.pg_num) == pg.pg)
        })
    }

    pub(super) fn set_pg_num(&mut self, id: PoolId, seen: u32, pg_num: u32) -> Applied {
        let pool = self.pools.get(&id).ok_or_else(|| missing("pool", id))?;
        let (name, before) = (pool.name.clone(), pool.pg_num);
        if seen != before {
            return Err(MapError::OtherPgNum { name, seen, current: before });
        }
        if pg_num == before {
            return done(Changed::Nothing);
        }
        // Where its placement groups live is not known: what splits off would begin where they were once.
        if self.restored.unchecked {
            return Err(MapError::Unchecked);
        }
        // At most PGS_MAX: it was checked each time that the map grew.
        let others = (self.pgs.len() as u32).saturating_sub(before);
        let most = POOL_PGS_MAX.min(PGS_MAX.saturating_sub(others));
        if pg_num < before || pg_num > most {
            return Err(MapError::Invalid(format!(
                "{pg_num} placement groups for pool {name:?}, which has {before}: they can only become more, up to \
                 {most}; a pool may have {POOL_PGS_MAX}, a cluster {PGS_MAX} in all"
            )));
        }
        let mut moving = self.moves.active.keys().filter(|pg| pg.pool == id);
        if let Some(first) = moving.next().copied() {
            return Err(MapError::Moving { name, moving: moving.count() + 1, first });
        }
        let old = self.pgs.pool(id).filter(|table| table.len() == before).cloned();
        let mut table = old.clone().ok_or_else(|| missing("placement groups of pool", id))?;
        let old = old.unwrap_or_default();
        for pg in before..pg_num {
            let parent = pg_split_parent(pg, before);
            let it =
                old.get(parent).ok_or_else(|| missing("placement group", PgId { pool: id, pg: parent }))?;
            // The same for every child of one parent: worked out from the old table.
            let config = PgConfig { epoch: Epoch(it.epoch.0.saturating_add(1)), ..it.config() };
            table.set(parent, &config);
            table.push(&config);
        }
        self.pgs.0.insert(id, table);
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.pg_num = pg_num;
        }
        done(Changed::Layout)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::cluster;
    use super::super::{Command, Reply};
    use super::*;

    const POOL: PoolId = PoolId(1);

    fn set(map: &mut ClusterMap, seen: u32, pg_num: u32) -> Result<Reply, MapError> {
        map.apply(&Command::SetPgNum { pool: POOL, seen, pg_num })
    }

    fn config(map: &ClusterMap, pg: u32) -> PgConfig {
        map.members(PgId { pool: POOL, pg }).unwrap().config()
    }

    #[test]
    fn children_begin_where_their_parent_is_and_in_a_later_epoch() {
        let mut map = cluster(5);
        let before = map.clone();
        let n = map.pools[&POOL].pg_num;
        // One of them has moved.
        let set_of = |ids: [u32; 3]| ids.map(NodeId).to_vec();
        map.pgs.set(PgId { pool: POOL, pg: 1 }, &PgConfig::simple(Epoch(9), set_of([4, 2, 0])));
        let to = n + n / 2;
        assert_eq!(set(&mut map, n, to), Ok(Reply::Done));
        assert_eq!((map.pools[&POOL].pg_num, map.pools[&POOL].pg_num_first), (to, n));
        assert_eq!(map.pool_pgs(POOL).count(), to as usize);
        assert_eq!(config(&map, 1), PgConfig::simple(Epoch(10), set_of([4, 2, 0])));
        assert_eq!(config(&map, n + 1), config(&map, 1), "the child");
        for pg in 0..to {
            let parent = pg_split_parent(pg, n);
            assert_eq!(config(&map, pg).new, config(&map, parent).new);
            let splits = (n..to).any(|child| pg_split_parent(child, n) == parent);
            if parent != 1 {
                assert_eq!(config(&map, pg).epoch, Epoch(1 + u64::from(splits)), "{pg}");
            }
        }
        // The difference says it all, and the rest is shared.
        let mut other = before.clone();
        other.pgs.set(PgId { pool: POOL, pg: 1 }, &PgConfig::simple(Epoch(9), set_of([4, 2, 0])));
        let delta = map.diff(&other).unwrap();
        other.apply_delta(&delta).unwrap();
        assert_eq!(other, map);
        // Twice, and the second time over the power of two.
        set(&mut map, to, 4 * n).unwrap();
        assert_eq!(config(&map, n + 1).epoch, Epoch(11));
        assert_eq!(config(&map, 2 * n + 1).epoch, Epoch(11));
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let mut map = cluster(5);
        let n = map.pools[&POOL].pg_num;
        let refused = |map: &mut ClusterMap, seen: u32, pg_num: u32, text: &str| {
            let before = map.clone();
            let error = set(map, seen, pg_num).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
            assert_eq!(*map, before);
        };
        refused(&mut map, n, n - 1, "only become more");
        refused(&mut map, n, 0, "only become more");
        refused(&mut map, n, POOL_PGS_MAX + 1, "a pool may have");
        refused(&mut map, n - 1, 2 * n, "changed since");
        let version = map.version;
        assert_eq!(set(&mut map, n, n), Ok(Reply::Done));
        assert_eq!(map.version, version, "nothing to do");
        assert!(map.apply(&Command::SetPgNum { pool: PoolId(7), seen: 1, pg_num: 2 }).is_err());
        // Where it lives is not known.
        let holder = super::super::Holder {
            name: "restored".to_owned(),
            boot: 1,
            kind: super::super::HolderKind::FrontEnd,
        };
        let mut restored = map.clone();
        assert!(restored.restored(&holder));
        assert_eq!(set(&mut restored, n, 2 * n), Err(MapError::Unchecked));
        let pg = PgId { pool: POOL, pg: 0 };
        let it = config(&map, 0);
        let to = (0..5).map(NodeId).find(|node| !it.is_member(*node)).unwrap();
        map.apply(&Command::StartMove { pg, epoch: it.epoch, from: it.new[0], to }).unwrap();
        refused(&mut map, n, 2 * n, "on the move");
        map.apply(&Command::UndoMove { pg, epoch: Epoch(2) }).unwrap();
        set(&mut map, n, 2 * n).unwrap();
    }

    #[test]
    fn a_pool_grows_to_its_limit() {
        let mut map = cluster(3);
        let n = map.pools[&POOL].pg_num;
        set(&mut map, n, POOL_PGS_MAX).unwrap();
        assert_eq!(map.pgs.pool(POOL).unwrap().len(), POOL_PGS_MAX);
        let n = POOL_PGS_MAX;
        assert!(set(&mut map, n, n + 1).is_err());
    }
}
