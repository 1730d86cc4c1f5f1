//! The first bytes of every datagram.
//!
//! ```text
//!  0 magic "cst" | 3 version u8 = 2 | 4 kind u8 | 5 proof u8 | 6 receiver u8 | 7 sender u8      (0xff: a client)
//!  8 cluster u64 (the first eight bytes of the cluster id)
//! 16 client u64 | 24 endpoint u64                (of the client, whichever side it is on; 0 between replicas)
//! 32 sender epoch u32 | 36 receiver epoch u32
//! 40 kind fragment only: message u64 | index u16 | count u16 | total u32
//!    proof: 8 bytes (MAC) or 64 (signature)
//!    body: frames (envelope), a pack, a slice of the datagram that was cut (fragment), a key (NEW-KEY), or a receipt
//! ```

use bytes::Bytes;

use super::Malformed;
use super::codec::Reader;
use crate::transport::Head;
use crate::types::{ClientId, Digest, EndpointId, Hasher, ReplicaId};

/// The first three bytes of every datagram.
pub const MAGIC: [u8; 3] = *b"cst";
/// The version of all layouts, and of what proofs cover.
pub const VERSION: u8 = 2;
/// Bytes of [`Header`].
pub const HEADER: usize = 40;
/// Bytes of [`FragmentHeader`].
pub const FRAGMENT_HEADER: usize = 16;
/// Bytes of a truncated MAC.
pub const MAC: usize = 8;
/// Bytes of a signature.
pub const SIGNATURE: usize = 64;
/// The sender or receiver index that means: a client.
pub const CLIENT: u8 = 0xff;
/// Where a header has its sender's index, and its client's id: for who looks at these alone.
pub const SENDER_AT: usize = 7;
/// See [`SENDER_AT`]. Eight bytes, the least significant first.
pub const CLIENT_AT: usize = 16;

const _: () = assert!(
    HEADER + FRAGMENT_HEADER + MAC + HEADER + SIGNATURE <= Head::MAX,
    "a first fragment carries its own head and the head of what was cut"
);

/// What a datagram's body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Frames from a replica.
    Envelope = 1,
    /// A client's pack.
    Pack = 2,
    /// A piece of a datagram too large for the path.
    Fragment = 3,
    /// A replica's new key, signed (P40).
    NewKey = 4,
    /// What a replica has of a client's large message (P54).
    Receipt = 5,
}

/// How a datagram's last hop is proved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ProofKind {
    /// A truncated AES-CMAC under the key of this pair and direction.
    Mac = 1,
    /// Ed25519 of the sender.
    Signature = 2,
}

impl ProofKind {
    /// Bytes of the proof.
    pub fn len(self) -> usize {
        match self {
            ProofKind::Mac => MAC,
            ProofKind::Signature => SIGNATURE,
        }
    }

    /// Never: every datagram is proved.
    pub fn is_empty(self) -> bool {
        false
    }
}

/// One end of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Principal {
    /// A replica.
    Replica(ReplicaId),
    /// A client, named by the header's client fields.
    Client(ClientId, EndpointId),
}

impl Principal {
    fn index(self) -> u8 {
        match self {
            Principal::Replica(id) => id.0,
            Principal::Client(..) => CLIENT,
        }
    }
}

/// A datagram's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the body is.
    pub kind: Kind,
    /// How the hop is proved.
    pub proof: ProofKind,
    /// Whom it is for.
    pub receiver: Principal,
    /// Whom it claims to be from.
    pub sender: Principal,
    /// The first eight bytes of the cluster id.
    pub cluster: u64,
    /// The sender's key epoch.
    pub sender_epoch: u32,
    /// The receiver's key epoch.
    pub receiver_epoch: u32,
}

/// Why a datagram's first bytes are refused before anything else is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotOurs {
    /// Not castra's magic.
    Magic,
    /// Another version of the layouts.
    Version(u8),
    /// The header itself is wrong.
    Malformed(Malformed),
}

impl Header {
    /// The header of `datagram`.
    ///
    /// # Errors
    /// [`NotOurs`] if the bytes are not a header of this version.
    pub fn parse(datagram: &[u8]) -> Result<Header, NotOurs> {
        let Some((bytes, _)) = datagram.split_first_chunk::<HEADER>() else {
            return Err(NotOurs::Malformed(Malformed::Truncated));
        };
        if bytes[..3] != MAGIC {
            return Err(NotOurs::Magic);
        }
        if bytes[3] != VERSION {
            return Err(NotOurs::Version(bytes[3]));
        }
        Header::fields(bytes).map_err(NotOurs::Malformed)
    }

