//! Three phases in one view (P3, P10-P19, P41, P52).

use super::*;

#[test]
fn p10_an_idle_primary_proposes_at_once_and_a_busy_one_batches() {
    let mut primary = One::new(0);
    primary.request(pack(1, 1, 8));
    assert!(matches!(&primary.took()[..], [Message::PrePrepare(p)] if p.n == SeqNum(1) && p.packs.len() == 1));
    primary.request(pack(1, 2, 8)).request(pack(2, 1, 8)).request(pack(3, 1, 8));
    assert!(primary.took().is_empty(), "the pipeline is not idle: they wait");
    let first = primary.core.log.get(SeqNum(1)).unwrap().pre_prepare.unwrap().1;
    primary.message(1, Message::Prepare(vote(1, first))).message(2, Message::Prepare(vote(1, first)));
    let sent = primary.took();
    let [Message::Commit(_), Message::PrePrepare(p)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(p.packs.len(), 3, "all that waited, and the commit rides with it");
}

#[test]
fn p10_never_more_than_pipeline_max_uncommitted_and_never_above_the_high_watermark() {
    let mut primary = One::with(0, |c| c.pipeline_max = 3);
    for client in 1..=8 {
        primary.request(pack(client, 1, 8));
        // Prepared, never committed: idle each time, but in flight.
        let n = primary.core.last_proposed.0;
        let d = primary.core.log.get(SeqNum(n)).unwrap().pre_prepare.unwrap().1;
        primary.message(1, Message::Prepare(vote(n, d))).message(2, Message::Prepare(vote(n, d)));
    }
    assert_eq!(primary.core.last_proposed, SeqNum(3));

    let mut primary = One::new(0);
    for other in 1..=3 {
        primary.message(other, Message::Status(Status { wants: false, ..status(100, 100) }));
    }
    for t in 1..=40 {
        primary.request(pack(1, t, 8));
        let n = primary.core.last_proposed.0;
        let d = primary.core.log.get(SeqNum(n)).unwrap().pre_prepare.unwrap().1;
        for backup in [1, 2] {
            primary.message(backup, Message::Prepare(vote(n, d))).message(backup, Message::Commit(vote(n, d)));
        }
    }
    assert_eq!(primary.core.last_proposed, SeqNum(L), "nothing above H without a stable checkpoint");
    assert!(primary.core.waiting() > 0);
}

#[test]
fn p11_a_proposal_carries_packs_and_rising_choices() {
    let mut primary = One::new(0);
    primary.request(pack(1, 1, 8));
    let sent = primary.took();
    let [Message::PrePrepare(first)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((first.view, first.n), (View(0), SeqNum(1)));
    assert_eq!(first.choice.time, primary.now.0);
    let d = first.digest();
    primary.message(1, Message::Prepare(vote(1, d))).message(2, Message::Prepare(vote(1, d)));
    primary.took();
    primary.request(pack(1, 2, 8));
    let sent = primary.took();
    let Some(Message::PrePrepare(second)) = sent.iter().find(|m| matches!(m, Message::PrePrepare(_))) else {
        panic!("{sent:?}")
    };
    assert!(second.choice.time > first.choice.time, "the clock stood still, agreed time does not");
    assert_ne!(second.choice.seed, first.choice.seed);
}

#[test]
fn p21_a_full_log_goes_on_to_the_next_checkpoint_and_no_further() {
    // A checkpoint's worth of batches fills it to the last byte, or the one before does.
    a_full_log_goes_on_to_the_next_checkpoint(K);
    a_full_log_goes_on_to_the_next_checkpoint(K - 1);
}

fn a_full_log_goes_on_to_the_next_checkpoint(batches: u64) {
    let full = batches as usize * Batch::new(Choice::default(), vec![pack(1, 1, 2_000)]).bytes();
    let small = |c: &mut Config| (c.batch_bytes_max, c.inline_max, c.log_bytes_max) = (4_096, 4_096, full);
    let mut primary = One::with(0, small);
    let propose = |primary: &mut One, t: u64| {
        primary.request(pack(1, t, 2_000));
        let sent = primary.took();
        let digest = sent.iter().find_map(|m| if let Message::PrePrepare(p) = m { Some(p.digest()) } else { None })?;
        for from in [1, 2] {
            primary.message(from, Message::Prepare(vote(t, digest)));
        }
        for from in [1, 2] {
            primary.message(from, Message::Commit(vote(t, digest)));
        }
        Some(digest)
    };
    for n in 1..=K {
        assert_eq!(primary.core.log_bytes(), (n as usize - 1) * full / batches as usize);
        assert!(propose(&mut primary, n).is_some(), "{n}: the next checkpoint lies at {K}");
    }
    assert_eq!(propose(&mut primary, K + 1), None);
    primary.took();
    for from in 0..3 {
        primary.checkpoint(from, K, 1);
    }
    assert!(primary.took().iter().any(|m| matches!(m, Message::PrePrepare(p) if p.n == SeqNum(K + 1))));
}

#[test]
fn p03_large_packs_are_proposed_by_digest_and_fetched_when_missing() {
    let large = pack(1, 1, 20_000);
    let mut primary = One::new(0);
    primary.request(large.clone());
    let sent = primary.took();
    let [Message::PrePrepare(p)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(p.packs, [Proposed::ByDigest(large.digest())]);

    // A backup that has the body from the client votes; one that has not asks for it.
    let mut lucky = One::new(1);
    lucky.request(large.clone()).event(Event::PrePrepare(from_replica(0, sent[0].clone()), vec![]));
    assert!(matches!(&lucky.took()[..], [Message::Prepare(_)]));

    let mut unlucky = One::new(2);
    unlucky.event(Event::PrePrepare(from_replica(0, sent[0].clone()), vec![]));
    assert!(unlucky.took().is_empty(), "the client's own copy may be on its way");
    unlucky.pass(Duration::from_millis(8));
    assert_eq!(unlucky.took(), [Message::FetchPack(large.digest())]);
    // Whoever holds it sends it.
    primary.message(2, Message::FetchPack(large.digest()));
    assert_eq!(primary.took(), [Message::Relay(large.clone())]);
    // If its proof is good here, it comes as a request, else as a body that others must vouch for.
    unlucky.event(Event::Body { pack: large.clone(), authentic: false });
    assert!(unlucky.took().is_empty());
    unlucky.message(1, Message::Prepare(vote(1, p.digest())));
    assert!(matches!(&unlucky.took()[..], [Message::Prepare(_)]));

    // A signed one, of which nothing would execute any more, is held for the batch all the same.
    let mut late = One::new(3);
    late.event(Event::PrePrepare(from_replica(0, sent[0].clone()), vec![]));
    for unasked in [0, 1] {
        late.event(Event::Body { pack: large.clone(), authentic: false });
        assert!(late.took().is_empty());
        assert_eq!(late.core.counters().unasked, unasked);
    }
    late.event(Event::Body { pack: large.clone(), authentic: true });
    assert!(matches!(&late.took()[..], [Message::Prepare(_)]));

    // What nobody named is not kept.
    let mut bored = One::new(3);
    bored.event(Event::Body { pack: large.clone(), authentic: true });
    assert!(bored.core.bodies.get(&large.digest()).is_none());
}

#[test]
fn p03_a_missing_body_is_asked_for_again_after_a_while() {
    let large = pack(1, 1, 20_000);
    let p = PrePrepare { packs: vec![Proposed::ByDigest(large.digest())], ..pre_prepare(0, 1, 1, &[]) };
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, false).pass(Duration::from_millis(4));
    assert!(backup.took().is_empty());
    // Each time after twice as long as the last, whatever else arrives meanwhile.
    for (t, wait) in (2..).zip([1, 20, 40, 80, 160, 160]) {
        backup.request(pack(2, t, 20_000));
        backup.pass(Duration::from_millis(wait) - Duration::from_micros(1));
        assert!(backup.took().is_empty());
        backup.pass(Duration::from_micros(1));
        assert_eq!(backup.took(), [Message::FetchPack(large.digest())]);
    }
}

#[test]
fn p03_a_pack_of_inline_max_is_proposed_whole() {
    let pack = pack(1, 1, 100);
    let exactly = |c: &mut Config| c.inline_max = pack.encoded().len();
    let mut primary = One::with(0, exactly);
    primary.request(pack.clone());
    assert!(matches!(&primary.took()[..], [Message::PrePrepare(p)] if p.packs == [Proposed::Inline(pack.clone())]));
    let mut backup = One::with(1, exactly);
    backup.request(pack.clone());
    assert!(backup.core.bodies.get(&pack.digest()).is_none(), "so no backup keeps it");
}

#[test]
fn p10_a_full_batch_waits_for_nothing() {
    // Two packs are the bytes of a batch; of requests it takes as many as one pack may hold.
    let size = pack(1, 1, 2_000).encoded().len();
    let small = |c: &mut Config| (c.batch_bytes_max, c.inline_max) = (2 * (4 + size), size);
    let mut primary = One::with(0, small);
    primary.request(pack(1, 1, 2_000)).request(pack(1, 2, 2_000));
    assert_eq!(primary.core.last_proposed, SeqNum(1), "the first is not prepared");
    primary.request(pack(1, 3, 2_000));
    assert_eq!(primary.core.last_proposed, SeqNum(2));

    let most = crate::limits::PACK_REQUESTS_MAX as u64;
    let mut primary = One::with(0, |c| (c.batch_requests_max, c.datagram_max) = (most as usize, 1_452));
    primary.request(pack(1, 0, 8));
    for t in 1..most {
        primary.request(pack(1, t, 8));
    }
    assert_eq!(primary.core.last_proposed, SeqNum(1));
    primary.request(pack(1, most, 8));
    assert_eq!(primary.core.last_proposed, SeqNum(2));
}

#[test]
fn p10_a_batch_fits_a_datagram_where_datagrams_are_large() {
    let proposed = |datagram_max: usize| {
        let mut primary = One::with(0, |c| c.datagram_max = datagram_max);
        primary.request(pack(1, 0, 8));
        primary.took();
        for t in 1..40 {
            primary.request(pack(1, t, 2_000));
        }
        let sent = primary.took();
        let proposals = sent.iter().filter_map(|m| if let Message::PrePrepare(p) = m { Some(p) } else { None });
        let lens = |m: &PrePrepare| {
            let mut frames = crate::wire::FrameBuffer::default();
            assert!(frames.push(&Message::PrePrepare(m.clone())));
            (m.packs.len(), frames.len())
        };
        proposals.map(lens).collect::<Vec<_>>()
    };
    let (packs, len) = proposed(20_000)[0];
    assert!(len < 20_000 - 200 && len > 15_000, "{packs} packs, {len} bytes");
    assert!(proposed(1_452).is_empty(), "nothing is full that is cut in any case");
}

#[test]
fn p10_p21_a_primary_runs_no_further_ahead_of_execution_than_its_pipeline() {
    let mut primary = One::new(0);
    primary.lags = true;
    for t in 1..=L {
        primary.request(pack(1, t, 8));
        let n = primary.core.last_proposed.0;
        let d = primary.core.log.get(SeqNum(n)).unwrap().pre_prepare.unwrap().1;
        for backup in [1, 2] {
            primary.message(backup, Message::Prepare(vote(n, d))).message(backup, Message::Commit(vote(n, d)));
        }
    }
    assert_eq!((primary.core.last_executed(), primary.core.last_proposed), (SeqNum(8), SeqNum(8)));
    primary.event(executed(1));
    assert_eq!(primary.core.last_proposed, SeqNum(9));
    assert_eq!((primary.core.counters().proposed, primary.core.counters().committed), (9, 8));
}

#[test]
fn p10_what_has_large_results_comes_in_small_batches() {
    let mut primary = One::new(0);
    let mut proposed = 0;
    let mut batch = |primary: &mut One, result_bytes: usize| {
        // One is under way; the others wait for it, or for a full batch.
        for _ in 0..20 {
            proposed += 1;
            primary.request(pack(1, proposed, 8));
        }
        let mut sizes = Vec::new();
        while primary.core.last_executed() < primary.core.last_proposed {
            let n = primary.core.last_executed().next().0;
            let slot = primary.core.log.get(SeqNum(n)).unwrap();
            let d = slot.pre_prepare.unwrap().1;
            let requests = slot.body(d).unwrap().packs().len();
            sizes.push(requests);
            for backup in [1, 2] {
                primary.message(backup, Message::Prepare(vote(n, d))).message(backup, Message::Commit(vote(n, d)));
            }
            let result_bytes = result_bytes * requests;
            primary.event(Event::Executed(Executed { n: SeqNum(n), requests, result_bytes }));
        }
        sizes.into_iter().max()
    };
    assert_eq!(batch(&mut primary, 8), Some(19));
    assert_eq!(batch(&mut primary, 1 << 20), Some(19), "nobody knew");
    assert_eq!(batch(&mut primary, 1 << 20), Some(4));
}

#[test]
fn p12_a_primary_hands_on_only_proofs_that_it_checked() {
    let under = |proof: u8| {
        let op = vec![0; 20_000];
        let request = Request { session: SessionId(1), t: 1, low: 0, kind: RequestKind::Ordered, op: &op };
        let mut builder = PackBuilder::new(ClientId(1), EndpointId(1));
        builder.push(&request);
        builder.finish(false, |_, writer| writer.write(Proof::Vector(&[[proof; 8]; 4])))
    };
    let (bad, good) = (under(1), under(2));
    assert_eq!(bad.digest(), good.digest());
    // In view 0 it accepts the pack because others vouch for it.
    let mut next = One::new(1);
    let p = pre_prepare(0, 1, 1, std::slice::from_ref(&bad));
    next.pre_prepare(0, &p, false);
    next.message(2, Message::Prepare(vote(1, p.digest())));
    next.message(3, Message::Prepare(vote(1, p.digest())));
    assert!(matches!(&next.took()[..], [Message::Prepare(_), ..]));
    // In view 1 it proposes the same requests again, under the proof that it checked.
    next.follow(1);
    next.request(good.clone());
    assert!(next.took().iter().any(|m| matches!(m, Message::PrePrepare(_))));
    next.message(2, Message::FetchPack(good.digest()));
    assert_eq!(next.took(), [Message::Relay(good)]);
}

#[test]
fn p12_a_backup_votes_only_for_what_is_authentic_for_itself_or_vouched_for() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, false);
    assert!(backup.took().is_empty(), "own vector entry invalid: no vote");
    backup.message(3, Message::Prepare(vote(1, Digest([7; 32]))));
    assert!(backup.took().is_empty(), "a vote for something else vouches for nothing");
    backup.message(2, Message::Prepare(vote(1, p.digest())));
    assert!(matches!(&backup.took()[..], [Message::Prepare(v), ..] if v.digest == p.digest()), "f others vouch");
}

