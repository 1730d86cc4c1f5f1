//! Agreement cores that talk to each other in memory: no bytes, no keys, no clock but ours.

use std::collections::VecDeque;
use std::time::Duration;

mod transfer;

use super::*;
use crate::auth::{Principal, Verified};
use crate::types::{ClientId, ClusterSize, EndpointId, SessionId};
use crate::wire::{
    Batch, Claim, Committed, NewView, Pack, PackBuilder, Proof, Proposed, Request, RequestKind, Signed,
    SignedCheckpoint, Status, ViewChange,
};

const K: u64 = 4;
const L: u64 = 12;

fn pack(client: u64, t: u64, bytes: usize) -> Pack {
    let op = vec![t as u8; bytes];
    let request = Request { session: SessionId(client), t, low: 0, kind: RequestKind::Ordered, op: &op };
    let mut builder = PackBuilder::new(ClientId(client), EndpointId(client));
    builder.push(&request);
    builder.finish(false, |_, writer| writer.write(Proof::Vector(&[[0; 8]; 4])))
}

fn from_replica<T>(from: u8, inner: T) -> Verified<T> {
    Verified::assume(Principal::Replica(ReplicaId(from)), inner)
}

fn from_client(pack: Pack) -> Verified<Pack> {
    let principal = Principal::Client(pack.client(), pack.endpoint());
    Verified::assume(principal, pack)
}

fn pre_prepare(view: u64, n: u64, time: u64, packs: &[Pack]) -> PrePrepare {
    let packs = packs.iter().cloned().map(Proposed::Inline).collect();
    PrePrepare { view: View(view), n: SeqNum(n), choice: Choice { time, seed: 0 }, packs }
}

fn vote(n: u64, digest: Digest) -> Vote {
    Vote { view: View(0), n: SeqNum(n), digest }
}

/// What a replica did, as its execution role sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Did {
    Tentative(u64),
    Committed(u64),
    Rollback(u64),
}

/// One core and the actions that it took, for tests of a single replica against scripted others.
struct One {
    core: Agreement,
    me: ReplicaId,
    now: Time,
    sent: Vec<(Option<ReplicaId>, Message)>,
    did: Vec<Did>,
    notices: Vec<Notice>,
    queries: Vec<SeqNum>,
    /// Transfers asked for: n, and whether because of a divergence.
    transfers: Vec<(u64, bool)>,
    /// Comparisons asked for: n, and with how many.
    compared: Vec<(u64, usize)>,
    /// Answers of the disk are held back.
    slow_disk: bool,
    tokens: Vec<PersistToken>,
}

impl One {
    fn new(me: u8) -> One {
        One::with(me, |_| {})
    }

    fn with(me: u8, change: impl FnOnce(&mut Config)) -> One {
        let mut config = Config::new(ClusterSize::of(4).unwrap(), ReplicaId(me));
        (config.checkpoint_interval, config.log_window, config.pipeline_max) = (K, L, 8);
        config.view_timeout = Duration::from_secs(3_600);
        change(&mut config);
        let now = Time(1_000_000_000);
        let core = Agreement::new(config, now).unwrap();
        let (sent, did, notices, queries, transfers, compared, tokens) = Default::default();
        let me = ReplicaId(me);
        One { core, me, now, sent, did, notices, queries, transfers, compared, slow_disk: false, tokens }
    }

    /// What `replica` was caught at.
    fn caught(&self, replica: u8) -> Vec<(&'static str, u64)> {
        let peer = self.core.peers().find(|(id, _)| *id == ReplicaId(replica));
        peer.map_or_else(Vec::new, |(_, peer)| peer.misdeeds.iter().collect())
    }

    fn event(&mut self, event: Event) -> &mut One {
        let now = self.now;
        self.core.handle(now, event);
        self.drain();
        self
    }

    fn message(&mut self, from: u8, message: Message) -> &mut One {
        self.event(Event::Message(from_replica(from, message)))
    }

    fn pre_prepare(&mut self, from: u8, p: &PrePrepare, authentic: bool) -> &mut One {
        let authentic = vec![authentic; p.packs.len()];
        self.event(Event::PrePrepare(from_replica(from, Message::PrePrepare(p.clone())), authentic))
    }

    fn request(&mut self, pack: Pack) -> &mut One {
        self.event(Event::Request { pack: from_client(pack), signed: false })
    }

