//! Exactly once (P4, P46) and sessions (P9).

use super::*;
use crate::execution::layout::{self, Records};
use crate::limits::SMALL_RESULT_MAX;
use crate::state::PageId;
use crate::wire::Refusal;

#[test]
fn p04_a_duplicate_is_answered_from_the_cache() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    let first = bench.committed(&[ordered(ALICE, s, 0, b"+")]);
    assert_eq!((&first[0].outcome, first[0].kind), (&count(1), ReplyKind::Committed));
    assert_eq!(first[0].position, Position::new(SeqNum(2), 0));
    bench.view = View(3);
    let again = bench.committed(&[ordered(ALICE, s, 0, b"+"), ordered(ALICE, s, 1, b"+")]);
    assert_eq!((&again[0].outcome, again[0].position, again[0].view), (&count(1), first[0].position, View(3)));
    assert_eq!((&again[1].outcome, again[1].position), (&count(2), Position::new(SeqNum(3), 1)));
}

#[test]
fn p04_order_inside_the_window_is_free_and_nothing_beyond_it_executes() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 4);
    for (t, executes) in [(3, true), (1, true), (0, true), (2, true), (4, false), (3, false), (u64::MAX, false)] {
        let before = bench.executor.counters().operations;
        bench.committed(&[ordered(ALICE, s, t, b"+")]);
        assert_eq!(bench.executor.counters().operations - before, u64::from(executes), "t = {t}");
    }
}

#[test]
fn p04_low_moves_the_window_and_frees_what_is_below() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 2);
    bench.committed(&[ordered(ALICE, s, 0, b"+"), ordered(ALICE, s, 1, b"+")]);
    assert!(bench.committed(&[ordered(ALICE, s, 2, b"+")]).is_empty(), "beyond the window");
    let moved = pack_of(ALICE, &[request(s, 2, 1, RequestKind::Ordered, b"+")]);
    assert_eq!(bench.committed(&[moved])[0].outcome, count(3));
    assert!(bench.committed(&[ordered(ALICE, s, 0, b"+")]).is_empty(), "its reply was received");
    assert_eq!(bench.committed(&[ordered(ALICE, s, 1, b"+")])[0].outcome, count(2), "kept: not below low");
    // A retransmission keeps its old low; the stored one does not go back.
    let late = pack_of(ALICE, &[request(s, 0, 0, RequestKind::Ordered, b"+")]);
    assert!(bench.committed(&[late]).is_empty());
}

#[test]
fn p04_a_request_that_does_not_execute_moves_no_window() {
    let mut bench = Bench::new();
    let (s, root) = (bench.session(ALICE, 2), |bench: &Bench<Tally>| bench.root());
    bench.committed(&[ordered(ALICE, s, 0, b"+")]);
    let mut other = Bench::new();
    other.session(ALICE, 2);
    other.committed(&[ordered(ALICE, s, 0, b"+")]);
    // Bob asks in Alice's session, with a low that would free everything.
    let foreign = pack_of(BOB, &[request(s, 9, 9, RequestKind::Ordered, b"+")]);
    assert!(bench.committed(&[foreign]).is_empty());
    other.committed(&[close(BOB, s, 0)]);
    assert_eq!(root(&bench), root(&other));
    assert_eq!(bench.committed(&[ordered(ALICE, s, 0, b"+")])[0].outcome, count(1));
}

#[test]
fn p04_large_results_are_kept_until_there_is_no_room() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    let third = OPERATION_MAX / 3;
    for t in 0..3 {
        bench.committed(&[ordered(ALICE, s, t, &big(third))]);
    }
    let small = bench.committed(&[ordered(ALICE, s, 3, &big(SMALL_RESULT_MAX))]);
    let kept = bench.committed(&[ordered(ALICE, s, 0, b"")]);
    assert_eq!(kept[0].outcome, Outcome::Done(vec![1; third].into()));
    bench.committed(&[ordered(ALICE, s, 4, &big(third))]);
    let gone = bench.committed(&[ordered(ALICE, s, 0, b"")]);
    assert_eq!((&gone[0].outcome, gone[0].position), (&Outcome::Gone, kept[0].position));
    let still = bench.committed(&[ordered(ALICE, s, 1, b""), ordered(ALICE, s, 3, b"")]);
    assert_eq!(still[0].outcome, Outcome::Done(vec![2; third].into()));
    assert_eq!(still[1].outcome, small[0].outcome, "small results live in their slots");
    assert_eq!(bench.executor.counters().operations, 5);
}

