//! The layout of a node: a slotted page.
//!
//! ```text
//! 0 kind u8 | 1 reserved | 2 count u16 | 4 start u16 | 6 waste u16 | 8 leftmost child u32 | 12 skip u16 | 14 reserved
//! 16 slots, in the order of the keys: offset of the cell u16 | hint u32
//! ...room...
//! start.. cells, in the order in which they came
//! leaf cell:  key length u16 | value length u32, top bit: spilled | key | value, or the root of its pages u32
//! inner cell: key length u16 | child u32 | key              keys of the child are >= the cell's
//! ```
//! All keys of a node share their first `skip` bytes (and may share more). The hint of a cell is the next four bytes of
//! its key as a big-endian number, zeroes behind its end: a search touches the slots, and of the cells only the few whose
//! hint is equal.

use std::cmp::Ordering;

use super::KEY_MAX;
use crate::limits::PAGE;
use crate::state::alloc::{get_u16, get_u32};
use crate::state::extent::Extent;
use crate::state::page::PageId;
use crate::state::region::Region;

pub(super) const LEAF: u8 = 1;
pub(super) const INNER: u8 = 2;

const COUNT: usize = 2;
const LEFTMOST: usize = 8;
const SKIP: usize = 12;
const HEADER: usize = 16;
const SLOT: usize = 6;
const CELL_HEADER: usize = 6;
const SPILLED: u32 = 1 << 31;

/// Bytes of a node that slots and cells share.
pub(super) const CAPACITY: usize = PAGE - HEADER;

/// A leaf cell is no larger: three fit, and two halves of an overfull node always fit.
const CELL_MAX: usize = CAPACITY / 3 - SLOT;

/// Nodes that use less are merged with a neighbour if possible.
pub(super) const UNDERFULL: usize = CAPACITY / 4;

/// Nodes are merged if the result uses no more than this, so that it need not be split at once.
pub(super) const MERGED_MAX: usize = CAPACITY / 4 * 3;

const _: () = assert!(CELL_HEADER + KEY_MAX + 4 <= CELL_MAX, "a key with a spilled value fits a cell");

/// Cells that a node can have, and one more.
const CELLS_MAX: usize = CAPACITY / (SLOT + CELL_HEADER) + 1;

/// Whether a value stands in its cell.
pub(super) fn is_inline(key: &[u8], len: usize) -> bool {
    CELL_HEADER + key.len() + len <= CELL_MAX
}

/// The first four bytes of a key's distinguishing part, as a number that orders as they do.
#[inline]
fn hint_of(rest: &[u8]) -> u32 {
    let mut bytes = [0; 4];
    let len = rest.len().min(4);
    bytes[..len].copy_from_slice(&rest[..len]);
    u32::from_be_bytes(bytes)
}

/// A view of a node.
#[derive(Clone, Copy)]
pub(super) struct Node<'a>(pub(super) &'a [u8; PAGE]);

/// Where the value of a cell is.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// In the cell, at this offset in the page.
    Inline { at: usize, len: usize },
    /// In pages of its own; the numbers stand at these offsets.
    Spilled { extent: Extent, len_at: usize, root_at: usize },
}

impl<'a> Node<'a> {
    #[inline]
    pub(super) fn is_leaf(self) -> bool {
        assert!(self.0[0] == LEAF || self.0[0] == INNER, "the page is a node of a map");
        self.0[0] == LEAF
    }

    #[inline]
    pub(super) fn count(self) -> usize {
        usize::from(get_u16(self.0, COUNT))
    }

    fn start(self) -> usize {
        usize::from(get_u16(self.0, 4))
    }

    fn waste(self) -> usize {
        usize::from(get_u16(self.0, 6))
    }

    /// Bytes that its cells and slots take.
    pub(super) fn used(self) -> usize {
        PAGE - self.start() - self.waste() + SLOT * self.count()
    }

    #[inline]
    fn cell(self, index: usize) -> usize {
        usize::from(get_u16(self.0, HEADER + SLOT * index))
    }

