//! The bare pattern: the datagrams of a cluster, sent and awaited as a cluster sends and awaits them, with no protocol
//! in them. What it takes is what this machine takes for the messages alone: the bound that `bench load` is measured by.
//!
//! For n = 3f + 1 replicas, of which q = 2f + 1 are the preferred quorum, and one batch of requests of b client endpoints,
//! each with one pack:
//!
//! | datagrams | ordered | read-only |
//! |---|---|---|
//! | packs, client to primary (read-only: to q replicas) | b | q b |
//! | pre-prepare, primary to the preferred backups | 2f | |
//! | prepare, each of those to the others preferred; the commit before rides on it | 4f^2 | |
//! | replies, each of those q to each client | q b | q b |
//!
//! With n = 4 that is 6 + 4b, and 6b for reads. Each has the size that castra's has. Nobody computes a MAC, keeps a
//! log, executes or waits for a checkpoint; a replica answers once 2f prepares are there. The replicas in reserve are
//! there and are told nothing: what castra gathers for them, a datagram each way for half a millisecond's batches, is left
//! out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;

use super::latency::Latencies;
use crate::runtime::bind::{Bound, UdpConfig};
use crate::runtime::{Backend, Clock, Error, LoopCounters, Stop, Udp, WaitPolicy, drive};
use crate::transport::{Datagram, Head, Machine, Outgoing, Peer, Transport as _};
use crate::types::{ClientId, ClusterSize, Digest, EndpointId, Position, ReplicaId, SeqNum, SessionId, Time, View};
use crate::wire::frame::FRAME_HEAD;
use crate::wire::header::{HEADER, MAC};
use crate::wire::replies::{REPLIES_HEAD, reply_len};
use crate::wire::{
    FrameBuffer, Message, Outcome, PackBuilder, Proof, ReplyEntry, ReplyKind, ReplyResult, Request, RequestKind, Vote,
};

/// What the datagrams of one run are like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The replicas.
    pub size: ClusterSize,
    /// Requests in a pack: what an endpoint has outstanding.
    pub requests: usize,
    /// Bytes of an operation.
    pub request_bytes: usize,
    /// Bytes of a result.
    pub reply_bytes: usize,
    /// Queries: two messages, not five.
    pub read_only: bool,
}

/// The largest datagram here: nothing is cut.
const DATAGRAM: usize = crate::limits::DATAGRAM_MAX;
/// Of everything that the pattern sends: what kind it is, which batch or pack it belongs to, and how many addresses follow.
const NAME: usize = 1 + 8 + 2;
/// An address of a client endpoint in a pre-prepare.
const ADDRESS: usize = 6;

const PACK: u8 = 1;
const PRE_PREPARE: u8 = 2;
const PREPARE: u8 = 3;
const REPLY: u8 = 4;

impl Shape {
    fn pack_body(&self) -> usize {
        let op = vec![0; self.request_bytes];
        let mut builder = PackBuilder::new(ClientId(1), EndpointId(1));
        let kind = if self.read_only { RequestKind::ReadOnly } else { RequestKind::Ordered };
        let session = if self.read_only { SessionId::NONE } else { SessionId(1) };
        for t in 0..self.requests as u64 {
            builder.push(&Request { session, t, low: 0, kind, op: &op });
        }
        let entries = vec![[0; MAC]; self.size.n()];
        builder.finish(false, |_, writer| writer.write(Proof::Vector(&entries))).encoded().len()
    }

    /// Bytes of a client's pack.
    pub fn pack(&self) -> usize {
        HEADER + MAC + self.pack_body()
    }

    /// Bytes of a pre-prepare of packs of `clients` endpoints, with a commit on it.
    pub fn pre_prepare(&self, clients: usize) -> usize {
        let each = 4 + self.pack_body();
        (HEADER + MAC + 2 * FRAME_HEAD + VOTE + 36 + clients * each).min(DATAGRAM)
    }

    /// Bytes of a prepare with a commit.
    pub fn prepare(&self) -> usize {
        let mut frames = FrameBuffer::default();
        let vote = Vote { view: View(0), n: SeqNum(0), digest: Digest::default() };
        assert!(frames.push(&Message::Prepare(vote)) && frames.push(&Message::Commit(vote)));
        HEADER + MAC + frames.len()
    }

