//! Queries: P6.

use std::time::Duration;

use bytes::Bytes;

use super::fixture::*;
use crate::client::{EndpointConfig, RequestError, SubmitError};
use crate::transport::Machine as _;
use crate::types::{Position, SeqNum, SessionId, View};
use crate::wire::{Outcome, ReplyResult, RequestKind, default_replier};

const MS: Duration = Duration::from_millis(1);

/// A query that a quorum heard, at least.
fn asked(stage: &mut Stage) -> u64 {
    stage.endpoint.query(Bytes::from_static(b"read")).unwrap();
    let heard = stage.turn();
    assert!(receivers(&heard).len() >= 3);
    for h in &heard {
        assert!(!h.signed && !h.full);
        assert_eq!((h.asked[0].kind, h.asked[0].session), (RequestKind::ReadOnly, SessionId::NONE));
    }
    heard[0].asked[0].t
}

#[test]
fn p06_a_query_needs_no_session_and_q_matching_results_whatever_their_positions() {
    let mut stage = Stage::new(config());
    let t = asked(&mut stage);
    stage.say(0, 0, &[read(t, 7, b"v")]);
    stage.say(1, 2, &[read(t, 9, b"v")]);
    stage.nothing();
    stage.say(3, 1, &[read(t, 8, b"v")]);
    stage.turn();
    let completion = stage.completion().unwrap();
    assert_eq!(completion.result.as_deref(), Ok(&b"v"[..]));
    assert_eq!((completion.kind, completion.session, completion.fell_back), (READ_ONLY, None, false));
    assert_eq!(completion.position, Position::new(SeqNum(8), 0), "the f+1-th highest: one may lie");
    assert_eq!(completion.members.len(), 3);
}

#[test]
fn p05_p06_each_kind_is_counted_by_its_own_rule_in_turn() {
    let mut stage = Stage::new(config());
    let session = stage.open(4);
    for i in 1..3 {
        stage.endpoint.submit(session, Bytes::new()).unwrap();
        stage.turn();
        for from in 0..2 {
            stage.say(from, 0, &[full(i, TENTATIVE, b"r")]);
        }
        stage.say(2, 0, &[entry(SESSION, i, TENTATIVE, 6, done(b"r"))]);
        stage.nothing();
        stage.say(3, 0, &[full(i, TENTATIVE, b"r")]);
        assert!(stage.result().is_ok(), "of one position");
        let t = asked(&mut stage);
        for (from, n) in [(0, 7), (1, 9), (3, 8)] {
            stage.say(from, 0, &[read(t, n, b"v")]);
        }
        assert!(stage.result().is_ok(), "whatever their positions");
    }
}

#[test]
fn p05_ordered_replies_never_answer_a_query() {
    let mut stage = Stage::new(config());
    let t = asked(&mut stage);
    for from in 0..4 {
        stage.say(from, 0, &[entry(SessionId::NONE, t, COMMITTED, 7, done(b"v"))]);
    }
    stage.nothing();
    assert_eq!(stage.endpoint.stats().rejects.unsolicited, 4);
}

/// Answers the open and then the ordered request of a query that fell back.
fn order(stage: &mut Stage, heard: &[Heard]) {
    stage.grant(heard, SESSION);
    let heard = stage.turn();
    let ordered = &heard[0].asked[0];
    assert_eq!((ordered.kind, ordered.session, &ordered.op[..]), (RequestKind::Ordered, SESSION, &b"read"[..]));
    let t = ordered.t;
    for from in 0..3 {
        stage.say(from, 0, &[full(t, TENTATIVE, b"v")]);
    }
    stage.turn();
    let completion = stage.completion().unwrap();
    assert_eq!(completion.result.as_deref(), Ok(&b"v"[..]));
    assert!(completion.fell_back && completion.session_id == Some(SESSION));
}

