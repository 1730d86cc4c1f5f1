//! Large requests on their way (P3, P54).

use std::collections::BTreeSet;
use std::time::Duration;

use super::fixture::{COMMITTED, Stage, config, digest, full};
use crate::client::Session;
use crate::transport::Machine;
use crate::types::Time;
use crate::wire::{Pieces, Receipt};

const MS: Duration = Duration::from_millis(1);

const LEN: usize = 300_000;

/// A stage on which a request of [`LEN`] bytes begins to leave: its message and its number of pieces.
fn begun() -> (Stage, Session, u64, usize) {
    let mut stage = Stage::new(config());
    let session = stage.open(2);
    stage.endpoint.submit(session, vec![7; LEN].into()).unwrap();
    stage.turn();
    let (_, message, _, count) = stage.pieces()[0];
    (stage, session, message, count)
}

fn some(count: usize, which: impl Iterator<Item = usize>) -> Pieces {
    let mut pieces = Pieces::none(count);
    which.for_each(|piece| assert!(pieces.insert(piece)));
    pieces
}

/// The pieces that leave to `to` in `time`.
fn to(stage: &mut Stage, to: u8, time: Duration) -> Vec<usize> {
    let end = stage.now + time;
    let mut left = Vec::new();
    loop {
        let next = stage.endpoint.deadline().max(stage.now);
        if next > end && stage.arriving().is_empty() {
            stage.now = end;
            return left;
        }
        stage.now = next.min(end);
        stage.turn();
        left.extend(stage.pieces().iter().filter(|(receiver, ..)| *receiver == to).map(|(_, _, piece, _)| *piece));
    }
}

#[test]
fn p54_a_large_request_leaves_as_far_as_a_quorum_grants() {
    let (mut stage, _, message, count) = begun();
    let started = stage.pieces().iter().filter(|(to, ..)| *to == 2).count();
    assert_eq!(started, (64 << 10) / config().datagram_max, "so much leaves unasked");
    stage.receipt(3, &Receipt { message, start: 1 << 20, granted: count as u16, pieces: some(count, 0..1) });
    assert_eq!(to(&mut stage, 2, 3 * MS), [0; 0], "one replica may lie");
    let here = || some(count, 0..started);
    stage.receipt(0, &Receipt { message, start: 1 << 20, granted: 120, pieces: here() });
    stage.receipt(1, &Receipt { message, start: 1 << 20, granted: 100, pieces: here() });
    assert_eq!(to(&mut stage, 2, 3 * MS), (started..100).collect::<Vec<_>>(), "three of four");
    stage.receipt(2, &Receipt { message, start: 1 << 20, granted: 90, pieces: here() });
    assert_eq!(to(&mut stage, 2, 2 * MS), [0; 0]);
    stage.receipt(0, &Receipt { message, start: 1 << 20, granted: count as u16, pieces: here() });
    stage.receipt(1, &Receipt { message, start: 1 << 20, granted: count as u16, pieces: here() });
    assert_eq!(to(&mut stage, 2, 5 * MS), (100..count).collect::<Vec<_>>());
}

#[test]
fn p54_the_next_large_request_starts_with_what_a_correct_replica_said() {
    for (told, want) in [([0, 20_000, 30_000, 1 << 20], 30_000), ([8_000, 9_000, 10_000, 0], 9_000)] {
        let (mut stage, session, message, count) = begun();
        for (from, start) in (0..).zip(told) {
            stage.receipt(from, &Receipt { message, start, granted: count as u16, pieces: Pieces::all(count) });
        }
        to(&mut stage, 0, 5 * MS);
        stage.now = stage.now + MS;
        stage.endpoint.submit(session, vec![8; LEN].into()).unwrap();
        stage.turn();
        assert_eq!(stage.pieces().len(), 4 * (want / config().datagram_max));
    }
}

#[test]
fn p54_what_was_lost_goes_again_to_who_misses_it() {
    let (mut stage, _, message, count) = begun();
    let all = count as u16;
    for from in [1, 2, 3] {
        let pieces = some(count, 0..45);
        stage.receipt(from, &Receipt { message, start: 0, granted: all, pieces });
    }
    assert_eq!(to(&mut stage, 0, 5 * MS), (45..count).collect::<Vec<_>>());
    let missing = BTreeSet::from([0, 3, 44, 130]);
    let pieces = || some(count, (0..150).filter(|piece| !missing.contains(piece)));
    stage.receipt(0, &Receipt { message, start: 0, granted: all, pieces: pieces() });
    stage.turn();
    let again: Vec<_> = stage.pieces().iter().map(|(to, _, piece, _)| (*to, *piece)).collect();
    assert_eq!(again, missing.iter().map(|&piece| (0, piece)).collect::<Vec<_>>(), "and what may be on its way, not");
    stage.receipt(0, &Receipt { message, start: 0, granted: all, pieces: pieces() });
    assert_eq!(to(&mut stage, 0, Duration::ZERO), [0; 0], "it is on its way again");
    stage.now = stage.now + 9 * MS;
    stage.receipt(0, &Receipt { message, start: 0, granted: all, pieces: pieces() });
    let tail = 150..count;
    let want: Vec<usize> = missing.iter().copied().chain(tail).collect();
    assert_eq!(to(&mut stage, 0, MS), want, "nothing has come there for long: the last ones are lost as well");
}

