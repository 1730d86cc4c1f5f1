//! Liars with real keys. A record of a few bytes becomes a message that a replica must look at: of its view or a
//! neighbour of it, in its window or just beside it, about batches, roots and statements that exist.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};

use arbitrary::Unstructured;
use bytes::Bytes;
use castra::auth::{AuthMode, Clients, ClusterKeys, Identity, Keyring, Rights, Signer};
use castra::protocol::view_change::decision::{Member, decide};
use castra::types::{
    ClusterSize, Digest, Domain, EndpointId, RegionId, ReplicaId, ReplicaSet, SeqNum, SessionId, Time, View,
};
use castra::wire::{
    Batch, Choice, Claim, Committed, Entry, FetchState, Message, NewView, Pack, PackBuilder, PrePrepare, Proof,
    Proposed, RegionHead, Request, RequestKind, Signed, SignedCheckpoint, StableAnswer, StateAnswer, StateContent,
    StateItem, StatePart, Status, ViewChange, Vote, WantedViewChange,
};

/// K and L of the clusters here: small, so that every watermark is near.
pub const K: u64 = 2;
pub const L: u64 = 6;
/// Clients that the clusters let in.
pub const CLIENTS: usize = 2;

pub fn size() -> ClusterSize {
    ClusterSize::tolerating(1).unwrap()
}

/// The keys of everyone, made once: key agreement costs more than most inputs.
pub struct Keys {
    pub replicas: Vec<Keyring>,
    pub clients: Vec<Keyring>,
}

pub fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let identity = |kind: u8, i: usize| Identity::from_seed([kind * 16 + i as u8; 32]);
        let replicas: Vec<_> = (0..size().n()).map(|i| identity(1, i)).collect();
        let clients: Vec<_> = (0..CLIENTS).map(|i| identity(2, i)).collect();
        let cluster = Arc::new(ClusterKeys {
            cluster: Digest::of(Domain::Cluster, &[b"fuzzing"]),
            instance: 1,
            replicas: replicas.iter().map(Identity::public).collect(),
            clients: Clients::listed(clients.iter().map(|id| (id.public(), Rights::READ_WRITE))),
        });
        let replica = |(id, identity)| Keyring::replica(id, identity, cluster.clone(), AuthMode::Mac).unwrap();
        let client = |identity| Keyring::client(identity, EndpointId(7), cluster.clone(), AuthMode::Mac).unwrap();
        Keys {
            replicas: size().replicas().zip(&replicas).map(replica).collect(),
            clients: clients.iter().map(client).collect(),
        }
    })
}

/// The last few of something.
pub struct Recent<T>(VecDeque<T>);

impl<T> Default for Recent<T> {
    fn default() -> Recent<T> {
        Recent(VecDeque::new())
    }
}

impl<T: PartialEq> Recent<T> {
    pub fn push(&mut self, item: T) {
        self.0.retain(|known| *known != item);
        if self.0.len() == 32 {
            self.0.pop_front();
        }
        self.0.push_back(item);
    }

    /// The `back`-th from the last.
    pub fn back(&self, back: u8) -> Option<&T> {
        let len = self.0.len().max(1);
        self.0.iter().rev().nth(usize::from(back) % len)
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.0.iter()
    }
}

/// What liars and clients have heard, from correct replicas and each other.
#[derive(Default)]
pub struct Known {
    pub digests: Recent<Digest>,
    pub packs: Recent<Pack>,
    batches: Recent<Arc<Batch>>,
    pub entries: Recent<Entry>,
    pub roots: Recent<(SeqNum, Digest)>,
    checkpoints: Recent<SignedCheckpoint>,
    view_changes: Recent<Arc<Signed<ViewChange>>>,
    new_views: Recent<Arc<Signed<NewView>>>,
    nonces: Recent<u64>,
    fetches: Recent<FetchState>,
    pub sessions: Recent<SessionId>,
}

