//! STATUS and its answers (P37).

use super::*;

#[test]
fn p37_a_status_is_sent_while_something_is_missing_and_only_then() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let wanted = |one: &mut One| {
        let sent = std::mem::take(&mut one.sent);
        sent.iter().filter(|(_, m)| matches!(m, Message::Status(s) if s.wants)).count()
    };
    let mut backup = One::new(1);
    backup.pass(Duration::from_secs(1));
    assert_eq!(wanted(&mut backup), 0);
    backup.pre_prepare(0, &p, true);
    backup.pass(Duration::from_millis(100));
    assert!(wanted(&mut backup) >= 3);
    for other in [0, 2, 3] {
        if other != 0 {
            backup.message(other, Message::Prepare(vote(1, p.digest())));
        }
        backup.message(other, Message::Commit(vote(1, p.digest())));
    }
    wanted(&mut backup);
    backup.pass(Duration::from_secs(1));
    assert_eq!(wanted(&mut backup), 0);
}

#[test]
fn p37_an_answer_holds_what_the_sender_lacks_and_echoes_the_nonce() {
    let mut backup = One::new(1);
    let d1 = backup.agree(1);
    let p = pre_prepare(0, 2, 2, &[pack(9, 2, 8)]);
    backup.pre_prepare(0, &p, true);
    backup.pass(Duration::from_millis(10)).took();
    backup.message(3, Message::Status(status(0, 0)));
    let sent = backup.took();
    assert!(sent.contains(&Message::Committed(Committed { n: SeqNum(1), digest: d1 })), "{sent:?}");
    assert!(sent.contains(&Message::Prepare(vote(2, p.digest()))), "{sent:?}");
    assert_eq!(sent.last(), Some(&Message::Answered(77)));
    backup.message(3, Message::Status(status(0, 0)));
    assert!(backup.took().is_empty(), "not again within a few milliseconds");
    backup.pass(Duration::from_millis(10)).took();
    let mut has_both = status(0, 0);
    (has_both.prepared, has_both.committed) = (vec![0b11], vec![0b01]);
    backup.message(3, Message::Status(has_both));
    assert_eq!(backup.took(), [Message::Answered(77)]);
}

#[test]
fn p37_an_answer_is_bounded_in_bytes() {
    let mut primary = One::with(0, |c| {
        c.pipeline_max = 8;
        c.answer_bytes_max = c.batch_bytes_max;
        c.inline_max = 200_000;
    });
    for t in 1..=6 {
        primary.request(pack(1, t, 150_000));
        let n = primary.core.last_proposed.0;
        let d = primary.core.log.get(SeqNum(n)).unwrap().pre_prepare.unwrap().1;
        primary.message(1, Message::Prepare(vote(n, d))).message(2, Message::Prepare(vote(n, d)));
    }
    primary.pass(Duration::from_millis(10)).took();
    primary.message(3, Message::Status(status(0, 0)));
    let sent = primary.took();
    let bodies = sent.iter().filter(|m| matches!(m, Message::PrePrepare(_))).count();
    assert!((1..=2).contains(&bodies), "256 KiB hold one or two of 150,000 bytes: {bodies}");
}
