//! Threads of clients that work, and what is done when they have ended.

use std::collections::BTreeMap;
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::record::{Record, Timing};
use super::worker::Worker;
use crate::auth::Identity;
use crate::client::{Completion, RequestId, SessionError};
use crate::lab::load::drain;
use crate::lab::station::{Idle, Station, StationError, Target};
use crate::runtime::Stop;
use crate::services::kv::{Answer, Change, Op};
use crate::sim::Ask;
use crate::sim::linearizability::{Moment, Operation, Placed};
use crate::types::{ClientId, Position, SeqNum};

/// How much work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Client threads, each with an endpoint of its own.
    pub threads: usize,
    /// Workers of each: operations that it has under way.
    pub workers: usize,
    /// Decides what they do, but for what they answer to.
    pub seed: u64,
    /// All keys begin so: nobody else writes any that do. If it is not empty, they are deleted in the end.
    pub prefix: String,
}

/// What the threads share with the one that waits for them.
#[derive(Default)]
pub struct Progress {
    moments: AtomicU64,
    operations: AtomicU64,
    ordered: AtomicU64,
    stop: Stop,
}

impl Progress {
    /// None yet.
    pub fn new() -> Progress {
        Progress::default()
    }

    /// Operations answered so far.
    pub fn operations(&self) -> u64 {
        self.operations.load(SeqCst)
    }

    /// Those of them that were ordered.
    pub fn ordered(&self) -> u64 {
        self.ordered.load(SeqCst)
    }

    /// Begin no more operations.
    pub fn stop(&self) {
        self.stop.stop();
    }

    /// Moments of all threads are in one order: one that was taken before another began is smaller.
    fn moment(&self) -> Moment {
        Moment(self.moments.fetch_add(1, SeqCst) + 1)
    }
}

