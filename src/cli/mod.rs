//! The command line: verbs, configuration files, and what to say when something is wrong.
//!
//! Exit status: 0 done, 1 it failed, 2 wrong use. No input makes it panic.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "the command line lives in the world: clocks, sleeps, threads")]

mod bfs;
mod check;
pub mod config;
mod connect;
mod diff;
pub mod errors;
mod files;
mod http;
mod init;
mod inspection;
mod kv;
mod lab;
mod liar;
mod metrics;
mod nearest;
mod output;
mod processes;
mod replica;
mod sim;
mod status;
mod updown;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use errors::Error;

/// Practical Byzantine fault tolerance for deterministic services
#[derive(Parser, Debug)]
#[command(name = "castra", version, propagate_version = true, max_term_width = 120)]
#[command(
    after_help = "First steps:\n  castra cluster init lab\n  castra up lab\n  castra kv --cluster lab put greeting hello\n  \
                        castra status lab\n  castra down lab"
)]
struct Castra {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Try it: four replicas, work, a replica that dies; every answer is checked
    Demo(lab::demo::Demo),
    /// Start every replica of a folder as a background process
    Up(updown::Up),
    /// End every replica of a folder
    Down(updown::Down),
    /// Show what the replicas say of themselves
    Status(status::Status),
    /// Say which pages of a replica's state differed from those of the others
    DiffState(diff::DiffState),
    /// Run one replica
    Replica(replica::ReplicaArgs),
    /// Use the replicated key-value store
    Kv(kv::Kv),
    /// Use the replicated file system
    Bfs(bfs::BfsArgs),
    /// Break a simulated cluster, seed by seed
    Sim(sim::SimArgs),
    /// Kill, stop and cut off replicas of a cluster that works, from a seed
    Chaos(lab::chaos::Chaos),
    /// Measure
    #[command(subcommand)]
    Bench(BenchVerb),
    /// Make a cluster: a laboratory, or from public parts
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Make keys
    #[command(subcommand)]
    Node(NodeVerb),
    /// Check configuration files
    #[command(subcommand)]
    Config(ConfigVerb),
}

#[derive(Subcommand, Debug)]
enum BenchVerb {
    /// Keep load on a cluster: throughput, latency, CPU, memory
    Load(lab::bench::LoadArgs),
    /// Kill or stop the primary under load, again and again: how long nothing is answered
    Failover(lab::failover::FailoverArgs),
    /// Keep more load on a cluster than it can bear: nothing grows, and the view stays
    Overload(lab::overload::OverloadArgs),
    /// Let a replica fetch a large state under load: what is moved, and what clients feel
    Transfer(lab::transfer::TransferArgs),
    /// What this machine takes for messages alone: the bound of every load
    Net(lab::pattern::NetArgs),
    /// Hold a cluster against the same service on one server: what replication costs
    Compare(lab::compare::CompareArgs),
    #[command(hide = true)]
    BareReplica(lab::pattern::BareArgs),
    #[command(hide = true)]
    Unreplicated(lab::unreplicated::ServerArgs),
}

#[derive(Subcommand, Debug)]
enum ClusterVerb {
    /// Make a laboratory: configuration and all keys in one folder
    Init(init::Init),
    /// Make cluster.toml from public parts, or compare them with it
    Assemble(init::Assemble),
}

#[derive(Subcommand, Debug)]
enum NodeVerb {
    /// Make a secret key and its public part
    Keygen(init::Keygen),
}

#[derive(Subcommand, Debug)]
enum ConfigVerb {
    /// Print the effective configuration: every value, defaults included
    Check(check::Check),
}

/// Runs the command line and gives its exit status.
pub fn main() -> ExitCode {
    let castra = match Castra::try_parse() {
        Ok(castra) => castra,
        Err(error) => {
            // Help and version are no errors; nobody reading them is fine.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(castra.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, Error::OutputClosed | Error::Interrupted | Error::Reported) {
                output::note(&error);
            }
            error.exit_code()
        }
    }
}

fn run(verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::Up(args) => updown::up(&args),
        Verb::Down(args) => updown::down(&args),
        Verb::Status(args) => status::status(&args),
        Verb::DiffState(args) => diff::diff_state(&args),
        Verb::Replica(args) => replica::replica(&args),
        Verb::Kv(args) => kv::run(args),
        Verb::Bfs(args) => bfs::run(&args),
        Verb::Demo(args) => lab::demo::demo(&args),
        Verb::Sim(args) => sim::sim(&args),
        Verb::Chaos(args) => lab::chaos::chaos(&args),
        Verb::Bench(BenchVerb::Load(args)) => lab::bench::load(&args),
        Verb::Bench(BenchVerb::Failover(args)) => lab::failover::failover(&args),
        Verb::Bench(BenchVerb::Overload(args)) => lab::overload::overload(&args),
        Verb::Bench(BenchVerb::Transfer(args)) => lab::transfer::transfer(&args),
        Verb::Bench(BenchVerb::Net(args)) => lab::pattern::net(&args),
        Verb::Bench(BenchVerb::Compare(args)) => lab::compare::compare(&args),
        Verb::Bench(BenchVerb::BareReplica(args)) => lab::pattern::bare_replica(&args),
        Verb::Bench(BenchVerb::Unreplicated(args)) => lab::unreplicated::server(&args),
        Verb::Cluster(ClusterVerb::Init(args)) => init::init(&args),
        Verb::Cluster(ClusterVerb::Assemble(args)) => init::assemble(&args),
        Verb::Node(NodeVerb::Keygen(args)) => init::keygen(&args),
        Verb::Config(ConfigVerb::Check(args)) => check::check(&args),
    }
}
