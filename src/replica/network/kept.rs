//! Replies of a replica in reserve (P53): clients have theirs from the preferred quorum. They are kept for a few
//! milliseconds, for that may turn out otherwise; a request that is sent again is answered from its session in any case.

use std::collections::VecDeque;
use std::time::Duration;

use crate::execution::Reply;
use crate::types::Time;
use crate::wire::Outcome;

/// The last replies, each with when it was made.
#[derive(Debug, Default)]
pub(super) struct Kept {
    replies: VecDeque<(Time, Reply)>,
    bytes: usize,
}

/// About what a reply takes.
fn bytes(reply: &Reply) -> usize {
    let result = match &reply.outcome {
        Outcome::Done(result) => result.len(),
        Outcome::Gone | Outcome::NoSession | Outcome::Refused(_) => 0,
    };
    size_of::<(Time, Reply)>() + result
}

impl Kept {
    /// For longer than it takes to notice that somebody preferred is silent.
    const KEPT_FOR: Duration = Duration::from_millis(10);
    const BYTES_MAX: usize = 4 << 20;

    /// Adds a reply; the oldest go.
    pub(super) fn push(&mut self, now: Time, reply: Reply) {
        let is_over = |at: Time| now.since(at) > Self::KEPT_FOR;
        self.bytes += bytes(&reply);
        self.replies.push_back((now, reply));
        while self.bytes > Self::BYTES_MAX || self.replies.front().is_some_and(|(at, _)| is_over(*at)) {
            self.take();
        }
    }

    /// Takes the oldest that is not too old.
    pub(super) fn pop(&mut self, now: Time) -> Option<Reply> {
        while let Some((at, reply)) = self.take() {
            if now.since(at) <= Self::KEPT_FOR {
                return Some(reply);
            }
        }
        None
    }

    fn take(&mut self) -> Option<(Time, Reply)> {
        let (at, reply) = self.replies.pop_front()?;
        self.bytes -= bytes(&reply);
        Some((at, reply))
    }
}
