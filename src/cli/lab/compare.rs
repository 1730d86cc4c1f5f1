//! `castra bench compare`: what replication costs, as the papers show it: a cluster against the same service on one server,
//! for operations without bytes, with 4 KiB of arguments, and with 4 KiB of results.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::bench::{Path, within_quota};
use super::stage::Stage as _;
use super::unreplicated::{BUSY, Lone, Unreplicated};
use super::{Laboratory, Options, load_error};
use crate::auth::Identity;
use crate::cli::config::ServiceName;
use crate::cli::errors::Error;
use crate::cli::files;
use crate::cli::output::{self, line, note};
use crate::execution::ExecutorConfig;
use crate::lab::{Latencies, Load, Machine, load};
use crate::runtime::{Stop, StopOnSignals};
use crate::types::ClusterSize;

/// `castra bench compare`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  castra bench compare                              one client, one request at a time: latency\n  \
                  castra bench compare --clients 4 --outstanding 64 packed: throughput\n\
                  The server that is not replicated has the same transport, packs, MACs and sessions, executes what comes at \
                  once, and answers. All are measured in turn, again and again: on a busy machine each has its share of the noise."
)]
pub struct CompareArgs {
    /// Replicas of the cluster: 4, 7, 10, …
    #[arg(long, default_value_t = 4)]
    pub replicas: usize,
    /// Client endpoints
    #[arg(long, default_value_t = 1)]
    pub clients: usize,
    /// Requests that each client keeps outstanding
    #[arg(long, default_value_t = 1)]
    pub outstanding: usize,
    /// How often each is measured; the figures are medians
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds that each measurement takes
    #[arg(long, default_value_t = 0.5)]
    pub seconds: f64,
    /// Packet path
    #[arg(long, value_enum, default_value_t = Path::Uring)]
    pub transport: Path,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The papers' operations: a name, bytes of arguments, bytes of results. An operation has four bytes at least: the length
/// of its result.
const OPERATIONS: [(&str, usize, usize); 3] = [("0/0", 4, 0), ("4/0", 4_096, 0), ("0/4", 4, 4_096)];
/// Before each measurement.
const WARM_UP: Duration = Duration::from_millis(150);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Unreplicated,
    ReadWrite,
    ReadOnly,
}

const WAYS: [Way; 3] = [Way::Unreplicated, Way::ReadWrite, Way::ReadOnly];

/// The figures of one way with one operation.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
struct Figures {
    ops_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    /// Of all processes together, waiting by polling included.
    cpu_us_per_op: f64,
}

impl Figures {
    fn new(operations: u64, window: Duration, latencies: &Latencies, cpu: Duration) -> Figures {
        let (ops, latency) = (operations as f64, latencies.micros());
        Figures {
            ops_per_s: ops / window.as_secs_f64(),
            p50_us: latency.p50,
            p99_us: latency.p99,
            cpu_us_per_op: cpu.as_secs_f64() * 1e6 / ops.max(1.0),
        }
    }

    /// Each figure's median.
    fn median(of: &[Figures]) -> Figures {
        let median = |figure: fn(&Figures) -> f64| {
            let mut values: Vec<f64> = of.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
            ((low + high) * 50.0).round() / 100.0
        };
        Figures {
            ops_per_s: median(|f| f.ops_per_s),
            p50_us: median(|f| f.p50_us),
            p99_us: median(|f| f.p99_us),
            cpu_us_per_op: median(|f| f.cpu_us_per_op),
        }
    }
}

/// How much worse than the server that is not replicated, in percent of it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
struct Overhead {
    /// Of the median latency.
    latency: f64,
    /// Of the time between two operations: of 1 / throughput.
    time_per_op: f64,
}

impl Overhead {
    fn of(figures: &Figures, unreplicated: &Figures) -> Overhead {
        let percent = |of: f64, than: f64| if than > 0.0 { ((of / than - 1.0) * 1_000.0).round() / 10.0 } else { 0.0 };
        Overhead {
            latency: percent(figures.p50_us, unreplicated.p50_us),
            time_per_op: percent(unreplicated.ops_per_s, figures.ops_per_s),
        }
    }
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Row {
    operation: &'static str,
    request_bytes: usize,
    reply_bytes: usize,
    unreplicated: Figures,
    read_write: Figures,
    read_write_overhead_percent: Overhead,
    read_only: Figures,
    read_only_overhead_percent: Overhead,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Report {
    operations: Vec<Row>,
    replicas: usize,
    clients: usize,
    outstanding: usize,
    rounds: usize,
    seconds: f64,
    transport: &'static str,
    optimised_build: bool,
    machine: Machine,
}

/// Measures.
pub fn compare(args: &CompareArgs) -> Result<(), Error> {
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    if !(0.1..=60.0).contains(&args.seconds) || !(1..=100).contains(&args.rounds) {
        return Err(Error::Usage("1 to 100 rounds of 0.1 to 60 seconds can be measured".into()));
    }
    for (_, request_bytes, reply_bytes) in OPERATIONS {
        plan(args, request_bytes, reply_bytes).validate().map_err(Error::Usage)?;
    }
    if cfg!(debug_assertions) {
        note("this build is not optimised: figures of `cargo build --release` are several times better");
    }
    let report = Bench::start(args, &stop)?.run()?;
    if args.json { output::json(&report) } else { show(&report) }
}

/// The same load for all.
fn plan(args: &CompareArgs, request_bytes: usize, reply_bytes: usize) -> Load {
    let (clients, outstanding) = (args.clients, args.outstanding);
    let window = usize::try_from(ExecutorConfig::default().window_max).unwrap_or(usize::MAX);
    Load {
        clients,
        outstanding,
        sessions: outstanding.div_ceil(window),
        keys: None,
        request_bytes,
        reply_bytes,
        read_only: false,
        threads: 1,
        warm_up_seconds: WARM_UP.as_secs_f64(),
        seconds: args.seconds,
    }
}

/// What is compared, all of it running.
struct Bench<'a> {
    args: &'a CompareArgs,
    stop: &'a Stop,
    lone: Lone,
    lab: Laboratory,
    identities: Vec<Identity>,
}

impl Bench<'_> {
    fn start<'a>(args: &'a CompareArgs, stop: &'a Stop) -> Result<Bench<'a>, Error> {
        let n = args.replicas;
        let size = ClusterSize::of(n)
            .ok_or_else(|| Error::Usage(format!("--replicas {n}: 3f + 1 make a cluster: 4, 7, 10, …")))?;
        let transport = args.transport.into();
        let options = Options { f: size.f(), service: ServiceName::Null, open: true, transport, ..Options::STORES };
        let lab = Laboratory::start(&options, stop)?;
        // The one server knows one client.
        within_quota(&plan(args, 4, 0), 1, &lab.cluster().file.state)?;
        let lone = Unreplicated::null(args.transport).start()?;
        let identities = (0..args.clients).map(|_| files::new_identity()).collect::<Result<_, _>>()?;
        Ok(Bench { args, stop, lone, lab, identities })
    }

