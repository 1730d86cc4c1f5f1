//! Replica processes of a laboratory: pid files, and signals to nobody but those whom we know.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::errors::Error;
use super::files;
use crate::types::ReplicaId;

/// The pid file of replica `id`, in the folder of its configuration.
pub fn pid_file(folder: &Path, id: ReplicaId) -> PathBuf {
    folder.join(format!("{id}.pid"))
}

/// The log that `up` gives replica `id`.
pub fn log_file(folder: &Path, id: ReplicaId) -> PathBuf {
    folder.join(format!("{id}.log"))
}

/// A process that runs and is the one that its pid file means.
pub struct Process {
    /// Its pid.
    pub pid: u32,
    fd: OwnedFd,
}

/// When a process started, in clock ticks since the machine did: with the pid it names a process for good.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; what follows its last one is fields 3, 4, …
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether it is a castra replica by its arguments.
fn is_replica(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.split(|&b| b == 0).any(|arg| arg == b"replica"))
}

/// Writes the pid file of this process.
pub fn write_pid_file(path: &Path) -> Result<(), Error> {
    let pid = std::process::id();
    let started = start_time(pid).unwrap_or(0);
    files::write_atomically(path, format!("{pid} {started}\n").as_bytes(), 0o644)
}

/// Removes the pid file if it is still this process's.
pub fn remove_pid_file(path: &Path) {
    let ours =
        |text: String| text.split_whitespace().next().and_then(|pid| pid.parse().ok()) == Some(std::process::id());
    if fs::read_to_string(path).is_ok_and(ours) {
        let _ = fs::remove_file(path);
    }
}

/// The running process that a pid file means; `None` if there is no file, or its process is gone.
pub fn running(path: &Path) -> Option<Process> {
    let text = fs::read_to_string(path).ok()?;
    let mut words = text.split_whitespace();
    let pid: u32 = words.next()?.parse().ok()?;
    let started: u64 = words.next()?.parse().ok()?;
    // The descriptor first: what is checked afterwards is checked of the very process that will get the signal.
    let fd = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
    let process = Process { pid, fd };
    (start_time(pid) == Some(started) && is_replica(pid) && !process.ended_within(Duration::ZERO)).then_some(process)
}

impl Process {
    /// Asks it to end.
    pub fn terminate(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, Signal::TERM)?)
    }

    /// Ends it.
    pub fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, Signal::KILL)?)
    }

    /// SIGSTOP: it stands still until [`Process::go_on`].
    pub fn pause(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, Signal::STOP)?)
    }

    /// SIGCONT.
    pub fn go_on(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, Signal::CONT)?)
    }

    /// Waits for its end.
    pub fn ended_within(&self, patience: Duration) -> bool {
        let timeout = Timespec::try_from(patience).ok();
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        matches!(poll(&mut fds, timeout.as_ref()), Ok(1..))
    }
}

/// The error with which a replica's log ends, if it ended so.
pub fn last_words(folder: &Path, id: ReplicaId) -> Option<String> {
    const TAIL: u64 = 4_096;
    let mut file = File::open(log_file(folder, id)).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail);
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().rposition(|line| line.starts_with("error[") || line.contains("panicked at"))?;
    Some(lines[at..].join("\n    "))
}
