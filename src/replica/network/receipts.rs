//! Receipts for clients' large messages (P54): what of them is here, and how much more may leave.
//!
//! Many clients that send at once share this replica's socket buffer, and none knows of the others. So each sends a part
//! unasked, and the rest as it is granted: to few at a time, who came first goes first, and what is granted and not here
//! fits the buffer. Who waits in vain for pieces says what it has.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::limits::{BULK_ASKS, BULK_UNASKED};
use crate::transport::Peer;
use crate::types::{ClientId, EndpointId, Time};
use crate::wire::{FragmentHeader, Pieces, Receipt};

/// A client's message: who sends it, and its number.
pub(super) type Key = (ClientId, EndpointId, u64);

/// What there is of a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Progress<'a> {
    /// Nothing, or no longer.
    None,
    /// These pieces.
    Partial(&'a Pieces),
    /// All of it, lately.
    Complete,
}

/// A message on its way to us.
#[derive(Debug)]
struct Inflow {
    key: Key,
    from: Peer,
    total: usize,
    count: usize,
    arrived: usize,
    granted: usize,
    /// When a piece last came that was not here or more was granted, and when we last said what is here.
    moved: Time,
    told: Time,
    /// A piece came that was here: its sender wants to know.
    asked: bool,
    /// Since when a piece is missing before one that is here.
    gap: Option<Time>,
    /// How long it may be silent before we say what is here.
    quiet: Duration,
}

/// The messages of clients that are on their way to us.
#[derive(Debug)]
pub(super) struct Receipts {
    /// Bytes that may be on their way at once.
    budget: usize,
    /// By the order in which they began.
    inflows: BTreeMap<u64, Inflow>,
    order: BTreeMap<Key, u64>,
    next: u64,
    /// Who sent something large of late.
    senders: BTreeMap<(ClientId, EndpointId), Time>,
    pruned: Time,
    /// Messages of which pieces came in this turn.
    dirty: Vec<(Key, Peer, FragmentHeader)>,
    due: Time,
}

/// Messages of the few that are granted more than their start, at once.
const WIDTH: usize = 4;
/// Messages that receipts are given for.
const INFLOWS_MAX: usize = 4_096;
/// Endpoints that are remembered as senders.
const SENDERS_MAX: usize = 4_096;
/// For so long.
const SENDER_FOR: Duration = Duration::from_millis(500);
/// Bytes that anybody may send unasked.
const START_MIN: usize = 4 << 10;
/// A piece that others have overtaken is lost, after so long.
const GAP: Duration = Duration::from_millis(1);
/// What is missing is said again after so long, and to who asks.
const AGAIN: Duration = Duration::from_millis(5);
/// A message that was granted more and is silent for so long makes room for the next.
const STALLED: Duration = Duration::from_millis(30);
/// After so long without a piece we say what is here; each time after twice as long. Who waits to be granted more asks
/// before the longest of these is over ([`BULK_ASKS`]).
const QUIET: Duration = Duration::from_millis(10);
const QUIET_MAX: Duration = Duration::from_millis(2 * BULK_ASKS.as_millis() as u64);

impl Receipts {
    pub(super) fn new(budget: usize) -> Receipts {
        Receipts {
            budget,
            inflows: BTreeMap::new(),
            order: BTreeMap::new(),
            next: 0,
            senders: BTreeMap::new(),
            pruned: Time(0),
            dirty: Vec::new(),
            due: Time::NEVER,
        }
    }

    /// A piece of a client's message came, which is well formed; it may be the last one, or one for which there is no room.
    pub(super) fn note(&mut self, key: Key, from: Peer, header: FragmentHeader) {
        if self.dirty.last().is_none_or(|(last, ..)| *last != key) {
            self.dirty.push((key, from, header));
        }
    }

    /// When [`flush`](Self::flush) must run again.
    pub(super) fn deadline(&self) -> Time {
        self.due
    }

