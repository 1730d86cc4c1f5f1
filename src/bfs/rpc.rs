//! ONC RPC (RFC 5531), as much of it as a server of NFS needs: calls in, replies out, records of TCP. And the MOUNT protocol
//! (RFC 1813, appendix I), which hands out the first handle.

use super::credentials::{Credentials, GROUPS_MAX, NOBODY};
use super::results::CAN_SET_TIME;
use super::xdr::{Garbage, Reader, Sink};
use super::{Accepted, Handle, Procedure, Status, TRANSFER_MAX, access};

/// The program number of NFS.
pub const NFS: u32 = 100_003;
/// The program number of MOUNT.
pub const MOUNT: u32 = 100_005;
/// The version of both.
pub const VERSION: u32 = 3;

/// The longest record: the largest WRITE with its framing.
pub const RECORD_MAX: usize = TRANSFER_MAX as usize + 4_096;

/// Bytes of a credential's or a verifier's body.
const AUTH_MAX: usize = 400;
/// Bytes of the name of a caller's machine.
const MACHINE_MAX: usize = 255;

const AUTH_NONE: u32 = 0;
const AUTH_SYS: u32 = 1;
const AUTH_BADCRED: u32 = 1;
const AUTH_REJECTEDCRED: u32 = 2;

/// The header of a record's fragment (RFC 5531, section 11): its length, and whether it is the last.
pub fn fragment(header: [u8; 4]) -> (usize, bool) {
    let word = u32::from_be_bytes(header);
    ((word & 0x7fff_ffff) as usize, word & 0x8000_0000 != 0)
}

/// A call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call<'a> {
    /// What ties the reply to the call.
    pub xid: u32,
    /// Which program, and which version of it.
    pub program: (u32, u32),
    /// Which procedure of it.
    pub procedure: u32,
    /// Who calls: nobody, without AUTH_SYS.
    pub cred: Credentials,
    /// The arguments of the procedure.
    pub arguments: &'a [u8],
}

/// A record that is no call which can be carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// No call at all: the connection makes no sense any more.
    NoCall,
    /// It is answered with this record.
    Reply(Vec<u8>),
}

impl<'a> Call<'a> {
    /// Reads a record.
    pub fn parse(record: &'a [u8]) -> Result<Call<'a>, Refused> {
        let mut reader = Reader::new(record);
        let mut word = || reader.u32().map_err(|Garbage| Refused::NoCall);
        let (xid, kind, version) = (word()?, word()?, word()?);
        if kind != 0 {
            return Err(Refused::NoCall);
        }
        if version != 2 {
            return Err(Refused::Reply(denied(xid, &[0, 2, 2])));
        }
        let (program, program_version, procedure) = (word()?, word()?, word()?);
        let body = (|| {
            let cred = (reader.u32()?, reader.opaque(AUTH_MAX)?);
            reader.u32()?;
            reader.opaque(AUTH_MAX)?;
            Ok(cred)
        })();
        let (flavour, body) = body.map_err(|Garbage| Refused::NoCall)?;
        let cred = match flavour {
            AUTH_NONE => Credentials::new(NOBODY, NOBODY, &[]),
            AUTH_SYS => auth_sys(body).map_err(|Garbage| Refused::Reply(denied(xid, &[1, AUTH_BADCRED])))?,
            _ => return Err(Refused::Reply(denied(xid, &[1, AUTH_REJECTEDCRED]))),
        };
        Ok(Call { xid, program: (program, program_version), procedure, cred, arguments: reader.rest() })
    }
}

/// The body of AUTH_SYS (appendix A): stamp, machine, uid, gid, groups.
fn auth_sys(body: &[u8]) -> Result<Credentials, Garbage> {
    let mut reader = Reader::new(body);
    reader.u32()?;
    reader.opaque(MACHINE_MAX)?;
    let (uid, gid, count) = (reader.u32()?, reader.u32()?, reader.u32()? as usize);
    let mut groups = [0; GROUPS_MAX];
    for group in groups.get_mut(..count).ok_or(Garbage)? {
        *group = reader.u32()?;
    }
    reader.finish()?;
    Ok(Credentials::new(uid, gid, &groups[..count]))
}

/// MSG_DENIED, with what the words say.
fn denied(xid: u32, words: &[u32]) -> Vec<u8> {
    let mut reply = record(xid);
    reply.put_u32(1);
    words.iter().for_each(|&word| reply.put_u32(word));
    close(reply)
}

/// A record in the making: room for the fragment's header, xid, REPLY.
fn record(xid: u32) -> Vec<u8> {
    let mut reply = vec![0; 4];
    reply.put_u32(xid);
    reply.put_u32(1);
    reply
}

fn close(mut reply: Vec<u8>) -> Vec<u8> {
    let len = u32::try_from(reply.len() - 4).expect("a reply is shorter than a fragment may be");
    reply[..4].copy_from_slice(&(len | 0x8000_0000).to_be_bytes());
    reply
}

/// MSG_ACCEPTED with accept_stat and what follows it.
fn accepted(xid: u32, status: u32, rest: &[u8]) -> Vec<u8> {
    let mut reply = record(xid);
    for word in [0, AUTH_NONE, 0, status] {
        reply.put_u32(word);
    }
    reply.put(rest);
    close(reply)
}

/// The reply to a call of which the results, or another accept_stat than success, are these: record mark included.
pub fn reply(xid: u32, status: Accepted, results: &[u8]) -> Vec<u8> {
    accepted(xid, status as u32, results)
}

/// The reply that consists of what the file system gave for an operation: accept_stat and results.
pub fn relay(xid: u32, result: &[u8]) -> Vec<u8> {
    let mut reply = record(xid);
    for word in [0, AUTH_NONE, 0] {
        reply.put_u32(word);
    }
    reply.put(result);
    close(reply)
}

/// The reply to a call of a program that is not there: PROG_UNAVAIL, or PROG_MISMATCH for another version.
pub fn no_program(xid: u32, program: u32) -> Vec<u8> {
    match program {
        NFS | MOUNT => {
            let mut versions = Vec::new();
            versions.put_u32(VERSION);
            versions.put_u32(VERSION);
            accepted(xid, 2, &versions)
        }
        _ => accepted(xid, 1, &[]),
    }
}

/// A call of MOUNT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MountCall<'a> {
    /// NULL, UMNT, UMNTALL: there is nothing to do and nothing to say.
    Nothing,
    /// MNT: the handle of a directory, by its path.
    Mount(&'a [u8]),
    /// DUMP: who has mounted what, which nobody keeps.
    Dump,
    /// EXPORT: what can be mounted.
    Export,
}

impl<'a> MountCall<'a> {
    /// The longest path.
    const PATH_MAX: usize = 1_024;

