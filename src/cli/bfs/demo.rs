//! `castra bfs demo`: real programs on a mounted cluster, while its primaries are killed and stopped.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::work::{self, Step};
use crate::cli::config::ServiceName;
use crate::cli::errors::Error;
use crate::cli::lab::blow::{self, Digests, Fault, ON_PROCESSES, Spread, ms};
use crate::cli::lab::stage::Stage as _;
use crate::cli::lab::{LOOK, Laboratory, Options, PATIENCE};
use crate::cli::output::{self, line, note};
use crate::lab::{Child, Launch};
use crate::runtime::{Stop, StopOnSignals};
use crate::types::{ReplicaId, SeqNum};

/// What `--help` ends with.
pub const EXAMPLE: &str = "Example:\n  castra bfs demo\nFour replicas run as processes of this machine and their file system is mounted \
    in a temporary folder: that needs root, or fusermount. On it a C library is unpacked, compared and built (liburing, from \
    the sources that cargo fetched for castra), a database does transactions, and a journal is appended to. The primary is \
    killed by SIGKILL and started again, and when it has recovered the next is stopped by SIGSTOP for a while. Exit status 0: \
    no program had an error, nothing that was written is missing, and all four replicas hold the same state.";

/// `castra bfs demo`
#[derive(clap::Args, Debug)]
pub struct Demo {
    /// Print one JSON object, and nothing else
    #[arg(long)]
    json: bool,
}

/// How long the programs work before a blow, and how long the victim is away.
const REST: Duration = Duration::from_secs(1);
const HOLD: Duration = Duration::from_secs(1);
/// From one record of the journal to the next.
const PACE: Duration = Duration::from_millis(5);

/// What was done to a primary, and how long the longest write of the journal took meanwhile.
#[derive(Debug, Serialize)]
struct Struck {
    replica: String,
    how: &'static str,
    longest_write_ms: f64,
    whole_after_ms: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    steps: Vec<Step>,
    rounds: usize,
    records: usize,
    /// Why the journal could not be written on.
    journal_error: Option<String>,
    /// Whether the journal holds every record, and nothing else.
    journal_whole: bool,
    median_write_ms: f64,
    blows: Vec<Struck>,
    digests_equal: bool,
    digests_compared_at: Option<u64>,
    seconds: f64,
}

impl Report {
    fn is_good(&self) -> bool {
        self.journal_error.is_none()
            && self.journal_whole
            && self.digests_equal
            && self.steps.iter().all(|step| step.wrong.is_none())
    }
}

/// The mounted file system: a process that ends with us.
struct Mounted {
    process: Child,
    path: PathBuf,
}

impl Mounted {
    fn start(cluster: &Path, path: PathBuf, log: PathBuf) -> Result<Mounted, Error> {
        fs::create_dir(&path).map_err(Error::writing(&path))?;
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
        let before = device(&path);
        let launch = Launch {
            name: "the mount".into(),
            program: std::env::current_exe().map_err(Error::system("find this program"))?,
            arguments: ["bfs", "mount", "--until-stdin-closes", "--cluster"]
                .map(Into::into)
                .into_iter()
                .chain([cluster.into(), path.clone().into()])
                .collect(),
            log,
        };
        let process = Child::start(launch).map_err(Error::system("start castra bfs mount"))?;
        let mut mounted = Mounted { process, path };
        let begun = Instant::now();
        while device(&mounted.path).is_none_or(|now| Some(now) == before) {
            if mounted.process.ended().is_some() || begun.elapsed() > PATIENCE {
                return Err(Error::Running {
                    seen: format!("nothing was mounted:\n{}", mounted.process.last_words()),
                    mend: "mounting needs root, or fusermount3 and write access to /dev/fuse".into(),
                });
            }
            thread::sleep(LOOK);
        }
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // SIGTERM: a mount whose process is killed stays, and answers nothing.
        self.process.stop(PATIENCE);
    }
}

