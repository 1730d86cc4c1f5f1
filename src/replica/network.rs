//! The network role: datagrams to authentic messages, messages to as few datagrams as can be.
//!
//! ```text
//! receive(now, datagram, &mut inbound)     any bytes: authentic items, or a count of why not
//! send, broadcast, reply                   what is to be said in this turn
//! flush(now, &mut outgoing)                one envelope for each peer, if it fits; replies before all else
//! deadline()                               when flush must run again though nothing is said
//! ```
//! What is the same for all replicas is one envelope: one body, one digest, a MAC each. A replica to which something
//! else is to be said as well gets both in an envelope of its own.

mod announcer;
mod company;
mod kept;
mod leaving;
mod pacer;
mod peers;
mod receipts;
mod resent;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use announcer::Announcer;
use company::Company;
use kept::Kept;
pub use pacer::Pace;
use pacer::Pacer;
use peers::Rate;
use peers::{ClientPeers, Quota, Sender};
use receipts::Receipts;
pub use resent::Resent;

use crate::auth::{AuthMode, Keyring, Learned, Opened, Principal, Reject, Rejects, Verified};
use crate::execution::Reply;
use crate::limits;
use crate::transport::{Datagram, Head, Outgoing, Peer};
use crate::types::{ClientId, ClusterSize, Digest, EndpointId, ReplicaId, ReplicaSet, Time, View};
use crate::wire::fragment::{Assembled, ReassemblyLimits};
use crate::wire::{
    Claim, FragmentHeader, FrameBuffer, Header, Malformed, Message, NewKey, Outcome, Pack, Proposed, ReplyEntry,
    ReplyKind, ReplyResult, default_replier,
};

/// Bounds of the network role.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// The largest datagram to send, in bytes of UDP payload. The default fits an Ethernet frame under IPv6.
    pub datagram_max: usize,
    /// Unfinished messages of each replica.
    pub replica_reassembly: ReassemblyLimits,
    /// Unfinished messages of each client identity.
    pub client_reassembly: ReassemblyLimits,
    /// Bytes of unfinished messages of all clients together. Above it the client that holds most loses its newest.
    pub clients_reassembly_max: usize,
    /// Signatures of packs that are checked for one client (P2); in signature mode, where all are signed, 64 times as
    /// many. A replica that hands on packs may hand on so many bad ones: a correct one hands on none.
    pub signatures: Rate,
    /// Signatures that are checked for everybody whom an open cluster does not know yet, together.
    pub newcomers: Rate,
    /// Wrong MACs in one replica's name, and in all clients' names together, before nothing that comes in that name is
    /// looked at for the rest of the window (P40). Far more than a correct sender's lost keys explain, and as many as
    /// fill a core: it bounds who guesses, not who is heard.
    pub bad_macs: Rate,
    /// Bytes of clients' large messages that may be on their way here at once (P54): what half of a socket's buffer
    /// holds.
    pub credit: usize,
    /// How fragments leave.
    pub pace: Pace,
}

impl Default for NetworkConfig {
    fn default() -> NetworkConfig {
        let window = Duration::from_millis(100);
        NetworkConfig {
            datagram_max: 1_452,
            replica_reassembly: ReassemblyLimits::default(),
            // Many endpoints may share an identity.
            client_reassembly: ReassemblyLimits {
                bytes_max: 128 << 20,
                entries_max: 1_024,
                ..ReassemblyLimits::default()
            },
            clients_reassembly_max: 256 << 20,
            // A tenth of a core: 37 µs each.
            signatures: Rate { count: 256, window },
            newcomers: Rate { count: 256, window },
            bad_macs: Rate { count: 32_768, window },
            credit: 2 << 20,
            pace: Pace::default(),
        }
    }
}

