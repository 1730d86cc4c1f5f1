//! What the network role keeps for each sender: quotas of its own, so that a flood exhausts nobody else's (P21).

use std::collections::BTreeMap;
use std::time::Duration;

use super::receipts::{Key, Progress};
use crate::auth::{CLIENTS_OPEN_MAX, ENDPOINTS_MAX};
use crate::transport::Peer;
use crate::types::{ClientId, EndpointId, Time};
use crate::wire::fragment::{Assembled, ReassemblyLimits};
use crate::wire::{FragmentHeader, Malformed, Reassembler};

/// So many in each window of time.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In how long.
    pub window: Duration,
}

/// One sender's use of a [`Rate`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quota {
    began: Time,
    used: u32,
}

impl Quota {
    /// Whether any is left in this window.
    pub(super) fn has(&mut self, now: Time, rate: Rate) -> bool {
        if now.since(self.began) >= rate.window {
            *self = Quota { began: now, used: 0 };
        }
        self.used < rate.count
    }

    /// Takes one. False: used up in this window.
    pub(super) fn take(&mut self, now: Time, rate: Rate) -> bool {
        let has = self.has(now, rate);
        self.used += u32::from(has);
        has
    }
}

/// One sender: a replica, or a client identity with all its endpoints.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) reassembler: Reassembler,
    pub(super) signatures: Quota,
}

impl Sender {
    pub(super) fn new(limits: ReassemblyLimits) -> Sender {
        Sender { reassembler: Reassembler::new(limits), signatures: Quota::default() }
    }
}

#[derive(Debug)]
struct Client {
    sender: Sender,
    /// Where each endpoint was last heard, and when.
    endpoints: BTreeMap<EndpointId, (Peer, u64)>,
    used: u64,
}

/// Clients that have proved themselves, with the addresses of their endpoints.
#[derive(Debug)]
pub(super) struct ClientPeers {
    clients: BTreeMap<ClientId, Client>,
    limits: ReassemblyLimits,
    /// Bytes of unfinished messages of all clients, and their bound.
    bytes: usize,
    bytes_max: usize,
    /// Counts uses, to find what was not used for longest.
    clock: u64,
}

impl ClientPeers {
    pub(super) fn new(limits: ReassemblyLimits, bytes_max: usize) -> ClientPeers {
        ClientPeers { clients: BTreeMap::new(), limits, bytes: 0, bytes_max, clock: 0 }
    }

    fn client(&mut self, id: ClientId) -> &mut Client {
        self.clock += 1;
        // A cluster with a list may list more; then those not heard for longest lose unfinished messages and addresses.
        if !self.clients.contains_key(&id) && self.clients.len() >= CLIENTS_OPEN_MAX {
            let oldest = self.clients.iter().min_by_key(|(_, client)| client.used).map(|(&id, _)| id);
            let evicted = oldest.and_then(|oldest| self.clients.remove(&oldest));
            self.bytes -= evicted.map_or(0, |client| client.sender.reassembler.bytes());
        }
        let limits = self.limits;
        let new = || Client { sender: Sender::new(limits), endpoints: BTreeMap::new(), used: 0 };
        let client = self.clients.entry(id).or_insert_with(new);
        client.used = self.clock;
        client
    }

    /// The quotas of a client whose datagram was authentic.
    pub(super) fn sender(&mut self, id: ClientId) -> &mut Sender {
        &mut self.client(id).sender
    }

    /// An endpoint's pack was verified: replies go where it came from.
    pub(super) fn learn(&mut self, id: ClientId, endpoint: EndpointId, peer: Peer) {
        let client = self.client(id);
        let used = client.used;
        if !client.endpoints.contains_key(&endpoint) && client.endpoints.len() >= ENDPOINTS_MAX {
            let oldest = client.endpoints.iter().min_by_key(|(_, (_, used))| *used).map(|(&endpoint, _)| endpoint);
            oldest.and_then(|oldest| client.endpoints.remove(&oldest));
        }
        client.endpoints.insert(endpoint, (peer, used));
    }

    /// Where to send replies.
    pub(super) fn address(&self, id: ClientId, endpoint: EndpointId) -> Option<Peer> {
        self.clients.get(&id)?.endpoints.get(&endpoint).map(|(peer, _)| *peer)
    }

    /// A piece of a client's message. If clients together hold too much, who holds most loses its newest; among equals the
    /// one whose piece came: the others were before it. Where a message begins, half is too much.
    pub(super) fn reassemble(
        &mut self,
        now: Time,
        (id, endpoint): (ClientId, EndpointId),
        header: FragmentHeader,
        piece: &[u8],
        dropped: &mut u64,
    ) -> Result<Assembled, Malformed> {
        let reassembler = &mut self.client(id).sender.reassembler;
        let (bytes, messages) = (reassembler.bytes(), reassembler.len());
        let result = reassembler.insert(now, endpoint.0, header, piece, dropped);
        let (begun, after) = (reassembler.len() > messages, reassembler.bytes());
        self.bytes = self.bytes - bytes + after;
        let bytes_max = if begun { self.bytes_max / 2 } else { self.bytes_max };
        while self.bytes > bytes_max {
            let clients = self.clients.iter_mut().map(|(&key, client)| (key, &mut client.sender.reassembler));
            let greediest = clients.max_by_key(|(key, reassembler)| (reassembler.bytes(), *key == id));
            let (_, greediest) = greediest.expect("a client holds them");
            let before = greediest.bytes();
            assert!(greediest.evict_newest(), "who holds bytes holds a message");
            self.bytes -= before - greediest.bytes();
            *dropped += 1;
        }
        result
    }

    /// What is here of a client's message.
    pub(super) fn progress(&self, &(id, endpoint, message): &Key) -> Progress<'_> {
        let Some(client) = self.clients.get(&id) else { return Progress::None };
        let reassembler = &client.sender.reassembler;
        match reassembler.pieces(endpoint.0, message) {
            Some(pieces) => Progress::Partial(pieces),
            None if reassembler.has_completed(endpoint.0, message) => Progress::Complete,
            None => Progress::None,
        }
    }

    /// Drops unfinished messages that timed out; how many, and whether any is left.
    pub(super) fn expire(&mut self, now: Time) -> (u64, bool) {
        let (mut dropped, mut left) = (0, 0);
        for client in self.clients.values_mut() {
            dropped += client.sender.reassembler.expire(now);
            left += client.sender.reassembler.bytes();
        }
        self.bytes = left;
        (dropped, left > 0)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }
}
