//! Configuration files: `cluster.toml` (the same on all hosts), `rN.toml` (one replica's), `client.toml`.
//!
//! Every value has a default, a unit in its name or its type, and a bound. Unknown keys are errors that name the
//! nearest known one.

mod client;
mod cluster;
mod replica;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use client::{Client, ClientFile};
pub use cluster::{Cluster, ClusterFile, ListedClient, ReplicaEntry, Right, ServiceName, StateSection, identity};
pub use replica::{Replica, ReplicaFile};

use super::errors::Error;
use super::nearest::nearest;

/// A configuration file is read whole; a list of some ten thousand clients fits.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Which kind of packet path a process uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// io_uring, or plain sockets where it is refused (said at start).
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// Plain sockets.
    Sockets,
}

/// Reads a configuration file as text.
pub fn read(path: &Path, mend: &str) -> Result<String, Error> {
    let read = |path: &Path| {
        let mut text = String::new();
        File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read(path).map_err(Error::reading(path, mend))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(wrong(path, format!("larger than {FILE_BYTES_MAX} bytes"), "is it the right file?"));
    }
    Ok(text)
}

/// Parses a configuration file; errors name the line and, for unknown keys, the nearest known one.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Error> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let message = error.message().lines().next().unwrap_or_default().to_owned();
        let (seen, mend) = match unknown_key(&message) {
            Some((key, known)) => {
                let mend = match nearest(&key, known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("keys here: {}", known.join(", ")),
                };
                (format!("unknown key `{key}`"), mend)
            }
            None => (message, format!("castra config check {} shows the file as it is understood", path.display())),
        };
        Error::Config { path: path.to_owned(), line, seen, mend }
    })
}

/// Takes apart serde's "unknown field `a`, expected one of `b`, `c`".
fn unknown_key(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown field ")?;
    let mut quoted = rest.split('`').skip(1).step_by(2).map(str::to_owned);
    Some((quoted.next()?, quoted.collect()))
}

/// A configuration file that says something that cannot be.
pub fn wrong(path: &Path, seen: impl Into<String>, mend: impl Into<String>) -> Error {
    Error::Config { path: path.to_owned(), line: None, seen: seen.into(), mend: mend.into() }
}

/// `path` as it is meant in a file of `folder`.
fn beside(folder: &Path, path: &Path) -> PathBuf {
    folder.join(path)
}

/// The folder that holds `path`.
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Checks that `value` is within bounds.
fn within<T: PartialOrd + std::fmt::Display>(
    path: &Path,
    key: &str,
    value: T,
    bounds: std::ops::RangeInclusive<T>,
) -> Result<(), Error> {
    if bounds.contains(&value) {
        return Ok(());
    }
    let (min, max) = bounds.into_inner();
    Err(wrong(path, format!("{key} = {value} is out of bounds"), format!("{key} is from {min} to {max}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code, reason = "only its name matters here")]
        address: String,
    }

    fn error(text: &str) -> String {
        parse::<Sample>(Path::new("x.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn unknown_keys_name_the_nearest_known_one() {
        let text = error("\nadress = \"a\"\n");
        assert_eq!(text, "error[E020]: x.toml:2: unknown key `adress`\n  mend:  did you mean `address`?");
    }

    #[test]
    fn a_key_like_none_lists_all() {
        assert!(error("colour = 1\naddress = \"a\"").contains("keys here: address"));
    }

    #[test]
    fn broken_toml_names_its_line() {
        assert!(error("address = \"a\"\n= 3").starts_with("error[E020]: x.toml:2: "));
    }
}