impl NetworkConfig {
    /// One sentence if a bound is wrong.
    ///
    /// # Errors
    /// The sentence.
    pub fn validate(&self) -> Result<(), String> {
        if !(limits::DATAGRAM_MIN..=limits::DATAGRAM_MAX).contains(&self.datagram_max) {
            let (min, max) = (limits::DATAGRAM_MIN, limits::DATAGRAM_MAX);
            return Err(format!("datagram_max is {} bytes; it must lie between {min} and {max}", self.datagram_max));
        }
        for limits in [&self.replica_reassembly, &self.client_reassembly] {
            limits.validate()?;
        }
        if self.clients_reassembly_max < self.client_reassembly.bytes_max {
            return Err("clients_reassembly_max must be at least what one client may hold".to_owned());
        }
        if self.credit < limits::DATAGRAM_MIN {
            return Err(format!("credit is {} bytes; it must be at least {}", self.credit, limits::DATAGRAM_MIN));
        }
        if self.pace.waiting_max < 2 * limits::MESSAGE_MAX || self.pace.total_max < self.pace.waiting_max {
            return Err("two messages of the largest size must be allowed to wait for a receiver".to_owned());
        }
        Ok(())
    }
}

/// An authentic item for the other roles.
#[derive(Clone, Debug)]
pub enum Inbound {
    /// A replica's message; neither pre-prepare, nor checkpoint, nor a pack.
    Message(Verified<Message>),
    /// A pre-prepare and the digests of those of its inline packs whose own proof is not good for this replica (P12).
    PrePrepare(Verified<Message>, Vec<Digest>),
    /// A FETCH-STATE or STATE, for the checkpoint role.
    Transfer(Verified<Message>),
    /// A checkpoint that someone claims to have signed: the checkpoint role checks the signature, off this path.
    Claim(ReplicaId, Claim),
    /// A pack with ordered requests, authentic for this replica.
    Request {
        /// The pack.
        pack: Verified<Pack>,
        /// Proved by signature.
        signed: bool,
    },
    /// A pack with ordered requests that another replica handed on, authentic for this replica: a relay to the primary,
    /// or the body that a pre-prepare named. It is not handed on again: two replicas that take each other for the
    /// primary would never stop.
    Relayed(Verified<Pack>),
    /// The body of a pack that another replica handed on; its own proof is not good for this replica.
    Body(Pack),
    /// A pack of read-only requests, authentic for this replica.
    Query(Verified<Pack>),
    /// A replica has started, for the so-manyth time: what comes from it from here on, it says in this life (P42).
    Boot(ReplicaId, u64),
}

/// Where the last datagram of a foreign cluster came from: two clusters that share addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Foreign {
    /// The first eight bytes of its cluster id.
    pub cluster: u64,
    /// Where it came from.
    pub from: Peer,
    /// When.
    pub at: Time,
}

/// The network role of one replica.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    keys: Keyring,
    size: ClusterSize,
    me: ReplicaId,

    replicas: Vec<Sender>,
    clients: ClientPeers,
    newcomers: Quota,
    /// When unfinished messages are next looked through, if there are any.
    sweep_at: Time,

    shared: FrameBuffer,
    own: Vec<FrameBuffer>,
    company: Company,
    reply_frames: FrameBuffer,
    reply_entries: Vec<ReplyEntry>,
    replies: BTreeMap<(ClientId, EndpointId), Vec<(View, ReplyEntry)>>,
    kept: Kept,
    /// When something large last arrived, or a piece of it.
    bulk_at: Time,
    receipts: Receipts,
    announcer: Announcer,
    /// Our key for client endpoints that do not know it.
    told: Vec<Outgoing>,
    /// Wrong MACs by replica, and of all clients; and whether any of these quotas is used up.
    guesses: Vec<Quota>,
    guessed_until: Time,
    pacer: Pacer,
    next_message: u64,
    resent: Resent,
    // Kept for their capacity.
    heads: Vec<(Principal, Head)>,
    spare_replies: Vec<Vec<(View, ReplyEntry)>>,

    rejects: Rejects,
    bad_macs: Vec<u64>,
    /// What each replica sent, authentic, that no correct one sends.
    misdeeds: Vec<Rejects>,
    foreign: Option<Foreign>,
}

