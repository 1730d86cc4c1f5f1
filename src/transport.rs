//! The one seam between state machines and the world: batches of owned datagrams in, batches of owned datagrams out.
//!
//! A replica and a client endpoint are [`Machine`]s. A [`Transport`] carries their datagrams: io_uring, plain sockets
//! and in-process rings in `runtime`, a seeded network in `sim`. A driver for another packet path implements
//! [`Transport`] and nothing else.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use crate::types::{ReplicaId, Time};

/// The other end of a datagram, as the transport knows it. It proves nothing: who sent a datagram is taken from its
/// authenticated header, never from here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Peer {
    /// A replica, at the address that the cluster file gives it.
    Replica(ReplicaId),
    /// Anyone else.
    Address(SocketAddr),
}

/// A datagram that arrived.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// Where it came from.
    pub from: Peer,
    /// The whole payload. It may lie in a ring slot, which its last drop gives back.
    pub bytes: Bytes,
}

/// A datagram to send: `head` then `body`. The body is shared by all receivers of a broadcast; the head is the
/// receiver's own (header and MAC).
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where it goes.
    pub to: Peer,
    /// The receiver's own part.
    pub head: Head,
    /// The shared part.
    pub body: Bytes,
}

impl Outgoing {
    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        self.head.as_slice().len() + self.body.len()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Head and body as one buffer (tests, simulator, transports that cannot gather).
    pub fn to_bytes(&self) -> Bytes {
        [self.head.as_slice(), &self.body].concat().into()
    }
}

/// The first bytes of a datagram, kept inline so that a broadcast allocates nothing per receiver.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    len: u8,
    bytes: [u8; Head::MAX],
}

impl Head {
    /// The largest: a first fragment (header, fragment header, MAC) with the signed header of what was cut.
    pub const MAX: usize = 168;

    /// An empty head.
    pub const EMPTY: Head = Head { len: 0, bytes: [0; Head::MAX] };

    /// Appends `part`. Panics above [`Head::MAX`]: heads are ours, not the network's.
    pub fn push(&mut self, part: &[u8]) {
        let start = usize::from(self.len);
        self.bytes[start..start + part.len()].copy_from_slice(part);
        self.len += part.len() as u8;
    }

    /// What was pushed.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Why [`Transport::wait`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// Datagrams are there.
    Datagrams,
    /// [`Wake::wake`] was called.
    Waker,
    /// The deadline passed.
    Deadline,
}

/// Wakes a transport that waits, from any thread.
pub trait Wake: Send + Sync {
    /// Makes the current or the next `wait` return. Cheap when nobody waits.
    fn wake(&self);
}

/// A packet path. One thread owns it.
pub trait Transport {
    /// Moves what has arrived into `into`: a bounded number of datagrams, none if nothing is there. Never blocks.
    fn receive(&mut self, into: &mut Vec<Datagram>);

    /// Sends the batch and leaves it empty. What the path cannot take now is dropped and counted: datagrams may be
    /// lost anyway.
    fn send(&mut self, batch: &mut Vec<Outgoing>);

    /// Sleeps until something arrives, the waker is used, or `until` passes.
    fn wait(&mut self, until: Time) -> Woken;

    /// The clock that `until` refers to.
    fn now(&self) -> Time;

    /// A handle that wakes this transport.
    fn waker(&self) -> std::sync::Arc<dyn Wake>;

    /// The largest datagram to that peer, in bytes of UDP payload.
    fn mtu(&self, to: Peer) -> usize;
}

/// A sans-IO state machine that speaks in datagrams: a fused replica, a client endpoint.
///
/// The whole driving loop:
/// ```text
/// loop {
///     transport.receive(&mut inbox);
///     machine.turn(transport.now(), &mut inbox, &mut outbox);
///     transport.send(&mut outbox);
///     if nothing was received or sent { transport.wait(machine.deadline()); }
/// }
/// ```
pub trait Machine {
    /// Handles everything in `inbox` (left empty) and every timer due at `now`; appends what is to be sent to `outbox`.
    fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>);

    /// When `turn` must run again if nothing arrives before; [`Time::NEVER`] if there is no need.
    fn deadline(&self) -> Time;

    /// If its driver did not run for this long beyond when it was due, as a process that was stopped does not, what
    /// waits in the transport by then is old and dropped unread. `None`: everything is read, however old.
    fn stale_after(&self) -> Option<Duration> {
        None
    }

    /// Until when nobody needs it at once, if so: its driver lets datagrams gather until then, and others have the core.
    fn rests_until(&self) -> Option<Time> {
        None
    }

    /// Why it can never go on, in a sentence: its driver ends. `None` while all is well.
    fn stopped(&self) -> Option<String> {
        None
    }
}
