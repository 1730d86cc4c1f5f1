//! The key-value service under the simulator, against a model that shares nothing with it but the encoding.

mod sim_harness;

use std::collections::BTreeMap;

use castra::execution::ReplyBuffer;
use castra::services::Kv;
use castra::services::kv::{Answer, Change, EntriesBuilder, Op};
use castra::sim::linearizability::{Call, Model};
use castra::sim::{Ask, Config, Keys, Rng, Simulation};
use sim_harness::sweep;

#[derive(Default)]
struct KvModel {
    pairs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl KvModel {
    fn holds(&self, change: &Change<'_>) -> bool {
        match change {
            Change::Put { .. } | Change::Delete { .. } => true,
            Change::Cas { key, expected, .. } => self.pairs.get(*key).map(Vec::as_slice) == *expected,
        }
    }

    fn make(&mut self, change: &Change<'_>) -> bool {
        match *change {
            Change::Put { key, value } | Change::Cas { key, new: Some(value), .. } => {
                self.pairs.insert(key.to_vec(), value.to_vec());
                true
            }
            Change::Delete { key } | Change::Cas { key, new: None, .. } => self.pairs.remove(key).is_some(),
        }
    }

    fn answer(&mut self, op: &[u8], read_only: bool) -> Option<Vec<u8>> {
        let op = Op::parse(op).expect("the workload is well formed");
        if read_only && !op.is_read_only() {
            return None;
        }
        let mut reply = ReplyBuffer::new();
        let answer = match op {
            Op::Get { key } => {
                let found = self.pairs.get(key).cloned();
                found.as_deref().map_or(Answer::Absent, Answer::Value).encode(&mut reply);
                return Some(reply.as_slice().to_vec());
            }
            Op::Scan { prefix, after, limit } => {
                let mut left = limit;
                let mut entries = EntriesBuilder::new(&mut reply);
                let mut more = false;
                for (key, value) in self.pairs.iter().filter(|(k, _)| k.starts_with(prefix) && k.as_slice() > after) {
                    if left == 0 {
                        more = true;
                        break;
                    }
                    entries.push(key, value);
                    left -= 1;
                }
                entries.finish(more);
                return Some(reply.as_slice().to_vec());
            }
            Op::Change(change @ Change::Put { .. }) => {
                self.make(&change);
                Answer::Done
            }
            Op::Change(change @ Change::Delete { .. }) if self.make(&change) => Answer::Done,
            Op::Change(Change::Delete { .. }) => Answer::Absent,
            Op::Change(change @ Change::Cas { key, .. }) => {
                if self.holds(&change) {
                    self.make(&change);
                    Answer::Done
                } else {
                    let present = self.pairs.get(key).cloned();
                    Answer::Mismatch(present.as_deref()).encode(&mut reply);
                    return Some(reply.as_slice().to_vec());
                }
            }
            Op::Batch(changes) => match changes.iter().position(|change| !self.holds(change)) {
                Some(first) => Answer::Conflict(first as u16),
                None => {
                    for change in &changes {
                        self.make(change);
                    }
                    Answer::Done
                }
            },
        };
        answer.encode(&mut reply);
        Some(reply.as_slice().to_vec())
    }
}

impl Model for KvModel {
    fn apply(&mut self, call: &Call<'_>) -> Vec<u8> {
        self.answer(call.op, false).expect("everything can be ordered")
    }

    fn query(&mut self, call: &Call<'_>) -> Option<Vec<u8>> {
        self.answer(call.op, true)
    }
}

/// Few keys, so that clients meet; values of all sizes.
fn ask(_client: usize, _index: u64, rng: &mut Rng) -> Ask {
    const KEYS: [&[u8]; 6] = [b"a", b"ab", b"abc", b"b", b"ba", b"c"];
    let key: &[u8] = KEYS[rng.index(KEYS.len())];
    let mut value = vec![0; *rng.pick(&[0, 1, 1, 1, 100, 5_000])];
    rng.fill(&mut value);
    if value.len() == 1 {
        value[0] %= 3;
    }
    let guess = [rng.below(3) as u8];
    let expected = rng.chance(700).then_some(&guess[..]);
    let op = match rng.below(10) {
        0..3 => Op::Change(Change::Put { key, value: &value }),
        3 => Op::Change(Change::Delete { key }),
        4..6 => Op::Change(Change::Cas { key, expected, new: rng.chance(800).then_some(&value[..]) }),
        6 => Op::Batch(vec![
            Change::Put { key: KEYS[rng.index(KEYS.len())], value: &guess },
            Change::Cas { key, expected, new: Some(&value) },
            Change::Delete { key: KEYS[rng.index(KEYS.len())] },
        ]),
        7 => Op::Scan { prefix: &key[..rng.index(key.len() + 1)], after: b"", limit: rng.between(1, 9) as u32 },
        _ => Op::Get { key },
    };
    let encoded = op.encode().expect("within bounds");
    if op.is_read_only() && rng.chance(800) { Ask::query(encoded) } else { Ask::ordered(encoded) }
}

#[test]
fn kv_is_linearizable_on_a_lossy_network() {
    let config = Config { window: 8, operations: 40, ..Config::lossy() };
    let keys = Keys::new(config.size, config.clients, config.auth);
    sweep("kv_is_linearizable_on_a_lossy_network", 0..150, &[], |seed| {
        Simulation::with_keys(seed, config.clone(), &keys, || Kv, ask).model(KvModel::default()).run()
    });
}

#[test]
fn kv_under_the_swarm() {
    let keys = Keys::new(Config::calm().size, 4, Config::calm().auth);
    sweep("kv_under_the_swarm", 0..100, &[], |seed| {
        Simulation::with_keys(seed, Config::swarm(seed), &keys, || Kv, ask).model(KvModel::default()).run()
    });
}

/// The same service with nothing but itself for a model, watched page by page.
#[test]
fn kv_is_deterministic() {
    let config = Config { watch: true, ..Config::lossy() };
    let keys = Keys::new(config.size, config.clients, config.auth);
    sweep("kv_is_deterministic", 0..20, &[], |seed| {
        Simulation::with_keys(seed, config.clone(), &keys, || Kv, ask).run()
    });
}
