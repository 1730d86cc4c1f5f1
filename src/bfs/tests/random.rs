//! Random calls against the model, on two file systems that come to their state by different ways.

use super::model::{Id, Model, Outcome};
use super::*;
use crate::sim::Rng;
use crate::state::Page;
use crate::types::{Digest, RegionId, SeqNum};

const NAMES: [&[u8]; 9] = [b"a", b"b", b"c", b"d", b"e", b"ab", b"file", b"\xff\n", &[b'n'; 255]];
const ODD_NAMES: [&[u8]; 6] = [b"", b".", b"..", b"a/b", b"a\0", &[b'n'; 256]];

/// Files of the model that are not yet forgotten. Of more than these the oldest dead are not asked about any more.
const HANDLES_MAX: usize = 400;

struct Random {
    rng: Rng,
    handles: Vec<Handle>,
    directories: Vec<Handle>,
    data: Vec<u8>,
}

impl Random {
    fn handle(&mut self) -> Given {
        match self.rng.below(100) {
            0 => None,
            1 => Some(Handle::Now { inode: InodeId(1 << 20), generation: self.rng.below(3) }),
            2..12 => Some(ROOT),
            12..70 => {
                // What was made lately is likely to live.
                let from = self.handles.len().saturating_sub(20);
                Some(self.handles[from + self.rng.index(self.handles.len() - from)])
            }
            _ => Some(*self.rng.pick(&self.handles)),
        }
    }

