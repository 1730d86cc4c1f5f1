//! Order, tentative execution, rollback, time, checkpoints.

use super::*;

#[test]
fn p16_a_tentative_batch_gives_tentative_replies() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    let first = bench.tentative(&[ordered(ALICE, s, 0, b"+")]);
    assert_eq!((&first[0].outcome, first[0].kind), (&count(1), ReplyKind::Tentative));
    assert_eq!((bench.executor.executed(), bench.executor.committed()), (SeqNum(2), SeqNum(1)));
    // A duplicate's reply is as final as the batch that executed it, not as the one that it came in.
    assert_eq!(bench.admit(&ordered(ALICE, s, 0, b"+")).0[0].kind, ReplyKind::Tentative);
    bench.commit();
    assert_eq!(bench.admit(&ordered(ALICE, s, 0, b"+")).0[0].kind, ReplyKind::Committed);
    let both = bench.tentative(&[ordered(ALICE, s, 0, b"+"), ordered(ALICE, s, 1, b"+")]);
    assert_eq!([both[0].kind, both[1].kind], [ReplyKind::Committed, ReplyKind::Tentative]);
}

#[test]
#[should_panic(expected = "is tentative")]
fn p16_nothing_executes_above_a_tentative_batch() {
    let mut bench = Bench::new();
    bench.tentative(&[open(ALICE, 1, 1)]);
    bench.tentative(&[open(BOB, 1, 1)]);
}

#[test]
#[should_panic(expected = "in order")]
fn p16_no_batch_is_skipped() {
    let mut bench = Bench::new();
    bench.next = 2;
    bench.committed(&[]);
}

#[test]
fn p17_a_rollback_undoes_state_sessions_replies_and_time() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    bench.committed_at(SECOND, &[ordered(ALICE, s, 0, &big(2_000))]);
    let (root, time, sessions) = (bench.root(), bench.executor.time(), bench.executor.sessions());
    let other =
        [ordered(ALICE, s, 1, &big(OPERATION_MAX)), ordered(ALICE, s, 2, b"+"), open(BOB, 3, 40), close(ALICE, s, 3)];
    bench.batch_at(9 * SECOND, &other, true);
    assert_ne!(bench.root(), root);
    bench.rollback();
    assert_eq!((bench.root(), bench.executor.time(), bench.executor.sessions()), (root, time, sessions));
    let after = bench.committed(&[ordered(ALICE, s, 0, b""), ordered(ALICE, s, 1, b"+"), open(BOB, 1, 1)]);
    assert_eq!(after[0].outcome, Outcome::Done(vec![1; 2_000].into()), "the store is as it was");
    assert_eq!(after[1].outcome, count(2), "t = 1 had not executed");
    assert_eq!(session_of(&after[2]), SessionId(Position::new(SeqNum(3), 2).0), "nor had Bob's open");
}

#[test]
fn p17_the_state_tells_no_views_and_no_tentative_past() {
    let (mut plain, mut moved) = (Bench::new(), Bench::new());
    moved.view = View(8);
    moved.now = Time(77 * SECOND);
    let s = plain.session(ALICE, 30);
    moved.tentative(&[open(BOB, 9, 64), open(BOB, 10, 64)]);
    moved.rollback();
    moved.tentative(&[open(ALICE, 1, 30)]);
    moved.commit();
    for t in 0..20 {
        let pack = [ordered(ALICE, s, t, &big(t as usize * 300)), open(BOB, t + 1, 1 + t)];
        plain.committed_at(t, &pack);
        if t % 3 == 0 {
            moved.view = moved.view.next();
            moved.tentative(&[ordered(ALICE, s, t + 1, b"+"), close(ALICE, s, t)]);
            moved.rollback();
        }
        moved.batch_at(t, &pack, t % 2 == 0);
        if t % 2 == 0 {
            moved.admit(&pack[0]);
            moved.commit();
        }
        assert_eq!(plain.root(), moved.root(), "after t = {t}");
    }
}

