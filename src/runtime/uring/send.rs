//! Sends: no copy of large bodies, no completion for success.
//!
//! A send carries MSG_DONTWAIT, so that it ends inside the submit that takes it, well or with a completion: the kernel
//! never holds on to its memory (without DONTWAIT it would park the send until the socket is writable).
//!
//! Several datagrams of one size to one receiver, the last perhaps shorter, are one send, which `UDP_SEGMENT` cuts apart
//! below the socket: the fragments of a large message where datagrams are small.

use std::mem;

use io_uring::types::Fixed;
use io_uring::{IoUring, opcode, squeue};

use super::{Operation, push};
use crate::limits::DATAGRAM_MAX;
use crate::runtime::bind::AddressBook;
use crate::runtime::sys::RawAddress;
use crate::transport::{Outgoing, Peer};

/// Datagrams per submit.
const CHUNK: usize = 128;

const _: () = assert!(CHUNK < super::refusal::SUBMISSIONS as usize, "a chunk and what is to be armed fit the queue");

/// Up to here head and body are copied together: cheaper than a msghdr and its vectors for the kernel to import.
const COPY_MAX: usize = 512;

/// Datagrams of one send: `UDP_MAX_SEGMENTS` of older kernels.
const SEGMENTS_MAX: usize = 64;

/// How one datagram goes out.
#[derive(Clone, Copy)]
enum Form {
    /// From `Place::copied`, this many bytes.
    Copied(usize),
    /// Head and body from where they lie.
    Gathered,
    /// Head and body of this one and of those that follow it by `Place::next`, cut apart at so many bytes.
    Segmented(u16),
    /// With an earlier one.
    Follows,
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
    /// Which datagram leaves behind this one in the same send.
    next: Option<usize>,
    control: Control,
    copied: [u8; COPY_MAX],
}

/// The control message that says where to cut.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    segment: u16,
    padding: [u8; 6],
}

/// Datagrams that can leave together.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    last: usize,
    segment: usize,
    bytes: usize,
    count: usize,
}

impl Run {
    /// Whether a datagram of `len` bytes can be cut off behind the others.
    fn takes(&self, len: usize) -> bool {
        // One that is shorter than the first is the last.
        let whole = self.bytes == self.segment * self.count;
        whole && len <= self.segment && self.count < SEGMENTS_MAX && self.bytes + len <= DATAGRAM_MAX
    }
}

/// Places for a chunk, at addresses that do not change.
pub(super) struct Sender {
    places: Box<[Place]>,
    vectors: Box<[libc::iovec]>,
    /// The last run to each registered file; of file 0 it is to whom the datagram just before was for.
    runs: Vec<Option<Run>>,
    /// The kernel cuts.
    segments: bool,
}

/// What became of a chunk.
pub(super) struct Queued {
    /// Datagrams dealt with, from the first.
    pub(super) taken: usize,
    /// Of them, those queued.
    pub(super) queued: usize,
    /// Of them, those that cannot be sent.
    pub(super) refused: usize,
    /// Of those queued, those that leave with others in one send.
    pub(super) segmented: usize,
}

impl Sender {
    pub(super) fn new() -> Sender {
        let place = || Place {
            form: Form::Refused,
            file: 0,
            to: RawAddress::EMPTY,
            // SAFETY: all-zero is a valid value of this C struct.
            header: unsafe { mem::zeroed() },
            next: None,
            control: Control {
                // SAFETY: all-zero is a valid value of this C struct.
                header: unsafe { mem::zeroed() },
                segment: 0,
                padding: [0; 6],
            },
            copied: [0; COPY_MAX],
        };
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Sender {
            places: (0..CHUNK).map(|_| place()).collect(),
            vectors: vec![nothing; 2 * CHUNK].into(),
            runs: Vec::new(),
            segments: true,
        }
    }

    /// The kernel, or the device below it, does not cut: every datagram leaves by itself from now on.
    pub(super) fn without_segments(&mut self) {
        self.segments = false;
    }

