//! Batches in, replies out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::config::ExecutorConfig;
use super::context::{Caches, Context};
use super::interface::{Command, Output, Reply};
use super::layout::{self, Field};
use super::queries::{Held, Queries};
use super::reply_buffer::ReplyBuffer;
use super::service::{NotReadOnly, Service};
use super::sessions::{Owner, Session, Sessions, Standing};
use crate::auth::Verified;
use crate::state::{Page, State};
use crate::types::{Executed, Position, SeqNum, SessionId, Time, View};
use crate::wire::{Batch, Outcome, Pack, ReplyKind, Request, RequestKind};

/// The execution role of one replica: a service, its state, and the sessions that make execution exactly once.
///
/// ```text
/// loop {
///     executor.handle(now, command, &mut outputs);
///     // outputs: replies, Executed(n), Sealed(..): carry them on
///     // at leisure, and before executor.deadline(): executor.expire(now), executor.state_mut().ship(..)
/// }
/// ```
/// Commands come in agreed order, and the executor asserts it: a command out of order is a fault of this program, not of
/// any message.
pub struct Executor<S> {
    service: S,
    config: ExecutorConfig,
    state: State,
    sessions: Sessions,
    queries: Queries,
    caches: Caches,
    buffer: ReplyBuffer,
    /// While a batch executes: the session of the last request, for mostly the next is of the same.
    current: Option<Session>,
    /// The last executed batch, tentative or not.
    executed: SeqNum,
    /// `executed` may be rolled back.
    tentative: bool,
    /// The last batch after which the state was sealed.
    sealed: Option<SeqNum>,
    /// The state waits to be replaced.
    halted: bool,
    stopped: Option<(Position, String)>,
    /// Bytes of results of the batch that is executed.
    result_bytes: usize,
    counters: ExecutorCounters,
}

/// What happened so far at this replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExecutorCounters {
    /// Batches executed, those rolled back later included.
    pub batches: u64,
    /// Operations executed, those rolled back later included.
    pub operations: u64,
    /// Requests answered from the cache.
    pub duplicates: u64,
    /// Executed before, the result no longer kept.
    pub gone: u64,
    /// Stale, beyond the window, of somebody else's session: not answered.
    pub ignored: u64,
    /// Requests of sessions that do not exist.
    pub no_session: u64,
    /// Batches rolled back.
    pub rollbacks: u64,
    /// States fetched from others that replaced the own one.
    pub installed: u64,
    /// Queries answered.
    pub queries: u64,
    /// Queries that the service does not answer unordered.
    pub queries_not_read_only: u64,
    /// Queries in which the service panicked.
    pub queries_panicked: u64,
    /// Packs of queries that waited too long (P48).
    pub queries_expired: u64,
    /// Packs of queries for which there was no room (P48).
    pub queries_refused: u64,
}

/// Whom a reply goes to, and how.
#[derive(Clone, Copy)]
struct Asked<'a> {
    pack: &'a Pack,
    view: View,
}

impl<S: Service> Executor<S> {
    /// The initial state of `service`. Fails with one sentence if the configuration is inconsistent.
    pub fn new(service: S, config: ExecutorConfig) -> Result<Executor<S>, String> {
        config.validate()?;
        let library = u32::try_from(layout::pages_max(&config)).expect("checked by validate");
        let mut state = State::new(library, config.service_pages);
        layout::genesis(&mut state.library, &config);
        service.genesis(&mut state.service);
        Executor::resume(service, config, state)
    }

    /// Goes on from a state that another executor left. Fails with one sentence if that one was configured otherwise.
    pub fn resume(service: S, config: ExecutorConfig, state: State) -> Result<Executor<S>, String> {
        config.validate()?;
        if !layout::is_laid_out_for(&state.library, &config) {
            return Err("the state was made under another configuration of sessions and checkpoints".to_string());
        }
        let sessions = Sessions::load(&state.library, &config);
        let executed = SeqNum(Field::EXECUTED.get(&state.library));
        Ok(Executor {
            service,
            config,
            state,
            sessions,
            queries: Queries::default(),
            caches: Caches::new(),
            buffer: ReplyBuffer::new(),
            current: None,
            executed,
            tentative: false,
            sealed: None,
            halted: false,
            stopped: None,
            result_bytes: 0,
            counters: ExecutorCounters::default(),
        })
    }

