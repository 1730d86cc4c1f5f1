//! `castra demo`: four replicas, work, a replica that dies and comes back, and what became of every operation.

use std::io::{self, IsTerminal as _};
use std::thread;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{KEEPS_LOGS, Laboratory, Options, prompt, station_error};
use crate::cli::config::{ServiceName, TransportKind};
use crate::cli::errors::Error;
use crate::cli::files;
use crate::cli::output::{self, line};
use crate::lab::Machine;
use crate::lab::demo::{self, DemoError, Job, Phase, PhaseFigures, Phases, Progress, Record, Verdict};
use crate::runtime::{Stop, StopOnSignals};
use crate::types::{ReplicaId, SeqNum};

/// `castra demo`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  castra demo\nFour replicas run as processes of this machine, in a temporary folder, over UDP on \
                  loopback; no root, no file to edit. Clients put, get, compare-and-swap, delete and scan; half-way a backup \
                  is killed by SIGKILL, and later started again. Then every answer is checked. Exit status 0: nothing was \
                  lost, nothing was executed twice, the history is linearizable, the replicas agree."
)]
pub struct Demo {
    /// Seconds of work, from 1 to 45
    #[arg(long, default_value_t = 6.0)]
    pub seconds: f64,
    /// Client threads
    #[arg(long, default_value_t = 3)]
    pub clients: usize,
    /// A prompt instead: put, get, scan, kill, stop, start, status
    #[arg(long, conflicts_with = "json")]
    pub interactive: bool,
    /// Print one JSON object, and nothing else
    #[arg(long)]
    pub json: bool,
}

/// Operations that each client has under way.
const WORKERS: usize = 4;
/// A request without an answer for this long is an error.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The demo looks at its progress so often.
const LOOK: Duration = Duration::from_millis(20);

/// The replica that was killed and started again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Restarted {
    id: String,
    state: String,
    boot: u64,
    note: &'static str,
}

/// What a restarted replica does in this version.
pub(super) const FORGETFUL: &str = "it lost its state and its votes with its memory, so it only listens and votes for nothing: by itself \
                         it cannot contradict what it said before. It rejoins when state transfer is there (next version)";

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
    /// Whether all replicas that took part to the end have one digest at the checkpoint below; not, if there is none
    /// that covers all of the work.
    digests_equal: bool,
    digests_compared_at: Option<u64>,
    digest: Option<String>,
    digests_of: Vec<String>,
    seconds: f64,
    killed: String,
    /// The longest time without an ordered operation, from the kill on.
    gap_ms: f64,
    /// Views that were left.
    view_changes: u64,
    /// Whether the replica that was killed takes part again and holds all of the work.
    caught_up: bool,
    restarted_replica: Restarted,
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
        self.lost + self.duplicated + self.unanswered == 0 && self.linearizable && self.digests_equal
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
    let options = Options { f: 1, service: ServiceName::Kv, open: false, transport: TransportKind::Auto };
    let mut lab = Laboratory::start(&options, &stop)?;
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
    let shown = Shown { args, length, teller: &teller, stop: &stop };
    let report = shown.run(&mut lab, first.transport)?;
    lab.stop();
    drop(teller);
    if args.json {
        output::json(&report)?
    } else {
        show(&report)?
    }
    match report.is_good() {
        true => Ok(()),
        false => Err(Error::Running {
            seen: "the demo found a fault of castra: see above".into(),
            mend: "please report it with the output of `castra demo --json`".into(),
        }),
    }
}

struct Shown<'a> {
    args: &'a Demo,
    length: Duration,
    teller: &'a Teller,
    stop: &'a Stop,
}

