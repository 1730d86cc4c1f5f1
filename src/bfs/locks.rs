//! Locks of ranges of bytes, agreed like everything else: so mounts of one cluster exclude each other.
//!
//! ```text
//! locks   slot 3: inode u32 | start u64 | holder | owner u64 -> end u64 | exclusive u8 | pid u32
//! leases  slot 4: holder -> when it is over, agreed nanoseconds u64 | its locks u32
//! held    slot 6: holder | inode u32 -> its locks of that file u32
//! holder: client u64 | mount u64
//! ```
//! In keys integers are big-endian, so that the locks of a file stand together, by their start; values are little-endian.
//!
//! Who locks has a lease, which his calls renew. When it is over his locks are nobody's: they stand in nobody's way, and go
//! in steps of bounded work. An over lease is never revived, so that nobody who lost locks goes on under it: he begins a new
//! one, by another number, and knows. Time is what the replicas agreed on, so they agree on who lost what; a primary that
//! makes it run ahead (as far as the replicas let it) can end leases early, and thereby take locks from those who hold them.
//! When the cluster stands still for so long, all leases are over when it goes on.

use std::collections::BTreeMap;

use super::inode::InodeId;
use super::ranges::{self, LockRange};
use super::request::LockOwner;
use super::status::Status;
use crate::state::{Fixed, Map, Pages, Region, Value};
use crate::types::ClientId;

pub(super) const LOCKS: Map = Map::at(3);
pub(super) const LEASES: Map = Map::at(4);
pub(super) const HELD: Map = Map::at(6);

/// How long a lease lasts without a call, in nanoseconds: 30 s.
pub const LEASE: u64 = 30_000_000_000;

/// Locked ranges of one file.
pub const FILE_LOCKS_MAX: usize = 4_096;
/// Locked ranges of one mount.
pub(super) const HOLDER_LOCKS_MAX: u32 = 16_384;
/// Locked ranges of all files.
pub(super) const LOCKS_MAX: u64 = 65_536;
/// Leases of one client.
pub(super) const CLIENT_LEASES_MAX: usize = 64;
/// Leases of all clients.
pub(super) const LEASES_MAX: u64 = 1_024;

/// Locks and leases that are over that one call removes.
const COLLECTED_PER_CALL: u32 = 256;

/// Who holds locks under one lease: a client, and one of its mounts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Holder {
    pub client: ClientId,
    pub mount: u64,
}

impl Holder {
    const SIZE: usize = 16;

    fn key(self) -> [u8; 16] {
        (u128::from(self.client.0) << 64 | u128::from(self.mount)).to_be_bytes()
    }

    pub(super) fn of_key(key: [u8; 16]) -> Holder {
        let both = u128::from_be_bytes(key);
        Holder { client: ClientId((both >> 64) as u64), mount: both as u64 }
    }

    fn held_key(self, file: InodeId) -> [u8; 20] {
        let mut key = [0; 20];
        key[..Holder::SIZE].copy_from_slice(&self.key());
        key[Holder::SIZE..].copy_from_slice(&file.0.to_be_bytes());
        key
    }
}

/// A lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Lease {
    /// From when on it is over.
    pub over: u64,
    /// Locked ranges under it.
    pub locks: u32,
}

impl Fixed for Lease {
    const SIZE: usize = 12;
    fn decode(bytes: &[u8]) -> Lease {
        let (over, locks) = Fixed::decode(bytes);
        Lease { over, locks }
    }
    fn encode(&self, bytes: &mut [u8]) {
        (self.over, self.locks).encode(bytes);
    }
}

/// A locked range, and whose it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Lock {
    pub range: LockRange,
    pub holder: Holder,
    pub owner: u64,
    pub pid: u32,
}

impl Lock {
    pub(super) const KEY: usize = 36;
    pub(super) const VALUE: usize = 13;

    fn key(&self, file: InodeId) -> [u8; Lock::KEY] {
        let mut key = [0; Lock::KEY];
        key[..4].copy_from_slice(&file.0.to_be_bytes());
        key[4..12].copy_from_slice(&self.range.start.to_be_bytes());
        key[12..28].copy_from_slice(&self.holder.key());
        key[28..].copy_from_slice(&self.owner.to_be_bytes());
        key
    }

