//! Roles on threads of their own: a plain thread that polls, yields and parks, or a glommio executor for background work.
#![forbid(unsafe_code)]

use std::thread;
use std::time::{Duration, Instant};

use crossbeam::sync::Parker;
use glommio::{GlommioError, LocalExecutorBuilder, Placement};
use io_uring::IoUring;

use super::wait::{WaitPolicy, Waiter};
use super::{Clock, Error, Stop, cores};
use crate::types::Time;

/// What a turn of a role came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// There was something to do.
    Busy,
    /// Nothing could be done, but an outlet is clogged: whoever takes from it does not ring.
    Clogged,
    /// There was nothing to do.
    Idle,
}

/// A role that talks to the others through rings.
pub(crate) trait Role {
    /// Does what there is to do, a bounded amount of it.
    fn turn(&mut self, now: Time) -> Turn;

    /// When `turn` must run again though nobody rings; `now` or earlier if there is more to do.
    fn deadline(&self) -> Time {
        Time::NEVER
    }
}

/// Runs `role` on the calling thread until stopped. Whoever hands it work wakes `parker`.
pub(crate) fn run(role: &mut impl Role, parker: &Parker, clock: Clock, policy: &WaitPolicy, stop: &Stop) {
    let mut waiter = Waiter::new(*policy, clock.now());
    while !stop.is_stopped() {
        let now = clock.now();
        waiter.turn(now);
        let turn = role.turn(now);
        if turn == Turn::Busy {
            waiter.event(now);
            continue;
        }
        let deadline = role.deadline();
        if turn == Turn::Clogged || deadline <= now || !waiter.sleeps(now) {
            waiter.yield_core(now);
            continue;
        }
        match deadline {
            Time::NEVER => parker.park(),
            _ => parker.park_deadline(Instant::now() + deadline.since(now)),
        }
        // A timer alone is no reason to poll on after its turn.
        if deadline > clock.now() {
            waiter.woken(clock.now());
        }
    }
}

/// glommio reserves and registers this much for files; its default is 10 MiB.
const IO_MEMORY: usize = 64 << 10;

/// Entries of each of its rings. 4096 would not fit the usual locked-memory limit.
const RING_DEPTH: usize = 128;

/// After so long it would have a task make room for others, of which there are none. Not less: when that time is over before
/// it has run anything, as where a thread waits for its core, glommio 0.9 takes it that nothing can run, and sleeps for good.
const PREEMPT: Duration = Duration::from_secs(3_600);

/// What its three rings and its file memory take, bytes.
const LOCKED_BYTES: u64 = 3 * (RING_DEPTH as u64 * (64 + 4 + 2 * 16) + 4_096) + IO_MEMORY as u64;

/// Runs `role` on the calling thread, pinned to `core`, until stopped: in a glommio executor while there is something to do,
/// on the bare thread where glommio cannot run. Whoever hands it work wakes `parker`: the thread does not sleep in the
/// executor.
///
/// # Errors
/// The locked-memory limit (E001); a core that cannot be had.
pub(crate) fn run_in_background(
    role: &mut impl Role,
    parker: &Parker,
    core: Option<usize>,
    clock: Clock,
    stop: &Stop,
) -> Result<(), Error> {
    let make = || {
        LocalExecutorBuilder::new(core.map_or(Placement::Unbound, Placement::Fixed))
            .name("castra-checkpoint")
            .io_memory(IO_MEMORY)
            .ring_depth(RING_DEPTH)
            .preempt_timer(PREEMPT)
            .make()
            .map_err(refused)
    };
    // glommio's first executor panics where io_uring is refused, so a ring of our own asks before it does.
    let executor = match IoUring::new(2) {
        Ok(_) => make(),
        Err(error) => Err(refused(GlommioError::IoError(error))),
    };
    let executor = match executor {
        Ok(executor) => Some(executor),
        Err(error @ Error::LockedMemory { .. }) => return Err(error),
        Err(error) => {
            tracing::warn!("the checkpoint role runs without glommio: {error}");
            core.map_or(Ok(()), cores::pin)?;
            None
        }
    };
    while !stop.is_stopped() {
        match &executor {
            Some(executor) => executor.run(async { while goes_on(role, clock, stop) {} }),
            None => while goes_on(role, clock, stop) {},
        }
        let (deadline, now) = (role.deadline(), clock.now());
        match deadline {
            Time::NEVER => parker.park(),
            _ => parker.park_deadline(Instant::now() + deadline.since(now)),
        }
    }
    Ok(())
}

