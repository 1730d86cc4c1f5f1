//! Practical Byzantine fault tolerance for deterministic services.
#![warn(missing_docs)]

pub mod limits;
pub mod sim;
pub mod transport;
pub mod types;
pub mod wire;
