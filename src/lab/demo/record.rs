//! What was done, what is said of it, and whether it was right.

use std::time::Duration;

use super::model::StoreModel;
use super::worker::{Account, Own};
use crate::lab::latency::{Latencies, LatencyMicros};
use crate::sim::linearizability::{Operation, Violation, check};
use crate::types::Time;

/// When replicas began to be struck, and when the last one was back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Phases {
    /// The work began.
    pub began: Time,
    /// The first replica was killed.
    pub struck: Time,
    /// All take part again.
    pub whole: Time,
    /// The work ended.
    pub ended: Time,
}

/// One of the three parts of a demo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// All replicas up.
    Before,
    /// One after the other away.
    During,
    /// All are back.
    After,
}

impl Phases {
    /// The phase of an operation: one that the beginning or the end of it fell into belongs to `During`.
    fn of(&self, timing: &Timing) -> Phase {
        if timing.done < self.struck {
            Phase::Before
        } else if timing.submitted >= self.whole {
            Phase::After
        } else {
            Phase::During
        }
    }

    fn length(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Before => self.struck.since(self.began),
            Phase::During => self.whole.since(self.struck),
            Phase::After => self.ended.since(self.whole),
        }
    }
}

/// When one operation was handed in and answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Timing {
    pub(super) submitted: Time,
    pub(super) done: Time,
    pub(super) read: bool,
}

/// Everything that clients did and were told.
#[derive(Debug, Default)]
pub struct Record {
    pub(super) operations: Vec<Operation>,
    pub(super) timings: Vec<Timing>,
    pub(super) own: Vec<Own>,
    pub(super) found: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) account: Account,
    pub(super) errors: Vec<String>,
}

/// Operations of one kind.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Operations {
    /// How many.
    pub ops: u64,
    /// How long they took.
    #[serde(flatten)]
    pub latency_us: LatencyMicros,
}

/// Figures of one phase.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct PhaseFigures {
    /// Its length.
    pub seconds: f64,
    /// Operations per second.
    pub ops_per_s: f64,
    /// Queries.
    pub reads: Operations,
    /// Ordered operations.
    pub writes: Operations,
}

impl PhaseFigures {
    /// To what one reads: milliseconds, whole operations.
    pub fn rounded(self) -> PhaseFigures {
        PhaseFigures { seconds: (self.seconds * 1e3).round() / 1e3, ops_per_s: self.ops_per_s.round(), ..self }
    }
}

/// What the record proves.
#[derive(Debug)]
pub struct Verdict {
    /// Operations with a certified answer.
    pub ops: u64,
    /// Acknowledged operations whose effect is missing.
    pub lost: u64,
    /// Operations whose effect is there twice.
    pub duplicated: u64,
    /// Operations without an answer.
    pub errors: Vec<String>,
    /// Whether one correct server could have given all these answers.
    pub linearizable: Result<(), Violation>,
}

impl Record {
    /// Operations with a certified answer, of the workload alone.
    pub fn worked(&self) -> u64 {
        self.timings.len() as u64
    }

    /// The longest time between `from` and `to` in which no operation was answered; of ordered operations alone, or of
    /// all. It begins with the last answer before `from`.
    pub fn gap(&self, from: Time, to: Time, ordered_alone: bool) -> Duration {
        let counts = |timing: &&Timing| !(ordered_alone && timing.read);
        let mut done: Vec<Time> = self.timings.iter().filter(counts).map(|timing| timing.done).collect();
        done.retain(|&done| done <= to);
        done.sort_unstable();
        let first = done.partition_point(|&done| done <= from).saturating_sub(1);
        let mut last = done.get(first).copied().unwrap_or(from).min(from);
        let mut longest = Duration::ZERO;
        for &next in done.iter().skip(first).chain([&to]) {
            longest = longest.max(next.since(last));
            last = last.max(next);
        }
        longest
    }