#[test]
fn p06_results_that_cannot_reach_a_quorum_are_ordered_at_once_under_a_new_t() {
    let mut stage = Stage::new(config());
    let t = asked(&mut stage);
    stage.say(0, 0, &[read(t, 7, b"a")]);
    stage.say(1, 0, &[read(t, 7, b"b")]);
    stage.nothing();
    stage.say(2, 0, &[read(t, 7, b"a")]);
    stage.nothing();
    stage.say(3, 0, &[read(t, 7, b"b")]);
    let heard = stage.turn();
    assert_eq!(heard[0].asked[0].kind, RequestKind::Open, "no session yet: one is opened");
    assert!(heard[0].signed);
    order(&mut stage, &heard);
    assert_eq!(stage.endpoint.stats().fallbacks, 1);
    // The next one finds it open.
    let t = asked(&mut stage);
    for (from, result) in [b"a", b"a", b"b", b"b"].into_iter().enumerate() {
        stage.say(from as u8, 0, &[read(t, 7, result)]);
    }
    let heard = stage.turn();
    assert_eq!((heard[0].asked[0].kind, heard[0].asked[0].t), (RequestKind::Ordered, 2));
}

#[test]
fn p06_a_caller_that_closes_the_session_of_a_query_that_fell_back_harms_no_later_one() {
    let mut stage = Stage::new(config());
    let differ = |stage: &mut Stage, t| {
        for (from, result) in [b"a", b"a", b"b", b"b"].into_iter().enumerate() {
            stage.say(from as u8, 0, &[read(t, 7, result)]);
        }
        stage.turn()
    };
    let t = asked(&mut stage);
    let heard = differ(&mut stage, t);
    stage.grant(&heard, SESSION);
    let t = stage.turn()[0].asked[0].t;
    for from in 0..3 {
        stage.say(from, 0, &[full(t, TENTATIVE, b"v")]);
    }
    stage.turn();
    let own = stage.completion().unwrap().session.unwrap();
    stage.endpoint.close_session(own);
    let closed = stage.turn();
    assert_eq!(closed[0].asked[0].kind, RequestKind::Close);
    for from in 0..3 {
        stage.say(from, 0, &[full(closed[0].asked[0].t, TENTATIVE, b"")]);
    }
    stage.turn();
    let t = asked(&mut stage);
    let heard = differ(&mut stage, t);
    assert_eq!(heard[0].asked[0].kind, RequestKind::Open, "another session is opened");
}

#[test]
fn p06_silence_is_answered_by_ordering() {
    let mut stage = Stage::new(config());
    let t = asked(&mut stage);
    stage.say(0, 0, &[read(t, 7, b"v")]);
    let heard: Vec<Heard> = stage.pass(80 * MS).into_iter().map(|(_, h)| h).collect();
    order(&mut stage, &heard);
    // A late reply to the query is to nothing.
    stage.say(1, 0, &[read(t, 7, b"v")]);
    stage.nothing();
    assert_eq!(stage.endpoint.stats().rejects.unsolicited, 1);
}

#[test]
fn p06_a_query_that_fell_back_and_finds_nobody_ends_at_its_deadline() {
    let mut stage = Stage::new(EndpointConfig { request_timeout: Duration::from_secs(2), ..config() });
    asked(&mut stage);
    stage.pass(Duration::from_secs(3));
    let Err(RequestError::Timeout { tally, .. }) = stage.completion().unwrap().result else { panic!() };
    assert_eq!((tally.matched, tally.silent.len()), (0, 4));
}

#[test]
fn p06_without_the_right_to_write_a_query_is_repeated_instead() {
    let mut stage = Stage::new(EndpointConfig { fallback: false, request_timeout: Duration::from_secs(2), ..config() });
    let t = asked(&mut stage);
    let again = stage.pass(100 * MS);
    assert!(again.iter().any(|(_, h)| h.signed && h.full && h.asked[0].t == t));
    assert!(again.iter().all(|(_, h)| h.asked[0].kind == RequestKind::ReadOnly));
    // States differed in the first round; in a later one they agree.
    for (from, result) in [b"a", b"a", b"b", b"b"].into_iter().enumerate() {
        stage.say(from as u8, 0, &[read(t, 7, result)]);
    }
    stage.nothing();
    stage.say(2, 0, &[read(t, 8, b"a")]);
    assert_eq!(stage.result(), Ok(Bytes::from_static(b"a")));
    asked(&mut stage);
    stage.pass(Duration::from_secs(3));
    let Err(RequestError::Timeout { tally, .. }) = stage.completion().unwrap().result else { panic!() };
    assert_eq!((tally.matched, tally.silent.len()), (0, 4));
}

