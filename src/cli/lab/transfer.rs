//! `castra bench transfer`: a replica misses changes of a large state, further than the log reaches, and fetches it while
//! clients work. What do they feel, and how much is moved?

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::blow::{self, Striker, ms};
use super::stage::Stage as _;
use super::{KEEPS_LOGS, Laboratory, Options};
use crate::cli::connect::{self, Connected};
use crate::cli::errors::Error;
use crate::cli::files;
use crate::cli::output::{self, line, note};
use crate::lab::Machine;
use crate::lab::demo::{Job, Record};
use crate::limits::PAGE;
use crate::runtime::client::Pending;
use crate::runtime::{Stop, StopOnSignals};
use crate::services::kv::{Change, Op};
use crate::sim::Rng;
use crate::types::{ReplicaId, Time};

/// `castra bench transfer`
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  castra bench transfer                       256 MiB, of which 1 % differs\n\
                  Four replicas run as processes of this machine and hold a key-value store of that size. A backup is stopped \
                  by SIGSTOP; so many of the values, scattered, are changed, and work goes on until the log does not reach \
                  back to it; then it goes on and fetches what differs. Clients work all the time, and every answer is \
                  checked. Build with --release first.")]
pub struct TransferArgs {
    /// Size of the state
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub state: usize,
    /// How much of it is changed while the replica is away, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    pub differs: f64,
    /// Client threads
    #[arg(long, default_value_t = 3)]
    pub clients: usize,
    /// Operations that each client has under way
    #[arg(long, default_value_t = 4)]
    pub outstanding: usize,
    /// Seconds that are measured before the replica is stopped, and while it is
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Print one JSON object, and nothing else
    #[arg(long)]
    pub json: bool,
}

/// Bytes of a value: with its key it fills about a page.
const VALUE: usize = 4_000;
/// Values of one operation.
const BATCH: usize = 8;
/// Operations under way while the store is filled.
const FILLING: usize = 32;
/// Log windows that the others go on for: what the stopped replica's socket still holds takes it further than the log.
const BEYOND: u64 = 8;
/// How long any of it may take.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
struct Rates {
    /// Operations per second with all replicas up.
    before: f64,
    /// While one was stopped.
    without: f64,
    /// While it fetched the state, from SIGCONT until it took part again.
    during: f64,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Report {
    state_mib: f64,
    /// Values that were changed.
    changed: usize,
    /// Pages that differed, and were fetched.
    pages: u64,
    /// Of pages and tree nodes, datagram headers not counted.
    bytes: u64,
    bytes_per_differing: f64,
    /// From SIGCONT until it took part again.
    transfer_ms: f64,
    ops_per_s: Rates,
    /// Of the rate before, what was left while it fetched.
    share: f64,
    /// Longest time without an ordered operation in that time.
    gap_ms: f64,
    operations: u64,
    lost: u64,
    duplicated: u64,
    unanswered: u64,
    linearizable: bool,
    digests_equal: bool,
    optimised_build: bool,
    machine: Machine,
}

/// Measures.
pub fn transfer(args: &TransferArgs) -> Result<(), Error> {
    for (name, value, most) in
        [("state", args.state, 2_048), ("clients", args.clients, 64), ("outstanding", args.outstanding, 256)]
    {
        if !(1..=most).contains(&value) {
            return Err(Error::Usage(format!("--{name} {value}: from 1 to {most}")));
        }
    }
    if !(0.01..=100.0).contains(&args.differs) || !(0.5..=60.0).contains(&args.seconds) {
        return Err(Error::Usage("--differs is from 0.01 to 100 percent, --seconds from 0.5 to 60".into()));
    }
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    let say = |text: String| {
        if !args.json {
            note(text)
        }
    };
    let mut lab = Laboratory::start(&Options::STORES, &stop)?;
    let dir = lab.dir();
    let mut store =
        Store { connected: connect::connect(&dir, Some(PATIENCE))?, under_way: VecDeque::new(), rng: Rng::new(1) };
    let begun = Instant::now();
    let values = fill(args, &lab, &mut store, &stop)?;
    say(format!("{values} values, {} MiB, after {:.1} s", args.state, begun.elapsed().as_secs_f64()));
    let changed = ((values as f64 * args.differs / 100.0).ceil() as usize).clamp(1, values);
    let job =
        Job { threads: args.clients, workers: args.outstanding, seed: files::random_u64()?, prefix: String::new() };
    let worked = blow::under_load(&mut lab, &job, &stop, &|_| (), |striker| {
        let scattered = (0..changed).map(|i| i * values / changed);
        miss_and_fetch(args, striker, &mut store, scattered)
    })?;
    let digests = blow::digests(&mut lab, &stop, worked.last)?;
    let state_mib = lab.status(ReplicaId(0)).map_or(0, |status| status.service_bytes) as f64 / f64::from(1 << 20);
    lab.stop();
    let report = report(&worked.record, &worked.events, changed, state_mib, digests.equal);
    match args.json {
        true => output::json(&report)?,
        false => show(&report)?,
    }
    match report.lost + report.duplicated + report.unanswered == 0 && report.linearizable && report.digests_equal {
        true => Ok(()),
        false => Err(Error::Running {
            seen: "operations were lost, doubled, not answered or wrong, or the replicas disagree: see above".into(),
            mend: "please report it with the output of `castra bench transfer --json`".into(),
        }),
    }
}

/// A client that fills the store.
struct Store {
    connected: Connected,
    under_way: VecDeque<Pending>,
    rng: Rng,
}

impl Store {
    /// Gives new values to these.
    fn put(&mut self, which: &[usize]) -> Result<(), Error> {
        let keys: Vec<String> = which.iter().map(|i| format!("state/{i:08}")).collect();
        let mut values = vec![[0; VALUE]; which.len()];
        values.iter_mut().for_each(|value| self.rng.fill(value));
        let puts = keys.iter().zip(&values).map(|(key, value)| Change::Put { key: key.as_bytes(), value });
        let op = Op::Batch(puts.collect()).encode().expect("a batch within bounds");
        if self.under_way.len() >= FILLING {
            self.settle(FILLING - 1)?;
        }
        let pending = self.connected.client.submit(op);
        self.under_way.push_back(pending.map_err(|error| connect::failed("fill", PATIENCE, error))?);
        Ok(())
    }

