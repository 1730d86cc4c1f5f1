//! Crashes with memory lost, partitions of every shape, and clocks that jump: everything completes, nothing wrong is
//! done (P14, P19, P42, P50, P51).

mod sim_harness;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use castra::sim::{Config, Fault, Goal, Keys, Simulation, Tally, TallyModel};
use castra::types::{ClusterSize, ReplicaId, ReplicaSet};
use sim_harness::sweep;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn set(ids: &[u8]) -> ReplicaSet {
    ids.iter().copied().map(ReplicaId).collect()
}

/// Plays `seeds` of one configuration; how many restarts and view changes there were.
fn all(test: &str, seeds: u64, config: &Config) -> (u64, u64) {
    let keys = Keys::new(config.size, config.clients, config.auth);
    let (restarts, view_changes) = (AtomicU64::new(0), AtomicU64::new(0));
    sweep(test, 0..seeds, &[], |seed| {
        let report = Simulation::with_keys(seed, config.clone(), &keys, || Tally, Tally::workload(0, 250))
            .model(TallyModel::default())
            .run()?;
        if config.goal == Goal::Liveness {
            assert_eq!(report.operations, config.clients * config.operations as usize, "everything completes");
        }
        restarts.fetch_add(report.restarts, Ordering::Relaxed);
        view_changes.fetch_add(report.view_changes, Ordering::Relaxed);
        Ok(report)
    });
    (restarts.into_inner(), view_changes.into_inner())
}

fn busy(faults: Vec<(Duration, Fault)>) -> Config {
    Config { faults, operations: 60, think: ms(15), ..Config::lossy() }
}

#[test]
fn p42_a_backup_starts_again_with_its_memory_lost() {
    let config = busy(vec![(ms(100), Fault::Restart(ReplicaId(2), ms(80)))]);
    assert_eq!(all("p42_a_backup_starts_again", 40, &config).0, 40);
}

#[test]
fn p42_the_primary_starts_again_with_its_memory_lost() {
    let config = busy(vec![(ms(100), Fault::Restart(ReplicaId(0), ms(80)))]);
    let (restarts, view_changes) = all("p42_the_primary_starts_again", 40, &config);
    assert!(restarts == 40 && view_changes >= 120, "{restarts} restarts, {view_changes} view changes");
}

/// All four, the primary among them, each as soon as the one before has recovered (P50).
#[test]
fn p42_replicas_start_again_one_after_the_other() {
    let restarts = (0..6).map(|i| (ms(100 + 30 * i), Fault::Restart(ReplicaId((i % 4) as u8), ms(20 * i))));
    let config = Config { operations: 120, think: ms(30), faults_within: ms(60_000), ..busy(restarts.collect()) };
    let (restarts, _) = all("p42_replicas_start_again_one_after_the_other", 20, &config);
    assert!(restarts >= 60, "{restarts} restarts");
}

/// Who is silent counts as one of the f: there is no room for a restart, and none happens (P50).
#[test]
fn p50_a_restart_waits_for_room_in_the_fault_budget() {
    let faults = vec![(ms(50), Fault::Silence(ReplicaId(3))), (ms(100), Fault::Restart(ReplicaId(1), ms(50)))];
    assert_eq!(all("p50_a_restart_waits_for_room", 10, &busy(faults.clone())).0, 0);
    let config = Config { size: ClusterSize::tolerating(2).unwrap(), ..busy(faults) };
    assert_eq!(all("p50_a_restart_waits_for_room", 10, &config).0, 10);
}

#[test]
fn p51_two_sets_that_do_not_hear_each_other() {
    for (side, others) in [(set(&[0]), set(&[1, 2])), (set(&[0, 1]), set(&[1, 2])), (set(&[3]), set(&[0, 3]))] {
        let faults = vec![
            (ms(60), Fault::Partition(side)),
            (ms(400), Fault::Mend),
            (ms(450), Fault::Partition(others)),
            (ms(800), Fault::Mend),
        ];
        all("p51_two_sets", 20, &busy(faults));
    }
}

#[test]
fn p30_one_way_partitions() {
    for side in [set(&[0]), set(&[2]), set(&[0, 1]), set(&[1, 2, 3])] {
        all("p30_one_way", 20, &busy(vec![(ms(60), Fault::Mute(side)), (ms(600), Fault::Mend)]));
    }
}

#[test]
fn p38_replicas_cut_off_from_everybody_in_turn() {
    let faults = (0..4).flat_map(|i| {
        let from = 100 + 400 * u64::from(i);
        [(ms(from), Fault::Isolate(ReplicaId(i))), (ms(from + 250), Fault::Mend)]
    });
    all("p38_replicas_cut_off", 30, &busy(faults.collect()));
}

#[test]
fn p19_clocks_jump_and_drift() {
    let faults = vec![
        (ms(50), Fault::Step(ReplicaId(0), ms(3_000))),
        (ms(300), Fault::Drift(ReplicaId(1), -20_000)),
        (ms(500), Fault::Step(ReplicaId(2), ms(20))),
        (ms(700), Fault::Drift(ReplicaId(3), 50_000)),
        (ms(900), Fault::Step(ReplicaId(1), ms(600_000))),
    ];
    all("p19_clocks_jump", 30, &busy(faults));
}

/// Nothing has to complete, and nothing wrong may be done: half of the replicas never hear the other half again.
#[test]
fn safety_under_a_partition_that_never_heals() {
    let faults = vec![
        (ms(40), Fault::Partition(set(&[0, 3]))),
        (ms(400), Fault::Mend),
        (ms(500), Fault::Partition(set(&[1, 3]))),
    ];
    let config = Config { goal: Goal::Safety, events: 4_000, ..busy(faults) };
    all("safety_under_a_partition", 30, &config);
}
