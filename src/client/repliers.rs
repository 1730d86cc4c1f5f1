//! Who is relied on: a replica that keeps back the whole result that it was to send (P7) is not for a while. The same
//! penalties decide whom queries are asked of first (P6, [`Readers`](super::readers::Readers)).
//!
//! Without this, one replica that is down costs every fourth large result a time-out, as long as it is down.

use std::time::Duration;

use crate::types::{ClusterSize, Position, ReplicaId, Time};

/// What an endpoint expects of each replica.
#[derive(Clone, Debug)]
pub(crate) struct Repliers(Vec<Replier>);

#[derive(Clone, Copy, Debug, Default)]
struct Replier {
    /// Not relied on before this, nor before it has caught up.
    until: Time,
    penalty: Duration,
    is_awaited: bool,
}

impl Repliers {
    /// The first penalty; each further one is twice as long, unless the replica did well for ten times the last.
    const PENALTY_MIN: Duration = Duration::from_millis(100);
    const PENALTY_MAX: Duration = Duration::from_secs(10);
    const FORGIVEN_AFTER: u32 = 10;
    /// Who has caught up is no more than this behind.
    const BATCHES_BEHIND: u64 = 16;

    pub(crate) fn new(size: ClusterSize) -> Repliers {
        Repliers(vec![Replier::default(); size.n()])
    }

    /// Whether `replica` is relied on for whole results.
    pub(crate) fn is_relied_on(&self, replica: ReplicaId, now: Time) -> bool {
        self.0.get(usize::from(replica.0)).is_none_or(|r| !r.is_awaited && r.until <= now)
    }

    /// A quorum agreed on a result, and `replica`, which was to send the whole, did not before the time-out. Results
    /// that were under way together are one lapse.
    pub(crate) fn withheld(&mut self, replica: ReplicaId, now: Time) {
        if !self.is_relied_on(replica, now) {
            return;
        }
        let Some(r) = self.0.get_mut(usize::from(replica.0)) else { return };
        let forgiven = now.since(r.until) > r.penalty.saturating_mul(Self::FORGIVEN_AFTER);
        r.penalty = if forgiven { Self::PENALTY_MIN } else { r.penalty * 2 };
        r.penalty = r.penalty.clamp(Self::PENALTY_MIN, Self::PENALTY_MAX);
        (r.until, r.is_awaited) = (now + r.penalty, true);
    }

    /// An authentic reply of `replica` came, from a state at `position`, when the last result accepted was of `accepted`.
    /// One that is back works through what it missed first, and owes results for as long.
    pub(crate) fn heard(&mut self, replica: ReplicaId, position: Position, accepted: Position) {
        let Some(r) = self.0.get_mut(usize::from(replica.0)) else { return };
        if r.is_awaited && position.batch().0 + Self::BATCHES_BEHIND >= accepted.batch().0 {
            r.is_awaited = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SeqNum;

    const R: ReplicaId = ReplicaId(3);
    const START: Time = Time(1_000_000_000);

    fn repliers() -> Repliers {
        Repliers::new(ClusterSize::of(4).unwrap())
    }

    /// How long it is not relied on, if it answers.
    fn penalty(repliers: &Repliers, now: Time) -> Duration {
        let mut after = now;
        while !repliers.is_relied_on(R, after) {
            after = after + Duration::from_millis(50);
        }
        after.since(now)
    }

    fn at(batch: u64) -> Position {
        Position::new(SeqNum(batch), 0)
    }

    #[test]
    fn p07_who_is_silent_is_not_relied_on_until_it_has_caught_up() {
        let mut repliers = repliers();
        assert!(repliers.is_relied_on(R, START));
        repliers.withheld(R, START);
        let later = START + Duration::from_secs(3_600);
        assert!(!repliers.is_relied_on(R, later), "however long it is silent");
        assert!(repliers.is_relied_on(ReplicaId(2), START), "the others are");
        repliers.heard(R, at(100), at(117));
        assert!(!repliers.is_relied_on(R, later), "it is back, and far behind");
        repliers.heard(R, at(101), at(117));
        assert!(repliers.is_relied_on(R, later));
        assert!(!repliers.is_relied_on(R, START + Duration::from_millis(99)), "nor at its first word");
    }

    #[test]
    fn p07_who_answers_and_keeps_results_back_is_relied_on_less_and_less() {
        let (mut repliers, mut now) = (repliers(), START);
        for expected in [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
            repliers.withheld(R, now);
            repliers.withheld(R, now + Duration::from_millis(1));
            repliers.heard(R, at(5), at(5));
            let penalty = penalty(&repliers, now);
            assert_eq!(penalty, Duration::from_millis(expected), "several at once are one lapse");
            now = now + penalty;
        }
        now = now + Duration::from_secs(101);
        repliers.withheld(R, now);
        repliers.heard(R, at(5), at(5));
        assert_eq!(penalty(&repliers, now), Duration::from_millis(100), "forgiven");
    }
}
