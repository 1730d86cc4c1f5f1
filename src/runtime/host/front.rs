//! The network role for some of the clients, on a core of its own: their socket, their quotas, their packs and replies.
//!
//! Replicas, and what is neither, stay with the first network core. That one checks clients' packs too, inside the
//! pre-prepares of others, so it is told whom an open cluster gets to know.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::board::{Answering, Parts};
use super::split::Answer;
use crate::auth::{Clients, Verified};
use crate::replica::{Inbound, Network, STALE_AFTER};
use crate::runtime::Error;
use crate::runtime::ring::{Inlet, Outlet};
use crate::runtime::sys::client_shard;
use crate::transport::{Datagram, Machine, Outgoing, Peer, Transport, Wake, Woken};
use crate::types::{ClientId, Time};
use crate::wire::Pack;

/// A packet path that is opened on the thread that uses it.
pub(super) struct Path<T> {
    pub(super) waker: Arc<dyn Wake>,
    pub(super) open: Box<dyn FnOnce() -> Result<T, Error> + Send>,
}

/// Which network role has a client: the only one, or one of those for clients.
pub(super) fn front_of(client: ClientId, fronts: usize) -> usize {
    if fronts == 1 { 0 } else { client_shard(client, fronts) }
}

/// Packs in one turn: then others get theirs out.
pub(super) const INTRODUCED_MAX: usize = 16;

/// One of them.
pub(super) struct ClientFront {
    index: usize,
    network: Network,
    to_agreement: Outlet<Inbound>,
    /// Signed packs, for the first network core: in an open cluster it learns by them who a client is.
    to_first: Option<Outlet<Verified<Pack>>>,
    muted: Inlet<()>,
    replies: Inlet<Answer>,
    inbound: Vec<Inbound>,
    closed: Rc<Cell<bool>>,
    mute: bool,
    answering: Answering,
}

/// What a [`ClientFront`] hears and says.
pub(super) struct ClientRings {
    pub(super) to_agreement: Outlet<Inbound>,
    pub(super) to_first: Outlet<Verified<Pack>>,
    pub(super) muted: Inlet<()>,
    pub(super) replies: Inlet<Answer>,
}

impl ClientFront {
    /// The `index`-th of the network roles. `clients`: who is let in.
    pub(super) fn new(
        index: usize,
        network: Network,
        rings: ClientRings,
        clients: &Clients,
        closed: Rc<Cell<bool>>,
        answering: Answering,
    ) -> ClientFront {
        let ClientRings { to_agreement, to_first, muted, replies } = rings;
        let to_first = match clients {
            Clients::Open => Some(to_first),
            Clients::Listed(_) => None,
        };
        let inbound = Vec::new();
        ClientFront { index, network, to_agreement, to_first, muted, replies, inbound, closed, mute: false, answering }
    }

    fn account(&self, parts: &mut Parts) {
        parts.rejects[self.index] = self.network.rejects();
        parts.foreign[self.index] = self.network.foreign();
    }

    /// Its last account.
    pub(super) fn farewell(&self) {
        self.answering.for_good(|parts| self.account(parts));
    }

    fn is_clogged(&self) -> bool {
        self.to_agreement.is_clogged() || self.to_first.as_ref().is_some_and(Outlet::is_clogged)
    }
}

impl Machine for ClientFront {
    fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
        for datagram in inbox.drain(..) {
            self.network.receive(now, datagram, &mut self.inbound);
        }
        for item in self.inbound.drain(..) {
            match &item {
                Inbound::Request { pack, signed: true } => {
                    if let Some(to_first) = &mut self.to_first {
                        to_first.push(pack.clone());
                    }
                }
                Inbound::Request { signed: false, .. } | Inbound::Query(_) => {}
                // What only replicas say comes to the first network core.
                Inbound::Message(_)
                | Inbound::PrePrepare(..)
                | Inbound::Transfer(_)
                | Inbound::Claim(..)
                | Inbound::Relayed(_)
                | Inbound::Body(_)
                | Inbound::Boot(..) => continue,
            }
            self.to_agreement.push(item);
        }
        if let Some(to_first) = &mut self.to_first {
            to_first.flush();
        }
        self.to_agreement.flush();
        self.closed.set(self.is_clogged());
        self.mute |= self.muted.pop().is_some();
        while let Some(answer) = self.replies.pop() {
            match answer {
                Answer::Reply(reply) if !self.mute => self.network.reply(reply),
                Answer::Reply(_) => {}
                Answer::Fresh => self.mute = false,
            }
        }
        self.network.flush(now, outbox);
        self.answering.if_asked(|parts| self.account(parts));
    }

    fn stale_after(&self) -> Option<Duration> {
        Some(STALE_AFTER)
    }

    fn deadline(&self) -> Time {
        if self.closed.get() || !self.muted.is_empty() || !self.replies.is_empty() {
            return Time(0);
        }
        self.network.deadline()
    }
}

/// Keeps datagrams in the sockets while the roles behind cannot take more.
pub(super) struct Gate<T> {
    pub(super) transport: T,
    pub(super) closed: Rc<Cell<bool>>,
}

impl<T: Transport> Transport for Gate<T> {
    fn receive(&mut self, into: &mut Vec<Datagram>) {
        if !self.closed.get() {
            self.transport.receive(into);
        }
    }

    fn send(&mut self, batch: &mut Vec<Outgoing>) {
        self.transport.send(batch);
    }

    fn wait(&mut self, until: Time) -> Woken {
        self.transport.wait(until)
    }

    fn now(&self) -> Time {
        self.transport.now()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.transport.waker()
    }

    fn mtu(&self, to: Peer) -> usize {
        self.transport.mtu(to)
    }
}
