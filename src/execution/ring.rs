//! The agreed ring of large results (P4): bounded in bytes, the oldest are overwritten.
//!
//! An entry is named by its offset in everything ever written; it is still there while no more than the ring's size was
//! written from its start on. So nothing needs to be freed, and what is kept follows from the agreed order alone.

use super::config::ExecutorConfig;
use super::layout::{Field, Table};
use super::reply_buffer::ReplyBuffer;
use crate::limits::PAGE;
use crate::state::Region;

#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    table: Table,
    capacity: u64,
}

impl Ring {
    pub(super) fn new(config: &ExecutorConfig) -> Ring {
        let [_, _, table] = Table::all(config);
        Ring { table, capacity: config.reply_ring as u64 }
    }

    /// Writes `result`, over the oldest; the offset that names it.
    pub(super) fn append(self, region: &mut Region, result: &[u8]) -> u64 {
        assert!(result.len() as u64 <= self.capacity, "the ring holds the largest result");
        let start = Field::RING_HEAD.get(region);
        let mut rest = result;
        let mut at = start;
        while !rest.is_empty() {
            let (index, offset) = self.split(at);
            let (now, later) = rest.split_at(rest.len().min(PAGE - offset));
            let page = self.table.page_or_new(region, index);
            region.write(page, offset..offset + now.len()).copy_from_slice(now);
            at += now.len() as u64;
            rest = later;
        }
        Field::RING_HEAD.set(region, at);
        start
    }

    /// Appends the result of `len` bytes at `start` to `into`; false if it was overwritten.
    pub(super) fn read(self, region: &Region, start: u64, len: usize, into: &mut ReplyBuffer) -> bool {
        if Field::RING_HEAD.get(region) - start > self.capacity {
            return false;
        }
        let end = start + len as u64;
        let mut at = start;
        while at < end {
            let (index, offset) = self.split(at);
            let here = (PAGE - offset).min((end - at) as usize);
            into.push(&region.read(self.table.page(region, index))[offset..offset + here]);
            at += here as u64;
        }
        true
    }

    fn split(self, at: u64) -> (u32, usize) {
        let within = at % self.capacity;
        ((within / PAGE as u64) as u32, (within % PAGE as u64) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::OPERATION_MAX;

    #[test]
    fn p04_the_oldest_large_results_are_overwritten() {
        let config = ExecutorConfig { reply_ring: OPERATION_MAX, ..ExecutorConfig::default() };
        let mut region = Region::new(2_000);
        super::super::layout::genesis(&mut region, &config);
        let ring = Ring::new(&config);
        let results: Vec<Vec<u8>> = (0..5u8).map(|i| vec![i; 300_000 + usize::from(i)]).collect();
        let starts: Vec<u64> = results.iter().map(|r| ring.append(&mut region, r)).collect();
        let kept: Vec<bool> = (0..5)
            .map(|i| {
                let mut into = ReplyBuffer::new();
                let kept = ring.read(&region, starts[i], results[i].len(), &mut into);
                assert!(!kept || into.as_slice() == results[i]);
                kept
            })
            .collect();
        assert_eq!(kept, [false, false, true, true, true]);
    }
}
