//! `cluster.toml`: who the cluster is. Its hash is the cluster's id.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::{SeqAccess, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{folder_of, parse, read, within, wrong};
use crate::auth::{AuthMode, ClusterKeys, PublicIdentity, Rights};
use crate::bfs::{Bfs, Claims};
use crate::cli::errors::Error;
use crate::execution::ExecutorConfig;
use crate::limits;
use crate::protocol;
use crate::types::{ClientId, ClusterSize, Digest, Domain, ReplicaId};

/// The service that a cluster replicates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ServiceName {
    /// The key-value service of `castra kv`
    Kv,
    /// Requests and replies of chosen sizes, for benchmarks
    Null,
    /// The file system of `castra bfs`
    Bfs,
}

impl ServiceName {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            ServiceName::Kv => "kv",
            ServiceName::Null => "null",
            ServiceName::Bfs => "bfs",
        }
    }
}

/// Whether messages carry MACs or signatures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// MACs between pairs.
    #[default]
    Mac,
    /// Ed25519 everywhere: dearer.
    Signature,
}

/// A right of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Queries
    Read,
    /// Ordered operations
    Write,
    /// Membership, keys, snapshots
    Administer,
}

impl Right {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Right::Read => "read",
            Right::Write => "write",
            Right::Administer => "administer",
        }
    }
}

/// One replica.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaEntry {
    /// 0 to n - 1.
    pub id: u8,
    /// Where it receives datagrams.
    pub address: SocketAddr,
    /// Its public identity.
    pub identity: String,
}

/// One client that is let in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedClient {
    /// For people.
    #[serde(default)]
    pub name: String,
    /// Its public identity.
    pub identity: String,
    /// What it may do.
    #[serde(default = "read_write")]
    pub rights: Vec<Right>,
    /// Users for whom it may act in the file system, others counting as nobody; for all, unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uids: Option<BTreeSet<u32>>,
    /// Groups likewise; none, if users are named and these are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gids: Option<BTreeSet<u32>>,
}

fn read_write() -> Vec<Right> {
    vec![Right::Read, Right::Write]
}

impl ListedClient {
    fn rights(&self) -> Rights {
        Rights {
            read: self.rights.contains(&Right::Read),
            write: self.rights.contains(&Right::Write),
            administer: self.rights.contains(&Right::Administer),
        }
    }

    /// For whom it may act in the file system; `None`: for all.
    fn claims(&self) -> Option<(ClientId, Claims)> {
        let (uids, gids) = (self.uids.clone()?, self.gids.clone().unwrap_or_default());
        let public: PublicIdentity = self.identity.parse().expect("it was checked");
        Some((public.client_id(), Claims { uids, gids }))
    }
}

/// `clients = "open"`, or `[[clients]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Clients {
    /// Anybody may read and write.
    Open,
    /// These.
    Listed(Vec<ListedClient>),
}

impl Default for Clients {
    fn default() -> Clients {
        Clients::Listed(Vec::new())
    }
}

