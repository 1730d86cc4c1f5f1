//! A laboratory cluster of child processes in a temporary folder, for `demo`, `chaos` and `bench`.

pub mod bench;
pub mod blow;
pub mod chaos;
pub mod compare;
pub mod demo;
pub mod failover;
pub mod overload;
pub mod pattern;
mod prompt;
pub mod stage;
pub mod transfer;
pub mod unreplicated;

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::config::{Cluster, ServiceName, TransportKind};
use super::connect::backend;
use super::errors::Error;
use super::init::{self, Init};
use super::processes::log_file;
use super::status::Observer;
use super::{check, config, files};
use crate::auth::Identity;
use crate::lab::{Child, Launch, LoadError, Network, StationError, Target, child};
use crate::runtime::{Clock, Stop};
use crate::types::{ClusterSize, ReplicaId};
use stage::{Cuts, Stage};

/// What kind of cluster.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Faults tolerated.
    pub f: usize,
    /// What is replicated.
    pub service: ServiceName,
    /// Let any key read and write.
    pub open: bool,
    /// The replicas' packet path.
    pub transport: TransportKind,
    /// Batches from one checkpoint to the next, if not as ever.
    pub checkpoint_interval: Option<u64>,
    /// Each replica in a network namespace of its own, so that lines can be cut; only where [`crate::lab::net::enter`]
    /// began.
    pub network: bool,
}

impl Options {
    /// Four key-value stores on loopback.
    pub const STORES: Options = Options {
        f: 1,
        service: ServiceName::Kv,
        open: false,
        transport: TransportKind::Auto,
        checkpoint_interval: None,
        network: false,
    };
}

/// A cluster of child processes. They end with it, however that ends, and its folder goes.
pub struct Laboratory {
    // Dropped in this order: the processes before the folder that they write to.
    children: Vec<Child>,
    network: Option<Network>,
    cluster: Cluster,
    observer: Observer,
    identity: Identity,
    instance: u64,
    folder: TempDir,
}

/// How long the replicas have to come up, and to go down.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often something is looked at that has no event.
pub const LOOK: Duration = Duration::from_millis(20);
/// Where to look further.
const KEEPS_LOGS: &str = "castra cluster init lab && castra up lab starts the same cluster, and keeps its logs";

impl Laboratory {
    /// Makes the folder, starts every replica, and waits until each answers.
    pub fn start(options: &Options, stop: &Stop) -> Result<Laboratory, Error> {
        let folder = tempfile::Builder::new().prefix("castra-").tempdir();
        let folder = folder.map_err(Error::system("make a temporary folder"))?;
        let dir = folder.path().join("lab");
        let init = Init {
            dir: dir.clone(),
            f: options.f,
            base_port: None,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            service: options.service,
            name: Some("lab".into()),
            open: options.open,
            signatures: false,
            checkpoint_interval: options.checkpoint_interval,
            lab: options.network,
        };
        let n = ClusterSize::tolerating(options.f).map_or(0, ClusterSize::n);
        let network = match options.network {
            true => Some(Network::new(n, folder.path()).map_err(Error::system("make a network of namespaces"))?),
            false => None,
        };
        let (cluster, _) = match network {
            Some(_) => init::make_at(&init, &addresses(n, PORT), &addresses(n, PORT + 1))?,
            None => init::make(&init)?,
        };
        let identity = files::read_key(&dir.join("client.key"))?;
        let instance = files::read_instance(&dir.join("instance"))?;
        let configs: Vec<_> = cluster.size.replicas().map(|id| (id, dir.join(format!("{id}.toml")))).collect();
        for (_, config) in &configs {
            set_transport(config, options.transport)?;
            check::check_key(&config::Replica::load(config)?)?;
        }
        let observer = Observer::new(&dir, &cluster);
        let mut lab = Laboratory { children: Vec::new(), network, cluster, observer, identity, instance, folder };
        for (id, config) in &configs {
            lab.children.push(spawn(&dir, *id, config, lab.network.as_ref())?);
        }
        let all = lab.all();
        lab.wait(&all, stop, "come up", &|_| true)?;
        Ok(lab)
    }

    /// The cluster's folder.
    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("lab")
    }

    /// The process ids of the replicas.
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::pid).collect()
    }

    /// Whether there is such a replica.
    pub fn known(&self, id: ReplicaId) -> Result<(), Error> {
        let size = self.cluster.size;
        match size.contains(id) {
            true => Ok(()),
            false => Err(Error::Usage(format!("there is no {id}: r0 to r{} are there", size.n() - 1))),
        }
    }

    /// Whether the process of `id` runs.
    pub fn runs(&mut self, id: ReplicaId) -> bool {
        self.children[usize::from(id.0)].ended().is_none()
    }

    /// Whether it was paused.
    pub fn is_paused(&self, id: ReplicaId) -> bool {
        self.children[usize::from(id.0)].is_paused()
    }

    /// Stops all replicas.
    pub fn stop(mut self) {
        child::stop_all(&mut self.children, PATIENCE);
    }
}

