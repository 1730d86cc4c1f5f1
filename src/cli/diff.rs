//! `castra diff-state`: which pages of a replica's state were not those of the others (P25, E011).

use std::path::PathBuf;

use serde_json::json;

use super::config::Cluster;
use super::errors::Error;
use super::output;
use super::status::{Divergence, Observer, ReplicaStatus};

/// `castra diff-state`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  castra diff-state lab\n  castra diff-state lab r2\n  castra diff-state lab --json\n\
                  Exit status: 0 if no state differs now, also if one did and was healed; 1 if one does."
)]
pub struct DiffState {
    /// The cluster's folder
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Only this replica, as r2
    replica: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What one replica found out, as errors that are or were.
fn findings(status: &ReplicaStatus) -> Vec<(bool, Error)> {
    let error = |with: Option<&String>, found: &Divergence| Error::Diverged {
        replica: status.id.clone(),
        n: found.n,
        with: with.cloned(),
        count: found.count,
        pages: found.pages.clone(),
        exact: found.exact,
    };
    let diverged = status.divergence.iter().map(|found| (found.healed, error(None, found)));
    let split = status.differences.iter().map(|(with, found)| (false, error(Some(with), found)));
    diverged.chain(split).collect()
}

/// Asks the replicas what differed. E011 if a state differs now.
pub fn diff_state(args: &DiffState) -> Result<(), Error> {
    let cluster = Cluster::load(&args.dir.join("cluster.toml"))?;
    let names: Vec<String> = cluster.size.replicas().map(|id| id.to_string()).collect();
    if let Some(name) = args.replica.as_ref().filter(|name| !names.contains(name)) {
        return Err(Error::Usage(format!("{name}: the replicas are {}", names.join(", "))));
    }
    let asked = Observer::new(&args.dir, &cluster).ask_all();
    let wanted = |id: &str| args.replica.as_deref().is_none_or(|name| name == id);
    let asked: Vec<_> = asked.into_iter().filter(|asked| wanted(&asked.id.to_string())).collect();
    let mut now = Vec::new();
    let mut lines = Vec::new();
    let mut replicas = serde_json::Map::new();
    for asked in &asked {
        let name = asked.id.to_string();
        match &asked.answer {
            Err(why) => {
                lines.push(format!("{name} does not answer: {why}"));
                replicas.insert(name, json!({ "reachable": false, "why": why }));
            }
            Ok(status) => {
                replicas.insert(
                    name.clone(),
                    json!({
                        "reachable": true,
                        "state": status.state,
                        "divergence": status.divergence,
                        "differences": status.differences,
                    }),
                );
                let found = findings(status);
                if found.is_empty() {
                    lines.push(format!("{name}: no difference was found since it started"));
                }
                for (healed, error) in found {
                    match healed {
                        true => lines.push(format!("{name}, healed since:\n{error}")),
                        false => now.push(error),
                    }
                }
            }
        }
    }
    match args.json {
        true => output::json(
            &json!({ "cluster": cluster.id.to_string(), "differs": !now.is_empty(), "replicas": replicas }),
        )?,
        false => lines.iter().try_for_each(output::line)?,
    }
    let last = now.pop();
    now.iter().for_each(output::note);
    last.map_or(Ok(()), Err)
}
