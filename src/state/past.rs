//! Snapshots of a region that are part of the state: taken, kept and removed by operations, so that they are digested,
//! transferred and rolled back with everything else. (A [`Snapshot`](super::Snapshot) is another thing: a checkpoint on
//! its way to who inspects it.)
//!
//! ```text
//! directory: 8 list page u32 (0: no snapshot) | 16 next id u64
//! list:      count u32 | 0 u32 | count x (id u64 | pages u32 | table u32 | spoiled u32 | 0 u32), oldest first
//! table:     one u32 for each page that the region had, in pages under a tree as an extent's
//! ```
//! The first change of a page after the newest snapshot saves what it held in a page taken for that; the entry in the
//! newest table says which. An older snapshot looks through the newer ones:
//!
//! | entry | the page of this snapshot is |
//! |---|---|
//! | 0 | that of the next newer snapshot, after the newest that of the region |
//! | [`FRESH`] | not there: the page was free then, and was allocated later |
//! | itself | the page, which was released since and not given to anyone |
//! | another | the page where it was saved |
//!
//! Tables are taken whole with the snapshot, so no write ever looks for room for one. What belongs to snapshots is
//! written and freed below the saving: nobody reads it through a snapshot. Each saved page stands in one table.
//!
//! Page 0 is saved when a snapshot is taken, because every allocation writes it; so taking a page to save another does
//! not save in turn.

use super::alloc::{get_u32, get_u64};
use super::extent::Extent;
use super::page::{Full, PageId};
use super::region::Region;
use crate::limits::PAGE;

const DIRECTORY: PageId = PageId(0);
const LIST_AT: usize = 8;
const NEXT_ID_AT: usize = 16;
const LIST_START: usize = 8;
const RECORD: usize = 24;
const RECORD_SPOILED: usize = 16;
const ENTRIES: usize = PAGE / 4;
const FRESH: u32 = u32::MAX;
static ZEROES: [u8; PAGE] = [0; PAGE];

const _: () = assert!(LIST_START + Region::SNAPSHOTS_MAX * RECORD <= PAGE);

mod sealed {
    pub trait Sealed {}
}

/// What the read side of the typed helpers stands on: a [`Region`] as it is, or as it was ([`Past`]).
pub trait Pages: sealed::Sealed {
    /// The content of `page`.
    fn read(&self, page: PageId) -> &[u8; PAGE];

    /// The region as it is now.
    fn now(&self) -> &Region;

    /// The snapshot at which it is read; `None` for the region as it is.
    fn snapshot(&self) -> Option<SnapshotId>;
}

impl sealed::Sealed for Region {}

impl Pages for Region {
    #[inline]
    fn read(&self, page: PageId) -> &[u8; PAGE] {
        Region::read(self, page)
    }

    fn now(&self) -> &Region {
        self
    }

    #[inline]
    fn snapshot(&self) -> Option<SnapshotId> {
        None
    }
}

/// A snapshot's number: upwards from 1, never used again in the region.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotId(pub u64);

/// A snapshot in a region's list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Its number.
    pub id: SnapshotId,
    /// Pages of the region when it was taken.
    pub pages: u32,
    /// Something of it could not be kept, because the region was full and the change was not one that may fail. It
    /// cannot be read any more, only removed.
    pub spoiled: bool,
    table: PageId,
}

impl Taken {
    fn table(&self) -> Extent {
        Extent { root: self.table, len: 4 * u64::from(self.pages) }
    }
}

/// A region as it was when a snapshot was taken.
///
/// Pages that were not in use then read as zeroes.
///
/// ```
/// use castra::state::{Cell, Region};
///
/// const COUNTER: Cell<u64> = Cell::at(0);
/// let mut region = Region::new(16);
/// COUNTER.set(&mut region, 7);
/// let id = region.take_snapshot()?;
/// COUNTER.set(&mut region, 8);
/// let past = region.at(id).expect("it is kept");
/// assert_eq!((COUNTER.get(&past), COUNTER.get(&region)), (7, 8));
/// assert!(region.remove_snapshot(id));
/// assert!(region.at(id).is_none());
/// # Ok::<(), castra::state::Full>(())
/// ```
#[derive(Clone, Debug)]
pub struct Past<'a> {
    region: &'a Region,
    /// The snapshot, and the newer ones through which it looks.
    chain: Vec<Taken>,
}

