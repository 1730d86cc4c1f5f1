//! A client's pack: 1..P requests of one endpoint under one proof (P1, P46).
//!
//! ```text
//! body    client u64 | endpoint u64 | count u16 | reserved u16 | body_len u32      (all of `body` is under the digest)
//!         count times: session u64 | t u64 | low u64 | flags u8 | reserved 3 | op_len u32 | op
//! hints   u8                                                                       (outside the digest, P1)
//! proof   kind u8 = 1 | count u8 | count x 8-byte MAC, entry i for replica i
//!         kind u8 = 2 | public identity 64 | Ed25519 signature 64
//! ```
//! Integers are little-endian; nothing is aligned.

use std::fmt;
use std::mem::take;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::Malformed;
use super::codec::Reader;
use crate::limits;
use crate::types::{ClientId, Digest, Domain, EndpointId, SessionId};

const BODY_HEAD: usize = 24;
/// Bytes of a request besides its operation.
pub const REQUEST_HEAD: usize = 32;
const HINT_FULL: u8 = 1;
const PROOF_VECTOR: u8 = 1;
const PROOF_SIGNATURE: u8 = 2;
/// Bytes of an Open's operation: counter u64, window u64.
pub const OPEN_OP: usize = 16;

/// One encoded pack, checked: every request lies within it, counts and lengths agree. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Pack {
    encoded: Bytes,
    client: ClientId,
    endpoint: EndpointId,
    count: usize,
    body_len: usize,
    read_only: bool,
    opens: bool,
    digest: Digest,
}

/// A request as it lies in its pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// The session, or [`SessionId::NONE`].
    pub session: SessionId,
    /// Its number in the session.
    pub t: u64,
    /// All replies below it were received (P4).
    pub low: u64,
    /// What kind of request it is.
    pub kind: RequestKind,
    /// The operation.
    pub op: &'a [u8],
}

/// The kinds of request (the flags of P1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RequestKind {
    /// An operation to be ordered and executed once.
    Ordered = 0,
    /// A query, answered by each replica without ordering (P6). Session NONE; t is the endpoint's own number.
    ReadOnly = 1,
    /// Opens a session (P9): op = counter u64, window u64. Session NONE, t = counter. The pack is signed.
    Open = 2,
    /// Closes its session: op is empty.
    Close = 3,
}

/// The proof that a pack comes from its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof<'a> {
    /// One 8-byte MAC per replica.
    Vector(&'a [[u8; 8]]),
    /// Ed25519 over the pack's digest, and the public identity that signed.
    Signature {
        /// The 64 bytes of the signer's public identity.
        identity: &'a [u8; 64],
        /// The signature.
        signature: &'a [u8; 64],
    },
}

impl Request<'_> {
    /// What a request must be, whoever made it.
    fn check(&self) -> Result<(), Malformed> {
        if self.low > self.t {
            return Err(Malformed::LowAboveT);
        }
        if self.op.len() > limits::OPERATION_MAX {
            return Err(Malformed::OutOfBounds);
        }
        let in_session = self.session != SessionId::NONE;
        let good = match self.kind {
            RequestKind::Ordered => in_session,
            RequestKind::ReadOnly => !in_session,
            RequestKind::Open => !in_session && self.open().is_some_and(|(counter, _)| counter == self.t),
            RequestKind::Close => in_session && self.op.is_empty(),
        };
        if good { Ok(()) } else { Err(Malformed::Inconsistent) }
    }

    /// Counter and window of an [`RequestKind::Open`]; `None` for every other kind.
    pub fn open(&self) -> Option<(u64, u64)> {
        if self.kind != RequestKind::Open || self.op.len() != OPEN_OP {
            return None;
        }
        let mut reader = Reader::new(self.op);
        Some((reader.u64().ok()?, reader.u64().ok()?))
    }
}

