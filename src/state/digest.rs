//! The digest of a sealed state: BLAKE3's own tree over its pages, kept and updated where pages changed (P23).
//!
//! The root of a region is `blake3::hash` of its pages, so that `b3sum` on a dump of them checks it.

use std::collections::VecDeque;
use std::sync::Arc;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::mirror::{Keep, Mirror, View};
use super::page::{Page, PageId};
use super::region::Region;
use super::{RegionId, Sealed, Shipment};
use crate::limits::PAGE;
use crate::types::{Digest, Domain, SeqNum};

/// The chaining value of a subtree: its hash, but for the root.
pub type Cv = ChainingValue;

/// A region within a root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionRoot {
    /// Pages in use.
    pub pages: u32,
    /// BLAKE3 of them.
    pub root: [u8; 32],
}

/// The digest of the state after `n`, and what it is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// The sequence number.
    pub n: SeqNum,
    /// What replicas sign and compare (P24).
    pub root: Digest,
    /// The regions, by [`RegionId`].
    pub regions: [RegionRoot; 2],
}

/// The root over both regions.
pub fn state_root(regions: &[RegionRoot; 2]) -> Digest {
    let [library, service] = regions;
    let pages = [library.pages.to_le_bytes(), service.pages.to_le_bytes()];
    Digest::of(Domain::State, &[pages.as_flattened(), &library.root, &service.root])
}

/// A region within a root, by hashing all of it.
pub(super) fn region_root(region: &Region) -> RegionRoot {
    let mut hasher = blake3::Hasher::new();
    for page in 0..region.pages() {
        hasher.update(region.read(PageId(page)));
    }
    RegionRoot { pages: region.pages(), root: *hasher.finalize().as_bytes() }
}

/// The BLAKE3 tree over the pages of one region.
///
/// Level 0 has one node per page; a node of level k covers 2^k pages, the last of a level perhaps fewer. A node without
/// a right neighbour is promoted unchanged, which is how BLAKE3 shapes an incomplete tree. All levels are kept, so that
/// sixteen nodes of level 4j are the children of one of level 4j + 4: see [`Tree::children`].
#[derive(Clone, Debug, Default)]
pub struct Tree {
    levels: Vec<Vec<Cv>>,
    /// Bits of the nodes that must be computed again, by level from 1.
    stale: Vec<Vec<u64>>,
    /// The hash of page 0 as a tree of its own: the root of a region of one page.
    single: [u8; 32],
}

impl Tree {
    /// Levels between a node and its [`children`](Tree::children): a small fan-out, so that few scattered pages do not
    /// make most of the tree differ.
    pub const FANOUT_LEVELS: usize = 4;

    /// Pages covered.
    pub fn pages(&self) -> u32 {
        self.levels.first().map_or(0, |level| level.len() as u32)
    }

    /// Level of the topmost node; it alone covers all pages.
    pub fn top(&self) -> usize {
        self.levels.len().saturating_sub(1)
    }

    /// The nodes of a level, from the left. Level 0 has the pages' own.
    pub fn level(&self, level: usize) -> &[Cv] {
        &self.levels[level]
    }

    /// The up to 16 nodes of level `level - 4` (or of level 0) below node `index` of `level`.
    pub fn children(&self, level: usize, index: usize) -> &[Cv] {
        let down = level.min(Self::FANOUT_LEVELS);
        let nodes = &self.levels[level - down];
        &nodes[index << down..((index + 1) << down).min(nodes.len())]
    }

    /// The level of the nodes right below the root, in groups of sixteen: see [`Tree::group`].
    pub fn group_level(pages: u32) -> u8 {
        (0..).find(|&level| nodes_at(pages, level) <= GROUP).unwrap_or(0)
    }

    /// How many nodes the group has in a tree over `pages` pages.
    pub fn group_len(pages: u32, level: u8, group: u32) -> usize {
        nodes_at(pages, level).saturating_sub(u64::from(group) * GROUP).min(GROUP) as usize
    }

