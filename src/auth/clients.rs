//! Which clients are let in, and the keys shared with their endpoints.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use ed25519_dalek::VerifyingKey;
use zeroize::Zeroizing;

use super::derivation::{Derivation, End, Pair};
use super::{Principal, PublicIdentity, Reject};
use crate::types::{ClientId, EndpointId};

/// What a client may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rights {
    /// Read-only requests.
    pub read: bool,
    /// Ordered requests.
    pub write: bool,
    /// Membership, keys, snapshots.
    pub administer: bool,
}

impl Rights {
    /// Reading and writing.
    pub const READ_WRITE: Rights = Rights { read: true, write: true, administer: false };
    /// Reading alone.
    pub const READ: Rights = Rights { read: true, write: false, administer: false };
    /// Everything.
    pub const ALL: Rights = Rights { read: true, write: true, administer: true };
}

/// The clients of a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Clients {
    /// These, with their rights, and nobody else.
    Listed(BTreeMap<ClientId, (PublicIdentity, Rights)>),
    /// Anybody may read and write: for laboratories. Identities are learned from signed packs.
    Open,
}

impl Clients {
    /// The list of these.
    pub fn listed(clients: impl IntoIterator<Item = (PublicIdentity, Rights)>) -> Clients {
        Clients::Listed(clients.into_iter().map(|(public, rights)| (public.client_id(), (public, rights))).collect())
    }
}

/// Endpoints of one identity whose keys are kept. An identity that uses more evicts its own.
pub const ENDPOINTS_MAX: usize = 1_024;
/// Identities that an open cluster remembers. More evict the one not seen for longest.
pub const CLIENTS_OPEN_MAX: usize = 4_096;

/// The keys of clients that have proved themselves. Nothing enters but by a proof that was good (P21).
#[derive(Clone, Debug, Default)]
pub(super) struct ClientTable {
    clients: BTreeMap<ClientId, Client>,
    /// Counts uses, to find what was not used for longest.
    clock: u64,
}

#[derive(Clone)]
struct Client {
    verifying: VerifyingKey,
    rights: Rights,
    shared: Zeroizing<[u8; 32]>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    used: u64,
}

#[derive(Clone)]
struct Endpoint {
    pair: Pair,
    /// It has MACed something for this key of ours: it knows which key that is. One that has only signed may not.
    proved: bool,
    used: u64,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({:?}, {} endpoints)", self.rights, self.endpoints.len())
    }
}

impl Client {
    fn new(derivation: &Derivation, public: &PublicIdentity, rights: Rights) -> Result<Client, Reject> {
        let (verifying, shared) = (public.verifying_key()?, derivation.agree_with(public)?);
        Ok(Client { verifying, rights, shared, endpoints: BTreeMap::new(), used: 0 })
    }
}

/// Evicts what was not used for longest, if `map` holds `max`.
fn make_room<K: Ord + Copy, V>(map: &mut BTreeMap<K, V>, max: usize, used: impl Fn(&V) -> u64) {
    if map.len() >= max
        && let Some((&oldest, _)) = map.iter().min_by_key(|(_, value)| used(value))
    {
        map.remove(&oldest);
    }
}

