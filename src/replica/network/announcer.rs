//! Our NEW-KEY, to whom has not got it (P40).
//!
//! A replica that starts tells all others, and tells them again, less and less often, until they send it something under
//! its key. After that it tells whoever evidently lacks the key: whose datagrams name an earlier one of ours. Whoever
//! sends under a key that we do not know is told ours too, as one who knows none: that asks it for its own.

use std::time::Duration;

use super::peers::{Quota, Rate};
use crate::types::{ReplicaId, Time};

/// The first repetition; the next come after twice as long each.
const REPEAT_MIN: Duration = Duration::from_millis(20);
/// The longest time between two.
const REPEAT_MAX: Duration = Duration::from_secs(1);
/// Evidence draws no more than one in this time.
const ASKED_MIN: Duration = Duration::from_millis(10);
/// Signatures of NEW-KEYs checked in one replica's name: a thousandth of a core for each that somebody pretends to be.
const CHECKS: Rate = Rate { count: 8, window: Duration::from_millis(100) };
/// NEW-KEYs sent to clients, all together: a datagram each, no longer than what drew it.
const CLIENTS: Rate = Rate { count: 1_024, window: Duration::from_millis(100) };

#[derive(Clone, Debug)]
struct Announced {
    /// When it is to be told again; `NEVER` once it has shown that it knows.
    due: Time,
    sent_at: Time,
    interval: Duration,
    checks: Quota,
}

/// Who is to be told, and when.
#[derive(Debug)]
pub(super) struct Announcer {
    replicas: Vec<Announced>,
    clients: Quota,
    due: Time,
}

impl Announcer {
    /// To tell these replicas at once; nobody, if there is nothing to tell.
    pub(super) fn new(n: usize, to: impl Iterator<Item = ReplicaId>) -> Announcer {
        let never = Announced { due: Time::NEVER, sent_at: Time(0), interval: REPEAT_MIN, checks: Quota::default() };
        let mut announcer = Announcer { replicas: vec![never; n], clients: Quota::default(), due: Time::NEVER };
        for id in to {
            announcer.replicas[usize::from(id.0)].due = Time(0);
            announcer.due = Time(0);
        }
        announcer
    }

    /// A replica has shown that it lacks our key, or we lack its.
    pub(super) fn ask(&mut self, now: Time, id: ReplicaId) {
        let announced = &mut self.replicas[usize::from(id.0)];
        announced.interval = REPEAT_MIN;
        announced.due = announced.due.min(now.max(announced.sent_at + ASKED_MIN));
        self.due = self.due.min(announced.due);
    }

    /// A replica has a new key: what it was told before, it may have forgotten.
    pub(super) fn forget(&mut self, id: ReplicaId) {
        self.replicas[usize::from(id.0)].sent_at = Time(0);
    }

    /// A replica has shown that it knows our key.
    pub(super) fn knows(&mut self, id: ReplicaId) {
        let announced = &mut self.replicas[usize::from(id.0)];
        if announced.due != Time::NEVER {
            announced.due = Time::NEVER;
            self.due = self.replicas.iter().map(|announced| announced.due).min().unwrap_or(Time::NEVER);
        }
    }

    /// Whether the signature of a NEW-KEY in this replica's name may be checked now.
    pub(super) fn may_check(&mut self, now: Time, id: ReplicaId) -> bool {
        self.replicas[usize::from(id.0)].checks.take(now, CHECKS)
    }

    /// Whether a client may be told now.
    pub(super) fn may_tell_client(&mut self, now: Time) -> bool {
        self.clients.take(now, CLIENTS)
    }

    /// When somebody is to be told.
    pub(super) fn deadline(&self) -> Time {
        self.due
    }

    /// The next replica that is to be told now.
    pub(super) fn next(&mut self, now: Time) -> Option<ReplicaId> {
        if now < self.due {
            return None;
        }
        let index = self.replicas.iter().position(|announced| announced.due <= now);
        if let Some(index) = index {
            let announced = &mut self.replicas[index];
            (announced.sent_at, announced.due) = (now, now + announced.interval);
            announced.interval = (2 * announced.interval).min(REPEAT_MAX);
        }
        self.due = self.replicas.iter().map(|announced| announced.due).min().unwrap_or(Time::NEVER);
        index.map(|index| ReplicaId(index as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p40_repetitions_become_rare_and_evidence_is_answered_at_a_bounded_rate() {
        let id = ReplicaId(1);
        let mut announcer = Announcer::new(4, [id].into_iter());
        let (mut now, mut told) = (Time(1_000_000_000), Vec::new());
        let start = now;
        for _ in 0..10_000 {
            if let Some(to) = announcer.next(now) {
                assert_eq!(to, id);
                told.push(now.since(start).as_millis());
            }
            now = now + Duration::from_millis(1);
        }
        assert_eq!(told[..5], [0, 20, 60, 140, 300]);
        assert!(told.len() < 18, "{told:?}");
        announcer.knows(id);
        assert_eq!((announcer.deadline(), announcer.next(now)), (Time::NEVER, None));
        let mut count = 0;
        for _ in 0..1_000 {
            announcer.ask(now, id);
            count += usize::from(announcer.next(now).is_some());
            now = now + Duration::from_micros(100);
        }
        assert!((9..=11).contains(&count), "{count} in 100 ms");
    }
}
