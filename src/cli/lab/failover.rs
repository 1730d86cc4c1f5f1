//! `castra bench failover`: the primary is killed or stopped under load, again and again. How long was nothing answered,
//! and was anything lost?

use std::thread;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::demo::demo_error;
use super::{KEEPS_LOGS, LOOK, Laboratory, Options};
use crate::cli::config::{ServiceName, TransportKind};
use crate::cli::errors::Error;
use crate::cli::files;
use crate::cli::output::{self, line, note};
use crate::lab::Machine;
use crate::lab::demo::{self, Job, Progress};
use crate::runtime::{Clock, Stop, StopOnSignals};
use crate::types::{ReplicaId, Time};

/// `castra bench failover`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  castra bench failover                       twenty kills of the primary, each after the last is healed\n  \
                  castra bench failover --how stop            SIGSTOP, later SIGCONT\n  \
                  castra bench failover --fresh --kills 5     a new cluster for each kill\n\
                  Four replicas run as processes of this machine, with the default configuration; clients work all the \
                  time, and every answer is checked as `castra demo` does. A gap is the longest time in which no ordered \
                  operation was answered. Build with --release first."
)]
pub struct FailoverArgs {
    /// How many times
    #[arg(long, default_value_t = 20)]
    pub kills: usize,
    /// What happens to the replica
    #[arg(long, value_enum, default_value_t = How::Kill)]
    pub how: How,
    /// To whom it happens
    #[arg(long, value_enum, default_value_t = Whom::Primary)]
    pub whom: Whom,
    /// A new cluster for each kill, instead of bringing the replica back
    #[arg(long)]
    pub fresh: bool,
    /// Client threads
    #[arg(long, default_value_t = 3)]
    pub clients: usize,
    /// Operations that each client has under way
    #[arg(long, default_value_t = 4)]
    pub outstanding: usize,
    /// Seconds of work before each kill, and again before the replica is brought back
    #[arg(long, default_value_t = 0.5)]
    pub rest: f64,
    /// Print one JSON object, and nothing else
    #[arg(long)]
    pub json: bool,
}

/// What happens to a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// SIGKILL; later it is started again
    Kill,
    /// SIGSTOP; later SIGCONT
    Stop,
}

/// To whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Whom {
    /// The primary of the current view
    Primary,
    /// The replica whose turn as primary is farthest away
    Backup,
}

/// A request without an answer for this long is an error.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The work stands still for so long: there will be no more of it.
const DEAD: Duration = Duration::from_secs(10);
/// So many ordered operations after a kill, and work goes on.
const GOES_ON: u64 = 10;

/// One kill or stop.
#[derive(Clone, Debug)]
struct Blow {
    victim: ReplicaId,
    at: Time,
    /// When work went on and had gone on for a while.
    until: Time,
    views: (u64, u64),
    /// From bringing the replica back until the cluster was whole.
    healed: Option<Duration>,
}

/// What is printed of it.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Gap {
    victim: String,
    /// Longest time without an ordered operation.
    gap_ms: f64,
    /// Longest time without any operation, queries included.
    gap_any_ms: f64,
    view_before: u64,
    view_after: u64,
    /// From bringing the replica back until the cluster was whole.
    healed_ms: Option<f64>,
}

/// What a number of blows on one cluster came to.
#[derive(Default)]
struct Campaign {
    gaps: Vec<Gap>,
    operations: u64,
    lost: u64,
    duplicated: u64,
    unanswered: u64,
    violation: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Report {
    how: How,
    whom: Whom,
    fresh: bool,
    kills: Vec<Gap>,
    gap_ms: Spread,
    gap_any_ms: Spread,
    view_changes: u64,
    operations: u64,
    lost: u64,
    duplicated: u64,
    /// Operations without an answer.
    unanswered: u64,
    linearizable: bool,
    /// Why not.
    violation: Option<String>,
    clients: usize,
    outstanding: usize,
    optimised_build: bool,
    machine: Machine,
}

/// Of some milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
struct Spread {
    median: f64,
    max: f64,
}

impl Spread {
    /// The median of an even number is the larger of the middle two.
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
        Spread { median: at(values.len() / 2), max: at(values.len().saturating_sub(1)) }
    }
}

