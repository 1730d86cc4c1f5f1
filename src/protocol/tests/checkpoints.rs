//! Watermarks, and what disagreement means (P24, P25).

use super::*;

#[test]
fn p24_a_quorum_of_equal_checkpoints_moves_the_watermarks() {
    let mut backup = One::new(1);
    for n in 1..=K {
        backup.agree(n);
    }
    backup.checkpoint(1, K, 7).checkpoint(0, K, 7).checkpoint(0, K, 7);
    assert_eq!(backup.core.last_stable(), SeqNum(0), "two replicas are no quorum");
    assert!(backup.notices.is_empty());
    assert!(backup.took().iter().any(|m| matches!(m, Message::Checkpoint(c) if c.replica == ReplicaId(1))));
    backup.checkpoint(2, K, 7);
    assert_eq!(backup.core.last_stable(), SeqNum(K));
    assert_eq!(backup.core.stable_proof().len(), 3);
    assert_eq!(backup.core.log.high(), SeqNum(K + L));
}

#[test]
fn p24_votes_wait_for_a_replica_that_has_not_executed_so_far() {
    let mut backup = One::new(1);
    for from in [0, 2, 3] {
        backup.checkpoint(from, K, 7);
    }
    assert_eq!(backup.core.last_stable(), SeqNum(0));
    for n in 1..=K {
        backup.agree(n);
    }
    backup.checkpoint(1, K, 7);
    assert_eq!(backup.core.last_stable(), SeqNum(K));
}

#[test]
fn p24_a_peer_that_is_behind_gets_the_proofs_and_entries_it_needs() {
    let mut backup = One::new(1);
    backup.message(3, Message::Status(Status { wants: false, ..status(0, 0) }));
    for n in 1..=2 * K {
        backup.agree(n);
    }
    for n in [K, 2 * K] {
        for from in [0, 1, 2] {
            backup.checkpoint(from, n, 7);
        }
    }
    assert_eq!(backup.core.last_stable(), SeqNum(2 * K));
    backup.pass(Duration::from_millis(10)).took();
    backup.message(3, Message::Status(status(0, 0)));
    let sent = backup.took();
    let proofs: Vec<u64> =
        sent.iter().filter_map(|m| if let Message::Stable(p) = m { Some(p[0].n.0) } else { None }).collect();
    assert_eq!(proofs, [K, 2 * K], "the first that it can check, and the last");
    assert_eq!(sent.iter().filter(|m| matches!(m, Message::Committed(_))).count(), 2 * K as usize);
}

#[test]
fn p25_a_weak_quorum_against_us_is_suspicious_and_a_quorum_means_diverged() {
    let mut backup = One::new(1);
    for n in 1..=K {
        backup.agree(n);
    }
    backup.checkpoint(1, K, 1).checkpoint(0, K, 7);
    assert!(backup.notices.is_empty(), "one may lie");
    backup.checkpoint(2, K, 7);
    assert_eq!(backup.notices, [Notice::Suspect(SeqNum(K))]);
    assert_eq!(backup.core.mode(), Mode::Normal);
    backup.checkpoint(3, K, 7);
    let (n, ours, certified) = (SeqNum(K), Digest([1; 32]), Digest([7; 32]));
    assert_eq!(backup.notices.last(), Some(&Notice::Diverged { n, ours, certified }));
    assert_eq!(backup.core.mode(), Mode::Diverged);
    backup.took();
    backup.pre_prepare(0, &pre_prepare(0, K + 1, 9, &[]), true);
    assert!(backup.took().is_empty(), "a diverged replica votes no more");
}

#[test]
fn p25_no_possible_quorum_means_split_and_nothing_is_proposed() {
    let mut primary = One::new(0);
    for t in 1..=K {
        primary.request(pack(1, t, 8));
        let d = primary.core.log.get(SeqNum(t)).unwrap().pre_prepare.unwrap().1;
        for backup in [1, 2] {
            primary.message(backup, Message::Prepare(vote(t, d))).message(backup, Message::Commit(vote(t, d)));
        }
    }
    primary.checkpoint(0, K, 1).checkpoint(1, K, 2).checkpoint(2, K, 3);
    assert_eq!(primary.core.mode(), Mode::Split);
    primary.took();
    primary.request(pack(1, 9, 8));
    assert!(!primary.took().iter().any(|m| matches!(m, Message::PrePrepare(_))));
}

