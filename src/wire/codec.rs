//! The bodies of frames. Integers are little-endian, nothing is aligned or padded; `digest` is 32 bytes.
//!
//! ```text
//!  1 PRE-PREPARE  view u64 | n u64 | time u64 | seed u64 | count u32 | count x (len u32 | pack, or 0 u32 | digest)
//!  2 PREPARE      view u64 | n u64 | digest
//!  3 COMMIT       view u64 | n u64 | digest
//!  4 COMMITTED    n u64 | digest
//!  5 CHECKPOINT   n u64 | root digest | boot u64 | replica u8 | signature 64
//!  6 STABLE       one or more CHECKPOINTs of one (n, root), signers ascending
//!  7 STATUS       view u64 | stable u64 | executed u64 | nonce u64 | view-changes held u64 (a bit for each replica)
//!                 | recovering until u64 | floor u64
//!                 | flags u8 (1 recovering, 2 wants, 4 waits for its new view) | reserved u8
//!                 | prepared words u16 | committed words u16 | words u64 each
//!  8 FETCH-BATCH  n u64 | digest
//!  9 BATCH        n u64 | time u64 | seed u64 | count u32 | count x (len u32 | pack)
//! 10 FETCH-PACK   digest
//! 11 RELAY        pack
//! 12 ANSWERED     nonce u64
//! 13 VIEW-CHANGE  see [`super::signed`]
//! 14 NEW-VIEW     see [`super::signed`]
//! 15 FETCH-VC     view u64 | replica u8 | reserved 7 | digest
//! 16 FETCH-STATE  n u64 | nonce u64 | count u16 | count x (region u8 | level u8, or 255 for a page | number u32);
//!                 none: the header
//! 17 STATE        n u64 | nonce u64 | kind u8 | reserved u8 | count u16 | content
//!                 kind 0, absent: count x n u64, ascending; 1, header: two x (pages u32 | root 32);
//!                 2, parts: count x (0 u8 | count u8 | nodes 32 each, or 1 u8 | len u16 | page without the zeroes at its end)
//! 18 QUERY-STABLE  nonce u64
//! 19 STABLE-ANSWER nonce u64 | signed u64 | prepared u64 | the asker's VIEW-CHANGE, or nothing
//! 64 REPLIES      see [`super::replies`]
//! ```
//! Zero words at the end of a STATUS bitmap, and zeroes at the end of a page, are not sent: one set, one page has one
//! encoding.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::message::{
    Batch, Choice, Committed, FetchState, Message, PrePrepare, Proposed, RegionHead, SignedCheckpoint, StableAnswer,
    StateAnswer, StateContent, StateItem, StatePart, Status, Vote, WantedViewChange,
};
use super::pack::{PackDigests, covered_len, pack_digest};
use super::signed::Signed;
use super::{Malformed, Pack};
use crate::limits;
use crate::types::{Digest, RegionId, ReplicaId, ReplicaSet, SeqNum, View};

/// Bytes of a pre-prepare before its count of packs.
const PRE_PREPARE_HEAD: usize = 32;

/// Frame types.
pub mod frame_type {
    /// [`super::Message::PrePrepare`]
    pub const PRE_PREPARE: u8 = 1;
    /// [`super::Message::Prepare`]
    pub const PREPARE: u8 = 2;
    /// [`super::Message::Commit`]
    pub const COMMIT: u8 = 3;
    /// [`super::Message::Committed`]
    pub const COMMITTED: u8 = 4;
    /// [`super::Message::Checkpoint`]
    pub const CHECKPOINT: u8 = 5;
    /// [`super::Message::Stable`]
    pub const STABLE: u8 = 6;
    /// [`super::Message::Status`]
    pub const STATUS: u8 = 7;
    /// [`super::Message::FetchBatch`]
    pub const FETCH_BATCH: u8 = 8;
    /// [`super::Message::Batch`]
    pub const BATCH: u8 = 9;
    /// [`super::Message::FetchPack`]
    pub const FETCH_PACK: u8 = 10;
    /// [`super::Message::Relay`]
    pub const RELAY: u8 = 11;
    /// [`super::Message::Answered`]
    pub const ANSWERED: u8 = 12;
    /// [`super::Message::FetchState`]
    pub const FETCH_STATE: u8 = 16;
    /// [`super::Message::State`]
    pub const STATE: u8 = 17;
    /// [`super::Message::ViewChange`]
    pub const VIEW_CHANGE: u8 = 13;
    /// [`super::Message::NewView`]
    pub const NEW_VIEW: u8 = 14;
    /// [`super::Message::FetchViewChange`]
    pub const FETCH_VIEW_CHANGE: u8 = 15;
    /// [`super::Message::QueryStable`]
    pub const QUERY_STABLE: u8 = 18;
    /// [`super::Message::StableAnswer`]
    pub const STABLE_ANSWER: u8 = 19;
    /// [`super::super::ReplyPack`]
    pub const REPLIES: u8 = 64;
}

