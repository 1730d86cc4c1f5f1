//! The superblock and the table of inodes.

use super::Bfs;
use super::attributes::{Attributes, Handle};
use super::credentials::Credentials;
use super::inode::{INODE, Inode, InodeId, Kind, Stamp};
use super::quota;
use super::request::Given;
use super::snapshots;
use super::status::Status;
use crate::state::{Cell, Extent, Fixed, Pages, Region};

/// What the state begins with.
pub(super) const SUPERBLOCK: Cell<Superblock> = Cell::at(0);

/// Of the layout that this source reads and writes.
pub(super) const VERSION: u32 = 2;

/// Pages of a file that are freed by the call that removes it, and by each later one that changes anything: 4 MiB.
pub(super) const FREED_PER_CALL: u32 = 1_024;

/// What holds for the whole file system. 48 bytes in root slot 0; slots 1 and 2 are the directories', 3, 4 and 6
/// the locks', 5 is that of quotas, 7 that of snapshots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Superblock {
    pub version: u32,
    /// The table of inodes: [`INODE`] bytes for each, those of 0 unused.
    pub table: Extent,
    /// The first inode on the list of those that are free.
    pub free: InodeId,
    /// The first on the list of those whose pages are being freed.
    pub doomed: InodeId,
    /// Pages that those still have.
    pub doomed_pages: u64,
    /// Inodes of files.
    pub files: u64,
    /// The time of the last call that changed something, in nanoseconds.
    pub time: u64,
}

impl Fixed for Superblock {
    const SIZE: usize = 48;
    fn decode(bytes: &[u8]) -> Superblock {
        let (head, counts) = bytes.split_at(24);
        let ((version, table, free, doomed), (doomed_pages, files, time)) =
            (Fixed::decode(head), Fixed::decode(counts));
        Superblock { version, table, free: InodeId(free), doomed: InodeId(doomed), doomed_pages, files, time }
    }
    fn encode(&self, bytes: &mut [u8]) {
        let (head, counts) = bytes.split_at_mut(24);
        (self.version, self.table, self.free.0, self.doomed.0).encode(head);
        (self.doomed_pages, self.files, self.time).encode(counts);
    }
}

fn offset(id: InodeId) -> u64 {
    u64::from(id.0) * INODE as u64
}

/// Inodes that the table has, that of 0 and unused ones included.
pub(super) fn len<P: Pages>(region: &P) -> u32 {
    (SUPERBLOCK.get(region).table.len() / INODE as u64) as u32
}

/// An inode; a free one beyond the table.
pub(super) fn load<P: Pages>(region: &P, id: InodeId) -> Inode {
    let mut bytes = [0; INODE];
    SUPERBLOCK.get(region).table.read(region, offset(id), &mut bytes);
    Inode::from_bytes(&bytes)
}

/// Writes an inode that is in the table, where nobody is charged with more by that.
pub(super) fn store(region: &mut Region, id: InodeId, inode: &Inode) {
    settle_and_store(region, id, inode, false).expect("whoever is charged with less has an entry")
}

/// Writes an inode that is in the table: for one who may be charged with more, by `cred`. To be attempted.
pub(super) fn store_charged(region: &mut Region, cred: &Credentials, id: InodeId, inode: &Inode) -> Result<(), Status> {
    settle_and_store(region, id, inode, !cred.is_root())
}

/// Everything that becomes of an inode goes through here, so that what its owner and group are charged with is what the
/// table says.
fn settle_and_store(region: &mut Region, id: InodeId, inode: &Inode, limited: bool) -> Result<(), Status> {
    let mut table = SUPERBLOCK.get(region).table;
    assert!(offset(id) + INODE as u64 <= table.len(), "inode {} is in the table", id.0);
    quota::settle(region, &load(region, id), inode, limited)?;
    table.write(region, offset(id), &inode.to_bytes()).expect("a page that was written before is there");
    Ok(())
}

/// The inode of a handle, to be changed: what is past stays as it was.
pub(super) fn find(region: &Region, given: Given) -> Result<(InodeId, Inode), Status> {
    match given.ok_or(Status::BadHandle)? {
        Handle::Now { .. } => view(region, given),
        Handle::Snapshots | Handle::Then { .. } => Err(Status::RoFs),
    }
}

/// The inode of a handle, to be read. A file as it was is found in the region as it was then, the directory of
/// snapshots in that of now.
pub(super) fn view<P: Pages>(region: &P, given: Given) -> Result<(InodeId, Inode), Status> {
    let (id, generation) = match (given.ok_or(Status::BadHandle)?, region.snapshot()) {
        (Handle::Now { inode, generation }, None) => (inode, Some(generation)),
        (Handle::Then { snapshot, inode }, Some(there)) if snapshot == there => (inode, None),
        (Handle::Then { snapshot, .. }, None) => return Err(snapshots::missing(region.now(), snapshot)),
        (Handle::Snapshots, None) => return Ok((InodeId::SNAPSHOTS, snapshots::directory(region.now()))),
        _ => return Err(Status::Stale),
    };
    if id == InodeId::NONE || id.0 >= len(region) {
        return Err(Status::BadHandle);
    }
    let inode = load(region, id);
    let same = generation.is_none_or(|generation| generation == inode.generation);
    if inode.is_file() && same { Ok((id, inode)) } else { Err(Status::Stale) }
}

