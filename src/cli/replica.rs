//! `castra replica`: one replica, until it is told to stop.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::config::{self, ServiceName};
use super::connect::backend;
use super::errors::Error;
use super::inspection::{self, Inspector};
use super::liar::{self, Manner};
use super::status::{Divergence, PeerStatus, ReplicaStatus};
use super::{check, files, http, init, metrics, processes, status};
use crate::auth::{FreshKey, Keyring};
use crate::execution::Service;
use crate::limits;
use crate::protocol::Mode;
use crate::replica::{NetworkConfig, ReplicaConfig, StatusReport};
use crate::runtime::bind::{Bound, UdpConfig, free_ports};
use crate::runtime::{Host, Opened, Running, Stop, StopOnSignals, WaitPolicy, cores, random_bytes};
use crate::services::{Kv, Null};
use crate::transport::{Peer, Wake};
use crate::wire::header::cluster_tag;

/// `castra replica`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  castra replica --config /etc/castra/r0.toml\nIt logs to standard error; CASTRA_LOG=debug says more. SIGTERM \
                  or Ctrl-C ends it."
)]
pub struct ReplicaArgs {
    /// The replica's own file, rN.toml
    #[arg(long)]
    pub config: PathBuf,
    /// Allow laboratory keys and memory mode beyond loopback, knowingly
    #[arg(long)]
    pub lab: bool,
    /// Stop when standard input closes: whoever started it holds the other end
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,
    /// Lie, on loopback: for tests of the others
    #[arg(long, hide = true, value_enum)]
    pub lie: Option<Manner>,
}

/// Wakes the main thread when the replica is to stop.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(&self) {
        self.0.unpark();
    }
}

/// How often the main thread looks whether the replica still runs, and what it has to say.
const LOOK: Duration = Duration::from_millis(500);

/// Runs a replica until a signal.
pub fn replica(args: &ReplicaArgs) -> Result<(), Error> {
    let config = config::Replica::load(&args.config)?;
    config.cluster.check_lab(args.lab)?;
    if args.lie.is_some() && !config.cluster.addresses().iter().all(|address| address.ip().is_loopback()) {
        return Err(Error::Usage("--lie: a replica lies in a laboratory on loopback only".into()));
    }
    let identity = check::check_key(&config)?;
    let instance = files::read_instance(&config.file.instance_file)?;
    log();
    let keys = config.cluster.keys(instance);
    let keyring = Keyring::replica(config.id, &identity, keys, config.cluster.auth_mode());
    let keyring = keyring.map_err(|error| Error::Usage(error.to_string()))?;
    match config.cluster.file.service {
        ServiceName::Kv => run(args, &config, instance, keyring, Kv),
        ServiceName::Null => run(args, &config, instance, keyring, Null),
        ServiceName::Bfs => run(args, &config, instance, keyring, config.cluster.bfs()),
    }
}

fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CASTRA_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A log that cannot be written is no reason to stop; a subscriber that exists already is a test's.
    let _ = builder.with_ansi(false).with_target(false).log_internal_errors(false).try_init();
}

