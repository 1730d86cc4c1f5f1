//! The file system as gateways see it: replicated, or alone in this process.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::bfs::{Bfs, Credentials, Procedure};
use crate::execution::{Caches, Context, ReplyBuffer, Service as _};
use crate::runtime::client::{Client, ClientError, Pending};
use crate::state::Region;
use crate::types::{ClientId, Position, Time};

/// The file system.
pub enum Volume {
    /// On replicas.
    Replicated(Client),
    /// Here.
    Alone(Box<Mutex<Alone>>),
}

/// The file system without replicas.
pub struct Alone {
    bfs: Bfs,
    region: Region,
    reply: ReplyBuffer,
    caches: Caches,
}

/// A call on its way.
pub enum Asked {
    /// The replicas have it.
    Pending(Pending),
    /// It is carried out.
    Done(Bytes),
}

impl Asked {
    /// The result: accept_stat, and the results of the procedure.
    pub fn wait(self) -> Result<Bytes, ClientError> {
        match self {
            Asked::Pending(pending) => pending.wait(),
            Asked::Done(result) => Ok(result),
        }
    }
}

impl Volume {
    /// On the replicas that `client` is one of.
    pub fn replicated(client: Client) -> Volume {
        Volume::Replicated(client)
    }

    /// An empty one of so many pages in this process.
    pub fn alone(bfs: Bfs, pages: u32) -> Volume {
        let mut region = Region::new(pages);
        bfs.format(&mut region);
        let alone = Alone { bfs, region, reply: ReplyBuffer::new(), caches: Caches::new() };
        Volume::Alone(Box::new(Mutex::new(alone)))
    }

    /// Hands a call over. It blocks while as many are on their way as may be. What changes nothing is not ordered.
    pub fn submit(&self, procedure: u32, cred: &Credentials, arguments: &[u8]) -> Result<Asked, ClientError> {
        let op = Bfs::operation(procedure, cred, arguments);
        let read_only = Procedure::from_number(procedure).is_none_or(Procedure::is_read_only);
        match self {
            Volume::Replicated(client) if read_only => client.submit_query(op).map(Asked::Pending),
            Volume::Replicated(client) => client.submit(op).map(Asked::Pending),
            Volume::Alone(alone) => {
                // A panic while it was held is the same as one of a replica: that call is lost, and said to be.
                let mut alone = alone.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(Asked::Done(alone.execute(&op)))
            }
        }
    }
}

impl Alone {
    fn execute(&mut self, op: &[u8]) -> Bytes {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = Time(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        self.reply.clear();
        let mut cx = Context::for_test(time, ClientId(0), Position(0), &mut self.caches);
        self.bfs.execute(&mut cx, op, &mut self.region, &mut self.reply);
        self.reply.take()
    }
}
