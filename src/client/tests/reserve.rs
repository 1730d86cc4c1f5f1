//! The reserve, as a client calls it (P53).

use std::time::Duration;

use bytes::Bytes;

use super::fixture::*;
use crate::client::EndpointConfig;
use crate::client::completion::Session;

const MS: Duration = Duration::from_millis(1);

fn submit(stage: &mut Stage, session: Session) -> Vec<Heard> {
    stage.endpoint.submit(session, Bytes::from_static(b"op")).unwrap();
    stage.turn()
}

/// Requests that the preferred answer, `first..=last`.
fn agree(stage: &mut Stage, session: Session, t: u64) {
    assert_eq!(receivers(&submit(stage, session)), [0], "request {t}");
    for from in 0..3 {
        stage.say(from, 0, &[full(t, TENTATIVE, b"r")]);
    }
    assert!(stage.result().is_ok());
}

#[test]
fn p53_backups_hear_of_a_request_that_the_preferred_do_not_answer_alike() {
    let mut stage = Stage::new(config());
    let session = stage.open(8);
    agree(&mut stage, session, 1);
    submit(&mut stage, session);
    stage.say(0, 0, &[full(2, TENTATIVE, b"r")]);
    stage.say(1, 0, &[full(2, TENTATIVE, b"r")]);
    stage.nothing();
    stage.say(2, 0, &[full(2, TENTATIVE, b"a lie")]);
    let heard = stage.turn();
    assert_eq!(receivers(&heard), [1, 2, 3], "at once");
    assert!(heard.iter().all(|h| !h.signed && !h.full && asked_of(&heard, h.to).len() == 1));
    stage.say(3, 0, &[full(2, TENTATIVE, b"r")]);
    assert!(stage.result().is_ok());
    assert_eq!((stage.endpoint.stats().summons, stage.endpoint.stats().retransmissions), (1, 0));
    // From now on, for a while, everybody hears now and then that it is needed.
    stage.pass(5 * MS);
    assert_eq!(receivers(&submit(&mut stage, session)), [0, 1, 2, 3]);
    assert_eq!(receivers(&submit(&mut stage, session)), [0], "not with every request");
    stage.pass(5 * MS);
    assert_eq!(receivers(&submit(&mut stage, session)), [0, 1, 2, 3]);
    stage.pass(100 * MS);
    assert_eq!(receivers(&submit(&mut stage, session)), [0], "and then it is tried without");
}

#[test]
fn p53_large_requests_say_that_the_reserve_is_called_to_all_whom_they_reach() {
    let mut stage = Stage::new(EndpointConfig { inline_max: 512, ..config() });
    let session = stage.open(8);
    let submit = |stage: &mut Stage, bytes: usize| {
        stage.endpoint.submit(session, vec![7; bytes].into()).unwrap();
        let heard = stage.turn();
        (receivers(&heard), heard.iter().all(|h| h.full))
    };
    assert_eq!(submit(&mut stage, 1_000), (vec![0, 1, 2, 3], false));
    // It is not sent once more for a late answer, for that costs more than waiting; but 2's lie is remembered.
    stage.say(0, 0, &[full(1, TENTATIVE, b"r")]);
    stage.say(2, 0, &[full(1, TENTATIVE, b"a lie")]);
    stage.say(1, 0, &[full(1, TENTATIVE, b"r")]);
    assert!(stage.turn().is_empty());
    assert!(stage.pass(5 * MS).is_empty());
    stage.say(3, 0, &[full(1, TENTATIVE, b"r")]);
    assert!(stage.result().is_ok());
    for _ in 0..2 {
        assert_eq!(submit(&mut stage, 1_000), (vec![0, 1, 2, 3], true), "each says so");
    }
    assert_eq!(submit(&mut stage, 10), (vec![0], false), "whoever was told knows");
    for from in 0..3 {
        stage.say(from, 0, &[2, 3, 4].map(|t| full(t, TENTATIVE, b"r")));
    }
    stage.turn();
    stage.pass(100 * MS);
    assert_eq!(submit(&mut stage, 1_000), (vec![0, 1, 2, 3], false));
}

#[test]
fn p53_backups_hear_of_a_request_that_one_of_the_preferred_answers_late() {
    let mut stage = Stage::new(config());
    let session = stage.open(8);
    for t in 1..=20 {
        agree(&mut stage, session, t);
    }
    submit(&mut stage, session);
    stage.say(0, 0, &[full(21, TENTATIVE, b"r")]);
    stage.say(1, 0, &[full(21, TENTATIVE, b"r")]);
    stage.nothing();
    let heard: Vec<_> = stage.pass(10 * MS);
    assert_eq!(heard.iter().map(|(_, h)| h.to).collect::<Vec<_>>(), [1, 2, 3], "long before it is sent again");
    assert!(heard.iter().all(|(at, h)| *at <= 2 * MS && !h.signed));
    stage.say(3, 0, &[full(21, TENTATIVE, b"r")]);
    assert!(stage.result().is_ok());
    // 2 does not answer any more.
    stage.pass(5 * MS);
    assert_eq!(receivers(&submit(&mut stage, session)), [0, 1, 2, 3]);
}

#[test]
fn p53_who_was_just_behind_the_reserve_is_relied_on() {
    let mut stage = Stage::new(config());
    let session = stage.open(8);
    submit(&mut stage, session);
    for from in [0, 1, 3] {
        stage.say(from, 0, &[full(1, TENTATIVE, b"r")]);
    }
    assert!(stage.result().is_ok());
    stage.say(2, 0, &[full(1, TENTATIVE, b"r")]);
    stage.nothing();
    stage.pass(5 * MS);
    assert_eq!(receivers(&submit(&mut stage, session)), [0]);
}

#[test]
fn p53_nobody_is_called_for_a_request_that_nobody_has_answered() {
    let mut stage = Stage::new(config());
    let session = stage.open(8);
    submit(&mut stage, session);
    let heard = stage.pass(50 * MS);
    assert!(heard.iter().all(|(at, h)| h.signed && *at >= 20 * MS), "it is sent again, as ever: {heard:?}");
    assert_eq!(stage.endpoint.stats().summons, 0);
}
