//! What a simulation is like: how many of everything, and what goes wrong when.

use std::time::Duration;

use super::liar::{Liar, Lie};
use super::network::Link;
use super::rng::Rng;
use super::world::WorldConfig;
use crate::auth::AuthMode;
use crate::types::{ClusterSize, ReplicaId, ReplicaSet};

/// Something that happens to the cluster at a planned time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The replica does nothing for a while, as a stopped process; its mail waits.
    Pause(ReplicaId, Duration),
    /// The replica never does anything again.
    Silence(ReplicaId),
    /// Nothing passes between the two replicas, in the first one's sending direction only.
    Cut(ReplicaId, ReplicaId),
    /// Two sets that do not hear each other: these replicas, and the others.
    Partition(ReplicaSet),
    /// A one-way partition: the others do not hear these replicas.
    Mute(ReplicaSet),
    /// Nothing passes between the replica and anybody, clients included.
    Isolate(ReplicaId),
    /// Of [twins](Liar::twin), one talks with these replicas only, and the other with the rest only.
    Divide(ReplicaId, ReplicaSet),
    /// All cut links pass again.
    Mend,
    /// The replica crashes, and starts again so much later: as another boot that has forgotten everything (P42). It
    /// waits until there is room for it in the fault budget (P50); if there is none before [`Config::faults_within`],
    /// it does not happen.
    Restart(ReplicaId, Duration),
    /// The replica's clock gains so much at once.
    Step(ReplicaId, Duration),
    /// The replica's clock gains or loses so many parts per million from now on.
    Drift(ReplicaId, i32),
    /// The network loses, doubles, reorders and damages nothing from now on.
    Calm,
}

/// What a simulation is to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// Everything completes, and all live replicas come to agree on all of it, however much went wrong before.
    Liveness,
    /// Nothing wrong is ever done; the faults go on to the end, and nothing has to complete.
    Safety,
}

/// The shape of one simulation. With its seed it decides everything that happens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The replicas.
    pub size: ClusterSize,
    /// How messages are authenticated.
    pub auth: AuthMode,
    /// Client endpoints, each with keys and an address of its own.
    pub clients: usize,
    /// Sessions that each client opens.
    pub sessions: usize,
    /// Requests that each session keeps outstanding.
    pub window: u64,
    /// Operations that each client submits.
    pub operations: u64,
    /// Clients go on, each up to [`OPERATIONS_MAX`] operations, until so many protocol events have happened: datagrams
    /// handled and timers gone off.
    pub events: u64,
    /// Clients wait up to this long between operations.
    pub think: Duration,
    /// The network and the hosts.
    pub world: WorldConfig,
    /// Hosts start within this time.
    pub start_within: Duration,
    /// Hosts' clocks differ by up to this.
    pub clock_skew: Duration,
    /// Hosts' clocks gain or lose up to this many parts per million.
    pub clock_drift_ppm: u32,
    /// K.
    pub checkpoint_interval: u64,
    /// L.
    pub log_window: u64,
    /// Proposals in flight.
    pub pipeline_max: u64,
    /// A pack above this is proposed by its digest (P3).
    pub inline_max: usize,
    /// How long a commit may wait for a ride (P52).
    pub commit_delay: Duration,
    /// How long what orders may wait for company on its way to a replica in reserve (P53).
    pub reserve_delay: Duration,
    /// What goes wrong, and when, besides what the links do by chance.
    pub faults: Vec<(Duration, Fault)>,
    /// Replicas that lie: at most f, with the silent ones.
    pub liars: Vec<Liar>,
    /// A [`Fault::Restart`] that found no room in the fault budget by then does not happen.
    pub faults_within: Duration,
    /// What it is to show.
    pub goal: Goal,
    /// Everything must have completed, and all live replicas agree on all of it, by this virtual time.
    pub complete_within: Duration,
    /// Compare the service's replies and states after every operation on every replica: finds the first one at which
    /// two replicas differ. Costs a hash of the whole state for each operation.
    pub watch: bool,
}

/// The most operations of a client whose number follows from [`Config::events`].
pub const OPERATIONS_MAX: u64 = 20_000;

impl Config {
    /// Four replicas, three clients, and a network in which nothing goes wrong.
    pub fn calm() -> Config {
        Config {
            size: ClusterSize::tolerating(1).expect("f = 1 is allowed"),
            auth: AuthMode::Mac,
            clients: 3,
            sessions: 1,
            window: 4,
            operations: 20,
            events: 0,
            think: Duration::ZERO,
            world: WorldConfig { link: Link { mtu: 1_452, ..Link::CLEAN }, ..WorldConfig::default() },
            start_within: Duration::ZERO,
            clock_skew: Duration::ZERO,
            clock_drift_ppm: 0,
            checkpoint_interval: 8,
            log_window: 32,
            pipeline_max: 4,
            inline_max: 8 * 1024,
            commit_delay: Duration::from_micros(200),
            reserve_delay: Duration::from_micros(500),
            faults: Vec::new(),
            liars: Vec::new(),
            faults_within: Duration::from_secs(5),
            goal: Goal::Liveness,
            complete_within: Duration::from_secs(60),
            watch: false,
        }
    }

