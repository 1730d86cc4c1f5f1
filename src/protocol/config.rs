//! What the agreement core is told at its start.

use std::time::Duration;

use crate::limits;
use crate::types::{ClusterSize, ReplicaId};
use crate::wire::Choice;

/// Parameters of one replica's agreement core. All but `me`, `boot`, `forgetful` and `seed` are the same on all replicas.
#[derive(Clone, Debug)]
pub struct Config {
    /// n and f.
    pub size: ClusterSize,
    /// This replica.
    pub me: ReplicaId,
    /// K: a checkpoint every so many sequence numbers.
    pub checkpoint_interval: u64,
    /// L: the log holds sequence numbers in (h, h + L].
    pub log_window: u64,
    /// Bytes of batches in the log: above it no stable entry is kept for peers, and as primary this replica proposes no
    /// further than to the next checkpoint (P21).
    pub log_bytes_max: usize,
    /// Proposals that may be uncommitted at a time (P10).
    pub pipeline_max: u64,
    /// Requests in one batch.
    pub batch_requests_max: usize,
    /// Bytes that the packs of one proposal take, and fewer where a large datagram holds fewer (P10). As many bytes of
    /// packs, those by digest included, leave before the last proposal is prepared.
    pub batch_bytes_max: usize,
    /// The largest datagram, bytes: what a proposal best fits (P10). A replica sets it to its network's.
    pub datagram_max: usize,
    /// A pack above this many bytes is proposed by its digest (P3).
    pub inline_max: usize,
    /// How long a COMMIT may wait for a message to ride on (P52).
    pub commit_delay: Duration,
    /// How long what orders may wait for company between a replica in reserve and the others (P53). Zero: not at all.
    pub reserve_delay: Duration,
    /// While something is missing: how often to say so (P37).
    pub status_interval: Duration,
    /// While nothing is missing: how often to say that we are here.
    pub heartbeat: Duration,
    /// Nothing is sent again to the same peer within this time (P37).
    pub resend_min: Duration,
    /// A peer not heard for this long is silent: nobody waits for it.
    pub silent_after: Duration,
    /// Execution stands still for so long though others have certified a later state: then that state is fetched (P24).
    pub transfer_after: Duration,
    /// Δ: how far a proposed time may be ahead of the local clock before the PREPARE waits (P19).
    pub clock_skew_max: Duration,
    /// Bytes of packs that one client may have waiting here (P21).
    pub client_bytes_max: usize,
    /// Bytes that one STATUS may pull (P37).
    pub answer_bytes_max: usize,
    /// Messages above the high watermark kept for each peer (P20).
    pub ahead_max: usize,
    /// The least that the oldest request may wait for its execution before the view is left; the first new-view timer
    /// too (P26, P29).
    pub view_timeout: Duration,
    /// How often this replica has started, as its signed statements say (P42).
    pub boot: u64,
    /// Restarted in memory mode: the votes are forgotten (P42).
    pub forgetful: bool,
    /// For one replica's recovery nobody leaves a view, or orders null batches, more often than this (P42 c, d).
    pub recover_min: Duration,
    /// Seeds the proposals' `Choice::seed`.
    pub seed: u64,
    /// The service's opinion of a primary's choice, given the last accepted one.
    pub check: fn(&Choice, &Choice) -> bool,
}

impl Config {
    /// Datagrams from this size on hold a batch worth its three rounds.
    const DATAGRAM_LARGE: usize = 16 * 1024;
    /// Bytes of a datagram that a batch leaves: heads, choices, and votes that travel with it.
    const PROPOSAL_ROOM: usize = 512;

