//! Binding UDP sockets: exclusively, with large buffers, and with an answer when it fails.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};

use super::error::Holder;
use super::waker::EventWaker;
use super::{Clock, Counters, Error, sys};
use crate::limits::{DATAGRAM_MAX, DATAGRAM_MIN, REPLICAS_MAX};
use crate::transport::{Peer, Wake};
use crate::types::ReplicaId;

/// What a UDP transport must know.
#[derive(Clone, Debug)]
pub struct UdpConfig {
    /// The own address; port 0 lets the kernel choose.
    pub bind: SocketAddr,
    /// Which replica binds; None for a client.
    pub me: Option<ReplicaId>,
    /// The replicas' addresses, by id.
    pub replicas: Vec<SocketAddr>,
    /// The largest datagram sent or received, bytes of payload. The same for all parties of a cluster.
    pub datagram_max: usize,
    /// The receive buffer to ask of the kernel, bytes per socket.
    pub receive_buffer: usize,
    /// Slots of the io_uring receive rings: for datagrams of replicas, and for all others'. Powers of two.
    pub slots: (u16, u16),
    /// The clock.
    pub clock: Clock,
}

impl UdpConfig {
    /// Datagrams up to 8 KiB: the kernel charges a datagram's buffer by the page. Longer messages are fragmented.
    pub const DATAGRAM_DEFAULT: usize = 8_192;
    /// 4 MiB: the kernel's own default holds 12 datagrams of 8 KiB.
    pub const RECEIVE_BUFFER_DEFAULT: usize = 4 << 20;
    /// Few slots stay in the cache: a receive into 128 costs a sixth less than into 512. What the roles hold on to for
    /// long is copied, so that few suffice.
    pub const SLOTS_MIN: u16 = 128;

    /// A replica's.
    pub fn replica(me: ReplicaId, replicas: Vec<SocketAddr>) -> UdpConfig {
        UdpConfig { me: Some(me), ..UdpConfig::new(replicas[usize::from(me.0)], replicas) }
    }

    /// A client's: any port, on the wildcard address of the replicas' family, or on loopback if they are there.
    pub fn client(replicas: Vec<SocketAddr>) -> UdpConfig {
        let ip: IpAddr = match replicas.first().map(SocketAddr::ip) {
            Some(IpAddr::V6(ip)) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
            Some(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
            Some(IpAddr::V4(ip)) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        };
        UdpConfig::new((ip, 0).into(), replicas)
    }

    fn new(bind: SocketAddr, replicas: Vec<SocketAddr>) -> UdpConfig {
        // The kernel takes up to 32 datagrams of a socket at a time, and there is a socket for each replica.
        let slots = (32 * replicas.len().min(REPLICAS_MAX) as u16).next_power_of_two().max(Self::SLOTS_MIN);
        UdpConfig {
            bind,
            me: None,
            replicas,
            datagram_max: Self::DATAGRAM_DEFAULT,
            receive_buffer: Self::RECEIVE_BUFFER_DEFAULT,
            slots: (slots, Self::SLOTS_MIN),
            clock: Clock::new(),
        }
    }

    /// One sentence about the first value out of bounds.
    pub fn validate(&self) -> Result<(), String> {
        if self.replicas.is_empty() || self.replicas.len() > REPLICAS_MAX {
            return Err(format!("{} replicas: 1 to {REPLICAS_MAX} are possible", self.replicas.len()));
        }
        if !(DATAGRAM_MIN..=DATAGRAM_MAX).contains(&self.datagram_max) {
            return Err(format!(
                "datagrams of {} bytes: {DATAGRAM_MIN} to {DATAGRAM_MAX} are possible",
                self.datagram_max
            ));
        }
        for slots in [self.slots.0, self.slots.1] {
            if !slots.is_power_of_two() || !(16..=32_768).contains(&slots) {
                return Err(format!("{slots} slots: a power of two from 16 to 32768 is possible"));
            }
        }
        if let Some(other) = self.replicas.iter().find(|a| a.is_ipv4() != self.bind.is_ipv4()) {
            return Err(format!("{} cannot talk to {other}: one is IPv4, the other IPv6", self.bind));
        }
        Ok(())
    }
}

/// A bound address, ready to become a transport on the thread that will use it.
pub struct Bound {
    pub(crate) config: UdpConfig,
    pub(crate) socket: Socket,
    pub(crate) local: SocketAddr,
    pub(crate) receive_buffer: usize,
    pub(crate) waker: Arc<EventWaker>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) book: AddressBook,
    pub(crate) part: Part,
}

