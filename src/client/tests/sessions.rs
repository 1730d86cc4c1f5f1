//! Sessions: P9.

use std::time::Duration;

use bytes::Bytes;

use super::fixture::*;
use crate::client::{EndpointConfig, RequestError, SessionError, SubmitError};
use crate::limits;
use crate::transport::Machine as _;
use crate::types::SessionId;
use crate::wire::{Outcome, Refusal, ReplyResult, RequestKind};

fn counter(heard: &[Heard]) -> u64 {
    let open = &heard[0].asked[0];
    assert_eq!(open.kind, RequestKind::Open);
    assert!(heard.iter().all(|h| h.signed));
    assert_eq!(receivers(heard), [0, 1, 2, 3]);
    open.t
}

#[test]
fn p09_a_session_is_opened_by_a_signed_request_to_all_under_a_rising_counter() {
    let mut stage = Stage::new(config());
    let first = stage.endpoint.open_session(8).unwrap();
    let second = stage.endpoint.open_session(9).unwrap();
    let heard = stage.turn();
    assert_eq!(counter(&heard), 1_000);
    let opens: Vec<(u64, Vec<u8>)> = heard[0].asked.iter().map(|a| (a.t, a.op.clone())).collect();
    let op = |counter: u64, window: u64| [counter.to_le_bytes(), window.to_le_bytes()].concat();
    assert_eq!(opens, [(1_000, op(1_000, 8)), (1_001, op(1_001, 9))]);
    for from in 0..3 {
        let id = |id: u64| done(&id.to_le_bytes());
        stage.say(
            from,
            0,
            &[entry(SessionId::NONE, 1_001, TENTATIVE, 4, id(41)), entry(SessionId::NONE, 1_000, TENTATIVE, 4, id(40))],
        );
    }
    stage.turn();
    assert_eq!(stage.endpoint.session_id(first), Some(SessionId(40)));
    assert_eq!(stage.endpoint.session_id(second), Some(SessionId(41)));
}

#[test]
fn p09_a_refused_counter_is_tried_again_above_the_last() {
    let mut stage = Stage::new(config());
    let session = stage.endpoint.open_session(8).unwrap();
    let heard = stage.turn();
    stage.answer_open(&heard, Outcome::Refused(Refusal::Counter { last: 50_000 }));
    let heard = stage.turn();
    // By a leap that leaves the time, which counters are, not far behind.
    assert!((50_001..50_001 + (1 << 24)).contains(&counter(&heard)));
    stage.grant(&heard, SESSION);
    stage.turn();
    assert_eq!(stage.endpoint.session_id(session), Some(SESSION));
}

#[test]
fn p09_no_counter_is_tried_above_one_that_no_clock_can_have() {
    for (last, tried) in [(u64::MAX / 2 - 1, true), (u64::MAX / 2, false), (u64::MAX, false)] {
        let mut stage = Stage::new(config());
        let session = stage.endpoint.open_session(8).unwrap();
        stage.endpoint.submit(session, Bytes::new()).unwrap();
        let heard = stage.turn();
        stage.answer_open(&heard, Outcome::Refused(Refusal::Counter { last }));
        assert_eq!(!stage.turn().is_empty(), tried, "{last}");
        let refused = RequestError::Refused(Refusal::Counter { last });
        assert_eq!(stage.completion().map(|c| c.result), (!tried).then_some(Err(refused)));
    }
}

#[test]
fn p09_two_sessions_never_share_an_id() {
    let mut stage = Stage::new(config());
    stage.open(8);
    let second = stage.endpoint.open_session(8).unwrap();
    stage.endpoint.submit(second, Bytes::new()).unwrap();
    let heard = stage.turn();
    stage.grant(&heard, SESSION);
    assert_eq!(stage.result(), Err(RequestError::Impossible));
    assert_eq!(stage.endpoint.session_id(second), None);
}

