//! What a replica says of itself, for operators and tests.

use std::time::Duration;

use super::Foreign;
use super::transfer::{Divergence, FetchStats};
use crate::protocol::{Counters, Mode, RecoveryReport};
use crate::types::{Digest, ReplicaId, SeqNum, View};

/// A replica's account of itself at one moment.
#[derive(Clone, Debug)]
pub struct StatusReport {
    /// Who.
    pub id: ReplicaId,
    /// Its view.
    pub view: View,
    /// The primary of that view.
    pub primary: ReplicaId,
    /// Whether it takes part.
    pub mode: Mode,
    /// How far its recovery is, if it has forgotten its votes and has not recovered yet (P42).
    pub recovery: Option<RecoveryReport>,
    /// Why it stopped for good: the service panicked.
    pub stopped: Option<String>,
    /// The last batch committed and executed.
    pub executed: SeqNum,
    /// The largest sequence number ever prepared.
    pub prepared: SeqNum,
    /// The last stable checkpoint.
    pub stable: SeqNum,
    /// Roots of its own last checkpoints, oldest first.
    pub checkpoints: Vec<(SeqNum, Digest)>,
    /// Bytes of the batches in its log.
    pub log_bytes: usize,
    /// How long the last stable checkpoint took to become so, once its batch was executed here.
    pub time_to_stable: Option<Duration>,
    /// Requests that wait for a proposal.
    pub waiting: usize,
    /// The checkpoint whose state it is fetching from others.
    pub transferring: Option<SeqNum>,
    /// What it fetched since its start.
    pub fetched: FetchStats,
    /// What was wrong in its state when it last diverged (P25).
    pub divergence: Option<Divergence>,
    /// What differs from the states of others where no digest could be certified (P25).
    pub differences: Vec<(ReplicaId, Divergence)>,
    /// The other replicas.
    pub peers: Vec<PeerReport>,
    /// What was dropped before it reached agreement, by reason.
    pub rejects: Vec<(&'static str, u64)>,
    /// The last datagram of another cluster (E005).
    pub foreign: Option<Foreign>,
    /// What agreement dropped and did.
    pub counters: Counters,
    /// Pages of the service's region in use.
    pub service_pages: u32,
    /// Pages of the library's region in use.
    pub library_pages: u32,
    /// Notices since the start, oldest first, the last few.
    pub notices: Vec<String>,
}

/// Another replica, as this one sees it.
#[derive(Clone, Debug)]
pub struct PeerReport {
    /// Who.
    pub id: ReplicaId,
    /// How long ago an authentic message came; `None` if never.
    pub heard: Option<Duration>,
    /// Its last executed batch, as it said.
    pub executed: SeqNum,
    /// Its last stable checkpoint, as it said.
    pub stable: SeqNum,
    /// It has forgotten its votes and has not recovered yet, as it said (P42).
    pub recovering: bool,
    /// How often it has started in this instance, by its last NEW-KEY; 0 if none came.
    pub boot: u64,
    /// Envelopes in its name whose MAC was wrong. Not proof that it is faulty.
    pub bad_macs: u64,
    /// What it sent, authentic, that no correct replica sends: name and how often.
    pub misdeeds: Vec<(&'static str, u64)>,
}