#[test]
fn p24_entries_stay_for_a_peer_that_is_silent_for_now() {
    // Replica 3 was never heard; it may only be slow to start. The others need nothing of what is stable.
    let mut backup = One::new(1);
    for other in [0, 2] {
        backup.message(other, Message::Status(Status { wants: false, ..status(100, 100) }));
    }
    for n in 1..=2 * K {
        backup.agree(n);
    }
    for n in [K, 2 * K] {
        for from in [0, 1, 2] {
            backup.checkpoint(from, n, 7);
        }
    }
    assert_eq!(backup.core.last_stable(), SeqNum(2 * K));
    backup.pass(Duration::from_millis(10)).took();
    backup.message(3, Message::Status(status(0, 0)));
    let sent = backup.took();
    assert_eq!(sent.iter().filter(|m| matches!(m, Message::Committed(_))).count(), 2 * K as usize, "{sent:?}");
    assert_eq!(sent.iter().filter(|m| matches!(m, Message::Stable(_))).count(), 2);
    // What it has passed is dropped, the proofs of it too.
    backup.message(3, Message::Status(Status { wants: false, ..status(K + 1, K) }));
    assert_eq!((backup.core.log.retained(), backup.core.checkpoints.proofs()), (SeqNum(K), 1));
}

#[test]
fn p25_a_split_replica_suspects_no_primary_and_joins_no_view_change() {
    let mut backup = One::with(1, |c| c.view_timeout = Duration::from_millis(100));
    for n in 1..=K {
        backup.agree(n);
    }
    backup.checkpoint(1, K, 1).checkpoint(0, K, 2).checkpoint(2, K, 3);
    assert_eq!(backup.core.mode(), Mode::Split);
    backup.signed_request(pack(1, 9, 8)).pass(Duration::from_secs(2)).leave(&[0, 2], 3);
    assert_eq!((backup.core.view(), backup.core.is_pending()), (View(0), false), "the fault is the service's");
}

#[test]
fn p24_of_one_replica_the_first_checkpoint_counts_and_a_second_is_a_lie() {
    // Also where the own votes are forgotten: those alone may be said anew.
    for forgetful in [false, true] {
        let mut backup = One::with(1, |c| (c.boot, c.forgetful) = (1, forgetful));
        backup.checkpoint(2, K, 7).checkpoint(2, K, 7);
        assert!(backup.caught(2).is_empty(), "it may say it again");
        backup.checkpoint(2, K, 9);
        assert_eq!(backup.caught(2), [("contradictory_checkpoint", 1)]);
        assert_eq!(backup.core.counters().contradiction, 1);
    }
}

/// Roots come later than the execution that they are of, and meanwhile it may be undone.
#[test]
fn p24_p25_a_replica_signs_no_state_that_it_does_not_hold() {
    let mut backup = One::new(1);
    for n in 1..=2 * K {
        backup.agree(n);
    }
    backup.took();
    backup.checkpoint(1, 3 * K, 1);
    assert!(backup.took().is_empty(), "of what is not executed");
    backup.checkpoint(1, K, 1).checkpoint(0, K, 7).checkpoint(2, K, 7).checkpoint(3, K, 7).took();
    backup.checkpoint(1, 2 * K, 1);
    assert!(backup.took().is_empty(), "of what came out of a wrong state");
    assert_eq!(backup.core.counters().outside_window, 2);
}

fn proof_of(signers: &[u8], n: u64, root: u8) -> Event {
    let signed = signers.iter().map(|&replica| signed_checkpoint(replica, n, root));
    Event::Claim(from_replica(3, Claim::Stable(signed.collect())))
}

