//! Hand-over between two roles: a bounded ring with one producer and one consumer, that never blocks the producer.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::sync::{Parker, Unparker};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::transport::Wake;

/// A ring of `capacity` from one role to another, whose thread `bell` wakes.
pub fn ring<T>(capacity: usize, bell: Arc<dyn Wake>) -> (Outlet<T>, Inlet<T>) {
    let (producer, consumer) = RingBuffer::new(capacity);
    (Outlet { ring: producer, backlog: VecDeque::new(), bell, quiet: true }, Inlet { ring: consumer })
}

/// The producer's end.
///
/// What the ring cannot take waits here, in order. A role with a clogged outlet takes no new work from outside until it is
/// clear again, and does not sleep; what is already under way inside the replica may still add to the backlog, and is
/// bounded by the protocol's own windows.
pub struct Outlet<T> {
    ring: Producer<T>,
    backlog: VecDeque<T>,
    bell: Arc<dyn Wake>,
    quiet: bool,
}

impl<T> Outlet<T> {
    /// Hands `item` over, now or with a later [`flush`](Self::flush).
    pub fn push(&mut self, item: T) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(item);
        } else if let Err(rtrb::PushError::Full(item)) = self.ring.push(item) {
            self.backlog.push_back(item);
        } else {
            self.quiet = false;
        }
    }

    /// Hands over what waits, as far as there is room, and wakes the consumer if there is anything new: once per turn.
    pub fn flush(&mut self) {
        while let Some(item) = self.backlog.pop_front() {
            if let Err(rtrb::PushError::Full(item)) = self.ring.push(item) {
                self.backlog.push_front(item);
                break;
            }
            self.quiet = false;
        }
        if !std::mem::replace(&mut self.quiet, true) {
            self.bell.wake();
        }
    }

    /// Whether something waits for room.
    pub fn is_clogged(&self) -> bool {
        !self.backlog.is_empty()
    }
}

/// The consumer's end.
pub struct Inlet<T> {
    ring: Consumer<T>,
}

impl<T> Inlet<T> {
    /// The next item.
    pub fn pop(&mut self) -> Option<T> {
        self.ring.pop().ok()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }
}

/// Wakes a thread that parks, as [`super::role`] threads do.
pub(crate) struct Bell(Unparker);

impl Bell {
    /// A bell and the parker that it wakes.
    pub(crate) fn new() -> (Arc<Bell>, Parker) {
        let parker = Parker::new();
        (Arc::new(Bell(parker.unparker().clone())), parker)
    }
}

impl Wake for Bell {
    fn wake(&self) {
        self.0.unpark();
    }
}

/// For two roles on one thread: nobody to wake.
pub struct NoBell;

impl Wake for NoBell {
    fn wake(&self) {}
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Rings(AtomicU32);

    impl Wake for Rings {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_full_ring_never_blocks_and_keeps_the_order() {
        let bell = Arc::new(Rings::default());
        let (mut outlet, mut inlet) = ring(4, bell.clone());
        (0..10).for_each(|i| outlet.push(i));
        outlet.flush();
        assert!(outlet.is_clogged());
        assert_eq!(bell.0.load(Ordering::Relaxed), 1, "one wake per turn");
        let mut got = Vec::new();
        while got.len() < 10 {
            got.extend(std::iter::from_fn(|| inlet.pop()));
            outlet.flush();
        }
        assert_eq!(got, (0..10).collect::<Vec<_>>());
        assert!(!outlet.is_clogged() && inlet.is_empty());
        let rings = bell.0.load(Ordering::Relaxed);
        outlet.flush();
        assert_eq!(bell.0.load(Ordering::Relaxed), rings, "nothing new, no wake");
    }
}
