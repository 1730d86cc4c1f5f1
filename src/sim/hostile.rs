//! Hostile configurations: everything that may go wrong, drawn from the seed, within the fault budget (P50).

use std::time::Duration;

use super::config::{Config, Fault, Goal};
use super::keys::Keys;
use super::liar::{Liar, Lie};
use super::rng::Rng;
use super::simulation::Simulation;
use super::tally::{Tally, TallyModel};
use crate::types::{ClusterSize, ReplicaId, ReplicaSet};

/// Which kinds of faults may be drawn at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Faults {
    /// Loss, duplication, reordering, damage; partitions; pauses; clocks that jump or drift.
    pub network: bool,
    /// Replicas that stop for good, or start again without their memory.
    pub crash: bool,
    /// Replicas that lie.
    pub byzantine: bool,
}

impl Faults {
    /// Every kind.
    pub const ALL: Faults = Faults { network: true, crash: true, byzantine: true };
    /// The network and the hosts' clocks.
    pub const NETWORK: Faults = Faults { network: true, crash: false, byzantine: false };
    /// Crashes alone.
    pub const CRASH: Faults = Faults { network: false, crash: true, byzantine: false };
    /// Liars alone.
    pub const BYZANTINE: Faults = Faults { network: false, crash: false, byzantine: true };

    /// Of several kinds each seed has some; one alone is always there.
    fn draw(self, rng: &mut Rng) -> Faults {
        let alone = [self.network, self.crash, self.byzantine].iter().filter(|&&kind| kind).count() == 1;
        let mut keep = |kind: bool, permille| (rng.chance(permille) || alone) && kind;
        Faults { network: keep(self.network, 700), crash: keep(self.crash, 500), byzantine: keep(self.byzantine, 600) }
    }
}

/// A cluster of the [`Tally`] under hostile circumstances, which follow from the seed, of at least `events` protocol
/// events. `keys` are for four clients.
///
/// ```
/// use castra::auth::AuthMode;
/// use castra::sim::{Faults, Keys, hostile};
/// use castra::types::ClusterSize;
///
/// let keys = Keys::new(ClusterSize::tolerating(1).unwrap(), 4, AuthMode::Mac);
/// let report = hostile(7, &keys, Faults::ALL, 500).run().unwrap_or_else(|failure| panic!("{failure}"));
/// assert!(report.handled >= 500);
/// ```
pub fn hostile(seed: u64, keys: &Keys, faults: Faults, events: u64) -> Simulation<Tally> {
    let config = Config::hostile(seed, keys.size(), faults, events);
    let padding = *Rng::stream(seed, 0xbad0).pick(&[0, 0, 40, 700]);
    Simulation::with_keys(seed, config, keys, || Tally, Tally::workload(padding, 250)).model(TallyModel::default())
}

fn replica(rng: &mut Rng, size: ClusterSize) -> ReplicaId {
    ReplicaId(rng.below(size.n() as u64) as u8)
}

