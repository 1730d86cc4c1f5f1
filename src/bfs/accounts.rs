//! Procedures of castra's own about quotas, for which NFS has none.
//!
//! ```text
//! account    0 user or 1 group u32, id u32
//! quota      limits: bytes u64, files u64; usage: bytes u64, files u64
//!
//! GetQuota   account                                -> status, quota
//! SetQuota   account, limits: bytes u64, files u64  -> status, quota
//! ListQuota  cookie u64, count u32                  -> status, entries, whether they are the last
//!                                                      entry: true, account, cookie u64, quota; after the last false
//! ```
//! All of it is XDR. A cookie is to go on after its entry, 0 is the start. Root sees and sets all quotas; anyone else sees
//! those of himself and of his groups, and sets none: [`Status::Perm`].

use std::collections::BTreeSet;

use super::credentials::Credentials;
use super::quota::{self, Account, Amount, Quota};
use super::status::Status;
use super::xdr::{Garbage, Reader, Sink};
use crate::state::{Pages, Region};

/// Quotas in one answer.
pub(super) const LISTED_MAX: u32 = 1_000;

const _: () = assert!(60 * LISTED_MAX as usize <= super::TRANSFER_MAX as usize, "a list fits an answer");

impl Account {
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Account, Garbage> {
        Account::from_number(reader.u32()?, reader.u32()?).ok_or(Garbage)
    }

    pub(super) fn encode(self, sink: &mut impl Sink) {
        let (kind, id) = self.number();
        sink.put_u32(kind);
        sink.put_u32(id);
    }

    fn cookie(self) -> u64 {
        let (kind, id) = self.number();
        (u64::from(kind) << 32 | u64::from(id)) + 1
    }
}

impl Amount {
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Amount, Garbage> {
        Ok(Amount { bytes: reader.u64()?, files: reader.u64()? })
    }

    pub(super) fn encode(self, sink: &mut impl Sink) {
        sink.put_u64(self.bytes);
        sink.put_u64(self.files);
    }
}

impl Quota {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Quota, Garbage> {
        Ok(Quota { limit: Amount::decode(reader)?, used: Amount::decode(reader)? })
    }

    pub(super) fn put(&self, sink: &mut impl Sink) {
        self.limit.encode(sink);
        self.used.encode(sink);
    }
}

/// GetQuota.
pub(super) fn get<P: Pages>(region: &P, cred: &Credentials, account: Account) -> Result<Quota, Status> {
    let own = match account {
        Account::User(uid) => cred.uid == uid,
        Account::Group(gid) => cred.is_in(gid),
    };
    if own || cred.is_root() { Ok(quota::get(region, account)) } else { Err(Status::Perm) }
}

/// SetQuota. To be attempted.
pub(super) fn set(region: &mut Region, cred: &Credentials, account: Account, limit: Amount) -> Result<Quota, Status> {
    if cred.is_root() { quota::set_limit(region, account, limit) } else { Err(Status::Perm) }
}

/// ListQuota: the results after the status. Of `count` quotas those beyond [`LISTED_MAX`] are left for the next call.
pub(super) fn list<P: Pages>(region: &P, cred: &Credentials, cookie: u64, count: u32, sink: &mut impl Sink) {
    let mut found: Box<dyn Iterator<Item = (Account, Quota)>> = if cred.is_root() {
        Box::new(quota::after(region, after(cookie)))
    } else {
        Box::new(own(cred).into_iter().map(|account| (account, quota::get(region, account))))
    };
    let mut left = count.min(LISTED_MAX);
    let next = loop {
        let next = found.find(|(account, quota)| account.cookie() > cookie && *quota != Quota::default());
        let Some((account, quota)) = next.filter(|_| left > 0) else { break next };
        sink.put_bool(true);
        account.encode(sink);
        sink.put_u64(account.cookie());
        quota.put(sink);
        left -= 1;
    };
    sink.put_bool(false);
    sink.put_bool(next.is_none());
}

/// Whom a cookie is of; the last that there can be for one that is nobody's.
fn after(cookie: u64) -> Option<Account> {
    let number = cookie.checked_sub(1)?;
    Account::from_number(u32::try_from(number >> 32).unwrap_or(u32::MAX), number as u32)
        .or(Some(Account::Group(u32::MAX)))
}

/// The caller's own.
fn own(cred: &Credentials) -> BTreeSet<Account> {
    let groups = cred.groups().iter().chain([&cred.gid]).map(|gid| Account::Group(*gid));
    groups.chain([Account::User(cred.uid)]).collect()
}
