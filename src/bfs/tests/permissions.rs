//! Who may do what.

use super::*;

fn user(uid: u32) -> Credentials {
    Credentials::new(uid, uid, &[])
}

/// A file in the root directory that this user makes.
fn made_by(v: &mut Volume, cred: &Credentials, name: &str, mode: u32) -> Handle {
    let how = CreateHow::Guarded(NewAttributes::mode(mode));
    v.call(cred, Request::Create { at: at(ROOT, name), how }).ok().handle.unwrap()
}

fn mode(v: &mut Volume, file: Handle) -> u32 {
    v.stat(file).mode
}

#[test]
fn directories_keep_out_whom_they_do_not_let_in() {
    let v = &mut Volume::new(100);
    let d = v.mkdir(ROOT, "d");
    let file = v.create(d, "f");
    let lookup = |v: &mut Volume, cred: &Credentials| v.call(cred, Request::Lookup { at: at(d, "f") }).status();
    let list = |v: &mut Volume, cred: &Credentials| {
        v.call(cred, Request::ReadDir { directory: Some(d), cookie: 0, verifier: [0; 8], count: 4_096 }).status()
    };
    let remove = |v: &mut Volume, cred: &Credentials| v.call(cred, Request::Remove { at: at(d, "f") }).status();
    for (mode, search, read) in [(0o700, false, false), (0o701, true, false), (0o704, false, true), (0o755, true, true)]
    {
        assert_eq!(v.set(&Credentials::ROOT, d, NewAttributes::mode(mode)), Ok(()));
        assert_eq!(lookup(v, &user(5)).is_ok(), search, "{mode:o}");
        assert_eq!(list(v, &user(5)).is_ok(), read, "{mode:o}");
        assert_eq!(remove(v, &user(5)), Err(Status::Access));
    }
    let how = CreateHow::Guarded(NewAttributes::mode(0o600));
    assert_eq!(v.call(&user(5), Request::Create { at: at(d, "g"), how }).status(), Err(Status::Access));
    assert_eq!(v.call(&user(5), Request::Create { at: at(d, "f"), how }).status(), Err(Status::Exist));
    assert_eq!(v.call(&user(5), Request::Link { file: Some(file), at: at(d, "h") }).status(), Err(Status::Access));
    v.check();
}

#[test]
fn access_tells_what_is_granted() {
    let v = &mut Volume::new(100);
    let file = made_by(v, &user(5), "f", 0o754);
    let ask = |v: &mut Volume, cred: &Credentials, object| {
        v.call(cred, Request::Access { object: Some(object), wanted: 0x3f }).ok().granted
    };
    assert_eq!(ask(v, &user(5), file), access::READ | access::MODIFY | access::EXTEND | access::EXECUTE);
    assert_eq!(ask(v, &Credentials::new(6, 1, &[5]), file), access::READ | access::EXECUTE);
    assert_eq!(ask(v, &user(6), file), access::READ);
    assert_eq!(ask(v, &Credentials::ROOT, file), access::READ | access::MODIFY | access::EXTEND | access::EXECUTE);
    let d = v.mkdir(ROOT, "d");
    assert_eq!(ask(v, &user(5), d), access::READ | access::LOOKUP);
    assert_eq!(ask(v, &Credentials::ROOT, d), 0x1f);
    let some = Request::Access { object: Some(d), wanted: access::LOOKUP | access::EXECUTE };
    assert_eq!(v.root(some).ok().granted, access::LOOKUP);
}

#[test]
fn owners_reach_what_they_have_open() {
    let v = &mut Volume::new(100);
    let file = made_by(v, &user(5), "f", 0o000);
    assert_eq!(v.call(&user(5), write(file, 0, b"mine")).status(), Ok(()));
    let read = Request::Read { file: Some(file), offset: 0, count: 4 };
    assert_eq!(v.call(&user(5), read).status(), Ok(()));
    assert_eq!(v.call(&user(6), read).status(), Err(Status::Access));
    assert_eq!(v.call(&user(6), write(file, 0, b"not")).status(), Err(Status::Access));
    let program = made_by(v, &user(5), "p", 0o711);
    assert_eq!(v.call(&user(6), Request::Read { file: Some(program), offset: 0, count: 4 }).status(), Ok(()));
}

