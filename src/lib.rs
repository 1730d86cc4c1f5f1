//! Practical Byzantine fault tolerance for deterministic services.
#![warn(missing_docs)]
// What these ban stands in clippy.toml; modules at the edge of the world (runtime, cli) allow clocks by name.
#![warn(clippy::disallowed_methods, clippy::disallowed_types, clippy::iter_over_hash_type)]

pub mod auth;
#[cfg(feature = "cli")]
pub mod cli;
pub mod client;
pub mod execution;
#[cfg(feature = "cli")]
pub mod lab;
pub mod limits;
pub mod protocol;
pub mod replica;
#[cfg(feature = "runtime")]
pub mod runtime;
pub mod services;
pub mod sim;
pub mod state;
pub mod transport;
pub mod types;
pub mod wire;