/// Shared frames above this travel in an envelope of their own even to a peer with frames of its own: copying them
/// would cost more than the datagram saved.
const COPY_MAX: usize = 8 << 10;

/// After something large more of it is expected for so long.
const BULK_FOR: Duration = Duration::from_millis(20);

/// Reply buffers kept for reuse.
const SPARE_MAX: usize = 256;

/// Replicas are where the cluster file says.
fn peer_of(to: Principal) -> Option<Peer> {
    match to {
        Principal::Replica(id) => Some(Peer::Replica(id)),
        Principal::Client(..) => None,
    }
}

impl Network {
    /// The network role of the replica whose keys these are. Fails with one sentence if the configuration is wrong.
    pub fn new(config: NetworkConfig, keys: Keyring, size: ClusterSize) -> Result<Network, String> {
        config.validate()?;
        let Principal::Replica(me) = keys.me() else { return Err("a replica needs a replica's keys".to_owned()) };
        if keys.size() != size {
            return Err(format!("keys for {} replicas, configuration for {}", keys.size().n(), size.n()));
        }
        Ok(Network {
            size,
            me,
            replicas: size.replicas().map(|_| Sender::new(config.replica_reassembly)).collect(),
            clients: ClientPeers::new(config.client_reassembly, config.clients_reassembly_max),
            newcomers: Quota::default(),
            sweep_at: Time::NEVER,
            shared: FrameBuffer::default(),
            own: size.replicas().map(|_| FrameBuffer::default()).collect(),
            company: Company::new(size.n()),
            reply_frames: FrameBuffer::default(),
            reply_entries: Vec::new(),
            replies: BTreeMap::new(),
            kept: Kept::default(),
            bulk_at: Time(0),
            receipts: Receipts::new(config.credit),
            announcer: Announcer::new(size.n(), size.others(me).filter(|_| keys.epoch() > 0)),
            told: Vec::new(),
            guesses: vec![Quota::default(); size.n() + 1],
            guessed_until: Time(0),
            pacer: Pacer::new(config.pace),
            next_message: 0,
            resent: Resent::default(),
            heads: Vec::new(),
            spare_replies: Vec::new(),
            rejects: Rejects::default(),
            bad_macs: vec![0; size.n()],
            misdeeds: vec![Rejects::default(); size.n()],
            foreign: None,
            config,
            keys,
        })
    }

    /// The same for clients alone: what replicas say, and what is said to them, passes through another one of this replica.
    ///
    /// # Errors
    /// One sentence if the configuration is wrong.
    pub fn for_clients(config: NetworkConfig, keys: Keyring, size: ClusterSize) -> Result<Network, String> {
        let mut network = Network::new(config, keys, size)?;
        // Nobody would ever show here that he knows our key.
        network.announcer = Announcer::new(size.n(), std::iter::empty());
        Ok(network)
    }

    /// What was dropped, by reason.
    pub fn rejects(&self) -> Vec<(&'static str, u64)> {
        self.rejects.iter().collect()
    }

    /// How often this reason occurred.
    pub fn rejected(&self, reject: Reject) -> u64 {
        self.rejects.of(reject)
    }

    /// Datagrams in the name of `id` whose proof was wrong: wrong keys, or another instance, or a stranger.
    pub fn bad_macs(&self, id: ReplicaId) -> u64 {
        self.bad_macs.get(usize::from(id.0)).copied().unwrap_or(0)
    }

