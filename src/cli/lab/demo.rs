//! `castra demo`: four replicas, work, a primary that dies and comes back, another that stands still for a while, and what
//! became of every operation.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::blow::{self, Blow, Dealt, Digests, Fault, Gap, Striker, Victim, Worked};
use super::stage::Stage as _;
use super::{KEEPS_LOGS, Laboratory, Options, prompt, station_error};
use crate::cli::errors::Error;
use crate::cli::files;
use crate::cli::output::{self, line};
use crate::lab::Machine;
use crate::lab::demo::{DemoError, Job, Phase, PhaseFigures, Phases};
use crate::runtime::{Stop, StopOnSignals};
use crate::types::{ReplicaId, Time};

/// `castra demo`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  castra demo\nFour replicas run as processes of this machine, in a temporary folder, over UDP on \
                  loopback; no root, no file to edit. Clients put, get, compare-and-swap, delete and scan; the primary is \
                  killed by SIGKILL and started again, and when it has recovered the next primary is stopped by SIGSTOP \
                  for a while. Then every answer is checked. Exit status 0: nothing was lost, nothing was executed twice, \
                  the history is linearizable, and all four replicas take part and agree."
)]
pub struct Demo {
    /// Seconds of work beside the waiting for replicas that recover, from 1 to 45
    #[arg(long, default_value_t = 6.0)]
    pub seconds: f64,
    /// Client threads
    #[arg(long, default_value_t = 3)]
    pub clients: usize,
    /// A prompt instead: put, get, scan, kill, start, stop, cont, status
    #[arg(long, conflicts_with = "json")]
    pub interactive: bool,
    /// Print one JSON object, and nothing else
    #[arg(long)]
    pub json: bool,
}

/// Operations that each client has under way.
const WORKERS: usize = 4;
/// What is printed.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Report {
    ops: u64,
    ops_per_s: f64,
    lost: u64,
    duplicated: u64,
    /// Operations without an answer.
    unanswered: u64,
    linearizable: bool,
    /// Why not.
    violation: Option<String>,
    /// Whether all replicas have one digest at the checkpoint below; not, if there is none that covers all of the work.
    digests_equal: bool,
    digests_compared_at: Option<u64>,
    digest: Option<String>,
    digests_of: Vec<String>,
    seconds: f64,
    /// What happened, in order.
    blows: Vec<Gap>,
    /// The longest time without an ordered operation around any of them.
    gap_ms: f64,
    /// Views that were left.
    view_changes: u64,
    /// Whether all replicas, those that were killed and stopped too, take part again and hold all of the work.
    caught_up: bool,
    before: PhaseFigures,
    during: PhaseFigures,
    after: PhaseFigures,
    view: u64,
    replicas: usize,
    clients: usize,
    transport: String,
    optimised_build: bool,
    machine: Machine,
}

impl Report {
    fn is_good(&self) -> bool {
        self.lost + self.duplicated + self.unanswered == 0 && self.linearizable && self.digests_equal && self.caught_up
    }
}

/// Tells what happens: a bar on a terminal, plain lines elsewhere, nothing beside JSON.
struct Teller {
    quiet: bool,
    bar: Option<ProgressBar>,
}

