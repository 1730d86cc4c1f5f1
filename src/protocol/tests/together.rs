//! Four cores and a network that loses messages.

use std::collections::VecDeque;

use super::*;

/// Four cores and a network that loses one message in `lossy`.
#[test]
fn p15_p37_four_replicas_agree_though_messages_are_lost() {
    for lossy in [0usize, 3, 4, 7, 11] {
        let mut replicas: Vec<One> = (0..4).map(One::new).collect();
        let mut wire: VecDeque<(u8, u8, Message)> = VecDeque::new();
        let mut count = 0usize;
        for t in 1..=30 {
            replicas[0].request(pack(1, t, 8));
        }
        let mut stable_asked = [0u64; 4];
        for _ in 0..20_000 {
            for me in 0..4u8 {
                let one = &mut replicas[usize::from(me)];
                for (to, message) in std::mem::take(&mut one.sent) {
                    for other in (0..4u8).filter(|r| *r != me && to.is_none_or(|to| to.0 == *r)) {
                        wire.push_back((me, other, message.clone()));
                    }
                }
                // The checkpoint role.
                let done = one.core.last_executed().0 / K * K;
                if done > stable_asked[usize::from(me)] {
                    stable_asked[usize::from(me)] += K;
                    let n = stable_asked[usize::from(me)];
                    one.checkpoint(me, n, n as u8);
                }
            }
            let Some((from, to, message)) = wire.pop_front() else {
                for one in &mut replicas {
                    one.pass(Duration::from_millis(1));
                }
                continue;
            };
            count += 1;
            if lossy != 0 && (count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).is_multiple_of(lossy) {
                continue;
            }
            let one = &mut replicas[usize::from(to)];
            match message {
                Message::PrePrepare(p) => drop(one.pre_prepare(from, &p, true)),
                Message::Checkpoint(c) => drop(one.event(Event::Claim(from_replica(from, Claim::Checkpoint(c))))),
                Message::Stable(proof) => drop(one.event(Event::Claim(from_replica(from, Claim::Stable(proof))))),
                other => drop(one.message(from, other)),
            }
        }
        let last = replicas[0].core.last_executed();
        assert!(last > SeqNum(0));
        for one in &replicas {
            assert_eq!(one.core.last_executed(), last, "lossy = {lossy}");
            assert_eq!(one.core.waiting(), 0);
            assert!(one.core.last_stable().0 + K > last.0, "lossy = {lossy}");
            let committed: Vec<u64> =
                one.did.iter().filter_map(|d| if let Did::Committed(n) = d { Some(*n) } else { None }).collect();
            assert_eq!(committed, (1..=last.0).collect::<Vec<_>>(), "in order, each once");
        }
    }
}
