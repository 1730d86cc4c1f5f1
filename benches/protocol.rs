//! What an operation costs by the number of replicas, in memory: no sockets, no waiting.
//!
//! `cargo bench --bench protocol`. A time is of one operation at one replica, in batches of 64: first the agreement core
//! alone, then a whole replica with every byte and every proof. The last group is one operation at all replicas and clients
//! of a cluster of four together.

mod fixture;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use fixture::agreement::Cores;
use fixture::cluster::{Cluster, Load, Side};
use fixture::{BATCH, SIZES};

/// Batches before the first that is measured: past a checkpoint, all buffers have their size.
const WARM_UP: usize = 200;

fn agreement(c: &mut Criterion) {
    let mut group = c.benchmark_group("protocol/agreement alone");
    for n in SIZES {
        let mut cores = Cores::new(n);
        for _ in 0..WARM_UP {
            cores.order_batch();
        }
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter_custom(|operations| {
                let batches = operations.div_ceil(BATCH as u64);
                let took: Duration = (0..batches).map(|_| cores.order_batch()).sum();
                took.mul_f64(operations as f64 / (batches * (BATCH * n) as u64) as f64)
            });
        });
    }
    group.finish();
}

/// The time of one side of a cluster, for each operation.
fn time(cluster: &mut Cluster, operations: u64, counts: impl Fn(Side) -> bool) -> Duration {
    let (before, mut took) = (cluster.completed(), Duration::ZERO);
    cluster.run(operations, &mut |side, turn| {
        let began = Instant::now();
        turn();
        if counts(side) {
            took += began.elapsed();
        }
    });
    took.mul_f64(operations as f64 / (cluster.completed() - before) as f64)
}

fn replica(c: &mut Criterion) {
    let mut group = c.benchmark_group("protocol/whole replica");
    for n in SIZES {
        let mut cluster = Cluster::new(Load { n, clients: 1, outstanding: BATCH, read_only: false });
        cluster.run((WARM_UP * BATCH) as u64, &mut |_, turn| turn());
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter_custom(|operations| time(&mut cluster, operations, |side| side == Side::Replicas) / n as u32);
        });
    }
    group.finish();
}

fn cluster(c: &mut Criterion) {
    let mut group = c.benchmark_group("protocol/four replicas and clients");
    for (clients, outstanding, read_only) in [(1, 1, false), (30, 1, false), (4, 256, false), (4, 256, true)] {
        let mut cluster = Cluster::new(Load { n: 4, clients, outstanding, read_only });
        cluster.run((WARM_UP * clients * outstanding) as u64, &mut |_, turn| turn());
        let name = format!("{clients} x {outstanding} {}", if read_only { "queries" } else { "ordered" });
        group.bench_function(name, |b| {
            b.iter_custom(|operations| time(&mut cluster, operations, |_| true));
        });
    }
    group.finish();
}

criterion_group!(benches, agreement, replica, cluster);
criterion_main!(benches);
