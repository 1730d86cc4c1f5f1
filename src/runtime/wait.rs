//! How a loop waits when there is nothing to do: it polls and yields for a while, then sleeps.
#![forbid(unsafe_code)]

use std::thread;
use std::time::Duration;

use crate::types::{Spell, Time};

/// How a loop waits when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitPolicy {
    /// How long to go on polling after the last event, at most, before sleeping in the kernel: as long as events come at
    /// shorter distances than that, else for 100 µs. Between empty polls the loop yields its core; no party assumes that
    /// it owns one. Where others use up what is yielded, it sleeps at once.
    pub poll_budget: Duration,
}

impl Default for WaitPolicy {
    /// 2 ms: who asks one thing after the other, and does something with each answer, finds everybody awake.
    fn default() -> WaitPolicy {
        WaitPolicy { poll_budget: Duration::from_millis(2) }
    }
}

/// One loop's choice between polling on and sleeping.
///
/// Parties that poll hand the core around within microseconds. Who computes keeps it for the scheduler's whole slice, some
/// milliseconds, while the yielding loop's datagrams wait: a sleeper that they wake is let in at once.
#[derive(Debug)]
pub(crate) struct Waiter {
    policy: WaitPolicy,
    /// How long it polls at present.
    budget: Duration,
    last_event: Time,
    yielded_at: Option<Time>,
    /// Others use up what is yielded.
    crowded: Spell,
}

impl Waiter {
    /// How long it polls where events are rare: longer than a round trip between polling parties.
    const LEAST: Duration = Duration::from_micros(100);
    /// A yield that takes so long went to somebody who computes.
    const SLICE: Duration = Duration::from_millis(1);
    /// How long that is remembered: once, and at most, where it happens again and again.
    const CROWDED_MIN: Duration = Duration::from_millis(10);
    const CROWDED_MAX: Duration = Duration::from_secs(1);

    /// Of a loop that starts at `now`.
    pub(crate) fn new(policy: WaitPolicy, now: Time) -> Waiter {
        let budget = policy.poll_budget.min(Self::LEAST);
        Waiter { policy, budget, last_event: now, yielded_at: None, crowded: Spell::default() }
    }

    /// The loop turns.
    pub(crate) fn turn(&mut self, now: Time) {
        if self.yielded_at.take().is_some_and(|at| now.since(at) >= Self::SLICE) {
            self.crowded.begin(now, Self::CROWDED_MIN, Self::CROWDED_MAX);
        }
    }

    /// Something was to be done.
    pub(crate) fn event(&mut self, now: Time) {
        self.last_event = now;
    }

    /// It slept and was woken. Had it polled on it would have been there sooner: it polls twice as long from now on, unless
    /// the budget would not have sufficed. (Heartbeats of peers come in small bursts: no reason to poll long at once.)
    pub(crate) fn woken(&mut self, now: Time) {
        self.budget = match now.since(self.last_event) <= self.policy.poll_budget {
            true => (self.budget * 2).min(self.policy.poll_budget),
            false => self.policy.poll_budget.min(Self::LEAST),
        };
        self.event(now);
    }

    /// Whether to sleep now; else to [yield](Self::yield_core) and look again.
    pub(crate) fn sleeps(&self, now: Time) -> bool {
        self.crowded.lasts(now) || now.since(self.last_event) >= self.budget
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
        let mut now = start + us(12_150);
        waiter.event(now);
        assert!(!waiter.sleeps(now), "the others may have gone");
        for expected in [20, 40, 80, 160, 320, 640, 1_000, 1_000] {
            waiter.yield_core(now);
            waiter.turn(now + us(1_000));
            now = now + us(1_000 + expected * 1_000);
            waiter.event(now);
            let before = Time(now.0 - 1);
            assert!(!waiter.sleeps(now) && waiter.crowded.lasts(before), "they have not: {expected} ms");
        }
    }

    #[test]
    fn a_loop_polls_as_long_as_events_are_apart_if_that_is_within_its_budget() {
        let us = Duration::from_micros;
        let mut waiter = Waiter::new(WaitPolicy { poll_budget: us(1_000) }, Time(0));
        // The time between two events, and how long it polls after the second.
        for (gap, polls) in
            [(400, 200), (300, 400), (900, 800), (1_000, 1_000), (999, 1_000), (1_001, 100), (60, 200), (50_000, 100)]
        {
            let now = waiter.last_event + us(gap);
            waiter.woken(now);
            assert!(!waiter.sleeps(now + us(polls - 1)) && waiter.sleeps(now + us(polls)), "{gap}");
        }
        let mut waiter = Waiter::new(WaitPolicy { poll_budget: Duration::ZERO }, Time(0));
        waiter.woken(Time(1));
        assert!(waiter.sleeps(Time(1)), "never");
    }
}
