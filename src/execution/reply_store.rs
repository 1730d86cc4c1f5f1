//! The agreed store of large results (P4): bounded in bytes; when it is full the oldest go.
//!
//! Results lie one behind the other in segments. A segment whose results were all received is used again before one that
//! never was, so what is kept stays small, and with it what a checkpoint copies and digests. Where every segment holds a
//! result that may be asked for, the one begun first goes: no result goes before as many bytes as are configured were
//! written since it was begun.
//!
//! ```text
//! segment  0 number u64: rises by one with each that is begun; 0: never | 8 results that lie in it u32
//!          12 the segment that was begun after it u32
//! ```
//! What a result is named by stays with the session. A segment that was begun anew has another number: who looks for what
//! was there finds it gone.

use super::config::ExecutorConfig;
use super::layout::{Field, Table, get_u32, get_u64, put_u32};
use super::reply_buffer::ReplyBuffer;
use crate::limits::PAGE;
use crate::state::Region;

/// Bytes of a segment: a few large results, or some hundreds just above the small ones.
const SEGMENT: usize = 64 << 10;
const PAGES: u32 = (SEGMENT / PAGE) as u32;

/// Bytes of a segment's entry.
const ENTRY: usize = 16;
const ENTRIES: u32 = (PAGE / ENTRY) as u32;
const LIVE: usize = 8;
const NEXT: usize = 12;

/// Segments that hold `capacity` bytes wherever these begin.
fn segments(capacity: usize) -> u32 {
    capacity.div_ceil(SEGMENT) as u32 + 1
}

/// Entries of the two tables of pages: that of the segments' entries, and that of their content.
pub(super) fn table_entries(capacity: usize) -> [u32; 2] {
    let segments = segments(capacity);
    [segments.div_ceil(ENTRIES), segments * PAGES]
}

/// Names a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    number: u64,
    segment: u32,
    offset: u32,
}

impl Place {
    /// Bytes that it takes.
    pub(super) const LEN: usize = 16;

