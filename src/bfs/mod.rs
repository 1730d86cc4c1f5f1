//! BFS: a file system that survives liars. NFSv3 (RFC 1813) as a deterministic service over the paged state.
//!
//! One function does everything: [`Bfs::apply`] takes a procedure, its arguments in XDR, who asks and the agreed time, and
//! writes the results in XDR. Gateways, which are clients of the cluster, put it before the kernel's file systems.
//!
//! | file | what |
//! |---|---|
//! | `procedure`, `request`, `status`, `xdr` | the protocol: numbers, arguments, bytes |
//! | `attributes`, `inode`, `credentials` | handles, attributes, inodes; who may do what |
//! | `table`, `directory`, `content` | how they lie in pages |
//! | `quota` | who may have how much, and has |
//! | `stat`, `create`, `names`, `listing`, `accounts`, `results` | the procedures |
//! | `snapshots` | the directory of snapshots |
//! | `ranges`, `locks`, `locking` | locks of ranges of bytes, which castra adds |
//! | `answer` | results, read again: for clients |
//! | `rpc` | calls and replies of ONC RPC, and the MOUNT protocol: for gateways |
//! | `fsck` | whether all of it fits together |
//!
//! A call that is refused has changed nothing. Everything that is answered is stable: WRITE is FILE_SYNC, COMMIT trivial.
//! Reading does not touch the time of access, so reading is not ordered. Handles below [`SNAPSHOTS_NAME`] lead into
//! snapshots of the region; the procedures that read do so there too, the others refuse.
//!
//! As in every NFSv3, users are who the client's machine says they are: AUTH_SYS proves nothing. The replicas check
//! permissions for those users, so a liar among the replicas gains nothing, a liar among the clients' machines does.
#![forbid(unsafe_code)]

mod accounts;
mod answer;
mod attributes;
mod content;
mod create;
mod credentials;
mod directory;
mod fsck;
mod inode;
mod listing;
mod locking;
mod locks;
mod names;
mod procedure;
mod quota;
mod ranges;
mod request;
mod results;
pub mod rpc;
mod snapshots;
mod stat;
mod status;
mod table;
#[cfg(test)]
mod tests;
pub mod xdr;

use std::collections::BTreeMap;

pub use answer::{Answer, Conflict, Entry, Limits, Listed, Sizes, Space};
pub use attributes::{Attributes, Before, Handle, NewAttributes, SetTime};
pub use content::{FILE_MAX, TRANSFER_MAX};
pub use create::TARGET_MAX;
pub use credentials::{Claims, Credentials, GROUPS_MAX, NOBODY};
pub use directory::{LINKS_MAX, NAME_MAX, SNAPSHOTS_NAME};
pub use fsck::{Fsck, fsck};
pub use inode::{Inode, InodeId, Kind, Stamp};
pub use locks::{FILE_LOCKS_MAX, LEASE};
pub use procedure::Procedure;
pub use quota::{Account, Amount, Quota};
pub use ranges::LockRange;
pub use request::{CreateHow, Given, LeaseCall, LockOwner, Place, Request};
pub use stat::access;
pub use status::Status;

use self::xdr::{Garbage, Reader, Sink};
use crate::execution::{Context, Inspection, NotReadOnly, ReplyBuffer, Service};
use crate::state::Region;
use crate::types::ClientId;

/// How a call went before the procedure had a say: accept_stat of RFC 5531, section 9. The first four bytes of a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Accepted {
    /// The results of the procedure follow.
    Success = 0,
    /// There is no such procedure.
    NoProcedure = 3,
    /// The arguments cannot be decoded.
    Garbage = 4,
}

/// The file system. What it is told is agreed: all replicas are told the same.
///
/// An operation is procedure u32, credentials (uid u32, gid u32, count u32, groups), arguments; a result is [`Accepted`]
/// and the results of the procedure. All of it is XDR.
///
/// ```
/// use castra::bfs::{Answer, Bfs, Caller, Credentials, Handle, NewAttributes, Place, Procedure, Request, Status};
/// use castra::execution::ReplyBuffer;
/// use castra::state::Region;
/// use castra::types::ClientId;
///
/// let bfs = Bfs::default();
/// let mut region = Region::new(1_000);
/// bfs.format(&mut region);
/// let at = Place { directory: Some(Handle::ROOT), name: b"etc" };
/// let mut call = |request: Request<'_>, reply: &mut ReplyBuffer| {
///     let mut arguments = Vec::new();
///     request.encode(&mut arguments);
///     let caller = Caller { client: ClientId(1), cred: &Credentials::ROOT };
///     bfs.apply(request.procedure(), &arguments, caller, 1_000, &mut region, reply);
/// };
/// let mut reply = ReplyBuffer::new();
/// call(Request::MkDir { at, new: NewAttributes::mode(0o755) }, &mut reply);
/// let results = reply.take();
/// let answer = Answer::parse(Procedure::MkDir, &results).unwrap();
/// assert_eq!(answer.attributes.unwrap().mode, 0o755);
/// call(Request::Remove { at }, &mut reply);
/// assert_eq!(Answer::parse(Procedure::Remove, &reply.take()).unwrap().status, Err(Status::IsDir));
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bfs {
    /// Whose calls a client may make; one that is not here may make anybody's.
    pub claims: BTreeMap<ClientId, Claims>,
    /// Calls of root are nobody's.
    pub root_squash: bool,
    /// Who owns the root directory of an empty file system.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permissions.
    pub mode: u32,
}

