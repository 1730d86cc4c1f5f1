//! Any field of any message, changed.

use std::sync::Arc;

use super::Practice;
use super::craft::Craft;
use super::replies::{misjudge, misstate};
use super::state::spoil;
use crate::limits;
use crate::types::{RegionId, ReplicaId, SeqNum, View};
use crate::wire::{
    Batch, Choice, Committed, FetchState, Message, NewView, PrePrepare, Proposed, Signed, SignedCheckpoint, StateItem,
    ViewChange, Vote, WantedViewChange,
};

/// Changes one field in some of the messages, and signs again what it can.
pub(super) struct Mutate;

impl Practice for Mutate {
    fn tell(&mut self, craft: &mut Craft<'_>, _to: ReplicaId, message: Message, said: &mut Vec<Message>) {
        if !craft.lies() {
            return said.push(message);
        }
        let changed = mutate(craft, message.clone());
        match craft.rng.below(4) {
            0 => said.extend([message, changed]),
            1 => said.extend([changed, message]),
            _ => said.push(changed),
        }
    }
}

fn mutate(craft: &mut Craft<'_>, message: Message) -> Message {
    match message {
        Message::PrePrepare(p) => Message::PrePrepare(pre_prepare(craft, p)),
        Message::Prepare(v) => Message::Prepare(vote(craft, v)),
        Message::Commit(v) => Message::Commit(vote(craft, v)),
        Message::Committed(c) => Message::Committed(named(craft, c)),
        Message::Checkpoint(c) => Message::Checkpoint(checkpoint(craft, c)),
        Message::Stable(mut proof) => {
            match (craft.rng.below(3), proof.len()) {
                (0, 2..) => {
                    proof.pop();
                }
                (_, len) => {
                    let at = craft.rng.index(len);
                    proof[at] = checkpoint(craft, proof[at]);
                }
            }
            Message::Stable(proof)
        }
        Message::Status(mut status) => {
            misstate(craft, &mut status);
            Message::Status(status)
        }
        Message::FetchBatch(c) => Message::FetchBatch(named(craft, c)),
        Message::Batch(n, b) => match craft.rng.below(2) {
            0 => Message::Batch(SeqNum(craft.number(n.0)), b),
            _ => {
                let mut packs = b.packs().to_vec();
                packs.pop();
                let choice = choice(craft, b.choice());
                Message::Batch(n, Arc::new(Batch::new(choice, packs)))
            }
        },
        Message::FetchPack(digest) => Message::FetchPack(craft.digest(digest)),
        // A pack is its client's: what can be changed about it is who gets it.
        Message::Relay(pack) => Message::FetchPack(pack.digest()),
        Message::Answered(nonce) => Message::Answered(craft.number(nonce)),
        Message::FetchState(f) => Message::FetchState(fetch_state(craft, f)),
        Message::State(answer) => Message::State(spoil(craft, answer)),
        Message::ViewChange(signed) => Message::ViewChange(view_change(craft, &signed)),
        Message::NewView(signed) => Message::NewView(new_view(craft, &signed)),
        Message::QueryStable(nonce) => Message::QueryStable(craft.number(nonce)),
        Message::StableAnswer(answer) => Message::StableAnswer(misjudge(craft, answer)),
        Message::FetchViewChange(w) => Message::FetchViewChange(match craft.rng.below(3) {
            0 => WantedViewChange { view: View(craft.number(w.view.0)), ..w },
            1 => WantedViewChange { replica: replica(craft), ..w },
            _ => WantedViewChange { digest: craft.digest(w.digest), ..w },
        }),
    }
}

fn replica(craft: &mut Craft<'_>) -> ReplicaId {
    ReplicaId(craft.rng.below(limits::REPLICAS_MAX as u64) as u8)
}

fn choice(craft: &mut Craft<'_>, c: Choice) -> Choice {
    match craft.rng.below(2) {
        0 => Choice { time: craft.number(c.time), ..c },
        _ => Choice { seed: craft.number(c.seed), ..c },
    }
}

fn pre_prepare(craft: &mut Craft<'_>, mut p: PrePrepare) -> PrePrepare {
    match craft.rng.below(7) {
        0 => p.view = View(craft.number(p.view.0)),
        1 => p.n = SeqNum(craft.number(p.n.0)),
        2 => p.choice = choice(craft, p.choice),
        3 => {
            p.packs.pop();
        }
        4 => {
            if let Some(first) = p.packs.first().cloned().filter(|_| p.packs.len() < limits::BATCH_PACKS_MAX / 2) {
                p.packs.push(first);
            }
        }
        5 => {
            for proposed in &mut p.packs {
                *proposed = Proposed::ByDigest(proposed.digest());
            }
        }
        _ => {
            let unknown = craft.digest(p.digest());
            p.packs.push(Proposed::ByDigest(unknown));
        }
    }
    p
}

