//! What proofs cost: vectors of MACs by the number of replicas, envelopes, packs, and signatures in their place.
//!
//! `cargo bench --bench auth`

mod fixture;

use std::hint::black_box;

use castra::auth::Principal;
use castra::types::{ClusterSize, ReplicaId};
use castra::wire::Message;
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use fixture::{BATCH, Parties, SIZES, datagram, frames, pre_prepare, vote};

fn vectors(c: &mut Criterion) {
    let vote = frames(&[Message::Prepare(vote())]);
    let mut group = c.benchmark_group("auth/vote to all others");
    for n in SIZES {
        let (parties, size) = (Parties::new(n), ClusterSize::of(n).expect("3f + 1"));
        let mut heads = Vec::new();
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter(|| {
                heads.clear();
                parties.replicas[0].seal_broadcast(size.others(ReplicaId(0)), &[(&vote, 0..1)], &mut heads);
                black_box(&heads);
            });
        });
    }
    group.finish();
    let mut group = c.benchmark_group("auth/pack of one request");
    for n in SIZES {
        let parties = Parties::new(n);
        let seal = |mut requests| parties.client.seal_pack(&mut requests, false, false);
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter_batched(|| parties.requests(1, 1), seal, BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn envelopes(c: &mut Criterion) {
    let parties = Parties::new(4);
    let to = Principal::Replica(ReplicaId(1));
    let proposal = pre_prepare(vec![parties.pack(1, BATCH, false)]);
    for (name, message) in [("a vote", Message::Prepare(vote())), ("a pre-prepare of 64 requests", proposal)] {
        let frames = frames(&[message]);
        let seal = || parties.replicas[0].seal(to, &[(&frames, 0..1)]).expect("a replica of the cluster");
        c.bench_function(&format!("auth/seal {name}"), |b| b.iter(seal));
        let (bytes, mut receiver) = (datagram(&seal(), frames.bytes()), parties.replicas[1].clone());
        c.bench_function(&format!("auth/open {name}"), |b| b.iter(|| receiver.open(&bytes).expect("it is for us")));
    }
}

fn packs(c: &mut Criterion) {
    let parties = Parties::new(4);
    let mut replica = parties.replicas[0].clone();
    let by_mac = parties.pack(1, BATCH, false);
    c.bench_function("auth/verify a pack by MAC", |b| {
        b.iter(|| replica.verify_pack(by_mac.clone()).expect("a pack of ours"));
    });
    // Once it is good it is remembered: each time the replica has not seen it yet.
    let by_signature = parties.pack(1, BATCH, true);
    c.bench_function("auth/verify a pack by signature", |b| {
        let verify = |mut replica: castra::auth::Keyring| replica.verify_pack(by_signature.clone()).is_ok();
        b.iter_batched(|| replica.clone(), verify, BatchSize::SmallInput);
    });
    c.bench_function("auth/sign a pack", |b| {
        let sign = |mut requests| parties.client.seal_pack(&mut requests, false, true);
        b.iter_batched(|| parties.requests(1, BATCH), sign, BatchSize::SmallInput);
    });
}

criterion_group!(benches, vectors, envelopes, packs);
criterion_main!(benches);
