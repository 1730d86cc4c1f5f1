//! Replicas that lie, as code of their own: an honest replica inside, and a tongue that changes what it says.
//!
//! ```text
//!  datagrams ─► honest replica ─► frames ─► each lie in turn ─► sealed again, with the liar's own keys ─► datagrams
//! ```
//! What leaves is authentic: no receiver can tell it from honest words by its proof. The honest replica inside makes the
//! lies good ones: they fit the state of the protocol at the moment, and are mixed with truth.

mod craft;
mod mutate;
mod network;
mod ordering;
mod replies;
mod state;
mod views;

use std::collections::BTreeMap;

use craft::Craft;

use super::rng::Rng;
use crate::auth::{AuthMode, Keyring, Opened, Principal, Signer};
use crate::execution::Service;
use crate::replica::Replica;
use crate::transport::{Datagram, Head, Machine, Outgoing};
use crate::types::{ReplicaId, Time};
use crate::wire::frame::Messages;
use crate::wire::header::{HEADER, MAC, SIGNATURE};
use crate::wire::{FrameBuffer, Header, Kind, Message, Receipt, ReplyPack};

/// A way to lie.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lie {
    /// As primary: two batches for one place, each to a part of the others, with votes to match.
    Equivocate,
    /// Votes for something else, or for two things.
    Votes,
    /// View-changes that omit or invent what was prepared, go back to an old checkpoint, or differ between receivers.
    ViewChanges,
    /// New-views that choose something else, or name another S.
    NewViews,
    /// Checkpoints with another root, or where none belongs; proofs that prove nothing.
    Checkpoints,
    /// Wrong pages, tree nodes and headers for who fetches a state; questions without sense.
    States,
    /// Wrong results, positions, views and finality for clients.
    Replies,
    /// A STATUS that is not true, and wrong answers to who comes back without memory.
    Status,
    /// Nothing for some receivers, or nothing of some kind, for a while.
    Hush,
    /// Everything late.
    Slow,
    /// Proofs that only some receivers can check.
    Garble,
    /// Old datagrams and others' words, again.
    Replay,
    /// Any field of any message changed.
    Mutate,
    /// Of clients' large messages: that nothing is here, or all; that nothing may leave, or all.
    Receipts,
}

impl Lie {
    /// All that are told where nothing is large.
    pub const ALL: [Lie; 13] = [
        Lie::Equivocate,
        Lie::Votes,
        Lie::ViewChanges,
        Lie::NewViews,
        Lie::Checkpoints,
        Lie::States,
        Lie::Replies,
        Lie::Status,
        Lie::Hush,
        Lie::Slow,
        Lie::Garble,
        Lie::Replay,
        Lie::Mutate,
    ];

    fn practice(self) -> Box<dyn Practice> {
        match self {
            Lie::Equivocate => Box::new(ordering::Equivocate::default()),
            Lie::Votes => Box::new(ordering::Votes),
            Lie::ViewChanges => Box::new(views::ViewChanges::default()),
            Lie::NewViews => Box::new(views::NewViews::default()),
            Lie::Checkpoints => Box::new(state::Checkpoints),
            Lie::States => Box::new(state::States),
            Lie::Replies => Box::new(replies::Replies),
            Lie::Status => Box::new(replies::Status),
            Lie::Hush => Box::new(network::Hush::default()),
            Lie::Slow => Box::new(network::Slow),
            Lie::Garble => Box::new(network::Garble),
            Lie::Replay => Box::new(network::Replay::default()),
            Lie::Mutate => Box::new(mutate::Mutate),
            Lie::Receipts => Box::new(replies::Receipts),
        }
    }
}

/// A replica that lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Liar {
    /// Which.
    pub replica: ReplicaId,
    /// How. None: it says what an honest replica says, which with a twin is a lie by itself.
    pub lies: Vec<Lie>,
    /// How often it lies, of a thousand occasions.
    pub permille: u32,
    /// It is two: another replica has the same identity, keys and address, and knows nothing of the first. Each hears
    /// what is sent to either.
    pub twin: bool,
}

/// What a way to lie does with what is said. Everything defaults to honesty.
trait Practice {
    /// `message` is to be said to `to`; appends what is said in its place.
    fn tell(&mut self, _: &mut Craft<'_>, _to: ReplicaId, message: Message, said: &mut Vec<Message>) {
        said.push(message);
    }

