//! What others committed (P51).

use super::*;

#[test]
fn p51_weak_quorum_of_committed_makes_it_committed_and_the_body_is_fetched() {
    let batch = Batch::new(Choice { time: 1, seed: 0 }, vec![pack(1, 1, 8)]);
    let committed = Committed { n: SeqNum(1), digest: batch.digest() };
    let mut starved = One::new(3);
    starved.message(1, Message::Committed(committed)).message(1, Message::Committed(committed));
    assert!(starved.took().is_empty(), "one replica's word is not enough");
    starved.message(2, Message::Committed(committed));
    assert_eq!(starved.took(), [Message::FetchBatch(committed)]);
    let forged = Batch::new(Choice { time: 2, seed: 0 }, vec![]);
    starved.message(2, Message::Batch(SeqNum(1), forged.into()));
    assert!(starved.did.is_empty());
    starved.message(2, Message::Batch(SeqNum(1), batch.into()));
    assert_eq!(starved.did, [Did::Committed(1)]);
}

/// Some executed it in an earlier view and miss prepares of this one: too few to be believed without more (w), and they
/// say no COMMIT of this view.
#[test]
fn p15_p51_a_committed_counts_as_its_senders_commit_and_not_as_its_prepare() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let committed = Message::Committed(Committed { n: SeqNum(1), digest: p.digest() });
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, true).message(3, committed.clone());
    backup.message(0, Message::Commit(vote(1, p.digest())));
    assert!(backup.did.is_empty(), "not prepared: its own prepare and none besides");
    backup.message(2, Message::Prepare(vote(1, p.digest())));
    assert_eq!(backup.did, [Did::Committed(1)], "commits of r0 and its own, and what r3 said");

    // One replica counts once.
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(1, p.digest())));
    backup.message(3, committed).message(3, Message::Commit(vote(1, p.digest())));
    assert_eq!(backup.did, [Did::Tentative(1)]);
}

#[test]
fn p51_a_tentative_execution_of_another_batch_is_rolled_back() {
    let lie = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let mut backup = One::new(1);
    backup.pre_prepare(0, &lie, true).message(2, Message::Prepare(vote(1, lie.digest())));
    assert_eq!(backup.did, [Did::Tentative(1)]);
    let truth = Batch::new(Choice { time: 1, seed: 0 }, vec![pack(2, 1, 8)]);
    let committed = Committed { n: SeqNum(1), digest: truth.digest() };
    for from in [2, 3] {
        backup.message(from, Message::Committed(committed));
    }
    assert_eq!(backup.did, [Did::Tentative(1), Did::Rollback(1)]);
    backup.message(3, Message::Batch(SeqNum(1), truth.into()));
    assert_eq!(backup.did, [Did::Tentative(1), Did::Rollback(1), Did::Committed(1)]);
}

#[test]
fn p51_the_body_of_a_candidate_that_could_not_be_accepted_serves() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, false);
    let committed = Committed { n: SeqNum(1), digest: p.digest() };
    for from in [2, 3] {
        backup.message(from, Message::Committed(committed));
    }
    assert_eq!(backup.did, [Did::Committed(1)], "no fetch was needed");
}

#[test]
fn p37_p51_lies_about_what_is_done_are_counted_by_name() {
    let mut backup = One::new(1);
    let [a, b] = [1, 2].map(|t| pre_prepare(0, 1, t, &[pack(1, t, 8)]).digest());
    for (digest, lies) in [(a, 0), (a, 0), (b, 1)] {
        backup.message(3, Message::Committed(Committed { n: SeqNum(1), digest }));
        assert_eq!(backup.caught(3).len(), lies);
    }
    backup.message(2, Message::Committed(Committed { n: SeqNum(1), digest: b }));
    backup.message(2, Message::Batch(SeqNum(1), Batch::null().into()));
    assert_eq!(backup.caught(3), [("contradictory_committed", 1)]);
    // And what is outside the window, or came unasked, by number.
    backup.message(3, Message::Committed(Committed { n: SeqNum(L + 1), digest: a }));
    backup.message(3, Message::Batch(SeqNum(2), Batch::null().into()));
    let counters = backup.core.counters();
    assert_eq!((counters.contradiction, counters.outside_window, counters.unasked), (1, 1, 1));
    assert_eq!(backup.caught(2), [("wrong_body", 1)]);
    let mut backup = One::new(1);
    backup.message(2, Message::Status(status(3, 4))).message(2, Message::Status(status(L + 1, 0)));
    backup.checkpoint(2, K + 1, 7);
    assert_eq!(backup.caught(2), [("odd_checkpoint", 1), ("absurd_status", 2)]);
}

