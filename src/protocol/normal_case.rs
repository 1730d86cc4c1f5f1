//! Three phases in one view: propose, prepare, commit; and what may be executed when.

use std::sync::Arc;

use super::log::Candidate;
use super::queue::Refused;
use super::{Action, Agreement, Held, Misdeed, Mode, Notice, Record};
use crate::auth::Verified;
use crate::limits;
use crate::types::{Digest, ReplicaId, ReplicaSet, SeqNum, Time, View};
use crate::wire::{Batch, Choice, Committed, Message, Pack, PrePrepare, Proposed, Vote};

impl Agreement {
    // ---- requests -------------------------------------------------------------------------------------------------

    /// A client's ordered pack (P2, P3): the primary lets it wait for a proposal; a backup keeps the body of a large
    /// one, and relays a signed one.
    pub(super) fn on_request(&mut self, pack: Verified<Pack>, signed: bool) {
        if !self.votes() {
            return;
        }
        let large = pack.encoded().len() > self.config.inline_max;
        // What the primary gets anyway, or all, asks for whole results while the reserve is called.
        if signed || pack.get().wants_full() || !large && !self.is_primary() {
            self.call_reserve();
        }
        if signed && self.await_execution(&pack) {
            return;
        }
        let pack = pack.into_inner();
        if large {
            let quota = self.config.client_bytes_max;
            match self.wants_body(&pack.digest(), true) {
                true => self.bodies.insert(self.now, pack.clone(), true, quota),
                false => self.bodies.offer(self.now, pack.clone(), quota),
            }
        }
        if self.views.pending {
            // Its proof keeps it for the next primary; others are sent again by their client.
        } else if self.is_primary() {
            match self.queue.push(pack, signed, self.config.client_bytes_max) {
                Ok(()) => {}
                Err(Refused::Duplicate) => self.counters.duplicate += 1,
                Err(Refused::Quota) => self.counters.over_quota += 1,
            }
        } else if signed && !large {
            // A large one went to the primary too: it follows only when it has waited (P2, P26).
            let primary = self.primary();
            self.send(primary, Message::Relay(pack));
        }
        if large {
            self.retry_candidates();
        }
    }

    /// A body that a candidate waits for, or that nobody asked for.
    pub(super) fn on_body(&mut self, pack: Pack, authentic: bool) {
        if authentic && self.vouch_for(&pack.digest()) {
            self.retry_candidates();
        }
        if self.wants_body(&pack.digest(), authentic) {
            self.bodies.insert(self.now, pack, authentic, self.config.client_bytes_max);
            self.retry_candidates();
        } else {
            self.counters.unasked += u64::from(!authentic);
        }
    }

    /// A pack whose own proof was not good for us came again with one that is: candidates that hold it may now pass
    /// (P12). Whether there is one.
    fn vouch_for(&mut self, digest: &Digest) -> bool {
        let mut found = false;
        for slot in self.log.iter_mut() {
            let Some(Candidate { unproven, .. }) = &mut slot.candidate else { continue };
            let before = unproven.len();
            unproven.retain(|d| d != digest);
            found |= unproven.len() < before;
        }
        found
    }

    /// Whether a candidate names a pack that is not held, or not with a proof that is good for us.
    fn wants_body(&self, digest: &Digest, authentic: bool) -> bool {
        let held = self.bodies.get(digest).is_some_and(|(_, held)| held || !authentic);
        !held
            && self.log.iter().filter_map(|(_, slot)| slot.candidate.as_ref()).any(|candidate| {
                candidate.pre_prepare.packs.iter().any(|p| matches!(p, Proposed::ByDigest(d) if d == digest))
            })
    }

    /// Read-only requests are executed on the first committed state that includes everything prepared here, or at once on
    /// the tentative one if nothing goes beyond it (P18).
    pub(super) fn on_query(&mut self, pack: Pack) {
        if self.mode != Mode::Normal || self.is_transferring() {
            return;
        }
        if self.rests(self.now) {
            self.call_reserve();
        }
        let after = self.last_prepared;
        // With more under way others answer from a later state, and it commits as soon.
        let quiet = self.last_proposed <= after && self.log.last() <= after;
        let tentative = quiet && self.tentative.is_some() && after == self.last_executed.next();
        if after > self.last_executed && !tentative {
            self.flush_commits();
        }
        self.actions.push_back(Action::Query { pack, after, tentative });
    }

