//! The side that is behind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Divergence;
use crate::protocol::{Misdeed, Misdeeds};
use crate::state::{Cv, Mirror, Page, PageId, RegionRoot, Tree, page_cv, state_root};
use crate::types::{Digest, RegionId, ReplicaId, SeqNum, Time};
use crate::wire::{FetchState, RegionHead, StateAnswer, StateContent, StateItem, StatePart};

/// Pages asked of all peers together at a time: 128 KiB, less than what a socket buffer of Linux's default size takes.
const PAGES_IN_FLIGHT: usize = 32;
/// Requests in flight to one peer: one is answered while the next is on its way.
const REQUESTS_IN_FLIGHT: usize = 2;
/// Pages in one request at most; fewer while answers are lost, for a large answer is many datagrams.
const BURST_MAX: usize = 8;
/// A group of nodes takes an eighth of a page.
const GROUPS_PER_PAGE: usize = 8;

const TIMEOUT_FIRST: Duration = Duration::from_millis(60);
const TIMEOUT_MIN: Duration = Duration::from_millis(20);
const TIMEOUT_MAX: Duration = Duration::from_millis(500);
/// A peer that did not answer rests, twice as long each time.
const REST: Duration = Duration::from_millis(10);
const REST_DOUBLINGS_MAX: u32 = 5;
/// Peers that do not hold the checkpoint are asked again after so long, and agreement is told that nobody has it.
const ABSENT: Duration = Duration::from_millis(50);
/// Agreement is told so too when nothing came for so long: who has it may be silent, and others have a later one.
const STUCK: Duration = Duration::from_millis(250);
/// When every peer was caught, all are forgiven after so long: perhaps it is not they that are wrong.
const FORGIVE: Duration = Duration::from_secs(1);

/// What comes of a [`Fetch`].
#[derive(Debug)]
pub enum Found {
    /// Ask this peer.
    Ask(ReplicaId, FetchState),
    /// Nobody serves checkpoint `n` any more: another target is needed.
    Absent(SeqNum),
    /// Every node that differs was looked at, and no page fetched.
    Compared,
    /// The certified state at `n` is here: all its pages.
    Complete {
        /// The checkpoint.
        n: SeqNum,
        /// Its root.
        root: Digest,
        /// Its pages, by region.
        pages: [Vec<Arc<Page>>; 2],
    },
}

/// What was moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FetchStats {
    /// Pages fetched, and right.
    pub pages: u64,
    /// Groups of tree nodes fetched, and right.
    pub groups: u64,
    /// Bytes of pages and tree nodes in all answers that were taken, right or wrong, twice or once.
    pub bytes: u64,
    /// Requests sent.
    pub requests: u64,
    /// Requests not answered in time.
    pub timeouts: u64,
}

/// How a part is checked: against what was checked before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    /// It lies below this node.
    Node(Cv),
    /// It lies right below a region's root.
    Root([u8; 32]),
}

#[derive(Clone, Copy, Debug)]
struct Want {
    item: StateItem,
    expected: Expected,
}

#[derive(Debug)]
struct Asked {
    peer: ReplicaId,
    /// Empty: the header.
    wants: Vec<Want>,
    at: Time,
    due: Time,
}

#[derive(Debug, Default)]
struct Source {
    in_flight: usize,
    /// Requests in a row without an answer.
    failures: u32,
    rest_until: Time,
    /// It says that it has not got the target.
    absent: bool,
    /// It is not asked again until then.
    absent_until: Time,
    /// It sent a wrong part during this transfer.
    caught: bool,
    /// Smoothed time from request to answer.
    srtt: Duration,
    misdeeds: Misdeeds,
}

impl Source {
    fn timeout(&self) -> Duration {
        let usual = if self.srtt.is_zero() { TIMEOUT_FIRST } else { 4 * self.srtt + Duration::from_millis(5) };
        (usual.max(TIMEOUT_MIN) * (1 << self.failures.min(REST_DOUBLINGS_MAX))).min(TIMEOUT_MAX)
    }
}

#[derive(Debug)]
struct Target {
    n: SeqNum,
    root: Digest,
    header: Option<[RegionHead; 2]>,
}

