//! One client process: its sessions, its requests, and what it believes.

mod replies;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::certificate::{Accepted, Certificate, Rule, Verdict};
use super::completion::{Completion, RequestError, RequestId, Session, SessionError, SubmitError};
use super::config::EndpointConfig;
use super::random::Random;
use super::readers::Readers;
use super::repliers::Repliers;
use super::request::{Number, Outstanding, Requests};
use super::reserve::Reserve;
use super::rtt::Rtt;
use super::sending::{Call, Sender, Way};
use super::session::{Phase, SessionState};
use super::stats::{EndpointStats, Health};
use super::table::Table;
use super::timers::Timers;
use crate::auth::Keyring;
use crate::limits;
use crate::transport::{Datagram, Machine, Outgoing};
use crate::types::{ClusterSize, Position, ReplicaSet, SessionId, Time, View};
use crate::wire::fragment::ReassemblyLimits;
use crate::wire::{Reassembler, ReplyKind, RequestKind, default_replier};

/// A client endpoint: many sessions over one transport, sans-IO.
///
/// ```text
/// let session = endpoint.open_session(16)?;
/// let request = endpoint.submit(session, op)?;          // or endpoint.query(op)
/// loop {
///     transport.receive(&mut inbox);
///     endpoint.turn(transport.now(), &mut inbox, &mut outbox);
///     transport.send(&mut outbox);
///     while let Some(completion) = endpoint.poll_completion() { ... }
///     transport.wait(endpoint.deadline());
/// }
/// ```
/// What is handed in leaves with the next turn, packed together (P46). Nothing here grows without bound: a session has
/// at most its window of requests, completions that are not fetched count against it, and a replica has one entry per
/// request, whatever it sends.
#[derive(Debug)]
pub struct Endpoint {
    config: EndpointConfig,
    keyring: Keyring,
    size: ClusterSize,
    random: Random,
    now: Time,
    requests: Requests,
    sessions: Table<Session, SessionState>,
    by_id: BTreeMap<SessionId, Session>,
    /// Session-opens on their way, by counter.
    opens: BTreeMap<u64, RequestId>,
    /// Queries on their way, by the endpoint's number.
    queries: BTreeMap<u64, RequestId>,
    /// Queries handed in, and their completions not yet fetched.
    queries_load: u64,
    next_counter: u64,
    next_query: u64,
    /// The session of queries that fall back; made when the first does.
    fallback: Option<Session>,
    /// Handed in since the last turn: their clocks start with the next.
    handed_in: Vec<RequestId>,
    /// Sessions in which something may be sent.
    stirred: Vec<Session>,
    /// To be sent at the end of this turn.
    first: Vec<RequestId>,
    again: Vec<RequestId>,
    timers: Timers,
    next_timer: Time,
    rtt: Rtt,
    view: View,
    sender: Sender,
    reassembly: Vec<Reassembler>,
    /// Replicas whose new keys came since the last time that requests were sent again for it, when that was, and when it
    /// is due.
    rekeyed: ReplicaSet,
    rekeyed_at: Time,
    rekey_due: Time,
    /// Signatures of new keys checked for each replica, and since when.
    key_checks: Vec<(Time, u32)>,
    /// Bytes of uncertified results kept, per replica.
    held: Vec<usize>,
    repliers: Repliers,
    readers: Readers,
    reserve: Reserve,
    /// The last position of an accepted result.
    accepted: Position,
    completions: VecDeque<Completion>,
    stats: EndpointStats,
    health: Vec<Health>,
}

impl Endpoint {
    /// Requests due within this time of one that is due are sent again with it, in its packs.
    const TIMER_SLACK: Duration = Duration::from_millis(2);

    /// Receipts come at least so often while something is missing (P54), for they are asked for; and for so long at most are
    /// they believed.
    const RECEIPTS_APART: Duration = Duration::from_secs(1);
    const RECEIPTS_FOR: Duration = Duration::from_secs(10);

    /// A large query that was sent to few: so long after they said what they have of it, beyond the usual time, the others
    /// are asked too. One of the few may have stopped, and what all of it takes to arrive is not known.
    const QUERY_APART: Duration = Duration::from_millis(60);

    /// A large result comes in pieces not further apart than this, and is waited for so long at most.
    const PIECES_APART: Duration = Duration::from_millis(150);
    const RESULT_FOR: Duration = Duration::from_secs(1);

