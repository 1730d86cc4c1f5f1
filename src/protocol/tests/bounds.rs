//! Queues and buffers (P20, P21, P44).

use super::*;

#[test]
fn p44_a_batch_too_large_to_be_handed_on_gets_no_vote() {
    let packs: Vec<Pack> = (0..5).map(|t| pack(1, t, 1_000_000)).collect();
    let p = pre_prepare(0, 1, 1, &packs);
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, true);
    assert!(backup.took().is_empty());
    assert_eq!(backup.core.counters().oversized, 1);
    assert_eq!(backup.caught(0), [("oversized_batch", 1)]);

    let mut queue = Queue::new(8 << 10);
    for pack in packs {
        queue.push(pack, false, 32 << 20).unwrap();
    }
    assert_eq!(queue.take(8, 100, 1 << 20).len(), 3, "a primary makes none");
}

#[test]
fn p44_the_largest_batch_gets_a_vote_and_one_above_it_none() {
    let votes = |packs: &[Pack]| {
        let mut backup = One::new(1);
        backup.pre_prepare(0, &pre_prepare(0, 1, 1, packs), true);
        let voted = backup.took().len() == 1;
        assert_eq!(backup.core.counters().oversized, u64::from(!voted));
        voted
    };
    let framing = pack(1, 1, 0).encoded().len();
    let mut left = crate::limits::BATCH_BYTES_MAX;
    let mut bytes = Vec::new();
    while left > 0 {
        let size = left.min(1 << 20);
        bytes.push(pack(1, bytes.len() as u64, size - framing));
        left -= size;
    }
    assert!(votes(&bytes));
    bytes.push(pack(1, 99, 0));
    assert!(!votes(&bytes));

    let full = |client: u64| {
        let mut builder = PackBuilder::new(ClientId(client), EndpointId(client));
        for t in 0..crate::limits::PACK_REQUESTS_MAX as u64 {
            builder.push(&Request { session: SessionId(client), t, low: 0, kind: RequestKind::Ordered, op: b"" });
        }
        builder.finish(false, |_, writer| writer.write(Proof::Vector(&[[0; 8]; 4])))
    };
    let most = crate::limits::BATCH_REQUESTS_MAX / crate::limits::PACK_REQUESTS_MAX;
    let mut requests: Vec<Pack> = (1..=most as u64).map(full).collect();
    assert!(votes(&requests));
    requests.push(pack(99, 1, 0));
    assert!(!votes(&requests));
}

#[test]
fn p20_messages_just_above_the_high_watermark_are_kept_within_bounds() {
    let mut backup = One::with(1, |c| c.ahead_max = 2);
    let n = L + 1;
    let p = pre_prepare(0, n, n, &[pack(1, n, 8)]);
    backup.pre_prepare(0, &p, true);
    for other in [2, 3] {
        backup.message(other, Message::Prepare(vote(n, p.digest())));
    }
    backup.message(2, Message::Prepare(vote(n + 1, p.digest()))).message(2, Message::Prepare(vote(n + 2, p.digest())));
    assert_eq!(backup.core.counters().outside_window, 1, "the third message of one peer does not fit");
    for n in 1..=L {
        backup.agree(n);
    }
    for from in [0, 1, 2] {
        backup.checkpoint(from, K, 7);
    }
    assert_eq!(backup.core.last_stable(), SeqNum(K));
    assert_eq!(backup.core.last_prepared(), SeqNum(n), "what was kept was handled");
}

#[test]
fn p21_a_client_fills_only_its_own_quota() {
    let mut primary = One::with(0, |c| {
        c.client_bytes_max = 2 << 20;
        c.pipeline_max = 1;
    });
    for t in 0..40 {
        primary.request(pack(1, t, 100_000));
    }
    assert!(primary.core.counters().over_quota > 0);
    let before = primary.core.waiting();
    primary.request(pack(2, 1, 100_000));
    assert_eq!(primary.core.waiting(), before + 1, "another client is not affected");
    primary.request(pack(2, 1, 100_000));
    assert_eq!(primary.core.counters().duplicate, 1);
}

#[test]
fn p21_clients_are_served_in_turn() {
    let mut queue = Queue::new(8 << 10);
    for t in 0..5 {
        queue.push(pack(1, t, 8), false, 1 << 20).unwrap();
    }
    queue.push(pack(2, 0, 8), false, 1 << 20).unwrap();
    let taken = queue.take(3, 100, 1 << 20);
    assert_eq!(taken.iter().map(|p| p.client().0).collect::<Vec<_>>(), [1, 2, 1]);
    assert_eq!(queue.requests(), 3);
    let oversized = queue.take(8, 100, 1);
    assert_eq!(oversized.len(), 1, "at least one, whatever the bound");
}

#[test]
fn p21_the_duplicate_filter_forgets_what_is_executed_if_execution_asks_for_it_again() {
    // A refusal is not kept: if its reply is lost, only ordering the request again brings another.
    let mut primary = One::new(0);
    let refused = pack(1, 1, 8);
    let signed = |pack: &Pack| Event::Request { pack: from_client(pack.clone()), signed: true };
    primary.request(refused.clone()).event(signed(&refused));
    assert_eq!(primary.core.last_proposed, SeqNum(1));
    assert_eq!(primary.core.counters().duplicate, 1, "it is under way");
    let d = primary.core.log.get(SeqNum(1)).unwrap().pre_prepare.unwrap().1;
    for backup in [1, 2] {
        primary.message(backup, Message::Prepare(vote(1, d))).message(backup, Message::Commit(vote(1, d)));
    }
    assert_eq!(primary.core.last_executed(), SeqNum(1));
    primary.request(refused.clone());
    assert_eq!(primary.core.last_proposed, SeqNum(1), "a copy of the first datagram proves nothing");
    primary.event(signed(&refused));
    assert_eq!(primary.core.last_proposed, SeqNum(2));
}
