//! What goes into the agreement core and what comes out of it.

use std::fmt;
use std::sync::Arc;

use crate::auth::Verified;
use crate::types::{Digest, Executed, ReplicaId, SeqNum, View};
use crate::wire::{Batch, Claim, Message, NewView, Pack, Signed, SignedCheckpoint, ViewChange};

/// Something that happened, for [`super::Agreement::handle`].
#[derive(Clone, Debug)]
pub enum Event {
    /// An authentic message from a replica. A pre-prepare comes as [`Event::PrePrepare`] and a checkpoint as
    /// [`Event::Claim`]; of both the proofs that they carry need a look below.
    Message(Verified<Message>),
    /// An authentic pre-prepare and the digests of those of its inline packs whose own proof is not good for this
    /// replica (P12).
    PrePrepare(Verified<Message>, Vec<Digest>),
    /// A statement whose signatures are good: a checkpoint, view-change or new-view of anyone; the replica's own too.
    Claim(Verified<Claim>),
    /// Nothing in the pack of [`Action::Recheck`] with this digest, or of a signed request, would execute any more.
    Settled(Digest),
    /// A pack with ordered requests, authentic for this replica. A signed one comes here only after the execution role
    /// said that something in it would still execute.
    Request {
        /// The pack.
        pack: Verified<Pack>,
        /// Proved by signature: worth a relay and, later, a view timer (P2, P26).
        signed: bool,
    },
    /// A pack that may be the body of one that a pre-prepare named by digest: handed on by a replica, or sent again by
    /// its client. One whose own proof is not good for this replica counts only where others vouch for it (P12). A
    /// signed one comes here first, and only then to the execution role: what a batch names must be held even if
    /// nothing in it would execute any more (P4).
    Body {
        /// The pack.
        pack: Pack,
        /// Its own proof is good for this replica.
        authentic: bool,
    },
    /// A pack of read-only requests, authentic for this replica.
    Query(Verified<Pack>),
    /// A replica has started for the so-manyth time, says its NEW-KEY (P40). What it said in earlier lives is behind
    /// this, and nothing of them comes any more.
    Boot(ReplicaId, u64),
    /// A batch was executed, tentatively or not, by the execution role.
    Executed(Executed),
    /// What [`Action::Persist`] asked for is on disk.
    Persisted(PersistToken),
    /// The state that [`Action::Transfer`] asked for is in the hands of the execution role, in place of its own (P38).
    Transferred(SeqNum),
    /// The transfer under way moved on.
    Fetched,
    /// No replica serves that checkpoint any more: the transfer needs a later one.
    Absent(SeqNum),
}

/// Names one [`Action::Persist`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct PersistToken(pub u64);

/// What must be durable before the messages that depend on it leave (P41). Memory mode answers at once.
#[derive(Clone, Debug)]
pub enum Record {
    /// Q entry with all bodies: before PRE-PREPARE and PREPARE.
    PrePrepared {
        /// The view.
        view: View,
        /// The sequence number.
        n: SeqNum,
        /// The batch, bodies included.
        batch: Arc<Batch>,
    },
    /// Before it leaves.
    ViewChange(Arc<Signed<ViewChange>>),
    /// Before it leaves, or as it is accepted.
    NewView(Arc<Signed<NewView>>),
    /// P entry: before COMMIT and before any tentative reply.
    Prepared {
        /// The view.
        view: View,
        /// The sequence number.
        n: SeqNum,
        /// The batch's digest.
        digest: Digest,
    },
}

