//! How the next view begins (P33, P34, P47, P49), what ends it before (P35), and what counts in it (P12, P15, P45).

use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn batch(client: u64) -> Batch {
    Batch::new(Choice { time: 1, seed: 0 }, vec![pack(client, 1, 8)])
}

/// `from` leaves for view 1 having prepared `digest` at `n` in view 0.
fn prepared(from: u8, n: u64, digest: Digest) -> Arc<Signed<ViewChange>> {
    let entries = || vec![entry(n, digest, 0)];
    signed(ViewChange { prepared: entries(), pre_prepared: entries(), ..view_change(from, 1) })
}

/// Those of 0, 1 and 2, who prepared nothing.
fn nothing() -> [Arc<Signed<ViewChange>>; 3] {
    [0, 1, 2].map(|from| signed(view_change(from, 1)))
}

/// Those of 0, 1 and 2, who all prepared `digest` at 1.
fn all_prepared(digest: Digest) -> [Arc<Signed<ViewChange>>; 3] {
    [0, 1, 2].map(|from| prepared(from, 1, digest))
}

fn is_pre_prepare(message: &Message) -> bool {
    matches!(message, Message::PrePrepare(_))
}

fn sent_new_view(sent: &[Message]) -> Option<Arc<Signed<NewView>>> {
    sent.iter().find_map(|m| if let Message::NewView(v) = m { Some(v.clone()) } else { None })
}

// ---- the primary --------------------------------------------------------------------------------------------------

#[test]
fn p33_the_primary_waits_a_little_beyond_a_quorum_and_names_exactly_what_it_used() {
    let s = [0, 2, 3].map(|from| signed(view_change(from, 1)));
    let mut primary = One::new(1);
    primary.hears(&s[1]).pass(ms(10)).hears(&s[2]).pass(Duration::from_micros(1_900));
    assert!(primary.signs.is_empty(), "q with its own, but more may come");
    primary.hears(&s[0]);
    let own = primary.left();
    let all = [&s[0], &own, &s[1], &s[2]].map(|v| (v.statement().replica, v.digest()));
    assert_eq!(primary.signs.len(), 1, "all of them: nothing to wait for");
    assert_eq!((primary.signs[0].view, &primary.signs[0].members[..]), (View(1), &all[..]));

    let mut primary = One::new(1);
    primary.hears(&s[1]).hears(&s[2]).pass(Duration::from_micros(2_100));
    let own = primary.left();
    let three = [&own, &s[1], &s[2]].map(|v| (v.statement().replica, v.digest()));
    assert_eq!(&primary.signs[0].members[..], &three[..], "its own included");
    assert!(!primary.core.is_pending());
}

#[test]
fn p33_the_bodies_of_what_is_chosen_are_fetched_before_the_new_view_is_announced() {
    let chosen = batch(1);
    let d = chosen.digest();
    let mut primary = One::new(1);
    primary.hears_all(&[prepared(2, 1, d), prepared(3, 1, d)]).took();
    primary.pass(ms(3));
    assert_eq!(primary.took(), [Message::FetchBatch(Committed { n: SeqNum(1), digest: d })]);
    primary.message(3, Message::Batch(SeqNum(1), batch(2).into()));
    assert!(primary.signs.is_empty() && primary.core.is_pending(), "another body is none");
    primary.pass(ms(100));
    let again = primary.took().iter().filter(|m| matches!(m, Message::FetchBatch(_))).count();
    assert!(again >= 3, "asked for until it comes: {again}");
    primary.message(2, Message::Batch(SeqNum(1), chosen.into()));
    assert_eq!(primary.signs[0].chosen, [d]);
    let sent = primary.took();
    assert!(sent_new_view(&sent).is_some() && !primary.core.is_pending());
    assert!(!sent.iter().any(is_pre_prepare), "the NEW-VIEW is the pre-prepare of what it chose");
}

#[test]
fn p33_a_liar_that_vouches_for_what_is_chosen_is_not_the_only_one_asked_for_it() {
    let chosen = batch(1);
    let d = chosen.digest();
    let mut primary = One::new(1);
    primary.message(2, Message::Committed(Committed { n: SeqNum(1), digest: d }));
    primary.hears_all(&[prepared(2, 1, d), prepared(3, 1, d)]);
    primary.pass(ms(100));
    let of = |m: &Message| matches!(m, Message::FetchBatch(_));
    let asked: Vec<_> = primary.sent.iter().filter(|(_, m)| of(m)).filter_map(|(to, _)| *to).collect();
    assert!([0, 2, 3].iter().all(|r| asked.contains(&ReplicaId(*r))), "{asked:?}");
}

#[test]
fn p33_who_has_dropped_a_body_sends_the_proof_that_it_is_not_needed() {
    let mut holder = One::new(1);
    for other in [0, 2, 3] {
        holder.message(other, Message::Status(Status { wants: false, ..status(100, 100) }));
    }
    let digests: Vec<Digest> = (1..=K).map(|n| holder.agree(n)).collect();
    let wanted = Committed { n: SeqNum(2), digest: digests[1] };
    holder.took();
    holder.message(3, Message::FetchBatch(wanted));
    assert!(matches!(&holder.took()[..], [Message::Batch(_, b)] if b.digest() == digests[1]));
    for from in [0, 1, 2] {
        holder.checkpoint(from, K, 7);
    }
    holder.pass(ms(50)).took();
    for _ in 0..5 {
        holder.message(3, Message::FetchBatch(wanted));
    }
    let sent = holder.took();
    assert!(matches!(&sent[..], [Message::Stable(proof)] if proof.len() == 3), "once: {sent:?}");
    holder.message(3, Message::FetchBatch(Committed { n: SeqNum(K + 1), digest: Digest([1; 32]) }));
    assert!(holder.took().is_empty());
}