    /// Up to sixteen neighbours that have one node above them: group `group` of the nodes that cover 16^`level` pages.
    /// `None` if there is no such group.
    pub fn group(&self, level: u8, group: u32) -> Option<&[Cv]> {
        let nodes = self.levels.get(usize::from(level) * Self::FANOUT_LEVELS)?;
        let first = usize::try_from(u64::from(group) * GROUP).ok()?;
        (first < nodes.len()).then(|| &nodes[first..(first + GROUP as usize).min(nodes.len())])
    }

    /// A node that covers 16^`level` pages, or fewer at the end.
    pub fn node(&self, level: u8, index: u32) -> Option<&Cv> {
        self.levels.get(usize::from(level) * Self::FANOUT_LEVELS)?.get(index as usize)
    }

    /// The root above `nodes`, the group right below it. `None` if there are fewer than two: a region of one page has
    /// the plain hash of that page for its root.
    pub fn root_of(nodes: &[Cv]) -> Option<[u8; 32]> {
        let mut nodes = nodes.to_vec();
        while nodes.len() > 2 {
            nodes = nodes.chunks(2).map(join).collect();
        }
        match &nodes[..] {
            [left, right] => Some(*merge_subtrees_root(left, right, Mode::Hash).as_bytes()),
            _ => None,
        }
    }

    /// The node of `level` above `nodes`, what [`children`](Tree::children) gave: the check of a transferred part of the
    /// tree. `None` for an empty slice.
    pub fn parent_of(nodes: &[Cv]) -> Option<Cv> {
        let mut nodes = nodes.to_vec();
        while nodes.len() > 1 {
            nodes = nodes.chunks(2).map(join).collect();
        }
        nodes.first().copied()
    }

    /// The hash of the whole: `blake3::hash` of the pages. Everything stale must have been computed.
    pub fn root(&self) -> [u8; 32] {
        match self.top() {
            0 => self.single,
            top => {
                let [left, right] = self.levels[top - 1][..] else { unreachable!("two nodes below the topmost") };
                *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
            }
        }
    }

    /// Pages that differ, the extra ones of the longer tree included, at a cost that grows with their number.
    pub fn differing(&self, other: &Tree) -> Vec<PageId> {
        let (short, long) = if self.pages() <= other.pages() { (self, other) } else { (other, self) };
        let mut pages = Vec::new();
        if short.pages() > 0 {
            short.differing_below(long, short.top(), 0, &mut pages);
        }
        pages.extend((short.pages()..long.pages()).map(PageId));
        pages
    }

    fn differing_below(&self, other: &Tree, level: usize, index: usize, pages: &mut Vec<PageId>) {
        // A node that covers fewer pages here than there differs anyway: then its children decide.
        if self.levels[level][index] == other.levels[level][index] {
            return;
        }
        if level == 0 {
            pages.push(PageId(index as u32));
            return;
        }
        for child in [2 * index, 2 * index + 1] {
            if child < self.levels[level - 1].len() {
                self.differing_below(other, level - 1, child, pages);
            }
        }
    }

