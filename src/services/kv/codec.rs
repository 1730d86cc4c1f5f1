//! Operations and answers of the key-value service, as bytes.
//!
//! ```text
//! operation  1 get     key
//!            2 put     key_len u16 | key | value
//!            3 delete  key
//!            4 cas     key_len u16 | key | expected: optional | new: optional
//!            5 scan    limit u32 | prefix_len u16 | prefix | after
//!            6 batch   count u16 | count times: change_len u32 | change (an operation 2, 3 or 4)
//! optional   0 | 1, len u32, bytes
//!
//! answer     0 done
//!            1 value     value
//!            2 absent
//!            3 mismatch  actual: optional
//!            4 entries   more u8 | count u32 | count times: key_len u16 | value_len u32 | key | value
//!            5 conflict  index u16
//!            6 fault     1 malformed, 2 key length, 3 value length, 4 full, 5 operation length
//! ```
//! Each starts with its tag, one byte; integers are little-endian; a field without a length takes the rest.

use crate::execution::ReplyBuffer;
use crate::limits::OPERATION_MAX;

/// Bytes of a key: at least one.
pub const KEY_MAX: usize = 1_024;

/// Bytes of a value: with a key and all framing, operation and answer stay within [`OPERATION_MAX`].
pub const VALUE_MAX: usize = OPERATION_MAX - 2_048;

/// Changes in one batch.
pub const BATCH_MAX: usize = u16::MAX as usize;

const _: () = assert!(VALUE_MAX + KEY_MAX + 64 <= OPERATION_MAX);
const _: () = assert!(KEY_MAX <= u16::MAX as usize);

const GET: u8 = 1;
const PUT: u8 = 2;
const DELETE: u8 = 3;
const CAS: u8 = 4;
const SCAN: u8 = 5;
const BATCH: u8 = 6;

/// An operation of the key-value service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op<'a> {
    /// The value of `key`: [`Answer::Value`] or [`Answer::Absent`]. Read-only.
    Get {
        /// The key.
        key: &'a [u8],
    },
    /// One change: see [`Change`] for the answers.
    Change(Change<'a>),
    /// Pairs in key order: [`Answer::Entries`]. Read-only.
    Scan {
        /// Only keys that start with it; may be empty.
        prefix: &'a [u8],
        /// Only keys greater than it; empty: from the first. To continue a scan, the last key received.
        after: &'a [u8],
        /// At most this many pairs, and never more than fit one answer.
        limit: u32,
    },
    /// All changes or none. First every compare-and-swap is compared with the state before the batch; if all match,
    /// the changes are made in their order: [`Answer::Done`]. Otherwise [`Answer::Conflict`] names the first that
    /// does not match.
    Batch(Vec<Change<'a>>),
}

/// A change of one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change<'a> {
    /// Sets the value: [`Answer::Done`].
    Put {
        /// The key.
        key: &'a [u8],
        /// Its new value.
        value: &'a [u8],
    },
    /// Removes the key: [`Answer::Done`], or [`Answer::Absent`] if it was not there.
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// Sets the value if the present one is as expected: [`Answer::Done`] or [`Answer::Mismatch`].
    Cas {
        /// The key.
        key: &'a [u8],
        /// The value that must be there; `None`: the key must be absent.
        expected: Option<&'a [u8]>,
        /// The value to be; `None`: the key is removed.
        new: Option<&'a [u8]>,
    },
}

/// What the service answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer<'a> {
    /// Done as asked.
    Done,
    /// The value of the key.
    Value(&'a [u8]),
    /// The key is not there.
    Absent,
    /// Compare-and-swap found another value, which is named, and changed nothing.
    Mismatch(Option<&'a [u8]>),
    /// Pairs of a scan.
    Entries(Entries<'a>),
    /// A compare-and-swap of the batch did not match, the first such by its index; nothing was changed.
    Conflict(u16),
    /// The operation was not carried out at all.
    Fault(Fault),
}

/// Why an operation was not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u8)]
pub enum Fault {
    /// Not an operation of this service.
    #[error("not an operation of the key-value service")]
    Malformed = 1,
    /// An empty key, or one above [`KEY_MAX`].
    #[error("a key has 1 to {KEY_MAX} bytes")]
    KeyLength = 2,
    /// A value above [`VALUE_MAX`].
    #[error("a value has at most {VALUE_MAX} bytes")]
    ValueLength = 3,
    /// The state has reached its configured limit.
    #[error("the store is full")]
    Full = 4,
    /// The encoded operation is above [`OPERATION_MAX`], or a batch has more than [`BATCH_MAX`] changes.
    #[error("an operation has at most {OPERATION_MAX} bytes and a batch {BATCH_MAX} changes")]
    OperationLength = 5,
}

/// Pairs of a scan, in key order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entries<'a> {
    /// There are more: scan again, after the last key.
    pub more: bool,
    count: u32,
    pairs: &'a [u8],
}

impl<'a> Entries<'a> {
    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Keys and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut reader = Reader(self.pairs);
        (0..self.count).map_while(move |_| reader.pair())
    }
}

