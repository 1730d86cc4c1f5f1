//! The file system alone: by rule, by hostile bytes, and against a model.

mod data;
mod hostile;
mod locks;
mod model;
mod namespace;
mod permissions;
mod quotas;
mod random;
mod snapshots;

use super::*;
use crate::state::{Fixed, PageId, State};

/// Nanoseconds of the first call: 2026.
const EPOCH: u64 = 1_767_225_600_000_000_000;

const CLIENT: ClientId = ClientId(5);

/// One file system without replicas around it.
struct Volume {
    bfs: Bfs,
    state: State,
    time: u64,
}

/// The results of a call.
struct Got {
    procedure: Procedure,
    bytes: Vec<u8>,
}

impl Got {
    fn answer(&self) -> Answer<'_> {
        Answer::parse(self.procedure, &self.bytes).expect("results are well formed")
    }

    #[track_caller]
    fn ok(&self) -> Answer<'_> {
        let answer = self.answer();
        assert_eq!(answer.status, Ok(()), "{:?}", self.procedure);
        answer
    }

    fn status(&self) -> Result<(), Status> {
        self.answer().status
    }
}

impl Volume {
    fn new(pages: u32) -> Volume {
        Volume::of(Bfs { mode: 0o777, ..Bfs::default() }, pages)
    }

    fn of(bfs: Bfs, pages: u32) -> Volume {
        let mut state = State::new(1, pages);
        bfs.format(&mut state.service);
        Volume { bfs, state, time: EPOCH }
    }

    /// Calls it, and checks that what is said to be read-only can be asked, with the same results.
    fn call(&mut self, cred: &Credentials, request: Request<'_>) -> Got {
        self.call_as(Caller { client: CLIENT, cred }, request)
    }

    fn call_as(&mut self, caller: Caller<'_>, request: Request<'_>) -> Got {
        self.time += 1_000;
        let mut arguments = Vec::new();
        request.encode(&mut arguments);
        let procedure = request.procedure();
        let (mut asked, mut reply) = (ReplyBuffer::new(), ReplyBuffer::new());
        let looked = self.bfs.look(procedure, &arguments, caller, &self.state.service, &mut asked);
        let accepted = self.bfs.apply(procedure, &arguments, caller, self.time, &mut self.state.service, &mut reply);
        assert_eq!(accepted, Accepted::Success, "{request:?}");
        match looked {
            Ok(accepted) => assert_eq!((accepted, asked.as_slice()), (Accepted::Success, reply.as_slice())),
            Err(NotReadOnly) => assert!(asked.is_empty() && !procedure.is_read_only()),
        }
        Got { procedure, bytes: reply.take().to_vec() }
    }

    fn root(&mut self, request: Request<'_>) -> Got {
        self.call(&Credentials::ROOT, request)
    }

    fn mkdir(&mut self, directory: Handle, name: &str) -> Handle {
        self.root(Request::MkDir { at: at(directory, name), new: NewAttributes::mode(0o755) }).ok().handle.unwrap()
    }

    fn create(&mut self, directory: Handle, name: &str) -> Handle {
        let how = CreateHow::Guarded(NewAttributes::mode(0o644));
        self.root(Request::Create { at: at(directory, name), how }).ok().handle.unwrap()
    }

    fn write(&mut self, file: Handle, offset: u64, data: &[u8]) -> Result<(), Status> {
        self.root(write(file, offset, data)).status()
    }

    fn read(&mut self, file: Handle, offset: u64, count: u32) -> Vec<u8> {
        self.root(Request::Read { file: Some(file), offset, count }).ok().data.to_vec()
    }

    fn stat(&mut self, object: Handle) -> Attributes {
        self.root(Request::GetAttr { object: Some(object) }).ok().attributes.unwrap()
    }

    fn set(&mut self, cred: &Credentials, object: Handle, new: NewAttributes) -> Result<(), Status> {
        self.call(cred, Request::SetAttr { object: Some(object), new, guard: None }).status()
    }

    fn remove(&mut self, directory: Handle, name: &str) -> Result<(), Status> {
        self.root(Request::Remove { at: at(directory, name) }).status()
    }

    fn rename(&mut self, from: Place<'_>, to: Place<'_>) -> Result<(), Status> {
        self.root(Request::Rename { from, to }).status()
    }

    fn lookup(&mut self, directory: Handle, name: &str) -> Result<Handle, Status> {
        let got = self.root(Request::Lookup { at: at(directory, name) });
        got.status().map(|()| got.answer().handle.unwrap())
    }

    fn bytes_free(&mut self) -> u64 {
        self.root(Request::FsStat { root: Some(Handle::ROOT) }).ok().space.bytes_free
    }

    /// All names with their cookies, by calls that ask for `count` bytes.
    fn list(&mut self, directory: Handle, count: u32) -> Vec<(u64, String)> {
        let (mut all, mut cookie, mut verifier) = (Vec::new(), 0, [0; 8]);
        loop {
            let got = self.root(Request::ReadDir { directory: Some(directory), cookie, verifier, count });
            let answer = got.ok();
            for entry in &answer.entries {
                all.push((entry.cookie, String::from_utf8(entry.name.to_vec()).unwrap()));
                cookie = entry.cookie;
            }
            verifier = answer.verifier;
            if answer.eof {
                return all;
            }
        }
    }

    #[track_caller]
    fn check(&self) -> Fsck {
        let report = fsck(&self.state.service);
        assert_eq!(report.faults, [""; 0]);
        report
    }
}

fn at(directory: Handle, name: &str) -> Place<'_> {
    Place { directory: Some(directory), name: name.as_bytes() }
}

fn write(file: Handle, offset: u64, data: &[u8]) -> Request<'_> {
    Request::Write { file: Some(file), offset, count: data.len() as u32, stable: 0, data }
}

