//! Making a ring, and why it cannot be made (E001, E002).
#![forbid(unsafe_code)]

use std::fs;

use io_uring::IoUring;

use crate::runtime::Error;
use crate::runtime::error::Refusal;

/// Entries of the submission queue.
pub(super) const SUBMISSIONS: u32 = 256;

/// Entries of the completion queue. What does not fit waits in the kernel, but ends multishot receives.
const COMPLETIONS: u32 = 4_096;

/// A ring for the calling thread alone.
pub(super) fn ring() -> Result<IoUring, Error> {
    let made = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(COMPLETIONS)
        .build(SUBMISSIONS);
    match made {
        Ok(ring) => check(ring),
        Err(error) => Err(diagnose(error.raw_os_error().unwrap_or(0), &System::read())),
    }
}

fn check(ring: IoUring) -> Result<IoUring, Error> {
    let params = ring.params();
    let missing = [
        (params.is_feature_nodrop(), "IORING_FEAT_NODROP"),
        (params.is_feature_ext_arg(), "IORING_FEAT_EXT_ARG"),
        (params.is_feature_skip_cqe_on_success(), "IORING_FEAT_CQE_SKIP"),
    ];
    match missing.into_iter().find(|(has, _)| !has) {
        None => Ok(ring),
        Some((_, missing)) => Err(Refusal::OldKernel { release: System::read().release, missing }.into()),
    }
}

/// What of the system decides.
#[derive(Clone, Debug)]
struct System {
    release: String,
    sysctl: Option<u32>,
    seccomp: u32,
    locked: (u64, u64),
}

impl System {
    fn read() -> System {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let seccomp = status.lines().find_map(|line| line.strip_prefix("Seccomp:")?.trim().parse().ok());
        let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
        System {
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            sysctl: sysctl.and_then(|text| text.trim().parse().ok()),
            seccomp: seccomp.unwrap_or(0),
            locked: (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX)),
        }
    }

    /// Whether the kernel is at least `major.minor`.
    fn at_least(&self, major: u32, minor: u32) -> bool {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
    }
}

/// The memory that a ring's queues take, bytes: submission entries of 64, their index, completion entries of 16.
pub(super) const RING_BYTES: u64 = SUBMISSIONS as u64 * (64 + 4) + COMPLETIONS as u64 * 16 + 4_096;

fn diagnose(errno: i32, system: &System) -> Error {
    let release = system.release.clone();
    let refusal = match errno {
        libc::ENOMEM => {
            let (have, hard) = system.locked;
            return Error::LockedMemory { have, hard, need: RING_BYTES, rings: 1 };
        }
        libc::EPERM => match system.sysctl {
            Some(value @ 1..) => Refusal::Sysctl { value },
            Some(0) | None => Refusal::Seccomp { mode: system.seccomp },
        },
        libc::ENOSYS if system.at_least(5, 1) && system.seccomp != 0 => Refusal::Seccomp { mode: system.seccomp },
        libc::ENOSYS => Refusal::OldKernel { release, missing: "io_uring_setup" },
        libc::EINVAL if !system.at_least(6, 1) => {
            Refusal::OldKernel { release, missing: "IORING_SETUP_DEFER_TASKRUN (Linux 6.1)" }
        }
        errno => Refusal::Other { doing: "io_uring_setup", errno },
    };
    refusal.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(release: &str, sysctl: Option<u32>, seccomp: u32) -> System {
        System { release: release.to_owned(), sysctl, seccomp, locked: (65_536, 65_536) }
    }

    fn refusal(errno: i32, system: &System) -> Refusal {
        match diagnose(errno, system) {
            Error::UringRefused(refusal) => refusal,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn refusals_name_their_cause() {
        let new = system("6.18.44-x", Some(0), 2);
        assert_eq!(refusal(libc::EPERM, &system("6.18", Some(2), 2)), Refusal::Sysctl { value: 2 });
        assert_eq!(refusal(libc::EPERM, &new), Refusal::Seccomp { mode: 2 });
        assert_eq!(refusal(libc::EPERM, &system("6.1", None, 0)), Refusal::Seccomp { mode: 0 });
        assert_eq!(refusal(libc::ENOSYS, &new), Refusal::Seccomp { mode: 2 });
        assert!(matches!(refusal(libc::ENOSYS, &system("4.19.0", None, 0)), Refusal::OldKernel { .. }));
        assert!(matches!(refusal(libc::EINVAL, &system("5.15.0-91", Some(0), 0)), Refusal::OldKernel { .. }));
        assert!(matches!(refusal(libc::EINVAL, &new), Refusal::Other { errno: libc::EINVAL, .. }));
    }

    #[test]
    fn no_memory_is_a_limit_with_have_and_need() {
        match diagnose(libc::ENOMEM, &system("6.18", Some(0), 0)) {
            Error::LockedMemory { have: 65_536, need, rings: 1, .. } => assert!(need > 65_536),
            other => panic!("{other}"),
        }
    }
}
