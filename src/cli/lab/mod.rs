//! A laboratory cluster of child processes in a temporary folder, for `demo` and `bench load`.

pub mod bench;
pub mod demo;
pub mod failover;
mod prompt;

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::config::{Cluster, ServiceName, TransportKind};
use super::connect::backend;
use super::errors::Error;
use super::init::{self, Init};
use super::processes::log_file;
use super::status::{self, Observer, ReplicaStatus};
use super::{check, config, files};
use crate::auth::Identity;
use crate::lab::{Child, Launch, LoadError, StationError, Target, child};
use crate::runtime::{Clock, Stop};
use crate::types::{ReplicaId, View};

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
}

/// A cluster of child processes. They end with it, however that ends, and its folder goes.
pub struct Laboratory {
    // Dropped in this order: the processes before the folder that they write to.
    children: Vec<Child>,
    cluster: Cluster,
    observer: Observer,
    identity: Identity,
    instance: u64,
    folder: TempDir,
}

/// How long the replicas have to come up, and to go down.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often something is looked at that has no event.
const LOOK: Duration = Duration::from_millis(20);
/// Where to look further.
const KEEPS_LOGS: &str = "castra cluster init lab && castra up lab starts the same cluster, and keeps its logs";

impl Laboratory {
    /// Makes the folder, starts every replica, and waits until each answers.
    pub fn start(options: &Options, stop: &Stop) -> Result<Laboratory, Error> {
        let folder = tempfile::Builder::new().prefix("castra-").tempdir();
        let folder = folder.map_err(Error::system("make a temporary folder"))?;
        let dir = folder.path().join("lab");
        let (cluster, _) = init::make(&Init {
            dir: dir.clone(),
            f: options.f,
            base_port: None,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            service: options.service,
            name: Some("lab".into()),
            open: options.open,
            signatures: false,
            lab: false,
        })?;
        let identity = files::read_key(&dir.join("client.key"))?;
        let instance = files::read_instance(&dir.join("instance"))?;
        let configs: Vec<_> = cluster.size.replicas().map(|id| (id, dir.join(format!("{id}.toml")))).collect();
        for (_, config) in &configs {
            set_transport(config, options.transport)?;
            check::check_key(&config::Replica::load(config)?)?;
        }
        let observer = Observer::new(&dir, &cluster);
        let mut lab = Laboratory { children: Vec::new(), cluster, observer, identity, instance, folder };
        for (id, config) in &configs {
            lab.children.push(spawn(&dir, *id, config)?);
        }
        let all: Vec<ReplicaId> = lab.cluster.size.replicas().collect();
        lab.wait(&all, stop, "come up", |_| true)?;
        Ok(lab)
    }

    /// The cluster's folder.
    pub fn dir(&self) -> std::path::PathBuf {
        self.folder.path().join("lab")
    }

