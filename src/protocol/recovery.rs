//! Coming back without memory (P42): a replica that restarted in memory mode has forgotten what it voted for, and must
//! contradict none of it.
//!
//! ```text
//! start ─► QUERY-STABLE, to all, again and again ─► q answers ─► N: no earlier life can have voted above it
//!       ─► the certified state at or above N, by transfer ─► a view at or above V ─► recovered
//! ```
//! What tells the others that earlier lives are over is the NEW-KEY of this one (P40): who answers has taken it, and takes
//! nothing of an earlier boot any more. So question and answer need no signature: the keys that they travel under are
//! those of this boot.

use std::collections::BTreeMap;

use super::{Agreement, Misdeed, Mode, Notice, Peer};
use crate::types::{ReplicaId, SeqNum, Time, View};
use crate::wire::{Message, StableAnswer, Status};

/// What a replica that forgot its votes knows of them.
#[derive(Debug)]
pub(super) struct Recovery {
    /// It has not taken part again since it started.
    active: bool,
    /// By peer: the least checkpoint and the greatest batch of its answers.
    answers: BTreeMap<ReplicaId, (SeqNum, SeqNum)>,
    /// N, once it is known.
    until: Option<SeqNum>,
    /// V: the highest view that an earlier life signed a VIEW-CHANGE for, as far as the others know.
    floor: View,
    /// When to ask again.
    ask_at: Time,
    nonce: u64,
    /// The operator was told that too many have forgotten.
    told: bool,
}

/// How far a recovery is, for `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecoveryReport {
    /// Peers that have answered.
    pub answers: usize,
    /// N: it takes part once it holds a certified state at or above this.
    pub until: Option<SeqNum>,
    /// V: it votes in no view below this.
    pub floor: View,
    /// More than f replicas have forgotten their votes, this one included: nobody can say what was agreed (P42 f).
    pub lost: bool,
}

impl Recovery {
    pub(super) fn new(forgetful: bool, now: Time) -> Recovery {
        Recovery {
            active: forgetful,
            answers: BTreeMap::new(),
            until: None,
            floor: View(0),
            ask_at: if forgetful { now } else { Time::NEVER },
            nonce: 0,
            told: false,
        }
    }

    /// When to ask again.
    pub(super) fn deadline(&self) -> Time {
        self.ask_at
    }

    /// N, while it matters.
    pub(super) fn until(&self) -> Option<SeqNum> {
        self.until.filter(|_| self.active)
    }

    /// V.
    pub(super) fn floor(&self) -> View {
        self.floor
    }

    /// P42 b: the least c that at least 2f peers are not above, and that at least w have reached. At most f can be
    /// above it, and of those that are not at most f lie: no earlier life of ours can hold a checkpoint above it that q
    /// signed, or have voted more than a window beyond it.
    fn estimate(&self, f: usize) -> Option<SeqNum> {
        if self.answers.len() < 2 * f + 1 {
            return None;
        }
        let not_above = |c: SeqNum| self.answers.values().filter(|(signed, _)| *signed <= c).count() >= 2 * f;
        let reached = |c: SeqNum| self.answers.values().filter(|(_, prepared)| *prepared >= c).count() > f;
        self.answers.values().map(|(signed, _)| *signed).filter(|&c| not_above(c) && reached(c)).min()
    }
}

impl Agreement {
    /// Whether this replica restarted without memory and has not recovered yet: until then it counts as one of the f
    /// (P42 g, P50).
    pub fn is_recovering(&self) -> bool {
        self.recovery.active
    }

    /// How far that is; None if there is nothing to recover from, or no more.
    pub fn recovery(&self) -> Option<RecoveryReport> {
        let Recovery { answers, until, floor, .. } = &self.recovery;
        let lost = self.is_memory_lost();
        let report = RecoveryReport { answers: answers.len(), until: *until, floor: *floor, lost };
        self.is_recovering().then_some(report)
    }

