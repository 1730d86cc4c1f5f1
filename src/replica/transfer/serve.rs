//! The side that has the state.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::limits::{PAGE, STATE_HELD_MAX};
use crate::state::{Digester, View};
use crate::types::{ReplicaId, SeqNum, Time};
use crate::wire::{FetchState, RegionHead, StateAnswer, StateContent, StateItem, StatePart};

/// Bytes after which an answer takes no more parts.
const ANSWER_BYTES: usize = 64 << 10;
/// Requests of one peer that may wait; it has no more in flight if it is correct.
const WAITING_MAX: usize = 8;
/// Bytes for one peer in one interval: 64 MB/s, about a tenth of a core. Three peers together fill a gigabit link.
const RATE_BYTES: usize = 64_000 * 50;
const RATE_INTERVAL: Duration = Duration::from_millis(50);

/// Answers FETCH-STATE, each peer within a rate of its own (P21).
#[derive(Debug, Default)]
pub struct Serve {
    peers: BTreeMap<ReplicaId, Asker>,
    /// Whose turn it is.
    last: Option<ReplicaId>,
    dropped: u64,
}

#[derive(Debug, Default)]
struct Asker {
    waiting: VecDeque<FetchState>,
    began: Time,
    sent: usize,
}

impl Asker {
    fn due(&self) -> Time {
        match (self.waiting.is_empty(), self.sent < RATE_BYTES) {
            (true, _) => Time::NEVER,
            (false, true) => Time(0),
            (false, false) => self.began + RATE_INTERVAL,
        }
    }
}

impl Serve {
    /// A request; what exceeds the bound of its sender is dropped.
    pub fn accept(&mut self, from: ReplicaId, request: FetchState) {
        let waiting = &mut self.peers.entry(from).or_default().waiting;
        if waiting.len() < WAITING_MAX {
            waiting.push_back(request);
        } else {
            self.dropped += 1;
        }
    }

    /// When [`answer`](Serve::answer) has something to do; in the past if it has now.
    pub fn deadline(&self) -> Time {
        self.peers.values().map(Asker::due).min().unwrap_or(Time::NEVER)
    }

    /// Requests dropped, because too many waited.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// One answer, to whoever's turn it is. `digester` is `None` while its state is being replaced.
    pub fn answer(&mut self, now: Time, digester: Option<&mut Digester>) -> Option<(ReplicaId, StateAnswer)> {
        let after = self.last;
        let ready = |(id, asker): (&ReplicaId, &Asker)| (asker.due() <= now).then_some(*id);
        let next = self.peers.iter().filter_map(ready).min_by_key(|id| (Some(*id) <= after, *id))?;
        self.last = Some(next);
        let asker = self.peers.get_mut(&next)?;
        if now.since(asker.began) >= RATE_INTERVAL {
            (asker.began, asker.sent) = (now, 0);
        }
        let request = asker.waiting.pop_front()?;
        let content = match digester {
            Some(digester) => content(digester, &request),
            None => StateContent::Absent(Vec::new()),
        };
        asker.sent += size(&content);
        Some((next, StateAnswer { n: request.n, nonce: request.nonce, content }))
    }
}

fn size(content: &StateContent) -> usize {
    match content {
        StateContent::Absent(held) => 64 + 8 * held.len(),
        StateContent::Header(_) => 128,
        StateContent::Parts(parts) => 64 + parts.iter().map(part_size).sum::<usize>(),
    }
}

fn part_size(part: &StatePart) -> usize {
    match part {
        StatePart::Nodes(nodes) => 32 * nodes.len(),
        StatePart::Page(bytes) => bytes.len() + 3,
    }
}

fn content(digester: &mut Digester, request: &FetchState) -> StateContent {
    let Some(view) = digester.at(request.n) else {
        let mut held: Vec<SeqNum> = digester.mirror().held().collect();
        held.drain(..held.len().saturating_sub(STATE_HELD_MAX));
        return StateContent::Absent(held);
    };
    if request.items.is_empty() {
        return StateContent::Header(
            view.checkpoint().regions.map(|region| RegionHead { pages: region.pages, root: region.root }),
        );
    }
    let mut bytes = 0;
    let mut parts = Vec::new();
    for item in &request.items {
        // What does not exist is asked for by nobody who checked what he has.
        let Some(part) = part(&view, *item) else { break };
        bytes += part_size(&part);
        parts.push(part);
        if bytes >= ANSWER_BYTES {
            break;
        }
    }
    StateContent::Parts(parts)
}

fn part(view: &View<'_>, item: StateItem) -> Option<StatePart> {
    match item {
        StateItem::Nodes { region, level, group } => view.group(region, level, group).map(StatePart::Nodes),
        StateItem::Page { region, page } => {
            let content: &[u8; PAGE] = view.page(region, page)?.bytes();
            let used = content.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
            Some(StatePart::Page(Bytes::copy_from_slice(&content[..used])))
        }
    }
}
