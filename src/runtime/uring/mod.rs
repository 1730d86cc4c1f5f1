//! io_uring UDP: one ring per thread, multishot receives into provided slots, sends without completions.
//!
//! One *connected* socket per peer replica and one unconnected for everyone else share the local address: a connected
//! socket takes what its peer sends, and costs a send and a receive less each. Replicas and others have slots of their own,
//! so that clients run out first.
//!
//! Where datagrams are small the kernel may hand up many of one sender in one receive (`UDP_GRO`): what left in one send, or
//! came off the wire together. Each is a part of the slot that they came in. Slots are larger then, and fewer.

mod refusal;
mod send;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fixed, RecvMsgOut, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::Socket;

use self::send::Sender;
use self::slots::SlotRing;
use super::bind::{AddressBook, Bound, Part, grow_receive_buffer, new_socket};
use super::error::Refusal;
use super::sys::{self, RawAddress};
use super::waker::EventWaker;
use super::{Clock, Counters, Error};
use crate::transport::{Datagram, Outgoing, Peer, Transport, Wake, Woken};
use crate::types::{ReplicaId, Time};

/// Datagrams per [`Transport::receive`].
const RECEIVE_MAX: usize = 256;

/// Bytes of strangers' datagrams per receive, but for the last of them. What replicas say comes first: agreement on what
/// is here must not wait for all that clients have sent since.
const OTHERS_BYTES_MAX: usize = 256 << 10;

/// Submits before the kernel is taken to refuse them. It takes less than all only when it is out of memory.
const DRAIN_TRIES: usize = 1_000;

/// How often the kernel's count of drops is read.
const DROPS_EVERY: Duration = Duration::from_secs(1);

/// `sizeof(struct io_uring_recvmsg_out)`: what multishot recvmsg puts before the sender's name and the payload.
const RECVMSG_OUT: usize = 16;

/// Datagrams up to this size are received together where the kernel does that. Larger ones are few, and a slot for many
/// of them would be mostly empty.
const COALESCED_MAX: usize = 4_096;

/// What can be received at once: no packet is longer.
const COALESCED_BYTES: usize = 65_535;

/// Slots of a ring if each holds that much, at most: 16 MiB. There are half as many as else; four replicas have 64.
const COALESCED_SLOTS_MAX: u16 = 256;

/// What the slots of a ring hold at most, bytes, if datagrams are received one by one: where these are large, 32 slots
/// were as fast as 128, and the memory of all that were ever filled stays. But a peer has four.
const SLOT_BYTES: usize = 2 << 20;

/// Slots of a ring at least.
const SLOTS_LEAST: u16 = 16;

const GROUP_REPLICAS: u16 = 0;
const GROUP_OTHERS: u16 = 1;

/// What an operation was for; its `user_data`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    /// Multishot receive on socket `i`.
    Receive(usize),
    /// Multishot poll of the waker's event.
    Event,
    /// A send. It completes only if it failed.
    Send,
    /// Not ours to see: cancellation.
    Other,
}

impl Operation {
    const EVENT: u64 = 1 << 32;
    const SEND: u64 = 2 << 32;

    fn encode(self) -> u64 {
        match self {
            Operation::Receive(i) => i as u64,
            Operation::Event => Self::EVENT,
            Operation::Send => Self::SEND,
            Operation::Other => u64::MAX,
        }
    }

    fn decode(data: u64) -> Operation {
        match data {
            Self::EVENT => Operation::Event,
            Self::SEND => Operation::Send,
            i if i < Self::EVENT => Operation::Receive(i as usize),
            _ => Operation::Other,
        }
    }
}

/// A received datagram that was not handed up yet.
struct Arrival {
    socket: usize,
    slot: u16,
    len: usize,
}

/// The io_uring transport. It stays on the thread that opened it.
pub struct Uring {
    ring: IoUring,
    // Socket 0 is unconnected; `peers[i - 1]` is who socket i is connected to. Registered files by the same index, the
    // waker's event after them.
    sockets: Vec<Socket>,
    peers: Vec<ReplicaId>,
    by_replica: Vec<Option<u32>>,
    replicas: Option<SlotRing>,
    others: Option<SlotRing>,
    name: Box<libc::msghdr>,
    /// Of connected sockets, if datagrams come together: then the kernel says how long each is.
    size: Option<Box<libc::msghdr>>,
    sender: Sender,
    /// Of connected sockets, and of the other.
    from_replicas: VecDeque<Arrival>,
    from_others: VecDeque<Arrival>,
    disarmed: Vec<Operation>,
    armed: usize,
    event_seen: bool,
    drops_read: Time,
    datagram_max: usize,
    local: SocketAddr,
    book: AddressBook,
    clock: Clock,
    waker: Arc<EventWaker>,
    counters: Arc<Counters>,
    _not_send: PhantomData<*const ()>,
}