const ROOT: Handle = Handle::ROOT;

#[test]
fn the_superblock_fits_its_cell() {
    assert_eq!(<table::Superblock as Fixed>::SIZE, 48);
    let volume = &Volume::new(100);
    assert_eq!(volume.check(), Fsck { directories: 1, pages_used: 3, pages_free: 0, ..Fsck::default() });
}

#[test]
fn the_service_inspects_its_state_by_fsck() {
    let v = &mut Volume::new(200);
    let directory = v.mkdir(ROOT, "d");
    let file = v.create(directory, "f");
    assert_eq!(v.write(file, 0, &[1; 9_000]), Ok(()));
    let found = Bfs::inspect(&v.state.service).unwrap();
    assert_eq!(found.counts[..3], [("directories", 2), ("files", 1), ("bytes", 9_000)]);
    assert_eq!(found.faults, [""; 0]);
    let (id, mut inode) = table::find(&v.state.service, Some(file)).unwrap();
    inode.links = 2;
    table::store(&mut v.state.service, id, &inode);
    let found = Bfs::inspect(&v.state.service).unwrap();
    assert_eq!(found.faults, [format!("inode {} has 1 names and counts 2", id.0)]);
}

/// The map of cookies is made that of names too: both own its pages.
#[test]
fn fsck_does_not_walk_along_maps_that_share_pages() {
    let v = &mut Volume::new(200);
    v.create(ROOT, "f");
    let region = &mut v.state.service;
    // Slots of 64 bytes, from byte 64 of the directory on: names are in slot 1, cookies in 2.
    let names = region.read(PageId(0))[128..192].to_vec();
    region.write(PageId(0), 192..256).copy_from_slice(&names);
    let found = fsck(region).faults;
    assert_eq!(found.len(), 1);
    assert!(found[0].ends_with("belongs to the map of names and to the map of cookies"), "{found:?}");
}

#[test]
fn who_asks_is_what_the_client_may_claim() {
    use crate::execution::Caches;
    use crate::types::{Position, Time};

    let claims = [(ClientId(1), Claims { uids: [7].into(), gids: [7].into() })].into();
    let bfs = Bfs { claims, ..Bfs::default() };
    let mut region = Region::new(100);
    bfs.genesis(&mut region);
    let mut caches = Caches::new();
    let mut create = |client, cred: &Credentials, name| {
        let mut arguments = Vec::new();
        Request::Create { at: at(ROOT, name), how: CreateHow::Guarded(NewAttributes::mode(0o600)) }
            .encode(&mut arguments);
        let mut cx = Context::for_test(Time(EPOCH), ClientId(client), Position(0), &mut caches);
        let mut reply = ReplyBuffer::new();
        bfs.execute(&mut cx, &Bfs::operation(Procedure::Create as u32, cred, &arguments), &mut region, &mut reply);
        let status = Answer::parse(Procedure::Create, &reply.take()[4..]).unwrap().status;
        let mut arguments = Vec::new();
        Request::Access { object: Some(ROOT), wanted: access::MODIFY }.encode(&mut arguments);
        bfs.query(&cx, &Bfs::operation(Procedure::Access as u32, cred, &arguments), &region, &mut reply).unwrap();
        let access = Answer::parse(Procedure::Access, &reply.take()[4..]).unwrap().granted;
        (status, access == access::MODIFY)
    };
    // The root directory is root's, who alone may write to it.
    assert_eq!(create(1, &Credentials::ROOT, "a"), (Err(Status::Access), false));
    assert_eq!(create(2, &Credentials::ROOT, "b"), (Ok(()), true), "a client without claims is believed");
}

#[test]
fn operations_say_who_asks() {
    use crate::execution::Caches;
    use crate::types::{Position, Time};

    let bfs = Bfs { root_squash: true, mode: 0o777, ..Bfs::default() };
    let mut region = Region::new(100);
    bfs.genesis(&mut region);
    let mut arguments = Vec::new();
    let how = CreateHow::Guarded(NewAttributes::mode(0o600));
    Request::Create { at: at(ROOT, "a"), how }.encode(&mut arguments);
    let (mut caches, mut reply) = (Caches::new(), ReplyBuffer::new());
    let mut cx = Context::for_test(Time(EPOCH), ClientId(1), Position(0), &mut caches);
    let op = Bfs::operation(Procedure::Create as u32, &Credentials::ROOT, &arguments);
    assert_eq!(bfs.query(&cx, &op, &region, &mut reply), Err(NotReadOnly));
    reply.clear();
    bfs.execute(&mut cx, &op, &mut region, &mut reply);
    let result = reply.take();
    assert_eq!(result[..4], [0; 4]);
    let attributes = Answer::parse(Procedure::Create, &result[4..]).unwrap().attributes.unwrap();
    assert_eq!((attributes.uid, attributes.gid), (NOBODY, NOBODY));
    assert_eq!(attributes.changed, Stamp::from_nanos(EPOCH));
    for (op, accepted) in [
        (Bfs::operation(22, &Credentials::ROOT, &[]), Accepted::NoProcedure),
        (Bfs::operation(1, &Credentials::ROOT, &[]), Accepted::Garbage),
        (vec![0, 0, 0], Accepted::Garbage),
        (vec![0; 15], Accepted::Garbage),
        (vec![0; 16], Accepted::Success),
    ] {
        assert_eq!(bfs.query(&cx, &op, &region, &mut reply), Ok(()));
        assert_eq!(reply.take()[..], (accepted as u32).to_be_bytes());
        bfs.execute(&mut cx, &op, &mut region, &mut reply);
        assert_eq!(reply.take()[..], (accepted as u32).to_be_bytes());
    }
}
