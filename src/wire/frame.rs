//! Frames: what an envelope is made of.
//!
//! ```text
//! type u8 | reserved 3 | len u32 | body
//! ```
//! A proof covers an envelope through its frames' digest input: the eight bytes before the body, then the body, or its
//! digest in `Domain::Body` if it is longer than `FRAME_INLINE_MAX`. Such a digest is computed once however many
//! receivers and envelopes the frame travels in.
//!
//! Into the digest of a pre-prepare's body a pack that it holds enters by its own digest, in place of what that covers; at
//! the end comes the number of such packs, u32. Its sender knows those digests, and its receiver needs them: so the
//! requests of a batch are hashed once at each replica, not twice.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::Malformed;
use super::codec::{self, Reader, frame_type};
use super::message::{Message, Proposed, ReplyEntry};
use super::pack::{PackDigests, pack_digest};
use super::replies::{self, ReplyFrame};
use crate::limits;
use crate::types::{Digest, Domain, Hasher, View};

/// Bytes of a frame before its body.
pub const FRAME_HEAD: usize = 8;

/// Room that is made at a time: a chunk serves many small envelopes, and is used again once they have left.
const CHUNK: usize = 16 * 1024;
/// With less left than this a new frame makes room first.
const ROOM: usize = 512;

/// Frames of one envelope, or of several, being written one behind the other.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: BytesMut,
    frames: Vec<Frame>,
}

/// Where one frame lies.
#[derive(Clone, Copy, Debug)]
struct Frame {
    start: usize,
    end: usize,
    /// Of a body above `FRAME_INLINE_MAX`.
    body: Option<Digest>,
}

impl FrameBuffer {
    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes written.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends a message. False, and nothing happens, if it is larger than `MESSAGE_MAX`: a batch that somebody else
    /// put together may be.
    #[must_use]
    pub fn push(&mut self, message: &Message) -> bool {
        let (kind, start) = (codec::frame_type_of(message), self.bytes.len() + FRAME_HEAD);
        let pushed = self.frame(kind, codec::bulk_of(message), |out| codec::encode_body(message, out));
        if let (true, Message::PrePrepare(pre_prepare), Some(frame)) = (pushed, message, self.frames.last_mut()) {
            let mut known = pre_prepare.packs.iter().filter_map(|proposed| match proposed {
                Proposed::Inline(pack) => Some(pack.digest()),
                Proposed::ByDigest(_) => None,
            });
            let body = &self.bytes[start..];
            frame.body = long_digest(kind, body, |pack| known.next().unwrap_or_else(|| pack_digest(&body[pack])));
        }
        pushed
    }

    /// Appends a frame of replies of `view`. False, and nothing happens, if it is larger than `MESSAGE_MAX`.
    #[must_use]
    pub fn push_replies(&mut self, view: View, replies: &[ReplyEntry]) -> bool {
        assert!((1..=limits::PACK_REQUESTS_MAX).contains(&replies.len()), "replies of one frame");
        let bulk = replies.iter().map(replies::reply_len).sum();
        self.frame(frame_type::REPLIES, bulk, |out| {
            let start = out.len();
            replies::encode_replies_head(view, out);
            out[start + 8..start + 10].copy_from_slice(&(replies.len() as u16).to_le_bytes());
            for entry in replies {
                replies::encode_reply(entry, out);
            }
        })
    }

    /// `bulk`: bytes of the body, to which little is added.
    fn frame(&mut self, kind: u8, bulk: usize, body: impl FnOnce(&mut BytesMut)) -> bool {
        let start = self.bytes.len();
        if self.bytes.capacity() - start < ROOM + bulk {
            self.bytes.reserve(CHUNK.max(ROOM + bulk));
        }
        self.bytes.extend_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
        body(&mut self.bytes);
        let len = self.bytes.len() - start - FRAME_HEAD;
        if len > limits::MESSAGE_MAX {
            self.bytes.truncate(start);
            return false;
        }
        self.bytes[start + 4..start + FRAME_HEAD].copy_from_slice(&(len as u32).to_le_bytes());
        self.frames.push(Frame { start, end: self.bytes.len(), body: None });
        true
    }

    /// Appends frames that were taken from another buffer.
    pub fn append(&mut self, frames: &Frames) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&frames.bytes);
        self.frames.extend(frames.frames.iter().map(|frame| Frame {
            start: start + frame.start,
            end: start + frame.end,
            body: frame.body,
        }));
    }

    /// Takes what was written, leaving the buffer empty.
    pub fn take(&mut self) -> Frames {
        let bytes = self.bytes.split().freeze();
        let mut frames = std::mem::take(&mut self.frames);
        for frame in frames.iter_mut().filter(|frame| frame.body.is_none()) {
            let body = &bytes[frame.start + FRAME_HEAD..frame.end];
            frame.body = long_digest(bytes[frame.start], body, |pack| pack_digest(&body[pack]));
        }
        Frames { bytes, frames }
    }

    /// Gives back what [`take`](Self::take) gave, for its room.
    pub fn reuse(&mut self, taken: Frames) {
        if self.frames.is_empty() {
            self.frames = taken.frames;
            self.frames.clear();
        }
    }
}

/// What stands for a frame's body that is too long to be covered itself. `digest` gives that of a pack by where what it
/// covers lies.
fn long_digest(kind: u8, body: &[u8], mut digest: impl FnMut(Range<usize>) -> Digest) -> Option<Digest> {
    if body.len() <= limits::FRAME_INLINE_MAX {
        return None;
    }
    let mut hasher = Hasher::new(Domain::Body);
    if kind != frame_type::PRE_PREPARE {
        return Some(hasher.update(body).finish());
    }
    let (mut at, mut packs) = (0, 0u32);
    for pack in codec::packs_within(body) {
        hasher.update(&body[at..pack.start]).update(&digest(pack.clone()).0);
        (at, packs) = (pack.end, packs + 1);
    }
    Some(hasher.update(&body[at..]).update(&packs.to_le_bytes()).finish())
}

