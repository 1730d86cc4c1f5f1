//! From requests to datagrams: packs, their receivers, fragments at a measured pace (P2, P3, P46).

use std::mem;
use std::time::Duration;

use super::bulk::{Bulk, Heard};
use super::completion::RequestId;
use super::config::EndpointConfig;
use super::request::{Outstanding, Requests};
use crate::auth::{Clients, Keyring, Principal};
use crate::transport::{Head, Outgoing, Peer};
use crate::types::{ClusterSize, ReplicaId, ReplicaSet, Time};
use crate::wire::header::{HEADER, MAC, SIGNATURE};
use crate::wire::pack::REQUEST_HEAD;
use crate::wire::{PackBuilder, Receipt, Request};

/// How a request goes out. Requests of one way share packs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// The first send of an ordered request: under a vector, to the believed primary.
    First,
    /// The same, asking for whole results: the replica that was to send them is not relied on (P7).
    FirstWhole,
    /// An ordered request once more, under a vector, to all but the primary: they learn that the reserve is needed (P53).
    Call,
    /// A session-open: signed, to all.
    Open,
    /// A retransmission of what nobody has answered: signed, to all (P2).
    Unanswered,
    /// A retransmission: signed, to all, asking for whole results (P2, P7).
    Again,
    /// A query: under a vector, to those that its request names (P6).
    Query,
    /// The same, asking for whole results.
    QueryWhole,
    /// A repeated query: signed, to all, asking for whole results.
    QueryAgain,
}

const WAYS: [Way; 9] = [
    Way::First,
    Way::FirstWhole,
    Way::Call,
    Way::Open,
    Way::Unanswered,
    Way::Again,
    Way::Query,
    Way::QueryWhole,
    Way::QueryAgain,
];

impl Way {
    fn is_again(self) -> bool {
        match self {
            Way::Unanswered | Way::Again | Way::QueryAgain => true,
            Way::First | Way::FirstWhole | Way::Call | Way::Open | Way::Query | Way::QueryWhole => false,
        }
    }

    fn wants_whole(self) -> bool {
        match self {
            Way::FirstWhole | Way::Again | Way::QueryWhole | Way::QueryAgain => true,
            Way::First | Way::Call | Way::Open | Way::Unanswered | Way::Query => false,
        }
    }

    fn is_to_primary(self) -> bool {
        match self {
            Way::First | Way::FirstWhole => true,
            Way::Call | Way::Open | Way::Unanswered | Way::Again => false,
            Way::Query | Way::QueryWhole | Way::QueryAgain => false,
        }
    }

    fn is_to_chosen(self) -> bool {
        match self {
            Way::Query | Way::QueryWhole => true,
            Way::First | Way::FirstWhole | Way::Call | Way::Open => false,
            Way::Unanswered | Way::Again | Way::QueryAgain => false,
        }
    }

    fn is_signed(self) -> bool {
        match self {
            Way::Open | Way::Unanswered | Way::Again | Way::QueryAgain => true,
            Way::First | Way::FirstWhole | Way::Call | Way::Query | Way::QueryWhole => false,
        }
    }
}

/// What first sends say of the reserve (P53).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    /// Nothing: the preferred will do.
    None,
    /// It is called, and knows: only what goes to all anyway says so.
    Known,
    /// It is called: they go to all.
    Told,
}

/// A large request's retransmission: while it bears the same number, pieces that came through add up at a receiver,
/// though no round is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Repeat {
    message: u64,
    rounds: u32,
}

/// What waits to be sent.
#[derive(Debug)]
pub(crate) struct Sender {
    size: ClusterSize,
    datagram_max: usize,
    inline_max: usize,
    queues: [Vec<RequestId>; WAYS.len()],
    builder: PackBuilder,
    next_message: u64,
    bulk: Bulk,
    now: Time,
    /// A signed pack has left: an open cluster can know us.
    introduced: bool,
    call: Call,
    sent: Vec<(RequestId, Duration)>,
    pub(crate) packs_out: u64,
}

impl Sender {
    /// Rounds of a large request's retransmission under one number. Bounded, for a receiver ignores a number that it
    /// has completed, and its replies may be what was lost.
    const REPEATS: u32 = 4;

