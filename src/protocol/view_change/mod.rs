//! View changes: how a view ends, and what the next one begins with (P26-P35, P45, P47, P49).
//!
//! ```text
//! a timer, evidence, or w others ─► start_view_change ─► VIEW-CHANGE, signed ─► the primary of the next view
//!      q of them ─► decide(S) ─► bodies fetched ─► NEW-VIEW, signed ─► everyone decides again ─► install
//! ```
//! [`decision`] computes, this module acts on it; `timer` says when a view has had its time.

pub mod decision;
pub(super) mod timer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Action, Agreement, Held, Misdeed, Mode, Notice, Record};
use crate::types::{Digest, ReplicaId, ReplicaSet, SeqNum, Time, View};
use crate::wire::{Batch, Claim, Entry, Message, NewView, Signed, Statement, Status, ViewChange, WantedViewChange};
use decision::{Chosen, Decision, Member, decide};

/// How long the next primary waits for view-changes beyond q (P33).
const BEYOND_QUORUM: Duration = Duration::from_millis(2);
/// The new-view timer doubles at most so often (P29).
const DOUBLINGS_MAX: u32 = 10;

type SignedViewChange = Arc<Signed<ViewChange>>;
type SignedNewView = Arc<Signed<NewView>>;

/// What is known of views beyond the present one.
#[derive(Debug)]
pub(super) struct Views {
    /// The view before was left; the NEW-VIEW of the present one is not here yet (P28).
    pub pending: bool,
    /// By sender: its view-change for the present view, and its highest.
    held: BTreeMap<ReplicaId, BTreeMap<View, SignedViewChange>>,
    /// By sender: its highest view-change ever, for when it has forgotten it (P42 a).
    highest: BTreeMap<ReplicaId, SignedViewChange>,
    /// View-changes that a NEW-VIEW named and we had not, or in another version: at most one for each member.
    named: BTreeMap<ReplicaId, SignedViewChange>,
    /// The NEW-VIEW of the present view.
    new_view: Option<SignedNewView>,
    /// NEW-VIEWs that cannot be checked yet, by primary.
    candidates: BTreeMap<ReplicaId, SignedNewView>,
    /// When members of each candidate were last asked for: none keeps another waiting.
    asked_at: BTreeMap<ReplicaId, Time>,
    /// What the present view took over.
    decision: Option<Decision>,
    /// As primary of the pending view: S, once it is fixed.
    fixed: Option<Fixed>,
    /// When S may be fixed though more could come.
    pub fix_at: Time,
    /// P29.
    pub new_view_at: Time,
    /// Views that ended without progress, halved by progress.
    pub failed: u32,
}

#[derive(Debug)]
struct Fixed {
    members: Vec<(ReplicaId, Digest)>,
    /// The signature is asked for.
    signing: bool,
}

impl Default for Views {
    fn default() -> Self {
        Views {
            pending: false,
            held: BTreeMap::new(),
            highest: BTreeMap::new(),
            named: BTreeMap::new(),
            new_view: None,
            candidates: BTreeMap::new(),
            asked_at: BTreeMap::new(),
            decision: None,
            fixed: None,
            fix_at: Time::NEVER,
            new_view_at: Time::NEVER,
            failed: 0,
        }
    }
}

impl Views {
    /// The highest view-change of `replica` that was ever held.
    pub(super) fn highest(&self, replica: ReplicaId) -> Option<SignedViewChange> {
        self.highest.get(&replica).cloned()
    }
}

impl Agreement {
    /// Whether this replica has left its view and waits for the next to begin.
    pub fn is_pending(&self) -> bool {
        self.views.pending
    }

    // ---- leaving --------------------------------------------------------------------------------------------------

    /// Leaves the present view for `target`, unless it is there already (P27, P28).
    pub(super) fn start_view_change(&mut self, target: View) {
        let target = self.not_signed_before(target);
        if target <= self.view || self.mode != Mode::Normal {
            return;
        }
        self.leave_view(target);
        self.views.pending = true;
        self.views.failed = (self.views.failed + 1).min(DOUBLINGS_MAX);
        self.counters.view_changes += 1;
        self.notice(Notice::ViewChange(target));
        let own = self.own_view_change();
        self.actions.push_back(Action::SignViewChange(own));
        self.consider_view_changes();
    }

