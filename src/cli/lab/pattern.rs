//! `castra bench net`: what this machine takes for messages alone, and for the proofs on them.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::bench::Path;
use crate::cli::connect::backend;
use crate::cli::errors::Error;
use crate::cli::output::{self, line, note};
use crate::cli::replica::stop_with_stdin;
use crate::lab::bare::{Bare, BareReplica, Shape, work};
use crate::lab::costs::{Costs, measure};
use crate::lab::{Child, LatencyMicros, Launch, Machine, child, usage};
use crate::runtime::bind::lasting_ports;
use crate::runtime::{Stop, StopOnSignals, cores};
use crate::types::{ClusterSize, ReplicaId};

/// `castra bench net`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  castra bench net                                    one client, one request at a time\n  \
                  castra bench net --clients 4 --outstanding 256      the bound of packed load\n\
                  The bare pattern: as many processes as a cluster has, the same datagrams and the same waiting, no \
                  protocol. What `castra bench load` reaches is to be held against it, on the same machine at the same time."
)]
pub struct NetArgs {
    /// Replicas of the pattern: 4, 7, 10, …
    #[arg(long, default_value_t = 4)]
    pub replicas: usize,
    /// Client endpoints
    #[arg(long, default_value_t = 1)]
    pub clients: usize,
    /// Requests in the one pack that each endpoint has outstanding
    #[arg(long, default_value_t = 1)]
    pub outstanding: usize,
    /// Bytes of an operation
    #[arg(long, value_name = "BYTES", default_value_t = 8)]
    pub request: usize,
    /// Bytes of a result
    #[arg(long, value_name = "BYTES", default_value_t = 8)]
    pub reply: usize,
    /// Two messages, not five
    #[arg(long)]
    pub read_only: bool,
    /// Seconds that are measured
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Packet path
    #[arg(long, value_enum, default_value_t = Path::Uring)]
    pub transport: Path,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A replica of the bare pattern: what `bench net` starts.
#[derive(clap::Args, Debug)]
pub struct BareArgs {
    #[arg(long)]
    id: u8,
    #[arg(long, value_delimiter = ',')]
    addresses: Vec<SocketAddr>,
    #[arg(long)]
    requests: usize,
    #[arg(long)]
    request: usize,
    #[arg(long)]
    reply: usize,
    #[arg(long)]
    read_only: bool,
    #[arg(long, value_enum)]
    transport: Path,
}

/// The bare pattern's figures.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Pattern {
    pub ops_per_s: f64,
    pub latency_us: LatencyMicros,
    /// Of all processes together.
    pub cpu_us_per_op: f64,
    /// Packs that lost a datagram.
    pub lost: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Report {
    pattern: Pattern,
    costs_ns: Costs,
    replicas: usize,
    clients: usize,
    outstanding: usize,
    request_bytes: usize,
    reply_bytes: usize,
    read_only: bool,
    /// Bytes of the pattern's datagrams.
    datagrams: Datagrams,
    optimised_build: bool,
    machine: Machine,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Datagrams {
    pack: usize,
    pre_prepare: usize,
    prepare: usize,
    replies: usize,
}

/// Measures.
pub fn net(args: &NetArgs) -> Result<(), Error> {
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    let size = ClusterSize::of(args.replicas)
        .ok_or_else(|| Error::Usage(format!("--replicas {}: 3f + 1 make a cluster: 4, 7, 10, …", args.replicas)))?;
    let shape = Shape {
        size,
        requests: args.outstanding,
        request_bytes: args.request.max(4),
        reply_bytes: args.reply,
        read_only: args.read_only,
    };
    if !(0.1..=3_600.0).contains(&args.seconds) || args.clients == 0 || args.clients > 1_024 {
        return Err(Error::Usage("0.1 to 3600 seconds and 1 to 1024 clients can be measured".into()));
    }
    if cfg!(debug_assertions) {
        note("this build is not optimised: figures of `cargo build --release` are several times better");
    }
    let pattern = pattern(shape, args.clients, args.transport, Duration::from_secs_f64(args.seconds), &stop)?;
    let costs_ns = measure(backend(args.transport.into()))?;
    let datagrams = Datagrams {
        pack: shape.pack(),
        pre_prepare: shape.pre_prepare(args.clients),
        prepare: shape.prepare(),
        replies: shape.replies(),
    };
    let report = Report {
        pattern,
        costs_ns,
        replicas: size.n(),
        clients: args.clients,
        outstanding: args.outstanding,
        request_bytes: shape.request_bytes,
        reply_bytes: shape.reply_bytes,
        read_only: args.read_only,
        datagrams,
        optimised_build: !cfg!(debug_assertions),
        machine: Machine::here(),
    };
    if args.json { output::json(&report) } else { show(&report) }
}

/// Runs the bare pattern in processes of its own.
pub fn pattern(
    shape: Shape,
    clients: usize,
    transport: Path,
    seconds: Duration,
    stop: &Stop,
) -> Result<Pattern, Error> {
    shape.validate().map_err(Error::Usage)?;
    let n = shape.size.n();
    let count = u16::try_from(n).expect("a cluster is small");
    let base = lasting_ports(Ipv4Addr::LOCALHOST.into(), count);
    let base = base.ok_or_else(|| Error::Usage(format!("no {n} free ports in a row on loopback")))?;
    let addresses: Vec<SocketAddr> = (0..count).map(|i| (Ipv4Addr::LOCALHOST, base + i).into()).collect();
    let folder = tempfile::tempdir().map_err(Error::system("make a temporary folder"))?;
    let program = std::env::current_exe().map_err(Error::system("find this program"))?;
    let listed = addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",");
    let word = if transport == Path::Uring { "uring" } else { "sockets" };
    let mut children = Vec::new();
    for id in 0..n {
        let mut arguments: Vec<String> = ["bench", "bare-replica", "--id"].map(String::from).to_vec();
        let (requests, request, reply) = (shape.requests, shape.request_bytes, shape.reply_bytes);
        arguments.push(id.to_string());
        for (name, value) in [
            ("--addresses", listed.clone()),
            ("--requests", requests.to_string()),
            ("--request", request.to_string()),
            ("--reply", reply.to_string()),
            ("--transport", word.to_owned()),
        ] {
            arguments.extend([name.to_owned(), value]);
        }
        arguments.extend(shape.read_only.then(|| "--read-only".to_owned()));
        let log = folder.path().join(format!("b{id}.log"));
        let arguments = arguments.into_iter().map(Into::into).collect();
        let launch = Launch { name: format!("b{id}"), program: program.clone(), arguments, log };
        children.push(Child::start(launch).map_err(Error::system("start a process of the bare pattern"))?);
    }
    let mut pids: Vec<u32> = children.iter().map(Child::pid).collect();
    pids.push(std::process::id());
    let cpu = || pids.iter().map(|&pid| usage::cpu_time(pid).unwrap_or_default()).sum::<Duration>();
    let marks = RefCell::new(Vec::new());
    let mark = || marks.borrow_mut().push(cpu());
    let warm_up = Duration::from_millis(500);
    let worked = work(shape, clients, &addresses, backend(transport.into()), (warm_up, seconds), (mark, mark));
    let ended = children.iter_mut().find_map(|child| child.ended().map(|_| child.last_words()));
    child::stop_all(&mut children, Duration::from_secs(5));
    let Bare { operations, window, latencies, lost } = worked?;
    if stop.is_stopped() {
        return Err(Error::Interrupted);
    }
    let spent = match marks.borrow()[..] {
        [from, to] if operations > 0 => to.saturating_sub(from),
        _ => {
            let words = ended.unwrap_or_else(|| "no request of the bare pattern was answered".into());
            let mend = "is the machine very busy? `uptime` shows its load".into();
            return Err(Error::Running { seen: words, mend });
        }
    };
    let round = |value: f64, scale: f64| (value * scale).round() / scale;
    Ok(Pattern {
        ops_per_s: round(operations as f64 / window.as_secs_f64(), 10.0),
        latency_us: latencies.micros(),
        cpu_us_per_op: round(spent.as_secs_f64() * 1e6 / operations as f64, 1_000.0),
        lost,
    })
}

/// One of its replicas, until standard input closes.
pub fn bare_replica(args: &BareArgs) -> Result<(), Error> {
    let size = ClusterSize::of(args.addresses.len()).ok_or_else(|| Error::Usage("3f + 1 addresses".into()))?;
    let shape = Shape {
        size,
        requests: args.requests,
        request_bytes: args.request,
        reply_bytes: args.reply,
        read_only: args.read_only,
    };
    shape.validate().map_err(Error::Usage)?;
    let me = ReplicaId(args.id);
    if !size.contains(me) {
        return Err(Error::Usage(format!("{me} is none of {}", size.n())));
    }
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    stop_with_stdin(stop.clone())?;
    // Where a replica of a cluster on this host would run.
    if let Some(&core) = cores::share(&cores::allowed(), usize::from(me.0), size.n()).first() {
        cores::pin(core).map_err(Error::Cores)?;
    }
    Ok(BareReplica::new(me, shape).run(args.addresses.clone(), backend(args.transport.into()), &stop)?)
}

fn show(report: &Report) -> Result<(), Error> {
    line(format!("machine   {}", report.machine.line()))?;
    line(format!(
        "pattern   {} replicas, {} clients x {} outstanding, {}; datagrams of {} B (pack), {} B (pre-prepare), {} B (prepare), \
         {} B (replies)",
        report.replicas,
        report.clients,
        report.outstanding,
        if report.read_only { "read-only" } else { "ordered" },
        report.datagrams.pack,
        report.datagrams.pre_prepare,
        report.datagrams.prepare,
        report.datagrams.replies,
    ))?;
    let Pattern { ops_per_s, latency_us, cpu_us_per_op, lost } = &report.pattern;
    let costs = &report.costs_ns;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value, unit) in [
        ("bare pattern", format!("{ops_per_s:.0}"), "operations/s"),
        ("  latency p50", latency_us.p50.to_string(), "µs"),
        ("          p99", latency_us.p99.to_string(), "µs"),
        ("  CPU together", cpu_us_per_op.to_string(), "µs/operation"),
        ("  lost", lost.to_string(), "packs"),
        ("datagram 64 B", format!("{:.0}", costs.datagram_64), "ns of CPU, sent and received"),
        ("         8 KB", format!("{:.0}", costs.datagram_8k), "ns"),
        ("wake of a sleeper", format!("{:.0}", costs.wake), "ns from datagram to thread"),
        ("digest 64 B", format!("{:.0}", costs.digest_64), "ns"),
        ("       1 KiB", format!("{:.0}", costs.digest_1k), "ns"),
        ("       8 KiB", format!("{:.0}", costs.digest_8k), "ns"),
        ("vote for 3 others", format!("{:.0}", costs.seal_4), "ns: digest and MACs"),
        ("     for 12", format!("{:.0}", costs.seal_13), "ns"),
        ("     signed", format!("{:.0}", costs.seal_signed), "ns"),
    ] {
        table.add_row([name, &value, unit]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    line(table.trim_fmt())
}
