//! View changes: how a view ends, and what the next one begins with (P26-P35).

pub mod decision;
