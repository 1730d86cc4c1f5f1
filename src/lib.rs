//! Practical Byzantine fault tolerance for deterministic services.
#![warn(missing_docs)]

pub mod limits;
pub mod sim;
pub mod state;
pub mod transport;
pub mod types;
pub mod wire;