#[test]
fn p33_a_primary_speaks_only_if_its_window_reaches_the_last_of_what_is_chosen() {
    let (far, chosen) = (L + 1, batch(1));
    let at = |from| {
        let entries = || vec![entry(far, chosen.digest(), 0)];
        signed(ViewChange { prepared: entries(), pre_prepared: entries(), ..view_change_at(from, 1, 2 * K, 7) })
    };
    let mut primary = One::new(1);
    primary.hears_all(&[at(2), at(3)]).pass(ms(50));
    assert!(primary.signs.is_empty() && primary.core.is_pending(), "with h = 0 its H is {L}");
    // Their proof is a certificate: it fetches that state, and its window moves.
    primary.pass(ms(100));
    assert_eq!(primary.transfers, [(2 * K, false)]);
    primary.event(Event::Transferred(SeqNum(2 * K)));
    primary.message(2, Message::Batch(SeqNum(far), chosen.clone().into()));
    let [said] = &primary.signs[..] else { panic!("{:?}", primary.signs) };
    assert_eq!((said.stable, said.chosen.len()), (SeqNum(2 * K), (far - 2 * K) as usize));
    assert_eq!(said.chosen.last(), Some(&chosen.digest()));
    assert_eq!(said.chosen[0], Batch::null().digest());
}

#[test]
fn p33_a_primary_waits_for_the_bodies_of_what_is_chosen_within_its_window_and_for_no_others() {
    let chosen = batch(1);
    let mut primary = One::new(1);
    primary.hears_all(&[prepared(2, L, chosen.digest()), prepared(3, L, chosen.digest())]).pass(ms(3));
    primary.message(2, Message::Batch(SeqNum(L), chosen.into()));
    assert_eq!(primary.signs.len(), 1, "its window ends there");
    // Two say that 2 is committed, and nobody that it was prepared.
    let mut primary = One::new(1);
    let committed = Message::Committed(Committed { n: SeqNum(2), digest: Digest([1; 32]) });
    primary.message(2, committed.clone()).message(3, committed).leave(&[2, 3], 1).pass(ms(3));
    assert_eq!(primary.signs.len(), 1);
}

#[test]
fn p10_nothing_is_proposed_before_the_new_view_is_there() {
    let mut primary = One::new(1);
    primary.leave(&[2, 3], 1).request(pack(1, 1, 8)).signed_request(pack(2, 1, 8));
    assert!(primary.core.is_pending() && !primary.took().iter().any(is_pre_prepare));
    primary.pass(ms(3));
    let sent = primary.took();
    let (begins, proposes) =
        (sent.iter().position(|m| matches!(m, Message::NewView(_))), sent.iter().position(is_pre_prepare));
    assert!(begins.is_some() && begins < proposes, "{sent:?}");
}

#[test]
fn p47_a_new_view_is_signed_once_and_sent_again_as_the_same_bytes() {
    let mut primary = One::new(1);
    primary.leave(&[2, 3], 1).pass(ms(3));
    let said = sent_new_view(&primary.took()).expect("it began");
    // What comes later changes nothing, not even another version.
    primary.leave(&[0], 1).hears(&prepared(2, 1, batch(1).digest()));
    for _ in 0..3 {
        primary.pass(ms(50)).took();
        primary.message(3, Message::Status(Status { view: View(1), pending: true, ..status(0, 0) }));
        assert_eq!(sent_new_view(&primary.took()).map(|v| v.encoded().clone()), Some(said.encoded().clone()));
    }
    assert_eq!(primary.signs.len(), 1);
}

#[test]
fn p47_what_comes_while_it_is_made_durable_signs_no_other() {
    let mut primary = One::new(1);
    primary.slow_disk = true;
    primary.leave(&[2, 3], 1).pass(ms(3));
    assert_eq!((primary.signs.len(), primary.took().len()), (0, 0), "its own VIEW-CHANGE is not on disk yet");
    let token = primary.tokens.remove(0);
    primary.event(Event::Persisted(token)).pass(ms(3));
    let sent = primary.took();
    assert!(matches!(&sent[..], [Message::ViewChange(_)]), "nor is its NEW-VIEW now: {sent:?}");
    assert_eq!(primary.signs.len(), 1);
    primary.leave(&[0], 1).hears(&prepared(3, 1, batch(1).digest())).pass(ms(50));
    for token in std::mem::take(&mut primary.tokens) {
        primary.event(Event::Persisted(token));
    }
    let sent = primary.took();
    assert_eq!(sent.iter().filter(|m| matches!(m, Message::NewView(_))).count(), 1);
    assert_eq!(sent_new_view(&sent).map(|v| v.statement().members.len()), Some(3), "S is fixed once");
    assert_eq!(primary.signs.len(), 1);
}

