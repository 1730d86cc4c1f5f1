//! The preferred quorum of a view, and who is in reserve (P53).
//!
//! Where nothing is wrong the votes of q replicas suffice. What goes between the f others and these may wait a little, so
//! that much of it travels, is proved and is handled together: it costs next to nothing, and nobody waits for it.
//! Everything is said to everybody all the same. A reserve that is needed is back within milliseconds.

use std::time::Duration;

use super::{Agreement, Mode};
use crate::types::{ReplicaSet, SeqNum, Spell, Time};

/// Whether the reserve is needed.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    /// Others cannot do without its votes: nothing waits.
    needed: Spell,
    /// Nor while a client asks for its replies.
    called_until: Time,
    /// A batch that was decided here with its votes, and when. Those of the preferred may be on their way.
    doubt: Option<(SeqNum, Time)>,
}

impl Agreement {
    const NEEDED_MIN: Duration = Duration::from_millis(10);
    const NEEDED_MAX: Duration = Duration::from_secs(1);

    /// The replicas for which what orders may wait until there is more of it, for `reserve_delay`: for who is preferred
    /// those in reserve. To be asked at the end of a turn, when everything that has arrived is counted.
    pub fn patient(&mut self, now: Time) -> ReplicaSet {
        self.settle_doubt(now);
        match self.spares_reserve(now) && self.is_preferred() {
            true => self.config.size.reserve(self.view),
            false => ReplicaSet::EMPTY,
        }
    }

    /// Whether this replica is in reserve and not needed: it may let what arrives gather for `reserve_delay`.
    pub fn rests(&self, now: Time) -> bool {
        // Who is behind is not at rest: the more often it looks the sooner it has what it lacks.
        let behind = self.log.last().0.saturating_sub(self.last_executed.0);
        let follows = behind <= 2 * self.config.pipeline_max;
        follows && self.spares_reserve(now) && !self.is_preferred()
    }

    fn is_preferred(&self) -> bool {
        self.config.size.prefers(self.view, self.config.me)
    }

    /// Whether all is well here.
    fn spares_reserve(&self, now: Time) -> bool {
        let taking_part = self.mode == Mode::Normal && !self.views.pending && !self.is_transferring();
        let needed = self.reserve.needed.lasts(now) || now < self.reserve.called_until;
        taking_part && !needed && !self.config.reserve_delay.is_zero()
    }

    /// A client speaks to more than the primary: it could not do without the reserve.
    pub(super) fn call_reserve(&mut self) {
        self.counters.reserve_needed += u64::from(self.spares_reserve(self.now));
        self.reserve.called_until = self.now + Self::NEEDED_MIN;
    }

    /// `voters`, at least `enough`, decided `n` here.
    pub(super) fn note_voters(&mut self, n: SeqNum, voters: ReplicaSet, enough: usize) {
        let preferred = self.config.size.preferred(self.view);
        if voters.and(preferred).len() < enough && self.spares_reserve(self.now) {
            self.reserve.doubt.get_or_insert((n, self.now));
        }
    }

    /// Whether what was decided with the votes of the reserve would be without them, in the time that others may take.
    fn settle_doubt(&mut self, now: Time) {
        let Some((n, at)) = self.reserve.doubt else { return };
        if now.since(at) < self.config.reserve_patience() {
            return;
        }
        self.reserve.doubt = None;
        let Some(slot) = self.log.get(n) else { return };
        let Some((view, digest)) = slot.prepared else { return };
        let (preferred, quorum) = (self.config.size.preferred(view), self.config.size.quorum());
        let prepares = slot.prepares.voters((view, digest)).and(preferred).len();
        let commits = slot.commits.voters((view, digest)).and(preferred).len();
        if view == self.view && (prepares + 1 < quorum || commits < quorum) {
            self.counters.reserve_needed += u64::from(self.spares_reserve(now));
            self.reserve.needed.begin(now, Self::NEEDED_MIN, Self::NEEDED_MAX);
        }
    }
}
