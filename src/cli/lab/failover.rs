//! `castra bench failover`: the primary is killed or stopped under load, again and again. How long was nothing answered,
//! and was anything lost?

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::blow::{self, Blow, Fault, Gap, Spread, Victim};
use super::{Laboratory, Options};
use crate::cli::errors::Error;
use crate::cli::files;
use crate::cli::output::{self, line, note};
use crate::lab::Machine;
use crate::lab::demo::Job;
use crate::runtime::{Stop, StopOnSignals};

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
    healed_ms: Spread,
    healing_gap_ms: Spread,
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
    let mut lab = Laboratory::start(&Options::STORES, stop)?;
    let seed = files::random_u64()?;
    let job = Job { threads: args.clients, workers: args.outstanding, seed, prefix: String::new() };
    let rest = Duration::from_secs_f64(args.rest);
    let fault = match args.how {
        How::Kill => Fault::Kill,
        How::Stop => Fault::Stop,
    };
    let victim = match args.whom {
        Whom::Primary => Victim::Primary,
        Whom::Backup => Victim::Backup,
    };
    let worked = blow::under_load(&mut lab, &job, stop, &|_| (), |striker| {
        let strike = |i: usize| {
            let dealt = striker.strike(&Blow { fault, victim, rest, hold: rest }, !args.fresh)?;
            if !args.json {
                note(format!("{}/{}: {dealt}", before + i + 1, args.kills));
            }
            Ok(dealt)
        };
        (0..blows).map(strike).collect::<Result<Vec<_>, Error>>()
    })?;
    let verdict = worked.record.judge();
    lab.stop();
    Ok(Campaign {
        gaps: worked.events.iter().map(|dealt| dealt.gap(&worked.record)).collect(),
        operations: worked.record.worked(),
        lost: verdict.lost,
        duplicated: verdict.duplicated,
        unanswered: verdict.errors.len() as u64,
        violation: verdict.linearizable.err().map(|violation| violation.to_string()),
    })
}

fn report(args: &FailoverArgs, whole: Campaign) -> Report {
    let changes = |gap: &Gap| gap.view_after.saturating_sub(gap.view_before);
    Report {
        how: args.how,
        whom: args.whom,
        fresh: args.fresh,
        gap_ms: Spread::of(whole.gaps.iter().map(|gap| gap.gap_ms)),
        gap_any_ms: Spread::of(whole.gaps.iter().map(|gap| gap.gap_any_ms)),
        healed_ms: Spread::of(whole.gaps.iter().filter_map(|gap| gap.healed_ms)),
        healing_gap_ms: Spread::of(whole.gaps.iter().filter_map(|gap| gap.healing_gap_ms)),
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
    table.set_header(["", "victim", "gap ms", "queries too", "view", "then", "whole after ms", "gap in that"]);
    let maybe = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| ms.to_string());
    for (i, gap) in report.kills.iter().enumerate() {
        table.add_row([
            (i + 1).to_string(),
            gap.victim.clone(),
            gap.gap_ms.to_string(),
            gap.gap_any_ms.to_string(),
            gap.view_before.to_string(),
            gap.view_after.to_string(),
            maybe(gap.healed_ms),
            maybe(gap.healing_gap_ms),
        ]);
    }
    let spreads = [report.gap_ms, report.gap_any_ms, report.healed_ms, report.healing_gap_ms];
    for (name, of) in [("median", spreads.map(|spread| spread.median)), ("max", spreads.map(|spread| spread.max))] {
        let [gap, any, healed, healing] = of.map(|ms| ms.to_string());
        table.add_row([name, "", &gap, &any, "", "", &healed, &healing]);
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
