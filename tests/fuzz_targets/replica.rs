//! Correct replicas among liars who hold real keys, and clients that lie as well: three correct ones and one liar, or
//! one that hears nothing but liars. An input is a number of records, each of which is something that happens.
//!
//! Of the three it must hold that they agree; of the one only that it keeps its own invariants, neither panics nor
//! turns for ever, and says no more than it is asked to (P21, P44): what more than f liars bring about besides is not
//! in the model.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use castra::auth::{FreshKey, Keyring, Opened, Principal, Signer};
use castra::protocol;
use castra::replica::{Fed, Replica, ReplicaConfig};
use castra::sim::Tally;
use castra::transport::{Datagram, Head, Machine, Outgoing, Peer};
use castra::types::{Digest, ReplicaId, SeqNum, SessionId, Time};
use castra::wire::{
    FrameBuffer, Message, Outcome, PrePrepare, Proposed, ReplyKind, ReplyResult, Signed, ViewChange, Vote,
};

use super::hostile::{CLIENTS, K, Known, L, Record, Stand, keys, sign_new_view, sign_view_change, size};

const EPOCH: Time = Time(1_700_000_000_000_000_000);
/// Datagrams from one correct replica to another that one record may cause, and turns of all replicas.
const STORM: usize = 20_000;

pub fn run(data: &[u8]) {
    let Some((&cast, data)) = data.split_first() else { return };
    let mut show = Show::new(cast);
    for record in data.chunks(Record::BYTES).take(128) {
        show.play(&mut Record::new(record));
    }
}

enum Party {
    Correct(Box<Replica<Tally>>),
    Liar { keys: Box<Keyring>, signer: Box<Signer>, boot: u64 },
}

struct Show {
    now: Time,
    parties: Vec<Party>,
    /// The correct replica that the liars look at.
    me: ReplicaId,
    clients: Vec<Keyring>,
    mail: VecDeque<(ReplicaId, Datagram)>,
    /// Correct replicas that nothing from others of them reaches, by bit.
    cut: u8,
    pieces: Pieces,
    known: Known,
    order: BTreeMap<SeqNum, Digest>,
    liars: usize,
    turns: usize,
}

fn replica(id: ReplicaId, keys: Keyring) -> Replica<Tally> {
    let mut protocol = protocol::Config::new(size(), id);
    (protocol.checkpoint_interval, protocol.log_window) = (K, L);
    (protocol.pipeline_max, protocol.inline_max, protocol.ahead_max) = (3, 256, 8);
    let mut config = ReplicaConfig::new(protocol);
    config.network.datagram_max = castra::limits::DATAGRAM_MAX;
    config.trace = true;
    let execution = &mut config.execution;
    (execution.sessions_max, execution.sessions_per_client, execution.clients_max) = (5, 3, 2);
    (execution.window_max, execution.session_idle) = (8, Duration::from_secs(1));
    (execution.reply_store, execution.service_pages) = (1 << 20, 70);
    (execution.held_packs_per_client, execution.held_bytes_per_client) = (4, 1 << 10);
    Replica::new(config, keys, Tally, EPOCH).unwrap()
}

/// How datagrams of liars are cut, though they would fit whole.
#[derive(Clone, Copy)]
struct Pieces {
    number: u64,
    /// 0: not at all; else which pieces come in reverse, twice, or not.
    order: u8,
}

impl Pieces {
    fn draw(&mut self, record: &mut Record<'_>) {
        self.order = if record.chance(48) { record.byte() } else { 0 };
        // A number that was used before.
        self.number -= u64::from(self.order & 8 != 0 && self.number > 1);
    }
}

/// The datagrams that carry `head` and `body`.
fn cut(keys: &Keyring, pieces: Pieces, to: ReplicaId, head: Head, body: &Bytes) -> impl Iterator<Item = Bytes> {
    let mut cut = Vec::new();
    if pieces.order == 0 || body.is_empty() {
        cut.push([head.as_slice(), body].concat());
    } else {
        let to = [(Principal::Replica(to), head)];
        keys.fragment(pieces.number, castra::limits::DATAGRAM_MIN, &to, body, |_, head, piece| {
            cut.push([head.as_slice(), &piece].concat());
        });
        if pieces.order & 1 != 0 {
            cut.reverse();
        }
        if pieces.order & 2 != 0 {
            cut.extend(cut.first().cloned());
        }
        if pieces.order & 4 != 0 {
            cut.pop();
        }
    }
    cut.into_iter().map(Bytes::from)
}

fn address(client: usize) -> Peer {
    Peer::Address(SocketAddr::from(([10, 0, 0, 1 + client as u8], 1_000)))
}

