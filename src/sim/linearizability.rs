//! Is a history of operations one that a single correct server could have produced?
//!
//! In general that question is exponential. Here it is linear, because ordered operations say at which place they took
//! effect: the checker need not search for an order, only check the one that is claimed.
//!
//! 1. *Ordered operations*, sorted by position, are replayed through a model; every result must be the model's, no two
//!    share a position, and an operation that completed before another was invoked must have the lower position.
//! 2. *Read-only operations* carry no position that is worth anything (replicas may answer the same query from different
//!    states), so a place must be found: read r may stand after the first k ordered operations if the model's answer
//!    there is r's result, k includes every ordered operation that completed before r was invoked, excludes every one
//!    invoked after r completed, and is not below the place of a read that completed before r was invoked.
//!
//! The sweep over k gives each read the *first* place that these rules allow. That loses nothing: every rule between
//! reads has the form k(r) >= k(r'), and each read's own rules fix a set of places; if two assignments satisfy all of
//! them, so does their pointwise minimum. A least assignment therefore exists if any does, and it is what the sweep
//! builds: r' can only bind r if it completed before r was invoked, hence was itself assigned before. Reads that share
//! a place are ordered by invocation. All real-time precedences then hold pairwise, which is what linearizability asks
//! of a total order.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

use crate::types::{ClientId, Position, SeqNum, Time};

/// A moment in a history: strictly increasing over all invocations and completions, so that a completion and the
/// invocation that it causes are never the same moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment(pub u64);

impl Moment {
    /// After everything: when an operation completes that took effect and was never answered.
    pub const NEVER: Moment = Moment(u64::MAX);
}

/// A sequential specification: what a single, correct server does.
pub trait Model {
    /// Executes an ordered operation.
    fn apply(&mut self, call: &Call<'_>) -> Vec<u8>;

    /// Answers a read-only operation in the present state, `None` if it is none. The call's position and time are
    /// those of the last ordered operation.
    fn query(&mut self, call: &Call<'_>) -> Option<Vec<u8>>;
}

/// One operation and its agreed circumstances, as a [`Model`] sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call<'a> {
    /// Who asks.
    pub client: ClientId,
    /// Where it was ordered.
    pub position: Position,
    /// The agreed time.
    pub time: Time,
    /// The agreed seed of its batch.
    pub seed: u64,
    /// The operation.
    pub op: &'a [u8],
}

/// The agreed choices of the batch at a position; see [`check`].
pub type Choices<'a> = dyn Fn(Position) -> (Time, u64) + 'a;

/// How an operation was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placed {
    /// Ordered at this agreed position.
    At(Position),
    /// Read-only: answered without an order.
    Unordered,
    /// The same, from a state whose last batch was this one, and tentative.
    UnorderedOn(SeqNum),
}

impl Placed {
    /// Whether it has a place of its own in the order.
    pub fn is_ordered(self) -> bool {
        match self {
            Placed::At(_) => true,
            Placed::Unordered | Placed::UnorderedOn(_) => false,
        }
    }
}

/// One operation from its invocation to its completion.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Who asked.
    pub client: ClientId,
    /// What.
    pub op: Bytes,
    /// When.
    pub invoked: Moment,
    /// When the result was accepted.
    pub completed: Moment,
    /// Where it took effect.
    pub placed: Placed,
    /// What came back.
    pub result: Bytes,
}

/// Why a history is not linearizable. Indices are those of the history that was checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Violation {
    /// Two operations claim one position.
    SamePosition {
        /// The operations.
        operations: (usize, usize),
        /// The position.
        position: Position,
    },
    /// `first` completed before `second` was invoked, yet has the higher position.
    OutOfOrder {
        /// The earlier operation.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// A result is not what the model says at that position.
    WrongResult {
        /// The operation.
        operation: usize,
        /// The model's result.
        expected: Bytes,
    },
    /// No place for the read satisfies the rules.
    NoPlace {
        /// The read.
        operation: usize,
        /// Ordered operations that it must include.
        from: usize,
        /// Ordered operations that it may include at most.
        to: usize,
    },
    /// The model says that the operation is not read-only.
    NotReadOnly {
        /// The operation.
        operation: usize,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::SamePosition { operations: (a, b), position } => {
                write!(f, "operations {a} and {b} share position {position:?}")
            }
            Violation::OutOfOrder { first, second } => {
                write!(f, "operation {first} completed before {second} was invoked, but was ordered after it")
            }
            Violation::WrongResult { operation, expected } => {
                write!(f, "operation {operation} should have returned {}", preview(expected))
            }
            Violation::NoPlace { operation, from, to } => {
                write!(f, "read {operation} fits no state after {from} to {to} ordered operations")
            }
            Violation::NotReadOnly { operation } => {
                write!(f, "operation {operation} was answered as a read but is none")
            }
        }
    }
}

