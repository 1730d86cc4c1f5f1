//! How a view ends (P17, P18, P27-P30), and what is said of it (P37).

use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Backup 3, which accepted a batch at 1 in view 0, another that view 1 chose, and null from view 2.
fn thrice() -> (One, [Digest; 3]) {
    let a = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let b = Batch::new(Choice { time: 1, seed: 0 }, vec![pack(2, 1, 8)]);
    let digests = [a.digest(), b.digest(), Batch::null().digest()];
    let mut backup = One::new(3);
    backup.pre_prepare(0, &a, true);
    for (view, prepared) in [(1, vec![entry(1, b.digest(), 0)]), (2, vec![])] {
        let says = |from| {
            let (prepared, pre_prepared) = (prepared.clone(), vec![entry(1, b.digest(), 0)]);
            signed(ViewChange { prepared, pre_prepared, ..view_change(from, view) })
        };
        let s = [0, 1, 2].map(says);
        backup.hears_all(&s);
        let chosen = digests[view as usize];
        backup.begins(&new_view(view, &s.each_ref(), 0, &[chosen]));
        assert!(!backup.core.is_pending() && backup.core.view() == View(view));
        if view == 1 {
            backup.message(0, Message::Batch(SeqNum(1), b.clone().into()));
            backup.message(2, Message::Prepare(vote_in(1, 1, chosen)));
        }
    }
    (backup, digests)
}

#[test]
fn p27_q_holds_every_digest_with_its_latest_view_and_p_the_last_prepared() {
    let (mut backup, [a, b, null]) = thrice();
    backup.leave(&[0, 1], 4);
    let left = backup.left();
    let says = left.statement();
    assert_eq!((says.view, says.stable, says.proof.len()), (View(4), SeqNum(0), 0));
    assert_eq!(says.prepared, [entry(1, b, 1)]);
    let mut all = [entry(1, a, 0), entry(1, b, 1), entry(1, null, 2)];
    all.sort_by_key(|entry| entry.digest);
    assert_eq!(says.pre_prepared, all, "nothing is pruned");
}

#[test]
fn p27_a_digest_that_is_chosen_again_takes_its_latest_view() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let d = p.digest();
    let mut backup = One::new(3);
    backup.pre_prepare(0, &p, true);
    let says = |from| signed(ViewChange { pre_prepared: vec![entry(1, d, 0)], ..view_change(from, 1) });
    let p_entry =
        signed(ViewChange { prepared: vec![entry(1, d, 0)], pre_prepared: vec![entry(1, d, 0)], ..view_change(2, 1) });
    let s = [says(0), says(1), p_entry];
    backup.hears_all(&s);
    backup.begins(&new_view(1, &s.each_ref(), 0, &[d])).leave(&[0, 1], 2);
    assert_eq!(backup.left().statement().pre_prepared, [entry(1, d, 1)]);
    assert_eq!(backup.left().statement().prepared, [], "pre-prepared twice, prepared never");
}

#[test]
fn p27_bodies_of_p_and_q_are_held_until_they_are_stable() {
    let (mut backup, digests) = thrice();
    backup.leave(&[0, 1], 4).took();
    for digest in digests {
        backup.pass(ms(10)).took();
        let wanted = Committed { n: SeqNum(1), digest };
        backup.message(1, Message::FetchBatch(wanted));
        let sent = backup.took();
        assert!(matches!(&sent[..], [Message::Batch(_, batch)] if batch.digest() == digest), "{sent:?}");
    }
}

#[test]
fn p27_h_comes_with_its_proof_and_nothing_below_it_is_named() {
    let mut backup = One::new(3);
    for n in 1..=K + 1 {
        backup.agree(n);
    }
    for from in [0, 2, 3] {
        backup.checkpoint(from, K, 7);
    }
    backup.leave(&[0, 1], 1);
    let left = backup.left();
    let says = left.statement();
    assert_eq!((says.stable, says.proof.len()), (SeqNum(K), 3));
    assert!(says.proof.iter().all(|c| (c.n, c.root) == (SeqNum(K), Digest([7; 32]))));
    let of = |entries: &[Entry]| entries.iter().map(|entry| entry.n.0).collect::<Vec<_>>();
    assert_eq!((of(&says.prepared), of(&says.pre_prepared)), (vec![K + 1], vec![K + 1]));
}

