//! The same file system without pages: files in vectors, found by going through all of them. It shares the protocol's types
//! with the real one, and no rule.

use std::collections::BTreeMap;

use super::*;

const BLOCK: u64 = 4_096;

/// Index of a file of the model. They are never used again.
pub(super) type Id = usize;

#[derive(Clone)]
pub(super) struct File {
    pub alive: bool,
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    device: (u32, u32),
    pub size: u64,
    /// By block: those that are not there are zeroes.
    blocks: BTreeMap<u64, Vec<u8>>,
    target: Vec<u8>,
    /// In the order of a listing.
    entries: Vec<(Vec<u8>, Id)>,
    parent: Id,
    verifier: Option<[u8; 8]>,
    accessed: Stamp,
    modified: Stamp,
    changed: Stamp,
}

pub(super) struct Model {
    pub files: Vec<File>,
    handles: BTreeMap<Handle, Id>,
    last: u64,
}

/// What a call gives besides its status.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Outcome {
    /// The file that was found or made.
    pub found: Option<Id>,
    pub granted: u32,
    pub data: Vec<u8>,
    pub eof: bool,
    pub count: u32,
    pub names: Vec<(Vec<u8>, Id)>,
}

type Given = Option<Handle>;

fn nothing() -> Result<Outcome, Status> {
    Ok(Outcome::default())
}

impl Model {
    pub fn new() -> Model {
        let root = File {
            alive: true,
            kind: Kind::Directory,
            mode: 0o777,
            uid: 0,
            gid: 0,
            device: (0, 0),
            size: 0,
            blocks: BTreeMap::new(),
            target: Vec::new(),
            entries: Vec::new(),
            parent: 0,
            verifier: None,
            accessed: Stamp::default(),
            modified: Stamp::default(),
            changed: Stamp::default(),
        };
        Model { files: vec![root], handles: BTreeMap::from([(ROOT, 0)]), last: 0 }
    }

    /// A handle was seen for a file: always the same for one, and never one for two.
    pub fn know(&mut self, handle: Handle, id: Id) {
        let known = *self.handles.entry(handle).or_insert(id);
        assert_eq!(known, id, "{handle:?} is the handle of two files");
    }

    pub fn find(&self, given: Given) -> Result<Id, Status> {
        let handle = given.ok_or(Status::BadHandle)?;
        match self.handles.get(&handle) {
            Some(&id) if self.files[id].alive => Ok(id),
            Some(_) => Err(Status::Stale),
            None => Err(Status::BadHandle),
        }
    }

    /// As the real one must say them, but for the number of the file and the room it takes.
    pub fn attributes(&self, id: Id, fileid: u64, used: u64) -> Attributes {
        let file = &self.files[id];
        let all = self.files.iter().filter(|file| file.alive).flat_map(|file| &file.entries);
        let links = match file.kind {
            Kind::Directory => 2 + file.entries.iter().filter(|(_, id)| self.is_directory(*id)).count(),
            _ => all.filter(|(_, to)| *to == id).count(),
        };
        let size = match file.kind {
            Kind::Directory => 4_096,
            Kind::Symlink => file.target.len() as u64,
            _ => file.size,
        };
        Attributes {
            kind: file.kind,
            mode: file.mode,
            links: links as u32,
            uid: file.uid,
            gid: file.gid,
            size,
            used,
            device: file.device,
            fsid: 0,
            fileid,
            accessed: file.accessed,
            modified: file.modified,
            changed: file.changed,
        }
    }

    fn is_directory(&self, id: Id) -> bool {
        self.files[id].kind == Kind::Directory
    }

    fn may(&self, cred: &Credentials, id: Id, bit: u32) -> bool {
        let file = &self.files[id];
        let bits = [file.mode >> 6 & 7, file.mode >> 3 & 7, file.mode & 7];
        match cred.uid {
            0 => bit != 1 || self.is_directory(id) || bits.iter().any(|bits| bits & 1 == 1),
            uid if uid == file.uid => bits[0] & bit != 0,
            _ if cred.gid == file.gid || cred.groups().contains(&file.gid) => bits[1] & bit != 0,
            _ => bits[2] & bit != 0,
        }
    }

