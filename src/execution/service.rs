//! What is replicated.

use super::context::Context;
use super::inspection::Inspection;
use super::reply_buffer::ReplyBuffer;
use crate::state::Region;
use crate::wire::Choice;

/// A deterministic service: the part that the author of a replicated program writes.
///
/// Everything that must survive lies in the [`Region`], which the library digests, rolls back, and sends to replicas
/// that lack it. `&self` is configuration: two replicas may differ in it only in ways that no result shows.
///
/// ```
/// use castra::execution::{Context, ReplyBuffer, Service};
/// use castra::state::Region;
///
/// /// Answers every operation with the operation itself and the time it was agreed at.
/// struct Echo;
///
/// impl Service for Echo {
///     fn execute(&self, cx: &mut Context, op: &[u8], _state: &mut Region, reply: &mut ReplyBuffer) {
///         reply.push(op);
///         reply.push(&cx.time().0.to_le_bytes());
///     }
/// }
/// ```
pub trait Service: Send + 'static {
    /// Lays out the empty state. Runs once, before the first operation, on every replica alike.
    fn genesis(&self, _state: &mut Region) {}

    /// Executes one ordered operation. The outcome depends on `op`, `state` and the agreed part of `cx` alone.
    ///
    /// `op` is what some client sent, of any bytes. A panic is a fault of the service: the replica stops and says so.
    fn execute(&self, cx: &mut Context<'_>, op: &[u8], state: &mut Region, reply: &mut ReplyBuffer);

    /// Answers an operation without ordering it (P6). `&Region` makes read-only a type. A panic or [`NotReadOnly`]
    /// gives no reply, and the client orders the operation instead.
    fn query(
        &self,
        _cx: &Context<'_>,
        _op: &[u8],
        _state: &Region,
        _reply: &mut ReplyBuffer,
    ) -> Result<(), NotReadOnly> {
        Err(NotReadOnly)
    }

    /// On backups: whether the primary's choice is acceptable (P12). `last` is the choice of some batch seen before,
    /// which need not survive a view change (P19).
    fn check(_choice: &Choice, _last: &Choice) -> bool
    where
        Self: Sized,
    {
        true
    }

    /// Whether the state fits together. It is run when an operator asks, on a state that some checkpoint sealed and on no
    /// thread of the replica's: it may take its time. `None`: this service has no check.
    fn inspect(_state: &Region) -> Option<Inspection>
    where
        Self: Sized,
    {
        None
    }
}

/// The operation changes state, or the service answers no queries: order it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotReadOnly;
