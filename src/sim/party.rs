//! Who lives in a simulated cluster.

use std::collections::BTreeMap;

use super::liar::Tongue;
use super::record::{Broken, Record};
use super::watch::Watched;
use crate::client::{Endpoint, RequestId, Session};
use crate::execution::Service;
use crate::replica::Replica;
use crate::transport::{Datagram, Machine, Outgoing};
use crate::types::{ClientId, Time};

/// One host's machine.
pub(super) enum Party<S: Service> {
    Replica(Box<Correct<S>>),
    Liar(Box<Tongue<Watched<S>>>),
    Client(Box<Client>),
}

/// A replica that does what the protocol says, and a record of what it says.
pub(super) struct Correct<S: Service> {
    pub replica: Replica<Watched<S>>,
    pub record: Record,
    /// The first thing that it said and may not say.
    pub broken: Option<Broken>,
}

impl<S: Service> Correct<S> {
    fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
        let before = outbox.len();
        self.replica.turn(now, inbox, outbox);
        if let Err(broken) = self.record.read(&outbox[before..]) {
            self.broken.get_or_insert(broken);
        }
    }
}

impl<S: Service> Machine for Party<S> {
    fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
        match self {
            Party::Replica(correct) => correct.turn(now, inbox, outbox),
            Party::Liar(liar) => liar.turn(now, inbox, outbox),
            Party::Client(client) => client.endpoint.turn(now, inbox, outbox),
        }
    }

    fn deadline(&self) -> Time {
        match self {
            Party::Replica(correct) => correct.replica.deadline(),
            Party::Liar(liar) => liar.deadline(),
            Party::Client(client) => client.endpoint.deadline(),
        }
    }
}

/// A client endpoint and what it is asked to do.
pub(super) struct Client {
    pub id: ClientId,
    pub endpoint: Endpoint,
    pub sessions: Vec<Session>,
    /// Operations begun.
    pub asked: u64,
    /// Not before this does it ask for the next one.
    pub ready_at: Time,
    /// The name in the history, and the session (by index), of each request under way.
    pub outstanding: BTreeMap<RequestId, (u64, usize)>,
}

impl Client {
    /// The session with the most room, if there is any below `window`.
    pub fn free_session(&self, window: u64) -> Option<usize> {
        let mut used = vec![0u64; self.sessions.len()];
        for &(_, session) in self.outstanding.values() {
            used[session] += 1;
        }
        (0..used.len()).min_by_key(|&i| used[i]).filter(|&i| used[i] < window)
    }
}
