//! Whole clusters on threads: fused, split, mixed; over io_uring, sockets and memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::auth::{AuthMode, Clients, ClusterKeys, FreshKey, Identity, Principal, Rights};
use crate::client::{Endpoint, EndpointConfig, Session};
use crate::execution::{Context, Inspection, ReplyBuffer};
use crate::protocol;
use crate::runtime::bind::UdpConfig;
use crate::runtime::memory;
use crate::runtime::tests::PATIENCE;
use crate::state::{PageId, Region};
use crate::types::{ClientId, ClusterSize, Digest, EndpointId, ReplicaId, SeqNum};
use crate::wire::header::ProofKind;
use crate::wire::{Header, Kind};

/// Adds what it is told to, panics if told so, and scatters its writes over pages.
struct Adder;

const PAGES: u32 = 64;
/// Page 0 is the typed helpers' directory.
const TOTAL: PageId = PageId(1);

impl Service for Adder {
    fn genesis(&self, state: &mut Region) {
        assert_eq!(state.grow(PAGES), Ok(TOTAL));
    }

    fn execute(&self, _: &mut Context<'_>, op: &[u8], state: &mut Region, reply: &mut ReplyBuffer) {
        let number = u64::from_le_bytes(op.try_into().expect("told to panic"));
        let sum = Self::sum(state) + number;
        state.write(TOTAL, 0..8).copy_from_slice(&sum.to_le_bytes());
        state.write(PageId(TOTAL.0 + sum as u32 % PAGES), 8..16).copy_from_slice(&sum.to_le_bytes());
        reply.push(&sum.to_le_bytes());
    }

    fn inspect(state: &Region) -> Option<Inspection> {
        Some(Inspection { counts: vec![("sum", Self::sum(state))], faults: Vec::new() })
    }
}

impl Adder {
    fn sum(state: &Region) -> u64 {
        u64::from_le_bytes(*state.read(TOTAL).first_chunk().expect("a page"))
    }
}

struct Keys {
    identities: Vec<Identity>,
    client: Identity,
    shared: Arc<ClusterKeys>,
}

fn keys() -> Keys {
    let identities: Vec<Identity> = (0..4).map(|i| Identity::from_seed([i; 32])).collect();
    let client = Identity::from_seed([99; 32]);
    let rights = Rights { read: true, write: true, administer: false };
    let shared = Arc::new(ClusterKeys {
        cluster: Digest([5; 32]),
        instance: 1,
        replicas: identities.iter().map(Identity::public).collect(),
        clients: Clients::listed([(client.public(), rights)]),
    });
    Keys { identities, client, shared }
}

fn host(i: u8, placement: Placement, clock: Clock) -> Host {
    let mut config = ReplicaConfig::new(protocol::Config::new(ClusterSize::of(4).unwrap(), ReplicaId(i)));
    config.protocol.checkpoint_interval = 8;
    config.protocol.log_window = 64;
    config.execution.checkpoint_interval = 8;
    // So few that execution waits for pages to come back.
    config.lent_pages_max = 8;
    Host { config, placement, policy: WaitPolicy::default(), clock, stop: Stop::new() }
}

impl Keys {
    fn replica(&self, i: u8) -> Keyring {
        let me = ReplicaId(i);
        let identity = &self.identities[usize::from(i)];
        let mut keyring = Keyring::replica(me, identity, self.shared.clone(), AuthMode::Mac).unwrap();
        keyring.begin(&FreshKey::at_boot(1, [i + 1; 32])).unwrap();
        keyring
    }

    fn endpoint(&self) -> Endpoint {
        self.endpoint_of(&self.client)
    }

    fn endpoint_of(&self, client: &Identity) -> Endpoint {
        let keyring = Keyring::client(client, EndpointId(7), self.shared.clone(), AuthMode::Mac).unwrap();
        Endpoint::new(EndpointConfig::default(), keyring, 1)
    }
}

fn udp_cluster(keys: &Keys, placements: [Placement; 4], backend: Backend) -> (Vec<Running>, Vec<SocketAddr>) {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let bind = |i| Bound::bind(UdpConfig::replica(ReplicaId(i), vec![any; 4])).unwrap();
    let mut bound: Vec<Bound> = (0..4).map(bind).collect();
    let addresses: Vec<SocketAddr> = bound.iter().map(Bound::local_address).collect();
    bound.iter_mut().for_each(|b| b.meet(addresses.clone()));
    let start = |((i, bound), placement): ((u8, Bound), Placement)| {
        let host = host(i, placement, bound.config().clock);
        let (running, opened) = host.start(keys.replica(i), Adder, bound, backend).unwrap();
        assert_eq!(opened.fallback.is_some(), (opened.transport, backend) == ("sockets", Backend::Auto));
        running
    };
    ((0..).zip(bound).zip(placements).map(start).collect(), addresses)
}

