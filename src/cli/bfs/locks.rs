//! Locks of programs on this machine: held at the replicas on the mount's behalf, under a lease that it renews.
//!
//! The kernel does not say through this library whether a lock is fcntl's or flock's, so both are ranges of one kind, as on
//! NFS: they see each other.
//!
//! Who is granted a lock finds in the file what was written under the locks before his: if the file was changed otherwise
//! than through this mount, what the kernel has of it is forgotten first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::{Errno, INodeNo, Notifier, ReplyEmpty};

use super::translate::{errno, handle, node};
use super::volume::Volume;
use crate::bfs::{
    Answer, Conflict, Credentials, Handle, LEASE, LeaseCall, LockOwner, LockRange, Request, Stamp, Status,
};
use crate::cli::output::note;
use crate::runtime::random_bytes;

/// Programs that may wait for locks at a time, each by a thread.
const WAITERS_MAX: usize = 256;
/// How long a waiter waits before it asks again: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// How often a waiter looks whether a signal came.
const SIGNALS: Duration = Duration::from_millis(20);
/// How often a waiter asks for the lock, and not only whether it is free: whose lease is over is seen by calls in order alone.
const IN_ORDER: Duration = Duration::from_secs(1);
/// How often the lease is renewed.
const RENEWAL: Duration = Duration::from_nanos(LEASE / 3);
/// Of the mount's threads, how many may wait for the kernel to forget: others must serve what it has under way meanwhile.
const FORGETTING_MAX: usize = 4;
/// How long the end of a mount waits for its waiters, and then for the replicas.
const ENDING: Duration = Duration::from_secs(2);

/// The largest offset of the kernel's.
pub const OFFSET_MAX: u64 = i64::MAX as u64;

/// Who asks for a lock.
pub struct Asker {
    /// The file.
    pub node: INodeNo,
    /// Through which opening.
    pub opening: u64,
    /// Whose the lock is, as the kernel says.
    pub owner: u64,
    /// His process.
    pub pid: u32,
    /// The thread that waits.
    pub thread: u32,
    /// Who opened the file.
    pub cred: Credentials,
}

/// The locks that go through this mount.
pub struct Locks {
    volume: Arc<Volume>,
    /// The number under which the mount has its lease, if it ever locked anything.
    lease: Mutex<Option<u64>>,
    held: Mutex<Held>,
    /// Something was unlocked, or the mount ends.
    changed: Condvar,
    /// The mount ends.
    ending: Condvar,
    /// Of files that were locked: which change of the file all is of, or later, that the kernel has of it.
    seen: Mutex<BTreeMap<u64, Stamp>>,
    notifier: OnceLock<Notifier>,
    forgetting: AtomicUsize,
}

/// How a lock was answered.
enum Tried {
    /// Granted. When the file was last changed, if it is there.
    Granted(Option<Stamp>),
    Denied,
}

/// What the replicas say to a call of locks.
struct Said {
    status: Result<(), Status>,
    conflict: Option<Conflict>,
    changed: Option<Stamp>,
}

#[derive(Default)]
struct Held {
    /// Of a file and an owner who may hold locks of it: the openings that he locked through.
    owners: BTreeMap<(u64, u64), BTreeSet<u64>>,
    /// How often something was unlocked.
    unlocked: u64,
    waiters: usize,
    ended: bool,
}