    /// What `id` sent, authentic for us, that no correct replica sends: by reason.
    pub fn misdeeds(&self, id: ReplicaId) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.misdeeds.get(usize::from(id.0)).into_iter().flat_map(Rejects::iter)
    }

    /// The last sign of another cluster.
    pub fn foreign(&self) -> Option<Foreign> {
        self.foreign
    }

    /// Takes one datagram of any bytes from anywhere. Appends what is authentic in it to `inbound`.
    pub fn receive(&mut self, now: Time, datagram: Datagram, inbound: &mut Vec<Inbound>) {
        self.keys.expire(now);
        if now < self.guessed_until && self.is_guessed(now, &datagram.bytes) {
            return self.rejects.count(Reject::MacQuota);
        }
        match self.keys.open(&datagram.bytes) {
            Ok(opened) => self.accept(now, datagram.from, opened, inbound),
            Err(reject) => self.refuse(now, datagram.from, &datagram.bytes, reject),
        }
    }

    fn refuse(&mut self, now: Time, from: Peer, bytes: &Bytes, reject: Reject) {
        self.rejects.count(reject);
        if let Reject::ForeignCluster(cluster) = reject {
            self.foreign = Some(Foreign { cluster, from, at: now });
        }
        let Ok(header) = Header::parse(bytes) else { return };
        match reject {
            Reject::BadMac | Reject::BadSignature => {
                if let Principal::Replica(id) = header.sender
                    && let Some(count) = self.bad_macs.get_mut(usize::from(id.0))
                {
                    *count += 1;
                }
                let (guesser, rate) = (self.guesser(&header), self.config.bad_macs);
                self.guesses[guesser].take(now, rate);
                if !self.guesses[guesser].has(now, rate) {
                    self.guessed_until = now + rate.window;
                }
            }
            Reject::UnknownEpoch => self.introduce(now, from, bytes.len(), &header),
            _ => {}
        }
    }

    /// Whose quota of wrong MACs a datagram's header names.
    fn guesser(&self, header: &Header) -> usize {
        match header.sender {
            Principal::Replica(id) => usize::from(id.0).min(self.size.n()),
            Principal::Client(..) => self.size.n(),
        }
    }

    fn is_guessed(&mut self, now: Time, bytes: &Bytes) -> bool {
        let Ok(header) = Header::parse(bytes) else { return false };
        let (guesser, rate) = (self.guesser(&header), self.config.bad_macs);
        !self.guesses[guesser].has(now, rate)
    }

    /// A datagram under keys that are not known here (P40): who sent it, if it did, lacks ours or has one that we lack.
    /// Nobody is to blame.
    fn introduce(&mut self, now: Time, from: Peer, len: usize, header: &Header) {
        if self.keys.epoch() == 0 {
            return;
        }
        match header.sender {
            Principal::Replica(id) if self.size.contains(id) && id != self.me => {
                let lacks_ours = header.receiver_epoch != self.keys.epoch();
                if lacks_ours || header.sender_epoch > self.keys.epoch_of(id) {
                    self.announcer.ask(now, id);
                }
            }
            Principal::Replica(_) => {}
            Principal::Client(client, _) => {
                let Some((head, body)) = self.keys.seal_new_key(header.sender) else { return };
                let answer = Outgoing { to: from, head, body };
                // No answer is larger than the question by much: its address is not proved.
                let fair = answer.len() <= 2 * len;
                if fair && self.keys.admits(client) && self.announcer.may_tell_client(now) {
                    self.told.push(answer);
                }
            }
        }
    }

    /// A replica's new key, whoever brought it (P40).
    fn on_new_key(&mut self, now: Time, key: &NewKey, ours: u32, inbound: &mut Vec<Inbound>) {
        let id = key.replica;
        if self.keys.is_news(key) && !self.announcer.may_check(now, id) {
            return self.rejects.count(Reject::SignatureQuota);
        }
        match self.keys.learn(now, key) {
            Ok(Learned::Known) => {}
            Ok(Learned::News) => {
                self.announcer.forget(id);
                inbound.push(Inbound::Boot(id, key.boot));
            }
            Err(reject) => return self.rejects.count(reject),
        }
        if ours != self.keys.epoch() {
            self.announcer.ask(now, id);
        }
    }

    /// Counts what `sender` said, and no correct replica says; a client's is counted, but not by name.
    fn caught(&mut self, sender: Principal, reject: Reject) {
        self.rejects.count(reject);
        if let Principal::Replica(id) = sender
            && let Some(misdeeds) = self.misdeeds.get_mut(usize::from(id.0))
        {
            misdeeds.count(reject);
        }
    }

    fn accept(&mut self, now: Time, from: Peer, opened: Opened, inbound: &mut Vec<Inbound>) {
        match opened {
            Opened::Envelope(mut envelope) => {
                let sender = Principal::Replica(envelope.from());
                self.announcer.knows(envelope.from());
                for message in &mut envelope {
                    match message {
                        Ok(message) => self.on_message(now, message, inbound),
                        Err(reject) => self.caught(sender, reject),
                    }
                }
                self.keys.close(envelope);
            }
            Opened::Pack { pack, hop } => self.on_pack(now, from, &pack, hop, inbound),
            Opened::Replies(_) | Opened::Receipt { .. } => self.rejects.count(Reject::WrongRole),
            Opened::NewKey { key, ours } => self.on_new_key(now, &key, ours, inbound),
            Opened::Fragment { from: sender, header, piece } => {
                let Some(whole) = self.reassemble(now, from, sender, header, &piece) else { return };
                match self.keys.open(&whole) {
                    Ok(Opened::Fragment { .. } | Opened::NewKey { .. } | Opened::Receipt { .. }) => {
                        self.caught(sender, Reject::Malformed(Malformed::Inconsistent));
                    }
                    // A sender's pieces speak for it alone.
                    Ok(_) if Header::parse(&whole).map(|header| header.sender) != Ok(sender) => {
                        self.caught(sender, Reject::NotTheSpeaker);
                    }
                    Ok(opened) => self.accept(now, from, opened, inbound),
                    Err(reject) => self.refuse(now, from, &whole, reject),
                }
            }
        }
    }

    fn on_message(&mut self, now: Time, message: Verified<Message>, inbound: &mut Vec<Inbound>) {
        let Some(from) = message.replica() else { return self.rejects.count(Reject::WrongRole) };
        match message.get() {
            Message::PrePrepare(pre_prepare) => {
                let unproven = pre_prepare.packs.iter().filter_map(|proposed| match proposed {
                    Proposed::Inline(pack) => self.verify_relayed(now, from, pack).is_err().then(|| pack.digest()),
                    Proposed::ByDigest(_) => None,
                });
                let unproven = unproven.collect();
                inbound.push(Inbound::PrePrepare(message, unproven));
            }
            Message::Checkpoint(checkpoint) => inbound.push(Inbound::Claim(from, Claim::Checkpoint(*checkpoint))),
            Message::Stable(proof) => inbound.push(Inbound::Claim(from, Claim::Stable(proof.clone()))),
            Message::ViewChange(signed) => inbound.push(Inbound::Claim(from, Claim::ViewChange(signed.clone()))),
            Message::NewView(signed) => inbound.push(Inbound::Claim(from, Claim::NewView(signed.clone()))),
            Message::StableAnswer(answer) => {
                inbound.push(Inbound::Claim(from, Claim::StableAnswer(from, answer.clone())));
            }
            Message::Relay(pack) => match self.verify_relayed(now, from, pack) {
                Ok(verified) => inbound.push(Inbound::Relayed(verified)),
                Err(Reject::RelayedQuery) => {}
                Err(_) => inbound.push(Inbound::Body(pack.clone())),
            },
            Message::Prepare(_)
            | Message::Commit(_)
            | Message::Committed(_)
            | Message::Status(_)
            | Message::FetchBatch(_)
            | Message::Batch(..)
            | Message::FetchPack(_)
            | Message::FetchViewChange(_)
            | Message::QueryStable(_)
            | Message::Answered(_) => inbound.push(Inbound::Message(message)),
            Message::FetchState(_) | Message::State(_) => inbound.push(Inbound::Transfer(message)),
        }
    }

    /// Checks a pack that another replica handed on. A bad signature counts against the replica, which had to check it
    /// before, not against the client, in whose name anybody can write nonsense.
    fn verify_relayed(&mut self, now: Time, from: ReplicaId, pack: &Pack) -> Result<Verified<Pack>, Reject> {
        let rate = self.config.signatures;
        let result = if pack.is_read_only() {
            Err(Reject::RelayedQuery)
        } else if !self.keys.costs_signature(pack) {
            self.keys.verify_pack(pack.clone())
        } else if self.replicas[usize::from(from.0)].signatures.has(now, rate) {
            self.keys.verify_pack(pack.clone()).inspect_err(|_| {
                self.replicas[usize::from(from.0)].signatures.take(now, rate);
            })
        } else {
            Err(Reject::SignatureQuota)
        };
        result.inspect_err(|reject| match reject {
            // A client's vector may be good for some replicas only; a signature is good for all or none.
            Reject::RelayedQuery | Reject::BadSignature | Reject::IdentityMismatch => {
                self.caught(Principal::Replica(from), *reject);
            }
            _ => self.rejects.count(*reject),
        })
    }

    /// A pack from its client itself.
    fn on_pack(&mut self, now: Time, from: Peer, pack: &Pack, hop: bool, inbound: &mut Vec<Inbound>) {
        let (client, endpoint, signed) = (pack.client(), pack.endpoint(), pack.is_signed());
        let Rate { count, window } = self.config.signatures;
        let rate = match self.keys.mode() {
            AuthMode::Mac => Rate { count, window },
            AuthMode::Signature => Rate { count: count.saturating_mul(64), window },
        };
        let within = match (self.keys.costs_signature(pack), hop) {
            (false, _) => true,
            (true, true) => self.clients.sender(client).signatures.take(now, rate),
            (true, false) => self.newcomers.take(now, self.config.newcomers),
        };
        if !within {
            return self.rejects.count(Reject::SignatureQuota);
        }
        match self.keys.verify_pack(pack.clone()) {
            Ok(pack) => {
                self.clients.learn(client, endpoint, from);
                if pack.get().encoded().len() > COPY_MAX {
                    self.bulk_at = now;
                }
                inbound.push(match pack.is_read_only() {
                    true => Inbound::Query(pack),
                    false => Inbound::Request { pack, signed },
                });
            }
            Err(reject) => self.rejects.count(reject),
        }
    }

    /// A client's signed pack, which another network role of this replica has accepted: an open cluster knows its client
    /// from now on.
    pub fn meet(&mut self, pack: &Verified<Pack>) {
        if !self.keys.knows(pack.get().client())
            && let Err(reject) = self.keys.verify_pack(pack.get().clone())
        {
            self.rejects.count(reject);
        }
    }

    fn reassemble(
        &mut self,
        now: Time,
        from: Peer,
        sender: Principal,
        header: FragmentHeader,
        piece: &[u8],
    ) -> Option<Bytes> {
        let mut dropped = 0;
        self.bulk_at = now;
        let result = match sender {
            Principal::Replica(id) => {
                self.replicas[usize::from(id.0)].reassembler.insert(now, 0, header, piece, &mut dropped)
            }
            Principal::Client(client, endpoint) => {
                let result = self.clients.reassemble(now, (client, endpoint), header, piece, &mut dropped);
                if result.is_ok() {
                    self.receipts.note((client, endpoint, header.message), from, header);
                }
                result
            }
        };
        self.rejects.add(Reject::ReassemblyDropped, dropped);
        self.sweep_at = self.sweep_at.min(now + self.sweep_interval());
        match result {
            Ok(Assembled::Complete(whole)) => Some(whole),
            Ok(Assembled::Partial | Assembled::NoRoom) => None,
            Err(malformed) => {
                self.caught(sender, Reject::Malformed(malformed));
                None
            }
        }
    }

    fn sweep_interval(&self) -> Duration {
        self.config.replica_reassembly.timeout.min(self.config.client_reassembly.timeout)
    }

    /// Drops unfinished messages that timed out.
    fn sweep(&mut self, now: Time) {
        if now < self.sweep_at {
            return;
        }
        let (mut dropped, mut left) = self.clients.expire(now);
        for Sender { reassembler, .. } in &mut self.replicas {
            dropped += reassembler.expire(now);
            left |= !reassembler.is_empty();
        }
        self.rejects.add(Reject::ReassemblyDropped, dropped);
        self.sweep_at = if left { now + self.sweep_interval() } else { Time::NEVER };
    }

    /// Says `message` to one other replica, with the next [`flush`](Self::flush).
    pub fn send(&mut self, to: ReplicaId, message: Message) {
        assert!(to != self.me && self.size.contains(to), "{to} is no other replica");
        self.company.said(&message, std::iter::once(to));
        if !self.own[usize::from(to.0)].push(&message) {
            self.rejects.count(Reject::TooLargeToSend);
        }
    }

    /// Says `message` to all other replicas, with the next [`flush`](Self::flush).
    pub fn broadcast(&mut self, message: Message) {
        self.company.said(&message, self.size.others(self.me));
        if !self.shared.push(&message) {
            self.rejects.count(Reject::TooLargeToSend);
        }
    }

    /// Answers a client endpoint, with the next [`flush`](Self::flush): with the result, or with its digest if it is
    /// large, another replica is to send the whole, and the client did not ask everyone for it (P7).
    pub fn reply(&mut self, reply: Reply) {
        let Reply { client, endpoint, session, t, view, kind, position, outcome, full } = reply;
        let large = matches!(&outcome, Outcome::Done(bytes) if bytes.len() > limits::SMALL_RESULT_MAX);
        let result = if large && !full && default_replier(session, t, view, self.size) != self.me {
            ReplyResult::Digest(outcome.digest())
        } else {
            ReplyResult::Full(outcome)
        };
        let spare = &mut self.spare_replies;
        let waiting = self.replies.entry((client, endpoint)).or_insert_with(|| spare.pop().unwrap_or_default());
        waiting.push((view, ReplyEntry { session, t, kind, position, result }));
    }

    /// What orders may wait for company to these replicas, until there is a datagram of it or `delay` is over (P53). What
    /// waits for others leaves with the next [`flush`](Self::flush).
    pub fn gather(&mut self, patient: ReplicaSet, delay: Duration) {
        self.company.set(patient, delay);
    }

    /// Whether large messages arrive these days: the sockets' buffers would not hold for long what there is of them.
    pub fn receives_bulk(&self, now: Time) -> bool {
        now.since(self.bulk_at) < BULK_FOR
    }

    /// Keeps a reply that nobody may need until [`release`](Self::release), or `until` nobody needs it any more (P53).
    pub fn keep(&mut self, now: Time, until: Time, reply: Reply) {
        // What a client asks everybody for, and what it asks without ordering, it needs.
        let spare = match reply.kind {
            ReplyKind::Tentative | ReplyKind::Committed => !reply.full,
            ReplyKind::ReadOnly | ReplyKind::TentativeRead => false,
        };
        match spare {
            true => self.kept.push(now, until, reply),
            false => self.reply(reply),
        }
    }

    /// Sends the replies that were kept: they are needed after all.
    pub fn release(&mut self, now: Time) {
        while let Some(reply) = self.kept.pop(now) {
            self.reply(reply);
        }
    }

    /// When [`flush`](Self::flush) must run again.
    pub fn deadline(&self) -> Time {
        self.pacer
            .deadline()
            .min(self.sweep_at)
            .min(self.announcer.deadline())
            .min(self.company.deadline())
            .min(self.receipts.deadline())
    }

    /// Appends everything that is to be sent to `out`.
    pub fn flush(&mut self, now: Time, out: &mut Vec<Outgoing>) {
        self.sweep(now);
        out.append(&mut self.told);
        while let Some(id) = self.announcer.next(now) {
            let key = self.keys.seal_new_key(Principal::Replica(id));
            out.extend(key.map(|(head, body)| Outgoing { to: Peer::Replica(id), head, body }));
        }
        self.flush_receipts(now, out);
        self.flush_replies(now, out);
        self.flush_envelopes(now, out);
        self.pacer.release(now, out);
    }
}
