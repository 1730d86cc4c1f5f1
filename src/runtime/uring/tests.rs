use std::net::UdpSocket;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use bytes::Bytes;

use super::super::bind::UdpConfig;
use super::super::sockets::Sockets;
use super::super::tests::{
    PATIENCE, bound_alone, bound_pair, datagrams_end_waits, echo, outgoing, take, thread_cpu, wakes_and_deadlines,
};
use super::super::{LoopCounters, Stop, WaitPolicy, drive};
use super::*;
use crate::transport::{Head, Machine};

fn open(bound: Bound) -> Uring {
    Uring::open(bound).map_err(|(_, error)| error).expect("these tests need io_uring")
}

fn r(i: u8) -> Peer {
    Peer::Replica(ReplicaId(i))
}

/// `n` replicas on ports that the kernel chose, who know each other.
fn replicas(n: u8) -> Vec<Bound> {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let bind = |i| Bound::bind(UdpConfig::replica(ReplicaId(i), vec![any; usize::from(n)])).unwrap();
    let mut bound: Vec<Bound> = (0..n).map(bind).collect();
    let addresses: Vec<SocketAddr> = bound.iter().map(Bound::local_address).collect();
    bound.iter_mut().for_each(|b| b.meet(addresses.clone()));
    bound
}

fn two() -> (Uring, Uring) {
    let mut bound = replicas(2);
    let b = bound.pop().unwrap();
    (open(bound.pop().unwrap()), open(b))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::yield_now();
    }
}

#[test]
fn uring_echoes_small_large_and_many() {
    for (total, window, size) in [(200, 1, 0), (5_000, 64, 100), (2_000, 200, 600), (1_000, 16, 8_000)] {
        let (server, client) = bound_pair();
        let mut client = open(client);
        echo(move || open(server), &mut client, total, window, size);
        assert!(client.counters().read().received >= total);
    }
}

#[test]
fn uring_and_sockets_understand_each_other() {
    let (server, client) = bound_pair();
    echo(move || Sockets::open(server), &mut open(client), 500, 8, 1_000);
    let (server, client) = bound_pair();
    echo(move || open(server), &mut Sockets::open(client), 500, 8, 1_000);
}

#[test]
fn uring_wakes_and_times_out() {
    wakes_and_deadlines(&mut open(bound_alone().0));
}

#[test]
fn datagrams_end_the_waits_of_uring() {
    let (server, client) = bound_pair();
    datagrams_end_waits(&mut open(server), &mut open(client));
}

#[test]
fn replicas_arrive_at_their_connected_sockets_and_strangers_at_the_other() {
    let (mut a, mut b) = two();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    for i in 0..50u8 {
        b.send(&mut vec![outgoing(r(0), b"peer", &[i]), outgoing(r(0), b"large", &vec![i; 3_000])]);
        stranger.send_to(&[i], a.local_address()).unwrap();
    }
    let got = take(&mut a, 150);
    let from_peer = got.iter().filter(|d| d.from == r(1)).count();
    let from_stranger = got.iter().filter(|d| d.from == Peer::Address(stranger.local_addr().unwrap())).count();
    assert_eq!((from_peer, from_stranger), (100, 50));
    // What the stranger sent was never in a slot of the replicas: only what is large and of the peer is held.
    assert_eq!(a.slots_out(), (50, 0));
    drop(got);
    assert_eq!(a.slots_out(), (0, 0));
    a.send(&mut vec![outgoing(Peer::Address(stranger.local_addr().unwrap()), b"re", b"ply")]);
    let mut buffer = [0; 10];
    let (len, from) = stranger.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from), (b"reply".as_slice(), a.local_address()));
}

#[test]
fn what_replicas_say_comes_before_all_that_strangers_sent() {
    let (mut a, mut b) = two();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sent = 3 * OTHERS_BYTES_MAX / 8_000;
    for _ in 0..sent {
        stranger.send_to(&[7; 8_000], a.local_address()).unwrap();
    }
    b.send(&mut vec![outgoing(r(0), b"peer", &[1])]);
    // Nothing is read before all has come: on loopback that is when it was sent.
    let (mut got, mut turns) = (Vec::new(), 0);
    wait_until("all have come", || {
        let before = got.len();
        a.receive(&mut got);
        let strangers = got[before..].iter().filter(|d| d.from != r(1)).map(|d| d.bytes.len()).sum::<usize>();
        assert!(strangers < OTHERS_BYTES_MAX + 8_100, "{strangers} bytes of a stranger in one turn");
        turns += 1;
        if turns == 1 {
            assert_eq!(got[0].from, r(1), "the peer's, though it came last");
        }
        got.len() == sent + 1
    });
}