    fn pass(&mut self, time: Duration) -> &mut One {
        let until = self.now + time;
        while self.core.poll_timeout() <= until {
            self.now = self.now.max(self.core.poll_timeout());
            let now = self.now;
            self.core.handle_timeout(now);
            self.drain();
        }
        self.now = until;
        self
    }

    fn drain(&mut self) {
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Send(to, message) => self.sent.push((Some(to), message)),
                Action::Broadcast(message) => self.sent.push((None, message)),
                Action::Execute { n, tentative, .. } => {
                    self.did.push(if tentative { Did::Tentative(n.0) } else { Did::Committed(n.0) });
                    self.core.handle(self.now, Event::Executed(n));
                }
                Action::Commit(n) => self.did.push(Did::Committed(n.0)),
                Action::Rollback(n) => self.did.push(Did::Rollback(n.0)),
                Action::Query { after, .. } => self.queries.push(after),
                Action::Compare { n, others } => self.compared.push((n.0, others.len())),
                Action::Transfer { n, diverged, .. } => self.transfers.push((n.0, diverged)),
                Action::Persist(token, _) if self.slow_disk => self.tokens.push(token),
                Action::Persist(token, _) => self.core.handle(self.now, Event::Persisted(token)),
                Action::Stable { .. } => {}
                Action::SignViewChange(v) => {
                    let me = self.me;
                    let signed = Signed::new(ViewChange { replica: me, ..v }, |_| [0; 64]);
                    let claim = Claim::ViewChange(std::sync::Arc::new(signed));
                    self.core.handle(self.now, Event::Claim(from_replica(me.0, claim)));
                }
                Action::SignNewView(v) => {
                    let me = self.me;
                    let signed = Signed::new(NewView { replica: me, ..v }, |_| [0; 64]);
                    let claim = Claim::NewView(std::sync::Arc::new(signed));
                    self.core.handle(self.now, Event::Claim(from_replica(me.0, claim)));
                }
                Action::Recheck(pack) => {
                    self.core.handle(self.now, Event::Request { pack, signed: true });
                }
                Action::Notice(notice) => self.notices.push(notice),
            }
        }
    }

    /// What was sent since the last look, statuses left out.
    fn took(&mut self) -> Vec<Message> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_iter().map(|(_, m)| m).filter(|m| !matches!(m, Message::Status(_))).collect()
    }

    /// Lets `n` be agreed on with the help of two others; `self` is backup 1.
    fn agree(&mut self, n: u64) -> Digest {
        let p = pre_prepare(0, n, n, &[pack(9, n, 8)]);
        let d = p.digest();
        self.pre_prepare(0, &p, true);
        self.message(2, Message::Prepare(vote(n, d)));
        self.message(0, Message::Commit(vote(n, d)));
        self.message(2, Message::Commit(vote(n, d)));
        d
    }

    fn checkpoint(&mut self, from: u8, n: u64, root: u8) -> &mut One {
        let checkpoint = SignedCheckpoint {
            n: SeqNum(n),
            root: Digest([root; 32]),
            replica: ReplicaId(from),
            boot: 0,
            signature: [0; 64],
        };
        self.event(Event::Claim(from_replica(from, Claim::Checkpoint(checkpoint))))
    }
}

// ---- normal case --------------------------------------------------------------------------------------------------

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
fn p03_large_packs_are_proposed_by_digest_and_fetched_when_missing() {
    let large = pack(1, 1, 20_000);
    let mut primary = One::new(0);
    primary.request(large.clone());
    let sent = primary.took();
    let [Message::PrePrepare(p)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(p.packs, [Proposed::ByDigest(large.digest())]);

    // A backup that has the body from the client votes; one that has not asks for it.
    let mut lucky = One::new(1);
    lucky.request(large.clone()).event(Event::PrePrepare(from_replica(0, sent[0].clone()), vec![false]));
    assert!(matches!(&lucky.took()[..], [Message::Prepare(_)]));

    let mut unlucky = One::new(2);
    unlucky.event(Event::PrePrepare(from_replica(0, sent[0].clone()), vec![false]));
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
    late.event(Event::PrePrepare(from_replica(0, sent[0].clone()), vec![false]));
    late.event(Event::Body { pack: large.clone(), authentic: true });
    assert!(matches!(&late.took()[..], [Message::Prepare(_)]));
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
    let request = pack(1, 1, 8);
    let p = pre_prepare(0, 1, 1, std::slice::from_ref(&request));
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, false);
    backup.event(Event::Body { pack: request.clone(), authentic: false });
    assert!(backup.took().is_empty());
    backup.event(Event::Body { pack: request, authentic: true });
    assert_eq!(backup.took(), [Message::Prepare(vote(1, p.digest()))], "signed by the client, and sent to all");
}