/// Every write of the journal: when it began, and how long it took.
#[derive(Default)]
struct Journal {
    text: String,
    writes: Vec<(Instant, Duration)>,
    error: Option<String>,
}

impl Journal {
    /// Appends records, each synced, until `done` or an error.
    fn keep(path: &Path, done: &AtomicBool) -> Journal {
        let mut journal = Journal::default();
        journal.error = journal.write(path, done).err().map(|error| error.to_string());
        journal
    }

    fn write(&mut self, path: &Path, done: &AtomicBool) -> std::io::Result<()> {
        let mut file = fs::File::options().create(true).append(true).open(path)?;
        while !done.load(Ordering::Relaxed) {
            let record = format!("record {}\n", self.writes.len());
            let begun = Instant::now();
            file.write_all(record.as_bytes())?;
            file.sync_data()?;
            self.writes.push((begun, begun.elapsed()));
            self.text.push_str(&record);
            thread::sleep(PACE);
        }
        Ok(())
    }

    /// Milliseconds that writes took which were under way between these.
    fn took(&self, from: Instant, to: Instant) -> Spread {
        let meets = |(begun, took): &&(Instant, Duration)| *begun <= to && *begun + *took >= from;
        Spread::of(self.writes.iter().filter(meets).map(|(_, took)| ms(*took)))
    }
}

/// A blow that was dealt.
struct Dealt {
    fault: Fault,
    victim: ReplicaId,
    at: Instant,
    whole: Instant,
}

/// Runs the demo.
pub fn run(args: &Demo) -> Result<(), Error> {
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    let say = |text: String| {
        if !args.json {
            note(text)
        }
    };
    let begun = Instant::now();
    let mut lab = Laboratory::start(&Options { service: ServiceName::Bfs, ..Options::STORES }, &stop)?;
    let folder = tempfile::Builder::new().prefix("castra-bfs-").tempdir();
    let folder = folder.map_err(Error::system("make a temporary folder"))?;
    let mounted = Mounted::start(&lab.dir(), folder.path().join("mnt"), folder.path().join("mount.log"))?;
    say(format!(
        "4 replicas are up after {:.1} s, r0 to r3 are processes {:?}, and their file system is on {}",
        begun.elapsed().as_secs_f64(),
        lab.pids(),
        mounted.path.display()
    ));
    let report = work_and_strike(&mut lab, &mounted.path, folder.path(), &stop, &say)?;
    drop(mounted);
    lab.stop();
    match args.json {
        true => output::json(&report)?,
        false => show(&report)?,
    }
    match report.is_good() {
        true => Ok(()),
        false => Err(Error::to_report("the demo found a fault of castra: see above", "castra bfs demo --json")),
    }
}

