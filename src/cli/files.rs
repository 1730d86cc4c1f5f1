//! Small files that must be right: secret keys, the instance id, boot counters, pid files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

use super::config::{self, folder_of, wrong};
use super::errors::Error;
use crate::auth::{Identity, PublicIdentity};

const SECRET_PREFIX: &str = "castra-secret1";

/// Writes `content` so that after any crash the file holds either the old content or the new.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let folder = folder_of(path);
    let write = || {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".new{}", std::process::id()));
        let temporary = folder.join(name);
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            File::open(&folder)?.sync_all()
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
    };
    write().map_err(Error::writing(path))
}

/// Writes a file that must not exist yet.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            let mend = "it is left as it is; choose another name, or move it away first".into();
            Error::File { doing: "overwrite", path: path.to_owned(), error, mend }
        }
        _ => Error::writing(path)(error),
    })
}

/// 64 random bits.
pub fn random_u64() -> Result<u64, Error> {
    let mut bytes = [0; 8];
    random(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn random(bytes: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(bytes).map_err(|error| Error::system("get random bytes")(io::Error::other(error.to_string())))
}

/// A new identity.
pub fn new_identity() -> Result<Identity, Error> {
    let mut seed = Zeroizing::new([0; 32]);
    random(&mut *seed)?;
    Ok(Identity::from_seed(*seed))
}

/// Writes the secret key of `owner`, mode 0600.
pub fn write_key(path: &Path, owner: &str, identity: &Identity) -> Result<(), Error> {
    let seed = Zeroizing::new(hex::encode(identity.seed()));
    let text = Zeroizing::new(format!(
        "# castra: the secret key of {owner}; nobody else may read it\n{SECRET_PREFIX}{}\n",
        *seed
    ));
    write_new(path, text.as_bytes(), 0o600)
}

/// Reads a secret key. E015 if others can read the file.
pub fn read_key(path: &Path) -> Result<Identity, Error> {
    let metadata = fs::metadata(path)
        .map_err(Error::reading(path, "`castra node keygen` makes a key; its public part goes into cluster.toml"))?;
    let mode = metadata.mode() & 0o7777;
    if metadata.is_file() && mode & 0o077 != 0 {
        return Err(Error::KeyReadable { path: path.to_owned(), mode });
    }
    let text = Zeroizing::new(config::read(path, "is it yours?")?);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or_default();
    let mut seed = Zeroizing::new([0; 32]);
    match line.strip_prefix(SECRET_PREFIX).map(|digits| hex::decode_to_slice(digits, &mut *seed)) {
        Some(Ok(())) => Ok(Identity::from_seed(*seed)),
        _ => Err(wrong(path, "this is not a castra secret key", "`castra node keygen` makes one")),
    }
}

/// Whether `text` holds a secret key: such a file is refused where public parts are wanted.
pub fn holds_secret(text: &str) -> bool {
    text.contains(SECRET_PREFIX)
}

/// What people compare: the first 64 bits of the identity's digest.
pub fn fingerprint(public: &PublicIdentity) -> String {
    format!("{:016x}", public.client_id().0)
}

/// The number of this life of the cluster.
pub fn read_instance(path: &Path) -> Result<u64, Error> {
    let text = config::read(
        path,
        "`castra up DIR` writes it; in production copy `instance` from where the cluster was assembled",
    )?;
    text.trim().parse().map_err(|_| wrong(path, "not a plain number", "copy it from another host of this cluster"))
}

/// Begins a new life of the cluster.
pub fn write_instance(path: &Path, instance: u64) -> Result<(), Error> {
    write_atomically(path, format!("{instance}\n").as_bytes(), 0o644)
}

/// Counts this start of a replica in `instance`, on disk, and gives its number from 1. The boot counter is part of what
/// a replica signs, so it is durable before the first datagram leaves (P42).
pub fn next_boot(path: &Path, instance: u64) -> Result<u64, Error> {
    let before = match fs::read_to_string(path) {
        Ok(text) => {
            let numbers: Option<Vec<u64>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
            match numbers.as_deref() {
                Some([of, boots]) if *of == instance => *boots,
                Some([_, _]) => 0,
                _ => {
                    let mend = "it has been damaged: begin a new life of the cluster (castra down, castra up)";
                    return Err(wrong(path, "not `INSTANCE BOOTS`", mend));
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(Error::reading(path, "is it yours?")(error)),
    };
    let boot = before.saturating_add(1);
    write_atomically(path, format!("{instance} {boot}\n").as_bytes(), 0o644)?;
    Ok(boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p42_boots_are_counted_within_an_instance() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r0.boot");
        assert_eq!(next_boot(&path, 7).unwrap(), 1);
        assert_eq!(next_boot(&path, 7).unwrap(), 2);
        assert_eq!(next_boot(&path, 8).unwrap(), 1, "a new life forgets nothing that counts");
        fs::write(&path, "8 x").unwrap();
        assert_eq!(next_boot(&path, 8).unwrap_err().code(), "E020");
    }

    #[test]
    fn keys_are_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r0.key");
        let identity = new_identity().unwrap();
        write_key(&path, "r0", &identity).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read_key(&path).unwrap().public(), identity.public());
        assert_eq!(write_key(&path, "r0", &identity).unwrap_err().code(), "E021", "never overwritten");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(read_key(&path).unwrap_err().code(), "E015");
        assert!(holds_secret(&fs::read_to_string(&path).unwrap()));
    }

    #[test]
    fn garbage_is_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.key");
        for text in ["", "castra-secret1", "castra-secret1zz", "\u{0}", "# only a comment"] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(read_key(&path).unwrap_err().code(), "E020", "{text:?}");
        }
    }
}
