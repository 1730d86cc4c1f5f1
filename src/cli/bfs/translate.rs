//! Between the terms of FUSE and those of NFS.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};

use crate::bfs::{Attributes, Handle, InodeId, Kind, SetTime, Stamp, Status, TRANSFER_MAX};

/// Bits of a mode that say what kind of file it is.
const KIND_MASK: u32 = 0o170_000;

/// Generations that a node's number has room for: one bit says whether it is of the past.
const GENERATIONS: u64 = 1 << 31;

/// The number that the kernel knows a file by: inode and generation, or the file's number if it is of the past, so that a
/// handle follows from it and a mount keeps no table. The root's is 1, as FUSE wants it. `None` for an inode that was used
/// 2^31 times.
pub fn node(handle: Handle) -> Option<INodeNo> {
    match handle {
        Handle::Now { generation: GENERATIONS.., .. } => None,
        Handle::Now { inode, generation } => Some(INodeNo(generation << 32 | u64::from(inode.0))),
        Handle::Snapshots | Handle::Then { .. } => Some(INodeNo(handle.fileid())),
    }
}

/// The handle behind a number of [`node`].
pub fn handle(node: INodeNo) -> Handle {
    let now = Handle::Now { inode: InodeId(node.0 as u32), generation: node.0 >> 32 };
    Handle::of_past(node.0).unwrap_or(now)
}

/// What a refusal is to a program on Linux.
pub fn errno(status: Status) -> Errno {
    match status {
        Status::Perm => Errno::EPERM,
        Status::NoEnt => Errno::ENOENT,
        Status::Io | Status::ServerFault => Errno::EIO,
        Status::NxIo => Errno::ENXIO,
        Status::Access => Errno::EACCES,
        Status::Exist => Errno::EEXIST,
        Status::XDev => Errno::EXDEV,
        Status::NoDev => Errno::ENODEV,
        Status::NotDir => Errno::ENOTDIR,
        Status::IsDir => Errno::EISDIR,
        Status::Inval | Status::BadCookie | Status::TooSmall | Status::BadType => Errno::EINVAL,
        Status::FBig => Errno::EFBIG,
        Status::NoSpc => Errno::ENOSPC,
        Status::RoFs => Errno::EROFS,
        Status::MLink => Errno::EMLINK,
        Status::NameTooLong => Errno::ENAMETOOLONG,
        Status::NotEmpty => Errno::ENOTEMPTY,
        Status::DQuot => Errno::EDQUOT,
        Status::Stale | Status::BadHandle => Errno::ESTALE,
        Status::Remote => Errno::EREMOTE,
        Status::NotSync | Status::Jukebox | Status::Denied => Errno::EAGAIN,
        // A mount that is told that its lease is over begins another; who sees this cannot get one.
        Status::NoLck | Status::Expired => Errno::ENOLCK,
        Status::NotSupp => Errno::EOPNOTSUPP,
    }
}

/// The kind of a file.
pub fn kind(kind: Kind) -> Option<FileType> {
    Some(match kind {
        Kind::Regular => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Block => FileType::BlockDevice,
        Kind::Character => FileType::CharDevice,
        Kind::Symlink => FileType::Symlink,
        Kind::Socket => FileType::Socket,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Free | Kind::Doomed => return None,
    })
}

/// The kind that a mode of mknod(2) names.
pub fn kind_of_mode(mode: u32) -> Option<Kind> {
    Some(match mode & KIND_MASK {
        0 | 0o100_000 => Kind::Regular,
        0o060_000 => Kind::Block,
        0o020_000 => Kind::Character,
        0o140_000 => Kind::Socket,
        0o010_000 => Kind::Fifo,
        _ => return None,
    })
}

/// A device's number as FUSE has it: 12 bits of major among 20 of minor.
pub fn device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Major and minor of [`device`].
pub fn major_minor(device: u32) -> (u32, u32) {
    (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00)
}

fn system_time(stamp: Stamp) -> SystemTime {
    UNIX_EPOCH + Duration::new(stamp.seconds, stamp.nanos)
}

/// A time to be set. NFS has 32 bits for the seconds since 1970: what is beyond either end stays there.
pub fn set_time(time: Option<TimeOrNow>) -> SetTime {
    match time {
        None => SetTime::Keep,
        Some(TimeOrNow::Now) => SetTime::Now,
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            let seconds = since.as_secs().min(u32::MAX.into());
            SetTime::To(Stamp { seconds, nanos: since.subsec_nanos() })
        }
    }
}

/// Attributes of the file that the kernel knows by this number; `None` if they are none of a file.
pub fn attributes(node: INodeNo, of: &Attributes) -> Option<FileAttr> {
    Some(FileAttr {
        ino: node,
        size: of.size,
        blocks: of.used / 512,
        atime: system_time(of.accessed),
        mtime: system_time(of.modified),
        ctime: system_time(of.changed),
        crtime: UNIX_EPOCH,
        kind: kind(of.kind)?,
        perm: (of.mode & 0o7777) as u16,
        nlink: of.links,
        uid: of.uid,
        gid: of.gid,
        rdev: device(of.device),
        // What programs buffer before they read or write: a call each.
        blksize: TRANSFER_MAX,
        flags: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::SnapshotId;

    #[test]
    fn numbers_lead_back_to_handles() {
        assert_eq!(node(Handle::ROOT), Some(INodeNo::ROOT));
        let now = |generation| Handle::Now { inode: InodeId(u32::MAX), generation };
        let then = |snapshot| Handle::Then { snapshot: SnapshotId(snapshot), inode: InodeId(u32::MAX) };
        for far in [now(GENERATIONS - 1), Handle::Snapshots, then(1), then((1 << 31) - 1)] {
            assert_eq!(handle(node(far).unwrap()), far);
        }
        assert_eq!(node(now(GENERATIONS)), None);
    }

    #[test]
    fn devices_and_times_survive() {
        for pair in [(0, 0), (8, 1), (0xfff, 0xf_ffff), (1, 0x1_0203)] {
            assert_eq!(major_minor(device(pair)), pair);
        }
        let before = UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(set_time(Some(TimeOrNow::SpecificTime(before))), SetTime::To(Stamp::default()));
        let late = UNIX_EPOCH + Duration::new(1 << 40, 7);
        let end = Stamp { seconds: u32::MAX.into(), nanos: 7 };
        assert_eq!(set_time(Some(TimeOrNow::SpecificTime(late))), SetTime::To(end));
    }
}
