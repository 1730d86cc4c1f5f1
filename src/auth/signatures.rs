//! Packs whose signatures were good: a signed pack comes from its client, from backups that relay it and in the
//! proposal, and is checked once.

use std::collections::{BTreeMap, VecDeque};

use crate::types::Digest;
use crate::wire::{Pack, Proof};

/// How many are remembered: a few batches of nothing but signed packs.
const KEPT: usize = 4_096;

/// The last signatures that were good.
#[derive(Clone, Debug, Default)]
pub(super) struct Signatures {
    good: BTreeMap<Digest, [u8; 64]>,
    order: VecDeque<Digest>,
}

impl Signatures {
    /// Whether this very signature was found good for this pack.
    pub(super) fn contains(&self, pack: &Pack) -> bool {
        match pack.proof() {
            Proof::Signature { signature, .. } => self.good.get(&pack.digest()) == Some(signature),
            Proof::Vector(_) => false,
        }
    }

    /// The pack's signature is good.
    pub(super) fn insert(&mut self, pack: &Pack) {
        if let Proof::Signature { signature, .. } = pack.proof()
            && self.good.insert(pack.digest(), *signature).is_none()
        {
            if self.order.len() == KEPT {
                self.order.pop_front().and_then(|oldest| self.good.remove(&oldest));
            }
            self.order.push_back(pack.digest());
        }
    }
}