#[test]
fn p12_a_proof_that_comes_later_lets_the_candidate_pass() {
    let (first, second, third) = (pack(1, 1, 8), pack(2, 1, 8), pack(3, 1, 8));
    let p = pre_prepare(0, 1, 1, &[first.clone(), second.clone(), third.clone()]);
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, false);
    backup.event(Event::Body { pack: first.clone(), authentic: false });
    assert_eq!(backup.core.counters().unasked, 1);
    for lacking in [first, second] {
        backup.event(Event::Body { pack: lacking, authentic: true });
        assert!(backup.took().is_empty(), "another lacks one still");
    }
    backup.event(Event::Body { pack: third, authentic: true });
    assert_eq!(backup.took(), [Message::Prepare(vote(1, p.digest()))], "signed by the client, and sent to all");
    assert_eq!(backup.core.counters().unasked, 1);

    // So does the pre-prepare that comes again, with a proof that its first copy lacked.
    let mut backup = One::new(1);
    let comes = |unproven| Event::PrePrepare(from_replica(0, Message::PrePrepare(p.clone())), vec![unproven]);
    let [first, second] = [0, 1].map(|i| p.packs[i].digest());
    backup.event(comes(second)).event(comes(second));
    assert!(backup.took().is_empty());
    backup.event(comes(first));
    assert_eq!(backup.took(), [Message::Prepare(vote(1, p.digest()))]);
}

