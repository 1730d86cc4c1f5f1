//! Tests of the network role.