#[test]
fn p47_an_own_new_view_that_comes_back_is_no_news() {
    let mut primary = One::new(1);
    primary.slow_disk = true;
    primary.leave(&[2, 3], 1);
    let left = primary.tokens.remove(0);
    primary.event(Event::Persisted(left)).pass(ms(3));
    let own = |one: &One| {
        let statement = one.signs.last().unwrap().clone();
        Arc::new(Signed::new(NewView { replica: ReplicaId(1), ..statement }, |_| [0; 64]))
    };
    let first = own(&primary);
    assert_eq!(primary.tokens.len(), 1);
    primary.begins(&first);
    assert_eq!(primary.tokens.len(), 1, "it is on its way to the disk");
    // Its next view as primary comes before that is durable: nothing is said that may be forgotten.
    primary.leave(&[2, 3], 5).begins(&first);
    assert_eq!(primary.tokens.len(), 2, "that view is left");
    let left = primary.tokens.pop().unwrap();
    primary.event(Event::Persisted(left)).pass(ms(3)).took();
    assert_eq!((primary.signs.len(), primary.tokens.len()), (2, 2));
    let earlier = primary.tokens.remove(0);
    primary.event(Event::Persisted(earlier));
    assert_eq!(primary.took(), []);
    assert!(primary.core.is_pending());
    let second = own(&primary);
    let token = primary.tokens.remove(0);
    primary.event(Event::Persisted(token));
    assert!(sent_new_view(&primary.took()).is_some() && !primary.core.is_pending());
    primary.begins(&second);
    assert!(primary.tokens.is_empty(), "it began");
}

// ---- the backups --------------------------------------------------------------------------------------------------

#[test]
fn p47_a_backup_accepts_one_new_view() {
    let s = nothing();
    let d = batch(1).digest();
    let other = signed(view_change(3, 1));
    let [first, second] = [new_view(1, &s.each_ref(), 0, &[]), new_view(1, &[&s[1], &s[2], &other], 0, &[])];
    // The second comes after the first was accepted, or before either could be checked.
    let mut backup = One::new(3);
    backup.hears_all(&s).begins(&first).begins(&first).begins(&second);
    assert_eq!((backup.caught(1), backup.core.view()), (vec![("contradictory_new_view", 1)], View(1)));
    let mut backup = One::new(3);
    backup.begins(&first).begins(&new_view(1, &s.each_ref(), 0, &[d]));
    assert_eq!(backup.caught(1), [("contradictory_new_view", 1)]);
    backup.hears_all(&s);
    assert!(backup.core.view() == View(1) && !backup.core.is_pending(), "the first stands");
}

#[test]
fn p33_a_backup_fetches_the_view_changes_that_it_lacks_and_decides_again() {
    let chosen = batch(1);
    let s = all_prepared(chosen.digest());
    let begun = new_view(1, &s.each_ref(), 0, &[chosen.digest()]);
    let mut backup = One::new(3);
    backup.hears(&s[2]).begins(&begun);
    let wanted = |from: usize| {
        Message::FetchViewChange(WantedViewChange {
            view: View(1),
            replica: ReplicaId(from as u8),
            digest: s[from].digest(),
        })
    };
    assert_eq!(backup.took(), [wanted(0), wanted(1)], "of all: the signer may be gone");
    assert_eq!((backup.core.view(), backup.caught(1)), (View(0), vec![]), "what cannot be checked is no evidence");
    backup.pass(Duration::from_secs(1)).begins(&begun);
    assert_eq!(backup.took(), [wanted(0), wanted(1)], "asked again when it comes again");
    assert_eq!((backup.core.view(), backup.caught(1)), (View(0), vec![]));
    backup.hears(&s[0]);
    assert!(backup.core.is_pending(), "w others have left (P30)");
    backup.hears(&s[1]);
    assert!(backup.core.view() == View(1) && !backup.core.is_pending());

    // Asked for once in an interval, whatever comes meanwhile.
    let mut backup = One::new(3);
    backup.hears(&s[2]).begins(&begun).took();
    backup.pass(ms(20) - Duration::from_nanos(1)).begins(&begun);
    assert_eq!(backup.took(), []);
    backup.pass(Duration::from_nanos(1)).begins(&begun);
    assert_eq!(backup.took(), [wanted(0), wanted(1)]);
    backup.hears(&s[0]).hears(&s[1]);

    // And hands on what it holds, as it came, to whoever lacks it.
    backup.pass(ms(50)).took();
    backup.message(0, wanted(2)).message(0, wanted(2));
    let sent = backup.took();
    assert!(matches!(&sent[..], [Message::ViewChange(v)] if v.encoded() == s[2].encoded()), "{sent:?}");
}

#[test]
fn p33_no_new_view_that_cannot_be_checked_keeps_another_from_being_asked_for() {
    let s = nothing();
    let unknown = [1, 2, 3].map(|from| prepared(from, 1, batch(9).digest()));
    // Replica 0 announces a view of its own over view-changes that nobody has.
    let lie = new_view(4, &unknown.each_ref(), 0, &[]);
    let mut backup = One::new(3);
    backup.begins(&lie).begins(&new_view(1, &s.each_ref(), 0, &[]));
    let asked = |m: &Message| matches!(m, Message::FetchViewChange(w) if w.view == View(1));
    assert_eq!(backup.took().iter().filter(|m| asked(m)).count(), 3);
}