#[test]
fn nobody_can_join_the_address_afterwards() {
    let (a, _b) = two();
    let config = UdpConfig { bind: a.local_address(), ..UdpConfig::client(vec![a.local_address()]) };
    assert!(matches!(Bound::bind(config), Err(Error::AddressInUse { .. })));
    let thief = new_socket(a.local_address()).unwrap();
    thief.set_reuse_port(true).unwrap();
    thief.set_reuse_address(true).unwrap();
    assert!(thief.bind(&a.local_address().into()).is_err());
}

#[test]
fn a_burst_beyond_the_slots_loses_nothing() {
    let mut bound = replicas(2);
    let mut b = open(bound.pop().unwrap());
    let mut a = bound.pop().unwrap();
    a.config.slots = (16, 16);
    let mut a = open(a);
    let total = 3_000;
    b.send(&mut (0..total).map(|i: u32| outgoing(r(0), &i.to_le_bytes(), &[7; 100])).collect());
    let got = take(&mut a, total as usize);
    for (datagram, i) in got.iter().zip(0u32..) {
        assert_eq!(datagram.bytes[..4], i.to_le_bytes(), "one socket delivers in order");
    }
    assert!(
        a.counters().read().slots_out > 0,
        "16 slots cannot hold what one enter receives: {:?}",
        a.counters().read()
    );
}

#[test]
fn slots_for_large_datagrams_are_bounded_by_their_bytes() {
    for (slots, payload, expected) in [
        (128, 1_453, 128),
        (256, 8_193, 128),
        (128, 65_508, 32),
        // Thirty-one replicas.
        (1_024, 65_508, 128),
        (16, 65_508, 16),
    ] {
        assert_eq!(uncoalesced_slots(slots, payload), expected, "{slots} slots of {payload} bytes");
    }
}

#[test]
fn slots_that_were_too_few_are_more_from_then_on() {
    let mut bound = replicas(2);
    let mut b = open(bound.pop().unwrap());
    let mut a = bound.pop().unwrap();
    a.config.slots = (256, 16);
    let mut a = open(a);
    let mut ran_out = Vec::new();
    for _ in 0..6 {
        let before = a.counters().read().slots_out;
        b.send(&mut (0..200).map(|i: u32| outgoing(r(0), &i.to_le_bytes(), &[7; 100])).collect());
        take(&mut a, 200);
        ran_out.push(a.counters().read().slots_out - before);
    }
    assert!(ran_out[0] > 0, "few are lent at first: {ran_out:?}");
    assert_eq!(ran_out[5], 0, "as many are lent as a burst takes: {ran_out:?}");
}

#[test]
fn datagrams_of_one_size_leave_together_and_arrive_as_they_were() {
    let mut bound = replicas(3);
    let mut c = open(bound.pop().unwrap());
    let (mut b, mut a) = (open(bound.pop().unwrap()), open(bound.pop().unwrap()));
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to_stranger = Peer::Address(stranger.local_addr().unwrap());
    // Rising and falling, interleaved for two replicas, more than a send may hold, the last ones shorter.
    let sizes = [100, 1_200, 1_200, 1_200, 900, 1_200, 1_200, 40, 40, 0, 8_000, 8_000, 8_000];
    let sizes: Vec<usize> = sizes.into_iter().chain([1_000; 150]).chain([7; 3]).collect();
    let body = |i: usize, to: u8| vec![(i as u8).wrapping_mul(31) ^ to; sizes[i]];
    let mut batch = Vec::new();
    for i in 0..sizes.len() {
        batch.push(outgoing(r(1), &[i as u8], &body(i, 1)));
        batch.push(outgoing(r(2), &[i as u8], &body(i, 2)));
        if i % 40 < 3 {
            batch.push(outgoing(to_stranger, &[i as u8], &body(i, 3)));
        }
    }
    let total = batch.len() as u64;
    a.send(&mut batch);
    for (transport, to) in [(&mut b, 1), (&mut c, 2)] {
        for (i, datagram) in take(transport, sizes.len()).into_iter().enumerate() {
            assert_eq!((datagram.from, datagram.bytes[0]), (r(0), i as u8), "in order");
            assert!(datagram.bytes[1..] == body(i, to)[..], "datagram {i} of {} bytes for {to}", sizes[i]);
        }
    }
    let mut buffer = [0; 9_000];
    for i in (0..sizes.len()).filter(|i| i % 40 < 3) {
        let (len, _) = stranger.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..len], [&[i as u8], &body(i, 3)[..]].concat());
    }
    let counts = a.counters().read();
    assert_eq!((counts.sent, counts.send_failed), (total, 0));
    assert!(counts.segmented > 300, "{counts:?}");

    // Where the kernel refuses to cut, each leaves by itself.
    a.sender.without_segments();
    a.send(&mut (0..20).map(|i| outgoing(r(1), &[i], &[1; 1_000])).collect());
    assert_eq!(take(&mut b, 20).len(), 20);
    assert_eq!(a.counters().read().segmented, counts.segmented);
}

