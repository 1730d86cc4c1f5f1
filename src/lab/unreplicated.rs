//! The null service on one server that nobody replicates: what castra is compared with.
//!
//! The same transport, packs, MACs and replies as a replica's, and the same work at both ends for each: a client makes a
//! vector of four MACs and one for the hop, the server checks its own entry, executes at once, and answers under one MAC. One
//! answer is enough. What is missing is the replication: no order, no quorum, no exactly-once, no checkpoint.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::latency::Latencies;
use crate::auth::{AuthMode, Clients, ClusterKeys, Identity, Keyring, Opened, Principal, Rights, Verified};
use crate::execution::ReplyBuffer;
use crate::runtime::bind::{Bound, UdpConfig};
use crate::runtime::{Backend, Clock, Error, LoopCounters, Stop, Udp, WaitPolicy, drive};
use crate::services::Null;
use crate::transport::{Datagram, Machine, Outgoing, Peer, Transport as _};
use crate::types::{Digest, Domain, EndpointId, Position, ReplicaId, SeqNum, SessionId, Time, View};
use crate::wire::frame::FRAME_HEAD;
use crate::wire::header::{HEADER, MAC};
use crate::wire::replies::{REPLIES_HEAD, reply_len};
use crate::wire::{
    FrameBuffer, Outcome, Pack, PackBuilder, ReplyEntry, ReplyKind, ReplyResult, Request, RequestKind, ResultView,
};

/// Entries of a vector: those of the smallest cluster, the only size that keys can be made for below it.
const ENTRIES: usize = 4;
const SERVER: ReplicaId = ReplicaId(0);
const SESSION: SessionId = SessionId(1);
/// The largest datagram, as on a cluster that `castra` starts on one machine. Nothing here is cut.
pub const DATAGRAM: usize = 8_192;
/// Bytes of a pack beside its requests: header, proofs, the pack's own.
const PACK_ROOM: usize = 256;
/// Bytes of a request beside its operation.
const REQUEST_ROOM: usize = 36;

/// Keys that server and clients make for themselves: they keep nothing secret.
fn identity(which: u8) -> Identity {
    Identity::from_seed([which; 32])
}

fn keys() -> Arc<ClusterKeys> {
    Arc::new(ClusterKeys {
        cluster: Digest::of(Domain::Cluster, &[b"unreplicated"]),
        instance: 1,
        replicas: (1..=ENTRIES as u8).map(|i| identity(i).public()).collect(),
        clients: Clients::listed([(identity(0).public(), Rights::READ_WRITE)]),
    })
}

/// The server.
pub struct Server {
    keyring: Keyring,
    reply: ReplyBuffer,
    entries: Vec<ReplyEntry>,
    frames: FrameBuffer,
    executed: u64,
}

impl Default for Server {
    fn default() -> Server {
        let keyring = Keyring::replica(SERVER, &identity(1), keys(), AuthMode::Mac).expect("keys that fit");
        Server { keyring, reply: ReplyBuffer::new(), entries: Vec::new(), frames: FrameBuffer::default(), executed: 0 }
    }
}

impl Server {
    /// Runs it at `address` until stopped.
    ///
    /// # Errors
    /// What the system refused.
    pub fn run(mut self, address: SocketAddr, backend: Backend, stop: &Stop) -> Result<(), Error> {
        let udp = UdpConfig { datagram_max: DATAGRAM, ..UdpConfig::replica(SERVER, vec![address]) };
        let (mut transport, _) = Udp::open(Bound::bind(udp)?, backend)?;
        drive(&mut self, &mut transport, stop, &WaitPolicy::default(), &LoopCounters::default());
        Ok(())
    }

    fn execute(&mut self, from: Peer, pack: &Verified<Pack>, outbox: &mut Vec<Outgoing>) {
        self.executed += 1;
        let kind = if pack.is_read_only() { ReplyKind::ReadOnly } else { ReplyKind::Committed };
        let empty = HEADER + MAC + FRAME_HEAD + REPLIES_HEAD;
        let mut bytes = empty;
        for (index, request) in pack.requests().enumerate() {
            Null::answer(request.op, &mut self.reply);
            let result = ReplyResult::Full(Outcome::Done(self.reply.take()));
            let position = Position::new(SeqNum(self.executed), index);
            let entry = ReplyEntry { session: request.session, t: request.t, kind, position, result };
            if bytes + reply_len(&entry) > DATAGRAM && !self.entries.is_empty() {
                self.flush(from, pack.from(), outbox);
                bytes = empty;
            }
            bytes += reply_len(&entry);
            self.entries.push(entry);
        }
        self.flush(from, pack.from(), outbox);
    }

    fn flush(&mut self, to: Peer, client: Principal, outbox: &mut Vec<Outgoing>) {
        assert!(self.frames.push_replies(View(0), &self.entries), "no more than a datagram");
        self.entries.clear();
        let frames = self.frames.take();
        let head = self.keyring.seal(client, &[(&frames, 0..frames.len())]);
        let head = head.expect("a client whose pack was authentic has keys");
        outbox.push(Outgoing { to, head, body: frames.bytes().clone() });
    }
}