impl ClientTable {
    /// The keys of a client. A listed one is entered when it is first asked for: the list bounds the table.
    fn client(&mut self, derivation: &Derivation, clients: &Clients, id: ClientId) -> Result<&mut Client, Reject> {
        self.clock += 1;
        let client = match self.clients.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => {
                let Clients::Listed(listed) = clients else { return Err(Reject::UnknownClient) };
                let (public, rights) = listed.get(&id).ok_or(Reject::UnknownClient)?;
                vacant.insert(Client::new(derivation, public, *rights)?)
            }
        };
        client.used = self.clock;
        Ok(client)
    }

    /// Whether the client is let in, or may be once it has proved itself.
    pub(super) fn knows(&self, clients: &Clients, id: ClientId) -> bool {
        match clients {
            Clients::Listed(listed) => listed.contains_key(&id),
            Clients::Open => self.clients.contains_key(&id),
        }
    }

    /// Runs `check` with the keys of this endpoint. They are kept only if it succeeds.
    pub(super) fn check(
        &mut self,
        derivation: &Derivation,
        clients: &Clients,
        id: ClientId,
        endpoint: EndpointId,
        check: impl FnOnce(&Pair, Rights) -> Result<(), Reject>,
    ) -> Result<(), Reject> {
        self.enter(derivation, clients, id, endpoint, true, check)
    }

    fn enter(
        &mut self,
        derivation: &Derivation,
        clients: &Clients,
        id: ClientId,
        endpoint: EndpointId,
        proves: bool,
        check: impl FnOnce(&Pair, Rights) -> Result<(), Reject>,
    ) -> Result<(), Reject> {
        let client = self.client(derivation, clients, id)?;
        let (rights, clock) = (client.rights, client.used);
        if let Some(known) = client.endpoints.get_mut(&endpoint) {
            known.used = clock;
            check(&known.pair, rights)?;
            known.proved |= proves;
            return Ok(());
        }
        let pair = derivation.pair(&client.shared, End::first(Principal::Client(id, endpoint)));
        check(&pair, rights)?;
        make_room(&mut client.endpoints, ENDPOINTS_MAX, |known| known.used);
        client.endpoints.insert(endpoint, Endpoint { pair, proved: proves, used: clock });
        Ok(())
    }

    /// Whether this endpoint has shown that it knows our key.
    pub(super) fn has_proved(&self, id: ClientId, endpoint: EndpointId) -> bool {
        let known = self.clients.get(&id).and_then(|client| client.endpoints.get(&endpoint));
        known.is_some_and(|known| known.proved)
    }

    /// Forgets what was derived from an earlier key of ours.
    pub(super) fn clear(&mut self) {
        self.clients.clear();
    }

    /// Checks a signature by the client whose identity a pack names. An open cluster learns identities here.
    pub(super) fn check_signature(
        &mut self,
        derivation: &Derivation,
        clients: &Clients,
        id: ClientId,
        public: &PublicIdentity,
        check: impl FnOnce(&VerifyingKey, Rights) -> Result<(), Reject>,
    ) -> Result<(), Reject> {
        match clients {
            Clients::Listed(listed) => {
                let (known, _) = listed.get(&id).ok_or(Reject::UnknownClient)?;
                if known != public {
                    return Err(Reject::IdentityMismatch);
                }
                let client = self.client(derivation, clients, id)?;
                check(&client.verifying, client.rights)
            }
            Clients::Open if public.client_id() != id => Err(Reject::IdentityMismatch),
            Clients::Open if self.clients.contains_key(&id) => {
                let client = self.client(derivation, clients, id)?;
                check(&client.verifying, client.rights)
            }
            Clients::Open => {
                check(&public.verifying_key()?, Rights::READ_WRITE)?;
                let client = Client::new(derivation, public, Rights::READ_WRITE)?;
                make_room(&mut self.clients, CLIENTS_OPEN_MAX, |client| client.used);
                self.clock += 1;
                self.clients.insert(id, Client { used: self.clock, ..client });
                Ok(())
            }
        }
    }

    /// The keys of an endpoint that has proved itself.
    pub(super) fn pair(&self, id: ClientId, endpoint: EndpointId) -> Option<&Pair> {
        self.clients.get(&id)?.endpoints.get(&endpoint).map(|known| &known.pair)
    }

    /// Derives the keys of an endpoint that proved itself by a signature.
    pub(super) fn learn(&mut self, derivation: &Derivation, clients: &Clients, id: ClientId, endpoint: EndpointId) {
        // A client that just proved itself is known; there is nothing more to check.
        let known = self.enter(derivation, clients, id, endpoint, false, |_, _| Ok(()));
        debug_assert!(known.is_ok());
    }

    #[cfg(test)]
    pub(super) fn endpoints(&self) -> usize {
        self.clients.values().map(|client| client.endpoints.len()).sum()
    }
}