#[test]
fn p12_a_pre_prepare_must_come_from_the_primary_in_view_and_window() {
    let mut backup = One::new(1);
    backup.pre_prepare(2, &pre_prepare(0, 1, 1, &[]), true);
    backup.pre_prepare(0, &pre_prepare(2, 1, 1, &[]), true);
    backup.pre_prepare(0, &pre_prepare(0, 0, 1, &[]), true);
    backup.pre_prepare(0, &pre_prepare(0, 2 * L + 1, 1, &[]), true);
    assert!(backup.took().is_empty());
    let counters = backup.core.counters();
    assert_eq!((counters.not_entitled, counters.other_view, counters.outside_window), (1, 1, 2));
    assert_eq!((backup.caught(0), backup.caught(2)), (vec![], vec![("not_entitled", 1)]));
}

#[test]
fn p12_choices_that_the_service_refuses_get_no_vote() {
    let mut backup = One::with(1, |c| c.check = |choice, _| choice.seed != 0);
    backup.pre_prepare(0, &pre_prepare(0, 1, 1, &[]), true);
    assert!(backup.took().is_empty());
    assert_eq!(backup.core.counters().bad_choice, 1);
    assert_eq!(backup.caught(0), [("bad_choice", 1)]);
}

#[test]
fn p14_one_prepare_for_one_place_and_equivocation_is_noticed() {
    let (a, b) = (pre_prepare(0, 1, 1, &[pack(1, 1, 8)]), pre_prepare(0, 1, 1, &[pack(1, 2, 8)]));
    let mut backup = One::new(1);
    backup.pre_prepare(0, &a, true).pre_prepare(0, &b, true).pre_prepare(0, &a, true);
    let said = backup.took();
    assert_eq!(said[0], Message::Prepare(vote(1, a.digest())));
    assert!(matches!(said[1..], [Message::ViewChange(_)]), "{said:?}");
    assert_eq!(backup.notices, [Notice::Equivocation { n: SeqNum(1) }, Notice::ViewChange(View(1))]);
    assert_eq!(backup.caught(0), [("equivocation", 1)]);
    assert_eq!(backup.core.counters().contradiction, 1);
    let mut backup = One::new(1);
    for (vote, lies) in [(vote(1, a.digest()), 0), (vote(1, a.digest()), 0), (vote(1, b.digest()), 1)] {
        backup.message(2, Message::Prepare(vote)).message(3, Message::Commit(vote));
        assert_eq!([2, 3].map(|id| backup.caught(id).len()), [lies; 2]);
    }
    assert_eq!([2, 3].map(|id| backup.caught(id)), [[("contradictory_vote", 1)]; 2]);
    assert_eq!(backup.core.counters().contradiction, 2);
}

