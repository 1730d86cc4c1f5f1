//! The client's thread: an endpoint, its transport, and the requests of the handles.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, TryRecvError};

use super::answer::Filler;
use super::{ClientConfig, ClientError, ClientReport};
use crate::auth::Keyring;
use crate::client::{Endpoint, RequestId, Session, SubmitError};
use crate::limits;
use crate::runtime::wait::{WaitPolicy, Waiter};
use crate::transport::{Machine, Peer, Transport, Woken};
use crate::types::Time;

/// What handles ask of the thread.
pub(super) enum Command {
    /// Run an operation.
    Request { query: bool, op: Bytes, filler: Filler },
    /// Say how it goes.
    Report(Sender<ClientReport>),
}

pub(super) struct Driver<T> {
    endpoint: Endpoint,
    transport: T,
    commands: Receiver<Command>,
    /// Sessions and what each has outstanding.
    sessions: Vec<(Session, u64)>,
    window: u64,
    next: usize,
    fillers: BTreeMap<RequestId, (Filler, Option<usize>)>,
    wait: WaitPolicy,
    close_timeout: Duration,
}

impl<T: Transport> Driver<T> {
    pub(super) fn new(
        config: ClientConfig,
        keyring: Keyring,
        seed: u64,
        transport: T,
        commands: Receiver<Command>,
    ) -> Driver<T> {
        let mut endpoint = config.endpoint;
        let mtu = keyring.size().replicas().map(|r| transport.mtu(Peer::Replica(r))).min().unwrap_or(0);
        endpoint.datagram_max = mtu.clamp(limits::DATAGRAM_MIN, limits::DATAGRAM_MAX);
        let mut endpoint = Endpoint::new(endpoint, keyring, seed);
        let open = |_| (endpoint.open_session(config.window).expect("checked by connect"), 0);
        let sessions = (0..config.sessions).map(open).collect();
        Driver {
            endpoint,
            transport,
            commands,
            sessions,
            window: config.window,
            next: 0,
            fillers: BTreeMap::new(),
            wait: config.wait,
            close_timeout: config.close_timeout,
        }
    }

    /// Until the last handle is gone and the sessions are closed.
    pub(super) fn run(mut self) {
        let (mut inbox, mut outbox) = (Vec::new(), Vec::new());
        let mut waiter = Waiter::new(self.wait, self.transport.now());
        let mut closing: Option<Time> = None;
        loop {
            let now = self.transport.now();
            waiter.turn(now);
            let mut busy = false;
            while closing.is_none() {
                match self.commands.try_recv() {
                    Ok(command) => {
                        self.on_command(now, command);
                        busy = true;
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        self.endpoint.close_all();
                        closing = Some(now + self.close_timeout);
                    }
                }
            }
            self.transport.receive(&mut inbox);
            busy |= !inbox.is_empty();
            self.endpoint.turn(now, &mut inbox, &mut outbox);
            busy |= !outbox.is_empty();
            self.transport.send(&mut outbox);
            busy |= self.deliver();
            if closing.is_some_and(|end| now >= end || self.endpoint.sessions() == 0) {
                return;
            }
            if busy {
                waiter.event(now);
                continue;
            }
            let deadline = self.endpoint.deadline().min(closing.unwrap_or(Time::NEVER));
            if deadline > now && waiter.sleeps(now) {
                // A timer alone is no reason to poll on after its turn.
                if self.transport.wait(deadline) != Woken::Deadline {
                    waiter.woken(self.transport.now());
                }
            } else {
                waiter.yield_core(now);
            }
        }
    }

    fn on_command(&mut self, now: Time, command: Command) {
        match command {
            Command::Request { query: true, op, filler } => match self.endpoint.query(op) {
                Ok(request) => drop(self.fillers.insert(request, (filler, None))),
                Err(error) => filler.fill(Err(refused(error))),
            },
            Command::Request { query: false, op, filler } => {
                let index = self.pick();
                let (session, load) = &mut self.sessions[index];
                match self.endpoint.submit(*session, op) {
                    Ok(request) => {
                        *load += 1;
                        self.fillers.insert(request, (filler, Some(index)));
                    }
                    Err(error) => filler.fill(Err(refused(error))),
                }
            }
            Command::Report(to) => {
                let heard = |health: &crate::client::Health| (*health, health.last_heard.map(|at| now.since(at)));
                let replicas = self.endpoint.health().iter().map(heard).collect();
                let (stats, outstanding) = (self.endpoint.stats(), self.endpoint.outstanding());
                // Who asked may have gone.
                drop(to.send(ClientReport { stats, replicas, outstanding }));
            }
        }
    }

    /// The next session in turn that has room. One has: a request holds a permit, and there are as many as windows.
    fn pick(&mut self) -> usize {
        for _ in 0..self.sessions.len() {
            self.next = (self.next + 1) % self.sessions.len();
            if self.sessions[self.next].1 < self.window {
                break;
            }
        }
        self.next
    }

    fn deliver(&mut self) -> bool {
        let mut any = false;
        while let Some(completion) = self.endpoint.poll_completion() {
            any = true;
            let (filler, session) = self.fillers.remove(&completion.request).expect("every request has a filler");
            if let Some(index) = session {
                self.sessions[index].1 -= 1;
            }
            filler.fill(Ok(completion));
        }
        any
    }
}

fn refused(error: SubmitError) -> ClientError {
    match error {
        SubmitError::TooLarge { len } => ClientError::TooLarge(len),
        // Permits and windows agree, and sessions close only with the last handle.
        SubmitError::Busy(_) | SubmitError::Closed => panic!("the driver keeps within its windows: {error}"),
    }
}
