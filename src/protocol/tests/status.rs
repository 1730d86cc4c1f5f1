//! STATUS and its answers (P37).

use super::*;

#[test]
fn p37_a_status_is_sent_while_something_is_missing_and_only_then() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let mut backup = One::new(1);
    backup.pass(Duration::from_secs(1));
    assert_eq!(wanted(&mut backup), 0);
    backup.pre_prepare(0, &p, true);
    backup.pass(Duration::from_millis(100));
    assert!(wanted(&mut backup) >= 3);
    for other in [0, 2, 3] {
        if other != 0 {
            backup.message(other, Message::Prepare(vote(1, p.digest())));
        }
        backup.message(other, Message::Commit(vote(1, p.digest())));
    }
    wanted(&mut backup);
    backup.pass(Duration::from_secs(1));
    assert_eq!(wanted(&mut backup), 0);
}

/// How often it has said since the last look that something is missing.
fn wanted(one: &mut One) -> usize {
    let sent = std::mem::take(&mut one.sent);
    sent.iter().filter(|(_, m)| matches!(m, Message::Status(s) if s.wants)).count()
}

/// The last STATUS that says so.
fn last_wanted(one: &One) -> Status {
    let wants = |m: &Message| if let Message::Status(s) = m { s.wants.then(|| s.clone()) } else { None };
    one.sent.iter().rev().find_map(|(_, m)| wants(m)).expect("a status")
}

fn idle(executed: u64) -> Message {
    Message::Status(Status { wants: false, ..status(executed, 0) })
}

const SECOND: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(20);

#[test]
fn p37_what_a_peer_has_executed_is_missing_here_while_that_peer_is_heard() {
    let mut backup = One::new(1);
    backup.message(2, idle(0)).pass(SECOND);
    assert_eq!(wanted(&mut backup), 0, "it is no farther");
    backup.message(2, idle(1)).pass(SECOND - INTERVAL);
    assert_eq!(wanted(&mut backup), 49);
    backup.pass(SECOND);
    assert!(wanted(&mut backup) <= 1, "nobody there could send it");
}

#[test]
fn p37_p42_who_recovers_asks_once_it_knows_how_far_and_who_transfers_does_not_ask() {
    let mut reborn = One::reborn(3);
    reborn.pass(SECOND);
    assert_eq!(wanted(&mut reborn), 0, "it has other questions");
    for peer in [0, 1, 2] {
        reborn.answer(peer, 0, 0, None);
    }
    reborn.pass(SECOND);
    assert!(wanted(&mut reborn) >= 49);

    let mut backup = One::new(1);
    for from in [0, 2, 3] {
        backup.checkpoint(from, L, 7).message(from, idle(L));
    }
    backup.pass(Duration::from_millis(200));
    assert_eq!(backup.transfers, [(L, false)]);
    wanted(&mut backup);
    backup.message(2, idle(L)).pass(SECOND / 2);
    assert_eq!(wanted(&mut backup), 0);
}

#[test]
fn p37_who_hears_of_something_missing_and_knows_of_nothing_asks_too() {
    let mut backup = One::new(1);
    backup.agree(1);
    backup.pass(SECOND);
    wanted(&mut backup);
    let wants = |executed| Message::Status(status(executed, 0));
    backup.message(2, wants(0)).message(2, idle(1));
    assert_eq!(wanted(&mut backup), 0, "it is behind, or lacks nothing");
    backup.message(2, wants(1));
    assert_eq!(wanted(&mut backup), 1);
    backup.message(3, wants(1)).pass(INTERVAL - Duration::from_nanos(1)).message(3, wants(1));
    assert_eq!(wanted(&mut backup), 0, "once in an interval");
    backup.pass(Duration::from_nanos(1)).message(3, wants(1));
    assert_eq!(wanted(&mut backup), 1);

    // Of a later view it has missed everything.
    backup.pass(SECOND);
    wanted(&mut backup);
    backup.message(2, Message::Status(Status { wants: false, view: View(1), ..status(0, 0) }));
    assert_eq!(wanted(&mut backup), 1);
}

