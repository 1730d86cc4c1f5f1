//! One replica: the four roles joined.
//!
//! ```text
//!  datagrams ─► Network ─► Agreement ─► Executor ─► Network ─► datagrams
//!                                          └─ sealed pages ─► Checkpointer ─► Agreement
//! ```
//! [`Replica`] is the fused placement: the roles call each other in one thread. The split placement (`runtime::split`)
//! runs the same structs on threads of their own with rings between them. No role knows which it is.
#![forbid(unsafe_code)]

mod checkpoint;
mod claims;
pub mod network;
mod status;
#[cfg(test)]
mod tests;
pub mod transfer;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

pub use checkpoint::{Checkpointer, Finding, Task};
pub use network::{Foreign, Inbound, Network, NetworkConfig};
pub use status::{PeerReport, StatusReport};

use crate::auth::Keyring;
use crate::execution::{self, Command, Executor, Output, Service};
use crate::protocol::{self, Action, Agreement, Event, Notice};
use crate::state::Snapshot;
use crate::transport::{Datagram, Machine, Outgoing};
use crate::types::{Digest, Position, SeqNum, Time};
use crate::wire::Batch;

/// What a replica is told at its start.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// For the agreement role.
    pub protocol: protocol::Config,
    /// For the execution role.
    pub execution: execution::ExecutorConfig,
    /// For the network role.
    pub network: NetworkConfig,
    /// Pages that the checkpoint role hashes in one turn, so that no request waits behind a whole checkpoint.
    pub digest_slice: usize,
    /// Pages that sealed checkpoints may hold beyond the current state before requests wait.
    pub lent_pages_max: usize,
    /// Pages that older checkpoints may hold, for peers that fetch one of them (P38).
    pub kept_pages_max: usize,
    /// Keep a feed of what was committed, for checkers; see [`Replica::drain_committed`].
    pub trace: bool,
}

impl ReplicaConfig {
    /// Defaults around a protocol configuration.
    pub fn new(protocol: protocol::Config) -> ReplicaConfig {
        let execution = execution::ExecutorConfig {
            checkpoint_interval: protocol.checkpoint_interval,
            ..execution::ExecutorConfig::default()
        };
        ReplicaConfig {
            protocol,
            execution,
            network: NetworkConfig::default(),
            digest_slice: 64,
            lent_pages_max: 64 * 1024,
            kept_pages_max: 32 * 1024,
            trace: false,
        }
    }
}

/// A replica that did not run for so long is beyond what its log reaches back to under load. What its sockets still hold
/// takes it nowhere, and costs its neighbours a core for a tenth of a second; what it misses it asks for.
pub(crate) const STALE_AFTER: Duration = Duration::from_secs(1);

/// How many of its own checkpoints a replica remembers for `status`.
const ROOTS_KEPT: usize = 16;
/// How many notices it remembers.
const NOTICES_KEPT: usize = 16;

/// What a checker is fed; see [`Replica::drain_committed`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fed {
    /// The batch was committed and executed.
    Committed(SeqNum, Arc<Batch>),
    /// The state at `n` was fetched from others: what comes next is `n + 1`, whatever came before.
    Fetched(SeqNum),
}

/// A replica of the service `S`, fused into one state machine.
pub struct Replica<S: Service> {
    network: Network,
    agreement: Agreement,
    executor: Executor<S>,
    checkpointer: Checkpointer,
    config: ReplicaConfig,
    now: Time,
    stopped: Option<String>,
    roots: VecDeque<(SeqNum, Digest)>,
    notices: VecDeque<Notice>,
    committed: Vec<Fed>,
    /// The batch that is executed tentatively.
    tentative: Option<Arc<Batch>>,
    // Kept for their capacity.
    inbound: Vec<Inbound>,
    outputs: Vec<Output>,
    findings: Vec<Finding>,
}

