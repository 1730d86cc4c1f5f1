//! Reply certificates: when replies prove a result (P5 to P8).
//!
//! One entry per replica and request, whatever a replica sends (P44). Pure counting; who sent a reply was proved
//! before.

use bytes::Bytes;

use super::completion::{Member, Tally};
use crate::limits;
use crate::types::{ClusterSize, Digest, Position, ReplicaId, ReplicaSet, View};
use crate::wire::{Outcome, ReplyEntry, ReplyKind, ReplyResult};

/// What proves a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rule {
    /// q: tentative of one view and committed of any, equal in digest and position. With `weak`, w committed too: only
    /// where the read-only optimisation is off (P5).
    Ordered {
        /// w committed replies are enough.
        weak: bool,
    },
    /// q read-only, equal in digest (P6).
    ReadOnly,
}

/// One replica's word.
#[derive(Clone, Debug)]
struct Entry {
    view: View,
    kind: ReplyKind,
    position: Position,
    digest: Digest,
    /// The whole result, if this replica sent it first of those that agree on the digest.
    outcome: Option<Outcome>,
}

/// The replies to one request.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    rule: Rule,
    entries: Vec<Option<Entry>>,
}

/// What the replies amount to.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// Not enough yet.
    Open,
    /// A quorum agrees, the whole result is missing (P7).
    ResultMissing,
    /// No quorum can come any more, whatever the missing replies say.
    Hopeless,
    /// Proved.
    Accepted(Accepted),
}

/// A proved result.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    pub(crate) outcome: Outcome,
    pub(crate) position: Position,
    pub(crate) kind: ReplyKind,
    /// The (f+1)-th highest view named by a member: at most what a correct replica named (P8).
    pub(crate) view: View,
    pub(crate) members: ReplicaSet,
}

/// What an inserted reply did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Inserted {
    /// It counts.
    Fresh,
    /// Nothing new.
    Repeated,
}

impl Certificate {
    pub(crate) fn new(size: ClusterSize, rule: Rule) -> Certificate {
        Certificate { rule, entries: vec![None; size.n()] }
    }

    /// Bytes of uncertified results held for `replica`.
    pub(crate) fn held(&self, replica: ReplicaId) -> usize {
        match self.entry(replica) {
            Some(Entry { outcome: Some(Outcome::Done(bytes)), .. }) => bytes.len(),
            Some(_) | None => 0,
        }
    }

    /// Whether `replica` replied.
    pub(crate) fn has(&self, replica: ReplicaId) -> bool {
        self.entry(replica).is_some()
    }

    /// The replicas whose replies say something else than `outcome`.
    pub(crate) fn contradicting(&self, outcome: &Outcome) -> ReplicaSet {
        let digest = outcome.digest();
        self.size().replicas().filter(|&r| self.entry(r).is_some_and(|e| e.digest != digest)).collect()
    }

    fn entry(&self, replica: ReplicaId) -> Option<&Entry> {
        self.entries.get(usize::from(replica.0)).and_then(Option::as_ref)
    }

    /// Takes a reply of `from`, whose envelope names `view`. A replica's later word replaces its earlier one, unless
    /// that was more final: committed above tentative, tentative of a later view above that of an earlier one. Of the
    /// whole result at most `room` bytes are kept.
    pub(crate) fn insert(&mut self, from: ReplicaId, view: View, reply: ReplyEntry, room: usize) -> Inserted {
        let ReplyEntry { kind, position, result, .. } = reply;
        let digest = result.digest();
        let known = self.entries.iter().flatten().any(|e| e.digest == digest && e.outcome.is_some());
        // A quorum that only waits for this result takes it however full the share is: it leaves at once.
        let wanted = || self.quorum().is_some_and(|(wanted, ..)| wanted == digest);
        let fresh_outcome = match result {
            ReplyResult::Full(outcome) if !known => match outcome {
                Outcome::Done(bytes) if bytes.len() > room && !wanted() => None,
                Outcome::Done(bytes) => Some(Outcome::Done(owned(bytes))),
                Outcome::Gone | Outcome::NoSession | Outcome::Refused(_) => Some(outcome),
            },
            ReplyResult::Full(_) | ReplyResult::Digest(_) => None,
        };
        let Some(slot) = self.entries.get_mut(usize::from(from.0)) else {
            return Inserted::Repeated;
        };
        match slot {
            Some(old) if (old.kind, old.view) > (kind, view) && old.kind != ReplyKind::Committed => Inserted::Repeated,
            Some(old) if old.kind == ReplyKind::Committed && kind != ReplyKind::Committed => Inserted::Repeated,
            Some(old) if old.digest == digest => {
                let news = (old.kind, old.view, old.position) != (kind, view, position) || fresh_outcome.is_some();
                old.outcome = old.outcome.take().or(fresh_outcome);
                (old.kind, old.view, old.position) = (kind, view, position);
                if news { Inserted::Fresh } else { Inserted::Repeated }
            }
            Some(_) | None => {
                *slot = Some(Entry { view, kind, position, digest, outcome: fresh_outcome });
                Inserted::Fresh
            }
        }
    }

