//! Read-only requests (P6, P18, P48).

use std::time::Duration;

use super::*;

#[test]
fn p18_a_query_sees_the_committed_state() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    bench.committed(&[ordered(ALICE, s, 0, b"+")]);
    let answer = bench.query(query(BOB, 41, b"="), 2);
    assert_eq!((&answer[0].outcome, answer[0].kind, answer[0].t), (&count(1), ReplyKind::ReadOnly, 41));
    assert_eq!((answer[0].position, answer[0].client), (Position::new(SeqNum(2), 0), BOB));
}

#[test]
fn p18_a_query_waits_for_what_was_prepared_before_it() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    assert!(bench.query(query(BOB, 1, b"="), 3).is_empty());
    bench.committed(&[ordered(ALICE, s, 0, b"+")]);
    assert_eq!(bench.executor.held_queries(), 1);
    let tentative = bench.tentative(&[ordered(ALICE, s, 1, b"+")]);
    assert_eq!((tentative.len(), tentative[0].kind), (1, ReplyKind::Tentative), "a tentative state answers nothing");
    let answers = replies(bench.commit());
    assert_eq!((answers.len(), &answers[0].outcome), (1, &count(2)));
}

#[test]
fn p18_no_answer_comes_from_a_state_with_a_tentative_batch() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    bench.tentative(&[ordered(ALICE, s, 0, b"+")]);
    assert!(bench.query(query(BOB, 1, b"="), 0).is_empty());
    // Rolled back: what is left is committed, but the query arrived when n = 2 was prepared.
    let other = bench.query(query(BOB, 2, b"="), 2);
    assert!(other.is_empty());
    let answers = replies(bench.rollback());
    assert_eq!(answers.iter().map(|r| (r.t, r.outcome.clone())).collect::<Vec<_>>(), [(1, count(0))]);
    let answers = bench.committed(&[ordered(ALICE, s, 1, b"+")]);
    assert_eq!(answers.iter().map(|r| r.kind).collect::<Vec<_>>(), [ReplyKind::Committed, ReplyKind::ReadOnly]);
}

#[test]
fn p18_a_tentative_state_answers_who_must_see_just_that_and_says_so() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    bench.tentative(&[ordered(ALICE, s, 0, b"+")]);
    let answer = bench.query_at(query(BOB, 1, b"="), 2, true);
    assert_eq!((&answer[0].outcome, answer[0].kind), (&count(1), ReplyKind::TentativeRead));
    assert_eq!((answer[0].position, answer[0].view), (Position::new(SeqNum(2), 0), bench.view));
    assert!(bench.query_at(query(BOB, 2, b"="), 1, true).is_empty(), "less than that is not there to be seen");
    assert!(bench.query_at(query(BOB, 3, b"="), 3, true).is_empty(), "nor more");
    let answers = replies(bench.commit());
    assert_eq!(answers.iter().map(|r| (r.t, r.kind)).collect::<Vec<_>>(), [(2, ReplyKind::ReadOnly)]);
    let answer = bench.query_at(query(BOB, 4, b"="), 2, true);
    assert_eq!((answer[0].t, answer[0].kind), (4, ReplyKind::ReadOnly), "it has committed meanwhile");
    let answers = bench.committed(&[ordered(ALICE, s, 1, b"+")]);
    assert_eq!(answers.iter().skip(1).map(|r| (r.t, r.kind)).collect::<Vec<_>>(), [(3, ReplyKind::ReadOnly)]);
}

#[test]
fn p06_what_is_not_read_only_or_panics_gets_no_reply() {
    let mut bench = Bench::new();
    let root = bench.root();
    assert!(bench.query(query(ALICE, 1, b"+"), 0).is_empty());
    assert!(bench.query(query(ALICE, 2, b"!"), 0).is_empty());
    assert_eq!(bench.query(query(ALICE, 3, b"="), 0).len(), 1);
    let counters = bench.executor.counters();
    assert_eq!((counters.queries_not_read_only, counters.queries_panicked, counters.queries), (1, 1, 1));
    assert_eq!(bench.root(), root);
    assert_eq!(bench.executor.stopped(), None);
}

