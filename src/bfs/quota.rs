//! Quotas: how much room and how many files a user or a group may have, and has.
//!
//! ```text
//! quotas  0 user or 1 group u8, id u32 -> limits: bytes u64, files u64 | usage: bytes u64, files u64
//! ```
//! Keys are big-endian, so that their order is that of the numbers. There is an entry as long as any of the four is not 0;
//! a limit of 0 is none.
//!
//! A file is charged to its owner and to its group, whoever writes to it: one file, and the pages of its content with those
//! of their index. A directory has no pages of its own. What is removed is charged to nobody, also while its pages are yet
//! to be freed. Limits are hard ones, without a grace period, and do not hold for calls of root, as on Linux: what root
//! does is counted and never refused. Whoever is above a limit may still overwrite, shrink and remove.

use std::fmt;
use std::ops::Bound;

use super::inode::Inode;
use super::status::Status;
use crate::limits::PAGE;
use crate::state::{Fixed, Map, Pages, Region, Value};

pub(super) const QUOTAS: Map = Map::at(5);

/// Bytes of a key.
const KEY: usize = 5;

/// Whose quota it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Account {
    /// A user's, by his number.
    User(u32),
    /// A group's.
    Group(u32),
}

impl Account {
    /// 0 for users, 1 for groups; and the number.
    pub fn number(self) -> (u32, u32) {
        match self {
            Account::User(id) => (0, id),
            Account::Group(id) => (1, id),
        }
    }

    /// The one that [`number`](Account::number) says.
    pub fn from_number(kind: u32, id: u32) -> Option<Account> {
        match kind {
            0 => Some(Account::User(id)),
            1 => Some(Account::Group(id)),
            _ => None,
        }
    }

    fn key(self) -> [u8; KEY] {
        let (kind, id) = self.number();
        let [a, b, c, d] = id.to_be_bytes();
        [kind as u8, a, b, c, d]
    }

    fn from_key(key: &[u8]) -> Option<Account> {
        let &[kind, a, b, c, d] = key else { return None };
        Account::from_number(kind.into(), u32::from_be_bytes([a, b, c, d]))
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Account::User(id) => write!(f, "user {id}"),
            Account::Group(id) => write!(f, "group {id}"),
        }
    }
}

/// Bytes in whole pages, and files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Amount {
    /// Bytes.
    pub bytes: u64,
    /// Files of any kind, directories among them.
    pub files: u64,
}

impl Amount {
    /// What a file is charged with. Any inode is; one that is no file's with nothing.
    pub(super) fn of(inode: &Inode) -> Amount {
        match inode.is_file() {
            true => Amount { bytes: inode.pages.saturating_mul(PAGE as u64), files: 1 },
            false => Amount::default(),
        }
    }
}

/// What somebody may have and what he has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quota {
    /// At most; 0 is no limit.
    pub limit: Amount,
    /// So much is in use.
    pub used: Amount,
}

impl Fixed for Quota {
    const SIZE: usize = 32;
    fn decode(bytes: &[u8]) -> Quota {
        let (limit_bytes, limit_files, bytes, files) = Fixed::decode(bytes);
        Quota { limit: Amount { bytes: limit_bytes, files: limit_files }, used: Amount { bytes, files } }
    }
    fn encode(&self, bytes: &mut [u8]) {
        (self.limit.bytes, self.limit.files, self.used.bytes, self.used.files).encode(bytes);
    }
}

/// The quota of one.
pub(super) fn get<P: Pages>(region: &P, account: Account) -> Quota {
    QUOTAS.load(region, &account.key()).unwrap_or_default()
}

/// Sets what there may be, which may be less than there is. To be attempted.
pub(super) fn set_limit(region: &mut Region, account: Account, limit: Amount) -> Result<Quota, Status> {
    let quota = Quota { limit, ..get(region, account) };
    put(region, account, &quota)?;
    Ok(quota)
}

fn put(region: &mut Region, account: Account, quota: &Quota) -> Result<(), Status> {
    if *quota == Quota::default() {
        QUOTAS.remove(region, &account.key());
    } else {
        QUOTAS.store(region, &account.key(), quota)?;
    }
    Ok(())
}

/// An inode that was `before` becomes `after`: charges and credits its owner and group. `limited`: unless that takes one of
/// them above a limit. It takes room only for who had nothing before. To be attempted.
pub(super) fn settle(region: &mut Region, before: &Inode, after: &Inode, limited: bool) -> Result<(), Status> {
    let (had, has) = (Amount::of(before), Amount::of(after));
    let users = (Account::User(before.uid), Account::User(after.uid));
    let groups = (Account::Group(before.gid), Account::Group(after.gid));
    for (from, to) in [users, groups] {
        if from == to {
            charge(region, to, had, has, limited)?;
        } else {
            charge(region, from, had, Amount::default(), limited)?;
            charge(region, to, Amount::default(), has, limited)?;
        }
    }
    Ok(())
}

/// What `had` is in one's usage becomes what `has` is.
fn charge(region: &mut Region, account: Account, had: Amount, has: Amount, limited: bool) -> Result<(), Status> {
    if had == has {
        return Ok(());
    }
    let mut quota = get(region, account);
    let changed = |used: u64, had, has| used.saturating_sub(had).saturating_add(has);
    quota.used.bytes = changed(quota.used.bytes, had.bytes, has.bytes);
    quota.used.files = changed(quota.used.files, had.files, has.files);
    let passes = |had, has, used, limit| has > had && limit != 0 && used > limit;
    let passed = passes(had.bytes, has.bytes, quota.used.bytes, quota.limit.bytes)
        || passes(had.files, has.files, quota.used.files, quota.limit.files);
    if limited && passed {
        return Err(Status::DQuot);
    }
    put(region, account, &quota)
}

/// The quotas after that of one, or all, by number, users first.
pub(super) fn after<P: Pages>(region: &P, account: Option<Account>) -> impl Iterator<Item = (Account, Quota)> + '_ {
    let key = account.map(Account::key);
    let from = key.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
    QUOTAS.range(region, from, Bound::Unbounded).filter_map(|(key, value)| entry(key, &value))
}

/// All that there are, by number, users first: what their keys and values say, where that is one.
pub(super) fn all<P: Pages>(region: &P) -> impl Iterator<Item = Option<(Account, Quota)>> + '_ {
    QUOTAS.iter(region).map(|(key, value)| entry(key, &value))
}

fn entry<P: Pages>(key: &[u8], value: &Value<'_, P>) -> Option<(Account, Quota)> {
    let account = Account::from_key(key)?;
    (value.len() == Quota::SIZE as u64).then(|| (account, value.decode()))
}
