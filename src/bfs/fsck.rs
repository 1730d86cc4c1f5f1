//! Whether a file system fits together: what `castra bfs fsck` runs, and every test after itself.

use std::collections::{BTreeMap, BTreeSet};

use super::directory::{self, COOKIES, FIRST_COOKIE, NAMES};
use super::inode::{INODE, Inode, InodeId, Kind};
use super::locks::{self, HELD, LEASES, LOCKS};
use super::quota::{self, Account, Amount, QUOTAS};
use super::snapshots::{CHANGED, SNAPSHOTS};
use super::table::{self, SUPERBLOCK, VERSION};
use crate::execution::Inspection;
use crate::state::{Audit, Pages, Region};

/// What the check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fsck {
    /// Directories.
    pub directories: u64,
    /// Files that are no directories.
    pub files: u64,
    /// Bytes of all regular files together, holes included.
    pub bytes: u128,
    /// Snapshots, those that cannot be read any more included.
    pub snapshots: u64,
    /// Locked ranges of files.
    pub locks: u64,
    /// Pages in use.
    pub pages_used: u64,
    /// Pages on the list of free ones.
    pub pages_free: u64,
    /// One sentence for each fault; of very many the first.
    pub faults: Vec<String>,
}

impl From<Fsck> for Inspection {
    fn from(found: Fsck) -> Inspection {
        let counts = vec![
            ("directories", found.directories),
            ("files", found.files),
            // Files with holes may have more together than this can say.
            ("bytes", u64::try_from(found.bytes).unwrap_or(u64::MAX)),
            ("snapshots", found.snapshots),
            ("locks", found.locks),
            ("pages used", found.pages_used),
            ("pages free", found.pages_free),
        ];
        Inspection { counts, faults: found.faults }
    }
}

/// Checks everything: that every page belongs to one thing or is free, that names lead to files and files have as many
/// names as they count, that directories form a tree and both their maps agree, that the lists of unused inodes hold
/// exactly those, that users and groups are charged with what they have, that locks exclude each other and are of files
/// that there are, and every count; and the same of the file system as it was at each snapshot. Of maps that are no trees
/// it says so, and nothing else. It takes memory and time by pages and files. It does not change anything, and does not
/// panic whatever the pages of inodes hold.
pub fn fsck(region: &Region) -> Fsck {
    let mut report = check(region, Audit::new(region));
    for taken in region.snapshots() {
        report.snapshots += 1;
        let Some(past) = region.at(taken.id) else { continue };
        let then = check(&past, Audit::past(&past)).faults;
        let room = Audit::FAULTS_MAX.saturating_sub(report.faults.len());
        report.faults.extend(then.into_iter().take(room).map(|fault| format!("in snapshot {}: {fault}", taken.id.0)));
    }
    report
}

fn check<'a, P: Pages>(region: &'a P, audit: Audit<'a, P>) -> Fsck {
    let superblock = SUPERBLOCK.get(region);
    let mut check = Check { region, audit, inodes: BTreeMap::new(), report: Fsck::default() };
    if superblock.version != VERSION {
        check.audit.fault(format!("the superblock has version {}; this is {VERSION}", superblock.version));
        check.report.faults = check.audit.finish().faults;
        return check.report;
    }
    if !check.maps() {
        // A walk along trees that share pages may go in circles. What else they lead to is anyone's guess.
        check.report.faults = check.audit.faults().to_vec();
        return check.report;
    }
    check.pages();
    let names = check.names();
    check.links(&names);
    check.tree();
    check.lists();
    check.snapshots();
    check.quotas();
    check.locks();
    let Check { audit, mut report, .. } = check;
    let audit = audit.finish();
    (report.pages_used, report.pages_free, report.faults) = (audit.used, audit.free, audit.faults);
    report
}

struct Check<'a, P> {
    region: &'a P,
    audit: Audit<'a, P>,
    /// Those that are not free.
    inodes: BTreeMap<InodeId, Inode>,
    report: Fsck,
}

