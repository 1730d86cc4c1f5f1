//! A cluster of a service, its clients, and the checkers, from one seed.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::agreement::Agreement;
use super::config::{Config, Fault};
use super::describe::describe;
use super::failure::{Failure, Report, Wrong};
use super::history::History;
use super::keys::Keys;
use super::linearizability::{self, Model, Operation, Placed, Violation};
use super::model::ServiceModel;
use super::party::{Client, Party};
use super::rng::Rng;
use super::watch::{Watch, Watched};
use super::workload::Workload;
use super::world::{Clock, HostId, Step, World};
use crate::client::{Completion, Endpoint, EndpointConfig};
use crate::execution::Service;
use crate::protocol;
use crate::replica::{Fed, Replica, ReplicaConfig};
use crate::transport::Peer;
use crate::types::{Position, ReplicaId, SeqNum, Time};
use crate::wire::{Batch, ReplyKind};

/// What every clock shows at the start, more or less: 2026.
const EPOCH: Time = Time(1_767_225_600_000_000_000);
/// How often the checkers look at what replicas say of themselves.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Pages of sealed checkpoints that a replica may hold beyond its state.
const LENT_PAGES_MAX: usize = 4_096;
/// Pages that a model's state may have.
const MODEL_PAGES: u32 = 1 << 20;

// Alarms: planned faults by index, clients by index, and these.
const FAULTS: u64 = 1 << 32;
const CLIENTS: u64 = 2 << 32;
const LOOK: u64 = 3 << 32;

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
pub struct Simulation<S: Service> {
    seed: u64,
    config: Config,
    world: World<Party<S>>,
    /// Hosts of the replicas, by id.
    replicas: Vec<HostId>,
    /// Hosts of the clients, by index.
    clients: Vec<HostId>,
    workload: Box<dyn Workload>,
    workload_rng: Rng,
    model: Box<dyn Model>,
    agreement: Agreement,
    history: History,
    watch: Option<Watch>,
    /// Agreed time and seed of each batch, as the library derives them (P19).
    choices: BTreeMap<SeqNum, (Time, u64)>,
    agreed_time: Time,
    replay: String,
}

