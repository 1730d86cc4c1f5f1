//! The log of overwritten bytes from which a tentative batch, or a failed attempt, is undone.

use super::page::PageId;

/// Capacity that is kept between batches.
const KEEP_BYTES: usize = 4 << 20;

/// Old bytes, in the order in which they were overwritten. Marks nest like brackets.
#[derive(Debug, Default)]
pub(super) struct Undo {
    depth: u32,
    /// Pages at or above are new since the innermost mark: undoing drops them, whatever they hold.
    new_from: usize,
    entries: Vec<Entry>,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    page: PageId,
    offset: u16,
    len: u16,
}

/// A point to which the region can return.
#[derive(Debug)]
pub(super) struct Mark {
    depth: u32,
    entries: usize,
    outer_new_from: usize,
    /// Pages of the region at the mark.
    pub(super) pages: usize,
    /// Length of the region's list of dirty pages at the mark.
    pub(super) dirty: usize,
    /// The region's balance of pages at the mark.
    pub(super) balance: i64,
}

impl Undo {
    pub(super) fn is_active(&self) -> bool {
        self.depth > 0
    }

    /// Whether the bytes of `page` must be saved before they are overwritten.
    #[inline]
    pub(super) fn covers(&self, page: PageId) -> bool {
        self.depth > 0 && page.index() < self.new_from
    }

    #[inline]
    pub(super) fn save(&mut self, page: PageId, offset: usize, old: &[u8]) {
        self.entries.push(Entry { page, offset: offset as u16, len: old.len() as u16 });
        self.bytes.extend_from_slice(old);
    }

    pub(super) fn mark(&mut self, pages: usize, dirty: usize, balance: i64) -> Mark {
        let (entries, outer_new_from) = (self.entries.len(), self.new_from);
        let mark = Mark { depth: self.depth, entries, outer_new_from, pages, dirty, balance };
        self.depth += 1;
        self.new_from = pages;
        mark
    }

    /// What happened since `mark` stays, as far as outer marks are concerned not for good.
    pub(super) fn keep(&mut self, mark: Mark) {
        self.close(&mark);
    }

    /// Hands out what was overwritten since `mark`, latest first.
    pub(super) fn revert(&mut self, mark: &Mark, mut restore: impl FnMut(PageId, usize, &[u8])) {
        while self.entries.len() > mark.entries {
            let entry = self.entries.pop().expect("there is one more");
            let start = self.bytes.len() - usize::from(entry.len);
            restore(entry.page, usize::from(entry.offset), &self.bytes[start..]);
            self.bytes.truncate(start);
        }
        self.close(mark);
    }

    fn close(&mut self, mark: &Mark) {
        assert_eq!(self.depth, mark.depth + 1, "marks nest");
        self.depth = mark.depth;
        self.new_from = mark.outer_new_from;
        if self.depth == 0 {
            self.entries.clear();
            self.bytes.clear();
            self.bytes.shrink_to(KEEP_BYTES);
        }
    }
}
