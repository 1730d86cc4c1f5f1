//! `cluster init`: a laboratory with all keys in one place. `node keygen` and `cluster assemble`: a real cluster, where
//! no secret ever leaves its host.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::{self, Cluster, ListedClient, ReplicaEntry, Right, ServiceName, wrong};
use super::errors::Error;
use super::files;
use super::output::{line, note};
use crate::auth::PublicIdentity;
use crate::lab::DATAGRAM;
use crate::limits;
use crate::runtime::bind::{free_ports, holders, lasting_ports};
use crate::types::ClusterSize;

/// `castra cluster init`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  castra cluster init lab && castra up lab && castra kv --cluster lab put greeting hello"
)]
pub struct Init {
    /// Folder to make; it must not exist, or be empty
    pub dir: PathBuf,
    /// Faults to tolerate; makes 3f + 1 replicas
    #[arg(long, default_value_t = 1)]
    pub f: usize,
    /// First UDP port; by default free ones are found that the kernel gives nobody else. Status answers at the ports after the replicas'
    #[arg(long)]
    pub base_port: Option<u16>,
    /// Address of all replicas
    #[arg(long, default_value = "127.0.0.1")]
    pub address: IpAddr,
    /// What is replicated
    #[arg(long, default_value = "kv")]
    pub service: ServiceName,
    /// Name of the cluster; by default the folder's
    #[arg(long)]
    pub name: Option<String>,
    /// Let anybody read and write, not only client.key
    #[arg(long)]
    pub open: bool,
    /// Sign messages instead of MACing them
    #[arg(long)]
    pub signatures: bool,
    /// Batches from one checkpoint to the next; the log holds four times as many
    #[arg(long, value_name = "BATCHES")]
    pub checkpoint_interval: Option<u64>,
    /// Allow an address beyond loopback: whoever reads the folder can act as every replica
    #[arg(long)]
    pub lab: bool,
}

/// Makes a laboratory, and says what it made.
pub fn init(args: &Init) -> Result<(), Error> {
    let (cluster, status) = make(args)?;
    let dir = args.dir.display();
    line(format!("{dir}: cluster {} of {} replicas, tolerates {}", short(&cluster), cluster.size.n(), args.f))?;
    for (entry, status) in cluster.file.replicas.iter().zip(&status) {
        line(format!("  r{}  {}  status {status}", entry.id, entry.address))?;
    }
    note("This is a laboratory: all keys were made in one place. Next: castra up ".to_owned() + &dir.to_string());
    Ok(())
}

/// Makes a laboratory: the cluster and where its replicas answer `castra status`.
pub fn make(args: &Init) -> Result<(Cluster, Vec<SocketAddr>), Error> {
    let size = size(args.f)?;
    let cluster_path = args.dir.join("cluster.toml");
    let first = SocketAddr::new(args.address, args.base_port.unwrap_or(0));
    if !args.address.is_loopback() && !args.lab {
        return Err(Error::LabBeyondLoopback { address: first, cluster: cluster_path, lab_keys: true });
    }
    empty_folder(&args.dir)?;
    let (addresses, status) = ports(args.address, args.base_port, size.n())?;
    make_at(args, &addresses, &status)
}

