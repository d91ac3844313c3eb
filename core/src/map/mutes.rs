//! Health checks that an administrator does not want to hear of for a while.
//!
//! A mute hides one check from the overall state, never from the screen: it is shown as muted, with the time that
//! is left. It ends by itself when its time is over, when the check does not apply any more, and when it gets worse:
//! when more nodes, placement groups or whatever it counts are concerned than at the moment of muting. So a mute for
//! the maintenance of one node does not hide the loss of a second one.
//!
//! Here is what is kept, agreed on by the monitors. When one ends is found by the monitor that leads
//! (it knows what applies), by [`Mutes::ended`], which is pure.

use super::apply::{Applied, Changed, done, missing};
use super::{ClusterMap, MapError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Checks that may be muted at once.
pub const MUTES_MAX: usize = 64;
/// The longest that a check is muted for (ms): 30 days. Longer is forgotten, and no mute is for ever.
pub const MUTE_MS_MAX: u64 = 30 * 86_400_000;
/// Bytes in the code of a check.
pub const CODE_LEN_MAX: usize = 64;
/// Bytes in the reason that somebody gives.
pub const BECAUSE_LEN_MAX: usize = 256;

/// A check that is muted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mute {
    /// Until when: milliseconds since 1970 by a monitor's clock.
    pub until: u64,
    /// What the check counted when it was muted.
    pub count: u64,
    /// Why, in somebody's words; may be empty.
    pub because: String,
}

/// Why a mute has ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MuteEnd {
    /// Its time is over.
    Expired,
    /// The check does not apply any more.
    Cleared,
    /// The check counts more than when it was muted.
    Worse,
    /// An administrator said so.
    Unmuted,
}

impl std::fmt::Display for MuteEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MuteEnd::Expired => "its time is over",
            MuteEnd::Cleared => "it does not apply any more",
            MuteEnd::Worse => "it has become worse",
            MuteEnd::Unmuted => "on command",
        })
    }
}

/// The mutes by the code of the check. A clone shares them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mutes(pub Arc<BTreeMap<String, Mute>>);

impl Mutes {
    /// Which have ended at `now` (ms since 1970), and why. `count`: what each check that applies counts. `certain`: the
    /// monitor has heard of everybody, so that a check that it does not see does not apply.
    pub fn ended(
        &self,
        now: u64,
        certain: bool,
        count: impl Fn(&str) -> Option<u64>,
    ) -> Vec<(String, MuteEnd)> {
        let end = |code: &str, mute: &Mute| match count(code) {
            _ if mute.until <= now => Some(MuteEnd::Expired),
            Some(count) if count > mute.count => Some(MuteEnd::Worse),
            None if certain => Some(MuteEnd::Cleared),
            _ => None,
        };
        let all = self.0.iter();
        all.filter_map(|(code, mute)| end(code, mute).map(|why| (code.clone(), why))).collect()
    }
}

impl ClusterMap {
    pub(super) fn mute(&mut self, code: &str, mute: &Mute, now: u64) -> Applied {
        if code.is_empty() || code.len() > CODE_LEN_MAX {
            return Err(MapError::Invalid("that is no code of a health check".to_owned()));
        }
        if mute.because.len() > BECAUSE_LEN_MAX {
            let text = format!("the reason is longer than {BECAUSE_LEN_MAX} bytes: say it in fewer words");
            return Err(MapError::Invalid(text));
        }
        let longest = now.saturating_add(MUTE_MS_MAX);
        if mute.until <= now || mute.until > longest {
            let days = MUTE_MS_MAX / 86_400_000;
            return Err(MapError::Invalid(format!(
                "a check is muted for at least a moment, at most {days} days"
            )));
        }
        if self.mutes.0.len() >= MUTES_MAX && !self.mutes.0.contains_key(code) {
            return Err(MapError::Full { what: "muted checks".to_owned(), max: MUTES_MAX as u64 });
        }
        if self.mutes.0.get(code) == Some(mute) {
            return done(Changed::Nothing);
        }
        Arc::make_mut(&mut self.mutes.0).insert(code.to_owned(), mute.clone());
        done(Changed::Inside)
    }

