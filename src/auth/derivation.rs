//! From key agreement to the keys of a pair (P40).

use std::time::Duration;

use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::mac::MacKey;
use super::{Identity, Principal, PublicIdentity, Reject};
use crate::types::Digest;
use crate::wire::header::VERSION;

/// How long a peer's key before the last is still good for what was on its way.
pub const KEY_GRACE: Duration = Duration::from_secs(2);

/// The key that a process starts with, and no process before it had (P40). The secret is 32 random bytes, or, in a
/// simulation, bytes from the seed.
#[derive(Clone)]
pub struct FreshKey {
    pub(super) boot: u64,
    pub(super) epoch: u32,
    pub(super) secret: Zeroizing<[u8; 32]>,
}

impl FreshKey {
    /// The key of a replica's `boot`-th start in its instance of the cluster, counted from 1 and on disk (P42). The key's
    /// epoch and counter are the boot's number: they rise with it, and a process has one key in its life.
    pub fn at_boot(boot: u64, secret: [u8; 32]) -> FreshKey {
        FreshKey { boot, epoch: u32::try_from(boot).unwrap_or(u32::MAX), secret: Zeroizing::new(secret) }
    }

    /// Which start of the replica it is for.
    pub fn boot(&self) -> u64 {
        self.boot
    }
}

impl std::fmt::Debug for FreshKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FreshKey(boot {}, epoch {})", self.boot, self.epoch)
    }
}

/// One end of a pair, as its keys know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct End {
    pub(super) principal: Principal,
    /// 0: the identity's own key, before the first NEW-KEY.
    pub(super) epoch: u32,
    pub(super) boot: u64,
}

impl End {
    /// Somebody who has announced no key.
    pub(super) fn first(principal: Principal) -> End {
        End { principal, epoch: 0, boot: 0 }
    }
}

/// The keys of one pair, one for each direction.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) send: MacKey,
    pub(super) receive: MacKey,
}

/// What every key of this process is derived from.
#[derive(Clone)]
pub(super) struct Derivation {
    pub(super) identity: Identity,
    pub(super) me: End,
    exchange: StaticSecret,
    cluster: Digest,
    instance: u64,
}

impl Derivation {
    /// With the identity's own key.
    pub(super) fn new(me: Principal, identity: &Identity, cluster: Digest, instance: u64) -> Derivation {
        let exchange = identity.exchange().clone();
        Derivation { identity: identity.clone(), me: End::first(me), exchange, cluster, instance }
    }

    /// With a fresh key in the identity's place. Gives its public half.
    pub(super) fn begin(&mut self, fresh: &FreshKey) -> [u8; 32] {
        self.exchange = StaticSecret::from(*fresh.secret);
        (self.me.epoch, self.me.boot) = (fresh.epoch, fresh.boot);
        PublicKey::from(&self.exchange).to_bytes()
    }

    /// X25519 with the owner of a public key. One of small order, which makes an all-zero secret, is refused.
    pub(super) fn agree(&self, exchange: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, Reject> {
        agree(&self.exchange, exchange)
    }

    /// [`Self::agree`] with the own key of an identity.
    pub(super) fn agree_with(&self, public: &PublicIdentity) -> Result<Zeroizing<[u8; 32]>, Reject> {
        self.agree(public.exchange())
    }

    /// HKDF-SHA256 of the shared secret; info: version, cluster, instance, sender, receiver, their epochs, their boots,
    /// client endpoint. The order of sender and receiver is the direction.
    fn key(&self, shared: &[u8; 32], sender: End, receiver: End) -> MacKey {
        let mut info = Vec::with_capacity(128);
        info.extend_from_slice(b"castra pair");
        info.push(VERSION);
        info.extend_from_slice(&self.cluster.0);
        info.extend_from_slice(&self.instance.to_le_bytes());
        let mut endpoint = 0;
        for end in [sender, receiver] {
            let (role, id) = match end.principal {
                Principal::Replica(id) => (1, u64::from(id.0)),
                Principal::Client(id, e) => {
                    endpoint = e.0;
                    (2, id.0)
                }
            };
            info.push(role);
            info.extend_from_slice(&id.to_le_bytes());
        }
        info.extend([sender, receiver].iter().flat_map(|end| end.epoch.to_le_bytes()));
        info.extend([sender, receiver].iter().flat_map(|end| end.boot.to_le_bytes()));
        info.extend_from_slice(&endpoint.to_le_bytes());
        let mut key = Zeroizing::new([0; 16]);
        Hkdf::<Sha256>::new(None, shared).expand(&info, &mut *key).expect("16 bytes are a valid length");
        MacKey::new(&key)
    }

    pub(super) fn pair(&self, shared: &[u8; 32], other: End) -> Pair {
        Pair { send: self.key(shared, self.me, other), receive: self.key(shared, other, self.me) }
    }
}

/// X25519. A public key of small order, which makes an all-zero secret, is refused (P40).
pub(super) fn agree(secret: &StaticSecret, public: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, Reject> {
    let shared = secret.diffie_hellman(&PublicKey::from(*public));
    if !shared.was_contributory() {
        return Err(Reject::BadKey);
    }
    Ok(Zeroizing::new(shared.to_bytes()))
}
