//! `castra status`: what the replicas say of themselves. Each answers `GET /status` on a TCP port of its own; the
//! command asks them all.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::config::{self, Cluster};
use super::errors::Error;
use super::output;
use super::processes;
use crate::types::{ClusterSize, ReplicaId, View};

/// What one replica answers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicaStatus {
    /// `r0`.
    pub id: String,
    /// The cluster's id.
    pub cluster: String,
    /// This life of the cluster.
    pub instance: u64,
    /// The version of castra.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Its starts in this life, from 1.
    pub boot: u64,
    /// Since it started.
    pub uptime_s: u64,
    /// The packet path by name.
    pub transport: String,
    /// Which role runs where.
    pub placement: String,
    /// `normal`, `forgetful`, `diverged`, `split`, `stopped`.
    pub state: String,
    /// Why it stopped.
    pub stopped: Option<String>,
    /// Its view.
    pub view: u64,
    /// That view's primary.
    pub primary: String,
    /// The last batch executed and committed.
    pub executed: u64,
    /// The largest ever prepared.
    pub prepared: u64,
    /// The last stable checkpoint.
    pub stable: u64,
    /// Digests of its state at its last checkpoints.
    pub checkpoints: BTreeMap<u64, String>,
    /// Requests that wait for a proposal.
    pub waiting: u64,
    /// Replicas that the primary waits for.
    pub waiting_for: Vec<String>,
    /// The others, as it sees them.
    pub peers: BTreeMap<String, PeerStatus>,
    /// Datagrams and frames dropped, by reason.
    pub rejects: BTreeMap<String, u64>,
    /// The last datagram of another cluster: first bytes of that cluster's id, and the sender's address.
    pub foreign: Option<(String, SocketAddr)>,
    /// What agreement did and dropped.
    pub agreement: BTreeMap<String, u64>,
    /// What the socket did and dropped.
    pub socket: BTreeMap<String, u64>,
    /// The receive buffer, granted and asked for, bytes.
    pub receive_buffer: (usize, usize),
    /// The service's state in use, bytes.
    pub service_bytes: u64,
    /// The library's, bytes.
    pub library_bytes: u64,
    /// What an operator should hear of.
    pub notices: Vec<String>,
}

/// Another replica, as one sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerStatus {
    /// How long ago it was heard; none: never.
    pub heard_ms: Option<u64>,
    /// Its last executed batch, as it said.
    pub executed: u64,
    /// Envelopes in its name with a wrong MAC.
    pub bad_mac: u64,
    /// What it sent, authentic, that no correct replica sends.
    pub misdeeds: BTreeMap<String, u64>,
}

/// Bytes of a request; more is refused.
const REQUEST_MAX: usize = 8 << 10;
/// Bytes of an answer; more is not read.
const ANSWER_MAX: u64 = 4 << 20;
/// How long one end waits for the other.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers status requests on a thread of its own, for as long as the process lives. `report` gives the answer, or none
/// if the replica cannot say now.
pub fn serve(listener: TcpListener, report: impl Fn() -> Option<ReplicaStatus> + Send + 'static) -> Result<(), Error> {
    let body = move || {
        for stream in listener.incoming() {
            match stream {
                // A peer that goes away in the middle harms nobody.
                Ok(stream) => drop(answer(stream, &report)),
                // Out of descriptors, for example: do not spin on it.
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    };
    let spawned = thread::Builder::new().name("castra-status".to_owned()).spawn(body);
    spawned.map(drop).map_err(Error::system("start the status thread"))
}

fn answer(mut stream: TcpStream, report: &impl Fn() -> Option<ReplicaStatus>) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || request.len() > REQUEST_MAX {
            return respond(&mut stream, "400 Bad Request", "text/plain", b"a request of at most 8 KiB, soon\n");
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk)? {
            0 => break,
            count => request.extend_from_slice(&chunk[..count]),
        }
    }
    let line = request.split(|&b| b == b'\r').next().unwrap_or_default();
    match line.strip_prefix(b"GET ").map(|rest| rest.split(|&b| b == b' ').next().unwrap_or_default()) {
        None => respond(&mut stream, "405 Method Not Allowed", "text/plain", b"GET /status\n"),
        Some(b"/status" | b"/") => match report().and_then(|status| serde_json::to_vec(&status).ok()) {
            Some(body) => respond(&mut stream, "200 OK", "application/json", &body),
            None => respond(&mut stream, "503 Service Unavailable", "text/plain", b"the replica does not answer\n"),
        },
        Some(_) => respond(&mut stream, "404 Not Found", "text/plain", b"GET /status\n"),
    }
}

fn respond(stream: &mut TcpStream, status: &str, kind: &str, body: &[u8]) -> io::Result<()> {
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

/// Asks the replica at `address`.
pub fn ask(address: SocketAddr) -> io::Result<ReplicaStatus> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /status HTTP/1.0\r\n\r\n")?;
    let mut text = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut text)?;
    let body = text.windows(4).position(|w| w == b"\r\n\r\n").map(|at| &text[at + 4..]);
    if !text.starts_with(b"HTTP/1.") || text.get(8..13) != Some(b" 200 ") {
        return Err(io::Error::other("it does not answer as a castra replica does"));
    }
    serde_json::from_slice(body.unwrap_or_default()).map_err(io::Error::from)
}