    /// Names what is to be said, and to whom.
    pub(super) fn flush<'a>(
        &mut self,
        now: Time,
        progress: impl Fn(&Key) -> Progress<'a>,
        mut tell: impl FnMut(Key, Peer, Receipt),
    ) {
        if self.dirty.is_empty() && now < self.due {
            return;
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable_by_key(|(key, ..)| *key);
        dirty.dedup_by_key(|(key, ..)| *key);
        for (key, from, header) in dirty.drain(..) {
            match progress(&key) {
                Progress::Partial(pieces) => self.came(now, key, from, &header, pieces),
                Progress::None | Progress::Complete if header.total as usize <= BULK_UNASKED => self.forget(&key),
                Progress::None => {
                    self.forget(&key);
                    tell(key, from, self.receipt(key, 0, Pieces::none(usize::from(header.count))));
                }
                Progress::Complete => {
                    self.forget(&key);
                    self.remember(now, key);
                    let pieces = Pieces::all(usize::from(header.count));
                    tell(key, from, self.receipt(key, usize::from(header.count), pieces));
                }
            }
        }
        self.dirty = dirty;
        self.prune(now, &progress);
        let start = self.start();
        let stalled = |inflow: &Inflow| inflow.granted > inflow.arrived && now.since(inflow.moved) >= STALLED;
        let asks = |inflow: &Inflow| inflow.total > BULK_UNASKED && !stalled(inflow);
        let live = self.inflows.values().filter(|inflow| asks(inflow)).count();
        let ahead = self.budget / live.clamp(1, WIDTH);
        let mut places = WIDTH;
        self.due = Time::NEVER;
        for inflow in self.inflows.values_mut() {
            let mut tells = false;
            if places > 0 && asks(inflow) {
                places -= 1;
                tells = inflow.grant(now, ahead);
            }
            if tells || inflow.report_at() <= now {
                if !tells && inflow.gap.is_none() {
                    inflow.quiet = (inflow.quiet * 2).min(QUIET_MAX);
                }
                (inflow.told, inflow.asked) = (now, false);
                if let Progress::Partial(pieces) = progress(&inflow.key) {
                    let (message, granted) = (inflow.key.2, inflow.granted as u16);
                    tell(inflow.key, inflow.from, Receipt { message, start, granted, pieces: pieces.clone() });
                }
            }
            self.due = self.due.min(inflow.report_at().max(now + Duration::from_micros(100)));
        }
    }

    fn came(&mut self, now: Time, key: Key, from: Peer, header: &FragmentHeader, pieces: &Pieces) {
        let number = match self.order.get(&key) {
            Some(&number) => number,
            None if self.inflows.len() >= INFLOWS_MAX => return,
            None => {
                self.remember(now, key);
                let number = self.next;
                self.next += 1;
                self.order.insert(key, number);
                let count = usize::from(header.count);
                self.inflows.insert(number, Inflow::new(now, key, from, count, header.total as usize));
                number
            }
        };
        let Some(inflow) = self.inflows.get_mut(&number) else { return };
        inflow.from = from;
        match pieces.len() > inflow.arrived {
            true => (inflow.arrived, inflow.moved, inflow.quiet) = (pieces.len(), now, QUIET),
            false => inflow.asked = true,
        }
        inflow.gap = match inflow.arrived < pieces.end() {
            true => inflow.gap.or(Some(now)),
            false => None,
        };
    }

    fn forget(&mut self, key: &Key) {
        if let Some(number) = self.order.remove(key) {
            self.inflows.remove(&number);
        }
    }

    fn remember(&mut self, now: Time, (client, endpoint, _): Key) {
        if self.senders.len() < SENDERS_MAX || self.senders.contains_key(&(client, endpoint)) {
            self.senders.insert((client, endpoint), now);
        }
    }

    /// Forgets what is no longer on its way, and who sends no more.
    fn prune<'a>(&mut self, now: Time, progress: &impl Fn(&Key) -> Progress<'a>) {
        if now.since(self.pruned) < SENDER_FOR / 4 {
            return;
        }
        self.pruned = now;
        self.senders.retain(|_, at| now.since(*at) < SENDER_FOR);
        self.inflows.retain(|_, inflow| matches!(progress(&inflow.key), Progress::Partial(_)));
        let inflows = &self.inflows;
        self.order.retain(|_, number| inflows.contains_key(number));
    }

    /// Bytes that everybody may send unasked: his part of the budget.
    fn start(&self) -> u32 {
        let senders = self.senders.len().max(self.inflows.len()).max(1);
        u32::try_from((self.budget / senders).max(START_MIN)).unwrap_or(u32::MAX)
    }

    fn receipt(&self, (.., message): Key, granted: usize, pieces: Pieces) -> Receipt {
        Receipt { message, start: self.start(), granted: granted as u16, pieces }
    }
}

impl Inflow {
    fn new(now: Time, key: Key, from: Peer, count: usize, total: usize) -> Inflow {
        Inflow {
            key,
            from,
            total,
            count,
            arrived: 0,
            granted: if total > BULK_UNASKED { 0 } else { count },
            moved: now,
            told: Time(0),
            asked: false,
            gap: None,
            quiet: QUIET,
        }
    }

