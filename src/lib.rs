//! Practical Byzantine fault tolerance for deterministic services.
//!
//! With 3f + 1 replicas a service behaves like one correct server though f of them lie, crash or are broken into, in an
//! asynchronous network. Write a [`Service`](execution::Service); the library orders its operations, executes each once,
//! and hands clients results that a quorum vouches for.
//!
//! ```
//! use castra::execution::{Context, ReplyBuffer, Service};
//! use castra::state::{Cell, Region};
//!
//! /// Adds what it is sent, and answers with the sum.
//! struct Counter;
//! const SUM: Cell<u64> = Cell::at(0);
//!
//! impl Service for Counter {
//!     fn execute(&self, _: &mut Context, op: &[u8], state: &mut Region, reply: &mut ReplyBuffer) {
//!         let add = op.first().copied().unwrap_or(0);
//!         let sum = SUM.get(state) + u64::from(add);
//!         SUM.set(state, sum);
//!         reply.push(&sum.to_le_bytes());
//!     }
//! }
//! ```
//!
//! # How it is built
//!
//! Every role is a state machine without a clock, a socket, a thread or a file: events in, actions out. Where they run
//! is configuration. Modules use those below them, never those above; `tests/tidy.rs` checks it.
//!
//! | module | what |
//! |---|---|
//! | `cli`, `lab` | the command line; measuring and showing |
//! | [`sim`] | a whole cluster in one thread from one seed, and the checkers |
//! | `runtime` | cores, rings, io_uring, sockets, clocks: the only threads, and all `unsafe` but that of the MAC kernel |
//! | [`client`] | a client endpoint: sessions, packs, reply certificates |
//! | [`replica`] | the roles of one replica, joined |
//! | [`protocol`] | the agreement core, and the rules that it keeps (P1, P2, …) |
//! | [`execution`], [`services`] | `Service`, exactly once, tentative batches; the services that come along |
//! | [`bfs`] | a file system: NFSv3 as a service |
//! | [`state`] | pages, copy-on-write, the incremental digest, `Cell`, `Map`, `Heap`, `Log`, `Extent` |
//! | [`auth`] | keys, authenticators, signatures; the only maker of `Verified` |
//! | [`wire`] | bytes to messages and back |
//! | [`transport`], [`types`], [`limits`] | the seam to the world, the nouns, the bounds |
//!
//! Without default features the core builds on any platform: everything but `runtime`, `lab` and `cli`.
#![warn(missing_docs)]
// What these ban stands in clippy.toml; modules at the edge of the world (runtime, cli) allow clocks by name.
#![warn(clippy::disallowed_methods, clippy::disallowed_types, clippy::iter_over_hash_type)]

pub mod auth;
pub mod bfs;
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
