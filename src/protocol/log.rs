//! The log: what is known of each sequence number between the watermarks, and a tail of stable entries for peers that
//! are behind.

use std::collections::VecDeque;
use std::sync::Arc;

use super::certificate::Certificate;
use crate::types::{Digest, SeqNum, Time, View};
use crate::wire::{Batch, PrePrepare};

/// What is known of one sequence number.
#[derive(Debug, Default)]
pub struct Slot {
    /// A pre-prepare that cannot be accepted yet: a pack is missing or not authentic for us, or its time has not come.
    pub candidate: Option<Candidate>,
    /// The last accepted pre-prepare: its view and digest. With `earlier` it is the Q entry (P27).
    pub pre_prepare: Option<(View, Digest)>,
    /// When it was accepted.
    pub accepted_at: Time,
    /// Other batches pre-prepared here in earlier views, each with the last of them. Never pruned (P27).
    pub earlier: Vec<(Digest, View)>,
    /// What the present view's NEW-VIEW chose for this place (P32).
    pub chosen: Option<Digest>,
    /// Bodies of all that is pre-prepared, prepared or committed here.
    bodies: Vec<Arc<Batch>>,
    /// PREPAREs of backups, our own included.
    pub prepares: Certificate<(View, Digest)>,
    /// COMMITs, our own included.
    pub commits: Certificate<(View, Digest)>,
    /// COMMITTEDs of other replicas (P51).
    pub vouched: Certificate<Digest>,
    /// Our own PREPARE (or, as primary, PRE-PREPARE) is durable and sent.
    pub voted: bool,
    /// Last prepared here, and in which view: the P entry (P27).
    pub prepared: Option<(View, Digest)>,
    /// Our own COMMIT is durable and sent, or held for a ride.
    pub commit_sent: bool,
    /// Committed-local, or accepted by P51.
    pub committed: Option<Digest>,
    /// When something of it was last sent.
    pub sent_at: Time,
    /// When its body was last asked for.
    pub asked_at: Time,
    /// How often it was.
    pub asked: usize,
    /// How often packs that the candidate names were asked for.
    pub asked_for_packs: u32,
}

impl Slot {
    /// As new, in the same memory.
    fn renewed(self) -> Slot {
        let Slot { mut earlier, mut bodies, mut prepares, mut commits, mut vouched, .. } = self;
        earlier.clear();
        bodies.clear();
        prepares.clear();
        commits.clear();
        vouched.clear();
        Slot { earlier, bodies, prepares, commits, vouched, ..Slot::default() }
    }

    /// The body with this digest, if it is held.
    pub fn body(&self, digest: Digest) -> Option<&Arc<Batch>> {
        self.bodies.iter().find(|batch| batch.digest() == digest)
    }

    /// All bodies that are held.
    pub fn bodies(&self) -> &[Arc<Batch>] {
        &self.bodies
    }

    fn hold(&mut self, batch: Arc<Batch>) {
        if self.body(batch.digest()).is_none() {
            self.bodies.push(batch);
        }
    }

    fn bytes(&self) -> usize {
        self.bodies.iter().map(|batch| batch.bytes()).sum()
    }

    /// The digest whose body is needed and not held.
    pub fn lacks(&self) -> Option<Digest> {
        self.committed.or(self.chosen).filter(|digest| self.body(*digest).is_none())
    }

    fn accept(&mut self, view: View, batch: Arc<Batch>) {
        let digest = batch.digest();
        if let Some((before, other)) = self.pre_prepare.replace((view, digest))
            && other != digest
        {
            self.earlier.push((other, before));
        }
        self.earlier.retain(|(d, _)| *d != digest);
        self.candidate = None;
        self.hold(batch);
    }

    /// Q: every digest pre-prepared here, with the latest view.
    pub fn pre_prepared(&self) -> impl Iterator<Item = (Digest, View)> + '_ {
        self.earlier.iter().copied().chain(self.pre_prepare.map(|(view, digest)| (digest, view)))
    }

    /// Leaves the view: what was said in it counts no more, what was accepted stays (P28).
    pub fn leave_view(&mut self) {
        self.candidate = None;
        self.chosen = None;
        self.prepares.clear();
        self.commits.clear();
        self.voted = false;
        self.commit_sent = false;
        self.sent_at = Time(0);
        self.asked_at = Time(0);
        self.asked_for_packs = 0;
    }
}

