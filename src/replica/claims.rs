//! Signed statements that wait for a look at their signatures, which are costly.

use std::collections::{BTreeMap, VecDeque};

use crate::types::ReplicaId;
use crate::wire::Claim;

/// Claims of one replica that may wait; more than it can honestly have in flight. Others are dropped, and come again by
/// STATUS.
const CLAIMS_MAX: usize = 256;

/// By who handed them on, served in turn: whoever floods waits for himself.
#[derive(Default)]
pub struct Claims {
    waiting: BTreeMap<ReplicaId, VecDeque<Claim>>,
    turn: VecDeque<ReplicaId>,
    overflowed: u64,
}

impl Claims {
    /// Takes one. A replica that is behind asks again and again, and is told the same again and again: what waits already
    /// is not looked at twice, or those who help it would keep it from what is new.
    pub fn push(&mut self, from: ReplicaId, claim: Claim) {
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
        waiting.push_back(claim);
    }

    /// The next, and who handed it on.
    pub fn pop(&mut self) -> Option<(ReplicaId, Claim)> {
        let from = self.turn.pop_front()?;
        let waiting = self.waiting.get_mut(&from)?;
        let claim = waiting.pop_front()?;
        if !waiting.is_empty() {
            self.turn.push_back(from);
        }
        Some((from, claim))
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.turn.is_empty()
    }

    /// Those for which there was no room.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
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

    #[test]
    fn who_is_told_the_same_again_and_again_still_hears_what_is_new() {
        let mut claims = Claims::default();
        for _ in 0..1_000 {
            (1..=30).for_each(|n| claims.push(ReplicaId(2), claim(n)));
        }
        claims.push(ReplicaId(2), claim(31));
        assert_eq!(claims.overflowed(), 0);
        let heard: Vec<Claim> = std::iter::from_fn(|| claims.pop()).map(|(_, claim)| claim).collect();
        assert_eq!(heard, (1..=31).map(claim).collect::<Vec<_>>());
        claims.push(ReplicaId(2), claim(1));
        assert!(claims.pop().is_some(), "what was looked at may come again");
    }

    #[test]
    fn p21_whoever_floods_waits_for_himself() {
        let mut claims = Claims::default();
        (0..2 * CLAIMS_MAX as u64).for_each(|n| claims.push(ReplicaId(2), claim(n)));
        claims.push(ReplicaId(3), claim(0));
        assert_eq!(claims.overflowed(), CLAIMS_MAX as u64);
        let two: Vec<ReplicaId> = std::iter::from_fn(|| claims.pop()).take(2).map(|(from, _)| from).collect();
        assert_eq!(two, [ReplicaId(2), ReplicaId(3)]);
    }
}
