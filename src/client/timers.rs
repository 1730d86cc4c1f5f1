//! One timer per request, in groups: what is sent together is due together. Stale entries are dropped when they come to
//! the front.

use std::collections::{BTreeMap, VecDeque};

use super::completion::RequestId;
use super::request::Requests;
use crate::types::Time;

#[derive(Debug, Default)]
pub(crate) struct Timers {
    groups: BTreeMap<Time, VecDeque<RequestId>>,
    /// Entries in all groups.
    len: usize,
    /// An emptied group, to be used again.
    spare: VecDeque<RequestId>,
}

impl Timers {
    /// Call when a request's `due` was set to `at`.
    pub(crate) fn push(&mut self, at: Time, request: RequestId, requests: &Requests) {
        if at == Time::NEVER {
            return;
        }
        // Stale entries are dropped before they outnumber the requests.
        if self.len > 2 * requests.len() + 64 {
            self.groups.retain(|&at, group| {
                group.retain(|&id| is_live(at, id, requests));
                !group.is_empty()
            });
            self.len = self.groups.values().map(VecDeque::len).sum();
        }
        self.groups.entry(at).or_insert_with(|| std::mem::take(&mut self.spare)).push_back(request);
        self.len += 1;
    }

    /// The next request that is due by `until`.
    pub(crate) fn pop(&mut self, until: Time, requests: &Requests) -> Option<RequestId> {
        if self.next(requests) > until {
            return None;
        }
        let request = self.groups.first_entry()?.get_mut().pop_front()?;
        self.len -= 1;
        Some(request)
    }

    /// Drops what is stale at the front; when the next timer is due.
    pub(crate) fn next(&mut self, requests: &Requests) -> Time {
        while let Some(mut first) = self.groups.first_entry() {
            let at = *first.key();
            while let Some(&id) = first.get().front() {
                if is_live(at, id, requests) {
                    return at;
                }
                first.get_mut().pop_front();
                self.len -= 1;
            }
            self.spare = first.remove();
        }
        Time::NEVER
    }
}

fn is_live(at: Time, id: RequestId, requests: &Requests) -> bool {
    requests.get(id).is_some_and(|r| r.due == at)
}