/// What of an address's datagrams its socket takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// All of them.
    All,
    /// What replicas send, and strangers who name no client.
    Replicas,
    /// What some clients send.
    Clients,
}

impl Bound {
    /// Binds `config.bind`, for itself alone.
    pub fn bind(config: UdpConfig) -> Result<Bound, Error> {
        config
            .validate()
            .map_err(|text| Error::Io { doing: "udp", error: io::Error::new(io::ErrorKind::InvalidInput, text) })?;
        let socket = new_socket(config.bind)?;
        socket.bind(&config.bind.into()).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Error::AddressInUse { address: config.bind, holders: holders(config.bind) },
            _ => Error::Io { doing: "bind", error },
        })?;
        let local = local_address(&socket)?;
        let receive_buffer = grow_receive_buffer(&socket, config.receive_buffer);
        let book = AddressBook::new(&config);
        let waker = Arc::new(EventWaker::new()?);
        Ok(Bound { config, socket, local, receive_buffer, waker, counters: Arc::default(), book, part: Part::All })
    }

    /// More sockets on the same address, which take what clients send: each some clients', all of what one client sends.
    /// Ask before this becomes a transport.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn for_clients(&mut self, sockets: usize) -> Result<Vec<Bound>, Error> {
        // Nobody else can join them: everybody's first socket asks for its address alone.
        self.socket.set_reuse_port(true).map_err(Error::io("setsockopt SO_REUSEPORT"))?;
        let mut bound = Vec::with_capacity(sockets);
        for _ in 0..sockets {
            let socket = new_socket(self.local)?;
            socket.set_reuse_port(true).map_err(Error::io("setsockopt SO_REUSEPORT"))?;
            socket.bind(&self.local.into()).map_err(Error::io("bind"))?;
            bound.push(Bound {
                config: self.config.clone(),
                receive_buffer: grow_receive_buffer(&socket, self.config.receive_buffer),
                socket,
                local: self.local,
                waker: Arc::new(EventWaker::new()?),
                counters: Arc::default(),
                book: AddressBook::new(&self.config),
                part: Part::Clients,
            });
        }
        if sockets > 0 {
            sys::steer(self.socket.as_fd(), sockets).map_err(Error::io("setsockopt SO_ATTACH_REUSEPORT_CBPF"))?;
            self.part = Part::Replicas;
        }
        Ok(bound)
    }

    /// Tells it the replicas' addresses, where ports became known only by binding.
    pub fn meet(&mut self, replicas: Vec<SocketAddr>) {
        self.config.replicas = replicas;
        self.book = AddressBook::new(&self.config);
    }

    /// The address that others send to.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// The receive buffer that the kernel granted, bytes. Less than asked for: E009.
    pub fn receive_buffer(&self) -> usize {
        self.receive_buffer
    }

    /// What was asked for.
    pub fn config(&self) -> &UdpConfig {
        &self.config
    }

    /// Wakes the transport that this becomes.
    pub fn waker(&self) -> Arc<dyn Wake> {
        self.waker.clone()
    }

    /// What the transport that this becomes counts.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}

/// Who is where, and how much fits into a datagram to him.
#[derive(Debug)]
pub(crate) struct AddressBook {
    replicas: Vec<(sys::RawAddress, usize)>,
    ids: BTreeMap<SocketAddr, ReplicaId>,
    datagram_max: usize,
}

impl AddressBook {
    fn new(config: &UdpConfig) -> AddressBook {
        let replicas = config
            .replicas
            .iter()
            .map(|&address| (sys::RawAddress::new(address), path_payload(address).min(config.datagram_max)))
            .collect();
        let ids = config.replicas.iter().zip(0..).map(|(&address, i)| (address, ReplicaId(i))).collect();
        AddressBook { replicas, ids, datagram_max: config.datagram_max }
    }

    pub(crate) fn peer(&self, address: SocketAddr) -> Peer {
        self.ids.get(&address).map_or(Peer::Address(address), |&id| Peer::Replica(id))
    }

