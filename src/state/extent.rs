//! Bytes of any length in pages that need not be neighbours: the ground under big values, blobs and logs.

use std::borrow::Cow;
use std::ops::Range;

use super::alloc::get_u32;
use super::cell::Fixed;
use super::page::{Full, PageId};
use super::past::Pages;
use super::region::Region;
use crate::limits::PAGE;

const PAGE_BYTES: u64 = PAGE as u64;
const FANOUT: u64 = PAGE_BYTES / 4;
static ZEROES: [u8; PAGE] = [0; PAGE];

/// A sequence of bytes. Its pages hang under a tree of index pages (1,024 links each) whose height follows from the
/// length alone; a link to no page is a hole, which reads as zeroes and takes no room.
///
/// For records of a service's own, such as inodes: unlike a blob of a [`Heap`](super::Heap) it has no name, and its owner
/// stores it, 12 bytes as a [`Fixed`], again after every change. What may fail runs inside [`Region::attempt`]: after
/// [`Full`] an extent is not usable.
///
/// ```
/// use castra::state::{Extent, Full, Region};
///
/// let mut region = Region::new(16);
/// let mut file = Extent::default();
/// region.attempt(|region| file.write(region, 1 << 40, b"far out"))?;
/// assert_eq!(file.len(), (1 << 40) + 7);
/// let mut bytes = [0xff; 4];
/// assert_eq!(file.read(&region, (1 << 40) - 1, &mut bytes), 4);
/// assert_eq!(&bytes, b"\0far");
/// file.free(&mut region);
/// # Ok::<(), Full>(())
/// ```
// What lies behind the length in its last page is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Extent {
    pub(super) root: PageId,
    pub(super) len: u64,
}

/// Levels of index pages above the data pages.
fn height(len: u64) -> u32 {
    let (mut pages, mut height) = (len.div_ceil(PAGE_BYTES), 0);
    while pages > 1 {
        pages = pages.div_ceil(FANOUT);
        height += 1;
    }
    height
}

/// Data pages below one link of an index page of this height.
fn span(height: u32) -> u64 {
    FANOUT.pow(height - 1)
}

fn link<P: Pages>(region: &P, node: PageId, index: u64) -> PageId {
    PageId(get_u32(region.read(node), 4 * index as usize))
}

fn set_link(region: &mut Region, node: PageId, index: u64, to: PageId) {
    let at = 4 * index as usize;
    region.write(node, at..at + 4).copy_from_slice(&to.0.to_le_bytes());
}

/// The parts of `range` page by page: page index and range within it.
fn split(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        (at < range.end).then(|| {
            let (page, start) = (at / PAGE_BYTES, (at % PAGE_BYTES) as usize);
            let end = (range.end - page * PAGE_BYTES).min(PAGE_BYTES) as usize;
            at = (page + 1) * PAGE_BYTES;
            (page, start..end)
        })
    })
}

impl Fixed for Extent {
    const SIZE: usize = 12;
    fn decode(bytes: &[u8]) -> Extent {
        let (root, len) = Fixed::decode(bytes);
        Extent { root: PageId(root), len }
    }
    fn encode(&self, bytes: &mut [u8]) {
        (self.root.0, self.len).encode(bytes);
    }
}

impl Extent {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The page with index `page`; [`PageId::NONE`] in a hole.
    fn page<P: Pages>(&self, region: &P, page: u64) -> PageId {
        let mut node = self.root;
        let mut rest = page;
        for height in (1..=height(self.len)).rev() {
            if node == PageId::NONE {
                break;
            }
            node = link(region, node, rest / span(height));
            rest %= span(height);
        }
        node
    }

    /// Clips a read of `len` bytes at `offset`.
    fn clip(&self, offset: u64, len: u64) -> Range<u64> {
        let start = offset.min(self.len);
        start..start.saturating_add(len).min(self.len)
    }

    /// The bytes from `offset` on, at most `len`, in pieces; holes as zeroes.
    pub fn chunks<P: Pages>(self, region: &P, offset: u64, len: u64) -> impl Iterator<Item = &[u8]> {
        split(self.clip(offset, len)).map(move |(page, range)| match self.page(region, page) {
            PageId::NONE => &ZEROES[range],
            page => &region.read(page)[range],
        })
    }

    /// Reads into `into` from `offset` on; how many bytes there were.
    pub fn read<P: Pages>(&self, region: &P, offset: u64, into: &mut [u8]) -> usize {
        let mut done = 0;
        for chunk in self.chunks(region, offset, into.len() as u64) {
            into[done..done + chunk.len()].copy_from_slice(chunk);
            done += chunk.len();
        }
        done
    }

