//! Locks: byte by byte against a model, leases, bounds.

use std::collections::BTreeMap;

use super::*;
use crate::bfs::locks::{
    CLIENT_LEASES_MAX, HELD, HOLDER_LOCKS_MAX, Holder, LEASES, LEASES_MAX, LOCKS, LOCKS_MAX, Lease,
};
use crate::sim::Rng;

/// Who locks: client, mount, owner.
type Who = (u64, u64, u64);

fn owner(who: Who) -> LockOwner {
    LockOwner { mount: who.1, owner: who.2, pid: who.2 as u32 }
}

fn range(start: u64, end: u64, exclusive: bool) -> LockRange {
    LockRange { start, end, exclusive }
}

impl Volume {
    fn by(&mut self, client: u64, request: Request<'_>) -> Got {
        self.call_as(Caller { client: ClientId(client), cred: &Credentials::ROOT }, request)
    }

    fn lease(&mut self, who: Who, how: LeaseCall) -> Result<(), Status> {
        self.by(who.0, Request::Lease { mount: who.1, how }).status()
    }

    fn lock(&mut self, who: Who, file: Handle, range: LockRange) -> Result<(), Status> {
        self.by(who.0, Request::Lock { file: Some(file), owner: owner(who), range }).status()
    }

    fn unlock(&mut self, who: Who, file: Handle, start: u64, end: u64) -> Result<(), Status> {
        self.by(who.0, Request::Unlock { file: Some(file), owner: owner(who), start, end }).status()
    }

    fn test_lock(&mut self, who: Who, file: Handle, range: LockRange) -> Option<Conflict> {
        let got = self.by(who.0, Request::TestLock { file: Some(file), owner: owner(who), range });
        let answer = got.answer();
        assert_eq!(answer.status.is_ok(), answer.conflict.is_none());
        answer.conflict
    }

    fn locks(&self) -> (u64, u64, u64) {
        let region = &self.state.service;
        (LOCKS.len(region), HELD.len(region), LEASES.len(region))
    }
}

/// Bytes of a file that are looked at; the last stands for all behind it.
const BYTES: usize = 10;

#[derive(Default)]
struct Model {
    /// Of a file and a byte: who locked it, and whether exclusively.
    bytes: BTreeMap<(usize, usize), BTreeMap<Who, bool>>,
    /// Of a client's mount: when its lease is over.
    leases: BTreeMap<(u64, u64), u64>,
    last: u64,
}

impl Model {
    fn lives(&self, who: Who, now: u64) -> bool {
        self.leases.get(&(who.0, who.1)).is_some_and(|&over| over > now)
    }

    fn in_the_way(&self, who: Who, file: usize, (first, last): (usize, usize), exclusive: bool, now: u64) -> bool {
        (first..=last)
            .filter_map(|byte| self.bytes.get(&(file, byte)))
            .flatten()
            .any(|(&other, &other_exclusive)| other != who && (exclusive || other_exclusive) && self.lives(other, now))
    }

    fn set(&mut self, who: Who, file: usize, (first, last): (usize, usize), how: Option<bool>) {
        for byte in first..=last {
            let owners = self.bytes.entry((file, byte)).or_default();
            match how {
                Some(exclusive) => owners.insert(who, exclusive),
                None => owners.remove(&who),
            };
        }
    }

    fn collect(&mut self, now: u64) {
        self.leases.retain(|_, &mut over| over > now);
        let leases = &self.leases;
        for owners in self.bytes.values_mut() {
            owners.retain(|who, _| leases.contains_key(&(who.0, who.1)));
        }
    }

    /// How many ranges there should be.
    fn ranges(&self) -> u64 {
        let of =
            |file, byte: usize, who: &Who| self.bytes.get(&(file, byte)).and_then(|owners| owners.get(who)).copied();
        let begins = |(&(file, byte), owners): (&(usize, usize), &BTreeMap<Who, bool>)| {
            let fresh = |(who, how): &(&Who, &bool)| byte == 0 || of(file, byte - 1, who) != Some(**how);
            owners.iter().filter(fresh).count() as u64
        };
        self.bytes.iter().map(begins).sum()
    }
}

/// The number of a file's inode, as in keys.
fn inode(file: Handle) -> [u8; 4] {
    (file.fileid() as u32).to_be_bytes()
}