impl Stage for Laboratory {
    fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn observer(&self) -> &Observer {
        &self.observer
    }

    fn instance(&self) -> u64 {
        self.instance
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn look(&mut self, id: ReplicaId) -> Result<(), Error> {
        let child = &mut self.children[usize::from(id.0)];
        let Some(exit) = child.ended() else { return Ok(()) };
        let words = child.last_words();
        let why = if words.is_empty() { exit.to_string() } else { format!("{exit}; its log ends:\n{words}") };
        Err(Error::Stopped { replica: id.to_string(), why, mend: KEEPS_LOGS.into() })
    }

    fn kill(&mut self, id: ReplicaId) -> Result<(), Error> {
        self.children[usize::from(id.0)].kill();
        Ok(())
    }

    fn pause(&mut self, id: ReplicaId) -> Result<(), Error> {
        self.children[usize::from(id.0)].pause().map_err(Error::system(format!("stop {id}")))
    }

    fn go_on(&mut self, id: ReplicaId) -> Result<(), Error> {
        self.children[usize::from(id.0)].go_on().map_err(Error::system(format!("let {id} go on")))
    }

    fn restart(&mut self, id: ReplicaId, stop: &Stop) -> Result<(), Error> {
        self.children[usize::from(id.0)].restart().map_err(Error::system(format!("start {id}")))?;
        self.wait(&[id], stop, "come back", &|_| true)
    }

    fn cut(&mut self, cuts: Cuts) -> Result<(), Error> {
        match &mut self.network {
            Some(network) => network.cut(cuts).map_err(Error::system("cut or mend lines")),
            None => Err(Error::Usage("this laboratory is on loopback: it has no lines to cut".into())),
        }
    }
}

/// Datagrams go to this port in each namespace, questions for the status to the next.
const PORT: u16 = 7_000;

fn addresses(n: usize, port: u16) -> Vec<SocketAddr> {
    (0..n).map(|i| SocketAddr::new(Network::address(i), port)).collect()
}

fn spawn(dir: &Path, id: ReplicaId, config: &Path, network: Option<&Network>) -> Result<Child, Error> {
    let program = std::env::current_exe().map_err(Error::system("find this program"))?;
    let mut arguments = vec!["replica".into(), "--config".into(), config.into(), "--until-stdin-closes".into()];
    let (program, arguments) = match network {
        None => (program, arguments),
        Some(network) => {
            arguments.push("--lab".into());
            network.inside(usize::from(id.0), &program, arguments)
        }
    };
    let launch = Launch { name: id.to_string(), program, arguments, log: log_file(dir, id) };
    Child::start(launch).map_err(Error::system(format!("start {id}")))
}

fn set_transport(config: &Path, transport: TransportKind) -> Result<(), Error> {
    let word = match transport {
        TransportKind::Auto => return Ok(()),
        TransportKind::Uring => "uring",
        TransportKind::Sockets => "sockets",
    };
    let append =
        || OpenOptions::new().append(true).open(config)?.write_all(format!("transport = \"{word}\"\n").as_bytes());
    append().map_err(Error::writing(config))
}

/// How clients reach a cluster.
pub fn target(cluster: &Cluster, instance: u64, transport: TransportKind, timeout: Duration) -> Target {
    let protocol = &cluster.file.protocol;
    Target {
        addresses: cluster.addresses(),
        keys: cluster.keys(instance),
        mode: cluster.auth_mode(),
        datagram_max: protocol.datagram_bytes_max,
        inline_max: protocol.inline_bytes_max,
        read_only: cluster.file.read_only,
        request_timeout: timeout,
        backend: backend(transport),
        clock: Clock::new(),
    }
}

/// What a laboratory's failure means at the command line.
fn station_error(error: StationError) -> Error {
    match error {
        StationError::Runtime(error) => error.into(),
        StationError::Keys(error) => Error::System { doing: "make keys".into(), error: io::Error::other(error) },
    }
}

fn load_error(error: LoadError) -> Error {
    match error {
        LoadError::Station(error) => station_error(error),
        LoadError::Interrupted => Error::Interrupted,
        LoadError::NoAnswer { .. } => Error::Running {
            seen: error.to_string(),
            mend: "castra status shows which replicas are up and what they reject".into(),
        },
        LoadError::Process { .. } | LoadError::Session(_) => {
            Error::System { doing: "measure".into(), error: io::Error::other(error) }
        }
    }
}
