//! The procedures with their results as bytes (RFC 1813, section 3.3): each calls what decides, and writes what came of it.

use super::Caller;
use super::accounts;
use super::attributes::{Attributes, Before, Handle};
use super::content::{self, FILE_MAX, TRANSFER_MAX};
use super::create::{self, TARGET_MAX};
use super::credentials::{Credentials, EXECUTE, READ, WRITE};
use super::directory::{self, LINKS_MAX, NAME_MAX};
use super::inode::{Inode, InodeId, Kind, Stamp};
use super::listing::{self, Listing};
use super::locking;
use super::names;
use super::quota::Quota;
use super::request::{Given, Place, Request};
use super::snapshots;
use super::stat::{self, access};
use super::status::Status;
use super::table::{self, FREED_PER_CALL, SUPERBLOCK};
use super::xdr::{Sink, padding};
use crate::execution::ReplyBuffer;
use crate::limits::PAGE;
use crate::state::{Pages, Region};

/// The write verifier: it says that the server did not lose what it had answered, which 2f + 1 replicas together do not.
const WRITE_VERIFIER: [u8; 8] = *b"castra-1";

/// stable_how of what is written: it is stable when it is answered.
const FILE_SYNC: u32 = 2;

/// FSINFO's property that times can be set.
pub(super) const CAN_SET_TIME: u32 = 0x10;

/// FSINFO: hard links, symbolic links, one PATHCONF for all, times can be set.
const PROPERTIES: u32 = 0x01 | 0x02 | 0x08 | CAN_SET_TIME;

/// Inodes that fit a page.
const INODES_PER_PAGE: u64 = (PAGE / super::inode::INODE) as u64;

/// post_op_attr of what a handle leads to.
pub(super) fn put_after<P: Pages>(reply: &mut ReplyBuffer, region: &P, object: Given) {
    let found = table::view(region, object).ok();
    reply.put_optional(found, |reply, (id, inode)| table::attributes(region, id, &inode).encode(reply));
}

fn before<P: Pages>(region: &P, object: Given) -> Option<Before> {
    table::view(region, object).ok().map(|(_, inode)| Before::of(&inode))
}

/// wcc_data of what a handle leads to.
fn put_change<P: Pages>(reply: &mut ReplyBuffer, region: &P, object: Given, before: Option<Before>) {
    reply.put_optional(before, |reply, before| before.encode(reply));
    put_after(reply, region, object);
}

pub(super) fn put_status<T>(reply: &mut ReplyBuffer, result: &Result<T, Status>) {
    reply.put_u32(result.as_ref().err().map_or(0, |&status| status as u32));
}

/// Does all of a change or nothing, at a time later than that of any before; and frees some of what was given up.
pub(super) fn change<T>(
    region: &mut Region,
    time: u64,
    act: impl Fn(&mut Region, Stamp) -> Result<T, Status>,
) -> Result<T, Status> {
    let attempt = |region: &mut Region, freed: u32| {
        region.attempt(|region| {
            table::free_doomed(region, freed);
            let now = table::tick(region, time);
            act(region, now)
        })
    };
    match attempt(region, FREED_PER_CALL) {
        // What was given up counts as free: it is freed before anyone is told that there is no room. Where a snapshot
        // keeps it, freeing may itself find no room: then it waits, and the call does without.
        Err(Status::NoSpc) if SUPERBLOCK.get(region).doomed_pages > 0 => {
            let _: Result<bool, Status> = region.attempt(|region| Ok(table::free_doomed(region, u32::MAX)));
            attempt(region, 0)
        }
        result => result,
    }
}

/// Answers a call that changes nothing, in the file system as it is or, by its handle, as it was; `None`, and nothing is
/// written, for others.
pub(super) fn look(region: &Region, caller: &Caller<'_>, request: &Request<'_>, reply: &mut ReplyBuffer) -> Option<()> {
    let past = match request.subject() {
        Some(Handle::Then { snapshot, .. }) => region.at(snapshot),
        Some(Handle::Now { .. } | Handle::Snapshots) | None => None,
    };
    match past {
        Some(past) => look_in(&past, caller, request, reply),
        None => look_in(region, caller, request, reply),
    }
}