/// Two replicas and a client, with small datagrams; the client's may be larger.
fn small(client_max: usize) -> (Uring, Uring, Uring) {
    let mut bound = replicas(2);
    let addresses: Vec<SocketAddr> = bound.iter().map(Bound::local_address).collect();
    bound.push(Bound::bind(UdpConfig::client(addresses.clone())).unwrap());
    for (b, datagram_max) in bound.iter_mut().zip([1_452, 1_452, client_max]) {
        b.config.datagram_max = datagram_max;
        b.meet(addresses.clone());
    }
    let (client, b) = (open(bound.pop().unwrap()), bound.pop().unwrap());
    (open(bound.pop().unwrap()), open(b), client)
}

#[test]
fn small_datagrams_are_received_together_and_taken_apart() {
    let (mut a, mut b, mut client) = small(1_452);
    let sizes: Vec<usize> = [1_400; 40].into_iter().chain([600, 1_000, 1_000, 20, 20, 20, 0, 1_452]).collect();
    let body = |i: usize, from: u8| vec![(i as u8).wrapping_mul(31) ^ from; sizes[i].saturating_sub(1)];
    for (sender, from) in [(&mut b, 1), (&mut client, 2)] {
        sender.send(&mut (0..sizes.len()).map(|i| outgoing(r(0), &[i as u8], &body(i, from))).collect());
        let peer = if from == 1 { r(1) } else { Peer::Address(sender.local_address()) };
        let before = a.counters().read();
        let got = take(&mut a, sizes.len());
        for (i, datagram) in got.iter().enumerate() {
            assert_eq!((datagram.from, datagram.bytes[0]), (peer, i as u8), "in order");
            assert!(datagram.bytes[1..] == body(i, from)[..], "datagram {i} of {} bytes", sizes[i]);
        }
        let counts = a.counters().read();
        assert!(counts.coalesced - before.coalesced > 40, "{counts:?}");
        assert_eq!(counts.received - before.received, sizes.len() as u64);
        // Forty datagrams of 1,400 bytes are in one slot, and give it back together.
        let (of_replicas, of_others) = a.slots_out();
        assert!((1..=6).contains(&(of_replicas + of_others)), "{of_replicas} {of_others}");
        let last: Vec<Datagram> = got.into_iter().skip(39).take(1).collect();
        assert_eq!(a.slots_out(), if from == 1 { (1, 0) } else { (0, 1) }, "one of them holds the slot");
        drop(last);
        assert_eq!(a.slots_out(), (0, 0));
    }
    // Where datagrams are large, none are.
    let (mut a, mut b) = two();
    b.send(&mut (0..20).map(|i| outgoing(r(0), &[i], &[1; 1_000])).collect());
    assert_eq!((take(&mut a, 20).len(), a.counters().read().coalesced), (20, 0));
}

#[test]
fn where_one_socket_cannot_receive_together_none_does() {
    let (mut a, mut b, _) = small(1_452);
    let tcp = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    assert!(coalesce(&a.sockets[1..], &a.sockets[0]));
    assert!(!coalesce(&[a.sockets[1].try_clone().unwrap(), tcp], &a.sockets[0]));
    b.send(&mut (0..20).map(|i| outgoing(r(0), &[i], &[1; 1_000])).collect());
    assert_eq!((take(&mut a, 20).len(), a.counters().read().coalesced), (20, 0));
}

