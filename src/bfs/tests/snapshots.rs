//! The directory of snapshots, and the file system as it was.

use super::*;
use crate::state::SnapshotId;

const SNAPSHOTS: Handle = Handle::Snapshots;

/// The results of all that can be asked about some files; of FSSTAT nothing, since that tells the space of now. Numbers
/// and handles are left out, which tell a file of now from what it was.
fn seen(v: &mut Volume, handles: &[Handle], names: &[&str]) -> Vec<String> {
    let mut all = Vec::new();
    let mut ask = |request: Request<'_>| {
        for cred in [&Credentials::new(7, 7, &[]), &Credentials::ROOT] {
            let got = v.call(cred, request);
            let mut answer = got.answer();
            answer.verifier = [0; 8];
            answer.handle = answer.handle.map(|_| ROOT);
            for attributes in [&mut answer.attributes, &mut answer.directory.1].into_iter().flatten() {
                attributes.fileid = 0;
            }
            for entry in &mut answer.entries {
                (entry.fileid, entry.handle) = (0, None);
                if let Some(attributes) = &mut entry.attributes {
                    attributes.fileid = 0;
                }
            }
            all.push(format!("{answer:?}"));
        }
    };
    for &handle in handles {
        let object = Some(handle);
        ask(Request::GetAttr { object });
        ask(Request::Access { object, wanted: access::READ | access::LOOKUP | access::EXECUTE });
        ask(Request::Read { file: object, offset: 0, count: TRANSFER_MAX });
        ask(Request::ReadLink { link: object });
        ask(Request::ReadDir { directory: object, cookie: 0, verifier: [0; 8], count: 60_000 });
        ask(Request::ReadDirPlus { directory: object, cookie: 0, verifier: [0; 8], names: 60_000, count: 60_000 });
        names.iter().for_each(|name| ask(Request::Lookup { at: at(handle, name) }));
    }
    all
}

/// The files of some handles as they were.
fn then(snapshot: SnapshotId, handles: &[Handle]) -> Vec<Handle> {
    let then = |handle: &Handle| match *handle {
        Handle::Now { inode, .. } => Handle::Then { snapshot, inode },
        past => past,
    };
    handles.iter().map(then).collect()
}

fn take(v: &mut Volume, name: &str) -> SnapshotId {
    match v.mkdir(SNAPSHOTS, name) {
        Handle::Then { snapshot, inode: InodeId::ROOT } => snapshot,
        other => panic!("{other:?}"),
    }
}

fn remove_snapshot(v: &mut Volume, name: &str) -> Result<(), Status> {
    v.root(Request::RmDir { at: at(SNAPSHOTS, name) }).status()
}

fn listed(v: &mut Volume) -> Vec<String> {
    v.list(SNAPSHOTS, 4_096).into_iter().map(|(_, name)| name).collect()
}

#[test]
fn every_reading_procedure_answers_as_it_did_then() {
    let mut v = Volume::new(2_000);
    let names = ["d", "file", "other", "new"];
    let d = v.mkdir(ROOT, "d");
    let mut handles = vec![ROOT, d];
    let mut kept: Vec<(String, Vec<Handle>, Vec<String>)> = Vec::new();
    for round in 0..10u8 {
        let file = v.create(d, "file");
        v.write(file, 0, &vec![round; 20_000]).unwrap();
        handles.retain(|&handle| v.root(Request::GetAttr { object: Some(handle) }).status().is_ok());
        handles.push(file);
        let now = seen(&mut v, &handles, &names);
        let id = take(&mut v, &format!("round {round}"));
        kept.push((format!("round {round}"), then(id, &handles), now));
        v.write(file, 5_000, &[0xff; 30_000]).unwrap();
        v.set(&Credentials::ROOT, file, NewAttributes { uid: Some(7), ..NewAttributes::mode(0o600) }).unwrap();
        match round % 3 {
            0 => v.remove(d, "file").unwrap(),
            1 => v.rename(at(d, "file"), at(ROOT, "other")).unwrap(),
            _ => v.rename(at(d, "file"), at(d, "new")).unwrap(),
        }
        for (name, handles, then) in &kept {
            assert!(&seen(&mut v, handles, &names) == then, "{name}");
            assert_eq!(v.lookup(SNAPSHOTS, name), Ok(handles[0]));
        }
        v.check();
    }
    let before = v.bytes_free();
    kept.iter().for_each(|(name, ..)| assert_eq!(remove_snapshot(&mut v, name), Ok(())));
    assert!(v.bytes_free() > before + 10 * 20_000);
    v.check();
}

