//! One timer per request: a heap whose stale entries are dropped when they come to the top.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::completion::RequestId;
use super::request::Requests;
use crate::types::Time;

#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Time, RequestId)>>,
}

impl Timers {
    /// Call when a request's `due` was set to `at`.
    pub(crate) fn push(&mut self, at: Time, request: RequestId, requests: &Requests) {
        if at == Time::NEVER {
            return;
        }
        // Stale entries are dropped before they outnumber the requests.
        if self.heap.len() > 2 * requests.len() + 64 {
            self.heap.retain(|&Reverse((at, id))| requests.get(id).is_some_and(|r| r.due == at));
        }
        self.heap.push(Reverse((at, request)));
    }

    /// The next request that is due by `until`.
    pub(crate) fn pop(&mut self, until: Time, requests: &Requests) -> Option<RequestId> {
        while let Some(&Reverse((at, id))) = self.heap.peek() {
            let live = requests.get(id).is_some_and(|r| r.due == at);
            if live && at > until {
                return None;
            }
            self.heap.pop();
            if live {
                return Some(id);
            }
        }
        None
    }

    /// Drops what is stale at the top; when the next timer is due.
    pub(crate) fn next(&mut self, requests: &Requests) -> Time {
        while let Some(&Reverse((at, id))) = self.heap.peek() {
            if requests.get(id).is_some_and(|r| r.due == at) {
                return at;
            }
            self.heap.pop();
        }
        Time::NEVER
    }
}