    fn place(&mut self) -> Place<'static> {
        let directory = match self.rng.below(10) {
            0 => self.handle(),
            1..4 => Some(ROOT),
            _ => {
                let from = self.directories.len().saturating_sub(8);
                Some(self.directories[from + self.rng.index(self.directories.len() - from)])
            }
        };
        let names = if self.rng.chance(30) { &ODD_NAMES[..] } else { &NAMES[..] };
        Place { directory, name: names[self.rng.index(names.len())] }
    }

    fn cred(&mut self) -> Credentials {
        match self.rng.below(6) {
            0..3 => Credentials::ROOT,
            3 => Credentials::new(1, 1, &[]),
            4 => Credentials::new(1, 2, &[1, 3]),
            _ => Credentials::new(2, 2, &[3]),
        }
    }

    fn mode(&mut self) -> u32 {
        match self.rng.below(4) {
            0 => self.rng.below(0o10000) as u32,
            1 => *self.rng.pick(&[0o1777, 0o2777, 0o6777, 0o755]),
            _ => 0o777,
        }
    }

    fn offset(&mut self) -> u64 {
        match self.rng.below(40) {
            0 => u64::MAX - self.rng.below(10),
            1 => FILE_MAX - self.rng.below(10),
            2 => self.rng.below(FILE_MAX),
            3 => self.rng.below(1 << 40),
            4..10 => self.rng.below(10_000_000),
            _ => self.rng.below(60_000),
        }
    }

    fn time(&mut self) -> SetTime {
        match self.rng.below(10) {
            0 => SetTime::Now,
            1 => SetTime::To(Stamp { seconds: self.rng.below(1 << 32), nanos: self.rng.below(1_001_000_000) as u32 }),
            _ => SetTime::Keep,
        }
    }

    fn attributes(&mut self, size: bool) -> NewAttributes {
        let rng = &mut self.rng;
        let mut some = |permille, below| rng.chance(permille).then(|| rng.below(below) as u32);
        let (uid, gid) = (some(100, 3), some(150, 4));
        NewAttributes {
            mode: self.rng.chance(600).then(|| self.mode()),
            uid,
            gid,
            size: (size && self.rng.chance(300)).then(|| self.offset()),
            accessed: self.time(),
            modified: self.time(),
        }
    }

    fn request(&mut self) -> Request<'_> {
        let count = match self.rng.below(30) {
            0 => self.rng.below(u32::MAX.into()) as u32,
            _ => self.rng.below(9_000) as u32,
        };
        if self.rng.chance(5) {
            let limit = Amount { bytes: self.rng.below(100) * 4_096, files: self.rng.below(60) };
            let account = match self.rng.below(2) {
                0 => Account::User(self.rng.below(3) as u32),
                _ => Account::Group(self.rng.below(4) as u32),
            };
            return Request::SetQuota { account, limit };
        }
        match self.rng.below(100) {
            0..10 => {
                let (from, len) = (self.rng.index(60_000), self.rng.index(9_000));
                let count = if self.rng.chance(20) { count } else { len as u32 };
                let (file, offset) = (self.handle(), self.offset());
                Request::Write { file, offset, count, stable: 0, data: &self.data[from..from + len] }
            }
            10..15 => Request::Read { file: self.handle(), offset: self.offset(), count },
            15..25 => Request::SetAttr { object: self.handle(), new: self.attributes(true), guard: None },
            25..35 => {
                let how = match self.rng.below(5) {
                    0 => CreateHow::Exclusive(self.rng.below(2).to_be_bytes()),
                    1 | 2 => CreateHow::Unchecked(self.attributes(true)),
                    _ => CreateHow::Guarded(self.attributes(true)),
                };
                Request::Create { at: self.place(), how }
            }
            35..43 => Request::MkDir { at: self.place(), new: self.attributes(false) },
            43..46 => {
                let len = *self.rng.pick(&[0, 1, 10, 128, 129, 4_000, 4_095]);
                Request::Symlink { at: self.place(), new: self.attributes(false), target: &[b't'; 4_095][..len] }
            }
            46..49 => {
                let kinds = [Kind::Block, Kind::Character, Kind::Socket, Kind::Fifo, Kind::Regular];
                let kind = *self.rng.pick(&kinds);
                let special = matches!(kind, Kind::Block | Kind::Character);
                let new = if kind == Kind::Regular { NewAttributes::default() } else { self.attributes(false) };
                Request::MkNod { at: self.place(), kind, new, device: if special { (8, 3) } else { (0, 0) } }
            }
            49..57 => Request::Remove { at: self.place() },
            57..61 => Request::RmDir { at: self.place() },
            61..71 => Request::Rename { from: self.place(), to: self.place() },
            71..76 => Request::Link { file: self.handle(), at: self.place() },
            76..82 => Request::Lookup { at: self.place() },
            82..85 => Request::GetAttr { object: self.handle() },
            85..88 => Request::Access { object: self.handle(), wanted: self.rng.below(64) as u32 },
            88..90 => Request::ReadLink { link: self.handle() },
            90..93 => Request::ReadDir { directory: self.handle(), cookie: 0, verifier: [0; 8], count: 30_000 },
            93..96 => {
                let directory = self.handle();
                Request::ReadDirPlus { directory, cookie: 0, verifier: [0; 8], names: 30_000, count: 60_000 }
            }
            96 => Request::FsStat { root: self.handle() },
            97 => Request::FsInfo { root: self.handle() },
            98 => Request::PathConf { object: self.handle() },
            _ => Request::Commit { file: self.handle(), offset: 0, count },
        }
    }
}

/// What the real one says must be what the model says.
fn compare(model: &mut Model, got: &Answer<'_>, expected: Result<Outcome, Status>, context: &str) -> Option<Handle> {
    assert_eq!(got.status, expected.as_ref().map(|_| ()).map_err(|status| *status), "{context}");
    let Ok(expected) = expected else { return None };
    if let (Some(id), Some(handle)) = (expected.found, got.handle) {
        model.know(handle, id);
    }
    assert_eq!((got.granted, got.count, got.data), (expected.granted, expected.count, &expected.data[..]), "{context}");
    let names: Vec<_> = got.entries.iter().map(|entry| entry.name.to_vec()).collect();
    assert_eq!(names, expected.names.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), "{context}");
    if !expected.data.is_empty() || !names.is_empty() {
        assert!(got.eof == expected.eof || expected.data.len() == got.data.len() && !names.is_empty(), "{context}");
    }
    for (entry, (_, id)) in got.entries.iter().zip(&expected.names) {
        if let (Some(attributes), Some(handle)) = (entry.attributes, entry.handle) {
            model.know(handle, *id);
            same(model, *id, attributes, context);
        }
    }
    if let (Some(id), Some(attributes)) = (expected.found, got.attributes) {
        same(model, id, attributes, context);
    }
    got.handle
}