/// Reads fields off a slice, checked.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

macro_rules! read_integer {
    ($($name:ident)*) => {$(
        /// The next integer, little-endian.
        ///
        /// # Errors
        /// [`Malformed::Truncated`].
        pub fn $name(&mut self) -> Result<$name, Malformed> {
            Ok($name::from_le_bytes(*self.array()?))
        }
    )*};
}

impl<'a> Reader<'a> {
    /// At the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// Bytes read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`].
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(len).ok_or(Malformed::Truncated)?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed::Truncated)?;
        self.at = end;
        Ok(taken)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`Malformed::Truncated`].
    pub fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Malformed> {
        self.take(N)?.first_chunk().ok_or(Malformed::Truncated)
    }

    read_integer!(u8 u16 u32 u64);

    /// The next digest.
    ///
    /// # Errors
    /// [`Malformed::Truncated`].
    pub fn digest(&mut self) -> Result<Digest, Malformed> {
        Ok(Digest(*self.array()?))
    }

    /// The next view.
    ///
    /// # Errors
    /// [`Malformed::OutOfBounds`] above [`limits::VIEW_MAX`], [`Malformed::Truncated`].
    pub fn view(&mut self) -> Result<View, Malformed> {
        let view = self.u64()?;
        if view <= limits::VIEW_MAX { Ok(View(view)) } else { Err(Malformed::OutOfBounds) }
    }

    /// The next sequence number.
    ///
    /// # Errors
    /// [`Malformed::OutOfBounds`] above [`limits::SEQUENCE_MAX`], [`Malformed::Truncated`].
    pub fn sequence(&mut self) -> Result<SeqNum, Malformed> {
        let n = self.u64()?;
        if n <= limits::SEQUENCE_MAX { Ok(SeqNum(n)) } else { Err(Malformed::OutOfBounds) }
    }

    /// The next replica's number.
    ///
    /// # Errors
    /// [`Malformed::OutOfBounds`] from [`limits::REPLICAS_MAX`] on, [`Malformed::Truncated`].
    pub fn replica(&mut self) -> Result<ReplicaId, Malformed> {
        let id = self.u8()?;
        if usize::from(id) < limits::REPLICAS_MAX { Ok(ReplicaId(id)) } else { Err(Malformed::OutOfBounds) }
    }

    /// `len` reserved bytes, which must be zero.
    ///
    /// # Errors
    /// [`Malformed::Reserved`] if they are not, [`Malformed::Truncated`].
    pub fn zeros(&mut self, len: usize) -> Result<(), Malformed> {
        if self.take(len)?.iter().all(|&b| b == 0) { Ok(()) } else { Err(Malformed::Reserved) }
    }

    /// Nothing is left.
    ///
    /// # Errors
    /// [`Malformed::Trailing`].
    pub fn end(&self) -> Result<(), Malformed> {
        if self.remaining() == 0 { Ok(()) } else { Err(Malformed::Trailing) }
    }
}

/// Appends fields.
pub(super) trait Write {
    fn put(&mut self, bytes: &[u8]);
    fn put_u32(&mut self, v: u32) {
        self.put(&v.to_le_bytes());
    }
    fn put_u64(&mut self, v: u64) {
        self.put(&v.to_le_bytes());
    }
}