    /// New keys are waited for together for so long.
    const KEYS_TOGETHER: Duration = Duration::from_millis(1);
    /// New keys of one replica whose signatures are checked in a window, and how often requests are sent again for new
    /// keys: once in one.
    const KEYS_MAX: u32 = 8;
    const KEYS_WINDOW: Duration = Duration::from_millis(100);

    /// Window of the session in which queries are ordered; more of them wait.
    const FALLBACK_WINDOW: u64 = 64;

    /// Counters are times in nanoseconds: a leap is at most 16 ms ahead of them.
    const COUNTER_LEAP: u64 = 1 << 24;
    const COUNTER_MAX: u64 = u64::MAX / 2;

    /// An endpoint of the client whose `keyring` it is. `seed` decides its timers' jitter, nothing else.
    ///
    /// # Panics
    /// If `config` is not valid, or `keyring` not a client's.
    pub fn new(config: EndpointConfig, keyring: Keyring, seed: u64) -> Endpoint {
        config.validate().expect("a validated configuration");
        let size = keyring.size();
        let n = size.n();
        Endpoint {
            size,
            random: Random::new(seed),
            now: Time(0),
            requests: Requests::new(),
            sessions: Table::new(),
            by_id: BTreeMap::new(),
            opens: BTreeMap::new(),
            queries: BTreeMap::new(),
            queries_load: 0,
            next_counter: config.first_counter,
            next_query: 1,
            fallback: None,
            handed_in: Vec::new(),
            stirred: Vec::new(),
            first: Vec::new(),
            again: Vec::new(),
            timers: Timers::default(),
            next_timer: Time::NEVER,
            rtt: Rtt::default(),
            view: View(0),
            sender: Sender::new(&config, &keyring),
            rekeyed: ReplicaSet::EMPTY,
            rekeyed_at: Time(0),
            rekey_due: Time::NEVER,
            key_checks: vec![(Time(0), 0); n],
            reassembly: (0..n).map(|_| Reassembler::new(ReassemblyLimits::default())).collect(),
            held: vec![0; n],
            repliers: Repliers::new(size),
            readers: Readers::new(size),
            reserve: Reserve::new(size),
            accepted: Position(0),
            completions: VecDeque::new(),
            stats: EndpointStats::default(),
            health: vec![Health::default(); n],
            config,
            keyring,
        }
    }

    /// A new session with a window of `window` requests. It is opened with the next turn.
    ///
    /// # Errors
    /// [`SessionError`], if there are too many or the window is out of bounds.
    pub fn open_session(&mut self, window: u64) -> Result<Session, SessionError> {
        if !(1..=limits::SESSION_WINDOW_MAX).contains(&window) {
            return Err(SessionError::Window(window));
        }
        if self.sessions.len() >= self.config.sessions_max {
            return Err(SessionError::TooMany(self.sessions.len()));
        }
        let session = self.new_session(window);
        self.start_open(session);
        Ok(session)
    }

    /// Takes no more requests for `session`, and closes it in the cluster when the last is answered.
    pub fn close_session(&mut self, session: Session) {
        if let Some(state) = self.sessions.get_mut(session) {
            state.closing = true;
            self.stir(session);
        }
        // A completion names the endpoint's own session too; the next query that falls back opens another.
        self.fallback = self.fallback.filter(|&own| own != session);
    }

    /// Closes every session, the endpoint's own included.
    pub fn close_all(&mut self) {
        for (session, state) in self.sessions.iter_mut() {
            state.closing = true;
            self.stirred.push(session);
        }
        self.fallback = None;
    }

    /// Sessions that are not closed yet, the endpoint's own included.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The cluster's name for `session`, while it is open.
    pub fn session_id(&self, session: Session) -> Option<SessionId> {
        self.sessions.get(session).and_then(SessionState::id)
    }