fn look_in<P: Pages>(region: &P, caller: &Caller<'_>, request: &Request<'_>, reply: &mut ReplyBuffer) -> Option<()> {
    let cred = caller.cred;
    match *request {
        Request::Null => {}
        Request::GetAttr { object } => {
            let found = table::view(region, object);
            put_status(reply, &found);
            if let Ok((id, inode)) = found {
                table::attributes(region, id, &inode).encode(reply);
            }
        }
        Request::Lookup { at } => {
            let found = lookup(region, cred, at);
            put_status(reply, &found);
            if let Ok((handle, attributes)) = found {
                handle.encode(reply);
                reply.put_optional(Some(attributes), |reply, attributes| attributes.encode(reply));
            }
            put_after(reply, region, at.directory);
        }
        Request::Access { object, wanted } => {
            let found = table::view(region, object);
            put_status(reply, &found);
            put_after(reply, region, object);
            if let Ok((_, inode)) = found {
                let possible = if region.snapshot().is_some() { access::CHANGES_NOTHING } else { u32::MAX };
                reply.put_u32(stat::granted(&inode, cred, wanted & possible));
            }
        }
        Request::ReadLink { link } => {
            let found = table::view(region, link).and_then(|(_, inode)| match inode.kind {
                Kind::Symlink => Ok(inode),
                _ => Err(Status::Inval),
            });
            put_status(reply, &found);
            put_after(reply, region, link);
            if let Ok(inode) = found {
                put_target(reply, region, &inode);
            }
        }
        Request::Read { file, offset, count } => {
            let found = open_to_read(region, cred, file);
            put_status(reply, &found);
            put_after(reply, region, file);
            if let Ok(inode) = found {
                put_data(reply, region, &inode, offset, count);
            }
        }
        Request::ReadDir { directory, cookie, verifier, count } => {
            list(region, cred, &Listing { directory, cookie, verifier, names: None, count }, reply);
        }
        Request::ReadDirPlus { directory, cookie, verifier, names, count } => {
            list(region, cred, &Listing { directory, cookie, verifier, names: Some(names), count }, reply);
        }
        Request::FsStat { root: object } | Request::FsInfo { root: object } | Request::PathConf { object } => {
            let found = table::view(region, object);
            put_status(reply, &found);
            put_after(reply, region, object);
            match request {
                _ if found.is_err() => {}
                Request::FsStat { .. } => put_space(reply, region.now()),
                Request::FsInfo { .. } => put_sizes(reply),
                _ => put_limits(reply),
            }
        }
        Request::Commit { file, offset, count } => {
            let found = table::view(region, file).and_then(|(_, inode)| match inode.kind {
                Kind::Regular if offset.checked_add(count.into()).is_some() => Ok(()),
                Kind::Directory => Err(Status::IsDir),
                _ => Err(Status::Inval),
            });
            put_status(reply, &found);
            put_change(reply, region, file, before(region, file));
            if found.is_ok() {
                reply.put(&WRITE_VERIFIER);
            }
        }
        Request::TestLock { file, owner, range } => locking::test(region.now(), caller, (file, owner, range), reply),
        Request::GetQuota { account } => put_quota(reply, &accounts::get(region, cred, account)),
        Request::ListQuota { cookie, count } => {
            let asked = if count == 0 { Err(Status::TooSmall) } else { Ok(()) };
            put_status(reply, &asked);
            if asked.is_ok() {
                accounts::list(region, cred, cookie, count, reply);
            }
        }
        Request::SetAttr { .. }
        | Request::Write { .. }
        | Request::Create { .. }
        | Request::MkDir { .. }
        | Request::Symlink { .. }
        | Request::MkNod { .. }
        | Request::Remove { .. }
        | Request::RmDir { .. }
        | Request::Rename { .. }
        | Request::Link { .. }
        | Request::Lock { .. }
        | Request::Unlock { .. }
        | Request::Lease { .. }
        | Request::SetQuota { .. } => return None,
    }
    Some(())
}