#[test]
fn attributes_are_the_owners() {
    let v = &mut Volume::new(100);
    let file = made_by(v, &user(5), "f", 0o644);
    let owner = Credentials::new(5, 5, &[7]);
    let uid = |uid| NewAttributes { uid: Some(uid), ..NewAttributes::default() };
    let gid = |gid| NewAttributes { gid: Some(gid), ..NewAttributes::default() };
    for (cred, new, expected) in [
        (&user(6), NewAttributes::mode(0o777), Err(Status::Perm)),
        (&user(6), uid(6), Err(Status::Perm)),
        (&user(6), uid(5), Err(Status::Perm)),
        (&user(6), gid(5), Err(Status::Perm)),
        (&owner, uid(6), Err(Status::Perm)),
        (&owner, gid(8), Err(Status::Perm)),
        (&owner, uid(5), Ok(())),
        (&owner, gid(7), Ok(())),
        (&owner, NewAttributes::mode(0o640), Ok(())),
        (&Credentials::ROOT, NewAttributes { uid: Some(9), gid: Some(9), ..NewAttributes::default() }, Ok(())),
        (&owner, gid(7), Err(Status::Perm)),
    ] {
        assert_eq!(v.set(cred, file, new), expected, "{new:?}");
    }
    let time = |accessed| NewAttributes { accessed, ..NewAttributes::default() };
    let file = made_by(v, &user(5), "g", 0o642);
    assert_eq!(v.set(&user(6), file, time(SetTime::Now)), Ok(()), "who may write may touch");
    assert_eq!(v.set(&user(6), file, time(SetTime::To(Stamp::default()))), Err(Status::Perm));
    assert_eq!(v.set(&owner, file, time(SetTime::To(Stamp::default()))), Ok(()));
    assert_eq!(v.set(&owner, file, NewAttributes::mode(0o640)), Ok(()));
    assert_eq!(v.set(&user(6), file, time(SetTime::Now)), Err(Status::Access));
}

#[test]
fn set_id_bits_do_not_outlive_a_change() {
    let v = &mut Volume::new(100);
    let owner = user(5);
    let file = made_by(v, &owner, "f", 0o6777);
    assert_eq!(mode(v, file), 0o6777);
    assert_eq!(v.write(file, 0, b"root"), Ok(()));
    assert_eq!(mode(v, file), 0o6777, "root writes and it stays");
    v.call(&user(6), write(file, 0, b"x")).ok();
    assert_eq!(mode(v, file), 0o777);
    let reset = |v: &mut Volume, bits| assert_eq!(v.set(&Credentials::ROOT, file, NewAttributes::mode(bits)), Ok(()));
    reset(v, 0o6766);
    v.call(&user(6), write(file, 0, b"x")).ok();
    assert_eq!(mode(v, file), 0o2766, "without execution by the group, setgid is something else");
    reset(v, 0o6777);
    let size = NewAttributes { size: Some(1), ..NewAttributes::default() };
    assert_eq!(v.set(&user(6), file, size), Ok(()));
    assert_eq!(mode(v, file), 0o777);
    reset(v, 0o6777);
    let gid = NewAttributes { gid: Some(5), ..NewAttributes::default() };
    assert_eq!(v.set(&Credentials::ROOT, file, gid), Ok(()));
    assert_eq!(mode(v, file), 0o777, "so does a change of the owner, also by root");
    // Nobody sets setgid of a group that he is not in.
    assert_eq!(v.set(&Credentials::ROOT, file, NewAttributes { gid: Some(9), ..NewAttributes::default() }), Ok(()));
    assert_eq!(v.set(&owner, file, NewAttributes::mode(0o2755)), Ok(()));
    assert_eq!(mode(v, file), 0o755);
}

