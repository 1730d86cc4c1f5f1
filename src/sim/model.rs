//! The service itself as the specification of the service.

use super::linearizability::{Call, Model};
use crate::execution::{Caches, Context, ReplyBuffer, Service};
use crate::state::Region;
use crate::types::SessionId;

/// Runs one instance of a service by itself, in agreed order: whatever replication adds must not show.
pub struct ServiceModel<S> {
    service: S,
    state: Region,
    caches: Caches,
}

impl<S: Service> ServiceModel<S> {
    /// The initial state of `service`, which may grow to `pages_max` pages.
    pub fn new(service: S, pages_max: u32) -> ServiceModel<S> {
        let mut state = Region::new(pages_max);
        service.genesis(&mut state);
        ServiceModel { service, state, caches: Caches::new() }
    }
}

impl<S: Service> Model for ServiceModel<S> {
    fn apply(&mut self, call: &Call<'_>) -> Vec<u8> {
        let Call { client, position, time, seed, op } = *call;
        let mut cx = Context::new(time, seed, client, SessionId::NONE, position, &mut self.caches);
        let mut reply = ReplyBuffer::new();
        self.service.execute(&mut cx, op, &mut self.state, &mut reply);
        reply.as_slice().to_vec()
    }

    fn query(&mut self, call: &Call<'_>) -> Option<Vec<u8>> {
        let Call { client, position, time, seed, op } = *call;
        let cx = Context::new(time, seed, client, SessionId::NONE, position, &mut self.caches);
        let mut reply = ReplyBuffer::new();
        self.service.query(&cx, op, &self.state, &mut reply).ok()?;
        Some(reply.as_slice().to_vec())
    }
}
