//! The state as the checkpoint role knows it: the pages and trees of the last digested checkpoint, and what it takes to
//! go back to a few before it. Peers are served from it (P38), and a transfer works on it.
//!
//! The pages are those that execution shares: a page costs memory of its own only once it was written over. A kept
//! checkpoint is what the next one replaced: its cost grows with what changed, not with the state.

use std::collections::VecDeque;
use std::sync::Arc;

use super::digest::{Checkpoint, Cv, RegionRoot, Tree, state_root};
use super::page::{Page, PageId};
use super::snapshot::Snapshot;
use crate::types::{RegionId, SeqNum};

/// What is kept of checkpoints before the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Keep {
    /// So many of them,
    pub checkpoints: usize,
    /// while all together hold no more than so many pages of their own.
    pub pages: usize,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Mirror {
    keep: Keep,
    trees: [Tree; 2],
    /// `None`: in the tree already, not there yet.
    pages: [Vec<Option<Arc<Page>>>; 2],
    /// What trees and pages are the state of; `None` while they change.
    current: Option<Checkpoint>,
    /// Oldest first. The last one is what `current`, or what is being digested, replaced.
    past: VecDeque<Past>,
    past_pages: usize,
    done: Vec<(RegionId, Arc<Page>)>,
}

/// A checkpoint, as what the one after it replaced.
#[derive(Clone, Debug)]
struct Past {
    checkpoint: Checkpoint,
    pages: Vec<(u64, Arc<Page>, Cv)>,
    nodes: Vec<(u64, Cv)>,
    sorted: bool,
}

/// Orders pages by region and number, nodes by region, level and number.
fn key(region: RegionId, level: u8, index: u32) -> u64 {
    (region as u64) << 40 | u64::from(level) << 32 | u64::from(index)
}

impl Past {
    fn page(&self, region: RegionId, page: u32) -> Option<&(u64, Arc<Page>, Cv)> {
        let key = key(region, 0, page);
        self.pages.binary_search_by_key(&key, |entry| entry.0).ok().map(|at| &self.pages[at])
    }

    fn node(&self, region: RegionId, level: u8, index: u32) -> Option<Cv> {
        if level == 0 {
            return self.page(region, index).map(|entry| entry.2);
        }
        let key = key(region, level, index);
        self.nodes.binary_search_by_key(&key, |entry| entry.0).ok().map(|at| self.nodes[at].1)
    }

    /// Each page and node was replaced once, so keys differ.
    fn sort(&mut self) {
        if !std::mem::replace(&mut self.sorted, true) {
            self.pages.sort_by_key(|entry| entry.0);
            self.nodes.sort_by_key(|entry| entry.0);
        }
    }
}

impl Mirror {
    /// It has seen no page yet.
    pub fn new(keep: Keep) -> Mirror {
        Mirror {
            keep,
            trees: [Tree::default(), Tree::default()],
            pages: [Vec::new(), Vec::new()],
            current: None,
            past: VecDeque::new(),
            past_pages: 0,
            done: Vec::new(),
        }
    }

    /// The checkpoint that it holds; `None` while it changes.
    pub fn current(&self) -> Option<&Checkpoint> {
        self.current.as_ref()
    }

