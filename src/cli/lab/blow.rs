//! Blows: what is done to a cluster that works, and how long its clients feel it.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::demo::demo_error;
use super::stage::{Cuts, Stage};
use super::{KEEPS_LOGS, LOOK};
use crate::cli::config::TransportKind;
use crate::cli::errors::Error;
use crate::lab::demo::{self, Job, Progress, Record};
use crate::runtime::{Clock, Stop};
use crate::types::{ClusterSize, ReplicaId, SeqNum, Time};

/// What happens to a replica, or on its lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// SIGKILL; later it is started again, and has forgotten everything.
    Kill,
    /// SIGSTOP; later SIGCONT.
    Stop,
    /// No other replica hears it, and it hears none.
    Isolate,
    /// No other replica hears it.
    Mute,
    /// It hears no other replica.
    Deaf,
    /// It and one other do not hear each other.
    Part,
    /// Half of the replicas and the rest do not hear each other: nothing can be ordered meanwhile.
    Halve,
}

/// Those of a cluster on loopback.
pub const ON_PROCESSES: [Fault; 2] = [Fault::Kill, Fault::Stop];
/// Those that need lines to cut.
pub const ON_LINES: [Fault; 5] = [Fault::Isolate, Fault::Mute, Fault::Deaf, Fault::Part, Fault::Halve];

impl Fault {
    /// What is cut; replica `victim` is at one end of it.
    pub fn cuts(self, size: ClusterSize, victim: ReplicaId) -> Cuts {
        let (n, v) = (size.n(), usize::from(victim.0));
        let others = (0..n).filter(|&other| other != v);
        match self {
            Fault::Kill | Fault::Stop => Cuts::new(),
            Fault::Isolate => others.flat_map(|other| [(v, other), (other, v)]).collect(),
            Fault::Mute => others.map(|other| (v, other)).collect(),
            Fault::Deaf => others.map(|other| (other, v)).collect(),
            Fault::Part => Cuts::from([(v, (v + 1) % n), ((v + 1) % n, v)]),
            Fault::Halve => {
                let with = |i: usize| (i + n - v) % n < n / 2;
                let pairs = (0..n).flat_map(|a| (0..n).map(move |b| (a, b)));
                pairs.filter(|&(a, b)| with(a) != with(b)).collect()
            }
        }
    }

    /// Does it to `victim`.
    pub fn deal(self, stage: &mut dyn Stage, victim: ReplicaId) -> Result<(), Error> {
        match self {
            Fault::Kill => stage.kill(victim),
            Fault::Stop => stage.pause(victim),
            fault => {
                let size = stage.cluster().size;
                stage.cut(fault.cuts(size, victim))
            }
        }
    }

    /// Undoes it, and waits until every replica takes part again.
    pub fn undo(self, stage: &mut dyn Stage, victim: ReplicaId, stop: &Stop) -> Result<(), Error> {
        match self {
            Fault::Kill => stage.restart(victim, stop)?,
            Fault::Stop => stage.go_on(victim)?,
            _ => stage.cut(Cuts::new())?,
        }
        stage.until_whole(stop)
    }

    /// Whether a quorum is left that can order.
    fn leaves_quorum(self) -> bool {
        match self {
            Fault::Kill | Fault::Stop | Fault::Isolate | Fault::Mute | Fault::Deaf | Fault::Part => true,
            Fault::Halve => false,
        }
    }

    /// What was done to it.
    pub fn word(self) -> &'static str {
        match self {
            Fault::Kill => "killed",
            Fault::Stop => "stopped",
            Fault::Isolate => "cut off",
            Fault::Mute => "made mute",
            Fault::Deaf => "made deaf",
            Fault::Part => "parted from the next",
            Fault::Halve => "left with half of the others",
        }
    }
}

/// To whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victim {
    /// The primary of the view at that moment.
    Primary,
    /// The replica whose turn as primary is farthest away.
    Backup,
    /// This one.
    Replica(ReplicaId),
}