impl Uring {
    /// The name that reports give this transport.
    pub const NAME: &'static str = "io_uring";

    /// Makes a transport of a bound address, for the calling thread. If there is no io_uring, the address comes back, for
    /// [`Sockets`](super::sockets::Sockets).
    #[allow(clippy::result_large_err)]
    pub fn open(bound: Bound) -> Result<Uring, (Bound, Error)> {
        match refusal::ring() {
            Ok(ring) => Uring::with(ring, bound),
            Err(error) => Err((bound, error)),
        }
    }

    #[allow(clippy::result_large_err)]
    fn with(ring: IoUring, bound: Bound) -> Result<Uring, (Bound, Error)> {
        let (connected, peers): (Vec<Socket>, Vec<ReplicaId>) = connected_sockets(&bound).into_iter().unzip();
        let mut by_replica = vec![None; bound.config.replicas.len()];
        for (peer, file) in peers.iter().zip(1..) {
            by_replica[usize::from(peer.0)] = Some(file);
        }
        let mut files: Vec<RawFd> = vec![bound.socket.as_raw_fd()];
        files.extend(connected.iter().map(AsRawFd::as_raw_fd));
        files.push(bound.waker.fd().as_raw_fd());
        if let Err(error) = ring.submitter().register_files(&files) {
            let errno = error.raw_os_error().unwrap_or(0);
            return Err((bound, Refusal::Other { doing: "registering files", errno }.into()));
        }
        let coalesce = bound.config.datagram_max <= COALESCED_MAX && coalesce(&connected, &bound.socket);
        let (payload, control, slots) = match (coalesce, bound.config.slots) {
            (true, (replicas, others)) => {
                let fewer = |slots: u16| (slots / 2).clamp(SLOTS_LEAST, COALESCED_SLOTS_MAX);
                (COALESCED_BYTES, sys::SEGMENT_CONTROL, (fewer(replicas), fewer(others)))
            }
            (false, (replicas, others)) => {
                let payload = bound.config.datagram_max + 1;
                (payload, 0, (uncoalesced_slots(replicas, payload), uncoalesced_slots(others, payload)))
            }
        };
        let each = RECVMSG_OUT + RawAddress::MAX + control + payload;
        let replicas = SlotRing::new(GROUP_REPLICAS, slots.0, each);
        let others = SlotRing::new(GROUP_OTHERS, slots.1, each);
        // SAFETY: both rings live in the transport, whose drop waits for every armed receive to end and unregisters the
        // groups before it frees them, or leaks them; on the error path nothing was armed, and `ring` goes first.
        let registered =
            unsafe { replicas.register(&ring.submitter()).and_then(|()| others.register(&ring.submitter())) };
        if let Err(refusal) = registered {
            drop(ring);
            // Plain sockets take one datagram at a time.
            let _ = sys::coalesce(bound.socket.as_fd(), false);
            return Err((bound, refusal.into()));
        }
        // SAFETY: all-zero is a valid msghdr; multishot recvmsg takes only the lengths of name and control from it.
        let mut name: Box<libc::msghdr> = Box::new(unsafe { mem::zeroed() });
        name.msg_namelen = RawAddress::MAX as u32;
        name.msg_controllen = control as _;
        let size = coalesce.then(|| {
            let mut size = Box::new(*name);
            size.msg_namelen = 0;
            size
        });
        let mut disarmed: Vec<Operation> = (0..=connected.len()).map(Operation::Receive).collect();
        disarmed.push(Operation::Event);
        let mut sockets = vec![bound.socket];
        sockets.extend(connected);
        let mut uring = Uring {
            ring,
            sockets,
            peers,
            by_replica,
            replicas: Some(replicas),
            others: Some(others),
            name,
            size,
            sender: Sender::new(),
            from_replicas: VecDeque::new(),
            from_others: VecDeque::new(),
            disarmed,
            armed: 0,
            event_seen: false,
            drops_read: Time(0),
            datagram_max: bound.config.datagram_max,
            local: bound.local,
            book: bound.book,
            clock: bound.config.clock,
            waker: bound.waker,
            counters: bound.counters,
            _not_send: PhantomData,
        };
        uring.arm();
        uring.enter();
        Ok(uring)
    }