    /// The defaults for replica `me` of a cluster of `size`.
    pub fn new(size: ClusterSize, me: ReplicaId) -> Config {
        Config {
            size,
            me,
            checkpoint_interval: 256,
            log_window: 1_024,
            log_bytes_max: 32 << 20,
            pipeline_max: 16,
            batch_requests_max: 4_096,
            batch_bytes_max: 256 * 1024,
            datagram_max: limits::DATAGRAM_MAX,
            inline_max: 8 * 1024,
            commit_delay: Duration::from_millis(2),
            reserve_delay: Duration::from_micros(500),
            status_interval: Duration::from_millis(20),
            heartbeat: Duration::from_millis(200),
            resend_min: Duration::from_millis(5),
            silent_after: Duration::from_secs(1),
            transfer_after: Duration::from_millis(100),
            clock_skew_max: Duration::from_secs(1),
            client_bytes_max: 32 << 20,
            answer_bytes_max: 256 * 1024,
            ahead_max: 256,
            view_timeout: Duration::from_millis(100),
            boot: 0,
            forgetful: false,
            recover_min: Duration::from_secs(5),
            seed: 0,
            check: |_, _| true,
        }
    }

    /// How long votes of the preferred may come after those of the reserve (P53): twice what may gather on the way from a
    /// reserve and in it, for shared cores, and what a commit may wait.
    pub fn reserve_patience(&self) -> Duration {
        4 * self.reserve_delay + self.commit_delay
    }

    /// Bytes that a primary puts into one proposal (P10), packs by digest included: where datagrams are large, what fits one.
    /// Small ones are filled by pieces anyhow.
    pub fn batch_bytes(&self) -> usize {
        match self.datagram_max {
            Self::DATAGRAM_LARGE.. => self.batch_bytes_max.min(self.datagram_max - Self::PROPOSAL_ROOM),
            _ => self.batch_bytes_max,
        }
    }

    /// One sentence per bound that is not kept.
    pub fn validate(&self) -> Result<(), String> {
        let k = self.checkpoint_interval;
        let l = self.log_window;
        let broken = if !self.size.contains(self.me) {
            format!("{} is not a replica of a cluster of {}", self.me, self.size.n())
        } else if self.size == ClusterSize::UNREPLICATED {
            "one server has nobody to agree with".into()
        } else if k == 0 {
            "checkpoint_interval must be at least 1".into()
        } else if l / 2 < k || !l.is_multiple_of(k) {
            format!("log_window ({l}) must be a multiple of checkpoint_interval ({k}) and at least twice it")
        } else if self.pipeline_max == 0 || self.pipeline_max > l {
            format!("pipeline_max ({}) must be between 1 and log_window ({l})", self.pipeline_max)
        } else if self.batch_requests_max < limits::PACK_REQUESTS_MAX {
            format!("batch_requests_max must be at least {}: one full pack must fit", limits::PACK_REQUESTS_MAX)
        } else if self.batch_requests_max > limits::BATCH_REQUESTS_MAX {
            format!("batch_requests_max must be at most {}", limits::BATCH_REQUESTS_MAX)
        } else if self.inline_max > self.batch_bytes_max || self.batch_bytes_max > limits::MESSAGE_MAX / 2 {
            format!("inline_max <= batch_bytes_max <= {} must hold", limits::MESSAGE_MAX / 2)
        } else if self.log_bytes_max < self.batch_bytes_max {
            "log_bytes_max must be at least batch_bytes_max: one batch must fit the log".into()
        } else if self.client_bytes_max < 2 * limits::OPERATION_MAX {
            format!("client_bytes_max must be at least {}: two of the largest operations", 2 * limits::OPERATION_MAX)
        } else if self.answer_bytes_max < self.batch_bytes_max {
            "answer_bytes_max must be at least batch_bytes_max: one batch must fit an answer".into()
        } else if self.ahead_max == 0 || self.ahead_max > 65_536 {
            "ahead_max must be between 1 and 65536".into()
        } else if self.size.n() as u64 + 2 > limits::MESSAGE_MAX as u64 / 64 / l {
            format!(
                "log_window ({l}) must be smaller: a view-change of {} replicas would not fit a message",
                self.size.n()
            )
        } else if self.view_timeout.is_zero() {
            "view_timeout must be above zero".into()
        } else if self.status_interval.is_zero() || self.heartbeat.is_zero() {
            "status_interval and heartbeat must be above zero".into()
        } else if self.heartbeat * 2 > self.silent_after {
            "silent_after must be at least twice heartbeat, or every idle peer is silent".into()
        } else {
            return Ok(());
        };
        Err(broken)
    }
}
