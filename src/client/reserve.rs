//! Whether the replicas in reserve are needed at once (P53). Where the preferred quorum answers alike nobody waits for them;
//! else they are called: requests go to everybody, which tells all that nothing is to wait.

use std::time::Duration;

use super::certificate::Accepted;
use crate::types::{ClusterSize, Position, ReplicaId, ReplicaSet, Spell, Time, View};

/// What an endpoint knows of the preferred quorum.
#[derive(Clone, Debug)]
pub(crate) struct Reserve {
    size: ClusterSize,
    called: Spell,
    /// When it is next told to all.
    due: Time,
    doubt: Option<Doubt>,
}

/// A result that was accepted with a word of the reserve. Those preferred may have been just behind.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    position: Position,
    at: Time,
    /// The preferred that have not answered yet.
    late: ReplicaSet,
}

impl Reserve {
    const CALLED_MIN: Duration = Duration::from_millis(100);
    const CALLED_MAX: Duration = Duration::from_secs(10);
    /// Who is so much later than the reserve is not to be waited for.
    const PATIENCE: Duration = Duration::from_millis(5);
    /// How often replicas are told that they are called: more often than they forget it.
    const REPEAT: Duration = Duration::from_millis(5);

    pub(crate) fn new(size: ClusterSize) -> Reserve {
        Reserve { size, called: Spell::default(), due: Time(0), doubt: None }
    }

    /// Whether it is called at present.
    pub(crate) fn is_called(&self, now: Time) -> bool {
        self.called.lasts(now)
    }

    /// Whether all replicas are to be told so with what is sent now.
    pub(crate) fn takes_call(&mut self, now: Time) -> bool {
        if let Some(Doubt { at, late, .. }) = self.doubt
            && now.since(at) >= Self::PATIENCE
        {
            self.doubt = None;
            if !late.is_empty() {
                self.call(now);
            }
        }
        self.called.lasts(now) && self.may_tell(now)
    }

    /// Whether the last time that all were told is a while ago; if so this is the next.
    pub(crate) fn may_tell(&mut self, now: Time) -> bool {
        let may = now >= self.due;
        if may {
            self.due = now + Self::REPEAT;
        }
        may
    }

    /// An authentic reply of `replica` came.
    pub(crate) fn heard(&mut self, replica: ReplicaId, position: Position) {
        if let Some(doubt) = self.doubt.as_mut().filter(|doubt| doubt.position == position) {
            doubt.late.remove(replica);
        }
    }

    /// The result of an ordered request was accepted, in `view` by what is known.
    pub(crate) fn accepted(&mut self, now: Time, view: View, accepted: &Accepted) {
        let late = self.size.preferred(view).without(accepted.members);
        if !late.is_empty() {
            self.doubt.get_or_insert(Doubt { position: accepted.position, at: now, late });
        }
    }

    /// `replica` answered an ordered request otherwise than a quorum.
    pub(crate) fn contradicted(&mut self, now: Time, view: View, replica: ReplicaId) {
        if self.size.prefers(view, replica) {
            self.call(now);
        }
    }

    fn call(&mut self, now: Time) {
        if !self.called.lasts(now) {
            self.called.begin(now, Self::CALLED_MIN, Self::CALLED_MAX);
        }
    }
}