    /// Ends the present view here: what is tentative is undone (P17), what was said in it is forgotten, what was
    /// accepted and prepared in it stays.
    fn leave_view(&mut self, target: View) {
        if self.tentative.take().is_some() {
            self.execution_done = self.execution_done.min(self.last_executed);
            self.actions.push_back(Action::Rollback(self.last_executed.next()));
        }
        self.held_commits.clear();
        self.held_until = Time::NEVER;
        self.candidate_at = Time::NEVER;
        self.queue = super::queue::Queue::new(self.config.inline_max);
        self.bodies.view_left();
        for slot in self.log.iter_mut() {
            slot.leave_view();
        }
        self.view = target;
        let views = &mut self.views;
        views.new_view = None;
        views.decision = None;
        views.fixed = None;
        views.named.retain(|_, signed| signed.statement().view >= target);
        (views.fix_at, views.new_view_at) = (Time::NEVER, Time::NEVER);
        for of_sender in views.held.values_mut() {
            of_sender.retain(|view, _| *view >= target);
        }
        views.candidates.retain(|_, signed| signed.statement().view >= target);
        self.oldest.forget();
    }

    /// P27. Who signs is filled in by the signer.
    fn own_view_change(&self) -> ViewChange {
        let (mut prepared, mut pre_prepared) = (Vec::new(), Vec::new());
        for (n, slot) in self.log.iter().filter(|(n, _)| *n > self.log.low()) {
            prepared.extend(slot.prepared.map(|(view, digest)| Entry { n, digest, view }));
            let mut digests: Vec<Entry> = slot.pre_prepared().map(|(digest, view)| Entry { n, digest, view }).collect();
            assert!(digests.len() <= self.config.size.n() + 1, "{n}: P12 bounds what is ever pre-prepared (P27)");
            digests.sort_by_key(|entry| entry.digest);
            pre_prepared.extend(digests);
        }
        ViewChange {
            replica: self.config.me,
            boot: 0,
            view: self.view,
            stable: self.log.low(),
            proof: self.stable_proof().to_vec(),
            prepared,
            pre_prepared,
        }
    }

    // ---- view-changes ---------------------------------------------------------------------------------------------

    /// A statement whose signatures are good; what it says may still be nonsense.
    pub(super) fn on_claim(&mut self, claim: Claim) {
        match claim {
            Claim::Checkpoint(checkpoint) => self.on_checkpoint(checkpoint),
            Claim::Stable(proof) => self.on_stable(proof),
            Claim::ViewChange(signed) if self.is_own(&*signed) => self.on_own_view_change(signed),
            Claim::ViewChange(signed) => self.on_view_change(signed),
            Claim::NewView(signed) if self.is_own(&*signed) => self.on_own_new_view(signed),
            Claim::NewView(signed) => self.on_new_view(signed),
            Claim::StableAnswer(from, answer) => self.on_stable_answer(from, &answer),
        }
    }

    /// Whether this replica signed it in this life. What it signed in an earlier one, it has forgotten (P42).
    fn is_own<T: Statement>(&self, signed: &Signed<T>) -> bool {
        (signed.statement().signer(), signed.statement().boot()) == (self.config.me, self.config.boot)
    }

    /// Whether the view-change counts: of the signer's present life, or one that it stands by (P42 a).
    fn stands(&self, signed: &Signed<ViewChange>) -> bool {
        let v = signed.statement();
        self.stands_by(v.replica, v.boot, v.view)
    }

    /// `from` has started again: what it said in earlier lives counts no more, unless it comes to stand by it (P42 a).
    pub(super) fn close_boots(&mut self, from: ReplicaId) {
        let boot = self.peers.get(&from).map_or(0, |peer| peer.boot);
        self.views.candidates.retain(|primary, signed| *primary != from || signed.statement().boot >= boot);
        let view = self.view;
        let closed = self.views.held.get(&from).and_then(|of| of.get(&view)).filter(|signed| !self.stands(signed));
        let names = |fixed: &Fixed| fixed.members.iter().any(|(id, _)| *id == from);
        if closed.is_some() && self.views.new_view.is_none() && self.views.fixed.as_ref().is_some_and(names) {
            // Nobody would take a NEW-VIEW that names it.
            self.views.fixed = None;
            self.views.decision = None;
            self.views.fix_at = Time::NEVER;
            for slot in self.log.iter_mut() {
                slot.chosen = None;
            }
            self.consider_view_changes();
        }
    }