/// The same where the addresses of the replicas and of their status are settled, and known to be free.
pub fn make_at(
    args: &Init,
    addresses: &[SocketAddr],
    status: &[SocketAddr],
) -> Result<(Cluster, Vec<SocketAddr>), Error> {
    let size = size(args.f)?;
    let cluster_path = args.dir.join("cluster.toml");
    empty_folder(&args.dir)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => args.dir.file_name().map_or("lab".into(), |name| name.to_string_lossy().into_owned()),
    };
    let identities = (0..size.n()).map(|_| files::new_identity()).collect::<Result<Vec<_>, _>>()?;
    let client = files::new_identity()?;
    let entries: Vec<ReplicaEntry> = (0u8..)
        .zip(addresses.iter().zip(&identities))
        .map(|(id, (&address, identity))| ReplicaEntry { id, address, identity: identity.public().to_string() })
        .collect();
    let clients = (!args.open).then(|| {
        let rights = vec![Right::Read, Right::Write, Right::Administer];
        vec![ListedClient { name: "lab".into(), identity: client.public().to_string(), rights, uids: None, gids: None }]
    });
    let text = cluster_text(&ClusterText {
        name: &name,
        f: args.f,
        service: args.service,
        lab: true,
        signatures: args.signatures,
        datagram_bytes: Some(DATAGRAM),
        checkpoint_interval: args.checkpoint_interval,
        owner: owner(args.service),
        replicas: &entries,
        clients: clients.as_deref(),
    });
    let cluster = Cluster::parse(&cluster_path, &text)?;

    fs::create_dir_all(&args.dir).map_err(Error::writing(&args.dir))?;
    files::write_new(&cluster_path, text.as_bytes(), 0o644)?;
    files::write_instance(&args.dir.join("instance"), files::random_u64()?)?;
    for (id, identity) in identities.iter().enumerate() {
        files::write_key(&args.dir.join(format!("r{id}.key")), &format!("r{id}"), identity)?;
        let text = replica_text(id, Some(status[id]));
        files::write_new(&args.dir.join(format!("r{id}.toml")), text.as_bytes(), 0o644)?;
    }
    files::write_key(&args.dir.join("client.key"), "the laboratory's client", &client)?;
    files::write_new(&args.dir.join("client.toml"), CLIENT_TEXT.as_bytes(), 0o644)?;
    Ok((cluster, status.to_vec()))
}

/// The first bytes of a cluster's id, for people.
pub fn short(cluster: &Cluster) -> String {
    hex::encode(&cluster.id.0[..4])
}

fn size(f: usize) -> Result<ClusterSize, Error> {
    ClusterSize::tolerating(f).ok_or_else(|| {
        let max = (limits::REPLICAS_MAX - 1) / 3;
        Error::Usage(format!("f = {f} is not possible: from 1 (4 replicas) to {max} ({} replicas)", 3 * max + 1))
    })
}

fn empty_folder(dir: &Path) -> Result<(), Error> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::reading(dir, "name a folder that does not exist yet")(error)),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Error::Running {
                seen: format!("{} is not empty", dir.display()),
                mend: "nothing was changed; choose another folder, or remove this one yourself".into(),
            }),
        },
    }
}

/// `n` addresses for datagrams and `n` for status, after each other: from `base`, all tried, or from where they are free
/// and stay so.
fn ports(ip: IpAddr, base: Option<u16>, n: usize) -> Result<(Vec<SocketAddr>, Vec<SocketAddr>), Error> {
    let width = u16::try_from(2 * n).unwrap_or(u16::MAX);
    let base = match base {
        Some(base) => base,
        None => {
            // That nobody may bind at this address at all is another matter than that all ports are taken.
            UdpSocket::bind((ip, 0)).map_err(Error::system(format!("bind a port of {ip}")))?;
            let none =
                || Error::Usage(format!("no {width} free ports in a row on {ip}: end what holds them, see ss -lntu"));
            lasting_ports(ip, width).ok_or_else(none)?
        }
    };
    let last = usize::from(base) + 2 * n - 1;
    if base == 0 || last > usize::from(u16::MAX) {
        return Err(Error::Usage(format!("--base-port {base} leaves no room for {} ports below 65536", 2 * n)));
    }
    let address = |i: usize| SocketAddr::new(ip, base + u16::try_from(i).unwrap_or(u16::MAX));
    for i in 0..2 * n {
        let taken = if i < n { udp_taken(address(i))? } else { tcp_taken(address(i))? };
        if taken {
            let free = free_ports(ip, base.saturating_add(width), width);
            return Err(Error::PortInUse { address: address(i), holders: holders(address(i)), free });
        }
    }
    Ok(((0..n).map(address).collect(), (n..2 * n).map(address).collect()))
}

fn udp_taken(address: SocketAddr) -> Result<bool, Error> {
    taken(UdpSocket::bind(address).map(drop), address)
}

fn tcp_taken(address: SocketAddr) -> Result<bool, Error> {
    taken(TcpListener::bind(address).map(drop), address)
}

fn taken(bound: std::io::Result<()>, address: SocketAddr) -> Result<bool, Error> {
    match bound {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Ok(true),
        Err(error) => Err(Error::system(format!("bind {address}"))(error)),
    }
}

struct ClusterText<'a> {
    name: &'a str,
    f: usize,
    service: ServiceName,
    lab: bool,
    signatures: bool,
    datagram_bytes: Option<usize>,
    checkpoint_interval: Option<u64>,
    /// User and group whom the root directory of a file system belongs to; else root.
    owner: Option<(u32, u32)>,
    replicas: &'a [ReplicaEntry],
    clients: Option<&'a [ListedClient]>,
}