impl<S: Service> Replica<S> {
    /// A replica with the initial state of `service`. Fails with one sentence if the configuration is inconsistent.
    pub fn new(config: ReplicaConfig, keys: Keyring, service: S, now: Time) -> Result<Replica<S>, String> {
        let mut protocol = config.protocol.clone();
        protocol.check = S::check;
        protocol.boot = keys.boot();
        protocol.datagram_max = config.network.datagram_max;
        let agreement = Agreement::new(protocol, now)?;
        let executor = Executor::new(service, config.execution.clone())?;
        let network = Network::new(config.network.clone(), keys.clone(), config.protocol.size)?;
        Ok(Replica {
            network,
            agreement,
            executor,
            checkpointer: Checkpointer::new(keys.signer(), &config.protocol, config.kept_pages_max, now),
            config,
            now,
            stopped: None,
            roots: VecDeque::new(),
            notices: VecDeque::new(),
            committed: Vec::new(),
            tentative: None,
            inbound: Vec::new(),
            outputs: Vec::new(),
            findings: Vec::new(),
        })
    }

    /// What was committed since the last call, in order. Empty unless `trace` is on.
    pub fn drain_committed(&mut self) -> Vec<Fed> {
        std::mem::take(&mut self.committed)
    }

    /// The agreement core, to look at.
    pub fn agreement(&self) -> &Agreement {
        &self.agreement
    }

    /// The execution role, to look at.
    pub fn executor(&self) -> &Executor<S> {
        &self.executor
    }

    /// The service's state at checkpoint `n`, if it is kept, to be looked at elsewhere.
    pub fn snapshot(&self, n: SeqNum) -> Option<Snapshot> {
        self.checkpointer.snapshot(n)
    }

    /// What it says of itself.
    pub fn status(&self) -> StatusReport {
        let me = self.config.protocol.me;
        let peer = |(id, peer): (_, &protocol::Peer)| PeerReport {
            id,
            heard: (peer.heard_at > Time(0)).then(|| self.now.since(peer.heard_at)),
            executed: peer.executed,
            stable: peer.stable,
            recovering: peer.recovering,
            boot: peer.boot,
            bad_macs: self.network.bad_macs(id),
            misdeeds: peer
                .misdeeds
                .iter()
                .chain(self.network.misdeeds(id))
                .chain(self.checkpointer.misdeeds(id))
                .collect(),
        };
        let mut rejects = self.network.rejects();
        rejects.push(("bad_statement_signature", self.checkpointer.bad_signatures().values().sum()));
        rejects.push(("claims_overflowed", self.checkpointer.overflowed()));
        rejects.push(("fetch_state_quota", self.checkpointer.requests_dropped()));
        StatusReport {
            id: me,
            view: self.agreement.view(),
            primary: self.config.protocol.size.primary(self.agreement.view()),
            mode: self.agreement.mode(),
            recovery: self.agreement.recovery(),
            stopped: self.stopped.clone(),
            executed: self.agreement.last_executed(),
            log_bytes: self.agreement.log_bytes(),
            time_to_stable: self.agreement.time_to_stable(),
            prepared: self.agreement.last_prepared(),
            stable: self.agreement.last_stable(),
            checkpoints: self.roots.iter().copied().collect(),
            waiting: self.agreement.waiting(),
            transferring: self.agreement.transfer_target(),
            fetched: self.checkpointer.fetched(),
            divergence: self.checkpointer.divergence().cloned(),
            differences: self.checkpointer.differences().to_vec(),
            peers: self.agreement.peers().map(peer).collect(),
            rejects,
            foreign: self.network.foreign(),
            counters: self.agreement.counters(),
            service_pages: self.executor.state().service.pages(),
            library_pages: self.executor.state().library.pages(),
            notices: self.notices.iter().map(Notice::to_string).collect(),
        }
    }

    fn route(&mut self, inbound: Inbound) {
        let (now, view) = (self.now, self.agreement.view());
        match inbound {
            Inbound::Message(message) => self.agreement.handle(now, Event::Message(message)),
            Inbound::PrePrepare(message, unproven) => {
                self.agreement.handle(now, Event::PrePrepare(message, unproven));
            }
            Inbound::Claim(from, claim) => self.checkpointer.handle(Task::Claim(from, claim)),
            Inbound::Transfer(message) => self.checkpointer.handle(Task::Message(message)),
            Inbound::Request { pack, signed: false } => {
                self.agreement.handle(now, Event::Request { pack, signed: false });
            }
            Inbound::Relayed(pack) if !self.agreement.is_primary() => {
                self.agreement.handle(now, Event::Body { pack: pack.into_inner(), authentic: true });
            }
            // Its state says nothing yet of what was executed (P42 c).
            Inbound::Request { signed: true, .. } | Inbound::Relayed(_)
                if self.agreement.mode() == protocol::Mode::Recovering => {}
            Inbound::Request { pack, signed: true } | Inbound::Relayed(pack) => {
                self.agreement.handle(now, Event::Body { pack: pack.get().clone(), authentic: true });
                self.executor.handle(now, Command::Admit { pack, view }, &mut self.outputs);
            }
            Inbound::Query(pack) => self.agreement.handle(now, Event::Query(pack)),
            Inbound::Body(pack) => self.agreement.handle(now, Event::Body { pack, authentic: false }),
            Inbound::Boot(id, boot) => self.agreement.handle(now, Event::Boot(id, boot)),
        }
        self.pump();
    }