    /// Does what `command` says. After [`Output::Stopped`] it does nothing any more.
    ///
    /// # Panics
    /// If the command is out of order (P16, P17).
    pub fn handle(&mut self, now: Time, command: Command, out: &mut Vec<Output>) {
        if self.stopped.is_some() {
            return;
        }
        self.expire(now);
        match command {
            Command::Execute { n, view, batch, tentative } => self.on_execute(n, view, &batch, tentative, out),
            Command::Commit(n) => self.on_commit(n, out),
            Command::Rollback(n) => self.on_rollback(n),
            // What was asked of a state that is being replaced is asked again.
            Command::Query { .. } if self.halted => self.counters.queries_refused += 1,
            Command::Admit { .. } if self.halted => {}
            Command::Query { pack, after, tentative, view } => {
                if tentative && self.tentative && after == self.executed {
                    self.answer_queries(&Held::now(pack, view), out);
                } else {
                    self.on_query(now, pack, after, view, out);
                }
            }
            Command::Admit { pack, view } => self.on_admit(pack, view, out),
            Command::Halt { n, root, diverged } => {
                self.halt(out);
                out.push(Output::Halted { n, root, diverged });
            }
            Command::Compare { n, others } => out.push(Output::Compare { n, others }),
            Command::Install { n, pages } => match self.install(n, pages) {
                Ok(()) => out.push(Output::Installed(n)),
                Err(text) => out.push(Output::Unfit(text)),
            },
        }
        if !self.tentative && !self.halted {
            while let Some(held) = self.queries.next_ready(self.executed) {
                self.answer_queries(&held, out);
            }
        }
    }

    /// Drops queries that waited too long (P48).
    pub fn expire(&mut self, now: Time) {
        self.counters.queries_expired += self.queries.expire(now);
    }

    /// When [`expire`](Executor::expire) has something to do; [`Time::NEVER`] if there is nothing.
    pub fn deadline(&self) -> Time {
        self.queries.deadline()
    }

    /// The last executed batch, tentative or not.
    pub fn executed(&self) -> SeqNum {
        self.executed
    }

    /// The last executed batch that will not be rolled back.
    pub fn committed(&self) -> SeqNum {
        if self.tentative { SeqNum(self.executed.0 - 1) } else { self.executed }
    }

    /// The agreed time of the last batch executed (P19).
    pub fn time(&self) -> Time {
        Time(Field::TIME.get(&self.state.library))
    }

    /// Where and how the service panicked.
    pub fn stopped(&self) -> Option<(Position, &str)> {
        self.stopped.as_ref().map(|(position, message)| (*position, message.as_str()))
    }

    /// Live sessions.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Packs of queries that wait for a state.
    pub fn held_queries(&self) -> usize {
        self.queries.len()
    }

    /// What happened so far.
    pub fn counters(&self) -> &ExecutorCounters {
        &self.counters
    }

    /// The service.
    pub fn service(&self) -> &S {
        &self.service
    }

    /// The state, as of the last batch executed.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The state, for shipping sealed pages and taking them back. Whoever writes to it breaks it.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// The state alone, for [`resume`](Executor::resume).
    pub fn into_state(self) -> State {
        self.state
    }

    /// Drops the service's caches, as may happen at any time.
    pub fn drop_caches(&mut self) {
        self.caches.clear();
    }