#[test]
fn p15_prepared_needs_2f_backups_and_committed_a_quorum_of_commits() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let d = p.digest();
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, true);
    backup.message(0, Message::Prepare(vote(1, d)));
    assert_eq!(backup.core.last_prepared(), SeqNum(0), "the primary's PREPARE counts for nothing");
    assert_eq!(backup.core.counters().not_entitled, 1);
    backup.message(2, Message::Prepare(vote(1, Digest([1; 32]))));
    backup.message(2, Message::Prepare(vote(1, d)));
    assert_eq!(backup.core.last_prepared(), SeqNum(0), "2's first vote was for another batch and stands");
    backup.message(3, Message::Prepare(vote(1, d)));
    assert_eq!(backup.core.last_prepared(), SeqNum(1));
    assert_eq!(backup.did, [Did::Tentative(1)]);
    backup.message(0, Message::Commit(vote(1, d))).message(0, Message::Commit(vote(1, d)));
    assert_eq!(backup.core.last_executed(), SeqNum(0), "two commits, own included, are no quorum");
    backup.message(2, Message::Commit(vote(1, d))).message(3, Message::Commit(vote(1, d)));
    assert_eq!(backup.did, [Did::Tentative(1), Did::Committed(1)]);
    assert_eq!(backup.core.counters().committed, 1, "a fourth commits it no second time");
}

