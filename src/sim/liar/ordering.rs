//! Lies about the order: two batches for one place, votes for something else.

use std::collections::BTreeMap;

use super::Practice;
use super::craft::Craft;
use crate::types::{Digest, ReplicaId, SeqNum, View};
use crate::wire::{Choice, Committed, Message, PrePrepare, Vote};

/// Two batches for one place. To each part of the others it stays with what it told them, also when asked again.
#[derive(Default)]
pub(super) struct Equivocate {
    /// By place: the honest digest, and what the others are told, if they are told something else.
    told: BTreeMap<(View, SeqNum), Option<(Digest, PrePrepare)>>,
}

fn occasion(view: View, n: SeqNum) -> u64 {
    view.0 << 32 ^ n.0
}

fn another(craft: &mut Craft<'_>, honest: &PrePrepare) -> PrePrepare {
    let mut other = honest.clone();
    match craft.rng.below(5) {
        0 => other.choice.time = other.choice.time.saturating_add(1 + craft.rng.below(1_000_000)),
        1 if other.packs.len() > 1 => other.packs.reverse(),
        2 if other.packs.len() > 1 => {
            other.packs.pop();
        }
        3 => (other.choice, other.packs) = (Choice::default(), Vec::new()),
        _ => other.choice.seed ^= 1,
    }
    other
}

impl Equivocate {
    fn vote(&self, craft: &Craft<'_>, to: ReplicaId, vote: Vote) -> Vote {
        match self.told.get(&(vote.view, vote.n)) {
            Some(Some((honest, other)))
                if *honest == vote.digest && craft.is_apart(to, occasion(vote.view, vote.n)) =>
            {
                Vote { digest: other.digest(), ..vote }
            }
            Some(_) | None => vote,
        }
    }
}

impl Practice for Equivocate {
    fn tell(&mut self, craft: &mut Craft<'_>, to: ReplicaId, message: Message, said: &mut Vec<Message>) {
        said.push(match message {
            Message::PrePrepare(honest) => {
                let place = (honest.view, honest.n);
                let told = self.told.entry(place).or_insert_with(|| {
                    let other = craft.lies().then(|| another(craft, &honest));
                    other.map(|other| (honest.digest(), other))
                });
                match told {
                    Some((_, other)) if craft.is_apart(to, occasion(place.0, place.1)) => {
                        Message::PrePrepare(other.clone())
                    }
                    Some(_) | None => Message::PrePrepare(honest),
                }
            }
            Message::Commit(vote) => Message::Commit(self.vote(craft, to, vote)),
            Message::Prepare(vote) => Message::Prepare(self.vote(craft, to, vote)),
            other => other,
        });
    }
}

/// Votes for another digest, alone or beside the honest one.
pub(super) struct Votes;

impl Practice for Votes {
    fn tell(&mut self, craft: &mut Craft<'_>, _to: ReplicaId, message: Message, said: &mut Vec<Message>) {
        let false_one = match message.clone() {
            Message::Prepare(vote) => Message::Prepare(Vote { digest: craft.digest(vote.digest), ..vote }),
            Message::Commit(vote) => Message::Commit(Vote { digest: craft.digest(vote.digest), ..vote }),
            Message::Committed(c) => Message::Committed(Committed { digest: craft.digest(c.digest), ..c }),
            other => return said.push(other),
        };
        if !craft.lies() {
            return said.push(message);
        }
        match craft.rng.below(5) {
            0 => said.extend([message, false_one]),
            1 => said.extend([false_one, message]),
            // A vote of the wrong kind.
            2 => match message {
                Message::Prepare(vote) => said.push(Message::Commit(vote)),
                Message::Commit(vote) => said.extend([Message::Prepare(vote), Message::Commit(vote)]),
                other => said.push(other),
            },
            _ => said.push(false_one),
        }
    }
}