#[test]
fn p04_results_that_were_received_drive_out_no_others() {
    let mut bench = Bench::new();
    let (alice, bob) = (bench.session(ALICE, 8), bench.session(BOB, 1));
    bench.committed(&[ordered(BOB, bob, 0, &big(1_000))]);
    let large = OPERATION_MAX / 3;
    // Every third is an answer late, and now and then nothing was received for a while.
    for t in 0..40u64 {
        let low = if t % 3 == 0 { t.saturating_sub(2) } else { t };
        bench.committed(&[pack_of(ALICE, &[request(alice, t, low, RequestKind::Ordered, &big(large))])]);
        let kept = bench.committed(&[ordered(BOB, bob, 0, b"")]);
        assert_eq!(kept[0].outcome, Outcome::Done(vec![1; 1_000].into()), "{t}");
    }
    let last = bench.committed(&[ordered(ALICE, alice, 39, b"")]);
    assert_eq!(last[0].outcome, Outcome::Done(vec![41; large].into()));
    // And when she leaves, all that was hers is free: three times as much fits as would beside it.
    bench.committed(&[close(ALICE, alice, 40)]);
    let carol = bench.session(ClientId(77), 8);
    for t in 0..3 {
        bench.committed(&[ordered(ClientId(77), carol, t, &big(large))]);
    }
    assert!(matches!(bench.committed(&[ordered(BOB, bob, 0, b"")])[0].outcome, Outcome::Done(_)));
}

#[test]
fn p04_the_last_number_of_all_is_a_number_like_any_other() {
    let mut bench = Bench::new();
    let last = u64::MAX;
    for (counter, window, low) in [(1, 2, last - 1), (2, 1, last)] {
        let s = session_of(&bench.committed(&[open(ALICE, counter, window)])[0]);
        let large = pack_of(ALICE, &[request(s, last, low, RequestKind::Ordered, &big(1_000))]);
        let first = bench.committed(std::slice::from_ref(&large))[0].outcome.clone();
        assert!(matches!(first, Outcome::Done(_)));
        assert_eq!(bench.committed(&[large])[0].outcome, first, "it is kept");
        if window == 2 {
            let close = pack_of(ALICE, &[request(s, low, low, RequestKind::Close, b"")]);
            assert_eq!(bench.committed(&[close])[0].outcome, Outcome::Done(Bytes::new()));
        }
    }
    assert_eq!(bench.executor.sessions(), 1);
    // The other expires, and makes room when the quota of three is reached.
    for counter in 3..6 {
        let said = bench.committed_at(100 * SECOND, &[open(ALICE, counter, 1)]);
        assert!(matches!(said[0].outcome, Outcome::Done(_)), "{counter}");
    }
    assert_eq!(bench.executor.sessions(), 3);
}

#[test]
fn p04_the_largest_result_is_kept() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 1);
    let first = bench.committed(&[ordered(ALICE, s, 0, &big(OPERATION_MAX + 5))]);
    assert_eq!(first[0].outcome, Outcome::Done(vec![1; OPERATION_MAX].into()));
    assert_eq!(bench.committed(&[ordered(ALICE, s, 0, b"")])[0].outcome, first[0].outcome);
}

#[test]
fn p04_p26_an_admitted_pack_is_answered_or_handed_back() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 4);
    bench.committed(&[ordered(ALICE, s, 0, b"+")]);
    let root = bench.root();
    let plus = |t| request(s, t, 0, RequestKind::Ordered, b"+");
    let (answers, unexecuted) = bench.admit(&pack_of(ALICE, &[plus(0)]));
    assert_eq!((answers[0].outcome.clone(), unexecuted), (count(1), false));
    let (answers, unexecuted) = bench.admit(&pack_of(ALICE, &[plus(0), plus(1)]));
    assert_eq!((answers.len(), unexecuted), (1, true));
    assert_eq!(bench.admit(&pack_of(ALICE, &[plus(4)])), (vec![], false), "beyond the window");
    assert_eq!(bench.admit(&pack_of(BOB, &[plus(1)])), (vec![], false), "not Bob's session");
    assert_eq!(bench.admit(&query(ALICE, 1, b"=")), (vec![], false));
    assert_eq!(bench.root(), root);
}

