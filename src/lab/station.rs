//! A client endpoint on its own socket, driven by hand: one thread may drive several.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::{AuthMode, ClusterKeys, Identity, KeyError, Keyring};
use crate::client::{Endpoint, EndpointConfig};
use crate::runtime::bind::{Bound, UdpConfig};
use crate::runtime::{self, Backend, Clock, Udp};
use crate::transport::{Datagram, Machine as _, Outgoing, Transport as _};
use crate::types::{EndpointId, Time};

/// The cluster that is worked on, as its clients know it.
#[derive(Clone, Debug)]
pub struct Target {
    /// The replicas' addresses, by id.
    pub addresses: Vec<std::net::SocketAddr>,
    /// Who belongs to it.
    pub keys: Arc<ClusterKeys>,
    /// How packs are proved.
    pub mode: AuthMode,
    /// The largest datagram, bytes of payload.
    pub datagram_max: usize,
    /// The cluster's `inline_max`.
    pub inline_max: usize,
    /// Whether its read-only optimisation is on.
    pub read_only: bool,
    /// A request without an answer for this long is an error.
    pub request_timeout: Duration,
    /// The packet path of the clients.
    pub backend: Backend,
    /// The clock of all: times of different stations can be compared.
    pub clock: Clock,
}

/// Why there is no station.
#[derive(Debug, thiserror::Error)]
pub enum StationError {
    /// The system refused a socket or a ring.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// The cluster's keys are of no use.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// An endpoint and its transport. It stays on the thread that opened it.
pub struct Station {
    endpoint: Endpoint,
    transport: Udp,
    inbox: Vec<Datagram>,
    outbox: Vec<Outgoing>,
}

impl Station {
    /// Slots of a client's receive ring: replies come packed, a few datagrams for many requests.
    const SLOTS: (u16, u16) = (128, 16);

    const QUERIES_MAX: usize = 1 << 16;

    /// A client of `target` that proves itself by `identity`. `seed` must differ between the endpoints of an identity:
    /// it names the endpoint.
    ///
    /// # Errors
    /// [`StationError`].
    pub fn open(target: &Target, identity: &Identity, seed: u64) -> Result<Station, StationError> {
        let udp = UdpConfig {
            datagram_max: target.datagram_max,
            clock: target.clock,
            slots: Station::SLOTS,
            ..UdpConfig::client(target.addresses.clone())
        };
        let (transport, _) = Udp::open(Bound::bind(udp)?, target.backend)?;
        let keyring = Keyring::client(identity, EndpointId(seed), target.keys.clone(), target.mode)?;
        let config = EndpointConfig {
            datagram_max: target.datagram_max,
            inline_max: target.inline_max,
            read_only: target.read_only,
            request_timeout: target.request_timeout,
            first_counter: target.clock.now().0,
            queries_max: Station::QUERIES_MAX,
            ..EndpointConfig::default()
        };
        let endpoint = Endpoint::new(config, keyring, seed);
        Ok(Station { endpoint, transport, inbox: Vec::new(), outbox: Vec::new() })
    }

    /// The endpoint, to hand in requests and fetch completions.
    pub fn endpoint(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }

    /// The name of its packet path.
    pub fn transport_name(&self) -> &'static str {
        self.transport.name()
    }

    /// Takes what arrived and sends what is due. Whether anything moved.
    pub fn turn(&mut self) -> bool {
        self.transport.receive(&mut self.inbox);
        let arrived = !self.inbox.is_empty();
        // The time after the receive: a latency includes all of the way.
        self.run() || arrived
    }

    /// Sends what was handed in since the last turn.
    pub fn flush(&mut self) {
        self.run();
    }

    fn run(&mut self) -> bool {
        self.endpoint.turn(self.transport.now(), &mut self.inbox, &mut self.outbox);
        let sends = !self.outbox.is_empty();
        if sends {
            self.transport.send(&mut self.outbox);
        }
        sends
    }

    /// Sleeps until something arrives, the endpoint has something to do, or `patience` is over.
    pub fn wait(&mut self, patience: Duration) {
        let until = self.endpoint.deadline().min(self.transport.now() + patience);
        self.transport.wait(until);
    }

    /// Its clock.
    pub fn now(&self) -> Time {
        self.transport.now()
    }
}

/// How a loop over stations waits when nothing moves: it yields its core, and after a while it sleeps, so that it never
/// takes from the replicas what they need.
#[derive(Debug, Default)]
pub struct Idle {
    since: Option<Time>,
}

impl Idle {
    /// Polling goes on this long after the last event.
    const POLL: Duration = Duration::from_micros(500);
    /// Then it sleeps this long at a time; one station alone sleeps until something comes.
    const NAP: Duration = Duration::from_micros(100);
    const ALONE: Duration = Duration::from_millis(20);

    /// Something moved.
    pub fn reset(&mut self) {
        self.since = None;
    }

    /// Nothing moved at any of `stations`.
    pub fn pause(&mut self, stations: &mut [Station]) {
        let Some(first) = stations.first_mut() else { return };
        let now = first.now();
        if now.since(*self.since.get_or_insert(now)) < Idle::POLL {
            std::thread::yield_now();
        } else if let [only] = stations {
            only.wait(Idle::ALONE);
        } else {
            std::thread::sleep(Idle::NAP);
        }
    }
}
