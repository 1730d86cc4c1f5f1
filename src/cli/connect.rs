//! A client of a running cluster, from its configuration.

use std::path::Path;
use std::time::Duration;

use super::config::{self, TransportKind, wrong};
use super::errors::Error;
use super::files;
use crate::auth::{Clients, Rights};
use crate::client::{EndpointConfig, RequestError};
use crate::runtime::bind::{Bound, UdpConfig};
use crate::runtime::client::{Client, ClientConfig, ClientError};
use crate::runtime::{Backend, Udp};

/// A client and what it was made of.
pub struct Connected {
    /// The client.
    pub client: Client,
    /// Its configuration.
    pub config: config::Client,
    /// How long a request waits.
    pub timeout: Duration,
}

/// What reports and configuration call a packet path, to the runtime.
pub fn backend(kind: TransportKind) -> Backend {
    match kind {
        TransportKind::Auto => Backend::Auto,
        TransportKind::Uring => Backend::Uring,
        TransportKind::Sockets => Backend::Sockets,
    }
}

/// Makes a client by the configuration at `path` (a `client.toml`, or the folder of one).
pub fn connect(path: &Path, timeout: Option<Duration>) -> Result<Connected, Error> {
    let config = config::Client::load(path)?;
    let identity = files::read_key(&config.file.key_file)?;
    let instance = files::read_instance(&config.file.instance_file)?;
    let keys = config.cluster.keys(instance);
    let rights = match &keys.clients {
        Clients::Open => Rights::READ_WRITE,
        Clients::Listed(listed) => match listed.get(&identity.public().client_id()) {
            Some((_, rights)) => *rights,
            None => {
                let seen = format!(
                    "the client of {} (fingerprint {}) is not listed: the replicas would not answer it",
                    config.file.key_file.display(),
                    files::fingerprint(&identity.public())
                );
                let mend = "assemble the cluster with its *.pub.toml, or use the key of a client that is listed";
                return Err(wrong(&config.cluster.path, seen, mend));
            }
        },
    };
    let timeout = timeout.unwrap_or(Duration::from_millis(config.file.request_timeout_ms));
    let protocol = &config.cluster.file.protocol;
    let endpoint = EndpointConfig {
        inline_max: protocol.inline_bytes_max,
        read_only: config.cluster.file.read_only,
        fallback: rights.write,
        request_timeout: timeout,
        session_idle: Duration::from_secs(config.cluster.file.state.session_idle_s) / 2,
        ..EndpointConfig::default()
    };
    let client_config = ClientConfig {
        endpoint,
        mode: config.cluster.auth_mode(),
        sessions: 1,
        window: config.file.window as u64,
        ..ClientConfig::default()
    };
    let udp = UdpConfig {
        datagram_max: protocol.datagram_bytes_max,
        receive_buffer: config.file.receive_buffer_bytes,
        ..UdpConfig::client(config.cluster.addresses())
    };
    let kind = backend(config.file.transport);
    let open = move || Ok(Udp::open(Bound::bind(udp)?, kind)?.0);
    let client =
        Client::connect(&identity, keys, client_config, open).map_err(|error| failed("connect", timeout, error))?;
    Ok(Connected { client, config, timeout })
}

/// What a client's error means at the command line. `operation` names the request.
pub fn failed(operation: &str, timeout: Duration, error: ClientError) -> Error {
    let refused =
        |answer: String, mend: &str| Error::Refused { operation: operation.to_owned(), answer, mend: mend.to_owned() };
    match error {
        ClientError::Request(RequestError::Timeout { tally, sent }) => Error::ClientTimeout {
            operation: operation.to_owned(),
            after: timeout,
            need: tally.need,
            n: tally.replicas,
            matching: tally.matched,
            differing: tally.differing,
            silent: tally.silent.iter().map(|replica| replica.to_string()).collect(),
            unauthentic: tally.unauthentic,
            maybe_executed: sent,
        },
        ClientError::Request(error) => {
            let mend = match error.maybe_executed() {
                true => "look whether it was executed before you ask again",
                false => "it was not executed; ask again",
            };
            refused(error.to_string(), mend)
        }
        ClientError::TooLarge(_) => refused(error.to_string(), "make it smaller"),
        ClientError::Stopped => refused(error.to_string(), "ask again"),
        ClientError::Config(text) => Error::Usage(text),
        ClientError::Keys(error) => Error::Usage(error.to_string()),
        ClientError::Transport(error) => error.into(),
    }
}
