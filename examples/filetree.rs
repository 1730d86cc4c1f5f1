//! A replicated file tree: directories, files, hard links, rename. A whole service on [`Map`] and [`Heap`].
//!
//! `cargo run --example filetree` plays a few operations on one copy of the state and shows what comes of them.

use castra::execution::{Caches, Context, NotReadOnly, ReplyBuffer, Service};
use castra::state::{BlobId, Cell, Fixed, Full, Heap, Map, Region, State};
use castra::types::{ClientId, Position, SeqNum, Time};

/// Directory and name to inode: `inode u64 big-endian | name`, so that a directory's entries follow one another.
const ENTRIES: Map = Map::at(0);
/// Inode to what it is.
const INODES: Map = Map::at(1);
/// What is in the files.
const DATA: Heap = Heap::at(2);
/// The inode allocated last.
const LAST: Cell<u64> = Cell::at(3);

const ROOT: u64 = 1;
const NAME_MAX: usize = 255;
/// Bytes of a file.
const FILE_MAX: u64 = 1 << 40;

/// A file or, without data, a directory.
#[derive(Clone, Copy)]
struct Inode {
    /// Names that it has; it goes with the last of them.
    links: u32,
    is_file: bool,
    data: BlobId,
}

impl Fixed for Inode {
    const SIZE: usize = <(u32, bool, BlobId)>::SIZE;
    fn decode(bytes: &[u8]) -> Inode {
        let (links, is_file, data) = Fixed::decode(bytes);
        Inode { links, is_file, data }
    }
    fn encode(&self, bytes: &mut [u8]) {
        (self.links, self.is_file, self.data).encode(bytes);
    }
}

/// Why an operation did nothing. The number is the first byte of its result; 0 is success.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Refusal {
    Malformed = 1,
    NotFound,
    Exists,
    NotADirectory,
    IsADirectory,
    NotEmpty,
    IntoItself,
    NoSpace,
}

impl From<Full> for Refusal {
    fn from(_: Full) -> Refusal {
        Refusal::NoSpace
    }
}