    fn need(&self, cred: &Credentials, id: Id, bit: u32) -> Result<(), Status> {
        if self.may(cred, id, bit) { Ok(()) } else { Err(Status::Access) }
    }

    fn owns(&self, cred: &Credentials, id: Id) -> bool {
        cred.uid == 0 || cred.uid == self.files[id].uid
    }

    /// The directory, in which names may be looked for.
    fn directory(&self, cred: &Credentials, given: Given) -> Result<Id, Status> {
        let id = self.find(given)?;
        if !self.is_directory(id) {
            return Err(Status::NotDir);
        }
        self.need(cred, id, 1)?;
        Ok(id)
    }

    fn name(name: &[u8]) -> Result<(), Status> {
        if name.len() > 255 {
            return Err(Status::NameTooLong);
        }
        if name.is_empty() || name.contains(&b'/') || name.contains(&0) { Err(Status::Inval) } else { Ok(()) }
    }

    fn entry(&self, directory: Id, name: &[u8]) -> Option<Id> {
        match name {
            b"." => Some(directory),
            b".." => Some(self.files[directory].parent),
            _ => self.files[directory].entries.iter().find(|(entry, _)| entry == name).map(|(_, id)| *id),
        }
    }

    fn touch(&mut self, id: Id, now: Stamp) {
        (self.files[id].modified, self.files[id].changed) = (now, now);
    }

    fn read(&self, id: Id, offset: u64, count: u64) -> Vec<u8> {
        let end = offset.saturating_add(count).min(self.files[id].size);
        (offset..end.max(offset))
            .map(|at| self.files[id].blocks.get(&(at / BLOCK)).map_or(0, |block| block[(at % BLOCK) as usize]))
            .collect()
    }

    fn write(&mut self, id: Id, offset: u64, data: &[u8]) {
        let file = &mut self.files[id];
        for (at, byte) in (offset..).zip(data) {
            let block = file.blocks.entry(at / BLOCK).or_insert_with(|| vec![0; BLOCK as usize]);
            block[(at % BLOCK) as usize] = *byte;
        }
        file.size = file.size.max(offset + data.len() as u64);
    }

    fn resize(&mut self, id: Id, size: u64) {
        let file = &mut self.files[id];
        file.blocks.retain(|block, _| block * BLOCK < size);
        if let Some(block) = file.blocks.get_mut(&(size / BLOCK)) {
            block[(size % BLOCK) as usize..].fill(0);
        }
        file.size = size;
    }

    /// Carries out a call, of which a refusal changes nothing.
    pub fn apply(&mut self, cred: &Credentials, time: u64, request: &Request<'_>) -> Result<Outcome, Status> {
        if let Some(result) = self.look(cred, request) {
            return result;
        }
        let nanos = time.max(self.last + 1);
        let result = self.change(cred, Stamp::from_nanos(nanos), request);
        if result.is_ok() {
            self.last = nanos;
        }
        result
    }

