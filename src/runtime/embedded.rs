//! A whole cluster inside one process, over in-process queues: for trying a service, and for tests that want the real
//! roles, keys and threads without a network.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::client::{Client, ClientConfig, ClientError};
use super::cores::Placement;
use super::{Error, Host, Running, Stop, WaitPolicy, memory, random_bytes};
use crate::auth::{AuthMode, Clients, ClusterKeys, FreshKey, Identity, Keyring, Rights};
use crate::execution::Service;
use crate::limits;
use crate::protocol;
use crate::replica::{NetworkConfig, ReplicaConfig, StatusReport};
use crate::types::{ClusterSize, Digest, ReplicaId};

/// 3f + 1 replicas of a service on threads of this process. Its drop stops them.
///
/// ```
/// # use castra::runtime::Embedded;
/// # use castra::services::{Kv, kv};
/// let cluster = Embedded::start(1, || Kv)?;
/// let client = cluster.client()?;
/// let put = kv::Op::Change(kv::Change::Put { key: b"k", value: b"v" });
/// let answer = client.execute(put.encode()?)?;
/// assert_eq!(kv::Answer::parse(&answer), Some(kv::Answer::Done));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It shows that a service runs and what it costs; it tolerates no real fault, for the process is one.
pub struct Embedded {
    network: memory::Network,
    replicas: Vec<Running>,
    client: Identity,
    keys: Arc<ClusterKeys>,
    stop: Stop,
}

impl Embedded {
    /// Starts replicas that tolerate `f` faults, each with a service of its own.
    ///
    /// # Errors
    /// [`Error`]: no random numbers, or a thread that could not be started.
    ///
    /// # Panics
    /// If `f` is 0 or above what [`limits::REPLICAS_MAX`] allows.
    pub fn start<S: Service>(f: usize, service: impl Fn() -> S) -> Result<Embedded, Error> {
        let size = ClusterSize::tolerating(f).expect("f is at least 1 and 3f + 1 replicas are allowed");
        let identities = size.replicas().map(|_| new_identity()).collect::<Result<Vec<_>, _>>()?;
        let client = new_identity()?;
        let rights = Rights { read: true, write: true, administer: true };
        let keys = Arc::new(ClusterKeys {
            cluster: Digest(random_bytes()?),
            instance: 1,
            replicas: identities.iter().map(Identity::public).collect(),
            clients: Clients::Listed([(client.public().client_id(), (client.public(), rights))].into()),
        });
        let network = memory::Network::new();
        let stop = Stop::new();
        let mut cluster = Embedded { network, replicas: Vec::new(), client, keys, stop };
        for (me, identity) in size.replicas().zip(&identities) {
            cluster.start_replica(size, me, identity, service())?;
        }
        Ok(cluster)
    }

    fn start_replica<S: Service>(
        &mut self,
        size: ClusterSize,
        me: ReplicaId,
        identity: &Identity,
        service: S,
    ) -> Result<(), Error> {
        let mut keyring = Keyring::replica(me, identity, self.keys.clone(), AuthMode::Mac).expect("keys made just now");
        keyring.begin(&FreshKey::at_boot(1, random_bytes()?)).expect("keys made just now");
        let host = Host {
            config: ReplicaConfig {
                network: NetworkConfig { datagram_max: limits::DATAGRAM_MAX, ..NetworkConfig::default() },
                ..ReplicaConfig::new(protocol::Config::new(size, me))
            },
            placement: Placement::Fused { core: None },
            policy: WaitPolicy::default(),
            clock: self.network.clock(),
            stop: self.stop.clone(),
        };
        let transport = self.network.replica(me);
        let waker = crate::transport::Transport::waker(&transport);
        self.replicas.push(host.start_over(keyring, service, waker, move || Ok(transport))?);
        Ok(())
    }

    /// A client with every right.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn client(&self) -> Result<Client, ClientError> {
        let transport = self.network.client();
        Client::connect(&self.client, self.keys.clone(), ClientConfig::default(), move || Ok(transport))
    }

    /// What each replica says of itself; `None` for one that does not answer.
    pub fn status(&self) -> Vec<Option<StatusReport>> {
        self.replicas.iter().map(Running::status).collect()
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stop.stop();
        for replica in self.replicas.drain(..) {
            // A replica that could not go on has said so in its status.
            drop(replica.join());
        }
    }
}

fn new_identity() -> Result<Identity, Error> {
    random_bytes().map(Identity::from_seed)
}
