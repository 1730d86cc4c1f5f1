//! CREATE, MKDIR, SYMLINK, MKNOD (RFC 1813, sections 3.3.8 to 3.3.11). All to be attempted.

use super::attributes::NewAttributes;
use super::content;
use super::credentials::{Credentials, WRITE};
use super::directory::{self, LINKS_MAX};
use super::inode::{Inode, InodeId, Kind, Stamp, Target};
use super::request::{CreateHow, Place};
use super::stat;
use super::status::Status;
use super::table;
use crate::state::Region;

/// The longest target of a symbolic link.
pub const TARGET_MAX: usize = 4_095;

type Made = Result<(InodeId, Inode), Status>;

/// The directory of `at`, in which the caller may make a name; and what has that name already.
fn open(region: &Region, cred: &Credentials, at: Place<'_>) -> Result<(InodeId, Inode, Option<InodeId>), Status> {
    // Whether a name exists can be told to whoever may search, also where he may not write.
    let (id, inode) = directory::open(region, at.directory, cred, 0)?;
    directory::check_name(at.name)?;
    let existing = match at.name {
        b"." => Some(id),
        b".." => Some(inode.parent),
        name if directory::is_snapshots(id, name) => Some(InodeId::SNAPSHOTS),
        name => directory::lookup(region, id, name).map(|entry| entry.inode),
    };
    Ok((id, inode, existing))
}

/// Makes a file with a name that is not there.
fn make(
    region: &mut Region,
    cred: &Credentials,
    now: Stamp,
    (id, mut parent): (InodeId, Inode),
    name: &[u8],
    mut inode: Inode,
) -> Made {
    cred.check(&parent, WRITE)?;
    if inode.kind == Kind::Directory {
        if parent.links >= LINKS_MAX {
            return Err(Status::MLink);
        }
        parent.links += 1;
        inode = Inode { links: 2, parent: id, next_cookie: directory::FIRST_COOKIE, ..inode };
    }
    let (made, inode) = table::allocate(region, cred, inode)?;
    directory::enter(region, id, &mut parent, name, made)?;
    (parent.modified, parent.changed) = (now, now);
    table::store(region, id, &parent);
    Ok((made, inode))
}

/// CREATE.
pub(super) fn create(region: &mut Region, cred: &Credentials, now: Stamp, at: Place<'_>, how: &CreateHow) -> Made {
    let (id, parent, existing) = open(region, cred, at)?;
    let (new, verifier) = match *how {
        CreateHow::Unchecked(new) | CreateHow::Guarded(new) => (new, None),
        CreateHow::Exclusive(verifier) => (NewAttributes::default(), Some(verifier)),
    };
    if existing == Some(InodeId::SNAPSHOTS) {
        return Err(if matches!(how, CreateHow::Unchecked(_)) { Status::IsDir } else { Status::Exist });
    }
    if let Some(existing) = existing {
        let inode = table::load(region, existing);
        return match how {
            CreateHow::Guarded(_) => Err(Status::Exist),
            CreateHow::Exclusive(_) if inode.kind == Kind::Regular && inode.verifier == verifier => {
                Ok((existing, inode))
            }
            CreateHow::Exclusive(_) => Err(Status::Exist),
            CreateHow::Unchecked(_) if inode.kind == Kind::Directory => Err(Status::IsDir),
            CreateHow::Unchecked(_) if inode.kind != Kind::Regular => Err(Status::Exist),
            CreateHow::Unchecked(new) => {
                // Of an existing file the size alone is set: what O_CREAT with O_TRUNC means.
                if new.size.is_some() {
                    let size = NewAttributes { size: new.size, ..NewAttributes::default() };
                    let handle = table::handle(region, existing, &inode);
                    stat::set_attributes(region, cred, now, Some(handle), &size, None)?;
                }
                Ok((existing, table::load(region, existing)))
            }
        };
    }
    let mut inode = stat::new_inode(Kind::Regular, &parent, cred, now, &new)?;
    inode.verifier = verifier;
    let (made, mut inode) = make(region, cred, now, (id, parent), at.name, inode)?;
    if let Some(size) = new.size {
        content::resize(region, &mut inode, size)?;
        table::store_charged(region, cred, made, &inode)?;
    }
    Ok((made, inode))
}

/// MKDIR, and MKNOD of kinds that it can create.
pub(super) fn make_node(
    region: &mut Region,
    cred: &Credentials,
    now: Stamp,
    at: Place<'_>,
    kind: Kind,
    (new, device): (&NewAttributes, (u32, u32)),
) -> Made {
    let (id, parent, existing) = open(region, cred, at)?;
    if existing.is_some() {
        return Err(Status::Exist);
    }
    if matches!(kind, Kind::Block | Kind::Character) && !cred.is_root() {
        return Err(Status::Perm);
    }
    let inode = Inode { device, ..stat::new_inode(kind, &parent, cred, now, new)? };
    make(region, cred, now, (id, parent), at.name, inode)
}

/// SYMLINK.
pub(super) fn symlink(
    region: &mut Region,
    cred: &Credentials,
    now: Stamp,
    at: Place<'_>,
    new: &NewAttributes,
    target: &[u8],
) -> Made {
    let (id, parent, existing) = open(region, cred, at)?;
    if existing.is_some() {
        return Err(Status::Exist);
    }
    match target {
        [] => return Err(Status::Inval),
        target if target.len() > TARGET_MAX => return Err(Status::NameTooLong),
        target if target.contains(&0) => return Err(Status::Inval),
        _ => {}
    }
    // A symbolic link has no permissions of its own.
    let new = NewAttributes { mode: Some(0o777), ..*new };
    let mut inode = stat::new_inode(Kind::Symlink, &parent, cred, now, &new)?;
    match Target::new(target) {
        Some(target) => inode.target = target,
        None => content::write(region, &mut inode, 0, target)?,
    }
    make(region, cred, now, (id, parent), at.name, inode)
}
