//! Ordered requests: P1 to P5, P7, P8, P46.

use std::time::Duration;

use bytes::Bytes;

use super::fixture::*;
use crate::client::{EndpointConfig, RequestError, SubmitError};
use crate::limits;
use crate::transport::Machine;
use crate::types::{ClusterSize, Position, ReplicaId, ReplicaSet, SeqNum, SessionId, View};
use crate::wire::{Outcome, Pieces, Receipt, ReplyKind, ReplyResult, RequestKind, default_replier};

const MS: Duration = Duration::from_millis(1);

#[test]
fn p02_the_first_send_is_a_vector_to_the_believed_primary() {
    let mut stage = Stage::new(config());
    let session = stage.open(8);
    stage.endpoint.submit(session, Bytes::from_static(b"op")).unwrap();
    let heard = stage.turn();
    assert_eq!(receivers(&heard), [0]);
    assert!(!heard[0].signed && !heard[0].full);
    assert_eq!((heard[0].asked[0].session, heard[0].asked[0].t, &heard[0].asked[0].op[..]), (SESSION, 1, &b"op"[..]));
}

#[test]
fn p02_retransmissions_are_signed_to_all_and_back_off() {
    let mut stage = Stage::new(config());
    let session = stage.open(8);
    stage.endpoint.submit(session, Bytes::from_static(b"op")).unwrap();
    assert_eq!(stage.turn().len(), 1);
    let again = stage.pass(3_000 * MS);
    let mut rounds: Vec<Duration> = Vec::new();
    for chunk in again.chunks(4) {
        assert!(chunk.iter().all(|(at, h)| *at == chunk[0].0 && h.signed && !h.full));
        assert_eq!(chunk.iter().map(|(_, h)| h.to).collect::<Vec<_>>(), [0, 1, 2, 3]);
        rounds.push(chunk[0].0);
    }
    // 25 ms (the open was answered at once), then doubling, each +-20 %, to 500 ms.
    let mut last = Duration::ZERO;
    for (i, &at) in rounds.iter().enumerate() {
        let nominal = (25 * MS * (1 << i.min(10))).min(500 * MS);
        assert!((nominal * 4 / 5..=nominal * 6 / 5 + 3 * MS).contains(&(at - last)), "round {i}: {:?}", at - last);
        last = at;
    }
    assert!(rounds.len() >= 8, "{rounds:?}");
}

#[test]
fn p01_p02_a_retransmission_says_the_same_under_the_same_low() {
    let mut stage = Stage::new(config());
    let session = stage.open(8);
    for op in [b"a", b"b", b"c"] {
        stage.endpoint.submit(session, Bytes::from_static(op)).unwrap();
    }
    let first = stage.turn();
    // The first is answered: `low` of new requests rises, that of old ones stays.
    for from in 0..3 {
        stage.say(from, 0, &[full(1, TENTATIVE, b"r")]);
    }
    stage.turn();
    stage.endpoint.submit(session, Bytes::from_static(b"d")).unwrap();
    let second = stage.turn();
    assert_eq!(second[0].asked[0].low, 2);
    let again: Vec<Heard> = stage.pass(100 * MS).into_iter().map(|(_, h)| h).collect();
    let mut told = asked_of(&first, 0);
    told.extend(asked_of(&second, 0));
    told.remove(&(SESSION, 1));
    for replica in 0..4 {
        assert_eq!(asked_of(&again, replica), told, "replica {replica}");
    }
}

#[test]
fn p03_what_is_larger_than_inline_max_goes_to_all_at_once() {
    let mut stage = Stage::new(config());
    let session = stage.open(8);
    stage.endpoint.submit(session, vec![7; 9_000].into()).unwrap();
    stage.endpoint.submit(session, vec![8; 4_000].into()).unwrap();
    let heard = stage.turn();
    assert!(stage.sent.iter().all(|out| out.len() <= 1_452), "fragments fit the path");
    let large: Vec<u8> = heard.iter().filter(|h| h.bytes > 8_192).map(|h| h.to).collect();
    assert_eq!(large, [0, 1, 2, 3]);
    let small: Vec<u8> = heard.iter().filter(|h| h.bytes <= 8_192).map(|h| h.to).collect();
    assert_eq!(small, [0], "fragmented, but still inline");
}

