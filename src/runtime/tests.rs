//! What every transport must do, and the loop over it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::bind::{Bound, UdpConfig};
use super::memory::{Memory, Network};
use super::sockets::Sockets;
use super::*;
use crate::transport::{Datagram, Head, Machine, Outgoing, Peer, Transport, Woken};
use crate::types::{ReplicaId, Time};

/// Nothing here may take longer, on the slowest machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
const R0: Peer = Peer::Replica(ReplicaId(0));

pub(super) fn outgoing(to: Peer, head: &[u8], body: &[u8]) -> Outgoing {
    let mut h = Head::EMPTY;
    h.push(head);
    Outgoing { to, head: h, body: Bytes::copy_from_slice(body) }
}

/// Polls until `count` datagrams are there.
pub(super) fn take(transport: &mut impl Transport, count: usize) -> Vec<Datagram> {
    let (mut got, start) = (Vec::new(), Instant::now());
    while got.len() < count {
        transport.receive(&mut got);
        assert!(start.elapsed() < PATIENCE, "{} of {count} datagrams arrived", got.len());
        thread::yield_now();
    }
    got
}

/// A replica and a client that know each other, by sockets.
fn socket_pair() -> (Sockets, Sockets) {
    let (server, client) = bound_pair();
    (Sockets::open(server), Sockets::open(client))
}

pub(super) fn bound_pair() -> (Bound, Bound) {
    let (server, address) = bound_alone();
    (server, Bound::bind(UdpConfig::client(vec![address])).unwrap())
}

/// Replica 0 of 1, on a port that the kernel chose.
pub(super) fn bound_alone() -> (Bound, SocketAddr) {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let server = Bound::bind(UdpConfig::replica(ReplicaId(0), vec![any])).unwrap();
    let address = server.local_address();
    (server, address)
}

fn memory_pair() -> (Memory, Memory) {
    let network = Network::new();
    (network.replica(ReplicaId(0)), network.client())
}

/// Returns every datagram to where it came from.
struct Echo;

impl Machine for Echo {
    fn turn(&mut self, _: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
        outbox.extend(inbox.drain(..).map(|d| Outgoing { to: d.from, head: Head::EMPTY, body: d.bytes }));
    }
    fn deadline(&self) -> Time {
        Time::NEVER
    }
}

/// Keeps `window` datagrams on their way until `total` came back; sends again what is overdue.
struct Pinger {
    total: u64,
    next: u64,
    flying: VecDeque<(u64, Time)>,
    window: usize,
    size: usize,
}

impl Pinger {
    fn new(total: u64, window: usize, size: usize) -> Pinger {
        Pinger { total, next: 0, flying: VecDeque::new(), window, size }
    }

    fn done(&self) -> bool {
        self.next == self.total && self.flying.is_empty()
    }

    fn ping(&self, number: u64) -> Outgoing {
        outgoing(R0, &number.to_le_bytes(), &vec![number as u8; self.size])
    }
}

const RESEND: Duration = Duration::from_millis(200);

impl Machine for Pinger {
    fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, outbox: &mut Vec<Outgoing>) {
        for datagram in inbox.drain(..) {
            let (number, rest) = datagram.bytes.split_first_chunk::<8>().unwrap();
            let number = u64::from_le_bytes(*number);
            assert!(rest.len() == self.size && rest.iter().all(|&b| b == number as u8));
            self.flying.retain(|&(n, _)| n != number);
        }
        for i in 0..self.flying.len() {
            if now.since(self.flying[i].1) >= RESEND {
                self.flying[i].1 = now;
                outbox.push(self.ping(self.flying[i].0));
            }
        }
        while self.flying.len() < self.window && self.next < self.total {
            outbox.push(self.ping(self.next));
            self.flying.push_back((self.next, now));
            self.next += 1;
        }
    }
    fn deadline(&self) -> Time {
        self.flying.iter().map(|&(_, sent)| sent + RESEND).min().unwrap_or(Time::NEVER)
    }
}

