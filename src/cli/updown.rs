//! `castra up` and `castra down`: the replicas of a laboratory as background processes of this machine.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::config::{Cluster, Replica};
use super::errors::Error;
use super::output::{self, line, note};
use super::processes::{self, Process, last_words, log_file, pid_file};
use super::status::Observer;
use super::{check, files};
use crate::types::ReplicaId;

/// `castra up`
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  castra up lab && castra status lab")]
pub struct Up {
    /// The cluster's folder, as `castra cluster init` made it
    pub dir: PathBuf,
    /// Allow addresses beyond loopback, knowingly
    #[arg(long)]
    pub lab: bool,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 30)]
    pub wait: u64,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What [`start`] did.
pub struct Outcome {
    cluster: String,
    instance: u64,
    started: Vec<(ReplicaId, u32)>,
    /// Those that ran already, with their pids.
    running: Vec<String>,
    fresh: bool,
}

/// Starts the replicas of a folder that do not run, and waits until each answers. The replicas of a life of the cluster
/// share its instance id. If all were down, this is a new life, in which nothing of the old is believed (P42 f); if some
/// run, the others join them, and know that they have forgotten. More than f at once cannot: too much is forgotten.
pub fn start(dir: &Path, lab: bool, patience: Duration) -> Result<Outcome, Error> {
    let cluster = Cluster::load(&dir.join("cluster.toml"))?;
    cluster.check_lab(lab)?;
    let (mut missing, mut running) = (Vec::new(), Vec::new());
    for id in cluster.size.replicas() {
        let path = dir.join(format!("{id}.toml"));
        let replica = Replica::load(&path)?;
        check::check_key(&replica)?;
        match processes::running(&pid_file(dir, id)) {
            Some(process) => running.push(format!("{id} (pid {})", process.pid)),
            None => missing.push((id, path, replica.file.instance_file)),
        }
    }
    let (n, shown) = (cluster.size.n(), dir.display());
    if missing.is_empty() {
        return Err(Error::Running {
            seen: format!("all {n} replicas run already: {}", running.join(", ")),
            mend: format!("castra status {shown} shows them; castra down {shown} ends them"),
        });
    }
    let fresh = running.is_empty();
    if !fresh {
        budget(dir, &cluster, missing.len(), &running)?;
    }
    let instance = if fresh { files::random_u64()? } else { files::read_instance(&missing[0].2)? };
    let mut written = Vec::new();
    for (_, _, file) in missing.iter().filter(|_| fresh) {
        if !written.contains(&file) {
            files::write_instance(file, instance)?;
            written.push(file);
        }
    }
    let mut started = Started { folder: dir, children: Vec::new(), keep: false };
    for (id, path, _) in &missing {
        started.children.push((*id, spawn(dir, *id, path, lab, fresh)?));
    }
    started.wait(&cluster, instance, patience)?;
    started.keep = true;
    let started = started.children.iter().map(|(id, child)| (*id, child.id())).collect();
    Ok(Outcome { cluster: cluster.id.to_string(), instance, started, running, fresh })
}

/// Whether `missing` more replicas may forget: with those that recover still they are at most f (P42 f, P50).
fn budget(dir: &Path, cluster: &Cluster, missing: usize, running: &[String]) -> Result<(), Error> {
    let (n, f, shown) = (cluster.size.n(), cluster.size.f(), dir.display());
    let recovering: Vec<String> = Observer::new(dir, cluster)
        .ask_all()
        .into_iter()
        .filter_map(|asked| asked.answer.ok())
        .filter(|status| status.state == "recovering")
        .map(|status| status.id)
        .collect();
    if missing + recovering.len() <= f {
        return Ok(());
    }
    let also = match recovering.is_empty() {
        true => String::new(),
        false => format!(", {} recovers still", recovering.join(", ")),
    };
    let (seen, mend) = match missing <= f {
        true => (
            format!("{missing} of {n} replicas are down{also}, and only {f} may have forgotten at a time"),
            format!(
                "castra status {shown} --watch shows whether it recovers; then castra up {shown}. If it cannot, for it needs \
                 the others: castra down {shown} && castra up {shown} begins an empty life of the cluster"
            ),
        ),
        false => (
            format!(
                "{missing} of {n} replicas are down and their memory is lost{also}; {} still run, and {f} may be missing",
                running.join(", ")
            ),
            format!("castra down {shown} && castra up {shown} begins an empty life of the cluster"),
        ),
    };
    Err(Error::Running { seen, mend })
}

