//! P31 and P32 once more, by sets and straight from the text, and without a thought for cost.

use std::collections::BTreeSet;

use super::*;

pub const WINDOW: u64 = 4;

/// Which parts of the rules are kept: all of them, but in tests of the tests.
#[derive(Clone, Copy)]
pub struct Rules {
    pub a1: bool,
    pub a2: bool,
    pub highest_view: bool,
    pub b_quorum: bool,
}

pub const AS_WRITTEN: Rules = Rules { a1: true, a2: true, highest_view: true, b_quorum: true };

pub fn decide(size: ClusterSize, window: u64, s: &[Member]) -> Option<Decision> {
    decide_by(AS_WRITTEN, size, window, s)
}

pub fn decide_by(rules: Rules, size: ClusterSize, window: u64, s: &[Member]) -> Option<Decision> {
    let (q, w) = (2 * size.f() + 1, size.f() + 1);
    let senders: BTreeSet<ReplicaId> = s.iter().map(|m| m.replica).collect();
    if senders.len() != s.len() || s.len() < q {
        return None;
    }
    let stable = s.iter().map(|m| m.stable.0).max().unwrap();
    let numbers = s.iter().flat_map(|m| m.prepared.keys().chain(m.pre_prepared.keys()));
    let last = numbers.map(|n| n.0).filter(|n| *n > stable && *n - stable <= window).max();
    let mut chosen = Vec::new();
    let mut n = stable;
    while Some(n) < last {
        n += 1;
        chosen.push(decide_one(rules, q, w, SeqNum(n), s)?);
    }
    Some(Decision { stable: SeqNum(stable), chosen })
}

fn decide_one(rules: Rules, q: usize, w: usize, n: SeqNum, s: &[Member]) -> Option<Chosen> {
    let candidates: BTreeSet<(Digest, View)> = s.iter().filter_map(|m| m.prepared.get(&n).copied()).collect();
    let a1 = |d: Digest, v: View| {
        let nothing_against = |m: &&Member| {
            m.prepared.iter().filter(|(at, _)| **at == n).all(|(_, (e, u))| *u < v || (*u == v && *e == d))
        };
        s.iter().filter(nothing_against).count() >= q
    };
    let a2 = |d: Digest, v: View| {
        let pre_prepared = |m: &&Member| {
            let entries = m.pre_prepared.get(&n).into_iter().flatten();
            entries.into_iter().any(|(e, u)| *e == d && *u >= v)
        };
        s.iter().filter(pre_prepared).count() >= w
    };
    let good = candidates.into_iter().filter(|(d, v)| (!rules.a1 || a1(*d, *v)) && (!rules.a2 || a2(*d, *v)));
    let mut good: Vec<(Digest, View)> = good.collect();
    // Smallest digest within a view: the set was sorted by digest, and this sort is stable.
    good.sort_by_key(|(_, v)| std::cmp::Reverse(*v));
    let best = if rules.highest_view { good.first() } else { good.last() };
    if let Some((d, _)) = best {
        return Some(if *d == null() { Chosen::Null } else { Chosen::Batch(*d) });
    }
    let without = s.iter().filter(|m| !m.prepared.contains_key(&n)).count();
    (!rules.b_quorum || without >= q).then_some(Chosen::Null)
}

/// View-changes that no history need ever produce: few digests and views, so that they meet often.
pub fn random_members(random: &mut Random, size: ClusterSize) -> Vec<Member> {
    let (n, q) = (size.n() as u64, size.quorum() as u64);
    let replicas: Vec<u8> = (0..size.n() as u8).collect();
    let count = if random.percent(5) { random.below(n + 1) } else { q + random.below(n - q + 1) };
    let digests = [null(), digest(1), digest(2), digest(3)];
    let kinds = 1 + random.below(4);
    let views = 1 + random.below(4);
    let density = random.pick(&[10, 40, 70, 95]);
    let agreement = random.pick(&[0, 50, 80, 95]);
    let common = (random.pick(&digests), random.below(views));
    let entry = |random: &mut Random| match random.percent(agreement) {
        true => common,
        false => (digests[random.below(kinds) as usize], random.below(views)),
    };
    random
        .sample(&replicas, count as usize)
        .into_iter()
        .map(|replica| {
            let stable = if random.percent(80) { 2 } else { random.below(4) };
            let mut made = member(replica, stable);
            for n in stable + 1..=stable + WINDOW {
                if random.percent(density) {
                    let (d, v) = entry(random);
                    made = made.p(n, d, v);
                }
                while random.percent(density.min(80)) {
                    let (d, v) = entry(random);
                    made = made.q(n, d, v);
                }
            }
            made
        })
        .collect()
}

#[test]
fn p31_p32_the_decision_is_the_oracles_on_arbitrary_view_changes() {
    let (mut decided, mut undecided, mut batches) = (0, 0, 0);
    for n in [4, 7] {
        let mut random = Random(n as u64);
        for round in 0..30_000 {
            let members = random_members(&mut random, size(n));
            let ours = super::decide(size(n), WINDOW, &members);
            assert_eq!(ours, decide(size(n), WINDOW, &members), "n = {n}, round {round}: {members:#?}");
            match ours {
                Some(decision) => {
                    decided += 1;
                    batches += decision.chosen.iter().filter(|c| **c != Chosen::Null).count();
                }
                None => undecided += 1,
            }
        }
    }
    assert!(decided > 10_000 && undecided > 10_000 && batches > 10_000, "{decided} {undecided} {batches}");
}
