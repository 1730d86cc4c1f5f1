//! Every way in which bytes from the network can fail to be believed.

use std::collections::BTreeMap;

use crate::types::ReplicaId;
use crate::wire::Malformed;
use crate::wire::header::NotOurs;

/// Why something was dropped. Each is counted by its [name](Reject::name); none is more than a dropped datagram, frame
/// or pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Reject {
    /// The magic is not castra's.
    #[error("not a castra datagram")]
    NotCastra,
    /// Another version of the wire layouts.
    #[error("wire version {0} is not spoken here")]
    WrongVersion(u8),
    /// The datagram belongs to another cluster.
    #[error("for cluster {0:016x}, which is not this one")]
    ForeignCluster(u64),
    /// Not what it claims to be.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
    /// Addressed to somebody else.
    #[error("for another receiver")]
    WrongReceiver,
    /// The sender's index is no replica of this cluster, or our own.
    #[error("from an unknown replica {0}")]
    UnknownReplica(ReplicaId),
    /// A client that is not let in.
    #[error("from a client that is not listed")]
    UnknownClient,
    /// The public identity in a signed pack is not the client's.
    #[error("identity and client id differ")]
    IdentityMismatch,
    /// Key epochs that are not known.
    #[error("unknown key epoch")]
    UnknownEpoch,
    /// A NEW-KEY that is not above the last of its replica (P40).
    #[error("a key that is not newer than the one that is known")]
    StaleKey,
    /// Too many wrong MACs in one sender's name in this time: what else comes in it is not looked at.
    #[error("too many bad MACs")]
    MacQuota,
    /// Proved by a MAC where a signature is asked for, or the other way round.
    #[error("the wrong kind of proof")]
    WrongProof,
    /// A datagram's MAC is wrong.
    #[error("bad MAC")]
    BadMac,
    /// Our entry in a pack's vector is wrong or missing.
    #[error("bad entry in a pack's authenticator")]
    BadEntry,
    /// A signature is wrong.
    #[error("bad signature")]
    BadSignature,
    /// A public key on which nothing secret can be agreed (P40).
    #[error("unusable public key")]
    BadKey,
    /// The client lacks the right.
    #[error("not permitted")]
    NotPermitted,
    /// A session-open without a signature.
    #[error("session-open without signature")]
    UnsignedOpen,
    /// A frame that speaks for another than its sender.
    #[error("speaks for somebody else")]
    NotTheSpeaker,
    /// A kind of datagram or frame that its receiver has no use for.
    #[error("not for this role")]
    WrongRole,
    /// A read-only pack from a replica: clients send those themselves to whom they ask (P6).
    #[error("relayed query")]
    RelayedQuery,
    /// More signatures to check than its sender may have checked in this time (P2, P21).
    #[error("signature quota exceeded")]
    SignatureQuota,
    /// A message of our own was too large for `MESSAGE_MAX`: somebody else's batch, which we were asked for.
    #[error("too large to send")]
    TooLargeToSend,
    /// A client endpoint whose address is not known, or no longer.
    #[error("no address for a client endpoint")]
    NoAddress,
    /// What waits to be sent to one receiver is above its quota.
    #[error("send queue full")]
    SendQuota,
    /// An unfinished message was dropped: pieces lost, or its sender began too many.
    #[error("reassembly given up")]
    ReassemblyDropped,
}

impl Reject {
    /// A short name for counters.
    pub fn name(self) -> &'static str {
        match self {
            Reject::NotCastra => "not_castra",
            Reject::WrongVersion(_) => "wrong_version",
            Reject::ForeignCluster(_) => "foreign_cluster",
            Reject::Malformed(malformed) => malformed.name(),
            Reject::WrongReceiver => "wrong_receiver",
            Reject::UnknownReplica(_) => "unknown_replica",
            Reject::UnknownClient => "unknown_client",
            Reject::IdentityMismatch => "identity_mismatch",
            Reject::UnknownEpoch => "unknown_epoch",
            Reject::StaleKey => "stale_key",
            Reject::MacQuota => "mac_quota",
            Reject::WrongProof => "wrong_proof",
            Reject::BadMac => "bad_mac",
            Reject::BadEntry => "bad_entry",
            Reject::BadSignature => "bad_signature",
            Reject::BadKey => "bad_key",
            Reject::NotPermitted => "not_permitted",
            Reject::UnsignedOpen => "unsigned_open",
            Reject::NotTheSpeaker => "not_the_speaker",
            Reject::WrongRole => "wrong_role",
            Reject::RelayedQuery => "relayed_query",
            Reject::SignatureQuota => "signature_quota",
            Reject::TooLargeToSend => "too_large_to_send",
            Reject::NoAddress => "no_address",
            Reject::SendQuota => "send_quota",
            Reject::ReassemblyDropped => "reassembly_dropped",
        }
    }
}

impl From<NotOurs> for Reject {
    fn from(why: NotOurs) -> Reject {
        match why {
            NotOurs::Magic => Reject::NotCastra,
            NotOurs::Version(version) => Reject::WrongVersion(version),
            NotOurs::Malformed(malformed) => Reject::Malformed(malformed),
        }
    }
}

/// How often each reason occurred.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rejects {
    counts: BTreeMap<&'static str, u64>,
}

impl Rejects {
    /// Counts one.
    pub fn count(&mut self, reject: Reject) {
        self.add(reject, 1);
    }

    /// Counts `times`.
    pub fn add(&mut self, reject: Reject, times: u64) {
        if times > 0 {
            *self.counts.entry(reject.name()).or_default() += times;
        }
    }

    /// How often this reason occurred.
    pub fn of(&self, reject: Reject) -> u64 {
        self.counts.get(reject.name()).copied().unwrap_or(0)
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Names and counts of the reasons that occurred, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counts.iter().map(|(&name, &count)| (name, count))
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Rejects) {
        for (name, count) in other.iter() {
            *self.counts.entry(name).or_default() += count;
        }
    }
}
