//! The checkpoint role: sealed pages in, a signed digest out; signatures of others checked, off the critical path; and
//! state transfer, on both sides.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::claims::Claims;
use super::transfer::{Divergence, Fetch, FetchStats, Found, Serve};
use crate::auth::{Signer, Verified};
use crate::limits::REPLICAS_MAX;
use crate::protocol;
use crate::state::{Digester, Keep, Mirror, Page, Progress, RegionId, Sealed, Shipment, Snapshot};
use crate::types::{Digest, ReplicaId, SeqNum, Time};
use crate::wire::{Claim, Message, NewView, StateAnswer, ViewChange};

/// Work for the checkpoint role.
#[derive(Debug)]
pub enum Task {
    /// A checkpoint was sealed; its pages follow.
    Sealed(Sealed),
    /// Pages of it.
    Pages(Shipment),
    /// A statement that someone claims to have signed, and who handed it on.
    Claim(ReplicaId, Claim),
    /// A checkpoint is stable.
    Stable(SeqNum),
    /// A view-change of our own, to be signed.
    ViewChange(ViewChange),
    /// A new-view of our own, to be signed.
    NewView(NewView),
    /// Execution stands still, and everything that it sealed came before: fetch the state at `n`.
    Transfer {
        /// The checkpoint.
        n: SeqNum,
        /// Its certified root.
        root: Digest,
        /// The own root there is another (P25).
        diverged: bool,
    },
    /// Which pages differ from those of others, who signed these roots at `n` (P25)?
    Compare {
        /// The checkpoint.
        n: SeqNum,
        /// The others, and their roots.
        others: Vec<(ReplicaId, Digest)>,
    },
    /// A FETCH-STATE or STATE of another replica.
    Message(Verified<Message>),
}

/// What comes of it.
#[derive(Debug)]
pub enum Finding {
    /// A statement with a good signature, our own included.
    Claim(Verified<Claim>),
    /// What was sealed at `n` is digested.
    Root(SeqNum, Digest),
    /// Pages that are no longer needed, for [`crate::state::State::give_back`].
    Done(Vec<(RegionId, Arc<Page>)>),
    /// To be sent.
    Send(ReplicaId, Message),
    /// The transfer under way moved on.
    Fetched,
    /// No replica serves that checkpoint any more.
    Absent(SeqNum),
    /// The certified state at `n`: for execution, and then for agreement.
    Complete {
        /// The checkpoint.
        n: SeqNum,
        /// Its root.
        root: Digest,
        /// Its pages, by region.
        pages: [Vec<Arc<Page>>; 2],
    },
}

/// The checkpoint role of one replica.
pub struct Checkpointer {
    keys: Signer,
    interval: u64,
    digester: Digester,
    own: VecDeque<Task>,
    claims: Claims,
    bad_signatures: BTreeMap<ReplicaId, u64>,
    serve: Serve,
    fetch: Fetch,
    answers: VecDeque<(ReplicaId, StateAnswer)>,
    /// A transfer that begins when everything sealed is digested.
    target: Option<(SeqNum, Digest, bool)>,
    progress: FetchStats,
    comparisons: VecDeque<(SeqNum, ReplicaId, Digest)>,
    comparison: Option<Comparison>,
    differences: Vec<(ReplicaId, Divergence)>,
}

/// A look at where the state of one peer differs from ours.
struct Comparison {
    peer: ReplicaId,
    fetch: Fetch,
    mirror: Mirror,
    until: Time,
}

/// So long a peer may take.
const COMPARISON_PATIENCE: Duration = Duration::from_secs(5);

/// Answers that may wait: more than are asked for at a time.
const ANSWERS_MAX: usize = 256;

impl Checkpointer {
    /// It signs with `keys`, and has seen no state yet. Of checkpoints before the last, so many that peers find the one
    /// that they fetch are kept, within `pages_max` pages.
    pub fn new(keys: Signer, config: &protocol::Config, pages_max: usize, now: Time) -> Checkpointer {
        let checkpoints = (config.log_window / config.checkpoint_interval) as usize + 2;
        Checkpointer {
            keys,
            interval: config.checkpoint_interval,
            digester: Digester::new(Keep { checkpoints, pages: pages_max }),
            own: VecDeque::new(),
            claims: Claims::default(),
            bad_signatures: BTreeMap::new(),
            serve: Serve::default(),
            fetch: Fetch::new(config.size.others(config.me), now.0),
            answers: VecDeque::new(),
            target: None,
            progress: FetchStats::default(),
            comparisons: VecDeque::new(),
            comparison: None,
            differences: Vec::new(),
        }
    }

