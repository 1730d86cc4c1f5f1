//! Going through a map in order.

use std::ops::Bound;

use super::node::Node;
use super::{Path, Value};
use crate::state::page::PageId;
use crate::state::past::Pages;
use crate::state::region::Region;

/// Keys with their values, in order, from both ends. It holds the region: the map cannot change meanwhile. It reads
/// nodes as it comes to them and allocates nothing.
pub struct Iter<'a, P = Region> {
    region: &'a P,
    root: PageId,
    /// The next cell from the front; behind the last one an empty path.
    front: Path,
    /// The cell after the next one from the back; ditto.
    back: Path,
    done: bool,
}

impl<'a, P: Pages> Iter<'a, P> {
    pub(super) fn new(region: &'a P, root: Option<PageId>, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Iter<'a, P> {
        let Some(root) = root else {
            return Iter { region, root: PageId::NONE, front: Path::new(), back: Path::new(), done: true };
        };
        let mut iter = Iter { region, root, front: Path::new(), back: Path::new(), done: false };
        iter.front = match from {
            Bound::Unbounded => iter.first(),
            Bound::Included(key) => iter.seek(key, false),
            Bound::Excluded(key) => iter.seek(key, true),
        };
        iter.back = match to {
            Bound::Unbounded => Path::new(),
            Bound::Included(key) => iter.seek(key, true),
            Bound::Excluded(key) => iter.seek(key, false),
        };
        iter.done = iter.is_empty(from, to);
        iter
    }

    /// Whether the bounds, which may be the wrong way round, leave nothing.
    fn is_empty(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> bool {
        let crossed = match (from, to) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(from), Bound::Included(to)) => from > to,
            (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => from >= to,
        };
        crossed || same(&self.front, &self.back)
    }

    /// The first cell of the tree.
    fn first(&self) -> Path {
        let mut path = Path::new();
        self.down(&mut path, self.root, false);
        self.settle(path)
    }

    /// The first cell whose key is not below `key` (`after`: above it).
    fn seek(&self, key: &[u8], after: bool) -> Path {
        let mut path = Path::new();
        let mut page = self.root;
        loop {
            let node = Node(self.region.read(page));
            if node.is_leaf() {
                let index = match node.search(key) {
                    Ok(index) => index + usize::from(after),
                    Err(index) => index,
                };
                path.push(page, index);
                return self.settle(path);
            }
            let child = node.child_of(key);
            path.push(page, child);
            page = node.child(child);
        }
    }

    /// Extends `path` by the leftmost or rightmost way from `page` to a leaf; rightmost: behind its last cell.
    fn down(&self, path: &mut Path, mut page: PageId, rightmost: bool) {
        loop {
            let node = Node(self.region.read(page));
            let index = if rightmost { node.count() } else { 0 };
            path.push(page, index);
            if node.is_leaf() {
                return;
            }
            page = node.child(index);
        }
    }

    /// If `path` ends behind the last cell of its leaf: the first cell of the next leaf.
    fn settle(&self, mut path: Path) -> Path {
        let (leaf, index) = path.last();
        if index < Node(self.region.read(leaf)).count() {
            return path;
        }
        path.len -= 1;
        while path.len > 0 {
            let (page, index) = path.last();
            let node = Node(self.region.read(page));
            path.len -= 1;
            if index < node.count() {
                path.push(page, index + 1);
                self.down(&mut path, node.child(index + 1), false);
                return path;
            }
        }
        path
    }

    /// The cell before `path`; there is one.
    fn before(&self, mut path: Path) -> Path {
        if path.len == 0 {
            self.down(&mut path, self.root, true);
        }
        loop {
            let (page, index) = path.last();
            path.len -= 1;
            if index > 0 {
                path.push(page, index - 1);
                let node = Node(self.region.read(page));
                if !node.is_leaf() {
                    self.down(&mut path, node.child(index - 1), true);
                    continue;
                }
                return path;
            }
        }
    }

    fn entry(&self, path: &Path) -> (&'a [u8], Value<'a, P>) {
        let (leaf, index) = path.last();
        let node = Node(self.region.read(leaf));
        (node.key(index), Value::at(self.region, node, index))
    }
}

fn same(a: &Path, b: &Path) -> bool {
    match (a.len, b.len) {
        (0, 0) => true,
        (0, _) | (_, 0) => false,
        _ => a.last() == b.last(),
    }
}

impl<'a, P: Pages> Iterator for Iter<'a, P> {
    type Item = (&'a [u8], Value<'a, P>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.done || same(&self.front, &self.back) {
            return None;
        }
        let entry = self.entry(&self.front);
        let depth = self.front.len - 1;
        self.front.steps[depth].1 += 1;
        if usize::from(self.front.steps[depth].1) == Node(self.region.read(self.front.steps[depth].0)).count() {
            self.front = self.settle(self.front.clone());
        }
        Some(entry)
    }
}

impl<P: Pages> DoubleEndedIterator for Iter<'_, P> {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.done || same(&self.front, &self.back) {
            return None;
        }
        self.back = self.before(self.back.clone());
        Some(self.entry(&self.back))
    }
}

impl<P> std::fmt::Debug for Iter<'_, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Iter under {}", self.root)
    }
}