fn vote(craft: &mut Craft<'_>, v: Vote) -> Vote {
    match craft.rng.below(3) {
        0 => Vote { view: View(craft.number(v.view.0)), ..v },
        1 => Vote { n: SeqNum(craft.number(v.n.0)), ..v },
        _ => Vote { digest: craft.digest(v.digest), ..v },
    }
}

fn named(craft: &mut Craft<'_>, c: Committed) -> Committed {
    match craft.rng.below(2) {
        0 => Committed { n: SeqNum(craft.number(c.n.0)), ..c },
        _ => Committed { digest: craft.digest(c.digest), ..c },
    }
}

/// Signed again if it is the liar's own.
fn checkpoint(craft: &mut Craft<'_>, mut c: SignedCheckpoint) -> SignedCheckpoint {
    match craft.rng.below(5) {
        0 => c.n = SeqNum(craft.number(c.n.0)),
        1 => c.root = craft.digest(c.root),
        2 => c.replica = replica(craft),
        3 => c.boot = craft.number(c.boot),
        _ => c.signature[craft.rng.index(64)] ^= 1 << craft.rng.below(8),
    }
    let again = craft.rng.chance(700) && c.replica == craft.signer.me();
    if again { craft.sign_checkpoint(c.n, c.root).unwrap_or(c) } else { c }
}

fn fetch_state(craft: &mut Craft<'_>, mut f: FetchState) -> FetchState {
    match craft.rng.below(4) {
        0 => f.n = SeqNum(craft.number(f.n.0)),
        1 => f.nonce = craft.number(f.nonce),
        2 => f.items.clear(),
        _ => {
            let region = *craft.rng.pick(&[RegionId::Library, RegionId::Service]);
            let number = craft.number(3) as u32;
            let item = match craft.rng.below(2) {
                0 => StateItem::Page { region, page: number },
                _ => StateItem::Nodes { region, level: craft.rng.below(8) as u8, group: number },
            };
            f.items.truncate(limits::STATE_ITEMS_MAX - 1);
            f.items.push(item);
        }
    }
    f
}

fn view_change(craft: &mut Craft<'_>, signed: &Arc<Signed<ViewChange>>) -> Arc<Signed<ViewChange>> {
    let (mut v, signature) = (signed.statement().clone(), *signed.signature());
    match craft.rng.below(8) {
        0 => v.replica = replica(craft),
        1 => v.boot = craft.number(v.boot),
        2 => v.view = View(craft.number(v.view.0)),
        3 => v.stable = SeqNum(craft.number(v.stable.0)),
        4 => {
            if let Some(first) = v.proof.first_mut() {
                *first = checkpoint(craft, *first);
            }
        }
        5 => {
            v.proof.pop();
        }
        6 => {
            if let Some(last) = v.prepared.last_mut() {
                *last = crate::wire::Entry { n: SeqNum(craft.number(last.n.0)), ..*last };
            }
        }
        _ => {
            if let Some(last) = v.pre_prepared.last_mut() {
                *last = crate::wire::Entry { view: View(craft.number(last.view.0)), ..*last };
            }
        }
    }
    let own = v.replica == craft.signer.me() && craft.rng.chance(800);
    let again = own.then(|| craft.sign_view_change(v.clone())).flatten();
    again.unwrap_or_else(|| Arc::new(Signed::new(v, |_| signature)))
}

fn new_view(craft: &mut Craft<'_>, signed: &Arc<Signed<NewView>>) -> Arc<Signed<NewView>> {
    let (mut v, signature) = (signed.statement().clone(), *signed.signature());
    match craft.rng.below(7) {
        0 => v.replica = replica(craft),
        1 => v.boot = craft.number(v.boot),
        2 => v.view = View(craft.number(v.view.0)),
        3 => v.stable = SeqNum(craft.number(v.stable.0)),
        4 => {
            if let Some(last) = v.members.last_mut() {
                last.0 = replica(craft);
            }
        }
        5 => {
            if let Some(last) = v.members.last_mut() {
                last.1 = craft.digest(last.1);
            }
        }
        _ => {
            if let Some(last) = v.chosen.last_mut() {
                *last = craft.digest(*last);
            }
        }
    }
    let own = v.replica == craft.signer.me() && craft.rng.chance(800);
    let again = own.then(|| craft.sign_new_view(v.clone())).flatten();
    again.unwrap_or_else(|| Arc::new(Signed::new(v, |_| signature)))
}
