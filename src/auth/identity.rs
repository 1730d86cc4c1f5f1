//! Long-term keys: one 32-byte seed per replica or client.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer as _, SigningKey};
use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::Reject;
use crate::types::{ClientId, Digest, Domain};

/// A secret identity: an Ed25519 key to sign with and an X25519 key to agree on keys with, both derived from one seed.
#[derive(Clone)]
pub struct Identity {
    seed: Zeroizing<[u8; 32]>,
    signing: SigningKey,
    exchange: StaticSecret,
    public: PublicIdentity,
}

impl Identity {
    /// The identity of `seed`, which must be 32 random bytes and stay secret.
    pub fn from_seed(seed: [u8; 32]) -> Identity {
        let seed = Zeroizing::new(seed);
        let derive = |info: &[u8]| {
            let mut key = Zeroizing::new([0; 32]);
            Hkdf::<Sha256>::new(None, &*seed).expand(info, &mut *key).expect("32 bytes are a valid length");
            key
        };
        let signing = SigningKey::from_bytes(&derive(b"castra identity ed25519"));
        let exchange = StaticSecret::from(*derive(b"castra identity x25519"));
        let public = PublicIdentity {
            verifying: signing.verifying_key().to_bytes(),
            exchange: PublicKey::from(&exchange).to_bytes(),
        };
        Identity { seed, signing, exchange, public }
    }

    /// The seed, to be written to a key file.
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// What others may know.
    pub fn public(&self) -> PublicIdentity {
        self.public
    }

    pub(super) fn sign(&self, statement: &[u8]) -> [u8; 64] {
        self.signing.sign(statement).to_bytes()
    }

    /// The X25519 key before the first NEW-KEY.
    pub(super) fn exchange(&self) -> &StaticSecret {
        &self.exchange
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.public.client_id())
    }
}

/// The public half of an identity. Written as `castra1` and hexadecimal digits, the last eight of them a checksum.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicIdentity {
    verifying: [u8; 32],
    exchange: [u8; 32],
}

impl PublicIdentity {
    const PREFIX: &'static str = "castra1";

    /// The identity in these bytes: Ed25519 public key, X25519 public key. Whether they are usable is found when they
    /// are used.
    pub fn from_bytes(bytes: &[u8; 64]) -> PublicIdentity {
        let (mut verifying, mut exchange) = ([0; 32], [0; 32]);
        verifying.copy_from_slice(&bytes[..32]);
        exchange.copy_from_slice(&bytes[32..]);
        PublicIdentity { verifying, exchange }
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.verifying);
        bytes[32..].copy_from_slice(&self.exchange);
        bytes
    }

    fn digest(&self) -> Digest {
        Digest::of(Domain::Identity, &[&self.verifying, &self.exchange])
    }

    /// The client id: the first eight bytes of the identity's digest.
    pub fn client_id(&self) -> ClientId {
        let [a, b, c, d, e, f, g, h, ..] = self.digest().0;
        ClientId(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    pub(super) fn verifying_key(&self) -> Result<ed25519_dalek::VerifyingKey, Reject> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(&self.verifying).map_err(|_| Reject::BadKey)?;
        if key.is_weak() { Err(Reject::BadKey) } else { Ok(key) }
    }

    pub(super) fn exchange(&self) -> &[u8; 32] {
        &self.exchange
    }

    fn checksum(&self) -> [u8; 4] {
        let [.., a, b, c, d] = self.digest().0;
        [a, b, c, d]
    }
}

impl fmt::Display for PublicIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", Self::PREFIX, hex::encode(self.to_bytes()), hex::encode(self.checksum()))
    }
}

impl fmt::Debug for PublicIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicIdentity({})", self.client_id())
    }
}

/// Why a text is not a public identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IdentityError {
    /// It does not begin with `castra1`.
    #[error("a public identity begins with castra1")]
    Prefix,
    /// Not 136 hexadecimal digits after that.
    #[error("a public identity has 136 hexadecimal digits after castra1")]
    Digits,
    /// The checksum is wrong: a typing error.
    #[error("the checksum of this public identity is wrong: was it copied whole?")]
    Checksum,
    /// The keys are no points that can be used.
    #[error("this public identity holds an unusable key")]
    Unusable,
}

impl FromStr for PublicIdentity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<PublicIdentity, IdentityError> {
        let digits = text.strip_prefix(Self::PREFIX).ok_or(IdentityError::Prefix)?;
        let mut bytes = [0; 68];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| IdentityError::Digits)?;
        let (identity, checksum) = bytes.split_first_chunk::<64>().ok_or(IdentityError::Digits)?;
        let identity = PublicIdentity::from_bytes(identity);
        if checksum != identity.checksum() {
            return Err(IdentityError::Checksum);
        }
        identity.verifying_key().map_err(|_| IdentityError::Unusable)?;
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::super::derivation::agree;
    use super::*;

    #[test]
    fn p40_all_zero_shared_secrets_are_rejected() {
        let me = Identity::from_seed([7; 32]);
        // Small-order points of Curve25519: 0, 1, and p - 1.
        let mut p_minus_1 = [0xff; 32];
        (p_minus_1[0], p_minus_1[31]) = (0xec, 0x7f);
        let mut one = [0; 32];
        one[0] = 1;
        for exchange in [[0; 32], one, p_minus_1] {
            assert_eq!(agree(me.exchange(), &exchange).err(), Some(Reject::BadKey));
        }
        assert!(agree(me.exchange(), Identity::from_seed([8; 32]).public().exchange()).is_ok());
    }

    #[test]
    fn both_ends_agree_on_one_secret() {
        let (a, b) = (Identity::from_seed([1; 32]), Identity::from_seed([2; 32]));
        let (ab, ba) = (agree(a.exchange(), b.public().exchange()), agree(b.exchange(), a.public().exchange()));
        assert_eq!(ab.unwrap(), ba.unwrap());
    }

    #[test]
    fn public_identities_survive_writing() {
        let public = Identity::from_seed([3; 32]).public();
        let text = public.to_string();
        assert!(text.starts_with("castra1"));
        assert_eq!(text.parse(), Ok(public));
        assert_eq!("castra2".parse::<PublicIdentity>(), Err(IdentityError::Prefix));
        assert_eq!(text[..50].parse::<PublicIdentity>(), Err(IdentityError::Digits));
        let last = if text.ends_with('0') { "1" } else { "0" };
        assert_eq!(
            format!("{}{last}", &text[..text.len() - 1]).parse::<PublicIdentity>(),
            Err(IdentityError::Checksum)
        );
    }

    #[test]
    fn weak_verifying_keys_are_refused() {
        let mut identity = [0; 64];
        identity[0] = 1; // the neutral point
        assert_eq!(PublicIdentity::from_bytes(&identity).verifying_key().err(), Some(Reject::BadKey));
    }
}