    /// Makes room for `pages` pages. New pages must all be [`set`](Tree::set); until then their nodes are zeroes, which
    /// no hash is.
    pub(super) fn grow(&mut self, pages: u32) {
        assert!(pages >= self.pages(), "a region does not shrink from one checkpoint to the next");
        let mut nodes = pages as usize;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
                self.stale.push(Vec::new());
            }
            self.levels[level].resize(nodes, [0; 32]);
            self.stale[level].resize(nodes.div_ceil(64), 0);
            if nodes <= 1 {
                break;
            }
            nodes = nodes.div_ceil(2);
        }
    }

    /// Drops the pages from `pages` on; at least one stays. Nothing may be stale.
    pub(super) fn truncate(&mut self, pages: u32) {
        assert!(pages > 0, "a region has its directory");
        if pages >= self.pages() {
            return;
        }
        let mut nodes = pages as usize;
        for level in 0.. {
            self.levels[level].truncate(nodes);
            self.stale[level].truncate(nodes.div_ceil(64));
            if nodes == 1 {
                self.levels.truncate(level + 1);
                self.stale.truncate(level + 1);
                break;
            }
            nodes = nodes.div_ceil(2);
        }
        self.mark(PageId(pages - 1));
    }

    /// Hashes a page, and marks the nodes above it. The hash before.
    pub(super) fn set(&mut self, page: PageId, content: &Page) -> Cv {
        if self.levels.len() == 1 {
            self.single = *blake3::hash(content.bytes()).as_bytes();
        }
        self.set_cv(page, page_cv(page, content))
    }

    /// As [`set`](Tree::set), the hash being known; not enough for a region of one page.
    pub(super) fn set_cv(&mut self, page: PageId, cv: Cv) -> Cv {
        let old = std::mem::replace(&mut self.levels[0][page.index()], cv);
        self.mark(page);
        old
    }

    /// The only page of a region.
    pub(super) fn set_single(&mut self, content: &Page) {
        self.single = *blake3::hash(content.bytes()).as_bytes();
    }

    fn mark(&mut self, page: PageId) {
        let mut index = page.index();
        for stale in &mut self.stale[1..] {
            index /= 2;
            let (word, bit) = (&mut stale[index / 64], 1 << (index % 64));
            if *word & bit != 0 {
                break; // And so is everything above.
            }
            *word |= bit;
        }
    }

    /// Words of stale bits of a level.
    pub(super) fn words(&self, level: usize) -> usize {
        self.stale[level].len()
    }

    /// Computes everything that is stale.
    pub(super) fn refresh_all(&mut self) {
        for level in 1..self.levels.len() {
            for word in 0..self.stale[level].len() {
                self.refresh(level, word, |_, _| {});
            }
        }
    }

    /// Computes what is stale in a word of `level`; how many nodes those were. `replaced` gets the nodes as they were.
    pub(super) fn refresh(&mut self, level: usize, word: usize, mut replaced: impl FnMut(usize, Cv)) -> usize {
        let mut bits = std::mem::take(&mut self.stale[level][word]);
        let count = bits.count_ones() as usize;
        let (below, above) = self.levels.split_at_mut(level);
        let (below, nodes) = (&below[level - 1], &mut above[0]);
        while bits != 0 {
            let index = word * 64 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let node = join(&below[2 * index..(2 * index + 2).min(below.len())]);
            replaced(index, std::mem::replace(&mut nodes[index], node));
        }
        count
    }
}

/// Nodes with one node above them.
const GROUP: u64 = 1 << Tree::FANOUT_LEVELS;

/// Nodes that cover 16^`level` pages each.
fn nodes_at(pages: u32, level: u8) -> u64 {
    u64::from(pages).div_ceil(1 << (4 * u32::from(level.min(8))))
}

/// The hash of a page at its place.
pub fn page_cv(page: PageId, content: &Page) -> Cv {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(u64::from(page.0) * PAGE as u64);
    hasher.update(content.bytes()).finalize_non_root()
}

/// The node above one or two.
fn join(nodes: &[Cv]) -> Cv {
    match nodes {
        [left, right] => merge_subtrees_non_root(left, right, Mode::Hash),
        [alone] => *alone,
        _ => unreachable!("a node has one or two children"),
    }
}

/// Pages whose hashes (level 0 of a [`Tree`]) differ; pages that only one side has differ too. For E011, where the other
/// side is a list received from a peer.
pub fn differing_pages(ours: &[Cv], theirs: &[Cv]) -> Vec<PageId> {
    let both = ours.len().min(theirs.len());
    (0..ours.len().max(theirs.len())).filter(|&i| i >= both || ours[i] != theirs[i]).map(|i| PageId(i as u32)).collect()
}

/// What a [`Digester::step`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Nothing to do until more pages arrive.
    Idle,
    /// There is more to do.
    Working,
    /// A checkpoint's digest is known. There may be more to do.
    Done(Checkpoint),
}

/// Digests sealed states one after the other, in slices of bounded work, and keeps the last of them (see [`Mirror`]).
/// Owned by the checkpoint role.
#[derive(Debug)]
pub struct Digester {
    mirror: Mirror,
    jobs: VecDeque<Job>,
}