#[test]
fn p51_what_is_tentative_becomes_committed_by_the_word_of_others() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(1, p.digest())));
    for from in [2, 3] {
        assert_eq!(backup.did, [Did::Tentative(1)]);
        backup.message(from, Message::Committed(Committed { n: SeqNum(1), digest: p.digest() }));
    }
    assert_eq!(backup.did, [Did::Tentative(1), Did::Committed(1)], "executed once");
}

#[test]
fn p51_it_is_answered_while_entries_are_kept_and_after_that_with_the_stable_proof() {
    // Replica 3 was never heard: entries stay for it, but no more than a window of them.
    let mut backup = One::new(1);
    let last = L + 2 * K;
    for n in 1..=last {
        backup.agree(n);
        if n.is_multiple_of(K) {
            for from in [0, 1, 2] {
                backup.checkpoint(from, n, 7);
            }
        }
    }
    assert_eq!((backup.core.last_stable(), backup.core.log.retained()), (SeqNum(last), SeqNum(2 * K)));
    let answer = |backup: &mut One, executed: u64| {
        backup.pass(Duration::from_millis(10)).took();
        backup.message(3, Message::Status(status(executed, executed)));
        let sent = backup.took();
        let proofs: Vec<u64> =
            sent.iter().filter_map(|m| if let Message::Stable(p) = m { Some(p[0].n.0) } else { None }).collect();
        let committed: Vec<u64> =
            sent.iter().filter_map(|m| if let Message::Committed(c) = m { Some(c.n.0) } else { None }).collect();
        (proofs, committed)
    };
    let (proofs, committed) = answer(&mut backup, K);
    assert_eq!(proofs, [last], "of what is dropped only the proof is left");
    assert!(committed.iter().all(|n| *n > 2 * K), "{committed:?}");
    let (proofs, committed) = answer(&mut backup, 3 * K);
    assert_eq!(proofs, [4 * K, 5 * K]);
    assert_eq!(committed, (3 * K + 1..=last).collect::<Vec<_>>());
}

/// A liar vouches, and sends nothing.
#[test]
fn p51_bodies_are_asked_of_everyone_who_has_them_in_turn() {
    let mut starved = One::new(3);
    for n in [2, 1, 2, 1] {
        for from in [1, 2] {
            let committed = Committed { n: SeqNum(n), digest: Digest([n as u8; 32]) };
            starved.message(from, Message::Committed(committed));
        }
    }
    let asks = starved.sent.iter().filter(|(_, m)| matches!(m, Message::FetchBatch(_))).count();
    assert_eq!(asks, 2, "once each, whatever comes meanwhile");
    starved.pass(Duration::from_millis(100));
    let asked = |n: u64| -> Vec<ReplicaId> {
        let of = |m: &Message| matches!(m, Message::FetchBatch(wanted) if wanted.n == SeqNum(n));
        starved.sent.iter().filter(|(_, m)| of(m)).filter_map(|(to, _)| *to).collect()
    };
    for n in [1, 2] {
        assert!(asked(n).iter().all(|r| [1, 2].contains(&r.0)), "{n}: {:?}", asked(n));
        assert!(asked(n).len() >= 4 && asked(n).windows(2).all(|two| two[0] != two[1]), "{n}: {:?}", asked(n));
    }
    assert_ne!(asked(1)[0], asked(2)[0], "and not all of one");
}
