//! How fast fragments leave: slower once they were lost, little by little faster while they arrive. Many clients that
//! send large operations share their receivers' buffers, and none knows of the others.

use std::collections::VecDeque;
use std::time::Duration;

use crate::transport::Outgoing;
use crate::types::{ReplicaId, Time};

/// A queue of fragments, in order, and what may leave of it.
#[derive(Debug)]
pub(super) struct Pacer {
    /// Bytes to a receiver in an interval: at most, and now.
    most: usize,
    now: usize,
    interval: Duration,
    datagram_max: usize,
    queue: VecDeque<(ReplicaId, Outgoing)>,
    /// Bytes in `queue`, and what may leave until `refill_at`, per receiver.
    backlog: Vec<usize>,
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
        Pacer {
            most,
            now: most,
            interval,
            datagram_max,
            queue: VecDeque::new(),
            backlog: vec![0; n],
            budget: vec![0; n],
            refill_at: Time(0),
            slowed_until: Time(0),
        }
    }

    pub(super) fn push(&mut self, to: ReplicaId, fragment: Outgoing) {
        self.backlog[usize::from(to.0)] += fragment.len();
        self.queue.push_back((to, fragment));
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

    /// When fragments may leave again.
    pub(super) fn next(&self) -> Time {
        if self.queue.is_empty() { Time::NEVER } else { self.refill_at }
    }

    /// Until the last byte queued leaves.
    pub(super) fn drain_time(&self) -> Duration {
        let most = self.backlog.iter().max().copied().unwrap_or(0);
        self.interval.saturating_mul(u32::try_from(most.div_ceil(self.now)).unwrap_or(u32::MAX))
    }

    pub(super) fn release(&mut self, now: Time, outbox: &mut Vec<Outgoing>) {
        if self.queue.is_empty() {
            return;
        }
        if now >= self.refill_at {
            // Below a datagram an interval, what may leave adds up to one.
            let full = self.now.max(self.datagram_max);
            self.budget.iter_mut().for_each(|budget| *budget = (*budget + self.now).min(full));
            self.refill_at = now + self.interval;
        }
        while let Some((to, fragment)) = self.queue.front() {
            let (to, len) = (usize::from(to.0), fragment.len());
            if self.budget[to] < len {
                break;
            }
            self.budget[to] -= len;
            self.backlog[to] -= len;
            outbox.extend(self.queue.pop_front().map(|(_, fragment)| fragment));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::{Head, Peer};

    const MS: u64 = 1_000_000;
    const TO: ReplicaId = ReplicaId(1);

    fn fragment(len: usize) -> Outgoing {
        Outgoing { to: Peer::Replica(TO), head: Head::EMPTY, body: vec![0; len].into() }
    }

    /// Bytes that leave in a second.
    fn rate(pacer: &mut Pacer, from: u64) -> usize {
        let mut sent = 0;
        for ms in 0..1_000 {
            while pacer.backlog[1] < 200_000 {
                pacer.push(TO, fragment(1_000));
            }
            let mut outbox = Vec::new();
            pacer.release(Time((from + ms) * MS), &mut outbox);
            sent += outbox.iter().map(Outgoing::len).sum::<usize>();
        }
        sent
    }

    #[test]
    fn p03_who_loses_slows_down_and_comes_back() {
        let mut pacer = Pacer::new(4, 64_000, Duration::from_millis(1), 1_452);
        let near = |rate: usize, wanted: usize| (wanted * 97 / 100..=wanted + 64_000).contains(&rate);
        assert!(near(rate(&mut pacer, 0), 64_000_000));
        assert_eq!(pacer.drain_time(), Duration::from_millis(pacer.backlog[1].div_ceil(64_000) as u64));
        // Twice in one round counts once.
        pacer.lost(Time(2_000 * MS));
        pacer.lost(Time(2_019 * MS));
        assert!(near(rate(&mut pacer, 2_000), 32_000_000));
        for time in 0..20 {
            pacer.lost(Time((4_000 + 20 * time) * MS));
        }
        let least = rate(&mut pacer, 5_000);
        assert!(near(least, 1_024_000), "less than a datagram in an interval, and still something: {least}");
        assert_eq!(pacer.next(), Time(6_000 * MS));
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
