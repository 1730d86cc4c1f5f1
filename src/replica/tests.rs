//! Four fused replicas and a client in one thread, with real bytes and real keys and a perfect network.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::auth::{AuthMode, Clients, ClusterKeys, FreshKey, Identity, Rights};
use crate::client::{Endpoint, EndpointConfig};
use crate::services::Null;
use crate::transport::Peer;
use crate::types::{ClusterSize, EndpointId, ReplicaId};

struct Cluster {
    replicas: Vec<Replica<Null>>,
    client: Endpoint,
    now: Time,
    to_replicas: Vec<Vec<Datagram>>,
    to_client: Vec<Datagram>,
    datagrams: usize,
    /// Cut off from everybody.
    cut: Option<ReplicaId>,
    /// Its loop stands still; what is sent to it waits.
    paused: Option<usize>,
}

fn client_address() -> SocketAddr {
    "127.0.0.1:9".parse().expect("an address")
}

fn keys() -> Arc<ClusterKeys> {
    let client = Identity::from_seed([99; 32]).public();
    let rights = Rights { read: true, write: true, administer: false };
    let listed = [(client.client_id(), (client, rights))].into_iter().collect();
    Arc::new(ClusterKeys {
        cluster: Digest([5; 32]),
        instance: 1,
        replicas: (0..4).map(|i| Identity::from_seed([i; 32]).public()).collect(),
        clients: Clients::Listed(listed),
    })
}

/// Replica `i` as it starts for the `boot`-th time.
fn start(i: u8, boot: u64, mode: AuthMode, now: Time, change: impl Fn(&mut ReplicaConfig)) -> Replica<Null> {
    let (me, size) = (ReplicaId(i), ClusterSize::of(4).expect("a size"));
    let mut config = ReplicaConfig::new(protocol::Config::new(size, me));
    config.protocol.checkpoint_interval = 8;
    config.protocol.log_window = 32;
    config.execution.checkpoint_interval = 8;
    config.trace = true;
    change(&mut config);
    let mut keyring = Keyring::replica(me, &Identity::from_seed([i; 32]), keys(), mode).expect("keys");
    keyring.begin(&FreshKey::at_boot(boot, [50 + 10 * i + boot as u8; 32])).expect("keys");
    Replica::new(config, keyring, Null, now).expect("a replica")
}

impl Cluster {
    fn new(mode: AuthMode, change: impl Fn(&mut ReplicaConfig)) -> Cluster {
        let (now, keys, client) = (Time(1_000_000_000), keys(), Identity::from_seed([99; 32]));
        let replicas = (0..4).map(|i| start(i, 1, mode, now, &change)).collect();
        let keyring = Keyring::client(&client, EndpointId(7), keys.clone(), mode).expect("keys");
        let client = Endpoint::new(EndpointConfig::default(), keyring, 1);
        let to_replicas = vec![Vec::new(); 4];
        Cluster { replicas, client, now, to_replicas, to_client: Vec::new(), datagrams: 0, cut: None, paused: None }
    }

    /// One turn of everybody. Who is cut off neither sends nor receives.
    fn turn(&mut self) {
        let mut out = Vec::new();
        self.client.turn(self.now, &mut self.to_client, &mut out);
        let mut routed: VecDeque<(Peer, Outgoing)> =
            out.into_iter().map(|o| (Peer::Address(client_address()), o)).collect();
        for (i, replica) in self.replicas.iter_mut().enumerate() {
            let mut out = Vec::new();
            if self.paused == Some(i) {
                continue;
            }
            replica.turn(self.now, &mut self.to_replicas[i], &mut out);
            routed.extend(out.into_iter().map(|o| (Peer::Replica(ReplicaId(i as u8)), o)));
        }
        self.datagrams += routed.len();
        let cut = self.cut.map(Peer::Replica);
        for (from, outgoing) in routed {
            if cut.is_some_and(|cut| cut == from || cut == outgoing.to) {
                continue;
            }
            let datagram = Datagram { from, bytes: outgoing.to_bytes() };
            match outgoing.to {
                Peer::Replica(id) => self.to_replicas[usize::from(id.0)].push(datagram),
                Peer::Address(_) => self.to_client.push(datagram),
            }
        }
        self.now = self.now + Duration::from_micros(20);
    }

    /// Turns until the client has its answer.
    fn answer(&mut self) -> Bytes {
        for _ in 0..20_000 {
            if let Some(completion) = self.client.poll_completion() {
                return completion.result.expect("a certified result");
            }
            self.turn();
        }
        panic!("no answer");
    }
}

