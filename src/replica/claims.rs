//! Signed statements that wait for a look at their signatures, which are costly.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::types::{ReplicaId, SeqNum, Time};
use crate::wire::Claim;

/// Claims of one replica that may wait; more than it can honestly have in flight. Others are dropped, and come again by
/// STATUS.
const CLAIMS_MAX: usize = 256;

/// Between looks at two checkpoints. All replicas sign theirs at the same time, and requests would wait for all the
/// signatures in a row; nothing waits for a checkpoint but the log.
const CHECKPOINT_GAP: Duration = Duration::from_micros(250);
/// More than this are not put off.
const PUT_OFF_MAX: usize = 8;

/// By who handed them on, served in turn: whoever floods waits for himself. Checkpoints are put off a little, and for good
/// if their time has passed.
#[derive(Default)]
pub struct Claims {
    waiting: BTreeMap<ReplicaId, VecDeque<Claim>>,
    turn: VecDeque<ReplicaId>,
    /// Claims that wait, and those of them that are checkpoints.
    count: usize,
    checkpoints: usize,
    stable: SeqNum,
    looked_at: Time,
    overflowed: u64,
}

impl Claims {
    /// Takes one. A replica that is behind asks again and again, and is told the same again and again: what waits already
    /// is not looked at twice, or those who help it would keep it from what is new.
    pub fn push(&mut self, from: ReplicaId, claim: Claim) {
        if self.is_past(&claim) {
            return;
        }
        let waiting = self.waiting.entry(from).or_default();
        if waiting.contains(&claim) {
            return;
        }
        if waiting.len() == CLAIMS_MAX {
            self.overflowed += 1;
            return;
        }
        if waiting.is_empty() {
            self.turn.push_back(from);
        }
        self.count += 1;
        self.checkpoints += usize::from(is_checkpoint(&claim));
        waiting.push_back(claim);
    }

    /// The next that is due, and who handed it on.
    pub fn pop(&mut self, now: Time) -> Option<(ReplicaId, Claim)> {
        while self.due() <= now {
            let from = self.turn.pop_front()?;
            let waiting = self.waiting.get_mut(&from)?;
            let claim = waiting.pop_front()?;
            if !waiting.is_empty() {
                self.turn.push_back(from);
            }
            self.count -= 1;
            self.checkpoints -= usize::from(is_checkpoint(&claim));
            if self.is_past(&claim) {
                continue;
            }
            self.looked_at = now;
            return Some((from, claim));
        }
        None
    }

    /// When one is due; in the past if it is now.
    pub fn due(&self) -> Time {
        match self.count {
            0 => Time::NEVER,
            count if self.checkpoints < count || count > PUT_OFF_MAX => Time(0),
            _ => self.looked_at + CHECKPOINT_GAP,
        }
    }

    /// Checkpoints up to `n` say nothing new: they need no look (P24).
    pub fn forget(&mut self, n: SeqNum) {
        self.stable = self.stable.max(n);
    }

    fn is_past(&self, claim: &Claim) -> bool {
        matches!(claim, Claim::Checkpoint(checkpoint) if checkpoint.n <= self.stable)
    }

    /// Those for which there was no room.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }
}

fn is_checkpoint(claim: &Claim) -> bool {
    match claim {
        Claim::Checkpoint(_) => true,
        Claim::Stable(_) | Claim::ViewChange(_) | Claim::NewView(_) | Claim::StableAnswer(..) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Digest, SeqNum};
    use crate::wire::SignedCheckpoint;

    fn claim(n: u64) -> Claim {
        let (root, replica) = (Digest([1; 32]), ReplicaId(1));
        Claim::Checkpoint(SignedCheckpoint { n: SeqNum(n), root, replica, boot: 1, signature: [0; 64] })
    }

    const LATE: Time = Time(1 << 50);

    fn all(claims: &mut Claims) -> impl Iterator<Item = (ReplicaId, Claim)> + '_ {
        let mut now = claims.looked_at.max(LATE);
        std::iter::from_fn(move || {
            now = now + CHECKPOINT_GAP;
            claims.pop(now)
        })
    }

    #[test]
    fn checkpoints_are_looked_at_with_pauses_unless_something_is_urgent() {
        let mut claims = Claims::default();
        assert_eq!(claims.due(), Time::NEVER);
        (1..=3).for_each(|r| claims.push(ReplicaId(r), claim(128)));
        assert!(claims.pop(LATE).is_some(), "the first at once");
        let next = LATE + CHECKPOINT_GAP;
        assert_eq!((claims.due(), claims.pop(LATE).is_none()), (next, true));
        claims.push(ReplicaId(3), Claim::Stable(vec![]));
        assert_eq!(claims.due(), Time(0));
        while claims.due() == Time(0) {
            assert!(claims.pop(LATE).is_some());
        }
        (0..=PUT_OFF_MAX as u64).for_each(|n| claims.push(ReplicaId(1), claim(n + 200)));
        assert_eq!(claims.due(), Time(0), "too many");
    }

    #[test]
    fn p24_checkpoints_that_are_stable_already_need_no_look() {
        let mut claims = Claims::default();
        (1..=3).for_each(|r| claims.push(ReplicaId(r), claim(128)));
        claims.push(ReplicaId(2), claim(256));
        claims.forget(SeqNum(128));
        claims.push(ReplicaId(0), claim(128));
        assert_eq!(all(&mut claims).collect::<Vec<_>>(), [(ReplicaId(2), claim(256))]);
        assert_eq!(claims.due(), Time::NEVER);
    }

    #[test]
    fn who_is_told_the_same_again_and_again_still_hears_what_is_new() {
        let mut claims = Claims::default();
        for _ in 0..1_000 {
            (1..=30).for_each(|n| claims.push(ReplicaId(2), claim(n)));
        }
        claims.push(ReplicaId(2), claim(31));
        assert_eq!(claims.overflowed(), 0);
        let heard: Vec<Claim> = all(&mut claims).map(|(_, claim)| claim).collect();
        assert_eq!(heard, (1..=31).map(claim).collect::<Vec<_>>());
        claims.push(ReplicaId(2), claim(1));
        assert!(all(&mut claims).next().is_some(), "what was looked at may come again");
    }

    #[test]
    fn p21_whoever_floods_waits_for_himself() {
        let mut claims = Claims::default();
        (1..=2 * CLAIMS_MAX as u64).for_each(|n| claims.push(ReplicaId(2), claim(n)));
        claims.push(ReplicaId(3), claim(1));
        assert_eq!(claims.overflowed(), CLAIMS_MAX as u64);
        let two: Vec<ReplicaId> = all(&mut claims).take(2).map(|(from, _)| from).collect();
        assert_eq!(two, [ReplicaId(2), ReplicaId(3)]);
    }
}
