use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::state::{Audit, Heap, Log, Map, Page, State};
use crate::types::SeqNum;

const NAMES: Map = Map::at(0);
const BLOBS: Heap = Heap::at(1);
const JOURNAL: Log = Log::at(2);

fn available(region: &Region) -> u32 {
    let mut audit = Audit::new(region);
    audit.map("names", NAMES);
    let report = audit.finish();
    assert_eq!(report.faults, [""; 0]);
    assert_eq!(report.used + report.free, u64::from(region.pages()));
    region.available()
}

#[test]
fn every_helper_reads_as_it_was_and_removing_gives_all_room_back() {
    let mut region = Region::new(200);
    for key in 0..200u32 {
        NAMES.insert(&mut region, &key.to_be_bytes(), &vec![1; 10 * key as usize]).unwrap();
    }
    let blob = BLOBS.alloc(&mut region, 9_000).unwrap();
    BLOBS.write(&mut region, blob, 8_000, b"blob").unwrap();
    let entry = JOURNAL.append(&mut region, b"entry").unwrap();
    let id = region.take_snapshot().unwrap();
    NAMES.clear(&mut region);
    BLOBS.free(&mut region, blob);
    JOURNAL.append(&mut region, b"more").unwrap();
    JOURNAL.pop_front(&mut region);
    let past = region.at(id).unwrap();
    assert_eq!((past.snapshot(), region.snapshot()), (Some(id), None));
    assert_eq!(NAMES.len(&past), 200);
    for (key, value) in NAMES.iter(&past) {
        let len = 10 * u32::from_be_bytes(key.try_into().unwrap()) as usize;
        assert_eq!(&*value.bytes(), &vec![1; len]);
    }
    assert_eq!(&BLOBS.get(&past, blob)[8_000..8_004], b"blob");
    assert_eq!(JOURNAL.read(&past, entry).as_deref(), Some(&b"entry"[..]));
    assert_eq!(JOURNAL.iter(&past).count(), 1);
    assert!(!BLOBS.contains(&region, blob) && NAMES.is_empty(&region));
    let before = region.available();
    assert!(region.remove_snapshot(id) && !region.remove_snapshot(id));
    assert!(region.at(id).is_none() && region.snapshots().is_empty());
    assert!(before < 100);
    assert_eq!(region.available(), 197, "all but the directory, the heap's table and the log's last page");
    assert_ne!(region.take_snapshot().unwrap(), id, "a number is not used again");
}

#[test]
fn what_cannot_be_saved_fails_the_attempt_or_spoils_the_snapshot() {
    let mut region = Region::new(20);
    let pages: Vec<PageId> = (0..10).map(|_| region.allocate().unwrap()).collect();
    let id = region.take_snapshot().unwrap();
    while region.allocate().is_ok() {}
    let result = region.attempt(|region| {
        region.write(pages[0], 0..1)[0] = 1;
        let inner: Result<(), Full> = region.attempt(|region| {
            region.write(pages[1], 0..1)[0] = 1;
            Ok(())
        });
        assert_eq!(inner, Err(Full));
        Ok::<_, Full>(())
    });
    assert_eq!(result, Err(Full));
    assert_eq!((region.read(pages[0])[0], region.read(pages[1])[0]), (0, 0));
    let inner_only = region.attempt(|region| {
        let inner: Result<(), Full> = region.attempt(|region| {
            region.write(pages[1], 0..1)[0] = 1;
            Ok(())
        });
        assert_eq!(inner, Err(Full), "it alone fails");
        Ok::<_, Full>(())
    });
    assert_eq!(inner_only, Ok(()));
    assert!(region.at(id).is_some());
    region.begin_tentative();
    region.write(pages[0], 0..1)[0] = 1;
    assert!(region.at(id).is_none() && region.snapshots()[0].spoiled);
    region.rollback();
    assert!(region.at(id).is_some());
    region.write(pages[0], 0..1)[0] = 1;
    assert!(region.at(id).is_none());
    assert_eq!(region.take_snapshot(), Err(Full));
    assert!(region.remove_snapshot(id));
    assert_eq!(region.available(), 3, "list, table and directory");
}

