//! Replicas that restarted without memory, and what others do for them (P42, P50).

use std::sync::Arc;

use super::*;
use crate::wire::StableAnswer;

fn view_change(replica: u8, boot: u64, view: u64) -> Arc<Signed<ViewChange>> {
    let (replica, view, stable) = (ReplicaId(replica), View(view), SeqNum(0));
    let (proof, prepared, pre_prepared) = Default::default();
    Arc::new(Signed::new(ViewChange { replica, boot, view, stable, proof, prepared, pre_prepared }, |_| [0; 64]))
}

impl One {
    /// Replica `me` after a restart, in its second life.
    pub(super) fn reborn(me: u8) -> One {
        One::reborn_among(4, me)
    }

    /// Among `n`; it has asked for the first time.
    fn reborn_among(n: usize, me: u8) -> One {
        let mut reborn = One::with(me, |c| {
            c.size = ClusterSize::of(n).unwrap();
            (c.boot, c.forgetful) = (2, true);
        });
        reborn.pass(Duration::ZERO);
        assert_eq!(reborn.took(), [Message::QueryStable(1)]);
        reborn
    }

    fn claim(&mut self, from: u8, claim: Claim) -> &mut One {
        self.event(Event::Claim(from_replica(from, claim)))
    }

    /// `from` answers our QUERY-STABLE.
    pub(super) fn answer(&mut self, from: u8, signed: u64, prepared: u64, held: Option<u64>) -> &mut One {
        let view_change = held.map(|view| view_change(self.me.0, 1, view));
        let (signed, prepared) = (SeqNum(signed), SeqNum(prepared));
        let answer = StableAnswer { nonce: 1, signed, prepared, view_change };
        self.claim(from, Claim::StableAnswer(ReplicaId(from), answer))
    }

    fn view_change(&mut self, from: u8, boot: u64, view: u64) -> &mut One {
        self.claim(from, Claim::ViewChange(view_change(from, boot, view)))
    }

    fn certified_by_others(&mut self, n: u64) -> &mut One {
        let me = self.me.0;
        for other in (0..4).filter(|other| *other != me) {
            self.checkpoint(other, n, 7);
        }
        self
    }

    fn until(&self) -> Option<u64> {
        self.core.recovery().and_then(|recovery| recovery.until).map(|n| n.0)
    }
}

fn is_question(m: &Message) -> bool {
    matches!(m, Message::QueryStable(_))
}

#[test]
fn p42_a_reborn_replica_asks_again_and_again_and_says_nothing_else() {
    let mut reborn = One::reborn(3);
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    reborn.pre_prepare(0, &p, true).message(1, Message::Prepare(vote(1, p.digest())));
    reborn.message(1, Message::Status(status(0, 0)));
    reborn.event(Event::Query(from_client(pack(5, 1, 4)))).request(pack(1, 1, 8));
    reborn.pass(Duration::from_secs(1));
    assert!(reborn.did.is_empty() && reborn.queries.is_empty());
    assert!(reborn.sent.iter().filter(|(_, m)| is_question(m)).count() >= 40, "every 20 ms");
    let harmless = |m: &Message| is_question(m) || matches!(m, Message::Status(s) if s.recovering);
    assert!(reborn.sent.iter().all(|(_, m)| harmless(m)), "{:?}", reborn.sent);
}