#[test]
fn p44_a_batch_too_large_to_be_handed_on_gets_no_vote() {
    let packs: Vec<Pack> = (0..5).map(|t| pack(1, t, 1_000_000)).collect();
    let p = pre_prepare(0, 1, 1, &packs);
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, true);
    assert!(backup.took().is_empty());
    assert_eq!(backup.core.counters().oversized, 1);
    assert_eq!(backup.caught(0), [("oversized_batch", 1)]);

    let mut queue = Queue::default();
    for pack in packs {
        queue.push(pack, false, 32 << 20).unwrap();
    }
    assert_eq!(queue.take(8, 100, 1 << 20, 8 << 10).len(), 3, "a primary makes none");
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
    let mut backup = One::new(1);
    for vote in [vote(1, a.digest()), vote(1, a.digest()), vote(1, b.digest())] {
        backup.message(2, Message::Prepare(vote)).message(3, Message::Commit(vote));
    }
    assert_eq!([2, 3].map(|id| backup.caught(id)), [[("contradictory_vote", 1)]; 2]);
}

#[test]
fn p15_prepared_needs_2f_backups_and_committed_a_quorum_of_commits() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let d = p.digest();
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, true);
    backup.message(0, Message::Prepare(vote(1, d)));
    assert_eq!(backup.core.last_prepared(), SeqNum(0), "the primary's PREPARE counts for nothing");
    backup.message(2, Message::Prepare(vote(1, Digest([1; 32]))));
    backup.message(2, Message::Prepare(vote(1, d)));
    assert_eq!(backup.core.last_prepared(), SeqNum(0), "2's first vote was for another batch and stands");
    backup.message(3, Message::Prepare(vote(1, d)));
    assert_eq!(backup.core.last_prepared(), SeqNum(1));
    assert_eq!(backup.did, [Did::Tentative(1)]);
    backup.message(0, Message::Commit(vote(1, d))).message(0, Message::Commit(vote(1, d)));
    assert_eq!(backup.core.last_executed(), SeqNum(0), "two commits, own included, are no quorum");
    backup.message(2, Message::Commit(vote(1, d)));
    assert_eq!(backup.did, [Did::Tentative(1), Did::Committed(1)]);
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
fn p18_a_query_waits_for_everything_ever_prepared_here() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let mut backup = One::new(1);
    let query = || Event::Query(from_client(pack(5, 1, 4)));
    backup.event(query());
    backup.pre_prepare(0, &p, true).message(2, Message::Prepare(vote(1, p.digest())));
    backup.took();
    backup.event(query());
    assert_eq!(backup.queries, [SeqNum(0), SeqNum(1)]);
    assert_eq!(backup.took(), [Message::Commit(vote(1, p.digest()))], "P52: a query waits, so the commit leaves");
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
    let mut queue = Queue::default();
    for t in 0..5 {
        queue.push(pack(1, t, 8), false, 1 << 20).unwrap();
    }
    queue.push(pack(2, 0, 8), false, 1 << 20).unwrap();
    let taken = queue.take(3, 100, 1 << 20, 1 << 20);
    assert_eq!(taken.iter().map(|p| p.client().0).collect::<Vec<_>>(), [1, 2, 1]);
    assert_eq!(queue.requests(), 3);
    let oversized = queue.take(8, 100, 1, 1 << 20);
    assert_eq!(oversized.len(), 1, "at least one, whatever the bound");
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

// ---- committed, status --------------------------------------------------------------------------------------------

#[test]
fn p51_weak_quorum_of_committed_makes_it_committed_and_the_body_is_fetched() {
    let batch = Batch::new(Choice { time: 1, seed: 0 }, vec![pack(1, 1, 8)]);
    let committed = Committed { n: SeqNum(1), digest: batch.digest() };
    let mut starved = One::new(3);
    starved.message(1, Message::Committed(committed)).message(1, Message::Committed(committed));
    assert!(starved.took().is_empty(), "one replica's word is not enough");
    starved.message(2, Message::Committed(committed));
    assert_eq!(starved.took(), [Message::FetchBatch(committed)]);
    let forged = Batch::new(Choice { time: 2, seed: 0 }, vec![]);
    starved.message(2, Message::Batch(SeqNum(1), forged.into()));
    assert!(starved.did.is_empty());
    starved.message(2, Message::Batch(SeqNum(1), batch.into()));
    assert_eq!(starved.did, [Did::Committed(1)]);
}