    /// Hands in an operation, to be ordered and executed exactly once.
    ///
    /// # Errors
    /// [`SubmitError`]: nothing was sent.
    pub fn submit(&mut self, session: Session, op: Bytes) -> Result<RequestId, SubmitError> {
        let len = op.len();
        if len > limits::OPERATION_MAX {
            return Err(SubmitError::TooLarge { len });
        }
        let state = self.sessions.get_mut(session).filter(|s| !s.closing).ok_or(SubmitError::Closed)?;
        if state.load >= state.window {
            return Err(SubmitError::Busy(state.load));
        }
        state.load += 1;
        let request = self.hand_in(RequestKind::Ordered, Some(session), op);
        self.enqueue(session, request);
        Ok(request)
    }

    /// Hands in a query, answered without ordering if a quorum of replicas agrees, else ordered (P6). It needs no
    /// session.
    ///
    /// # Errors
    /// [`SubmitError`]: nothing was sent.
    pub fn query(&mut self, op: Bytes) -> Result<RequestId, SubmitError> {
        let len = op.len();
        if len > limits::OPERATION_MAX {
            return Err(SubmitError::TooLarge { len });
        }
        if self.queries_load >= self.config.queries_max as u64 {
            return Err(SubmitError::Busy(self.queries_load));
        }
        self.queries_load += 1;
        let request = self.hand_in(RequestKind::ReadOnly, None, op);
        if self.config.read_only {
            self.first.push(request);
        } else {
            self.fall_back(request);
        }
        Ok(request)
    }

    /// The next request that came to its end. Its place in the window is free from here on.
    ///
    /// Results come in the order in which they are proved. A session's operations are executed one after another, but a
    /// reply that was lost lets a later one be proved first: [`Completion::request`] tells which it is, and
    /// [`Completion::position`] the agreed order.
    pub fn poll_completion(&mut self) -> Option<Completion> {
        let completion = self.completions.pop_front()?;
        match completion.session {
            Some(session) if !completion.fell_back => {
                if let Some(state) = self.sessions.get_mut(session) {
                    state.load -= 1;
                }
            }
            Some(_) | None => self.queries_load -= 1,
        }
        Some(completion)
    }

    /// Requests handed in and not completed, session-opens and -closes included.
    pub fn outstanding(&self) -> usize {
        self.requests.len()
    }

    /// What it counted.
    pub fn stats(&self) -> EndpointStats {
        EndpointStats {
            view: self.view,
            rtt: self.rtt.smoothed(),
            packs_out: self.sender.packs_out,
            pieces_again: self.sender.pieces_again(),
            ..self.stats.clone()
        }
    }

    /// What it knows of each replica, by index: who is missing, and when it was last heard (E007).
    pub fn health(&self) -> &[Health] {
        &self.health
    }

    /// The view that it believes in (P8).
    pub fn view(&self) -> View {
        self.view
    }

    /// The cluster's size.
    pub fn size(&self) -> ClusterSize {
        self.size
    }
}

/// Sessions and requests.
impl Endpoint {
    fn new_session(&mut self, window: u64) -> Session {
        self.sessions.insert(SessionState::new(window))
    }

    fn rule(&self, kind: RequestKind) -> Rule {
        match kind {
            RequestKind::ReadOnly => Rule::ReadOnly,
            RequestKind::Ordered | RequestKind::Open | RequestKind::Close => {
                Rule::Ordered { weak: !self.config.read_only }
            }
        }
    }

    fn hand_in(&mut self, kind: RequestKind, session: Option<Session>, op: Bytes) -> RequestId {
        let rule = self.rule(kind);
        let certificate = Certificate::new(self.size, rule);
        let request = self.requests.insert(Outstanding {
            session,
            kind,
            op,
            number: None,
            submitted_at: self.now,
            sent_at: None,
            deadline: Time::NEVER,
            due: Time::NEVER,
            retransmissions: 0,
            certificate,
            gone: None,
            to: ReplicaSet::EMPTY,
            asked: ReplicaSet::EMPTY,
            hedging: false,
            unauthentic: self.stats.rejects.unauthentic,
            fell_back: false,
            repeat: None,
        });
        self.handed_in.push(request);
        request
    }

    /// Something may be sent in `session`. What comes together is mostly of one.
    fn stir(&mut self, session: Session) {
        if self.stirred.last() != Some(&session) {
            self.stirred.push(session);
        }
    }

    fn enqueue(&mut self, session: Session, request: RequestId) {
        let state = self.sessions.get_mut(session).expect("checked by the caller");
        state.waiting.push_back(request);
        self.stir(session);
    }

