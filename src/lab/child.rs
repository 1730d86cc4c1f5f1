//! Child processes that never outlive us.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How to start a process.
#[derive(Clone, Debug)]
pub struct Launch {
    /// What people call it: `r2`.
    pub name: String,
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where its standard output and error go, after what is there.
    pub log: PathBuf,
}

/// A process of ours. Its standard input is a pipe that we hold and never write to: a child that is told to end when
/// that closes ends with us, however we end. Dropping it kills and buries it.
#[derive(Debug)]
pub struct Child {
    launch: Launch,
    process: process::Child,
    /// Held open while it may run.
    lifeline: Option<ChildStdin>,
    ended: Option<ExitStatus>,
    paused: bool,
}

/// How often something that has no event is looked at.
const LOOK: Duration = Duration::from_millis(5);

impl Child {
    /// Starts it.
    ///
    /// # Errors
    /// The system's.
    pub fn start(launch: Launch) -> io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&launch.log)?;
        let mut process = Command::new(&launch.program)
            .args(&launch.arguments)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: Ctrl-C at this terminal is meant for us, and we end it.
            .process_group(0)
            .spawn()?;
        let lifeline = process.stdin.take();
        Ok(Child { launch, process, lifeline, ended: None, paused: false })
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// Its process id, also after its end.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Where it writes.
    pub fn log(&self) -> &Path {
        &self.launch.log
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.process.try_wait().ok().flatten();
        }
        self.ended
    }

    /// SIGKILL, and waits for its end: as a power cut would have it.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            // Either fails only if it is gone.
            let _ = self.process.kill();
            self.ended = self.process.wait().ok();
        }
        self.lifeline = None;
    }

    /// SIGTERM, without waiting.
    pub fn ask_to_stop(&mut self) {
        if self.ended().is_none()
            && let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw)
        {
            // It is not buried yet, so the number is still its own. Who is paused hears nothing until it goes on.
            let _ = kill_process(pid, Signal::TERM);
            let _ = kill_process(pid, Signal::CONT);
        }
    }

    /// SIGSTOP: it stands still, with all that it knows, until [`Child::go_on`].
    ///
    /// # Errors
    /// The system's.
    pub fn pause(&mut self) -> io::Result<()> {
        self.signal(Signal::STOP)?;
        self.paused = true;
        Ok(())
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// The system's.
    pub fn go_on(&mut self) -> io::Result<()> {
        self.signal(Signal::CONT)?;
        self.paused = false;
        Ok(())
    }

    /// Whether it stands still.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    fn signal(&mut self, signal: Signal) -> io::Result<()> {
        match i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            Some(pid) if self.ended().is_none() => Ok(kill_process(pid, signal)?),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Stops it: SIGTERM, and SIGKILL if it still runs after `patience`. How it ended.
    pub fn stop(&mut self, patience: Duration) -> Option<ExitStatus> {
        self.ask_to_stop();
        let until = Instant::now() + patience;
        while self.ended().is_none() && Instant::now() < until {
            thread::sleep(LOOK);
        }
        self.kill();
        self.ended
    }

    /// Kills it if it runs, and starts it anew.
    ///
    /// # Errors
    /// The system's.
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        *self = Child::start(self.launch.clone())?;
        Ok(())
    }

    /// The last lines of its log: what it said before it ended.
    pub fn last_words(&self) -> String {
        const BYTES: u64 = 4_096;
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.launch.log)?;
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(len.saturating_sub(BYTES)))?;
            let mut tail = Vec::new();
            file.take(BYTES).read_to_end(&mut tail)?;
            Ok(String::from_utf8_lossy(&tail).trim_end().to_owned())
        };
        read().unwrap_or_default()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Stops all: each is asked first, so that they end together; what still runs after `patience` is killed.
pub fn stop_all(children: &mut [Child], patience: Duration) {
    for child in children.iter_mut() {
        child.ask_to_stop();
    }
    let until = Instant::now() + patience;
    for child in children {
        child.stop(until.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(folder: &Path, script: &str) -> Launch {
        Launch {
            name: "sh".into(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            log: folder.join("log"),
        }
    }

    fn is_alive(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_child_ends_with_its_owner_and_its_words_stay() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Child::start(shell(folder.path(), "echo begun; read line; echo orphaned >&2")).unwrap();
        let pid = child.pid();
        assert!(child.ended().is_none());
        // What a parent's end looks like from below, if it had no time to kill anyone.
        child.lifeline = None;
        let until = Instant::now() + Duration::from_secs(30);
        while child.ended().is_none() && Instant::now() < until {
            thread::sleep(LOOK);
        }
        assert_eq!(child.last_words(), "begun\norphaned");
        child.restart().unwrap();
        let second = child.pid();
        assert_ne!(pid, second);
        drop(child);
        assert!(!is_alive(second));
    }

    #[test]
    fn a_paused_child_stands_still_and_ends_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Child::start(shell(folder.path(), "while :; do echo .; sleep 0.01; done")).unwrap();
        let state = |child: &Child| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.pid())).unwrap();
            stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
        };
        let until = Instant::now() + Duration::from_secs(30);
        child.pause().unwrap();
        while state(&child) != 'T' {
            assert!(Instant::now() < until);
            thread::sleep(LOOK);
        }
        assert!(child.is_paused());
        child.go_on().unwrap();
        assert!(!child.is_paused());
        while state(&child) == 'T' {
            assert!(Instant::now() < until);
            thread::sleep(LOOK);
        }
        child.pause().unwrap();
        assert!(child.stop(Duration::from_secs(30)).is_some());
        assert!(Instant::now() < until && child.pause().is_err());
    }

    #[test]
    fn who_does_not_stop_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let deaf = shell(folder.path(), "trap '' TERM; echo ready; while :; do sleep 1; done");
        let mut children =
            vec![Child::start(deaf).unwrap(), Child::start(shell(folder.path(), "exec sleep 60")).unwrap()];
        while children[0].last_words().is_empty() {
            thread::sleep(LOOK);
        }
        stop_all(&mut children, Duration::from_millis(100));
        for child in &mut children {
            assert!(!child.ended().unwrap().success());
            assert!(!is_alive(child.pid()));
        }
    }
}
