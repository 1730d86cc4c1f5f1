//! Who asks, and what he may do (AUTH_SYS: RFC 5531, appendix A).

use std::collections::BTreeSet;

use super::inode::{Inode, Kind};
use super::status::Status;
use super::xdr::{Garbage, Reader, Sink};

/// Supplementary groups of one caller, as AUTH_SYS bounds them.
pub const GROUPS_MAX: usize = 16;

/// The user and group that stand for nobody in particular, and for root where it is squashed.
pub const NOBODY: u32 = 65_534;

/// Permission to read, as a bit of a mode.
pub const READ: u32 = 4;
/// Permission to write.
pub const WRITE: u32 = 2;
/// Permission to execute a file or to search a directory.
pub const EXECUTE: u32 = 1;

/// On whose behalf a call is made. AUTH_SYS says it and proves nothing: the gateway's host is trusted to say who its users
/// are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credentials {
    /// The user.
    pub uid: u32,
    /// The group that new files get.
    pub gid: u32,
    groups: [u32; GROUPS_MAX],
    count: usize,
}

impl Credentials {
    /// The superuser.
    pub const ROOT: Credentials = Credentials { uid: 0, gid: 0, groups: [0; GROUPS_MAX], count: 0 };

    /// A user with a group and supplementary groups, of which those beyond [`GROUPS_MAX`] are not used.
    pub fn new(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
        let count = groups.len().min(GROUPS_MAX);
        let mut all = [0; GROUPS_MAX];
        all[..count].copy_from_slice(&groups[..count]);
        Credentials { uid, gid, groups: all, count }
    }

    /// Supplementary groups.
    pub fn groups(&self) -> &[u32] {
        &self.groups[..self.count]
    }

    /// Root becomes nobody, as user and as group.
    pub fn squashed(mut self) -> Credentials {
        for id in [&mut self.uid, &mut self.gid].into_iter().chain(&mut self.groups[..self.count]) {
            if *id == 0 {
                *id = NOBODY;
            }
        }
        self
    }

    /// uid, gid, groups.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Credentials, Garbage> {
        let (uid, gid) = (reader.u32()?, reader.u32()?);
        let count = reader.u32()? as usize;
        let mut groups = [0; GROUPS_MAX];
        for group in groups.get_mut(..count).ok_or(Garbage)? {
            *group = reader.u32()?;
        }
        Ok(Credentials { uid, gid, groups, count })
    }

    /// As [`decode`](Credentials::decode) reads them.
    pub fn encode(&self, sink: &mut impl Sink) {
        sink.put_u32(self.uid);
        sink.put_u32(self.gid);
        sink.put_u32(self.count as u32);
        self.groups().iter().for_each(|&group| sink.put_u32(group));
    }

    /// Whether he may do everything.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether he owns the file, or is root.
    pub fn owns(&self, inode: &Inode) -> bool {
        self.is_root() || self.uid == inode.uid
    }

    /// Whether he is in the group.
    pub fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups().contains(&gid)
    }

    /// Whether the mode of the file lets him: `wanted` is of `READ`, `WRITE` and `EXECUTE`.
    pub fn may(&self, inode: &Inode, wanted: u32) -> bool {
        if self.is_root() {
            // Root executes only what somebody may execute.
            return wanted & EXECUTE == 0 || inode.kind == Kind::Directory || inode.mode & 0o111 != 0;
        }
        let granted = match inode {
            inode if inode.uid == self.uid => inode.mode >> 6,
            inode if self.is_in(inode.gid) => inode.mode >> 3,
            inode => inode.mode,
        };
        granted & wanted == wanted
    }

    /// [`Status::Access`] unless the mode of the file lets him.
    pub fn check(&self, inode: &Inode, wanted: u32) -> Result<(), Status> {
        if self.may(inode, wanted) { Ok(()) } else { Err(Status::Access) }
    }

    /// As [`check`](Credentials::check), for the content of a file: its owner may always reach it, because a client
    /// checks when a file is opened, and a file stays open when its mode changes (RFC 1813, section 4.4).
    pub fn check_content(&self, inode: &Inode, wanted: u32) -> Result<(), Status> {
        if self.owns(inode) { Ok(()) } else { self.check(inode, wanted) }
    }

    /// Whether the sticky bit of `directory` keeps him from removing or renaming `entry` in it.
    pub fn is_held_off(&self, directory: &Inode, entry: &Inode) -> bool {
        directory.mode & 0o1000 != 0 && !self.owns(directory) && !self.owns(entry)
    }
}