fn run<S: Service>(
    args: &ReplicaArgs,
    config: &config::Replica,
    instance: u64,
    mut keyring: Keyring,
    service: S,
) -> Result<(), Error> {
    let pid_file = processes::pid_file(&config::folder_of(&config.path), config.id);
    if let Some(process) = processes::running(&pid_file) {
        return Err(Error::Running {
            seen: format!("{} runs already (pid {})", config.id, process.pid),
            mend: format!("kill {}", process.pid),
        });
    }
    let bound = bind(config)?;
    let listen = |what, address: Option<_>| address.map(|address| listen(config, what, address)).transpose();
    let status_listener = listen("status", config.file.status)?;
    let metrics_listener = listen("metrics", config.file.metrics)?;
    // Written before the first datagram: a replica that forgot its votes must know that it did (P42).
    let boot = files::next_boot(config.boot_file(), instance)?;
    let begun = keyring.begin(&FreshKey::at_boot(boot, random_bytes()?));
    begun.map_err(|error| Error::Usage(error.to_string()))?;
    processes::write_pid_file(&pid_file)?;
    let _pid_file = RemoveOnDrop(pid_file);

    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    stop.wakes(Arc::new(Unpark(thread::current())));
    if args.until_stdin_closes {
        stop_with_stdin(stop.clone())?;
    }
    let (cores, allowed) = (config.cores()?, cores::allowed());
    let placement = match config.cluster.is_on_one_host() {
        true => cores.place_among(&allowed, usize::from(config.id.0), config.cluster.file.replicas.len()),
        false => cores.place(&allowed),
    };
    let placement = placement.map_err(Error::Cores)?;
    let mut protocol = config.cluster.protocol(config.id);
    protocol.forgetful = boot > 1;
    protocol.seed = files::random_u64()?;
    let datagram_max = config.cluster.file.protocol.datagram_bytes_max;
    // The kernel counts what it keeps of a datagram besides its bytes, up to as much again, and others send too.
    let credit = (bound.receive_buffer() / 4).max(limits::DATAGRAM_MIN);
    let network = NetworkConfig { datagram_max, credit, ..NetworkConfig::default() };
    let of_replica = ReplicaConfig { execution: config.cluster.execution(), network, ..ReplicaConfig::new(protocol) };
    let policy = WaitPolicy { poll_budget: Duration::from_micros(config.file.poll_budget_us) };
    if let Some(manner) = args.lie {
        return liar::run(
            manner,
            of_replica,
            keyring,
            service,
            (bound, backend(config.file.transport)),
            (&policy, &stop),
        );
    }
    let host = Host {
        config: of_replica,
        placement: placement.clone(),
        policy,
        clock: bound.config().clock,
        stop: stop.clone(),
    };
    let buffer = (bound.receive_buffer(), config.file.receive_buffer_bytes);
    let (running, mut opened) = host.start(keyring, service, bound, backend(config.file.transport))?;
    let cluster = init::short(&config.cluster);
    info!(
        "{} of cluster {cluster}, boot {boot}, at {} over {}, {placement}",
        config.id, opened.address, opened.transport
    );
    if let Some(why) = opened.fallback.take() {
        warn!("plain sockets instead of io_uring: {}", one_line(&why.into()));
    }
    if config.cluster.is_open() {
        warn!("clients = \"open\": anybody who reaches this replica may read and write");
    }
    if boot > 1 {
        warn!("restarted in memory mode: the votes of before are forgotten, so it recovers first (boot {boot})");
    }
    if buffer.0 < buffer.1 {
        let error = Error::SocketDrops { replica: config.id.to_string(), drops: 0, have: buffer.0, want: buffer.1 };
        info!("{}", one_line(&error));
    }

    let about = About {
        addresses: config.cluster.addresses(),
        cluster: config.cluster.id.to_string(),
        instance,
        boot,
        started: Instant::now(),
        placement: placement.to_string(),
        opened,
        buffer,
    };
    let viewer = running.viewer();
    let running = Arc::new(Mutex::new(Some(running)));
    let about = Arc::new(about);
    let desk = Arc::new(Desk { running: running.clone(), about: about.clone(), last: Mutex::new(None) });
    if let Some(listener) = status_listener {
        let desk = desk.clone();
        let inspector = Inspector::new(config.id.to_string(), config.cluster.id.to_string(), viewer);
        let inspector = Arc::new(inspector);
        http::serve("status", listener, move |path| match path.strip_prefix(inspection::PATH) {
            Some(n) => inspector.answer(n),
            None => status::answer(path, desk.status()),
        })?;
    }
    if let Some(listener) = metrics_listener {
        http::serve("metrics", listener, move |path| metrics::answer(path, desk.status()))?;
    }
    let finished = || running.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_none_or(Running::is_finished);
    let mut teller = Teller::default();
    while !stop.is_stopped() && !finished() {
        thread::park_timeout(LOOK);
        if teller.told.elapsed() >= TELL {
            let running = running.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(report) = running.as_ref().and_then(Running::status) {
                teller.tell(config, &about, &report);
            }
        }
    }
    let ended = running.lock().unwrap_or_else(PoisonError::into_inner).take();
    stop.stop();
    match ended.map(Running::join) {
        Some(Ok(Some(why))) => {
            error!("stopped: {why}");
            let mend = "the operation and the state that led there are the same on all correct replicas: mend the service, \
                        then begin a new life of the cluster (castra down, castra up)";
            Err(Error::Stopped { replica: config.id.to_string(), why, mend: mend.into() })
        }
        Some(Err(error)) => Err(error.into()),
        Some(Ok(None)) | None => {
            info!("{} stops", config.id);
            Ok(())
        }
    }
}

