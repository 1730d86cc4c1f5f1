//! `castra bfs fsck`: every replica checks its own file system at one checkpoint, and says what it found.
//!
//! The state at a checkpoint has a digest, so that equal states are seen to be equal. For that state to hold what was
//! written before the check, calls that change nothing are ordered up to the next checkpoint.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::bfs::{Bfs, Credentials, Procedure};
use crate::cli::config::{Cluster, ServiceName, wrong};
use crate::cli::connect::{connect, failed};
use crate::cli::errors::Error;
use crate::cli::inspection::InspectionReport;
use crate::cli::output;
use crate::cli::status::{Asked, Observer, ReplicaStatus};
use crate::types::{ClusterSize, ReplicaId};

/// What `--help` ends with.
pub const EXAMPLE: &str = "Examples:\n  castra bfs fsck --cluster lab\n  castra bfs fsck --cluster lab --json | jq .clean\nThe \
    replicas go on serving. Exit status: 0 if all that answer are clean, and f + 1 of them have one state; else 1.";

/// How long one of the calls that lead to a checkpoint may take.
const CALL: Duration = Duration::from_secs(10);
/// How long replicas have to come to a checkpoint.
const COMING: Duration = Duration::from_secs(5);
/// How often someone who waits looks.
const LOOK: Duration = Duration::from_millis(20);
/// How often another checkpoint is tried: under load they are soon forgotten.
const ROUNDS: usize = 5;

