//! The execution role: agreed batches in, replies out, exactly once.
//!
//! | file | what |
//! |---|---|
//! | `service` | [`Service`]: what is replicated; `context`, `reply_buffer`: what it is handed; `inspection`: what it finds wrong |
//! | `interface` | [`Command`], [`Output`]: the seam to whoever joins the roles |
//! | `executor` | [`Executor`]: order, tentative execution, checkpoints, queries |
//! | `sessions`, `reply_store`, `layout` | sessions and cached replies, and where they lie in the library's region |
//! | `queries` | read-only requests that wait |
#![forbid(unsafe_code)]

mod config;
mod context;
mod executor;
mod inspection;
mod interface;
mod layout;
mod queries;
mod reply_buffer;
mod reply_store;
mod service;
mod sessions;

pub use config::ExecutorConfig;
pub use context::{Caches, Context};
pub use executor::{Executor, ExecutorCounters};
pub use inspection::Inspection;
pub use interface::{Command, Output, Reply};
pub use reply_buffer::ReplyBuffer;
pub use service::{NotReadOnly, Service};

#[cfg(test)]
mod tests;
