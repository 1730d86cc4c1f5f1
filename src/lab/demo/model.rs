//! What the key-value service should do, without pages, trees or bytes on a wire.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::execution::ReplyBuffer;
use crate::services::kv::{Answer, Change, EntriesBuilder, Op};
use crate::sim::linearizability::{Call, Model};

/// A sorted map.
#[derive(Clone, Debug, Default)]
pub struct StoreModel(BTreeMap<Vec<u8>, Vec<u8>>);

impl StoreModel {
    fn change(&mut self, change: &Change<'_>) -> Answer<'_> {
        match *change {
            Change::Put { key, value } => {
                self.0.insert(key.to_vec(), value.to_vec());
                Answer::Done
            }
            Change::Delete { key } => match self.0.remove(key) {
                Some(_) => Answer::Done,
                None => Answer::Absent,
            },
            Change::Cas { key, expected, new } => {
                if self.0.get(key).map(Vec::as_slice) != expected {
                    return Answer::Mismatch(self.0.get(key).map(Vec::as_slice));
                }
                match new {
                    Some(value) => drop(self.0.insert(key.to_vec(), value.to_vec())),
                    None => drop(self.0.remove(key)),
                }
                Answer::Done
            }
        }
    }

    fn scan(&self, prefix: &[u8], after: &[u8], limit: u32, reply: &mut ReplyBuffer) {
        let from = if after > prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        let mut pairs = self.0.range::<[u8], _>((from, Bound::Unbounded)).filter(|(key, _)| key.as_slice() != after);
        let mut entries = EntriesBuilder::new(reply);
        let mut more = false;
        while let Some((key, value)) = pairs.next().filter(|(key, _)| key.starts_with(prefix)) {
            more = entries.count() == limit || !entries.fits(key.len(), value.len());
            if more {
                break;
            }
            entries.push(key, value);
        }
        entries.finish(more);
    }
}

impl Model for StoreModel {
    fn apply(&mut self, call: &Call<'_>) -> Vec<u8> {
        let mut reply = ReplyBuffer::new();
        match Op::parse(call.op) {
            Ok(Op::Change(change)) => self.change(&change).encode(&mut reply),
            Ok(Op::Batch(_)) => unreachable!("the demo makes no batches"),
            Ok(Op::Get { .. } | Op::Scan { .. }) => return self.query(call).unwrap_or_default(),
            Err(fault) => Answer::Fault(fault).encode(&mut reply),
        }
        reply.as_slice().to_vec()
    }

    fn query(&mut self, call: &Call<'_>) -> Option<Vec<u8>> {
        let mut reply = ReplyBuffer::new();
        match Op::parse(call.op).ok()? {
            Op::Get { key } => match self.0.get(key) {
                Some(value) => Answer::Value(value).encode(&mut reply),
                None => Answer::Absent.encode(&mut reply),
            },
            Op::Scan { prefix, after, limit } => self.scan(prefix, after, limit, &mut reply),
            Op::Change(_) | Op::Batch(_) => return None,
        }
        Some(reply.as_slice().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::services::Kv;
    use crate::sim::ServiceModel;
    use crate::types::{ClientId, Position, Time};

    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop::sample::select(vec![b'a', b'b', b'/']), 1..4)
    }

    fn value() -> impl Strategy<Value = Option<Vec<u8>>> {
        proptest::option::of(proptest::collection::vec(0u8..3, 0..3))
    }

    fn op() -> impl Strategy<Value = Vec<u8>> {
        (0..5, key(), key(), value(), value(), 0u32..5).prop_map(|(kind, key, other, a, b, limit)| {
            let op = match kind {
                0 => Op::Get { key: &key },
                1 => Op::Change(Change::Put { key: &key, value: a.as_deref().unwrap_or_default() }),
                2 => Op::Change(Change::Delete { key: &key }),
                3 => Op::Change(Change::Cas { key: &key, expected: a.as_deref(), new: b.as_deref() }),
                _ => Op::Scan { prefix: &key[1..], after: if a.is_some() { &other } else { &[] }, limit },
            };
            op.encode().unwrap()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_model_answers_as_the_service_does(ops in proptest::collection::vec(op(), 0..60)) {
            let (mut service, mut model) = (ServiceModel::new(Kv, 1_000), StoreModel::default());
            for op in &ops {
                let call = Call { client: ClientId(1), position: Position(0), time: Time(0), seed: 0, op };
                prop_assert_eq!(service.query(&call), model.query(&call));
                prop_assert_eq!(service.apply(&call), model.apply(&call));
            }
        }
    }
}
