//! Identities for simulated clusters, made once.

use std::sync::Arc;

use crate::auth::{AuthMode, Clients, ClusterKeys, FreshKey, Identity, Keyring, Rights};
use crate::types::{ClientId, ClusterSize, Digest, Domain, EndpointId, ReplicaId};

/// The identities and keyrings of a cluster and its clients. Key agreement is the slowest thing in a small simulation:
/// make one set and clone it for every seed. All keys follow from small numbers; they are good for nothing else.
#[derive(Clone)]
pub struct Keys {
    size: ClusterSize,
    mode: AuthMode,
    replicas: Vec<Keyring>,
    clients: Vec<(ClientId, Keyring)>,
}

impl Keys {
    /// Keys of a cluster of `size` and `clients` client endpoints.
    pub fn new(size: ClusterSize, clients: usize, mode: AuthMode) -> Keys {
        let identity = |kind: u8, i: usize| {
            let mut seed = [kind; 32];
            seed[1..9].copy_from_slice(&(i as u64).to_le_bytes());
            Identity::from_seed(seed)
        };
        let replica_identities: Vec<Identity> = (0..size.n()).map(|i| identity(1, i)).collect();
        let client_identities: Vec<Identity> = (0..clients).map(|i| identity(2, i)).collect();
        let listed = client_identities.iter().map(|id| (id.public(), Rights::READ_WRITE));
        let cluster = Arc::new(ClusterKeys {
            cluster: Digest::of(Domain::Cluster, &[b"simulation"]),
            instance: 1,
            replicas: replica_identities.iter().map(Identity::public).collect(),
            clients: Clients::listed(listed),
        });
        let replicas = (0..size.n())
            .map(|i| Keyring::replica(ReplicaId(i as u8), &replica_identities[i], Arc::clone(&cluster), mode))
            .collect::<Result<_, _>>()
            .expect("the keys are those of the cluster");
        let clients = (0..clients)
            .map(|i| {
                let identity = &client_identities[i];
                let endpoint = EndpointId(i as u64 + 1);
                let keyring = Keyring::client(identity, endpoint, Arc::clone(&cluster), mode);
                (identity.public().client_id(), keyring.expect("the keys are those of the cluster"))
            })
            .collect();
        Keys { size, mode, replicas, clients }
    }

    /// Of which cluster they are.
    pub fn size(&self) -> ClusterSize {
        self.size
    }

    /// Whether they fit.
    pub(super) fn fit(&self, size: ClusterSize, clients: usize, mode: AuthMode) -> bool {
        self.size == size && self.mode == mode && self.clients.len() >= clients
    }

    /// The keys of a replica at its `boot`-th start, from 1. `secret` is of that start alone (P40).
    ///
    /// # Panics
    /// If there is no such replica.
    pub fn replica(&self, id: ReplicaId, boot: u64, secret: [u8; 32]) -> Keyring {
        let mut keyring = self.replicas[usize::from(id.0)].clone();
        keyring.begin(&FreshKey::at_boot(boot, secret)).expect("the keys are those of the cluster");
        keyring
    }

    /// The name and the keys of a client endpoint.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn client(&self, index: usize) -> (ClientId, Keyring) {
        self.clients[index].clone()
    }
}