#[test]
fn p51_a_tentative_execution_of_another_batch_is_rolled_back() {
    let lie = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let mut backup = One::new(1);
    backup.pre_prepare(0, &lie, true).message(2, Message::Prepare(vote(1, lie.digest())));
    assert_eq!(backup.did, [Did::Tentative(1)]);
    let truth = Batch::new(Choice { time: 1, seed: 0 }, vec![pack(2, 1, 8)]);
    let committed = Committed { n: SeqNum(1), digest: truth.digest() };
    for from in [2, 3] {
        backup.message(from, Message::Committed(committed));
    }
    assert_eq!(backup.did, [Did::Tentative(1), Did::Rollback(1)]);
    backup.message(3, Message::Batch(SeqNum(1), truth.into()));
    assert_eq!(backup.did, [Did::Tentative(1), Did::Rollback(1), Did::Committed(1)]);
}

#[test]
fn p51_the_body_of_a_candidate_that_could_not_be_accepted_serves() {
    let p = pre_prepare(0, 1, 1, &[pack(1, 1, 8)]);
    let mut backup = One::new(1);
    backup.pre_prepare(0, &p, false);
    let committed = Committed { n: SeqNum(1), digest: p.digest() };
    for from in [2, 3] {
        backup.message(from, Message::Committed(committed));
    }
    assert_eq!(backup.did, [Did::Committed(1)], "no fetch was needed");
}

fn status(executed: u64, stable: u64) -> Status {
    let (executed, stable) = (SeqNum(executed), SeqNum(stable));
    let (prepared, committed) = (vec![], vec![]);
    Status {
        view: View(0),
        stable,
        executed,
        forgetful: false,
        wants: true,
        pending: false,
        view_changes: crate::types::ReplicaSet::EMPTY,
        nonce: 77,
        prepared,
        committed,
    }
}

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

// ---- checkpoints --------------------------------------------------------------------------------------------------

#[test]
fn p24_a_quorum_of_equal_checkpoints_moves_the_watermarks() {
    let mut backup = One::new(1);
    for n in 1..=K {
        backup.agree(n);
    }
    backup.checkpoint(1, K, 7).checkpoint(0, K, 7).checkpoint(0, K, 7);
    assert_eq!(backup.core.last_stable(), SeqNum(0), "two replicas are no quorum");
    assert!(backup.took().iter().any(|m| matches!(m, Message::Checkpoint(c) if c.replica == ReplicaId(1))));
    backup.checkpoint(2, K, 7);
    assert_eq!(backup.core.last_stable(), SeqNum(K));
    assert_eq!(backup.core.stable_proof().len(), 3);
    assert_eq!(backup.core.log.high(), SeqNum(K + L));
}

#[test]
fn p24_votes_wait_for_a_replica_that_has_not_executed_so_far() {
    let mut backup = One::new(1);
    for from in [0, 2, 3] {
        backup.checkpoint(from, K, 7);
    }
    assert_eq!(backup.core.last_stable(), SeqNum(0));
    for n in 1..=K {
        backup.agree(n);
    }
    backup.checkpoint(1, K, 7);
    assert_eq!(backup.core.last_stable(), SeqNum(K));
}

#[test]
fn p24_a_peer_that_is_behind_gets_the_proofs_and_entries_it_needs() {
    let mut backup = One::new(1);
    backup.message(3, Message::Status(Status { wants: false, ..status(0, 0) }));
    for n in 1..=2 * K {
        backup.agree(n);
    }
    for n in [K, 2 * K] {
        for from in [0, 1, 2] {
            backup.checkpoint(from, n, 7);
        }
    }
    assert_eq!(backup.core.last_stable(), SeqNum(2 * K));
    backup.pass(Duration::from_millis(10)).took();
    backup.message(3, Message::Status(status(0, 0)));
    let sent = backup.took();
    let proofs: Vec<u64> =
        sent.iter().filter_map(|m| if let Message::Stable(p) = m { Some(p[0].n.0) } else { None }).collect();
    assert_eq!(proofs, [K, 2 * K], "the first that it can check, and the last");
    assert_eq!(sent.iter().filter(|m| matches!(m, Message::Committed(_))).count(), 2 * K as usize);
}

