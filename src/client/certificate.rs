//! Reply certificates: when replies prove a result (P5 to P8).
//!
//! One entry per replica and request, whatever a replica sends (P44). Pure counting; who sent a reply was proved
//! before. Nearly always all say the same: then one word is kept, and who said it.

use super::completion::{Member, Tally};
use crate::types::{ClusterSize, Digest, Position, ReplicaId, ReplicaSet, View};
use crate::wire::{Outcome, ReplyKind, ReplyView, ResultView};

/// What proves a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rule {
    /// q: tentative of one view and committed of any, equal in digest and position. With `weak`, w committed too: only
    /// where the read-only optimisation is off (P5).
    Ordered {
        /// w committed replies are enough.
        weak: bool,
    },
    /// q read-only, equal in digest: of committed states, or, with tentative ones, of one view and position (P6).
    ReadOnly,
}

/// One replica's word.
#[derive(Clone, Copy, Debug)]
struct Entry {
    view: View,
    kind: ReplyKind,
    position: Position,
    /// Which value it names.
    value: usize,
    /// This replica sent the whole of the value first.
    gave: bool,
}

/// A result that was named: whole, by its digest, or both. Small results are always whole (P7), so most digests are never
/// computed.
#[derive(Clone, Debug, Default)]
struct Value {
    whole: Option<Outcome>,
    digest: Option<Digest>,
}

impl Value {
    fn digest(&mut self) -> Option<Digest> {
        self.digest = self.digest.or_else(|| self.whole.as_ref().map(Outcome::digest));
        self.digest
    }
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
            (ReplyKind::Committed, ReplyKind::Tentative | ReplyKind::ReadOnly | ReplyKind::TentativeRead) => {
                view < self.view || position <= self.position
            }
            (ReplyKind::Tentative, ReplyKind::Tentative) => (view, position) < (self.view, self.position),
            (ReplyKind::ReadOnly, ReplyKind::ReadOnly) => view < self.view,
            (ReplyKind::ReadOnly, ReplyKind::TentativeRead) => (view, position) <= (self.view, self.position),
            (ReplyKind::TentativeRead, ReplyKind::TentativeRead) => (view, position) < (self.view, self.position),
            (ReplyKind::Tentative, ReplyKind::ReadOnly | ReplyKind::TentativeRead) => true,
            (_, ReplyKind::Committed)
            | (ReplyKind::ReadOnly | ReplyKind::TentativeRead, ReplyKind::Tentative)
            | (ReplyKind::TentativeRead, ReplyKind::ReadOnly) => false,
        }
    }
}

/// The one word of all who replied so far.
#[derive(Clone, Debug)]
struct Alike {
    view: View,
    kind: ReplyKind,
    position: Position,
    said: ReplicaSet,
    /// Who sent the whole of the value first.
    gave: Option<ReplicaId>,
    value: Value,
}

impl Alike {
    fn entry(&self, replica: ReplicaId) -> Entry {
        let Alike { view, kind, position, .. } = *self;
        Entry { view, kind, position, value: 0, gave: self.gave == Some(replica) }
    }
}

/// The replies to one request.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    size: ClusterSize,
    rule: Rule,
    /// While all replies say the same; there are no entries and values then.
    alike: Option<Alike>,
    /// From when they do not: one for each replica.
    entries: Vec<Option<Entry>>,
    /// Each is named by an entry, or free.
    values: Vec<Value>,
}

/// What the replies amount to.
#[derive(Clone, Copy, Debug)]
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

