//! Content: sparse, long, full, and cut off.

use super::*;

#[test]
fn what_is_written_is_read_and_holes_are_zeroes() {
    let v = &mut Volume::new(1_000);
    let file = v.create(ROOT, "a");
    assert_eq!(v.write(file, 10_000, b"hello"), Ok(()));
    assert_eq!(v.stat(file).size, 10_005);
    assert_eq!(v.read(file, 9_998, 100), b"\0\0hello");
    let got = v.root(Request::Read { file: Some(file), offset: 10_000, count: 5 });
    assert!(got.ok().eof);
    assert!(!v.root(Request::Read { file: Some(file), offset: 10_000, count: 4 }).ok().eof);
    let past = v.root(Request::Read { file: Some(file), offset: u64::MAX, count: u32::MAX });
    assert_eq!((past.ok().count, past.ok().eof), (0, true));
    let longest = vec![7; TRANSFER_MAX as usize + 1];
    let got = v.root(write(file, 0, &longest));
    assert_eq!(got.ok().count, TRANSFER_MAX, "the rest is to be sent again");
    assert_eq!(v.read(file, 0, u32::MAX).len(), TRANSFER_MAX as usize);
    v.check();
}

#[test]
fn offsets_reach_the_end_of_63_bits() {
    let v = &mut Volume::new(1_000);
    let file = v.create(ROOT, "a");
    assert_eq!(v.write(file, FILE_MAX - 3, b"end"), Ok(()));
    assert_eq!(v.stat(file).size, FILE_MAX);
    assert_eq!(v.read(file, FILE_MAX - 4, 10), b"\0end");
    assert!(v.stat(file).used < 100_000);
    v.check();
    assert_eq!(v.write(file, FILE_MAX - 3, b"over"), Err(Status::FBig));
    assert_eq!(v.write(file, u64::MAX, b"x"), Err(Status::FBig));
    let size = |size| NewAttributes { size: Some(size), ..NewAttributes::default() };
    assert_eq!(v.set(&Credentials::ROOT, file, size(FILE_MAX + 1)), Err(Status::FBig));
    assert_eq!(v.set(&Credentials::ROOT, file, size(FILE_MAX)), Ok(()));
    let commit = |v: &mut Volume, offset| v.root(Request::Commit { file: Some(file), offset, count: 10 }).status();
    assert_eq!((commit(v, 0), commit(v, u64::MAX - 5)), (Ok(()), Err(Status::Inval)));
    assert_eq!(v.set(&Credentials::ROOT, file, size(1)), Ok(()));
    assert_eq!(v.set(&Credentials::ROOT, file, size(FILE_MAX)), Ok(()));
    assert_eq!(v.read(file, FILE_MAX - 3, 3), [0; 3]);
    v.check();
    assert_eq!(v.remove(ROOT, "a"), Ok(()));
    v.check();
}

#[test]
fn what_was_cut_off_is_zero_when_the_file_grows_again() {
    let v = &mut Volume::new(1_000);
    let file = v.create(ROOT, "a");
    let size = |size| NewAttributes { size: Some(size), ..NewAttributes::default() };
    for cut in [0, 1, 4_095, 4_096, 4_097, 9_000] {
        assert_eq!(v.write(file, 0, &[5; 10_000]), Ok(()));
        assert_eq!(v.set(&Credentials::ROOT, file, size(cut)), Ok(()));
        assert_eq!(v.set(&Credentials::ROOT, file, size(10_000)), Ok(()));
        let read = v.read(file, 0, 10_000);
        assert!(read[..cut as usize].iter().all(|&b| b == 5) && read[cut as usize..].iter().all(|&b| b == 0), "{cut}");
        v.check();
    }
    assert_eq!(v.set(&Credentials::ROOT, ROOT, size(0)), Err(Status::IsDir));
}

#[test]
fn a_write_says_how_many_bytes_it_has() {
    let v = &mut Volume::new(1_000);
    let file = v.create(ROOT, "a");
    let wrong = Request::Write { file: Some(file), offset: 0, count: 10, stable: 2, data: b"short" };
    assert_eq!(v.root(wrong).status(), Err(Status::Inval));
    let less = Request::Write { file: Some(file), offset: 0, count: 3, stable: 2, data: b"longer" };
    assert_eq!(v.root(less).ok().count, 3);
    assert_eq!(v.stat(file).size, 3);
    let before = v.stat(file);
    assert_eq!(v.root(write(file, 100, b"")).ok().count, 0);
    assert_eq!(v.stat(file), before, "nothing was written");
    assert_eq!(v.write(ROOT, 0, b"x"), Err(Status::IsDir));
}

