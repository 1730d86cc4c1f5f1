//! The split layout: the roles on threads of their own, rings between them.
//!
//! ```text
//!            Inbound            Command            Sealed, Pages
//!  network ──────────► agreement ──────► execution ──────────► checkpoint
//!     ▲ ▲ ▲     Said       │ ▲    Done      │ │     Returned      │ │ ▲
//!     │ │ └────────────────┘ └──────────────┘ │ ◄─────────────────┘ │ │
//!     │ └──────────────── Reply ──────────────┘                     │ │
//!     │                       ▲ ──────── Verified checkpoint ───────┘ │
//!     └── Claim, FETCH-STATE, STATE ──────────────────────────────────┘
//! ```
//! Where clients have cores of their own, there are more network roles, one for each: they give to agreement, and execution
//! gives to them ([`front`](super::front)).
//! The checkpoint role also sends to the network role (parts of states, questions for them), and to agreement what comes
//! of a transfer; the fetched state goes from there to execution, in order with the commands.
//! Why nothing can get stuck: a role whose outlet is clogged takes no new *work* (datagrams, inbound messages, commands),
//! but always takes *results* of work done before (what agreement says, replies, Done, checkpoints, pages that come back),
//! and the network role can always get rid of those. So results drain, so work drains.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::board::{Answering, Board, Parts};
use super::checkpoint::CheckpointRole;
use super::front::{ClientFront, ClientRings, Gate, INTRODUCED_MAX, Path, front_of};
use super::viewer::viewer;
use super::{Host, Running, StopOnDrop, inconsistent, spawn};
use crate::auth::{Keyring, Verified};
use crate::execution::{Command, Executor, Output, Reply, Service};
use crate::limits::BATCH_REQUESTS_MAX;
use crate::protocol::{Action, Agreement, Event, Mode, Notice, Peer as AgreementPeer};
use crate::replica::transfer::FetchStats;
use crate::replica::{Checkpointer, Inbound, Network, PeerReport, STALE_AFTER, StatusReport, Task, stopped_text};
use crate::runtime::cores::pin;
use crate::runtime::ring::{Bell, Inlet, NoBell, Outlet, ring};
use crate::runtime::role::{Role, Turn, run, run_in_background};
use crate::runtime::{Error, LoopCounters, Stop, drive};
use crate::state::{Page, RegionId};
use crate::transport::{Datagram, Machine, Outgoing, Transport, Wake};
use crate::types::{ClusterSize, Digest, Executed, ReplicaId, SeqNum, Time};
use crate::wire::{Claim, Message, Pack};

/// Authentic items on their way to agreement.
const INBOUND: usize = 4_096;
/// Messages on their way to the network role.
const SAID: usize = 8_192;
/// Replies on their way to the network role.
const REPLIES: usize = 32_768;
/// Results of execution on their way to agreement.
const DONE: usize = 4_096;
/// Work on its way to the checkpoint role; a ring each from the network and the execution role.
const TASKS: usize = 1_024;
/// Read-only packs and retransmissions on their way to execution, beside the batches of the log window.
const QUERIES: usize = 1_024;

const _: () = assert!(REPLIES >= 2 * BATCH_REQUESTS_MAX, "the replies of a batch fit, and those of the next");

/// Items that a role takes in one turn: then others get theirs out.
const TAKE_MAX: usize = 256;
/// Commands in one turn: each may be a batch of thousands of requests.
const COMMANDS_MAX: usize = 4;
/// How many of its own checkpoints, and notices, a replica remembers for `status`.
pub(super) const KEPT: usize = 16;

/// What agreement tells the network role.
enum Said {
    To(ReplicaId, Message),
    ToAll(Message),
    /// The state has diverged: no replies from now on (P25).
    Mute,
}

/// What execution tells a network role.
pub(super) enum Answer {
    Reply(Reply),
    /// The state was replaced by a certified one: what follows may be sent.
    Fresh,
}

/// What the checkpoint role tells agreement.
pub(super) enum Found {
    Claim(Verified<Claim>),
    Fetched,
    Absent(SeqNum),
    Complete(SeqNum, [Vec<Arc<Page>>; 2]),
}