/// The last byte of a range as the kernel has it, whose files end at 2^63: a range up to there is one to the end.
pub fn last_byte(end: u64) -> u64 {
    if end >= OFFSET_MAX { u64::MAX } else { end }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Locks {
    /// None yet.
    pub fn new(volume: Arc<Volume>) -> Arc<Locks> {
        let (lease, held) = (Mutex::new(None), Mutex::new(Held::default()));
        Arc::new(Locks {
            volume,
            lease,
            held,
            changed: Condvar::new(),
            ending: Condvar::new(),
            seen: Mutex::default(),
            notifier: OnceLock::new(),
            forgetting: AtomicUsize::new(0),
        })
    }

    /// By this the kernel is told to forget.
    pub fn invalidates(&self, notifier: Notifier) {
        let _ = self.notifier.set(notifier);
    }

    fn ask(&self, cred: &Credentials, request: &Request<'_>) -> Result<Said, Errno> {
        let take = |answer: &Answer<'_>| {
            let changed = answer.attributes.map(|of| of.changed);
            Ok(Said { status: answer.status, conflict: answer.conflict, changed })
        };
        Volume::finish(self.volume.start(cred, request)?, request.procedure(), take)
    }

    /// As [`ask`](Locks::ask), for a file that is open: it was allowed when it was opened, and stays so.
    fn ask_opened(&self, cred: &Credentials, request: &Request<'_>) -> Result<Said, Errno> {
        match self.ask(cred, request)? {
            Said { status: Err(Status::Access), .. } => self.ask(&Credentials::ROOT, request),
            answered => Ok(answered),
        }
    }

    fn lease_call(&self, mount: u64, how: LeaseCall) -> Result<Result<(), Status>, Errno> {
        self.ask(&Credentials::ROOT, &Request::Lease { mount, how }).map(|said| said.status)
    }

    /// The lease; it begins if there is none.
    fn lease(&self) -> Result<u64, Errno> {
        let mut lease = guard(&self.lease);
        if let Some(mount) = *lease {
            return Ok(mount);
        }
        let mount = random_bytes().map(u64::from_le_bytes).map_err(|_| Errno::EIO)?;
        self.lease_call(mount, LeaseCall::Begin)?.map_err(errno)?;
        *lease = Some(mount);
        Ok(mount)
    }

    /// The lease with this number is over. The next lock begins another, under which nothing is locked.
    fn lost(&self, mount: u64) {
        let mut lease = guard(&self.lease);
        if *lease != Some(mount) {
            return;
        }
        *lease = None;
        let lost = std::mem::take(&mut guard(&self.held).owners);
        if !lost.is_empty() {
            let files = lost.keys().map(|(node, _)| node).collect::<BTreeSet<_>>().len();
            note(format!(
                "WARNING: the replicas heard nothing of this mount for {} s, and gave up its locks (files: {files}): programs \
                 that hold them still believe in them, and others may have them by now",
                LEASE / 1_000_000_000
            ));
        }
    }

    fn try_lock(&self, asker: &Asker, range: LockRange) -> Result<Tried, Errno> {
        for _ in 0..3 {
            let mount = self.lease()?;
            let owner = LockOwner { mount, owner: asker.owner, pid: asker.pid };
            let request = Request::Lock { file: Some(handle(asker.node)), owner, range };
            let said = self.ask_opened(&asker.cred, &request)?;
            match said.status {
                Ok(()) => {
                    // Before the program hears of it: whatever closes the file gives it up.
                    let key = (asker.node.0, asker.owner);
                    guard(&self.held).owners.entry(key).or_default().insert(asker.opening);
                    self.hint_shared(&range);
                    return Ok(Tried::Granted(said.changed));
                }
                Err(Status::Denied) => return Ok(Tried::Denied),
                Err(Status::Expired) => self.lost(mount),
                Err(status) => return Err(errno(status)),
            }
        }
        Err(Errno::ENOLCK)
    }

    /// A lock that others may share may stand where an exclusive one of its owner stood: who waits looks.
    fn hint_shared(&self, range: &LockRange) {
        if !range.exclusive {
            self.hint();
        }
    }

    fn hint(&self) {
        guard(&self.held).unlocked += 1;
        self.changed.notify_all();
    }

    /// F_SETLK and F_SETLKW, and flock: a program that has to wait does so on a thread of its own.
    pub fn lock(this: &Arc<Locks>, asker: Asker, range: LockRange, wait: bool, reply: ReplyEmpty) {
        match this.try_lock(&asker, range) {
            Ok(Tried::Granted(changed)) => Locks::granted(this, asker.node, changed, reply),
            Ok(Tried::Denied) if wait => Locks::wait(this, asker, range, reply),
            Ok(Tried::Denied) => reply.error(Errno::EAGAIN),
            Err(error) => reply.error(error),
        }
    }

    fn granted(this: &Arc<Locks>, file: INodeNo, changed: Option<Stamp>, reply: ReplyEmpty) {
        if !this.is_stale(file, changed) {
            return reply.ok();
        }
        if this.forgetting.fetch_add(1, Ordering::Relaxed) < FORGETTING_MAX {
            this.forget(file, changed);
            reply.ok();
        } else {
            let locks = this.clone();
            let forget = move || {
                locks.forget(file, changed);
                reply.ok();
            };
            if let Err(error) = thread::Builder::new().name("bfs-forget".to_owned()).spawn(forget) {
                note(format!("nobody forgets what was changed: {error}"));
            }
        }
        this.forgetting.fetch_sub(1, Ordering::Relaxed);
    }

    fn is_stale(&self, file: INodeNo, changed: Option<Stamp>) -> bool {
        changed.is_none() || guard(&self.seen).get(&file.0) != changed.as_ref()
    }

    /// Has the kernel forget what it has of a file that was changed. It waits for what is being read and written.
    fn forget(&self, file: INodeNo, changed: Option<Stamp>) {
        if let Some(notifier) = self.notifier.get() {
            // It knows nothing of the file: as well.
            let _ = notifier.inval_inode(file, 0, 0);
        }
        if let Some(changed) = changed {
            guard(&self.seen).insert(file.0, changed);
        }
    }

    /// Something was written through this mount: the kernel has it. Of what others wrote before, it knows nothing.
    pub fn wrote(&self, file: Handle, answer: &Answer<'_>) {
        let mut seen = guard(&self.seen);
        if seen.is_empty() {
            return;
        }
        let seen = node(file).and_then(|file| seen.get_mut(&file.0));
        if let (Some(seen), Some(before), Some(after)) = (seen, answer.before, answer.attributes)
            && *seen == before.changed
        {
            *seen = after.changed;
        }
    }

    fn wait(this: &Arc<Locks>, asker: Asker, range: LockRange, reply: ReplyEmpty) {
        {
            let mut held = guard(&this.held);
            if held.waiters == WAITERS_MAX || held.ended {
                drop(held);
                return reply.error(Errno::ENOLCK);
            }
            held.waiters += 1;
        }
        let waiter = Waiter(this.clone());
        let wait = move || {
            match waiter.0.wait_for(&asker, range) {
                Ok(changed) => {
                    if waiter.0.is_stale(asker.node, changed) {
                        waiter.0.forget(asker.node, changed);
                    }
                    reply.ok();
                }
                Err(error) => reply.error(error),
            }
            drop(waiter);
        };
        if let Err(error) = thread::Builder::new().name("bfs-lock".to_owned()).spawn(wait) {
            // The reply, dropped, is EIO to the program.
            note(format!("nobody waits for a lock: {error}"));
        }
    }

    /// Tries again until it is granted, or a signal comes.
    fn wait_for(&self, asker: &Asker, range: LockRange) -> Result<Option<Stamp>, Errno> {
        let (mut pause, longest) = PAUSES;
        let mut signals = Signals::of(asker.thread);
        let mut tried = Instant::now();
        loop {
            self.pause(pause, &mut signals)?;
            pause = longest.min(2 * pause);
            if tried.elapsed() < IN_ORDER && self.test(asker, range)?.is_some() {
                continue;
            }
            tried = Instant::now();
            if let Tried::Granted(changed) = self.try_lock(asker, range)? {
                return Ok(changed);
            }
        }
    }

    /// Waits so long, or until something is unlocked here. EINTR if a signal comes, or the mount ends.
    fn pause(&self, pause: Duration, signals: &mut Signals) -> Result<(), Errno> {
        let until = Instant::now() + pause;
        let mut held = guard(&self.held);
        let before = held.unlocked;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || held.unlocked != before {
                return Ok(());
            }
            held = self.changed.wait_timeout(held, left.min(SIGNALS)).unwrap_or_else(PoisonError::into_inner).0;
            if held.ended {
                return Err(Errno::EINTR);
            }
            drop(held);
            if signals.came() {
                return Err(Errno::EINTR);
            }
            held = guard(&self.held);
        }
    }

    /// What is in the way of a lock; whose process it is, if it is one of this mount's.
    pub fn test(&self, asker: &Asker, range: LockRange) -> Result<Option<(LockRange, u32)>, Errno> {
        let mount = guard(&self.lease).unwrap_or_default();
        let owner = LockOwner { mount, owner: asker.owner, pid: asker.pid };
        let request = Request::TestLock { file: Some(handle(asker.node)), owner, range };
        let said = self.ask_opened(&asker.cred, &request)?;
        match (said.status, said.conflict) {
            (Ok(()), _) => Ok(None),
            (Err(Status::Denied), Some(Conflict { range, owner, .. })) => {
                Ok(Some((range, if owner.mount == mount { owner.pid } else { 0 })))
            }
            (Err(status), _) => Err(errno(status)),
        }
    }

    /// F_UNLCK, and flock's LOCK_UN.
    pub fn unlock(&self, asker: &Asker, start: u64, end: u64) -> Result<(), Errno> {
        let key = (asker.node.0, asker.owner);
        if (start, end) == (0, u64::MAX) {
            return self.give_up(key).unwrap_or(Ok(()));
        }
        if !guard(&self.held).owners.contains_key(&key) {
            return Ok(());
        }
        self.unlock_range(key, (start, end))
    }

    fn unlock_range(&self, (node, owner): (u64, u64), (start, end): (u64, u64)) -> Result<(), Errno> {
        let Some(mount) = *guard(&self.lease) else { return Ok(()) };
        let owner = LockOwner { mount, owner, pid: 0 };
        let request = Request::Unlock { file: Some(handle(INodeNo(node))), owner, start, end };
        let done = match self.ask(&Credentials::ROOT, &request)?.status {
            // Gone, with all its locks.
            Ok(()) | Err(Status::Stale | Status::BadHandle) => Ok(()),
            Err(status) => Err(errno(status)),
        };
        self.hint();
        done
    }

    /// Unlocks all that an owner may have locked of a file; `None` if that is nothing.
    fn give_up(&self, key: (u64, u64)) -> Option<Result<(), Errno>> {
        // First forgotten, then unlocked: what is granted meanwhile is remembered anew.
        let openings = guard(&self.held).owners.remove(&key)?;
        let done = self.unlock_range(key, (0, u64::MAX));
        if done.is_err() {
            guard(&self.held).owners.entry(key).or_default().extend(openings);
        }
        Some(done)
    }

    /// The owner closed one of his descriptors of the file, and with it gave up what he locked by fcntl.
    pub fn closed(&self, node: INodeNo, owner: u64) {
        if let Some(Err(error)) = self.give_up((node.0, owner)) {
            note(format!("a lock is left of a file that is closed: {error:?}"));
        }
    }

    /// Nobody has this opening any more: what was locked by flock through it, or for it, is given up.
    pub fn released(&self, node: INodeNo, opening: u64) {
        let of_file = (node.0, 0)..=(node.0, u64::MAX);
        let owners: Vec<u64> = {
            let held = guard(&self.held);
            let through = held.owners.range(of_file).filter(|(_, openings)| openings.contains(&opening));
            through.map(|((_, owner), _)| *owner).collect()
        };
        owners.into_iter().for_each(|owner| self.closed(node, owner));
        // Who opens it next reads it anew.
        guard(&self.seen).remove(&node.0);
    }

    /// Renews the lease while anything is locked, until the mount ends.
    fn keep(&self) {
        loop {
            {
                let held = guard(&self.held);
                let waited = self.ending.wait_timeout_while(held, RENEWAL, |held| !held.ended);
                let (held, _) = waited.unwrap_or_else(PoisonError::into_inner);
                if held.ended {
                    return;
                }
                if held.owners.is_empty() {
                    continue;
                }
            }
            let Some(mount) = *guard(&self.lease) else { continue };
            match self.lease_call(mount, LeaseCall::Renew) {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(Status::Expired)) => self.lost(mount),
                Ok(Err(status)) => note(format!("locks are not renewed: {status:?}")),
            }
        }
    }

    /// Nobody waits any more.
    fn stop(&self) {
        let mut held = guard(&self.held);
        held.ended = true;
        self.ending.notify_all();
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(held, ENDING, |held| held.waiters > 0);
        drop(waited);
    }

    fn end_lease(&self) {
        if let Some(mount) = *guard(&self.lease) {
            // Else they are nobody's in half a minute.
            let _ = self.lease_call(mount, LeaseCall::End);
        }
    }
}

