//! The arguments of the procedures (RFC 1813, section 3.3; those of locks and quotas are castra's own).

use super::attributes::{Handle, NewAttributes, get_time, put_time};
use super::inode::{Kind, Stamp};
use super::procedure::Procedure;
use super::quota::{Account, Amount};
use super::ranges::LockRange;
use super::xdr::{Garbage, Reader, Sink};

/// A handle that came in; `None` if it is not of this file system.
pub type Given = Option<Handle>;

/// diropargs3: a name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place<'a> {
    /// The directory.
    pub directory: Given,
    /// The name, of any bytes.
    pub name: &'a [u8],
}

/// createhow3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CreateHow {
    /// An existing file is taken as it is, but for its size.
    Unchecked(NewAttributes),
    /// The name must not exist.
    Guarded(NewAttributes),
    /// The name must not exist, unless an equal call created it.
    Exclusive([u8; 8]),
}

/// Whose a lock is: of the calling client's that of one mount, and there what its kernel calls the owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockOwner {
    /// A number of the mount's own, under which it has a lease.
    pub mount: u64,
    /// The owner.
    pub owner: u64,
    /// His process, to be told to whom the lock is in the way.
    pub pid: u32,
}

/// What is done with a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum LeaseCall {
    /// It begins, or is renewed.
    Begin = 0,
    /// It is renewed.
    Renew = 1,
    /// It ends, and with it all locks under it.
    End = 2,
}

