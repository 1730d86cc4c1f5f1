#![doc = include_str!("rules.md")]
#![forbid(unsafe_code)]

mod certificate;
mod checkpoints;
mod config;
mod interface;
mod log;
mod misdeed;
mod normal_case;
mod queue;
mod recent;
mod recovery;
mod reserve;
mod status;
#[cfg(test)]
mod tests;
mod transfer;
pub mod view_change;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::types::{Digest, Executed, ReplicaId, SeqNum, Time, View};
use crate::wire::{Choice, Message, PrePrepare, SignedCheckpoint, Vote};
pub use certificate::Certificate;
use checkpoints::Checkpoints;
pub use config::Config;
pub use interface::{Action, Event, Notice, PersistToken, Record};
use log::Log;
pub use misdeed::{Misdeed, Misdeeds};
use queue::{Bodies, Queue};
use recovery::Recovery;
pub use recovery::RecoveryReport;
use reserve::Reserve;
use transfer::Transfer;
use view_change::Views;
use view_change::timer::{Oldest, Waiting};

/// The agreement core of one replica: the log, its certificates and watermarks, and the rules that move them.
///
/// The whole driving loop:
/// ```text
/// agreement.handle(now, event);             // or handle_timeout(now) when poll_timeout() has passed
/// while let Some(action) = agreement.poll_action() { … }
/// ```
/// Mutate, drain, mutate, drain: actions are in order, and everything that one event causes is there after it.
/// No clock, socket, thread, file or randomness is in here; `now` is an argument and never goes back.
#[derive(Debug)]
pub struct Agreement {
    config: Config,
    now: Time,
    view: View,
    log: Log,
    checkpoints: Checkpoints,
    mode: Mode,
    transfer: Transfer,
    recovery: Recovery,
    views: Views,
    /// Signed requests that would execute (P26).
    waiting: Waiting,
    oldest: Oldest,

    /// As primary: what waits for a proposal.
    queue: Queue,
    /// Packs that proposals name by digest.
    bodies: Bodies,
    /// As primary: the last sequence number proposed.
    last_proposed: SeqNum,
    /// As primary: how far to go on with null batches, for a replica that recovers (P42 d).
    pad_to: SeqNum,
    /// The choice of the last accepted pre-prepare.
    last_choice: Choice,
    /// The largest sequence number ever prepared here, in any view, rolled back or not (P18).
    last_prepared: SeqNum,
    /// The last batch handed to execution that is committed; everything below it is too.
    last_executed: SeqNum,
    /// The batch handed to execution that is only prepared: `last_executed + 1`, or none (P16).
    tentative: Option<Digest>,
    /// The last batch of which the execution role said that it is executed.
    execution_done: SeqNum,
    /// Bytes of a result, of late.
    result_bytes: usize,

    /// COMMITs that wait for a ride (P52), and until when.
    held_commits: Vec<Vote>,
    held_until: Time,
    reserve: Reserve,
    /// What waits for durability (P41).
    unpersisted: BTreeMap<PersistToken, Held>,
    next_token: PersistToken,

    peers: BTreeMap<ReplicaId, Peer>,
    /// When execution or the low watermark last moved, or something began to be missing.
    progress_at: Time,
    status_at: Time,
    heartbeat_at: Time,
    /// When we last asked because a peer misses something that we know nothing of.
    doubted_at: Time,
    /// When the earliest candidate that waits for its time may be looked at again (P19).
    candidate_at: Time,
    /// Of the last STATUS sent; answers echo it.
    nonce: u64,
    counters: Counters,
    actions: VecDeque<Action>,
}

/// Whether this replica takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// It does.
    Normal,
    /// Its votes are forgotten: until it holds a state beyond all of them it only listens (P42).
    Recovering,
    /// A quorum certified another state: it fetches that one, and until then neither votes nor answers (P25).
    Diverged,
    /// No state can be certified any more: nothing is proposed (P25).
    Split,
}