    /// Ours is signed; or an old one of ours came back.
    fn on_own_view_change(&mut self, signed: SignedViewChange) {
        let view = signed.statement().view;
        let of_me = self.views.held.entry(self.config.me).or_default();
        if self.views.pending && view == self.view && !of_me.contains_key(&view) {
            of_me.insert(view, signed.clone());
            self.persist(Record::ViewChange(signed), Held::ViewChange(view));
        }
    }

    /// Our VIEW-CHANGE is durable.
    pub(super) fn send_view_change(&mut self, view: View) {
        if let Some(signed) = self.own_signed().filter(|_| view == self.view && self.views.pending) {
            self.note_sent_to_all(signed.digest());
            self.broadcast(Message::ViewChange(signed));
            self.consider_view_changes();
        }
    }

    fn own_signed(&self) -> Option<SignedViewChange> {
        self.views.held.get(&self.config.me)?.get(&self.view).cloned()
    }

    /// P45, besides the signatures.
    fn is_valid(&self, v: &ViewChange) -> bool {
        let (low, high) = (v.stable, SeqNum(v.stable.0.saturating_add(self.config.log_window)));
        let entry = |e: &Entry| low < e.n && e.n <= high && e.view < v.view;
        let most = self.config.size.n() + 1;
        self.config.size.contains(v.replica)
            && v.stable.0.is_multiple_of(self.config.checkpoint_interval)
            && v.prepared.iter().chain(&v.pre_prepared).all(entry)
            && v.pre_prepared.chunk_by(|a, b| a.n == b.n).all(|digests| digests.len() <= most)
    }

    fn on_view_change(&mut self, signed: SignedViewChange) {
        if !self.follows_views() {
            return;
        }
        let v = signed.statement();
        let (from, view) = (v.replica, v.view);
        if !self.is_valid(v) {
            return self.caught(from, Misdeed::BadViewChange);
        }
        if !self.stands(&signed) {
            self.counters.earlier_life += 1;
            return;
        }
        if self.views.highest.get(&from).is_none_or(|highest| highest.statement().view < view) {
            self.views.highest.insert(from, signed.clone());
        }
        self.on_stable(v.proof.clone());
        let (wanted, digest) = (self.is_named(from, signed.digest()), signed.digest());
        let (present, pending) = (self.view, self.views.pending);
        let first = self.views.held.get(&from).and_then(|of| of.get(&view)).filter(|first| self.stands(first));
        let first = first.filter(|_| from != self.config.me).cloned();
        let of_sender = self.views.held.entry(from).or_default();
        match first {
            // One of an earlier life of ours: it may be a part of S, and nothing that we say now.
            None if from == self.config.me => {
                if wanted {
                    self.views.named.insert(from, signed);
                }
            }
            Some(first) if first.digest() != digest => {
                self.caught(from, Misdeed::ContradictoryViewChange);
                if wanted {
                    self.views.named.insert(from, signed);
                }
            }
            Some(_) => {
                // The same again: who recovers waits with it, and it may be time to help by now (P42 c).
                if self.helps_recovery(from, view) {
                    self.start_view_change(view);
                }
                return;
            }
            None if view > present || view == present && pending => {
                of_sender.insert(view, signed);
                let highest = of_sender.last_key_value().map(|(view, _)| *view);
                of_sender.retain(|view, _| *view == present || Some(*view) == highest);
            }
            None => return,
        }
        self.consider_view_changes();
        if self.helps_recovery(from, view) {
            self.start_view_change(view);
        }
    }

    /// Whether what others say of views matters here. Who recovers follows them and says nothing (P42 c).
    fn follows_views(&self) -> bool {
        self.votes() || self.mode == Mode::Recovering
    }

    /// The view-changes that count, by sender and view.
    fn standing(&self) -> impl Iterator<Item = (ReplicaId, View, &SignedViewChange)> {
        let all = self.views.held.iter().flat_map(|(r, of)| of.iter().map(|(view, signed)| (*r, *view, signed)));
        all.filter(|(_, _, signed)| self.stands(signed))
    }