    /// A lock, and of which file; `None` if these are the bytes of none.
    pub(super) fn read<P: Pages>(key: &[u8], value: &Value<'_, P>) -> Option<(InodeId, Lock)> {
        let (file, rest) = key.split_first_chunk()?;
        let (start, rest) = rest.split_first_chunk()?;
        let (holder, owner) = rest.split_first_chunk()?;
        let owner = u64::from_be_bytes(owner.try_into().ok()?);
        if value.len() != Lock::VALUE as u64 {
            return None;
        }
        let (end, exclusive, pid): (u64, bool, u32) = value.decode();
        let range = LockRange { start: u64::from_be_bytes(*start), end, exclusive };
        let lock = Lock { range, holder: Holder::of_key(*holder), owner, pid };
        Some((InodeId(u32::from_be_bytes(*file)), lock))
    }

    fn is_of(&self, holder: Holder, owner: u64) -> bool {
        self.holder == holder && self.owner == owner
    }
}

/// The locks of a file, by their start.
fn of_file<P: Pages>(region: &P, file: InodeId) -> impl Iterator<Item = Lock> {
    let locks = LOCKS.prefix(region, &file.0.to_be_bytes());
    locks.filter_map(|(key, value)| Lock::read(key, &value)).map(|(_, lock)| lock)
}

/// A holder's lease, if it has begun and is not over.
fn lease<P: Pages>(region: &P, holder: Holder, now: u64) -> Option<Lease> {
    LEASES.load(region, &holder.key()).filter(|lease: &Lease| lease.over > now)
}

/// A lock of another owner that stands in the way.
pub(super) fn conflict<P: Pages>(
    region: &P,
    now: u64,
    file: InodeId,
    (holder, owner): (Holder, u64),
    wanted: &LockRange,
) -> Option<Lock> {
    of_file(region, file)
        .take_while(|lock| lock.range.start <= wanted.end)
        .filter(|lock| lock.range.conflicts(wanted) && !lock.is_of(holder, owner))
        .find(|lock| lease(region, lock.holder, now).is_some())
}

/// [`Status::Expired`] unless the holder has a lease.
pub(super) fn check_lease<P: Pages>(region: &P, now: u64, holder: Holder) -> Result<(), Status> {
    lease(region, holder, now).map(|_| ()).ok_or(Status::Expired)
}

/// Locks a range that nobody's lock stands in the way of, and renews the lease. To be attempted.
pub(super) fn lock(
    region: &mut Region,
    now: u64,
    file: InodeId,
    (holder, owner): (Holder, LockOwner),
    new: LockRange,
) -> Result<(), Status> {
    let all: Vec<Lock> = of_file(region, file).collect();
    let own = |lock: &&Lock| lock.is_of(holder, owner.owner);
    // Leases of these are over, or the lock would have been refused.
    let dead: Vec<Lock> = all.iter().filter(|lock| lock.range.conflicts(&new) && !own(lock)).copied().collect();
    dead.iter().for_each(|lock| remove(region, file, lock));
    let before: Vec<Lock> = all.iter().filter(own).copied().collect();
    let after = ranges::set(&before.iter().map(|lock| lock.range).collect::<Vec<_>>(), new);
    replace(region, file, (holder, owner), &before, &after, all.len() - dead.len())?;
    renew(region, now, holder)
}

/// Gives up what the owner locked from `start` to `end`, and renews the lease if there is one. To be attempted.
pub(super) fn unlock(
    region: &mut Region,
    now: u64,
    file: InodeId,
    (holder, owner): (Holder, LockOwner),
    (start, end): (u64, u64),
) -> Result<(), Status> {
    if lease(region, holder, now).is_none() {
        // They are nobody's.
        return Ok(());
    }
    let all: Vec<Lock> = of_file(region, file).collect();
    let before: Vec<Lock> = all.iter().filter(|lock| lock.is_of(holder, owner.owner)).copied().collect();
    let after = ranges::clear(&before.iter().map(|lock| lock.range).collect::<Vec<_>>(), start, end);
    replace(region, file, (holder, owner), &before, &after, all.len())?;
    renew(region, now, holder)
}