    /// Waits until no more than `left` are under way.
    fn settle(&mut self, left: usize) -> Result<(), Error> {
        while self.under_way.len() > left
            && let Some(pending) = self.under_way.pop_front()
        {
            pending.wait().map_err(|error| connect::failed("fill", PATIENCE, error))?;
        }
        Ok(())
    }
}

/// Fills the store to the size wanted; how many values that took.
fn fill(args: &TransferArgs, lab: &Laboratory, store: &mut Store, stop: &Stop) -> Result<usize, Error> {
    let (wanted, mut values) = ((args.state as u64) << 20, 0);
    let size = || lab.status(ReplicaId(0)).map_or(0, |status| status.service_bytes);
    loop {
        let have = size();
        if have >= wanted {
            return Ok(values);
        }
        // Half of what seems to be missing, so that it ends close by.
        let missing = usize::try_from(wanted - have).unwrap_or(usize::MAX) / PAGE;
        for _ in 0..(missing / 2).div_ceil(BATCH).max(1) {
            if stop.is_stopped() {
                return Err(Error::Interrupted);
            }
            let which: Vec<usize> = (values..values + BATCH).collect();
            store.put(&which)?;
            values += BATCH;
        }
        store.settle(0)?;
    }
}

/// When what happened, and what it moved.
struct Fetched {
    before: (Time, Time),
    without: (Time, Time),
    during: (Time, Time),
    pages: u64,
    bytes: u64,
}

fn miss_and_fetch(
    args: &TransferArgs,
    striker: &mut Striker<'_>,
    store: &mut Store,
    changed: impl Iterator<Item = usize>,
) -> Result<Fetched, Error> {
    let length = Duration::from_secs_f64(args.seconds);
    striker.work(1_000, "at the start")?;
    let before = striker.clock.now();
    striker.pass(length)?;
    let before = (before, striker.clock.now());

    let size = striker.stage.cluster().size;
    let primary = usize::from(size.primary(striker.stage.view(None)).0);
    let away = ReplicaId(((primary + size.n() - 1) % size.n()) as u8);
    let then = striker.stage.status(away).unwrap_or_default();
    striker.stage.pause(away)?;
    let window = striker.stage.cluster().file.protocol.log_window;
    let other = ReplicaId(primary as u8);
    let beyond = |striker: &mut Striker<'_>, n: u64| {
        until(striker, "the log goes on", |striker| striker.stage.status(other).is_some_and(|status| status.stable > n))
    };
    // Only the state can bring what is changed now: it lies further on than the socket can take the replica, and the log
    // will not reach back to it.
    beyond(striker, then.executed + BEYOND * window)?;
    let changed: Vec<usize> = changed.collect();
    changed.chunks(BATCH).try_for_each(|which| store.put(which))?;
    store.settle(0)?;
    let now = striker.stage.status(other).map_or(0, |status| status.executed);
    beyond(striker, now + window)?;
    let without = striker.clock.now();
    striker.pass(length)?;
    let without = (without, striker.clock.now());

