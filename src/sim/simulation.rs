//! A cluster of a service, its clients, and the checkers, from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::agreement::Agreement;
use super::config::{Config, Fault, Goal, OPERATIONS_MAX};
use super::describe::describe;
use super::failure::{Failure, Report, Wrong};
use super::history::History;
use super::keys::Keys;
use super::liar::{Liar, Tongue};
use super::linearizability::{self, Model, Operation, Placed, Violation};
use super::model::ServiceModel;
use super::party::{Client, Correct, Party};
use super::record::Record;
use super::rng::Rng;
use super::watch::{Watch, Watched};
use super::workload::Workload;
use super::world::{Clock, HostId, Step, World};
use crate::auth::Keyring;
use crate::client::{Completion, Endpoint, EndpointConfig};
use crate::execution::Service;
use crate::limits;
use crate::protocol;
use crate::replica::{Fed, Replica, ReplicaConfig};
use crate::transport::Peer;
use crate::types::{ClientId, Position, ReplicaId, ReplicaSet, SeqNum, SessionId, Time};
use crate::wire::{Batch, ReplyKind, RequestKind};

/// What every clock shows at the start, more or less: 2026.
const EPOCH: Time = Time(1_767_225_600_000_000_000);
/// How often the checkers look at what replicas say of themselves.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Pages of sealed checkpoints that a replica may hold beyond its state.
const LENT_PAGES_MAX: usize = 4_096;
/// Pages that a model's state may have.
const MODEL_PAGES: u32 = 1 << 20;

/// How long a restart waits before it looks again for room in the fault budget.
const BUDGET_EVERY: Duration = Duration::from_millis(10);

// Alarms: planned faults by index, replicas that start again by id, clients by index, and these.
const FAULTS: u64 = 1 << 32;
const STARTS: u64 = 2 << 32;
const CLIENTS: u64 = 3 << 32;
const LOOK: u64 = 4 << 32;

/// A whole cluster of the service `S` in one thread.
///
/// The schedule follows from the seed and the configuration alone. [`Simulation::run`] plays it to its end and checks,
/// all the time, that replicas commit the same batches and reach the same states, and in the end that the history of
/// operations is linearizable with respect to a model: by default an instance of the service that runs alone.
///
/// ```
/// use castra::sim::{Ask, Config, Rng, Simulation, Tally};
///
/// // Your own service and operations in place of these.
/// let workload = |_client: usize, index: u64, _rng: &mut Rng| Ask::ordered(index.to_le_bytes().to_vec());
/// for seed in 0..3 {
///     let report = Simulation::new(seed, Config::lossy(), || Tally, workload).run().unwrap_or_else(|f| panic!("{f}"));
///     assert_eq!(report.operations, 60);
/// }
/// ```
/// With faults and liars of one's choice, and a look at every operation on every replica: the first one at which two
/// replicas of the service differ is named.
/// ```
/// # use castra::sim::{Ask, Config, Fault, Lie, Rng, Simulation, Tally};
/// # use castra::types::ReplicaId;
/// # use std::time::Duration;
/// # let workload = |_client: usize, index: u64, _rng: &mut Rng| Ask::ordered(index.to_le_bytes().to_vec());
/// let ms = Duration::from_millis;
/// let mut config = Config { watch: true, ..Config::lossy() }.with_liar(3, &[Lie::Replies, Lie::Votes]);
/// config.faults.push((ms(80), Fault::Isolate(ReplicaId(0))));
/// config.faults.push((ms(600), Fault::Mend));
/// let report = Simulation::new(1, config, || Tally, workload).run().unwrap_or_else(|f| panic!("{f}"));
/// assert!(report.caught.contains_key("contradictory_vote"));
/// ```
/// [`Config::hostile`] draws all of them from the seed.
pub struct Simulation<S: Service> {
    seed: u64,
    config: Config,
    keys: Keys,
    service: Box<dyn Fn() -> S>,
    world: World<Party<S>>,
    /// Hosts of the replicas, by id.
    replicas: Vec<HostId>,
    /// Hosts of the clients, by index.
    clients: Vec<HostId>,
    /// Hosts of the second ones of twins.
    twins: BTreeMap<ReplicaId, HostId>,
    workload: Box<dyn Workload>,
    workload_rng: Rng,
    model: Box<dyn Model>,
    agreement: Agreement,
    history: History,
    watch: Option<Watch>,
    /// Agreed time and seed of each batch, as the library derives them (P19).
    choices: BTreeMap<SeqNum, (Time, u64)>,
    agreed_time: Time,
    /// Where each operation took effect, in order; by client and operation. Kept where not every one is answered.
    effects: BTreeMap<(ClientId, Vec<u8>), Vec<Position>>,
    executed: BTreeSet<(SessionId, u64)>,
    /// Which start each replica is in.
    boots: Vec<u64>,
    restarts: u64,
    /// The time of the last planned fault.
    last_fault: Time,
    replay: String,
}