    /// P6: the same operation, ordered, under a number that no reply to the query can bear.
    fn fall_back(&mut self, request: RequestId) {
        // Beside the callers' sessions, so it needs no place among them.
        let session = self.fallback.unwrap_or_else(|| self.new_session(Self::FALLBACK_WINDOW));
        self.fallback = Some(session);
        let rule = self.rule(RequestKind::Ordered);
        self.drop_held(request);
        let Some(r) = self.requests.get_mut(request) else { return };
        if let Some(number) = r.number.take() {
            self.queries.remove(&number.t);
        }
        // It may wait for its session until its deadline, and not a moment longer.
        (r.kind, r.session, r.fell_back, r.due, r.retransmissions) =
            (RequestKind::Ordered, Some(session), true, r.deadline, 0);
        (r.certificate, r.gone) = (Certificate::new(self.size, rule), None);
        let due = r.due;
        self.timers.push(due, request, &self.requests);
        self.stats.fallbacks += 1;
        self.enqueue(session, request);
    }

    /// P9: asks for the session, under a counter never used before.
    fn start_open(&mut self, session: Session) {
        let state = self.sessions.get_mut(session).expect("checked by the caller");
        let counter = self.next_counter;
        self.next_counter = counter.checked_add(1).expect("counters start at the time and rise by one per session");
        let op = [counter.to_le_bytes(), state.window.to_le_bytes()].concat();
        let request = self.hand_in(RequestKind::Open, Some(session), op.into());
        let state = self.sessions.get_mut(session).expect("as above");
        state.phase = Phase::Opening;
        let r = self.requests.get_mut(request).expect("just handed in");
        r.number = Some(Number { session: SessionId::NONE, t: counter, low: 0 });
        self.opens.insert(counter, request);
        self.first.push(request);
    }

    /// Sends what the session can send now.
    fn pump(&mut self, session: Session) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        if let Phase::Open(live) = &state.phase
            && live.is_idle()
            && !state.waiting.is_empty()
            && self.now.since(live.touched) > self.config.session_idle
        {
            // It may have expired. Nothing of it is outstanding, so nothing is at stake: open another.
            self.by_id.remove(&live.id);
            state.phase = Phase::Closed;
        }
        match &mut state.phase {
            Phase::Opening => {}
            Phase::Closed if !state.waiting.is_empty() => self.start_open(session),
            Phase::Closed if state.closing => {
                self.sessions.remove(session);
            }
            Phase::Closed => {}
            Phase::Open(live) => {
                while let Some(&request) = state.waiting.front() {
                    let Some((t, low)) = live.assign(request, state.window) else { break };
                    state.waiting.pop_front();
                    let r = self.requests.get_mut(request).expect("what waits is outstanding");
                    r.number = Some(Number { session: live.id, t, low });
                    live.touched = self.now;
                    self.first.push(request);
                }
                if state.closing && live.is_idle() && state.waiting.is_empty() {
                    self.start_close(session);
                }
            }
        }
    }

    fn start_close(&mut self, session: Session) {
        let request = self.hand_in(RequestKind::Close, Some(session), Bytes::new());
        let state = self.sessions.get_mut(session).expect("checked by the caller");
        let live = state.live().expect("checked by the caller");
        let (id, (t, low)) = (live.id, live.assign(request, 1).expect("nothing is outstanding"));
        self.requests.get_mut(request).expect("just handed in").number = Some(Number { session: id, t, low });
        self.first.push(request);
    }

    /// NO-SESSION, certified: the session is gone, and with it the memory of what was executed in it. What is
    /// outstanding ends as lost; what was never sent goes through the next session.
    fn lose(&mut self, session: Session) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        let Phase::Open(live) = &state.phase else { return };
        let id = live.id;
        let lost: Vec<RequestId> = live.outstanding().collect();
        self.stats.sessions_lost += 1;
        for request in lost {
            self.finish(request, Err(RequestError::SessionLost { session: id }), None);
        }
        self.by_id.remove(&id);
        if let Some(state) = self.sessions.get_mut(session) {
            state.phase = Phase::Closed;
            self.stir(session);
        }
    }

    fn drop_held(&mut self, request: RequestId) {
        let Some(r) = self.requests.get(request) else { return };
        for replica in r.certificate.givers().iter() {
            self.held[usize::from(replica.0)] -= r.certificate.held(replica);
        }
    }

    /// The request is over.
    fn finish(&mut self, request: RequestId, result: Result<Bytes, RequestError>, accepted: Option<&Accepted>) {
        self.drop_held(request);
        let Some(r) = self.requests.remove(request) else { return };
        self.sender.over(request);
        let mut session_id = None;
        if let Some(number) = r.number {
            match r.kind {
                RequestKind::Open => drop(self.opens.remove(&number.t)),
                RequestKind::ReadOnly => drop(self.queries.remove(&number.t)),
                RequestKind::Ordered | RequestKind::Close => {
                    session_id = Some(number.session);
                    let state = r.session.and_then(|s| self.sessions.get_mut(s));
                    if let Some(live) = state.and_then(SessionState::live).filter(|l| l.id == number.session) {
                        live.release(number.t);
                        live.touched = self.now;
                    }
                }
            }
        } else if let Some(state) = r.session.and_then(|s| self.sessions.get_mut(s)) {
            state.waiting.retain(|&waiting| waiting != request);
        }
        r.session.into_iter().for_each(|session| self.stir(session));
        match r.kind {
            RequestKind::Open => {}
            RequestKind::Close => {
                // Whatever the answer: the caller wants no more of it.
                if let Some(number) = r.number {
                    self.by_id.remove(&number.session);
                }
                if let Some(session) = r.session {
                    self.sessions.remove(session);
                }
            }
            RequestKind::Ordered | RequestKind::ReadOnly => {
                self.stats.completed += 1;
                self.stats.failed += u64::from(result.is_err());
                let members = match accepted {
                    Some(accepted) if self.config.evidence => r.certificate.evidence(accepted.members),
                    Some(_) | None => Vec::new(),
                };
                let ordinary = match r.kind {
                    RequestKind::ReadOnly => ReplyKind::ReadOnly,
                    RequestKind::Ordered | RequestKind::Open | RequestKind::Close => ReplyKind::Tentative,
                };
                self.completions.push_back(Completion {
                    request,
                    session: r.session,
                    session_id,
                    result,
                    position: accepted.map_or(Position(0), |a| a.position),
                    kind: accepted.map_or(ordinary, |a| a.kind),
                    view: self.view,
                    submitted_at: r.submitted_at,
                    sent_at: r.sent_at,
                    done_at: self.now,
                    retransmissions: r.retransmissions,
                    fell_back: r.fell_back,
                    members,
                });
            }
        }
    }
}