/// A blow that is planned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blow {
    /// What.
    pub fault: Fault,
    /// To whom.
    pub victim: Victim,
    /// Work before it.
    pub rest: Duration,
    /// How long it lasts at least.
    pub hold: Duration,
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.victim {
            Victim::Primary => write!(f, "the primary")?,
            Victim::Backup => write!(f, "the last backup")?,
            Victim::Replica(id) => write!(f, "{id}")?,
        }
        write!(f, " {} for {} ms", self.fault.word(), self.hold.as_millis())
    }
}

/// A blow that was dealt.
#[derive(Clone, Debug)]
pub struct Dealt {
    /// What.
    pub fault: Fault,
    /// To whom.
    pub victim: ReplicaId,
    /// Whether that was the primary.
    pub primary: bool,
    /// When.
    pub at: Time,
    /// When the fault was taken back.
    pub mended: Time,
    /// When the cluster was whole again; not, if nobody mended it.
    pub whole: Option<Time>,
    /// The view before, when it was mended, and when it was whole.
    pub views: (u64, u64, u64),
    /// Operations answered from the blow until all was well again.
    pub operations: u64,
}

/// What is printed of it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Gap {
    pub fault: Fault,
    pub victim: String,
    pub primary: bool,
    /// Longest time without an ordered operation, from the blow until it was mended.
    pub gap_ms: f64,
    /// Longest time without any operation, queries included.
    pub gap_any_ms: f64,
    pub view_before: u64,
    pub view_after: u64,
    /// From mending it until every replica took part again: recovered, and no further behind than a checkpoint.
    pub healed_ms: Option<f64>,
    /// Longest time without an ordered operation in that time.
    pub healing_gap_ms: Option<f64>,
    /// Operations answered from the blow until then.
    pub operations: u64,
}

impl Dealt {
    /// What the clients felt of it.
    pub fn gap(&self, record: &Record) -> Gap {
        let until = self.whole.unwrap_or(self.mended);
        // Where nothing can be ordered the silence ends after the fault.
        let end = if self.fault.leaves_quorum() { self.mended } else { until };
        Gap {
            fault: self.fault,
            victim: self.victim.to_string(),
            primary: self.primary,
            gap_ms: ms(record.gap(self.at, end, true)),
            gap_any_ms: ms(record.gap(self.at, end, false)),
            view_before: self.views.0,
            view_after: self.views.2,
            healed_ms: self.whole.map(|whole| ms(whole.since(self.mended))),
            healing_gap_ms: self.whole.map(|whole| ms(record.gap(self.mended, whole, true))),
            operations: self.operations,
        }
    }
}

impl Gap {
    /// The longest silence, also while it was mended.
    pub fn longest(&self) -> f64 {
        self.gap_ms.max(self.healing_gap_ms.unwrap_or(0.0))
    }
}

impl fmt::Display for Dealt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Dealt { fault, victim, at, mended, views, .. } = self;
        let role = if self.primary { ", the primary," } else { "" };
        write!(f, "{victim}{role} was {} for {:.0} ms; ", fault.word(), ms(mended.since(*at)))?;
        match views.0 == views.2 {
            true => write!(f, "view {}", views.0)?,
            false => write!(f, "view {}, then {}", views.0, views.2)?,
        }
        if let Some(whole) = self.whole {
            write!(f, "; all well again {:.0} ms later", ms(whole.since(*mended)))?;
        }
        write!(f, "; {} operations were answered meanwhile", self.operations)
    }
}

/// The work stands still for so long: there will be no more of it.
const DEAD: Duration = Duration::from_secs(10);
/// So many ordered operations after a blow, and work goes on.
const GOES_ON: u64 = 10;

/// Deals blows to a cluster under load, each only when nothing is left of the last one.
pub struct Striker<'a> {
    pub stage: &'a mut dyn Stage,
    pub progress: &'a Progress,
    pub clock: Clock,
    pub stop: &'a Stop,
    /// Operations that may be under way at once.
    pub under_way: u64,
    /// Looks at the number of operations, often.
    pub tick: &'a dyn Fn(u64),
}