/// What is known of another replica.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// When an authentic message of it last came; `Time(0)` if never.
    pub heard_at: Time,
    /// Its last executed batch, as it says.
    pub executed: SeqNum,
    /// Its last stable checkpoint, as it says.
    pub stable: SeqNum,
    /// It restarted, forgot its votes, and has not recovered yet, as it says (P42).
    pub recovering: bool,
    /// The last view for which it stands by what it said in earlier lives (P42).
    floor: View,
    /// What it was caught at.
    pub misdeeds: Misdeeds,
    /// Which of its starts it speaks in; 0 if it has not said.
    pub boot: u64,
    /// When we last answered its STATUS.
    answered_at: Time,
    /// When we last answered its QUERY-STABLE (P42).
    recovery_answered_at: Time,
    /// When we last left a view to let it recover (P42 c, d).
    helped_at: Time,
    /// The batch that its last recovery needs ordered, and since when we know (P42 d).
    needs: SeqNum,
    needs_since: Time,
    /// Messages above our high watermark (P20).
    ahead: VecDeque<Ordering>,
    /// When the packs that it asked for will have left, at the pace at which they do.
    packs_until: Time,
    /// Bodies sent to it lately.
    bodies_sent: BTreeMap<SeqNum, Time>,
    /// Signed statements sent to it lately, and when each may be sent again.
    statements_sent: BTreeMap<Digest, Time>,
}

impl Peer {
    /// It says, or its checkpoint shows, that it has executed up to `n`.
    fn advance(&mut self, n: SeqNum) {
        self.executed = self.executed.max(n);
    }
}

/// A message that orders, and has a place in the log.
#[derive(Clone, Debug)]
enum Ordering {
    PrePrepare(PrePrepare, Vec<Digest>),
    Prepare(Vote),
    Commit(Vote),
}

impl Ordering {
    fn place(&self) -> (View, SeqNum) {
        match self {
            Ordering::PrePrepare(pre_prepare, _) => (pre_prepare.view, pre_prepare.n),
            Ordering::Prepare(vote) | Ordering::Commit(vote) => (vote.view, vote.n),
        }
    }
}

/// Messages dropped by the core, by reason, and work done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Batches proposed.
    pub proposed: u64,
    /// Null batches proposed, for replicas that recover (P42 d).
    pub padded: u64,
    /// Batches committed.
    pub committed: u64,
    /// Views left.
    pub view_changes: u64,
    /// Of another view.
    pub other_view: u64,
    /// View-changes and new-views of lives that are over (P42 a).
    pub earlier_life: u64,
    /// Outside the watermarks and the buffer beyond them.
    pub outside_window: u64,
    /// A pre-prepare or vote that its sender may not send.
    pub not_entitled: u64,
    /// A second, different vote or proposal under one heading.
    pub contradiction: u64,
    /// A batch that no replica could hand on.
    pub oversized: u64,
    /// A choice that the service refuses.
    pub bad_choice: u64,
    /// Packs of a client beyond its quota (P21).
    pub over_quota: u64,
    /// Packs already waiting or proposed.
    pub duplicate: u64,
    /// Bodies that nobody asked for.
    pub unasked: u64,
    /// STATUS messages answered.
    pub answered: u64,
    /// STATUS messages sent because something was missing.
    pub asked: u64,
    /// How often the reserve was needed: a client called it, or its votes had to count (P53).
    pub reserve_needed: u64,
    /// States fetched from others (P38).
    pub transfers: u64,
    /// How often that ended a divergence (P25).
    pub healed: u64,
}

/// A message that waits for durability.
#[derive(Clone, Copy, Debug)]
enum Held {
    /// Our PRE-PREPARE (as primary) or PREPARE for (view, n).
    Vote(View, SeqNum),
    /// Our COMMIT for (view, n).
    Commit(View, SeqNum),
    /// Our VIEW-CHANGE for the view.
    ViewChange(View),
    /// Our NEW-VIEW.
    NewView(View),
    /// Another's NEW-VIEW: what is said in its view waits for itself.
    Accepted,
}

