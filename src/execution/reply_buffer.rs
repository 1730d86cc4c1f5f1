//! Where a service puts its result.

use bytes::{Bytes, BytesMut};

use crate::limits::OPERATION_MAX;

/// A chunk of memory that small results share: one allocation serves many of them.
const CHUNK: usize = 64 * 1024;

/// The result of one operation in the making: at most [`OPERATION_MAX`] bytes.
///
/// What does not fit is cut off, at the same byte on every replica, so that no result stops a replica. A service whose
/// results can be large asks for [`ReplyBuffer::remaining`] first.
#[derive(Debug, Default)]
pub struct ReplyBuffer {
    bytes: BytesMut,
}

impl ReplyBuffer {
    /// An empty result. The library hands services one; for their own tests they can make it.
    pub fn new() -> ReplyBuffer {
        ReplyBuffer::default()
    }

    /// Appends `bytes`, or as much of them as fits.
    pub fn push(&mut self, bytes: &[u8]) {
        let fits = bytes.len().min(self.remaining());
        self.make_room(fits);
        self.bytes.extend_from_slice(&bytes[..fits]);
    }

    /// Appends `count` zero bytes, or as many as fit.
    pub fn push_zeros(&mut self, count: usize) {
        let fits = count.min(self.remaining());
        self.make_room(fits);
        self.bytes.resize(self.bytes.len() + fits, 0);
    }

    /// Overwrites the bytes that start at `at` and were pushed before: for counts known only at the end.
    /// Panics outside of what was pushed.
    pub fn patch(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Forgets everything pushed.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Bytes pushed.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that still fit.
    pub fn remaining(&self) -> usize {
        OPERATION_MAX - self.bytes.len()
    }

    /// What was pushed.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// The result; the buffer is empty again.
    pub fn take(&mut self) -> Bytes {
        self.bytes.split().freeze()
    }

    fn make_room(&mut self, additional: usize) {
        if self.bytes.capacity() - self.bytes.len() < additional {
            self.bytes.reserve(additional.max(CHUNK));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_cut_at_its_bound() {
        let mut reply = ReplyBuffer::new();
        reply.push_zeros(OPERATION_MAX - 2);
        reply.push(b"abc");
        reply.push(b"d");
        assert_eq!((reply.len(), reply.remaining()), (OPERATION_MAX, 0));
        let result = reply.take();
        assert_eq!(&result[OPERATION_MAX - 3..], b"\0ab");
        assert!(reply.is_empty());
    }

    #[test]
    fn what_was_pushed_can_be_patched_and_forgotten() {
        let mut reply = ReplyBuffer::new();
        reply.push(b"????: all");
        reply.patch(1, b"me");
        assert_eq!((reply.as_slice(), reply.is_empty()), (&b"?me?: all"[..], false));
        reply.clear();
        assert!(reply.is_empty() && reply.take().is_empty());
    }

    #[test]
    fn small_results_share_an_allocation() {
        let mut reply = ReplyBuffer::new();
        reply.push(b"first");
        let first = reply.take();
        reply.push(b"second");
        let second = reply.take();
        assert_eq!((&first[..], &second[..]), (&b"first"[..], &b"second"[..]));
        assert_eq!(second.as_ptr() as usize - first.as_ptr() as usize, first.len());
    }
}