#[test]
fn p37_a_status_says_of_each_batch_whether_it_is_prepared_and_committed_here() {
    let mut backup = One::with(1, |c| (c.checkpoint_interval, c.log_window) = (128, 256));
    backup.agree(1);
    // The second lacks everything, so nothing after it is executed.
    for n in 3..=140 {
        match n {
            5 | 67 => drop(backup.agree(n)),
            6 | 130 => {
                let p = pre_prepare(0, n, n, &[pack(9, n, 8)]);
                backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(n, p.digest())));
            }
            _ => drop(backup.pre_prepare(0, &pre_prepare(0, n, n, &[pack(9, n, 8)]), true)),
        }
    }
    let before = backup.core.counters().asked;
    backup.sent.clear();
    backup.pass(2 * INTERVAL);
    let said = last_wanted(&backup);
    assert_eq!(backup.core.counters().asked - before, wanted(&mut backup) as u64);
    let numbers = |words: &[u64]| -> Vec<u64> {
        assert_eq!(words.len(), 3, "139 bits");
        (0..192).filter(|i| words[i / 64] >> (i % 64) & 1 == 1).map(|i| 2 + i as u64).collect()
    };
    assert_eq!((said.view, said.stable, said.executed), (View(0), SeqNum(0), SeqNum(1)));
    assert_eq!((numbers(&said.prepared), numbers(&said.committed)), (vec![5, 6, 67, 130], vec![5, 67]));
}

#[test]
fn p37_p44_nobody_has_executed_more_than_a_window_beyond_its_checkpoint() {
    let mut backup = One::new(1);
    backup.message(2, Message::Status(status(K + L, K))).message(2, Message::Status(status(K, K)));
    assert_eq!(backup.caught(2), []);
    for (executed, stable) in [(K + L + 1, K), (K - 1, K), (u64::MAX, 0), (0, u64::MAX)] {
        let mut backup = One::new(1);
        backup.message(2, Message::Status(status(executed, stable)));
        assert_eq!(backup.caught(2), [("absurd_status", 1)], "{executed} {stable}");
    }
}

#[test]
fn p37_an_answer_holds_what_the_sender_lacks_and_echoes_the_nonce() {
    let mut backup = One::new(1);
    let d1 = backup.agree(1);
    let p = pre_prepare(0, 2, 2, &[pack(9, 2, 8)]);
    backup.pre_prepare(0, &p, true);
    backup.pass(Duration::from_millis(10)).took();
    backup.message(3, Message::Status(status(0, 0)));
    let sent = backup.took();
    assert!(sent.contains(&Message::Committed(Committed { n: SeqNum(1), digest: d1 })), "{sent:?}");
    assert!(sent.contains(&Message::Prepare(vote(2, p.digest()))), "{sent:?}");
    assert_eq!(sent.last(), Some(&Message::Answered(77)));
    backup.message(3, Message::Status(status(0, 0)));
    assert!(backup.took().is_empty(), "not again within a few milliseconds");
    backup.pass(Duration::from_millis(10)).took();
    let mut has_both = status(0, 0);
    (has_both.prepared, has_both.committed) = (vec![0b11], vec![0b01]);
    backup.message(3, Message::Status(has_both));
    assert_eq!(backup.took(), [Message::Answered(77)]);
}

#[test]
fn p37_an_answer_is_bounded_in_bytes() {
    let mut primary = One::with(0, |c| {
        c.pipeline_max = 8;
        c.answer_bytes_max = c.batch_bytes_max;
        c.inline_max = 200_000;
    });
    for t in 1..=6 {
        primary.request(pack(1, t, 150_000));
        let n = primary.core.last_proposed.0;
        let d = primary.core.log.get(SeqNum(n)).unwrap().pre_prepare.unwrap().1;
        primary.message(1, Message::Prepare(vote(n, d))).message(2, Message::Prepare(vote(n, d)));
    }
    primary.pass(Duration::from_millis(10)).took();
    primary.message(3, Message::Status(status(0, 0)));
    let sent = primary.took();
    let bodies = sent.iter().filter(|m| matches!(m, Message::PrePrepare(_))).count();
    assert!((1..=2).contains(&bodies), "256 KiB hold one or two of 150,000 bytes: {bodies}");
}