#[test]
fn p03_large_operations_leave_at_a_pace_and_arrive_whole() {
    let mut stage = Stage::new(config());
    let session = stage.open(1);
    stage.endpoint.submit(session, vec![7; limits::OPERATION_MAX].into()).unwrap();
    assert!(stage.turn().is_empty());
    let (_, message, _, count) = stage.pieces()[0];
    for from in [0, 1, 2] {
        let (granted, mut pieces) = (count as u16, Pieces::none(count));
        pieces.insert(0);
        stage.receipt(from, &Receipt { message, start: 0, granted, pieces });
    }
    stage.now = stage.now + config().pace_interval;
    stage.turn();
    let per_turn = stage.sent.iter().filter(|o| o.to == stage.sent[0].to).map(|o| o.len()).sum::<usize>();
    assert!(per_turn <= config().pace_bytes, "{per_turn}");
    let heard = stage.pass(20 * MS);
    assert_eq!(heard.len(), 4);
    assert_eq!(heard[0].1.asked[0].op.len(), limits::OPERATION_MAX);
    assert_eq!(
        stage.endpoint.submit(session, vec![7; limits::OPERATION_MAX + 1].into()),
        Err(SubmitError::TooLarge { len: limits::OPERATION_MAX + 1 })
    );
}

#[test]
fn p02_pieces_of_repeated_sends_add_up_on_a_lossy_path() {
    let mut stage = Stage::new(config());
    let session = stage.open(1);
    let mut dice = 0u64;
    stage.lose = Box::new(move |_| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        dice >> 33 & 7 == 0
    });
    stage.endpoint.submit(session, vec![7; 300_000].into()).unwrap();
    let heard: Vec<Heard> = stage.pass(3_000 * MS).into_iter().map(|(_, h)| h).collect();
    assert_eq!(receivers(&heard), [0, 1, 2, 3], "of 207 pieces one in eight is lost in every round");
}

#[test]
fn p02_who_answered_hears_the_whole_again_under_a_number_of_its_own() {
    // The pieces that it has had are no news, nor would they make it answer again.
    let mut stage = Stage::new(config());
    let session = stage.open(1);
    stage.endpoint.submit(session, vec![7; 20_000].into()).unwrap();
    assert_eq!(receivers(&stage.turn()), [0, 1, 2, 3]);
    stage.say(0, 0, &[digest(1, COMMITTED, b"r")]);
    let again = stage.pass(200 * MS);
    let times = |to| again.iter().filter(|(_, h)| h.to == to).count();
    assert!(times(0) > times(1), "{:?}", [0, 1, 2, 3].map(times));
}

#[test]
fn p04_the_window_is_full_until_completions_are_fetched() {
    let mut stage = Stage::new(config());
    let session = stage.open(2);
    for _ in 0..2 {
        stage.endpoint.submit(session, Bytes::new()).unwrap();
    }
    assert_eq!(stage.endpoint.submit(session, Bytes::new()), Err(SubmitError::Busy(2)));
    stage.turn();
    // The later one is answered first. Its number's successor is outside the window: it waits.
    for from in 0..3 {
        stage.say(from, 0, &[full(2, COMMITTED, b"r2")]);
    }
    assert_eq!(stage.result(), Ok(Bytes::from_static(b"r2")));
    stage.endpoint.submit(session, Bytes::from_static(b"third")).unwrap();
    assert!(stage.turn().is_empty(), "t = 3 >= low + W = 1 + 2");
    for from in 0..3 {
        stage.say(from, 0, &[full(1, COMMITTED, b"r1")]);
    }
    let heard = stage.turn();
    assert_eq!((heard[0].asked[0].t, heard[0].asked[0].low), (3, 3));
}

