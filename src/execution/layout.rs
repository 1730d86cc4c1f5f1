//! Where things lie in the library's region.
//!
//! ```text
//! page 0            directory and free pages of the region (`state`)
//! page 1            header
//! pages 2..         page tables (u32 page numbers) of the session records, client records, and the reply store's entries
//!                   and content
//! then, as needed   pages of records (256-byte sessions, 32-byte clients), of reply slots, of the reply store
//!
//! header   0 magic "castra-2" | 8 checkpoint_interval | 16 sessions_max | 24 sessions_per_client | 32 clients_max
//!          40 window_max | 48 session_idle ns | 56 reply_store
//!          64 executed n | 72 agreed time | 80 where the next large result goes: segment plus one u32, offset u32
//!          88 session records used u32, first free u32 | 96 client records used u32, first free u32
//! ```
//! Nothing in it tells replicas apart: no view, no tentative flag, no replica id, no local time (P4).

use super::config::ExecutorConfig;
use super::reply_store;
use crate::limits::PAGE;
use crate::state::{PageId, Region};

const HEADER: PageId = PageId(1);
const MAGIC: u64 = u64::from_le_bytes(*b"castra-2");

/// Bytes of a session record.
pub(super) const SESSION: usize = 256;
/// Bytes of a client record.
pub(super) const CLIENT: usize = 32;
/// Bytes of a reply slot.
pub(super) const SLOT: usize = 24 + crate::limits::SMALL_RESULT_MAX;
/// Reply slots in a page.
pub(super) const SLOTS_PER_PAGE: u64 = (PAGE / SLOT) as u64;

const ENTRIES: usize = PAGE / 4;

/// The most pages that the region can come to hold.
pub(super) fn pages_max(config: &ExecutorConfig) -> u64 {
    let sessions = u64::from(config.sessions_max);
    let slots = if config.window_max == 1 { 0 } else { sessions * config.window_max.div_ceil(SLOTS_PER_PAGE) };
    let tables = Table::all(config);
    let own = tables.iter().map(|t| u64::from(t.pages) + u64::from(t.entries)).sum::<u64>();
    2 + own + slots
}

pub(super) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(super) fn put_u64(region: &mut Region, page: PageId, at: usize, value: u64) {
    region.write(page, at..at + 8).copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u32(region: &mut Region, page: PageId, at: usize, value: u32) {
    region.write(page, at..at + 4).copy_from_slice(&value.to_le_bytes());
}

/// A number in the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Field(usize);

impl Field {
    /// The last executed batch.
    pub(super) const EXECUTED: Field = Field(64);
    /// The agreed time, in nanoseconds (P19).
    pub(super) const TIME: Field = Field(72);
    /// Where the last large result ended: its segment of the reply store plus one, and, 32 bits up, the offset in that.
    pub(super) const REPLIES_AT: Field = Field(80);

    pub(super) fn get(self, region: &Region) -> u64 {
        get_u64(region.read(HEADER), self.0)
    }

    pub(super) fn set(self, region: &mut Region, value: u64) {
        put_u64(region, HEADER, self.0, value);
    }
}

fn agreed(config: &ExecutorConfig) -> [u64; 8] {
    [
        MAGIC,
        config.checkpoint_interval,
        config.sessions_max.into(),
        config.sessions_per_client.into(),
        config.clients_max.into(),
        config.window_max,
        u64::try_from(config.session_idle.as_nanos()).expect("checked by validate"),
        config.reply_store as u64,
    ]
}

/// Lays out the header and the page tables in a fresh region.
pub(super) fn genesis(region: &mut Region, config: &ExecutorConfig) {
    let tables: u32 = Table::all(config).iter().map(|t| t.pages).sum();
    let first = region.grow(1 + tables).expect("the region has room for what its configuration asks");
    assert_eq!(first, HEADER, "the region is fresh");
    for (i, value) in agreed(config).into_iter().enumerate() {
        put_u64(region, HEADER, 8 * i, value);
    }
}

/// Whether the region was laid out under the same agreed configuration.
pub(super) fn is_laid_out_for(region: &Region, config: &ExecutorConfig) -> bool {
    region.pages() > HEADER.0
        && agreed(config).into_iter().enumerate().all(|(i, value)| get_u64(region.read(HEADER), 8 * i) == value)
}

/// A vector of pages, allocated as they are first used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    first: PageId,
    pages: u32,
    entries: u32,
}