#[test]
fn random_locks_exclude_as_the_model_says() {
    let (mut denied, mut granted, mut expired) = (0, 0, 0);
    for seed in 0..6 {
        let mut rng = Rng::new(seed);
        let v = &mut Volume::new(2_000);
        let files = ["a", "b"].map(|name| v.create(ROOT, name));
        let mut model = Model { last: v.time, ..Model::default() };
        for call in 0..3_000 {
            let who: Who = (rng.between(1, 2), rng.between(1, 2), rng.between(1, 2));
            let file = rng.index(2);
            let (a, b) = (rng.index(BYTES), rng.index(BYTES));
            let bytes = (a.min(b), a.max(b));
            let (start, end) = (bytes.0 as u64, if bytes.1 == BYTES - 1 { u64::MAX } else { bytes.1 as u64 });
            let exclusive = rng.chance(400);
            if rng.chance(15) {
                v.time += rng.below(40_000_000_000);
            }
            if rng.chance(100) {
                // What is undone was not.
                let time = v.time;
                v.state.begin_tentative();
                let all = LockRange::whole(exclusive);
                let _ =
                    (v.lease(who, LeaseCall::Begin), v.lock(who, files[file], all), v.unlock(who, files[file], 3, 4));
                v.state.rollback();
                v.time = time;
            }
            let now = (v.time + 1_000).max(model.last + 1);
            let context = format!("seed {seed}, call {call}: {who:?} file {file} bytes {bytes:?} {exclusive}");
            let expected = match rng.below(100) {
                0..45 => {
                    model.collect(now);
                    let expected = if !model.lives(who, now) {
                        Err(Status::Expired)
                    } else if model.in_the_way(who, file, bytes, exclusive, now) {
                        Err(Status::Denied)
                    } else {
                        model.set(who, file, bytes, Some(exclusive));
                        model.leases.insert((who.0, who.1), now + LEASE);
                        Ok(())
                    };
                    assert_eq!(v.lock(who, files[file], range(start, end, exclusive)), expected, "{context}");
                    granted += u32::from(expected.is_ok());
                    denied += u32::from(expected == Err(Status::Denied));
                    expected
                }
                45..65 => {
                    if model.lives(who, now) {
                        model.set(who, file, bytes, None);
                        model.leases.insert((who.0, who.1), now + LEASE);
                    }
                    assert_eq!(v.unlock(who, files[file], start, end), Ok(()), "{context}");
                    Ok(())
                }
                65..85 => {
                    let found = v.test_lock(who, files[file], range(start, end, exclusive));
                    let expected = model.in_the_way(who, file, bytes, exclusive, model.last);
                    assert_eq!(found.is_some(), expected, "{context}");
                    if let Some(Conflict { range, client, owner }) = found {
                        let other = (client.0, owner.mount, owner.owner);
                        assert_eq!(owner.pid, owner.owner as u32);
                        for byte in range.start as usize..=range.end.min(BYTES as u64 - 1) as usize {
                            assert_eq!(model.bytes[&(file, byte)].get(&other), Some(&range.exclusive), "{context}");
                        }
                        assert!(range.start <= end && start <= range.end && (exclusive || range.exclusive));
                    }
                    continue;
                }
                other => {
                    let how = match other {
                        85..93 => LeaseCall::Begin,
                        93..98 => LeaseCall::Renew,
                        _ => LeaseCall::End,
                    };
                    let known = model.leases.contains_key(&(who.0, who.1));
                    let over = |how, over: u64| if how == LeaseCall::End { 0 } else { over + LEASE };
                    let expected = match how {
                        LeaseCall::End => Ok(()),
                        LeaseCall::Begin if !known => Ok(()),
                        LeaseCall::Begin | LeaseCall::Renew if model.lives(who, now) => Ok(()),
                        LeaseCall::Begin | LeaseCall::Renew => Err(Status::Expired),
                    };
                    if expected.is_ok() {
                        model.leases.insert((who.0, who.1), over(how, now));
                    }
                    assert_eq!(v.lease(who, how), expected, "{context}");
                    model.collect(now);
                    expired += u32::from(expected == Err(Status::Expired));
                    expected
                }
            };
            if expected.is_ok() {
                model.last = now;
            }
            if call % 50 == 0 {
                model.collect(0);
                assert_eq!(v.check().locks, model.ranges(), "{context}");
            }
        }
    }
    assert!(denied > 1_000 && granted > 1_000 && expired > 50, "{denied} {granted} {expired}");
}

const A: Who = (1, 1, 1);
const B: Who = (2, 1, 1);

