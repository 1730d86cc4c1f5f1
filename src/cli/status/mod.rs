//! `castra status`: what the replicas say of themselves. Each answers `GET /status` on a TCP port of its own; the
//! command asks them all. There they also check their state: see `inspection`.

mod observer;
mod report;
mod show;
mod summary;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

pub use observer::{Asked, Observer};
pub use report::{Divergence, PeerStatus, ReplicaStatus, STATES};
pub use summary::view;

use super::config::Cluster;
use super::errors::Error;
use super::http::Answer;
use super::output;
use crate::types::{ClusterSize, ReplicaId};

/// `castra status`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  castra status lab\n  castra status lab --watch                 follows it; Ctrl-C ends\n  \
                  castra status lab --json | jq .health\n  castra status lab --watch --json          one object a line"
)]
pub struct Status {
    /// The cluster's folder
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Show it again and again
    #[arg(long)]
    pub watch: bool,
    /// Seconds between two looks
    #[arg(long, default_value_t = 1.0, requires = "watch")]
    pub interval: f64,
    /// Print one JSON object; with --watch one a line
    #[arg(long)]
    pub json: bool,
}

impl Status {
    /// Once, for people.
    pub fn of(dir: PathBuf) -> Status {
        Status { dir, watch: false, interval: 1.0, json: false }
    }
}

/// What a replica answers on its status port.
pub fn answer(path: &str, status: Option<ReplicaStatus>) -> Answer {
    match (path, status.and_then(|status| serde_json::to_vec(&status).ok())) {
        ("/status" | "/", Some(body)) => Answer::of("application/json", body),
        ("/status" | "/", None) => Answer::error("503 Service Unavailable", "the replica does not answer"),
        (_, _) => Answer::error("404 Not Found", "GET /status, GET /inspection/N"),
    }
}

/// Shows the state of a cluster. E007 if fewer than a quorum answer; who watches sees it and goes on.
pub fn status(args: &Status) -> Result<(), Error> {
    if !(0.1..=3_600.0).contains(&args.interval) {
        return Err(Error::Usage(format!("--interval {}: from 0.1 to 3600 seconds", args.interval)));
    }
    let cluster = Cluster::load(&args.dir.join("cluster.toml"))?;
    let observer = Observer::new(&args.dir, &cluster);
    if args.watch {
        return watch::watch(Duration::from_secs_f64(args.interval), || {
            let asked = observer.ask_all();
            let summary = summary::summarize(cluster.size, &asked);
            Ok(match args.json {
                true => vec![summary.to_json(&cluster, &asked).to_string()],
                false => show::lines(&args.dir, &cluster, &asked, &summary),
            })
        });
    }
    let asked = observer.ask_all();
    let summary = summary::summarize(cluster.size, &asked);
    match args.json {
        true => output::json(&summary.to_json(&cluster, &asked))?,
        false => output::line(show::lines(&args.dir, &cluster, &asked, &summary).join("\n"))?,
    }
    match summary.answering < cluster.size.quorum() {
        true => Err(too_few(cluster.size, &asked)),
        false => Ok(()),
    }
}

fn too_few(size: ClusterSize, asked: &[Asked]) -> Error {
    let heard = |id: ReplicaId| {
        let answers = asked.iter().filter_map(|asked| asked.answer.as_ref().ok());
        let ago = answers.filter_map(|status| status.peers.get(&id.to_string())?.heard_ms).min();
        ago.map(Duration::from_millis)
    };
    let missing = asked.iter().filter(|asked| asked.answer.is_err());
    let missing = missing.map(|asked| (asked.id.to_string(), heard(asked.id))).collect();
    Error::TooFewReplicas { n: size.n(), f: size.f(), missing }
}