impl<P: Pages> Check<'_, P> {
    /// Whether the pages of all maps are theirs alone, so that they are trees.
    fn maps(&mut self) -> bool {
        let before = self.audit.faults().len();
        self.audit.map("the map of names", NAMES);
        self.audit.map("the map of cookies", COOKIES);
        self.audit.map("the map of snapshots", SNAPSHOTS);
        self.audit.map("the map of quotas", QUOTAS);
        self.audit.map("the map of locks", LOCKS);
        self.audit.map("the map of leases", LEASES);
        self.audit.map("the map of held locks", HELD);
        self.audit.faults().len() == before
    }

    /// Whose the other pages are; reads the inodes.
    fn pages(&mut self) {
        let superblock = SUPERBLOCK.get(self.region);
        self.audit.extent("the table of inodes", &superblock.table);
        if !superblock.table.len().is_multiple_of(INODE as u64) {
            self.audit.fault(format!("the table of inodes has {} bytes", superblock.table.len()));
        }
        let (mut files, mut doomed) = (0, 0);
        for id in (1..table::len(self.region)).map(InodeId) {
            let inode = table::load(self.region, id);
            if inode.kind == Kind::Free {
                if inode.pages != 0 || !inode.content.is_empty() {
                    self.audit.fault(format!("inode {} is free and has content", id.0));
                }
                continue;
            }
            let pages = self.audit.extent(&format!("inode {}", id.0), &inode.content);
            if pages != inode.pages {
                self.audit.fault(format!("inode {} has {pages} pages and counts {}", id.0, inode.pages));
            }
            match inode.kind {
                Kind::Doomed => doomed += pages,
                Kind::Directory => self.report.directories += 1,
                Kind::Regular => {
                    self.report.files += 1;
                    self.report.bytes += u128::from(inode.size());
                }
                _ => self.report.files += 1,
            }
            files += u64::from(inode.is_file());
            self.inodes.insert(id, inode);
        }
        if files != superblock.files {
            self.audit.fault(format!("there are {files} files, and the superblock counts {}", superblock.files));
        }
        if doomed != superblock.doomed_pages {
            self.audit
                .fault(format!("{doomed} pages are doomed, and the superblock counts {}", superblock.doomed_pages));
        }
    }

    /// The entries of each directory by both maps, which must agree: which inodes they lead to.
    fn names(&mut self) -> BTreeMap<InodeId, Vec<InodeId>> {
        let mut entries: BTreeMap<InodeId, Vec<InodeId>> = BTreeMap::new();
        for (key, value) in NAMES.iter(self.region) {
            let Some((directory, name)) = key.split_first_chunk() else {
                self.audit.fault(format!("the map of names has a key of {} bytes", key.len()));
                continue;
            };
            let directory = InodeId(u32::from_be_bytes(*directory));
            let shown = String::from_utf8_lossy(name);
            if value.len() != 12 {
                self.audit.fault(format!("{shown:?} in inode {} has no entry", directory.0));
                continue;
            }
            let (cookie, target): (u64, u32) = value.decode();
            if directory::check_name(name).is_err() || matches!(name, b"." | b"..") {
                self.audit.fault(format!("{shown:?} in inode {} is no name", directory.0));
            }
            let key = [&directory.0.to_be_bytes()[..], &cookie.to_be_bytes()].concat();
            let listed = [&target.to_be_bytes(), name].concat();
            if COOKIES.get(self.region, &key).as_deref() != Some(&listed) {
                self.audit.fault(format!("{shown:?} in inode {} is not listed under its cookie {cookie}", directory.0));
            }
            match self.inodes.get(&directory) {
                Some(inode) if inode.kind == Kind::Directory => {
                    if !(FIRST_COOKIE..inode.next_cookie).contains(&cookie) {
                        self.audit.fault(format!("{shown:?} in inode {} has the cookie {cookie}", directory.0));
                    }
                }
                _ => self.audit.fault(format!("{shown:?} is in inode {}, which is no directory", directory.0)),
            }
            entries.entry(directory).or_default().push(InodeId(target));
        }
        if NAMES.len(self.region) != COOKIES.len(self.region) {
            let (names, cookies) = (NAMES.len(self.region), COOKIES.len(self.region));
            self.audit.fault(format!("there are {names} names and {cookies} cookies"));
        }
        entries
    }

    /// Every file has as many names as it says, every directory one, and as many entries as it says.
    fn links(&mut self, entries: &BTreeMap<InodeId, Vec<InodeId>>) {
        let mut named: BTreeMap<InodeId, u32> = BTreeMap::new();
        for (directory, targets) in entries {
            for target in targets {
                *named.entry(*target).or_default() += 1;
                match self.inodes.get(target) {
                    Some(inode) if inode.kind == Kind::Directory && inode.parent != *directory => {
                        let text = format!(
                            "inode {} is in {} and has {} for its parent",
                            target.0, directory.0, inode.parent.0
                        );
                        self.audit.fault(text);
                    }
                    Some(inode) if inode.is_file() => {}
                    _ => self
                        .audit
                        .fault(format!("inode {} has an entry for {}, which is no file", directory.0, target.0)),
                }
            }
        }
        for (id, inode) in self.inodes.iter().filter(|(_, inode)| inode.is_file()) {
            let names = named.get(id).copied().unwrap_or(0);
            let within = entries.get(id).map_or(&[][..], Vec::as_slice);
            if inode.kind != Kind::Directory {
                if names == 0 {
                    self.audit.fault(format!("inode {} is a file without a name", id.0));
                } else if names != inode.links {
                    self.audit.fault(format!("inode {} has {names} names and counts {}", id.0, inode.links));
                }
                continue;
            }
            if names != u32::from(*id != InodeId::ROOT) {
                self.audit.fault(format!("inode {} is a directory with {names} names", id.0));
            }
            if within.len() as u64 != inode.entries {
                self.audit.fault(format!("inode {} has {} entries and counts {}", id.0, within.len(), inode.entries));
            }
            let is_directory = |id: &&InodeId| self.inodes.get(id).is_some_and(|inode| inode.kind == Kind::Directory);
            let links = 2 + within.iter().filter(is_directory).count() as u64;
            if links != u64::from(inode.links) {
                self.audit.fault(format!("inode {} has {links} links and counts {}", id.0, inode.links));
            }
        }
    }

    /// From every directory the way up ends in the root.
    fn tree(&mut self) {
        if self
            .inodes
            .get(&InodeId::ROOT)
            .is_none_or(|root| root.kind != Kind::Directory || root.parent != InodeId::ROOT)
        {
            self.audit.fault("the root is no directory of its own".to_owned());
        }
        let mut rooted = BTreeSet::from([InodeId::ROOT]);
        for (start, _) in self.inodes.iter().filter(|(_, inode)| inode.kind == Kind::Directory) {
            let (mut way, mut id) = (BTreeSet::new(), *start);
            while !rooted.contains(&id) && way.insert(id) {
                id = self.inodes.get(&id).map_or(InodeId::NONE, |inode| inode.parent);
            }
            if rooted.contains(&id) {
                rooted.append(&mut way);
            } else {
                self.audit.fault(format!("from inode {} no way leads up to the root", start.0));
            }
        }
    }

    /// Locks are of files, and exclude each other.
    fn locks(&mut self) {
        self.report.locks = LOCKS.len(self.region);
        let lockable = |id| self.inodes.get(&id).is_some_and(|it| matches!(it.kind, Kind::Regular | Kind::Directory));
        for fault in locks::faults(self.region, lockable) {
            self.audit.fault(fault);
        }
    }

    /// The lists of free and of doomed inodes hold exactly those.
    fn lists(&mut self) {
        let superblock = SUPERBLOCK.get(self.region);
        for (name, first, kind) in [("free", superblock.free, Kind::Free), ("doomed", superblock.doomed, Kind::Doomed)]
        {
            let (mut listed, mut id) = (0, first);
            let all = u64::from(table::len(self.region));
            while id != InodeId::NONE && listed <= all {
                if id.0 >= table::len(self.region) || table::load(self.region, id).kind != kind {
                    self.audit.fault(format!("inode {} is on the list of {name} ones", id.0));
                    break;
                }
                listed += 1;
                id = table::load(self.region, id).parent;
            }
            let of_kind = match kind {
                Kind::Free => all.saturating_sub(1 + self.inodes.len() as u64),
                _ => self.inodes.values().filter(|inode| inode.kind == kind).count() as u64,
            };
            if listed != of_kind {
                self.audit.fault(format!("{of_kind} inodes are {name}, and their list has {listed}"));
            }
        }
    }

    /// Names of snapshots are names, with what belongs to one. Their snapshots may be gone.
    fn snapshots(&mut self) {
        for (name, value) in SNAPSHOTS.iter(self.region) {
            if value.len() != 8 || (name != CHANGED && directory::check_name(name).is_err()) {
                self.audit.fault(format!("{:?} is no name of a snapshot", String::from_utf8_lossy(name)));
            }
        }
    }

    /// Users and groups are charged with what they have, as it is counted anew.
    fn quotas(&mut self) {
        let mut counted: BTreeMap<Account, Amount> = BTreeMap::new();
        for inode in self.inodes.values() {
            let has = Amount::of(inode);
            for account in [Account::User(inode.uid), Account::Group(inode.gid)] {
                let sum = counted.entry(account).or_default();
                sum.bytes = sum.bytes.saturating_add(has.bytes);
                sum.files += has.files;
            }
        }
        // Doomed inodes are nobody's.
        counted.retain(|_, sum| *sum != Amount::default());
        for entry in quota::all(self.region) {
            let Some((account, quota)) = entry else {
                self.audit.fault("the map of quotas has an entry that is none".to_owned());
                continue;
            };
            self.usage(account, counted.remove(&account).unwrap_or_default(), quota.used);
        }
        for (account, sum) in counted {
            self.usage(account, sum, Amount::default());
        }
    }

    fn usage(&mut self, account: Account, counted: Amount, charged: Amount) {
        if counted != charged {
            let (has, of) = (counted.files, counted.bytes);
            let (is, with) = (charged.files, charged.bytes);
            let text = format!("{account} has {has} files with {of} bytes, and is charged with {is} of {with}");
            self.audit.fault(text);
        }
    }
}