    /// Whether a NEW-VIEW that waits for its proof names this view-change.
    fn is_named(&self, replica: ReplicaId, digest: Digest) -> bool {
        let names = |nv: &SignedNewView| nv.statement().members.contains(&(replica, digest));
        self.views.candidates.values().any(names)
    }

    /// What follows from the view-changes that are held.
    pub(super) fn consider_view_changes(&mut self) {
        let (size, me, view) = (self.config.size, self.config.me, self.view);
        let highest: BTreeMap<ReplicaId, View> = self.standing().map(|(r, view, _)| (r, view)).collect();
        let mut above: Vec<View> = highest.iter().filter(|(r, v)| **r != me && **v > view).map(|(_, v)| *v).collect();
        above.sort_by(|a, b| b.cmp(a));
        // P30: one of w is correct. (It ends: each round raises the view.)
        if let Some(&target) = above.get(size.weak_quorum() - 1)
            && self.mode == Mode::Normal
        {
            return self.start_view_change(target);
        }
        // P35: it is signed that the primary has left the view, and leads it no more.
        let primary = size.primary(view);
        let has_left = primary != me && highest.get(&primary).is_some_and(|asked| *asked > view);
        if has_left && !self.views.pending && self.mode == Mode::Normal {
            return self.start_view_change(view.next());
        }
        self.check_candidates();
        if !self.views.pending || self.view != view {
            return;
        }
        // P29
        let holding = highest.values().filter(|v| **v >= view).count();
        if holding >= size.quorum() && self.views.new_view_at == Time::NEVER {
            let doubled = self.config.view_timeout * (1 << self.views.failed.saturating_sub(1));
            self.views.new_view_at = self.now + doubled;
        }
        if size.primary(view) == me {
            self.try_new_view();
        }
    }

    /// Whose view-changes for the present view are held.
    pub(super) fn view_changes_held(&self) -> ReplicaSet {
        if !self.views.pending {
            return ReplicaSet::EMPTY;
        }
        self.standing().filter(|(_, view, _)| *view == self.view).map(|(r, _, _)| r).collect()
    }

    // ---- new-view -------------------------------------------------------------------------------------------------

    /// As primary of the pending view: fixes S, once there are q, and a little later (P33).
    fn try_new_view(&mut self) {
        if self.views.fixed.is_some() {
            return self.complete_new_view();
        }
        let view = self.view;
        let of_view = self.standing().filter(|(_, v, _)| *v == view).map(|(_, _, signed)| signed.clone());
        let of_view: Vec<SignedViewChange> = of_view.collect();
        let size = self.config.size;
        if of_view.len() < size.quorum() || self.own_signed().is_none() {
            return;
        }
        if of_view.len() < size.n() && self.views.fix_at == Time::NEVER {
            self.views.fix_at = self.now + BEYOND_QUORUM;
        }
        if of_view.len() < size.n() && self.now < self.views.fix_at {
            return;
        }
        let members: Vec<Member> = of_view.iter().map(|signed| member(signed.statement())).collect();
        // Undecided: more view-changes will come (P32).
        let Some(decision) = decide(size, self.config.log_window, &members) else { return };
        let members = of_view.iter().map(|signed| (signed.statement().replica, signed.digest())).collect();
        self.views.fixed = Some(Fixed { members, signing: false });
        self.mark_chosen(&decision);
        self.views.decision = Some(decision);
        self.complete_new_view();
    }

    /// Notes in the log what is chosen for the places within it.
    fn mark_chosen(&mut self, decision: &Decision) {
        for (n, chosen) in places(decision) {
            if self.log.in_window(n) {
                let slot = self.log.slot(n);
                slot.chosen = Some(chosen.digest());
                if chosen == Chosen::Null {
                    self.log.hold(n, Arc::new(Batch::null()));
                }
            }
        }
    }

