//! Which digests came of late: a hint, in little memory and with no search.

use crate::types::Digest;

/// A bucket for each value of a digest's first bits; the tags in it are of its next bits, the latest first. A bucket that
/// is full forgets its oldest, so that some of the last few thousand may be forgotten. None that did not come is known: to
/// find a pack whose digest has the bucket and the tag of another's takes 2^76 tries.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// None before the first digest: a backup has no queue.
    buckets: Vec<[u64; WAYS]>,
}

const BUCKETS: usize = 4_096;
const WAYS: usize = 4;

impl Recent {
    /// Whether it came, and was not forgotten.
    pub fn contains(&self, digest: &Digest) -> bool {
        let (bucket, tag) = place(digest);
        self.buckets.get(bucket).is_some_and(|tags| tags.contains(&tag))
    }

    /// It came.
    pub fn insert(&mut self, digest: &Digest) {
        if self.buckets.is_empty() {
            self.buckets = vec![[0; WAYS]; BUCKETS];
        }
        let (bucket, tag) = place(digest);
        let tags = &mut self.buckets[bucket];
        let known = tags.iter().position(|&known| known == tag);
        tags[..known.map_or(WAYS, |at| at + 1)].rotate_right(1);
        tags[0] = tag;
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.buckets.clear();
    }
}

/// Its bucket and its tag, which is not 0.
fn place(digest: &Digest) -> (usize, u64) {
    let word = |at: usize| u64::from_le_bytes(digest.0[at..at + 8].try_into().expect("eight bytes"));
    (word(0) as usize % BUCKETS, word(8).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Domain;

    fn digest(i: u64) -> Digest {
        Digest::of(Domain::Pack, &[&i.to_le_bytes()])
    }

    #[test]
    fn p21_of_the_last_thousands_nearly_all_are_known_and_none_that_did_not_come() {
        let mut recent = Recent::default();
        assert!(!recent.contains(&digest(0)));
        let last = 100_000..104_000;
        (0..last.end).for_each(|i| recent.insert(&digest(i)));
        let known = last.clone().filter(|&i| recent.contains(&digest(i))).count();
        assert!(known > 3_900, "{known} of 4,000");
        let old = (0..50_000).filter(|&i| recent.contains(&digest(i))).count();
        assert!(old < 500, "{old} of 50,000 that came long ago");
        assert!((last.end..2 * last.end).all(|i| !recent.contains(&digest(i))));
        recent.clear();
        assert!(last.into_iter().all(|i| !recent.contains(&digest(i))));
    }

    #[test]
    fn p21_what_comes_again_takes_no_other_place() {
        let mut recent = Recent::default();
        let bucket = |i: &u64| place(&digest(*i)).0 == 0;
        let same: Vec<Digest> = (0..).filter(bucket).map(digest).take(WAYS + 1).collect();
        let known = |recent: &Recent| same.iter().map(|d| recent.contains(d)).collect::<Vec<_>>();
        same[..WAYS].iter().for_each(|d| recent.insert(d));
        for again in [3, 1, 0] {
            recent.insert(&same[again]);
        }
        assert_eq!(known(&recent), [true, true, true, true, false]);
        recent.insert(&same[WAYS]);
        assert_eq!(known(&recent), [true, true, false, true, true], "that which came longest ago");
    }
}
