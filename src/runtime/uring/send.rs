//! Sends: no copy of large bodies, no completion for success.
//!
//! A send carries MSG_DONTWAIT, so that it ends inside the submit that takes it, well or with a completion: the kernel
//! never holds on to its memory (without DONTWAIT it would park the send until the socket is writable).

use std::mem;

use io_uring::types::Fixed;
use io_uring::{IoUring, opcode, squeue};

use super::{Operation, push};
use crate::runtime::bind::AddressBook;
use crate::runtime::sys::RawAddress;
use crate::transport::{Outgoing, Peer};

/// Datagrams per submit.
const CHUNK: usize = 128;

const _: () = assert!(CHUNK < super::refusal::SUBMISSIONS as usize, "a chunk and what is to be armed fit the queue");

/// Up to here head and body are copied together: cheaper than a msghdr and its vectors for the kernel to import.
const COPY_MAX: usize = 512;

/// How one datagram goes out.
#[derive(Clone, Copy)]
enum Form {
    /// From `Place::copied`, this many bytes.
    Copied(usize),
    /// Head and body from where they lie.
    Gathered,
    /// Not at all: no such peer, or too long.
    Refused,
}

/// What the kernel reads about one datagram while it submits.
struct Place {
    form: Form,
    /// The registered file of the receiver's connected socket, or 0 with `to`.
    file: u32,
    to: RawAddress,
    header: libc::msghdr,
    vectors: [libc::iovec; 2],
    copied: [u8; COPY_MAX],
}

/// Places for a chunk, at addresses that do not change.
pub(super) struct Sender {
    places: Box<[Place]>,
}

/// What became of a chunk.
pub(super) struct Queued {
    /// Datagrams dealt with, from the first.
    pub(super) taken: usize,
    /// Of them, those queued.
    pub(super) queued: usize,
    /// Of them, those that cannot be sent.
    pub(super) refused: usize,
}

impl Sender {
    pub(super) fn new() -> Sender {
        let place = || Place {
            form: Form::Refused,
            file: 0,
            to: RawAddress::EMPTY,
            // SAFETY: all-zero is a valid value of this C struct.
            header: unsafe { mem::zeroed() },
            vectors: [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2],
            copied: [0; COPY_MAX],
        };
        Sender { places: (0..CHUNK).map(|_| place()).collect() }
    }

    /// Queues the first of `batch`. `file` names a replica's connected socket; everyone else is sent to by address from
    /// socket 0.
    ///
    /// # Safety
    /// `self` and `batch` must stay alive and unchanged until the submission queue is empty.
    pub(super) unsafe fn queue(
        &mut self,
        ring: &mut IoUring,
        batch: &[Outgoing],
        datagram_max: usize,
        book: &AddressBook,
        file: impl Fn(Peer) -> Option<u32>,
    ) -> Queued {
        let batch = &batch[..batch.len().min(CHUNK)];
        for (out, place) in batch.iter().zip(&mut self.places) {
            let head = out.head.as_slice();
            (place.file, place.to, place.form) = match (file(out.to), book.address(out.to)) {
                (Some(file), _) => (file, RawAddress::EMPTY, Form::Gathered),
                (None, Some(to)) => (0, to, Form::Gathered),
                (None, None) => (0, RawAddress::EMPTY, Form::Refused),
            };
            if out.len() > datagram_max {
                place.form = Form::Refused;
            } else if out.len() <= COPY_MAX && matches!(place.form, Form::Gathered) {
                place.copied[..head.len()].copy_from_slice(head);
                place.copied[head.len()..out.len()].copy_from_slice(&out.body);
                place.form = Form::Copied(out.len());
            }
        }
        let mut queued = Queued { taken: batch.len(), queued: 0, refused: 0 };
        let places = self.places.as_mut_ptr();
        for (i, out) in batch.iter().enumerate() {
            // SAFETY: `i` is below CHUNK. All pointers into places derive from `places`, and no reference to one is made
            // again before the queue is empty (the caller's promise: `self` stays unchanged).
            let place = unsafe { &mut *places.add(i) };
            let to = place.to.as_slice();
            let entry = match place.form {
                Form::Refused => {
                    queued.refused += 1;
                    continue;
                }
                Form::Copied(len) => {
                    let send = opcode::Send::new(Fixed(place.file), place.copied.as_ptr(), len as u32);
                    let send = send.flags(libc::MSG_DONTWAIT);
                    let addressed = if to.is_empty() {
                        send
                    } else {
                        send.dest_addr(to.as_ptr().cast()).dest_addr_len(to.len() as u32)
                    };
                    addressed.build()
                }
                Form::Gathered => {
                    let part =
                        |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
                    place.vectors = [part(out.head.as_slice()), part(&out.body)];
                    place.header.msg_iov = place.vectors.as_mut_ptr();
                    place.header.msg_iovlen = place.vectors.len();
                    let name = if to.is_empty() { std::ptr::null() } else { to.as_ptr() };
                    place.header.msg_name = name.cast_mut().cast();
                    place.header.msg_namelen = to.len() as u32;
                    opcode::SendMsg::new(Fixed(place.file), &raw const place.header)
                        .flags(libc::MSG_DONTWAIT as u32)
                        .build()
                }
            };
            let entry = entry.user_data(Operation::Send.encode()).flags(squeue::Flags::SKIP_SUCCESS);
            // SAFETY: the entry refers to `self.places` and `batch`, which the caller keeps until the queue is empty; a
            // send that was submitted has ended (MSG_DONTWAIT; the module's comment).
            if !unsafe { push(ring, &entry) } {
                queued.taken = i;
                break;
            }
            queued.queued += 1;
        }
        queued
    }

    /// Gives up the places for good: for when the kernel may still read them.
    pub(super) fn leak(self) {
        mem::forget(self);
    }
}
