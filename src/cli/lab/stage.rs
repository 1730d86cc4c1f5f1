//! A cluster whose replicas can be struck: a laboratory of our own, or one that runs in the background.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::{KEEPS_LOGS, LOOK, PATIENCE, target};
use crate::auth::Identity;
use crate::cli::config::{self, Client, Cluster, ServiceName, TransportKind};
use crate::cli::errors::Error;
use crate::cli::processes::{self, Process, pid_file};
use crate::cli::status::{self, Observer, ReplicaStatus};
use crate::cli::{files, updown};
use crate::lab::Target;
use crate::runtime::Stop;
use crate::types::{ReplicaId, View};

/// From whom to whom nothing comes through.
pub type Cuts = BTreeSet<(usize, usize)>;

/// A cluster, and what can be done to it.
pub trait Stage {
    /// Its configuration.
    fn cluster(&self) -> &Cluster;
    /// Asks its replicas.
    fn observer(&self) -> &Observer;
    /// Which life of it this is.
    fn instance(&self) -> u64;
    /// A client that it serves.
    fn identity(&self) -> &Identity;
    /// E025 if the process of `id` has ended.
    fn look(&mut self, id: ReplicaId) -> Result<(), Error>;
    /// SIGKILL.
    fn kill(&mut self, id: ReplicaId) -> Result<(), Error>;
    /// SIGSTOP.
    fn pause(&mut self, id: ReplicaId) -> Result<(), Error>;
    /// SIGCONT.
    fn go_on(&mut self, id: ReplicaId) -> Result<(), Error>;
    /// Starts it again after a kill, and waits until it answers.
    fn restart(&mut self, id: ReplicaId, stop: &Stop) -> Result<(), Error>;
    /// From now on nothing comes through between these, and between no others.
    fn cut(&mut self, cuts: Cuts) -> Result<(), Error>;

    /// Every replica.
    fn all(&self) -> Vec<ReplicaId> {
        self.cluster().size.replicas().collect()
    }

    /// How its clients reach it.
    fn target(&self, transport: TransportKind, timeout: Duration) -> Target {
        target(self.cluster(), self.instance(), transport, timeout)
    }

    /// What replica `id` says of itself, if it answers.
    fn status(&self, id: ReplicaId) -> Option<ReplicaStatus> {
        self.observer().ask(id).ok()
    }

    /// What all replicas that answer say of themselves.
    fn statuses(&self) -> Vec<(ReplicaId, ReplicaStatus)> {
        self.observer().ask_all().into_iter().filter_map(|asked| Some((asked.id, asked.answer.ok()?))).collect()
    }

    /// The view that all but `absent` are in, as far as one can tell.
    fn view(&self, absent: Option<ReplicaId>) -> View {
        let asked = self.observer().ask_those(|id| Some(id) != absent);
        let answers: Vec<_> = asked.into_iter().filter_map(|asked| asked.answer.ok()).collect();
        View(status::view(self.cluster().size, answers.iter()))
    }

    /// Waits until every replica takes part again: recovered, in no older view, and no further behind than a checkpoint
    /// (P50: before that the next fault may be one too many).
    fn until_whole(&mut self, stop: &Stop) -> Result<(), Error> {
        let (all, interval) = (self.all(), self.cluster().file.protocol.checkpoint_interval);
        let until = Instant::now() + PATIENCE;
        loop {
            if stop.is_stopped() {
                return Err(Error::Interrupted);
            }
            all.iter().try_for_each(|&id| self.look(id))?;
            let asked = self.observer().ask_all();
            let answers: Vec<&ReplicaStatus> = asked.iter().filter_map(|asked| asked.answer.as_ref().ok()).collect();
            if let Some(status) = answers.iter().find(|status| ["stopped", "lost"].contains(&status.state.as_str())) {
                let why = status.stopped.clone().unwrap_or_else(|| "memory lost: start a new instance".into());
                return Err(Error::Stopped { replica: status.id.clone(), why, mend: KEEPS_LOGS.into() });
            }
            let executed = || answers.iter().map(|status| status.executed);
            let spread = executed().max().unwrap_or(0) - executed().min().unwrap_or(0);
            let normal = answers.iter().all(|status| status.state == "normal" && status.instance == self.instance());
            // Who left the view alone has to wait for others to follow (P28, P29): it executes, and its view-change counts.
            let view = status::view(self.cluster().size, answers.iter().copied());
            let none_behind = answers.iter().all(|status| status.view >= view);
            if answers.len() == all.len() && normal && none_behind && spread <= interval {
                return Ok(());
            }
            if Instant::now() >= until {
                let line = |asked: &status::Asked| match &asked.answer {
                    Ok(s) => format!("{} is {} in view {} at {}", s.id, s.state, s.view, s.executed),
                    Err(_) => format!("{} does not answer", asked.id),
                };
                let seen: Vec<String> = asked.iter().map(line).collect();
                return Err(Error::Running {
                    seen: format!("the cluster is not whole again after {} s: {}", PATIENCE.as_secs(), seen.join(", ")),
                    mend: KEEPS_LOGS.into(),
                });
            }
            thread::sleep(LOOK);
        }
    }

