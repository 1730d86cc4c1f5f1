//! Lies about views: what was prepared, and what the next view takes over.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Practice;
use super::craft::Craft;
use crate::types::{Digest, ReplicaId, SeqNum, View};
use crate::wire::{Batch, Entry, Message, NewView, Signed, ViewChange};

/// View-changes that are not what was prepared here. Each of two parts of the others gets the same one again and again,
/// or every time another.
#[derive(Default)]
pub(super) struct ViewChanges {
    told: BTreeMap<(View, bool), Arc<Signed<ViewChange>>>,
}

impl Practice for ViewChanges {
    fn tell(&mut self, craft: &mut Craft<'_>, to: ReplicaId, message: Message, said: &mut Vec<Message>) {
        let Message::ViewChange(honest) = &message else { return said.push(message) };
        let own = honest.statement();
        if own.replica != craft.signer.me() || !craft.lies() {
            return said.push(message);
        }
        let part = (own.view, craft.is_apart(to, own.view.0));
        let told = self.told.get(&part).cloned().filter(|_| !craft.rng.chance(200));
        let lie = told.or_else(|| {
            let lie = invent(craft, own.clone());
            craft.sign_view_change(lie)
        });
        if let Some(lie) = lie {
            self.told.insert(part, lie.clone());
            said.push(Message::ViewChange(lie));
        }
    }
}

fn invent(craft: &mut Craft<'_>, mut v: ViewChange) -> ViewChange {
    for _ in 0..craft.rng.between(1, 3) {
        match craft.rng.below(11) {
            0 => v.prepared.clear(),
            1 => v.pre_prepared.clear(),
            2 => v.prepared.retain(|_| craft.rng.chance(500)),
            3 => v.pre_prepared.retain(|_| craft.rng.chance(500)),
            4 => {
                if let Some(entry) = pick(craft, &mut v.prepared) {
                    entry.digest = craft.digest(entry.digest);
                }
            }
            5 => {
                if let Some(entry) = pick(craft, &mut v.pre_prepared) {
                    entry.digest = craft.digest(entry.digest);
                }
            }
            6 => {
                let last = View(v.view.0.saturating_sub(1));
                v.prepared.iter_mut().chain(&mut v.pre_prepared).for_each(|entry| entry.view = last);
            }
            7 => {
                let n = SeqNum(v.stable.0.saturating_add(craft.rng.between(1, 20)));
                let view = View(craft.rng.below(v.view.0.max(1)));
                let mut digest = Digest::default();
                craft.rng.fill(&mut digest.0);
                let forged = Entry { n, digest, view };
                v.prepared.retain(|entry| entry.n != n);
                v.prepared.push(forged);
                v.pre_prepared.push(forged);
            }
            // An old checkpoint: the initial one needs no proof.
            8 => (v.stable, v.proof) = (SeqNum(0), Vec::new()),
            9 => v.stable = SeqNum(craft.number(v.stable.0)),
            _ => {
                if let Some(entry) = pick(craft, &mut v.pre_prepared) {
                    (entry.n, entry.view) = (SeqNum(craft.number(entry.n.0)), View(craft.number(entry.view.0)));
                }
            }
        }
    }
    if craft.rng.chance(50) {
        v.view = View(v.view.0.saturating_add(craft.rng.between(1, 5)));
    }
    v.prepared.sort_by_key(|entry| entry.n);
    v.pre_prepared.sort_by_key(|entry| (entry.n, entry.digest));
    v
}

fn pick<'a, T>(craft: &mut Craft<'_>, of: &'a mut [T]) -> Option<&'a mut T> {
    match of.len() {
        0 => None,
        len => of.get_mut(craft.rng.index(len)),
    }
}

/// New-views that do not follow from their view-changes, or name others.
#[derive(Default)]
pub(super) struct NewViews {
    told: BTreeMap<(View, bool), Arc<Signed<NewView>>>,
}

impl Practice for NewViews {
    fn tell(&mut self, craft: &mut Craft<'_>, to: ReplicaId, message: Message, said: &mut Vec<Message>) {
        let Message::NewView(honest) = &message else { return said.push(message) };
        let own = honest.statement();
        if own.replica != craft.signer.me() || !craft.lies() {
            return said.push(message);
        }
        let part = (own.view, craft.is_apart(to, own.view.0));
        let told = self.told.get(&part).cloned().filter(|_| !craft.rng.chance(200));
        let lie = told.or_else(|| {
            let lie = choose(craft, own.clone());
            craft.sign_new_view(lie)
        });
        if let Some(lie) = lie {
            self.told.insert(part, lie.clone());
            said.push(Message::NewView(lie));
        }
    }
}

fn choose(craft: &mut Craft<'_>, mut v: NewView) -> NewView {
    match craft.rng.below(8) {
        0 => {
            if let Some(chosen) = pick(craft, &mut v.chosen) {
                *chosen = Batch::null().digest();
            }
        }
        1 => {
            if let Some(chosen) = pick(craft, &mut v.chosen) {
                *chosen = craft.digest(*chosen);
            }
        }
        2 => {
            v.chosen.pop();
        }
        3 => v.chosen.push(Batch::null().digest()),
        4 => {
            v.members.pop();
        }
        5 => {
            if let Some((_, digest)) = pick(craft, &mut v.members) {
                *digest = craft.digest(*digest);
            }
        }
        6 => v.stable = SeqNum(craft.number(v.stable.0)),
        _ => v.chosen.reverse(),
    }
    v
}
