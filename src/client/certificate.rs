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

impl Entry {
    /// Whether this word stays although another of the same replica came after it: committed above tentative, tentative
    /// of a later view, or of a later position in the same view, above an earlier one.
    ///
    /// But what a session-open was refused with, or that a session is gone, nobody keeps: asked again, it is agreed
    /// again, at a later position. There a tentative word is news, for the others speak of that position and no longer
    /// of the one that was committed. Of an earlier view it is a late one that was rolled back.
    fn outranks(&self, kind: ReplyKind, view: View, position: Position) -> bool {
        match (self.kind, kind) {
            (ReplyKind::Committed, ReplyKind::Tentative | ReplyKind::ReadOnly) => {
                view < self.view || position <= self.position
            }
            (ReplyKind::Tentative, ReplyKind::Tentative) => (view, position) < (self.view, self.position),
            (ReplyKind::ReadOnly, ReplyKind::ReadOnly) => view < self.view,
            (ReplyKind::Tentative, ReplyKind::ReadOnly) => true,
            (_, ReplyKind::Committed) | (ReplyKind::ReadOnly, ReplyKind::Tentative) => false,
        }
    }
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
        let digest = self.digest_of(outcome);
        self.size().replicas().filter(|&r| self.entry(r).is_some_and(|e| e.digest != digest)).collect()
    }

    /// The digest of a whole outcome. Most replies repeat one that is known: comparing is cheaper than hashing.
    fn digest_of(&self, outcome: &Outcome) -> Digest {
        let known = self.entries.iter().flatten().find(|e| e.outcome.as_ref() == Some(outcome));
        known.map_or_else(|| outcome.digest(), |e| e.digest)
    }

    fn entry(&self, replica: ReplicaId) -> Option<&Entry> {
        self.entries.get(usize::from(replica.0)).and_then(Option::as_ref)
    }

    /// Takes a reply of `from`, whose envelope names `view`. A replica's later word replaces its earlier one, unless
    /// that [outranks](Entry::outranks) it. Of the whole result at most `room` bytes are kept.
    pub(crate) fn insert(&mut self, from: ReplicaId, view: View, reply: ReplyEntry, room: usize) -> Inserted {
        let ReplyEntry { kind, position, result, .. } = reply;
        let digest = match &result {
            ReplyResult::Full(outcome) => self.digest_of(outcome),
            ReplyResult::Digest(digest) => *digest,
        };
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
            Some(old) if old.outranks(kind, view, position) => Inserted::Repeated,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::SessionId;

    const VIEWS: u64 = 4;
    const TRUTH: u8 = 0;

    /// One reply: who, in which view, tentative or committed, which value (result and position), whole or digest.
    #[derive(Clone, Debug)]
    struct Said {
        from: usize,
        view: u64,
        kind: ReplyKind,
        value: u8,
        whole: bool,
    }

    fn outcome(value: u8) -> Outcome {
        Outcome::Done(vec![value % 3; 40].into())
    }

    /// Values 0 to 8: three results at three positions.
    fn position(value: u8) -> Position {
        Position(u64::from(value / 3))
    }

    fn insert(certificate: &mut Certificate, said: &Said) -> Verdict {
        let result = match said.whole {
            true => ReplyResult::Full(outcome(said.value)),
            false => ReplyResult::Digest(outcome(said.value).digest()),
        };
        let (kind, position) = (said.kind, position(said.value));
        let reply = ReplyEntry { session: SessionId(1), t: 1, kind, position, result };
        certificate.insert(ReplicaId(said.from as u8), View(said.view), reply, usize::MAX);
        certificate.verdict()
    }

    fn said(n: usize, kinds: &'static [ReplyKind]) -> impl Strategy<Value = Said> {
        (0..n, 0..VIEWS, prop::sample::select(kinds), 0..9u8, any::<bool>())
            .prop_map(|(from, view, kind, value, whole)| Said { from, view, kind, value, whole })
    }

    const ORDERED: &[ReplyKind] = &[ReplyKind::Tentative, ReplyKind::Committed];

    proptest! {
        /// What correct replicas can say: committed, the truth alone; tentative, one value for each view, which is the
        /// truth unless at most f correct replicas prepared it (else a new view keeps it). Liars, up to f, say
        /// anything. In whatever order, however often, with whatever lost: only the truth is ever accepted, and once
        /// every correct replica has committed, it is.
        #[test]
        fn p05_no_schedule_and_no_lie_makes_a_wrong_acceptance(
            f in 1usize..=2,
            weak in any::<bool>(),
            tentative in prop::collection::vec((0..9u8, 0..7usize), VIEWS as usize),
            schedule in prop::collection::vec(said(7, ORDERED), 0..60),
        ) {
            let size = ClusterSize::tolerating(f).unwrap();
            let mut certificate = Certificate::new(size, Rule::Ordered { weak });
            for mut said in schedule {
                said.from %= size.n();
                let correct = said.from >= f;
                if correct {
                    let (value, first) = tentative[said.view as usize];
                    let prepared = value == TRUTH || (said.from + first) % (size.n() - f) < f;
                    match said.kind {
                        ReplyKind::Tentative if prepared => said.value = value,
                        ReplyKind::Tentative => continue,
                        ReplyKind::Committed | ReplyKind::ReadOnly => said.value = TRUTH,
                    }
                }
                if let Verdict::Accepted(accepted) = insert(&mut certificate, &said) {
                    prop_assert_eq!(accepted.outcome, outcome(TRUTH));
                    prop_assert_eq!(accepted.position, position(TRUTH));
                    prop_assert!(accepted.view.0 < VIEWS);
                }
            }
            let mut last = Verdict::Open;
            for from in f..size.n() {
                let said = Said { from, view: 0, kind: ReplyKind::Committed, value: TRUTH, whole: true };
                last = insert(&mut certificate, &said);
            }
            prop_assert!(matches!(last, Verdict::Accepted(_)), "{:?}", certificate);
        }

        /// What is not kept (a refusal, no session) is agreed anew whenever it is asked for, each time at a later
        /// position. Whatever was lost of earlier rounds, and whoever answered them tentatively or committed: the
        /// first round of which a quorum is heard is accepted.
        #[test]
        fn p05_an_answer_agreed_anew_is_not_kept_out_by_older_ones(
            f in 1usize..=2,
            weak in any::<bool>(),
            rounds in prop::collection::vec((0..3u64, prop::collection::vec((any::<bool>(), any::<bool>()), 7)), 0..20),
            last in prop::collection::vec(any::<bool>(), 7),
        ) {
            let size = ClusterSize::tolerating(f).unwrap();
            let mut certificate = Certificate::new(size, Rule::Ordered { weak });
            let refused = |last: u64| Outcome::Refused(crate::wire::Refusal::Counter { last });
            let mut say = |from: usize, view: u64, committed: bool, round: u64| {
                let kind = if committed { ReplyKind::Committed } else { ReplyKind::Tentative };
                let (position, result) = (Position(10 + round), ReplyResult::Full(refused(round)));
                let reply = ReplyEntry { session: SessionId::NONE, t: 1, kind, position, result };
                certificate.insert(ReplicaId(from as u8), View(view), reply, usize::MAX);
                certificate.verdict()
            };
            let mut view = 0;
            for (round, (views, answers)) in rounds.iter().enumerate() {
                view += views;
                let heard = answers.iter().enumerate().take(size.n()).filter(|(_, (lost, _))| !lost);
                for (from, &(_, committed)) in heard {
                    if let Verdict::Accepted(accepted) = say(from, view, committed, round as u64) {
                        prop_assert_eq!(accepted.outcome, refused(round as u64));
                        return Ok(());
                    }
                }
            }
            let mut verdict = Verdict::Open;
            for (from, &committed) in last.iter().enumerate().take(size.quorum()) {
                verdict = say(from, view, committed, 100);
            }
            prop_assert!(matches!(&verdict, Verdict::Accepted(a) if a.position == Position(110)), "{:?}", certificate);
        }

        /// A query's result was given by w correct replicas; a hopeless one cannot be saved.
        #[test]
        fn p06_a_query_is_answered_by_a_quorum_or_known_to_be_hopeless(
            schedule in prop::collection::vec(said(4, &[ReplyKind::ReadOnly]), 0..30),
        ) {
            let size = ClusterSize::tolerating(1).unwrap();
            let mut certificate = Certificate::new(size, Rule::ReadOnly);
            let mut says = [None; 4];
            for said in &schedule {
                let verdict = insert(&mut certificate, said);
                // A later word replaces one that is not of a later view.
                let slot: &mut Option<(u64, u8)> = &mut says[said.from];
                if slot.is_none_or(|(view, _)| said.view >= view) {
                    *slot = Some((said.view, said.value % 3));
                }
                let count = |value| says.iter().flatten().filter(|(_, v)| *v == value).count();
                let (best, missing) = ((0..3).map(count).max().unwrap_or(0), says.iter().filter(|s| s.is_none()).count());
                match verdict {
                    Verdict::Accepted(accepted) => {
                        let value = (0..3).find(|&v| outcome(v) == accepted.outcome).unwrap();
                        prop_assert!(count(value) >= 3);
                    }
                    Verdict::ResultMissing => prop_assert!(best >= 3),
                    Verdict::Hopeless => prop_assert!(best + missing < 3),
                    Verdict::Open => prop_assert!(best < 3 && best + missing >= 3),
                }
            }
        }
    }

    #[test]
    fn p08_the_view_is_the_f_plus_first_highest() {
        let size = ClusterSize::tolerating(2).unwrap();
        let mut certificate = Certificate::new(size, Rule::Ordered { weak: false });
        let mut verdict = Verdict::Open;
        for (from, view) in [900, 3, 800, 7, 5].into_iter().enumerate() {
            verdict = insert(&mut certificate, &Said { from, view, kind: ReplyKind::Committed, value: 0, whole: true });
        }
        let Verdict::Accepted(accepted) = verdict else { panic!() };
        assert_eq!(accepted.view, View(7), "two of the three highest may be lies");
    }
}