    /// Before it is sent, the bodies of all that was chosen are fetched (P33). A primary whose window does not reach the
    /// last of them catches up first, or lets its view pass: with its NEW-VIEW it stands for all of them, and who counts
    /// on it (P15) counts on its Q entries too. (Else a batch is prepared by one correct backup and f liars, and no later
    /// view can find w that pre-prepared it: A2 fails for ever.)
    fn complete_new_view(&mut self) {
        let (Some(fixed), Some(decision)) = (&mut self.views.fixed, &self.views.decision) else { return };
        if fixed.signing || decision.last() > self.log.high() {
            return;
        }
        let (first, last) = (decision.stable.max(self.log.low()).next(), decision.last());
        let lacking: Vec<SeqNum> = self
            .log
            .iter()
            .filter(|(n, slot)| *n >= first && *n <= last && slot.lacks().is_some())
            .map(|(n, _)| n)
            .collect();
        if lacking.is_empty() {
            fixed.signing = true;
            let new_view = NewView {
                replica: self.config.me,
                boot: 0,
                view: self.view,
                members: fixed.members.clone(),
                stable: decision.stable,
                chosen: decision.chosen.iter().map(|chosen| chosen.digest()).collect(),
            };
            self.actions.push_back(Action::SignNewView(new_view));
        }
        for n in lacking {
            self.ask_for_batch(n);
        }
    }

    /// Ours is signed.
    fn on_own_new_view(&mut self, signed: SignedNewView) {
        let view = signed.statement().view;
        let fixed = self.views.fixed.as_ref().is_some_and(|fixed| fixed.members == signed.statement().members);
        if self.views.pending && view == self.view && self.views.new_view.is_none() && fixed {
            self.views.new_view = Some(signed.clone());
            self.persist(Record::NewView(signed), Held::NewView(view));
        }
    }

    /// Our NEW-VIEW is durable.
    pub(super) fn send_new_view(&mut self, view: View) {
        if view != self.view || !self.views.pending {
            return;
        }
        let (Some(signed), Some(decision)) = (self.views.new_view.clone(), self.views.decision.clone()) else { return };
        self.note_sent_to_all(signed.digest());
        self.broadcast(Message::NewView(signed.clone()));
        self.install(signed, decision);
    }

    fn on_new_view(&mut self, signed: SignedNewView) {
        if !self.follows_views() {
            return;
        }
        let (primary, view) = (signed.statement().replica, signed.statement().view);
        if !self.stands_by(primary, signed.statement().boot, view) {
            self.counters.earlier_life += 1;
            return;
        }
        if view < self.view || view == self.view && !self.views.pending {
            let other = self.views.new_view.as_ref().is_some_and(|accepted| accepted.digest() != signed.digest());
            if view == self.view && other {
                self.caught(primary, Misdeed::ContradictoryNewView);
            }
            return;
        }
        match self.views.candidates.get(&primary) {
            Some(first) if first.statement().view == view && first.digest() != signed.digest() => {
                return self.caught(primary, Misdeed::ContradictoryNewView);
            }
            Some(first) if first.statement().view > view => return,
            Some(_) | None => {}
        }
        self.views.candidates.insert(primary, signed);
        self.consider_view_changes();
    }

    /// Redoes the decision of every NEW-VIEW whose view-changes are all here (P33).
    fn check_candidates(&mut self) {
        // Of views that are left, or have begun, none is kept.
        let candidates: Vec<SignedNewView> = self.views.candidates.values().cloned().collect();
        for signed in candidates {
            let nv = signed.statement();
            let found: Vec<Option<SignedViewChange>> =
                nv.members.iter().map(|(r, digest)| self.find_view_change(*r, nv.view, *digest)).collect();
            if found.iter().any(Option::is_none) {
                self.fetch_view_changes(nv, &found);
                continue;
            }
            let members: Vec<Member> = found.iter().flatten().map(|signed| member(signed.statement())).collect();
            let own = nv.members.iter().any(|(r, _)| *r == nv.replica);
            let decision = decide(self.config.size, self.config.log_window, &members);
            let agrees = |d: &Decision| {
                d.stable == nv.stable && d.chosen.iter().map(|c| c.digest()).eq(nv.chosen.iter().copied())
            };
            self.views.candidates.remove(&nv.replica);
            match decision.filter(|decision| own && agrees(decision)) {
                Some(decision) => {
                    if nv.view > self.view {
                        self.leave_view(nv.view);
                        self.views.pending = true;
                    }
                    self.views.new_view = Some(signed.clone());
                    self.persist(Record::NewView(signed.clone()), Held::Accepted);
                    self.install(signed.clone(), decision);
                    return;
                }
                None => {
                    // Its own signed words are against it: evidence that needs no timer (P33, P35).
                    self.caught(nv.replica, Misdeed::BadNewView);
                    if nv.view == self.view {
                        return self.start_view_change(self.view.next());
                    }
                }
            }
        }
    }

