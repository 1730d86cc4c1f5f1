//! The nouns that every module shares: identities, numbers, digests, time.
//!
//! Nothing here does anything; it only makes it hard to mistake one number for another.

use std::fmt;
use std::time::Duration;

use crate::limits;

/// Index of a replica: `0..n`. The primary of view `v` is replica `v mod n`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ReplicaId(pub u8);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// A view number; its primary is `v mod n`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct View(pub u64);

impl View {
    /// The view after this one.
    pub fn next(self) -> View {
        View(self.0 + 1)
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// A sequence number: the place of a batch in the total order. The first batch is 1; 0 is the initial state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SeqNum(pub u64);

impl SeqNum {
    /// The sequence number after this one.
    pub fn next(self) -> SeqNum {
        SeqNum(self.0 + 1)
    }
}

impl fmt::Display for SeqNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// A client identity: the first eight bytes (little-endian) of the digest of its public identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ClientId(pub u64);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{:016x}", self.0)
    }
}

/// One process (one socket) of a client identity: 64 random bits chosen at its start (P40).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct EndpointId(pub u64);

/// A session: the agreed position at which it was opened, never reused (P9). 0 is no session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SessionId(pub u64);

impl SessionId {
    /// "No session": read-only requests and session-opens carry it.
    pub const NONE: SessionId = SessionId(0);
}

/// The agreed position of an executed request: `n << 20 | index in its batch`. Total order of all operations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position(pub u64);

const _: () = assert!(limits::BATCH_REQUESTS_MAX <= 1 << Position::INDEX_BITS);

impl Position {
    /// Bits of the index within a batch.
    pub const INDEX_BITS: u32 = 20;

    /// The position of the `index`-th request of batch `n`.
    pub fn new(n: SeqNum, index: usize) -> Position {
        assert!(index < 1 << Self::INDEX_BITS, "a batch holds fewer than 2^20 requests");
        assert!(n.0 < 1 << (64 - Self::INDEX_BITS), "sequence numbers fit 44 bits");
        Position(n.0 << Self::INDEX_BITS | index as u64)
    }

    /// The batch it belongs to.
    pub fn batch(self) -> SeqNum {
        SeqNum(self.0 >> Self::INDEX_BITS)
    }
}

/// Nanoseconds since the Unix epoch, by a local clock that never goes back. The core is handed it, never asks for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(pub u64);

impl Time {
    /// The far future: no deadline.
    pub const NEVER: Time = Time(u64::MAX);

    /// Time since `earlier`, zero if `earlier` is later.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Time;
    fn add(self, d: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// One of the two regions of the state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum RegionId {
    /// Sessions, cached replies, agreed configuration: the library's own.
    Library = 0,
    /// The service's.
    Service = 1,
}

impl RegionId {
    /// Both, in the order in which they enter the root.
    pub const BOTH: [RegionId; 2] = [RegionId::Library, RegionId::Service];
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RegionId::Library => "library",
            RegionId::Service => "service",
        })
    }
}

/// A BLAKE3 digest (32 bytes).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

/// What executing a batch came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Executed {
    /// Its number.
    pub n: SeqNum,
    /// Its requests.
    pub requests: usize,
    /// Bytes of their results.
    pub result_bytes: usize,
}

/// What a digest is of. Every input is separated by its domain, so that no digest of one kind can stand for another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Domain {
    /// A replica's or reply envelope, as authenticated.
    Envelope = 1,
    /// A client pack.
    Pack = 2,
    /// A batch: choices and pack digests.
    Batch = 3,
    /// One fragment of a datagram.
    Fragment = 4,
    /// A result, in digest replies.
    Result = 5,
    /// A signed checkpoint.
    Checkpoint = 6,
    /// A public identity.
    Identity = 7,
    /// A cluster file.
    Cluster = 8,
    /// The root over both regions of the state.
    State = 9,
    /// The body of a frame above `FRAME_INLINE_MAX`, which enters its envelope's digest by this digest.
    Body = 10,
    /// A signed view-change.
    ViewChange = 11,
    /// A signed new-view.
    NewView = 12,
    /// A receipt for pieces of a large message.
    Receipt = 13,
    /// A replica's new key.
    NewKey = 20,
}

impl Digest {
    /// The digest of `parts`, concatenated, in `domain`.
    pub fn of(domain: Domain, parts: &[&[u8]]) -> Digest {
        let mut hasher = Hasher::new(domain);
        for part in parts {
            hasher.update(part);
        }
        hasher.finish()
    }
}