    /// The bytes from `offset` on, at most `len`; borrowed if they lie in one page.
    pub(super) fn cow<'a, P: Pages>(&self, region: &'a P, offset: u64, len: u64) -> Cow<'a, [u8]> {
        let range = self.clip(offset, len);
        let mut chunks = self.chunks(region, offset, len);
        let first = chunks.next().unwrap_or(&[]);
        if first.len() as u64 == range.end - range.start {
            return Cow::Borrowed(first);
        }
        let mut all = Vec::with_capacity((range.end - range.start) as usize);
        all.extend_from_slice(first);
        chunks.for_each(|chunk| all.extend_from_slice(chunk));
        Cow::Owned(all)
    }

    /// Overwrites the bytes from `offset` on, extending it (a gap is a hole) if they reach beyond the end.
    pub fn write(&mut self, region: &mut Region, offset: u64, bytes: &[u8]) -> Result<(), Full> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(Full)?;
        if end > self.len && !bytes.is_empty() {
            self.resize(region, end)?;
        }
        let mut rest = bytes;
        for (index, range) in split(offset..end) {
            let (now, later) = rest.split_at(range.len());
            rest = later;
            let (page, new) = self.make(region, index)?;
            if new {
                let whole = region.write(page, 0..PAGE);
                whole[..range.start].fill(0);
                whole[range.clone()].copy_from_slice(now);
                whole[range.end..].fill(0);
            } else {
                region.write(page, range).copy_from_slice(now);
            }
        }
        Ok(())
    }

    /// The page with index `page`, taken now if there was a hole (then its content is arbitrary).
    fn make(&mut self, region: &mut Region, page: u64) -> Result<(PageId, bool), Full> {
        let height = height(self.len);
        let take = |region: &mut Region, height: u32| match height {
            0 => region.allocate(),
            _ => region.allocate_zeroed(),
        };
        let mut new = self.root == PageId::NONE;
        if new {
            self.root = take(region, height)?;
        }
        let (mut node, mut rest) = (self.root, page);
        for height in (1..=height).rev() {
            let index = rest / span(height);
            rest %= span(height);
            let mut below = link(region, node, index);
            new = below == PageId::NONE;
            if new {
                below = take(region, height - 1)?;
                set_link(region, node, index, below);
            }
            node = below;
        }
        Ok((node, new))
    }

    /// Sets the length. What is added reads as zeroes and takes no room but for index pages.
    pub fn resize(&mut self, region: &mut Region, len: u64) -> Result<(), Full> {
        let (from, to) = (height(self.len), height(len));
        if len < self.len {
            let keep = len.div_ceil(PAGE_BYTES);
            self.discard(region, keep..self.len.div_ceil(PAGE_BYTES));
            for _ in to..from {
                if self.root != PageId::NONE {
                    let below = link(region, self.root, 0);
                    region.release(self.root);
                    self.root = below;
                }
            }
            self.len = len;
            let tail = (len % PAGE_BYTES) as usize;
            if tail > 0 {
                let last = self.page(region, keep - 1);
                if last != PageId::NONE {
                    region.write(last, tail..PAGE).fill(0);
                }
            }
        } else {
            for _ in from..to {
                if self.root != PageId::NONE {
                    let above = region.allocate_zeroed()?;
                    set_link(region, above, 0, self.root);
                    self.root = above;
                }
            }
            self.len = len;
        }
        Ok(())
    }

    /// Frees all its pages.
    pub fn free(mut self, region: &mut Region) {
        self.discard(region, 0..self.len.div_ceil(PAGE_BYTES));
    }

    /// Frees up to `budget` pages from the end, so that a long extent can be given up in steps of bounded work; whether
    /// none are left. Its length stays: meanwhile it may only be freed further.
    pub fn free_some(&mut self, region: &mut Region, mut budget: u32) -> bool {
        if self.root != PageId::NONE && free_last(region, self.root, height(self.len), &mut budget) {
            self.root = PageId::NONE;
        }
        self.root == PageId::NONE
    }

    /// Calls `visit` for each of its pages, index pages first; it returns whether to go on below that page.
    pub(super) fn visit<P: Pages>(&self, region: &P, visit: &mut dyn FnMut(PageId) -> bool) {
        if self.root != PageId::NONE {
            visit_below(region, self.root, height(self.len), visit);
        }
    }

    /// Makes the pages with these indices a hole.
    pub(super) fn discard(&mut self, region: &mut Region, pages: Range<u64>) {
        if self.root != PageId::NONE
            && !pages.is_empty()
            && discard_below(region, self.root, height(self.len), 0, &pages)
        {
            self.root = PageId::NONE;
        }
    }
}

/// Frees what of `pages` lies below `node`, whose first page is `base`; whether nothing was left and `node` went too.
fn discard_below(region: &mut Region, node: PageId, height: u32, base: u64, pages: &Range<u64>) -> bool {
    if height == 0 {
        region.release(node);
        return true;
    }
    let span = span(height);
    let first = pages.start.saturating_sub(base) / span;
    let end = (pages.end - base).div_ceil(span).min(FANOUT);
    for index in first..end {
        let below = link(region, node, index);
        if below != PageId::NONE && discard_below(region, below, height - 1, base + index * span, pages) {
            set_link(region, node, index, PageId::NONE);
        }
    }
    let empty = region.read(node).iter().all(|&b| b == 0);
    if empty {
        region.release(node);
    }
    empty
}

/// Frees pages below `node` from the right while there is a budget; whether `node` went too.
fn free_last(region: &mut Region, node: PageId, height: u32, budget: &mut u32) -> bool {
    if height > 0 {
        for index in (0..FANOUT).rev() {
            let below = link(region, node, index);
            if below == PageId::NONE {
                continue;
            }
            if *budget == 0 || !free_last(region, below, height - 1, budget) {
                return false;
            }
            set_link(region, node, index, PageId::NONE);
        }
    }
    if *budget == 0 {
        return false;
    }
    *budget -= 1;
    region.release(node);
    true
}

fn visit_below<P: Pages>(region: &P, node: PageId, height: u32, visit: &mut dyn FnMut(PageId) -> bool) {
    if visit(node) && height > 0 {
        for index in 0..FANOUT {
            let below = link(region, node, index);
            if below != PageId::NONE {
                visit_below(region, below, height - 1, visit);
            }
        }
    }
}