#[test]
fn p04_what_does_not_exist_is_said_in_agreement_only() {
    // A replica that lags must not say by itself that a session is not there.
    let mut bench = Bench::new();
    let unknown = ordered(ALICE, SessionId(99), 0, b"+");
    assert_eq!(bench.admit(&unknown), (vec![], true));
    assert_eq!(bench.admit(&open(ALICE, 1, 0)), (vec![], true));
    let said = bench.committed(&[unknown]);
    assert_eq!((&said[0].outcome, said[0].position), (&Outcome::NoSession, Position::new(SeqNum(1), 0)));
}

#[test]
fn p46_requests_may_be_repacked() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 8);
    let plus = |t| request(s, t, 0, RequestKind::Ordered, b"+");
    let first = bench.committed(&[pack_of(ALICE, &[plus(0), plus(1)])]);
    let repacked = bench.committed(&[pack_of(ALICE, &[plus(1), plus(2), plus(0), plus(2)])]);
    let of = |t: u64| repacked.iter().filter(|r| r.t == t).map(|r| (&r.outcome, r.position)).collect::<Vec<_>>();
    assert_eq!(of(0), [(&count(1), first[0].position)]);
    assert_eq!(of(1), [(&count(2), first[1].position)]);
    assert_eq!(of(2), [(&count(3), Position::new(SeqNum(3), 1)); 2]);
}

#[test]
fn p09_a_session_is_named_by_its_position() {
    let mut bench = Bench::new();
    let opened = bench.committed(&[open(ALICE, 5, 8), open(BOB, 1, 64)]);
    assert_eq!(session_of(&opened[0]), SessionId(Position::new(SeqNum(1), 0).0));
    assert_eq!(session_of(&opened[1]), SessionId(Position::new(SeqNum(1), 1).0));
    let expected = [Position::new(SeqNum(1), 1).0.to_le_bytes(), 64u64.to_le_bytes()].concat();
    assert_eq!(opened[1].outcome, Outcome::Done(expected.into()));
    assert_eq!((opened[0].session, opened[0].t), (SessionId::NONE, 5));
}

#[test]
fn p09_an_open_is_done_once() {
    let mut bench = Bench::new();
    let first = bench.committed(&[open(ALICE, 5, 8)]).remove(0);
    let again = bench.committed(&[open(ALICE, 5, 8)]).remove(0);
    assert_eq!((&again.outcome, again.position), (&first.outcome, first.position));
    let (admitted, unexecuted) = bench.admit(&open(ALICE, 5, 8));
    assert_eq!((&admitted[0].outcome, admitted[0].position, unexecuted), (&first.outcome, first.position, false));
    assert_eq!(bench.executor.sessions(), 1);
    let lower = bench.committed(&[open(ALICE, 4, 8)]).remove(0);
    assert_eq!(lower.outcome, Outcome::Refused(Refusal::Counter { last: 5 }));
    bench.committed(&[close(ALICE, session_of(&first), 0)]);
    let after = bench.committed(&[open(ALICE, 5, 8)]).remove(0);
    assert_eq!(after.outcome, Outcome::Refused(Refusal::Counter { last: 5 }), "it is no live session's counter");
}

#[test]
fn p04_p09_a_session_serves_the_endpoint_that_opened_it_and_no_other() {
    let mut bench = Bench::new();
    let s = session_of(&bench.committed(&[open(ALICE, 5, 8)])[0]);
    // Another process of the same identity happens to choose the same counter.
    let (counter_and_window, other) = ([5u64.to_le_bytes(), 8u64.to_le_bytes()].concat(), EndpointId(77));
    let same = pack_from(ALICE, other, &[request(SessionId::NONE, 5, 0, RequestKind::Open, &counter_and_window)]);
    let refused = bench.committed(std::slice::from_ref(&same)).remove(0);
    assert_eq!(refused.outcome, Outcome::Refused(Refusal::Counter { last: 5 }));
    assert!(bench.admit(&same).1, "and no answer without order");
    let stolen = pack_from(ALICE, other, &[request(s, 0, 0, RequestKind::Ordered, b"+")]);
    assert!(bench.committed(&[stolen]).is_empty());
    assert_eq!(bench.committed(&[ordered(ALICE, s, 0, b"+")])[0].outcome, count(1));
}

