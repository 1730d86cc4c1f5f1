//! Everything that can go wrong for someone at the command line: what was seen, the likely cause, the exact mend.
//!
//! Codes are stable: documentation, scripts and search engines know them. Each has a snapshot test.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::runtime::error::{CoresError, Holder, Refusal};

/// A failure of a verb, or something that a replica has to say to its operator.
#[derive(Debug)]
pub enum Error {
    /// E001: the rings do not fit the locked-memory limit.
    LockedMemory {
        /// The limit, bytes.
        have: u64,
        /// Up to here the process may raise its limit, bytes.
        hard: u64,
        /// What the rings need, bytes.
        need: u64,
        /// How many rings (network cores).
        rings: usize,
    },
    /// E002: no io_uring here.
    UringRefused(Refusal),
    /// E003: another socket has the address.
    PortInUse {
        /// The address that was asked for.
        address: SocketAddr,
        /// Who has it, as far as we may see.
        holders: Vec<Holder>,
        /// The first of enough free ports in a row for the cluster, if one was found.
        free: Option<u16>,
    },
    /// E004: a key is not the one that the cluster file names.
    KeyMismatch {
        /// Whose key: `r2`, `client`.
        owner: String,
        /// Where the key was found.
        key: PathBuf,
        /// Fingerprint of that key.
        found: String,
        /// The cluster file.
        cluster: PathBuf,
        /// Fingerprint in the cluster file.
        expected: String,
    },
    /// E005: a datagram of another cluster arrived.
    ForeignCluster {
        /// The first bytes of our id, little-endian.
        ours: u64,
        /// The first bytes of the datagram's.
        theirs: u64,
        /// Who sent it.
        from: SocketAddr,
        /// How many since the last time this was said.
        count: u64,
    },
    /// E007: fewer replicas answer than a quorum.
    TooFewReplicas {
        /// Replicas in the cluster.
        n: usize,
        /// Faults tolerated.
        f: usize,
        /// Who is missing, and when it was last heard by anyone who answers.
        missing: Vec<(String, Option<Duration>)>,
    },
    /// E009: the kernel drops datagrams because a receive buffer is full.
    SocketDrops {
        /// Which replica.
        replica: String,
        /// Datagrams dropped.
        drops: u64,
        /// The receive buffer that the kernel granted, bytes.
        have: usize,
        /// The receive buffer that was asked for, bytes.
        want: usize,
    },
    /// E011: a replica's state is, or was, not that of the others.
    Diverged {
        /// Which replica.
        replica: String,
        /// The checkpoint at which it showed.
        n: u64,
        /// Whose state it was compared with, if not with one that a quorum certified.
        with: Option<String>,
        /// Pages that differ.
        count: u64,
        /// The first of them, by region.
        pages: BTreeMap<String, Vec<u32>>,
        /// Compared at `n`; otherwise some pages were only changed after it.
        exact: bool,
    },
    /// E013: a request found no certificate in time.
    ClientTimeout {
        /// What was asked.
        operation: String,
        /// How long it waited.
        after: Duration,
        /// Replies needed.
        need: usize,
        /// Replicas.
        n: usize,
        /// The largest number of replies that agree.
        matching: usize,
        /// Replies that differ from those.
        differing: usize,
        /// Replicas that did not answer.
        silent: Vec<String>,
        /// Datagrams with a bad MAC.
        unauthentic: u64,
        /// It was sent: it may have been executed all the same.
        maybe_executed: bool,
    },
    /// E014: cores that cannot be had.
    Cores(CoresError),
    /// E015: a secret that others can read.
    KeyReadable {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// W016: keys of a laboratory, or memory mode, where others can reach it.
    LabBeyondLoopback {
        /// The address that is not loopback.
        address: SocketAddr,
        /// The cluster file.
        cluster: PathBuf,
        /// All keys were made in one place; else it is memory mode alone.
        lab_keys: bool,
    },
    /// E020: a configuration file says something that cannot be.
    Config {
        /// The file.
        path: PathBuf,
        /// Line, if known; from 1.
        line: Option<usize>,
        /// What is wrong.
        seen: String,
        /// What would be right.
        mend: String,
    },
    /// E021: a file or folder cannot be read or written.
    File {
        /// What was being done: "read", "write".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
        /// What would help.
        mend: String,
    },
    /// E022: the cluster runs, or does not, and should not, or should.
    Running {
        /// What was seen.
        seen: String,
        /// What would help.
        mend: String,
    },
    /// E023: the replicated service answered no.
    Refused {
        /// What was asked.
        operation: String,
        /// The answer.
        answer: String,
        /// What would help.
        mend: String,
    },
    /// E024: lines of an input file that could not be read; all others were.
    BadLines {
        /// The file.
        path: PathBuf,
        /// How many.
        count: u64,
        /// How many pairs were stored all the same.
        stored: u64,
    },
    /// E025: a replica stopped by itself.
    Stopped {
        /// Which.
        replica: String,
        /// Why.
        why: String,
        /// What would help.
        mend: String,
    },
    /// E026: the system refused something else.
    System {
        /// What was being done.
        doing: String,
        /// What it said.
        error: io::Error,
    },
    /// E027: the state of a replica does not fit together.
    Unsound {
        /// Whose.
        replicas: Vec<String>,
        /// The checkpoint that was checked.
        n: u64,
        /// More than f have the same state and the same faults.
        shared: bool,
    },
    /// E028: too few replicas were checked at one checkpoint and had one state.
    Unconfirmed {
        /// Faults tolerated.
        f: usize,
        /// The checkpoint, if there is one.
        n: Option<u64>,
        /// How many were checked.
        checked: usize,
        /// Who was not.
        unchecked: Vec<String>,
    },
    /// Wrong use, in words of the verb.
    Usage(String),
    /// Standard output was closed by its reader: no error to anyone.
    OutputClosed,
    /// SIGINT or SIGTERM came; what was under way ended cleanly.
    Interrupted,
    /// It failed, and its report says how.
    Reported,
}

impl Error {
    /// Its stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Error::LockedMemory { .. } => "E001",
            Error::UringRefused(_) => "E002",
            Error::PortInUse { .. } => "E003",
            Error::KeyMismatch { .. } => "E004",
            Error::ForeignCluster { .. } => "E005",
            Error::TooFewReplicas { .. } => "E007",
            Error::SocketDrops { .. } => "E009",
            Error::Diverged { .. } => "E011",
            Error::ClientTimeout { .. } => "E013",
            Error::Cores(_) => "E014",
            Error::KeyReadable { .. } => "E015",
            Error::LabBeyondLoopback { .. } => "W016",
            Error::Config { .. } => "E020",
            Error::File { .. } => "E021",
            Error::Running { .. } => "E022",
            Error::Refused { .. } => "E023",
            Error::BadLines { .. } => "E024",
            Error::Stopped { .. } => "E025",
            Error::System { .. } => "E026",
            Error::Unsound { .. } => "E027",
            Error::Unconfirmed { .. } => "E028",
            Error::Usage(_) => "usage",
            Error::OutputClosed | Error::Interrupted | Error::Reported => "",
        }
    }

    /// 1: it failed. 2: it was asked wrongly, by arguments or by configuration; asking again will not help.
    pub fn exit_status(&self) -> u8 {
        match self {
            Error::KeyMismatch { .. }
            | Error::Cores(_)
            | Error::KeyReadable { .. }
            | Error::LabBeyondLoopback { .. }
            | Error::Config { .. }
            | Error::Usage(_) => 2,
            Error::OutputClosed => 0,
            Error::Interrupted => 130,
            Error::Reported => 1,
            Error::LockedMemory { .. }
            | Error::UringRefused(_)
            | Error::PortInUse { .. }
            | Error::ForeignCluster { .. }
            | Error::TooFewReplicas { .. }
            | Error::SocketDrops { .. }
            | Error::Diverged { .. }
            | Error::ClientTimeout { .. }
            | Error::File { .. }
            | Error::Running { .. }
            | Error::Refused { .. }
            | Error::BadLines { .. }
            | Error::Stopped { .. }
            | Error::System { .. }
            | Error::Unsound { .. }
            | Error::Unconfirmed { .. } => 1,
        }
    }

    /// Its exit status, for `main`.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit_status())
    }

    /// Something that can only be a fault of castra, and which command shows it.
    pub fn to_report(seen: impl Into<String>, command: &str) -> Error {
        Error::Running { seen: seen.into(), mend: format!("please report it with the output of `{command}`") }
    }

    /// A file that could not be read.
    pub fn reading(path: impl Into<PathBuf>, mend: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let (path, mend) = (path.into(), mend.into());
        move |error| Error::File { doing: "read", path, error, mend }
    }

    /// A file that could not be written.
    pub fn writing(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |error| {
            let mend = "check that the folder exists, is yours and has space".into();
            Error::File { doing: "write", path, error, mend }
        }
    }

    /// Something else that the system refused.
    pub fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let doing = doing.into();
        move |error| Error::System { doing, error }
    }

    /// What was seen: one line.
    fn seen(&self) -> String {
        match self {
            Error::LockedMemory { have, need, rings, .. } => {
                format!("{rings} io_uring rings need {need} bytes of locked memory, the limit is {have}")
            }
            Error::UringRefused(refusal) => format!("io_uring is refused: {refusal}"),
            Error::PortInUse { address, holders, .. } if holders.is_empty() => {
                format!("{address} is in use by a process that we may not see")
            }
            Error::PortInUse { address, holders, .. } => format!("{address} is in use by {}", list(holders)),
            Error::KeyMismatch { owner, key, found, cluster, expected } => format!(
                "the key of {owner} is not the one in {}: {} has fingerprint {found}, expected {expected}",
                cluster.display(),
                key.display()
            ),
            Error::ForeignCluster { ours, theirs, from, count } => format!(
                "{count} datagrams of another cluster, last from {from}: its id begins with {}, ours with {}",
                hex::encode(theirs.to_le_bytes()),
                hex::encode(ours.to_le_bytes())
            ),
            Error::TooFewReplicas { n, f, missing } => format!(
                "{} of {n} replicas answer, {} are needed (n = {n}, f = {f}); missing: {}",
                n - missing.len(),
                2 * f + 1,
                list(missing.iter().map(|(name, heard)| match heard {
                    Some(ago) => format!("{name} (last heard {:.1} s ago)", ago.as_secs_f64()),
                    None => format!("{name} (never heard)"),
                }))
            ),
            Error::SocketDrops { replica, drops, have, .. } => {
                format!("{replica} lost {drops} datagrams in the kernel: its receive buffer is {have} bytes")
            }
            Error::Diverged { replica, n, with, count, pages, exact } => {
                let with = with
                    .as_ref()
                    .map_or("the one that a quorum certified".to_owned(), |with| format!("that of {with}"));
                let named = pages.values().map(Vec::len).sum::<usize>() as u64;
                let each = pages.iter().map(|(region, pages)| format!("{region} {}", list(pages)));
                format!(
                    "the state of {replica} is not {with} at checkpoint {n}: {count} pages differ{}: {}{}",
                    if *exact { "" } else { ", those changed since then included" },
                    each.collect::<Vec<_>>().join("; "),
                    if *count > named { ", …" } else { "" },
                )
            }
            Error::ClientTimeout { operation, after, need, n, matching, differing, silent, unauthentic, .. } => {
                format!(
                    "{operation}: no {need} of {n} replicas agreed within {:.1} s: {matching} matching, {differing} differing, {} \
                 silent{}, {unauthentic} datagrams with a bad MAC",
                    after.as_secs_f64(),
                    silent.len(),
                    if silent.is_empty() { String::new() } else { format!(" ({})", list(silent)) },
                )
            }
            Error::Cores(error) => format!("{error}"),
            Error::KeyReadable { path, mode } => {
                format!("{} holds a secret key and has mode {mode:04o}: others can read it", path.display())
            }
            Error::LabBeyondLoopback { address, cluster, lab_keys: true } => format!(
                "{} is a laboratory's: all its keys were made in one place, and {address} is not loopback",
                cluster.display()
            ),
            Error::LabBeyondLoopback { address, cluster, lab_keys: false } => {
                format!("{} keeps its state in memory only, and {address} is not loopback", cluster.display())
            }
            Error::Config { path, line: Some(line), seen, .. } => format!("{}:{line}: {seen}", path.display()),
            Error::Config { path, line: None, seen, .. } => format!("{}: {seen}", path.display()),
            Error::File { doing, path, error, .. } => format!("cannot {doing} {}: {error}", path.display()),
            Error::Running { seen, .. } => seen.clone(),
            Error::Refused { operation, answer, .. } => format!("{operation}: {answer}"),
            Error::BadLines { path, count, stored } => {
                format!("{} had {count} malformed lines, named above; {stored} pairs were stored", path.display())
            }
            Error::Stopped { replica, why, .. } => format!("{replica} stopped: {why}"),
            Error::System { doing, error } => format!("{doing}: {error}"),
            Error::Unsound { replicas, n, .. } => {
                format!("the state of {} at checkpoint {n} has faults, named above", list(replicas))
            }
            Error::Unconfirmed { n: None, .. } => "no replica that answers has a checkpoint to check".into(),
            Error::Unconfirmed { f, n: Some(n), checked, unchecked } => {
                let missing = if unchecked.is_empty() { String::new() } else { format!("; not: {}", list(unchecked)) };
                format!(
                    "{checked} of {} replicas were checked at checkpoint {n}{missing}; f + 1 = {} with one state are needed",
                    checked + unchecked.len(),
                    f + 1
                )
            }
            Error::Usage(text) => text.clone(),
            Error::OutputClosed => "the reader of standard output went away".into(),
            Error::Interrupted => "interrupted".into(),
            Error::Reported => "it failed, as reported".into(),
        }
    }

    /// The likely cause, where there is more to say than what was seen.
    fn cause(&self) -> Option<String> {
        Some(match self {
            Error::LockedMemory { hard, .. } => {
                format!("rings count against RLIMIT_MEMLOCK; its hard limit here is {}", bytes_or_unlimited(*hard))
            }
            Error::UringRefused(Refusal::Sysctl { value: 1 }) => {
                "kernel.io_uring_disabled = 1 allows io_uring to one group only (kernel.io_uring_group) or to root"
                    .into()
            }
            Error::UringRefused(Refusal::Sysctl { .. }) => "this host switched io_uring off for everyone".into(),
            Error::UringRefused(Refusal::Seccomp { .. }) => {
                "container runtimes (Docker since 25, containerd, Podman) forbid io_uring by their default profile"
                    .into()
            }
            Error::UringRefused(Refusal::OldKernel { .. }) => "castra needs Linux 6.1 or later for its ring".into(),
            Error::UringRefused(Refusal::Other { .. }) => "the kernel refused for a reason of its own".into(),
            Error::PortInUse { .. } => "another cluster, or a replica that was not stopped".into(),
            Error::KeyMismatch { .. } => "a key was made anew, or files of two clusters were mixed".into(),
            Error::ForeignCluster { .. } => {
                "a client or replica with another cluster.toml (any changed byte changes the id), or a port used twice"
                    .into()
            }
            Error::TooFewReplicas { .. } => {
                "replicas are down, or their status addresses cannot be reached from here".into()
            }
            Error::SocketDrops { want, .. } => format!(
                "net.core.rmem_max caps the buffer ({want} bytes were asked for), or the replica gets too little CPU"
            ),
            Error::Diverged { with: None, .. } => {
                "bad memory, another build of the service on that host, or a service that looks at a clock, at randomness or \
                 at the order of a hash map"
                    .into()
            }
            Error::Diverged { with: Some(_), .. } => {
                "a service that is not deterministic: it looks at a clock, at randomness, at the order of a hash map, or at \
                 anything else that is not in the operation, the state and the context"
                    .into()
            }
            Error::ClientTimeout { unauthentic: 1.., matching: 0, .. } => {
                "client and replicas hold different keys: another cluster.toml, client key or instance".into()
            }
            Error::ClientTimeout { silent, n, need, .. } if n.saturating_sub(silent.len()) < *need => {
                "too few replicas are up, or this client is not listed in cluster.toml (they do not answer strangers)"
                    .into()
            }
            Error::ClientTimeout { .. } => {
                "the replicas disagree or cannot make progress: a replica lies, or the primary is down".into()
            }
            Error::Cores(CoresError::Outside { .. }) => {
                "they are offline or outside of this process's cpuset (cgroup, taskset, container)".into()
            }
            Error::Cores(CoresError::Shared { .. }) => "two busy roles on one core would wait for each other".into(),
            Error::Cores(CoresError::Malformed { .. }) => {
                "`cores` is \"auto\", \"fused\", one core's number, or \"network=0,1 execution=2 checkpoint=3\", with \"clients=4,5\" \
                 for up to 16 cores of clients' own"
                    .into()
            }
            Error::Cores(CoresError::Refused { .. }) => "the cpuset changed while the replica started".into(),
            Error::KeyReadable { .. } => "it was copied without its mode, or made under a loose umask".into(),
            Error::LabBeyondLoopback { lab_keys: true, .. } => "whoever reads that folder can act as every replica".into(),
            Error::LabBeyondLoopback { lab_keys: false, .. } => {
                "this version has no durable mode: what more than f replicas forget at once, by a power cut for example, is lost"
                    .into()
            }
            Error::Unsound { shared: true, .. } => {
                "more than f replicas have the same faults: the service itself made them".into()
            }
            Error::Unsound { shared: false, .. } => {
                "bad memory or another build on that host, or the replica lies; the others have a good state".into()
            }
            Error::Unconfirmed { n: None, .. } => {
                "they have just started, are down, or their status addresses cannot be reached from here".into()
            }
            Error::Unconfirmed { .. } => "f replicas may lie, so that one answer alone proves nothing".into(),
            Error::Stopped { .. }
            | Error::Config { .. }
            | Error::File { .. }
            | Error::Running { .. }
            | Error::Refused { .. }
            | Error::BadLines { .. }
            | Error::System { .. }
            | Error::Usage(_)
            | Error::OutputClosed
            | Error::Interrupted
            | Error::Reported => return None,
        })
    }

    /// What to do, line by line.
    fn mend(&self) -> Vec<String> {
        let text = match self {
            Error::LockedMemory { need, .. } => format!(
                "shell:   ulimit -l {}    (KiB; as root where the hard limit is lower)\n\
                 systemd: LimitMEMLOCK={need}\n\
                 Docker:  docker run --ulimit memlock={need}:{need} …\n\
                 or do without: transport = \"sockets\" in rN.toml",
                need.div_ceil(1024)
            ),
            Error::UringRefused(refusal) => {
                let first = match refusal {
                    Refusal::Sysctl { .. } => "sysctl -w kernel.io_uring_disabled=0\n",
                    Refusal::Seccomp { .. } => {
                        "docker run --security-opt seccomp=unconfined …   (or a profile that allows io_uring_*)\n"
                    }
                    Refusal::OldKernel { .. } => "boot a kernel of version 6.1 or later\n",
                    Refusal::Other { .. } => "",
                };
                format!("{first}or use plain sockets: transport = \"sockets\" in rN.toml; status and reports name them as such")
            }
            Error::PortInUse { holders, free, .. } => {
                let mut lines = Vec::new();
                lines.extend(holders.iter().map(|h| format!("stop it: kill {}", h.pid)));
                match free {
                    Some(free) => lines.push(format!("or use the next free range: castra cluster init … --base-port {free}")),
                    None => lines.push("or let castra choose: castra cluster init … without --base-port".into()),
                }
                lines.join("\n")
            }
            Error::KeyMismatch { owner, cluster, .. } => format!(
                "give {owner} the key that belongs to this cluster.toml, or assemble the cluster anew from the public parts:\n\
                 castra cluster assemble --out {} r*.pub.toml",
                cluster.display()
            ),
            Error::ForeignCluster { .. } => {
                "compare `castra config check cluster.toml` on both hosts: the ids must be equal. Nothing was harmed: such \
                 datagrams are counted and dropped"
                    .into()
            }
            Error::TooFewReplicas { missing, .. } => match missing.first() {
                Some((name, _)) => format!(
                    "start them, each on its host: castra replica --config {name}.toml\nin a laboratory whose state is not needed: castra down DIR, then castra up DIR (a new life, empty)"
                ),
                None => "castra status".into(),
            },
            Error::SocketDrops { want, .. } => format!("sysctl -w net.core.rmem_max={want}\nthen restart the replica"),
            Error::Diverged { with: None, .. } => {
                "nothing is lost: it fetches the certified state by itself and goes on\n\
                 if it comes again on the same host, test that host's memory; if on several, run the service under the simulator: \
                 it names the first operation that differs"
                    .into()
            }
            Error::Diverged { with: Some(_), .. } => {
                "the cluster has stopped, and keeps its states to be looked at\n\
                 run the service under the simulator: it names the first operation that differs"
                    .into()
            }
            Error::ClientTimeout { maybe_executed, .. } => {
                let look = "castra status shows which replicas are up and what they reject";
                let fate = if *maybe_executed { "\nit was sent and may have been executed: look before you ask again" } else { "" };
                format!("{look}{fate}")
            }
            Error::Cores(error) => cores_mend(error),
            Error::KeyReadable { path, .. } => format!("chmod 600 {}", path.display()),
            Error::LabBeyondLoopback { lab_keys: true, .. } => {
                "for trying out: add --lab, knowingly\n\
                 for anything else: castra node keygen on every host, then castra cluster assemble with the public parts"
                    .into()
            }
            Error::LabBeyondLoopback { lab_keys: false, .. } => "if you can bear that: add --lab, knowingly".into(),
            Error::Config { mend, .. }
            | Error::File { mend, .. }
            | Error::Running { mend, .. }
            | Error::Stopped { mend, .. }
            | Error::Refused { mend, .. } => mend.clone(),
            Error::BadLines { .. } => "mend those lines and import the file again: pairs that are there are stored again, unchanged".into(),
            Error::Unsound { shared: true, .. } => {
                "copy what can be read out of it (castra bfs mount), begin a new life of the cluster (castra down, castra up), \
                 and copy it back"
                    .into()
            }
            Error::Unsound { shared: false, .. } => {
                "restart that replica: it fetches the state of the others. castra diff-state shows which pages differed".into()
            }
            Error::Unconfirmed { .. } => {
                "castra status shows which replicas are up; start the others (castra up), and check again".into()
            }
            Error::Usage(_) => "castra --help, or castra VERB --help for an example".into(),
            Error::System { .. } | Error::OutputClosed | Error::Interrupted | Error::Reported => String::new(),
        };
        text.lines().map(str::to_owned).collect()
    }
}