    fn look(&self, cred: &Credentials, request: &Request<'_>) -> Option<Result<Outcome, Status>> {
        Some(match *request {
            Request::GetAttr { object } => {
                self.find(object).map(|id| Outcome { found: Some(id), ..Outcome::default() })
            }
            Request::Lookup { at } => self.directory(cred, at.directory).and_then(|id| {
                Self::name(at.name)?;
                let found = self.entry(id, at.name).ok_or(Status::NoEnt)?;
                Ok(Outcome { found: Some(found), ..Outcome::default() })
            }),
            Request::Access { object, wanted } => self.find(object).map(|id| {
                let [r, w, x] = [4, 2, 1].map(|bit| self.may(cred, id, bit));
                let bits = match self.is_directory(id) {
                    true => [(r, 1), (x, 2), (w, 4), (w, 8), (w, 16)],
                    false => [(r, 1), (x, 32), (w, 4), (w, 8), (false, 0)],
                };
                let granted = bits.iter().filter(|(may, _)| *may).map(|(_, bit)| bit).sum::<u32>() & wanted;
                Outcome { granted, ..Outcome::default() }
            }),
            Request::ReadLink { link } => self.find(link).and_then(|id| match self.files[id].kind {
                Kind::Symlink => Ok(Outcome { data: self.files[id].target.clone(), ..Outcome::default() }),
                _ => Err(Status::Inval),
            }),
            Request::Read { file, offset, count } => self.find(file).and_then(|id| {
                self.regular(id)?;
                if !self.owns(cred, id) && !self.may(cred, id, 4) && !self.may(cred, id, 1) {
                    return Err(Status::Access);
                }
                let data = self.read(id, offset, count.min(TRANSFER_MAX).into());
                let eof = offset.saturating_add(data.len() as u64) >= self.files[id].size;
                Ok(Outcome { count: data.len() as u32, data, eof, ..Outcome::default() })
            }),
            Request::ReadDir { directory, .. } | Request::ReadDirPlus { directory, .. } => {
                self.find(directory).and_then(|id| {
                    if !self.is_directory(id) {
                        return Err(Status::NotDir);
                    }
                    self.need(cred, id, 4)?;
                    let dots = [(b".".to_vec(), id), (b"..".to_vec(), self.files[id].parent)];
                    let names = dots.into_iter().chain(self.files[id].entries.iter().cloned()).collect();
                    Ok(Outcome { names, eof: true, ..Outcome::default() })
                })
            }
            Request::Commit { file, .. } => self.find(file).and_then(|id| {
                self.regular(id)?;
                nothing()
            }),
            Request::FsStat { root: object } | Request::FsInfo { root: object } | Request::PathConf { object } => {
                self.find(object).and_then(|_| nothing())
            }
            Request::Null => nothing(),
            _ => return None,
        })
    }

    fn regular(&self, id: Id) -> Result<(), Status> {
        match self.files[id].kind {
            Kind::Regular => Ok(()),
            Kind::Directory => Err(Status::IsDir),
            _ => Err(Status::Inval),
        }
    }

    fn change(&mut self, cred: &Credentials, now: Stamp, request: &Request<'_>) -> Result<Outcome, Status> {
        match *request {
            Request::SetAttr { object, new, guard } => self.set(cred, now, object, &new, guard),
            Request::Write { file, offset, count, data, .. } => {
                let id = self.find(file)?;
                self.regular(id)?;
                if !self.owns(cred, id) {
                    self.need(cred, id, 2)?;
                }
                let data = data.get(..count as usize).ok_or(Status::Inval)?;
                if offset.checked_add(count.into()).is_none_or(|end| end > FILE_MAX) {
                    return Err(Status::FBig);
                }
                let data = &data[..data.len().min(TRANSFER_MAX as usize)];
                if !data.is_empty() {
                    self.write(id, offset, data);
                    self.touch(id, now);
                    self.files[id].verifier = None;
                    self.tame(cred, id);
                }
                Ok(Outcome { count: data.len() as u32, ..Outcome::default() })
            }
            Request::Create { at, how } => self.create(cred, now, at, how),
            Request::MkDir { at, new } => self.make(cred, now, at, Kind::Directory, &new, (0, 0), &[]),
            Request::Symlink { at, new, target } => {
                let new = NewAttributes { mode: Some(0o777), ..new };
                self.make(cred, now, at, Kind::Symlink, &new, (0, 0), target)
            }
            Request::MkNod { kind: Kind::Regular | Kind::Directory | Kind::Symlink, .. } => Err(Status::BadType),
            Request::MkNod { at, kind, new, device } => self.make(cred, now, at, kind, &new, device, &[]),
            Request::Remove { at } => self.remove(cred, now, at, false),
            Request::RmDir { at } => self.remove(cred, now, at, true),
            Request::Rename { from, to } => self.rename(cred, now, from, to),
            Request::Link { file, at } => {
                let id = self.find(file)?;
                let directory = self.directory(cred, at.directory)?;
                Self::name(at.name)?;
                if self.entry(directory, at.name).is_some() {
                    return Err(Status::Exist);
                }
                self.need(cred, directory, 2)?;
                if self.is_directory(id) {
                    return Err(Status::Perm);
                }
                self.files[directory].entries.push((at.name.to_vec(), id));
                self.touch(directory, now);
                self.files[id].changed = now;
                nothing()
            }
            // Whom a limit holds up, the real one says: the model does not know of pages.
            Request::SetQuota { .. } if cred.uid == 0 => nothing(),
            Request::SetQuota { .. } => Err(Status::Perm),
            _ => unreachable!("it was looked at"),
        }
    }

