//! An abstract PBFT over a few sequence numbers: correct replicas keep P12, P14, P15 and P27; what the network and the
//! liars do is the caller's choice. Views follow each other; what a correct replica did in one, it did before its
//! VIEW-CHANGE for the next.
//!
//! A view needs no order of events: which pre-prepares a correct replica accepts, and how far it gets with each before
//! it leaves, is chosen freely; it got as far as `Reach` allows if enough others had sent it what that takes, liars
//! having sent everything to everybody.

use std::collections::BTreeSet;

use super::*;

/// P27's and P12's rules that the counterexamples take away.
#[derive(Clone, Copy)]
pub struct Keeping {
    /// Q keeps only the last so many digests for each n.
    pub digests_max: usize,
    /// P12, last sentence: into a free slot only what Q holds already, or anything if Q is empty.
    pub one_fresh: bool,
    /// P12, P45: votes lie in (h, h + L], h being one's own, though the new view's h* be higher: what lies above is not
    /// in one's next VIEW-CHANGE.
    pub own_window: bool,
    /// P33: a correct primary announces only what it pre-prepares itself: nothing chosen lies above its own window.
    pub primary_stands: bool,
}

pub const AS_WRITTEN: Keeping =
    Keeping { digests_max: usize::MAX, one_fresh: true, own_window: true, primary_stands: true };

/// How far a replica may get with one n in one view, if it has the messages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reach {
    Nothing,
    PrePrepared,
    Prepared,
    Committed,
}

/// A correct replica.
#[derive(Clone, Debug)]
pub struct Correct {
    /// What its next VIEW-CHANGE says.
    pub says: Member,
    /// What it knows to be committed, by its own certificates, by P51 or through a checkpoint.
    pub committed: BTreeSet<SeqNum>,
}

pub struct Model {
    pub size: ClusterSize,
    pub window: u64,
    pub keeping: Keeping,
    pub correct: BTreeMap<ReplicaId, Correct>,
    /// What any correct replica ever committed.
    pub committed: BTreeMap<SeqNum, Digest>,
}

impl Model {
    pub fn new(n: usize, liars: &[u8], window: u64, keeping: Keeping) -> Model {
        let correct = (0..n as u8).filter(|r| !liars.contains(r));
        let correct = correct.map(|r| (ReplicaId(r), Correct { says: member(r, 0), committed: BTreeSet::new() }));
        Model { size: size(n), window, keeping, correct: correct.collect(), committed: BTreeMap::new() }
    }

    pub fn liars(&self) -> usize {
        self.size.n() - self.correct.len()
    }

    /// The VIEW-CHANGEs of all correct replicas: P27, entries within (h, h + L] only.
    pub fn view_changes(&self) -> Vec<Member> {
        self.correct.values().map(|replica| self.within_window(&replica.says)).collect()
    }

    pub fn view_changes_of(&self, replicas: &[u8]) -> Vec<Member> {
        replicas.iter().map(|r| self.within_window(&self.correct[&ReplicaId(*r)].says)).collect()
    }

    fn within_window(&self, says: &Member) -> Member {
        let mut says = says.clone();
        let high = SeqNum(says.stable.0 + self.window);
        says.prepared.retain(|n, _| *n <= high);
        says.pre_prepared.retain(|n, _| *n <= high);
        says
    }

    /// One view. `installed` are the correct replicas that accepted a new-view, each with its decision (a liar may
    /// have sent different ones). A correct primary has one proposal for each n; a lying one has one for each receiver.
    pub fn run_view(
        &mut self,
        view: u64,
        installed: &BTreeMap<ReplicaId, Decision>,
        propose: &mut dyn FnMut(ReplicaId, SeqNum) -> Option<Digest>,
        reach: &mut dyn FnMut(ReplicaId, SeqNum) -> Reach,
    ) {
        let primary = self.size.primary(View(view));
        if let (Some(correct), Some(decision)) = (self.correct.get(&primary), installed.get(&primary))
            && self.keeping.primary_stands
            && decision.last().0 > correct.says.stable.0 + self.window
        {
            return;
        }
        let last = installed.values().map(|d| d.stable.0 + self.window).max().unwrap_or(0);
        for n in (1..=last).map(SeqNum) {
            let of_primary = self.correct.contains_key(&primary).then(|| {
                let decision = installed.get(&primary)?;
                self.accepts(primary, decision, n, propose(primary, n))
            });
            let mut accepted: BTreeMap<ReplicaId, Digest> = BTreeMap::new();
            for (replica, decision) in installed {
                let proposed = match of_primary {
                    Some(proposed) => proposed,
                    None => propose(*replica, n),
                };
                if *replica != primary && reach(*replica, n) == Reach::Nothing {
                    continue;
                }
                if let Some(digest) = self.accepts(*replica, decision, n, proposed) {
                    accepted.insert(*replica, digest);
                    self.note_pre_prepared(*replica, n, digest, View(view));
                }
            }
            self.vote(view, n, primary, &accepted, reach);
        }
    }