#[test]
fn p42_a_an_answer_says_what_was_signed_prepared_and_asked_for() {
    let mut peer = One::new(1);
    peer.event(Event::Boot(ReplicaId(3), 1)).view_change(3, 1, 5).view_change(3, 1, 4);
    for n in 1..=K + 1 {
        peer.agree(n);
    }
    peer.checkpoint(1, K, 7);
    peer.took();
    peer.event(Event::Boot(ReplicaId(3), 2)).message(3, Message::QueryStable(9));
    let sent = peer.took();
    let [Message::StableAnswer(answer)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((answer.nonce, answer.signed, answer.prepared), (9, SeqNum(K), SeqNum(K + 1)));
    assert_eq!(
        answer.view_change.as_ref().map(|v| v.statement().view),
        Some(View(5)),
        "the highest, of an earlier life"
    );
    assert_eq!(peer.core.view(), View(0), "a backup's question ends no view");
    let answers = |one: &mut One| one.took().iter().filter(|m| matches!(m, Message::StableAnswer(_))).count();
    peer.pass(Duration::from_millis(4)).message(3, Message::QueryStable(10));
    assert_eq!(answers(&mut peer), 0, "not again within a few milliseconds");
    peer.pass(Duration::from_millis(1)).message(3, Message::QueryStable(11));
    assert_eq!(answers(&mut peer), 1);
}

#[test]
fn p42_a_view_changes_of_lives_that_are_over_count_only_if_their_signer_stands_by_them() {
    let mut peer = One::new(1);
    peer.event(Event::Boot(ReplicaId(3), 1)).view_change(2, 0, 3);
    peer.event(Event::Boot(ReplicaId(3), 2)).view_change(3, 1, 3);
    assert_eq!(peer.core.view(), View(0), "one of two is refused: no weak quorum asks for view 3");
    assert_eq!(peer.core.counters().earlier_life, 1);
    let own_up = Status { floor: View(3), recovering: true, ..status(0, 0) };
    peer.message(3, Message::Status(own_up));
    peer.view_change(3, 1, 3);
    assert_eq!(peer.core.view(), View(3), "it votes in no view below 3, so it may as well have said so now");

    // What was held when the life ended counts no more either.
    let mut peer = One::new(1);
    peer.event(Event::Boot(ReplicaId(3), 1)).view_change(3, 1, 3);
    peer.event(Event::Boot(ReplicaId(3), 2)).view_change(2, 0, 3);
    assert_eq!(peer.core.view(), View(0));
    peer.view_change(3, 2, 3);
    assert_eq!(peer.core.view(), View(3), "the word of its present life does, and is no contradiction");
    assert!(peer.caught(3).is_empty());

    // It does again when its signer stands by it.
    let mut peer = One::new(1);
    peer.event(Event::Boot(ReplicaId(3), 1)).view_change(3, 1, 3);
    peer.event(Event::Boot(ReplicaId(3), 2)).view_change(2, 0, 3);
    peer.message(3, Message::Status(Status { floor: View(4), recovering: true, ..status(0, 0) }));
    assert_eq!(peer.core.view(), View(3), "it votes in no view below 4");
}

#[test]
fn p42_b_n_needs_a_quorum_of_answers_of_which_f_may_lie() {
    let mut reborn = One::reborn(3);
    reborn.answer(0, 2 * K, 2 * K, None).answer(1, 2 * K, 2 * K + 1, None);
    assert_eq!(reborn.until(), None);
    reborn.answer(2, K, 2 * K, None);
    assert_eq!(reborn.until(), Some(2 * K + L), "one is a checkpoint behind");

    for lie in [0, 50 * K] {
        let mut reborn = One::reborn(3);
        reborn.answer(0, lie, lie, None).answer(1, 2 * K, 2 * K, None).answer(2, 2 * K, 2 * K, None);
        assert_eq!(reborn.until(), Some(2 * K + L), "{lie}");
    }

    // What only one has reached may be a lie.
    let mut reborn = One::reborn(3);
    reborn.answer(0, 2 * K, 3 * K, None).answer(1, K, K + 1, None).answer(2, 2 * K, K + 1, None);
    assert_eq!(reborn.until(), None);
    reborn.answer(1, 2 * K, 2 * K, None);
    assert_eq!(reborn.until(), Some(2 * K + L));

    // f = 2, and one of five lies: whatever it says, N is not below what correct ones could have certified, nor absurd.
    for lie in [0, 50 * K] {
        let mut reborn = One::reborn_among(7, 6);
        reborn.answer(0, lie, lie, None);
        for peer in 1..=3 {
            reborn.answer(peer, 3 * K, 3 * K, None);
        }
        assert_eq!(reborn.until(), None, "four of six");
        reborn.answer(4, 2 * K, 3 * K, None);
        assert_eq!(reborn.until(), Some(3 * K + L), "{lie}");
    }
}

#[test]
fn p42_b_answers_to_earlier_questions_count_and_those_to_none_do_not() {
    let mut reborn = One::reborn(3);
    reborn.answer(0, K, K, None).pass(Duration::from_millis(50));
    reborn.answer(1, K, K, None);
    let answers = |one: &One| one.core.recovery().map(|r| r.answers);
    assert_eq!(answers(&reborn), Some(2));
    let unasked = StableAnswer { nonce: 99, signed: SeqNum(K), prepared: SeqNum(K), view_change: None };
    reborn.claim(2, Claim::StableAnswer(ReplicaId(2), unasked));
    assert_eq!(answers(&reborn), Some(2));
}

#[test]
fn p42_b_each_answers_least_checkpoint_and_greatest_batch_count() {
    let mut reborn = One::reborn(3);
    reborn.answer(0, K, K, None).answer(1, 2 * K, 2 * K, None);
    reborn.answer(0, 3 * K, 3 * K, None).answer(1, 3 * K, 3 * K, None);
    reborn.answer(2, K + 1, 9, None);
    assert_eq!(reborn.caught(2), [("odd_checkpoint", 1)], "no answer");
    reborn.answer(2, 2 * K, 2 * K, None);
    assert_eq!(reborn.until(), Some(2 * K + L), "what they signed later, no earlier life of ours has seen");
}

#[test]
fn p35_p42_c_who_recovers_follows_the_others_into_a_view_that_the_primary_before_asked_for_too() {
    let mut reborn = One::reborn(3);
    let s = [0, 1, 2].map(|from| signed(super::view_change(from, 1)));
    reborn.hears_all(&s).begins(&new_view(1, &s.each_ref(), 0, &[]));
    assert_eq!((reborn.core.view(), reborn.core.is_pending()), (View(1), false));
    assert!(!reborn.took().iter().any(|m| matches!(m, Message::ViewChange(_))), "and says nothing");
}

#[test]
fn p42_c_it_votes_again_above_n_once_it_holds_the_certified_state() {
    let mut reborn = One::reborn(1);
    for peer in [0, 2, 3] {
        reborn.answer(peer, K, K, None);
    }
    let until = K + L;
    assert_eq!(reborn.until(), Some(until));
    // Most of it is fetched before its time has come.
    reborn.certified_by_others(2 * K);
    reborn.pass(Duration::from_millis(150));
    assert_eq!(reborn.transfers, [(2 * K, false)]);
    reborn.event(Event::Transferred(SeqNum(2 * K)));
    assert_eq!(reborn.core.mode(), Mode::Recovering, "below N");
    reborn.agree(2 * K + 1);
    assert!(reborn.did.is_empty());
    let said = |one: &mut One| one.took().into_iter().filter(|m| !is_question(m)).collect::<Vec<_>>();
    assert!(said(&mut reborn).is_empty());
    reborn.certified_by_others(until);
    assert_eq!(reborn.transfers, [(2 * K, false), (until, false)], "at once");
    reborn.event(Event::Transferred(SeqNum(until)));
    assert_eq!((reborn.core.mode(), reborn.core.is_recovering()), (Mode::Normal, false));
    assert!(reborn.notices.iter().any(|n| matches!(n, Notice::Recovered { .. })));
    let d = reborn.agree(until + 1);
    assert!(said(&mut reborn).contains(&Message::Prepare(vote(until + 1, d))));
    assert_eq!(reborn.did, [Did::Tentative(until + 1), Did::Committed(until + 1)]);
    assert!(reborn.core.last_prepared() > SeqNum(until), "reads include what an earlier life prepared (P18)");
}

#[test]
fn p42_c_it_signs_no_view_change_that_an_earlier_life_may_have_signed() {
    let mut reborn = One::reborn(1);
    reborn.answer(0, 0, 0, None).answer(2, 0, 0, Some(3)).answer(3, 0, 0, Some(2));
    let told = |m: &Message| matches!(m, Message::Status(s) if (s.until, s.floor) == (SeqNum(L), View(3)));
    assert!(reborn.sent.iter().any(|(_, m)| told(m)), "{:?}", reborn.sent);
    reborn.certified_by_others(L);
    reborn.took();
    reborn.event(Event::Transferred(SeqNum(L)));
    let sent = reborn.took();
    let [Message::ViewChange(signed)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(signed.statement().view, View(4), "its word of view 3 keeps it out of view 0");
    assert!(reborn.core.is_recovering(), "until a view at or above 3 is installed (P42 g)");
    let d = pre_prepare(0, L + 1, 1, &[pack(1, 1, 8)]).digest();
    reborn.message(0, Message::Prepare(vote(L + 1, d)));
    assert!(reborn.took().is_empty(), "no part in view 0");
}

#[test]
fn p42_c_it_is_helped_into_a_later_view_once_in_a_while() {
    let recovering = Status { recovering: true, floor: View(1), ..status(L, L) };
    for (after, joins) in [(Duration::from_secs(1), false), (Duration::from_secs(5), true)] {
        let mut peer = One::new(2);
        peer.event(Event::Boot(ReplicaId(1), 1)).view_change(1, 1, 1);
        peer.event(Event::Boot(ReplicaId(1), 2)).message(1, Message::QueryStable(1));
        peer.message(1, Message::Status(recovering.clone()));
        assert_eq!(peer.core.view(), View(0));
        peer.view_change(1, 2, 2);
        assert_eq!(peer.core.view(), View(2));
        if joins {
            // Once the view is there, it is not asked for again.
            peer.leave(&[0, 3], 2).pass(Duration::from_secs(5)).view_change(1, 2, 2);
            assert!(!peer.core.is_pending());
        }
        // It restarts again.
        peer.pass(after).event(Event::Boot(ReplicaId(1), 3)).message(1, Message::QueryStable(1));
        peer.message(1, Message::Status(Status { floor: View(2), ..recovering.clone() }));
        peer.view_change(1, 3, 3);
        assert_eq!(peer.core.view() == View(3), joins, "{after:?}");
        // It waits, and says the same again.
        peer.pass(Duration::from_secs(5)).view_change(1, 3, 3);
        assert_eq!(peer.core.view(), View(3), "{after:?}");
    }

    // It left another view since its word was told; and nobody goes far for it, or for one that does not recover.
    let mut peer = One::new(2);
    peer.event(Event::Boot(ReplicaId(1), 2)).view_change(1, 2, 1);
    assert_eq!(peer.core.view(), View(0), "not recovering: a weak quorum decides (P30)");
    peer.message(1, Message::Status(recovering)).view_change(1, 2, 3);
    assert_eq!(peer.core.view(), View(0), "too far");
    peer.view_change(1, 2, 2);
    assert_eq!(peer.core.view(), View(2));
}

#[test]
fn p42_d_the_primary_goes_on_with_null_batches_to_the_first_checkpoint_at_n() {
    let mut primary = One::new(0);
    let wants = |until: u64| Message::Status(Status { recovering: true, until: SeqNum(until), ..status(0, 0) });
    let nulls = |one: &mut One| {
        let nulls = one.took().into_iter().filter_map(|m| match m {
            Message::PrePrepare(p) if p.packs.is_empty() && p.digest() == Batch::null().digest() => Some(p.n.0),
            _ => None,
        });
        nulls.collect::<Vec<_>>()
    };
    primary.message(3, wants(2 * L + K));
    assert!(nulls(&mut primary).is_empty(), "nobody can need that");
    primary.message(3, wants(K));
    assert_eq!(nulls(&mut primary), (1..=K).collect::<Vec<_>>());
    assert_eq!(primary.core.counters().padded, K);
    primary.message(3, wants(2 * K));
    assert!(nulls(&mut primary).is_empty(), "not again within recover_min");
    primary.pass(Duration::from_secs(5)).message(3, wants(2 * K));
    assert_eq!(nulls(&mut primary), (K + 1..=2 * K).collect::<Vec<_>>());
    let mut backup = One::new(1);
    backup.message(3, wants(K));
    assert!(backup.took().is_empty(), "the primary's work");

    // An N that is reached needs nothing, and keeps no later recovery waiting.
    let mut primary = One::new(0);
    primary.certified_by_others(2 * K).pass(Duration::from_millis(101)).event(Event::Transferred(SeqNum(2 * K)));
    primary.message(3, wants(2 * K)).message(2, wants(K));
    assert!(nulls(&mut primary).is_empty());
    primary.message(3, wants(3 * K));
    assert_eq!(nulls(&mut primary), (2 * K + 1..=3 * K).collect::<Vec<_>>());
    primary.message(2, wants(4 * K));
    assert_eq!(nulls(&mut primary), (3 * K + 1..=4 * K).collect::<Vec<_>>());
    primary.message(1, wants(2 * K + 2 * L));
    assert_eq!(primary.core.pad_to, SeqNum(2 * K + 2 * L), "the farthest that it may get to");
}

#[test]
fn p26_p42_d_a_primary_that_orders_nothing_for_who_recovers_is_left() {
    const T: Duration = Duration::from_millis(100);
    const MS: Duration = Duration::from_millis(1);
    let wants = |until: u64| Message::Status(Status { recovering: true, until: SeqNum(until), ..status(0, 0) });
    let backup = || One::with(1, |c| c.view_timeout = T);
    let mut idle = backup();
    idle.message(3, wants(K)).pass(T - MS);
    assert_eq!(idle.core.view(), View(0), "it has its time");
    idle.pass(2 * MS);
    assert_eq!(idle.core.view(), View(1));

    // Each batch that is ordered gives it time for the next, and the last ends it.
    let mut served = backup();
    served.message(3, wants(K - 1));
    for n in 1..=K {
        served.pass(T - MS);
        assert_eq!(served.core.view(), View(0));
        served.agree(n);
    }
    served.pass(10 * T);
    assert_eq!(served.core.view(), View(0));

    // Nobody can need that; nobody says so any more; nothing fits the window.
    let mut content = backup();
    content.message(3, wants(2 * L + K)).pass(2 * T);
    content.message(3, wants(K)).message(3, Message::Status(status(0, 0))).pass(2 * T);
    for n in 1..=L {
        content.agree(n);
    }
    content.message(2, wants(2 * L)).pass(2 * T);
    assert_eq!(content.core.view(), View(0));
}

#[test]
fn p26_p42_d_nobody_has_views_left_for_its_sake_one_after_the_other() {
    let short = Duration::from_millis(100);
    let mut backup = One::with(3, |c| c.view_timeout = short);
    let wants = |until: u64| Message::Status(Status { recovering: true, until: SeqNum(until), ..status(0, 0) });
    backup.message(1, wants(K)).message(2, wants(K)).pass(2 * short);
    assert_eq!(backup.core.view(), View(1), "for both");
    backup.follow(1);
    for _ in 0..48 {
        backup.message(1, wants(2 * K)).message(2, wants(K)).pass(short);
    }
    assert_eq!(backup.core.view(), View(1), "not again within recover_min");
    backup.message(2, wants(K)).pass(10 * short);
    assert_eq!(backup.core.view(), View(2));

    // Who needed nothing then, and who did not wait, is helped when it does.
    let mut backup = One::with(3, |c| c.view_timeout = short);
    let waits_no_more = Message::Status(status(0, 0));
    backup.message(0, wants(K)).message(0, waits_no_more).message(1, wants(0)).message(2, wants(K)).pass(2 * short);
    assert_eq!(backup.core.view(), View(1), "for 2");
    backup.follow(1).message(0, wants(K)).pass(4 * short);
    assert_eq!(backup.core.view(), View(2), "for 0");
    backup.follow(2).message(1, wants(K)).pass(8 * short);
    assert_eq!(backup.core.view(), View(3), "for 1");
}

#[test]
fn p42_d_who_leads_next_goes_on_with_what_is_still_needed() {
    let mut next = One::new(1);
    let wants = Message::Status(Status { recovering: true, until: SeqNum(K), ..status(0, 0) });
    next.message(3, wants.clone());
    assert_eq!(next.core.pad_to, SeqNum(0), "the primary's work");
    next.follow(1).message(3, wants);
    assert_eq!(next.core.pad_to, SeqNum(K));
}

#[test]
fn p42_d_a_null_batch_chooses_nothing() {
    let mut backup = One::with(1, |c| c.check = |_, _| false);
    let null = |choice| PrePrepare { view: View(0), n: SeqNum(1), choice, packs: Vec::new() };
    backup.pre_prepare(0, &null(Choice { time: 1, seed: 0 }), true);
    assert_eq!(backup.caught(0), [("bad_choice", 1)]);
    backup.pre_prepare(0, &null(Choice::default()), true);
    assert_eq!(backup.took(), [Message::Prepare(vote(1, Batch::null().digest()))]);
}

#[test]
fn p42_e_it_never_proposes_in_a_view_that_it_may_have_led() {
    let mut reborn = One::reborn(0);
    for peer in [1, 2, 3] {
        reborn.answer(peer, 0, 0, None);
    }
    reborn.certified_by_others(L).event(Event::Transferred(SeqNum(L))).request(pack(1, 1, 8));
    let sent: Vec<Message> = reborn.took().into_iter().filter(|m| !is_question(m)).collect();
    let [Message::ViewChange(signed)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(signed.statement().view, View(1), "replica 0 led view 0");
}

#[test]
fn p35_p42_the_question_of_the_primary_ends_its_view_at_once() {
    let mut backup = One::new(1);
    backup.event(Event::Boot(ReplicaId(0), 2)).message(0, Message::QueryStable(1));
    let sent = backup.took();
    let [Message::StableAnswer(_), Message::ViewChange(signed)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(signed.statement().view, View(1));
}

#[test]
fn p42_f_p50_more_than_f_without_memory_are_too_many() {
    let mut reborn = One::reborn(3);
    reborn.message(0, Message::Status(status(0, 0)));
    assert!(!reborn.core.recovery().is_some_and(|r| r.lost));
    reborn.message(2, Message::Status(Status { recovering: true, ..status(0, 0) }));
    assert!(reborn.core.recovery().is_some_and(|r| r.lost));
    assert_eq!(reborn.notices, [Notice::MemoryLost]);
    reborn.message(2, Message::QueryStable(4));
    assert!(!reborn.took().iter().any(|m| matches!(m, Message::StableAnswer(_))), "it knows nothing to say");

    // What a quorum has said stays true though one of them forgets it later.
    let mut reborn = One::reborn(3);
    for peer in [0, 1, 2] {
        reborn.answer(peer, K, K, None);
    }
    reborn.message(2, Message::Status(Status { recovering: true, ..status(0, 0) }));
    assert!(reborn.core.recovery().is_some_and(|r| !r.lost));
    assert!(reborn.notices.is_empty());
}

#[test]
fn p42_what_an_earlier_life_signed_of_a_state_counts_as_any_others_word() {
    let mut reborn = One::reborn(3);
    for peer in [0, 1, 2] {
        reborn.answer(peer, 0, 0, None);
    }
    // Only two others, and our own signature of before, are in the proof that everybody kept.
    reborn.checkpoint(0, L, 7).checkpoint(1, L, 7).checkpoint(3, L, 7);
    assert_eq!(reborn.transfers, [(L, false)]);
    reborn.event(Event::Transferred(SeqNum(L)));
    assert!(!reborn.core.is_recovering());
}
