//! `castra bfs quota`: how much room and how many files users and groups have, and may have.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::connect_to_bfs;
use super::volume::Volume;
use crate::bfs::{Account, Amount, Answer, Credentials, Listed, Procedure, Quota, Request, Status};
use crate::cli::connect::failed;
use crate::cli::errors::Error;
use crate::cli::output;

/// What `--help` ends with.
pub const EXAMPLE: &str = "Examples:\n  castra bfs quota --cluster lab                 # all that are in use or limited\n  \
    castra bfs quota --cluster lab --user alice --bytes 10G --files 100000\n  \
    castra bfs quota --cluster lab --group 100 --bytes none\nA file counts for its owner and for its group, with the \
    pages of 4 KiB that it takes. Limits do not hold for root.";

/// Quotas of one answer.
const LIST: u32 = 1_000;

/// `castra bfs quota`
#[derive(clap::Args, Debug)]
pub struct QuotaArgs {
    /// The cluster's folder, or a client.toml
    #[arg(long, short, default_value = ".", value_name = "DIR")]
    cluster: PathBuf,
    /// Of this user: by number, or by a name in /etc/passwd
    #[arg(long, group = "account", value_name = "NAME|UID")]
    user: Option<String>,
    /// Of this group: by number, or by a name in /etc/group
    #[arg(long, group = "account", value_name = "NAME|GID")]
    group: Option<String>,
    /// Set how many bytes there may be: with K, M, G or T for powers of 1,024; 0 or none for any number
    #[arg(long, requires = "account", value_name = "SIZE", value_parser = size)]
    bytes: Option<u64>,
    /// Set how many files there may be; 0 or none for any number
    #[arg(long, requires = "account", value_name = "N", value_parser = size)]
    files: Option<u64>,
    /// Ask as root, if the client's key may: others see their own quotas, and set none. Else as who runs this
    #[arg(long)]
    as_root: bool,
    /// Give a request up after so many seconds
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A number, with K, M, G or T for powers of 1,024.
fn size(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K')) => (&text[..at], 10),
        Some((at, 'M')) => (&text[..at], 20),
        Some((at, 'G')) => (&text[..at], 30),
        Some((at, 'T')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let wrong = || "a whole number, with K, M, G or T behind it or nothing, or none".to_owned();
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// Lists, shows or sets. E023 if the file system refuses.
pub fn run(args: &QuotaArgs) -> Result<(), Error> {
    let names = Names::of_this_machine();
    let account = match (&args.user, &args.group) {
        (Some(user), _) => Some(Account::User(number("user", user, &names.users)?)),
        (None, Some(group)) => Some(Account::Group(number("group", group, &names.groups)?)),
        (None, None) => None,
    };
    let timeout = Duration::from_secs(args.timeout);
    let volume = Volume::new(connect_to_bfs(&args.cluster, timeout)?.client, None);
    let cred = if args.as_root { Credentials::ROOT } else { caller()? };
    let asker = Asker { volume, timeout, cred };
    let found = match account {
        None => asker.all()?,
        Some(account) => vec![(account, asker.one(account, args.bytes, args.files)?)],
    };
    if args.json {
        let quotas: Vec<Value> = found.iter().map(|(account, quota)| to_json(&names, *account, quota)).collect();
        return output::json(&json!({ "quotas": quotas }));
    }
    output::line(table(&names, &found))
}

/// Who runs this.
fn caller() -> Result<Credentials, Error> {
    use rustix::process::{getegid, geteuid, getgroups};
    let groups = getgroups().map_err(|error| Error::system("ask for the own groups")(error.into()))?;
    let groups: Vec<u32> = groups.into_iter().map(rustix::process::Gid::as_raw).collect();
    Ok(Credentials::new(geteuid().as_raw(), getegid().as_raw(), &groups))
}

struct Asker {
    volume: Volume,
    timeout: Duration,
    cred: Credentials,
}

impl Asker {
    fn ask<T>(&self, request: &Request<'_>, take: impl FnOnce(&Answer<'_>) -> T) -> Result<T, Error> {
        let what = match request.procedure() {
            Procedure::SetQuota => "set a quota",
            _ => "ask for quotas",
        };
        let mut arguments = Vec::new();
        request.encode(&mut arguments);
        let asked = self.volume.submit(request.procedure() as u32, &self.cred, &arguments);
        let result = asked.and_then(|asked| asked.wait());
        let result = result.map_err(|error| failed(what, self.timeout, error))?;
        let refused =
            |answer: String, mend: &str| Error::Refused { operation: what.to_owned(), answer, mend: mend.to_owned() };
        let answer = match result.split_first_chunk::<4>() {
            Some(([0, 0, 0, 0], results)) => Answer::parse(request.procedure(), results).ok(),
            _ => None,
        };
        let Some(answer) = answer else {
            return Err(refused("it knows no quotas".to_owned(), "run replicas of this version"));
        };
        match answer.status {
            Ok(()) => Ok(take(&answer)),
            Err(Status::Perm) => {
                let mend =
                    "only root sets quotas and sees those of others: --as-root, with a key that may speak for root";
                Err(refused("user and group are not permitted to".to_owned(), mend))
            }
            Err(Status::NoSpc) => Err(refused("no space is left".to_owned(), "remove something first")),
            Err(status) => Err(refused(format!("{status:?}"), "look at it with: castra bfs fsck")),
        }
    }

    /// All that the caller may see.
    fn all(&self) -> Result<Vec<(Account, Quota)>, Error> {
        let (mut all, mut cookie) = (Vec::new(), 0);
        loop {
            let take = |answer: &Answer<'_>| (answer.quotas.clone(), answer.eof);
            let (listed, eof) = self.ask(&Request::ListQuota { cookie, count: LIST }, take)?;
            all.extend(listed.iter().map(|Listed { account, quota, .. }| (*account, *quota)));
            match listed.last() {
                Some(last) if !eof => cookie = last.cookie,
                _ => return Ok(all),
            }
        }
    }

    /// One, after what is given was set; what is not given stays as it is.
    fn one(&self, account: Account, bytes: Option<u64>, files: Option<u64>) -> Result<Quota, Error> {
        let quota = self.ask(&Request::GetQuota { account }, |answer| answer.quota)?;
        if bytes.is_none() && files.is_none() {
            return Ok(quota);
        }
        let Amount { bytes: had_bytes, files: had_files } = quota.limit;
        let limit = Amount { bytes: bytes.unwrap_or(had_bytes), files: files.unwrap_or(had_files) };
        self.ask(&Request::SetQuota { account, limit }, |answer| answer.quota)
    }
}

/// Names of users and groups: those of the files, not those of any other service.
struct Names {
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
}

impl Names {
    fn of_this_machine() -> Names {
        let read = |path| named(&std::fs::read_to_string(path).unwrap_or_default());
        Names { users: read("/etc/passwd"), groups: read("/etc/group") }
    }

    fn name(&self, account: Account) -> Option<&str> {
        match account {
            Account::User(id) => self.users.get(&id),
            Account::Group(id) => self.groups.get(&id),
        }
        .map(String::as_str)
    }
}

/// The first name of each number in a passwd or group file.
fn named(text: &str) -> BTreeMap<u32, String> {
    let entry = |line: &str| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        Some((id, name.to_owned()))
    };
    text.lines().rev().filter_map(entry).collect()
}

/// The number of a user or group that was named.
fn number(what: &str, text: &str, names: &BTreeMap<u32, String>) -> Result<u32, Error> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let found = names.iter().find(|(_, name)| *name == text).map(|(id, _)| *id);
    found.ok_or_else(|| {
        Error::Usage(format!("there is no {what} {text} on this machine: name one that is, or a number"))
    })
}