/// Some of the replicas, neither none nor all.
fn side(rng: &mut Rng, size: ClusterSize) -> ReplicaSet {
    loop {
        let set: ReplicaSet = size.replicas().filter(|_| rng.chance(500)).collect();
        if !set.is_empty() && set.len() < size.n() {
            return set;
        }
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Config {
    /// [`Config::swarm`], with everything of `faults` that the seed draws: at most f replicas are silent, lie or have
    /// lost their memory at any time. In three of four seeds the faults end and everything must complete; in the others
    /// they go on to the end.
    pub fn hostile(seed: u64, size: ClusterSize, faults: Faults, events: u64) -> Config {
        let mut rng = Rng::stream(seed, 0xfa17);
        let faults = faults.draw(&mut rng);
        let mut config = Config { size, events, ..Config::swarm(seed) };
        // How long faults happen.
        let span = ms(*rng.pick(&[200, 600, 2_000]));
        config.faults_within = span;
        if !faults.network {
            config.faults.clear();
            config.world.link = config.world.link.calm();
        }
        if span > ms(200) {
            config.think = config.think.max(span / rng.between(10, 150) as u32);
        }
        let room = size.f() - if faults.byzantine { config.draw_liars(&mut rng, span) } else { 0 };
        if faults.crash && room > 0 {
            config.draw_crashes(&mut rng, span, room);
        }
        if faults.network {
            config.draw_partitions(&mut rng, span);
            config.draw_clocks(&mut rng, span);
        }
        config.goal = if rng.chance(250) { Goal::Safety } else { Goal::Liveness };
        if config.goal == Goal::Liveness {
            config.faults.extend([(span, Fault::Mend), (span, Fault::Calm)]);
        }
        config
    }

    /// How many.
    fn draw_liars(&mut self, rng: &mut Rng, span: Duration) -> usize {
        let count = rng.between(1, self.size.f() as u64) as usize;
        while self.liars.len() < count {
            // The first primaries have most to lie about.
            let replica = if rng.chance(500) { ReplicaId(rng.below(2) as u8) } else { replica(rng, self.size) };
            if self.liars.iter().any(|liar| liar.replica == replica) {
                continue;
            }
            let twin = rng.chance(150);
            let lies = match rng.below(10) {
                0 => Lie::ALL.to_vec(),
                1 if twin => Vec::new(),
                _ => (0..rng.between(1, 4)).map(|_| *rng.pick(&Lie::ALL)).collect(),
            };
            let permille = *rng.pick(&[30, 200, 500, 1_000]);
            self.liars.push(Liar { replica, lies, permille, twin });
            for _ in 0..if twin { rng.between(0, 4) } else { 0 } {
                let at = rng.up_to(span);
                self.faults.push((at, Fault::Divide(replica, side(rng, self.size))));
                self.faults.push((at + rng.up_to(span / 3), Fault::Mend));
            }
        }
        count
    }

    fn draw_crashes(&mut self, rng: &mut Rng, span: Duration, room: usize) {
        let honest: Vec<ReplicaId> =
            self.size.replicas().filter(|id| !self.liars.iter().any(|liar| liar.replica == *id)).collect();
        let silent = if rng.chance(300) { rng.between(1, room as u64) as usize } else { 0 };
        let first = rng.index(honest.len());
        for i in 0..silent {
            self.faults.push((rng.up_to(span), Fault::Silence(honest[(first + i) % honest.len()])));
        }
        if silent < room {
            for _ in 0..rng.between(1, 6) {
                let most = *rng.pick(&[ms(1), ms(50), ms(300)]);
                let down = rng.up_to(most);
                self.faults.push((rng.up_to(span), Fault::Restart(*rng.pick(&honest), down)));
            }
        }
    }

    fn draw_partitions(&mut self, rng: &mut Rng, span: Duration) {
        for _ in 0..rng.below(5) {
            let at = rng.up_to(span);
            let fault = match rng.below(5) {
                0 => Fault::Partition(side(rng, self.size)),
                1 => Fault::Mute(side(rng, self.size)),
                2 => Fault::Isolate(replica(rng, self.size)),
                3 => Fault::Cut(replica(rng, self.size), replica(rng, self.size)),
                // The view may have begun for some of them only.
                _ => Fault::Partition([ReplicaId(0)].into_iter().collect()),
            };
            self.faults.push((at, fault));
            if rng.chance(800) {
                self.faults.push((at + rng.up_to(span / 3), Fault::Mend));
            }
        }
    }

    fn draw_clocks(&mut self, rng: &mut Rng, span: Duration) {
        for _ in 0..rng.below(4).saturating_sub(1) {
            let id = replica(rng, self.size);
            let fault = match rng.chance(500) {
                true => {
                    let most = *rng.pick(&[ms(5), ms(200), ms(5_000)]);
                    Fault::Step(id, rng.up_to(most))
                }
                false => Fault::Drift(id, rng.between(0, 40_000) as i32 - 20_000),
            };
            self.faults.push((rng.up_to(span), fault));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p50_no_more_than_f_are_silent_or_lie() {
        for (f, seed) in [1, 2].into_iter().flat_map(|f| (0..500).map(move |seed| (f, seed))) {
            let config = Config::hostile(seed, ClusterSize::tolerating(f).unwrap(), Faults::ALL, 100);
            let mut faulty: ReplicaSet = config.liars.iter().map(|liar| liar.replica).collect();
            assert_eq!(faulty.len(), config.liars.len(), "each lies once");
            for (_, fault) in &config.faults {
                if let Fault::Silence(id) = fault {
                    assert!(faulty.insert(*id), "liars are not silent");
                }
            }
            assert!(faulty.len() <= f, "{config:?}");
        }
    }

    #[test]
    fn every_kind_of_fault_is_drawn() {
        let f = ClusterSize::tolerating(2).unwrap();
        let all: Vec<Config> = (0..300).map(|seed| Config::hostile(seed, f, Faults::ALL, 100)).collect();
        let text = format!("{all:?}");
        for word in "Pause Silence Cut Partition Mute Isolate Divide Mend Calm Restart Step Drift Safety".split(' ') {
            assert!(text.contains(word), "{word} is never drawn");
        }
        let lies: Vec<Lie> = all.iter().flat_map(|config| &config.liars).flat_map(|liar| liar.lies.clone()).collect();
        assert!(Lie::ALL.iter().all(|lie| lies.contains(lie)));
        let network = Config::hostile(1, f, Faults::NETWORK, 100);
        assert!(network.liars.is_empty());
    }
}
