//! A key-value store: put, get, delete, compare-and-swap, scans in key order, atomic batches.
//!
//! ```
//! use castra::services::kv::{Answer, Change, Op};
//!
//! let op = Op::Change(Change::Put { key: b"fr", value: b"Paris" }).encode()?;
//! // … send it, ordered; the result is an answer …
//! let result = [0];
//! assert_eq!(Answer::parse(&result), Some(Answer::Done));
//! # Ok::<(), castra::services::kv::Fault>(())
//! ```

mod codec;
#[cfg(test)]
mod tests;

use std::ops::Bound;

pub use codec::{Answer, BATCH_MAX, Change, Entries, EntriesBuilder, Fault, KEY_MAX, Op, VALUE_MAX};

use crate::execution::{Context, NotReadOnly, ReplyBuffer, Service};
use crate::state::{Full, Map, Region};

const STORE: Map = Map::at(0);

const _: () = assert!(KEY_MAX <= crate::state::KEY_MAX && VALUE_MAX as u64 <= crate::state::VALUE_MAX);

/// The key-value service. Operations and answers: [`Op`], [`Answer`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Kv;

impl Service for Kv {
    fn execute(&self, _cx: &mut Context<'_>, op: &[u8], state: &mut Region, reply: &mut ReplyBuffer) {
        match Op::parse(op) {
            Ok(Op::Get { key }) => get(state, key, reply),
            Ok(Op::Scan { prefix, after, limit }) => scan(state, prefix, after, limit, reply),
            Ok(Op::Change(change)) => change_one(state, &change, reply),
            Ok(Op::Batch(changes)) => change_all(state, &changes).encode(reply),
            Err(fault) => Answer::Fault(fault).encode(reply),
        }
    }

    fn query(&self, _cx: &Context<'_>, op: &[u8], state: &Region, reply: &mut ReplyBuffer) -> Result<(), NotReadOnly> {
        match Op::parse(op) {
            Ok(Op::Get { key }) => get(state, key, reply),
            Ok(Op::Scan { prefix, after, limit }) => scan(state, prefix, after, limit, reply),
            Ok(Op::Change(_) | Op::Batch(_)) => return Err(NotReadOnly),
            Err(fault) => Answer::Fault(fault).encode(reply),
        }
        Ok(())
    }
}

fn get(state: &Region, key: &[u8], reply: &mut ReplyBuffer) {
    match STORE.get(state, key) {
        Some(value) => Answer::Value(&value).encode(reply),
        None => Answer::Absent.encode(reply),
    }
}

fn scan(state: &Region, prefix: &[u8], after: &[u8], limit: u32, reply: &mut ReplyBuffer) {
    let from = if after >= prefix && !after.is_empty() { Bound::Excluded(after) } else { Bound::Included(prefix) };
    let mut answer = EntriesBuilder::new(reply);
    let mut more = false;
    for (key, value) in STORE.range(state, from, Bound::Unbounded).take_while(|(key, _)| key.starts_with(prefix)) {
        if answer.count() == limit || !answer.fits(key.len(), value.len() as usize) {
            more = true;
            break;
        }
        answer.push(key, &value.bytes());
    }
    answer.finish(more);
}

fn change_one(state: &mut Region, change: &Change<'_>, reply: &mut ReplyBuffer) {
    if !matches(state, change) {
        Answer::Mismatch(STORE.get(state, change.key()).as_deref()).encode(reply);
        return;
    }
    match apply(state, change) {
        Ok(true) => Answer::Done.encode(reply),
        Ok(false) => Answer::Absent.encode(reply),
        Err(Full) => Answer::Fault(Fault::Full).encode(reply),
    }
}

fn change_all(state: &mut Region, changes: &[Change<'_>]) -> Answer<'static> {
    if let Some(index) = changes.iter().position(|change| !matches(state, change)) {
        return Answer::Conflict(u16::try_from(index).expect("a batch has at most BATCH_MAX changes"));
    }
    let all = state.attempt(|state| changes.iter().try_for_each(|change| apply(state, change).map(|_| ())));
    match all {
        Ok(()) => Answer::Done,
        Err(Full) => Answer::Fault(Fault::Full),
    }
}

/// Whether the present value is the one that a compare-and-swap expects; other changes expect none.
fn matches(state: &Region, change: &Change<'_>) -> bool {
    match change {
        Change::Put { .. } | Change::Delete { .. } => true,
        Change::Cas { key, expected, .. } => match (STORE.value(state, key), expected) {
            (None, None) => true,
            (Some(actual), Some(expected)) => actual.len() == expected.len() as u64 && *actual.bytes() == **expected,
            (None, Some(_)) | (Some(_), None) => false,
        },
    }
}

/// Makes a change that matches; false if it deletes a key that is not there.
fn apply(state: &mut Region, change: &Change<'_>) -> Result<bool, Full> {
    match change {
        Change::Put { key, value } | Change::Cas { key, new: Some(value), .. } => {
            STORE.insert(state, key, value).map(|_new| true)
        }
        Change::Cas { key, new: None, .. } => {
            STORE.remove(state, key);
            Ok(true)
        }
        Change::Delete { key } => Ok(STORE.remove(state, key)),
    }
}
