//! All keys of one process, and the opening of what arrives.

use std::sync::Arc;

use bytes::Bytes;
use ed25519_dalek::VerifyingKey;

use super::clients::ClientTable;
use super::derivation::{Derivation, End, FreshKey, KEY_GRACE, Pair};
use super::mac::{MacKey, Tag};
use super::signatures::Signatures;
use super::signer::{self, statement};
use super::{
    Clients, Envelope, Identity, Opened, Principal, PublicIdentity, Reject, Replies, Rights, Signer, Verified,
};
use crate::limits;
use crate::types::{ClientId, ClusterSize, Digest, Domain, EndpointId, Hasher, ReplicaId, Time};
use crate::wire::frame::{self, Messages};
use crate::wire::header::{self, Parts, cluster_tag};
use crate::wire::{FragmentHeader, Header, Kind, Malformed, NewKey, Pack, PackDigests, Proof, ProofKind, Receipt};

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
        match self.replicas.len() {
            1 => Ok(ClusterSize::UNREPLICATED),
            n => ClusterSize::of(n).ok_or(KeyError::Size(n)),
        }
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

#[derive(Clone)]
pub(super) struct ReplicaKeys {
    verifying: VerifyingKey,
    end: End,
    /// Of its last NEW-KEY.
    counter: u64,
    /// `None`: ourselves.
    pub(super) pair: Option<Pair>,
    previous: Option<Previous>,
}

/// A replica's key before the last, in its grace.
#[derive(Clone)]
struct Previous {
    epoch: u32,
    receive: MacKey,
    until: Time,
}

impl ReplicaKeys {
    /// The key for what it sends under `epoch`, if that is one to be used.
    fn receive(&self, epoch: u32) -> Option<&MacKey> {
        if epoch == self.end.epoch {
            return self.pair.as_ref().map(|pair| &pair.receive);
        }
        self.previous.as_ref().filter(|previous| previous.epoch == epoch).map(|previous| &previous.receive)
    }

    /// Whether `key` is above the last. Every part of it rises.
    fn precedes(&self, key: &NewKey) -> bool {
        key.counter > self.counter && key.epoch > self.end.epoch && key.boot >= self.end.boot
    }

    fn is_last(&self, key: &NewKey) -> bool {
        (key.counter, key.epoch, key.boot) == (self.counter, self.end.epoch, self.end.boot)
    }
}

