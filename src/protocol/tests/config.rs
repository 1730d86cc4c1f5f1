//! The bounds of a configuration, each at its edge.

use super::*;
use crate::limits;

/// Whether the default of a cluster of `n`, changed like this, is refused, and for what.
fn refused(n: usize, change: impl FnOnce(&mut Config)) -> Option<String> {
    let mut config = Config::new(ClusterSize::of(n).unwrap(), ReplicaId(0));
    change(&mut config);
    config.validate().err()
}

/// `field` may have the values of `good`, and none of `bad`; the refusal names it.
fn bounded<T: Copy + std::fmt::Debug>(field: &str, set: fn(&mut Config, T), good: &[T], bad: &[T]) {
    for &value in good {
        assert_eq!(refused(4, |config| set(config, value)), None, "{field} = {value:?}");
    }
    for &value in bad {
        let said = refused(4, |config| set(config, value));
        assert!(said.as_ref().is_some_and(|said| said.contains(field)), "{field} = {value:?}: {said:?}");
    }
}

#[test]
fn every_parameter_has_its_bounds() {
    let batch = Config::new(ClusterSize::of(4).unwrap(), ReplicaId(0)).batch_bytes_max;
    bounded("replica", |c, me| c.me = ReplicaId(me), &[0, 3], &[4]);
    let agree = [ClusterSize::of(4).unwrap(), ClusterSize::of(7).unwrap()];
    bounded("agree", |c, size| c.size = size, &agree, &[ClusterSize::UNREPLICATED]);
    bounded("checkpoint_interval", |c, k| c.checkpoint_interval = k, &[1, 256, 512], &[0, 300, 1_024, u64::MAX]);
    bounded("log_window", |c, l| c.log_window = l, &[512, 768], &[0, 256, 513, 640]);
    bounded("pipeline_max", |c, p| c.pipeline_max = p, &[1, 1_024], &[0, 1_025, u64::MAX]);
    let (least, most) = (limits::PACK_REQUESTS_MAX, limits::BATCH_REQUESTS_MAX);
    bounded("batch_requests_max", |c, b| c.batch_requests_max = b, &[least, most], &[least - 1, most + 1, most + 2]);
    bounded("inline_max", |c, i| c.inline_max = i, &[0, batch], &[batch + 1, batch + 2]);
    let most = limits::MESSAGE_MAX / 2;
    bounded(
        "batch_bytes_max",
        |c, b| {
            (c.batch_bytes_max, c.answer_bytes_max) = (b, b);
        },
        &[8 * 1024, most],
        &[8 * 1024 - 1, most + 1, most + 2],
    );
    bounded("log_bytes_max", |c, l| c.log_bytes_max = l, &[batch], &[batch - 1, 0]);
    let least = 2 * limits::OPERATION_MAX;
    bounded("client_bytes_max", |c, b| c.client_bytes_max = b, &[least], &[least - 1, 0]);
    bounded("answer_bytes_max", |c, b| c.answer_bytes_max = b, &[batch], &[batch - 1, 0]);
    bounded("ahead_max", |c, a| c.ahead_max = a, &[1, 65_536], &[0, 65_537, 65_538]);
    let (zero, some) = (Duration::ZERO, Duration::from_nanos(1));
    bounded("view_timeout", |c, t| c.view_timeout = t, &[some], &[zero]);
    bounded("status_interval", |c, t| c.status_interval = t, &[some], &[zero]);
    bounded("heartbeat", |c, t| c.heartbeat = t, &[some], &[zero]);
    let twice = 2 * Duration::from_millis(200);
    bounded("silent_after", |c, t| c.silent_after = t, &[twice], &[twice - some, twice / 2, twice / 4]);
}

/// A view-change has entries for the whole window, of each replica.
#[test]
fn p28_the_window_is_such_that_a_view_change_fits_a_message() {
    let window = |n, l| refused(n, |config| (config.checkpoint_interval, config.log_window) = (l / 2, l));
    assert_eq!(window(4, 10_922), None);
    assert_eq!(window(7, 7_280), None);
    for (n, l) in [(4, 10_924), (7, 7_282), (4, 1 << 40)] {
        assert!(window(n, l).unwrap().contains("view-change"), "{n} replicas, {l}");
    }
}