    /// setuid and setgid end when somebody else than root writes.
    fn tame(&mut self, cred: &Credentials, id: Id) {
        if cred.uid != 0 {
            self.tame_always(id);
        }
    }

    fn tame_always(&mut self, id: Id) {
        let file = &mut self.files[id];
        file.mode &= if file.mode & 0o10 == 0 { 0o3777 } else { 0o1777 };
    }

    fn set(
        &mut self,
        cred: &Credentials,
        now: Stamp,
        object: Given,
        new: &NewAttributes,
        guard: Option<Stamp>,
    ) -> Result<Outcome, Status> {
        let id = self.find(object)?;
        if guard.is_some_and(|guard| guard != self.files[id].changed) {
            return Err(Status::NotSync);
        }
        let times = [new.accessed, new.modified];
        if times.iter().any(|time| matches!(time, SetTime::To(stamp) if stamp.nanos > 999_999_999)) {
            return Err(Status::Inval);
        }
        let owns = self.owns(cred, id);
        if new.mode.is_some() && !owns {
            return Err(Status::Perm);
        }
        let file = &self.files[id];
        let (uid, gid) = (new.uid.unwrap_or(file.uid), new.gid.unwrap_or(file.gid));
        let gives = new.uid.is_some() || new.gid.is_some();
        if cred.uid != 0 && gives {
            let in_group = gid == file.gid || cred.gid == gid || cred.groups().contains(&gid);
            if !owns || uid != file.uid || !in_group {
                return Err(Status::Perm);
            }
        }
        if new.size.is_some() && !owns {
            self.need(cred, id, 2)?;
        }
        for time in times {
            match time {
                SetTime::Now if !owns => self.need(cred, id, 2)?,
                SetTime::To(_) if !owns => return Err(Status::Perm),
                _ => {}
            }
        }
        if let Some(size) = new.size {
            self.regular(id)?;
            if size > FILE_MAX {
                return Err(Status::FBig);
            }
            self.resize(id, size);
            self.files[id].modified = now;
            self.tame(cred, id);
        }
        if gives {
            (self.files[id].uid, self.files[id].gid) = (uid, gid);
            if !self.is_directory(id) {
                self.tame_always(id);
            }
        }
        if let Some(mode) = new.mode {
            let gid = self.files[id].gid;
            let keeps = cred.uid == 0 || cred.gid == gid || cred.groups().contains(&gid);
            self.files[id].mode = mode & if keeps { 0o7777 } else { 0o5777 };
        }
        self.set_times(id, now, new);
        if *new != NewAttributes::default() {
            self.files[id].changed = now;
            self.files[id].verifier = None;
        }
        nothing()
    }

    fn set_times(&mut self, id: Id, now: Stamp, new: &NewAttributes) {
        let file = &mut self.files[id];
        for (time, set) in [(&mut file.accessed, new.accessed), (&mut file.modified, new.modified)] {
            match set {
                SetTime::Keep => {}
                SetTime::Now => *time = now,
                SetTime::To(to) => *time = to,
            }
        }
    }

