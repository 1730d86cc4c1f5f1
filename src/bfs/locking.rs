//! The procedures of locks, which NFSv3 has not (there it is a protocol of its own, NLM): arguments checked, results written.

use super::Caller;
use super::answer::Conflict;
use super::credentials::{READ, WRITE};
use super::inode::{InodeId, Kind};
use super::locks::{self, Holder};
use super::ranges::LockRange;
use super::request::{Given, LeaseCall, LockOwner};
use super::results::{change, put_after, put_status};
use super::status::Status;
use super::table::{self, SUPERBLOCK};
use crate::execution::ReplyBuffer;
use crate::state::Region;

/// Why a call is refused, and the lock that is in its way.
type Refusal = (Status, Option<Conflict>);

fn holder(caller: &Caller<'_>, mount: u64) -> Holder {
    Holder { client: caller.client, mount }
}

/// The file, if the caller may lock it: whoever may read or write it.
fn lockable(region: &Region, caller: &Caller<'_>, file: Given, start: u64, end: u64) -> Result<InodeId, Status> {
    let (id, inode) = table::find(region, file)?;
    if !matches!(inode.kind, Kind::Regular | Kind::Directory) || start > end {
        return Err(Status::Inval);
    }
    caller.cred.check_content(&inode, READ).or_else(|_| caller.cred.check_content(&inode, WRITE))?;
    Ok(id)
}

/// [`Status::Denied`] with the lock that is in the way.
fn free(region: &Region, now: u64, id: InodeId, who: (Holder, u64), range: &LockRange) -> Result<(), Refusal> {
    match locks::conflict(region, now, id, who, range) {
        None => Ok(()),
        Some(lock) => {
            let owner = LockOwner { mount: lock.holder.mount, owner: lock.owner, pid: lock.pid };
            Err((Status::Denied, Some(Conflict { range: lock.range, client: lock.holder.client, owner })))
        }
    }
}

fn put<T>(reply: &mut ReplyBuffer, result: &Result<T, Refusal>) {
    let status = result.as_ref().map(|_| ()).map_err(|(status, _)| *status);
    put_status(reply, &status);
    if let Err((Status::Denied, Some(conflict))) = result {
        conflict.encode(reply);
    }
}

/// A refusal without a lock that is in the way. One that finds no room is one too many.
fn plain(status: Status) -> Refusal {
    (if status == Status::NoSpc { Status::NoLck } else { status }, None)
}

/// Whether a lock would be granted, by the time of the last call that changed something: a lease that is over since counts
/// until another call is ordered.
pub(super) fn test(
    region: &Region,
    caller: &Caller<'_>,
    (file, owner, range): (Given, LockOwner, LockRange),
    reply: &mut ReplyBuffer,
) {
    let now = SUPERBLOCK.get(region).time;
    let result = lockable(region, caller, file, range.start, range.end)
        .map_err(plain)
        .and_then(|id| free(region, now, id, (holder(caller, owner.mount), owner.owner), &range));
    put(reply, &result);
}

/// The time of the change that comes next, as [`change`] will have it.
fn next_time(region: &Region, time: u64) -> u64 {
    time.max(SUPERBLOCK.get(region).time.saturating_add(1))
}

/// LOCK.
pub(super) fn lock(
    region: &mut Region,
    caller: &Caller<'_>,
    time: u64,
    asked: (Given, LockOwner, LockRange),
    reply: &mut ReplyBuffer,
) {
    let now = next_time(region, time);
    collect(region, now);
    let result = granted(region, caller, now, asked);
    let result = result.and_then(|(id, who)| {
        change(region, time, |region, _| locks::lock(region, now, id, who, asked.2)).map_err(plain)
    });
    put(reply, &result);
    if result.is_ok() {
        // So that whoever waited for the file knows whether what he has of it is of now.
        put_after(reply, region, asked.0);
    }
}

/// The file and the owner, if the owner may have the lock.
fn granted(
    region: &Region,
    caller: &Caller<'_>,
    now: u64,
    (file, owner, range): (Given, LockOwner, LockRange),
) -> Result<(InodeId, (Holder, LockOwner)), Refusal> {
    let holder = holder(caller, owner.mount);
    let id = lockable(region, caller, file, range.start, range.end).map_err(plain)?;
    locks::check_lease(region, now, holder).map_err(plain)?;
    free(region, now, id, (holder, owner.owner), &range)?;
    Ok((id, (holder, owner)))
}

/// UNLOCK: whoever holds a lock gives it up, whatever he may do with the file by now.
pub(super) fn unlock(
    region: &mut Region,
    caller: &Caller<'_>,
    time: u64,
    (file, owner, start, end): (Given, LockOwner, u64, u64),
    reply: &mut ReplyBuffer,
) {
    let now = next_time(region, time);
    let result = change(region, time, |region, _| {
        let (id, _) = table::find(region, file)?;
        if start > end {
            return Err(Status::Inval);
        }
        locks::unlock(region, now, id, (holder(caller, owner.mount), owner), (start, end))
    });
    put(reply, &result.map_err(plain));
}

/// LEASE.
pub(super) fn lease(
    region: &mut Region,
    caller: &Caller<'_>,
    time: u64,
    (mount, how): (u64, LeaseCall),
    reply: &mut ReplyBuffer,
) {
    let (now, holder) = (next_time(region, time), holder(caller, mount));
    let result = change(region, time, |region, _| match how {
        LeaseCall::Begin => locks::begin(region, now, holder),
        LeaseCall::Renew => locks::renew(region, now, holder),
        LeaseCall::End => {
            locks::end(region, holder);
            Ok(())
        }
    });
    collect(region, now);
    put(reply, &result.map_err(plain));
}

/// Removes some of what is over, also where the call is refused: it was nobody's.
fn collect(region: &mut Region, now: u64) {
    let _: Result<(), Status> = region.attempt(|region| {
        locks::collect(region, now);
        Ok(())
    });
}
