//! Replicas that start again, with new keys (P40).

use std::time::Duration;

use bytes::Bytes;

use super::fixture::*;
use crate::auth::Reject;
use crate::wire::RequestKind;

const MS: Duration = Duration::from_millis(1);

/// An operation and a query are on their way when `restarted` start again; who hears what of them, and when.
fn sent_again(stage: &mut Stage, restarted: &[u8]) -> Vec<(Duration, Heard)> {
    let session = stage.open(4);
    stage.endpoint.submit(session, Bytes::from_static(b"op")).unwrap();
    stage.endpoint.query(Bytes::from_static(b"read")).unwrap();
    assert_eq!(receivers(&stage.turn()), [0, 1, 2]);
    assert!(stage.turn().is_empty(), "nothing goes again by itself at once");
    for &id in restarted {
        stage.restart(id, 1);
    }
    let mut heard: Vec<_> = stage.turn().into_iter().map(|h| (Duration::ZERO, h)).collect();
    heard.extend(stage.pass(2 * MS));
    heard
}

fn kinds(heard: &[(Duration, Heard)], to: u8) -> Vec<RequestKind> {
    heard.iter().filter(|(_, h)| h.to == to).flat_map(|(_, h)| h.asked.iter().map(|a| a.kind)).collect()
}

#[test]
fn p40_what_a_replica_with_a_new_key_could_not_open_is_sent_again() {
    let mut stage = Stage::new(config());
    let heard = sent_again(&mut stage, &[2]);
    assert!(heard.iter().all(|(at, h)| *at == MS && !h.signed && h.asked[0].t == 1), "{heard:?}");
    assert_eq!((0..4).map(|to| kinds(&heard, to)).collect::<Vec<_>>(), vec![vec![RequestKind::ReadOnly]; 4]);
    // Under the number that it has: who answered the first time need not again.
    for from in [0, 1, 3] {
        stage.say(from, 0, &[read(1, 7, b"v")]);
    }
    assert_eq!(stage.result(), Ok(Bytes::from_static(b"v")));
    assert_eq!(stage.endpoint.stats().retransmissions, 0, "a new key is no silence");
}

#[test]
fn p06_p40_a_new_key_of_a_replica_that_was_not_asked_sends_nothing_again() {
    let heard = sent_again(&mut Stage::new(config()), &[3]);
    assert!(heard.iter().all(|(_, h)| h.to == 3 && h.full), "it is asked because the others are late: {heard:?}");
}

#[test]
fn p02_p40_what_was_ordered_goes_to_all_again_if_the_primary_has_a_new_key() {
    let mut stage = Stage::new(config());
    let heard = sent_again(&mut stage, &[0, 2]);
    for to in 0..4 {
        assert_eq!(kinds(&heard, to).len(), 2, "the query and the operation, once for both keys");
    }
    assert!(heard.iter().all(|(_, h)| h.signed == (h.asked[0].kind == RequestKind::Ordered)));
}

#[test]
fn p40_p44_new_keys_of_one_replica_are_bounded_in_time() {
    let mut stage = Stage::new(config());
    stage.open(4);
    let quota = |stage: &mut Stage, boots: std::ops::Range<u64>| {
        boots.for_each(|boot| stage.restart(2, boot));
        stage.turn();
        stage.endpoint.stats().rejects.auth.of(Reject::SignatureQuota)
    };
    assert_eq!(quota(&mut stage, 1..9), 0);
    assert_eq!(quota(&mut stage, 9..11), 2);
    stage.restart(1, 1);
    assert_eq!(quota(&mut stage, 0..0), 2, "each replica has its own");
    stage.pass(100 * MS - Duration::from_nanos(1));
    assert_eq!(quota(&mut stage, 11..12), 3);
    stage.pass(Duration::from_nanos(1));
    assert_eq!(quota(&mut stage, 12..20), 3);
    assert_eq!(quota(&mut stage, 20..21), 4);
}
