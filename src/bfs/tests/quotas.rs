//! Who is charged with what, and what limits refuse.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::bfs::quota::{self, Account, Amount, Quota};
use crate::sim::Rng;
use crate::types::SeqNum;

const PAGE: u64 = 4_096;

impl Volume {
    fn limit(&mut self, account: Account, bytes: u64, files: u64) {
        let limit = Amount { bytes, files };
        let set = self.root(Request::SetQuota { account, limit }).ok().quota;
        assert_eq!((set, set.limit), (self.root(Request::GetQuota { account }).ok().quota, limit));
    }

    fn used(&mut self, account: Account) -> (u64, u64) {
        let Amount { bytes, files } = self.root(Request::GetQuota { account }).ok().quota.used;
        (bytes / PAGE, files)
    }

    /// Whose quotas one sees, by calls that ask for `count` of them.
    fn listed(&mut self, cred: &Credentials, count: u32) -> Vec<(Account, Quota)> {
        let (mut all, mut cookie) = (Vec::new(), 0);
        loop {
            let got = self.call(cred, Request::ListQuota { cookie, count });
            let answer = got.ok();
            assert!(answer.quotas.len() <= count as usize);
            all.extend(answer.quotas.iter().map(|listed| (listed.account, listed.quota)));
            if answer.eof {
                return all;
            }
            cookie = answer.quotas.last().expect("one at least, or the end").cookie;
        }
    }

    /// Every quota that there is.
    fn quotas(&self) -> BTreeMap<Account, Quota> {
        quota::all(&self.state.service).map(|entry| entry.expect("every entry is one")).collect()
    }

    fn create_as(&mut self, cred: &Credentials, name: &str) -> Result<Handle, Status> {
        let how = CreateHow::Guarded(NewAttributes::mode(0o666));
        let got = self.call(cred, Request::Create { at: at(ROOT, name), how });
        got.status().map(|()| got.answer().handle.unwrap())
    }

    fn write_as(&mut self, cred: &Credentials, file: Handle, offset: u64, len: usize) -> Result<(), Status> {
        self.call(cred, write(file, offset, &vec![7; len])).status()
    }
}

fn user(uid: u32) -> Credentials {
    Credentials::new(uid, uid + 100, &[200])
}

#[test]
fn a_file_is_charged_to_its_owner_and_its_group() {
    let v = &mut Volume::new(3_000);
    let [a, b] = [user(1), user(2)];
    assert_eq!((v.used(Account::User(0)), v.used(Account::Group(0))), ((0, 1), (0, 1)), "the root directory");
    let file = v.create_as(&a, "file").unwrap();
    assert_eq!((v.used(Account::User(1)), v.used(Account::Group(101))), ((0, 1), (0, 1)));
    // Who writes does not matter.
    v.write_as(&b, file, 0, 10).unwrap();
    assert_eq!(
        (v.used(Account::User(1)), v.used(Account::Group(101)), v.used(Account::User(2))),
        ((1, 1), (1, 1), (0, 0))
    );
    // Two pages and one of the index.
    v.write_as(&a, file, 4_000, 4_000).unwrap();
    assert_eq!(v.used(Account::User(1)), (3, 1));
    assert_eq!(v.stat(file).used, 3 * PAGE);
    v.set(&a, file, NewAttributes { gid: Some(200), ..NewAttributes::default() }).unwrap();
    assert_eq!((v.used(Account::Group(101)), v.used(Account::Group(200))), ((0, 0), (3, 1)));
    v.set(&Credentials::ROOT, file, NewAttributes { uid: Some(2), size: Some(1), ..NewAttributes::default() }).unwrap();
    assert_eq!(
        (v.used(Account::User(1)), v.used(Account::User(2)), v.used(Account::Group(200))),
        ((0, 0), (1, 1), (1, 1))
    );
    v.root(Request::Link { file: Some(file), at: at(ROOT, "other") }).ok();
    assert_eq!(v.used(Account::User(2)), (1, 1), "another name is no other file");
    v.remove(ROOT, "file").unwrap();
    assert_eq!(v.used(Account::User(2)), (1, 1));
    v.remove(ROOT, "other").unwrap();
    assert_eq!(v.quotas().len(), 2, "who has nothing and may have anything has no entry: {:?}", v.quotas());
    v.check();
}

