//! A replicated counter: the smallest service that does something.
//!
//! `cargo run --example counter`

use castra::execution::{Context, NotReadOnly, ReplyBuffer, Service};
use castra::state::{Cell, Region};

const COUNT: Cell<u64> = Cell::at(0);

/// Every operation adds its first byte (or one) and answers the sum; a query answers the sum.
struct Counter;

impl Service for Counter {
    fn execute(&self, _cx: &mut Context<'_>, op: &[u8], state: &mut Region, reply: &mut ReplyBuffer) {
        let sum = COUNT.get(state).wrapping_add(op.first().copied().unwrap_or(1).into());
        COUNT.set(state, sum);
        reply.push(&sum.to_le_bytes());
    }

    fn query(&self, _: &Context<'_>, _: &[u8], state: &Region, reply: &mut ReplyBuffer) -> Result<(), NotReadOnly> {
        reply.push(&COUNT.get(state).to_le_bytes());
        Ok(())
    }
}

/// One executor, driven by hand: what a replica does once its cluster has agreed on a batch.
fn main() {
    use std::sync::Arc;

    use castra::execution::{Command, Executor, ExecutorConfig, Output};
    use castra::types::{ClientId, EndpointId, SeqNum, SessionId, Time, View};
    use castra::wire::{Batch, Choice, Outcome, PackBuilder, Proof, Request, RequestKind};

    let mut executor = Executor::new(Counter, ExecutorConfig::default()).expect("the defaults are valid");
    let mut execute = |n: u64, session: SessionId, t: u64, kind: RequestKind, op: &[u8]| {
        let mut pack = PackBuilder::new(ClientId(1), EndpointId(1));
        pack.push(&Request { session, t, low: 0, kind, op });
        let pack = pack.finish(false, |_, proof| proof.write(Proof::Vector(&[[0; 8]; 4])));
        let batch = Arc::new(Batch::new(Choice { time: n, seed: 0 }, vec![pack]));
        let mut outputs = Vec::new();
        let command = Command::Execute { n: SeqNum(n), view: View(0), batch, tentative: false };
        executor.handle(Time(0), command, &mut outputs);
        let Some(Output::Reply(reply)) = outputs.into_iter().next() else { panic!("a reply") };
        let Outcome::Done(result) = reply.outcome else { panic!("a result, not {:?}", reply.outcome) };
        u64::from_le_bytes(result[..8].try_into().expect("a number"))
    };

    let counter_and_window = [1u64.to_le_bytes(), 8u64.to_le_bytes()].concat();
    let session = SessionId(execute(1, SessionId::NONE, 1, RequestKind::Open, &counter_and_window));
    assert_eq!(execute(2, session, 0, RequestKind::Ordered, &[2]), 2);
    assert_eq!(execute(3, session, 1, RequestKind::Ordered, &[40]), 42);
    // The same request once more: answered, not executed.
    assert_eq!(execute(4, session, 0, RequestKind::Ordered, &[2]), 2);
    println!("the counter stands at {}", execute(5, session, 2, RequestKind::Ordered, &[0]));
}