impl Machine for Server {
    fn turn(&mut self, _: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
        for Datagram { from, bytes } in inbox.drain(..) {
            if let Ok(Opened::Pack { pack, .. }) = self.keyring.open(&bytes)
                && let Ok(pack) = self.keyring.verify_pack(pack)
            {
                self.execute(from, &pack, outbox);
            }
        }
    }

    fn deadline(&self) -> Time {
        Time::NEVER
    }
}

/// What its clients ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    /// Client endpoints.
    pub clients: usize,
    /// Requests that each keeps outstanding.
    pub outstanding: usize,
    /// Bytes of an operation, at least four.
    pub request_bytes: usize,
    /// Bytes of a result.
    pub reply_bytes: usize,
}

impl Work {
    /// One sentence if it does not fit.
    ///
    /// # Errors
    /// The sentence.
    pub fn validate(&self) -> Result<(), String> {
        let room = DATAGRAM - PACK_ROOM - REQUEST_ROOM;
        if self.clients == 0 || self.outstanding == 0 {
            Err("clients and outstanding are at least 1".into())
        } else if self.request_bytes.max(self.reply_bytes) > room {
            Err(format!("the unreplicated server cuts nothing: operations and results have at most {room} bytes"))
        } else {
            Ok(())
        }
    }
}

/// What was answered.
#[derive(Clone, Debug, Default)]
pub struct Answered {
    /// Requests answered within the window.
    pub operations: u64,
    /// The window.
    pub window: Duration,
    /// From a request's leaving to its answer.
    pub latencies: Latencies,
    /// How often an endpoint sent all again because datagrams were lost.
    pub lost: u64,
    /// Results of another length than asked for.
    pub wrong: u64,
}

/// An endpoint without an answer for so long lost a datagram.
const LOST: Duration = Duration::from_millis(100);

struct Endpoint {
    keyring: Keyring,
    builder: PackBuilder,
    batch: Vec<Outgoing>,
    transport: Udp,
    /// When each request left, from number `first` on; `None` once it is answered.
    sent: VecDeque<Option<Time>>,
    first: u64,
    /// Requests without an answer.
    waiting: usize,
    heard_at: Time,
}

impl Endpoint {
    /// The requests with these numbers, in as few packs as datagrams take.
    fn send(&mut self, op: &[u8], numbers: impl Iterator<Item = u64>) {
        let Endpoint { keyring, builder, batch, .. } = self;
        let seal = |builder: &mut PackBuilder| {
            let pack = keyring.seal_pack(builder, false, false);
            let head = keyring.seal_pack_hop(SERVER, &pack);
            Outgoing { to: Peer::Replica(SERVER), head, body: pack.encoded().clone() }
        };
        for t in numbers {
            let request = Request { session: SESSION, t, low: self.first, kind: RequestKind::Ordered, op };
            let full = builder.bytes() + REQUEST_ROOM + op.len() + PACK_ROOM > DATAGRAM || !builder.accepts(&request);
            if full && !builder.is_empty() {
                batch.push(seal(builder));
            }
            builder.push(&request);
        }
        if !builder.is_empty() {
            batch.push(seal(builder));
        }
        self.transport.send(batch);
    }

    /// Takes what is answered in `datagram`: when each of them left, and the lengths of the results.
    fn take(&mut self, datagram: &Datagram, mut each: impl FnMut(Time, usize)) {
        let Ok(Opened::Replies(replies)) = self.keyring.open(&datagram.bytes) else { return };
        for frame in replies.flatten() {
            for reply in frame.iter() {
                let slot = reply.t.checked_sub(self.first).and_then(|at| self.sent.get_mut(at as usize));
                let Some(sent_at) = slot.and_then(Option::take) else { continue };
                self.waiting -= 1;
                each(sent_at, if let ResultView::Done(bytes, _) = reply.result { bytes.len() } else { usize::MAX });
            }
        }
        while let Some(None) = self.sent.front() {
            self.sent.pop_front();
            self.first += 1;
        }
    }
}

