//! `config check`: what a configuration file means, with every default filled in.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::config::{self, Client, Cluster, Replica};
use super::errors::Error;
use super::output::{json, line, note};
use super::{files, init};

/// `castra config check`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  castra config check lab          (every file of the folder)\n  castra config check lab/r0.toml"
)]
pub struct Check {
    /// Files to check, or folders with a cluster
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Print the effective configuration as JSON
    #[arg(long)]
    pub json: bool,
}

/// Checks files and prints what they mean.
pub fn check(args: &Check) -> Result<(), Error> {
    for path in &args.paths {
        if path.is_dir() {
            check_folder(path, args.json)?;
        } else {
            check_file(path, args.json)?;
        }
    }
    Ok(())
}

/// Checks all configuration files of a folder.
fn check_folder(folder: &Path, as_json: bool) -> Result<(), Error> {
    let cluster = folder.join("cluster.toml");
    check_file(&cluster, as_json)?;
    let size = Cluster::load(&cluster)?.size;
    let others = size.replicas().map(|id| folder.join(format!("{id}.toml"))).chain([folder.join("client.toml")]);
    for path in others.filter(|path| path.exists()) {
        check_file(&path, as_json)?;
    }
    Ok(())
}

/// What a file is, by its keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Cluster,
    Replica,
    Client,
}

fn kind(path: &Path) -> Result<Kind, Error> {
    let text = config::read(path, "name a cluster.toml, rN.toml or client.toml")?;
    let table: toml::Table = config::parse(path, &text)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(match () {
        () if table.contains_key("replicas") || table.contains_key("f") || name == "cluster.toml" => Kind::Cluster,
        () if table.contains_key("id") => Kind::Replica,
        () => Kind::Client,
    })
}

fn check_file(path: &Path, as_json: bool) -> Result<(), Error> {
    match kind(path)? {
        Kind::Cluster => {
            let cluster = Cluster::load(path)?;
            if let Err(warning) = cluster.check_lab(false) {
                note(warning);
            }
            if cluster.is_open() {
                note(format!("{}: clients = \"open\": anybody who reaches it may read and write", path.display()));
            }
            let heading = format!("cluster {} (id {})", init::short(&cluster), cluster.id);
            effective(path, &heading, &cluster.file, as_json)
        }
        Kind::Replica => {
            let replica = Replica::load(path)?;
            check_key(&replica)?;
            let heading = format!("replica {} of cluster {}", replica.id, init::short(&replica.cluster));
            effective(path, &heading, &replica.file, as_json)
        }
        Kind::Client => {
            let client = Client::load(path)?;
            let key = files::read_key(&client.file.key_file)?;
            let heading = format!("client {} of cluster {}", key.public().client_id(), init::short(&client.cluster));
            effective(path, &heading, &client.file, as_json)
        }
    }
}

/// E004: a replica's key is the one that the cluster file names.
pub fn check_key(replica: &Replica) -> Result<crate::auth::Identity, Error> {
    let key = files::read_key(replica.key_file())?;
    let expected = replica.cluster.identity(replica.id);
    if key.public() == expected {
        return Ok(key);
    }
    Err(Error::KeyMismatch {
        owner: replica.id.to_string(),
        key: replica.key_file().to_owned(),
        found: files::fingerprint(&key.public()),
        cluster: replica.cluster.path.clone(),
        expected: files::fingerprint(&expected),
    })
}

fn effective(path: &Path, heading: &str, file: &impl Serialize, as_json: bool) -> Result<(), Error> {
    if as_json {
        return json(file);
    }
    let text =
        toml::to_string_pretty(file).map_err(|error| Error::system("make TOML")(std::io::Error::other(error)))?;
    line(format!("# {}: {heading}\n{text}", path.display()))
}
