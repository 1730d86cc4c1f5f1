//! One replica that lies in one way, at f = 1, as a backup and as the primary; f of them at f = 2. Everything completes,
//! linearizable, and no correct replica is caught at anything (P5, P12, P14, P32, P35, P38, P45, P51).

mod sim_harness;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use castra::sim::{Config, Fault, Keys, Liar, Lie, Simulation, Tally, TallyModel};
use castra::types::{ClusterSize, ReplicaId, ReplicaSet};
use sim_harness::sweep;

/// What the liars were caught at, by name.
type Caught = BTreeMap<&'static str, u64>;

fn all(test: &str, seeds: u64, config: impl Fn(u64) -> Config + Sync) -> Caught {
    let caught: Mutex<Caught> = Mutex::default();
    let first = config(0);
    let keys = Keys::new(first.size, first.clients, first.auth);
    sweep(test, 0..seeds, &[], |seed| {
        let config = config(seed);
        let operations = config.clients * config.operations as usize;
        let report = Simulation::with_keys(seed, config, &keys, || Tally, Tally::workload(0, 250))
            .model(TallyModel::default())
            .run()?;
        assert_eq!(report.operations, operations, "everything completes");
        for (name, count) in &report.caught {
            *caught.lock().unwrap().entry(name).or_default() += count;
        }
        Ok(report)
    });
    let caught = caught.into_inner().unwrap();
    eprintln!("{test}: caught at {caught:?}");
    caught
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// As the primary and as a backup, with a pause of the primary that makes a view change; rarely and always. Every lie
/// that shows by itself is caught by its name.
fn one(lie: Lie, names: &[&str]) {
    let caught = all(&format!("{lie:?}"), 24, |seed| {
        let replica = ReplicaId((seed % 4) as u8);
        let permille = [30, 300, 1_000][(seed / 4 % 3) as usize];
        let liars = vec![Liar { replica, lies: vec![lie], permille, twin: false }];
        let faults = vec![(ms(150), Fault::Pause(ReplicaId(0), ms(300))), (ms(700), Fault::Calm)];
        Config { liars, faults, operations: 40, think: ms(15), ..Config::lossy() }
    });
    assert!(names.iter().all(|name| caught.contains_key(name)), "{lie:?} is caught at {names:?}: {caught:?}");
}

macro_rules! lies {
    ($($name:ident: $lie:ident $names:expr),* $(,)?) => {$(
        #[test]
        fn $name() {
            one(Lie::$lie, &$names);
        }
    )*};
}

lies! {
    p35_an_equivocating_primary: Equivocate [],
    p14_contradictory_votes: Votes ["contradictory_vote", "contradictory_committed"],
    p45_lying_view_changes: ViewChanges ["bad_view_change", "contradictory_view_change"],
    p33_lying_new_views: NewViews ["bad_new_view"],
    p24_wrong_checkpoints: Checkpoints ["contradictory_checkpoint", "odd_checkpoint"],
    p38_wrong_pages: States [],
    p05_wrong_replies: Replies [],
    p37_lying_status: Status ["absurd_status"],
    p51_selective_silence: Hush [],
    p26_slowness: Slow [],
    p12_proofs_for_some_only: Garble [],
    p40_replays: Replay ["not_entitled"],
    p44_every_field_changed: Mutate ["equivocation", "contradictory_vote", "odd_checkpoint"],
}

#[test]
fn all_lies_together() {
    all("all_lies_together", 30, |seed| {
        let lies = |replica| Liar { replica, lies: Lie::ALL.to_vec(), permille: 200, twin: false };
        let size = ClusterSize::tolerating(2).unwrap();
        let liars = vec![lies(ReplicaId((seed % 7) as u8)), lies(ReplicaId(((seed + 1 + seed / 7) % 7) as u8))];
        Config { size, liars, operations: 30, think: ms(10), ..Config::lossy() }
    });
}

/// Two honest replicas with one identity, each talking with a part of the others.
#[test]
fn p14_twins() {
    all("p14_twins", 30, |seed| {
        let replica = ReplicaId((seed % 4) as u8);
        let liars = vec![Liar { replica, lies: Vec::new(), permille: 0, twin: true }];
        let side: ReplicaSet = ReplicaSet::from_bits(1 + seed % 14);
        let faults = vec![
            (ms(10), Fault::Divide(replica, side)),
            (ms(300), Fault::Mend),
            (ms(500), Fault::Divide(replica, ReplicaSet::from_bits(side.bits() >> 1))),
            (ms(900), Fault::Mend),
        ];
        Config { liars, faults, operations: 40, think: ms(20), ..Config::lossy() }
    });
}

/// A replica that was cut off fetches the state from peers of whom one sends wrong parts, and names it.
#[test]
fn p38_a_transfer_with_a_liar_among_the_peers() {
    let caught = all("p38_a_transfer_with_a_liar", 30, |seed| {
        let liars = vec![Liar { replica: ReplicaId(1), lies: vec![Lie::States], permille: 700, twin: false }];
        let mut config =
            Config { checkpoint_interval: 2, log_window: 4, operations: 120, clients: 4, ..Config::lossy() };
        config.world.inbox_max = 16 << 10;
        config.faults = vec![(ms(60 + seed), Fault::Pause(ReplicaId(2), ms(350)))];
        Config { liars, ..config }
    });
    assert!(["wrong_page", "wrong_state_header"].iter().any(|name| caught.contains_key(name)), "{caught:?}");
}

/// P53: that one of the preferred is silent, or lies to clients, costs no more than where all four answer at once, but for
/// the few operations that show it. In virtual time.
#[test]
fn p53_the_reserve_answers_when_the_preferred_do_not() {
    let took = |reserve_delay: Duration, liar: Option<u8>, silent: Option<u8>| {
        let liars =
            liar.map(|id| Liar { replica: ReplicaId(id), lies: vec![Lie::Replies], permille: 500, twin: false });
        let faults = silent.map(|id| (Duration::ZERO, Fault::Silence(ReplicaId(id))));
        let config = Config {
            clients: 1,
            window: 1,
            operations: 2_000,
            reserve_delay,
            liars: liars.into_iter().collect(),
            faults: faults.into_iter().collect(),
            ..Config::calm()
        };
        let keys = Keys::new(config.size, config.clients, config.auth);
        let simulation = Simulation::with_keys(1, config, &keys, || Tally, Tally::workload(0, 0));
        simulation.model(TallyModel::default()).run().unwrap_or_else(|failure| panic!("{failure}")).took
    };
    for (liar, silent) in
        [(None, None), (Some(0), None), (Some(1), None), (Some(2), None), (None, Some(1)), (None, Some(2))]
    {
        let (at_once, with_reserve) = (took(Duration::ZERO, liar, silent), took(ms(1), liar, silent));
        eprintln!("liar {liar:?}, silent {silent:?}: {at_once:?} at once, {with_reserve:?} with a reserve");
        assert!(with_reserve < at_once * 5 / 4, "liar {liar:?}, silent {silent:?}: {with_reserve:?}, not {at_once:?}");
    }
}

/// P54: who lies about what it has of large requests, and what may leave, delays them by little. In virtual time.
#[test]
fn p54_receipts_that_lie_cost_little() {
    let took = |liar: Option<u8>| {
        let liars =
            liar.map(|id| Liar { replica: ReplicaId(id), lies: vec![Lie::Receipts], permille: 1_000, twin: false });
        let mut config =
            Config { clients: 4, window: 1, operations: 10, liars: liars.into_iter().collect(), ..Config::calm() };
        config.world.link.mtu = 9_000;
        let keys = Keys::new(config.size, config.clients, config.auth);
        let simulation = Simulation::with_keys(1, config, &keys, || Tally, Tally::workload(1_000_000, 0));
        let report = simulation.model(TallyModel::default()).run().unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(report.operations, 40);
        report.took
    };
    let honest = took(None);
    for liar in 0..4 {
        let with_liar = took(Some(liar));
        eprintln!("liar {liar}: {with_liar:?}, without one {honest:?}");
        assert!(with_liar < honest * 3 / 2, "liar {liar}: {with_liar:?}, not {honest:?}");
    }
}
