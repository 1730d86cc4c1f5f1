//! Names: create, link, rename, remove, list.

use super::*;

#[test]
fn create_honours_guards_and_verifiers() {
    let v = &mut Volume::new(100);
    let create = |v: &mut Volume, how| v.root(Request::Create { at: at(ROOT, "a"), how });
    let a = create(v, CreateHow::Exclusive(*b"12345678")).ok().handle;
    assert_eq!(create(v, CreateHow::Exclusive(*b"12345678")).ok().handle, a, "the same call again");
    assert_eq!(create(v, CreateHow::Exclusive(*b"12345679")).status(), Err(Status::Exist));
    assert_eq!(create(v, CreateHow::Guarded(NewAttributes::mode(0o600))).status(), Err(Status::Exist));
    assert_eq!(v.write(a.unwrap(), 0, b"content"), Ok(()));
    assert_eq!(create(v, CreateHow::Exclusive(*b"12345678")).status(), Err(Status::Exist), "it was changed since");

    let got = create(v, CreateHow::Unchecked(NewAttributes::mode(0o777)));
    let attributes = got.ok().attributes.unwrap();
    assert_eq!((attributes.mode, attributes.size), (0, 7), "an existing file stays as it is");
    let cut = NewAttributes { size: Some(3), ..NewAttributes::default() };
    assert_eq!(create(v, CreateHow::Unchecked(cut)).ok().attributes.unwrap().size, 3);
    v.mkdir(ROOT, "d");
    let how = CreateHow::Unchecked(NewAttributes::default());
    assert_eq!(v.root(Request::Create { at: at(ROOT, "d"), how }).status(), Err(Status::IsDir));
    v.check();
}

#[test]
fn names_are_checked() {
    let v = &mut Volume::new(100);
    let longest = "n".repeat(NAME_MAX);
    let file = v.create(ROOT, &longest);
    assert_eq!(v.lookup(ROOT, &longest), Ok(file));
    let too_long = "n".repeat(NAME_MAX + 1);
    let mkdir = |v: &mut Volume, name: &str| {
        v.root(Request::MkDir { at: at(ROOT, name), new: NewAttributes::default() }).status()
    };
    for (name, status) in [
        ("", Status::Inval),
        ("a/b", Status::Inval),
        ("/", Status::Inval),
        ("a\0", Status::Inval),
        (too_long.as_str(), Status::NameTooLong),
        (".", Status::Exist),
        ("..", Status::Exist),
    ] {
        assert_eq!(mkdir(v, name), Err(status), "{name:?}");
        let link = v.root(Request::Link { file: Some(file), at: at(ROOT, name) });
        assert_eq!(link.status(), Err(status), "{name:?}");
        if !matches!(name, "." | "..") {
            assert_eq!(v.lookup(ROOT, name), Err(status));
            assert_eq!(v.remove(ROOT, name), Err(status));
            assert_eq!(v.rename(at(ROOT, &longest), at(ROOT, name)), Err(status));
        }
    }
    assert_eq!((v.lookup(ROOT, "."), v.lookup(ROOT, "..")), (Ok(ROOT), Ok(ROOT)));
    assert_eq!(v.lookup(ROOT, "none"), Err(Status::NoEnt));
    assert_eq!(v.lookup(file, "x"), Err(Status::NotDir));
    // Bytes that are no text are a name too.
    let name = [0xff, b'\n', 0x80];
    let place = Place { directory: Some(ROOT), name: &name };
    v.root(Request::MkDir { at: place, new: NewAttributes::default() }).ok();
    v.check();
}

#[test]
fn directories_count_their_subdirectories() {
    let v = &mut Volume::new(100);
    let a = v.mkdir(ROOT, "a");
    let b = v.mkdir(a, "b");
    v.create(a, "file");
    assert_eq!((v.stat(ROOT).links, v.stat(a).links, v.stat(b).links), (3, 3, 2));
    assert_eq!(v.lookup(b, ".."), Ok(a));
    let rmdir = |v: &mut Volume, directory, name| v.root(Request::RmDir { at: at(directory, name) }).status();
    assert_eq!(rmdir(v, ROOT, "a"), Err(Status::NotEmpty));
    assert_eq!(rmdir(v, a, "file"), Err(Status::NotDir));
    assert_eq!(rmdir(v, a, "."), Err(Status::Inval));
    assert_eq!(rmdir(v, a, ".."), Err(Status::NotEmpty));
    assert_eq!(rmdir(v, a, "none"), Err(Status::NoEnt));
    assert_eq!(v.remove(a, "b"), Err(Status::IsDir));
    assert_eq!(v.remove(a, "."), Err(Status::Inval));
    assert_eq!(rmdir(v, a, "b"), Ok(()));
    assert_eq!(v.stat(a).links, 2);
    assert_eq!(v.root(Request::GetAttr { object: Some(b) }).status(), Err(Status::Stale));
    v.check();
}

