//! Latencies, and what one says of them.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Many latencies, to three significant digits from 1 µs to an hour: below 1 ms they are exact to the microsecond.
#[derive(Clone, Debug)]
pub struct Latencies {
    nanos: Histogram<u64>,
}

/// Quantiles, in microseconds. All zero if there was nothing.
#[derive(Clone, Copy, PartialEq, Debug, Default, serde::Serialize)]
pub struct LatencyMicros {
    /// The median.
    pub p50: f64,
    /// One in a hundred is longer.
    pub p99: f64,
    /// One in a thousand is longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Latencies {
    const MAX_NANOS: u64 = 3_600_000_000_000;

    /// None yet.
    pub fn new() -> Latencies {
        let nanos = Histogram::new_with_bounds(100, Self::MAX_NANOS, 3).expect("bounds that the library takes");
        Latencies { nanos }
    }

    /// One more.
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.saturating_record(nanos.min(Self::MAX_NANOS));
    }

    /// All of another's.
    pub fn add(&mut self, other: &Latencies) {
        self.nanos.add(&other.nanos).expect("all have the same bounds");
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.nanos.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nanos.is_empty()
    }

    /// What one says of them.
    pub fn micros(&self) -> LatencyMicros {
        if self.is_empty() {
            return LatencyMicros::default();
        }
        let micros = |nanos: u64| (nanos as f64 / 100.0).round() / 10.0;
        let at = |q| micros(self.nanos.value_at_quantile(q));
        LatencyMicros { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: micros(self.nanos.max()) }
    }
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut odd = Latencies::new();
        let mut even = Latencies::new();
        for micros in 1..=1_000 {
            let half = if micros % 2 == 0 { &mut even } else { &mut odd };
            half.record(Duration::from_micros(micros));
        }
        odd.add(&even);
        assert_eq!(odd.len(), 1_000);
        let LatencyMicros { p50, p99, p999, max } = odd.micros();
        for (seen, wanted) in [(p50, 500.0), (p99, 990.0), (p999, 999.0), (max, 1_000.0)] {
            assert!((seen - wanted).abs() <= wanted / 1_000.0 + 0.1, "{seen} for {wanted}");
        }
    }

    #[test]
    fn nothing_is_zero_and_the_endless_is_an_hour() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.micros(), LatencyMicros::default());
        latencies.record(Duration::MAX);
        assert!(latencies.micros().max > 3.5e9);
    }
}