/// `castra status`
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  castra status lab\n  castra status lab --json | jq .health")]
pub struct Status {
    /// The cluster's folder
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// One replica, asked.
pub struct Asked {
    /// Who.
    pub id: ReplicaId,
    /// Its answer, or why there is none.
    pub answer: Result<ReplicaStatus, String>,
}

/// Where the replicas of `folder` answer; a replica whose file is not here cannot be asked.
pub fn addresses(folder: &Path, cluster: &Cluster) -> Vec<(ReplicaId, Option<SocketAddr>)> {
    let of = |id: ReplicaId| config::Replica::load(&folder.join(format!("{id}.toml"))).ok()?.file.status;
    cluster.size.replicas().map(|id| (id, of(id))).collect()
}

/// Asks all replicas at once. An answer of another cluster counts as none.
pub fn ask_all(folder: &Path, cluster: &Cluster) -> Vec<Asked> {
    let ours = cluster.id.to_string();
    thread::scope(|scope| {
        let ask_one = |(id, address): (ReplicaId, Option<SocketAddr>)| {
            let ours = &ours;
            let ask_it = move || {
                let address = address.ok_or_else(|| format!("{id}.toml names no status address here"))?;
                let status = ask(address).map_err(|error| format!("{address}: {error}"))?;
                match status.cluster == *ours && status.id == id.to_string() {
                    true => Ok(status),
                    false => Err(format!("{address} is {} of another cluster.toml", status.id)),
                }
            };
            (id, scope.spawn(ask_it))
        };
        let asking: Vec<_> = addresses(folder, cluster).into_iter().map(ask_one).collect();
        let gather = |(id, asked): (ReplicaId, thread::ScopedJoinHandle<'_, Result<ReplicaStatus, String>>)| Asked {
            id,
            answer: asked.join().unwrap_or_else(|_| Err("asking it failed".to_owned())),
        };
        asking.into_iter().map(gather).collect()
    })
}

/// The cluster at one glance.
struct Summary {
    health: &'static str,
    can_lose: usize,
    view: u64,
    /// The last checkpoint that every replica that answers has, and whether all have one digest there.
    digests: Option<(u64, bool)>,
    answering: usize,
}

fn summarize(size: ClusterSize, asked: &[Asked]) -> Summary {
    let answers: Vec<&ReplicaStatus> = asked.iter().filter_map(|asked| asked.answer.as_ref().ok()).collect();
    let well = answers.iter().filter(|status| status.state == "normal").count();
    let faulty = size.n() - well;
    let health = match faulty {
        0 => "HEALTHY",
        k if k <= size.f() => "DEGRADED",
        _ => "DOWN",
    };
    // The view that a quorum could be in: one above which at most f replicas claim to be.
    let mut views: Vec<u64> = answers.iter().map(|status| status.view).collect();
    views.sort_unstable_by(|a, b| b.cmp(a));
    let view = views.get(size.f()).or(views.last()).copied().unwrap_or(0);
    let digests = answers.split_first().and_then(|(first, others)| {
        let common = first.checkpoints.iter().rev().find(|(n, _)| others.iter().all(|o| o.checkpoints.contains_key(n)));
        common.map(|(n, root)| (*n, others.iter().all(|other| other.checkpoints[n] == *root)))
    });
    Summary { health, can_lose: size.f().saturating_sub(faulty), view, digests, answering: answers.len() }
}

/// Shows the state of a cluster. E007 if fewer than a quorum answer.
pub fn status(args: &Status) -> Result<(), Error> {
    let cluster = Cluster::load(&args.dir.join("cluster.toml"))?;
    let asked = ask_all(&args.dir, &cluster);
    let summary = summarize(cluster.size, &asked);
    if args.json {
        output::json(&as_json(&cluster, &asked, &summary))?;
    } else {
        show(&args.dir, &cluster, &asked, &summary)?;
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

fn as_json(cluster: &Cluster, asked: &[Asked], summary: &Summary) -> Value {
    let one = |asked: &Asked| match &asked.answer {
        Ok(status) => {
            let mut value = serde_json::to_value(status).unwrap_or_default();
            value["reachable"] = true.into();
            value
        }
        Err(why) => json!({ "id": asked.id.to_string(), "reachable": false, "why": why }),
    };
    json!({
        "cluster": cluster.id.to_string(),
        "name": cluster.file.name,
        "n": cluster.size.n(),
        "f": cluster.size.f(),
        "health": summary.health,
        "can_lose": summary.can_lose,
        "view": summary.view,
        "primary": cluster.size.primary(View(summary.view)).to_string(),
        "digests_compared_at": summary.digests.map(|(n, _)| n),
        "digests_equal": summary.digests.map(|(_, equal)| equal),
        "replicas": asked.iter().map(one).collect::<Vec<_>>(),
    })
}

fn show(folder: &Path, cluster: &Cluster, asked: &[Asked], summary: &Summary) -> Result<(), Error> {
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
        let drops = status.socket.get("kernel_drops").copied().unwrap_or(0);
        let bad_mac: u64 = status.peers.values().map(|peer| peer.bad_mac).sum();
        table.add_row([
            id.to_string(),
            state.to_owned(),
            status.view.to_string(),
            status.executed.to_string(),
            status.stable.to_string(),
            lag.to_string(),
            bad_mac.to_string(),
            drops.to_string(),
            status.version.clone(),
        ]);
        let (have, want) = status.receive_buffer;
        if drops > 0 {
            let error = Error::SocketDrops { replica: id.to_string(), drops, have, want };
            hints.push(error.to_string().replace("\n  ", "\n    "));
        }
        if state == "forgetful" {
            hints.push(format!(
                "{id} was restarted and has forgotten its votes: it only listens until `castra down`, `castra up`"
            ));
        }
        if state == "behind" {
            hints.push(format!("{id} is {lag} batches behind, further than the log reaches: it only listens"));
        }
        if let (Some((theirs, from)), Some(count)) = (&status.foreign, status.rejects.get("foreign_cluster")) {
            hints.push(format!("{id} got {count} datagrams of another cluster, {theirs}…, last from {from} (E005)"));
        }
        if let Some(why) = &status.stopped {
            hints.push(format!("{id} stopped: {why}"));
        }
        hints.extend(status.notices.last().map(|notice| format!("{id} says: {notice}")));
    }
    let lose = match (summary.health, summary.can_lose) {
        ("DOWN", _) => "too few replicas take part".to_owned(),
        (_, 0) => "can lose no more".to_owned(),
        (_, 1) => "can lose 1 more replica".to_owned(),
        (_, k) => format!("can lose {k} more replicas"),
    };
    let id = hex::encode(&cluster.id.0[..2]);
    let primary = cluster.size.primary(View(summary.view));
    output::line(format!("cluster {id}…  {}, {lose}   view {}, primary {primary}", summary.health, summary.view))?;
    output::line(table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n"))?;
    if let Some((n, equal)) = summary.digests {
        let word = if equal { "equal" } else { "DIFFERENT" };
        output::line(format!("state digests {word} at {n}"))?;
    }
    for hint in hints {
        output::line(format!("! {hint}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(report: impl Fn() -> Option<ReplicaStatus> + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        serve(listener, report).unwrap();
        address
    }

    fn exchange(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        // The server may close before it has read all of a hostile request: a reset is an answer too.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_status_comes_back_as_it_was() {
        let status = ReplicaStatus { id: "r1".into(), executed: 7, ..ReplicaStatus::default() };
        let copy = status.clone();
        assert_eq!(ask(served(move || Some(copy.clone()))).unwrap(), status);
    }

    #[test]
    fn other_requests_are_refused() {
        let address = served(|| None);
        assert_eq!(exchange(address, b"GET /status HTTP/1.1\r\n\r\n"), "HTTP/1.0 503 Service Unavailable");
        assert_eq!(exchange(address, b"GET /etc/passwd HTTP/1.1\r\n\r\n"), "HTTP/1.0 404 Not Found");
        assert_eq!(exchange(address, b"POST /status HTTP/1.1\r\n\r\n"), "HTTP/1.0 405 Method Not Allowed");
        assert_eq!(exchange(address, b"\xff\x00\r\n\r\n"), "HTTP/1.0 405 Method Not Allowed");
        exchange(address, &vec![b'x'; REQUEST_MAX * 3]);
        assert!(ask(address).is_err());
        assert_eq!(exchange(address, b"GET / HTTP/1.0\r\n\r\n"), "HTTP/1.0 503 Service Unavailable", "it lives on");
    }

    fn asked(id: u8, state: &str, checkpoints: &[(u64, &str)]) -> Asked {
        let checkpoints = checkpoints.iter().map(|(n, root)| (*n, (*root).to_owned())).collect();
        Asked {
            id: ReplicaId(id),
            answer: Ok(ReplicaStatus { state: state.into(), checkpoints, ..ReplicaStatus::default() }),
        }
    }

    #[test]
    fn the_fault_budget_is_counted() {
        let size = ClusterSize::tolerating(1).unwrap();
        let mut all: Vec<Asked> = (0..4).map(|id| asked(id, "normal", &[(128, "a"), (256, "b")])).collect();
        let summary = summarize(size, &all);
        assert_eq!((summary.health, summary.can_lose, summary.digests), ("HEALTHY", 1, Some((256, true))));
        all[2] = asked(2, "forgetful", &[(128, "x")]);
        let summary = summarize(size, &all);
        assert_eq!((summary.health, summary.can_lose, summary.digests), ("DEGRADED", 0, Some((128, false))));
        all[1].answer = Err("gone".into());
        let summary = summarize(size, &all);
        assert_eq!((summary.health, summary.can_lose, summary.answering), ("DOWN", 0, 3));
    }
}
