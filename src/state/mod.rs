//! The replicated state: paged memory in two regions, copy-on-write seals, an incremental BLAKE3 tree, and the typed
//! helpers that services keep their data in.
//!
//! ```text
//! execution role                                        checkpoint role
//! State ── seal(n) ──► Sealed ────────────────────────► Digester::begin
//!       ── ship(budget) ──► Shipment (shared pages) ──► Digester::accept, step(budget) ──► Checkpoint { root, .. }
//!       ◄── give_back ─────────────────────────────────  Digester::take_done
//! ```
//! Snapshots ([`Region::take_snapshot`]) are part of what is sealed. A service reads the region as it was then through
//! [`Past`], with the same helpers ([`Pages`]).
//!
//! The roles share nothing but the reference-counted pages in a [`Shipment`]; whoever joins them decides how many pages
//! a turn ships and hashes, so that no request waits behind a whole checkpoint.

#![forbid(unsafe_code)]

mod alloc;
mod audit;
mod cell;
mod digest;
mod extent;
mod heap;
mod log;
mod map;
mod mirror;
mod page;
mod past;
mod region;
mod snapshot;
mod undo;

use std::collections::VecDeque;
use std::sync::Arc;

pub use audit::{Audit, AuditReport};
pub use cell::{Cell, Fixed};
pub use digest::{Checkpoint, Cv, Digester, Progress, RegionRoot, Tree, differing_pages, page_cv, state_root};
pub use extent::Extent;
pub use heap::{BlobId, Heap};
pub use log::{Log, LogId};
pub use map::{Iter, KEY_MAX, Map, VALUE_MAX, Value};
pub use mirror::{Keep, Mirror, View};
pub use page::{Full, Page, PageId};
pub use past::{Pages, Past, SnapshotId, Taken};
pub use region::{PageMut, Region};
pub use snapshot::Snapshot;

pub use crate::types::RegionId;
use crate::types::{Digest, SeqNum};

/// The state of one replica, owned by its execution role.
#[derive(Debug)]
pub struct State {
    /// The library's region.
    pub library: Region,
    /// The service's region.
    pub service: Region,
    /// What was sealed and not yet shipped, oldest first.
    pending: VecDeque<Pending>,
}

#[derive(Debug)]
struct Pending {
    n: SeqNum,
    left: [usize; 2],
}

/// A checkpoint in the making: what the digest role must know of it besides its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// The sequence number after which the state was sealed.
    pub n: SeqNum,
    /// Pages in use, by region.
    pub pages: [u32; 2],
    /// Pages that changed since the seal before, by region: what will be shipped.
    pub changed: [usize; 2],
}

/// Some changed pages of a sealed state.
#[derive(Debug)]
pub struct Shipment {
    /// The checkpoint that they belong to.
    pub n: SeqNum,
    /// The pages, in no particular order; over all shipments of a checkpoint each occurs once.
    pub pages: Vec<(RegionId, PageId, Arc<Page>)>,
    /// Nothing more belongs to this checkpoint.
    pub last: bool,
}

impl State {
    /// Two empty regions that may grow to so many pages.
    pub fn new(library_limit: u32, service_limit: u32) -> State {
        State { library: Region::new(library_limit), service: Region::new(service_limit), pending: VecDeque::new() }
    }

    /// One region.
    pub fn region(&self, id: RegionId) -> &Region {
        match id {
            RegionId::Library => &self.library,
            RegionId::Service => &self.service,
        }
    }

    /// One region, to be changed.
    pub fn region_mut(&mut self, id: RegionId) -> &mut Region {
        match id {
            RegionId::Library => &mut self.library,
            RegionId::Service => &mut self.service,
        }
    }

    /// From here on changes can be rolled back; see [`Region::begin_tentative`].
    pub fn begin_tentative(&mut self) {
        self.library.begin_tentative();
        self.service.begin_tentative();
    }

    /// The tentative batch stays.
    pub fn commit(&mut self) {
        self.library.commit();
        self.service.commit();
    }

    /// Undoes the tentative batch in both regions (P17).
    pub fn rollback(&mut self) {
        self.library.rollback();
        self.service.rollback();
    }

    /// Seals the state as checkpoint `n` in constant time (P22). Later writes do not reach what was sealed: the first to
    /// each page copies it.
    ///
    /// # Panics
    /// If a batch is tentative: what is sealed is never rolled back.
    pub fn seal(&mut self, n: SeqNum) -> Sealed {
        if let Some(last) = self.pending.back() {
            assert!(last.n < n, "checkpoints are numbered upwards");
        }
        let changed = [self.library.seal(), self.service.seal()];
        self.pending.push_back(Pending { n, left: changed });
        Sealed { n, pages: [self.library.pages(), self.service.pages()], changed }
    }

    /// Up to `budget` pages of the oldest checkpoint that is not wholly shipped; `None` if there is none.
    pub fn ship(&mut self, budget: usize) -> Option<Shipment> {
        let pending = self.pending.front_mut()?;
        let mut pages = Vec::with_capacity(budget.min(pending.left.iter().sum()));
        for id in RegionId::BOTH {
            let region = match id {
                RegionId::Library => &mut self.library,
                RegionId::Service => &mut self.service,
            };
            let left = &mut pending.left[id as usize];
            while *left > 0 && pages.len() < budget {
                let (page, content) = region.next_sealed().expect("as many pages as the seal counted");
                pages.push((id, page, content));
                *left -= 1;
            }
        }
        let n = pending.n;
        let last = pending.left == [0, 0];
        if last {
            self.pending.pop_front();
        }
        Some(Shipment { n, pages, last })
    }

    /// Replaces everything by the pages of a checkpoint that was fetched from others (P38). What was sealed or lent
    /// before is forgotten: pages of it must not be given back any more. False, and nothing happens, if it is larger
    /// than this state may grow, or a region has not even its directory.
    pub fn install(&mut self, [library, service]: [Vec<Arc<Page>>; 2]) -> bool {
        let fits = |region: &Region, pages: &[Arc<Page>]| (1..=region.limit() as usize).contains(&pages.len());
        if !fits(&self.library, &library) || !fits(&self.service, &service) {
            return false;
        }
        self.pending.clear();
        self.library.install(library);
        self.service.install(service);
        true
    }

    /// Whether a sealed state still has pages to be shipped.
    pub fn has_unshipped(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Pages that the digest role is done with. It must return every page that it was shipped.
    pub fn give_back(&mut self, pages: impl IntoIterator<Item = (RegionId, Arc<Page>)>) {
        for (id, page) in pages {
            self.region_mut(id).give_back(page);
        }
    }

    /// Pages that sealed content holds beyond the current state. It grows while checkpoints are written over faster than
    /// they are digested: whoever joins the roles waits with the next batch above a bound of his.
    pub fn lent(&self) -> usize {
        self.library.lent() + self.service.lent()
    }

    /// The root, by hashing everything: what the [`Digester`] computes incrementally. For genesis, tests and repair.
    pub fn full_root(&self) -> Digest {
        digest::state_root(&RegionId::BOTH.map(|id| digest::region_root(self.region(id))))
    }
}

#[cfg(test)]
mod tests;