#[test]
fn p33_p45_of_two_view_changes_of_one_replica_the_one_that_the_new_view_names_counts() {
    let s = nothing();
    let version = prepared(2, 1, batch(1).digest());
    let mut backup = One::new(3);
    backup.hears_all(&[s[0].clone(), s[1].clone(), version.clone()]);
    let begun = new_view(1, &s.each_ref(), 0, &[]);
    backup.begins(&begun);
    assert!(backup.core.is_pending(), "the decision is over what it names");
    backup.hears(&s[2]);
    assert_eq!((backup.core.is_pending(), backup.caught(2)), (false, vec![("contradictory_view_change", 1)]));

    // A third version takes no place of the named one.
    let mut backup = One::new(3);
    backup.hears(&version).begins(&begun).hears(&s[2]).hears(&prepared(2, 1, batch(2).digest()));
    backup.hears(&s[0]).hears(&s[1]);
    assert_eq!((backup.core.is_pending(), backup.core.view()), (false, View(1)));
}

#[test]
fn p33_of_the_new_views_of_one_primary_the_latest_is_waited_for() {
    let early = nothing();
    let late = [0, 1, 2].map(|from| signed(view_change(from, 5)));
    let (first, second) = (new_view(1, &early.each_ref(), 0, &[]), new_view(5, &late.each_ref(), 0, &[]));
    for order in [[&first, &second], [&second, &first]] {
        let mut backup = One::new(3);
        for new_view in order {
            backup.begins(new_view);
        }
        backup.hears_all(&late);
        assert_eq!((backup.core.is_pending(), backup.core.view()), (false, View(5)));
        assert_eq!(backup.caught(1), []);
    }
}

#[test]
fn p25_a_replica_whose_state_is_of_no_use_follows_no_view() {
    let mut backup = One::new(3);
    for n in 1..=K {
        let p = pre_prepare(0, n, n, &[pack(9, n, 8)]);
        backup.pre_prepare(0, &p, true).message(1, Message::Prepare(vote(n, p.digest())));
        for from in [0, 1] {
            backup.message(from, Message::Commit(vote(n, p.digest())));
        }
    }
    backup.checkpoint(3, K, 1);
    for from in [0, 1, 2] {
        backup.checkpoint(from, K, 7);
    }
    assert_eq!(backup.core.mode(), Mode::Diverged);
    let s = nothing();
    backup.hears_all(&s).begins(&new_view(1, &s.each_ref(), 0, &[]));
    assert_eq!(backup.core.view(), View(0));
}

#[test]
fn p33_p35_a_new_view_that_its_own_view_changes_do_not_bear_out_ends_its_view() {
    let d = batch(1).digest();
    let s = all_prepared(d);
    let lies = |own: &Arc<Signed<ViewChange>>| {
        [
            new_view(1, &s.each_ref(), 0, &[]),
            new_view(1, &s.each_ref(), 0, &[batch(2).digest()]),
            new_view(1, &s.each_ref(), 0, &[d, batch(2).digest()]),
            new_view(1, &s.each_ref(), K, &[d]),
            // Without its own view-change.
            new_view(1, &[&s[0], &s[2], own], 0, &[d]),
        ]
    };
    for i in 0..5 {
        let mut backup = One::new(3);
        backup.hears_all(&s);
        let lie = lies(&backup.left())[i].clone();
        backup.begins(&lie);
        assert_eq!(backup.caught(1), [("bad_new_view", 1)], "{i}");
        assert_eq!((backup.core.view(), backup.core.is_pending()), (View(2), true), "{i}: without a timer");
        assert_eq!(backup.left().statement().view, View(2));
    }
    // The true one, at last.
    let mut backup = One::new(3);
    backup.hears_all(&s).begins(&new_view(1, &s.each_ref(), 0, &[d]));
    assert_eq!((backup.caught(1), backup.core.view(), backup.core.is_pending()), (vec![], View(1), false));
}

#[test]
fn p35_two_pre_prepares_for_one_place_end_the_view_at_once_for_who_saw_them() {
    let (a, b) = (pre_prepare(0, 1, 1, &[pack(1, 1, 8)]), pre_prepare(0, 1, 1, &[pack(1, 2, 8)]));
    // Accepted or not.
    for authentic in [true, false] {
        let mut backup = One::new(3);
        backup.pre_prepare(0, &a, authentic).pre_prepare(0, &a, authentic);
        assert_eq!(backup.core.view(), View(0), "the same again is none");
        backup.took();
        backup.pre_prepare(0, &b, authentic);
        assert_eq!((backup.core.view(), backup.caught(0)), (View(1), vec![("equivocation", 1)]));
        assert!(matches!(&backup.took()[..], [Message::ViewChange(_)]), "a MAC convinces nobody else");
    }
}