/// One who waits; its drop counts him out.
struct Waiter(Arc<Locks>);

impl Drop for Waiter {
    fn drop(&mut self) {
        guard(&self.0.held).waiters -= 1;
        self.0.changed.notify_all();
    }
}

/// The thread that renews the lease.
pub struct Keeper {
    locks: Arc<Locks>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Starts it.
    pub fn start(locks: Arc<Locks>) -> std::io::Result<Keeper> {
        let kept = locks.clone();
        let thread = thread::Builder::new().name("bfs-lease".to_owned()).spawn(move || kept.keep())?;
        Ok(Keeper { locks, thread })
    }

    /// The mount ended: nobody waits any more, and what is locked is given up.
    pub fn end(self) {
        self.locks.stop();
        let (say, said) = mpsc::channel();
        let Keeper { locks, thread } = self;
        let end = move || {
            let _ = thread.join();
            locks.end_lease();
            drop(locks);
            let _ = say.send(());
        };
        // Of a cluster that does not answer nobody waits to unmount it.
        if thread::Builder::new().name("bfs-lease".to_owned()).spawn(end).is_ok() {
            let _ = said.recv_timeout(ENDING);
        }
    }
}

/// Whether a thread has a signal to take. The library does not tell of the kernel's interrupts, so /proc is asked.
struct Signals {
    thread: u32,
    /// There was one when last looked: one that another thread takes is gone the next time.
    seen: bool,
}

