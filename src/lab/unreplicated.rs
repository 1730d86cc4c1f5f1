//! A service on one server that nobody replicates: what castra is compared with.
//!
//! Its clients are those of a cluster, with the same sessions, packs, MACs and transport; and its network and execution
//! roles are those of a replica: it opens packs, executes each request once, keeps the result for duplicates, and answers
//! under a MAC. What is missing is the replication: no order to agree on, nothing tentative, no checkpoint; one server
//! executes what comes as it comes, and its word is taken.

use std::net::SocketAddr;
use std::sync::Arc;

use super::DATAGRAM;
use crate::auth::{AuthMode, Clients, ClusterKeys, Identity, Keyring, PublicIdentity, Rights};
use crate::execution::{Command, Executor, ExecutorConfig, Output, Service};
use crate::limits::LOG_WINDOW_MAX;
use crate::replica::network::Pace;
use crate::replica::{Inbound, Network, NetworkConfig, stopped_text};
use crate::runtime::bind::{Bound, UdpConfig};
use crate::runtime::{Backend, Error, LoopCounters, Stop, Udp, WaitPolicy, drive};
use crate::transport::{Datagram, Machine, Outgoing};
use crate::types::{ClusterSize, Digest, Domain, ReplicaId, SeqNum, Time, View};
use crate::wire::{Batch, Choice, Pack};

const SERVER: ReplicaId = ReplicaId(0);
/// It has no other.
const VIEW: View = View(0);

/// What clients need to know of the server; `client` alone may ask it.
pub fn keys(server: &PublicIdentity, client: &PublicIdentity) -> Arc<ClusterKeys> {
    Arc::new(ClusterKeys {
        cluster: Digest::of(Domain::Cluster, &[b"unreplicated"]),
        instance: 1,
        replicas: vec![*server],
        clients: Clients::listed([(*client, Rights::READ_WRITE)]),
    })
}

/// The server.
pub struct Server<S: Service> {
    network: Network,
    executor: Executor<S>,
    inbound: Vec<Inbound>,
    outputs: Vec<Output>,
}

impl<S: Service> Server<S> {
    /// A server of `service`, whose state may grow to so many pages, for the client of that identity.
    ///
    /// # Errors
    /// One sentence if pages or keys do not fit.
    pub fn new(service: S, pages: u32, server: &Identity, client: &PublicIdentity) -> Result<Server<S>, String> {
        let config = ExecutorConfig {
            service_pages: pages,
            // Nobody wants any: what is sealed is let go.
            checkpoint_interval: LOG_WINDOW_MAX / 2,
            ..ExecutorConfig::default()
        };
        let keys = keys(&server.public(), client);
        let keyring = Keyring::replica(SERVER, server, keys, AuthMode::Mac).map_err(|error| error.to_string())?;
        // Four replicas share the sending of large results, each at its pace: the one here may send as fast as they together.
        let pace = Pace { bytes: 4 * Pace::default().bytes, ..Pace::default() };
        let network = NetworkConfig { datagram_max: DATAGRAM, pace, ..NetworkConfig::default() };
        let network = Network::new(network, keyring, ClusterSize::UNREPLICATED)?;
        Ok(Server { network, executor: Executor::new(service, config)?, inbound: Vec::new(), outputs: Vec::new() })
    }

    /// Runs it at `address` until stopped. `bound` is called once it can be asked.
    ///
    /// # Errors
    /// What the system refused.
    pub fn run(
        mut self,
        address: SocketAddr,
        backend: Backend,
        stop: &Stop,
        bound: impl FnOnce(),
    ) -> Result<(), Error> {
        let udp = UdpConfig { datagram_max: DATAGRAM, ..UdpConfig::replica(SERVER, vec![address]) };
        let (mut transport, _) = Udp::open(Bound::bind(udp)?, backend)?;
        bound();
        drive(&mut self, &mut transport, stop, &WaitPolicy::default(), &LoopCounters::default());
        Ok(())
    }

    fn on_request(&mut self, now: Time, pack: Pack) {
        let n = SeqNum(self.executor.executed().0 + 1);
        let choice = Choice { time: now.0.max(self.executor.time().0 + 1), seed: n.0 };
        let batch = Arc::new(Batch::new(choice, vec![pack]));
        self.handle(now, Command::Execute { n, view: VIEW, batch, tentative: false });
    }

