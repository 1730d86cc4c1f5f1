//! Locked ranges of bytes, as POSIX has them: what an owner's lock does to his others, and whose stand in whose way.

/// A locked range of bytes. Both ends are in it; `end` is `u64::MAX` for all that a file ever has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockRange {
    /// The first byte.
    pub start: u64,
    /// The last byte; not below `start`.
    pub end: u64,
    /// Nobody else may lock any of it; else others may share it.
    pub exclusive: bool,
}

impl LockRange {
    /// All of a file.
    pub fn whole(exclusive: bool) -> LockRange {
        LockRange { start: 0, end: u64::MAX, exclusive }
    }

    /// Whether two owners cannot have both.
    pub fn conflicts(&self, other: &LockRange) -> bool {
        self.start <= other.end && other.start <= self.end && (self.exclusive || other.exclusive)
    }
}

/// An owner's ranges without the bytes from `start` to `end`: what it cuts is cut, what it cuts in two is two.
pub fn clear(own: &[LockRange], start: u64, end: u64) -> Vec<LockRange> {
    let mut left = Vec::with_capacity(own.len() + 1);
    for &range in own {
        if range.end < start || range.start > end {
            left.push(range);
            continue;
        }
        if range.start < start {
            left.push(LockRange { end: start - 1, ..range });
        }
        if range.end > end {
            left.push(LockRange { start: end + 1, ..range });
        }
    }
    left
}

/// An owner's ranges after he locked `new`, which replaces what he had there. `own` is in order, without overlaps, and of
/// neighbours that touch one is exclusive and one is not; so is the result.
pub fn set(own: &[LockRange], new: LockRange) -> Vec<LockRange> {
    let mut all = clear(own, new.start, new.end);
    all.insert(all.partition_point(|range| range.start < new.start), new);
    let mut merged: Vec<LockRange> = Vec::with_capacity(all.len());
    for range in all {
        match merged.last_mut() {
            Some(last) if last.exclusive == range.exclusive && last.end.checked_add(1) == Some(range.start) => {
                last.end = range.end;
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Rng;

    /// Byte by byte: `Some(exclusive)` where it is locked. The last stands for all from there on.
    type Bytes = [Option<bool>; 12];

    /// A byte of the model as a byte of the file: the last is the last that there can be.
    fn real(byte: usize, last: bool) -> u64 {
        if last && byte == 11 { u64::MAX } else { byte as u64 }
    }

    fn bytes(ranges: &[LockRange]) -> Bytes {
        std::array::from_fn(|byte| {
            let within = |range: &&LockRange| range.start <= byte as u64 && byte as u64 <= range.end;
            ranges.iter().find(within).map(|range| range.exclusive)
        })
    }

    #[test]
    fn every_byte_is_as_it_was_last_set() {
        let mut rng = Rng::new(1);
        let (mut ranges, mut model) = (Vec::new(), Bytes::default());
        let mut most = 0;
        for _ in 0..20_000 {
            let (a, b) = (rng.index(12), rng.index(12));
            let (first, last) = (a.min(b), a.max(b));
            let (start, end) = (real(first, false), real(last, true));
            let how = *rng.pick(&[None, Some(false), Some(true)]);
            ranges = match how {
                Some(exclusive) => set(&ranges, LockRange { start, end, exclusive }),
                None => clear(&ranges, start, end),
            };
            model[first..=last].fill(how);
            assert_eq!(bytes(&ranges), model);
            most = most.max(ranges.len());
            for pair in ranges.windows(2) {
                assert!(pair[0].end < pair[1].start, "{ranges:?}");
                assert!(pair[0].end + 1 < pair[1].start || pair[0].exclusive != pair[1].exclusive, "{ranges:?}");
            }
            assert!(ranges.iter().all(|range| range.start <= range.end));
        }
        assert!(most >= 6, "{most} ranges at most");
    }

    #[test]
    fn two_owners_conflict_where_bytes_do() {
        let range = |start, end, exclusive| LockRange { start, end, exclusive };
        for (a, b) in [(0, 4), (3, 7), (5, 5), (8, u64::MAX), (u64::MAX, u64::MAX)]
            .into_iter()
            .flat_map(|a| [(2, 3), (4, 8), (9, u64::MAX), (0, u64::MAX)].map(|b| (a, b)))
        {
            let shares = a.0.max(b.0) <= a.1.min(b.1);
            for (x, y) in [(false, false), (false, true), (true, false), (true, true)] {
                let (one, other) = (range(a.0, a.1, x), range(b.0, b.1, y));
                assert_eq!(one.conflicts(&other), shares && (x || y), "{one:?} {other:?}");
            }
        }
    }
}
