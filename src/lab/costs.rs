//! What this machine takes for a datagram, for waking a sleeper, and for digests and proofs. CPU time, not wall time: a
//! shared machine takes away the one, not the other.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::usage;
use crate::auth::{AuthMode, Clients, ClusterKeys, Identity, Keyring, Principal};
use crate::runtime::bind::{Bound, UdpConfig};
use crate::runtime::{Backend, Error, Udp};
use crate::transport::{Head, Outgoing, Peer, Transport as _};
use crate::types::{ClusterSize, Digest, Domain, ReplicaId, SeqNum, View};
use crate::wire::{FrameBuffer, Frames, Message, Vote};

/// Nanoseconds each.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize)]
pub struct Costs {
    /// CPU to send and to receive a datagram of 64 bytes, 32 at a time.
    pub datagram_64: f64,
    /// The same of 8 KiB.
    pub datagram_8k: f64,
    /// Wall time from a datagram's leaving to the wake of a thread that sleeps for it, and back, halved.
    pub wake: f64,
    /// CPU for a digest of 64 bytes.
    pub digest_64: f64,
    /// Of 1 KiB.
    pub digest_1k: f64,
    /// Of 8 KiB.
    pub digest_8k: f64,
    /// CPU to seal a vote for the three others of four replicas: a digest and three MACs.
    pub seal_4: f64,
    /// For the twelve others of thirteen.
    pub seal_13: f64,
    /// To seal it for four by a signature.
    pub seal_signed: f64,
}

/// Each measurement runs about this long.
const WHILE: Duration = Duration::from_millis(120);
const BATCH: usize = 32;

/// Measures all of them; no other thread of this process should be busy.
///
/// # Errors
/// What the system refused.
pub fn measure(backend: Backend) -> Result<Costs, Error> {
    let digest = |len: usize| {
        let input = vec![7; len];
        each(|| {
            std::hint::black_box(Digest::of(Domain::Body, &[std::hint::black_box(&input)]));
        })
    };
    Ok(Costs {
        datagram_64: datagrams(backend, 64)?,
        datagram_8k: datagrams(backend, 8_000)?,
        wake: wake(backend)?,
        digest_64: digest(64),
        digest_1k: digest(1_024),
        digest_8k: digest(8_192),
        seal_4: seal(4, AuthMode::Mac),
        seal_13: seal(13, AuthMode::Mac),
        seal_signed: seal(4, AuthMode::Signature),
    })
}

/// CPU nanoseconds of one call.
fn each(mut call: impl FnMut()) -> f64 {
    let me = std::process::id();
    let cpu = || usage::cpu_time(me).unwrap_or_default();
    let (before, began, mut calls) = (cpu(), Instant::now(), 0u64);
    while began.elapsed() < WHILE {
        (0..64).for_each(|_| call());
        calls += 64;
    }
    cpu().saturating_sub(before).as_nanos() as f64 / calls as f64
}

fn open(backend: Backend) -> Result<Udp, Error> {
    // A stranger to both: what is measured is the unconnected path that clients use.
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let udp = UdpConfig { datagram_max: 8_192, ..UdpConfig::client(vec![nobody]) };
    Ok(Udp::open(Bound::bind(udp)?, backend)?.0)
}

fn to(udp: &Udp, body: Bytes) -> Outgoing {
    Outgoing { to: Peer::Address(udp.local_address()), head: Head::EMPTY, body }
}

fn datagrams(backend: Backend, len: usize) -> Result<f64, Error> {
    let (mut from, mut there) = (open(backend)?, open(backend)?);
    let body = Bytes::from(vec![1; len]);
    let mut inbox = Vec::new();
    let batch = each_batch(|| {
        from.send(&mut (0..BATCH).map(|_| to(&there, body.clone())).collect());
        let until = Instant::now() + Duration::from_millis(10);
        while inbox.len() < BATCH && Instant::now() < until {
            there.receive(&mut inbox);
        }
        let got = inbox.len();
        inbox.clear();
        got
    });
    Ok(batch)
}

