//! State transfer (P38): a certified checkpoint of others, of which only what differs is moved.
//!
//! ```text
//! behind                                     any peer that holds checkpoint n
//! FETCH-STATE(n)  ─────────────────────────► header: pages and root of both regions; they hash to the certified root
//! FETCH-STATE(n, groups of tree nodes) ────► nodes; each group hashes to the node above it
//! FETCH-STATE(n, pages) ───────────────────► pages; each hashes to its node
//! ```
//! Nothing that arrives is believed: every part is checked against what was checked before it, from the root that q
//! replicas signed down to the page. Several peers are asked at once, each for a few parts at a time, so that a
//! transfer neither fills its receiver's socket buffer nor waits for one slow peer. A part that does not check is
//! counted by name for the peer that sent it, which is not asked again during this transfer.
//!
//! Both machines are pure: [`Fetch`] on the side that is behind, [`Serve`] on the other.

mod fetch;
mod serve;
#[cfg(test)]
mod tests;

pub use fetch::{Fetch, FetchStats, Found};
pub use serve::Serve;

use crate::types::{RegionId, SeqNum};

/// What is wrong in the state of a replica that diverged (P25).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Divergence {
    /// The checkpoint at which its root was not the certified one.
    pub n: SeqNum,
    /// Its own state was compared as of that checkpoint. Otherwise as of a later one: then pages count too that were
    /// only changed in between.
    pub exact: bool,
    /// Pages that differ, those that only one side has included.
    pub count: u64,
    /// The first of them.
    pub pages: Vec<(RegionId, u32)>,
    /// The certified state has taken their place.
    pub healed: bool,
}

impl Divergence {
    /// Pages that are named; the others are only counted.
    pub const PAGES_MAX: usize = 64;

    fn note(&mut self, region: RegionId, page: u32) {
        self.count += 1;
        if self.pages.len() < Self::PAGES_MAX {
            self.pages.push((region, page));
        }
    }
}