/// Fetches a certified state. It works on the [`Mirror`] of the own one, so that what was fetched and still fits is kept
/// when the target moves.
///
/// ```text
/// begin(mirror, n, root, diverged), again with a newer one when the target is Absent
/// answer(now, mirror, from, answer), poll(now, mirror, &mut found), again at deadline()
/// ```
#[derive(Debug)]
pub struct Fetch {
    sources: BTreeMap<ReplicaId, Source>,
    target: Option<Target>,
    nodes: Vec<Want>,
    pages: Vec<Want>,
    asked: BTreeMap<u64, Asked>,
    nonce: u64,
    burst: usize,
    /// Whose turn it is among equals.
    turn: u64,
    told_absent: Time,
    /// When the last right part came, or the transfer began.
    moved_at: Time,
    forgive_at: Time,
    /// When [`poll`](Fetch::poll) last ran: what was due then is done.
    polled_at: Time,
    stats: FetchStats,
    divergence: Option<Divergence>,
    /// Pages are only named.
    compares: bool,
}

impl Fetch {
    /// It may ask these peers. `nonce` must not repeat within the life of the sessions between replicas; time will do.
    pub fn new(peers: impl IntoIterator<Item = ReplicaId>, nonce: u64) -> Fetch {
        Fetch {
            sources: peers.into_iter().map(|peer| (peer, Source::default())).collect(),
            target: None,
            nodes: Vec::new(),
            pages: Vec::new(),
            asked: BTreeMap::new(),
            nonce,
            burst: BURST_MAX / 2,
            turn: 0,
            told_absent: Time(0),
            moved_at: Time(0),
            forgive_at: Time::NEVER,
            polled_at: Time(0),
            stats: FetchStats::default(),
            divergence: None,
            compares: false,
        }
    }

    /// Finds out which pages differ from those of a peer whose root at `n` this is, and fetches none. `mirror` is a copy:
    /// it is of no other use afterwards.
    pub fn compare(peer: ReplicaId, nonce: u64, mirror: &mut Mirror, n: SeqNum, root: Digest) -> Fetch {
        let mut fetch = Fetch::new([peer], nonce);
        fetch.compares = true;
        fetch.begin(mirror, n, root, true);
        fetch
    }

    /// Whether a state is being fetched.
    pub fn is_active(&self) -> bool {
        self.target.is_some()
    }

    /// What was moved since the start.
    pub fn stats(&self) -> FetchStats {
        self.stats
    }

    /// What was wrong here when this replica last diverged.
    pub fn divergence(&self) -> Option<&Divergence> {
        self.divergence.as_ref()
    }