    pub(crate) fn new(config: &EndpointConfig, keyring: &Keyring) -> Sender {
        let Principal::Client(client, endpoint) = keyring.me() else { panic!("a client's keyring") };
        let size = keyring.size();
        Sender {
            size,
            datagram_max: config.datagram_max,
            inline_max: config.inline_max,
            queues: Default::default(),
            builder: PackBuilder::new(client, endpoint),
            next_message: 1,
            bulk: Bulk::new(size, config),
            now: Time(0),
            introduced: false,
            call: Call::None,
            sent: Vec::new(),
            packs_out: 0,
        }
    }

    /// Sends `request` with the next flush. It has its number.
    pub(crate) fn queue(&mut self, way: Way, request: RequestId) {
        self.queues[way as usize].push(request);
    }

    /// Whether a request with an operation of `len` bytes may share a pack that the primary alone gets.
    pub(crate) fn stays_inline(&self, len: usize) -> bool {
        REQUEST_HEAD + len + 3 + MAC * self.size.n() <= self.inline_max.min(self.datagram_max - HEADER - MAC)
    }

    /// When fragments may leave again.
    pub(crate) fn next(&self) -> Time {
        self.bulk.next()
    }

    /// Sends what is queued and what the pace allows. Names the requests sent, each with the time until its last byte
    /// leaves.
    pub(crate) fn flush(
        &mut self,
        now: Time,
        primary: ReplicaId,
        call: Call,
        keyring: &Keyring,
        requests: &mut Requests,
        outbox: &mut Vec<Outgoing>,
    ) -> Vec<(RequestId, Duration)> {
        self.now = now;
        self.call = call;
        for way in WAYS {
            let queued = mem::take(&mut self.queues[way as usize]);
            if !queued.is_empty() {
                self.pack(way, &queued, primary, keyring, requests, outbox);
            }
            let mut queued = queued;
            queued.clear();
            self.queues[way as usize] = queued;
        }
        self.bulk.release(now, keyring, outbox);
        mem::take(&mut self.sent)
    }

    /// Gives back what [`flush`](Self::flush) returned, emptied.
    pub(crate) fn recycle(&mut self, mut sent: Vec<(RequestId, Duration)>) {
        sent.clear();
        self.sent = sent;
    }

    /// As many requests per pack as fit one datagram that stays inline (P3); a larger one has a pack of its own.
    fn pack(
        &mut self,
        way: Way,
        queued: &[RequestId],
        primary: ReplicaId,
        keyring: &Keyring,
        requests: &mut Requests,
        outbox: &mut Vec<Outgoing>,
    ) {
        let signed = way.is_signed() || !self.introduced && keyring.cluster().clients == Clients::Open;
        let proof = if signed { 2 + 2 * SIGNATURE } else { 3 + MAC * self.size.n() };
        let target = self.inline_max.min(self.datagram_max - HEADER - MAC) - proof;
        let mut start = 0;
        let mut to = ReplicaSet::EMPTY;
        for (i, &id) in queued.iter().enumerate() {
            let Some((r, number)) = requests.get(id).and_then(|r| Some((r, r.number?))) else { continue };
            let (session, t, low) = (number.session, number.t, number.low);
            let request = Request { session, t, low, kind: r.kind, op: &r.op };
            let builder = &self.builder;
            let fits = builder.bytes() + REQUEST_HEAD + r.op.len() <= target && builder.accepts(&request);
            let apart = way.is_to_chosen() && r.to != to;
            to = r.to;
            if !builder.is_empty() && (!fits || apart) {
                self.ship(way, signed, &queued[start..i], primary, keyring, requests, outbox);
                start = i;
            }
            let Some(r) = requests.get(id) else { continue };
            self.builder.push(&Request { session, t, low, kind: r.kind, op: &r.op });
        }
        if !self.builder.is_empty() {
            self.ship(way, signed, &queued[start..], primary, keyring, requests, outbox);
        }
        self.introduced |= signed;
    }