impl Agreement {
    /// The core of a replica that starts with the initial state. Fails with one sentence if the configuration is
    /// inconsistent.
    pub fn new(config: Config, now: Time) -> Result<Agreement, String> {
        config.validate()?;
        let peers = config.size.others(config.me).map(|r| (r, Peer::default())).collect();
        Ok(Agreement {
            now,
            view: View(0),
            log: Log::new(config.log_window, config.log_bytes_max),
            checkpoints: Checkpoints::default(),
            mode: if config.forgetful { Mode::Recovering } else { Mode::Normal },
            transfer: Transfer::default(),
            recovery: Recovery::new(config.forgetful, now),
            views: Views::default(),
            waiting: Waiting::default(),
            oldest: Oldest::default(),
            queue: Queue::new(config.inline_max),
            bodies: Bodies::default(),
            last_proposed: SeqNum(0),
            pad_to: SeqNum(0),
            last_choice: Choice::default(),
            last_prepared: SeqNum(0),
            last_executed: SeqNum(0),
            tentative: None,
            execution_done: SeqNum(0),
            result_bytes: 0,
            held_commits: Vec::new(),
            held_until: Time::NEVER,
            reserve: Reserve::default(),
            unpersisted: BTreeMap::new(),
            next_token: PersistToken::default(),
            peers,
            progress_at: now,
            status_at: Time::NEVER,
            heartbeat_at: now,
            doubted_at: Time(0),
            candidate_at: Time::NEVER,
            nonce: 0,
            counters: Counters::default(),
            actions: VecDeque::new(),
            config,
        })
    }

    /// The current view.
    pub fn view(&self) -> View {
        self.view
    }

    /// Whether this replica takes part.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// h, the last stable checkpoint.
    pub fn last_stable(&self) -> SeqNum {
        self.log.low()
    }

    /// The last batch that is committed and handed to execution.
    pub fn last_executed(&self) -> SeqNum {
        self.last_executed
    }

    /// The largest sequence number ever prepared here (P18).
    pub fn last_prepared(&self) -> SeqNum {
        self.last_prepared
    }

    /// Requests that wait for a proposal.
    pub fn waiting(&self) -> usize {
        self.queue.requests()
    }

    /// What is known of the others.
    pub fn peers(&self) -> impl Iterator<Item = (ReplicaId, &Peer)> {
        self.peers.iter().map(|(r, p)| (*r, p))
    }

    /// Bytes of the batches in the log.
    pub fn log_bytes(&self) -> usize {
        self.log.bytes()
    }

    /// How long the last stable checkpoint took to become so (P24), once its batch was executed here. None if none did, or
    /// its state was fetched.
    pub fn time_to_stable(&self) -> Option<Duration> {
        self.checkpoints.time_to_stable()
    }

    /// Dropped messages and work done.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// q signed checkpoints of the last stable one; empty at the initial state.
    pub fn stable_proof(&self) -> &[SignedCheckpoint] {
        self.checkpoints.stable_proof()
    }

    /// Handles one event at `now`.
    pub fn handle(&mut self, now: Time, event: Event) {
        self.advance(now);
        match event {
            Event::Persisted(token) => self.on_persisted(token),
            Event::Executed(executed) => self.on_executed(executed),
            Event::Boot(from, boot) => self.on_boot(from, boot),
            Event::Claim(claim) => self.on_claim(claim.into_inner()),
            Event::Settled(digest) => self.on_settled(digest),
            Event::Request { pack, signed } => self.on_request(pack, signed),
            Event::Body { pack, authentic } => self.on_body(pack, authentic),
            Event::Query(pack) => self.on_query(pack.into_inner()),
            Event::Transferred(n) => self.on_transferred(n),
            Event::Fetched => self.on_fetched(),
            Event::Absent(n) => self.on_absent(n),
            Event::PrePrepare(message, unproven) => {
                let Some(from) = self.hear(&message) else { return };
                match message.into_inner() {
                    Message::PrePrepare(pre_prepare) => self.receive(from, Ordering::PrePrepare(pre_prepare, unproven)),
                    other => unreachable!("the network role sends only pre-prepares this way, not {other:?}"),
                }
            }
            Event::Message(message) => {
                let Some(from) = self.hear(&message) else { return };
                self.on_message(from, message.into_inner());
            }
        }
        self.settle();
    }

