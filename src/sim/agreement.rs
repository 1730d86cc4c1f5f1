//! Do all correct replicas say the same?

use std::collections::BTreeMap;
use std::fmt;

use crate::types::{Digest, ReplicaId, SeqNum};

/// Two replicas that disagree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disagreement {
    /// About what.
    pub what: What,
    /// Where.
    pub n: SeqNum,
    /// The first replica to say something, and what it said.
    pub first: (ReplicaId, Digest),
    /// The other.
    pub second: (ReplicaId, Digest),
}

/// What replicas must agree on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum What {
    /// The batch committed at a sequence number.
    Batch,
    /// The root of the state at a checkpoint.
    Root,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            What::Batch => "committed different batches",
            What::Root => "reached different states",
        };
        let ((a, da), (b, db)) = (self.first, self.second);
        write!(f, "{a} and {b} {what} at {}: {da:?} and {db:?}", self.n)
    }
}

/// Everything that correct replicas have committed to so far. Liars are not asked.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    said: BTreeMap<(What, SeqNum), (ReplicaId, Digest)>,
    committed: BTreeMap<ReplicaId, SeqNum>,
}

impl Agreement {
    /// `replica` committed and executed the batch `digest` at `n`.
    ///
    /// # Errors
    /// Another replica committed another one there. Panics if the replica skipped or repeated a sequence number: it
    /// executes strictly in order (P16).
    pub fn committed(&mut self, replica: ReplicaId, n: SeqNum, digest: Digest) -> Result<(), Box<Disagreement>> {
        let last = self.committed.entry(replica).or_default();
        assert_eq!(last.next(), n, "P16: {replica} executes in order");
        *last = n;
        self.says(What::Batch, replica, n, digest)
    }

    /// `replica` started again, with the initial state.
    pub fn restarted(&mut self, replica: ReplicaId) {
        self.committed.insert(replica, SeqNum(0));
    }

    /// `replica` fetched the state at `n` from others, and goes on from there (P39).
    pub fn fetched(&mut self, replica: ReplicaId, n: SeqNum) {
        self.committed.insert(replica, n);
    }

    /// `replica` has the state `root` at checkpoint `n`.
    ///
    /// # Errors
    /// Another replica has another one.
    pub fn checkpoint(&mut self, replica: ReplicaId, n: SeqNum, root: Digest) -> Result<(), Box<Disagreement>> {
        self.says(What::Root, replica, n, root)
    }

    /// The highest sequence number that `replica` committed.
    pub fn last(&self, replica: ReplicaId) -> SeqNum {
        self.committed.get(&replica).copied().unwrap_or_default()
    }

    fn says(&mut self, what: What, replica: ReplicaId, n: SeqNum, digest: Digest) -> Result<(), Box<Disagreement>> {
        let first = *self.said.entry((what, n)).or_insert((replica, digest));
        if first.1 == digest {
            return Ok(());
        }
        Err(Box::new(Disagreement { what, n, first, second: (replica, digest) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Digest = Digest([1; 32]);
    const B: Digest = Digest([2; 32]);

    #[test]
    fn two_batches_at_one_place_are_found() {
        let mut agreement = Agreement::default();
        agreement.committed(ReplicaId(0), SeqNum(1), A).unwrap();
        agreement.committed(ReplicaId(1), SeqNum(1), A).unwrap();
        agreement.committed(ReplicaId(0), SeqNum(2), A).unwrap();
        let found = agreement.committed(ReplicaId(1), SeqNum(2), B).unwrap_err();
        assert_eq!((found.what, found.n, found.second), (What::Batch, SeqNum(2), (ReplicaId(1), B)));
        assert_eq!(agreement.last(ReplicaId(0)), SeqNum(2));
    }

    #[test]
    fn p23_two_roots_at_one_checkpoint_are_found() {
        let mut agreement = Agreement::default();
        agreement.checkpoint(ReplicaId(0), SeqNum(8), A).unwrap();
        agreement.checkpoint(ReplicaId(2), SeqNum(16), B).unwrap();
        agreement.checkpoint(ReplicaId(0), SeqNum(8), A).unwrap();
        assert_eq!(agreement.checkpoint(ReplicaId(3), SeqNum(8), B).unwrap_err().what, What::Root);
    }

    #[test]
    #[should_panic(expected = "executes in order")]
    fn p16_a_gap_is_found() {
        let mut agreement = Agreement::default();
        let _ = agreement.committed(ReplicaId(0), SeqNum(2), A);
    }
}
