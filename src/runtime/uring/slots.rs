//! The slots that datagrams are received into: lent to the kernel through a provided-buffer ring, then to the roles as
//! [`Bytes`], whose last drop, on whatever core, gives the slot back.
//!
//! A slot is in one place at a time. *Lent*: its entry is in the buffer ring and the kernel may write to it. *Taken*: a
//! completion named it; only we read it, perhaps through a `Bytes`. *Returned*: its id is in the queue. *Spare*: nobody
//! uses it. The ring's owner alone moves slots from taken or returned to spare and from spare to lent, and alone moves the
//! ring's tail.
//!
//! The kernel fills lent slots in the order in which they were lent, so it comes to all of them, and slots that lie in no
//! cache, or have no memory yet, cost more. So only some are lent, what was used last is lent first, and more are lent
//! once those were too few.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::runtime::error::Refusal;

/// Copying less than this costs less than a slot's way through another core and back; and a small result does not pin a
/// large slot.
const COPY_BELOW: usize = 512;

/// Slots lent at first: the kernel takes up to 32 datagrams of a socket at a time.
const LENT_FIRST: usize = 32;

const PAGE: usize = 4_096;

/// Zeroed pages that do not move. Each takes memory once it is written to: an allocator would zero all of them.
struct Memory {
    start: NonNull<u8>,
    size: usize,
}

impl Memory {
    fn new(size: usize) -> Memory {
        let layout = Layout::from_size_align(size.max(1), PAGE).expect("a ring's size is bounded by its configuration");
        let (size, access) = (layout.size(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping, at an address of the kernel's choice, concerns no memory that anyone has.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), size, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
        if start == libc::MAP_FAILED {
            handle_alloc_error(layout);
        }
        Memory { start: NonNull::new(start.cast()).unwrap_or_else(|| handle_alloc_error(layout)), size }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size, unmapped once. It fails only for what was never mapped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

/// The slots themselves. Lives as long as the ring or any `Bytes` in it.
struct Pool {
    memory: Memory,
    each: usize,
    returned: ArrayQueue<u16>,
}

// SAFETY: `memory` is plain bytes. A taken slot is only read, by whoever holds the `Slot`; a lent one is only written, by
// the kernel; the change from taken to lent goes through `returned`, whose push and pop synchronise.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

/// A range of a taken slot. Its drop returns the slot.
struct Slot {
    pool: Arc<Pool>,
    id: u16,
    range: Range<u32>,
}

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        self.pool.slice(self.id, self.range.start as usize..self.range.end as usize)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.returned.push(self.id).expect("the queue holds every slot, and each is in one place");
    }
}

impl Pool {
    /// Bytes of a taken slot.
    fn slice(&self, id: u16, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.each);
        let offset = usize::from(id) * self.each + range.start;
        assert!(offset + range.len() <= self.memory.size);
        // SAFETY: in bounds by the assertions, initialised (zeroed, then written by the kernel), and nobody writes: callers
        // name taken slots only (`SlotRing::take`, `Slot`), which stay taken while they borrow.
        unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr().add(offset), range.len()) }
    }
}

/// Where a slot is. What was returned is still taken, until the ring's owner sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Lent,
    Taken,
    Spare,
}

/// A provided-buffer ring and the slots in it, owned by the thread of its io_uring.
pub(super) struct SlotRing {
    pool: Arc<Pool>,
    entries: Memory,
    count: u16,
    group: u16,
    tail: u16,
    places: Vec<Place>,
    /// The spare slots, the one used last on top.
    spare: Vec<u16>,
    lent: usize,
    /// How many shall be lent, if there are so many.
    lent_goal: usize,
}

