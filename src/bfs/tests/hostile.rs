//! Bytes that no client sends.

use super::*;
use crate::sim::Rng;

/// One call of each procedure, with every field set to something.
fn calls(file: Handle) -> Vec<Request<'static>> {
    fn place(name: &'static [u8]) -> Place<'static> {
        Place { directory: Some(ROOT), name }
    }
    let (object, root) = (Some(file), Some(ROOT));
    let (owner, other) = (LockOwner { mount: 1, owner: 7, pid: 70 }, LockOwner { mount: 1, owner: 8, pid: 80 });
    let new = NewAttributes {
        mode: Some(0o644),
        uid: Some(1),
        gid: Some(2),
        size: Some(10_000),
        accessed: SetTime::Now,
        modified: SetTime::To(Stamp { seconds: 1, nanos: 2 }),
    };
    vec![
        Request::Null,
        Request::GetAttr { object },
        Request::SetAttr { object, new, guard: Some(Stamp::default()) },
        Request::SetAttr { object, new, guard: None },
        Request::Lookup { at: place(b"file") },
        Request::Access { object, wanted: 63 },
        Request::ReadLink { link: object },
        Request::Read { file: object, offset: 1, count: 2 },
        Request::Write { file: object, offset: 5_000, count: 5, stable: 2, data: b"bytes" },
        Request::Create { at: place(b"new"), how: CreateHow::Guarded(new) },
        Request::Create { at: place(b"exclusive"), how: CreateHow::Exclusive(*b"12345678") },
        Request::MkDir { at: place(b"dir"), new },
        Request::Symlink { at: place(b"link"), new, target: b"target" },
        Request::MkNod { at: place(b"device"), kind: Kind::Block, new, device: (1, 2) },
        Request::MkNod { at: place(b"fifo"), kind: Kind::Fifo, new, device: (0, 0) },
        Request::Remove { at: place(b"file2") },
        Request::RmDir { at: place(b"dir2") },
        Request::Rename { from: place(b"file3"), to: place(b"file4") },
        Request::Link { file: object, at: place(b"other") },
        Request::ReadDir { directory: root, cookie: 0, verifier: [0; 8], count: 4_096 },
        Request::ReadDirPlus { directory: root, cookie: 0, verifier: [0; 8], names: 4_096, count: 4_096 },
        Request::FsStat { root },
        Request::FsInfo { root },
        Request::PathConf { object },
        Request::Commit { file: object, offset: 1, count: 2 },
        Request::Lease { mount: 1, how: LeaseCall::Begin },
        Request::Lock { file: object, owner, range: LockRange { start: 3, end: 9, exclusive: true } },
        Request::TestLock { file: object, owner: other, range: LockRange::whole(false) },
        Request::Unlock { file: object, owner, start: 5, end: u64::MAX },
        Request::Lease { mount: 1, how: LeaseCall::Renew },
        Request::Lease { mount: 2, how: LeaseCall::End },
        Request::GetQuota { account: Account::Group(4) },
        Request::SetQuota { account: Account::User(3), limit: Amount { bytes: 1 << 40, files: 1_000 } },
        Request::ListQuota { cookie: 1, count: 10 },
    ]
}

#[test]
fn arguments_survive_their_bytes_and_any_cut_is_garbage() {
    let v = &mut Volume::new(1_000);
    let file = v.create(ROOT, "file");
    for request in calls(file) {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        assert_eq!(Request::decode(request.procedure(), &bytes), Ok(request));
        for cut in 0..bytes.len() {
            assert!(Request::decode(request.procedure(), &bytes[..cut]).is_err(), "{request:?} cut at {cut}");
        }
        bytes.put_u32(0);
        assert!(Request::decode(request.procedure(), &bytes).is_err(), "{request:?} with more behind it");
    }
}

/// Every byte of every call is changed, and every procedure gets the arguments of every other: nothing panics, what
/// comes back can be read, and the file system fits together.
#[test]
fn any_bytes_are_answered() {
    let v = &mut Volume::new(2_000);
    let file = v.create(ROOT, "file");
    let mut rng = Rng::new(7);
    let mut tried = 0;
    for request in calls(file) {
        let mut good = Vec::new();
        request.encode(&mut good);
        for procedure in Procedure::ALL {
            tried += u32::from(try_bytes(v, procedure, &good));
        }
        for at in 0..good.len() {
            for _ in 0..8 {
                let mut bytes = good.clone();
                let any = rng.below(256) as u8;
                bytes[at] = *rng.pick(&[0, 1, 2, 0x7f, 0x80, 0xff, any]);
                tried += u32::from(try_bytes(v, request.procedure(), &bytes));
            }
        }
    }
    assert!(tried > 1_000, "{tried} were calls");
    v.check();
}

/// Whether the bytes were arguments of the procedure.
fn try_bytes(v: &mut Volume, procedure: Procedure, arguments: &[u8]) -> bool {
    let cred = Credentials::new(3, 4, &[5]);
    for cred in [&cred, &Credentials::ROOT] {
        let mut reply = ReplyBuffer::new();
        let caller = Caller { client: CLIENT, cred };
        match v.bfs.apply(procedure, arguments, caller, v.time, &mut v.state.service, &mut reply) {
            Accepted::Success => {
                Answer::parse(procedure, reply.as_slice()).expect("results are well formed");
            }
            Accepted::Garbage => {
                assert!(reply.is_empty());
                return false;
            }
            Accepted::NoProcedure => unreachable!("it has a number"),
        }
    }
    true
}

/// A state that lies, page by page: the check says so and does not panic or run for ever.
#[test]
fn fsck_survives_any_inode() {
    let mut rng = Rng::new(9);
    let mut seen = 0;
    for _ in 0..300 {
        let v = &mut Volume::new(200);
        let d = v.mkdir(ROOT, "d");
        let file = v.create(d, "f");
        assert_eq!(v.write(file, 0, &[1; 9_000]), Ok(()));
        v.create(ROOT, "g");
        assert_eq!(v.remove(ROOT, "g"), Ok(()));
        v.check();
        let region = &mut v.state.service;
        let id = InodeId(rng.between(1, 4) as u32);
        let mut bytes = table::load(region, id).to_bytes();
        let at = rng.index(88);
        bytes[at] = rng.below(256) as u8;
        table::store(region, id, &Inode::from_bytes(&bytes));
        seen += usize::from(!fsck(region).faults.is_empty());
    }
    assert!(seen > 50, "{seen}");
}