    /// P16: in order, at most one batch tentative.
    fn on_execute(&mut self, n: SeqNum, view: View, batch: &Arc<Batch>, tentative: bool, out: &mut Vec<Output>) {
        assert!(!self.tentative, "{n}: {} is tentative: commit it or roll it back first", self.executed);
        assert!(!self.halted, "{n}: the state waits to be replaced");
        assert_eq!(n, self.executed.next(), "batches are executed in order");
        if tentative {
            self.state.begin_tentative();
            self.sessions.begin();
            self.tentative = true;
        }
        self.executed = n;
        Field::EXECUTED.set(&mut self.state.library, n.0);
        if !batch.is_null() {
            // P19. A null batch leaves time unchanged.
            let time = batch.choice().time.max(self.time().0.saturating_add(1));
            Field::TIME.set(&mut self.state.library, time);
        }
        self.counters.batches += 1;

        let agreed = (self.time(), batch.choice().seed);
        self.result_bytes = 0;
        let mut index = 0;
        for (pack, request) in batch.packs().iter().flat_map(|pack| pack.requests().map(move |request| (pack, request)))
        {
            let position = Position::new(n, index);
            self.execute(&request, Asked { pack, view }, position, agreed, out);
            if self.stopped.is_some() {
                break;
            }
            index += 1;
        }
        self.settle_session();
        if let Some((position, message)) = &self.stopped {
            out.push(Output::Stopped { position: *position, message: message.clone() });
            return;
        }
        out.push(Output::Executed(Executed { n, requests: index, result_bytes: self.result_bytes }));
        if !tentative {
            self.seal_if_due(out);
        }
    }

    fn on_commit(&mut self, n: SeqNum, out: &mut Vec<Output>) {
        assert!(self.tentative && n == self.executed, "{n} is not the tentative batch");
        self.state.commit();
        self.tentative = false;
        self.seal_if_due(out);
    }

    /// P17: state, sessions, cached replies and agreed time are as before the batch.
    fn on_rollback(&mut self, n: SeqNum) {
        assert!(self.tentative && n == self.executed, "{n} is not the tentative batch");
        self.state.rollback();
        self.sessions.rolled_back(&self.state.library);
        self.caches.clear();
        self.tentative = false;
        self.executed = SeqNum(n.0 - 1);
        assert_eq!(Field::EXECUTED.get(&self.state.library), self.executed.0, "the state was rolled back");
        self.counters.rollbacks += 1;
    }

    /// P22: what is executed and committed up to a multiple of K is sealed before anything later executes.
    fn seal_if_due(&mut self, out: &mut Vec<Output>) {
        if self.executed.0.is_multiple_of(self.config.checkpoint_interval) {
            self.seal(out);
        }
    }

    fn seal(&mut self, out: &mut Vec<Output>) {
        self.sealed = Some(self.executed);
        out.push(Output::Sealed(self.state.seal(self.executed)));
    }

    /// What was executed since the last checkpoint need not be fetched if it is the same elsewhere: so it is sealed too.
    fn halt(&mut self, out: &mut Vec<Output>) {
        assert!(!self.tentative, "{} is tentative: roll it back first", self.executed);
        if !std::mem::replace(&mut self.halted, true) && self.sealed != Some(self.executed) {
            self.seal(out);
        }
    }

    /// P38, P39: the state that q replicas certified takes the place of ours, sessions and cached replies included.
    fn install(&mut self, n: SeqNum, pages: [Vec<Arc<Page>>; 2]) -> Result<(), String> {
        assert!(!self.tentative, "nothing tentative lies over a state that is replaced");
        let unfit = |why: &str| Err(format!("the certified state at {n} {why}: configure this replica as the others"));
        if !self.state.install(pages) {
            return unfit("is larger than service_pages or the session tables allow here");
        }
        if !layout::is_laid_out_for(&self.state.library, &self.config) {
            return unfit("was made under another configuration of sessions and checkpoints");
        }
        self.sessions = Sessions::load(&self.state.library, &self.config);
        self.caches.clear();
        self.executed = SeqNum(Field::EXECUTED.get(&self.state.library));
        assert_eq!(self.executed, n, "a certified state is that after its own batch");
        (self.sealed, self.halted) = (Some(n), false);
        self.counters.installed += 1;
        Ok(())
    }

