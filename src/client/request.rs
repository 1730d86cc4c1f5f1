//! The requests that an endpoint has outstanding.

use bytes::Bytes;

use super::certificate::Certificate;
use super::completion::{RequestId, Session};
use super::sending::Repeat;
use super::table::Table;
#[cfg(test)]
use crate::types::ReplicaId;
use crate::types::{ReplicaSet, SessionId, Time};
use crate::wire::RequestKind;

/// One request, from hand-in to completion.
#[derive(Debug)]
pub(crate) struct Outstanding {
    /// The session it goes through; `None` for a query until it falls back.
    pub(crate) session: Option<Session>,
    pub(crate) kind: RequestKind,
    pub(crate) op: Bytes,
    /// (session, t, low) as first sent, for ever (P1, P2); `None` while it waits.
    pub(crate) number: Option<Number>,
    pub(crate) submitted_at: Time,
    pub(crate) sent_at: Option<Time>,
    pub(crate) deadline: Time,
    /// The one timer that counts; others of this request are stale.
    pub(crate) due: Time,
    pub(crate) retransmissions: u32,
    pub(crate) certificate: Certificate,
    /// The replies that say that the result is not kept any more. They take back nothing of what was said before.
    pub(crate) gone: Option<Box<Certificate>>,
    /// The replicas that a query goes to with the next send, and all that it went to (P6).
    pub(crate) to: ReplicaSet,
    pub(crate) asked: ReplicaSet,
    /// `due` is when the reserve is called for it (P53), sooner than it is sent again.
    pub(crate) hedging: bool,
    /// The endpoint's count of unauthentic datagrams when it was handed in.
    pub(crate) unauthentic: u64,
    pub(crate) fell_back: bool,
    /// How its fragments are repeated, if it is large.
    pub(crate) repeat: Option<Repeat>,
}

/// What a request is called on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Number {
    pub(crate) session: SessionId,
    pub(crate) t: u64,
    pub(crate) low: u64,
}

/// The requests, by name.
pub(crate) type Requests = Table<RequestId, Outstanding>;

#[cfg(test)]
impl Requests {
    /// Bytes of uncertified results held for `replica`, over all requests.
    pub(crate) fn held(&self, replica: ReplicaId) -> usize {
        self.iter().map(|r| r.certificate.held(replica)).sum()
    }
}