impl Show {
    fn new(cast: u8) -> Show {
        let first = ReplicaId(cast % 4);
        let alone = cast & 4 == 0;
        let party = |id: ReplicaId| {
            let keys = keys().replicas[usize::from(id.0)].clone();
            match alone {
                true if id == first => Party::Correct(Box::new(replica(id, keys))),
                false if id != first => Party::Correct(Box::new(replica(id, keys))),
                _ => Party::Liar { signer: Box::new(keys.signer()), keys: Box::new(keys), boot: 0 },
            }
        };
        Show {
            now: EPOCH,
            parties: size().replicas().map(party).collect(),
            me: if alone { first } else { ReplicaId((first.0 + 1) % 4) },
            clients: keys().clients.clone(),
            mail: VecDeque::new(),
            cut: 0,
            pieces: Pieces { number: 1, order: 0 },
            known: Known::default(),
            order: BTreeMap::new(),
            liars: if alone { 3 } else { 1 },
            turns: 0,
        }
    }

    fn subject(&self) -> &Replica<Tally> {
        match &self.parties[usize::from(self.me.0)] {
            Party::Correct(replica) => replica,
            Party::Liar { .. } => unreachable!("the liars look at a correct replica"),
        }
    }

    fn stand(&self) -> Stand {
        let agreement = self.subject().agreement();
        Stand {
            now: self.now,
            view: agreement.view(),
            executed: agreement.last_executed(),
            stable: agreement.last_stable(),
        }
    }

    fn liar_ids(&self) -> Vec<ReplicaId> {
        let is_liar = |id: &ReplicaId| matches!(self.parties[usize::from(id.0)], Party::Liar { .. });
        size().replicas().filter(is_liar).collect()
    }

    fn correct_ids(&self) -> Vec<ReplicaId> {
        let is_correct = |id: &ReplicaId| matches!(self.parties[usize::from(id.0)], Party::Correct(_));
        size().replicas().filter(is_correct).collect()
    }

    /// One thing happens, and everything that follows from it at once.
    fn play(&mut self, record: &mut Record<'_>) {
        self.turns = 0;
        match record.byte() % 16 {
            0..=5 => self.lie(record),
            6 | 7 => self.client(record),
            8 | 9 => self.pass(record),
            10 | 11 => self.agree(record),
            12 => self.certify(record),
            13 | 14 => self.change_view(record),
            _ => self.restart(record),
        }
        self.deliver();
    }

    /// Some liars say something each, of one kind.
    fn lie(&mut self, record: &mut Record<'_>) {
        let mask = record.byte() | 1;
        self.pieces.draw(record);
        let stand = self.stand();
        let mut rest = [0; Record::BYTES];
        rest.fill_with(|| record.byte());
        for (i, id) in self.liar_ids().into_iter().enumerate() {
            if mask >> i & 1 == 0 {
                continue;
            }
            let Party::Liar { signer, .. } = &self.parties[usize::from(id.0)] else { continue };
            let message = Record::new(&rest).message(&stand, &self.known, signer);
            self.known.learn(&message);
            self.say(id, mask >> 4, &[message]);
        }
    }

    /// `liar` says `messages` in one envelope, to every correct replica or to those that `left_out` does not name.
    fn say(&mut self, liar: ReplicaId, left_out: u8, messages: &[Message]) {
        let Party::Liar { keys, .. } = &self.parties[usize::from(liar.0)] else { return };
        let mut buffer = FrameBuffer::default();
        let fit = messages.iter().filter(|message| buffer.push(message)).count();
        let frames = buffer.take();
        let alone = self.liars == 3;
        let mut mail = Vec::new();
        for to in self.correct_ids() {
            if !alone && left_out >> to.0 & 1 == 1 {
                continue;
            }
            let head = keys.seal(Principal::Replica(to), &[(&frames, 0..fit)]).expect("another replica");
            mail.extend(cut(keys, self.pieces, to, head, frames.bytes()).map(|bytes| (to, bytes)));
        }
        self.post(Peer::Replica(liar), mail);
    }

    fn post(&mut self, from: Peer, mail: Vec<(ReplicaId, Bytes)>) {
        self.mail.extend(mail.into_iter().map(|(to, bytes)| (to, Datagram { from, bytes })));
        self.pieces.number += 1;
    }

    fn client(&mut self, record: &mut Record<'_>) {
        let (which, to) = (usize::from(record.byte()) % CLIENTS, record.byte());
        self.pieces.draw(record);
        let Some(pack) = record.pack(&self.known, &self.clients[which]) else { return };
        self.known.packs.push(pack.clone());
        let mut mail = Vec::new();
        for id in self.correct_ids() {
            if to >> id.0 & 1 == 0 {
                let keys = &self.clients[which];
                let head = keys.seal_pack_hop(id, &pack);
                mail.extend(cut(keys, self.pieces, id, head, pack.encoded()).map(|bytes| (id, bytes)));
            }
        }
        self.post(address(which), mail);
    }