#[test]
fn p34_no_prepare_for_a_chosen_batch_before_its_body_is_held() {
    let chosen = batch(1);
    let (d, s) = (chosen.digest(), all_prepared(chosen.digest()));
    let mut backup = One::new(3);
    backup.hears_all(&s).took();
    backup.begins(&new_view(1, &s.each_ref(), 0, &[d]));
    let wanted = Message::FetchBatch(Committed { n: SeqNum(1), digest: d });
    assert_eq!(backup.took(), std::slice::from_ref(&wanted), "no PREPARE");
    backup
        .message(1, Message::Batch(SeqNum(1), batch(2).into()))
        .message(1, Message::Batch(SeqNum(2), chosen.clone().into()));
    assert!(backup.took().is_empty(), "checked by its digest and place");
    // Asked for again, and of others.
    backup.sent.clear();
    backup.pass(ms(200));
    let asked: std::collections::BTreeSet<_> =
        backup.sent.iter().filter(|(_, m)| *m == wanted).map(|(to, _)| *to).collect();
    assert!(asked.len() >= 2, "{asked:?}");
    backup.took();
    backup.message(2, Message::Batch(SeqNum(1), chosen.into()));
    assert_eq!(backup.took(), [Message::Prepare(vote_in(1, 1, d))]);
}

#[test]
fn p15_p33_three_phases_run_again_for_what_is_chosen_and_nothing_executes_twice() {
    let mut backup = One::new(3);
    let d = backup.agree(1);
    let p = pre_prepare(0, 2, 2, &[pack(9, 2, 8)]);
    backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(2, p.digest())));
    for from in [0, 1] {
        backup.message(from, Message::Commit(vote(2, p.digest())).clone());
    }
    backup.did.clear();
    let both = |from| {
        let entries = || vec![entry(1, d, 0), entry(2, p.digest(), 0)];
        signed(ViewChange { prepared: entries(), pre_prepared: entries(), ..view_change(from, 1) })
    };
    let s = [0, 1, 2].map(both);
    backup.hears_all(&s).took();
    backup.begins(&new_view(1, &s.each_ref(), 0, &[d, p.digest()]));
    let chosen = [(1, d), (2, p.digest())];
    assert_eq!(backup.took(), chosen.map(|(n, d)| Message::Prepare(vote_in(1, n, d))), "as if they were new");
    for (n, d) in chosen {
        // Of view 0 nothing counts any more: neither 2's PREPARE nor two COMMITs.
        backup.message(2, Message::Prepare(vote(n, d))).message(1, Message::Prepare(vote_in(1, n, d)));
        backup.pass(ms(1));
        assert!(!backup.took().iter().any(|m| matches!(m, Message::Commit(_))), "{n}");
        backup.message(2, Message::Prepare(vote_in(1, n, d))).pass(ms(1));
        assert!(backup.took().contains(&Message::Commit(vote_in(1, n, d))));
        backup.message(1, Message::Commit(vote_in(1, n, d))).message(2, Message::Commit(vote_in(1, n, d)));
    }
    assert_eq!(backup.did, [], "both were executed in view 0");
    assert_eq!(backup.core.last_executed(), SeqNum(2));
}

#[test]
fn p49_what_is_stable_here_gets_no_vote_again() {
    let mut backup = One::new(3);
    let mut digests: Vec<Digest> = (1..=K).map(|n| backup.agree(n)).collect();
    for from in [0, 2, 3] {
        backup.checkpoint(from, K, 7);
    }
    assert_eq!(backup.core.last_stable(), SeqNum(K));
    let next = batch(1);
    digests.push(next.digest());
    let all: Vec<Entry> = (1..).zip(&digests).map(|(n, d)| entry(n, *d, 0)).collect();
    let behind = |from| signed(ViewChange { prepared: all.clone(), pre_prepared: all.clone(), ..view_change(from, 1) });
    let s = [0, 1, 2].map(behind);
    backup.hears_all(&s).took();
    backup.begins(&new_view(1, &s.each_ref(), 0, &digests)).message(0, Message::Batch(SeqNum(K + 1), next.into()));
    let sent = backup.took();
    let votes: Vec<_> =
        sent.iter().filter_map(|m| if let Message::Prepare(v) = m { Some(v.n.0) } else { None }).collect();
    assert_eq!(votes, [K + 1], "laggards get COMMITTED or the state");
}

#[test]
fn p12_what_a_new_view_chose_is_neither_authenticated_again_nor_are_its_choices_checked() {
    let chosen = batch(1);
    let (d, s) = (chosen.digest(), all_prepared(chosen.digest()));
    // It would refuse the choice, and its own vector entry is bad.
    let mut backup = One::with(3, |c| c.check = |choice, _| choice.seed != 0);
    let p = PrePrepare {
        packs: chosen.packs().iter().cloned().map(Proposed::Inline).collect(),
        ..pre_prepare(0, 1, 1, &[])
    };
    assert_eq!(p.digest(), d);
    backup.pre_prepare(0, &p, false);
    assert!(backup.took().is_empty());
    backup.hears_all(&s).begins(&new_view(1, &s.each_ref(), 0, &[d]));
    backup.message(1, Message::Batch(SeqNum(1), chosen.into()));
    assert!(backup.took().contains(&Message::Prepare(vote_in(1, 1, d))));
    assert_eq!(backup.caught(1), []);
}

