//! The decision against an oracle, in generated histories, in a small exhaustive model, and at the counterexamples that
//! decided the rules.

mod counterexamples;
mod exhaustive;
mod histories;
mod model;
mod oracle;

use super::*;
use crate::types::ReplicaId;

/// A way to decide: ours, the oracle's, or one of the wrong ones.
type Decide = fn(ClusterSize, u64, &[Member]) -> Option<Decision>;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// `count` of `from`, in a random order.
    fn sample<T: Clone>(&mut self, from: &[T], count: usize) -> Vec<T> {
        let mut left = from.to_vec();
        (0..count).map(|_| left.swap_remove(self.below(left.len() as u64) as usize)).collect()
    }
}

fn size(n: usize) -> ClusterSize {
    ClusterSize::of(n).unwrap()
}

fn null() -> Digest {
    Batch::null().digest()
}

fn digest(i: u8) -> Digest {
    Digest([i; 32])
}

/// A member whose h is `stable` and that has no entries.
fn member(replica: u8, stable: u64) -> Member {
    let (prepared, pre_prepared) = (BTreeMap::new(), BTreeMap::new());
    Member { replica: ReplicaId(replica), stable: SeqNum(stable), prepared, pre_prepared }
}

impl Member {
    fn p(mut self, n: u64, digest: Digest, view: u64) -> Member {
        self.prepared.insert(SeqNum(n), (digest, View(view)));
        self
    }

    fn q(mut self, n: u64, digest: Digest, view: u64) -> Member {
        self.pre_prepared.entry(SeqNum(n)).or_default().insert(digest, View(view));
        self
    }
}

#[test]
fn p31_the_largest_proven_checkpoint_counts_and_what_it_covers_is_not_decided() {
    let low = |replica| member(replica, 0).p(1, digest(1), 0).q(1, digest(1), 0).p(3, digest(3), 0).q(3, digest(3), 0);
    let decision = decide(size(4), 8, &[low(0), member(1, 2).p(3, digest(3), 0).q(3, digest(3), 0), low(2)]).unwrap();
    assert_eq!(decision, Decision { stable: SeqNum(2), chosen: vec![Chosen::Batch(digest(3))] });
    assert_eq!([1, 2, 3, 4].map(|n| decision.at(SeqNum(n))), [None, None, Some(Chosen::Batch(digest(3))), None]);
    assert_eq!(decision.last(), SeqNum(3));
    assert_eq!(decision.at(SeqNum(0)), None);
}

#[test]
fn p31_a_set_has_at_least_a_quorum_of_different_replicas() {
    let members: Vec<Member> = (0..4).map(|r| member(r, 0)).collect();
    let nothing = Decision { stable: SeqNum(0), chosen: vec![] };
    assert_eq!(decide(size(4), 8, &members[..2]), None);
    assert_eq!(decide(size(4), 8, &members[..3]), Some(nothing.clone()));
    assert_eq!(decide(size(4), 8, &members), Some(nothing));
    assert_eq!(decide(size(4), 8, &[member(0, 0), member(1, 0), member(1, 0)]), None);
    assert_eq!(decide(size(7), 8, &members), None);
    assert_eq!(decide(size(4), 8, &[]), None);
}

#[test]
fn p32_gaps_become_null_and_what_lies_above_the_window_is_free() {
    let tall = member(0, 0).q(3, digest(3), 0).q(6, digest(6), 0);
    let decision = decide(size(4), 5, &[tall.clone(), member(1, 0), member(2, 0)]).unwrap();
    assert_eq!(decision, Decision { stable: SeqNum(0), chosen: vec![Chosen::Null; 5] });
    let decision = decide(size(4), 6, &[tall, member(1, 0), member(2, 0)]).unwrap();
    assert_eq!(decision.last(), SeqNum(6));
    let top = u64::MAX - 1;
    let members = [member(0, top).q(u64::MAX, digest(1), 0), member(1, top), member(2, u64::MAX)];
    assert_eq!(decide(size(4), 8, &members[..2]), None);
    assert_eq!(decide(size(4), 8, &members).map(|d| d.chosen), Some(vec![]), "no number is above the last");
}

#[test]
fn p32_a_prepared_null_reads_null() {
    let prepared = |replica| member(replica, 0).p(1, null(), 2).q(1, null(), 2).q(1, digest(1), 0);
    let decision = decide(size(4), 8, &[prepared(0), prepared(1), prepared(2)]).unwrap();
    assert_eq!(decision.chosen, [Chosen::Null]);
    assert_eq!((Chosen::Null.digest(), Chosen::Batch(digest(1)).digest()), (null(), digest(1)));
}

#[test]
fn p32_the_candidate_of_the_highest_view_wins_and_each_condition_counts_exactly() {
    let d = digest(1);
    let a = member(0, 0).p(1, d, 1).q(1, d, 1);
    let b = member(1, 0).q(1, d, 1);
    let silent = member(2, 0);
    let other = member(3, 0).p(1, digest(2), 1).q(1, digest(2), 1);
    let batch = Some(vec![Chosen::Batch(d)]);
    let chosen = |members: &[Member]| decide(size(4), 8, members).map(|decision| decision.chosen);
    assert_eq!(chosen(&[a.clone(), b.clone(), silent.clone()]), batch);
    // A2 with f members only: not chosen, and B has only two.
    assert_eq!(chosen(&[a.clone(), silent.clone(), member(1, 0)]), None);
    // … nor does an earlier pre-prepare count, nor one of another digest.
    assert_eq!(chosen(&[a.clone(), silent.clone(), member(1, 0).q(1, d, 0)]), None);
    assert_eq!(chosen(&[a.clone(), silent.clone(), member(1, 0).q(1, digest(2), 1)]), None);
    // A later one does.
    assert_eq!(chosen(&[a.clone(), silent.clone(), member(1, 0).q(1, d, 2)]), batch);
    // A1 with two of three: the fourth replica, or a lower view, decides.
    assert_eq!(chosen(&[a.clone(), b.clone(), other.clone()]), None);
    assert_eq!(chosen(&[a.clone(), b.clone(), other, silent.clone()]), batch);
    assert_eq!(chosen(&[a.clone(), b.clone(), member(3, 0).p(1, digest(2), 0)]), batch);
    assert_eq!(chosen(&[a.clone(), b, member(3, 0).p(1, digest(2), 2)]), None);
    // B with exactly q.
    assert_eq!(chosen(&[a, silent, member(1, 0), member(3, 0)]), Some(vec![Chosen::Null]));
}

#[test]
fn p32_the_order_of_the_set_does_not_matter() {
    let mut random = Random(32);
    for _ in 0..300 {
        let members = oracle::random_members(&mut random, size(7));
        let expected = decide(size(7), oracle::WINDOW, &members);
        for _ in 0..4 {
            let shuffled = random.sample(&members, members.len());
            assert_eq!(decide(size(7), oracle::WINDOW, &shuffled), expected, "{members:#?}");
        }
    }
}