impl Known {
    pub fn learn(&mut self, message: &Message) {
        match message {
            Message::PrePrepare(p) => self.learn_proposal(p),
            Message::Prepare(vote) | Message::Commit(vote) => self.digests.push(vote.digest),
            Message::Committed(c) | Message::FetchBatch(c) => self.digests.push(c.digest),
            Message::Checkpoint(c) => self.learn_checkpoint(*c),
            Message::Stable(proof) => proof.iter().for_each(|c| self.learn_checkpoint(*c)),
            Message::Status(status) => self.nonces.push(status.nonce),
            Message::Batch(_, batch) => self.batches.push(batch.clone()),
            Message::FetchPack(digest) => self.digests.push(*digest),
            Message::Relay(pack) => self.packs.push(pack.clone()),
            Message::FetchState(fetch) => self.fetches.push(fetch.clone()),
            Message::ViewChange(signed) => self.view_changes.push(signed.clone()),
            Message::NewView(signed) => self.new_views.push(signed.clone()),
            _ => {}
        }
    }

    fn learn_checkpoint(&mut self, c: SignedCheckpoint) {
        self.roots.push((c.n, c.root));
        self.checkpoints.push(c);
    }

    fn learn_proposal(&mut self, p: &PrePrepare) {
        let digest = p.digest();
        self.digests.push(digest);
        self.entries.push(Entry { n: p.n, digest, view: p.view });
        let inline = |proposed: &Proposed| match proposed {
            Proposed::Inline(pack) => Some(pack.clone()),
            Proposed::ByDigest(digest) => self.packs.iter().find(|pack| pack.digest() == *digest).cloned(),
        };
        if let Some(packs) = p.packs.iter().map(inline).collect::<Option<Vec<_>>>() {
            self.batches.push(Arc::new(Batch::new(p.choice, packs)));
        }
    }

    /// q signed checkpoints of one root at `n`, if they exist.
    fn proof(&self, n: SeqNum) -> Vec<SignedCheckpoint> {
        let mut by_root: BTreeMap<Digest, BTreeMap<ReplicaId, SignedCheckpoint>> = BTreeMap::new();
        for c in self.checkpoints.iter().filter(|c| c.n == n) {
            by_root.entry(c.root).or_default().insert(c.replica, *c);
        }
        let full = by_root.into_values().find(|signers| signers.len() >= size().quorum());
        full.map_or_else(Vec::new, |signers| signers.into_values().take(size().quorum()).collect())
    }
}

/// Where the replica stands whom the liars talk to.
#[derive(Clone, Copy)]
pub struct Stand {
    pub now: Time,
    pub view: View,
    pub executed: SeqNum,
    pub stable: SeqNum,
}

/// A few bytes that say what a liar says. Where they end, zeroes go on.
pub struct Record<'a>(Unstructured<'a>);

impl<'a> Record<'a> {
    /// Bytes that one record takes of an input.
    pub const BYTES: usize = 24;