#[test]
fn p05_a_quorum_of_one_view_or_committed_is_accepted_and_nothing_less() {
    // (replica, view, kind, result)
    type Replies<'a> = &'a [(u8, u64, ReplyKind, &'a [u8])];
    let cases: &[(&str, Replies<'_>, bool)] = &[
        (
            "three tentative of one view",
            &[(0, 0, TENTATIVE, b"x"), (1, 0, TENTATIVE, b"x"), (2, 0, TENTATIVE, b"x")],
            true,
        ),
        ("two tentative", &[(0, 0, TENTATIVE, b"x"), (1, 0, TENTATIVE, b"x")], false),
        (
            "one says it three times",
            &[(0, 0, TENTATIVE, b"x"), (0, 0, TENTATIVE, b"x"), (0, 1, COMMITTED, b"x")],
            false,
        ),
        ("tentative of two views", &[(0, 0, TENTATIVE, b"x"), (1, 0, TENTATIVE, b"x"), (2, 1, TENTATIVE, b"x")], false),
        (
            "two tentative, one committed in another view",
            &[(0, 3, TENTATIVE, b"x"), (1, 3, TENTATIVE, b"x"), (2, 1, COMMITTED, b"x")],
            true,
        ),
        (
            "one tentative, two committed of two views",
            &[(0, 3, COMMITTED, b"x"), (1, 7, TENTATIVE, b"x"), (2, 1, COMMITTED, b"x")],
            true,
        ),
        (
            "one of each of two views, one committed",
            &[(0, 3, TENTATIVE, b"x"), (1, 7, TENTATIVE, b"x"), (2, 1, COMMITTED, b"x")],
            false,
        ),
        ("w committed, read-only optimisation on", &[(0, 0, COMMITTED, b"x"), (1, 0, COMMITTED, b"x")], false),
        ("one differs", &[(0, 0, COMMITTED, b"x"), (1, 0, COMMITTED, b"y"), (2, 0, COMMITTED, b"x")], false),
        (
            "one differs, three agree",
            &[(1, 0, COMMITTED, b"y"), (0, 0, COMMITTED, b"x"), (3, 0, COMMITTED, b"x"), (2, 0, COMMITTED, b"x")],
            true,
        ),
        ("kinds never mix", &[(0, 0, READ_ONLY, b"x"), (1, 0, TENTATIVE, b"x"), (2, 0, TENTATIVE, b"x")], false),
        (
            "a tentative one becomes committed",
            &[(0, 0, TENTATIVE, b"x"), (1, 1, TENTATIVE, b"x"), (2, 1, TENTATIVE, b"x"), (0, 0, COMMITTED, b"x")],
            true,
        ),
        (
            "committed is not taken back",
            &[(0, 0, COMMITTED, b"x"), (0, 9, TENTATIVE, b"y"), (1, 1, TENTATIVE, b"x"), (2, 1, TENTATIVE, b"x")],
            true,
        ),
    ];
    for (name, replies, accepted) in cases {
        let mut stage = Stage::new(config());
        let session = stage.open(1);
        stage.endpoint.submit(session, Bytes::new()).unwrap();
        stage.turn();
        for (from, view, kind, result) in *replies {
            stage.say(*from, *view, &[full(1, *kind, result)]);
        }
        stage.turn();
        match stage.completion() {
            Some(completion) => {
                assert!(accepted, "{name}");
                assert_eq!(completion.result.as_deref(), Ok(&b"x"[..]), "{name}");
                assert_eq!(completion.position, Position::new(SeqNum(5), 0));
                let committed = completion.members.iter().all(|m| m.kind == COMMITTED);
                assert_eq!(completion.kind, if committed { COMMITTED } else { TENTATIVE }, "{name}");
            }
            None => assert!(!accepted, "{name}"),
        }
    }
}

#[test]
fn p05_positions_must_agree_too() {
    let mut stage = Stage::new(config());
    let session = stage.open(1);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    stage.say(0, 0, &[entry(SESSION, 1, COMMITTED, 5, done(b"x"))]);
    stage.say(1, 0, &[entry(SESSION, 1, COMMITTED, 6, done(b"x"))]);
    stage.say(2, 0, &[entry(SESSION, 1, COMMITTED, 5, done(b"x"))]);
    stage.nothing();
    stage.say(3, 0, &[entry(SESSION, 1, COMMITTED, 5, done(b"x"))]);
    assert_eq!(stage.result(), Ok(Bytes::from_static(b"x")));
}

#[test]
fn p05_a_tentative_reply_that_was_rolled_back_and_came_late_takes_no_committed_one_back() {
    let mut stage = Stage::new(config());
    let session = stage.open(1);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    stage.say(0, 1, &[entry(SESSION, 1, COMMITTED, 5, done(b"x"))]);
    stage.say(0, 0, &[entry(SESSION, 1, TENTATIVE, 6, done(b"y"))]);
    stage.say(1, 1, &[entry(SESSION, 1, TENTATIVE, 5, done(b"x"))]);
    stage.nothing();
    stage.say(2, 1, &[entry(SESSION, 1, TENTATIVE, 5, done(b"x"))]);
    assert_eq!(stage.result(), Ok(Bytes::from_static(b"x")));
}

#[test]
fn p05_w_committed_are_enough_only_without_the_read_only_optimisation() {
    let mut stage = Stage::new(EndpointConfig { read_only: false, ..config() });
    let session = stage.open(1);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    stage.say(2, 0, &[full(1, COMMITTED, b"x")]);
    stage.say(3, 0, &[full(1, TENTATIVE, b"x")]);
    stage.nothing();
    stage.say(3, 0, &[full(1, COMMITTED, b"x")]);
    assert_eq!(stage.result(), Ok(Bytes::from_static(b"x")));
}

#[test]
fn p07_a_lying_replier_is_asked_around() {
    let mut stage = Stage::new(config());
    let session = stage.open(1);
    let truth = vec![1; 400];
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    // Replica 0 should send the whole result, and sends another one.
    stage.say(0, 0, &[full(1, COMMITTED, &[2; 400])]);
    for from in 1..4 {
        stage.say(from, 0, &[digest(1, COMMITTED, &truth)]);
    }
    stage.nothing();
    let again = stage.pass(100 * Duration::from_millis(1));
    assert!(again.iter().any(|(_, h)| h.full && h.to == 2));
    stage.say(2, 0, &[full(1, COMMITTED, &truth)]);
    assert_eq!(stage.result(), Ok(truth.into()));
    let contradicted: Vec<u64> = stage.endpoint.health().iter().map(|h| h.contradicted).collect();
    assert_eq!(contradicted, [1, 0, 0, 0]);
}

#[test]
fn p07_who_kept_a_result_back_is_not_waited_for_again() {
    let mut stage = Stage::new(config());
    let session = stage.open(8);
    let truth = vec![1; 400];
    let size = ClusterSize::of(4).unwrap();
    let replier = |t| default_replier(SESSION, t, View(0), size);
    // Replica 2 is down. The first result that it was to send has to be asked for again.
    let lapse = (1..).find(|&t| replier(t) == ReplicaId(2)).unwrap();
    for t in 1..lapse + 8 {
        stage.endpoint.submit(session, Bytes::new()).unwrap();
        let heard = stage.turn();
        assert_eq!(receivers(&heard)[0], 0);
        assert_eq!(heard[0].full, t > lapse && replier(t) == ReplicaId(2), "request {t}");
        for from in [0, 1, 3] {
            let whole = heard[0].full || replier(t) == ReplicaId(from);
            let say = if whole { full(t, COMMITTED, &truth) } else { digest(t, COMMITTED, &truth) };
            stage.say(from, 0, &[say]);
        }
        if t == lapse {
            stage.nothing();
            assert!(stage.pass(40 * MS).iter().all(|(_, h)| h.full && h.signed));
            stage.say(1, 0, &[full(t, COMMITTED, &truth)]);
        }
        assert_eq!(stage.result(), Ok(truth.clone().into()));
    }
    // It answers again, from a state that is not old, and some time later it is relied on.
    stage.say(2, 0, &[digest(1, COMMITTED, &truth)]);
    stage.pass(200 * MS);
    for _ in 0..8 {
        stage.endpoint.submit(session, Bytes::new()).unwrap();
    }
    assert!(stage.turn().iter().all(|h| !h.full));
}

#[test]
fn p44_a_request_that_failed_leaves_no_result_behind() {
    let mut stage = Stage::new(EndpointConfig { request_timeout: 50 * MS, ..config() });
    let session = stage.open(1);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    stage.say(3, 0, &[full(1, COMMITTED, &[7; 1_000])]);
    stage.nothing();
    stage.pass(100 * MS);
    assert!(matches!(stage.completion().unwrap().result, Err(RequestError::Timeout { .. })));
    assert_eq!(stage.endpoint.requests_held(ReplicaId(3)), 0);
}

#[test]
fn p07_a_retransmission_asks_everyone_for_the_whole_once_somebody_has_answered() {
    let mut stage = Stage::new(config());
    let session = stage.open(1);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    assert!(stage.pass(40 * MS).iter().all(|(_, h)| h.signed && !h.full), "it may be on its way");
    stage.say(2, 0, &[digest(1, TENTATIVE, b"r")]);
    let again = stage.pass(200 * MS);
    assert!(again.len() >= 4 && again.iter().all(|(_, h)| h.signed && h.full));
}

#[test]
fn p07_a_large_result_that_arrives_piece_by_piece_is_not_asked_for_again() {
    let result = vec![7; 100_000];
    let replier = default_replier(SESSION, 1, View(0), ClusterSize::tolerating(1).unwrap()).0;
    let rest = [0, 1, 2].map(|id| (replier + 1 + id) % 4);
    // The replier's pieces come 60 ms apart; or stop; or go on beyond a second; or it alone has answered at all.
    for (pieces, others, wait, asks_again) in
        [(5, 2, 90, false), (1, 2, 200, true), (40, 2, 90, true), (5, 1, 90, true)]
    {
        let mut stage = Stage::new(config());
        let session = stage.open(1);
        stage.endpoint.submit(session, Bytes::new()).unwrap();
        stage.turn();
        stage.say(replier, 0, &[full(1, TENTATIVE, &result)]);
        let mut arriving = std::mem::take(stage.arriving()).into_iter();
        for &from in &rest[..others] {
            stage.say(from, 0, &[digest(1, TENTATIVE, &result)]);
        }
        for _ in 0..pieces {
            stage.arriving().extend(arriving.next());
            stage.pass(60 * MS);
        }
        assert!(arriving.len() > 10);
        stage.pass(wait * MS);
        assert_eq!(stage.endpoint.stats().retransmissions > 0, asks_again, "{pieces} pieces, {others} others");
        stage.arriving().extend(arriving);
        for from in rest {
            stage.say(from, 0, &[digest(1, TENTATIVE, &result)]);
        }
        assert_eq!(stage.result(), Ok(result.clone().into()));
    }
}

#[test]
fn p04_a_result_that_is_gone_may_be_on_its_way() {
    let result = vec![7; 100_000];
    let gone = || entry(SESSION, 1, COMMITTED, 5, ReplyResult::Full(Outcome::Gone));
    let replier = default_replier(SESSION, 1, View(0), ClusterSize::tolerating(1).unwrap()).0;
    let others = [0, 1, 2].map(|id| (replier + 1 + id) % 4);
    for arrives in [true, false] {
        let mut stage = Stage::new(config());
        let session = stage.open(1);
        stage.endpoint.submit(session, Bytes::new()).unwrap();
        stage.turn();
        stage.say(replier, 0, &[full(1, TENTATIVE, &result)]);
        let rest = stage.arriving().split_off(if arrives { 10 } else { 0 });
        for from in others {
            stage.say(from, 0, &[digest(1, TENTATIVE, &result)]);
        }
        stage.turn();
        for from in others {
            stage.say(from, 0, &[gone()]);
        }
        stage.turn();
        if arrives {
            stage.nothing();
            stage.arriving().extend(rest);
            assert_eq!(stage.result(), Ok(result.clone().into()), "nobody takes back what was said before");
        } else {
            let position = Position::new(SeqNum(5), 0);
            assert_eq!(stage.completion().unwrap().result, Err(RequestError::ResultGone { position }));
        }
    }
}

#[test]
fn p07_one_whole_result_and_digests_are_enough_however_large() {
    let mut stage = Stage::new(config());
    let session = stage.open(1);
    let truth: Vec<u8> = (0..limits::OPERATION_MAX).map(|i| ((i * 7) >> 3) as u8).collect();
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    stage.say(3, 0, &[full(1, TENTATIVE, &truth)]);
    stage.arriving().reverse();
    stage.say(0, 0, &[digest(1, TENTATIVE, &truth)]);
    stage.say(1, 0, &[digest(1, TENTATIVE, &truth)]);
    assert_eq!(stage.result(), Ok(truth.into()));
}

#[test]
fn p08_the_view_is_the_weak_quorums_highest() {
    let mut stage = Stage::new(config());
    let session = stage.open(8);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    // A liar names view 1000; f + 1 = 2 name at least view 5.
    stage.say(0, 1_000, &[full(1, COMMITTED, b"x")]);
    stage.say(1, 5, &[full(1, COMMITTED, b"x")]);
    stage.say(2, 2, &[full(1, COMMITTED, b"x")]);
    assert!(stage.result().is_ok());
    assert_eq!(stage.endpoint.view(), View(5));
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    assert_eq!(receivers(&stage.turn()), [1], "the primary of view 5");
    // Older certificates do not turn the belief back.
    for from in 0..3 {
        stage.say(from, 1, &[full(2, COMMITTED, b"x")]);
    }
    assert!(stage.result().is_ok());
    assert_eq!(stage.endpoint.view(), View(5));
}

#[test]
fn p46_requests_of_one_turn_share_packs_that_fit_a_datagram() {
    let mut stage = Stage::new(config());
    let session = stage.open(200);
    for i in 0..100u8 {
        stage.endpoint.submit(session, vec![i; 64].into()).unwrap();
    }
    let heard = stage.turn();
    assert!(heard.len() <= 8, "{} packs for 9.6 kB", heard.len());
    assert!(stage.sent.iter().all(|out| out.len() <= 1_452));
    assert_eq!(asked_of(&heard, 0).len(), 100);
    // Answered in part; the rest is packed anew.
    for from in 0..3 {
        let replies: Vec<_> = (1..=90).map(|t| full(t, COMMITTED, b"x")).collect();
        stage.say(from, 0, &replies);
    }
    stage.turn();
    let again: Vec<Heard> = stage.pass(50 * MS).into_iter().map(|(_, h)| h).collect();
    assert_eq!(asked_of(&again, 3).len(), 10);
    assert_eq!(again.iter().filter(|h| h.to == 3).count(), 1);
}

#[test]
fn p46_replies_return_packed_and_repeated_ones_are_counted() {
    let mut stage = Stage::new(config());
    let session = stage.open(8);
    for _ in 0..3 {
        stage.endpoint.submit(session, Bytes::new()).unwrap();
    }
    stage.turn();
    for from in 0..4 {
        let replies: Vec<_> = (1..=3).map(|t| full(t, TENTATIVE, b"x")).collect();
        stage.say(from, 0, &replies);
        stage.say(from, 0, &replies[..1]);
    }
    stage.turn();
    assert_eq!((0..3).filter_map(|_| stage.completion()).filter(|c| c.result.is_ok()).count(), 3);
    let rejects = stage.endpoint.stats().rejects;
    // Before the quorum a repetition says nothing new, after it nothing that was asked.
    assert_eq!((rejects.repeated, rejects.unsolicited), (2, 1 + 3 + 1));
}

#[test]
fn p44_a_liars_flood_is_bounded() {
    let mut stage = Stage::new(EndpointConfig { held_bytes_max: limits::OPERATION_MAX, ..config() });
    let session = stage.open(16);
    for _ in 0..16 {
        stage.endpoint.submit(session, Bytes::new()).unwrap();
    }
    stage.turn();
    // Distinct large results for everything, again and again, and replies to nothing.
    for round in 0..3u8 {
        for t in 1..=16 {
            stage.say(3, 0, &[full(t, COMMITTED, &[round * 16 + t as u8; 200_000])]);
            stage.say(3, 0, &[entry(SessionId(5), t, COMMITTED, 1, done(b"z"))]);
        }
        stage.turn();
        let held = stage.endpoint.requests_held(ReplicaId(3));
        assert!((limits::OPERATION_MAX - 200_000..=limits::OPERATION_MAX).contains(&held), "{held}");
    }
    assert_eq!(stage.endpoint.stats().rejects.unsolicited, 48);
    // The others are heard as if it were not there.
    for t in 1..=16 {
        for from in 0..3 {
            stage.say(from, 0, &[full(t, COMMITTED, &[9; 150_000])]);
        }
        assert_eq!(stage.result(), Ok(vec![9; 150_000].into()));
    }
    assert_eq!(stage.endpoint.requests_held(ReplicaId(3)), 0);
}

#[test]
fn p44_any_bytes_leave_an_endpoint_unharmed() {
    let mut stage = Stage::new(config());
    let session = stage.open(1);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    stage.say(0, 0, &[full(1, COMMITTED, b"x")]);
    let good = stage.arriving().pop().unwrap().bytes;
    for i in 0..good.len() {
        let mut bad = good.to_vec();
        bad[i] ^= 1;
        stage.inject(bad.into());
        stage.inject(good.slice(..i));
    }
    stage.nothing();
    let stats = stage.endpoint.stats();
    assert_eq!(stats.rejects.auth.total(), 2 * good.len() as u64);
    assert!(stats.rejects.unauthentic > 0);
    for from in 0..3 {
        stage.say(from, 0, &[full(1, COMMITTED, b"x")]);
    }
    assert!(stage.result().is_ok());
}

#[test]
fn a_timeout_says_how_many_matched_differed_and_were_silent() {
    let mut stage = Stage::new(EndpointConfig { request_timeout: 900 * MS, ..config() });
    let session = stage.open(1);
    // What was not authentic before it was asked for is not counted with it.
    stage.say(0, 0, &[full(9, COMMITTED, b"x")]);
    let mut forged = stage.arriving().pop().unwrap().bytes.to_vec();
    forged[60] ^= 1;
    stage.inject(forged.into());
    stage.turn();
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    stage.say(0, 0, &[full(1, COMMITTED, b"x")]);
    stage.say(1, 0, &[full(1, COMMITTED, b"y")]);
    stage.say(3, 0, &[full(1, COMMITTED, b"x")]);
    let mut forged = stage.arriving()[0].bytes.to_vec();
    forged[60] ^= 1;
    stage.inject(forged.into());
    stage.pass(899 * MS - Duration::from_millis(3));
    assert!(stage.completion().is_none());
    stage.pass(5 * MS);
    let completion = stage.completion().unwrap();
    assert!(completion.retransmissions > 3);
    let Err(error @ RequestError::Timeout { tally, sent }) = completion.result else { panic!("{completion:?}") };
    assert!(sent && error.maybe_executed());
    assert_eq!((tally.replicas, tally.need, tally.matched, tally.differing, tally.unauthentic), (4, 3, 2, 1, 1));
    assert_eq!(tally.silent, ReplicaSet::from_iter([ReplicaId(2)]));
    assert_eq!(
        error.to_string(),
        "timed out (it may have been executed): 2 of 4 replicas replied alike and 3 are needed; 1 differed, \
         1 were silent (r2), 1 datagrams were not authentic"
    );
    let replies: Vec<u64> = stage.endpoint.health().iter().map(|h| h.replies).collect();
    assert_eq!(replies, [2, 2, 1, 1], "the open, and this");
    // What was given up blocks the window no longer.
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    let heard = stage.turn();
    assert_eq!((heard[0].asked[0].t, heard[0].asked[0].low), (2, 2));
}

#[test]
fn p04_a_result_no_longer_kept_is_an_error_that_says_so() {
    let mut stage = Stage::new(config());
    let session = stage.open(1);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    for from in 0..3 {
        stage.say(from, 0, &[entry(SESSION, 1, COMMITTED, 5, ReplyResult::Full(Outcome::Gone))]);
    }
    assert_eq!(stage.result(), Err(RequestError::ResultGone { position: Position::new(SeqNum(5), 0) }));
}

#[test]
fn a_client_started_before_the_replicas_waits_and_then_works() {
    let mut stage = Stage::new(config());
    stage.lose = Box::new(|_| true);
    let session = stage.endpoint.open_session(4).unwrap();
    stage.endpoint.submit(session, Bytes::from_static(b"op")).unwrap();
    assert!(stage.pass(Duration::from_secs(20)).is_empty());
    assert!(stage.completion().is_none());
    stage.lose = Box::new(|_| false);
    let heard: Vec<Heard> = stage.pass(700 * MS).into_iter().map(|(_, h)| h).collect();
    assert_eq!(receivers(&heard), [0, 1, 2, 3]);
    stage.grant(&heard, SESSION);
    let heard = stage.turn();
    assert_eq!((heard[0].asked[0].kind, &heard[0].asked[0].op[..]), (RequestKind::Ordered, &b"op"[..]));
    for from in 1..4 {
        stage.say(from, 0, &[full(1, TENTATIVE, b"r")]);
    }
    assert_eq!(stage.result(), Ok(Bytes::from_static(b"r")));
}

#[test]
fn an_endpoint_with_nothing_to_do_sleeps() {
    let mut stage = Stage::new(config());
    let session = stage.open(1);
    assert_eq!(stage.endpoint.deadline(), crate::types::Time::NEVER);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    assert!(stage.endpoint.deadline() <= stage.now);
    stage.turn();
    assert!(stage.endpoint.deadline() > stage.now);
    for from in 0..3 {
        stage.say(from, 0, &[full(1, TENTATIVE, b"r")]);
    }
    assert!(stage.result().is_ok());
    assert_eq!(stage.endpoint.deadline(), crate::types::Time::NEVER, "stale timers wake nobody");
}

#[test]
fn p08_what_an_endpoint_counts_and_believes_is_what_it_did() {
    let mut stage = Stage::new(config());
    let new = stage.endpoint.stats();
    assert_eq!((new.view, new.rtt, new.packs_out, new.completed), (View(0), None, 0, 0));
    let session = stage.open(8);
    let opened = stage.endpoint.stats();
    assert_eq!((opened.packs_out, opened.sessions_opened), (1, 1));
    assert_eq!(opened.rtt, Some(Duration::ZERO), "the open was answered at once");
    stage.endpoint.submit(session, Bytes::from_static(b"op")).unwrap();
    stage.turn();
    for from in 0..3 {
        stage.say(from, 4, &[full(1, TENTATIVE, b"r")]);
    }
    assert!(stage.result().is_ok());
    let stats = stage.endpoint.stats();
    assert_eq!((stats.view, stats.packs_out, stats.completed), (View(4), 2, 1));
    assert_eq!((stats.failed, stats.retransmissions), (0, 0));
    assert_eq!((stats.datagrams_out, stats.datagrams_in), (5, 6), "the open to all, and three answers to each");
    // What others have in the outbox is theirs.
    let mut outbox = std::mem::take(&mut stage.sent);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.endpoint.turn(stage.now, &mut Vec::new(), &mut outbox);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.endpoint.turn(stage.now, &mut Vec::new(), &mut outbox);
    assert_eq!((stage.endpoint.stats().datagrams_out, outbox.len()), (7, 2));

    let mut stage = Stage::new(EndpointConfig { request_timeout: 100 * MS, ..config() });
    let session = stage.open(8);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.pass(101 * MS);
    let completion = stage.completion().unwrap();
    let stats = stage.endpoint.stats();
    assert_eq!((stats.failed, stats.completed), (1, 1));
    assert!(completion.retransmissions > 0);
    assert_eq!(stats.retransmissions, u64::from(completion.retransmissions));
}

#[test]
fn what_waits_for_a_session_outlives_others_that_waited_in_vain() {
    let mut stage = Stage::new(EndpointConfig { request_timeout: 1_000 * MS, ..config() });
    stage.lose = Box::new(|_| true);
    let session = stage.endpoint.open_session(4).unwrap();
    stage.endpoint.submit(session, Bytes::from_static(b"1")).unwrap();
    stage.pass(500 * MS);
    stage.endpoint.submit(session, Bytes::from_static(b"2")).unwrap();
    stage.pass(600 * MS);
    assert!(matches!(stage.completion().unwrap().result, Err(RequestError::Timeout { sent: false, .. })));
    stage.lose = Box::new(|_| false);
    let heard: Vec<Heard> = stage.pass(350 * MS).into_iter().map(|(_, h)| h).collect();
    stage.grant(&heard, SESSION);
    let heard = stage.turn();
    assert_eq!(heard[0].asked.iter().map(|a| &a.op[..]).collect::<Vec<_>>(), [b"2"]);
}

#[test]
fn p05_evidence_is_kept_for_who_asks_for_it() {
    for evidence in [true, false] {
        let mut stage = Stage::new(EndpointConfig { evidence, ..config() });
        let session = stage.open(1);
        stage.endpoint.submit(session, Bytes::new()).unwrap();
        stage.turn();
        for from in 0..3 {
            stage.say(from, 0, &[full(1, TENTATIVE, b"r")]);
        }
        stage.turn();
        assert_eq!(stage.completion().unwrap().members.len(), if evidence { 3 } else { 0 });
    }
}

#[test]
fn p05_the_same_result_again_counts_as_what_it_is_said_to_be_now() {
    let mut stage = Stage::new(config());
    let session = stage.open(1);
    stage.endpoint.submit(session, Bytes::new()).unwrap();
    stage.turn();
    for from in 0..3 {
        stage.say(from, u64::from(from), &[full(1, TENTATIVE, b"r")]);
    }
    stage.nothing();
    for from in 0..3 {
        stage.say(from, 2, &[full(1, COMMITTED, b"r")]);
    }
    assert_eq!(stage.result(), Ok(Bytes::from_static(b"r")));
    assert_eq!(stage.endpoint.stats().rejects.repeated, 0);
}

#[test]
fn p44_a_replicas_results_may_fill_its_share_and_its_own_word_again_takes_no_more() {
    let share = 1 << 20;
    let (whole, other) = (vec![7; share], vec![8; share]);
    for (beside, kept) in [(&b""[..], share), (&b"x"[..], 0)] {
        let mut stage = Stage::new(EndpointConfig { held_bytes_max: share, ..config() });
        let session = stage.open(2);
        for _ in 0..2 {
            stage.endpoint.submit(session, Bytes::new()).unwrap();
        }
        stage.turn();
        let held = |stage: &Stage| stage.endpoint.requests_held(ReplicaId(0)) - beside.len();
        stage.say(0, 0, &[full(2, TENTATIVE, beside)]);
        stage.say(0, 0, &[full(1, TENTATIVE, &whole)]);
        stage.turn();
        assert_eq!(held(&stage), kept);
        // The same again is counted once, as is another word of the same replica, which takes the place of
        // the first.
        stage.say(0, 1, &[full(1, TENTATIVE, &whole)]);
        stage.nothing();
        assert_eq!(held(&stage), kept);
        stage.say(0, 0, &[full(1, COMMITTED, &other)]);
        stage.nothing();
        assert_eq!(held(&stage), kept);
        for from in 1..3 {
            stage.say(from, 0, &[digest(1, COMMITTED, &other)]);
        }
        stage.turn();
        assert_eq!(stage.completion().is_some(), kept > 0, "one whole result, and a quorum of its digest");
        if kept == 0 {
            // What a quorum waits for is taken however full the share is.
            stage.say(0, 0, &[full(1, COMMITTED, &other)]);
            assert_eq!(stage.result(), Ok(Bytes::from(other.clone())));
        }
    }
}