impl SlotRing {
    /// `count` slots (a power of two) for datagrams of up to `each` bytes, headers of the kernel included.
    pub(super) fn new(group: u16, count: u16, each: usize) -> SlotRing {
        assert!(count.is_power_of_two());
        let each = each.next_multiple_of(64);
        let memory = Memory::new(each * usize::from(count));
        let entries = Memory::new(size_of::<BufRingEntry>() * usize::from(count));
        let pool = Arc::new(Pool { memory, each, returned: ArrayQueue::new(usize::from(count)) });
        let (places, spare) = (vec![Place::Spare; usize::from(count)], (0..count).rev().collect());
        let lent_goal = LENT_FIRST.min(usize::from(count));
        let mut ring = SlotRing { pool, entries, count, group, tail: 0, places, spare, lent: 0, lent_goal };
        ring.publish();
        ring
    }

    /// Hands the ring to the kernel.
    ///
    /// # Safety
    /// The ring must stay alive, and not be dropped, until its group is unregistered (or the kernel's ring is gone) and no
    /// receive that selects from the group is armed.
    pub(super) unsafe fn register(&self, submitter: &Submitter<'_>) -> Result<(), Refusal> {
        let doing = "registering a provided-buffer ring";
        // SAFETY: `entries` is page-aligned, holds `count` entries and, by the caller, lives as long as it is registered.
        unsafe { submitter.register_buf_ring_with_flags(self.entries.start.as_ptr() as u64, self.count, self.group, 0) }
            .map_err(|e| Refusal::Other { doing, errno: e.raw_os_error().unwrap_or(0) })
    }

    /// The group that receives select from.
    pub(super) fn group(&self) -> u16 {
        self.group
    }

    /// Slots taken: their datagrams are in use.
    pub(super) fn out(&self) -> usize {
        usize::from(self.count) - self.lent - self.spare.len()
    }

    /// A completion named this slot: it is ours now. False, and nothing happens, if it was not lent.
    pub(super) fn take(&mut self, id: u16) -> bool {
        match self.places.get_mut(usize::from(id)) {
            Some(place @ Place::Lent) => {
                *place = Place::Taken;
                self.lent -= 1;
                true
            }
            _ => false,
        }
    }

    /// A receive ended because all lent slots were filled: more are lent from now on.
    pub(super) fn ran_out(&mut self) {
        self.lent_goal = (2 * self.lent_goal).min(usize::from(self.count));
    }

    /// The first `len` bytes of a slot just taken.
    pub(super) fn peek(&self, id: u16, len: usize) -> &[u8] {
        assert_eq!(self.places[usize::from(id)], Place::Taken);
        self.pool.slice(id, 0..len.min(self.pool.each))
    }

    /// A range of a slot just taken, as `Bytes`; the slot is theirs, or spare again if the range was copied. Whether it was
    /// copied for want of slots.
    pub(super) fn bytes(&mut self, id: u16, range: Range<usize>) -> (Bytes, bool) {
        assert_eq!(self.places[usize::from(id)], Place::Taken);
        let scarce = self.is_scarce();
        if range.len() < COPY_BELOW || scarce {
            let copy = Bytes::copy_from_slice(self.pool.slice(id, range.clone()));
            self.put_back(id);
            return (copy, scarce && range.len() >= COPY_BELOW);
        }
        assert!(range.end <= self.pool.each);
        (Bytes::from_owner(Slot { pool: self.pool.clone(), id, range: range.start as u32..range.end as u32 }), false)
    }

    /// A range of a slot just taken, as the datagrams of `segment` bytes that the kernel put together there, the last one
    /// perhaps shorter. They share the slot, except those that are copied; how many of them for want of slots.
    pub(super) fn datagrams(
        &mut self,
        id: u16,
        range: Range<usize>,
        segment: usize,
        mut each: impl FnMut(Bytes),
    ) -> u64 {
        if range.len() <= segment {
            let (bytes, scarce) = self.bytes(id, range);
            each(bytes);
            return u64::from(scarce);
        }
        assert_eq!(self.places[usize::from(id)], Place::Taken);
        assert!(segment > 0 && range.end <= self.pool.each);
        let scarce = self.is_scarce();
        if segment < COPY_BELOW || scarce {
            // Each by itself: who keeps one keeps no other.
            let whole = self.pool.slice(id, range.clone());
            whole.chunks(segment).for_each(|datagram| each(Bytes::copy_from_slice(datagram)));
            self.put_back(id);
            return if segment < COPY_BELOW { 0 } else { range.len().div_ceil(segment) as u64 };
        }
        let (start, end) = (range.start as u32, range.end as u32);
        let whole = Bytes::from_owner(Slot { pool: self.pool.clone(), id, range: start..end });
        for at in (0..whole.len()).step_by(segment) {
            let datagram = whole.slice(at..whole.len().min(at + segment));
            each(if datagram.len() < COPY_BELOW { Bytes::copy_from_slice(&datagram) } else { datagram });
        }
        0
    }

