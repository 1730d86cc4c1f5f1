//! Signed statements that third replicas must believe: what a replica says when it leaves a view (P27), and what the
//! primary of the next one says (P33). They travel, are stored and are sent again as the bytes that were signed.
//!
//! ```text
//! VIEW-CHANGE  replica u8 | reserved 3 | proof count u32 | P count u32 | Q count u32 | boot u64 | view u64 | stable u64
//!              | proof: CHECKPOINTs, signers ascending | P entries | Q entries | signature 64
//! NEW-VIEW     replica u8 | reserved 3 | member count u32 | chosen count u32 | reserved u32 | boot u64 | view u64
//!              | stable u64 | members: replica u8, reserved 7, digest | chosen: digest each | signature 64
//! entry        n u64 | view u64 | digest
//! ```
//! The digest of a statement is over its bytes without the signature.

use std::fmt;

use bytes::{Bytes, BytesMut};

use super::Malformed;
use super::codec::{Reader, Write, decode_checkpoint, encode_checkpoint};
use super::message::{SignedCheckpoint, StableAnswer};
use crate::limits;
use crate::types::{Digest, Domain, ReplicaId, SeqNum, View};

/// A kind of statement that replicas sign.
pub trait Statement: Sized {
    /// Separates its digests and signatures from those of all others.
    const DOMAIN: Domain;
    /// Who signs.
    fn signer(&self) -> ReplicaId;
    /// The signer's boot (P42).
    fn boot(&self) -> u64;
    /// Appends the bytes that are signed.
    fn encode(&self, out: &mut BytesMut);
    /// Reads them back.
    ///
    /// # Errors
    /// [`Malformed`], with the first thing that is wrong.
    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed>;
}

/// A statement and its signature, which may be good or not: see [`crate::auth::Signer`].
#[derive(Clone, PartialEq, Eq)]
pub struct Signed<T> {
    statement: T,
    /// Statement and signature.
    encoded: Bytes,
    digest: Digest,
}

const SIGNATURE: usize = 64;

impl<T: Statement> Signed<T> {
    /// Signs `statement`: `sign` makes a signature for its digest.
    pub fn new(statement: T, sign: impl FnOnce(&Digest) -> [u8; 64]) -> Signed<T> {
        let mut out = BytesMut::new();
        statement.encode(&mut out);
        let digest = Digest::of(T::DOMAIN, &[&out]);
        out.extend_from_slice(&sign(&digest));
        Signed { statement, encoded: out.freeze(), digest }
    }

    /// Reads one that fills `body`. It keeps a copy: statements outlive the datagrams that they come in.
    ///
    /// # Errors
    /// [`Malformed`], with the first thing that is wrong.
    pub fn decode(body: &[u8]) -> Result<Signed<T>, Malformed> {
        let end = body.len().checked_sub(SIGNATURE).ok_or(Malformed::Truncated)?;
        let mut reader = Reader::new(&body[..end]);
        let statement = T::decode(&mut reader)?;
        reader.end()?;
        let digest = Digest::of(T::DOMAIN, &[&body[..end]]);
        Ok(Signed { statement, encoded: Bytes::copy_from_slice(body), digest })
    }

    /// What is said.
    pub fn statement(&self) -> &T {
        &self.statement
    }

    /// Statement and signature, as they travel.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// Names the statement.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The signature.
    pub fn signature(&self) -> &[u8; 64] {
        self.encoded.last_chunk().expect("made with a signature")
    }
}

impl<T: fmt::Debug> fmt::Debug for Signed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signed").field(&self.statement).field(&self.digest).finish()
    }
}

/// Something pre-prepared or prepared: batch `digest` at `n`, in `view` for the last time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entry {
    /// The sequence number.
    pub n: SeqNum,
    /// The batch.
    pub digest: Digest,
    /// The last view in which it was.
    pub view: View,
}

const ENTRY: usize = 48;

/// VIEW-CHANGE (P27).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ViewChange {
    /// Who leaves.
    pub replica: ReplicaId,
    /// Its boot (P42).
    pub boot: u64,
    /// The view that it asks for.
    pub view: View,
    /// h, its last stable checkpoint.
    pub stable: SeqNum,
    /// q checkpoints signed for h, signers ascending; none for the initial state.
    pub proof: Vec<SignedCheckpoint>,
    /// P: for each n above h the batch last prepared, by n.
    pub prepared: Vec<Entry>,
    /// Q: for each n above h every batch ever pre-prepared, by (n, digest).
    pub pre_prepared: Vec<Entry>,
}

/// NEW-VIEW (P33).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewView {
    /// The primary of the view.
    pub replica: ReplicaId,
    /// Its boot (P42).
    pub boot: u64,
    /// The view that begins.
    pub view: View,
    /// S: senders, ascending, and the digests of their VIEW-CHANGEs.
    pub members: Vec<(ReplicaId, Digest)>,
    /// h*, the largest stable checkpoint proven in S.
    pub stable: SeqNum,
    /// What is chosen for h* + 1, h* + 2, …: batches, by digest.
    pub chosen: Vec<Digest>,
}

/// Entries that one VIEW-CHANGE may carry, in P or Q: they fit a message.
pub const ENTRIES_MAX: usize = limits::MESSAGE_MAX / ENTRY;

fn put_entries(entries: &[Entry], out: &mut BytesMut) {
    for entry in entries {
        out.put_u64(entry.n.0);
        out.put_u64(entry.view.0);
        out.put(&entry.digest.0);
    }
}

