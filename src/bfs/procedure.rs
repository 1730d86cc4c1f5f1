//! The 22 procedures of NFSv3 (RFC 1813, section 3.3), and those of castra's own, from 100 on.

macro_rules! procedures {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $read_only:literal;)*) => {
        /// A procedure, by its number.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr(u32)]
        pub enum Procedure {
            $($(#[$doc])* $name = $value,)*
        }

        impl Procedure {
            /// All of them, by number.
            pub const ALL: [Procedure; [$($value),*].len()] = [$(Procedure::$name),*];

            /// The procedure with this number.
            pub fn from_number(number: u32) -> Option<Procedure> {
                match number {
                    $($value => Some(Procedure::$name),)*
                    _ => None,
                }
            }

            /// Whether it is one of NFSv3's, which a server of NFS offers.
            pub fn is_nfs(self) -> bool {
                (self as u32) < 100
            }

            /// Whether it changes nothing, so that it needs no place in the order. READ is one of these because reading
            /// does not touch the time of access, COMMIT because whatever was answered is stable already.
            pub fn is_read_only(self) -> bool {
                match self {
                    $(Procedure::$name => $read_only,)*
                }
            }
        }
    };
}

procedures! {
    /// Does nothing.
    Null = 0, true;
    /// Attributes.
    GetAttr = 1, true;
    /// Sets attributes.
    SetAttr = 2, false;
    /// The handle of a name.
    Lookup = 3, true;
    /// What the caller may do.
    Access = 4, true;
    /// The target of a symbolic link.
    ReadLink = 5, true;
    /// Reads from a file.
    Read = 6, true;
    /// Writes to a file.
    Write = 7, false;
    /// Creates a regular file.
    Create = 8, false;
    /// Creates a directory.
    MkDir = 9, false;
    /// Creates a symbolic link.
    Symlink = 10, false;
    /// Creates a special file.
    MkNod = 11, false;
    /// Removes a name that is not a directory's.
    Remove = 12, false;
    /// Removes an empty directory.
    RmDir = 13, false;
    /// Renames.
    Rename = 14, false;
    /// Another name for a file.
    Link = 15, false;
    /// Entries of a directory.
    ReadDir = 16, true;
    /// Entries of a directory with attributes and handles.
    ReadDirPlus = 17, true;
    /// Space, used and free.
    FsStat = 18, true;
    /// Sizes and abilities.
    FsInfo = 19, true;
    /// Limits of names and links.
    PathConf = 20, true;
    /// Makes writes stable.
    Commit = 21, true;
    /// Locks a range of a file.
    Lock = 100, false;
    /// Unlocks a range of a file.
    Unlock = 101, false;
    /// What is in the way of a lock.
    TestLock = 102, true;
    /// Begins, renews or ends what locks are held under.
    Lease = 103, false;
    /// Limits and usage of a user or a group.
    GetQuota = 110, true;
    /// Sets limits of a user or a group.
    SetQuota = 111, false;
    /// Limits and usage of all users and groups.
    ListQuota = 112, true;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back() {
        for procedure in Procedure::ALL {
            assert_eq!(Procedure::from_number(procedure as u32), Some(procedure));
        }
        let numbers: Vec<u32> = Procedure::ALL.into_iter().filter(|it| it.is_nfs()).map(|it| it as u32).collect();
        assert_eq!(numbers, (0..22).collect::<Vec<_>>());
        assert_eq!(Procedure::from_number(22), None);
        assert!(!Procedure::Lock.is_nfs());
        assert_eq!(Procedure::from_number(u32::MAX), None);
    }
}
