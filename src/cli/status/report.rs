//! What a replica says of itself, as it travels.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What a replica may be in.
pub const STATES: &[&str] = &["normal", "catching", "recovering", "lost", "diverged", "split", "stopped"];

/// What one replica answers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicaStatus {
    /// `r0`.
    pub id: String,
    /// The cluster's id.
    pub cluster: String,
    /// This life of the cluster.
    pub instance: u64,
    /// The version of castra.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Its starts in this life, from 1.
    pub boot: u64,
    /// Since it started.
    pub uptime_s: u64,
    /// The packet path by name.
    pub transport: String,
    /// Which role runs where.
    pub placement: String,
    /// One of [`STATES`].
    pub state: String,
    /// Why it stopped.
    pub stopped: Option<String>,
    /// Its view.
    pub view: u64,
    /// That view's primary.
    pub primary: String,
    /// The last batch executed and committed.
    pub executed: u64,
    /// The largest ever prepared.
    pub prepared: u64,
    /// The last stable checkpoint.
    pub stable: u64,
    /// Digests of its state at its last checkpoints.
    pub checkpoints: BTreeMap<u64, String>,
    /// Requests that wait for a proposal.
    pub waiting: u64,
    /// The checkpoint whose state it is fetching from others.
    pub fetching: Option<u64>,
    /// Pages of others' states that it has fetched.
    pub fetched_pages: u64,
    /// Bytes of pages and tree nodes that it was sent for that.
    pub fetched_bytes: u64,
    /// What was wrong in its state when it last diverged.
    pub divergence: Option<Divergence>,
    /// What differs from the states of others where no digest could be certified, by replica.
    pub differences: BTreeMap<String, Divergence>,
    /// The others, as it sees them.
    pub peers: BTreeMap<String, PeerStatus>,
    /// Datagrams and frames dropped, by reason.
    pub rejects: BTreeMap<String, u64>,
    /// The last datagram of another cluster: first bytes of that cluster's id, and the sender's address.
    pub foreign: Option<(String, SocketAddr)>,
    /// What agreement did and dropped.
    pub agreement: BTreeMap<String, u64>,
    /// What the socket did and dropped.
    pub socket: BTreeMap<String, u64>,
    /// The receive buffer, granted and asked for, bytes.
    pub receive_buffer: (usize, usize),
    /// From the execution of the last stable checkpoint's batch until q had signed its state, microseconds.
    pub time_to_stable_us: Option<u64>,
    /// Batches in the log, bytes.
    pub log_bytes: u64,
    /// The service's state in use, bytes.
    pub service_bytes: u64,
    /// The library's, bytes.
    pub library_bytes: u64,
    /// What an operator should hear of.
    pub notices: Vec<String>,
}

/// What was wrong in a replica's state when it diverged.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Divergence {
    /// The checkpoint at which its digest was not the certified one.
    pub n: u64,
    /// The pages are those that differed at that checkpoint; otherwise some were only changed after it.
    pub exact: bool,
    /// Pages that differed.
    pub count: u64,
    /// The first of them, by region.
    pub pages: BTreeMap<String, Vec<u32>>,
    /// The certified state has taken their place.
    pub healed: bool,
}

/// Another replica, as one sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerStatus {
    /// How long ago it was heard; none: never.
    pub heard_ms: Option<u64>,
    /// Its last executed batch, as it said.
    pub executed: u64,
    /// Envelopes in its name with a wrong MAC.
    pub bad_mac: u64,
    /// What it sent, authentic, that no correct replica sends.
    pub misdeeds: BTreeMap<String, u64>,
}