    fn find_view_change(&self, replica: ReplicaId, view: View, digest: Digest) -> Option<SignedViewChange> {
        let held = self.views.held.get(&replica).and_then(|of| of.get(&view));
        let (named, highest) = (self.views.named.get(&replica), self.views.highest.get(&replica));
        let mut found = [held, named, highest].into_iter().flatten().filter(|signed| signed.statement().view == view);
        found.find(|signed| signed.digest() == digest && self.stands(signed)).cloned()
    }

    fn fetch_view_changes(&mut self, nv: &NewView, found: &[Option<SignedViewChange>]) {
        let now = self.now;
        let asked_at = self.views.asked_at.entry(nv.replica).or_default();
        if *asked_at != Time(0) && now.since(*asked_at) < self.config.status_interval {
            return;
        }
        *asked_at = now;
        let lacking = nv.members.iter().zip(found).filter(|(_, found)| found.is_none());
        for (&(replica, digest), _) in lacking.collect::<Vec<_>>() {
            let wanted = WantedViewChange { view: nv.view, replica, digest };
            // From the primary, or from anyone who accepted; its signer may be gone.
            self.broadcast(Message::FetchViewChange(wanted));
        }
    }

    /// Hands on a view-change that a NEW-VIEW named (P33).
    pub(super) fn on_fetch_view_change(&mut self, from: ReplicaId, wanted: WantedViewChange) {
        if let Some(signed) = self.find_view_change(wanted.replica, wanted.view, wanted.digest)
            && self.may_send_statement(from, wanted.digest)
        {
            self.send(from, Message::ViewChange(signed));
        }
    }

    // ---- beginning ------------------------------------------------------------------------------------------------

    /// The view begins here: three phases run again for all that was chosen; nothing executes twice (P33).
    fn install(&mut self, signed: SignedNewView, decision: Decision) {
        assert!(self.views.pending && signed.statement().view == self.view, "only the view that is waited for begins");
        for slot in self.log.iter_mut() {
            slot.leave_view();
        }
        self.views.pending = false;
        self.views.fixed = None;
        self.views.candidates.clear();
        (self.views.fix_at, self.views.new_view_at) = (Time::NEVER, Time::NEVER);
        self.last_proposed = decision.last().max(self.log.low());
        self.views.decision = Some(decision);
        self.progress_at = self.now;
        self.notice(Notice::NewView(self.view));
        self.apply_decision();
        if self.is_primary() {
            // Requests that backups would wait for are proposed at once (P26).
            for pack in self.waiting.packs() {
                let _ = self.queue.push(pack, true, self.config.client_bytes_max);
            }
        }
        self.consider_recovery();
        self.replay_ahead();
    }

    /// Accepts what the present view chose, where the body is here and the place within the watermarks (P34, P49).
    pub(super) fn apply_decision(&mut self) {
        if self.mode == Mode::Recovering {
            return;
        }
        let Some(decision) = self.views.decision.take() else { return };
        self.mark_chosen(&decision);
        if self.views.pending {
            self.views.decision = Some(decision);
            return self.complete_new_view();
        }
        for (n, _) in places(&decision) {
            if self.log.in_window(n) {
                self.accept_chosen(n);
            }
        }
        self.views.decision = Some(decision);
    }

    fn accept_chosen(&mut self, n: SeqNum) {
        let view = self.view;
        let slot = self.log.slot(n);
        let Some(digest) = slot.chosen else { return };
        if slot.pre_prepare.is_some_and(|(v, _)| v == view) {
            return;
        }
        match slot.body(digest).cloned() {
            Some(batch) => self.accept(n, batch),
            None => self.ask_for_batch(n),
        }
    }

    /// A body that was asked for came.
    pub(super) fn body_came(&mut self, n: SeqNum) {
        if self.views.pending {
            self.complete_new_view();
        } else if self.log.in_window(n) {
            self.accept_chosen(n);
        }
    }

    /// Asks again for bodies of chosen batches, while some are missing.
    pub(super) fn ask_for_chosen(&mut self) {
        let last = self.views.decision.as_ref().map_or(SeqNum(0), Decision::last);
        let lacking: Vec<SeqNum> = self
            .log
            .iter()
            .filter(|(n, slot)| *n <= last && slot.chosen.is_some() && slot.lacks().is_some())
            .map(|(n, _)| n)
            .collect();
        for n in lacking {
            self.ask_for_batch(n);
        }
    }

