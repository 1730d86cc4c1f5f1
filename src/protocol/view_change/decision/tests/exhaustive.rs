//! All histories of one sequence number at n = 4: one liar, two batches and null, views 0 to 2, and every set that may
//! decide view 3.
//!
//! The liar leads every view: it may do whatever a lying primary may, and its votes count in every certificate, which is
//! more than any history allows. That is what two correct replicas need for a certificate in any case: with a correct
//! primary they are the primary and one backup, the liar being the second backup.

use std::collections::BTreeSet;

use super::*;

/// Null and two batches.
const DIGESTS: usize = 3;
const FRESH: [u8; 2] = [1, 2];
const CORRECT: usize = 3;

/// A correct replica: what it would say in a VIEW-CHANGE.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
struct Says {
    p: Option<(u8, u8)>,
    q: [Option<u8>; DIGESTS],
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
struct World {
    correct: [Says; CORRECT],
    committed: Option<u8>,
}

/// What a set decides for the slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Slot {
    Free,
    Chosen(u8),
}

impl World {
    /// The same up to the names of the correct replicas and of the two batches.
    fn canonical(mut self) -> World {
        let mut swapped = self;
        let swap = |d: u8| [0, 2, 1][usize::from(d)];
        for says in &mut swapped.correct {
            says.p = says.p.map(|(d, v)| (swap(d), v));
            says.q.swap(1, 2);
        }
        swapped.committed = swapped.committed.map(swap);
        self.correct.sort_unstable();
        swapped.correct.sort_unstable();
        self.min(swapped)
    }
}

impl Says {
    fn q_map(&self, digests: &[Digest; DIGESTS]) -> BTreeMap<Digest, View> {
        let held = self.q.iter().zip(digests).filter_map(|(v, d)| Some((*d, View(u64::from((*v)?)))));
        held.collect()
    }

    fn is_empty(&self) -> bool {
        self.p.is_none() && self.q == [None; DIGESTS]
    }
}

struct Search {
    digests: [Digest; DIGESTS],
    decisions: usize,
}

impl Search {
    /// Everything that a liar may say in a VIEW-CHANGE for `target`.
    fn lies(&self, target: u8) -> Vec<(Says, BTreeMap<Digest, View>)> {
        let views: Vec<Option<u8>> = std::iter::once(None).chain((0..target).map(Some)).collect();
        let mut all = Vec::new();
        for p in std::iter::once(None).chain((0..3).flat_map(|d| (0..target).map(move |v| Some((d, v))))) {
            for null in &views {
                for a in &views {
                    for b in &views {
                        let says = Says { p, q: [*null, *a, *b] };
                        all.push((says, says.q_map(&self.digests)));
                    }
                }
            }
        }
        all
    }

    /// What one set decides; None: it waits.
    fn slot(&mut self, members: &[(Says, &BTreeMap<Digest, View>)]) -> Option<Slot> {
        self.decisions += 1;
        if members.iter().all(|(says, _)| says.is_empty()) {
            return Some(Slot::Free);
        }
        let mut entries = Entries::default();
        for (says, q) in members {
            entries.prepared.extend(says.p.map(|(d, v)| (self.digests[usize::from(d)], View(u64::from(v)))));
            entries.pre_prepared.extend((!q.is_empty()).then_some(*q));
        }
        let chosen = entries.choose(size(4), members.len(), self.digests[0])?;
        Some(Slot::Chosen(self.digests.iter().position(|d| *d == chosen).unwrap() as u8))
    }