/// Written frames, to be sent whole or in runs.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    bytes: Bytes,
    frames: Vec<Frame>,
}

impl Frames {
    /// Number of frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// All bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Splits into runs of frames of at most `bytes_max` bytes each. A frame that is larger has a run of its own.
    pub fn runs(&self, bytes_max: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = self.frames.get(at)?;
            let more = self.frames[at + 1..]
                .iter()
                .take(limits::FRAMES_MAX - 1)
                .take_while(|frame| frame.end - first.start <= bytes_max)
                .count();
            let run = at..at + 1 + more;
            at = run.end;
            Some(run)
        })
    }

    /// The bytes of a run.
    pub fn slice(&self, run: Range<usize>) -> Bytes {
        match (self.frames.get(run.start), run.end.checked_sub(1).and_then(|last| self.frames.get(last))) {
            (Some(first), Some(last)) => self.bytes.slice(first.start..last.end),
            _ => Bytes::new(),
        }
    }

    /// Feeds a run to a proof's digest.
    pub fn absorb(&self, run: Range<usize>, hasher: &mut Hasher) {
        // Frames between two long bodies are contiguous and need no parsing: one update for each stretch.
        let mut pending: Option<Range<usize>> = None;
        for frame in &self.frames[run] {
            let start = pending.take().map_or(frame.start, |p| p.start);
            match frame.body {
                None => pending = Some(start..frame.end),
                Some(digest) => {
                    hasher.update(&self.bytes[start..frame.start + FRAME_HEAD]).update(&digest.0);
                }
            }
        }
        if let Some(stretch) = pending {
            hasher.update(&self.bytes[stretch]);
        }
    }
}

/// Feeds received frames to a proof's digest: the same input as [`Frames::absorb`]. The number of frames; `known` holds
/// what was computed on the way.
///
/// # Errors
/// [`Malformed`] if the bytes are not frames from end to end, or more than `FRAMES_MAX`. What the bodies hold is not
/// looked at.
pub fn absorb_received(body: &[u8], hasher: &mut Hasher, known: &mut PackDigests) -> Result<usize, Malformed> {
    known.clear();
    let mut reader = Reader::new(body);
    let (mut stretch, mut count) = (0, 0);
    while reader.remaining() > 0 {
        let kind = reader.u8()?;
        reader.take(3)?;
        let len = reader.u32()? as usize;
        let start = reader.position();
        let frame = reader.take(len)?;
        count += 1;
        if count > limits::FRAMES_MAX || len > limits::MESSAGE_MAX {
            return Err(Malformed::OutOfBounds);
        }
        let digest = |pack: Range<usize>| known.compute(body, start + pack.start..start + pack.end);
        if let Some(digest) = long_digest(kind, frame, digest) {
            hasher.update(&body[stretch..start]).update(&digest.0);
            stretch = reader.position();
        }
    }
    hasher.update(&body[stretch..]);
    Ok(count)
}

/// The messages of an envelope's body, decoded as they are asked for. After the first malformed frame there are no
/// more: frames before it count, the rest is dropped.
#[derive(Clone, Debug)]
pub struct Messages {
    body: Bytes,
    at: usize,
    known: PackDigests,
}

impl Messages {
    /// Of `body`.
    pub fn new(body: Bytes) -> Messages {
        Messages::with(body, PackDigests::default())
    }

    /// Of `body`, from which [`absorb_received`] computed `known`.
    pub fn with(body: Bytes, known: PackDigests) -> Messages {
        Messages { body, at: 0, known }
    }

    /// Gives back what was known, for its room.
    pub fn into_known(self) -> PackDigests {
        self.known
    }

    /// The next frame as type and where its body begins and ends, whatever it holds.
    fn next_frame(&mut self) -> Result<Option<(u8, Range<usize>)>, Malformed> {
        let mut reader = Reader::new(&self.body[self.at..]);
        if reader.remaining() == 0 {
            return Ok(None);
        }
        let kind = reader.u8()?;
        reader.zeros(3)?;
        let len = reader.u32()? as usize;
        reader.take(len)?;
        let start = self.at + FRAME_HEAD;
        self.at = start + len;
        Ok(Some((kind, start..self.at)))
    }

    fn decode_next<T>(
        &mut self,
        decode: impl FnOnce(u8, &Bytes, usize, &PackDigests) -> Result<T, Malformed>,
    ) -> Option<Result<T, Malformed>> {
        let decoded = self
            .next_frame()
            .transpose()?
            .and_then(|(kind, frame)| decode(kind, &self.body.slice(frame.clone()), frame.start, &self.known));
        if decoded.is_err() {
            self.at = self.body.len();
        }
        Some(decoded)
    }

    /// The next frame, which must hold replies.
    pub fn next_replies(&mut self) -> Option<Result<ReplyFrame, Malformed>> {
        self.decode_next(|kind, body, _, _| match kind {
            frame_type::REPLIES => replies::ReplyFrame::parse(body.clone()),
            _ => Err(Malformed::UnknownTag),
        })
    }
}

impl Iterator for Messages {
    type Item = Result<Message, Malformed>;

    fn next(&mut self) -> Option<Result<Message, Malformed>> {
        self.decode_next(codec::decode_frame_at)
    }
}
