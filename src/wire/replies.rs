//! The body of a REPLIES frame: what one replica answers to one client endpoint.
//!
//! ```text
//! view u64 | count u16 | reserved u16
//! | count x (session u64 | t u64 | position u64 | kind u8 | result u8 | reserved u16 | len u32 | payload)
//!                 result: 0 done (the result), 1 gone, 2 no session, 3 refused: counter (u64), 4 refused: quota (u64),
//!                 5 refused: window (u64), 6 digest (32 bytes), 7 refused: full (u64)
//! ```
//! `payload` is the result, its digest, a number, or nothing, as `result` says.

use bytes::{Bytes, BytesMut};

use super::Malformed;
use super::codec::{Reader, Write as _};
use super::message::{Outcome, Refusal, ReplyEntry, ReplyKind, ReplyPack, ReplyResult};
use crate::limits;
use crate::types::{Digest, Position, SessionId, View};

/// Bytes of a REPLIES body before its entries.
pub const REPLIES_HEAD: usize = 12;
/// Bytes of a reply besides its payload.
pub const REPLY_HEAD: usize = 32;

/// Bytes that `entry` takes.
pub fn reply_len(entry: &ReplyEntry) -> usize {
    REPLY_HEAD
        + match &entry.result {
            ReplyResult::Full(Outcome::Done(bytes)) => bytes.len(),
            ReplyResult::Full(Outcome::Gone | Outcome::NoSession) => 0,
            ReplyResult::Full(Outcome::Refused(_)) => 8,
            ReplyResult::Digest(_) => 32,
        }
}

pub(super) fn encode_replies_head(view: View, out: &mut BytesMut) {
    out.put_u64(view.0);
    out.put_u32(0);
}

pub(super) fn encode_reply(entry: &ReplyEntry, out: &mut BytesMut) {
    let number;
    let (tag, payload): (u8, &[u8]) = match &entry.result {
        ReplyResult::Full(Outcome::Done(bytes)) => (0, bytes),
        ReplyResult::Full(Outcome::Gone) => (1, &[]),
        ReplyResult::Full(Outcome::NoSession) => (2, &[]),
        ReplyResult::Full(Outcome::Refused(refusal)) => {
            let (tag, value) = match refusal {
                Refusal::Counter { last } => (3, *last),
                Refusal::Quota { sessions_max } => (4, *sessions_max),
                Refusal::Window { window_max } => (5, *window_max),
                Refusal::Full { sessions_max } => (7, *sessions_max),
            };
            number = value.to_le_bytes();
            (tag, &number)
        }
        ReplyResult::Digest(digest) => (6, &digest.0),
    };
    for field in [entry.session.0, entry.t, entry.position.0] {
        out.put_u64(field);
    }
    out.put(&[entry.kind as u8, tag, 0, 0]);
    out.put_u32(payload.len() as u32);
    out.put(payload);
}

/// A REPLIES body that is well formed; its entries are read where they lie.
#[derive(Clone, Debug)]
pub struct ReplyFrame {
    view: View,
    body: Bytes,
}

/// One reply of a [`ReplyFrame`].
#[derive(Clone, Copy, Debug)]
pub struct ReplyView<'a> {
    /// The request's session.
    pub session: SessionId,
    /// The request's number.
    pub t: u64,
    /// How final it is.
    pub kind: ReplyKind,
    /// Where it was executed.
    pub position: Position,
    /// The result or its digest.
    pub result: ResultView<'a>,
}

/// A result that lies in a received buffer.
#[derive(Clone, Copy, Debug)]
pub enum ResultView<'a> {
    /// The service's result.
    Done(&'a [u8], Holder<'a>),
    /// Executed, its result no longer kept.
    Gone,
    /// The session does not exist.
    NoSession,
    /// The session-open was refused.
    Refused(Refusal),
    /// The digest of the outcome.
    Digest(Digest),
}

/// The buffer in which a result lies.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a>(&'a Bytes);

impl ReplyFrame {
    /// Checks all of `body`.
    ///
    /// # Errors
    /// [`Malformed`], with the first thing that is wrong.
    pub fn parse(body: Bytes) -> Result<ReplyFrame, Malformed> {
        let mut reader = Reader::new(&body);
        let (view, count) = head(&mut reader)?;
        if !(1..=limits::PACK_REQUESTS_MAX).contains(&count) || count * REPLY_HEAD > reader.remaining() {
            return Err(Malformed::OutOfBounds);
        }
        for _ in 0..count {
            entry(&mut reader, &body)?;
        }
        reader.end()?;
        Ok(ReplyFrame { view, body })
    }

    /// The replica's view (P8).
    pub fn view(&self) -> View {
        self.view
    }

    /// The replies, at least one.
    pub fn iter(&self) -> impl Iterator<Item = ReplyView<'_>> + '_ {
        let mut reader = Reader::new(&self.body);
        let count = head(&mut reader).map_or(0, |(_, count)| count);
        (0..count).map_while(move |_| entry(&mut reader, &self.body).ok())
    }