    /// Its configuration.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The client that its cluster file lists.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The process ids of the replicas.
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::pid).collect()
    }

    /// How its clients reach it.
    pub fn target(&self, transport: TransportKind, timeout: Duration) -> Target {
        target(&self.cluster, self.instance, transport, timeout)
    }

    /// What replica `id` says of itself, if it answers.
    pub fn status(&self, id: ReplicaId) -> Option<ReplicaStatus> {
        self.observer.ask(id).ok()
    }

    /// What all replicas that answer say of themselves.
    pub fn statuses(&self) -> Vec<(ReplicaId, ReplicaStatus)> {
        self.observer.ask_all().into_iter().filter_map(|asked| Some((asked.id, asked.answer.ok()?))).collect()
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

    /// SIGKILL.
    pub fn kill(&mut self, id: ReplicaId) {
        self.children[usize::from(id.0)].kill();
    }

    /// SIGSTOP.
    pub fn pause(&mut self, id: ReplicaId) -> Result<(), Error> {
        self.children[usize::from(id.0)].pause().map_err(Error::system(format!("pause {id}")))
    }

    /// SIGCONT.
    pub fn go_on(&mut self, id: ReplicaId) -> Result<(), Error> {
        self.children[usize::from(id.0)].go_on().map_err(Error::system(format!("let {id} go on")))
    }

    /// The view that all but `absent` are in, as far as one can tell.
    pub fn view(&self, absent: Option<ReplicaId>) -> View {
        let asked = self.observer.ask_those(|id| Some(id) != absent);
        let answers: Vec<_> = asked.into_iter().filter_map(|asked| asked.answer.ok()).collect();
        View(status::view(self.cluster.size, answers.iter()))
    }

    /// Waits until every replica takes part again: normal, in one view, and no further behind than a checkpoint.
    pub fn until_whole(&mut self, stop: &Stop) -> Result<(), Error> {
        let all: Vec<ReplicaId> = self.cluster.size.replicas().collect();
        let (interval, until) = (self.cluster.file.protocol.checkpoint_interval, Instant::now() + PATIENCE);
        loop {
            self.wait(&all, stop, "take part again", |status| status.state == "normal")?;
            let statuses: Vec<ReplicaStatus> = self.statuses().into_iter().map(|(_, status)| status).collect();
            let executed = || statuses.iter().map(|status| status.executed);
            let spread = executed().max().unwrap_or(0) - executed().min().unwrap_or(0);
            let one_view = statuses.windows(2).all(|pair| pair[0].view == pair[1].view);
            if statuses.len() == all.len() && one_view && spread <= interval {
                return Ok(());
            }
            if Instant::now() >= until {
                let line = |s: &ReplicaStatus| format!("{} in view {} at {}", s.id, s.view, s.executed);
                let seen: Vec<String> = statuses.iter().map(line).collect();
                return Err(Error::Running {
                    seen: format!("the cluster is not whole again after {} s: {}", PATIENCE.as_secs(), seen.join(", ")),
                    mend: KEEPS_LOGS.into(),
                });
            }
            thread::sleep(LOOK);
        }
    }

    /// Starts it again after a kill, and waits until it answers.
    pub fn restart(&mut self, id: ReplicaId, stop: &Stop) -> Result<(), Error> {
        self.children[usize::from(id.0)].restart().map_err(Error::system(format!("start {id}")))?;
        self.wait(&[id], stop, "come back", |_| true)
    }

    /// Waits until each of `replicas` answers and is as `enough` wants it.
    pub fn wait(
        &mut self,
        replicas: &[ReplicaId],
        stop: &Stop,
        to: &str,
        enough: impl Fn(&ReplicaStatus) -> bool,
    ) -> Result<(), Error> {
        let children = &mut self.children;
        let meanwhile = || {
            for &id in replicas {
                let child = &mut children[usize::from(id.0)];
                if let Some(exit) = child.ended() {
                    let words = child.last_words();
                    let why =
                        if words.is_empty() { exit.to_string() } else { format!("{exit}; its log ends:\n{words}") };
                    return Err(Error::Stopped { replica: id.to_string(), why, mend: KEEPS_LOGS.into() });
                }
            }
            if stop.is_stopped() { Err(Error::Interrupted) } else { Ok(()) }
        };
        let late = self.observer.wait(replicas, self.instance, PATIENCE, meanwhile, enough)?;
        match late.is_empty() {
            true => Ok(()),
            false => Err(Error::Running {
                seen: format!("{} did not {to} within {} s", late.join(", "), PATIENCE.as_secs()),
                mend: "is the machine very busy? `uptime` shows its load".into(),
            }),
        }
    }

    /// Stops all replicas.
    pub fn stop(mut self) {
        child::stop_all(&mut self.children, PATIENCE);
    }
}

fn spawn(dir: &Path, id: ReplicaId, config: &Path) -> Result<Child, Error> {
    let program = std::env::current_exe().map_err(Error::system("find this program"))?;
    let arguments = vec!["replica".into(), "--config".into(), config.into(), "--until-stdin-closes".into()];
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
