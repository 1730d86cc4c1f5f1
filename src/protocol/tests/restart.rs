//! A replica that forgot its votes (P42).

use super::*;

#[test]
fn p42_a_forgetful_replica_says_that_it_is_there_and_nothing_else() {
    let mut reborn = One::with(3, |c| c.forgetful = true);
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    reborn.pre_prepare(0, &p, true).message(1, Message::Prepare(vote(1, p.digest())));
    reborn.message(1, Message::Status(status(0, 0)));
    reborn.event(Event::Query(from_client(pack(5, 1, 4)))).request(pack(1, 1, 8));
    reborn.pass(Duration::from_secs(1));
    assert!(reborn.did.is_empty() && reborn.queries.is_empty());
    assert!(!reborn.sent.is_empty());
    let only_news = |m: &Message| matches!(m, Message::Status(s) if s.forgetful && !s.wants);
    assert!(reborn.sent.iter().all(|(_, m)| only_news(m)), "{:?}", reborn.sent);
}