#[test]
fn p09_the_endpoints_own_session_takes_the_window_that_it_gets() {
    let own = || Stage::new(EndpointConfig { read_only: false, ..config() });
    let window = |heard: &[Heard]| u64::from_le_bytes(heard[0].asked[0].op[8..16].try_into().unwrap());
    let mut stage = own();
    stage.endpoint.query(Bytes::new()).unwrap();
    let heard = stage.turn();
    assert_eq!(window(&heard), 64);
    stage.answer_open(&heard, Outcome::Refused(Refusal::Window { window_max: 8 }));
    assert_eq!(window(&stage.turn()), 8);

    let none = Refusal::Window { window_max: 0 };
    let mut stage = own();
    stage.endpoint.query(Bytes::new()).unwrap();
    let heard = stage.turn();
    stage.answer_open(&heard, Outcome::Refused(none));
    assert_eq!(stage.result(), Err(RequestError::Refused(none)));

    // A caller's has the window that the caller wants, or none.
    let fewer = Refusal::Window { window_max: 8 };
    let mut stage = own();
    let session = stage.endpoint.open_session(9).unwrap();
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.endpoint.query(Bytes::new()).unwrap();
    let heard = stage.turn();
    stage.answer_open(&heard, Outcome::Refused(fewer));
    assert_eq!(stage.result(), Err(RequestError::Refused(fewer)));
}

#[test]
fn p09_closing_everything_closes_the_endpoints_own_session_too() {
    let mut stage = Stage::new(EndpointConfig { read_only: false, ..config() });
    let session = stage.open(4);
    stage.endpoint.query(Bytes::new()).unwrap();
    let heard = stage.turn();
    stage.grant(&heard, SessionId(78));
    stage.turn();
    for from in 0..3 {
        stage.say(from, 0, &[entry(SessionId(78), 1, TENTATIVE, 5, done(b"r"))]);
    }
    assert!(stage.result().is_ok());
    assert_eq!((stage.endpoint.sessions(), stage.endpoint.outstanding()), (2, 0));
    stage.endpoint.close_all();
    assert_eq!(stage.endpoint.deadline(), stage.now, "at once");
    assert_eq!(stage.endpoint.submit(session, Bytes::new()), Err(SubmitError::Closed));
    let heard = stage.turn();
    let closed = asked_of(&heard, 0).into_values().map(|a| (a.session, a.kind)).collect::<Vec<_>>();
    assert_eq!(closed, [(SESSION, RequestKind::Close), (SessionId(78), RequestKind::Close)]);
    assert_eq!((stage.endpoint.sessions(), stage.endpoint.outstanding()), (2, 2));
    // A query opens another.
    stage.endpoint.query(Bytes::new()).unwrap();
    assert_eq!(counter(&stage.turn()), 1_002);
}

#[test]
fn p09_a_session_that_never_opened_is_closed_at_once() {
    let mut stage = Stage::new(config());
    let session = stage.endpoint.open_session(8).unwrap();
    let heard = stage.turn();
    stage.answer_open(&heard, Outcome::Refused(Refusal::Quota { sessions_max: 16 }));
    stage.turn();
    assert_eq!(stage.endpoint.sessions(), 1);
    stage.endpoint.close_session(session);
    assert!(stage.turn().is_empty());
    assert_eq!(stage.endpoint.sessions(), 0);
}

#[test]
fn p04_a_window_moves_on_with_what_is_answered() {
    let mut stage = Stage::new(config());
    let session = stage.open(2);
    for t in 1..=5 {
        stage.endpoint.submit(session, Bytes::new()).unwrap();
        let asked = stage.turn()[0].asked[0].clone();
        assert_eq!((asked.t, asked.low), (t, t));
        for from in 0..3 {
            stage.say(from, 0, &[full(t, TENTATIVE, b"x")]);
        }
        assert!(stage.result().is_ok());
    }
}

