//! STATUS and what answers it: retransmission and fetching on a lossy network (P37).

use std::time::Duration;

use super::{Agreement, Misdeed, Mode};
use crate::types::{Digest, ReplicaId, SeqNum, Time};
use crate::wire::{Committed, Message, Pack, Status, Vote};

/// How fast packs are handed on to a peer that asks for them: 64 MB/s, whatever it asks for (P21).
const PACK_BYTE_NANOS: u64 = 1_000 / 64;

impl Agreement {
    /// Whether something is missing here that a peer may have.
    fn is_missing(&self) -> bool {
        let behind = self
            .peers
            .values()
            .any(|peer| peer.executed > self.last_executed && self.now.since(peer.heard_at) < self.config.silent_after);
        let recovers = self.mode == Mode::Recovering && self.recovery.until().is_some();
        recovers
            || self.votes()
                && !self.is_transferring()
                && (self.views.pending
                    || behind
                    || self.log.last() > self.last_executed
                    || self.checkpoints.last_own() > self.log.low())
    }

    /// Starts or stops the status timer.
    pub(super) fn arm_status(&mut self) {
        if !self.is_missing() {
            self.status_at = Time::NEVER;
        } else if self.status_at == Time::NEVER {
            self.progress_at = self.now;
            self.status_at = self.now + self.config.status_interval;
        }
    }

    /// STATUS while something is missing and nothing moves; a heartbeat otherwise.
    pub(super) fn status_timers(&mut self) {
        let now = self.now;
        if self.status_at <= now {
            self.ask_for_chosen();
            let stalled = now.since(self.progress_at) >= self.config.status_interval;
            if stalled {
                self.send_status(true);
            }
            self.status_at = now + self.config.status_interval;
        }
        if self.heartbeat_at <= now {
            self.send_status(false);
        }
    }

    /// A peer that is no farther behind than we are misses something, and we know of nothing: then it is we who missed
    /// all of it (a pre-prepare and every vote), and nobody sends again what nobody asks for.
    fn doubt(&mut self, peer: &Status) {
        let now = self.now;
        let due = self.doubted_at == Time(0) || now.since(self.doubted_at) >= self.config.status_interval;
        let behind = peer.view > self.view || peer.wants && peer.executed >= self.last_executed;
        if self.votes() && behind && due && !self.is_missing() {
            self.doubted_at = now;
            self.send_status(true);
        }
    }

    pub(super) fn send_status(&mut self, wants: bool) {
        self.heartbeat_at = self.now + self.config.heartbeat;
        self.nonce += 1;
        self.counters.asked += u64::from(wants);
        let span = (self.log.last().0.saturating_sub(self.last_executed.0)) as usize;
        let words = if wants { span.div_ceil(64) } else { 0 };
        let (mut prepared, mut committed) = (vec![0u64; words], vec![0u64; words]);
        if wants {
            for i in 0..span {
                let n = SeqNum(self.last_executed.0 + 1 + i as u64);
                let Some(slot) = self.log.get(n) else { break };
                prepared[i / 64] |= u64::from(slot.prepared.is_some_and(|(view, _)| view == self.view)) << (i % 64);
                committed[i / 64] |= u64::from(slot.committed.is_some()) << (i % 64);
            }
        }
        self.broadcast(Message::Status(Status {
            view: self.view,
            stable: self.log.low(),
            executed: self.last_executed,
            recovering: self.is_recovering(),
            until: self.recovery.until().unwrap_or_default(),
            floor: self.recovery.floor(),
            wants,
            pending: self.views.pending,
            view_changes: self.view_changes_held(),
            nonce: self.nonce,
            prepared,
            committed,
        }));
    }

    /// Sends what the sender lacks: bounded in bytes, nothing that was sent within the last few milliseconds.
    pub(super) fn on_status(&mut self, from: ReplicaId, status: Status) {
        let (now, resend_min) = (self.now, self.config.resend_min);
        // Nobody has executed less than its own checkpoint, or more than a window beyond it.
        if status.executed < status.stable || status.executed.0 - status.stable.0 > self.config.log_window {
            return self.caught(from, Misdeed::AbsurdStatus);
        }
        let peer = self.peers.get_mut(&from).expect("heard");
        if status.recovering {
            (peer.executed, peer.stable) = (status.executed, status.stable);
        } else {
            // An older status may come later.
            peer.advance(status.executed);
            peer.stable = peer.stable.max(status.stable);
        }
        let answered_at = peer.answered_at;
        self.note_recovery(from, &status);
        self.prune_log();
        self.answer_view(from, &status);
        self.doubt(&status);
        if !self.votes() || (answered_at != Time(0) && now.since(answered_at) < resend_min) {
            return;
        }
        if status.stable < self.log.low() || (status.wants && status.stable < self.checkpoints.last_own()) {
            self.peers.get_mut(&from).expect("heard").answered_at = now;
            self.send_checkpoints(from, status.stable);
        }
        // Who recovers takes part in nothing that is still being ordered (P42 c).
        if !status.wants || status.recovering && status.executed < status.until {
            return;
        }
        self.peers.get_mut(&from).expect("heard").answered_at = now;
        self.counters.answered += 1;
        let mut budget = self.config.answer_bytes_max;
        let first = SeqNum(status.executed.0.max(self.log.retained().0) + 1);
        let mut n = first;
        while n <= self.log.last() && budget > 0 {
            let bit = (n.0 - status.executed.0 - 1) as usize;
            let sent = self.answer_slot(from, n, has(&status.prepared, bit), has(&status.committed, bit));
            budget = budget.saturating_sub(sent);
            n = n.next();
        }
        self.send(from, Message::Answered(status.nonce));
    }

