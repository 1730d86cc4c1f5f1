//! One value of fixed size.

use std::marker::PhantomData;

use super::alloc::{Kind, slot};
use super::heap::BlobId;
use super::log::LogId;
use super::past::Pages;
use super::region::Region;

/// A value with an encoding of fixed size, of which all zeroes is a valid one: that of a cell never written. Integers
/// (little-endian), byte arrays, the names of blobs and log entries, and tuples of up to four of those have one.
pub trait Fixed: Sized {
    /// Bytes of the encoding.
    const SIZE: usize;

    /// Decodes exactly [`SIZE`](Fixed::SIZE) bytes.
    fn decode(bytes: &[u8]) -> Self;

    /// Encodes into exactly [`SIZE`](Fixed::SIZE) bytes.
    fn encode(&self, bytes: &mut [u8]);
}

macro_rules! fixed_integers {
    ($($int:ty),*) => {$(
        impl Fixed for $int {
            const SIZE: usize = size_of::<$int>();
            fn decode(bytes: &[u8]) -> $int {
                <$int>::from_le_bytes(bytes.try_into().expect("exactly its size"))
            }
            fn encode(&self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
fixed_integers!(u8, u16, u32, u64, u128, i8, i16, i32, i64, i128);

impl Fixed for bool {
    const SIZE: usize = 1;
    fn decode(bytes: &[u8]) -> bool {
        bytes[0] != 0
    }
    fn encode(&self, bytes: &mut [u8]) {
        bytes[0] = u8::from(*self);
    }
}

impl<const N: usize> Fixed for [u8; N] {
    const SIZE: usize = N;
    fn decode(bytes: &[u8]) -> [u8; N] {
        bytes.try_into().expect("exactly its size")
    }
    fn encode(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(self);
    }
}

macro_rules! fixed_tuples {
    ($($name:ident),*) => {
        impl<$($name: Fixed),*> Fixed for ($($name,)*) {
            const SIZE: usize = 0 $(+ $name::SIZE)*;
            #[allow(non_snake_case)]
            fn decode(bytes: &[u8]) -> Self {
                let mut rest = bytes;
                $(
                    let ($name, after) = rest.split_at($name::SIZE);
                    rest = after;
                    let $name = $name::decode($name);
                )*
                debug_assert!(rest.is_empty());
                ($($name,)*)
            }
            #[allow(non_snake_case)]
            fn encode(&self, bytes: &mut [u8]) {
                let ($($name,)*) = self;
                let mut rest = bytes;
                $(
                    let (head, after) = rest.split_at_mut($name::SIZE);
                    rest = after;
                    $name.encode(head);
                )*
                debug_assert!(rest.is_empty());
            }
        }
    };
}
fixed_tuples!(A, B);
fixed_tuples!(A, B, C);
fixed_tuples!(A, B, C, D);

impl Fixed for BlobId {
    const SIZE: usize = 8;
    fn decode(bytes: &[u8]) -> BlobId {
        let (index, generation) = Fixed::decode(bytes);
        BlobId { index, generation }
    }
    fn encode(&self, bytes: &mut [u8]) {
        (self.index, self.generation).encode(bytes);
    }
}

impl Fixed for LogId {
    const SIZE: usize = 8;
    fn decode(bytes: &[u8]) -> LogId {
        LogId(u64::decode(bytes))
    }
    fn encode(&self, bytes: &mut [u8]) {
        self.0.encode(bytes);
    }
}

/// A value of fixed size in root slot `slot`. The handle holds nothing: it may be a constant.
///
/// ```
/// use castra::state::{Cell, Region};
///
/// const COUNTER: Cell<u64> = Cell::at(0);
/// let mut region = Region::new(16);
/// COUNTER.set(&mut region, 7);
/// assert_eq!(COUNTER.update(&mut region, |count| count + 1), 8);
/// assert_eq!(COUNTER.get(&region), 8);
/// ```
pub struct Cell<T> {
    slot: u8,
    content: PhantomData<fn() -> T>,
}

impl<T> Clone for Cell<T> {
    fn clone(&self) -> Cell<T> {
        *self
    }
}

impl<T> Copy for Cell<T> {}

impl<T: Fixed> Cell<T> {
    /// The cell in slot `slot`, which nothing else may use. Values of up to 60 bytes fit.
    pub const fn at(slot: u8) -> Cell<T> {
        const { assert!(T::SIZE <= Region::SLOT_BYTES, "a cell holds at most 60 bytes") };
        assert!(slot < Region::SLOTS, "a region has 63 slots");
        Cell { slot, content: PhantomData }
    }

    /// Its value; what all zeroes mean if it was never set.
    #[inline]
    pub fn get<P: Pages>(self, region: &P) -> T {
        match slot(region, self.slot, Kind::Cell) {
            Some(content) => T::decode(&content[..T::SIZE]),
            None => T::decode(&[0; Region::SLOT_BYTES][..T::SIZE]),
        }
    }

    /// Sets it.
    #[inline]
    pub fn set(self, region: &mut Region, value: T) {
        let mut bytes = [0; Region::SLOT_BYTES];
        value.encode(&mut bytes[..T::SIZE]);
        region.set_slot(self.slot, Kind::Cell, 0, &bytes[..T::SIZE]);
    }
    /// Sets it to what `change` makes of it; that.
    #[inline]
    pub fn update(self, region: &mut Region, change: impl FnOnce(T) -> T) -> T
    where
        T: Clone,
    {
        let value = change(self.get(region));
        self.set(region, value.clone());
        value
    }
}
