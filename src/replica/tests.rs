//! Four fused replicas and a client in one thread, with real bytes and real keys and a perfect network.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::auth::{AuthMode, Clients, ClusterKeys, Identity, Rights};
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
}

fn client_address() -> SocketAddr {
    "127.0.0.1:9".parse().expect("an address")
}

impl Cluster {
    fn new(mode: AuthMode, change: impl Fn(&mut ReplicaConfig)) -> Cluster {
        let size = ClusterSize::of(4).expect("a size");
        let identities: Vec<Identity> = (0..4).map(|i| Identity::from_seed([i; 32])).collect();
        let client = Identity::from_seed([99; 32]);
        let rights = Rights { read: true, write: true, administer: false };
        let listed = [(client.public().client_id(), (client.public(), rights))].into_iter().collect();
        let keys = Arc::new(ClusterKeys {
            cluster: Digest([5; 32]),
            instance: 1,
            replicas: identities.iter().map(|i| i.public()).collect(),
            clients: Clients::Listed(listed),
        });
        let now = Time(1_000_000_000);
        let replica = |(i, identity): (usize, &Identity)| {
            let me = ReplicaId(i as u8);
            let mut config = ReplicaConfig::new(protocol::Config::new(size, me));
            config.protocol.checkpoint_interval = 8;
            config.protocol.log_window = 32;
            config.execution.checkpoint_interval = 8;
            config.trace = true;
            change(&mut config);
            let keyring = Keyring::replica(me, identity, keys.clone(), mode).expect("keys");
            Replica::new(config, keyring, Null, now).expect("a replica")
        };
        let replicas = identities.iter().enumerate().map(replica).collect();
        let keyring = Keyring::client(&client, EndpointId(7), keys.clone(), mode).expect("keys");
        let client = Endpoint::new(EndpointConfig::default(), keyring, 1);
        Cluster { replicas, client, now, to_replicas: vec![Vec::new(); 4], to_client: Vec::new(), datagrams: 0 }
    }

    /// One turn of everybody.
    fn turn(&mut self) {
        let mut out = Vec::new();
        self.client.turn(self.now, &mut self.to_client, &mut out);
        let mut routed: VecDeque<(Peer, Outgoing)> =
            out.into_iter().map(|o| (Peer::Address(client_address()), o)).collect();
        for (i, replica) in self.replicas.iter_mut().enumerate() {
            let mut out = Vec::new();
            replica.turn(self.now, &mut self.to_replicas[i], &mut out);
            routed.extend(out.into_iter().map(|o| (Peer::Replica(ReplicaId(i as u8)), o)));
        }
        self.datagrams += routed.len();
        for (from, outgoing) in routed {
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
        assert!(report.rejects.iter().all(|(_, count)| *count == 0), "{:?}", report.rejects);
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
