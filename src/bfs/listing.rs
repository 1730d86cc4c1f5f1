//! READDIR and READDIRPLUS (RFC 1813, sections 3.3.16 and 3.3.17).

use super::attributes::{Attributes, Handle};
use super::content::TRANSFER_MAX;
use super::credentials::{Credentials, READ};
use super::directory;
use super::inode::{Inode, InodeId};
use super::request::Given;
use super::snapshots;
use super::status::Status;
use super::table;
use super::xdr::{Sink, padding};
use crate::state::{Pages, SnapshotId};

/// What one call asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listing {
    pub directory: Given,
    pub cookie: u64,
    pub verifier: [u8; 8],
    /// Bytes of names, numbers and cookies: READDIRPLUS alone has such a bound.
    pub names: Option<u32>,
    /// Bytes of the whole answer.
    pub count: u32,
}

/// post_op_attr with attributes, verifier, the end of the list and eof.
const FRAME: u64 = 4 + 84 + 8 + 4 + 4;
/// Whether an entry follows, fileid, length of the name, cookie.
const ENTRY: u64 = 4 + 8 + 4 + 8;
/// post_op_attr and post_op_fh3 with everything in them.
const PLUS: u64 = 4 + 84 + 4 + 4 + 16;

/// READDIR and READDIRPLUS, but for their status: the directory, with whose attributes the results begin, and what
/// follows those.
pub(super) fn list<P: Pages>(region: &P, cred: &Credentials, listing: &Listing) -> Result<Vec<u8>, Status> {
    let (id, inode) = directory::view(region, listing.directory)?;
    cred.check(&inode, READ)?;
    let verifier = table::handle(region, id, &inode).cookie_verifier();
    if listing.cookie != 0 && listing.verifier != verifier {
        return Err(Status::BadCookie);
    }
    let mut sink = Vec::new();
    sink.put(&verifier);
    // A snapshot's root is a root of its own, so nothing in it leads out of it.
    let dots = [(1, id, b".".to_vec()), (2, inode.parent, b"..".to_vec())].into_iter();
    let dots =
        dots.filter(|&(cookie, ..)| cookie > listing.cookie).map(|(cookie, id, name)| (cookie, Entry::Inode(id), name));
    if id == InodeId::SNAPSHOTS {
        let snapshots = snapshots::list(region.now()).into_iter();
        let snapshots = snapshots.map(|kept| (kept.cookie(), Entry::Snapshot(kept.id), kept.name));
        encode(region, listing, dots.chain(snapshots.filter(|&(cookie, ..)| cookie > listing.cookie)), &mut sink)?;
    } else {
        let names =
            directory::list(region, id, listing.cookie).map(|(cookie, id, name)| (cookie, Entry::Inode(id), name));
        encode(region, listing, dots.chain(names), &mut sink)?;
    }
    Ok(sink)
}

/// What a name leads to.
#[derive(Clone, Copy)]
enum Entry {
    Inode(InodeId),
    Snapshot(SnapshotId),
}

impl Entry {
    fn describe<P: Pages>(self, region: &P) -> (Handle, Attributes) {
        match self {
            Entry::Inode(InodeId::SNAPSHOTS) => {
                (Handle::Snapshots, Attributes::of(Handle::Snapshots, &snapshots::directory(region.now())))
            }
            Entry::Inode(id) => {
                let found = table::load(region, id);
                let handle = table::handle(region, id, &found);
                (handle, Attributes::of(handle, &found))
            }
            Entry::Snapshot(id) => snapshots::root(region.now(), id),
        }
    }

    fn fileid<P: Pages>(self, region: &P) -> u64 {
        match self {
            // The generation is not in it.
            Entry::Inode(id) => table::handle(region, id, &Inode::default()).fileid(),
            Entry::Snapshot(snapshot) => Handle::Then { snapshot, inode: InodeId::ROOT }.fileid(),
        }
    }
}

/// Writes entries and eof. [`Status::TooSmall`] if there is no room for even one.
fn encode<P: Pages>(
    region: &P,
    listing: &Listing,
    entries: impl Iterator<Item = (u64, Entry, Vec<u8>)>,
    sink: &mut Vec<u8>,
) -> Result<(), Status> {
    let plus = listing.names.is_some();
    let mut room = Room::of(listing);
    let (mut any, mut eof) = (false, true);
    for (cookie, entry, name) in entries {
        if !room.takes(name.len(), plus) {
            if !any {
                return Err(Status::TooSmall);
            }
            eof = false;
            break;
        }
        any = true;
        sink.put_bool(true);
        sink.put_u64(entry.fileid(region));
        sink.put_opaque(&name);
        sink.put_u64(cookie);
        if plus {
            let (handle, attributes) = entry.describe(region);
            sink.put_optional(Some(attributes), |sink, attributes| attributes.encode(sink));
            sink.put_optional(Some(handle), |sink, handle| handle.encode(sink));
        }
    }
    sink.put_bool(false);
    sink.put_bool(eof);
    Ok(())
}

/// What is left of the bounds of an answer.
struct Room {
    names: u64,
    count: u64,
}

impl Room {
    fn of(listing: &Listing) -> Room {
        let count = u64::from(listing.count.min(TRANSFER_MAX)).saturating_sub(FRAME);
        Room { names: listing.names.map_or(u64::MAX, u64::from), count }
    }

    /// Takes the room of an entry, if it is there.
    fn takes(&mut self, name: usize, plus: bool) -> bool {
        let names = ENTRY + (name + padding(name)) as u64;
        let count = names + if plus { PLUS } else { 0 };
        let fits = names <= self.names && count <= self.count;
        if fits {
            self.names -= names;
            self.count -= count;
        }
        fits
    }
}