    /// The same with results of its own.
    pub fn to_pack(&self) -> ReplyPack {
        let replies = self.iter().map(|reply| ReplyEntry {
            session: reply.session,
            t: reply.t,
            kind: reply.kind,
            position: reply.position,
            result: match reply.result {
                ResultView::Digest(digest) => ReplyResult::Digest(digest),
                ResultView::Done(bytes, Holder(body)) => ReplyResult::Full(Outcome::Done(body.slice_ref(bytes))),
                ResultView::Gone => ReplyResult::Full(Outcome::Gone),
                ResultView::NoSession => ReplyResult::Full(Outcome::NoSession),
                ResultView::Refused(refusal) => ReplyResult::Full(Outcome::Refused(refusal)),
            },
        });
        ReplyPack { view: self.view, replies: replies.collect() }
    }
}

impl<'a> ResultView<'a> {
    /// Whether it is the whole of `outcome`.
    pub fn is_whole(&self, outcome: &Outcome) -> bool {
        match (*self, outcome) {
            (ResultView::Done(bytes, _), Outcome::Done(other)) => bytes == other,
            (ResultView::Gone, Outcome::Gone) | (ResultView::NoSession, Outcome::NoSession) => true,
            (ResultView::Refused(refusal), Outcome::Refused(other)) => refusal == *other,
            _ => false,
        }
    }

    /// The digest that must match between replies.
    pub fn digest(&self) -> Digest {
        match *self {
            ResultView::Done(bytes, _) => Outcome::digest_of_done(bytes),
            ResultView::Gone => Outcome::Gone.digest(),
            ResultView::NoSession => Outcome::NoSession.digest(),
            ResultView::Refused(refusal) => Outcome::Refused(refusal).digest(),
            ResultView::Digest(digest) => digest,
        }
    }

    /// The outcome, to be kept; `None` if this is its digest only. It must not pin the receive buffer in which it lies: a
    /// result from a single datagram is copied, what was reassembled lies in a buffer of its own.
    pub fn to_outcome(&self) -> Option<Outcome> {
        match *self {
            ResultView::Done(bytes, _) if bytes.len() <= limits::DATAGRAM_MAX => {
                Some(Outcome::Done(Bytes::copy_from_slice(bytes)))
            }
            ResultView::Done(bytes, Holder(body)) => Some(Outcome::Done(body.slice_ref(bytes))),
            ResultView::Gone => Some(Outcome::Gone),
            ResultView::NoSession => Some(Outcome::NoSession),
            ResultView::Refused(refusal) => Some(Outcome::Refused(refusal)),
            ResultView::Digest(_) => None,
        }
    }
}

impl ReplyEntry {
    /// As if it had been received.
    pub fn as_view(&self) -> ReplyView<'_> {
        let result = match &self.result {
            ReplyResult::Digest(digest) => ResultView::Digest(*digest),
            ReplyResult::Full(Outcome::Done(bytes)) => ResultView::Done(bytes, Holder(bytes)),
            ReplyResult::Full(Outcome::Gone) => ResultView::Gone,
            ReplyResult::Full(Outcome::NoSession) => ResultView::NoSession,
            ReplyResult::Full(Outcome::Refused(refusal)) => ResultView::Refused(*refusal),
        };
        ReplyView { session: self.session, t: self.t, kind: self.kind, position: self.position, result }
    }
}

/// The replies in a REPLIES frame. Results are slices of `body`.
///
/// # Errors
/// [`Malformed`], with the first thing that is wrong.
pub fn decode_replies(body: &Bytes) -> Result<ReplyPack, Malformed> {
    ReplyFrame::parse(body.clone()).map(|frame| frame.to_pack())
}

fn head(reader: &mut Reader<'_>) -> Result<(View, usize), Malformed> {
    let (view, count) = (reader.view()?, usize::from(reader.u16()?));
    reader.zeros(2)?;
    Ok((view, count))
}

fn entry<'a>(reader: &mut Reader<'a>, body: &'a Bytes) -> Result<ReplyView<'a>, Malformed> {
    let (session, t, position) = (SessionId(reader.u64()?), reader.u64()?, Position(reader.u64()?));
    let kind = match reader.u8()? {
        1 => ReplyKind::ReadOnly,
        2 => ReplyKind::Tentative,
        3 => ReplyKind::Committed,
        4 => ReplyKind::TentativeRead,
        _ => return Err(Malformed::UnknownTag),
    };
    let tag = reader.u8()?;
    reader.zeros(2)?;
    let len = reader.u32()? as usize;
    let bytes = reader.take(len)?;
    let mut payload = Reader::new(bytes);
    let result = match tag {
        0 if bytes.len() > limits::OPERATION_MAX => return Err(Malformed::OutOfBounds),
        0 => {
            payload.take(bytes.len())?;
            ResultView::Done(bytes, Holder(body))
        }
        1 => ResultView::Gone,
        2 => ResultView::NoSession,
        3 => ResultView::Refused(Refusal::Counter { last: payload.u64()? }),
        4 => ResultView::Refused(Refusal::Quota { sessions_max: payload.u64()? }),
        5 => ResultView::Refused(Refusal::Window { window_max: payload.u64()? }),
        6 => ResultView::Digest(payload.digest()?),
        7 => ResultView::Refused(Refusal::Full { sessions_max: payload.u64()? }),
        _ => return Err(Malformed::UnknownTag),
    };
    payload.end()?;
    Ok(ReplyView { session, t, kind, position, result })
}