    // ---- propose --------------------------------------------------------------------------------------------------

    /// P10: within the watermarks, at most `pipeline_max` uncommitted proposals; a batch leaves when it is full or
    /// when the pipeline is idle, that is when every proposal is prepared.
    pub(super) fn try_propose(&mut self) {
        let held_back = self.views.pending || self.is_transferring();
        if !self.is_primary() || held_back || self.mode != Mode::Normal {
            return;
        }
        // What an earlier life may have proposed in this view is forgotten (P42 e).
        if self.led_before() {
            return;
        }
        while !self.queue.is_empty() && self.may_propose() {
            let packs = self.queue.take(limits::BATCH_PACKS_MAX, self.batch_requests(), self.config.batch_bytes());
            self.propose(packs);
        }
        while self.last_proposed < self.pad_to && self.queue.is_empty() && self.has_room() {
            let n = self.last_proposed.next();
            self.last_proposed = n;
            self.counters.padded += 1;
            self.accept(n, Arc::new(Batch::null()));
        }
    }

    /// Whether the watermarks, the bytes of the log and the pipeline leave room for another proposal (P10, P21).
    fn has_room(&self) -> bool {
        let next = self.last_proposed.next();
        let in_flight = self.last_proposed.0.saturating_sub(self.last_executed.0);
        // However much the log holds, it goes on to the next checkpoint: that is what makes room.
        let within_bytes = self.log.bytes() < self.config.log_bytes_max
            || next.0 <= self.log.low().0 + self.config.checkpoint_interval;
        self.log.in_window(next)
            && within_bytes
            && in_flight < self.config.pipeline_max
            && next.0 <= self.execution_done.0 + self.config.pipeline_max
    }

    /// Requests of a batch: no more than give so many bytes of results, or all others would wait while it is executed.
    fn batch_requests(&self) -> usize {
        let by_results = limits::BATCH_RESULTS / self.result_bytes.max(1);
        self.config.batch_requests_max.min(by_results.max(1))
    }

    fn may_propose(&self) -> bool {
        // A batch may have become committed by the word of others (P51) before it was prepared here.
        let idle = self.last_prepared.max(self.last_executed) >= self.last_proposed;
        let full = self.queue.requests() >= self.batch_requests()
            || self.queue.proposal_bytes() >= self.config.batch_bytes()
            || self.queue.bytes() >= self.config.batch_bytes_max;
        self.has_room() && (idle || full)
    }

    fn propose(&mut self, packs: Vec<Pack>) {
        let n = self.last_proposed.next();
        let choice = Choice { time: self.now.0.max(self.last_choice.time + 1), seed: mix(self.config.seed ^ mix(n.0)) };
        let batch = Arc::new(Batch::new(choice, packs));
        self.last_proposed = n;
        self.counters.proposed += 1;
        self.accept(n, batch);
    }

    // ---- pre-prepare ----------------------------------------------------------------------------------------------

    /// P12, P35. `unproven`: the inline packs whose own proof is not good for us.
    pub(super) fn on_pre_prepare(&mut self, from: ReplicaId, pre_prepare: PrePrepare, mut unproven: Vec<Digest>) {
        let n = pre_prepare.n;
        if from != self.primary() {
            self.counters.not_entitled += 1;
            self.caught(from, Misdeed::NotEntitled);
            return;
        }
        if !self.votes() {
            return;
        }
        let digest = pre_prepare.digest();
        if !self.is_free_for(n, digest) {
            return;
        }
        let view = self.view;
        let slot = self.log.slot(n);
        let known = slot.pre_prepare.filter(|(v, _)| *v == view).map(|(_, d)| d);
        match known.or(slot.candidate.as_ref().map(|c| c.digest)) {
            Some(first) if first != digest => {
                self.counters.contradiction += 1;
                self.caught(from, Misdeed::Equivocation);
                self.notice(Notice::Equivocation { n });
                // Local evidence is enough to leave (P35).
                self.start_view_change(self.view.next());
            }
            Some(_) if known.is_some() => {}
            Some(_) | None => {
                // A copy that came again may carry a proof that the first one lacked.
                if let Some(first) = &slot.candidate {
                    unproven.retain(|digest| first.unproven.contains(digest));
                }
                slot.candidate = Some(Candidate { pre_prepare, digest, unproven });
                self.try_accept(n);
            }
        }
    }

