//! Whose messages wait for company (P53): between the preferred quorum and a replica in reserve what orders is gathered,
//! so that it costs both a datagram and a MAC for many batches instead of one.

use std::time::Duration;

use crate::types::{ReplicaId, ReplicaSet, Time};
use crate::wire::Message;

/// For whom messages are gathered, and until when they wait.
#[derive(Debug)]
pub(super) struct Company {
    patient: ReplicaSet,
    delay: Duration,
    /// Told something that does not wait, in this turn.
    urgent: ReplicaSet,
    until: Vec<Time>,
}

/// What orders comes again and again, and a replica in reserve is in no hurry for it. All else was asked for, or concerns
/// a view that is over.
fn gathers(message: &Message) -> bool {
    match message {
        Message::PrePrepare(_) | Message::Prepare(_) | Message::Commit(_) | Message::Checkpoint(_) => true,
        Message::Committed(_)
        | Message::Status(_)
        | Message::FetchBatch(_)
        | Message::Batch(..)
        | Message::FetchPack(_)
        | Message::FetchViewChange(_)
        | Message::QueryStable(_)
        | Message::Answered(_)
        | Message::Stable(_)
        | Message::ViewChange(_)
        | Message::NewView(_)
        | Message::StableAnswer(_)
        | Message::Relay(_)
        | Message::FetchState(_)
        | Message::State(_) => false,
    }
}

impl Company {
    /// For nobody, of n replicas.
    pub(super) fn new(n: usize) -> Company {
        let (patient, urgent) = (ReplicaSet::EMPTY, ReplicaSet::EMPTY);
        Company { patient, delay: Duration::ZERO, urgent, until: vec![Time::NEVER; n] }
    }

    /// For these, from now on.
    pub(super) fn set(&mut self, patient: ReplicaSet, delay: Duration) {
        (self.patient, self.delay) = (patient, delay);
    }

    /// `message` is said to these.
    pub(super) fn said(&mut self, message: &Message, to: impl Iterator<Item = ReplicaId>) {
        if !gathers(message) {
            for id in to {
                self.urgent.insert(id);
            }
        }
    }

    /// Whether messages to `id` are gathered.
    pub(super) fn is_patient(&self, id: ReplicaId) -> bool {
        self.patient.contains(id)
    }

    /// Whether what there is for `id` goes on waiting; it does not once there is a datagram of it.
    pub(super) fn waits(&mut self, now: Time, id: ReplicaId, full: bool) -> bool {
        let until = &mut self.until[usize::from(id.0)];
        *until = (*until).min(now + self.delay);
        !full && !self.urgent.contains(id) && now < *until
    }

    /// What there was for `id` leaves.
    pub(super) fn leaves(&mut self, id: ReplicaId) {
        self.until[usize::from(id.0)] = Time::NEVER;
        self.urgent.remove(id);
    }

    /// When the first has waited long enough.
    pub(super) fn deadline(&self) -> Time {
        self.until.iter().copied().min().unwrap_or(Time::NEVER)
    }
}
