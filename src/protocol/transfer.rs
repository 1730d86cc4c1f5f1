//! When to fetch the state instead of executing what leads to it, and what follows once it is there (P24, P25, P38, P39).
//!
//! A replica resorts to transfer when q replicas signed a checkpoint that it has not got, and
//! * it lies above the high watermark, and execution stands still: the log entries up to it have no place here;
//! * or it lies above what is executed here, and nothing has moved for `transfer_after`, though it was asked for: the
//!   others have dropped the log entries;
//! * or its own root there is another (*diverged*): then it fetches that state even if it has executed beyond it, and
//!   executes again what is committed above it.
//!
//! Meanwhile it stores what is ordered and votes as before, but executes nothing.

use super::{Action, Agreement, Mode, Notice};
use crate::types::{Digest, SeqNum, Time};
use crate::wire::SignedCheckpoint;

/// A checkpoint that q replicas signed.
#[derive(Clone, Debug)]
pub(super) struct Certified {
    pub(super) n: SeqNum,
    pub(super) root: Digest,
    pub(super) proof: Vec<SignedCheckpoint>,
}

/// What is known of states that are certified and not held here.
#[derive(Debug, Default)]
pub(super) struct Transfer {
    /// The newest above the low watermark.
    certified: Option<Certified>,
    /// What is being fetched.
    target: Option<Certified>,
    /// When the last executed batch last changed, or the first checkpoint beyond it was certified.
    pub(super) moved_at: Time,
    /// When the transfer under way last moved on.
    fetched_at: Time,
}

impl Agreement {
    /// Whether the state is being fetched from others: nothing is executed meanwhile.
    pub fn is_transferring(&self) -> bool {
        self.transfer.target.is_some()
    }

    /// The checkpoint that is being fetched.
    pub fn transfer_target(&self) -> Option<SeqNum> {
        self.transfer.target.as_ref().map(|target| target.n)
    }

    /// Whether a transfer is under way that moved on of late: the view timer stands still meanwhile (P26).
    pub(super) fn transfer_moves(&self) -> bool {
        self.is_transferring() && self.now < self.transfer.fetched_at + self.config.transfer_after
    }

    /// When it will have stood still for so long that the view timer runs again.
    pub(super) fn transfer_stalls(&self) -> Time {
        match self.transfer_moves() {
            true => self.transfer.fetched_at + self.config.transfer_after,
            false => Time::NEVER,
        }
    }

    /// q replicas signed `root` at `n`.
    pub(super) fn note_certified(&mut self, n: SeqNum, root: Digest, proof: Vec<SignedCheckpoint>) {
        let known = self.transfer.certified.as_ref().map(|certified| certified.n);
        if n <= self.log.low() || known >= Some(n) {
            return;
        }
        if known.is_none_or(|known| known <= self.last_executed) {
            self.transfer.moved_at = self.transfer.moved_at.max(self.now);
        }
        self.transfer.certified = Some(Certified { n, root, proof });
    }

    /// Checkpoints up to `n` are stable here.
    pub(super) fn forget_certified(&mut self, n: SeqNum) {
        self.transfer.certified.take_if(|certified| certified.n <= n);
    }

    /// When a transfer begins unless something moves before.
    pub(super) fn transfer_due(&self) -> Time {
        let Some(certified) = &self.transfer.certified else { return Time::NEVER };
        if self.is_transferring() {
            return Time::NEVER;
        }
        match self.mode {
            Mode::Diverged => self.now,
            Mode::Normal if certified.n > self.log.high() => self.transfer.moved_at + self.config.status_interval,
            Mode::Normal if certified.n > self.last_executed => self.transfer.moved_at + self.config.transfer_after,
            // The state that ends a recovery, or most of it before its time has come (P42 c). It executes nothing itself.
            Mode::Recovering if self.recovery.until().is_some_and(|until| certified.n >= until) => self.now,
            Mode::Recovering => self.transfer.moved_at + self.config.transfer_after,
            // A split replica keeps its state to be looked at.
            Mode::Normal | Mode::Split => Time::NEVER,
        }
    }

    /// Begins a transfer if it is time.
    pub(super) fn consider_transfer(&mut self) {
        if self.transfer_due() <= self.now {
            self.begin_transfer();
        }
    }

    /// Fetches the newest certified state. What is tentative is rolled back first (P17).
    pub(super) fn begin_transfer(&mut self) {
        let Some(target) = self.transfer.certified.clone() else { return };
        if self.tentative.take().is_some() {
            self.execution_done = self.execution_done.min(self.last_executed);
            self.actions.push_back(Action::Rollback(self.last_executed.next()));
        }
        let (n, root, diverged) = (target.n, target.root, self.mode == Mode::Diverged);
        self.transfer.target = Some(target);
        self.transfer.fetched_at = self.now;
        self.actions.push_back(Action::Transfer { n, root, diverged });
    }

    /// The transfer moved on.
    pub(super) fn on_fetched(&mut self) {
        self.transfer.fetched_at = self.now;
    }

    /// Nobody serves checkpoint `n` any more: on to the newest one (P38).
    pub(super) fn on_absent(&mut self, n: SeqNum) {
        let newest = self.transfer.certified.as_ref().map(|certified| certified.n);
        if self.transfer_target() == Some(n) && newest > Some(n) {
            self.begin_transfer();
        }
    }

    /// The state at `n` is here, the certified one. Nothing need be executed for it (P39); what is committed above it
    /// is executed on it, again if this replica had diverged.
    pub(super) fn on_transferred(&mut self, n: SeqNum) {
        let Some(target) = self.transfer.target.take_if(|target| target.n == n) else { return };
        let before = self.last_executed;
        for (at, slot) in self.log.iter() {
            for batch in slot.bodies().iter().filter(|_| before < at && at <= n) {
                self.queue.executed(batch);
            }
        }
        self.last_executed = n;
        self.execution_done = n;
        self.last_proposed = self.last_proposed.max(n);
        self.transfer.moved_at = self.now;
        self.oldest.forget();
        self.counters.transfers += 1;
        if self.mode == Mode::Diverged {
            self.mode = Mode::Normal;
            self.counters.healed += 1;
        }
        self.notice(Notice::Transferred { n, before });
        // What was skipped is not held: nobody can be helped with it.
        let dropped = if before < n { n } else { self.log.retained() };
        self.adopt_checkpoint(n, target.root, target.proof, dropped);
        self.consider_view_changes();
        self.consider_recovery();
    }
}