/// A process whose starter is gone, however that ended, goes too.
pub fn stop_with_stdin(stop: Stop) -> Result<(), Error> {
    let wait = move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        stop.stop();
    };
    let thread = thread::Builder::new().name("castra-lifeline".to_owned()).spawn(wait);
    thread.map(drop).map_err(Error::system("start a thread"))
}

/// Writes to the log what an operator should hear of, once in a while: whoever sends us garbage does not fill our disk.
struct Teller {
    told: Instant,
    foreign: u64,
    drops: u64,
    notices: Vec<String>,
}

/// At most so often.
const TELL: Duration = Duration::from_secs(10);

impl Default for Teller {
    fn default() -> Teller {
        Teller { told: Instant::now(), foreign: 0, drops: 0, notices: Vec::new() }
    }
}

impl Teller {
    fn tell(&mut self, config: &config::Replica, about: &About, report: &StatusReport) {
        self.told = Instant::now();
        let foreign = report.rejects.iter().find(|(name, _)| *name == "foreign_cluster").map_or(0, |(_, count)| *count);
        if let Some(last) = report.foreign.filter(|_| foreign > self.foreign) {
            let error = Error::ForeignCluster {
                ours: cluster_tag(&config.cluster.id),
                theirs: last.cluster,
                from: about.address(last.from),
                count: foreign - self.foreign,
            };
            warn!("{}", one_line(&error));
        }
        let drops = about.opened.counts().kernel_drops;
        if drops > self.drops {
            let (have, want) = about.buffer;
            let error = Error::SocketDrops { replica: config.id.to_string(), drops: drops - self.drops, have, want };
            warn!("{}", one_line(&error));
        }
        for notice in report.notices.iter().filter(|notice| !self.notices.contains(notice)) {
            warn!("{notice}");
        }
        (self.foreign, self.drops) = (foreign, drops);
        self.notices.clone_from(&report.notices);
    }
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        processes::remove_pid_file(&self.0);
    }
}

fn one_line(error: &Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn bind(config: &config::Replica) -> Result<Bound, Error> {
    let udp = UdpConfig {
        bind: config.bind(),
        datagram_max: config.cluster.file.protocol.datagram_bytes_max,
        receive_buffer: config.file.receive_buffer_bytes,
        ..UdpConfig::replica(config.id, config.cluster.addresses())
    };
    let until = Instant::now() + LET_GO;
    loop {
        match Bound::bind(udp.clone()).map_err(Error::from) {
            Ok(bound) => return Ok(bound),
            Err(Error::PortInUse { holders, .. }) if holders.is_empty() && Instant::now() < until => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(Error::PortInUse { address, holders, .. }) => {
                let width = u16::try_from(2 * config.cluster.size.n()).unwrap_or(u16::MAX);
                let free = free_ports(address.ip(), address.port().saturating_add(1), width);
                return Err(Error::PortInUse { address, holders, free });
            }
            Err(error) => return Err(error),
        }
    }
}

/// The kernel takes the ring of a killed process apart after its end: its address stays taken for a moment, by nobody.
const LET_GO: Duration = Duration::from_secs(3);

fn listen(config: &config::Replica, what: &str, address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => config::wrong(
            &config.path,
            format!("{what} = \"{address}\" is in use"),
            "choose another port, or end what holds it: ss -ltnp",
        ),
        _ => Error::system(format!("listen on {address} for {what}"))(error),
    })
}

/// Where status and metrics get their figures. However often they are asked, the replica itself is only now and then.
struct Desk {
    running: Arc<Mutex<Option<Running>>>,
    about: Arc<About>,
    last: Mutex<Option<(Instant, ReplicaStatus)>>,
}

impl Desk {
    /// An answer this young is given again.
    const FRESH: Duration = Duration::from_millis(10);

    fn status(&self) -> Option<ReplicaStatus> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, status)) = &*last
            && at.elapsed() < Desk::FRESH
        {
            return Some(status.clone());
        }
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let status = running.as_ref().and_then(Running::status).map(|report| self.about.status(&report))?;
        *last = Some((Instant::now(), status.clone()));
        Some(status)
    }
}

