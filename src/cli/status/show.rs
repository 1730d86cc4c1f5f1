//! The cluster for people: a line of health, a table, and what they should do something about.

use std::cmp::Ordering;

use comfy_table::{CellAlignment, Table, presets};

use super::summary::{Budget, Misdeeds, Summary};
use super::{Asked, ReplicaStatus};
use crate::cli::config::Cluster;
use crate::cli::errors::Error;
use crate::cli::processes;
use crate::types::View;

/// All of it, line by line.
pub fn lines(folder: &std::path::Path, cluster: &Cluster, asked: &[Asked], summary: &Summary) -> Vec<String> {
    let ahead = asked.iter().filter_map(|asked| asked.answer.as_ref().ok()).map(|s| s.executed).max().unwrap_or(0);
    let window = cluster.file.protocol.log_window - cluster.file.protocol.checkpoint_interval;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["id", "state", "view", "executed", "stable", "lag", "bad-mac", "drops", "version"]);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
        column.set_cell_alignment(CellAlignment::Left);
    }
    let mut hints = Vec::new();
    for Asked { id, answer } in asked {
        let status = match answer {
            Ok(status) => status,
            Err(why) => {
                table.add_row([id.to_string().as_str(), "away", "", "", "", "", "", "", ""]);
                hints.push(match processes::last_words(folder, *id) {
                    Some(words) => format!("{id} is away; its log ends: {words}"),
                    None => format!("{id} is away: {why}"),
                });
                continue;
            }
        };
        let lag = ahead.saturating_sub(status.executed);
        let state = if status.state == "normal" && lag > window { "behind" } else { &status.state };
        let bad_mac: u64 = status.peers.values().map(|peer| peer.bad_mac).sum();
        table.add_row([
            id.to_string(),
            state.to_owned(),
            status.view.to_string(),
            status.executed.to_string(),
            status.stable.to_string(),
            lag.to_string(),
            bad_mac.to_string(),
            drops(status).to_string(),
            status.version.clone(),
        ]);
        if state == "behind" {
            hints.push(format!("{id} is {lag} batches behind, further than the log reaches: it only listens"));
        }
        if status.state == "normal" && status.view > summary.view {
            hints.push(format!(
                "{id} has left view {} and waits for {}: it executes what the others order, and votes again when they follow",
                summary.view, status.view
            ));
        }
        hints.extend(hints_of(status));
    }
    hints.extend(summary.misdeeds.iter().map(|(id, of)| misdeeds(id, of, cluster.size.f())));
    let mut lines = vec![health(cluster, summary)];
    lines.extend(table.to_string().lines().map(|line| line.trim_end().to_owned()));
    if let Some((n, equal)) = summary.digests {
        let word = if equal { "equal" } else { "DIFFERENT" };
        lines.push(format!("state digests {word} at {n}"));
    }
    lines.extend(spent(&summary.budget));
    let hints = hints.iter().flat_map(|hint| {
        let mut parts = hint.lines().map(plain);
        parts.next().map(|first| format!("! {first}")).into_iter().chain(parts)
    });
    lines.extend(hints);
    lines
}

/// `cluster 7f3a…  HEALTHY, can lose 1 more replica   view 4, primary r1`
fn health(cluster: &Cluster, summary: &Summary) -> String {
    let lose = match (summary.health, summary.budget.left) {
        ("DOWN", _) => "too few replicas take part".to_owned(),
        (_, 0) => "can lose no more".to_owned(),
        (_, 1) => "can lose 1 more replica".to_owned(),
        (_, k) => format!("can lose {k} more replicas"),
    };
    let id = hex::encode(&cluster.id.0[..2]);
    let primary = cluster.size.primary(View(summary.view));
    format!("cluster {id}…  {}, {lose}   view {}, primary {primary}", summary.health, summary.view)
}

/// `fault budget: 1 of 1 spent: recovering r3; no other fault is tolerated until it takes part again`
fn spent(budget: &Budget) -> Option<String> {
    let who = budget.kinds().into_iter().filter(|(_, who)| !who.is_empty());
    let who: Vec<String> = who.map(|(kind, who)| format!("{kind} {}", who.join(", "))).collect();
    let (spent, f) = (budget.spent(), budget.f);
    let then = match spent.cmp(&f) {
        _ if spent == 0 => return None,
        Ordering::Less => format!("{} more may be", budget.left),
        Ordering::Equal => "no other fault is tolerated meanwhile".into(),
        Ordering::Greater => "that is too much: operations may wait until fewer are".into(),
    };
    Some(format!("fault budget: {spent} of {f} spent: {}; {then}", who.join("; ")))
}

