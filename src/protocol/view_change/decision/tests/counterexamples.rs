//! Schedules that decided a rule, each one played by correct replicas that keep all the other rules.

use super::model::{AS_WRITTEN, Keeping, Model, Reach};
use super::*;

const N1: SeqNum = SeqNum(1);
const WINDOW: u64 = 4;

fn nothing() -> Decision {
    Decision { stable: SeqNum(0), chosen: vec![] }
}

fn choosing(chosen: Chosen) -> Decision {
    Decision { stable: SeqNum(0), chosen: vec![chosen] }
}

/// `view` is installed with `decision` at those listed, which get so far with n = 1.
fn run(model: &mut Model, view: u64, decision: &Decision, script: &[(u8, Option<Digest>, Reach)]) {
    let installed = script.iter().map(|(r, _, _)| (ReplicaId(*r), decision.clone())).collect();
    let line = |replica: ReplicaId| script.iter().find(|(r, _, _)| *r == replica.0).unwrap();
    let mut propose = |replica, n| line(replica).1.filter(|_| n == N1);
    let mut reach = |replica, n| if n == N1 { line(replica).2 } else { Reach::Nothing };
    model.run_view(view, &installed, &mut propose, &mut reach);
}

/// f = 1, r0 lies. It pre-prepares another digest at each of the others in view 0, and then has each of them decided
/// in turn, by claiming to have prepared it; only the first is ever prepared by a correct replica. After a null the
/// first one is the fourth last that r2 and r3 pre-prepared.
fn four_digests_at_one_number(keeping: Keeping) -> Vec<Member> {
    use Reach::{PrePrepared, Prepared};
    let mut model = Model::new(4, &[0], WINDOW, keeping);
    let [a, b, c] = [digest(1), digest(2), digest(3)];
    let claim = |d| member(0, 0).p(1, d, 0).q(1, d, 0);
    let decided = |model: &Model, lie: Member, others: &[u8]| {
        let mut set = model.view_changes_of(others);
        set.push(lie);
        decide(size(4), WINDOW, &set).unwrap()
    };

    run(&mut model, 0, &nothing(), &[(1, Some(a), PrePrepared), (2, Some(b), PrePrepared), (3, Some(c), PrePrepared)]);

    let first = decided(&model, claim(a), &[1, 3]);
    assert_eq!(first, choosing(Chosen::Batch(a)));
    run(&mut model, 1, &first, &[(1, None, Prepared), (2, None, PrePrepared), (3, None, PrePrepared)]);
    let prepared: Vec<bool> = model.view_changes().iter().map(|m| !m.prepared.is_empty()).collect();
    assert_eq!(prepared, [true, false, false], "r1 alone has the certificate");

    for (view, lie, expected) in [
        (2, claim(b), Chosen::Batch(b)),
        (3, claim(c), Chosen::Batch(c)),
        // Nobody of these prepared anything.
        (4, member(0, 0), Chosen::Null),
    ] {
        let next = decided(&model, lie, &[2, 3]);
        assert_eq!(next, choosing(expected));
        run(&mut model, view, &next, &[(2, None, PrePrepared), (3, None, PrePrepared)]);
    }
    model.view_changes()
}

#[test]
fn p27_keeping_only_the_last_f_plus_2_digests_blocks_for_ever() {
    let pruned = four_digests_at_one_number(Keeping { digests_max: 3, ..AS_WRITTEN });
    // r0 is silent now: nobody else will ever speak.
    assert_eq!(decide(size(4), WINDOW, &pruned), None);
    assert_eq!(oracle::decide(size(4), WINDOW, &pruned), None);

    let whole = four_digests_at_one_number(AS_WRITTEN);
    assert_eq!(decide(size(4), WINDOW, &whole), Some(choosing(Chosen::Batch(digest(1)))));
    let most = whole.iter().flat_map(|m| m.pre_prepared.values()).map(BTreeMap::len).max();
    assert_eq!(most, Some(4));
}

