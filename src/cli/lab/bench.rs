//! `castra bench load`: how much, how fast, at what cost.

use std::path::PathBuf;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::pattern::pattern;
use super::stage::Stage as _;
use super::{Laboratory, Options, load_error, target};
use crate::auth::{AuthMode, Identity};
use crate::cli::config::{Client, Cluster, ServiceName, StateSection, TransportKind};
use crate::cli::errors::Error;
use crate::cli::output::{self, line, note};
use crate::cli::status::{self, Observer, ReplicaStatus};
use crate::cli::{config, files};
use crate::execution::ExecutorConfig;
use crate::lab::bare::Shape;
use crate::lab::{LatencyMicros, Load, Machine, Measured, Target, load};
use crate::runtime::{Stop, StopOnSignals};
use crate::types::ClusterSize;

/// `castra bench load`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  castra bench load                                        one client, one request at a time: latency\n  \
                  castra bench load --clients 30                           thirty clients in lock-step\n  \
                  castra bench load --clients 4 --outstanding 256          packed: throughput\n  \
                  castra bench load --read-only --request 8 --reply 4096   queries with results of a page\n  \
                  castra bench load --clients 4 --outstanding 256 --puts 1000000 --request 100   a key-value store\n\
                  Build with --release first. On a machine with few cores clients and replicas share them: the figures are \
                  of all together."
)]
pub struct LoadArgs {
    /// Replicas to start: 4, 7, 10, …
    #[arg(long, default_value_t = 4, conflicts_with = "cluster")]
    pub replicas: usize,
    /// Client endpoints, each with its own socket and keys
    #[arg(long, default_value_t = 1)]
    pub clients: usize,
    /// Requests that each client keeps outstanding
    #[arg(long, default_value_t = 1)]
    pub outstanding: usize,
    /// Sessions that each client spreads them over; by default as many as its requests need
    #[arg(long)]
    pub sessions: Option<usize>,
    /// Bytes of an operation, at least 4
    #[arg(long, value_name = "BYTES", default_value_t = 8)]
    pub request: usize,
    /// Bytes of a result
    #[arg(long, value_name = "BYTES", default_value_t = 8)]
    pub reply: usize,
    /// Queries, answered without ordering
    #[arg(long)]
    pub read_only: bool,
    /// Puts of random values into the key-value store, under so many keys; --request is then the size of a value
    #[arg(long, value_name = "KEYS", conflicts_with_all = ["read_only", "reply"])]
    pub puts: Option<u64>,
    /// Batches from one checkpoint to the next; the log holds four times as many
    #[arg(long, value_name = "BATCHES", conflicts_with = "cluster")]
    pub checkpoint_interval: Option<u64>,
    /// Seconds that are measured
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Seconds before that
    #[arg(long, default_value_t = 1.0)]
    pub warm_up: f64,
    /// Client threads; by default one on a small machine
    #[arg(long)]
    pub threads: Option<usize>,
    /// Packet path of replicas and clients
    #[arg(long, value_enum, default_value_t = Path::Uring)]
    pub transport: Path,
    /// Leave out the bare pattern, which otherwise runs for a second afterwards: the same datagrams without the protocol
    #[arg(long)]
    pub no_bound: bool,
    /// Use a running cluster, without a bare pattern: its folder, or a client.toml. Its service is the null service, for puts
    /// the key-value store, in which they stay
    #[arg(long, value_name = "FILE")]
    pub cluster: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A packet path, at the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Path {
    /// io_uring, or plain sockets where it is refused
    Uring,
    /// Plain sockets
    Sockets,
}

impl From<Path> for TransportKind {
    fn from(path: Path) -> TransportKind {
        match path {
            Path::Uring => TransportKind::Auto,
            Path::Sockets => TransportKind::Sockets,
        }
    }
}

/// CPU time of an operation, in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
struct CpuPerOp {
    /// Of all replicas together; absent if they run elsewhere.
    replicas: Option<f64>,
    clients: f64,
    total: Option<f64>,
}

/// What is printed.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Report {
    ops_per_s: f64,
    latency_us: LatencyMicros,
    cpu_us_per_op: CpuPerOp,
    /// Absent if it was not measured, or cannot be for this load.
    bound: Option<Bound>,
    /// The largest of them.
    rss_mib_per_replica: Option<f64>,
    /// Requests without a result, over the whole run.
    errors: u64,
    /// Results of a wrong length, over the whole run.
    wrong_results: u64,
    operations: u64,
    measured_seconds: f64,
    /// Requests sent again, over the whole run.
    retransmissions: u64,
    /// Queries for which all replicas had to be asked, over the whole run.
    hedges: u64,
    /// Ordered requests for which the reserve was called, over the whole run.
    summons: u64,
    pieces_again: u64,
    /// Queries that had to be ordered, over the whole run.
    fallbacks: u64,
    /// Views that were left, over the whole run.
    view_changes: u64,
    /// Ordered operations per batch over the whole run; absent if there were none.
    ops_per_batch: Option<f64>,
    /// Of all replicas together for each completed operation, over the whole run: to receive, to send and to sleep.
    system_calls_per_op: Option<f64>,
    checkpoints: Checkpoints,
    replicas: Vec<PerReplica>,
    configuration: Configuration,
    machine: Machine,
}