/// Carries out any call at an agreed time.
pub(super) fn act(region: &mut Region, caller: &Caller<'_>, time: u64, request: &Request<'_>, reply: &mut ReplyBuffer) {
    if look(region, caller, request, reply).is_some() {
        return;
    }
    let cred = caller.cred;
    match *request {
        Request::SetAttr { object, ref new, guard } => {
            let before = before(region, object);
            let result =
                change(region, time, |region, now| stat::set_attributes(region, cred, now, object, new, guard));
            put_status(reply, &result);
            put_change(reply, region, object, before);
        }
        Request::Write { file, offset, count, stable: _, data } => {
            let before = before(region, file);
            let result = change(region, time, |region, now| write(region, cred, now, file, offset, count, data));
            put_status(reply, &result);
            put_change(reply, region, file, before);
            if let Ok(written) = result {
                reply.put_u32(written);
                reply.put_u32(FILE_SYNC);
                reply.put(&WRITE_VERIFIER);
            }
        }
        Request::Create { at, ref how } => {
            made(region, time, at, reply, |region, now| create::create(region, cred, now, at, how));
        }
        Request::MkDir { at, .. } if at.directory == Some(Handle::Snapshots) => {
            answer_made(region, time, at, reply, |region, _| snapshots::take(region, cred, at.name));
        }
        Request::MkDir { at, ref new } => made(region, time, at, reply, |region, now| {
            create::make_node(region, cred, now, at, Kind::Directory, (new, (0, 0)))
        }),
        Request::Symlink { at, ref new, target } => {
            made(region, time, at, reply, |region, now| create::symlink(region, cred, now, at, new, target));
        }
        Request::MkNod { at, kind, ref new, device } => made(region, time, at, reply, |region, now| match kind {
            Kind::Block | Kind::Character | Kind::Socket | Kind::Fifo => {
                create::make_node(region, cred, now, at, kind, (new, device))
            }
            Kind::Regular | Kind::Directory | Kind::Symlink | Kind::Free | Kind::Doomed => Err(Status::BadType),
        }),
        Request::Remove { at } => removed(region, time, cred, at, false, reply),
        Request::RmDir { at } if at.directory == Some(Handle::Snapshots) => {
            let before = before(region, at.directory);
            let result = snapshots::to_remove(region, cred, at.name);
            if let Ok(id) = result {
                region.remove_snapshot(id);
                let _: Result<(), Status> = change(region, time, |region, _| snapshots::settle(region));
            }
            put_status(reply, &result);
            put_change(reply, region, at.directory, before);
        }
        Request::RmDir { at } => removed(region, time, cred, at, true, reply),
        Request::Rename { from, to } => {
            let before = [from, to].map(|place| before(region, place.directory));
            let result = change(region, time, |region, now| names::rename(region, cred, now, from, to));
            put_status(reply, &result);
            put_change(reply, region, from.directory, before[0]);
            put_change(reply, region, to.directory, before[1]);
        }
        Request::Link { file, at } => {
            let before = before(region, at.directory);
            let result = change(region, time, |region, now| names::link(region, cred, now, file, at));
            put_status(reply, &result);
            put_after(reply, region, file);
            put_change(reply, region, at.directory, before);
        }
        Request::Lock { file, owner, range } => locking::lock(region, caller, time, (file, owner, range), reply),
        Request::Unlock { file, owner, start, end } => {
            locking::unlock(region, caller, time, (file, owner, start, end), reply);
        }
        Request::Lease { mount, how } => locking::lease(region, caller, time, (mount, how), reply),
        Request::SetQuota { account, limit } => {
            put_quota(reply, &change(region, time, |region, _| accounts::set(region, cred, account, limit)));
        }
        Request::Null
        | Request::GetAttr { .. }
        | Request::Lookup { .. }
        | Request::Access { .. }
        | Request::ReadLink { .. }
        | Request::Read { .. }
        | Request::ReadDir { .. }
        | Request::ReadDirPlus { .. }
        | Request::FsStat { .. }
        | Request::FsInfo { .. }
        | Request::PathConf { .. }
        | Request::Commit { .. }
        | Request::TestLock { .. }
        | Request::GetQuota { .. }
        | Request::ListQuota { .. } => {}
    }
}