fn proof(n: u64, root: u8) -> Event {
    proof_of(&[0, 2, 3], n, root)
}

#[test]
fn p24_p44_of_proofs_those_within_two_windows_are_kept_and_beyond_them_the_newest() {
    let mut backup = One::new(1);
    backup.event(proof(2 * L + K, 7));
    assert_eq!(backup.core.checkpoints.len(), 0, "noted, but not kept with the votes");
    backup.event(proof(2 * L, 7));
    assert_eq!(backup.core.checkpoints.len(), 1);
    backup.event(proof_of(&[0, 2], K, 7));
    assert_eq!((backup.core.checkpoints.len(), backup.core.counters().outside_window), (1, 1), "two prove nothing");
}

/// A liar signs what q need, and something else for those whom it wants to fall behind.
#[test]
fn p24_a_proof_counts_whatever_its_signers_said_elsewhere() {
    let mut backup = One::new(1);
    for n in 1..=K {
        backup.agree(n);
    }
    backup.checkpoint(2, K, 9).checkpoint(1, K, 7).checkpoint(3, K, 7);
    assert_eq!(backup.core.last_stable(), SeqNum(0), "two of four, and a liar");
    backup.event(proof(K, 7));
    assert_eq!(backup.core.last_stable(), SeqNum(K));
    assert_eq!(backup.core.stable_proof().len(), 3);

    // The proof is there before the state is.
    let mut backup = One::new(1);
    backup.checkpoint(2, K, 9).event(proof(K, 7));
    for n in 1..=K {
        backup.agree(n);
    }
    backup.checkpoint(1, K, 7);
    assert_eq!(backup.core.last_stable(), SeqNum(K));

    // It is another than ours.
    let mut backup = One::new(1);
    for n in 1..=K {
        backup.agree(n);
    }
    backup.checkpoint(1, K, 5).checkpoint(2, K, 5).event(proof(K, 7));
    assert_eq!((backup.core.mode(), &backup.transfers[..]), (Mode::Diverged, &[(K, true)][..]));
    backup.event(Event::Transferred(SeqNum(K)));
    assert_eq!(backup.core.log.retained(), SeqNum(0), "it has executed what others may need");
}

#[test]
fn p24_p38_checkpoints_that_nobody_will_reach_keep_no_proof_out() {
    let mut backup = One::new(1);
    let far = 100 * L;
    for i in 2..6 {
        backup.checkpoint(2, i * far, 9);
    }
    backup.event(proof(far, 7)).pass(Duration::from_millis(200));
    assert_eq!(backup.transfers, [(far, false)]);
}

#[test]
fn p24_how_long_a_checkpoint_takes_to_become_stable_counts_from_its_execution() {
    let mut one = One::new(1);
    for n in 1..=K {
        one.agree(n);
    }
    one.pass(Duration::from_millis(30)).checkpoint(1, K, 7).checkpoint(2, K, 7);
    for n in K + 1..=2 * K {
        one.agree(n);
    }
    assert_eq!(one.core.time_to_stable(), None);
    one.pass(Duration::from_millis(12)).checkpoint(3, K, 7);
    assert_eq!((one.core.last_stable(), one.core.time_to_stable()), (SeqNum(K), Some(Duration::from_millis(42))));
    one.pass(Duration::from_millis(8)).checkpoint(1, 2 * K, 7).checkpoint(2, 2 * K, 7).checkpoint(3, 2 * K, 7);
    assert_eq!((one.core.last_stable(), one.core.time_to_stable()), (SeqNum(2 * K), Some(Duration::from_millis(20))));

    // Whose state is fetched was executed elsewhere.
    one.checkpoint(0, 3 * K, 7).checkpoint(2, 3 * K, 7).checkpoint(3, 3 * K, 7);
    one.pass(Duration::from_millis(101)).event(Event::Transferred(SeqNum(3 * K)));
    assert_eq!((one.core.last_stable(), one.core.time_to_stable()), (SeqNum(3 * K), None));
}