#[test]
fn p12_a_primary_hands_on_no_proof_of_what_the_new_view_chose() {
    let chosen = batch(1);
    let s = [0, 2, 3].map(|from| prepared(from, 1, chosen.digest()));
    let mut primary = One::new(1);
    primary.hears_all(&s).message(2, Message::Batch(SeqNum(1), chosen.clone().into()));
    let own = pack(2, 1, 8);
    primary.request(own.clone());
    for backup in [2, 3] {
        primary.message(backup, Message::Prepare(vote_in(1, 1, chosen.digest())));
    }
    assert!(primary.took().iter().any(is_pre_prepare));
    primary.message(3, Message::FetchPack(chosen.packs()[0].digest()));
    assert_eq!(primary.took(), []);
    primary.message(3, Message::FetchPack(own.digest()));
    assert_eq!(primary.took(), [Message::Relay(own)]);
}

#[test]
fn p12_p27_at_a_place_left_free_only_what_was_not_contradicted_before_is_accepted() {
    let (a, b) = (pre_prepare(0, 1, 1, &[pack(1, 1, 8)]), pre_prepare(1, 1, 1, &[pack(2, 1, 8)]));
    let mut backup = One::new(3);
    backup.pre_prepare(0, &a, true).follow(1).took();
    backup.pre_prepare(1, &b, true);
    assert_eq!((backup.took(), backup.core.view()), (vec![], View(1)), "its Q holds another, and that is no crime");
    let again = PrePrepare { view: View(1), ..a };
    backup.pre_prepare(1, &again, true);
    assert_eq!(backup.took(), [Message::Prepare(vote_in(1, 1, again.digest()))]);
    let fresh = pre_prepare(1, 2, 2, &[pack(3, 1, 8)]);
    backup.pre_prepare(1, &fresh, true);
    assert!(backup.took().contains(&Message::Prepare(vote_in(1, 2, fresh.digest()))), "Q is empty there");
}

#[test]
fn p12_what_a_new_view_decided_has_no_other_pre_prepare() {
    let chosen = batch(1);
    let s = all_prepared(chosen.digest());
    let mut backup = One::new(3);
    backup.hears_all(&s).begins(&new_view(1, &s.each_ref(), 0, &[chosen.digest()])).took();
    backup.pre_prepare(1, &pre_prepare(1, 1, 1, &[pack(2, 1, 8)]), true);
    assert!(backup.took().is_empty());
}

#[test]
fn p20_what_is_of_the_next_view_waits_for_it() {
    let p = pre_prepare(1, 1, 1, &[pack(1, 1, 8)]);
    let v = vote_in(1, 1, p.digest());
    let mut backup = One::with(3, |c| c.ahead_max = 2);
    backup.pre_prepare(1, &p, true).message(2, Message::Prepare(v)).message(2, Message::Commit(v));
    backup.message(2, Message::Prepare(vote_in(1, 2, p.digest())));
    assert_eq!(backup.core.counters().outside_window, 1, "the third of one peer finds no room");
    backup.message(0, Message::Prepare(vote_in(1, 0, p.digest())));
    assert_eq!(backup.core.counters().outside_window, 2, "what is stable needs nothing");
    assert!(backup.took().is_empty());
    backup.follow(1);
    assert!(backup.took().contains(&Message::Prepare(v)));
    assert_eq!(backup.core.last_prepared(), SeqNum(1), "2's vote was kept too");
    backup.message(1, Message::Commit(v));
    assert_eq!(backup.core.last_executed(), SeqNum(1));

    // So does what comes to one that has left and waits for the same view.
    let mut backup = One::new(3);
    backup.leave(&[0, 1, 2], 1);
    assert!(backup.core.is_pending());
    backup.pre_prepare(1, &p, true).message(2, Message::Prepare(v)).message(2, Message::Commit(v));
    assert_eq!(backup.core.counters().outside_window, 0);
    let members = [0, 1, 2].map(|from| signed(view_change(from, 1)));
    backup.begins(&new_view(1, &members.each_ref(), 0, &[]));
    assert_eq!(backup.core.last_prepared(), SeqNum(1));
}

#[test]
fn p21_the_duplicate_filter_is_a_hint_for_one_view() {
    let proposals = |one: &mut One| one.took().iter().filter(|m| is_pre_prepare(m)).count();
    let mut primary = One::new(0);
    primary.request(pack(1, 1, 8)).request(pack(1, 1, 8));
    assert_eq!((proposals(&mut primary), primary.core.counters().duplicate), (1, 1));
    primary.follow(4).took();
    // Its batch was not prepared, so the new view begins with null in its place.
    for backup in [1, 2] {
        primary.message(backup, Message::Prepare(vote_in(4, 1, Batch::null().digest())));
    }
    primary.request(pack(1, 1, 8));
    assert_eq!(proposals(&mut primary), 1, "nobody has executed it, and this view has not seen it");
}

// ---- what counts --------------------------------------------------------------------------------------------------

