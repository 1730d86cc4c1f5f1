//! The laboratory on clusters of real sockets: figures that are true, work that is accounted for.
#![cfg(feature = "cli")]

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use castra::auth::{AuthMode, Clients, ClusterKeys, Identity, Keyring};
use castra::execution::Service;
use castra::lab::Target;
use castra::lab::demo::{self, Job, Progress};
use castra::lab::load::{self, Load};
use castra::protocol;
use castra::replica::{Replica, ReplicaConfig};
use castra::runtime::bind::{Bound, UdpConfig};
use castra::runtime::{Backend, Clock, Stop, Udp, WaitPolicy, drive};
use castra::services::{Kv, Null};
use castra::transport::Transport as _;
use castra::types::{ClusterSize, Digest, ReplicaId};

/// Four replicas in threads of this process, on loopback.
struct Embedded {
    target: Target,
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

impl Embedded {
    fn start<S: Service + Copy>(service: S) -> Embedded {
        let size = ClusterSize::tolerating(1).unwrap();
        let identities: Vec<Identity> = (1..=size.n() as u8).map(|i| Identity::from_seed([i; 32])).collect();
        let keys = Arc::new(ClusterKeys {
            cluster: Digest([7; 32]),
            instance: 1,
            replicas: identities.iter().map(Identity::public).collect(),
            clients: Clients::Open,
        });
        let clock = Clock::new();
        let unknown = vec!["127.0.0.1:0".parse().unwrap(); size.n()];
        let bind = |id| {
            let config = UdpConfig { clock, ..UdpConfig::replica(ReplicaId(id), unknown.clone()) };
            Bound::bind(config).unwrap()
        };
        let mut bound: Vec<Bound> = (0..size.n() as u8).map(bind).collect();
        let addresses: Vec<_> = bound.iter().map(Bound::local_address).collect();
        let stop = Stop::new();
        let start = |(id, mut bound): (usize, Bound)| {
            bound.meet(addresses.clone());
            let (me, keys, stop) = (ReplicaId(id as u8), keys.clone(), stop.clone());
            let identity = identities[id].clone();
            thread::spawn(move || {
                let (mut transport, _) = Udp::open(bound, Backend::Sockets).unwrap();
                let keyring = Keyring::replica(me, &identity, keys, AuthMode::Mac).unwrap();
                let mut config = ReplicaConfig::new(protocol::Config::new(size, me));
                config.network.datagram_max = UdpConfig::DATAGRAM_DEFAULT;
                let mut replica = Replica::new(config, keyring, service, transport.now()).unwrap();
                drive(&mut replica, &mut transport, &stop, &WaitPolicy::default(), &Default::default());
            })
        };
        let threads = bound.drain(..).enumerate().map(start).collect();
        let target = Target {
            addresses,
            keys,
            mode: AuthMode::Mac,
            datagram_max: UdpConfig::DATAGRAM_DEFAULT,
            inline_max: protocol::Config::new(size, ReplicaId(0)).inline_max,
            read_only: true,
            request_timeout: Duration::from_secs(20),
            backend: Backend::Sockets,
            clock,
        };
        Embedded { target, stop, threads }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stop.stop();
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "a replica panicked");
        }
    }
}

fn client(i: u8) -> Identity {
    Identity::from_seed([100 + i; 32])
}

#[test]
fn load_is_answered_and_measured() {
    let cluster = Embedded::start(Null);
    let load = Load {
        clients: 3,
        outstanding: 20,
        sessions: 2,
        request_bytes: 100,
        reply_bytes: 300,
        read_only: false,
        threads: 2,
        warm_up_seconds: 0.1,
        seconds: 0.5,
    };
    let identities = [client(0), client(1), client(2)];
    for read_only in [false, true] {
        let load = Load { read_only, ..load.clone() };
        let me = std::process::id();
        let measured = load::run(&load, &cluster.target, &identities, &[me], &Stop::new()).unwrap();
        assert!(measured.operations > 0, "{measured:?}");
        assert_eq!((measured.errors, measured.wrong, measured.transport), (0, 0, "sockets"), "{measured:?}");
        assert!(measured.window >= Duration::from_millis(500));
        assert!(measured.latencies.micros().max > 0.0);
        // Replicas and clients are one process here, so both readings are of the same.
        assert!(measured.cpu_clients > Duration::ZERO && measured.cpu_replicas[0] > Duration::ZERO);
        assert!(measured.resident[0] > 0);
    }
}

#[test]
fn work_is_accounted_for() {
    let cluster = Embedded::start(Kv);
    let progress = Progress::new();
    let job = Job { threads: 2, workers: 3, seed: 5 };
    let identity = client(0);
    let mut record = thread::scope(|scope| {
        let work = scope.spawn(|| demo::work(&job, &cluster.target, &identity, &progress));
        while progress.operations() < 500 {
            thread::sleep(Duration::from_millis(5));
        }
        progress.stop();
        work.join().unwrap().unwrap()
    });
    assert!(record.worked() >= 500);
    demo::close(&mut record, &cluster.target, &identity, 99, 128, &progress).unwrap();
    let verdict = record.judge();
    assert_eq!(verdict.errors, Vec::<String>::new());
    assert_eq!(verdict.linearizable, Ok(()));
    assert_eq!((verdict.lost, verdict.duplicated), (0, 0));
    assert!(verdict.ops > record.worked());
}