#[test]
fn what_passes_a_limit_is_refused_and_has_changed_nothing() {
    let v = &mut Volume::new(3_000);
    let [a, b] = [user(1), user(2)];
    let file = v.create_as(&a, "file").unwrap();
    v.write_as(&a, file, 0, 4_096).unwrap();
    v.limit(Account::User(1), 4 * PAGE, 2);
    v.write_as(&a, file, 4_096, 4_096).unwrap(); // Two and one of the index.
    let before = v.state.full_root();
    let dquot = Err(Status::DQuot);
    assert_eq!(v.write_as(&a, file, 8_192, 8_192), dquot);
    assert_eq!(v.write_as(&b, file, 8_192, 8_192), dquot, "the owner's limit holds for whoever writes");
    assert_eq!(v.state.full_root(), before);
    v.write_as(&a, file, 8_192, 4_096).unwrap();
    v.write_as(&a, file, 0, 3 * 4_096).unwrap();
    assert_eq!(v.used(Account::User(1)), (4, 1));
    assert!(v.create_as(&a, "second").is_ok());
    let before = v.state.full_root();
    assert_eq!(v.create_as(&a, "third"), Err(Status::DQuot));
    let new = NewAttributes::mode(0o755);
    assert_eq!(v.call(&a, Request::MkDir { at: at(ROOT, "third"), new }).status(), dquot);
    assert_eq!(v.call(&a, Request::Symlink { at: at(ROOT, "third"), new, target: b"x" }).status(), dquot);
    assert_eq!(v.state.full_root(), before);
    assert!(v.create_as(&b, "third").is_ok(), "others are not held up");
    // A long target is content.
    v.limit(Account::User(1), 4 * PAGE, 0);
    assert_eq!(v.call(&a, Request::Symlink { at: at(ROOT, "link"), new, target: &[b't'; 200] }).status(), dquot);
    v.set(&a, file, NewAttributes { size: Some(4_096), ..NewAttributes::default() }).unwrap();
    v.call(&a, Request::Symlink { at: at(ROOT, "link"), new, target: &[b't'; 200] }).ok();
    v.check();
}

#[test]
fn a_group_is_limited_as_a_user_is_and_root_is_not() {
    let v = &mut Volume::new(3_000);
    let a = user(1);
    v.limit(Account::Group(200), 2 * PAGE, 1);
    let (file, other) = (v.create_as(&a, "file").unwrap(), v.create_as(&a, "other").unwrap());
    let chgrp = NewAttributes { gid: Some(200), ..NewAttributes::default() };
    v.write_as(&a, other, 0, 3 * 4_096).unwrap();
    assert_eq!(v.set(&a, other, chgrp), Err(Status::DQuot), "too large to be the group's");
    v.set(&a, file, chgrp).unwrap();
    assert_eq!(v.write_as(&a, file, 0, 3 * 4_096), Err(Status::DQuot));
    v.write_as(&a, file, 0, 4_096).unwrap();
    // Root passes every limit, for whom it may be, and that counts.
    v.set(&Credentials::ROOT, other, chgrp).unwrap();
    v.write_as(&Credentials::ROOT, file, 4_096, 4_096).unwrap();
    assert_eq!(v.used(Account::Group(200)), (3 + 4, 2));
    // Above the limit there is still overwriting, shrinking, removing and giving to others.
    v.write_as(&a, other, 0, 2 * 4_096).unwrap();
    assert_eq!(v.write_as(&a, other, 3 * 4_096, 1), Err(Status::DQuot));
    v.set(&a, other, NewAttributes { size: Some(4_096), ..NewAttributes::default() }).unwrap();
    v.set(&a, other, NewAttributes { gid: Some(101), ..NewAttributes::default() }).unwrap();
    v.call(&a, Request::Remove { at: at(ROOT, "file") }).ok();
    assert_eq!(v.used(Account::Group(200)), (0, 0));
    assert_eq!(v.quotas()[&Account::Group(200)].limit, Amount { bytes: 2 * PAGE, files: 1 });
    v.check();
}

