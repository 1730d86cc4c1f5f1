//! A queue of entries: appended at the end, read anywhere, trimmed at the front.

use std::borrow::Cow;

use super::alloc::{Kind, get_u32, get_u64, slot};
use super::extent::Extent;
use super::page::{Full, PageId};
use super::past::Pages;
use super::region::Region;
use crate::limits::PAGE;

const ROOT: usize = 0;
const HEAD: usize = 8;
const TAIL: usize = 16;
const COUNT: usize = 24;
const SIZE: usize = 32;

/// Before each entry: its length, u32.
const HEADER: u64 = 4;

/// Where an entry of a [`Log`] stands: the number of bytes ever appended before it. Never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LogId(pub u64);

/// A log in root slot `slot`. The handle holds nothing: it may be a constant.
///
/// ```
/// use castra::state::{Log, Region};
///
/// const JOURNAL: Log = Log::at(0);
/// let mut region = Region::new(16);
/// let first = JOURNAL.append(&mut region, b"one")?;
/// JOURNAL.append(&mut region, b"two")?;
/// assert_eq!(JOURNAL.read(&region, first).as_deref(), Some(&b"one"[..]));
/// assert!(JOURNAL.pop_front(&mut region));
/// assert_eq!(JOURNAL.read(&region, first), None);
/// # Ok::<(), castra::state::Full>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Log {
    slot: u8,
}

#[derive(Clone, Copy, Default)]
struct Ends {
    root: PageId,
    head: u64,
    tail: u64,
    count: u64,
}

impl Ends {
    /// All that was ever appended, of which the front is a hole.
    fn extent(&self) -> Extent {
        Extent { root: self.root, len: self.tail }
    }

    fn entry_len<P: Pages>(&self, region: &P, at: u64) -> u64 {
        let mut len = [0; HEADER as usize];
        self.extent().read(region, at, &mut len);
        u64::from(u32::from_le_bytes(len))
    }
}

impl Log {
    /// The log in slot `slot`, which nothing else may use.
    pub const fn at(slot: u8) -> Log {
        assert!(slot < Region::SLOTS, "a region has 63 slots");
        Log { slot }
    }

    /// Number of entries.
    pub fn len<P: Pages>(self, region: &P) -> u64 {
        self.ends(region).count
    }

    /// Whether there is no entry.
    pub fn is_empty<P: Pages>(self, region: &P) -> bool {
        self.len(region) == 0
    }

    /// Bytes from the front to the end, with 4 for each entry: what a caller bounds.
    pub fn bytes<P: Pages>(self, region: &P) -> u64 {
        let ends = self.ends(region);
        ends.tail - ends.head
    }

    /// Appends an entry.
    pub fn append(self, region: &mut Region, entry: &[u8]) -> Result<LogId, Full> {
        let len = u32::try_from(entry.len()).map_err(|_| Full)?;
        let mut ends = self.ends(region);
        let at = ends.tail;
        region.attempt(|region| {
            let mut extent = ends.extent();
            extent.write(region, at, &len.to_le_bytes())?;
            extent.write(region, at + HEADER, entry)?;
            ends = Ends { root: extent.root, tail: extent.len, count: ends.count + 1, ..ends };
            self.set_ends(region, &ends);
            Ok(LogId(at))
        })
    }

