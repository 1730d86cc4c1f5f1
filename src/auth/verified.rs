//! What authentication has vouched for.

use std::ops::Deref;

use bytes::Bytes;

use super::{Principal, Reject};
use crate::types::ReplicaId;
use crate::wire::frame::Messages;
use crate::wire::{FragmentHeader, Message, NewKey, Pack, Receipt, ReplyFrame};

/// A `T` that this process has checked to come from [`from`](Self::from). It proves nothing to anybody else.
///
/// Only `auth` can make one. Not by its fields:
/// ```compile_fail,E0451
/// use castra::auth::{Principal, Verified};
/// use castra::types::{Digest, ReplicaId};
/// use castra::wire::Message;
/// let forged = Verified { from: Principal::Replica(ReplicaId(0)), inner: Message::FetchPack(Digest::default()) };
/// ```
/// nor by a constructor:
/// ```compile_fail,E0624
/// use castra::auth::{Principal, Verified};
/// use castra::types::{Digest, ReplicaId};
/// use castra::wire::Message;
/// let forged = Verified::new(Principal::Replica(ReplicaId(0)), Message::FetchPack(Digest::default()));
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified<T> {
    from: Principal,
    inner: T,
}

impl<T> Verified<T> {
    pub(super) fn new(from: Principal, inner: T) -> Verified<T> {
        Verified { from, inner }
    }

    /// Unit tests of other modules start behind authentication.
    #[cfg(test)]
    #[allow(dead_code)]
    pub(crate) fn assume(from: Principal, inner: T) -> Verified<T> {
        Verified { from, inner }
    }

    /// Who said it.
    pub fn from(&self) -> Principal {
        self.from
    }

    /// The replica that said it; `None` if a client did.
    pub fn replica(&self) -> Option<ReplicaId> {
        match self.from {
            Principal::Replica(id) => Some(id),
            Principal::Client(..) => None,
        }
    }

    /// What was said.
    pub fn get(&self) -> &T {
        &self.inner
    }

    /// What was said, without its voucher.
    pub fn into_inner(self) -> T {
        self.inner
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

/// An authentic datagram.
#[derive(Clone, Debug)]
pub enum Opened {
    /// Frames from a replica to a replica.
    Envelope(Envelope),
    /// Frames from a replica to a client.
    Replies(Replies),
    /// A client's pack, its own proof still unchecked: [`super::Keyring::verify_pack`].
    Pack {
        /// The pack.
        pack: Pack,
        /// The hop is proved: the datagram comes from the pack's client itself. False only for a client that an open
        /// cluster does not know yet.
        hop: bool,
    },
    /// A replica's new key, still unchecked: [`super::Keyring::learn`].
    NewKey {
        /// What it says.
        key: NewKey,
        /// The key of ours that the sender knows.
        ours: u32,
    },
    /// What a replica has of a large message of ours.
    Receipt {
        /// Who has it.
        from: ReplicaId,
        /// What.
        receipt: Receipt,
    },
    /// A piece of a larger datagram.
    Fragment {
        /// Whose.
        from: Principal,
        /// Which piece.
        header: FragmentHeader,
        /// Its bytes.
        piece: Bytes,
    },
}

/// The messages of one envelope, decoded one by one. A malformed frame ends it; frames before it count.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub(super) from: ReplicaId,
    pub(super) messages: Messages,
}

impl Envelope {
    /// Who sent it.
    pub fn from(&self) -> ReplicaId {
        self.from
    }
}

impl Iterator for Envelope {
    type Item = Result<Verified<Message>, Reject>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(match self.messages.next()? {
            Ok(Message::Checkpoint(checkpoint)) if checkpoint.replica != self.from => Err(Reject::NotTheSpeaker),
            Ok(message) => Ok(Verified::new(Principal::Replica(self.from), message)),
            Err(malformed) => Err(Reject::Malformed(malformed)),
        })
    }
}

/// The replies in one envelope to a client.
#[derive(Clone, Debug)]
pub struct Replies {
    pub(super) from: ReplicaId,
    pub(super) messages: Messages,
}

impl Replies {
    /// Who sent it.
    pub fn from(&self) -> ReplicaId {
        self.from
    }
}

impl Iterator for Replies {
    type Item = Result<Verified<ReplyFrame>, Reject>;

    fn next(&mut self) -> Option<Self::Item> {
        let replies = self.messages.next_replies()?;
        Some(replies.map(|r| Verified::new(Principal::Replica(self.from), r)).map_err(Reject::Malformed))
    }
}