#[test]
fn a_path_leads_from_the_root_to_what_a_file_was() {
    let mut v = Volume::new(500);
    let d = v.mkdir(ROOT, "d");
    let file = v.create(d, "file");
    v.write(file, 0, b"before").unwrap();
    assert_eq!(v.lookup(ROOT, ".snapshot"), Ok(SNAPSHOTS));
    take(&mut v, "monday");
    v.write(file, 0, b"after!").unwrap();
    let monday = v.lookup(SNAPSHOTS, "monday").unwrap();
    let past = v.lookup(monday, "d").and_then(|d| v.lookup(d, "file")).unwrap();
    assert_eq!((v.read(past, 0, 100), v.read(file, 0, 100)), (b"before".to_vec(), b"after!".to_vec()));
    // Another file to programs, with the same attributes otherwise.
    assert_ne!(v.stat(past).fileid, v.stat(file).fileid);
    assert_eq!((v.lookup(monday, "."), v.lookup(monday, "..")), (Ok(monday), Ok(monday)));
    assert_eq!((v.lookup(SNAPSHOTS, "."), v.lookup(SNAPSHOTS, "..")), (Ok(SNAPSHOTS), Ok(ROOT)));
    // It is in no listing, so that nobody who walks the tree walks what was, and leads only from the root of now.
    assert_eq!(v.list(ROOT, 4_096).len(), 3);
    assert_eq!(v.lookup(monday, ".snapshot"), Err(Status::NoEnt));
    assert_eq!(v.lookup(d, ".snapshot"), Err(Status::NoEnt));
    v.check();
}

#[test]
fn what_is_past_cannot_be_changed() {
    let mut v = Volume::new(500);
    let file = v.create(ROOT, "file");
    v.write(file, 0, &[1; 10_000]).unwrap();
    let id = take(&mut v, "s");
    let [root, past] = then(id, &[ROOT, file])[..] else { panic!() };
    let (new, how) = (NewAttributes::mode(0o777), CreateHow::Unchecked(NewAttributes::mode(0o777)));
    let pages = |v: &Volume| -> Vec<_> {
        (0..v.state.service.pages()).map(|page| *v.state.service.read(PageId(page))).collect()
    };
    let before = pages(&v);
    for directory in [root, SNAPSHOTS] {
        for request in [
            Request::SetAttr { object: Some(directory), new, guard: None },
            Request::Create { at: at(directory, "new"), how },
            Request::Symlink { at: at(directory, "new"), new, target: b"t" },
            Request::MkNod { at: at(directory, "new"), kind: Kind::Fifo, new, device: (0, 0) },
            Request::Remove { at: at(directory, "file") },
            Request::Rename { from: at(directory, "file"), to: at(ROOT, "new") },
            Request::Rename { from: at(ROOT, "file"), to: at(directory, "new") },
            Request::Link { file: Some(file), at: at(directory, "new") },
        ] {
            assert_eq!(v.root(request).status(), Err(Status::RoFs), "{request:?}");
        }
    }
    for request in [
        write(past, 0, b"changed"),
        Request::SetAttr { object: Some(past), new, guard: None },
        Request::MkDir { at: at(root, "new"), new },
        Request::RmDir { at: at(root, "new") },
        Request::Link { file: Some(past), at: at(ROOT, "new") },
    ] {
        assert_eq!(v.root(request).status(), Err(Status::RoFs), "{request:?}");
    }
    // Nor can the directory itself be replaced or removed.
    let place = at(ROOT, ".snapshot");
    for (request, status) in [
        (Request::MkDir { at: place, new }, Status::Exist),
        (Request::Create { at: place, how }, Status::IsDir),
        (Request::Create { at: place, how: CreateHow::Guarded(new) }, Status::Exist),
        (Request::Create { at: place, how: CreateHow::Exclusive([0; 8]) }, Status::Exist),
        (Request::Symlink { at: place, new, target: b"t" }, Status::Exist),
        (Request::Link { file: Some(file), at: place }, Status::Exist),
        (Request::Remove { at: place }, Status::Perm),
        (Request::RmDir { at: place }, Status::Perm),
        (Request::Rename { from: place, to: at(ROOT, "new") }, Status::Perm),
        (Request::Rename { from: at(ROOT, "file"), to: place }, Status::Perm),
    ] {
        assert_eq!(v.root(request).status(), Err(status), "{request:?}");
    }
    assert!(pages(&v) == before, "a call that is refused changes nothing");
    let granted = |v: &mut Volume, object| v.root(Request::Access { object: Some(object), wanted: 0x3f }).ok().granted;
    assert_eq!((granted(&mut v, past), granted(&mut v, file)), (access::READ, 0x0d));
    v.check();
}