impl Write for BytesMut {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// The type of the frame that carries `message`.
pub fn frame_type_of(message: &Message) -> u8 {
    match message {
        Message::PrePrepare(_) => frame_type::PRE_PREPARE,
        Message::Prepare(_) => frame_type::PREPARE,
        Message::Commit(_) => frame_type::COMMIT,
        Message::Committed(_) => frame_type::COMMITTED,
        Message::Checkpoint(_) => frame_type::CHECKPOINT,
        Message::Stable(_) => frame_type::STABLE,
        Message::Status(_) => frame_type::STATUS,
        Message::FetchBatch(_) => frame_type::FETCH_BATCH,
        Message::Batch(..) => frame_type::BATCH,
        Message::FetchPack(_) => frame_type::FETCH_PACK,
        Message::Relay(_) => frame_type::RELAY,
        Message::Answered(_) => frame_type::ANSWERED,
        Message::FetchState(_) => frame_type::FETCH_STATE,
        Message::State(_) => frame_type::STATE,
        Message::ViewChange(_) => frame_type::VIEW_CHANGE,
        Message::NewView(_) => frame_type::NEW_VIEW,
        Message::FetchViewChange(_) => frame_type::FETCH_VIEW_CHANGE,
        Message::QueryStable(_) => frame_type::QUERY_STABLE,
        Message::StableAnswer(_) => frame_type::STABLE_ANSWER,
    }
}

/// Appends the body of the frame that carries `message`.
/// Bytes of what is large in a message's body.
pub(super) fn bulk_of(message: &Message) -> usize {
    let proposed = |proposed: &Proposed| match proposed {
        Proposed::Inline(pack) => 8 + pack.encoded().len(),
        Proposed::ByDigest(_) => 8 + 32,
    };
    match message {
        Message::PrePrepare(m) => m.packs.iter().map(proposed).sum(),
        Message::Batch(_, batch) => batch.packs().iter().map(|pack| 8 + pack.encoded().len()).sum(),
        Message::Relay(pack) => pack.encoded().len(),
        Message::ViewChange(signed) => signed.encoded().len(),
        Message::NewView(signed) => signed.encoded().len(),
        Message::Prepare(_)
        | Message::Commit(_)
        | Message::Committed(_)
        | Message::Checkpoint(_)
        | Message::Stable(_)
        | Message::Status(_)
        | Message::Answered(_)
        | Message::FetchBatch(_)
        | Message::FetchPack(_)
        | Message::FetchState(_)
        | Message::State(_)
        | Message::FetchViewChange(_)
        | Message::QueryStable(_)
        | Message::StableAnswer(_) => 0,
    }
}

pub(super) fn encode_body(message: &Message, out: &mut BytesMut) {
    match message {
        Message::PrePrepare(m) => encode_pre_prepare(m, out),
        Message::Prepare(vote) | Message::Commit(vote) => {
            out.put_u64(vote.view.0);
            out.put_u64(vote.n.0);
            out.put(&vote.digest.0);
        }
        Message::Committed(c) | Message::FetchBatch(c) => {
            out.put_u64(c.n.0);
            out.put(&c.digest.0);
        }
        Message::Checkpoint(c) => encode_checkpoint(c, out),
        Message::Stable(proof) => {
            for checkpoint in proof {
                encode_checkpoint(checkpoint, out);
            }
        }
        Message::Status(status) => encode_status(status, out),
        Message::Batch(n, batch) => encode_batch(*n, batch, out),
        Message::FetchPack(digest) => out.put(&digest.0),
        Message::Relay(pack) => out.put(pack.encoded()),
        Message::Answered(nonce) | Message::QueryStable(nonce) => out.put_u64(*nonce),
        Message::FetchState(fetch) => encode_fetch_state(fetch, out),
        Message::State(answer) => encode_state(answer, out),
        Message::ViewChange(signed) => out.put(signed.encoded()),
        Message::NewView(signed) => out.put(signed.encoded()),
        Message::FetchViewChange(wanted) => {
            out.put_u64(wanted.view.0);
            out.put(&[wanted.replica.0, 0, 0, 0, 0, 0, 0, 0]);
            out.put(&wanted.digest.0);
        }
        Message::StableAnswer(answer) => {
            for field in [answer.nonce, answer.signed.0, answer.prepared.0] {
                out.put_u64(field);
            }
            if let Some(signed) = &answer.view_change {
                out.put(signed.encoded());
            }
        }
    }
}

/// Where the packs lie that a pre-prepare's body holds whole: what the digest of each covers. Up to the first that cannot
/// be one, and no more than a batch has.
pub(super) fn packs_within(body: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut reader = Reader::new(body);
    let count = reader.take(PRE_PREPARE_HEAD).and_then(|_| reader.u32()).unwrap_or(0) as usize;
    let mut left = count.min(limits::BATCH_PACKS_MAX);
    std::iter::from_fn(move || {
        loop {
            left = left.checked_sub(1)?;
            let len = reader.u32().ok()? as usize;
            if len > 0 {
                let start = reader.position();
                return covered_len(reader.take(len).ok()?).map(|covered| start..start + covered);
            }
            reader.digest().ok()?;
        }
    })
}

/// The message in a frame of this type. Packs in it are slices of `body`.
///
/// # Errors
/// [`Malformed`], with the first thing that is wrong.
pub fn decode_frame(kind: u8, body: &Bytes) -> Result<Message, Malformed> {
    decode_frame_at(kind, body, 0, &PackDigests::default())
}

/// As [`decode_frame`], of a frame whose body lies at `at` in that of its envelope, of which some digests are known.
pub(super) fn decode_frame_at(kind: u8, body: &Bytes, at: usize, known: &PackDigests) -> Result<Message, Malformed> {
    let mut reader = Reader::new(body);
    let message = match kind {
        frame_type::PRE_PREPARE => Message::PrePrepare(decode_pre_prepare(&mut reader, body, at, known)?),
        frame_type::PREPARE => Message::Prepare(decode_vote(&mut reader)?),
        frame_type::COMMIT => Message::Commit(decode_vote(&mut reader)?),
        frame_type::COMMITTED => Message::Committed(decode_committed(&mut reader)?),
        frame_type::CHECKPOINT => Message::Checkpoint(decode_checkpoint(&mut reader)?),
        frame_type::STABLE => Message::Stable(decode_stable(&mut reader)?),
        frame_type::STATUS => Message::Status(decode_status(&mut reader)?),
        frame_type::FETCH_BATCH => Message::FetchBatch(decode_committed(&mut reader)?),
        frame_type::BATCH => decode_batch(&mut reader, body)?,
        frame_type::FETCH_PACK => Message::FetchPack(reader.digest()?),
        frame_type::RELAY => return Pack::parse(body.clone()).map(Message::Relay),
        frame_type::ANSWERED => Message::Answered(reader.u64()?),
        frame_type::FETCH_STATE => Message::FetchState(decode_fetch_state(&mut reader)?),
        frame_type::STATE => Message::State(decode_state(&mut reader, body)?),
        frame_type::VIEW_CHANGE => return Ok(Message::ViewChange(Arc::new(Signed::decode(body)?))),
        frame_type::NEW_VIEW => return Ok(Message::NewView(Arc::new(Signed::decode(body)?))),
        frame_type::FETCH_VIEW_CHANGE => Message::FetchViewChange(decode_fetch_view_change(&mut reader)?),
        frame_type::QUERY_STABLE => Message::QueryStable(reader.u64()?),
        frame_type::STABLE_ANSWER => return decode_stable_answer(&mut reader, body).map(Message::StableAnswer),
        _ => return Err(Malformed::UnknownTag),
    };
    reader.end()?;
    Ok(message)
}

fn encode_choice(choice: &Choice, out: &mut BytesMut) {
    out.put_u64(choice.time);
    out.put_u64(choice.seed);
}

fn decode_choice(reader: &mut Reader<'_>) -> Result<Choice, Malformed> {
    Ok(Choice { time: reader.u64()?, seed: reader.u64()? })
}

fn encode_pack(pack: &Pack, out: &mut BytesMut) {
    out.put_u32(pack.encoded().len() as u32);
    out.put(pack.encoded());
}

/// A count of packs, each of which takes at least four more bytes: what is allocated for it has arrived.
fn decode_pack_count(reader: &mut Reader<'_>) -> Result<usize, Malformed> {
    let count = reader.u32()? as usize;
    if count > limits::BATCH_PACKS_MAX || count * 4 > reader.remaining() {
        return Err(Malformed::OutOfBounds);
    }
    Ok(count)
}

fn decode_pack(reader: &mut Reader<'_>, len: usize, body: &Bytes) -> Result<Pack, Malformed> {
    decode_pack_with(reader, len, body, pack_digest)
}

fn decode_pack_with(
    reader: &mut Reader<'_>,
    len: usize,
    body: &Bytes,
    digest: impl FnOnce(&[u8]) -> Digest,
) -> Result<Pack, Malformed> {
    let start = reader.position();
    reader.take(len)?;
    Pack::parse_with(body.slice(start..start + len), digest)
}

fn within_batch(requests: usize) -> Result<(), Malformed> {
    if requests <= limits::BATCH_REQUESTS_MAX { Ok(()) } else { Err(Malformed::OutOfBounds) }
}

fn encode_pre_prepare(m: &PrePrepare, out: &mut BytesMut) {
    out.put_u64(m.view.0);
    out.put_u64(m.n.0);
    encode_choice(&m.choice, out);
    out.put_u32(m.packs.len() as u32);
    for proposed in &m.packs {
        match proposed {
            Proposed::Inline(pack) => encode_pack(pack, out),
            Proposed::ByDigest(digest) => {
                out.put_u32(0);
                out.put(&digest.0);
            }
        }
    }
}

fn decode_pre_prepare(
    reader: &mut Reader<'_>,
    body: &Bytes,
    at: usize,
    known: &PackDigests,
) -> Result<PrePrepare, Malformed> {
    let (view, n) = (reader.view()?, reader.sequence()?);
    let choice = decode_choice(reader)?;
    let count = decode_pack_count(reader)?;
    let mut packs = Vec::with_capacity(count);
    let mut requests = 0;
    for _ in 0..count {
        packs.push(match reader.u32()? as usize {
            0 => Proposed::ByDigest(reader.digest()?),
            len => {
                let start = at + reader.position();
                let pack = decode_pack_with(reader, len, body, |covered| {
                    known.find(start..start + covered.len()).unwrap_or_else(|| pack_digest(covered))
                })?;
                requests += pack.len();
                within_batch(requests)?;
                Proposed::Inline(pack)
            }
        });
    }
    Ok(PrePrepare { view, n, choice, packs })
}

fn encode_batch(n: SeqNum, batch: &Batch, out: &mut BytesMut) {
    out.put_u64(n.0);
    encode_choice(&batch.choice(), out);
    out.put_u32(batch.packs().len() as u32);
    for pack in batch.packs() {
        encode_pack(pack, out);
    }
}

fn decode_batch(reader: &mut Reader<'_>, body: &Bytes) -> Result<Message, Malformed> {
    let n = reader.sequence()?;
    let choice = decode_choice(reader)?;
    let count = decode_pack_count(reader)?;
    let mut packs = Vec::with_capacity(count);
    let mut requests = 0;
    for _ in 0..count {
        let len = reader.u32()? as usize;
        let pack = decode_pack(reader, len, body)?;
        requests += pack.len();
        within_batch(requests)?;
        packs.push(pack);
    }
    Ok(Message::Batch(n, Arc::new(Batch::new(choice, packs))))
}

fn decode_vote(reader: &mut Reader<'_>) -> Result<Vote, Malformed> {
    Ok(Vote { view: reader.view()?, n: reader.sequence()?, digest: reader.digest()? })
}

fn decode_committed(reader: &mut Reader<'_>) -> Result<Committed, Malformed> {
    Ok(Committed { n: reader.sequence()?, digest: reader.digest()? })
}

pub(super) fn encode_checkpoint(c: &SignedCheckpoint, out: &mut BytesMut) {
    out.put_u64(c.n.0);
    out.put(&c.root.0);
    out.put_u64(c.boot);
    out.put(&[c.replica.0]);
    out.put(&c.signature);
}

pub(super) fn decode_checkpoint(reader: &mut Reader<'_>) -> Result<SignedCheckpoint, Malformed> {
    let (n, root, boot) = (reader.sequence()?, reader.digest()?, reader.u64()?);
    let (replica, signature) = (reader.replica()?, *reader.array()?);
    Ok(SignedCheckpoint { n, root, replica, boot, signature })
}

fn decode_fetch_view_change(reader: &mut Reader<'_>) -> Result<WantedViewChange, Malformed> {
    let view = reader.view()?;
    let replica = ReplicaId(reader.u8()?);
    reader.zeros(7)?;
    if usize::from(replica.0) >= limits::REPLICAS_MAX {
        return Err(Malformed::OutOfBounds);
    }
    Ok(WantedViewChange { view, replica, digest: reader.digest()? })
}

fn decode_stable_answer(reader: &mut Reader<'_>, body: &[u8]) -> Result<StableAnswer, Malformed> {
    let (nonce, signed, prepared) = (reader.u64()?, reader.sequence()?, reader.sequence()?);
    let view_change = match reader.remaining() {
        0 => None,
        _ => Some(Arc::new(Signed::decode(&body[reader.position()..])?)),
    };
    Ok(StableAnswer { nonce, signed, prepared, view_change })
}

fn decode_stable(reader: &mut Reader<'_>) -> Result<Vec<SignedCheckpoint>, Malformed> {
    let mut proof: Vec<SignedCheckpoint> = vec![decode_checkpoint(reader)?];
    while reader.remaining() > 0 {
        let next = decode_checkpoint(reader)?;
        let last = proof[proof.len() - 1];
        if next.replica <= last.replica || (next.n, next.root) != (last.n, last.root) {
            return Err(Malformed::Inconsistent);
        }
        proof.push(next);
    }
    Ok(proof)
}

const RECOVERING: u8 = 1;
const WANTS: u8 = 2;
const PENDING: u8 = 4;
const WORDS_MAX: usize = (limits::LOG_WINDOW_MAX / 64) as usize;

fn trimmed(words: &[u64]) -> &[u64] {
    let len = words.iter().rposition(|&w| w != 0).map_or(0, |last| last + 1);
    assert!(len <= WORDS_MAX, "STATUS covers one log window");
    &words[..len]
}

fn encode_status(status: &Status, out: &mut BytesMut) {
    let (prepared, committed) = (trimmed(&status.prepared), trimmed(&status.committed));
    for field in [status.view.0, status.stable.0, status.executed.0, status.nonce, status.view_changes.bits()] {
        out.put_u64(field);
    }
    out.put_u64(status.until.0);
    out.put_u64(status.floor.0);
    let recovering = if status.recovering { RECOVERING } else { 0 };
    let wants = if status.wants { WANTS } else { 0 };
    let pending = if status.pending { PENDING } else { 0 };
    out.put(&[recovering | wants | pending, 0]);
    out.put(&(prepared.len() as u16).to_le_bytes());
    out.put(&(committed.len() as u16).to_le_bytes());
    for word in prepared.iter().chain(committed) {
        out.put_u64(*word);
    }
}

fn decode_status(reader: &mut Reader<'_>) -> Result<Status, Malformed> {
    let (view, stable, executed) = (reader.view()?, reader.sequence()?, reader.sequence()?);
    let nonce = reader.u64()?;
    let view_changes = ReplicaSet::from_bits(reader.u64()?);
    let (until, floor) = (reader.sequence()?, reader.view()?);
    let flags = reader.u8()?;
    if flags & !(RECOVERING | WANTS | PENDING) != 0 {
        return Err(Malformed::Reserved);
    }
    reader.zeros(1)?;
    let (prepared, committed) = (usize::from(reader.u16()?), usize::from(reader.u16()?));
    if prepared > WORDS_MAX || committed > WORDS_MAX || reader.remaining() != 8 * (prepared + committed) {
        return Err(Malformed::OutOfBounds);
    }
    let mut words = |count: usize| -> Result<Vec<u64>, Malformed> {
        let words = (0..count).map(|_| reader.u64()).collect::<Result<Vec<_>, _>>()?;
        if words.last() == Some(&0) { Err(Malformed::Inconsistent) } else { Ok(words) }
    };
    let (prepared, committed) = (words(prepared)?, words(committed)?);
    let [recovering, wants, pending] = [RECOVERING, WANTS, PENDING].map(|flag| flags & flag != 0);
    Ok(Status {
        view,
        stable,
        executed,
        recovering,
        until,
        floor,
        wants,
        pending,
        view_changes,
        nonce,
        prepared,
        committed,
    })
}

/// In the place of a level: the item is a page.
const PAGE_ITEM: u8 = 0xff;
/// Levels of nodes of sixteen over 2^32 pages.
const LEVEL_MAX: u8 = 7;
const ABSENT: u8 = 0;
const HEADER: u8 = 1;
const PARTS: u8 = 2;
const NODES_PART: u8 = 0;
const PAGE_PART: u8 = 1;
/// Nodes with one node above them.
const GROUP: usize = 16;

fn encode_fetch_state(fetch: &FetchState, out: &mut BytesMut) {
    out.put_u64(fetch.n.0);
    out.put_u64(fetch.nonce);
    out.put(&(fetch.items.len() as u16).to_le_bytes());
    for item in &fetch.items {
        let (region, level, number) = match *item {
            StateItem::Nodes { region, level, group } => (region, level, group),
            StateItem::Page { region, page } => (region, PAGE_ITEM, page),
        };
        out.put(&[region as u8, level]);
        out.put_u32(number);
    }
}

fn decode_fetch_state(reader: &mut Reader<'_>) -> Result<FetchState, Malformed> {
    let (n, nonce) = (reader.sequence()?, reader.u64()?);
    let count = usize::from(reader.u16()?);
    if count > limits::STATE_ITEMS_MAX {
        return Err(Malformed::OutOfBounds);
    }
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        let region = match reader.u8()? {
            0 => RegionId::Library,
            1 => RegionId::Service,
            _ => return Err(Malformed::UnknownTag),
        };
        let (level, number) = (reader.u8()?, reader.u32()?);
        items.push(match level {
            PAGE_ITEM => StateItem::Page { region, page: number },
            0..=LEVEL_MAX => StateItem::Nodes { region, level, group: number },
            _ => return Err(Malformed::OutOfBounds),
        });
    }
    Ok(FetchState { n, nonce, items })
}

