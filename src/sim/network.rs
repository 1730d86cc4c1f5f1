//! The network between simulated hosts: what happens to a datagram between its sender and its receiver.

use std::collections::BTreeSet;
use std::time::Duration;

use super::rng::Rng;
use super::world::HostId;
use crate::limits;
use crate::types::Time;

/// How the links behave. Probabilities are per mille and per datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// The least time from sender to receiver.
    pub delay: Duration,
    /// Up to this much is added, evenly distributed. By itself it keeps a link's datagrams in order.
    pub jitter: Duration,
    /// Lost.
    pub loss: u32,
    /// Delivered twice, the second copy late and out of order.
    pub duplicate: u32,
    /// Held back by up to `reorder_delay`, so that later datagrams overtake it.
    pub reorder: u32,
    /// See `reorder`.
    pub reorder_delay: Duration,
    /// One bit is flipped on the way: a proof must catch it.
    pub corrupt: u32,
    /// Larger datagrams do not pass.
    pub mtu: usize,
    /// Bytes in flight on one link; what comes above is lost.
    pub queue_max: usize,
}

impl Link {
    /// A link that keeps every datagram, in order: 20 to 40 µs.
    pub const CLEAN: Link = Link {
        delay: Duration::from_micros(20),
        jitter: Duration::from_micros(20),
        loss: 0,
        duplicate: 0,
        reorder: 0,
        reorder_delay: Duration::ZERO,
        corrupt: 0,
        mtu: limits::DATAGRAM_MAX,
        queue_max: 64 << 20,
    };

    /// The same link without what can go wrong by chance: delay, MTU and queue stay.
    pub fn calm(self) -> Link {
        Link { loss: 0, duplicate: 0, reorder: 0, corrupt: 0, ..self }
    }
}

/// What became of the datagrams so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NetworkCounters {
    /// Handed to the network.
    pub sent: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// Damaged.
    pub corrupted: u64,
    /// Larger than the MTU.
    pub oversize: u64,
    /// Lost to a full link.
    pub overflowed: u64,
    /// Lost to a cut link.
    pub cut: u64,
    /// Sent to an address that nobody has.
    pub nowhere: u64,
}

/// One copy of a datagram on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passage {
    pub arrives: Time,
    pub corrupt: bool,
}

#[derive(Clone, Copy, Default)]
struct LinkState {
    in_flight: usize,
    last_arrival: Time,
}

/// All links between `hosts` hosts, one in each direction of each pair.
pub struct Network {
    link: Link,
    hosts: usize,
    states: Vec<LinkState>,
    cut: BTreeSet<(HostId, HostId)>,
    rng: Rng,
    pub(super) counters: NetworkCounters,
}

impl Network {
    /// A network whose links are all `link`.
    pub fn new(link: Link, rng: Rng) -> Network {
        Network { link, hosts: 0, states: Vec::new(), cut: BTreeSet::new(), rng, counters: NetworkCounters::default() }
    }

    /// What became of the datagrams so far.
    pub fn counters(&self) -> NetworkCounters {
        self.counters
    }

    /// How links behave now.
    pub fn link(&self) -> Link {
        self.link
    }

    /// From now on, all links are `link`; what is on its way arrives as it would have.
    pub fn set_link(&mut self, link: Link) {
        self.link = link;
    }

    /// Nothing passes from `from` to `to` any more. One direction only: a one-way partition is two hosts and one call.
    pub fn cut(&mut self, from: HostId, to: HostId) {
        self.cut.insert((from, to));
    }

    /// The link passes again.
    pub fn join(&mut self, from: HostId, to: HostId) {
        self.cut.remove(&(from, to));
    }

    /// All links pass again.
    pub fn mend(&mut self) {
        self.cut.clear();
    }

    pub(super) fn resize(&mut self, hosts: usize) {
        assert!(self.states.iter().all(|s| s.in_flight == 0), "hosts are added before anything is sent");
        self.hosts = hosts;
        self.states = vec![LinkState::default(); hosts * hosts];
    }

    fn state(&mut self, from: HostId, to: HostId) -> &mut LinkState {
        &mut self.states[from.0 * self.hosts + to.0]
    }