    /// Reads a call's arguments.
    pub fn parse(procedure: u32, arguments: &'a [u8]) -> Result<MountCall<'a>, Accepted> {
        let mut reader = Reader::new(arguments);
        let call = match procedure {
            0 | 4 => Ok(MountCall::Nothing),
            1 => reader.opaque(Self::PATH_MAX).map(MountCall::Mount),
            2 => Ok(MountCall::Dump),
            3 => reader.opaque(Self::PATH_MAX).map(|_| MountCall::Nothing),
            5 => Ok(MountCall::Export),
            _ => return Err(Accepted::NoProcedure),
        };
        let call = call.and_then(|call| reader.finish().map(|()| call));
        call.map_err(|Garbage| Accepted::Garbage)
    }
}

/// The results of MNT: a handle and that AUTH_SYS will do, or mountstat3.
pub fn mounted(handle: Result<Handle, u32>) -> Vec<u8> {
    let mut results = Vec::new();
    results.put_u32(handle.err().unwrap_or(0));
    if let Ok(handle) = handle {
        handle.encode(&mut results);
        results.put_u32(1);
        results.put_u32(AUTH_SYS);
    }
    results
}

/// The results of EXPORT: the root, to these. To nobody in particular is to everyone.
pub fn exports(groups: &[String]) -> Vec<u8> {
    let mut results = Vec::new();
    results.put_bool(true);
    results.put_opaque(b"/");
    for group in groups {
        results.put_bool(true);
        results.put_opaque(group.as_bytes());
    }
    results.put_bool(false);
    results.put_bool(false);
    results
}

/// The results of a procedure of NFS that changes something, where nothing may be changed: NFS3ERR_ROFS, without attributes.
/// `None` for one that changes nothing.
pub fn read_only_refusal(procedure: Procedure) -> Option<Vec<u8>> {
    if procedure.is_read_only() {
        return None;
    }
    // wcc_data is two words; RENAME has it of two directories, LINK the attributes of the file before it.
    let words = match procedure {
        Procedure::Rename => 4,
        Procedure::Link => 3,
        _ => 2,
    };
    let mut results = Vec::new();
    results.put_u32(Status::RoFs as u32);
    (0..words).for_each(|_| results.put_bool(false));
    Some(results)
}

/// What the file system gave for an operation (accept_stat and results), as a server gives it where nothing may be changed:
/// ACCESS grants no change, FSINFO says that times cannot be set. `None` where that makes no difference.
pub fn as_read_only(procedure: Procedure, result: &[u8]) -> Option<Vec<u8>> {
    let kept = match procedure {
        Procedure::Access => access::CHANGES_NOTHING,
        Procedure::FsInfo => !CAN_SET_TIME,
        _ => return None,
    };
    // In both it is the last word, if the procedure succeeded.
    let ([0, 0, 0, 0, 0, 0, 0, 0], rest) = result.split_first_chunk()? else { return None };
    let last = u32::from_be_bytes(*rest.last_chunk()?) & kept;
    Some([&result[..result.len() - 4], &last.to_be_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call of NFS with these credentials.
    fn call(version: u32, flavour: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [77, 0, version, NFS, VERSION, 6, flavour] {
            bytes.put_u32(word);
        }
        bytes.put_opaque(body);
        bytes.put_u32(0);
        bytes.put_opaque(&[]);
        bytes.put(b"args");
        bytes
    }

    fn sys(groups: u32) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u32(5);
        body.put_opaque(b"machine");
        body.put_u32(10);
        body.put_u32(20);
        body.put_u32(groups);
        (0..groups).for_each(|group| body.put_u32(group));
        body
    }

    fn words(reply: &[u8]) -> Vec<u32> {
        reply.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn a_call_says_who_calls_what() {
        let bytes = call(2, AUTH_SYS, &sys(3));
        let parsed = Call::parse(&bytes).unwrap();
        assert_eq!((parsed.xid, parsed.program, parsed.procedure), (77, (NFS, VERSION), 6));
        assert_eq!(parsed.cred, Credentials::new(10, 20, &[0, 1, 2]));
        assert_eq!(parsed.arguments, b"args");
        assert_eq!(Call::parse(&call(2, AUTH_NONE, &[])).unwrap().cred.uid, NOBODY);
    }

    #[test]
    fn what_is_no_call_is_refused_as_the_protocol_has_it() {
        let refused = |bytes: &[u8]| match Call::parse(bytes) {
            Err(Refused::Reply(reply)) => words(&reply)[1..].to_vec(),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&call(3, AUTH_SYS, &sys(1))), [77, 1, 1, 0, 2, 2], "RPC_MISMATCH");
        assert_eq!(refused(&call(2, 6, &[])), [77, 1, 1, 1, 2], "AUTH_REJECTEDCRED");
        assert_eq!(refused(&call(2, AUTH_SYS, &sys(17))), [77, 1, 1, 1, 1], "AUTH_BADCRED");
        assert_eq!(refused(&call(2, AUTH_SYS, &[1, 2, 3])), [77, 1, 1, 1, 1]);
        let mut answer = call(2, AUTH_SYS, &sys(1));
        answer[7] = 1;
        assert_eq!(Call::parse(&answer), Err(Refused::NoCall));
        for cut in 0..answer.len() - 4 {
            assert!(Call::parse(&call(2, AUTH_SYS, &sys(1))[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn replies_are_marked_records() {
        assert_eq!(words(&reply(9, Accepted::Garbage, &[])), [0x8000_0018, 9, 1, 0, 0, 0, 4]);
        assert_eq!(words(&relay(9, &[0, 0, 0, 0, 0, 0, 0, 70])), [0x8000_001c, 9, 1, 0, 0, 0, 0, 70]);
        assert_eq!(words(&no_program(9, 100_000))[6..], [1]);
        assert_eq!(words(&no_program(9, NFS))[6..], [2, 3, 3]);
        assert_eq!(fragment([0x80, 0, 1, 0]), (256, true));
        assert_eq!(fragment([0x7f, 0xff, 0xff, 0xff]), (0x7fff_ffff, false));
    }

    #[test]
    fn mount_hands_out_the_root() {
        let mut path = Vec::new();
        path.put_opaque(b"/");
        assert_eq!(MountCall::parse(1, &path), Ok(MountCall::Mount(b"/")));
        assert_eq!(MountCall::parse(1, &path[..6]), Err(Accepted::Garbage));
        assert_eq!(MountCall::parse(6, &[]), Err(Accepted::NoProcedure));
        assert_eq!(MountCall::parse(0, &[0; 4]), Err(Accepted::Garbage));
        assert_eq!(words(&mounted(Err(2))), [2]);
        assert_eq!(mounted(Ok(Handle::ROOT)).len(), 4 + 4 + 16 + 8);
        let root = u32::from_be_bytes(*b"/\0\0\0");
        assert_eq!(words(&exports(&[])), [1, 1, root, 0, 0]);
        let one = u32::from_be_bytes(*b"::1\0");
        assert_eq!(words(&exports(&["::1".to_owned(), "::1".to_owned()])), [1, 1, root, 1, 3, one, 1, 3, one, 0, 0]);
    }

    #[test]
    fn where_nothing_may_be_changed_the_results_say_so() {
        use crate::bfs::Answer;

        for procedure in Procedure::ALL.into_iter().filter(|procedure| procedure.is_nfs()) {
            let refusal = read_only_refusal(procedure);
            assert_eq!(refusal.is_none(), procedure.is_read_only());
            if let Some(refusal) = refusal {
                assert_eq!(Answer::parse(procedure, &refusal).unwrap().status, Err(Status::RoFs), "{procedure:?}");
            }
        }
        let mut granted = vec![0; 12];
        granted.put_u32(0x3f);
        let refused = [&[0, 0, 0, 0, 0, 0, 0, 70][..], &[0xff; 4]].concat();
        let less = as_read_only(Procedure::Access, &granted).unwrap();
        assert_eq!(Answer::parse(Procedure::Access, &less[4..]).unwrap().granted, 0x23);
        assert_eq!(as_read_only(Procedure::FsInfo, &refused), None, "what was refused has no last word");
        assert_eq!(as_read_only(Procedure::Read, &granted), None);
        assert_eq!(as_read_only(Procedure::FsInfo, &granted).unwrap()[12..], 0x2fu32.to_be_bytes());
        (0..12).for_each(|len| assert_eq!(as_read_only(Procedure::Access, &vec![0; len]), None));
    }
}
