//! The local clock.
#![forbid(unsafe_code)]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::types::Time;

/// Wall-clock time at its making, monotonic from then on: never back, whatever is done to the system's clock.
///
/// Copies agree with each other; the threads of one process share one anchor.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    anchor: Instant,
    epoch: u64,
}

impl Clock {
    /// A clock set by the system's.
    pub fn new() -> Clock {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { anchor: Instant::now(), epoch: u64::try_from(since_epoch.as_nanos()).unwrap_or(0) }
    }

    /// Now.
    pub fn now(&self) -> Time {
        Time(self.epoch) + self.anchor.elapsed()
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_starts_at_wall_time_and_never_goes_back() {
        let clock = Clock::new();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        assert!(wall.abs_diff(clock.now().0) < 10_000_000_000);
        let mut last = clock.now();
        for _ in 0..1_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }
}
