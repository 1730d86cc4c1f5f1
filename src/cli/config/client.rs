//! `client.toml`: how a client finds its cluster and proves who it is.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::replica::{cluster, instance, receive_buffer};
use super::{Cluster, TransportKind, beside, folder_of, parse, read, within};
use crate::cli::errors::Error;
use crate::limits;

/// The file as it is written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// The cluster file, beside this one.
    #[serde(default = "cluster")]
    pub cluster: PathBuf,
    /// The secret key; mode 0600.
    #[serde(default = "key")]
    pub key_file: PathBuf,
    /// The number of this life of the cluster; the same on all hosts.
    #[serde(default = "instance")]
    pub instance_file: PathBuf,
    /// The packet path.
    #[serde(default = "sockets")]
    pub transport: TransportKind,
    /// A request without an answer for this long is given up.
    #[serde(default = "timeout")]
    pub request_timeout_ms: u64,
    /// Requests in flight at a time, in verbs that have many.
    #[serde(default = "window")]
    pub window: usize,
    /// Receive buffer to ask of the kernel.
    #[serde(default = "receive_buffer")]
    pub receive_buffer_bytes: usize,
}

fn key() -> PathBuf {
    "client.key".into()
}

/// A client sends little: plain sockets work everywhere and cost it nothing that shows.
fn sockets() -> TransportKind {
    TransportKind::Sockets
}

fn timeout() -> u64 {
    10_000
}

fn window() -> usize {
    256
}

/// A client's configuration and its cluster's, read and checked.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where it stands.
    pub path: PathBuf,
    /// What it says, with paths as seen from here.
    pub file: ClientFile,
    /// Its cluster.
    pub cluster: Cluster,
}

impl Client {
    /// Reads and checks `path`, or `client.toml` in the folder `path`, and the cluster file that it names.
    pub fn load(path: &Path) -> Result<Client, Error> {
        let path = if path.is_dir() { path.join("client.toml") } else { path.to_owned() };
        let text = read(&path, "name the cluster's folder or a client.toml: castra kv --cluster DIR …")?;
        let mut file: ClientFile = parse(&path, &text)?;
        let folder = folder_of(&path);
        file.cluster = beside(&folder, &file.cluster);
        file.key_file = beside(&folder, &file.key_file);
        file.instance_file = beside(&folder, &file.instance_file);
        within(&path, "request_timeout_ms", file.request_timeout_ms, 1..=86_400_000)?;
        within(&path, "window", file.window, 1..=limits::SESSION_WINDOW_MAX as usize)?;
        within(&path, "receive_buffer_bytes", file.receive_buffer_bytes, limits::DATAGRAM_MAX..=1 << 30)?;
        let cluster = Cluster::load(&file.cluster)?;
        Ok(Client { path, file, cluster })
    }
}