fn cores_mend(error: &CoresError) -> String {
    let allowed = match error {
        CoresError::Outside { allowed, .. } | CoresError::Shared { allowed, .. } => allowed.as_slice(),
        CoresError::Malformed { .. } | CoresError::Refused { .. } => [].as_slice(),
    };
    let line = match allowed {
        [network, execution, checkpoint, ..] => {
            format!("\nor name them: cores = \"network={network} execution={execution} checkpoint={checkpoint}\"")
        }
        [core, ..] => format!("\nor name one: cores = \"{core}\""),
        [] => String::new(),
    };
    let allowed = if allowed.is_empty() { String::new() } else { format!("   (allowed here: {})", list(allowed)) };
    format!("in rN.toml let castra choose: cores = \"auto\"{allowed}{line}")
}

fn list(items: impl IntoIterator<Item = impl fmt::Display>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

fn bytes_or_unlimited(bytes: u64) -> String {
    if bytes == u64::MAX { "unlimited".into() } else { format!("{bytes} bytes") }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.code().starts_with('W') { "warning" } else { "error" };
        let mut text = format!("{kind}[{}]: {}", self.code(), self.seen());
        if let Some(cause) = self.cause() {
            write!(text, "\n  cause: {cause}")?;
        }
        for (i, line) in self.mend().iter().enumerate() {
            let label = if i == 0 { "mend:  " } else { "       " };
            write!(text, "\n  {label}{line}")?;
        }
        f.write_str(&text)
    }
}