    /// Bytes of the replies to one pack.
    pub fn replies(&self) -> usize {
        let result = ReplyResult::Full(Outcome::Done(vec![0; self.reply_bytes].into()));
        let (session, t, kind, position) = (SessionId(1), 1, ReplyKind::Tentative, Position::new(SeqNum(1), 0));
        let entry = ReplyEntry { session, t, kind, position, result };
        HEADER + MAC + FRAME_HEAD + REPLIES_HEAD + self.requests * reply_len(&entry)
    }

    /// One sentence if it does not fit.
    ///
    /// # Errors
    /// The sentence.
    pub fn validate(&self) -> Result<(), String> {
        let most = crate::limits::PACK_REQUESTS_MAX;
        if self.requests == 0 || self.requests > most {
            return Err(format!("the bare pattern sends one pack per endpoint: 1 to {most} requests"));
        }
        let large = self.pack().max(self.replies());
        if large > DATAGRAM {
            return Err(format!("the bare pattern cuts nothing: {large} bytes do not fit a datagram"));
        }
        Ok(())
    }
}

/// n, view and digest of a vote in a frame.
const VOTE: usize = 48;

fn datagram(to: Peer, kind: u8, number: u64, clients: &[SocketAddr], len: usize) -> Outgoing {
    let mut bytes = Vec::with_capacity(len.max(NAME + clients.len() * ADDRESS));
    bytes.push(kind);
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&(clients.len() as u16).to_le_bytes());
    for client in clients {
        let IpAddr::V4(ip) = client.ip() else { unreachable!("the pattern is run on 127.0.0.1") };
        bytes.extend_from_slice(&ip.octets());
        bytes.extend_from_slice(&client.port().to_le_bytes());
    }
    bytes.resize(bytes.len().max(len), 0);
    Outgoing { to, head: Head::EMPTY, body: bytes.into() }
}

/// Kind, number and addresses; None if it is nothing of ours.
fn parse(bytes: &Bytes) -> Option<(u8, u64, Vec<SocketAddr>)> {
    let (&kind, rest) = bytes.split_first()?;
    let (number, rest) = rest.split_first_chunk()?;
    let (count, mut rest) = rest.split_first_chunk()?;
    let mut clients = Vec::new();
    for _ in 0..u16::from_le_bytes(*count) {
        let (ip, more) = rest.split_first_chunk::<4>()?;
        let (port, more) = more.split_first_chunk()?;
        clients.push(SocketAddr::from((Ipv4Addr::from(*ip), u16::from_le_bytes(*port))));
        rest = more;
    }
    Some((kind, u64::from_le_bytes(*number), clients))
}

#[derive(Debug, Default)]
struct Slot {
    clients: Vec<SocketAddr>,
    proposed: bool,
    prepares: usize,
}

/// A replica of the pattern.
#[derive(Debug)]
pub struct BareReplica {
    me: ReplicaId,
    shape: Shape,
    waiting: Vec<SocketAddr>,
    slots: BTreeMap<u64, Slot>,
    proposed: u64,
    proposed_at: Time,
    prepared: u64,
}

impl BareReplica {
    /// Replica `me`.
    pub fn new(me: ReplicaId, shape: Shape) -> BareReplica {
        BareReplica {
            me,
            shape,
            waiting: Vec::new(),
            slots: BTreeMap::new(),
            proposed: 0,
            proposed_at: Time(0),
            prepared: 0,
        }
    }

    /// Runs it at `addresses[me]` until stopped.
    ///
    /// # Errors
    /// What the system refused.
    pub fn run(mut self, addresses: Vec<SocketAddr>, backend: Backend, stop: &Stop) -> Result<(), Error> {
        let udp = UdpConfig { datagram_max: DATAGRAM, ..UdpConfig::replica(self.me, addresses) };
        let (mut transport, _) = Udp::open(Bound::bind(udp)?, backend)?;
        drive(&mut self, &mut transport, stop, &WaitPolicy::default(), &LoopCounters::default());
        Ok(())
    }

