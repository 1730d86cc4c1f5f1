//! GETATTR, SETATTR, ACCESS (RFC 1813, sections 3.3.1, 3.3.2, 3.3.4).

use super::attributes::{NewAttributes, SetTime};
use super::content;
use super::credentials::{Credentials, EXECUTE, READ, WRITE};
use super::inode::{Inode, Kind, Stamp};
use super::request::Given;
use super::status::Status;
use super::table;
use crate::state::Region;

/// The bits of a mode that can be set.
pub(super) const MODE: u32 = 0o7777;
const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

/// What ACCESS asks about.
pub mod access {
    /// Read data, or the entries of a directory.
    pub const READ: u32 = 0x01;
    /// Look up a name.
    pub const LOOKUP: u32 = 0x02;
    /// Overwrite data, or change entries.
    pub const MODIFY: u32 = 0x04;
    /// Extend data, or add entries.
    pub const EXTEND: u32 = 0x08;
    /// Remove entries.
    pub const DELETE: u32 = 0x10;
    /// Execute.
    pub const EXECUTE: u32 = 0x20;
    /// All that can be done where nothing may be changed.
    pub const CHANGES_NOTHING: u32 = READ | LOOKUP | EXECUTE;
}

/// Which of the `wanted` bits of [`access`] are granted.
pub(super) fn granted(inode: &Inode, cred: &Credentials, wanted: u32) -> u32 {
    let of_directory =
        [(READ, access::READ), (EXECUTE, access::LOOKUP), (WRITE, access::MODIFY | access::EXTEND | access::DELETE)];
    let of_others = [(READ, access::READ), (WRITE, access::MODIFY | access::EXTEND), (EXECUTE, access::EXECUTE)];
    let table = if inode.kind == Kind::Directory { of_directory } else { of_others };
    table.into_iter().filter(|&(permission, _)| cred.may(inode, permission)).fold(0, |all, (_, bits)| all | bits)
        & wanted
}

/// SETATTR. To be attempted.
pub(super) fn set_attributes(
    region: &mut Region,
    cred: &Credentials,
    now: Stamp,
    object: Given,
    new: &NewAttributes,
    guard: Option<Stamp>,
) -> Result<(), Status> {
    let (id, mut inode) = table::find(region, object)?;
    // A guard travels with 32 bits of seconds.
    let seen = Stamp { seconds: inode.changed.seconds.min(u32::MAX.into()), ..inode.changed };
    if guard.is_some_and(|guard| guard != seen) {
        return Err(Status::NotSync);
    }
    if *new == NewAttributes::default() {
        return Ok(());
    }
    permit(&inode, cred, new)?;
    if let Some(size) = new.size {
        match inode.kind {
            Kind::Regular => content::resize(region, &mut inode, size)?,
            Kind::Directory => return Err(Status::IsDir),
            Kind::Block | Kind::Character | Kind::Symlink | Kind::Socket | Kind::Fifo | Kind::Free | Kind::Doomed => {
                return Err(Status::Inval);
            }
        }
        inode.modified = now;
        drop_privileges(&mut inode, cred);
    }
    if new.uid.is_some() || new.gid.is_some() {
        inode.uid = new.uid.unwrap_or(inode.uid);
        inode.gid = new.gid.unwrap_or(inode.gid);
        // Whoever it belongs to now did not ask for it to run as himself.
        if inode.kind != Kind::Directory {
            drop_set_ids(&mut inode);
        }
    }
    if let Some(mode) = new.mode {
        inode.mode = mode & MODE;
        if !cred.is_root() && !cred.is_in(inode.gid) {
            inode.mode &= !SETGID;
        }
    }
    set_times(&mut inode, now, new);
    inode.changed = now;
    inode.verifier = None;
    table::store_charged(region, cred, id, &inode)
}

fn permit(inode: &Inode, cred: &Credentials, new: &NewAttributes) -> Result<(), Status> {
    let owns = cred.owns(inode);
    check_times(new)?;
    if new.mode.is_some() && !owns {
        return Err(Status::Perm);
    }
    permit_owner(cred, owns, (inode.uid, inode.gid), new)?;
    if new.size.is_some() {
        cred.check_content(inode, WRITE)?;
    }
    for time in [new.accessed, new.modified] {
        match time {
            SetTime::Keep => {}
            SetTime::Now if owns => {}
            SetTime::Now => cred.check(inode, WRITE)?,
            SetTime::To(_) if owns => {}
            SetTime::To(_) => return Err(Status::Perm),
        }
    }
    Ok(())
}

/// Whether the caller may give a file of this user and group away: root may, its owner to groups that he is in.
fn permit_owner(cred: &Credentials, owns: bool, (uid, gid): (u32, u32), new: &NewAttributes) -> Result<(), Status> {
    if cred.is_root() {
        return Ok(());
    }
    let user = new.uid.is_none_or(|new| owns && new == uid);
    let group = new.gid.is_none_or(|new| owns && (new == gid || cred.is_in(new)));
    if user && group { Ok(()) } else { Err(Status::Perm) }
}

fn check_times(new: &NewAttributes) -> Result<(), Status> {
    let good = |time| !matches!(time, SetTime::To(stamp) if stamp.nanos >= 1_000_000_000);
    if good(new.accessed) && good(new.modified) { Ok(()) } else { Err(Status::Inval) }
}

fn set_times(inode: &mut Inode, now: Stamp, new: &NewAttributes) {
    for (time, set) in [(&mut inode.accessed, new.accessed), (&mut inode.modified, new.modified)] {
        match set {
            SetTime::Keep => {}
            SetTime::Now => *time = now,
            SetTime::To(stamp) => *time = stamp,
        }
    }
}

/// The content changes by somebody else's hand than root's: it runs as nobody else any more.
pub(super) fn drop_privileges(inode: &mut Inode, cred: &Credentials) {
    if !cred.is_root() {
        drop_set_ids(inode);
    }
}

/// Without execution by the group, setgid does not mean that.
fn drop_set_ids(inode: &mut Inode) {
    inode.mode &= !SETUID;
    if inode.mode & GROUP_EXECUTE != 0 {
        inode.mode &= !SETGID;
    }
}

/// The inode of a new file in `directory`, with the attributes that its creator gives it, but for the size.
pub(super) fn new_inode(
    kind: Kind,
    directory: &Inode,
    cred: &Credentials,
    now: Stamp,
    new: &NewAttributes,
) -> Result<Inode, Status> {
    check_times(new)?;
    let inherits = directory.mode & SETGID != 0;
    let gid = if inherits { directory.gid } else { cred.gid };
    permit_owner(cred, true, (cred.uid, gid), new)?;
    let mut mode = new.mode.unwrap_or(0) & MODE;
    let gid = new.gid.unwrap_or(gid);
    if kind == Kind::Directory {
        if inherits {
            mode |= SETGID;
        }
    } else if mode & GROUP_EXECUTE != 0 && !cred.is_root() && !cred.is_in(gid) {
        mode &= !SETGID;
    }
    let mut inode = Inode {
        kind,
        mode,
        links: 1,
        uid: new.uid.unwrap_or(cred.uid),
        gid,
        accessed: now,
        modified: now,
        changed: now,
        ..Inode::default()
    };
    set_times(&mut inode, now, new);
    Ok(inode)
}
