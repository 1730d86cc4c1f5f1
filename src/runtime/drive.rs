//! The loop between a machine and a transport.
#![forbid(unsafe_code)]

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::counters::{Counter, counters};
use super::wait::{WaitPolicy, Waiter};
use crate::transport::{Datagram, Machine, Transport, Wake, Woken};
use crate::types::Time;

counters! {
    /// Counted by one loop; shared with whoever reports.
    LoopCounters,
    /// A reading of [`LoopCounters`].
    LoopCounts {
        /// Turns of the loop.
        turns,
        /// Turns in which something arrived or left.
        busy_turns,
        /// Sleeps in the kernel.
        parks,
        /// Sleeps in which datagrams gathered: nobody needed the machine at once.
        rests,
        /// Datagrams dropped unread because the process had not run for too long.
        stale,
    }
}

/// Stops loops, from any thread. Clones are the same.
#[derive(Clone, Default)]
pub struct Stop(Arc<Stopping>);

#[derive(Default)]
struct Stopping {
    stopped: AtomicBool,
    wakers: Mutex<Vec<Arc<dyn Wake>>>,
}

impl Stop {
    /// Not stopped.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// Ends every loop that runs under this, and those to come.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        for waker in self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            waker.wake();
        }
    }

    /// Whether [`stop`](Self::stop) was called.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Relaxed)
    }

    /// Wakes `waker` when stopped, at once if that was before. [`drive`] does so for its transport.
    pub fn wakes(&self, waker: Arc<dyn Wake>) {
        let mut wakers = self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.push(waker.clone());
        drop(wakers);
        if self.0.stopped.load(Ordering::SeqCst) {
            waker.wake();
        }
    }
}

/// Runs `machine` over `transport` until stopped, or until it says that it can never go on ([`Machine::stopped`]).
pub fn drive<M: Machine, T: Transport>(
    machine: &mut M,
    transport: &mut T,
    stop: &Stop,
    policy: &WaitPolicy,
    counters: &LoopCounters,
) {
    stop.wakes(transport.waker());
    drive_with(machine, transport, policy, counters, |_, _| match stop.is_stopped() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    });
}

/// As [`drive`], until `each` breaks or the machine says that it can never go on. `each` sees the machine before every turn, at least once after every wake: the
/// place to take commands from other threads and to answer questions about the machine. Keep it cheap.
pub fn drive_with<M: Machine, T: Transport>(
    machine: &mut M,
    transport: &mut T,
    policy: &WaitPolicy,
    counters: &LoopCounters,
    mut each: impl FnMut(&mut M, Time) -> ControlFlow<()>,
) {
    let (mut inbox, mut outbox) = (Vec::new(), Vec::new());
    // When the next turn was due at the latest, as far as it was known.
    let mut due = transport.now();
    let mut waiter = Waiter::new(*policy, due);
    loop {
        let now = transport.now();
        waiter.turn(now);
        if machine.stale_after().is_some_and(|after| now > due + after) {
            counters.stale.add(drop_waiting(transport, &mut inbox));
        }
        due = now;
        if each(machine, now).is_break() {
            return;
        }
        transport.receive(&mut inbox);
        let arrived = !inbox.is_empty();
        machine.turn(now, &mut inbox, &mut outbox);
        assert!(inbox.is_empty(), "a machine takes all of its inbox");
        counters.turns.add(1);
        if machine.stopped().is_some() {
            transport.send(&mut outbox);
            return;
        }
        if arrived || !outbox.is_empty() {
            transport.send(&mut outbox);
            counters.busy_turns.add(1);
            waiter.event(now);
            if let Some(until) = machine.rests_until() {
                counters.rests.add(1);
                thread::sleep(until.min(machine.deadline()).since(transport.now()));
                due = transport.now();
            }
            continue;
        }
        let deadline = machine.deadline();
        if deadline > now && (waiter.sleeps(now) || machine.rests_until().is_some()) {
            counters.parks.add(1);
            due = deadline;
            // A timer alone is no reason to poll on after its turn.
            if transport.wait(deadline) != Woken::Deadline {
                waiter.woken(transport.now());
            }
        } else {
            waiter.yield_core(now);
        }
    }
}

/// Empties the transport; what goes on arriving is left to it. How many datagrams that were.
fn drop_waiting<T: Transport>(transport: &mut T, inbox: &mut Vec<Datagram>) -> u64 {
    const MOST: u64 = 1 << 17;
    let mut dropped = 0;
    while dropped < MOST {
        transport.receive(inbox);
        if inbox.is_empty() {
            break;
        }
        dropped += inbox.len() as u64;
        inbox.clear();
    }
    dropped
}