    /// Sends what `from` lacks of `n`; returns about how many bytes that is.
    fn answer_slot(&mut self, from: ReplicaId, n: SeqNum, prepared: bool, committed: bool) -> usize {
        const VOTE_BYTES: usize = 64;
        let (now, resend_min, view, me) = (self.now, self.config.resend_min, self.view, self.config.me);
        let Some(slot) = self.log.get(n) else { return 0 };
        if committed || (slot.sent_at != Time(0) && now.since(slot.sent_at) < resend_min) {
            return 0;
        }
        let mut bytes = 0;
        let mut messages = Vec::new();
        if let Some(digest) = slot.committed {
            messages.push(Message::Committed(Committed { n, digest }));
            bytes += VOTE_BYTES;
        }
        if let Some((v, digest)) = slot.pre_prepare.filter(|(v, _)| *v == view && slot.voted) {
            if !prepared && self.is_primary() {
                if !self.is_chosen(n)
                    && let Some(pre_prepare) = self.pre_prepare_at(n)
                {
                    bytes += slot.body(digest).map_or(0, |batch| batch.bytes());
                    messages.push(Message::PrePrepare(pre_prepare));
                }
            } else if !prepared && slot.prepares.vote_of(me).is_some() {
                messages.push(Message::Prepare(Vote { view: v, n, digest }));
                bytes += VOTE_BYTES;
            }
            if slot.commit_sent {
                messages.push(Message::Commit(Vote { view: v, n, digest }));
                bytes += VOTE_BYTES;
            }
        }
        for message in messages {
            self.send(from, message);
        }
        bytes
    }

    /// A peer has sent all that it had for us: if something is still missing, ask again soon.
    pub(super) fn on_answered(&mut self, nonce: u64) {
        if nonce == self.nonce && self.is_missing() {
            self.status_at = self.status_at.min(self.now + self.config.resend_min);
            self.progress_at = Time(0);
        }
    }

    /// Sends a batch that we hold, not twice within a few milliseconds.
    pub(super) fn on_fetch_batch(&mut self, from: ReplicaId, wanted: Committed) {
        let n = wanted.n;
        let batch = self.log.get(n).and_then(|slot| slot.body(wanted.digest)).cloned();
        match batch {
            Some(batch) if self.may_send_body(from, n) => self.send(from, Message::Batch(n, batch)),
            // It is dropped, and the proof says that nobody needs it any more (P33).
            None if n <= self.log.low() => self.send_stable_proof(from),
            Some(_) | None => {}
        }
    }

    fn send_stable_proof(&mut self, to: ReplicaId) {
        let proof = self.stable_proof().to_vec();
        if let Some(root) = proof.first().map(|checkpoint| checkpoint.root)
            && self.may_send_statement(to, root)
        {
            self.send(to, Message::Stable(proof));
        }
    }

    fn may_send_body(&mut self, to: ReplicaId, n: SeqNum) -> bool {
        let (now, resend_min, retained) = (self.now, self.config.resend_min, self.log.retained());
        let sent = &mut self.peers.get_mut(&to).expect("heard").bodies_sent;
        *sent = sent.split_off(&retained.next());
        let fresh = sent.get(&n).is_none_or(|at| now.since(*at) >= resend_min);
        if fresh {
            sent.insert(n, now);
        }
        fresh
    }

    /// As primary: sends the pack that a pre-prepare of ours named by digest, unless as much is on its way to the same
    /// peer as takes `status_interval`: what it lacks then, it asks for again.
    pub(super) fn on_fetch_pack(&mut self, from: ReplicaId, digest: Digest) {
        let (now, ahead_max) = (self.now, self.config.status_interval);
        let Some(pack) = self.proposed_pack(&digest) else { return };
        let peer = self.peers.get_mut(&from).expect("heard");
        if peer.packs_until > now + ahead_max {
            return;
        }
        let takes = Duration::from_nanos(pack.encoded().len() as u64 * PACK_BYTE_NANOS);
        peer.packs_until = peer.packs_until.max(now) + takes;
        self.send(from, Message::Relay(pack));
    }

    /// Looks in the batches that somebody may still be preparing, and only in those that this primary proposed itself:
    /// of these it checked every proof. Another batch may hold the same requests under a proof that others vouched for
    /// (P12), and whoever hands on a bad signature is to blame for it.
    fn proposed_pack(&self, digest: &Digest) -> Option<Pack> {
        if !self.is_primary() {
            return None;
        }
        let oldest = SeqNum(self.last_executed.0.saturating_sub(self.config.pipeline_max));
        let recent = self.log.iter().filter(|(n, _)| *n > oldest && !self.is_chosen(*n));
        let proposed = recent.filter_map(|(_, slot)| {
            let (_, digest) = slot.pre_prepare.filter(|(view, _)| *view == self.view)?;
            slot.body(digest)
        });
        proposed.flat_map(|batch| batch.packs()).find(|pack| pack.digest() == *digest).cloned()
    }
}

pub(super) fn has(words: &[u64], bit: usize) -> bool {
    words.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
}