impl Past<'_> {
    /// Pages of the region then.
    pub(super) fn pages(&self) -> u32 {
        self.chain[0].pages
    }
}

impl sealed::Sealed for Past<'_> {}

impl Pages for Past<'_> {
    fn read(&self, page: PageId) -> &[u8; PAGE] {
        if page.0 >= self.chain[0].pages {
            return &ZEROES;
        }
        let entry = self.chain.iter().map(|taken| self.region.entry(taken, page)).find(|&entry| entry != 0);
        match entry {
            Some(FRESH) => &ZEROES,
            Some(saved) => self.region.peek(PageId(saved)).unwrap_or(&ZEROES),
            None => self.region.peek(page).unwrap_or(&ZEROES),
        }
    }

    fn now(&self) -> &Region {
        self.region
    }

    fn snapshot(&self) -> Option<SnapshotId> {
        Some(self.chain[0].id)
    }
}

impl Region {
    /// The most snapshots that a region keeps at a time.
    pub const SNAPSHOTS_MAX: usize = 64;

    /// Takes a snapshot of the region as it is now. It costs 4 bytes for each page of the region at once, and a page for
    /// each that is changed later; [`Full`] if there is no room or there are
    /// [`SNAPSHOTS_MAX`](Region::SNAPSHOTS_MAX): then nothing has changed.
    ///
    /// While there are snapshots, a change that finds no room to save what it overwrites makes the innermost
    /// [`attempt`](Region::attempt) fail with [`Full`]. Outside any attempt it spoils the snapshots that it would have
    /// kept something for.
    pub fn take_snapshot(&mut self) -> Result<SnapshotId, Full> {
        let pages = self.pages();
        let result = self.attempt(|region| {
            let list = region.make_list()?;
            let count = get_u32(region.read(list), 0);
            if count as usize >= Self::SNAPSHOTS_MAX {
                return Err(Full);
            }
            let id = get_u64(region.read(DIRECTORY), NEXT_ID_AT).max(1);
            let table = region.make_table(pages)?;
            let saved = region.take()?;
            let taken = Taken { id: SnapshotId(id), pages, spoiled: false, table };
            region.set_entry(&taken, DIRECTORY, saved.0);
            let mut record = [0; RECORD];
            record[..8].copy_from_slice(&id.to_le_bytes());
            record[8..12].copy_from_slice(&pages.to_le_bytes());
            record[12..16].copy_from_slice(&table.0.to_le_bytes());
            let mut page = region.raw_mut(list);
            page.put(LIST_START + count as usize * RECORD, &record);
            page.put(0, &(count + 1).to_le_bytes());
            region.copy_raw(DIRECTORY, saved);
            region.raw_mut(DIRECTORY).put(NEXT_ID_AT, &(id + 1).to_le_bytes());
            Ok(taken)
        })?;
        self.newest = Some(result);
        Ok(result.id)
    }

