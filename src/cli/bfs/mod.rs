//! `castra bfs`: the replicated file system for ordinary programs.

mod demo;
mod duplicates;
mod exports;
mod fsck;
mod locks;
mod mount;
mod mounter;
mod nfs;
mod opened;
mod quota;
mod translate;
mod volume;
mod work;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use self::volume::Volume;
use super::config::{ServiceName, wrong};
use super::connect::{Connected, connect};
use super::errors::Error;
use super::lab::bench::Path as PacketPath;
use super::lab::unreplicated::Unreplicated;
use crate::limits::PAGE;

/// Calls that may be on their way to an unreplicated file system: as many as a cluster's client allows unless told.
const WINDOW: u64 = 256;

/// `castra bfs`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  castra cluster init lab --service bfs && castra up lab\n  castra bfs mount \
                  --cluster lab /mnt")]
pub struct BfsArgs {
    #[command(subcommand)]
    verb: Verb,
}

/// What can be done with the file system.
#[derive(Subcommand, Debug)]
enum Verb {
    /// Serve it to NFSv3 clients, as a client of the cluster
    #[command(after_help = nfs::EXAMPLE)]
    Nfs(nfs::Nfs),
    /// Mount it as a folder, by FUSE
    #[command(after_help = mount::EXAMPLE)]
    Mount(mount::Mount),
    /// Try it: real programs on a mounted cluster whose primaries are killed and stopped
    #[command(after_help = demo::EXAMPLE)]
    Demo(demo::Demo),
    /// Have every replica check that its file system fits together, while it serves
    #[command(after_help = fsck::EXAMPLE)]
    Fsck(fsck::FsckArgs),
    /// Show and set how much room and how many files users and groups may have
    #[command(after_help = quota::EXAMPLE)]
    Quota(quota::QuotaArgs),
}

/// Where the file system is.
#[derive(Args, Debug)]
struct Source {
    /// The cluster's folder, or a client.toml
    #[arg(long, short, default_value = ".", value_name = "DIR")]
    cluster: PathBuf,
    /// Without a cluster: the same file system on one server, in a process of its own; empty at start, gone at the end
    #[arg(long, conflicts_with = "cluster")]
    unreplicated: bool,
    /// Size of the unreplicated file system
    #[arg(long, default_value_t = 1_024, requires = "unreplicated", value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    size: u32,
    /// Who owns the unreplicated file system's root directory
    #[arg(long, default_value_t = 0, requires = "unreplicated")]
    uid: u32,
    /// Give a request up after so many seconds. Programs wait as long, and then fail
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

impl Source {
    /// Opens it, and says what it is.
    fn open(&self) -> Result<(Volume, String), Error> {
        let timeout = Duration::from_secs(self.timeout);
        if self.unreplicated {
            let pages = u32::try_from(u64::from(self.size) * (1 << 20) / PAGE as u64).unwrap_or(u32::MAX);
            let (service, transport) = (ServiceName::Bfs, PacketPath::Uring);
            let server = Unreplicated { service, transport, pages, uid: self.uid }.start()?;
            let client = server.connect(WINDOW, timeout)?;
            let what = format!("an unreplicated file system of {} MiB", self.size);
            return Ok((Volume::new(client, Some(server)), what));
        }
        let connected = connect_to_bfs(&self.cluster, timeout)?;
        let what = format!("the file system of cluster {}", connected.config.cluster.file.name);
        Ok((Volume::new(connected.client, None), what))
    }
}

/// A client of the cluster, whose service must be this one.
fn connect_to_bfs(folder: &Path, timeout: Duration) -> Result<Connected, Error> {
    let connected = connect(folder, Some(timeout))?;
    let cluster = &connected.config.cluster;
    if cluster.file.service != ServiceName::Bfs {
        let seen = format!("the service of this cluster is {}", cluster.file.service.word());
        return Err(wrong(&cluster.path, seen, "make one with: castra cluster init DIR --service bfs"));
    }
    Ok(connected)
}

/// Runs a verb.
pub fn run(args: &BfsArgs) -> Result<(), Error> {
    match &args.verb {
        Verb::Nfs(args) => nfs::run(args),
        Verb::Mount(args) => mount::run(args),
        Verb::Demo(args) => demo::run(args),
        Verb::Fsck(args) => fsck::run(args),
        Verb::Quota(args) => quota::run(args),
    }
}
