//! UDP by io_uring, or by plain sockets where that is refused.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;

use super::bind::Bound;
use super::sockets::Sockets;
use super::uring::Uring;
use super::{Counters, Error};
use crate::transport::{Datagram, Outgoing, Peer, Transport, Wake, Woken};
use crate::types::Time;

/// Which packet path to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backend {
    /// io_uring, or plain sockets where it is refused.
    #[default]
    Auto,
    /// io_uring or an error (E002).
    Uring,
    /// Plain sockets.
    Sockets,
}

/// A UDP transport. It stays on the thread that opened it.
pub enum Udp {
    /// By io_uring.
    Uring(Box<Uring>),
    /// By plain sockets.
    Sockets(Box<Sockets>),
}

impl Udp {
    /// Makes a transport of a bound address, for the calling thread; and, if it had to fall back to plain sockets, why.
    pub fn open(bound: Bound, backend: Backend) -> Result<(Udp, Option<Error>), Error> {
        if backend == Backend::Sockets {
            return Ok((Udp::Sockets(Box::new(Sockets::open(bound))), None));
        }
        match Uring::open(bound) {
            Ok(uring) => Ok((Udp::Uring(Box::new(uring)), None)),
            Err((_, error)) if backend == Backend::Uring => Err(error),
            Err((bound, error)) => Ok((Udp::Sockets(Box::new(Sockets::open(bound))), Some(error))),
        }
    }

    /// The name that reports give it.
    pub fn name(&self) -> &'static str {
        match self {
            Udp::Uring(_) => Uring::NAME,
            Udp::Sockets(_) => Sockets::NAME,
        }
    }

    /// The address that others send to.
    pub fn local_address(&self) -> SocketAddr {
        match self {
            Udp::Uring(uring) => uring.local_address(),
            Udp::Sockets(sockets) => sockets.local_address(),
        }
    }

    /// What it counts.
    pub fn counters(&self) -> &Arc<Counters> {
        match self {
            Udp::Uring(uring) => uring.counters(),
            Udp::Sockets(sockets) => sockets.counters(),
        }
    }
}

impl Transport for Udp {
    fn receive(&mut self, into: &mut Vec<Datagram>) {
        match self {
            Udp::Uring(uring) => uring.receive(into),
            Udp::Sockets(sockets) => sockets.receive(into),
        }
    }

    fn send(&mut self, batch: &mut Vec<Outgoing>) {
        match self {
            Udp::Uring(uring) => uring.send(batch),
            Udp::Sockets(sockets) => sockets.send(batch),
        }
    }

    fn wait(&mut self, until: Time) -> Woken {
        match self {
            Udp::Uring(uring) => uring.wait(until),
            Udp::Sockets(sockets) => sockets.wait(until),
        }
    }

    fn now(&self) -> Time {
        match self {
            Udp::Uring(uring) => uring.now(),
            Udp::Sockets(sockets) => sockets.now(),
        }
    }

    fn waker(&self) -> Arc<dyn Wake> {
        match self {
            Udp::Uring(uring) => uring.waker(),
            Udp::Sockets(sockets) => sockets.waker(),
        }
    }

    fn mtu(&self, to: Peer) -> usize {
        match self {
            Udp::Uring(uring) => uring.mtu(to),
            Udp::Sockets(sockets) => sockets.mtu(to),
        }
    }
}