impl std::error::Error for Error {}

impl From<crate::runtime::Error> for Error {
    fn from(error: crate::runtime::Error) -> Error {
        use crate::runtime::Error as Runtime;
        match error {
            Runtime::LockedMemory { have, hard, need, rings } => Error::LockedMemory { have, hard, need, rings },
            Runtime::UringRefused(refusal) => Error::UringRefused(refusal),
            Runtime::AddressInUse { address, holders } => Error::PortInUse { address, holders, free: None },
            Runtime::Cores(error) => Error::Cores(error),
            Runtime::Io { doing, error } => Error::System { doing: doing.into(), error },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each, and of those with several shapes one of each shape.
    fn catalogue() -> Vec<(&'static str, Error)> {
        let address: SocketAddr = "127.0.0.1:7000".parse().unwrap();
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let timeout = |matching, silent: usize, unauthentic| Error::ClientTimeout {
            operation: "put `k`".into(),
            after: Duration::from_secs(10),
            need: 3,
            n: 4,
            matching,
            differing: 4 - matching - silent,
            silent: (4 - silent..4).map(|id| format!("r{id}")).collect(),
            unauthentic,
            maybe_executed: unauthentic == 0,
        };
        let diverged = |with, count, exact| Error::Diverged {
            replica: "r1".into(),
            n: 4_096,
            with,
            count,
            pages: [("service".to_owned(), vec![17, 4_711])].into(),
            exact,
        };
        let beyond = |lab_keys| Error::LabBeyondLoopback {
            address: "10.0.0.7:7000".parse().unwrap(),
            cluster: "lab/cluster.toml".into(),
            lab_keys,
        };
        let seccomp = Refusal::Seccomp { mode: 2 };
        let old = Refusal::OldKernel { release: "5.10.0".into(), missing: "IORING_SETUP_DEFER_TASKRUN" };
        vec![
            ("E001", Error::LockedMemory { have: 65_536, hard: 8 << 20, need: 2_162_688, rings: 4 }),
            ("E002-sysctl", Error::UringRefused(Refusal::Sysctl { value: 2 })),
            ("E002-group", Error::UringRefused(Refusal::Sysctl { value: 1 })),
            ("E002-seccomp", Error::UringRefused(seccomp)),
            ("E002-kernel", Error::UringRefused(old)),
            ("E002-other", Error::UringRefused(Refusal::Other { doing: "io_uring_setup", errno: 12 })),
            (
                "E003",
                Error::PortInUse {
                    address,
                    holders: vec![Holder { pid: 4242, name: "castra".into() }],
                    free: Some(7010),
                },
            ),
            ("E003-unseen", Error::PortInUse { address, holders: vec![], free: None }),
            (
                "E004",
                Error::KeyMismatch {
                    owner: "r2".into(),
                    key: "lab/r2.key".into(),
                    found: "00112233aabbccdd".into(),
                    cluster: "lab/cluster.toml".into(),
                    expected: "ddccbbaa33221100".into(),
                },
            ),
            ("E005", Error::ForeignCluster { ours: 0x7f3a, theirs: 0xdead_beef, from: address, count: 17 }),
            (
                "E007",
                Error::TooFewReplicas {
                    n: 4,
                    f: 1,
                    missing: vec![("r0".into(), Some(Duration::from_millis(2_340))), ("r3".into(), None)],
                },
            ),
            ("E009", Error::SocketDrops { replica: "r3".into(), drops: 41, have: 212_992, want: 4 << 20 }),
            ("E011", diverged(None, 2, true)),
            ("E011-many", diverged(None, 700, false)),
            ("E011-split", diverged(Some("r2".into()), 2, true)),
            ("E013-down", timeout(1, 3, 0)),
            ("E013-keys", timeout(0, 4, 12)),
            ("E013-disagree", timeout(2, 1, 0)),
            ("E014-outside", Error::Cores(CoresError::Outside { wanted: vec![8, 9], allowed: vec![0, 1] })),
            ("E014-shared", Error::Cores(CoresError::Shared { core: 1, allowed: vec![0, 1, 2] })),
            ("E014-malformed", Error::Cores(CoresError::Malformed { text: "0-x".into() })),
            ("E014-refused", Error::Cores(CoresError::Refused { core: 3 })),
            ("E015", Error::KeyReadable { path: "lab/r0.key".into(), mode: 0o644 }),
            ("W016-keys", beyond(true)),
            ("W016-memory", beyond(false)),
            (
                "E020",
                Error::Config {
                    path: "lab/r0.toml".into(),
                    line: Some(3),
                    seen: "unknown key `adress`".into(),
                    mend: "did you mean `address`?".into(),
                },
            ),
            ("E021", Error::reading("lab/cluster.toml", "castra cluster init lab makes a cluster")(denied())),
            ("E022", Error::Running { seen: "r0 runs already (pid 4242)".into(), mend: "castra down lab".into() }),
            (
                "E023",
                Error::Refused {
                    operation: "put".into(),
                    answer: "the state is full".into(),
                    mend: "raise state_bytes_max in cluster.toml".into(),
                },
            ),
            ("E024", Error::BadLines { path: "words.tsv".into(), count: 2, stored: 99_998 }),
            (
                "E025",
                Error::Stopped {
                    replica: "r1".into(),
                    why: "the service panicked at n12, request 3: index out of bounds".into(),
                    mend: "mend the service".into(),
                },
            ),
            ("E026", Error::System { doing: "start r0".into(), error: denied() }),
            ("E027", Error::Unsound { replicas: vec!["r2".into()], n: 512, shared: false }),
            ("E027-shared", Error::Unsound { replicas: vec!["r0".into(), "r1".into()], n: 512, shared: true }),
            ("E028", Error::Unconfirmed { f: 1, n: Some(512), checked: 1, unchecked: vec!["r1".into(), "r3".into()] }),
            ("E028-none", Error::Unconfirmed { f: 1, n: None, checked: 0, unchecked: vec!["r0".into()] }),
            ("usage", Error::Usage("--base-port 65534 leaves no room for 4 replicas".into())),
        ]
    }

    #[test]
    fn every_text_says_what_was_seen_why_and_what_to_do() {
        for (name, error) in catalogue() {
            assert!(name.starts_with(error.code()), "{name}");
            insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
                insta::assert_snapshot!(name, format!("{error}\nexit status {}", error.exit_status()));
            });
        }
    }

    #[test]
    fn codes_of_the_manual_exist() {
        let codes: Vec<&str> = catalogue().iter().map(|(_, error)| error.code()).collect();
        for code in ["E001", "E002", "E003", "E004", "E005", "E007", "E009", "E011", "E013", "E014", "E015", "W016"] {
            assert!(codes.contains(&code), "{code}");
        }
    }
}