#[test]
fn p45_each_reason_for_which_a_view_change_is_invalid() {
    let d = Digest([1; 32]);
    let of = |entries: &[Entry]| entries.to_vec();
    let p = |entry: Entry| ViewChange { prepared: of(&[entry]), ..view_change_at(2, 2, K, 7) };
    let q = |entry: Entry| ViewChange { pre_prepared: of(&[entry]), ..view_change_at(2, 2, K, 7) };
    let digests = |count: u8| ViewChange {
        pre_prepared: (0..count).map(|i| entry(K + 1, Digest([i; 32]), 0)).collect(),
        ..view_change_at(2, 2, K, 7)
    };
    let bad = [
        ("its h is no checkpoint", view_change_at(2, 2, K + 1, 7)),
        ("P at h", p(entry(K, d, 1))),
        ("P above h + L", p(entry(K + L + 1, d, 1))),
        ("P of the view that it asks for", p(entry(K + 1, d, 2))),
        ("Q at h", q(entry(K, d, 1))),
        ("Q above h + L", q(entry(K + L + 1, d, 1))),
        ("Q of a view beyond", q(entry(K + 1, d, 3))),
        ("more digests at one n than ever arise", digests(6)),
    ];
    for (why, v) in bad {
        let mut backup = One::new(3);
        backup.hears(&signed(v));
        assert_eq!(backup.caught(2), [("bad_view_change", 1)], "{why}");
        backup.leave(&[1], 2);
        assert_eq!(backup.core.view(), View(0), "{why}: it does not count (P30)");
    }
    let good = [p(entry(K + 1, d, 1)), p(entry(K + L, d, 1)), q(entry(K + 1, d, 1)), q(entry(K + L, d, 0)), digests(5)];
    for v in good {
        let mut backup = One::new(3);
        backup.hears(&signed(v.clone())).leave(&[1], 2);
        assert_eq!((backup.caught(2), backup.core.view()), (vec![], View(2)), "{v:?}");
    }
}

#[test]
fn p45_one_of_each_sender_for_one_view_counts_and_the_other_is_reported() {
    let mut primary = One::new(1);
    primary.hears_all(&[signed(view_change(2, 1)), prepared(2, 1, batch(1).digest()), signed(view_change(2, 1))]);
    assert_eq!((primary.caught(2), primary.core.view()), (vec![("contradictory_view_change", 1)], View(0)));
    primary.leave(&[3], 1).pass(ms(3));
    let named = primary.signs[0].members.iter().find(|(r, _)| *r == ReplicaId(2));
    assert_eq!(named.map(|(_, d)| *d), Some(signed(view_change(2, 1)).digest()), "the first that came");
}

#[test]
fn p21_a_replica_that_leaves_for_every_view_fills_its_own_room() {
    // Of each sender the one for this view and its highest are kept: the next primary still finds all that it needs.
    let mut primary = One::new(1);
    for view in (1..1_000).chain([5_000, 2, 3]) {
        primary.leave(&[2], view);
    }
    primary.leave(&[3], 1);
    assert_eq!(primary.core.view(), View(1));
    primary.leave(&[0], 1);
    let members: Vec<u8> = primary.signs.iter().flat_map(|v| &v.members).map(|(r, _)| r.0).collect();
    assert_eq!(members, [] as [u8; 0]);
    primary.pass(ms(3));
    let members: Vec<u8> = primary.signs.iter().flat_map(|v| &v.members).map(|(r, _)| r.0).collect();
    assert_eq!(members, [0, 1, 3], "whoever has gone on takes no part in this one");
}

#[test]
fn p12_h_is_the_receivers_own_where_a_new_view_begins_higher() {
    let (far, chosen) = (L + 1, batch(1));
    let at = |from| {
        let entries = || vec![entry(far, chosen.digest(), 0)];
        signed(ViewChange { prepared: entries(), pre_prepared: entries(), ..view_change_at(from, 1, 2 * K, 7) })
    };
    let s = [0, 1, 2].map(at);
    let null = Batch::null().digest();
    let all: Vec<Digest> = (2 * K + 1..far).map(|_| null).chain([chosen.digest()]).collect();
    let votes = |one: &mut One| -> Vec<u64> {
        let sent = one.took();
        sent.iter().filter_map(|m| if let Message::Prepare(v) = m { Some(v.n.0) } else { None }).collect()
    };
    let mut backup = One::new(3);
    backup.hears_all(&s).took();
    backup.begins(&new_view(1, &s.each_ref(), 2 * K, &all));
    assert!(!backup.core.is_pending());
    assert_eq!(votes(&mut backup), (2 * K + 1..=L).collect::<Vec<_>>(), "a vote above its H has no place in P (P45)");
    backup.checkpoint(1, 2 * K, 7).pass(ms(101));
    assert_eq!(backup.transfers, [(2 * K, false)]);
    backup.event(Event::Transferred(SeqNum(2 * K))).message(2, Message::Batch(SeqNum(far), chosen.into()));
    assert_eq!(votes(&mut backup), [far]);
}

// ---- replicas that start again ------------------------------------------------------------------------------------

fn boot(replica: u8, boot: u64) -> Event {
    Event::Boot(ReplicaId(replica), boot)
}

/// What `from` says of view 1 in its life `boot`, having prepared `digest` at 1.
fn prepared_in(boot: u64, from: u8, digest: Digest) -> Arc<Signed<ViewChange>> {
    signed(ViewChange { boot, ..prepared(from, 1, digest).statement().clone() })
}

/// The primary of view 1 has fixed its S of 0, 3 and itself, and waits for a body; then it heard of 2.
fn waits_for_a_body(chosen: &Batch, zero: u64) -> One {
    let d = chosen.digest();
    let mut primary = One::new(1);
    primary.hears_all(&[prepared_in(zero, 0, d), prepared(3, 1, d)]).pass(ms(3));
    assert!(primary.signs.is_empty() && primary.took().iter().any(|m| matches!(m, Message::FetchBatch(_))));
    primary.hears(&prepared(2, 1, d));
    primary
}