#[test]
fn p15_of_seven_four_backups_prepare_and_five_replicas_commit() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let mut backup = One::with(1, |c| c.size = ClusterSize::of(7).unwrap());
    backup.pre_prepare(0, &p, true);
    for from in [2, 3, 4] {
        assert_eq!(backup.core.last_prepared(), SeqNum(0));
        backup.message(from, Message::Prepare(vote(1, p.digest())));
    }
    assert_eq!(backup.core.last_prepared(), SeqNum(1));
    for from in [0, 2, 3, 4] {
        assert_eq!(backup.core.last_executed(), SeqNum(0));
        backup.message(from, Message::Commit(vote(1, p.digest())));
    }
    assert_eq!(backup.core.last_executed(), SeqNum(1));
}

#[test]
fn p15_votes_may_overtake_the_pre_prepare() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let d = p.digest();
    let mut backup = One::new(1);
    for from in [2, 3] {
        backup.message(from, Message::Prepare(vote(1, d))).message(from, Message::Commit(vote(1, d)));
    }
    assert!(backup.did.is_empty());
    backup.pre_prepare(0, &p, true);
    assert_eq!(backup.did, [Did::Committed(1)]);
}

#[test]
fn p16_at_most_one_batch_is_tentative_and_order_is_strict() {
    let mut backup = One::new(1);
    let mut digests = Vec::new();
    for n in [2, 3, 1] {
        let p = pre_prepare(0, n, n, &[pack(1, n, 8)]);
        digests.push((n, p.digest()));
        backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(n, p.digest())));
    }
    assert_eq!(backup.did, [Did::Tentative(1)], "2 and 3 are prepared but wait for 1 to commit");
    for (n, d) in digests {
        backup.message(0, Message::Commit(vote(n, d))).message(2, Message::Commit(vote(n, d)));
    }
    assert_eq!(backup.did, [Did::Tentative(1), Did::Committed(1), Did::Committed(2), Did::Committed(3)]);
}