/// What execution tells agreement.
enum Done {
    Executed(Executed),
    Unexecuted(Verified<Pack>),
    Settled(Digest),
}

/// What the checkpoint role gives back to execution.
pub(super) type Returned = Vec<(RegionId, Arc<Page>)>;

/// The network role, and agreement if the two share a core.
struct Front {
    network: Network,
    agreement: Option<AgreementRole>,
    to_agreement: Outlet<Inbound>,
    to_checkpoint: Outlet<Task>,
    said: Inlet<Said>,
    transfers: Inlet<(ReplicaId, Message)>,
    replies: Inlet<Answer>,
    /// Signed packs that came to cores for clients.
    introduced: Vec<Inlet<Verified<Pack>>>,
    inbound: Vec<Inbound>,
    closed: Rc<Cell<bool>>,
    muted: bool,
    size: ClusterSize,
    answering: Answering,
}

impl Front {
    fn account(&self, parts: &mut Parts) {
        parts.rejects[0] = self.network.rejects();
        parts.foreign[0] = self.network.foreign();
        parts.bad_macs = self.size.replicas().map(|id| self.network.bad_macs(id)).collect();
        parts.misdeeds = self.size.replicas().map(|id| self.network.misdeeds(id).collect()).collect();
    }

    /// Its last account, and that of the agreement on this thread.
    fn farewell(&self) {
        self.answering.for_good(|parts| self.account(parts));
        if let Some(agreement) = &self.agreement {
            agreement.farewell();
        }
    }

    /// Takes what the other roles want to be said.
    fn listen(&mut self) {
        for _ in 0..SAID {
            match self.said.pop() {
                Some(Said::To(to, message)) => self.network.send(to, message),
                Some(Said::ToAll(message)) => self.network.broadcast(message),
                Some(Said::Mute) => self.muted = true,
                None => break,
            }
        }
        for _ in 0..REPLIES {
            match self.replies.pop() {
                Some(Answer::Reply(reply)) if !self.muted => self.network.reply(reply),
                Some(Answer::Reply(_)) => {}
                Some(Answer::Fresh) => self.muted = false,
                None => break,
            }
        }
        for _ in 0..TASKS {
            let Some((to, message)) = self.transfers.pop() else { break };
            self.network.send(to, message);
        }
    }
}

impl Machine for Front {
    fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
        for datagram in inbox.drain(..) {
            self.network.receive(now, datagram, &mut self.inbound);
        }
        for item in self.inbound.drain(..) {
            match item {
                Inbound::Claim(from, claim) => self.to_checkpoint.push(Task::Claim(from, claim)),
                Inbound::Transfer(message) => self.to_checkpoint.push(Task::Message(message)),
                Inbound::Message(_)
                | Inbound::PrePrepare(..)
                | Inbound::Request { .. }
                | Inbound::Relayed(_)
                | Inbound::Body(_)
                | Inbound::Query(_)
                | Inbound::Boot(..) => self.to_agreement.push(item),
            }
        }
        self.to_agreement.flush();
        self.to_checkpoint.flush();
        self.closed.set(self.to_agreement.is_clogged() || self.to_checkpoint.is_clogged());
        if let Some(agreement) = &mut self.agreement {
            agreement.turn(now);
        }
        self.listen();
        for introduced in &mut self.introduced {
            for _ in 0..INTRODUCED_MAX {
                let Some(pack) = introduced.pop() else { break };
                self.network.meet(&pack);
            }
        }
        self.network.flush(now, outbox);
        self.answering.if_asked(|parts| self.account(parts));
    }

    fn stale_after(&self) -> Option<Duration> {
        Some(STALE_AFTER)
    }

    fn deadline(&self) -> Time {
        let waits = !self.said.is_empty() || !self.replies.is_empty() || !self.transfers.is_empty();
        if self.closed.get() || waits || self.introduced.iter().any(|introduced| !introduced.is_empty()) {
            return Time(0);
        }
        let Some(agreement) = &self.agreement else { return self.network.deadline() };
        if agreement.is_clogged() || agreement.inbound.iter().any(|inbound| !inbound.is_empty()) {
            return Time(0);
        }
        agreement.deadline().min(self.network.deadline())
    }
}