fn same(model: &Model, id: Id, got: Attributes, context: &str) {
    assert_eq!(got, model.attributes(id, got.fileid, got.used), "{context}");
}

/// The attributes that a call gives of what it was about.
fn compare_objects(model: &Model, request: &Request<'_>, got: &Answer<'_>, context: &str) {
    let (object, directories) = match *request {
        Request::GetAttr { object: file }
        | Request::SetAttr { object: file, .. }
        | Request::Access { object: file, .. }
        | Request::ReadLink { link: file }
        | Request::Read { file, .. }
        | Request::Write { file, .. }
        | Request::FsStat { root: file }
        | Request::FsInfo { root: file }
        | Request::PathConf { object: file }
        | Request::Commit { file, .. } => (Some((file, got.attributes)), vec![]),
        Request::Lookup { at }
        | Request::Create { at, .. }
        | Request::MkDir { at, .. }
        | Request::Symlink { at, .. }
        | Request::MkNod { at, .. }
        | Request::Remove { at }
        | Request::RmDir { at } => (None, vec![(at.directory, got.directory.1)]),
        Request::Link { file, at } => (Some((file, got.attributes)), vec![(at.directory, got.directory.1)]),
        Request::Rename { from, to } => (None, vec![(from.directory, got.directory.1), (to.directory, got.target.1)]),
        Request::ReadDir { directory, .. } | Request::ReadDirPlus { directory, .. } => {
            (None, vec![(directory, got.directory.1)])
        }
        Request::Null => (None, vec![]),
        Request::Lock { .. } | Request::Unlock { .. } | Request::TestLock { .. } | Request::Lease { .. } => {
            (None, vec![])
        }
        Request::GetQuota { .. } | Request::SetQuota { .. } | Request::ListQuota { .. } => (None, vec![]),
    };
    for (given, attributes) in object.into_iter().chain(directories) {
        match (model.find(given), attributes) {
            (Ok(id), Some(attributes)) => same(model, id, attributes, context),
            (Err(_), None) => {}
            // GETATTR alone says nothing of a file when it refuses.
            (found, attributes) => panic!("{context}: {found:?} {attributes:?}"),
        }
    }
}

/// A replica's way: calls are undone and done again, states sealed, shipped and transferred.
struct Replica {
    volume: Volume,
    seals: u64,
}

impl Replica {
    fn call(&mut self, rng: &mut Rng, time: u64, cred: &Credentials, request: Request<'_>) -> Vec<u8> {
        let tries = if rng.chance(100) { 2 } else { 1 };
        for _ in 1..tries {
            self.volume.state.begin_tentative();
            self.volume.time = time - 1_000;
            self.volume.call(cred, request);
            self.volume.state.rollback();
        }
        self.volume.time = time - 1_000;
        let bytes = self.volume.call(cred, request).bytes;
        if rng.chance(20) {
            self.seals += 1;
            self.volume.state.seal(SeqNum(self.seals));
            while let Some(shipment) = self.volume.state.ship(100) {
                self.volume.state.give_back(shipment.pages.into_iter().map(|(region, _, page)| (region, page)));
            }
        }
        bytes
    }

    /// Goes on with a copy of the pages of another.
    fn transfer(&mut self, from: &State) {
        let pages = RegionId::BOTH.map(|id| {
            let region = from.region(id);
            let page = |page| Page::from_start(region.read(crate::state::PageId(page))).expect("a page");
            (0..region.pages()).map(page).collect()
        });
        self.volume = Volume::new(self.volume.state.service.limit());
        assert!(self.volume.state.install(pages));
        self.seals = 0;
    }
}

