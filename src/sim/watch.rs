//! Looks over a service's shoulder: the same operation at the same position must have the same outcome everywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use super::linearizability::preview;
use crate::execution::{Context, NotReadOnly, ReplyBuffer, Service};
use crate::state::{PageId, Region};
use crate::types::{Position, ReplicaId, SeqNum};
use crate::wire::Choice;

/// The first operation at which two replicas of a service differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Where it was ordered.
    pub position: Position,
    /// The operation.
    pub op: Vec<u8>,
    /// The two replicas.
    pub replicas: (ReplicaId, ReplicaId),
    /// What each answered.
    pub replies: (Vec<u8>, Vec<u8>),
    /// The pages of the service's region that differ after it.
    pub pages: Vec<PageId>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a, b) = self.replicas;
        let index = self.position.0 & ((1 << Position::INDEX_BITS) - 1);
        write!(f, "the service is not deterministic: {} (batch {}, request {index})", preview(&self.op), self.batch())?;
        if self.replies.0 != self.replies.1 {
            write!(f, " answered {} on {a} and {} on {b}", preview(&self.replies.0), preview(&self.replies.1))?;
        }
        if !self.pages.is_empty() {
            let pages: Vec<u32> = self.pages.iter().map(|p| p.0).collect();
            write!(f, " left different pages on {a} and {b}: {pages:?}")?;
        }
        Ok(())
    }
}

impl Difference {
    fn batch(&self) -> SeqNum {
        self.position.batch()
    }
}

#[derive(Clone)]
struct Seen {
    op: Vec<u8>,
    reply: Vec<u8>,
    pages: Vec<[u8; 32]>,
}

/// What replicas saw, by replica and position. A batch that was rolled back and executed again stands as executed last.
#[derive(Default)]
pub(super) struct WatchLog {
    seen: BTreeMap<(ReplicaId, Position), Seen>,
    /// Of the first replica that committed a batch.
    first: BTreeMap<Position, (ReplicaId, Seen)>,
}

impl WatchLog {
    /// `replica` committed batch `n`: what it saw is final, and must be what others saw.
    pub(super) fn committed(&mut self, replica: ReplicaId, n: SeqNum) -> Option<Difference> {
        let (from, to) = (Position::new(n, 0), Position::new(n.next(), 0));
        let final_now: Vec<_> = self.seen.range((replica, from)..(replica, to)).map(|(&(_, p), _)| p).collect();
        for position in final_now {
            let seen = self.seen.remove(&(replica, position)).expect("it was just there");
            let Some((other, first)) = self.first.get(&position) else {
                self.first.insert(position, (replica, seen));
                continue;
            };
            let len = first.pages.len().max(seen.pages.len());
            let differs = |&i: &usize| first.pages.get(i) != seen.pages.get(i);
            let pages: Vec<_> = (0..len).filter(differs).map(|i| PageId(i as u32)).collect();
            if first.reply != seen.reply || !pages.is_empty() {
                let replies = (first.reply.clone(), seen.reply);
                return Some(Difference { position, op: seen.op, replicas: (*other, replica), replies, pages });
            }
        }
        None
    }
}

/// Hands the log to every replica's service. The mutex is never contended: a simulation is one thread. (A service is
/// `Send`, so the log has to be.)
#[derive(Clone)]
pub(super) struct Watch(Arc<Mutex<WatchLog>>);

impl Watch {
    pub(super) fn new() -> Watch {
        Watch(Arc::default())
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut WatchLog) -> T) -> T {
        look(&mut self.0.lock().expect("one thread, and a panic ends the simulation"))
    }
}

/// A service as one replica runs it, watched or not.
pub struct Watched<S> {
    pub(super) inner: S,
    pub(super) replica: ReplicaId,
    pub(super) watch: Option<Watch>,
}

impl<S: Service> Service for Watched<S> {
    fn genesis(&self, state: &mut Region) {
        self.inner.genesis(state);
    }

    fn execute(&self, cx: &mut Context<'_>, op: &[u8], state: &mut Region, reply: &mut ReplyBuffer) {
        let before = reply.len();
        self.inner.execute(cx, op, state, reply);
        if let Some(watch) = &self.watch {
            let pages = (0..state.pages()).map(|p| *blake3::hash(state.read(PageId(p))).as_bytes()).collect();
            let seen = Seen { op: op.to_vec(), reply: reply.as_slice()[before..].to_vec(), pages };
            watch.with(|log| log.seen.insert((self.replica, cx.position()), seen));
        }
    }

    fn query(&self, cx: &Context<'_>, op: &[u8], state: &Region, reply: &mut ReplyBuffer) -> Result<(), NotReadOnly> {
        self.inner.query(cx, op, state, reply)
    }

    fn check(choice: &Choice, last: &Choice) -> bool {
        S::check(choice, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(reply: u8, page: u8) -> Seen {
        Seen { op: vec![7], reply: vec![reply], pages: vec![[0; 32], [page; 32]] }
    }

    #[test]
    fn the_first_difference_is_named() {
        let mut log = WatchLog::default();
        let at = |n, i| Position::new(SeqNum(n), i);
        for (replica, position, what) in [
            (0, at(1, 0), seen(1, 1)),
            (0, at(2, 0), seen(1, 2)),
            (0, at(2, 1), seen(1, 3)),
            (1, at(1, 0), seen(1, 1)),
            (1, at(2, 0), seen(9, 9)), // rolled back
            (1, at(2, 0), seen(1, 4)),
            (1, at(2, 1), seen(2, 4)),
        ] {
            log.seen.insert((ReplicaId(replica), position), what);
        }
        for (replica, n) in [(0, 1), (0, 2), (1, 1)] {
            assert_eq!(log.committed(ReplicaId(replica), SeqNum(n)), None);
        }
        let difference = log.committed(ReplicaId(1), SeqNum(2)).unwrap();
        assert_eq!((difference.position, difference.pages.as_slice()), (at(2, 0), &[PageId(1)][..]));
        assert_eq!(difference.replicas, (ReplicaId(0), ReplicaId(1)));
        assert!(difference.to_string().contains("left different pages on r0 and r1: [1]"), "{difference}");
    }
}
