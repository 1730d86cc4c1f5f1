//! Signatures over what must convince more than its receiver.

use std::sync::Arc;

use ed25519_dalek::{Signature, VerifyingKey};

use super::{ClusterKeys, Identity, KeyError, Principal, Reject, Verified};
use crate::types::{ClusterSize, Digest, Domain, ReplicaId, SeqNum};
use crate::wire::{Claim, Malformed, NewView, Signed, SignedCheckpoint, Statement, ViewChange};

/// Bytes of a signed statement.
const STATEMENT: usize = 8 + 32 + 8 + 32;

/// What a signature is over: purpose, cluster, instance, digest. No signature of one cluster, instance or purpose can
/// stand for another.
pub(super) fn statement(keys: &ClusterKeys, purpose: Domain, digest: &Digest) -> [u8; STATEMENT] {
    let mut statement = [0; STATEMENT];
    statement[..6].copy_from_slice(b"castra");
    statement[7] = purpose as u8;
    statement[8..40].copy_from_slice(&keys.cluster.0);
    statement[40..48].copy_from_slice(&keys.instance.to_le_bytes());
    statement[48..].copy_from_slice(&digest.0);
    statement
}

/// Strict verification: canonical encodings, no keys or commitments of small order.
pub(super) fn verify(key: &VerifyingKey, statement: &[u8], signature: &[u8; 64]) -> Result<(), Reject> {
    key.verify_strict(statement, &Signature::from_bytes(signature)).map_err(|_| Reject::BadSignature)
}

/// Signs and checks what third replicas must believe: checkpoints, view-changes, new-views. The keys of the checkpoint
/// role, which may live on a core of its own (P24).
#[derive(Clone, Debug)]
pub struct Signer {
    me: ReplicaId,
    boot: u64,
    size: ClusterSize,
    identity: Identity,
    keys: Arc<ClusterKeys>,
    replicas: Arc<[VerifyingKey]>,
}

impl Signer {
    /// The signer of replica `me`, in its `boot`-th start.
    ///
    /// # Errors
    /// [`KeyError`] if the cluster's keys are unusable or `me` has another identity in it.
    pub fn new(me: ReplicaId, boot: u64, identity: &Identity, keys: Arc<ClusterKeys>) -> Result<Signer, KeyError> {
        let (size, replicas) = (keys.size()?, keys.check()?);
        if keys.replicas.get(usize::from(me.0)) != Some(&identity.public()) {
            return Err(KeyError::NotThisReplica(me));
        }
        Ok(Signer { me, boot, size, identity: identity.clone(), keys, replicas: replicas.into() })
    }

    /// Who signs.
    pub fn me(&self) -> ReplicaId {
        self.me
    }

    fn checkpoint_statement(&self, c: &SignedCheckpoint) -> [u8; STATEMENT] {
        let parts: [&[u8]; 4] = [&c.n.0.to_le_bytes(), &c.root.0, &[c.replica.0], &c.boot.to_le_bytes()];
        statement(&self.keys, Domain::Checkpoint, &Digest::of(Domain::Checkpoint, &parts))
    }

    /// This replica's word that its state after `n` has this root.
    pub fn sign_checkpoint(&self, n: SeqNum, root: Digest) -> Verified<Claim> {
        let mut checkpoint = SignedCheckpoint { n, root, replica: self.me, boot: self.boot, signature: [0; 64] };
        checkpoint.signature = self.identity.sign(&self.checkpoint_statement(&checkpoint));
        self.own(Claim::Checkpoint(checkpoint))
    }

    /// This replica leaves its view (P27). Who signs, and in which boot, is filled in here.
    pub fn sign_view_change(&self, view_change: ViewChange) -> Verified<Claim> {
        let own = ViewChange { replica: self.me, boot: self.boot, ..view_change };
        self.own(Claim::ViewChange(Arc::new(self.sign(own))))
    }

    /// This replica begins a view (P33). Who signs, and in which boot, is filled in here.
    pub fn sign_new_view(&self, new_view: NewView) -> Verified<Claim> {
        let own = NewView { replica: self.me, boot: self.boot, ..new_view };
        self.own(Claim::NewView(Arc::new(self.sign(own))))
    }

