//! Who lives in a simulated cluster.

use std::collections::BTreeMap;

use super::watch::Watched;
use crate::client::{Endpoint, RequestId, Session};
use crate::execution::Service;
use crate::replica::Replica;
use crate::transport::{Datagram, Machine, Outgoing};
use crate::types::{ClientId, Time};

/// One host's machine.
pub(super) enum Party<S: Service> {
    Replica(Box<Replica<Watched<S>>>),
    Client(Box<Client>),
}

impl<S: Service> Machine for Party<S> {
    fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
        match self {
            Party::Replica(replica) => replica.turn(now, inbox, outbox),
            Party::Client(client) => client.endpoint.turn(now, inbox, outbox),
        }
    }

    fn deadline(&self) -> Time {
        match self {
            Party::Replica(replica) => replica.deadline(),
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
