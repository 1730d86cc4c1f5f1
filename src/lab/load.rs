//! Load: a number of client endpoints, each with as many requests outstanding as it may have, for a while.
//!
//! What is counted is certified completions within the measured window, by the clock that all endpoints share. CPU time
//! is read at the two ends of that window.

use std::collections::BTreeMap;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::latency::Latencies;
use super::station::{Idle, Station, StationError, Target};
use super::usage;
use crate::auth::Identity;
use crate::client::{Completion, Session, SessionError};
use crate::limits::SESSION_WINDOW_MAX;
use crate::runtime::Stop;
use crate::services::Null;
use crate::services::kv::{Change, Op};
use crate::sim::Rng;
use crate::types::Time;

/// The load to make.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Load {
    /// Client endpoints, each with its own socket and keys.
    pub clients: usize,
    /// Requests that each keeps outstanding.
    pub outstanding: usize,
    /// Sessions that each spreads them over.
    pub sessions: usize,
    /// Puts of random values into a key-value store, under so many keys; if absent, operations of the null service.
    pub keys: Option<u64>,
    /// Bytes of an operation; at least four. Of a value, if there are keys.
    pub request_bytes: usize,
    /// Bytes of a result.
    pub reply_bytes: usize,
    /// Queries instead of ordered operations.
    pub read_only: bool,
    /// Threads that the endpoints share.
    pub threads: usize,
    /// Work before the measured window.
    pub warm_up_seconds: f64,
    /// The measured window.
    pub seconds: f64,
}

impl Load {
    /// One sentence about the first value out of bounds.
    ///
    /// # Errors
    /// That sentence.
    pub fn validate(&self) -> Result<(), String> {
        let window = SESSION_WINDOW_MAX as usize;
        let within = |seconds: f64, least: f64| (least..=3_600.0).contains(&seconds);
        if self.clients == 0 || self.outstanding == 0 || self.sessions == 0 || self.threads == 0 {
            Err("clients, outstanding, sessions and threads are at least 1".into())
        } else if self.clients > LOAD_MAX || self.outstanding > LOAD_MAX {
            Err(format!("clients and outstanding are at most {LOAD_MAX}"))
        } else if self.sessions > self.outstanding {
            Err(format!("{} sessions have nothing to do with {} outstanding", self.sessions, self.outstanding))
        } else if !self.read_only && self.outstanding.div_ceil(self.sessions) > window {
            let need = self.outstanding.div_ceil(window);
            Err(format!(
                "a session has at most {window} requests outstanding: {} need {need} sessions",
                self.outstanding
            ))
        } else if self.keys.is_some_and(|keys| keys == 0 || self.read_only || self.reply_bytes != PUT_ANSWER) {
            Err(format!("puts are ordered, under at least one key, and their results have {PUT_ANSWER} byte"))
        } else if self.request_bytes.max(self.reply_bytes) > crate::limits::OPERATION_MAX {
            Err(format!("operations and results have at most {} bytes", crate::limits::OPERATION_MAX))
        } else if !within(self.seconds, 0.1) || !within(self.warm_up_seconds, 0.0) {
            Err("0.1 to 3600 seconds can be measured".into())
        } else {
            Ok(())
        }
    }
}

/// Bytes of the answer to a put.
pub const PUT_ANSWER: usize = 1;

