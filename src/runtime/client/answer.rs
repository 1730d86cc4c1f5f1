//! One answer on its way from the client's thread to whoever waits for it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use super::ClientError;
use super::permits::Permit;
use crate::client::Completion;

type Outcome = Result<Completion, ClientError>;

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    outcome: Option<Outcome>,
    waker: Option<Waker>,
}

/// The end that waits.
pub(super) struct Answer(Arc<Slot>);

impl Answer {
    pub(super) fn wait(self) -> Outcome {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = state.outcome.take() {
                return outcome;
            }
            state = self.0.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The end that answers; dropped without an answer, it says that the client stopped. Holds the request's permit.
pub(super) struct Filler {
    slot: Arc<Slot>,
    filled: bool,
    _permit: Permit,
}

impl Filler {
    pub(super) fn new(permit: Permit) -> Filler {
        Filler { slot: Arc::default(), filled: false, _permit: permit }
    }

    pub(super) fn answer(&self) -> Answer {
        Answer(self.slot.clone())
    }

    pub(super) fn fill(mut self, outcome: Outcome) {
        self.put(outcome);
    }

    fn put(&mut self, outcome: Outcome) {
        self.filled = true;
        let mut state = self.slot.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.outcome = Some(outcome);
        let waker = state.waker.take();
        drop(state);
        self.slot.filled.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        if !self.filled {
            self.put(Err(ClientError::Stopped));
        }
    }
}