    /// P12: what `replica` pre-prepares for `n`, if anything.
    fn accepts(&self, replica: ReplicaId, decision: &Decision, n: SeqNum, proposed: Option<Digest>) -> Option<Digest> {
        let says = &self.correct[&replica].says;
        let low = says.stable.max(decision.stable);
        let high = if self.keeping.own_window { says.stable.0 } else { low.0 } + self.window;
        if n <= low || n.0 > high {
            return None;
        }
        if let Some(chosen) = decision.at(n) {
            return Some(chosen.digest());
        }
        let holds = says.pre_prepared.get(&n);
        let fresh = |digest: &Digest| holds.is_none_or(|q| q.keys().all(|held| held == digest));
        proposed.filter(|digest| !self.keeping.one_fresh || fresh(digest))
    }

    fn note_pre_prepared(&mut self, replica: ReplicaId, n: SeqNum, digest: Digest, view: View) {
        let digests = self.correct.get_mut(&replica).unwrap().says.pre_prepared.entry(n).or_default();
        digests.insert(digest, view);
        if digests.len() > self.keeping.digests_max {
            let oldest = digests.iter().min_by_key(|(_, v)| **v).map(|(d, _)| *d).unwrap();
            digests.remove(&oldest);
        }
    }

    /// P15, with every liar voting for everything.
    fn vote(
        &mut self,
        view: u64,
        n: SeqNum,
        primary: ReplicaId,
        accepted: &BTreeMap<ReplicaId, Digest>,
        reach: &mut dyn FnMut(ReplicaId, SeqNum) -> Reach,
    ) {
        let lying_backups = self.liars() - usize::from(!self.correct.contains_key(&primary));
        let prepares =
            |digest: Digest| lying_backups + accepted.iter().filter(|(r, d)| **r != primary && **d == digest).count();
        let reached: BTreeMap<ReplicaId, Reach> = accepted.keys().map(|r| (*r, reach(*r, n))).collect();
        let prepared = |replica: &ReplicaId, digest: Digest| {
            reached[replica] >= Reach::Prepared && prepares(digest) >= 2 * self.size.f()
        };
        let prepared: BTreeMap<ReplicaId, Digest> =
            accepted.iter().filter(|(r, d)| prepared(r, **d)).map(|(r, d)| (*r, *d)).collect();
        for (replica, digest) in &prepared {
            self.correct.get_mut(replica).unwrap().says.prepared.insert(n, (*digest, View(view)));
        }
        for (replica, digest) in &prepared {
            let commits = self.liars() + prepared.values().filter(|d| *d == digest).count();
            if reached[replica] == Reach::Committed && commits >= self.size.quorum() {
                let first = *self.committed.entry(n).or_insert(*digest);
                assert_eq!(first, *digest, "two batches committed at {n}");
                self.correct.get_mut(replica).unwrap().committed.insert(n);
            }
        }
    }

    /// P51: `replica` learns that `n` is committed, from one that knows and a liar, or from w that know.
    pub fn learn(&mut self, replica: ReplicaId, n: SeqNum) {
        if self.committed.contains_key(&n) {
            self.correct.get_mut(&replica).unwrap().committed.insert(n);
        }
    }

    /// The largest n for which q signed checkpoints can exist: the correct among them executed everything up to it.
    pub fn certifiable(&self) -> SeqNum {
        let reached = |replica: &Correct| {
            let mut n = replica.says.stable;
            while replica.committed.contains(&n.next()) {
                n = n.next();
            }
            n
        };
        let mut reached: Vec<SeqNum> = self.correct.values().map(reached).collect();
        reached.sort_unstable_by_key(|n| std::cmp::Reverse(*n));
        reached[self.size.quorum() - self.liars() - 1]
    }

    /// `replica` takes a certified checkpoint as its low watermark, and forgets what lies below.
    pub fn mark_stable(&mut self, replica: ReplicaId, n: SeqNum) {
        assert!(n <= self.certifiable());
        let replica = self.correct.get_mut(&replica).unwrap();
        if n > replica.says.stable {
            replica.says.stable = n;
            replica.says.prepared.retain(|at, _| *at > n);
            replica.says.pre_prepared.retain(|at, _| *at > n);
        }
    }

    /// What must hold of a decision for the next view, whatever the set it was made of.
    pub fn check(&self, decision: &Decision) -> Result<(), String> {
        for (n, digest) in &self.committed {
            let chosen = decision.at(*n).map(Chosen::digest);
            if *n > decision.stable && chosen != Some(*digest) {
                return Err(format!("{n}: {digest:?} is committed, {chosen:?} was chosen"));
            }
        }
        Ok(())
    }
}
