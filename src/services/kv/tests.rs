use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::execution::Caches;
use crate::types::{ClientId, Position, Time};

fn execute(state: &mut Region, op: &[u8]) -> Vec<u8> {
    let mut caches = Caches::new();
    let mut cx = Context::for_test(Time(0), ClientId(0), Position(0), &mut caches);
    let mut reply = ReplyBuffer::new();
    Kv.execute(&mut cx, op, state, &mut reply);
    reply.take().to_vec()
}

fn query(state: &Region, op: &[u8]) -> Result<Vec<u8>, NotReadOnly> {
    let mut caches = Caches::new();
    let cx = Context::for_test(Time(0), ClientId(0), Position(0), &mut caches);
    let mut reply = ReplyBuffer::new();
    Kv.query(&cx, op, state, &mut reply)?;
    Ok(reply.take().to_vec())
}

#[track_caller]
fn check(state: &mut Region, op: Op<'_>, expected: Answer<'_>) {
    let result = execute(state, &op.encode().unwrap());
    assert_eq!(Answer::parse(&result), Some(expected));
}

fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Op<'a> {
    Op::Change(Change::Put { key, value })
}

fn cas<'a>(key: &'a [u8], expected: Option<&'a [u8]>, new: Option<&'a [u8]>) -> Change<'a> {
    Change::Cas { key, expected, new }
}

#[test]
fn values_are_put_read_and_deleted() {
    let mut state = Region::new(2_000);
    check(&mut state, Op::Get { key: b"k" }, Answer::Absent);
    check(&mut state, put(b"k", b"one"), Answer::Done);
    check(&mut state, put(b"k", b""), Answer::Done);
    check(&mut state, Op::Get { key: b"k" }, Answer::Value(b""));
    let largest = vec![7; VALUE_MAX];
    check(&mut state, put(b"k", &largest), Answer::Done);
    check(&mut state, Op::Get { key: b"k" }, Answer::Value(&largest));
    check(&mut state, Op::Change(cas(b"k", None, None)), Answer::Mismatch(Some(&largest)));
    check(&mut state, Op::Change(Change::Delete { key: b"k" }), Answer::Done);
    check(&mut state, Op::Change(Change::Delete { key: b"k" }), Answer::Absent);
}

#[test]
fn compare_and_swap_changes_only_what_is_as_expected() {
    let mut state = Region::new(100);
    check(&mut state, Op::Change(cas(b"k", Some(b"x"), Some(b"y"))), Answer::Mismatch(None));
    check(&mut state, Op::Change(cas(b"k", None, Some(b"y"))), Answer::Done);
    check(&mut state, Op::Change(cas(b"k", None, Some(b"z"))), Answer::Mismatch(Some(b"y")));
    check(&mut state, Op::Change(cas(b"k", Some(b"y"), Some(b"z"))), Answer::Done);
    check(&mut state, Op::Get { key: b"k" }, Answer::Value(b"z"));
    check(&mut state, Op::Change(cas(b"k", Some(b"z"), None)), Answer::Done);
    check(&mut state, Op::Get { key: b"k" }, Answer::Absent);
}

#[test]
fn a_batch_is_all_or_nothing() {
    let mut state = Region::new(60);
    check(&mut state, put(b"a", b"1"), Answer::Done);
    let conflict =
        vec![Change::Put { key: b"b", value: b"2" }, cas(b"a", Some(b"1"), None), cas(b"c", Some(b""), None)];
    check(&mut state, Op::Batch(conflict), Answer::Conflict(2));
    check(&mut state, Op::Get { key: b"b" }, Answer::Absent);
    // Compared with the state before the batch, made in order.
    let swap = vec![Change::Delete { key: b"a" }, cas(b"a", Some(b"1"), Some(b"3")), cas(b"b", None, Some(b"4"))];
    check(&mut state, Op::Batch(swap), Answer::Done);
    check(&mut state, Op::Get { key: b"a" }, Answer::Value(b"3"));
    // 60 pages: the second value does not fit, so the first is not there either.
    let long = vec![1; 40 * 4096];
    let full = vec![Change::Put { key: b"x", value: &long }, Change::Put { key: b"y", value: &long }];
    check(&mut state, Op::Batch(full), Answer::Fault(Fault::Full));
    check(&mut state, Op::Get { key: b"x" }, Answer::Absent);
    check(&mut state, put(b"x", &long), Answer::Done);
    check(&mut state, put(b"y", &long), Answer::Fault(Fault::Full));
    check(&mut state, Op::Get { key: b"b" }, Answer::Value(b"4"));
}

#[test]
fn a_long_scan_is_continued() {
    let mut state = Region::new(4_000);
    let value = vec![5; 100_000];
    let keys: Vec<Vec<u8>> = (0..25u8).map(|i| vec![b'k', i]).collect();
    for key in &keys {
        check(&mut state, put(key, &value), Answer::Done);
    }
    check(&mut state, put(b"j", b""), Answer::Done);
    check(&mut state, put(b"l", b""), Answer::Done);
    let (mut seen, mut after, mut scans) = (Vec::new(), Vec::new(), 0);
    loop {
        let op = Op::Scan { prefix: b"k", after: &after, limit: u32::MAX }.encode().unwrap();
        let result = query(&state, &op).unwrap();
        assert!(result.len() <= crate::limits::OPERATION_MAX);
        let Some(Answer::Entries(entries)) = Answer::parse(&result) else { panic!("entries") };
        seen.extend(entries.iter().map(|(key, _)| key.to_vec()));
        scans += 1;
        if !entries.more {
            break;
        }
        after = seen.last().unwrap().clone();
    }
    assert_eq!((seen, scans), (keys, 3));
}

