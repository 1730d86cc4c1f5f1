//! What a simulation comes to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::agreement::Disagreement;
use super::config::Config;
use super::linearizability::{Operation, Violation, preview};
use super::network::NetworkCounters;
use super::record::Broken;
use super::watch::Difference;
use crate::types::{Digest, ReplicaId, SeqNum, Time};

/// A simulation in which everything held.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Virtual time until everything had completed.
    pub took: Duration,
    /// Operations completed.
    pub operations: usize,
    /// Of those, answered without an order.
    pub reads: usize,
    /// Batches that every live replica committed.
    pub batches: SeqNum,
    /// States that replicas fetched from others.
    pub transfers: u64,
    /// Turns, arrivals and losses.
    pub events: u64,
    /// Datagrams handled and timers gone off.
    pub handled: u64,
    /// Views that replicas left, all together.
    pub view_changes: u64,
    /// Replicas that crashed and started again.
    pub restarts: u64,
    /// What liars were caught at by correct replicas, by name.
    pub caught: BTreeMap<&'static str, u64>,
    /// Equal for two runs that are equal in every event and byte.
    pub trace: Digest,
    /// What the network did.
    pub network: NetworkCounters,
}

/// What did not hold.
#[derive(Clone, Debug)]
pub enum Wrong {
    /// Correct replicas disagree.
    Disagreement(Box<Disagreement>),
    /// Two replicas executed one operation at one position with different outcomes: the service is not deterministic.
    Difference(Box<Difference>),
    /// No single server could have answered like that.
    NotLinearizable {
        /// Why.
        violation: Violation,
        /// The operation it names first.
        operation: Box<Operation>,
    },
    /// An operation ended in something else than a result.
    Unanswered {
        /// Which client.
        client: usize,
        /// What it was told.
        outcome: String,
    },
    /// Not everything completed in time, or live replicas did not come to the same point.
    Stuck {
        /// Who waits for what.
        state: Vec<String>,
    },
    /// A correct replica said what it may not say.
    Broke(ReplicaId, Broken),
    /// A correct replica holds something against a correct one.
    Accused {
        /// Who.
        by: ReplicaId,
        /// Whom.
        whom: ReplicaId,
        /// Of what.
        of: &'static str,
    },
    /// A machine asks for turns for ever and does nothing in them.
    Spins(String),
    /// A replica stopped: its service panicked.
    Stopped(ReplicaId, String),
    /// A bound was exceeded.
    Bound(String),
    /// An assertion failed.
    Panicked(String),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Disagreement(disagreement) => write!(f, "{disagreement}"),
            Wrong::Difference(difference) => write!(f, "{difference}"),
            Wrong::NotLinearizable { violation, operation } => {
                let Operation { client, op, placed, result, .. } = &**operation;
                write!(f, "{violation}; it is {} of {client}, {placed:?}, answered {}", preview(op), preview(result))
            }
            Wrong::Unanswered { client, outcome } => write!(f, "an operation of client {client} ended in {outcome}"),
            Wrong::Stuck { state } => write!(f, "not everything completed in time:\n    {}", state.join("\n    ")),
            Wrong::Broke(replica, broken) => write!(f, "{replica} {broken}"),
            Wrong::Accused { by, whom, of } => write!(f, "{by} caught {whom} at {of}, and both are correct"),
            Wrong::Spins(who) => write!(f, "{who} asks for turns for ever and does nothing in them"),
            Wrong::Stopped(replica, why) => write!(f, "{replica} stopped: {why}"),
            Wrong::Bound(which) => write!(f, "a bound was exceeded: {which}"),
            Wrong::Panicked(message) => write!(f, "an assertion failed: {message}"),
        }
    }
}

/// A simulation in which something did not hold, and all that is needed to see it again.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// Its configuration.
    pub config: Config,
    /// Virtual time of the discovery.
    pub at: Time,
    /// What did not hold.
    pub wrong: Wrong,
    /// The last events, one a line.
    pub trace: String,
    /// How to play it again.
    pub replay: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { seed, config, at, wrong, trace, replay } = self;
        writeln!(f, "seed {seed}, {:.3} ms: {wrong}", at.0 as f64 / 1e6)?;
        writeln!(f, "the last events:\n{trace}")?;
        writeln!(f, "configuration: {config:?}")?;
        write!(f, "again: {replay}")
    }
}

impl std::error::Error for Failure {}
