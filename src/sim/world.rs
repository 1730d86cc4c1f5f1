//! Hosts, a virtual clock, and the heap of what happens next.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use bytes::Bytes;

use super::network::{Link, Network};
use super::rng::Rng;
use super::trace::{Trace, TraceEvent};
use crate::transport::{Datagram, Machine, Outgoing, Peer};
use crate::types::Time;

/// Index of a host in its [`World`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostId(pub usize);

/// A host's own clock: it starts somewhere and may run fast or slow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// What it shows when the simulation starts.
    pub start: Time,
    /// Parts per million that it gains.
    pub drift_ppm: i32,
}

impl Clock {
    /// What the clock shows at virtual time `now`.
    pub fn at(self, now: Time) -> Time {
        let gained = i128::from(now.0) * i128::from(self.drift_ppm) / 1_000_000;
        Time((i128::from(self.start.0) + i128::from(now.0) + gained) as u64)
    }

    /// The clock as it is after it gained `by` at once at virtual time `now`, and runs by `drift_ppm` from there.
    /// Clocks of hosts never go back.
    pub fn changed(self, now: Time, by: Duration, drift_ppm: i32) -> Clock {
        let gained = i128::from(now.0) * i128::from(drift_ppm) / 1_000_000;
        let start = i128::from((self.at(now) + by).0) - i128::from(now.0) - gained;
        let mut clock = Clock { start: Time(start as u64), drift_ppm };
        while clock.at(now) < self.at(now) + by {
            clock.start.0 += 1;
        }
        clock
    }

    /// The first virtual time at which the clock shows `local` or later.
    pub fn when(self, local: Time) -> Time {
        if local == Time::NEVER {
            return Time::NEVER;
        }
        let elapsed = local.0.saturating_sub(self.start.0);
        let mut guess = (u128::from(elapsed) * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm)) as u128) as u64;
        while guess > 0 && self.at(Time(guess - 1)) >= local {
            guess -= 1;
        }
        while self.at(Time(guess)) < local {
            guess += 1;
        }
        Time(guess)
    }
}

/// What the world is like, apart from what its hosts are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorldConfig {
    /// The links.
    pub link: Link,
    /// From the arrival of a datagram until its host looks: up to this, so that several arrive for one turn.
    pub wake: Duration,
    /// How long a turn takes: up to this; what it sends leaves at its end.
    pub turn: Duration,
    /// Bytes that wait for a host; what comes above is lost, as in a full socket buffer.
    pub inbox_max: usize,
    /// Events kept for a failure report.
    pub trace_tail: usize,
}

impl Default for WorldConfig {
    fn default() -> Self {
        WorldConfig {
            link: Link::CLEAN,
            wake: Duration::from_micros(10),
            turn: Duration::from_micros(5),
            inbox_max: 16 << 20,
            trace_tail: 200,
        }
    }
}

/// One machine at one address.
pub struct Host<M> {
    /// The machine.
    pub machine: M,
    /// Where others reach it, and what they see as the sender. Twins share one.
    pub address: Peer,
    /// Its clock.
    pub clock: Clock,
    inbox: Vec<Datagram>,
    inbox_bytes: usize,
    busy_until: Time,
    paused_until: Time,
    silent: bool,
    /// The turn that is scheduled; others in the heap are stale.
    turn: Option<(Time, u64)>,
    idle_turns: u32,
}

impl<M> Host<M> {
    /// Whether it has stopped for good (see [`World::silence`]).
    pub fn silent(&self) -> bool {
        self.silent
    }
}

enum Happening {
    Arrive { from: HostId, to: HostId, bytes: Bytes },
    Turn(HostId),
    Alarm(u64),
}

struct Scheduled {
    at: Time,
    order: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The earliest is the greatest: `BinaryHeap` pops the greatest. What was scheduled first goes first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// What [`World::step`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Something arrived or was found stale; no machine ran.
    Quiet,
    /// That host's machine had a turn.
    Turned(HostId),
    /// An alarm set by [`World::alarm`] went off.
    Alarm(u64),
    /// A machine asks for turns for ever without anything to do: its deadline never moves past its clock.
    Spins(HostId),
    /// Nothing will ever happen again.
    Over,
}

