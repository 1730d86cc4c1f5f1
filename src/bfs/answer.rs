//! Results, read again: what clients of the file system make of them.

use super::attributes::{Attributes, Before, Handle};
use super::procedure::Procedure;
use super::quota::{Account, Quota};
use super::ranges::LockRange;
use super::request::LockOwner;
use super::status::Status;
use super::xdr::{Garbage, Reader, Sink};
use crate::types::ClientId;

/// The results of a procedure. What a procedure does not say, or a refusal leaves out, is `None`, zero or empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer<'a> {
    /// How it went.
    pub status: Result<(), Status>,
    /// The file's attributes: of the one that was asked about, locked, found or made.
    pub attributes: Option<Attributes>,
    /// The handle of the file that was found or made.
    pub handle: Option<Handle>,
    /// What the file was before that SETATTR, WRITE or COMMIT.
    pub before: Option<Before>,
    /// The directory before and after; of RENAME that of the old name.
    pub directory: (Option<Before>, Option<Attributes>),
    /// Of RENAME: the directory of the new name before and after.
    pub target: (Option<Before>, Option<Attributes>),
    /// Of ACCESS: what is granted.
    pub granted: u32,
    /// Of READ: the bytes; of READLINK: the target.
    pub data: &'a [u8],
    /// Of READ: the file ends there; of READDIR and READDIRPLUS: the directory does; of ListQuota: the list does.
    pub eof: bool,
    /// Of READ and WRITE: how many bytes.
    pub count: u32,
    /// Of WRITE and COMMIT, READDIR and READDIRPLUS.
    pub verifier: [u8; 8],
    /// Of READDIR and READDIRPLUS.
    pub entries: Vec<Entry<'a>>,
    /// Of FSSTAT.
    pub space: Space,
    /// Of FSINFO.
    pub sizes: Sizes,
    /// Of PATHCONF.
    pub limits: Limits,
    /// Of a lock that is denied: one that is in the way.
    pub conflict: Option<Conflict>,
    /// Of GetQuota and SetQuota.
    pub quota: Quota,
    /// Of ListQuota.
    pub quotas: Vec<Listed>,
}

/// A lock that is in the way of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// What it locks.
    pub range: LockRange,
    /// Whose it is.
    pub client: ClientId,
    /// Whose it is there.
    pub owner: LockOwner,
}

impl Conflict {
    pub(super) fn encode(&self, sink: &mut impl Sink) {
        self.range.encode(sink);
        sink.put_u64(self.client.0);
        self.owner.encode(sink);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Conflict, Garbage> {
        Ok(Conflict { range: LockRange::decode(r)?, client: ClientId(r.u64()?), owner: LockOwner::decode(r)? })
    }
}

/// One of a list of quotas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Whose it is.
    pub account: Account,
    /// To go on after it.
    pub cookie: u64,
    /// What he may have and has.
    pub quota: Quota,
}

/// An entry of a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// The number of the file.
    pub fileid: u64,
    /// Its name.
    pub name: &'a [u8],
    /// To go on after it.
    pub cookie: u64,
    /// Of READDIRPLUS.
    pub attributes: Option<Attributes>,
    /// Of READDIRPLUS.
    pub handle: Option<Handle>,
}

/// Results of FSSTAT.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes that are free.
    pub bytes_free: u64,
    /// Files in all.
    pub files: u64,
    /// Files that can still be made.
    pub files_free: u64,
}

/// Results of FSINFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sizes {
    /// Bytes of the largest READ.
    pub read_max: u32,
    /// Bytes of the largest WRITE.
    pub write_max: u32,
    /// Bytes of the largest file.
    pub file_max: u64,
}

/// Results of PATHCONF.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Names of a file.
    pub links_max: u32,
    /// Bytes of a name.
    pub name_max: u32,
}

fn after(r: &mut Reader<'_>) -> Result<Option<Attributes>, Garbage> {
    r.optional(Attributes::decode)
}

fn change(r: &mut Reader<'_>) -> Result<(Option<Before>, Option<Attributes>), Garbage> {
    Ok((r.optional(Before::decode)?, after(r)?))
}

fn handle(r: &mut Reader<'_>) -> Result<Handle, Garbage> {
    Handle::decode(r)?.ok_or(Garbage)
}