    /// Replies to a client.
    fn reply(&mut self, _: &mut Craft<'_>, replies: ReplyPack) -> Option<ReplyPack> {
        Some(replies)
    }

    /// What it has of a client's message.
    fn receipt(&mut self, _: &mut Craft<'_>, receipt: Receipt) -> Receipt {
        receipt
    }

    /// A datagram, sealed and to be sent at `at`.
    fn post(&mut self, _: &mut Craft<'_>, at: Time, datagram: Outgoing, sent: &mut Vec<(Time, Outgoing)>) {
        sent.push((at, datagram));
    }

    /// What another replica says.
    fn hear(&mut self, _message: &Message) {}

    /// Any datagram that comes.
    fn overhear(&mut self, _datagram: &Datagram) {}
}

/// An honest replica, and what becomes of its words.
///
/// It is a [`Machine`] as any: a simulation plays it, and so can a process among real ones.
pub struct Tongue<S: Service> {
    honest: Replica<S>,
    keys: Keyring,
    signer: Signer,
    permille: u32,
    rng: Rng,
    datagram_max: usize,
    practices: Vec<Box<dyn Practice>>,
    /// What is to be sent, by its time.
    outgoing: BTreeMap<(Time, u64), Outgoing>,
    posted: u64,
    next_message: u64,
}

impl<S: Service> Tongue<S> {
    /// `honest` and `keys` are of one replica; `honest` may send datagrams of any size, what leaves is at most
    /// `datagram_max`.
    pub fn new(liar: &Liar, honest: Replica<S>, keys: Keyring, datagram_max: usize, rng: Rng) -> Tongue<S> {
        Tongue {
            honest,
            signer: keys.signer(),
            keys,
            permille: liar.permille,
            rng,
            datagram_max,
            practices: liar.lies.iter().map(|lie| lie.practice()).collect(),
            outgoing: BTreeMap::new(),
            posted: 0,
            next_message: 0,
        }
    }

    /// Keys of others are learnt from what they send; and what they say is food for lies.
    fn listen(&mut self, now: Time, datagram: &Datagram) {
        self.keys.expire(now);
        self.practices.iter_mut().for_each(|practice| practice.overhear(datagram));
        match self.keys.open(&datagram.bytes) {
            Ok(Opened::NewKey { key, .. }) => {
                let _ = self.keys.learn(now, &key);
            }
            Ok(Opened::Pack { pack, .. }) => {
                let _ = self.keys.verify_pack(pack);
            }
            Ok(Opened::Envelope(envelope)) => {
                for message in envelope.flatten() {
                    self.practices.iter_mut().for_each(|practice| practice.hear(message.get()));
                }
            }
            Ok(Opened::Replies(_) | Opened::Fragment { .. } | Opened::Receipt { .. }) | Err(_) => {}
        }
    }

    fn craft<'a>(keys: &Keyring, signer: &'a Signer, rng: &'a mut Rng, now: Time, permille: u32) -> Craft<'a> {
        Craft { now, size: keys.size(), signer, permille, rng }
    }

    /// What the honest replica inside would send.
    fn say(&mut self, now: Time, datagram: Outgoing) {
        let Ok(header) = Header::parse(datagram.head.as_slice()) else { return };
        match (header.kind, header.receiver) {
            (Kind::Envelope, Principal::Replica(to)) => self.say_to_replica(now, to, datagram),
            (Kind::Envelope, Principal::Client(..)) => self.say_to_client(now, header.receiver, datagram),
            // Of messages that do not even fit the honest replica's datagrams it says nothing.
            (Kind::Fragment, _) => {}
            (Kind::Receipt, to) => self.say_receipt(now, to, &datagram),
            (Kind::NewKey | Kind::Pack, _) => self.post(now, datagram),
        }
    }