    fn handle(&mut self, now: Time, command: Command) {
        let mut outputs = std::mem::take(&mut self.outputs);
        self.executor.handle(now, command, &mut outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Reply(reply) => self.network.reply(reply),
                Output::Unexecuted(pack) => self.on_request(now, pack.into_inner()),
                Output::Sealed(_) => {
                    let state = self.executor.state_mut();
                    while let Some(shipment) = state.ship(usize::MAX) {
                        state.give_back(shipment.pages.into_iter().map(|(region, _, page)| (region, page)));
                    }
                }
                // The end, of which `stopped` tells.
                Output::Stopped { .. } => {}
                // Of no use without other replicas.
                Output::Executed(_)
                | Output::Settled(_)
                | Output::Halted { .. }
                | Output::Compare { .. }
                | Output::Installed(_)
                | Output::Unfit(_) => {}
            }
        }
        self.outputs = outputs;
    }
}

impl<S: Service> Machine for Server<S> {
    fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
        let mut inbound = std::mem::take(&mut self.inbound);
        for datagram in inbox.drain(..) {
            self.network.receive(now, datagram, &mut inbound);
        }
        for item in inbound.drain(..) {
            match item {
                // Sent again: it may be executed already.
                Inbound::Request { pack, signed: true } => self.handle(now, Command::Admit { pack, view: VIEW }),
                Inbound::Request { pack, signed: false } => self.on_request(now, pack.into_inner()),
                Inbound::Query(pack) => {
                    self.handle(
                        now,
                        Command::Query { pack: pack.into_inner(), after: SeqNum(0), tentative: false, view: VIEW },
                    );
                }
                // There is no other replica.
                Inbound::Message(_)
                | Inbound::PrePrepare(..)
                | Inbound::Transfer(_)
                | Inbound::Claim(..)
                | Inbound::Relayed(_)
                | Inbound::Body(_)
                | Inbound::Boot(..) => {}
            }
        }
        self.inbound = inbound;
        self.network.flush(now, outbox);
    }

    fn deadline(&self) -> Time {
        self.network.deadline()
    }

    fn stopped(&self) -> Option<String> {
        self.executor.stopped().map(|(position, message)| stopped_text(position, message))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;
    use crate::client::{Endpoint, EndpointConfig};
    use crate::execution::{Context, ReplyBuffer};
    use crate::runtime::bind::lasting_ports;
    use crate::runtime::client::{Client, ClientConfig};
    use crate::services::Null;
    use crate::state::{Cell, Region};
    use crate::transport::Peer;
    use crate::types::EndpointId;

    fn identity(which: u8) -> Identity {
        Identity::from_seed([which; 32])
    }

    /// Counts.
    struct Counter;

    const COUNT: Cell<u64> = Cell::at(0);

    impl Service for Counter {
        fn execute(&self, _: &mut Context<'_>, _: &[u8], state: &mut Region, reply: &mut ReplyBuffer) {
            let count = COUNT.get(state) + 1;
            COUNT.set(state, count);
            reply.push(&count.to_le_bytes());
        }
    }

    /// An endpoint of client `which`, and what it has to say.
    fn client(which: u8) -> Endpoint {
        let (server, me) = (identity(0).public(), identity(which));
        let keyring = Keyring::client(&me, EndpointId(7), keys(&server, &me.public()), AuthMode::Mac).unwrap();
        Endpoint::new(EndpointConfig { datagram_max: DATAGRAM, ..EndpointConfig::default() }, keyring, 1)
    }

    fn turn(machine: &mut impl Machine, now: u64, from: Peer, inbox: &[Outgoing]) -> Vec<Outgoing> {
        let mut inbox = inbox.iter().map(|sent| Datagram { from, bytes: sent.to_bytes() }).collect();
        let mut outbox = Vec::new();
        machine.turn(Time(now), &mut inbox, &mut outbox);
        outbox
    }

    const CLIENT: Peer = Peer::Address(SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9));

    #[test]
    fn what_comes_again_is_executed_once_and_answered_again() {
        let mut server = Server::new(Counter, 1, &identity(0), &identity(1).public()).unwrap();
        let mut client = client(1);
        let session = client.open_session(4).unwrap();
        let mut ask = |client: &mut Endpoint, now: u64| {
            // The session's opening, and then the request.
            let mut asked = turn(client, now, Peer::Replica(SERVER), &[]);
            let mut answered = Vec::new();
            while !asked.is_empty() {
                // The network brings everything twice.
                answered = turn(&mut server, now, CLIENT, &[asked.clone(), asked].concat());
                asked = turn(client, now, Peer::Replica(SERVER), &answered);
            }
            answered
        };
        for count in 1..=3u64 {
            client.submit(session, "".into()).unwrap();
            let answers = ask(&mut client, 1_000 * count);
            assert!(!answers.is_empty() && answers.iter().all(|sent| sent.to == CLIENT));
            let completion = client.poll_completion().unwrap();
            assert_eq!(completion.result.unwrap()[..], count.to_le_bytes());
        }
        // Nothing is heard of the answer: what is asked again, signed, is answered out of memory.
        client.submit(session, "".into()).unwrap();
        let asked = turn(&mut client, 10_000, Peer::Replica(SERVER), &[]);
        assert_eq!(turn(&mut server, 10_000, CLIENT, &asked).len(), 1);
        let later = client.deadline().0;
        let asked = turn(&mut client, later, Peer::Replica(SERVER), &[]);
        let answers = turn(&mut server, later, CLIENT, &asked);
        turn(&mut client, later, Peer::Replica(SERVER), &answers);
        assert_eq!(client.poll_completion().unwrap().result.unwrap()[..], 4u64.to_le_bytes());
    }

    #[test]
    fn what_is_not_authentic_is_not_answered() {
        let mut server = Server::new(Null, 1, &identity(0), &identity(1).public()).unwrap();
        let asks = |which| {
            let mut client = client(which);
            client.open_session(4).unwrap();
            turn(&mut client, 1_000, Peer::Replica(SERVER), &[])
        };
        assert!(turn(&mut server, 1_000, CLIENT, &asks(2)).is_empty(), "a stranger");
        let honest = asks(1)[0].to_bytes();
        for at in 0..honest.len() {
            let mut bytes = honest.to_vec();
            bytes[at] ^= 1;
            let mut outbox = Vec::new();
            server.turn(Time(1_000), &mut vec![Datagram { from: CLIENT, bytes: bytes.into() }], &mut outbox);
            assert!(outbox.is_empty(), "byte {at} is wrong");
        }
        let mut outbox = Vec::new();
        server.turn(Time(1_000), &mut vec![Datagram { from: CLIENT, bytes: honest }], &mut outbox);
        assert_eq!(outbox.len(), 1);
    }

    #[test]
    fn large_operations_and_results_pass_in_fragments() {
        let base = lasting_ports(Ipv4Addr::LOCALHOST.into(), 1).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, base));
        let (stop, me) = (Stop::new(), identity(1));
        let server = Server::new(Null, 1, &identity(0), &me.public()).unwrap();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| server.run(address, Backend::Sockets, &stop, || ()));
            let keys = keys(&identity(0).public(), &me.public());
            let endpoint = EndpointConfig { request_timeout: Duration::from_secs(60), ..EndpointConfig::default() };
            let config = ClientConfig { endpoint, ..ClientConfig::default() };
            let udp = UdpConfig { datagram_max: DATAGRAM, ..UdpConfig::client(vec![address]) };
            let open = move || Ok(Udp::open(Bound::bind(udp)?, Backend::Sockets)?.0);
            let client = Client::connect(&me, keys, config, open).unwrap();
            for (request, reply) in [(4, 0), (100_000, 10), (10, 100_000), (300_000, 300_000)] {
                let op = Null::op(request, reply);
                assert_eq!(client.execute(op.clone()).unwrap().len(), reply);
                assert_eq!(client.query(op).unwrap().len(), reply);
            }
            drop(client);
            stop.stop();
            running.join().unwrap().unwrap();
        });
    }
}
