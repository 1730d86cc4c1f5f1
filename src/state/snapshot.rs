//! The service's state at one checkpoint, to be looked at on any thread while execution goes on.

use std::sync::Arc;

use super::digest::{Checkpoint, region_root};
use super::page::Page;
use super::region::Region;
use crate::types::RegionId;

/// See the module. It shares the pages with the state: taking it copies references, and a page costs memory of its own
/// only once the state has written over it and forgotten that checkpoint.
#[derive(Debug)]
pub struct Snapshot {
    checkpoint: Checkpoint,
    service: Region,
}

impl Snapshot {
    /// Of a checkpoint and all pages of the service's region there.
    pub(super) fn new(checkpoint: Checkpoint, pages: Vec<Arc<Page>>) -> Snapshot {
        Snapshot { checkpoint, service: Region::of(pages) }
    }

    /// Number, root and regions.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The service's region.
    pub fn service(&self) -> &Region {
        &self.service
    }

    /// Whether the pages still are those that were digested: hashes them all. If not, memory has changed by itself.
    pub fn is_intact(&self) -> bool {
        region_root(&self.service) == self.checkpoint.regions[RegionId::Service as usize]
    }
}
