//! A service on one server that nobody replicates, in a process of its own: what replication is compared with.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::bench::Path as PacketPath;
use super::{LOOK, PATIENCE};
use crate::auth::{AuthMode, Identity, PublicIdentity};
use crate::bfs::Bfs;
use crate::cli::config::{ServiceName, TransportKind};
use crate::cli::connect::backend;
use crate::cli::errors::Error;
use crate::cli::files;
use crate::cli::replica::stop_with_stdin;
use crate::client::EndpointConfig;
use crate::execution::{ExecutorConfig, Service};
use crate::lab::unreplicated::{Server, keys};
use crate::lab::{Child, DATAGRAM, Launch, Target};
use crate::protocol;
use crate::runtime::bind::{Bound, UdpConfig, lasting_ports};
use crate::runtime::client::{Client, ClientConfig};
use crate::runtime::{Clock, Stop, StopOnSignals, Udp};
use crate::services::{Kv, Null};
use crate::types::{ClusterSize, ReplicaId};

/// The server, to be started: `castra bench unreplicated`.
#[derive(clap::Args, Debug)]
pub struct ServerArgs {
    /// The folder of the keys
    dir: PathBuf,
    #[arg(long)]
    address: SocketAddr,
    #[arg(long, value_enum)]
    service: ServiceName,
    #[arg(long, value_enum)]
    transport: PacketPath,
    /// Pages of the state
    #[arg(long)]
    pages: u32,
    /// Owner of a file system's root directory
    #[arg(long, default_value_t = 0)]
    uid: u32,
}

/// What is served, and how.
#[derive(Clone, Copy, Debug)]
pub struct Unreplicated {
    /// What is served.
    pub service: ServiceName,
    /// The packet path of both ends.
    pub transport: PacketPath,
    /// Pages of the state.
    pub pages: u32,
    /// Owner of a file system's root directory.
    pub uid: u32,
}

/// The server, running. It ends with this, and its folder goes.
pub struct Lone {
    // The process before the folder that it writes to.
    server: Child,
    what: Unreplicated,
    address: SocketAddr,
    client: Identity,
    key: PublicIdentity,
    folder: TempDir,
}

/// What may be wrong if an answer fails to come.
pub const BUSY: &str = "is the machine very busy? `uptime` shows its load";

const SERVER_KEY: &str = "server.key";
const CLIENT_KEY: &str = "client.key";
/// Made once the server has its socket.
const READY: &str = "ready";

impl Unreplicated {
    /// The null service.
    pub fn null(transport: PacketPath) -> Unreplicated {
        Unreplicated { service: ServiceName::Null, transport, pages: ExecutorConfig::default().service_pages, uid: 0 }
    }

    /// Makes keys, starts the process, and waits until it can be asked.
    pub fn start(self) -> Result<Lone, Error> {
        let folder = tempfile::Builder::new().prefix("castra-").tempdir();
        let folder = folder.map_err(Error::system("make a temporary folder"))?;
        let make = |name| {
            let identity = files::new_identity()?;
            files::write_key(&folder.path().join(name), "a server without replicas", &identity)?;
            Ok::<_, Error>(identity)
        };
        let (key, client) = (make(SERVER_KEY)?.public(), make(CLIENT_KEY)?);
        let port = lasting_ports(Ipv4Addr::LOCALHOST.into(), 1);
        let port = port.ok_or_else(|| Error::Usage("no free port on loopback".into()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let program = std::env::current_exe().map_err(Error::system("find this program"))?;
        let transport = if self.transport == PacketPath::Uring { "uring" } else { "sockets" };
        let (dir, pages, uid) = (folder.path().display(), self.pages, self.uid);
        let line = format!(
            "bench unreplicated {dir} --address {address} --service {} --transport {transport} --pages {pages} --uid {uid}",
            self.service.word()
        );
        let arguments = line.split(' ').map(Into::into).collect();
        let launch = Launch { name: "server".into(), program, arguments, log: folder.path().join("log") };
        let server = Child::start(launch).map_err(Error::system("start the server that is not replicated"))?;
        let mut lone = Lone { server, what: self, address, client, key, folder };
        lone.wait()?;
        Ok(lone)
    }
}

impl Lone {
    fn wait(&mut self) -> Result<(), Error> {
        let (ready, until) = (self.folder.path().join(READY), Instant::now() + PATIENCE);
        while !ready.exists() {
            if self.server.ended().is_some() || Instant::now() > until {
                return Err(self.failure(format!("it has not come up in {} s", PATIENCE.as_secs())));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Who may ask it.
    pub fn identity(&self) -> &Identity {
        &self.client
    }

    /// How its client reaches it.
    pub fn target(&self, timeout: Duration) -> Target {
        Target {
            addresses: vec![self.address],
            keys: keys(&self.key, &self.client.public()),
            mode: AuthMode::Mac,
            datagram_max: DATAGRAM,
            inline_max: protocol::Config::new(ClusterSize::UNREPLICATED, ReplicaId(0)).inline_max,
            read_only: true,
            request_timeout: timeout,
            backend: backend(self.what.transport.into()),
            clock: Clock::new(),
        }
    }

    /// A client with so many requests outstanding.
    pub fn connect(&self, window: u64, timeout: Duration) -> Result<Client, Error> {
        let Target { addresses, keys, inline_max, backend, .. } = self.target(timeout);
        let endpoint = EndpointConfig { inline_max, request_timeout: timeout, ..EndpointConfig::default() };
        let config = ClientConfig { endpoint, window, ..ClientConfig::default() };
        let udp = UdpConfig { datagram_max: DATAGRAM, ..UdpConfig::client(addresses) };
        let open = move || Ok(Udp::open(Bound::bind(udp)?, backend)?.0);
        let client = Client::connect(&self.client, keys, config, open);
        client.map_err(|error| crate::cli::connect::failed("connect", timeout, error))
    }

    /// What is to be said if it did not answer: why it ended, or `seen`.
    pub fn failure(&mut self, seen: String) -> Error {
        let words = self.server.ended().map(|exit| format!("{exit}: {}", self.server.last_words()));
        Error::Running {
            seen: format!("the server that is not replicated: {}", words.unwrap_or(seen)),
            mend: BUSY.into(),
        }
    }

    /// Ends it.
    pub fn stop(mut self) {
        self.server.stop(PATIENCE);
    }
}

/// The server itself, until standard input closes.
pub fn server(args: &ServerArgs) -> Result<(), Error> {
    match args.service {
        ServiceName::Null => serve(args, Null),
        ServiceName::Kv => serve(args, Kv),
        ServiceName::Bfs => serve(args, Bfs { uid: args.uid, gid: args.uid, ..Bfs::default() }),
    }
}

fn serve<S: Service>(args: &ServerArgs, service: S) -> Result<(), Error> {
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    stop_with_stdin(stop.clone())?;
    let key = |name: &str| files::read_key(&Path::join(&args.dir, name));
    let server = Server::new(service, args.pages, &key(SERVER_KEY)?, &key(CLIENT_KEY)?.public());
    let ready = || {
        // If it cannot be made, whoever waits for it says so in the end.
        let _ = fs::write(args.dir.join(READY), "");
    };
    let backend = backend(TransportKind::from(args.transport));
    Ok(server.map_err(Error::Usage)?.run(args.address, backend, &stop, ready)?)
}