    /// Takes work; nothing costly is done here.
    pub fn handle(&mut self, task: Task) {
        match task {
            Task::Sealed(sealed) => self.digester.begin(sealed),
            Task::Pages(shipment) => self.digester.accept(shipment),
            Task::Claim(from, claim) => self.claims.push(from, claim),
            Task::Stable(n) => self.claims.forget(n),
            Task::ViewChange(_) | Task::NewView(_) => self.own.push_back(task),
            Task::Transfer { n, root, diverged } => self.target = Some((n, root, diverged)),
            Task::Compare { n, others } => {
                // There is one split only; more of its members may become known.
                self.comparisons.extend(others.into_iter().map(|(peer, root)| (n, peer, root)));
                self.comparisons.truncate(REPLICAS_MAX);
            }
            Task::Message(message) => {
                let Some(from) = message.replica() else { return };
                match message.into_inner() {
                    Message::FetchState(request) => self.serve.accept(from, request),
                    Message::State(answer) if self.answers.len() < ANSWERS_MAX => {
                        self.answers.push_back((from, answer));
                    }
                    Message::State(_) => {}
                    Message::PrePrepare(_)
                    | Message::Prepare(_)
                    | Message::Commit(_)
                    | Message::Committed(_)
                    | Message::Checkpoint(_)
                    | Message::Stable(_)
                    | Message::Status(_)
                    | Message::FetchBatch(_)
                    | Message::Batch(..)
                    | Message::FetchPack(_)
                    | Message::Relay(_)
                    | Message::ViewChange(_)
                    | Message::NewView(_)
                    | Message::FetchViewChange(_)
                    | Message::QueryStable(_)
                    | Message::StableAnswer(_)
                    | Message::Answered(_) => unreachable!("goes to agreement"),
                }
            }
        }
    }

    /// Whether [`Checkpointer::step`] has something to do at once; besides, it is due at
    /// [`deadline`](Checkpointer::deadline).
    pub fn is_idle(&self) -> bool {
        self.own.is_empty() && self.answers.is_empty() && self.digester.is_idle() && !self.may_begin()
    }

    /// When [`Checkpointer::step`] is due though nothing new came; in the past if it is now.
    pub fn deadline(&self) -> Time {
        let comparison = self.comparison.as_ref().map_or(Time::NEVER, |c| c.fetch.deadline().min(c.until));
        self.claims.due().min(self.serve.deadline()).min(self.fetch.deadline()).min(comparison)
    }

    fn may_begin(&self) -> bool {
        let compares = !self.comparisons.is_empty() && self.comparison.is_none() && !self.fetch.is_active();
        (self.target.is_some() || compares) && self.digester.is_done()
    }

    /// Does a slice of work: one signature, one answer to a peer, a few of the answers of peers, or about `pages` pages.
    /// Appends what came of it.
    pub fn step(&mut self, now: Time, pages: usize, found: &mut Vec<Finding>) {
        match self.own.pop_front() {
            Some(Task::ViewChange(own)) => return found.push(Finding::Claim(self.keys.sign_view_change(own))),
            Some(Task::NewView(own)) => return found.push(Finding::Claim(self.keys.sign_new_view(own))),
            Some(_) => unreachable!("only our own statements wait here"),
            None => {}
        }
        if let Some((from, claim)) = self.claims.pop(now) {
            match self.keys.verify_claim(claim) {
                Ok(claim) => found.push(Finding::Claim(claim)),
                Err(_) => *self.bad_signatures.entry(from).or_default() += 1,
            }
        }
        let digester = Some(&mut self.digester).filter(|_| !self.fetch.is_active());
        if let Some((to, answer)) = self.serve.answer(now, digester) {
            found.push(Finding::Send(to, Message::State(answer)));
        }
        self.compare(now, found);
        self.fetch(now, found);
        let progress = self.digester.step(pages);
        let done: Vec<_> = self.digester.take_done().collect();
        if !done.is_empty() {
            found.push(Finding::Done(done));
        }
        match progress {
            Progress::Idle | Progress::Working => {}
            Progress::Done(checkpoint) => {
                found.push(Finding::Root(checkpoint.n, checkpoint.root));
                // A transfer has the state digested where it finds it; that is no checkpoint (P22).
                if checkpoint.n.0.is_multiple_of(self.interval) && checkpoint.n > SeqNum(0) {
                    found.push(Finding::Claim(self.keys.sign_checkpoint(checkpoint.n, checkpoint.root)));
                }
            }
        }
    }

