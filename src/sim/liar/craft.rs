//! What every way to lie uses: when to lie, to whom the same, and how to sign it.

use std::sync::Arc;

use crate::auth::Signer;
use crate::sim::Rng;
use crate::types::{ClusterSize, Digest, ReplicaId, SeqNum, Time};
use crate::wire::{Batch, Claim, NewView, Signed, SignedCheckpoint, ViewChange};

/// The means of a liar at one moment.
pub(super) struct Craft<'a> {
    pub now: Time,
    pub size: ClusterSize,
    pub signer: &'a Signer,
    pub permille: u32,
    pub rng: &'a mut Rng,
}

impl Craft<'_> {
    /// Whether this is an occasion to lie.
    pub fn lies(&mut self) -> bool {
        self.rng.chance(self.permille)
    }

    /// In which of two parts of the others a receiver is, for one occasion: always the same for the same.
    pub fn is_apart(&self, to: ReplicaId, occasion: u64) -> bool {
        Rng::stream(occasion, 7_000 + u64::from(to.0)).chance(500)
    }

    /// Another number, near or far.
    pub fn number(&mut self, before: u64) -> u64 {
        match self.rng.below(8) {
            0 => before.wrapping_add(1),
            1 => before.wrapping_sub(1),
            2 => 0,
            3 => u64::MAX,
            4 => before ^ 1 << self.rng.below(64),
            5 => before.wrapping_add(self.rng.below(64)),
            6 => before.wrapping_sub(self.rng.below(64)),
            _ => self.rng.next_u64(),
        }
    }

    /// Another digest.
    pub fn digest(&mut self, before: Digest) -> Digest {
        let mut digest = before;
        match self.rng.below(4) {
            0 => self.rng.fill(&mut digest.0),
            1 => digest = Batch::null().digest(),
            _ => digest.0[self.rng.index(32)] ^= 1 << self.rng.below(8),
        }
        digest
    }

    pub fn sign_checkpoint(&self, n: SeqNum, root: Digest) -> Option<SignedCheckpoint> {
        match self.signer.sign_checkpoint(n, root).into_inner() {
            Claim::Checkpoint(checkpoint) => Some(checkpoint),
            Claim::Stable(_) | Claim::ViewChange(_) | Claim::NewView(_) | Claim::StableAnswer(..) => None,
        }
    }

    pub fn sign_view_change(&self, statement: ViewChange) -> Option<Arc<Signed<ViewChange>>> {
        match self.signer.sign_view_change(statement).into_inner() {
            Claim::ViewChange(signed) => Some(signed),
            Claim::Checkpoint(_) | Claim::Stable(_) | Claim::NewView(_) | Claim::StableAnswer(..) => None,
        }
    }

    pub fn sign_new_view(&self, statement: NewView) -> Option<Arc<Signed<NewView>>> {
        match self.signer.sign_new_view(statement).into_inner() {
            Claim::NewView(signed) => Some(signed),
            Claim::Checkpoint(_) | Claim::Stable(_) | Claim::ViewChange(_) | Claim::StableAnswer(..) => None,
        }
    }
}