#[test]
fn p09_two_endpoints_refused_together_do_not_meet_at_one_counter() {
    let next = |seed: u64| {
        let mut stage = Stage::new(config());
        stage.endpoint.reseed(seed);
        stage.endpoint.open_session(8).unwrap();
        let heard = stage.turn();
        stage.answer_open(&heard, Outcome::Refused(Refusal::Counter { last: 50_000 }));
        let heard = stage.turn();
        counter(&heard)
    };
    assert_ne!(next(1), next(2), "the second would be given the first's session");
}

/// Replicas 0 and 1 had caught up when they answered at batch 5, 2 and 3 were not heard. Whoever asks again is ordered
/// again, at batch 9, and answered there by all of them tentatively.
fn answered_anew(stage: &mut Stage, session: SessionId, t: u64, before: &Outcome, now: &Outcome) {
    for from in 0..2 {
        stage.say(from, 0, &[entry(session, t, COMMITTED, 5, ReplyResult::Full(before.clone()))]);
    }
    stage.nothing();
    for from in 0..3 {
        stage.say(from, 0, &[entry(session, t, TENTATIVE, 9, ReplyResult::Full(now.clone()))]);
    }
}

#[test]
fn p09_an_open_that_is_refused_anew_each_time_it_is_ordered_is_refused() {
    let refused = Outcome::Refused(Refusal::Counter { last: 50_000 });
    // The second: the answer was lost, and the session had expired and made room before the open was ordered again.
    for before in [refused.clone(), Outcome::Done(Bytes::copy_from_slice(&40u64.to_le_bytes()))] {
        let mut stage = Stage::new(config());
        let session = stage.endpoint.open_session(8).unwrap();
        let first = counter(&stage.turn());
        answered_anew(&mut stage, SessionId::NONE, first, &before, &refused);
        let heard = stage.turn();
        assert!(counter(&heard) > 50_000, "an older answer keeps no newer one out");
        stage.grant(&heard, SESSION);
        stage.turn();
        assert_eq!(stage.endpoint.session_id(session), Some(SESSION));
    }
}

#[test]
fn p09_a_session_found_lost_anew_each_time_it_is_asked_for_is_lost() {
    let mut stage = Stage::new(config());
    let session = stage.open(4);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    answered_anew(&mut stage, SESSION, 1, &Outcome::NoSession, &Outcome::NoSession);
    assert_eq!(stage.result(), Err(RequestError::SessionLost { session: SESSION }));
}

#[test]
fn p09_a_close_whose_answers_were_lost_ends_though_the_session_is_gone_by_then() {
    let mut stage = Stage::new(config());
    let session = stage.open(4);
    stage.endpoint.close_session(session);
    assert_eq!(stage.turn()[0].asked[0].kind, RequestKind::Close);
    answered_anew(&mut stage, SESSION, 1, &Outcome::Done(Bytes::new()), &Outcome::NoSession);
    stage.nothing();
    assert_eq!((stage.endpoint.sessions(), stage.endpoint.outstanding()), (0, 0));
}

#[test]
fn p09_a_refusal_for_good_is_an_error_and_the_next_request_asks_again() {
    let mut stage = Stage::new(config());
    let session = stage.endpoint.open_session(8).unwrap();
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    let heard = stage.turn();
    let refusal = Refusal::Quota { sessions_max: 16 };
    stage.answer_open(&heard, Outcome::Refused(refusal));
    let error = stage.result().unwrap_err();
    assert_eq!(error, RequestError::Refused(refusal));
    assert!(!error.maybe_executed());
    assert_eq!(error.to_string(), "the session was refused: this identity holds its quota of 16 sessions");
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    let heard = stage.turn();
    stage.grant(&heard, SESSION);
    assert_eq!(stage.turn()[0].asked[0].kind, RequestKind::Ordered);
}

