//! All keys of one process, and the opening of what arrives.

use std::sync::Arc;

use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::clients::ClientTable;
use super::mac::{MacKey, Tag};
use super::signatures::Signatures;
use super::signer::{self, statement};
use super::{
    Clients, Envelope, Identity, Opened, Principal, PublicIdentity, Reject, Replies, Rights, Signer, Verified,
};
use crate::limits;
use crate::types::{ClientId, ClusterSize, Digest, Domain, EndpointId, Hasher, ReplicaId};
use crate::wire::frame::{self, Messages};
use crate::wire::header::{self, Parts, VERSION, cluster_tag};
use crate::wire::{FragmentHeader, Header, Kind, Malformed, Pack, Proof, ProofKind};

/// How envelopes and packs are proved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AuthMode {
    /// MACs between pairs.
    #[default]
    Mac,
    /// Ed25519 signatures in their place: dearer, and good against repudiation.
    Signature,
}

impl AuthMode {
    pub(super) fn proof(self) -> ProofKind {
        match self {
            AuthMode::Mac => ProofKind::Mac,
            AuthMode::Signature => ProofKind::Signature,
        }
    }
}

/// Who belongs to a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterKeys {
    /// The hash of the cluster file.
    pub cluster: Digest,
    /// Distinguishes lives of a cluster in memory mode; part of every key (P42 f).
    pub instance: u64,
    /// The replicas, by id.
    pub replicas: Vec<PublicIdentity>,
    /// The clients.
    pub clients: Clients,
}

/// Why keys cannot be used: a mistake in files, not of the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// Not 3f + 1.
    #[error("a cluster has 3f + 1 replicas, at most {max}: not {0}", max = limits::REPLICAS_MAX)]
    Size(usize),
    /// Unusable public key.
    #[error("the public identity of replica {0} is unusable")]
    Unusable(ReplicaId),
    /// Two replicas have one identity.
    #[error("replicas {0} and {1} have the same public identity")]
    Duplicate(ReplicaId, ReplicaId),
    /// The secret key is not that of this replica.
    #[error("this key is not the one that the cluster file names for replica {0}")]
    NotThisReplica(ReplicaId),
}

impl ClusterKeys {
    /// The size of the cluster.
    ///
    /// # Errors
    /// [`KeyError::Size`].
    pub fn size(&self) -> Result<ClusterSize, KeyError> {
        ClusterSize::of(self.replicas.len()).ok_or(KeyError::Size(self.replicas.len()))
    }

    /// Checks size and replicas' keys, and gives their verifying halves.
    pub(super) fn check(&self) -> Result<Vec<VerifyingKey>, KeyError> {
        let size = self.size()?;
        for (i, j) in size.replicas().flat_map(|i| size.replicas().map(move |j| (i, j))) {
            if i < j && self.replicas[usize::from(i.0)] == self.replicas[usize::from(j.0)] {
                return Err(KeyError::Duplicate(i, j));
            }
        }
        let key = |id: ReplicaId| self.replicas[usize::from(id.0)].verifying_key().map_err(|_| KeyError::Unusable(id));
        size.replicas().map(key).collect()
    }
}

/// The keys of one pair, one for each direction.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) send: MacKey,
    pub(super) receive: MacKey,
}

/// What every key of this process is derived from (P40).
#[derive(Clone, Debug)]
pub(super) struct Derivation {
    pub(super) identity: Identity,
    me: Principal,
    cluster: Digest,
    instance: u64,
}

impl Derivation {
    /// HKDF-SHA256 of the shared secret; info: version, cluster, instance, sender, receiver, their epochs, their boots,
    /// client endpoint. The order of sender and receiver is the direction.
    fn key(&self, shared: &[u8; 32], sender: Principal, receiver: Principal) -> MacKey {
        let mut info = Vec::with_capacity(128);
        info.extend_from_slice(b"castra pair");
        info.push(VERSION);
        info.extend_from_slice(&self.cluster.0);
        info.extend_from_slice(&self.instance.to_le_bytes());
        let mut endpoint = 0;
        for principal in [sender, receiver] {
            let (role, id) = match principal {
                Principal::Replica(id) => (1, u64::from(id.0)),
                Principal::Client(id, e) => {
                    endpoint = e.0;
                    (2, id.0)
                }
            };
            info.push(role);
            info.extend_from_slice(&id.to_le_bytes());
        }
        let (epochs, boots) = ([0u32; 2], [0u64; 2]);
        info.extend(epochs.iter().flat_map(|epoch| epoch.to_le_bytes()));
        info.extend(boots.iter().flat_map(|boot| boot.to_le_bytes()));
        info.extend_from_slice(&endpoint.to_le_bytes());
        let mut key = Zeroizing::new([0; 16]);
        Hkdf::<Sha256>::new(None, shared).expand(&info, &mut *key).expect("16 bytes are a valid length");
        MacKey::new(&key)
    }