/// What the datagrams alone take on this machine: the bare pattern of this load, measured right afterwards.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
struct Bound {
    ops_per_s: f64,
    p50_us: f64,
    cpu_us_per_op: f64,
    /// Our throughput, as a part of that.
    ops_ratio: f64,
    /// Our median latency, as a multiple of that.
    p50_ratio: f64,
}

/// What garbage collection costs in memory and time.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
struct Checkpoints {
    /// Batches from one to the next.
    interval: u64,
    /// Ordered operations from one to the next.
    ops: Option<f64>,
    /// From the execution of the last one's batch until a quorum had signed its state: of the slowest replica.
    time_to_stable_ms: Option<f64>,
    /// Batches in the log at the end of the run: of the fullest replica.
    log_mib: f64,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct PerReplica {
    id: String,
    cpu_us_per_op: Option<f64>,
    rss_mib: Option<f64>,
    /// Batches executed over the whole run.
    batches: u64,
    /// Datagrams over the whole run.
    datagrams_sent: u64,
    datagrams_received: u64,
    /// System calls over the whole run.
    system_calls: u64,
    /// Datagrams that the kernel dropped for want of room.
    drops: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Configuration {
    replicas: usize,
    f: usize,
    #[serde(flatten)]
    load: Load,
    transport_replicas: String,
    transport_clients: String,
    placement: String,
    auth: &'static str,
    own_cluster: bool,
    optimised_build: bool,
    version: String,
}

/// Measures.
pub fn load(args: &LoadArgs) -> Result<(), Error> {
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    let load = plan(args)?;
    if cfg!(debug_assertions) {
        note("this build is not optimised: figures of `cargo build --release` are several times better");
    }
    let report = match &args.cluster {
        None => own_cluster(args, &load, &stop)?,
        Some(path) => running_cluster(path, args, &load, &stop)?,
    };
    if args.json {
        output::json(&report)?
    } else {
        show(&report)?
    }
    match report.errors + report.wrong_results {
        0 => Ok(()),
        _ => Err(Error::Running {
            seen: format!("{} requests had no result, {} a wrong one", report.errors, report.wrong_results),
            mend: "the figures above are of the others; a smaller load may be borne without loss".into(),
        }),
    }
}

fn plan(args: &LoadArgs) -> Result<Load, Error> {
    let window = usize::try_from(ExecutorConfig::default().window_max).unwrap_or(usize::MAX);
    let cores = Machine::here().cores;
    let load = Load {
        clients: args.clients,
        outstanding: args.outstanding,
        sessions: args.sessions.unwrap_or(args.outstanding.div_ceil(window)),
        keys: args.puts,
        request_bytes: args.request.max(4),
        reply_bytes: if args.puts.is_some() { load::PUT_ANSWER } else { args.reply },
        read_only: args.read_only,
        threads: args.threads.unwrap_or((cores / 4).clamp(1, args.clients.max(1))),
        warm_up_seconds: args.warm_up,
        seconds: args.seconds,
    };
    load.validate().map_err(Error::Usage)?;
    Ok(load)
}

const TIMEOUT: Duration = Duration::from_secs(10);

fn own_cluster(args: &LoadArgs, load: &Load, stop: &Stop) -> Result<Report, Error> {
    let n = args.replicas;
    let size = ClusterSize::of(n)
        .ok_or_else(|| Error::Usage(format!("--replicas {n}: 3f + 1 make a cluster: 4, 7, 10, …")))?;
    let transport = args.transport.into();
    let checkpoint_interval = args.checkpoint_interval;
    let options =
        Options { f: size.f(), service: service(args), open: true, transport, checkpoint_interval, network: false };
    let lab = Laboratory::start(&options, stop)?;
    let identities = (0..load.clients).map(|_| files::new_identity()).collect::<Result<Vec<_>, _>>()?;
    let target = lab.target(transport, TIMEOUT);
    let run = Run { load, target: &target, identities: &identities, pids: &lab.pids(), stop };
    let mut report =
        run.report(lab.cluster(), true, || lab.statuses().into_iter().map(|(_, status)| status).collect())?;
    lab.stop();
    if !args.no_bound && args.puts.is_none() {
        report.bound = bound(&report, load, size, args.transport, stop)?;
    }
    Ok(report)
}

fn service(args: &LoadArgs) -> ServiceName {
    if args.puts.is_some() { ServiceName::Kv } else { ServiceName::Null }
}

/// How long the bare pattern is measured.
const BOUND: Duration = Duration::from_secs(1);
/// Endpoints that it can have: a pre-prepare of it names them all.
const BOUND_CLIENTS_MAX: usize = 1_024;

/// The bare pattern of `load`; none, and a word why, if there is none.
fn bound(
    report: &Report,
    load: &Load,
    size: ClusterSize,
    transport: Path,
    stop: &Stop,
) -> Result<Option<Bound>, Error> {
    let shape = Shape {
        size,
        requests: load.outstanding,
        request_bytes: load.request_bytes,
        reply_bytes: load.reply_bytes,
        read_only: load.read_only,
    };
    if load.clients > BOUND_CLIENTS_MAX || shape.validate().is_err() {
        return Ok(None);
    }
    match pattern(shape, load.clients, transport, BOUND.min(Duration::from_secs_f64(load.seconds)), stop) {
        Ok(bare) => Ok(Some(Bound {
            ops_per_s: bare.ops_per_s,
            p50_us: bare.latency_us.p50,
            cpu_us_per_op: bare.cpu_us_per_op,
            ops_ratio: round(report.ops_per_s / bare.ops_per_s, 3),
            p50_ratio: round(report.latency_us.p50 / bare.latency_us.p50, 2),
        })),
        Err(Error::Interrupted) => Err(Error::Interrupted),
        // What was measured is worth more than what it is held against.
        Err(error) => {
            note(&error);
            Ok(None)
        }
    }
}

fn running_cluster(path: &std::path::Path, args: &LoadArgs, load: &Load, stop: &Stop) -> Result<Report, Error> {
    let client = Client::load(path)?;
    let wanted = service(args).word();
    if client.cluster.file.service != service(args) {
        let mend =
            format!("castra cluster init --service {wanted} DIR && castra up DIR makes one whose service is that");
        return Err(config::wrong(&client.cluster.path, format!("its service is not `{wanted}`"), mend));
    }
    let identity = files::read_key(&client.file.key_file)?;
    let instance = files::read_instance(&client.file.instance_file)?;
    let observer = Observer::new(&client.cluster.folder(), &client.cluster);
    let statuses =
        || -> Vec<ReplicaStatus> { observer.ask_all().into_iter().filter_map(|asked| asked.answer.ok()).collect() };
    // Processes on this machine can be looked at; others' cost is not known here.
    let local = client.cluster.addresses().iter().all(|address| address.ip().is_loopback());
    let found: Vec<u32> = statuses().iter().map(|status| status.pid).collect();
    let pids = if local && found.len() == client.cluster.size.n() { found } else { Vec::new() };
    let target = target(&client.cluster, instance, args.transport.into(), TIMEOUT);
    let run = Run { load, target: &target, identities: &[identity], pids: &pids, stop };
    run.report(&client.cluster, false, statuses)
}

/// What the cluster would refuse is no load (P9).
pub(super) fn within_quota(load: &Load, identities: usize, state: &StateSection) -> Result<(), Error> {
    let all = load.clients * load.sessions;
    let each = all.div_ceil(identities);
    for (name, wanted, most) in
        [("sessions_per_client_max", each, state.sessions_per_client_max), ("sessions_max", all, state.sessions_max)]
    {
        if wanted > most as usize {
            return Err(Error::Usage(format!("{wanted} sessions are above the cluster's {name}, {most}")));
        }
    }
    Ok(())
}

struct Run<'a> {
    load: &'a Load,
    target: &'a Target,
    identities: &'a [Identity],
    pids: &'a [u32],
    stop: &'a Stop,
}

impl Run<'_> {
    fn report(
        &self,
        cluster: &Cluster,
        own_cluster: bool,
        statuses: impl Fn() -> Vec<ReplicaStatus>,
    ) -> Result<Report, Error> {
        if !self.load.read_only {
            within_quota(self.load, self.identities.len(), &cluster.file.state)?;
        }
        let before = statuses();
        let measured = load::run(self.load, self.target, self.identities, self.pids, self.stop).map_err(load_error)?;
        let after = statuses();
        Ok(report(self, cluster, own_cluster, &measured, &before, &after))
    }
}