/// Keeps `work` at the server for `warm_up` and then `seconds`; `begin` and `end` are called at the ends of the window.
///
/// # Errors
/// What the system refused.
pub fn work(
    work: Work,
    server: SocketAddr,
    backend: Backend,
    (warm_up, seconds): (Duration, Duration),
    (begin, end): (impl FnOnce(), impl FnOnce()),
) -> Result<Answered, Error> {
    let (clock, op) = (Clock::new(), Null::op(work.request_bytes, work.reply_bytes));
    let mut endpoints = Vec::new();
    for id in 0..work.clients as u64 {
        let udp = UdpConfig { datagram_max: DATAGRAM, clock, slots: (128, 16), ..UdpConfig::client(vec![server]) };
        let (transport, _) = Udp::open(Bound::bind(udp)?, backend)?;
        let keyring = Keyring::client(&identity(0), EndpointId(clock.now().0 + id), keys(), AuthMode::Mac);
        let keyring = keyring.expect("keys that fit");
        let Principal::Client(client, endpoint) = keyring.me() else { unreachable!("a client's keyring") };
        endpoints.push(Endpoint {
            keyring,
            builder: PackBuilder::new(client, endpoint),
            batch: Vec::new(),
            transport,
            sent: VecDeque::new(),
            first: 1,
            waiting: 0,
            heard_at: clock.now(),
        });
    }
    let (from, mut inbox, mut answered) = (clock.now() + warm_up, Vec::new(), Answered::default());
    let (mut begin, mut begun_at) = (Some(begin), from);
    loop {
        let now = clock.now();
        if now >= from
            && let Some(begin) = begin.take()
        {
            begin();
            begun_at = clock.now();
        }
        if now >= begun_at + seconds {
            break;
        }
        let mut moved = false;
        for endpoint in &mut endpoints {
            endpoint.transport.receive(&mut inbox);
            let now = clock.now();
            for datagram in inbox.drain(..) {
                endpoint.heard_at = now;
                endpoint.take(&datagram, |sent_at, len| {
                    answered.wrong += u64::from(len != work.reply_bytes);
                    if begin.is_none() {
                        answered.operations += 1;
                        answered.latencies.record(now.since(sent_at));
                    }
                });
            }
            if endpoint.waiting > 0 && now.since(endpoint.heard_at) > LOST {
                (answered.lost, endpoint.heard_at) = (answered.lost + 1, now);
                let again: Vec<u64> =
                    (endpoint.first..).zip(&endpoint.sent).filter_map(|(t, sent)| sent.map(|_| t)).collect();
                endpoint.send(&op, again.into_iter());
            }
            if endpoint.waiting < work.outstanding {
                let next = endpoint.first + endpoint.sent.len() as u64;
                let free = work.outstanding - endpoint.waiting;
                endpoint.waiting += free;
                endpoint.sent.extend(std::iter::repeat_n(Some(now), free));
                endpoint.send(&op, next..next + free as u64);
                moved = true;
            }
        }
        if !moved {
            std::thread::yield_now();
        }
    }
    end();
    answered.window = clock.now().since(begun_at);
    Ok(answered)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::runtime::bind::free_ports;

    #[test]
    fn requests_are_answered_once_each_with_the_size_asked_for() {
        let base = free_ports(Ipv4Addr::LOCALHOST.into(), 20_000 + (std::process::id() % 20_000) as u16, 1).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, base));
        let stop = Stop::new();
        std::thread::scope(|scope| {
            let server = scope.spawn(|| Server::default().run(address, Backend::Sockets, &stop));
            let (warm_up, seconds) = (Duration::from_millis(200), Duration::from_millis(200));
            for (request_bytes, reply_bytes, outstanding) in [(4, 0, 1), (4_096, 0, 5), (4, 4_096, 5)] {
                let load = Work { clients: 2, outstanding, request_bytes, reply_bytes };
                assert_eq!(load.validate(), Ok(()));
                let answered = work(load, address, Backend::Sockets, (warm_up, seconds), (|| (), || ())).unwrap();
                assert!(answered.operations > 0 && answered.wrong == 0, "{load:?}: {answered:?}");
                assert_eq!(answered.operations, answered.latencies.len());
                assert!(answered.window >= seconds);
            }
            stop.stop();
            server.join().unwrap().unwrap();
        });
    }

    #[test]
    fn what_is_not_authentic_is_not_answered() {
        let mut server = Server::default();
        let mut client = Keyring::client(&identity(0), EndpointId(9), keys(), AuthMode::Mac).unwrap();
        let Principal::Client(id, endpoint) = client.me() else { panic!() };
        let mut builder = PackBuilder::new(id, endpoint);
        for t in 1..=3 {
            let op = &Null::op(4, 5_000);
            builder.push(&Request { session: SESSION, t, low: 1, kind: RequestKind::Ordered, op });
        }
        let pack = client.seal_pack(&mut builder, false, false);
        let bytes = [client.seal_pack_hop(SERVER, &pack).as_slice(), pack.encoded()].concat();
        let from = Peer::Address(SocketAddr::from((Ipv4Addr::LOCALHOST, 9)));
        let mut ask = |bytes: Vec<u8>| {
            let mut outbox = Vec::new();
            server.turn(Time(0), &mut vec![Datagram { from, bytes: bytes.into() }], &mut outbox);
            outbox
        };
        for at in [HEADER, HEADER + MAC + 40, bytes.len() - 8 * ENTRIES] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(ask(damaged).is_empty(), "a byte at {at} is wrong");
        }
        let outbox = ask(bytes);
        assert!(outbox.iter().all(|sent| sent.to == from && sent.len() <= DATAGRAM));
        let mut answered = 0;
        for sent in outbox {
            let Ok(Opened::Replies(replies)) = client.open(&sent.to_bytes()) else { panic!("it is for this client") };
            answered += replies.map(|frame| frame.unwrap().iter().count()).sum::<usize>();
        }
        assert_eq!(answered, 3);
    }
}