    /// One request of a batch. P4: duplicates and stale requests are sorted out here, not before.
    fn execute(
        &mut self,
        request: &Request<'_>,
        asked: Asked<'_>,
        at: Position,
        (time, seed): (Time, u64),
        out: &mut Vec<Output>,
    ) {
        let owner = owner_of(asked.pack);
        let (outcome, position) = match request.kind {
            // Only a faulty primary orders a query; it is the same non-request for all.
            RequestKind::ReadOnly => {
                self.counters.ignored += 1;
                return;
            }
            RequestKind::Open => {
                let Some(open) = request.open() else {
                    self.counters.ignored += 1;
                    return;
                };
                self.settle_session();
                self.sessions.open(&mut self.state.library, owner, open, at, time)
            }
            RequestKind::Ordered | RequestKind::Close => {
                let Some(session) = self.session(request.session) else {
                    self.counters.no_session += 1;
                    self.reply(request, asked, at, Outcome::NoSession, out);
                    return;
                };
                match session.standing(&self.state.library, owner, request.t, request.low) {
                    Standing::Ignored => {
                        self.counters.ignored += 1;
                        return;
                    }
                    Standing::Executed(position) => (self.kept(&session, request.t), position),
                    Standing::Executable if request.kind == RequestKind::Close => {
                        self.settle_session();
                        self.sessions.close(&mut self.state.library, &session);
                        (Outcome::Done(bytes::Bytes::new()), at)
                    }
                    Standing::Executable => {
                        let Some(outcome) = self.run(request, asked, at, (time, seed)) else { return };
                        (outcome, at)
                    }
                }
            }
        };
        self.reply(request, asked, position, outcome, out);
    }

    /// The session `id`, as it is after the requests before this one.
    fn session(&mut self, id: SessionId) -> Option<Session> {
        if self.current.is_none_or(|current| current.id() != id) {
            self.settle_session();
            self.current = self.sessions.find(&self.state.library, id);
        }
        self.current
    }

    /// Writes what the requests that followed each other changed of their session.
    fn settle_session(&mut self) {
        if let Some(session) = self.current.take() {
            self.sessions.settle(&mut self.state.library, &session);
        }
    }

    /// Hands an operation to the service and keeps its result. `None`: the service panicked.
    fn run(
        &mut self,
        request: &Request<'_>,
        asked: Asked<'_>,
        at: Position,
        (time, seed): (Time, u64),
    ) -> Option<Outcome> {
        let Executor { service, state, caches, buffer, current, .. } = self;
        buffer.clear();
        let mut cx = Context::new(time, seed, asked.pack.client(), request.session, at, caches);
        let run = AssertUnwindSafe(|| service.execute(&mut cx, request.op, &mut state.service, buffer));
        if let Err(panic) = catch_unwind(run) {
            self.stopped = Some((at, message_of(&*panic)));
            return None;
        }
        self.counters.operations += 1;
        let result = buffer.take();
        let session = current.as_mut().expect("the session of the request was found");
        self.sessions.keep(&mut state.library, session, (request.t, request.low), at, time, &result);
        Some(Outcome::Done(result))
    }

    fn kept(&mut self, session: &Session, t: u64) -> Outcome {
        let outcome = self.sessions.kept(&self.state.library, session, t, &mut self.buffer);
        self.counters.duplicates += 1;
        self.counters.gone += u64::from(outcome == Outcome::Gone);
        outcome
    }

    /// A reply is tentative if its batch is: also that of a duplicate (P5).
    fn reply(
        &mut self,
        request: &Request<'_>,
        asked: Asked<'_>,
        position: Position,
        outcome: Outcome,
        out: &mut Vec<Output>,
    ) {
        if let Outcome::Done(bytes) = &outcome {
            self.result_bytes += bytes.len();
        }
        let kind = match self.tentative && position.batch() == self.executed {
            true => ReplyKind::Tentative,
            false => ReplyKind::Committed,
        };
        out.push(Output::Reply(reply(request, asked, kind, position, outcome)));
    }