fn report(
    run: &Run<'_>,
    cluster: &Cluster,
    own_cluster: bool,
    measured: &Measured,
    before: &[ReplicaStatus],
    after: &[ReplicaStatus],
) -> Report {
    let seconds = measured.window.as_secs_f64();
    let ops = measured.operations as f64;
    let per_op = |cpu: Duration| if ops > 0.0 { round(cpu.as_secs_f64() * 1e6 / ops, 2) } else { 0.0 };
    let mib = |bytes: u64| round(bytes as f64 / f64::from(1 << 20), 1);
    let replicas_cpu = (!measured.cpu_replicas.is_empty()).then(|| measured.cpu_replicas.iter().sum());
    let of_replica = |now: &ReplicaStatus| {
        let process = run.pids.iter().position(|&pid| pid == now.pid);
        let then = before.iter().find(|then| then.id == now.id);
        let grown = |of: &dyn Fn(&ReplicaStatus) -> u64| of(now).saturating_sub(then.map_or(0, of));
        let socket = |name: &'static str| grown(&|s| s.socket.get(name).copied().unwrap_or(0));
        PerReplica {
            id: now.id.clone(),
            cpu_us_per_op: process.map(|i| per_op(measured.cpu_replicas[i])),
            rss_mib: process.map(|i| mib(measured.resident[i])),
            batches: grown(&|s| s.executed),
            datagrams_sent: socket("sent"),
            datagrams_received: socket("received"),
            system_calls: socket("system_calls"),
            drops: socket("kernel_drops"),
        }
    };
    let replicas: Vec<PerReplica> = after.iter().map(of_replica).collect();
    let batches = replicas.iter().map(|replica| replica.batches).max().unwrap_or(0);
    let ops_per_batch = (!run.load.read_only && batches > 0).then(|| measured.completed as f64 / batches as f64);
    let system_calls: u64 = replicas.iter().map(|replica| replica.system_calls).sum();
    let system_calls_per_op =
        (!replicas.is_empty() && measured.completed > 0).then(|| system_calls as f64 / measured.completed as f64);
    let interval = cluster.file.protocol.checkpoint_interval;
    let checkpoints = Checkpoints {
        interval,
        ops: ops_per_batch.map(|ops| (ops * interval as f64).round()),
        time_to_stable_ms: after.iter().filter_map(|s| s.time_to_stable_us).max().map(|us| round(us as f64 / 1e3, 1)),
        log_mib: after.iter().map(|s| mib(s.log_bytes)).fold(0.0, f64::max),
    };
    let said = |of: &dyn Fn(&ReplicaStatus) -> String| after.first().map_or_else(String::new, of);
    Report {
        ops_per_s: round(ops / seconds, 1),
        latency_us: measured.latencies.micros(),
        cpu_us_per_op: CpuPerOp {
            replicas: replicas_cpu.map(per_op),
            clients: per_op(measured.cpu_clients),
            total: replicas_cpu.map(|cpu: Duration| per_op(cpu + measured.cpu_clients)),
        },
        bound: None,
        rss_mib_per_replica: measured.resident.iter().max().map(|&bytes| mib(bytes)),
        errors: measured.errors,
        wrong_results: measured.wrong,
        operations: measured.operations,
        measured_seconds: round(seconds, 3),
        retransmissions: measured.retransmissions,
        hedges: measured.hedges,
        summons: measured.summons,
        pieces_again: measured.pieces_again,
        fallbacks: measured.fallbacks,
        view_changes: status::view(cluster.size, after.iter())
            .saturating_sub(status::view(cluster.size, before.iter())),
        ops_per_batch: ops_per_batch.map(|ops| round(ops, 1)),
        system_calls_per_op: system_calls_per_op.map(|calls| round(calls, 3)),
        checkpoints,
        replicas,
        configuration: Configuration {
            replicas: cluster.size.n(),
            f: cluster.size.f(),
            load: run.load.clone(),
            transport_replicas: said(&|status| status.transport.clone()),
            transport_clients: measured.transport.to_owned(),
            placement: said(&|status| status.placement.clone()),
            auth: match cluster.auth_mode() {
                AuthMode::Mac => "mac",
                AuthMode::Signature => "signature",
            },
            own_cluster,
            optimised_build: !cfg!(debug_assertions),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        machine: Machine::here(),
    }
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

fn show(report: &Report) -> Result<(), Error> {
    let configuration = &report.configuration;
    let load = &configuration.load;
    line(format!("machine   {}", report.machine.line()))?;
    line(format!(
        "cluster   {} replicas, {} ({})",
        configuration.replicas, configuration.transport_replicas, configuration.placement
    ))?;
    line(format!(
        "load      {} clients x {} outstanding, {}, {} B requests, {} B replies, {} for {} s",
        load.clients,
        load.outstanding,
        match load.keys {
            Some(keys) => format!("puts under {keys} keys"),
            None if load.read_only => "queries".into(),
            None => "ordered".into(),
        },
        load.request_bytes,
        load.reply_bytes,
        configuration.transport_clients,
        report.measured_seconds
    ))?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let unknown = || "-".to_owned();
    let LatencyMicros { p50, p99, p999, max } = report.latency_us;
    let cpu = report.cpu_us_per_op;
    let number = |value: Option<f64>| value.map_or_else(unknown, |value| format!("{value}"));
    for (name, value, unit) in [
        ("throughput", format!("{:.0}", report.ops_per_s), "operations/s"),
        ("latency p50", format!("{p50}"), "µs"),
        ("        p99", format!("{p99}"), "µs"),
        ("        p99.9", format!("{p999}"), "µs"),
        ("        max", format!("{max}"), "µs"),
        ("CPU, all replicas", number(cpu.replicas), "µs/operation"),
        ("     clients", format!("{}", cpu.clients), "µs/operation"),
        ("     together", number(cpu.total), "µs/operation"),
        ("memory", number(report.rss_mib_per_replica), "MiB, the largest replica"),
        ("batches of", number(report.ops_per_batch), "operations"),
        ("system calls", number(report.system_calls_per_op), "per operation, all replicas"),
        ("operations a checkpoint", number(report.checkpoints.ops), ""),
        ("         until stable", number(report.checkpoints.time_to_stable_ms), "ms, the slowest replica"),
        ("log", format!("{}", report.checkpoints.log_mib), "MiB, the fullest replica"),
        ("sent again", report.retransmissions.to_string(), "requests"),
        ("view changes", report.view_changes.to_string(), ""),
        ("errors", (report.errors + report.wrong_results).to_string(), ""),
    ] {
        table.add_row([name, &value, unit]);
    }
    if let Some(bound) = report.bound {
        let reached = format!("operations/s, of which {:.0} % are reached", 100.0 * bound.ops_ratio);
        table.add_row(["bare pattern", &format!("{:.0}", bound.ops_per_s), &reached]);
        let times = format!("µs; here {} times that", bound.p50_ratio);
        table.add_row(["        p50", &bound.p50_us.to_string(), &times]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    line(table.trim_fmt())
}