#[test]
fn there_are_so_many_snapshots_and_no_more() {
    let mut region = Region::new(1_000);
    let ids: Vec<SnapshotId> = (0..Region::SNAPSHOTS_MAX)
        .map(|n| {
            NAMES.insert(&mut region, b"n", &[n as u8]).unwrap();
            region.take_snapshot().unwrap()
        })
        .collect();
    let before = region.available();
    assert_eq!(region.take_snapshot(), Err(Full));
    assert_eq!(region.available(), before);
    for (n, &id) in ids.iter().enumerate() {
        assert_eq!(NAMES.get(&region.at(id).unwrap(), b"n").as_deref(), Some(&[n as u8][..]));
    }
    available(&region);
    ids.iter().for_each(|&id| assert!(region.remove_snapshot(id)));
    assert_eq!(available(&region), 998);
}

#[test]
fn a_table_of_several_levels_finds_every_page() {
    let mut region = Region::new(11_000);
    let first = region.grow(5_000).unwrap();
    let id = region.take_snapshot().unwrap();
    for page in first.0..5_001 {
        region.write(PageId(page), 0..4).copy_from_slice(&page.to_le_bytes());
        assert_eq!(region.at(id).unwrap().read(PageId(page)), &ZEROES);
    }
    assert!(region.remove_snapshot(id));
    assert!((first.0..5_001).all(|page| get_u32(region.read(PageId(page)), 0) == page));
}