    pub(super) fn pair(&self, shared: &[u8; 32], other: Principal) -> Pair {
        Pair { send: self.key(shared, self.me, other), receive: self.key(shared, other, self.me) }
    }
}

#[derive(Clone)]
pub(super) struct ReplicaKeys {
    verifying: VerifyingKey,
    /// `None`: ourselves.
    pub(super) pair: Option<Pair>,
}

/// All keys of a replica or a client endpoint. Every network core has a copy of its own.
#[derive(Clone)]
pub struct Keyring {
    pub(super) me: Principal,
    pub(super) mode: AuthMode,
    size: ClusterSize,
    pub(super) tag: u64,
    pub(super) keys: Arc<ClusterKeys>,
    pub(super) derivation: Derivation,
    pub(super) replicas: Vec<ReplicaKeys>,
    pub(super) clients: ClientTable,
    signatures: Signatures,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyring({:?}, {:?})", self.me, self.mode)
    }
}

impl Keyring {
    /// The keys of replica `me`.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn replica(
        me: ReplicaId,
        identity: &Identity,
        keys: Arc<ClusterKeys>,
        mode: AuthMode,
    ) -> Result<Keyring, KeyError> {
        if keys.size()?.contains(me) && keys.replicas[usize::from(me.0)] == identity.public() {
            Keyring::new(Principal::Replica(me), identity, keys, mode)
        } else {
            Err(KeyError::NotThisReplica(me))
        }
    }

    /// The keys of one endpoint of the client with this identity. Whether it is let in, the replicas say.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn client(
        identity: &Identity,
        endpoint: EndpointId,
        keys: Arc<ClusterKeys>,
        mode: AuthMode,
    ) -> Result<Keyring, KeyError> {
        Keyring::new(Principal::Client(identity.public().client_id(), endpoint), identity, keys, mode)
    }

    fn new(me: Principal, identity: &Identity, keys: Arc<ClusterKeys>, mode: AuthMode) -> Result<Keyring, KeyError> {
        let (cluster, instance) = (keys.cluster, keys.instance);
        let derivation = Derivation { identity: identity.clone(), me, cluster, instance };
        let size = keys.size()?;
        let mut replicas = Vec::with_capacity(size.n());
        for (id, verifying) in size.replicas().zip(keys.check()?) {
            let other = Principal::Replica(id);
            let pair = if other == me {
                None
            } else {
                let shared = identity.agree(&keys.replicas[usize::from(id.0)]).map_err(|_| KeyError::Unusable(id))?;
                Some(derivation.pair(&shared, other))
            };
            replicas.push(ReplicaKeys { verifying, pair });
        }
        let tag = cluster_tag(&cluster);
        Ok(Keyring {
            me,
            mode,
            size,
            tag,
            keys,
            derivation,
            replicas,
            clients: ClientTable::default(),
            signatures: Signatures::default(),
        })
    }

    /// Whose keys these are.
    pub fn me(&self) -> Principal {
        self.me
    }

    /// The size of the cluster.
    pub fn size(&self) -> ClusterSize {
        self.size
    }

    /// How envelopes and packs are proved.
    pub fn mode(&self) -> AuthMode {
        self.mode
    }

    /// Who belongs to the cluster.
    pub fn cluster(&self) -> &Arc<ClusterKeys> {
        &self.keys
    }

    /// The keys of this replica's checkpoint role, which may live on another core.
    ///
    /// # Panics
    /// If this is a client's keyring.
    pub fn signer(&self) -> Signer {
        let Principal::Replica(me) = self.me else { panic!("clients sign no checkpoints") };
        Signer::new(me, &self.derivation.identity, self.keys.clone()).expect("checked when the keyring was made")
    }

    /// What a client may do: nothing, if it is not let in.
    pub fn rights(&self, client: ClientId) -> Rights {
        match &self.keys.clients {
            Clients::Listed(listed) => listed.get(&client).map_or(Rights::default(), |(_, rights)| *rights),
            Clients::Open => Rights::READ_WRITE,
        }
    }

    /// Checks one datagram. Everything in it is from whom it says, except that a pack's own proof is still to be
    /// checked and a fragment is only a piece.
    ///
    /// # Errors
    /// [`Reject`], with the first thing that is wrong. The datagram had no effect.
    pub fn open(&mut self, datagram: &Bytes) -> Result<Opened, Reject> {
        let header = Header::parse(datagram)?;
        if header.cluster != self.tag {
            return Err(Reject::ForeignCluster(header.cluster));
        }
        if header.receiver != self.me {
            return Err(Reject::WrongReceiver);
        }
        if (header.sender_epoch, header.receiver_epoch) != (0, 0) {
            return Err(Reject::UnknownEpoch);
        }
        if let Principal::Replica(id) = header.sender
            && (!self.size.contains(id) || header.sender == self.me)
        {
            return Err(Reject::UnknownReplica(id));
        }
        let parts = Parts::split(header, datagram)?;
        match (header.kind, header.sender, self.me) {
            (Kind::Envelope, Principal::Replica(from), _) => self.open_envelope(from, parts),
            (Kind::Pack, Principal::Client(client, endpoint), Principal::Replica(_)) => {
                self.open_pack(client, endpoint, parts)
            }
            (Kind::Fragment, from, _) => self.open_fragment(from, parts),
            (Kind::Envelope, Principal::Client(..), _)
            | (Kind::Pack, Principal::Replica(_), _)
            | (Kind::Pack, Principal::Client(..), Principal::Client(..)) => Err(Reject::WrongRole),
        }
    }

    fn open_envelope(&self, from: ReplicaId, parts: Parts) -> Result<Opened, Reject> {
        if parts.header.proof != self.mode.proof() {
            return Err(Reject::WrongProof);
        }
        let mut hasher = Hasher::new(Domain::Envelope);
        parts.header.absorb(&mut hasher);
        frame::absorb_received(&parts.body, &mut hasher)?;
        self.check_hop(from, &parts, &hasher.finish())?;
        let messages = Messages::new(parts.body);
        Ok(match self.me {
            Principal::Replica(_) => Opened::Envelope(Envelope { from, messages }),
            Principal::Client(..) => Opened::Replies(Replies { from, messages }),
        })
    }

    fn check_hop(&self, from: ReplicaId, parts: &Parts, digest: &Digest) -> Result<(), Reject> {
        let keys = &self.replicas[usize::from(from.0)];
        match parts.header.proof {
            ProofKind::Mac => {
                let pair = keys.pair.as_ref().ok_or(Reject::UnknownReplica(from))?;
                if pair.receive.verify(digest, &tag(&parts.proof)?) { Ok(()) } else { Err(Reject::BadMac) }
            }
            ProofKind::Signature => {
                let signature = parts.proof.first_chunk().ok_or(Malformed::Truncated)?;
                signer::verify(&keys.verifying, &statement(&self.keys, Domain::Envelope, digest), signature)
            }
        }
    }

    fn check_client_hop(
        &mut self,
        client: ClientId,
        endpoint: EndpointId,
        parts: &Parts,
        digest: &Digest,
    ) -> Result<(), Reject> {
        let expected = tag(&parts.proof)?;
        self.clients.check(&self.derivation, &self.keys.clients, client, endpoint, |pair, _| {
            if pair.receive.verify(digest, &expected) { Ok(()) } else { Err(Reject::BadMac) }
        })
    }

    fn open_pack(&mut self, client: ClientId, endpoint: EndpointId, parts: Parts) -> Result<Opened, Reject> {
        let known = self.clients.knows(&self.keys.clients, client);
        if !known && matches!(self.keys.clients, Clients::Listed(_)) {
            return Err(Reject::UnknownClient);
        }
        let pack = Pack::parse(parts.body.clone())?;
        if (pack.client(), pack.endpoint()) != (client, endpoint) {
            return Err(Reject::NotTheSpeaker);
        }
        if known {
            self.check_client_hop(client, endpoint, &parts, &pack_hop_digest(&parts.header, &pack))?;
        } else if !pack.is_signed() {
            return Err(Reject::UnknownClient);
        }
        Ok(Opened::Pack { pack, hop: known })
    }

    fn open_fragment(&mut self, from: Principal, parts: Parts) -> Result<Opened, Reject> {
        let header = parts.fragment.ok_or(Malformed::Truncated)?;
        let digest = fragment_digest(&parts.header, &header, &parts.body, None);
        match from {
            Principal::Replica(id) => self.check_hop(id, &parts, &digest)?,
            Principal::Client(client, endpoint) => self.check_client_hop(client, endpoint, &parts, &digest)?,
        }
        Ok(Opened::Fragment { from, header, piece: parts.body })
    }

    /// Checks a pack's own proof for this replica, wherever the pack came from, and what its client may do: our entry
    /// in the vector, or the signature (P12). Signatures cost a thousand times what MACs do: the caller keeps quotas.
    ///
    /// # Errors
    /// [`Reject`], with the first thing that is wrong.
    pub fn verify_pack(&mut self, pack: Pack) -> Result<Verified<Pack>, Reject> {
        self.check_pack(&pack)?;
        Ok(Verified::new(Principal::Client(pack.client(), pack.endpoint()), pack))
    }

    /// Whether [`Self::verify_pack`] would have to check a signature: it is signed, and not one of the last that were
    /// good.
    pub fn costs_signature(&self, pack: &Pack) -> bool {
        pack.is_signed() && !self.signatures.contains(pack)
    }

    fn check_pack(&mut self, pack: &Pack) -> Result<(), Reject> {
        let Principal::Replica(me) = self.me else { return Err(Reject::WrongRole) };
        let (clients, client, endpoint) = (&self.keys.clients, pack.client(), pack.endpoint());
        match pack.proof() {
            Proof::Vector(_) if pack.opens_session() => Err(Reject::UnsignedOpen),
            Proof::Vector(_) if self.mode == AuthMode::Signature => Err(Reject::WrongProof),
            Proof::Vector(entries) => {
                let entry = entries.get(usize::from(me.0)).filter(|_| entries.len() == self.size.n());
                let entry = entry.ok_or(Reject::BadEntry)?;
                self.clients.check(&self.derivation, clients, client, endpoint, |pair, rights| {
                    permitted(pack, rights)?;
                    if pair.receive.verify(&pack.digest(), entry) { Ok(()) } else { Err(Reject::BadEntry) }
                })
            }
            Proof::Signature { identity, signature } => {
                let public = PublicIdentity::from_bytes(identity);
                let signed = statement(&self.keys, Domain::Pack, &pack.digest());
                let known_good = self.signatures.contains(pack);
                self.clients.check_signature(&self.derivation, clients, client, &public, |key, rights| {
                    permitted(pack, rights)?;
                    if known_good { Ok(()) } else { signer::verify(key, &signed, signature) }
                })?;
                self.signatures.insert(pack);
                // The replies need keys even if no MAC of this endpoint was ever checked.
                self.clients.learn(&self.derivation, clients, client, endpoint);
                Ok(())
            }
        }
    }
}

