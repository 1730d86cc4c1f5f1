//! A service's check of its own state, run in a replica's process when an operator asks.
//!
//! `GET /inspection/N` on the status port starts it on the state at checkpoint N, on a thread of its own, and says so (202);
//! asked again, it gives the report once it is done. So neither execution nor `castra status` waits for a check, however
//! long it takes; and there is one at a time, however often it is asked for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};

use super::http::Answer;
use crate::execution::Inspection;
use crate::runtime::{Unseen, Viewer};
use crate::state::Snapshot;
use crate::types::SeqNum;

/// Where it is asked for: the number of a checkpoint follows.
pub const PATH: &str = "/inspection/";

/// What one replica found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InspectionReport {
    /// `r0`.
    pub id: String,
    /// The cluster's id.
    pub cluster: String,
    /// The checkpoint whose state was checked.
    pub n: u64,
    /// The digest of that state.
    pub root: String,
    /// What there is, by name.
    pub counts: Vec<(String, u64)>,
    /// One sentence for each thing that is wrong.
    pub faults: Vec<String>,
}

/// What there is of a check.
#[derive(Default)]
enum Check {
    #[default]
    None,
    UnderWay,
    Done(InspectionReport),
    /// The service has no check.
    Unable,
}

/// Runs checks, one at a time.
pub struct Inspector {
    id: String,
    cluster: String,
    viewer: Viewer,
    check: Mutex<Check>,
}

impl Inspector {
    /// Of the replica that `viewer` looks at.
    pub fn new(id: String, cluster: String, viewer: Viewer) -> Inspector {
        Inspector { id, cluster, viewer, check: Mutex::default() }
    }

    fn check(&self) -> MutexGuard<'_, Check> {
        self.check.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers for the checkpoint of number `text`.
    pub fn answer(self: &Arc<Inspector>, text: &str) -> Answer {
        let Ok(n) = text.parse() else { return Answer::error("404 Not Found", "GET /inspection/N") };
        let under_way = || Answer::error("202 Accepted", "it is under way: ask again");
        let mut check = self.check();
        match std::mem::take(&mut *check) {
            Check::UnderWay => {
                *check = Check::UnderWay;
                return under_way();
            }
            // Given once: who asks later wants the pages looked at again.
            Check::Done(report) if report.n == n => {
                return match serde_json::to_vec(&report) {
                    Ok(body) => Answer::of("application/json", body),
                    Err(_) => Answer::error("500 Internal Server Error", "the report cannot be written"),
                };
            }
            Check::Unable => return Answer::error("501 Not Implemented", "the service has no check"),
            Check::None | Check::Done(_) => {}
        }
        let snapshot = match self.viewer.snapshot(SeqNum(n)) {
            Ok(snapshot) => snapshot,
            Err(Unseen::NotHeld) => return Answer::error("410 Gone", "that checkpoint is not held here"),
            Err(Unseen::Silent) => return Answer::error("503 Service Unavailable", "the replica does not answer"),
        };
        let inspector = self.clone();
        let run = move || {
            let done = inspector.inspect(&snapshot);
            *inspector.check() = done;
        };
        match thread::Builder::new().name("castra-inspect".to_owned()).spawn(run) {
            Ok(_) => {
                *check = Check::UnderWay;
                under_way()
            }
            Err(_) => Answer::error("503 Service Unavailable", "no thread can be started"),
        }
    }

    fn inspect(&self, snapshot: &Snapshot) -> Check {
        // The state may be damaged, and the service need not expect that.
        let found = catch_unwind(AssertUnwindSafe(|| self.viewer.inspect(snapshot.service())));
        let mut found = match found {
            Ok(Some(found)) => found,
            Ok(None) => return Check::Unable,
            Err(_) => {
                let text = "the check panicked: see the replica's log".to_owned();
                Inspection { counts: Vec::new(), faults: vec![text] }
            }
        };
        if !snapshot.is_intact() {
            found.faults.push("the pages are not those that were digested: memory has changed by itself".to_owned());
        }
        let checkpoint = snapshot.checkpoint();
        Check::Done(InspectionReport {
            id: self.id.clone(),
            cluster: self.cluster.clone(),
            n: checkpoint.n.0,
            root: checkpoint.root.to_string(),
            counts: found.counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
            faults: found.faults,
        })
    }
}