    fn fields(bytes: &[u8; HEADER]) -> Result<Header, Malformed> {
        let mut reader = Reader::new(&bytes[4..]);
        let kind = match reader.u8()? {
            1 => Kind::Envelope,
            2 => Kind::Pack,
            3 => Kind::Fragment,
            4 => Kind::NewKey,
            5 => Kind::Receipt,
            _ => return Err(Malformed::UnknownTag),
        };
        let proof = match reader.u8()? {
            1 => ProofKind::Mac,
            2 => ProofKind::Signature,
            _ => return Err(Malformed::UnknownTag),
        };
        let (receiver, sender) = (reader.u8()?, reader.u8()?);
        let cluster = reader.u64()?;
        let (client, endpoint) = (ClientId(reader.u64()?), EndpointId(reader.u64()?));
        let (sender_epoch, receiver_epoch) = (reader.u32()?, reader.u32()?);
        let party = |index| match index {
            CLIENT => Principal::Client(client, endpoint),
            id => Principal::Replica(ReplicaId(id)),
        };
        match (receiver == CLIENT, sender == CLIENT) {
            (true, true) => return Err(Malformed::Inconsistent),
            (false, false) if (client.0, endpoint.0) != (0, 0) => return Err(Malformed::Inconsistent),
            _ => {}
        }
        // Hops that are not envelopes are MACed in every mode: their content carries its own proof. A new key is signed,
        // for want of another.
        match (kind, proof) {
            (Kind::Envelope, _) | (Kind::NewKey, ProofKind::Signature) => {}
            (Kind::Pack | Kind::Fragment | Kind::Receipt, ProofKind::Mac) => {}
            (Kind::NewKey, ProofKind::Mac) | (Kind::Pack | Kind::Fragment | Kind::Receipt, ProofKind::Signature) => {
                return Err(Malformed::Inconsistent);
            }
        }
        let (receiver, sender) = (party(receiver), party(sender));
        Ok(Header { kind, proof, receiver, sender, cluster, sender_epoch, receiver_epoch })
    }

    /// The layout.
    pub fn encode(&self) -> [u8; HEADER] {
        let (client, endpoint) = match (self.sender, self.receiver) {
            (Principal::Client(c, e), _) | (_, Principal::Client(c, e)) => (c.0, e.0),
            (Principal::Replica(_), Principal::Replica(_)) => (0, 0),
        };
        let mut bytes = [0; HEADER];
        bytes[..3].copy_from_slice(&MAGIC);
        bytes[3] = VERSION;
        bytes[4] = self.kind as u8;
        bytes[5] = self.proof as u8;
        bytes[6] = self.receiver.index();
        bytes[7] = self.sender.index();
        bytes[8..16].copy_from_slice(&self.cluster.to_le_bytes());
        bytes[16..24].copy_from_slice(&client.to_le_bytes());
        bytes[24..32].copy_from_slice(&endpoint.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.sender_epoch.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.receiver_epoch.to_le_bytes());
        bytes
    }

    /// Feeds the header to a proof's digest, without what differs between the receivers of one broadcast. (The
    /// receiver is bound by the pair's key.)
    pub fn absorb(&self, hasher: &mut Hasher) {
        let mut bytes = self.encode();
        if let Principal::Replica(_) = self.receiver {
            bytes[6] = 0;
        }
        bytes[36..40].fill(0);
        hasher.update(&bytes);
    }
}

/// The number that names a cluster in headers.
pub fn cluster_tag(cluster: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = cluster.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Which piece of which message a fragment is. All pieces but the last are `ceil(total / count)` bytes, so nothing
/// about sizes is left to the sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentHeader {
    /// The sender's number for the message: rising, never reused.
    pub message: u64,
    /// This piece.
    pub index: u16,
    /// Of how many.
    pub count: u16,
    /// Bytes of the whole datagram that was cut.
    pub total: u32,
}

impl FragmentHeader {
    /// The layout.
    pub fn encode(&self) -> [u8; FRAGMENT_HEADER] {
        let mut bytes = [0; FRAGMENT_HEADER];
        bytes[..8].copy_from_slice(&self.message.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.index.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..].copy_from_slice(&self.total.to_le_bytes());
        bytes
    }

    /// Reads one; [`super::Reassembler`] checks what it says.
    ///
    /// # Errors
    /// [`Malformed::Truncated`].
    pub fn decode(reader: &mut Reader<'_>) -> Result<FragmentHeader, Malformed> {
        let (message, index, count, total) = (reader.u64()?, reader.u16()?, reader.u16()?, reader.u32()?);
        Ok(FragmentHeader { message, index, count, total })
    }
}

/// A datagram taken apart, nothing checked but its shape.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The header.
    pub header: Header,
    /// The fragment header, iff the kind is [`Kind::Fragment`].
    pub fragment: Option<FragmentHeader>,
    /// The proof's bytes: as many as the header's proof kind says.
    pub proof: Bytes,
    /// The rest.
    pub body: Bytes,
}

impl Parts {
    /// Takes `datagram` apart behind its (already parsed) `header`.
    ///
    /// # Errors
    /// [`Malformed::Truncated`] if it ends before its body.
    pub fn split(header: Header, datagram: &Bytes) -> Result<Parts, Malformed> {
        let mut reader = Reader::new(datagram);
        reader.take(HEADER)?;
        let fragment = match header.kind {
            Kind::Fragment => Some(FragmentHeader::decode(&mut reader)?),
            Kind::Envelope | Kind::Pack | Kind::NewKey | Kind::Receipt => None,
        };
        let proof_at = reader.position();
        reader.take(header.proof.len())?;
        let body_at = reader.position();
        Ok(Parts { header, fragment, proof: datagram.slice(proof_at..body_at), body: datagram.slice(body_at..) })
    }
}
