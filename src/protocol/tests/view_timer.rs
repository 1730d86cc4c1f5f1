//! When a view has had its time (P26).

use super::*;

const T: u64 = 100;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Backup 1 in view 0.
fn backup() -> One {
    One::with(1, |c| {
        c.view_timeout = ms(T);
        c.log_window = 16 * K;
    })
}

impl One {
    fn stays(&mut self, time: u64) -> &mut One {
        self.pass(ms(time));
        assert_eq!(self.core.view(), View(0), "too early");
        self
    }

    fn goes(&mut self, time: u64) {
        self.pass(ms(time));
        assert_eq!(self.core.view(), View(1), "too late");
    }

    /// Batch `n` is accepted now and executed `took` later.
    fn takes(&mut self, n: u64, took: u64) {
        let p = pre_prepare(0, n, n, &[pack(9, n, 8)]);
        self.pre_prepare(0, &p, true).stays(took);
        self.agree(n);
        assert_eq!(self.core.last_executed(), SeqNum(n));
    }
}

#[test]
fn p26_a_signed_request_or_an_accepted_pre_prepare_runs_the_timer_and_nothing_else() {
    backup().request(pack(1, 1, 8)).stays(1_000);
    backup().signed_request(pack(1, 1, 8)).stays(T - 1).goes(2);
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    backup().pre_prepare(0, &p, false).stays(1_000);
    backup().pre_prepare(0, &p, true).stays(T - 1).goes(2);
    let last = pre_prepare(0, 8, 8, &[pack(1, 1, 8)]);
    backup().pre_prepare(0, &last, true).stays(T - 1).goes(2);
    // What a primary itself waits for, too: it may be the one whose company another waits for (P30).
    One::with(0, |c| c.view_timeout = ms(T)).request(pack(1, 1, 8)).stays(T - 1).goes(2);
}

#[test]
fn p26_the_oldest_counts_from_when_it_became_the_oldest() {
    let mut one = backup();
    one.signed_request(pack(9, 1, 8)).stays(60);
    one.signed_request(pack(1, 1, 8)).stays(30);
    one.agree(1);
    // The second came 30 ms ago; its time begins now that the first has executed.
    one.stays(T - 1).goes(2);

    // What came later moves nothing: the first keeps its deadline.
    let mut one = backup();
    one.signed_request(pack(1, 1, 8)).stays(60).signed_request(pack(2, 1, 8)).stays(T - 61).goes(2);
}

#[test]
fn p02_p26_a_large_request_is_handed_on_when_half_of_its_time_is_over() {
    let relays = |one: &mut One| one.took().into_iter().filter(|m| matches!(m, Message::Relay(_))).collect::<Vec<_>>();
    let (small, large, next) = (pack(1, 1, 8), pack(2, 1, 20_000), pack(3, 1, 20_000));
    let mut one = backup();
    one.signed_request(small.clone());
    assert_eq!(relays(&mut one), [Message::Relay(small)], "its client may have sent it to few");
    let mut one = backup();
    one.signed_request(large.clone()).signed_request(large.clone()).signed_request(next.clone()).stays(T / 2 - 1);
    assert_eq!(relays(&mut one), []);
    one.stays(1);
    assert_eq!(relays(&mut one), [Message::Relay(large.clone())], "the primary may lack it");
    one.stays(T / 2 - 1);
    assert_eq!(relays(&mut one), [], "once, and what waits behind it not at all");
    one.goes(2);

    // The primary has it; it settles in time, and so does the next.
    let mut one = backup();
    one.signed_request(large.clone()).signed_request(next.clone()).stays(T / 2 - 1);
    one.event(Event::Settled(large.digest())).stays(T / 2 - 1);
    assert_eq!(relays(&mut one), []);
    one.stays(1);
    assert_eq!(relays(&mut one), [Message::Relay(next)]);
}

#[test]
fn p26_what_arrived_is_handled_before_the_timer_fires() {
    let mut one = backup();
    one.signed_request(pack(9, 1, 8));
    // 10 ms late, and in the receive queue lies what executes the request.
    one.now = one.now + ms(T + 10);
    one.agree(1);
    one.stays(1_000);
}

#[test]
fn p26_time_in_which_the_own_loop_stood_still_does_not_count() {
    let mut one = backup();
    one.signed_request(pack(1, 1, 8)).stays(50).event(executed(0));
    // 450 ms without a turn: 50 ms are left of the time.
    one.now = one.now + ms(450);
    one.stays(0).stays(49).goes(2);
    // A hiccup of 20 ms is none.
    let mut one = backup();
    one.signed_request(pack(1, 1, 8)).stays(50).event(executed(0));
    one.now = one.now + ms(T - 50 + 20);
    one.goes(0);
}