/// A digest in the making; see [`Digest::of`].
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// An empty input in `domain`: a key of its own, not a prefix, which would push every chunk off its boundary.
    pub fn new(domain: Domain) -> Hasher {
        let mut key = [0; blake3::KEY_LEN];
        key[..4].copy_from_slice(&[b'c', b's', b't', domain as u8]);
        Hasher(blake3::Hasher::new_keyed(&key))
    }

    /// Appends `bytes`.
    pub fn update(&mut self, bytes: &[u8]) -> &mut Hasher {
        self.0.update(bytes);
        self
    }

    /// The digest of everything appended.
    pub fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", hex::encode(&self.0[..4]))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The size of a cluster and what follows from it: `n = 3f + 1`, quorum `2f + 1`, weak quorum `f + 1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClusterSize {
    f: u8,
}

impl ClusterSize {
    /// One server: it tolerates no fault, and has nobody to agree with. Clients take its word; no replica is of this size.
    pub const UNREPLICATED: ClusterSize = ClusterSize { f: 0 };

    /// The cluster that tolerates `f` faulty replicas. `None` if `3f + 1` exceeds [`limits::REPLICAS_MAX`] or f is 0.
    pub fn tolerating(f: usize) -> Option<ClusterSize> {
        (f >= 1 && 3 * f + 1 <= limits::REPLICAS_MAX).then_some(ClusterSize { f: f as u8 })
    }

    /// The cluster of `n` replicas. `None` unless `n = 3f + 1` for an f that is allowed.
    pub fn of(n: usize) -> Option<ClusterSize> {
        (n % 3 == 1).then(|| ClusterSize::tolerating(n / 3)).flatten()
    }

    /// Faults tolerated.
    pub fn f(self) -> usize {
        usize::from(self.f)
    }

    /// Number of replicas, `3f + 1`.
    pub fn n(self) -> usize {
        3 * self.f() + 1
    }

    /// `q = 2f + 1`: any two quorums share a correct replica.
    pub fn quorum(self) -> usize {
        2 * self.f() + 1
    }

    /// `w = f + 1`: at least one member is correct.
    pub fn weak_quorum(self) -> usize {
        self.f() + 1
    }

    /// The primary of `view`.
    pub fn primary(self, view: View) -> ReplicaId {
        ReplicaId((view.0 % self.n() as u64) as u8)
    }

    /// The preferred quorum of `view`: its primary and the 2f replicas after it (P53).
    pub fn preferred(self, view: View) -> ReplicaSet {
        // The primary's bit and those after it; what passes the last replica goes on at the first.
        let (n, first) = (self.n(), self.primary(view).0);
        let preferred = ((1u128 << self.quorum()) - 1) << first;
        ReplicaSet((preferred | preferred >> n) as u64 & ReplicaSet::first(n).0)
    }

    /// Whether `id` is of the [preferred](Self::preferred) of `view`.
    pub fn prefers(self, view: View, id: ReplicaId) -> bool {
        let after = self.n() + usize::from(id.0) - usize::from(self.primary(view).0);
        after % self.n() < self.quorum()
    }

    /// The f replicas that `view` keeps in reserve: all but the [preferred](Self::preferred).
    pub fn reserve(self, view: View) -> ReplicaSet {
        ReplicaSet::first(self.n()).without(self.preferred(view))
    }

    /// All replicas, in order.
    pub fn replicas(self) -> impl Iterator<Item = ReplicaId> + Clone {
        (0..self.n() as u8).map(ReplicaId)
    }

    /// All replicas but `me`, in order.
    pub fn others(self, me: ReplicaId) -> impl Iterator<Item = ReplicaId> + Clone {
        self.replicas().filter(move |&r| r != me)
    }

    /// Whether `id` is a replica of this cluster.
    pub fn contains(self, id: ReplicaId) -> bool {
        usize::from(id.0) < self.n()
    }
}

/// What is taken to be so for a while after each sign of it: twice as long if the sign comes again within as long as it
/// last was.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Spell {
    until: Time,
    length: Duration,
}

impl Spell {
    /// A sign at `now`: it lasts from `min` to `max`.
    pub(crate) fn begin(&mut self, now: Time, min: Duration, max: Duration) {
        let again = now.since(self.until) < self.length;
        self.length = if again { self.length * 2 } else { min }.clamp(min, max);
        self.until = now + self.length;
    }

    /// Whether it is so.
    pub(crate) fn lasts(&self, now: Time) -> bool {
        now < self.until
    }
}

/// A set of replicas: one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplicaSet(u64);

const _: () = assert!(limits::REPLICAS_MAX <= 64, "a ReplicaSet is one u64");

impl ReplicaSet {
    /// The empty set.
    pub const EMPTY: ReplicaSet = ReplicaSet(0);

    /// Bit i: replica i is in the set.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The set with these bits.
    pub fn from_bits(bits: u64) -> ReplicaSet {
        ReplicaSet(bits)
    }

    /// Adds `id`; false if it was there.
    pub fn insert(&mut self, id: ReplicaId) -> bool {
        let new = !self.contains(id);
        self.0 |= 1 << id.0;
        new
    }