fn encode_state(answer: &StateAnswer, out: &mut BytesMut) {
    out.put_u64(answer.n.0);
    out.put_u64(answer.nonce);
    let (kind, count) = match &answer.content {
        StateContent::Absent(held) => (ABSENT, held.len()),
        StateContent::Header(_) => (HEADER, 0),
        StateContent::Parts(parts) => (PARTS, parts.len()),
    };
    out.put(&[kind, 0]);
    out.put(&(count as u16).to_le_bytes());
    match &answer.content {
        StateContent::Absent(held) => held.iter().for_each(|n| out.put_u64(n.0)),
        StateContent::Header(regions) => {
            for region in regions {
                out.put_u32(region.pages);
                out.put(&region.root);
            }
        }
        StateContent::Parts(parts) => {
            for part in parts {
                match part {
                    StatePart::Nodes(nodes) => {
                        out.put(&[NODES_PART, nodes.len() as u8]);
                        nodes.iter().for_each(|node| out.put(node));
                    }
                    StatePart::Page(bytes) => {
                        out.put(&[PAGE_PART]);
                        out.put(&(bytes.len() as u16).to_le_bytes());
                        out.put(bytes);
                    }
                }
            }
        }
    }
}

fn decode_state(reader: &mut Reader<'_>, body: &Bytes) -> Result<StateAnswer, Malformed> {
    let (n, nonce, kind) = (reader.sequence()?, reader.u64()?, reader.u8()?);
    reader.zeros(1)?;
    let count = usize::from(reader.u16()?);
    let content = match kind {
        ABSENT if count <= limits::STATE_HELD_MAX => {
            let held = (0..count).map(|_| reader.sequence()).collect::<Result<Vec<_>, _>>()?;
            if held.windows(2).any(|pair| pair[0] >= pair[1]) {
                return Err(Malformed::Inconsistent);
            }
            StateContent::Absent(held)
        }
        HEADER if count == 0 => {
            let mut region = || Ok(RegionHead { pages: reader.u32()?, root: *reader.array()? });
            StateContent::Header([region()?, region()?])
        }
        PARTS if count <= limits::STATE_ITEMS_MAX => {
            StateContent::Parts((0..count).map(|_| decode_part(reader, body)).collect::<Result<_, _>>()?)
        }
        ABSENT..=PARTS => return Err(Malformed::OutOfBounds),
        _ => return Err(Malformed::UnknownTag),
    };
    Ok(StateAnswer { n, nonce, content })
}

fn decode_part(reader: &mut Reader<'_>, body: &Bytes) -> Result<StatePart, Malformed> {
    match reader.u8()? {
        NODES_PART => match usize::from(reader.u8()?) {
            count @ 1..=GROUP => {
                Ok(StatePart::Nodes((0..count).map(|_| reader.array().copied()).collect::<Result<_, _>>()?))
            }
            _ => Err(Malformed::OutOfBounds),
        },
        PAGE_PART => {
            let len = usize::from(reader.u16()?);
            if len > limits::PAGE {
                return Err(Malformed::OutOfBounds);
            }
            let start = reader.position();
            match reader.take(len)? {
                [.., 0] => Err(Malformed::Inconsistent),
                _ => Ok(StatePart::Page(body.slice(start..start + len))),
            }
        }
        _ => Err(Malformed::UnknownTag),
    }
}
