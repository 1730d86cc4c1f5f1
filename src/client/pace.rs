//! How fast fragments leave: slower once they were lost, little by little faster while they arrive. Many clients that
//! send large operations share their receivers' buffers, and none knows of the others.

use std::time::Duration;

use crate::types::{ReplicaId, Time};

/// What may leave to each receiver.
#[derive(Debug)]
pub(super) struct Pacer {
    /// Bytes to a receiver in an interval: at most, and now.
    most: usize,
    now: usize,
    interval: Duration,
    datagram_max: usize,
    /// What may leave until `refill_at`, per receiver.
    budget: Vec<usize>,
    refill_at: Time,
    /// What is lost before is lost for the pace of before.
    slowed_until: Time,
}

impl Pacer {
    /// Bytes in an interval, at least.
    const LEAST: usize = 1_024;
    /// So many messages that arrive bring the full pace back from nothing.
    const STEPS: usize = 32;
    /// Intervals in which losses count as one.
    const ROUND: u32 = 20;

    pub(super) fn new(n: usize, most: usize, interval: Duration, datagram_max: usize) -> Pacer {
        let (budget, refill_at, slowed_until) = (vec![0; n], Time(0), Time(0));
        Pacer { most, now: most, interval, datagram_max, budget, refill_at, slowed_until }
    }

    /// A message was lost, or so it seems.
    pub(super) fn lost(&mut self, now: Time) {
        if now >= self.slowed_until {
            self.now = (self.now / 2).max(Self::LEAST.min(self.most));
            self.slowed_until = now + self.interval * Self::ROUND;
        }
    }

    /// A message arrived at once.
    pub(super) fn arrived(&mut self) {
        self.now = (self.now + self.most / Self::STEPS).min(self.most);
    }

    /// When more may leave.
    pub(super) fn refill_at(&self) -> Time {
        self.refill_at
    }

    /// Until so many bytes have left to one receiver.
    pub(super) fn time_for(&self, bytes: usize) -> Duration {
        self.interval.saturating_mul(u32::try_from(bytes.div_ceil(self.now)).unwrap_or(u32::MAX))
    }

    /// Another interval may have begun.
    pub(super) fn refill(&mut self, now: Time) {
        if now >= self.refill_at {
            // Below a datagram an interval, what may leave adds up to one.
            let full = self.now.max(self.datagram_max);
            self.budget.iter_mut().for_each(|budget| *budget = (*budget + self.now).min(full));
            self.refill_at = now + self.interval;
        }
    }

    /// Whether so many bytes may leave to `to` now.
    pub(super) fn has(&self, to: ReplicaId, bytes: usize) -> bool {
        self.budget[usize::from(to.0)] >= bytes
    }

    /// They leave, if they may.
    pub(super) fn take(&mut self, to: ReplicaId, bytes: usize) -> bool {
        let has = self.has(to, bytes);
        if has {
            self.budget[usize::from(to.0)] -= bytes;
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const TO: ReplicaId = ReplicaId(1);

    /// Bytes that leave in a second.
    fn rate(pacer: &mut Pacer, from: u64) -> usize {
        let mut sent = 0;
        for ms in 0..1_000 {
            pacer.refill(Time((from + ms) * MS));
            while pacer.take(TO, 1_000) {
                sent += 1_000;
            }
        }
        sent
    }

    #[test]
    fn p03_who_loses_slows_down_and_comes_back() {
        let mut pacer = Pacer::new(4, 64_000, Duration::from_millis(1), 1_452);
        let near = |rate: usize, wanted: usize| (wanted * 97 / 100..=wanted + 64_000).contains(&rate);
        assert!(near(rate(&mut pacer, 0), 64_000_000));
        assert_eq!(pacer.time_for(640_001), Duration::from_millis(11));
        // Twice in one round counts once.
        pacer.lost(Time(2_000 * MS));
        pacer.lost(Time(2_019 * MS));
        assert!(near(rate(&mut pacer, 2_000), 32_000_000));
        for time in 0..20 {
            pacer.lost(Time((4_000 + 20 * time) * MS));
        }
        let least = rate(&mut pacer, 5_000);
        assert!(near(least, 1_024_000), "less than a datagram in an interval, and still something: {least}");
        assert_eq!(pacer.refill_at(), Time(6_000 * MS));
        for _ in 0..16 {
            pacer.arrived();
        }
        assert!(near(rate(&mut pacer, 7_000), 33_024_000));
        for _ in 0..100 {
            pacer.arrived();
        }
        assert!(near(rate(&mut pacer, 9_000), 64_000_000), "and no more");
    }
}