    /// Operations answered from `from` to `to`.
    pub fn answered(&self, from: Time, to: Time) -> u64 {
        self.timings.iter().filter(|timing| (from..to).contains(&timing.done)).count() as u64
    }

    /// What one phase was like.
    pub fn figures(&self, phases: &Phases, phase: Phase) -> PhaseFigures {
        let (mut reads, mut writes) = (Latencies::new(), Latencies::new());
        for timing in self.timings.iter().filter(|timing| phases.of(timing) == phase) {
            let latencies = if timing.read { &mut reads } else { &mut writes };
            latencies.record(timing.done.since(timing.submitted));
        }
        let seconds = phases.length(phase).as_secs_f64();
        let ops = reads.len() + writes.len();
        let of = |latencies: &Latencies| Operations { ops: latencies.len(), latency_us: latencies.micros() };
        let ops_per_s = if seconds > 0.0 { ops as f64 / seconds } else { 0.0 };
        PhaseFigures { seconds, ops_per_s, reads: of(&reads), writes: of(&writes) }
    }

    /// Checks everything: each worker's own account against what the store holds at the end, and the whole history
    /// against a model.
    pub fn judge(&self) -> Verdict {
        let mut account = self.account.clone();
        account.settle(&self.own, &self.found);
        let linearizable = check(&self.operations, &mut StoreModel::default(), &|_| (Time(0), 0));
        Verdict {
            ops: self.operations.len() as u64,
            lost: account.lost,
            duplicated: account.duplicated,
            errors: self.errors.clone(),
            linearizable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(submitted: u64, done: u64, read: bool) -> Timing {
        Timing { submitted: Time(submitted * 1_000), done: Time(done * 1_000), read }
    }

    #[test]
    fn a_gap_is_the_longest_silence_around_a_moment() {
        let at = |micros: u64| Time(micros * 1_000);
        let timings = vec![
            timing(0, 10, false),
            timing(0, 95, false),
            timing(0, 130, true),
            timing(0, 160, false),
            timing(0, 170, false),
            timing(0, 900, false),
        ];
        let record = Record { timings, ..Record::default() };
        let micros = |from, to, ordered| record.gap(at(from), at(to), ordered).as_micros();
        assert_eq!(micros(100, 200, false), 35, "from the last answer before the kill");
        assert_eq!(micros(100, 200, true), 65, "queries do not count");
        assert_eq!(micros(100, 500, true), 330, "silence until the end counts");
        assert_eq!(micros(5, 7, true), 2, "nothing was answered before");
        assert_eq!(Record::default().gap(at(1), at(4), false).as_micros(), 3);
        assert_eq!((record.answered(at(10), at(130)), record.answered(at(0), at(901))), (2, 6));
    }

    #[test]
    fn operations_belong_to_the_phase_that_made_them_wait() {
        let at = |micros: u64| Time(micros * 1_000);
        let phases = Phases { began: at(0), struck: at(100), whole: at(200), ended: at(300) };
        let timings = vec![
            timing(1, 3, true),
            timing(2, 12, false),
            timing(90, 110, false),
            timing(190, 260, true),
            timing(200, 205, true),
        ];
        let record = Record { timings, ..Record::default() };
        let [before, during, after] =
            [Phase::Before, Phase::During, Phase::After].map(|phase| record.figures(&phases, phase));
        assert_eq!((before.reads.ops, before.writes.ops), (1, 1));
        assert_eq!((before.reads.latency_us.p50, before.writes.latency_us.max), (2.0, 10.0));
        assert_eq!((during.reads.ops, during.writes.ops), (1, 1));
        assert_eq!((after.reads.ops, after.writes.ops), (1, 0));
        assert!((before.ops_per_s - 20_000.0).abs() < 1e-6);
        let json = serde_json::to_value(before).unwrap();
        assert_eq!(json["reads"]["ops"], 1);
        assert_eq!(json["reads"]["p99"], 2.0);
    }
}