impl<'a> Op<'a> {
    /// Whether replicas may answer it without ordering it.
    pub fn is_read_only(&self) -> bool {
        match self {
            Op::Get { .. } | Op::Scan { .. } => true,
            Op::Change(_) | Op::Batch(_) => false,
        }
    }

    /// The operation as bytes, or what is wrong with it.
    pub fn encode(&self) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::new();
        match self {
            Op::Get { key } => {
                out.push(GET);
                out.extend_from_slice(checked_key(key)?);
            }
            Op::Change(change) => change.encode_into(&mut out)?,
            Op::Scan { prefix, after, limit } => {
                if prefix.len().max(after.len()) > KEY_MAX {
                    return Err(Fault::KeyLength);
                }
                out.push(SCAN);
                out.extend_from_slice(&limit.to_le_bytes());
                out.extend_from_slice(&(prefix.len() as u16).to_le_bytes());
                out.extend_from_slice(prefix);
                out.extend_from_slice(after);
            }
            Op::Batch(changes) => {
                let count = u16::try_from(changes.len()).map_err(|_| Fault::OperationLength)?;
                out.push(BATCH);
                out.extend_from_slice(&count.to_le_bytes());
                for change in changes {
                    let at = out.len();
                    out.extend_from_slice(&[0; 4]);
                    change.encode_into(&mut out)?;
                    let len = (out.len() - at - 4) as u32;
                    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
                }
            }
        }
        if out.len() > OPERATION_MAX { Err(Fault::OperationLength) } else { Ok(out) }
    }

    /// The operation in `bytes`, which may be any.
    pub fn parse(bytes: &'a [u8]) -> Result<Op<'a>, Fault> {
        let mut reader = Reader(bytes);
        let op = match *bytes.first().ok_or(Fault::Malformed)? {
            GET => Op::Get { key: checked_key(&bytes[1..])? },
            SCAN => {
                let _tag = reader.u8()?;
                let limit = reader.u32()?;
                let prefix_len = reader.u16()?;
                let prefix = reader.take(usize::from(prefix_len))?;
                let after = reader.rest();
                if prefix.len().max(after.len()) > KEY_MAX {
                    return Err(Fault::KeyLength);
                }
                Op::Scan { prefix, after, limit }
            }
            BATCH => {
                let _tag = reader.u8()?;
                let count = usize::from(reader.u16()?);
                // No more room than the bytes can fill: the count is a stranger's word.
                let mut changes = Vec::with_capacity(count.min(bytes.len() / 6));
                for _ in 0..count {
                    let len = reader.u32()? as usize;
                    changes.push(Change::parse(reader.take(len)?)?);
                }
                reader.end()?;
                Op::Batch(changes)
            }
            _ => Op::Change(Change::parse(bytes)?),
        };
        Ok(op)
    }
}

impl<'a> Change<'a> {
    /// The key that it changes.
    pub fn key(&self) -> &'a [u8] {
        match self {
            Change::Put { key, .. } | Change::Delete { key } | Change::Cas { key, .. } => key,
        }
    }

    fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let key = checked_key(self.key())?;
        let key_len = (key.len() as u16).to_le_bytes();
        match self {
            Change::Put { value, .. } => {
                out.push(PUT);
                out.extend_from_slice(&key_len);
                out.extend_from_slice(key);
                out.extend_from_slice(checked_value(value)?);
            }
            Change::Delete { .. } => {
                out.push(DELETE);
                out.extend_from_slice(key);
            }
            Change::Cas { expected, new, .. } => {
                out.push(CAS);
                out.extend_from_slice(&key_len);
                out.extend_from_slice(key);
                for value in [expected, new] {
                    if let Some(value) = value {
                        checked_value(value)?;
                    }
                    put_optional(*value, |bytes| out.extend_from_slice(bytes));
                }
            }
        }
        Ok(())
    }

    fn parse(bytes: &'a [u8]) -> Result<Change<'a>, Fault> {
        let mut reader = Reader(bytes);
        match reader.u8()? {
            PUT => {
                let key = reader.key()?;
                Ok(Change::Put { key, value: checked_value(reader.rest())? })
            }
            DELETE => Ok(Change::Delete { key: checked_key(reader.rest())? }),
            CAS => {
                let key = reader.key()?;
                let (expected, new) = (reader.optional()?, reader.optional()?);
                reader.end()?;
                for value in [expected, new].into_iter().flatten() {
                    checked_value(value)?;
                }
                Ok(Change::Cas { key, expected, new })
            }
            _ => Err(Fault::Malformed),
        }
    }
}