/// The handle of an inode that is a file's.
pub(super) fn handle<P: Pages>(region: &P, id: InodeId, inode: &Inode) -> Handle {
    match region.snapshot() {
        Some(snapshot) => Handle::Then { snapshot, inode: id },
        None if id == InodeId::SNAPSHOTS => Handle::Snapshots,
        None => Handle::Now { inode: id, generation: inode.generation },
    }
}

/// The attributes of an inode that is a file's.
pub(super) fn attributes<P: Pages>(region: &P, id: InodeId, inode: &Inode) -> Attributes {
    Attributes::of(handle(region, id, inode), inode)
}

/// Lays out an empty file system: the superblock and the root directory.
pub(super) fn genesis(region: &mut Region, bfs: &Bfs) -> Result<(), Status> {
    let root = Inode {
        kind: Kind::Directory,
        mode: bfs.mode & super::stat::MODE,
        uid: bfs.uid,
        gid: bfs.gid,
        links: 2,
        parent: InodeId::ROOT,
        next_cookie: super::directory::FIRST_COOKIE,
        ..Inode::default()
    };
    let mut table = Extent::default();
    table.write(region, offset(InodeId::ROOT), &root.to_bytes())?;
    let superblock = Superblock {
        version: VERSION,
        table,
        free: InodeId::NONE,
        doomed: InodeId::NONE,
        doomed_pages: 0,
        files: 1,
        time: 0,
    };
    SUPERBLOCK.set(region, superblock);
    quota::settle(region, &Inode::default(), &root, false)
}

/// The time of a call that changes something: the agreed one, and later than any before.
pub(super) fn tick(region: &mut Region, proposed: u64) -> Stamp {
    let superblock = SUPERBLOCK.update(region, |superblock| Superblock {
        time: proposed.max(superblock.time.saturating_add(1)),
        ..superblock
    });
    Stamp::from_nanos(superblock.time)
}

/// An inode for a new file that `cred` makes, `inode` but for its generation, which is agreed here. To be attempted.
pub(super) fn allocate(region: &mut Region, cred: &Credentials, inode: Inode) -> Result<(InodeId, Inode), Status> {
    let mut superblock = SUPERBLOCK.get(region);
    let id;
    let mut inode = inode;
    if superblock.free == InodeId::NONE {
        let next = superblock.table.len() / INODE as u64;
        id = u32::try_from(next).ok().filter(|&id| id < u32::MAX).map(InodeId).ok_or(Status::NoSpc)?;
        inode.generation = 0;
        superblock.table.write(region, offset(id), &Inode::default().to_bytes())?;
    } else {
        id = superblock.free;
        let before = load(region, id);
        superblock.free = before.parent;
        inode.generation = before.generation;
    }
    superblock.files += 1;
    SUPERBLOCK.set(region, superblock);
    store_charged(region, cred, id, &inode)?;
    Ok((id, inode))
}

/// The last name of a file is gone: so are its inode's generation, its locks and its content, the latter in steps if it is
/// long.
pub(super) fn release(region: &mut Region, id: InodeId, inode: &Inode) {
    super::locks::forget_file(region, id);
    let mut superblock = SUPERBLOCK.get(region);
    superblock.files -= 1;
    SUPERBLOCK.set(region, superblock);
    doom(region, id, inode.generation + 1, inode.content, inode.pages);
}

/// Gives up content that is not (any more) a file's: at once if it is short, else it is left to [`free_doomed`]. False,
/// and nothing happens, if there is no inode to keep it in meanwhile.
pub(super) fn give_up(region: &mut Region, content: Extent, pages: u64) -> bool {
    if pages <= FREED_PER_CALL.into() {
        content.free(region);
        return true;
    }
    let before = SUPERBLOCK.get(region).files;
    let keeper = region.attempt(|region| allocate(region, &Credentials::ROOT, Inode::default()));
    let Ok((id, keeper)) = keeper else { return false };
    SUPERBLOCK.update(region, |superblock| Superblock { files: before, ..superblock });
    // No handle was made of it, so its generation can stay.
    doom(region, id, keeper.generation, content, pages);
    true
}

fn doom(region: &mut Region, id: InodeId, generation: u64, content: Extent, pages: u64) {
    let mut superblock = SUPERBLOCK.get(region);
    let mut inode = Inode { generation, ..Inode::default() };
    if pages > FREED_PER_CALL.into() {
        inode = Inode { kind: Kind::Doomed, content, pages, parent: superblock.doomed, ..inode };
        superblock.doomed = id;
        superblock.doomed_pages += pages;
    } else {
        content.free(region);
        inode.parent = superblock.free;
        superblock.free = id;
    }
    SUPERBLOCK.set(region, superblock);
    store(region, id, &inode);
}

/// Frees up to `budget` pages of what is doomed; whether nothing is left of it.
pub(super) fn free_doomed(region: &mut Region, mut budget: u32) -> bool {
    loop {
        let superblock = SUPERBLOCK.get(region);
        let id = superblock.doomed;
        if id == InodeId::NONE || budget == 0 {
            return id == InodeId::NONE;
        }
        let mut inode = load(region, id);
        let before = region.balance();
        let done = inode.content.free_some(region, budget);
        let freed = u32::try_from(before - region.balance()).expect("no more than the budget is freed");
        budget -= freed;
        let mut superblock = Superblock { doomed_pages: superblock.doomed_pages - u64::from(freed), ..superblock };
        inode.pages -= u64::from(freed);
        if done {
            superblock.doomed = inode.parent;
            inode = Inode { generation: inode.generation, parent: superblock.free, ..Inode::default() };
            superblock.free = id;
        }
        SUPERBLOCK.set(region, superblock);
        store(region, id, &inode);
    }
}
