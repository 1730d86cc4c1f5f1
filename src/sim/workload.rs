//! What clients ask for.

use bytes::Bytes;

use super::rng::Rng;

/// One operation to submit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// The operation.
    pub op: Bytes,
    /// Submit it as a query (P6).
    pub read_only: bool,
}

impl Ask {
    /// An operation to be ordered.
    pub fn ordered(op: impl Into<Bytes>) -> Ask {
        Ask { op: op.into(), read_only: false }
    }

    /// A query.
    pub fn query(op: impl Into<Bytes>) -> Ask {
        Ask { op: op.into(), read_only: true }
    }
}

/// Decides what clients ask for. Any `FnMut(usize, u64, &mut Rng) -> Ask` is one.
pub trait Workload {
    /// The `index`-th operation of client `client`; both count from 0.
    fn ask(&mut self, client: usize, index: u64, rng: &mut Rng) -> Ask;
}

impl<F: FnMut(usize, u64, &mut Rng) -> Ask> Workload for F {
    fn ask(&mut self, client: usize, index: u64, rng: &mut Rng) -> Ask {
        self(client, index, rng)
    }
}