impl Default for Bfs {
    fn default() -> Bfs {
        Bfs { claims: BTreeMap::new(), root_squash: false, uid: 0, gid: 0, mode: 0o755 }
    }
}

impl Bfs {
    /// An operation, to be sent to the cluster.
    pub fn operation(procedure: u32, cred: &Credentials, arguments: &[u8]) -> Vec<u8> {
        let mut op = Vec::with_capacity(arguments.len() + 96);
        op.put_u32(procedure);
        cred.encode(&mut op);
        op.put(arguments);
        op
    }

    /// Lays out an empty file system in an empty region.
    ///
    /// # Panics
    /// If the region has not the few pages that this takes.
    pub fn format(&self, region: &mut Region) {
        table::genesis(region, self).expect("an empty region has room for the root directory");
    }

    /// Carries out a call: `time` is the agreed one, in nanoseconds since the Unix epoch. The results of the procedure,
    /// without [`Accepted`], are appended to `reply`; what is given back goes before them.
    pub fn apply(
        &self,
        procedure: Procedure,
        arguments: &[u8],
        caller: Caller<'_>,
        time: u64,
        region: &mut Region,
        reply: &mut ReplyBuffer,
    ) -> Accepted {
        match Request::decode(procedure, arguments) {
            Ok(request) => {
                let cred = &self.seen(caller.cred);
                results::act(region, &Caller { cred, ..caller }, time, &request, reply);
                Accepted::Success
            }
            Err(Garbage) => Accepted::Garbage,
        }
    }

    /// As [`apply`](Bfs::apply), for procedures that change nothing.
    pub fn look(
        &self,
        procedure: Procedure,
        arguments: &[u8],
        caller: Caller<'_>,
        region: &Region,
        reply: &mut ReplyBuffer,
    ) -> Result<Accepted, NotReadOnly> {
        if !procedure.is_read_only() {
            return Err(NotReadOnly);
        }
        match Request::decode(procedure, arguments) {
            Ok(request) => {
                let cred = &self.seen(caller.cred);
                let looked = results::look(region, &Caller { cred, ..caller }, &request, reply);
                looked.map(|()| Accepted::Success).ok_or(NotReadOnly)
            }
            Err(Garbage) => Ok(Accepted::Garbage),
        }
    }

    /// Whom the caller counts as.
    fn seen(&self, cred: &Credentials) -> Credentials {
        if self.root_squash { cred.clone().squashed() } else { cred.clone() }
    }
}

/// Who makes a call.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The client, as the replicas know it: whose locks they are.
    pub client: ClientId,
    /// On whose behalf it calls.
    pub cred: &'a Credentials,
}

/// What an operation is made of. Who the caller is, is what the client may claim.
struct Operation<'a> {
    procedure: Procedure,
    cred: Credentials,
    arguments: &'a [u8],
}

impl<'a> Operation<'a> {
    fn parse(op: &'a [u8], claims: Option<&Claims>) -> Result<Operation<'a>, Accepted> {
        let mut reader = Reader::new(op);
        let number = reader.u32().map_err(|Garbage| Accepted::Garbage)?;
        let procedure = Procedure::from_number(number).ok_or(Accepted::NoProcedure)?;
        let named = Credentials::decode(&mut reader).map_err(|Garbage| Accepted::Garbage)?;
        let cred = claims.map_or_else(|| named.clone(), |claims| claims.admit(&named));
        Ok(Operation { procedure, cred, arguments: reader.rest() })
    }
}

impl Service for Bfs {
    fn genesis(&self, state: &mut Region) {
        self.format(state);
    }

    fn execute(&self, cx: &mut Context<'_>, op: &[u8], state: &mut Region, reply: &mut ReplyBuffer) {
        reply.put_u32(Accepted::Success as u32);
        let accepted = match Operation::parse(op, self.claims.get(&cx.client())) {
            Ok(op) => {
                let caller = Caller { client: cx.client(), cred: &op.cred };
                self.apply(op.procedure, op.arguments, caller, cx.time().0, state, reply)
            }
            Err(refused) => refused,
        };
        reply.patch(0, &(accepted as u32).to_be_bytes());
    }

    fn query(&self, cx: &Context<'_>, op: &[u8], state: &Region, reply: &mut ReplyBuffer) -> Result<(), NotReadOnly> {
        reply.put_u32(Accepted::Success as u32);
        let accepted = match Operation::parse(op, self.claims.get(&cx.client())) {
            Ok(op) => {
                let caller = Caller { client: cx.client(), cred: &op.cred };
                self.look(op.procedure, op.arguments, caller, state, reply)?
            }
            Err(refused) => refused,
        };
        reply.patch(0, &(accepted as u32).to_be_bytes());
        Ok(())
    }

    fn inspect(state: &Region) -> Option<Inspection> {
        Some(fsck(state).into())
    }
}