/// Makes an owner's ranges of a file `after`, where `count` are locked in all.
fn replace(
    region: &mut Region,
    file: InodeId,
    (holder, owner): (Holder, LockOwner),
    before: &[Lock],
    after: &[LockRange],
    count: usize,
) -> Result<(), Status> {
    if after.len() > before.len() {
        let more = after.len() - before.len();
        let under = LEASES.load(region, &holder.key()).map_or(0, |lease: Lease| lease.locks);
        if count + more > FILE_LOCKS_MAX
            || LOCKS.len(region) + more as u64 > LOCKS_MAX
            || under as usize + more > HOLDER_LOCKS_MAX as usize
        {
            return Err(Status::NoLck);
        }
    }
    // Both are in order.
    let stays = |lock: &Lock| after.binary_search_by_key(&lock.range.start, |it| it.start).map(|at| after[at]);
    let stood = |range: &LockRange| {
        let at = before.binary_search_by_key(&range.start, |lock| lock.range.start);
        at.map(|at| before[at].range)
    };
    before.iter().filter(|lock| stays(lock) != Ok(lock.range)).for_each(|lock| remove(region, file, lock));
    for &range in after.iter().filter(|range| stood(range) != Ok(**range)) {
        insert(region, file, &Lock { range, holder, owner: owner.owner, pid: owner.pid })?;
    }
    Ok(())
}

fn insert(region: &mut Region, file: InodeId, lock: &Lock) -> Result<(), Status> {
    let (key, held) = (lock.key(file), lock.holder.held_key(file));
    LOCKS.store(region, &key, &(lock.range.end, lock.range.exclusive, lock.pid))?;
    let count = HELD.load(region, &held).unwrap_or(0u32);
    HELD.store(region, &held, &(count + 1))?;
    let lease: Lease = LEASES.load(region, &lock.holder.key()).ok_or(Status::Expired)?;
    LEASES.store(region, &lock.holder.key(), &Lease { locks: lease.locks + 1, ..lease })?;
    Ok(())
}

/// Removes a lock that is there.
fn remove(region: &mut Region, file: InodeId, lock: &Lock) {
    LOCKS.remove(region, &lock.key(file));
    let held = lock.holder.held_key(file);
    match HELD.load(region, &held).unwrap_or(0u32) {
        0 | 1 => drop(HELD.remove(region, &held)),
        count => overwrite(region, HELD, &held, &(count - 1)),
    }
    if let Some(lease) = LEASES.load::<Lease, _>(region, &lock.holder.key()) {
        let locks = lease.locks.saturating_sub(1);
        overwrite(region, LEASES, &lock.holder.key(), &Lease { locks, ..lease });
    }
}

fn overwrite<T: Fixed>(region: &mut Region, map: Map, key: &[u8], value: &T) {
    map.store(region, key, value).expect("a value of the same size takes no room");
}

/// Renews a lease. To be attempted.
pub(super) fn renew(region: &mut Region, now: u64, holder: Holder) -> Result<(), Status> {
    let lease = lease(region, holder, now).ok_or(Status::Expired)?;
    overwrite(region, LEASES, &holder.key(), &Lease { over: now.saturating_add(LEASE), ..lease });
    Ok(())
}

/// Begins a lease, or renews the one that there is; not one that is over. To be attempted.
pub(super) fn begin(region: &mut Region, now: u64, holder: Holder) -> Result<(), Status> {
    let key = holder.key();
    if LEASES.contains(region, &key) {
        return renew(region, now, holder);
    }
    let of_client = LEASES.prefix(region, &key[..8]).count();
    if LEASES.len(region) >= LEASES_MAX || of_client >= CLIENT_LEASES_MAX {
        return Err(Status::NoLck);
    }
    LEASES.store(region, &key, &Lease { over: now.saturating_add(LEASE), locks: 0 })?;
    Ok(())
}

/// Ends a lease: the locks under it are nobody's from now on. That there is none is as well.
pub(super) fn end(region: &mut Region, holder: Holder) {
    if let Some(lease) = LEASES.load::<Lease, _>(region, &holder.key()) {
        overwrite(region, LEASES, &holder.key(), &Lease { over: 0, ..lease });
    }
}