    fn pass(&mut self, record: &mut Record<'_>) {
        const MILLISECONDS: [u64; 8] = [0, 1, 6, 25, 60, 120, 300, 1_100];
        let until = self.now + Duration::from_millis(MILLISECONDS[usize::from(record.byte() % 8)]);
        // Drawn anew each time: a network that is cut for ever is only a smaller one.
        self.cut = record.byte() & record.byte();
        self.deliver();
        loop {
            let due = |party: &Party| match party {
                Party::Correct(replica) => replica.deadline(),
                Party::Liar { .. } => Time::NEVER,
            };
            let next = self.parties.iter().map(due).min().expect("replicas");
            if next > until {
                break;
            }
            self.now = self.now.max(next);
            for id in self.correct_ids() {
                if due(&self.parties[usize::from(id.0)]) <= self.now {
                    self.turn(id, Vec::new());
                }
            }
            self.deliver();
        }
        self.now = until;
    }

    /// The liars do what correct replicas would do for the next few batches, or most of it.
    fn agree(&mut self, record: &mut Record<'_>) {
        let (mask, rounds, certify) = (record.byte(), record.byte() % 5, record.byte() % 4 > 0);
        for _ in 0..=rounds {
            self.agree_once(mask, record);
            self.deliver();
            if certify {
                self.certify(&mut Record::new(&[0, 0]));
                self.deliver();
            }
        }
    }

    fn agree_once(&mut self, mask: u8, record: &mut Record<'_>) {
        let stand = self.stand();
        let n = SeqNum(stand.executed.0 + 1 + u64::from(mask >> 2 & 3) / 3);
        let primary = size().primary(stand.view);
        let of_place = |known: &Known| {
            known.entries.iter().rev().find(|e| (e.n, e.view) == (n, stand.view)).map(|entry| entry.digest)
        };
        if of_place(&self.known).is_none() {
            if self.liar_ids().contains(&primary) {
                let packs = (0..record.byte() % 3).filter_map(|_| self.known.packs.back(record.byte()).cloned());
                let packs = packs.map(Proposed::Inline).collect();
                let choice = castra::wire::Choice { time: stand.now.0, seed: 1 };
                let message = Message::PrePrepare(PrePrepare { view: stand.view, n, choice, packs });
                self.known.learn(&message);
                self.say(primary, 0, &[message]);
            } else {
                self.client(record);
                self.deliver();
            }
        }
        let Some(digest) = of_place(&self.known) else { return };
        let vote = Vote { view: stand.view, n, digest };
        for id in self.liar_ids() {
            let mut said = Vec::new();
            if mask & 1 == 0 && id != primary {
                said.push(Message::Prepare(vote));
            }
            if mask & 2 == 0 {
                said.push(Message::Commit(vote));
            }
            self.say(id, mask >> 4, &said);
        }
    }

    /// The liars sign the last root that they know of.
    fn certify(&mut self, record: &mut Record<'_>) {
        let (mask, back) = (record.byte(), record.byte() % 2);
        let Some(&(n, root)) = self.known.roots.back(back) else { return };
        for (i, id) in self.liar_ids().into_iter().enumerate() {
            let Party::Liar { signer, .. } = &self.parties[usize::from(id.0)] else { continue };
            if mask >> i & 1 == 0
                && let castra::wire::Claim::Checkpoint(c) = signer.sign_checkpoint(n, root).into_inner()
            {
                let message = Message::Checkpoint(c);
                self.known.learn(&message);
                self.say(id, mask >> 4, &[message]);
            }
        }
    }

    /// The liars leave for the next view, and begin it if it is theirs.
    fn change_view(&mut self, record: &mut Record<'_>) {
        let (stand, mask) = (self.stand(), record.byte());
        let ahead = u64::from(record.byte() % 8 / 6);
        // In the view that it waits for, or for the next one.
        let target = if mask & 8 == 0 { stand.view.next() } else { stand.view };
        let target = castra::types::View(target.0 + ahead);
        let mut rest = [0; Record::BYTES];
        rest.fill_with(|| record.byte());
        for (i, id) in self.liar_ids().into_iter().enumerate() {
            let Party::Liar { signer, .. } = &self.parties[usize::from(id.0)] else { continue };
            if mask >> i & 1 == 0 {
                let said = Record::new(&rest).view_change(&stand, &self.known, target);
                let message = sign_view_change(signer, said);
                self.known.learn(&message);
                self.say(id, mask >> 4, &[message]);
            }
        }
        self.deliver();
        let primary = size().primary(target);
        if let Party::Liar { signer, .. } = &self.parties[usize::from(primary.0)] {
            let said = Record::new(&rest[12..]).new_view(&self.stand(), &self.known, target);
            let message = sign_new_view(signer, said);
            self.known.learn(&message);
            self.say(primary, 0, &[message]);
        }
    }

