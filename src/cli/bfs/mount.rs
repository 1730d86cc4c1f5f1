//! `castra bfs mount`: the file system as a folder, by FUSE. What the kernel asks is translated to procedures of NFS.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner,
    MountOption, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyOpen, ReplyStatfs, ReplyWrite, Session,
    SessionUnmounter, TimeOrNow, WriteFlags,
};

use super::Source;
use super::locks::{Asker, Keeper, Locks, OFFSET_MAX, last_byte};
use super::mounter::Mounter;
use super::opened::{Hidden, Opened};
use super::translate::{self, attributes, errno, handle, node};
use super::volume::Volume;
use crate::bfs::{
    Answer, Attributes, CreateHow, Credentials, Handle, Kind, LockRange, NAME_MAX, NewAttributes, Place, Procedure,
    Request, TRANSFER_MAX,
};
use crate::cli::errors::Error;
use crate::cli::output::{line, note};
use crate::cli::replica::stop_with_stdin;
use crate::limits::PAGE;
use crate::runtime::client::Pending;
use crate::runtime::{Stop, StopOnSignals, random_bytes};
use crate::transport::Wake;

/// What `--help` ends with.
pub const EXAMPLE: &str = "Example:\n  castra bfs mount --cluster lab /mnt\nIt needs root, or fusermount3. Ctrl-C, SIGTERM or umount \
    ends it. Programs on this machine see their own changes at once; those made elsewhere, after --cache-seconds at most.";

/// Threads that wait for the replicas.
const THREADS: usize = 16;
/// Bytes of one write of the kernel's: it goes out in parts of [`TRANSFER_MAX`], under way together.
const WRITE_MAX: u32 = 1 << 20;
/// Bytes of one answer to a listing.
const LISTING: u32 = 32 * 1024;

/// `castra bfs mount`
#[derive(clap::Args, Debug)]
pub struct Mount {
    #[command(flatten)]
    source: Source,
    /// An empty folder
    mountpoint: PathBuf,
    /// Change nothing: whatever would is refused (EROFS), and does not go to the cluster. Files can be locked all the same
    #[arg(long)]
    read_only: bool,
    /// How long the kernel may believe names and attributes
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS", value_parser = cache_seconds)]
    cache_seconds: f64,
    /// End when standard input closes: whoever started it holds the other end
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

fn cache_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds".to_owned())?;
    if (0.0..=3_600.0).contains(&seconds) { Ok(seconds) } else { Err("0 to 3600 seconds".to_owned()) }
}

/// Mounts it, until a signal or umount(8).
pub fn run(args: &Mount) -> Result<(), Error> {
    let (volume, what) = args.source.open()?;
    let path = args.mountpoint.display();
    let tag = random_bytes().map(u64::from_le_bytes)?;
    let ttl = Duration::from_secs_f64(args.cache_seconds);
    let volume = Arc::new(volume);
    let locks = Locks::new(volume.clone());
    let opened = Mutex::new(Opened::default());
    let fuse = Fuse { volume, read_only: args.read_only, ttl, tag, opened, locks: locks.clone() };
    let mut config = Config::default();
    let user = Mounter::of_this_process();
    (config.mount_options, config.acl) = user.options();
    if args.read_only {
        config.mount_options.push(MountOption::RO);
    }
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let mut session = Session::new(fuse, &args.mountpoint, &config).map_err(|error| user.refused(&path, error))?;
    locks.invalidates(session.notifier());
    let stop = Stop::new();
    let unmounter = Mutex::new(session.unmount_callable());
    stop.wakes(Arc::new(Unmount { unmounter, mountpoint: args.mountpoint.clone() }));
    let signals = StopOnSignals::new(stop.clone())?;
    if args.until_stdin_closes {
        stop_with_stdin(stop.clone())?;
    }
    let keeper = Keeper::start(locks).map_err(Error::system("start a thread"))?;
    line(format!("{path} is {what}"))?;
    let served = match session.run() {
        // The kernel's other word for a mount that is gone: whoever read while it was taken apart hears this one.
        Err(error) if stop.is_stopped() && error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
        served => served.map_err(Error::system(format!("serve {path}"))),
    };
    drop(signals);
    keeper.end();
    served
}

