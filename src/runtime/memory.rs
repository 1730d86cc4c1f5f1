//! An in-process network: bounded queues between the threads of one process. Embedded clusters and tests.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use crossbeam::queue::ArrayQueue;
use crossbeam::sync::{Parker, Unparker};

use super::{Clock, Counters};
use crate::limits::DATAGRAM_MAX;
use crate::transport::{Datagram, Outgoing, Peer, Transport, Wake, Woken};
use crate::types::{ReplicaId, Time};

/// Datagrams that may wait for one party; more are dropped, as a socket would.
pub const INBOX: usize = 4_096;

/// Datagrams per [`Transport::receive`].
const RECEIVE_MAX: usize = 256;

/// Joins the transports made from it. Clones are the same network.
#[derive(Clone, Default)]
pub struct Network(Arc<Shared>);

#[derive(Default)]
struct Shared {
    inboxes: RwLock<BTreeMap<Peer, Arc<Inbox>>>,
    clients: AtomicU16,
    clock: Clock,
}

struct Inbox {
    queue: ArrayQueue<Datagram>,
    woken: AtomicBool,
    unparker: Unparker,
}

impl Wake for Inbox {
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.unparker.unpark();
    }
}

impl Network {
    /// An empty network.
    pub fn new() -> Network {
        Network::default()
    }

    /// The transport of replica `id`. What was sent to an earlier transport of that replica is lost with it.
    pub fn replica(&self, id: ReplicaId) -> Memory {
        self.join(Peer::Replica(id))
    }

    /// A transport for a client, at an address of its own.
    pub fn client(&self) -> Memory {
        let port = self.0.clients.fetch_add(1, Ordering::Relaxed);
        self.join(Peer::Address(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)))
    }

    /// The clock that all its transports go by.
    pub fn clock(&self) -> Clock {
        self.0.clock
    }

    fn join(&self, me: Peer) -> Memory {
        let parker = Parker::new();
        let inbox = Arc::new(Inbox {
            queue: ArrayQueue::new(INBOX),
            woken: AtomicBool::new(false),
            unparker: parker.unparker().clone(),
        });
        self.0.inboxes.write().unwrap_or_else(PoisonError::into_inner).insert(me, inbox.clone());
        Memory { network: self.clone(), me, inbox, parker, counters: Arc::default() }
    }
}

/// One party's end of a [`Network`].
pub struct Memory {
    network: Network,
    me: Peer,
    inbox: Arc<Inbox>,
    parker: Parker,
    counters: Arc<Counters>,
}

impl Memory {
    /// The name that reports give this transport.
    pub const NAME: &'static str = "memory";

    /// What this transport counts.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Who this is to the others.
    pub fn me(&self) -> Peer {
        self.me
    }
}

impl Transport for Memory {
    fn receive(&mut self, into: &mut Vec<Datagram>) {
        for _ in 0..RECEIVE_MAX {
            let Some(datagram) = self.inbox.queue.pop() else { return };
            self.counters.received.add(1);
            into.push(datagram);
        }
    }

    fn send(&mut self, batch: &mut Vec<Outgoing>) {
        let inboxes = self.network.0.inboxes.read().unwrap_or_else(PoisonError::into_inner);
        for out in batch.drain(..) {
            match inboxes.get(&out.to) {
                None => self.counters.send_refused.add(1),
                Some(_) if out.len() > DATAGRAM_MAX => self.counters.send_failed.add(1),
                Some(inbox) => match inbox.queue.push(Datagram { from: self.me, bytes: out.to_bytes() }) {
                    Ok(()) => {
                        self.counters.sent.add(1);
                        inbox.unparker.unpark();
                    }
                    Err(_) => self.counters.send_full.add(1),
                },
            }
        }
    }

    fn wait(&mut self, until: Time) -> Woken {
        loop {
            if !self.inbox.queue.is_empty() {
                return Woken::Datagrams;
            }
            if self.inbox.woken.swap(false, Ordering::AcqRel) {
                return Woken::Waker;
            }
            let now = self.now();
            if until <= now {
                return Woken::Deadline;
            }
            // Whoever pushes or wakes after the looks above leaves a token that ends this park at once.
            match until {
                Time::NEVER => self.parker.park(),
                _ => self.parker.park_deadline(Instant::now() + until.since(now)),
            }
        }
    }

    fn now(&self) -> Time {
        self.network.0.clock.now()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.inbox.clone()
    }

    fn mtu(&self, _: Peer) -> usize {
        DATAGRAM_MAX
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut inboxes = self.network.0.inboxes.write().unwrap_or_else(PoisonError::into_inner);
        // A successor may have taken the place already.
        if inboxes.get(&self.me).is_some_and(|inbox| Arc::ptr_eq(inbox, &self.inbox)) {
            inboxes.remove(&self.me);
        }
    }
}