impl<'a> Answer<'a> {
    /// Reads the results of `procedure`; nothing may follow them.
    pub fn parse(procedure: Procedure, bytes: &'a [u8]) -> Result<Answer<'a>, Garbage> {
        let mut reader = Reader::new(bytes);
        let mut answer = Answer {
            status: Ok(()),
            attributes: None,
            handle: None,
            before: None,
            directory: (None, None),
            target: (None, None),
            granted: 0,
            data: &[],
            eof: false,
            count: 0,
            verifier: [0; 8],
            entries: Vec::new(),
            space: Space::default(),
            sizes: Sizes::default(),
            limits: Limits::default(),
            conflict: None,
            quota: Quota::default(),
            quotas: Vec::new(),
        };
        if procedure != Procedure::Null {
            answer.status = match reader.u32()? {
                0 => Ok(()),
                number => Err(Status::from_number(number).ok_or(Garbage)?),
            };
            answer.read(procedure, &mut reader)?;
        }
        reader.finish()?;
        Ok(answer)
    }

    fn read(&mut self, procedure: Procedure, r: &mut Reader<'a>) -> Result<(), Garbage> {
        let done = self.status.is_ok();
        match procedure {
            Procedure::Null => {}
            Procedure::GetAttr => {
                if done {
                    self.attributes = Some(Attributes::decode(r)?);
                }
            }
            Procedure::SetAttr => (self.before, self.attributes) = change(r)?,
            Procedure::Lookup => {
                if done {
                    self.handle = Some(handle(r)?);
                    self.attributes = after(r)?;
                }
                self.directory.1 = after(r)?;
            }
            Procedure::Access => {
                self.attributes = after(r)?;
                if done {
                    self.granted = r.u32()?;
                }
            }
            Procedure::ReadLink => {
                self.attributes = after(r)?;
                if done {
                    self.data = r.opaque(usize::MAX)?;
                }
            }
            Procedure::Read => {
                self.attributes = after(r)?;
                if done {
                    (self.count, self.eof) = (r.u32()?, r.bool()?);
                    self.data = r.opaque(usize::MAX)?;
                }
            }
            Procedure::Write => {
                (self.before, self.attributes) = change(r)?;
                if done {
                    self.count = r.u32()?;
                    r.u32()?;
                    self.verifier = r.fixed()?;
                }
            }
            Procedure::Create | Procedure::MkDir | Procedure::Symlink | Procedure::MkNod => {
                if done {
                    self.handle = r.optional(handle)?;
                    self.attributes = after(r)?;
                }
                self.directory = change(r)?;
            }
            Procedure::Remove | Procedure::RmDir => self.directory = change(r)?,
            Procedure::Rename => (self.directory, self.target) = (change(r)?, change(r)?),
            Procedure::Link => (self.attributes, self.directory) = (after(r)?, change(r)?),
            Procedure::ReadDir | Procedure::ReadDirPlus => {
                self.directory.1 = after(r)?;
                if done {
                    self.read_entries(procedure == Procedure::ReadDirPlus, r)?;
                }
            }
            Procedure::FsStat => {
                self.attributes = after(r)?;
                if done {
                    let (bytes, bytes_free, _, files, files_free, _) =
                        (r.u64()?, r.u64()?, r.u64()?, r.u64()?, r.u64()?, r.u64()?);
                    self.space = Space { bytes, bytes_free, files, files_free };
                    r.u32()?;
                }
            }
            Procedure::FsInfo => {
                self.attributes = after(r)?;
                if done {
                    let (read_max, _, _, write_max, _, _, _) =
                        (r.u32()?, r.u32()?, r.u32()?, r.u32()?, r.u32()?, r.u32()?, r.u32()?);
                    self.sizes = Sizes { read_max, write_max, file_max: r.u64()? };
                    r.fixed::<12>()?;
                }
            }
            Procedure::PathConf => {
                self.attributes = after(r)?;
                if done {
                    self.limits = Limits { links_max: r.u32()?, name_max: r.u32()? };
                    r.fixed::<16>()?;
                }
            }
            Procedure::Commit => {
                (self.before, self.attributes) = change(r)?;
                if done {
                    self.verifier = r.fixed()?;
                }
            }
            Procedure::Lock | Procedure::TestLock => {
                if done && procedure == Procedure::Lock {
                    self.attributes = after(r)?;
                }
                if self.status == Err(Status::Denied) {
                    self.conflict = Some(Conflict::decode(r)?);
                }
            }
            Procedure::Unlock | Procedure::Lease => {}
            Procedure::GetQuota | Procedure::SetQuota => {
                if done {
                    self.quota = Quota::read(r)?;
                }
            }
            Procedure::ListQuota => {
                if done {
                    self.read_quotas(r)?;
                }
            }
        }
        Ok(())
    }

    fn read_quotas(&mut self, r: &mut Reader<'a>) -> Result<(), Garbage> {
        while r.bool()? {
            let (account, cookie, quota) = (Account::decode(r)?, r.u64()?, Quota::read(r)?);
            self.quotas.push(Listed { account, cookie, quota });
        }
        self.eof = r.bool()?;
        Ok(())
    }

    fn read_entries(&mut self, plus: bool, r: &mut Reader<'a>) -> Result<(), Garbage> {
        self.verifier = r.fixed()?;
        while r.bool()? {
            let (fileid, name, cookie) = (r.u64()?, r.opaque(usize::MAX)?, r.u64()?);
            let (attributes, handle) = if plus { (after(r)?, r.optional(handle)?) } else { (None, None) };
            self.entries.push(Entry { fileid, name, cookie, attributes, handle });
        }
        self.eof = r.bool()?;
        Ok(())
    }
}