    /// P4: what was executed is answered from the cache. What would execute, or gets its answer only by being ordered
    /// (no such session, a refusal: those must be agreed too), is handed back.
    fn on_admit(&mut self, pack: Verified<Pack>, view: View, out: &mut Vec<Output>) {
        let asked = Asked { pack: &pack, view };
        let owner = owner_of(&pack);
        let mut unexecuted = false;
        for request in pack.requests() {
            let library = &self.state.library;
            match request.kind {
                RequestKind::ReadOnly => {}
                RequestKind::Open => {
                    let Some((counter, _)) = request.open() else { continue };
                    match self.sessions.opened(library, owner, counter) {
                        Some((outcome, position)) => self.reply(&request, asked, position, outcome, out),
                        None => unexecuted = true,
                    }
                }
                RequestKind::Ordered | RequestKind::Close => {
                    let Some(session) = self.sessions.find(library, request.session) else {
                        unexecuted = true;
                        continue;
                    };
                    match session.standing(library, owner, request.t, request.low) {
                        Standing::Executable => unexecuted = true,
                        Standing::Ignored => self.counters.ignored += 1,
                        Standing::Executed(position) => {
                            let outcome = self.kept(&session, request.t);
                            self.reply(&request, asked, position, outcome, out);
                        }
                    }
                }
            }
        }
        out.push(match unexecuted {
            true => Output::Unexecuted(pack),
            false => Output::Settled(pack.digest()),
        });
    }

    /// P18: answered from the first committed state that includes `after`, which may be the present one.
    fn on_query(&mut self, now: Time, pack: Pack, after: SeqNum, view: View, out: &mut Vec<Output>) {
        // What is held waits for more than this: what was prepared only grows.
        if !self.tentative && after <= self.executed {
            self.answer_queries(&Held::now(pack, view), out);
        } else if !self.queries.hold(now, &self.config, pack, after, view) {
            self.counters.queries_refused += 1;
        }
    }

    fn answer_queries(&mut self, held: &Held, out: &mut Vec<Output>) {
        let kind = if self.tentative { ReplyKind::TentativeRead } else { ReplyKind::ReadOnly };
        let position = Position::new(self.executed, 0);
        let (asked, time) = (Asked { pack: &held.pack, view: held.view }, self.time());
        for request in held.pack.requests().filter(|request| request.kind == RequestKind::ReadOnly) {
            let Executor { service, state, caches, buffer, counters, .. } = &mut *self;
            buffer.clear();
            let cx = Context::new(time, 0, held.pack.client(), SessionId::NONE, position, caches);
            let run = AssertUnwindSafe(|| service.query(&cx, request.op, &state.service, buffer));
            match catch_unwind(run) {
                Ok(Ok(())) => {
                    counters.queries += 1;
                    let outcome = Outcome::Done(buffer.take());
                    out.push(Output::Reply(reply(&request, asked, kind, position, outcome)));
                }
                Ok(Err(NotReadOnly)) => counters.queries_not_read_only += 1,
                Err(_) => counters.queries_panicked += 1,
            }
        }
    }
}

/// Whose sessions the requests of a pack may use.
fn owner_of(pack: &Pack) -> Owner {
    (pack.client(), pack.endpoint())
}

fn reply(request: &Request<'_>, asked: Asked<'_>, kind: ReplyKind, position: Position, outcome: Outcome) -> Reply {
    let Asked { pack, view } = asked;
    Reply {
        client: pack.client(),
        endpoint: pack.endpoint(),
        session: request.session,
        t: request.t,
        view,
        kind,
        position,
        outcome,
        full: pack.wants_full(),
    }
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_string()
}
