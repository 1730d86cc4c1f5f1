//! The client side of replication (P1 to P9), sans-IO: sessions, requests, reply certificates.
//!
//! [`Endpoint`] is a [`Machine`](crate::transport::Machine): datagrams in, datagrams out. Front ends with threads and
//! transports stand in [`crate::runtime::client`].
#![forbid(unsafe_code)]

mod bulk;
mod certificate;
mod completion;
mod config;
mod endpoint;
mod pace;
mod random;
mod readers;
mod repliers;
mod request;
mod reserve;
mod rtt;
mod sending;
mod session;
mod stats;
mod table;
#[cfg(test)]
mod tests;
mod timers;

pub use completion::{Completion, Member, RequestError, RequestId, Session, SessionError, SubmitError, Tally};
pub use config::EndpointConfig;
pub use endpoint::Endpoint;
pub use stats::{ClientRejects, EndpointStats, Health};