#[test]
fn p06_with_the_optimisation_off_queries_are_ordered() {
    let mut stage = Stage::new(EndpointConfig { read_only: false, ..config() });
    stage.endpoint.query(Bytes::from_static(b"read")).unwrap();
    let heard = stage.turn();
    order(&mut stage, &heard);
}

#[test]
fn p06_what_the_service_calls_no_query_is_ordered_if_that_is_allowed() {
    for fallback in [true, false] {
        let mut stage = Stage::new(EndpointConfig { fallback, ..config() });
        let t = asked(&mut stage);
        for from in 0..3 {
            stage.say(from, 0, &[entry(SessionId::NONE, t, READ_ONLY, 7, ReplyResult::Full(Outcome::Gone))]);
        }
        if fallback {
            let heard = stage.turn();
            order(&mut stage, &heard);
        } else {
            assert_eq!(stage.result(), Err(RequestError::Impossible));
        }
    }
}

#[test]
fn p44_queries_are_bounded_in_number_and_size() {
    let mut stage = Stage::new(EndpointConfig { queries_max: 2, ..config() });
    let most = crate::limits::OPERATION_MAX;
    for len in [most + 1, most + 2] {
        assert_eq!(stage.endpoint.query(vec![0; len].into()), Err(SubmitError::TooLarge { len }));
    }
    stage.endpoint.query(Bytes::from_static(b"read")).unwrap();
    stage.endpoint.query(Bytes::from_static(b"read")).unwrap();
    assert_eq!(stage.endpoint.query(Bytes::new()), Err(SubmitError::Busy(2)));
    assert_eq!(stage.endpoint.outstanding(), 2);
    assert!(stage.endpoint.deadline() <= stage.now);
    let numbers: Vec<u64> = asked_of(&stage.turn(), 0).into_values().map(|a| a.t).collect();
    assert_eq!(numbers, [1, 2]);
    for from in 0..3 {
        stage.say(from, 0, &[read(1, 7, b"v")]);
    }
    stage.turn();
    assert_eq!(stage.endpoint.query(Bytes::new()), Err(SubmitError::Busy(2)), "until its completion is fetched");
    assert!(stage.completion().unwrap().result.is_ok());
    stage.endpoint.query(vec![0; most].into()).unwrap();
    assert_eq!(stage.endpoint.query(Bytes::new()), Err(SubmitError::Busy(2)));
}

/// A stage in which `agreed` answered a query last.
fn known(agreed: &[u8]) -> Stage {
    let mut stage = Stage::new(config());
    let t = asked(&mut stage);
    for &from in agreed {
        stage.say(from, 0, &[read(t, 7, b"v")]);
    }
    assert!(stage.result().is_ok());
    stage
}

/// The next query; whom it goes to, and its number.
fn next_query(stage: &mut Stage) -> (Vec<u8>, u64) {
    stage.endpoint.query(Bytes::from_static(b"read")).unwrap();
    let heard = stage.turn();
    (receivers(&heard), heard[0].asked[0].t)
}

