//! Replicas that fall out of every log catch up by fetching the state (P38, P39), under load and loss.

mod sim_harness;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use castra::sim::{Config, Fault, Keys, Simulation, Tally, TallyModel};
use castra::types::{ClusterSize, ReplicaId};
use sim_harness::sweep;

/// Plays `seeds`; in how many somebody fetched a state.
fn all(test: &str, seeds: u64, config: &Config) -> u64 {
    let keys = Keys::new(config.size, config.clients, config.auth);
    let transfers = AtomicU64::new(0);
    sweep(test, 0..seeds, &[], |seed| {
        let report = Simulation::with_keys(seed, config.clone(), &keys, || Tally, Tally::workload(0, 100))
            .model(TallyModel::default())
            .run()?;
        assert_eq!(report.operations, config.clients * config.operations as usize, "everything completes");
        transfers.fetch_add(u64::from(report.transfers > 0), Ordering::Relaxed);
        Ok(report)
    });
    transfers.into_inner()
}

/// Many windows pass within a few hundred milliseconds.
fn short_windows(config: Config) -> Config {
    Config { checkpoint_interval: 2, log_window: 4, operations: 120, clients: 4, ..config }
}

fn pause(config: &mut Config, replica: u8, at: u64, millis: u64) {
    let fault = Fault::Pause(ReplicaId(replica), Duration::from_millis(millis));
    config.faults.push((Duration::from_millis(at), fault));
}

#[test]
fn p38_p39_a_paused_backup_catches_up_on_a_calm_network() {
    let mut config = short_windows(Config::calm());
    // What came meanwhile is lost, as in a full socket buffer.
    config.world.inbox_max = 4 << 10;
    pause(&mut config, 2, 5, 30);
    assert!(all("p38_p39_a_paused_backup_catches_up_on_a_calm_network", 40, &config) >= 38);
}

#[test]
fn p38_p39_paused_backups_catch_up_under_loss() {
    let mut config = short_windows(Config::lossy());
    config.world.inbox_max = 16 << 10;
    for (replica, at) in [(1, 60), (2, 500), (3, 900), (1, 1_200)] {
        pause(&mut config, replica, at, 350);
    }
    assert!(all("p38_p39_paused_backups_catch_up_under_loss", 60, &config) > 40);
}

#[test]
fn p38_p39_two_of_seven_catch_up_together() {
    let mut config = short_windows(Config::lossy());
    config.size = ClusterSize::tolerating(2).unwrap();
    config.world.inbox_max = 16 << 10;
    for (replica, at) in [(5, 60), (6, 80), (4, 700)] {
        pause(&mut config, replica, at, 400);
    }
    assert!(all("p38_p39_two_of_seven_catch_up_together", 20, &config) > 10);
}
