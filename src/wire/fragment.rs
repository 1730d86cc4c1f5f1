//! Messages larger than a datagram.
//!
//! The sender cuts the whole datagram that it would have sent, header and proof included, into `count` pieces of
//! `ceil(total / count)` bytes (the last one may be shorter). Each piece is authenticated by itself, so that nobody
//! else can spoil a reassembly; what comes out is opened like any datagram.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::header::{FRAGMENT_HEADER, HEADER, MAC};
use super::{FragmentHeader, Malformed, Pieces};
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

    /// Bytes of the whole.
    pub fn total(self) -> usize {
        self.total
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

    /// Bytes that a receiver needs to keep piece `index`: little for what may leave unasked (P54), all for more. So many
    /// can begin, and who announces much and sends little costs little.
    fn buffer_for(self, index: usize) -> usize {
        let end = self.range(index).end;
        match end <= limits::BULK_UNASKED {
            true => end.next_power_of_two().max(BUFFER_MIN).min(self.total),
            false => self.total,
        }
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
    /// There is no room for it; who sends it has to wait.
    NoRoom,
}

/// The unfinished messages of one sender, within bounds of its own (P21). Feed it authentic fragments only.
#[derive(Debug)]
pub struct Reassembler {
    limits: ReassemblyLimits,
    partial: BTreeMap<Key, Partial>,
    bytes: usize,
    /// No unfinished message had its latest piece before.
    stalest: Time,
    /// What was completed of late, as many as may be unfinished: a piece that comes twice must not begin a message again.
    completed: VecDeque<Key>,
    is_completed: BTreeSet<Key>,
}

/// Origin and message number.
type Key = (u64, u64);

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
        ReassemblyLimits { bytes_max: 8 * TOTAL_MAX, entries_max: 64, timeout: Duration::from_secs(2) }
    }
}

impl ReassemblyLimits {
    /// Bytes that unfinished messages may have, after one that is `new` or after one that has begun.
    fn room(&self, new: bool) -> usize {
        if new { self.bytes_max / 2 } else { self.bytes_max }
    }