impl Serialize for Clients {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Clients::Open => serializer.serialize_str("open"),
            Clients::Listed(list) => list.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Clients {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Clients, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Clients;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`clients = \"open\"` or [[clients]] tables")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Clients, E> {
                match text {
                    "open" => Ok(Clients::Open),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Clients, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Clients::Listed)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// What all replicas must agree on to take part in one protocol.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProtocolSection {
    /// K: a checkpoint every so many batches.
    pub checkpoint_interval: u64,
    /// L: batches in the log; a multiple of K, at least twice it.
    pub log_window: u64,
    /// Bytes of batches in the log.
    pub log_bytes_max: usize,
    /// Proposals under way at a time.
    pub pipeline_max: u64,
    /// Requests in a batch.
    pub batch_requests_max: usize,
    /// Bytes of packs in a batch; where datagrams are large, no more than fit one.
    pub batch_bytes_max: usize,
    /// Packs above it are proposed by digest.
    pub inline_bytes_max: usize,
    /// How long a commit waits for a message to ride on.
    pub commit_delay_us: u64,
    /// How long what orders may wait for company between a replica in reserve and the others (P53). 0: not at all.
    pub reserve_delay_us: u64,
    /// How often a replica says what it lacks.
    pub status_interval_ms: u64,
    /// How often it says that it is there.
    pub heartbeat_ms: u64,
    /// A replica not heard for this long is silent.
    pub silent_after_ms: u64,
    /// How far the primary's clock may be ahead.
    pub clock_skew_max_ms: u64,
    /// Bytes that one client may have waiting at a replica.
    pub client_bytes_max: usize,
    /// The largest UDP payload between any two parties.
    pub datagram_bytes_max: usize,
}

impl Default for ProtocolSection {
    fn default() -> ProtocolSection {
        let size = ClusterSize::tolerating(1).expect("f = 1 is allowed");
        let core = protocol::Config::new(size, ReplicaId(0));
        let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        ProtocolSection {
            checkpoint_interval: core.checkpoint_interval,
            log_window: core.log_window,
            log_bytes_max: core.log_bytes_max,
            pipeline_max: core.pipeline_max,
            batch_requests_max: core.batch_requests_max,
            batch_bytes_max: core.batch_bytes_max,
            inline_bytes_max: core.inline_max,
            commit_delay_us: us(core.commit_delay),
            reserve_delay_us: us(core.reserve_delay),
            status_interval_ms: us(core.status_interval) / 1_000,
            heartbeat_ms: us(core.heartbeat) / 1_000,
            silent_after_ms: us(core.silent_after) / 1_000,
            clock_skew_max_ms: us(core.clock_skew_max) / 1_000,
            client_bytes_max: core.client_bytes_max,
            datagram_bytes_max: DATAGRAM_BYTES_DEFAULT,
        }
    }
}

/// What fits Ethernet's MTU of 1,500 with IPv6 or a tunnel below.
const DATAGRAM_BYTES_DEFAULT: usize = 1_452;

/// Bounds of the replicated state. Replicas that differ here have different states.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StateSection {
    /// What the service may fill, bytes.
    pub service_bytes_max: u64,
    /// Sessions of all clients together.
    pub sessions_max: u32,
    /// Sessions of one client.
    pub sessions_per_client_max: u32,
    /// Clients whose last session is remembered.
    pub clients_max: u32,
    /// Requests that a session may have in flight.
    pub session_window_max: u64,
    /// A session without a request for so long is expired.
    pub session_idle_s: u64,
    /// Bytes of long results kept for duplicates.
    pub reply_store_bytes: usize,
}

impl Default for StateSection {
    fn default() -> StateSection {
        let core = ExecutorConfig::default();
        StateSection {
            service_bytes_max: u64::from(core.service_pages) * limits::PAGE as u64,
            sessions_max: core.sessions_max,
            sessions_per_client_max: core.sessions_per_client,
            clients_max: core.clients_max,
            session_window_max: core.window_max,
            session_idle_s: core.session_idle.as_secs(),
            reply_store_bytes: core.reply_store,
        }
    }
}

/// Of the file system. Replicas that differ here come to different states.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BfsSection {
    /// Calls of root are nobody's.
    pub root_squash: bool,
    /// Who owns the root directory of an empty file system.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permissions: octal digits.
    pub mode: String,
}

impl Default for BfsSection {
    fn default() -> BfsSection {
        let Bfs { root_squash, uid, gid, mode, .. } = Bfs::default();
        BfsSection { root_squash, uid, gid, mode: format!("{mode:04o}") }
    }
}

impl BfsSection {
    fn is_default(&self) -> bool {
        *self == BfsSection::default()
    }

    /// The file system; `None` if the mode is none.
    fn file_system(&self) -> Option<Bfs> {
        let mode = u32::from_str_radix(&self.mode, 8).ok().filter(|mode| *mode <= 0o7777)?;
        Some(Bfs { root_squash: self.root_squash, uid: self.uid, gid: self.gid, mode, ..Bfs::default() })
    }
}

/// The file as it is written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFile {
    /// For people.
    pub name: String,
    /// Faults tolerated; there are 3f + 1 replicas.
    pub f: usize,
    /// What is replicated.
    pub service: ServiceName,
    /// All keys were made in one place.
    #[serde(default)]
    pub lab: bool,
    /// MACs or signatures.
    #[serde(default)]
    pub auth: Auth,
    /// Whether queries are answered without ordering.
    #[serde(default = "yes")]
    pub read_only: bool,
    /// Who is let in.
    #[serde(default)]
    pub clients: Clients,
    /// Protocol parameters.
    #[serde(default)]
    pub protocol: ProtocolSection,
    /// Bounds of the state.
    #[serde(default)]
    pub state: StateSection,
    /// Of the file system, where that is the service.
    #[serde(default, skip_serializing_if = "BfsSection::is_default")]
    pub bfs: BfsSection,
    /// The replicas.
    pub replicas: Vec<ReplicaEntry>,
}

fn yes() -> bool {
    true
}

/// A cluster file, read and checked.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Where it stands.
    pub path: PathBuf,
    /// The hash of its bytes.
    pub id: Digest,
    /// n and f.
    pub size: ClusterSize,
    /// What it says.
    pub file: ClusterFile,
    replicas: Vec<PublicIdentity>,
    clients: crate::auth::Clients,
}