    /// Waits until each of `replicas` answers and is as `enough` wants it.
    fn wait(
        &mut self,
        replicas: &[ReplicaId],
        stop: &Stop,
        to: &str,
        enough: &dyn Fn(&ReplicaStatus) -> bool,
    ) -> Result<(), Error> {
        let (observer, instance) = (self.observer().clone(), self.instance());
        let meanwhile = || {
            replicas.iter().try_for_each(|&id| self.look(id))?;
            if stop.is_stopped() { Err(Error::Interrupted) } else { Ok(()) }
        };
        let late = observer.wait(replicas, instance, PATIENCE, meanwhile, enough)?;
        match late.is_empty() {
            true => Ok(()),
            false => Err(Error::Running {
                seen: format!("{} did not {to} within {} s", late.join(", "), PATIENCE.as_secs()),
                mend: "is the machine very busy? `uptime` shows its load".into(),
            }),
        }
    }
}

/// A laboratory that `castra up` started. What was stopped or killed here is brought back when this goes.
pub struct Background {
    dir: PathBuf,
    cluster: Cluster,
    observer: Observer,
    identity: Identity,
    instance: u64,
    paused: BTreeSet<ReplicaId>,
    killed: BTreeSet<ReplicaId>,
}

impl Background {
    /// The cluster of key-value stores whose folder is `dir`, all of whose replicas run here.
    pub fn attach(dir: &Path) -> Result<Background, Error> {
        let client = Client::load(dir)?;
        let cluster = Cluster::load(&dir.join("cluster.toml"))?;
        if cluster.file.service != ServiceName::Kv {
            let mend = "castra cluster init DIR && castra up DIR makes one that does";
            return Err(config::wrong(&cluster.path, "its service is not `kv`", mend));
        }
        let away: Vec<String> =
            cluster.size.replicas().filter(|&id| process(dir, id).is_err()).map(|id| id.to_string()).collect();
        if !away.is_empty() {
            return Err(Error::Running {
                seen: format!("{} of {} does not run here as a process of `castra up`", away.join(", "), dir.display()),
                mend: format!("castra up {}", dir.display()),
            });
        }
        Ok(Background {
            observer: Observer::new(dir, &cluster),
            identity: files::read_key(&client.file.key_file)?,
            instance: files::read_instance(&client.file.instance_file)?,
            cluster,
            dir: dir.to_owned(),
            paused: BTreeSet::new(),
            killed: BTreeSet::new(),
        })
    }
}

fn process(dir: &Path, id: ReplicaId) -> Result<Process, Error> {
    processes::running(&pid_file(dir, id)).ok_or_else(|| Error::Stopped {
        replica: id.to_string(),
        why: processes::last_words(dir, id).unwrap_or_else(|| "its process is gone".into()),
        mend: format!("castra up {} starts it again", dir.display()),
    })
}

impl Stage for Background {
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
        process(&self.dir, id).map(drop)
    }

    fn kill(&mut self, id: ReplicaId) -> Result<(), Error> {
        let process = process(&self.dir, id)?;
        process.kill().map_err(Error::system(format!("kill {id}")))?;
        self.killed.insert(id);
        process.ended_within(PATIENCE);
        Ok(())
    }

    fn pause(&mut self, id: ReplicaId) -> Result<(), Error> {
        process(&self.dir, id)?.pause().map_err(Error::system(format!("stop {id}")))?;
        self.paused.insert(id);
        Ok(())
    }

    fn go_on(&mut self, id: ReplicaId) -> Result<(), Error> {
        process(&self.dir, id)?.go_on().map_err(Error::system(format!("let {id} go on")))?;
        self.paused.remove(&id);
        Ok(())
    }

    fn restart(&mut self, id: ReplicaId, _: &Stop) -> Result<(), Error> {
        // It was on loopback, or somebody had allowed that it was not.
        updown::start(&self.dir, true, PATIENCE)?;
        self.killed.remove(&id);
        Ok(())
    }

    fn cut(&mut self, _: Cuts) -> Result<(), Error> {
        Err(Error::Usage("a cluster that runs already has no network of its own: it cannot be cut".into()))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Nobody is left to tell but the one who watches: `castra status` shows what did not come back.
        for id in std::mem::take(&mut self.paused) {
            let _ = self.go_on(id);
        }
        if !self.killed.is_empty() {
            let _ = updown::start(&self.dir, true, PATIENCE);
        }
    }
}