    /// Does what is due at `now`; see [`Agreement::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Time) {
        self.advance(now);
        if self.held_until <= now {
            self.flush_commits();
        }
        if self.candidate_at <= now {
            self.retry_candidates();
        }
        self.recovery_timer();
        self.status_timers();
        self.view_timers();
        self.settle();
    }

    /// When [`Agreement::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Time {
        let soonest = self.held_until.min(self.candidate_at).min(self.status_at).min(self.heartbeat_at);
        let soonest = soonest.min(self.transfer_due()).min(self.transfer_stalls());
        soonest.min(self.view_deadline()).min(self.recovery.deadline())
    }

    /// The next thing to be done, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn advance(&mut self, now: Time) {
        let (due, since) = (self.view_deadline(), self.now);
        self.now = self.now.max(now);
        self.forgive_stall(due, since);
    }

    /// Notes that a replica is alive. None if the message is not from another replica or we do not take part.
    fn hear(&mut self, message: &crate::auth::Verified<Message>) -> Option<ReplicaId> {
        let from = message.replica()?;
        let now = self.now;
        self.peers.get_mut(&from)?.heard_at = now;
        Some(from)
    }

    /// Notes what no correct replica does; `from` sent it, authentic for us.
    fn caught(&mut self, from: ReplicaId, misdeed: Misdeed) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.misdeeds.count(misdeed);
        }
    }

    fn on_message(&mut self, from: ReplicaId, message: Message) {
        match message {
            Message::Prepare(vote) => self.receive(from, Ordering::Prepare(vote)),
            Message::Commit(vote) => self.receive(from, Ordering::Commit(vote)),
            Message::Committed(committed) => self.on_committed(from, committed),
            Message::Status(status) => self.on_status(from, status),
            Message::Answered(nonce) => self.on_answered(nonce),
            Message::FetchBatch(wanted) => self.on_fetch_batch(from, wanted),
            Message::Batch(n, batch) => self.on_batch(from, n, batch),
            Message::FetchPack(digest) => self.on_fetch_pack(from, digest),
            Message::PrePrepare(_) => unreachable!("comes as Event::PrePrepare"),
            Message::FetchViewChange(wanted) => self.on_fetch_view_change(from, wanted),
            Message::QueryStable(nonce) => self.on_query_stable(from, nonce),
            Message::Checkpoint(_)
            | Message::Stable(_)
            | Message::ViewChange(_)
            | Message::NewView(_)
            | Message::StableAnswer(_) => unreachable!("comes as Event::Claim"),
            Message::Relay(_) => unreachable!("comes as Event::Request or Event::Body"),
            Message::FetchState(_) | Message::State(_) => unreachable!("goes to the checkpoint role"),
        }
    }

    /// Sorts an ordering message by its place: handled now, kept for later within bounds (P20), or dropped.
    fn receive(&mut self, from: ReplicaId, message: Ordering) {
        if self.mode == Mode::Recovering {
            return;
        }
        let (view, n) = message.place();
        let next = view == self.view.next() || view == self.view && self.views.pending;
        if next {
            self.keep_ahead(from, message);
        } else if view != self.view {
            self.counters.other_view += 1;
        } else if self.log.in_window(n) {
            match message {
                Ordering::PrePrepare(pre_prepare, unproven) => self.on_pre_prepare(from, pre_prepare, unproven),
                Ordering::Prepare(vote) => self.on_prepare(from, vote),
                Ordering::Commit(vote) => self.on_commit(from, vote),
            }
        } else {
            self.keep_ahead(from, message);
        }
    }

    /// Keeps what is of the next view or just above the high watermark (P20).
    fn keep_ahead(&mut self, from: ReplicaId, message: Ordering) {
        let (_, n) = message.place();
        let (low, high) = (self.log.low(), self.log.high());
        let peer = self.peers.get_mut(&from).expect("heard");
        if n > low && n.0 <= high.0 + self.config.log_window && peer.ahead.len() < self.config.ahead_max {
            peer.ahead.push_back(message);
        } else {
            self.counters.outside_window += 1;
        }
    }

    /// After the watermarks moved: what was ahead may now be inside.
    fn replay_ahead(&mut self) {
        let ahead: Vec<(ReplicaId, VecDeque<Ordering>)> =
            self.peers.iter_mut().map(|(r, peer)| (*r, std::mem::take(&mut peer.ahead))).collect();
        for (from, messages) in ahead {
            for message in messages {
                self.receive(from, message);
            }
        }
    }

    /// What follows from any change: execution, proposals, timers.
    fn settle(&mut self) {
        self.try_execute();
        self.consider_transfer();
        self.try_propose();
        self.arm_status();
        self.arm_view_timer();
        #[cfg(debug_assertions)]
        self.invariants();
    }

    /// What must hold after every event.
    pub fn invariants(&self) {
        assert!(self.log.retained() <= self.log.low());
        assert!(self.log.low() <= self.last_executed, "a checkpoint is stable only once executed here");
        assert!(self.last_executed <= self.log.high());
        assert!(self.tentative.is_none() || !self.is_transferring(), "what is fetched replaces committed states only");
        assert!(self.execution_done.0 <= self.last_executed.0 + 1, "execution does only what was asked");
        assert!(self.held_commits.is_empty() == (self.held_until == Time::NEVER));
        for (n, slot) in self.log.iter() {
            if let Some((view, digest)) = slot.prepared {
                assert!(n <= self.last_prepared);
                let known = slot.pre_prepared().any(|(d, v)| d == digest && v >= view);
                assert!(known, "{n}: prepared what was pre-prepared (P27)");
            }
            for (digest, _) in slot.pre_prepared() {
                assert!(slot.body(digest).is_some(), "{n}: bodies of P and Q stay (P27)");
            }
            if n <= self.last_executed && n > self.log.retained() {
                assert!(slot.committed.is_some(), "{n}: executed, so committed");
            }
        }
    }

    fn primary(&self) -> ReplicaId {
        self.config.size.primary(self.view)
    }

    /// Whether this replica is the primary of its view.
    pub fn is_primary(&self) -> bool {
        self.primary() == self.config.me
    }

    /// Takes part in ordering.
    fn votes(&self) -> bool {
        match self.mode {
            Mode::Normal | Mode::Split => true,
            Mode::Recovering | Mode::Diverged => false,
        }
    }

    fn send(&mut self, to: ReplicaId, message: Message) {
        self.actions.push_back(Action::Send(to, message));
    }

    fn broadcast(&mut self, message: Message) {
        self.actions.push_back(Action::Broadcast(message));
    }

    fn notice(&mut self, notice: Notice) {
        self.actions.push_back(Action::Notice(notice));
    }

    fn persist(&mut self, record: Record, held: Held) {
        let token = self.next_token;
        self.next_token.0 += 1;
        self.unpersisted.insert(token, held);
        self.actions.push_back(Action::Persist(token, record));
    }

    fn on_persisted(&mut self, token: PersistToken) {
        match self.unpersisted.remove(&token) {
            Some(Held::Vote(view, n)) => self.send_vote(view, n),
            Some(Held::Commit(view, n)) => self.send_commit(view, n),
            Some(Held::ViewChange(view)) => self.send_view_change(view),
            Some(Held::NewView(view)) => self.send_new_view(view),
            Some(Held::Accepted) => {}
            None => panic!("{token:?} was never asked for, or answered twice"),
        }
    }

    /// P42 a: what a replica said in earlier lives is refused from now on, also what waits here.
    fn on_boot(&mut self, from: ReplicaId, boot: u64) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if boot <= peer.boot {
            return;
        }
        peer.boot = boot;
        peer.floor = View(0);
        peer.ahead.clear();
        self.close_boots(from);
    }

    fn on_executed(&mut self, executed: Executed) {
        self.execution_done = self.execution_done.max(executed.n);
        let mean = executed.result_bytes / executed.requests.max(1);
        // It grows at once and shrinks little by little.
        self.result_bytes = mean.max((7 * self.result_bytes + mean) / 8);
    }
}