#[test]
fn p09_windows_are_bounded() {
    let mut bench = Bench::new();
    for window in [0, 65, u64::MAX] {
        let refused = bench.committed(&[open(ALICE, 1, window)]).remove(0);
        assert_eq!(refused.outcome, Outcome::Refused(Refusal::Window { window_max: 64 }));
    }
    assert_eq!(bench.executor.sessions(), 0);
}

#[test]
fn p09_a_closed_session_is_gone() {
    let mut bench = Bench::new();
    let s = bench.session(ALICE, 30);
    assert!(bench.committed(&[close(BOB, s, 0)]).is_empty());
    bench.committed(&[ordered(ALICE, s, 0, b"+")]);
    let closed = bench.committed(&[close(ALICE, s, 1), ordered(ALICE, s, 2, b"+"), close(ALICE, s, 1)]);
    let outcomes: Vec<_> = closed.iter().map(|r| r.outcome.clone()).collect();
    assert_eq!(outcomes, [Outcome::Done(Bytes::new()), Outcome::NoSession, Outcome::NoSession]);
    // Its pages are used again, and nothing of it shines through.
    let pages = bench.executor.state().library.pages();
    let fresh = session_of(&bench.committed(&[open(ALICE, 2, 30)])[0]);
    assert_eq!(bench.executor.state().library.pages(), pages);
    assert_eq!(bench.committed(&[ordered(ALICE, fresh, 0, b"+")])[0].outcome, count(2));
}

#[test]
fn p09_the_quota_evicts_only_expired_sessions_of_the_same_identity() {
    let mut bench = Bench::new();
    let bobs = session_of(&bench.committed_at(1, &[open(BOB, 1, 1)])[0]);
    let mine: Vec<_> = (1..=3).map(|i| session_of(&bench.committed_at(i * SECOND, &[open(ALICE, i, 4)])[0])).collect();
    let refused = bench.committed_at(10 * SECOND, &[open(ALICE, 4, 4)]).remove(0);
    assert_eq!(refused.outcome, Outcome::Refused(Refusal::Quota { sessions_max: 3 }));
    bench.committed_at(10 * SECOND, &[ordered(ALICE, mine[0], 0, b"+")]);
    // Ten seconds after its last use the second is expired; the first was used since.
    let fourth = bench.committed_at(12 * SECOND, &[open(ALICE, 4, 4)]).remove(0);
    let fourth = session_of(&fourth);
    let owners = [(BOB, bobs), (ALICE, mine[0]), (ALICE, mine[1]), (ALICE, mine[2]), (ALICE, fourth)];
    let alive = owners.map(|(client, s)| {
        bench.committed_at(12 * SECOND, &[ordered(client, s, 1, b"+")]).iter().all(|r| r.outcome != Outcome::NoSession)
    });
    assert_eq!(alive, [true, true, false, true, true]);
}

#[test]
fn p09_a_full_table_takes_expired_sessions_of_anyone() {
    let mut bench = Bench::with(ExecutorConfig { sessions_max: 3, ..config() });
    for client in 1..=3 {
        bench.committed_at(client * SECOND, &[open(ClientId(client), 1, 4)]);
    }
    let refused = bench.committed_at(9 * SECOND, &[open(ALICE, 1, 4)]).remove(0);
    assert_eq!(refused.outcome, Outcome::Refused(Refusal::Full { sessions_max: 3 }));
    let opened = bench.committed_at(12 * SECOND, &[open(ALICE, 1, 4), open(BOB, 1, 4)]);
    session_of(&opened[0]);
    session_of(&opened[1]);
    assert_eq!(bench.executor.sessions(), 3);
    let refused = bench.committed_at(12 * SECOND, &[open(ClientId(7), 1, 4)]).remove(0);
    assert_eq!(refused.outcome, Outcome::Refused(Refusal::Full { sessions_max: 3 }));
}