/// Text with the TOML escapes that a basic string needs.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn cluster_text(of: &ClusterText<'_>) -> String {
    let mut text = String::from(
        "# A castra cluster: the same file on all hosts. Its hash is the cluster's id, so every changed byte makes another\n\
         # cluster. `castra config check` prints it with all defaults.\n",
    );
    let _ = writeln!(text, "name = {}", quoted(of.name));
    let _ = writeln!(text, "f = {}", of.f);
    let _ = writeln!(text, "service = \"{}\"", of.service.word());
    if of.lab {
        text.push_str("# All keys were made in one place: for trying out, on loopback.\nlab = true\n");
    }
    if of.signatures {
        text.push_str("auth = \"signature\"\n");
    }
    if of.clients.is_none() {
        text.push_str("# Anybody may read and write.\nclients = \"open\"\n");
    }
    if of.datagram_bytes.is_some() || of.checkpoint_interval.is_some() {
        text.push_str("\n[protocol]\n");
    }
    if let Some(bytes) = of.datagram_bytes {
        let _ = writeln!(text, "datagram_bytes_max = {bytes}");
    }
    if let Some(interval) = of.checkpoint_interval {
        let window = interval.saturating_mul(4);
        let _ = writeln!(text, "checkpoint_interval = {interval}\nlog_window = {window}");
    }
    if let Some((uid, gid)) = of.owner {
        let _ = writeln!(text, "\n[bfs]\nuid = {uid}\ngid = {gid}");
    }
    for replica in of.replicas {
        let _ = writeln!(text, "\n[[replicas]]\nid = {}\naddress = \"{}\"", replica.id, replica.address);
        let _ = writeln!(text, "identity = {}", quoted(&replica.identity));
    }
    for client in of.clients.unwrap_or_default() {
        let rights: Vec<&str> = client.rights.iter().map(|right| right.word()).collect();
        let _ = writeln!(text, "\n[[clients]]\nname = {}", quoted(&client.name));
        let _ = writeln!(text, "identity = {}\nrights = {rights:?}", quoted(&client.identity));
        for (name, ids) in [("uids", &client.uids), ("gids", &client.gids)] {
            if let Some(ids) = ids {
                let _ = writeln!(text, "{name} = {:?}", ids.iter().collect::<Vec<_>>());
            }
        }
    }
    text
}

/// Who a new laboratory's file system belongs to: whoever makes it, who could not write there otherwise.
fn owner(service: ServiceName) -> Option<(u32, u32)> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    (service == ServiceName::Bfs && !uid.is_root()).then(|| (uid.as_raw(), gid.as_raw()))
}

fn replica_text(id: usize, status: Option<SocketAddr>) -> String {
    let status = match status {
        Some(address) => format!("status = \"{address}\"\n"),
        None => "# status = \"127.0.0.1:7900\"\n".into(),
    };
    format!("# Replica {id}. `castra config check` prints it with all defaults.\nid = {id}\n{status}")
}

const CLIENT_TEXT: &str =
    "# A client. `castra config check` prints it with all defaults.\ncluster = \"cluster.toml\"\n";

/// `castra node keygen`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example, on each host:\n  castra node keygen --replica 0 --address 10.0.0.1:7000 --out /etc/castra\nand for a \
                  client:\n  castra node keygen --client alice --out .\nThen carry the *.pub.toml files, never the *.key \
                  files, to `castra cluster assemble`."
)]
pub struct Keygen {
    /// Make the key of replica N
    #[arg(long, value_name = "N", required_unless_present = "client", conflicts_with = "client")]
    pub replica: Option<u8>,
    /// Where that replica will receive datagrams
    #[arg(long, value_name = "IP:PORT", required_unless_present = "client", conflicts_with = "client")]
    pub address: Option<SocketAddr>,
    /// Make the key of a client of this name
    #[arg(long, value_name = "NAME")]
    pub client: Option<String>,
    /// What the client may do
    #[arg(long, value_delimiter = ',', default_values = ["read", "write"], requires = "client")]
    pub rights: Vec<Right>,
    /// Users for whom the client may act in a file system; others count as nobody. For all, unless said
    #[arg(long, value_delimiter = ',', value_name = "UID,…", requires = "client")]
    pub uids: Vec<u32>,
    /// Groups likewise
    #[arg(long, value_delimiter = ',', value_name = "GID,…", requires = "uids")]
    pub gids: Vec<u32>,
    /// Folder for the files
    #[arg(long, default_value = ".")]
    pub out: PathBuf,
}

