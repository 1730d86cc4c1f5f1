//! The directory in page 0 of a region: free pages and root slots.
//!
//! ```text
//! 0 first trunk u32 | 4 free pages u32 | 8 list of snapshots u32 | 16 next snapshot u64 |
//! 24 reserved | 64 slots of 64 bytes
//! slot:  kind u8 | reserved u8 x3 | content, 60 bytes
//! trunk: next trunk u32 | count u32 | free pages u32 x count
//! ```
//! A trunk is itself a free page. Pages listed in it are not touched by being freed.

use super::page::{Full, PageId};
use super::past::Pages;
use super::region::Region;
use crate::limits::PAGE;

const DIRECTORY: PageId = PageId(0);
const FREE_TRUNK: usize = 0;
const FREE_COUNT: usize = 4;
const SLOTS_START: usize = 64;
const SLOT_SIZE: usize = 64;
const TRUNK_COUNT: usize = 4;
const TRUNK_START: usize = 8;
const TRUNK_MAX: u32 = ((PAGE - TRUNK_START) / 4) as u32;

const _: () = assert!(SLOTS_START + Region::SLOTS as usize * SLOT_SIZE == PAGE);

/// What stands in a root slot. A slot is claimed by the first write and keeps its kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Cell = 1,
    Map = 2,
    Heap = 3,
    Log = 4,
}

#[inline]
pub(super) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
pub(super) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[inline]
pub(super) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The content of a root slot; `None` if it was never written.
///
/// # Panics
/// If the slot holds another kind of thing: two handles of one service use the same number.
#[inline]
pub(super) fn slot<P: Pages>(pages: &P, slot: u8, kind: Kind) -> Option<&[u8]> {
    let at = SLOTS_START + usize::from(slot) * SLOT_SIZE;
    let bytes = &pages.read(DIRECTORY)[at..at + SLOT_SIZE];
    if bytes[0] == 0 {
        return None;
    }
    assert!(bytes[0] == kind as u8, "slot {slot} is no {kind:?}");
    Some(&bytes[4..])
}

impl Region {
    /// Root slots of a region.
    pub const SLOTS: u8 = 63;

    /// Bytes of a slot's content.
    pub(super) const SLOT_BYTES: usize = SLOT_SIZE - 4;

    /// Overwrites the content of a slot from `offset` on.
    #[inline]
    pub(super) fn set_slot(&mut self, slot: u8, kind: Kind, offset: usize, content: &[u8]) {
        assert!(offset + content.len() <= Self::SLOT_BYTES);
        let at = SLOTS_START + usize::from(slot) * SLOT_SIZE;
        let mut directory = self.page_mut(DIRECTORY);
        let found = directory.bytes()[at];
        if found == 0 {
            directory.put(at, &[kind as u8]);
        } else {
            assert!(found == kind as u8, "slot {slot} is no {kind:?}");
        }
        directory.put(at + 4 + offset, content);
    }

    /// Calls `visit` for each free page, a trunk before those that it lists; it returns whether the page may be looked
    /// into. The number of free pages by the directory.
    pub(super) fn visit_free(&self, visit: &mut dyn FnMut(PageId) -> bool) -> u32 {
        let directory = self.read(DIRECTORY);
        let mut trunk = PageId(get_u32(directory, FREE_TRUNK));
        while trunk != PageId::NONE && visit(trunk) {
            let content = self.read(trunk);
            for index in 0..get_u32(content, TRUNK_COUNT).min(TRUNK_MAX) {
                visit(PageId(get_u32(content, TRUNK_START + 4 * index as usize)));
            }
            trunk = PageId(get_u32(content, 0));
        }
        get_u32(directory, FREE_COUNT)
    }

    /// Pages that can still be allocated.
    pub fn available(&self) -> u32 {
        get_u32(self.read(DIRECTORY), FREE_COUNT) + (self.limit() - self.pages())
    }

    /// Takes a page: the one freed last, else a new one. Its content is arbitrary, and the same on all replicas.
    pub fn allocate(&mut self) -> Result<PageId, Full> {
        let page = self.take()?;
        self.balance += 1;
        if self.newest.is_some() {
            self.mark_fresh(page);
        }
        Ok(page)
    }

    /// As [`allocate`](Region::allocate), for snapshots' own use.
    pub(super) fn take(&mut self) -> Result<PageId, Full> {
        let directory = self.read(DIRECTORY);
        let trunk = PageId(get_u32(directory, FREE_TRUNK));
        if trunk == PageId::NONE {
            return self.grow(1);
        }
        let free = get_u32(directory, FREE_COUNT) - 1;
        let content = self.read(trunk);
        let count = get_u32(content, TRUNK_COUNT);
        let page = if count == 0 {
            let next = get_u32(content, 0);
            self.raw_mut(DIRECTORY).put(FREE_TRUNK, &next.to_le_bytes());
            trunk
        } else {
            let page = get_u32(content, TRUNK_START + 4 * (count as usize - 1));
            self.raw_mut(trunk).put(TRUNK_COUNT, &(count - 1).to_le_bytes());
            PageId(page)
        };
        self.raw_mut(DIRECTORY).put(FREE_COUNT, &free.to_le_bytes());
        Ok(page)
    }

    /// Takes a page, all zeroes.
    pub fn allocate_zeroed(&mut self) -> Result<PageId, Full> {
        let page = self.allocate()?;
        if self.read(page).iter().any(|&b| b != 0) {
            self.write(page, 0..PAGE).fill(0);
        }
        Ok(page)
    }

    /// Frees a page that was allocated. Nothing may refer to it any more.
    pub fn release(&mut self, page: PageId) {
        assert!(page != DIRECTORY && page.0 < self.pages(), "only allocated pages are released");
        self.balance -= 1;
        if self.newest.is_none() || !self.claim(page) {
            self.give(page);
        }
    }

    /// Puts `page` on the list of free ones, whatever snapshots there are.
    pub(super) fn give(&mut self, page: PageId) {
        if page == DIRECTORY || page.0 >= self.pages() {
            return; // Of a snapshot's table that is none.
        }
        let directory = self.read(DIRECTORY);
        let trunk = PageId(get_u32(directory, FREE_TRUNK));
        let free = get_u32(directory, FREE_COUNT) + 1;
        let count = if trunk == PageId::NONE { TRUNK_MAX } else { get_u32(self.read(trunk), TRUNK_COUNT) };
        if count < TRUNK_MAX {
            let at = TRUNK_START + 4 * count as usize;
            let mut content = self.raw_mut(trunk);
            content.put(at, &page.0.to_le_bytes());
            content.put(TRUNK_COUNT, &(count + 1).to_le_bytes());
        } else {
            let mut content = self.raw_mut(page);
            content.put(0, &trunk.0.to_le_bytes());
            content.put(TRUNK_COUNT, &0u32.to_le_bytes());
            self.raw_mut(DIRECTORY).put(FREE_TRUNK, &page.0.to_le_bytes());
        }
        self.raw_mut(DIRECTORY).put(FREE_COUNT, &free.to_le_bytes());
    }
}