    /// Carries actions and outputs between the roles until none is left.
    fn pump(&mut self) {
        loop {
            if let Some(action) = self.agreement.poll_action() {
                self.act(action);
            } else if !self.outputs.is_empty() {
                let mut outputs = std::mem::take(&mut self.outputs);
                // A batch has many replies: asked once for all.
                let rests = self.agreement.rests(self.now);
                for output in outputs.drain(..) {
                    self.emit(output, rests);
                }
                self.outputs = outputs;
            } else {
                return;
            }
        }
    }

    fn act(&mut self, action: Action) {
        let (now, view) = (self.now, self.agreement.view());
        match action {
            Action::Send(to, message) => self.network.send(to, message),
            Action::Broadcast(message) => self.network.broadcast(message),
            Action::Execute { n, view, batch, tentative } => {
                if tentative {
                    self.tentative = Some(batch.clone());
                } else {
                    self.trace(n, batch.clone());
                }
                self.executor.handle(now, Command::Execute { n, view, batch, tentative }, &mut self.outputs);
            }
            Action::Commit(n) => {
                let batch = self.tentative.take().expect("what commits was tentative");
                self.trace(n, batch);
                self.executor.handle(now, Command::Commit(n), &mut self.outputs);
            }
            Action::Rollback(n) => {
                self.tentative = None;
                self.executor.handle(now, Command::Rollback(n), &mut self.outputs);
            }
            Action::Query { pack, after, tentative } => {
                self.executor.handle(now, Command::Query { pack, after, tentative, view }, &mut self.outputs);
            }
            Action::Transfer { n, root, diverged } => {
                self.executor.handle(now, Command::Halt { n, root, diverged }, &mut self.outputs);
            }
            Action::Compare { n, others } => {
                self.executor.handle(now, Command::Compare { n, others }, &mut self.outputs);
            }
            // Memory mode: nothing survives a crash, so there is nothing to wait for.
            Action::Persist(token, _) => self.agreement.handle(now, Event::Persisted(token)),
            Action::Stable { n, .. } => self.checkpointer.handle(Task::Stable(n)),
            Action::SignViewChange(own) => self.checkpointer.handle(Task::ViewChange(own)),
            Action::SignNewView(own) => self.checkpointer.handle(Task::NewView(own)),
            Action::Recheck(pack) => self.executor.handle(now, Command::Admit { pack, view }, &mut self.outputs),
            Action::Notice(notice) => {
                if self.notices.len() == NOTICES_KEPT {
                    self.notices.pop_front();
                }
                self.notices.push_back(notice);
            }
        }
    }

    fn trace(&mut self, n: SeqNum, batch: Arc<Batch>) {
        if self.config.trace {
            self.committed.push(Fed::Committed(n, batch));
        }
    }

    fn emit(&mut self, output: Output, rests: bool) {
        match output {
            Output::Reply(reply) => {
                if rests {
                    // For longer than it takes to notice that somebody preferred is silent.
                    let until = self.now + 3 * self.config.protocol.reserve_patience();
                    self.network.keep(self.now, until, reply);
                } else if self.agreement.mode() != protocol::Mode::Diverged {
                    // Those that were kept go first: what was executed later is not known earlier.
                    self.network.release(self.now);
                    self.network.reply(reply);
                }
            }
            Output::Executed(n) => self.agreement.handle(self.now, Event::Executed(n)),
            Output::Settled(digest) => self.agreement.handle(self.now, Event::Settled(digest)),
            Output::Unexecuted(pack) => self.agreement.handle(self.now, Event::Request { pack, signed: true }),
            Output::Sealed(sealed) => self.checkpointer.handle(Task::Sealed(sealed)),
            Output::Halted { n, root, diverged } => {
                self.checkpointer.handle(Task::Transfer { n, root, diverged });
            }
            Output::Compare { n, others } => self.checkpointer.handle(Task::Compare { n, others }),
            Output::Installed(_) => {}
            Output::Unfit(text) => self.stopped = Some(text),
            Output::Stopped { position, message } => {
                self.stopped = Some(stopped_text(position, &message));
            }
        }
    }