/// Agreement.
struct AgreementRole {
    agreement: Agreement,
    me: ReplicaId,
    size: ClusterSize,
    /// From each network role.
    inbound: Vec<Inlet<Inbound>>,
    done: Inlet<Done>,
    claims: Inlet<Found>,
    to_network: Outlet<Said>,
    /// That the state has diverged, to each network role for clients.
    to_clients: Vec<Outlet<()>>,
    to_execution: Outlet<Command>,
    to_checkpoint: Outlet<Task>,
    muted: bool,
    now: Time,
    notices: VecDeque<Notice>,
    answering: Answering,
}

impl AgreementRole {
    fn is_clogged(&self) -> bool {
        self.to_network.is_clogged() || self.to_execution.is_clogged() || self.to_checkpoint.is_clogged()
    }

    fn account(&self, parts: &mut Parts) {
        parts.report = Some(self.report());
    }

    fn farewell(&self) {
        self.answering.for_good(|parts| self.account(parts));
    }

    fn route(&mut self, now: Time, item: Inbound) {
        let event = match item {
            Inbound::Message(message) => Event::Message(message),
            Inbound::PrePrepare(message, unproven) => Event::PrePrepare(message, unproven),
            Inbound::Request { pack, signed: false } => Event::Request { pack, signed: false },
            Inbound::Relayed(pack) if !self.agreement.is_primary() => {
                Event::Body { pack: pack.into_inner(), authentic: true }
            }
            // The state says nothing yet of what was executed (P42 c).
            Inbound::Request { signed: true, .. } | Inbound::Relayed(_)
                if self.agreement.mode() == Mode::Recovering =>
            {
                return;
            }
            Inbound::Request { pack, signed: true } | Inbound::Relayed(pack) => {
                let view = self.agreement.view();
                self.agreement.handle(now, Event::Body { pack: pack.get().clone(), authentic: true });
                return self.to_execution.push(Command::Admit { pack, view });
            }
            Inbound::Query(pack) => Event::Query(pack),
            Inbound::Body(pack) => Event::Body { pack, authentic: false },
            Inbound::Boot(id, boot) => Event::Boot(id, boot),
            Inbound::Claim(..) | Inbound::Transfer(_) => unreachable!("goes to the checkpoint role"),
        };
        self.agreement.handle(now, event);
    }

    fn pump(&mut self, now: Time) {
        while let Some(action) = self.agreement.poll_action() {
            let view = self.agreement.view();
            match action {
                Action::Send(to, message) => self.to_network.push(Said::To(to, message)),
                Action::Broadcast(message) => self.to_network.push(Said::ToAll(message)),
                Action::Execute { n, view, batch, tentative } => {
                    self.to_execution.push(Command::Execute { n, view, batch, tentative });
                }
                Action::Commit(n) => self.to_execution.push(Command::Commit(n)),
                Action::Rollback(n) => self.to_execution.push(Command::Rollback(n)),
                Action::Query { pack, after, tentative } => {
                    self.to_execution.push(Command::Query { pack, after, tentative, view });
                }
                Action::Transfer { n, root, diverged } => {
                    self.to_execution.push(Command::Halt { n, root, diverged });
                }
                Action::Compare { n, others } => self.to_execution.push(Command::Compare { n, others }),
                // Memory mode: nothing survives a crash, so there is nothing to wait for.
                Action::Persist(token, _) => self.agreement.handle(now, Event::Persisted(token)),
                Action::Stable { n, .. } => self.to_checkpoint.push(Task::Stable(n)),
                Action::SignViewChange(own) => self.to_checkpoint.push(Task::ViewChange(own)),
                Action::SignNewView(own) => self.to_checkpoint.push(Task::NewView(own)),
                Action::Recheck(pack) => self.to_execution.push(Command::Admit { pack, view }),
                Action::Notice(notice) => {
                    if self.notices.len() == KEPT {
                        self.notices.pop_front();
                    }
                    self.notices.push_back(notice);
                }
            }
        }
        let diverged = self.agreement.mode() == Mode::Diverged;
        if diverged && !self.muted {
            self.to_network.push(Said::Mute);
            for to in &mut self.to_clients {
                to.push(());
                to.flush();
            }
        }
        self.muted = diverged;
    }

