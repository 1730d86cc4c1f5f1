//! The cluster at one glance.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Asked, ReplicaStatus};
use crate::cli::config::Cluster;
use crate::types::{ClusterSize, View};

/// What all answers together say.
pub struct Summary {
    pub health: &'static str,
    pub budget: Budget,
    pub view: u64,
    /// The last checkpoint that every replica that answers has, and whether all have one digest there.
    pub digests: Option<(u64, bool)>,
    pub answering: usize,
    /// By who did it.
    pub misdeeds: BTreeMap<String, Misdeeds>,
}

/// Who counts as one of the f, each once (P50).
#[derive(Default, Serialize)]
pub struct Budget {
    /// How many may.
    pub f: usize,
    /// How many more may.
    pub left: usize,
    /// No answer, or stopped for good.
    pub silent: Vec<String>,
    /// Their votes are forgotten, and they are not beyond them yet (P42).
    pub recovering: Vec<String>,
    /// A quorum, or nobody, certified their state.
    pub diverged: Vec<String>,
    /// They are fetching a state.
    pub catching: Vec<String>,
    /// More than f say that they sent what no correct replica sends.
    pub lying: Vec<String>,
}

impl Budget {
    /// How many do.
    pub fn spent(&self) -> usize {
        self.kinds().iter().map(|(_, who)| who.len()).sum()
    }

    /// Who does, by what they are.
    pub fn kinds(&self) -> [(&'static str, &[String]); 5] {
        [
            ("silent", &self.silent),
            ("recovering", &self.recovering),
            ("diverged", &self.diverged),
            ("catching up", &self.catching),
            ("lying", &self.lying),
        ]
    }

    fn of(size: ClusterSize, asked: &[Asked], misdeeds: &BTreeMap<String, Misdeeds>) -> Budget {
        let mut budget = Budget { f: size.f(), ..Budget::default() };
        for Asked { id, answer } in asked {
            let id = id.to_string();
            let list = match answer.as_ref().map(|status| status.state.as_str()) {
                Err(_) | Ok("stopped") => &mut budget.silent,
                Ok("recovering" | "lost") => &mut budget.recovering,
                Ok("diverged" | "split") => &mut budget.diverged,
                Ok("catching") => &mut budget.catching,
                Ok(_) if misdeeds.get(&id).is_some_and(|of| of.by.len() > size.f()) => &mut budget.lying,
                Ok(_) => continue,
            };
            list.push(id);
        }
        budget.left = budget.f.saturating_sub(budget.spent());
        budget
    }
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
    let budget = Budget::of(size, asked, &misdeeds);
    let health = match budget.spent() {
        0 => "HEALTHY",
        k if k <= size.f() => "DEGRADED",
        _ => "DOWN",
    };
    Summary { health, budget, view: view(size, answers.iter().copied()), digests, answering: answers.len(), misdeeds }
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
            "can_lose": self.budget.left,
            "budget": self.budget,
            "log_window": cluster.file.protocol.log_window,
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
        assert_eq!((summary.health, summary.budget.left, summary.digests), ("HEALTHY", 1, Some((256, true))));
        all[2] = asked(2, "recovering", &[(128, "x")]);
        let summary = summarize(size, &all);
        assert_eq!((summary.health, summary.budget.left, summary.digests), ("DEGRADED", 0, Some((128, false))));
        all[1].answer = Err("gone".into());
        let summary = summarize(size, &all);
        assert_eq!((summary.health, summary.budget.left, summary.answering), ("DOWN", 0, 3));
        let kinds = |asked: &[Asked]| {
            let budget = summarize(size, asked).budget;
            budget.kinds().map(|(_, who)| who.join(" "))
        };
        assert_eq!(kinds(&all), ["r1", "r2", "", "", ""]);
        all[1] = asked(1, "stopped", &[]);
        all[2] = asked(2, "diverged", &[]);
        all[3] = asked(3, "catching", &[]);
        assert_eq!(kinds(&all), ["r1", "", "r2", "r3", ""]);
    }

    #[test]
    fn p50_a_liar_spends_it_when_one_correct_replica_says_so() {
        let size = ClusterSize::tolerating(1).unwrap();
        let mut all: Vec<Asked> = (0..4).map(|id| asked(id, "normal", &[])).collect();
        for by in [0, 3] {
            assert_eq!(summarize(size, &all).budget.left, 1, "one accuser may be the liar");
            let peer = all[by].answer.as_mut().unwrap().peers.entry("r2".into()).or_default();
            peer.misdeeds.insert("equivocation".into(), 1);
        }
        let summary = summarize(size, &all);
        assert_eq!((summary.budget.left, summary.budget.lying), (0, vec!["r2".to_owned()]));
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