/// The public part of one key, as `node keygen` writes it and `cluster assemble` reads it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicPart {
    replica: Option<ReplicaEntry>,
    client: Option<ListedClient>,
}

/// Makes a key and its public part.
pub fn keygen(args: &Keygen) -> Result<(), Error> {
    let identity = files::new_identity()?;
    let public = identity.public().to_string();
    let (stem, owner, part) = match (args.replica, args.address, &args.client) {
        (Some(id), Some(address), _) => {
            let stem = format!("r{id}");
            (
                stem.clone(),
                stem,
                PublicPart { replica: Some(ReplicaEntry { id, address, identity: public }), client: None },
            )
        }
        (_, _, Some(name)) => {
            if name.is_empty()
                || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                || name.starts_with('.')
            {
                return Err(Error::Usage(format!("--client {name:?}: a name has letters, digits, `-`, `_` and `.`")));
            }
            let ids = |of: &[u32]| (!of.is_empty()).then(|| of.iter().copied().collect());
            let client = ListedClient {
                name: name.clone(),
                identity: public,
                rights: args.rights.clone(),
                uids: ids(&args.uids),
                gids: ids(&args.gids),
            };
            (name.clone(), format!("client {name}"), PublicPart { replica: None, client: Some(client) })
        }
        _ => return Err(Error::Usage("name --replica N --address IP:PORT, or --client NAME".into())),
    };
    fs::create_dir_all(&args.out).map_err(Error::writing(&args.out))?;
    let (key, public) = (args.out.join(format!("{stem}.key")), args.out.join(format!("{stem}.pub.toml")));
    files::write_key(&key, &owner, &identity)?;
    let text =
        toml::to_string_pretty(&part).map_err(|error| Error::system("make TOML")(std::io::Error::other(error)))?;
    files::write_new(&public, format!("# Public: carry it to `castra cluster assemble`.\n{text}").as_bytes(), 0o644)?;
    if let Some(id) = args.replica {
        let own = args.out.join(format!("r{id}.toml"));
        if !own.exists() {
            files::write_new(&own, replica_text(usize::from(id), None).as_bytes(), 0o644)?;
        }
    }
    line(format!("{owner}  fingerprint {}", files::fingerprint(&identity.public())))?;
    line(format!("  secret  {}  (mode 0600; it stays on this host)", key.display()))?;
    line(format!("  public  {}  (carry it to `castra cluster assemble`)", public.display()))
}

/// `castra cluster assemble`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  castra cluster assemble --name bank --out cluster.toml r0.pub.toml r1.pub.toml r2.pub.toml \
                  r3.pub.toml alice.pub.toml\nThen copy cluster.toml and instance to every host. With an existing cluster.toml \
                  the parts are compared with it."
)]
pub struct Assemble {
    /// Public parts, as `node keygen` wrote them
    #[arg(required = true)]
    pub parts: Vec<PathBuf>,
    /// The cluster file to write, or to compare with
    #[arg(long, default_value = "cluster.toml")]
    pub out: PathBuf,
    /// Name of the cluster
    #[arg(long, default_value = "castra")]
    pub name: String,
    /// What is replicated
    #[arg(long, default_value = "kv")]
    pub service: ServiceName,
    /// Sign messages instead of MACing them
    #[arg(long)]
    pub signatures: bool,
}

