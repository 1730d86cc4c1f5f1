//! What no correct replica does, by name.
//!
//! Each is seen by one replica, in messages that are authentic for it alone: enough to count and to show, no proof to
//! anybody else. A replica whose votes were forgotten with its memory, and that ignored it, does some of these too.

use std::collections::BTreeMap;

/// Something that a correct replica never sends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Misdeed {
    /// As primary: two batches for one place in one view (P35).
    Equivocation,
    /// Two different votes for one place in one view (P14).
    ContradictoryVote,
    /// Two different signed checkpoints at one sequence number.
    ContradictoryCheckpoint,
    /// A pre-prepare of a backup, or a prepare of the primary (P12, P15).
    NotEntitled,
    /// As primary: a choice that the service refuses (P12).
    BadChoice,
    /// As primary: a batch above the bounds of one.
    OversizedBatch,
    /// Two digests said to be committed at one sequence number (P51).
    ContradictoryCommitted,
    /// A batch in answer to our question, with another digest than we asked for (P34).
    WrongBody,
    /// A signed checkpoint at a sequence number that has none (P22).
    OddCheckpoint,
    /// A view-change that P45 does not allow.
    BadViewChange,
    /// Two different view-changes for one view (P45).
    ContradictoryViewChange,
    /// As primary: a new-view that its own view-changes do not bear out (P33).
    BadNewView,
    /// As primary: two different new-views for one view (P47).
    ContradictoryNewView,
    /// A status with numbers that no correct replica has (P37).
    AbsurdStatus,
    /// In a state transfer: a header that is not that of the certified root, or more than was asked for (P38).
    WrongStateHeader,
    /// In a state transfer: tree nodes that do not hash to the node above them (P38).
    WrongTreeNode,
    /// In a state transfer: a page that does not hash to its node (P38).
    WrongPage,
}

impl Misdeed {
    /// A short name for counters.
    pub fn name(self) -> &'static str {
        match self {
            Misdeed::Equivocation => "equivocation",
            Misdeed::ContradictoryVote => "contradictory_vote",
            Misdeed::ContradictoryCheckpoint => "contradictory_checkpoint",
            Misdeed::NotEntitled => "not_entitled",
            Misdeed::BadChoice => "bad_choice",
            Misdeed::OversizedBatch => "oversized_batch",
            Misdeed::ContradictoryCommitted => "contradictory_committed",
            Misdeed::WrongBody => "wrong_body",
            Misdeed::OddCheckpoint => "odd_checkpoint",
            Misdeed::BadViewChange => "bad_view_change",
            Misdeed::ContradictoryViewChange => "contradictory_view_change",
            Misdeed::BadNewView => "bad_new_view",
            Misdeed::ContradictoryNewView => "contradictory_new_view",
            Misdeed::AbsurdStatus => "absurd_status",
            Misdeed::WrongStateHeader => "wrong_state_header",
            Misdeed::WrongTreeNode => "wrong_tree_node",
            Misdeed::WrongPage => "wrong_page",
        }
    }
}

/// How often one replica was caught at each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Misdeeds(BTreeMap<Misdeed, u64>);

impl Misdeeds {
    /// Once more.
    pub fn count(&mut self, misdeed: Misdeed) {
        *self.0.entry(misdeed).or_default() += 1;
    }

    /// Names and counts of those that occurred.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(misdeed, &count)| (misdeed.name(), count))
    }
}