#[test]
fn p28_no_part_in_older_views_and_the_rest_goes_on() {
    let (p, q) = (pre_prepare(0, 1, 1, &[pack(9, 1, 8)]), pre_prepare(0, 2, 2, &[pack(9, 2, 8)]));
    let d = p.digest();
    let mut backup = One::new(3);
    backup.pre_prepare(0, &p, true).leave(&[0, 1], 1);
    assert!(backup.core.is_pending());
    backup.took();
    // Of view 0 it hears no more, though these would prepare and commit it.
    backup.pre_prepare(0, &q, true);
    for from in [1, 2] {
        backup.message(from, Message::Prepare(vote(1, d))).message(from, Message::Commit(vote(1, d)));
    }
    assert_eq!((backup.took(), backup.core.counters().other_view), (vec![], 5));
    assert!(backup.did.is_empty() && backup.core.last_prepared() == SeqNum(0));
    // P51 goes on: executed, and answered as committed.
    for n in 1..=K {
        let p = pre_prepare(0, n, n, &[pack(9, n, 8)]);
        let batch = Batch::new(p.choice, vec![pack(9, n, 8)]);
        for from in [1, 2] {
            backup.message(from, Message::Committed(Committed { n: SeqNum(n), digest: p.digest() }));
        }
        backup.pass(ms(25)).message(1, Message::Batch(SeqNum(n), batch.into()));
    }
    assert_eq!(backup.did, (1..=K).map(Did::Committed).collect::<Vec<_>>());
    // Checkpoints go on.
    for from in [0, 2, 3] {
        backup.checkpoint(from, K, 7);
    }
    assert_eq!(backup.core.last_stable(), SeqNum(K));
    // Status goes on, both ways.
    backup.took();
    backup.pass(ms(50));
    assert!(backup.sent.iter().any(|(_, m)| matches!(m, Message::Status(s) if s.pending && s.wants)));
    backup.took();
    backup.message(2, Message::Status(status(0, 0)));
    let sent = backup.took();
    assert!(sent.contains(&Message::Committed(Committed { n: SeqNum(1), digest: d })), "{sent:?}");
    assert_eq!(sent.last(), Some(&Message::Answered(77)));
}

#[test]
fn p28_a_view_change_is_sent_again_as_the_same_bytes_until_the_view_begins() {
    let waits = |held| Status { view: View(1), pending: true, view_changes: held, ..status(0, 0) };
    let has = |who: &[u8]| who.iter().map(|r| ReplicaId(*r)).collect::<crate::types::ReplicaSet>();
    let mut backup = One::new(3);
    backup.leave(&[0, 1], 1);
    let left = backup.left();
    backup.took();
    for _ in 0..3 {
        // What it says changes meanwhile, what it said does not.
        backup.pass(ms(50)).message(1, Message::Committed(Committed { n: SeqNum(1), digest: Digest([1; 32]) }));
        backup.took();
        backup.message(2, Message::Status(waits(has(&[1, 2]))));
        let sent = backup.took();
        assert!(matches!(&sent[..], [Message::ViewChange(v), Message::Answered(_)] if v.encoded() == left.encoded()));
        backup.message(2, Message::Status(waits(has(&[1, 2]))));
        assert!(!backup.took().iter().any(|m| matches!(m, Message::ViewChange(_))), "not again at once");
        backup.message(1, Message::Status(waits(has(&[1, 3]))));
        assert!(!backup.took().iter().any(|m| matches!(m, Message::ViewChange(_))), "1 has it");
    }
    let s = [0, 1, 2].map(|from| signed(view_change(from, 1)));
    backup.hears_all(&s);
    let begun = new_view(1, &s.each_ref(), 0, &[]);
    backup.begins(&begun).pass(ms(50)).took();
    backup.message(2, Message::Status(waits(has(&[1, 2]))));
    let sent = backup.took();
    assert!(matches!(&sent[..], [Message::NewView(v), ..] if v.encoded() == begun.encoded()), "P37: {sent:?}");
}

