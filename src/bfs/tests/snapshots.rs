//! The file system as it was at a snapshot of the region.

use super::*;
use crate::state::SnapshotId;

/// The results of all that can be asked about some handles; of FSSTAT nothing, since that tells the space of now.
fn seen<P: Pages>(bfs: &Bfs, pages: &P, handles: &[Handle], names: &[&str]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut ask = |request: Request<'_>| {
        let (mut arguments, mut reply) = (Vec::new(), ReplyBuffer::new());
        request.encode(&mut arguments);
        let cred = Credentials::new(7, 7, &[]);
        for cred in [&cred, &Credentials::ROOT] {
            let accepted = bfs.look(request.procedure(), &arguments, cred, pages, &mut reply);
            assert_eq!(accepted, Ok(Accepted::Success));
            all.push(reply.take().to_vec());
        }
    };
    for &handle in handles {
        let object = Some(handle);
        ask(Request::GetAttr { object });
        ask(Request::Access { object, wanted: 0x3f });
        ask(Request::Read { file: object, offset: 0, count: TRANSFER_MAX });
        ask(Request::ReadLink { link: object });
        ask(Request::ReadDir { directory: object, cookie: 0, verifier: [0; 8], count: 60_000 });
        ask(Request::ReadDirPlus { directory: object, cookie: 0, verifier: [0; 8], names: 60_000, count: 60_000 });
        names.iter().for_each(|name| ask(Request::Lookup { at: at(handle, name) }));
    }
    all
}

#[test]
fn every_reading_procedure_answers_as_it_did_then() {
    let mut v = Volume::new(2_000);
    let names = ["d", "file", "other", "new"];
    let d = v.mkdir(Handle::ROOT, "d");
    let mut handles = vec![Handle::ROOT, d];
    let mut kept: Vec<(SnapshotId, Vec<Handle>, Vec<Vec<u8>>)> = Vec::new();
    for round in 0..10u8 {
        let file = v.create(d, "file");
        v.write(file, 0, &vec![round; 20_000]).unwrap();
        handles.push(file);
        let now = seen(&v.bfs, &v.state.service, &handles, &names);
        kept.push((v.state.service.take_snapshot().unwrap(), handles.clone(), now));
        v.write(file, 5_000, &[0xff; 30_000]).unwrap();
        v.set(&Credentials::ROOT, file, NewAttributes { uid: Some(7), ..NewAttributes::mode(0o600) }).unwrap();
        match round % 3 {
            0 => v.remove(d, "file").unwrap(),
            1 => v.rename(at(d, "file"), at(Handle::ROOT, "other")).unwrap(),
            _ => v.rename(at(d, "file"), at(d, "new")).unwrap(),
        }
        for (id, handles, then) in &kept {
            let past = v.state.service.at(*id).expect("there is room for everything");
            assert!(&seen(&v.bfs, &past, handles, &names) == then, "{id:?}");
        }
        v.check();
    }
    let before = v.bytes_free();
    kept.iter().for_each(|(id, ..)| assert!(v.state.service.remove_snapshot(*id)));
    assert!(v.bytes_free() > before + 10 * 20_000);
    v.check();
}

#[test]
fn a_full_file_system_says_so_before_it_loses_a_snapshot() {
    let mut v = Volume::new(60);
    let file = v.create(Handle::ROOT, "file");
    v.write(file, 0, &[1; 60_000]).unwrap();
    let before = seen(&v.bfs, &v.state.service, &[Handle::ROOT, file], &["file"]);
    let id = v.state.service.take_snapshot().unwrap();
    let other = v.create(Handle::ROOT, "other");
    let mut at = 0;
    while v.write(other, at, &[2; 4_096]).is_ok() {
        at += 4_096;
    }
    // Overwriting takes room too now: not a byte of the file was changed.
    assert_eq!(v.write(file, 0, &[3; 60_000]), Err(Status::NoSpc));
    assert_eq!(v.read(file, 0, 60_000), vec![1; 60_000]);
    v.check();
    let past = v.state.service.at(id).expect("what would have spoiled it was refused");
    assert!(seen(&v.bfs, &past, &[Handle::ROOT, file], &["file"]) == before);
    assert!(v.state.service.remove_snapshot(id));
    v.write(file, 0, &[3; 60_000]).unwrap();
    v.check();
}

#[test]
fn a_long_file_that_is_given_up_while_all_is_full_spoils_nothing() {
    let mut v = Volume::new(2_400);
    let file = v.create(Handle::ROOT, "file");
    let chunk = vec![1; 1 << 16];
    (0..130).for_each(|n| v.write(file, n << 16, &chunk).unwrap());
    let before = seen(&v.bfs, &v.state.service, &[Handle::ROOT, file], &["file"]);
    let id = v.state.service.take_snapshot().unwrap();
    v.remove(Handle::ROOT, "file").unwrap();
    while v.state.service.available() > 0 {
        v.state.service.allocate().unwrap();
    }
    // Needs no room itself, and is not held up by what cannot be freed.
    v.create(Handle::ROOT, "new");
    for round in 0..5 {
        let new = v.lookup(Handle::ROOT, "new").unwrap();
        assert_eq!(v.write(new, round << 16, &chunk), Err(Status::NoSpc));
    }
    let past = v.state.service.at(id).expect("what would have spoiled it was refused");
    assert!(seen(&v.bfs, &past, &[Handle::ROOT, file], &["file"]) == before);
}