#[test]
fn what_is_too_long_is_dropped_however_it_came() {
    let (mut a, _b, mut client) = small(2_000);
    client.send(&mut (0..20).map(|i| outgoing(r(0), &[i], &[1; 1_900])).collect());
    client.send(&mut vec![outgoing(r(0), b"", &[1; 1_453])]);
    client.send(&mut (0..20).map(|i| outgoing(r(0), &[i], &[1; 1_000])).collect());
    let got = take(&mut a, 20);
    assert!(got.iter().all(|datagram| datagram.bytes.len() == 1_001));
    assert_eq!(a.counters().read().oversize, 21);
}

#[test]
fn slots_held_forever_starve_nobody_and_come_back_from_other_threads() {
    let (mut a, mut b) = two();
    let mut held: Vec<Bytes> = Vec::new();
    for round in 0..20u8 {
        b.send(&mut (0..64).map(|_| outgoing(r(0), b"", &[round; 1_000])).collect());
        held.extend(take(&mut a, 64).into_iter().map(|d| d.bytes));
    }
    let counts = a.counters().read();
    assert!(counts.copied_scarce >= 1_280 - 128, "{counts:?}");
    assert!(a.slots_out().0 <= 128 * 3 / 4 + 1);
    let (to_other, from_here) = mpsc::channel::<Bytes>();
    let other = thread::spawn(move || from_here.into_iter().map(|b| usize::from(b[500])).sum::<usize>());
    held.into_iter().for_each(|bytes| to_other.send(bytes).unwrap());
    // Meanwhile the ring goes on.
    for round in 0..20u8 {
        b.send(&mut (0..64).map(|_| outgoing(r(0), b"", &[round; 1_000])).collect());
        for datagram in take(&mut a, 64) {
            assert!(datagram.bytes.iter().all(|&b| b == round), "a slot was given away while in use");
            to_other.send(datagram.bytes).unwrap();
        }
    }
    drop(to_other);
    assert_eq!(other.join().unwrap(), 2 * 64 * (0..20).sum::<usize>());
    assert_eq!(a.slots_out(), (0, 0));
}

#[test]
fn a_datagram_takes_one_system_call_to_send_and_one_to_receive_and_many_share_them() {
    let (mut a, mut b) = two();
    let calls = |a: &Uring, b: &Uring| a.counters().read().system_calls + b.counters().read().system_calls;
    let rounds = 200;
    let before = calls(&a, &b);
    for i in 0..rounds {
        b.send(&mut vec![outgoing(r(0), b"there", &[i])]);
        assert_eq!(take(&mut a, 1).len(), 1);
        a.send(&mut vec![outgoing(r(1), b"and back", &[i])]);
        assert_eq!(take(&mut b, 1).len(), 1);
    }
    let each = calls(&a, &b) - before;
    assert!((2 * u64::from(rounds)..=4 * u64::from(rounds) + 4).contains(&each), "{each} for {rounds} rounds");

    // Who looks and finds nothing makes none.
    let before = calls(&a, &b);
    (0..1_000).for_each(|_| a.receive(&mut Vec::new()));
    assert_eq!(calls(&a, &b), before);

    for _ in 0..20 {
        b.send(&mut (0..96).map(|i| outgoing(r(0), &[i], &vec![7; 100 + usize::from(i)])).collect());
        assert_eq!(take(&mut a, 96).len(), 96);
    }
    let each = (calls(&a, &b) - before) as f64 / (20.0 * 96.0);
    assert!(each <= 0.1, "{each} for a datagram of many");
}

#[test]
fn a_refused_peer_is_heard_again_when_it_is_back() {
    let mut bound = replicas(2);
    let b = bound.pop().unwrap();
    let address = b.local_address();
    let mut a = open(bound.pop().unwrap());
    drop(b);
    wait_until("refusals end the receive or the send", || {
        a.send(&mut vec![outgoing(r(1), b"", b"anybody?")]);
        a.receive(&mut Vec::new());
        let counts = a.counters().read();
        counts.rearmed + counts.send_refused > 3
    });
    let b = UdpSocket::bind(address).unwrap();
    b.set_nonblocking(true).unwrap();
    let mut buffer = [0; 10];
    wait_until("the peer hears us", || {
        a.send(&mut vec![outgoing(r(1), b"", b"hello")]);
        b.recv(&mut buffer).is_ok_and(|len| &buffer[..len] == b"hello")
    });
    b.send_to(b"back", a.local_address()).unwrap();
    assert_eq!((take(&mut a, 1)[0].from, a.disarmed.len()), (r(1), 0));
}