/// Why there is no record.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// An endpoint could not be made.
    #[error(transparent)]
    Station(#[from] StationError),
    /// A session could not be made.
    #[error("a session cannot be opened: {0}")]
    Session(#[from] SessionError),
    /// A final check had no answer.
    #[error("after the work, {what} had no answer: {error}")]
    Unanswered {
        /// What was asked.
        what: &'static str,
        /// What was said.
        error: String,
    },
}

/// How long what is under way at the end may take.
const DRAIN: Duration = Duration::from_secs(15);

/// Works until `progress` is stopped, and waits for the last answers.
///
/// # Errors
/// [`DemoError`].
pub fn work(job: &Job, target: &Target, identity: &Identity, progress: &Progress) -> Result<Record, DemoError> {
    thread::scope(|scope| {
        let start = |thread| move || one_thread(job, target, identity, progress, thread);
        let threads: Vec<_> = (0..job.threads).map(|thread| scope.spawn(start(thread))).collect();
        let mut whole = Record::default();
        for thread in threads {
            let record = thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?;
            whole.operations.extend(record.operations);
            whole.timings.extend(record.timings);
            whole.own.extend(record.own);
            whole.errors.extend(record.errors);
            whole.account.lost += record.account.lost;
            whole.account.duplicated += record.account.duplicated;
        }
        Ok(whole)
    })
}

/// An operation under way.
struct Begun {
    worker: usize,
    op: Bytes,
    invoked: Moment,
}

fn one_thread(
    job: &Job,
    target: &Target,
    identity: &Identity,
    progress: &Progress,
    thread: usize,
) -> Result<Record, DemoError> {
    let mut station = Station::open(target, identity, job.seed.wrapping_add(thread as u64))?;
    let session = station.endpoint().open_session(job.workers as u64)?;
    let id = |worker: usize| (thread * job.workers + worker) as u64;
    let mut workers: Vec<Worker> =
        (0..job.workers).map(|worker| Worker::new(id(worker), job.seed, &job.prefix)).collect();
    let mut ready: Vec<usize> = (0..job.workers).collect();
    let mut under_way: BTreeMap<RequestId, Begun> = BTreeMap::new();
    let mut record = Record::default();
    let mut idle = Idle::default();
    let mut deadline = None;
    loop {
        if progress.stop.is_stopped() {
            ready.clear();
            let until = *deadline.get_or_insert_with(|| Instant::now() + DRAIN);
            if under_way.is_empty() || Instant::now() > until {
                break;
            }
        }
        for worker in ready.drain(..) {
            let ask = workers[worker].ask();
            let invoked = progress.moment();
            let begun = Begun { worker, op: ask.op.clone(), invoked };
            let endpoint = station.endpoint();
            let Ask { op, read_only } = ask;
            let taken = if read_only { endpoint.query(op) } else { endpoint.submit(session, op) };
            under_way.insert(taken.expect("a worker has one request under way, and its place"), begun);
        }
        let moved = station.turn();
        while let Some(done) = station.endpoint().poll_completion() {
            let Some(begun) = under_way.remove(&done.request) else { continue };
            let worker = begun.worker;
            if let Some(answer) = record.complete(ClientId(id(worker)), begun, &done, progress) {
                if let Some(answer) = Answer::parse(&answer) {
                    workers[worker].learn(&answer);
                }
                ready.push(worker);
            }
        }
        if moved || !ready.is_empty() {
            idle.reset();
        } else {
            idle.pause(std::slice::from_mut(&mut station));
        }
    }
    record.errors.extend(under_way.values().map(|_| "no answer by the end".to_owned()));
    if under_way.is_empty() {
        drain(std::slice::from_mut(&mut station), |_| {});
    }
    for worker in workers {
        let (own, account) = worker.finish();
        record.own.extend(own);
        record.account.lost += account.lost;
        record.account.duplicated += account.duplicated;
    }
    Ok(record)
}

impl Record {
    /// Notes an operation's end. Its result, if it has one: who was not answered does not go on, for nobody knows
    /// whether it was executed.
    fn complete(&mut self, client: ClientId, begun: Begun, done: &Completion, progress: &Progress) -> Option<Bytes> {
        let completed = progress.moment();
        let result = match &done.result {
            Ok(result) => result.clone(),
            Err(error) => {
                self.errors.push(error.to_string());
                return None;
            }
        };
        let read = done.session.is_none();
        let placed = if read { Placed::Unordered } else { Placed::At(done.position) };
        let Begun { op, invoked, .. } = begun;
        self.operations.push(Operation { client, op, invoked, completed, placed, result: result.clone() });
        self.timings.push(Timing { submitted: done.submitted_at, done: done.done_at, read });
        progress.operations.fetch_add(1, SeqCst);
        progress.ordered.fetch_add(u64::from(!read), SeqCst);
        Some(result)
    }
}

/// After the work: finds out what the store holds of the workers' own keys, and goes on until the next checkpoint (one
/// every `interval` batches) covers everything. Deletes what it may. The last batch of the work.
///
/// # Errors
/// [`DemoError`].
pub fn close(
    record: &mut Record,
    job: &Job,
    target: &Target,
    identity: &Identity,
    interval: u64,
    progress: &Progress,
) -> Result<SeqNum, DemoError> {
    let worked = record.timings.len();
    let last = record.operations.iter().filter_map(|operation| match operation.placed {
        Placed::At(position) => Some(position),
        Placed::Unordered | Placed::UnorderedOn(_) => None,
    });
    let last = last.max().unwrap_or(Position(0)).batch();
    let mut station = Station::open(target, identity, job.seed.wrapping_add(1 << 32))?;
    let session = station.endpoint().open_session(1)?;
    let mut one = |what: &'static str, ask: Ask, record: &mut Record| -> Result<(Bytes, Position), DemoError> {
        let begun = Begun { worker: 0, op: ask.op.clone(), invoked: progress.moment() };
        let endpoint = station.endpoint();
        let taken = if ask.read_only { endpoint.query(ask.op) } else { endpoint.submit(session, ask.op) };
        taken.expect("one at a time");
        let mut idle = Idle::default();
        loop {
            if !station.turn() {
                idle.pause(std::slice::from_mut(&mut station));
            }
            if let Some(done) = station.endpoint().poll_completion() {
                let result = record.complete(ClientId(u64::MAX), begun, &done, progress);
                let error = || done.result.as_ref().err().map_or_else(String::new, ToString::to_string);
                return result
                    .map(|result| (result, done.position))
                    .ok_or_else(|| DemoError::Unanswered { what, error: error() });
            }
        }
    };
    let mut scan = |below: &str, record: &mut Record| {
        let (prefix, mut found) = (format!("{}{below}", job.prefix), Vec::<(Vec<u8>, Vec<u8>)>::new());
        loop {
            let after = found.last().map_or(&[][..], |(key, _)| key);
            let scan = Op::Scan { prefix: prefix.as_bytes(), after, limit: 256 }.encode().expect("a short scan");
            let (result, _) = one("a scan", Ask::query(scan), record)?;
            let Some(Answer::Entries(entries)) = Answer::parse(&result) else {
                return Err(DemoError::Unanswered { what: "a scan", error: "not the answer to a scan".into() });
            };
            found.extend(entries.iter().map(|(key, value)| (key.to_vec(), value.to_vec())));
            if !entries.more {
                return Ok(found);
            }
        }
    };
    record.found = scan("own/", record)?;
    let all = if job.prefix.is_empty() { Vec::new() } else { scan("", record)? };
    let end = format!("{}end", job.prefix);
    let sealed = last.0.div_ceil(interval) * interval;
    loop {
        let put = Op::Change(Change::Put { key: end.as_bytes(), value: b"of the work" }).encode().expect("a short put");
        let (_, position) = one("a put", Ask::ordered(put), record)?;
        // The checkpoint at n is made when n is committed: the batch after it says so.
        if position.batch().0 > sealed {
            break;
        }
    }
    if !job.prefix.is_empty() {
        for key in all.iter().map(|(key, _)| key.as_slice()).chain([end.as_bytes()]) {
            let delete = Op::Change(Change::Delete { key }).encode().expect("a short delete");
            one("a delete", Ask::ordered(delete), record)?;
        }
    }
    record.timings.truncate(worked);
    drain(std::slice::from_mut(&mut station), |_| {});
    Ok(last)
}