    pub(crate) fn address(&self, peer: Peer) -> Option<sys::RawAddress> {
        match peer {
            Peer::Replica(id) => self.replicas.get(usize::from(id.0)).map(|&(address, _)| address),
            Peer::Address(address) => Some(sys::RawAddress::new(address)),
        }
    }

    pub(crate) fn mtu(&self, peer: Peer) -> usize {
        match peer {
            Peer::Replica(id) => self.replicas.get(usize::from(id.0)).map_or(DATAGRAM_MIN, |&(_, payload)| payload),
            Peer::Address(address) if address.ip().is_loopback() => self.datagram_max,
            // Nothing is known of the path: Ethernet's.
            Peer::Address(address) => payload(1_500, address).min(self.datagram_max),
        }
    }
}

fn payload(mtu: usize, address: SocketAddr) -> usize {
    mtu.saturating_sub(if address.is_ipv4() { 28 } else { 48 }).clamp(DATAGRAM_MIN, DATAGRAM_MAX)
}

/// What fits into one packet to `address` by the route that the kernel would take now; Ethernet's if there is none.
fn path_payload(address: SocketAddr) -> usize {
    let mtu = || -> Result<usize, Error> {
        let probe = new_socket(address)?;
        probe.connect(&address.into()).map_err(Error::io("connect"))?;
        sys::path_mtu(probe.as_fd(), address.is_ipv6()).map_err(Error::io("getsockopt IP_MTU"))
    };
    payload(mtu().unwrap_or(1_500), address)
}

pub(crate) fn new_socket(like: SocketAddr) -> Result<Socket, Error> {
    let socket = Socket::new(Domain::for_address(like), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))
        .map_err(Error::io("socket"))?;
    if like.is_ipv6() {
        socket.set_only_v6(true).map_err(Error::io("setsockopt IPV6_V6ONLY"))?;
    }
    Ok(socket)
}

pub(crate) fn local_address(socket: &Socket) -> Result<SocketAddr, Error> {
    let address = socket.local_addr().map_err(Error::io("getsockname"))?;
    address.as_socket().ok_or_else(|| Error::io("getsockname")(io::ErrorKind::Unsupported.into()))
}

/// Asks for `want` bytes, past the system's maximum where we may; what the socket has then.
pub(crate) fn grow_receive_buffer(socket: &Socket, want: usize) -> usize {
    let have = || socket.recv_buffer_size().unwrap_or(0);
    // The kernel doubles what is set, for its own bookkeeping; it reports the doubled value.
    if have() < want && rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, want).is_err() {
        let _ = socket.set_recv_buffer_size(want);
    }
    have()
}

/// The processes that hold a UDP socket on `address`'s port, as far as `/proc` shows them to us.
pub fn holders(address: SocketAddr) -> Vec<Holder> {
    let inodes: Vec<String> = udp_table(address.is_ipv4())
        .into_iter()
        .chain(udp_table(!address.is_ipv4()))
        .filter(|(port, _)| *port == address.port())
        .map(|(_, inode)| format!("socket:[{inode}]"))
        .collect();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let holds = |file: fs::DirEntry| {
            fs::read_link(file.path()).is_ok_and(|to| inodes.iter().any(|inode| to.as_os_str() == inode.as_str()))
        };
        if !inodes.is_empty() && files.into_iter().any(holds) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(Holder { pid, name: name.trim().to_owned() });
        }
    }
    found.sort_by_key(|holder| holder.pid);
    found
}

/// Ports and inodes of the UDP sockets of this network namespace.
fn udp_table(v4: bool) -> Vec<(u16, u64)> {
    let text = fs::read_to_string(if v4 { "/proc/net/udp" } else { "/proc/net/udp6" }).unwrap_or_default();
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let port = words.nth(1)?.rsplit(':').next().and_then(|hex| u16::from_str_radix(hex, 16).ok())?;
        Some((port, words.nth(7)?.parse().ok()?))
    };
    text.lines().skip(1).filter_map(parse).collect()
}

/// The first of `count` consecutive ports of `ip`, at or above `from`, that nobody holds now, for datagrams or for TCP.
pub fn free_ports(ip: IpAddr, from: u16, count: u16) -> Option<u16> {
    first_free(ip, from.max(1)..=u16::MAX, count)
}