    /// Everything that a new view may begin with, after checking each.
    fn decide_all(&mut self, world: &World, lies: &[(Says, BTreeMap<Digest, View>)]) -> BTreeSet<Slot> {
        let maps = world.correct.map(|says| says.q_map(&self.digests));
        let correct: Vec<(Says, &BTreeMap<Digest, View>)> = world.correct.iter().copied().zip(&maps).collect();
        let mut found = BTreeSet::new();
        let alone = self.slot(&correct);
        assert!(alone.is_some(), "all correct replicas decide: {world:?}");
        found.extend(alone);
        for (says, q) in lies {
            for left_out in 0..=CORRECT {
                let mut set: Vec<_> = correct.clone();
                set.push((*says, q));
                if left_out < CORRECT {
                    set.remove(left_out);
                }
                let slot = self.slot(&set);
                assert!(slot.is_some() || left_out < CORRECT, "a lie blocks all: {says:?} {world:?}");
                found.extend(slot);
            }
        }
        if let Some(committed) = world.committed {
            assert_eq!(found, BTreeSet::from([Slot::Chosen(committed)]), "{world:?}");
        }
        found
    }

    /// Everything that may come of one view, each correct replica having installed it with one of `slots`, or not.
    fn run_view(world: &World, view: u8, slots: &BTreeSet<Slot>, into: &mut BTreeSet<World>) {
        let options = world.correct.map(|says| {
            let mut options = BTreeSet::from([None]);
            for slot in slots {
                match slot {
                    Slot::Chosen(d) => options.extend([Some(*d)]),
                    // P12: one fresh digest, or the one that is there.
                    Slot::Free => options.extend(FRESH.iter().filter(|d| fresh(&says, **d)).map(|d| Some(*d))),
                }
            }
            options
        });
        for a in &options[0] {
            for b in &options[1] {
                for c in &options[2] {
                    certify(world, view, [*a, *b, *c], into);
                }
            }
        }
    }
}

fn fresh(says: &Says, digest: u8) -> bool {
    says.q.iter().enumerate().all(|(held, view)| view.is_none() || held == usize::from(digest))
}

/// Every outcome of a view in which these digests were pre-prepared: P15, with the liar's vote for everything.
fn certify(world: &World, view: u8, accepted: [Option<u8>; CORRECT], into: &mut BTreeSet<World>) {
    let mut after = *world;
    for (says, digest) in after.correct.iter_mut().zip(accepted) {
        if let Some(digest) = digest {
            says.q[usize::from(digest)] = Some(view);
        }
    }
    into.insert(after.canonical());
    // At most one digest can have two correct replicas of three.
    let two = (0..DIGESTS as u8).find(|d| accepted.iter().filter(|a| **a == Some(*d)).count() >= 2);
    let Some(digest) = two else { return };
    for prepared in 1u8..1 << CORRECT {
        let is_in = |i: usize| prepared >> i & 1 == 1;
        if (0..CORRECT).any(|i| is_in(i) && accepted[i] != Some(digest)) {
            continue;
        }
        let mut after = after;
        (0..CORRECT).filter(|i| is_in(*i)).for_each(|i| after.correct[i].p = Some((digest, view)));
        into.insert(after.canonical());
        if prepared.count_ones() >= 2 {
            assert!(after.committed.is_none_or(|first| first == digest), "two batches committed: {after:?}");
            after.committed = Some(digest);
            into.insert(after.canonical());
        }
    }
}

fn search(views: u8) -> (usize, usize) {
    let mut search = Search { digests: [null(), digest(1), digest(2)], decisions: 0 };
    let mut worlds = BTreeSet::new();
    Search::run_view(&World::default(), 0, &BTreeSet::from([Slot::Free]), &mut worlds);
    let mut seen = worlds.len();
    for target in 1..=views {
        let lies = search.lies(target);
        let mut next = BTreeSet::new();
        for world in &worlds {
            let slots = search.decide_all(world, &lies);
            if target < views {
                Search::run_view(world, target, &slots, &mut next);
            }
        }
        seen += next.len();
        worlds = next;
    }
    (seen, search.decisions)
}

#[test]
fn p32_every_history_of_one_number_in_three_views_keeps_what_it_committed() {
    let (worlds, decisions) = search(3);
    assert!(worlds > 10_000 && decisions > 10_000_000, "{worlds} worlds, {decisions} decisions");
}