/// At most 48 bytes of something, readable.
pub(super) fn preview(bytes: &[u8]) -> String {
    let shown = bytes[..bytes.len().min(48)].escape_ascii();
    if bytes.len() > 48 { format!("\"{shown}…\" ({} bytes)", bytes.len()) } else { format!("\"{shown}\"") }
}

/// Checks `history` (in any order) against `model`, which must be in the initial state. `choices` gives time and seed
/// that were agreed for a position, for models that depend on them. An operation that took effect and was never answered
/// completes at [`Moment::NEVER`], and its result is not looked at; one that never took effect is not in the history.
pub fn check(history: &[Operation], model: &mut dyn Model, choices: &Choices<'_>) -> Result<(), Violation> {
    let ordered = order(history)?;
    let mut reads = Reads::new(history, &ordered);
    let mut last = Call { client: ClientId(0), position: Position(0), time: Time(0), seed: 0, op: &[] };
    reads.place(history, model, 0, &last)?;
    for (index, &operation) in ordered.iter().enumerate() {
        let Operation { client, op, completed, result, placed, .. } = &history[operation];
        let Placed::At(position) = *placed else { unreachable!("`order` names ordered operations") };
        let (time, seed) = choices(position);
        last = Call { client: *client, position, time, seed, op };
        let expected = model.apply(&last);
        if *completed != Moment::NEVER && *result != expected {
            return Err(Violation::WrongResult { operation, expected: expected.into() });
        }
        reads.place(history, model, index + 1, &last)?;
    }
    reads.end()
}

/// Indices of the ordered operations, by position; checks real-time precedence between them.
fn order(history: &[Operation]) -> Result<Vec<usize>, Violation> {
    let mut by_position: BTreeMap<Position, usize> = BTreeMap::new();
    for (i, operation) in history.iter().enumerate() {
        if let Placed::At(position) = operation.placed
            && let Some(other) = by_position.insert(position, i)
        {
            return Err(Violation::SamePosition { operations: (other, i), position });
        }
    }
    let ordered: Vec<usize> = by_position.into_values().collect();
    let mut latest: Option<usize> = None;
    for &i in &ordered {
        if let Some(second) = latest
            && history[second].invoked > history[i].completed
        {
            return Err(Violation::OutOfOrder { first: i, second });
        }
        if latest.is_none_or(|l| history[l].invoked < history[i].invoked) {
            latest = Some(i);
        }
    }
    Ok(ordered)
}

struct Read {
    operation: usize,
    /// The least and the greatest number of ordered operations that it may follow.
    from: usize,
    to: usize,
}

/// The reads that have no place yet, by invocation.
struct Reads {
    waiting: Vec<Read>,
}

impl Reads {
    fn new(history: &[Operation], ordered: &[usize]) -> Reads {
        let mut waiting: Vec<Read> = (0..history.len())
            .filter(|&i| !history[i].placed.is_ordered())
            .map(|operation| Read { operation, from: 0, to: ordered.len() })
            .collect();

        // from: one above the highest index that completed before the read's invocation.
        let mut completions: Vec<(Moment, usize)> =
            ordered.iter().enumerate().map(|(index, &i)| (history[i].completed, index)).collect();
        completions.sort_unstable();
        waiting.sort_unstable_by_key(|r| history[r.operation].invoked);
        let (mut seen, mut from) = (0, 0);
        for read in &mut waiting {
            while seen < completions.len() && completions[seen].0 < history[read.operation].invoked {
                from = from.max(completions[seen].1 + 1);
                seen += 1;
            }
            read.from = from;
        }

        // to: the lowest index that was invoked after the read's completion.
        let mut invocations: Vec<(Moment, usize)> =
            ordered.iter().enumerate().map(|(index, &i)| (history[i].invoked, index)).collect();
        invocations.sort_unstable();
        waiting.sort_unstable_by_key(|r| history[r.operation].completed);
        let (mut left, mut to) = (invocations.len(), ordered.len());
        for read in waiting.iter_mut().rev() {
            while left > 0 && invocations[left - 1].0 > history[read.operation].completed {
                left -= 1;
                to = to.min(invocations[left].1);
            }
            read.to = to;
        }

        waiting.sort_unstable_by_key(|r| history[r.operation].invoked);
        Reads { waiting }
    }