#[test]
fn a_hostile_list_and_table_are_told_and_do_no_harm() {
    let mut region = Region::new(100);
    NAMES.insert(&mut region, b"a", &[1; 9_000]).unwrap();
    let id = region.take_snapshot().unwrap();
    NAMES.insert(&mut region, b"a", &[2; 9_000]).unwrap();
    let (list, table) = (region.list().unwrap(), region.snapshots()[0].table);
    let places = [(DIRECTORY, LIST_AT), (list, 0), (list, 8), (list, 16), (list, 20), (table, 0), (table, 4)];
    for (page, at) in places {
        for value in [0, 1, 2, 7, 4_000, u32::MAX - 1] {
            let pages: Vec<_> =
                (0..region.pages()).map(|p| Page::from_start(region.read(PageId(p))).unwrap()).collect();
            let mut other = Region::of(pages);
            other.raw_mut(page).put(at, &value.to_le_bytes());
            other.find_newest();
            let _ = Audit::new(&other).finish();
            if let Some(past) = other.at(id) {
                (0..110).for_each(|page| assert_eq!(past.read(PageId(page)).len(), PAGE));
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Change {
    Insert(u8, usize),
    Remove(u8),
    /// Outside any attempt, so that snapshots may be spoiled.
    Bare(u8, Option<usize>),
    Fail(u8, usize),
    Take,
    Drop(u8),
    Begin,
    Commit,
    Rollback,
    Seal,
}

fn changes() -> impl Strategy<Value = Change> {
    let len = || prop_oneof![3 => 0usize..300, 2 => 0usize..3_000, 1 => 0usize..30_000];
    prop_oneof![
        10 => (0u8..40, len()).prop_map(|(key, len)| Change::Insert(key, len)),
        6 => (0u8..40).prop_map(Change::Remove),
        2 => (0u8..40, proptest::option::of(len())).prop_map(|(key, len)| Change::Bare(key, len)),
        2 => (0u8..40, len()).prop_map(|(key, len)| Change::Fail(key, len)),
        3 => Just(Change::Take),
        2 => any::<u8>().prop_map(Change::Drop),
        1 => Just(Change::Begin),
        1 => Just(Change::Commit),
        1 => Just(Change::Rollback),
        1 => Just(Change::Seal),
    ]
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// The map as pages have it.
fn content<P: Pages>(pages: &P) -> Model {
    NAMES.iter(pages).map(|(key, value)| (key.to_vec(), value.bytes().into_owned())).collect()
}

/// A region, what is in it, and what each snapshot must show.
struct Run {
    state: State,
    model: Model,
    kept: Vec<(SnapshotId, Model)>,
    before: Option<(Model, Vec<(SnapshotId, Model)>)>,
    sealed: u64,
    /// Something was changed outside any attempt.
    bare: bool,
}

impl Run {
    fn new(limit: u32) -> Run {
        let state = State::new(1, limit);
        Run { state, model: Model::new(), kept: Vec::new(), before: None, sealed: 0, bare: false }
    }

    fn apply(&mut self, at: usize, change: &Change) {
        let region = &mut self.state.service;
        match *change {
            Change::Insert(key, len) => {
                let value = vec![at as u8; len];
                let result = region.attempt(|region| NAMES.insert(region, &[key; 100], &value));
                if result.is_ok() {
                    self.model.insert(vec![key; 100], value);
                }
            }
            // In an attempt: where there is no room to save, nothing is removed.
            Change::Remove(key) => {
                if region.attempt(|region| Ok::<_, Full>(NAMES.remove(region, &[key; 100]))).is_ok() {
                    self.model.remove(&vec![key; 100]);
                }
            }
            Change::Bare(key, Some(len)) => {
                self.bare = true;
                let value = vec![at as u8; len];
                if NAMES.insert(region, &[key; 100], &value).is_ok() {
                    self.model.insert(vec![key; 100], value);
                }
            }
            Change::Bare(key, None) => {
                self.bare = true;
                NAMES.remove(region, &[key; 100]);
                self.model.remove(&vec![key; 100]);
            }
            Change::Fail(key, len) => {
                let result = region.attempt(|region| {
                    NAMES.insert(region, &[key; 100], &vec![9; len])?;
                    region.take_snapshot()?;
                    NAMES.remove(region, &[key; 100]);
                    if let Some(oldest) = region.snapshots().first() {
                        region.remove_snapshot(oldest.id);
                    }
                    Err::<(), _>(Full)
                });
                assert_eq!(result, Err(Full));
            }
            Change::Take => {
                let before = region.available();
                match region.take_snapshot() {
                    Ok(id) => self.kept.push((id, self.model.clone())),
                    Err(Full) => assert_eq!(region.available(), before),
                }
            }
            Change::Drop(which) if !self.kept.is_empty() => {
                let (id, _) = self.kept.remove(usize::from(which) % self.kept.len());
                assert!(region.remove_snapshot(id));
            }
            Change::Begin if self.before.is_none() => {
                self.state.begin_tentative();
                self.before = Some((self.model.clone(), self.kept.clone()));
            }
            Change::Commit if self.before.take().is_some() => self.state.commit(),
            Change::Rollback if self.before.is_some() => {
                self.state.rollback();
                (self.model, self.kept) = self.before.take().expect("it was looked at");
            }
            Change::Seal if self.before.is_none() => {
                self.sealed += 1;
                self.state.seal(SeqNum(self.sealed));
            }
            Change::Drop(_) | Change::Begin | Change::Commit | Change::Rollback | Change::Seal => {}
        }
    }

    fn check(&self) {
        let region = &self.state.service;
        available(region);
        assert!(content(region) == self.model, "the region itself");
        assert_eq!(region.newest, region.snapshots().pop());
        assert_eq!(region.snapshots().len(), self.kept.len());
        for (id, model) in &self.kept {
            match region.at(*id) {
                Some(past) => assert!(&content(&past) == model, "{id:?}"),
                None => assert!(self.bare, "only what is outside an attempt spoils"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_snapshot_reads_as_the_map_was(
        changes in proptest::collection::vec(changes(), 1..120), limit in prop_oneof![Just(30u32), Just(80), Just(1_500)],
    ) {
        let (mut run, mut other) = (Run::new(limit), Run::new(limit));
        for (at, change) in changes.iter().enumerate() {
            run.apply(at, change);
            other.apply(at, change);
            run.check();
        }
        prop_assert_eq!(run.state.full_root(), other.state.full_root());
        for (id, _) in std::mem::take(&mut run.kept) {
            prop_assert!(run.state.service.remove_snapshot(id));
        }
        run.check();
        NAMES.clear(&mut run.state.service);
        prop_assert_eq!(available(&run.state.service), limit - 1);
    }
}