/// What a status says that the replica itself does not know.
struct About {
    addresses: Vec<SocketAddr>,
    cluster: String,
    instance: u64,
    boot: u64,
    started: Instant,
    placement: String,
    opened: Opened,
    buffer: (usize, usize),
}

fn divergence(found: &crate::replica::transfer::Divergence) -> Divergence {
    let mut pages: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for (region, page) in &found.pages {
        pages.entry(region.to_string()).or_default().push(*page);
    }
    Divergence { n: found.n.0, exact: found.exact, count: found.count, pages, healed: found.healed }
}

impl About {
    fn address(&self, peer: Peer) -> SocketAddr {
        match peer {
            Peer::Replica(id) => self.addresses[usize::from(id.0)],
            Peer::Address(address) => address,
        }
    }

    fn status(&self, report: &StatusReport) -> ReplicaStatus {
        let state = match (&report.stopped, report.mode) {
            (Some(_), _) => "stopped",
            (None, _) if report.recovery.is_some_and(|recovery| recovery.lost) => "lost",
            (None, Mode::Recovering) => "recovering",
            (None, Mode::Normal) if report.recovery.is_some() => "recovering",
            (None, Mode::Normal) if report.transferring.is_some() => "catching",
            (None, Mode::Normal) => "normal",
            (None, Mode::Diverged) => "diverged",
            (None, Mode::Split) => "split",
        };
        let c = &report.counters;
        let agreement = [
            ("proposed", c.proposed),
            ("committed", c.committed),
            ("padded", c.padded),
            ("earlier_life", c.earlier_life),
            ("view_changes", c.view_changes),
            ("other_view", c.other_view),
            ("outside_window", c.outside_window),
            ("not_entitled", c.not_entitled),
            ("contradiction", c.contradiction),
            ("oversized", c.oversized),
            ("bad_choice", c.bad_choice),
            ("over_quota", c.over_quota),
            ("duplicate", c.duplicate),
            ("unasked", c.unasked),
            ("answered", c.answered),
            ("asked", c.asked),
            ("reserve_needed", c.reserve_needed),
            ("transfers", c.transfers),
            ("healed", c.healed),
        ];
        let named = |(name, count): (&str, u64)| (name.to_owned(), count);
        let peer = |peer: &crate::replica::PeerReport| {
            let heard_ms = peer.heard.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
            let misdeeds = peer.misdeeds.iter().copied().map(named).collect();
            (peer.id.to_string(), PeerStatus { heard_ms, executed: peer.executed.0, bad_mac: peer.bad_macs, misdeeds })
        };
        ReplicaStatus {
            id: report.id.to_string(),
            cluster: self.cluster.clone(),
            instance: self.instance,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            boot: self.boot,
            uptime_s: self.started.elapsed().as_secs(),
            transport: self.opened.transport.to_owned(),
            placement: self.placement.clone(),
            state: state.to_owned(),
            stopped: report.stopped.clone(),
            view: report.view.0,
            primary: report.primary.to_string(),
            executed: report.executed.0,
            prepared: report.prepared.0,
            stable: report.stable.0,
            checkpoints: report.checkpoints.iter().map(|(n, root)| (n.0, root.to_string())).collect(),
            waiting: report.waiting as u64,
            fetching: report.transferring.map(|n| n.0),
            fetched_pages: report.fetched.pages,
            fetched_bytes: report.fetched.bytes,
            divergence: report.divergence.as_ref().map(divergence),
            differences: report.differences.iter().map(|(id, found)| (id.to_string(), divergence(found))).collect(),
            peers: report.peers.iter().map(peer).collect(),
            foreign: report
                .foreign
                .map(|foreign| (hex::encode(foreign.cluster.to_le_bytes()), self.address(foreign.from))),
            rejects: report.rejects.iter().copied().map(named).filter(|(_, count)| *count > 0).collect(),
            agreement: agreement.into_iter().map(named).collect(),
            socket: self.opened.counts().entries().map(named).collect(),
            receive_buffer: self.buffer,
            log_bytes: report.log_bytes as u64,
            time_to_stable_us: report.time_to_stable.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            service_bytes: u64::from(report.service_pages) * limits::PAGE as u64,
            library_bytes: u64::from(report.library_pages) * limits::PAGE as u64,
            notices: report.notices.clone(),
        }
    }
}