    fn own(&self, claim: Claim) -> Verified<Claim> {
        Verified::new(Principal::Replica(self.me), claim)
    }

    fn sign<T: Statement>(&self, own: T) -> Signed<T> {
        Signed::new(own, |digest| self.identity.sign(&statement(&self.keys, T::DOMAIN, digest)))
    }

    fn verify_signed<T: Statement>(&self, signed: &Signed<T>) -> Result<(), Reject> {
        let id = signed.statement().signer();
        let key = self.replicas.get(usize::from(id.0)).ok_or(Reject::UnknownReplica(id))?;
        verify(key, &statement(&self.keys, T::DOMAIN, &signed.digest()), signed.signature())
    }

    /// Checks a signed statement, whoever handed it on, and the signatures within it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify_claim(&self, mut claim: Claim) -> Result<Verified<Claim>, Reject> {
        match &mut claim {
            Claim::Checkpoint(checkpoint) => {
                self.verify_checkpoint(*checkpoint)?;
            }
            Claim::Stable(proof) => {
                self.verify_stable(proof)?;
                // Those beyond q were not looked at.
                proof.truncate(self.size.quorum());
            }
            Claim::ViewChange(signed) => {
                self.verify_signed(signed)?;
                let ViewChange { stable, proof, .. } = signed.statement();
                // The initial state needs no proof (P31).
                let proven = match stable.0 {
                    0 => proof.is_empty(),
                    _ => proof.len() == self.size.quorum() && proof.iter().all(|c| c.n == *stable),
                };
                if !proven {
                    return Err(Reject::Malformed(Malformed::Inconsistent));
                }
                if !proof.is_empty() {
                    self.verify_stable(proof)?;
                }
            }
            Claim::NewView(signed) => {
                let NewView { replica, view, members, .. } = signed.statement();
                if self.size.primary(*view) != *replica {
                    return Err(Reject::NotTheSpeaker);
                }
                if members.len() < self.size.quorum() || members.iter().any(|(r, _)| !self.size.contains(*r)) {
                    return Err(Reject::Malformed(Malformed::Inconsistent));
                }
                self.verify_signed(signed)?;
            }
            Claim::StableAnswer(_, answer) => {
                if let Some(signed) = &answer.view_change {
                    if signed.statement().replica != self.me {
                        return Err(Reject::NotTheSpeaker);
                    }
                    self.verify_signed(signed)?;
                }
            }
        }
        Ok(Verified::new(Principal::Replica(claim.signer()), claim))
    }

    /// Checks a checkpoint's signature, whoever handed it on.
    ///
    /// # Errors
    /// [`Reject::UnknownReplica`], [`Reject::BadSignature`].
    pub fn verify_checkpoint(&self, checkpoint: SignedCheckpoint) -> Result<Verified<SignedCheckpoint>, Reject> {
        let id = checkpoint.replica;
        let key = self.replicas.get(usize::from(id.0)).ok_or(Reject::UnknownReplica(id))?;
        verify(key, &self.checkpoint_statement(&checkpoint), &checkpoint.signature)?;
        Ok(Verified::new(Principal::Replica(id), checkpoint))
    }

    /// Checks a proof that checkpoint (n, root) is stable: good signatures of q distinct replicas over one (n, root)
    /// (P24). More than q are not looked at.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify_stable(&self, proof: &[SignedCheckpoint]) -> Result<Vec<Verified<SignedCheckpoint>>, Reject> {
        let agree =
            |a: &SignedCheckpoint, b: &SignedCheckpoint| a.replica < b.replica && (a.n, a.root) == (b.n, b.root);
        if proof.len() < self.size.quorum() || !proof.is_sorted_by(agree) {
            return Err(Reject::Malformed(Malformed::Inconsistent));
        }
        proof.iter().take(self.size.quorum()).map(|&checkpoint| self.verify_checkpoint(checkpoint)).collect()
    }
}
