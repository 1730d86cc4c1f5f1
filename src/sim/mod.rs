//! A whole cluster in one thread, from one seed: replicas, clients, a network that loses, doubles and reorders, and
//! checkers that look at what came out.
//!
//! There is no real time and no real randomness in it: a schedule is a function of its seed and its configuration, so
//! a failure that was seen once can be seen again. The machines under it are the real ones, with real bytes and real
//! proofs; only the world is made up.

#![forbid(unsafe_code)]

pub mod agreement;
#[cfg(test)]
mod core_tests;
mod describe;
mod history;
pub mod linearizability;
mod model;
mod network;
mod rng;
mod tally;
mod trace;
mod watch;
mod workload;
mod world;

pub use describe::describe;
pub use history::{Begun, History};
pub use model::ServiceModel;
pub use network::{Link, Network, NetworkCounters};
pub use rng::Rng;
pub use tally::{Tally, TallyModel};
pub use trace::{Trace, TraceEvent};
pub use watch::Difference;
pub use workload::{Ask, Workload};
pub use world::{Clock, Host, HostId, Step, World, WorldConfig};
