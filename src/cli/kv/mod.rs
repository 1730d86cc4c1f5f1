//! `castra kv`: the key-value service from the command line.

mod pairs;
mod transfer;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::connect::{Connected, connect, failed};
use super::errors::Error;
use super::output;
use crate::services::kv::{Answer, Change, Op};
use pairs::{Format, Writer};

/// `castra kv`
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  castra kv --cluster lab put greeting hello\n  castra kv --cluster lab get greeting"
)]
pub struct Kv {
    /// The cluster's folder, or a client.toml
    #[arg(long, short, global = true, default_value = ".", value_name = "DIR")]
    cluster: PathBuf,
    /// Give a request up after so many seconds; by default as client.toml says
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "a number of seconds".to_owned())?;
    match number {
        n if n > 0.0 && n <= 86_400.0 => Ok(Duration::from_secs_f64(n)),
        _ => Err("above 0 and at most 86400 seconds".to_owned()),
    }
}

impl Kv {
    /// As if it were typed.
    pub fn new(cluster: PathBuf, timeout: Duration, verb: Verb) -> Kv {
        Kv { cluster, timeout: Some(timeout), json: false, verb }
    }
}

/// What can be done with the store.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Print the value of a key; exit status 1 if it has none
    #[command(after_help = "Example:\n  castra kv --cluster lab get greeting")]
    Get {
        /// The key
        key: OsString,
        /// Print the value alone, without a newline
        #[arg(long)]
        raw: bool,
    },
    /// Set the value of a key
    #[command(
        after_help = "Example:\n  castra kv --cluster lab put greeting hello\n  castra kv --cluster lab put logo --file logo.png"
    )]
    Put {
        /// The key
        key: OsString,
        /// The value
        #[arg(required_unless_present = "file", conflicts_with = "file")]
        value: Option<OsString>,
        /// Take the value from a file; `-` is standard input
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Remove a key; exit status 1 if it was not there
    #[command(after_help = "Example:\n  castra kv --cluster lab del greeting")]
    Del {
        /// The key
        key: OsString,
    },
    /// Compare and swap: change a key only if its value is as expected; exit status 1 if it is not
    #[command(
        after_help = "Example:\n  castra kv --cluster lab cas counter --expect 1 --new 2\n  castra kv --cluster lab cas lock --absent --new me\n  \
                      castra kv --cluster lab cas lock --expect me --delete"
    )]
    Cas {
        /// The key
        key: OsString,
        /// The value that it must have
        #[arg(long, required_unless_present = "absent", conflicts_with = "absent")]
        expect: Option<OsString>,
        /// It must have no value
        #[arg(long)]
        absent: bool,
        /// The value to set
        #[arg(long, required_unless_present = "delete", conflicts_with = "delete")]
        new: Option<OsString>,
        /// Remove it
        #[arg(long)]
        delete: bool,
    },
    /// Print pairs in key order, as tab-separated lines
    #[command(after_help = "Example:\n  castra kv --cluster lab scan user/ --limit 10")]
    Scan {
        /// Only keys that begin with it
        #[arg(default_value = "")]
        prefix: OsString,
        /// At most so many pairs
        #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
        limit: u64,
    },
    /// Store every pair of a file, many at a time
    #[command(
        after_help = "Example:\n  castra kv --cluster lab import words.tsv\nA line is a key, a tab and a value; \\t \\n \\r \\\\ and \
                      \\xHH stand for such bytes. CSV is RFC 4180. Malformed lines are named and passed over."
    )]
    Import(transfer::Import),
    /// Write every pair to a file, sorted by key
    #[command(
        after_help = "Example:\n  castra kv --cluster lab export words.tsv\nWhat it writes, import reads: any bytes survive. Pages of the file \
                      are each a consistent read; writes that come between them may or may not be in it."
    )]
    Export(transfer::Export),
}

/// Runs a verb.
pub fn run(args: Kv) -> Result<(), Error> {
    let Kv { cluster, timeout, json, verb } = args;
    // What can be refused without a cluster is.
    let verb = verb.checked()?;
    let store = Store { connected: connect(&cluster, timeout)? };
    match verb {
        Checked::Get { key, raw } => get(&store, key, raw, json),
        Checked::Put { key, value } => put(&store, key, &value, json),
        Checked::Del { key } => del(&store, key, json),
        Checked::Cas { key, expected, new } => cas(&store, key, expected, new, json),
        Checked::Scan { prefix, limit } => scan(&store, &prefix, limit, json),
        Checked::Import(args) => transfer::import(&store, &args, json),
        Checked::Export(args) => transfer::export(&store, &args, json),
    }
}

