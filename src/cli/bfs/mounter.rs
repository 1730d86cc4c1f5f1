//! Who mounts, and what he may ask for.

use fuser::{MountOption, SessionACL};

use crate::cli::errors::Error;

/// Who mounts: what others than root may is for fusermount3 to say, which refuses a mount whole that asks for more.
#[derive(Clone, Copy)]
pub enum Mounter {
    /// Root.
    Root,
    /// Somebody else.
    User {
        /// The machine lets users share their mounts.
        shares: bool,
    },
}

impl Mounter {
    /// Whoever runs this.
    pub fn of_this_process() -> Mounter {
        if rustix::process::geteuid().is_root() {
            return Mounter::Root;
        }
        Mounter::User { shares: std::fs::read_to_string(FUSE_CONF).is_ok_and(|text| lets_share(&text)) }
    }

    /// What the kernel, or fusermount3, is asked for.
    pub fn options(self) -> (Vec<MountOption>, SessionACL) {
        let mut options = vec![
            MountOption::FSName("castra".to_owned()),
            MountOption::Subtype("bfs".to_owned()),
            MountOption::DefaultPermissions,
        ];
        match self {
            Mounter::Root => {
                options.extend([MountOption::Dev, MountOption::Suid]);
                (options, SessionACL::All)
            }
            Mounter::User { shares: true } => (options, SessionACL::All),
            Mounter::User { shares: false } => (options, SessionACL::Owner),
        }
    }

    /// Why there is no mount, and what an ordinary user needs for one.
    pub fn refused(self, path: &std::path::Display<'_>, error: std::io::Error) -> Error {
        let what = match self {
            Mounter::Root => format!("mount on {path}"),
            Mounter::User { .. } => {
                format!("mount on {path} without root, which takes fusermount3 and leave to open /dev/fuse")
            }
        };
        Error::system(what)(error)
    }
}

/// Where a machine says what users may.
const FUSE_CONF: &str = "/etc/fuse.conf";

/// Whether a fuse.conf lets users' mounts be seen by other users.
fn lets_share(conf: &str) -> bool {
    conf.lines().any(|line| line.trim() == "user_allow_other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_asks_for_no_more_than_fusermount_grants() {
        let asks = |mounter: Mounter, option| mounter.options().0.contains(&option);
        for shares in [false, true] {
            let user = Mounter::User { shares };
            assert!(!asks(user, MountOption::Dev) && !asks(user, MountOption::Suid));
            assert!(asks(user, MountOption::DefaultPermissions), "the kernel checks for whoever is let in");
            assert_eq!(user.options().1 == SessionACL::All, shares);
        }
        assert!(asks(Mounter::Root, MountOption::Dev) && asks(Mounter::Root, MountOption::Suid));
        assert!(Mounter::Root.options().1 == SessionACL::All);
    }

    #[test]
    fn fuse_conf_is_read_without_its_comments() {
        assert!(lets_share("# mount_max = 1000\n user_allow_other \n"));
        assert!(!lets_share("#user_allow_other\nmount_max = 7\n"));
    }
}
