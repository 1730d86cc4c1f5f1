//! One page: the unit of copy-on-write, of hashing and of transfer.

use std::fmt;
use std::sync::Arc;

use crate::limits::PAGE;

/// Number of a page within its region. Page 0 is the region's directory (see [`super::Region`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PageId(pub u32);

impl PageId {
    /// "No page": page 0 is the directory, so no link can point at it.
    pub const NONE: PageId = PageId(0);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// A state page. Aligned to a cache line, not to its size: behind the counters of its `Arc` a page aligned to 4 KiB
/// would take 8 KiB.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Page(pub(crate) [u8; PAGE]);

impl Page {
    /// A page of zeroes.
    pub fn zeroed() -> Arc<Page> {
        Arc::new(Page([0; PAGE]))
    }

    /// The page that begins with `bytes`, zeroes after them. `None` if they are more than a page.
    pub fn from_start(bytes: &[u8]) -> Option<Arc<Page>> {
        let mut page = Page([0; PAGE]);
        page.0.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Arc::new(page))
    }

    /// Its content.
    pub fn bytes(&self) -> &[u8; PAGE] {
        &self.0
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.0.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
        write!(f, "Page({used} bytes before trailing zeroes)")
    }
}

/// The region has reached its configured limit. The operation that says so has changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the state region is full")]
pub struct Full;
