//! Paged memory with copy-on-write seals, undo of a tentative batch, and a page allocator.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::page::{Full, Page, PageId};
use super::past::Taken;
use super::undo::{Mark, Undo};
use crate::limits::PAGE;

/// Pages kept for the next copies; more are given back to the system's allocator.
const FREE_POOL_MAX: usize = 16_384;

/// A vector of 4 KiB pages that grows by whole zeroed pages up to a limit.
///
/// [`write`](Region::write) (and [`page_mut`](Region::page_mut), which is the same for several ranges of one page) is the
/// only way to change a byte, so that neither dirtiness nor undo can be forgotten.
///
/// Page 0 exists from the start. It is the *directory*: the head of the list of free pages and
/// [`SLOTS`](Region::SLOTS) numbered root slots, which the typed helpers ([`Cell`](super::Cell),
/// [`Map`](super::Map), [`Heap`](super::Heap), [`Log`](super::Log)) stand on. All zeroes is an empty directory.
///
/// Everything here is a function of the operations applied: page numbers too are the same on every replica.
#[derive(Debug)]
pub struct Region {
    pages: Vec<Arc<Page>>,
    /// The epoch in which a page was last written; [`CLEAN`] once it was shipped. Equal to `epoch`: dirty. Equal to
    /// `epoch - 1`: sealed by the last seal, and not shipped yet.
    written: Vec<u64>,
    epoch: u64,
    limit: u32,
    dirty: Vec<PageId>,
    /// What the last seal found dirty. Pages written since are in `outbox` with their sealed content.
    unshipped: Vec<PageId>,
    /// Sealed pages that were overwritten, or left by an earlier seal, oldest seal first.
    outbox: VecDeque<(PageId, Arc<Page>)>,
    /// Pages that nobody else holds, content arbitrary.
    free: Vec<Arc<Page>>,
    /// Sealed originals that others hold and that were copied since: what copy-on-write costs in memory just now.
    lent: usize,
    /// Stands for every page that was never written.
    zero: Arc<Page>,
    undo: Undo,
    tentative: Option<Mark>,
    /// The newest snapshot, as the pages say.
    pub(super) newest: Option<Taken>,
    /// Attempts that are running, one within the other.
    pub(super) attempts: u32,
    /// The innermost attempt has overwritten what a snapshot needs and could not save it: it must fail.
    pub(super) unsaved: bool,
    /// Pages allocated and not released by who uses the region, since some time.
    pub(super) balance: i64,
}

/// `written` of pages that are neither dirty nor waiting to be shipped.
const CLEAN: u64 = 0;

impl Region {
    /// A region of one page, the empty directory, that may grow to `limit` pages.
    pub fn new(limit: u32) -> Region {
        assert!(limit >= 1, "a region holds at least its directory");
        let mut region = Region {
            pages: Vec::new(),
            written: Vec::new(),
            epoch: CLEAN + 2,
            limit,
            dirty: Vec::new(),
            unshipped: Vec::new(),
            outbox: VecDeque::new(),
            free: Vec::new(),
            lent: 0,
            zero: Page::zeroed(),
            undo: Undo::default(),
            tentative: None,
            newest: None,
            attempts: 0,
            unsaved: false,
            balance: 0,
        };
        region.grow(1).expect("the limit is at least one page");
        region
    }

    /// A region of these pages, which somebody else holds too, that does not grow.
    pub(super) fn of(pages: Vec<Arc<Page>>) -> Region {
        let mut region = Region::new(u32::try_from(pages.len()).unwrap_or(u32::MAX).max(1));
        region.install(pages);
        region
    }

    /// Pages in use: the prefix that the digest covers. It never shrinks, but by rollback.
    pub fn pages(&self) -> u32 {
        self.pages.len() as u32
    }

    /// The most pages that it may have.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// The content of `page`.
    #[inline]
    pub fn read(&self, page: PageId) -> &[u8; PAGE] {
        &self.pages[page.index()].0
    }

    /// The content of `page`; `None` beyond the end.
    pub(super) fn peek(&self, page: PageId) -> Option<&[u8; PAGE]> {
        self.pages.get(page.index()).map(|page| &page.0)
    }

    /// Allocations less releases by who uses the region, what was rolled back left out. Only differences mean anything.
    /// They tell how many pages an operation took or gave back, which [`available`](Region::available) does not while
    /// there are snapshots: these keep what is released, and take pages of their own.
    pub fn balance(&self) -> i64 {
        self.balance
    }