#[test]
fn p06_kinds_do_not_mix() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    assert!(bench.committed(&[query(ALICE, 0, b"=")]).is_empty(), "a faulty primary ordered a query");
    assert!(bench.query(ordered(ALICE, s, 0, b"="), 0).is_empty());
    assert_eq!(bench.executor.counters().queries, 0);
}

#[test]
fn p48_a_held_query_is_dropped_when_its_time_is_over() {
    let mut bench = Bench::with(ExecutorConfig { hold: Duration::from_nanos(100), ..config() });
    bench.now = Time(1_000);
    bench.query(query(BOB, 1, b"="), 1);
    bench.now = Time(1_050);
    bench.query(query(BOB, 2, b"="), 1);
    assert_eq!(bench.executor.deadline(), Time(1_100));
    bench.now = Time(1_100);
    let answers = bench.committed(&[open(ALICE, 1, 1)]);
    assert_eq!(answers.iter().filter(|r| r.kind == ReplyKind::ReadOnly).map(|r| r.t).collect::<Vec<_>>(), [2]);
    assert_eq!((bench.executor.counters().queries_expired, bench.executor.deadline()), (1, Time::NEVER));
    bench.query(query(BOB, 3, b"="), 9);
    bench.executor.expire(Time(1_200));
    assert_eq!((bench.executor.counters().queries_expired, bench.executor.held_queries()), (2, 0));
}

#[test]
fn p48_held_queries_are_bounded_for_each_client() {
    let size = query(ALICE, 0, b"=").encoded().len();
    let limits =
        ExecutorConfig { held_packs_per_client: 3, held_bytes_per_client: 4 * size, held_bytes: 5 * size, ..config() };
    let mut bench = Bench::with(limits);
    for t in 0..9 {
        bench.query(query(ALICE, t, b"="), 1);
    }
    assert_eq!((bench.executor.held_queries(), bench.executor.counters().queries_refused), (3, 6));
    for t in 0..9 {
        bench.query(query(BOB, t, b"="), 1);
    }
    assert_eq!(bench.executor.held_queries(), 5, "Alice's flood leaves room for Bob");
    let answers = bench.committed(&[]);
    assert_eq!(answers.len(), 5);
    bench.query(query(ALICE, 9, &[b'='; 1_000]), 9);
    assert_eq!(bench.executor.held_queries(), 0, "too many bytes");
    bench.query(query(ALICE, 9, b"="), 9);
    assert_eq!(bench.executor.held_queries(), 1, "there is room again");
}

#[test]
fn p48_bytes_that_a_client_has_waiting_are_counted_and_given_back() {
    let size = query(ALICE, 0, b"=").encoded().len();
    let mut bench =
        Bench::with(ExecutorConfig { held_bytes_per_client: 2 * size + 5, held_bytes: 3 * size + 5, ..config() });
    let hold = |bench: &mut Bench<Tally>, client, after| {
        bench.query(query(client, 1, b"="), after);
        bench.executor.held_queries()
    };
    assert_eq!([1, 2, 2].map(|after| hold(&mut bench, ALICE, after)), [1, 2, 2]);
    assert_eq!([2, 2].map(|after| hold(&mut bench, BOB, after)), [3, 3]);
    bench.committed(&[]);
    assert_eq!(bench.executor.held_queries(), 2, "one is answered");
    assert_eq!([2, 2].map(|after| hold(&mut bench, ALICE, after)), [3, 3], "there is room for one");
    assert_eq!(hold(&mut bench, BOB, 2), 3, "and for no other's");
    bench.committed(&[]);
    assert_eq!([9, 9, 9].map(|after| hold(&mut bench, ALICE, after)), [1, 2, 2]);
    assert_eq!(hold(&mut bench, BOB, 9), 3);
}
