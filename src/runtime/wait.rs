//! How a loop waits when there is nothing to do: it polls and yields for a while, then sleeps.
#![forbid(unsafe_code)]

use std::thread;
use std::time::Duration;

use crate::types::Time;

/// How a loop waits when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitPolicy {
    /// How long to go on polling after the last event, before sleeping in the kernel. Between empty polls the loop
    /// yields its core; no party assumes that it owns one. Where others use up what is yielded, it sleeps at once.
    pub poll_budget: Duration,
}

impl Default for WaitPolicy {
    /// 100 µs: longer than a round trip between polling parties, much shorter than a wake of a sleeping one is worth.
    fn default() -> WaitPolicy {
        WaitPolicy { poll_budget: Duration::from_micros(100) }
    }
}

/// One loop's choice between polling on and sleeping.
///
/// Parties that poll hand the core around within microseconds. Who computes keeps it for the scheduler's whole slice, some
/// milliseconds, while the yielding loop's datagrams wait: a sleeper that they wake is let in at once.
#[derive(Debug)]
pub(crate) struct Waiter {
    policy: WaitPolicy,
    last_event: Time,
    yielded_at: Option<Time>,
    crowded_until: Time,
}

impl Waiter {
    /// A yield that takes so long went to somebody who computes.
    const SLICE: Duration = Duration::from_millis(1);
    /// How long that is remembered.
    const CROWDED: Duration = Duration::from_secs(1);

    /// Of a loop that starts at `now`.
    pub(crate) fn new(policy: WaitPolicy, now: Time) -> Waiter {
        Waiter { policy, last_event: now, yielded_at: None, crowded_until: Time(0) }
    }

    /// The loop turns.
    pub(crate) fn turn(&mut self, now: Time) {
        if self.yielded_at.take().is_some_and(|at| now.since(at) >= Self::SLICE) {
            self.crowded_until = now + Self::CROWDED;
        }
    }

    /// Something was to be done, or the loop was woken.
    pub(crate) fn event(&mut self, now: Time) {
        self.last_event = now;
    }

    /// Whether to sleep now; else to [yield](Self::yield_core) and look again.
    pub(crate) fn sleeps(&self, now: Time) -> bool {
        now < self.crowded_until || now.since(self.last_event) >= self.policy.poll_budget
    }

    /// Lets others run, in a turn that began at `now` and found nothing to do.
    pub(crate) fn yield_core(&mut self, now: Time) {
        self.yielded_at = Some(now);
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_polls_for_its_budget_unless_its_yields_go_to_who_computes() {
        let (start, us) = (Time(5_000_000_000), Duration::from_micros);
        let mut waiter = Waiter::new(WaitPolicy::default(), start);
        assert!(!waiter.sleeps(start + us(99)) && waiter.sleeps(start + us(100)));
        waiter.event(start + us(100));
        waiter.yield_core(start + us(150));
        waiter.turn(start + us(1_149));
        waiter.event(start + us(1_149));
        assert!(!waiter.sleeps(start + us(1_149)), "that was not a whole slice");
        waiter.yield_core(start + us(1_150));
        waiter.turn(start + us(2_150));
        waiter.event(start + us(2_150));
        assert!(waiter.sleeps(start + us(2_150)), "however little time ago something came");
        // What takes long without a yield is the loop's own work.
        waiter.turn(start + us(9_000));
        waiter.event(start + us(1_002_150));
        assert!(!waiter.sleeps(start + us(1_002_150)), "the others may have gone");
    }
}