    fn report(&self) -> StatusReport {
        let agreement = &self.agreement;
        let peer = |(id, peer): (ReplicaId, &AgreementPeer)| PeerReport {
            id,
            heard: (peer.heard_at > Time(0)).then(|| self.now.since(peer.heard_at)),
            executed: peer.executed,
            stable: peer.stable,
            recovering: peer.recovering,
            boot: peer.boot,
            bad_macs: 0,
            misdeeds: peer.misdeeds.iter().collect(),
        };
        StatusReport {
            id: self.me,
            view: agreement.view(),
            primary: self.size.primary(agreement.view()),
            mode: agreement.mode(),
            recovery: agreement.recovery(),
            stopped: None,
            executed: agreement.last_executed(),
            log_bytes: agreement.log_bytes(),
            time_to_stable: agreement.time_to_stable(),
            prepared: agreement.last_prepared(),
            stable: agreement.last_stable(),
            checkpoints: Vec::new(),
            waiting: agreement.waiting(),
            transferring: agreement.transfer_target(),
            fetched: FetchStats::default(),
            divergence: None,
            differences: Vec::new(),
            peers: agreement.peers().map(peer).collect(),
            rejects: Vec::new(),
            foreign: None,
            counters: agreement.counters(),
            service_pages: 0,
            library_pages: 0,
            notices: self.notices.iter().map(Notice::to_string).collect(),
        }
    }
}

impl Role for AgreementRole {
    fn turn(&mut self, now: Time) -> Turn {
        let mut turn = Turn::Idle;
        while let Some(done) = self.done.pop() {
            let event = match done {
                Done::Executed(n) => Event::Executed(n),
                Done::Unexecuted(pack) => Event::Request { pack, signed: true },
                Done::Settled(digest) => Event::Settled(digest),
            };
            self.agreement.handle(now, event);
            self.pump(now);
            turn = Turn::Busy;
        }
        while let Some(found) = self.claims.pop() {
            let event = match found {
                Found::Claim(claim) => Event::Claim(claim),
                Found::Fetched => Event::Fetched,
                Found::Absent(n) => Event::Absent(n),
                Found::Complete(n, pages) => {
                    // What agreement has executed from here on is executed on these pages.
                    self.to_execution.push(Command::Install { n, pages });
                    Event::Transferred(n)
                }
            };
            self.agreement.handle(now, event);
            self.pump(now);
            turn = Turn::Busy;
        }
        if self.agreement.poll_timeout() <= now {
            self.agreement.handle_timeout(now);
            self.pump(now);
            turn = Turn::Busy;
        }
        // Replicas first; and none of the others is heard less than the next.
        for from in 0..self.inbound.len() {
            for _ in 0..TAKE_MAX {
                if self.is_clogged() {
                    break;
                }
                let Some(item) = self.inbound[from].pop() else { break };
                self.route(now, item);
                self.pump(now);
                turn = Turn::Busy;
            }
        }
        self.to_network.flush();
        self.to_execution.flush();
        self.to_checkpoint.flush();
        self.now = now;
        self.answering.if_asked(|parts| self.account(parts));
        if turn == Turn::Idle && self.is_clogged() { Turn::Clogged } else { turn }
    }

    fn deadline(&self) -> Time {
        self.agreement.poll_timeout()
    }
}

/// Execution.
struct ExecutionRole<S: Service> {
    executor: Executor<S>,
    commands: Inlet<Command>,
    returned: Inlet<Returned>,
    /// To the network role, or to each for clients.
    to_fronts: Vec<Outlet<Answer>>,
    to_agreement: Outlet<Done>,
    to_checkpoint: Outlet<Task>,
    outputs: Vec<Output>,
    ship_max: usize,
    lent_max: usize,
    /// Checkpoints sealed here, and digested by the checkpoint role.
    sealed: u64,
    digested: Arc<AtomicU64>,
    stop: Stop,
    answering: Answering,
}

