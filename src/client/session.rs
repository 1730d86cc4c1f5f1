//! One session as its client sees it: a window of outstanding requests over a life that may end (P4, P9).

use std::collections::VecDeque;

use super::completion::RequestId;
use crate::types::{SessionId, Time};

/// A caller's session, or the one that carries queries which fell back.
#[derive(Debug)]
pub(crate) struct SessionState {
    /// W: requests outstanding, and the span of their numbers.
    pub(crate) window: u64,
    pub(crate) phase: Phase,
    /// Submitted, without a number yet.
    pub(crate) waiting: VecDeque<RequestId>,
    /// Submitted, and their completions not yet fetched.
    pub(crate) load: u64,
    /// No more requests are taken; it goes when the last is answered.
    pub(crate) closing: bool,
}

/// Whether the cluster knows it.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Not asked for yet, lost, refused, or too long idle.
    Closed,
    /// The session-open is on its way.
    Opening,
    /// Open.
    Open(Live),
}

/// An open session.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) id: SessionId,
    /// `low`: every request below it is answered, or given up.
    low: u64,
    /// Requests from `low` on; `None` where one is answered.
    outstanding: VecDeque<Option<RequestId>>,
    /// When a request of it was last sent or answered.
    pub(crate) touched: Time,
}

impl Live {
    pub(crate) fn new(id: SessionId, now: Time) -> Live {
        Live { id, low: 1, outstanding: VecDeque::new(), touched: now }
    }

    /// The next number and its `low`, if the window has room for it: t < low + W.
    pub(crate) fn assign(&mut self, request: RequestId, window: u64) -> Option<(u64, u64)> {
        if self.outstanding.len() as u64 >= window {
            return None;
        }
        self.outstanding.push_back(Some(request));
        Some((self.low + self.outstanding.len() as u64 - 1, self.low))
    }

    /// The outstanding request with number `t`.
    pub(crate) fn get(&self, t: u64) -> Option<RequestId> {
        let index = usize::try_from(t.checked_sub(self.low)?).ok()?;
        self.outstanding.get(index).copied().flatten()
    }

    /// Number `t` needs no reply any more.
    pub(crate) fn release(&mut self, t: u64) {
        let slot = t.checked_sub(self.low).and_then(|i| self.outstanding.get_mut(usize::try_from(i).ok()?));
        *slot.expect("only what is outstanding is released") = None;
        while let Some(None) = self.outstanding.front() {
            self.outstanding.pop_front();
            self.low += 1;
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Everything outstanding, in order of numbers.
    pub(crate) fn outstanding(&self) -> impl Iterator<Item = RequestId> {
        self.outstanding.iter().copied().flatten()
    }
}

impl SessionState {
    pub(crate) fn new(window: u64) -> SessionState {
        SessionState { window, phase: Phase::Closed, waiting: VecDeque::new(), load: 0, closing: false }
    }

    pub(crate) fn live(&mut self) -> Option<&mut Live> {
        match &mut self.phase {
            Phase::Open(live) => Some(live),
            Phase::Closed | Phase::Opening => None,
        }
    }

    pub(crate) fn id(&self) -> Option<SessionId> {
        match &self.phase {
            Phase::Open(live) => Some(live.id),
            Phase::Closed | Phase::Opening => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p04_numbers_stay_within_the_window_above_the_oldest_unanswered() {
        let mut live = Live::new(SessionId(9), Time(0));
        let id = RequestId;
        assert_eq!(live.assign(id(1), 3), Some((1, 1)));
        assert_eq!(live.assign(id(2), 3), Some((2, 1)));
        assert_eq!(live.assign(id(3), 3), Some((3, 1)));
        assert_eq!(live.assign(id(4), 3), None);
        live.release(2);
        assert_eq!(live.assign(id(4), 3), None, "1 is unanswered: 4 would be outside the window");
        assert_eq!((live.get(1), live.get(2), live.get(3), live.get(0)), (Some(id(1)), None, Some(id(3)), None));
        live.release(1);
        assert_eq!(live.assign(id(4), 3), Some((4, 3)));
        assert_eq!(live.outstanding().collect::<Vec<_>>(), [id(3), id(4)]);
        live.release(3);
        live.release(4);
        assert!(live.is_idle());
        assert_eq!(live.get(u64::MAX), None);
    }
}