impl Shown<'_> {
    fn run(&self, lab: &mut Laboratory, transport: String) -> Result<Report, Error> {
        let (target, identity) = (lab.target(TransportKind::Auto, TIMEOUT), lab.identity().clone());
        let job = Job { threads: self.args.clients, workers: WORKERS, seed: files::random_u64()? };
        let progress = Progress::new();
        let clock = target.clock;
        let (mut record, phases, victim) = thread::scope(|scope| {
            let workers = scope.spawn(|| demo::work(&job, &target, &identity, &progress));
            let events = self.events(lab, &progress, || clock.now(), || workers.is_finished());
            // Whatever happened, the workers end.
            progress.stop();
            let record = workers.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(demo_error)?;
            let (mut phases, victim) = events?;
            phases.ended = clock.now();
            Ok::<_, Error>((record, phases, victim))
        })?;
        self.teller.say(&format!("{} operations were answered; now every one of them is checked", record.worked()));
        let interval = lab.cluster().file.protocol.checkpoint_interval;
        let seed = job.seed.wrapping_add(1 << 32);
        let last = demo::close(&mut record, &target, &identity, seed, interval, &progress).map_err(demo_error)?;
        let verdict = record.judge();
        let digests = self.digests(lab, victim, last)?;
        let reborn = lab.status(victim).unwrap_or_default();
        let caught_up = reborn.state == "normal" && reborn.executed >= last.0;
        Ok(report(self.args, lab, &record, &phases, verdict, digests, victim, reborn, caught_up, transport))
    }

    /// What happens while the clients work: half-way a backup dies, and after three quarters it is started again.
    fn events(
        &self,
        lab: &mut Laboratory,
        progress: &Progress,
        now: impl Fn() -> crate::types::Time,
        ended: impl Fn() -> bool,
    ) -> Result<(Phases, ReplicaId), Error> {
        // The clock starts with the first answer.
        self.until(progress, &ended, |_| progress.operations() > 0)?;
        let (began, started) = (now(), Instant::now());
        let sleep = |share: f64| self.until(progress, &ended, move |length| started.elapsed() >= length.mul_f64(share));
        sleep(0.5)?;
        let view = lab.status(ReplicaId(0)).map_or(0, |status| status.view);
        let size = lab.cluster().size;
        let primary = size.primary(crate::types::View(view));
        let victim = size.replicas().filter(|&id| id != primary).last().unwrap_or(ReplicaId(0));
        let killed = now();
        lab.kill(victim);
        self.teller.say(&format!("{victim}, a backup, is killed by SIGKILL; the others go on"));
        sleep(0.75)?;
        lab.restart(victim, self.stop)?;
        let restarted = now();
        self.teller.say(&format!("{victim} is started again: {FORGETFUL}"));
        sleep(1.0)?;
        Ok((Phases { began, killed, restarted, ended: restarted }, victim))
    }

    fn until(
        &self,
        progress: &Progress,
        ended: &impl Fn() -> bool,
        done: impl Fn(Duration) -> bool,
    ) -> Result<(), Error> {
        let (waits, mut last) = (Instant::now(), (progress.operations(), Instant::now()));
        while !done(self.length) {
            if self.stop.is_stopped() {
                return Err(Error::Interrupted);
            }
            // Workers end early only if they failed; they say how.
            if ended() {
                return Ok(());
            }
            if progress.operations() != last.0 {
                last = (progress.operations(), Instant::now());
            }
            if last.1.elapsed() > 2 * TIMEOUT {
                return Err(Error::Running {
                    seen: format!("no operation was answered for {} s", last.1.elapsed().as_secs()),
                    mend: KEEPS_LOGS.into(),
                });
            }
            self.teller.at(waits.elapsed(), progress.operations());
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until every replica but `victim` has a checkpoint that covers batch `last`, and compares them at the last
    /// that all have: (n, digest, whose, equal).
    fn digests(&self, lab: &mut Laboratory, victim: ReplicaId, last: SeqNum) -> Result<Digests, Error> {
        let live: Vec<ReplicaId> = lab.cluster().size.others(victim).collect();
        let covers = |status: &crate::cli::status::ReplicaStatus| {
            status.checkpoints.keys().next_back().is_some_and(|&n| n >= last.0)
        };
        lab.wait(&live, self.stop, "reach the checkpoint after the work", covers)?;
        let statuses: Vec<_> = lab.statuses().into_iter().filter(|(id, _)| *id != victim).collect();
        let common = statuses.first().and_then(|(_, first)| {
            let everywhere = |n: &&u64| statuses.iter().all(|(_, status)| status.checkpoints.contains_key(n));
            first.checkpoints.keys().rev().find(everywhere).copied().filter(|&n| n >= last.0)
        });
        let digest = common.and_then(|n| statuses.first()?.1.checkpoints.get(&n).cloned());
        let same = |n: &u64| statuses.iter().all(|(_, status)| status.checkpoints.get(n) == digest.as_ref());
        Ok(Digests {
            equal: statuses.len() == live.len() && common.as_ref().is_some_and(same),
            at: common,
            digest,
            of: statuses.iter().map(|(id, _)| id.to_string()).collect(),
        })
    }
}

struct Digests {
    equal: bool,
    at: Option<u64>,
    digest: Option<String>,
    of: Vec<String>,
}

pub(super) fn demo_error(error: DemoError) -> Error {
    match error {
        DemoError::Station(error) => station_error(error),
        DemoError::Session(_) | DemoError::Unanswered { .. } => {
            Error::Running { seen: error.to_string(), mend: KEEPS_LOGS.into() }
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "it only gathers")]
fn report(
    args: &Demo,
    lab: &Laboratory,
    record: &Record,
    phases: &Phases,
    verdict: Verdict,
    digests: Digests,
    victim: ReplicaId,
    reborn: crate::cli::status::ReplicaStatus,
    caught_up: bool,
    transport: String,
) -> Report {
    let [before, during, after] =
        [Phase::Before, Phase::During, Phase::After].map(|phase| record.figures(phases, phase).rounded());
    let seconds = phases.ended.since(phases.began).as_secs_f64();
    let ops = record.worked();
    // A cluster begins in view 0.
    let view = lab.view(None).0;
    Report {
        ops,
        ops_per_s: (ops as f64 / seconds.max(1e-3)).round(),
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
        killed: victim.to_string(),
        gap_ms: (record.gap(phases.killed, phases.ended, true).as_secs_f64() * 1e4).round() / 10.0,
        view_changes: view,
        caught_up,
        restarted_replica: Restarted {
            id: victim.to_string(),
            state: reborn.state,
            boot: reborn.boot,
            note: FORGETFUL,
        },
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
        [("four replicas", &report.before), ("one is dead", &report.during), ("it is back", &report.after)]
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
    facts.add_row(["longest silence", &format!("{} ms without an ordered operation, from the kill on", report.gap_ms)]);
    facts.add_row(["view changes", &report.view_changes.to_string()]);
    facts.add_row(["lost", &report.lost.to_string()]);
    facts.add_row(["executed twice", &report.duplicated.to_string()]);
    facts.add_row(["without an answer", &report.unanswered.to_string()]);
    facts.add_row(["linearizable", yes(report.linearizable)]);
    facts.add_row([
        "state digests equal",
        &format!("{}, of {} at {at}: {short}…", yes(report.digests_equal), report.digests_of.join(", ")),
    ]);
    facts.add_row([
        "the replica that was killed",
        &format!("{} is up again, {}", report.restarted_replica.id, report.restarted_replica.state),
    ]);
    line(facts.trim_fmt())?;
    if let Some(violation) = &report.violation {
        line(format!("not linearizable: {violation}"))?;
    }
    if !report.optimised_build {
        output::note("this build is not optimised: `cargo run --release -- demo` is several times faster");
    }
    Ok(())
}