impl Cluster {
    /// Reads and checks `path`.
    pub fn load(path: &Path) -> Result<Cluster, Error> {
        let text =
            read(path, "`castra cluster init DIR` makes a laboratory, `castra cluster assemble` a real cluster")?;
        Cluster::parse(path, &text)
    }

    /// Checks the content of a cluster file.
    pub fn parse(path: &Path, text: &str) -> Result<Cluster, Error> {
        let mut file: ClusterFile = parse(path, text)?;
        within(path, "f", file.f, 1..=(limits::REPLICAS_MAX - 1) / 3)?;
        let size = ClusterSize::tolerating(file.f).expect("f is within bounds");
        if file.replicas.len() != size.n() {
            let mend = format!("f = {} needs exactly {} [[replicas]]", file.f, size.n());
            return Err(wrong(path, format!("{} replicas are listed", file.replicas.len()), mend));
        }
        file.replicas.sort_by_key(|entry| entry.id);
        let mut replicas = Vec::new();
        for (i, entry) in file.replicas.iter().enumerate() {
            if usize::from(entry.id) != i {
                let mend = format!("ids are 0 to {}, each once", size.n() - 1);
                return Err(wrong(path, format!("replica id {} is missing, or another stands twice", i), mend));
            }
            if let Some(other) = file.replicas[..i].iter().find(|other| other.address == entry.address) {
                let seen = format!("r{} and r{} have one address, {}", other.id, entry.id, entry.address);
                return Err(wrong(path, seen, "give each replica an address of its own"));
            }
            let identity = identity(path, &format!("r{}", entry.id), &entry.identity)?;
            if let Some(other) = replicas.iter().position(|&known| known == identity) {
                let seen = format!("r{other} and r{} have one identity", entry.id);
                return Err(wrong(path, seen, "make a key for each: castra node keygen"));
            }
            replicas.push(identity);
        }
        let clients = clients(path, &file.clients)?;
        let cluster = Cluster {
            path: path.to_owned(),
            id: Digest::of(Domain::Cluster, &[text.as_bytes()]),
            size,
            file,
            replicas,
            clients,
        };
        cluster.check_bounds()?;
        Ok(cluster)
    }

    fn check_bounds(&self) -> Result<(), Error> {
        let (path, p) = (&self.path, &self.file.protocol);
        within(path, "protocol.commit_delay_us", p.commit_delay_us, 0..=100_000)?;
        within(path, "protocol.reserve_delay_us", p.reserve_delay_us, 0..=10_000)?;
        within(path, "protocol.status_interval_ms", p.status_interval_ms, 1..=10_000)?;
        within(path, "protocol.heartbeat_ms", p.heartbeat_ms, 1..=60_000)?;
        within(path, "protocol.silent_after_ms", p.silent_after_ms, 1..=600_000)?;
        within(path, "protocol.clock_skew_max_ms", p.clock_skew_max_ms, 1..=3_600_000)?;
        within(path, "protocol.client_bytes_max", p.client_bytes_max, 2 * limits::OPERATION_MAX..=1 << 34)?;
        within(path, "protocol.datagram_bytes_max", p.datagram_bytes_max, limits::DATAGRAM_MIN..=limits::DATAGRAM_MAX)?;
        let pages = u64::from(u32::MAX) * limits::PAGE as u64;
        within(path, "state.service_bytes_max", self.file.state.service_bytes_max, 1 << 20..=pages)?;
        if self.file.bfs.file_system().is_none() {
            let seen = format!("bfs.mode is {:?}", self.file.bfs.mode);
            return Err(wrong(path, seen, "permissions are octal digits, 0000 to 7777"));
        }
        let core = self.protocol(ReplicaId(0));
        core.validate().map_err(|seen| wrong(path, seen, "see [protocol]; `castra config check` prints all values"))?;
        let execution = self.execution();
        execution.validate().map_err(|seen| wrong(path, seen, "see [state]; `castra config check` prints all values"))
    }

    /// The execution role's configuration.
    pub fn execution(&self) -> ExecutorConfig {
        let s = &self.file.state;
        ExecutorConfig {
            checkpoint_interval: self.file.protocol.checkpoint_interval,
            sessions_max: s.sessions_max,
            sessions_per_client: s.sessions_per_client_max,
            clients_max: s.clients_max,
            window_max: s.session_window_max,
            session_idle: Duration::from_secs(s.session_idle_s),
            reply_store: s.reply_store_bytes,
            service_pages: u32::try_from(s.service_bytes_max / limits::PAGE as u64).unwrap_or(u32::MAX),
            ..ExecutorConfig::default()
        }
    }

