//! Waking a thread that sleeps in the kernel.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

use rustix::event::{EventfdFlags, eventfd};

use super::Error;
use crate::transport::Wake;

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const NOTIFIED: u8 = 2;

/// An eventfd that is written only when its owner sleeps: a wake of somebody awake is one atomic exchange.
///
/// The owner sleeps only between [`falls_asleep`](Self::falls_asleep) and [`wakes_up`](Self::wakes_up). A wake before is
/// remembered and forbids the sleep; a wake during it ends it. (All SeqCst: whoever hands something over and then wakes
/// must not be overtaken by the sleeper's last look at its queue.)
pub(crate) struct EventWaker {
    state: AtomicU8,
    event: OwnedFd,
}

impl EventWaker {
    pub(crate) fn new() -> Result<EventWaker, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::Io { doing: "eventfd", error: e.into() })?;
        Ok(EventWaker { state: AtomicU8::new(AWAKE), event })
    }

    /// The descriptor that becomes readable when the sleeper is woken.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Announces sleep. False if there was a wake since the last sleep: then do not.
    pub(crate) fn falls_asleep(&self) -> bool {
        if self.state.compare_exchange(AWAKE, ASLEEP, SeqCst, SeqCst).is_ok() {
            return true;
        }
        self.state.store(AWAKE, SeqCst);
        false
    }

    /// Ends the sleep; `readable` if the event was seen. True if there was a wake.
    pub(crate) fn wakes_up(&self, readable: bool) -> bool {
        let notified = self.state.swap(AWAKE, SeqCst) == NOTIFIED;
        if notified || readable {
            // A write still on its way makes the next sleep end at once, which is harmless.
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
        notified || readable
    }
}

impl Wake for EventWaker {
    fn wake(&self) {
        if self.state.swap(NOTIFIED, SeqCst) == ASLEEP {
            // It fails only when the counter is full, and then it is readable anyway.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}