/// A pre-prepare on its way to be accepted.
#[derive(Debug)]
pub struct Candidate {
    /// As received.
    pub pre_prepare: PrePrepare,
    /// Its digest d.
    pub digest: Digest,
    /// Its inline packs whose own proof is not good for us.
    pub unproven: Vec<Digest>,
}

/// The slots. `retained < n <= stable` are kept for peers; `stable < n <= stable + window` are the log proper.
#[derive(Debug)]
pub struct Log {
    retained: SeqNum,
    stable: SeqNum,
    window: u64,
    bytes_max: usize,
    slots: VecDeque<Slot>,
    /// Of all bodies that are held.
    bytes: usize,
    /// Entries that are dropped, and what they hold not yet freed. A checkpoint interval of them at once would hold up
    /// requests for as long as it takes to agree on several: each new entry frees what two of them hold.
    dropped: Vec<Slot>,
    /// Their memory, for new entries: never more than there were at a time.
    spare: Vec<Slot>,
}

impl Log {
    /// An empty log above the initial state. Stable entries are kept for peers while it holds no more than `bytes_max`.
    pub fn new(window: u64, bytes_max: usize) -> Log {
        let (retained, stable) = (SeqNum(0), SeqNum(0));
        let (dropped, spare) = (Vec::new(), Vec::new());
        Log { retained, stable, window, bytes_max, slots: VecDeque::new(), bytes: 0, dropped, spare }
    }

    /// Bytes of all bodies that are held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a body for `n`, which must lie between the watermarks.
    pub fn hold(&mut self, n: SeqNum, batch: Arc<Batch>) {
        self.change(n, |slot| slot.hold(batch));
    }

    /// Accepts a pre-prepare: it becomes the latest of its digest in Q (P27).
    pub fn accept(&mut self, n: SeqNum, view: View, batch: Arc<Batch>) {
        self.change(n, |slot| slot.accept(view, batch));
    }

    fn change(&mut self, n: SeqNum, change: impl FnOnce(&mut Slot)) {
        let slot = self.slot(n);
        let before = slot.bytes();
        change(slot);
        let after = slot.bytes();
        self.bytes = self.bytes + after - before;
    }

    /// h, the low watermark: the last stable checkpoint.
    pub fn low(&self) -> SeqNum {
        self.stable
    }

    /// H, the high watermark.
    pub fn high(&self) -> SeqNum {
        SeqNum(self.stable.0 + self.window)
    }

    /// h < n <= H.
    pub fn in_window(&self, n: SeqNum) -> bool {
        self.low() < n && n <= self.high()
    }

    /// The largest n of which anything is known.
    pub fn last(&self) -> SeqNum {
        SeqNum(self.retained.0 + self.slots.len() as u64)
    }

    /// The slot of `n`, if anything is known of it.
    pub fn get(&self, n: SeqNum) -> Option<&Slot> {
        let index = n.0.checked_sub(self.retained.0 + 1)?;
        self.slots.get(usize::try_from(index).ok()?)
    }

    /// The slot of `n` if it exists.
    pub fn get_mut(&mut self, n: SeqNum) -> Option<&mut Slot> {
        let index = n.0.checked_sub(self.retained.0 + 1)?;
        self.slots.get_mut(usize::try_from(index).ok()?)
    }

    /// The slot of `n`, made if need be. `n` must lie between the watermarks: the caller has checked.
    pub fn slot(&mut self, n: SeqNum) -> &mut Slot {
        assert!(self.in_window(n), "{n} is outside ({}, {}]", self.low(), self.high());
        let index = (n.0 - self.retained.0 - 1) as usize;
        while self.slots.len() <= index {
            for _ in 0..2 {
                self.spare.extend(self.dropped.pop().map(Slot::renewed));
            }
            self.slots.push_back(self.spare.pop().unwrap_or_default());
        }
        &mut self.slots[index]
    }

    /// All slots in order.
    pub fn iter(&self) -> impl Iterator<Item = (SeqNum, &Slot)> {
        self.slots.iter().enumerate().map(|(i, slot)| (SeqNum(self.retained.0 + 1 + i as u64), slot))
    }