#[test]
fn whoever_owns_the_root_directory_takes_and_removes_snapshots() {
    let (owner, other) = (Credentials::new(7, 7, &[]), Credentials::new(8, 7, &[]));
    let mut v = Volume::of(Bfs { uid: 7, gid: 7, mode: 0o777, ..Bfs::default() }, 500);
    let take = |v: &mut Volume, cred: &Credentials, name: &str| {
        let new = NewAttributes::default();
        v.call(cred, Request::MkDir { at: at(SNAPSHOTS, name), new }).status()
    };
    let remove =
        |v: &mut Volume, cred: &Credentials, name| v.call(cred, Request::RmDir { at: at(SNAPSHOTS, name) }).status();
    assert_eq!(take(&mut v, &other, "a"), Err(Status::Access));
    assert_eq!(take(&mut v, &owner, "a"), Ok(()));
    assert_eq!(take(&mut v, &owner, "a"), Err(Status::Exist));
    assert_eq!(remove(&mut v, &other, "a"), Err(Status::Access));
    assert_eq!(take(&mut v, &Credentials::ROOT, "b"), Ok(()));
    assert_eq!(listed(&mut v), [".", "..", "a", "b"]);
    assert_eq!(v.stat(SNAPSHOTS).links, 4);
    assert_eq!(remove(&mut v, &owner, "b"), Ok(()));
    assert_eq!(remove(&mut v, &owner, "b"), Err(Status::NoEnt));
    for (name, taking, removing) in [
        (".", Status::Exist, Status::Inval),
        ("..", Status::Exist, Status::NotEmpty),
        ("", Status::Inval, Status::Inval),
        ("x/y", Status::Inval, Status::Inval),
    ] {
        assert_eq!((take(&mut v, &owner, name), remove(&mut v, &owner, name)), (Err(taking), Err(removing)));
    }
    assert_eq!(listed(&mut v), [".", "..", "a"]);
    v.check();
}

#[test]
fn a_listing_goes_on_where_it_ended() {
    let mut v = Volume::new(2_000);
    let names: Vec<String> = (0..Region::SNAPSHOTS_MAX).map(|n| format!("{:0>200}", 999 - n)).collect();
    names.iter().for_each(|name| _ = take(&mut v, name));
    let new = NewAttributes::default();
    assert_eq!(v.root(Request::MkDir { at: at(SNAPSHOTS, "more"), new }).status(), Err(Status::NoSpc));
    assert_eq!(listed(&mut v)[2..], names);
    let list = v.list(SNAPSHOTS, 1_000);
    assert_eq!(list.len(), 2 + names.len());
    // A cookie stays good when what it stands for is gone.
    assert_eq!(remove_snapshot(&mut v, &names[3]), Ok(()));
    let verifier = SNAPSHOTS.cookie_verifier();
    let after = |cookie, verifier| Request::ReadDir { directory: Some(SNAPSHOTS), cookie, verifier, count: 60_000 };
    assert_eq!(v.root(after(list[5].0, verifier)).ok().entries[0].name, names[4].as_bytes());
    assert_eq!(v.root(after(list[5].0, [0; 8])).status(), Err(Status::BadCookie));
    v.check();
}

#[test]
fn a_handle_of_what_was_removed_is_stale() {
    let mut v = Volume::new(500);
    let file = v.create(ROOT, "file");
    let id = take(&mut v, "s");
    let [past] = then(id, &[file])[..] else { panic!() };
    let later = v.create(ROOT, "later");
    let get = |v: &mut Volume, handle| v.root(Request::GetAttr { object: Some(handle) }).status();
    assert_eq!(get(&mut v, past), Ok(()));
    assert!(get(&mut v, then(id, &[later])[0]).is_err(), "it was not there");
    for inode in [InodeId::NONE, InodeId(1_000), InodeId::SNAPSHOTS] {
        assert_eq!(get(&mut v, Handle::Then { snapshot: id, inode }), Err(Status::BadHandle));
    }
    assert_eq!(get(&mut v, Handle::Now { inode: InodeId::SNAPSHOTS, generation: 0 }), Err(Status::BadHandle));
    assert_eq!(remove_snapshot(&mut v, "s"), Ok(()));
    assert_eq!(get(&mut v, past), Err(Status::Stale));
    assert_eq!(get(&mut v, then(SnapshotId(77), &[file])[0]), Err(Status::Stale));
    v.check();
}

