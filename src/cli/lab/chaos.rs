//! `castra chaos`: kills, stops and cut lines from a seed, on a cluster that works, and what its clients felt of each.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::blow::{self, Blow, Dealt, Digests, Fault, Gap, ON_LINES, ON_PROCESSES, Spread, Victim, Worked};
use super::stage::{Background, Stage};
use super::{Laboratory, Options};
use crate::cli::errors::Error;
use crate::cli::files;
use crate::cli::output::{self, line, note};
use crate::lab::demo::Job;
use crate::lab::{Machine, net};
use crate::runtime::{Stop, StopOnSignals};
use crate::sim::Rng;
use crate::types::{ClusterSize, ReplicaId};

/// `castra chaos`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  castra chaos                       a cluster of its own, each replica in a network namespace\n  \
                  castra chaos --seed 7 --seconds 60 the same blows as whenever the seed was 7\n  \
                  castra chaos lab                   the cluster that `castra up lab` started: it is killed and stopped, not cut\n\
                  Replicas are killed (SIGKILL), stopped (SIGSTOP) and cut off from each other, the primary above all; the \
                  next blow falls only when `castra status` would say that all have recovered and caught up. Clients work \
                  all the time under keys of their own, and every answer is checked. Exit status 0: nothing was lost, \
                  nothing was executed twice, the history is linearizable, the replicas agree.\n\
                  Namespaces need root or user namespaces, and `ip`, `unshare` and `nsenter`; they have no names, and end \
                  with this process however that ends."
)]
pub struct Chaos {
    /// The folder of a cluster that runs; without it chaos makes one
    pub dir: Option<PathBuf>,
    /// Decides what happens; drawn if not given
    #[arg(long)]
    pub seed: Option<u64>,
    /// Seconds until no more blows fall, from 1 to 300
    #[arg(long, default_value_t = 20.0)]
    pub seconds: f64,
    /// Faults that its own cluster tolerates
    #[arg(long, default_value_t = 1, conflicts_with = "dir")]
    pub f: usize,
    /// Client threads
    #[arg(long, default_value_t = 3)]
    pub clients: usize,
    /// Operations that each client has under way
    #[arg(long, default_value_t = 4)]
    pub outstanding: usize,
    /// Only these: kill, stop on processes; isolate, mute, deaf, part, halve on lines
    #[arg(long, value_delimiter = ',', value_enum, hide_possible_values = true)]
    pub faults: Vec<Fault>,
    /// Print one JSON object, and nothing else
    #[arg(long)]
    pub json: bool,
    /// Where it runs already; it says so to itself
    #[arg(long, hide = true)]
    pub in_namespace: bool,
}

/// Blows without end, from a seed. Where some faults are left out the same seed gives the same others.
struct Plan {
    rng: Rng,
    size: ClusterSize,
    faults: Vec<Fault>,
}

impl Plan {
    fn new(seed: u64, size: ClusterSize, faults: &[Fault]) -> Plan {
        Plan { rng: Rng::new(seed), size, faults: faults.to_vec() }
    }
}

impl Iterator for Plan {
    type Item = Blow;