fn work_and_strike(
    lab: &mut Laboratory,
    mount: &Path,
    scratch: &Path,
    stop: &Stop,
    say: &dyn Fn(String),
) -> Result<Report, Error> {
    let begun = Instant::now();
    let path = mount.join("journal");
    let (struck, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let (rounds, journal, struck) = thread::scope(|scope| {
        let writer = scope.spawn(|| Journal::keep(&path, &done));
        // Whole rounds, until both blows are over.
        let worker = scope.spawn(|| {
            let mut rounds = Vec::new();
            while !stop.is_stopped() && (rounds.is_empty() || !struck.load(Ordering::Relaxed)) {
                let round = format!("round-{}", rounds.len());
                rounds.push(work::round(&mount.join(&round), &scratch.join(&round)));
            }
            rounds
        });
        let dealt = strike(lab, stop, say);
        struck.store(true, Ordering::Relaxed);
        let rounds = worker.join();
        // The journal goes on until a checkpoint covers all of the work. If it broke off there may be none.
        let settled = |dealt| match writer.is_finished() {
            true => Ok((dealt, None)),
            false => Ok((dealt, Some(settle(lab, stop)?))),
        };
        let struck = dealt.and_then(settled);
        done.store(true, Ordering::Relaxed);
        (rounds, writer.join(), struck)
    });
    let (dealt, digests) = struck?;
    let broken = |what: &str| Error::System { doing: what.into(), error: std::io::Error::other("its thread panicked") };
    let rounds = rounds.map_err(|_| broken("work"))?;
    let journal = journal.map_err(|_| broken("keep a journal"))?;
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let count = rounds.len();
    Ok(Report {
        steps: work::summed(rounds),
        rounds: count,
        records: journal.writes.len(),
        journal_whole: kept == journal.text,
        median_write_ms: journal.took(begun, Instant::now()).median,
        blows: dealt
            .iter()
            .map(|dealt| Struck {
                replica: dealt.victim.to_string(),
                how: dealt.fault.word(),
                longest_write_ms: journal.took(dealt.at, dealt.whole).max,
                whole_after_ms: ms(dealt.whole - dealt.at),
            })
            .collect(),
        digests_equal: digests.as_ref().is_some_and(|digests| digests.equal),
        digests_compared_at: digests.and_then(|digests| digests.at),
        journal_error: journal.error,
        seconds: (begun.elapsed().as_secs_f64() * 10.0).round() / 10.0,
    })
}

/// The primary is killed and comes back; when all is well again the next is stopped for a while.
fn strike(lab: &mut Laboratory, stop: &Stop, say: &dyn Fn(String)) -> Result<Vec<Dealt>, Error> {
    let mut dealt = Vec::new();
    for fault in ON_PROCESSES {
        pass(REST, stop)?;
        let victim = lab.cluster().size.primary(lab.view(None));
        let at = Instant::now();
        fault.deal(lab, victim)?;
        say(format!("{victim}, the primary, is {}", fault.word()));
        pass(HOLD, stop)?;
        fault.undo(lab, victim, stop)?;
        let whole = Instant::now();
        say(format!(
            "{victim} is back, and all four take part again {:.1} s after the blow",
            (whole - at).as_secs_f64()
        ));
        dealt.push(Dealt { fault, victim, at, whole });
    }
    Ok(dealt)
}

fn pass(time: Duration, stop: &Stop) -> Result<(), Error> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        if stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// The digests of all replicas at a checkpoint after what has been executed by now.
fn settle(lab: &mut Laboratory, stop: &Stop) -> Result<Digests, Error> {
    let last = lab.statuses().iter().map(|(_, status)| status.executed).max().unwrap_or(0);
    blow::digests(lab, stop, SeqNum(last))
}

fn show(report: &Report) -> Result<(), Error> {
    for step in &report.steps {
        match (&step.wrong, &step.skipped) {
            (Some(wrong), _) => line(format!("{:<9} FAILED: {wrong}", step.name))?,
            (None, Some(why)) => line(format!("{:<9} left out: {why}", step.name))?,
            (None, None) => {
                line(format!("{:<9} {}, {} times, {:.1} s in all", step.name, step.did, step.times, step.seconds))?
            }
        }
    }
    let whole = if report.journal_whole { "all are there" } else { "SOME ARE MISSING" };
    line(format!(
        "journal   {} records, each synced: {whole}; the median took {} ms",
        report.records, report.median_write_ms
    ))?;
    if let Some(error) = &report.journal_error {
        line(format!("journal   FAILED: {error}"))?;
    }
    for blow in &report.blows {
        line(format!(
            "{:<9} {}, the primary: the longest write took {} ms; all four were well after {} ms",
            blow.how, blow.replica, blow.longest_write_ms, blow.whole_after_ms
        ))?;
    }
    let at = report.digests_compared_at.map_or_else(|| "nowhere".to_owned(), |n| format!("batch {n}"));
    line(format!("digests   of all four equal: {} at {at}", if report.digests_equal { "yes" } else { "NO" }))
}