    /// An entry; `None` if it was trimmed or never appended. Borrowed if it lies in one page.
    ///
    /// `id` must come from this log: anything else reads as some entry or other.
    pub fn read<P: Pages>(self, region: &P, id: LogId) -> Option<Cow<'_, [u8]>> {
        let ends = self.ends(region);
        if !(ends.head..ends.tail).contains(&id.0) {
            return None;
        }
        Some(ends.extent().cow(region, id.0 + HEADER, ends.entry_len(region, id.0)))
    }

    /// The oldest entry.
    pub fn front<P: Pages>(self, region: &P) -> Option<LogId> {
        let ends = self.ends(region);
        (ends.count > 0).then_some(LogId(ends.head))
    }

    /// Where the next entry will stand.
    pub fn end<P: Pages>(self, region: &P) -> LogId {
        LogId(self.ends(region).tail)
    }

    /// The entry after `id`, which must be there.
    pub fn next<P: Pages>(self, region: &P, id: LogId) -> Option<LogId> {
        let ends = self.ends(region);
        let next = id.0 + HEADER + ends.entry_len(region, id.0);
        (next < ends.tail).then_some(LogId(next))
    }

    /// All entries, oldest first.
    pub fn iter<P: Pages>(self, region: &P) -> impl Iterator<Item = (LogId, Cow<'_, [u8]>)> {
        std::iter::successors(self.front(region), move |&id| self.next(region, id))
            .map(move |id| (id, self.read(region, id).expect("it lies between front and end")))
    }

    /// Drops the oldest entry; false if there is none.
    pub fn pop_front(self, region: &mut Region) -> bool {
        let mut ends = self.ends(region);
        if ends.count == 0 {
            return false;
        }
        let from = ends.head / PAGE as u64;
        ends.head += HEADER + ends.entry_len(region, ends.head);
        ends.count -= 1;
        let to = ends.head / PAGE as u64;
        if to > from {
            let mut extent = ends.extent();
            extent.discard(region, from..to);
            ends.root = extent.root;
        }
        self.set_ends(region, &ends);
        true
    }

    /// Drops all entries before `id`.
    pub fn trim_to(self, region: &mut Region, id: LogId) {
        while self.front(region).is_some_and(|front| front < id) {
            self.pop_front(region);
        }
    }

    fn ends<P: Pages>(self, region: &P) -> Ends {
        slot(region, self.slot, Kind::Log).map_or_else(Ends::default, |slot| Ends {
            root: PageId(get_u32(slot, ROOT)),
            head: get_u64(slot, HEAD),
            tail: get_u64(slot, TAIL),
            count: get_u64(slot, COUNT),
        })
    }

    fn set_ends(self, region: &mut Region, ends: &Ends) {
        let mut content = [0; SIZE];
        content[ROOT..4].copy_from_slice(&ends.root.0.to_le_bytes());
        content[HEAD..TAIL].copy_from_slice(&ends.head.to_le_bytes());
        content[TAIL..COUNT].copy_from_slice(&ends.tail.to_le_bytes());
        content[COUNT..].copy_from_slice(&ends.count.to_le_bytes());
        region.set_slot(self.slot, Kind::Log, 0, &content);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const LOG: Log = Log::at(9);

    #[derive(Clone, Debug)]
    enum Change {
        Append(usize),
        Pop,
        Trim(usize),
        Begin,
        Commit,
        Rollback,
    }

    fn changes() -> impl Strategy<Value = Change> {
        prop_oneof![
            8 => prop_oneof![0usize..100, 0usize..100, 2000usize..9000].prop_map(Change::Append),
            4 => Just(Change::Pop),
            1 => (0usize..9).prop_map(Change::Trim),
            1 => Just(Change::Begin),
            1 => Just(Change::Commit),
            1 => Just(Change::Rollback),
        ]
    }

    proptest! {
        #[test]
        fn p17_log_equals_a_queue_through_rollbacks(changes in proptest::collection::vec(changes(), 1..300)) {
            let mut region = Region::new(40);
            let mut model: VecDeque<(LogId, Vec<u8>)> = VecDeque::new();
            let mut before = None;
            for (i, change) in changes.into_iter().enumerate() {
                match change {
                    Change::Append(len) => {
                        let (entry, free, end) = (vec![i as u8; len], region.available(), LOG.end(&region));
                        match LOG.append(&mut region, &entry) {
                            Ok(id) => model.push_back((id, entry)),
                            Err(Full) => prop_assert_eq!((free, end), (region.available(), LOG.end(&region))),
                        }
                    }
                    Change::Pop => prop_assert_eq!(LOG.pop_front(&mut region), model.pop_front().is_some()),
                    Change::Trim(at) => {
                        if let Some((id, _)) = model.get(at) {
                            LOG.trim_to(&mut region, *id);
                            model.drain(..at);
                        }
                    }
                    Change::Begin if before.is_none() => {
                        region.begin_tentative();
                        before = Some(model.clone());
                    }
                    Change::Commit if before.is_some() => {
                        region.commit();
                        before = None;
                    }
                    Change::Rollback if before.is_some() => {
                        region.rollback();
                        model = before.take().unwrap();
                    }
                    Change::Begin | Change::Commit | Change::Rollback => {}
                }
                prop_assert_eq!(LOG.len(&region), model.len() as u64);
                let entries: Vec<_> = LOG.iter(&region).map(|(id, entry)| (id, entry.into_owned())).collect();
                prop_assert!(model.iter().eq(&entries));
            }
            while LOG.pop_front(&mut region) {}
            prop_assert!(region.limit() - 1 - region.available() <= 3, "what was trimmed is free again");
        }
    }

    #[test]
    fn a_log_runs_for_ever_in_few_pages() {
        let mut region = Region::new(60);
        for i in 0..200_000u32 {
            LOG.append(&mut region, &[i as u8; 300]).unwrap();
            if LOG.len(&region) > 100 {
                LOG.pop_front(&mut region);
            }
        }
        assert!(region.pages() < 20, "{} pages", region.pages());
        assert!(LOG.iter(&region).all(|(_, entry)| entry.len() == 300));
    }
}