/// Turns without any datagram in or out and with a deadline that is due at once, before a machine is said to spin.
const IDLE_TURNS_MAX: u32 = 1_000;

/// Hosts, the network between them, and the clock. It knows nothing of replicas and clients: any [`Machine`] runs.
pub struct World<M> {
    config: WorldConfig,
    now: Time,
    next_order: u64,
    heap: BinaryHeap<Scheduled>,
    hosts: Vec<Host<M>>,
    addresses: BTreeMap<Peer, Vec<HostId>>,
    network: Network,
    rng: Rng,
    trace: Trace,
    handled: u64,
    outbox: Vec<Outgoing>,
}

impl<M: Machine> World<M> {
    /// An empty world.
    pub fn new(seed: u64, config: WorldConfig) -> World<M> {
        World {
            config,
            now: Time(0),
            next_order: 0,
            heap: BinaryHeap::new(),
            hosts: Vec::new(),
            addresses: BTreeMap::new(),
            network: Network::new(config.link, Rng::stream(seed, 1)),
            rng: Rng::stream(seed, 2),
            trace: Trace::new(config.trace_tail),
            handled: 0,
            outbox: Vec::new(),
        }
    }

    /// Adds a host, which has its first turn after `start`. Several may share an address: all receive what is sent
    /// there. Hosts are added before the first step.
    pub fn add(&mut self, address: Peer, clock: Clock, start: Duration, machine: M) -> HostId {
        let id = HostId(self.hosts.len());
        self.hosts.push(Host {
            machine,
            address,
            clock,
            inbox: Vec::new(),
            inbox_bytes: 0,
            busy_until: Time(0),
            paused_until: Time(0),
            silent: false,
            turn: None,
            idle_turns: 0,
        });
        self.addresses.entry(address).or_default().push(id);
        self.network.resize(self.hosts.len());
        self.schedule_turn(id, self.now + start);
        id
    }

    /// Virtual time: nanoseconds since the start.
    pub fn now(&self) -> Time {
        self.now
    }

    /// The hosts.
    pub fn hosts(&self) -> &[Host<M>] {
        &self.hosts
    }

    /// A host's machine.
    pub fn machine(&self, id: HostId) -> &M {
        &self.hosts[id.0].machine
    }

