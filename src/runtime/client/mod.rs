//! Front ends of a [client endpoint](crate::client): blocking and async, usable from many threads.
//!
//! One thread owns the endpoint and its transport; handles hand it operations over a bounded channel and wait. Every
//! request in flight holds one of `sessions x window` permits: who finds none waits, blocking or as a future, so
//! nothing queues without bound.
//!
//! ```no_run
//! # use castra::runtime::{Error, client::{Client, ClientConfig, ClientError}, memory};
//! # fn demo(identity: castra::auth::Identity, cluster: std::sync::Arc<castra::auth::ClusterKeys>) -> Result<(), ClientError> {
//! # let network = memory::Network::new();
//! let client = Client::connect(&identity, cluster, ClientConfig::default(), move || Ok(network.client()))?;
//! let result = client.execute("increment")?;        // ordered, exactly once
//! let value = client.query("read")?;                // unordered where a quorum agrees
//! let pending: Vec<_> = (0..10).map(|_| client.submit("increment")).collect::<Result<_, _>>()?;
//! for pending in pending {
//!     pending.wait()?;
//! }
//! # Ok(())
//! # }
//! ```
//! Replicas need not be there yet: requests wait for them until `request_timeout`.
#![forbid(unsafe_code)]

mod answer;
mod driver;
mod permits;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::{self, Sender};

use self::answer::{Answer, Filler};
use self::driver::{Command, Driver};
use self::permits::{Permits, Waiting};
use super::{Error, WaitPolicy, random_bytes};
use crate::auth::{AuthMode, ClusterKeys, Identity, KeyError, Keyring};
use crate::client::{Completion, EndpointConfig, EndpointStats, Health, RequestError};
use crate::limits;
use crate::transport::{Transport, Wake};
use crate::types::EndpointId;

/// What a [`Client`] can be told.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The endpoint's. `datagram_max` is replaced by what the transport says, `first_counter` by the time, and
    /// `queries_max` by the number of permits.
    pub endpoint: EndpointConfig,
    /// MACs or signatures: the cluster's.
    pub mode: AuthMode,
    /// Sessions that requests are spread over.
    pub sessions: usize,
    /// Requests that each may have outstanding.
    pub window: u64,
    /// How the thread waits.
    pub wait: WaitPolicy,
    /// How long the last handle's drop may take to close the sessions in the cluster; else they expire there.
    pub close_timeout: Duration,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig {
            endpoint: EndpointConfig::default(),
            mode: AuthMode::Mac,
            sessions: 1,
            window: 64,
            wait: WaitPolicy::default(),
            close_timeout: Duration::from_millis(200),
        }
    }
}

/// Why a client has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The request came to nothing (E013, or the session's fate).
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The operation is too long. Nothing was sent.
    #[error("the operation has {0} bytes; the largest allowed has {max}", max = limits::OPERATION_MAX)]
    TooLarge(usize),
    /// The client's thread has ended.
    #[error("the client has stopped")]
    Stopped,
    /// A value of the configuration is out of bounds.
    #[error("client configuration: {0}")]
    Config(String),
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The transport could not be made.
    #[error(transparent)]
    Transport(#[from] Error),
}

/// What a client says of itself and of the replicas.
#[derive(Clone, Debug)]
pub struct ClientReport {
    /// Counters of the endpoint.
    pub stats: EndpointStats,
    /// Each replica, by index, with the time since it was last heard (E007).
    pub replicas: Vec<(Health, Option<Duration>)>,
    /// Requests outstanding, the endpoint's own included.
    pub outstanding: usize,
}

