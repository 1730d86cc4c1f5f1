//! When the state is fetched, and what follows (P24, P25, P38, P39).

use super::*;

impl One {
    /// q others sign `root` at `n`.
    fn certified(&mut self, n: u64, root: u8) -> &mut One {
        self.checkpoint(0, n, root).checkpoint(2, n, root).checkpoint(3, n, root)
    }

    fn transferred(&mut self, n: u64) -> &mut One {
        self.event(Event::Transferred(SeqNum(n)))
    }
}

#[test]
fn p24_no_laggard_stops_the_primary() {
    let mut primary = One::with(0, |c| c.log_window = 3 * K);
    for t in 1..=3 * K {
        primary.message(3, Message::Status(Status { wants: false, ..status(0, 0) }));
        primary.request(pack(1, t, 8));
        let n = primary.core.last_proposed.0;
        let d = primary.core.log.get(SeqNum(n)).unwrap().pre_prepare.unwrap().1;
        for backup in [1, 2] {
            primary.message(backup, Message::Prepare(vote(n, d))).message(backup, Message::Commit(vote(n, d)));
        }
    }
    assert_eq!(primary.core.last_proposed, SeqNum(3 * K), "replica 3 is at 0, and fetches what it lacks");
}

#[test]
fn p24_what_others_certified_is_executed_if_the_log_still_has_it() {
    let mut backup = One::new(1);
    backup.certified(K, 7);
    for n in 1..=K {
        backup.pass(Duration::from_millis(60));
        backup.agree(n);
    }
    assert!(backup.transfers.is_empty(), "it moved all the time");
    backup.checkpoint(1, K, 7);
    assert_eq!(backup.core.last_stable(), SeqNum(K));
}

#[test]
fn p24_p38_a_replica_that_stands_still_below_a_certified_state_fetches_it() {
    let mut backup = One::new(1);
    backup.agree(1);
    backup.certified(2 * K, 7);
    backup.pass(Duration::from_millis(90));
    assert!(backup.transfers.is_empty(), "first it asks for what it lacks");
    assert!(backup.sent.iter().any(|(_, m)| matches!(m, Message::Status(s) if s.wants)));
    backup.pass(Duration::from_millis(20));
    assert_eq!(backup.transfers, [(2 * K, false)]);
    backup.took();

    backup.event(Event::Query(from_client(pack(5, 1, 4))));
    assert!(backup.queries.is_empty(), "a transferring replica answers no query (P18)");
    let d = backup.agree(2 * K + 1);
    assert!(backup.took().contains(&Message::Prepare(vote(2 * K + 1, d))), "it still votes");
    assert_eq!(backup.did.last(), Some(&Did::Committed(1)), "and executes nothing");

    backup.transferred(2 * K);
    assert_eq!((backup.core.last_stable(), backup.core.counters().transfers), (SeqNum(2 * K), 1));
    assert_eq!(backup.did.last(), Some(&Did::Committed(2 * K + 1)), "what was committed above goes on top");
    assert_eq!(backup.core.stable_proof().len(), 3);
    assert_eq!(backup.core.log.retained(), SeqNum(2 * K), "what was skipped is not held for others");
    assert!(!backup.did.iter().any(|did| matches!(did, Did::Committed(n) if (2..=2 * K).contains(n))), "P39");
}

#[test]
fn p38_beyond_the_window_it_hardly_waits_and_what_is_tentative_is_rolled_back() {
    let mut backup = One::new(1);
    let p = pre_prepare(0, 1, 1, &[pack(9, 1, 8)]);
    backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(1, p.digest())));
    assert_eq!(backup.did, [Did::Tentative(1)]);
    // Far above: the votes of each replica for its latest few are kept.
    for n in (4..40).map(|i| i * K) {
        backup.certified(n, 7);
    }
    backup.pass(Duration::from_millis(21));
    assert_eq!(backup.did, [Did::Tentative(1), Did::Rollback(1)]);
    assert_eq!(backup.transfers, [(39 * K, false)], "the newest");
    assert!(backup.core.checkpoints.len() <= 3 + 4);
    backup.transferred(39 * K);
    assert_eq!((backup.core.last_executed(), backup.core.last_stable()), (SeqNum(39 * K), SeqNum(39 * K)));
    backup.agree(39 * K + 1);
    assert_eq!(backup.did.last(), Some(&Did::Committed(39 * K + 1)));
}

