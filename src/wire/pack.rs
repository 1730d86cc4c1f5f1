//! A client's pack: 1..P requests of one endpoint under one proof (P1, P46).
//!
//! ```text
//! body    client u64 | endpoint u64 | count u16 | reserved u16 | body_len u32      (all of `body` is under the digest)
//!         count times: session u64 | t u64 | low u64 | flags u8 | reserved 3 | op_len u32 | op
//! hints   u8                                                                       (outside the digest, P1)
//! proof   kind u8 = 1 | count u8 | count x 8-byte MAC, entry i for replica i
//!         kind u8 = 2 | public identity 64 | Ed25519 signature 64
//! ```
//! Integers are little-endian; nothing is aligned.

use bytes::Bytes;

use super::Malformed;
use crate::types::{ClientId, Digest, EndpointId, SessionId};

/// One encoded pack, checked: every request lies within it, counts and lengths agree. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Pack {
    encoded: Bytes,
    client: ClientId,
    endpoint: EndpointId,
    count: usize,
    body_len: usize,
    digest: Digest,
}

/// A request as it lies in its pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// The session, or [`SessionId::NONE`].
    pub session: SessionId,
    /// Its number in the session.
    pub t: u64,
    /// All replies below it were received (P4).
    pub low: u64,
    /// What kind of request it is.
    pub kind: RequestKind,
    /// The operation.
    pub op: &'a [u8],
}

/// The kinds of request (the flags of P1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RequestKind {
    /// An operation to be ordered and executed once.
    Ordered = 0,
    /// A query, answered by each replica without ordering (P6). Session NONE; t is the endpoint's own number.
    ReadOnly = 1,
    /// Opens a session (P9): op = counter u64, window u64. Session NONE, t = counter. The pack is signed.
    Open = 2,
    /// Closes its session: op is empty.
    Close = 3,
}

/// The proof that a pack comes from its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof<'a> {
    /// One 8-byte MAC per replica.
    Vector(&'a [[u8; 8]]),
    /// Ed25519 over the pack's digest, and the public identity that signed.
    Signature {
        /// The 64 bytes of the signer's public identity.
        identity: &'a [u8; 64],
        /// The signature.
        signature: &'a [u8; 64],
    },
}