fn drops(status: &ReplicaStatus) -> u64 {
    status.socket.get("kernel_drops").copied().unwrap_or(0)
}

/// What one replica's operator should hear.
fn hints_of(status: &ReplicaStatus) -> Vec<String> {
    let mut hints = Vec::new();
    let id = &status.id;
    let (have, want) = status.receive_buffer;
    if drops(status) > 0 {
        let error = Error::SocketDrops { replica: id.clone(), drops: drops(status), have, want };
        hints.push(error.to_string().replace("\n  ", "\n    "));
    }
    if status.state == "recovering" {
        hints.push(format!(
            "{id} was restarted (boot {}) and has forgotten its votes: it votes and answers again when it holds a certified \
             state beyond all of them",
            status.boot
        ));
    }
    if status.state == "lost" {
        hints.push(format!(
            "{id} knows of too many replicas that have forgotten their votes: memory lost: start a new instance \
             (`castra down`, `castra up`)"
        ));
    }
    if let (Some((theirs, from)), Some(count)) = (&status.foreign, status.rejects.get("foreign_cluster")) {
        hints.push(format!("{id} got {count} datagrams of another cluster, {theirs}…, last from {from} (E005)"));
    }
    if let Some(why) = &status.stopped {
        hints.push(format!("{id} stopped: {why}"));
    }
    hints.extend(status.notices.last().map(|notice| format!("{id} says: {notice}")));
    hints
}

/// f accusers may all be liars; one more, and a correct one is among them.
fn misdeeds(id: &str, of: &Misdeeds, f: usize) -> String {
    let seen: Vec<String> = of.seen.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let (seen, by) = (seen.join(", "), of.by.join(", "));
    match of.by.len() > f {
        true => format!("{id} sends what no correct replica sends: {seen} (seen by {by})"),
        false => format!("{id} sends what no correct replica sends: {seen}; so says {by} alone: one of them is faulty"),
    }
}

/// What comes over a status port may hold anything: nothing of it commands a terminal.
fn plain(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn an_accusation_says_what_it_is_worth() {
        let seen = BTreeMap::from([("equivocation".to_owned(), 3), ("not_entitled".to_owned(), 1)]);
        let of = |by: &[&str]| Misdeeds { seen: seen.clone(), by: by.iter().map(|id| (*id).to_owned()).collect() };
        assert_eq!(
            misdeeds("r2", &of(&["r0", "r1"]), 1),
            "r2 sends what no correct replica sends: equivocation 3, not_entitled 1 (seen by r0, r1)"
        );
        assert!(misdeeds("r2", &of(&["r0"]), 1).ends_with("so says r0 alone: one of them is faulty"));
    }

    #[test]
    fn p50_what_is_left_of_the_budget_is_said() {
        let of = |f, recovering: &[&str], silent: &[&str]| {
            let names = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
            let left = f - (recovering.len() + silent.len()).min(f);
            let budget = Budget { f, left, recovering: names(recovering), silent: names(silent), ..Budget::default() };
            spent(&budget)
        };
        assert_eq!(of(1, &[], &[]), None);
        assert_eq!(
            of(1, &["r3"], &[]).unwrap(),
            "fault budget: 1 of 1 spent: recovering r3; no other fault is tolerated meanwhile"
        );
        assert!(of(2, &["r3"], &[]).unwrap().ends_with("1 more may be"));
        assert!(of(1, &["r3"], &["r0"]).unwrap().contains("silent r0; recovering r3; that is too much"));
    }

    #[test]
    fn what_a_replica_says_cannot_command_the_terminal() {
        let status = ReplicaStatus {
            id: "r1".into(),
            stopped: Some("\u{1b}[2J\u{7}".into()),
            state: "recovering".into(),
            ..ReplicaStatus::default()
        };
        let hints = hints_of(&status);
        assert!(hints[0].contains("has forgotten its votes"));
        assert_eq!(plain(&hints[1]), "r1 stopped: ?[2J?");
    }
}