    /// The file system, if that is the service.
    pub fn bfs(&self) -> Bfs {
        let claims = match &self.file.clients {
            Clients::Open => BTreeMap::new(),
            Clients::Listed(list) => list.iter().filter_map(ListedClient::claims).collect(),
        };
        Bfs { claims, ..self.file.bfs.file_system().expect("it was checked") }
    }

    /// The agreement core's configuration for replica `me`.
    pub fn protocol(&self, me: ReplicaId) -> protocol::Config {
        let p = &self.file.protocol;
        protocol::Config {
            checkpoint_interval: p.checkpoint_interval,
            log_window: p.log_window,
            log_bytes_max: p.log_bytes_max,
            pipeline_max: p.pipeline_max,
            batch_requests_max: p.batch_requests_max,
            batch_bytes_max: p.batch_bytes_max,
            inline_max: p.inline_bytes_max,
            commit_delay: Duration::from_micros(p.commit_delay_us),
            reserve_delay: Duration::from_micros(p.reserve_delay_us),
            status_interval: Duration::from_millis(p.status_interval_ms),
            heartbeat: Duration::from_millis(p.heartbeat_ms),
            silent_after: Duration::from_millis(p.silent_after_ms),
            clock_skew_max: Duration::from_millis(p.clock_skew_max_ms),
            client_bytes_max: p.client_bytes_max,
            ..protocol::Config::new(self.size, me)
        }
    }

    /// The keys of this cluster's life number `instance`.
    pub fn keys(&self, instance: u64) -> Arc<ClusterKeys> {
        Arc::new(ClusterKeys {
            cluster: self.id,
            instance,
            replicas: self.replicas.clone(),
            clients: self.clients.clone(),
        })
    }

    /// MACs or signatures.
    pub fn auth_mode(&self) -> AuthMode {
        match self.file.auth {
            Auth::Mac => AuthMode::Mac,
            Auth::Signature => AuthMode::Signature,
        }
    }

    /// The public identity of replica `id`.
    pub fn identity(&self, id: ReplicaId) -> PublicIdentity {
        self.replicas[usize::from(id.0)]
    }

    /// The replicas' addresses, by id.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.file.replicas.iter().map(|entry| entry.address).collect()
    }

    /// Whether anybody may read and write.
    pub fn is_open(&self) -> bool {
        self.file.clients == Clients::Open
    }

    /// Whether all replicas are on this host: they share its cores.
    pub fn is_on_one_host(&self) -> bool {
        self.addresses().iter().all(|address| address.ip().is_loopback())
    }

    /// W016: laboratory keys, and state in memory alone, stay on loopback, unless someone knows better.
    pub fn check_lab(&self, knowingly: bool) -> Result<(), Error> {
        let beyond = self.addresses().into_iter().find(|address| !address.ip().is_loopback());
        match beyond {
            Some(address) if !knowingly => {
                Err(Error::LabBeyondLoopback { address, cluster: self.path.clone(), lab_keys: self.file.lab })
            }
            _ => Ok(()),
        }
    }

    /// The folder that it stands in.
    pub fn folder(&self) -> PathBuf {
        folder_of(&self.path)
    }
}

/// Parses a public identity, with an error that says whose it is.
pub fn identity(path: &Path, owner: &str, text: &str) -> Result<PublicIdentity, Error> {
    text.parse().map_err(|error| {
        wrong(
            path,
            format!("the identity of {owner}: {error}"),
            "copy the line that `castra node keygen` printed, whole",
        )
    })
}

fn clients(path: &Path, clients: &Clients) -> Result<crate::auth::Clients, Error> {
    let list = match clients {
        Clients::Open => return Ok(crate::auth::Clients::Open),
        Clients::Listed(list) => list,
    };
    let mut listed = BTreeMap::new();
    for (i, client) in list.iter().enumerate() {
        let owner = if client.name.is_empty() { format!("client {i}") } else { client.name.clone() };
        let public = identity(path, &owner, &client.identity)?;
        if listed.insert(public.client_id(), (public, client.rights())).is_some() {
            return Err(wrong(path, format!("the identity of {owner} stands twice"), "list each client once"));
        }
        if client.uids.is_none() && client.gids.is_some() {
            let seen = format!("{owner} has gids and no uids");
            return Err(wrong(path, seen, "say for which users it may act, too, or leave both out: for all"));
        }
    }
    Ok(crate::auth::Clients::Listed(listed))
}
