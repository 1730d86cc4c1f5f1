//! Checkpoints: certificates over state digests, the moving watermarks, and what disagreement means.

use std::collections::BTreeMap;
use std::time::Duration;

use super::certificate::Certificate;
use super::{Action, Agreement, Misdeed, Mode, Notice};
use crate::types::{Digest, ReplicaId, ReplicaSet, SeqNum, Time};
use crate::wire::{Message, SignedCheckpoint};

/// Votes for checkpoints above the low watermark, and proofs of those that are stable.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    votes: BTreeMap<SeqNum, Votes>,
    own: BTreeMap<SeqNum, Digest>,
    /// When each above the low watermark was executed here, and how long the last stable one took from there.
    executed_at: BTreeMap<SeqNum, Time>,
    time_to_stable: Option<Duration>,
    /// Stable ones as far back as the log reaches: a peer that is behind needs the first one that it can check.
    proofs: BTreeMap<SeqNum, Vec<SignedCheckpoint>>,
}

#[derive(Debug, Default)]
struct Votes {
    roots: Certificate<Digest>,
    signed: BTreeMap<ReplicaId, SignedCheckpoint>,
    /// q of one root that came together, whatever their signers said elsewhere.
    proof: Option<(Digest, Vec<SignedCheckpoint>)>,
    suspected: bool,
    /// In a split: whose state was, or is being, compared with ours.
    compared: ReplicaSet,
}

impl Checkpoints {
    pub(super) fn stable_proof(&self) -> &[SignedCheckpoint] {
        self.proofs.last_key_value().map_or(&[], |(_, proof)| proof)
    }

    /// Checkpoints above the low watermark that somebody has voted for.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.votes.len()
    }

    /// Stable checkpoints of which the proof is held.
    #[cfg(test)]
    pub(super) fn proofs(&self) -> usize {
        self.proofs.len()
    }

    /// How long the last stable one took to become so, once it was executed here. None if none did, or it was fetched.
    pub(super) fn time_to_stable(&self) -> Option<Duration> {
        self.time_to_stable
    }

    /// The last checkpoint that this replica signed.
    pub(super) fn last_own(&self) -> SeqNum {
        self.own.last_key_value().map_or(SeqNum(0), |(n, _)| *n)
    }
}

