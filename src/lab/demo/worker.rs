//! One worker: a closed loop of operations whose effects it can account for.

use std::collections::VecDeque;

use crate::services::kv::{Answer, Change, Op};
use crate::sim::{Ask, Rng};

/// Keys that all workers write and read.
const SHARED: u64 = 32;
/// Entries of its own that a worker leaves standing before it deletes the oldest.
const STANDING: usize = 16;

/// What the answer to an operation will be good for.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Pending {
    /// Nothing of its own.
    Shared(u64),
    Any,
    Turn,
    Enter(u64),
    Remove(u64),
}

/// What a worker can say of the store by itself: only it writes below these keys.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Account {
    /// Acknowledged operations whose effect was missing.
    pub(super) lost: u64,
    /// Operations whose effect was there twice.
    pub(super) duplicated: u64,
}

/// A worker.
pub(super) struct Worker {
    id: u64,
    /// Every key begins so.
    prefix: String,
    rng: Rng,
    pending: Option<Pending>,
    /// What it saw last of some shared key.
    seen: (u64, Option<Vec<u8>>),
    /// Turns of its wheel: a compare-and-swap from each position to the next of three. Executed twice, late enough, it
    /// turns the wheel once too often.
    turns: u64,
    /// Its own entries, as numbers; each is entered once and removed once. Executed twice, a removed one comes back.
    standing: VecDeque<u64>,
    entered: u64,
    account: Account,
}

impl Worker {
    pub(super) fn new(id: u64, seed: u64, prefix: &str) -> Worker {
        let (prefix, rng) = (prefix.to_owned(), Rng::stream(seed, id));
        let (seen, standing, account) = ((0, None), VecDeque::new(), Account::default());
        Worker { id, prefix, rng, pending: None, seen, turns: 0, standing, entered: 0, account }
    }

    /// Its next operation.
    pub(super) fn ask(&mut self) -> Ask {
        assert!(self.pending.is_none(), "one at a time");
        let number = self.rng.below(SHARED);
        let (key, some) = (self.shared_key(number), format!("{}shared/1", self.prefix));
        let value = self.rng.next_u64().to_le_bytes();
        let (pending, op) = match self.rng.below(100) {
            0..35 => (Pending::Shared(number), Op::Get { key: key.as_bytes() }),
            35..40 => (Pending::Any, Op::Scan { prefix: some.as_bytes(), after: b"", limit: 8 }),
            40..60 => (Pending::Any, Op::Change(Change::Put { key: key.as_bytes(), value: &value })),
            60..65 => (Pending::Any, Op::Change(Change::Delete { key: key.as_bytes() })),
            65..75 => {
                let (key, expected) = (self.shared_key(self.seen.0), self.seen.1.clone());
                let op = Change::Cas { key: key.as_bytes(), expected: expected.as_deref(), new: Some(&value) };
                return self.begin(Pending::Shared(self.seen.0), &Op::Change(op));
            }
            75..85 => {
                let (key, expected, new) = (self.wheel_key(), self.wheel(self.turns), self.wheel(self.turns + 1));
                let op = Change::Cas { key: key.as_bytes(), expected: expected.as_deref(), new: new.as_deref() };
                return self.begin(Pending::Turn, &Op::Change(op));
            }
            _ if self.standing.len() >= STANDING => {
                let (number, key) = (self.standing[0], self.entry_key(self.standing[0]));
                return self.begin(Pending::Remove(number), &Op::Change(Change::Delete { key: key.as_bytes() }));
            }
            _ => {
                let key = self.entry_key(self.entered);
                let op = Change::Put { key: key.as_bytes(), value: &value };
                return self.begin(Pending::Enter(self.entered), &Op::Change(op));
            }
        };
        self.begin(pending, &op)
    }

    fn begin(&mut self, pending: Pending, op: &Op<'_>) -> Ask {
        self.pending = Some(pending);
        let bytes = op.encode().expect("small keys and values");
        if op.is_read_only() { Ask::query(bytes) } else { Ask::ordered(bytes) }
    }

    /// The certified answer to what it asked.
    pub(super) fn learn(&mut self, answer: &Answer<'_>) {
        match (self.pending.take().expect("it asked"), answer) {
            (Pending::Shared(key), Answer::Value(value)) => self.seen = (key, Some(value.to_vec())),
            (Pending::Shared(key), Answer::Mismatch(actual)) => self.seen = (key, actual.map(<[u8]>::to_vec)),
            (Pending::Shared(key), Answer::Absent) => self.seen = (key, None),
            (Pending::Shared(_) | Pending::Any, _) => {}
            (Pending::Turn, Answer::Mismatch(actual)) => {
                // Nobody else turns it. Goes on from where it stands.
                if actual.map(<[u8]>::to_vec) == self.wheel(self.turns + 1) {
                    (self.turns, self.account.duplicated) = (self.turns + 1, self.account.duplicated + 1);
                } else {
                    (self.turns, self.account.lost) = (self.turns.saturating_sub(1), self.account.lost + 1);
                }
            }
            (Pending::Turn, _) => self.turns += 1,
            (Pending::Enter(number), _) => {
                self.standing.push_back(number);
                self.entered = number + 1;
            }
            (Pending::Remove(_), answer) => {
                self.standing.pop_front();
                self.account.lost += u64::from(*answer == Answer::Absent);
            }
        }
    }