/// Ends a mount.
struct Unmount {
    unmounter: Mutex<SessionUnmounter>,
    mountpoint: PathBuf,
}

impl Wake for Unmount {
    fn wake(&self) {
        let Err(error) = self.unmounter.lock().unwrap_or_else(PoisonError::into_inner).unmount() else { return };
        // In use. It leaves its folder now, and is served until its last user has left it.
        let path = self.mountpoint.display();
        match rustix::mount::unmount(&self.mountpoint, rustix::mount::UnmountFlags::DETACH) {
            Ok(()) => {
                note(format!("{path} is in use ({error}): detached, and served until its last user has closed it"))
            }
            Err(_) => note(format!("{path} stays mounted: {error}. Unmount it by fusermount3 -u -z {path}")),
        }
    }
}

/// The mounted file system.
struct Fuse {
    volume: Arc<Volume>,
    read_only: bool,
    /// How long the kernel may believe names and attributes.
    ttl: Duration,
    /// Keeps names of removed open files apart from those of other mounts.
    tag: u64,
    opened: Mutex<Opened>,
    locks: Arc<Locks>,
}

/// Who asks: user and group as the kernel says, supplementary groups as /proc does.
fn caller(request: &fuser::Request) -> Credentials {
    let status = std::fs::read_to_string(format!("/proc/{}/status", request.pid())).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    let groups: Vec<u32> = groups.split_whitespace().filter_map(|group| group.parse().ok()).collect();
    Credentials::new(request.uid(), request.gid(), &groups)
}

/// Whether the file is one of a snapshot.
fn is_past(node: INodeNo) -> bool {
    !matches!(handle(node), Handle::Now { .. })
}

fn place(directory: INodeNo, name: &OsStr) -> Place<'_> {
    Place { directory: Some(handle(directory)), name: name.as_bytes() }
}

/// What an entry needs: the number of the file and its attributes.
fn entry(handle: Option<Handle>, of: Option<Attributes>) -> Result<FileAttr, Errno> {
    let node = handle.and_then(node).ok_or(Errno::EIO)?;
    attributes(node, &of.ok_or(Errno::EIO)?).ok_or(Errno::EIO)
}