#[test]
fn p18_a_query_sees_everything_ever_prepared_here() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let mut backup = One::new(1);
    let query = || Event::Query(from_client(pack(5, 1, 4)));
    backup.event(query());
    backup.pre_prepare(0, &p, true);
    backup.event(query());
    assert_eq!(backup.queries, [(SeqNum(0), false); 2], "what is only proposed need not be seen");
    backup.message(2, Message::Prepare(vote(1, p.digest())));
    backup.took();
    backup.event(query());
    assert_eq!(backup.queries[2..], [(SeqNum(1), true)], "the tentative state will do");
    assert!(backup.took().is_empty(), "P52: nothing waits for the commit");
    let next = pre_prepare(0, 2, 2, &[pack(1, 2, 8)]);
    backup.pre_prepare(0, &next, false);
    backup.took();
    backup.event(query());
    assert_eq!(backup.queries[3..], [(SeqNum(1), false)], "more is under way");
    assert_eq!(backup.took(), [Message::Commit(vote(1, p.digest()))], "P52: a query waits, so the commit leaves");
    backup.message(0, Message::Commit(vote(1, p.digest()))).message(2, Message::Commit(vote(1, p.digest())));
    backup.took();
    backup.event(query());
    assert_eq!(backup.queries[4..], [(SeqNum(1), false)]);
    assert!(backup.took().is_empty(), "everything prepared here is executed: it waits for nothing");
}

#[test]
fn p19_a_vote_for_a_time_in_the_future_is_delayed_not_refused() {
    let mut backup = One::new(1);
    let ahead = backup.now.0 + 1_500_000_000;
    backup.pre_prepare(0, &pre_prepare(0, 1, ahead, &[pack(1, 1, 8)]), true);
    assert!(backup.took().is_empty());
    backup.pass(Duration::from_millis(400));
    assert!(backup.took().is_empty(), "still 1.1 s ahead, and the skew allowed is 1 s");
    backup.pass(Duration::from_millis(200));
    assert!(matches!(&backup.took()[..], [Message::Prepare(_)]));
    assert_eq!(backup.caught(0), [], "nobody is blamed for a clock");
    let mut backup = One::new(1);
    let ahead = backup.now.0 + 1_000_000_000;
    backup.pre_prepare(0, &pre_prepare(0, 1, ahead, &[pack(1, 1, 8)]), true);
    assert!(matches!(&backup.took()[..], [Message::Prepare(_)]), "just within the skew");
}

