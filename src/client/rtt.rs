//! When to send again (P2).

use std::time::Duration;

/// Round-trip estimator: RTO = max(25 ms, srtt + 4 rttvar), 60 ms without samples, doubling to 500 ms, +-20 %.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rtt {
    smoothed: Option<(Duration, Duration)>,
    /// Sends that the last answered request took beyond one: until one is answered that was sent once, no timeout is
    /// shorter than that request's last. (Else a round trip beyond the timeout is never sampled, and all is sent twice.)
    backoff: u32,
}

impl Rtt {
    /// The middle of the jitter.
    pub(crate) const NO_JITTER: u64 = 200;
    const FIRST: Duration = Duration::from_millis(60);
    const MIN: Duration = Duration::from_millis(25);
    const MAX: Duration = Duration::from_millis(500);
    const HEDGE_FIRST: Duration = Duration::from_millis(5);
    const HEDGE_MIN: Duration = Duration::from_millis(1);

    /// Takes the round trip of a request that was sent once (Karn: others are ambiguous).
    pub(crate) fn sample(&mut self, rtt: Duration) {
        self.backoff = 0;
        self.smoothed = Some(match self.smoothed {
            None => (rtt, rtt / 2),
            Some((srtt, var)) => ((srtt * 7 + rtt) / 8, (var * 3 + srtt.abs_diff(rtt)) / 4),
        });
    }

    /// A request was answered that had to be sent again so often: which send it was that was answered, nobody knows.
    pub(crate) fn ambiguous(&mut self, retransmissions: u32) {
        self.backoff = retransmissions;
    }

    /// The smoothed round trip, if there are samples.
    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.smoothed.map(|(srtt, _)| srtt)
    }

    /// How long the replicas that a query went to may take before the others are asked too (P6): max(1 ms, srtt + 4
    /// rttvar), at most 25 ms, 5 ms without samples. Sooner than a timeout, for all that it costs is a datagram or two.
    pub(crate) fn hedge(&self) -> Duration {
        let base = self.smoothed.map_or(Self::HEDGE_FIRST, |(srtt, var)| srtt + 4 * var);
        base.clamp(Self::HEDGE_MIN, Self::MIN)
    }

    /// The timeout after `retransmissions` vain sends more than one. `random` is uniform.
    pub(crate) fn timeout(&self, retransmissions: u32, random: u64) -> Duration {
        let base = self.smoothed.map_or(Self::FIRST, |(srtt, var)| srtt + 4 * var);
        let doubled = base.max(Self::MIN).saturating_mul(1 << retransmissions.max(self.backoff).min(8)).min(Self::MAX);
        doubled * (800 + (random % 401) as u32) / 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Random value 200 is the middle: no jitter.
    #[test]
    fn p02_rto_is_60ms_without_samples_then_follows_them_and_doubles_to_500ms() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.timeout(0, 200), ms(60));
        assert_eq!(rtt.timeout(1, 200), ms(120));
        assert_eq!(rtt.timeout(4, 200), ms(500));
        assert_eq!(rtt.timeout(u32::MAX, 200), ms(500));
        rtt.sample(ms(1));
        assert_eq!(rtt.timeout(0, 200), ms(25), "never below 25 ms");
        for _ in 0..200 {
            rtt.sample(ms(100));
        }
        let settled = rtt.timeout(0, 200);
        assert!(settled >= ms(99) && settled < ms(110), "{settled:?}");
    }

    #[test]
    fn p02_a_round_trip_above_the_timeout_is_sampled_in_the_end() {
        let mut rtt = Rtt::default();
        rtt.ambiguous(2);
        assert_eq!([0, 1, 2, 3].map(|again| rtt.timeout(again, 200)), [240, 240, 240, 480].map(ms));
        rtt.sample(ms(150));
        assert_eq!(rtt.timeout(0, 200), ms(450), "srtt + 4 rttvar");
    }

    #[test]
    fn p06_others_are_asked_after_the_usual_time_and_before_any_timeout() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.hedge(), ms(5));
        rtt.sample(Duration::from_micros(40));
        assert_eq!(rtt.hedge(), ms(1), "never below 1 ms");
        for _ in 0..200 {
            rtt.sample(ms(3));
        }
        assert!(rtt.hedge() >= ms(3) && rtt.hedge() < ms(4), "{:?}", rtt.hedge());
        rtt.sample(Duration::from_secs(1));
        assert_eq!(rtt.hedge(), ms(25));
    }

    #[test]
    fn p02_jitter_is_within_a_fifth() {
        let rtt = Rtt::default();
        assert_eq!((rtt.timeout(0, 0), rtt.timeout(0, 400)), (ms(48), ms(72)));
        for random in 0..2_000 {
            assert!((ms(48)..=ms(72)).contains(&rtt.timeout(0, random)));
        }
    }
}