#[test]
fn what_is_no_operation_gets_a_fault_and_changes_nothing() {
    let mut state = Region::new(100);
    check(&mut state, put(b"k", b"v"), Answer::Done);
    for (op, fault) in [
        (&b""[..], Fault::Malformed),
        (b"\0", Fault::Malformed),
        (b"\xff\x01", Fault::Malformed),
        (b"\x01", Fault::KeyLength),
        (b"\x02\xff\xff", Fault::Malformed),
        (b"\x06\x02\x00\x02\x00\x00\x00\x03k", Fault::Malformed),
    ] {
        let result = execute(&mut state, op);
        assert_eq!(Answer::parse(&result), Some(Answer::Fault(fault)), "{op:?}");
        assert_eq!(query(&state, op), Ok(result), "{op:?}");
    }
    check(&mut state, Op::Get { key: b"k" }, Answer::Value(b"v"));
}

/// What the service does, on a map.
fn model(store: &mut BTreeMap<Vec<u8>, Vec<u8>>, op: &Op<'_>) -> Vec<u8> {
    fn change(store: &mut BTreeMap<Vec<u8>, Vec<u8>>, change: &Change<'_>) -> bool {
        match change {
            Change::Put { key, value } | Change::Cas { key, new: Some(value), .. } => {
                store.insert(key.to_vec(), value.to_vec());
                true
            }
            Change::Delete { key } => store.remove(*key).is_some(),
            Change::Cas { key, new: None, .. } => {
                store.remove(*key);
                true
            }
        }
    }
    let expected = |store: &BTreeMap<Vec<u8>, Vec<u8>>, change: &Change<'_>| match change {
        Change::Put { .. } | Change::Delete { .. } => true,
        Change::Cas { key, expected, .. } => store.get(*key).map(Vec::as_slice) == *expected,
    };
    let mut reply = ReplyBuffer::new();
    match op {
        Op::Get { key } => match store.get(*key) {
            Some(value) => Answer::Value(value).encode(&mut reply),
            None => Answer::Absent.encode(&mut reply),
        },
        Op::Change(one) if !expected(store, one) => {
            Answer::Mismatch(store.get(one.key()).map(Vec::as_slice)).encode(&mut reply);
        }
        Op::Change(one) => {
            let done = change(store, one);
            if done { Answer::Done } else { Answer::Absent }.encode(&mut reply);
        }
        Op::Scan { prefix, after, limit } => {
            let fitting = |key: &[u8]| key.starts_with(prefix) && (after.is_empty() || key > *after);
            let all: Vec<_> = store.iter().filter(|(key, _)| fitting(key)).collect();
            let mut builder = EntriesBuilder::new(&mut reply);
            for (key, value) in all.iter().take(*limit as usize) {
                builder.push(key, value);
            }
            builder.finish(all.len() > *limit as usize);
        }
        Op::Batch(changes) => match changes.iter().position(|one| !expected(store, one)) {
            Some(index) => Answer::Conflict(index as u16).encode(&mut reply),
            None => {
                for one in changes {
                    change(store, one);
                }
                Answer::Done.encode(&mut reply);
            }
        },
    }
    reply.take().to_vec()
}

type Parts = (u8, Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);

fn parts() -> impl Strategy<Value = Parts> {
    let bytes = |max| prop::collection::vec(0u8..3, 0..max);
    (0u8..3, prop::collection::vec(0u8..3, 1..4), prop::option::of(bytes(3)), prop::option::of(bytes(3)))
}

fn change((kind, key, a, b): &Parts) -> Change<'_> {
    match kind {
        0 => Change::Put { key, value: a.as_deref().unwrap_or(b"") },
        1 => Change::Delete { key },
        _ => Change::Cas { key, expected: a.as_deref(), new: b.as_deref() },
    }
}

proptest! {
    #[test]
    fn the_service_does_what_a_map_does(
        script in prop::collection::vec((0u8..8, prop::collection::vec(parts(), 1..5), 0u32..5), 1..60)
    ) {
        let (mut state, mut store) = (Region::new(500), BTreeMap::new());
        for (kind, parts, limit) in &script {
            let changes: Vec<Change<'_>> = parts.iter().map(change).collect();
            let (first, last) = (changes[0].key(), changes[changes.len() - 1].key());
            let op = match kind {
                0 => Op::Get { key: first },
                1 => Op::Scan { prefix: &first[1..], after: &last[1..], limit: *limit },
                2 | 3 => Op::Batch(changes),
                _ => Op::Change(changes[0]),
            };
            let bytes = op.encode().unwrap();
            let read = query(&state, &bytes);
            let done = execute(&mut state, &bytes);
            prop_assert_eq!(&done, &model(&mut store, &op), "{:?}", op);
            prop_assert_eq!(read, if op.is_read_only() { Ok(done) } else { Err(NotReadOnly) });
        }
    }
}
