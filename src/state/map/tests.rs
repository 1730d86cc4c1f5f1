use std::collections::BTreeMap;
use std::ops::Bound;

use proptest::prelude::*;

use super::*;
use crate::limits;

const MAP: Map = Map::at(3);

#[derive(Clone, Debug)]
enum Change {
    Insert(Vec<u8>, Vec<u8>),
    Remove(Vec<u8>),
    /// Removes the key at this fraction of the map.
    RemoveAt(u16),
    WriteAt(Vec<u8>, u16, Vec<u8>),
    Clear,
    Begin,
    Commit,
    Rollback,
    Seal,
}

/// Few different keys, so that changes meet; some share long prefixes, some are long.
fn keys() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => (0u16..400).prop_map(|k| format!("{k:05}").into_bytes()),
        2 => (0u16..40).prop_map(|k| [&[b'x'; 300][..], &k.to_be_bytes()].concat()),
        1 => (0u8..20).prop_map(|k| [&[k; KEY_MAX - 1][..], &[k]].concat()),
        1 => Just(Vec::new()),
    ]
}

fn values() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![8 => 0usize..200, 3 => 1000usize..1500, 1 => 4000usize..30_000];
    (len, any::<u8>()).prop_map(|(len, fill)| (0..len).map(|i| fill.wrapping_add(i as u8)).collect())
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        20 => (keys(), values()).prop_map(|(k, v)| Change::Insert(k, v)),
        4 => keys().prop_map(Change::Remove),
        6 => any::<u16>().prop_map(Change::RemoveAt),
        3 => (keys(), 0u16..9000, values()).prop_map(|(k, at, v)| Change::WriteAt(k, at, v)),
        1 => Just(Change::Clear),
        2 => Just(Change::Begin),
        1 => Just(Change::Commit),
        2 => Just(Change::Rollback),
        1 => Just(Change::Seal),
    ]
}

fn content(region: &Region) -> Vec<(Vec<u8>, Vec<u8>)> {
    MAP.iter(region).map(|(key, value)| (key.to_vec(), value.bytes().into_owned())).collect()
}

/// Pages that the map and the list of free pages account for must be all.
fn assert_no_page_is_lost(region: &mut Region) {
    MAP.clear(region);
    assert_eq!(region.available(), region.limit() - 1, "every page but the directory is free again");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn p17_map_equals_a_btree_map_through_rollbacks(
        changes in proptest::collection::vec(changes(), 1..400), limit in prop_oneof![Just(20u32), Just(100), Just(10_000)],
    ) {
        let mut region = Region::new(limit);
        let mut model = BTreeMap::new();
        let mut before = None;
        for change in changes {
            let free = region.available();
            match change {
                Change::Insert(key, value) => match MAP.insert(&mut region, &key, &value) {
                    Ok(new) => prop_assert_eq!(new, model.insert(key, value).is_none()),
                    Err(Full) => prop_assert_eq!(free, region.available()),
                },
                Change::Remove(key) => {
                    prop_assert_eq!(MAP.remove(&mut region, &key), model.remove(&key).is_some());
                }
                Change::RemoveAt(at) => {
                    let at = usize::from(at) * model.len() / (1 << 16);
                    if let Some(key) = model.keys().nth(at).cloned() {
                        model.remove(&key);
                        prop_assert!(MAP.remove(&mut region, &key));
                    }
                }
                Change::WriteAt(key, at, bytes) => {
                    let result = MAP.write_at(&mut region, &key, at.into(), &bytes);
                    match (result, model.get_mut(&key)) {
                        (Ok(found), value) => {
                            prop_assert_eq!(found, value.is_some());
                            if let Some(value) = value.filter(|_| !bytes.is_empty()) {
                                let end = usize::from(at) + bytes.len();
                                value.resize(value.len().max(end), 0);
                                value[usize::from(at)..end].copy_from_slice(&bytes);
                            }
                        }
                        (Err(Full), _) => prop_assert_eq!(free, region.available()),
                    }
                }
                Change::Clear => {
                    if model.len() > 100 {
                        MAP.clear(&mut region);
                        model.clear();
                    }
                }
                Change::Begin if before.is_none() => {
                    region.begin_tentative();
                    before = Some((model.clone(), free));
                }
                Change::Commit if before.is_some() => {
                    region.commit();
                    before = None;
                }
                Change::Rollback if before.is_some() => {
                    region.rollback();
                    let (old, free) = before.take().unwrap();
                    model = old;
                    prop_assert_eq!(region.available(), free);
                    prop_assert_eq!(content(&region), model.clone().into_iter().collect::<Vec<_>>());
                }
                Change::Seal if before.is_none() => {
                    region.seal();
                    let mut sealed = Vec::new();
                    while let Some((_, page)) = region.next_sealed() {
                        sealed.push(page);
                    }
                    sealed.into_iter().for_each(|page| region.give_back(page));
                }
                Change::Begin | Change::Commit | Change::Rollback | Change::Seal => {}
            }
            prop_assert_eq!(MAP.len(&region), model.len() as u64);
        }
        prop_assert_eq!(content(&region), model.clone().into_iter().collect::<Vec<_>>());
        for (key, value) in &model {
            let found = MAP.get(&region, key);
            prop_assert_eq!(found.as_deref(), Some(&value[..]));
            let mut part = [0; 700];
            let len = MAP.value(&region, key).unwrap().read(900, &mut part);
            prop_assert_eq!(&part[..len], value.get(900..).map_or(&[][..], |rest| &rest[..rest.len().min(700)]));
        }
        assert_no_page_is_lost(&mut region);
    }

    #[test]
    fn ranges_equal_those_of_a_btree_map(
        entries in proptest::collection::btree_map(keys(), values(), 0..300),
        bounds in proptest::collection::vec((keys(), 0u8..3, keys(), 0u8..3, proptest::collection::vec(any::<bool>(), 0..40)), 20),
    ) {
        let mut region = Region::new(100_000);
        for (key, value) in &entries {
            MAP.insert(&mut region, key, value).unwrap();
        }
        fn bound(key: &[u8], kind: u8) -> Bound<&[u8]> {
            match kind {
                0 => Bound::Unbounded,
                1 => Bound::Included(key),
                _ => Bound::Excluded(key),
            }
        }
        for (from, a, to, b, ends) in bounds {
            let within = |key: &[u8]| {
                let above = match bound(&from, a) { Bound::Unbounded => true, Bound::Included(f) => key >= f, Bound::Excluded(f) => key > f };
                let below = match bound(&to, b) { Bound::Unbounded => true, Bound::Included(t) => key <= t, Bound::Excluded(t) => key < t };
                above && below
            };
            let expected: Vec<&[u8]> = entries.keys().map(Vec::as_slice).filter(|key| within(key)).collect();
            let all: Vec<&[u8]> = MAP.range(&region, bound(&from, a), bound(&to, b)).map(|(key, _)| key).collect();
            prop_assert_eq!(&all, &expected);
            let mut reversed: Vec<&[u8]> = MAP.range(&region, bound(&from, a), bound(&to, b)).rev().map(|(key, _)| key).collect();
            reversed.reverse();
            prop_assert_eq!(&reversed, &expected);
            let (mut iter, mut model) = (MAP.range(&region, bound(&from, a), bound(&to, b)), expected.iter().copied());
            for front in ends {
                if front {
                    prop_assert_eq!(iter.next().map(|(key, _)| key), model.next());
                } else {
                    prop_assert_eq!(iter.next_back().map(|(key, _)| key), model.next_back());
                }
            }
            let prefix = &from[..from.len().min(3)];
            let expected = entries.keys().filter(|key| key.starts_with(prefix)).count();
            prop_assert_eq!(MAP.prefix(&region, prefix).count(), expected);
        }
    }
}