    /// The address that others send to.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// What this transport counts.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn slots(&mut self, socket: usize) -> &mut SlotRing {
        let ring = if socket == 0 { &mut self.others } else { &mut self.replicas };
        ring.as_mut().expect("the slot rings are gone only after drop")
    }

    /// Arms everything that ended (or was never armed).
    fn arm(&mut self) {
        while let Some(operation) = self.disarmed.pop() {
            let entry = match operation {
                Operation::Receive(0) => {
                    let group = self.slots(0).group();
                    opcode::RecvMsgMulti::new(Fixed(0), &raw const *self.name, group).build()
                }
                Operation::Receive(i) => {
                    let group = self.slots(i).group();
                    match &self.size {
                        Some(size) => opcode::RecvMsgMulti::new(Fixed(i as u32), &raw const **size, group).build(),
                        None => opcode::RecvMulti::new(Fixed(i as u32), group).build(),
                    }
                }
                Operation::Event => {
                    let event = Fixed(self.sockets.len() as u32);
                    opcode::PollAdd::new(event, libc::POLLIN as u32).multi(true).build()
                }
                Operation::Send | Operation::Other => continue,
            };
            // SAFETY: the operations refer to registered files, registered groups and the boxed msghdr, which all live
            // until the drop of the transport has seen the end of every armed operation.
            if unsafe { push(&mut self.ring, &entry.user_data(operation.encode())) } {
                self.armed += 1;
            } else {
                self.disarmed.push(operation);
                return;
            }
        }
    }

    /// Submits what is queued, runs deferred work, and takes the completions.
    fn enter(&mut self) {
        // Errors (interrupted, completions to be taken first) leave the queue as it is: the next enter tries again.
        self.counters.system_calls.add(1);
        let _ = self.ring.submit();
        self.reap();
    }

    /// Submits until the kernel has taken everything queued; false if it does not.
    fn drain(&mut self) -> bool {
        for _ in 0..DRAIN_TRIES {
            self.enter();
            if self.ring.submission().is_empty() {
                return true;
            }
        }
        false
    }

    /// Takes what has completed. Nothing is seen twice; slots named by completions are taken from here on.
    fn reap(&mut self) {
        let mut completion = self.ring.completion();
        completion.sync();
        for entry in completion {
            let (result, flags) = (entry.result(), entry.flags());
            let operation = Operation::decode(entry.user_data());
            match operation {
                Operation::Receive(socket) => {
                    let ring = if socket == 0 { &mut self.others } else { &mut self.replicas };
                    if let Some(slot) = cqueue::buffer_select(flags) {
                        let taken = ring.as_mut().is_some_and(|ring| ring.take(slot));
                        assert!(taken, "the kernel names only slots that it was lent");
                        let arrivals = if socket == 0 { &mut self.from_others } else { &mut self.from_replicas };
                        arrivals.push_back(Arrival { socket, slot, len: usize::try_from(result).unwrap_or(0) });
                    } else if result == -libc::ENOBUFS {
                        self.counters.slots_out.add(1);
                        ring.iter_mut().for_each(SlotRing::ran_out);
                    }
                }
                Operation::Event => self.event_seen = true,
                Operation::Send => match -result {
                    libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => self.counters.send_full.add(1),
                    libc::ECONNREFUSED => self.counters.send_refused.add(1),
                    error => {
                        self.counters.send_failed.add(1);
                        // What was to be cut and could not be: a path that became narrower, a device without checksums.
                        if matches!(error, libc::EINVAL | libc::EIO | libc::EMSGSIZE) {
                            self.sender.without_segments();
                        }
                    }
                },
                Operation::Other => {}
            }
            let multishot = matches!(operation, Operation::Receive(_) | Operation::Event);
            if multishot && !cqueue::more(flags) {
                self.armed -= 1;
                self.disarmed.push(operation);
                self.counters.rearmed.add(1);
            }
        }
    }

    /// Who sent an arrival's datagrams, where they lie in its slot, and how long each is (the last may be shorter). If they
    /// are no datagrams that may be here, how many.
    fn locate(&self, arrival: &Arrival) -> Result<(Peer, Range<usize>, usize), u64> {
        let (ring, header) = match (arrival.socket, &self.size) {
            (0, _) => (&self.others, &self.name),
            (_, Some(size)) => (&self.replicas, size),
            (i, None) => {
                let fits = arrival.len <= self.datagram_max;
                return fits.then(|| (Peer::Replica(self.peers[i - 1]), 0..arrival.len, arrival.len)).ok_or(1);
            }
        };
        let bytes = ring.as_ref().ok_or(1u64)?.peek(arrival.slot, arrival.len);
        let out = RecvMsgOut::parse(bytes, header).map_err(|()| 1u64)?;
        let peer = match arrival.socket {
            0 => self.book.peer(RawAddress::parse(out.name_data()).ok_or(1u64)?),
            i => Peer::Replica(self.peers[i - 1]),
        };
        let payload = out.payload_data();
        let range = bytes.len() - payload.len()..bytes.len();
        let segment = sys::segment_size(out.control_data()).map_or(payload.len(), |size| size.min(payload.len()));
        match segment <= self.datagram_max {
            true => Ok((peer, range, segment)),
            false => Err(range.len().div_ceil(segment) as u64),
        }
    }

    fn sample_drops(&mut self, now: Time) {
        if now.since(self.drops_read) >= DROPS_EVERY {
            self.drops_read = now;
            self.counters.system_calls.add(self.sockets.len() as u64);
            let drops = self.sockets.iter().filter_map(|s| sys::kernel_drops(s.as_fd()).ok()).sum();
            self.counters.kernel_drops.set(drops);
        }
    }

    /// Slots in use: of replicas, of others.
    #[cfg(test)]
    fn slots_out(&mut self) -> (usize, usize) {
        self.reclaim();
        (self.slots(1).out(), self.slots(0).out())
    }

    fn has_arrivals(&self) -> bool {
        !self.from_replicas.is_empty() || !self.from_others.is_empty()
    }

    fn reclaim(&mut self) {
        for ring in [&mut self.replicas, &mut self.others].into_iter().flatten() {
            ring.reclaim();
        }
    }
}