/// One sealed state: its pages, then the nodes above them from the left and upwards.
#[derive(Debug)]
struct Job {
    sealed: Sealed,
    pages: VecDeque<(RegionId, PageId, Arc<Page>)>,
    complete: bool,
    /// Region, level and word of stale bits to look at next.
    cursor: (usize, usize, usize),
    begun: bool,
}

/// Work of a step is counted in pages; so many nodes, or so many words of bits looked at, cost about as much as one.
const NODES_PER_PAGE: usize = 16;

impl Digester {
    /// It has seen no page yet. Of checkpoints before the last it keeps what `keep` says.
    pub fn new(keep: Keep) -> Digester {
        Digester { mirror: Mirror::new(keep), jobs: VecDeque::new() }
    }

    /// The last checkpoint that was done, and those kept before it.
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// As [`mirror`](Digester::mirror), for a transfer into it.
    ///
    /// # Panics
    /// If a sealed state waits to be digested.
    pub fn mirror_mut(&mut self) -> &mut Mirror {
        assert!(self.jobs.is_empty(), "what was sealed is digested first");
        &mut self.mirror
    }

    /// As [`Mirror::at`].
    pub fn at(&mut self, n: SeqNum) -> Option<View<'_>> {
        self.mirror.at(n)
    }

    /// The tree of a region, as of the last checkpoint that was done (while [`step`](Digester::step) is working, of no
    /// particular one).
    pub fn tree(&self, region: RegionId) -> &Tree {
        self.mirror.tree(region)
    }

    /// A checkpoint was sealed; its shipments follow.
    pub fn begin(&mut self, sealed: Sealed) {
        if let Some(last) = self.jobs.back() {
            assert!(last.sealed.n < sealed.n, "checkpoints are numbered upwards");
        }
        self.jobs.push_back(Job { sealed, pages: VecDeque::new(), complete: false, cursor: (0, 1, 0), begun: false });
    }

    /// Pages of a checkpoint that was begun.
    pub fn accept(&mut self, shipment: Shipment) {
        let job = self.jobs.iter_mut().find(|job| job.sealed.n == shipment.n).expect("the checkpoint was begun");
        assert!(!job.complete, "nothing follows the last shipment of a checkpoint");
        job.pages.extend(shipment.pages);
        job.complete = shipment.last;
    }

    /// Whether [`step`](Digester::step) has anything to do.
    pub fn is_idle(&self) -> bool {
        self.jobs.front().is_none_or(|job| job.pages.is_empty() && !job.complete)
    }

    /// Whether everything that was sealed is digested.
    pub fn is_done(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Hashes up to about `budget` pages (about 1.3 µs each).
    pub fn step(&mut self, budget: usize) -> Progress {
        let Digester { mirror, jobs } = self;
        let Some(job) = jobs.front_mut() else { return Progress::Idle };
        if !job.begun {
            job.begun = true;
            mirror.begin(job.sealed.pages);
        }
        let mut left = budget.max(1) * NODES_PER_PAGE;
        while left >= NODES_PER_PAGE {
            let Some((region, page, content)) = job.pages.pop_front() else { break };
            mirror.set(region, page, content);
            left -= NODES_PER_PAGE;
        }
        if !job.pages.is_empty() {
            return Progress::Working;
        }
        if !job.complete {
            return Progress::Idle;
        }
        let (mut region, mut level, mut word) = job.cursor;
        while let Some(&id) = RegionId::BOTH.get(region) {
            let tree = mirror.tree(id);
            if level > tree.top() {
                (region, level, word) = (region + 1, 1, 0);
            } else if word == tree.words(level) {
                (level, word) = (level + 1, 0);
            } else {
                if left == 0 {
                    job.cursor = (region, level, word);
                    return Progress::Working;
                }
                let nodes = mirror.refresh(id, level, word);
                word += 1;
                left = left.saturating_sub(nodes.max(1));
            }
        }
        let n = job.sealed.n;
        jobs.pop_front();
        Progress::Done(mirror.finish(n))
    }

    /// Pages that it is done with, for [`State::give_back`](super::State::give_back).
    pub fn take_done(&mut self) -> std::vec::Drain<'_, (RegionId, Arc<Page>)> {
        self.mirror.take_done()
    }
}