/// A proved result; [`Certificate::take`] hands it over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    value: usize,
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
        Certificate { size, rule, alike: None, entries: Vec::new(), values: Vec::new() }
    }

    /// What proves a result.
    pub(crate) fn rule(&self) -> Rule {
        self.rule
    }

    /// Bytes of uncertified results held for `replica`.
    pub(crate) fn held(&self, replica: ReplicaId) -> usize {
        match self.entry(replica).filter(|e| e.gave).and_then(|e| self.value(e).whole.as_ref()) {
            Some(Outcome::Done(bytes)) => bytes.len(),
            Some(Outcome::Gone | Outcome::NoSession | Outcome::Refused(_)) | None => 0,
        }
    }

    /// The replicas that something is held for.
    pub(crate) fn givers(&self) -> ReplicaSet {
        match &self.alike {
            Some(alike) => alike.gave.into_iter().collect(),
            None => self.size.replicas().filter(|&r| self.entry(r).is_some_and(|e| e.gave)).collect(),
        }
    }

    /// The replicas that replied.
    pub(crate) fn heard(&self) -> ReplicaSet {
        match &self.alike {
            Some(alike) => alike.said,
            None => self.size.replicas().filter(|&r| self.has(r)).collect(),
        }
    }

    /// Whether `replica` replied.
    pub(crate) fn has(&self, replica: ReplicaId) -> bool {
        self.entry(replica).is_some()
    }

    /// The replicas whose replies say something else than what was accepted.
    pub(crate) fn contradicting(&self, accepted: &Accepted) -> ReplicaSet {
        if self.alike.is_some() {
            return ReplicaSet::EMPTY;
        }
        self.size.replicas().filter(|&r| self.entry(r).is_some_and(|e| e.value != accepted.value)).collect()
    }

    /// Hands over what was accepted. Nothing is held for anyone then.
    pub(crate) fn take(&mut self, accepted: &Accepted) -> Outcome {
        if let Some(alike) = &mut self.alike {
            alike.gave = None;
            return alike.value.whole.take().expect("accepted with its whole result");
        }
        let outcome = self.values[accepted.value].whole.take().expect("accepted with its whole result");
        for entry in self.entries.iter_mut().flatten() {
            entry.gave = false;
        }
        self.values.iter_mut().for_each(|value| value.whole = None);
        outcome
    }

    fn entry(&self, replica: ReplicaId) -> Option<Entry> {
        match &self.alike {
            Some(alike) => alike.said.contains(replica).then(|| alike.entry(replica)),
            None => self.entries.get(usize::from(replica.0)).copied().flatten(),
        }
    }

    fn words(&self) -> impl Iterator<Item = Entry> {
        self.size.replicas().filter_map(|replica| self.entry(replica))
    }

    /// The value that `entry` names.
    fn value(&self, entry: Entry) -> &Value {
        self.alike.as_ref().map_or_else(|| &self.values[entry.value], |alike| &alike.value)
    }

    /// An entry for each replica that replied.
    fn spread(&mut self) {
        if self.entries.is_empty() {
            self.entries = vec![None; self.size.n()];
        }
        let Some(alike) = self.alike.take() else { return };
        for replica in alike.said.iter() {
            self.entries[usize::from(replica.0)] = Some(alike.entry(replica));
        }
        self.values = vec![alike.value];
    }

    /// The value that says the same as `result`. Comparing is cheaper than hashing.
    fn value_of(&mut self, result: &ResultView<'_>) -> Option<usize> {
        let whole = |value: &Value| value.whole.as_ref().is_some_and(|outcome| result.is_whole(outcome));
        if let Some(same) = self.values.iter().position(whole) {
            return Some(same);
        }
        // Two whole results that differ need no digests; one that is only known by its digest does.
        let is_digest = matches!(result, ResultView::Digest(_));
        let comparable = |value: &Value| is_digest || value.whole.is_none() && value.digest.is_some();
        if !self.values.iter().any(comparable) {
            return None;
        }
        let digest = Some(result.digest());
        self.values.iter_mut().position(|value| comparable(value) && value.digest() == digest)
    }

    /// A new value. At most one for each replica: those that nobody names any more are used again.
    fn new_value(&mut self, value: Value) -> usize {
        let named = |i: usize| self.entries.iter().flatten().any(|e| e.value == i);
        match (0..self.values.len()).find(|&i| !named(i)) {
            Some(free) => {
                self.values[free] = value;
                free
            }
            None => {
                self.values.push(value);
                self.values.len() - 1
            }
        }
    }

    /// Takes a reply of `from`, whose envelope names `view`. A replica's later word replaces its earlier one, unless
    /// that [outranks](Entry::outranks) it. Of the whole result at most `room` bytes are kept.
    pub(crate) fn insert(&mut self, from: ReplicaId, view: View, reply: &ReplyView<'_>, room: usize) -> Inserted {
        if usize::from(from.0) >= self.size.n() {
            return Inserted::Repeated;
        }
        if self.entries.is_empty()
            && let Some(inserted) = self.insert_alike(from, view, reply, room)
        {
            return inserted;
        }
        self.spread();
        let ReplyView { kind, position, result, .. } = reply;
        let (kind, position) = (*kind, *position);
        let old = self.entries[usize::from(from.0)];
        if old.is_some_and(|old| old.outranks(kind, view, position)) {
            return Inserted::Repeated;
        }
        let same = self.value_of(result);
        let known = same.is_some_and(|value| self.values[value].whole.is_some());
        // A quorum that only waits for this result takes it however full the share is: it leaves at once.
        let wanted = || self.quorum().is_some_and(|e| Some(e.value) == same);
        let whole = if known { None } else { keep(result, room, wanted) };
        let (gave, news) = (whole.is_some(), whole.is_some());
        if let Some(old) = old
            && Some(old.value) == same
        {
            let news = news || (old.kind, old.view, old.position) != (kind, view, position);
            self.values[old.value].whole = self.values[old.value].whole.take().or(whole);
            let gave = old.gave || gave;
            self.entries[usize::from(from.0)] = Some(Entry { view, kind, position, value: old.value, gave });
            return if news { Inserted::Fresh } else { Inserted::Repeated };
        }
        if let Some(Entry { value, gave: true, .. }) = old {
            // Its share goes with its word; the others named the same by what it hashes to.
            self.values[value].digest();
            self.values[value].whole = None;
        }
        self.entries[usize::from(from.0)] = None;
        let value = match same {
            Some(value) => {
                self.values[value].whole = self.values[value].whole.take().or(whole);
                value
            }
            None => {
                let digest = whole.is_none().then(|| result.digest());
                self.new_value(Value { whole, digest })
            }
        };
        self.entries[usize::from(from.0)] = Some(Entry { view, kind, position, value, gave });
        Inserted::Fresh
    }

    /// The same, while all say the same. `None`, and nothing happened, if this is another word.
    fn insert_alike(&mut self, from: ReplicaId, view: View, reply: &ReplyView<'_>, room: usize) -> Option<Inserted> {
        let ReplyView { kind, position, result, .. } = reply;
        let misses_whole = self.alike.as_ref().is_some_and(|alike| alike.value.whole.is_none());
        let wanted = misses_whole && self.quorum().is_some();
        let Some(alike) = &mut self.alike else {
            let whole = keep(result, room, || false);
            let (gave, digest) = (whole.is_some().then_some(from), whole.is_none().then(|| result.digest()));
            let (value, said) = (Value { whole, digest }, ReplicaSet::from_iter([from]));
            self.alike = Some(Alike { view, kind: *kind, position: *position, said, gave, value });
            return Some(Inserted::Fresh);
        };
        if (alike.view, alike.kind, alike.position) != (view, *kind, *position) {
            return None;
        }
        let same = match (&alike.value.whole, result) {
            // Comparing is cheaper than hashing.
            (Some(whole), result) if !matches!(result, ResultView::Digest(_)) => result.is_whole(whole),
            (_, result) => alike.value.digest() == Some(result.digest()),
        };
        if !same {
            return None;
        }
        let mut news = alike.said.insert(from);
        if misses_whole && let Some(whole) = keep(result, room, || wanted) {
            (alike.value.whole, alike.gave, news) = (Some(whole), Some(from), true);
        }
        Some(if news { Inserted::Fresh } else { Inserted::Repeated })
    }

    /// The fewest replies that can prove a result.
    fn need(&self) -> usize {
        match self.rule {
            Rule::Ordered { weak: true } => self.size.weak_quorum(),
            Rule::Ordered { weak: false } | Rule::ReadOnly => self.size.quorum(),
        }
    }

    /// A reply that counts together with enough others.
    fn quorum(&self) -> Option<Entry> {
        let size = self.size;
        if let Some(alike) = &self.alike {
            let need = if alike.kind == ReplyKind::Committed { self.need() } else { size.quorum() };
            return alike.said.iter().next().filter(|_| alike.said.len() >= need).map(|first| alike.entry(first));
        }
        if self.count(|_| true) < self.need() {
            return None;
        }
        self.words().find(|e| {
            let committed = || self.count(|o| same(o, e) && o.kind == ReplyKind::Committed);
            let weak = self.rule == Rule::Ordered { weak: true };
            self.count(|o| self.count_together(o, e)) >= size.quorum() || weak && committed() >= size.weak_quorum()
        })
    }

    /// Whether `o` counts together with `e`: tentative replies only in one view. Reads of a tentative state prove that it
    /// stays only if q replicas have it; a committed state of another view or position may be one without it.
    fn count_together(&self, o: &Entry, e: &Entry) -> bool {
        match self.rule {
            Rule::ReadOnly if e.kind == ReplyKind::TentativeRead => same(o, e) && o.view == e.view,
            Rule::ReadOnly => o.value == e.value && o.kind != ReplyKind::TentativeRead,
            Rule::Ordered { .. } => same(o, e) && (o.kind == ReplyKind::Committed || o.view == e.view),
        }
    }

    fn count(&self, counts: impl Fn(&Entry) -> bool) -> usize {
        self.words().filter(|e| counts(e)).count()
    }

    /// What the replies amount to.
    pub(crate) fn verdict(&self) -> Verdict {
        let Some(quorum) = self.quorum() else {
            return if self.hopeless() { Verdict::Hopeless } else { Verdict::Open };
        };
        let (value, position, read) = (quorum.value, quorum.position, quorum.kind);
        if self.value(quorum).whole.is_none() {
            return Verdict::ResultMissing;
        }
        if let Some(alike) = &self.alike {
            let kind = match self.rule {
                Rule::Ordered { .. } if read != ReplyKind::Committed => ReplyKind::Tentative,
                Rule::Ordered { .. } | Rule::ReadOnly => read,
            };
            return Verdict::Accepted(Accepted { value, position, kind, view: alike.view, members: alike.said });
        }
        let counts = |r: &ReplicaId| self.entry(*r).is_some_and(|o| self.count_together(&o, &quorum));
        let members: ReplicaSet = self.size.replicas().filter(counts).collect();
        let words = || members.iter().filter_map(|r| self.entry(r));
        let kind = match self.rule {
            Rule::ReadOnly => read,
            Rule::Ordered { .. } if words().all(|e| e.kind == ReplyKind::Committed) => ReplyKind::Committed,
            Rule::Ordered { .. } => ReplyKind::Tentative,
        };
        let position = match self.rule {
            Rule::ReadOnly => self.vouched(members, |e| e.position).unwrap_or(position),
            Rule::Ordered { .. } => position,
        };
        Verdict::Accepted(Accepted {
            value,
            position,
            kind,
            view: self.vouched(members, |e| e.view).unwrap_or_default(),
            members,
        })
    }

    /// P8: the (f+1)-th highest view, or position, that the members name. One of the f+1 highest is a correct replica's,
    /// so the least of them is no higher than what a correct replica named.
    fn vouched<T: Ord + Copy>(&self, members: ReplicaSet, named: impl Fn(Entry) -> T) -> Option<T> {
        let all = || members.iter().filter_map(|r| self.entry(r)).map(&named);
        let reached = |one: &T| all().filter(|other| other >= one).count() > self.size.f();
        all().filter(reached).max()
    }

    fn hopeless(&self) -> bool {
        // An ordered reply may still change (tentative to committed, one view to the next).
        self.rule == Rule::ReadOnly && !self.can_be_proved_by(self.size.replicas().collect())
    }

    /// Whether the replies that are missing of `asked` could make a quorum.
    pub(crate) fn can_be_proved_by(&self, asked: ReplicaSet) -> bool {
        let missing = asked.without(self.heard()).len();
        self.best() + missing >= self.size.quorum()
    }

    /// The most replies that agree.
    fn best(&self) -> usize {
        if let Some(alike) = &self.alike {
            return alike.said.len();
        }
        self.words().map(|e| self.count(|o| self.count_together(o, &e))).max().unwrap_or(0)
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
        let size = self.size;
        let heard = self.heard();
        let matched = self.best();
        Tally {
            replicas: size.n(),
            need: self.need(),
            matched,
            differing: heard.len() - matched,
            silent: size.replicas().filter(|&r| !heard.contains(r)).collect(),
            unauthentic,
            result_missing: matches!(self.verdict(), Verdict::ResultMissing),
        }
    }
}