fn read_request<'a>(reader: &mut Reader<'a>) -> Result<Request<'a>, Malformed> {
    let (session, t, low) = (SessionId(reader.u64()?), reader.u64()?, reader.u64()?);
    let kind = match reader.u8()? {
        0 => RequestKind::Ordered,
        1 => RequestKind::ReadOnly,
        2 => RequestKind::Open,
        3 => RequestKind::Close,
        _ => return Err(Malformed::UnknownTag),
    };
    reader.zeros(3)?;
    let len = reader.u32()? as usize;
    Ok(Request { session, t, low, kind, op: reader.take(len)? })
}

impl Pack {
    /// Checks `encoded`, which must be one pack and nothing else. Keeps it, copies nothing.
    ///
    /// # Errors
    /// [`Malformed`], with the first thing that is wrong.
    pub fn parse(encoded: Bytes) -> Result<Pack, Malformed> {
        Pack::parse_with(encoded, pack_digest)
    }

    /// As [`parse`](Pack::parse); `digest` gives the digest of the bytes that it covers.
    pub(super) fn parse_with(encoded: Bytes, digest: impl FnOnce(&[u8]) -> Digest) -> Result<Pack, Malformed> {
        let mut reader = Reader::new(&encoded);
        let (client, endpoint) = (ClientId(reader.u64()?), EndpointId(reader.u64()?));
        let count = usize::from(reader.u16()?);
        reader.zeros(2)?;
        let body_len = reader.u32()? as usize;
        if !(1..=limits::PACK_REQUESTS_MAX).contains(&count) || encoded.len() > limits::MESSAGE_MAX {
            return Err(Malformed::OutOfBounds);
        }
        let (mut read_only, mut opens) = (0, false);
        for _ in 0..count {
            let request = read_request(&mut reader)?;
            request.check()?;
            read_only += usize::from(request.kind == RequestKind::ReadOnly);
            opens |= request.kind == RequestKind::Open;
        }
        if read_only != 0 && read_only != count {
            return Err(Malformed::MixedKinds);
        }
        if reader.position() != body_len {
            return Err(Malformed::Inconsistent);
        }
        if reader.u8()? & !HINT_FULL != 0 {
            return Err(Malformed::Reserved);
        }
        read_proof(&mut reader)?;
        reader.end()?;
        let digest = digest(&encoded[..body_len]);
        Ok(Pack { encoded, client, endpoint, count, body_len, read_only: read_only != 0, opens, digest })
    }

    /// Whose pack it claims to be.
    pub fn client(&self) -> ClientId {
        self.client
    }

    /// Which endpoint of the client made it.
    pub fn endpoint(&self) -> EndpointId {
        self.endpoint
    }

    /// Number of requests: at least one.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Never: a pack holds at least one request.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether its requests are all read-only; otherwise none is.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether it opens a session.
    pub fn opens_session(&self) -> bool {
        self.opens
    }

    /// The requests, in order.
    pub fn requests(&self) -> Requests<'_> {
        Requests { reader: Reader::new(&self.encoded[BODY_HEAD..self.body_len]), left: self.count }
    }

    /// Covers the client and every request, not hints and proof (P1).
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The whole encoding.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The client asks every replica for whole results (P7).
    pub fn wants_full(&self) -> bool {
        self.encoded[self.body_len] & HINT_FULL != 0
    }

    /// Its proof, unchecked.
    pub fn proof(&self) -> Proof<'_> {
        let mut reader = Reader::new(&self.encoded[self.body_len + 1..]);
        read_proof(&mut reader).expect("checked by parse")
    }

    /// Whether the proof is a signature, which a third party can check.
    pub fn is_signed(&self) -> bool {
        matches!(self.proof(), Proof::Signature { .. })
    }

    /// The same pack in an exact-size buffer of its own: gives the receive buffer it lay in back.
    pub fn settle(&self) -> Pack {
        Pack { encoded: Bytes::copy_from_slice(&self.encoded), ..self.clone() }
    }
}