impl Teller {
    fn new(quiet: bool, length: Duration) -> Teller {
        let bar = (!quiet && io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{bar:40} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)).with_style(style)
        });
        Teller { quiet, bar }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| output::note(text)),
            None => output::note(text),
        }
    }

    fn at(&self, elapsed: Duration, operations: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
            bar.set_message(format!("{operations} operations"));
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Runs the demo.
pub fn demo(args: &Demo) -> Result<(), Error> {
    if !(1.0..=45.0).contains(&args.seconds) {
        return Err(Error::Usage(format!("--seconds {}: from 1 to 45", args.seconds)));
    }
    if !(1..=64).contains(&args.clients) {
        return Err(Error::Usage(format!("--clients {}: from 1 to 64", args.clients)));
    }
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    let length = Duration::from_secs_f64(args.seconds);
    let teller = Teller::new(args.json || args.interactive, length);
    let begun = Instant::now();
    let mut lab = Laboratory::start(&Options::STORES, &stop)?;
    let first = lab.status(ReplicaId(0)).unwrap_or_default();
    teller.say(&format!(
        "{} replicas are up after {:.1} s: UDP on loopback over {}, r0 to r3 are processes {:?}",
        lab.cluster().size.n(),
        begun.elapsed().as_secs_f64(),
        first.transport,
        lab.pids()
    ));
    if args.interactive {
        prompt::run(&mut lab, &stop)?;
        lab.stop();
        return Ok(());
    }
    let report = run(args, &mut lab, &teller, &stop, first.transport)?;
    lab.stop();
    drop(teller);
    if args.json {
        output::json(&report)?
    } else {
        show(&report)?
    }
    match report.is_good() {
        true => Ok(()),
        false => Err(Error::to_report("the demo found a fault of castra: see above", "castra demo --json")),
    }
}

/// When the work began, and the blows.
struct Events {
    began: Time,
    dealt: Vec<Dealt>,
}

fn run(args: &Demo, lab: &mut Laboratory, teller: &Teller, stop: &Stop, transport: String) -> Result<Report, Error> {
    let job = Job { threads: args.clients, workers: WORKERS, seed: files::random_u64()?, prefix: String::new() };
    let begun = Instant::now();
    let tick = |operations| teller.at(begun.elapsed(), operations);
    let worked = blow::under_load(lab, &job, stop, &tick, |striker| events(args, teller, striker))?;
    teller.say(&format!("{} operations were answered; now every one of them is checked", worked.record.worked()));
    let digests = blow::digests(lab, stop, worked.last)?;
    Ok(report(args, lab, worked, digests, transport))
}

/// What happens while the clients work: the primary dies and comes back, and its successor stands still for a while.
fn events(args: &Demo, teller: &Teller, striker: &mut Striker<'_>) -> Result<Events, Error> {
    let share = |share: f64| Duration::from_secs_f64(args.seconds * share);
    // The clock starts with the first answer.
    striker.work(1, "at the start")?;
    let began = striker.clock.now();
    let mut dealt = Vec::new();
    for blow in [
        Blow { fault: Fault::Kill, victim: Victim::Primary, rest: share(0.3), hold: share(0.15) },
        Blow { fault: Fault::Stop, victim: Victim::Primary, rest: share(0.1), hold: share(0.15) },
    ] {
        let what = striker.strike(&blow, true)?;
        teller.say(&what.to_string());
        dealt.push(what);
    }
    striker.pass(share(0.3))?;
    Ok(Events { began, dealt })
}

pub(super) fn demo_error(error: DemoError) -> Error {
    match error {
        DemoError::Station(error) => station_error(error),
        DemoError::Session(_) | DemoError::Unanswered { .. } => {
            Error::Running { seen: error.to_string(), mend: KEEPS_LOGS.into() }
        }
    }
}

fn report(args: &Demo, lab: &Laboratory, worked: Worked<Events>, digests: Digests, transport: String) -> Report {
    let Worked { record, events: Events { began, dealt }, last, ended } = worked;
    let verdict = record.judge();
    let struck = dealt.first().map_or(ended, |dealt| dealt.at);
    let whole = dealt.last().and_then(|dealt| dealt.whole).unwrap_or(ended);
    let phases = Phases { began, struck, whole, ended };
    let [before, during, after] =
        [Phase::Before, Phase::During, Phase::After].map(|phase| record.figures(&phases, phase).rounded());
    let blows: Vec<Gap> = dealt.iter().map(|dealt| dealt.gap(&record)).collect();
    let statuses = lab.statuses();
    let caught_up = statuses.iter().all(|(_, status)| status.state == "normal" && status.executed >= last.0);
    let seconds = ended.since(began).as_secs_f64();
    // A cluster begins in view 0.
    let view = lab.view(None).0;
    Report {
        ops: record.worked(),
        ops_per_s: (record.worked() as f64 / seconds.max(1e-3)).round(),
        lost: verdict.lost,
        duplicated: verdict.duplicated,
        unanswered: verdict.errors.len() as u64,
        linearizable: verdict.linearizable.is_ok(),
        violation: verdict.linearizable.err().map(|violation| violation.to_string()),
        digests_equal: digests.equal,
        digests_compared_at: digests.at,
        digest: digests.digest,
        digests_of: digests.of,
        seconds: (seconds * 1e3).round() / 1e3,
        gap_ms: blows.iter().map(Gap::longest).fold(0.0, f64::max),
        blows,
        view_changes: view,
        caught_up: caught_up && statuses.len() == lab.cluster().size.n(),
        before,
        during,
        after,
        view,
        replicas: lab.cluster().size.n(),
        clients: args.clients,
        transport,
        optimised_build: !cfg!(debug_assertions),
        machine: Machine::here(),
    }
}

fn show(report: &Report) -> Result<(), Error> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "seconds", "operations", "ops/s", "reads p50", "p99 µs", "writes p50", "p99 µs"]);
    for (name, phase) in
        [("before", &report.before), ("one after the other away", &report.during), ("all back", &report.after)]
    {
        table.add_row([
            name.to_owned(),
            format!("{:.2}", phase.seconds),
            (phase.reads.ops + phase.writes.ops).to_string(),
            format!("{:.0}", phase.ops_per_s),
            phase.reads.latency_us.p50.to_string(),
            phase.reads.latency_us.p99.to_string(),
            phase.writes.latency_us.p50.to_string(),
            phase.writes.latency_us.p99.to_string(),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    line(table.trim_fmt())?;
    line("")?;
    let yes = |yes: bool| if yes { "yes" } else { "NO" };
    let at = report.digests_compared_at.map_or_else(|| "nowhere".to_owned(), |n| format!("batch {n}"));
    let short = report.digest.as_deref().map_or("", |digest| &digest[..digest.len().min(16)]);
    let mut facts = Table::new();
    facts.load_style(presets::NOTHING);
    facts.add_row(["operations", &format!("{}, {:.0} each second", report.ops, report.ops_per_s)]);
    facts.add_row(["longest silence", &format!("{} ms without an ordered operation", report.gap_ms)]);
    facts.add_row(["view changes", &report.view_changes.to_string()]);
    facts.add_row(["lost", &report.lost.to_string()]);
    facts.add_row(["executed twice", &report.duplicated.to_string()]);
    facts.add_row(["without an answer", &report.unanswered.to_string()]);
    facts.add_row(["linearizable", yes(report.linearizable)]);
    facts.add_row([
        "state digests equal",
        &format!("{}, of {} at {at}: {short}…", yes(report.digests_equal), report.digests_of.join(", ")),
    ]);
    facts.add_row(["all recovered and caught up", yes(report.caught_up)]);
    line(facts.trim_fmt())?;
    if let Some(violation) = &report.violation {
        line(format!("not linearizable: {violation}"))?;
    }
    if !report.optimised_build {
        output::note("this build is not optimised: `cargo run --release -- demo` is several times faster");
    }
    Ok(())
}
