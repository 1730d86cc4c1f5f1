//! Blobs of any size under stable, never reused names.

use std::borrow::Cow;

use super::alloc::{Kind, get_u16, get_u32, get_u64, slot};
use super::extent::Extent;
use super::page::{Full, PageId};
use super::past::Pages;
use super::region::Region;
use crate::limits::PAGE;

// The root slot: table of records (root, length), first free record, blobs, first slab with room by class.
const TABLE_ROOT: usize = 0;
const FREE: usize = 4;
const TABLE_LEN: usize = 8;
const COUNT: usize = 16;
const PARTIAL: usize = 24;

/// Sizes of small blobs: 2 to 254 of them share a page. Larger ones have pages of their own.
const CLASSES: [usize; 8] = [16, 32, 64, 128, 248, 504, 1_016, 2_040];

// A slab: first free place (0: none), places never used from here on, places in use, class, neighbours in the list of
// slabs with room.
const SLAB_FREE: usize = 0;
const SLAB_FRESH: usize = 2;
const SLAB_USED: usize = 4;
const SLAB_CLASS: usize = 6;
const SLAB_PREVIOUS: usize = 8;
const SLAB_NEXT: usize = 12;
const SLAB_START: usize = 16;

const _: () = assert!(SLAB_START + 2 * CLASSES[CLASSES.len() - 1] <= PAGE);

// A record: root or slab page u32 | place in the slab u16, 0: pages of its own | state u16 | length u64 | generation u32.
// A free record has the next free one (+ 1) for its root.
const RECORD: usize = 24;
const RECORDS_PER_PAGE: u64 = (PAGE / RECORD) as u64;

/// A blob of a [`Heap`]: index of its record, and how often that was used before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BlobId {
    /// Index of the record: dense, small numbers are used again.
    pub index: u32,
    /// Distinguishes the blobs that ever had this index.
    pub generation: u32,
}

/// A heap in root slot `slot`. The handle holds nothing: it may be a constant.
///
/// A blob keeps its name when it is resized. Holes of large blobs read as zeroes and take no room. Whatever returns
/// [`Full`] has changed nothing.
///
/// ```
/// use castra::state::{Heap, Region};
///
/// const FILES: Heap = Heap::at(0);
/// let mut region = Region::new(16);
/// let file = FILES.alloc(&mut region, 0)?;
/// FILES.write(&mut region, file, 2, b"hello")?;
/// assert_eq!(&*FILES.get(&region, file), b"\0\0hello");
/// FILES.free(&mut region, file);
/// assert!(!FILES.contains(&region, file));
/// # Ok::<(), castra::state::Full>(())
/// ```
///
/// # Panics
/// All methods but [`contains`](Heap::contains) panic on a name that is not (or no longer) a blob's.
#[derive(Clone, Copy, Debug)]
pub struct Heap {
    slot: u8,
}

#[derive(Clone, Copy)]
struct Record {
    page: PageId,
    /// Offset in the slab; 0 for a blob with pages of its own.
    place: usize,
    used: bool,
    len: u64,
    generation: u32,
}

impl Record {
    fn extent(&self) -> Extent {
        Extent { root: self.page, len: self.len }
    }
}

/// The class of a small blob; `None` if it needs pages of its own.
fn class_of(len: u64) -> Option<usize> {
    CLASSES.iter().position(|&size| len <= size as u64)
}

/// Where a record stands in the table: it does not cross pages.
fn record_at(index: u32) -> u64 {
    u64::from(index) / RECORDS_PER_PAGE * PAGE as u64 + u64::from(index) % RECORDS_PER_PAGE * RECORD as u64
}

impl Heap {
    /// The heap in slot `slot`, which nothing else may use.
    pub const fn at(slot: u8) -> Heap {
        assert!(slot < Region::SLOTS, "a region has 63 slots");
        Heap { slot }
    }

    /// Number of blobs.
    pub fn len<P: Pages>(self, region: &P) -> u64 {
        slot(region, self.slot, Kind::Heap).map_or(0, |slot| get_u64(slot, COUNT))
    }

    /// Whether there is no blob.
    pub fn is_empty<P: Pages>(self, region: &P) -> bool {
        self.len(region) == 0
    }

    /// Whether `id` is a blob's.
    pub fn contains<P: Pages>(self, region: &P, id: BlobId) -> bool {
        self.find(region, id).is_some()
    }