    #[inline]
    pub(super) fn key(self, index: usize) -> &'a [u8] {
        let cell = self.cell(index);
        let len = usize::from(get_u16(self.0, cell));
        &self.0[cell + CELL_HEADER..cell + CELL_HEADER + len]
    }

    /// Child `index` of an inner node, from 0 (the leftmost) to `count`.
    #[inline]
    pub(super) fn child(self, index: usize) -> PageId {
        PageId(match index {
            0 => get_u32(self.0, LEFTMOST),
            _ => get_u32(self.0, self.cell(index - 1) + 2),
        })
    }

    fn cell_bytes(self, index: usize) -> &'a [u8] {
        let cell = self.cell(index);
        let key = usize::from(get_u16(self.0, cell));
        let value = match (self.0[0], get_u32(self.0, cell + 2)) {
            (LEAF, len) if len & SPILLED != 0 => 4,
            (LEAF, len) => len as usize,
            _ => 0,
        };
        &self.0[cell..cell + CELL_HEADER + key + value]
    }

    pub(super) fn place(self, index: usize) -> Place {
        let cell = self.cell(index);
        let at = cell + CELL_HEADER + usize::from(get_u16(self.0, cell));
        match get_u32(self.0, cell + 2) {
            len if len & SPILLED == 0 => Place::Inline { at, len: len as usize },
            len => Place::Spilled {
                extent: Extent { root: PageId(get_u32(self.0, at)), len: u64::from(len & !SPILLED) },
                len_at: cell + 2,
                root_at: at,
            },
        }
    }

    #[inline]
    fn skip(self) -> usize {
        usize::from(get_u16(self.0, SKIP))
    }

    #[inline]
    fn hint(self, index: usize) -> u32 {
        get_u32(self.0, HEADER + SLOT * index + 2)
    }

    /// How the beginning of `key` compares with the bytes that the keys of the node share; `near` is the cell to take
    /// them from.
    #[inline]
    fn compare_shared(self, key: &[u8], near: usize) -> Ordering {
        let skip = self.skip();
        key[..skip.min(key.len())].cmp(&self.key(near.min(self.count() - 1))[..skip])
    }

    /// Index of `key`, or where it would stand.
    #[inline]
    pub(super) fn search(self, key: &[u8]) -> Result<usize, usize> {
        let count = self.count();
        let (mut low, mut high) = (0, count);
        let hint = hint_of(key.get(self.skip()..).unwrap_or(&[]));
        while low < high {
            let middle = (low + high) / 2;
            let order = match self.hint(middle).cmp(&hint) {
                Ordering::Equal => self.key(middle).cmp(key),
                order => order,
            };
            match order {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        // The hints say nothing about a key that does not share what the others do.
        if count > 0 && self.skip() > 0 {
            match self.compare_shared(key, low) {
                Ordering::Less => low = 0,
                Ordering::Equal => {}
                Ordering::Greater => low = count,
            }
        }
        Err(low)
    }

    /// Index of the child of an inner node under which `key` belongs.
    #[inline]
    pub(super) fn child_of(self, key: &[u8]) -> usize {
        match self.search(key) {
            Ok(index) => index + 1,
            Err(index) => index,
        }
    }
}

/// A cell to be inserted: its pieces, one after the other.
#[derive(Clone, Copy)]
pub(super) struct NewCell<'a> {
    header: [u8; CELL_HEADER],
    key: &'a [u8],
    tail: Tail<'a>,
}

#[derive(Clone, Copy)]
enum Tail<'a> {
    Nothing,
    Inline(&'a [u8]),
    Root([u8; 4]),
}