/// So many calls from a seed on regions of so many pages; the root in the end.
fn run(seed: u64, calls: u32, pages: u32) -> Digest {
    let mut rng = Rng::new(seed);
    let mut data = vec![0; 70_000];
    rng.fill(&mut data);
    let mut random = Random { rng: Rng::stream(seed, 1), handles: vec![ROOT], directories: vec![ROOT], data };
    let mut model = Model::new();
    let mut volume = Volume::new(pages);
    let mut replica = Replica { volume: Volume::new(pages), seals: 0 };
    let (mut full, mut over, mut changed) = (0, 0, 0);
    for index in 0..calls {
        let cred = random.cred();
        if rng.chance(10) {
            volume.time -= 2_000; // The agreed time does not go back; the file system does not rely on it.
        }
        let request = random.request();
        let procedure = request.procedure();
        let context = format!("seed {seed}, call {index}: {cred:?} {:?}", procedure);
        let got = volume.call(&cred, request);
        let again = replica.call(&mut rng, volume.time, &cred, request);
        assert_eq!(got.bytes, again, "{context}");
        let answer = got.answer();
        if answer.status == Err(Status::NoSpc) {
            full += 1;
            continue;
        }
        if answer.status == Err(Status::DQuot) {
            assert!(!cred.is_root(), "{context}");
            over += 1;
            continue;
        }
        changed += u32::from(answer.status.is_ok() && !procedure.is_read_only());
        let expected = model.apply(&cred, volume.time, &request);
        let made = compare(&mut model, &answer, expected, &context);
        if answer.status.is_ok() || procedure != Procedure::GetAttr {
            compare_objects(&model, &request, &answer, &context);
        }
        if let Some(handle) = made
            && !random.handles.contains(&handle)
        {
            random.handles.push(handle);
            if procedure == Procedure::MkDir {
                random.directories.push(handle);
            }
            if random.handles.len() > HANDLES_MAX {
                let dead = random.handles.iter().position(|handle| model.find(Some(*handle)).is_err());
                random.handles.remove(dead.unwrap_or(1));
            }
        }
        if index % 4_096 == 4_095 {
            assert_eq!(volume.state.full_root(), replica.volume.state.full_root(), "{context}");
            if rng.chance(500) {
                replica.transfer(&volume.state);
            }
            let report = volume.check();
            let alive = model.files.iter().filter(|file| file.alive).count() as u64;
            assert_eq!(report.directories + report.files, alive, "{context}");
        }
    }
    volume.check();
    assert!(pages > 1_000 || full > 0, "a small file system is full now and then");
    assert!(over > calls / 1_000, "only {over} of {calls} calls passed a limit");
    assert!(changed > calls / 10, "only {changed} of {calls} calls changed anything");
    let root = volume.state.full_root();
    assert_eq!(root, replica.volume.state.full_root());
    root
}

#[test]
fn random_calls_do_what_the_model_says() {
    for seed in 0..4 {
        run(seed, 8_000, 100_000);
    }
}

#[test]
fn random_calls_on_a_full_file_system() {
    for seed in 10..13 {
        run(seed, 8_000, 300);
    }
}

const STATE: &str = "ce8ad3bd10cca0e9778ff63671975df767d7107bae4a2475767a25b01b9c51ba";

/// Every build on every machine comes to this state. A change of the layout changes it, and wants a new `VERSION`.
#[test]
fn a_state_is_the_same_everywhere() {
    assert_eq!(run(1_000, 3_000, 100_000).to_string(), STATE);
}

#[test]
#[ignore = "a million calls take half a minute: cargo test --lib long_a_million -- --ignored"]
fn long_a_million_random_calls() {
    for seed in 100..110 {
        run(seed, 80_000, 1_000_000);
        run(seed, 20_000, 500);
    }
}
