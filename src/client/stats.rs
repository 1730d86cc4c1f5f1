//! What an endpoint counts and remembers.

use std::time::Duration;

use crate::auth::{Reject, Rejects};
use crate::types::{Time, View};

/// Counters of one endpoint, since its making.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndpointStats {
    /// The view that it believes in (P8).
    pub view: View,
    /// The smoothed round trip, once there are samples.
    pub rtt: Option<Duration>,
    /// Requests and queries that came to an end.
    pub completed: u64,
    /// Those of them that ended with an error.
    pub failed: u64,
    /// Requests sent again, per request and round.
    pub retransmissions: u64,
    /// Queries that the replicas asked first did not answer alike or in time, so that the others were asked too (P6).
    pub hedges: u64,
    /// Ordered requests that the preferred replicas did not answer alike or in time, so that the reserve was called (P53).
    pub summons: u64,
    /// Pieces of large requests that were sent to one replica again: it missed them, or seemed to (P54).
    pub pieces_again: u64,
    /// Queries that had to be ordered (P6).
    pub fallbacks: u64,
    /// Sessions opened.
    pub sessions_opened: u64,
    /// Sessions lost: expired in the cluster while something was outstanding.
    pub sessions_lost: u64,
    /// Datagrams received.
    pub datagrams_in: u64,
    /// Datagrams sent, fragments included.
    pub datagrams_out: u64,
    /// Packs made.
    pub packs_out: u64,
    /// What was dropped.
    pub rejects: ClientRejects,
}

/// What an endpoint dropped, by reason.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientRejects {
    /// Datagrams and frames that could not be believed or read.
    pub auth: Rejects,
    /// Of those, the ones that failed authentication.
    pub unauthentic: u64,
    /// Replies to nothing that is outstanding: late, repeated, or made up.
    pub unsolicited: u64,
    /// Replies that say what their replica said already.
    pub repeated: u64,
}

impl ClientRejects {
    pub(crate) fn count(&mut self, reject: Reject) {
        self.auth.count(reject);
        match reject {
            Reject::BadMac
            | Reject::BadSignature
            | Reject::WrongProof
            | Reject::UnknownEpoch
            | Reject::ForeignCluster(_)
            | Reject::WrongReceiver
            | Reject::UnknownReplica(_) => self.unauthentic += 1,
            _ => {}
        }
    }
}

/// What an endpoint knows of one replica (E007).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// When an authentic reply of it came last.
    pub last_heard: Option<Time>,
    /// Replies of it.
    pub replies: u64,
    /// Replies that contradict a result that a quorum proved. For queries that is no lie by itself: their replicas
    /// answer from states of their own.
    pub contradicted: u64,
}
