//! What replicas and clients say to each other, valid by construction. Layouts stand in [`super::codec`].

use std::sync::Arc;

use bytes::Bytes;

use super::pack::Pack;
use super::signed::{NewView, Signed, ViewChange};
use crate::types::{
    ClusterSize, Digest, Domain, Hasher, Position, RegionId, ReplicaId, ReplicaSet, SeqNum, SessionId, View,
};

/// A frame of an envelope between replicas. It speaks for the envelope's sender alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// The primary's proposal (P11).
    PrePrepare(PrePrepare),
    /// A backup's vote for the proposal (P15).
    Prepare(Vote),
    /// A replica's word that it is prepared (P15).
    Commit(Vote),
    /// Committed-local at the sender, or accepted by P51.
    Committed(Committed),
    /// A signed digest of the sender's state (P24).
    Checkpoint(SignedCheckpoint),
    /// q signed checkpoints with one (n, root): the proof of a stable checkpoint (P24).
    Stable(Vec<SignedCheckpoint>),
    /// What the sender has, so that others can send what it lacks (P37).
    Status(Status),
    /// Please send the batch with this digest (P34, P51).
    FetchBatch(Committed),
    /// The answer: a batch, every pack inline. Checked by digest, so it needs no other proof.
    Batch(SeqNum, Arc<Batch>),
    /// Please send the pack with this digest, which a pre-prepare named.
    FetchPack(Digest),
    /// A client's pack, handed on: a backup's relay to the primary, or the answer to [`Message::FetchPack`].
    Relay(Pack),
    /// Everything that a STATUS with this nonce asked for and that could be sent has been sent (P37).
    Answered(u64),
    /// Please send parts of the state at a checkpoint (P38).
    FetchState(FetchState),
    /// The answer.
    State(StateAnswer),
    /// A replica leaves its view (P27). Signed: anyone may hand it on.
    ViewChange(Arc<Signed<ViewChange>>),
    /// The primary of the next view begins it (P33). Signed: anyone may hand it on.
    NewView(Arc<Signed<NewView>>),
    /// Please send this VIEW-CHANGE, which a NEW-VIEW named (P33).
    FetchViewChange(WantedViewChange),
    /// The sender has started again and forgotten its votes: how far can they have reached (P42)? The answer echoes the
    /// nonce.
    QueryStable(u64),
    /// The answer.
    StableAnswer(StableAnswer),
}

/// PRE-PREPARE(v, n, d): the primary of `view` proposes a batch for `n` (P11).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrePrepare {
    /// The view it is proposed in.
    pub view: View,
    /// The place in the order.
    pub n: SeqNum,
    /// What the primary chose for all.
    pub choice: Choice,
    /// The packs, in order of execution. Empty: a null batch.
    pub packs: Vec<Proposed>,
}

impl PrePrepare {
    /// d: covers the choices and the packs' digests, neither view nor sequence number.
    pub fn digest(&self) -> Digest {
        batch_digest(&self.choice, self.packs.iter().map(Proposed::digest))
    }
}

/// A pack in a proposal: inline, or only its digest when it is larger than `inline_max` (P3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proposed {
    /// The whole pack, with the client's proof.
    Inline(Pack),
    /// The client sent it to every replica.
    ByDigest(Digest),
}

impl Proposed {
    /// The pack's digest.
    pub fn digest(&self) -> Digest {
        match self {
            Proposed::Inline(pack) => pack.digest(),
            Proposed::ByDigest(digest) => *digest,
        }
    }
}

/// The agreed choices of a batch (P11, P19).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Choice {
    /// Nanoseconds since the Unix epoch, by the primary's clock.
    pub time: u64,
    /// For services that need randomness: chosen by the primary, the same everywhere, not secret.
    pub seed: u64,
}

/// What one sequence number orders: packs and choices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    choice: Choice,
    packs: Vec<Pack>,
    digest: Digest,
}

impl Batch {
    /// A batch of `packs` under `choice`.
    pub fn new(choice: Choice, packs: Vec<Pack>) -> Batch {
        let digest = batch_digest(&choice, packs.iter().map(Pack::digest));
        Batch { choice, packs, digest }
    }

    /// The batch that executes nothing (P32): no packs, no choices; it leaves time unchanged.
    pub fn null() -> Batch {
        Batch::new(Choice::default(), Vec::new())
    }

    /// Whether it executes nothing.
    pub fn is_null(&self) -> bool {
        self.packs.is_empty()
    }

    /// The agreed choices.
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// The packs, in order of execution.
    pub fn packs(&self) -> &[Pack] {
        &self.packs
    }