    /// A step of a comparison. Answers that are not for it stay for [`fetch`](Checkpointer::fetch).
    fn compare(&mut self, now: Time, found: &mut Vec<Finding>) {
        if self.comparison.is_none()
            && self.digester.is_done()
            && !self.fetch.is_active()
            && let Some((n, peer, root)) = self.comparisons.pop_front()
        {
            let mut mirror = self.digester.mirror().clone();
            let fetch = Fetch::compare(peer, now.0, &mut mirror, n, root);
            self.comparison = Some(Comparison { peer, fetch, mirror, until: now + COMPARISON_PATIENCE });
        }
        let Some(Comparison { peer, fetch, mirror, until }) = &mut self.comparison else { return };
        for (from, answer) in &self.answers {
            fetch.answer(now, mirror, *from, answer.clone());
        }
        let mut results = Vec::new();
        fetch.poll(now, mirror, &mut results);
        let mut done = *until <= now;
        for result in results {
            match result {
                Found::Ask(peer, request) => found.push(Finding::Send(peer, Message::FetchState(request))),
                Found::Compared => done = true,
                Found::Absent(_) | Found::Complete { .. } => {}
            }
        }
        if done {
            self.differences.retain(|(id, _)| id != peer);
            self.differences.extend(fetch.divergence().map(|divergence| (*peer, divergence.clone())));
            self.differences.sort_by_key(|(id, _)| *id);
            self.comparison = None;
        }
    }

    fn fetch(&mut self, now: Time, found: &mut Vec<Finding>) {
        if self.digester.is_done()
            && let Some((n, root, diverged)) = self.target.take()
        {
            self.fetch.begin(self.digester.mirror_mut(), n, root, diverged);
        }
        if !self.fetch.is_active() {
            self.answers.clear();
            return;
        }
        let mirror = self.digester.mirror_mut();
        for (from, answer) in self.answers.drain(..) {
            self.fetch.answer(now, mirror, from, answer);
        }
        let mut results = Vec::new();
        self.fetch.poll(now, mirror, &mut results);
        for result in results {
            found.push(match result {
                Found::Ask(peer, request) => Finding::Send(peer, Message::FetchState(request)),
                Found::Absent(n) => Finding::Absent(n),
                Found::Compared => continue,
                Found::Complete { n, root, pages } => Finding::Complete { n, root, pages },
            });
        }
        let stats = self.fetch.stats();
        if (stats.pages, stats.groups) != (self.progress.pages, self.progress.groups) {
            found.push(Finding::Fetched);
        }
        self.progress = stats;
    }

    /// The service's state at checkpoint `n`, if it is kept.
    pub fn snapshot(&self, n: SeqNum) -> Option<Snapshot> {
        self.digester.mirror().snapshot(n)
    }

    /// Claims whose signature or proof was wrong, by who handed them on: a correct replica hands on what it checked.
    pub fn bad_signatures(&self) -> &BTreeMap<ReplicaId, u64> {
        &self.bad_signatures
    }

    /// Claims for which there was no room.
    pub fn overflowed(&self) -> u64 {
        self.claims.overflowed()
    }

    /// What was moved by transfers to this replica.
    pub fn fetched(&self) -> FetchStats {
        self.fetch.stats()
    }

    /// What was wrong here when this replica last diverged (P25).
    pub fn divergence(&self) -> Option<&Divergence> {
        self.fetch.divergence()
    }

    /// What differs from the states of others where no digest could be certified (P25).
    pub fn differences(&self) -> &[(ReplicaId, Divergence)] {
        &self.differences
    }

    /// What `peer` sent in transfers that no correct replica sends.
    pub fn misdeeds(&self, peer: ReplicaId) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.fetch.misdeeds(peer)
    }

    /// Requests of peers dropped, because too many of theirs waited.
    pub fn requests_dropped(&self) -> u64 {
        self.serve.dropped()
    }
}