/// One call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are those of RFC 1813")]
pub enum Request<'a> {
    /// Does nothing.
    Null,
    /// Section 3.3.1.
    GetAttr { object: Given },
    /// Section 3.3.2. `guard` is the time of the last change that the file must have.
    SetAttr { object: Given, new: NewAttributes, guard: Option<Stamp> },
    /// Section 3.3.3.
    Lookup { at: Place<'a> },
    /// Section 3.3.4.
    Access { object: Given, wanted: u32 },
    /// Section 3.3.5.
    ReadLink { link: Given },
    /// Section 3.3.6.
    Read { file: Given, offset: u64, count: u32 },
    /// Section 3.3.7. `stable` is 0 to 2; everything is stable when it is answered.
    Write { file: Given, offset: u64, count: u32, stable: u32, data: &'a [u8] },
    /// Section 3.3.8.
    Create { at: Place<'a>, how: CreateHow },
    /// Section 3.3.9.
    MkDir { at: Place<'a>, new: NewAttributes },
    /// Section 3.3.10.
    Symlink { at: Place<'a>, new: NewAttributes, target: &'a [u8] },
    /// Section 3.3.11. Kinds that it cannot create have no attributes.
    MkNod { at: Place<'a>, kind: Kind, new: NewAttributes, device: (u32, u32) },
    /// Section 3.3.12.
    Remove { at: Place<'a> },
    /// Section 3.3.13.
    RmDir { at: Place<'a> },
    /// Section 3.3.14.
    Rename { from: Place<'a>, to: Place<'a> },
    /// Section 3.3.15.
    Link { file: Given, at: Place<'a> },
    /// Section 3.3.16.
    ReadDir { directory: Given, cookie: u64, verifier: [u8; 8], count: u32 },
    /// Section 3.3.17. `names` bounds the bytes of names and numbers, `count` those of the whole answer.
    ReadDirPlus { directory: Given, cookie: u64, verifier: [u8; 8], names: u32, count: u32 },
    /// Section 3.3.18.
    FsStat { root: Given },
    /// Section 3.3.19.
    FsInfo { root: Given },
    /// Section 3.3.20.
    PathConf { object: Given },
    /// Section 3.3.21.
    Commit { file: Given, offset: u64, count: u32 },
    /// Locks a range, in place of what its owner locked there.
    Lock { file: Given, owner: LockOwner, range: LockRange },
    /// Unlocks what the owner locked from `start` to `end`, both included.
    Unlock { file: Given, owner: LockOwner, start: u64, end: u64 },
    /// What is in the way of a lock.
    TestLock { file: Given, owner: LockOwner, range: LockRange },
    /// Begins, renews or ends the lease of one of the client's mounts.
    Lease { mount: u64, how: LeaseCall },
    /// What somebody may have and has.
    GetQuota { account: Account },
    /// Sets what somebody may have; 0 is no limit. Root alone may.
    SetQuota { account: Account, limit: Amount },
    /// Up to `count` quotas after a cookie, of which 0 is the start.
    ListQuota { cookie: u64, count: u32 },
}

impl<'a> Place<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Place<'a>, Garbage> {
        Ok(Place { directory: Handle::decode(reader)?, name: reader.opaque(usize::MAX)? })
    }

    fn encode(&self, sink: &mut impl Sink) {
        put_handle(sink, self.directory);
        sink.put_opaque(self.name);
    }
}

impl CreateHow {
    fn decode(reader: &mut Reader<'_>) -> Result<CreateHow, Garbage> {
        match reader.u32()? {
            0 => NewAttributes::decode(reader).map(CreateHow::Unchecked),
            1 => NewAttributes::decode(reader).map(CreateHow::Guarded),
            2 => reader.fixed().map(CreateHow::Exclusive),
            _ => Err(Garbage),
        }
    }

    fn encode(&self, sink: &mut impl Sink) {
        match self {
            CreateHow::Unchecked(new) => {
                sink.put_u32(0);
                new.encode(sink);
            }
            CreateHow::Guarded(new) => {
                sink.put_u32(1);
                new.encode(sink);
            }
            CreateHow::Exclusive(verifier) => {
                sink.put_u32(2);
                sink.put(verifier);
            }
        }
    }
}

impl LockOwner {
    pub(super) fn decode(r: &mut Reader<'_>) -> Result<LockOwner, Garbage> {
        Ok(LockOwner { mount: r.u64()?, owner: r.u64()?, pid: r.u32()? })
    }

    pub(super) fn encode(&self, sink: &mut impl Sink) {
        sink.put_u64(self.mount);
        sink.put_u64(self.owner);
        sink.put_u32(self.pid);
    }
}

impl LockRange {
    pub(super) fn decode(r: &mut Reader<'_>) -> Result<LockRange, Garbage> {
        Ok(LockRange { start: r.u64()?, end: r.u64()?, exclusive: r.bool()? })
    }

    pub(super) fn encode(&self, sink: &mut impl Sink) {
        sink.put_u64(self.start);
        sink.put_u64(self.end);
        sink.put_bool(self.exclusive);
    }
}

impl LeaseCall {
    fn decode(r: &mut Reader<'_>) -> Result<LeaseCall, Garbage> {
        match r.u32()? {
            0 => Ok(LeaseCall::Begin),
            1 => Ok(LeaseCall::Renew),
            2 => Ok(LeaseCall::End),
            _ => Err(Garbage),
        }
    }
}

/// One that is none is written as the empty handle, which nobody gives out.
fn put_handle(sink: &mut impl Sink, handle: Given) {
    match handle {
        Some(handle) => handle.encode(sink),
        None => sink.put_opaque(&[]),
    }
}

/// mknoddata3, without the attributes of kinds that have none.
fn decode_node<'a>(at: Place<'a>, reader: &mut Reader<'a>) -> Result<Request<'a>, Garbage> {
    let kind = Kind::from_number(reader.u32()?).ok_or(Garbage)?;
    let (mut new, mut device) = (NewAttributes::default(), (0, 0));
    match kind {
        Kind::Block | Kind::Character => {
            new = NewAttributes::decode(reader)?;
            device = (reader.u32()?, reader.u32()?);
        }
        Kind::Socket | Kind::Fifo => new = NewAttributes::decode(reader)?,
        Kind::Regular | Kind::Directory | Kind::Symlink | Kind::Free | Kind::Doomed => {}
    }
    Ok(Request::MkNod { at, kind, new, device })
}

impl<'a> Request<'a> {
    /// Reads the arguments of `procedure`. They must be all that there is.
    pub fn decode(procedure: Procedure, arguments: &'a [u8]) -> Result<Request<'a>, Garbage> {
        let mut reader = Reader::new(arguments);
        let request = Request::read(procedure, &mut reader)?;
        reader.finish()?;
        Ok(request)
    }

    fn read(procedure: Procedure, r: &mut Reader<'a>) -> Result<Request<'a>, Garbage> {
        Ok(match procedure {
            Procedure::Null => Request::Null,
            Procedure::GetAttr => Request::GetAttr { object: Handle::decode(r)? },
            Procedure::SetAttr => Request::SetAttr {
                object: Handle::decode(r)?,
                new: NewAttributes::decode(r)?,
                guard: r.optional(get_time)?,
            },
            Procedure::Lookup => Request::Lookup { at: Place::decode(r)? },
            Procedure::Access => Request::Access { object: Handle::decode(r)?, wanted: r.u32()? },
            Procedure::ReadLink => Request::ReadLink { link: Handle::decode(r)? },
            Procedure::Read => Request::Read { file: Handle::decode(r)?, offset: r.u64()?, count: r.u32()? },
            Procedure::Write => {
                let (file, offset, count, stable) = (Handle::decode(r)?, r.u64()?, r.u32()?, r.u32()?);
                if stable > 2 {
                    return Err(Garbage);
                }
                Request::Write { file, offset, count, stable, data: r.opaque(usize::MAX)? }
            }
            Procedure::Create => Request::Create { at: Place::decode(r)?, how: CreateHow::decode(r)? },
            Procedure::MkDir => Request::MkDir { at: Place::decode(r)?, new: NewAttributes::decode(r)? },
            Procedure::Symlink => Request::Symlink {
                at: Place::decode(r)?,
                new: NewAttributes::decode(r)?,
                target: r.opaque(usize::MAX)?,
            },
            Procedure::MkNod => decode_node(Place::decode(r)?, r)?,
            Procedure::Remove => Request::Remove { at: Place::decode(r)? },
            Procedure::RmDir => Request::RmDir { at: Place::decode(r)? },
            Procedure::Rename => Request::Rename { from: Place::decode(r)?, to: Place::decode(r)? },
            Procedure::Link => Request::Link { file: Handle::decode(r)?, at: Place::decode(r)? },
            Procedure::ReadDir => Request::ReadDir {
                directory: Handle::decode(r)?,
                cookie: r.u64()?,
                verifier: r.fixed()?,
                count: r.u32()?,
            },
            Procedure::ReadDirPlus => Request::ReadDirPlus {
                directory: Handle::decode(r)?,
                cookie: r.u64()?,
                verifier: r.fixed()?,
                names: r.u32()?,
                count: r.u32()?,
            },
            Procedure::FsStat => Request::FsStat { root: Handle::decode(r)? },
            Procedure::FsInfo => Request::FsInfo { root: Handle::decode(r)? },
            Procedure::PathConf => Request::PathConf { object: Handle::decode(r)? },
            Procedure::Commit => Request::Commit { file: Handle::decode(r)?, offset: r.u64()?, count: r.u32()? },
            Procedure::Lock => {
                Request::Lock { file: Handle::decode(r)?, owner: LockOwner::decode(r)?, range: LockRange::decode(r)? }
            }
            Procedure::Unlock => Request::Unlock {
                file: Handle::decode(r)?,
                owner: LockOwner::decode(r)?,
                start: r.u64()?,
                end: r.u64()?,
            },
            Procedure::TestLock => Request::TestLock {
                file: Handle::decode(r)?,
                owner: LockOwner::decode(r)?,
                range: LockRange::decode(r)?,
            },
            Procedure::Lease => Request::Lease { mount: r.u64()?, how: LeaseCall::decode(r)? },
            Procedure::GetQuota => Request::GetQuota { account: Account::decode(r)? },
            Procedure::SetQuota => Request::SetQuota { account: Account::decode(r)?, limit: Amount::decode(r)? },
            Procedure::ListQuota => Request::ListQuota { cookie: r.u64()?, count: r.u32()? },
        })
    }

    /// Which procedure it calls.
    pub fn procedure(&self) -> Procedure {
        match self {
            Request::Null => Procedure::Null,
            Request::GetAttr { .. } => Procedure::GetAttr,
            Request::SetAttr { .. } => Procedure::SetAttr,
            Request::Lookup { .. } => Procedure::Lookup,
            Request::Access { .. } => Procedure::Access,
            Request::ReadLink { .. } => Procedure::ReadLink,
            Request::Read { .. } => Procedure::Read,
            Request::Write { .. } => Procedure::Write,
            Request::Create { .. } => Procedure::Create,
            Request::MkDir { .. } => Procedure::MkDir,
            Request::Symlink { .. } => Procedure::Symlink,
            Request::MkNod { .. } => Procedure::MkNod,
            Request::Remove { .. } => Procedure::Remove,
            Request::RmDir { .. } => Procedure::RmDir,
            Request::Rename { .. } => Procedure::Rename,
            Request::Link { .. } => Procedure::Link,
            Request::ReadDir { .. } => Procedure::ReadDir,
            Request::ReadDirPlus { .. } => Procedure::ReadDirPlus,
            Request::FsStat { .. } => Procedure::FsStat,
            Request::FsInfo { .. } => Procedure::FsInfo,
            Request::PathConf { .. } => Procedure::PathConf,
            Request::Commit { .. } => Procedure::Commit,
            Request::Lock { .. } => Procedure::Lock,
            Request::Unlock { .. } => Procedure::Unlock,
            Request::TestLock { .. } => Procedure::TestLock,
            Request::Lease { .. } => Procedure::Lease,
            Request::GetQuota { .. } => Procedure::GetQuota,
            Request::SetQuota { .. } => Procedure::SetQuota,
            Request::ListQuota { .. } => Procedure::ListQuota,
        }
    }

    /// What a procedure that changes nothing reads.
    pub(super) fn subject(&self) -> Given {
        match *self {
            Request::GetAttr { object: handle }
            | Request::Lookup { at: Place { directory: handle, .. } }
            | Request::Access { object: handle, .. }
            | Request::ReadLink { link: handle }
            | Request::Read { file: handle, .. }
            | Request::ReadDir { directory: handle, .. }
            | Request::ReadDirPlus { directory: handle, .. }
            | Request::FsStat { root: handle }
            | Request::FsInfo { root: handle }
            | Request::PathConf { object: handle }
            | Request::Commit { file: handle, .. }
            | Request::TestLock { file: handle, .. } => handle,
            Request::Null
            | Request::SetAttr { .. }
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
            | Request::GetQuota { .. }
            | Request::SetQuota { .. }
            | Request::ListQuota { .. } => None,
        }
    }

    /// Writes the arguments, as [`decode`](Request::decode) reads them.
    pub fn encode(&self, sink: &mut impl Sink) {
        match *self {
            Request::Null => {}
            Request::GetAttr { object: handle }
            | Request::ReadLink { link: handle }
            | Request::FsStat { root: handle }
            | Request::FsInfo { root: handle }
            | Request::PathConf { object: handle } => put_handle(sink, handle),
            Request::SetAttr { object, new, guard } => {
                put_handle(sink, object);
                new.encode(sink);
                sink.put_optional(guard, put_time);
            }
            Request::Lookup { at } | Request::Remove { at } | Request::RmDir { at } => at.encode(sink),
            Request::Access { object, wanted } => {
                put_handle(sink, object);
                sink.put_u32(wanted);
            }
            Request::Read { file, offset, count } | Request::Commit { file, offset, count } => {
                put_handle(sink, file);
                sink.put_u64(offset);
                sink.put_u32(count);
            }
            Request::Write { file, offset, count, stable, data } => {
                put_handle(sink, file);
                sink.put_u64(offset);
                sink.put_u32(count);
                sink.put_u32(stable);
                sink.put_opaque(data);
            }
            Request::Create { at, how } => {
                at.encode(sink);
                how.encode(sink);
            }
            Request::MkDir { at, new } => {
                at.encode(sink);
                new.encode(sink);
            }
            Request::Symlink { at, new, target } => {
                at.encode(sink);
                new.encode(sink);
                sink.put_opaque(target);
            }
            Request::MkNod { at, kind, new, device } => {
                at.encode(sink);
                sink.put_u32(kind as u32);
                if matches!(kind, Kind::Block | Kind::Character | Kind::Socket | Kind::Fifo) {
                    new.encode(sink);
                }
                if matches!(kind, Kind::Block | Kind::Character) {
                    sink.put_u32(device.0);
                    sink.put_u32(device.1);
                }
            }
            Request::Rename { from, to } => {
                from.encode(sink);
                to.encode(sink);
            }
            Request::Link { file, at } => {
                put_handle(sink, file);
                at.encode(sink);
            }
            Request::ReadDir { directory, cookie, verifier, count } => {
                put_handle(sink, directory);
                sink.put_u64(cookie);
                sink.put(&verifier);
                sink.put_u32(count);
            }
            Request::ReadDirPlus { directory, cookie, verifier, names, count } => {
                put_handle(sink, directory);
                sink.put_u64(cookie);
                sink.put(&verifier);
                sink.put_u32(names);
                sink.put_u32(count);
            }
            Request::Lock { file, owner, range } | Request::TestLock { file, owner, range } => {
                put_handle(sink, file);
                owner.encode(sink);
                range.encode(sink);
            }
            Request::Unlock { file, owner, start, end } => {
                put_handle(sink, file);
                owner.encode(sink);
                sink.put_u64(start);
                sink.put_u64(end);
            }
            Request::Lease { mount, how } => {
                sink.put_u64(mount);
                sink.put_u32(how as u32);
            }
            Request::GetQuota { account } => account.encode(sink),
            Request::SetQuota { account, limit } => {
                account.encode(sink);
                limit.encode(sink);
            }
            Request::ListQuota { cookie, count } => {
                sink.put_u64(cookie);
                sink.put_u32(count);
            }
        }
    }
}