    fn to_preferred(&self, kind: u8, number: u64, clients: &[SocketAddr], len: usize, outbox: &mut Vec<Outgoing>) {
        let mut all = datagram(Peer::Replica(self.me), kind, number, clients, len);
        for other in self.shape.size.preferred(View(0)).iter().filter(|&other| other != self.me) {
            all.to = Peer::Replica(other);
            outbox.push(all.clone());
        }
    }

    fn settle(&mut self, number: u64, outbox: &mut Vec<Outgoing>) {
        let slot = self.slots.entry(number).or_default();
        if !slot.proposed || slot.prepares < 2 * self.shape.size.f() {
            return;
        }
        let slot = self.slots.remove(&number).expect("just looked at");
        self.prepared = self.prepared.max(number);
        for client in slot.clients {
            outbox.push(datagram(Peer::Address(client), REPLY, number, &[], self.shape.replies()));
        }
    }
}

impl Machine for BareReplica {
    fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
        for Datagram { from, bytes } in inbox.drain(..) {
            let Some((kind, number, clients)) = parse(&bytes) else { continue };
            match (kind, from) {
                (PACK, Peer::Address(client)) if self.shape.read_only => {
                    outbox.push(datagram(Peer::Address(client), REPLY, number, &[], self.shape.replies()));
                }
                (PACK, Peer::Address(client)) => self.waiting.push(client),
                (PRE_PREPARE, Peer::Replica(_)) if number > self.prepared => {
                    self.to_preferred(PREPARE, number, &[], self.shape.prepare(), outbox);
                    let slot = self.slots.entry(number).or_default();
                    (slot.clients, slot.proposed) = (clients, true);
                    slot.prepares += 1;
                    self.settle(number, outbox);
                }
                (PREPARE, Peer::Replica(_)) if number > self.prepared => {
                    self.slots.entry(number).or_default().prepares += 1;
                    self.settle(number, outbox);
                }
                _ => {}
            }
        }
        // A batch that lost a datagram (at the start: whose backups were not up yet) is given up; its packs come again.
        if !self.waiting.is_empty() && now.since(self.proposed_at) > LOST / 2 {
            self.prepared = self.prepared.max(self.proposed);
        }
        if !self.waiting.is_empty() && self.prepared == self.proposed {
            (self.proposed, self.proposed_at) = (self.proposed + 1, now);
            let (number, clients) = (self.proposed, std::mem::take(&mut self.waiting));
            let len = self.shape.pre_prepare(clients.len());
            self.to_preferred(PRE_PREPARE, number, &clients, len, outbox);
            let slot = self.slots.entry(number).or_default();
            (slot.clients, slot.proposed) = (clients, true);
        }
    }

    fn deadline(&self) -> Time {
        Time::NEVER
    }
}

/// What the pattern took.
#[derive(Clone, Debug)]
pub struct Bare {
    /// Requests whose replies came from q replicas within the window.
    pub operations: u64,
    /// The window.
    pub window: Duration,
    /// From a pack's leaving to its last needed reply.
    pub latencies: Latencies,
    /// Packs sent again because a datagram was lost.
    pub lost: u64,
}

struct Endpoint {
    transport: Udp,
    sent: u64,
    sent_at: Time,
    /// The last batch (read-only: pack) that q replicas answered, and how many answered later ones.
    done: u64,
    replies: BTreeMap<u64, usize>,
}

/// A pack without an answer for so long lost a datagram on its way.
const LOST: Duration = Duration::from_millis(100);