    pub(super) fn unmute(&mut self, codes: &[(String, MuteEnd)]) -> Applied {
        if let [(code, MuteEnd::Unmuted)] = codes
            && !self.mutes.0.contains_key(code)
        {
            return Err(missing("muted check", code));
        }
        let mut changed = Changed::Nothing;
        for (code, _) in codes.iter().take(MUTES_MAX) {
            if self.mutes.0.contains_key(code) {
                Arc::make_mut(&mut self.mutes.0).remove(code);
                changed = Changed::Inside;
            }
        }
        done(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::super::tests::cluster;
    use super::*;

    fn mute(code: &str, until: u64, count: u64) -> Command {
        let mute = Mute { until, count, because: "new disk".to_owned() };
        Command::Mute { code: code.to_owned(), mute, now: 1_000 }
    }

    fn ended(map: &ClusterMap, now: u64, certain: bool, count: Option<u64>) -> Vec<MuteEnd> {
        map.mutes.ended(now, certain, |_| count).into_iter().map(|(_, why)| why).collect()
    }

    #[test]
    fn a_mute_ends_when_its_time_is_over_and_when_the_check_is_worse_or_gone() {
        let mut map = cluster(3);
        let layout = map.layout;
        map.apply_at(&mute("NODE_DOWN", 5_000, 2), 1_000).unwrap();
        assert_eq!(map.layout, layout, "no daemon is told");
        assert_eq!(ended(&map, 4_999, true, Some(2)), []);
        assert_eq!(ended(&map, 4_999, true, Some(1)), [], "better is not worse");
        assert_eq!(ended(&map, 5_000, true, Some(2)), [MuteEnd::Expired]);
        assert_eq!(ended(&map, 4_999, true, Some(3)), [MuteEnd::Worse]);
        assert_eq!(ended(&map, 4_999, true, None), [MuteEnd::Cleared]);
        assert_eq!(ended(&map, 4_999, false, None), [], "who does not know does not say that it is over");

        let version = map.version;
        let unmute = |why| Command::Unmute { codes: vec![("NODE_DOWN".to_owned(), why)] };
        map.apply_at(&unmute(MuteEnd::Worse), 1_100).unwrap();
        map.apply_at(&unmute(MuteEnd::Worse), 1_100).unwrap();
        assert_eq!(map.version, version + 1, "twice is once");
        let told = map.apply(&unmute(MuteEnd::Unmuted)).unwrap_err().to_string();
        assert_eq!(told, "there is no muted check NODE_DOWN");
        let events: Vec<String> = map.events().after(0, 9).map(|event| event.what.to_string()).collect();
        let expected =
            ["NODE_DOWN muted for 4 s, at 2: new disk", "NODE_DOWN not muted any more: it has become worse"];
        assert_eq!(events, expected);
    }

    #[test]
    fn mutes_are_bounded_in_number_length_and_time() {
        let mut map = cluster(3);
        for n in 0..MUTES_MAX {
            map.apply(&mute(&format!("CODE_{n}"), 2_000, 1)).unwrap();
        }
        let told = map.apply(&mute("ONE_MORE", 2_000, 1)).unwrap_err().to_string();
        assert_eq!(told, "the cluster may have at most 64 muted checks");
        map.apply(&mute("CODE_1", 3_000, 1)).unwrap();
        assert_eq!(map.mutes.0["CODE_1"].until, 3_000, "one that is there may be muted anew");
        for bad in [mute("CODE_1", 1_000, 1), mute("CODE_1", 1_001 + MUTE_MS_MAX, 1), mute("", 2_000, 1)] {
            map.apply(&bad).unwrap_err();
        }
        let because = "x".repeat(BECAUSE_LEN_MAX + 1);
        let mute = Mute { until: 2_000, count: 1, because };
        map.apply(&Command::Mute { code: "CODE_1".to_owned(), mute, now: 1_000 }).unwrap_err();
    }
}
