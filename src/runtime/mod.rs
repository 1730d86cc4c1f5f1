//! Everything that is not pure: clocks, threads, cores, sockets, io_uring. The only module with `unsafe`.
//!
//! Transports ([`udp`]: [`uring`] or [`sockets`]; [`memory`]) carry the datagrams of a [`Machine`], and [`drive()`] is the
//! loop between the two:
//! ```
//! use castra::runtime::{drive, Stop, WaitPolicy, memory};
//! use castra::transport::{Datagram, Machine, Outgoing};
//! use castra::types::Time;
//!
//! struct Idle;
//! impl Machine for Idle {
//!     fn turn(&mut self, _: Time, inbox: &mut Vec<Datagram>, _: &mut Vec<Outgoing>) { inbox.clear() }
//!     fn deadline(&self) -> Time { Time::NEVER }
//! }
//!
//! let network = memory::Network::new();
//! let mut transport = network.client();
//! let stop = Stop::new();
//! stop.stop(); // from another thread or a signal
//! drive(&mut Idle, &mut transport, &stop, &WaitPolicy::default(), &Default::default());
//! ```
//!
//! [`Machine`]: crate::transport::Machine

// Clocks, sleeps and threads are what this module is for.
#![allow(clippy::disallowed_methods)]

pub mod bind;
pub mod client;
pub mod clock;
pub mod cores;
pub mod counters;
pub mod drive;
pub mod embedded;
pub mod error;
pub mod host;
pub mod memory;
mod random;
pub mod ring;
mod role;
pub mod signals;
pub mod sockets;
mod sys;
#[cfg(test)]
mod tests;
pub mod udp;
pub mod uring;
pub mod wait;
mod waker;

pub use clock::Clock;
pub use cores::{Cores, Placement};
pub use counters::{Counters, Counts};
pub use drive::{LoopCounters, LoopCounts, Stop, drive, drive_with};
pub use embedded::Embedded;
pub use error::{CoresError, Error, Refusal};
pub use host::{Host, Opened, Running, Unseen, Viewer};
pub use random::random_bytes;
pub use signals::StopOnSignals;
pub use udp::{Backend, Udp};
pub use wait::WaitPolicy;