    /// All slots in order, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut()
    }

    /// Moves the low watermark to `n` (P24) and drops entries up to `keep_above`, but never more than a window of
    /// stable entries stays, nor any while too many bytes are held.
    pub fn mark_stable(&mut self, n: SeqNum, keep_above: SeqNum) {
        assert!(n >= self.stable, "watermarks never go back");
        self.stable = n;
        self.prune(keep_above);
    }

    /// Drops stable entries up to `keep_above` (P24).
    pub fn prune(&mut self, keep_above: SeqNum) {
        let least = SeqNum(self.stable.0.saturating_sub(self.window));
        let target = keep_above.min(self.stable).max(least);
        while self.retained < target || self.retained < self.stable && self.bytes > self.bytes_max {
            let Some(slot) = self.slots.pop_front() else { break };
            self.bytes -= slot.bytes();
            self.dropped.push(slot);
            self.retained = self.retained.next();
        }
        // Only a transfer jumps beyond what is known.
        self.retained = self.retained.max(target);
    }

    /// The largest n whose entry is dropped.
    pub fn retained(&self) -> SeqNum {
        self.retained
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Choice;

    #[test]
    fn p24_the_window_moves_with_the_stable_checkpoint() {
        let mut log = Log::new(8, usize::MAX);
        assert!(!log.in_window(SeqNum(0)) && log.in_window(SeqNum(1)) && log.in_window(SeqNum(8)));
        assert!(!log.in_window(SeqNum(9)));
        log.slot(SeqNum(8)).voted = true;
        log.mark_stable(SeqNum(4), SeqNum(4));
        assert_eq!((log.low(), log.high(), log.retained()), (SeqNum(4), SeqNum(12), SeqNum(4)));
        assert!(log.get(SeqNum(4)).is_none());
        assert!(log.get(SeqNum(8)).is_some_and(|s| s.voted));
    }

    #[test]
    fn p24_stable_entries_stay_for_peers_within_a_window() {
        let mut log = Log::new(8, usize::MAX);
        log.slot(SeqNum(8)).voted = true;
        log.mark_stable(SeqNum(8), SeqNum(2));
        assert_eq!(log.retained(), SeqNum(2));
        assert!(log.get(SeqNum(3)).is_some());
        log.slot(SeqNum(16)).voted = true;
        log.mark_stable(SeqNum(16), SeqNum(0));
        assert_eq!(log.retained(), SeqNum(8), "at most a window of stable entries is kept");
    }

    #[test]
    fn p21_stable_entries_stay_for_peers_while_there_is_room_for_their_bytes() {
        let batch =
            |n: u64| Arc::new(Batch::new(Choice { time: n, seed: 0 }, vec![crate::protocol::tests::pack(1, n, 1_000)]));
        let each = batch(1).bytes();
        let mut log = Log::new(8, 5 * each);
        for n in 1..=8 {
            log.hold(SeqNum(n), batch(n));
            log.accept(SeqNum(n), View(0), batch(n));
        }
        log.prune(SeqNum(0));
        assert_eq!((log.retained(), log.bytes()), (SeqNum(0), 8 * each), "what is not stable stays, and counts once");
        log.mark_stable(SeqNum(4), SeqNum(0));
        assert_eq!((log.retained(), log.bytes()), (SeqNum(3), 5 * each));
        log.mark_stable(SeqNum(8), SeqNum(0));
        assert_eq!((log.retained(), log.bytes()), (SeqNum(3), 5 * each));
        log.hold(SeqNum(9), batch(9));
        log.prune(SeqNum(0));
        assert_eq!((log.retained(), log.bytes()), (SeqNum(4), 5 * each));
    }

    #[test]
    fn dropped_entries_are_freed_little_by_little() {
        let mut log = Log::new(8, usize::MAX);
        for n in 1..=100 {
            let slot = log.slot(SeqNum(n));
            assert_eq!(format!("{slot:?}"), format!("{:?}", Slot::default()), "{n}: nothing of an older one is left");
            slot.prepares.add(crate::types::ReplicaId(1), (View(n), Digest::default()));
            slot.vouched.add(crate::types::ReplicaId(2), Digest::default());
            (slot.voted, slot.committed) = (true, Some(Digest::default()));
            let batch = Arc::new(Batch::new(Choice { time: n, seed: 0 }, vec![]));
            log.accept(SeqNum(n), View(n), batch);
            assert!(log.dropped.len() <= 6);
            if n % 8 == 0 {
                assert!(log.dropped.is_empty(), "all are freed before the next checkpoint");
                log.mark_stable(SeqNum(n), SeqNum(n));
                assert!(log.slots.is_empty());
            }
        }
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn slots_exist_only_between_the_watermarks() {
        Log::new(8, usize::MAX).slot(SeqNum(9));
    }
}
