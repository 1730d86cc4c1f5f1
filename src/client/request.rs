//! The requests that an endpoint has outstanding.

use bytes::Bytes;

use super::certificate::Certificate;
use super::completion::{RequestId, Session};
use super::sending::Repeat;
#[cfg(test)]
use crate::types::ReplicaId;
use crate::types::{ReplicaSet, SessionId, Time};
use crate::wire::RequestKind;

/// One request, from hand-in to completion.
#[derive(Debug)]
pub(crate) struct Outstanding {
    /// The session it goes through; `None` for a query until it falls back.
    pub(crate) session: Option<Session>,
    pub(crate) kind: RequestKind,
    pub(crate) op: Bytes,
    /// (session, t, low) as first sent, for ever (P1, P2); `None` while it waits.
    pub(crate) number: Option<Number>,
    pub(crate) submitted_at: Time,
    pub(crate) sent_at: Option<Time>,
    pub(crate) deadline: Time,
    /// The one timer that counts; others of this request are stale.
    pub(crate) due: Time,
    pub(crate) retransmissions: u32,
    pub(crate) certificate: Certificate,
    /// The replies that say that the result is not kept any more. They take back nothing of what was said before.
    pub(crate) gone: Option<Box<Certificate>>,
    /// The replicas that a query goes to with the next send, and all that it went to (P6).
    pub(crate) to: ReplicaSet,
    pub(crate) asked: ReplicaSet,
    /// `due` is when the reserve is called for it (P53), sooner than it is sent again.
    pub(crate) hedging: bool,
    /// The endpoint's count of unauthentic datagrams when it was handed in.
    pub(crate) unauthentic: u64,
    pub(crate) fell_back: bool,
    /// How its fragments are repeated, if it is large.
    pub(crate) repeat: Option<Repeat>,
}

/// What a request is called on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Number {
    pub(crate) session: SessionId,
    pub(crate) t: u64,
    pub(crate) low: u64,
}

/// A table of requests whose names are never reused.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    request: Option<Outstanding>,
}

impl Requests {
    pub(crate) fn insert(&mut self, request: Outstanding) -> RequestId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("sessions and windows are bounded")
        });
        let slot = &mut self.slots[index as usize];
        slot.request = Some(request);
        RequestId(u64::from(slot.generation) << 32 | u64::from(index))
    }

    pub(crate) fn get(&self, id: RequestId) -> Option<&Outstanding> {
        let slot = self.slots.get(id.0 as u32 as usize)?;
        slot.request.as_ref().filter(|_| u64::from(slot.generation) == id.0 >> 32)
    }

    pub(crate) fn get_mut(&mut self, id: RequestId) -> Option<&mut Outstanding> {
        let slot = self.slots.get_mut(id.0 as u32 as usize)?;
        slot.request.as_mut().filter(|_| u64::from(slot.generation) == id.0 >> 32)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (RequestId, &mut Outstanding)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| {
            let id = RequestId(u64::from(slot.generation) << 32 | index as u64);
            Some((id, slot.request.as_mut()?))
        })
    }

    pub(crate) fn remove(&mut self, id: RequestId) -> Option<Outstanding> {
        let slot = self.slots.get_mut(id.0 as u32 as usize)?;
        if u64::from(slot.generation) != id.0 >> 32 {
            return None;
        }
        let request = slot.request.take()?;
        // A slot whose generations are used up is retired: names are never reused.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(id.0 as u32);
        }
        Some(request)
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Bytes of uncertified results held for `replica`, over all requests.
    #[cfg(test)]
    pub(crate) fn held(&self, replica: ReplicaId) -> usize {
        self.slots.iter().filter_map(|s| s.request.as_ref()).map(|r| r.certificate.held(replica)).sum()
    }
}