    /// P42 f. As long as N is unknown: what q have answered is true though more forget later.
    fn is_memory_lost(&self) -> bool {
        let others = self.peers.values().filter(|peer| peer.recovering).count();
        self.is_recovering() && self.recovery.until.is_none() && others + 1 > self.config.size.f()
    }

    /// Asks, while N is unknown.
    pub(super) fn recovery_timer(&mut self) {
        if self.recovery.ask_at > self.now {
            return;
        }
        self.recovery.ask_at = self.now + self.config.status_interval;
        self.recovery.nonce += 1;
        self.broadcast(Message::QueryStable(self.recovery.nonce));
    }

    /// A replica asks how far its earlier lives can have got. That they are over here is so since its NEW-KEY was taken
    /// (P42 a).
    pub(super) fn on_query_stable(&mut self, from: ReplicaId, nonce: u64) {
        // Who has forgotten too knows nothing.
        if self.is_recovering() {
            return;
        }
        let (now, resend_min) = (self.now, self.config.resend_min);
        let view_change = self.views.highest(from);
        let peer = self.peers.get_mut(&from).expect("heard");
        if peer.recovery_answered_at == Time(0) || now.since(peer.recovery_answered_at) >= resend_min {
            peer.recovery_answered_at = now;
            let signed = self.checkpoints.last_own().max(self.log.low());
            let prepared = self.last_prepared.max(self.last_executed);
            self.send(from, Message::StableAnswer(StableAnswer { nonce, signed, prepared, view_change }));
        }
        // Who knows nothing of its view cannot lead it (P35).
        if from == self.primary() && !self.views.pending {
            self.start_view_change(self.view.next());
        }
    }

    /// What a peer knows of our earlier lives (P42 b). A VIEW-CHANGE in it is signed by us.
    pub(super) fn on_stable_answer(&mut self, from: ReplicaId, answer: &StableAnswer) {
        if self.mode != Mode::Recovering || answer.nonce > self.recovery.nonce {
            return;
        }
        if !answer.signed.0.is_multiple_of(self.config.checkpoint_interval) {
            return self.caught(from, Misdeed::OddCheckpoint);
        }
        let recovery = &mut self.recovery;
        let (signed, prepared) = recovery.answers.entry(from).or_insert((answer.signed, answer.prepared));
        (*signed, *prepared) = (answer.signed.min(*signed), answer.prepared.max(*prepared));
        if let Some(view_change) = &answer.view_change {
            recovery.floor = recovery.floor.max(view_change.statement().view);
        }
        if recovery.until.is_none()
            && let Some(c) = recovery.estimate(self.config.size.f())
        {
            recovery.until = Some(SeqNum(c.0.saturating_add(self.config.log_window)));
            recovery.ask_at = Time::NEVER;
            self.send_status(true);
        }
        self.consider_recovery();
    }

    /// Takes part again once the certified state at or above N is here, and a view at or above V (P42 c, g).
    pub(super) fn consider_recovery(&mut self) {
        let (Some(until), floor) = (self.recovery.until(), self.recovery.floor) else { return };
        if self.mode == Mode::Recovering {
            if self.log.low() < until || self.is_transferring() {
                return;
            }
            self.mode = Mode::Normal;
            self.last_prepared = self.last_prepared.max(self.log.low());
            if self.view < floor || self.led_before() {
                self.start_view_change(floor.next());
            } else {
                self.apply_decision();
                self.consider_view_changes();
            }
        }
        if self.mode == Mode::Normal && !self.views.pending && self.view >= floor {
            self.recovery.active = false;
            self.notice(Notice::Recovered { until, view: self.view });
        }
    }

    /// P42 e: whether an earlier life of this replica may have led the present view, and proposed in it what is now
    /// forgotten. Replica 0 led view 0.
    pub(super) fn led_before(&self) -> bool {
        self.config.forgetful && self.is_primary() && self.view <= self.recovery.floor
    }

    /// P42 c: what an earlier life of this replica may have signed is not signed again.
    pub(super) fn not_signed_before(&self, target: View) -> View {
        if self.config.forgetful { target.max(self.recovery.floor.next()) } else { target }
    }