/// The first of `count` consecutive ports of `ip` that nobody holds now, and that stay free while their owner is away:
/// outside the range that the kernel gives sockets that ask for any port. In that range a replica that is started again
/// can find its port given to a client; and who only asks whether it is back, by TCP, can be given the very port that it
/// asks, and so reach itself and hold it. Random, so that clusters made at the same moment do not meet.
pub fn lasting_ports(ip: IpAddr, count: u16) -> Option<u16> {
    lasting_among(ip, count, ports_given_away())
}

fn lasting_among(ip: IpAddr, count: u16, (given_first, given_last): (u16, u16)) -> Option<u16> {
    let below = LASTING_FIRST..=given_first.saturating_sub(1);
    let above = given_last.checked_add(1).map(|first| first.max(LASTING_FIRST)..=u16::MAX);
    // A machine whose kernel gives all away.
    let all = LASTING_FIRST..=u16::MAX;
    [Some(below), above, Some(all)].into_iter().flatten().find_map(|among| {
        let start = among.start() + random_below(among.end().saturating_sub(*among.start()));
        first_free(ip, start..=*among.end(), count).or_else(|| first_free(ip, among, count))
    })
}

/// Below are the ports of well-known services.
const LASTING_FIRST: u16 = 10_000;

/// The first and the last port that the kernel gives sockets that ask for any.
fn ports_given_away() -> (u16, u16) {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ports = text.split_whitespace().map_while(|word| word.parse().ok());
    ports.next().zip(ports.next()).unwrap_or((32_768, 60_999))
}

fn random_below(bound: u16) -> u16 {
    let mut bytes = [0; 8];
    // Without randomness clusters made at the same moment may meet, and are told so.
    let _ = getrandom::fill(&mut bytes);
    u16::try_from(u64::from_le_bytes(bytes) % u64::from(bound.max(1))).unwrap_or(0)
}