    fn run(mut self) -> Result<Report, Error> {
        let mut measured = [[(); 3]; 3].map(|ways| ways.map(|()| Vec::new()));
        for _ in 0..self.args.rounds {
            for (of_operation, (_, request_bytes, reply_bytes)) in measured.iter_mut().zip(OPERATIONS) {
                for (of_way, way) in of_operation.iter_mut().zip(WAYS) {
                    if self.stop.is_stopped() {
                        return Err(Error::Interrupted);
                    }
                    of_way.push(self.measure(way, request_bytes, reply_bytes)?);
                }
            }
        }
        let row = |(measured, (operation, request_bytes, reply_bytes)): (&[Vec<Figures>; 3], _)| {
            let [unreplicated, read_write, read_only] = [0, 1, 2].map(|way| Figures::median(&measured[way]));
            Row {
                operation,
                request_bytes,
                reply_bytes,
                unreplicated,
                read_write,
                read_write_overhead_percent: Overhead::of(&read_write, &unreplicated),
                read_only,
                read_only_overhead_percent: Overhead::of(&read_only, &unreplicated),
            }
        };
        let report = Report {
            operations: measured.iter().zip(OPERATIONS).map(row).collect(),
            replicas: self.args.replicas,
            clients: self.args.clients,
            outstanding: self.args.outstanding,
            rounds: self.args.rounds,
            seconds: self.args.seconds,
            transport: if self.args.transport == Path::Uring { "uring" } else { "sockets" },
            optimised_build: !cfg!(debug_assertions),
            machine: Machine::here(),
        };
        self.lone.stop();
        self.lab.stop();
        Ok(report)
    }

    fn measure(&mut self, way: Way, request_bytes: usize, reply_bytes: usize) -> Result<Figures, Error> {
        let load = Load { read_only: way == Way::ReadOnly, ..plan(self.args, request_bytes, reply_bytes) };
        let lone = std::slice::from_ref(self.lone.identity());
        let (target, identities, pids) = match way {
            Way::Unreplicated => (self.lone.target(TIMEOUT), lone, vec![self.lone.pid()]),
            _ => (self.lab.target(self.args.transport.into(), TIMEOUT), &self.identities[..], self.lab.pids()),
        };
        let measured = load::run(&load, &target, identities, &pids, self.stop).map_err(load_error)?;
        if measured.operations == 0 || measured.errors + measured.wrong > 0 {
            let (errors, wrong) = (measured.errors, measured.wrong);
            let seen = format!("{errors} requests had no result, {wrong} a wrong one");
            return Err(match way {
                Way::Unreplicated => self.lone.failure(seen),
                _ => Error::Running { seen: format!("the cluster: {seen}"), mend: BUSY.into() },
            });
        }
        let spent = measured.cpu_clients + measured.cpu_replicas.iter().sum::<Duration>();
        Ok(Figures::new(measured.operations, measured.window, &measured.latencies, spent))
    }
}

fn show(report: &Report) -> Result<(), Error> {
    line(format!("machine   {}", report.machine.line()))?;
    line(format!(
        "compared  {} replicas with one server, {} clients x {} outstanding, {}; medians of {} rounds of {} s",
        report.replicas, report.clients, report.outstanding, report.transport, report.rounds, report.seconds
    ))?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["operation", "", "p50 µs", "overhead %", "operations/s", "overhead %", "CPU µs/operation"]);
    for row in &report.operations {
        let mut add = |name: &str, way: &str, figures: &Figures, overhead: Option<&Overhead>| {
            let percent = |of: fn(&Overhead) -> f64| overhead.map_or_else(String::new, |o| format!("{:.0}", of(o)));
            table.add_row([
                name.to_owned(),
                way.to_owned(),
                figures.p50_us.to_string(),
                percent(|o| o.latency),
                format!("{:.0}", figures.ops_per_s),
                percent(|o| o.time_per_op),
                figures.cpu_us_per_op.to_string(),
            ]);
        };
        add(row.operation, "unreplicated", &row.unreplicated, None);
        add("", "read-write", &row.read_write, Some(&row.read_write_overhead_percent));
        add("", "read-only", &row.read_only, Some(&row.read_only_overhead_percent));
    }
    for column in 2..7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    line(table.trim_fmt())?;
    line(
        "operations: KiB of arguments / KiB of results. Overhead: beyond the server that is not replicated, in percent of it.",
    )
}
