//! Packs that wait for a proposal, and bodies of packs that proposals name by digest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::recent::Recent;
use crate::limits::BATCH_BYTES_MAX;
use crate::types::{ClientId, Digest, Time};
use crate::wire::{Batch, Pack};

/// Why a pack was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Already waiting or proposed in this view. A hint only: execution decides (P21).
    Duplicate,
    /// The client has its quota waiting.
    Quota,
}

/// The primary's waiting packs: bounded for each client, served round-robin (P21).
#[derive(Debug)]
pub struct Queue {
    /// Larger packs are proposed by their digests (P3).
    inline_max: usize,
    waiting: BTreeMap<ClientId, VecDeque<Pack>>,
    bytes: BTreeMap<ClientId, usize>,
    turn: VecDeque<ClientId>,
    requests: usize,
    total_bytes: usize,
    /// What all that waits takes in proposals.
    proposal_bytes: usize,
    /// Packs that wait or are proposed, and not executed yet.
    under_way: BTreeSet<Digest>,
    /// Packs of late, executed or not.
    recent: Recent,
}

impl Queue {
    /// An empty queue of packs that are proposed whole up to `inline_max` bytes.
    pub fn new(inline_max: usize) -> Queue {
        Queue {
            inline_max,
            waiting: BTreeMap::new(),
            bytes: BTreeMap::new(),
            turn: VecDeque::new(),
            requests: 0,
            total_bytes: 0,
            proposal_bytes: 0,
            under_way: BTreeSet::new(),
            recent: Recent::default(),
        }
    }

    /// Appends a pack, unless it is a duplicate or its client has `client_bytes_max` waiting. Of a `wanted` pack the
    /// execution role has said that something in it would still execute: then it is a duplicate only while it is under
    /// way, for what this filter remembers beyond that is a hint and must not keep it out (P21).
    pub fn push(&mut self, pack: Pack, wanted: bool, client_bytes_max: usize) -> Result<(), Refused> {
        let digest = pack.digest();
        if self.under_way.contains(&digest) || !wanted && self.recent.contains(&digest) {
            return Err(Refused::Duplicate);
        }
        let client = pack.client();
        let size = pack.encoded().len();
        let used = self.bytes.entry(client).or_default();
        if *used + size > client_bytes_max {
            return Err(Refused::Quota);
        }
        *used += size;
        self.requests += pack.len();
        self.total_bytes += size;
        self.proposal_bytes += in_proposal(size, self.inline_max);
        self.under_way.insert(digest);
        self.recent.insert(&digest);
        let queue = self.waiting.entry(client).or_default();
        if queue.is_empty() {
            self.turn.push_back(client);
        }
        queue.push_back(pack);
        Ok(())
    }

    /// Takes packs for one batch, clients in turn: at most `requests_max` requests, `packs_max` packs and `bytes_max` bytes of
    /// a proposal, and no more in all than a batch may hold; always at least one pack if any waits.
    pub fn take(&mut self, packs_max: usize, requests_max: usize, bytes_max: usize) -> Vec<Pack> {
        let mut taken = Vec::new();
        let (mut requests, mut bytes, mut all_bytes) = (0, 0, 0);
        while let Some(client) = self.turn.pop_front() {
            let queue = self.waiting.get_mut(&client).expect("a client in turn waits");
            let next = queue.front().expect("a client in turn has a pack");
            let size = next.encoded().len();
            let proposed = in_proposal(size, self.inline_max);
            let full = taken.len() == packs_max
                || requests + next.len() > requests_max
                || bytes + proposed > bytes_max
                || all_bytes + size > BATCH_BYTES_MAX;
            if full && !taken.is_empty() {
                self.turn.push_front(client);
                break;
            }
            requests += next.len();
            bytes += proposed;
            all_bytes += size;
            self.requests -= next.len();
            self.total_bytes -= size;
            self.proposal_bytes -= proposed;
            taken.extend(queue.pop_front());
            let used = self.bytes.get_mut(&client).expect("its bytes are counted");
            *used -= size;
            if queue.is_empty() {
                self.waiting.remove(&client);
                self.bytes.remove(&client);
            } else {
                self.turn.push_back(client);
            }
        }
        taken
    }

