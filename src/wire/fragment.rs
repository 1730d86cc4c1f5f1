//! Messages larger than a datagram.
//!
//! The sender cuts the whole datagram that it would have sent, header and proof included, into `count` pieces of
//! `ceil(total / count)` bytes (the last one may be shorter). Each piece is authenticated by itself, so that nobody
//! else can spoil a reassembly; what comes out is opened like any datagram.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::header::{FRAGMENT_HEADER, HEADER, MAC};
use super::{FragmentHeader, Malformed};
use crate::limits;
use crate::types::Time;

/// Bytes that a fragment adds to its piece.
pub const OVERHEAD: usize = HEADER + FRAGMENT_HEADER + MAC;

/// A datagram above this is refused: the largest message in the largest head.
pub const TOTAL_MAX: usize = limits::MESSAGE_MAX + 256;

const _: () = assert!(limits::FRAGMENTS_MAX * (limits::DATAGRAM_MIN - OVERHEAD) >= TOTAL_MAX);
const _: () = assert!(limits::FRAGMENTS_MAX <= u16::MAX as usize);

/// How a datagram of `total` bytes is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentPlan {
    total: usize,
    count: usize,
}

impl FragmentPlan {
    /// For datagrams of at most `datagram_max` bytes. Panics if that is below `DATAGRAM_MIN` or `total` above what a
    /// message can be.
    pub fn new(total: usize, datagram_max: usize) -> FragmentPlan {
        assert!((limits::DATAGRAM_MIN..=limits::DATAGRAM_MAX).contains(&datagram_max), "datagram size {datagram_max}");
        assert!((1..=TOTAL_MAX).contains(&total), "a message is at most MESSAGE_MAX: {total}");
        let count = total.div_ceil(datagram_max - OVERHEAD);
        // Equal pieces may need fewer than that.
        let count = total.div_ceil(total.div_ceil(count));
        FragmentPlan { total, count }
    }

    fn received(header: &FragmentHeader) -> Result<FragmentPlan, Malformed> {
        let (total, count) = (header.total as usize, usize::from(header.count));
        if !(1..=TOTAL_MAX).contains(&total) || !(1..=limits::FRAGMENTS_MAX).contains(&count) || count > total {
            return Err(Malformed::OutOfBounds);
        }
        let plan = FragmentPlan { total, count };
        if (count - 1) * plan.piece() >= total || usize::from(header.index) >= count {
            return Err(Malformed::Inconsistent);
        }
        Ok(plan)
    }

    fn piece(self) -> usize {
        self.total.div_ceil(self.count)
    }

    /// Number of pieces.
    pub fn count(self) -> usize {
        self.count
    }

    /// Where piece `index` lies in the whole.
    pub fn range(self, index: usize) -> Range<usize> {
        let start = index * self.piece();
        start..(start + self.piece()).min(self.total)
    }

    /// The header of piece `index`.
    pub fn header(self, message: u64, index: usize) -> FragmentHeader {
        FragmentHeader { message, index: index as u16, count: self.count as u16, total: self.total as u32 }
    }
}

/// What came of a fragment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Assembled {
    /// More are missing, or it was known.
    Partial,
    /// The whole datagram.
    Complete(Bytes),
}

/// The unfinished messages of one sender, within bounds of its own (P21). Feed it authentic fragments only.
#[derive(Debug)]
pub struct Reassembler {
    limits: ReassemblyLimits,
    partial: BTreeMap<u64, Partial>,
    bytes: usize,
    /// The highest message completed: older retransmitted pieces must not start again what is done.
    completed: Completed,
}

/// Bounds of one sender's unfinished messages.
#[derive(Clone, Copy, Debug)]
pub struct ReassemblyLimits {
    /// Bytes of all buffers.
    pub bytes_max: usize,
    /// Messages.
    pub entries_max: usize,
    /// An unfinished message is dropped this long after its latest piece.
    pub timeout: Duration,
}

impl Default for ReassemblyLimits {
    fn default() -> ReassemblyLimits {
        ReassemblyLimits { bytes_max: 4 * TOTAL_MAX, entries_max: 64, timeout: Duration::from_millis(500) }
    }
}