/// An operation. On the wire: its letter, then paths with their length (u16) before them, numbers, and data to the end.
#[derive(Clone, Copy, Debug)]
enum Op<'a> {
    MakeDirectory(&'a str),
    /// Writes at an offset, into a new file if there is none.
    Write(&'a str, u64, &'a [u8]),
    Truncate(&'a str, u64),
    Remove(&'a str),
    /// Replaces what has the new name, if that is a file or an empty directory.
    Rename(&'a str, &'a str),
    /// Gives a file a second name.
    Link(&'a str, &'a str),
    Read(&'a str, u64, u32),
    List(&'a str),
}

impl<'a> Op<'a> {
    fn encode(&self) -> Vec<u8> {
        let path = |path: &str| [&(path.len() as u16).to_le_bytes(), path.as_bytes()].concat();
        match self {
            Op::MakeDirectory(at) => [b"d", &path(at)[..]].concat(),
            Op::Write(at, offset, data) => [b"w", &path(at)[..], &offset.to_le_bytes(), data].concat(),
            Op::Truncate(at, len) => [b"t", &path(at)[..], &len.to_le_bytes()].concat(),
            Op::Remove(at) => [b"x", &path(at)[..]].concat(),
            Op::Rename(from, to) => [b"m", &path(from)[..], &path(to)].concat(),
            Op::Link(from, to) => [b"l", &path(from)[..], &path(to)].concat(),
            Op::Read(at, offset, len) => [b"r", &path(at)[..], &offset.to_le_bytes(), &len.to_le_bytes()].concat(),
            Op::List(at) => [b"s", &path(at)[..]].concat(),
        }
    }

    /// Any bytes may come here.
    fn decode(bytes: &'a [u8]) -> Option<Op<'a>> {
        fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
            let (head, after) = rest.split_first_chunk()?;
            *rest = after;
            Some(head)
        }
        fn path<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
            let len = u16::from_le_bytes(*take(rest)?);
            let (path, after) = rest.split_at_checked(len.into())?;
            *rest = after;
            str::from_utf8(path).ok()
        }
        let (&letter, mut bytes) = bytes.split_first()?;
        let rest = &mut bytes;
        let op = match letter {
            b'd' => Op::MakeDirectory(path(rest)?),
            b'w' => Op::Write(path(rest)?, u64::from_le_bytes(*take(rest)?), std::mem::take(rest)),
            b't' => Op::Truncate(path(rest)?, u64::from_le_bytes(*take(rest)?)),
            b'x' => Op::Remove(path(rest)?),
            b'm' => Op::Rename(path(rest)?, path(rest)?),
            b'l' => Op::Link(path(rest)?, path(rest)?),
            b'r' => Op::Read(path(rest)?, u64::from_le_bytes(*take(rest)?), u32::from_le_bytes(*take(rest)?)),
            b's' => Op::List(path(rest)?),
            _ => return None,
        };
        rest.is_empty().then_some(op)
    }
}

fn entry(directory: u64, name: &str) -> Vec<u8> {
    [&directory.to_be_bytes(), name.as_bytes()].concat()
}

fn inode(state: &Region, number: u64) -> Inode {
    INODES.load(state, &number.to_be_bytes()).expect("every entry has an inode")
}

fn set_inode(state: &mut Region, number: u64, inode: Inode) -> Result<(), Full> {
    INODES.store(state, &number.to_be_bytes(), &inode).map(|_| ())
}

/// The parts of a path, none of them empty or too long.
fn names(path: &str) -> impl Iterator<Item = Result<&str, Refusal>> {
    let names = path.split('/').filter(|name| !name.is_empty());
    names.map(|name| if name.len() <= NAME_MAX { Ok(name) } else { Err(Refusal::Malformed) })
}

/// The inode of `path`. `avoid` must not lie on the way.
fn walk(state: &Region, path: &str, avoid: Option<u64>) -> Result<u64, Refusal> {
    let mut at = ROOT;
    for name in names(path) {
        if inode(state, at).is_file {
            return Err(Refusal::NotADirectory);
        }
        at = ENTRIES.load(state, &entry(at, name?)).ok_or(Refusal::NotFound)?;
        if avoid == Some(at) {
            return Err(Refusal::IntoItself);
        }
    }
    Ok(at)
}

/// The key of the entry that `path` names, there or not, and the inode behind it.
fn locate(state: &Region, path: &str, avoid: Option<u64>) -> Result<(Vec<u8>, Option<u64>), Refusal> {
    let (parent, name) = path.trim_end_matches('/').rsplit_once('/').ok_or(Refusal::Malformed)?;
    let directory = walk(state, parent, avoid)?;
    let name = names(name).next().ok_or(Refusal::Malformed)??;
    if inode(state, directory).is_file {
        return Err(Refusal::NotADirectory);
    }
    let key = entry(directory, name);
    let found = ENTRIES.load(state, &key);
    Ok((key, found))
}

fn create(state: &mut Region, key: &[u8], is_file: bool) -> Result<u64, Refusal> {
    let number = LAST.update(state, |last| last + 1);
    let data = if is_file { DATA.alloc(state, 0)? } else { BlobId::default() };
    set_inode(state, number, Inode { links: 1, is_file, data })?;
    ENTRIES.store(state, key, &number)?;
    Ok(number)
}

/// Takes the name `key` from an inode, which goes with its last one.
fn unlink(state: &mut Region, key: &[u8], number: u64) -> Result<(), Refusal> {
    let found = inode(state, number);
    if !found.is_file && ENTRIES.prefix(state, &number.to_be_bytes()).next().is_some() {
        return Err(Refusal::NotEmpty);
    }
    ENTRIES.remove(state, key);
    if found.links > 1 {
        return Ok(set_inode(state, number, Inode { links: found.links - 1, ..found })?);
    }
    if found.is_file {
        DATA.free(state, found.data);
    }
    INODES.remove(state, &number.to_be_bytes());
    Ok(())
}

/// The file `found`; a directory is refused.
fn file(state: &Region, found: Option<u64>) -> Result<(u64, Inode), Refusal> {
    let number = found.ok_or(Refusal::NotFound)?;
    let inode = inode(state, number);
    if inode.is_file { Ok((number, inode)) } else { Err(Refusal::IsADirectory) }
}

/// Executes an operation that changes something. Whoever calls it undoes what a refused one began.
fn change(state: &mut Region, op: &Op<'_>) -> Result<(), Refusal> {
    match *op {
        Op::MakeDirectory(path) => match locate(state, path, None)? {
            (_, Some(_)) => Err(Refusal::Exists),
            (key, None) => create(state, &key, false).map(|_| ()),
        },
        Op::Write(path, offset, data) => {
            let (key, found) = locate(state, path, None)?;
            let number = found.map_or_else(|| create(state, &key, true), Ok)?;
            let (_, inode) = file(state, Some(number))?;
            let end = offset.checked_add(data.len() as u64).ok_or(Refusal::NoSpace)?;
            if end > FILE_MAX {
                return Err(Refusal::NoSpace);
            }
            Ok(DATA.write(state, inode.data, offset, data)?)
        }
        Op::Truncate(path, len) => {
            let (_, inode) = file(state, locate(state, path, None)?.1)?;
            if len > FILE_MAX {
                return Err(Refusal::NoSpace);
            }
            Ok(DATA.resize(state, inode.data, len)?)
        }
        Op::Remove(path) => {
            let (key, found) = locate(state, path, None)?;
            unlink(state, &key, found.ok_or(Refusal::NotFound)?)
        }
        Op::Rename(from, to) => {
            let (old, found) = locate(state, from, None)?;
            let number = found.ok_or(Refusal::NotFound)?;
            let (new, replaced) = locate(state, to, Some(number))?;
            if replaced == Some(number) {
                return Ok(()); // Two names of one file: both stay, as POSIX has it.
            }
            if let Some(replaced) = replaced {
                match (inode(state, number).is_file, inode(state, replaced).is_file) {
                    (true, false) => return Err(Refusal::IsADirectory),
                    (false, true) => return Err(Refusal::NotADirectory),
                    _ => unlink(state, &new, replaced)?,
                }
            }
            ENTRIES.remove(state, &old);
            ENTRIES.store(state, &new, &number)?;
            Ok(())
        }
        Op::Link(from, to) => {
            let (number, inode) = file(state, locate(state, from, None)?.1)?;
            let (key, None) = locate(state, to, None)? else { return Err(Refusal::Exists) };
            ENTRIES.store(state, &key, &number)?;
            Ok(set_inode(state, number, Inode { links: inode.links + 1, ..inode })?)
        }
        Op::Read(..) | Op::List(_) => Err(Refusal::Malformed),
    }
}

/// Answers an operation that changes nothing.
fn look(state: &Region, op: &Op<'_>, reply: &mut ReplyBuffer) -> Result<(), Refusal> {
    match *op {
        Op::Read(path, offset, len) => {
            let (_, inode) = file(state, Some(walk(state, path, None)?))?;
            reply.push(&[0]);
            let len = u64::from(len).min(reply.remaining() as u64);
            DATA.chunks(state, inode.data, offset, len).for_each(|chunk| reply.push(chunk));
        }
        Op::List(path) => {
            let directory = walk(state, path, None)?;
            if inode(state, directory).is_file {
                return Err(Refusal::NotADirectory);
            }
            reply.push(&[0]);
            for (key, number) in ENTRIES.prefix(state, &directory.to_be_bytes()) {
                let inode = inode(state, number.decode());
                let size = if inode.is_file { DATA.blob_len(state, inode.data) } else { 0 };
                reply.push(&key[8..]);
                reply.push(if inode.is_file { b" " } else { b"/ " });
                reply.push(format!("{size} bytes, {} names\n", inode.links).as_bytes());
            }
        }
        _ => return Err(Refusal::Malformed),
    }
    Ok(())
}

/// The service.
struct FileTree;

impl Service for FileTree {
    fn genesis(&self, state: &mut Region) {
        let root = Inode { links: 1, is_file: false, data: BlobId::default() };
        set_inode(state, ROOT, root).expect("an empty region has room for the root directory");
        LAST.set(state, ROOT);
    }

    fn execute(&self, _cx: &mut Context<'_>, op: &[u8], state: &mut Region, reply: &mut ReplyBuffer) {
        let result = match Op::decode(op) {
            None => Err(Refusal::Malformed),
            Some(op @ (Op::Read(..) | Op::List(_))) => return answer(state, &op, reply),
            Some(op) => state.attempt(|state| change(state, &op)),
        };
        reply.push(&[result.err().map_or(0, |refusal| refusal as u8)]);
    }

    fn query(&self, _cx: &Context<'_>, op: &[u8], state: &Region, reply: &mut ReplyBuffer) -> Result<(), NotReadOnly> {
        match Op::decode(op) {
            Some(op @ (Op::Read(..) | Op::List(_))) => answer(state, &op, reply),
            _ => return Err(NotReadOnly),
        }
        Ok(())
    }
}

fn answer(state: &Region, op: &Op<'_>, reply: &mut ReplyBuffer) {
    if let Err(refusal) = look(state, op, reply) {
        reply.push(&[refusal as u8]);
    }
}

/// One copy of the service, without replicas around it.
struct Alone {
    state: State,
    executed: u64,
}

impl Alone {
    fn new(pages: u32) -> Alone {
        let mut state = State::new(1, pages);
        FileTree.genesis(&mut state.service);
        Alone { state, executed: 0 }
    }

    /// The status byte and what follows it.
    fn execute(&mut self, op: Op<'_>) -> (u8, Vec<u8>) {
        self.executed += 1;
        let (mut caches, mut reply) = (Caches::new(), ReplyBuffer::new());
        let position = Position::new(SeqNum(self.executed), 0);
        let mut cx = Context::for_test(Time(self.executed), ClientId(1), position, &mut caches);
        FileTree.execute(&mut cx, &op.encode(), &mut self.state.service, &mut reply);
        let (&status, rest) = reply.as_slice().split_first().expect("every result has a status");
        (status, rest.to_vec())
    }
}

fn main() {
    let mut tree = Alone::new(1_000);
    let script = [
        Op::MakeDirectory("/etc"),
        Op::MakeDirectory("/etc/castra"),
        Op::Write("/etc/motd", 0, b"f replicas may lie\n"),
        Op::Link("/etc/motd", "/etc/castra/motd"),
        Op::Rename("/etc/castra", "/castra"),
        Op::Write("/castra/motd", 19, b"and you would not notice\n"),
        Op::Rename("/castra", "/castra/inside"),
        Op::Remove("/etc"),
        Op::List("/"),
        Op::List("/castra"),
        Op::Read("/etc/motd", 0, 100),
    ];
    for op in script {
        let (status, rest) = tree.execute(op);
        println!("{op:?}: {status}");
        String::from_utf8_lossy(&rest).lines().for_each(|line| println!("    {line}"));
    }
    println!("{} pages, state {}", tree.state.service.pages(), tree.state.full_root());
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: u8 = 0;

    fn run(tree: &mut Alone, op: Op<'_>) -> u8 {
        tree.execute(op).0
    }

    #[test]
    fn a_file_lives_as_long_as_one_of_its_names() {
        let tree = &mut Alone::new(100);
        assert_eq!(run(tree, Op::Write("/a", 0, b"content")), OK);
        assert_eq!(run(tree, Op::Link("/a", "/b")), OK);
        assert_eq!(run(tree, Op::Remove("/a")), OK);
        assert_eq!(tree.execute(Op::Read("/b", 3, 100)), (OK, b"tent".to_vec()));
        assert_eq!(run(tree, Op::Remove("/b")), OK);
        assert_eq!(run(tree, Op::Read("/b", 0, 1)), Refusal::NotFound as u8);
        assert!(DATA.is_empty(&tree.state.service));
    }

    #[test]
    fn a_rename_moves_a_tree_but_not_into_itself() {
        let tree = &mut Alone::new(100);
        for op in [Op::MakeDirectory("/a"), Op::MakeDirectory("/a/b"), Op::Write("/a/b/c", 0, b"x")] {
            assert_eq!(run(tree, op), OK);
        }
        assert_eq!(run(tree, Op::Rename("/a", "/a/b/a")), Refusal::IntoItself as u8);
        assert_eq!(run(tree, Op::Rename("/a/b", "/b")), OK);
        assert_eq!(run(tree, Op::Read("/b/c", 0, 1)), OK);
        assert_eq!(run(tree, Op::Rename("/a", "/b")), Refusal::NotEmpty as u8);
        assert_eq!(run(tree, Op::Rename("/b", "/a")), OK);
        assert_eq!(tree.execute(Op::List("/")).1, b"a/ 0 bytes, 1 names\n");
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let tree = &mut Alone::new(12);
        assert_eq!(run(tree, Op::MakeDirectory("/d")), OK);
        let before = tree.state.full_root();
        let large = vec![7; 60_000];
        for (op, refusal) in [
            (Op::Write("/new", 0, &large), Refusal::NoSpace),
            (Op::Write("/new", u64::MAX, b"x"), Refusal::NoSpace),
            (Op::Write("/d", 0, b"x"), Refusal::IsADirectory),
            (Op::MakeDirectory("/d"), Refusal::Exists),
            (Op::Truncate("/none", 3), Refusal::NotFound),
            (Op::Remove("/"), Refusal::Malformed),
            (Op::Link("/d", "/e"), Refusal::IsADirectory),
        ] {
            assert_eq!(run(tree, op), refusal as u8, "{op:?}");
            assert_eq!(tree.state.full_root(), before, "{op:?}");
        }
    }

    #[test]
    fn p17_a_rolled_back_batch_leaves_the_tree_as_it_was() {
        let tree = &mut Alone::new(100);
        assert_eq!(run(tree, Op::Write("/a", 0, b"content")), OK);
        let before = tree.state.full_root();
        tree.state.begin_tentative();
        assert_eq!(run(tree, Op::Rename("/a", "/b")), OK);
        assert_eq!(run(tree, Op::Write("/a", 100_000, b"more")), OK);
        tree.state.rollback();
        assert_eq!(tree.state.full_root(), before);
    }

    #[test]
    fn any_bytes_are_an_operation_or_refused() {
        let tree = &mut Alone::new(100);
        let ops = [Op::Write("/a", 1, b"x").encode(), Op::Rename("/a", "/b").encode(), Op::Read("/b", 0, 9).encode()];
        let (mut caches, mut reply) = (Caches::new(), ReplyBuffer::new());
        for op in &ops {
            for cut in 0..op.len() {
                for flip in 0..=255 {
                    let mut bytes = op[..=cut].to_vec();
                    bytes[cut] ^= flip;
                    let mut cx = Context::for_test(Time(1), ClientId(1), Position::new(SeqNum(1), 0), &mut caches);
                    FileTree.execute(&mut cx, &bytes, &mut tree.state.service, &mut reply);
                    assert!(!reply.take().is_empty());
                }
            }
        }
    }
}
