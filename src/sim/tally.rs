//! A service that notices what is executed twice.

use std::collections::BTreeMap;

use super::linearizability::{Call, Model};
use super::rng::Rng;
use super::workload::Ask;
use crate::execution::{Context, NotReadOnly, ReplyBuffer, Service};
use crate::limits::PAGE;
use crate::state::{PageId, Region};

/// Counts how often each token was executed, and chains them in order.
///
/// An operation is a token (u64), then any padding; the result is how many operations were executed before and with
/// it, how often this token was, and a chain over all tokens so far: three u64. A token executed twice anywhere changes
/// the result of every later operation. A query is a token, too, and returns the three numbers as they stand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally;

/// Tokens must be smaller: one byte of state for each.
pub const TOKENS_MAX: u64 = 64 * PAGE as u64;

const HEADER: PageId = PageId(1);
const FIRST: u32 = 2;

impl Tally {
    /// Client `client`'s operations: distinct tokens, `padding` more bytes in each, `read_permille` queries of tokens
    /// that may or may not have been executed.
    pub fn workload(padding: usize, read_permille: u32) -> impl FnMut(usize, u64, &mut Rng) -> Ask {
        move |client, index, rng| {
            let mut op = vec![0u8; 8 + padding];
            if rng.chance(read_permille) {
                let other = rng.below(4) * 1_000 + rng.below(index + 1);
                op[..8].copy_from_slice(&other.to_le_bytes());
                return Ask::query(op);
            }
            let token = client as u64 * 1_000 + index;
            rng.fill(&mut op[8..]);
            op[..8].copy_from_slice(&token.to_le_bytes());
            Ask::ordered(op)
        }
    }

    fn token(op: &[u8]) -> Option<u64> {
        op.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).filter(|&token| token < TOKENS_MAX)
    }

    fn place(token: u64) -> (PageId, usize) {
        (PageId(FIRST + (token / PAGE as u64) as u32), (token % PAGE as u64) as usize)
    }

    fn header(state: &Region) -> (u64, u64) {
        let page = state.read(HEADER);
        let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"));
        (word(0), word(8))
    }
}

fn chain(before: u64, token: u64) -> u64 {
    Rng::new(before ^ token.rotate_left(32)).next_u64()
}

fn answer(executed: u64, times: u8, chain: u64) -> Vec<u8> {
    [executed, u64::from(times), chain].iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl Service for Tally {
    fn genesis(&self, state: &mut Region) {
        let first = state.grow(1).expect("room for the header");
        assert_eq!(first, HEADER, "page 0 is the directory");
    }

    fn execute(&self, _cx: &mut Context<'_>, op: &[u8], state: &mut Region, reply: &mut ReplyBuffer) {
        let Some(token) = Tally::token(op) else { return };
        let (page, at) = Tally::place(token);
        if page.0 >= state.pages() && state.grow(page.0 + 1 - state.pages()).is_err() {
            return;
        }
        let (executed, before) = Tally::header(state);
        let times = state.read(page)[at].saturating_add(1);
        state.write(page, at..at + 1)[0] = times;
        let after = chain(before, token);
        let header = state.write(HEADER, 0..16);
        header[..8].copy_from_slice(&(executed + 1).to_le_bytes());
        header[8..].copy_from_slice(&after.to_le_bytes());
        reply.push(&answer(executed + 1, times, after));
    }

    fn query(&self, _cx: &Context<'_>, op: &[u8], state: &Region, reply: &mut ReplyBuffer) -> Result<(), NotReadOnly> {
        let Some(token) = Tally::token(op) else { return Ok(()) };
        let (page, at) = Tally::place(token);
        let times = if page.0 < state.pages() { state.read(page)[at] } else { 0 };
        let (executed, chain) = Tally::header(state);
        reply.push(&answer(executed, times, chain));
        Ok(())
    }
}

/// What [`Tally`] does, without pages.
#[derive(Clone, Debug, Default)]
pub struct TallyModel {
    executed: u64,
    chain: u64,
    times: BTreeMap<u64, u8>,
}

impl Model for TallyModel {
    fn apply(&mut self, call: &Call<'_>) -> Vec<u8> {
        let Some(token) = Tally::token(call.op) else { return Vec::new() };
        self.executed += 1;
        self.chain = chain(self.chain, token);
        let times = self.times.entry(token).or_default();
        *times += 1;
        answer(self.executed, *times, self.chain)
    }

    fn query(&mut self, call: &Call<'_>) -> Option<Vec<u8>> {
        let Some(token) = Tally::token(call.op) else { return Some(Vec::new()) };
        Some(answer(self.executed, self.times.get(&token).copied().unwrap_or(0), self.chain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::ServiceModel;
    use crate::types::{ClientId, Position, SeqNum, Time};

    fn call(at: u64, op: &[u8]) -> Call<'_> {
        Call { client: ClientId(1), position: Position::new(SeqNum(at), 0), time: Time(at), seed: 0, op }
    }

    #[test]
    fn the_service_is_what_the_model_says() {
        let mut rng = Rng::new(3);
        let mut service = ServiceModel::new(Tally, 100);
        let mut model = TallyModel::default();
        let mut ask = Tally::workload(5, 300);
        for i in 0..200 {
            let ask = ask(rng.index(4), i, &mut rng);
            let call = call(i, &ask.op);
            if ask.read_only {
                assert_eq!(service.query(&call), model.query(&call));
            } else {
                assert_eq!(service.apply(&call), model.apply(&call));
            }
        }
        for op in [&[][..], &[1, 2], &[255; 8], &[255; 30]] {
            assert_eq!(service.apply(&call(900, op)), model.apply(&call(900, op)));
            assert_eq!(service.query(&call(900, op)), model.query(&call(900, op)));
        }
    }

    #[test]
    fn p04_a_second_execution_shows_in_every_later_result() {
        let mut once = TallyModel::default();
        let mut twice = TallyModel::default();
        let (a, b) = (1u64.to_le_bytes(), 2u64.to_le_bytes());
        once.apply(&call(1, &a));
        twice.apply(&call(1, &a));
        twice.apply(&call(2, &a));
        assert_ne!(once.apply(&call(3, &b)), twice.apply(&call(3, &b)));
    }
}