/// Timers and sending.
impl Endpoint {
    fn on_timer(&mut self, request: RequestId, random: u64) {
        let Some(r) = self.requests.get(request) else { return };
        if r.deadline <= self.now + Self::TIMER_SLACK {
            let tally = r.certificate.tally(self.stats.rejects.unauthentic - r.unauthentic);
            let sent = r.sent_at.is_some();
            return self.finish(request, Err(RequestError::Timeout { tally, sent }), None);
        }
        if self.is_leaving(request) || self.is_arriving(request) {
            return self.wait_on(request, random);
        }
        let Some(r) = self.requests.get(request) else { return };
        if r.kind == RequestKind::ReadOnly && r.retransmissions == 0 && r.asked.len() < self.size.n() {
            let late = r.due <= self.now;
            return self.hedge(request, late);
        }
        if r.hedging {
            let late = r.due <= self.now;
            return self.summon(request, late, random);
        }
        if let (Some(number), Verdict::ResultMissing) = (r.number, r.certificate.verdict()) {
            let replier = default_replier(number.session, number.t, self.view, self.size);
            self.repliers.withheld(replier, self.now);
        }
        match r.kind {
            RequestKind::ReadOnly if self.config.fallback => self.fall_back(request),
            RequestKind::ReadOnly | RequestKind::Ordered | RequestKind::Open | RequestKind::Close => {
                self.stats.retransmissions += 1;
                self.again.push(request);
            }
        }
    }

    /// Whether replicas that are there have yet to grant that the rest of it may leave: what is sent again waits for nobody
    /// (P54).
    fn is_leaving(&self, request: RequestId) -> bool {
        let sent_at = self.requests.get(request).and_then(|r| r.sent_at);
        let (Some(sent_at), Some(heard)) = (sent_at, self.sender.waits_since(request)) else { return false };
        self.now < (heard.max(sent_at) + Self::RECEIPTS_APART).min(sent_at + Self::RECEIPTS_FOR)
    }

