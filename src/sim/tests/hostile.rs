//! A few fixed seeds of the whole simulator, small enough for every mutant of the protocol: what breaks only when several
//! faults meet. The wide search is `tests/sim_hostile.rs`.

use std::ops::Range;

use crate::auth::AuthMode;
use crate::sim::{Faults, Keys, hostile};
use crate::types::ClusterSize;

fn play(f: usize, faults: Faults, seeds: impl IntoIterator<Item = u64>) {
    let keys = Keys::new(ClusterSize::tolerating(f).unwrap(), 4, AuthMode::Mac);
    for seed in seeds {
        if let Err(failure) = hostile(seed, &keys, faults, 1_000).run() {
            panic!("{failure}");
        }
    }
}

fn all_faults(seeds: Range<u64>) {
    play(1, Faults::ALL, seeds);
}

#[test]
fn everything_first() {
    all_faults(1_000..1_008);
}

#[test]
fn everything_second() {
    all_faults(1_008..1_016);
}

#[test]
fn crashes() {
    play(1, Faults::CRASH, 1_000..1_006);
}

#[test]
fn liars() {
    play(1, Faults::BYZANTINE, 1_000..1_008);
}

/// Seeds that failed once: of restarts within `recover_min`, of proofs kept out, of bodies that only a liar had.
#[test]
fn kept() {
    play(1, Faults::ALL, [2_623, 2_899, 5_322, 101_481, 300_936, 605_901]);
}

#[test]
fn seven_replicas() {
    play(2, Faults::ALL, 1_000..1_003);
}