impl Striker<'_> {
    /// Deals one, and mends it if `mend`.
    pub fn strike(&mut self, blow: &Blow, mend: bool) -> Result<Dealt, Error> {
        self.work(self.progress.ordered() + GOES_ON, "at the start")?;
        self.pass(blow.rest)?;
        let (view, size) = (self.stage.view(None), self.stage.cluster().size);
        let primary = size.primary(view);
        let victim = match blow.victim {
            Victim::Primary => primary,
            Victim::Backup => ReplicaId(((usize::from(primary.0) + size.n() - 1) % size.n()) as u8),
            Victim::Replica(id) => id,
        };
        let (at, begun, before) = (self.clock.now(), Instant::now(), self.progress.operations());
        blow.fault.deal(self.stage, victim)?;
        let when = format!("after {victim} was {}", blow.fault.word());
        if blow.fault.leaves_quorum() {
            // What was under way at the blow may still be answered: more than that must come.
            self.work(self.progress.ordered() + self.under_way + GOES_ON, &when)?;
            self.pass(blow.hold.saturating_sub(begun.elapsed()))?;
            // Work may have begun and stood still again: a silence is measured to its end.
            self.work(self.progress.ordered() + GOES_ON, &when)?;
        } else {
            self.pass(blow.hold)?;
        }
        let (mended, then) = (self.clock.now(), self.stage.view(Some(victim)).0);
        let mut dealt = Dealt {
            fault: blow.fault,
            victim,
            primary: victim == primary,
            at,
            mended,
            whole: None,
            views: (view.0, then, then),
            operations: 0,
        };
        if mend {
            blow.fault.undo(self.stage, victim, self.stop)?;
            self.work(self.progress.ordered() + self.under_way + GOES_ON, &format!("{when}, and brought back"))?;
            (dealt.whole, dealt.views.2) = (Some(self.clock.now()), self.stage.view(None).0);
        }
        dealt.operations = self.progress.operations() - before;
        Ok(dealt)
    }

    /// Waits until so many ordered operations were answered.
    pub fn work(&self, ordered: u64, when: &str) -> Result<(), Error> {
        let mut last = (self.progress.ordered(), Instant::now());
        while last.0 < ordered {
            if last.1.elapsed() > DEAD {
                return Err(Error::Running {
                    seen: format!("no ordered operation was answered for {} s {when}", DEAD.as_secs()),
                    mend: KEEPS_LOGS.into(),
                });
            }
            self.look()?;
            if self.progress.ordered() != last.0 {
                last = (self.progress.ordered(), Instant::now());
            }
        }
        Ok(())
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) -> Result<(), Error> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.look()?;
        }
        Ok(())
    }

    fn look(&self) -> Result<(), Error> {
        (self.tick)(self.progress.operations());
        if self.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        thread::sleep(LOOK);
        Ok(())
    }
}

/// A request without an answer for this long is an error.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What clients did and were told while something else happened.
pub struct Worked<T> {
    pub record: Record,
    /// What happened.
    pub events: T,
    /// The last batch of the work.
    pub last: SeqNum,
    /// When the work ended.
    pub ended: Time,
}