    /// Gives a place after the first `k` ordered operations to every read that can have it.
    ///
    /// `waiting` is ordered by invocation, and `from` grows with it: the scan ends at the first read that lies ahead
    /// of `k`, or that was invoked after the completion of one which still waits. What it passes are concurrent reads.
    fn place(
        &mut self,
        history: &[Operation],
        model: &mut dyn Model,
        k: usize,
        last: &Call<'_>,
    ) -> Result<(), Violation> {
        let mut first_completion: Option<Moment> = None;
        let mut kept = 0;
        let mut scanned = 0;
        while scanned < self.waiting.len() {
            let Read { operation, from, to } = self.waiting[scanned];
            let Operation { client, op, invoked, completed, result, .. } = &history[operation];
            if from > k || first_completion.is_some_and(|c| c < *invoked) {
                break;
            }
            let Some(answer) = model.query(&Call { client: *client, op, ..*last }) else {
                return Err(Violation::NotReadOnly { operation });
            };
            if *result != answer {
                if to <= k {
                    return Err(Violation::NoPlace { operation, from, to });
                }
                first_completion = Some(first_completion.map_or(*completed, |c| c.min(*completed)));
                self.waiting.swap(kept, scanned);
                kept += 1;
            }
            scanned += 1;
        }
        self.waiting.drain(kept..scanned);
        // A read behind the one that stopped the scan may be past its last place, too.
        match self.waiting.iter().skip(kept).take_while(|r| r.from <= k).find(|r| r.to <= k) {
            Some(&Read { operation, from, to }) => Err(Violation::NoPlace { operation, from, to }),
            None => Ok(()),
        }
    }

