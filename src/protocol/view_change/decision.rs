//! What a new view takes over: the decision over a set S of VIEW-CHANGEs (P31, P32).
//!
//! A function of S alone, whatever the order of S: the primary of the new view computes it, every backup computes it
//! again (P33). It trusts nothing in S but what P45 has checked, since up to f members lie.
//!
//! Why it is safe. If d committed at n in view v, q replicas prepared it there, so every set of q members has one of
//! them that is correct, and that one still says (d, v) or names a later view. A1 therefore rules out every other
//! candidate of view v or below, and B rules out null, unless h\* has passed n. A candidate of a later view needs a
//! correct replica that pre-prepared it there (A2), hence a decision of that later view, which was d as well.
//!
//! Why it is live. Among all correct replicas take the P-entry of the highest view: A1 holds of it, and so does A2,
//! because f + 1 correct replicas pre-prepared what one of them prepared, and Q forgets nothing (P27). If there is no
//! such entry, B holds.

use std::cmp::Reverse;
use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;
use std::ops::Bound;

use crate::types::{ClusterSize, Digest, ReplicaId, ReplicaSet, SeqNum, View};
use crate::wire::Batch;

#[cfg(test)]
mod tests;

/// What the decision reads of one valid VIEW-CHANGE (P27, P45).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Who signed it.
    pub replica: ReplicaId,
    /// h, proven by q signed checkpoints (0 needs no proof).
    pub stable: SeqNum,
    /// P: for each n above h what was last prepared, and in which view.
    pub prepared: BTreeMap<SeqNum, (Digest, View)>,
    /// Q: for each n above h every digest that was pre-prepared, with the latest view; no inner map is empty.
    pub pre_prepared: BTreeMap<SeqNum, BTreeMap<Digest, View>>,
}

/// What one sequence number becomes in the new view.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Chosen {
    /// The null batch: nobody can have committed anything, or the null batch itself was prepared. A P- or Q-entry with
    /// the digest of [`Batch::null`] counts as any other, and its choice reads `Null`: one meaning, one form.
    Null,
    /// The batch of this digest.
    Batch(Digest),
}

/// What a new view takes over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// h\*: everything up to it is certified, and is decided no more (P31).
    pub stable: SeqNum,
    /// For h\* + 1, h\* + 2, … At most L of them; what lies above is free.
    pub chosen: Vec<Chosen>,
}

impl Chosen {
    /// The digest of the batch.
    pub fn digest(self) -> Digest {
        match self {
            Chosen::Null => Batch::null().digest(),
            Chosen::Batch(digest) => digest,
        }
    }
}

impl Decision {
    /// What was chosen for `n`; None if `n` is stable or free.
    pub fn at(&self, n: SeqNum) -> Option<Chosen> {
        let index = n.0.checked_sub(self.stable.0)?.checked_sub(1)?;
        self.chosen.get(usize::try_from(index).ok()?).copied()
    }

    /// The last sequence number that is not free: h\* if none above it was chosen.
    pub fn last(&self) -> SeqNum {
        SeqNum(self.stable.0 + self.chosen.len() as u64)
    }
}

/// The decision over `members`, with a log window of `window` (L). None: wait for more VIEW-CHANGEs, because these are
/// fewer than q, or some n is undecided; or two of them are of one replica, and they are no set.
///
/// Decided when it is `Some`; more members can change what is chosen, but never for an n that any correct replica
/// committed.
pub fn decide(size: ClusterSize, window: u64, members: &[Member]) -> Option<Decision> {
    let distinct: ReplicaSet = members.iter().map(|member| member.replica).collect();
    if members.len() < size.quorum() || distinct.len() < members.len() {
        return None;
    }
    let stable = members.iter().map(|member| member.stable).max()?;
    let last = members.iter().filter_map(Member::last).max().unwrap_or(stable);
    let last = last.min(SeqNum(stable.0.saturating_add(window)));

    let null = Batch::null().digest();
    let mut cursors: Vec<Cursor> = members.iter().map(|member| Cursor::above(stable, member)).collect();
    let mut entries = Entries::default();
    let mut chosen = Vec::new();
    for n in (stable.0..last.0).map(|below| SeqNum(below).next()) {
        entries.clear();
        cursors.iter_mut().for_each(|cursor| cursor.collect(n, &mut entries));
        let digest = entries.choose(size, members.len(), null)?;
        chosen.push(if digest == null { Chosen::Null } else { Chosen::Batch(digest) });
    }
    Some(Decision { stable, chosen })
}

impl Member {
    /// The largest n with an entry.
    fn last(&self) -> Option<SeqNum> {
        let prepared = self.prepared.last_key_value().map(|(n, _)| *n);
        prepared.max(self.pre_prepared.last_key_value().map(|(n, _)| *n))
    }
}

/// One member's entries in the order of n, so that a whole window costs one walk.
struct Cursor<'a> {
    prepared: Peekable<btree_map::Range<'a, SeqNum, (Digest, View)>>,
    pre_prepared: Peekable<btree_map::Range<'a, SeqNum, BTreeMap<Digest, View>>>,
}

impl<'a> Cursor<'a> {
    fn above(stable: SeqNum, member: &'a Member) -> Cursor<'a> {
        let above = (Bound::Excluded(stable), Bound::Unbounded);
        Cursor {
            prepared: member.prepared.range(above).peekable(),
            pre_prepared: member.pre_prepared.range(above).peekable(),
        }
    }

    /// Adds this member's entries for `n`, which must grow from call to call by one.
    fn collect(&mut self, n: SeqNum, into: &mut Entries<'a>) {
        into.prepared.extend(self.prepared.next_if(|(at, _)| **at == n).map(|(_, entry)| *entry));
        into.pre_prepared.extend(self.pre_prepared.next_if(|(at, _)| **at == n).map(|(_, digests)| digests));
    }
}

/// What the members say of one n.
#[derive(Default)]
struct Entries<'a> {
    /// At most one of each member.
    prepared: Vec<(Digest, View)>,
    /// At most one of each member.
    pre_prepared: Vec<&'a BTreeMap<Digest, View>>,
}

impl Entries<'_> {
    fn clear(&mut self) {
        self.prepared.clear();
        self.pre_prepared.clear();
    }

    /// P32 for one n; `members` have spoken, with or without an entry.
    fn choose(&mut self, size: ClusterSize, members: usize, null: Digest) -> Option<Digest> {
        self.prepared.sort_unstable_by_key(|(digest, view)| (Reverse(*view), *digest));
        let against_max = members - size.quorum();
        let mut earlier = None;
        for &candidate in &self.prepared {
            let (digest, view) = candidate;
            if self.prepared.partition_point(|(_, v)| *v > view) > against_max {
                break;
            }
            if earlier.replace(candidate) == Some(candidate) {
                continue;
            }
            // A1: at least q members have nothing against it.
            let against = self.prepared.iter().filter(|(d, v)| *v > view || (*v == view && *d != digest)).count();
            // A2: at least w members pre-prepared it, then or later.
            let holders = || self.pre_prepared.iter().filter(|q| q.get(&digest).is_some_and(|v| *v >= view)).count();
            if against <= against_max && holders() >= size.weak_quorum() {
                return Some(digest);
            }
        }
        // B: at least q members prepared nothing.
        (self.prepared.len() <= against_max).then_some(null)
    }
}