    /// Whether the checkpoint role has nothing left to do.
    fn is_digested(&self) -> bool {
        self.checkpointer.is_idle() && !self.executor.state().has_unshipped()
    }

    fn note_root(&mut self, n: SeqNum, root: Digest) {
        if self.roots.len() == ROOTS_KEPT {
            self.roots.pop_front();
        }
        self.roots.push_back((n, root));
    }

    /// A slice of the checkpoint role's work.
    fn digest_slice(&mut self) {
        let slice = self.config.digest_slice;
        if let Some(shipment) = self.executor.state_mut().ship(slice) {
            self.checkpointer.handle(Task::Pages(shipment));
        }
        if self.checkpointer.is_idle() && self.checkpointer.deadline() > self.now {
            return;
        }
        self.checkpointer.step(self.now, slice, &mut self.findings);
        let mut findings = std::mem::take(&mut self.findings);
        for finding in findings.drain(..) {
            match finding {
                Finding::Claim(claim) => self.agreement.handle(self.now, Event::Claim(claim)),
                Finding::Root(n, root) => self.note_root(n, root),
                Finding::Send(to, message) => self.network.send(to, message),
                Finding::Fetched => self.agreement.handle(self.now, Event::Fetched),
                Finding::Absent(n) => self.agreement.handle(self.now, Event::Absent(n)),
                Finding::Complete { n, root, pages } => {
                    self.note_root(n, root);
                    if self.config.trace {
                        self.committed.push(Fed::Fetched(n));
                    }
                    self.executor.handle(self.now, Command::Install { n, pages }, &mut self.outputs);
                    self.agreement.handle(self.now, Event::Transferred(n));
                }
                Finding::Done(pages) => self.executor.state_mut().give_back(pages),
            }
        }
        self.findings = findings;
        self.pump();
    }
}

/// What an operator is told when the service panicked.
pub(crate) fn stopped_text(position: Position, message: &str) -> String {
    let index = position.0 & ((1 << Position::INDEX_BITS) - 1);
    format!("the service panicked in batch {}, request {index}: {message}", position.batch().0)
}

impl<S: Service> Machine for Replica<S> {
    fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
        self.now = self.now.max(now);
        if self.stopped.is_some() {
            inbox.clear();
            return;
        }
        let mut inbound = std::mem::take(&mut self.inbound);
        for datagram in inbox.drain(..) {
            self.network.receive(self.now, datagram, &mut inbound);
        }
        for item in inbound.drain(..) {
            self.route(item);
        }
        self.inbound = inbound;
        if self.agreement.poll_timeout() <= self.now {
            self.agreement.handle_timeout(self.now);
            self.pump();
        }
        if self.executor.deadline() <= self.now {
            self.executor.expire(self.now);
        }
        self.digest_slice();
        // Checkpoints are written over faster than they are digested: requests wait until the pages come back.
        while self.executor.state().lent() > self.config.lent_pages_max && !self.is_digested() {
            self.digest_slice();
        }
        let (patient, delay) = (self.agreement.patient(self.now), self.config.protocol.reserve_delay);
        self.network.gather(patient, delay);
        if !self.agreement.rests(self.now) {
            self.network.release(self.now);
        }
        self.network.flush(self.now, outbox);
    }

    fn deadline(&self) -> Time {
        if self.stopped.is_some() {
            return Time::NEVER;
        }
        if !self.is_digested() {
            return self.now;
        }
        let deadlines = [self.agreement.poll_timeout(), self.executor.deadline(), self.network.deadline()];
        deadlines.into_iter().fold(self.checkpointer.deadline(), Time::min)
    }

    fn stale_after(&self) -> Option<Duration> {
        Some(STALE_AFTER)
    }

    fn rests_until(&self) -> Option<Time> {
        let rests = self.agreement.rests(self.now) && !self.network.receives_bulk(self.now);
        rests.then(|| self.now + self.config.protocol.reserve_delay)
    }

    fn stopped(&self) -> Option<String> {
        self.stopped.clone()
    }
}