/// Of anything that can be counted in a load.
const LOAD_MAX: usize = 1 << 16;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An endpoint could not be made.
    #[error(transparent)]
    Station(#[from] StationError),
    /// Not every endpoint had an answer in time; the last error that one had, if any.
    #[error("{answered} of {clients} clients had an answer within {:.0} s{}", .waited.as_secs_f64(), after_colon(.error))]
    NoAnswer {
        /// Endpoints with an answer.
        answered: usize,
        /// Endpoints.
        clients: usize,
        /// How long they had.
        waited: Duration,
        /// What one of them was told.
        error: Option<String>,
    },
    /// A process cannot be looked at.
    #[error("process {pid} cannot be looked at: {error}")]
    Process {
        /// Which.
        pid: u32,
        /// What the system said.
        error: std::io::Error,
    },
    /// A session could not be opened.
    #[error("a session cannot be opened: {0}")]
    Session(#[from] SessionError),
    /// Stopped before the end.
    #[error("interrupted")]
    Interrupted,
}

fn after_colon(error: &Option<String>) -> String {
    error.as_ref().map_or_else(String::new, |error| format!(": {error}"))
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Certified completions within the window.
    pub operations: u64,
    /// The window's length.
    pub window: Duration,
    /// Their latencies.
    pub latencies: Latencies,
    /// Requests that ended, over the whole run.
    pub completed: u64,
    /// Requests that ended without a result, over the whole run.
    pub errors: u64,
    /// Those by what was said, some of them.
    pub errors_said: BTreeMap<String, u64>,
    /// Results of another length than asked for, over the whole run.
    pub wrong: u64,
    /// Requests sent again, over the whole run.
    pub retransmissions: u64,
    /// Queries for which all replicas had to be asked, over the whole run.
    pub hedges: u64,
    /// Ordered requests for which the reserve was called (P53).
    pub summons: u64,
    /// Pieces of large requests that were sent to one replica again, over the whole run (P54).
    pub pieces_again: u64,
    /// Queries that had to be ordered, over the whole run.
    pub fallbacks: u64,
    /// The clients' packet path.
    pub transport: &'static str,
    /// CPU time of this process, which is the clients', within the window.
    pub cpu_clients: Duration,
    /// CPU time of each process that was named, within the window.
    pub cpu_replicas: Vec<Duration>,
    /// Resident bytes of each process that was named, at the end of the window.
    pub resident: Vec<u64>,
}

/// How long the first answers may take.
const FIRST_ANSWER: Duration = Duration::from_secs(30);
/// How long what is outstanding at the end may take.
const DRAIN: Duration = Duration::from_secs(5);
/// Different errors that are remembered.
const ERRORS_SAID_MAX: usize = 8;

/// What the threads share with the one that measures.
struct Board {
    clients_ready: AtomicUsize,
    failed: AtomicBool,
    /// The window; the far future until it is known.
    from: AtomicU64,
    to: AtomicU64,
    stop: Stop,
    last_error: std::sync::Mutex<Option<String>>,
}

/// What one thread counted.
#[derive(Default)]
struct Tally {
    latencies: Latencies,
    completed: u64,
    errors: u64,
    errors_said: BTreeMap<String, u64>,
    wrong: u64,
    retransmissions: u64,
    hedges: u64,
    summons: u64,
    pieces_again: u64,
    fallbacks: u64,
    transport: &'static str,
}

/// Puts `load` on `target`, as one client identity per endpoint (or fewer: they are used in turn). `replicas` are the
/// process ids to measure, none if they are elsewhere. Ends early if `interrupted` is stopped.
///
/// # Errors
/// [`LoadError`]; no figures then.
pub fn run(
    load: &Load,
    target: &Target,
    identities: &[Identity],
    replicas: &[u32],
    interrupted: &Stop,
) -> Result<Measured, LoadError> {
    let board = Board {
        clients_ready: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
        from: AtomicU64::new(u64::MAX),
        to: AtomicU64::new(u64::MAX),
        stop: Stop::new(),
        last_error: std::sync::Mutex::new(None),
    };
    let threads = load.threads.min(load.clients);
    thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|thread| {
                let board = &board;
                let mine = (thread..load.clients).step_by(threads);
                scope.spawn(move || {
                    let tally = drive(load, target, identities, mine, board);
                    if tally.is_err() {
                        board.failed.store(true, SeqCst);
                    }
                    tally
                })
            })
            .collect();
        // Whatever comes of it, the threads end.
        let window = measure(load, target, replicas, &board, interrupted);
        board.stop.stop();
        let mut whole = Tally::default();
        for thread in started {
            let tally = thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?;
            whole.latencies.add(&tally.latencies);
            whole.completed += tally.completed;
            whole.errors += tally.errors;
            whole.wrong += tally.wrong;
            whole.retransmissions += tally.retransmissions;
            whole.hedges += tally.hedges;
            whole.summons += tally.summons;
            whole.pieces_again += tally.pieces_again;
            whole.fallbacks += tally.fallbacks;
            whole.transport = tally.transport;
            for (said, count) in tally.errors_said {
                *whole.errors_said.entry(said).or_default() += count;
            }
        }
        let Window { length, cpu_clients, cpu_replicas, resident } = window?;
        Ok(Measured {
            operations: whole.latencies.len(),
            window: length,
            latencies: whole.latencies,
            completed: whole.completed,
            errors: whole.errors,
            errors_said: whole.errors_said,
            wrong: whole.wrong,
            retransmissions: whole.retransmissions,
            hedges: whole.hedges,
            summons: whole.summons,
            pieces_again: whole.pieces_again,
            fallbacks: whole.fallbacks,
            transport: whole.transport,
            cpu_clients,
            cpu_replicas,
            resident,
        })
    })
}