#[test]
fn p38_votes_for_checkpoints_far_above_are_bounded_for_each_replica() {
    let mut backup = One::new(1);
    for n in 1..10_000 {
        backup.checkpoint(3, n * K, 7);
    }
    let near = (2 * L / K) as usize;
    assert_eq!(backup.core.checkpoints.len(), near + 4, "all within two windows, and the last four");
    assert_eq!(backup.core.counters().outside_window, 0);
    backup.checkpoint(3, 20 * K, 7);
    assert_eq!(backup.core.counters().outside_window, 1, "an old one finds no room");
    assert_eq!(backup.core.checkpoints.len(), near + 4);
    assert!(backup.transfers.is_empty());
}

#[test]
fn p38_the_target_moves_when_nobody_has_it_any_more() {
    let mut backup = One::new(1);
    backup.certified(2 * K, 7).pass(Duration::from_millis(101));
    assert_eq!(backup.transfers, [(2 * K, false)]);
    backup.event(Event::Absent(SeqNum(2 * K)));
    assert_eq!(backup.transfers.len(), 1, "there is no other yet");
    backup.certified(5 * K, 8);
    assert_eq!(backup.transfers.len(), 1, "it is still served, as far as we know");
    backup.event(Event::Absent(SeqNum(2 * K)));
    assert_eq!(backup.transfers.last(), Some(&(5 * K, false)));
    backup.event(Event::Absent(SeqNum(2 * K)));
    assert_eq!(backup.transfers.len(), 2, "said twice");
    backup.transferred(2 * K);
    assert!(backup.core.is_transferring(), "what is not asked for any more does not count");
    backup.transferred(5 * K);
    assert_eq!((backup.core.is_transferring(), backup.core.last_stable()), (false, SeqNum(5 * K)));
}

#[test]
fn p25_a_diverged_replica_fetches_the_certified_state_and_executes_again_from_there() {
    let mut backup = One::new(1);
    for n in 1..=2 * K {
        backup.agree(n);
    }
    backup.checkpoint(1, K, 1).checkpoint(1, 2 * K, 1).checkpoint(0, 2 * K, 9).certified(K, 7);
    assert_eq!((backup.core.mode(), backup.transfers.as_slice()), (Mode::Diverged, &[(K, true)][..]));
    backup.did.clear();
    backup.transferred(K);
    assert_eq!(backup.core.mode(), Mode::Normal);
    assert_eq!((backup.core.counters().healed, backup.core.last_stable()), (1, SeqNum(K)));
    assert_eq!(backup.core.log.retained(), SeqNum(0), "what it has executed is");
    assert_eq!(backup.did, (K + 1..=2 * K).map(Did::Committed).collect::<Vec<_>>());
    backup.checkpoint(1, 2 * K, 9).checkpoint(3, 2 * K, 9);
    assert_eq!(backup.core.last_stable(), SeqNum(2 * K), "it takes back its word, and agrees with the others again");
}

#[test]
fn p38_votes_for_later_checkpoints_outlive_a_transfer() {
    let mut backup = One::new(1);
    backup.certified(K, 7).checkpoint(0, 2 * K, 8).checkpoint(2, 2 * K, 8).pass(Duration::from_millis(101));
    assert_eq!(backup.transfers, [(K, false)]);
    backup.transferred(K);
    for n in K + 1..=2 * K {
        backup.agree(n);
    }
    backup.checkpoint(1, 2 * K, 8);
    assert_eq!(backup.core.last_stable(), SeqNum(2 * K));
}

#[test]
fn p21_p39_what_a_transfer_covers_is_under_way_no_more() {
    let mut primary = One::new(0);
    for t in 1..=K + 1 {
        primary.request(pack(1, t, 8));
        let d = primary.core.log.get(SeqNum(t)).unwrap().pre_prepare.unwrap().1;
        primary.message(1, Message::Prepare(vote(t, d))).message(2, Message::Prepare(vote(t, d)));
    }
    assert_eq!(primary.core.last_proposed, SeqNum(K + 1));
    primary.checkpoint(1, K, 7).checkpoint(2, K, 7).checkpoint(3, K, 7).pass(Duration::from_millis(101));
    primary.request(pack(2, 1, 8));
    assert_eq!(primary.core.last_proposed, SeqNum(K + 1), "nothing is proposed meanwhile");
    primary.transferred(K);
    assert_eq!((primary.core.last_proposed, primary.core.waiting()), (SeqNum(K + 2), 0));
    primary.signed_request(pack(1, K + 1, 8));
    assert_eq!(primary.core.waiting(), 0, "that one still is");
    primary.signed_request(pack(1, K, 8));
    assert_eq!(primary.core.waiting(), 1, "the execution role says that it would still execute");
}

