//! The bound on requests in flight: who finds none free waits, as a thread or as a future.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A counting semaphore for both kinds of waiters.
pub(super) struct Permits {
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    free: usize,
    /// Futures that wait, first come first.
    wakers: BTreeMap<u64, Waker>,
    next: u64,
}

/// One request may be in flight; given back on drop.
pub(super) struct Permit(Arc<Permits>);

impl Permits {
    pub(super) fn new(free: usize) -> Arc<Permits> {
        Arc::new(Permits { state: Mutex::new(State { free, wakers: BTreeMap::new(), next: 0 }), freed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks while none is free. The client's thread gives all of them back when it ends.
    pub(super) fn acquire(self: &Arc<Self>) -> Permit {
        let mut state = self.lock();
        while state.free == 0 {
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.free -= 1;
        Permit(self.clone())
    }

    /// A permit is free: one thread and one future may try. Who comes too late waits again.
    fn notify(&self, mut state: MutexGuard<'_, State>) {
        let waker = state.wakers.pop_first();
        drop(state);
        self.freed.notify_one();
        if let Some((_, waker)) = waker {
            waker.wake();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.free += 1;
        self.0.notify(state);
    }
}

/// A future's place among those that wait.
pub(super) struct Waiting {
    permits: Arc<Permits>,
    ticket: Option<u64>,
}

impl Waiting {
    pub(super) fn new(permits: Arc<Permits>) -> Waiting {
        Waiting { permits, ticket: None }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Permit> {
        let mut state = self.permits.lock();
        if state.free > 0 {
            state.free -= 1;
            if let Some(ticket) = self.ticket.take() {
                state.wakers.remove(&ticket);
            }
            drop(state);
            return Poll::Ready(Permit(self.permits.clone()));
        }
        let ticket = *self.ticket.get_or_insert_with(|| {
            state.next += 1;
            state.next
        });
        state.wakers.insert(ticket, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut state = self.permits.lock();
        // Woken for a permit that it leaves: somebody else may have it.
        if state.wakers.remove(&ticket).is_none() && state.free > 0 {
            self.permits.notify(state);
        }
    }
}
