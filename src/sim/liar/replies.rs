//! Lies about oneself: results for clients, and STATUS for replicas.

use super::Practice;
use super::craft::Craft;
use crate::types::{Position, ReplicaId, SeqNum, View};
use crate::wire::{
    Message, Outcome, Pieces, Receipt, Refusal, ReplyEntry, ReplyKind, ReplyPack, ReplyResult, StableAnswer,
};

const KINDS: [ReplyKind; 4] =
    [ReplyKind::ReadOnly, ReplyKind::TentativeRead, ReplyKind::Tentative, ReplyKind::Committed];

/// Wrong results.
pub(super) struct Replies;

impl Practice for Replies {
    fn reply(&mut self, craft: &mut Craft<'_>, mut pack: ReplyPack) -> Option<ReplyPack> {
        if craft.lies() && craft.rng.chance(200) {
            pack.view = View(craft.number(pack.view.0));
        }
        for entry in &mut pack.replies {
            if craft.lies() {
                falsify(craft, entry);
            }
        }
        Some(pack)
    }
}

/// Wrong receipts.
pub(super) struct Receipts;

impl Practice for Receipts {
    fn receipt(&mut self, craft: &mut Craft<'_>, mut receipt: Receipt) -> Receipt {
        if craft.lies() {
            let count = receipt.pieces.count();
            receipt.pieces = if craft.rng.chance(500) { Pieces::none(count) } else { Pieces::all(count) };
            receipt.granted = if craft.rng.chance(500) { 0 } else { count as u16 };
            receipt.start = craft.rng.below(1 << 32) as u32;
        }
        receipt
    }
}

fn falsify(craft: &mut Craft<'_>, entry: &mut ReplyEntry) {
    match craft.rng.below(8) {
        0 => entry.position = Position(craft.number(entry.position.0)),
        1 => entry.t = craft.number(entry.t),
        2 => {
            entry.kind = *craft.rng.pick(&KINDS);
        }
        3 => entry.result = ReplyResult::Digest(craft.digest(entry.result.digest())),
        4 => {
            entry.result = ReplyResult::Full(match craft.rng.below(4) {
                0 => Outcome::Gone,
                1 => Outcome::NoSession,
                2 => Outcome::Refused(Refusal::Counter { last: craft.number(3) }),
                _ => Outcome::Done(bytes::Bytes::new()),
            });
        }
        _ => {
            let mut result = match &entry.result {
                ReplyResult::Full(Outcome::Done(result)) => result.to_vec(),
                ReplyResult::Full(Outcome::Gone | Outcome::NoSession | Outcome::Refused(_))
                | ReplyResult::Digest(_) => Vec::new(),
            };
            match result.len() {
                0 => result.push(7),
                len => result[craft.rng.index(len)] ^= 1 << craft.rng.below(8),
            }
            entry.result = ReplyResult::Full(Outcome::Done(result.into()));
        }
    }
}

/// A STATUS that is not true: to be sent what is not missing, or to have others wait, drop and fetch. And wrong answers to
/// who comes back without memory.
pub(super) struct Status;

impl Practice for Status {
    fn tell(&mut self, craft: &mut Craft<'_>, _to: ReplicaId, message: Message, said: &mut Vec<Message>) {
        match message {
            Message::Status(mut status) if craft.lies() => {
                misstate(craft, &mut status);
                said.push(Message::Status(status));
            }
            Message::StableAnswer(answer) if craft.lies() => said.push(Message::StableAnswer(misjudge(craft, answer))),
            other => said.push(other),
        }
    }
}

/// What another one's earlier lives may have said (P42): more, less, or nothing of its view-change.
pub(super) fn misjudge(craft: &mut Craft<'_>, mut answer: StableAnswer) -> StableAnswer {
    match craft.rng.below(6) {
        0 => answer.nonce = craft.number(answer.nonce),
        1 => (answer.signed, answer.prepared) = (SeqNum(0), SeqNum(0)),
        2 => answer.prepared = SeqNum(craft.number(answer.prepared.0)),
        3 => answer.view_change = None,
        4 => (answer.signed, answer.prepared) = (SeqNum(1 << 40), SeqNum(1 << 41)),
        _ => answer.signed = SeqNum(craft.number(answer.signed.0)),
    }
    answer
}

pub(super) fn misstate(craft: &mut Craft<'_>, status: &mut crate::wire::Status) {
    match craft.rng.below(11) {
        0 => status.view = View(craft.number(status.view.0)),
        1 => status.stable = SeqNum(craft.number(status.stable.0)),
        2 => status.executed = SeqNum(craft.number(status.executed.0)),
        3 => {
            let ahead = craft.rng.below(1_000);
            for n in [&mut status.stable, &mut status.executed] {
                n.0 = n.0.saturating_add(ahead);
            }
        }
        4 => (status.stable, status.executed) = (SeqNum(0), SeqNum(0)),
        5 => {
            status.recovering = !status.recovering;
            status.until = SeqNum(craft.number(status.executed.0));
        }
        6 => status.floor = View(craft.number(status.view.0)),
        7 => status.pending = !status.pending,
        8 => {
            status.wants = true;
            status.prepared.clear();
            status.committed.clear();
        }
        9 => {
            for word in status.prepared.iter_mut().chain(&mut status.committed) {
                *word = craft.rng.next_u64();
            }
        }
        _ => status.nonce = craft.number(status.nonce),
    }
}
