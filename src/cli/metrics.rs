//! A replica's status as Prometheus metrics, in the OpenMetrics text format: the same figures under the same names.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::http::Answer;
use super::status::{ReplicaStatus, STATES};

/// The format's content type.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a replica answers on its metrics port.
pub fn answer(path: &str, status: Option<ReplicaStatus>) -> Answer {
    match (path, status.and_then(|status| page(&status).ok())) {
        ("/metrics" | "/", Some(page)) => Answer::of(CONTENT_TYPE, page.into_bytes()),
        ("/metrics" | "/", None) => Answer::error("503 Service Unavailable", "the replica does not answer"),
        (_, _) => Answer::error("404 Not Found", "GET /metrics"),
    }
}

/// All figures of `status`. Each has a label `replica`: who says it.
fn page(status: &ReplicaStatus) -> Result<String, fmt::Error> {
    let labels = [("replica".into(), status.id.clone().into())];
    let mut registry = Registry::with_prefix_and_labels("castra", labels.into_iter());
    registry.register_collector(Box::new(Gauges(status.clone())));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

/// A status, to be encoded.
#[derive(Debug)]
struct Gauges(ReplicaStatus);

/// Sample by sample into one family.
struct Family<'a>(MetricEncoder<'a>);

impl Family<'_> {
    fn counter<const N: usize>(&mut self, labels: [(&str, &str); N], value: u64) -> fmt::Result {
        self.0.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn gauge<const N: usize>(&mut self, labels: [(&str, &str); N], value: f64) -> fmt::Result {
        self.0.encode_family(&labels)?.encode_gauge(&value)
    }
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let s = &self.0;
        let mut family = |name, help, kind, each: &dyn Fn(&mut Family<'_>) -> fmt::Result| -> fmt::Result {
            each(&mut Family(encoder.encode_descriptor(name, help, None, kind)?))
        };
        let (gauge, counter) = (MetricType::Gauge, MetricType::Counter);

        let about = [
            ("version", s.version.as_str()),
            ("cluster", &s.cluster),
            ("transport", &s.transport),
            ("placement", &s.placement),
        ];
        family("build", "What runs, and where", gauge, &|f| f.gauge(about, 1.0))?;
        let state = |f: &mut Family<'_>| {
            STATES.iter().try_for_each(|&state| f.gauge([("state", state)], f64::from(u8::from(s.state == state))))
        };
        family("state", "1 for the state that the replica is in", gauge, &state)?;
        let primary = s.primary == s.id;
        let receive_buffer = s.receive_buffer.0 as f64;
        for (name, help, value) in [
            ("uptime_seconds", "Since it started", s.uptime_s as f64),
            ("boot", "Its starts in this life of the cluster", s.boot as f64),
            ("view", "Its view", s.view as f64),
            ("is_primary", "Whether it is the primary of its view", f64::from(u8::from(primary))),
            ("executed", "The last batch executed and committed", s.executed as f64),
            ("prepared", "The largest batch ever prepared", s.prepared as f64),
            ("stable", "The last stable checkpoint", s.stable as f64),
            ("waiting_requests", "Requests that wait for a proposal", s.waiting as f64),
            ("fetching", "Whether it is fetching a state from others", f64::from(u8::from(s.fetching.is_some()))),
            ("fetched_pages", "Pages of others' states that it has fetched", s.fetched_pages as f64),
            ("fetched_bytes", "Bytes of pages and tree nodes that it was sent for that", s.fetched_bytes as f64),
            ("log_bytes", "The batches in the log", s.log_bytes as f64),
            (
                "time_to_stable_seconds",
                "How long the last stable checkpoint took to become so, 0 if none did",
                s.time_to_stable_us.unwrap_or(0) as f64 / 1e6,
            ),
            ("service_bytes", "The service's state", s.service_bytes as f64),
            ("library_bytes", "The library's state", s.library_bytes as f64),
            ("receive_buffer_bytes", "The socket's receive buffer", receive_buffer),
        ] {
            family(name, help, gauge, &|f| f.gauge([], value))?;
        }
        for (name, help, label, counts) in [
            ("rejects", "Datagrams and frames dropped before agreement, by reason", "reason", &s.rejects),
            ("agreement", "What agreement did and dropped", "event", &s.agreement),
            ("socket", "What the socket did and dropped", "event", &s.socket),
        ] {
            let each =
                |f: &mut Family<'_>| counts.iter().try_for_each(|(what, count)| f.counter([(label, what)], *count));
            family(name, help, counter, &each)?;
        }

        let heard = |f: &mut Family<'_>| {
            let heard = s.peers.iter().filter_map(|(id, peer)| Some((id, peer.heard_ms?)));
            heard.into_iter().try_for_each(|(id, ms)| f.gauge([("peer", id)], ms as f64 / 1e3))
        };
        family("peer_heard_seconds", "How long ago a peer was heard", gauge, &heard)?;
        let executed = |f: &mut Family<'_>| {
            s.peers.iter().try_for_each(|(id, peer)| f.gauge([("peer", id)], peer.executed as f64))
        };
        family("peer_executed", "A peer's last executed batch, as it said", gauge, &executed)?;
        let bad_macs =
            |f: &mut Family<'_>| s.peers.iter().try_for_each(|(id, peer)| f.counter([("peer", id)], peer.bad_mac));
        family(
            "bad_mac",
            "Envelopes in a peer's name with a wrong MAC; no proof that it is faulty",
            counter,
            &bad_macs,
        )?;
        let misdeeds = |f: &mut Family<'_>| {
            s.peers.iter().try_for_each(|(id, peer)| {
                peer.misdeeds.iter().try_for_each(|(what, count)| f.counter([("peer", id), ("misdeed", what)], *count))
            })
        };
        family("misdeeds", "What a peer sent, authentic, that no correct replica sends", counter, &misdeeds)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cli::status::PeerStatus;

    #[test]
    fn every_figure_has_a_name_and_liars_have_theirs() {
        let counts = |name: &str, count| BTreeMap::from([(name.to_owned(), count)]);
        let liar = PeerStatus { heard_ms: Some(1_500), bad_mac: 2, misdeeds: counts("equivocation", 3), executed: 9 };
        let status = ReplicaStatus {
            id: "r1".into(),
            version: "0.1.0".into(),
            cluster: "7f\"3a".into(),
            state: "normal".into(),
            view: 4,
            primary: "r1".into(),
            executed: 918_204,
            peers: BTreeMap::from([("r0".into(), liar), ("r2".into(), PeerStatus::default())]),
            rejects: counts("bad_mac", 2),
            agreement: counts("proposed", 7),
            socket: counts("sent", 8),
            ..ReplicaStatus::default()
        };
        let page = page(&status).unwrap();
        for line in [
            "# TYPE castra_view gauge",
            "castra_view{replica=\"r1\"} 4.0",
            "castra_is_primary{replica=\"r1\"} 1.0",
            "castra_executed{replica=\"r1\"} 918204.0",
            "castra_state{replica=\"r1\",state=\"normal\"} 1.0",
            "castra_state{replica=\"r1\",state=\"diverged\"} 0.0",
            "castra_rejects_total{replica=\"r1\",reason=\"bad_mac\"} 2",
            "castra_agreement_total{replica=\"r1\",event=\"proposed\"} 7",
            "castra_socket_total{replica=\"r1\",event=\"sent\"} 8",
            "castra_peer_heard_seconds{replica=\"r1\",peer=\"r0\"} 1.5",
            "castra_peer_executed{replica=\"r1\",peer=\"r0\"} 9.0",
            "castra_bad_mac_total{replica=\"r1\",peer=\"r0\"} 2",
            "castra_misdeeds_total{replica=\"r1\",peer=\"r0\",misdeed=\"equivocation\"} 3",
            "# EOF",
        ] {
            assert!(page.lines().any(|l| l == line), "no {line} in:\n{page}");
        }
        assert!(page.contains("cluster=\"7f\\\"3a\""), "{page}");
        assert!(!page.contains("castra_peer_heard_seconds{replica=\"r1\",peer=\"r2\""), "never heard is no figure");
    }
}
