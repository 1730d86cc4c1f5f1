//! The bounded ring between two roles of a replica.
//!
//! `cargo bench --bench rings`

use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use castra::runtime::ring::{NoBell, ring};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Items of a busy turn.
const TURN: usize = 64;
/// About as large as what roles hand over.
type Item = [u64; 16];

fn one_thread(c: &mut Criterion) {
    let (mut outlet, mut inlet) = ring::<Item>(4_096, Arc::new(NoBell));
    let mut group = c.benchmark_group("rings");
    group.throughput(Throughput::Elements(TURN as u64));
    group.bench_function("64 items of 128 B, in and out", |b| {
        b.iter(|| {
            (0..TURN).for_each(|i| outlet.push(black_box([i as u64; 16])));
            outlet.flush();
            while let Some(item) = inlet.pop() {
                black_box(item);
            }
        });
    });
    group.finish();
}

fn two_threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("rings");
    group.throughput(Throughput::Elements(1));
    group.bench_function("an item of 128 B to another thread", |b| {
        b.iter_custom(|items| {
            let (mut outlet, mut inlet) = ring::<Item>(4_096, Arc::new(NoBell));
            let taker = thread::spawn(move || {
                let mut left = items;
                while left > 0 {
                    match inlet.pop() {
                        Some(item) => {
                            black_box(item);
                            left -= 1;
                        }
                        None => thread::yield_now(),
                    }
                }
            });
            let began = Instant::now();
            for i in 0..items {
                outlet.push([i; 16]);
                if i % TURN as u64 == 0 {
                    outlet.flush();
                }
                while outlet.is_clogged() {
                    thread::yield_now();
                    outlet.flush();
                }
            }
            outlet.flush();
            taker.join().expect("it only takes");
            began.elapsed()
        });
    });
    group.finish();
}

criterion_group!(benches, one_thread, two_threads);
criterion_main!(benches);
