//! An ordered map from bytes to bytes: a B+tree in pages.

mod iter;
mod node;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Bound;

use self::node::{Builder, INNER, LEAF, NewCell, Node, Place};
use super::alloc::{Kind, get_u32, get_u64, slot};
use super::cell::Fixed;
use super::extent::Extent;
use super::page::{Full, PageId};
use super::past::Pages;
use super::region::Region;

pub use self::iter::Iter;

/// The longest key of a [`Map`], in bytes.
pub const KEY_MAX: usize = 1_024;

/// The longest value of a [`Map`], in bytes. What exceeds [`crate::limits::OPERATION_MAX`] must be written in parts.
pub const VALUE_MAX: u64 = (1 << 31) - 1;

/// Levels of a tree: far above what 2^32 pages can make.
const DEPTH_MAX: usize = 32;

/// Bytes of a value that [`Map::store`] takes: it stands beside its key.
const FIXED_MAX: usize = 1_024;

const ROOT: usize = 0;
const COUNT: usize = 8;

/// An ordered map in root slot `slot`: byte keys of up to [`KEY_MAX`], in lexicographic order, to byte values of any
/// length. The handle holds nothing: it may be a constant.
///
/// Values of up to about 1.3 KB stand beside their keys; longer ones take whole pages of their own. Whatever returns
/// [`Full`] has changed nothing.
///
/// ```
/// use castra::state::{Map, Region};
///
/// const CAPITALS: Map = Map::at(0);
/// let mut region = Region::new(16);
/// CAPITALS.insert(&mut region, b"fr", b"Paris")?;
/// CAPITALS.insert(&mut region, b"at", b"Wien")?;
/// assert_eq!(CAPITALS.get(&region, b"fr").as_deref(), Some(&b"Paris"[..]));
/// assert_eq!(CAPITALS.iter(&region).map(|(key, _)| key).collect::<Vec<_>>(), [b"at", b"fr"]);
/// # Ok::<(), castra::state::Full>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Map {
    slot: u8,
}

/// The value of a key, not yet read.
pub struct Value<'a, P = Region> {
    region: &'a P,
    found: Found<'a>,
}

#[derive(Clone, Copy)]
enum Found<'a> {
    Inline(&'a [u8]),
    Spilled(Extent),
}

impl<P> Clone for Value<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Value<'_, P> {}

impl<'a, P: Pages> Value<'a, P> {
    #[inline]
    fn at(region: &'a P, node: Node<'a>, index: usize) -> Value<'a, P> {
        let found = match node.place(index) {
            Place::Inline { at, len } => Found::Inline(&node.0[at..at + len]),
            Place::Spilled { extent, .. } => Found::Spilled(extent),
        };
        Value { region, found }
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match &self.found {
            Found::Inline(bytes) => bytes.len() as u64,
            Found::Spilled(extent) => extent.len,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it; borrowed if it stands beside its key.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        match &self.found {
            Found::Inline(bytes) => Cow::Borrowed(bytes),
            Found::Spilled(extent) => extent.cow(self.region, 0, extent.len),
        }
    }

    /// The value of fixed size that [`Map::store`] wrote.
    ///
    /// # Panics
    /// If it has another size.
    #[inline]
    pub fn decode<T: Fixed>(&self) -> T {
        let bytes = self.bytes();
        assert!(bytes.len() == T::SIZE, "a value of {} bytes is no {}", bytes.len(), std::any::type_name::<T>());
        T::decode(&bytes)
    }

    /// Reads into `into` from `offset` on; how many bytes there were.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        match &self.found {
            Found::Inline(bytes) => {
                let from = &bytes[offset.min(bytes.len() as u64) as usize..];
                let len = from.len().min(into.len());
                into[..len].copy_from_slice(&from[..len]);
                len
            }
            Found::Spilled(extent) => extent.read(self.region, offset, into),
        }
    }
}

impl<P: Pages> std::fmt::Debug for Value<'_, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Value of {} bytes", self.len())
    }
}