/// Removes some of the locks and leases that are over.
pub(super) fn collect(region: &mut Region, now: u64) {
    let mut budget = COLLECTED_PER_CALL;
    while budget > 0 {
        let found = LEASES.iter(region).find(|(_, value)| value.decode::<Lease>().over <= now);
        let Some(key) = found.and_then(|(key, _)| <[u8; Holder::SIZE]>::try_from(key).ok()) else { return };
        let holder = Holder::of_key(key);
        budget -= 1;
        let file = HELD.prefix(region, &key).next().and_then(|(key, _)| key.last_chunk().copied());
        let Some(file) = file.map(u32::from_be_bytes).map(InodeId) else {
            LEASES.remove(region, &key);
            continue;
        };
        let locks = of_file(region, file).filter(|lock| lock.holder == holder);
        let some: Vec<Lock> = locks.take(1 + budget as usize).collect();
        budget = budget.saturating_sub(some.len() as u32);
        some.iter().for_each(|lock| remove(region, file, lock));
    }
}

/// The file is gone, and so are its locks.
pub(super) fn forget_file(region: &mut Region, file: InodeId) {
    let all: Vec<Lock> = of_file(region, file).collect();
    all.iter().for_each(|lock| remove(region, file, lock));
}

/// What is wrong with the locks: one sentence each. `lockable` tells of a file whether there may be locks of it.
pub(super) fn faults<P: Pages>(region: &P, lockable: impl Fn(InodeId) -> bool) -> Vec<String> {
    let mut faults = Vec::new();
    let mut held: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    let mut leased: BTreeMap<Holder, u32> = BTreeMap::new();
    let mut file = Ends::default();
    for (key, value) in LOCKS.iter(region) {
        let Some((id, lock)) = Lock::read(key, &value) else {
            faults.push(format!("the map of locks has a key of {} bytes for {}", key.len(), value.len()));
            continue;
        };
        if id != file.id {
            file = Ends { id, ..Ends::default() };
            if !lockable(id) {
                faults.push(format!("inode {} is locked and no file", id.0));
            }
        }
        if let Some(fault) = file.add(&lock) {
            faults.push(format!("inode {}: the lock from {} to {} {fault}", id.0, lock.range.start, lock.range.end));
        }
        *held.entry(lock.holder.held_key(id).to_vec()).or_default() += 1;
        *leased.entry(lock.holder).or_default() += 1;
    }
    for (key, value) in HELD.iter(region) {
        let count = held.remove(key).unwrap_or(0);
        if value.len() != u32::SIZE as u64 || value.decode::<u32>() != count || count == 0 {
            faults.push(format!("a mount holds {count} locks of a file and counts others"));
        }
    }
    for (key, value) in LEASES.iter(region) {
        let holder = <[u8; Holder::SIZE]>::try_from(key).map(Holder::of_key);
        let count = holder.ok().and_then(|holder| leased.remove(&holder)).unwrap_or(0);
        if holder.is_err() || value.len() != Lease::SIZE as u64 || value.decode::<Lease>().locks != count {
            faults.push(format!("a lease has {count} locks and counts others"));
        }
    }
    if !held.is_empty() || !leased.is_empty() {
        faults.push(format!("{} holders have locks and no lease, of {} files unlisted", leased.len(), held.len()));
    }
    faults
}

/// How far the locks of one file reach that begin before the next.
#[derive(Default)]
struct Ends {
    id: InodeId,
    any: Option<u64>,
    exclusive: Option<u64>,
    owners: BTreeMap<(Holder, u64), LockRange>,
    count: usize,
}

impl Ends {
    /// Adds one; what is wrong with it.
    fn add(&mut self, lock: &Lock) -> Option<&'static str> {
        let LockRange { start, end, exclusive } = lock.range;
        let reaches = |far: Option<u64>| far.is_some_and(|far| far >= start);
        let before = self.owners.insert((lock.holder, lock.owner), lock.range);
        let fault = if start > end {
            Some("ends before it begins")
        } else if reaches(before.map(|before| before.end)) {
            Some("overlaps one of its owner")
        } else if before.is_some_and(|own| own.exclusive == exclusive && own.end.checked_add(1) == Some(start)) {
            Some("goes on with another of its owner")
        } else if reaches(if exclusive { self.any } else { self.exclusive }) {
            Some("conflicts with another")
        } else if self.count == FILE_LOCKS_MAX {
            Some("is one too many")
        } else {
            None
        };
        self.any = self.any.max(Some(end));
        self.exclusive = if exclusive { self.exclusive.max(Some(end)) } else { self.exclusive };
        self.count += 1;
        fault
    }
}
