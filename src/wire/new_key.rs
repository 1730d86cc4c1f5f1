//! NEW-KEY: a replica's key for this life of its process (P40).
//!
//! ```text
//! a datagram of its own kind: header | signature 64 | boot u64 | counter u64 | exchange 32
//! ```
//! It cannot travel inside an envelope: who needs it has no key yet to check an envelope with. The signature covers the
//! replica, its epoch (the header's sender epoch) and the body, not the receiver: one signature is for all. The header's
//! receiver epoch says which key of the receiver the sender knows, and draws the receiver's own NEW-KEY if that is an
//! old one.

use bytes::{BufMut, Bytes, BytesMut};

use super::Malformed;
use super::codec::Reader;
use crate::types::{Digest, Domain, ReplicaId};

/// Bytes of the datagram's body.
pub const NEW_KEY: usize = 48;

/// NEW-KEY(epoch, exchange, boot, counter), signed by a replica's identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewKey {
    /// Whose key it is.
    pub replica: ReplicaId,
    /// What the key is called in headers. It rises with every key, across restarts too.
    pub epoch: u32,
    /// How often the replica has started in this instance of the cluster.
    pub boot: u64,
    /// It rises with every NEW-KEY of this replica: what is not above the last is a replay.
    pub counter: u64,
    /// The X25519 public key.
    pub exchange: [u8; 32],
    /// Ed25519 over the digest of the above in `Domain::NewKey`, with the cluster and instance ids.
    pub signature: [u8; 64],
}

impl NewKey {
    /// What the signature is over, before the cluster and instance ids.
    pub fn digest(&self) -> Digest {
        let (epoch, boot, counter) = (self.epoch.to_le_bytes(), self.boot.to_le_bytes(), self.counter.to_le_bytes());
        Digest::of(Domain::NewKey, &[&[self.replica.0], &epoch, &boot, &counter, &self.exchange])
    }

    /// The datagram's body. Replica and epoch stand in its header, the signature in its proof.
    pub fn encode(&self) -> Bytes {
        let mut body = BytesMut::with_capacity(NEW_KEY);
        body.put_u64_le(self.boot);
        body.put_u64_le(self.counter);
        body.extend_from_slice(&self.exchange);
        body.freeze()
    }

    /// Reads one from a datagram's sender, sender epoch, proof and body. Nothing is believed yet.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(replica: ReplicaId, epoch: u32, proof: &[u8], body: &[u8]) -> Result<NewKey, Malformed> {
        let mut reader = Reader::new(body);
        let (boot, counter, exchange) = (reader.u64()?, reader.u64()?, *reader.array()?);
        reader.end()?;
        let signature = *proof.first_chunk().filter(|_| proof.len() == 64).ok_or(Malformed::Truncated)?;
        Ok(NewKey { replica, epoch, boot, counter, exchange, signature })
    }
}
