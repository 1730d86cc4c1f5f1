//! What a replica has said of places in the order, read off the datagrams that it sends: it may say each thing in one
//! way only (P14, P47), and nothing of a view that it has left (P28). The record outlives the replica: who starts again
//! is bound by what it said before, though it forgot it (P42).

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

use crate::transport::Outgoing;
use crate::types::{Digest, ReplicaId, View};
use crate::wire::frame::Messages;
use crate::wire::header::Principal;
use crate::wire::{Header, Kind, Message};

/// What may be said once only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Word {
    /// PRE-PREPARE for a view and a place.
    PrePrepare,
    /// PREPARE for a view and a place.
    Prepare,
    /// COMMIT for a view and a place.
    Commit,
    /// COMMITTED for a place.
    Committed,
    /// CHECKPOINT for a place.
    Checkpoint,
    /// VIEW-CHANGE for a view, in one boot.
    ViewChange,
    /// NEW-VIEW for a view.
    NewView,
}

/// Something that a correct replica never says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Broken {
    /// Two different things under one heading.
    Twice {
        /// What.
        word: Word,
        /// Of which view; 0 for what has none.
        view: u64,
        /// At which place, or in which boot.
        at: u64,
        /// The first.
        first: Digest,
        /// The second.
        second: Digest,
    },
    /// A vote in a view that it had left.
    Left {
        /// What.
        word: Word,
        /// In which view.
        view: View,
        /// The view that it had asked for.
        asked: View,
    },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Twice { word, view, at, first, second } => {
                write!(f, "said {word:?} (v{view}, {at}) twice: {first:?} and {second:?}")
            }
            Broken::Left { word, view, asked } => write!(f, "said {word:?} in {view} after it had asked for {asked}"),
        }
    }
}

/// Everything that one replica has said.
#[derive(Debug)]
pub(super) struct Record {
    me: ReplicaId,
    said: BTreeMap<(Word, u64, u64), Digest>,
    /// The highest view that it asked for in this boot.
    asked: View,
    /// The body read last: a broadcast is read once.
    last: Bytes,
}

impl Record {
    /// Nothing said yet.
    pub(super) fn new(me: ReplicaId) -> Record {
        Record { me, said: BTreeMap::new(), asked: View(0), last: Bytes::new() }
    }

    /// The replica has started again: others refuse the view-changes of its earlier boots (P42).
    pub(super) fn restarted(&mut self) {
        self.asked = View(0);
    }

    /// Reads what the replica sends in one turn. What travels in fragments is not read.
    pub(super) fn read(&mut self, sent: &[Outgoing]) -> Result<(), Broken> {
        let mut asked = self.asked;
        for outgoing in sent {
            let Ok(header) = Header::parse(outgoing.head.as_slice()) else { continue };
            let (Kind::Envelope, Principal::Replica(_)) = (header.kind, header.receiver) else { continue };
            let body = &outgoing.body;
            if (body.as_ptr(), body.len()) == (self.last.as_ptr(), self.last.len()) {
                continue;
            }
            self.last = body.clone();
            for message in Messages::new(body.clone()).flatten() {
                self.note(&message, &mut asked)?;
            }
        }
        // Envelopes do not keep the order in which the things of one turn were said.
        self.asked = asked;
        Ok(())
    }

    fn note(&mut self, message: &Message, asked: &mut View) -> Result<(), Broken> {
        match message {
            Message::PrePrepare(p) => self.vote(Word::PrePrepare, p.view, p.n.0, p.digest()),
            Message::Prepare(vote) => self.vote(Word::Prepare, vote.view, vote.n.0, vote.digest),
            Message::Commit(vote) => self.vote(Word::Commit, vote.view, vote.n.0, vote.digest),
            Message::Committed(c) => self.once(Word::Committed, 0, c.n.0, c.digest),
            Message::Checkpoint(c) if c.replica == self.me => self.once(Word::Checkpoint, 0, c.n.0, c.root),
            Message::ViewChange(signed) if signed.statement().replica == self.me => {
                let v = signed.statement();
                *asked = v.view.max(*asked);
                self.once(Word::ViewChange, v.view.0, v.boot, signed.digest())
            }
            Message::NewView(signed) if signed.statement().replica == self.me => {
                self.once(Word::NewView, signed.statement().view.0, 0, signed.digest())
            }
            // Others' statements, handed on; and what may be said as often as one likes.
            Message::Checkpoint(_)
            | Message::ViewChange(_)
            | Message::NewView(_)
            | Message::Stable(_)
            | Message::Status(_)
            | Message::FetchBatch(_)
            | Message::Batch(..)
            | Message::FetchPack(_)
            | Message::Relay(_)
            | Message::Answered(_)
            | Message::FetchState(_)
            | Message::State(_)
            | Message::FetchViewChange(_)
            | Message::QueryStable(_)
            | Message::StableAnswer(_) => Ok(()),
        }
    }

