//! Whom a query is asked of first (P6): q replicas, for the answers of more are not needed, and each costs its replica and
//! us a datagram, a wake-up and a MAC.

use super::repliers::Repliers;
use crate::types::{ClusterSize, Position, ReplicaId, ReplicaSet, Time};

/// The replicas that agreed on the last result: they were the fastest, and what they know is no older than that.
#[derive(Clone, Debug)]
pub(crate) struct Readers {
    size: ClusterSize,
    agreed: ReplicaSet,
    /// Who was late, or answered something else, is not asked first for a while, however fast it agrees on what is ordered:
    /// with [`Repliers`]' penalties.
    prompt: Repliers,
}

impl Readers {
    pub(crate) fn new(size: ClusterSize) -> Readers {
        Readers { size, agreed: ReplicaSet::EMPTY, prompt: Repliers::new(size) }
    }

    /// Whom to ask now: q replicas, or all where nothing speaks for that many.
    pub(crate) fn choose(&self, now: Time) -> ReplicaSet {
        let prompt = self.agreed.iter().filter(|&r| self.prompt.is_relied_on(r, now));
        let chosen: ReplicaSet = prompt.take(self.size.quorum()).collect();
        if chosen.len() == self.size.quorum() { chosen } else { self.size.replicas().collect() }
    }

    /// A result was proved by `members`.
    pub(crate) fn agreed(&mut self, members: ReplicaSet) {
        self.agreed = members;
    }

    /// `replica` was asked for nothing: it was late, or what it said was not what a quorum did.
    pub(crate) fn failed(&mut self, replica: ReplicaId, now: Time) {
        self.prompt.withheld(replica, now);
    }

    /// See [`Repliers::heard`].
    pub(crate) fn heard(&mut self, replica: ReplicaId, position: Position, accepted: Position) {
        self.prompt.heard(replica, position, accepted);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::SeqNum;

    fn set(ids: &[u8]) -> ReplicaSet {
        ids.iter().map(|&id| ReplicaId(id)).collect()
    }

    #[test]
    fn p06_who_agreed_last_is_asked_first_unless_it_was_late() {
        let (all, start) = (set(&[0, 1, 2, 3]), Time(1_000_000_000));
        let mut readers = Readers::new(ClusterSize::of(4).unwrap());
        assert_eq!(readers.choose(start), all, "nobody is known");
        readers.agreed(set(&[0, 2, 3]));
        assert_eq!(readers.choose(start), set(&[0, 2, 3]));
        readers.agreed(all);
        assert_eq!(readers.choose(start).len(), 3, "no more than a quorum");
        readers.failed(ReplicaId(2), start);
        assert_eq!(readers.choose(start), set(&[0, 1, 3]));
        readers.agreed(set(&[0, 2, 3]));
        assert_eq!(readers.choose(start), all, "it agreed, and still it was late");
        let (later, position) = (start + Duration::from_millis(101), Position::new(SeqNum(1), 0));
        assert_eq!(readers.choose(later), all, "silent");
        readers.heard(ReplicaId(2), position, position);
        assert_eq!(readers.choose(later), set(&[0, 2, 3]), "forgiven");
    }
}