#[test]
fn a_lock_lasts_as_long_as_its_lease() {
    let v = &mut Volume::new(1_000);
    let file = v.create(ROOT, "f");
    let all = LockRange::whole(true);
    assert_eq!(v.lock(A, file, all), Err(Status::Expired), "nobody locks without a lease");
    assert_eq!((v.lease(A, LeaseCall::Renew), v.lease(A, LeaseCall::Begin)), (Err(Status::Expired), Ok(())));
    assert_eq!(v.lease(B, LeaseCall::Begin), Ok(()));
    assert_eq!(v.lock(A, file, all), Ok(()));
    v.time += LEASE - 10_000;
    assert_eq!((v.lease(B, LeaseCall::Renew), v.lease(A, LeaseCall::Renew)), (Ok(()), Ok(())));
    v.time += LEASE - 10_000;
    assert_eq!(v.lease(B, LeaseCall::Renew), Ok(()));
    assert_eq!(v.lock(B, file, range(7, 7, false)), Err(Status::Denied));
    assert_eq!(v.test_lock(B, file, range(7, 7, false)).map(|it| (it.range, it.client)), Some((all, ClientId(1))));
    v.time += 20_000;
    assert_eq!(v.lock(B, file, range(7, 7, false)), Ok(()), "the lease is over");
    // Whoever was away is told, whatever he calls, and takes nothing from anyone.
    assert_eq!(v.unlock(A, file, 0, u64::MAX), Ok(()));
    assert_eq!((v.lease(A, LeaseCall::Renew), v.lock(A, file, all)), (Err(Status::Expired), Err(Status::Expired)));
    let again = (A.0, 2, 1);
    assert_eq!(v.lease(again, LeaseCall::Begin), Ok(()));
    assert_eq!(v.lock(again, file, all), Err(Status::Denied));
    assert_eq!(v.lease(B, LeaseCall::End), Ok(()));
    assert_eq!(v.lock(again, file, all), Ok(()), "who ended his lease holds nothing");
    assert_eq!(v.locks(), (1, 1, 1));
    v.check();
}

#[test]
fn what_is_over_goes_in_bounded_steps() {
    let v = &mut Volume::new(1_000);
    let files = ["a", "b", "c"].map(|name| v.create(ROOT, name));
    assert_eq!(v.lease(A, LeaseCall::Begin), Ok(()));
    for n in 0..600 {
        assert_eq!(v.lock(A, files[n as usize % 2], range(2 * n, 2 * n, false)), Ok(()));
    }
    assert_eq!(v.locks(), (600, 2, 1));
    v.time += LEASE;
    assert_eq!(v.lease(B, LeaseCall::Begin), Ok(()));
    let mut left = vec![v.locks().0];
    while v.locks().0 > 0 {
        v.check();
        // Refused or not, what was nobody's goes.
        assert_eq!(v.lock(B, files[2], range(2, 1, true)), Err(Status::Inval));
        left.push(v.locks().0);
    }
    assert!(left.len() >= 3 && left.windows(2).all(|pair| pair[0] - pair[1] <= 256), "{left:?}");
    assert_eq!(v.lock(B, files[0], LockRange::whole(true)), Ok(()));
    assert_eq!(v.locks(), (1, 1, 1));
    v.check();
}

#[test]
fn locks_of_a_removed_file_are_gone() {
    let v = &mut Volume::new(1_000);
    let file = v.create(ROOT, "f");
    for who in [A, B] {
        assert_eq!(v.lease(who, LeaseCall::Begin), Ok(()));
        for n in 0..40 {
            assert_eq!(v.lock(who, file, range(3 * n, 3 * n, false)), Ok(()));
        }
    }
    assert_eq!(v.locks(), (80, 2, 2));
    assert_eq!(v.remove(ROOT, "f"), Ok(()));
    assert_eq!(v.locks(), (0, 0, 2));
    v.check();
    let new = v.create(ROOT, "f");
    assert_eq!(new.fileid(), file.fileid());
    assert_eq!(v.lock(A, file, range(0, 1, true)), Err(Status::Stale));
    assert_eq!((v.lock(A, new, range(0, 1, true)), v.locks()), (Ok(()), (1, 1, 2)));
}