    let during = striker.clock.now();
    striker.stage.go_on(away)?;
    let transfers =
        |status: &crate::cli::status::ReplicaStatus| status.agreement.get("transfers").copied().unwrap_or(0);
    let interval = striker.stage.cluster().file.protocol.checkpoint_interval;
    until(striker, "it fetches the state", |striker| {
        let ahead = striker.stage.status(other).map_or(u64::MAX, |status| status.executed);
        let back = |status: crate::cli::status::ReplicaStatus| {
            let near = status.executed.saturating_add(interval) >= ahead;
            transfers(&status) > transfers(&then) && status.state == "normal" && near
        };
        striker.stage.status(away).is_some_and(back)
    })?;
    let during = (during, striker.clock.now());
    let now = striker.stage.status(away).unwrap_or_default();
    striker.pass(length / 2)?;
    let (pages, bytes) = (now.fetched_pages - then.fetched_pages, now.fetched_bytes - then.fetched_bytes);
    Ok(Fetched { before, without, during, pages, bytes })
}

fn until(striker: &mut Striker<'_>, what: &str, done: impl Fn(&mut Striker<'_>) -> bool) -> Result<(), Error> {
    let begun = Instant::now();
    while !done(striker) {
        if begun.elapsed() > PATIENCE {
            let seen = format!("after {} s one still waits until {what}", PATIENCE.as_secs());
            return Err(Error::Running { seen, mend: KEEPS_LOGS.into() });
        }
        striker.pass(Duration::from_millis(5))?;
    }
    Ok(())
}

fn report(record: &Record, fetched: &Fetched, changed: usize, state_mib: f64, digests_equal: bool) -> Report {
    let verdict = record.judge();
    let rate = |(from, to): (Time, Time)| record.answered(from, to) as f64 / to.since(from).as_secs_f64().max(1e-3);
    let (before, during) = (rate(fetched.before), rate(fetched.during));
    let round = |value: f64| (value * 1e3).round() / 1e3;
    Report {
        state_mib: round(state_mib),
        changed,
        pages: fetched.pages,
        bytes: fetched.bytes,
        bytes_per_differing: round(fetched.bytes as f64 / (fetched.pages.max(1) as f64 * PAGE as f64)),
        transfer_ms: ms(fetched.during.1.since(fetched.during.0)),
        ops_per_s: Rates { before: before.round(), without: rate(fetched.without).round(), during: during.round() },
        share: round(during / before.max(1.0)),
        gap_ms: ms(record.gap(fetched.during.0, fetched.during.1, true)),
        operations: record.worked(),
        lost: verdict.lost,
        duplicated: verdict.duplicated,
        unanswered: verdict.errors.len() as u64,
        linearizable: verdict.linearizable.is_ok(),
        digests_equal,
        optimised_build: !cfg!(debug_assertions),
        machine: Machine::here(),
    }
}

fn show(report: &Report) -> Result<(), Error> {
    line(format!("machine   {}", report.machine.line()))?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let rates = report.ops_per_s;
    for (name, value, unit) in [
        ("state", format!("{:.0}", report.state_mib), "MiB"),
        ("differed", report.pages.to_string(), "pages"),
        ("moved", report.bytes.to_string(), "bytes of pages and tree nodes"),
        ("", report.bytes_per_differing.to_string(), "times the pages that differed"),
        ("took", report.transfer_ms.to_string(), "ms, until it took part again"),
        ("with all", format!("{:.0}", rates.before), "operations/s"),
        ("without it", format!("{:.0}", rates.without), "operations/s"),
        ("while it fetched", format!("{:.0}", rates.during), "operations/s"),
        ("", format!("{:.0}", report.share * 100.0), "% of the rate with all"),
        ("longest silence", report.gap_ms.to_string(), "ms, while it fetched"),
    ] {
        table.add_row([name, &value, unit]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    line(table.trim_fmt())?;
    let yes = |yes: bool| if yes { "yes" } else { "NO" };
    line(format!(
        "{} operations; lost {}, executed twice {}, without an answer {}, linearizable: {}, state digests equal: {}",
        report.operations,
        report.lost,
        report.duplicated,
        report.unanswered,
        yes(report.linearizable),
        yes(report.digests_equal)
    ))
}
