//! Read-only requests that wait for the state that they may be answered from (P18, P48).

use std::collections::{BTreeMap, VecDeque};

use super::config::ExecutorConfig;
use crate::types::{ClientId, SeqNum, Time, View};
use crate::wire::Pack;

/// A pack of read-only requests, held.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) pack: Pack,
    /// The view that the replies name.
    pub(super) view: View,
    after: SeqNum,
    until: Time,
}

impl Held {
    /// A pack that need not be held.
    pub(super) fn now(pack: Pack, view: View) -> Held {
        Held { pack, view, after: SeqNum(0), until: Time::NEVER }
    }
}

/// Held packs in order of arrival: bounded in packs and bytes per client, in bytes over all, and in time.
#[derive(Debug, Default)]
pub(super) struct Queries {
    held: VecDeque<Held>,
    bytes: usize,
    by_client: BTreeMap<ClientId, Usage>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    packs: usize,
    bytes: usize,
}

impl Queries {
    /// Holds `pack` until the committed state includes `after`; false if there is no room for it.
    pub(super) fn hold(&mut self, now: Time, config: &ExecutorConfig, pack: Pack, after: SeqNum, view: View) -> bool {
        let bytes = pack.encoded().len();
        let usage = self.by_client.get(&pack.client()).copied().unwrap_or_default();
        if usage.packs >= config.held_packs_per_client
            || usage.bytes + bytes > config.held_bytes_per_client
            || self.bytes + bytes > config.held_bytes
        {
            return false;
        }
        self.by_client.insert(pack.client(), Usage { packs: usage.packs + 1, bytes: usage.bytes + bytes });
        self.bytes += bytes;
        // What was prepared only grows (P18), and a later state may always answer: the front is always the next.
        let after = after.max(self.held.back().map_or(after, |last| last.after));
        self.held.push_back(Held { pack, view, after, until: now + config.hold });
        true
    }

    /// The next pack that the state after `committed` may answer.
    pub(super) fn next_ready(&mut self, committed: SeqNum) -> Option<Held> {
        if self.held.front()?.after > committed { None } else { self.pop() }
    }

    /// Drops what is due at `now`; how many packs.
    pub(super) fn expire(&mut self, now: Time) -> u64 {
        let mut dropped = 0;
        while self.deadline() <= now && self.pop().is_some() {
            dropped += 1;
        }
        dropped
    }

    /// When the first is due.
    pub(super) fn deadline(&self) -> Time {
        self.held.front().map_or(Time::NEVER, |held| held.until)
    }

    /// Packs held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    fn pop(&mut self) -> Option<Held> {
        let held = self.held.pop_front()?;
        let bytes = held.pack.encoded().len();
        self.bytes -= bytes;
        let usage = self.by_client.get_mut(&held.pack.client()).expect("counted when it was held");
        usage.packs -= 1;
        usage.bytes -= bytes;
        if usage.packs == 0 {
            self.by_client.remove(&held.pack.client());
        }
        Some(held)
    }
}