    /// P42 a: whether what `signer` said of `view` in its life `boot` counts. What it said in an earlier life does only
    /// if it stands by it: it votes in no view below the last one that it knows to have asked for, so that VIEW-CHANGE
    /// is as true as it was.
    pub(super) fn stands_by(&self, signer: ReplicaId, boot: u64, view: View) -> bool {
        let (now_in, floor) = match self.peers.get(&signer) {
            Some(peer) => (peer.boot, peer.floor),
            None => (self.config.boot, self.recovery.floor),
        };
        boot >= now_in || view <= floor
    }

    /// What a replica says of its recovery.
    pub(super) fn note_recovery(&mut self, from: ReplicaId, status: &Status) {
        let peer = self.peers.get_mut(&from).expect("heard");
        peer.recovering = status.recovering;
        let grew = status.floor > peer.floor;
        peer.floor = peer.floor.max(status.floor);
        if grew {
            // A VIEW-CHANGE that waited for its signer to stand by it may count now.
            self.consider_view_changes();
        }
        if status.recovering {
            self.pad_for(from, status.until);
        }
        if self.is_memory_lost() && !std::mem::replace(&mut self.recovery.told, true) {
            self.notice(Notice::MemoryLost);
        }
    }

    /// `from` waits for the first checkpoint at or above `until`. The primary goes on to there, with null batches if there
    /// is nothing else (P42 d); the others see to it that it does (P26). Another wish of the same replica is heard only
    /// after a while, or a liar has us work for nothing.
    fn pad_for(&mut self, from: ReplicaId, until: SeqNum) {
        let farthest = self.log.high().0 + self.config.log_window;
        if self.views.pending || until.0 > farthest || until <= self.log.low() {
            return;
        }
        let (now, k) = (self.now, self.config.checkpoint_interval);
        let until = SeqNum(until.0.next_multiple_of(k));
        let peer = self.peers.get_mut(&from).expect("heard");
        if peer.needs != until {
            if peer.needs_since != Time(0) && now.since(peer.needs_since) < self.config.recover_min {
                return;
            }
            (peer.needs, peer.needs_since) = (until, now);
        }
        if self.is_primary() {
            self.pad_to = self.pad_to.max(until);
        }
    }

    /// The next batch, if a replica waits for it to recover, and for whose sake no view was left of late.
    pub(super) fn awaited_by_recovery(&self) -> Option<SeqNum> {
        let next = self.last_executed.next();
        let waits = |peer: &Peer| peer.recovering && peer.needs >= next && self.may_help(peer);
        (next <= self.log.high() && self.peers.values().any(waits)).then_some(next)
    }

    /// The primary orders nothing for replicas that wait for it: the view is left for the sake of all of them.
    pub(super) fn leave_for_recovery(&mut self) {
        let (now, next) = (self.now, self.last_executed.next());
        for peer in self.peers.values_mut().filter(|peer| peer.recovering && peer.needs >= next) {
            peer.helped_at = now;
        }
        self.start_view_change(self.view.next());
    }

    /// Whether a view may be left for the sake of this one: now and then, or a liar ends one after the other.
    fn may_help(&self, peer: &Peer) -> bool {
        peer.helped_at == Time(0) || self.now.since(peer.helped_at) >= self.config.recover_min
    }

    /// P42 c: a recovering replica whose own word, of this life or an earlier one, keeps it out of the present view asks
    /// for a later one, and is helped now and then. (That a peer had told it of that word is not asked for: a liar could
    /// bring it about, and a replica that left a view since would wait for ever.)
    pub(super) fn helps_recovery(&mut self, from: ReplicaId, view: View) -> bool {
        let (now, near) = (self.now, view > self.view && view.0 <= self.view.0 + 2);
        let helps = near && self.peers.get(&from).is_some_and(|peer| peer.recovering && self.may_help(peer));
        if helps {
            self.peers.get_mut(&from).expect("just seen").helped_at = now;
        }
        helps
    }
}
