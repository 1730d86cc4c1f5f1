//! Whole clusters whose primaries die, stop or are cut off: the others change views, and everything completes, exactly
//! once, linearizable (P17, P26-P34, P37, P51).

mod sim_harness;

use std::time::Duration;

use castra::sim::{Config, Failure, Fault, Keys, Report, Simulation, Tally, TallyModel};
use castra::types::{ClusterSize, ReplicaId};
use sim_harness::sweep;

fn play(seed: u64, config: Config, keys: &Keys) -> Result<Report, Box<Failure>> {
    let operations = config.clients * config.operations as usize;
    let report = Simulation::with_keys(seed, config, keys, || Tally, Tally::workload(0, 250))
        .model(TallyModel::default())
        .run()?;
    assert_eq!(report.operations, operations, "everything completes");
    Ok(report)
}

fn all(test: &str, seeds: u64, config: impl Fn(u64) -> Config + Sync) {
    let first = config(0);
    let keys = Keys::new(first.size, 4, first.auth);
    sweep(test, 0..seeds, &[], |seed| play(seed, config(seed), &keys));
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn p26_the_primary_dies_on_a_calm_network() {
    let faults = vec![(ms(3), Fault::Silence(ReplicaId(0)))];
    all("p26_the_primary_dies_on_a_calm_network", 30, |_| Config {
        faults: faults.clone(),
        operations: 100,
        think: ms(1),
        ..Config::calm()
    });
}

#[test]
fn p28_the_primary_dies_on_a_lossy_network() {
    let faults = vec![(ms(120), Fault::Silence(ReplicaId(0)))];
    all("p28_the_primary_dies_on_a_lossy_network", 100, |_| Config { faults: faults.clone(), ..Config::lossy() });
}

#[test]
fn p29_two_primaries_die_one_after_the_other() {
    let faults = vec![(ms(100), Fault::Silence(ReplicaId(0))), (ms(300), Fault::Silence(ReplicaId(1)))];
    all("p29_two_primaries_die_one_after_the_other", 40, |_| Config {
        size: ClusterSize::tolerating(2).unwrap(),
        faults: faults.clone(),
        ..Config::lossy()
    });
}

#[test]
fn p29_two_primaries_in_a_row_are_dead() {
    let faults = vec![(ms(100), Fault::Silence(ReplicaId(0))), (ms(100), Fault::Silence(ReplicaId(1)))];
    all("p29_two_primaries_in_a_row_are_dead", 40, |_| Config {
        size: ClusterSize::tolerating(2).unwrap(),
        faults: faults.clone(),
        ..Config::lossy()
    });
}

#[test]
fn p30_the_primary_stops_for_a_while_and_comes_back_into_another_view() {
    let pause = Fault::Pause(ReplicaId(0), ms(700));
    let faults = vec![(ms(80), pause), (ms(1_200), Fault::Pause(ReplicaId(1), ms(500)))];
    all("p30_the_primary_stops_for_a_while", 60, |_| Config {
        faults: faults.clone(),
        operations: 60,
        think: ms(20),
        ..Config::lossy()
    });
}

#[test]
fn p34_the_primary_is_cut_off_and_mended() {
    let cut =
        |to| [(ms(60), Fault::Cut(ReplicaId(0), ReplicaId(to))), (ms(60), Fault::Cut(ReplicaId(to), ReplicaId(0)))];
    let mut faults: Vec<_> = [1, 2, 3].into_iter().flat_map(cut).collect();
    faults.push((ms(900), Fault::Mend));
    all("p34_the_primary_is_cut_off_and_mended", 60, |_| Config {
        faults: faults.clone(),
        operations: 60,
        think: ms(10),
        ..Config::lossy()
    });
}

/// Every seed has its own sizes, faults and delays, and its primary dies at some time.
#[test]
fn swarm_with_a_dead_primary() {
    all("swarm_with_a_dead_primary", 300, |seed| {
        let mut config = Config::swarm(seed);
        config.faults.push((ms(1 + seed * 7 % 400), Fault::Silence(ReplicaId(0))));
        config
    });
}