    #[expect(clippy::too_many_arguments, reason = "one private step of `pack`")]
    fn ship(
        &mut self,
        way: Way,
        signed: bool,
        ids: &[RequestId],
        primary: ReplicaId,
        keyring: &Keyring,
        requests: &mut Requests,
        outbox: &mut Vec<Outgoing>,
    ) {
        // By this the primary, and with large ones everybody, knows that the reserve is called (P53).
        let tells = match self.call {
            Call::None => false,
            Call::Known => self.builder.bytes() > self.inline_max,
            Call::Told => true,
        };
        let calls = way.is_to_primary() && tells;
        let pack = keyring.seal_pack(&mut self.builder, way.wants_whole() || calls, signed);
        self.packs_out += 1;
        let body = pack.encoded();
        let to_primary = way.is_to_primary() && self.call != Call::Told && body.len() <= self.inline_max;
        // What introduces us goes to all, or the others could not open what follows.
        let chosen = match ids {
            [id, ..] if way.is_to_chosen() && !signed => requests.get(*id).map(|r| r.to),
            _ => None,
        };
        let receives = |r: ReplicaId| {
            let is_meant = if r == primary { way != Way::Call } else { !to_primary };
            is_meant && chosen.is_none_or(|chosen| chosen.contains(r))
        };
        let receivers: ReplicaSet = self.size.replicas().filter(|&r| receives(r)).collect();
        for &id in ids.iter().filter(|_| way.is_to_chosen()) {
            if let Some(r) = requests.get_mut(id) {
                r.asked = receivers.iter().chain(r.asked.iter()).collect();
            }
        }
        let receivers = receivers.iter();
        let len = body.len() + HEADER + MAC;
        if len <= self.datagram_max {
            outbox.extend(receivers.map(|r| Outgoing {
                to: Peer::Replica(r),
                head: keyring.seal_pack_hop(r, &pack),
                body: body.clone(),
            }));
            self.sent.extend(ids.iter().map(|&id| (id, Duration::ZERO)));
            return;
        }
        // What does not fit a datagram has a pack of its own; others of these ids may be over.
        let is_in = |id: &RequestId| requests.get(*id).is_some_and(|r| r.number.is_some());
        let Some(id) = ids.iter().copied().find(is_in) else { return };
        let Some(r) = requests.get_mut(id) else { return };
        let heads: Vec<(ReplicaId, Head)> = receivers.map(|r| (r, keyring.seal_pack_hop(r, &pack))).collect();
        self.bulk.withdraw(id);
        if way.is_again() {
            self.bulk.lost(self.now);
            // Who answered has had it all: only a new number makes it answer again.
            let (answered, silent): (Vec<_>, Vec<_>) = heads.into_iter().partition(|(to, _)| r.certificate.has(*to));
            let repeat = self.repeat(r);
            self.bulk.push(repeat, id, silent.into_iter(), body.clone(), true);
            let fresh = self.fresh_message();
            self.bulk.push(fresh, id, answered.into_iter(), body.clone(), true);
        } else {
            let fresh = self.fresh_message();
            self.bulk.push(fresh, id, heads.into_iter(), body.clone(), false);
        }
        self.sent.push((id, self.bulk.drain_time()));
    }

    /// A request was answered that was sent once.
    pub(crate) fn answered(&mut self, op_len: usize) {
        if op_len > self.datagram_max {
            self.bulk.arrived();
        }
    }

    /// The request is over, whatever came of it.
    pub(crate) fn over(&mut self, request: RequestId) {
        self.bulk.over(request);
    }

    /// When f + 1 replicas had said something of a request of which pieces wait for their grant.
    pub(crate) fn waits_since(&self, request: RequestId) -> Option<Time> {
        self.bulk.waits_since(request)
    }

    /// Pieces that were sent to one replica again.
    pub(crate) fn pieces_again(&self) -> u64 {
        self.bulk.pieces_again
    }

    /// A replica says what it has of a large request.
    pub(crate) fn on_receipt(&mut self, now: Time, from: ReplicaId, receipt: &Receipt) -> Option<Heard> {
        self.bulk.on_receipt(now, from, receipt)
    }

    fn fresh_message(&mut self) -> u64 {
        self.next_message += 1;
        self.next_message - 1
    }

    fn repeat(&mut self, r: &mut Outstanding) -> u64 {
        let repeat = match r.repeat {
            Some(Repeat { message, rounds }) if rounds < Self::REPEATS => Repeat { message, rounds: rounds + 1 },
            Some(_) | None => Repeat { message: self.fresh_message(), rounds: 1 },
        };
        r.repeat = Some(repeat);
        repeat.message
    }
}