    /// The bytes `range` of `page`, to be changed. The first write after a seal copies the page if anyone else holds it.
    #[inline]
    pub fn write(&mut self, page: PageId, range: Range<usize>) -> &mut [u8] {
        self.page_mut(page).into_slice(range)
    }

    /// `page`, to be changed in several places.
    #[inline]
    pub fn page_mut(&mut self, page: PageId) -> PageMut<'_> {
        if self.newest.is_some() {
            self.save(page);
        }
        self.raw_mut(page)
    }

    /// As [`page_mut`](Region::page_mut), for what no snapshot shows: free pages, and what belongs to snapshots.
    #[inline]
    pub(super) fn raw_mut(&mut self, page: PageId) -> PageMut<'_> {
        let index = page.index();
        if self.written[index] != self.epoch {
            self.own(page);
        }
        let undo = if self.undo.covers(page) { Some(&mut self.undo) } else { None };
        // Copies only what was never written: `zero`.
        PageMut { bytes: &mut Arc::make_mut(&mut self.pages[index]).0, undo, page }
    }

    /// Adds `count` zeroed pages at the end; the first of them. It changes nothing if they exceed the limit.
    pub fn grow(&mut self, count: u32) -> Result<PageId, Full> {
        let first = self.pages();
        if count > self.limit - first {
            return Err(Full);
        }
        for page in first..first + count {
            self.pages.push(self.zero.clone());
            self.written.push(self.epoch);
            self.dirty.push(PageId(page));
        }
        Ok(PageId(first))
    }

    /// Runs `change`; if it fails, everything that it changed is as before. May be nested. It fails with [`Full`],
    /// whatever `change` says, if there was no room for what a snapshot keeps.
    pub fn attempt<T, E: From<Full>>(&mut self, change: impl FnOnce(&mut Region) -> Result<T, E>) -> Result<T, E> {
        let mark = self.mark();
        let outer = std::mem::replace(&mut self.unsaved, false);
        self.attempts += 1;
        let mut result = change(self);
        self.attempts -= 1;
        if std::mem::replace(&mut self.unsaved, outer) && result.is_ok() {
            result = Err(Full.into());
        }
        match result {
            Ok(_) => self.undo.keep(mark),
            Err(_) => self.revert(mark),
        }
        result
    }

    /// From here on changes can be rolled back. At most one batch is tentative (P16).
    pub fn begin_tentative(&mut self) {
        assert!(self.tentative.is_none(), "at most one batch is tentative");
        self.tentative = Some(self.mark());
    }

    /// The tentative batch stays.
    pub fn commit(&mut self) {
        let mark = self.tentative.take().expect("a batch is tentative");
        self.undo.keep(mark);
    }

    /// Undoes the tentative batch, growth included (P17).
    pub fn rollback(&mut self) {
        let mark = self.tentative.take().expect("a batch is tentative");
        self.revert(mark);
    }

    /// Whether a tentative batch can be rolled back.
    pub fn is_tentative(&self) -> bool {
        self.tentative.is_some()
    }

    /// Pages that sealed content holds beyond the current one, because it was written over since.
    pub fn lent(&self) -> usize {
        self.lent
    }

    /// What is dirty is sealed: it keeps its content for the digest role whatever is written now (P22). The number of
    /// pages that [`next_sealed`](Region::next_sealed) will hand out for this seal.
    pub(super) fn seal(&mut self) -> usize {
        assert!(!self.undo.is_active(), "a sealed state is never rolled back (P22)");
        while let Some(page) = self.unshipped.pop() {
            if self.written[page.index()] == self.epoch - 1 {
                self.written[page.index()] = CLEAN;
                self.outbox.push_back((page, self.pages[page.index()].clone()));
            }
        }
        self.epoch += 1;
        std::mem::swap(&mut self.dirty, &mut self.unshipped);
        self.unshipped.len()
    }

    /// A sealed page, the oldest seal's first.
    pub(super) fn next_sealed(&mut self) -> Option<(PageId, Arc<Page>)> {
        if let Some(sealed) = self.outbox.pop_front() {
            return Some(sealed);
        }
        while let Some(page) = self.unshipped.pop() {
            let index = page.index();
            if self.written[index] == self.epoch - 1 {
                self.written[index] = CLEAN;
                return Some((page, self.pages[index].clone()));
            }
        }
        None
    }

    /// A page that [`next_sealed`](Region::next_sealed) handed out comes back, once it was written over here and the seal that
    /// holds what replaced it was digested.
    pub(super) fn give_back(&mut self, page: Arc<Page>) {
        // Zeroes were not counted. One of before an `install` may still come: it is not counted any more.
        if !Arc::ptr_eq(&page, &self.zero) {
            self.lent = self.lent.saturating_sub(1);
        }
        // Who looks at a checkpoint may still hold it: then it is not used again, but it is back.
        self.recycle(page);
    }

    /// All pages are replaced by others, which somebody else holds too.
    pub(super) fn install(&mut self, pages: Vec<Arc<Page>>) {
        assert!(!self.undo.is_active(), "nothing that may be undone lies over what is replaced");
        self.epoch += 2; // Whatever was written before is clean now.
        self.written = vec![CLEAN; pages.len()];
        self.dirty.clear();
        self.unshipped.clear();
        self.outbox.clear();
        self.lent = 0;
        self.pages = pages;
        self.find_newest();
    }

    /// Makes `page` ours alone and dirty.
    #[cold]
    fn own(&mut self, page: PageId) {
        let index = page.index();
        let sealed = self.written[index] == self.epoch - 1;
        // Once the digest role has given the page back, nobody else holds it: no copy.
        if sealed || Arc::get_mut(&mut self.pages[index]).is_none() {
            let copy = match self.free.pop() {
                Some(mut copy) => {
                    Arc::get_mut(&mut copy).expect("free pages are ours alone").0 = self.pages[index].0;
                    copy
                }
                None => Arc::new(Page(self.pages[index].0)),
            };
            let original = std::mem::replace(&mut self.pages[index], copy);
            if !Arc::ptr_eq(&original, &self.zero) {
                self.lent += 1;
            }
            if sealed {
                self.outbox.push_back((page, original));
            }
        }
        self.written[index] = self.epoch;
        self.dirty.push(page);
    }

    /// Keeps `page` for later copies if nobody else holds it; whether that is so.
    fn recycle(&mut self, mut page: Arc<Page>) -> bool {
        let unique = Arc::get_mut(&mut page).is_some();
        if unique && self.free.len() < FREE_POOL_MAX {
            self.free.push(page);
        }
        unique
    }

    fn mark(&mut self) -> Mark {
        self.undo.mark(self.pages.len(), self.dirty.len(), self.balance)
    }

    fn revert(&mut self, mark: Mark) {
        let Region { undo, pages, epoch, written, .. } = self;
        undo.revert(&mark, |page, offset, bytes| {
            assert_eq!(written[page.index()], *epoch, "nothing is sealed while a change may be undone");
            Arc::make_mut(&mut pages[page.index()]).0[offset..offset + bytes.len()].copy_from_slice(bytes);
        });
        // Pages that are as before but were copied on the way stay dirty: their digest comes out the same.
        let mut at = mark.dirty;
        while at < self.dirty.len() {
            if self.dirty[at].index() >= mark.pages {
                self.dirty.swap_remove(at);
            } else {
                at += 1;
            }
        }
        self.written.truncate(mark.pages);
        while self.pages.len() > mark.pages {
            let page = self.pages.pop().expect("there is one more");
            self.recycle(page);
        }
        self.balance = mark.balance;
        self.find_newest();
    }
}

