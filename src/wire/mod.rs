//! Bytes to messages and back, without copies.
//!
//! Every layout is fixed, little-endian, unaligned, and written down in the module that owns it:
//!
//! | module | layout |
//! |---|---|
//! | [`header`] | the first bytes of every datagram, and of every fragment |
//! | [`frame`] | the body of an envelope: frames for one receiver under one proof |
//! | [`codec`] | the body of each frame |
//! | [`replies`] | the body of a frame of replies |
//! | [`signed`] | view-changes and new-views |
//! | [`pack`] | a client's pack and its proof |
//! | [`new_key`] | the body of a NEW-KEY datagram |
//! | [`receipt`] | the body of a RECEIPT datagram |
//! | [`fragment`] | how a message larger than a datagram is cut and put together |
//!
//! Decoding never panics, never reads past its input, and allocates only in proportion to bytes that have arrived
//! (P44). What decodes, encodes to the same bytes. Decoding says nothing about authenticity: that is [`crate::auth`]'s.
#![forbid(unsafe_code)]

pub mod codec;
pub mod fragment;
pub mod frame;
pub mod header;
pub mod message;
pub mod new_key;
pub mod pack;
pub mod receipt;
pub mod replies;
pub mod signed;
#[cfg(test)]
mod tests;

pub use codec::decode_frame;
pub use fragment::{FragmentPlan, Reassembler};
pub use frame::{FrameBuffer, Frames};
pub use header::{FragmentHeader, Header, Kind, ProofKind};
pub use message::{
    Batch, Choice, Committed, FetchState, Message, Outcome, PrePrepare, Proposed, Refusal, RegionHead, ReplyEntry,
    ReplyKind, ReplyPack, ReplyResult, SignedCheckpoint, StableAnswer, StateAnswer, StateContent, StateItem, StatePart,
    Status, Vote, WantedViewChange, default_replier,
};
pub use new_key::NewKey;
pub use pack::{Pack, PackBuilder, PackDigests, Proof, Request, RequestKind, Requests};
pub use receipt::{Pieces, Receipt};
pub use replies::{ReplyFrame, ReplyView, ResultView, decode_replies};
pub use signed::{Claim, Entry, NewView, Signed, Statement, ViewChange};

/// Why bytes are not what they claim to be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum Malformed {
    /// A field or a body ends before its length says.
    #[error("truncated")]
    Truncated,
    /// Bytes are left over.
    #[error("trailing bytes")]
    Trailing,
    /// A kind, tag or flag that this version does not know.
    #[error("unknown tag")]
    UnknownTag,
    /// A reserved byte is not zero.
    #[error("reserved bytes in use")]
    Reserved,
    /// A count or a length is above its limit, or zero where something must be.
    #[error("count or length out of bounds")]
    OutOfBounds,
    /// Two fields contradict each other.
    #[error("fields contradict each other")]
    Inconsistent,
    /// A request's own `low` is above its `t` (P4).
    #[error("low above t")]
    LowAboveT,
    /// A pack mixes read-only and ordered requests.
    #[error("read-only and ordered requests in one pack")]
    MixedKinds,
}

impl Malformed {
    /// A short name, for counters.
    pub fn name(self) -> &'static str {
        match self {
            Malformed::Truncated => "malformed_truncated",
            Malformed::Trailing => "malformed_trailing",
            Malformed::UnknownTag => "malformed_unknown_tag",
            Malformed::Reserved => "malformed_reserved",
            Malformed::OutOfBounds => "malformed_out_of_bounds",
            Malformed::Inconsistent => "malformed_inconsistent",
            Malformed::LowAboveT => "malformed_low_above_t",
            Malformed::MixedKinds => "malformed_mixed_kinds",
        }
    }
}