fn to_json(names: &Names, account: Account, quota: &Quota) -> Value {
    let (kind, id) = match account {
        Account::User(id) => ("user", id),
        Account::Group(id) => ("group", id),
    };
    let limit = |limit| (limit > 0).then_some(limit);
    json!({
        "kind": kind,
        "id": id,
        "name": names.name(account),
        "bytes": quota.used.bytes,
        "bytes_max": limit(quota.limit.bytes),
        "files": quota.used.files,
        "files_max": limit(quota.limit.files),
    })
}

fn table(names: &Names, found: &[(Account, Quota)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["account", "bytes", "at most", "files", "at most"]);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        column.set_cell_alignment(if index == 0 { CellAlignment::Left } else { CellAlignment::Right });
    }
    let limit = |limit: u64| if limit == 0 { "-".to_owned() } else { limit.to_string() };
    for (account, quota) in found {
        let name = names.name(*account).map_or(String::new(), |name| format!(" ({name})"));
        let Quota { limit: most, used } = quota;
        table.add_row([
            format!("{account}{name}"),
            used.bytes.to_string(),
            limit(most.bytes),
            used.files.to_string(),
            limit(most.files),
        ]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_a_power_of_1024() {
        let of = |text| size(text).ok();
        assert_eq!((of("0"), of("none"), of("17"), of("2K")), (Some(0), Some(0), Some(17), Some(2_048)));
        assert_eq!((of("3M"), of("10G"), of("1T")), (Some(3 << 20), Some(10 << 30), Some(1 << 40)));
        for wrong in ["", "K", "-1", "1.5G", "1g", "16777216T", "99999999999999999999", "1é"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_first_name_of_a_number_is_its_name() {
        let names = named("root:x:0:0::/:/bin/sh\ntoor:x:0:0:\nbroken\nalice:x:1000:100:\nno:x:number:\n");
        assert_eq!(names, BTreeMap::from([(0, "root".to_owned()), (1_000, "alice".to_owned())]));
        assert_eq!(number("user", "alice", &names).ok(), Some(1_000));
        assert_eq!(number("user", "77", &names).ok(), Some(77));
        assert!(matches!(number("user", "bob", &names), Err(Error::Usage(said)) if said.contains("user bob")));
    }
}