/// Whose calls one client may make. AUTH_SYS proves nothing of users, but whose gateway it is that names them is proved.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Claims {
    /// Users; any other counts as nobody.
    pub uids: BTreeSet<u32>,
    /// Groups; any other counts as nobody's.
    pub gids: BTreeSet<u32>,
}

impl Claims {
    /// What a call counts as that names `cred`.
    pub fn admit(&self, cred: &Credentials) -> Credentials {
        if !self.uids.contains(&cred.uid) {
            return Credentials::new(NOBODY, NOBODY, &[]);
        }
        let groups: Vec<u32> = cred.groups().iter().copied().filter(|gid| self.gids.contains(gid)).collect();
        let gid = if self.gids.contains(&cred.gid) { cred.gid } else { NOBODY };
        Credentials::new(cred.uid, gid, &groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(kind: Kind, mode: u32) -> Inode {
        Inode { kind, mode, uid: 10, gid: 20, ..Inode::default() }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let file = inode(Kind::Regular, 0o047);
        assert!(!Credentials::new(10, 20, &[]).may(&file, READ), "the owner has the owner's bits alone");
        assert!(Credentials::new(11, 20, &[]).may(&file, READ));
        assert!(Credentials::new(11, 1, &[7, 20]).may(&file, READ));
        assert!(!Credentials::new(11, 1, &[7, 20]).may(&file, READ | WRITE));
        assert!(Credentials::new(11, 1, &[7]).may(&file, READ | WRITE | EXECUTE));
    }

    #[test]
    fn a_client_speaks_for_its_users_and_groups_alone() {
        let claims = Claims { uids: [0, 7].into(), gids: [20].into() };
        assert_eq!(claims.admit(&Credentials::new(7, 20, &[1, 20, 0])), Credentials::new(7, 20, &[20]));
        assert_eq!(claims.admit(&Credentials::new(7, 0, &[])), Credentials::new(7, NOBODY, &[]));
        assert_eq!(claims.admit(&Credentials::new(8, 20, &[20])), Credentials::new(NOBODY, NOBODY, &[]));
        assert_eq!(claims.admit(&Credentials::ROOT), Credentials::new(0, NOBODY, &[]));
        assert_eq!(Claims::default().admit(&Credentials::ROOT), Credentials::new(NOBODY, NOBODY, &[]));
    }

    #[test]
    fn root_executes_only_what_can_be_executed() {
        assert!(Credentials::ROOT.may(&inode(Kind::Regular, 0), READ | WRITE));
        assert!(!Credentials::ROOT.may(&inode(Kind::Regular, 0o666), EXECUTE));
        assert!(Credentials::ROOT.may(&inode(Kind::Regular, 0o001), EXECUTE));
        assert!(Credentials::ROOT.may(&inode(Kind::Directory, 0), EXECUTE));
        let squashed = Credentials::new(0, 0, &[5, 0]).squashed();
        assert_eq!(squashed, Credentials::new(NOBODY, NOBODY, &[5, NOBODY]));
    }

    #[test]
    fn more_groups_than_the_protocol_has_are_garbage() {
        let mut bytes = Vec::new();
        let full = Credentials::new(1, 2, &[3; 20]);
        full.encode(&mut bytes);
        assert_eq!(Credentials::decode(&mut Reader::new(&bytes)), Ok(full));
        bytes[11] = 17;
        bytes.put_u32(1);
        assert_eq!(Credentials::decode(&mut Reader::new(&bytes)), Err(Garbage));
        bytes[8..12].fill(0xff);
        assert_eq!(Credentials::decode(&mut Reader::new(&bytes)), Err(Garbage));
    }
}