impl<S: Service> Simulation<S> {
    /// A cluster as `config` describes it, every replica with its own instance of the service, clients that ask what
    /// `workload` says.
    ///
    /// # Panics
    /// If the configuration is one that a replica or a client refuses.
    pub fn new(
        seed: u64,
        config: Config,
        service: impl Fn() -> S + 'static,
        workload: impl Workload + 'static,
    ) -> Simulation<S> {
        let keys = Keys::new(config.size, config.clients, config.auth);
        Simulation::with_keys(seed, config, &keys, service, workload)
    }

    /// [`Simulation::new`] with keys made before: many seeds can share them.
    ///
    /// # Panics
    /// As `new`, and if the keys are for another cluster.
    pub fn with_keys(
        seed: u64,
        config: Config,
        keys: &Keys,
        service: impl Fn() -> S + 'static,
        workload: impl Workload + 'static,
    ) -> Simulation<S> {
        assert!(keys.fit(config.size, config.clients, config.auth), "the keys are those of the configured cluster");
        let mut rng = Rng::stream(seed, 3);
        let mut world = World::new(seed, config.world);
        let watch = config.watch.then(Watch::new);
        let clock = |rng: &mut Rng| {
            let ppm = rng.between(0, 2 * u64::from(config.clock_drift_ppm)) as i32 - config.clock_drift_ppm as i32;
            Clock { start: EPOCH + rng.up_to(config.clock_skew), drift_ppm: ppm }
        };

        let mut replicas = Vec::new();
        for id in config.size.replicas() {
            let (clock, start) = (clock(&mut rng), rng.up_to(config.start_within));
            let party = match config.liars.iter().find(|liar| liar.replica == id) {
                Some(liar) => lying(&config, keys, seed, liar, service(), clock.start),
                None => {
                    let watched = Watched { inner: service(), replica: id, watch: watch.clone() };
                    let (config, keys) = (replica_config(&config, id, seed), keyring(keys, id, 1, seed));
                    let replica = Replica::new(config, keys, watched, clock.start);
                    let replica = replica.unwrap_or_else(|refused| panic!("{id}: {refused}"));
                    Party::Replica(Box::new(Correct { replica, record: Record::new(id), broken: None }))
                }
            };
            replicas.push(world.add(Peer::Replica(id), clock, start, party));
        }
        let mut clients = Vec::new();
        for index in 0..config.clients {
            let (id, keyring) = keys.client(index);
            let mut endpoint = Endpoint::new(endpoint_config(&config), keyring, rng.next_u64());
            let sessions = (0..config.sessions)
                .map(|_| endpoint.open_session(config.window).unwrap_or_else(|e| panic!("client {index}: {e}")))
                .collect();
            let client = Client { id, endpoint, sessions, asked: 0, ready_at: Time(0), outstanding: BTreeMap::new() };
            let address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, index as u8 + 1), 1_000));
            let (clock, start) = (clock(&mut rng), rng.up_to(config.start_within));
            clients.push(world.add(Peer::Address(address), clock, start, Party::Client(Box::new(client))));
        }
        let mut twins = BTreeMap::new();
        for liar in config.liars.iter().filter(|liar| liar.twin) {
            let (clock, start) = (clock(&mut rng), rng.up_to(config.start_within));
            let party = lying(&config, keys, !seed, liar, service(), clock.start);
            twins.insert(liar.replica, world.add(Peer::Replica(liar.replica), clock, start, party));
        }
        for (i, (at, _)) in config.faults.iter().enumerate() {
            world.alarm(Time(0) + *at, FAULTS + i as u64);
        }
        for i in 0..clients.len() {
            world.alarm(Time(0), CLIENTS + i as u64);
        }
        world.alarm(Time(0) + LOOK_EVERY, LOOK);
        let last_fault = config.faults.iter().map(|(at, _)| Time(0) + *at).max().unwrap_or(Time(0));
        Simulation {
            seed,
            keys: keys.clone(),
            model: Box::new(ServiceModel::new(service(), MODEL_PAGES)),
            service: Box::new(service),
            world,
            boots: vec![1; replicas.len()],
            replicas,
            clients,
            twins,
            workload: Box::new(workload),
            workload_rng: Rng::stream(seed, 4),
            agreement: Agreement::default(),
            history: History::default(),
            watch,
            choices: BTreeMap::new(),
            agreed_time: Time(0),
            effects: BTreeMap::new(),
            executed: BTreeSet::new(),
            restarts: 0,
            last_fault,
            replay: format!("the same test with CASTRA_SIM_SEED={seed}"),
            config,
        }
    }

    /// Checks results against `model` instead of an instance of the service.
    pub fn model(mut self, model: impl Model + 'static) -> Simulation<S> {
        self.model = Box::new(model);
        self
    }

    /// What a failure says about how to play it again.
    pub fn replay(mut self, command: impl Into<String>) -> Simulation<S> {
        self.replay = command.into();
        self
    }

    /// Plays the schedule to its end.
    ///
    /// # Errors
    /// The first thing that did not hold.
    pub fn run(mut self) -> Result<Report, Box<Failure>> {
        let played = catch_unwind(AssertUnwindSafe(|| self.play()));
        let wrong = match played {
            Ok(Ok(())) => return Ok(self.report()),
            Ok(Err(wrong)) => wrong,
            Err(panic) => {
                let message = panic.downcast_ref::<String>().cloned();
                let message = message.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                Wrong::Panicked(message.unwrap_or_else(|| "no message".to_owned()))
            }
        };
        let name = |host: HostId| match host.0.checked_sub(self.replicas.len()) {
            None => format!("r{}", host.0),
            Some(client) if client < self.clients.len() => format!("c{client}"),
            Some(_) => "twin".to_owned(),
        };
        Err(Box::new(Failure {
            seed: self.seed,
            at: self.world.now(),
            wrong,
            trace: self.world.trace().render(name, describe),
            replay: self.replay,
            config: self.config,
        }))
    }

    fn play(&mut self) -> Result<(), Wrong> {
        let end = Time(0) + self.config.complete_within;
        loop {
            match self.world.step() {
                Step::Quiet => {}
                Step::Turned(host) => self.after_turn(host)?,
                Step::Alarm(token) if token >= LOOK => {
                    self.look()?;
                    if self.is_over() {
                        break;
                    }
                    self.world.alarm(self.world.now() + LOOK_EVERY, LOOK);
                }
                Step::Alarm(token) if token >= CLIENTS => self.converse((token - CLIENTS) as usize)?,
                Step::Alarm(token) if token >= STARTS => self.start_again(ReplicaId((token - STARTS) as u8)),
                Step::Alarm(token) => self.inflict((token - FAULTS) as usize),
                Step::Spins(host) => return Err(Wrong::Spins(format!("host {}", host.0))),
                Step::Over => unreachable!("there is always the next look"),
            }
            if self.world.now() > end {
                match self.config.goal {
                    Goal::Liveness => return Err(Wrong::Stuck { state: self.state() }),
                    Goal::Safety => break,
                }
            }
        }
        self.judge()
    }

    fn after_turn(&mut self, host: HostId) -> Result<(), Wrong> {
        match host.0.checked_sub(self.replicas.len()) {
            None => self.listen(ReplicaId(host.0 as u8)),
            Some(client) if client < self.clients.len() => self.converse(client),
            Some(_) => Ok(()),
        }
    }

    /// Takes what the replica committed.
    fn listen(&mut self, id: ReplicaId) -> Result<(), Wrong> {
        let Party::Replica(correct) = self.world.machine_mut(self.replicas[usize::from(id.0)]) else {
            // Nobody asks a liar.
            return Ok(());
        };
        if let Some(broken) = correct.broken.take() {
            return Err(Wrong::Broke(id, broken));
        }
        for fed in correct.replica.drain_committed() {
            let (n, batch) = match fed {
                Fed::Committed(n, batch) => (n, batch),
                Fed::Fetched(n) => {
                    self.agreement.fetched(id, n);
                    continue;
                }
            };
            self.agreement.committed(id, n, batch.digest()).map_err(Wrong::Disagreement)?;
            if let Some(watch) = &self.watch
                && let Some(difference) = watch.with(|log| log.committed(id, n))
            {
                return Err(Wrong::Difference(Box::new(difference)));
            }
            self.learn_choices(n, &batch);
        }
        Ok(())
    }

    fn learn_choices(&mut self, n: SeqNum, batch: &Batch) {
        if self.choices.contains_key(&n) {
            return;
        }
        if !batch.is_null() {
            self.agreed_time = Time(batch.choice().time.max(self.agreed_time.0 + 1));
        }
        self.choices.insert(n, (self.agreed_time, batch.choice().seed));
        if self.config.goal == Goal::Safety {
            self.learn_effects(n, batch);
        }
    }

    /// What of a batch is executed, and where (P4).
    fn learn_effects(&mut self, n: SeqNum, batch: &Batch) {
        let packs = batch.packs().iter();
        let requests = packs.flat_map(|pack| pack.requests().map(|request| (pack.client(), request)));
        for (index, (client, request)) in requests.enumerate() {
            if request.kind == RequestKind::Ordered && self.executed.insert((request.session, request.t)) {
                let at = self.effects.entry((client, request.op.to_vec())).or_default();
                at.push(Position::new(n, index));
            }
        }
    }

    /// Whether clients ask for more, whoever has asked for `asked`.
    fn goes_on(&self, asked: u64) -> bool {
        let Config { operations, events, .. } = self.config;
        let busy = self.world.handled() < events || self.world.now() < self.last_fault;
        asked < operations || events > 0 && busy && asked < OPERATIONS_MAX
    }

    /// Takes the client's completions, and gives it the next operations.
    fn converse(&mut self, index: usize) -> Result<(), Wrong> {
        let now = self.world.now();
        let (window, think) = (self.config.window, self.config.think);
        let host = self.clients[index];
        let Party::Client(client) = self.world.machine_mut(host) else { unreachable!("clients are clients") };
        while let Some(completion) = client.endpoint.poll_completion() {
            let Completion { request, result, position, kind, .. } = completion;
            let (name, _) = client.outstanding.remove(&request).expect("a request completes once");
            let placed = match kind {
                ReplyKind::ReadOnly => Placed::Unordered,
                ReplyKind::TentativeRead => Placed::UnorderedOn(position.batch()),
                ReplyKind::Tentative | ReplyKind::Committed => Placed::At(position),
            };
            match result {
                Ok(result) => self.history.complete(name, placed, result),
                Err(error) => return Err(Wrong::Unanswered { client: index, outcome: error.to_string() }),
            }
            if !think.is_zero() {
                client.ready_at = client.ready_at.max(now + self.workload_rng.up_to(think));
            }
        }
        let mut submitted = false;
        loop {
            let goes_on = self.goes_on(self.client(index).asked);
            let Party::Client(client) = self.world.machine_mut(host) else { unreachable!("clients are clients") };
            if !goes_on || client.ready_at > now {
                break;
            }
            let Some(session) = client.free_session(window) else { break };
            let ask = self.workload.ask(index, client.asked, &mut self.workload_rng);
            let name = self.history.invoke(client.id, ask.op.clone());
            let handle = client.sessions[session];
            let request = match ask.read_only {
                true => client.endpoint.query(ask.op),
                false => client.endpoint.submit(handle, ask.op),
            };
            let request = request.unwrap_or_else(|e| panic!("client {index} has room: {e}"));
            client.outstanding.insert(request, (name, session));
            client.asked += 1;
            submitted = true;
        }
        let (asked, ready_at) = (self.client(index).asked, self.client(index).ready_at);
        if ready_at > now && self.goes_on(asked) {
            self.world.alarm(ready_at, CLIENTS + index as u64);
        }
        if submitted {
            self.world.wake(host);
        }
        Ok(())
    }

    fn host(&self, id: ReplicaId) -> HostId {
        self.replicas[usize::from(id.0)]
    }

    /// The planned fault with this index happens now.
    fn inflict(&mut self, index: usize) {
        let fault = self.config.faults[index].1;
        if let Fault::Restart(id, down) = fault {
            return self.crash(index, id, down);
        }
        self.world.note(format!("{fault:?}"));
        match fault {
            Fault::Pause(id, pause) => self.world.pause(self.host(id), pause),
            Fault::Silence(id) => self.world.silence(self.host(id)),
            Fault::Cut(from, to) => {
                let (from, to) = (self.host(from), self.host(to));
                self.world.network_mut().cut(from, to);
            }
            Fault::Partition(side) => self.cut_between(|a, b| side.contains(a) != side.contains(b)),
            Fault::Mute(side) => self.cut_between(|a, b| side.contains(a) && !side.contains(b)),
            Fault::Isolate(id) => {
                self.cut_between(|a, b| a == id || b == id);
                let host = self.host(id);
                for &client in &self.clients {
                    self.world.network_mut().cut(host, client);
                    self.world.network_mut().cut(client, host);
                }
            }
            Fault::Divide(id, side) => {
                let Some(&twin) = self.twins.get(&id) else { return };
                for other in self.config.size.others(id) {
                    let lonely = if side.contains(other) { twin } else { self.host(id) };
                    let other = self.host(other);
                    self.world.network_mut().cut(lonely, other);
                    self.world.network_mut().cut(other, lonely);
                }
            }
            Fault::Mend => self.world.network_mut().mend(),
            Fault::Calm => {
                let link = self.world.network().link().calm();
                self.world.network_mut().set_link(link);
            }
            Fault::Step(id, by) => {
                let drift = self.world.hosts()[self.host(id).0].clock.drift_ppm;
                self.world.change_clock(self.host(id), by, drift);
            }
            Fault::Drift(id, ppm) => self.world.change_clock(self.host(id), Duration::ZERO, ppm),
            Fault::Restart(..) => unreachable!("has its own way"),
        }
    }

    /// Cuts every link between replicas that `is_cut` names, by sender and receiver.
    fn cut_between(&mut self, is_cut: impl Fn(ReplicaId, ReplicaId) -> bool) {
        for (from, to) in self.config.size.replicas().flat_map(|a| self.config.size.replicas().map(move |b| (a, b))) {
            if from != to && is_cut(from, to) {
                let (from, to) = (self.host(from), self.host(to));
                self.world.network_mut().cut(from, to);
            }
        }
    }

    /// Who counts against f at this moment (P50): silent now or later, lying,
    /// recovering or diverged.
    fn impaired(&self) -> ReplicaSet {
        let is_impaired = |id: &ReplicaId| {
            let host = &self.world.hosts()[self.host(*id).0];
            match &host.machine {
                Party::Replica(correct) => {
                    let agreement = correct.replica.agreement();
                    host.silent() || agreement.is_recovering() || agreement.mode() != protocol::Mode::Normal
                }
                Party::Liar(_) => true,
                Party::Client(_) => unreachable!("replicas are replicas"),
            }
        };
        let will_be_silent = |id: &ReplicaId| self.config.faults.iter().any(|(_, fault)| *fault == Fault::Silence(*id));
        self.config.size.replicas().filter(|id| is_impaired(id) || will_be_silent(id)).collect()
    }

    /// The replica crashes, if there is room for it in the fault budget; else this is tried again.
    fn crash(&mut self, index: usize, id: ReplicaId, down: Duration) {
        let impaired = self.impaired();
        if impaired.contains(id) || impaired.len() >= self.config.size.f() {
            if self.world.now() < Time(0) + self.config.faults_within {
                self.world.alarm(self.world.now() + BUDGET_EVERY, FAULTS + index as u64);
            }
            return;
        }
        self.world.note(format!("{id} crashes, for {down:?}"));
        self.world.silence(self.host(id));
        self.world.alarm(self.world.now() + down, STARTS + u64::from(id.0));
    }

    /// A replica that crashed is back, in its next boot, with the initial state and no memory (P42).
    fn start_again(&mut self, id: ReplicaId) {
        let (host, seed) = (self.host(id), self.seed);
        let boot = &mut self.boots[usize::from(id.0)];
        *boot += 1;
        self.restarts += 1;
        self.world.note(format!("{id} starts again: boot {boot}"));
        let keyring = keyring(&self.keys, id, *boot, seed);
        let mut config = replica_config(&self.config, id, seed ^ *boot);
        config.protocol.forgetful = true;
        let now = self.world.hosts()[host.0].clock.at(self.world.now());
        let watched = Watched { inner: (self.service)(), replica: id, watch: self.watch.clone() };
        let replica = Replica::new(config, keyring, watched, now).unwrap_or_else(|refused| panic!("{id}: {refused}"));
        let Party::Replica(before) = self.world.machine_mut(host) else { unreachable!("replicas are replicas") };
        let mut record = std::mem::replace(&mut before.record, Record::new(id));
        record.restarted();
        self.agreement.restarted(id);
        self.world.revive(host, Party::Replica(Box::new(Correct { replica, record, broken: None })));
    }

    fn live(&self) -> impl Iterator<Item = (ReplicaId, &Replica<Watched<S>>)> {
        self.replicas.iter().enumerate().filter_map(|(i, host)| {
            let host = &self.world.hosts()[host.0];
            match &host.machine {
                Party::Replica(correct) if !host.silent() => Some((ReplicaId(i as u8), &correct.replica)),
                Party::Replica(_) | Party::Liar(_) | Party::Client(_) => None,
            }
        })
    }

    fn lies(&self, id: ReplicaId) -> bool {
        self.config.liars.iter().any(|liar| liar.replica == id)
    }

    fn client(&self, index: usize) -> &Client {
        let Party::Client(client) = self.world.machine(self.clients[index]) else {
            unreachable!("clients are clients")
        };
        client
    }

    /// Compares what replicas say of themselves.
    fn look(&mut self) -> Result<(), Wrong> {
        let mut roots = Vec::new();
        for (id, replica) in self.live() {
            let status = replica.status();
            if let Some(why) = status.stopped {
                return Err(Wrong::Stopped(id, why));
            }
            let lent = replica.executor().state().lent();
            if lent > LENT_PAGES_MAX {
                return Err(Wrong::Bound(format!("{id} holds {lent} pages of sealed checkpoints")));
            }
            // A primary that is cut off hears requests again and again, each time in other packs (P46); the quota of their
            // client's bytes ends that (P21), but this is how far it comes in seconds.
            let waiting_max = 32 * self.clients.len() * self.config.sessions * (self.config.window as usize + 2);
            if status.waiting > waiting_max {
                return Err(Wrong::Bound(format!("{} requests wait at {id}", status.waiting)));
            }
            let mut peers = status.peers.iter().filter(|peer| !self.lies(peer.id));
            if let Some((peer, (of, _))) = peers.find_map(|peer| peer.misdeeds.first().map(|misdeed| (peer, misdeed))) {
                return Err(Wrong::Accused { by: id, whom: peer.id, of });
            }
            roots.extend(status.checkpoints.into_iter().map(|(n, root)| (id, n, root)));
        }
        for (id, n, root) in roots {
            self.agreement.checkpoint(id, n, root).map_err(Wrong::Disagreement)?;
        }
        let oversize = self.world.network().counters().oversize;
        if oversize > 0 {
            return Err(Wrong::Bound(format!("{oversize} datagrams were larger than the path's MTU")));
        }
        Ok(())
    }

    /// Whether nothing more is to be shown.
    fn is_over(&self) -> bool {
        match self.config.goal {
            Goal::Liveness => self.settled(),
            Goal::Safety => self.world.handled() >= self.config.events && self.world.now() >= self.last_fault,
        }
    }

    /// Whether every operation completed, and every live replica committed the same batches, among them all that gave
    /// answers, takes part, and knows the last checkpoint to be stable.
    fn settled(&self) -> bool {
        let done = (0..self.clients.len()).all(|i| {
            let client = self.client(i);
            !self.goes_on(client.asked) && client.outstanding.is_empty()
        });
        if !done {
            return false;
        }
        // q tentative replies may come before any replica commits their batch (P5), which has its choices only then.
        let committed = self.live().map(|(id, _)| self.agreement.last(id)).max().unwrap_or_default();
        let last = self.history.answered().max(committed);
        let k = self.config.checkpoint_interval;
        let checkpoint = SeqNum(last.0 / k * k);
        self.live().all(|(id, replica)| {
            let status = replica.status();
            let level = self.agreement.last(id) == last && status.executed == last && status.stable == checkpoint;
            level && !replica.agreement().is_recovering()
        })
    }

    /// Who waits for what, for a failure report.
    fn state(&self) -> Vec<String> {
        let replicas = self.live().map(|(id, replica)| {
            let s = replica.status();
            format!(
                "{id}: {} {:?} executed {} prepared {} stable {} waiting {} fetching {:?} notices {:?}",
                s.view, s.mode, s.executed, s.prepared, s.stable, s.waiting, s.transferring, s.notices
            )
        });
        let clients = (0..self.clients.len()).map(|i| {
            let client = self.client(i);
            let outstanding: Vec<_> = client.outstanding.keys().take(8).collect();
            format!(
                "c{i}: {} operations begun, {} outstanding: {outstanding:?}",
                client.asked,
                client.outstanding.len(),
            )
        });
        replicas.chain(clients).collect()
    }

    /// Judges the whole history.
    fn judge(&mut self) -> Result<(), Wrong> {
        let mut history = self.history.done().to_vec();
        if self.config.goal == Goal::Safety {
            let claimed: BTreeSet<Position> =
                history.iter().filter_map(|o| if let Placed::At(at) = o.placed { Some(at) } else { None }).collect();
            let mut left = self.effects.clone();
            left.values_mut().for_each(|at| at.retain(|position| !claimed.contains(position)));
            history = self.history.with_effects(|begun| {
                let at = left.get_mut(&(begun.client, begun.op.to_vec())).filter(|at| !at.is_empty())?;
                Some(at.remove(0))
            });
            // What is answered and not committed anywhere yet has neighbours in its batch that nobody told us of; a read of
            // that state saw them.
            let known = |o: &Operation| match o.placed {
                Placed::At(position) => self.choices.contains_key(&position.batch()),
                Placed::UnorderedOn(batch) => self.choices.contains_key(&batch),
                Placed::Unordered => true,
            };
            history.retain(known);
        }
        let choices = |position: Position| self.choices.get(&position.batch()).copied().unwrap_or_default();
        linearizability::check(&history, &mut *self.model, &choices).map_err(|violation| {
            let operation = Box::new(named(&history, &violation).clone());
            Wrong::NotLinearizable { violation, operation }
        })
    }

    fn caught(&self) -> BTreeMap<&'static str, u64> {
        let mut caught = BTreeMap::new();
        let peers = self.live().flat_map(|(_, replica)| replica.status().peers);
        for (name, count) in peers.flat_map(|peer| peer.misdeeds) {
            *caught.entry(name).or_default() += count;
        }
        caught
    }

    fn report(&self) -> Report {
        let history = self.history.done();
        Report {
            seed: self.seed,
            took: self.world.now().since(Time(0)),
            operations: history.len(),
            reads: history.iter().filter(|o| !o.placed.is_ordered()).count(),
            batches: self.live().map(|(id, _)| self.agreement.last(id)).max().unwrap_or_default(),
            transfers: self.live().map(|(_, replica)| replica.status().counters.transfers).sum(),
            events: self.world.trace().events(),
            handled: self.world.handled(),
            view_changes: self.live().map(|(_, replica)| replica.status().counters.view_changes).sum(),
            restarts: self.restarts,
            caught: self.caught(),
            trace: self.world.trace().digest(),
            network: self.world.network().counters(),
        }
    }
}