    /// Accepts the candidate at `n` if everything that P12 asks for is there; asks for bodies that are missing.
    fn try_accept(&mut self, n: SeqNum) {
        let Some(slot) = self.log.get(n) else { return };
        let Some(candidate) = &slot.candidate else { return };
        let choice = candidate.pre_prepare.choice;
        // A null batch chooses nothing (P42 d).
        let null = candidate.pre_prepare.packs.is_empty();
        let passes = if null { choice == Choice::default() } else { (self.config.check)(&choice, &self.last_choice) };
        if !passes {
            self.counters.bad_choice += 1;
            self.caught(self.primary(), Misdeed::BadChoice);
            self.log.slot(n).candidate = None;
            return;
        }
        let latest = self.now + self.config.clock_skew_max;
        if choice.time > latest.0 {
            let due = Time(choice.time - (latest.0 - self.now.0));
            self.candidate_at = self.candidate_at.min(due);
            return;
        }
        let mut packs = Vec::with_capacity(candidate.pre_prepare.packs.len());
        let mut missing = Vec::new();
        let mut all_authentic = candidate.unproven.is_empty();
        for proposed in &candidate.pre_prepare.packs {
            match proposed {
                Proposed::Inline(pack) => packs.push(pack.clone()),
                Proposed::ByDigest(digest) => match self.bodies.get(digest) {
                    Some((pack, authentic)) => {
                        all_authentic &= authentic;
                        packs.push(pack.clone());
                    }
                    None => missing.push(*digest),
                },
            }
        }
        let bytes: usize = packs.iter().map(|pack| pack.encoded().len()).sum();
        let requests: usize = packs.iter().map(Pack::len).sum();
        if bytes > limits::BATCH_BYTES_MAX || requests > limits::BATCH_REQUESTS_MAX {
            self.counters.oversized += 1;
            self.caught(self.primary(), Misdeed::OversizedBatch);
            self.log.slot(n).candidate = None;
            return;
        }
        if !missing.is_empty() {
            // What is committed comes as a whole batch, from anyone who has it.
            if slot.committed.is_none() {
                self.ask_for_bodies(n, &missing);
            }
            return;
        }
        // With the primary they are w: one correct replica checked every proof.
        let (f, me, view, digest) = (self.config.size.f(), self.config.me, self.view, candidate.digest);
        let mut vouching = slot.prepares.voters((view, digest));
        vouching.remove(me);
        if all_authentic || vouching.len() >= f {
            let batch = Batch::new(choice, packs);
            assert_eq!(batch.digest(), digest, "{n}: the bodies are those that the digest covers");
            self.accept(n, Arc::new(batch));
        }
    }

    /// Asks the primary for bodies that a pre-prepare names; a large pack comes from its client too, so the first
    /// question waits a little. Each further one waits twice as long as the one before: what was asked for may be on its
    /// way behind much else, and each copy more makes all wait longer.
    fn ask_for_bodies(&mut self, n: SeqNum, missing: &[Digest]) {
        const DOUBLED_MAX: u32 = 3;
        let now = self.now;
        let (resend, status) = (self.config.resend_min, self.config.status_interval);
        let pause = |asked: u32| match asked {
            0 => resend,
            _ => status * (1 << (asked - 1).min(DOUBLED_MAX)),
        };
        let slot = self.log.slot(n);
        if slot.asked_at == Time(0) {
            slot.asked_at = now;
        }
        let due = slot.asked_at + pause(slot.asked_for_packs);
        if now < due {
            self.candidate_at = self.candidate_at.min(due);
            return;
        }
        slot.asked_at = now;
        slot.asked_for_packs += 1;
        self.candidate_at = self.candidate_at.min(now + pause(slot.asked_for_packs));
        let primary = self.primary();
        for digest in missing {
            self.send(primary, Message::FetchPack(*digest));
        }
    }

    /// Looks again at every candidate: a body came, a vote came, or time passed.
    pub(super) fn retry_candidates(&mut self) {
        self.candidate_at = Time::NEVER;
        let waiting: Vec<SeqNum> =
            self.log.iter().filter(|(_, slot)| slot.candidate.is_some()).map(|(n, _)| n).collect();
        for n in waiting {
            if self.log.in_window(n) {
                self.try_accept(n);
            }
        }
    }

