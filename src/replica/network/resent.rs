//! Large messages that are sent again bear the number of the first time, so that pieces which came through add up at the
//! receiver: of a thousand fragments a lossy path never carries all in one round.

use std::collections::{BTreeMap, VecDeque};

use crate::auth::Principal;
use crate::transport::Head;

/// Messages remembered.
const KEPT: usize = 256;
/// Rounds under one number. Bounded, for a receiver ignores a number that it has completed, and may have had to drop
/// what it completed.
const ROUNDS_MAX: u8 = 4;

/// To whom, and the end of its proof: two messages with the same are the same.
type Key = (Principal, [u8; 8]);

/// Numbers of large messages lately sent to one receiver.
#[derive(Debug, Default)]
pub struct Resent {
    numbers: BTreeMap<Key, (u64, u8)>,
    order: VecDeque<Key>,
}

impl Resent {
    /// The number for a message to `to` under `head`: that of the time before, or `fresh`.
    pub fn number(&mut self, to: Principal, head: &Head, fresh: u64) -> u64 {
        let Some(proof) = head.as_slice().last_chunk::<8>() else { return fresh };
        let key = (to, *proof);
        if let Some((number, rounds)) = self.numbers.get_mut(&key) {
            *rounds += 1;
            if *rounds > ROUNDS_MAX {
                (*number, *rounds) = (fresh, 1);
            }
            return *number;
        }
        if self.order.len() == KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.numbers.remove(&oldest);
        }
        self.order.push_back(key);
        self.numbers.insert(key, (fresh, 1));
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ReplicaId;

    fn head(proof: u8) -> Head {
        let mut head = Head::EMPTY;
        head.push(&[proof; 48]);
        head
    }

    #[test]
    fn p37_the_same_message_keeps_its_number_for_a_few_rounds() {
        let mut resent = Resent::default();
        let to = Principal::Replica(ReplicaId(1));
        let numbers: Vec<u64> = (1..=6).map(|fresh| resent.number(to, &head(1), fresh)).collect();
        assert_eq!(numbers, [1, 1, 1, 1, 5, 5]);
        assert_eq!(resent.number(to, &head(2), 7), 7, "another message");
        assert_eq!(resent.number(Principal::Replica(ReplicaId(2)), &head(1), 8), 8, "another receiver");
    }

    #[test]
    fn p44_what_is_remembered_is_bounded() {
        let mut resent = Resent::default();
        for i in 0..1_000u64 {
            let mut head = Head::EMPTY;
            head.push(&i.to_le_bytes());
            resent.number(Principal::Replica(ReplicaId(1)), &head, i);
        }
        assert!(resent.numbers.len() == KEPT && resent.order.len() == KEPT);
    }
}