fn entries(reader: &mut Reader<'_>, count: usize) -> Result<Vec<Entry>, Malformed> {
    let entry = |reader: &mut Reader<'_>| {
        let (n, view) = (reader.sequence()?, reader.view()?);
        Ok(Entry { n, view, digest: reader.digest()? })
    };
    (0..count).map(|_| entry(reader)).collect()
}

/// A count of things of `size` bytes each: what is allocated for it has arrived.
fn count(reader: &mut Reader<'_>, max: usize) -> Result<usize, Malformed> {
    let count = reader.u32()? as usize;
    if count > max { Err(Malformed::OutOfBounds) } else { Ok(count) }
}

fn holds(reader: &Reader<'_>, parts: &[(usize, usize)]) -> Result<(), Malformed> {
    let bytes: usize = parts.iter().map(|(count, size)| count * size).sum();
    if bytes == reader.remaining() { Ok(()) } else { Err(Malformed::OutOfBounds) }
}

const CHECKPOINT: usize = 8 + 32 + 8 + 1 + 64;

impl Statement for ViewChange {
    const DOMAIN: Domain = Domain::ViewChange;

    fn signer(&self) -> ReplicaId {
        self.replica
    }

    fn boot(&self) -> u64 {
        self.boot
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put(&[self.replica.0, 0, 0, 0]);
        for count in [self.proof.len(), self.prepared.len(), self.pre_prepared.len()] {
            out.put_u32(count as u32);
        }
        for field in [self.boot, self.view.0, self.stable.0] {
            out.put_u64(field);
        }
        for checkpoint in &self.proof {
            encode_checkpoint(checkpoint, out);
        }
        put_entries(&self.prepared, out);
        put_entries(&self.pre_prepared, out);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<ViewChange, Malformed> {
        let replica = reader.replica()?;
        reader.zeros(3)?;
        let proofs = count(reader, limits::REPLICAS_MAX)?;
        let (p, q) = (count(reader, ENTRIES_MAX)?, count(reader, ENTRIES_MAX)?);
        let (boot, view, stable) = (reader.u64()?, reader.view()?, reader.sequence()?);
        holds(reader, &[(proofs, CHECKPOINT), (p, ENTRY), (q, ENTRY)])?;
        let proof = (0..proofs).map(|_| decode_checkpoint(reader)).collect::<Result<Vec<_>, _>>()?;
        let (prepared, pre_prepared) = (entries(reader, p)?, entries(reader, q)?);
        let sorted = proof.is_sorted_by(|a, b| a.replica < b.replica)
            && prepared.is_sorted_by(|a, b| a.n < b.n)
            && pre_prepared.is_sorted_by(|a, b| (a.n, a.digest) < (b.n, b.digest));
        if !sorted {
            return Err(Malformed::Inconsistent);
        }
        Ok(ViewChange { replica, boot, view, stable, proof, prepared, pre_prepared })
    }
}

impl Statement for NewView {
    const DOMAIN: Domain = Domain::NewView;

    fn signer(&self) -> ReplicaId {
        self.replica
    }

    fn boot(&self) -> u64 {
        self.boot
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put(&[self.replica.0, 0, 0, 0]);
        out.put_u32(self.members.len() as u32);
        out.put_u32(self.chosen.len() as u32);
        out.put_u32(0);
        for field in [self.boot, self.view.0, self.stable.0] {
            out.put_u64(field);
        }
        for (member, digest) in &self.members {
            out.put(&[member.0, 0, 0, 0, 0, 0, 0, 0]);
            out.put(&digest.0);
        }
        for digest in &self.chosen {
            out.put(&digest.0);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<NewView, Malformed> {
        let id = reader.replica()?;
        reader.zeros(3)?;
        let members = count(reader, limits::REPLICAS_MAX)?;
        let chosen = count(reader, limits::LOG_WINDOW_MAX as usize)?;
        reader.zeros(4)?;
        let (boot, view, stable) = (reader.u64()?, reader.view()?, reader.sequence()?);
        holds(reader, &[(members, 40), (chosen, 32)])?;
        let member = |reader: &mut Reader<'_>| {
            let id = reader.replica()?;
            reader.zeros(7)?;
            Ok((id, reader.digest()?))
        };
        let members = (0..members).map(|_| member(reader)).collect::<Result<Vec<_>, _>>()?;
        if !members.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(Malformed::Inconsistent);
        }
        let chosen = (0..chosen).map(|_| reader.digest()).collect::<Result<_, _>>()?;
        Ok(NewView { replica: id, boot, view, members, stable, chosen })
    }
}

/// A signed statement of a replica, as it came: nobody has looked at its signature.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Claim {
    /// CHECKPOINT (P24).
    Checkpoint(SignedCheckpoint),
    /// q CHECKPOINTs of one (n, root): whoever hands them on (P24).
    Stable(Vec<SignedCheckpoint>),
    /// VIEW-CHANGE (P27).
    ViewChange(std::sync::Arc<Signed<ViewChange>>),
    /// NEW-VIEW (P33).
    NewView(std::sync::Arc<Signed<NewView>>),
    /// What this replica says about our earlier lives (P42): a VIEW-CHANGE in it is signed by us.
    StableAnswer(ReplicaId, StableAnswer),
}

impl Claim {
    /// Who is said to say it.
    pub fn signer(&self) -> ReplicaId {
        match self {
            Claim::Checkpoint(checkpoint) => checkpoint.replica,
            // Of several, the first.
            Claim::Stable(proof) => proof.first().map_or(ReplicaId(0), |checkpoint| checkpoint.replica),
            Claim::ViewChange(signed) => signed.statement().replica,
            Claim::NewView(signed) => signed.statement().replica,
            Claim::StableAnswer(from, _) => *from,
        }
    }
}