    /// Whether a correct replica has answered, and pieces come from who is to send the whole result (P7).
    fn is_arriving(&self, request: RequestId) -> bool {
        let Some(r) = self.requests.get(request) else { return false };
        let (Some(number), Some(sent_at)) = (r.number, r.sent_at) else { return false };
        let replier = default_replier(number.session, number.t, self.view, self.size);
        if r.certificate.heard().len() <= self.size.f() || r.certificate.has(replier) {
            return false;
        }
        let touched = self.reassembly[usize::from(replier.0)].touched();
        self.now < sent_at + Self::RESULT_FOR && touched.is_some_and(|at| self.now.since(at) < Self::PIECES_APART)
    }

    fn wait_on(&mut self, request: RequestId, random: u64) {
        let Some(r) = self.requests.get_mut(request) else { return };
        r.due = (self.now + self.rtt.timeout(0, random)).min(r.deadline);
        let due = r.due;
        self.timers.push(due, request, &self.requests);
    }

    /// P53: those preferred do not answer alike, or are `late`. Who has no answer at all waits for the primary.
    fn summon(&mut self, request: RequestId, late: bool, random: u64) {
        let Some(r) = self.requests.get_mut(request) else { return };
        r.hedging = false;
        // Where only the whole result is missing, who has it is asked again.
        let is_open = matches!(r.certificate.verdict(), Verdict::Open);
        if late && is_open && !r.certificate.heard().is_empty() {
            self.stats.summons += 1;
            if self.reserve.may_tell(self.now) {
                self.sender.queue(Way::Call, request);
            }
        }
        self.wait_on(request, random);
    }

    /// P6: asks the replicas that a query did not go to. It is `late`, or its answers differ.
    fn hedge(&mut self, request: RequestId, late: bool) {
        let Some(r) = self.requests.get_mut(request) else { return };
        if late {
            for replica in r.asked.without(r.certificate.heard()).iter() {
                self.readers.failed(replica, self.now);
            }
        }
        r.to = self.size.replicas().filter(|&replica| !r.asked.contains(replica)).collect();
        (r.asked, r.due) = (self.size.replicas().collect(), Time::NEVER);
        self.stats.hedges += 1;
        self.sender.queue(Way::QueryWhole, request);
    }

    /// Sends what this turn has to send: at most a pack per way and datagram's worth of requests (P46).
    fn flush(&mut self, outbox: &mut Vec<Outgoing>) {
        let told = !self.first.is_empty() && self.reserve.takes_call(self.now);
        let call = match (told, self.reserve.is_called(self.now)) {
            (true, _) => Call::Told,
            (false, true) => Call::Known,
            (false, false) => Call::None,
        };
        for request in self.first.drain(..) {
            let Some(r) = self.requests.get_mut(request) else { continue };
            if r.kind == RequestKind::ReadOnly && r.number.is_none() {
                let (to, size, view) = (self.readers.choose(self.now), self.size, self.view);
                // Numbered so that who sends the whole is among them.
                let t = (self.next_query..)
                    .find(|&t| to.contains(default_replier(SessionId::NONE, t, view, size)))
                    .expect("numbers fall to all replicas");
                r.to = to;
                r.number = Some(Number { session: SessionId::NONE, t, low: 0 });
                self.queries.insert(t, request);
                self.next_query = t + 1;
            }
            let relied_on = r.number.is_none_or(|number| {
                let replier = default_replier(number.session, number.t, self.view, self.size);
                self.repliers.is_relied_on(replier, self.now)
            });
            let way = match (r.kind, relied_on) {
                (RequestKind::ReadOnly, true) => Way::Query,
                (RequestKind::ReadOnly, false) => Way::QueryWhole,
                (RequestKind::Open, _) => Way::Open,
                (RequestKind::Ordered | RequestKind::Close, true) => Way::First,
                (RequestKind::Ordered | RequestKind::Close, false) => Way::FirstWhole,
            };
            self.sender.queue(way, request);
        }
        for request in self.again.drain(..) {
            let Some(r) = self.requests.get_mut(request) else { continue };
            r.retransmissions += 1;
            // Without an answer nothing speaks against who is to send the whole result: it may be on its way.
            let answered = !r.certificate.heard().is_empty();
            let way = match r.kind {
                RequestKind::ReadOnly => Way::QueryAgain,
                RequestKind::Ordered if !answered => Way::Unanswered,
                RequestKind::Ordered | RequestKind::Open | RequestKind::Close => Way::Again,
            };
            self.sender.queue(way, request);
        }
        let primary = self.size.primary(self.view);
        let sent = self.sender.flush(self.now, primary, call, &self.keyring, &mut self.requests, outbox);
        let random = self.random.next();
        let rests = self.size.f() > 0 && !self.reserve.is_called(self.now);
        for &(request, backlog) in &sent {
            let Some(r) = self.requests.get_mut(request) else { continue };
            r.hedging =
                rests && r.kind == RequestKind::Ordered && r.sent_at.is_none() && self.sender.stays_inline(r.op.len());
            r.sent_at = r.sent_at.or(Some(self.now));
            let timeout = match r.kind {
                RequestKind::ReadOnly if r.asked.len() < self.size.n() => self.rtt.hedge(),
                RequestKind::Ordered if r.hedging => self.rtt.hedge() * 2,
                RequestKind::ReadOnly | RequestKind::Ordered | RequestKind::Open | RequestKind::Close => {
                    self.rtt.timeout(r.retransmissions, random)
                }
            };
            r.due = (self.now + backlog + timeout).min(r.deadline);
            let due = r.due;
            self.timers.push(due, request, &self.requests);
        }
        self.sender.recycle(sent);
    }

