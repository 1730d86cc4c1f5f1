//! The cluster at one glance.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Asked, ReplicaStatus};
use crate::cli::config::Cluster;
use crate::types::{ClusterSize, View};

/// What all answers together say.
pub struct Summary {
    pub health: &'static str,
    pub can_lose: usize,
    pub view: u64,
    /// The last checkpoint that every replica that answers has, and whether all have one digest there.
    pub digests: Option<(u64, bool)>,
    pub answering: usize,
    /// By who did it.
    pub misdeeds: BTreeMap<String, Misdeeds>,
}

/// What a replica is said to have done that no correct one does.
#[derive(Default)]
pub struct Misdeeds {
    /// By name, the largest count that anyone saw.
    pub seen: BTreeMap<String, u64>,
    pub by: Vec<String>,
}

/// Sums up.
pub fn summarize(size: ClusterSize, asked: &[Asked]) -> Summary {
    let answers: Vec<&ReplicaStatus> = asked.iter().filter_map(|asked| asked.answer.as_ref().ok()).collect();
    let well = answers.iter().filter(|status| status.state == "normal").count();
    let faulty = size.n() - well;
    let health = match faulty {
        0 => "HEALTHY",
        k if k <= size.f() => "DEGRADED",
        _ => "DOWN",
    };
    let digests = answers.split_first().and_then(|(first, others)| {
        let common = first.checkpoints.iter().rev().find(|(n, _)| others.iter().all(|o| o.checkpoints.contains_key(n)));
        common.map(|(n, root)| (*n, others.iter().all(|other| other.checkpoints[n] == *root)))
    });
    let mut misdeeds: BTreeMap<String, Misdeeds> = BTreeMap::new();
    for status in &answers {
        for (id, peer) in status.peers.iter().filter(|(_, peer)| !peer.misdeeds.is_empty()) {
            let of = misdeeds.entry(id.clone()).or_default();
            of.by.push(status.id.clone());
            for (name, &count) in &peer.misdeeds {
                let seen = of.seen.entry(name.clone()).or_default();
                *seen = count.max(*seen);
            }
        }
    }
    Summary {
        health,
        can_lose: size.f().saturating_sub(faulty),
        view: view(size, answers.iter().copied()),
        digests,
        answering: answers.len(),
        misdeeds,
    }
}

/// The view that a quorum could be in: one above which at most f replicas claim to be.
pub fn view<'a>(size: ClusterSize, answers: impl Iterator<Item = &'a ReplicaStatus>) -> u64 {
    let mut views: Vec<u64> = answers.map(|status| status.view).collect();
    views.sort_unstable_by(|a, b| b.cmp(a));
    views.get(size.f()).or(views.last()).copied().unwrap_or(0)
}

impl Summary {
    /// Everything, for programs.
    pub fn to_json(&self, cluster: &Cluster, asked: &[Asked]) -> Value {
        let one = |asked: &Asked| match &asked.answer {
            Ok(status) => {
                let mut value = serde_json::to_value(status).unwrap_or_default();
                value["reachable"] = true.into();
                value
            }
            Err(why) => json!({ "id": asked.id.to_string(), "reachable": false, "why": why }),
        };
        let misdeeds = self.misdeeds.iter().map(|(id, of)| (id.clone(), json!({ "seen": of.seen, "by": of.by })));
        json!({
            "cluster": cluster.id.to_string(),
            "name": cluster.file.name,
            "n": cluster.size.n(),
            "f": cluster.size.f(),
            "health": self.health,
            "can_lose": self.can_lose,
            "view": self.view,
            "primary": cluster.size.primary(View(self.view)).to_string(),
            "digests_compared_at": self.digests.map(|(n, _)| n),
            "digests_equal": self.digests.map(|(_, equal)| equal),
            "misdeeds": misdeeds.collect::<serde_json::Map<_, _>>(),
            "replicas": asked.iter().map(one).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ReplicaId;

    fn asked(id: u8, state: &str, checkpoints: &[(u64, &str)]) -> Asked {
        let checkpoints = checkpoints.iter().map(|(n, root)| (*n, (*root).to_owned())).collect();
        let id = ReplicaId(id);
        let status = ReplicaStatus { id: id.to_string(), state: state.into(), checkpoints, ..ReplicaStatus::default() };
        Asked { id, answer: Ok(status) }
    }

    #[test]
    fn p50_the_fault_budget_is_counted() {
        let size = ClusterSize::tolerating(1).unwrap();
        let mut all: Vec<Asked> = (0..4).map(|id| asked(id, "normal", &[(128, "a"), (256, "b")])).collect();
        let summary = summarize(size, &all);
        assert_eq!((summary.health, summary.can_lose, summary.digests), ("HEALTHY", 1, Some((256, true))));
        all[2] = asked(2, "recovering", &[(128, "x")]);
        let summary = summarize(size, &all);
        assert_eq!((summary.health, summary.can_lose, summary.digests), ("DEGRADED", 0, Some((128, false))));
        all[1].answer = Err("gone".into());
        let summary = summarize(size, &all);
        assert_eq!((summary.health, summary.can_lose, summary.answering), ("DOWN", 0, 3));
    }

    #[test]
    fn one_replica_cannot_pretend_a_view() {
        let size = ClusterSize::tolerating(1).unwrap();
        let at = |view| ReplicaStatus { view, ..ReplicaStatus::default() };
        let of = |views: &[u64]| view(size, views.iter().map(|&view| at(view)).collect::<Vec<_>>().iter());
        assert_eq!([of(&[4, 4, 3, 1_000]), of(&[4]), of(&[])], [4, 4, 0]);
    }

    #[test]
    fn misdeeds_are_gathered_by_who_did_them() {
        let mut all: Vec<Asked> = (0..4).map(|id| asked(id, "normal", &[])).collect();
        for (by, name, count) in [(0, "equivocation", 2), (1, "equivocation", 5), (1, "not_entitled", 1)] {
            let status = all[by].answer.as_mut().unwrap();
            let peer = status.peers.entry("r2".into()).or_default();
            peer.misdeeds.insert(name.into(), count);
        }
        let summary = summarize(ClusterSize::tolerating(1).unwrap(), &all);
        let of = &summary.misdeeds["r2"];
        assert_eq!(of.by, ["r0", "r1"]);
        assert_eq!(of.seen, BTreeMap::from([("equivocation".into(), 5), ("not_entitled".into(), 1)]));
        assert_eq!(summary.misdeeds.len(), 1);
    }
}
