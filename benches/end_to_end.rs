//! Whole operations: four replicas and a client, each in a thread of this process. Over queues what remains is castra and
//! the scheduler; over loopback sockets the kernel's datagrams come on top.
//!
//! `cargo bench --bench end_to_end`. With few cores the five threads take turns: figures of a real placement are those of
//! `castra bench load`.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use castra::auth::{AuthMode, Clients, ClusterKeys, FreshKey, Identity, Keyring, Rights};
use castra::protocol;
use castra::replica::ReplicaConfig;
use castra::runtime::bind::{Bound, UdpConfig};
use castra::runtime::client::{Client, ClientConfig, Pending};
use castra::runtime::{Backend, Embedded, Host, Placement, Running, Stop, Udp, WaitPolicy};
use castra::services::Null;
use castra::types::{ClusterSize, Digest};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Operations that are on their way at a time where many are.
const WINDOW: usize = 1_024;
/// Bytes of an operation and of its result.
const BYTES: usize = 8;

/// Four replicas on loopback sockets.
struct Loopback {
    client: Identity,
    keys: Arc<ClusterKeys>,
    addresses: Vec<SocketAddr>,
    running: Vec<Running>,
    stop: Stop,
}

impl Loopback {
    fn start() -> Result<Loopback, Box<dyn std::error::Error>> {
        let size = ClusterSize::tolerating(1).expect("f = 1 is allowed");
        let identities: Vec<Identity> = size.replicas().map(|id| Identity::from_seed([id.0 + 1; 32])).collect();
        let client = Identity::from_seed([0xff; 32]);
        let keys = Arc::new(ClusterKeys {
            cluster: Digest([7; 32]),
            instance: 1,
            replicas: identities.iter().map(Identity::public).collect(),
            clients: Clients::listed([(client.public(), Rights::READ_WRITE)]),
        });
        let unknown = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); size.n()];
        let bind = |me| Bound::bind(UdpConfig::replica(me, unknown.clone()));
        let mut bound = size.replicas().map(bind).collect::<Result<Vec<_>, _>>()?;
        let addresses: Vec<SocketAddr> = bound.iter().map(Bound::local_address).collect();
        bound.iter_mut().for_each(|bound| bound.meet(addresses.clone()));
        let (stop, mut running) = (Stop::new(), Vec::new());
        for ((me, identity), bound) in size.replicas().zip(&identities).zip(bound) {
            let mut keyring = Keyring::replica(me, identity, keys.clone(), AuthMode::Mac)?;
            keyring.begin(&FreshKey::at_boot(1, [me.0 + 101; 32]))?;
            let mut config = ReplicaConfig::new(protocol::Config::new(size, me));
            config.network.datagram_max = bound.config().datagram_max;
            let (placement, policy) = (Placement::Fused { core: None }, WaitPolicy::default());
            let host = Host { config, placement, policy, clock: bound.config().clock, stop: stop.clone() };
            running.push(host.start(keyring, Null, bound, Backend::Auto)?.0);
        }
        Ok(Loopback { client, keys, addresses, running, stop })
    }

    fn client(&self) -> Result<Client, Box<dyn std::error::Error>> {
        let udp = UdpConfig::client(self.addresses.clone());
        let open = move || Ok(Udp::open(Bound::bind(udp)?, Backend::Auto)?.0);
        let mut config = ClientConfig { sessions: WINDOW / 64, window: 64, ..ClientConfig::default() };
        config.endpoint.datagram_max = UdpConfig::DATAGRAM_DEFAULT;
        Ok(Client::connect(&self.client, self.keys.clone(), config, open)?)
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.stop.stop();
        self.running.drain(..).for_each(|replica| drop(replica.join()));
    }
}

/// Keeps `WINDOW` on their way until `operations` are done.
fn many(client: &Client, op: &Bytes, operations: u64) {
    let mut waiting: VecDeque<Pending> = VecDeque::with_capacity(WINDOW);
    for _ in 0..operations {
        if waiting.len() == WINDOW {
            waiting.pop_front().map(Pending::wait).expect("just counted").expect("an answer");
        }
        waiting.push_back(client.submit(op.clone()).expect("a client that runs"));
    }
    waiting.into_iter().for_each(|pending| drop(pending.wait().expect("an answer")));
}

fn measure(c: &mut Criterion, over: &str, client: &Client) {
    let op = Bytes::from(Null::op(BYTES, BYTES));
    let mut group = c.benchmark_group(format!("end_to_end/{over}"));
    group.throughput(Throughput::Elements(1));
    group.bench_function("ordered, one at a time", |b| {
        b.iter(|| client.execute(op.clone()).expect("an answer"));
    });
    group.bench_function("a query, one at a time", |b| {
        b.iter(|| client.query(op.clone()).expect("an answer"));
    });
    group.bench_function("ordered, 1,024 at a time", |b| {
        b.iter_custom(|operations| {
            let began = std::time::Instant::now();
            many(client, &op, operations);
            began.elapsed()
        });
    });
    group.finish();
}

fn queues(c: &mut Criterion) {
    let cluster = Embedded::start(1, || Null).expect("threads");
    measure(c, "queues", &cluster.client().expect("a thread"));
}

fn sockets(c: &mut Criterion) {
    let cluster = Loopback::start().expect("threads and sockets on loopback");
    measure(c, "sockets", &cluster.client().expect("a socket"));
}

criterion_group!(benches, queues, sockets);
criterion_main!(benches);