    /// [`Config::calm`] on a network that loses 10 % of all datagrams, doubles 5 %, and holds 10 % back for up to
    /// 5 ms; clocks and starts differ.
    pub fn lossy() -> Config {
        let mut config = Config::calm();
        config.world.link.loss = 100;
        config.world.link.duplicate = 50;
        config.world.link.reorder = 100;
        config.world.link.reorder_delay = Duration::from_millis(5);
        config.start_within = Duration::from_millis(50);
        config.clock_skew = Duration::from_millis(20);
        config.clock_drift_ppm = 100;
        config
    }

    /// Swarm testing: draws which faults exist at all in this seed and how strong they are, and the sizes of
    /// everything. (A run in which every fault is always present hides the schedules that need one to be absent.)
    pub fn swarm(seed: u64) -> Config {
        let mut rng = Rng::stream(seed, 0xc0ff);
        let mut config = Config::calm();
        let link = &mut config.world.link;
        if rng.chance(750) {
            link.loss = *rng.pick(&[10, 50, 100, 200]);
        }
        if rng.chance(500) {
            link.duplicate = *rng.pick(&[10, 50, 200]);
        }
        if rng.chance(750) {
            link.reorder = *rng.pick(&[10, 100, 500]);
        }
        link.reorder_delay =
            *rng.pick(&[Duration::from_micros(100), Duration::from_millis(2), Duration::from_millis(30)]);
        if rng.chance(250) {
            link.corrupt = *rng.pick(&[1, 20]);
        }
        link.delay = *rng.pick(&[Duration::from_micros(20), Duration::from_micros(500), Duration::from_millis(5)]);
        link.jitter = *rng.pick(&[Duration::ZERO, Duration::from_micros(50), Duration::from_millis(2)]);
        link.mtu = *rng.pick(&[1_232, 1_452, 9_000, 65_507]);
        if rng.chance(250) {
            link.queue_max = 256 * 1024;
        }
        config.world.wake = *rng.pick(&[Duration::ZERO, Duration::from_micros(10), Duration::from_millis(1)]);
        config.world.turn = *rng.pick(&[Duration::from_micros(1), Duration::from_micros(50)]);
        config.clients = rng.between(1, 4) as usize;
        config.sessions = rng.between(1, 2) as usize;
        config.window = *rng.pick(&[1, 2, 8, 16]);
        config.operations = rng.between(5, 40);
        config.think = *rng.pick(&[Duration::ZERO, Duration::from_micros(300), Duration::from_millis(10)]);
        config.start_within = *rng.pick(&[Duration::ZERO, Duration::from_millis(5), Duration::from_millis(300)]);
        config.clock_skew = *rng.pick(&[Duration::ZERO, Duration::from_millis(1), Duration::from_millis(200)]);
        config.clock_drift_ppm = *rng.pick(&[0, 200]);
        config.checkpoint_interval = *rng.pick(&[2, 8, 16]);
        config.log_window = config.checkpoint_interval * rng.between(2, 4);
        config.pipeline_max = rng.between(1, 8).min(config.log_window);
        config.inline_max = *rng.pick(&[64, 1024, 8 * 1024]);
        config.commit_delay = *rng.pick(&[Duration::ZERO, Duration::from_micros(200), Duration::from_millis(2)]);
        config.reserve_delay = *rng.pick(&[Duration::ZERO, Duration::from_micros(200), Duration::from_millis(2)]);
        if rng.chance(300) {
            for _ in 0..rng.between(1, 3) {
                let replica = ReplicaId(rng.below(config.size.n() as u64) as u8);
                let pause = Fault::Pause(replica, rng.up_to(Duration::from_millis(200)));
                config.faults.push((rng.up_to(Duration::from_millis(300)), pause));
            }
        }
        config
    }

    /// This replica lies in these ways, on every third occasion.
    pub fn with_liar(mut self, replica: u8, lies: &[Lie]) -> Config {
        let replica = ReplicaId(replica);
        self.liars.push(Liar { replica, lies: lies.to_vec(), permille: 333, twin: false });
        self
    }

    /// `f` of the backups never say anything.
    pub fn with_silent_backups(mut self) -> Config {
        for i in 0..self.size.f() {
            let last = ReplicaId((self.size.n() - 1 - i) as u8);
            self.faults.push((Duration::ZERO, Fault::Silence(last)));
        }
        self
    }

    /// The largest datagram that hosts send: what the links' MTU allows.
    pub fn datagram_max(&self) -> usize {
        self.world.link.mtu
    }
}