    /// The pre-prepare for `n` is accepted; as primary, it is ours (P14). The vote leaves once it is durable (P41).
    pub(super) fn accept(&mut self, n: SeqNum, batch: Arc<Batch>) {
        let view = self.view;
        if !batch.is_null() {
            self.last_choice = batch.choice();
        }
        for pack in batch.packs() {
            self.bodies.remove(&pack.digest());
        }
        let now = self.now;
        let slot = self.log.slot(n);
        assert!(slot.pre_prepare.is_none_or(|(v, _)| v < view), "{n}: one pre-prepare in a view");
        slot.accepted_at = now;
        self.log.accept(n, view, batch.clone());
        self.persist(Record::PrePrepared { view, n, batch }, Held::Vote(view, n));
    }

    /// Our pre-prepare or prepare is durable.
    pub(super) fn send_vote(&mut self, view: View, n: SeqNum) {
        if view != self.view || !self.log.in_window(n) {
            return;
        }
        let (now, me) = (self.now, self.config.me);
        let slot = self.log.slot(n);
        let (_, digest) = slot.pre_prepare.expect("persisted, so accepted");
        slot.voted = true;
        slot.sent_at = now;
        if self.is_primary() {
            // The NEW-VIEW is the pre-prepare of what it chose (P33).
            if !self.is_chosen(n) {
                let pre_prepare = self.pre_prepare_at(n).expect("accepted, so its body is held");
                self.broadcast(Message::PrePrepare(pre_prepare));
            }
        } else {
            self.log.slot(n).prepares.add(me, (view, digest));
            self.broadcast(Message::Prepare(Vote { view, n, digest }));
        }
        self.flush_commits();
        self.try_prepare(n);
    }

    /// The accepted pre-prepare at `n`, as it is sent: large packs by digest (P3).
    pub(super) fn pre_prepare_at(&self, n: SeqNum) -> Option<PrePrepare> {
        let slot = self.log.get(n)?;
        let (view, digest) = slot.pre_prepare?;
        let batch = slot.body(digest)?;
        let inline_max = self.config.inline_max;
        let proposed = |pack: &Pack| match pack.encoded().len() <= inline_max {
            true => Proposed::Inline(pack.clone()),
            false => Proposed::ByDigest(pack.digest()),
        };
        Some(PrePrepare { view, n, choice: batch.choice(), packs: batch.packs().iter().map(proposed).collect() })
    }

    // ---- prepare and commit ---------------------------------------------------------------------------------------

    /// P15: the primary sends none.
    pub(super) fn on_prepare(&mut self, from: ReplicaId, vote: Vote) {
        if from == self.primary() {
            self.counters.not_entitled += 1;
            self.caught(from, Misdeed::NotEntitled);
            return;
        }
        let slot = self.log.slot(vote.n);
        if !slot.prepares.add(from, (vote.view, vote.digest)) {
            if slot.prepares.vote_of(from) != Some((vote.view, vote.digest)) {
                self.counters.contradiction += 1;
                self.caught(from, Misdeed::ContradictoryVote);
            }
            return;
        }
        if slot.candidate.is_some() {
            self.try_accept(vote.n);
        }
        self.try_prepare(vote.n);
    }

    /// prepared = pre-prepare + PREPAREs of 2f distinct backups, our own included (P15).
    fn try_prepare(&mut self, n: SeqNum) {
        if !self.votes() {
            return;
        }
        let (view, needed) = (self.view, 2 * self.config.size.f());
        let Some(slot) = self.log.get_mut(n) else { return };
        let Some((v, digest)) = slot.pre_prepare else { return };
        let already = slot.prepared.is_some_and(|(v, _)| v >= view);
        if v != view || !slot.voted || already || slot.prepares.count((view, digest)) < needed {
            return;
        }
        slot.prepared = Some((view, digest));
        let voters = slot.prepares.voters((view, digest));
        self.last_prepared = self.last_prepared.max(n);
        self.note_voters(n, voters, needed);
        self.persist(Record::Prepared { view, n, digest }, Held::Commit(view, n));
    }

    /// Our P entry is durable: the COMMIT may leave, alone or on another message (P52).
    pub(super) fn send_commit(&mut self, view: View, n: SeqNum) {
        if view != self.view || !self.log.in_window(n) {
            return;
        }
        let (now, me) = (self.now, self.config.me);
        let waited_for = self.last_proposed > n || self.log.last() > n;
        let slot = self.log.slot(n);
        let (_, digest) = slot.prepared.expect("persisted, so prepared");
        slot.commit_sent = true;
        slot.commits.add(me, (view, digest));
        if self.held_commits.is_empty() {
            self.held_until = now + self.config.commit_delay;
        }
        self.held_commits.push(Vote { view, n, digest });
        if waited_for || n.0.is_multiple_of(self.config.checkpoint_interval) {
            self.flush_commits();
        }
        self.try_commit(n);
    }