    fn say_to_replica(&mut self, now: Time, to: ReplicaId, datagram: Outgoing) {
        let mut messages: Vec<Message> = Messages::new(datagram.body.clone()).flatten().collect();
        for practice in &mut self.practices {
            let mut craft = Tongue::<S>::craft(&self.keys, &self.signer, &mut self.rng, now, self.permille);
            let mut said = Vec::new();
            messages.drain(..).for_each(|message| practice.tell(&mut craft, to, message, &mut said));
            messages = said;
        }
        let mut frames = FrameBuffer::default();
        for message in &messages {
            let _ = frames.push(message);
        }
        self.seal(now, Principal::Replica(to), datagram, frames);
    }

    fn say_to_client(&mut self, now: Time, to: Principal, datagram: Outgoing) {
        let mut frames = FrameBuffer::default();
        let mut packs = Messages::new(datagram.body.clone());
        while let Some(Ok(pack)) = packs.next_replies() {
            let mut pack = Some(pack.to_pack());
            for practice in &mut self.practices {
                let mut craft = Tongue::<S>::craft(&self.keys, &self.signer, &mut self.rng, now, self.permille);
                pack = pack.and_then(|pack| practice.reply(&mut craft, pack));
            }
            if let Some(ReplyPack { view, replies }) = pack.filter(|pack| !pack.replies.is_empty()) {
                let _ = frames.push_replies(view, &replies);
            }
        }
        self.seal(now, to, datagram, frames);
    }

    fn say_receipt(&mut self, now: Time, to: Principal, datagram: &Outgoing) {
        let Ok(mut receipt) = Receipt::decode(&datagram.body) else { return };
        for practice in &mut self.practices {
            let mut craft = Tongue::<S>::craft(&self.keys, &self.signer, &mut self.rng, now, self.permille);
            receipt = practice.receipt(&mut craft, receipt);
        }
        if let Some((head, body)) = self.keys.seal_receipt(to, &receipt) {
            self.post(now, Outgoing { to: datagram.to, head, body });
        }
    }

    /// Sends `frames` to whom `datagram` was for, in as many datagrams as it takes.
    fn seal(&mut self, now: Time, to: Principal, datagram: Outgoing, mut frames: FrameBuffer) {
        let frames = frames.take();
        let proof = match self.keys.mode() {
            AuthMode::Mac => MAC,
            AuthMode::Signature => SIGNATURE,
        };
        let body_max = self.datagram_max - HEADER - proof;
        for run in frames.runs(body_max) {
            let Some(head) = self.keys.seal(to, &[(&frames, run.clone())]) else { continue };
            let body = frames.slice(run);
            if body.len() <= body_max {
                self.post(now, Outgoing { to: datagram.to, head, body });
                continue;
            }
            self.next_message = (self.next_message + 1).max(now.0);
            let mut pieces: Vec<(Head, bytes::Bytes)> = Vec::new();
            let receivers = [(to, head)];
            self.keys.fragment(self.next_message, self.datagram_max, &receivers, &body, |_, head, piece| {
                pieces.push((head, piece));
            });
            for (head, body) in pieces {
                self.post(now, Outgoing { to: datagram.to, head, body });
            }
        }
    }

    fn post(&mut self, now: Time, datagram: Outgoing) {
        let mut sent = vec![(now, datagram)];
        for practice in &mut self.practices {
            let mut craft = Tongue::<S>::craft(&self.keys, &self.signer, &mut self.rng, now, self.permille);
            let mut next = Vec::new();
            sent.drain(..).for_each(|(at, datagram)| practice.post(&mut craft, at, datagram, &mut next));
            sent = next;
        }
        for (at, datagram) in sent {
            self.posted += 1;
            self.outgoing.insert((at, self.posted), datagram);
        }
    }
}

impl<S: Service> Machine for Tongue<S> {
    fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
        for datagram in inbox.iter() {
            self.listen(now, datagram);
        }
        if self.practices.is_empty() {
            return self.honest.turn(now, inbox, outbox);
        }
        let mut honest = Vec::new();
        self.honest.turn(now, inbox, &mut honest);
        honest.into_iter().for_each(|datagram| self.say(now, datagram));
        while let Some(next) = self.outgoing.first_entry().filter(|next| next.key().0 <= now) {
            outbox.push(next.remove());
        }
    }

    fn deadline(&self) -> Time {
        let late = self.outgoing.first_key_value().map_or(Time::NEVER, |((at, _), _)| *at);
        self.honest.deadline().min(late)
    }
}