    /// d.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Requests in all packs.
    pub fn requests(&self) -> usize {
        self.packs.iter().map(Pack::len).sum()
    }

    /// Bytes of all packs.
    pub fn bytes(&self) -> usize {
        self.packs.iter().map(|p| p.encoded().len()).sum()
    }
}

fn batch_digest(choice: &Choice, packs: impl Iterator<Item = Digest>) -> Digest {
    let mut hasher = Hasher::new(Domain::Batch);
    hasher.update(&choice.time.to_le_bytes()).update(&choice.seed.to_le_bytes());
    for digest in packs {
        hasher.update(&digest.0);
    }
    hasher.finish()
}

/// PREPARE or COMMIT: (v, n, d).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vote {
    /// The view voted in.
    pub view: View,
    /// The sequence number voted on.
    pub n: SeqNum,
    /// The batch voted for.
    pub digest: Digest,
}

/// COMMITTED(n, d) (P51), and the name of a batch to fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// The sequence number.
    pub n: SeqNum,
    /// The batch.
    pub digest: Digest,
}

/// Names a VIEW-CHANGE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WantedViewChange {
    /// The view that it asks for.
    pub view: View,
    /// Who signed it.
    pub replica: ReplicaId,
    /// Its digest.
    pub digest: Digest,
}

/// CHECKPOINT(n, root), signed by a replica: q of them are a proof that convinces anyone (P24).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SignedCheckpoint {
    /// A multiple of K.
    pub n: SeqNum,
    /// The root digest of the state after `n`.
    pub root: Digest,
    /// Who signs.
    pub replica: ReplicaId,
    /// The signer's boot (P42).
    pub boot: u64,
    /// Ed25519 over the digest of the above in `Domain::Checkpoint`, with the cluster and instance ids.
    pub signature: [u8; 64],
}

/// STATUS: what the sender has (P37).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// The sender's view.
    pub view: View,
    /// Its last stable checkpoint h.
    pub stable: SeqNum,
    /// The last batch that it executed and knows to be committed.
    pub executed: SeqNum,
    /// It restarted in memory mode, has forgotten its votes, and has not recovered yet (P42).
    pub recovering: bool,
    /// While recovering: N, the checkpoint at or above which it may vote again; 0 while it does not know.
    pub until: SeqNum,
    /// The highest view for which an earlier life of the sender signed a VIEW-CHANGE that it stands by (P42).
    pub floor: View,
    /// Something is missing: please send it. Otherwise only news (flow control, `status`).
    pub wants: bool,
    /// It has left the view before this one, and waits for its NEW-VIEW.
    pub pending: bool,
    /// While pending: whose VIEW-CHANGEs for this view it holds.
    pub view_changes: ReplicaSet,
    /// Answers echo it.
    pub nonce: u64,
    /// Bit i: prepared in this view at `executed + 1 + i`. At most `LOG_WINDOW_MAX` bits, in words.
    pub prepared: Vec<u64>,
    /// Bit i: committed-local at `executed + 1 + i`.
    pub committed: Vec<u64>,
}

/// What a replica knows of the reach of another one's earlier lives (P42).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StableAnswer {
    /// Of the question.
    pub nonce: u64,
    /// c: the last checkpoint that the sender signed.
    pub signed: SeqNum,
    /// p: the last batch that the sender prepared or executed.
    pub prepared: SeqNum,
    /// The highest VIEW-CHANGE of the asker that the sender holds.
    pub view_change: Option<Arc<Signed<ViewChange>>>,
}

/// FETCH-STATE: asks for parts of the sender's certified state at checkpoint `n` (P38).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchState {
    /// The checkpoint.
    pub n: SeqNum,
    /// The answer echoes it.
    pub nonce: u64,
    /// What is wanted, at most `STATE_ITEMS_MAX`. Empty: the header.
    pub items: Vec<StateItem>,
}

/// A part of the state, by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum StateItem {
    /// Up to sixteen tree nodes that have one node above them.
    Nodes {
        /// The region.
        region: RegionId,
        /// Their level: a node of level k covers 16^k pages.
        level: u8,
        /// Nodes `16 x group ..` of that level.
        group: u32,
    },
    /// A page.
    Page {
        /// The region.
        region: RegionId,
        /// Its number.
        page: u32,
    },
}

/// STATE: the answer to a FETCH-STATE. It carries no proof: the receiver checks every part against the root that q
/// replicas signed (P38).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateAnswer {
    /// The checkpoint.
    pub n: SeqNum,
    /// Of the request.
    pub nonce: u64,
    /// What was asked for.
    pub content: StateContent,
}

