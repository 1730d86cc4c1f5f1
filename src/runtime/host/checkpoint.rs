//! The checkpoint role of a split replica: digests, signatures, states that are fetched and given.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::board::{Answering, Parts};
use super::split::{Found, KEPT, Returned};
use super::viewer::Views;
use crate::replica::{Checkpointer, Finding, Task};
use crate::runtime::ring::{Inlet, Outlet};
use crate::runtime::role::{Role, Turn};
use crate::types::{ClusterSize, Digest, ReplicaId, SeqNum, Time};
use crate::wire::Message;

/// Pages hashed in one turn of the checkpoint role, which has a core to itself.
const PAGES_MAX: usize = 256;

/// The checkpoint role.
pub(super) struct CheckpointRole {
    pub(super) checkpointer: Checkpointer,
    pub(super) sealed: Inlet<Task>,
    pub(super) claims: Inlet<Task>,
    /// Our own statements, to be signed.
    pub(super) own: Inlet<Task>,
    pub(super) to_agreement: Outlet<Found>,
    pub(super) to_network: Outlet<(ReplicaId, Message)>,
    pub(super) to_execution: Outlet<Returned>,
    pub(super) found: Vec<Finding>,
    pub(super) size: ClusterSize,
    pub(super) roots: VecDeque<(SeqNum, Digest)>,
    pub(super) digested: Arc<AtomicU64>,
    pub(super) answering: Answering,
    pub(super) views: Views,
}

impl CheckpointRole {
    pub(super) fn account(&self, parts: &mut Parts) {
        parts.roots.clone_from(&self.roots);
        parts.bad_signatures = Some(self.checkpointer.bad_signatures().values().sum());
        parts.requests_dropped = self.checkpointer.requests_dropped();
        parts.fetched = self.checkpointer.fetched();
        parts.divergence = self.checkpointer.divergence().cloned();
        parts.differences = self.checkpointer.differences().to_vec();
        parts.wrong_parts = self.size.replicas().map(|id| self.checkpointer.misdeeds(id).collect()).collect();
    }

    fn is_clogged(&self) -> bool {
        self.to_agreement.is_clogged() || self.to_execution.is_clogged() || self.to_network.is_clogged()
    }

    fn note_root(&mut self, n: SeqNum, root: Digest) {
        if self.roots.len() == KEPT {
            self.roots.pop_front();
        }
        self.roots.push_back((n, root));
    }
}

impl Role for CheckpointRole {
    fn turn(&mut self, now: Time) -> Turn {
        let mut turn = Turn::Idle;
        for inlet in [&mut self.own, &mut self.sealed, &mut self.claims] {
            while let Some(task) = inlet.pop() {
                self.checkpointer.handle(task);
                turn = Turn::Busy;
            }
        }
        if !self.is_clogged() && (!self.checkpointer.is_idle() || self.checkpointer.deadline() <= now) {
            self.checkpointer.step(now, PAGES_MAX, &mut self.found);
            turn = Turn::Busy;
        }
        for finding in std::mem::take(&mut self.found) {
            match finding {
                Finding::Claim(claim) => self.to_agreement.push(Found::Claim(claim)),
                Finding::Root(n, root) => {
                    self.note_root(n, root);
                    self.digested.fetch_add(1, Ordering::Release);
                    // It may wait for this, whether pages come with it or not.
                    self.to_execution.push(Vec::new());
                }
                Finding::Done(pages) => self.to_execution.push(pages),
                Finding::Send(to, message) => self.to_network.push((to, message)),
                Finding::Fetched => self.to_agreement.push(Found::Fetched),
                Finding::Absent(n) => self.to_agreement.push(Found::Absent(n)),
                Finding::Complete { n, root, pages } => {
                    self.note_root(n, root);
                    self.to_agreement.push(Found::Complete(n, pages));
                }
            }
        }
        self.to_agreement.flush();
        self.to_execution.flush();
        self.to_network.flush();
        self.answering.if_asked(|parts| self.account(parts));
        self.views.show(|n| self.checkpointer.snapshot(n));
        if turn == Turn::Idle && self.is_clogged() { Turn::Clogged } else { turn }
    }

    fn deadline(&self) -> Time {
        self.checkpointer.deadline()
    }
}
