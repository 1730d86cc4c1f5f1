//! Runs one replica on this host, fused or split, and answers for it.
//!
//! ```text
//! fused   one thread: transport, network, agreement, execution, checkpoint
//! split   castra-network     transport, network role
//!         castra-clients     the same for some of the clients, if they have cores of their own
//!         castra-agreement   agreement (on the network thread, if that has one core only)
//!         castra-execution   the service
//!         castra-checkpoint  digests and signatures, in a glommio executor
//! ```
#![forbid(unsafe_code)]

mod board;
mod checkpoint;
mod front;
mod split;
#[cfg(test)]
mod tests;
mod viewer;

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::{io, panic};

use self::board::{Answering, Board};
use self::front::Path;
use self::split::SplitCores;
use self::viewer::viewer;
pub use self::viewer::{Unseen, Viewer};
use super::bind::Bound;
use super::cores::{self, Placement};
use super::drive::drive_with;
use super::{Backend, Clock, Counters, Counts, Error, LoopCounters, LoopCounts, Stop, Udp, WaitPolicy};
use crate::auth::Keyring;
use crate::execution::Service;
use crate::replica::{Replica, ReplicaConfig, StatusReport};
use crate::transport::{Machine, Transport, Wake};

/// How a replica is to run.
#[derive(Clone)]
pub struct Host {
    /// The replica's own configuration.
    pub config: ReplicaConfig,
    /// Which role runs where.
    pub placement: Placement,
    /// How its threads wait.
    pub policy: WaitPolicy,
    /// The clock; the transport's.
    pub clock: Clock,
    /// Stops it, perhaps with others.
    pub stop: Stop,
}

/// What became of the transport.
#[derive(Debug)]
pub struct Opened {
    /// The transport's name, for reports: `io_uring` or `sockets`.
    pub transport: &'static str,
    /// Why it is not io_uring, if that was tried (E002).
    pub fallback: Option<Error>,
    /// The address that others send to.
    pub address: SocketAddr,
    /// What its transports count: one, and one for each core that clients have.
    pub counters: Vec<Arc<Counters>>,
}

impl Opened {
    /// What they have counted together.
    pub fn counts(&self) -> Counts {
        self.counters.iter().fold(Counts::default(), |sum, counters| sum.plus(counters.read()))
    }
}

/// A replica that runs.
pub struct Running {
    board: Arc<Board>,
    stop: Stop,
    loops: Vec<Arc<LoopCounters>>,
    viewer: Viewer,
    threads: Vec<JoinHandle<Result<(), Error>>>,
}

/// Stops one replica when others stop too, but not the other way round.
struct Chain(Stop);

impl Wake for Chain {
    fn wake(&self) {
        self.0.stop();
    }
}

