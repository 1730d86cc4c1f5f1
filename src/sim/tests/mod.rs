//! The agreement core alone, without keys, bytes, threads or a real service: on a lossy network, in golden scripts, and
//! with a twin.

mod core;
mod hostile;
mod lossy;
mod scenarios;
mod script;
mod twins;
