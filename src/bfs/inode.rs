//! Inodes: what a file is, in 256 bytes.
//!
//! ```text
//!   0 kind u8 (ftype3; 0 free, 8 doomed) | 1 flags u8: 1 there is a createverf | 2 reserved | 4 mode u32 | 8 links u32
//!  12 uid u32 | 16 gid u32 | 20 parent u32 (directories), next of the list (free, doomed) | 24 generation u64
//!  32 extent: root u32, length u64 | 44 device major u32, minor u32 | 52 reserved | 56 pages u64
//!  64 next cookie u64 | 72 entries u64 | 80 createverf 8 bytes
//!  88 atime | 100 mtime | 112 ctime: seconds u64, nanoseconds u32 | 124 length of a target that stands here u32
//! 128 target of a symbolic link, up to 128 bytes; longer ones have an extent
//! ```
//! Integers are little-endian.

use crate::state::{Extent, Fixed};

/// Bytes of an inode.
pub const INODE: usize = 256;

/// The longest target of a symbolic link that stands in its inode.
pub const INLINE_TARGET_MAX: usize = 128;

/// What kind of file it is: ftype3 (RFC 1813, section 2.5), and two that no call shows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum Kind {
    /// Not in use.
    #[default]
    Free = 0,
    /// A regular file.
    Regular = 1,
    /// A directory.
    Directory = 2,
    /// A block device.
    Block = 3,
    /// A character device.
    Character = 4,
    /// A symbolic link.
    Symlink = 5,
    /// A socket.
    Socket = 6,
    /// A named pipe.
    Fifo = 7,
    /// Gone, and its pages are being freed.
    Doomed = 8,
}

impl Kind {
    /// The kind with this number of ftype3.
    pub fn from_number(number: u32) -> Option<Kind> {
        Some(match number {
            1 => Kind::Regular,
            2 => Kind::Directory,
            3 => Kind::Block,
            4 => Kind::Character,
            5 => Kind::Symlink,
            6 => Kind::Socket,
            7 => Kind::Fifo,
            _ => return None,
        })
    }
}

/// Number of an inode, its index in the table. 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct InodeId(pub u32);

impl InodeId {
    /// No inode.
    pub const NONE: InodeId = InodeId(0);
    /// The root directory.
    pub const ROOT: InodeId = InodeId(1);
    /// Stands for the directory of snapshots, which has no inode. No file ever has this one.
    pub(super) const SNAPSHOTS: InodeId = InodeId(u32::MAX);
}

/// A point in time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Stamp {
    /// Seconds since the Unix epoch.
    pub seconds: u64,
    /// Nanoseconds, below 10^9.
    pub nanos: u32,
}

impl Stamp {
    /// So many nanoseconds after the Unix epoch.
    pub fn from_nanos(nanos: u64) -> Stamp {
        Stamp { seconds: nanos / 1_000_000_000, nanos: (nanos % 1_000_000_000) as u32 }
    }
}

/// An inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Permissions, setuid, setgid and sticky: the lower 12 bits of a mode.
    pub mode: u32,
    /// Names of the file; of a directory also its `.` and the `..` of its subdirectories.
    pub links: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Of a directory: the one that it is in; its own for the root. Of an unused one: the next on its list.
    pub parent: InodeId,
    /// How often the inode was used before: the part of a handle that tells one file from the next.
    pub generation: u64,
    /// The content of a regular file, or the long target of a symbolic link.
    pub content: Extent,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Pages of `content`, index pages included.
    pub pages: u64,
    /// Of a directory: the cookie that the next entry gets. Cookies are never used again.
    pub next_cookie: u64,
    /// Of a directory: its entries.
    pub entries: u64,
    /// Of a file that was created exclusively and not changed since: by which verifier.
    pub verifier: Option<[u8; 8]>,
    /// Last access, as set: reading does not touch it.
    pub accessed: Stamp,
    /// Last change of the content.
    pub modified: Stamp,
    /// Last change of anything.
    pub changed: Stamp,
    /// Of a symbolic link with a short target; a long one is in `content`.
    pub target: Target,
}

/// The target of a symbolic link that is short enough to stand in its inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    len: usize,
    bytes: [u8; INLINE_TARGET_MAX],
}