/// Measures.
pub fn failover(args: &FailoverArgs) -> Result<(), Error> {
    for (name, value, most) in
        [("kills", args.kills, 1_000), ("clients", args.clients, 64), ("outstanding", args.outstanding, 256)]
    {
        if !(1..=most).contains(&value) {
            return Err(Error::Usage(format!("--{name} {value}: from 1 to {most}")));
        }
    }
    if !(0.1..=10.0).contains(&args.rest) {
        return Err(Error::Usage(format!("--rest {}: from 0.1 to 10 seconds", args.rest)));
    }
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    if cfg!(debug_assertions) {
        note("this build is not optimised: figures of `cargo build --release` are better");
    }
    let rounds = if args.fresh { vec![1; args.kills] } else { vec![args.kills] };
    let mut whole = Campaign::default();
    for blows in rounds {
        let begun = whole.gaps.len();
        let campaign = campaign(args, blows, begun, &stop)?;
        whole.gaps.extend(campaign.gaps);
        whole.operations += campaign.operations;
        whole.lost += campaign.lost;
        whole.duplicated += campaign.duplicated;
        whole.unanswered += campaign.unanswered;
        whole.violation = whole.violation.or(campaign.violation);
    }
    let report = report(args, whole);
    match args.json {
        true => output::json(&report)?,
        false => show(&report)?,
    }
    match report.lost + report.duplicated + report.unanswered == 0 && report.linearizable {
        true => Ok(()),
        false => Err(Error::Running {
            seen: "operations were lost, doubled, not answered or wrong: see above".into(),
            mend: "please report it with the output of `castra bench failover --json`".into(),
        }),
    }
}

/// `blows` on one cluster.
fn campaign(args: &FailoverArgs, blows: usize, before: usize, stop: &Stop) -> Result<Campaign, Error> {
    let options = Options { f: 1, service: ServiceName::Kv, open: false, transport: TransportKind::Auto };
    let mut lab = Laboratory::start(&options, stop)?;
    let (target, identity) = (lab.target(TransportKind::Auto, TIMEOUT), lab.identity().clone());
    let job = Job { threads: args.clients, workers: args.outstanding, seed: files::random_u64()? };
    let progress = Progress::new();
    let (mut record, dealt) = thread::scope(|scope| {
        let workers = scope.spawn(|| demo::work(&job, &target, &identity, &progress));
        let mut striker = Striker { args, lab: &mut lab, progress: &progress, clock: target.clock, stop };
        let dealt: Result<Vec<Blow>, Error> = (0..blows).map(|i| striker.strike(before + i)).collect();
        // Whatever happened, the workers end.
        progress.stop();
        let record = workers.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Why the blows ended says more than that some workers did.
        let dealt = dealt?;
        Ok::<_, Error>((record.map_err(demo_error)?, dealt))
    })?;
    let gap = |blow: &Blow| {
        let millis = |ordered_alone| ms(record.gap(blow.at, blow.until, ordered_alone));
        Gap {
            victim: blow.victim.to_string(),
            gap_ms: millis(true),
            gap_any_ms: millis(false),
            view_before: blow.views.0,
            view_after: blow.views.1,
            healed_ms: blow.healed.map(ms),
        }
    };
    let gaps = dealt.iter().map(gap).collect();
    let interval = lab.cluster().file.protocol.checkpoint_interval;
    let seed = job.seed.wrapping_add(1 << 32);
    demo::close(&mut record, &target, &identity, seed, interval, &progress).map_err(demo_error)?;
    let verdict = record.judge();
    lab.stop();
    Ok(Campaign {
        gaps,
        operations: record.worked(),
        lost: verdict.lost,
        duplicated: verdict.duplicated,
        unanswered: verdict.errors.len() as u64,
        violation: verdict.linearizable.err().map(|violation| violation.to_string()),
    })
}

/// Deals blows to a cluster under load.
struct Striker<'a> {
    args: &'a FailoverArgs,
    lab: &'a mut Laboratory,
    progress: &'a Progress,
    clock: Clock,
    stop: &'a Stop,
}