#[test]
fn p25_a_weak_quorum_against_us_is_suspicious_and_a_quorum_means_diverged() {
    let mut backup = One::new(1);
    for n in 1..=K {
        backup.agree(n);
    }
    backup.checkpoint(1, K, 1).checkpoint(0, K, 7).checkpoint(2, K, 7);
    assert_eq!(backup.notices, [Notice::Suspect(SeqNum(K))]);
    assert_eq!(backup.core.mode(), Mode::Normal);
    backup.checkpoint(3, K, 7);
    let (n, ours, certified) = (SeqNum(K), Digest([1; 32]), Digest([7; 32]));
    assert_eq!(backup.notices.last(), Some(&Notice::Diverged { n, ours, certified }));
    assert_eq!(backup.core.mode(), Mode::Diverged);
    backup.took();
    backup.pre_prepare(0, &pre_prepare(0, K + 1, 9, &[]), true);
    assert!(backup.took().is_empty(), "a diverged replica votes no more");
}

#[test]
fn p25_no_possible_quorum_means_split_and_nothing_is_proposed() {
    let mut primary = One::new(0);
    for t in 1..=K {
        primary.request(pack(1, t, 8));
        let d = primary.core.log.get(SeqNum(t)).unwrap().pre_prepare.unwrap().1;
        for backup in [1, 2] {
            primary.message(backup, Message::Prepare(vote(t, d))).message(backup, Message::Commit(vote(t, d)));
        }
    }
    primary.checkpoint(0, K, 1).checkpoint(1, K, 2).checkpoint(2, K, 3);
    assert_eq!(primary.core.mode(), Mode::Split);
    primary.took();
    primary.request(pack(1, 9, 8));
    assert!(!primary.took().iter().any(|m| matches!(m, Message::PrePrepare(_))));
}

// ---- until transfer and view changes are there ---------------------------------------------------------------------

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

#[test]
fn p37_p51_lies_about_what_is_done_are_counted_by_name() {
    let mut backup = One::new(1);
    let [a, b] = [1, 2].map(|t| pre_prepare(0, 1, t, &[pack(1, t, 8)]).digest());
    for digest in [a, a, b] {
        backup.message(3, Message::Committed(Committed { n: SeqNum(1), digest }));
    }
    backup.message(2, Message::Committed(Committed { n: SeqNum(1), digest: b }));
    backup.message(2, Message::Batch(SeqNum(1), Batch::null().into()));
    assert_eq!(backup.caught(3), [("contradictory_committed", 1)]);
    assert_eq!(backup.caught(2), [("wrong_body", 1)]);
    let mut backup = One::new(1);
    backup.message(2, Message::Status(status(3, 4))).message(2, Message::Status(status(L + 1, 0)));
    backup.checkpoint(2, K + 1, 7);
    assert_eq!(backup.caught(2), [("odd_checkpoint", 1), ("absurd_status", 2)]);
}

#[test]
fn p24_entries_stay_for_a_peer_that_is_silent_for_now() {
    // Replica 3 was never heard; it may only be slow to start. The others need nothing of what is stable.
    let mut backup = One::new(1);
    for other in [0, 2] {
        backup.message(other, Message::Status(Status { wants: false, ..status(100, 100) }));
    }
    for n in 1..=2 * K {
        backup.agree(n);
    }
    for n in [K, 2 * K] {
        for from in [0, 1, 2] {
            backup.checkpoint(from, n, 7);
        }
    }
    assert_eq!(backup.core.last_stable(), SeqNum(2 * K));
    backup.pass(Duration::from_millis(10)).took();
    backup.message(3, Message::Status(status(0, 0)));
    let sent = backup.took();
    assert_eq!(sent.iter().filter(|m| matches!(m, Message::Committed(_))).count(), 2 * K as usize, "{sent:?}");
    assert_eq!(sent.iter().filter(|m| matches!(m, Message::Stable(_))).count(), 2);
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

// ---- all together -------------------------------------------------------------------------------------------------

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
                Message::Stable(proof) => {
                    for c in proof {
                        one.event(Event::Claim(from_replica(c.replica.0, Claim::Checkpoint(c))));
                    }
                }
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
