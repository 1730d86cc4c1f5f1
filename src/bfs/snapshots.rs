//! The directory of snapshots: `mkdir /.snapshot/NAME` takes one, `rmdir` removes it, what is below is the file system as
//! it was. Whoever owns the root directory may do either, everybody may look.
//!
//! ```text
//! root slot 7: map   name -> snapshot u64    names never contain NUL
//!                    NUL  -> time u64        when the directory changed last, in nanoseconds
//! ```
//! A name counts as long as the region has its snapshot: removing one never needs room, not
//! even where taking its name out of the map would; then the name stays in the map until the next change.

use std::collections::BTreeSet;

use super::attributes::{Attributes, Handle, SNAPSHOT_MAX};
use super::credentials::{Credentials, WRITE};
use super::directory;
use super::inode::{Inode, InodeId, Kind, Stamp};
use super::status::Status;
use super::table::{self, SUPERBLOCK};
use crate::state::{Map, Region, SnapshotId};

pub(super) const SNAPSHOTS: Map = Map::at(7);

/// Under which the map has the time of the directory's last change.
pub(super) const CHANGED: &[u8] = &[0];

/// The directory's own permissions.
const MODE: u32 = 0o755;

/// A snapshot with a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Kept {
    pub id: SnapshotId,
    pub name: Vec<u8>,
}

impl Kept {
    /// Its cookie in the directory, after those of `.` and `..`.
    pub fn cookie(&self) -> u64 {
        self.id.0 + 2
    }
}

/// All that have names, oldest first.
pub(super) fn list(region: &Region) -> Vec<Kept> {
    let taken: BTreeSet<SnapshotId> = region.snapshots().iter().map(|taken| taken.id).collect();
    if taken.is_empty() {
        return Vec::new();
    }
    let mut all: Vec<Kept> = SNAPSHOTS
        .iter(region)
        .filter(|(name, _)| *name != CHANGED)
        .map(|(name, value)| Kept { id: SnapshotId(value.decode()), name: name.to_vec() })
        .filter(|kept| taken.contains(&kept.id))
        .collect();
    all.sort_by_key(|kept| kept.id);
    all
}

/// The directory, as if it had an inode.
pub(super) fn directory(region: &Region) -> Inode {
    let root = table::load(region, InodeId::ROOT);
    let entries = region.snapshots().len();
    let time = Stamp::from_nanos(SNAPSHOTS.load(region, CHANGED).unwrap_or_default());
    Inode {
        kind: Kind::Directory,
        mode: MODE,
        uid: root.uid,
        gid: root.gid,
        links: 2 + entries as u32,
        parent: InodeId::ROOT,
        entries: entries as u64,
        accessed: time,
        modified: time,
        changed: time,
        ..Inode::default()
    }
}

/// What a snapshot's name leads to: the root directory as it was. Of one that cannot be read any more no more is left
/// than that nobody may enter it.
pub(super) fn root(region: &Region, snapshot: SnapshotId) -> (Handle, Attributes) {
    let handle = Handle::Then { snapshot, inode: InodeId::ROOT };
    let inode = match region.at(snapshot) {
        Some(past) => table::load(&past, InodeId::ROOT),
        None => Inode { mode: 0, links: 2, entries: 0, ..directory(region) },
    };
    (handle, Attributes::of(handle, &inode))
}

/// Why a snapshot cannot be read.
pub(super) fn missing(region: &Region, snapshot: SnapshotId) -> Status {
    if region.snapshots().iter().any(|taken| taken.id == snapshot) { Status::Io } else { Status::Stale }
}

/// LOOKUP in the directory.
pub(super) fn lookup(region: &Region, name: &[u8]) -> Result<(Handle, Attributes), Status> {
    Ok(match name {
        b"." => (Handle::Snapshots, Attributes::of(Handle::Snapshots, &directory(region))),
        b".." => (Handle::ROOT, Attributes::of(Handle::ROOT, &table::load(region, InodeId::ROOT))),
        name => root(region, find(region, name).ok_or(Status::NoEnt)?.id),
    })
}

fn find(region: &Region, name: &[u8]) -> Option<Kept> {
    list(region).into_iter().find(|kept| kept.name == name)
}

fn check(region: &Region, cred: &Credentials, name: &[u8]) -> Result<(), Status> {
    cred.check(&directory(region), WRITE)?;
    directory::check_name(name)
}

/// After a change: the map has exactly the names that count, and says when it was. To be attempted; where a snapshot was
/// removed it need not succeed.
pub(super) fn settle(region: &mut Region) -> Result<(), Status> {
    let kept: Vec<Vec<u8>> = list(region).into_iter().map(|kept| kept.name).collect();
    let all: Vec<Vec<u8>> = SNAPSHOTS.iter(region).map(|(name, _)| name.to_vec()).collect();
    for name in all.iter().filter(|name| *name != CHANGED && !kept.contains(name)) {
        SNAPSHOTS.remove(region, name);
    }
    let now = SUPERBLOCK.get(region).time;
    SNAPSHOTS.store(region, CHANGED, &now)?;
    Ok(())
}

/// MKDIR in the directory: takes a snapshot. [`Status::NoSpc`] if there is no room for it, or there are
/// [`Region::SNAPSHOTS_MAX`]. To be attempted.
pub(super) fn take(region: &mut Region, cred: &Credentials, name: &[u8]) -> Result<(Handle, Attributes), Status> {
    check(region, cred, name)?;
    if matches!(name, b"." | b"..") || find(region, name).is_some() {
        return Err(Status::Exist);
    }
    let id = region.take_snapshot()?;
    if id.0 > SNAPSHOT_MAX {
        return Err(Status::NoSpc);
    }
    // After the names that do not count any more are gone: this may be one of them.
    settle(region)?;
    SNAPSHOTS.store(region, name, &id.0)?;
    Ok(root(region, id))
}

/// Which snapshot RMDIR in the directory removes.
pub(super) fn to_remove(region: &Region, cred: &Credentials, name: &[u8]) -> Result<SnapshotId, Status> {
    check(region, cred, name)?;
    match name {
        b"." => Err(Status::Inval),
        b".." => Err(Status::NotEmpty),
        name => find(region, name).map(|kept| kept.id).ok_or(Status::NoEnt),
    }
}