#[test]
fn p09_a_lost_session_ends_its_requests_honestly_and_another_is_opened() {
    let mut stage = Stage::new(config());
    let session = stage.open(4);
    for op in [b"1", b"2", b"3"] {
        stage.endpoint.submit(session, Bytes::from_static(op)).unwrap();
    }
    stage.turn();
    // Request 3 is answered, then the session is gone: what became of 1 and 2 nobody can tell.
    for from in 0..3 {
        stage.say(from, 0, &[full(3, TENTATIVE, b"x")]);
    }
    stage.turn();
    assert!(stage.completion().unwrap().result.is_ok());
    stage.endpoint.submit(session, Bytes::from_static(b"4")).unwrap();
    stage.endpoint.submit(session, Bytes::from_static(b"5")).unwrap();
    stage.turn();
    let gone = || ReplyResult::Full(Outcome::NoSession);
    stage.say(0, 0, &[entry(SESSION, 1, COMMITTED, 9, gone())]);
    stage.say(1, 0, &[entry(SESSION, 1, COMMITTED, 9, gone())]);
    stage.nothing();
    stage.say(2, 0, &[entry(SESSION, 1, COMMITTED, 9, gone())]);
    let heard = stage.turn();
    let mut lost = Vec::new();
    while let Some(completion) = stage.completion() {
        let error = completion.result.unwrap_err();
        assert_eq!(error, RequestError::SessionLost { session: SESSION });
        assert!(error.maybe_executed());
        lost.push(completion.request);
    }
    // 1, 2 and 4 were sent. 5 was outside the window and never left: it goes through the next session.
    assert_eq!(lost.len(), 3);
    stage.grant(&heard, SessionId(78));
    let heard = stage.turn();
    let asked: Vec<_> = heard.iter().flat_map(|h| &h.asked).map(|a| (a.session, a.t, a.op.clone())).collect();
    assert_eq!(asked, [(SessionId(78), 1, b"5".to_vec())], "what may have been executed is never sent again");
    assert_eq!(stage.endpoint.stats().sessions_lost, 1);
}

#[test]
fn p09_a_session_long_idle_is_not_trusted() {
    let mut stage = Stage::new(EndpointConfig { session_idle: Duration::from_secs(60), ..config() });
    let session = stage.open(4);
    stage.now = stage.now + Duration::from_secs(60);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    assert_eq!(stage.turn()[0].asked[0].session, SESSION);
    for from in 0..3 {
        stage.say(from, 0, &[full(1, TENTATIVE, b"x")]);
    }
    assert!(stage.result().is_ok());
    stage.now = stage.now + Duration::from_secs(60) + Duration::from_nanos(1);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    let heard = stage.turn();
    counter(&heard);
    stage.grant(&heard, SessionId(78));
    assert_eq!(stage.turn()[0].asked[0].session, SessionId(78));
}

#[test]
fn p09_a_session_is_closed_after_its_last_answer() {
    let mut stage = Stage::new(config());
    let session = stage.open(4);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.endpoint.close_session(session);
    let heard = stage.turn();
    assert!(heard.iter().all(|h| h.asked[0].kind == RequestKind::Ordered));
    assert_eq!(stage.endpoint.submit(session, Bytes::new()), Err(SubmitError::Closed));
    for from in 0..3 {
        stage.say(from, 0, &[full(1, TENTATIVE, b"x")]);
    }
    let heard = stage.turn();
    assert!(stage.completion().unwrap().result.is_ok());
    assert_eq!((heard[0].asked[0].kind, heard[0].asked[0].t), (RequestKind::Close, 2));
    for from in 0..3 {
        stage.say(from, 0, &[entry(SESSION, 2, COMMITTED, 9, done(b""))]);
    }
    stage.nothing();
    assert_eq!((stage.endpoint.sessions(), stage.endpoint.outstanding()), (0, 0));
}

#[test]
fn p44_sessions_and_windows_are_bounded() {
    let mut stage = Stage::new(EndpointConfig { sessions_max: 2, ..config() });
    for window in [0, limits::SESSION_WINDOW_MAX + 1, u64::MAX] {
        assert_eq!(stage.endpoint.open_session(window), Err(SessionError::Window(window)));
    }
    stage.endpoint.open_session(1).unwrap();
    stage.endpoint.open_session(1).unwrap();
    assert_eq!(stage.endpoint.open_session(1), Err(SessionError::TooMany(2)));
}
