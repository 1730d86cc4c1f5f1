//! When a view has had its time (P26): what waits for execution, and for how long.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::auth::Verified;
use crate::protocol::{Action, Agreement, Mode};
use crate::types::{ClientId, Digest, SeqNum, Time};
use crate::wire::{Batch, Message, Pack};

/// Longer than this between a deadline and the call for it: the loop did not run, and the time does not count (P26).
const STALL: Duration = Duration::from_millis(20);
/// However slow execution was of late, T is at most this, before it is doubled for views that failed.
const PATIENCE_MAX: Duration = Duration::from_secs(1);
/// Times from arrival to execution that the median is taken of.
const SAMPLES: usize = 15;
/// Signed packs that may wait, of all clients together; each client within its quota of bytes.
const PACKS_MAX: usize = 65_536;

/// Signed packs that would still execute, in the order of their arrival.
#[derive(Debug, Default)]
pub struct Waiting {
    packs: BTreeMap<u64, Entry>,
    numbers: BTreeMap<Digest, u64>,
    bytes: BTreeMap<ClientId, usize>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    pack: Verified<Pack>,
    at: Time,
}

impl Waiting {
    /// Keeps `pack`, within its client's quota.
    fn insert(&mut self, now: Time, pack: &Verified<Pack>, client_bytes_max: usize) {
        let (digest, client, size) = (pack.digest(), pack.client(), pack.encoded().len());
        let used = self.bytes.get(&client).copied().unwrap_or(0);
        if self.numbers.contains_key(&digest) || used + size > client_bytes_max || self.packs.len() >= PACKS_MAX {
            return;
        }
        self.bytes.insert(client, used + size);
        self.numbers.insert(digest, self.next);
        self.packs.insert(self.next, Entry { pack: pack.clone(), at: now });
        self.next += 1;
    }

    /// The pack cannot execute any more.
    fn remove(&mut self, digest: &Digest) {
        let Some(entry) = self.numbers.remove(digest).and_then(|number| self.packs.remove(&number)) else { return };
        let client = entry.pack.client();
        if let Some(used) = self.bytes.get_mut(&client) {
            *used -= entry.pack.encoded().len();
            if *used == 0 {
                self.bytes.remove(&client);
            }
        }
    }

    /// All packs, the oldest first.
    pub fn packs(&self) -> Vec<Pack> {
        self.packs.values().map(|entry| entry.pack.get().clone()).collect()
    }
}

/// What has waited longest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Key {
    Request(Digest),
    PrePrepared(SeqNum),
    /// Nothing but a replica that needs this batch to recover.
    Null(SeqNum),
}

/// The view timer: runs for whatever is oldest, since it became that.
#[derive(Debug)]
pub struct Oldest {
    key: Option<Key>,
    due: Time,
    /// When a large request is handed on to the primary: half-way to `due`.
    relay_at: Time,
    /// The execution role was asked whether the request would still execute: before its time began, and at its end.
    checked: bool,
    asked: bool,
    recent: VecDeque<Duration>,
    median: Duration,
}

impl Default for Oldest {
    fn default() -> Self {
        Oldest {
            key: None,
            due: Time::NEVER,
            relay_at: Time::NEVER,
            checked: false,
            asked: false,
            recent: VecDeque::new(),
            median: Duration::ZERO,
        }
    }
}

impl Oldest {
    /// When the timer fires, or has something to do before.
    pub fn deadline(&self) -> Time {
        self.due.min(self.relay_at)
    }

    /// Another view: everything gets its time again.
    pub fn forget(&mut self) {
        (self.key, self.due, self.relay_at) = (None, Time::NEVER, Time::NEVER);
        (self.checked, self.asked) = (false, false);
    }

    fn sample(&mut self, took: Duration) {
        self.recent.push_back(took);
        if self.recent.len() > SAMPLES {
            self.recent.pop_front();
        }
    }
}

impl Agreement {
    /// A signed request that would execute here (P26). Whether that is all: the execution role brought it back because it
    /// was asked before its time began.
    pub(in crate::protocol) fn await_execution(&mut self, pack: &Verified<Pack>) -> bool {
        self.waiting.insert(self.now, pack, self.config.client_bytes_max);
        if self.oldest.key != Some(Key::Request(pack.digest())) {
            return false;
        }
        // Asked at the end of its time, the execution role brought it back: it has waited long enough.
        if self.oldest.asked {
            self.start_view_change(self.view.next());
            return false;
        }
        std::mem::take(&mut self.oldest.checked)
    }

    /// Nothing in this pack would execute any more.
    pub(in crate::protocol) fn on_settled(&mut self, digest: Digest) {
        self.waiting.remove(&digest);
    }

    /// `batch` is committed and handed to execution.
    pub(in crate::protocol) fn executed(&mut self, batch: &Batch, accepted_at: Time) {
        self.queue.executed(batch);
        self.note_checkpoint_due();
        if accepted_at > Time(0) {
            self.oldest.sample(self.now.since(accepted_at));
            self.views.failed = self.views.failed.saturating_sub(1);
        }
        for pack in batch.packs() {
            self.waiting.remove(&pack.digest());
        }
    }