    /// Removes `id`.
    pub fn remove(&mut self, id: ReplicaId) {
        self.0 &= !(1 << id.0);
    }

    /// Whether `id` is a member.
    pub fn contains(self, id: ReplicaId) -> bool {
        self.0 >> id.0 & 1 == 1
    }

    /// The first `count` replicas.
    fn first(count: usize) -> ReplicaSet {
        ReplicaSet(((1u128 << count) - 1) as u64)
    }

    /// The members that are not of `other`.
    #[must_use]
    pub fn without(self, other: ReplicaSet) -> ReplicaSet {
        ReplicaSet(self.0 & !other.0)
    }

    /// The members of both.
    #[must_use]
    pub fn and(self, other: ReplicaSet) -> ReplicaSet {
        ReplicaSet(self.0 & other.0)
    }

    /// Number of members.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members, in order.
    pub fn iter(self) -> impl Iterator<Item = ReplicaId> + Clone {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let least = (rest != 0).then(|| ReplicaId(rest.trailing_zeros() as u8));
            rest &= rest.wrapping_sub(1);
            least
        })
    }
}

impl FromIterator<ReplicaId> for ReplicaSet {
    fn from_iter<I: IntoIterator<Item = ReplicaId>>(ids: I) -> ReplicaSet {
        let mut set = ReplicaSet::EMPTY;
        for id in ids {
            set.insert(id);
        }
        set
    }
}

impl fmt::Debug for ReplicaSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|r| r.0)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_sizes_follow_from_f() {
        let four = ClusterSize::of(4).unwrap();
        assert_eq!((four.f(), four.n(), four.quorum(), four.weak_quorum()), (1, 4, 3, 2));
        assert_eq!(four.primary(View(6)), ReplicaId(2));
        for n in [0, 1, 2, 3, 5, 6, 8, 9, limits::REPLICAS_MAX + 3] {
            assert_eq!(ClusterSize::of(n), None, "n = {n}");
        }
        assert_eq!(ClusterSize::of(64).map(ClusterSize::f), Some(21));
    }

    #[test]
    fn p53_a_view_prefers_its_primary_and_the_2f_after_it() {
        let set = |ids: &[u8]| ids.iter().map(|&id| ReplicaId(id)).collect::<ReplicaSet>();
        let (four, seven) = (ClusterSize::of(4).unwrap(), ClusterSize::of(7).unwrap());
        assert_eq!((four.preferred(View(0)), four.reserve(View(0))), (set(&[0, 1, 2]), set(&[3])));
        assert_eq!((four.preferred(View(6)), four.reserve(View(6))), (set(&[0, 2, 3]), set(&[1])));
        assert_eq!((seven.preferred(View(5)), seven.reserve(View(5))), (set(&[0, 1, 2, 5, 6]), set(&[3, 4])));
        assert_eq!(four.preferred(View(u64::MAX)).len(), 3);
        for size in [4, 7, 31, limits::REPLICAS_MAX].into_iter().filter_map(ClusterSize::of) {
            for view in (0..2 * size.n() as u64).map(View) {
                let one_by_one = size.replicas().filter(|&id| size.prefers(view, id)).collect();
                assert_eq!(size.preferred(view), one_by_one, "{size:?} {view:?}");
                assert_eq!(size.reserve(view), size.replicas().filter(|&id| !one_by_one.contains(id)).collect());
            }
        }
        assert!(ClusterSize::UNREPLICATED.reserve(View(3)).is_empty());
    }

    #[test]
    fn a_spell_is_longer_the_sooner_it_comes_back() {
        let (mut spell, ms) = (Spell::default(), Duration::from_millis);
        let (min, max, mut now) = (ms(10), ms(100), Time(1_000_000_000));
        assert!(!spell.lasts(now));
        for expected in [10, 20, 40, 80, 100, 100] {
            spell.begin(now, min, max);
            assert!(spell.lasts(now + ms(expected - 1)) && !spell.lasts(now + ms(expected)), "{expected}");
            now = now + ms(expected + 9);
        }
        spell.begin(now + ms(91), min, max);
        assert!(!spell.lasts(now + ms(91 + 10)), "it stayed away for as long as it had lasted");
    }

    #[test]
    fn domains_separate_digests() {
        assert_ne!(Digest::of(Domain::Pack, &[b"x"]), Digest::of(Domain::Batch, &[b"x"]));
        assert_eq!(Digest::of(Domain::Pack, &[b"ab", b"c"]), Digest::of(Domain::Pack, &[b"a", b"bc"]));
    }

    #[test]
    fn positions_order_by_batch_then_index() {
        assert!(Position::new(SeqNum(2), 0) > Position::new(SeqNum(1), 900));
        assert_eq!(Position::new(SeqNum(7), 3).batch(), SeqNum(7));
    }
}