    fn is_scarce(&self) -> bool {
        self.out() > usize::from(self.count) * 3 / 4
    }

    /// A taken slot is used no more. The kernel may have it after [`publish`](Self::publish).
    pub(super) fn put_back(&mut self, id: u16) {
        let place = std::mem::replace(&mut self.places[usize::from(id)], Place::Spare);
        assert_eq!(place, Place::Taken, "a slot is in one place");
        self.spare.push(id);
    }

    /// Puts a slot that was spare into the ring.
    fn lend(&mut self, id: u16) {
        self.places[usize::from(id)] = Place::Lent;
        let at = usize::from(self.tail & (self.count - 1));
        // SAFETY: within the `count` entries; fewer than `count` others are lent, so the kernel has consumed what stood
        // here. Reference to entry 0's last field, the tail, is made nowhere while this one lives.
        let entry = unsafe { &mut *self.entries.start.as_ptr().cast::<BufRingEntry>().add(at) };
        // SAFETY: `id` is below `count` by the index above, so the sum stays within the pool.
        let start = unsafe { self.pool.memory.start.as_ptr().add(usize::from(id) * self.pool.each) };
        entry.set_addr(start as u64);
        entry.set_len(self.pool.each as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        self.lent += 1;
    }

    /// Lends what is to be lent, and shows it to the kernel.
    pub(super) fn publish(&mut self) {
        while self.lent < self.lent_goal {
            let Some(id) = self.spare.pop() else { break };
            self.lend(id);
        }
        // SAFETY: `entries` starts with an initialised entry.
        let tail = unsafe { BufRingEntry::tail(self.entries.start.as_ptr().cast()) };
        // SAFETY: aligned, alive, and touched by atomics only on our side; the kernel reads it with acquire.
        unsafe { AtomicU16::from_ptr(tail.cast_mut()) }.store(self.tail, Ordering::Release);
    }

    /// Takes what was returned, and lends what is to be lent.
    pub(super) fn reclaim(&mut self) {
        while let Some(id) = self.pool.returned.pop() {
            self.put_back(id);
        }
        self.publish();
    }

    /// Gives up the memory for good: for when the kernel may still write to it.
    pub(super) fn leak(self) {
        std::mem::forget(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_in_one_place_and_comes_back_from_any_thread() {
        let mut ring = SlotRing::new(0, 16, 2_000);
        assert_eq!(ring.out(), 0);
        assert!(ring.take(3));
        assert!(!ring.take(3), "taken once");
        assert!(!ring.take(16), "no such slot");
        let (bytes, scarce) = ring.bytes(3, 100..1_900);
        assert_eq!((bytes.len(), scarce, ring.out()), (1_800, false, 1));
        let part = bytes.slice(10..20);
        drop(bytes);
        ring.reclaim();
        assert_eq!(ring.out(), 1, "a slice holds its slot");
        std::thread::spawn(move || drop(part)).join().unwrap();
        ring.reclaim();
        assert_eq!(ring.out(), 0);
        assert!(ring.take(3), "lent again");
    }

    #[test]
    fn small_datagrams_and_those_that_find_slots_scarce_are_copied() {
        let mut ring = SlotRing::new(0, 16, 2_000);
        assert!(ring.take(0));
        let (small, scarce) = ring.bytes(0, 0..100);
        assert_eq!((small.len(), scarce, ring.out()), (100, false, 0));
        let mut held = Vec::new();
        ring.publish();
        for id in 0..16 {
            assert!(ring.take(id));
            held.push(ring.bytes(id, 0..2_000));
        }
        assert_eq!(held.iter().filter(|(_, scarce)| *scarce).count(), 4);
        assert_eq!(ring.out(), 12);
    }

    #[test]
    fn datagrams_that_came_together_share_a_slot_and_the_small_and_scarce_are_copied() {
        let mut ring = SlotRing::new(0, 16, 8_000);
        let split = |ring: &mut SlotRing, id, range: Range<usize>, segment| {
            assert!(ring.take(id));
            let mut got = Vec::new();
            let scarce = ring.datagrams(id, range, segment, |bytes| got.push(bytes));
            (got, scarce)
        };
        let lens = |got: &[Bytes]| got.iter().map(Bytes::len).collect::<Vec<_>>();
        let (mut got, scarce) = split(&mut ring, 0, 50..3_150, 1_000);
        assert_eq!((lens(&got), scarce, ring.out()), (vec![1_000, 1_000, 1_000, 100], 0, 1));
        let start = got[0].as_ptr() as usize;
        assert_eq!([1, 2].map(|i| got[i].as_ptr() as usize - start), [1_000, 2_000], "nothing was copied");
        // The short last one keeps no slot.
        let last = got.pop();
        drop(got);
        ring.reclaim();
        assert_eq!((last.map(|bytes| bytes.len()), ring.out()), (Some(100), 0));

        let (got, scarce) = split(&mut ring, 1, 0..1_000, 300);
        assert_eq!((lens(&got), scarce, ring.out()), (vec![300, 300, 300, 100], 0, 0));
        let (got, scarce) = split(&mut ring, 2, 0..1_000, 1_000);
        assert_eq!((lens(&got), scarce, ring.out()), (vec![1_000], 0, 1));
        let mut held = vec![got];
        for id in 3..16 {
            let (got, scarce) = split(&mut ring, id, 0..2_500, 1_000);
            assert_eq!((lens(&got), scarce), (vec![1_000, 1_000, 500], if id < 14 { 0 } else { 3 }));
            held.push(got);
        }
        assert_eq!(ring.out(), 12);
    }

    #[test]
    fn bytes_outlive_their_ring() {
        let mut ring = SlotRing::new(0, 16, 2_000);
        assert!(ring.take(5));
        let (bytes, _) = ring.bytes(5, 0..1_000);
        drop(ring);
        assert!(bytes.iter().all(|&b| b == 0));
    }

    #[test]
    fn few_slots_are_lent_until_they_are_too_few_and_the_last_used_come_first() {
        let mut ring = SlotRing::new(0, 128, 2_000);
        let lent = |ring: &SlotRing| (0..128).filter(|&id| ring.places[id] == Place::Lent).collect::<Vec<_>>();
        assert_eq!(lent(&ring), (0..32).collect::<Vec<_>>());
        assert!(!ring.take(32), "it is spare");
        // However often they are used, the others stay untouched.
        for _ in 0..10 {
            for id in 0..32 {
                assert!(ring.take(id));
                ring.put_back(id);
            }
            ring.publish();
            assert_eq!(lent(&ring), (0..32).collect::<Vec<_>>());
        }
        // What is held is made up for.
        assert!(ring.take(5));
        let (held, _) = ring.bytes(5, 0..2_000);
        ring.publish();
        assert_eq!((ring.lent, ring.places[32], ring.out()), (32, Place::Lent, 1));
        drop(held);
        ring.reclaim();
        assert_eq!((ring.lent, ring.places[5], ring.out()), (32, Place::Spare, 0));
        for lent in [64, 128, 128] {
            ring.ran_out();
            ring.publish();
            assert_eq!(ring.lent, lent);
        }
    }

    #[test]
    #[should_panic(expected = "a slot is in one place")]
    fn putting_back_twice_is_our_bug() {
        SlotRing::new(0, 16, 2_000).put_back(0);
    }
}