/// f = 1, r0 lies. In each view that it leads it proposes a new digest to r1 alone, and leaves r1's VIEW-CHANGE out of
/// the next set, so that the slot is free again. The views between do nothing.
fn one_victim(keeping: Keeping) -> usize {
    let mut model = Model::new(4, &[0], WINDOW, keeping);
    for round in 0..10u64 {
        let mut set = model.view_changes_of(&[2, 3]);
        set.push(member(0, 0));
        let free = decide(size(4), WINDOW, &set).unwrap();
        assert_eq!(free, nothing());
        run(&mut model, 4 * round, &free, &[(1, Some(digest(round as u8)), Reach::PrePrepared)]);
    }
    model.correct[&ReplicaId(1)].says.pre_prepared[&N1].len()
}

#[test]
fn p12_p27_without_the_last_sentence_of_p12_q_grows_without_bound() {
    let n_replicas = 4;
    let unbounded = one_victim(Keeping { one_fresh: false, ..AS_WRITTEN });
    assert_eq!(unbounded, 10, "one more in each view that the liar leads");
    assert!(unbounded > n_replicas + 1);
    assert_eq!(one_victim(AS_WRITTEN), 1);
}

/// f = 2, r0 and r6 lie. r0 proposes one digest to r1, r2, r3 and another to r4, r5; each liar then claims to have
/// prepared one of them.
#[test]
fn p32_two_digests_that_satisfy_a_at_once() {
    let mut model = Model::new(7, &[0, 6], WINDOW, AS_WRITTEN);
    let (small, large) = (digest(1), digest(2));
    let script = [(1, large), (2, large), (3, large), (4, small), (5, small)];
    run(&mut model, 0, &nothing(), &script.map(|(r, d)| (r, Some(d), Reach::PrePrepared)));
    let mut set = model.view_changes();
    set.push(member(0, 0).p(1, small, 0).q(1, small, 0));
    set.push(member(6, 0).p(1, large, 0).q(1, large, 0));
    // Each by itself is a candidate that A allows …
    let without = |liar: usize| {
        let mut set = set.clone();
        set[liar].prepared.clear();
        decide(size(7), WINDOW, &set).unwrap()
    };
    assert_eq!([without(5), without(6)], [choosing(Chosen::Batch(large)), choosing(Chosen::Batch(small))]);
    // … and both together are: the smaller digest, whatever the order.
    for _ in 0..set.len() {
        set.rotate_left(1);
        assert_eq!(decide(size(7), WINDOW, &set), Some(choosing(Chosen::Batch(small))));
        assert_eq!(oracle::decide(size(7), WINDOW, &set), Some(choosing(Chosen::Batch(small))));
    }
    // In different views: the later one, though its digest is larger.
    let later = set.iter().position(|m| m.replica == ReplicaId(6)).unwrap();
    set[later] = member(6, 0).p(1, large, 1).q(1, large, 1);
    for m in set.iter_mut().filter(|m| [1, 2].contains(&m.replica.0)) {
        m.pre_prepared.get_mut(&N1).unwrap().insert(large, View(1));
    }
    assert_eq!(decide(size(7), WINDOW, &set), Some(choosing(Chosen::Batch(large))));
}

/// TOCS '02 starts at the last checkpoint that w members vouch for, and B counted members whose h had passed n.
fn tocs_counting_stable_members(size: ClusterSize, n: SeqNum, set: &[Member]) -> Option<Option<Chosen>> {
    let vouched = set.iter().filter(|m| m.stable >= n).count() >= size.weak_quorum();
    let without = set.iter().filter(|m| !m.prepared.contains_key(&n)).count();
    if vouched { Some(None) } else { (without >= size.quorum()).then_some(Some(Chosen::Null)) }
}

/// f = 2, r5 and r6 lie. r0, r1 and r2 commit and execute n = 1, with the liars' help; r0 and r1 see it become stable
/// and forget their entries. A set without r2 holds no trace of n but the two proofs.
#[test]
fn p32_counting_members_whose_h_has_passed_n_in_b_loses_a_committed_request() {
    use Reach::{Committed, Nothing};
    let mut model = Model::new(7, &[5, 6], WINDOW, AS_WRITTEN);
    let d = digest(1);
    let script = [(0, Committed), (1, Committed), (2, Committed), (3, Nothing), (4, Nothing)];
    run(&mut model, 0, &nothing(), &script.map(|(r, reach)| (r, Some(d), reach)));
    assert_eq!(model.committed, BTreeMap::from([(N1, d)]));
    assert_eq!(model.certifiable(), N1);
    model.mark_stable(ReplicaId(0), N1);
    model.mark_stable(ReplicaId(1), N1);

    let mut set = model.view_changes_of(&[0, 1, 3]);
    set.extend([member(5, 0), member(6, 0)]);
    assert_eq!(tocs_counting_stable_members(size(7), N1, &set), Some(Some(Chosen::Null)), "lost");
    let decision = decide(size(7), WINDOW, &set).unwrap();
    assert_eq!(decision, Decision { stable: N1, chosen: vec![] }, "certified, and decided no more");
    model.check(&decision).unwrap();
}