#[test]
fn who_may_read_or_write_a_file_may_lock_it() {
    let v = &mut Volume::new(1_000);
    let file = v.create(ROOT, "f");
    let directory = v.mkdir(ROOT, "d");
    let link = Request::Symlink { at: at(ROOT, "l"), new: NewAttributes::default(), target: b"f" };
    let link = v.root(link).ok().handle.unwrap();
    assert_eq!(v.lease(A, LeaseCall::Begin), Ok(()));
    let all = LockRange::whole(true);
    assert_eq!((v.lock(A, directory, all), v.lock(A, link, all)), (Ok(()), Err(Status::Inval)));
    let user = Credentials::new(7, 7, &[]);
    for (mode, expected) in
        [(0o600, Err(Status::Access)), (0o604, Ok(())), (0o602, Ok(())), (0o601, Err(Status::Access))]
    {
        assert_eq!(v.set(&Credentials::ROOT, file, NewAttributes::mode(mode)), Ok(()));
        let caller = Caller { client: ClientId(A.0), cred: &user };
        let lock = Request::Lock { file: Some(file), owner: owner(A), range: all };
        assert_eq!(v.call_as(caller, lock).status(), expected, "{mode:o}");
        // Who may not read it is not told who locks it either.
        let test = Request::TestLock { file: Some(file), owner: owner((A.0, A.1, 2)), range: all };
        let told = if expected.is_ok() { Err(Status::Denied) } else { expected };
        assert_eq!(v.call_as(caller, test).status(), told, "{mode:o}");
        let unlock = Request::Unlock { file: Some(file), owner: owner(A), start: 0, end: u64::MAX };
        assert_eq!(v.call_as(caller, unlock).status(), Ok(()), "whoever holds it gives it up");
        assert_eq!(v.lock(A, file, range(0, 9, true)), Ok(()));
    }
    for (start, end) in [(1, 0), (u64::MAX, 0), (u64::MAX, u64::MAX - 1)] {
        assert_eq!(v.lock(A, file, range(start, end, true)), Err(Status::Inval));
        assert_eq!(v.unlock(A, file, start, end), Err(Status::Inval));
    }
    v.check();
}

#[test]
fn there_are_so_many_locks_and_no_more() {
    let v = &mut Volume::new(4_000);
    let (file, other) = (v.create(ROOT, "f"), v.create(ROOT, "g"));
    for who in [A, B] {
        assert_eq!(v.lease(who, LeaseCall::Begin), Ok(()));
    }
    let key = [A.0.to_be_bytes(), A.1.to_be_bytes()].concat();
    let lease: Lease = LEASES.load(&v.state.service, &key).unwrap();
    // As so many calls do, at once.
    let region = &mut v.state.service;
    for n in 0..FILE_LOCKS_MAX as u64 - 1 {
        let of = [&inode(file)[..], &(4 * n).to_be_bytes(), &key, &A.2.to_be_bytes()].concat();
        LOCKS.store(region, &of, &(4 * n + 2, false, 0u32)).unwrap();
    }
    let count = FILE_LOCKS_MAX as u32 - 1;
    HELD.store(region, &[&key[..], &inode(file)].concat(), &count).unwrap();
    LEASES.store(region, &key, &Lease { locks: count, ..lease }).unwrap();
    let last = 4 * u64::from(count);
    assert_eq!(v.lock(A, file, range(last, last + 2, false)), Ok(()));
    let far = 5 * FILE_LOCKS_MAX as u64;
    assert_eq!(v.lock(A, file, range(far, far, false)), Err(Status::NoLck));
    assert_eq!(v.lock(B, file, range(far, far, false)), Err(Status::NoLck));
    assert_eq!(v.unlock(A, file, 1, 1), Err(Status::NoLck), "two in place of one are one more");
    assert_eq!(v.check().locks, FILE_LOCKS_MAX as u64);
    assert_eq!(v.lock(A, file, range(2, 4, false)), Ok(()), "one in place of two");
    assert_eq!(v.lock(B, file, range(far, far, false)), Ok(()));
    assert_eq!(v.lock(B, file, range(0, 0, true)), Err(Status::Denied));
    assert_eq!(v.unlock(A, file, 0, u64::MAX), Ok(()));
    // The bounds of a mount and of all.
    let holder = Holder { client: ClientId(A.0), mount: A.1 };
    let lease: Lease = LEASES.load(&v.state.service, &key).unwrap();
    assert_eq!((lease.locks, Holder::of_key(key.clone().try_into().unwrap())), (0, holder));
    for (locks, expected) in [(HOLDER_LOCKS_MAX, Err(Status::NoLck)), (HOLDER_LOCKS_MAX - 1, Ok(()))] {
        LEASES.store(&mut v.state.service, &key, &Lease { locks, ..lease }).unwrap();
        assert_eq!(v.lock(A, other, range(0, 0, true)), expected);
    }
    for n in LOCKS.len(&v.state.service)..LOCKS_MAX {
        LOCKS.store(&mut v.state.service, &[&[0xff; 28][..], &n.to_be_bytes()].concat(), &(0u64, false, 0u32)).unwrap();
    }
    assert_eq!(v.lock(B, other, range(5, 5, true)), Err(Status::NoLck));
    assert_eq!(v.lock(A, other, range(0, 1, true)), Ok(()), "longer is not more");
}

