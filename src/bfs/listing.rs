//! READDIR and READDIRPLUS (RFC 1813, sections 3.3.16 and 3.3.17).

use super::attributes::Attributes;
use super::content::TRANSFER_MAX;
use super::credentials::{Credentials, READ};
use super::directory;
use super::inode::{Inode, InodeId};
use super::request::Given;
use super::status::Status;
use super::table;
use super::xdr::{Sink, padding};
use crate::state::Pages;

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

/// Finds the directory, and checks what was given.
pub(super) fn open<P: Pages>(region: &P, cred: &Credentials, listing: &Listing) -> Result<(InodeId, Inode), Status> {
    let (id, inode) = directory::find(region, listing.directory)?;
    cred.check(&inode, READ)?;
    if listing.cookie != 0 && listing.verifier != table::handle(id, &inode).cookie_verifier() {
        return Err(Status::BadCookie);
    }
    let first = entries(region, id, &inode, listing.cookie).next();
    if first.is_some_and(|(_, _, name)| !Room::of(listing).takes(name.len(), listing.names.is_some())) {
        return Err(Status::TooSmall);
    }
    Ok((id, inode))
}

/// Writes verifier, entries and eof.
pub(super) fn encode<P: Pages>(region: &P, (id, inode): (InodeId, &Inode), listing: &Listing, sink: &mut impl Sink) {
    sink.put(&table::handle(id, inode).cookie_verifier());
    let plus = listing.names.is_some();
    let mut room = Room::of(listing);
    let mut eof = true;
    for (cookie, entry, name) in entries(region, id, inode, listing.cookie) {
        if !room.takes(name.len(), plus) {
            eof = false;
            break;
        }
        sink.put_bool(true);
        sink.put_u64(entry.0.into());
        sink.put_opaque(&name);
        sink.put_u64(cookie);
        if plus {
            let found = table::load(region, entry);
            sink.put_optional(Some(&found), |sink, found| Attributes::of(entry, found).encode(sink));
            sink.put_optional(Some(table::handle(entry, &found)), |sink, handle| handle.encode(sink));
        }
    }
    sink.put_bool(false);
    sink.put_bool(eof);
}

/// All entries after `cookie`, `.` and `..` first.
fn entries<'a, P: Pages>(
    region: &'a P,
    id: InodeId,
    inode: &Inode,
    cookie: u64,
) -> impl Iterator<Item = (u64, InodeId, Vec<u8>)> + 'a {
    let dots = [(1, id, b".".to_vec()), (2, inode.parent, b"..".to_vec())];
    let dots = dots.into_iter().filter(move |&(number, ..)| number > cookie);
    dots.chain(directory::list(region, id, cookie))
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