fn run(mode: AuthMode) {
    let mut cluster = Cluster::new(mode, |_| {});
    let session = cluster.client.open_session(4).expect("a session");
    for reply in [0usize, 1, 100, 1_000, 50_000] {
        let op = Bytes::from(Null::op(20, reply));
        cluster.client.submit(session, op.clone()).expect("within the window");
        assert_eq!(cluster.answer().len(), reply);
        cluster.client.query(op).expect("within bounds");
        assert_eq!(cluster.answer().len(), reply);
    }
    cluster.client.submit(session, Null::op(200_000, 3).into()).expect("within the window");
    assert_eq!(cluster.answer().len(), 3, "a request of many fragments");
    for _ in 0..40 {
        cluster.client.submit(session, Null::op(0, 0).into()).expect("within the window");
        cluster.answer();
    }
    for _ in 0..500 {
        cluster.turn();
    }
    let reports: Vec<StatusReport> = cluster.replicas.iter().map(Replica::status).collect();
    let feeds: Vec<_> = cluster.replicas.iter_mut().map(Replica::drain_committed).collect();
    for (report, feed) in reports.iter().zip(&feeds) {
        assert_eq!(feed, &feeds[0], "the same batches in the same order");
        assert_eq!(report.executed, reports[0].executed);
        assert!(report.stable.0 + 8 > report.executed.0, "checkpoints follow: {report:?}");
        assert_eq!(report.checkpoints.last(), reports[0].checkpoints.last(), "equal roots");
        assert!(
            report.rejects.iter().all(|(name, count)| *count == 0 || *name == "unknown_epoch"),
            "{:?}",
            report.rejects
        );
    }
}

#[test]
fn p05_p07_p24_requests_of_every_size_are_answered_and_checkpoints_follow() {
    run(AuthMode::Mac);
}

#[test]
fn p40_the_same_with_signatures_instead_of_macs() {
    run(AuthMode::Signature);
}

#[test]
fn p16_p52_a_lone_request_takes_few_datagrams() {
    let mut cluster = Cluster::new(AuthMode::Mac, |_| {});
    let session = cluster.client.open_session(4).expect("a session");
    let mut ask = || {
        cluster.client.submit(session, Null::op(0, 0).into()).expect("within the window");
        cluster.answer();
        std::mem::take(&mut cluster.datagrams)
    };
    ask();
    let counts: Vec<usize> = (0..50).map(|_| ask()).collect();
    let mean = counts.iter().sum::<usize>() as f64 / 50.0;
    // 1 request, 3 pre-prepares, 9 prepares, 4 replies; commits ride. Heartbeats and checkpoints come on top.
    assert!(mean < 24.0, "{counts:?}");
}

/// Executes so many requests, one after the other.
fn work(cluster: &mut Cluster, session: crate::client::Session, requests: usize) {
    for _ in 0..requests {
        cluster.client.submit(session, Null::op(10, 200).into()).expect("within the window");
        cluster.answer();
    }
}

fn idle(cluster: &mut Cluster, time: Duration) {
    let until = cluster.now + time;
    while cluster.now < until {
        cluster.turn();
    }
}

/// All have the same state, and nobody lags.
fn agree(cluster: &Cluster) {
    let reports: Vec<StatusReport> = cluster.replicas.iter().map(Replica::status).collect();
    for (report, replica) in reports.iter().zip(&cluster.replicas) {
        assert_eq!((report.executed, report.stable), (reports[0].executed, reports[0].stable), "{report:?}");
        assert_eq!(replica.executor.state().full_root(), cluster.replicas[0].executor.state().full_root());
        assert_eq!((report.mode, report.transferring), (protocol::Mode::Normal, None));
    }
}