    fn next(&mut self) -> Option<Blow> {
        loop {
            // Half of them on processes, and half to the primary: that is where it hurts.
            let faults: &[Fault] = if self.rng.chance(500) { &ON_PROCESSES } else { &ON_LINES };
            let fault = *self.rng.pick(faults);
            let anyone = ReplicaId(self.rng.index(self.size.n()) as u8);
            let victim = if self.rng.chance(500) { Victim::Primary } else { Victim::Replica(anyone) };
            let rest = Duration::from_millis(self.rng.between(50, 700));
            // Some are shorter than any timer.
            let hold = if self.rng.chance(250) { self.rng.between(5, 90) } else { self.rng.between(100, 1_500) };
            if self.faults.contains(&fault) {
                return Some(Blow { fault, victim, rest, hold: Duration::from_millis(hold) });
            }
        }
    }
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Report {
    seed: u64,
    /// What could happen.
    faults: Vec<Fault>,
    blows: Vec<Gap>,
    gap_ms: Spread,
    healed_ms: Spread,
    view_changes: u64,
    operations: u64,
    ops_per_s: f64,
    seconds: f64,
    lost: u64,
    duplicated: u64,
    /// Operations without an answer.
    unanswered: u64,
    linearizable: bool,
    /// Why not.
    violation: Option<String>,
    digests: Digests,
    replicas: usize,
    clients: usize,
    outstanding: usize,
    optimised_build: bool,
    machine: Machine,
}

impl Report {
    fn is_good(&self) -> bool {
        self.lost + self.duplicated + self.unanswered == 0 && self.linearizable && self.digests.equal
    }
}

/// Deals blows, and judges.
pub fn chaos(args: &Chaos) -> Result<(), Error> {
    if !(1.0..=300.0).contains(&args.seconds) {
        return Err(Error::Usage(format!("--seconds {}: from 1 to 300", args.seconds)));
    }
    for (name, value, most) in [("clients", args.clients, 64), ("outstanding", args.outstanding, 256), ("f", args.f, 2)]
    {
        if !(1..=most).contains(&value) {
            return Err(Error::Usage(format!("--{name} {value}: from 1 to {most}")));
        }
    }
    let all = || ON_PROCESSES.into_iter().chain(ON_LINES).collect();
    let mut faults = if args.faults.is_empty() { all() } else { args.faults.clone() };
    let on_lines = |fault: &Fault| ON_LINES.contains(fault);
    if args.dir.is_none() && !args.in_namespace && faults.iter().any(on_lines) {
        let why = net::enter(&["--in-namespace"]);
        note(format!("no network namespaces here ({why}): no lines are cut"));
    }
    if !args.in_namespace {
        faults.retain(|fault| !on_lines(fault));
    }
    if faults.is_empty() {
        return Err(Error::Usage("no line can be cut here: --faults kill,stop is what is left".into()));
    }
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    let seed = args.seed.map_or_else(files::random_u64, Ok)?;
    if !args.json {
        note(format!("seed {seed}: castra chaos --seed {seed} plans the same blows"));
    }
    match &args.dir {
        Some(dir) => on_stage(args, seed, &faults, &mut Background::attach(dir)?, unique(dir)?, &stop),
        None => {
            let options = Options { f: args.f, network: args.in_namespace, ..Options::STORES };
            let mut lab = Laboratory::start(&options, &stop)?;
            let done = on_stage(args, seed, &faults, &mut lab, String::new(), &stop);
            lab.stop();
            done
        }
    }
}

/// What nobody else's keys begin with, and is never used again.
fn unique(dir: &Path) -> Result<String, Error> {
    let name = dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(format!("castra chaos {name} {:016x}/", files::random_u64()?))
}

fn on_stage(
    args: &Chaos,
    seed: u64,
    faults: &[Fault],
    stage: &mut dyn Stage,
    prefix: String,
    stop: &Stop,
) -> Result<(), Error> {
    let job = Job { threads: args.clients, workers: args.outstanding, seed: files::random_u64()?, prefix };
    let plan = Plan::new(seed, stage.cluster().size, faults);
    let begun = Instant::now();
    let length = Duration::from_secs_f64(args.seconds);
    let say = |number: usize, dealt: &Dealt| {
        if !args.json {
            note(format!("{:5.1} s  {number}: {dealt}", begun.elapsed().as_secs_f64()));
        }
    };
    // A cluster that is not whole is struck no more: P50.
    stage.until_whole(stop)?;
    let worked = blow::under_load(stage, &job, stop, &|_| (), |striker| {
        let mut dealt: Vec<Dealt> = Vec::new();
        for blow in plan {
            let number = dealt.len() + 1;
            dealt.push(striker.strike(&blow, true).inspect_err(|error| {
                if !matches!(error, Error::Interrupted) {
                    note(format!("blow {number} of seed {seed} was not survived: {blow}"));
                }
            })?);
            dealt.last().into_iter().for_each(|last| say(dealt.len(), last));
            if begun.elapsed() >= length {
                break;
            }
        }
        Ok(dealt)
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let digests = blow::digests(stage, stop, worked.last)?;
    let report = report(args, seed, faults, stage.cluster().size, worked, digests, seconds);
    match args.json {
        true => output::json(&report)?,
        false => show(&report)?,
    }
    match report.is_good() {
        true => Ok(()),
        false => Err(Error::to_report(
            "operations were lost, doubled, not answered or wrong, or the replicas disagree: see above",
            &format!("castra chaos --seed {seed} --json"),
        )),
    }
}

fn report(
    args: &Chaos,
    seed: u64,
    faults: &[Fault],
    size: ClusterSize,
    worked: Worked<Vec<Dealt>>,
    digests: Digests,
    seconds: f64,
) -> Report {
    let verdict = worked.record.judge();
    let blows: Vec<Gap> = worked.events.iter().map(|dealt| dealt.gap(&worked.record)).collect();
    let changes = |gap: &Gap| gap.view_after.saturating_sub(gap.view_before);
    Report {
        seed,
        faults: faults.to_vec(),
        gap_ms: Spread::of(blows.iter().map(Gap::longest)),
        healed_ms: Spread::of(blows.iter().filter_map(|gap| gap.healed_ms)),
        view_changes: blows.iter().map(changes).sum(),
        blows,
        operations: worked.record.worked(),
        ops_per_s: (worked.record.worked() as f64 / seconds).round(),
        seconds: (seconds * 1e3).round() / 1e3,
        lost: verdict.lost,
        duplicated: verdict.duplicated,
        unanswered: verdict.errors.len() as u64,
        linearizable: verdict.linearizable.is_ok(),
        violation: verdict.linearizable.err().map(|violation| violation.to_string()),
        digests,
        replicas: size.n(),
        clients: args.clients,
        outstanding: args.outstanding,
        optimised_build: !cfg!(debug_assertions),
        machine: Machine::here(),
    }
}

fn show(report: &Report) -> Result<(), Error> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "replica", "was", "gap ms", "queries too", "view", "then", "whole after ms", "gap in that"]);
    let maybe = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| ms.to_string());
    for (i, gap) in report.blows.iter().enumerate() {
        table.add_row([
            (i + 1).to_string(),
            format!("{}{}", gap.victim, if gap.primary { ", primary" } else { "" }),
            gap.fault.word().to_owned(),
            gap.gap_ms.to_string(),
            gap.gap_any_ms.to_string(),
            gap.view_before.to_string(),
            gap.view_after.to_string(),
            maybe(gap.healed_ms),
            maybe(gap.healing_gap_ms),
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    line(table.trim_fmt())?;
    let yes = |yes: bool| if yes { "yes" } else { "NO" };
    let at = report.digests.at.map_or_else(|| "nowhere".to_owned(), |n| format!("batch {n}"));
    line(format!(
        "{} blows in {:.1} s, {} view changes; longest silence: median {} ms, at most {} ms",
        report.blows.len(),
        report.seconds,
        report.view_changes,
        report.gap_ms.median,
        report.gap_ms.max
    ))?;
    line(format!(
        "{} operations; lost {}, executed twice {}, without an answer {}, linearizable: {}",
        report.operations,
        report.lost,
        report.duplicated,
        report.unanswered,
        yes(report.linearizable)
    ))?;
    line(format!("state digests equal: {}, of {} at {at}", yes(report.digests.equal), report.digests.of.join(", ")))?;
    match &report.violation {
        Some(violation) => line(format!("not linearizable: {violation}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_follows_from_its_seed_and_meets_everyone() {
        let size = ClusterSize::tolerating(1).unwrap();
        let plan = |seed, faults: &[Fault]| Plan::new(seed, size, faults).take(200).collect::<Vec<Blow>>();
        let all: Vec<Fault> = ON_PROCESSES.into_iter().chain(ON_LINES).collect();
        assert_eq!(plan(7, &all), plan(7, &all));
        assert_ne!(plan(7, &all), plan(8, &all));
        let whole = plan(7, &all);
        for fault in all {
            assert!(whole.iter().any(|blow| blow.fault == fault), "{fault:?}");
        }
        for victim in size.replicas().map(Victim::Replica).chain([Victim::Primary]) {
            assert!(whole.iter().any(|blow| blow.victim == victim), "{victim:?}");
        }
        // Where lines cannot be cut, the others stay what they are.
        let processes: Vec<Blow> = whole.into_iter().filter(|blow| ON_PROCESSES.contains(&blow.fault)).collect();
        assert_eq!(plan(7, &ON_PROCESSES)[..processes.len()], processes);
    }
}