/// `castra up`: see [`start`].
pub fn up(args: &Up) -> Result<(), Error> {
    let done = start(&args.dir, args.lab, Duration::from_secs(args.wait))?;
    if args.json {
        let pids: Vec<u32> = done.started.iter().map(|(_, pid)| *pid).collect();
        let started: Vec<String> = done.started.iter().map(|(id, _)| id.to_string()).collect();
        return output::json(&json!({
            "cluster": done.cluster,
            "instance": done.instance,
            "started": started,
            "pids": pids,
            "new_life": done.fresh,
        }));
    }
    for (id, pid) in &done.started {
        line(format!("{id} is up (pid {pid}, log {})", log_file(&args.dir, *id).display()))?;
    }
    if !done.running.is_empty() {
        note(format!("{} ran already", done.running.join(", ")));
    }
    Ok(())
}

/// A replica's log begins anew with a life of the cluster.
fn spawn(folder: &Path, id: ReplicaId, config: &Path, lab: bool, fresh: bool) -> Result<Child, Error> {
    let log = log_file(folder, id);
    let mut options = OpenOptions::new();
    let options = if fresh { options.write(true).truncate(true) } else { options.append(true) };
    let file = options.create(true).open(&log).map_err(Error::writing(&log))?;
    let copy = file.try_clone().map_err(Error::writing(&log))?;
    let program = std::env::current_exe().map_err(Error::system("find this program"))?;
    let mut command = Command::new(program);
    command.arg("replica").arg("--config").arg(config);
    if lab {
        command.arg("--lab");
    }
    // A group of its own: Ctrl-C at this terminal is not meant for it.
    command.stdin(Stdio::null()).stdout(file).stderr(copy).process_group(0);
    command.spawn().map_err(Error::system(format!("start {id}")))
}

/// Children that are ended again unless all came up.
struct Started<'a> {
    folder: &'a Path,
    children: Vec<(ReplicaId, Child)>,
    keep: bool,
}

impl Started<'_> {
    fn wait(&mut self, cluster: &Cluster, instance: u64, patience: Duration) -> Result<(), Error> {
        let ids: Vec<ReplicaId> = self.children.iter().map(|(id, _)| *id).collect();
        let (children, folder) = (&mut self.children, self.folder);
        let meanwhile = || {
            for (id, child) in children.iter_mut() {
                if let Ok(Some(exit)) = child.try_wait() {
                    let why = last_words(folder, *id).unwrap_or_else(|| exit.to_string());
                    let log = log_file(folder, *id);
                    let mend = format!("all of it is in {}; what was started with it was stopped again", log.display());
                    return Err(Error::Stopped { replica: id.to_string(), why, mend });
                }
            }
            Ok(())
        };
        let late = Observer::new(folder, cluster).wait(&ids, instance, patience, meanwhile, |_| true)?;
        match late.is_empty() {
            true => Ok(()),
            false => Err(Error::Running {
                seen: format!("no answer within {} s from {}", patience.as_secs(), late.join(", ")),
                mend: "every rN.toml needs a `status` address of its own that is free; --wait gives more time".into(),
            }),
        }
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        for (id, child) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_file(pid_file(self.folder, *id));
        }
    }
}

/// `castra down`
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  castra down lab")]
pub struct Down {
    /// The cluster's folder
    pub dir: PathBuf,
    /// Kill what has not ended after so many seconds
    #[arg(long, default_value_t = 10)]
    pub wait: u64,
}

/// Ends every replica of a folder.
pub fn down(args: &Down) -> Result<(), Error> {
    let cluster = Cluster::load(&args.dir.join("cluster.toml"))?;
    let mut ending: Vec<(ReplicaId, Process)> = Vec::new();
    for id in cluster.size.replicas() {
        let file = pid_file(&args.dir, id);
        match processes::running(&file) {
            Some(process) => {
                process.terminate().map_err(Error::system(format!("end {id} (pid {})", process.pid)))?;
                ending.push((id, process));
            }
            // The file of a process that is gone: killed, or the machine restarted.
            None => drop(std::fs::remove_file(file)),
        }
    }
    if ending.is_empty() {
        note(format!("no replica of {} was running", args.dir.display()));
        return Ok(());
    }
    let until = Instant::now() + Duration::from_secs(args.wait);
    let mut killed = Vec::new();
    for (id, process) in &ending {
        if process.ended_within(until.saturating_duration_since(Instant::now())) {
            line(format!("{id} is down"))?;
            continue;
        }
        process.kill().map_err(Error::system(format!("kill {id} (pid {})", process.pid)))?;
        process.ended_within(Duration::from_secs(5));
        let _ = std::fs::remove_file(pid_file(&args.dir, *id));
        killed.push(id.to_string());
    }
    note("Its state was in memory and is gone: the next `castra up` begins an empty life.");
    if killed.is_empty() {
        return Ok(());
    }
    Err(Error::Running {
        seen: format!("{} did not end within {} s and had to be killed", killed.join(", "), args.wait),
        mend: "nothing is left to do; their logs may say why".into(),
    })
}
