//! Who says so: keys, authenticators, signatures. The only maker of [`Verified`].
//!
//! | what | proof |
//! |---|---|
//! | envelope between replicas, replies to a client | 8-byte AES-CMAC under the pair's key over its digest; in signature mode Ed25519 over the same digest |
//! | client pack | one MAC per replica over the pack's digest, or Ed25519 over it |
//! | a pack's way from its client, a fragment | 8-byte AES-CMAC in every mode: it proves the hop, its content proves itself |
//! | checkpoint, view-change, new-view, new key | Ed25519 |
//!
//! A replica's process starts with a key of its own, and says so by NEW-KEY (P40). Before the first of them its key is
//! its identity's, epoch 0; client endpoints stay there, for their keys are fresh by their random ids.
//!
//! A pack's hop has a proof of its own because the pack's is forwarded: whoever holds a pack could send it again from
//! another address and have replies go there, and anybody could have signatures checked in a client's name.
#![deny(unsafe_code)]

mod clients;
mod derivation;
mod identity;
mod keyring;
mod mac;
mod reject;
mod seal;
mod signatures;
mod signer;
#[cfg(test)]
mod tests;
mod verified;

pub use crate::wire::header::Principal;
pub use clients::{CLIENTS_OPEN_MAX, Clients, ENDPOINTS_MAX, Rights};
pub use derivation::{FreshKey, KEY_GRACE};
pub use identity::{Identity, IdentityError, PublicIdentity};
pub use keyring::{AuthMode, ClusterKeys, KeyError, Keyring, Learned};
pub use reject::{Reject, Rejects};
pub use seal::Part;
pub use signer::Signer;
pub use verified::{Envelope, Opened, Replies, Verified};