    fn create(&mut self, cred: &Credentials, now: Stamp, at: Place<'_>, how: CreateHow) -> Result<Outcome, Status> {
        let directory = self.directory(cred, at.directory)?;
        Self::name(at.name)?;
        let Some(id) = self.entry(directory, at.name) else {
            let (new, verifier) = match how {
                CreateHow::Unchecked(new) | CreateHow::Guarded(new) => (new, None),
                CreateHow::Exclusive(verifier) => (NewAttributes::default(), Some(verifier)),
            };
            if new.size.is_some_and(|size| size > FILE_MAX) {
                // Whatever else is wrong is said first.
                let (files, before) = (self.files.len(), self.files[directory].clone());
                let small = CreateHow::Guarded(NewAttributes { size: None, ..new });
                self.create(cred, now, at, small)?;
                self.files.truncate(files);
                self.files[directory] = before;
                return Err(Status::FBig);
            }
            let made = self.make(cred, now, at, Kind::Regular, &new, (0, 0), &[])?;
            let id = made.found.expect("it was made");
            self.files[id].verifier = verifier;
            self.files[id].size = new.size.unwrap_or(0);
            return Ok(made);
        };
        let file = &self.files[id];
        match how {
            CreateHow::Exclusive(verifier) if file.kind == Kind::Regular && file.verifier == Some(verifier) => {}
            CreateHow::Guarded(_) | CreateHow::Exclusive(_) => return Err(Status::Exist),
            CreateHow::Unchecked(_) if self.is_directory(id) => return Err(Status::IsDir),
            CreateHow::Unchecked(_) if file.kind != Kind::Regular => return Err(Status::Exist),
            CreateHow::Unchecked(new) => {
                if let Some(size) = new.size {
                    if !self.owns(cred, id) {
                        self.need(cred, id, 2)?;
                    }
                    if size > FILE_MAX {
                        return Err(Status::FBig);
                    }
                    self.resize(id, size);
                    self.touch(id, now);
                    self.files[id].verifier = None;
                    self.tame(cred, id);
                }
            }
        }
        Ok(Outcome { found: Some(id), ..Outcome::default() })
    }

    #[allow(clippy::too_many_arguments, reason = "they are what a file is made of")]
    fn make(
        &mut self,
        cred: &Credentials,
        now: Stamp,
        at: Place<'_>,
        kind: Kind,
        new: &NewAttributes,
        device: (u32, u32),
        target: &[u8],
    ) -> Result<Outcome, Status> {
        let directory = self.directory(cred, at.directory)?;
        Self::name(at.name)?;
        if self.entry(directory, at.name).is_some() {
            return Err(Status::Exist);
        }
        if kind == Kind::Symlink && (target.is_empty() || target.contains(&0)) {
            return Err(Status::Inval);
        }
        if matches!(kind, Kind::Block | Kind::Character) && cred.uid != 0 {
            return Err(Status::Perm);
        }
        let times = [new.accessed, new.modified];
        if times.iter().any(|time| matches!(time, SetTime::To(stamp) if stamp.nanos > 999_999_999)) {
            return Err(Status::Inval);
        }
        let setgid = self.files[directory].mode & 0o2000 != 0;
        let inherited = if setgid { self.files[directory].gid } else { cred.gid };
        let (uid, gid) = (new.uid.unwrap_or(cred.uid), new.gid.unwrap_or(inherited));
        let is_in = |gid| cred.gid == gid || cred.groups().contains(&gid);
        if cred.uid != 0 && (uid != cred.uid || (gid != inherited && !is_in(gid))) {
            return Err(Status::Perm);
        }
        self.need(cred, directory, 2)?;
        let mut mode = new.mode.unwrap_or(0) & 0o7777;
        if kind == Kind::Directory && setgid {
            mode |= 0o2000;
        }
        if kind != Kind::Directory && cred.uid != 0 && mode & 0o2010 == 0o2010 && !is_in(gid) {
            mode &= 0o5777;
        }
        let id = self.files.len();
        self.files.push(File {
            alive: true,
            kind,
            mode,
            uid,
            gid,
            device,
            size: 0,
            blocks: BTreeMap::new(),
            target: target.to_vec(),
            entries: Vec::new(),
            parent: directory,
            verifier: None,
            accessed: now,
            modified: now,
            changed: now,
        });
        self.set_times(id, now, new);
        self.files[directory].entries.push((at.name.to_vec(), id));
        self.touch(directory, now);
        Ok(Outcome { found: Some(id), ..Outcome::default() })
    }