/// Stops the other roles when one ends, however it ends.
struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Host {
    /// Starts a replica over UDP; returns when its transport is open.
    ///
    /// # Errors
    /// What the transport or a thread met at its start; an inconsistent configuration as `InvalidInput`.
    pub fn start<S: Service>(
        self,
        keys: Keyring,
        service: S,
        mut bound: Bound,
        backend: Backend,
    ) -> Result<(Running, Opened), Error> {
        let (tell, told) = mpsc::channel();
        let shards = match &self.placement {
            Placement::Split { clients, .. } if !clients.is_empty() => bound.for_clients(clients.len())?,
            Placement::Split { .. } | Placement::Fused { .. } => Vec::new(),
        };
        let (waker, address) = (bound.waker(), bound.local_address());
        let counters = std::iter::once(&bound).chain(&shards).map(Bound::counters).collect();
        let open = Box::new(move || {
            let (udp, fallback) = Udp::open(bound, backend)?;
            // Whoever waits for this is there until it comes.
            let _ = tell.send((udp.name(), fallback));
            Ok(udp)
        });
        let path = |bound: Bound| -> Path<Udp> {
            Path { waker: bound.waker(), open: Box::new(move || Ok(Udp::open(bound, backend)?.0)) }
        };
        let shards = shards.into_iter().map(path).collect();
        let running = self.start_on(keys, service, Path { waker, open }, shards)?;
        match told.recv() {
            Ok((transport, fallback)) => Ok((running, Opened { transport, fallback, address, counters })),
            Err(mpsc::RecvError) => Err(running.end().err().unwrap_or_else(closed)),
        }
    }

    /// Starts a replica over any transport, which `open` makes on its thread and `waker` wakes.
    ///
    /// # Errors
    /// A thread that could not be started; an inconsistent configuration, such as cores for clients, whom the transport
    /// cannot tell apart, as `InvalidInput`. What `open` meets is [`Running::join`]'s.
    pub fn start_over<S: Service, T: Transport + 'static>(
        self,
        keys: Keyring,
        service: S,
        waker: Arc<dyn Wake>,
        open: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<Running, Error> {
        self.start_on(keys, service, Path { waker, open: Box::new(open) }, Vec::new())
    }

    fn start_on<S: Service, T: Transport + 'static>(
        self,
        keys: Keyring,
        service: S,
        path: Path<T>,
        shards: Vec<Path<T>>,
    ) -> Result<Running, Error> {
        let stop = Stop::new();
        self.stop.wakes(Arc::new(Chain(stop.clone())));
        match self.placement.clone() {
            Placement::Fused { core } => self.fused(keys, service, core, stop, path),
            Placement::Split { network, clients, execution, checkpoint } if clients.len() == shards.len() => {
                let clients = clients.into_iter().zip(shards).collect();
                split::start(self, keys, service, SplitCores { network, execution, checkpoint }, stop, path, clients)
            }
            Placement::Split { .. } => {
                Err(inconsistent("only UDP has a socket for each core that clients have".into()))
            }
        }
    }

    fn fused<S: Service, T: Transport + 'static>(
        self,
        keys: Keyring,
        service: S,
        core: Option<usize>,
        stop: Stop,
        Path { waker, open }: Path<T>,
    ) -> Result<Running, Error> {
        let mut replica = Replica::new(self.config, keys, service, self.clock.now()).map_err(inconsistent)?;
        let board = Arc::new(Board::new(1, 0, vec![waker.clone()]));
        let loops = Arc::new(LoopCounters::default());
        let (viewer, views) = viewer::<S>(waker.clone());
        stop.wakes(waker);
        let body = {
            let (board, stop, loops) = (board.clone(), stop.clone(), loops.clone());
            move || {
                let _end = StopOnDrop(stop.clone());
                core.map_or(Ok(()), cores::pin)?;
                let mut transport = open()?;
                let answering = Answering::new(board, 0);
                drive_with(&mut replica, &mut transport, &self.policy, &loops, |replica, _| {
                    answering.if_asked(|parts| parts.report = Some(replica.status()));
                    views.show(|n| replica.snapshot(n));
                    if stop.is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
                answering.for_good(|parts| {
                    parts.stopped = replica.stopped();
                    parts.report = Some(replica.status());
                });
                Ok(())
            }
        };
        let threads = vec![spawn("castra-replica", body)?];
        Ok(Running { board, stop, loops: vec![loops], viewer, threads })
    }
}

fn inconsistent(text: String) -> Error {
    Error::Io { doing: "configuration", error: io::Error::new(io::ErrorKind::InvalidInput, text) }
}

fn closed() -> Error {
    Error::Io { doing: "opening the transport", error: io::ErrorKind::BrokenPipe.into() }
}

fn spawn(
    name: &str,
    body: impl FnOnce() -> Result<(), Error> + Send + 'static,
) -> Result<JoinHandle<Result<(), Error>>, Error> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map_err(Error::io("starting a thread"))
}

impl Running {
    /// What the replica says of itself now; what it said last, if it has ended. `None` if it does not answer within a
    /// second.
    pub fn status(&self) -> Option<StatusReport> {
        self.board.ask()
    }

    /// Looks at its state, from any thread.
    pub fn viewer(&self) -> Viewer {
        self.viewer.clone()
    }

    /// What the loops over the transports count.
    pub fn loops(&self) -> LoopCounts {
        self.loops.iter().fold(LoopCounts::default(), |sum, loops| sum.plus(loops.read()))
    }

    /// Whether it has ended: it was stopped, or its service panicked, or it failed to start.
    pub fn is_finished(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops it.
    pub fn stop(&self) {
        self.stop.stop();
    }

    /// Waits for its end. Some sentence if it ended because it could not go on: the service panicked.
    ///
    /// # Errors
    /// What a thread met at its start.
    ///
    /// # Panics
    /// As one of its threads did.
    pub fn join(mut self) -> Result<Option<String>, Error> {
        self.wait()?;
        Ok(self.board.stopped())
    }

    fn end(mut self) -> Result<(), Error> {
        self.stop.stop();
        self.wait()
    }

    fn wait(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(ended) => result = result.and(ended),
                Err(panicked) => panic::resume_unwind(panicked),
            }
        }
        result
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