impl Agreement {
    /// A signed checkpoint of any replica, our own included (P24, P25).
    pub(super) fn on_checkpoint(&mut self, checkpoint: SignedCheckpoint) {
        let (n, from) = (checkpoint.n, checkpoint.replica);
        if !n.0.is_multiple_of(self.config.checkpoint_interval) {
            return self.caught(from, Misdeed::OddCheckpoint);
        }
        // What an earlier life of ours signed counts as any other's word (P42).
        let own = from == self.config.me && checkpoint.boot == self.config.boot;
        // Of a state that is known to be wrong, or of one whose votes are forgotten.
        let void = own && (!self.votes() || n > self.last_executed);
        if n <= self.log.low() || void || !self.make_room(n, from) {
            self.counters.outside_window += 1;
            return;
        }
        let votes = self.checkpoints.votes.entry(n).or_default();
        if own && self.config.forgetful {
            votes.roots.remove(from);
        }
        if !votes.roots.add(from, checkpoint.root) {
            if votes.roots.vote_of(from) != Some(checkpoint.root) {
                self.counters.contradiction += 1;
                self.caught(from, Misdeed::ContradictoryCheckpoint);
            }
            return;
        }
        votes.signed.insert(from, checkpoint);
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.advance(n);
        }
        if own {
            self.checkpoints.own.insert(n, checkpoint.root);
            self.broadcast(Message::Checkpoint(checkpoint));
        }
        self.judge_checkpoint(n);
    }

    /// q signed checkpoints of one (n, root), handed on by anyone (P24). They count together: a signer among them that
    /// lied to this replica before, or has filled its places with checkpoints that nobody will reach, takes nothing from
    /// what q say.
    pub(super) fn on_stable(&mut self, proof: Vec<SignedCheckpoint>) {
        let Some(&SignedCheckpoint { n, root, .. }) = proof.first() else { return };
        if !n.0.is_multiple_of(self.config.checkpoint_interval) {
            proof.iter().for_each(|checkpoint| self.caught(checkpoint.replica, Misdeed::OddCheckpoint));
            return;
        }
        for checkpoint in &proof {
            if let Some(peer) = self.peers.get_mut(&checkpoint.replica) {
                peer.advance(n);
            }
        }
        let farthest = SeqNum(self.log.high().0 + self.config.log_window);
        if n <= self.log.low() || proof.len() < self.config.size.quorum() {
            self.counters.outside_window += 1;
        } else if n > farthest {
            self.note_certified(n, root, proof);
        } else {
            self.checkpoints.votes.entry(n).or_default().proof.get_or_insert((root, proof));
            self.judge_checkpoint(n);
        }
    }

    /// Within two windows every checkpoint has a place. Beyond them each replica has so many, its latest: a replica that
    /// was cut off for long learns from those which state to fetch (P38).
    fn make_room(&mut self, n: SeqNum, from: ReplicaId) -> bool {
        const FAR_MAX: usize = 4;
        let farthest = SeqNum(self.log.high().0 + self.config.log_window);
        if n <= farthest {
            return true;
        }
        let far = self.checkpoints.votes.range(farthest.next()..);
        let held: Vec<SeqNum> =
            far.filter(|(_, votes)| votes.roots.vote_of(from).is_some()).map(|(at, _)| *at).collect();
        if held.contains(&n) || held.len() < FAR_MAX {
            return true;
        }
        if held[0] > n {
            return false;
        }
        if let Some(votes) = self.checkpoints.votes.get_mut(&held[0]) {
            votes.roots.remove(from);
            votes.signed.remove(&from);
            if votes.signed.is_empty() {
                self.checkpoints.votes.remove(&held[0]);
            }
        }
        true
    }

    /// Compares our root at `n` with what the others say.
    fn judge_checkpoint(&mut self, n: SeqNum) {
        let size = self.config.size;
        let me = self.config.me;
        let ours = self.checkpoints.own.get(&n).copied();
        let Some(votes) = self.checkpoints.votes.get_mut(&n) else { return };
        if votes.proof.is_none() && votes.roots.is_split(size, size.quorum()) {
            if let Some(ours) = ours {
                let differ = votes.roots.votes().filter(|(r, root)| *r != me && *root != ours);
                let others: Vec<_> = differ.filter(|(r, _)| votes.compared.insert(*r)).collect();
                if !others.is_empty() {
                    self.actions.push_back(Action::Compare { n, others });
                }
            }
            if self.mode == Mode::Normal {
                self.mode = Mode::Split;
                self.notice(Notice::Split(n));
            }
            return;
        }
        let collected = votes.roots.decided(size.quorum()).map(|root| {
            let signed = votes.signed.values().filter(|c| c.root == root);
            (root, signed.take(size.quorum()).copied().collect())
        });
        let (certified, proof) = votes.proof.clone().or(collected).unzip();
        if let (Some(root), Some(proof)) = (certified, proof) {
            if ours == Some(root) {
                return self.mark_stable(n, proof);
            }
            // Not executed to n yet: the votes stay, and are judged when our own root is there.
            self.note_certified(n, root, proof);
        }
        let Some(votes) = self.checkpoints.votes.get_mut(&n) else { return };
        match (certified, ours) {
            (Some(certified), Some(ours)) => {
                if std::mem::replace(&mut self.mode, Mode::Diverged) != Mode::Diverged {
                    self.notice(Notice::Diverged { n, ours, certified });
                }
            }
            (Some(_), None) | (None, None) => {}
            (None, Some(ours)) => {
                let against = votes
                    .roots
                    .votes()
                    .filter(|(r, root)| *r != me && *root != ours)
                    .map(|(_, root)| votes.roots.count(root))
                    .max();
                if against.is_some_and(|count| count >= size.weak_quorum()) && !votes.suspected {
                    votes.suspected = true;
                    self.notice(Notice::Suspect(n));
                }
            }
        }
    }

    /// P24: the log up to `n` and older checkpoints can go; h := n.
    fn mark_stable(&mut self, n: SeqNum, proof: Vec<SignedCheckpoint>) {
        assert!(n <= self.last_executed, "our own root at {n} is in the proof");
        self.checkpoints.time_to_stable = self.checkpoints.executed_at.get(&n).map(|at| self.now.since(*at));
        self.make_stable(n, proof, self.least_needed());
    }

    /// The last executed batch may be one that a checkpoint follows.
    pub(super) fn note_checkpoint_due(&mut self) {
        if self.last_executed.0.is_multiple_of(self.config.checkpoint_interval) {
            self.checkpoints.executed_at.insert(self.last_executed, self.now);
        }
    }

    /// The certified state at `n` took the place of our own: what we said of later states is void, and what lies up to
    /// `dropped` was not executed here.
    pub(super) fn adopt_checkpoint(&mut self, n: SeqNum, root: Digest, proof: Vec<SignedCheckpoint>, dropped: SeqNum) {
        let me = self.config.me;
        for votes in self.checkpoints.votes.values_mut() {
            votes.roots.remove(me);
            votes.signed.remove(&me);
        }
        self.checkpoints.votes.retain(|_, votes| !votes.signed.is_empty() || votes.proof.is_some());
        self.checkpoints.own.clear();
        self.checkpoints.executed_at.clear();
        self.checkpoints.time_to_stable = None;
        self.checkpoints.own.insert(n, root);
        self.make_stable(n, proof, self.least_needed().max(dropped));
    }

    fn make_stable(&mut self, n: SeqNum, proof: Vec<SignedCheckpoint>, keep_above: SeqNum) {
        self.log.mark_stable(n, keep_above);
        self.forget_certified(n);
        self.checkpoints.votes.retain(|at, _| *at > n);
        self.checkpoints.own.retain(|at, _| *at >= n);
        self.checkpoints.executed_at = self.checkpoints.executed_at.split_off(&n.next());
        self.checkpoints.proofs.insert(n, proof.clone());
        self.forget_old_proofs();
        self.progress_at = self.now;
        self.actions.push_back(Action::Stable { n, proof });
        self.apply_decision();
        self.replay_ahead();
    }

    /// Drops stable entries that no peer needs any more.
    pub(super) fn prune_log(&mut self) {
        let keep_above = self.least_needed();
        self.log.prune(keep_above);
        self.forget_old_proofs();
    }

    fn forget_old_proofs(&mut self) {
        let (retained, stable) = (self.log.retained(), self.log.low());
        self.checkpoints.proofs.retain(|at, _| *at > retained || *at == stable);
    }

    /// The least that a peer may still need. A silent one counts too: it may be back before the window has passed it,
    /// and more than a window is never kept. One that has forgotten its votes can use nothing.
    fn least_needed(&self) -> SeqNum {
        let useful = self.peers.values().filter(|peer| !peer.recovering);
        useful.map(|peer| peer.executed.min(peer.stable)).min().unwrap_or(self.log.low())
    }

    /// Sends a peer whose last stable checkpoint is `stable` what it needs to move on.
    pub(super) fn send_checkpoints(&mut self, to: ReplicaId, stable: SeqNum) {
        let me = self.config.me;
        // Who needs entries that are dropped fetches the state: the last one is enough for it (P38).
        let first = if stable < self.log.retained() { self.log.low() } else { stable.next() };
        let proofs: Vec<Message> =
            self.checkpoints.proofs.range(first..).map(|(_, p)| Message::Stable(p.clone())).collect();
        let own: Vec<Message> = self
            .checkpoints
            .votes
            .range(stable.next()..)
            .filter_map(|(_, votes)| votes.signed.get(&me).copied().map(Message::Checkpoint))
            .collect();
        for message in proofs.into_iter().chain(own) {
            self.send(to, message);
        }
    }
}