    /// Puts datagram `i` of `batch` behind an earlier one to the same receiver, if it can be cut off there.
    fn join(&mut self, i: usize, batch: &[Outgoing], mtu: usize) {
        let (out, file) = (&batch[i], self.places[i].file as usize);
        if self.runs.len() <= file {
            self.runs.resize(file + 1, None);
        }
        let run = &mut self.runs[file];
        if let Some(run) = run
            && run.takes(out.len())
            && batch[run.last].to == out.to
        {
            self.places[run.last].next = Some(i);
            self.places[run.first].form = Form::Segmented(run.segment as u16);
            self.places[i].form = Form::Follows;
            (run.last, run.bytes, run.count) = (i, run.bytes + out.len(), run.count + 1);
        } else {
            // What does not fit into one packet cannot be a segment.
            let (first, last, segment, bytes) = (i, i, out.len(), out.len());
            *run = (out.len() <= mtu).then_some(Run { first, last, segment, bytes, count: 1 });
        }
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
        self.runs.fill(None);
        for (i, out) in batch.iter().enumerate() {
            let place = &mut self.places[i];
            place.next = None;
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
            if self.segments && !matches!(place.form, Form::Refused) {
                self.join(i, batch, book.mtu(out.to));
            }
        }
        let mut queued = Queued { taken: batch.len(), queued: 0, refused: 0, segmented: 0 };
        let (places, vectors) = (self.places.as_mut_ptr(), self.vectors.as_mut_ptr());
        let mut vectors_used = 0;
        for (i, out) in batch.iter().enumerate() {
            // SAFETY: `i` is below CHUNK. All pointers into places derive from `places`, and no reference to one is made
            // again before the queue is empty (the caller's promise: `self` stays unchanged).
            let place = unsafe { &mut *places.add(i) };
            let to = place.to.as_slice();
            let mut datagrams = 1;
            let entry = match place.form {
                Form::Follows => continue,
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
                Form::Gathered | Form::Segmented(_) => {
                    let part =
                        |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
                    // SAFETY: within the vectors: fewer than 2 x CHUNK are used, for this datagram's are not yet.
                    place.header.msg_iov = unsafe { vectors.add(vectors_used) };
                    let mut add = |out: &Outgoing| {
                        assert!(vectors_used + 2 <= 2 * CHUNK, "each datagram of a chunk is in one send");
                        // SAFETY: both lie within the 2 x CHUNK vectors, by the assertion; no reference to any is made
                        // before the queue is empty.
                        unsafe {
                            vectors.add(vectors_used).write(part(out.head.as_slice()));
                            vectors.add(vectors_used + 1).write(part(&out.body));
                        }
                        vectors_used += 2;
                    };
                    add(out);
                    let mut next = place.next;
                    while let Some(i) = next {
                        add(&batch[i]);
                        datagrams += 1;
                        // SAFETY: `i` is below CHUNK, and another place than the one that is borrowed: links only go
                        // forward.
                        next = unsafe { (*places.add(i)).next };
                    }
                    place.header.msg_iovlen = 2 * datagrams;
                    (place.header.msg_control, place.header.msg_controllen) = match place.form {
                        Form::Segmented(segment) => {
                            place.control.header.cmsg_level = libc::SOL_UDP;
                            place.control.header.cmsg_type = libc::UDP_SEGMENT;
                            place.control.header.cmsg_len = mem::offset_of!(Control, padding) as _;
                            place.control.segment = segment;
                            ((&raw mut place.control).cast(), mem::size_of::<Control>() as _)
                        }
                        _ => (std::ptr::null_mut(), 0),
                    };
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
            queued.queued += datagrams;
            queued.segmented += if datagrams > 1 { datagrams } else { 0 };
        }
        queued
    }

    /// Gives up the places for good: for when the kernel may still read them.
    pub(super) fn leak(self) {
        mem::forget(self);
    }
}
