//! The laboratory: real processes on this machine, load on them, and figures that are true.
//!
//! [`child`] starts, kills and buries processes; [`net`] puts them into namespaces and cuts the lines between them;
//! [`usage`] says what they cost; [`bare`] is the messages of a cluster without its protocol, [`costs`] what this machine
//! takes for one of them, [`unreplicated`] a server that nobody replicates; [`load`] keeps requests outstanding and times
//! them; [`demo`] does work whose every outcome is checked afterwards. The verbs of the command line put them together.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "the laboratory measures the world: clocks, threads, processes")]

pub mod bare;
pub mod child;
pub mod costs;
pub mod demo;
pub mod latency;
pub mod load;
pub mod machine;
pub mod net;
pub mod station;
pub mod unreplicated;
pub mod usage;

/// The largest datagram between processes of one machine, bytes of payload: loopback's MTU is 64 KiB.
pub const DATAGRAM: usize = crate::limits::DATAGRAM_MAX;

pub use child::{Child, Launch};
pub use latency::{Latencies, LatencyMicros};
pub use load::{Load, LoadError, Measured};
pub use machine::Machine;
pub use net::Network;
pub use station::{Idle, Station, StationError, Target};