/// The way from the root to a leaf: in inner nodes the child taken, in the leaf a cell.
#[derive(Clone)]
struct Path {
    steps: [(PageId, u16); DEPTH_MAX],
    len: usize,
}

impl Path {
    fn new() -> Path {
        Path { steps: [(PageId::NONE, 0); DEPTH_MAX], len: 0 }
    }

    #[inline]
    fn push(&mut self, page: PageId, index: usize) {
        self.steps[self.len] = (page, index as u16);
        self.len += 1;
    }

    #[inline]
    fn step(&self, depth: usize) -> (PageId, usize) {
        let (page, index) = self.steps[depth];
        (page, usize::from(index))
    }

    fn last(&self) -> (PageId, usize) {
        self.step(self.len - 1)
    }
}

impl Map {
    /// The map in slot `slot`, which nothing else may use.
    pub const fn at(slot: u8) -> Map {
        assert!(slot < Region::SLOTS, "a region has 63 slots");
        Map { slot }
    }

    /// Number of keys.
    pub fn len<P: Pages>(self, region: &P) -> u64 {
        slot(region, self.slot, Kind::Map).map_or(0, |slot| get_u64(slot, COUNT))
    }

    /// Whether there is no key.
    pub fn is_empty<P: Pages>(self, region: &P) -> bool {
        self.len(region) == 0
    }