struct Window {
    length: Duration,
    cpu_clients: Duration,
    cpu_replicas: Vec<Duration>,
    resident: Vec<u64>,
}

/// CPU time of this process and of `replicas`.
fn cpu(replicas: &[u32]) -> Result<(Duration, Vec<Duration>), LoadError> {
    let of = |pid: u32| usage::cpu_time(pid).map_err(|error| LoadError::Process { pid, error });
    Ok((of(std::process::id())?, replicas.iter().map(|&pid| of(pid)).collect::<Result<_, _>>()?))
}

/// Waits for the first answers, warms up, and holds the window open.
fn measure(
    load: &Load,
    target: &Target,
    replicas: &[u32],
    board: &Board,
    interrupted: &Stop,
) -> Result<Window, LoadError> {
    let sleep = |duration: Duration, until: &dyn Fn() -> bool| {
        let end = Instant::now() + duration;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if interrupted.is_stopped() || board.failed.load(SeqCst) {
                return Err(LoadError::Interrupted);
            }
            if left.is_zero() || until() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(20)));
        }
    };
    let ready = || board.clients_ready.load(SeqCst);
    sleep(FIRST_ANSWER, &|| ready() == load.clients)?;
    if ready() < load.clients {
        let error = board.last_error.lock().map_or(None, |said| said.clone());
        return Err(LoadError::NoAnswer { answered: ready(), clients: load.clients, waited: FIRST_ANSWER, error });
    }
    sleep(Duration::from_secs_f64(load.warm_up_seconds), &|| false)?;
    let (clients_before, replicas_before) = cpu(replicas)?;
    let from = target.clock.now();
    board.from.store(from.0, SeqCst);
    sleep(Duration::from_secs_f64(load.seconds), &|| false)?;
    let to = target.clock.now();
    board.to.store(to.0, SeqCst);
    let (clients_after, replicas_after) = cpu(replicas)?;
    let resident = |&pid: &u32| usage::resident_bytes(pid).map_err(|error| LoadError::Process { pid, error });
    Ok(Window {
        length: to.since(from),
        cpu_clients: clients_after.saturating_sub(clients_before),
        cpu_replicas: replicas_after.iter().zip(&replicas_before).map(|(a, b)| a.saturating_sub(*b)).collect(),
        resident: replicas.iter().map(resident).collect::<Result<_, _>>()?,
    })
}

/// Makes the operations of a load.
struct Operations {
    null: Bytes,
    keys: Option<u64>,
    value: Vec<u8>,
    rng: Rng,
}

impl Operations {
    fn new(load: &Load, seed: u64) -> Operations {
        let null = Bytes::from(Null::op(load.request_bytes, load.reply_bytes));
        Operations { null, keys: load.keys, value: vec![0; load.request_bytes], rng: Rng::new(seed) }
    }

    fn next(&mut self) -> Bytes {
        let Some(keys) = self.keys else { return self.null.clone() };
        let key = format!("{:012}", self.rng.below(keys));
        self.rng.fill(&mut self.value);
        let put = Op::Change(Change::Put { key: key.as_bytes(), value: &self.value });
        put.encode().expect("small keys and values").into()
    }
}