    /// Whether the present view's NEW-VIEW decided `n`: it is the pre-prepare.
    pub(super) fn is_chosen(&self, n: SeqNum) -> bool {
        self.views.decision.as_ref().is_some_and(|decision| n <= decision.last())
    }

    /// P12: whether a pre-prepare of `digest` at `n` may be looked at. What the new view decided is in its NEW-VIEW; at
    /// a place that it left free only what this replica has not contradicted before, or Q would grow without bound
    /// (P27).
    pub(super) fn is_free_for(&self, n: SeqNum, digest: Digest) -> bool {
        if self.is_chosen(n) {
            return false;
        }
        self.log.get(n).is_none_or(|slot| {
            slot.pre_prepared().filter(|(_, view)| *view < self.view).all(|(before, _)| before == digest)
        })
    }

    // ---- status ---------------------------------------------------------------------------------------------------

    /// Sends a peer that is behind, or waits, what it lacks of views: the same bytes again (P28, P37).
    pub(super) fn answer_view(&mut self, from: ReplicaId, status: &Status) {
        if !self.votes() || status.view > self.view {
            return;
        }
        let behind = status.view < self.view || status.pending;
        let message = if self.views.pending {
            let lacks_ours = status.view < self.view || status.pending && !status.view_changes.contains(self.config.me);
            self.own_signed().filter(|_| lacks_ours).map(|own| (own.digest(), Message::ViewChange(own)))
        } else {
            let new_view = self.views.new_view.clone().filter(|_| behind);
            new_view.map(|new_view| (new_view.digest(), Message::NewView(new_view)))
        };
        if let Some((digest, message)) = message
            && self.may_send_statement(from, digest)
        {
            self.send(from, message);
        }
    }

    /// Statements can be large: none goes to the same peer again before the last had time to arrive.
    pub(super) fn may_send_statement(&mut self, to: ReplicaId, digest: Digest) -> bool {
        let (now, interval, most) = (self.now, 2 * self.config.status_interval, 2 * self.config.size.n());
        let Some(peer) = self.peers.get_mut(&to) else { return false };
        peer.statements_sent.retain(|_, again| *again > now);
        if peer.statements_sent.contains_key(&digest) || peer.statements_sent.len() >= most {
            return false;
        }
        peer.statements_sent.insert(digest, now + interval);
        true
    }

    /// Everyone was sent this statement just now: a STATUS that crossed it does not draw it once more (P37).
    fn note_sent_to_all(&mut self, digest: Digest) {
        let again = self.now + self.config.resend_min;
        for peer in self.peers.values_mut() {
            peer.statements_sent.insert(digest, again);
        }
    }

    /// The earliest deadline of views.
    pub(super) fn view_deadline(&self) -> Time {
        // Once it has passed, the next view-change is what helps.
        let fix_at = if self.views.fix_at > self.now { self.views.fix_at } else { Time::NEVER };
        fix_at.min(self.views.new_view_at).min(self.oldest.deadline())
    }

    /// Does what is due of views. Called after everything that arrived was handled (P26).
    pub(super) fn view_timers(&mut self) {
        let now = self.now;
        if self.views.fix_at <= now && self.views.pending {
            self.try_new_view();
        }
        if self.views.new_view_at <= now {
            self.views.new_view_at = Time::NEVER;
            self.start_view_change(self.view.next());
        }
        self.oldest_timer();
    }
}

fn places(decision: &Decision) -> impl Iterator<Item = (SeqNum, Chosen)> + '_ {
    let first = decision.stable.0 + 1;
    decision.chosen.iter().enumerate().map(move |(i, chosen)| (SeqNum(first + i as u64), *chosen))
}

/// What the decision reads of a view-change.
fn member(v: &ViewChange) -> Member {
    let mut pre_prepared: BTreeMap<SeqNum, BTreeMap<Digest, View>> = BTreeMap::new();
    for entry in &v.pre_prepared {
        pre_prepared.entry(entry.n).or_default().insert(entry.digest, entry.view);
    }
    let prepared = v.prepared.iter().map(|entry| (entry.n, (entry.digest, entry.view))).collect();
    Member { replica: v.replica, stable: v.stable, prepared, pre_prepared }
}
