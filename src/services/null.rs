//! Does nothing, with results of a chosen size: what is left of the cost is the library's own.

use crate::execution::{Context, NotReadOnly, ReplyBuffer, Service};
use crate::limits::OPERATION_MAX;
use crate::state::Region;

/// The service of benchmarks. Operation: reply_len u32 little-endian, then padding of any bytes. Result: that many zero
/// bytes, at most [`OPERATION_MAX`]; none for an operation below four bytes. Everything is read-only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Null;

impl Null {
    /// An operation of `request` bytes (at least four) that asks for a result of `reply` bytes.
    pub fn op(request: usize, reply: usize) -> Vec<u8> {
        assert!(request.max(reply) <= OPERATION_MAX, "operations and results have at most {OPERATION_MAX} bytes");
        let mut op = vec![0; request.max(4)];
        op[..4].copy_from_slice(&(reply as u32).to_le_bytes());
        op
    }

    /// The result of `op`, whatever serves it.
    pub fn answer(op: &[u8], reply: &mut ReplyBuffer) {
        if let Some(len) = op.first_chunk() {
            reply.push_zeros(u32::from_le_bytes(*len) as usize);
        }
    }
}

impl Service for Null {
    fn execute(&self, _cx: &mut Context<'_>, op: &[u8], _state: &mut Region, reply: &mut ReplyBuffer) {
        Null::answer(op, reply);
    }

    fn query(&self, _cx: &Context<'_>, op: &[u8], _state: &Region, reply: &mut ReplyBuffer) -> Result<(), NotReadOnly> {
        Null::answer(op, reply);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_has_the_size_asked_for() {
        for (op, len) in [(Null::op(0, 0), 0), (Null::op(100, 4096), 4096), (vec![255; 4], OPERATION_MAX), (vec![1], 0)]
        {
            let mut reply = ReplyBuffer::new();
            Null::answer(&op, &mut reply);
            assert_eq!(reply.len(), len);
        }
    }
}