/// LOOKUP.
fn lookup<P: Pages>(region: &P, cred: &Credentials, at: Place<'_>) -> Result<(Handle, Attributes), Status> {
    let (id, inode) = directory::view(region, at.directory)?;
    cred.check(&inode, EXECUTE)?;
    directory::check_name(at.name)?;
    if id == InodeId::SNAPSHOTS {
        return snapshots::lookup(region.now(), at.name);
    }
    let found = match at.name {
        b"." => id,
        b".." => inode.parent,
        name if region.snapshot().is_none() && directory::is_snapshots(id, name) => {
            return snapshots::lookup(region.now(), b".");
        }
        name => directory::lookup(region, id, name).ok_or(Status::NoEnt)?.inode,
    };
    let inode = table::load(region, found);
    let handle = table::handle(region, found, &inode);
    Ok((handle, Attributes::of(handle, &inode)))
}

/// The target of a symbolic link.
fn put_target<P: Pages>(reply: &mut ReplyBuffer, region: &P, inode: &Inode) {
    if inode.content.is_empty() {
        reply.put_opaque(inode.target.as_slice());
        return;
    }
    let mut target = [0; TARGET_MAX];
    let len = inode.content.read(region, 0, &mut target);
    reply.put_opaque(&target[..len]);
}

fn regular(inode: &Inode) -> Result<(), Status> {
    match inode.kind {
        Kind::Regular => Ok(()),
        Kind::Directory => Err(Status::IsDir),
        _ => Err(Status::Inval),
    }
}

/// READ: whoever may execute a file may read it too, or its program would not be loaded.
fn open_to_read<P: Pages>(region: &P, cred: &Credentials, file: Given) -> Result<Inode, Status> {
    let (_, inode) = table::view(region, file)?;
    regular(&inode)?;
    cred.check_content(&inode, READ).or_else(|status| cred.check(&inode, EXECUTE).map_err(|_| status))?;
    Ok(inode)
}

/// count, eof, data.
fn put_data<P: Pages>(reply: &mut ReplyBuffer, region: &P, inode: &Inode, offset: u64, count: u32) {
    let len = inode.content.len();
    let count = u64::from(count.min(TRANSFER_MAX)).min(len.saturating_sub(offset));
    reply.put_u32(count as u32);
    reply.put_bool(offset.saturating_add(count) >= len);
    reply.put_u32(count as u32);
    inode.content.chunks(region, offset, count).for_each(|chunk| reply.put(chunk));
    reply.push_zeros(padding(count as usize));
}

/// WRITE; how many bytes were written. To be attempted.
fn write(
    region: &mut Region,
    cred: &Credentials,
    now: Stamp,
    file: Given,
    offset: u64,
    count: u32,
    data: &[u8],
) -> Result<u32, Status> {
    let (id, mut inode) = table::find(region, file)?;
    regular(&inode)?;
    cred.check_content(&inode, WRITE)?;
    let data = data.get(..count as usize).ok_or(Status::Inval)?;
    // What is beyond the largest file is refused, also where only a part of it would have been written.
    if offset.checked_add(count.into()).is_none_or(|end| end > FILE_MAX) {
        return Err(Status::FBig);
    }
    let data = &data[..data.len().min(TRANSFER_MAX as usize)];
    if data.is_empty() {
        return Ok(0);
    }
    content::write(region, &mut inode, offset, data)?;
    stat::drop_privileges(&mut inode, cred);
    (inode.modified, inode.changed, inode.verifier) = (now, now, None);
    table::store_charged(region, cred, id, &inode)?;
    Ok(data.len() as u32)
}