    /// The digest and position on which enough replicas agree, and the tentative view that counts with the committed.
    fn quorum(&self) -> Option<(Digest, Position, View)> {
        let size = self.size();
        self.entries.iter().flatten().find_map(|e| {
            let enough = match self.rule {
                Rule::ReadOnly => self.alike(e, e.view) >= size.quorum(),
                Rule::Ordered { weak } => {
                    let committed = self.count(|o| same(o, e) && o.kind == ReplyKind::Committed);
                    self.alike(e, e.view) >= size.quorum() || weak && committed >= size.weak_quorum()
                }
            };
            enough.then_some((e.digest, e.position, e.view))
        })
    }

    /// Replies that count together with `e` if tentative ones must be of `view`.
    fn alike(&self, e: &Entry, view: View) -> usize {
        match self.rule {
            Rule::ReadOnly => self.count(|o| o.digest == e.digest),
            Rule::Ordered { .. } => self.count(|o| same(o, e) && (o.kind == ReplyKind::Committed || o.view == view)),
        }
    }

    fn count(&self, counts: impl Fn(&Entry) -> bool) -> usize {
        self.entries.iter().flatten().filter(|e| counts(e)).count()
    }

    fn size(&self) -> ClusterSize {
        ClusterSize::of(self.entries.len()).expect("made for a cluster")
    }

    /// What the replies amount to.
    pub(crate) fn verdict(&self) -> Verdict {
        let Some((digest, position, view)) = self.quorum() else {
            return if self.hopeless() { Verdict::Hopeless } else { Verdict::Open };
        };
        let whole = self.entries.iter().flatten().find(|e| e.digest == digest && e.outcome.is_some());
        let Some(outcome) = whole.and_then(|e| e.outcome.clone()) else {
            return Verdict::ResultMissing;
        };
        let members = self.members(digest, position, view);
        let of = |f: &dyn Fn(&Entry) -> bool| members.iter().filter_map(|r| self.entry(r)).all(f);
        let kind = match self.rule {
            Rule::ReadOnly => ReplyKind::ReadOnly,
            Rule::Ordered { .. } if of(&|e| e.kind == ReplyKind::Committed) => ReplyKind::Committed,
            Rule::Ordered { .. } => ReplyKind::Tentative,
        };
        let position = match self.rule {
            Rule::ReadOnly => {
                members.iter().filter_map(|r| self.entry(r)).map(|e| e.position).max().unwrap_or(position)
            }
            Rule::Ordered { .. } => position,
        };
        Verdict::Accepted(Accepted { outcome, position, kind, view: self.believed(members), members })
    }

    fn members(&self, digest: Digest, position: Position, view: View) -> ReplicaSet {
        let size = self.size();
        size.replicas()
            .filter(|&r| {
                self.entry(r).is_some_and(|e| match self.rule {
                    Rule::ReadOnly => e.digest == digest,
                    Rule::Ordered { .. } => {
                        let counts = e.kind == ReplyKind::Committed || e.view == view;
                        e.digest == digest && e.position == position && counts
                    }
                })
            })
            .collect()
    }

    /// P8: the (f+1)-th highest view of the members. One of the f+1 highest is a correct replica's, so the least of
    /// them is no higher than what a correct replica named.
    fn believed(&self, members: ReplicaSet) -> View {
        let mut views: Vec<View> = members.iter().filter_map(|r| self.entry(r)).map(|e| e.view).collect();
        views.sort_unstable_by(|a, b| b.cmp(a));
        views.get(self.size().f()).copied().unwrap_or_default()
    }

    fn hopeless(&self) -> bool {
        let missing = self.entries.iter().filter(|e| e.is_none()).count();
        let best = self.best();
        // An ordered reply may still change (tentative to committed, one view to the next).
        self.rule == Rule::ReadOnly && best + missing < self.size().quorum()
    }

    /// The most replies that agree.
    fn best(&self) -> usize {
        self.entries.iter().flatten().map(|e| self.alike(e, e.view)).max().unwrap_or(0)
    }

    /// The evidence behind an acceptance.
    pub(crate) fn evidence(&self, members: ReplicaSet) -> Vec<Member> {
        let member = |r: ReplicaId| {
            self.entry(r).map(|e| Member { replica: r, view: e.view, kind: e.kind, position: e.position })
        };
        members.iter().filter_map(member).collect()
    }

    /// The counts of E013.
    pub(crate) fn tally(&self, unauthentic: u64) -> Tally {
        let size = self.size();
        let heard = self.entries.iter().flatten().count();
        let matched = self.best();
        let need = match self.rule {
            Rule::Ordered { weak: true } => size.weak_quorum(),
            Rule::Ordered { weak: false } | Rule::ReadOnly => size.quorum(),
        };
        Tally {
            replicas: size.n(),
            need,
            matched,
            differing: heard - matched,
            silent: size.replicas().filter(|&r| self.entry(r).is_none()).collect(),
            unauthentic,
            result_missing: matches!(self.verdict(), Verdict::ResultMissing),
        }
    }
}

/// Equal in what must be equal between ordered replies.
fn same(a: &Entry, b: &Entry) -> bool {
    a.digest == b.digest && a.position == b.position
}

/// A result that outlives the turn must not pin the receive buffer it lies in. What was reassembled is larger than a
/// datagram and lies in a buffer of its own.
fn owned(bytes: Bytes) -> Bytes {
    if bytes.len() <= limits::DATAGRAM_MAX { Bytes::copy_from_slice(&bytes) } else { bytes }
}