#[test]
fn p52_a_commit_waits_for_a_ride_but_not_for_long() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let d = p.digest();
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(1, d)));
    assert_eq!(backup.took(), [Message::Prepare(vote(1, d))], "the commit is held");
    let next = pre_prepare(0, 2, 2, &[pack(1, 2, 8)]);
    backup.pre_prepare(0, &next, true);
    let sent = backup.took();
    assert_eq!(sent, [Message::Prepare(vote(2, next.digest())), Message::Commit(vote(1, d))], "it rides");
    backup.message(2, Message::Prepare(vote(2, next.digest())));
    backup.pass(Duration::from_micros(250));
    assert_eq!(backup.took(), [Message::Commit(vote(2, next.digest()))], "alone, after commit_delay");
}

#[test]
fn p52_a_checkpoint_does_not_wait() {
    let mut backup = One::new(1);
    for n in 1..K {
        backup.agree(n);
    }
    backup.pass(Duration::from_millis(1)).took();
    let p = pre_prepare(0, K, K, &[pack(9, K, 8)]);
    backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(K, p.digest())));
    let sent = backup.took();
    assert!(sent.contains(&Message::Commit(vote(K, p.digest()))), "{sent:?}");
}

#[test]
fn p41_no_vote_leaves_before_it_is_durable() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let d = p.digest();
    let mut backup = One::new(1);
    backup.slow_disk = true;
    backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(1, d))).message(3, Message::Prepare(vote(1, d)));
    assert!(backup.took().is_empty());
    assert!(backup.did.is_empty());
    assert_eq!(backup.core.last_prepared(), SeqNum(0), "its own PREPARE is one that it needs");
    let token = backup.tokens.remove(0);
    backup.event(Event::Persisted(token));
    assert_eq!(backup.took(), [Message::Prepare(vote(1, d))]);
    backup.pass(Duration::from_millis(1));
    assert!(backup.took().is_empty() && backup.did.is_empty(), "no commit, no tentative reply before the P entry");
    let token = backup.tokens.remove(0);
    backup.event(Event::Persisted(token)).pass(Duration::from_millis(1));
    assert_eq!(backup.took(), [Message::Commit(vote(1, d))]);
    assert_eq!(backup.did, [Did::Tentative(1)]);
}

#[test]
fn p28_p41_what_is_durable_too_late_is_not_said() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let votes = |one: &mut One| {
        one.pass(Duration::from_millis(1));
        one.took().into_iter().filter(|m| matches!(m, Message::Prepare(_) | Message::Commit(_))).collect::<Vec<_>>()
    };
    // Its PREPARE waits for the disk, or its COMMIT.
    for prepared in [false, true] {
        let waiting = || {
            let mut backup = One::new(1);
            backup.slow_disk = true;
            backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(1, p.digest())));
            if prepared {
                let token = backup.tokens.remove(0);
                backup.event(Event::Persisted(token));
                assert_eq!(votes(&mut backup), [Message::Prepare(vote(1, p.digest()))]);
            }
            let token = backup.tokens.remove(0);
            (backup, Event::Persisted(token))
        };
        let (mut left, durable) = waiting();
        left.leave(&[0, 2], 3).event(durable);
        assert_eq!(left.core.view(), View(3));
        assert_eq!(votes(&mut left), [], "of a view that it has left");

        let (mut fetched, durable) = waiting();
        for other in [0, 2, 3] {
            fetched.checkpoint(other, K, 7);
        }
        fetched.pass(Duration::from_millis(101)).event(Event::Transferred(SeqNum(K))).event(durable);
        assert_eq!(fetched.core.last_stable(), SeqNum(K));
        assert_eq!(votes(&mut fetched), [], "below the low watermark");
    }
}