#[test]
fn p28_p37_who_is_behind_is_told_and_who_is_ahead_is_not() {
    let mut backup = One::new(3);
    backup.leave(&[0, 1], 1).pass(ms(50)).took();
    let said = |one: &mut One, of: Status| -> usize {
        one.message(2, Message::Status(Status { wants: false, ..of }));
        one.took().iter().filter(|m| matches!(m, Message::ViewChange(_) | Message::NewView(_))).count()
    };
    let pending = |view| Status { view: View(view), pending: true, ..status(0, 0) };
    assert_eq!(said(&mut backup, status(0, 0)), 1, "it has not left");
    // Not again for two intervals.
    backup.pass(ms(40) - Duration::from_nanos(1)).took();
    assert_eq!(said(&mut backup, status(0, 0)), 0);
    backup.pass(Duration::from_nanos(1)).took();
    assert_eq!(said(&mut backup, status(0, 0)), 1);
    backup.pass(ms(50)).took();
    assert_eq!(said(&mut backup, Status { view: View(1), ..status(0, 0) }), 0, "there it began");
    let s = [0, 1, 2].map(|from| signed(view_change(from, 1)));
    backup.hears_all(&s).begins(&new_view(1, &s.each_ref(), 0, &[])).pass(ms(50)).took();
    assert_eq!(said(&mut backup, pending(2)), 0);
    assert_eq!(said(&mut backup, pending(1)), 1);
    backup.pass(ms(50)).took();
    assert_eq!(said(&mut backup, status(0, 0)), 1, "it knows of no later view");
}

#[test]
fn p37_a_status_names_the_view_changes_that_are_held() {
    let mut backup = One::new(3);
    backup.leave(&[0, 2], 1).pass(ms(50));
    let of = |m: &Message| if let Message::Status(s) = m { Some(s.clone()) } else { None };
    let last = backup.sent.iter().rev().find_map(|(_, m)| of(m)).expect("it waits, so it asks");
    let held: Vec<u8> = last.view_changes.iter().map(|r| r.0).collect();
    assert_eq!((last.view, last.pending, held), (View(1), true, vec![0, 2, 3]));
    // A peer that is still in the view before needs all that others have to say, ours first.
    backup.took();
    backup.message(1, Message::Status(status(0, 0)));
    assert!(matches!(&backup.took()[..], [Message::ViewChange(v), ..] if v.statement().replica == ReplicaId(3)));
}

#[test]
fn p29_nobody_moves_on_alone_and_the_timer_doubles_with_each_failed_view() {
    let mut backup = One::with(6, |c| (c.size, c.view_timeout) = (ClusterSize::of(7).unwrap(), ms(100)));
    backup.signed_request(pack(1, 1, 8)).pass(ms(101));
    assert_eq!((backup.core.view(), backup.core.is_pending()), (View(1), true));
    backup.pass(Duration::from_secs(10)).leave(&[0, 1, 2], 1).pass(Duration::from_secs(10));
    assert_eq!(backup.core.view(), View(1), "four of seven: the others may be content with view 0");
    for (view, timer) in [(1, 100), (2, 200), (3, 400), (4, 800)] {
        backup.leave(&[0, 1, 2, 3], view).pass(ms(timer - 1));
        assert_eq!(backup.core.view(), View(view), "its timer runs since q were held");
        backup.pass(ms(2));
        assert_eq!(backup.core.view(), View(view + 1));
    }
}

