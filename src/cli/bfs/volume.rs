//! The file system as gateways see it: on replicas, or on one server.

use fuser::Errno;

use crate::bfs::{Answer, Bfs, Credentials, Procedure, Request};
use crate::cli::lab::unreplicated::Lone;
use crate::cli::output::note;
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

    /// Hands a mount's call over. That it cannot be is noted, and EIO to the program.
    pub fn start(&self, cred: &Credentials, request: &Request<'_>) -> Result<Pending, Errno> {
        let mut arguments = Vec::new();
        request.encode(&mut arguments);
        self.submit(request.procedure() as u32, cred, &arguments).map_err(came_to_nothing)
    }

    /// Waits for the result of a mount's call, a refusal too, and takes from it what `take` does.
    pub fn finish<T>(
        asked: Pending,
        procedure: Procedure,
        take: impl FnOnce(&Answer<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let result = asked.wait().map_err(came_to_nothing)?;
        let results = match result.split_first_chunk::<4>() {
            Some(([0, 0, 0, 0], results)) => results,
            _ => return Err(Errno::EIO),
        };
        take(&Answer::parse(procedure, results).map_err(|_| Errno::EIO)?)
    }
}

fn came_to_nothing(error: ClientError) -> Errno {
    note(format!("a call came to nothing: {error}"));
    Errno::EIO
}