#[test]
fn p37_checkpoints_are_sent_to_who_lacks_them() {
    let mut backup = One::new(1);
    for n in 1..=K {
        backup.agree(n);
    }
    backup.checkpoint(1, K, 7).took();
    backup.message(3, idle(K));
    assert_eq!(backup.took(), [], "it may become stable without that");
    let own = Message::Checkpoint(signed_checkpoint(1, K, 7));
    backup.message(3, Message::Status(status(K, 0)));
    assert_eq!(backup.took(), [own, Message::Answered(77)]);
    assert_eq!(backup.core.counters().answered, 1);
    backup.checkpoint(0, K, 7).checkpoint(2, K, 7).pass(Duration::from_millis(5)).took();
    backup.message(3, idle(K));
    assert!(matches!(&backup.took()[..], [Message::Stable(proof)] if proof.len() == 3));
    backup.pass(Duration::from_millis(5)).message(3, Message::Status(status(K, K)));
    assert_eq!(backup.took(), [Message::Answered(77)]);
    assert_eq!(backup.core.counters().answered, 2);
}

#[test]
fn p37_p42_who_recovers_is_answered_once_it_has_what_it_waits_for() {
    let mut backup = One::new(1);
    let digest = backup.agree(1);
    backup.pass(SECOND).took();
    let recovering = |executed, until: u64| {
        Message::Status(Status { recovering: true, until: SeqNum(until), ..status(executed, 0) })
    };
    backup.message(3, recovering(0, 1));
    assert_eq!(backup.took(), []);
    backup.message(3, recovering(0, 0));
    let committed = Message::Committed(Committed { n: SeqNum(1), digest });
    let sent = backup.took();
    assert_eq!((sent.first(), sent.last()), (Some(&committed), Some(&Message::Answered(77))));
}

#[test]
fn p37_an_answer_begins_behind_what_the_sender_has_executed() {
    let mut backup = One::new(1);
    let digests = [1, 2, 3].map(|n| backup.agree(n));
    backup.pass(SECOND).took();
    let mut has_second = status(1, 0);
    (has_second.prepared, has_second.committed) = (vec![0b1], vec![0b1]);
    backup.message(3, Message::Status(has_second));
    let d = digests[2];
    let third = [
        Message::Committed(Committed { n: SeqNum(3), digest: d }),
        Message::Prepare(vote(3, d)),
        Message::Commit(vote(3, d)),
        Message::Answered(77),
    ];
    assert_eq!(backup.took(), third);
    // Again after exactly so long.
    backup.pass(Duration::from_millis(5) - Duration::from_nanos(1)).took();
    backup.message(3, Message::Status(status(2, 0)));
    assert_eq!(backup.took(), []);
    backup.pass(Duration::from_nanos(1)).message(3, Message::Status(status(2, 0)));
    assert_eq!(backup.took(), third);
}

#[test]
fn p37_votes_are_bounded_in_bytes_too() {
    // A COMMITTED, a PREPARE and a COMMIT are 192.
    for (bytes, answered) in [(1, 1), (192, 1), (193, 2), (384, 2)] {
        let mut backup = One::with(1, |c| {
            (c.batch_bytes_max, c.inline_max, c.answer_bytes_max) = (1, 1, bytes);
        });
        for n in 1..=4 {
            backup.agree(n);
        }
        backup.pass(SECOND).took();
        backup.message(3, Message::Status(status(0, 0)));
        assert_eq!(backup.took().len(), 3 * answered + 1, "{bytes}");
    }
}

#[test]
fn p37_a_vote_of_an_earlier_view_is_not_sent_again() {
    let mut backup = One::new(3);
    backup.pre_prepare(0, &pre_prepare(0, 1, 1, &[pack(1, 1, 8)]), true);
    backup.follow(1).pass(SECOND).took();
    backup.message(2, Message::Status(Status { view: View(1), ..status(0, 0) }));
    assert_eq!(backup.took(), [Message::Answered(77)]);
}