#[test]
fn p14_what_is_said_again_is_what_was_said() {
    let mut said = Vec::new();
    let mut backup = One::new(3);
    let (a, b) = (pre_prepare(0, 1, 1, &[pack(1, 1, 8)]), pre_prepare(0, 1, 1, &[pack(2, 1, 8)]));
    backup.pre_prepare(0, &a, true).message(2, Message::Prepare(vote(1, a.digest())));
    for _ in 0..3 {
        // Votes for another batch, more of them than f can send, move nothing of what was said.
        for from in [1, 2] {
            backup.message(from, Message::Prepare(vote(1, b.digest())));
            backup.message(from, Message::Commit(vote(1, b.digest())));
        }
        backup.pass(Duration::from_millis(10)).message(1, Message::Status(status(0, 0)));
        said.extend(backup.took().into_iter().filter(|m| matches!(m, Message::Prepare(_) | Message::Commit(_))));
    }
    let once = [Message::Prepare(vote(1, a.digest())), Message::Commit(vote(1, a.digest()))];
    assert!(said.len() >= 6 && said.iter().all(|message| once.contains(message)), "{said:?}");
}

#[test]
fn p15_a_commit_counts_for_the_batch_that_it_names() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let d = p.digest();
    let mut backup = One::new(3);
    backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(1, d)));
    for from in [0, 1] {
        backup.message(from, Message::Commit(vote(1, Digest([1; 32]))));
    }
    assert_eq!(backup.core.last_executed(), SeqNum(0));
    // A replica's first COMMIT stands, so 2's is the only other one.
    backup.message(0, Message::Commit(vote(1, d))).message(2, Message::Commit(vote(1, d)));
    assert_eq!(backup.core.last_executed(), SeqNum(0));

    // q commits are not enough where the batch is not prepared.
    let mut early = One::new(3);
    early.pre_prepare(0, &p, true);
    for from in [0, 1, 2] {
        early.message(from, Message::Commit(vote(1, d)));
    }
    assert!(early.did.is_empty());
    early.message(1, Message::Prepare(vote(1, d)));
    assert_eq!(early.did, [Did::Committed(1)]);
}

#[test]
fn p15_a_primary_prepares_with_2f_backups_and_sends_no_prepare() {
    let mut primary = One::new(0);
    primary.request(pack(1, 1, 8));
    let d = primary.core.log.get(SeqNum(1)).unwrap().pre_prepare.unwrap().1;
    primary.message(1, Message::Prepare(vote(1, d)));
    assert_eq!(primary.core.last_prepared(), SeqNum(0), "its own word is the pre-prepare");
    primary.took();
    primary.message(2, Message::Prepare(vote(1, d)));
    assert_eq!(primary.core.last_prepared(), SeqNum(1));
    assert!(primary.took().is_empty(), "P52: its commit has nothing to ride on");
    primary.pass(Duration::from_millis(100));
    assert!(!primary.took().iter().any(|m| matches!(m, Message::Prepare(_))));
}

#[test]
fn p52_a_commit_waits_for_no_prepare_that_is_blocked() {
    let (p, blocked) = (pre_prepare(0, 1, 1, &[pack(1, 1, 8)]), pre_prepare(0, 2, 2, &[pack(1, 2, 8)]));
    let mut backup = One::new(3);
    backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(1, p.digest())));
    backup.pre_prepare(0, &blocked, false);
    assert_eq!(backup.took(), [Message::Prepare(vote(1, p.digest()))], "nothing to ride on");
    backup.pass(Duration::from_micros(199));
    assert!(backup.took().is_empty());
    backup.pass(Duration::from_micros(2));
    assert_eq!(backup.took(), [Message::Commit(vote(1, p.digest()))]);
    // And where a proposal waits already, at once.
    let mut behind = One::new(3);
    behind.pre_prepare(0, &blocked, false).pre_prepare(0, &p, true);
    behind.message(2, Message::Prepare(vote(1, p.digest())));
    assert_eq!(behind.took(), [Message::Prepare(vote(1, p.digest())), Message::Commit(vote(1, p.digest()))]);
}
