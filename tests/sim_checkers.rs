//! What is wrong must be found: services and clusters with a known fault, and what the simulator says of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use castra::execution::{Context, NotReadOnly, ReplyBuffer, Service};
use castra::sim::{Ask, Config, Fault, Liar, Rng, Simulation, Tally, TallyModel, Wrong};
use castra::state::Region;
use castra::types::ReplicaId;

fn tokens(client: usize, index: u64, _rng: &mut Rng) -> Ask {
    Ask::ordered((client as u64 * 1_000 + index).to_le_bytes().to_vec())
}

/// A tally with a memory of its own: the tenth operation that an instance executes is counted twice in one of them.
struct Forgets {
    instance: u64,
    executed: AtomicU64,
}

static INSTANCES: AtomicU64 = AtomicU64::new(0);

impl Service for Forgets {
    fn genesis(&self, state: &mut Region) {
        Tally.genesis(state);
    }

    fn execute(&self, cx: &mut Context<'_>, op: &[u8], state: &mut Region, reply: &mut ReplyBuffer) {
        if self.executed.fetch_add(1, Ordering::Relaxed) == 9 && self.instance == 2 {
            Tally.execute(cx, op, state, &mut ReplyBuffer::new());
        }
        Tally.execute(cx, op, state, reply);
    }
}

#[test]
fn hidden_state_is_named_by_the_first_operation_that_shows_it() {
    let service = || Forgets { instance: INSTANCES.fetch_add(1, Ordering::Relaxed), executed: AtomicU64::new(0) };
    let config = Config { watch: true, clients: 1, window: 1, ..Config::calm() };
    let failure = Simulation::new(1, config, service, tokens).run().unwrap_err();
    let Wrong::Difference(difference) = &failure.wrong else { panic!("{failure}") };
    assert_eq!(difference.op, 9u64.to_le_bytes(), "{failure}");
    assert!(difference.replicas.0 == ReplicaId(2) || difference.replicas.1 == ReplicaId(2), "{failure}");
    assert!(failure.to_string().contains("the service is not deterministic"), "{failure}");
}

#[test]
fn p23_hidden_state_shows_at_the_next_checkpoint_at_the_latest() {
    struct Slow(Forgets);
    impl Service for Slow {
        fn genesis(&self, state: &mut Region) {
            self.0.genesis(state);
        }
        fn execute(&self, cx: &mut Context<'_>, op: &[u8], state: &mut Region, reply: &mut ReplyBuffer) {
            self.0.execute(cx, op, state, reply);
        }
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let service = || {
        let instance = NEXT.fetch_add(1, Ordering::Relaxed);
        Slow(Forgets { instance, executed: AtomicU64::new(0) })
    };
    let config = Config { watch: false, clients: 1, window: 1, ..Config::calm() };
    let failure = Simulation::new(1, config, service, tokens).run().unwrap_err();
    assert!(matches!(failure.wrong, Wrong::Disagreement(_)), "{failure}");
}

/// Answers queries from its birth.
struct Stale;

impl Service for Stale {
    fn genesis(&self, state: &mut Region) {
        Tally.genesis(state);
    }

    fn execute(&self, cx: &mut Context<'_>, op: &[u8], state: &mut Region, reply: &mut ReplyBuffer) {
        Tally.execute(cx, op, state, reply);
    }

    fn query(&self, _: &Context<'_>, _: &[u8], _: &Region, reply: &mut ReplyBuffer) -> Result<(), NotReadOnly> {
        reply.push(&[0; 24]);
        Ok(())
    }
}

#[test]
fn p06_stale_reads_are_not_linearizable() {
    let config = Config { clients: 1, window: 1, ..Config::calm() };
    let simulation = Simulation::new(1, config, || Stale, Tally::workload(0, 300)).model(TallyModel::default());
    let failure = simulation.run().unwrap_err();
    let Wrong::NotLinearizable { violation, .. } = &failure.wrong else { panic!("{failure}") };
    assert!(matches!(violation, castra::sim::linearizability::Violation::NoPlace { .. }), "{failure}");
}

struct Panics;

impl Service for Panics {
    fn execute(&self, _: &mut Context<'_>, op: &[u8], _: &mut Region, _: &mut ReplyBuffer) {
        assert!(op[0] < 7, "no sevens");
    }
}

#[test]
fn a_service_that_panics_stops_its_replica_and_is_named() {
    let config = Config { clients: 1, ..Config::calm() };
    let failure = Simulation::new(1, config, || Panics, tokens).run().unwrap_err();
    let Wrong::Stopped(_, why) = &failure.wrong else { panic!("{failure}") };
    assert!(why.contains("no sevens"), "{failure}");
}

#[test]
fn too_many_silent_replicas_are_a_standstill_with_a_full_report() {
    // Before anybody leaves the view.
    let mut config = Config { complete_within: Duration::from_millis(60), ..Config::calm() };
    config.faults.push((Duration::from_millis(1), Fault::Silence(ReplicaId(2))));
    config.faults.push((Duration::from_millis(1), Fault::Silence(ReplicaId(3))));
    let failure = Simulation::new(42, config, || Tally, tokens).run().unwrap_err();
    assert!(matches!(failure.wrong, Wrong::Stuck { .. }), "{failure}");
    let text = failure.to_string();
    for part in ["seed 42", "c0: ", "r0: v0", "Silence(ReplicaId(2))", "pre-prepare v0 n", "CASTRA_SIM_SEED=42"] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
}

/// Two of four with twins: more than f. Each of the two halves is a quorum, and commits what it likes.
#[test]
fn p50_more_than_f_liars_break_agreement_and_it_is_found() {
    let twins = |id| Liar { replica: ReplicaId(id), lies: Vec::new(), permille: 0, twin: true };
    let set = |ids: &[u8]| ids.iter().copied().map(ReplicaId).collect();
    let mut config = Config { liars: vec![twins(0), twins(1)], ..Config::calm() };
    config.faults.push((Duration::ZERO, Fault::Divide(ReplicaId(0), set(&[1, 2]))));
    config.faults.push((Duration::ZERO, Fault::Divide(ReplicaId(1), set(&[0, 2]))));
    let failure = Simulation::new(1, config, || Tally, tokens).run().unwrap_err();
    let Wrong::Disagreement(disagreement) = &failure.wrong else { panic!("{failure}") };
    let between = [disagreement.first.0, disagreement.second.0];
    assert!(between.contains(&ReplicaId(2)) && between.contains(&ReplicaId(3)), "{failure}");
}