#[test]
fn pages_that_are_yet_to_be_freed_are_nobodys() {
    let v = &mut Volume::new(4_000);
    let a = user(1);
    let file = v.create_as(&a, "file").unwrap();
    (0..100).for_each(|n| v.write_as(&a, file, n << 16, 1 << 16).unwrap());
    assert!(v.used(Account::User(1)).0 > 1_600);
    v.limit(Account::User(1), 1_700 * PAGE, 2);
    v.set(&a, file, NewAttributes { size: Some(0), ..NewAttributes::default() }).unwrap();
    assert_eq!(v.used(Account::User(1)), (0, 1));
    v.check();
    (0..100).for_each(|n| v.write_as(&a, file, n << 16, 1 << 16).unwrap());
    v.call(&a, Request::Remove { at: at(ROOT, "file") }).ok();
    assert!(table::SUPERBLOCK.get(&v.state.service).doomed_pages > 0);
    assert_eq!(v.used(Account::User(1)), (0, 0));
    v.check();
}

/// The pages that `act` writes to.
fn written(v: &mut Volume, n: u64, act: impl FnOnce(&mut Volume)) -> BTreeSet<PageId> {
    let seal = |v: &mut Volume, n| {
        v.state.seal(SeqNum(n));
        let shipment = v.state.ship(usize::MAX).unwrap();
        let pages = shipment.pages.iter().map(|(_, page, _)| *page).collect();
        v.state.give_back(shipment.pages.into_iter().map(|(region, _, page)| (region, page)));
        pages
    };
    let _: BTreeSet<PageId> = seal(v, n);
    act(v);
    seal(v, n + 1)
}

#[test]
fn what_changes_no_count_does_not_touch_the_map() {
    let v = &mut Volume::new(200);
    let a = user(1);
    let file = v.create_as(&a, "file").unwrap();
    v.write_as(&a, file, 0, 4_096).unwrap();
    // Of an entry that is there a limit changes one page of the map, and no other.
    let mut map = written(v, 1, |v| v.limit(Account::User(1), 9 * PAGE, 9));
    assert!(map.remove(&PageId(0)), "the time of the last change");
    assert_eq!(map.len(), 1);
    let overwriting = written(v, 3, |v| v.write_as(&a, file, 100, 200).unwrap());
    assert!(overwriting.is_disjoint(&map) && !overwriting.is_empty());
    let extending = written(v, 5, |v| v.write_as(&a, file, 4_096, 200).unwrap());
    assert!(extending.is_superset(&map));
}

#[test]
fn root_sets_quotas_and_others_see_their_own() {
    let v = &mut Volume::new(400);
    for uid in 1..40 {
        v.create_as(&user(uid), &format!("{uid}")).unwrap();
    }
    v.limit(Account::Group(200), 0, 7);
    v.limit(Account::User(u32::MAX), 1, 0);
    v.limit(Account::Group(u32::MAX), u64::MAX, u64::MAX);
    let all: Vec<_> = v.quotas().into_iter().collect();
    assert_eq!(all.len(), 2 + 2 * 39 + 3);
    for count in [1, 7, 1_000, u32::MAX] {
        assert_eq!(v.listed(&Credentials::ROOT, count), all, "{count}");
    }
    let own: Vec<_> =
        [Account::User(3), Account::Group(103), Account::Group(200)].map(|it| (it, v.quotas()[&it])).into();
    for count in [1, 2, 3, 1_000] {
        assert_eq!(v.listed(&user(3), count), own, "{count}");
    }
    assert_eq!(v.listed(&user(99), 10), own[2..], "who has nothing has his group's");
    let (a, perm) = (&user(3), Err(Status::Perm));
    let limit = Amount::default();
    for account in [Account::User(4), Account::Group(104), Account::User(0), Account::User(103)] {
        assert_eq!(v.call(a, Request::GetQuota { account }).status(), perm);
        assert_eq!(v.call(a, Request::SetQuota { account, limit }).status(), perm);
    }
    assert_eq!(v.call(a, Request::SetQuota { account: Account::User(3), limit }).status(), perm, "not even his own");
    assert_eq!(v.call(a, Request::GetQuota { account: Account::User(3) }).ok().quota, own[0].1);
    assert_eq!(v.root(Request::ListQuota { cookie: 0, count: 0 }).status(), Err(Status::TooSmall));
    v.bfs.root_squash = true;
    assert_eq!(v.root(Request::SetQuota { account: Account::User(3), limit }).status(), perm);
    v.check();
}

