//! Directories: two ordered maps over all of them, by name and by cookie.
//!
//! ```text
//! names    directory u32, name        -> cookie u64, inode u32
//! cookies  directory u32, cookie u64  -> inode u32, name
//! ```
//! Keys are big-endian, so that their order is that of the numbers. `.` and `..` are not kept: they follow from the inode.
//! A cookie is never used again in its directory: a listing that goes on after one misses nothing and repeats nothing,
//! whatever was removed or created meanwhile.

use std::ops::Bound;

use super::credentials::{Credentials, EXECUTE};
use super::inode::{Inode, InodeId, Kind};
use super::request::Given;
use super::status::Status;
use super::table;
use crate::state::{Map, Pages, Region};

pub(super) const NAMES: Map = Map::at(1);
pub(super) const COOKIES: Map = Map::at(2);

/// The longest name.
pub const NAME_MAX: usize = 255;

/// The directory of snapshots, in the root directory.
pub const SNAPSHOTS_NAME: &[u8] = b".snapshot";

/// The cookies of `.` and `..` are 1 and 2.
pub(super) const FIRST_COOKIE: u64 = 3;

/// Names that one file may have, and directories that one may hold, plus two.
pub const LINKS_MAX: u32 = 65_000;

/// An entry of a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub cookie: u64,
    pub inode: InodeId,
}

/// What a name may be.
pub(super) fn check_name(name: &[u8]) -> Result<(), Status> {
    match name {
        [] => Err(Status::Inval),
        name if name.len() > NAME_MAX => Err(Status::NameTooLong),
        name if name.iter().any(|&b| b == b'/' || b == 0) => Err(Status::Inval),
        _ => Ok(()),
    }
}

fn only_directory((id, inode): (InodeId, Inode)) -> Result<(InodeId, Inode), Status> {
    if inode.kind == Kind::Directory { Ok((id, inode)) } else { Err(Status::NotDir) }
}

/// The directory of a handle, to be read.
pub(super) fn view<P: Pages>(region: &P, given: Given) -> Result<(InodeId, Inode), Status> {
    table::view(region, given).and_then(only_directory)
}

/// The directory of a handle, to be changed: the caller may look for names in it, and what else is `wanted`.
pub(super) fn open(region: &Region, given: Given, cred: &Credentials, wanted: u32) -> Result<(InodeId, Inode), Status> {
    let (id, inode) = table::find(region, given).and_then(only_directory)?;
    cred.check(&inode, wanted | EXECUTE)?;
    Ok((id, inode))
}

/// Whether this is the name of the directory of snapshots. It is not listed, and cannot be changed.
pub(super) fn is_snapshots(directory: InodeId, name: &[u8]) -> bool {
    directory == InodeId::ROOT && name == SNAPSHOTS_NAME
}

fn name_key(directory: InodeId, name: &[u8]) -> Vec<u8> {
    [&directory.0.to_be_bytes(), name].concat()
}

fn cookie_key(directory: InodeId, cookie: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&directory.0.to_be_bytes());
    key[4..].copy_from_slice(&cookie.to_be_bytes());
    key
}

/// The entry of a name, of other names than `.` and `..`.
pub(super) fn lookup<P: Pages>(region: &P, directory: InodeId, name: &[u8]) -> Option<Entry> {
    let (cookie, inode) = NAMES.load(region, &name_key(directory, name))?;
    Some(Entry { cookie, inode: InodeId(inode) })
}

/// Enters a name that is not there. `inode` is the directory's, to be stored by the caller. To be attempted.
pub(super) fn enter(
    region: &mut Region,
    directory: InodeId,
    inode: &mut Inode,
    name: &[u8],
    target: InodeId,
) -> Result<(), Status> {
    let cookie = inode.next_cookie;
    inode.next_cookie += 1;
    inode.entries += 1;
    set(region, directory, name, Entry { cookie, inode: target })
}

/// Sets the entry of a name, which keeps its cookie if it had one. To be attempted.
pub(super) fn set(region: &mut Region, directory: InodeId, name: &[u8], entry: Entry) -> Result<(), Status> {
    NAMES.store(region, &name_key(directory, name), &(entry.cookie, entry.inode.0))?;
    let value = [&entry.inode.0.to_be_bytes(), name].concat();
    COOKIES.insert(region, &cookie_key(directory, entry.cookie), &value)?;
    Ok(())
}

/// Removes a name. `inode` is the directory's, to be stored by the caller.
pub(super) fn leave(region: &mut Region, directory: InodeId, inode: &mut Inode, name: &[u8], cookie: u64) {
    let named = NAMES.remove(region, &name_key(directory, name));
    let listed = COOKIES.remove(region, &cookie_key(directory, cookie));
    assert!(named && listed, "an entry is in both maps");
    inode.entries -= 1;
}

/// The entries after `cookie`, `.` and `..` not among them: cookie, inode and name, by cookie.
pub(super) fn list<P: Pages>(
    region: &P,
    directory: InodeId,
    cookie: u64,
) -> impl Iterator<Item = (u64, InodeId, Vec<u8>)> + '_ {
    let from = cookie_key(directory, cookie);
    let to = cookie_key(directory, u64::MAX);
    COOKIES.range(region, Bound::Excluded(&from), Bound::Included(&to)).filter_map(|(key, value)| {
        let value = value.bytes();
        let (inode, name) = value.split_first_chunk()?;
        let cookie = u64::from_be_bytes(*key.last_chunk()?);
        Some((cookie, InodeId(u32::from_be_bytes(*inode)), name.to_vec()))
    })
}