#[test]
fn p24_the_time_to_catch_up_begins_with_what_is_certified_first_and_ends() {
    let ms = Duration::from_millis;
    let mut backup = One::new(1);
    backup.certified(2 * K, 7).pass(ms(60)).certified(3 * K, 7).pass(ms(39));
    assert!(backup.transfers.is_empty());
    backup.pass(ms(2));
    assert_eq!(backup.transfers, [(3 * K, false)]);
    // What it has executed itself was nothing to catch up with.
    let mut backup = One::new(1);
    backup.certified(K, 7);
    for n in 1..=K {
        backup.agree(n);
    }
    backup.pass(ms(500)).certified(2 * K, 7).pass(ms(99));
    assert!(backup.transfers.is_empty());
    backup.pass(ms(2));
    assert_eq!(backup.transfers, [(2 * K, false)]);
}

#[test]
fn p38_of_certified_states_the_newest_counts_whichever_came_first() {
    let ms = Duration::from_millis;
    let mut backup = One::new(1);
    backup.certified(3 * K, 7).certified(2 * K, 7).pass(ms(101));
    assert_eq!(backup.transfers, [(3 * K, false)]);
    // One below it that becomes stable here takes nothing from it.
    let mut backup = One::new(1);
    backup.certified(3 * K, 7);
    for n in 1..=K {
        backup.agree(n);
    }
    backup.certified(K, 7).checkpoint(1, K, 7);
    assert_eq!(backup.core.last_stable(), SeqNum(K));
    backup.pass(ms(101));
    assert_eq!(backup.transfers, [(3 * K, false)]);
}

#[test]
fn p38_p42_who_recovers_fetches_at_once_only_what_ends_its_recovery() {
    let ms = Duration::from_millis;
    let mut reborn = One::reborn(3);
    for from in [0, 1, 2] {
        reborn.checkpoint(from, L, 7);
    }
    reborn.pass(ms(99));
    assert!(reborn.transfers.is_empty(), "nobody has said yet how far it must come");
    reborn.pass(ms(2));
    assert_eq!(reborn.transfers, [(L, false)], "most of it will be needed");
    reborn.transferred(L).pass(Duration::from_secs(1));
    assert_eq!(reborn.transfers, [(L, false)], "what it has is not fetched again");

    let mut reborn = One::reborn(3);
    for peer in [0, 1, 2] {
        reborn.answer(peer, 0, 0, None);
    }
    for from in [0, 1, 2] {
        reborn.checkpoint(from, L, 7);
    }
    assert_eq!(reborn.transfers, [(L, false)]);
}

#[test]
fn p25_a_split_replica_keeps_its_state() {
    let mut backup = One::new(1);
    for n in 1..=K {
        backup.agree(n);
    }
    backup.checkpoint(1, K, 1).checkpoint(3, K, 1).checkpoint(0, K, 2).checkpoint(2, K, 3);
    assert_eq!(backup.core.mode(), Mode::Split);
    assert_eq!(backup.compared, [(K, 2)], "with those that have another root");
    backup.certified(2 * K, 7).pass(Duration::from_secs(1));
    assert!(backup.transfers.is_empty());
}

#[test]
fn p26_the_view_timer_stands_still_while_a_transfer_moves_on() {
    let mut backup = One::with(1, |c| c.view_timeout = Duration::from_millis(100));
    backup.signed_request(pack(1, 1, 8)).certified(5 * K, 7).pass(Duration::from_millis(21));
    assert_eq!(backup.transfers, [(5 * K, false)]);
    for _ in 0..20 {
        backup.pass(Duration::from_millis(90)).event(Event::Fetched);
    }
    assert_eq!(backup.core.view(), View(0), "what it waits for is on its way");
    // It stands still for 100 ms: then the request has its time, and it was in vain.
    backup.pass(Duration::from_millis(199));
    assert_eq!(backup.core.view(), View(0));
    backup.pass(Duration::from_millis(2));
    assert_eq!(backup.core.view(), View(1));

    // Moving on once more begins anew, and so does the end.
    let mut backup = One::with(1, |c| c.view_timeout = Duration::from_millis(100));
    backup.signed_request(pack(1, 1, 8)).certified(5 * K, 7).pass(Duration::from_millis(21 + 190));
    backup.event(Event::Fetched).pass(Duration::from_millis(190)).transferred(5 * K);
    backup.pass(Duration::from_millis(99));
    assert_eq!(backup.core.view(), View(0));
    backup.pass(Duration::from_millis(2));
    assert_eq!(backup.core.view(), View(1));
}