    /// Sends the COMMITs that wait for a ride (P52).
    pub(super) fn flush_commits(&mut self) {
        self.held_until = Time::NEVER;
        for vote in self.held_commits.drain(..) {
            if let Some(slot) = self.log.get_mut(vote.n) {
                slot.sent_at = self.now;
            }
            self.actions.push_back(Action::Broadcast(Message::Commit(vote)));
        }
    }

    /// P15.
    pub(super) fn on_commit(&mut self, from: ReplicaId, vote: Vote) {
        let slot = self.log.slot(vote.n);
        if !slot.commits.add(from, (vote.view, vote.digest)) {
            if slot.commits.vote_of(from) != Some((vote.view, vote.digest)) {
                self.counters.contradiction += 1;
                self.caught(from, Misdeed::ContradictoryVote);
            }
            return;
        }
        self.try_commit(vote.n);
    }

    /// committed-local = prepared + q matching commits, our own included (P15). Whose COMMITTED we have, need not say it
    /// of this view too: what one correct replica committed is committed for ever, and a liar gains no more by it than
    /// by a COMMIT. (A PREPARE it does not stand for: who counts on one counts on its sender's Q entry, P27.)
    fn try_commit(&mut self, n: SeqNum) {
        let quorum = self.config.size.quorum();
        let Some(slot) = self.log.get_mut(n) else { return };
        let Some((view, digest)) = slot.prepared else { return };
        let (said, vouched) = (slot.commits.voters((view, digest)), slot.vouched.voters(digest));
        let commits: ReplicaSet = said.iter().chain(vouched.iter()).collect();
        if slot.committed.is_none() && slot.commit_sent && commits.len() >= quorum {
            self.mark_committed(n, digest);
            self.note_voters(n, commits, quorum);
        }
    }

    fn mark_committed(&mut self, n: SeqNum, digest: Digest) {
        let slot = self.log.slot(n);
        assert!(slot.committed.is_none_or(|d| d == digest), "{n}: two batches committed");
        slot.committed = Some(digest);
        self.counters.committed += 1;
    }

    // ---- committed (P51) ------------------------------------------------------------------------------------------

    /// w COMMITTEDs of different replicas: one of them is correct, so `n` is committed (P51).
    pub(super) fn on_committed(&mut self, from: ReplicaId, committed: Committed) {
        let n = committed.n;
        if !self.votes() || !self.log.in_window(n) {
            self.counters.outside_window += 1;
            return;
        }
        let weak = self.config.size.weak_quorum();
        if self.log.slot(n).vouched.vote_of(from).is_some_and(|digest| digest != committed.digest) {
            self.counters.contradiction += 1;
            self.caught(from, Misdeed::ContradictoryCommitted);
        }
        let slot = self.log.slot(n);
        slot.vouched.replace(from, committed.digest);
        if slot.committed.is_none() && slot.vouched.count(committed.digest) >= weak {
            // The body may lie in a candidate that we could not accept.
            self.mark_committed(n, committed.digest);
            self.adopt_candidate(n);
        }
        self.try_commit(n);
    }

    /// Uses the body of a candidate whose digest is committed.
    fn adopt_candidate(&mut self, n: SeqNum) {
        let slot = self.log.slot(n);
        if slot.lacks().is_none() {
            return;
        }
        let Some(candidate) = slot.candidate.take_if(|c| Some(c.digest) == slot.committed) else { return };
        let packs: Option<Vec<Pack>> = candidate
            .pre_prepare
            .packs
            .iter()
            .map(|proposed| match proposed {
                Proposed::Inline(pack) => Some(pack.clone()),
                Proposed::ByDigest(digest) => self.bodies.get(digest).map(|(pack, _)| pack.clone()),
            })
            .collect();
        if let Some(packs) = packs {
            self.log.hold(n, Arc::new(Batch::new(candidate.pre_prepare.choice, packs)));
        }
    }

