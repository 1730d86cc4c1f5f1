//! The file system as gateways see it: on replicas, or on one server.

use crate::bfs::{Bfs, Credentials, Procedure};
use crate::cli::lab::unreplicated::Lone;
use crate::runtime::client::{Client, ClientError, Pending};

/// The file system.
pub struct Volume {
    client: Client,
    /// The one server, if there are no replicas: it ends with this.
    _server: Option<Lone>,
}

impl Volume {
    /// Where `client` leads. `server` is there if it has no replicas.
    pub fn new(client: Client, server: Option<Lone>) -> Volume {
        Volume { client, _server: server }
    }

    /// Hands a call over; its result is accept_stat, and the results of the procedure. It blocks while as many are on their
    /// way as may be. What changes nothing is not ordered.
    pub fn submit(&self, procedure: u32, cred: &Credentials, arguments: &[u8]) -> Result<Pending, ClientError> {
        let op = Bfs::operation(procedure, cred, arguments);
        match Procedure::from_number(procedure).is_none_or(Procedure::is_read_only) {
            true => self.client.submit_query(op),
            false => self.client.submit(op),
        }
    }
}