/// A verb with its bytes at hand.
enum Checked {
    Get { key: Vec<u8>, raw: bool },
    Put { key: Vec<u8>, value: Vec<u8> },
    Del { key: Vec<u8> },
    Cas { key: Vec<u8>, expected: Option<Vec<u8>>, new: Option<Vec<u8>> },
    Scan { prefix: Vec<u8>, limit: u64 },
    Import(transfer::Import),
    Export(transfer::Export),
}

impl Verb {
    fn checked(self) -> Result<Checked, Error> {
        let fits = |op: Op<'_>| match op.encode() {
            Ok(_) => Ok(()),
            Err(fault) => Err(Error::Usage(fault.to_string())),
        };
        Ok(match self {
            Verb::Get { key, raw } => {
                let key = key.into_vec();
                fits(Op::Get { key: &key })?;
                Checked::Get { key, raw }
            }
            Verb::Put { key, value, file } => {
                let key = key.into_vec();
                let value = match (value, file) {
                    (_, Some(path)) => transfer::read_value(&path)?,
                    (Some(value), None) => value.into_vec(),
                    (None, None) => Vec::new(),
                };
                fits(Op::Change(Change::Put { key: &key, value: &value }))?;
                Checked::Put { key, value }
            }
            Verb::Del { key } => {
                let key = key.into_vec();
                fits(Op::Change(Change::Delete { key: &key }))?;
                Checked::Del { key }
            }
            Verb::Cas { key, expect, absent: _, new, delete: _ } => {
                let (key, expected, new) =
                    (key.into_vec(), expect.map(OsString::into_vec), new.map(OsString::into_vec));
                fits(Op::Change(Change::Cas { key: &key, expected: expected.as_deref(), new: new.as_deref() }))?;
                Checked::Cas { key, expected, new }
            }
            Verb::Scan { prefix, limit } => {
                let prefix = prefix.into_vec();
                fits(Op::Scan { prefix: &prefix, after: &[], limit: 1 })?;
                Checked::Scan { prefix, limit }
            }
            Verb::Import(args) => Checked::Import(args.checked()?),
            Verb::Export(args) => Checked::Export(args),
        })
    }
}

/// The service, through a client.
struct Store {
    connected: Connected,
}

/// Pairs of a scan, and whether there are more.
struct PageOfPairs {
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
    more: bool,
}

impl Store {
    /// Asks, and gives the raw answer.
    fn ask(&self, name: &str, op: &Op<'_>) -> Result<Bytes, Error> {
        let encoded = op.encode().map_err(|fault| Error::Usage(fault.to_string()))?;
        let client = &self.connected.client;
        let result = if op.is_read_only() { client.query(encoded) } else { client.execute(encoded) };
        result.map_err(|error| failed(name, self.connected.timeout, error))
    }

    /// A page of a scan.
    fn scan(&self, prefix: &[u8], after: &[u8], limit: u32) -> Result<PageOfPairs, Error> {
        let name = format!("scan {}", shown(prefix));
        let answer = self.ask(&name, &Op::Scan { prefix, after, limit })?;
        match Answer::parse(&answer) {
            Some(Answer::Entries(entries)) => {
                let pairs: Vec<_> = entries.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
                // A page that says "more" and brings nothing would be asked for for ever.
                if entries.more && pairs.is_empty() {
                    return Err(unexpected(&name, None));
                }
                Ok(PageOfPairs { pairs, more: entries.more })
            }
            other => Err(unexpected(&name, other)),
        }
    }
}

/// An answer that is not what the verb hoped for.
fn unexpected(operation: &str, answer: Option<Answer<'_>>) -> Error {
    let (text, mend) = match answer {
        Some(Answer::Fault(fault)) => match fault {
            crate::services::kv::Fault::Full => (
                fault.to_string(),
                "raise [state] service_bytes_max in cluster.toml (a new cluster), or delete something",
            ),
            _ => (fault.to_string(), ""),
        },
        Some(Answer::Absent) => ("no such key".to_owned(), ""),
        Some(other) => {
            (format!("an answer that this version does not expect: {other:?}"), "is it a kv cluster of this version?")
        }
        None => ("not an answer of the key-value service".to_owned(), "`service` in cluster.toml must be \"kv\""),
    };
    Error::Refused { operation: operation.to_owned(), answer: text, mend: mend.to_owned() }
}