    /// Asks for the bodies of batches that are committed here but not held, from `n` on.
    pub(super) fn ask_for_batches(&mut self, n: SeqNum) {
        let last = SeqNum(self.log.last().0.min(n.0 + self.config.pipeline_max));
        let mut at = n;
        while at <= last {
            self.ask_for_batch(at);
            at = at.next();
        }
    }

    pub(super) fn ask_for_batch(&mut self, n: SeqNum) {
        let (now, interval) = (self.now, self.config.status_interval);
        let others: Vec<ReplicaId> = self.config.size.others(self.config.me).collect();
        let Some(slot) = self.log.get_mut(n) else { return };
        let Some(digest) = slot.lacks() else { return };
        if slot.asked_at != Time(0) && now.since(slot.asked_at) < interval {
            return;
        }
        // Of what is committed, w at least said so: one of them is correct and has it. What a new view chose a correct
        // replica has too, nobody said who; whoever says that he has it may be lying. Another one each time.
        let said = slot.vouched.voters(digest).iter().chain(slot.commits.voters((self.view, digest)).iter());
        let said: Vec<ReplicaId> = said.filter(|r| *r != self.config.me && slot.committed.is_some()).collect();
        let holders = if said.is_empty() { others } else { said };
        let turn = n.0 as usize + slot.asked;
        let Some(holder) = holders.get(turn % holders.len().max(1)).copied() else { return };
        slot.asked_at = now;
        slot.asked += 1;
        self.send(holder, Message::FetchBatch(Committed { n, digest }));
    }

    /// The body of a batch that we asked for, checked by its digest.
    pub(super) fn on_batch(&mut self, from: ReplicaId, n: SeqNum, batch: Arc<Batch>) {
        match self.log.get_mut(n) {
            Some(slot) if slot.lacks() == Some(batch.digest()) => {
                self.log.hold(n, batch);
                self.body_came(n);
            }
            // Nobody was ever asked for another batch at n than the one that is committed.
            Some(slot) if slot.committed.is_some_and(|digest| digest != batch.digest()) && slot.chosen.is_none() => {
                self.caught(from, Misdeed::WrongBody);
            }
            Some(_) | None => self.counters.unasked += 1,
        }
    }

    // ---- execution ------------------------------------------------------------------------------------------------

    /// P16: strictly in order; at most one batch is tentative, and everything below it is committed and executed.
    pub(super) fn try_execute(&mut self) {
        if !self.votes() || self.is_transferring() {
            return;
        }
        loop {
            let n = self.last_executed.next();
            let now = self.now;
            let Some(slot) = self.log.get(n) else { return };
            match (self.tentative, slot.committed) {
                (Some(digest), Some(committed)) if digest == committed => {
                    self.tentative = None;
                    self.last_executed = n;
                    self.progress_at = now;
                    self.transfer.moved_at = now;
                    let accepted_at = slot.accepted_at;
                    let batch = slot.body(committed).cloned().expect("executed, so its body is held");
                    self.executed(&batch, accepted_at);
                    self.actions.push_back(Action::Commit(n));
                }
                (Some(_), Some(_)) => {
                    self.tentative = None;
                    self.execution_done = self.execution_done.min(self.last_executed);
                    self.actions.push_back(Action::Rollback(n));
                }
                (Some(_), None) => return,
                (None, committed) => {
                    let tentative = committed.is_none();
                    // Tentative replies name this view (P5): what was prepared in it.
                    let here = !self.views.pending;
                    let prepared = slot.prepared.filter(|(v, _)| here && *v == self.view);
                    let wanted = committed.or(prepared.map(|(_, d)| d));
                    let Some(wanted) = wanted else { return };
                    let Some(batch) = slot.body(wanted).cloned() else {
                        return self.ask_for_batches(n);
                    };
                    // Tentative replies wait until the P entry is durable (P41).
                    if tentative && !slot.commit_sent {
                        return;
                    }
                    let view = self.view;
                    self.progress_at = now;
                    if tentative {
                        self.tentative = Some(wanted);
                    } else {
                        let accepted_at = slot.accepted_at;
                        self.last_executed = n;
                        self.transfer.moved_at = now;
                        self.executed(&batch, accepted_at);
                    }
                    self.actions.push_back(Action::Execute { n, view, batch, tentative });
                }
            }
        }
    }
}

/// splitmix64: spreads the bits of a seed.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_are_mixed_as_splitmix64_is_published() {
        assert_eq!(super::mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(super::mix(1_234_567), 6_457_827_717_110_365_317);
    }
}