#[test]
fn p06_who_agreed_last_is_asked_and_the_others_only_when_the_answers_differ() {
    let mut stage = known(&[0, 2, 3]);
    for _ in 0..20 {
        let (to, t) = next_query(&mut stage);
        assert_eq!(to, [0, 2, 3]);
        assert!(
            to.contains(&default_replier(SessionId::NONE, t, View(0), stage.endpoint.size()).0),
            "one of them sends the whole"
        );
        for from in to {
            stage.say(from, 0, &[read(t, 7, b"v")]);
        }
        assert!(stage.result().is_ok());
    }
    assert_eq!(stage.endpoint.stats().hedges, 0);
    let (_, t) = next_query(&mut stage);
    stage.say(0, 0, &[read(t, 7, b"old")]);
    stage.say(2, 0, &[read(t, 8, b"new")]);
    let heard = stage.turn();
    assert_eq!(receivers(&heard), [1], "as soon as they cannot agree");
    assert!(heard[0].full && !heard[0].signed && heard[0].asked[0].t == t);
    stage.say(3, 0, &[read(t, 8, b"new")]);
    stage.nothing();
    stage.say(1, 0, &[read(t, 8, b"new")]);
    assert_eq!(stage.result(), Ok(Bytes::from_static(b"new")));
    assert_eq!((stage.endpoint.stats().hedges, stage.endpoint.stats().fallbacks), (1, 0));
    assert_eq!(next_query(&mut stage).0, [1, 2, 3], "who agreed now");
}

#[test]
fn p06_the_others_are_asked_when_one_is_late_and_it_is_not_asked_first_for_a_while() {
    let mut stage = known(&[0, 1, 2]);
    let (_, t) = next_query(&mut stage);
    for from in [0, 1] {
        stage.say(from, 0, &[read(t, 7, b"v")]);
    }
    let heard = stage.pass(20 * MS);
    assert_eq!(heard.iter().map(|(_, h)| h.to).collect::<Vec<_>>(), [3], "once, and nobody is told to order it");
    stage.say(3, 0, &[read(t, 7, b"v")]);
    assert!(stage.result().is_ok());
    let (to, t) = next_query(&mut stage);
    assert_eq!(to, [0, 1, 3]);
    // It answers when all are asked, first of all.
    for from in [0, 1] {
        stage.say(from, 0, &[read(t, 7, b"v")]);
    }
    stage.pass(20 * MS);
    stage.say(2, 0, &[read(t, 7, b"v")]);
    assert!(stage.result().is_ok());
    assert_eq!(next_query(&mut stage).0, [0, 1, 2, 3], "two were late of late");
}

#[test]
fn p06_who_answers_queries_otherwise_is_not_asked_first_because_it_agrees_on_what_is_ordered() {
    let mut stage = Stage::new(config());
    let session = stage.open(4);
    let (to, t) = next_query(&mut stage);
    assert_eq!(to, [0, 1, 2]);
    for (from, result) in [(0, b"lie"), (1, b"yes"), (2, b"yes")] {
        stage.say(from, 0, &[read(t, 7, result)]);
    }
    assert_eq!(receivers(&stage.turn()), [3]);
    stage.say(3, 0, &[read(t, 7, b"yes")]);
    assert!(stage.result().is_ok());
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    for from in 0..3 {
        stage.say(from, 0, &[full(1, TENTATIVE, b"r")]);
    }
    assert!(stage.result().is_ok());
    assert_eq!(next_query(&mut stage).0, [0, 1, 2, 3], "not of the three that agreed last alone");
}

#[test]
fn p06_queries_to_different_replicas_share_no_pack() {
    let mut stage = known(&[0, 1, 2]);
    let (_, first) = next_query(&mut stage);
    stage.say(0, 0, &[read(first, 7, b"a")]);
    stage.say(1, 0, &[read(first, 7, b"b")]);
    let (to, second) = next_query(&mut stage);
    assert_eq!(to, [0, 1, 2, 3], "one query to three, the rest of another to the fourth");
    stage.say(2, 0, &[read(first, 7, b"a"), read(second, 7, b"v")]);
    stage.say(3, 0, &[read(first, 7, b"a")]);
    stage.turn();
    assert_eq!(stage.completion().expect("the first").result, Ok(Bytes::from_static(b"a")));
    assert_eq!(stage.endpoint.outstanding(), 1);
    for from in [0, 1] {
        stage.say(from, 0, &[read(second, 7, b"v")]);
    }
    assert!(stage.result().is_ok());
}