impl<S: Service> ExecutionRole<S> {
    fn account(&self, parts: &mut Parts) {
        let state = self.executor.state();
        parts.pages = Some((state.service.pages(), state.library.pages()));
    }

    /// Whether the next batch must wait until sealed pages come back.
    fn is_short_of_pages(&self) -> bool {
        self.executor.state().lent() > self.lent_max && self.digested.load(Ordering::Acquire) < self.sealed
    }

    fn is_clogged(&self) -> bool {
        let fronts = self.to_fronts.iter().any(Outlet::is_clogged);
        fronts || self.to_agreement.is_clogged() || self.to_checkpoint.is_clogged()
    }

    fn emit(&mut self) {
        for output in self.outputs.drain(..) {
            match output {
                Output::Reply(reply) => {
                    let front = front_of(reply.client, self.to_fronts.len());
                    self.to_fronts[front].push(Answer::Reply(reply));
                }
                Output::Executed(n) => self.to_agreement.push(Done::Executed(n)),
                Output::Unexecuted(pack) => self.to_agreement.push(Done::Unexecuted(pack)),
                Output::Settled(digest) => self.to_agreement.push(Done::Settled(digest)),
                Output::Sealed(sealed) => {
                    self.sealed += 1;
                    self.to_checkpoint.push(Task::Sealed(sealed));
                }
                Output::Halted { n, root, diverged } => {
                    self.to_checkpoint.push(Task::Transfer { n, root, diverged });
                }
                Output::Compare { n, others } => self.to_checkpoint.push(Task::Compare { n, others }),
                Output::Installed(_) => self.to_fronts.iter_mut().for_each(|to| to.push(Answer::Fresh)),
                Output::Unfit(text) => {
                    self.answering.for_good(|parts| parts.stopped = Some(text));
                    self.stop.stop();
                }
                Output::Stopped { position, message } => {
                    let text = stopped_text(position, &message);
                    self.answering.for_good(|parts| parts.stopped = Some(text));
                    self.stop.stop();
                }
            }
        }
        // Replies leave before anything else is done.
        self.to_fronts.iter_mut().for_each(Outlet::flush);
        self.to_agreement.flush();
    }
}

impl<S: Service> Role for ExecutionRole<S> {
    fn turn(&mut self, now: Time) -> Turn {
        let mut turn = Turn::Idle;
        while let Some(pages) = self.returned.pop() {
            self.executor.state_mut().give_back(pages);
            turn = Turn::Busy;
        }
        for _ in 0..COMMANDS_MAX {
            if self.is_clogged() || self.is_short_of_pages() {
                break;
            }
            let Some(command) = self.commands.pop() else { break };
            self.executor.handle(now, command, &mut self.outputs);
            self.emit();
            turn = Turn::Busy;
        }
        if !self.to_checkpoint.is_clogged()
            && let Some(shipment) = self.executor.state_mut().ship(self.ship_max)
        {
            self.to_checkpoint.push(Task::Pages(shipment));
            turn = Turn::Busy;
        }
        if self.executor.deadline() <= now {
            self.executor.expire(now);
        }
        self.to_fronts.iter_mut().for_each(Outlet::flush);
        self.to_agreement.flush();
        self.to_checkpoint.flush();
        self.answering.if_asked(|parts| self.account(parts));
        if turn == Turn::Idle && self.is_clogged() { Turn::Clogged } else { turn }
    }

    fn deadline(&self) -> Time {
        self.executor.deadline()
    }
}

/// Where the roles run.
pub(super) struct SplitCores {
    /// The first for the transport and the network role, the second, if there is one, for agreement.
    pub(super) network: Vec<usize>,
    pub(super) execution: usize,
    pub(super) checkpoint: usize,
}