    /// What has waited longest for its execution.
    fn oldest(&self) -> Option<Key> {
        let request = self.waiting.packs.values().next().map(|entry| (entry.at, Key::Request(entry.pack.digest())));
        let first = self.last_executed.next();
        let ahead = (first.0..first.0 + self.config.pipeline_max).map(SeqNum);
        let accepted = |n: SeqNum| {
            let slot = self.log.get(n)?;
            let (view, _) = slot.pre_prepare?;
            (view == self.view).then_some((slot.accepted_at, Key::PrePrepared(n)))
        };
        let pre_prepared = ahead.into_iter().find_map(accepted);
        let oldest = request.into_iter().chain(pre_prepared).min_by_key(|(at, _)| *at).map(|(_, key)| key);
        oldest.or_else(|| self.awaited_by_recovery().map(Key::Null))
    }

    /// Starts, moves on or stops the view timer.
    pub(in crate::protocol) fn arm_view_timer(&mut self) {
        // In a pending view the new-view timer runs (P29). What is being fetched holds execution up, not the primary.
        // A primary leaves its own view too: it may be the last whose company others wait for (P30), while those who
        // have executed wait for nothing.
        let runs = self.mode == Mode::Normal && !self.transfer_moves() && !self.views.pending;
        let key = if runs { self.oldest() } else { None };
        if key == self.oldest.key {
            return;
        }
        (self.oldest.key, self.oldest.checked, self.oldest.asked) = (key, false, false);
        (self.oldest.due, self.oldest.relay_at) = (Time::NEVER, Time::NEVER);
        if key.is_some() {
            let patience = self.patience();
            self.oldest.due = self.now + patience;
            if self.large_oldest().is_some() && !self.is_primary() {
                self.oldest.relay_at = self.now + patience / 2;
            }
        }
        if let Some(Key::Request(digest)) = key {
            // Requests that were sent again in other packs, or that a fetched state covers, may wait here by the dozen: none
            // of them takes the time of one that would execute.
            self.oldest.checked = self.recheck(&digest);
        }
    }

    /// What waits longest, if it is a request that its client sent to all at once (P3).
    fn large_oldest(&self) -> Option<&Pack> {
        let Some(Key::Request(digest)) = &self.oldest.key else { return None };
        let entry = self.waiting.packs.get(self.waiting.numbers.get(digest)?)?;
        Some(entry.pack.get()).filter(|pack| pack.encoded().len() > self.config.inline_max)
    }

    /// Hands a large request on to the primary, which may lack it, when half of its time is over.
    fn relay_oldest(&mut self) {
        self.oldest.relay_at = Time::NEVER;
        if let Some(pack) = self.large_oldest().cloned() {
            let primary = self.primary();
            self.send(primary, Message::Relay(pack));
        }
    }

    /// Asks whether what waits would still execute: it may have done so in another pack (P46), and the execution role
    /// knows. Whether there is such a pack.
    fn recheck(&mut self, digest: &Digest) -> bool {
        let entry = self.waiting.numbers.get(digest).and_then(|number| self.waiting.packs.get(number));
        let pack = entry.map(|entry| entry.pack.clone());
        let waits = pack.is_some();
        self.actions.extend(pack.map(Action::Recheck));
        waits
    }

    /// T (P26); doubled for every view that failed, as the new-view timer is (P29), or a network slower than T would
    /// see views end for ever.
    fn patience(&mut self) -> Duration {
        let mut recent = [Duration::ZERO; SAMPLES];
        let recent = &mut recent[..self.oldest.recent.len()];
        recent.iter_mut().zip(&self.oldest.recent).for_each(|(to, from)| *to = *from);
        recent.sort_unstable();
        self.oldest.median = recent.get(recent.len() / 2).copied().unwrap_or_default();
        let patience = self.config.view_timeout.max((4 * self.oldest.median).min(PATIENCE_MAX));
        patience * (1 << self.views.failed)
    }

    /// Time in which our own loop did not run does not count (P26). `since` is the last call.
    pub(in crate::protocol) fn forgive_stall(&mut self, due: Time, since: Time) {
        if due != Time::NEVER && self.now > due + STALL {
            let gap = self.now.since(since);
            for deadline in [&mut self.oldest.due, &mut self.views.new_view_at] {
                if *deadline != Time::NEVER {
                    *deadline = *deadline + gap;
                }
            }
        }
    }

    /// The view timer fired?
    pub(in crate::protocol) fn oldest_timer(&mut self) {
        if self.oldest.relay_at <= self.now {
            self.relay_oldest();
        }
        if self.oldest.due > self.now {
            return;
        }
        self.oldest.due = Time::NEVER;
        match self.oldest.key {
            Some(Key::Request(digest)) => self.oldest.asked = self.recheck(&digest),
            Some(Key::PrePrepared(_)) => self.start_view_change(self.view.next()),
            Some(Key::Null(_)) => self.leave_for_recovery(),
            None => {}
        }
    }
}
