//! `castra bench overload`: more than a cluster can do, for a long time. Clients are to be slowed, and nothing is to grow.

use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::bench::{Path, within_quota};
use super::stage::Stage as _;
use super::{Laboratory, Options, load_error};
use crate::cli::config::ServiceName;
use crate::cli::errors::Error;
use crate::cli::files;
use crate::cli::output::{self, line, note};
use crate::cli::status::{self, ReplicaStatus};
use crate::execution::ExecutorConfig;
use crate::lab::{LatencyMicros, Load, Machine, load, usage};
use crate::runtime::{Stop, StopOnSignals};
use crate::types::ClusterSize;

/// `castra bench overload`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  castra bench overload                       ten minutes of 8 x 1,024 requests outstanding\n  \
                  castra bench overload --seconds 3600        an hour of it\n  \
                  castra bench overload --request 4096 --outstanding 64   fewer, large requests\n\
                  A client has at most its window of requests outstanding: who would offer more waits. So windows that are \
                  full all the time are what any offer above the capacity comes to. Exit status 1 if a replica's memory \
                  was larger in the last tenth of the time than in the second, if the view changed, if a replica did not \
                  answer, or if an operation failed. Run it with nothing else on the machine, built with --release."
)]
pub struct OverloadArgs {
    /// Replicas to start: 4, 7, 10, …
    #[arg(long, default_value_t = 4)]
    pub replicas: usize,
    /// Client endpoints, each with its own socket and keys
    #[arg(long, default_value_t = 8)]
    pub clients: usize,
    /// Requests that each client keeps outstanding
    #[arg(long, default_value_t = 1_024)]
    pub outstanding: usize,
    /// Bytes of an operation, at least 4
    #[arg(long, value_name = "BYTES", default_value_t = 8)]
    pub request: usize,
    /// Bytes of a result
    #[arg(long, value_name = "BYTES", default_value_t = 8)]
    pub reply: usize,
    /// How long
    #[arg(long, default_value_t = 600.0)]
    pub seconds: f64,
    /// Packet path of replicas and clients
    #[arg(long, value_enum, default_value_t = Path::Uring)]
    pub transport: Path,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// When memory is compared, as parts of the time: in the first tenth everything finds its size.
const EARLY: RangeInclusive<f64> = 0.1..=0.2;
const LATE: RangeInclusive<f64> = 0.9..=1.0;
/// What memory may grow by from then on, beside a twentieth: what an allocator keeps for itself.
const SLACK_MIB: f64 = 2.0;
/// How often memory is looked at, in a run of ten minutes.
const SAMPLES: u32 = 120;
/// The longest time from one look to the next.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Who waits this long for an answer has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One look at all replicas.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Sample {
    seconds: f64,
    /// Resident memory of each.
    rss_mib: Vec<f64>,
    /// Batches in the log: of the fullest.
    log_mib: f64,
    /// Batches executed: of the one ahead.
    executed: u64,
    view: u64,
    /// Replicas that answered.
    answered: usize,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Report {
    /// It bore the load: nothing of what follows is wrong.
    passed: bool,
    /// What is wrong.
    wrong: Vec<String>,
    ops_per_s: f64,
    latency_us: LatencyMicros,
    operations: u64,
    errors: u64,
    wrong_results: u64,
    /// Requests sent again.
    retransmissions: u64,
    view_changes: u64,
    /// Datagrams that the kernel dropped for want of room, at all replicas.
    drops: u64,
    /// Of each replica, in the second tenth of the time: the median.
    rss_mib_early: Vec<f64>,
    /// Of each replica, in the last tenth.
    rss_mib_late: Vec<f64>,
    log_mib_max: f64,
    replicas: usize,
    samples: Vec<Sample>,
    #[serde(flatten)]
    load: Load,
    optimised_build: bool,
    machine: Machine,
}

/// Runs and judges it.
pub fn overload(args: &OverloadArgs) -> Result<(), Error> {
    let size = ClusterSize::of(args.replicas)
        .ok_or_else(|| Error::Usage(format!("--replicas {}: 3f + 1 make a cluster: 4, 7, 10, …", args.replicas)))?;
    let window = usize::try_from(ExecutorConfig::default().window_max).unwrap_or(usize::MAX);
    let load = Load {
        clients: args.clients,
        outstanding: args.outstanding,
        sessions: args.outstanding.div_ceil(window),
        keys: None,
        request_bytes: args.request.max(4),
        reply_bytes: args.reply,
        read_only: false,
        threads: 1,
        warm_up_seconds: 0.0,
        seconds: args.seconds,
    };
    load.validate().map_err(Error::Usage)?;
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    if cfg!(debug_assertions) {
        note("this build is not optimised: figures of `cargo build --release` are several times better");
    }
    let transport = args.transport.into();
    let options = Options { f: size.f(), service: ServiceName::Null, open: true, transport, ..Options::STORES };
    let lab = Laboratory::start(&options, &stop)?;
    within_quota(&load, load.clients, &lab.cluster().file.state)?;
    let identities = (0..load.clients).map(|_| files::new_identity()).collect::<Result<Vec<_>, _>>()?;
    let (target, pids) = (lab.target(transport, TIMEOUT), lab.pids());
    let every = Duration::from_secs_f64(args.seconds / f64::from(SAMPLES)).min(LOOK_MAX);
    let (measured, samples) = thread::scope(|scope| {
        let working = scope.spawn(|| load::run(&load, &target, &identities, &pids, &stop));
        let (began, mut samples) = (Instant::now(), Vec::new());
        while !working.is_finished() {
            let next = Instant::now() + every;
            while Instant::now() < next && !working.is_finished() {
                thread::sleep(super::LOOK);
            }
            // Clients that take their last answers are no overload any more.
            if began.elapsed().as_secs_f64() < args.seconds {
                samples.push(look(&lab, &pids, size, began));
            }
        }
        let measured = working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (measured.map_err(load_error), samples)
    });
    let measured = measured?;
    let statuses = lab.statuses();
    lab.stop();
    let drops = |(_, status): &(_, ReplicaStatus)| status.socket.get("kernel_drops").copied().unwrap_or(0);
    let (early, late) = (typical(&samples, args.seconds, EARLY), typical(&samples, args.seconds, LATE));
    let mut report = Report {
        passed: false,
        wrong: Vec::new(),
        ops_per_s: (measured.operations as f64 / measured.window.as_secs_f64()).round(),
        latency_us: measured.latencies.micros(),
        operations: measured.operations,
        errors: measured.errors,
        wrong_results: measured.wrong,
        retransmissions: measured.retransmissions,
        view_changes: samples.iter().map(|sample| sample.view).max().unwrap_or(0),
        drops: statuses.iter().map(drops).sum(),
        rss_mib_early: early,
        rss_mib_late: late,
        log_mib_max: samples.iter().map(|sample| sample.log_mib).fold(0.0, f64::max),
        replicas: size.n(),
        samples,
        load,
        optimised_build: !cfg!(debug_assertions),
        machine: Machine::here(),
    };
    report.wrong = judge(&report);
    report.passed = report.wrong.is_empty();
    match args.json {
        true => output::json(&report)?,
        false => show(&report)?,
    }
    match report.passed {
        true => Ok(()),
        false => Err(Error::Running {
            seen: format!("overload was not borne: {}", report.wrong.join("; ")),
            mend: "run it with nothing else on the machine; if it fails then too, please report it with what --json prints".into(),
        }),
    }
}

fn look(lab: &Laboratory, pids: &[u32], size: ClusterSize, began: Instant) -> Sample {
    let mib = |bytes: u64| (bytes as f64 / f64::from(1 << 20) * 10.0).round() / 10.0;
    let statuses: Vec<ReplicaStatus> = lab.statuses().into_iter().map(|(_, status)| status).collect();
    Sample {
        seconds: (began.elapsed().as_secs_f64() * 10.0).round() / 10.0,
        rss_mib: pids.iter().map(|&pid| mib(usage::resident_bytes(pid).unwrap_or(0))).collect(),
        log_mib: statuses.iter().map(|status| mib(status.log_bytes)).fold(0.0, f64::max),
        executed: statuses.iter().map(|status| status.executed).max().unwrap_or(0),
        view: status::view(size, statuses.iter()),
        answered: statuses.len(),
    }
}

/// The median memory of each replica between two points of time, which are parts of the whole: what the log holds comes and
/// goes with checkpoints.
fn typical(samples: &[Sample], seconds: f64, between: RangeInclusive<f64>) -> Vec<f64> {
    let within: Vec<&Sample> = samples.iter().filter(|sample| between.contains(&(sample.seconds / seconds))).collect();
    let replicas = within.first().map_or(0, |sample| sample.rss_mib.len());
    let median = |replica: usize| {
        let mut memory: Vec<f64> = within.iter().map(|sample| sample.rss_mib[replica]).collect();
        memory.sort_by(f64::total_cmp);
        memory[memory.len() / 2]
    };
    (0..replicas).map(median).collect()
}

/// What is wrong, a sentence each.
fn judge(report: &Report) -> Vec<String> {
    let mut wrong = Vec::new();
    for (i, (&early, &late)) in report.rss_mib_early.iter().zip(&report.rss_mib_late).enumerate() {
        if late > early * 1.05 + SLACK_MIB || late == 0.0 {
            wrong.push(format!("r{i} had {early} MiB in the second tenth of the time and {late} MiB in the last"));
        }
    }
    let looked = [&report.rss_mib_early, &report.rss_mib_late].iter().all(|memory| memory.len() == report.replicas);
    if !looked || report.samples.len() < 3 {
        wrong.push("memory could not be looked at often enough".into());
    }
    if report.view_changes > 0 {
        wrong.push(format!("the view changed {} times", report.view_changes));
    }
    // One that is late with its answer is slow; two looks in a row without it are not.
    let away = |pair: &[Sample]| pair.iter().all(|sample| sample.answered < report.replicas);
    if report.samples.windows(2).any(away) {
        wrong.push("a replica did not answer".into());
    }
    if report.errors + report.wrong_results > 0 {
        wrong.push(format!("{} operations had no result, {} a wrong one", report.errors, report.wrong_results));
    }
    wrong
}

fn show(report: &Report) -> Result<(), Error> {
    line(format!("machine   {}", report.machine.line()))?;
    line(format!(
        "load      {} clients x {} outstanding, {} B requests, {} B replies for {} s",
        report.load.clients,
        report.load.outstanding,
        report.load.request_bytes,
        report.load.reply_bytes,
        report.load.seconds
    ))?;
    let list = |of: &[f64]| of.iter().map(f64::to_string).collect::<Vec<_>>().join(" ");
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value, unit) in [
        ("throughput", report.ops_per_s.to_string(), "operations/s"),
        ("latency p50", report.latency_us.p50.to_string(), "µs"),
        ("        p99", report.latency_us.p99.to_string(), "µs"),
        ("        max", report.latency_us.max.to_string(), "µs"),
        ("memory, early", list(&report.rss_mib_early), "MiB of each replica in the second tenth of the time"),
        ("        late", list(&report.rss_mib_late), "MiB in the last tenth"),
        ("log at most", report.log_mib_max.to_string(), "MiB, the fullest replica"),
        ("sent again", report.retransmissions.to_string(), "requests"),
        ("drops", report.drops.to_string(), "datagrams, by the kernel"),
        ("view changes", report.view_changes.to_string(), ""),
        ("errors", (report.errors + report.wrong_results).to_string(), ""),
    ] {
        table.add_row([name, &value, unit]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    line(table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: f64, rss_mib: f64) -> Sample {
        Sample { seconds, rss_mib: vec![rss_mib; 4], log_mib: 1.0, executed: 1, view: 0, answered: 4 }
    }

    fn report(memory: [f64; 10]) -> Report {
        let samples: Vec<Sample> = memory.iter().zip(1..).map(|(&mib, i)| sample(f64::from(i), mib)).collect();
        Report {
            passed: false,
            wrong: Vec::new(),
            ops_per_s: 1.0,
            latency_us: LatencyMicros::default(),
            operations: 1,
            errors: 0,
            wrong_results: 0,
            retransmissions: 7,
            view_changes: 0,
            drops: 3,
            rss_mib_early: typical(&samples, 10.0, EARLY),
            rss_mib_late: typical(&samples, 10.0, LATE),
            log_mib_max: 1.0,
            replicas: 4,
            samples,
            load: Load {
                clients: 8,
                outstanding: 1_024,
                sessions: 1,
                keys: None,
                request_bytes: 8,
                reply_bytes: 8,
                read_only: false,
                threads: 1,
                warm_up_seconds: 0.0,
                seconds: 10.0,
            },
            optimised_build: true,
            machine: Machine::here(),
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let level = report([20.0, 40.0, 41.0, 42.0, 43.0, 44.0, 44.0, 44.0, 44.0, 44.0]);
        assert_eq!(judge(&level), Vec::<String>::new(), "sending again and drops are how it is borne");
        let swings = report([20.0, 40.0, 60.0, 41.0, 60.0, 41.0, 60.0, 41.0, 40.0, 42.0]);
        assert_eq!(judge(&swings), Vec::<String>::new());
        let grows = report([20.0, 40.0, 40.0, 40.0, 40.0, 40.0, 40.0, 40.0, 44.1, 44.1]);
        assert_eq!(judge(&grows).len(), 4);
        assert!(judge(&grows)[0].contains("r0 had 40 MiB"), "{:?}", judge(&grows));
        let with = |change: &dyn Fn(&mut Report)| {
            let mut report = level.clone();
            change(&mut report);
            judge(&report).len()
        };
        assert_eq!(with(&|r| r.view_changes = 1), 1);
        assert_eq!(with(&|r| r.errors = 1), 1);
        assert_eq!(with(&|r| r.wrong_results = 1), 1);
        assert_eq!(with(&|r| r.samples[3].answered = 3), 0, "once is slow");
        assert_eq!(with(&|r| (r.samples[3].answered, r.samples[4].answered) = (3, 3)), 1);
        assert_eq!(with(&|r| r.samples.truncate(2)), 1);
        assert_eq!(with(&|r| r.rss_mib_late[2] = 0.0), 1);
    }
}
