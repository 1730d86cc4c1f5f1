//! A replicated counter: the smallest service that does something.
//!
//! `cargo run --example counter` runs it on four replicas in this process;
//! `cargo test --example counter` plays it under a lossy network from a seed.

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

#[cfg(feature = "runtime")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = castra::runtime::Embedded::start(1, || Counter)?;
    let client = cluster.client()?;
    client.execute(vec![2])?;
    client.execute(vec![40])?;
    let sum = client.query(vec![])?;
    println!("four replicas agree: the counter stands at {}", u64::from_le_bytes(sum[..].try_into()?));
    Ok(())
}

#[cfg(not(feature = "runtime"))]
fn main() {}

#[cfg(test)]
mod tests {
    use super::*;
    use castra::sim::{Ask, Config, Simulation};

    /// Loss, delay, duplication and reordering, one schedule for each seed: replicas stay equal, every operation is
    /// executed once, and what clients saw is linearizable.
    #[test]
    fn it_survives_a_lossy_network() {
        for seed in 0..10 {
            let workload = |_client: usize, index: u64, _: &mut _| match index % 3 {
                0 => Ask::query(vec![]),
                _ => Ask::ordered(vec![index as u8]),
            };
            let simulation = Simulation::new(seed, Config::lossy(), || Counter, workload);
            simulation.run().unwrap_or_else(|failure| panic!("{failure}"));
        }
    }
}