impl Signals {
    fn of(thread: u32) -> Signals {
        Signals { thread, seen: false }
    }

    /// Whether a signal came for it, or it is gone.
    fn came(&mut self) -> bool {
        if self.thread == 0 {
            // Of another namespace: nothing can be known.
            return false;
        }
        match std::fs::read_to_string(format!("/proc/{}/status", self.thread)) {
            Ok(status) => std::mem::replace(&mut self.seen, is_pending(&status)) && self.seen,
            Err(_) => true,
        }
    }
}

/// Whether by its /proc/PID/status a thread has a signal that it neither blocks nor ignores.
fn is_pending(status: &str) -> bool {
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
    };
    (set("SigPnd") | set("ShdPnd")) & !set("SigBlk") & !set("SigIgn") != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_count_unless_they_are_blocked_or_ignored() {
        let status = |own: &str, shared: &str, blocked: &str, ignored: &str| {
            format!("Name:\tx\nSigQ:\t0/9\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\n")
        };
        let zero = "0000000000000000";
        assert!(!is_pending(&status(zero, zero, zero, zero)));
        assert!(is_pending(&status("0000000000000200", zero, zero, zero)));
        assert!(is_pending(&status(zero, "0000000000004000", "0000000000000200", zero)));
        assert!(!is_pending(&status("0000000000000200", zero, "0000000000000200", zero)));
        assert!(!is_pending(&status(zero, "0000000000000200", zero, "0000000000000200")));
        assert!(!is_pending("no status"));
    }

    #[test]
    fn a_thread_that_is_gone_waits_for_nothing() {
        assert!(Signals::of(u32::MAX).came());
        assert!(!Signals::of(0).came());
        assert!(!Signals::of(std::process::id()).came());
    }
}
