//! Front ends over the in-process network, against replicas that execute at once and always agree.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::auth::{Clients, Opened, Principal, Rights};
use crate::protocol;
use crate::replica::{Replica, ReplicaConfig};
use crate::runtime::memory::{Memory, Network};
use crate::runtime::{LoopCounters, Stop, drive};
use crate::services::Null;
use crate::transport::{Outgoing, Woken};
use crate::types::{ClusterSize, Digest, Position, ReplicaId, SeqNum, SessionId, View};
use crate::wire::{FrameBuffer, Outcome, ReplyEntry, ReplyKind, ReplyResult, RequestKind};

/// Four replicas on one thread: what the primary or all of them are asked, all of them answer.
struct Replicas {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

struct Cluster {
    network: Network,
    identities: Vec<Identity>,
    client: Identity,
    keys: Arc<ClusterKeys>,
}

impl Cluster {
    fn new() -> Cluster {
        let identities: Vec<Identity> = (1..=4).map(|i| Identity::from_seed([i; 32])).collect();
        let client = Identity::from_seed([99; 32]);
        let keys = Arc::new(ClusterKeys {
            cluster: Digest([5; 32]),
            instance: 1,
            replicas: identities.iter().map(Identity::public).collect(),
            clients: Clients::listed([(client.public(), Rights::READ_WRITE)]),
        });
        Cluster { network: Network::new(), identities, client, keys }
    }

    fn connect(&self, config: ClientConfig) -> Client {
        let network = self.network.clone();
        Client::connect(&self.client, self.keys.clone(), config, move || Ok(network.client())).unwrap()
    }

    fn start(&self) -> Replicas {
        let stop = Stop::new();
        let seats = (0..4).map(|i| {
            let id = ReplicaId(i);
            let keyring =
                Keyring::replica(id, &self.identities[usize::from(i)], self.keys.clone(), AuthMode::Mac).unwrap();
            (self.network.replica(id), keyring)
        });
        let mut seats: Vec<(Memory, Keyring)> = seats.collect();
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut log = BTreeMap::new();
            while !stopped.is_stopped() {
                serve(&mut seats, &mut log);
            }
        });
        Replicas { stop, thread: Some(thread) }
    }
}

