//! Questions to a running replica, answered by its roles between two turns.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::replica::transfer::{Divergence, FetchStats};
use crate::replica::{Foreign, StatusReport};
use crate::transport::Wake;
use crate::types::{Digest, ReplicaId, SeqNum};

/// How long a question waits for its answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the roles have answered.
#[derive(Default)]
pub(super) struct Parts {
    /// By agreement, or by a fused replica as a whole.
    pub(super) report: Option<StatusReport>,
    /// By the network role, and by each for clients: what was dropped, by reason.
    pub(super) rejects: Vec<Vec<(&'static str, u64)>>,
    /// By the network role: wrong MACs, by replica.
    pub(super) bad_macs: Vec<u64>,
    /// By the network role: what each replica sent that no correct one sends.
    pub(super) misdeeds: Vec<Vec<(&'static str, u64)>>,
    /// By these: the last datagram of another cluster.
    pub(super) foreign: Vec<Option<Foreign>>,
    /// By the execution role: pages of the service's and the library's region.
    pub(super) pages: Option<(u32, u32)>,
    /// By the checkpoint role: roots of the last checkpoints.
    pub(super) roots: VecDeque<(SeqNum, Digest)>,
    /// By the checkpoint role.
    pub(super) bad_signatures: Option<u64>,
    /// By the checkpoint role: requests of peers that fetch a state, dropped.
    pub(super) requests_dropped: u64,
    /// By the checkpoint role: what was fetched from others.
    pub(super) fetched: FetchStats,
    /// By the checkpoint role: what was wrong here.
    pub(super) divergence: Option<Divergence>,
    /// By the checkpoint role: what differs from the states of others.
    pub(super) differences: Vec<(ReplicaId, Divergence)>,
    /// By the checkpoint role: wrong parts of states, by replica.
    pub(super) wrong_parts: Vec<Vec<(&'static str, u64)>>,
    /// Why the replica can never go on.
    pub(super) stopped: Option<String>,
    answered: Vec<u64>,
}

impl Parts {
    /// One report of all parts.
    fn assemble(&self) -> Option<StatusReport> {
        let mut report = self.report.clone()?;
        let mut rejects: BTreeMap<&'static str, u64> = BTreeMap::new();
        for &(reason, count) in self.rejects.iter().flatten() {
            *rejects.entry(reason).or_default() += count;
        }
        report.rejects.extend(rejects);
        report.rejects.extend(self.bad_signatures.map(|count| ("bad_statement_signature", count)));
        for peer in &mut report.peers {
            let id = usize::from(peer.id.0);
            peer.bad_macs += self.bad_macs.get(id).copied().unwrap_or(0);
            peer.misdeeds.extend(self.misdeeds.get(id).into_iter().flatten());
        }
        for peer in &mut report.peers {
            peer.misdeeds.extend(self.wrong_parts.get(usize::from(peer.id.0)).into_iter().flatten());
        }
        if self.bad_signatures.is_some() {
            report.rejects.push(("fetch_state_quota", self.requests_dropped));
            report.fetched = self.fetched;
            report.divergence.clone_from(&self.divergence);
            report.differences.clone_from(&self.differences);
        }
        let last = self.foreign.iter().flatten().max_by_key(|foreign| foreign.at);
        report.foreign = report.foreign.or(last.copied());
        report.checkpoints.extend(&self.roots);
        if let Some((service, library)) = self.pages {
            (report.service_pages, report.library_pages) = (service, library);
        }
        if report.stopped.is_none() {
            report.stopped.clone_from(&self.stopped);
        }
        Some(report)
    }
}

/// Where questions are asked.
pub(super) struct Board {
    asked: AtomicU64,
    parts: Mutex<Parts>,
    answered: Condvar,
    bells: Vec<Arc<dyn Wake>>,
}

impl Board {
    /// For so many roles, which these bells wake; so many of them are network roles.
    pub(super) fn new(roles: usize, networks: usize, bells: Vec<Arc<dyn Wake>>) -> Board {
        let (rejects, foreign) = (vec![Vec::new(); networks], vec![None; networks]);
        let parts = Parts { rejects, foreign, answered: vec![0; roles], ..Parts::default() };
        Board { asked: AtomicU64::new(0), parts: Mutex::new(parts), answered: Condvar::new(), bells }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks all roles.
    pub(super) fn ask(&self) -> Option<StatusReport> {
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.bells.iter().for_each(|bell| bell.wake());
        let missing = |parts: &mut Parts| parts.answered.iter().any(|&answered| answered < ticket);
        let waited = self.answered.wait_timeout_while(self.parts(), PATIENCE, missing);
        let (mut parts, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if missing(&mut parts) { None } else { parts.assemble() }
    }

    /// Why the replica can never go on.
    pub(super) fn stopped(&self) -> Option<String> {
        self.parts().stopped.clone()
    }
}

/// One role's side of the board. Whatever happens to the role, nobody waits for it after its end.
pub(super) struct Answering {
    board: Arc<Board>,
    role: usize,
    seen: Cell<u64>,
}

impl Answering {
    /// For the `role`-th role.
    pub(super) fn new(board: Arc<Board>, role: usize) -> Answering {
        Answering { board, role, seen: Cell::new(0) }
    }

    /// Answers if there is a question. Costs one load if not.
    pub(super) fn if_asked(&self, answer: impl FnOnce(&mut Parts)) {
        let asked = self.board.asked.load(Ordering::Relaxed);
        if asked != self.seen.replace(asked) {
            self.answer(asked, answer);
        }
    }

    /// Answers all questions to come.
    pub(super) fn for_good(&self, answer: impl FnOnce(&mut Parts)) {
        self.answer(u64::MAX, answer);
    }

    fn answer(&self, ticket: u64, answer: impl FnOnce(&mut Parts)) {
        let mut parts = self.board.parts();
        answer(&mut parts);
        let answered = &mut parts.answered[self.role];
        *answered = (*answered).max(ticket);
        drop(parts);
        self.board.answered.notify_all();
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.answer(u64::MAX, |_| {});
    }
}