/// A turn of `role`. False: there is nothing to do now.
fn goes_on(role: &mut impl Role, clock: Clock, stop: &Stop) -> bool {
    match role.turn(clock.now()) {
        Turn::Idle => return false,
        Turn::Clogged => thread::yield_now(),
        Turn::Busy => {}
    }
    !stop.is_stopped()
}

fn refused(error: GlommioError<()>) -> Error {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    match error {
        GlommioError::IoError(error) if error.raw_os_error() == Some(libc::ENOMEM) => Error::LockedMemory {
            have: limit.current.unwrap_or(u64::MAX),
            hard: limit.maximum.unwrap_or(u64::MAX),
            need: LOCKED_BYTES,
            rings: 3,
        },
        GlommioError::IoError(error) => Error::Io { doing: "starting the checkpoint executor", error },
        other => {
            Error::Io { doing: "starting the checkpoint executor", error: std::io::Error::other(other.to_string()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::ring::{Bell, Inlet, Outlet, ring};
    use super::super::tests::{PATIENCE, thread_cpu};
    use super::*;
    use crate::transport::Wake;

    /// Adds one to each number that it gets.
    struct Increment {
        from: Inlet<u64>,
        to: Outlet<u64>,
    }

    impl Role for Increment {
        fn turn(&mut self, _: Time) -> Turn {
            let mut any = Turn::Idle;
            while let Some(number) = self.from.pop() {
                self.to.push(number + 1);
                any = Turn::Busy;
            }
            self.to.flush();
            if self.to.is_clogged() { Turn::Clogged } else { any }
        }
    }

    /// Sends numbers through a role on another thread, singly and in bursts, with pauses long enough to sleep in; the CPU
    /// time of that thread during an idle half second.
    fn exercise(
        bell: Arc<dyn Wake>,
        stop: Stop,
        start: impl FnOnce(Increment) -> thread::JoinHandle<Duration>,
    ) -> Duration {
        let (back, parker) = Bell::new();
        stop.wakes(bell.clone());
        let (mut to, from_here) = ring(16, bell);
        let (to_here, mut from) = ring(16, back);
        let role = start(Increment { from: from_here, to: to_here });
        let begin = Instant::now();
        for (burst, pause) in [(1u64, 2), (1, 0), (1, 0), (100, 0), (1, 2), (10_000, 0), (1, 2)] {
            thread::sleep(Duration::from_millis(pause));
            (0..burst).for_each(|i| to.push(i));
            let mut next = 0;
            while next < burst {
                to.flush();
                while let Some(number) = from.pop() {
                    next += 1;
                    assert_eq!(number, next);
                }
                parker.park_timeout(Duration::from_millis(1));
                assert!(begin.elapsed() < PATIENCE, "{next} of {burst}");
            }
        }
        thread::sleep(Duration::from_millis(500));
        stop.stop();
        role.join().unwrap()
    }

    #[test]
    fn a_role_on_a_plain_thread_answers_and_sleeps() {
        let (bell, parker) = Bell::new();
        let stop = Stop::new();
        let cpu = exercise(bell, stop.clone(), |mut role| {
            thread::spawn(move || {
                run(&mut role, &parker, Clock::new(), &WaitPolicy::default(), &stop);
                thread_cpu()
            })
        });
        assert!(cpu < Duration::from_millis(250), "{cpu:?} of CPU, for an idle half second and 10,000 numbers");
    }

    #[test]
    fn a_role_in_glommio_answers_and_sleeps() {
        let (bell, parker) = Bell::new();
        let stop = Stop::new();
        let cpu = exercise(bell, stop.clone(), |mut role| {
            thread::spawn(move || {
                run_in_background(&mut role, &parker, Some(super::super::cores::allowed()[0]), Clock::new(), &stop)
                    .unwrap();
                thread_cpu()
            })
        });
        assert!(cpu < Duration::from_millis(250), "{cpu:?} of CPU, for an idle half second and 10,000 numbers");
    }
}