#[test]
fn p54_a_replica_that_got_nothing_is_sent_one_piece_and_a_liar_no_more_than_thrice_all() {
    let (mut stage, _, message, count) = begun();
    for from in [1, 2, 3] {
        let pieces = some(count, 0..count - 1);
        stage.receipt(from, &Receipt { message, start: 0, granted: count as u16, pieces });
    }
    let mut first = to(&mut stage, 0, 9 * MS);
    assert_eq!(first.pop(), Some(count - 1));
    assert_eq!(to(&mut stage, 0, 35 * MS), [count - 1; 2], "after 10 and 20 ms more");
    let mut again = 0;
    for _ in 0..20 {
        stage.receipt(0, &Receipt { message, start: 0, granted: 0, pieces: some(count, count - 1..count) });
        again += to(&mut stage, 0, 10 * MS).len();
    }
    let again = again + 3;
    assert!((2 * count..3 * count).contains(&again), "{again} of {count}");
    assert!(stage.endpoint.stats().pieces_again >= again as u64);
}

#[test]
fn p54_a_replica_without_room_is_asked_for_some_ever_less_often() {
    let (mut stage, _, message, count) = begun();
    let none = || Receipt { message, start: 0, granted: 0, pieces: Pieces::none(count) };
    let last = stage.pieces().iter().map(|(.., piece, _)| *piece).max().unwrap();
    let mut asked = Vec::new();
    for ms in 1..2_000 {
        if ms % 100 == 0 {
            (0..4).for_each(|from| stage.receipt(from, &none()));
        }
        let left = to(&mut stage, 0, MS);
        assert!(left.iter().all(|piece| *piece == last), "{left:?}");
        asked.extend(left.iter().map(|_| ms));
    }
    assert_eq!(asked, [10, 30, 70, 150, 310, 630, 1_270, 1_910]);
    assert_eq!(stage.endpoint.stats().retransmissions, 0, "they are there");
    let mut left = Vec::new();
    for _ in 0..2 {
        for from in 0..3 {
            let pieces = some(count, last..last + 1);
            stage.receipt(from, &Receipt { message, start: 0, granted: count as u16, pieces });
        }
        left.extend(to(&mut stage, 0, 20 * MS));
    }
    left.sort_unstable();
    left.dedup();
    assert_eq!(left, (0..count).filter(|piece| *piece != last).collect::<Vec<_>>(), "there is room now");
}

#[test]
fn p54_while_replicas_say_what_they_have_a_request_is_not_sent_again() {
    let (mut stage, _, message, count) = begun();
    let again = |stage: &Stage| stage.endpoint.stats().retransmissions;
    let receipt = Receipt { message, start: 0, granted: 45, pieces: some(count, 0..45) };
    for _ in 0..18 {
        for from in [0, 1] {
            stage.receipt(from, &receipt);
        }
        stage.pass(100 * MS);
    }
    assert_eq!(again(&stage), 0);
    for _ in 0..15 {
        stage.receipt(0, &receipt);
        stage.pass(100 * MS);
    }
    assert!(again(&stage) > 0, "one alone may lie");
    let (mut stage, _, message, count) = begun();
    let receipt = Receipt { message, start: 0, granted: 45, pieces: some(count, 0..45) };
    for _ in 0..105 {
        for from in [0, 1] {
            stage.receipt(from, &receipt);
        }
        stage.pass(100 * MS);
    }
    assert!(again(&stage) > 0, "and together they are believed for ten seconds");
}

#[test]
fn p54_whoever_has_not_all_of_it_gets_it_after_the_answer_too() {
    let (mut stage, _, message, count) = begun();
    for from in [0, 1, 2] {
        let result = if from == 0 { full(1, COMMITTED, b"r") } else { digest(1, COMMITTED, b"r") };
        stage.say(from, 0, &[result]);
    }
    assert_eq!(to(&mut stage, 3, 5 * MS), (45..count).collect::<Vec<_>>());
    assert!(stage.completion().is_some_and(|done| done.result.is_ok()));
    stage.receipt(3, &Receipt { message, start: 0, granted: 0, pieces: some(count, 1..count) });
    assert_eq!(to(&mut stage, 3, MS), [0]);
    stage.now = stage.now + 200 * MS;
    stage.turn();
    stage.receipt(3, &Receipt { message, start: 0, granted: 0, pieces: some(count, 1..count) });
    assert_eq!(to(&mut stage, 3, MS), [0; 0], "not for ever");
    assert_eq!(stage.endpoint.deadline(), Time::NEVER);
}
