//! Services that come with the library.
#![forbid(unsafe_code)]

mod null;

pub use null::Null;
