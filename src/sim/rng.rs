//! The one source of chance in a simulation.

use std::time::Duration;

/// A seeded generator (SplitMix64): small, fast, the same on every platform. Not for secrets.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose whole output follows from `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    /// A generator for one purpose, independent of how much the others draw: the same seed and name give the same
    /// stream.
    pub fn stream(seed: u64, name: u64) -> Rng {
        let mut mix = Rng::new(seed);
        mix.0 = mix.0.wrapping_add(name.wrapping_mul(0xd134_2543_de82_ef95));
        Rng(mix.next_u64())
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`. Panics if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing lies below 0");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// An index into something of that length.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True in `permille` of 1,000 cases.
    pub fn chance(&mut self, permille: u32) -> bool {
        permille > 0 && self.below(1_000) < u64::from(permille)
    }

    /// A duration in `0..=max`.
    pub fn up_to(&mut self, max: Duration) -> Duration {
        Duration::from_nanos(self.between(0, max.as_nanos() as u64))
    }

    /// One of `items`. Panics if there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_follows_from_seed_and_name() {
        let draw = |mut rng: Rng| (0..8).map(|_| rng.next_u64()).collect::<Vec<_>>();
        assert_eq!(draw(Rng::stream(7, 1)), draw(Rng::stream(7, 1)));
        assert_ne!(draw(Rng::stream(7, 1)), draw(Rng::stream(7, 2)));
        assert_ne!(draw(Rng::stream(7, 1)), draw(Rng::stream(8, 1)));
    }

    #[test]
    fn draws_stay_in_range_and_reach_its_ends() {
        let mut rng = Rng::new(1);
        let drawn: Vec<u64> = (0..1_000).map(|_| rng.between(3, 6)).collect();
        assert!(drawn.iter().all(|v| (3..=6).contains(v)));
        assert!((3..=6).all(|v| drawn.contains(&v)));
        let hits = (0..10_000).filter(|_| rng.chance(100)).count();
        assert!((800..1_200).contains(&hits), "{hits} of 10,000 at 10 %");
        assert!(!rng.chance(0));
    }
}
