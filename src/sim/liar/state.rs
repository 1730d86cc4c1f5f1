//! Lies about the state: checkpoints, and what is sent to who fetches one.

use super::Practice;
use super::craft::Craft;
use crate::types::{Digest, ReplicaId, SeqNum};
use crate::wire::{Message, SignedCheckpoint, StateAnswer, StateContent, StatePart};

/// Checkpoints of states that never were, and proofs that prove nothing.
pub(super) struct Checkpoints;

impl Practice for Checkpoints {
    fn tell(&mut self, craft: &mut Craft<'_>, _to: ReplicaId, message: Message, said: &mut Vec<Message>) {
        match message {
            Message::Checkpoint(c) if craft.lies() => {
                let (n, root) = match craft.rng.below(6) {
                    0 => (SeqNum(craft.number(c.n.0)), c.root),
                    1 => (SeqNum(c.n.0.saturating_mul(2)), c.root),
                    2 => (SeqNum(c.n.0.saturating_mul(1 << 20)), c.root),
                    _ => (c.n, craft.digest(c.root)),
                };
                let lie = craft.sign_checkpoint(n, root).map(Message::Checkpoint);
                if craft.rng.chance(200) {
                    said.push(Message::Checkpoint(c));
                }
                said.extend(lie);
            }
            Message::Stable(mut proof) if craft.lies() => {
                forge(craft, &mut proof);
                said.push(Message::Stable(proof));
            }
            other => said.push(other),
        }
    }
}

fn forge(craft: &mut Craft<'_>, proof: &mut Vec<SignedCheckpoint>) {
    let root: Option<Digest> = proof.first().map(|first| craft.digest(first.root));
    match craft.rng.below(4) {
        0 if proof.len() > 1 => {
            proof.pop();
        }
        1 => proof.iter_mut().for_each(|c| c.n = SeqNum(c.n.0.wrapping_mul(2))),
        2 => {
            if let Some(last) = proof.last_mut() {
                last.signature[craft.rng.index(64)] ^= 1;
            }
        }
        _ => proof.iter_mut().for_each(|c| c.root = root.unwrap_or_default()),
    }
}

/// Wrong parts of a state.
pub(super) struct States;

impl Practice for States {
    fn tell(&mut self, craft: &mut Craft<'_>, _to: ReplicaId, message: Message, said: &mut Vec<Message>) {
        match message {
            Message::State(answer) if craft.lies() => {
                let answer = spoil(craft, answer);
                if craft.rng.chance(100) {
                    said.push(Message::State(answer.clone()));
                }
                said.push(Message::State(answer));
            }
            other => said.push(other),
        }
    }
}

pub(super) fn spoil(craft: &mut Craft<'_>, mut answer: StateAnswer) -> StateAnswer {
    match craft.rng.below(10) {
        0 => answer.nonce = craft.number(answer.nonce),
        1 => answer.n = SeqNum(craft.number(answer.n.0)),
        2 => answer.content = StateContent::Absent(vec![answer.n, SeqNum(answer.n.0.saturating_add(64))]),
        3 => answer.content = StateContent::Absent(Vec::new()),
        _ => match &mut answer.content {
            StateContent::Absent(held) => {
                held.push(SeqNum(held.last().map_or(8, |last| last.0.saturating_add(craft.rng.between(1, 1 << 30)))));
                held.truncate(crate::limits::STATE_HELD_MAX);
            }
            StateContent::Header(regions) => {
                let region = &mut regions[craft.rng.index(2)];
                match craft.rng.below(3) {
                    0 => region.root[craft.rng.index(32)] ^= 1,
                    1 => region.pages = region.pages.wrapping_add(1),
                    _ => region.pages = u32::MAX,
                }
            }
            StateContent::Parts(parts) => match craft.rng.below(4) {
                0 => parts.reverse(),
                1 => {
                    parts.pop();
                }
                _ => parts.iter_mut().for_each(|part| spoil_part(craft, part)),
            },
        },
    }
    answer
}

fn spoil_part(craft: &mut Craft<'_>, part: &mut StatePart) {
    match part {
        StatePart::Nodes(nodes) => {
            let node = craft.rng.index(nodes.len());
            nodes[node][craft.rng.index(32)] ^= 1;
        }
        StatePart::Page(page) => {
            let mut bytes = page.to_vec();
            match bytes.len() {
                0 => bytes.push(1),
                len => {
                    let at = craft.rng.index(len);
                    bytes[at] = bytes[at].wrapping_add(1).max(1);
                }
            }
            *page = bytes.into();
        }
    }
}