/// CPU nanoseconds for each thing that a call says it did.
fn each_batch(mut call: impl FnMut() -> usize) -> f64 {
    let me = std::process::id();
    let cpu = || usage::cpu_time(me).unwrap_or_default();
    let (before, began, mut done) = (cpu(), Instant::now(), 0);
    while began.elapsed() < WHILE {
        done += call();
    }
    cpu().saturating_sub(before).as_nanos() as f64 / done.max(1) as f64
}

/// Half a round trip between two threads that both sleep in the kernel.
fn wake(backend: Backend) -> Result<f64, Error> {
    const ROUNDS: u32 = 500;
    let mut here = open(backend)?;
    let address = here.local_address();
    let (tell, told) = std::sync::mpsc::channel();
    let patience = Duration::from_secs(1);
    let echo = thread::spawn(move || -> Result<(), Error> {
        let mut there = open(backend)?;
        let _ = tell.send(there.local_address());
        let mut inbox = Vec::new();
        for _ in 0..ROUNDS {
            if !sleep_for_one(&mut there, &mut inbox, patience) {
                break;
            }
            let body = inbox.pop().expect("one came").bytes;
            there.send(&mut vec![Outgoing { to: Peer::Address(address), head: Head::EMPTY, body }]);
        }
        Ok(())
    });
    let mut inbox = Vec::new();
    let mut rounds = 0;
    let began = Instant::now();
    if let Ok(there) = told.recv() {
        for _ in 0..ROUNDS {
            let body = Bytes::from_static(&[1; 64]);
            here.send(&mut vec![Outgoing { to: Peer::Address(there), head: Head::EMPTY, body }]);
            if !sleep_for_one(&mut here, &mut inbox, patience) {
                break;
            }
            inbox.clear();
            rounds += 1;
        }
    }
    let took = began.elapsed();
    echo.join().unwrap_or(Ok(()))?;
    Ok(took.as_nanos() as f64 / f64::from(2 * rounds.max(1)))
}

/// Sleeps until a datagram is there; false if none comes.
fn sleep_for_one(udp: &mut Udp, inbox: &mut Vec<crate::transport::Datagram>, patience: Duration) -> bool {
    let until = udp.now() + patience;
    loop {
        udp.receive(inbox);
        if !inbox.is_empty() {
            return true;
        }
        if udp.now() >= until {
            return false;
        }
        udp.wait(until);
    }
}

/// A vote of replica 0 of `n`, sealed for all others.
fn seal(n: usize, mode: AuthMode) -> f64 {
    let identities: Vec<Identity> = (0..n).map(|i| Identity::from_seed([i as u8 + 1; 32])).collect();
    let keys = ClusterKeys {
        cluster: Digest::default(),
        instance: 1,
        replicas: identities.iter().map(Identity::public).collect(),
        clients: Clients::Open,
    };
    let keyring = Keyring::replica(ReplicaId(0), &identities[0], keys.into(), mode).expect("keys of a cluster");
    let others: Vec<ReplicaId> = ClusterSize::of(n).expect("a size").others(ReplicaId(0)).collect();
    let mut buffer = FrameBuffer::default();
    let vote = Vote { view: View(1), n: SeqNum(1), digest: Digest::default() };
    assert!(buffer.push(&Message::Commit(vote)), "a vote fits");
    let frames: Frames = buffer.take();
    let mut heads: Vec<(Principal, Head)> = Vec::new();
    each(|| {
        heads.clear();
        keyring.seal_broadcast(others.iter().copied(), &[(&frames, 0..1)], &mut heads);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cost_is_measured() {
        let costs = measure(Backend::Sockets).unwrap();
        let all = serde_json::to_value(&costs).unwrap();
        for (name, value) in all.as_object().unwrap() {
            assert!(value.as_f64().unwrap() > 0.0, "{name}: {costs:?}");
        }
        assert!(costs.seal_signed > costs.seal_4, "{costs:?}");
    }
}
