//! What goes into the execution role and what comes out of it.

use std::sync::Arc;

use crate::auth::Verified;
use crate::state::Page;
use crate::types::{ClientId, Digest, EndpointId, Executed, Position, ReplicaId, SeqNum, SessionId, View};
use crate::wire::{Batch, Outcome, Pack, ReplyKind};

/// Work for the execution role, in the order in which it must be done.
#[derive(Clone, Debug)]
pub enum Command {
    /// Execute batch `n`: `n` is one above the last executed.
    Execute {
        /// The sequence number.
        n: SeqNum,
        /// The view that the replies name.
        view: View,
        /// The batch.
        batch: Arc<Batch>,
        /// It may be rolled back: replies are tentative. At most one batch is (P16).
        tentative: bool,
    },
    /// The tentative batch `n` is committed.
    Commit(SeqNum),
    /// Undo the tentative batch `n`: state, sessions and cached replies (P17).
    Rollback(SeqNum),
    /// Answer read-only requests on the first committed state that includes `after`, or on the tentative one (P18).
    Query {
        /// The requests.
        pack: Pack,
        /// The least sequence number that the state must include.
        after: SeqNum,
        /// If that is the tentative batch, its state may answer.
        tentative: bool,
        /// The view that the replies name.
        view: View,
    },
    /// A retransmitted (signed) pack: answer from the cache what was executed (P4), and say whether anything in it
    /// would still execute.
    Admit {
        /// The pack.
        pack: Verified<Pack>,
        /// The view that the replies name.
        view: View,
    },
    /// The state is of no use any more: that of checkpoint `n` is to be fetched (P38). Seal what there is, which others
    /// compare it with, and execute and answer nothing until it is replaced.
    Halt {
        /// The checkpoint.
        n: SeqNum,
        /// Its certified root.
        root: Digest,
        /// The own root there is another (P25).
        diverged: bool,
    },
    /// Handed on, behind everything that was sealed before: compare the state at `n` with that of others (P25).
    Compare {
        /// The checkpoint.
        n: SeqNum,
        /// The others, and their roots there.
        others: Vec<(ReplicaId, Digest)>,
    },
    /// The certified state at `n`, all its pages by region, in place of the own one.
    Install {
        /// The checkpoint.
        n: SeqNum,
        /// Its pages.
        pages: [Vec<Arc<Page>>; 2],
    },
}

/// What the execution role has to say.
#[derive(Debug)]
pub enum Output {
    /// One reply for a client endpoint.
    Reply(Reply),
    /// A batch was executed.
    Executed(Executed),
    /// The pack of [`Command::Admit`] holds a request that would execute now: order it.
    Unexecuted(Verified<Pack>),
    /// Nothing in the pack of [`Command::Admit`] with this digest would execute any more.
    Settled(crate::types::Digest),
    /// Checkpoint `n` was sealed: its dirty pages follow for the checkpoint role.
    Sealed(crate::state::Sealed),
    /// Execution stands still: the state at checkpoint `n` can be fetched, and compared with what was sealed here.
    Halted {
        /// The checkpoint.
        n: SeqNum,
        /// Its certified root.
        root: Digest,
        /// The own root there is another (P25).
        diverged: bool,
    },
    /// Of [`Command::Compare`].
    Compare {
        /// The checkpoint.
        n: SeqNum,
        /// The others, and their roots there.
        others: Vec<(ReplicaId, Digest)>,
    },
    /// The state was replaced; whatever was answered before came from the old one.
    Installed(SeqNum),
    /// The state that q replicas certified does not fit this replica's configuration: it must stop.
    Unfit(String),
    /// The service panicked at this position: the replica must stop (it does not limp).
    Stopped {
        /// Where.
        position: Position,
        /// The panic's message.
        message: String,
    },
}

/// A reply on its way to the network role, which adds view, MAC and, for large results, the choice between result and
/// digest (P7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// Whose request it was.
    pub client: ClientId,
    /// Where to send it.
    pub endpoint: EndpointId,
    /// The request's session.
    pub session: SessionId,
    /// The request's number.
    pub t: u64,
    /// The view in which it was executed.
    pub view: View,
    /// How final it is.
    pub kind: ReplyKind,
    /// Where it was executed.
    pub position: Position,
    /// The outcome.
    pub outcome: Outcome,
    /// The client asked for the whole result from everyone.
    pub full: bool,
}