    pub(super) fn to_bytes(self) -> [u8; Place::LEN] {
        let mut bytes = [0; Place::LEN];
        bytes[..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.segment.to_le_bytes());
        bytes[12..].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Place {
        Place { number: get_u64(bytes, 0), segment: get_u32(bytes, 8), offset: get_u32(bytes, 12) }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    number: u64,
    live: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyStore {
    entries: Table,
    content: Table,
    segments: u32,
    capacity: usize,
}

impl ReplyStore {
    pub(super) fn new(config: &ExecutorConfig) -> ReplyStore {
        let [_, _, entries, content] = Table::all(config);
        ReplyStore { entries, content, segments: segments(config.reply_store), capacity: config.reply_store }
    }

    /// Keeps `result`, if need be instead of the oldest; where it lies.
    pub(super) fn keep(self, region: &mut Region, result: &[u8]) -> Place {
        assert!(!result.is_empty() && result.len() <= self.capacity, "the store holds the largest result");
        let (mut segment, mut offset) = self.begin(region);
        let start = Place { number: self.entry(region, segment).number, segment, offset: offset as u32 };
        let mut rest = result;
        loop {
            let Entry { number, live, .. } = self.entry(region, segment);
            self.set(region, segment, LIVE, live + 1);
            let (here, later) = rest.split_at(rest.len().min(SEGMENT - offset));
            self.write(region, segment, offset, here);
            (offset, rest) = (offset + here.len(), later);
            if rest.is_empty() {
                break;
            }
            let next = self.open(region, number + 1);
            self.set(region, segment, NEXT, next);
            (segment, offset) = (next, 0);
        }
        Field::REPLIES_AT.set(region, u64::from(segment + 1) | (offset as u64) << 32);
        start
    }

    /// Appends the result of `len` bytes at `place` to `into`; false if it is no longer there.
    pub(super) fn read(self, region: &Region, place: Place, len: usize, into: &mut ReplyBuffer) -> bool {
        let Place { mut number, mut segment, offset } = place;
        let (mut at, mut left) = (offset as usize, len);
        loop {
            let entry = self.entry(region, segment);
            if entry.number != number {
                return false;
            }
            let end = SEGMENT.min(at + left);
            left -= end - at;
            while at < end {
                let here = (PAGE - at % PAGE).min(end - at);
                let page = region.read(self.content.page(region, segment * PAGES + (at / PAGE) as u32));
                into.push(&page[at % PAGE..at % PAGE + here]);
                at += here;
            }
            if left == 0 {
                return true;
            }
            (number, segment, at) = (number + 1, entry.next, 0);
        }
    }

    /// The result of `len` bytes at `place`, which was kept once and is released once, is not asked for again.
    pub(super) fn release(self, region: &mut Region, place: Place, len: usize) {
        let Place { mut number, mut segment, offset } = place;
        let mut left = offset as usize + len;
        loop {
            let entry = self.entry(region, segment);
            // Where a part is gone, so is what names the next. It counts there until that segment is the oldest.
            if entry.number != number {
                return;
            }
            let live = entry.live.checked_sub(1).expect("what is released was kept");
            self.set(region, segment, LIVE, live);
            if left <= SEGMENT {
                return;
            }
            (number, segment, left) = (number + 1, entry.next, left - SEGMENT);
        }
    }

    /// Where the next result begins.
    fn begin(self, region: &mut Region) -> (u32, usize) {
        let at = Field::REPLIES_AT.get(region);
        let Some(segment) = (at as u32).checked_sub(1) else {
            return (self.open(region, 1), 0);
        };
        let Entry { number, live, .. } = self.entry(region, segment);
        match (at >> 32) as usize {
            _ if live == 0 => (segment, 0),
            SEGMENT => {
                let next = self.open(region, number + 1);
                self.set(region, segment, NEXT, next);
                (next, 0)
            }
            offset => (segment, offset),
        }
    }

    /// Begins a segment: the first in which nothing is kept, else the one that was begun first.
    fn open(self, region: &mut Region, number: u64) -> u32 {
        let mut oldest = (u64::MAX, 0);
        let mut found = None;
        for segment in 0..self.segments {
            let entry = self.entry(region, segment);
            if entry.live == 0 {
                found = Some(segment);
                break;
            }
            oldest = oldest.min((entry.number, segment));
        }
        let segment = found.unwrap_or(oldest.1);
        let (page, at) = self.place(segment);
        let page = self.entries.page_or_new(region, page);
        let entry = region.write(page, at..at + ENTRY);
        entry.fill(0);
        entry[..8].copy_from_slice(&number.to_le_bytes());
        segment
    }

    fn write(self, region: &mut Region, segment: u32, mut at: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (here, later) = bytes.split_at(bytes.len().min(PAGE - at % PAGE));
            let page = self.content.page_or_new(region, segment * PAGES + (at / PAGE) as u32);
            region.write(page, at % PAGE..at % PAGE + here.len()).copy_from_slice(here);
            (at, bytes) = (at + here.len(), later);
        }
    }

    /// Page of the entries' table, and offset in it.
    fn place(self, segment: u32) -> (u32, usize) {
        (segment / ENTRIES, (segment % ENTRIES) as usize * ENTRY)
    }

    fn entry(self, region: &Region, segment: u32) -> Entry {
        let (page, at) = self.place(segment);
        let Some(page) = self.entries.get(region, page) else {
            return Entry { number: 0, live: 0, next: 0 };
        };
        let bytes = &region.read(page)[at..at + ENTRY];
        Entry { number: get_u64(bytes, 0), live: get_u32(bytes, LIVE), next: get_u32(bytes, NEXT) }
    }

    fn set(self, region: &mut Region, segment: u32, field: usize, value: u32) {
        let (page, at) = self.place(segment);
        let page = self.entries.page(region, page);
        put_u32(region, page, at + field, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::OPERATION_MAX;

    fn store() -> (Region, ReplyStore) {
        let config = ExecutorConfig { reply_store: OPERATION_MAX, ..ExecutorConfig::default() };
        let mut region = Region::new(2_000);
        super::super::layout::genesis(&mut region, &config);
        (region, ReplyStore::new(&config))
    }

    fn read(store: ReplyStore, region: &Region, place: Place, len: usize) -> Option<Vec<u8>> {
        let mut into = ReplyBuffer::new();
        store.read(region, place, len, &mut into).then(|| into.as_slice().to_vec())
    }

    #[test]
    fn p04_without_room_the_oldest_large_results_go() {
        let (mut region, store) = store();
        let results: Vec<Vec<u8>> = (0..5u8).map(|i| vec![i; 300_000 + usize::from(i)]).collect();
        let places: Vec<Place> = results.iter().map(|r| store.keep(&mut region, r)).collect();
        let kept: Vec<_> = (0..5).map(|i| read(store, &region, places[i], results[i].len())).collect();
        assert_eq!(kept[..2], [None, None]);
        for i in 2..5 {
            assert_eq!(kept[i].as_ref(), Some(&results[i]));
        }
        // What is gone is released as what is there.
        for i in 0..5 {
            store.release(&mut region, places[i], results[i].len());
        }
    }

    #[test]
    fn p04_what_was_received_makes_room_first() {
        let (mut region, store) = store();
        let old = store.keep(&mut region, &[1; 1_000]);
        let pages = region.pages();
        for i in 0..10_000usize {
            let place = store.keep(&mut region, &[2; 4_096]);
            let other = store.keep(&mut region, &[3; 4_096]);
            store.release(&mut region, place, 4_096);
            assert_eq!(read(store, &region, other, 4_096).as_deref(), Some(&[3; 4_096][..]), "{i}");
            store.release(&mut region, other, 4_096);
        }
        assert_eq!(read(store, &region, old, 1_000).as_deref(), Some(&[1; 1_000][..]), "nothing drove it out");
        assert!(region.pages() - pages <= 2 * PAGES, "and few segments served for all");
    }

    #[test]
    fn p04_the_largest_result_lies_wherever_the_last_ended() {
        let (mut region, store) = store();
        for (i, before) in [1, 129, SEGMENT - 1, SEGMENT, SEGMENT + 1, OPERATION_MAX].into_iter().enumerate() {
            let _ = store.keep(&mut region, &vec![9; before]);
            let largest = vec![i as u8; OPERATION_MAX];
            let place = store.keep(&mut region, &largest);
            assert_eq!(read(store, &region, place, OPERATION_MAX), Some(largest), "after {before}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a list of all results: what is read is right, what may be gone has as much written after it as the store
        /// holds, and once all is received, and nothing went, every segment is free.
        #[test]
        fn p04_what_is_kept_is_right_and_goes_for_lack_of_room_only(
            script in prop::collection::vec((prop_oneof![3 => 129usize..3_000, 1 => 60_000usize..200_000], 0usize..8, any::<bool>()), 1..200),
        ) {
            let (mut region, store) = store();
            let (mut all, mut written, mut went) = (Vec::<(Place, Vec<u8>, usize)>::new(), 0, false);
            for (i, (len, which, released)) in script.into_iter().enumerate() {
                if released && !all.is_empty() {
                    let (place, result, _) = all.remove(which % all.len());
                    store.release(&mut region, place, result.len());
                }
                let result = vec![i as u8; len];
                let place = store.keep(&mut region, &result);
                written += len;
                all.push((place, result, written));
                for (place, result, end) in &all {
                    match read(store, &region, *place, result.len()) {
                        Some(read) => prop_assert_eq!(&read, result),
                        None => {
                            went = true;
                            prop_assert!(written - end + result.len() > OPERATION_MAX);
                        }
                    }
                }
            }
            for (place, result, _) in all {
                store.release(&mut region, place, result.len());
            }
            let live = (0..store.segments).map(|segment| store.entry(&region, segment).live).max();
            prop_assert!(went || live == Some(0));
        }
    }
}
