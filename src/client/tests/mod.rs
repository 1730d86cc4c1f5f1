//! An endpoint against scripted replicas with real keys: what it sends, and what it believes.

mod bulk;
mod fixture;
mod keys;
mod ordered;
mod queries;
mod reserve;
mod sessions;