    /// The value of `key`; borrowed unless it is long (then [`value`](Map::value) reads parts of it).
    pub fn get<'a, P: Pages>(self, region: &'a P, key: &[u8]) -> Option<Cow<'a, [u8]>> {
        self.value(region, key).map(|value| value.bytes())
    }

    /// The value of `key`, to be read in parts.
    #[inline]
    pub fn value<'a, P: Pages>(self, region: &'a P, key: &[u8]) -> Option<Value<'a, P>> {
        let leaf = Node(region.read(self.leaf(region, key)?));
        let index = leaf.search(key).ok()?;
        Some(Value::at(region, leaf, index))
    }

    /// The value of `key`, which [`store`](Map::store) wrote.
    ///
    /// # Panics
    /// If the value has another size.
    #[inline]
    pub fn load<T: Fixed, P: Pages>(self, region: &P, key: &[u8]) -> Option<T> {
        self.value(region, key).map(|value| value.decode())
    }

    /// Sets the value of `key` to one of fixed size (at most 1,024 bytes); whether the key is new.
    #[inline]
    pub fn store<T: Fixed>(self, region: &mut Region, key: &[u8], value: &T) -> Result<bool, Full> {
        const { assert!(T::SIZE <= FIXED_MAX, "a fixed value of a map has at most 1,024 bytes") };
        let mut bytes = [0; FIXED_MAX];
        value.encode(&mut bytes[..T::SIZE]);
        self.insert(region, key, &bytes[..T::SIZE])
    }

    /// Whether `key` is there.
    pub fn contains<P: Pages>(self, region: &P, key: &[u8]) -> bool {
        self.value(region, key).is_some()
    }

    /// Sets the value of `key`; whether the key is new.
    ///
    /// # Panics
    /// If the key exceeds [`KEY_MAX`] or the value [`VALUE_MAX`]: the caller checks what it lets in.
    pub fn insert(self, region: &mut Region, key: &[u8], value: &[u8]) -> Result<bool, Full> {
        assert!(key.len() <= KEY_MAX, "a key has at most {KEY_MAX} bytes");
        assert!(value.len() as u64 <= VALUE_MAX, "a value has at most {VALUE_MAX} bytes");
        let (path, found) = self.descend(region, key);
        if path.len == 0 {
            return region.attempt(|region| {
                let root = region.allocate()?;
                Builder::new(LEAF, PageId::NONE).finish(region, root);
                self.set_root(region, root);
                let mut path = Path::new();
                path.push(root, 0);
                self.put(region, &path, key, value)?;
                self.add(region, 1);
                Ok(true)
            });
        }
        let (leaf, index) = path.last();
        if found {
            let inline = node::is_inline(key, value.len());
            match Node(region.read(leaf)).place(index) {
                Place::Inline { at, len } if inline && len == value.len() => {
                    region.write(leaf, at..at + len).copy_from_slice(value);
                }
                Place::Inline { .. } => region.attempt(|region| {
                    node::remove(region, leaf, index);
                    self.put(region, &path, key, value)
                })?,
                Place::Spilled { extent, .. } => region.attempt(|region| {
                    extent.free(region);
                    node::remove(region, leaf, index);
                    self.put(region, &path, key, value)
                })?,
            }
            return Ok(false);
        }
        if !node::is_inline(key, value.len()) || !node::insert(region, leaf, index, &NewCell::inline(key, value)) {
            region.attempt(|region| self.put(region, &path, key, value))?;
        }
        self.add(region, 1);
        Ok(true)
    }

    /// Overwrites the bytes of the value of `key` from `offset` on, and extends it (a gap is zeroes) if they reach beyond
    /// its end; false if there is no such key.
    ///
    /// # Panics
    /// If the value would exceed [`VALUE_MAX`].
    pub fn write_at(self, region: &mut Region, key: &[u8], offset: u64, bytes: &[u8]) -> Result<bool, Full> {
        let (path, found) = self.descend(region, key);
        if !found || bytes.is_empty() {
            return Ok(found);
        }
        let end = offset.saturating_add(bytes.len() as u64);
        assert!(end <= VALUE_MAX, "a value has at most {VALUE_MAX} bytes");
        let (leaf, index) = path.last();
        match Node(region.read(leaf)).place(index) {
            Place::Inline { at, len } if end <= len as u64 => {
                let at = at + offset as usize;
                region.write(leaf, at..at + bytes.len()).copy_from_slice(bytes);
            }
            Place::Inline { at, len } if node::is_inline(key, end as usize) => {
                let mut value = region.read(leaf)[at..at + len].to_vec();
                value.resize(end as usize, 0);
                value[offset as usize..].copy_from_slice(bytes);
                region.attempt(|region| {
                    node::remove(region, leaf, index);
                    self.put(region, &path, key, &value)
                })?;
            }
            Place::Inline { at, len } => {
                let value = region.read(leaf)[at..at + len].to_vec();
                region.attempt(|region| {
                    let mut extent = Extent::default();
                    extent.write(region, 0, &value)?;
                    extent.write(region, offset, bytes)?;
                    node::remove(region, leaf, index);
                    self.put_cell(region, &path, &NewCell::spilled(key, extent))
                })?;
            }
            Place::Spilled { mut extent, len_at, root_at } => region.attempt(|region| {
                let before = extent;
                extent.write(region, offset, bytes)?;
                if extent != before {
                    let mut page = region.page_mut(leaf);
                    page.put(len_at, &node::spilled_len(extent.len).to_le_bytes());
                    page.put(root_at, &extent.root.0.to_le_bytes());
                }
                Ok(())
            })?,
        }
        Ok(true)
    }

    /// Removes `key`; whether it was there.
    pub fn remove(self, region: &mut Region, key: &[u8]) -> bool {
        let (mut path, found) = self.descend(region, key);
        if !found {
            return false;
        }
        let (leaf, index) = path.last();
        if let Place::Spilled { extent, .. } = Node(region.read(leaf)).place(index) {
            extent.free(region);
        }
        node::remove(region, leaf, index);
        self.shrink(region, &mut path);
        self.add(region, -1);
        true
    }

    /// Removes everything and frees its pages.
    pub fn clear(self, region: &mut Region) {
        let Some(root) = self.root(region) else { return };
        free_below(region, root);
        region.set_slot(self.slot, Kind::Map, ROOT, &[0; COUNT + 8]);
    }

    /// All keys with their values, in order; from both ends.
    pub fn iter<P: Pages>(self, region: &P) -> Iter<'_, P> {
        self.range(region, Bound::Unbounded, Bound::Unbounded)
    }

    /// The keys within two bounds with their values, in order; from both ends.
    pub fn range<'a, P: Pages>(self, region: &'a P, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Iter<'a, P> {
        Iter::new(region, self.root(region), from, to)
    }

    /// The keys that begin with `prefix` with their values, in order; from both ends.
    pub fn prefix<'a, P: Pages>(self, region: &'a P, prefix: &[u8]) -> Iter<'a, P> {
        // The first key above all that begin with the prefix: its last byte below 0xff, one up.
        let mut above = prefix.to_vec();
        while above.pop_if(|&mut last| last == 0xff).is_some() {}
        match above.last_mut() {
            Some(last) => {
                *last += 1;
                self.range(region, Bound::Included(prefix), Bound::Excluded(&above))
            }
            None => self.range(region, Bound::Included(prefix), Bound::Unbounded),
        }
    }

    /// Calls `visit` for each page of the tree and of the long values in it, nodes first; it returns whether the page may
    /// be looked into.
    pub(super) fn visit<P: Pages>(self, region: &P, visit: &mut dyn FnMut(PageId) -> bool) {
        if let Some(root) = self.root(region) {
            visit_below(region, root, visit);
        }
    }

    fn root<P: Pages>(self, region: &P) -> Option<PageId> {
        let slot = slot(region, self.slot, Kind::Map)?;
        let root = PageId(get_u32(slot, ROOT));
        (root != PageId::NONE).then_some(root)
    }

    fn set_root(self, region: &mut Region, root: PageId) {
        region.set_slot(self.slot, Kind::Map, ROOT, &root.0.to_le_bytes());
    }

    fn add(self, region: &mut Region, change: i64) {
        let count = self.len(region).checked_add_signed(change).expect("no key is removed that was not counted");
        region.set_slot(self.slot, Kind::Map, COUNT, &count.to_le_bytes());
    }

    /// The leaf under which `key` belongs.
    #[inline]
    fn leaf<P: Pages>(self, region: &P, key: &[u8]) -> Option<PageId> {
        let mut page = self.root(region)?;
        loop {
            let node = Node(region.read(page));
            if node.is_leaf() {
                return Some(page);
            }
            page = node.child(node.child_of(key));
        }
    }

    /// The way to `key`, or to where it would stand, and whether it is there. Empty without a root.
    fn descend<P: Pages>(self, region: &P, key: &[u8]) -> (Path, bool) {
        let mut path = Path::new();
        let Some(mut page) = self.root(region) else { return (path, false) };
        loop {
            let node = Node(region.read(page));
            if node.is_leaf() {
                let found = node.search(key);
                path.push(page, found.unwrap_or_else(|index| index));
                return (path, found.is_ok());
            }
            let child = node.child_of(key);
            path.push(page, child);
            page = node.child(child);
        }
    }

    /// Inserts a key that is not there, at the end of `path`. To be attempted.
    fn put(self, region: &mut Region, path: &Path, key: &[u8], value: &[u8]) -> Result<(), Full> {
        if node::is_inline(key, value.len()) {
            return self.put_cell(region, path, &NewCell::inline(key, value));
        }
        let mut extent = Extent::default();
        extent.write(region, 0, value)?;
        self.put_cell(region, path, &NewCell::spilled(key, extent))
    }

    /// Inserts a cell, splitting nodes upwards as far as needed. To be attempted.
    fn put_cell(self, region: &mut Region, path: &Path, cell: &NewCell<'_>) -> Result<(), Full> {
        let (page, index) = path.last();
        if node::insert(region, page, index, cell) {
            return Ok(());
        }
        // Nothing follows in the tree if the way leads rightmost everywhere.
        let append = (0..path.len).all(|depth| {
            let (page, index) = path.step(depth);
            index == Node(region.read(page)).count()
        });
        let mut right = region.allocate()?;
        let mut separator = node::split(region, page, right, index, cell, append);
        for depth in (0..path.len - 1).rev() {
            let (page, index) = path.step(depth);
            let cell = NewCell::inner(&separator, right);
            if node::insert(region, page, index, &cell) {
                return Ok(());
            }
            let upper = region.allocate()?;
            let next = node::split(region, page, upper, index, &cell, append);
            (separator, right) = (next, upper);
        }
        let old = self.root(region).expect("there is a path");
        let root = region.allocate()?;
        let mut builder = Builder::new(INNER, old);
        builder.push(&NewCell::inner(&separator, right));
        builder.finish(region, root);
        self.set_root(region, root);
        assert!(path.len < DEPTH_MAX, "a tree is at most {DEPTH_MAX} levels high");
        Ok(())
    }

    /// The last node of `path` lost a cell: drops it if it is empty, or merges it with a neighbour, and so on upwards.
    /// Takes no page, so that removing always succeeds.
    fn shrink(self, region: &mut Region, path: &mut Path) {
        while path.len > 1 {
            let (page, _) = path.last();
            let (parent, index) = path.step(path.len - 2);
            let node = Node(region.read(page));
            if node.used() >= node::UNDERFULL {
                return;
            }
            if node.is_leaf() && node.count() == 0 {
                self.drop_child(region, path);
            } else {
                let count = Node(region.read(parent)).count();
                let merged =
                    index > 0 && merge(region, parent, index - 1) || index < count && merge(region, parent, index);
                if !merged {
                    break;
                }
                path.len -= 1;
            }
        }
        // A root with one child is none.
        while let Some(root) = self.root(region) {
            let node = Node(region.read(root));
            if node.is_leaf() || node.count() > 0 {
                return;
            }
            let child = node.child(0);
            region.release(root);
            self.set_root(region, child);
        }
    }

    /// Drops the empty leaf at the end of `path`, and inner nodes that had no other child.
    fn drop_child(self, region: &mut Region, path: &mut Path) {
        loop {
            let (page, _) = path.last();
            region.release(page);
            path.len -= 1;
            if path.len == 0 {
                return self.set_root(region, PageId::NONE);
            }
            let (parent, index) = path.last();
            match (Node(region.read(parent)).count(), index) {
                (0, _) => continue,
                (_, 0) => node::remove_leftmost(region, parent),
                (_, index) => node::remove(region, parent, index - 1),
            }
            return;
        }
    }
}