impl Fuse {
    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, cred: &Credentials, request: &Request<'_>) -> Result<Pending, Errno> {
        // The kernel knows it of a mount; this holds also where the mount was made anew with other options.
        if self.read_only && !request.procedure().is_read_only() {
            return Err(Errno::EROFS);
        }
        self.volume.start(cred, request)
    }

    /// Waits for a result, and takes from it what `take` does.
    fn finish<T>(
        asked: Pending,
        procedure: Procedure,
        take: impl FnOnce(&Answer<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        Volume::finish(asked, procedure, |answer| {
            answer.status.map_err(errno)?;
            take(answer)
        })
    }

    fn ask<T>(
        &self,
        cred: &Credentials,
        request: &Request<'_>,
        take: impl FnOnce(&Answer<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        Fuse::finish(self.start(cred, request)?, request.procedure(), take)
    }

    /// As [`ask`](Fuse::ask), for a file that is open: it was allowed when it was opened, and stays so. Whoever may not any
    /// more is answered as the file's owner would be, who always may, within his quota.
    fn ask_opened<T>(
        &self,
        (opening, file): (FileHandle, Handle),
        cred: &Credentials,
        request: &Request<'_>,
        take: impl Fn(&Answer<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let opener = self.opened().opener(opening.0).cloned();
        match self.ask(opener.as_ref().unwrap_or(cred), request, &take) {
            Err(Errno::EACCES) if opener.is_some() => self.ask(&self.owner(cred, file)?, request, &take),
            result => result,
        }
    }

    fn owner(&self, cred: &Credentials, file: Handle) -> Result<Credentials, Errno> {
        self.ask(cred, &Request::GetAttr { object: Some(file) }, |answer| {
            let of = answer.attributes.ok_or(Errno::EIO)?;
            Ok(Credentials::new(of.uid, of.gid, &[]))
        })
    }

    /// Who asks for a lock, and through which opening.
    fn asker(&self, request: &fuser::Request, ino: INodeNo, fh: FileHandle, owner: LockOwner, pid: u32) -> Asker {
        let cred = self.opened().opener(fh.0).cloned().unwrap_or_else(|| caller(request));
        Asker { node: ino, opening: fh.0, owner: owner.0, pid, thread: request.pid(), cred }
    }

    /// Attributes as programs see them: one name less for a file that was removed while it is open.
    fn shown(&self, node: INodeNo, of: Option<Attributes>) -> Result<FileAttr, Errno> {
        let mut shown = attributes(node, &of.ok_or(Errno::EIO)?).ok_or(Errno::EIO)?;
        if self.opened().is_hidden(node.0) {
            shown.nlink = shown.nlink.saturating_sub(1);
        }
        Ok(shown)
    }

    fn reply_entry(&self, reply: ReplyEntry, found: Result<FileAttr, Errno>) {
        match found {
            Ok(found) => reply.entry(&self.ttl, &found, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn reply_attributes(&self, reply: ReplyAttr, found: Result<FileAttr, Errno>) {
        match found {
            Ok(found) => reply.attr(&self.ttl, &found),
            Err(error) => reply.error(error),
        }
    }

    fn lookup_entry(&self, cred: &Credentials, at: Place<'_>) -> Result<FileAttr, Errno> {
        self.ask(cred, &Request::Lookup { at }, |answer| entry(answer.handle, answer.attributes))
    }

    /// If the file is open and this is its only name, it gets another one; whether it did.
    fn hide(&self, cred: &Credentials, at: Place<'_>) -> Result<bool, Errno> {
        let found = match self.lookup_entry(cred, at) {
            Ok(found) => found,
            Err(Errno::ENOENT) => return Ok(false),
            Err(error) => return Err(error),
        };
        if found.nlink != 1 || !self.opened().is_open(found.ino.0) {
            return Ok(false);
        }
        let name = Opened::silly_name(found.ino.0, self.tag);
        let to = Place { directory: at.directory, name: &name };
        self.ask(cred, &Request::Rename { from: at, to }, |_| Ok(()))?;
        let directory = at.directory.ok_or(Errno::EIO)?;
        let hidden = Hidden { directory, name, cred: cred.clone() };
        let closed = self.opened().hide(found.ino.0, hidden);
        if let Some(closed) = closed {
            self.remove_hidden(&closed);
        }
        Ok(true)
    }

    /// A file that was removed while it was open is not open any more.
    fn remove_hidden(&self, hidden: &Hidden) {
        let at = Place { directory: Some(hidden.directory), name: &hidden.name };
        let remove = |cred| match self.ask(cred, &Request::Remove { at }, |_| Ok(())) {
            // Somebody has cleaned up.
            Err(Errno::ENOENT | Errno::ESTALE) => Ok(()),
            result => result,
        };
        if let Err(error) = remove(&hidden.cred).or_else(|_| remove(&Credentials::ROOT)) {
            let name = String::from_utf8_lossy(&hidden.name).into_owned();
            note(format!("{name}, removed while it was open, is left: {error:?}"));
        }
    }

    fn unlink_one(&self, cred: &Credentials, at: Place<'_>) -> Result<(), Errno> {
        if self.hide(cred, at)? { Ok(()) } else { self.ask(cred, &Request::Remove { at }, |_| Ok(())) }
    }

    fn rename_one(&self, cred: &Credentials, from: Place<'_>, to: Place<'_>, flags: RenameFlags) -> Result<(), Errno> {
        if flags == RenameFlags::RENAME_NOREPLACE {
            // Two calls: another client's file that comes between them is replaced.
            match self.lookup_entry(cred, to) {
                Ok(_) => return Err(Errno::EEXIST),
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(error),
            }
        } else if !flags.is_empty() {
            return Err(Errno::EINVAL);
        }
        let same = self.lookup_entry(cred, from)?.ino;
        if self.lookup_entry(cred, to).is_ok_and(|found| found.ino != same) {
            self.hide(cred, to)?;
        }
        self.ask(cred, &Request::Rename { from, to }, |_| Ok(()))
    }

    /// Reads all that was asked for, or up to the end of the file: to the kernel less is the end.
    fn read_all(
        &self,
        opening: FileHandle,
        cred: &Credentials,
        file: Handle,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, Errno> {
        let mut data = Vec::with_capacity(size as usize);
        let opener = self.opened().opener(opening.0).cloned();
        let asker = opener.as_ref().unwrap_or(cred);
        // Parts are under way together.
        let part = |at: u32| Request::Read {
            file: Some(file),
            offset: offset.saturating_add(at.into()),
            count: (size - at).min(TRANSFER_MAX),
        };
        let starts = (0..size).step_by(TRANSFER_MAX as usize);
        let asked: Vec<_> = starts.map(|at| (at, self.start(asker, &part(at)))).collect();
        for (at, asked) in asked {
            let take = |answer: &Answer<'_>| Ok((answer.data.to_vec(), answer.eof));
            let (bytes, eof) = match asked.and_then(|asked| Fuse::finish(asked, Procedure::Read, take)) {
                Err(Errno::EACCES) => self.ask_opened((opening, file), cred, &part(at), take)?,
                other => other?,
            };
            let whole = bytes.len() as u32 == (size - at).min(TRANSFER_MAX);
            data.extend_from_slice(&bytes);
            if eof || !whole {
                break;
            }
        }
        Ok(data)
    }

    /// Writes all of it, in parts that are under way together; how much of it is written without a gap.
    fn write_all(
        &self,
        opening: FileHandle,
        cred: &Credentials,
        file: Handle,
        offset: u64,
        data: &[u8],
    ) -> Result<u32, Errno> {
        let opener = self.opened().opener(opening.0).cloned();
        let asker = opener.as_ref().unwrap_or(cred);
        let part = |index: usize, data| {
            let offset = offset.saturating_add(index as u64 * u64::from(TRANSFER_MAX));
            Request::Write { file: Some(file), offset, count: data_len(data), stable: 2, data }
        };
        let parts: Vec<&[u8]> = data.chunks(TRANSFER_MAX as usize).collect();
        let asked: Vec<_> =
            parts.iter().enumerate().map(|(index, data)| self.start(asker, &part(index, data))).collect();
        let (mut written, mut failed) = (0, None);
        for (index, asked) in asked.into_iter().enumerate() {
            let take = |answer: &Answer<'_>| {
                self.locks.wrote(file, answer);
                Ok(answer.count)
            };
            let count = match asked.and_then(|asked| Fuse::finish(asked, Procedure::Write, take)) {
                Err(Errno::EACCES) => self.ask_opened((opening, file), cred, &part(index, parts[index]), take),
                other => other,
            };
            match count {
                Ok(count) if failed.is_none() => written += count,
                Ok(_) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) if written == 0 => Err(error),
            _ => Ok(written),
        }
    }
}

fn reply_done(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn data_len(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

impl fuser::Filesystem for Fuse {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // What the kernel cannot do it says; its own default is as right.
        let _ = config.set_max_write(WRITE_MAX);
        let _ = config.set_max_background(64);
        let _ = config.add_capabilities(fuser::InitFlags::FUSE_DO_READDIRPLUS | fuser::InitFlags::FUSE_PARALLEL_DIROPS);
        for locks in [fuser::InitFlags::FUSE_POSIX_LOCKS, fuser::InitFlags::FUSE_FLOCK_LOCKS] {
            if config.add_capabilities(locks).is_err() {
                note(format!("this kernel does not hand over locks ({locks:?}): they hold within this mount alone"));
            }
        }
        Ok(())
    }

    fn lookup(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.reply_entry(reply, self.lookup_entry(&caller(request), place(parent, name)));
    }

    fn getattr(&self, request: &fuser::Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let cred = Credentials::new(request.uid(), request.gid(), &[]);
        let object = Some(handle(ino));
        let found = self.ask(&cred, &Request::GetAttr { object }, |answer| self.shown(ino, answer.attributes));
        self.reply_attributes(reply, found);
    }

    fn setattr(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (accessed, modified) = (translate::set_time(atime), translate::set_time(mtime));
        let new = NewAttributes { mode: mode.map(|mode| mode & 0o7777), uid, gid, size, accessed, modified };
        let set = Request::SetAttr { object: Some(handle(ino)), new, guard: None };
        let cred = caller(request);
        let take = |answer: &Answer<'_>| self.shown(ino, answer.attributes);
        let found = match fh {
            Some(opening) if size.is_some() => self.ask_opened((opening, handle(ino)), &cred, &set, take),
            _ => self.ask(&cred, &set, take),
        };
        self.reply_attributes(reply, found);
    }

    fn readlink(&self, request: &fuser::Request, ino: INodeNo, reply: ReplyData) {
        let link = Some(handle(ino));
        match self.ask(&caller(request), &Request::ReadLink { link }, |answer| Ok(answer.data.to_vec())) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (at, new) = (place(parent, name), NewAttributes::mode(mode & 0o7777));
        let make = match translate::kind_of_mode(mode) {
            Some(Kind::Regular) => Request::Create { at, how: CreateHow::Guarded(new) },
            Some(kind) => Request::MkNod { at, kind, new, device: translate::major_minor(rdev) },
            None => return reply.error(Errno::EINVAL),
        };
        self.reply_entry(reply, self.ask(&caller(request), &make, |answer| entry(answer.handle, answer.attributes)));
    }

    fn mkdir(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let make = Request::MkDir { at: place(parent, name), new: NewAttributes::mode(mode & 0o7777) };
        self.reply_entry(reply, self.ask(&caller(request), &make, |answer| entry(answer.handle, answer.attributes)));
    }

    fn unlink(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_done(reply, self.unlink_one(&caller(request), place(parent, name)));
    }

    fn rmdir(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_done(reply, self.ask(&caller(request), &Request::RmDir { at: place(parent, name) }, |_| Ok(())));
    }

    fn symlink(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (at, target) = (place(parent, name), target.as_os_str().as_bytes());
        let make = Request::Symlink { at, new: NewAttributes::default(), target };
        self.reply_entry(reply, self.ask(&caller(request), &make, |answer| entry(answer.handle, answer.attributes)));
    }

    fn rename(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply_done(reply, self.rename_one(&caller(request), place(parent, name), place(newparent, newname), flags));
    }

    fn link(&self, request: &fuser::Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let link = Request::Link { file: Some(handle(ino)), at: place(newparent, newname) };
        self.reply_entry(reply, self.ask(&caller(request), &link, |answer| self.shown(ino, answer.attributes)));
    }

    fn open(&self, request: &fuser::Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY && is_past(ino) {
            return reply.error(Errno::EROFS);
        }
        let opening = self.opened().open(ino.0, caller(request));
        reply.opened(FileHandle(opening), FopenFlags::empty());
    }

    fn read(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let cred = Credentials::new(request.uid(), request.gid(), &[]);
        match self.read_all(fh, &cred, handle(ino), offset, size) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let cred = Credentials::new(request.uid(), request.gid(), &[]);
        match self.write_all(fh, &cred, handle(ino), offset, data) {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &fuser::Request, ino: INodeNo, _: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        // What was answered is stable. Whoever closes a file gives up his locks of it.
        self.locks.closed(ino, owner.0);
        reply.ok();
    }

    fn getlk(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        if is_past(ino) {
            return reply.locked(start, end, libc::F_UNLCK, 0);
        }
        let asker = self.asker(request, ino, fh, owner, pid);
        let exclusive = typ == libc::F_WRLCK;
        match self.locks.test(&asker, LockRange { start, end: last_byte(end), exclusive }) {
            Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
            Ok(Some((range, pid))) => {
                let typ = if range.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
                reply.locked(range.start, range.end.min(OFFSET_MAX), typ, pid);
            }
            Err(error) => reply.error(error),
        }
    }

    fn setlk(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        if is_past(ino) {
            return reply.ok(); // Nobody changes it, so nobody has to be kept out.
        }
        let asker = self.asker(request, ino, fh, owner, pid);
        let end = last_byte(end);
        match typ {
            libc::F_UNLCK => reply_done(reply, self.locks.unlock(&asker, start, end)),
            libc::F_RDLCK | libc::F_WRLCK => {
                let range = LockRange { start, end, exclusive: typ == libc::F_WRLCK };
                Locks::lock(&self.locks, asker, range, sleep, reply);
            }
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn release(
        &self,
        _: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.locks.released(ino, fh.0);
        let hidden = self.opened().close(fh.0);
        if let Some(hidden) = hidden {
            self.remove_hidden(&hidden);
        }
        reply.ok();
    }

    fn fsync(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok(); // What was answered is stable.
    }

    fn fsyncdir(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &fuser::Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn readdir(&self, request: &fuser::Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        // With attributes, for the kinds of the entries.
        let list = listing(ino, offset);
        let listed = self.ask(&caller(request), &list, |answer| {
            for found in &answer.entries {
                let at = found.handle.and_then(node).ok_or(Errno::EIO)?;
                let kind = found.attributes.and_then(|of| translate::kind(of.kind)).ok_or(Errno::EIO)?;
                if reply.add(at, found.cookie, kind, OsStr::from_bytes(found.name)) {
                    break;
                }
            }
            Ok(())
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.ask(&caller(request), &listing(ino, offset), |answer| {
            for found in &answer.entries {
                let shown = entry(found.handle, found.attributes)?;
                let name = OsStr::from_bytes(found.name);
                if reply.add(shown.ino, found.cookie, name, &self.ttl, &shown, Generation(0)) {
                    break;
                }
            }
            Ok(())
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn statfs(&self, request: &fuser::Request, _: INodeNo, reply: ReplyStatfs) {
        let cred = Credentials::new(request.uid(), request.gid(), &[]);
        match self.ask(&cred, &Request::FsStat { root: Some(Handle::ROOT) }, |answer| Ok(answer.space)) {
            Ok(space) => {
                let (page, free) = (PAGE as u64, space.bytes_free / PAGE as u64);
                let (files, unused, names) = (space.files, space.files_free, NAME_MAX as u32);
                reply.statfs(space.bytes / page, free, free, files, unused, PAGE as u32, names, PAGE as u32);
            }
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let new = NewAttributes::mode(mode & 0o7777);
        let exclusive = flags & libc::O_EXCL != 0;
        let how = if exclusive { CreateHow::Guarded(new) } else { CreateHow::Unchecked(new) };
        let cred = caller(request);
        let make = Request::Create { at: place(parent, name), how };
        match self.ask(&cred, &make, |answer| entry(answer.handle, answer.attributes)) {
            Ok(made) => {
                let opening = self.opened().open(made.ino.0, cred);
                reply.created(&self.ttl, &made, Generation(0), FileHandle(opening), FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }
}

/// The entries of a directory after a cookie.
fn listing(directory: INodeNo, cookie: u64) -> Request<'static> {
    let directory = handle(directory);
    Request::ReadDirPlus {
        directory: Some(directory),
        cookie,
        verifier: directory.cookie_verifier(),
        names: LISTING,
        count: LISTING,
    }
}