#[test]
fn prefixes_end_at_the_end_of_the_keys() {
    let mut region = Region::new(100);
    for key in [&b"a"[..], b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff"] {
        MAP.insert(&mut region, key, b"").unwrap();
    }
    let keys = |prefix: &[u8]| MAP.prefix(&region, prefix).map(|(key, _)| key.to_vec()).collect::<Vec<_>>();
    assert_eq!(keys(b"a\xff"), [&b"a\xff"[..], b"a\xff\xff"]);
    assert_eq!(keys(b"\xff"), [&b"\xff"[..], b"\xff\xff"]);
    assert_eq!(keys(b"").len(), 6);
}

#[test]
fn a_map_of_many_keys_grows_and_empties_from_either_end() {
    for order in [0, 1, 2] {
        let mut region = Region::new(100_000);
        let key = |i: u64| if order == 0 { i } else { i.wrapping_mul(0x9e37_79b9_7f4a_7c15) }.to_be_bytes();
        for i in 0..20_000 {
            assert!(MAP.insert(&mut region, &key(i), &[i as u8; 20]).unwrap());
        }
        if order == 0 {
            assert!(region.pages() < 20_000 * 40 / 4096 + 10, "keys in order fill their nodes: {}", region.pages());
        }
        for i in 0..20_000 {
            let i = if order == 2 { 19_999 - i } else { i };
            assert!(MAP.remove(&mut region, &key(i)));
        }
        assert!(MAP.is_empty(&region) && MAP.iter(&region).next().is_none());
        assert_no_page_is_lost(&mut region);
    }
}

#[test]
fn the_largest_operation_fits_as_a_value() {
    let mut region = Region::new(1_000);
    let value: Vec<u8> = (0..limits::OPERATION_MAX).map(|i| (i / 7) as u8).collect();
    MAP.insert(&mut region, b"big", &value).unwrap();
    assert_eq!(MAP.get(&region, b"big").as_deref(), Some(&value[..]));
    assert_eq!(MAP.insert(&mut region, b"second", &[1; 3 << 20]), Err(Full));
    assert_eq!(MAP.get(&region, b"second"), None);
    assert_no_page_is_lost(&mut region);
}