#[test]
fn a_full_file_system_says_so_before_it_loses_a_snapshot() {
    let mut v = Volume::new(60);
    let file = v.create(ROOT, "file");
    v.write(file, 0, &[1; 60_000]).unwrap();
    let before = seen(&mut v, &[file], &[]);
    let id = take(&mut v, "s");
    let other = v.create(ROOT, "other");
    let mut at = 0;
    while v.write(other, at, &[2; 4_096]).is_ok() {
        at += 4_096;
    }
    // Overwriting takes room too now: not a byte of the file was changed.
    assert_eq!(v.write(file, 0, &[3; 60_000]), Err(Status::NoSpc));
    assert_eq!(v.read(file, 0, 60_000), vec![1; 60_000]);
    v.check();
    assert!(seen(&mut v, &then(id, &[file]), &[]) == before, "what would have spoiled it was refused");
    assert_eq!(remove_snapshot(&mut v, "s"), Ok(()));
    v.write(file, 0, &[3; 60_000]).unwrap();
    v.check();
}

/// Where not even a name can be removed without room, a snapshot can.
#[test]
fn a_snapshot_is_removed_from_a_region_without_a_free_page() {
    let mut v = Volume::new(300);
    take(&mut v, "old");
    take(&mut v, "new");
    while v.state.service.available() > 0 {
        v.state.service.allocate().unwrap();
    }
    assert_eq!(
        v.root(Request::MkDir { at: at(ROOT, "d"), new: NewAttributes::default() }).status(),
        Err(Status::NoSpc)
    );
    assert_eq!(remove_snapshot(&mut v, "new"), Ok(()));
    assert_eq!(listed(&mut v), [".", "..", "old"]);
    assert_eq!(v.lookup(SNAPSHOTS, "new"), Err(Status::NoEnt));
    assert!(v.lookup(SNAPSHOTS, "old").is_ok_and(|old| v.list(old, 4_096).len() == 2));
    assert_eq!(remove_snapshot(&mut v, "old"), Ok(()));
    take(&mut v, "new");
    assert_eq!(listed(&mut v), [".", "..", "new"]);
}

#[test]
fn a_spoiled_snapshot_can_be_seen_and_removed() {
    let mut v = Volume::new(100);
    let file = v.create(ROOT, "file");
    v.write(file, 0, &[1; 60_000]).unwrap();
    let id = take(&mut v, "s");
    while v.state.service.available() > 0 {
        v.state.service.allocate().unwrap();
    }
    // A change that does not ask whether there is room.
    let inode = table::load(&v.state.service, InodeId::ROOT);
    table::store(&mut v.state.service, InodeId::ROOT, &inode);
    let [root, past] = then(id, &[ROOT, file])[..] else { panic!() };
    assert_eq!(v.root(Request::GetAttr { object: Some(past) }).status(), Err(Status::Io));
    let found = v.root(Request::Lookup { at: at(SNAPSHOTS, "s") });
    assert_eq!((found.ok().handle, found.ok().attributes.unwrap().mode), (Some(root), 0));
    let list = Request::ReadDirPlus {
        directory: Some(SNAPSHOTS),
        cookie: 2,
        verifier: SNAPSHOTS.cookie_verifier(),
        names: 4_096,
        count: 4_096,
    };
    assert_eq!(v.root(list).ok().entries[0].attributes.unwrap().mode, 0);
    assert_eq!(remove_snapshot(&mut v, "s"), Ok(()));
    assert_eq!(v.lookup(SNAPSHOTS, "s"), Err(Status::NoEnt));
}

#[test]
fn a_long_file_that_is_given_up_while_all_is_full_spoils_nothing() {
    let mut v = Volume::new(2_400);
    let file = v.create(ROOT, "file");
    let chunk = vec![1; 1 << 16];
    (0..130).for_each(|n| v.write(file, n << 16, &chunk).unwrap());
    let before = seen(&mut v, &[file], &[]);
    let id = take(&mut v, "s");
    v.remove(ROOT, "file").unwrap();
    while v.state.service.available() > 0 {
        v.state.service.allocate().unwrap();
    }
    // Needs no room itself, and is not held up by what cannot be freed.
    v.create(ROOT, "new");
    for round in 0..5 {
        let new = v.lookup(ROOT, "new").unwrap();
        assert_eq!(v.write(new, round << 16, &chunk), Err(Status::NoSpc));
    }
    assert!(seen(&mut v, &then(id, &[file]), &[]) == before, "what would have spoiled it was refused");
}