    /// A host's machine, to be asked or told something between its turns.
    pub fn machine_mut(&mut self, id: HostId) -> &mut M {
        &mut self.hosts[id.0].machine
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The network, to be changed.
    pub fn network_mut(&mut self) -> &mut Network {
        &mut self.network
    }

    /// What happened.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Writes a line into the trace.
    pub fn note(&mut self, text: String) {
        self.trace.push(self.now, TraceEvent::Note(text));
    }

    /// `step` returns [`Step::Alarm`] with this token at `at`.
    pub fn alarm(&mut self, at: Time, token: u64) {
        self.schedule(at.max(self.now), Happening::Alarm(token));
    }

    /// The host does nothing for `pause`; datagrams wait in its inbox, as for a stopped process.
    pub fn pause(&mut self, id: HostId, pause: Duration) {
        let until = self.now + pause;
        let host = &mut self.hosts[id.0];
        host.paused_until = host.paused_until.max(until);
    }

    /// The host never does anything again: a crash, seen from outside.
    pub fn silence(&mut self, id: HostId) {
        let host = &mut self.hosts[id.0];
        host.silent = true;
        host.inbox.clear();
        host.inbox_bytes = 0;
        host.turn = None;
    }

    /// A host that fell silent is back, with another machine in its place. What was sent to it meanwhile is lost.
    pub fn revive(&mut self, id: HostId, machine: M) {
        let host = &mut self.hosts[id.0];
        host.machine = machine;
        (host.silent, host.idle_turns, host.paused_until) = (false, 0, self.now);
        self.schedule_turn(id, self.now);
    }

    /// The host's clock gains `by` at once, and `drift_ppm` from now on.
    pub fn change_clock(&mut self, id: HostId, by: Duration, drift_ppm: i32) {
        let host = &mut self.hosts[id.0];
        host.clock = host.clock.changed(self.now, by, drift_ppm);
        self.schedule_turn(id, self.now);
    }

    /// Datagrams handled and timers gone off, on all hosts.
    pub fn handled(&self) -> u64 {
        self.handled
    }

    /// The host has a turn soon, because something outside of it changed what it has to do.
    pub fn wake(&mut self, id: HostId) {
        self.schedule_turn(id, self.now);
    }

    /// Does the next thing.
    pub fn step(&mut self) -> Step {
        let Some(Scheduled { at, order, what }) = self.heap.pop() else { return Step::Over };
        assert!(at >= self.now, "time goes forward");
        self.now = at;
        match what {
            Happening::Arrive { from, to, bytes } => {
                self.arrive(from, to, bytes);
                Step::Quiet
            }
            Happening::Turn(id) if self.hosts[id.0].turn == Some((at, order)) => self.turn(id),
            Happening::Turn(_) => Step::Quiet,
            Happening::Alarm(token) => Step::Alarm(token),
        }
    }

    fn schedule(&mut self, at: Time, what: Happening) -> u64 {
        let order = self.next_order;
        self.next_order += 1;
        self.heap.push(Scheduled { at, order, what });
        order
    }

    fn schedule_turn(&mut self, id: HostId, at: Time) {
        let host = &self.hosts[id.0];
        if host.silent || at == Time::NEVER {
            return;
        }
        let at = at.max(host.busy_until).max(self.now);
        if host.turn.is_none_or(|(scheduled, _)| at < scheduled) {
            let order = self.schedule(at, Happening::Turn(id));
            self.hosts[id.0].turn = Some((at, order));
        }
    }

    fn arrive(&mut self, from: HostId, to: HostId, bytes: Bytes) {
        self.network.arrived(from, to, bytes.len());
        let sender = self.hosts[from.0].address;
        let host = &mut self.hosts[to.0];
        if host.silent {
            return;
        }
        if host.inbox_bytes + bytes.len() > self.config.inbox_max {
            let dropped = TraceEvent::Dropped { from, to, len: bytes.len(), reason: "the inbox is full" };
            self.network.counters.overflowed += 1;
            self.trace.push(self.now, dropped);
            return;
        }
        host.inbox_bytes += bytes.len();
        host.inbox.push(Datagram { from: sender, bytes: bytes.clone() });
        self.trace.push(self.now, TraceEvent::Arrived { from, to, bytes });
        let at = self.now + self.rng.up_to(self.config.wake);
        self.schedule_turn(to, at);
    }

    fn turn(&mut self, id: HostId) -> Step {
        let host = &mut self.hosts[id.0];
        host.turn = None;
        if host.paused_until > self.now {
            let until = host.paused_until;
            self.schedule_turn(id, until);
            return Step::Quiet;
        }
        let received = host.inbox.len();
        host.inbox_bytes = 0;
        self.handled += received.max(1) as u64;
        let mut outbox = std::mem::take(&mut self.outbox);
        host.machine.turn(host.clock.at(self.now), &mut host.inbox, &mut outbox);
        assert!(host.inbox.is_empty(), "a turn handles its whole inbox");
        self.trace.push(self.now, TraceEvent::Turned { host: id, received, sent: outbox.len() });

        let took = self.rng.up_to(self.config.turn);
        let host = &mut self.hosts[id.0];
        host.busy_until = self.now + took;
        let due = host.clock.when(host.machine.deadline());
        let idle = received == 0 && outbox.is_empty() && due <= self.now;
        host.idle_turns = if idle { host.idle_turns + 1 } else { 0 };
        let spins = host.idle_turns > IDLE_TURNS_MAX;
        let leaves = host.busy_until;
        for outgoing in outbox.drain(..) {
            self.send(leaves, id, outgoing);
        }
        self.outbox = outbox;
        self.schedule_turn(id, due);
        if spins { Step::Spins(id) } else { Step::Turned(id) }
    }

    fn send(&mut self, leaves: Time, from: HostId, outgoing: Outgoing) {
        let Some(receivers) = self.addresses.get(&outgoing.to) else {
            self.network.counters.nowhere += 1;
            return;
        };
        let bytes = outgoing.to_bytes();
        for to in receivers.clone() {
            let passages = self.network.carry(leaves, from, to, bytes.len());
            if passages[0].is_none() && passages[1].is_none() {
                let dropped = TraceEvent::Dropped { from, to, len: bytes.len(), reason: "lost on the way" };
                self.trace.push(self.now, dropped);
            }
            for passage in passages.into_iter().flatten() {
                let bytes = if passage.corrupt {
                    let mut damaged = bytes.to_vec();
                    self.network.corrupt(&mut damaged);
                    damaged.into()
                } else {
                    bytes.clone()
                };
                self.schedule(passage.arrives, Happening::Arrive { from, to, bytes });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Head;
    use crate::types::ReplicaId;

    /// Replica 0 sends numbers to replica 1 until each is echoed, as a stop-and-wait protocol does.
    enum Fake {
        Asker { next: u64, last: u64, resend_at: Time },
        Echo { heard: Vec<u64> },
        Spinner,
    }

    const RESEND: Duration = Duration::from_millis(1);

    fn datagram(to: u8, number: u64) -> Outgoing {
        let body = Bytes::copy_from_slice(&number.to_le_bytes());
        Outgoing { to: Peer::Replica(ReplicaId(to)), head: Head::EMPTY, body }
    }

    fn number(datagram: &Datagram) -> u64 {
        u64::from_le_bytes(datagram.bytes.as_ref().try_into().unwrap())
    }

    impl Machine for Fake {
        fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
            match self {
                Fake::Asker { next, last, resend_at } => {
                    let before = *next;
                    for d in inbox.drain(..) {
                        assert_eq!(d.from, Peer::Replica(ReplicaId(1)));
                        *next += u64::from(number(&d) == *next);
                    }
                    if *next == *last {
                        *resend_at = Time::NEVER;
                    } else if *next != before || now >= *resend_at {
                        *resend_at = now + RESEND;
                        outbox.push(datagram(1, *next));
                    }
                }
                Fake::Echo { heard } => {
                    for d in inbox.drain(..) {
                        heard.push(number(&d));
                        outbox.push(datagram(0, number(&d)));
                    }
                }
                Fake::Spinner => inbox.clear(),
            }
        }

        fn deadline(&self) -> Time {
            match self {
                Fake::Asker { resend_at, .. } => *resend_at,
                Fake::Echo { .. } => Time::NEVER,
                Fake::Spinner => Time(0),
            }
        }
    }

    const CLOCK: Clock = Clock { start: Time(1_000_000_000), drift_ppm: 0 };

    fn world(seed: u64, link: Link) -> World<Fake> {
        let mut world = World::new(seed, WorldConfig { link, ..WorldConfig::default() });
        let asker = Fake::Asker { next: 0, last: 200, resend_at: Time(0) };
        let fast = Clock { start: Time(7), drift_ppm: 500 };
        world.add(Peer::Replica(ReplicaId(0)), fast, Duration::ZERO, asker);
        world.add(Peer::Replica(ReplicaId(1)), CLOCK, RESEND, Fake::Echo { heard: Vec::new() });
        world
    }

    fn run(world: &mut World<Fake>) {
        for _ in 0..1_000_000 {
            if world.step() == Step::Over {
                return;
            }
        }
        panic!("never over");
    }

    const LOSSY: Link =
        Link { loss: 300, duplicate: 100, reorder: 100, reorder_delay: Duration::from_millis(3), ..Link::CLEAN };

    #[test]
    fn machines_talk_through_a_lossy_network() {
        let mut world = world(1, LOSSY);
        run(&mut world);
        let Fake::Asker { next, .. } = world.machine(HostId(0)) else { panic!() };
        assert_eq!(*next, 200);
        let Fake::Echo { heard } = world.machine(HostId(1)) else { panic!() };
        assert!(heard.len() > 200, "duplicates and resends");
        assert!((0..200).all(|i| heard.contains(&i)));
        let c = world.network().counters();
        assert!(c.lost > 0 && c.duplicated > 0 && c.reordered > 0, "{c:?}");
    }

    #[test]
    fn the_same_seed_plays_the_same_schedule() {
        let digest = |seed| {
            let mut world = world(seed, LOSSY);
            run(&mut world);
            (world.trace().digest(), world.now())
        };
        assert_eq!(digest(3), digest(3));
        assert_ne!(digest(3), digest(4));
    }

    #[test]
    fn a_paused_host_finds_its_mail_and_a_silent_one_does_not() {
        let mut paused = world(1, Link::CLEAN);
        paused.pause(HostId(1), Duration::from_millis(10));
        run(&mut paused);
        assert!(paused.now() >= Time(10_000_000));
        let Fake::Asker { next, .. } = paused.machine(HostId(0)) else { panic!() };
        assert_eq!(*next, 200);

        let mut silent = world(1, Link::CLEAN);
        silent.silence(HostId(1));
        for _ in 0..1_000 {
            assert_ne!(silent.step(), Step::Turned(HostId(1)));
        }
        let Fake::Asker { next, .. } = silent.machine(HostId(0)) else { panic!() };
        assert_eq!(*next, 0);
    }

    #[test]
    fn a_machine_that_spins_is_found() {
        let mut world = World::new(1, WorldConfig::default());
        world.add(Peer::Replica(ReplicaId(0)), CLOCK, Duration::ZERO, Fake::Spinner);
        let found = (0..10_000).any(|_| world.step() == Step::Spins(HostId(0)));
        assert!(found);
    }

    #[test]
    fn a_full_inbox_loses_what_comes_above() {
        let config = WorldConfig { inbox_max: 8, wake: Duration::from_millis(1), ..WorldConfig::default() };
        let mut world = World::new(1, config);
        let asker = Fake::Asker { next: 0, last: 5, resend_at: Time(0) };
        world.add(Peer::Replica(ReplicaId(0)), CLOCK, Duration::ZERO, asker);
        for _ in 0..2 {
            let echo = Fake::Echo { heard: Vec::new() };
            world.add(Peer::Replica(ReplicaId(1)), CLOCK, Duration::ZERO, echo);
        }
        run(&mut world);
        assert!(world.network().counters().overflowed > 0, "twins answer twice, one answer fits");
    }

    #[test]
    fn alarms_go_off_in_order() {
        let mut world = world(1, Link::CLEAN);
        world.alarm(Time(300_000), 2);
        world.alarm(Time(200_000), 1);
        let mut alarms = Vec::new();
        loop {
            match world.step() {
                Step::Alarm(token) => alarms.push((world.now(), token)),
                Step::Over => break,
                Step::Quiet | Step::Turned(_) => {}
                Step::Spins(_) => panic!(),
            }
        }
        assert_eq!(alarms, [(Time(200_000), 1), (Time(300_000), 2)]);
    }

    #[test]
    fn clocks_turn_back_what_they_show() {
        for drift_ppm in [-200, 0, 1, 500] {
            let clock = Clock { start: Time(1_700_000_000_000_000_000), drift_ppm };
            for now in [0u64, 1, 999, 1_000_000, 123_456_789_012] {
                let shown = clock.at(Time(now));
                let when = clock.when(shown);
                assert!(clock.at(when) >= shown && when <= Time(now), "{drift_ppm} {now}");
                assert!(when == Time(0) || clock.at(Time(when.0 - 1)) < shown);
            }
        }
        let now = Time(77_123_456_789);
        for (by, drift_ppm) in [(0, 300), (0, -10_000), (1_000_000_007, -200), (3, 0)] {
            let before = Clock { start: Time(1_700_000_000_000_000_000), drift_ppm: 199 };
            let clock = before.changed(now, Duration::from_nanos(by), drift_ppm);
            assert!(clock.at(now).0.abs_diff(before.at(now).0 + by) <= 1 && clock.at(now).0 >= before.at(now).0 + by);
            assert_eq!(clock.drift_ppm, drift_ppm);
        }
        assert_eq!(CLOCK.when(Time(5)), Time(0), "before the start is at once");
        assert_eq!(CLOCK.when(Time::NEVER), Time::NEVER);
    }
}