#[test]
fn p38_p39_a_replica_that_was_cut_off_fetches_the_state_and_answers_for_what_it_skipped() {
    let mut cluster = Cluster::new(AuthMode::Mac, |_| {});
    let session = cluster.client.open_session(4).expect("a session");
    work(&mut cluster, session, 20);
    cluster.cut = Some(ReplicaId(3));
    work(&mut cluster, session, 200);
    let before = cluster.replicas[3].status().executed;
    cluster.cut = None;
    // Load goes on while it catches up.
    work(&mut cluster, session, 100);
    idle(&mut cluster, Duration::from_millis(400));
    agree(&cluster);
    let report = cluster.replicas[3].status();
    assert!(report.counters.transfers >= 1, "{report:?}");
    let feed = cluster.replicas[3].drain_committed();
    let Some(fetched) = feed.iter().find_map(|fed| if let Fed::Fetched(n) = fed { Some(*n) } else { None }) else {
        panic!("nothing was fetched")
    };
    assert!(fetched > before, "it skipped what lay between");

    // The last request before the transfer, which replica 3 did not execute: it knows the result all the same.
    let batches = cluster.replicas[0].drain_committed();
    let batch = batches.into_iter().find_map(|fed| match fed {
        Fed::Committed(n, batch) if n == fetched => Some(batch),
        Fed::Committed(..) | Fed::Fetched(_) => None,
    });
    let pack = batch.expect("the others executed it").packs()[0].clone();
    let client = crate::auth::Principal::Client(pack.client(), pack.endpoint());
    let view = protocol_view(&cluster);
    let outcomes = |replica: &mut Replica<Null>| {
        let mut outputs = Vec::new();
        let pack = crate::auth::Verified::assume(client, pack.clone());
        replica.executor.handle(replica.now, Command::Admit { pack, view }, &mut outputs);
        let reply = |output: Output| {
            if let Output::Reply(reply) = output { Some((reply.position, reply.outcome)) } else { None }
        };
        outputs.into_iter().filter_map(reply).collect::<Vec<_>>()
    };
    let (theirs, ours) = (outcomes(&mut cluster.replicas[0]), outcomes(&mut cluster.replicas[3]));
    assert_eq!(theirs, ours, "cached results come with the state");
}

fn protocol_view(cluster: &Cluster) -> crate::types::View {
    cluster.replicas[0].agreement.view()
}

#[test]
fn p25_p38_a_state_that_went_wrong_is_found_named_and_healed() {
    let mut cluster = Cluster::new(AuthMode::Mac, |_| {});
    let session = cluster.client.open_session(4).expect("a session");
    work(&mut cluster, session, 20);
    cluster.replicas[2].executor.state_mut().service.write(crate::state::PageId(0), 2_000..2_001)[0] ^= 0x40;
    work(&mut cluster, session, 30);
    idle(&mut cluster, Duration::from_millis(400));
    let report = cluster.replicas[2].status();
    assert_eq!((report.counters.healed, report.mode), (1, protocol::Mode::Normal), "{report:?}");
    let divergence = report.divergence.expect("it says what was wrong");
    assert_eq!((divergence.pages, divergence.count), (vec![(crate::types::RegionId::Service, 0)], 1));
    assert!(divergence.exact && divergence.healed);
    assert_eq!(report.fetched.pages, 1);
    work(&mut cluster, session, 20);
    idle(&mut cluster, Duration::from_millis(400));
    agree(&cluster);
    for (id, replica) in cluster.replicas.iter().enumerate().filter(|(id, _)| *id != 2) {
        assert_eq!(replica.status().counters.transfers, 0, "r{id}");
    }
}

/// Every replica dies and starts again without memory, one after the other, the primary of view 0 first; under load.
#[test]
fn p40_p42_p50_replicas_restarted_without_memory_are_heard_and_recover_one_after_the_other() {
    for mode in [AuthMode::Mac, AuthMode::Signature] {
        let mut cluster = Cluster::new(mode, |_| {});
        let session = cluster.client.open_session(4).expect("a session");
        work(&mut cluster, session, 20);
        for (round, id) in [0, 1, 2, 3, 0, 1].into_iter().enumerate() {
            let boot = 2 + round as u64 / 4;
            cluster.replicas[id] = start(id as u8, boot, mode, cluster.now, |config| config.protocol.forgetful = true);
            let began = cluster.now;
            while cluster.replicas[id].agreement.is_recovering() {
                work(&mut cluster, session, 1);
                let took = cluster.now.since(began);
                assert!(took < Duration::from_secs(2), "{round}: {:?}", cluster.replicas[id].status());
            }
            for other in (0..4).filter(|other| *other != id) {
                let status = cluster.replicas[other].status();
                let peer = status.peers.iter().find(|peer| peer.id.0 == id as u8).expect("known");
                assert_eq!((peer.boot, peer.bad_macs), (boot, 0));
                assert!(peer.misdeeds.is_empty(), "{round}: {:?}", peer.misdeeds);
            }
            idle(&mut cluster, Duration::from_millis(300));
            agree(&cluster);
        }
    }
}

