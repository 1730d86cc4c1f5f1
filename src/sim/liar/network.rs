//! Lies of the network's kind: silence, delay, proofs for some only, and old words again.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::Practice;
use super::craft::Craft;
use crate::sim::Rng;
use crate::transport::{Datagram, Head, Outgoing, Peer};
use crate::types::{ReplicaId, Time};
use crate::wire::codec::frame_type_of;
use crate::wire::{Message, Pack, Proof, Proposed, ReplyPack};

/// Silence to some, or on some subjects, each for a while.
#[derive(Default)]
pub(super) struct Hush {
    /// Until when what follows holds.
    until: Time,
    receivers: Vec<ReplicaId>,
    /// By frame type.
    subjects: Vec<u8>,
    clients: bool,
}

/// The last frame type of replicas, or a little above.
const FRAME_TYPES: u64 = 20;

impl Hush {
    fn redraw(&mut self, craft: &mut Craft<'_>) {
        if craft.now < self.until {
            return;
        }
        self.until = craft.now + craft.rng.up_to(Duration::from_millis(400));
        self.receivers = craft.size.replicas().filter(|_| craft.rng.chance(craft.permille / 3)).collect();
        self.subjects = (0..FRAME_TYPES as u8).filter(|_| craft.rng.chance(craft.permille / 4)).collect();
        self.clients = craft.rng.chance(craft.permille / 3);
    }
}

impl Practice for Hush {
    fn tell(&mut self, craft: &mut Craft<'_>, to: ReplicaId, message: Message, said: &mut Vec<Message>) {
        self.redraw(craft);
        if !self.receivers.contains(&to) && !self.subjects.contains(&frame_type_of(&message)) {
            said.push(message);
        }
    }

    fn reply(&mut self, craft: &mut Craft<'_>, replies: ReplyPack) -> Option<ReplyPack> {
        self.redraw(craft);
        Some(replies).filter(|_| !self.clients)
    }
}

/// Everything late, some of it very late.
pub(super) struct Slow;

impl Practice for Slow {
    fn post(&mut self, craft: &mut Craft<'_>, at: Time, datagram: Outgoing, sent: &mut Vec<(Time, Outgoing)>) {
        let most = if craft.rng.chance(20) { 500 } else { 40 };
        let late = if craft.lies() { craft.rng.up_to(Duration::from_millis(most)) } else { Duration::ZERO };
        sent.push((at + late, datagram));
    }
}

/// Envelopes that some receivers cannot check, and packs whose vectors some cannot check.
pub(super) struct Garble;

impl Practice for Garble {
    fn tell(&mut self, craft: &mut Craft<'_>, _to: ReplicaId, message: Message, said: &mut Vec<Message>) {
        said.push(match message {
            Message::PrePrepare(mut pre_prepare) if craft.lies() => {
                for proposed in &mut pre_prepare.packs {
                    if let Proposed::Inline(pack) = proposed {
                        *pack = garbled(craft.rng, pack);
                    }
                }
                Message::PrePrepare(pre_prepare)
            }
            Message::Relay(pack) if craft.lies() => Message::Relay(garbled(craft.rng, &pack)),
            other => other,
        });
    }

    fn post(&mut self, craft: &mut Craft<'_>, at: Time, mut datagram: Outgoing, sent: &mut Vec<(Time, Outgoing)>) {
        if craft.lies() && craft.rng.chance(300) && !datagram.head.as_slice().is_empty() {
            let mut bytes = datagram.head.as_slice().to_vec();
            let flipped = craft.rng.index(bytes.len());
            bytes[flipped] ^= 1 << craft.rng.below(8);
            datagram.head = Head::EMPTY;
            datagram.head.push(&bytes);
        }
        sent.push((at, datagram));
    }
}

/// The same pack with an entry, or the signature, spoilt: its digest is the same.
fn garbled(rng: &mut Rng, pack: &Pack) -> Pack {
    let proof = match pack.proof() {
        Proof::Vector(entries) => 8 * entries.len(),
        Proof::Signature { signature, .. } => signature.len(),
    };
    let mut bytes = pack.encoded().to_vec();
    let at = bytes.len() - 1 - rng.index(proof);
    bytes[at] ^= 1 << rng.below(8);
    Pack::parse(Bytes::from(bytes)).unwrap_or_else(|_| pack.clone())
}

/// What is remembered, to be said again.
const MEMORY: usize = 128;

/// What was said before, by itself and by others.
#[derive(Default)]
pub(super) struct Replay {
    sent: VecDeque<Outgoing>,
    overheard: VecDeque<Bytes>,
    heard: VecDeque<Message>,
}

fn remember<T>(memory: &mut VecDeque<T>, what: T) {
    if memory.len() == MEMORY {
        memory.pop_front();
    }
    memory.push_back(what);
}

impl Practice for Replay {
    fn tell(&mut self, craft: &mut Craft<'_>, _to: ReplicaId, message: Message, said: &mut Vec<Message>) {
        said.push(message);
        if craft.lies() && !self.heard.is_empty() {
            said.push(self.heard[craft.rng.index(self.heard.len())].clone());
        }
    }

    fn post(&mut self, craft: &mut Craft<'_>, at: Time, datagram: Outgoing, sent: &mut Vec<(Time, Outgoing)>) {
        remember(&mut self.sent, datagram.clone());
        sent.push((at, datagram));
        if !craft.lies() {
            return;
        }
        let late = craft.rng.up_to(Duration::from_millis(50));
        let old = self.sent[craft.rng.index(self.sent.len())].clone();
        sent.push((at + late, old));
        if !self.overheard.is_empty() {
            let body = self.overheard[craft.rng.index(self.overheard.len())].clone();
            let to = Peer::Replica(ReplicaId(craft.rng.below(craft.size.n() as u64) as u8));
            sent.push((at + late, Outgoing { to, head: Head::EMPTY, body }));
        }
    }

    /// Others' words as its own, and what others signed.
    fn hear(&mut self, message: &Message) {
        remember(&mut self.heard, message.clone());
        if let Message::PrePrepare(pre_prepare) = message {
            for proposed in &pre_prepare.packs {
                if let Proposed::Inline(pack) = proposed {
                    remember(&mut self.heard, Message::Relay(pack.clone()));
                }
            }
        }
    }

    fn overhear(&mut self, datagram: &Datagram) {
        remember(&mut self.overheard, datagram.bytes.clone());
    }
}
