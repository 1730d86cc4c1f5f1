//! What a client endpoint answers to its caller.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::limits;
use crate::types::{Position, ReplicaId, ReplicaSet, SessionId, Time, View};
use crate::wire::{Refusal, ReplyKind};

/// Names one request of one endpoint, never reused for another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub(crate) u64);

/// Names one session of one endpoint, across reopenings. It is the caller's handle; the cluster's name for it is a
/// [`SessionId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Session(pub(crate) u64);

/// What became of a request.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Which.
    pub request: RequestId,
    /// The session that it went through; for a query that fell back one of the endpoint's own, else `None`.
    pub session: Option<Session>,
    /// What the cluster calls that session, if the request was numbered in it.
    pub session_id: Option<SessionId>,
    /// The certified result, or why there is none.
    pub result: Result<Bytes, RequestError>,
    /// The agreed position at which it was executed. For a query that was answered unordered it is a hint: the (f+1)-th
    /// highest that the members of the certificate name, so no later than what a correct one named.
    pub position: Position,
    /// How final the replies were: committed only if every reply counted was.
    pub kind: ReplyKind,
    /// The endpoint's belief of the view, after it.
    pub view: View,
    /// When it was handed in.
    pub submitted_at: Time,
    /// When it was sent first; `None` if it never was.
    pub sent_at: Option<Time>,
    /// When this became known.
    pub done_at: Time,
    /// How often it was sent again.
    pub retransmissions: u32,
    /// A query that was ordered at last (P6).
    pub fell_back: bool,
    /// Who vouched for the result. Empty unless [`EndpointConfig::evidence`](super::EndpointConfig::evidence).
    pub members: Vec<Member>,
}

impl Completion {
    /// From hand-in to answer.
    pub fn latency(&self) -> Duration {
        self.done_at.since(self.submitted_at)
    }
}

/// A reply that counted in a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Whose.
    pub replica: ReplicaId,
    /// The view it named.
    pub view: View,
    /// How final it was.
    pub kind: ReplyKind,
    /// The position it named.
    pub position: Position,
}

/// The replies that a request had when it was given up (E013).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Replicas in the cluster.
    pub replicas: usize,
    /// Matching replies that it takes.
    pub need: usize,
    /// Most replies that matched each other.
    pub matched: usize,
    /// Replies that differ from those.
    pub differing: usize,
    /// Replicas without a reply.
    pub silent: ReplicaSet,
    /// Datagrams that failed authentication at this endpoint while the request was outstanding. They cannot be tied
    /// to a request or a sender.
    pub unauthentic: u64,
    /// A matching quorum was there, but nobody sent the whole result that it vouched for (P7).
    pub result_missing: bool,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} replicas replied alike and {} are needed", self.matched, self.replicas, self.need)?;
        write!(f, "; {} differed, {} were silent", self.differing, self.silent.len())?;
        if !self.silent.is_empty() {
            let names: Vec<String> = self.silent.iter().map(|r| r.to_string()).collect();
            write!(f, " ({})", names.join(", "))?;
        }
        write!(f, ", {} datagrams were not authentic", self.unauthentic)?;
        if self.result_missing {
            f.write_str("; nobody sent the whole result")?;
        }
        Ok(())
    }
}

/// Why a request has no result.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// No certificate within the time allowed. If it was `sent`, it may have been executed, or may still be, until a
    /// later request of its session is.
    #[error("timed out ({}): {tally}", if *.sent { "it may have been executed" } else { "it was never sent" })]
    Timeout {
        /// The replies until then.
        tally: Tally,
        /// Whether it was sent at all.
        sent: bool,
    },
    /// The session expired or was closed while the request was outstanding. **It may or may not have been executed**:
    /// the memory of it is gone with the session (P4, P9). The endpoint never sends such a request again on its own,
    /// for that could execute it twice; only the caller can tell whether its operation bears it.
    #[error("session {} was lost: the operation may or may not have been executed", .session.0)]
    SessionLost {
        /// The session.
        session: SessionId,
    },
    /// Executed, but the replicas no longer keep its result (P4).
    #[error("executed at {}, but its result is no longer kept", .position.0)]
    ResultGone {
        /// Where it was executed.
        position: Position,
    },
    /// The cluster refused to open the session. The operation was not executed.
    #[error("the session was refused: {}", refusal(.0))]
    Refused(Refusal),
    /// The session was closed before the request was sent. The operation was not executed.
    #[error("the session was closed before the request was sent")]
    Closed,
    /// A quorum certified an answer that this kind of request cannot have: more than f replicas are faulty, or they
    /// run another version.
    #[error("a quorum gave an impossible answer")]
    Impossible,
}

fn refusal(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Counter { last } => format!("its counter is not above {last}"),
        Refusal::Quota { sessions_max } => format!("this identity holds its quota of {sessions_max} sessions"),
        Refusal::Full { sessions_max } => format!("the cluster holds {sessions_max} sessions, all it can"),
        Refusal::Window { window_max } => format!("its window is above {window_max}, the largest allowed"),
    }
}

impl RequestError {
    /// Whether the operation may have been executed: repeating it then is for the caller to decide.
    pub fn maybe_executed(&self) -> bool {
        match self {
            RequestError::Timeout { sent, .. } => *sent,
            RequestError::SessionLost { .. } | RequestError::ResultGone { .. } | RequestError::Impossible => true,
            RequestError::Refused(_) | RequestError::Closed => false,
        }
    }
}

/// Why a request was not taken. Nothing was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubmitError {
    /// The operation is too long.
    #[error("the operation has {len} bytes; the largest allowed has {}", limits::OPERATION_MAX)]
    TooLarge {
        /// Its length in bytes.
        len: usize,
    },
    /// As many requests as the session's window (or the bound on queries) allows are outstanding or wait to be
    /// fetched by `poll_completion`.
    #[error("the window is full: {0} requests are outstanding")]
    Busy(u64),
    /// No such session, or it is closing.
    #[error("the session is closed")]
    Closed,
}

/// Why a session could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SessionError {
    /// As many sessions as the configuration allows exist.
    #[error("{0} sessions exist, the most that are configured")]
    TooMany(usize),
    /// The window is zero or above the limit.
    #[error("a window of {0} requests; it must be from 1 to {max}", max = limits::SESSION_WINDOW_MAX)]
    Window(u64),
}