#[test]
fn a_handle_ends_with_its_file() {
    let v = &mut Volume::new(100);
    let old = v.create(ROOT, "a");
    assert_eq!(v.remove(ROOT, "a"), Ok(()));
    let new = v.create(ROOT, "b");
    assert_eq!(new.fileid(), old.fileid(), "the inode is used again");
    assert_ne!(new, old);
    assert_eq!(v.write(old, 0, b"x"), Err(Status::Stale));
    assert_eq!(v.write(new, 0, b"x"), Ok(()));
    let beyond = Handle::Now { inode: InodeId(1_000), generation: 0 };
    assert_eq!(v.write(beyond, 0, b"x"), Err(Status::BadHandle));
    assert_eq!(v.root(Request::GetAttr { object: None }).status(), Err(Status::BadHandle));
    assert_eq!(
        v.root(Request::GetAttr { object: Some(Handle::Now { inode: InodeId(0), generation: 0 }) }).status(),
        Err(Status::BadHandle)
    );
}

#[test]
fn links_are_names_of_one_file() {
    let v = &mut Volume::new(100);
    let file = v.create(ROOT, "a");
    let d = v.mkdir(ROOT, "d");
    let before = v.stat(file);
    assert_eq!(v.root(Request::Link { file: Some(file), at: at(d, "b") }).ok().attributes.unwrap().links, 2);
    assert!(v.stat(file).changed > before.changed);
    assert_eq!(v.stat(file).modified, before.modified);
    assert_eq!(v.root(Request::Link { file: Some(file), at: at(ROOT, "d") }).status(), Err(Status::Exist));
    assert_eq!(v.root(Request::Link { file: Some(d), at: at(ROOT, "e") }).status(), Err(Status::Perm));
    // Renaming one name to another of the same file does nothing.
    assert_eq!(v.rename(at(ROOT, "a"), at(d, "b")), Ok(()));
    assert_eq!((v.lookup(ROOT, "a"), v.lookup(d, "b")), (Ok(file), Ok(file)));
    assert_eq!(v.remove(ROOT, "a"), Ok(()));
    assert_eq!(v.stat(file).links, 1);
    assert_eq!(v.remove(d, "b"), Ok(()));
    assert_eq!(v.root(Request::GetAttr { object: Some(file) }).status(), Err(Status::Stale));
    v.check();
}

#[test]
fn a_file_has_so_many_names_and_no_more() {
    let v = &mut Volume::new(10_000);
    let file = v.create(ROOT, "a");
    for i in 1..LINKS_MAX {
        v.root(Request::Link { file: Some(file), at: at(ROOT, &i.to_string()) }).ok();
    }
    assert_eq!(v.root(Request::Link { file: Some(file), at: at(ROOT, "b") }).status(), Err(Status::MLink));
    assert_eq!(v.stat(file).links, LINKS_MAX);
    v.check();
}