    /// One sentence if a bound is wrong.
    ///
    /// # Errors
    /// The sentence.
    pub fn validate(&self) -> Result<(), String> {
        if self.bytes_max / 2 < TOTAL_MAX {
            return Err(format!("reassembly of {} bytes: one message of {TOTAL_MAX} must fit in half", self.bytes_max));
        }
        if self.entries_max == 0 {
            return Err("reassembly of no message at all".to_owned());
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Partial {
    plan: FragmentPlan,
    buffer: Vec<u8>,
    pieces: Pieces,
    missing: usize,
    begun: Time,
    touched: Time,
}

/// Bytes that every unfinished message may have at once.
const BUFFER_MIN: usize = 16 << 10;

/// An unfinished message that had no piece for so long makes room for another: who sends it asks more often (P54).
const STALE: Duration = Duration::from_secs(1);
const _: () = assert!(STALE.as_nanos() > limits::BULK_ASKS.as_nanos());

impl Reassembler {
    /// Nothing begun.
    pub fn new(limits: ReassemblyLimits) -> Reassembler {
        assert_eq!(limits.validate(), Ok(()));
        let (partial, completed, is_completed) = (BTreeMap::new(), VecDeque::new(), BTreeSet::new());
        Reassembler { limits, partial, bytes: 0, stalest: Time::NEVER, completed, is_completed }
    }

    /// Takes a piece. Message numbers are distinct within an `origin`: a client endpoint, or 0 for a replica. To make
    /// room for it those messages go that had no piece for longest, if that is long; else it is not taken, for what moves
    /// on would never be completed if what begins put it out. What begins finds room in half of the bytes only, for what
    /// has begun must be able to grow. How many were dropped, with it, is added to `dropped`.
    ///
    /// # Errors
    /// [`Malformed`] if the header contradicts itself, the piece, or earlier pieces of the message.
    pub fn insert(
        &mut self,
        now: Time,
        origin: u64,
        header: FragmentHeader,
        piece: &[u8],
        dropped: &mut u64,
    ) -> Result<Assembled, Malformed> {
        let plan = FragmentPlan::received(&header)?;
        let index = usize::from(header.index);
        if piece.len() != plan.range(index).len() {
            return Err(Malformed::Inconsistent);
        }
        let key = (origin, header.message);
        if self.is_completed.contains(&key) {
            return Ok(Assembled::Partial);
        }
        let held = match self.partial.get(&key) {
            Some(partial) if partial.plan != plan => return Err(Malformed::Inconsistent),
            Some(partial) => Some(partial.buffer.len()),
            None => None,
        };
        let needed = plan.buffer_for(index).max(held.unwrap_or(0));
        if !self.make_room(now, key, held.is_none(), needed - held.unwrap_or(0), dropped) {
            *dropped += 1;
            return Ok(Assembled::NoRoom);
        }
        self.bytes += needed - held.unwrap_or(0);
        self.stalest = self.stalest.min(now);
        let partial = self.partial.entry(key).or_insert_with(|| Partial::new(plan, now));
        partial.touched = now;
        if !partial.insert(index, piece, needed) || partial.missing > 0 {
            return Ok(Assembled::Partial);
        }
        let whole = self.remove(key).expect("just completed");
        if self.completed.len() == self.limits.entries_max {
            let oldest = self.completed.pop_front();
            oldest.map(|oldest| self.is_completed.remove(&oldest));
        }
        self.completed.push_back(key);
        self.is_completed.insert(key);
        Ok(Assembled::Complete(Bytes::from(whole.buffer)))
    }

    /// What is here of an unfinished message.
    pub fn pieces(&self, origin: u64, message: u64) -> Option<&Pieces> {
        self.partial.get(&(origin, message)).map(|partial| &partial.pieces)
    }

    /// When a piece of an unfinished message last came.
    pub fn touched(&self) -> Option<Time> {
        self.partial.values().map(|partial| partial.touched).max()
    }

    /// Whether the message was completed lately.
    pub fn has_completed(&self, origin: u64, message: u64) -> bool {
        self.is_completed.contains(&(origin, message))
    }

    /// Drops what has timed out; how many messages.
    pub fn expire(&mut self, now: Time) -> u64 {
        let timeout = self.limits.timeout;
        if now.since(self.stalest) < timeout {
            return 0;
        }
        let due = |partial: &Partial| now.since(partial.touched) >= timeout;
        let keys: Vec<Key> = self.partial.iter().filter(|(_, partial)| due(partial)).map(|(&key, _)| key).collect();
        keys.iter().for_each(|key| drop(self.remove(*key)));
        self.stalest = self.oldest_touch();
        keys.len() as u64
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

    /// Drops the unfinished message that was begun last: the others are nearer to their end. False if there is none.
    pub fn evict_newest(&mut self) -> bool {
        let newest = self.partial.iter().max_by_key(|(_, partial)| partial.begun).map(|(&key, _)| key);
        newest.is_some_and(|key| self.remove(key).is_some())
    }

    /// Room for one more message, if it is `new`, and `bytes` more for `key`. False if there is none.
    fn make_room(&mut self, now: Time, key: Key, new: bool, bytes: usize, dropped: &mut u64) -> bool {
        if new {
            *dropped += self.expire(now);
        }
        let room = self.limits.room(new);
        while (new && self.partial.len() >= self.limits.entries_max) || self.bytes + bytes > room {
            if now.since(self.stalest) < STALE {
                return false;
            }
            let others = self.partial.iter().filter(|(other, _)| **other != key);
            let stalest = others.min_by_key(|(_, partial)| partial.touched);
            let stalest = stalest.filter(|(_, partial)| now.since(partial.touched) >= STALE).map(|(&key, _)| key);
            let Some(stalest) = stalest else {
                self.stalest = self.oldest_touch();
                return false;
            };
            self.remove(stalest);
            *dropped += 1;
        }
        true
    }

    fn oldest_touch(&self) -> Time {
        self.partial.values().map(|partial| partial.touched).min().unwrap_or(Time::NEVER)
    }

    fn remove(&mut self, key: Key) -> Option<Partial> {
        let partial = self.partial.remove(&key)?;
        self.bytes -= partial.buffer.len();
        Some(partial)
    }
}

impl Partial {
    fn new(plan: FragmentPlan, now: Time) -> Partial {
        let (buffer, pieces) = (Vec::new(), Pieces::none(plan.count));
        Partial { plan, buffer, pieces, missing: plan.count, begun: now, touched: now }
    }

    /// False if the piece was there. `needed`: bytes that the buffer must have for it.
    fn insert(&mut self, index: usize, piece: &[u8], needed: usize) -> bool {
        self.buffer.reserve_exact(needed - self.buffer.len());
        self.buffer.resize(needed, 0);
        if !self.pieces.insert(index) {
            return false;
        }
        self.buffer[self.plan.range(index)].copy_from_slice(piece);
        self.missing -= 1;
        true
    }
}
