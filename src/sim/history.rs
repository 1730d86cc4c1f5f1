//! What clients asked and what they were told.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::linearizability::{Moment, Operation, Placed};
use crate::types::{ClientId, Position, SeqNum};

/// An operation that has begun.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Who asked.
    pub client: ClientId,
    /// What.
    pub op: Bytes,
    /// When.
    pub invoked: Moment,
}

/// The operations of one simulation, in order of completion, and those still going on.
#[derive(Clone, Debug, Default)]
pub struct History {
    moments: u64,
    done: Vec<Operation>,
    begun: BTreeMap<u64, Begun>,
}

impl History {
    /// An operation begins; returns its name.
    pub fn invoke(&mut self, client: ClientId, op: Bytes) -> u64 {
        let invoked = self.moment();
        self.begun.insert(invoked.0, Begun { client, op, invoked });
        invoked.0
    }

    /// The operation with that name completed. Panics if it is not under way: nothing completes twice.
    pub fn complete(&mut self, name: u64, placed: Placed, result: Bytes) {
        let begun = self.begun.remove(&name).expect("an operation completes once");
        let completed = self.moment();
        let Begun { client, op, invoked } = begun;
        self.done.push(Operation { client, op, invoked, completed, placed, result });
    }

    /// What completed.
    pub fn done(&self) -> &[Operation] {
        &self.done
    }

    /// The last batch of which an answer is known.
    pub fn answered(&self) -> SeqNum {
        let placed = self.done.iter().filter_map(|operation| match operation.placed {
            Placed::At(position) => Some(position.batch()),
            Placed::Unordered | Placed::UnorderedOn(_) => None,
        });
        placed.max().unwrap_or_default()
    }

    /// What completed, what was never answered but took effect according to `place`, and nothing else: what was never
    /// answered is asked for in the order in which it began.
    pub fn with_effects(&self, mut place: impl FnMut(&Begun) -> Option<Position>) -> Vec<Operation> {
        let mut all = self.done.clone();
        for begun in self.begun.values() {
            if let Some(position) = place(begun) {
                let Begun { client, op, invoked } = begun.clone();
                let (completed, placed, result) = (Moment::NEVER, Placed::At(position), Bytes::new());
                all.push(Operation { client, op, invoked, completed, placed, result });
            }
        }
        all
    }

    /// What did not, yet.
    pub fn pending(&self) -> impl Iterator<Item = &Begun> {
        self.begun.values()
    }

    fn moment(&mut self) -> Moment {
        self.moments += 1;
        Moment(self.moments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_order_what_shares_a_time() {
        let mut history = History::default();
        let a = history.invoke(ClientId(1), Bytes::from_static(b"a"));
        history.complete(a, Placed::Unordered, Bytes::new());
        let b = history.invoke(ClientId(1), Bytes::from_static(b"b"));
        assert_eq!(history.pending().count(), 1);
        history.complete(b, Placed::Unordered, Bytes::new());
        assert!(history.done()[0].completed < history.done()[1].invoked);
    }

    #[test]
    fn what_was_never_answered_counts_if_it_took_effect() {
        let mut history = History::default();
        history.invoke(ClientId(1), Bytes::from_static(b"a"));
        history.invoke(ClientId(1), Bytes::from_static(b"b"));
        let at = Position(7);
        let all = history.with_effects(|begun| (begun.op == "b").then_some(at));
        assert_eq!(all.len(), 1);
        assert_eq!((&all[0].op[..], all[0].placed, all[0].completed), (&b"b"[..], Placed::At(at), Moment::NEVER));
    }

    #[test]
    fn the_last_batch_answered_is_the_highest_whatever_came_last() {
        let mut history = History::default();
        assert_eq!(history.answered(), SeqNum(0));
        let at = |n| Placed::At(Position::new(SeqNum(n), 3));
        for placed in [at(4), at(9), at(7), Placed::Unordered] {
            let name = history.invoke(ClientId(1), Bytes::new());
            history.complete(name, placed, Bytes::new());
        }
        assert_eq!(history.answered(), SeqNum(9));
    }

    #[test]
    #[should_panic(expected = "an operation completes once")]
    fn nothing_completes_twice() {
        let mut history = History::default();
        let a = history.invoke(ClientId(1), Bytes::new());
        history.complete(a, Placed::Unordered, Bytes::new());
        history.complete(a, Placed::Unordered, Bytes::new());
    }
}
