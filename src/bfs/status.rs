//! nfsstat3: how a call went (RFC 1813, section 2.6).

use crate::state::Full;

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// Why a call was refused. Numbers are those of RFC 1813, and from 10,100 on castra's own; 0 is success.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr(u32)]
        pub enum Status {
            $($(#[$doc])* $name = $value,)*
        }

        impl Status {
            /// The refusal with this number.
            pub fn from_number(number: u32) -> Option<Status> {
                match number {
                    $($value => Some(Status::$name),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    /// Not the owner, or not root.
    Perm = 1,
    /// No such file or directory.
    NoEnt = 2,
    /// The state of the file system is broken; `castra bfs fsck` says where.
    Io = 5,
    /// No such device.
    NxIo = 6,
    /// Permission denied.
    Access = 13,
    /// The name exists.
    Exist = 17,
    /// A hard link across file systems.
    XDev = 18,
    /// No such device.
    NoDev = 19,
    /// Not a directory.
    NotDir = 20,
    /// A directory.
    IsDir = 21,
    /// An argument that is not valid for the operation.
    Inval = 22,
    /// Larger than a file may be.
    FBig = 27,
    /// No space left.
    NoSpc = 28,
    /// The file system is read-only.
    RoFs = 30,
    /// Too many hard links.
    MLink = 31,
    /// The name is longer than 255 bytes, or the target of a symbolic link than 4,095.
    NameTooLong = 63,
    /// The directory is not empty.
    NotEmpty = 66,
    /// The user's quota is exceeded.
    DQuot = 69,
    /// The file of this handle is gone.
    Stale = 70,
    /// Too many levels of remote in path.
    Remote = 71,
    /// Not a handle of this file system.
    BadHandle = 10_001,
    /// The guard of a SETATTR does not match.
    NotSync = 10_002,
    /// The cookie of a READDIR does not belong to its verifier.
    BadCookie = 10_003,
    /// The operation is not supported.
    NotSupp = 10_004,
    /// The buffer is too small for one entry.
    TooSmall = 10_005,
    /// An error that has no other number.
    ServerFault = 10_006,
    /// A type of file that cannot be created.
    BadType = 10_007,
    /// Ask again later.
    Jukebox = 10_008,
    /// Another owner's lock is in the way. Not of the RFC, like those that follow.
    Denied = 10_100,
    /// There are as many locks as there may be.
    NoLck = 10_101,
    /// The lease is over or was never begun: what was locked under it is not any more.
    Expired = 10_102,
}

impl From<Full> for Status {
    fn from(_: Full) -> Status {
        Status::NoSpc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back() {
        for status in [Status::Perm, Status::Stale, Status::BadHandle, Status::Jukebox, Status::Denied, Status::Expired]
        {
            assert_eq!(Status::from_number(status as u32), Some(status));
        }
        assert_eq!(Status::from_number(0), None);
        assert_eq!(Status::from_number(10_009), None);
    }
}