/// How long the new-view timer of view 3 is, for backup 0, after views 1 and 2 failed, and then, in view 2, `batches`
/// were executed.
fn third_timer(batches: u64) -> Duration {
    let mut backup = One::with(0, |c| c.view_timeout = ms(100));
    backup.leave(&[1, 2], 1).pass(ms(101));
    assert_eq!(backup.core.view(), View(2));
    backup.follow(2);
    for n in 1..=batches {
        let p = pre_prepare(2, n, n, &[pack(9, n, 8)]);
        let v = vote_in(2, n, p.digest());
        backup.pre_prepare(2, &p, true).message(1, Message::Prepare(v));
        backup.message(1, Message::Commit(v)).message(2, Message::Commit(v));
    }
    assert_eq!(backup.core.last_executed(), SeqNum(batches));
    backup.leave(&[1, 2], 3);
    let start = backup.now;
    while backup.core.view() == View(3) {
        backup.pass(ms(10));
    }
    backup.now.since(start)
}

#[test]
fn p29_progress_halves_the_timer_back() {
    assert_eq!([0, 1, 2, 5].map(third_timer), [400, 200, 100, 100].map(ms));
}

#[test]
fn p30_joins_at_the_wth_largest_of_what_others_want() {
    let mut backup = One::new(3);
    backup.leave(&[1], 1_000);
    assert_eq!(backup.core.view(), View(0), "one replica moves nobody, however far it is");
    backup.leave(&[2], 3);
    assert_eq!((backup.core.view(), backup.core.is_pending()), (View(3), true), "at once, without a timer");
    assert_eq!(backup.left().statement().view, View(3));
    backup.leave(&[2], 2);
    assert_eq!(backup.core.view(), View(3), "never back");
    backup.leave(&[0], 5);
    assert_eq!(backup.core.view(), View(5), "1,000 and 5 and 3");

    let mut backup = One::with(6, |c| c.size = ClusterSize::of(7).unwrap());
    backup.leave(&[1], 9).leave(&[2], 7);
    assert_eq!(backup.core.view(), View(0), "two of seven may both lie");
    backup.leave(&[3], 4);
    assert_eq!(backup.core.view(), View(4));
}

#[test]
fn p17_p18_leaving_undoes_what_is_tentative_and_queries_wait_for_it_all_the_same() {
    let mut backup = One::new(3);
    backup.agree(1);
    let p = pre_prepare(0, 2, 2, &[pack(9, 2, 8)]);
    backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(2, p.digest())));
    assert_eq!(backup.did.last(), Some(&Did::Tentative(2)));
    backup.did.clear();
    backup.leave(&[0, 1], 1);
    assert_eq!(backup.did, [Did::Rollback(2)]);
    backup.event(Event::Query(from_client(pack(5, 1, 4))));
    assert_eq!(backup.queries, [(SeqNum(2), false)], "prepared once, rolled back or not");
    // Committed elsewhere, it is executed again, and once.
    for from in [0, 1] {
        backup.message(from, Message::Committed(Committed { n: SeqNum(2), digest: p.digest() }));
    }
    assert_eq!(backup.did, [Did::Rollback(2), Did::Committed(2)]);
}

#[test]
fn p35_a_primary_that_has_asked_for_a_later_view_is_followed_at_once() {
    let mut backup = One::new(3);
    backup.hears(&signed(view_change(1, 1)));
    assert_eq!(backup.core.view(), View(0), "one backup alone is not");
    let mut backup = One::new(3);
    backup.hears(&signed(view_change(0, 5)));
    assert_eq!(backup.core.view(), View(1), "to the next, whichever it asked for");
    assert_eq!(backup.core.counters().view_changes, 1);
    assert_eq!(backup.left().statement().view, View(1));

    // Nor is one that leads the next view, and leaves it before it began.
    let mut backup = One::new(3);
    backup.leave(&[0, 1], 1).hears(&signed(view_change(1, 2)));
    assert_eq!(backup.core.view(), View(1), "the new-view timer decides (P29)");
}