/// Lets clients work on `stage` while `events` happen, and finds out afterwards what the store holds of their work.
pub fn under_load<T>(
    stage: &mut dyn Stage,
    job: &Job,
    stop: &Stop,
    tick: &dyn Fn(u64),
    events: impl FnOnce(&mut Striker<'_>) -> Result<T, Error>,
) -> Result<Worked<T>, Error> {
    let (target, identity) = (stage.target(TransportKind::Auto, TIMEOUT), stage.identity().clone());
    let progress = Progress::new();
    let clock = target.clock;
    let interval = stage.cluster().file.protocol.checkpoint_interval;
    let under_way = (job.threads * job.workers) as u64;
    let (mut record, events, ended) = thread::scope(|scope| {
        let workers = scope.spawn(|| demo::work(job, &target, &identity, &progress));
        let events = events(&mut Striker { stage, progress: &progress, clock, stop, under_way, tick });
        let ended = clock.now();
        // Whatever happened, the workers end.
        progress.stop();
        let record = workers.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Why the events ended says more than that some workers did.
        let events = events?;
        Ok::<_, Error>((record.map_err(demo_error)?, events, ended))
    })?;
    let last = demo::close(&mut record, job, &target, &identity, interval, &progress).map_err(demo_error)?;
    Ok(Worked { record, events, last, ended })
}

/// The states of the replicas, compared.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Digests {
    /// Whether all have one digest at that checkpoint; not, if there is none that covers all of the work.
    pub equal: bool,
    /// The checkpoint.
    pub at: Option<u64>,
    pub digest: Option<String>,
    /// Whose.
    pub of: Vec<String>,
}

/// Waits until every replica of `stage` has a checkpoint that covers batch `last`, and compares them at the last that
/// all have.
pub fn digests(stage: &mut dyn Stage, stop: &Stop, last: SeqNum) -> Result<Digests, Error> {
    let all = stage.all();
    let covers = |status: &crate::cli::status::ReplicaStatus| {
        status.checkpoints.keys().next_back().is_some_and(|&n| n >= last.0)
    };
    stage.wait(&all, stop, "reach the checkpoint after the work", &covers)?;
    let statuses = stage.statuses();
    let common = statuses.first().and_then(|(_, first)| {
        let everywhere = |n: &&u64| statuses.iter().all(|(_, status)| status.checkpoints.contains_key(n));
        first.checkpoints.keys().rev().find(everywhere).copied().filter(|&n| n >= last.0)
    });
    let digest = common.and_then(|n| statuses.first()?.1.checkpoints.get(&n).cloned());
    let same = |n: &u64| statuses.iter().all(|(_, status)| status.checkpoints.get(n) == digest.as_ref());
    Ok(Digests {
        equal: statuses.len() == all.len() && common.as_ref().is_some_and(same),
        at: common,
        digest,
        of: statuses.iter().map(|(id, _)| id.to_string()).collect(),
    })
}

/// Milliseconds, to a tenth.
pub fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

/// Of some milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub max: f64,
}

impl Spread {
    /// The median of an even number is the larger of the middle two.
    pub fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
        Spread { median: at(values.len() / 2), max: at(values.len().saturating_sub(1)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_never_the_better_of_two() {
        let of = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(of(&[9.0, 1.0, 5.0]), Spread { median: 5.0, max: 9.0 });
        assert_eq!(of(&[1.0, 2.0]), Spread { median: 2.0, max: 2.0 });
        assert_eq!(of(&[]), Spread { median: 0.0, max: 0.0 });
    }

    #[test]
    fn p50_a_cut_leaves_a_quorum_unless_it_halves() {
        for f in [1, 2] {
            let size = ClusterSize::tolerating(f).unwrap();
            for fault in ON_LINES {
                for victim in size.replicas() {
                    let cuts = fault.cuts(size, victim);
                    assert!(!cuts.is_empty() && cuts.iter().all(|&(a, b)| a != b && a.max(b) < size.n()));
                    // The largest set in which everyone hears everyone.
                    let hear = |set: u32| {
                        let within = |i: &usize| set >> i & 1 == 1;
                        !cuts.iter().any(|(a, b)| within(a) && within(b))
                    };
                    let largest = (0u32..1 << size.n()).filter(|&set| hear(set)).map(u32::count_ones).max().unwrap();
                    assert_eq!(largest as usize >= size.quorum(), fault.leaves_quorum(), "{fault:?} {victim}");
                }
            }
            assert!(ON_PROCESSES.iter().all(|fault| fault.cuts(size, ReplicaId(0)).is_empty()));
        }
    }
}