/// Merges children `index` and `index + 1` of `parent` if they fit into one node with some room left.
fn merge(region: &mut Region, parent: PageId, index: usize) -> bool {
    let above = Node(region.read(parent));
    let (left_page, right_page) = (above.child(index), above.child(index + 1));
    let (left, right) = (Node(region.read(left_page)), Node(region.read(right_page)));
    let separator = NewCell::inner(above.key(index), if left.is_leaf() { PageId::NONE } else { right.child(0) });
    let pulled_down = if left.is_leaf() { 0 } else { separator.room() };
    if left.used() + right.used() + pulled_down > node::MERGED_MAX {
        return false;
    }
    let mut merged = if left.is_leaf() { Builder::new(LEAF, PageId::NONE) } else { Builder::new(INNER, left.child(0)) };
    merged.push_all(left);
    if !left.is_leaf() {
        merged.push(&separator);
    }
    merged.push_all(right);
    merged.finish(region, left_page);
    region.release(right_page);
    node::remove(region, parent, index);
    true
}

fn visit_below<P: Pages>(region: &P, page: PageId, visit: &mut dyn FnMut(PageId) -> bool) {
    if !visit(page) {
        return;
    }
    let node = Node(region.read(page));
    if node.is_leaf() {
        for index in 0..node.count() {
            if let Place::Spilled { extent, .. } = node.place(index) {
                extent.visit(region, visit);
            }
        }
    } else {
        (0..=node.count()).for_each(|index| visit_below(region, node.child(index), visit));
    }
}

fn free_below(region: &mut Region, page: PageId) {
    let node = Node(region.read(page));
    let (leaf, count) = (node.is_leaf(), node.count());
    if leaf {
        for index in 0..count {
            if let Place::Spilled { extent, .. } = Node(region.read(page)).place(index) {
                extent.free(region);
            }
        }
    } else {
        for index in 0..=count {
            free_below(region, Node(region.read(page)).child(index));
        }
    }
    region.release(page);
}