/// What a [`StateAnswer`] says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StateContent {
    /// The sender cannot serve that checkpoint, but these, upwards.
    Absent(Vec<SeqNum>),
    /// What the root is the digest of.
    Header([RegionHead; 2]),
    /// The parts asked for, in the order asked; perhaps only the first of them.
    Parts(Vec<StatePart>),
}

/// A region as the root sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionHead {
    /// Pages in use.
    pub pages: u32,
    /// BLAKE3 of them.
    pub root: [u8; 32],
}

/// The content of a [`StateItem`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StatePart {
    /// One to sixteen nodes.
    Nodes(Vec<[u8; 32]>),
    /// A page without the zeroes at its end.
    Page(Bytes),
}

/// Replies of one replica to one client endpoint: one frame of one envelope.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplyPack {
    /// The replica's view, from which the client learns the primary (P8).
    pub view: View,
    /// The replies.
    pub replies: Vec<ReplyEntry>,
}

/// One reply (P5, P7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplyEntry {
    /// The request's session.
    pub session: SessionId,
    /// The request's number.
    pub t: u64,
    /// How final it is.
    pub kind: ReplyKind,
    /// Where it was executed. For a read-only reply: the last batch it includes, with index 0; compared only where one of
    /// them is tentative (P6).
    pub position: Position,
    /// The result or its digest.
    pub result: ReplyResult,
}

/// How final a reply is (P5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum ReplyKind {
    /// Executed unordered on a committed state (P18).
    ReadOnly = 1,
    /// Executed in order, prepared in the sender's view, not yet known to be committed (P16).
    Tentative = 2,
    /// Executed in order and committed.
    Committed = 3,
    /// Executed unordered on a state whose last batch is prepared in the sender's view, and not yet known to be
    /// committed (P18).
    TentativeRead = 4,
}

/// The result of an executed request, or why it has none. Agreed by all correct replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplyResult {
    /// The whole outcome.
    Full(Outcome),
    /// `Outcome::digest()` of it: another replica sends the whole (P7).
    Digest(Digest),
}

impl ReplyResult {
    /// The digest that must match between replies.
    pub fn digest(&self) -> Digest {
        match self {
            ReplyResult::Full(outcome) => outcome.digest(),
            ReplyResult::Digest(digest) => *digest,
        }
    }
}

/// What became of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The service's result.
    Done(Bytes),
    /// Executed, its result no longer kept (P4).
    Gone,
    /// The session does not exist (expired or closed): open another.
    NoSession,
    /// The session-open was refused (P9).
    Refused(Refusal),
}

/// Why a session was not opened (P9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The counter is not above the identity's last, which is named.
    Counter {
        /// The last counter.
        last: u64,
    },
    /// The identity holds its quota of live sessions.
    Quota {
        /// The quota.
        sessions_max: u64,
    },
    /// The window asked for is above the configured one.
    Window {
        /// The largest allowed.
        window_max: u64,
    },
    /// The replicas hold as many sessions, of all identities together, as they may.
    Full {
        /// How many.
        sessions_max: u64,
    },
}

impl Outcome {
    /// Payload, number and tag, in `Domain::Result`: the payload first, for BLAKE3 takes chunks in parallel only where they
    /// lie on their boundaries.
    pub fn digest(&self) -> Digest {
        let of = |tag: u8, number: u64| Digest::of(Domain::Result, &[&number.to_le_bytes(), &[tag]]);
        match self {
            Outcome::Done(bytes) => Outcome::digest_of_done(bytes),
            Outcome::Gone => of(1, 0),
            Outcome::NoSession => of(2, 0),
            Outcome::Refused(Refusal::Counter { last }) => of(3, *last),
            Outcome::Refused(Refusal::Quota { sessions_max }) => of(4, *sessions_max),
            Outcome::Refused(Refusal::Window { window_max }) => of(5, *window_max),
            Outcome::Refused(Refusal::Full { sessions_max }) => of(7, *sessions_max),
        }
    }

    /// The digest of [`Outcome::Done`] with `bytes`.
    pub fn digest_of_done(bytes: &[u8]) -> Digest {
        Digest::of(Domain::Result, &[bytes, &[0; 9]])
    }
}

/// The replica that sends the whole of a large result (P7): by the request alone, so that no primary can choose it, one
/// of the preferred quorum of `view` (P53).
pub fn default_replier(session: SessionId, t: u64, view: View, size: ClusterSize) -> ReplicaId {
    // Fibonacci hashing: consecutive requests spread over all of them.
    let mixed = (session.0 ^ t.rotate_left(32)).wrapping_add(t).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let chosen = view.0 % size.n() as u64 + (mixed >> 32) % size.quorum() as u64;
    ReplicaId((chosen % size.n() as u64) as u8)
}