    /// A liar starts again, or bytes of nobody's come.
    fn restart(&mut self, record: &mut Record<'_>) {
        let (which, count) = (record.byte(), record.byte());
        if count % 4 == 0 {
            let bytes: Vec<u8> = (0..count).map(|_| record.byte()).collect();
            self.mail.push_back((self.me, Datagram { from: address(0), bytes: bytes.into() }));
            return;
        }
        let liars = self.liar_ids();
        let id = liars[usize::from(which) % liars.len()];
        let correct = self.correct_ids();
        let Party::Liar { keys, signer, boot } = &mut self.parties[usize::from(id.0)] else { return };
        *boot += u64::from(count % 4);
        keys.begin(&FreshKey::at_boot(*boot, [*boot as u8; 32])).expect("the keys are those of the cluster");
        **signer = keys.signer();
        for to in correct {
            let (head, body) = keys.seal_new_key(Principal::Replica(to)).expect("it has a key of its own");
            let bytes = Bytes::from([head.as_slice(), &body].concat());
            self.mail.push_back((to, Datagram { from: Peer::Replica(id), bytes }));
        }
    }

    fn deliver(&mut self) {
        while let Some((to, datagram)) = self.mail.pop_front() {
            self.turn(to, vec![datagram]);
        }
        // Whatever can be done without waiting is done.
        for id in self.correct_ids() {
            while let Party::Correct(replica) = &self.parties[usize::from(id.0)]
                && replica.deadline() <= self.now
            {
                self.turn(id, Vec::new());
            }
        }
        if !self.mail.is_empty() {
            self.deliver();
        }
    }

    fn turn(&mut self, id: ReplicaId, mut inbox: Vec<Datagram>) {
        self.turns += 1;
        assert!(self.turns < STORM, "replicas that never come to rest (P44)");
        let Party::Correct(replica) = &mut self.parties[usize::from(id.0)] else { return };
        let mut outbox = Vec::new();
        replica.turn(self.now, &mut inbox, &mut outbox);
        replica.agreement().invariants();
        let stopped = replica.stopped();
        assert!(stopped.is_none() || self.liars == 3, "{id} stopped: {stopped:?}");
        let said: usize = outbox.iter().map(Outgoing::len).sum();
        assert!(said <= 4 << 20, "{said} bytes for one turn's input (P21)");
        for fed in replica.drain_committed() {
            if let (Fed::Committed(n, batch), 1) = (fed, self.liars) {
                let first = *self.order.entry(n).or_insert(batch.digest());
                assert_eq!(first, batch.digest(), "{id} committed another batch at {n}");
            }
        }
        for outgoing in outbox {
            self.carry(id, &outgoing);
        }
    }

    fn carry(&mut self, from: ReplicaId, outgoing: &Outgoing) {
        let bytes = outgoing.to_bytes();
        match outgoing.to {
            Peer::Replica(to) => match &mut self.parties[usize::from(to.0)] {
                Party::Correct(_) if (self.cut >> to.0 | self.cut >> from.0) & 1 == 1 => {}
                Party::Correct(_) => {
                    self.mail.push_back((to, Datagram { from: Peer::Replica(from), bytes }));
                }
                Party::Liar { keys, .. } => {
                    let Ok(Opened::Envelope(envelope)) = keys.open(&bytes) else { return };
                    for message in envelope {
                        let message = message.expect("a correct replica says nothing malformed").into_inner();
                        check_own(&message, from);
                        self.known.learn(&message);
                    }
                }
            },
            Peer::Address(_) => {
                for client in 0..CLIENTS {
                    let Ok(Opened::Replies(replies)) = self.clients[client].open(&bytes) else { continue };
                    for pack in replies {
                        for reply in
                            pack.expect("a correct replica says nothing malformed").into_inner().to_pack().replies
                        {
                            let opened = matches!(&reply.result, ReplyResult::Full(Outcome::Done(_)));
                            if opened && reply.session == SessionId::NONE && reply.kind != ReplyKind::ReadOnly {
                                self.known.sessions.push(SessionId(reply.position.0));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What a correct replica signs is what another would believe of it (P45).
fn check_own(message: &Message, from: ReplicaId) {
    if let Message::ViewChange(signed) = message
        && Signed::<ViewChange>::statement(signed).replica == from
    {
        let said = signed.statement();
        let within = |n: SeqNum| n > said.stable && n.0 <= said.stable.0 + L;
        assert!(said.prepared.iter().chain(&said.pre_prepared).all(|entry| within(entry.n) && entry.view < said.view));
        for entry in &said.pre_prepared {
            let of_n = said.pre_prepared.iter().filter(|other| other.n == entry.n).count();
            assert!(of_n <= size().n() + 1, "P27: {of_n} digests at {}", entry.n);
        }
    }
}