#[test]
fn p19_agreed_time_grows_whatever_is_proposed() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    bench.committed_at(500, &[ordered(ALICE, s, 0, b"t")]);
    assert_eq!(bench.executor.time(), Time(500));
    let back = bench.committed_at(20, &[ordered(ALICE, s, 1, b"t"), ordered(ALICE, s, 2, b"t")]);
    assert_eq!(bench.executor.time(), Time(501));
    let parts = |i: usize| match &back[i].outcome {
        Outcome::Done(result) => (result.slice(..8), result.slice(8..)),
        other => panic!("{other:?}"),
    };
    assert_eq!(parts(0).0, 501u64.to_le_bytes()[..]);
    assert_eq!(parts(1).0, parts(0).0, "one time for a batch");
    assert_ne!(parts(1).1, parts(0).1, "other randomness for each operation");
    bench.committed_at(u64::MAX, &[ordered(ALICE, s, 3, b"t")]);
    bench.committed_at(0, &[ordered(ALICE, s, 4, b"t")]);
    assert_eq!(bench.executor.time(), Time(u64::MAX));
}

#[test]
fn p19_a_null_batch_leaves_time_unchanged() {
    let mut bench = Bench::new();
    bench.committed_at(500, &[open(ALICE, 1, 1)]);
    let n = SeqNum(2);
    bench.next = 3;
    bench.handle(Command::Execute { n, view: View(0), batch: Arc::new(Batch::null()), tentative: false });
    assert_eq!((bench.executor.time(), bench.executor.executed()), (Time(500), n));
}

#[test]
fn p22_checkpoints_are_sealed_when_committed_and_executed() {
    let mut bench = Bench::new();
    let sealed = |out: &[Output]| -> Vec<u64> {
        let seals = out.iter().filter_map(|o| if let Output::Sealed(s) = o { Some(s.n.0) } else { None });
        seals.collect()
    };
    let mut seen = Vec::new();
    for n in 1..=13 {
        let tentative = n % 3 == 0 || n == 8;
        let out = bench.batch_at(0, &[open(ALICE, n, 1)], tentative);
        if tentative {
            assert_eq!(sealed(&out), [0; 0], "it may be rolled back");
            let out = bench.commit();
            seen.extend(sealed(&out));
        } else {
            seen.extend(sealed(&out));
        }
    }
    assert_eq!(seen, [4, 8, 12]);
}

#[test]
fn p22_a_rolled_back_checkpoint_is_sealed_when_it_commits() {
    let mut bench = Bench::new();
    for n in 1..=3 {
        bench.committed(&[open(ALICE, n, 1)]);
    }
    bench.tentative(&[open(BOB, 1, 1)]);
    assert!(bench.rollback().is_empty());
    let out = bench.batch_at(0, &[open(BOB, 2, 1)], false);
    assert!(out.iter().any(|o| matches!(o, Output::Sealed(sealed) if sealed.n == SeqNum(4))));
}

#[test]
fn a_service_that_panics_stops_its_replica() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    let out = bench.batch_at(0, &[ordered(ALICE, s, 0, b"+"), ordered(ALICE, s, 1, b"!")], true);
    let Some(Output::Stopped { position, message }) = out.last() else { panic!("{out:?}") };
    assert_eq!((*position, message.as_str()), (Position::new(SeqNum(2), 1), "out of tallies at 2"));
    assert!(!out.iter().any(|o| matches!(o, Output::Executed(_))));
    assert!(bench.rollback().is_empty());
    assert!(bench.batch_at(0, &[ordered(ALICE, s, 2, b"+")], false).is_empty(), "it does not limp");
    assert_eq!(bench.executor.stopped(), Some((Position::new(SeqNum(2), 1), "out of tallies at 2")));
}

#[test]
fn a_state_is_taken_up_where_it_was_left() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    bench.committed_at(SECOND, &[ordered(ALICE, s, 0, b"+")]);
    let state = bench.executor.into_state();
    let executor = Executor::resume(Tally, config(), state).unwrap();
    let mut bench = Bench { executor, now: Time(0), view: View(0), next: 3 };
    assert_eq!((bench.executor.executed(), bench.executor.time()), (SeqNum(2), Time(SECOND)));
    assert_eq!(bench.committed(&[ordered(ALICE, s, 0, b"+")])[0].outcome, count(1));
    let state = bench.executor.into_state();
    assert!(Executor::resume(Tally, ExecutorConfig { window_max: 9, ..config() }, state).is_err());
}