/// Nobody asks for anything: the primary goes on with null batches (P42 d).
#[test]
fn p42_d_an_idle_cluster_lets_a_restarted_replica_recover() {
    let mut cluster = Cluster::new(AuthMode::Mac, |_| {});
    let session = cluster.client.open_session(4).expect("a session");
    work(&mut cluster, session, 3);
    cluster.replicas[2] = start(2, 2, AuthMode::Mac, cluster.now, |config| config.protocol.forgetful = true);
    let began = cluster.now;
    while cluster.replicas[2].agreement.is_recovering() {
        cluster.turn();
        assert!(cluster.now.since(began) < Duration::from_secs(1), "{:?}", cluster.replicas[2].status());
    }
    work(&mut cluster, session, 3);
    idle(&mut cluster, Duration::from_millis(300));
    agree(&cluster);
}

#[test]
fn p25_where_no_state_can_be_certified_the_replicas_say_what_differs_from_whom() {
    let mut cluster = Cluster::new(AuthMode::Mac, |_| {});
    let session = cluster.client.open_session(4).expect("a session");
    work(&mut cluster, session, 3);
    for (replica, at) in [(1, 2_000), (2, 3_000)] {
        cluster.replicas[replica].executor.state_mut().service.write(crate::state::PageId(0), at..at + 1)[0] ^= 1;
    }
    for _ in 0..8 {
        cluster.client.submit(session, Null::op(10, 200).into()).expect("within the window");
        idle(&mut cluster, Duration::from_millis(5));
        while cluster.client.poll_completion().is_some() {}
    }
    idle(&mut cluster, Duration::from_millis(200));
    let page = (crate::types::RegionId::Service, 0);
    for (i, replica) in cluster.replicas.iter().enumerate() {
        let report = replica.status();
        assert_eq!(report.mode, protocol::Mode::Split, "r{i}");
        let differs: Vec<u8> = report.differences.iter().map(|(id, _)| id.0).collect();
        let expected: &[u8] = [&[1, 2][..], &[0, 2, 3], &[0, 1, 3], &[1, 2]][i];
        assert_eq!(differs, expected, "r{i}");
        for (with, found) in &report.differences {
            assert_eq!((found.pages.as_slice(), found.count, found.exact), (&[page][..], 1, true), "r{i} and {with}");
        }
        assert_eq!(report.counters.transfers, 0, "it keeps its state");
    }
}

#[test]
fn p53_where_nothing_is_lost_replies_of_the_reserve_come_in_order() {
    for silent_from in 0..50 {
        let mut cluster = Cluster::new(AuthMode::Mac, |_| {});
        let session = cluster.client.open_session(64).expect("a session");
        work(&mut cluster, session, 8);
        idle(&mut cluster, Duration::from_millis(50));
        let (mut submitted, mut answered) = (VecDeque::new(), 0);
        for turn in 0.. {
            if turn == silent_from {
                cluster.cut = Some(ReplicaId(1));
            }
            if submitted.len() < 64 && turn < 1_000 {
                submitted.push_back(cluster.client.submit(session, Null::op(0, 0).into()).expect("within the window"));
            }
            // The reserve looks now and then, and finds orders and their reason together.
            cluster.paused = (turn % 25 != 0).then_some(3);
            cluster.turn();
            while let Some(completion) = cluster.client.poll_completion() {
                assert_eq!(Some(completion.request), submitted.pop_front(), "silent from turn {silent_from}");
                answered += 1;
            }
            if turn >= 1_000 && submitted.is_empty() {
                break;
            }
        }
        assert!(answered > 100);
    }
}

#[test]
fn p26_the_receive_queue_is_drained_before_a_timer_fires() {
    for lost in [false, true] {
        let mut cluster = Cluster::new(AuthMode::Mac, |_| {});
        let session = cluster.client.open_session(4).expect("a session");
        for _ in 0..3 {
            cluster.client.submit(session, Null::op(0, 0).into()).expect("within the window");
            cluster.answer();
        }
        (0..100).for_each(|_| cluster.turn());
        // Replica 3 accepts the proposal; all that follows waits in its queue until its timer is due.
        cluster.client.submit(session, Null::op(0, 0).into()).expect("within the window");
        (0..3).for_each(|_| cluster.turn());
        let (accepted_at, before) = (cluster.now, cluster.replicas[3].agreement().last_executed());
        cluster.paused = Some(3);
        cluster.answer();
        (0..100).for_each(|_| cluster.turn());
        assert_eq!(cluster.replicas[0].agreement().last_executed(), before.next());
        if lost {
            cluster.to_replicas[3].clear();
        }
        cluster.now = accepted_at + Duration::from_millis(105);
        cluster.paused = None;
        cluster.turn();
        let late = cluster.replicas[3].agreement();
        assert_eq!(late.view().0, u64::from(lost), "nothing in the queue: then the primary has had its time");
        assert_eq!(late.last_executed(), if lost { before } else { before.next() });
    }
}