/// A blocking client. Clones are the same client; the drop of the last one, and of the last [`Pending`], closes it.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    permits: Arc<Permits>,
    commands: Option<Sender<Command>>,
    waker: Arc<dyn Wake>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Inner {
    /// Never blocks for long: the channel has room for every permit.
    fn send(&self, command: Command) -> Result<(), ClientError> {
        let commands = self.commands.as_ref().ok_or(ClientError::Stopped)?;
        commands.send(command).map_err(|_| ClientError::Stopped)?;
        self.waker.wake();
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.commands = None;
        self.waker.wake();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // A future woken on the driver's own thread may hold the last handle.
        if let Some(thread) = thread.filter(|t| t.thread().id() != thread::current().id()) {
            // A panic of the driver was reported to every waiter as `Stopped`.
            drop(thread.join());
        }
    }
}

impl Client {
    /// Commands beside requests: reports.
    const REPORTS_MAX: usize = 16;

    /// Starts a client of `cluster` under `identity`. `transport` runs on the client's thread.
    ///
    /// # Errors
    /// [`ClientError`]: keys, configuration or transport. Unreachable replicas are none.
    pub fn connect<T: Transport>(
        identity: &Identity,
        cluster: Arc<ClusterKeys>,
        mut config: ClientConfig,
        transport: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<Client, ClientError> {
        let window = usize::try_from(config.window).unwrap_or(usize::MAX);
        let permits = config.sessions.saturating_mul(window);
        if !(1..=1 << 20).contains(&permits) || config.window > limits::SESSION_WINDOW_MAX {
            let max = limits::SESSION_WINDOW_MAX;
            return Err(ClientError::Config(format!(
                "{} sessions with windows of {}: at least one of each, windows of at most {max}, at most 2^20 requests",
                config.sessions, config.window
            )));
        }
        let keyring = Keyring::client(identity, EndpointId(random_u64()?), cluster, config.mode)?;
        // Low bits at random: two endpoints of one identity that start together must not meet at one counter (P9).
        let time = super::Clock::new().now().0;
        config.endpoint.first_counter = time | random_u64()? & 0xfff;
        config.endpoint.queries_max = permits;
        config.endpoint.sessions_max = config.sessions + 1;
        config.endpoint.validate().map_err(ClientError::Config)?;
        let seed = random_u64()?;

        let (commands, from_handles) = channel::bounded(permits + Self::REPORTS_MAX);
        let (ready, started) = channel::bounded(1);
        let permits = Permits::new(permits);
        let thread = thread::Builder::new()
            .name("castra-client".to_owned())
            .spawn(move || match transport() {
                Ok(transport) => {
                    if ready.send(Ok(transport.waker())).is_ok() {
                        Driver::new(config, keyring, seed, transport, from_handles).run();
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            })
            .map_err(Error::io("starting the client's thread"))?;
        let waker = started.recv().map_err(|_| ClientError::Stopped)??;
        let thread = Mutex::new(Some(thread));
        Ok(Client(Arc::new(Inner { permits, commands: Some(commands), waker, thread })))
    }

    /// Has `op` ordered and executed exactly once. Blocks until its result is proved, or the timeout.
    ///
    /// # Errors
    /// [`ClientError`]; see [`RequestError::maybe_executed`] for what may have happened.
    pub fn execute(&self, op: impl Into<Bytes>) -> Result<Bytes, ClientError> {
        self.submit(op)?.wait()
    }

    /// Has `op` answered without ordering where a quorum of replicas agrees, else ordered (P6).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn query(&self, op: impl Into<Bytes>) -> Result<Bytes, ClientError> {
        self.submit_query(op)?.wait()
    }

    /// As [`execute`](Self::execute), without waiting for the result. Blocks while all permits are taken.
    ///
    /// # Errors
    /// [`ClientError`]: nothing was sent.
    pub fn submit(&self, op: impl Into<Bytes>) -> Result<Pending, ClientError> {
        self.hand_over(false, op.into())
    }

    /// As [`query`](Self::query), without waiting for the result. Blocks while all permits are taken.
    ///
    /// # Errors
    /// [`ClientError`]: nothing was sent.
    pub fn submit_query(&self, op: impl Into<Bytes>) -> Result<Pending, ClientError> {
        self.hand_over(true, op.into())
    }

    fn hand_over(&self, query: bool, op: Bytes) -> Result<Pending, ClientError> {
        check(&op)?;
        let permit = self.0.permits.acquire();
        Pending::start(&self.0, Filler::new(permit), query, op)
    }

    /// What it counted, and whom it heard.
    ///
    /// # Errors
    /// [`ClientError::Stopped`].
    pub fn report(&self) -> Result<ClientReport, ClientError> {
        let (to, report) = channel::bounded(1);
        self.0.send(Command::Report(to))?;
        report.recv().map_err(|_| ClientError::Stopped)
    }

    /// The same client for async code.
    pub fn to_async(&self) -> AsyncClient {
        AsyncClient(self.clone())
    }
}

fn check(op: &Bytes) -> Result<(), ClientError> {
    if op.len() > limits::OPERATION_MAX { Err(ClientError::TooLarge(op.len())) } else { Ok(()) }
}

fn random_u64() -> Result<u64, ClientError> {
    Ok(u64::from_le_bytes(random_bytes()?))
}

/// A request that was handed over. It keeps its client alive; dropped, it still runs its course. Wait for it, or await
/// it.
pub struct Pending {
    answer: Answer,
    _client: Arc<Inner>,
}

impl Pending {
    fn start(client: &Arc<Inner>, filler: Filler, query: bool, op: Bytes) -> Result<Pending, ClientError> {
        let answer = filler.answer();
        client.send(Command::Request { query, op, filler })?;
        Ok(Pending { answer, _client: client.clone() })
    }

    /// The result.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn wait(self) -> Result<Bytes, ClientError> {
        Ok(self.wait_completion()?.result?)
    }

    /// The result with all that is known about it.
    ///
    /// # Errors
    /// [`ClientError::Stopped`].
    pub fn wait_completion(self) -> Result<Completion, ClientError> {
        self.answer.wait()
    }
}

impl Future for Pending {
    type Output = Result<Completion, ClientError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.answer.poll(cx)
    }
}