/// Cookies of nobody, and more quotas than one answer has.
#[test]
fn a_list_goes_on_after_any_cookie() {
    let v = &mut Volume::new(1_000);
    for id in 0..1_500 {
        v.limit(Account::User(id * 2), 0, 5);
    }
    let all: Vec<_> = v.quotas().into_iter().collect();
    assert_eq!(v.listed(&Credentials::ROOT, u32::MAX), all);
    let mut after = |cookie| {
        let got = v.root(Request::ListQuota { cookie, count: 1 });
        let answer = got.ok();
        (answer.quotas.first().map(|listed| listed.account), answer.eof)
    };
    assert_eq!(after(1), (Some(Account::User(2)), false));
    assert_eq!(after(2), (Some(Account::User(2)), false), "of one that is not there");
    assert_eq!(after(1 << 32), (Some(Account::Group(0)), true));
    assert_eq!(after((1 << 32) + 1), (None, true));
    for cookie in [1 << 33, (1 << 33) + 5, u64::MAX] {
        assert_eq!(after(cookie), (None, true));
    }
}

#[test]
fn a_limit_that_finds_no_room_is_not_set() {
    let v = &mut Volume::new(20);
    let mut ids = 0..;
    let refused = loop {
        let request =
            Request::SetQuota { account: Account::User(ids.next().unwrap()), limit: Amount { bytes: 1, files: 0 } };
        let before = v.state.full_root();
        if let Err(status) = v.root(request).status() {
            assert_eq!(v.state.full_root(), before);
            break status;
        }
    };
    assert_eq!(refused, Status::NoSpc);
    v.limit(Account::User(3), 2, 2);
    v.check();
}

#[test]
fn fsck_tells_what_is_charged_wrongly() {
    let v = &mut Volume::new(200);
    let file = v.create_as(&user(1), "file").unwrap();
    v.write_as(&user(1), file, 0, 4_096).unwrap();
    v.limit(Account::User(9), 1, 0);
    v.check();
    let region = &mut v.state.service;
    let wrong = Quota { used: Amount { bytes: 8_192, files: 1 }, ..Quota::default() };
    quota::QUOTAS.store(region, &[0, 0, 0, 0, 1], &wrong).unwrap();
    quota::QUOTAS.remove(region, &[1, 0, 0, 0, 101]);
    quota::QUOTAS.store(region, &[1, 0, 0, 0, 7], &wrong).unwrap();
    quota::QUOTAS.insert(region, &[2, 0, 0, 0, 7], &[0; 32]).unwrap();
    quota::QUOTAS.insert(region, &[0, 0, 0, 0, 8], &[0; 31]).unwrap();
    let faults = fsck(region).faults;
    let expected = [
        "user 1 has 1 files with 4096 bytes, and is charged with 1 of 8192",
        "the map of quotas has an entry that is none",
        "group 7 has 0 files with 0 bytes, and is charged with 1 of 8192",
        "the map of quotas has an entry that is none",
        "group 101 has 1 files with 4096 bytes, and is charged with 0 of 0",
    ];
    assert_eq!(faults, expected);
    // What is charged with less than it has can still be removed.
    v.remove(ROOT, "file").unwrap();
}

#[test]
fn usage_at_a_snapshot_is_that_of_then() {
    let v = &mut Volume::new(400);
    let file = v.create_as(&user(1), "file").unwrap();
    v.write_as(&user(1), file, 0, 4_096).unwrap();
    v.limit(Account::User(1), 10 * PAGE, 0);
    let id = v.state.service.take_snapshot().unwrap();
    let then = v.quotas();
    v.write_as(&user(1), file, 4_096, 4_096).unwrap();
    v.limit(Account::User(1), 20 * PAGE, 0);
    let past = v.state.service.at(id).unwrap();
    let read: BTreeMap<_, _> = quota::all(&past).map(|entry| entry.unwrap()).collect();
    assert_eq!(read, then);
    assert_ne!(v.quotas(), then);
    v.check();
}

