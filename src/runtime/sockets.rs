//! Plain nonblocking UDP sockets: where io_uring is refused, and in tests.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::Socket;

use super::bind::{AddressBook, Bound};
use super::sys::{BATCH, Gather, Inbound, send_batch};
use super::waker::EventWaker;
use super::{Clock, Counters};
use crate::transport::{Datagram, Outgoing, Peer, Transport, Wake, Woken};
use crate::types::Time;

/// Receive calls per [`Transport::receive`], of [`BATCH`] datagrams each.
const ROUNDS: usize = 8;

/// The kernel's count of drops is read once in so many receives, and before every sleep.
pub(crate) const DROPS_SAMPLED: u32 = 4_096;

/// One unconnected socket, recvmmsg and sendmmsg, poll(2). Each datagram is copied once, to memory of its size.
pub struct Sockets {
    socket: Socket,
    local: SocketAddr,
    book: AddressBook,
    clock: Clock,
    waker: Arc<EventWaker>,
    counters: Arc<Counters>,
    inbound: Inbound,
    datagram_max: usize,
    receives: u32,
}

impl Sockets {
    /// The name that reports give this transport.
    pub const NAME: &'static str = "sockets";

    /// Makes a transport of a bound address.
    pub fn open(bound: Bound) -> Sockets {
        Sockets {
            socket: bound.socket,
            local: bound.local,
            book: bound.book,
            clock: bound.config.clock,
            waker: bound.waker,
            counters: bound.counters,
            inbound: Inbound::new(bound.config.datagram_max),
            datagram_max: bound.config.datagram_max,
            receives: 0,
        }
    }

    /// The address that others send to.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// What this transport counts.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn sample_drops(&self) {
        self.counters.system_calls.add(1);
        if let Ok(drops) = super::sys::kernel_drops(self.socket.as_fd()) {
            self.counters.kernel_drops.set(drops);
        }
    }

    fn send_chunk(&self, chunk: &[Outgoing]) {
        let mut ready: Vec<Gather<'_>> = Vec::with_capacity(BATCH);
        for out in chunk {
            match self.book.address(out.to).filter(|_| out.len() <= self.datagram_max) {
                Some(to) => ready.push(Gather { to, head: out.head.as_slice(), body: &out.body }),
                None => self.counters.send_failed.add(1),
            }
        }
        let mut rest = ready.as_slice();
        while !rest.is_empty() {
            self.counters.system_calls.add(1);
            match send_batch(self.socket.as_fd(), rest) {
                Ok(sent) => {
                    self.counters.sent.add(sent as u64);
                    rest = &rest[sent..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    match error.kind() {
                        io::ErrorKind::WouldBlock => self.counters.send_full.add(1),
                        _ if error.raw_os_error() == Some(libc::ENOBUFS) => self.counters.send_full.add(1),
                        io::ErrorKind::ConnectionRefused => self.counters.send_refused.add(1),
                        _ => self.counters.send_failed.add(1),
                    }
                    rest = &rest[1..];
                }
            }
        }
    }
}

impl Transport for Sockets {
    fn receive(&mut self, into: &mut Vec<Datagram>) {
        self.receives = self.receives.wrapping_add(1);
        if self.receives.is_multiple_of(DROPS_SAMPLED) {
            self.sample_drops();
        }
        for _ in 0..ROUNDS {
            self.counters.system_calls.add(1);
            // Would block, interrupted, or an error that an earlier datagram met on its way: nothing to take now.
            let Ok(received) = self.inbound.receive(self.socket.as_fd()) else { return };
            for i in 0..received {
                match self.inbound.get(i) {
                    Some((bytes, Some(from))) => {
                        self.counters.received.add(1);
                        into.push(Datagram { from: self.book.peer(from), bytes: Bytes::copy_from_slice(bytes) });
                    }
                    Some((_, None)) => {}
                    None => self.counters.oversize.add(1),
                }
            }
            if received < BATCH {
                return;
            }
        }
    }

    fn send(&mut self, batch: &mut Vec<Outgoing>) {
        for chunk in batch.chunks(BATCH) {
            self.send_chunk(chunk);
        }
        batch.clear();
    }

    fn wait(&mut self, until: Time) -> Woken {
        self.sample_drops();
        if !self.waker.falls_asleep() {
            return Woken::Waker;
        }
        let timeout = timespec(self.clock.now(), until);
        let mut fds =
            [PollFd::new(&self.socket, PollFlags::IN), PollFd::from_borrowed_fd(self.waker.fd(), PollFlags::IN)];
        self.counters.system_calls.add(1);
        let polled = poll(&mut fds, timeout.as_ref());
        let readable = |i: usize| !fds[i].revents().is_empty();
        let (datagrams, event) = match polled {
            Ok(_) => (readable(0), readable(1)),
            // Interrupted by a signal: look again, as after a wake.
            Err(Errno::INTR) => (false, true),
            Err(_) => (false, false),
        };
        let woken = self.waker.wakes_up(event);
        // A wake is taken by a read of the event.
        self.counters.system_calls.add(u64::from(woken));
        match (datagrams, woken) {
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

/// The time from `now` to `until`; None for [`Time::NEVER`].
pub(crate) fn timespec(now: Time, until: Time) -> Option<Timespec> {
    (until != Time::NEVER).then(|| {
        let left = until.since(now);
        Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
    })
}