#[test]
fn p26_where_execution_takes_long_the_timer_does_too_up_to_a_second() {
    let mut one = backup();
    let mut n = 0;
    // Each is below the time that the ones before have earned.
    for (took, then) in [(10, T), (90, 360), (300, 1_000), (900, 1_000)] {
        for _ in 0..15 {
            n += 1;
            one.takes(n, took);
        }
        // What follows is a copy that others never see.
        let at = n + 1;
        let p = pre_prepare(0, at, at, &[pack(9, at, 8)]);
        one.pre_prepare(0, &p, true).stays(then - 1);
        if took < 900 {
            one.agree(at);
            n = at;
        } else {
            one.goes(2);
        }
    }
}

#[test]
fn p26_the_median_of_the_last_fifteen_counts_and_not_the_slowest() {
    for (slow, earned) in [(7, T), (8, 360)] {
        let mut one = backup();
        for n in 1..=8 + slow {
            one.takes(n, if n > 8 { 90 } else { 5 });
        }
        one.signed_request(pack(1, 1, 8)).stays(earned - 1).goes(2);
    }
}

#[test]
fn p26_what_is_committed_and_was_never_accepted_here_took_no_time() {
    let mut one = backup();
    for n in 1..=15 {
        let batch = Batch::new(Choice { time: n, seed: 0 }, vec![pack(9, n, 8)]);
        let committed = Committed { n: SeqNum(n), digest: batch.digest() };
        one.message(2, Message::Committed(committed)).message(3, Message::Committed(committed));
        one.message(3, Message::Batch(SeqNum(n), batch.into()));
    }
    assert_eq!(one.core.last_executed(), SeqNum(15));
    one.signed_request(pack(1, 1, 8)).stays(T - 1).goes(2);
}

#[test]
fn p26_a_request_that_cannot_execute_any_more_ends_no_view() {
    let mut one = backup();
    one.executes = false;
    one.signed_request(pack(1, 1, 8)).stays(T + 1);
    assert_eq!(one.rechecked, 1, "it is asked for once, and then forgotten");
    one.stays(1_000);
    assert_eq!(one.rechecked, 1);
    // The next is asked for in its turn, and has its own time.
    one.executes = true;
    one.signed_request(pack(1, 2, 8)).stays(T - 1).goes(2);
    assert_eq!(one.rechecked, 3);
}

#[test]
fn p26_what_cannot_execute_any_more_takes_no_time_of_what_can() {
    let mut one = backup();
    let again: Vec<_> = (1..=50).map(|t| pack(1, t, 8)).collect();
    one.executed = again.iter().skip(1).map(Pack::digest).collect();
    for pack in again {
        one.signed_request(pack);
    }
    one.signed_request(pack(2, 1, 8)).stays(T - 1);
    // The first executes in another pack at the last moment; the next that would execute is the last.
    one.executed.push(pack(1, 1, 8).digest());
    one.stays(T).goes(2);
}

#[test]
fn p21_a_client_has_its_quota_of_signed_requests_waiting_whatever_went_before() {
    let asked = |t| pack(1, t, 600_000);
    let mut one = One::with(1, |c| c.client_bytes_max = 4 * asked(1).encoded().len());
    let waits = |one: &One| one.core.waiting.packs().iter().filter(|p| p.client() == ClientId(1)).count();
    for t in 1..=5 {
        one.signed_request(asked(t));
    }
    assert_eq!(waits(&one), 4);
    one.event(Event::Settled(asked(1).digest())).signed_request(asked(6)).signed_request(asked(7));
    assert_eq!(waits(&one), 4);
    one.signed_request(pack(2, 1, 8));
    assert_eq!(one.core.waiting.packs().len(), 5, "another client has its own");
}

#[test]
fn p26_a_new_primary_proposes_at_once_what_waits_for_it_and_a_backup_keeps_its_copies() {
    let mut primary = backup();
    primary.signed_request(pack(1, 1, 8)).signed_request(pack(2, 1, 8)).follow(1);
    let sent = primary.took();
    let proposed = sent.iter().find_map(|m| if let Message::PrePrepare(p) = m { Some(p) } else { None });
    let packs = [1, 2].map(|client| Proposed::Inline(pack(client, 1, 8)));
    assert_eq!(proposed.map(|p| (p.view, &p.packs[..])), Some((View(1), &packs[..])), "{sent:?}");

    let mut kept = One::with(3, |c| c.view_timeout = ms(T));
    kept.signed_request(pack(1, 1, 8)).follow(1);
    kept.pass(ms(2 * T - 1));
    assert_eq!(kept.core.view(), View(1), "one view failed: twice the time");
    kept.pass(ms(2));
    assert_eq!(kept.core.view(), View(2), "the request still waits");
}