    fn held_off(&self, cred: &Credentials, directory: Id, id: Id) -> bool {
        self.files[directory].mode & 0o1000 != 0 && !self.owns(cred, directory) && !self.owns(cred, id)
    }

    /// Without a name a file is gone, and so is a directory that lost its only one.
    fn bury(&mut self, id: Id, now: Stamp) {
        let named = self.files.iter().any(|file| file.alive && file.entries.iter().any(|(_, to)| *to == id));
        self.files[id].changed = now;
        self.files[id].alive = named;
    }

    fn remove(&mut self, cred: &Credentials, now: Stamp, at: Place<'_>, dirs: bool) -> Result<Outcome, Status> {
        let directory = self.directory(cred, at.directory)?;
        self.need(cred, directory, 2)?;
        Self::name(at.name)?;
        match (at.name, dirs) {
            (b"..", true) => return Err(Status::NotEmpty),
            (b"." | b"..", _) => return Err(Status::Inval),
            _ => {}
        }
        let id = self.entry(directory, at.name).ok_or(Status::NoEnt)?;
        if self.held_off(cred, directory, id) {
            return Err(Status::Perm);
        }
        match (self.is_directory(id), dirs) {
            (true, false) => return Err(Status::IsDir),
            (false, true) => return Err(Status::NotDir),
            (true, true) if !self.files[id].entries.is_empty() => return Err(Status::NotEmpty),
            _ => {}
        }
        self.files[directory].entries.retain(|(name, _)| name != at.name);
        self.touch(directory, now);
        self.bury(id, now);
        nothing()
    }

    fn rename(&mut self, cred: &Credentials, now: Stamp, from: Place<'_>, to: Place<'_>) -> Result<Outcome, Status> {
        let old = self.directory(cred, from.directory)?;
        self.need(cred, old, 2)?;
        let new = self.directory(cred, to.directory)?;
        self.need(cred, new, 2)?;
        Self::name(from.name)?;
        Self::name(to.name)?;
        if [from.name, to.name].iter().any(|name| matches!(*name, b"." | b"..")) {
            return Err(Status::Inval);
        }
        let id = self.entry(old, from.name).ok_or(Status::NoEnt)?;
        let gone = self.entry(new, to.name);
        if gone == Some(id) {
            return nothing();
        }
        if self.held_off(cred, old, id) || gone.is_some_and(|gone| self.held_off(cred, new, gone)) {
            return Err(Status::Perm);
        }
        if self.is_directory(id) && old != new {
            self.need(cred, id, 2)?;
            let mut above = new;
            while above != 0 && above != id {
                above = self.files[above].parent;
            }
            if above == id {
                return Err(Status::Inval);
            }
        }
        if let Some(gone) = gone {
            match (self.is_directory(id), self.is_directory(gone)) {
                (true, false) => return Err(Status::NotDir),
                (false, true) => return Err(Status::IsDir),
                (true, true) if !self.files[gone].entries.is_empty() => return Err(Status::NotEmpty),
                _ => {}
            }
        }
        self.files[old].entries.retain(|(name, _)| name != from.name);
        match self.files[new].entries.iter_mut().find(|(name, _)| name == to.name) {
            Some((_, entry)) => *entry = id,
            None => self.files[new].entries.push((to.name.to_vec(), id)),
        }
        self.touch(old, now);
        self.touch(new, now);
        if self.is_directory(id) {
            self.files[id].parent = new;
        }
        self.files[id].changed = now;
        if let Some(gone) = gone {
            self.bury(gone, now);
        }
        nothing()
    }
}
