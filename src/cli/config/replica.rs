//! `rN.toml`: one replica's own configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Cluster, TransportKind, beside, folder_of, parse, read, within, wrong};
use crate::cli::errors::Error;
use crate::limits;
use crate::runtime::bind::UdpConfig;
use crate::runtime::{Cores, WaitPolicy};
use crate::types::ReplicaId;

/// The file as it is written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaFile {
    /// 0 to n - 1.
    pub id: u8,
    /// The cluster file, beside this one.
    #[serde(default = "cluster")]
    pub cluster: PathBuf,
    /// The secret key; mode 0600. By default rN.key.
    pub key_file: Option<PathBuf>,
    /// The number of this life of the cluster; the same on all hosts.
    #[serde(default = "instance")]
    pub instance_file: PathBuf,
    /// How often this replica was started; written by it. By default rN.boot.
    pub boot_file: Option<PathBuf>,
    /// Where to receive, if not at the address of cluster.toml (NAT).
    pub bind: Option<SocketAddr>,
    /// Where to answer `castra status`. Absent: nowhere.
    pub status: Option<SocketAddr>,
    /// Where to answer Prometheus, `GET /metrics`. Absent: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Let `metrics` be an address beyond loopback: whoever reaches it reads it.
    #[serde(default)]
    pub metrics_beyond_loopback: bool,
    /// The packet path.
    #[serde(default)]
    pub transport: TransportKind,
    /// Placement: `auto`, `fused`, one core's number, or `network=0,1 execution=2 checkpoint=3`; with `clients=4,5`
    /// clients' datagrams have cores of their own.
    #[serde(default = "auto")]
    pub cores: String,
    /// Receive buffer to ask of the kernel, per socket.
    #[serde(default = "receive_buffer")]
    pub receive_buffer_bytes: usize,
    /// How long to poll after the last event before sleeping, at most: as long as events are that near.
    #[serde(default = "poll_budget")]
    pub poll_budget_us: u64,
}

pub(super) fn cluster() -> PathBuf {
    "cluster.toml".into()
}

pub(super) fn instance() -> PathBuf {
    "instance".into()
}

fn auto() -> String {
    "auto".into()
}

pub(super) fn receive_buffer() -> usize {
    UdpConfig::RECEIVE_BUFFER_DEFAULT
}

fn poll_budget() -> u64 {
    u64::try_from(WaitPolicy::default().poll_budget.as_micros()).unwrap_or(u64::MAX)
}

/// A replica's configuration and its cluster's, read and checked.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Where it stands.
    pub path: PathBuf,
    /// Who.
    pub id: ReplicaId,
    /// What it says, with defaults filled in and paths as seen from here.
    pub file: ReplicaFile,
    /// Its cluster.
    pub cluster: Cluster,
}

impl Replica {
    /// Reads and checks `path` and the cluster file that it names.
    pub fn load(path: &Path) -> Result<Replica, Error> {
        let text = read(path, "name the replica's own file: castra replica --config DIR/r0.toml")?;
        let mut file: ReplicaFile = parse(path, &text)?;
        let folder = folder_of(path);
        let own = |extension: &str| PathBuf::from(format!("r{}.{extension}", file.id));
        file.key_file = Some(beside(&folder, file.key_file.as_deref().unwrap_or(&own("key"))));
        file.boot_file = Some(beside(&folder, file.boot_file.as_deref().unwrap_or(&own("boot"))));
        file.cluster = beside(&folder, &file.cluster);
        file.instance_file = beside(&folder, &file.instance_file);
        let cluster = Cluster::load(&file.cluster)?;
        within(path, "id", usize::from(file.id), 0..=cluster.size.n() - 1)?;
        within(path, "receive_buffer_bytes", file.receive_buffer_bytes, limits::DATAGRAM_MAX..=1 << 30)?;
        within(path, "poll_budget_us", file.poll_budget_us, 0..=1_000_000)?;
        file.cores.parse::<Cores>().map_err(Error::Cores)?;
        if file.status.is_some() && file.status == file.bind {
            return Err(wrong(path, "`status` and `bind` are one address", "give `status` a port of its own"));
        }
        if let Some(metrics) = file.metrics {
            if [file.status, file.bind].contains(&Some(metrics)) {
                return Err(wrong(
                    path,
                    "`metrics` has the address of another key",
                    "give `metrics` a port of its own",
                ));
            }
            if !metrics.ip().is_loopback() && !file.metrics_beyond_loopback {
                let seen = format!("metrics = \"{metrics}\" is not loopback: whoever reaches it reads it");
                let mend = format!("metrics = \"127.0.0.1:{}\", or metrics_beyond_loopback = true", metrics.port());
                return Err(wrong(path, seen, mend));
            }
        }
        Ok(Replica { path: path.to_owned(), id: ReplicaId(file.id), file, cluster })
    }

    /// Its key file.
    pub fn key_file(&self) -> &Path {
        self.file.key_file.as_deref().unwrap_or(Path::new(""))
    }

    /// Its boot counter.
    pub fn boot_file(&self) -> &Path {
        self.file.boot_file.as_deref().unwrap_or(Path::new(""))
    }

    /// Which role runs on which core, as asked for.
    pub fn cores(&self) -> Result<Cores, Error> {
        self.file.cores.parse().map_err(Error::Cores)
    }

    /// Where it receives.
    pub fn bind(&self) -> SocketAddr {
        self.file.bind.unwrap_or(self.cluster.file.replicas[usize::from(self.id.0)].address)
    }
}