    fn end(self) -> Result<(), Violation> {
        match self.waiting.first() {
            Some(&Read { operation, from, to }) => Err(Violation::NoPlace { operation, from, to }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::SeqNum;

    /// A register: `w` and a byte writes and returns the old value, anything else reads.
    #[derive(Default, Clone)]
    struct Register(u8);

    impl Model for Register {
        fn apply(&mut self, call: &Call<'_>) -> Vec<u8> {
            match call.op {
                [b'w', value] => vec![std::mem::replace(&mut self.0, *value)],
                _ => vec![self.0],
            }
        }

        fn query(&mut self, call: &Call<'_>) -> Option<Vec<u8>> {
            (call.op.first() != Some(&b'w')).then(|| vec![self.0])
        }
    }

    fn write(invoked: u64, completed: u64, at: u64, value: u8, old: u8) -> Operation {
        Operation {
            client: ClientId(1),
            op: Bytes::copy_from_slice(&[b'w', value]),
            invoked: Moment(invoked),
            completed: Moment(completed),
            placed: Placed::At(Position::new(SeqNum(at), 0)),
            result: Bytes::copy_from_slice(&[old]),
        }
    }

    fn read(invoked: u64, completed: u64, value: u8) -> Operation {
        Operation {
            client: ClientId(2),
            op: Bytes::from_static(b"r"),
            invoked: Moment(invoked),
            completed: Moment(completed),
            placed: Placed::Unordered,
            result: Bytes::copy_from_slice(&[value]),
        }
    }

    fn checked(history: &[Operation]) -> Result<(), Violation> {
        check(history, &mut Register::default(), &|_| (Time(0), 0))
    }

    #[test]
    fn sequential_and_concurrent_histories_pass() {
        assert_eq!(checked(&[]), Ok(()));
        assert_eq!(checked(&[write(0, 1, 1, 7, 0), read(2, 3, 7), write(4, 5, 2, 8, 7), read(6, 7, 8)]), Ok(()));
        // Concurrent with the write: either value.
        assert_eq!(checked(&[write(0, 9, 1, 7, 0), read(1, 2, 0), read(3, 4, 7)]), Ok(()));
        // Two writes at once, ordered against their invocation.
        assert_eq!(checked(&[write(0, 9, 2, 7, 8), write(1, 8, 1, 8, 0)]), Ok(()));
    }

    #[test]
    fn p06_stale_read_is_rejected() {
        let history = [write(0, 1, 1, 7, 0), read(2, 3, 0)];
        assert_eq!(checked(&history), Err(Violation::NoPlace { operation: 1, from: 1, to: 1 }));
    }

    #[test]
    fn p06_read_from_the_future_is_rejected() {
        let history = [read(0, 1, 7), write(2, 3, 1, 7, 0)];
        assert_eq!(checked(&history), Err(Violation::NoPlace { operation: 0, from: 0, to: 0 }));
    }

    #[test]
    fn p18_new_then_old_read_is_rejected() {
        // The write is still going on, but one read has seen it: a later read may not miss it.
        let history = [write(0, 9, 1, 7, 0), read(1, 2, 7), read(3, 4, 0)];
        assert!(matches!(checked(&history), Err(Violation::NoPlace { operation: 2, .. })));
        // If the reads overlap, it is fine.
        assert_eq!(checked(&[write(0, 9, 1, 7, 0), read(1, 4, 7), read(2, 3, 0)]), Ok(()));
    }

    #[test]
    fn p18_aba_read_is_rejected() {
        // 0 -> 7 -> 0: a read that saw 7 and a later one that saw 0 need both writes to have begun.
        let ok = [write(0, 20, 1, 7, 0), write(1, 21, 2, 0, 7), read(2, 3, 7), read(4, 5, 0)];
        assert_eq!(checked(&ok), Ok(()));
        // The second write begins after the read that would need it.
        let bad = [write(0, 20, 1, 7, 0), write(6, 21, 2, 0, 7), read(2, 3, 7), read(4, 5, 0)];
        assert!(matches!(checked(&bad), Err(Violation::NoPlace { operation: 3, .. })));
    }

    #[test]
    fn a_read_that_must_wait_for_another_passes_by_its_last_place() {
        // Read 2 fits only state 0; read 1, before it, fits only state 1.
        let history = [write(0, 9, 1, 7, 0), read(1, 2, 7), read(3, 4, 0), write(5, 8, 2, 9, 7)];
        assert!(matches!(checked(&history), Err(Violation::NoPlace { operation: 2, .. })));
    }

    #[test]
    fn a_position_is_used_once_and_follows_real_time() {
        let twice = [write(0, 1, 1, 7, 0), write(2, 3, 1, 8, 7)];
        assert!(matches!(checked(&twice), Err(Violation::SamePosition { .. })));
        let swapped = [write(0, 1, 2, 7, 8), write(2, 3, 1, 8, 0)];
        assert_eq!(checked(&swapped), Err(Violation::OutOfOrder { first: 0, second: 1 }));
        let lost = [write(0, 1, 1, 7, 0), write(2, 3, 2, 8, 0)];
        assert_eq!(checked(&lost), Err(Violation::WrongResult { operation: 1, expected: Bytes::from_static(&[7]) }));
    }

    /// A counter: every ordered operation adds its byte and returns the sum.
    #[derive(Default)]
    struct Counter(u8);

    impl Model for Counter {
        fn apply(&mut self, call: &Call<'_>) -> Vec<u8> {
            self.0 += call.op[0];
            vec![self.0]
        }

        fn query(&mut self, _: &Call<'_>) -> Option<Vec<u8>> {
            Some(vec![self.0])
        }
    }

    #[test]
    fn p04_an_operation_that_took_effect_twice_is_rejected() {
        let add =
            |invoked, at, sum| Operation { op: Bytes::from_static(&[1]), ..write(invoked, invoked + 1, at, 0, sum) };
        let count = |history: &[Operation]| check(history, &mut Counter::default(), &|_| (Time(0), 0));
        assert_eq!(count(&[add(0, 1, 1), add(2, 2, 2), read(4, 5, 2)]), Ok(()));
        // The first was executed again at 2, where the history has nothing: the next ordered result shows it …
        let seen_by_a_write = [add(0, 1, 1), add(2, 3, 3)];
        let expected = Bytes::from_static(&[2]);
        assert_eq!(count(&seen_by_a_write), Err(Violation::WrongResult { operation: 1, expected }));
        // … and so does a read, also one that was going on meanwhile.
        let after = Err(Violation::NoPlace { operation: 1, from: 1, to: 1 });
        assert_eq!(count(&[add(0, 1, 1), read(2, 3, 2)]), after);
        assert_eq!(count(&[add(1, 1, 1), read(0, 9, 2)]), Err(Violation::NoPlace { operation: 1, from: 0, to: 1 }));
    }

    #[test]
    fn a_write_that_was_lost_is_rejected_wherever_it_should_show() {
        // In the result of the next ordered operation.
        let by_a_write = [write(0, 1, 1, 7, 0), write(2, 3, 2, 8, 0)];
        let expected = Bytes::from_static(&[7]);
        assert_eq!(checked(&by_a_write), Err(Violation::WrongResult { operation: 1, expected }));
        // In a read after it, though an earlier read saw it and a later write is under way.
        let by_a_read = [write(0, 1, 1, 7, 0), read(2, 3, 7), write(4, 9, 2, 8, 7), read(5, 6, 0)];
        assert!(matches!(checked(&by_a_read), Err(Violation::NoPlace { operation: 3, .. })));
        // An operation that took effect cannot be left out of the history.
        assert_eq!(checked(&by_a_read[..3]), Ok(()));
        let without_the_first = &by_a_read[2..3];
        assert!(matches!(checked(without_the_first), Err(Violation::WrongResult { operation: 0, .. })));
    }

    #[test]
    fn real_time_is_kept_between_operations_that_others_lie_between() {
        // 0 completes before 2 begins, both overlap 1; ordered 2, 1, 0.
        let writes = [write(0, 2, 3, 1, 2), write(1, 5, 2, 2, 3), write(3, 4, 1, 3, 0)];
        assert_eq!(checked(&writes), Err(Violation::OutOfOrder { first: 0, second: 2 }));
        // All of them at once: any order is one.
        let at_once = [write(0, 9, 3, 1, 2), write(1, 8, 2, 2, 3), write(2, 7, 1, 3, 0)];
        assert_eq!(checked(&at_once), Ok(()));
        // Two reads one after the other see the two writes in the wrong order, in whichever order the history has them.
        let mut reads = [write(0, 9, 1, 7, 0), write(1, 8, 2, 5, 7), read(2, 3, 5), read(4, 6, 7)];
        assert!(matches!(checked(&reads), Err(Violation::NoPlace { operation: 3, .. })));
        reads.reverse();
        assert!(matches!(checked(&reads), Err(Violation::NoPlace { operation: 0, .. })));
    }

    #[test]
    fn a_read_sees_nothing_that_was_invoked_after_it() {
        // The write to 5 is ordered first, but began when the read was over.
        let history = [write(0, 9, 2, 7, 5), read(1, 2, 5), write(3, 4, 1, 5, 0)];
        assert!(matches!(checked(&history), Err(Violation::NoPlace { operation: 1, to: 0, .. })));
    }

    #[test]
    fn a_write_answered_as_a_read_is_rejected() {
        let mut history = [write(0, 1, 1, 7, 0)];
        history[0].placed = Placed::Unordered;
        assert_eq!(checked(&history), Err(Violation::NotReadOnly { operation: 0 }));
    }

    /// The oracle: every order of the operations that respects real time and the claimed positions.
    fn linearizable_by_search(history: &[Operation]) -> bool {
        fn search(history: &[Operation], left: &mut Vec<usize>, state: &Register, last: Position) -> bool {
            if left.is_empty() {
                return true;
            }
            for slot in 0..left.len() {
                let i = left[slot];
                let h = &history[i];
                if left.iter().any(|&j| history[j].completed < h.invoked) {
                    continue;
                }
                let mut state = state.clone();
                let call = Call { client: h.client, position: last, time: Time(0), seed: 0, op: &h.op };
                let (answer, position) = match h.placed {
                    Placed::At(position) if position <= last => continue,
                    Placed::At(position) => (state.apply(&call), position),
                    Placed::Unordered | Placed::UnorderedOn(_) => (state.query(&call).unwrap(), last),
                };
                if h.result != answer {
                    continue;
                }
                let removed = left.remove(slot);
                let found = search(history, left, &state, position);
                left.insert(slot, removed);
                if found {
                    return true;
                }
            }
            false
        }
        let mut left = (0..history.len()).collect();
        search(history, &mut left, &Register::default(), Position(0))
    }

    /// Small histories around few values, most of them nearly right.
    fn histories() -> impl Strategy<Value = Vec<Operation>> {
        let operation = (0u64..14, 1u64..6, 0u8..3, 0u8..3, any::<bool>());
        (proptest::collection::vec(operation, 0..7), any::<prop::sample::Index>()).prop_map(|(raw, swap)| {
            let mut ends: Vec<(u64, usize, bool)> = Vec::new();
            for (i, &(start, len, ..)) in raw.iter().enumerate() {
                ends.push((start, i, false));
                ends.push((start + len, i, true));
            }
            ends.sort_unstable();
            let moment = |i: usize, end: bool| ends.iter().position(|&(_, j, e)| j == i && e == end).unwrap() as u64;
            let mut history = Vec::new();
            let mut value = 0;
            let mut at = 1;
            for (i, &(_, _, new, seen, is_write)) in raw.iter().enumerate() {
                if is_write {
                    history.push(write(moment(i, false), moment(i, true), at, new, value));
                    value = new;
                    at += 1;
                } else {
                    history.push(read(moment(i, false), moment(i, true), seen));
                }
            }
            if history.len() > 1 {
                let k = swap.index(history.len() - 1);
                history.swap(k, k + 1);
            }
            history
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_sweep_agrees_with_a_search(history in histories()) {
            prop_assert_eq!(checked(&history).is_ok(), linearizable_by_search(&history), "{:?}", checked(&history));
        }
    }
}