impl<'a> NewCell<'a> {
    fn new(key: &'a [u8], number: u32, tail: Tail<'a>) -> NewCell<'a> {
        let mut header = [0; CELL_HEADER];
        header[..2].copy_from_slice(&(key.len() as u16).to_le_bytes());
        header[2..].copy_from_slice(&number.to_le_bytes());
        NewCell { header, key, tail }
    }

    pub(super) fn inline(key: &'a [u8], value: &'a [u8]) -> NewCell<'a> {
        NewCell::new(key, value.len() as u32, Tail::Inline(value))
    }

    pub(super) fn spilled(key: &'a [u8], extent: Extent) -> NewCell<'a> {
        NewCell::new(key, spilled_len(extent.len), Tail::Root(extent.root.0.to_le_bytes()))
    }

    pub(super) fn inner(key: &'a [u8], child: PageId) -> NewCell<'a> {
        NewCell::new(key, child.0, Tail::Nothing)
    }

    fn tail(&self) -> &[u8] {
        match &self.tail {
            Tail::Nothing => &[],
            Tail::Inline(value) => value,
            Tail::Root(root) => root,
        }
    }

    fn len(&self) -> usize {
        CELL_HEADER + self.key.len() + self.tail().len()
    }

    /// Bytes of a node that it takes.
    pub(super) fn room(&self) -> usize {
        SLOT + self.len()
    }

    fn copy_to(&self, into: &mut [u8]) {
        let (header, rest) = into.split_at_mut(CELL_HEADER);
        let (key, tail) = rest.split_at_mut(self.key.len());
        header.copy_from_slice(&self.header);
        key.copy_from_slice(self.key);
        tail.copy_from_slice(self.tail());
    }
}

/// The length field of a spilled value.
pub(super) fn spilled_len(len: u64) -> u32 {
    assert!(len < u64::from(SPILLED), "a value is shorter than 2 GiB");
    len as u32 | SPILLED
}

/// A node under construction, tightly packed.
pub(super) struct Builder {
    bytes: [u8; PAGE],
    count: usize,
    start: usize,
}

impl Builder {
    pub(super) fn new(kind: u8, leftmost: PageId) -> Builder {
        let mut bytes = [0; PAGE];
        bytes[0] = kind;
        bytes[LEFTMOST..LEFTMOST + 4].copy_from_slice(&leftmost.0.to_le_bytes());
        Builder { bytes, count: 0, start: PAGE }
    }

    fn place(&mut self, len: usize) -> &mut [u8] {
        self.start -= len;
        let slot = HEADER + SLOT * self.count;
        assert!(slot + SLOT <= self.start, "the node has room for the cell");
        self.bytes[slot..slot + 2].copy_from_slice(&(self.start as u16).to_le_bytes());
        self.count += 1;
        &mut self.bytes[self.start..self.start + len]
    }

    pub(super) fn push(&mut self, cell: &NewCell<'_>) {
        cell.copy_to(self.place(cell.len()));
    }

    pub(super) fn push_all(&mut self, node: Node<'_>) {
        (0..node.count()).for_each(|index| self.push_bytes(node.cell_bytes(index)));
    }

    fn push_bytes(&mut self, cell: &[u8]) {
        self.place(cell.len()).copy_from_slice(cell);
    }

    pub(super) fn finish(mut self, region: &mut Region, page: PageId) {
        self.bytes[COUNT..COUNT + 2].copy_from_slice(&(self.count as u16).to_le_bytes());
        self.bytes[4..6].copy_from_slice(&(self.start as u16).to_le_bytes());
        if self.count > 0 {
            // Keys are in order: what the first and the last share, all do.
            let node = Node(&self.bytes);
            let (first, last) = (node.key(0), node.key(self.count - 1));
            let skip = first.iter().zip(last).take_while(|(a, b)| a == b).count();
            self.bytes[SKIP..SKIP + 2].copy_from_slice(&(skip as u16).to_le_bytes());
            for index in 0..self.count {
                let hint = hint_of(&Node(&self.bytes).key(index)[skip..]);
                let at = HEADER + SLOT * index + 2;
                self.bytes[at..at + 4].copy_from_slice(&hint.to_le_bytes());
            }
        }
        region.write(page, 0..PAGE).copy_from_slice(&self.bytes);
    }
}

/// Inserts `cell` at `index` if the node has room.
pub(super) fn insert(region: &mut Region, page: PageId, index: usize, cell: &NewCell<'_>) -> bool {
    let node = Node(region.read(page));
    let (need, count) = (cell.len(), node.count());
    if node.used() + SLOT + need > CAPACITY {
        return false;
    }
    let shares = count == 0 || node.compare_shared(cell.key, index) == Ordering::Equal;
    if !shares || node.start() - (HEADER + SLOT * count) < SLOT + need {
        let mut packed = Builder::new(node.0[0], node.child(0));
        (0..index).for_each(|index| packed.push_bytes(node.cell_bytes(index)));
        packed.push(cell);
        (index..count).for_each(|index| packed.push_bytes(node.cell_bytes(index)));
        packed.finish(region, page);
        return true;
    }
    let mut bytes = region.page_mut(page);
    if count == 0 {
        bytes.put(SKIP, &[0; 2]);
    }
    let hint = hint_of(&cell.key[Node(bytes.bytes()).skip()..]);
    let start = Node(bytes.bytes()).start() - need;
    cell.copy_to(bytes.write(start..start + need));
    let slot = HEADER + SLOT * index;
    bytes.shift(slot..HEADER + SLOT * count, slot + SLOT);
    let mut content = [0; SLOT];
    content[..2].copy_from_slice(&(start as u16).to_le_bytes());
    content[2..].copy_from_slice(&hint.to_le_bytes());
    bytes.put(slot, &content);
    let [a, b] = (count as u16 + 1).to_le_bytes();
    let [c, d] = (start as u16).to_le_bytes();
    bytes.put(COUNT, &[a, b, c, d]);
    true
}

/// Removes the cell at `index`.
pub(super) fn remove(region: &mut Region, page: PageId, index: usize) {
    let mut bytes = region.page_mut(page);
    let node = Node(bytes.bytes());
    let (count, cell, len) = (node.count(), node.cell(index), node.cell_bytes(index).len());
    let (mut start, mut waste) = (node.start(), node.waste());
    if cell == start {
        start += len;
    } else {
        waste += len;
    }
    let slot = HEADER + SLOT * index;
    bytes.shift(slot + SLOT..HEADER + SLOT * count, slot);
    let mut header = [0; 6];
    header[..2].copy_from_slice(&(count as u16 - 1).to_le_bytes());
    header[2..4].copy_from_slice(&(start as u16).to_le_bytes());
    header[4..].copy_from_slice(&(waste as u16).to_le_bytes());
    bytes.put(COUNT, &header);
}

/// Makes the first cell's child the leftmost, and drops the cell.
pub(super) fn remove_leftmost(region: &mut Region, page: PageId) {
    let second = Node(region.read(page)).child(1);
    region.write(page, LEFTMOST..LEFTMOST + 4).copy_from_slice(&second.0.to_le_bytes());
    remove(region, page, 0);
}

/// Splits a node that has no room for `cell` at `index`; the upper part goes to `right`. The key that separates them,
/// for the parent. `append`: nothing follows in the tree, keep the left part full.
pub(super) fn split(
    region: &mut Region,
    page: PageId,
    right: PageId,
    index: usize,
    cell: &NewCell<'_>,
    append: bool,
) -> Vec<u8> {
    let bytes = *region.read(page);
    let node = Node(&bytes);
    let count = node.count() + 1;
    let mut fresh = [0; CELL_MAX];
    let fresh = &mut fresh[..cell.len()];
    cell.copy_to(fresh);
    let mut cells = [&[][..]; CELLS_MAX];
    for (at, entry) in cells[..count].iter_mut().enumerate() {
        *entry = match at.cmp(&index) {
            std::cmp::Ordering::Less => node.cell_bytes(at),
            std::cmp::Ordering::Equal => fresh,
            std::cmp::Ordering::Greater => node.cell_bytes(at - 1),
        };
    }
    let cells = &cells[..count];
    // The first cell of the upper half: of an inner node it moves up, and both sides keep at least one.
    let last = if node.is_leaf() { count - 1 } else { count - 2 };
    let middle = if append && index == count - 1 {
        last
    } else {
        let total: usize = cells.iter().map(|cell| cell.len() + SLOT).sum();
        let mut left = 0;
        let fits = |cell: &&&[u8]| {
            left += cell.len() + SLOT;
            left <= total / 2
        };
        cells.iter().take_while(fits).count().clamp(1, last)
    };
    let key_of = |cell: &'_ [u8]| cell[CELL_HEADER..CELL_HEADER + usize::from(get_u16(cell, 0))].to_vec();
    let upper = key_of(cells[middle]);
    let (mut low, mut high, separator);
    if node.is_leaf() {
        low = Builder::new(LEAF, PageId::NONE);
        high = Builder::new(LEAF, PageId::NONE);
        cells[middle..].iter().for_each(|cell| high.push_bytes(cell));
        // The shortest key above the lower part: inner nodes stay small.
        let lower = key_of(cells[middle - 1]);
        let common = lower.iter().zip(&upper).take_while(|(a, b)| a == b).count();
        separator = upper[..common + 1].to_vec();
    } else {
        low = Builder::new(INNER, node.child(0));
        high = Builder::new(INNER, PageId(get_u32(cells[middle], 2)));
        cells[middle + 1..].iter().for_each(|cell| high.push_bytes(cell));
        separator = upper;
    }
    cells[..middle].iter().for_each(|cell| low.push_bytes(cell));
    low.finish(region, page);
    high.finish(region, right);
    separator
}