#[test]
fn p03_a_pack_is_handed_on_while_somebody_may_be_preparing_its_batch() {
    let mut primary = One::new(0);
    let packs: Vec<Pack> = (1..=10).map(|t| pack(1, t, 8)).collect();
    for (n, pack) in (1..).zip(&packs) {
        primary.request(pack.clone());
        let d = primary.core.log.get(SeqNum(n)).unwrap().pre_prepare.unwrap().1;
        for backup in [1, 2] {
            primary.message(backup, Message::Prepare(vote(n, d))).message(backup, Message::Commit(vote(n, d)));
        }
    }
    primary.took();
    // Its pipeline is of 8.
    primary.message(3, Message::FetchPack(packs[1].digest()));
    assert_eq!(primary.took(), []);
    primary.message(3, Message::FetchPack(packs[2].digest()));
    assert_eq!(primary.took(), [Message::Relay(packs[2].clone())]);
}

#[test]
fn p37_a_vote_sent_just_now_is_not_sent_again() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, true).pass(Duration::from_millis(5) - Duration::from_nanos(1)).took();
    backup.message(2, Message::Status(status(0, 0)));
    assert_eq!(backup.took(), [Message::Answered(77)]);
    backup.pass(Duration::from_nanos(1)).message(3, Message::Status(status(0, 0)));
    assert_eq!(backup.took(), [Message::Prepare(vote(1, p.digest())), Message::Answered(77)]);
}

#[test]
fn p37_bits_are_counted_from_the_lowest_of_the_first_word() {
    let words = [0b100, 0b1000];
    let set: Vec<usize> = (0..200).filter(|bit| super::super::status::has(&words, *bit)).collect();
    assert_eq!(set, [2, 67]);
}

#[test]
fn p21_packs_are_handed_on_to_a_peer_no_faster_than_it_can_take_them() {
    let large = pack(1, 1, 1 << 20);
    let mut primary = One::new(0);
    primary.request(large.clone()).took();
    let mut asks = |peer: u8, ms: u64| {
        primary.pass(Duration::from_millis(ms)).message(peer, Message::FetchPack(large.digest()));
        primary.took().len()
    };
    // A MiB takes 16 ms; another 20 ms may be on the way.
    assert_eq!([0; 10].map(|ms| asks(3, ms)).iter().sum::<usize>(), 2);
    assert_eq!(asks(2, 0), 1, "each peer has its own pace");
    assert_eq!([0, 8, 8, 8, 8].map(|ms| asks(3, ms)), [0, 0, 1, 0, 1]);
    assert_eq!((0..1_000).map(|_| asks(3, 1)).sum::<usize>(), 63, "64 MB a second");
}

#[test]
fn p33_a_batch_is_sent_now_and_then_and_of_a_dropped_one_the_proof_that_nobody_needs_it() {
    let mut backup = One::new(1);
    let fetch = |n: u64, digest| Message::FetchBatch(Committed { n: SeqNum(n), digest });
    for n in 1..=K {
        backup.agree(n);
    }
    let digest = backup.agree(K + 1);
    for from in [0, 1, 2] {
        backup.checkpoint(from, K, 7);
    }
    backup.took();
    let batches = |one: &mut One| one.took().iter().filter(|m| matches!(m, Message::Batch(..))).count();
    for (wait, sent) in [(0, 1), (4, 0), (1, 1), (0, 0)] {
        backup.pass(Duration::from_millis(wait)).took();
        backup.message(3, fetch(K + 1, digest));
        assert_eq!(batches(&mut backup), sent);
    }
    backup.message(3, fetch(K + 1, Digest([1; 32])));
    assert_eq!(backup.took(), [], "nobody has said that it is dropped");
    backup.message(3, fetch(K, Digest([1; 32])));
    assert!(matches!(&backup.took()[..], [Message::Stable(proof)] if proof.len() == 3));
}

#[test]
fn p37_p41_a_status_draws_nothing_that_is_not_durable_yet() {
    let mut primary = One::new(0);
    primary.slow_disk = true;
    primary.request(pack(1, 1, 8)).pass(SECOND).took();
    primary.message(3, Message::Status(status(0, 0)));
    assert_eq!(primary.took(), [Message::Answered(77)]);
    let token = primary.tokens.remove(0);
    primary.event(Event::Persisted(token)).took();
    primary.pass(SECOND).took();
    primary.message(3, Message::Status(status(0, 0)));
    assert!(matches!(&primary.took()[..], [Message::PrePrepare(_), Message::Answered(_)]));
}