#[test]
fn a_full_file_system_stays_usable() {
    let v = &mut Volume::new(300);
    let free = v.bytes_free();
    let file = v.create(ROOT, "big");
    let block = vec![1; 32 * 1024];
    let mut written = 0;
    while v.write(file, written, &block) == Ok(()) {
        written += block.len() as u64;
    }
    assert_eq!(v.write(file, written, &block), Err(Status::NoSpc));
    assert_eq!(v.stat(file).size, written, "a write that is refused changes nothing");
    while v.write(file, written, &block[..4_096]) == Ok(()) {
        written += 4_096;
    }
    assert_eq!(v.bytes_free(), 0);
    v.check();
    // What needs no room goes on: overwriting, attributes, names that fit, removing.
    assert_eq!(v.write(file, 0, b"over"), Ok(()));
    assert_eq!(v.set(&Credentials::ROOT, file, NewAttributes::mode(0o600)), Ok(()));
    assert_eq!(v.rename(at(ROOT, "big"), at(ROOT, "BIG")), Ok(()));
    let mut made = 0;
    let refused = loop {
        let how = CreateHow::Guarded(NewAttributes::mode(0o600));
        let name = format!("{made:0>200}");
        match v.root(Request::Create { at: at(ROOT, &name), how }).status() {
            Ok(()) => made += 1,
            Err(status) => break status,
        }
    };
    assert_eq!(refused, Status::NoSpc);
    v.check();
    assert_eq!(v.remove(ROOT, "BIG"), Ok(()));
    for i in 0..made {
        assert_eq!(v.remove(ROOT, &format!("{i:0>200}")), Ok(()));
    }
    assert!(v.bytes_free() > free - 8 * 4_096);
    v.check();
}

#[test]
fn long_files_are_freed_in_steps_and_their_room_counts_as_free() {
    let v = &mut Volume::new(12_000);
    let block = vec![1; TRANSFER_MAX as usize];
    let fill = |v: &mut Volume, name: &str| {
        let file = v.create(ROOT, name);
        for i in 0..500 {
            assert_eq!(v.write(file, i * block.len() as u64, &block), Ok(()));
        }
        file
    };
    let free = v.bytes_free();
    fill(v, "a");
    assert_eq!(v.remove(ROOT, "a"), Ok(()));
    assert!(v.bytes_free() >= free - 2 * 4_096, "{} {free}", v.bytes_free());
    assert!(v.state.service.available() < 5_000, "it is not freed at once");
    v.check();
    // A call that needs the room gets it; truncation to nothing gives it up in the same way.
    let b = fill(v, "b");
    let size = NewAttributes { size: Some(0), ..NewAttributes::default() };
    assert_eq!(v.set(&Credentials::ROOT, b, size), Ok(()));
    assert_eq!((v.stat(b).size, v.stat(b).used), (0, 0));
    assert!(v.state.service.available() < 5_000);
    v.check();
    fill(v, "c");
    v.check();
    for i in 0..10 {
        v.create(ROOT, &i.to_string());
        v.check();
    }
}

#[test]
fn times_are_the_agreed_ones_and_never_stand_still() {
    let v = &mut Volume::new(100);
    let file = v.create(ROOT, "a");
    let first = v.stat(file);
    assert_eq!(first.changed, Stamp::from_nanos(v.time - 1_000));
    v.time = EPOCH; // A clock that goes back.
    assert_eq!(v.write(file, 0, b"x"), Ok(()));
    let second = v.stat(file);
    assert_eq!(
        second.modified,
        Stamp::from_nanos(first.changed.seconds * 1_000_000_000 + u64::from(first.changed.nanos) + 1)
    );
    assert_eq!(second.accessed, first.accessed);
    v.read(file, 0, 1);
    assert_eq!(v.stat(file), second, "reading touches nothing");

    let guard = |v: &mut Volume, guard| {
        let new = NewAttributes::mode(0o600);
        v.root(Request::SetAttr { object: Some(file), new, guard: Some(guard) }).status()
    };
    assert_eq!(guard(v, first.changed), Err(Status::NotSync));
    assert_eq!(guard(v, second.changed), Ok(()));

    let to = |nanos| NewAttributes { accessed: SetTime::To(Stamp { seconds: 5, nanos }), ..NewAttributes::default() };
    assert_eq!(v.set(&Credentials::ROOT, file, to(1_000_000_000)), Err(Status::Inval));
    assert_eq!(v.set(&Credentials::ROOT, file, to(999_999_999)), Ok(()));
    assert_eq!(v.stat(file).accessed, Stamp { seconds: 5, nanos: 999_999_999 });
    let now = NewAttributes { modified: SetTime::Now, ..NewAttributes::default() };
    assert_eq!(v.set(&Credentials::ROOT, file, now), Ok(()));
    let stat = v.stat(file);
    assert_eq!(stat.modified, stat.changed);
    let same = v.stat(file);
    assert_eq!(v.set(&Credentials::ROOT, file, NewAttributes::default()), Ok(()));
    assert_eq!(v.stat(file), same, "what sets nothing changes nothing");
}

#[test]
fn sizes_and_limits_are_told() {
    let v = &mut Volume::new(1_000);
    let root = Some(ROOT);
    let got = v.root(Request::FsStat { root });
    let space = got.ok().space;
    assert_eq!(space.bytes, 1_000 * 4_096);
    assert_eq!(space.bytes_free, 997 * 4_096);
    let got = v.root(Request::FsInfo { root });
    let sizes = got.ok().sizes;
    assert_eq!(sizes, Sizes { read_max: TRANSFER_MAX, write_max: TRANSFER_MAX, file_max: FILE_MAX });
    let got = v.root(Request::PathConf { object: root });
    assert_eq!(got.ok().limits, Limits { links_max: LINKS_MAX, name_max: 255 });
    v.create(ROOT, "a");
    let after = v.root(Request::FsStat { root }).ok().space;
    assert!(after.files_free < space.files_free && after.bytes_free < space.bytes_free);
}
