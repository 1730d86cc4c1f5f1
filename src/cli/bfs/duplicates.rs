//! Calls that come twice: a client that hears nothing sends again, and what was carried out must not be again.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Calls that are remembered: more than any client has outstanding, some hundred bytes each.
const REMEMBERED: usize = 4_096;

/// A call: from where, its xid, and the hash of the whole record, because xids of clients that start anew meet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key {
    from: IpAddr,
    xid: u32,
    hash: [u8; 32],
}

impl Key {
    /// Of a record from there.
    pub fn new(from: IpAddr, xid: u32, record: &[u8]) -> Key {
        Key { from, xid, hash: *blake3::hash(record).as_bytes() }
    }
}

/// What is known of a call. `W` is who waits for its reply.
enum Known<W> {
    Running(Vec<W>),
    Replied(Bytes),
}

/// What to do with a call.
#[derive(PartialEq, Eq, Debug)]
pub enum Seen {
    /// It is new: carry it out, and [`Duplicates::finish`] or [`Duplicates::forget`] it.
    New,
    /// It is being carried out; its reply goes to this caller too.
    Running,
    /// It was: this is the reply.
    Replied(Bytes),
}

/// The calls of late that changed something, or may have.
pub struct Duplicates<W> {
    inner: Mutex<Inner<W>>,
}

struct Inner<W> {
    calls: BTreeMap<Key, Known<W>>,
    order: VecDeque<Key>,
}

impl<W: PartialEq> Duplicates<W> {
    /// None yet.
    pub fn new() -> Duplicates<W> {
        Duplicates { inner: Mutex::new(Inner { calls: BTreeMap::new(), order: VecDeque::new() }) }
    }

    /// A call came from `who`.
    pub fn begin(&self, key: Key, who: W) -> Seen {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.calls.get_mut(&key) {
            Some(Known::Replied(reply)) => return Seen::Replied(reply.clone()),
            Some(Known::Running(waiting)) => {
                // One reply for each connection is enough.
                if !waiting.contains(&who) {
                    waiting.push(who);
                }
                return Seen::Running;
            }
            None => {}
        }
        while inner.order.len() >= REMEMBERED {
            // The oldest that is done; those that run are few, and go to the end.
            let Some(oldest) = inner.order.pop_front() else { break };
            match inner.calls.remove(&oldest) {
                Some(running @ Known::Running(_)) => {
                    inner.calls.insert(oldest, running);
                    inner.order.push_back(oldest);
                    if inner.calls.values().all(|known| matches!(known, Known::Running(_))) {
                        break;
                    }
                }
                Some(Known::Replied(_)) | None => {}
            }
        }
        inner.calls.insert(key, Known::Running(vec![who]));
        inner.order.push_back(key);
        Seen::New
    }

    /// The reply of a call is this; who waits for it.
    pub fn finish(&self, key: &Key, reply: &Bytes) -> Vec<W> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.calls.insert(*key, Known::Replied(reply.clone())) {
            Some(Known::Running(waiting)) => waiting,
            Some(Known::Replied(_)) | None => Vec::new(),
        }
    }

    /// A call came to nothing; who waits for it.
    pub fn forget(&self, key: &Key) -> Vec<W> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.order.retain(|other| other != key);
        match inner.calls.remove(key) {
            Some(Known::Running(waiting)) => waiting,
            Some(Known::Replied(_)) | None => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn key(xid: u32, record: &[u8]) -> Key {
        Key::new(Ipv4Addr::LOCALHOST.into(), xid, record)
    }

    #[test]
    fn a_call_is_carried_out_once() {
        let calls = Duplicates::new();
        let (a, reply) = (key(1, b"a"), Bytes::from_static(b"reply"));
        assert_eq!(calls.begin(a, 'x'), Seen::New);
        assert_eq!(calls.begin(a, 'x'), Seen::Running);
        assert_eq!(calls.begin(a, 'y'), Seen::Running);
        assert_eq!(calls.begin(key(1, b"b"), 'x'), Seen::New, "the same xid for something else");
        assert_eq!(calls.finish(&a, &reply), ['x', 'y']);
        assert_eq!(calls.begin(a, 'z'), Seen::Replied(reply));
        assert_eq!(calls.forget(&key(1, b"b")), ['x']);
        assert_eq!(calls.begin(key(1, b"b"), 'x'), Seen::New);
    }

    #[test]
    fn the_oldest_are_forgotten_unless_they_run() {
        let calls = Duplicates::new();
        let running = key(0, b"running");
        assert_eq!(calls.begin(running, 0), Seen::New);
        for xid in 1..3 * REMEMBERED as u32 {
            assert_eq!(calls.begin(key(xid, b"a"), 0), Seen::New);
            calls.finish(&key(xid, b"a"), &Bytes::new());
        }
        assert!(calls.inner.lock().unwrap().calls.len() <= REMEMBERED);
        assert_eq!(calls.begin(running, 1), Seen::Running);
        assert_eq!(calls.begin(key(1, b"a"), 0), Seen::New);
        let last = 3 * REMEMBERED as u32 - 1;
        assert_eq!(calls.begin(key(last, b"a"), 0), Seen::Replied(Bytes::new()));
    }
}
