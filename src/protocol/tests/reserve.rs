//! The preferred quorum and the reserve (P53).

use super::*;
use crate::types::ReplicaSet;

/// Until it is judged whether a batch needed the votes of the reserve.
const PATIENCE: Duration = Duration::from_millis(5);

fn set(ids: &[u8]) -> ReplicaSet {
    ids.iter().map(|&id| ReplicaId(id)).collect()
}

/// Backup 1, at whose `n` the reserve's vote was the one that made it prepared.
fn decided_by_the_reserve(one: &mut One, n: u64) -> Digest {
    let p = pre_prepare(0, n, one.core.last_choice.time + 1, &[pack(1, n, 8)]);
    let digest = p.digest();
    one.pre_prepare(0, &p, true).message(3, Message::Prepare(vote(n, digest)));
    assert_eq!(one.core.last_prepared(), SeqNum(n));
    digest
}

/// As [`pack`], asking everybody for the whole result.
fn whole_result(client: u64, t: u64, bytes: usize) -> Pack {
    let op = vec![t as u8; bytes];
    let request = Request { session: SessionId(client), t, low: 0, kind: RequestKind::Ordered, op: &op };
    let mut builder = PackBuilder::new(ClientId(client), EndpointId(client));
    builder.push(&request);
    builder.finish(true, |_, writer| writer.write(Proof::Vector(&[[0; 8]; 4])))
}

#[test]
fn p53_what_goes_to_the_reserve_may_wait_and_who_is_in_reserve_rests() {
    for me in 0..4 {
        let mut one = One::new(me);
        let (patient, rests) = if me == 3 { (set(&[]), true) } else { (set(&[3]), false) };
        assert_eq!((one.core.patient(one.now), one.core.rests(one.now)), (patient, rests), "r{me}");
        // Another view has another reserve.
        let mut one = One::new(me);
        if me != 1 {
            one.follow(1);
            let (patient, rests) = if me == 0 { (set(&[]), true) } else { (set(&[0]), false) };
            assert_eq!((one.core.patient(one.now), one.core.rests(one.now)), (patient, rests), "r{me} in view 1");
        }
        let mut one = One::with(me, |config| config.reserve_delay = Duration::ZERO);
        assert_eq!((one.core.patient(one.now), one.core.rests(one.now)), (set(&[]), false), "r{me}: switched off");
        let mut one = One::with(me, |config| config.forgetful = true);
        assert_eq!((one.core.patient(one.now), one.core.rests(one.now)), (set(&[]), false), "r{me} recovers");
    }
    let mut one = One::new(2);
    one.leave(&[0, 3], 1);
    assert!(one.core.patient(one.now).is_empty(), "between two views");
}

#[test]
fn p53_nothing_waits_for_the_reserve_once_others_cannot_do_without_its_votes() {
    let mut one = One::new(1);
    decided_by_the_reserve(&mut one, 1);
    assert_eq!(one.core.patient(one.now), set(&[3]), "2's vote may be on its way");
    one.pass(PATIENCE);
    assert!(one.core.patient(one.now).is_empty(), "it was not");
    assert_eq!(one.core.counters().reserve_needed, 1);
    one.pass(Duration::from_millis(10));
    assert_eq!(one.core.patient(one.now), set(&[3]), "tried again");
    // So it is the next time, and that lasts twice as long.
    decided_by_the_reserve(&mut one, 2);
    one.pass(PATIENCE);
    assert!(one.core.patient(one.now).is_empty());
    one.pass(Duration::from_millis(15));
    assert!(one.core.patient(one.now).is_empty());
    one.pass(Duration::from_millis(5));
    assert_eq!(one.core.patient(one.now), set(&[3]));
}

#[test]
fn p53_votes_that_come_a_little_after_those_of_the_reserve_are_no_reason() {
    let mut one = One::new(1);
    let digest = decided_by_the_reserve(&mut one, 1);
    one.message(2, Message::Prepare(vote(1, digest)));
    one.message(3, Message::Commit(vote(1, digest))).message(0, Message::Commit(vote(1, digest)));
    one.message(2, Message::Commit(vote(1, digest)));
    one.pass(PATIENCE);
    assert_eq!((one.core.patient(one.now), one.core.counters().reserve_needed), (set(&[3]), 0));
    // A COMMIT that is missing is one.
    let digest = decided_by_the_reserve(&mut one, 2);
    one.message(2, Message::Prepare(vote(2, digest)));
    one.message(3, Message::Commit(vote(2, digest))).message(0, Message::Commit(vote(2, digest)));
    one.pass(PATIENCE);
    assert!(one.core.patient(one.now).is_empty());
}

#[test]
fn p53_who_is_in_reserve_notices_that_its_own_votes_decide() {
    let mut one = One::new(3);
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    one.pre_prepare(0, &p, true).message(1, Message::Prepare(vote(1, p.digest())));
    assert!(one.core.rests(one.now));
    one.pass(PATIENCE);
    assert!(one.core.patient(one.now).is_empty() && !one.core.rests(one.now), "2 is silent");
    one.pass(Duration::from_millis(10));
    assert!(one.core.rests(one.now));
}

#[test]
fn p53_a_client_that_speaks_to_backups_calls_the_reserve() {
    for me in 1..4 {
        let mut one = One::new(me);
        let quiet = if me == 3 { (set(&[]), true) } else { (set(&[3]), false) };
        let resting = |one: &mut One| (one.core.patient(one.now), one.core.rests(one.now)) == quiet;
        one.request(pack(1, 1, 20_000));
        assert!(resting(&mut one), "large packs go to all (P3)");
        one.request(whole_result(1, 9, 20_000));
        assert!(!resting(&mut one), "but not those of who called it");
        one.pass(Duration::from_millis(10));
        assert!(resting(&mut one));
        one.request(pack(1, 2, 8));
        assert!(one.core.patient(one.now).is_empty() && !one.core.rests(one.now), "r{me}");
        assert!(one.took().is_empty(), "nothing else comes of it");
        one.pass(Duration::from_millis(9));
        assert!(!resting(&mut one));
        one.pass(Duration::from_millis(1));
        assert!(resting(&mut one), "r{me}");
        one.signed_request(pack(1, 3, 8));
        assert!(!resting(&mut one), "r{me}: a retransmission");
    }
    let mut primary = One::new(0);
    primary.request(pack(1, 1, 8));
    assert_eq!(primary.core.patient(primary.now), set(&[3]), "all clients speak to it");
    primary.request(whole_result(1, 2, 8));
    assert!(primary.core.patient(primary.now).is_empty(), "and say by this that they need more");
}

#[test]
fn p53_who_is_asked_a_query_or_is_behind_does_not_rest() {
    let mut one = One::new(3);
    one.event(Event::Query(from_client(pack(1, 1, 8))));
    assert!(!one.core.rests(one.now), "somebody waits for the answer");
    let mut one = One::with(3, |config| config.pipeline_max = 2);
    for n in 1..=4 {
        one.pre_prepare(0, &pre_prepare(0, n, n, &[pack(1, n, 8)]), true);
        assert!(one.core.rests(one.now), "{n}");
    }
    one.pre_prepare(0, &pre_prepare(0, 5, 5, &[pack(1, 5, 8)]), true);
    assert!(!one.core.rests(one.now), "what it lacks does not come by itself");
}