impl<S: Service> Simulation<S> {
    /// A cluster as `config` describes it, every replica with its own instance of the service, clients that ask what
    /// `workload` says.
    ///
    /// # Panics
    /// If the configuration is one that a replica or a client refuses.
    pub fn new(seed: u64, config: Config, service: impl Fn() -> S, workload: impl Workload + 'static) -> Simulation<S> {
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
        service: impl Fn() -> S,
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
            let watched = Watched { inner: service(), replica: id, watch: watch.clone() };
            let (clock, start) = (clock(&mut rng), rng.up_to(config.start_within));
            let mut secret = [0; 32];
            Rng::stream(seed, 256 + u64::from(id.0)).fill(&mut secret);
            let keyring = keys.replica(id, 1, secret);
            let replica = Replica::new(replica_config(&config, id, seed), keyring, watched, clock.start)
                .unwrap_or_else(|refused| panic!("{id}: {refused}"));
            replicas.push(world.add(Peer::Replica(id), clock, start, Party::Replica(Box::new(replica))));
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
        for (i, (at, _)) in config.faults.iter().enumerate() {
            world.alarm(Time(0) + *at, FAULTS + i as u64);
        }
        for i in 0..clients.len() {
            world.alarm(Time(0), CLIENTS + i as u64);
        }
        world.alarm(Time(0) + LOOK_EVERY, LOOK);
        Simulation {
            seed,
            world,
            replicas,
            clients,
            workload: Box::new(workload),
            workload_rng: Rng::stream(seed, 4),
            model: Box::new(ServiceModel::new(service(), MODEL_PAGES)),
            agreement: Agreement::default(),
            history: History::default(),
            watch,
            choices: BTreeMap::new(),
            agreed_time: Time(0),
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
            Some(client) => format!("c{client}"),
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
                    if self.settled() {
                        break;
                    }
                    self.world.alarm(self.world.now() + LOOK_EVERY, LOOK);
                }
                Step::Alarm(token) if token >= CLIENTS => self.converse((token - CLIENTS) as usize)?,
                Step::Alarm(token) => self.inflict(self.config.faults[(token - FAULTS) as usize].1),
                Step::Spins(host) => return Err(Wrong::Spins(format!("host {}", host.0))),
                Step::Over => unreachable!("there is always the next look"),
            }
            if self.world.now() > end {
                return Err(Wrong::Stuck { state: self.state() });
            }
        }
        self.judge()
    }

    fn after_turn(&mut self, host: HostId) -> Result<(), Wrong> {
        match host.0.checked_sub(self.replicas.len()) {
            None => self.listen(ReplicaId(host.0 as u8)),
            Some(client) => self.converse(client),
        }
    }

    /// Takes what the replica committed.
    fn listen(&mut self, id: ReplicaId) -> Result<(), Wrong> {
        let Party::Replica(replica) = self.world.machine_mut(self.replicas[usize::from(id.0)]) else {
            unreachable!("replicas are replicas")
        };
        for fed in replica.drain_committed() {
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
    }

    /// Takes the client's completions, and gives it the next operations.
    fn converse(&mut self, index: usize) -> Result<(), Wrong> {
        let now = self.world.now();
        let (window, operations, think) = (self.config.window, self.config.operations, self.config.think);
        let host = self.clients[index];
        let Party::Client(client) = self.world.machine_mut(host) else { unreachable!("clients are clients") };
        while let Some(completion) = client.endpoint.poll_completion() {
            let Completion { request, result, position, kind, .. } = completion;
            let (name, _) = client.outstanding.remove(&request).expect("a request completes once");
            let placed = match kind {
                ReplyKind::ReadOnly => Placed::Unordered,
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
        while client.asked < operations && client.ready_at <= now {
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
        let wait = (client.asked < operations && client.ready_at > now).then_some(client.ready_at);
        if let Some(at) = wait {
            self.world.alarm(at, CLIENTS + index as u64);
        }
        if submitted {
            self.world.wake(host);
        }
        Ok(())
    }

    fn inflict(&mut self, fault: Fault) {
        self.world.note(format!("{fault:?}"));
        let host = |id: ReplicaId| self.replicas[usize::from(id.0)];
        match fault {
            Fault::Pause(id, pause) => self.world.pause(host(id), pause),
            Fault::Silence(id) => self.world.silence(host(id)),
            Fault::Cut(from, to) => {
                let (from, to) = (host(from), host(to));
                self.world.network_mut().cut(from, to);
            }
            Fault::Mend => self.world.network_mut().mend(),
            Fault::Calm => {
                let link = self.world.network().link().calm();
                self.world.network_mut().set_link(link);
            }
        }
    }

    fn live(&self) -> impl Iterator<Item = (ReplicaId, &Replica<Watched<S>>)> {
        self.replicas.iter().enumerate().filter_map(|(i, host)| {
            let host = &self.world.hosts()[host.0];
            match &host.machine {
                Party::Replica(replica) if !host.silent() => Some((ReplicaId(i as u8), &**replica)),
                Party::Replica(_) | Party::Client(_) => None,
            }
        })
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
            let waiting_max = 8 * self.clients.len() * self.config.sessions * (self.config.window as usize + 2);
            if status.waiting > waiting_max {
                return Err(Wrong::Bound(format!("{} requests wait at {id}", status.waiting)));
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

    /// Whether every operation completed, and every live replica committed the same batches, and knows the last
    /// checkpoint to be stable.
    fn settled(&self) -> bool {
        let done = (0..self.clients.len()).all(|i| {
            let client = self.client(i);
            client.asked == self.config.operations && client.outstanding.is_empty()
        });
        if !done {
            return false;
        }
        let last = self.live().map(|(id, _)| self.agreement.last(id)).max().unwrap_or_default();
        let k = self.config.checkpoint_interval;
        let checkpoint = SeqNum(last.0 / k * k);
        self.live().all(|(id, replica)| {
            let status = replica.status();
            self.agreement.last(id) == last && status.executed == last && status.stable == checkpoint
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
                "c{i}: {} of {} operations begun, {} outstanding: {outstanding:?}",
                client.asked,
                self.config.operations,
                client.outstanding.len(),
            )
        });
        replicas.chain(clients).collect()
    }

    /// Judges the whole history.
    fn judge(&mut self) -> Result<(), Wrong> {
        let history = self.history.done();
        let choices = |position: Position| self.choices.get(&position.batch()).copied().unwrap_or_default();
        linearizability::check(history, &mut *self.model, &choices).map_err(|violation| {
            let operation = Box::new(named(history, &violation).clone());
            Wrong::NotLinearizable { violation, operation }
        })
    }

    fn report(&self) -> Report {
        let history = self.history.done();
        Report {
            seed: self.seed,
            took: self.world.now().since(Time(0)),
            operations: history.len(),
            reads: history.iter().filter(|o| o.placed == Placed::Unordered).count(),
            batches: self.live().map(|(id, _)| self.agreement.last(id)).max().unwrap_or_default(),
            transfers: self.live().map(|(_, replica)| replica.status().counters.transfers).sum(),
            events: self.world.trace().events(),
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

fn replica_config(config: &Config, id: ReplicaId, seed: u64) -> ReplicaConfig {
    let mut protocol = protocol::Config::new(config.size, id);
    protocol.checkpoint_interval = config.checkpoint_interval;
    protocol.log_window = config.log_window;
    protocol.pipeline_max = config.pipeline_max;
    protocol.inline_max = config.inline_max;
    protocol.commit_delay = config.commit_delay;
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
