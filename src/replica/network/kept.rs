//! Replies of a replica in reserve (P53): clients have theirs from the preferred quorum. They are kept for a few
//! milliseconds, for that may turn out otherwise; a request that is sent again is answered from its session in any case.

use std::collections::VecDeque;

use crate::execution::Reply;
use crate::types::Time;
use crate::wire::Outcome;

/// The last replies, each with when it can go.
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
    const BYTES_MAX: usize = 4 << 20;

    /// Adds a reply; the oldest go.
    pub(super) fn push(&mut self, now: Time, until: Time, reply: Reply) {
        self.bytes += bytes(&reply);
        self.replies.push_back((until, reply));
        while self.bytes > Self::BYTES_MAX || self.replies.front().is_some_and(|(until, _)| *until < now) {
            self.take();
        }
    }

    /// Takes the oldest that is not too old.
    pub(super) fn pop(&mut self, now: Time) -> Option<Reply> {
        while let Some((until, reply)) = self.take() {
            if now <= until {
                return Some(reply);
            }
        }
        None
    }

    fn take(&mut self) -> Option<(Time, Reply)> {
        let (until, reply) = self.replies.pop_front()?;
        self.bytes -= bytes(&reply);
        Some((until, reply))
    }
}