/// The digest of a pack whose body, which alone it covers, is `covered`.
pub(super) fn pack_digest(covered: &[u8]) -> Digest {
    Digest::of(Domain::Pack, &[covered])
}

/// Bytes of `encoded` that its digest would cover if it were a pack; `None` if it is none. Nobody has proved it yet: what
/// is too short for a pack is not worth a hash.
pub(super) fn covered_len(encoded: &[u8]) -> Option<usize> {
    let len = u32::from_le_bytes(*encoded.get(BODY_HEAD - 4..)?.first_chunk()?) as usize;
    (BODY_HEAD + REQUEST_HEAD..=encoded.len()).contains(&len).then_some(len)
}

/// Digests of packs that were computed when the proof of their envelope was checked, by where in its body lies what they
/// cover.
#[derive(Clone, Debug, Default)]
pub struct PackDigests(Vec<(Range<usize>, Digest)>);

impl PackDigests {
    pub(super) fn clear(&mut self) {
        self.0.clear();
        // A liar's proposal leaves no more room than a batch needs.
        self.0.shrink_to(limits::BATCH_PACKS_MAX);
    }

    /// Computes the digest of `covered`, which lies behind all others in `body`, and remembers it.
    pub(super) fn compute(&mut self, body: &[u8], covered: Range<usize>) -> Digest {
        let digest = pack_digest(&body[covered.clone()]);
        self.0.push((covered, digest));
        digest
    }

    /// The digest of what lies there, if it was computed.
    pub(super) fn find(&self, covered: Range<usize>) -> Option<Digest> {
        let at = self.0.binary_search_by_key(&covered.start, |(range, _)| range.start).ok()?;
        self.0.get(at).filter(|(range, _)| *range == covered).map(|(_, digest)| *digest)
    }
}

fn read_proof<'a>(reader: &mut Reader<'a>) -> Result<Proof<'a>, Malformed> {
    match reader.u8()? {
        PROOF_VECTOR => {
            let count = usize::from(reader.u8()?);
            if !(1..=limits::REPLICAS_MAX).contains(&count) {
                return Err(Malformed::OutOfBounds);
            }
            let (entries, _) = reader.take(8 * count)?.as_chunks();
            Ok(Proof::Vector(entries))
        }
        PROOF_SIGNATURE => Ok(Proof::Signature { identity: reader.array()?, signature: reader.array()? }),
        _ => Err(Malformed::UnknownTag),
    }
}

impl fmt::Debug for Pack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pack({}/{:x}, {} requests, {:?})", self.client, self.endpoint.0, self.count, self.digest)
    }
}

/// Iterator over the requests of a pack.
#[derive(Clone, Debug)]
pub struct Requests<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> Iterator for Requests<'a> {
    type Item = Request<'a>;

    fn next(&mut self) -> Option<Request<'a>> {
        self.left = self.left.checked_sub(1)?;
        Some(read_request(&mut self.reader).expect("checked by Pack::parse"))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Requests<'_> {}

/// Packs in the making, one after the other. `auth` adds the proof: see `auth::Keyring::seal_pack`.
#[derive(Clone, Debug)]
pub struct PackBuilder {
    client: ClientId,
    endpoint: EndpointId,
    /// Of the present pack. The room behind it is the next one's.
    body: BytesMut,
    count: usize,
    read_only: bool,
    opens: bool,
}

impl PackBuilder {
    /// An empty pack of this client endpoint.
    pub fn new(client: ClientId, endpoint: EndpointId) -> PackBuilder {
        PackBuilder { client, endpoint, body: BytesMut::new(), count: 0, read_only: false, opens: false }
    }

    fn begin(&mut self) {
        if self.body.capacity() < Self::ROOM {
            self.body.reserve(Self::CHUNK);
        }
        self.body.extend_from_slice(&self.client.0.to_le_bytes());
        self.body.extend_from_slice(&self.endpoint.0.to_le_bytes());
        self.body.extend_from_slice(&[0; 8]);
    }

