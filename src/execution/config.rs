//! Bounds of the execution role.

use std::time::Duration;

use super::layout;
use crate::limits::{OPERATION_MAX, PAGE, SESSION_WINDOW_MAX};

/// Pages that the library's own region may have by any configuration: 1 GiB.
const LIBRARY_PAGES_MAX: u64 = 1 << 18;

/// Configuration of the [`Executor`](super::Executor).
///
/// The first part is agreed: replicas that differ in it have different states, which the first checkpoint shows. The
/// second part, about queries, is each replica's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExecutorConfig {
    /// K: the state is sealed after every so many batches (P22).
    pub checkpoint_interval: u64,
    /// Sessions, of all identities together.
    pub sessions_max: u32,
    /// Sessions of one client identity (P9).
    pub sessions_per_client: u32,
    /// Client identities whose last session counter is remembered. One without sessions may be forgotten for another.
    pub clients_max: u32,
    /// The largest window W that a session may ask for (P4).
    pub window_max: u64,
    /// A session without a request for so long, by agreed time, is expired: it may be evicted for another.
    pub session_idle: Duration,
    /// Bytes of results above `SMALL_RESULT_MAX` that are kept for duplicates until they were received (P4).
    pub reply_store: usize,
    /// Pages that the service's region may grow to.
    pub service_pages: u32,

    /// Packs of read-only requests held for one client (P48).
    pub held_packs_per_client: usize,
    /// Bytes of read-only requests held for one client (P48).
    pub held_bytes_per_client: usize,
    /// Bytes of read-only requests held for all clients together.
    pub held_bytes: usize,
    /// A read-only request is held for so long, then dropped: the client orders the operation instead (P48).
    pub hold: Duration,
}

impl Default for ExecutorConfig {
    fn default() -> ExecutorConfig {
        ExecutorConfig {
            checkpoint_interval: 256,
            sessions_max: 4_096,
            sessions_per_client: 1_024,
            clients_max: 4_096,
            window_max: 256,
            session_idle: Duration::from_secs(3_600),
            reply_store: 32 << 20,
            service_pages: 1 << 20,
            held_packs_per_client: 64,
            held_bytes_per_client: 2 << 20,
            held_bytes: 64 << 20,
            hold: Duration::from_millis(500),
        }
    }
}

impl ExecutorConfig {
    /// Checks every bound; one sentence about the first that is broken.
    pub fn validate(&self) -> Result<(), String> {
        let between = |name: &str, value: u64, least: u64, most: u64| {
            let fits = (least..=most).contains(&value);
            if fits { Ok(()) } else { Err(format!("{name} is {value}; it must be between {least} and {most}")) }
        };
        let day = Duration::from_secs(86_400);
        between("checkpoint_interval", self.checkpoint_interval, 1, crate::limits::LOG_WINDOW_MAX / 2)?;
        between("sessions_max", self.sessions_max.into(), 1, 1 << 20)?;
        between("sessions_per_client", self.sessions_per_client.into(), 1, self.sessions_max.into())?;
        between("clients_max", self.clients_max.into(), 1, 1 << 20)?;
        between("window_max", self.window_max, 1, SESSION_WINDOW_MAX)?;
        if self.session_idle < Duration::from_secs(1) || self.session_idle > 400 * day {
            return Err(format!("session_idle is {:?}; it must be between 1 s and 400 days", self.session_idle));
        }
        between("reply_store", self.reply_store as u64, OPERATION_MAX as u64, 1 << 30)?;
        if !self.reply_store.is_multiple_of(PAGE) {
            return Err(format!("reply_store is {}; it must be a multiple of {PAGE}", self.reply_store));
        }
        between("service_pages", self.service_pages.into(), 1, u32::MAX.into())?;
        let library = layout::pages_max(self);
        if library > LIBRARY_PAGES_MAX {
            return Err(format!(
                "sessions_max x window_max and reply_store may take {} MiB; at most {} MiB are allowed",
                (library * PAGE as u64) >> 20,
                (LIBRARY_PAGES_MAX * PAGE as u64) >> 20
            ));
        }
        between("held_packs_per_client", self.held_packs_per_client as u64, 1, 1 << 16)?;
        between("held_bytes_per_client", self.held_bytes_per_client as u64, 1, self.held_bytes as u64)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(ExecutorConfig::default().validate(), Ok(()));
    }

    #[test]
    fn p09_window_times_sessions_is_bounded_in_bytes() {
        let config = ExecutorConfig { sessions_max: 1 << 20, window_max: 1_024, ..ExecutorConfig::default() };
        let said = config.validate().unwrap_err();
        assert!(said.contains("sessions_max x window_max"), "{said}");
    }

    #[test]
    fn each_bound_is_named() {
        let good = ExecutorConfig::default;
        for (config, name) in [
            (ExecutorConfig { checkpoint_interval: 0, ..good() }, "checkpoint_interval"),
            (ExecutorConfig { sessions_per_client: 5_000, ..good() }, "sessions_per_client"),
            (ExecutorConfig { window_max: 2_000, ..good() }, "window_max"),
            (
                ExecutorConfig { checkpoint_interval: crate::limits::LOG_WINDOW_MAX / 2 + 1, ..good() },
                "checkpoint_interval",
            ),
            (ExecutorConfig { session_idle: Duration::ZERO, ..good() }, "session_idle"),
            (ExecutorConfig { session_idle: Duration::from_secs(401 * 86_400), ..good() }, "session_idle"),
            (ExecutorConfig { reply_store: 4_096, ..good() }, "reply_store"),
            (ExecutorConfig { reply_store: OPERATION_MAX + 1, ..good() }, "reply_store"),
        ] {
            let said = config.validate().unwrap_err();
            assert!(said.starts_with(name), "{said}");
        }
        for session_idle in [Duration::from_secs(1), Duration::from_secs(400 * 86_400)] {
            assert_eq!(ExecutorConfig { session_idle, ..good() }.validate(), Ok(()));
        }
    }
}