    /// What `peer` sent that no correct replica sends.
    pub fn misdeeds(&self, peer: ReplicaId) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.sources.get(&peer).into_iter().flat_map(|source| source.misdeeds.iter())
    }

    /// Fetches the state at `n`, whose root q replicas signed, in place of what was fetched before. `diverged`: because
    /// the own root at `n` is another.
    pub fn begin(&mut self, mirror: &mut Mirror, n: SeqNum, root: Digest, diverged: bool) {
        if self.target.is_none() {
            let exact = mirror.begin_transfer(n);
            if diverged {
                self.divergence = Some(Divergence { n, exact, count: 0, pages: Vec::new(), healed: false });
            }
        }
        self.target = Some(Target { n, root, header: None });
        self.nodes.clear();
        self.pages.clear();
        self.asked.clear();
        for source in self.sources.values_mut() {
            (source.in_flight, source.absent, source.absent_until, source.caught) = (0, false, Time(0), false);
        }
        self.moved_at = Time::NEVER;
        self.forgive_at = Time::NEVER;
    }

    /// When [`poll`](Fetch::poll) has something to do.
    pub fn deadline(&self) -> Time {
        if self.target.is_none() {
            return Time::NEVER;
        }
        let due = self.asked.values().map(|asked| asked.due);
        let rests = self.sources.values().map(|source| source.rest_until.max(source.absent_until));
        let rests = rests.filter(|at| *at > self.polled_at && self.has_wants());
        let stuck = self.told_absent.max(self.moved_at) + STUCK;
        due.chain(rests).min().unwrap_or(Time::NEVER).min(self.forgive_at).min(stuck)
    }

    fn has_wants(&self) -> bool {
        let header = self.target.as_ref().is_some_and(|target| target.header.is_none());
        header && self.asked.is_empty() || !self.nodes.is_empty() || !self.pages.is_empty()
    }

    /// Asks for what is missing, gives up what was not answered, and says when all is there.
    pub fn poll(&mut self, now: Time, mirror: &mut Mirror, found: &mut Vec<Found>) {
        let Some(Target { n, root, ref header }) = self.target else { return };
        self.polled_at = now;
        // It may have begun long after anything else happened here.
        self.moved_at = self.moved_at.min(now);
        let known = header.is_some();
        let late: Vec<u64> = self.asked.iter().filter(|(_, asked)| asked.due <= now).map(|(&nonce, _)| nonce).collect();
        for nonce in late {
            self.give_up(now, nonce);
        }
        if known && self.asked.is_empty() && !self.has_wants() {
            if self.compares {
                self.target = None;
                return found.push(Found::Compared);
            }
            return self.complete(mirror, n, root, found);
        }
        self.forgive(now);
        while self.has_wants()
            && self.pages_in_flight() < PAGES_IN_FLIGHT
            && let Some(peer) = self.next_source(now)
        {
            let wants = self.take_wants();
            self.nonce += 1;
            let items = wants.iter().map(|want| want.item).collect();
            let source = self.sources.get_mut(&peer).expect("chosen from them");
            source.in_flight += 1;
            let due = now + source.timeout();
            self.asked.insert(self.nonce, Asked { peer, wants, at: now, due });
            self.stats.requests += 1;
            found.push(Found::Ask(peer, FetchState { n, nonce: self.nonce, items }));
        }
        let nobody = self.sources.values().all(|source| source.caught || source.absent);
        let stuck = now.since(self.told_absent.max(self.moved_at)) >= STUCK;
        if nobody && now.since(self.told_absent) >= ABSENT || stuck {
            self.told_absent = now;
            found.push(Found::Absent(n));
        }
    }

    fn complete(&mut self, mirror: &mut Mirror, n: SeqNum, root: Digest, found: &mut Vec<Found>) {
        let ended = mirror.end_transfer(n);
        let Some((_, pages)) = ended.filter(|(checkpoint, _)| checkpoint.root == root) else {
            // Every fetched page was checked: what differs is an own page that is not what its hash says.
            mirror.distrust();
            let regions = self.target.as_mut().and_then(|target| target.header.take());
            self.on_header(mirror, regions.expect("it was there"));
            return;
        };
        self.target = None;
        if let Some(divergence) = &mut self.divergence {
            divergence.healed = true;
        }
        found.push(Found::Complete { n, root, pages });
    }

    fn pages_in_flight(&self) -> usize {
        let cost = |want: &Want| match want.item {
            StateItem::Page { .. } => GROUPS_PER_PAGE,
            StateItem::Nodes { .. } => 1,
        };
        self.asked.values().flat_map(|asked| &asked.wants).map(cost).sum::<usize>() / GROUPS_PER_PAGE
    }

    /// Pages first: so what waits to be asked for stays small. What is left is spread over all peers.
    fn take_wants(&mut self) -> Vec<Want> {
        let peers = self.sources.len().max(1);
        let take = |wants: &mut Vec<Want>, most: usize| {
            let count = most.min(wants.len().div_ceil(peers));
            wants.split_off(wants.len() - count)
        };
        match self.pages.is_empty() {
            false => take(&mut self.pages, self.burst),
            true => take(&mut self.nodes, self.burst * GROUPS_PER_PAGE),
        }
    }

    fn next_source(&mut self, now: Time) -> Option<ReplicaId> {
        self.turn += 1;
        let turn = self.turn;
        let count = self.sources.len() as u64;
        let ready = self.sources.iter().filter(|(_, source)| {
            !source.caught
                && source.in_flight < REQUESTS_IN_FLIGHT
                && source.rest_until <= now
                && source.absent_until <= now
        });
        ready
            .min_by_key(|(id, source)| (source.in_flight, source.failures, (u64::from(id.0) + turn) % count.max(1)))
            .map(|(id, _)| *id)
    }

    fn forgive(&mut self, now: Time) {
        if !self.sources.values().all(|source| source.caught) {
            self.forgive_at = Time::NEVER;
        } else if self.forgive_at == Time::NEVER {
            self.forgive_at = now + FORGIVE;
        } else if self.forgive_at <= now {
            self.forgive_at = Time::NEVER;
            self.sources.values_mut().for_each(|source| source.caught = false);
        }
    }

    fn give_up(&mut self, now: Time, nonce: u64) {
        let Some(asked) = self.asked.remove(&nonce) else { return };
        self.stats.timeouts += 1;
        self.burst = (self.burst / 2).max(1);
        self.failed(now, asked.peer);
        self.want_again(asked.wants);
    }

    /// `peer` did not do what it was asked for: others are asked first.
    fn failed(&mut self, now: Time, peer: ReplicaId) {
        let Some(source) = self.sources.get_mut(&peer) else { return };
        source.in_flight = source.in_flight.saturating_sub(1);
        source.rest_until = now + REST * (1 << source.failures.min(REST_DOUBLINGS_MAX));
        source.failures = source.failures.saturating_add(1);
    }

    fn want_again(&mut self, wants: Vec<Want>) {
        for want in wants {
            match want.item {
                StateItem::Page { .. } => self.pages.push(want),
                StateItem::Nodes { .. } => self.nodes.push(want),
            }
        }
    }

    // ---- answers --------------------------------------------------------------------------------------------------

    /// An answer of a peer. One that nothing waits for any more is nobody's fault.
    pub fn answer(&mut self, now: Time, mirror: &mut Mirror, from: ReplicaId, answer: StateAnswer) {
        let n = self.target.as_ref().map(|target| target.n);
        let fits = self.asked.get(&answer.nonce).is_some_and(|asked| asked.peer == from);
        if !fits || n != Some(answer.n) {
            return;
        }
        let Some(asked) = self.asked.remove(&answer.nonce) else { return };
        let outcome = match answer.content {
            StateContent::Absent(_) => {
                if let Some(source) = self.sources.get_mut(&from) {
                    (source.absent, source.absent_until) = (true, now + ABSENT);
                    source.in_flight = source.in_flight.saturating_sub(1);
                }
                return self.want_again(asked.wants);
            }
            StateContent::Header(regions) => self.check_header(mirror, asked.wants, regions),
            StateContent::Parts(parts) => self.check_parts(mirror, asked.wants, parts),
        };
        match outcome {
            Ok(true) => {
                self.burst = (self.burst + 1).min(BURST_MAX);
                self.moved_at = now;
                let Some(source) = self.sources.get_mut(&from) else { return };
                let rtt = now.since(asked.at);
                source.srtt = if source.srtt.is_zero() { rtt } else { (7 * source.srtt + rtt) / 8 };
                source.in_flight = source.in_flight.saturating_sub(1);
                (source.failures, source.absent) = (0, false);
            }
            Ok(false) => self.failed(now, from),
            Err(misdeed) => {
                self.failed(now, from);
                let Some(source) = self.sources.get_mut(&from) else { return };
                source.caught = true;
                source.misdeeds.count(misdeed);
            }
        }
    }

    fn check_header(
        &mut self,
        mirror: &mut Mirror,
        wants: Vec<Want>,
        regions: [RegionHead; 2],
    ) -> Result<bool, Misdeed> {
        if !wants.is_empty() {
            self.want_again(wants);
            return Err(Misdeed::WrongStateHeader);
        }
        let Some(target) = &self.target else { return Ok(false) };
        let roots = regions.map(|region| RegionRoot { pages: region.pages, root: region.root });
        if state_root(&roots) != target.root || regions.iter().any(|region| region.pages == 0) {
            return Err(Misdeed::WrongStateHeader);
        }
        if target.header.is_none() {
            self.on_header(mirror, regions);
        }
        Ok(true)
    }

    fn on_header(&mut self, mirror: &mut Mirror, regions: [RegionHead; 2]) {
        let Some(target) = &mut self.target else { return };
        target.header = Some(regions);
        let compared = self.divergence.as_mut().filter(|divergence| divergence.n == target.n && !divergence.healed);
        if let Some(divergence) = compared {
            for (id, region) in RegionId::BOTH.into_iter().zip(&regions) {
                (region.pages..mirror.tree(id).pages()).for_each(|page| divergence.note(id, page));
            }
        }
        for (id, region) in RegionId::BOTH.into_iter().zip(&regions) {
            mirror.resize(id, region.pages);
        }
        mirror.refresh_all();
        for (id, region) in RegionId::BOTH.into_iter().zip(&regions) {
            if mirror.region_root(id).root == region.root {
                continue;
            }
            let expected = Expected::Root(region.root);
            if region.pages == 1 {
                self.want_page(id, 0, expected);
            } else {
                let level = Tree::group_level(region.pages);
                self.nodes.push(Want { item: StateItem::Nodes { region: id, level, group: 0 }, expected });
            }
        }
    }

    fn want_page(&mut self, region: RegionId, page: u32, expected: Expected) {
        if !self.compares {
            self.pages.push(Want { item: StateItem::Page { region, page }, expected });
        }
        let target = self.target.as_ref().map(|target| target.n);
        if let Some(divergence) = &mut self.divergence
            && !divergence.healed
            && Some(divergence.n) == target
        {
            divergence.note(region, page);
        }
    }

    /// Parts in the order of what was asked for, perhaps not all. `Ok(false)`: none at all.
    fn check_parts(&mut self, mirror: &mut Mirror, wants: Vec<Want>, parts: Vec<StatePart>) -> Result<bool, Misdeed> {
        let any = !parts.is_empty();
        let size = |part: &StatePart| match part {
            StatePart::Nodes(nodes) => nodes.len() * size_of::<Cv>(),
            StatePart::Page(bytes) => bytes.len(),
        };
        self.stats.bytes += parts.iter().map(size).sum::<usize>() as u64;
        let mut wants = wants.into_iter();
        let mut outcome = Ok(any);
        for part in parts {
            let Some(want) = wants.next() else {
                outcome = Err(Misdeed::WrongStateHeader);
                break;
            };
            if let Err(misdeed) = self.check_part(mirror, want, part) {
                self.want_again(vec![want]);
                outcome = Err(misdeed);
                break;
            }
        }
        self.want_again(wants.collect());
        outcome
    }

    fn check_part(&mut self, mirror: &mut Mirror, want: Want, part: StatePart) -> Result<(), Misdeed> {
        match (want.item, part) {
            (StateItem::Nodes { region, level, group }, StatePart::Nodes(nodes)) => {
                let right = match want.expected {
                    Expected::Node(cv) => Tree::parent_of(&nodes) == Some(cv),
                    Expected::Root(root) => Tree::root_of(&nodes) == Some(root),
                };
                if !right {
                    return Err(Misdeed::WrongTreeNode);
                }
                self.stats.groups += 1;
                for (i, node) in nodes.into_iter().enumerate() {
                    // What hashes to a certified node has that node's shape: the index is within the region.
                    let index = group * 16 + i as u32;
                    if mirror.tree(region).node(level, index) == Some(&node) {
                        continue;
                    }
                    let expected = Expected::Node(node);
                    match level.checked_sub(1) {
                        None => self.want_page(region, index, expected),
                        Some(level) => {
                            self.nodes.push(Want { item: StateItem::Nodes { region, level, group: index }, expected });
                        }
                    }
                }
                Ok(())
            }
            (StateItem::Page { region, page }, StatePart::Page(bytes)) => {
                let page = PageId(page);
                let content = Page::from_start(&bytes).ok_or(Misdeed::WrongPage)?;
                let cv = page_cv(page, &content);
                let right = match want.expected {
                    Expected::Node(expected) => cv == expected,
                    Expected::Root(root) => *blake3::hash(content.bytes()).as_bytes() == root,
                };
                if !right {
                    return Err(Misdeed::WrongPage);
                }
                self.stats.pages += 1;
                mirror.put(region, page, content, cv);
                Ok(())
            }
            (StateItem::Nodes { .. }, StatePart::Page(_)) => Err(Misdeed::WrongTreeNode),
            (StateItem::Page { .. }, StatePart::Nodes(_)) => Err(Misdeed::WrongPage),
        }
    }
}
