//! A whole cluster in one thread, from one seed: replicas, clients, a network that loses, doubles and reorders, and
//! checkers that look at what came out.
//!
//! There is no real time and no real randomness in it: a schedule is a function of its seed and its configuration, so
//! a failure that was seen once can be seen again. The machines under it are the real ones, with real bytes and real
//! proofs; only the world is made up.

#![forbid(unsafe_code)]

pub mod agreement;
mod config;
mod describe;
mod failure;
mod history;
mod hostile;
mod keys;
mod liar;
pub mod linearizability;
mod model;
mod network;
mod party;
mod record;
mod rng;
mod simulation;
mod tally;
#[cfg(test)]
mod tests;
mod trace;
mod watch;
mod workload;
mod world;

pub use config::{Config, Fault, Goal, OPERATIONS_MAX};
pub use describe::describe;
pub use failure::{Failure, Report, Wrong};
pub use history::{Begun, History};
pub use hostile::{Faults, hostile};
pub use keys::Keys;
pub use liar::{Liar, Lie, Tongue};
pub use model::ServiceModel;
pub use network::{Link, Network, NetworkCounters};
pub use record::{Broken, Word};
pub use rng::Rng;
pub use simulation::Simulation;
pub use tally::{Tally, TallyModel};
pub use trace::{Trace, TraceEvent};
pub use watch::Difference;
pub use workload::{Ask, Workload};
pub use world::{Clock, Host, HostId, Step, World, WorldConfig};