    fn vote(&mut self, word: Word, view: View, n: u64, digest: Digest) -> Result<(), Broken> {
        if view < self.asked {
            return Err(Broken::Left { word, view, asked: self.asked });
        }
        self.once(word, view.0, n, digest)
    }

    fn once(&mut self, word: Word, view: u64, at: u64, digest: Digest) -> Result<(), Broken> {
        let first = *self.said.entry((word, view, at)).or_insert(digest);
        if first == digest { Ok(()) } else { Err(Broken::Twice { word, view, at, first, second: digest }) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::auth::AuthMode;
    use crate::sim::Keys;
    use crate::transport::{Head, Peer};
    use crate::types::{ClusterSize, SeqNum};
    use crate::wire::{Claim, FrameBuffer, Header, ProofKind, ViewChange, Vote};

    fn sent(messages: &[Message]) -> Vec<Outgoing> {
        let mut frames = FrameBuffer::default();
        assert!(messages.iter().all(|message| frames.push(message)));
        let [sender, receiver] = [ReplicaId(1), ReplicaId(2)].map(Principal::Replica);
        let (kind, proof) = (Kind::Envelope, ProofKind::Mac);
        let header = Header { kind, proof, receiver, sender, cluster: 0, sender_epoch: 0, receiver_epoch: 0 };
        let mut head = Head::EMPTY;
        head.push(&header.encode());
        vec![Outgoing { to: Peer::Replica(ReplicaId(2)), head, body: frames.take().bytes().clone() }]
    }

    fn vote(view: u64, n: u64, digest: u8) -> Vote {
        Vote { view: View(view), n: SeqNum(n), digest: Digest([digest; 32]) }
    }

    #[test]
    fn p14_a_second_vote_is_found_also_across_a_restart() {
        let mut record = Record::new(ReplicaId(1));
        let [a, b] = [1, 2].map(|digest| Message::Prepare(vote(0, 1, digest)));
        assert_eq!(record.read(&sent(std::slice::from_ref(&a))), Ok(()));
        assert_eq!(record.read(&sent(&[a, Message::Commit(vote(0, 1, 2)), Message::Prepare(vote(1, 1, 2))])), Ok(()));
        record.restarted();
        let broken = record.read(&sent(&[b])).unwrap_err();
        assert!(matches!(broken, Broken::Twice { word: Word::Prepare, view: 0, at: 1, .. }), "{broken}");
    }

    #[test]
    fn p28_a_vote_in_a_view_that_was_left_is_found() {
        let keys = Keys::new(ClusterSize::tolerating(1).unwrap(), 0, AuthMode::Mac);
        let left = ViewChange {
            replica: ReplicaId(1),
            boot: 1,
            view: View(2),
            stable: SeqNum(0),
            proof: Vec::new(),
            prepared: Vec::new(),
            pre_prepared: Vec::new(),
        };
        let Claim::ViewChange(signed) =
            keys.replica(ReplicaId(1), 1, [7; 32]).signer().sign_view_change(left).into_inner()
        else {
            unreachable!()
        };
        let mut record = Record::new(ReplicaId(1));
        let leaves = Message::ViewChange(Arc::clone(&signed));
        let together = [leaves.clone(), Message::Commit(vote(1, 3, 1))];
        assert_eq!(record.read(&sent(&together)), Ok(()), "said in one turn, in whatever order");
        assert_eq!(record.read(&sent(&[leaves, Message::Commit(vote(2, 3, 1))])), Ok(()));
        let broken = record.read(&sent(&[Message::Commit(vote(1, 3, 1))])).unwrap_err();
        assert_eq!(broken, Broken::Left { word: Word::Commit, view: View(1), asked: View(2) });
    }
}
