//! The execution role: agreed batches in, replies out, exactly once.
#![forbid(unsafe_code)]

mod context;
mod reply_buffer;
mod service;

pub use context::{Caches, Context};
pub use reply_buffer::ReplyBuffer;
pub use service::{NotReadOnly, Service};
