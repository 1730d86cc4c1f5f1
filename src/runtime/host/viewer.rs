//! Looks at the state of a running replica at a checkpoint, on the thread of whoever asks.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::execution::{Inspection, Service};
use crate::state::{Region, Snapshot};
use crate::transport::Wake;
use crate::types::SeqNum;

/// How long a question waits for its answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who asks for which checkpoint.
struct Asked {
    n: SeqNum,
    tell: mpsc::Sender<Option<Snapshot>>,
}

/// Hands out views of a replica's state. Execution does not wait for whoever looks.
#[derive(Clone)]
pub struct Viewer {
    ask: mpsc::Sender<Asked>,
    bell: Arc<dyn Wake>,
    inspect: fn(&Region) -> Option<Inspection>,
}

/// Why there is nothing to see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unseen {
    /// The replica does not hold that checkpoint: not yet, or not any more.
    NotHeld,
    /// The replica does not answer within a second, or has ended.
    Silent,
}

/// The side of the role that holds the checkpoints.
pub(super) struct Views(mpsc::Receiver<Asked>);

/// Both sides. `bell` wakes the role.
pub(super) fn viewer<S: Service>(bell: Arc<dyn Wake>) -> (Viewer, Views) {
    let (ask, asked) = mpsc::channel();
    (Viewer { ask, bell, inspect: S::inspect }, Views(asked))
}

impl Viewer {
    /// The service's state at checkpoint `n`.
    ///
    /// # Errors
    /// If the replica does not hold it, or does not answer.
    pub fn snapshot(&self, n: SeqNum) -> Result<Snapshot, Unseen> {
        let (tell, told) = mpsc::channel();
        self.ask.send(Asked { n, tell }).map_err(|_| Unseen::Silent)?;
        self.bell.wake();
        told.recv_timeout(PATIENCE).map_err(|_| Unseen::Silent)?.ok_or(Unseen::NotHeld)
    }

    /// What the service finds in `state`, on the calling thread; `None` if it has no check.
    pub fn inspect(&self, state: &Region) -> Option<Inspection> {
        (self.inspect)(state)
    }
}

impl Views {
    /// Answers who asked.
    pub(super) fn show(&self, snapshot: impl Fn(SeqNum) -> Option<Snapshot>) {
        for Asked { n, tell } in self.0.try_iter() {
            // Whoever lost patience is gone.
            let _ = tell.send(snapshot(n));
        }
    }
}