impl Table {
    /// The tables of session records, client records, and the reply store's entries and content.
    pub(super) fn all(config: &ExecutorConfig) -> [Table; 4] {
        let sessions = config.sessions_max.div_ceil((PAGE / SESSION) as u32);
        let clients = config.clients_max.div_ceil((PAGE / CLIENT) as u32);
        let [entries, content] = reply_store::table_entries(config.reply_store);
        let mut next = HEADER.0 + 1;
        [sessions, clients, entries, content].map(|entries| {
            let table = Table { first: PageId(next), pages: entries.div_ceil(ENTRIES as u32), entries };
            next += table.pages;
            table
        })
    }

    fn place(self, index: u32) -> (PageId, usize) {
        assert!(index < self.entries, "an index within the configured bounds");
        (PageId(self.first.0 + index / ENTRIES as u32), index as usize % ENTRIES * 4)
    }

    /// A page, if it was allocated.
    pub(super) fn get(self, region: &Region, index: u32) -> Option<PageId> {
        let (page, at) = self.place(index);
        let found = PageId(get_u32(region.read(page), at));
        (found != PageId::NONE).then_some(found)
    }

    /// A page that was allocated before.
    pub(super) fn page(self, region: &Region, index: u32) -> PageId {
        self.get(region, index).expect("only pages that were allocated are asked for")
    }

    /// A page, allocated if it was not.
    pub(super) fn page_or_new(self, region: &mut Region, index: u32) -> PageId {
        if let Some(found) = self.get(region, index) {
            return found;
        }
        let (page, at) = self.place(index);
        let new = region.allocate_zeroed().expect("the configuration bounds the region");
        put_u32(region, page, at, new.0);
        new
    }
}

/// Records of one size in the pages of a table; those given back are used again, the last first.
///
/// A free record holds the number of the next free one, plus one, in its first four bytes; the rest is zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Records {
    table: Table,
    size: usize,
    max: u32,
    /// In the header: records ever used u32, first free record plus one u32.
    counters: usize,
}

impl Records {
    pub(super) fn sessions(config: &ExecutorConfig) -> Records {
        let [table, ..] = Table::all(config);
        Records { table, size: SESSION, max: config.sessions_max, counters: 88 }
    }

    pub(super) fn clients(config: &ExecutorConfig) -> Records {
        let [_, table, ..] = Table::all(config);
        Records { table, size: CLIENT, max: config.clients_max, counters: 96 }
    }

    /// Records ever used: all numbers are below.
    pub(super) fn used(self, region: &Region) -> u32 {
        get_u32(region.read(HEADER), self.counters)
    }

    fn per_page(self) -> u32 {
        (PAGE / self.size) as u32
    }

    /// Where a record lies that was allocated before.
    pub(super) fn place(self, region: &Region, record: u32) -> (PageId, usize) {
        let page = self.table.page(region, record / self.per_page());
        (page, (record % self.per_page()) as usize * self.size)
    }

    pub(super) fn read(self, region: &Region, record: u32) -> &[u8] {
        let (page, at) = self.place(region, record);
        &region.read(page)[at..at + self.size]
    }

    /// A record for new content; `None` if all are in use.
    pub(super) fn allocate(self, region: &mut Region) -> Option<u32> {
        let free = get_u32(region.read(HEADER), self.counters + 4);
        if free != 0 {
            let record = free - 1;
            let next = get_u32(self.read(region, record), 0);
            put_u32(region, HEADER, self.counters + 4, next);
            return Some(record);
        }
        let record = self.used(region);
        if record == self.max {
            return None;
        }
        put_u32(region, HEADER, self.counters, record + 1);
        self.table.page_or_new(region, record / self.per_page());
        Some(record)
    }

    /// Gives a record back.
    pub(super) fn release(self, region: &mut Region, record: u32) {
        let next = get_u32(region.read(HEADER), self.counters + 4);
        let (page, at) = self.place(region, record);
        let bytes = region.write(page, at..at + self.size);
        bytes.fill(0);
        bytes[..4].copy_from_slice(&next.to_le_bytes());
        put_u32(region, HEADER, self.counters + 4, record + 1);
    }
}