/// Queues an operation; false if the queue is full.
///
/// # Safety
/// What the entry refers to must live until the operation has ended.
unsafe fn push(ring: &mut IoUring, entry: &squeue::Entry) -> bool {
    // SAFETY: the caller's.
    unsafe { ring.submission().push(entry) }.is_ok()
}

/// How many of `slots`, a power of two, a ring has for datagrams of up to `payload` bytes each.
fn uncoalesced_slots(slots: u16, payload: usize) -> u16 {
    let fit = 1 << (SLOT_BYTES / payload).clamp(1, 1 << 15).ilog2();
    slots.min(fit).max(slots / 8).max(SLOTS_LEAST)
}

/// Lets all sockets receive datagrams together, or none of them.
fn coalesce(connected: &[Socket], first: &Socket) -> bool {
    let sockets = || connected.iter().chain([first]);
    let granted = sockets().all(|socket| sys::coalesce(socket.as_fd(), true).is_ok());
    if !granted {
        for socket in sockets() {
            let _ = sys::coalesce(socket.as_fd(), false);
        }
    }
    granted
}

/// A socket on the bound address for each peer replica, connected to it. A peer that cannot be connected to now (no route)
/// is served by the unconnected socket.
fn connected_sockets(bound: &Bound) -> Vec<(Socket, ReplicaId)> {
    // The first socket had the address for itself. It shares it for as long as this takes; nobody else can join, because
    // everybody's first socket asks for it alone.
    let share = |on: bool, socket: &Socket| socket.set_reuse_port(on);
    let connect = |address: SocketAddr| -> io::Result<Socket> {
        let socket = new_socket(address).map_err(io::Error::other)?;
        share(true, &socket)?;
        grow_receive_buffer(&socket, bound.config.receive_buffer);
        socket.bind(&bound.local.into())?;
        socket.connect(&address.into())?;
        Ok(socket)
    };
    if bound.part == Part::Clients || share(true, &bound.socket).is_err() {
        return Vec::new();
    }
    let mut sockets = Vec::new();
    for (&address, i) in bound.config.replicas.iter().zip(0..) {
        let me = bound.config.me == Some(ReplicaId(i)) || address == bound.local;
        if !me && address.port() != 0 {
            sockets.extend(connect(address).ok().map(|socket| (socket, ReplicaId(i))));
        }
    }
    // The kernel chooses among unconnected ones only while they share.
    let first = (bound.part == Part::All).then_some(&bound.socket);
    for socket in sockets.iter().map(|(socket, _)| socket).chain(first) {
        let _ = share(false, socket);
    }
    sockets
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.enter();
        let patience = Timespec::from(Duration::from_millis(10));
        let _ = self.ring.submitter().register_sync_cancel(Some(patience), CancelBuilder::any());
        for _ in 0..DRAIN_TRIES {
            self.reap();
            if self.armed == 0 {
                break;
            }
            let _ = self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&patience));
        }
        // The kernel takes a ring down in its own time; the sockets, and with them the address, are to be free now.
        let _ = self.ring.submitter().unregister_files();
        let ended = self.armed == 0;
        for slots in [self.replicas.take(), self.others.take()].into_iter().flatten() {
            // Nothing is armed any more: nobody writes to the slots, and the memory may go.
            if !ended || self.ring.submitter().unregister_buf_ring(slots.group()).is_err() {
                slots.leak();
            }
        }
    }
}