#[test]
fn rename_replaces_what_it_may() {
    let v = &mut Volume::new(200);
    let (a, b) = (v.mkdir(ROOT, "a"), v.mkdir(ROOT, "b"));
    let file = v.create(a, "file");
    let gone = v.create(b, "file");
    let inner = v.mkdir(a, "inner");
    assert_eq!(v.rename(at(a, "file"), at(b, "file")), Ok(()));
    assert_eq!(v.lookup(b, "file"), Ok(file));
    assert_eq!(v.root(Request::GetAttr { object: Some(gone) }).status(), Err(Status::Stale));
    assert_eq!(v.lookup(a, "file"), Err(Status::NoEnt));

    assert_eq!(v.rename(at(b, "file"), at(a, "inner")), Err(Status::IsDir));
    assert_eq!(v.rename(at(a, "inner"), at(b, "file")), Err(Status::NotDir));
    assert_eq!(v.rename(at(a, "inner"), at(ROOT, "b")), Err(Status::NotEmpty));
    assert_eq!(v.rename(at(ROOT, "a"), at(inner, "x")), Err(Status::Inval));
    assert_eq!(v.rename(at(ROOT, "a"), at(a, "x")), Err(Status::Inval));
    assert_eq!(v.rename(at(a, "."), at(ROOT, "x")), Err(Status::Inval));
    assert_eq!(v.rename(at(a, "inner"), at(ROOT, "..")), Err(Status::Inval));
    assert_eq!(v.rename(at(a, "none"), at(ROOT, "x")), Err(Status::NoEnt));

    assert_eq!((v.stat(ROOT).links, v.stat(a).links, v.stat(b).links), (4, 3, 2));
    assert_eq!(v.rename(at(a, "inner"), at(b, "moved")), Ok(()));
    assert_eq!((v.stat(ROOT).links, v.stat(a).links, v.stat(b).links), (4, 2, 3));
    assert_eq!(v.lookup(inner, ".."), Ok(b));
    // An empty directory may be replaced by a directory, also by one from elsewhere.
    assert_eq!(v.rename(at(b, "moved"), at(ROOT, "a")), Ok(()));
    assert_eq!((v.stat(ROOT).links, v.stat(b).links), (4, 2));
    assert_eq!(v.lookup(ROOT, "a"), Ok(inner));
    assert_eq!(v.rename(at(ROOT, "a"), at(ROOT, "c")), Ok(()));
    assert_eq!(v.check().directories, 3);
}

#[test]
fn a_listing_goes_on_where_it_was_whatever_happened_meanwhile() {
    let v = &mut Volume::new(1_000);
    let d = v.mkdir(ROOT, "d");
    for i in 0..200 {
        v.create(d, &format!("file{i}"));
    }
    let all = v.list(d, 10_000);
    assert_eq!(all.len(), 202);
    assert_eq!(all[..2], [(1, ".".to_owned()), (2, "..".to_owned())]);
    assert_eq!(v.list(d, 300), all, "in small parts");

    let verifier =
        v.root(Request::ReadDir { directory: Some(d), cookie: 0, verifier: [0; 8], count: 4_096 }).ok().verifier;
    let after = all[100].0;
    assert_eq!(v.remove(d, &all[50].1), Ok(()));
    assert_eq!(v.remove(d, &all[100].1), Ok(()));
    v.create(d, "late");
    let rest = v.root(Request::ReadDir { directory: Some(d), cookie: after, verifier, count: 60_000 });
    let names: Vec<_> = rest.ok().entries.iter().map(|e| String::from_utf8(e.name.to_vec()).unwrap()).collect();
    let expected: Vec<_> = all[101..].iter().map(|(_, name)| name.clone()).chain(["late".to_owned()]).collect();
    assert_eq!(names, expected);

    let ask = |v: &mut Volume, verifier, count| {
        v.root(Request::ReadDir { directory: Some(d), cookie: 3, verifier, count }).status()
    };
    assert_eq!(ask(v, *b"12345678", 4_096), Err(Status::BadCookie));
    assert_eq!(ask(v, verifier, 100), Err(Status::TooSmall));
    assert_eq!(ask(v, verifier, 200), Ok(()));
    let file = v.create(ROOT, "f");
    let got = v.root(Request::ReadDir { directory: Some(file), cookie: 0, verifier, count: 4_096 });
    assert_eq!(got.status(), Err(Status::NotDir));
    v.check();
}

#[test]
fn a_listing_keeps_within_its_bounds() {
    let v = &mut Volume::new(1_000);
    for i in 0..300 {
        v.create(ROOT, &format!("{}{i}", "x".repeat(i % 50)));
    }
    for count in [300, 1_000, 4_000, 100_000] {
        for names in [100, 1_000, 100_000] {
            let request = Request::ReadDirPlus { directory: Some(ROOT), cookie: 0, verifier: [0; 8], names, count };
            let got = v.root(request);
            assert!(got.bytes.len() <= 4 + count as usize, "{count}: {}", got.bytes.len());
            let answer = got.ok();
            let (mut numbers, mut seen) = (0, 0);
            for entry in &answer.entries {
                let attributes = entry.attributes.unwrap();
                assert_eq!(attributes.fileid, entry.fileid);
                assert_eq!(entry.handle.unwrap().fileid(), entry.fileid);
                numbers += 24 + entry.name.len();
                seen += 1;
            }
            assert!(seen > 0 && numbers <= names as usize);
        }
    }
}