impl Striker<'_> {
    fn strike(&mut self, number: usize) -> Result<Blow, Error> {
        let rest = Duration::from_secs_f64(self.args.rest);
        self.work(self.progress.ordered() + GOES_ON, "at the start")?;
        self.pass(rest)?;
        let (view, size) = (self.lab.view(None), self.lab.cluster().size);
        let primary = size.primary(view);
        let victim = match self.args.whom {
            Whom::Primary => primary,
            Whom::Backup => ReplicaId(((usize::from(primary.0) + size.n() - 1) % size.n()) as u8),
        };
        let at = self.clock.now();
        match self.args.how {
            How::Kill => self.lab.kill(victim),
            How::Stop => self.lab.pause(victim)?,
        }
        let word = if self.args.how == How::Kill { "was killed" } else { "was stopped" };
        // What was under way at the kill may still be answered: more than that must come.
        let under_way = (self.args.clients * self.args.outstanding) as u64;
        let when = format!("after {victim} {word}");
        self.work(self.progress.ordered() + under_way + GOES_ON, &when)?;
        self.pass(rest)?;
        // Work may have begun and stood still again: a silence is measured to its end.
        self.work(self.progress.ordered() + GOES_ON, &when)?;
        let (until, view_after) = (self.clock.now(), self.lab.view(Some(victim)));
        let healed = match self.args.fresh {
            true => None,
            false => {
                let begun = Instant::now();
                match self.args.how {
                    How::Kill => self.lab.restart(victim, self.stop)?,
                    How::Stop => self.lab.go_on(victim)?,
                }
                self.lab.until_whole(self.stop)?;
                Some(begun.elapsed())
            }
        };
        if !self.args.json {
            let (kills, before, after) = (self.args.kills, view.0, view_after.0);
            note(format!("{}/{kills}: {victim} {word}; view {before}, then {after}", number + 1));
        }
        Ok(Blow { victim, at, until, views: (view.0, view_after.0), healed })
    }

    /// Waits until so many ordered operations were answered.
    fn work(&self, ordered: u64, when: &str) -> Result<(), Error> {
        let mut last = (self.progress.ordered(), Instant::now());
        while last.0 < ordered {
            if self.stop.is_stopped() {
                return Err(Error::Interrupted);
            }
            if last.1.elapsed() > DEAD {
                return Err(Error::Running {
                    seen: format!("no ordered operation was answered for {} s {when}", DEAD.as_secs()),
                    mend: KEEPS_LOGS.into(),
                });
            }
            thread::sleep(LOOK);
            if self.progress.ordered() != last.0 {
                last = (self.progress.ordered(), Instant::now());
            }
        }
        Ok(())
    }

    fn pass(&self, time: Duration) -> Result<(), Error> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            if self.stop.is_stopped() {
                return Err(Error::Interrupted);
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

fn report(args: &FailoverArgs, whole: Campaign) -> Report {
    let changes = |gap: &Gap| gap.view_after.saturating_sub(gap.view_before);
    Report {
        how: args.how,
        whom: args.whom,
        fresh: args.fresh,
        gap_ms: Spread::of(whole.gaps.iter().map(|gap| gap.gap_ms)),
        gap_any_ms: Spread::of(whole.gaps.iter().map(|gap| gap.gap_any_ms)),
        view_changes: whole.gaps.iter().map(changes).sum(),
        kills: whole.gaps,
        operations: whole.operations,
        lost: whole.lost,
        duplicated: whole.duplicated,
        unanswered: whole.unanswered,
        linearizable: whole.violation.is_none(),
        violation: whole.violation,
        clients: args.clients,
        outstanding: args.outstanding,
        optimised_build: !cfg!(debug_assertions),
        machine: Machine::here(),
    }
}

fn show(report: &Report) -> Result<(), Error> {
    line(format!("machine   {}", report.machine.line()))?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "victim", "gap ms", "queries too", "view", "then", "whole after ms"]);
    for (i, gap) in report.kills.iter().enumerate() {
        table.add_row([
            (i + 1).to_string(),
            gap.victim.clone(),
            gap.gap_ms.to_string(),
            gap.gap_any_ms.to_string(),
            gap.view_before.to_string(),
            gap.view_after.to_string(),
            gap.healed_ms.map_or_else(|| "-".to_owned(), |ms| ms.to_string()),
        ]);
    }
    for (name, spread) in [
        ("median", [report.gap_ms.median, report.gap_any_ms.median]),
        ("max", [report.gap_ms.max, report.gap_any_ms.max]),
    ] {
        table.add_row([name, "", &spread[0].to_string(), &spread[1].to_string(), "", "", ""]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    line(table.trim_fmt())?;
    let yes = if report.linearizable { "yes" } else { "NO" };
    line(format!(
        "{} operations, {} view changes; lost {}, executed twice {}, without an answer {}, linearizable: {yes}",
        report.operations, report.view_changes, report.lost, report.duplicated, report.unanswered
    ))?;
    match &report.violation {
        Some(violation) => line(format!("not linearizable: {violation}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_never_the_better_of_two() {
        let of = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(of(&[9.0, 1.0, 5.0]), Spread { median: 5.0, max: 9.0 });
        assert_eq!(of(&[1.0, 2.0]), Spread { median: 2.0, max: 2.0 });
        assert_eq!(of(&[]), Spread { median: 0.0, max: 0.0 });
    }
}