    pub fn new(bytes: &'a [u8]) -> Record<'a> {
        Record(Unstructured::new(bytes))
    }

    pub fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub fn chance(&mut self, of_256: u8) -> bool {
        self.byte() > 255 - of_256
    }

    fn any(&mut self) -> u64 {
        match self.byte() % 8 {
            0 => u64::MAX,
            1 => u64::MAX - u64::from(self.byte()),
            2 => 1 << (self.byte() % 64),
            _ => u64::from(self.byte()),
        }
    }

    pub fn view(&mut self, stand: &Stand) -> View {
        let view = stand.view.0;
        View(match self.byte() % 16 {
            0..=8 => view,
            9..=11 => view.saturating_add(1),
            12 => view.saturating_add(2),
            13 => view.saturating_sub(1),
            14 => view.saturating_add(u64::from(self.byte())),
            _ => self.any(),
        })
    }

    pub fn n(&mut self, stand: &Stand) -> SeqNum {
        SeqNum(match self.byte() % 16 {
            b @ 0..=7 => stand.executed.0 + u64::from(b),
            8 => stand.stable.0,
            b @ 9..=11 => stand.stable.0 + L + u64::from(b - 9),
            12 => stand.executed.0.saturating_sub(1),
            13 => (stand.executed.0 / K + 1) * K,
            14 => stand.executed.0 / K * K,
            _ => self.any(),
        })
    }

    fn checkpoint_n(&mut self, stand: &Stand) -> SeqNum {
        let n = self.n(stand);
        if self.chance(16) { n } else { SeqNum(n.0 / K * K) }
    }

    pub fn digest(&mut self, known: &Known) -> Digest {
        match self.byte() {
            b @ 0..=199 => known.digests.back(b).copied().unwrap_or_default(),
            200..=220 => Batch::null().digest(),
            b => Digest([b; 32]),
        }
    }

    fn choice(&mut self, stand: &Stand) -> Choice {
        let time = match self.byte() {
            b @ 0..=199 => stand.now.0.wrapping_add(u64::from(b)),
            200..=229 => stand.now.0 + 3_000_000_000 * u64::from(self.byte()),
            _ => self.any(),
        };
        Choice { time, seed: 0 }
    }

    fn vote(&mut self, stand: &Stand, known: &Known) -> Vote {
        Vote { view: self.view(stand), n: self.n(stand), digest: self.digest(known) }
    }

    fn committed(&mut self, stand: &Stand, known: &Known) -> Committed {
        Committed { n: self.n(stand), digest: self.digest(known) }
    }

    pub fn pre_prepare(&mut self, stand: &Stand, known: &Known) -> PrePrepare {
        let (view, n, choice) = (self.view(stand), self.n(stand), self.choice(stand));
        let packs = (0..self.byte() % 4).filter_map(|_| {
            let pack = known.packs.back(self.byte());
            let whole = pack.filter(|_| !self.chance(64)).cloned().map(Proposed::Inline);
            whole.or_else(|| Some(Proposed::ByDigest(self.digest(known))))
        });
        PrePrepare { view, n, choice, packs: packs.collect() }
    }

    fn root(&mut self, known: &Known, n: SeqNum) -> Digest {
        let of_n = known.roots.iter().rev().find(|(at, _)| *at == n).map(|(_, root)| *root);
        match self.byte() {
            0..=199 => of_n.unwrap_or_default(),
            b => Digest([b; 32]),
        }
    }

    fn entries(&mut self, stand: &Stand, known: &Known, count: u8) -> Vec<Entry> {
        let mut entries: Vec<Entry> = (0..count)
            .map(|_| match known.entries.back(self.byte()) {
                Some(entry) if !self.chance(64) => *entry,
                _ => Entry { n: self.n(stand), digest: self.digest(known), view: self.view(stand) },
            })
            .collect();
        entries.sort_by_key(|entry| (entry.n, entry.digest));
        entries.dedup_by_key(|entry| (entry.n, entry.digest));
        entries
    }

    /// Entries as they are, or nearly: what a correct replica that saw everything would say.
    fn true_entries(&mut self, known: &Known, above: SeqNum) -> (Vec<Entry>, Vec<Entry>) {
        let mut pre_prepared: BTreeMap<(SeqNum, Digest), Entry> = BTreeMap::new();
        for entry in known.entries.iter().filter(|e| e.n > above && e.n.0 <= above.0 + L) {
            let latest = pre_prepared.entry((entry.n, entry.digest)).or_insert(*entry);
            latest.view = latest.view.max(entry.view);
        }
        let mut prepared: BTreeMap<SeqNum, Entry> = BTreeMap::new();
        for entry in pre_prepared.values() {
            let latest = prepared.entry(entry.n).or_insert(*entry);
            if entry.view > latest.view {
                *latest = *entry;
            }
        }
        let keep = self.byte();
        let kept = |i: &usize| keep >> (i % 8) & 1 == 0;
        let prepared = prepared.into_values().enumerate().filter(|(i, _)| kept(i)).map(|(_, e)| e).collect();
        (prepared, pre_prepared.into_values().collect())
    }

    pub fn view_change(&mut self, stand: &Stand, known: &Known, view: View) -> ViewChange {
        let mut stable = if self.chance(32) { self.checkpoint_n(stand) } else { stand.stable };
        let mut proof = known.proof(stable);
        if proof.is_empty() && !self.chance(8) {
            stable = SeqNum(0);
        }
        if stable == SeqNum(0) {
            proof.clear();
        }
        let (prepared, pre_prepared) = if self.chance(128) {
            let mut prepared = self.entries(stand, known, 2);
            prepared.dedup_by_key(|entry| entry.n);
            (prepared, self.entries(stand, known, 4))
        } else {
            self.true_entries(known, stable)
        };
        ViewChange { replica: ReplicaId(0), boot: 0, view, stable, proof, prepared, pre_prepared }
    }

    /// A NEW-VIEW of the view-changes that exist, decided as it should be, or not quite.
    pub fn new_view(&mut self, stand: &Stand, known: &Known, view: View) -> NewView {
        let mut latest: BTreeMap<ReplicaId, &Signed<ViewChange>> = BTreeMap::new();
        for signed in known.view_changes.iter().filter(|signed| signed.statement().view == view) {
            latest.insert(signed.statement().replica, signed);
        }
        let left_out = self.byte();
        let members: Vec<(ReplicaId, Digest)> = latest
            .iter()
            .filter(|(id, _)| latest.len() <= size().quorum() || left_out % 8 != id.0)
            .map(|(id, signed)| (*id, signed.digest()))
            .collect();
        let said: Vec<Member> =
            latest.values().map(|signed| signed.statement()).filter(|v| v.stable.0 < 1 << 40).map(member).collect();
        let decision = decide(size(), L, &said);
        let mut stable = decision.as_ref().map_or(SeqNum(0), |decision| decision.stable);
        let mut chosen: Vec<Digest> =
            decision.map_or_else(Vec::new, |decision| decision.chosen.iter().map(|chosen| chosen.digest()).collect());
        match self.byte() {
            0..=199 => {}
            200..=219 => chosen.push(self.digest(known)),
            220..=229 => drop(chosen.pop()),
            230..=239 => chosen.iter_mut().take(1).for_each(|first| *first = self.digest(known)),
            _ => stable = self.n(stand),
        }
        NewView { replica: ReplicaId(0), boot: 0, view, members, stable, chosen }
    }

    fn state_item(&mut self) -> StateItem {
        let region = RegionId::BOTH[usize::from(self.byte() % 2)];
        let number = self.any() as u32;
        match self.byte() {
            level @ 0..=7 => StateItem::Nodes { region, level, group: number },
            _ => StateItem::Page { region, page: number },
        }
    }

    fn state(&mut self, stand: &Stand, known: &Known) -> StateAnswer {
        let asked = known.fetches.back(self.byte());
        let (n, nonce) = match asked {
            Some(fetch) if !self.chance(32) => (fetch.n, fetch.nonce),
            _ => (self.n(stand), self.any()),
        };
        let content = match self.byte() % 4 {
            0 => {
                let held: std::collections::BTreeSet<SeqNum> = (0..self.byte() % 4).map(|_| self.n(stand)).collect();
                StateContent::Absent(held.into_iter().collect())
            }
            1 => {
                let mut head = || RegionHead { pages: self.any() as u32, root: [self.byte(); 32] };
                StateContent::Header([head(), head()])
            }
            _ => {
                let mut part = |item: &StateItem| match item {
                    StateItem::Nodes { .. } if !self.chance(16) => {
                        StatePart::Nodes(vec![[self.byte(); 32]; 1 + usize::from(self.byte() % 16)])
                    }
                    _ => StatePart::Page(Bytes::from(vec![1 + self.byte() % 255; usize::from(self.byte())])),
                };
                StateContent::Parts(asked.map_or_else(Vec::new, |fetch| fetch.items.iter().map(&mut part).collect()))
            }
        };
        StateAnswer { n, nonce, content }
    }

    fn status(&mut self, stand: &Stand) -> Status {
        let flags = self.byte();
        Status {
            view: self.view(stand),
            stable: self.n(stand),
            executed: self.n(stand),
            recovering: flags & 1 != 0,
            until: if flags & 16 != 0 { self.n(stand) } else { SeqNum(0) },
            floor: if flags & 32 != 0 { self.view(stand) } else { View(0) },
            wants: flags & 2 == 0,
            pending: flags & 4 != 0,
            view_changes: ReplicaSet::from_bits(u64::from(self.byte())),
            nonce: self.any(),
            prepared: if flags & 8 != 0 { vec![u64::MAX; 256] } else { vec![self.any()] },
            committed: vec![self.any()],
        }
    }

    /// What one liar says. Every kind of message that a replica takes.
    pub fn message(&mut self, stand: &Stand, known: &Known, signer: &Signer) -> Message {
        match self.byte() % 26 {
            0 | 17 => Message::PrePrepare(self.pre_prepare(stand, known)),
            1 | 18 => Message::Prepare(self.vote(stand, known)),
            2 | 19 => Message::Commit(self.vote(stand, known)),
            3 | 20 => Message::Committed(self.committed(stand, known)),
            4 => {
                let n = self.checkpoint_n(stand);
                match signer.sign_checkpoint(n, self.root(known, n)).into_inner() {
                    Claim::Checkpoint(c) => Message::Checkpoint(c),
                    other => unreachable!("a checkpoint was signed, not {other:?}"),
                }
            }
            5 => {
                let n = self.checkpoint_n(stand);
                let proof = known.proof(n);
                match known.checkpoints.back(self.byte()) {
                    _ if !proof.is_empty() => Message::Stable(proof),
                    Some(one) => Message::Stable(vec![*one]),
                    None => Message::Answered(0),
                }
            }
            6 | 21 => Message::Status(self.status(stand)),
            7 => Message::FetchBatch(self.committed(stand, known)),
            8 => match known.batches.back(self.byte()) {
                Some(batch) => Message::Batch(self.n(stand), batch.clone()),
                None => Message::Batch(self.n(stand), Arc::new(Batch::null())),
            },
            9 => Message::FetchPack(self.digest(known)),
            10 => match known.packs.back(self.byte()) {
                Some(pack) => Message::Relay(pack.clone()),
                None => Message::FetchPack(self.digest(known)),
            },
            11 => Message::Answered(known.nonces.back(self.byte()).copied().unwrap_or_default()),
            12 => {
                let items = (0..self.byte() % 4).map(|_| self.state_item()).collect();
                Message::FetchState(FetchState { n: self.checkpoint_n(stand), nonce: self.any(), items })
            }
            13 | 22 => Message::State(self.state(stand, known)),
            14 => {
                let view = self.view(stand);
                sign_view_change(signer, self.view_change(stand, known, view))
            }
            15 => {
                let view = self.view(stand);
                sign_new_view(signer, self.new_view(stand, known, view))
            }
            16 => {
                let (view, replica) = (self.view(stand), ReplicaId(self.byte() % 5));
                let digest = known.view_changes.back(self.byte()).map_or(Digest::default(), |signed| signed.digest());
                Message::FetchViewChange(WantedViewChange { view, replica, digest })
            }
            24 => Message::QueryStable(self.any()),
            25 => {
                let view_change = known.view_changes.back(self.byte()).cloned();
                let (nonce, signed, prepared) = (1, self.checkpoint_n(stand), self.n(stand));
                Message::StableAnswer(StableAnswer { nonce, signed, prepared, view_change })
            }
            // Somebody else's words, handed on.
            _ => match (known.view_changes.back(self.byte()), known.new_views.back(self.byte())) {
                (_, Some(signed)) if self.chance(128) => Message::NewView(signed.clone()),
                (Some(signed), _) => Message::ViewChange(signed.clone()),
                (None, _) => Message::Answered(self.any()),
            },
        }
    }

    /// A client's pack: in sessions that exist or not, numbered as it likes, its vector good for some replicas only.
    pub fn pack(&mut self, known: &Known, keys: &Keyring) -> Option<Pack> {
        let castra::auth::Principal::Client(client, endpoint) = keys.me() else { return None };
        let kind = self.byte();
        let (signed, full, spoiled) = (self.chance(100), self.chance(64), self.byte());
        let mut requests = Vec::new();
        for i in 0..1 + self.byte() % 3 {
            let session = match self.byte() {
                b @ 0..=229 => known.sessions.back(b).copied().unwrap_or(SessionId(1 << 20)),
                _ => SessionId(self.any()),
            };
            let t = if self.chance(32) { self.any() } else { u64::from(self.byte() % 12) + u64::from(i) };
            let low = if self.chance(200) { 0 } else { u64::from(self.byte() % 12) };
            let op = match self.byte() {
                token @ 0..=199 => u64::from(token).to_le_bytes().to_vec(),
                200..=219 => Vec::new(),
                220..=239 => u64::MAX.to_le_bytes().to_vec(),
                b => vec![b; 600],
            };
            let (session, t, kind, op) = match kind % 8 {
                0..=3 => (session, t, RequestKind::Ordered, op),
                4 => (SessionId::NONE, t, RequestKind::ReadOnly, op),
                5 | 6 => {
                    let window = if self.chance(32) { self.any() } else { 1 + u64::from(self.byte() % 8) };
                    let counter = if self.chance(16) { t } else { t.saturating_add(100) };
                    let op = [counter.to_le_bytes(), window.to_le_bytes()].concat();
                    (SessionId::NONE, counter, RequestKind::Open, op)
                }
                _ => (session, t, RequestKind::Close, Vec::new()),
            };
            requests.push((session, t, low.min(t), kind, op));
        }
        let opens = requests.iter().any(|(_, _, _, kind, _)| *kind == RequestKind::Open);
        let mut builder = PackBuilder::new(client, endpoint);
        for (session, t, low, kind, op) in &requests {
            let request = Request { session: *session, t: *t, low: *low, kind: *kind, op };
            if builder.accepts(&request) {
                builder.push(&request);
            }
        }
        if builder.is_empty() {
            return None;
        }
        if signed || opens && spoiled % 16 != 1 {
            return Some(keys.seal_pack(&mut builder, full, true));
        }
        if opens {
            // Unsigned, which no correct client's is.
            return Some(builder.finish(full, |_, writer| writer.write(Proof::Vector(&[[0; 8]; 4]))));
        }
        let good = keys.seal_pack(&mut builder.clone(), full, false);
        let Proof::Vector(entries) = good.proof() else { return Some(good) };
        let mut entries = entries.to_vec();
        for (i, entry) in entries.iter_mut().enumerate() {
            entry[0] ^= u8::from(spoiled & 0x80 != 0) & spoiled >> i & 1;
        }
        Some(builder.finish(full, |_, writer| writer.write(Proof::Vector(&entries))))
    }
}

fn member(v: &ViewChange) -> Member {
    let mut pre_prepared: BTreeMap<SeqNum, BTreeMap<Digest, View>> = BTreeMap::new();
    for entry in &v.pre_prepared {
        pre_prepared.entry(entry.n).or_default().insert(entry.digest, entry.view);
    }
    let prepared = v.prepared.iter().map(|entry| (entry.n, (entry.digest, entry.view))).collect();
    Member { replica: v.replica, stable: v.stable, prepared, pre_prepared }
}

pub fn sign_view_change(signer: &Signer, view_change: ViewChange) -> Message {
    match signer.sign_view_change(view_change).into_inner() {
        Claim::ViewChange(signed) => Message::ViewChange(signed),
        other => unreachable!("a view-change was signed, not {other:?}"),
    }
}

pub fn sign_new_view(signer: &Signer, new_view: NewView) -> Message {
    match signer.sign_new_view(new_view).into_inner() {
        Claim::NewView(signed) => Message::NewView(signed),
        other => unreachable!("a new-view was signed, not {other:?}"),
    }
}