fn named<'a>(history: &'a [Operation], violation: &Violation) -> &'a Operation {
    let index = match violation {
        Violation::SamePosition { operations: (_, b), .. } => *b,
        Violation::OutOfOrder { second, .. } => *second,
        Violation::WrongResult { operation, .. }
        | Violation::NoPlace { operation, .. }
        | Violation::NotReadOnly { operation } => *operation,
    };
    &history[index]
}

/// The keys of a replica at its so-manyth start.
fn keyring(keys: &Keys, id: ReplicaId, boot: u64, seed: u64) -> Keyring {
    let mut secret = [0; 32];
    Rng::stream(seed, 256 * boot + u64::from(id.0)).fill(&mut secret);
    keys.replica(id, boot, secret)
}

/// A replica that lies; `seed` makes twins differ in what is their own.
fn lying<S: Service>(config: &Config, keys: &Keys, seed: u64, liar: &Liar, service: S, now: Time) -> Party<S> {
    let id = liar.replica;
    // Twins share their keys.
    let keys = keyring(keys, id, 1, u64::from(id.0));
    let mut of_replica = replica_config(config, id, seed);
    of_replica.trace = false;
    if !liar.lies.is_empty() {
        of_replica.network.datagram_max = limits::DATAGRAM_MAX;
    }
    let watched = Watched { inner: service, replica: id, watch: None };
    let honest = Replica::new(of_replica, keys.clone(), watched, now).unwrap_or_else(|why| panic!("{id}: {why}"));
    let rng = Rng::stream(seed, 512 + u64::from(id.0));
    Party::Liar(Box::new(Tongue::new(liar, honest, keys, config.datagram_max(), rng)))
}

fn replica_config(config: &Config, id: ReplicaId, seed: u64) -> ReplicaConfig {
    let mut protocol = protocol::Config::new(config.size, id);
    protocol.checkpoint_interval = config.checkpoint_interval;
    protocol.log_window = config.log_window;
    protocol.pipeline_max = config.pipeline_max;
    protocol.inline_max = config.inline_max;
    protocol.commit_delay = config.commit_delay;
    protocol.reserve_delay = config.reserve_delay;
    protocol.seed = Rng::stream(seed, 16 + u64::from(id.0)).next_u64();
    let mut replica = ReplicaConfig::new(protocol);
    replica.trace = true;
    replica.lent_pages_max = LENT_PAGES_MAX / 2;
    replica.network.datagram_max = config.datagram_max();
    replica
}

fn endpoint_config(config: &Config) -> EndpointConfig {
    EndpointConfig {
        datagram_max: config.datagram_max(),
        inline_max: config.inline_max.max(256),
        request_timeout: Duration::MAX,
        ..EndpointConfig::default()
    }
}