/// Read-only packs need the right to read, all others the right to write.
fn permitted(pack: &Pack, rights: Rights) -> Result<(), Reject> {
    let may = if pack.is_read_only() { rights.read } else { rights.write };
    if may { Ok(()) } else { Err(Reject::NotPermitted) }
}

fn tag(proof: &[u8]) -> Result<Tag, Reject> {
    proof.first_chunk().copied().ok_or(Reject::Malformed(Malformed::Truncated))
}

/// What the hop of a pack from its client is proved over.
pub(super) fn pack_hop_digest(header: &Header, pack: &Pack) -> Digest {
    let mut hasher = Hasher::new(Domain::Envelope);
    header.absorb(&mut hasher);
    hasher.update(&[u8::from(pack.wants_full())]).update(&pack.digest().0).finish()
}

/// The first bytes of a piece may hold a head, which differs between the receivers of a broadcast.
pub(super) const FRAGMENT_OWN: usize = header::HEADER + header::SIGNATURE;

/// What a fragment is proved over. `rest`, if known, is the digest of the piece without its first
/// [`FRAGMENT_OWN`] bytes, which all receivers of a broadcast share.
pub(super) fn fragment_digest(
    header: &Header,
    fragment: &FragmentHeader,
    piece: &[u8],
    rest: Option<Digest>,
) -> Digest {
    let (own, shared) = piece.split_at(piece.len().min(FRAGMENT_OWN));
    let rest = rest.unwrap_or_else(|| Digest::of(Domain::Body, &[shared]));
    let mut hasher = Hasher::new(Domain::Fragment);
    header.absorb(&mut hasher);
    hasher.update(&fragment.encode()).update(&rest.0).update(own).finish()
}