    /// Grants `ahead` bytes beyond what is here. Whether that is so much more than before that it is worth saying.
    fn grant(&mut self, now: Time, ahead: usize) -> bool {
        let ahead = (ahead / self.total.div_ceil(self.count)).max(2);
        let wanted = (self.arrived + ahead).min(self.count);
        let worth = wanted > self.granted && (wanted == self.count || wanted - self.granted >= ahead / 2);
        if worth {
            (self.granted, self.moved) = (wanted, now);
        }
        worth
    }

    fn report_at(&self) -> Time {
        let quiet = self.moved.max(self.told) + self.quiet;
        let missed = self.gap.map_or(Time::NEVER, |gap| (gap + GAP).max(self.told + AGAIN));
        let asked = if self.asked { self.told + AGAIN } else { Time::NEVER };
        quiet.min(missed).min(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const PIECE: usize = 1_000;

    /// Senders whose messages have `count` pieces, and what is here of them.
    struct Stage {
        receipts: Receipts,
        count: usize,
        here: BTreeMap<Key, Pieces>,
        now: Time,
    }

    fn key(client: u64) -> Key {
        (ClientId(client), EndpointId(1), 7)
    }

    fn peer(client: u64) -> Peer {
        Peer::Address(([127, 0, 0, 1], client as u16).into())
    }

    impl Stage {
        fn new(budget: usize, count: usize) -> Stage {
            Stage { receipts: Receipts::new(budget), count, here: BTreeMap::new(), now: Time(1_000 * MS) }
        }

        fn arrive(&mut self, client: u64, pieces: impl IntoIterator<Item = usize>) {
            let (message, count, total) = (7, self.count as u16, (self.count * PIECE) as u32);
            for piece in pieces {
                self.here.entry(key(client)).or_insert_with(|| Pieces::none(self.count)).insert(piece);
                let header = FragmentHeader { message, index: piece as u16, count, total };
                self.receipts.note(key(client), peer(client), header);
            }
        }

        /// What is said after `ms` milliseconds: to whom, granted, here, start.
        fn after(&mut self, ms: u64) -> Vec<(u64, usize, usize, u32)> {
            self.now = Time(self.now.0 + ms * MS);
            let here = &self.here;
            let progress = |key: &Key| match here.get(key) {
                Some(pieces) if pieces.is_full() => Progress::Complete,
                Some(pieces) => Progress::Partial(pieces),
                None => Progress::None,
            };
            let mut said = Vec::new();
            self.receipts.flush(self.now, progress, |(client, ..), from, receipt| {
                assert_eq!(from, peer(client.0));
                said.push((client.0, usize::from(receipt.granted), receipt.pieces.len(), receipt.start));
            });
            said
        }
    }

    #[test]
    fn p54_who_came_first_is_granted_first_and_no_more_than_the_budget() {
        let mut stage = Stage::new(400_000, 1_000);
        for client in [5, 3, 9, 1, 2, 8] {
            stage.arrive(client, 0..10);
            stage.after(0);
        }
        // Each new one finds less left; by the fourth it is a quarter.
        let granted = |stage: &Stage| -> Vec<(u64, usize)> {
            stage.receipts.inflows.values().map(|inflow| (inflow.key.0.0, inflow.granted)).collect()
        };
        assert_eq!(granted(&stage), [(5, 410), (3, 210), (9, 143), (1, 110), (2, 0), (8, 0)]);
        stage.arrive(5, 10..400);
        assert_eq!(stage.after(1), [(5, 500, 400, 66_666)], "a quarter of the budget ahead");
        stage.arrive(5, 400..1_000);
        assert_eq!(stage.after(1), [(5, 1_000, 1_000, 66_666), (2, 110, 10, 66_666)]);
    }

    #[test]
    fn p54_a_start_is_a_senders_share_of_the_budget() {
        let mut stage = Stage::new(400_000, 100);
        stage.arrive(1, 0..100);
        assert_eq!(stage.after(0), [(1, 100, 100, 400_000)]);
        for client in 2..=1_000 {
            stage.arrive(client, 0..100);
        }
        assert_eq!(stage.after(1).last().map(|said| said.3), Some(START_MIN as u32), "the least");
        stage.arrive(1, 0..100);
        assert_eq!(stage.after(600), [(1, 100, 100, START_MIN as u32)], "whoever asks again is told again");
        stage.arrive(1, 0..100);
        assert_eq!(stage.after(200), [(1, 100, 100, 400_000)], "the others send no more");
    }

    #[test]
    fn p54_what_was_overtaken_is_missed_at_once_and_silence_little_by_little() {
        let mut stage = Stage::new(1 << 20, 100);
        stage.arrive(1, (0..20).filter(|piece| *piece != 4));
        assert_eq!(stage.after(0), [(1, 100, 19, 1 << 20)], "a grant");
        // 5 ms after that was said.
        let times: Vec<u64> = (1..=21).filter(|_| !stage.after(1).is_empty()).collect();
        assert_eq!(times, [5, 10, 15, 20]);
        stage.arrive(1, 4..30);
        let mut told = Vec::new();
        for ms in 0..1_000 {
            if !stage.after(u64::from(ms > 0)).is_empty() {
                told.push(ms);
            }
        }
        assert_eq!(told, [10, 30, 70, 150, 310, 630]);
        stage.here.clear();
        stage.after(2_000);
        assert_eq!((stage.receipts.inflows.len(), stage.receipts.order.len()), (0, 0), "the reassembler let it go");
        assert_eq!(stage.receipts.deadline(), Time::NEVER);
    }

    #[test]
    fn p54_who_asks_is_told_what_is_here_and_who_finds_no_room_that_he_has_to_wait() {
        let mut stage = Stage::new(40_000, 1_000);
        for client in 1..=5 {
            stage.arrive(client, 0..10);
        }
        assert_eq!(stage.after(0).len(), 4);
        // The last waits, and sends what is here for a word.
        stage.arrive(5, 9..10);
        assert_eq!(stage.after(1), [(5, 0, 10, 8_000)]);
        stage.arrive(5, 9..10);
        assert_eq!(stage.after(1), [], "it was told");
        assert_eq!(stage.after(4), [(5, 0, 10, 8_000)]);
        // Of another the reassembler kept nothing.
        stage.arrive(6, 0..1);
        stage.here.remove(&key(6));
        assert_eq!(stage.after(1), [(6, 0, 0, 8_000)]);
        assert_eq!(stage.receipts.inflows.len(), 5);
    }

    #[test]
    fn p54_who_sends_only_what_is_here_holds_no_place() {
        let mut stage = Stage::new(40_000, 1_000);
        for client in 1..=5 {
            stage.arrive(client, 0..10);
        }
        stage.after(0);
        let told =
            |said: &[(u64, usize, usize, u32)]| said.iter().any(|&(client, granted, ..)| (client, granted) == (5, 50));
        for _ in 0..29 {
            (1..=4).for_each(|client| stage.arrive(client, 9..10));
            assert!(!told(&stage.after(1)));
        }
        (1..=4).for_each(|client| stage.arrive(client, 9..10));
        assert!(told(&stage.after(1)));
    }

    #[test]
    fn p54_who_was_granted_and_is_silent_makes_room() {
        let mut stage = Stage::new(40_000, 1_000);
        for client in 1..=5 {
            stage.arrive(client, 0..10);
        }
        let said: Vec<u64> = stage.after(0).iter().map(|said| said.0).collect();
        assert_eq!(said, [1, 2, 3, 4]);
        let told = |said: Vec<(u64, usize, usize, u32)>| {
            said.iter().any(|&(client, granted, ..)| (client, granted) == (5, 50))
        };
        assert!((1..30).all(|_| !told(stage.after(1))));
        assert!(told(stage.after(1)));
        // It comes back, in its place.
        stage.arrive(1, 10..20);
        stage.arrive(5, 10..50);
        assert!(stage.after(1).iter().any(|&(client, granted, ..)| client == 1 && granted > 20));
    }

    #[test]
    fn p54_what_leaves_unasked_has_a_receipt_only_if_something_is_missing() {
        let mut stage = Stage::new(1 << 20, BULK_UNASKED / PIECE);
        stage.arrive(1, 0..BULK_UNASKED / PIECE);
        assert_eq!(stage.after(0), []);
        stage.arrive(2, [0, 1]);
        assert_eq!(stage.after(0), [], "the rest has left");
        stage.arrive(2, [3]);
        assert_eq!(stage.after(0), []);
        assert_eq!(stage.after(1).len(), 1, "a piece was overtaken");
    }

    #[test]
    fn p44_messages_and_senders_that_are_remembered_are_bounded() {
        let mut stage = Stage::new(1 << 20, 100);
        for client in 0..5_000 {
            stage.arrive(client, 0..1);
        }
        stage.after(0);
        assert_eq!((stage.receipts.inflows.len(), stage.receipts.senders.len()), (INFLOWS_MAX, SENDERS_MAX));
    }
}