    /// The snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<Taken> {
        let Some(list) = self.list().and_then(|list| self.peek(list)) else { return Vec::new() };
        let count = (get_u32(list, 0) as usize).min(Self::SNAPSHOTS_MAX);
        (0..count)
            .map(|index| {
                let record = &list[LIST_START + index * RECORD..][..RECORD];
                Taken {
                    id: SnapshotId(get_u64(record, 0)),
                    pages: get_u32(record, 8),
                    table: PageId(get_u32(record, 12)),
                    spoiled: get_u32(record, RECORD_SPOILED) != 0,
                }
            })
            .collect()
    }

    /// The region as it was at a snapshot; `None` if there is no such snapshot, or it is spoiled.
    pub fn at(&self, id: SnapshotId) -> Option<Past<'_>> {
        let mut chain = self.snapshots();
        let index = chain.iter().position(|taken| taken.id == id && !taken.spoiled)?;
        chain.drain(..index);
        Some(Past { region: self, chain })
    }

    /// Removes a snapshot, and frees what was kept for it alone; false if there is none of that number. It never needs
    /// room, and its work grows with the pages that the region had.
    pub fn remove_snapshot(&mut self, id: SnapshotId) -> bool {
        let all = self.snapshots();
        let Some(index) = all.iter().position(|taken| taken.id == id) else { return false };
        let older = index.checked_sub(1).map(|older| all[older]);
        self.hand_down(&all[index], older.as_ref());
        let mut table = Vec::new();
        all[index].table().visit(self, &mut |page| {
            table.push(page);
            true
        });
        table.into_iter().for_each(|page| self.give(page));
        let list = self.list().expect("a snapshot stands in the list");
        if all.len() == 1 {
            self.give(list);
            self.raw_mut(DIRECTORY).put(LIST_AT, &0u32.to_le_bytes());
        } else {
            let at = |index: usize| LIST_START + index * RECORD;
            let mut page = self.raw_mut(list);
            page.shift(at(index + 1)..at(all.len()), at(index));
            page.put(at(all.len() - 1), &[0; RECORD]);
            page.put(0, &(all.len() as u32 - 1).to_le_bytes());
        }
        self.find_newest();
        true
    }

    /// What `taken` kept goes to the next older snapshot where that looks through, and is freed elsewhere.
    fn hand_down(&mut self, taken: &Taken, older: Option<&Taken>) {
        for first in (0..taken.pages).step_by(ENTRIES) {
            let Some(leaf) = self.leaf(taken, PageId(first)) else { continue };
            let entries = *self.read(leaf);
            for page in first..taken.pages.min(first.saturating_add(ENTRIES as u32)) {
                let entry = get_u32(&entries, 4 * (page - first) as usize);
                if entry == 0 {
                    continue;
                }
                match older.filter(|older| page < older.pages && self.entry(older, PageId(page)) == 0) {
                    Some(older) => self.set_entry(older, PageId(page), entry),
                    None if entry != FRESH => self.give(PageId(entry)),
                    None => {}
                }
            }
        }
    }

    /// Before `page` is changed for the first time since the newest snapshot: saves it.
    #[cold]
    #[inline(never)]
    pub(super) fn save(&mut self, page: PageId) {
        let Some(newest) = self.newest else { return };
        if page.0 >= newest.pages || self.entry(&newest, page) != 0 {
            return;
        }
        match self.take() {
            Ok(saved) => {
                self.copy_raw(page, saved);
                self.set_entry(&newest, page, saved.0);
            }
            Err(Full) if self.attempts > 0 => self.unsaved = true,
            Err(Full) => self.spoil(page),
        }
    }

    /// `page` was allocated: if it was free at the newest snapshot, it is not in it.
    #[cold]
    pub(super) fn mark_fresh(&mut self, page: PageId) {
        let Some(newest) = self.newest else { return };
        if page.0 < newest.pages && self.entry(&newest, page) == 0 {
            self.set_entry(&newest, page, FRESH);
        }
    }

    /// `page` is to be released: whether the newest snapshot takes it as it is.
    #[cold]
    pub(super) fn claim(&mut self, page: PageId) -> bool {
        let Some(newest) = self.newest else { return false };
        let claimed = page.0 < newest.pages && self.entry(&newest, page) == 0;
        if claimed {
            self.set_entry(&newest, page, page.0);
        }
        claimed
    }

    /// The content of `page` is lost to the newest snapshot, and to those that look through it there.
    fn spoil(&mut self, page: PageId) {
        let list = self.list().expect("there is a newest snapshot");
        for (index, taken) in self.snapshots().iter().enumerate().rev() {
            if page.0 >= taken.pages || self.entry(taken, page) != 0 {
                break;
            }
            self.raw_mut(list).put(LIST_START + index * RECORD + RECORD_SPOILED, &1u32.to_le_bytes());
        }
        let newest = self.newest.expect("there is a newest snapshot");
        self.set_entry(&newest, page, FRESH);
        self.find_newest();
    }

    /// Reads again from the pages which snapshot is the newest.
    pub(super) fn find_newest(&mut self) {
        self.newest = self.snapshots().pop();
    }

    /// The page of the list.
    fn list(&self) -> Option<PageId> {
        let list = PageId(get_u32(self.read(DIRECTORY), LIST_AT));
        (list != PageId::NONE).then_some(list)
    }

    /// The list, an empty one if there was none.
    fn make_list(&mut self) -> Result<PageId, Full> {
        if let Some(list) = self.list() {
            return Ok(list);
        }
        let list = self.take()?;
        self.raw_mut(list).write(0..PAGE).fill(0);
        self.raw_mut(DIRECTORY).put(LIST_AT, &list.0.to_le_bytes());
        Ok(list)
    }

    /// A table of zeroes for so many pages, as a whole extent; its root.
    fn make_table(&mut self, pages: u32) -> Result<PageId, Full> {
        let mut level = Vec::new();
        for _ in 0..pages.div_ceil(ENTRIES as u32) {
            let leaf = self.take()?;
            self.raw_mut(leaf).write(0..PAGE).fill(0);
            level.push(leaf);
        }
        while level.len() > 1 {
            let mut above = Vec::new();
            for below in level.chunks(ENTRIES) {
                let node = self.take()?;
                let mut page = self.raw_mut(node);
                page.write(0..PAGE).fill(0);
                for (index, link) in below.iter().enumerate() {
                    page.put(4 * index, &link.0.to_le_bytes());
                }
                above.push(node);
            }
            level = above;
        }
        Ok(level[0])
    }

    /// The page of a table in which the entry of `page` stands. `None` in a table that is none.
    fn leaf(&self, taken: &Taken, page: PageId) -> Option<PageId> {
        let leaves = taken.pages.div_ceil(ENTRIES as u32) as usize;
        let (mut node, mut rest, mut span) = (taken.table, page.index() / ENTRIES, 1);
        while span < leaves {
            span *= ENTRIES;
        }
        while span > 1 && node != PageId::NONE {
            span /= ENTRIES;
            node = PageId(get_u32(self.peek(node)?, 4 * (rest / span)));
            rest %= span;
        }
        (node != PageId::NONE && self.peek(node).is_some()).then_some(node)
    }

    fn entry(&self, taken: &Taken, page: PageId) -> u32 {
        self.leaf(taken, page).map_or(0, |leaf| get_u32(self.read(leaf), 4 * (page.index() % ENTRIES)))
    }

    fn set_entry(&mut self, taken: &Taken, page: PageId, entry: u32) {
        if let Some(leaf) = self.leaf(taken, page) {
            self.raw_mut(leaf).put(4 * (page.index() % ENTRIES), &entry.to_le_bytes());
        }
    }

    fn copy_raw(&mut self, from: PageId, to: PageId) {
        let content = *self.read(from);
        self.raw_mut(to).put(0, &content);
    }

    /// Calls `visit` for each page that belongs to snapshots, with what is wrong about them. It returns whether the page
    /// may be looked into.
    pub(super) fn visit_kept(&self, visit: &mut dyn FnMut(PageId) -> bool) -> Vec<String> {
        let mut faults = Vec::new();
        let Some(list) = self.list() else { return faults };
        if !visit(list) {
            return faults;
        }
        let count = get_u32(self.read(list), 0);
        if count == 0 || count as usize > Self::SNAPSHOTS_MAX {
            faults.push(format!("the list of snapshots counts {count}"));
        }
        let next = get_u64(self.read(DIRECTORY), NEXT_ID_AT);
        let (mut id, mut pages) = (0, 1);
        for taken in self.snapshots() {
            let SnapshotId(number) = taken.id;
            if number <= id || number >= next || taken.pages < pages || taken.pages > self.pages() {
                faults.push(format!("snapshot {number} of {} pages is not in order", taken.pages));
                continue;
            }
            (id, pages) = (number, taken.pages);
            // Below the index pages, which lead nowhere else, are the table's own pages.
            let mut sound = true;
            let mut count = 0;
            taken.table().visit(self, &mut |page| {
                let free = visit(page);
                sound &= free;
                count += 1;
                free
            });
            if !sound || count != table_pages(taken.pages) {
                faults.push(format!("snapshot {number} has no whole table"));
                continue;
            }
            for page in (0..taken.pages).map(PageId) {
                match self.entry(&taken, page) {
                    0 if page == DIRECTORY => faults.push(format!("snapshot {number} has not saved the directory")),
                    0 | FRESH => {}
                    saved => {
                        visit(PageId(saved));
                    }
                }
            }
        }
        faults
    }
}

/// Pages of a whole table for so many pages.
fn table_pages(pages: u32) -> u64 {
    let mut level = u64::from(pages).div_ceil(ENTRIES as u64);
    let mut all = level;
    while level > 1 {
        level = level.div_ceil(ENTRIES as u64);
        all += level;
    }
    all
}

#[cfg(test)]
mod tests;