/// What is kept of `result`, of which there is `room` for so many bytes, or which is `wanted` at once.
fn keep(result: &ResultView<'_>, room: usize, wanted: impl Fn() -> bool) -> Option<Outcome> {
    match result {
        ResultView::Done(bytes, _) if bytes.len() > room && !wanted() => None,
        other => other.to_outcome(),
    }
}

/// Equal in what must be equal between ordered replies.
fn same(a: &Entry, b: &Entry) -> bool {
    a.value == b.value && a.position == b.position
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::SessionId;
    use crate::wire::{ReplyEntry, ReplyResult};

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

    fn reply(said: &Said) -> ReplyEntry {
        let result = match said.whole {
            true => ReplyResult::Full(outcome(said.value)),
            false => ReplyResult::Digest(outcome(said.value).digest()),
        };
        ReplyEntry { session: SessionId(1), t: 1, kind: said.kind, position: position(said.value), result }
    }

    fn insert(certificate: &mut Certificate, said: &Said) -> Verdict {
        certificate.insert(ReplicaId(said.from as u8), View(said.view), &reply(said).as_view(), usize::MAX);
        certificate.verdict()
    }

    fn said(n: usize, kinds: &'static [ReplyKind]) -> impl Strategy<Value = Said> {
        (0..n, 0..VIEWS, prop::sample::select(kinds), 0..9u8, any::<bool>())
            .prop_map(|(from, view, kind, value, whole)| Said { from, view, kind, value, whole })
    }

    const ALL: &[ReplyKind] =
        &[ReplyKind::Tentative, ReplyKind::Committed, ReplyKind::ReadOnly, ReplyKind::TentativeRead];
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
                        ReplyKind::Committed | ReplyKind::ReadOnly | ReplyKind::TentativeRead => said.value = TRUTH,
                    }
                }
                if let Verdict::Accepted(accepted) = insert(&mut certificate, &said) {
                    prop_assert_eq!(certificate.clone().take(&accepted), outcome(TRUTH));
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
                certificate.insert(ReplicaId(from as u8), View(view), &reply.as_view(), usize::MAX);
                certificate.verdict()
            };
            let mut view = 0;
            for (round, (views, answers)) in rounds.iter().enumerate() {
                view += views;
                let heard = answers.iter().enumerate().take(size.n()).filter(|(_, (lost, _))| !lost);
                for (from, &(_, committed)) in heard {
                    if let Verdict::Accepted(accepted) = say(from, view, committed, round as u64) {
                        prop_assert_eq!(certificate.take(&accepted), refused(round as u64));
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
                        let accepted = certificate.clone().take(&accepted);
                        let value = (0..3).find(|&v| outcome(v) == accepted).unwrap();
                        prop_assert!(count(value) >= 3);
                    }
                    Verdict::ResultMissing => prop_assert!(best >= 3),
                    Verdict::Hopeless => prop_assert!(best + missing < 3),
                    Verdict::Open => prop_assert!(best < 3 && best + missing >= 3),
                }
            }
        }
    }

    proptest! {
        /// One word and who said it, or an entry for each: what comes of the replies is the same.
        #[test]
        fn p05_p06_one_word_of_all_is_as_good_as_one_of_each(
            rule in prop::sample::select(&[Rule::Ordered { weak: false }, Rule::Ordered { weak: true }, Rule::ReadOnly]),
            odd in 0..20u8,
            schedule in prop::collection::vec((said(4, ALL), 0..20u8, any::<bool>()), 0..12),
            first in said(4, ALL),
        ) {
            let size = ClusterSize::of(4).unwrap();
            let (mut alike, mut each) = (Certificate::new(size, rule), Certificate::new(size, rule));
            each.spread();
            for (said, die, is_small) in schedule {
                // Most say what the first did.
                let said = if die < odd { said } else { Said { from: said.from, whole: said.whole, ..first.clone() } };
                let room = if is_small { 10 } else { usize::MAX };
                let reply = reply(&said);
                let (from, view) = (ReplicaId(said.from as u8), View(said.view));
                let inserted = [&mut alike, &mut each].map(|c| c.insert(from, view, &reply.as_view(), room));
                prop_assert_eq!(inserted[0], inserted[1]);
                let verdicts = [&alike, &each].map(Certificate::verdict);
                prop_assert_eq!(format!("{:?}", verdicts[0]), format!("{:?}", verdicts[1]));
                let of = |c: &Certificate| {
                    let all = size.replicas().collect();
                    let held: Vec<usize> = size.replicas().map(|r| c.held(r)).collect();
                    (c.evidence(all), c.tally(0), c.givers(), held, c.can_be_proved_by(all))
                };
                prop_assert_eq!(format!("{:?}", of(&alike)), format!("{:?}", of(&each)));
                if let [Verdict::Accepted(accepted), _] = verdicts {
                    prop_assert_eq!(alike.contradicting(&accepted), each.contradicting(&accepted));
                    prop_assert_eq!(alike.take(&accepted), each.take(&accepted));
                    prop_assert_eq!(alike.givers(), ReplicaSet::EMPTY);
                    break;
                }
            }
        }
    }

    #[test]
    fn p06_tentative_reads_count_in_one_view_and_position_only() {
        let (tentative, committed) = (ReplyKind::TentativeRead, ReplyKind::ReadOnly);
        // Values 0, 3 and 6 are one result at three positions.
        let heard = |said: &[(usize, u64, ReplyKind, u8)]| {
            let mut certificate = Certificate::new(ClusterSize::of(4).unwrap(), Rule::ReadOnly);
            let mut last = Verdict::Open;
            for &(from, view, kind, value) in said {
                last = insert(&mut certificate, &Said { from, view, kind, value, whole: true });
            }
            last
        };
        let is_open = |said: &[(usize, u64, ReplyKind, u8)]| matches!(heard(said), Verdict::Open);
        let accepted = |said: &[(usize, u64, ReplyKind, u8)]| match heard(said) {
            Verdict::Accepted(accepted) => accepted.members.len(),
            _ => 0,
        };
        assert_eq!(accepted(&[(0, 1, tentative, 3), (1, 1, tentative, 3), (2, 1, tentative, 3)]), 3);
        assert_eq!(accepted(&[(0, 1, tentative, 3), (1, 1, committed, 3), (2, 1, tentative, 3)]), 3, "it committed");
        assert_eq!(accepted(&[(0, 1, committed, 0), (1, 2, committed, 3), (2, 1, committed, 6)]), 3, "any positions");
        for other in [(2, 2, tentative, 3), (2, 1, tentative, 6), (2, 2, committed, 3), (2, 1, committed, 6)] {
            assert!(is_open(&[(0, 1, tentative, 3), (1, 1, tentative, 3), other]), "{other:?}");
            assert!(is_open(&[other, (0, 1, tentative, 3), (1, 1, committed, 3)]), "{other:?}");
        }
        assert!(is_open(&[(0, 1, committed, 3), (1, 2, committed, 3), (2, 1, tentative, 3)]), "two views' states");
        let two = [(0, 1, tentative, 3), (1, 1, tentative, 3), (2, 1, tentative, 6), (3, 1, tentative, 6)];
        assert!(matches!(heard(&two), Verdict::Hopeless));
        // A replica's later word replaces its earlier one, and a committed state's a tentative one's.
        assert_eq!(
            accepted(&[(0, 1, tentative, 0), (1, 1, tentative, 3), (2, 1, tentative, 3), (0, 1, tentative, 3)]),
            3
        );
        let stays = [
            (0, 1, committed, 3),
            (0, 1, tentative, 3),
            (0, 1, tentative, 0),
            (1, 1, committed, 0),
            (2, 1, committed, 6),
        ];
        assert_eq!(accepted(&stays), 3);
    }

    #[test]
    fn p06_one_liar_cannot_say_that_a_query_was_answered_later_than_it_was() {
        let mut certificate = Certificate::new(ClusterSize::of(4).unwrap(), Rule::ReadOnly);
        let mut verdict = Verdict::Open;
        for (from, at) in [(0, 7), (1, u64::MAX), (2, 5)] {
            let result = ReplyResult::Full(outcome(TRUTH));
            let (kind, position) = (ReplyKind::ReadOnly, Position(at));
            let reply = ReplyEntry { session: SessionId::NONE, t: 1, kind, position, result };
            certificate.insert(ReplicaId(from), View(0), &reply.as_view(), usize::MAX);
            verdict = certificate.verdict();
        }
        let Verdict::Accepted(accepted) = verdict else { panic!("{verdict:?}") };
        assert_eq!(accepted.position, Position(7));
    }

    #[test]
    fn p05_members_are_those_whose_replies_count() {
        // Values 1 and 3 are another result, and the same at another position.
        for (view, value) in [(1, 1), (1, 3), (2, 0)] {
            let mut certificate = Certificate::new(ClusterSize::of(4).unwrap(), Rule::Ordered { weak: false });
            let mut verdict = Verdict::Open;
            for (from, view, value) in [(3, view, value), (0, 1, 0), (1, 1, 0), (2, 1, 0)] {
                verdict =
                    insert(&mut certificate, &Said { from, view, kind: ReplyKind::Tentative, value, whole: true });
            }
            let Verdict::Accepted(accepted) = verdict else { panic!() };
            assert_eq!(accepted.members, ReplicaSet::from_iter([0, 1, 2].map(ReplicaId)), "{view} {value}");
        }
    }

    #[test]
    fn p05_p07_a_replica_may_say_more_in_a_view_and_turn_to_a_later_one() {
        let mut certificate = Certificate::new(ClusterSize::of(4).unwrap(), Rule::Ordered { weak: false });
        let mut say = |from, view, value, whole| {
            insert(&mut certificate, &Said { from, view, kind: ReplyKind::Tentative, value, whole })
        };
        for from in 0..3 {
            say(from, 1, 0, false);
        }
        assert!(matches!(say(2, 0, 1, true), Verdict::ResultMissing), "an earlier view comes late");
        assert!(matches!(say(2, 1, 0, true), Verdict::Accepted(_)), "the whole of what it named by its digest");
        assert!(matches!(say(2, 2, 1, true), Verdict::Open), "a later view");
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
