//! The rules of PROTOCOL that the executor keeps, each by its number, and a property test against a simple model.

mod model;
mod order;
mod queries;
mod service;
mod sessions;
mod transfer;

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::auth::{Principal, Verified};
use crate::limits::OPERATION_MAX;
use crate::state::{Cell, Region};
use crate::types::{ClientId, Digest, EndpointId, Position, SeqNum, SessionId, Time, View};
use crate::wire::{Batch, Choice, Outcome, Pack, PackBuilder, Proof, ReplyKind, Request, RequestKind};

const ALICE: ClientId = ClientId(0xa11ce);
const BOB: ClientId = ClientId(0xb0b);
const SECOND: u64 = 1_000_000_000;

/// Counts executions; by the operation's first byte it does other things too.
///
/// `+` increments and answers the count; `b` len u32: answers so many bytes of the count; `t` answers time and a random
/// number; `!` panics. Queries: `=` answers the count, `!` panics, everything else is not read-only.
struct Tally;

const COUNT: Cell<u64> = Cell::at(0);

impl Service for Tally {
    fn execute(&self, cx: &mut Context<'_>, op: &[u8], state: &mut Region, reply: &mut ReplyBuffer) {
        let count = COUNT.get(state) + 1;
        COUNT.set(state, count);
        // A cache that shows in results if rollback does not drop it.
        let cached = cx.cache::<Option<u64>>();
        assert_eq!(cached.unwrap_or(count - 1), count - 1, "the cache was dropped with the batch");
        *cached = Some(count);
        match op.first() {
            Some(b'b') => {
                let len = u32::from_le_bytes(op[1..5].try_into().unwrap()) as usize;
                reply.push(&vec![count as u8; len]);
            }
            Some(b't') => {
                reply.push(&cx.time().0.to_le_bytes());
                reply.push(&cx.random_u64().to_le_bytes());
            }
            Some(b'!') => panic!("out of tallies at {count}"),
            _ => reply.push(&count.to_le_bytes()),
        }
    }

    fn query(&self, _cx: &Context<'_>, op: &[u8], state: &Region, reply: &mut ReplyBuffer) -> Result<(), NotReadOnly> {
        match op {
            b"=" => reply.push(&COUNT.get(state).to_le_bytes()),
            b"!" => panic!("asked badly"),
            _ => return Err(NotReadOnly),
        }
        Ok(())
    }
}

fn big(len: usize) -> Vec<u8> {
    [b"b", &(len as u32).to_le_bytes()[..]].concat()
}

fn config() -> ExecutorConfig {
    ExecutorConfig {
        checkpoint_interval: 4,
        sessions_max: 40,
        sessions_per_client: 3,
        clients_max: 200,
        window_max: 64,
        session_idle: std::time::Duration::from_secs(10),
        reply_store: OPERATION_MAX,
        service_pages: 1_000,
        ..ExecutorConfig::default()
    }
}

fn request(session: SessionId, t: u64, low: u64, kind: RequestKind, op: &[u8]) -> Request<'_> {
    Request { session, t, low, kind, op }
}

