//! A whole cluster in one thread, from one seed: replicas, clients, a network that loses, doubles and reorders, and
//! checkers that look at what came out.
//!
//! There is no real time and no real randomness in it: a schedule is a function of its seed and its configuration, so
//! a failure that was seen once can be seen again. The machines under it are the real ones, with real bytes and real
//! proofs; only the world is made up.

#![forbid(unsafe_code)]

pub mod agreement;
mod describe;
mod history;
pub mod linearizability;
mod network;
mod rng;
mod trace;
mod workload;
mod world;

pub use describe::describe;
pub use history::{Begun, History};
pub use network::{Link, Network, NetworkCounters};
pub use rng::Rng;
pub use trace::{Trace, TraceEvent};
pub use workload::{Ask, Workload};
pub use world::{Clock, Host, HostId, Step, World, WorldConfig};