#[test]
fn sticky_directories_protect_what_is_in_them() {
    let v = &mut Volume::new(100);
    assert_eq!(v.set(&Credentials::ROOT, ROOT, NewAttributes::mode(0o1777)), Ok(()));
    made_by(v, &user(5), "f", 0o666);
    made_by(v, &user(6), "mine", 0o666);
    let remove = |v: &mut Volume, cred: &Credentials| v.call(cred, Request::Remove { at: at(ROOT, "f") }).status();
    let rename = |v: &mut Volume, from: &str, to: &str| {
        v.call(&user(6), Request::Rename { from: at(ROOT, from), to: at(ROOT, to) }).status()
    };
    assert_eq!(remove(v, &user(6)), Err(Status::Perm));
    assert_eq!(rename(v, "f", "x"), Err(Status::Perm));
    assert_eq!(rename(v, "mine", "f"), Err(Status::Perm));
    assert_eq!(rename(v, "mine", "x"), Ok(()));
    assert_eq!(remove(v, &user(5)), Ok(()));
    made_by(v, &user(5), "f", 0o666);
    assert_eq!(remove(v, &Credentials::ROOT), Ok(()));
}

#[test]
fn a_directory_moves_only_by_who_may_write_it() {
    let v = &mut Volume::new(100);
    let to = v.mkdir(ROOT, "to");
    assert_eq!(v.set(&Credentials::ROOT, to, NewAttributes::mode(0o777)), Ok(()));
    v.mkdir(ROOT, "d");
    let rename = |v: &mut Volume, to| v.call(&user(5), Request::Rename { from: at(ROOT, "d"), to }).status();
    assert_eq!(rename(v, at(to, "d")), Err(Status::Access), "its `..` would change");
    assert_eq!(rename(v, at(ROOT, "e")), Ok(()));
}

#[test]
fn setgid_directories_hand_down_their_group() {
    let v = &mut Volume::new(100);
    let d = v.mkdir(ROOT, "d");
    let new = NewAttributes { gid: Some(50), mode: Some(0o2777), ..NewAttributes::default() };
    assert_eq!(v.set(&Credentials::ROOT, d, new), Ok(()));
    let inner = v.call(&user(5), Request::MkDir { at: at(d, "e"), new: NewAttributes::mode(0o755) });
    let attributes = inner.ok().attributes.unwrap();
    assert_eq!((attributes.gid, attributes.mode), (50, 0o2755));
    let how = CreateHow::Guarded(NewAttributes::mode(0o2755));
    let file = v.call(&user(5), Request::Create { at: at(d, "f"), how }).ok().attributes.unwrap();
    assert_eq!((file.gid, file.mode), (50, 0o755), "not for a group that the creator is not in");
    let member = Credentials::new(5, 5, &[50]);
    let file = v.call(&member, Request::Create { at: at(d, "g"), how }).ok().attributes.unwrap();
    assert_eq!((file.gid, file.mode), (50, 0o2755));
    let other = CreateHow::Guarded(NewAttributes { uid: Some(6), ..NewAttributes::default() });
    assert_eq!(v.call(&member, Request::Create { at: at(d, "h"), how: other }).status(), Err(Status::Perm));
}

#[test]
fn squashed_root_is_nobody() {
    let v = &mut Volume::of(Bfs { root_squash: true, uid: 5, gid: 5, ..Bfs::default() }, 100);
    let how = CreateHow::Guarded(NewAttributes::mode(0o600));
    assert_eq!(v.root(Request::Create { at: at(ROOT, "a"), how }).status(), Err(Status::Access));
    assert_eq!(v.call(&user(5), Request::Create { at: at(ROOT, "a"), how }).status(), Ok(()));
    let file = v.lookup(ROOT, "a").unwrap();
    assert_eq!(v.root(Request::Read { file: Some(file), offset: 0, count: 1 }).status(), Err(Status::Access));
    assert_eq!(v.set(&Credentials::ROOT, file, NewAttributes::mode(0o666)), Err(Status::Perm));
}