    /// Checkpoints that can be looked into, upwards.
    pub fn held(&self) -> impl Iterator<Item = SeqNum> + '_ {
        self.past.iter().map(|past| &past.checkpoint).chain(&self.current).map(|checkpoint| checkpoint.n)
    }

    /// The state at checkpoint `n`, if it is kept.
    pub fn at(&mut self, n: SeqNum) -> Option<View<'_>> {
        if self.current.is_some_and(|current| current.n == n) {
            return Some(View { mirror: self, from: self.past.len(), checkpoint: self.current.as_ref()? });
        }
        let from = self.past.iter().position(|past| past.checkpoint.n == n)?;
        self.past.range_mut(from..).for_each(Past::sort);
        Some(View { mirror: self, from, checkpoint: &self.past[from].checkpoint })
    }

    /// The service's region at checkpoint `n`, if it is kept: in a time that grows with its pages, by copying references.
    pub fn snapshot(&self, n: SeqNum) -> Option<Snapshot> {
        let from = self.past.iter().position(|past| past.checkpoint.n == n);
        let checkpoint = match from {
            Some(from) => self.past[from].checkpoint,
            None => self.current.filter(|current| current.n == n)?,
        };
        let mut pages = self.pages[RegionId::Service as usize].clone();
        // What an older checkpoint replaced lies over what a newer one did.
        for past in self.past.range(from.unwrap_or(self.past.len())..).rev() {
            for (key, content, _) in past.pages.iter().filter(|(key, ..)| key >> 40 == RegionId::Service as u64) {
                pages[*key as u32 as usize] = Some(content.clone());
            }
        }
        pages.truncate(checkpoint.regions[RegionId::Service as usize].pages as usize);
        Some(Snapshot::new(checkpoint, pages.into_iter().collect::<Option<_>>()?))
    }

    /// The tree of a region as it is now.
    pub fn tree(&self, region: RegionId) -> &Tree {
        &self.trees[region as usize]
    }

    /// A region's root as it is now.
    pub fn region_root(&self, region: RegionId) -> RegionRoot {
        let tree = self.tree(region);
        RegionRoot { pages: tree.pages(), root: tree.root() }
    }

    // ---- from execution -------------------------------------------------------------------------------------------

    /// Pages of the next checkpoint follow; regions have so many then.
    pub(super) fn begin(&mut self, pages: [u32; 2]) {
        if let Some(checkpoint) = self.current.take() {
            self.past.push_back(Past { checkpoint, pages: Vec::new(), nodes: Vec::new(), sorted: true });
            while self.past.len() > self.keep.checkpoints {
                self.drop_oldest();
            }
        }
        for ((tree, mirrored), pages) in self.trees.iter_mut().zip(&mut self.pages).zip(pages) {
            tree.grow(pages);
            mirrored.resize(pages as usize, None);
        }
    }

    /// A changed page of the next checkpoint.
    pub(super) fn set(&mut self, region: RegionId, page: PageId, content: Arc<Page>) {
        let cv = self.trees[region as usize].set(page, &content);
        let Some(old) = self.pages[region as usize][page.index()].replace(content) else { return };
        match self.past.back_mut() {
            Some(past) => {
                past.pages.push((key(region, 0, page.0), old, cv));
                past.sorted = false;
                self.past_pages += 1;
                while self.past_pages > self.keep.pages {
                    self.drop_oldest();
                }
            }
            None => self.done.push((region, old)),
        }
    }

    /// As [`Tree::refresh`].
    pub(super) fn refresh(&mut self, region: RegionId, level: usize, word: usize) -> usize {
        let Mirror { trees, past, .. } = self;
        let past = past.back_mut().filter(|_| level.is_multiple_of(Tree::FANOUT_LEVELS));
        let Some(past) = past else { return trees[region as usize].refresh(level, word, |_, _| {}) };
        past.sorted = false;
        let level_key = (level / Tree::FANOUT_LEVELS) as u8;
        trees[region as usize].refresh(level, word, |index, old| {
            past.nodes.push((key(region, level_key, index as u32), old));
        })
    }

    /// All pages of checkpoint `n` are there, and no node is stale.
    pub(super) fn finish(&mut self, n: SeqNum) -> Checkpoint {
        let regions = RegionId::BOTH.map(|id| self.region_root(id));
        *self.current.insert(Checkpoint { n, root: state_root(&regions), regions })
    }

    /// Pages that are no longer needed, for [`State::give_back`](super::State::give_back).
    pub(super) fn take_done(&mut self) -> std::vec::Drain<'_, (RegionId, Arc<Page>)> {
        self.done.drain(..)
    }

    fn drop_oldest(&mut self) {
        let Some(past) = self.past.pop_front() else { return };
        self.past_pages -= past.pages.len();
        let region = |key: u64| RegionId::BOTH[(key >> 40) as usize];
        self.done.extend(past.pages.into_iter().map(|(key, page, _)| (region(key), page)));
    }

    // ---- a transfer -----------------------------------------------------------------------------------------------

    /// From here on pages are replaced by those of another checkpoint. If that is one before which this replica's own
    /// state is kept, it goes back to that first: then only what is wrong differs. Whether it did.
    ///
    /// Execution's state is of no use any more, and will be replaced as a whole: pages do not go back to it.
    pub fn begin_transfer(&mut self, n: SeqNum) -> bool {
        let back = self.current.as_ref().is_some_and(|current| current.n == n);
        let found = self.past.iter().position(|past| past.checkpoint.n == n);
        if let Some(found) = found {
            while self.past.len() > found {
                let Some(past) = self.past.pop_back() else { break };
                self.past_pages -= past.pages.len();
                self.restore(past);
            }
        }
        while !self.past.is_empty() {
            self.drop_oldest();
        }
        self.current = None;
        back || found.is_some()
    }

    fn restore(&mut self, past: Past) {
        for (key, content, cv) in past.pages {
            let (region, page) = ((key >> 40) as usize, PageId(key as u32));
            self.trees[region].set_cv(page, cv);
            self.pages[region][page.index()] = Some(content);
        }
        self.trees.iter_mut().for_each(Tree::refresh_all);
        for (region, root) in RegionId::BOTH.into_iter().zip(&past.checkpoint.regions) {
            self.resize(region, root.pages);
        }
    }

    /// The region has so many pages in the checkpoint that is fetched. New ones are missing.
    pub fn resize(&mut self, region: RegionId, pages: u32) {
        let (tree, mirrored) = (&mut self.trees[region as usize], &mut self.pages[region as usize]);
        if pages < tree.pages() {
            tree.truncate(pages);
            tree.refresh_all();
        } else {
            tree.grow(pages);
        }
        mirrored.resize(pages as usize, None);
        if let ([Some(only)], 1) = (&mirrored[..], pages) {
            tree.set_single(only);
        }
    }

    /// A page that was fetched; `cv` is its hash. Nodes above it are stale until [`refresh_all`](Mirror::refresh_all).
    pub fn put(&mut self, region: RegionId, page: PageId, content: Arc<Page>, cv: Cv) {
        let tree = &mut self.trees[region as usize];
        if tree.pages() == 1 {
            tree.set_single(&content);
        }
        tree.set_cv(page, cv);
        self.pages[region as usize][page.index()] = Some(content);
    }

    /// Nothing here is what its hash says: all pages are missing.
    pub fn distrust(&mut self) {
        self.current = None;
        for (tree, mirrored) in self.trees.iter_mut().zip(&mut self.pages) {
            (0..tree.pages()).for_each(|page| {
                tree.set_cv(PageId(page), [0; 32]);
            });
            mirrored.fill(None);
        }
    }

    /// Computes every stale node.
    pub fn refresh_all(&mut self) {
        self.trees.iter_mut().for_each(Tree::refresh_all);
    }

    /// The transfer of checkpoint `n` is complete: all pages of it. `None` if one is missing.
    pub fn end_transfer(&mut self, n: SeqNum) -> Option<(Checkpoint, [Vec<Arc<Page>>; 2])> {
        self.refresh_all();
        let all = |pages: &Vec<Option<Arc<Page>>>| pages.iter().cloned().collect::<Option<Vec<_>>>();
        let [library, service] = &self.pages;
        let pages = [all(library)?, all(service)?];
        Some((self.finish(n), pages))
    }
}