#[test]
fn there_are_so_many_leases_and_no_more() {
    let v = &mut Volume::new(1_000);
    for mount in 0..LEASES_MAX {
        assert_eq!(v.lease((mount / CLIENT_LEASES_MAX as u64, mount, 0), LeaseCall::Begin), Ok(()));
        if mount == 100 {
            assert_eq!(v.lease((0, 100, 0), LeaseCall::Begin), Err(Status::NoLck), "one client has not more");
        }
    }
    assert_eq!(v.lease((99, 0, 0), LeaseCall::Begin), Err(Status::NoLck));
    assert_eq!(v.lease((0, 0, 0), LeaseCall::Begin), Ok(()), "one that there is");
    v.time += LEASE;
    assert_eq!(v.lease((99, 0, 0), LeaseCall::Begin), Err(Status::NoLck), "it clears up for the next");
    assert_eq!(v.lease((99, 0, 0), LeaseCall::Begin), Ok(()));
    v.check();
}

#[test]
fn a_full_file_system_takes_no_lock_and_gives_them_up() {
    let v = &mut Volume::new(40);
    let file = v.create(ROOT, "f");
    assert_eq!(v.lease(A, LeaseCall::Begin), Ok(()));
    let mut held = 0;
    let mut end = 0;
    while v.write(file, end, &[1; 4_096]).is_ok() {
        end += 4_096;
    }
    while v.lock(A, file, range(2 * held, 2 * held, true)).is_ok() {
        held += 1;
    }
    assert_eq!(v.lock(A, file, range(2 * held, 2 * held, true)), Err(Status::NoLck));
    assert_eq!(v.check().locks, held);
    assert_eq!((v.unlock(A, file, 0, u64::MAX), v.check().locks), (Ok(()), 0));
}

#[test]
fn fsck_sees_what_is_wrong_with_locks() {
    let fresh = || {
        let mut v = Volume::new(1_000);
        let file = v.create(ROOT, "f");
        assert_eq!((v.lease(A, LeaseCall::Begin), v.lock(A, file, range(5, 9, true))), (Ok(()), Ok(())));
        (v, file)
    };
    let key = |file: Handle, start: u64, who: Who| {
        let who = [who.0.to_be_bytes(), who.1.to_be_bytes(), who.2.to_be_bytes()].concat();
        [&inode(file)[..], &start.to_be_bytes(), &who].concat()
    };
    let nowhere = Handle::Now { inode: InodeId(9), generation: 0 };
    for (at, who, end, exclusive, fault) in [
        (5, A, 4, true, "ends before it begins"),
        (7, A, 8, true, "overlaps one of its owner"),
        (10, A, 11, true, "goes on with another of its owner"),
        (9, B, 11, false, "conflicts with another"),
        (1, B, 5, false, "conflicts with another"),
        (10, B, 11, true, "have locks and no lease"),
        (10, A, 11, false, "a lease has 2 locks and counts others"),
    ] {
        let (mut v, file) = fresh();
        LOCKS.store(&mut v.state.service, &key(file, at, who), &(end as u64, exclusive, 0u32)).unwrap();
        let found = fsck(&v.state.service).faults;
        assert!(found.iter().any(|it| it.contains(fault)), "{fault}: {found:?}");
    }
    let (mut v, _) = fresh();
    LOCKS.store(&mut v.state.service, &key(nowhere, 0, A), &(1u64, true, 0u32)).unwrap();
    assert!(fsck(&v.state.service).faults.contains(&"inode 9 is locked and no file".to_owned()));
    for map in [LOCKS, HELD, LEASES] {
        let (mut v, _) = fresh();
        map.insert(&mut v.state.service, b"short", b"x").unwrap();
        assert_eq!(fsck(&v.state.service).faults.len(), 1);
        let (mut v, _) = fresh();
        let key = map.iter(&v.state.service).next().unwrap().0.to_vec();
        map.remove(&mut v.state.service, &key);
        assert!(!fsck(&v.state.service).faults.is_empty());
    }
}
