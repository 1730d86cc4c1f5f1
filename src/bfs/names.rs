//! REMOVE, RMDIR, RENAME, LINK (RFC 1813, sections 3.3.12 to 3.3.15). All to be attempted.

use super::credentials::{Credentials, WRITE};
use super::directory::{self, Entry, LINKS_MAX};
use super::inode::{Inode, InodeId, Kind, Stamp};
use super::request::{Given, Place};
use super::status::Status;
use super::table;
use crate::state::Region;

fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// The entry of a name, and the inode that it leads to.
fn entry(region: &Region, directory: InodeId, name: &[u8]) -> Result<(Entry, Inode), Status> {
    let entry = directory::lookup(region, directory, name).ok_or(Status::NoEnt)?;
    Ok((entry, table::load(region, entry.inode)))
}

/// One name less for a file; without any it is gone. A directory has but one.
fn unlink(region: &mut Region, id: InodeId, mut inode: Inode, now: Stamp) {
    if inode.kind == Kind::Directory || inode.links <= 1 {
        table::release(region, id, &inode);
    } else {
        inode.links -= 1;
        inode.changed = now;
        table::store(region, id, &inode);
    }
}

/// REMOVE (`directories` false) and RMDIR (true).
pub(super) fn remove(
    region: &mut Region,
    cred: &Credentials,
    now: Stamp,
    at: Place<'_>,
    directories: bool,
) -> Result<(), Status> {
    let (id, mut parent) = directory::open(region, at.directory, cred, WRITE)?;
    directory::check_name(at.name)?;
    match at.name {
        b"." => return Err(Status::Inval),
        b".." => return Err(if directories { Status::NotEmpty } else { Status::Inval }),
        name if directory::is_snapshots(id, name) => return Err(Status::Perm),
        _ => {}
    }
    let (entry, inode) = entry(region, id, at.name)?;
    if cred.is_held_off(&parent, &inode) {
        return Err(Status::Perm);
    }
    match (inode.kind == Kind::Directory, directories) {
        (true, false) => return Err(Status::IsDir),
        (false, true) => return Err(Status::NotDir),
        (true, true) if inode.entries > 0 => return Err(Status::NotEmpty),
        (true, true) => parent.links -= 1,
        (false, false) => {}
    }
    directory::leave(region, id, &mut parent, at.name, entry.cookie);
    (parent.modified, parent.changed) = (now, now);
    table::store(region, id, &parent);
    unlink(region, entry.inode, inode, now);
    Ok(())
}

/// RENAME.
pub(super) fn rename(
    region: &mut Region,
    cred: &Credentials,
    now: Stamp,
    from: Place<'_>,
    to: Place<'_>,
) -> Result<(), Status> {
    let (old_id, old) = directory::open(region, from.directory, cred, WRITE)?;
    let (new_id, new) = directory::open(region, to.directory, cred, WRITE)?;
    directory::check_name(from.name)?;
    directory::check_name(to.name)?;
    if is_dot(from.name) || is_dot(to.name) {
        return Err(Status::Inval);
    }
    if directory::is_snapshots(old_id, from.name) || directory::is_snapshots(new_id, to.name) {
        return Err(Status::Perm);
    }
    let (source, mut inode) = entry(region, old_id, from.name)?;
    let replaced = directory::lookup(region, new_id, to.name).map(|found| (found, table::load(region, found.inode)));
    if replaced.as_ref().is_some_and(|(found, _)| found.inode == source.inode) {
        return Ok(()); // Two names of one file: both stay.
    }
    if cred.is_held_off(&old, &inode) || replaced.as_ref().is_some_and(|(_, found)| cred.is_held_off(&new, found)) {
        return Err(Status::Perm);
    }
    let moves = old_id != new_id;
    let is_directory = inode.kind == Kind::Directory;
    if is_directory && moves {
        // Its `..` changes.
        cred.check(&inode, WRITE)?;
        if is_below(region, new_id, source.inode) {
            return Err(Status::Inval);
        }
    }
    match &replaced {
        Some((_, found)) => match (is_directory, found.kind == Kind::Directory) {
            (true, false) => return Err(Status::NotDir),
            (false, true) => return Err(Status::IsDir),
            (true, true) if found.entries > 0 => return Err(Status::NotEmpty),
            (true, true) | (false, false) => {}
        },
        None if is_directory && moves && new.links >= LINKS_MAX => return Err(Status::MLink),
        None => {}
    }

    let mut old = old;
    directory::leave(region, old_id, &mut old, from.name, source.cookie);
    if is_directory {
        old.links -= 1;
    }
    (old.modified, old.changed) = (now, now);
    table::store(region, old_id, &old);
    let mut new = table::load(region, new_id);
    match replaced {
        Some((found, gone)) => {
            directory::set(region, new_id, to.name, Entry { inode: source.inode, ..found })?;
            unlink(region, found.inode, gone, now);
        }
        None => {
            directory::enter(region, new_id, &mut new, to.name, source.inode)?;
            if is_directory {
                new.links += 1;
            }
        }
    }
    (new.modified, new.changed) = (now, now);
    table::store(region, new_id, &new);
    if is_directory {
        inode.parent = new_id;
    }
    inode.changed = now;
    table::store(region, source.inode, &inode);
    Ok(())
}

/// Whether `id` is `above`, or lies below it.
fn is_below(region: &Region, mut id: InodeId, above: InodeId) -> bool {
    loop {
        match id {
            id if id == above => return true,
            InodeId::ROOT => return false,
            other => id = table::load(region, other).parent,
        }
    }
}

/// LINK.
pub(super) fn link(
    region: &mut Region,
    cred: &Credentials,
    now: Stamp,
    file: Given,
    at: Place<'_>,
) -> Result<(), Status> {
    let (file, mut inode) = table::find(region, file)?;
    let (id, mut parent) = directory::open(region, at.directory, cred, 0)?;
    directory::check_name(at.name)?;
    let reserved = is_dot(at.name) || directory::is_snapshots(id, at.name);
    if reserved || directory::lookup(region, id, at.name).is_some() {
        return Err(Status::Exist);
    }
    cred.check(&parent, WRITE)?;
    if inode.kind == Kind::Directory {
        return Err(Status::Perm);
    }
    if inode.links >= LINKS_MAX {
        return Err(Status::MLink);
    }
    directory::enter(region, id, &mut parent, at.name, file)?;
    (parent.modified, parent.changed) = (now, now);
    table::store(region, id, &parent);
    inode.links += 1;
    inode.changed = now;
    table::store(region, file, &inode);
    Ok(())
}