impl<'a> Answer<'a> {
    /// The answer in `bytes`. `None`: not an answer of this service.
    pub fn parse(bytes: &'a [u8]) -> Option<Answer<'a>> {
        let mut reader = Reader(bytes);
        let answer = match reader.u8().ok()? {
            0 => Answer::Done,
            1 => return Some(Answer::Value(reader.rest())),
            2 => Answer::Absent,
            3 => Answer::Mismatch(reader.optional().ok()?),
            4 => {
                let more = reader.flag().ok()?;
                let count = reader.u32().ok()?;
                let entries = Entries { more, count, pairs: reader.0 };
                let mut rest = reader;
                for _ in 0..count {
                    rest.pair()?;
                }
                rest.end().ok()?;
                return Some(Answer::Entries(entries));
            }
            5 => Answer::Conflict(reader.u16().ok()?),
            6 => Answer::Fault(match reader.u8().ok()? {
                1 => Fault::Malformed,
                2 => Fault::KeyLength,
                3 => Fault::ValueLength,
                4 => Fault::Full,
                5 => Fault::OperationLength,
                _ => return None,
            }),
            _ => return None,
        };
        reader.end().ok()?;
        Some(answer)
    }

    /// Writes the answer. Entries come from [`EntriesBuilder`], which can be copied by this too.
    pub fn encode(&self, reply: &mut ReplyBuffer) {
        match self {
            Answer::Done => reply.push(&[0]),
            Answer::Value(value) => {
                reply.push(&[1]);
                reply.push(value);
            }
            Answer::Absent => reply.push(&[2]),
            Answer::Mismatch(actual) => {
                reply.push(&[3]);
                put_optional(*actual, |bytes| reply.push(bytes));
            }
            Answer::Entries(entries) => {
                let mut builder = EntriesBuilder::new(reply);
                for (key, value) in entries.iter() {
                    builder.push(key, value);
                }
                builder.finish(entries.more);
            }
            Answer::Conflict(index) => {
                reply.push(&[5]);
                reply.push(&index.to_le_bytes());
            }
            Answer::Fault(fault) => reply.push(&[6, *fault as u8]),
        }
    }
}

/// Writes [`Answer::Entries`], pair by pair, until the answer is full.
pub struct EntriesBuilder<'r> {
    reply: &'r mut ReplyBuffer,
    start: usize,
    count: u32,
}

impl<'r> EntriesBuilder<'r> {
    /// An answer without pairs, so far.
    pub fn new(reply: &'r mut ReplyBuffer) -> EntriesBuilder<'r> {
        let start = reply.len();
        reply.push(&[4, 0, 0, 0, 0, 0]);
        EntriesBuilder { reply, start, count: 0 }
    }

    /// Whether a pair of these lengths still fits.
    pub fn fits(&self, key: usize, value: usize) -> bool {
        self.reply.remaining() >= 6 + key + value
    }

    /// Appends a pair that fits.
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.push_with(key, value.len(), |reply| reply.push(value));
    }

    /// Appends a pair that fits, whose value of `len` bytes `write` appends.
    pub fn push_with(&mut self, key: &[u8], len: usize, write: impl FnOnce(&mut ReplyBuffer)) {
        assert!(self.fits(key.len(), len), "the caller asked whether the pair fits");
        self.reply.push(&(key.len() as u16).to_le_bytes());
        self.reply.push(&(len as u32).to_le_bytes());
        self.reply.push(key);
        let before = self.reply.len();
        write(self.reply);
        assert_eq!(self.reply.len() - before, len, "the value has the length announced");
        self.count += 1;
    }

    /// Pairs so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The answer is complete.
    pub fn finish(self, more: bool) {
        self.reply.patch(self.start + 1, &[u8::from(more)]);
        self.reply.patch(self.start + 2, &self.count.to_le_bytes());
    }
}

fn checked_key(key: &[u8]) -> Result<&[u8], Fault> {
    if key.is_empty() || key.len() > KEY_MAX { Err(Fault::KeyLength) } else { Ok(key) }
}

fn checked_value(value: &[u8]) -> Result<&[u8], Fault> {
    if value.len() > VALUE_MAX { Err(Fault::ValueLength) } else { Ok(value) }
}

fn put_optional(value: Option<&[u8]>, mut put: impl FnMut(&[u8])) {
    match value {
        None => put(&[0]),
        Some(value) => {
            put(&[1]);
            put(&(value.len() as u32).to_le_bytes());
            put(value);
        }
    }
}