/// Has `total` additions done, `window` at a time, and checks that each was done once, in order. Answers may overtake one
/// another.
fn add(
    endpoint: &mut Endpoint,
    session: Session,
    transport: &mut impl Transport,
    from: u64,
    total: u64,
    window: usize,
) {
    let (mut submitted, mut answered, mut expected) = (0, 0, BTreeMap::new());
    let mut sum = from;
    let start = Instant::now();
    drive_with(endpoint, transport, &WaitPolicy::default(), &LoopCounters::default(), |endpoint, _| {
        while let Some(completion) = endpoint.poll_completion() {
            let sum: u64 = expected.remove(&completion.request).expect("an answer to a question");
            assert_eq!(completion.result.expect("a certified result")[..], sum.to_le_bytes());
            answered += 1;
        }
        while submitted < total && expected.len() < window {
            submitted += 1;
            sum += submitted;
            let request = endpoint.submit(session, Bytes::copy_from_slice(&submitted.to_le_bytes())).unwrap();
            expected.insert(request, sum);
        }
        assert!(start.elapsed() < PATIENCE, "{answered} of {total}");
        if answered == total { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
}

/// All four agree on roots, and answer.
fn agree(cluster: &[Running]) {
    let start = Instant::now();
    loop {
        let reports: Vec<StatusReport> = cluster.iter().map(|r| r.status().expect("an answer")).collect();
        let last = reports.iter().map(|report| report.checkpoints.last().copied());
        let equal = last.clone().all(|root| root.is_some() && root == reports[0].checkpoints.last().copied());
        let digested = reports.iter().all(|r| r.checkpoints.last().is_some_and(|(n, _)| n.0 + 8 > r.executed.0));
        if equal && digested && reports.iter().all(|r| r.stable == r.checkpoints.last().unwrap().0) {
            for report in &reports {
                assert!(report.service_pages == 1 + PAGES && report.library_pages > 0 && report.stopped.is_none());
                assert!(report.peers.iter().all(|peer| peer.heard.is_some()));
            }
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{reports:#?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn fused() -> Placement {
    Placement::Fused { core: None }
}

/// On as many of the cores as there are: they may be fewer than roles.
fn split(network: usize) -> Placement {
    split_for(network, 0)
}

/// With so many cores for clients.
fn split_for(network: usize, clients: usize) -> Placement {
    let allowed = cores::allowed();
    let core = |i: usize| allowed[i % allowed.len()];
    let (network, clients) = ((0..network).map(core).collect(), (0..clients).map(core).collect());
    Placement::Split { network, clients, execution: core(1), checkpoint: core(0) }
}

fn run_udp(placements: [Placement; 4], backend: Backend) {
    let (cluster, addresses) = udp_cluster(&keys(), placements, backend);
    let (mut client, _) = Udp::open(Bound::bind(UdpConfig::client(addresses)).unwrap(), backend).unwrap();
    let mut endpoint = keys().endpoint();
    let session = endpoint.open_session(64).unwrap();
    add(&mut endpoint, session, &mut client, 0, 20, 1);
    add(&mut endpoint, session, &mut client, 210, 2_000, 64);
    agree(&cluster);
    for running in &cluster {
        assert!(!running.is_finished() && running.loops().turns > 0);
        running.stop();
    }
    for running in cluster {
        assert_eq!(running.join().unwrap(), None);
    }
}

#[test]
fn fused_replicas_serve_over_uring() {
    run_udp([fused(), fused(), fused(), fused()], Backend::Uring);
}

#[test]
fn fused_replicas_serve_over_sockets() {
    run_udp([fused(), fused(), fused(), fused()], Backend::Sockets);
}

#[test]
fn split_and_fused_replicas_agree() {
    run_udp([split(1), split(2), fused(), split(2)], Backend::Uring);
}

/// Clients whom nobody listed, on cores of their own, one after the other; then the primary is stopped, and all come again.
fn many_clients_are_served(placements: [Placement; 4], backend: Backend) {
    let mut keys = keys();
    keys.shared = Arc::new(ClusterKeys { clients: Clients::Open, ..(*keys.shared).clone() });
    let (mut cluster, addresses) = udp_cluster(&keys, placements, backend);
    let open = || Udp::open(Bound::bind(UdpConfig::client(addresses.clone())).unwrap(), backend).unwrap().0;
    let mut sum = 0;
    let mut clients: Vec<_> = (0..8)
        .map(|i| {
            let (mut endpoint, mut transport) = (keys.endpoint_of(&Identity::from_seed([100 + i; 32])), open());
            let session = endpoint.open_session(16).unwrap();
            add(&mut endpoint, session, &mut transport, sum, 50, 1);
            sum += 50 * 51 / 2;
            (endpoint, session, transport)
        })
        .collect();
    agree(&cluster);
    let report = cluster[0].status().unwrap();
    let reasons: BTreeSet<&str> = report.rejects.iter().map(|(reason, _)| *reason).collect();
    assert_eq!(reasons.len(), report.rejects.len(), "each once");
    drop(cluster.remove(0));
    for (endpoint, session, transport) in &mut clients {
        add(endpoint, *session, transport, sum, 50, 1);
        sum += 50 * 51 / 2;
    }
    for running in cluster {
        assert!(running.status().unwrap().view.0 > 0);
        running.stop();
        assert_eq!(running.join().unwrap(), None);
    }
}

#[test]
fn clients_are_served_by_cores_of_their_own_over_uring() {
    many_clients_are_served([split_for(1, 2), split_for(2, 3), split_for(2, 1), fused()], Backend::Uring);
}

#[test]
fn clients_are_served_by_cores_of_their_own_over_sockets() {
    many_clients_are_served([split_for(2, 2), split_for(1, 1), split_for(1, 3), split(2)], Backend::Sockets);
}

#[test]
fn what_one_core_for_clients_counts_is_reported_with_the_rest() {
    let keys = keys();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let bound = Bound::bind(UdpConfig::replica(ReplicaId(0), vec![any; 4])).unwrap();
    let to = bound.local_address();
    let host = host(0, split_for(1, 2), bound.config().clock);
    let (running, opened) = host.start(keys.replica(0), Adder, bound, Backend::Auto).unwrap();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    // Packs of strangers, for either core; and nonsense, which is nobody's.
    for client in 0..20 {
        let header = Header {
            kind: Kind::Pack,
            proof: ProofKind::Mac,
            receiver: Principal::Replica(ReplicaId(0)),
            sender: Principal::Client(ClientId(client << 24), EndpointId(1)),
            cluster: u64::from_le_bytes([5; 8]),
            sender_epoch: 0,
            receiver_epoch: 0,
        };
        socket.send_to(&header.encode(), to).unwrap();
        socket.send_to(b"nonsense", to).unwrap();
    }
    let start = Instant::now();
    loop {
        let counts = opened.counts();
        let report = running.status().unwrap();
        let dropped: u64 = report.rejects.iter().map(|(_, count)| count).sum();
        if (counts.received, dropped) == (40, 40) {
            assert_eq!(opened.counters.len(), 3);
            assert!(opened.counters.iter().all(|counters| counters.read().received > 0));
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{counts:?} {:?}", report.rejects);
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn cores_for_clients_want_a_path_that_tells_them_apart() {
    let network = memory::Network::new();
    let transport = network.replica(ReplicaId(0));
    let waker = transport.waker();
    let host = host(0, split_for(1, 1), network.clock());
    let refused = host.start_over(keys().replica(0), Adder, waker, || Ok(transport)).map(|_| ());
    assert!(matches!(refused, Err(Error::Io { error, .. }) if error.kind() == io::ErrorKind::InvalidInput));
}

/// An embedded cluster; `start` has its replicas.
fn memory_cluster(placement: impl Fn(u8) -> Placement) -> (memory::Network, Vec<Running>) {
    let (network, keys) = (memory::Network::new(), keys());
    let start = |i| {
        let transport = network.replica(ReplicaId(i));
        let waker = transport.waker();
        host(i, placement(i), network.clock()).start_over(keys.replica(i), Adder, waker, || Ok(transport)).unwrap()
    };
    let cluster = (0..4).map(start).collect();
    (network, cluster)
}

#[test]
fn an_embedded_cluster_serves_split_and_stays_quiet_when_idle() {
    let (network, cluster) = memory_cluster(|_| split(2));
    let mut client = network.client();
    let mut endpoint = keys().endpoint();
    let session = endpoint.open_session(64).unwrap();
    add(&mut endpoint, session, &mut client, 0, 500, 16);
    agree(&cluster);
    let before = cluster[1].loops();
    thread::sleep(Duration::from_millis(500));
    let after = cluster[1].loops();
    // Heartbeats of three peers, five times a second each, and its own.
    assert!(after.parks - before.parks < 200, "{before:?} {after:?}");
    let report = cluster[1].status();
    cluster.iter().for_each(Running::stop);
    assert!(report.is_some());
    for running in &cluster {
        let start = Instant::now();
        while !running.threads.iter().all(JoinHandle::is_finished) {
            assert!(start.elapsed() < PATIENCE, "a role does not stop");
            thread::yield_now();
        }
        assert_eq!(
            running.status().unwrap().checkpoints,
            report.as_ref().unwrap().checkpoints,
            "it answers after its end"
        );
    }
}

/// Its replicas let their state be looked at while they work, and not after their end.
fn is_looked_at(placement: &Placement) {
    let (network, cluster) = memory_cluster(|_| placement.clone());
    let mut client = network.client();
    let mut endpoint = keys().endpoint();
    let session = endpoint.open_session(64).unwrap();
    add(&mut endpoint, session, &mut client, 0, 200, 1);
    agree(&cluster);
    for running in &cluster {
        let (n, root) = running.status().unwrap().checkpoints.last().copied().unwrap();
        let viewer = running.viewer();
        let view = viewer.snapshot(n).unwrap();
        assert!(view.is_intact() && view.checkpoint().root == root);
        let sum = view.service().read(TOTAL).first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        assert!(sum.is_some_and(|sum| (1..=200).any(|done| sum == done * (done + 1) / 2)), "{sum:?}");
        let inspection = viewer.inspect(view.service()).unwrap();
        assert_eq!(inspection.counts, [("sum", sum.unwrap())]);
        assert_eq!(viewer.snapshot(SeqNum(n.0 + 1)).unwrap_err(), Unseen::NotHeld);
    }
    let viewer = cluster[0].viewer();
    drop(cluster);
    assert_eq!(viewer.snapshot(SeqNum(8)).unwrap_err(), Unseen::Silent);
}

#[test]
fn the_state_of_a_fused_replica_is_looked_at() {
    is_looked_at(&fused());
}

#[test]
fn the_state_of_a_split_replica_is_looked_at() {
    is_looked_at(&split(2));
}

#[test]
fn a_split_cluster_serves_where_io_uring_is_refused() {
    thread::spawn(|| {
        crate::runtime::tests::forbid_io_uring();
        run_udp([split(1), split(2), split(1), split(2)], Backend::Auto);
    })
    .join()
    .unwrap();
}

fn a_panic_stops(placement: Placement) {
    let (network, cluster) = memory_cluster(|_| placement.clone());
    let mut client = network.client();
    let mut endpoint = keys().endpoint();
    let session = endpoint.open_session(4).unwrap();
    endpoint.submit(session, Bytes::from_static(b"boom")).unwrap();
    let start = Instant::now();
    drive_with(&mut endpoint, &mut client, &WaitPolicy::default(), &LoopCounters::default(), |_, _| {
        assert!(start.elapsed() < PATIENCE);
        match cluster.iter().any(Running::is_finished) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    // Whoever stopped first may not have sent what the others needed to come so far.
    let (stopped, others): (Vec<_>, Vec<_>) = cluster.into_iter().partition(Running::is_finished);
    drop(others);
    for running in stopped {
        let report = running.status().expect("a last report");
        assert!(report.stopped.is_some());
        let reason = running.join().unwrap().expect("a reason");
        assert!(reason.contains("told to panic"), "{reason}");
    }
}

#[test]
fn a_service_that_panics_stops_a_fused_replica() {
    a_panic_stops(fused());
}

#[test]
fn a_service_that_panics_stops_a_split_replica() {
    a_panic_stops(split(2));
}

#[test]
fn a_transport_that_does_not_open_is_reported() {
    for placement in [fused(), split(1)] {
        let network = memory::Network::new();
        let waker = network.replica(ReplicaId(0)).waker();
        let running = host(0, placement, network.clock())
            .start_over(keys().replica(0), Adder, waker, || Err::<memory::Memory, _>(closed()))
            .unwrap();
        assert!(matches!(running.join(), Err(Error::Io { .. })));
    }
}

#[test]
fn a_common_stop_reaches_every_replica_and_one_replicas_end_only_itself() {
    let (network, keys, stop) = (memory::Network::new(), keys(), Stop::new());
    let start = |i| {
        let transport = network.replica(ReplicaId(i));
        let host = Host { stop: stop.clone(), ..host(i, fused(), network.clock()) };
        host.start_over(keys.replica(i), Adder, transport.waker(), || Ok(transport)).unwrap()
    };
    let (a, b) = (start(0), start(1));
    a.stop();
    a.join().unwrap();
    assert!(b.status().is_some() && !b.is_finished());
    stop.stop();
    b.join().unwrap();
}