/// Four replicas of the null service on threads of their own, until dropped.
struct RealReplicas {
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

impl RealReplicas {
    fn start(cluster: &Cluster) -> RealReplicas {
        let stop = Stop::new();
        let start = |id: ReplicaId| {
            let (network, stop) = (cluster.network.clone(), stop.clone());
            let identity = &cluster.identities[usize::from(id.0)];
            let keyring = Keyring::replica(id, identity, cluster.keys.clone(), AuthMode::Mac).unwrap();
            thread::spawn(move || {
                let mut transport = network.replica(id);
                let config = ReplicaConfig::new(protocol::Config::new(keyring.size(), id));
                let mut replica = Replica::new(config, keyring, Null, transport.now()).unwrap();
                drive(&mut replica, &mut transport, &stop, &WaitPolicy::default(), &LoopCounters::default());
            })
        };
        let threads = ClusterSize::of(4).unwrap().replicas().map(start).collect();
        RealReplicas { stop, threads }
    }
}

impl Drop for RealReplicas {
    fn drop(&mut self) {
        self.stop.stop();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        self.stop.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

type Log = BTreeMap<(u64, u64), (Position, Outcome)>;

/// Whatever reaches a replica is executed once, and each replica answers whoever asked.
fn serve(seats: &mut [(Memory, Keyring)], log: &mut Log) {
    let mut asked = Vec::new();
    for (transport, keyring) in seats.iter_mut() {
        transport.receive(&mut asked);
        asked.retain(|datagram| match keyring.open(&datagram.bytes) {
            Ok(Opened::Pack { pack, .. }) => keyring.verify_pack(pack).is_ok(),
            _ => false,
        });
        if !asked.is_empty() {
            break;
        }
    }
    if asked.is_empty() {
        let until = seats[0].0.now() + Duration::from_millis(1);
        assert_ne!(seats[0].0.wait(until), Woken::Waker);
        return;
    }
    for datagram in asked {
        let body = &datagram.bytes[datagram.bytes.len().min(48)..];
        let pack = crate::wire::Pack::parse(Bytes::copy_from_slice(body)).unwrap();
        let mut entries = Vec::new();
        for request in pack.requests() {
            let next = Position::new(SeqNum(log.len() as u64 + 1), 0);
            let (kind, key) = match request.kind {
                RequestKind::ReadOnly => (ReplyKind::ReadOnly, (0, request.t)),
                RequestKind::Open => (ReplyKind::Committed, (1, request.t)),
                RequestKind::Ordered | RequestKind::Close => (ReplyKind::Tentative, (request.session.0, request.t)),
            };
            let (position, outcome) = log.entry(key).or_insert_with(|| {
                let result = match request.kind {
                    RequestKind::Open => next.0.to_le_bytes().to_vec(),
                    RequestKind::ReadOnly | RequestKind::Ordered | RequestKind::Close => {
                        request.op.iter().rev().copied().collect()
                    }
                };
                (next, Outcome::Done(result.into()))
            });
            let session = if request.kind == RequestKind::Open { SessionId::NONE } else { request.session };
            let result = ReplyResult::Full(outcome.clone());
            entries.push(ReplyEntry { session, t: request.t, kind, position: *position, result });
        }
        let to = Principal::Client(pack.client(), pack.endpoint());
        for (transport, keyring) in seats.iter_mut() {
            // A replica that has not heard the client cannot answer it.
            let mut buffer = FrameBuffer::default();
            assert!(buffer.push_replies(View(0), &entries));
            let frames = buffer.take();
            if let Some(head) = keyring.seal(to, &[(&frames, 0..frames.len())]) {
                let body = frames.slice(0..frames.len());
                transport.send(&mut vec![Outgoing { to: datagram.from, head, body }]);
            }
        }
    }
}

/// The smallest executor there is.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn a_client_executes_and_queries() {
    let cluster = Cluster::new();
    let replicas = cluster.start();
    let client = cluster.connect(ClientConfig::default());
    assert_eq!(client.execute("abc").unwrap(), "cba");
    assert_eq!(client.query("xyz").unwrap(), "zyx");
    assert!(matches!(client.execute(vec![0; limits::OPERATION_MAX + 1]), Err(ClientError::TooLarge(_))));
    let report = client.report().unwrap();
    assert_eq!((report.stats.completed, report.stats.failed), (2, 0));
    assert!(report.replicas.iter().filter(|(_, heard)| heard.is_some()).count() >= 3);
    drop(client);
    drop(replicas);
}

#[test]
fn p21_many_threads_share_a_client_and_wait_while_its_windows_are_full() {
    let cluster = Cluster::new();
    let _replicas = cluster.start();
    let client = cluster.connect(ClientConfig { sessions: 2, window: 3, ..ClientConfig::default() });
    let threads: Vec<_> = (0..8)
        .map(|i| {
            let client = client.clone();
            thread::spawn(move || {
                let pending: Vec<_> = (0..50)
                    .map(|j| {
                        let op = format!("{i}:{j}");
                        let expected: String = op.chars().rev().collect();
                        // Six permits for eight threads: each waits for its own before it asks for another.
                        assert_eq!(client.execute(op).unwrap(), expected);
                        client.query("q").unwrap()
                    })
                    .collect();
                assert_eq!(pending.len(), 50);
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let report = client.report().unwrap();
    assert_eq!((report.stats.completed, report.outstanding), (800, 0));
}

#[test]
fn pipelined_requests_are_waited_for_in_any_order_and_outlive_their_client() {
    let cluster = Cluster::new();
    let _replicas = cluster.start();
    let client = cluster.connect(ClientConfig::default());
    let mut pending: Vec<Pending> = (0..40).map(|i| client.submit(format!("op{i:02}")).unwrap()).collect();
    drop(client);
    pending.reverse();
    for (i, pending) in (0..40).rev().zip(pending) {
        let completion = pending.wait_completion().unwrap();
        assert!(completion.session_id.is_some());
        let expected: String = format!("op{i:02}").chars().rev().collect();
        assert_eq!(completion.result.unwrap(), expected);
    }
}

#[test]
fn futures_need_nothing_but_a_waker_and_wait_while_windows_are_full() {
    let cluster = Cluster::new();
    let _replicas = cluster.start();
    let client = cluster.connect(ClientConfig { sessions: 1, window: 2, ..ClientConfig::default() }).to_async();
    block_on(async {
        assert_eq!(client.execute("abc").await.unwrap(), "cba");
        assert_eq!(client.query("xyz").await.unwrap(), "zyx");
        let first = client.submit("1a").await.unwrap();
        let second = client.submit("2b").await.unwrap();
        // Resolves once one of the two is answered, whether or not anybody looks.
        let third = client.submit("3c").await.unwrap();
        // Abandoned: its place goes to the next.
        drop(client.submit("4d"));
        assert_eq!(third.await.unwrap().result.unwrap(), "c3");
        assert_eq!(second.await.unwrap().result.unwrap(), "b2");
        assert_eq!(first.await.unwrap().result.unwrap(), "a1");
        assert!(matches!(client.submit(vec![0; limits::OPERATION_MAX + 1]).await, Err(ClientError::TooLarge(_))));
    });
}

#[test]
fn a_client_started_before_the_replicas_waits_and_then_works() {
    let cluster = Cluster::new();
    let client = cluster.connect(ClientConfig::default());
    let pending = client.submit("abc").unwrap();
    thread::sleep(Duration::from_millis(150));
    let _replicas = cluster.start();
    assert_eq!(pending.wait().unwrap(), "cba");
}

#[test]
fn without_replicas_a_request_times_out_and_the_client_ends() {
    let cluster = Cluster::new();
    let endpoint = EndpointConfig { request_timeout: Duration::from_millis(100), ..EndpointConfig::default() };
    let client = cluster.connect(ClientConfig { endpoint, ..ClientConfig::default() });
    let Err(ClientError::Request(RequestError::Timeout { tally, sent: false })) = client.execute("abc") else {
        panic!("nobody is there")
    };
    assert_eq!(tally.silent.len(), 4);
    assert!(client.report().unwrap().replicas.iter().all(|(_, heard)| heard.is_none()));
}

#[test]
fn what_cannot_start_says_why() {
    let cluster = Cluster::new();
    let connect = |config| {
        let network = cluster.network.clone();
        Client::connect(&cluster.client, cluster.keys.clone(), config, move || Ok(network.client())).err().unwrap()
    };
    assert!(matches!(connect(ClientConfig { sessions: 0, ..Default::default() }), ClientError::Config(_)));
    assert!(matches!(connect(ClientConfig { window: 5_000, ..Default::default() }), ClientError::Config(_)));
    let refuse = || Err::<Memory, _>(Error::Io { doing: "binding", error: std::io::ErrorKind::AddrInUse.into() });
    let error = Client::connect(&cluster.client, cluster.keys.clone(), ClientConfig::default(), refuse).err().unwrap();
    assert!(matches!(error, ClientError::Transport(Error::Io { doing: "binding", .. })));
}

#[test]
fn real_replicas_execute_pipelined_large_and_read_only_operations_and_sessions_are_closed() {
    let cluster = Cluster::new();
    let replicas = RealReplicas::start(&cluster);
    let client = cluster.connect(ClientConfig { sessions: 4, window: 16, ..ClientConfig::default() });
    let pending: Vec<Pending> = (0..500).map(|i| client.submit(Null::op(64, i)).unwrap()).collect();
    let mut positions = Vec::new();
    for (i, pending) in pending.into_iter().enumerate() {
        let completion = pending.wait_completion().unwrap();
        assert_eq!(completion.result.unwrap().len(), i);
        positions.push(completion.position);
    }
    positions.sort_unstable();
    positions.dedup();
    assert_eq!(positions.len(), 500, "one place in the order for each");
    assert_eq!(client.query(Null::op(8, 300)).unwrap().len(), 300);
    assert_eq!(client.execute(Null::op(limits::OPERATION_MAX, limits::OPERATION_MAX)).unwrap().len(), 1 << 20);
    assert_eq!(client.query(Null::op(100_000, 100_000)).unwrap().len(), 100_000);
    let report = client.report().unwrap();
    assert_eq!((report.stats.completed, report.stats.failed, report.outstanding), (503, 0, 0));
    drop(client);
    drop(replicas);
}