/// Takes fields off the front of bytes that may be any.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Fault::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Fault::Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Fault> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    /// One byte, 0 or 1.
    fn flag(&mut self) -> Result<bool, Fault> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Fault::Malformed),
        }
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn end(&self) -> Result<(), Fault> {
        if self.0.is_empty() { Ok(()) } else { Err(Fault::Malformed) }
    }

    fn key(&mut self) -> Result<&'a [u8], Fault> {
        let len = self.u16()?;
        checked_key(self.take(usize::from(len))?)
    }

    fn optional(&mut self) -> Result<Option<&'a [u8]>, Fault> {
        if !self.flag()? {
            return Ok(None);
        }
        let len = self.u32()? as usize;
        self.take(len).map(Some)
    }

    fn pair(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let key_len = usize::from(self.u16().ok()?);
        let value_len = self.u32().ok()? as usize;
        Some((self.take(key_len).ok()?, self.take(value_len).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Parts = (u8, Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);

    fn change() -> impl Strategy<Value = Parts> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..20);
        (0u8..3, prop::collection::vec(any::<u8>(), 1..20), prop::option::of(bytes()), prop::option::of(bytes()))
    }

    fn view(parts: &Parts) -> Change<'_> {
        let (kind, key, a, b) = parts;
        match kind {
            0 => Change::Put { key, value: a.as_deref().unwrap_or(b"") },
            1 => Change::Delete { key },
            _ => Change::Cas { key, expected: a.as_deref(), new: b.as_deref() },
        }
    }

    proptest! {
        #[test]
        fn operations_survive_the_wire(changes in prop::collection::vec(change(), 1..6), limit: u32) {
            let changes: Vec<Change<'_>> = changes.iter().map(view).collect();
            let key = changes[0].key();
            for op in [
                Op::Get { key },
                Op::Change(changes[0]),
                Op::Scan { prefix: key, after: b"", limit },
                Op::Scan { prefix: b"", after: key, limit },
                Op::Batch(changes.clone()),
                Op::Batch(Vec::new()),
            ] {
                let bytes = op.encode().unwrap();
                prop_assert_eq!(Op::parse(&bytes), Ok(op));
            }
        }

        #[test]
        fn any_bytes_are_an_operation_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..64), tag in 0u8..8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = tag;
            }
            if let Ok(op) = Op::parse(&bytes) {
                prop_assert_eq!(op.encode().unwrap(), bytes.clone());
            }
            if let Some(answer) = Answer::parse(&bytes) {
                let mut reply = ReplyBuffer::new();
                answer.encode(&mut reply);
                prop_assert_eq!(reply.as_slice(), &bytes[..]);
            }
        }
    }

    #[test]
    fn answers_survive_the_wire() {
        let mut scan = ReplyBuffer::new();
        let mut builder = EntriesBuilder::new(&mut scan);
        builder.push(b"a", b"1");
        builder.push(b"b", b"");
        builder.finish(true);
        let Some(Answer::Entries(entries)) = Answer::parse(scan.as_slice()) else { panic!("entries") };
        assert!(entries.more);
        assert_eq!(entries.iter().collect::<Vec<_>>(), [(&b"a"[..], &b"1"[..]), (b"b", b"")]);
        for answer in [
            Answer::Done,
            Answer::Value(b""),
            Answer::Value(b"v"),
            Answer::Absent,
            Answer::Mismatch(None),
            Answer::Mismatch(Some(b"")),
            Answer::Entries(entries),
            Answer::Conflict(513),
            Answer::Fault(Fault::Full),
            Answer::Fault(Fault::OperationLength),
        ] {
            let mut reply = ReplyBuffer::new();
            answer.encode(&mut reply);
            assert_eq!(Answer::parse(reply.as_slice()), Some(answer));
        }
    }

    #[test]
    fn lengths_are_checked_on_both_sides() {
        let long = vec![b'k'; KEY_MAX + 1];
        assert_eq!(Op::Get { key: b"" }.encode(), Err(Fault::KeyLength));
        assert_eq!(Op::Change(Change::Delete { key: &long }).encode(), Err(Fault::KeyLength));
        assert_eq!(Op::parse(&[&[GET], &long[..]].concat()), Err(Fault::KeyLength));
        let value = vec![0; VALUE_MAX + 1];
        assert_eq!(Op::Change(Change::Put { key: b"k", value: &value }).encode(), Err(Fault::ValueLength));
        let put = [&[PUT, 1, 0, b'k'], &value[..]].concat();
        assert_eq!(Op::parse(&put), Err(Fault::ValueLength));
        let largest = Change::Put { key: &long[1..], value: &value[1..] };
        assert!(Op::Change(largest).encode().unwrap().len() <= OPERATION_MAX);
        assert_eq!(Op::Batch(vec![largest, largest]).encode(), Err(Fault::OperationLength));
    }
}