/// Something to be done, from [`super::Agreement::poll_action`], in order.
#[derive(Clone, Debug)]
pub enum Action {
    /// Send to one replica.
    Send(ReplicaId, Message),
    /// Send to all other replicas.
    Broadcast(Message),
    /// Execute batch `n`; everything below it was asked for before. Tentative: it may be rolled back (P16).
    Execute {
        /// The sequence number.
        n: SeqNum,
        /// The view that replies will name.
        view: View,
        /// What to execute.
        batch: Arc<Batch>,
        /// Not yet committed.
        tentative: bool,
    },
    /// The batch executed tentatively at `n` is committed.
    Commit(SeqNum),
    /// Undo the tentative batch `n` (P17, P51).
    Rollback(SeqNum),
    /// Execute the read-only pack on the first committed state that includes `after` (P18).
    Query {
        /// The requests.
        pack: Pack,
        /// The largest sequence number prepared here when the pack arrived.
        after: SeqNum,
        /// The tentative state may answer it, if it includes just that.
        tentative: bool,
    },
    /// Fetch the state at checkpoint `n` from others (P38), instead of what was asked for before, if it was. Nothing is
    /// executed from here on until [`Event::Transferred`] with this `n`; then that state has replaced the own one,
    /// whatever was executed before.
    Transfer {
        /// The checkpoint.
        n: SeqNum,
        /// Its root, which q replicas signed.
        root: Digest,
        /// This replica's own root there is another (P25).
        diverged: bool,
    },
    /// Find out which pages differ from those of others, each of whom signed another root at `n` (P25).
    Compare {
        /// The checkpoint.
        n: SeqNum,
        /// The others, and their roots.
        others: Vec<(ReplicaId, Digest)>,
    },
    /// Make `record` durable, then answer with [`Event::Persisted`].
    Persist(PersistToken, Record),
    /// Checkpoint `n` is stable: earlier ones can go (P24).
    Stable {
        /// Its sequence number.
        n: SeqNum,
        /// q signed checkpoints.
        proof: Vec<SignedCheckpoint>,
    },
    /// Sign our VIEW-CHANGE and bring it back as [`Event::Claim`]; who signs, in which boot, is filled in there.
    SignViewChange(ViewChange),
    /// Sign our NEW-VIEW and bring it back as [`Event::Claim`].
    SignNewView(NewView),
    /// Ask the execution role again whether something in this pack would still execute: [`Event::Request`] or
    /// [`Event::Settled`] (P26).
    Recheck(Verified<Pack>),
    /// Something an operator should hear of.
    Notice(Notice),
}

/// What the agreement core wants to be known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// Weak quorum of others has another digest at `n` (P25).
    Suspect(SeqNum),
    /// A quorum certified another digest at `n`: this replica's state is wrong (P25).
    Diverged {
        /// The checkpoint.
        n: SeqNum,
        /// Our root.
        ours: Digest,
        /// The certified root.
        certified: Digest,
    },
    /// No digest can reach a quorum at `n`: the service is not deterministic (P25).
    Split(SeqNum),
    /// The primary has been caught proposing two batches for one place (P35).
    Equivocation {
        /// Where.
        n: SeqNum,
    },
    /// The state at `n` was fetched from others.
    Transferred {
        /// The checkpoint.
        n: SeqNum,
        /// The last batch executed before.
        before: SeqNum,
    },
    /// This replica left the view before, and asks for this one (P27).
    ViewChange(View),
    /// This view has begun here (P33).
    NewView(View),
    /// This replica takes part again: it has forgotten its votes, and none was above `until` (P42).
    Recovered {
        /// N.
        until: SeqNum,
        /// The view that it is in.
        view: View,
    },
    /// More than f replicas have forgotten their votes: a new instance must be started (P42 f).
    MemoryLost,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Suspect(n) => write!(f, "others have another state than this replica at {n}"),
            Notice::Diverged { n, .. } => write!(f, "a quorum certified another state than this replica's at {n}"),
            Notice::Split(n) => write!(f, "no state can be certified at {n}: the service is not deterministic"),
            Notice::Equivocation { n } => write!(f, "the primary proposed two batches for {n}"),
            Notice::Transferred { n, before } => write!(f, "fetched the state at {n}, having executed {before}"),
            Notice::ViewChange(view) => write!(f, "asks for view {view}"),
            Notice::NewView(view) => write!(f, "view {view} has begun"),
            Notice::Recovered { until, view } => {
                write!(f, "recovered: what it said before it restarted lies below {until}; it is in view {view}")
            }
            Notice::MemoryLost => write!(f, "memory lost: more than f replicas have forgotten their votes"),
        }
    }
}