impl Transport for Uring {
    fn receive(&mut self, into: &mut Vec<Datagram>) {
        let idle = {
            let queue = self.ring.submission();
            !queue.taskrun() && !queue.cq_overflow() && queue.is_empty()
        };
        // Without work deferred to us an enter would find nothing: the completion queue tells all, for 3 ns.
        if idle {
            self.reap()
        } else {
            self.enter()
        }
        if !self.has_arrivals() && self.disarmed.is_empty() {
            return;
        }
        self.reclaim();
        let (enough, mut bytes) = (into.len() + RECEIVE_MAX, 0);
        while into.len() < enough {
            let next = self.from_replicas.pop_front().or_else(|| {
                let arrival = self.from_others.pop_front_if(|_| bytes < OTHERS_BYTES_MAX)?;
                bytes += arrival.len;
                Some(arrival)
            });
            let Some(arrival) = next else { break };
            match self.locate(&arrival) {
                Ok((from, range, segment)) => {
                    let before = into.len();
                    let hand_up = |bytes| into.push(Datagram { from, bytes });
                    let scarce = self.slots(arrival.socket).datagrams(arrival.slot, range, segment, hand_up);
                    let received = (into.len() - before) as u64;
                    self.counters.copied_scarce.add(scarce);
                    self.counters.received.add(received);
                    self.counters.coalesced.add(if received > 1 { received } else { 0 });
                }
                Err(datagrams) => {
                    self.counters.oversize.add(datagrams);
                    self.slots(arrival.socket).put_back(arrival.slot);
                }
            }
        }
        self.slots(0).publish();
        self.slots(1).publish();
        if !self.disarmed.is_empty() {
            // After the slots: a receive that ended for want of them would end again.
            self.arm();
            self.enter();
        }
    }

    fn send(&mut self, batch: &mut Vec<Outgoing>) {
        let mut at = 0;
        while at < batch.len() {
            let file = |peer: Peer| match peer {
                Peer::Replica(id) => self.by_replica.get(usize::from(id.0)).copied().flatten(),
                Peer::Address(_) => None,
            };
            // SAFETY: neither `sender` nor `batch` is touched before `drain` has seen the queue empty; if it never is,
            // both are leaked.
            let queued =
                unsafe { self.sender.queue(&mut self.ring, &batch[at..], self.datagram_max, &self.book, file) };
            self.counters.sent.add(queued.queued as u64);
            self.counters.send_failed.add(queued.refused as u64);
            self.counters.segmented.add(queued.segmented as u64);
            if !self.drain() {
                mem::replace(&mut self.sender, Sender::new()).leak();
                mem::forget(mem::take(batch));
                return;
            }
            at += queued.taken;
        }
        batch.clear();
    }

    fn wait(&mut self, until: Time) -> Woken {
        let now = self.clock.now();
        self.sample_drops(now);
        self.enter();
        if self.has_arrivals() {
            return Woken::Datagrams;
        }
        self.reclaim();
        self.arm();
        if !self.waker.falls_asleep() {
            return Woken::Waker;
        }
        let left = until.since(self.clock.now());
        if !self.event_seen && left > Duration::ZERO {
            let timeout = Timespec::from(left);
            let args = match until {
                Time::NEVER => SubmitArgs::new(),
                _ => SubmitArgs::new().timespec(&timeout),
            };
            // Ends by a completion, the timeout or a signal; which, is seen below.
            self.counters.system_calls.add(1);
            let _ = self.ring.submitter().submit_with_args(1, &args);
            self.reap();
        }
        let woken = self.waker.wakes_up(mem::take(&mut self.event_seen));
        // A wake is taken by a read of the event.
        self.counters.system_calls.add(u64::from(woken));
        match (self.has_arrivals(), woken || !self.disarmed.is_empty()) {
            (true, _) => Woken::Datagrams,
            (false, true) => Woken::Waker,
            (false, false) => Woken::Deadline,
        }
    }

    fn now(&self) -> Time {
        self.clock.now()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.waker.clone()
    }

    fn mtu(&self, to: Peer) -> usize {
        self.book.mtu(to)
    }
}
