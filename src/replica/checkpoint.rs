//! The checkpoint role: sealed pages in, a signed digest out; and the signatures of others checked, off the critical
//! path.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::auth::{Signer, Verified};
use crate::state::{Digester, Page, Progress, RegionId, Sealed, Shipment};
use crate::types::{Digest, SeqNum};
use crate::wire::SignedCheckpoint;

/// Work for the checkpoint role.
#[derive(Debug)]
pub enum Task {
    /// A checkpoint was sealed; its pages follow.
    Sealed(Sealed),
    /// Pages of it.
    Pages(Shipment),
    /// A checkpoint that someone claims to have signed.
    Claim(SignedCheckpoint),
}

/// What comes of it.
#[derive(Debug)]
pub enum Finding {
    /// A checkpoint with a good signature, our own included.
    Checkpoint(Verified<SignedCheckpoint>),
    /// Our state's root at `n`.
    Root(SeqNum, Digest),
    /// Pages that are no longer needed, for [`crate::state::State::give_back`].
    Done(Vec<(RegionId, Arc<Page>)>),
}

/// The checkpoint role of one replica.
pub struct Checkpointer {
    keys: Signer,
    digester: Digester,
    claims: VecDeque<SignedCheckpoint>,
    bad_signatures: u64,
}

/// Claims that may wait; more than all replicas can have in flight for a log window of checkpoints. Others are dropped,
/// and come again by STATUS.
const CLAIMS_MAX: usize = 1_024;

impl Checkpointer {
    /// It signs with `keys`, and has seen no state yet.
    pub fn new(keys: Signer) -> Checkpointer {
        Checkpointer { keys, digester: Digester::new(), claims: VecDeque::new(), bad_signatures: 0 }
    }

    /// Takes work; nothing costly is done here.
    pub fn handle(&mut self, task: Task) {
        match task {
            Task::Sealed(sealed) => self.digester.begin(sealed),
            Task::Pages(shipment) => self.digester.accept(shipment),
            Task::Claim(checkpoint) if self.claims.len() < CLAIMS_MAX => self.claims.push_back(checkpoint),
            Task::Claim(_) => {}
        }
    }

    /// Whether [`Checkpointer::step`] has something to do.
    pub fn is_idle(&self) -> bool {
        self.claims.is_empty() && self.digester.is_idle()
    }

    /// Does a slice of work: one signature, or about `pages` pages. Appends what came of it.
    pub fn step(&mut self, pages: usize, found: &mut Vec<Finding>) {
        if let Some(claim) = self.claims.pop_front() {
            match self.keys.verify_checkpoint(claim) {
                Ok(checkpoint) => found.push(Finding::Checkpoint(checkpoint)),
                Err(_) => self.bad_signatures += 1,
            }
            return;
        }
        let progress = self.digester.step(pages);
        let done: Vec<_> = self.digester.take_done().collect();
        if !done.is_empty() {
            found.push(Finding::Done(done));
        }
        match progress {
            Progress::Idle | Progress::Working => {}
            Progress::Done(checkpoint) => {
                found.push(Finding::Root(checkpoint.n, checkpoint.root));
                found.push(Finding::Checkpoint(self.keys.sign_checkpoint(checkpoint.n, checkpoint.root)));
            }
        }
    }

    /// Claims whose signature was wrong.
    pub fn bad_signatures(&self) -> u64 {
        self.bad_signatures
    }
}