#[derive(Debug)]
struct Partial {
    plan: FragmentPlan,
    buffer: Vec<u8>,
    have: Vec<u64>,
    missing: usize,
    touched: Time,
}

/// The last few completed message numbers.
#[derive(Debug, Default)]
struct Completed {
    recent: std::collections::VecDeque<u64>,
}

impl Completed {
    const KEPT: usize = 64;

    fn insert(&mut self, message: u64) {
        if self.recent.len() == Self::KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(message);
    }

    fn contains(&self, message: u64) -> bool {
        self.recent.contains(&message)
    }
}

impl Reassembler {
    /// Nothing begun.
    pub fn new(limits: ReassemblyLimits) -> Reassembler {
        assert!(limits.bytes_max >= TOTAL_MAX && limits.entries_max >= 1, "one message of any size must fit");
        Reassembler { limits, partial: BTreeMap::new(), bytes: 0, completed: Completed::default() }
    }

    /// Takes a piece. To make room for a new message the oldest unfinished ones go.
    ///
    /// # Errors
    /// [`Malformed`] if the header contradicts itself, the piece, or earlier pieces of the message.
    pub fn insert(&mut self, now: Time, header: FragmentHeader, piece: &[u8]) -> Result<Assembled, Malformed> {
        let plan = FragmentPlan::received(&header)?;
        let index = usize::from(header.index);
        if piece.len() != plan.range(index).len() {
            return Err(Malformed::Inconsistent);
        }
        if self.completed.contains(header.message) {
            return Ok(Assembled::Partial);
        }
        if !self.partial.contains_key(&header.message) {
            self.expire(now);
            self.make_room(plan.total);
            self.bytes += plan.total;
            self.partial.insert(header.message, Partial::new(plan));
        }
        let partial = self.partial.get_mut(&header.message).expect("inserted above");
        if partial.plan != plan {
            return Err(Malformed::Inconsistent);
        }
        partial.touched = now;
        if !partial.insert(index, piece) || partial.missing > 0 {
            return Ok(Assembled::Partial);
        }
        let whole = self.remove(header.message).expect("just completed");
        self.completed.insert(header.message);
        Ok(Assembled::Complete(Bytes::from(whole.buffer)))
    }

    /// Drops what has timed out; how many messages.
    pub fn expire(&mut self, now: Time) -> usize {
        let due: Vec<u64> = self
            .partial
            .iter()
            .filter(|(_, p)| now.since(p.touched) >= self.limits.timeout)
            .map(|(&message, _)| message)
            .collect();
        for message in &due {
            self.remove(*message);
        }
        due.len()
    }

    /// Bytes of buffers held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Unfinished messages.
    pub fn len(&self) -> usize {
        self.partial.len()
    }

    /// Whether nothing is unfinished.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }

    /// Drops the oldest unfinished message. False if there is none.
    pub fn evict_oldest(&mut self) -> bool {
        // Message numbers rise with time at their sender: the smallest is the oldest.
        self.partial.keys().next().copied().is_some_and(|oldest| self.remove(oldest).is_some())
    }

    fn make_room(&mut self, total: usize) {
        while self.partial.len() >= self.limits.entries_max || self.bytes + total > self.limits.bytes_max {
            assert!(self.evict_oldest(), "an empty reassembler has room for any message");
        }
    }

    fn remove(&mut self, message: u64) -> Option<Partial> {
        let partial = self.partial.remove(&message)?;
        self.bytes -= partial.plan.total;
        Some(partial)
    }
}

impl Partial {
    fn new(plan: FragmentPlan) -> Partial {
        // Zeroed large blocks come from the system untouched: a liar that announces much and sends little costs address
        // space, not memory.
        let buffer = vec![0; plan.total];
        Partial { plan, buffer, have: vec![0; plan.count.div_ceil(64)], missing: plan.count, touched: Time::default() }
    }

    /// False if the piece was there.
    fn insert(&mut self, index: usize, piece: &[u8]) -> bool {
        let (word, bit) = (index / 64, 1u64 << (index % 64));
        if self.have[word] & bit != 0 {
            return false;
        }
        self.have[word] |= bit;
        self.buffer[self.plan.range(index)].copy_from_slice(piece);
        self.missing -= 1;
        true
    }
}