#[test]
fn p09_a_client_without_sessions_is_forgotten_for_another() {
    let mut bench = Bench::with(ExecutorConfig { clients_max: 2, ..config() });
    let first = session_of(&bench.committed(&[open(ALICE, 1, 1)])[0]);
    bench.committed(&[open(BOB, 1, 1)]);
    let full = bench.committed(&[open(ClientId(7), 1, 1)]).remove(0);
    assert!(matches!(full.outcome, Outcome::Refused(Refusal::Full { .. })), "both have sessions");
    bench.committed(&[close(ALICE, first, 0)]);
    session_of(&bench.committed(&[open(ClientId(7), 1, 1)])[0]);
    assert!(matches!(bench.committed(&[open(ALICE, 2, 1)])[0].outcome, Outcome::Refused(Refusal::Full { .. })));
}

#[test]
fn p09_the_largest_configuration_of_sessions_fits_the_region() {
    let config = ExecutorConfig { sessions_max: 40, sessions_per_client: 40, ..config() };
    let mut bench = Bench::with(config);
    let sessions: Vec<_> = (1..=40).map(|i| session_of(&bench.committed(&[open(ALICE, i, 64)])[0])).collect();
    for (t, session) in sessions.iter().enumerate() {
        bench.committed(&[ordered(ALICE, *session, t as u64, &big(100_000))]);
    }
    let library = &bench.executor.state().library;
    assert_eq!(library.limit() - library.pages(), 1, "all but the page of client records that was not needed");
}

/// Other versions of this code, and whoever fetches the state, find everything where the format says.
#[test]
fn p04_p09_records_and_slots_lie_where_the_layout_says() {
    let mut bench = Bench::new();
    bench.session(BOB, 1);
    let session = session_of(&bench.committed_at(5 * SECOND, &[open(ALICE, 9, 64)])[0]);
    let asked = pack_of(ALICE, &[request(session, 30, 7, RequestKind::Ordered, b"+")]);
    let executed = bench.committed_at(6 * SECOND, &[asked]).remove(0).position;

    let region = &bench.executor.state().library;
    let u32_at = |bytes: &[u8], at| u64::from(layout::get_u32(bytes, at));
    let record = Records::sessions(&config()).read(region, 1);
    let words: Vec<u64> = (8..56).step_by(8).map(|at| layout::get_u64(record, at)).collect();
    assert_eq!((u32_at(record, 0), u32_at(record, 4)), (0, 64), "next free, window");
    assert_eq!(words, [session.0, ALICE.0, 9, 7, 6 * SECOND, ALICE.0 + 1], "id, client, counter, low, used, endpoint");

    let (page, at) = (PageId(layout::get_u32(record, 64 + 4)), (30 - 26) * layout::SLOT);
    let slot = &region.read(page)[at..at + 32];
    assert_eq!((layout::get_u64(slot, 0), layout::get_u64(slot, 8)), (30, executed.0), "t, position");
    assert_eq!((u32_at(slot, 16), u32_at(slot, 20), layout::get_u64(slot, 24)), (1, 8, 1), "here, length, result");

    let client = Records::clients(&config()).read(region, 1);
    assert_eq!((u32_at(client, 0), u32_at(client, 4)), (0, 1), "next free, sessions");
    let words: Vec<u64> = (8..32).step_by(8).map(|at| layout::get_u64(client, at)).collect();
    assert_eq!(words, [ALICE.0, 9, 5 * SECOND], "client, last counter, last open");
}

#[test]
fn p09_of_clients_without_sessions_the_one_that_opened_longest_ago_is_forgotten() {
    let mut bench = Bench::with(ExecutorConfig { clients_max: 2, ..config() });
    for (time, client) in [(1, BOB), (2, ALICE)] {
        let s = session_of(&bench.committed_at(time * SECOND, &[open(client, 5, 1)])[0]);
        bench.committed_at(time * SECOND, &[close(client, s, 0)]);
    }
    session_of(&bench.committed_at(3 * SECOND, &[open(ClientId(7), 1, 1)])[0]);
    let known = bench.committed_at(3 * SECOND, &[open(ALICE, 5, 1)]).remove(0);
    assert_eq!(known.outcome, Outcome::Refused(Refusal::Counter { last: 5 }));
    session_of(&bench.committed_at(3 * SECOND, &[open(BOB, 5, 1)])[0]);
}