    /// What must be found in the store of what is its own: keys, and values where it knows them.
    pub(super) fn finish(self) -> (Vec<Own>, Account) {
        let wheel = self.wheel(self.turns).map(|value| Own { key: self.wheel_key().into_bytes(), value: Some(value) });
        let entries = self.standing.iter().map(|&number| Own { key: self.entry_key(number).into_bytes(), value: None });
        (entries.chain(wheel).collect(), self.account)
    }

    fn wheel(&self, turns: u64) -> Option<Vec<u8>> {
        (turns > 0).then(|| vec![b'0' + (turns % 3) as u8])
    }

    fn shared_key(&self, number: u64) -> String {
        format!("{}shared/{number:02}", self.prefix)
    }

    fn wheel_key(&self) -> String {
        format!("{}own/wheel/{:03}", self.prefix, self.id)
    }

    fn entry_key(&self, number: u64) -> String {
        format!("{}own/entry/{:03}/{number:08}", self.prefix, self.id)
    }
}

/// A pair that must be in the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Own {
    pub(super) key: Vec<u8>,
    /// `None`: any.
    pub(super) value: Option<Vec<u8>>,
}

impl Account {
    /// Compares what must be there with what is, both in key order.
    pub(super) fn settle(&mut self, expected: &[Own], found: &[(Vec<u8>, Vec<u8>)]) {
        let position = |key: &[u8]| found.binary_search_by(|(k, _)| k.as_slice().cmp(key));
        for own in expected {
            match (position(&own.key), &own.value) {
                (Err(_), _) => self.lost += 1,
                (Ok(at), Some(value)) if found[at].1 != *value => {
                    // One position ahead of three: turned twice. Behind: a turn is missing.
                    let ahead =
                        found[at].1.first().zip(value.first()).is_some_and(|(f, v)| (v - b'0' + 1) % 3 + b'0' == *f);
                    if ahead { self.duplicated += 1 } else { self.lost += 1 }
                }
                (Ok(_), _) => {}
            }
        }
        let known = |key: &[u8]| expected.iter().any(|own| own.key == key);
        self.duplicated += found.iter().filter(|(key, _)| !known(key)).count() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoreModel;
    use super::*;
    use crate::sim::linearizability::{Call, Model as _};
    use crate::types::{ClientId, Position, Time};

    fn call(op: &[u8]) -> Call<'_> {
        Call { client: ClientId(0), position: Position(0), time: Time(0), seed: 0, op }
    }

    /// Plays a worker against a store; `meddle` may answer instead of it.
    fn play(mut meddle: impl FnMut(usize, &Worker, &mut StoreModel, &[u8]) -> Option<Vec<u8>>) -> Account {
        let mut store = StoreModel::default();
        let mut worker = Worker::new(1, 7, "p/");
        for i in 0..2_000 {
            let ask = worker.ask();
            let result = meddle(i, &worker, &mut store, &ask.op).unwrap_or_else(|| store.apply(&call(&ask.op)));
            worker.learn(&Answer::parse(&result).unwrap());
        }
        let (own, mut account) = worker.finish();
        let scan = Op::Scan { prefix: b"p/own/", after: b"", limit: 1_000 }.encode().unwrap();
        let found = store.query(&call(&scan)).unwrap();
        let Some(Answer::Entries(entries)) = Answer::parse(&found) else { panic!("a scan") };
        let found: Vec<_> = entries.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        account.settle(&own, &found);
        account
    }

    #[test]
    fn a_correct_store_loses_and_doubles_nothing() {
        assert_eq!(play(|_, _, _, _| None), Account::default());
    }

    #[test]
    fn an_acknowledged_operation_that_was_not_executed_is_lost() {
        for kind in [Pending::Turn, Pending::Enter(0)] {
            for from in [10, 300, 1_900] {
                let mut done = false;
                let account = play(|i, worker, _, _| {
                    let same = |p: &Pending| std::mem::discriminant(p) == std::mem::discriminant(&kind);
                    let drop_it = !done && i >= from && worker.pending.as_ref().is_some_and(same);
                    done |= drop_it;
                    drop_it.then(|| vec![0])
                });
                assert_eq!((account.lost, account.duplicated), (1, 0), "{kind:?} from {from}");
            }
        }
    }

    #[test]
    fn an_operation_that_is_executed_again_later_is_duplicated() {
        // An entry that was removed comes back.
        let mut entered = None;
        let account = play(|i, worker, store, op| {
            match worker.pending {
                Some(Pending::Enter(0)) => entered = Some(op.to_vec()),
                _ if i == 1_500 => drop(store.apply(&call(entered.as_ref().unwrap()))),
                _ => {}
            }
            None
        });
        assert_eq!((account.lost, account.duplicated), (0, 1));

        // A wheel is turned once too often, three turns later.
        let (mut turned, mut again) = (None, false);
        let account = play(|_, worker, store, op| {
            match (&worker.pending, worker.turns) {
                (Some(Pending::Turn), 3) => turned = Some(op.to_vec()),
                (Some(Pending::Turn), 6) if !again => {
                    again = true;
                    store.apply(&call(turned.as_ref().unwrap()));
                }
                _ => {}
            }
            None
        });
        assert_eq!((account.lost, account.duplicated), (0, 1));
    }
}