/// One thread: its endpoints, in turn.
fn drive(
    load: &Load,
    target: &Target,
    identities: &[Identity],
    clients: impl Iterator<Item = usize>,
    board: &Board,
) -> Result<Tally, LoadError> {
    let endpoint_base = target.clock.now().0;
    let mut operations = Operations::new(load, endpoint_base);
    let (mut stations, mut sessions) = (Vec::new(), Vec::new());
    for client in clients {
        let identity = &identities[client % identities.len()];
        let mut station = Station::open(target, identity, endpoint_base.wrapping_add(client as u64))?;
        let mut own = Vec::new();
        if load.read_only {
            hand_in(&mut station, None, &mut operations, load.outstanding);
        } else {
            for s in 0..load.sessions {
                let window = (load.outstanding + s) / load.sessions;
                let session = station.endpoint().open_session(window as u64)?;
                hand_in(&mut station, Some(session), &mut operations, window);
                own.push(session);
            }
        }
        stations.push(station);
        sessions.push(own);
    }
    let mut tally = Tally { transport: stations.first().map_or("", Station::transport_name), ..Tally::default() };
    let mut answered = vec![false; stations.len()];
    let mut idle = Idle::default();
    while !board.stop.is_stopped() {
        let mut moved = false;
        for (station, answered) in stations.iter_mut().zip(&mut answered) {
            moved |= station.turn();
            let mut freed = false;
            while let Some(done) = station.endpoint().poll_completion() {
                freed = true;
                tally.count(load, &done, board);
                if done.result.is_ok() && !*answered {
                    *answered = true;
                    board.clients_ready.fetch_add(1, SeqCst);
                }
                hand_in(station, done.session.filter(|_| !load.read_only), &mut operations, 1);
            }
            if freed {
                station.flush();
            }
        }
        if moved {
            idle.reset();
        } else {
            idle.pause(&mut stations);
        }
    }
    drain(&mut stations, |done| tally.count(load, done, board));
    for station in &mut stations {
        let stats = station.endpoint().stats();
        tally.completed += stats.completed;
        tally.retransmissions += stats.retransmissions;
        tally.hedges += stats.hedges;
        tally.summons += stats.summons;
        tally.pieces_again += stats.pieces_again;
        tally.fallbacks += stats.fallbacks;
    }
    Ok(tally)
}

/// Hands in `count` requests.
fn hand_in(station: &mut Station, session: Option<Session>, operations: &mut Operations, count: usize) {
    for _ in 0..count {
        let taken = match session {
            Some(session) => station.endpoint().submit(session, operations.next()),
            None => station.endpoint().query(operations.next()),
        };
        taken.expect("the load was validated, and each request takes the place of one that completed");
    }
}

/// Takes the last answers, and closes the sessions.
pub(super) fn drain(stations: &mut [Station], mut each: impl FnMut(&Completion)) {
    let until = Instant::now() + DRAIN;
    for station in stations.iter_mut() {
        station.endpoint().close_all();
    }
    let mut idle = Idle::default();
    while Instant::now() < until {
        let (mut moved, mut left) = (false, 0);
        for station in stations.iter_mut() {
            moved |= station.turn();
            while let Some(done) = station.endpoint().poll_completion() {
                each(&done);
            }
            left += station.endpoint().outstanding();
        }
        if left == 0 {
            return;
        }
        if moved { idle.reset() } else { idle.pause(stations) }
    }
}

impl Tally {
    fn count(&mut self, load: &Load, done: &Completion, board: &Board) {
        let window = Time(board.from.load(SeqCst))..Time(board.to.load(SeqCst));
        match &done.result {
            Ok(result) => {
                self.wrong += u64::from(result.len() != load.reply_bytes);
                if window.contains(&done.done_at) {
                    self.latencies.record(done.latency());
                }
            }
            Err(error) => {
                self.errors += 1;
                let said = error.to_string();
                if let Ok(mut last) = board.last_error.lock() {
                    *last = Some(said.clone());
                }
                if self.errors_said.len() < ERRORS_SAID_MAX || self.errors_said.contains_key(&said) {
                    *self.errors_said.entry(said).or_default() += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_bounded_with_one_sentence_each() {
        let good = Load {
            clients: 4,
            outstanding: 256,
            sessions: 1,
            keys: None,
            request_bytes: 8,
            reply_bytes: 8,
            read_only: false,
            threads: 1,
            warm_up_seconds: 0.5,
            seconds: 1.0,
        };
        assert_eq!(good.validate(), Ok(()));
        let bad = |change: &dyn Fn(&mut Load)| {
            let mut load = good.clone();
            change(&mut load);
            load.validate().unwrap_err()
        };
        bad(&|l| l.clients = 0);
        bad(&|l| l.sessions = 257);
        bad(&|l| l.seconds = f64::NAN);
        bad(&|l| l.reply_bytes = 2 << 20);
        bad(&|l| l.keys = Some(10));
        bad(&|l| (l.keys, l.reply_bytes) = (Some(0), PUT_ANSWER));
        bad(&|l| (l.keys, l.reply_bytes, l.read_only) = (Some(10), PUT_ANSWER, true));
        let puts = Load { keys: Some(10), reply_bytes: PUT_ANSWER, ..good.clone() };
        assert_eq!(puts.validate(), Ok(()));
        let said = bad(&|l| l.outstanding = 2_049);
        assert_eq!(said, "a session has at most 1024 requests outstanding: 2049 need 3 sessions");
        let queries = Load { outstanding: 2_049, read_only: true, ..good };
        assert_eq!(queries.validate(), Ok(()));
    }
}