/// Makes a file: its handle and attributes, and the change of its directory.
fn made(
    region: &mut Region,
    time: u64,
    at: Place<'_>,
    reply: &mut ReplyBuffer,
    make: impl Fn(&mut Region, Stamp) -> Result<(InodeId, Inode), Status>,
) {
    answer_made(region, time, at, reply, |region, now| {
        let (id, inode) = make(region, now)?;
        let handle = table::handle(region, id, &inode);
        Ok((handle, Attributes::of(handle, &inode)))
    });
}

fn answer_made(
    region: &mut Region,
    time: u64,
    at: Place<'_>,
    reply: &mut ReplyBuffer,
    make: impl Fn(&mut Region, Stamp) -> Result<(Handle, Attributes), Status>,
) {
    let before = before(region, at.directory);
    let result = change(region, time, make);
    put_status(reply, &result);
    if let Ok((handle, attributes)) = result {
        reply.put_optional(Some(handle), |reply, handle| handle.encode(reply));
        reply.put_optional(Some(attributes), |reply, attributes| attributes.encode(reply));
    }
    put_change(reply, region, at.directory, before);
}

fn removed(
    region: &mut Region,
    time: u64,
    cred: &Credentials,
    at: Place<'_>,
    directories: bool,
    reply: &mut ReplyBuffer,
) {
    let before = before(region, at.directory);
    let result = change(region, time, |region, now| names::remove(region, cred, now, at, directories));
    put_status(reply, &result);
    put_change(reply, region, at.directory, before);
}

/// The results of GetQuota and SetQuota.
fn put_quota(reply: &mut ReplyBuffer, quota: &Result<Quota, Status>) {
    put_status(reply, quota);
    if let Ok(quota) = quota {
        quota.put(reply);
    }
}

/// READDIR and READDIRPLUS.
fn list<P: Pages>(region: &P, cred: &Credentials, listing: &Listing, reply: &mut ReplyBuffer) {
    let found = listing::list(region, cred, listing);
    put_status(reply, &found);
    put_after(reply, region, listing.directory);
    if let Ok(entries) = found {
        reply.put(&entries);
    }
}

/// FSSTAT: bytes and files, all, free and available, and how long they stay so.
fn put_space(reply: &mut ReplyBuffer, region: &Region) {
    let superblock = SUPERBLOCK.get(region);
    // A snapshot may keep what was given up.
    let doomed = if region.snapshots().is_empty() { superblock.doomed_pages } else { 0 };
    let free = u64::from(region.available()) + doomed;
    let unused = u64::from(table::len(region)).saturating_sub(superblock.files + 1);
    let files = unused + free * INODES_PER_PAGE;
    let bytes = free * PAGE as u64;
    reply.put_u64(u64::from(region.limit()) * PAGE as u64);
    reply.put_u64(bytes);
    reply.put_u64(bytes);
    reply.put_u64(superblock.files + files);
    reply.put_u64(files);
    reply.put_u64(files);
    reply.put_u32(0);
}

/// FSINFO: sizes of transfers, the largest file, how exact times are, properties.
fn put_sizes(reply: &mut ReplyBuffer) {
    for size in [TRANSFER_MAX, TRANSFER_MAX, PAGE as u32, TRANSFER_MAX, TRANSFER_MAX, PAGE as u32, TRANSFER_MAX] {
        reply.put_u32(size);
    }
    reply.put_u64(FILE_MAX);
    reply.put_u32(0);
    reply.put_u32(1);
    reply.put_u32(PROPERTIES);
}

/// PATHCONF: links, names; long names are refused; only root gives files away; case counts and is kept.
fn put_limits(reply: &mut ReplyBuffer) {
    reply.put_u32(LINKS_MAX);
    reply.put_u32(NAME_MAX as u32);
    for property in [true, true, false, true] {
        reply.put_bool(property);
    }
}