/// What came of a NEW-KEY.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learned {
    /// The replica has this key from now on.
    News,
    /// It was known.
    Known,
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
    /// Our own NEW-KEY and its encoding, once this process has a key of its own.
    pub(super) announced: Option<(NewKey, Bytes)>,
    /// When the grace of a replica's key before the last ends first.
    grace_ends: Time,
    pub(super) replicas: Vec<ReplicaKeys>,
    pub(super) clients: ClientTable,
    signatures: Signatures,
    /// Room for the digests of the packs in an envelope.
    pack_digests: PackDigests,
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
        let derivation = Derivation::new(me, identity, keys.cluster, keys.instance);
        let size = keys.size()?;
        let mut replicas = Vec::with_capacity(size.n());
        for (id, verifying) in size.replicas().zip(keys.check()?) {
            let end = End::first(Principal::Replica(id));
            replicas.push(ReplicaKeys { verifying, end, counter: 0, pair: None, previous: None });
        }
        let tag = cluster_tag(&keys.cluster);
        let mut keyring = Keyring {
            me,
            mode,
            size,
            tag,
            keys,
            derivation,
            announced: None,
            grace_ends: Time::NEVER,
            replicas,
            clients: ClientTable::default(),
            signatures: Signatures::default(),
            pack_digests: PackDigests::default(),
        };
        keyring.derive()?;
        Ok(keyring)
    }

    /// The keys of all pairs of replicas, each under its identity's key.
    fn derive(&mut self) -> Result<(), KeyError> {
        for (id, keys) in self.size.replicas().zip(&mut self.replicas) {
            keys.end = End::first(Principal::Replica(id));
            (keys.counter, keys.previous) = (0, None);
            if keys.end.principal != self.me {
                let public = &self.keys.replicas[usize::from(id.0)];
                let shared = self.derivation.agree_with(public).map_err(|_| KeyError::Unusable(id))?;
                keys.pair = Some(self.derivation.pair(&shared, keys.end));
            }
        }
        Ok(())
    }

    /// Starts with a key of this process's own (P40), before anything was sent. Others must be told, by
    /// [`Self::seal_new_key`]; what they say is to be [learnt](Self::learn).
    ///
    /// # Errors
    /// [`KeyError`].
    ///
    /// # Panics
    /// If this is a client's keyring: endpoints have fresh keys by their random ids.
    pub fn begin(&mut self, fresh: &FreshKey) -> Result<(), KeyError> {
        let Principal::Replica(replica) = self.me else { panic!("client endpoints announce no keys") };
        let exchange = self.derivation.begin(fresh);
        let (epoch, boot, counter) = (fresh.epoch, fresh.boot, u64::from(fresh.epoch));
        let mut key = NewKey { replica, epoch, boot, counter, exchange, signature: [0; 64] };
        let signed = statement(&self.keys, Domain::NewKey, &key.digest());
        key.signature = self.derivation.identity.sign(&signed);
        self.announced = Some((key, key.encode()));
        self.clients.clear();
        self.derive()
    }

    /// Takes a replica's new key, if it is signed and above the last (P40). What is under way under the key before
    /// stays good for [`KEY_GRACE`](super::KEY_GRACE), unless it is of an earlier boot: of those a replica takes nothing
    /// any more (P42 a). A client does: what the earlier boot executed, it executed.
    ///
    /// # Errors
    /// [`Reject`]; nothing has changed.
    pub fn learn(&mut self, now: Time, key: &NewKey) -> Result<Learned, Reject> {
        let id = key.replica;
        let keys = self.replicas.get(usize::from(id.0)).filter(|keys| keys.pair.is_some());
        let keys = keys.ok_or(Reject::UnknownReplica(id))?;
        if keys.is_last(key) {
            return Ok(Learned::Known);
        }
        if !keys.precedes(key) {
            return Err(Reject::StaleKey);
        }
        signer::verify(&keys.verifying, &statement(&self.keys, Domain::NewKey, &key.digest()), &key.signature)?;
        let shared = self.derivation.agree(&key.exchange)?;
        let end = End { principal: Principal::Replica(id), epoch: key.epoch, boot: key.boot };
        let pair = self.derivation.pair(&shared, end);
        let keys = &mut self.replicas[usize::from(id.0)];
        let (before, old) = (keys.end, keys.pair.replace(pair));
        let graceful = before.boot == end.boot || matches!(self.me, Principal::Client(..));
        (keys.end, keys.counter) = (end, key.counter);
        keys.previous = old.filter(|_| graceful).map(|old| {
            let until = now + KEY_GRACE;
            self.grace_ends = self.grace_ends.min(until);
            Previous { epoch: before.epoch, receive: old.receive, until }
        });
        Ok(Learned::News)
    }

    /// Whether [`Self::learn`] would have to check a signature.
    pub fn is_news(&self, key: &NewKey) -> bool {
        self.replicas.get(usize::from(key.replica.0)).is_some_and(|keys| keys.precedes(key))
    }

    /// Ends the grace of keys whose time is up. Costs a comparison if there is none.
    pub fn expire(&mut self, now: Time) {
        if now < self.grace_ends {
            return;
        }
        self.grace_ends = Time::NEVER;
        for keys in &mut self.replicas {
            keys.previous.take_if(|previous| previous.until <= now);
            if let Some(previous) = &keys.previous {
                self.grace_ends = self.grace_ends.min(previous.until);
            }
        }
    }

    /// What this process's key is called; 0 if it is its identity's.
    pub fn epoch(&self) -> u32 {
        self.derivation.me.epoch
    }

    /// Which start of this replica it is; 0 if it has not begun.
    pub fn boot(&self) -> u64 {
        self.derivation.me.boot
    }

    /// What the last known key of a replica is called.
    pub fn epoch_of(&self, id: ReplicaId) -> u32 {
        self.replicas.get(usize::from(id.0)).map_or(0, |keys| keys.end.epoch)
    }

    /// The replica's last known start.
    pub fn boot_of(&self, id: ReplicaId) -> u64 {
        self.replicas.get(usize::from(id.0)).map_or(0, |keys| keys.end.boot)
    }

    /// Whether a client is let in, or may be once it has proved itself.
    pub fn admits(&self, client: ClientId) -> bool {
        match &self.keys.clients {
            Clients::Listed(listed) => listed.contains_key(&client),
            Clients::Open => true,
        }
    }

    /// Whether a client's keys are to be had: it is listed, or an open cluster has seen a signature of its.
    pub fn knows(&self, client: ClientId) -> bool {
        self.clients.knows(&self.keys.clients, client)
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
        Signer::new(me, self.boot(), &self.derivation.identity, self.keys.clone())
            .expect("checked when the keyring was made")
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
        if let Principal::Replica(id) = header.sender
            && (!self.size.contains(id) || header.sender == self.me)
        {
            return Err(Reject::UnknownReplica(id));
        }
        if header.kind == Kind::NewKey {
            return Keyring::open_new_key(header, datagram);
        }
        let known = match header.sender {
            Principal::Replica(id) => self.replicas[usize::from(id.0)].receive(header.sender_epoch).is_some(),
            Principal::Client(..) => header.sender_epoch == 0,
        };
        if !known || header.receiver_epoch != self.epoch() {
            return Err(Reject::UnknownEpoch);
        }
        let parts = Parts::split(header, datagram)?;
        match (header.kind, header.sender, self.me) {
            (Kind::Envelope, Principal::Replica(from), _) => self.open_envelope(from, parts),
            (Kind::Pack, Principal::Client(client, endpoint), Principal::Replica(_)) => {
                self.open_pack(client, endpoint, parts)
            }
            (Kind::Fragment, from, _) => self.open_fragment(from, parts),
            (Kind::Receipt, Principal::Replica(from), Principal::Client(..)) => self.open_receipt(from, &parts),
            (Kind::NewKey | Kind::Receipt, ..)
            | (Kind::Envelope, Principal::Client(..), _)
            | (Kind::Pack, Principal::Replica(_), _)
            | (Kind::Pack, Principal::Client(..), Principal::Client(..)) => Err(Reject::WrongRole),
        }
    }

    fn open_new_key(header: Header, datagram: &Bytes) -> Result<Opened, Reject> {
        let Principal::Replica(id) = header.sender else { return Err(Reject::WrongRole) };
        let parts = Parts::split(header, datagram)?;
        let key = NewKey::decode(id, header.sender_epoch, &parts.proof, &parts.body)?;
        Ok(Opened::NewKey { key, ours: header.receiver_epoch })
    }

    fn open_envelope(&mut self, from: ReplicaId, parts: Parts) -> Result<Opened, Reject> {
        if parts.header.proof != self.mode.proof() {
            return Err(Reject::WrongProof);
        }
        let mut hasher = Hasher::new(Domain::Envelope);
        parts.header.absorb(&mut hasher);
        let mut known = std::mem::take(&mut self.pack_digests);
        frame::absorb_received(&parts.body, &mut hasher, &mut known)?;
        self.check_hop(from, &parts, &hasher.finish())?;
        let messages = Messages::with(parts.body, known);
        Ok(match self.me {
            Principal::Replica(_) => Opened::Envelope(Envelope { from, messages }),
            Principal::Client(..) => Opened::Replies(Replies { from, messages }),
        })
    }

    /// An envelope that was opened here is read: what it needed room for has room.
    pub fn close(&mut self, envelope: Envelope) {
        self.pack_digests = envelope.messages.into_known();
    }

    fn check_hop(&self, from: ReplicaId, parts: &Parts, digest: &Digest) -> Result<(), Reject> {
        let keys = &self.replicas[usize::from(from.0)];
        match parts.header.proof {
            ProofKind::Mac => {
                let key = keys.receive(parts.header.sender_epoch).ok_or(Reject::UnknownEpoch)?;
                if key.verify(digest, &tag(&parts.proof)?) { Ok(()) } else { Err(Reject::BadMac) }
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
        let known = self.knows(client);
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

    fn open_receipt(&self, from: ReplicaId, parts: &Parts) -> Result<Opened, Reject> {
        self.check_hop(from, parts, &receipt_digest(&parts.header, &parts.body))?;
        Ok(Opened::Receipt { from, receipt: Receipt::decode(&parts.body)? })
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
                let checked = self.clients.check(&self.derivation, clients, client, endpoint, |pair, rights| {
                    permitted(pack, rights)?;
                    if pair.receive.verify(&pack.digest(), entry) { Ok(()) } else { Err(Reject::BadEntry) }
                });
                // A vector does not say under which of our keys its entries are. An endpoint that has not shown that it
                // knows this one made them for an earlier start of ours: it is not to blame, and will sign (P2, P13).
                let blind = self.epoch() > 0 && !self.clients.has_proved(client, endpoint);
                checked.map_err(|reject| match reject {
                    Reject::BadEntry if blind => Reject::UnknownEpoch,
                    other => other,
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

/// What a receipt is proved over.
pub(super) fn receipt_digest(header: &Header, body: &[u8]) -> Digest {
    let mut hasher = Hasher::new(Domain::Receipt);
    header.absorb(&mut hasher);
    hasher.update(body).finish()
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