#[test]
fn special_files_are_what_they_are() {
    let v = &mut Volume::new(100);
    let user = Credentials::new(10, 20, &[]);
    let make = |v: &mut Volume, cred: &Credentials, name: &str, kind| {
        v.call(cred, Request::MkNod { at: at(ROOT, name), kind, new: NewAttributes::mode(0o640), device: (8, 1) })
    };
    for (name, kind) in [("b", Kind::Block), ("c", Kind::Character)] {
        assert_eq!(make(v, &user, name, kind).status(), Err(Status::Perm));
        let attributes = make(v, &Credentials::ROOT, name, kind).ok().attributes.unwrap();
        assert_eq!((attributes.kind, attributes.device, attributes.mode), (kind, (8, 1), 0o640));
    }
    for (name, kind) in [("s", Kind::Socket), ("p", Kind::Fifo)] {
        let attributes = make(v, &user, name, kind).ok().attributes.unwrap();
        assert_eq!((attributes.kind, attributes.device), (kind, (0, 0)));
    }
    for kind in [Kind::Regular, Kind::Directory, Kind::Symlink] {
        assert_eq!(make(v, &user, "x", kind).status(), Err(Status::BadType));
    }
    let fifo = v.lookup(ROOT, "p").unwrap();
    assert_eq!(v.write(fifo, 0, b"x"), Err(Status::Inval));
    assert_eq!(v.root(Request::Read { file: Some(fifo), offset: 0, count: 1 }).status(), Err(Status::Inval));
    v.check();
}

#[test]
fn symbolic_links_of_any_length() {
    let v = &mut Volume::new(100);
    let link = |v: &mut Volume, name: &str, target: &[u8]| {
        v.root(Request::Symlink { at: at(ROOT, name), new: NewAttributes::default(), target })
    };
    for len in [1, 127, 128, 129, TARGET_MAX] {
        let target = vec![b'/'; len];
        let got = link(v, &len.to_string(), &target);
        let (handle, attributes) = (got.ok().handle.unwrap(), got.ok().attributes.unwrap());
        assert_eq!((attributes.kind, attributes.size, attributes.mode), (Kind::Symlink, len as u64, 0o777));
        assert_eq!(v.root(Request::ReadLink { link: Some(handle) }).ok().data, target);
    }
    assert_eq!(link(v, "x", &vec![b'/'; TARGET_MAX + 1]).status(), Err(Status::NameTooLong));
    assert_eq!(link(v, "x", b"").status(), Err(Status::Inval));
    assert_eq!(link(v, "x", b"a\0b").status(), Err(Status::Inval));
    assert_eq!(link(v, "128", b"a").status(), Err(Status::Exist));
    assert_eq!(v.root(Request::ReadLink { link: Some(ROOT) }).status(), Err(Status::Inval));
    v.check();
    for len in [1, 127, 128, 129, TARGET_MAX] {
        assert_eq!(v.remove(ROOT, &len.to_string()), Ok(()));
    }
    v.check();
}

#[test]
fn changes_of_directories_are_told() {
    let v = &mut Volume::new(100);
    let before = v.stat(ROOT);
    let (was, is) = v.root(Request::MkDir { at: at(ROOT, "d"), new: NewAttributes::default() }).ok().directory;
    assert_eq!(was.unwrap().changed, before.changed);
    let is = is.unwrap();
    assert!(is.modified > before.modified && is.modified == is.changed);
    assert_eq!(v.stat(ROOT), is);
    let refused = v.root(Request::MkDir { at: at(ROOT, "d"), new: NewAttributes::default() });
    assert_eq!(refused.status(), Err(Status::Exist));
    let (was, still) = refused.answer().directory;
    assert_eq!((was.unwrap().changed, still), (is.changed, Some(is)));
}