fn first_free(ip: IpAddr, among: RangeInclusive<u16>, count: u16) -> Option<u16> {
    let free = |port: u16| {
        let address = SocketAddr::new(ip, port);
        new_socket(address).is_ok_and(|s| s.bind(&address.into()).is_ok()) && TcpListener::bind(address).is_ok()
    };
    let mut run = 0;
    for port in among {
        run = if free(port) { run + 1 } else { 0 };
        if run == count.max(1) {
            return Some(port - (count.max(1) - 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClientId, EndpointId};
    use crate::wire::Header;
    use crate::wire::header::{CLIENT, Kind, Principal, ProofKind};

    fn client(replicas: &[SocketAddr]) -> UdpConfig {
        UdpConfig::client(replicas.to_vec())
    }

    #[test]
    fn an_address_in_use_is_refused_with_its_holder() {
        let first = Bound::bind(client(&["127.0.0.1:9".parse().unwrap()])).unwrap();
        let mut config = client(&["127.0.0.1:9".parse().unwrap()]);
        config.bind = first.local_address();
        match Bound::bind(config).map(|_| ()) {
            Err(Error::AddressInUse { address, holders }) => {
                assert_eq!(address, first.local_address());
                assert!(holders.iter().any(|h| h.pid == std::process::id()), "{holders:?}");
            }
            other => panic!("{other:?}"),
        }
        let free = free_ports(address_ip(&first), first.local_address().port(), 4).unwrap();
        assert!(free > first.local_address().port());
    }

    fn address_ip(bound: &Bound) -> IpAddr {
        bound.local_address().ip()
    }

    #[test]
    fn lasting_ports_are_free_and_not_among_those_that_the_kernel_gives_away() {
        let ip = IpAddr::from(Ipv4Addr::LOCALHOST);
        for (first, last) in [ports_given_away(), (32_768, 60_999), (1_024, 60_999), (1_024, u16::MAX)] {
            let found: Vec<u16> = (0..20).map(|_| lasting_among(ip, 8, (first, last)).unwrap()).collect();
            for &base in &found {
                let all_given = first <= LASTING_FIRST && last == u16::MAX;
                assert!(
                    base >= LASTING_FIRST && (all_given || base + 7 < first || base > last),
                    "{base}: {first} {last}"
                );
            }
            assert!(found.iter().any(|base| *base != found[0]), "always {}: {first} {last}", found[0]);
        }
        // Held for TCP alone, a port is not free.
        let port = lasting_ports(ip, 1).unwrap();
        let held = TcpListener::bind((ip, port)).unwrap();
        assert_ne!(free_ports(ip, port, 1), Some(port));
        drop(held);
    }

    #[test]
    fn a_larger_receive_buffer_is_asked_for_and_reported() {
        let bound = Bound::bind(client(&["127.0.0.1:9".parse().unwrap()])).unwrap();
        assert!(bound.receive_buffer() >= 212_992, "{}", bound.receive_buffer());
    }

    #[test]
    fn each_client_has_a_socket_and_all_else_the_first() {
        let mut first = Bound::bind(client(&["127.0.0.1:9".parse().unwrap()])).unwrap();
        let clients = first.for_clients(3).unwrap();
        let from = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let received = |bound: &Bound| {
            let mut inbound = sys::Inbound::new(2_000);
            std::iter::from_fn(|| inbound.receive(bound.socket.as_fd()).ok()).sum::<usize>()
        };
        let mut expected = [0; 4];
        for id in 0..300u64 {
            let id = ClientId(id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let (sender, receiver) = (Principal::Client(id, EndpointId(1)), Principal::Replica(ReplicaId(0)));
            let (kind, proof) = (Kind::Pack, ProofKind::Mac);
            let header = Header { kind, proof, receiver, sender, cluster: 1, sender_epoch: 0, receiver_epoch: 0 };
            expected[1 + sys::client_shard(id, 3)] += 1;
            from.send_to(&header.encode(), first.local_address()).unwrap();
        }
        assert!(expected[1..].iter().all(|&count| count > 50), "{expected:?}");
        // A replica that could not be connected to, and strangers.
        let (sender, receiver) = (Principal::Replica(ReplicaId(1)), Principal::Replica(ReplicaId(0)));
        let (kind, proof) = (Kind::Envelope, ProofKind::Mac);
        let header = Header { kind, proof, receiver, sender, cluster: 1, sender_epoch: 0, receiver_epoch: 0 };
        for bytes in [&header.encode()[..], &[], &[CLIENT; 7], &[0; 2_000]] {
            from.send_to(bytes, first.local_address()).unwrap();
            expected[0] += 1;
        }
        let got: Vec<usize> = std::iter::once(&first).chain(&clients).map(received).collect();
        assert_eq!(got, expected);
        // To others the address is taken.
        let mut config = client(&["127.0.0.1:9".parse().unwrap()]);
        config.bind = first.local_address();
        assert!(matches!(Bound::bind(config), Err(Error::AddressInUse { .. })));
    }

    #[test]
    fn configurations_out_of_bounds_are_named() {
        let good = client(&["127.0.0.1:9".parse().unwrap()]);
        assert_eq!(good.validate(), Ok(()));
        let bad = [
            UdpConfig { replicas: vec![], ..good.clone() },
            UdpConfig { datagram_max: 100, ..good.clone() },
            UdpConfig { slots: (512, 500), ..good.clone() },
            UdpConfig { replicas: vec!["[::1]:9".parse().unwrap()], ..good.clone() },
        ];
        for config in bad {
            assert!(config.validate().is_err());
            assert!(matches!(Bound::bind(config), Err(Error::Io { .. })));
        }
    }

    #[test]
    fn the_address_book_knows_replicas_and_paths() {
        let bound = Bound::bind(client(&["127.0.0.1:9".parse().unwrap()])).unwrap();
        let stranger: SocketAddr = "192.0.2.1:9".parse().unwrap();
        assert_eq!(bound.book.peer("127.0.0.1:9".parse().unwrap()), Peer::Replica(ReplicaId(0)));
        assert_eq!(bound.book.peer(stranger), Peer::Address(stranger));
        assert_eq!(bound.book.mtu(Peer::Replica(ReplicaId(0))), UdpConfig::DATAGRAM_DEFAULT);
        assert_eq!(bound.book.mtu(Peer::Address(stranger)), 1_472);
        assert_eq!(bound.book.address(Peer::Replica(ReplicaId(7))), None);
    }
}