/// Drives an echo on a thread of its own, made there by `server`, and a pinger here.
pub(super) fn echo<S: Transport>(
    server: impl FnOnce() -> S + Send + 'static,
    client: &mut impl Transport,
    total: u64,
    window: usize,
    size: usize,
) -> Duration {
    let stop = Stop::new();
    let server = thread::spawn({
        let stop = stop.clone();
        move || drive(&mut Echo, &mut server(), &stop, &WaitPolicy::default(), &LoopCounters::default())
    });
    let mut pinger = Pinger::new(total, window, size);
    let start = Instant::now();
    drive_with(&mut pinger, client, &WaitPolicy::default(), &LoopCounters::default(), |pinger, _| {
        assert!(start.elapsed() < PATIENCE, "{} of {} answered", pinger.next, pinger.total);
        if pinger.done() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let took = start.elapsed();
    stop.stop();
    server.join().unwrap();
    took
}

#[test]
fn datagrams_of_sockets_share_system_calls() {
    let (mut server, mut client) = socket_pair();
    let before = client.counters().read().system_calls;
    client.send(&mut (0..100).map(|i| outgoing(R0, &[i], b"")).collect());
    assert_eq!(client.counters().read().system_calls - before, 4, "32 datagrams for a call");
    let before = server.counters().read().system_calls;
    let mut got = Vec::new();
    server.receive(&mut got);
    assert_eq!((got.len(), server.counters().read().system_calls - before), (100, 4));
    server.receive(&mut got);
    assert_eq!(server.counters().read().system_calls - before, 5, "plain sockets are asked each time");
}

#[test]
fn sockets_echo_small_large_and_many() {
    for (total, window, size) in [(200, 1, 0), (2_000, 64, 100), (300, 16, 8_000)] {
        let (server, mut client) = socket_pair();
        echo(move || server, &mut client, total, window, size);
        assert!(client.counters().read().received >= total);
    }
}

#[test]
fn memory_echoes_small_large_and_many() {
    for (total, window, size) in [(200, 1, 0), (20_000, 256, 100), (300, 16, 60_000)] {
        let (server, mut client) = memory_pair();
        echo(move || server, &mut client, total, window, size);
    }
}

/// A wake before a wait, and a wake during it, from another thread; then the deadline.
pub(super) fn wakes_and_deadlines(transport: &mut impl Transport) {
    let waker = transport.waker();
    waker.wake();
    waker.wake();
    assert_eq!(transport.wait(Time::NEVER), Woken::Waker);
    let other = thread::spawn({
        let waker = waker.clone();
        move || {
            thread::sleep(Duration::from_millis(20));
            waker.wake();
        }
    });
    while transport.wait(Time::NEVER) != Woken::Waker {}
    other.join().unwrap();
    let start = transport.now();
    let until = start + Duration::from_millis(5);
    while transport.wait(until) != Woken::Deadline {}
    assert!(transport.now() >= until);
    assert_eq!(transport.wait(Time(0)), Woken::Deadline, "a deadline in the past does not sleep");
    // Many wakes from another thread, none lost: each is answered before the next.
    let turns = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let other = thread::spawn({
        let turns = turns.clone();
        move || {
            for i in 0..2_000 {
                waker.wake();
                let start = Instant::now();
                while turns.load(std::sync::atomic::Ordering::Acquire) <= i {
                    assert!(start.elapsed() < PATIENCE, "wake {i} was lost");
                    thread::yield_now();
                }
            }
        }
    });
    for i in 1..=2_000 {
        transport.wait(Time::NEVER);
        turns.store(i, std::sync::atomic::Ordering::Release);
    }
    other.join().unwrap();
}

#[test]
fn sockets_wake_and_time_out() {
    wakes_and_deadlines(&mut socket_pair().0);
}

#[test]
fn memory_wakes_and_times_out() {
    wakes_and_deadlines(&mut memory_pair().0);
}

/// A datagram ends a wait; one that is already there forbids it.
pub(super) fn datagrams_end_waits(a: &mut impl Transport, b: &mut impl Transport) {
    b.send(&mut vec![outgoing(R0, b"x", b"y")]);
    while a.wait(Time::NEVER) != Woken::Datagrams {}
    let got = take(a, 1);
    assert_eq!(&got[0].bytes[..], b"xy");
    a.send(&mut vec![outgoing(got[0].from, b"", b"back")]);
    while b.wait(Time::NEVER) != Woken::Datagrams {}
    let back = take(b, 1);
    assert_eq!((back[0].from, &back[0].bytes[..]), (R0, b"back".as_slice()));
}

#[test]
fn datagrams_end_the_waits_of_sockets_and_memory() {
    let (mut a, mut b) = socket_pair();
    datagrams_end_waits(&mut a, &mut b);
    let (mut a, mut b) = memory_pair();
    datagrams_end_waits(&mut a, &mut b);
}

#[test]
fn what_cannot_be_sent_is_counted_and_the_rest_goes() {
    let (mut a, mut b) = socket_pair();
    let far = Peer::Replica(ReplicaId(9));
    let v6 = Peer::Address("[::1]:9".parse().unwrap());
    b.send(&mut vec![
        outgoing(R0, b"1", b""),
        outgoing(far, b"", b"nobody"),
        outgoing(R0, b"", &[0; 9_000]),
        outgoing(v6, b"", b"other family"),
        outgoing(R0, b"2", b""),
    ]);
    let got = take(&mut a, 2);
    assert_eq!((&got[0].bytes[..], &got[1].bytes[..]), (b"1".as_slice(), b"2".as_slice()));
    let counts = b.counters().read();
    assert_eq!((counts.sent, counts.send_failed), (2, 3));
}

#[test]
fn a_memory_inbox_is_bounded_and_its_absence_refuses() {
    let (a, mut b) = memory_pair();
    b.send(&mut (0..memory::INBOX + 5).map(|_| outgoing(R0, b"", b"x")).collect());
    let counts = b.counters().read();
    assert_eq!((counts.sent, counts.send_full), (memory::INBOX as u64, 5));
    drop(a);
    b.send(&mut vec![outgoing(R0, b"", b"x")]);
    assert_eq!(b.counters().read().send_refused, 1);
}

/// CPU time of the calling thread.
pub(super) fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

/// Does not run for a while, in which datagrams arrive; counts what it reads after that.
struct Sleeper {
    client: Memory,
    asleep: Option<Duration>,
    read: usize,
    stale_after: Option<Duration>,
}

impl Machine for Sleeper {
    fn turn(&mut self, _: Time, inbox: &mut Vec<Datagram>, _: &mut Vec<Outgoing>) {
        self.read += inbox.len();
        inbox.clear();
        if let Some(time) = self.asleep.take() {
            self.client.send(&mut (0..40).map(|i| outgoing(R0, &[i], &[])).collect());
            thread::sleep(time);
        }
    }
    fn deadline(&self) -> Time {
        Time(0)
    }
    fn stale_after(&self) -> Option<Duration> {
        self.stale_after
    }
}

#[test]
fn what_waited_while_a_process_did_not_run_is_dropped_unread_where_that_is_wanted() {
    let ms = Duration::from_millis;
    for (asleep, stale_after, expected) in
        [(ms(60), Some(ms(20)), (0, 40)), (ms(60), Some(ms(10_000)), (40, 0)), (ms(60), None, (40, 0))]
    {
        let (mut server, client) = memory_pair();
        let mut sleeper = Sleeper { client, asleep: Some(asleep), read: 0, stale_after };
        let (loops, mut turns) = (LoopCounters::default(), 0);
        drive_with(&mut sleeper, &mut server, &WaitPolicy::default(), &loops, |_, _| {
            turns += 1;
            if turns > 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!((sleeper.read, loops.read().stale), expected, "{asleep:?} asleep, stale after {stale_after:?}");
    }
}

/// Is in no hurry.
struct Leisurely {
    client: Memory,
    read: Vec<usize>,
    rest: Duration,
    now: Time,
}

impl Machine for Leisurely {
    fn turn(&mut self, now: Time, inbox: &mut Vec<Datagram>, _: &mut Vec<Outgoing>) {
        self.now = now;
        if !inbox.is_empty() {
            self.read.push(inbox.len());
            inbox.clear();
            // While it rests three more arrive.
            self.client.send(&mut (0..3).map(|i| outgoing(R0, &[i], &[])).collect());
        }
    }
    fn deadline(&self) -> Time {
        Time::NEVER
    }
    fn rests_until(&self) -> Option<Time> {
        Some(self.now + self.rest)
    }
}

#[test]
fn p53_a_machine_at_rest_lets_datagrams_gather() {
    let (mut server, mut client) = memory_pair();
    client.send(&mut vec![outgoing(R0, &[9], &[])]);
    let rest = Duration::from_millis(5);
    let mut leisurely = Leisurely { client, read: Vec::new(), rest, now: Time(0) };
    let loops = LoopCounters::default();
    let start = server.now();
    drive_with(&mut leisurely, &mut server, &WaitPolicy::default(), &loops, |machine, _| match machine.read.len() {
        5 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert_eq!(leisurely.read, [1, 3, 3, 3, 3], "all that came meanwhile, at once");
    assert_eq!(loops.read().rests, 5);
    assert!(server.now().since(start) >= 5 * rest);
}

#[test]
fn an_idle_loop_parks() {
    let (mut transport, _client) = socket_pair();
    let stop = Stop::new();
    let loops = Arc::new(LoopCounters::default());
    let thread = thread::spawn({
        let (stop, loops) = (stop.clone(), loops.clone());
        move || {
            drive(&mut Echo, &mut transport, &stop, &WaitPolicy::default(), &loops);
            thread_cpu()
        }
    });
    thread::sleep(Duration::from_millis(500));
    stop.stop();
    let cpu = thread.join().unwrap();
    assert!(cpu < Duration::from_millis(50), "an idle half second took {cpu:?} of CPU");
    assert!(loops.read().parks <= 3, "{:?}", loops.read());
}

#[test]
fn a_stop_before_the_start_counts() {
    let stop = Stop::new();
    stop.stop();
    let (mut transport, _client) = memory_pair();
    drive(&mut Echo, &mut transport, &stop, &WaitPolicy::default(), &LoopCounters::default());
}

/// Forbids io_uring to the calling thread and those that it starts, as container runtimes do.
pub(super) fn forbid_io_uring() {
    const SECCOMP_RET_ALLOW: u32 = 0x7fff_0000;
    const SECCOMP_RET_ERRNO: u32 = 0x0005_0000;
    let op = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let setup = libc::SYS_io_uring_setup as u32;
    let mut filter = [
        op((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
        op((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, setup, 0, 1),
        op((libc::BPF_RET | libc::BPF_K) as u16, SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0),
        op((libc::BPF_RET | libc::BPF_K) as u16, SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: plain numbers; and a program that points to `len` instructions, which the kernel copies.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn where_io_uring_is_refused_sockets_take_over_by_name() {
    thread::spawn(|| {
        forbid_io_uring();
        let (server, client) = bound_pair();
        let (udp, fallback) = Udp::open(server, Backend::Auto).unwrap();
        assert_eq!(udp.name(), "sockets");
        assert!(matches!(fallback, Some(Error::UringRefused(Refusal::Seccomp { mode: 2 }))), "{fallback:?}");
        let refused = Udp::open(client, Backend::Uring).map(|_| ());
        assert!(matches!(refused, Err(Error::UringRefused(Refusal::Seccomp { mode: 2 }))));
    })
    .join()
    .unwrap();
}