/// Starts the roles. `clients`: the cores for clients, with what comes to each.
pub(super) fn start<S: Service, T: Transport + 'static>(
    host: Host,
    keys: Keyring,
    service: S,
    cores: SplitCores,
    stop: Stop,
    Path { waker, open }: Path<T>,
    clients: Vec<(usize, Path<T>)>,
) -> Result<Running, Error> {
    let Host { config, policy, clock, .. } = host;
    let (me, size) = (config.protocol.me, config.protocol.size);
    let window = usize::try_from(config.protocol.log_window).unwrap_or(usize::MAX).min(1 << 20);
    let mut protocol = config.protocol;
    protocol.datagram_max = config.network.datagram_max;
    protocol.check = S::check;
    protocol.boot = keys.boot();
    let checkpointer = Checkpointer::new(keys.signer(), &protocol, config.kept_pages_max, clock.now());
    let agreement = Agreement::new(protocol, clock.now()).map_err(inconsistent)?;
    let let_in = keys.cluster().clients.clone();
    let for_clients = |_: &_| Network::for_clients(config.network.clone(), keys.clone(), size).map_err(inconsistent);
    let client_networks = clients.iter().map(for_clients).collect::<Result<Vec<_>, _>>()?;
    let network = Network::new(config.network, keys, size).map_err(inconsistent)?;
    let executor = Executor::new(service, config.execution).map_err(inconsistent)?;

    let shared = cores.network.len() < 2;
    let (agreement_own, agreement_parker) = Bell::new();
    let agreement_bell: Arc<dyn Wake> = if shared { waker.clone() } else { agreement_own };
    let (execution_bell, execution_parker) = Bell::new();
    let (checkpoint_bell, checkpoint_parker) = Bell::new();
    let mut bells: Vec<Arc<dyn Wake>> =
        vec![waker.clone(), agreement_bell.clone(), execution_bell.clone(), checkpoint_bell.clone()];
    bells.extend(clients.iter().map(|(_, path)| path.waker.clone()));
    bells.iter().for_each(|bell| stop.wakes(bell.clone()));
    let board = Arc::new(Board::new(4 + clients.len(), 1 + clients.len(), bells));
    let answering = |role| Answering::new(board.clone(), role);

    // Two roles on one thread need not ring for each other.
    let within = |bell: &Arc<dyn Wake>| -> Arc<dyn Wake> { if shared { Arc::new(NoBell) } else { bell.clone() } };
    let (to_agreement, inbound) = ring(INBOUND, within(&agreement_bell));
    let (to_network, said) = ring(SAID, within(&waker));
    // A batch is executed and committed; the log holds no more than a window of them.
    let (to_execution, commands) = ring(2 * window + QUERIES, execution_bell.clone());
    let (execution_to_agreement, done) = ring(DONE, agreement_bell.clone());
    let (checkpoint_to_network, transfers) = ring(TASKS, waker.clone());
    let (execution_to_network, replies) = ring(REPLIES, waker.clone());
    let (mut inbound, mut introduced, mut fronts, mut to_fronts) = (vec![inbound], vec![], vec![], vec![]);
    let mut to_clients = Vec::new();
    for (_, path) in &clients {
        let (to_agreement, from_clients) = ring(INBOUND, agreement_bell.clone());
        let (to_first, meets) = ring(TASKS, waker.clone());
        let (mutes, muted) = ring(1, path.waker.clone());
        let (answers, replies) = ring(REPLIES, path.waker.clone());
        inbound.push(from_clients);
        introduced.push(meets);
        to_clients.push(mutes);
        to_fronts.push(answers);
        fronts.push(ClientRings { to_agreement, to_first, muted, replies });
    }
    if to_fronts.is_empty() {
        to_fronts.push(execution_to_network);
    }
    let (execution_to_checkpoint, sealed) = ring(TASKS, checkpoint_bell.clone());
    let (network_to_checkpoint, claims) = ring(TASKS, checkpoint_bell.clone());
    let (checkpoint_to_agreement, verified) = ring(TASKS, agreement_bell);
    let (agreement_to_checkpoint, own) = ring(TASKS, checkpoint_bell.clone());
    let (checkpoint_to_execution, returned) = ring(TASKS, execution_bell);
    let digested = Arc::new(AtomicU64::new(0));

    let agreement = AgreementRole {
        agreement,
        me,
        size,
        inbound,
        done,
        claims: verified,
        to_network,
        to_clients,
        to_execution,
        to_checkpoint: agreement_to_checkpoint,
        muted: false,
        now: clock.now(),
        notices: VecDeque::new(),
        answering: answering(1),
    };
    let mut execution = ExecutionRole {
        executor,
        commands,
        returned,
        to_fronts,
        to_agreement: execution_to_agreement,
        to_checkpoint: execution_to_checkpoint,
        outputs: Vec::new(),
        ship_max: config.digest_slice,
        lent_max: config.lent_pages_max,
        sealed: 0,
        digested: digested.clone(),
        stop: stop.clone(),
        answering: answering(2),
    };
    let (viewer, views) = viewer::<S>(checkpoint_bell.clone());
    let mut checkpoint = CheckpointRole {
        checkpointer,
        sealed,
        claims,
        own,
        to_agreement: checkpoint_to_agreement,
        to_network: checkpoint_to_network,
        to_execution: checkpoint_to_execution,
        found: Vec::new(),
        size,
        roots: VecDeque::new(),
        digested,
        answering: answering(3),
        views,
    };
    let network_answering = answering(0);

    let loops: Vec<Arc<LoopCounters>> = (0..=clients.len()).map(|_| Arc::default()).collect();
    let mut client_answering: Vec<Answering> = (4..4 + clients.len()).map(answering).collect();
    let mut running =
        Running { board: board.clone(), stop: stop.clone(), loops: loops.clone(), viewer, threads: Vec::new() };
    running.threads.push(spawn("castra-checkpoint", {
        let stop = stop.clone();
        move || {
            let _end = StopOnDrop(stop.clone());
            run_in_background(&mut checkpoint, &checkpoint_parker, Some(cores.checkpoint), clock, &stop)?;
            checkpoint.answering.for_good(|parts| checkpoint.account(parts));
            Ok(())
        }
    })?);
    running.threads.push(spawn("castra-execution", {
        let stop = stop.clone();
        move || {
            let _end = StopOnDrop(stop.clone());
            pin(cores.execution)?;
            run(&mut execution, &execution_parker, clock, &policy, &stop);
            execution.answering.for_good(|parts| execution.account(parts));
            Ok(())
        }
    })?);
    let (inline, own) = if shared { (Some(agreement), None) } else { (None, Some(agreement)) };
    if let (Some(mut role), Some(&core)) = (own, cores.network.get(1)) {
        let stop = stop.clone();
        running.threads.push(spawn("castra-agreement", move || {
            let _end = StopOnDrop(stop.clone());
            pin(core)?;
            run(&mut role, &agreement_parker, clock, &policy, &stop);
            role.farewell();
            Ok(())
        })?);
    }
    for (i, ((core, path), network)) in clients.into_iter().zip(client_networks).enumerate() {
        let (rings, answering) = (fronts.remove(0), client_answering.remove(0));
        let (let_in, loops, stop) = (let_in.clone(), loops[1 + i].clone(), stop.clone());
        running.threads.push(spawn("castra-clients", move || {
            let _end = StopOnDrop(stop.clone());
            pin(core)?;
            let closed = Rc::new(Cell::new(false));
            let mut gate = Gate { transport: (path.open)()?, closed: closed.clone() };
            let mut front = ClientFront::new(1 + i, network, rings, &let_in, closed, answering);
            drive(&mut front, &mut gate, &stop, &policy, &loops);
            front.farewell();
            Ok(())
        })?);
    }
    running.threads.push(spawn("castra-network", move || {
        let _end = StopOnDrop(stop.clone());
        cores.network.first().map_or(Ok(()), |&core| pin(core))?;
        let closed = Rc::new(Cell::new(false));
        let mut gate = Gate { transport: open()?, closed: closed.clone() };
        let mut front = Front {
            network,
            agreement: inline,
            to_agreement,
            to_checkpoint: network_to_checkpoint,
            said,
            transfers,
            replies,
            introduced,
            inbound: Vec::new(),
            closed,
            muted: false,
            size,
            answering: network_answering,
        };
        drive(&mut front, &mut gate, &stop, &policy, &loops[0]);
        front.farewell();
        Ok(())
    })?);
    Ok(running)
}