    /// The packs of `batch` are executed: no longer under way.
    pub fn executed(&mut self, batch: &Batch) {
        for pack in batch.packs() {
            self.under_way.remove(&pack.digest());
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.turn.is_empty()
    }

    /// Requests that wait.
    pub fn requests(&self) -> usize {
        self.requests
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.total_bytes
    }

    /// Bytes that what waits takes in proposals.
    pub fn proposal_bytes(&self) -> usize {
        self.proposal_bytes
    }
}

/// Bytes of a proposal that a pack of `size` bytes takes: itself and its length, or its digest.
fn in_proposal(size: usize, inline_max: usize) -> usize {
    4 + if size <= inline_max { size } else { size_of::<Digest>() }
}

/// A body younger than this may be the next to be ordered: none that its client sends makes it go.
const YOUNG: Duration = Duration::from_secs(1);

/// Bodies of packs that travel apart from the proposal (P3), each client within its quota. Authentic ones come from
/// the client, the others from replicas that were asked for them.
#[derive(Debug, Default)]
pub struct Bodies {
    packs: BTreeMap<Digest, Body>,
    order: BTreeMap<ClientId, VecDeque<Digest>>,
    bytes: BTreeMap<ClientId, usize>,
    /// Of late moved into the log: other copies are not kept.
    taken: Recent,
}

#[derive(Debug)]
struct Body {
    pack: Pack,
    authentic: bool,
    at: Time,
}

impl Bodies {
    /// Keeps `pack`, which its client sent, unless it lies in the log already, or the client has its quota of others that
    /// came lately. What is proposed and was not kept is asked for.
    pub fn offer(&mut self, now: Time, pack: Pack, client_bytes_max: usize) {
        let (client, size) = (pack.client(), pack.encoded().len());
        let used = self.bytes.get(&client).copied().unwrap_or(0);
        let oldest = self.order.get(&client).and_then(VecDeque::front).and_then(|oldest| self.packs.get(oldest));
        let crowded = used + size > client_bytes_max && oldest.is_some_and(|body| now.since(body.at) < YOUNG);
        let digest = pack.digest();
        if !self.taken.contains(&digest) && (!crowded || self.packs.contains_key(&digest)) {
            self.insert(now, pack, true, client_bytes_max);
        }
    }

    /// Keeps `pack`, which a proposal names; the oldest of the same client go when its quota is full.
    pub fn insert(&mut self, now: Time, pack: Pack, authentic: bool, client_bytes_max: usize) {
        let (digest, client, size) = (pack.digest(), pack.client(), pack.encoded().len());
        if let Some(known) = self.packs.get(&digest) {
            if known.authentic || !authentic {
                return;
            }
            // Its proof is not under the digest, and may be of another length.
            self.drop_body(&digest);
        }
        let used = self.bytes.entry(client).or_default();
        let order = self.order.entry(client).or_default();
        while *used + size > client_bytes_max
            && let Some(oldest) = order.pop_front()
        {
            if let Some(body) = self.packs.remove(&oldest) {
                *used -= body.pack.encoded().len();
            }
        }
        *used += size;
        order.push_back(digest);
        self.packs.insert(digest, Body { pack, authentic, at: now });
    }

    /// The body with this digest, and whether its own proof is good for us.
    pub fn get(&self, digest: &Digest) -> Option<(&Pack, bool)> {
        self.packs.get(digest).map(|body| (&body.pack, body.authentic))
    }

    /// Forgets a body that now lies in the log.
    pub fn remove(&mut self, digest: &Digest) {
        if self.drop_body(digest) {
            self.taken.insert(digest);
        }
    }

    /// Another view: what lies in the log may be lost, and be proposed anew.
    pub fn view_left(&mut self) {
        self.taken.clear();
    }

