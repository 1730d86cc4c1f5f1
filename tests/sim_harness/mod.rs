//! Plays many seeds on all cores and says which failed.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use castra::sim::{Failure, Report};

/// Set to a seed, it makes every sweep play that seed alone: what a failure report asks for.
pub const SEED: &str = "CASTRA_SIM_SEED";
/// Set to `A..B`, it makes every sweep play those seeds in place of its own.
pub const SEEDS: &str = "CASTRA_SIM_SEEDS";

fn asked_for() -> Option<Range<u64>> {
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text} is not a seed"));
    if let Ok(seed) = std::env::var(SEED) {
        let seed = number(&seed);
        return Some(seed..seed + 1);
    }
    let range = std::env::var(SEEDS).ok()?;
    let (from, to) = range.split_once("..").unwrap_or_else(|| panic!("{SEEDS} is A..B"));
    Some(number(from)..number(to))
}

/// Plays `seeds` and the kept ones, one on each core at a time.
///
/// # Panics
/// If any fails, with the report of the lowest seed that did.
#[allow(clippy::disallowed_methods)] // A test may know how long it took.
pub fn sweep(test: &str, seeds: Range<u64>, kept: &[u64], play: impl Fn(u64) -> Result<Report, Box<Failure>> + Sync) {
    let seeds: Vec<u64> = match asked_for() {
        Some(asked) => asked.collect(),
        None => kept.iter().copied().chain(seeds).collect(),
    };
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let failures: Mutex<Vec<Box<Failure>>> = Mutex::default();
    let totals = Mutex::new((0usize, 0u64));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    match play(seed) {
                        Ok(report) => {
                            let mut totals = totals.lock().unwrap();
                            totals.0 += report.operations;
                            totals.1 += report.events;
                        }
                        Err(failure) => failures.lock().unwrap().push(failure),
                    }
                    if failures.lock().unwrap().len() >= 10 {
                        break;
                    }
                }
            });
        }
    });
    let (operations, events) = *totals.lock().unwrap();
    let took = began.elapsed().as_secs_f64();
    let played = seeds.len() as f64;
    eprintln!(
        "{test}: {played} seeds in {took:.1} s ({:.0} a minute), {operations} operations, {events} events",
        played / took * 60.0
    );
    let mut failures = failures.into_inner().unwrap();
    failures.sort_by_key(|f| f.seed);
    if let Some(first) = failures.first() {
        let others: Vec<u64> = failures.iter().map(|f| f.seed).skip(1).collect();
        let command = format!("{SEED}={} cargo test {test} -- --nocapture", first.seed);
        panic!("{first}\nplay it again: {command}\nseeds that failed too: {others:?}");
    }
}