/// f = 1, r0 lies, L = 4. r1 and r2 have executed to 4, and r1 has the proof; r3 has nothing. Then `votes` gives what
/// happens to n = 5 in view 4, which the liar leads with h* = 4.
fn with_a_laggard(keeping: Keeping, votes: [Reach; 3]) -> Model {
    let mut model = Model::new(4, &[0], WINDOW, keeping);
    let everyone = |stable| [1, 2, 3].map(|r| (ReplicaId(r), Decision { stable: SeqNum(stable), chosen: vec![] }));
    let mut four = |replica: ReplicaId, _| if replica.0 == 3 { Reach::Nothing } else { Reach::Committed };
    model.run_view(0, &everyone(0).into(), &mut |_, _| Some(digest(1)), &mut four);
    assert_eq!(model.certifiable(), SeqNum(4));
    model.mark_stable(ReplicaId(1), SeqNum(4));
    let mut five = |replica: ReplicaId, n: SeqNum| match n.0 {
        5 => votes[usize::from(replica.0) - 1],
        _ => Reach::Nothing,
    };
    model.run_view(4, &everyone(4).into(), &mut |_, _| Some(digest(1)), &mut five);
    model
}

/// r3 learns of h* = 4 by the new view. If it votes in (h*, h* + L], n = 5 commits at r1 by the votes of r1, r3 and the
/// liar, and r3's VIEW-CHANGE, whose h is still 0, cannot say so.
#[test]
fn p12_p45_a_vote_above_ones_own_window_loses_a_committed_request() {
    let votes = [Reach::Committed, Reach::Nothing, Reach::Committed];
    let model = with_a_laggard(Keeping { own_window: false, ..AS_WRITTEN }, votes);
    assert_eq!(model.committed.get(&SeqNum(5)), Some(&digest(1)));
    let mut set = model.view_changes_of(&[2, 3]);
    set.push((1..=4).fold(member(0, 0), |lie, n| lie.q(n, digest(1), 0)));
    let decision = decide(size(4), WINDOW, &set).unwrap();
    assert!(model.check(&decision).is_err(), "n = 5 is free again: {decision:?}");

    let model = with_a_laggard(AS_WRITTEN, votes);
    assert_eq!(model.committed.get(&SeqNum(5)), None, "r1 and the liar are no quorum");
}

/// r3 leads view 7 with h = 0, and announces h* = 4 and a null for n = 5, which r1 alone had pre-prepared. It cannot
/// pre-prepare that itself; r1 and the liar send the two PREPAREs.
#[test]
fn p33_a_primary_that_announces_what_lies_above_its_own_window_blocks_for_ever() {
    let play = |keeping| {
        let mut model = with_a_laggard(keeping, [Reach::PrePrepared, Reach::Nothing, Reach::Nothing]);
        let mut set = model.view_changes_of(&[1, 3]);
        set.push(member(0, 0));
        let decision = decide(size(4), WINDOW, &set).unwrap();
        assert_eq!(decision, Decision { stable: SeqNum(4), chosen: vec![Chosen::Null] });
        let installed = BTreeMap::from([1, 3].map(|r| (ReplicaId(r), decision.clone())));
        model.run_view(7, &installed, &mut |_, _| None, &mut |_, _| Reach::Prepared);
        decide(size(4), WINDOW, &model.view_changes())
    };
    assert_eq!(play(Keeping { primary_stands: false, ..AS_WRITTEN }), None, "and the liar is silent now");
    let decision = Decision { stable: SeqNum(4), chosen: vec![Chosen::Null] };
    assert_eq!(play(AS_WRITTEN), Some(decision), "r3 said nothing");
}