impl Target {
    /// A short target; `None` if it is longer.
    pub fn new(target: &[u8]) -> Option<Target> {
        let mut bytes = [0; INLINE_TARGET_MAX];
        bytes.get_mut(..target.len())?.copy_from_slice(target);
        Some(Target { len: target.len(), bytes })
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Default for Inode {
    fn default() -> Inode {
        Inode::from_bytes(&[0; INODE])
    }
}

fn get<T: Fixed>(bytes: &[u8; INODE], at: usize) -> T {
    T::decode(&bytes[at..at + T::SIZE])
}

fn put<T: Fixed>(bytes: &mut [u8; INODE], at: usize, value: T) {
    value.encode(&mut bytes[at..at + T::SIZE]);
}

impl Inode {
    /// Decodes it. Any bytes are an inode; the check of the file system tells which are a wrong one.
    pub fn from_bytes(bytes: &[u8; INODE]) -> Inode {
        let stamp = |at| Stamp { seconds: get(bytes, at), nanos: get(bytes, at + 8) };
        let target_len = get::<u32>(bytes, 124).min(INLINE_TARGET_MAX as u32) as usize;
        Inode {
            kind: match bytes[0] {
                8 => Kind::Doomed,
                number => Kind::from_number(number.into()).unwrap_or(Kind::Free),
            },
            mode: get(bytes, 4),
            links: get(bytes, 8),
            uid: get(bytes, 12),
            gid: get(bytes, 16),
            parent: InodeId(get(bytes, 20)),
            generation: get(bytes, 24),
            content: get(bytes, 32),
            device: get(bytes, 44),
            pages: get(bytes, 56),
            next_cookie: get(bytes, 64),
            entries: get(bytes, 72),
            verifier: (bytes[1] & 1 != 0).then(|| get(bytes, 80)),
            accessed: stamp(88),
            modified: stamp(100),
            changed: stamp(112),
            target: Target { len: target_len, bytes: get(bytes, 128) },
        }
    }

    /// Encodes it.
    pub fn to_bytes(&self) -> [u8; INODE] {
        let mut bytes = [0; INODE];
        bytes[0] = self.kind as u8;
        bytes[1] = u8::from(self.verifier.is_some());
        put(&mut bytes, 4, self.mode);
        put(&mut bytes, 8, self.links);
        put(&mut bytes, 12, self.uid);
        put(&mut bytes, 16, self.gid);
        put(&mut bytes, 20, self.parent.0);
        put(&mut bytes, 24, self.generation);
        put(&mut bytes, 32, self.content);
        put(&mut bytes, 44, self.device);
        put(&mut bytes, 56, self.pages);
        put(&mut bytes, 64, self.next_cookie);
        put(&mut bytes, 72, self.entries);
        put(&mut bytes, 80, self.verifier.unwrap_or_default());
        for (at, stamp) in [(88, self.accessed), (100, self.modified), (112, self.changed)] {
            put(&mut bytes, at, (stamp.seconds, stamp.nanos));
        }
        put(&mut bytes, 124, self.target.len as u32);
        put(&mut bytes, 128, self.target.bytes);
        bytes
    }

    /// Whether it is a file of any kind: neither free nor doomed.
    pub fn is_file(&self) -> bool {
        !matches!(self.kind, Kind::Free | Kind::Doomed)
    }

    /// Bytes, as attributes have them.
    pub fn size(&self) -> u64 {
        match self.kind {
            Kind::Directory => crate::limits::PAGE as u64,
            Kind::Symlink if self.content.is_empty() => self.target.len as u64,
            _ => self.content.len(),
        }
    }

    /// Bytes that it takes, as attributes have them. Entries of directories share pages: one is said for each directory.
    pub fn used(&self) -> u64 {
        let pages = if self.kind == Kind::Directory { 1 } else { self.pages };
        pages.saturating_mul(crate::limits::PAGE as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_its_bytes() {
        let inode = Inode {
            kind: Kind::Symlink,
            mode: 0o7777,
            links: 3,
            uid: u32::MAX,
            gid: 5,
            parent: InodeId(9),
            generation: 1 << 50,
            device: (7, 8),
            pages: 1 << 40,
            next_cookie: 77,
            entries: 12,
            verifier: Some(*b"exclusiv"),
            accessed: Stamp { seconds: 1 << 40, nanos: 999_999_999 },
            modified: Stamp { seconds: 2, nanos: 3 },
            changed: Stamp { seconds: 4, nanos: 5 },
            target: Target::new(&[b'x'; INLINE_TARGET_MAX]).unwrap(),
            ..Inode::default()
        };
        assert_eq!(Target::new(&[b'y'; INLINE_TARGET_MAX + 1]), None);
        assert_eq!(Inode::from_bytes(&inode.to_bytes()), inode);
        assert_eq!(inode.size(), 128);
    }

    #[test]
    fn all_zeroes_are_a_free_inode() {
        assert_eq!(Inode::default().kind, Kind::Free);
        assert_eq!(Inode::default().to_bytes(), [0; INODE]);
    }
}