/// `castra bfs fsck`
#[derive(clap::Args, Debug)]
pub struct FsckArgs {
    /// The cluster's folder
    #[arg(long, short, default_value = ".", value_name = "DIR")]
    cluster: PathBuf,
    /// Check the last checkpoint that there is, without what came after it, and order nothing
    #[arg(long)]
    last: bool,
    /// Give a replica up whose check takes longer
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What came of one replica: its report, or why there is none.
type Told = (ReplicaId, Result<InspectionReport, String>);

/// Has every replica checked. E027 if one has faults, E028 if too few have one state.
pub fn run(args: &FsckArgs) -> Result<(), Error> {
    let cluster = Cluster::load(&args.cluster.join("cluster.toml"))?;
    if cluster.file.service != ServiceName::Bfs {
        let seen = format!("the service of this cluster is {}, which has no fsck", cluster.file.service.word());
        return Err(wrong(
            &cluster.path,
            seen,
            "name the folder of a cluster made with: castra cluster init DIR --service bfs",
        ));
    }
    let observer = Observer::new(&args.cluster, &cluster);
    if !args.last
        && let Err(error) = advance(args, &cluster, &observer)
    {
        output::note(format!("{error}\nThe last checkpoint is checked: what was written after it is not looked at."));
    }
    let mut found = Found::default();
    for _ in 0..ROUNDS {
        found = look(args, cluster.size, &observer);
        if found.agreeing.len() > cluster.size.f() || found.reports() == 0 {
            break;
        }
    }
    found.tell(&cluster, args.json)?;
    found.verdict(cluster.size)
}

/// Orders calls that change nothing until the next checkpoint covers whatever was answered before.
fn advance(args: &FsckArgs, cluster: &Cluster, observer: &Observer) -> Result<(), Error> {
    let interval = cluster.file.protocol.checkpoint_interval;
    let asked = observer.ask_all();
    let mut last: Vec<u64> = answers(&asked).map(|(_, status)| status.executed.max(status.prepared)).collect();
    last.sort_unstable_by(|a, b| b.cmp(a));
    // f liars may name any number. Whatever was answered was prepared by more than f others.
    let Some(&last) = last.get(cluster.size.f()) else { return Ok(()) };
    let target = last.max(1).next_multiple_of(interval);
    let connected = connect(&args.cluster, Some(CALL))?;
    let call = Bfs::operation(Procedure::Null as u32, &Credentials::ROOT, &[]);
    // One after the other: each is a batch, if there is no other load.
    for _ in last..target {
        let done = connected.client.submit(call.clone()).and_then(|pending| pending.wait());
        done.map_err(|error| failed("order a call that changes nothing", CALL, error))?;
    }
    let until = Instant::now() + COMING;
    while Instant::now() < until {
        let asked = observer.ask_all();
        let there = |status: &ReplicaStatus| status.checkpoints.keys().next_back().is_some_and(|&n| n >= target);
        if answers(&asked).all(|(_, status)| there(status)) {
            break;
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

fn answers(asked: &[Asked]) -> impl Iterator<Item = (ReplicaId, &ReplicaStatus)> {
    asked.iter().filter_map(|asked| Some((asked.id, asked.answer.as_ref().ok()?)))
}

/// The last checkpoint that a quorum has come to; if there is none, that f + 1 have; that anyone has.
fn common(size: ClusterSize, asked: &[Asked]) -> Option<u64> {
    let mut holders: BTreeMap<u64, usize> = BTreeMap::new();
    for n in answers(asked).flat_map(|(_, status)| status.checkpoints.keys()) {
        *holders.entry(*n).or_default() += 1;
    }
    let of = |least: usize| holders.iter().rev().find(|(_, count)| **count >= least).map(|(n, _)| *n);
    of(size.quorum()).or_else(|| of(size.f() + 1)).or_else(|| of(1))
}

/// Has the replicas check what they hold at one checkpoint.
fn look(args: &FsckArgs, size: ClusterSize, observer: &Observer) -> Found {
    let asked = observer.ask_all();
    let n = common(size, &asked);
    let told = match n {
        Some(n) => {
            let all = observer.inspect_all(n, Duration::from_secs(args.timeout));
            let text = |none| format!("it does not hold checkpoint {n}{none}");
            let state = |id| answers(&asked).find(|(other, _)| *other == id).map(|(_, status)| status.state.clone());
            let named = |(id, told): (ReplicaId, Result<Option<InspectionReport>, String>)| {
                let told = told.and_then(|report| {
                    report.ok_or_else(|| text(state(id).map_or(String::new(), |state| format!(" (it is {state})"))))
                });
                (id, told)
            };
            all.into_iter().map(named).collect()
        }
        None => {
            let none = |_| "it has no checkpoint yet".to_owned();
            asked.into_iter().map(|asked| (asked.id, Err(asked.answer.map_or_else(|why| why, none)))).collect()
        }
    };
    Found::of(n, size, told)
}

/// What all replicas said.
#[derive(Default)]
struct Found {
    n: Option<u64>,
    told: Vec<Told>,
    /// The most with one digest, if they are more than f.
    agreeing: Vec<ReplicaId>,
}

impl Found {
    fn of(n: Option<u64>, size: ClusterSize, mut told: Vec<Told>) -> Found {
        let mut by_root: BTreeMap<&str, Vec<ReplicaId>> = BTreeMap::new();
        for (id, report) in told.iter().filter_map(|(id, told)| Some((*id, told.as_ref().ok()?))) {
            by_root.entry(&report.root).or_default().push(id);
        }
        let most = by_root.into_values().max_by_key(Vec::len).filter(|ids| ids.len() > size.f());
        let agreeing = most.unwrap_or_default();
        if !agreeing.is_empty() {
            let fault = format!("its state is not that of {}", names(&agreeing));
            for (_, report) in told.iter_mut().filter(|(id, _)| !agreeing.contains(id)) {
                if let Ok(report) = report {
                    report.faults.insert(0, fault.clone());
                }
            }
        }
        Found { n, told, agreeing }
    }

    fn reports(&self) -> usize {
        self.told.iter().filter(|(_, told)| told.is_ok()).count()
    }

    fn faulty(&self) -> Vec<ReplicaId> {
        let faulty =
            |told: &Result<InspectionReport, String>| told.as_ref().is_ok_and(|report| !report.faults.is_empty());
        self.told.iter().filter(|(_, told)| faulty(told)).map(|(id, _)| *id).collect()
    }

    fn is_clean(&self) -> bool {
        self.faulty().is_empty() && !self.agreeing.is_empty()
    }

    fn tell(&self, cluster: &Cluster, as_json: bool) -> Result<(), Error> {
        match as_json {
            true => output::json(&self.to_json(cluster)),
            false => output::line(self.lines().join("\n")),
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (id, told) in &self.told {
            let report = match told {
                Ok(report) => report,
                Err(why) => {
                    lines.push(printable(&format!("{id}: not checked: {why}")));
                    continue;
                }
            };
            let how = match report.faults.len() {
                0 => "clean".to_owned(),
                1 => "1 fault".to_owned(),
                count => format!("{count} faults"),
            };
            let counts: Vec<String> = report.counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
            let digest: String = report.root.chars().take(16).collect();
            let counts = counts.join(", ");
            lines.push(printable(&format!("{id}: {how} at checkpoint {}, digest {digest}: {counts}", report.n)));
            lines.extend(report.faults.iter().map(|fault| printable(&format!("  {fault}"))));
        }
        if self.is_clean() {
            lines.push(format!("{} agree", names(&self.agreeing)));
        }
        lines
    }

    fn to_json(&self, cluster: &Cluster) -> Value {
        let told = |told: &Result<InspectionReport, String>| match told {
            Ok(report) => json!({
                "checked": true,
                "digest": report.root,
                "counts": report.counts.iter().cloned().collect::<BTreeMap<String, u64>>(),
                "faults": report.faults,
            }),
            Err(why) => json!({ "checked": false, "why": why }),
        };
        let replicas: Map<String, Value> = self.told.iter().map(|(id, it)| (id.to_string(), told(it))).collect();
        let agreeing: Vec<String> = self.agreeing.iter().map(ReplicaId::to_string).collect();
        json!({
            "cluster": cluster.id.to_string(),
            "checkpoint": self.n,
            "clean": self.is_clean(),
            "agreeing": agreeing,
            "replicas": replicas,
        })
    }

    fn verdict(&self, size: ClusterSize) -> Result<(), Error> {
        let faulty = self.faulty();
        if let (Some(n), false) = (self.n, faulty.is_empty()) {
            let shared = faulty.len() > size.f() && faulty.iter().all(|id| self.agreeing.contains(id));
            return Err(Error::Unsound { replicas: faulty.iter().map(ReplicaId::to_string).collect(), n, shared });
        }
        if self.agreeing.is_empty() {
            let unchecked = self.told.iter().filter(|(_, told)| told.is_err()).map(|(id, _)| id.to_string()).collect();
            return Err(Error::Unconfirmed { f: size.f(), n: self.n, checked: self.reports(), unchecked });
        }
        Ok(())
    }
}

fn names(ids: &[ReplicaId]) -> String {
    let names: Vec<String> = ids.iter().map(ReplicaId::to_string).collect();
    names.join(", ")
}

/// A liar's words are no commands to the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size() -> ClusterSize {
        ClusterSize::of(4).unwrap()
    }

    fn report(root: &str, faults: &[&str]) -> Result<InspectionReport, String> {
        Ok(InspectionReport {
            n: 512,
            root: root.to_owned(),
            counts: vec![("files".to_owned(), 3)],
            faults: faults.iter().map(|&fault| fault.to_owned()).collect(),
            ..InspectionReport::default()
        })
    }

    fn found(told: [Result<InspectionReport, String>; 4]) -> Found {
        Found::of(Some(512), size(), (0..).map(ReplicaId).zip(told).collect())
    }

    fn away() -> Result<InspectionReport, String> {
        Err("away".to_owned())
    }

    #[test]
    fn enough_with_one_clean_state_agree() {
        let all = found([report("aa", &[]), report("aa", &[]), report("aa", &[]), report("aa", &[])]);
        assert!(all.verdict(size()).is_ok());
        let lines = all.lines();
        assert_eq!(lines[1], "r1: clean at checkpoint 512, digest aa: 3 files");
        assert_eq!(lines[4], "r0, r1, r2, r3 agree");
        let two = found([away(), report("aa", &[]), away(), report("aa", &[])]);
        assert!(two.verdict(size()).is_ok());
        assert_eq!(two.lines()[..2], ["r0: not checked: away", "r1: clean at checkpoint 512, digest aa: 3 files"]);
    }

    #[test]
    fn faults_and_other_states_are_told() {
        let one = found([report("aa", &[]), report("aa", &["inode 3\u{1b} is gone"]), report("aa", &[]), away()]);
        assert!(matches!(one.verdict(size()), Err(Error::Unsound { shared: false, .. })));
        assert_eq!(one.lines()[2], "  inode 3\u{fffd} is gone");
        let all = found([report("aa", &["x"]), report("aa", &["x"]), report("aa", &["x"]), report("aa", &["x"])]);
        assert!(matches!(all.verdict(size()), Err(Error::Unsound { shared: true, .. })));
        let other = found([report("aa", &[]), report("bb", &[]), report("aa", &[]), report("aa", &[])]);
        let Err(Error::Unsound { replicas, n: 512, shared: false }) = other.verdict(size()) else {
            panic!("it differs")
        };
        assert_eq!(replicas, ["r1"]);
        assert_eq!(other.lines()[2], "  its state is not that of r0, r2, r3");
    }

    #[test]
    fn one_alone_is_not_believed() {
        let one = found([report("aa", &[]), away(), away(), away()]);
        let Err(Error::Unconfirmed { unchecked, checked: 1, .. }) = one.verdict(size()) else { panic!("it is alone") };
        assert_eq!(unchecked, ["r1", "r2", "r3"]);
        let apart = found([report("aa", &[]), report("bb", &[]), away(), away()]);
        assert!(matches!(apart.verdict(size()), Err(Error::Unconfirmed { checked: 2, .. })));
    }

    #[test]
    fn the_last_checkpoint_of_a_quorum_is_taken() {
        let status = |id, checkpoints: &[u64]| Asked {
            id: ReplicaId(id),
            answer: Ok(ReplicaStatus {
                checkpoints: checkpoints.iter().map(|&n| (n, "aa".to_owned())).collect(),
                ..ReplicaStatus::default()
            }),
        };
        let asked =
            [status(0, &[256, 512, 768]), status(1, &[256, 512]), status(2, &[256, 512]), status(3, &[u64::MAX])];
        assert_eq!(common(size(), &asked), Some(512));
        assert_eq!(common(size(), &asked[2..]), Some(u64::MAX));
        assert_eq!(common(size(), &[status(0, &[])]), None);
    }
}