/// A key for people.
fn shown(key: &[u8]) -> String {
    let mut text = key.escape_ascii().to_string();
    if text.len() > 80 {
        text.truncate(80);
        text.push('…');
    }
    format!("`{text}`")
}

/// `name` as text, or `name_hex` where it is not UTF-8.
fn insert(object: &mut Map<String, Value>, name: &str, value: &[u8]) {
    match std::str::from_utf8(value) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_hex"), hex::encode(value).into()),
    };
}

fn pair_object(key: &[u8], value: Option<&[u8]>) -> Value {
    let mut object = Map::new();
    insert(&mut object, "key", key);
    object.insert("found".into(), value.is_some().into());
    if let Some(value) = value {
        insert(&mut object, "value", value);
    }
    Value::Object(object)
}

fn get(store: &Store, key: Vec<u8>, raw: bool, as_json: bool) -> Result<(), Error> {
    let name = format!("get {}", shown(&key));
    let answer = store.ask(&name, &Op::Get { key: &key })?;
    match Answer::parse(&answer) {
        Some(Answer::Value(value)) if as_json => output::json(&pair_object(&key, Some(value))),
        Some(Answer::Value(value)) if raw => output::bytes(value),
        Some(Answer::Value(value)) => output::bytes(&[value, b"\n"].concat()),
        absent => {
            if as_json && absent == Some(Answer::Absent) {
                output::json(&pair_object(&key, None))?;
            }
            Err(unexpected(&name, absent))
        }
    }
}

fn done(as_json: bool, text: &str) -> Result<(), Error> {
    if as_json { output::json(&json!({ "done": true })) } else { output::line(text) }
}

fn put(store: &Store, key: Vec<u8>, value: &[u8], as_json: bool) -> Result<(), Error> {
    let name = format!("put {}", shown(&key));
    let answer = store.ask(&name, &Op::Change(Change::Put { key: &key, value }))?;
    match Answer::parse(&answer) {
        Some(Answer::Done) => done(as_json, "stored"),
        other => Err(unexpected(&name, other)),
    }
}

fn del(store: &Store, key: Vec<u8>, as_json: bool) -> Result<(), Error> {
    let name = format!("del {}", shown(&key));
    let answer = store.ask(&name, &Op::Change(Change::Delete { key: &key }))?;
    match Answer::parse(&answer) {
        Some(Answer::Done) => done(as_json, "removed"),
        other => Err(unexpected(&name, other)),
    }
}

fn cas(
    store: &Store,
    key: Vec<u8>,
    expected: Option<Vec<u8>>,
    new: Option<Vec<u8>>,
    as_json: bool,
) -> Result<(), Error> {
    let name = format!("cas {}", shown(&key));
    let change = Change::Cas { key: &key, expected: expected.as_deref(), new: new.as_deref() };
    let answer = store.ask(&name, &Op::Change(change))?;
    match Answer::parse(&answer) {
        Some(Answer::Done) => done(as_json, "swapped"),
        Some(Answer::Mismatch(actual)) => {
            if as_json {
                output::json(&pair_object(&key, actual))?;
            }
            let answer = match actual {
                Some(actual) => format!("its value is {}, nothing was changed", shown(actual)),
                None => "it has no value, nothing was changed".to_owned(),
            };
            Err(Error::Refused { operation: name, answer, mend: "read it again and decide anew".to_owned() })
        }
        other => Err(unexpected(&name, other)),
    }
}

/// Pairs asked for at a time; an answer ends earlier when it is full.
const SCAN_PAGE: u32 = 4_096;

fn scan(store: &Store, prefix: &[u8], limit: u64, as_json: bool) -> Result<(), Error> {
    let mut left = limit;
    let mut after = Vec::new();
    let mut objects = Vec::new();
    loop {
        let page = store.scan(prefix, &after, SCAN_PAGE.min(u32::try_from(left).unwrap_or(SCAN_PAGE)))?;
        let mut text = Vec::new();
        let mut writer = Writer::new(&mut text, Format::Tsv);
        for (key, value) in &page.pairs {
            if as_json {
                objects.push(pair_object(key, Some(value)));
            } else {
                writer.write(key, value).map_err(output::stdout_error)?;
            }
        }
        drop(writer);
        output::bytes(&text)?;
        left -= (page.pairs.len() as u64).min(left);
        match page.pairs.last() {
            Some((key, _)) if page.more && left > 0 => after.clone_from(key),
            _ => break,
        }
    }
    if as_json { output::json(&json!({ "pairs": objects })) } else { Ok(()) }
}
