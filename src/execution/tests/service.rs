//! What a service is told, and what the library does for one that says little.

use super::*;

/// Answers whom it was asked by, where and when, and whether its cache was there.
struct Told;

fn told(cx: &Context<'_>, reply: &mut ReplyBuffer) {
    for word in [cx.client().0, cx.session().0, cx.position().0, cx.time().0] {
        reply.push(&word.to_le_bytes());
    }
}

impl Service for Told {
    fn execute(&self, cx: &mut Context<'_>, _: &[u8], _: &mut Region, reply: &mut ReplyBuffer) {
        told(cx, reply);
        let cached = cx.cache::<bool>();
        reply.push(&[u8::from(std::mem::replace(cached, true))]);
    }

    fn query(&self, cx: &Context<'_>, _: &[u8], _: &Region, reply: &mut ReplyBuffer) -> Result<(), NotReadOnly> {
        told(cx, reply);
        Ok(())
    }
}

/// Says nothing about queries, choices and its state.
struct Terse;

impl Service for Terse {
    fn execute(&self, _: &mut Context<'_>, _: &[u8], _: &mut Region, _: &mut ReplyBuffer) {}
}

fn words(reply: &Reply) -> (Vec<u64>, Vec<u8>) {
    let Outcome::Done(result) = &reply.outcome else { panic!("{reply:?}") };
    let (words, rest) = result.split_at(32);
    (words.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect(), rest.to_vec())
}

#[test]
fn a_service_is_told_who_asks_where_and_when() {
    let mut bench = Bench { executor: Executor::new(Told, config()).unwrap(), now: Time(0), view: View(0), next: 1 };
    let s = bench.session(ALICE, 8);
    let both = bench.committed_at(SECOND, &[ordered(ALICE, s, 0, b""), ordered(ALICE, s, 1, b"")]);
    let at = |index| Position::new(SeqNum(2), index).0;
    assert_eq!(words(&both[0]), (vec![ALICE.0, s.0, at(0), SECOND], vec![0]));
    assert_eq!(words(&both[1]), (vec![ALICE.0, s.0, at(1), SECOND], vec![1]), "the cache was there");
    let query = bench.query(query(BOB, 1, b""), 2);
    assert_eq!(words(&query[0]), (vec![BOB.0, SessionId::NONE.0, at(0), SECOND], vec![]));
    bench.executor.drop_caches();
    let after = bench.committed(&[ordered(ALICE, s, 2, b"")]);
    assert_eq!(words(&after[0]).1, [0], "caches may vanish at any time");
}

#[test]
fn p06_p19_a_service_that_says_nothing_of_them_answers_no_queries_takes_every_choice_and_finds_nothing() {
    let mut bench = Bench { executor: Executor::new(Terse, config()).unwrap(), now: Time(0), view: View(0), next: 1 };
    assert!(bench.query(query(BOB, 1, b""), 0).is_empty());
    assert_eq!(bench.executor.counters().queries_not_read_only, 1);
    assert!(<Terse as Service>::check(&Choice { time: 0, seed: 0 }, &Choice { time: 9, seed: 9 }));
    assert_eq!(Terse::inspect(&bench.executor.state().service), None);
}

#[test]
fn what_was_done_is_counted() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    for _ in 0..2 {
        bench.tentative(&[ordered(ALICE, s, 0, b"+"), ordered(ALICE, s, 1, b"+")]);
        bench.rollback();
    }
    bench.committed(&[ordered(ALICE, s, 0, &big(OPERATION_MAX)), ordered(ALICE, s, 1, &big(OPERATION_MAX))]);
    bench.committed(&[ordered(ALICE, s, 0, b""), ordered(ALICE, s, 1, b""), ordered(ALICE, s, 1, b"")]);
    let nobodys = [ordered(ALICE, SessionId(99), 0, b""), ordered(ALICE, SessionId(98), 0, b"")];
    bench.committed(&nobodys);
    let garbled =
        pack_of(ALICE, &[request(s, 70, 0, RequestKind::Ordered, b""), request(s, 90, 0, RequestKind::Close, b"")]);
    bench.committed(&[garbled.clone(), query(ALICE, 1, b"="), query(ALICE, 2, b"=")]);
    bench.admit(&garbled);
    let counted = *bench.executor.counters();
    let expected = ExecutorCounters {
        batches: 7,
        operations: 6,
        rollbacks: 2,
        duplicates: 3,
        gone: 1,
        no_session: 2,
        ignored: 6,
        ..ExecutorCounters::default()
    };
    assert_eq!(counted, expected);
}

#[test]
fn p04_results_are_kept_wherever_they_lie_in_a_large_store() {
    // More pages than one page of a table names.
    let mut bench = Bench::with(ExecutorConfig { reply_store: 8 << 20, ..config() });
    let s = bench.session(ALICE, 64);
    for t in 0..7 {
        bench.committed(&[ordered(ALICE, s, t, &big(OPERATION_MAX))]);
    }
    for t in 0..7 {
        let (kept, _) = bench.admit(&ordered(ALICE, s, t, b""));
        assert_eq!(kept[0].outcome, Outcome::Done(vec![t as u8 + 1; OPERATION_MAX].into()), "{t}");
    }
    // And nothing else lies there.
    let sessions = bench.executor.sessions();
    let large = ExecutorConfig { reply_store: 8 << 20, ..config() };
    let executor = Executor::resume(Tally, large, bench.executor.into_state()).unwrap();
    assert_eq!(executor.sessions(), sessions);
    let mut bench = Bench { executor, now: Time(0), view: View(0), next: 9 };
    assert_eq!(bench.committed(&[ordered(ALICE, s, 7, b"+")])[0].outcome, count(8));
    let refused = Outcome::Refused(crate::wire::Refusal::Counter { last: 1 });
    assert_eq!(bench.committed(&[open(ALICE, 0, 64)])[0].outcome, refused, "that she was here is remembered");
}