#[test]
fn empty_and_oversize_datagrams_do_no_harm() {
    let (mut a, b) = two();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (a_address, peer) = (a.local_address(), &b.sockets[0]);
    for _ in 0..10 {
        for socket in [&stranger, &UdpSocket::from(peer.try_clone().unwrap())] {
            socket.send_to(&[], a_address).unwrap();
            socket.send_to(&[1; 8_193], a_address).unwrap();
            socket.send_to(&[1; 60_000], a_address).unwrap();
            socket.send_to(&[2; 8_192], a_address).unwrap();
        }
    }
    let mut got = Vec::new();
    wait_until("all full datagrams arrive", || {
        a.receive(&mut got);
        got.iter().filter(|d| d.bytes.len() == 8_192).count() == 20
    });
    assert!(got.iter().all(|d| d.bytes.is_empty() || d.bytes.iter().all(|&b| b == 2)));
    assert_eq!(a.counters().read().oversize, 40);
    got.clear();
    assert_eq!(a.slots_out(), (0, 0));
}

#[test]
fn what_cannot_be_sent_is_counted_and_the_rest_goes() {
    let (mut a, mut b) = two();
    b.send(&mut vec![
        outgoing(r(0), b"1", b""),
        outgoing(r(9), b"", b"nobody"),
        outgoing(r(0), b"", &[0; 9_000]),
        outgoing(Peer::Address("[::1]:9".parse().unwrap()), b"", b"other family"),
        outgoing(r(0), b"2", b""),
        Outgoing { to: r(0), head: Head::EMPTY, body: Bytes::new() },
    ]);
    let got = take(&mut a, 2);
    assert_eq!((&got[0].bytes[..], &got[1].bytes[..]), (b"1".as_slice(), b"2".as_slice()));
    wait_until("failures complete", || {
        b.receive(&mut Vec::new());
        b.counters().read().send_failed == 3
    });
}

#[test]
fn drops_in_the_kernel_are_counted() {
    let mut bound = replicas(2);
    let mut b = open(bound.pop().unwrap());
    let mut a = bound.pop().unwrap();
    a.config.receive_buffer = 0;
    let mut a = open(a);
    b.send(&mut (0..2_000).map(|_| outgoing(r(0), b"", &[0; 4_000])).collect());
    wait_until("drops are seen", || {
        a.drops_read = Time(0);
        let now = a.now();
        a.sample_drops(now);
        a.counters().read().kernel_drops > 0
    });
    let counts = a.counters().read();
    let got = take(&mut a, 2_000 - counts.kernel_drops as usize).len();
    assert_eq!(got as u64 + counts.kernel_drops, 2_000);
}

#[test]
fn datagrams_outlive_their_transport() {
    let (mut a, mut b) = two();
    b.send(&mut vec![outgoing(r(0), b"", &[9; 5_000])]);
    let got = take(&mut a, 1);
    b.send(&mut vec![outgoing(r(0), b"", &[8; 5_000]); 100]);
    drop(a);
    b.send(&mut vec![outgoing(r(0), b"", &[7; 5_000]); 100]);
    assert!(got[0].bytes.iter().all(|&b| b == 9));
}

#[test]
fn transports_come_and_go() {
    let (_, address) = bound_alone();
    for _ in 0..50 {
        // The port is free as soon as the transport is gone.
        let config = UdpConfig { bind: address, ..UdpConfig::client(vec!["127.0.0.1:9".parse().unwrap()]) };
        drop(open(Bound::bind(config).unwrap()));
    }
}

struct Silent;

impl Machine for Silent {
    fn turn(&mut self, _: Time, inbox: &mut Vec<Datagram>, _: &mut Vec<Outgoing>) {
        inbox.clear();
    }
    fn deadline(&self) -> Time {
        Time::NEVER
    }
}

#[test]
fn an_idle_uring_parks() {
    let (bound, _) = bound_alone();
    let (stop, loops) = (Stop::new(), Arc::new(LoopCounters::default()));
    let thread = thread::spawn({
        let (stop, loops) = (stop.clone(), loops.clone());
        move || {
            let mut transport = open(bound);
            let before = thread_cpu();
            drive(&mut Silent, &mut transport, &stop, &WaitPolicy::default(), &loops);
            thread_cpu() - before
        }
    });
    thread::sleep(Duration::from_millis(500));
    stop.stop();
    let cpu = thread.join().unwrap();
    assert!(cpu < Duration::from_millis(50), "an idle half second took {cpu:?} of CPU");
    assert!(loops.read().parks <= 3, "{:?}", loops.read());
}