fn named_once_the_body_comes(primary: &mut One, chosen: &Batch) -> Vec<u8> {
    primary.message(3, Message::Batch(SeqNum(1), chosen.clone().into()));
    let [new_view] = &primary.signs[..] else { panic!("{:?}", primary.signs) };
    new_view.members.iter().map(|(id, _)| id.0).collect()
}

#[test]
fn p33_p42_a_primary_names_nobody_whose_view_change_is_of_a_life_that_is_over() {
    let chosen = batch(1);
    let mut primary = waits_for_a_body(&chosen, 0);
    primary.event(boot(0, 1)).pass(ms(3));
    assert_eq!(named_once_the_body_comes(&mut primary, &chosen), [1, 2, 3], "0 has started again");
    // Who is not named, or what is of the new life already, changes nothing.
    let mut primary = waits_for_a_body(&chosen, 0);
    primary.event(boot(2, 1));
    assert_eq!(named_once_the_body_comes(&mut primary, &chosen), [0, 1, 3]);
    let mut primary = waits_for_a_body(&chosen, 1);
    primary.event(boot(0, 1));
    assert_eq!(named_once_the_body_comes(&mut primary, &chosen), [0, 1, 3]);

    // Nor does it once the NEW-VIEW is signed.
    let mut primary = waits_for_a_body(&chosen, 0);
    primary.slow_disk = true;
    assert_eq!(named_once_the_body_comes(&mut primary, &chosen), [0, 1, 3]);
    primary.event(boot(0, 1));
    let token = primary.tokens.pop().unwrap();
    primary.event(Event::Persisted(token));
    assert_eq!((primary.signs.len(), primary.core.is_pending()), (1, false));
}

#[test]
fn p33_p42_a_new_view_of_a_life_that_is_over_is_waited_for_no_longer() {
    let in_boot = |s: &[Arc<Signed<ViewChange>>; 3], boot| {
        let nv = new_view(1, &s.each_ref(), 0, &[]).statement().clone();
        Arc::new(Signed::new(NewView { boot, ..nv }, |_| [0; 64]))
    };
    // Its last view-change comes after it: by then its primary, or somebody else, has started again.
    for (life, starts, begins) in [(0, boot(1, 1), false), (1, boot(1, 1), true), (0, boot(2, 1), true)] {
        // 2 has started again already when it says what it says.
        let boots = [life, life, 1];
        let s = [0, 1, 2].map(|from| signed(ViewChange { boot: boots[from as usize], ..view_change(from, 1) }));
        let mut backup = One::new(3);
        backup.hears_all(&s[..2]).begins(&in_boot(&s, life));
        assert!(backup.core.is_pending());
        backup.event(starts).hears(&s[2]);
        assert_eq!(!backup.core.is_pending(), begins, "of life {life}");
    }
    // Nor is one taken that comes afterwards.
    let s = nothing();
    let mut backup = One::new(3);
    backup.hears_all(&s).event(boot(1, 1)).begins(&in_boot(&s, 0));
    assert_eq!((backup.core.is_pending(), backup.core.counters().earlier_life), (true, 1));
}

#[test]
fn p28_p47_an_own_view_change_is_made_durable_once_and_sent_while_its_view_is_waited_for() {
    let mut backup = One::new(3);
    backup.slow_disk = true;
    backup.leave(&[0, 1], 1);
    let own = |view| signed(view_change(3, view));
    assert_eq!(backup.tokens.len(), 1);
    backup.hears(&own(1));
    assert_eq!(backup.tokens.len(), 1, "the same again");
    backup.leave(&[0, 1], 2);
    assert_eq!(backup.tokens.len(), 2);
    backup.hears(&own(1));
    assert_eq!(backup.tokens.len(), 2, "that view is left");
    let [first, second] = backup.tokens[..] else { panic!() };
    let sent = |one: &mut One| one.took().iter().filter(|m| matches!(m, Message::ViewChange(_))).count();
    backup.event(Event::Persisted(first));
    assert_eq!(sent(&mut backup), 0, "nothing is said that may be forgotten");
    backup.event(Event::Persisted(second));
    assert_eq!(sent(&mut backup), 1);

    let mut backup = One::new(3);
    backup.slow_disk = true;
    let s = nothing();
    backup.hears_all(&s).begins(&new_view(1, &s.each_ref(), 0, &[]));
    assert!(!backup.core.is_pending());
    let own = backup.tokens[0];
    backup.event(Event::Persisted(own));
    assert_eq!(sent(&mut backup), 0, "the view is there already");
    let tokens = backup.tokens.len();
    backup.hears(&signed(view_change(3, 2)));
    assert_eq!(backup.tokens.len(), tokens, "it did not leave");
}

#[test]
fn p42_b_the_highest_view_change_ever_heard_is_handed_back() {
    let mut peer = One::new(2);
    for view in [3, 5, 4] {
        peer.hears(&signed(view_change(1, view)));
    }
    peer.hears(&signed(view_change_at(1, 5, 0, 7)));
    peer.took();
    peer.message(1, Message::QueryStable(9));
    let answers = peer.took();
    let [Message::StableAnswer(answer)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(answer.view_change, Some(signed(view_change(1, 5))));
}