/// `clients` endpoints, each with one pack outstanding, for `warm_up` and then `seconds`; `begin` and `end` are called at
/// the ends of the window.
///
/// # Errors
/// What the system refused.
pub fn work(
    shape: Shape,
    clients: usize,
    addresses: &[SocketAddr],
    backend: Backend,
    (warm_up, seconds): (Duration, Duration),
    (begin, end): (impl FnOnce(), impl FnOnce()),
) -> Result<Bare, Error> {
    let clock = Clock::new();
    let mut endpoints = Vec::new();
    for _ in 0..clients {
        let udp =
            UdpConfig { datagram_max: DATAGRAM, clock, slots: (128, 16), ..UdpConfig::client(addresses.to_vec()) };
        let (transport, _) = Udp::open(Bound::bind(udp)?, backend)?;
        endpoints.push(Endpoint { transport, sent: 0, sent_at: Time(0), done: 0, replies: BTreeMap::new() });
    }
    let (start, mut inbox) = (clock.now(), Vec::new());
    let (from, to) = (start + warm_up, start + warm_up + seconds);
    let mut bare = Bare { operations: 0, window: seconds, latencies: Latencies::default(), lost: 0 };
    let (mut begin, mut begun_at) = (Some(begin), from);
    loop {
        let now = clock.now();
        if now >= from
            && let Some(begin) = begin.take()
        {
            begin();
            begun_at = clock.now();
        }
        if now >= to {
            break;
        }
        let mut moved = false;
        for endpoint in &mut endpoints {
            endpoint.transport.receive(&mut inbox);
            moved |= !inbox.is_empty();
            let before = endpoint.done;
            for datagram in inbox.drain(..) {
                let Some((REPLY, number, _)) = parse(&datagram.bytes) else { continue };
                if number > endpoint.done {
                    let replies = endpoint.replies.entry(number).or_default();
                    *replies += 1;
                    if *replies >= shape.size.quorum() {
                        endpoint.done = number;
                        endpoint.replies.retain(|at, _| *at > number);
                    }
                }
            }
            let now = clock.now();
            let answered = endpoint.done > before;
            if answered && endpoint.sent_at >= begun_at {
                bare.operations += shape.requests as u64;
                bare.latencies.record(now.since(endpoint.sent_at));
            }
            let lost = endpoint.sent > 0 && !answered && now.since(endpoint.sent_at) > LOST;
            if endpoint.sent == 0 || answered || lost {
                bare.lost += u64::from(lost);
                (endpoint.sent, endpoint.sent_at) = (endpoint.sent + 1, now);
                let receivers = if shape.read_only { shape.size.quorum() } else { 1 };
                let pack =
                    |id: usize| datagram(Peer::Replica(ReplicaId(id as u8)), PACK, endpoint.sent, &[], shape.pack());
                endpoint.transport.send(&mut (0..receivers).map(pack).collect());
                moved = true;
            }
        }
        if !moved {
            std::thread::yield_now();
        }
    }
    end();
    bare.window = clock.now().since(begun_at);
    Ok(bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_gives_up_a_batch_that_nobody_heard_of() {
        let size = ClusterSize::tolerating(1).unwrap();
        let shape = Shape { size, requests: 1, request_bytes: 8, reply_bytes: 8, read_only: false };
        let mut primary = BareReplica::new(ReplicaId(0), shape);
        let client = Peer::Address(SocketAddr::from((Ipv4Addr::LOCALHOST, 9)));
        let mut ask = |at: Time| {
            let mut inbox = vec![Datagram { from: client, bytes: datagram(client, PACK, 1, &[], shape.pack()).body }];
            let mut outbox = Vec::new();
            primary.turn(at, &mut inbox, &mut outbox);
            outbox.iter().filter_map(|sent| parse(&sent.body)).map(|(kind, n, _)| (kind, n)).collect::<Vec<_>>()
        };
        let start = Time(1_000_000_000);
        assert_eq!(ask(start), [(PRE_PREPARE, 1); 2], "to the preferred backups");
        assert_eq!(ask(start + LOST / 4), [], "it may be on its way");
        assert_eq!(ask(start + LOST), [(PRE_PREPARE, 2); 2]);
    }

    #[test]
    fn datagrams_have_the_sizes_of_the_real_ones() {
        let size = ClusterSize::tolerating(1).unwrap();
        let shape = Shape { size, requests: 256, request_bytes: 8, reply_bytes: 8, read_only: false };
        assert!(shape.validate().is_ok() && shape.pack() > 256 * 40 && shape.replies() > 256 * 40);
        assert_eq!(datagram(Peer::Replica(ReplicaId(1)), PREPARE, 1, &[], shape.prepare()).len(), shape.prepare());
        assert!(Shape { requests: 0, ..shape }.validate().is_err());
    }
}