    /// The clock of a request starts with the turn after its hand-in.
    fn start_clocks(&mut self) {
        for &request in &self.handed_in {
            let Some(r) = self.requests.get_mut(request) else { continue };
            r.submitted_at = self.now;
            r.deadline = match r.kind {
                // Retried as long as somebody wants the session; who waits for it has a deadline of his own.
                RequestKind::Open => Time::NEVER,
                RequestKind::Ordered | RequestKind::ReadOnly | RequestKind::Close => {
                    self.now + self.config.request_timeout
                }
            };
        }
    }

    /// What could not be sent at once waits until its deadline.
    fn start_waiting(&mut self) {
        for request in self.handed_in.drain(..) {
            let Some(r) = self.requests.get_mut(request) else { continue };
            if r.due == Time::NEVER {
                r.due = r.deadline;
                self.timers.push(self.requests.get(request).map_or(Time::NEVER, |r| r.due), request, &self.requests);
            }
        }
    }
}

impl Machine for Endpoint {
    fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
        self.now = self.now.max(now);
        self.keyring.expire(self.now);
        self.start_clocks();
        self.stats.datagrams_in += inbox.len() as u64;
        for datagram in inbox.drain(..) {
            self.on_datagram(&datagram.bytes);
        }
        if self.rekey_due <= self.now {
            self.rekey();
        }
        if self.next_timer <= self.now {
            // One for all, so that what was sent together is sent again together.
            let random = self.random.next();
            while let Some(request) = self.timers.pop(self.now + Self::TIMER_SLACK, &self.requests) {
                self.on_timer(request, random);
            }
        }
        while let Some(session) = self.stirred.pop() {
            self.pump(session);
        }
        // Opens and closes that this turn made.
        self.start_clocks();
        let before = outbox.len();
        self.flush(outbox);
        self.stats.datagrams_out += (outbox.len() - before) as u64;
        self.start_waiting();
        self.next_timer = self.timers.next(&self.requests);
    }

    fn deadline(&self) -> Time {
        if !self.handed_in.is_empty() || !self.stirred.is_empty() {
            return self.now;
        }
        self.next_timer.min(self.sender.next()).min(self.rekey_due)
    }
}

#[cfg(test)]
impl Endpoint {
    /// Another seed, as another process has.
    pub(super) fn reseed(&mut self, seed: u64) {
        self.random = Random::new(seed);
    }

    /// Bytes of uncertified results held for `replica`, counted anew and checked against the books.
    pub(super) fn requests_held(&self, replica: crate::types::ReplicaId) -> usize {
        let held = self.requests.held(replica);
        assert_eq!(held, self.held[usize::from(replica.0)]);
        held
    }
}
