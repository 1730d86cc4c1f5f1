//! RECEIPT: what a replica has of a client's large message, and how much more may leave (P54).
//!
//! ```text
//! a datagram of its own kind, proved by a MAC in every mode:
//! header | MAC 8 | message u64 | start u32 | granted u16 | count u16 | ceil(count / 8) bytes: which pieces are here
//! ```
//! Bit *i* of byte *j* stands for piece 8 *j* + *i*; bits above `count` are zero.

use bytes::{BufMut, Bytes, BytesMut};

use super::Malformed;
use super::codec::Reader;
use crate::limits;

/// RECEIPT(message, start, granted, pieces).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// The sender's number for the message.
    pub message: u64,
    /// Bytes of its next message that may leave unasked.
    pub start: u32,
    /// Pieces, from the first, that may leave.
    pub granted: u16,
    /// Which pieces are here.
    pub pieces: Pieces,
}

/// A set of pieces of one message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pieces {
    count: usize,
    words: Vec<u64>,
}

impl Pieces {
    /// None of `count` pieces.
    pub fn none(count: usize) -> Pieces {
        Pieces { count, words: vec![0; count.div_ceil(64)] }
    }

    /// All of them.
    pub fn all(count: usize) -> Pieces {
        let mut pieces = Pieces::none(count);
        for index in 0..count {
            pieces.insert(index);
        }
        pieces
    }

    /// False if the piece was there.
    ///
    /// # Panics
    /// If the message has no such piece.
    pub fn insert(&mut self, index: usize) -> bool {
        assert!(index < self.count, "piece {index} of {}", self.count);
        let (word, bit) = (index / 64, 1u64 << (index % 64));
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    /// Whether the piece is here.
    pub fn contains(&self, index: usize) -> bool {
        self.words.get(index / 64).is_some_and(|word| word & 1 << (index % 64) != 0)
    }

    /// Of so many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many are here.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether none is here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether all are here.
    pub fn is_full(&self) -> bool {
        self.len() == self.count
    }

    /// One more than the last that is here.
    pub fn end(&self) -> usize {
        let last = self.words.iter().rposition(|&word| word != 0);
        last.map_or(0, |last| 64 * last + 64 - self.words[last].leading_zeros() as usize)
    }
}

impl Receipt {
    /// The datagram's body.
    pub fn encode(&self) -> Bytes {
        let count = self.pieces.count;
        let mut body = BytesMut::with_capacity(16 + count.div_ceil(8));
        body.put_u64_le(self.message);
        body.put_u32_le(self.start);
        body.put_u16_le(self.granted);
        body.put_u16_le(u16::try_from(count).expect("a message has at most FRAGMENTS_MAX pieces"));
        let bytes = self.pieces.words.iter().flat_map(|word| word.to_le_bytes());
        body.extend(bytes.take(count.div_ceil(8)));
        body.freeze()
    }

    /// Reads one from a datagram's body.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(body: &[u8]) -> Result<Receipt, Malformed> {
        let mut reader = Reader::new(body);
        let (message, start, granted, count) = (reader.u64()?, reader.u32()?, reader.u16()?, reader.u16()?);
        let count = usize::from(count);
        if !(1..=limits::FRAGMENTS_MAX).contains(&count) || usize::from(granted) > count {
            return Err(Malformed::OutOfBounds);
        }
        let bytes = reader.take(count.div_ceil(8))?;
        reader.end()?;
        let mut pieces = Pieces::none(count);
        for (i, byte) in bytes.iter().enumerate() {
            pieces.words[i / 8] |= u64::from(*byte) << (8 * (i % 8));
        }
        if pieces.end() > count {
            return Err(Malformed::Reserved);
        }
        Ok(Receipt { message, start, granted, pieces })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn p54_a_receipt_is_refused_unless_it_is_exactly_one() {
        let mut pieces = Pieces::none(11);
        (0..9).filter(|i| i % 2 == 0).for_each(|i| assert!(pieces.insert(i)));
        assert!(!pieces.insert(4));
        let receipt = Receipt { message: 7, start: 9, granted: 10, pieces };
        let body = receipt.encode();
        assert_eq!(body[16..], [0b0101_0101, 0b001]);
        assert_eq!(Receipt::decode(&body), Ok(receipt));
        assert_eq!(Receipt::decode(&body[..17]), Err(Malformed::Truncated));
        assert_eq!(Receipt::decode(&[&body[..], &[0]].concat()), Err(Malformed::Trailing));
        let with = |at: usize, byte: u8| {
            let mut body = body.to_vec();
            body[at] = byte;
            Receipt::decode(&body)
        };
        assert_eq!(with(17, 0b1000), Err(Malformed::Reserved), "a piece that the message does not have");
        assert_eq!(with(12, 12), Err(Malformed::OutOfBounds), "more granted than there is");
        assert_eq!(with(14, 0), Err(Malformed::OutOfBounds));
        assert_eq!(with(15, 0xff), Err(Malformed::OutOfBounds));
    }

    proptest! {
        #[test]
        fn p54_pieces_are_a_set(count in 1..=limits::FRAGMENTS_MAX, some in prop::collection::btree_set(0..limits::FRAGMENTS_MAX, 0..40)) {
            let mut pieces = Pieces::none(count);
            let some: Vec<usize> = some.into_iter().filter(|&i| i < count).collect();
            some.iter().for_each(|&i| assert!(pieces.insert(i)));
            prop_assert_eq!(pieces.len(), some.len());
            prop_assert_eq!(pieces.end(), some.last().map_or(0, |last| last + 1));
            prop_assert!((0..count + 70).all(|i| pieces.contains(i) == some.contains(&i)));
            prop_assert_eq!(pieces.is_full(), some.len() == count);
            let receipt = Receipt { message: 1, start: 2, granted: count as u16, pieces };
            prop_assert_eq!(Receipt::decode(&receipt.encode()), Ok(receipt));
        }

        #[test]
        fn p44_no_bytes_cause_a_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(receipt) = Receipt::decode(&body) {
                prop_assert_eq!(receipt.encode().to_vec(), body);
            }
        }
    }
}
