//! The making of proofs: heads for datagrams, proofs for packs.

use std::ops::Range;

use bytes::Bytes;

use super::derivation::Pair;
use super::keyring::{FRAGMENT_OWN, Keyring, fragment_digest, pack_hop_digest, receipt_digest};
use super::mac;
use super::signer::statement;
use super::{AuthMode, Principal};
use crate::limits;
use crate::transport::Head;
use crate::types::{Digest, Domain, Hasher, ReplicaId};
use crate::wire::{FragmentPlan, Frames, Header, Kind, Pack, PackBuilder, Proof, ProofKind, Receipt};

/// Frames that go into an envelope: a run of some [`Frames`].
pub type Part<'a> = (&'a Frames, Range<usize>);

impl Keyring {
    fn header(&self, kind: Kind, proof: ProofKind, receiver: Principal) -> Header {
        let receiver_epoch = match receiver {
            Principal::Replica(id) => self.epoch_of(id),
            Principal::Client(..) => 0,
        };
        Header { kind, proof, receiver, sender: self.me, cluster: self.tag, sender_epoch: self.epoch(), receiver_epoch }
    }

    fn envelope_digest(header: &Header, parts: &[Part<'_>]) -> Digest {
        let mut hasher = Hasher::new(Domain::Envelope);
        header.absorb(&mut hasher);
        for (frames, run) in parts {
            frames.absorb(run.clone(), &mut hasher);
        }
        hasher.finish()
    }

    fn pair(&self, other: Principal) -> Option<&Pair> {
        match other {
            Principal::Replica(id) => self.replicas.get(usize::from(id.0))?.pair.as_ref(),
            Principal::Client(client, endpoint) => self.clients.pair(client, endpoint),
        }
    }

    fn sign(&self, purpose: Domain, digest: &Digest) -> [u8; 64] {
        self.derivation.identity.sign(&statement(&self.keys, purpose, digest))
    }

    /// The head of an envelope of `parts`, one behind the other, for one receiver. `None` for a client endpoint that
    /// has not proved itself.
    pub fn seal(&self, to: Principal, parts: &[Part<'_>]) -> Option<Head> {
        let pair = self.pair(to)?;
        let header = self.header(Kind::Envelope, self.mode.proof(), to);
        let digest = Self::envelope_digest(&header, parts);
        let mut head = Head::EMPTY;
        head.push(&header.encode());
        match self.mode {
            AuthMode::Mac => head.push(&pair.send.tag(&digest)),
            AuthMode::Signature => head.push(&self.sign(Domain::Envelope, &digest)),
        }
        Some(head)
    }

    /// The heads of one envelope for several replicas: one digest, and a MAC each or one signature.
    ///
    /// # Panics
    /// If `to` names ourselves or no replica of the cluster.
    pub fn seal_broadcast(
        &self,
        to: impl Iterator<Item = ReplicaId> + Clone,
        parts: &[Part<'_>],
        heads: &mut Vec<(Principal, Head)>,
    ) {
        let first = heads.len();
        let header = |id| self.header(Kind::Envelope, self.mode.proof(), Principal::Replica(id));
        for id in to.clone() {
            let mut head = Head::EMPTY;
            head.push(&header(id).encode());
            heads.push((Principal::Replica(id), head));
        }
        let Some(id) = to.clone().next() else { return };
        // The same for all of them: a digest does not cover which replica receives.
        let digest = Self::envelope_digest(&header(id), parts);
        match self.mode {
            AuthMode::Mac => {
                let key = |id| &self.pair(Principal::Replica(id)).expect("another replica of the cluster").send;
                let mut next = heads[first..].iter_mut();
                mac::vector(to.map(key), &digest, |tag| next.next().expect("one per receiver").1.push(&tag));
            }
            AuthMode::Signature => {
                let signature = self.sign(Domain::Envelope, &digest);
                heads[first..].iter_mut().for_each(|(_, head)| head.push(&signature));
            }
        }
    }

    /// The datagram that tells `to` this process's key (P40): head and body. `None` if it has none but its identity's.
    pub fn seal_new_key(&self, to: Principal) -> Option<(Head, Bytes)> {
        let (key, body) = self.announced.as_ref()?;
        let mut head = Head::EMPTY;
        head.push(&self.header(Kind::NewKey, ProofKind::Signature, to).encode());
        head.push(&key.signature);
        Some((head, body.clone()))
    }

    /// The datagram that tells a client endpoint what is here of its message: head and body. `None` for one that has not
    /// proved itself.
    pub fn seal_receipt(&self, to: Principal, receipt: &Receipt) -> Option<(Head, Bytes)> {
        let pair = self.pair(to)?;
        let (header, body) = (self.header(Kind::Receipt, ProofKind::Mac, to), receipt.encode());
        let mut head = Head::EMPTY;
        head.push(&header.encode());
        head.push(&pair.send.tag(&receipt_digest(&header, &body)));
        Some((head, body))
    }

    /// Finishes the pack of this client endpoint that `builder` holds, under a vector or, if `signed` or always in signature mode, a signature
    /// (P2). `full`: every replica is to send whole results (P7).
    ///
    /// # Panics
    /// If the builder is another's, empty, or opens a session unsigned.
    pub fn seal_pack(&self, builder: &mut PackBuilder, full: bool, signed: bool) -> Pack {
        let pack = builder.finish(full, |digest, proof| {
            if signed || self.mode == AuthMode::Signature {
                let signature = self.sign(Domain::Pack, &digest);
                let identity = self.derivation.identity.public().to_bytes();
                proof.write(Proof::Signature { identity: &identity, signature: &signature });
            } else {
                let mut entries = [[0; 8]; limits::REPLICAS_MAX];
                let mut count = 0;
                let keys = self.replicas.iter().map(|keys| &keys.pair.as_ref().expect("a client's keyring").send);
                mac::vector(keys, &digest, |tag| {
                    entries[count] = tag;
                    count += 1;
                });
                proof.write(Proof::Vector(&entries[..count]));
            }
        });
        assert_eq!(self.me, Principal::Client(pack.client(), pack.endpoint()), "a client seals its own packs");
        assert!(!pack.opens_session() || pack.is_signed(), "a session-open is signed (P9)");
        pack
    }

    /// The head of the datagram that carries a pack from its client to a replica; the body is `pack.encoded()`.
    ///
    /// # Panics
    /// If `to` is no replica of the cluster.
    pub fn seal_pack_hop(&self, to: ReplicaId, pack: &Pack) -> Head {
        let to = Principal::Replica(to);
        let header = self.header(Kind::Pack, ProofKind::Mac, to);
        let mut head = Head::EMPTY;
        head.push(&header.encode());
        head.push(&self.pair(to).expect("a replica of the cluster").send.tag(&pack_hop_digest(&header, pack)));
        head
    }

    /// Cuts datagrams that have one body and a head for each receiver into fragments of at most `datagram_max` bytes.
    /// Receivers whose keys are not known are left out. `message` must be above all numbers used before.
    ///
    /// # Panics
    /// If heads differ in length, or head and body are larger than a message can be.
    pub fn fragment(
        &self,
        message: u64,
        datagram_max: usize,
        receivers: &[(Principal, Head)],
        body: &Bytes,
        mut emit: impl FnMut(Principal, Head, Bytes),
    ) {
        let Some((_, first)) = receivers.first() else { return };
        let head_len = first.as_slice().len();
        assert!(receivers.iter().all(|(_, head)| head.as_slice().len() == head_len), "heads of one broadcast");
        let plan = FragmentPlan::new(head_len + body.len(), datagram_max);
        for index in 0..plan.count() {
            self.fragment_piece(plan, message, index, receivers, body, &mut emit);
        }
    }

    /// One piece of what [`fragment`](Self::fragment) cuts.
    ///
    /// # Panics
    /// If `plan` is not for datagrams of these heads and this body, or has no such piece.
    pub fn fragment_piece(
        &self,
        plan: FragmentPlan,
        message: u64,
        index: usize,
        receivers: &[(Principal, Head)],
        body: &Bytes,
        mut emit: impl FnMut(Principal, Head, Bytes),
    ) {
        let Some((_, first)) = receivers.first() else { return };
        let head_len = first.as_slice().len();
        let range = plan.range(index);
        assert!(range.end > head_len, "pieces are larger than heads");
        let own_len = if index == 0 { head_len } else { 0 };
        let slice = body.slice(range.start.saturating_sub(head_len)..range.end - head_len);
        // Behind the bytes that may hold a head a piece is the same for all receivers.
        let shared_at = (FRAGMENT_OWN - own_len).min(slice.len());
        let rest = Digest::of(Domain::Body, &[&slice[shared_at..]]);
        let fragment = plan.header(message, index);
        for (to, inner) in receivers {
            let Some(pair) = self.pair(*to) else { continue };
            let mut start = [0; FRAGMENT_OWN];
            start[..own_len].copy_from_slice(&inner.as_slice()[..own_len]);
            start[own_len..own_len + shared_at].copy_from_slice(&slice[..shared_at]);
            let header = self.header(Kind::Fragment, ProofKind::Mac, *to);
            let digest = fragment_digest(&header, &fragment, &start[..own_len + shared_at], Some(rest));
            let mut head = Head::EMPTY;
            head.push(&header.encode());
            head.push(&fragment.encode());
            head.push(&pair.send.tag(&digest));
            head.push(&inner.as_slice()[..own_len]);
            emit(*to, head, slice.clone());
        }
    }
}
