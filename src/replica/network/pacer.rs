//! Fragments leave paced, so that one large message does not fill its receiver's socket buffer and lose itself.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::transport::{Outgoing, Peer};
use crate::types::Time;

/// How fast fragments leave, and how many may wait.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Bytes to one receiver in one interval.
    pub bytes: usize,
    /// The interval.
    pub interval: Duration,
    /// Bytes that may wait for one receiver.
    pub waiting_max: usize,
    /// Bytes that may wait for all together.
    pub total_max: usize,
}

impl Default for Pace {
    fn default() -> Pace {
        // 256 MB/s a receiver; half of what a socket buffer of Linux's default size holds in each interval.
        Pace { bytes: 128 << 10, interval: Duration::from_micros(500), waiting_max: 16 << 20, total_max: 256 << 20 }
    }
}

#[derive(Debug, Default)]
struct Lane {
    /// With the number of the message that it is a piece of.
    queue: VecDeque<(u64, Outgoing)>,
    bytes: usize,
    began: Time,
    sent: usize,
}

/// A queue for each receiver.
#[derive(Debug)]
pub(super) struct Pacer {
    pace: Pace,
    lanes: BTreeMap<Peer, Lane>,
    bytes: usize,
}

impl Pacer {
    pub(super) fn new(pace: Pace) -> Pacer {
        Pacer { pace, lanes: BTreeMap::new(), bytes: 0 }
    }

    /// Whether a message of `bytes` may wait for `to`.
    pub(super) fn has_room(&self, to: Peer, bytes: usize) -> bool {
        let waiting = self.lanes.get(&to).map_or(0, |lane| lane.bytes);
        waiting + bytes <= self.pace.waiting_max && self.bytes + bytes <= self.pace.total_max
    }

    /// Whether pieces of message `number` wait for `to`.
    pub(super) fn has_queued(&self, to: Peer, number: u64) -> bool {
        self.lanes.get(&to).is_some_and(|lane| lane.queue.iter().any(|(queued, _)| *queued == number))
    }

    pub(super) fn push(&mut self, number: u64, fragment: Outgoing) {
        let lane = self.lanes.entry(fragment.to).or_default();
        lane.bytes += fragment.len();
        self.bytes += fragment.len();
        lane.queue.push_back((number, fragment));
    }

    /// Releases what may leave now.
    pub(super) fn release(&mut self, now: Time, out: &mut Vec<Outgoing>) {
        let pace = self.pace;
        self.lanes.retain(|_, lane| {
            if now.since(lane.began) >= pace.interval {
                (lane.began, lane.sent) = (now, 0);
            }
            while lane.sent < pace.bytes
                && let Some((_, fragment)) = lane.queue.pop_front()
            {
                lane.sent += fragment.len();
                lane.bytes -= fragment.len();
                self.bytes -= fragment.len();
                out.push(fragment);
            }
            // An empty lane is remembered for its interval, or it would begin afresh with every message.
            !lane.queue.is_empty() || now.since(lane.began) < pace.interval
        });
    }

    /// When more may leave.
    pub(super) fn deadline(&self) -> Time {
        let waiting = self.lanes.values().filter(|lane| !lane.queue.is_empty());
        waiting.map(|lane| lane.began + self.pace.interval).min().unwrap_or(Time::NEVER)
    }
}