/// Makes a cluster file from public parts alone, or compares them with the one that is there.
pub fn assemble(args: &Assemble) -> Result<(), Error> {
    let mut replicas: BTreeMap<u8, (ReplicaEntry, &Path, PublicIdentity)> = BTreeMap::new();
    let mut clients = Vec::new();
    for path in &args.parts {
        let text = config::read(path, "`castra node keygen` writes *.pub.toml files")?;
        if files::holds_secret(&text) {
            let mend =
                "a secret key stays on its host: give the *.pub.toml beside it. If this file travelled, make a new key";
            return Err(wrong(path, "this is a secret key", mend));
        }
        let part: PublicPart = config::parse(path, &text)?;
        match (part.replica, part.client) {
            (Some(replica), None) => {
                let public = config::identity(path, &format!("r{}", replica.id), &replica.identity)?;
                let id = replica.id;
                if let Some((_, other, _)) = replicas.insert(id, (replica, path, public)) {
                    return Err(wrong(
                        path,
                        format!("r{id} stands in {} too", other.display()),
                        "give each replica's part once",
                    ));
                }
            }
            (None, Some(client)) => clients.push(client),
            _ => {
                return Err(wrong(
                    path,
                    "not the public part of one key",
                    "`castra node keygen` writes *.pub.toml files",
                ));
            }
        }
    }
    if args.out.exists() {
        return compare(&args.out, replicas.into_values());
    }
    let n = replicas.len();
    let Some(size) = ClusterSize::of(n) else {
        let mut fitting = (1..).map_while(ClusterSize::tolerating).map(ClusterSize::n);
        let next = fitting.find(|&fits| fits > n).unwrap_or(limits::REPLICAS_MAX);
        return Err(Error::Usage(format!("{n} replicas are no cluster: 3f + 1 are, next is {next}")));
    };
    let entries: Vec<ReplicaEntry> = replicas.into_values().map(|(entry, _, _)| entry).collect();
    let text = cluster_text(&ClusterText {
        name: &args.name,
        f: size.f(),
        service: args.service,
        lab: false,
        signatures: args.signatures,
        datagram_bytes: None,
        checkpoint_interval: None,
        owner: None,
        replicas: &entries,
        clients: Some(&clients),
    });
    let cluster = Cluster::parse(&args.out, &text)?;
    files::write_new(&args.out, text.as_bytes(), 0o644)?;
    let instance = cluster.folder().join("instance");
    files::write_instance(&instance, files::random_u64()?)?;
    line(format!("{}: cluster {} of {n} replicas, tolerates {}", args.out.display(), short(&cluster), size.f()))?;
    line(format!("  {} clients are let in", clients.len()))?;
    line(format!("  copy {} and {} beside rN.toml on every host", args.out.display(), instance.display()))
}

fn compare<'a>(out: &Path, parts: impl Iterator<Item = (ReplicaEntry, &'a Path, PublicIdentity)>) -> Result<(), Error> {
    let cluster = Cluster::load(out)?;
    let mut same = 0;
    for (part, path, public) in parts {
        let Some(entry) = cluster.file.replicas.get(usize::from(part.id)) else {
            let mend = format!("{} has replicas 0 to {}", out.display(), cluster.size.n() - 1);
            return Err(wrong(path, format!("r{} is not a replica of this cluster", part.id), mend));
        };
        let expected = cluster.identity(crate::types::ReplicaId(part.id));
        if expected != public {
            return Err(Error::KeyMismatch {
                owner: format!("r{}", part.id),
                key: path.to_owned(),
                found: files::fingerprint(&public),
                cluster: out.to_owned(),
                expected: files::fingerprint(&expected),
            });
        }
        if entry.address != part.address {
            let seen =
                format!("r{} is at {} here, but at {} in {}", part.id, part.address, entry.address, out.display());
            return Err(wrong(path, seen, "make the two agree: every host must have the same cluster.toml"));
        }
        same += 1;
    }
    line(format!(
        "{}: cluster {}; {same} public parts agree with it, nothing was written",
        out.display(),
        short(&cluster)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_directory_belongs_to_whoever_makes_the_laboratory() {
        let mut text = ClusterText {
            name: "lab",
            f: 1,
            service: ServiceName::Bfs,
            lab: true,
            signatures: false,
            datagram_bytes: None,
            checkpoint_interval: Some(16),
            owner: Some((1_001, 100)),
            replicas: &[],
            clients: None,
        };
        let written: toml::Table = toml::from_str(&cluster_text(&text)).unwrap();
        let section = written["bfs"].as_table().unwrap();
        let ids = ["uid", "gid"].map(|key| section[key].as_integer());
        assert_eq!((ids, section.len()), ([Some(1_001), Some(100)], 2));
        text.owner = None;
        let written: toml::Table = toml::from_str(&cluster_text(&text)).unwrap();
        assert!(!written.contains_key("bfs"), "root's is the default");
        assert_eq!(owner(ServiceName::Null), None);
    }
}