    /// Whether it was held.
    fn drop_body(&mut self, digest: &Digest) -> bool {
        let Some(body) = self.packs.remove(digest) else { return false };
        let client = body.pack.client();
        let used = self.bytes.get_mut(&client).expect("its bytes are counted");
        *used -= body.pack.encoded().len();
        let order = self.order.get_mut(&client).expect("its order is kept");
        order.retain(|d| d != digest);
        if order.is_empty() {
            self.order.remove(&client);
            self.bytes.remove(&client);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{EndpointId, SessionId};
    use crate::wire::{PackBuilder, Proof, Request, RequestKind};

    /// What client 1 asks under number `t`, with a proof that is longer or shorter and does not change the digest.
    fn pack(t: u64, signed: bool) -> Pack {
        let request = Request { session: SessionId(1), t, low: 0, kind: RequestKind::Ordered, op: &[7; 100][..] };
        let mut builder = PackBuilder::new(ClientId(1), EndpointId(1));
        builder.push(&request);
        builder.finish(false, |_, proof| match signed {
            true => proof.write(Proof::Signature { identity: &[1; 64], signature: &[2; 64] }),
            false => proof.write(Proof::Vector(&[[0; 8]; 4])),
        })
    }

    /// What `client` asks at a time: so many requests, of so many bytes each.
    fn load(client: u64, t: u64, requests: u64, bytes: usize) -> Pack {
        let mut builder = PackBuilder::new(ClientId(client), EndpointId(client));
        let op = vec![7; bytes];
        for i in 0..requests {
            let (session, t) = (SessionId(client), 100 * t + i);
            builder.push(&Request { session, t, low: 0, kind: RequestKind::Ordered, op: &op });
        }
        builder.finish(false, |_, proof| proof.write(Proof::Vector(&[[0; 8]; 4])))
    }

    fn held(bodies: &Bodies) -> usize {
        bodies.packs.values().map(|body| body.pack.encoded().len()).sum()
    }

    #[test]
    fn p21_the_same_body_under_a_longer_proof_is_counted_as_what_it_is() {
        let (vector, signed) = (pack(1, false), pack(1, true));
        assert!(vector.digest() == signed.digest() && vector.encoded().len() < signed.encoded().len());
        let mut bodies = Bodies::default();
        bodies.insert(Time(1), vector, false, 1 << 20);
        bodies.insert(Time(2), signed.clone(), true, 1 << 20);
        assert_eq!(bodies.bytes[&ClientId(1)], signed.encoded().len());
        bodies.remove(&signed.digest());
        assert!(bodies.packs.is_empty() && bodies.order.is_empty() && bodies.bytes.is_empty());
    }

    /// Requests, bytes of a proposal, and bytes of packs.
    fn sums<'a>(packs: impl IntoIterator<Item = &'a Pack>, inline_max: usize) -> [usize; 3] {
        packs.into_iter().fold([0; 3], |[requests, inline, all], pack| {
            let size = pack.encoded().len();
            let proposed = if size <= inline_max { 4 + size } else { 4 + 32 };
            [requests + pack.len(), inline + proposed, all + size]
        })
    }

    #[test]
    fn p21_the_body_that_came_first_goes_first_though_it_comes_again() {
        let quota = 2 * pack(0, false).encoded().len();
        let mut bodies = Bodies::default();
        for t in [1, 2, 1, 3] {
            bodies.insert(Time(t), pack(t, false), true, quota);
        }
        assert_eq!([1, 2, 3].map(|t| bodies.get(&pack(t, false).digest()).is_some()), [false, true, true]);
    }

    #[test]
    fn p21_what_a_client_sends_puts_out_no_body_that_came_lately() {
        let quota = 2 * pack(0, false).encoded().len();
        let mut bodies = Bodies::default();
        let held = |bodies: &Bodies| [1, 2, 3].map(|t| bodies.get(&pack(t, false).digest()).is_some());
        let at = |t: u64, later: Duration| Time(t) + later;
        for t in [1, 2, 3, 1] {
            bodies.offer(Time(t), pack(t, false), quota);
        }
        assert_eq!(held(&bodies), [true, true, false], "the first may be the next to be ordered");
        bodies.offer(at(0, YOUNG), pack(3, false), quota);
        assert_eq!(held(&bodies), [true, true, false]);
        bodies.offer(at(1, YOUNG), pack(3, false), quota);
        assert_eq!(held(&bodies), [false, true, true], "nobody ordered it in all that time");
        bodies.insert(at(2, YOUNG), pack(1, false), false, quota);
        assert_eq!(held(&bodies), [true, false, true], "what a proposal names is kept at any rate");
        bodies.offer(at(3, YOUNG), pack(1, false), quota);
        assert!(bodies.get(&pack(1, false).digest()).is_some_and(|(_, authentic)| authentic), "it has its place");
    }

    #[test]
    fn p21_a_copy_of_what_lies_in_the_log_is_not_kept_in_this_view() {
        let mut bodies = Bodies::default();
        let (body, digest) = (pack(1, false), pack(1, false).digest());
        bodies.remove(&digest);
        bodies.offer(Time(1), body.clone(), 1 << 20);
        assert!(bodies.get(&digest).is_some(), "what was not held was not taken");
        bodies.remove(&digest);
        bodies.offer(Time(2), body.clone(), 1 << 20);
        assert!(bodies.get(&digest).is_none());
        bodies.insert(Time(3), body.clone(), true, 1 << 20);
        assert!(bodies.get(&digest).is_some(), "it was proposed again");
        bodies.remove(&digest);
        bodies.view_left();
        bodies.offer(Time(4), body, 1 << 20);
        assert!(bodies.get(&digest).is_some());
    }

    #[test]
    fn p21_a_client_fills_its_quota_to_the_last_byte() {
        let quota = [1, 2].map(|t| pack(t, false).encoded().len()).iter().sum();
        let mut queue = Queue::new(1 << 10);
        let taken = [1, 2, 3].map(|t| queue.push(pack(t, false), false, quota));
        assert_eq!(taken, [Ok(()), Ok(()), Err(Refused::Quota)]);
        assert_eq!(queue.bytes(), quota);
    }

    #[test]
    fn p44_a_batch_is_filled_to_the_last_byte() {
        let framing = load(1, 1, 1, 0).encoded().len();
        let mut queue = Queue::new(8 << 10);
        let mut left = BATCH_BYTES_MAX;
        for t in 0.. {
            let size = left.min(1 << 20);
            queue.push(load(1, t, 1, size - framing), false, 32 << 20).unwrap();
            left -= size;
            if left == 0 {
                break;
            }
        }
        queue.push(load(1, 99, 1, 0), false, 32 << 20).unwrap();
        assert_eq!(sums(&queue.take(100, 100, 1 << 20), 0)[2], BATCH_BYTES_MAX);
        assert_eq!(queue.requests(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn p10_p21_a_batch_takes_what_fits_and_what_waits_is_counted_right(
            steps in prop::collection::vec((0..4u8, 1..4u64, 1..4u64, 0..3usize), 1..40),
            packs_max in 1..6usize,
            requests_max in 1..8usize,
            loads in 1..6usize,
        ) {
            let sizes = [8, 100, 600_000];
            let unit = load(1, 1, 1, sizes[1]).encoded().len();
            let (inline_max, bytes_max, quota) = (2 * unit, loads * (4 + unit), 4_000_000);
            let mut queue = Queue::new(inline_max);
            for (t, (step, client, requests, size)) in (0..).zip(steps) {
                let client_waits = |queue: &Queue| sums(queue.waiting.get(&ClientId(client)).into_iter().flatten(), 0)[2];
                if step > 0 {
                    let pack = load(client, t, requests, sizes[size]);
                    let fits = client_waits(&queue) + pack.encoded().len() <= quota;
                    prop_assert_eq!(queue.push(pack.clone(), false, quota), if fits { Ok(()) } else { Err(Refused::Quota) });
                    let again = if fits { Refused::Duplicate } else { Refused::Quota };
                    prop_assert_eq!(queue.push(pack, false, quota), Err(again));
                } else {
                    let taken = queue.take(packs_max, requests_max, bytes_max);
                    let within = |packs: &[Pack]| {
                        let [requests, inline, all] = sums(packs, inline_max);
                        packs.len() <= packs_max && requests <= requests_max && inline <= bytes_max && all <= BATCH_BYTES_MAX
                    };
                    prop_assert!(taken.len() <= 1 || within(&taken));
                    if let Some(next) = queue.turn.front() {
                        let mut more = taken.clone();
                        more.push(queue.waiting[next][0].clone());
                        prop_assert!(!taken.is_empty() && !within(&more), "another fits");
                    }
                }
                let [requests, proposed, bytes] = sums(queue.waiting.values().flatten(), inline_max);
                prop_assert_eq!((queue.requests(), queue.proposal_bytes(), queue.bytes()), (requests, proposed, bytes));
                prop_assert_eq!(queue.is_empty(), requests == 0);
                prop_assert_eq!(queue.bytes.get(&ClientId(client)).copied().unwrap_or(0), client_waits(&queue));
            }
        }

    }

    proptest! {
        #[test]
        fn p21_bodies_stay_within_the_clients_quota_and_are_counted_right(
            steps in prop::collection::vec((0..3u8, 0..8u64, any::<bool>(), any::<bool>()), 0..60),
        ) {
            let quota = 4 * pack(0, true).encoded().len();
            let mut bodies = Bodies::default();
            for (step, t, signed, authentic) in steps {
                match step {
                    0 => bodies.remove(&pack(t, signed).digest()),
                    _ => {
                        let (count, bytes) = (bodies.packs.len(), held(&bodies));
                        let known = bodies.get(&pack(t, signed).digest()).is_some();
                        bodies.insert(Time(t), pack(t, signed), authentic, quota);
                        let (_, good) = bodies.get(&pack(t, signed).digest()).expect("the newest is kept");
                        prop_assert!(good || !authentic);
                        if !known && bytes + pack(t, signed).encoded().len() <= quota {
                            prop_assert_eq!(bodies.packs.len(), count + 1, "there was room");
                        }
                    }
                }
                prop_assert_eq!(bodies.bytes.get(&ClientId(1)).copied().unwrap_or(0), held(&bodies));
                prop_assert!(held(&bodies) <= quota);
                prop_assert_eq!(bodies.order.get(&ClientId(1)).map_or(0, VecDeque::len), bodies.packs.len());
            }
        }
    }
}