/// The sums over all inodes, one by one.
fn recount(v: &Volume) -> BTreeMap<Account, (u64, u64)> {
    let mut sums = BTreeMap::new();
    for id in 1..table::len(&v.state.service) {
        let inode = table::load(&v.state.service, InodeId(id));
        if matches!(inode.kind, Kind::Free | Kind::Doomed) {
            continue;
        }
        for account in [Account::User(inode.uid), Account::Group(inode.gid)] {
            let sum: &mut (u64, u64) = sums.entry(account).or_default();
            *sum = (sum.0 + inode.pages, sum.1 + 1);
        }
    }
    sums
}

/// One random call of one of four users, of whom the first is root.
fn any_call(v: &mut Volume, rng: &mut Rng, files: &mut [Option<Handle>]) -> (u32, Result<(), Status>) {
    let uid = rng.below(4) as u32;
    let cred = if uid == 0 { Credentials::ROOT } else { user(uid) };
    let index = rng.index(files.len());
    let name = format!("{index}");
    let Some(file) = files[index] else {
        let new = NewAttributes { size: rng.chance(200).then(|| rng.below(30_000)), ..NewAttributes::mode(0o666) };
        let at = at(ROOT, &name);
        let made = v.call(&cred, Request::Create { at, how: CreateHow::Guarded(new) });
        files[index] = made.answer().handle;
        return (uid, made.status());
    };
    let set = |new| Request::SetAttr { object: Some(file), new, guard: None };
    let kept = NewAttributes::default();
    let status = match rng.below(10) {
        0 => {
            let removed = v.call(&cred, Request::Remove { at: at(ROOT, &name) }).status();
            files[index] = if removed.is_ok() { None } else { files[index] };
            removed
        }
        1 => v.call(&cred, set(NewAttributes { size: Some(rng.below(40_000)), ..kept })).status(),
        2 => v.call(&cred, set(NewAttributes { uid: Some(rng.below(4) as u32), ..kept })).status(),
        3 => v.call(&cred, set(NewAttributes { gid: Some(*rng.pick(&[101, 102, 200])), ..kept })).status(),
        4 => v.write_as(&cred, file, rng.below(1 << 33), 1),
        _ => {
            let len = rng.index(20_000);
            v.write_as(&cred, file, rng.below(40_000), len)
        }
    };
    (uid, status)
}

#[test]
fn usage_is_what_a_recount_gives_and_passes_limits_for_root_alone() {
    let (mut refused, mut full) = (0, 0);
    for seed in 0..6 {
        let mut rng = Rng::new(seed);
        let v = &mut Volume::new(if seed % 2 == 0 { 2_000 } else { 100 });
        let mut files = vec![None; 30];
        for account in [Account::User(1), Account::User(2), Account::Group(102), Account::Group(200)] {
            v.limit(account, rng.below(60) * PAGE, rng.below(8));
        }
        for index in 0..1_500 {
            let before = v.quotas();
            let (uid, status) = any_call(v, &mut rng, &mut files);
            let after = v.quotas();
            refused += u32::from(status == Err(Status::DQuot));
            full += u32::from(status == Err(Status::NoSpc));
            assert!(uid != 0 || status != Err(Status::DQuot), "root is never refused");
            if status.is_err() {
                assert_eq!(before, after, "seed {seed}, call {index}: {status:?}");
            }
            let sums: BTreeMap<_, _> = after
                .iter()
                .map(|(account, quota)| (*account, (quota.used.bytes / PAGE, quota.used.files)))
                .filter(|(_, sum)| *sum != (0, 0))
                .collect();
            assert_eq!(sums, recount(v), "seed {seed}, call {index}");
            for (account, Quota { limit, used }) in after {
                let had = before.get(&account).copied().unwrap_or_default().used;
                let within = |used, limit, had| limit == 0 || used <= limit || used <= had;
                let kept = within(used.bytes, limit.bytes, had.bytes) && within(used.files, limit.files, had.files);
                assert!(kept || uid == 0, "seed {seed}, call {index}: {account} {used:?} of {limit:?}");
            }
        }
        v.check();
    }
    assert!(refused > 300 && full > 20, "{refused} {full}");
}