    /// A new blob of `len` zeroes.
    pub fn alloc(self, region: &mut Region, len: u64) -> Result<BlobId, Full> {
        region.attempt(|region| {
            let (index, generation) = self.take_record(region)?;
            let mut record = Record { page: PageId::NONE, place: 0, used: true, len, generation };
            if len > 0
                && let Some(class) = class_of(len)
            {
                (record.page, record.place) = self.take_place(region, class)?;
                region.write(record.page, record.place..record.place + len as usize).fill(0);
            }
            self.set_record(region, index, &record)?;
            self.add(region, 1);
            Ok(BlobId { index, generation })
        })
    }

    /// Length of a blob in bytes.
    pub fn blob_len<P: Pages>(self, region: &P, id: BlobId) -> u64 {
        self.record(region, id).len
    }

    /// All of a blob; borrowed if it lies in one page.
    pub fn get<P: Pages>(self, region: &P, id: BlobId) -> Cow<'_, [u8]> {
        let record = self.record(region, id);
        match record.place {
            0 => record.extent().cow(region, 0, record.len),
            place => Cow::Borrowed(&region.read(record.page)[place..place + record.len as usize]),
        }
    }

    /// Reads into `into` from `offset` on; how many bytes there were.
    pub fn read<P: Pages>(self, region: &P, id: BlobId, offset: u64, into: &mut [u8]) -> usize {
        let mut done = 0;
        for chunk in self.chunks(region, id, offset, into.len() as u64) {
            into[done..done + chunk.len()].copy_from_slice(chunk);
            done += chunk.len();
        }
        done
    }

    /// The bytes from `offset` on, at most `len`, in pieces.
    pub fn chunks<P: Pages>(self, region: &P, id: BlobId, offset: u64, len: u64) -> impl Iterator<Item = &[u8]> {
        let record = self.record(region, id);
        let (small, large) = match record.place {
            0 => (None, Some(record.extent().chunks(region, offset, len))),
            place => {
                let from = offset.min(record.len);
                let to = from.saturating_add(len).min(record.len);
                let bytes = &region.read(record.page)[place + from as usize..place + to as usize];
                (Some(bytes).filter(|bytes| !bytes.is_empty()), None)
            }
        };
        small.into_iter().chain(large.into_iter().flatten())
    }

    /// Overwrites the bytes from `offset` on, extending the blob (a gap is zeroes) if they reach beyond its end.
    pub fn write(self, region: &mut Region, id: BlobId, offset: u64, bytes: &[u8]) -> Result<(), Full> {
        if bytes.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(bytes.len() as u64).ok_or(Full)?;
        let record = self.record(region, id);
        if end <= record.len && record.place != 0 {
            let at = record.place + offset as usize;
            region.write(record.page, at..at + bytes.len()).copy_from_slice(bytes);
            return Ok(());
        }
        region.attempt(|region| {
            let mut record = if end > record.len { self.resized(region, &record, end)? } else { record };
            if record.place != 0 {
                let at = record.place + offset as usize;
                region.write(record.page, at..at + bytes.len()).copy_from_slice(bytes);
            } else {
                let mut extent = record.extent();
                extent.write(region, offset, bytes)?;
                record.page = extent.root;
            }
            self.set_record(region, id.index, &record)
        })
    }

    /// Sets the length of a blob; what is added is zeroes.
    pub fn resize(self, region: &mut Region, id: BlobId, len: u64) -> Result<(), Full> {
        let record = self.record(region, id);
        region.attempt(|region| {
            let record = self.resized(region, &record, len)?;
            self.set_record(region, id.index, &record)
        })
    }

    /// Frees a blob. Its name is never used again.
    pub fn free(self, region: &mut Region, id: BlobId) {
        let record = self.record(region, id);
        self.release_content(region, &record);
        let first = slot(region, self.slot, Kind::Heap).map_or(0, |slot| get_u32(slot, FREE));
        let free =
            Record { page: PageId(first), place: 0, used: false, len: 0, generation: id.generation.wrapping_add(1) };
        self.set_record(region, id.index, &free).expect("the record is there");
        region.set_slot(self.slot, Kind::Heap, FREE, &(id.index + 1).to_le_bytes());
        self.add(region, -1);
    }

    /// A record like `record` with `len` bytes, its content moved if need be. To be attempted.
    fn resized(self, region: &mut Region, record: &Record, len: u64) -> Result<Record, Full> {
        let small = |len: u64| if len == 0 { None } else { class_of(len) };
        let (from, to) = (small(record.len), small(len));
        // A blob of no bytes has neither place nor pages, so either way of growing is open to it.
        match (from, to) {
            (None, None) => {
                let mut extent = record.extent();
                extent.resize(region, len)?;
                Ok(Record { page: extent.root, len, ..*record })
            }
            (Some(from), Some(to)) if from == to => {
                if len > record.len {
                    let gap = record.place + record.len as usize..record.place + len as usize;
                    region.write(record.page, gap).fill(0);
                }
                Ok(Record { len, ..*record })
            }
            (_, to) => {
                // One of both is small: what stays of the content is too.
                let keep = record.len.min(len) as usize;
                let mut content = [0; CLASSES[CLASSES.len() - 1]];
                let content = &mut content[..keep];
                match from {
                    Some(_) => content.copy_from_slice(&region.read(record.page)[record.place..record.place + keep]),
                    None => {
                        record.extent().read(region, 0, content);
                    }
                }
                self.release_content(region, record);
                let mut new = Record { page: PageId::NONE, place: 0, len, ..*record };
                match to {
                    Some(class) => {
                        (new.page, new.place) = self.take_place(region, class)?;
                        let place = region.write(new.page, new.place..new.place + len as usize);
                        place[..keep].copy_from_slice(content);
                        place[keep..].fill(0);
                    }
                    None => {
                        let mut extent = Extent::default();
                        extent.resize(region, len)?;
                        extent.write(region, 0, content)?;
                        new.page = extent.root;
                    }
                }
                Ok(new)
            }
        }
    }

    fn release_content(self, region: &mut Region, record: &Record) {
        match record.place {
            0 => record.extent().free(region),
            place => self.release_place(region, record.page, place),
        }
    }

    fn find<P: Pages>(self, region: &P, id: BlobId) -> Option<Record> {
        let table = self.table(region);
        let at = record_at(id.index);
        if at + RECORD as u64 > table.len {
            return None;
        }
        let mut bytes = [0; RECORD];
        table.read(region, at, &mut bytes);
        let record = Record {
            page: PageId(get_u32(&bytes, 0)),
            place: usize::from(get_u16(&bytes, 4)),
            used: get_u16(&bytes, 6) != 0,
            len: get_u64(&bytes, 8),
            generation: get_u32(&bytes, 16),
        };
        (record.used && record.generation == id.generation).then_some(record)
    }

    fn record<P: Pages>(self, region: &P, id: BlobId) -> Record {
        self.find(region, id).unwrap_or_else(|| panic!("{id:?} is no blob of this heap"))
    }

    fn set_record(self, region: &mut Region, index: u32, record: &Record) -> Result<(), Full> {
        let mut bytes = [0; RECORD];
        bytes[..4].copy_from_slice(&record.page.0.to_le_bytes());
        bytes[4..6].copy_from_slice(&(record.place as u16).to_le_bytes());
        bytes[6..8].copy_from_slice(&u16::from(record.used).to_le_bytes());
        bytes[8..16].copy_from_slice(&record.len.to_le_bytes());
        bytes[16..20].copy_from_slice(&record.generation.to_le_bytes());
        let before = self.table(region);
        let mut table = before;
        table.write(region, record_at(index), &bytes)?;
        if table != before {
            region.set_slot(self.slot, Kind::Heap, TABLE_ROOT, &table.root.0.to_le_bytes());
            region.set_slot(self.slot, Kind::Heap, TABLE_LEN, &table.len.to_le_bytes());
        }
        Ok(())
    }

    fn table<P: Pages>(self, region: &P) -> Extent {
        slot(region, self.slot, Kind::Heap).map_or_else(Extent::default, |slot| Extent {
            root: PageId(get_u32(slot, TABLE_ROOT)),
            len: get_u64(slot, TABLE_LEN),
        })
    }

    /// Index and generation of a record that is free. To be attempted.
    fn take_record(self, region: &mut Region) -> Result<(u32, u32), Full> {
        let first = slot(region, self.slot, Kind::Heap).map_or(0, |slot| get_u32(slot, FREE));
        let table = self.table(region);
        if first == 0 {
            let (pages, rest) = (table.len / PAGE as u64, table.len % PAGE as u64);
            let index = pages * RECORDS_PER_PAGE + rest / RECORD as u64;
            let index = u32::try_from(index).ok().filter(|&index| index < u32::MAX).ok_or(Full)?;
            return Ok((index, 0));
        }
        let mut bytes = [0; RECORD];
        table.read(region, record_at(first - 1), &mut bytes);
        region.set_slot(self.slot, Kind::Heap, FREE, &bytes[..4]);
        Ok((first - 1, get_u32(&bytes, 16)))
    }

    fn add(self, region: &mut Region, change: i64) {
        let count = self.len(region).checked_add_signed(change).expect("no blob is freed that was not counted");
        region.set_slot(self.slot, Kind::Heap, COUNT, &count.to_le_bytes());
    }

    fn partial<P: Pages>(self, region: &P, class: usize) -> PageId {
        PageId(slot(region, self.slot, Kind::Heap).map_or(0, |slot| get_u32(slot, PARTIAL + 4 * class)))
    }

    fn set_partial(self, region: &mut Region, class: usize, slab: PageId) {
        region.set_slot(self.slot, Kind::Heap, PARTIAL + 4 * class, &slab.0.to_le_bytes());
    }

    /// A place for a blob of this class; its content is arbitrary. To be attempted.
    fn take_place(self, region: &mut Region, class: usize) -> Result<(PageId, usize), Full> {
        let size = CLASSES[class];
        let mut slab = self.partial(region, class);
        if slab == PageId::NONE {
            slab = region.allocate()?;
            let mut header = [0; SLAB_START];
            header[SLAB_FRESH..SLAB_USED].copy_from_slice(&(SLAB_START as u16).to_le_bytes());
            header[SLAB_CLASS] = class as u8;
            region.write(slab, 0..SLAB_START).copy_from_slice(&header);
            self.set_partial(region, class, slab);
        }
        let mut page = region.page_mut(slab);
        let (mut free, mut fresh) = (get_u16(page.bytes(), SLAB_FREE), get_u16(page.bytes(), SLAB_FRESH));
        let used = get_u16(page.bytes(), SLAB_USED) + 1;
        let place = if free != 0 {
            let place = free;
            free = get_u16(page.bytes(), usize::from(place));
            place
        } else {
            let place = fresh;
            fresh += size as u16;
            place
        };
        page.put(SLAB_FREE, &free.to_le_bytes());
        page.put(SLAB_FRESH, &fresh.to_le_bytes());
        page.put(SLAB_USED, &used.to_le_bytes());
        if free == 0 && usize::from(fresh) + size > PAGE {
            self.unlink(region, slab);
        }
        Ok((slab, usize::from(place)))
    }

    fn release_place(self, region: &mut Region, slab: PageId, place: usize) {
        let mut page = region.page_mut(slab);
        let class = usize::from(page.bytes()[SLAB_CLASS]);
        let (free, fresh) = (get_u16(page.bytes(), SLAB_FREE), get_u16(page.bytes(), SLAB_FRESH));
        let used = get_u16(page.bytes(), SLAB_USED) - 1;
        let was_full = free == 0 && usize::from(fresh) + CLASSES[class] > PAGE;
        page.put(place, &free.to_le_bytes());
        page.put(SLAB_FREE, &(place as u16).to_le_bytes());
        page.put(SLAB_USED, &used.to_le_bytes());
        if used == 0 {
            if !was_full {
                self.unlink(region, slab);
            }
            region.release(slab);
        } else if was_full {
            let first = self.partial(region, class);
            let mut page = region.page_mut(slab);
            page.put(SLAB_PREVIOUS, &PageId::NONE.0.to_le_bytes());
            page.put(SLAB_NEXT, &first.0.to_le_bytes());
            if first != PageId::NONE {
                region.page_mut(first).put(SLAB_PREVIOUS, &slab.0.to_le_bytes());
            }
            self.set_partial(region, class, slab);
        }
    }

    /// Takes `slab` out of the list of its class.
    fn unlink(self, region: &mut Region, slab: PageId) {
        let page = region.read(slab);
        let class = usize::from(page[SLAB_CLASS]);
        let (previous, next) = (PageId(get_u32(page, SLAB_PREVIOUS)), PageId(get_u32(page, SLAB_NEXT)));
        match previous {
            PageId::NONE => self.set_partial(region, class, next),
            previous => region.page_mut(previous).put(SLAB_NEXT, &next.0.to_le_bytes()),
        }
        if next != PageId::NONE {
            region.page_mut(next).put(SLAB_PREVIOUS, &previous.0.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const HEAP: Heap = Heap::at(0);

    #[derive(Clone, Debug)]
    enum Change {
        Alloc(u64),
        Write(u16, u64, usize),
        Resize(u16, u64),
        Free(u16),
        Begin,
        Commit,
        Rollback,
    }

    fn lengths() -> impl Strategy<Value = u64> {
        prop_oneof![4 => 0u64..300, 2 => 0u64..3_000, 1 => 0u64..40_000]
    }

    fn changes() -> impl Strategy<Value = Change> {
        prop_oneof![
            6 => lengths().prop_map(Change::Alloc),
            6 => (any::<u16>(), lengths(), 0usize..5_000).prop_map(|(a, b, c)| Change::Write(a, b, c)),
            4 => (any::<u16>(), lengths()).prop_map(|(a, b)| Change::Resize(a, b)),
            4 => any::<u16>().prop_map(Change::Free),
            1 => Just(Change::Begin),
            1 => Just(Change::Commit),
            1 => Just(Change::Rollback),
        ]
    }

    fn pick(model: &BTreeMap<BlobId, Vec<u8>>, at: u16) -> Option<BlobId> {
        model.keys().nth(usize::from(at) * model.len() / (1 << 16)).copied()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn p17_heap_equals_vectors_through_rollbacks(
            changes in proptest::collection::vec(changes(), 1..300), limit in prop_oneof![Just(25u32), Just(1000)],
        ) {
            let mut region = Region::new(limit);
            let mut model: BTreeMap<BlobId, Vec<u8>> = BTreeMap::new();
            let mut before = None;
            let mut freed = Vec::new();
            for (i, change) in changes.into_iter().enumerate() {
                let free = region.available();
                match change {
                    Change::Alloc(len) => match HEAP.alloc(&mut region, len) {
                        Ok(id) => prop_assert!(model.insert(id, vec![0; len as usize]).is_none()),
                        Err(Full) => prop_assert_eq!(free, region.available()),
                    },
                    Change::Write(at, offset, len) => if let Some(id) = pick(&model, at) {
                        let bytes = vec![i as u8 | 1; len];
                        match HEAP.write(&mut region, id, offset, &bytes) {
                            Ok(()) if len > 0 => {
                                let blob = model.get_mut(&id).unwrap();
                                let end = offset as usize + len;
                                blob.resize(blob.len().max(end), 0);
                                blob[offset as usize..end].copy_from_slice(&bytes);
                            }
                            Ok(()) => {}
                            Err(Full) => prop_assert_eq!(free, region.available()),
                        }
                    },
                    Change::Resize(at, len) => if let Some(id) = pick(&model, at) {
                        match HEAP.resize(&mut region, id, len) {
                            Ok(()) => model.get_mut(&id).unwrap().resize(len as usize, 0),
                            Err(Full) => prop_assert_eq!(free, region.available()),
                        }
                    },
                    Change::Free(at) => if let Some(id) = pick(&model, at) {
                        HEAP.free(&mut region, id);
                        model.remove(&id);
                        freed.push(id);
                    },
                    Change::Begin if before.is_none() => {
                        region.begin_tentative();
                        before = Some((model.clone(), free, freed.len()));
                    }
                    Change::Commit if before.is_some() => {
                        region.commit();
                        before = None;
                    }
                    Change::Rollback if before.is_some() => {
                        region.rollback();
                        let (old, free, count) = before.take().unwrap();
                        model = old;
                        freed.truncate(count);
                        prop_assert_eq!(region.available(), free);
                    }
                    Change::Begin | Change::Commit | Change::Rollback => {}
                }
            }
            prop_assert_eq!(HEAP.len(&region), model.len() as u64);
            for (id, blob) in &model {
                prop_assert_eq!(HEAP.blob_len(&region, *id), blob.len() as u64);
                let found = HEAP.get(&region, *id);
                prop_assert_eq!(&found[..], &blob[..]);
                let mut part = [0; 3000];
                let len = HEAP.read(&region, *id, 1000, &mut part);
                prop_assert_eq!(&part[..len], blob.get(1000..).map_or(&[][..], |rest| &rest[..rest.len().min(3000)]));
            }
            prop_assert!(freed.iter().all(|id| !HEAP.contains(&region, *id)));
            let table = HEAP.table(&region).len.div_ceil(PAGE as u64) as u32;
            for id in model.keys() {
                HEAP.free(&mut region, *id);
            }
            let kept = region.limit() - 1 - region.available();
            prop_assert!(kept <= table + 1, "only the table of records stays: {kept} pages");
        }
    }

    #[test]
    fn a_large_blob_is_sparse() {
        let mut region = Region::new(20);
        let blob = HEAP.alloc(&mut region, 1 << 40).unwrap();
        HEAP.write(&mut region, blob, (1 << 40) - 3, b"end!").unwrap();
        assert_eq!(HEAP.blob_len(&region, blob), (1 << 40) + 1);
        let mut end = [9; 8];
        assert_eq!(HEAP.read(&region, blob, (1 << 40) - 6, &mut end), 7);
        assert_eq!(&end, b"\0\0\0end!\x09");
        HEAP.resize(&mut region, blob, 5).unwrap();
        assert_eq!(&*HEAP.get(&region, blob), &[0; 5]);
    }
}