/// The state at one checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    mirror: &'a Mirror,
    /// What the checkpoints from here on replaced lies over the current state.
    from: usize,
    checkpoint: &'a Checkpoint,
}

impl View<'_> {
    /// Number, root and regions.
    pub fn checkpoint(&self) -> &Checkpoint {
        self.checkpoint
    }

    fn pages(&self, region: RegionId) -> u32 {
        self.checkpoint.regions[region as usize].pages
    }

    /// A page; `None` if the region does not have it.
    pub fn page(&self, region: RegionId, page: u32) -> Option<&Arc<Page>> {
        if page >= self.pages(region) {
            return None;
        }
        let over = self.mirror.past.range(self.from..).find_map(|past| past.page(region, page));
        match over {
            Some((_, content, _)) => Some(content),
            None => self.mirror.pages[region as usize][page as usize].as_ref(),
        }
    }

    /// As [`Tree::group`].
    pub fn group(&self, region: RegionId, level: u8, group: u32) -> Option<Vec<Cv>> {
        let pages = self.pages(region);
        if level > Tree::group_level(pages) {
            return None;
        }
        let first = group.checked_mul(16)?;
        let nodes = (0..Tree::group_len(pages, level, group) as u32).map(|i| {
            let over = self.mirror.past.range(self.from..).find_map(|past| past.node(region, level, first + i));
            over.or_else(|| self.mirror.tree(region).node(level, first + i).copied())
        });
        nodes.collect::<Option<Vec<_>>>().filter(|nodes| !nodes.is_empty())
    }
}