fn pack_of(client: ClientId, requests: &[Request<'_>]) -> Pack {
    pack_from(client, EndpointId(client.0 + 1), requests)
}

fn pack_from(client: ClientId, endpoint: EndpointId, requests: &[Request<'_>]) -> Pack {
    let mut builder = PackBuilder::new(client, endpoint);
    for request in requests {
        builder.push(request);
    }
    builder.finish(false, |_, proof| proof.write(Proof::Vector(&[[0; 8]; 4])))
}

fn ordered(client: ClientId, session: SessionId, t: u64, op: &[u8]) -> Pack {
    pack_of(client, &[request(session, t, 0, RequestKind::Ordered, op)])
}

fn open(client: ClientId, counter: u64, window: u64) -> Pack {
    let op = [counter.to_le_bytes(), window.to_le_bytes()].concat();
    pack_of(client, &[request(SessionId::NONE, counter, 0, RequestKind::Open, &op)])
}

fn close(client: ClientId, session: SessionId, t: u64) -> Pack {
    pack_of(client, &[request(session, t, 0, RequestKind::Close, b"")])
}

fn query(client: ClientId, t: u64, op: &[u8]) -> Pack {
    pack_of(client, &[request(SessionId::NONE, t, 0, RequestKind::ReadOnly, op)])
}

fn count(result: u64) -> Outcome {
    Outcome::Done(Bytes::copy_from_slice(&result.to_le_bytes()))
}

/// An executor and the next sequence number, so that tests read as a trace.
struct Bench<S: Service> {
    executor: Executor<S>,
    now: Time,
    view: View,
    next: u64,
}

impl Bench<Tally> {
    fn new() -> Bench<Tally> {
        Bench::with(config())
    }

    fn with(config: ExecutorConfig) -> Bench<Tally> {
        let executor = Executor::new(Tally, config).unwrap();
        Bench { executor, now: Time(0), view: View(0), next: 1 }
    }
}

impl<S: Service> Bench<S> {
    fn handle(&mut self, command: Command) -> Vec<Output> {
        let mut out = Vec::new();
        self.executor.handle(self.now, command, &mut out);
        out
    }

    fn batch_at(&mut self, time: u64, packs: &[Pack], tentative: bool) -> Vec<Output> {
        let batch = Arc::new(Batch::new(Choice { time, seed: 7 }, packs.to_vec()));
        let n = SeqNum(self.next);
        self.next += 1;
        self.handle(Command::Execute { n, view: self.view, batch, tentative })
    }

    fn committed(&mut self, packs: &[Pack]) -> Vec<Reply> {
        replies(self.batch_at(0, packs, false))
    }

    fn committed_at(&mut self, time: u64, packs: &[Pack]) -> Vec<Reply> {
        replies(self.batch_at(time, packs, false))
    }

    fn tentative(&mut self, packs: &[Pack]) -> Vec<Reply> {
        replies(self.batch_at(0, packs, true))
    }

    fn commit(&mut self) -> Vec<Output> {
        self.handle(Command::Commit(SeqNum(self.next - 1)))
    }

    fn rollback(&mut self) -> Vec<Output> {
        self.next -= 1;
        self.handle(Command::Rollback(SeqNum(self.next)))
    }

    fn admit(&mut self, pack: &Pack) -> (Vec<Reply>, bool) {
        let from = Principal::Client(pack.client(), pack.endpoint());
        let out = self.handle(Command::Admit { pack: Verified::assume(from, pack.clone()), view: self.view });
        let unexecuted = out.iter().any(|o| matches!(o, Output::Unexecuted(_)));
        (replies(out), unexecuted)
    }

    fn query(&mut self, pack: Pack, after: u64) -> Vec<Reply> {
        self.query_at(pack, after, false)
    }

    fn query_at(&mut self, pack: Pack, after: u64, tentative: bool) -> Vec<Reply> {
        let view = self.view;
        replies(self.handle(Command::Query { pack, after: SeqNum(after), tentative, view }))
    }

    /// A session of `client`, which has none.
    fn session(&mut self, client: ClientId, window: u64) -> SessionId {
        session_of(&self.committed(&[open(client, 1, window)])[0])
    }

    fn root(&self) -> Digest {
        self.executor.state().full_root()
    }
}

fn session_of(reply: &Reply) -> SessionId {
    let Outcome::Done(result) = &reply.outcome else { panic!("not opened: {reply:?}") };
    SessionId(u64::from_le_bytes(result[..8].try_into().unwrap()))
}

fn replies(out: Vec<Output>) -> Vec<Reply> {
    out.into_iter()
        .filter_map(|output| match output {
            Output::Reply(reply) => Some(reply),
            Output::Executed(_)
            | Output::Unexecuted(_)
            | Output::Settled(_)
            | Output::Sealed(_)
            | Output::Halted { .. }
            | Output::Compare { .. }
            | Output::Installed(_)
            | Output::Unfit(_)
            | Output::Stopped { .. } => None,
        })
        .collect()
}
