//! How the world fails, with all that a message about it must say. The texts with their codes are the command line's.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::net::SocketAddr;

/// The world failed a runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// E001: the rings do not fit the locked-memory limit.
    #[error("locked memory: {need} bytes needed for {rings} rings, the limit is {have}")]
    LockedMemory {
        /// The soft limit, bytes.
        have: u64,
        /// The hard limit, bytes; up to it the process may raise its own.
        hard: u64,
        /// What the rings need, bytes.
        need: u64,
        /// How many rings.
        rings: usize,
    },
    /// E002: no io_uring here, and plain sockets were not allowed instead.
    #[error("io_uring refused: {0}")]
    UringRefused(#[from] Refusal),
    /// E003: another socket has the address.
    #[error("{address} is in use")]
    AddressInUse {
        /// The address that was asked for.
        address: SocketAddr,
        /// Processes that hold it, as far as we may see.
        holders: Vec<Holder>,
    },
    /// E014: the cores asked for cannot be had.
    #[error("cores: {0}")]
    Cores(#[from] CoresError),
    /// Anything else that the system refused.
    #[error("{doing}: {error}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        error: io::Error,
    },
}

impl Error {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |error| Error::Io { doing, error }
    }
}

/// Why there is no io_uring.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// `kernel.io_uring_disabled` is 1 (only for its group) or 2 (for all).
    #[error("sysctl kernel.io_uring_disabled = {value}")]
    Sysctl {
        /// The sysctl's value.
        value: u32,
    },
    /// EPERM though the sysctl allows it: a seccomp filter, as container runtimes set.
    #[error("a seccomp filter forbids io_uring_setup (seccomp mode {mode})")]
    Seccomp {
        /// `Seccomp:` of /proc/thread-self/status; 0 if it could not be read or something else (an LSM) refuses.
        mode: u32,
    },
    /// The kernel has no io_uring or lacks what we use of it (Linux 6.1 has all).
    #[error("kernel {release} lacks {missing}")]
    OldKernel {
        /// `uname -r`.
        release: String,
        /// The first thing that was missing.
        missing: &'static str,
    },
    /// Another errno.
    #[error("{doing} failed with errno {errno}")]
    Other {
        /// What was being done.
        doing: &'static str,
        /// The raw errno.
        errno: i32,
    },
}

/// A process that holds a socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its name, as `/proc/PID/comm` has it.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// Why a placement on cores is impossible.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CoresError {
    /// Cores outside the set that this process may use, or offline.
    #[error("cores {wanted:?} are outside the allowed set {allowed:?}")]
    Outside {
        /// The cores that cannot be had.
        wanted: Vec<usize>,
        /// The cores that this process may use.
        allowed: Vec<usize>,
    },
    /// One core for two roles.
    #[error("core {core} is given to two roles; allowed are {allowed:?}")]
    Shared {
        /// The core.
        core: usize,
        /// The cores that this process may use.
        allowed: Vec<usize>,
    },
    /// A placement that cannot be read, or that no replica can have: one or two network cores, one of the others each.
    #[error("not a list of cores: {text:?}")]
    Malformed {
        /// What was written.
        text: String,
    },
    /// The system refused to pin a thread to a core of the allowed set.
    #[error("could not pin a thread to core {core}")]
    Refused {
        /// The core.
        core: usize,
    },
}