/// A client for async code, under any executor: its futures use nothing but their [`Waker`](std::task::Waker).
#[derive(Clone)]
pub struct AsyncClient(Client);

impl AsyncClient {
    /// As [`Client::execute`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn execute(&self, op: impl Into<Bytes>) -> Result<Bytes, ClientError> {
        Ok(self.submit(op).await?.await?.result?)
    }

    /// As [`Client::query`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn query(&self, op: impl Into<Bytes>) -> Result<Bytes, ClientError> {
        Ok(self.submit_query(op).await?.await?.result?)
    }

    /// Resolves once the request was handed over, which waits while all permits are taken; the [`Pending`] resolves to
    /// its completion.
    pub fn submit(&self, op: impl Into<Bytes>) -> Submission {
        self.hand_over(false, op.into())
    }

    /// As [`submit`](Self::submit), for a query.
    pub fn submit_query(&self, op: impl Into<Bytes>) -> Submission {
        self.hand_over(true, op.into())
    }

    fn hand_over(&self, query: bool, op: Bytes) -> Submission {
        let waiting = Waiting::new(self.0.0.permits.clone());
        Submission { client: self.0.0.clone(), waiting, query, op: Some(op) }
    }

    /// The same client for threads.
    pub fn to_blocking(&self) -> Client {
        self.0.clone()
    }
}

/// A request on its way to the client's thread. Dropped before it resolves, nothing is sent.
pub struct Submission {
    client: Arc<Inner>,
    waiting: Waiting,
    query: bool,
    op: Option<Bytes>,
}

impl Future for Submission {
    type Output = Result<Pending, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(Err(error)) = self.op.as_ref().map(check) {
            return Poll::Ready(Err(error));
        }
        let Poll::Ready(permit) = self.waiting.poll(cx) else { return Poll::Pending };
        let op = self.op.take().expect("not polled after it was ready");
        Poll::Ready(Pending::start(&self.client, Filler::new(permit), self.query, op))
    }
}