/// One page, to be changed: what [`Region::write`] does, for several ranges.
pub struct PageMut<'a> {
    bytes: &'a mut [u8; PAGE],
    undo: Option<&'a mut Undo>,
    page: PageId,
}

impl<'a> PageMut<'a> {
    /// Its content.
    #[inline]
    pub fn bytes(&self) -> &[u8; PAGE] {
        self.bytes
    }

    /// The bytes `range`, to be changed.
    #[inline]
    pub fn write(&mut self, range: Range<usize>) -> &mut [u8] {
        if let Some(undo) = &mut self.undo {
            undo.save(self.page, range.start, &self.bytes[range.clone()]);
        }
        &mut self.bytes[range]
    }

    /// Overwrites the bytes at `offset`.
    #[inline]
    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.write(offset..offset + bytes.len()).copy_from_slice(bytes);
    }

    /// Moves the bytes `from` to `to`; they may overlap.
    #[inline]
    pub fn shift(&mut self, from: Range<usize>, to: usize) {
        if let Some(undo) = &mut self.undo {
            undo.save(self.page, to, &self.bytes[to..to + from.len()]);
        }
        self.bytes.copy_within(from, to);
    }

    fn into_slice(mut self, range: Range<usize>) -> &'a mut [u8] {
        self.write(range.clone());
        &mut self.bytes[range]
    }
}
