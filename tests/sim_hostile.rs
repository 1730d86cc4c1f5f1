//! Everything at once, drawn by the seed: networks, crashes, liars, within the fault budget (P50).

mod sim_harness;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use castra::auth::AuthMode;
use castra::sim::{Faults, Keys, hostile};
use castra::types::ClusterSize;
use sim_harness::sweep;

/// Protocol events of each seed, at least.
const EVENTS: u64 = 2_000;

fn keys(f: usize) -> Keys {
    Keys::new(ClusterSize::tolerating(f).unwrap(), 4, AuthMode::Mac)
}

fn all(test: &str, f: usize, faults: Faults, seeds: std::ops::Range<u64>, kept: &[u64]) {
    let keys = keys(f);
    sweep(test, seeds, kept, |seed| {
        let report = hostile(seed, &keys, faults, EVENTS).run()?;
        assert!(report.handled >= EVENTS, "seed {seed}: {} events", report.handled);
        Ok(report)
    });
}

/// Seeds that once failed under all faults at f = 1, and why.
const KEPT: &[u64] = &[
    // A replica that restarted twice within `recover_min` asked for the next view too early, and who could help it
    // took no second look at the same view-change.
    2623,
    // A liar's other words about checkpoints, or its checkpoints far ahead, kept a proof out that had its signature.
    2899,
    5322,
    // A replica that restarted four times asked for view 2 while it recovered, and nobody had told it of view 1.
    101481,
    // A primary that was cut off held what its client sent again and again, in other packs each time.
    205925,
    // A primary answered FETCH-PACK with a signature that only others had vouched for, out of another batch, and was
    // blamed for it.
    300936,
    // A status at the end of 64 bits: no number of a message was bounded but those of views and checkpoints.
    1795654578790068,
    // A new primary asked for a body that it had to have only the one liar that had vouched for it.
    1795663816261193,
    // A primary had left its view alone while nobody else waited for anything, and who recovered needed null batches.
    605901,
    // The run was cut where q replicas had answered reads from a batch that none had committed yet: judged too early.
    1795906803084323,
];
/// At f = 2.
const KEPT_OF_SEVEN: &[u64] = &[];

#[test]
fn hostile_network() {
    all("hostile_network", 1, Faults::NETWORK, 0..40, &[]);
}

#[test]
fn hostile_crashes() {
    all("hostile_crashes", 1, Faults::CRASH, 0..40, &[]);
}

#[test]
fn hostile_liars() {
    all("hostile_liars", 1, Faults::BYZANTINE, 0..80, &[]);
}

#[test]
fn hostile_everything() {
    all("hostile_everything", 1, Faults::ALL, 0..80, KEPT);
}

#[test]
fn hostile_seven_replicas() {
    all("hostile_seven_replicas", 2, Faults::ALL, 0..30, KEPT_OF_SEVEN);
}

/// Fresh seeds for `CASTRA_SIM_SECONDS` seconds, from the clock at the edge: every run of it sees other ones.
#[test]
fn hostile_fresh_seeds() {
    let Ok(seconds) = std::env::var("CASTRA_SIM_SECONDS") else { return };
    let seconds: u64 = seconds.parse().expect("CASTRA_SIM_SECONDS is a number of seconds");
    let until = Instant::now() + Duration::from_secs(seconds);
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    eprintln!("fresh seeds from {first} on, for {seconds} s");
    let mut from = first;
    while Instant::now() < until {
        all("hostile_everything", 1, Faults::ALL, from..from + 80, &[]);
        all("hostile_seven_replicas", 2, Faults::ALL, from..from + 16, &[]);
        from += 80;
    }
}

#[test]
fn a_hostile_seed_plays_the_same_schedule_twice() {
    let keys = keys(1);
    for seed in 0..6 {
        let play = || hostile(seed, &keys, Faults::ALL, EVENTS).run().unwrap_or_else(|f| panic!("{f}"));
        let (first, second) = (play(), play());
        assert_eq!((first.trace, first.events), (second.trace, second.events), "seed {seed}");
    }
}