    /// Decides the fate of a datagram of `len` bytes that leaves at `now`: none, one or two passages.
    pub(super) fn carry(&mut self, now: Time, from: HostId, to: HostId, len: usize) -> [Option<Passage>; 2] {
        let link = self.link;
        self.counters.sent += 1;
        self.counters.bytes += len as u64;
        if len > link.mtu {
            self.counters.oversize += 1;
            return [None, None];
        }
        if self.cut.contains(&(from, to)) {
            self.counters.cut += 1;
            return [None, None];
        }
        if self.rng.chance(link.loss) {
            self.counters.lost += 1;
            return [None, None];
        }
        let copies = if self.rng.chance(link.duplicate) { 2 } else { 1 };
        let mut passages = [None, None];
        for (copy, passage) in passages.iter_mut().enumerate().take(copies) {
            if self.state(from, to).in_flight + len > link.queue_max {
                self.counters.overflowed += 1;
                continue;
            }
            let straight = now + link.delay + self.rng.up_to(link.jitter);
            let held = copy > 0 || self.rng.chance(link.reorder);
            let arrives = if held {
                match copy {
                    0 => self.counters.reordered += 1,
                    _ => self.counters.duplicated += 1,
                }
                straight + self.rng.up_to(link.reorder_delay)
            } else {
                let state = self.state(from, to);
                state.last_arrival = straight.max(state.last_arrival);
                state.last_arrival
            };
            let corrupt = self.rng.chance(link.corrupt);
            self.counters.corrupted += u64::from(corrupt);
            self.state(from, to).in_flight += len;
            *passage = Some(Passage { arrives, corrupt });
        }
        passages
    }

    /// A copy has left the link.
    pub(super) fn arrived(&mut self, from: HostId, to: HostId, len: usize) {
        self.state(from, to).in_flight -= len;
    }

    /// Flips one bit.
    pub(super) fn corrupt(&mut self, bytes: &mut [u8]) {
        if !bytes.is_empty() {
            let at = self.rng.index(bytes.len());
            bytes[at] ^= 1 << self.rng.below(8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(link: Link) -> Network {
        let mut network = Network::new(link, Rng::new(5));
        network.resize(2);
        network
    }

    const A: HostId = HostId(0);
    const B: HostId = HostId(1);

    #[test]
    fn a_clean_link_keeps_order_and_loses_nothing() {
        let mut network = network(Link::CLEAN);
        let mut last = Time(0);
        for i in 0..1_000 {
            let [Some(p), None] = network.carry(Time(i * 100), A, B, 100) else { panic!("one passage") };
            assert!(p.arrives >= last && !p.corrupt);
            last = p.arrives;
        }
    }

    #[test]
    fn faults_happen_as_often_as_asked() {
        let link = Link {
            loss: 100,
            duplicate: 50,
            reorder: 50,
            corrupt: 10,
            reorder_delay: Duration::from_millis(1),
            ..Link::CLEAN
        };
        let mut network = network(link);
        let mut overtaken = 0;
        let mut latest = Time(0);
        for i in 0..10_000u64 {
            for p in network.carry(Time(i * 10_000), A, B, 100).into_iter().flatten() {
                overtaken += u64::from(p.arrives < latest);
                latest = latest.max(p.arrives);
            }
        }
        let c = network.counters();
        assert!((800..1_200).contains(&c.lost), "{c:?}");
        assert!((350..550).contains(&c.duplicated), "{c:?}");
        assert!((350..550).contains(&c.reordered), "{c:?}");
        assert!((50..150).contains(&c.corrupted), "{c:?}");
        assert!(overtaken > 300, "{overtaken} overtaken");
    }

    #[test]
    fn full_cut_and_narrow_links_drop() {
        let mut network = network(Link { queue_max: 250, mtu: 100, ..Link::CLEAN });
        assert!(network.carry(Time(0), A, B, 101)[0].is_none(), "above the MTU");
        assert!(network.carry(Time(0), A, B, 100)[0].is_some());
        assert!(network.carry(Time(0), A, B, 100)[0].is_some());
        assert!(network.carry(Time(0), A, B, 100)[0].is_none(), "the queue is full");
        assert!(network.carry(Time(0), B, A, 100)[0].is_some(), "the other direction has its own");
        network.arrived(A, B, 100);
        assert!(network.carry(Time(0), A, B, 100)[0].is_some());
        network.cut(B, A);
        assert!(network.carry(Time(0), B, A, 10)[0].is_none(), "cut");
        network.mend();
        assert!(network.carry(Time(0), B, A, 10)[0].is_some());
        let c = network.counters();
        assert_eq!((c.oversize, c.overflowed, c.cut), (1, 1, 1));
    }
}