    /// Whether `request` can be pushed: the pack has room, and its requests are of the same order (read-only or not).
    pub fn accepts(&self, request: &Request<'_>) -> bool {
        let bytes = self.bytes() + REQUEST_HEAD + request.op.len() + Self::TAIL_MAX;
        let same = self.count == 0 || self.read_only == (request.kind == RequestKind::ReadOnly);
        self.count < limits::PACK_REQUESTS_MAX && bytes <= limits::MESSAGE_MAX / 2 && same && request.check().is_ok()
    }

    const TAIL_MAX: usize = 1 + 2 + 8 * limits::REPLICAS_MAX;

    /// Room that is made at a time: for many small packs, and used again once they are gone.
    const CHUNK: usize = 16 * 1024;
    /// With less left than this a new pack makes room first.
    const ROOM: usize = 512;

    /// Appends a request.
    ///
    /// # Panics
    /// If it is not [accepted](Self::accepts).
    pub fn push(&mut self, request: &Request<'_>) -> &mut PackBuilder {
        assert!(self.accepts(request), "a request that its pack cannot take: {:?} t = {}", request.kind, request.t);
        if self.is_empty() {
            self.begin();
        }
        for field in [request.session.0, request.t, request.low] {
            self.body.extend_from_slice(&field.to_le_bytes());
        }
        self.body.extend_from_slice(&[request.kind as u8, 0, 0, 0]);
        self.body.extend_from_slice(&(request.op.len() as u32).to_le_bytes());
        self.body.extend_from_slice(request.op);
        self.count += 1;
        self.read_only = request.kind == RequestKind::ReadOnly;
        self.opens |= request.kind == RequestKind::Open;
        self
    }

    /// Requests so far.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the body so far.
    pub fn bytes(&self) -> usize {
        self.body.len().max(BODY_HEAD)
    }

    /// The pack; the next one is empty. `prove` is given its digest and appends the proof.
    ///
    /// # Panics
    /// If there is no request in it.
    pub fn finish(&mut self, full: bool, prove: impl FnOnce(Digest, &mut ProofWriter<'_>)) -> Pack {
        assert!(self.count > 0, "a pack holds at least one request");
        let body_len = self.body.len();
        self.body[16..18].copy_from_slice(&(self.count as u16).to_le_bytes());
        self.body[20..24].copy_from_slice(&(body_len as u32).to_le_bytes());
        let digest = Digest::of(Domain::Pack, &[&self.body]);
        self.body.extend_from_slice(&[if full { HINT_FULL } else { 0 }]);
        let mut writer = ProofWriter { body: &mut self.body, written: false };
        prove(digest, &mut writer);
        assert!(writer.written, "a pack carries a proof");
        let encoded = self.body.split().freeze();
        let (count, read_only, opens) = (take(&mut self.count), take(&mut self.read_only), take(&mut self.opens));
        let (client, endpoint) = (self.client, self.endpoint);
        Pack { encoded, client, endpoint, count, body_len, read_only, opens, digest }
    }
}

/// Takes the one proof of a pack.
#[derive(Debug)]
pub struct ProofWriter<'a> {
    body: &'a mut BytesMut,
    written: bool,
}

impl ProofWriter<'_> {
    /// Writes the proof. At most once.
    pub fn write(&mut self, proof: Proof<'_>) {
        assert!(!self.written, "a pack carries one proof");
        match proof {
            Proof::Vector(entries) => {
                assert!((1..=limits::REPLICAS_MAX).contains(&entries.len()));
                self.body.extend_from_slice(&[PROOF_VECTOR, entries.len() as u8]);
                self.body.extend_from_slice(entries.as_flattened());
            }
            Proof::Signature { identity, signature } => {
                self.body.extend_from_slice(&[PROOF_SIGNATURE]);
                self.body.extend_from_slice(identity);
                self.body.extend_from_slice(signature);
            }
        }
        self.written = true;
    }
}
