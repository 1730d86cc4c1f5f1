//! Services that come with the library.
#![forbid(unsafe_code)]

pub mod kv;
mod null;

pub use kv::Kv;
pub use null::Null;
