//! XDR (RFC 4506), as much of it as NFS needs: readers with bounded lengths that copy and allocate nothing, and writers.

use crate::execution::ReplyBuffer;

/// The bytes are not what the procedure takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the arguments cannot be decoded")]
pub struct Garbage;

/// Reads from received bytes. Every length is checked against what is there before anything is done with it.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// From the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// What was not read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Garbage> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Garbage)?;
        self.rest = rest;
        Ok(head)
    }

    /// Exactly `N` bytes; `N` is a multiple of four.
    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Garbage> {
        const { assert!(N.is_multiple_of(4)) };
        let (head, rest) = self.rest.split_first_chunk().ok_or(Garbage)?;
        self.rest = rest;
        Ok(*head)
    }

    /// An unsigned integer.
    pub fn u32(&mut self) -> Result<u32, Garbage> {
        self.fixed().map(u32::from_be_bytes)
    }

    /// An unsigned hyper integer.
    pub fn u64(&mut self) -> Result<u64, Garbage> {
        self.fixed().map(u64::from_be_bytes)
    }

    /// A boolean: 0 or 1, nothing else.
    pub fn bool(&mut self) -> Result<bool, Garbage> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Garbage),
        }
    }

    /// Something that may be there.
    pub fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Garbage>) -> Result<Option<T>, Garbage> {
        if self.bool()? { read(self).map(Some) } else { Ok(None) }
    }

    /// Variable-length opaque data or a string of at most `max` bytes, with its padding of zeroes.
    pub fn opaque(&mut self, max: usize) -> Result<&'a [u8], Garbage> {
        let len = usize::try_from(self.u32()?).map_err(|_| Garbage)?;
        if len > max {
            return Err(Garbage);
        }
        let bytes = self.take(len)?;
        let padding = self.take(padding(len))?;
        if padding.iter().all(|&b| b == 0) { Ok(bytes) } else { Err(Garbage) }
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), Garbage> {
        if self.rest.is_empty() { Ok(()) } else { Err(Garbage) }
    }
}

/// Zero bytes after `len` bytes of opaque data.
pub fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}

/// What XDR is written to.
pub trait Sink {
    /// Appends bytes.
    fn put(&mut self, bytes: &[u8]);

    /// An unsigned integer, or an enumeration.
    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    /// An unsigned hyper integer.
    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    /// A boolean.
    fn put_bool(&mut self, value: bool) {
        self.put_u32(u32::from(value));
    }

    /// Something that may be there.
    fn put_optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T))
    where
        Self: Sized,
    {
        self.put_bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    /// Variable-length opaque data or a string.
    fn put_opaque(&mut self, bytes: &[u8]) {
        self.put_u32(u32::try_from(bytes.len()).expect("what is written fits an operation"));
        self.put(bytes);
        self.put(&[0; 3][..padding(bytes.len())]);
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Sink for ReplyBuffer {
    fn put(&mut self, bytes: &[u8]) {
        self.push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        bytes.put_u32(7);
        bytes.put_u64(1 << 40);
        bytes.put_optional(Some(&b"hello"[..]), Vec::put_opaque);
        bytes.put_optional(None::<&[u8]>, Vec::put_opaque);
        assert_eq!(bytes.len(), 4 + 8 + 4 + 4 + 8 + 4);
        let mut reader = Reader::new(&bytes);
        assert_eq!((reader.u32(), reader.u64()), (Ok(7), Ok(1 << 40)));
        assert_eq!(reader.optional(|r| r.opaque(5)), Ok(Some(&b"hello"[..])));
        assert_eq!(reader.optional(|r| r.opaque(5)), Ok(None));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn lengths_are_bounded_by_what_is_there() {
        let claims = [0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4];
        assert_eq!(Reader::new(&claims).opaque(usize::MAX), Err(Garbage));
        let short = [0, 0, 0, 5, 1, 2, 3, 4, 5, 0, 0];
        assert_eq!(Reader::new(&short).opaque(64), Err(Garbage), "the padding is missing");
        let long = [0, 0, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0];
        assert_eq!(Reader::new(&long).opaque(64), Ok(&long[4..9]));
        assert_eq!(Reader::new(&long).opaque(4), Err(Garbage), "above its bound");
        let dirty = [0, 0, 0, 1, 1, 0, 9, 0];
        assert_eq!(Reader::new(&dirty).opaque(64), Err(Garbage));
        assert_eq!(Reader::new(&[0, 0, 0, 2]).bool(), Err(Garbage));
        assert_eq!(Reader::new(&[0, 0, 0]).u32(), Err(Garbage));
        assert_eq!(Reader::new(&[0]).finish(), Err(Garbage));
    }
}
