//! The laboratory on clusters of real sockets: figures that are true, work that is accounted for.
#![cfg(feature = "cli")]

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use castra::auth::{AuthMode, Clients, ClusterKeys, Identity, Keyring};
use castra::execution::Service;
use castra::lab::Target;
use castra::lab::demo::{self, Job, Progress};
use castra::lab::load::{self, Load};
use castra::protocol;
use castra::replica::{Replica, ReplicaConfig};
use castra::runtime::bind::{Bound, UdpConfig};
use castra::runtime::{Backend, Clock, Stop, Udp, WaitPolicy, drive};
use castra::services::{Kv, Null};
use castra::transport::Transport as _;
use castra::types::{ClusterSize, Digest, ReplicaId};
use rustix::process::{Pid, Signal, kill_process};

/// Four replicas in threads of this process, on loopback.
struct Embedded {
    target: Target,
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

impl Embedded {
    fn start<S: Service + Copy>(service: S) -> Embedded {
        let size = ClusterSize::tolerating(1).unwrap();
        let identities: Vec<Identity> = (1..=size.n() as u8).map(|i| Identity::from_seed([i; 32])).collect();
        let keys = Arc::new(ClusterKeys {
            cluster: Digest([7; 32]),
            instance: 1,
            replicas: identities.iter().map(Identity::public).collect(),
            clients: Clients::Open,
        });
        let clock = Clock::new();
        let unknown = vec!["127.0.0.1:0".parse().unwrap(); size.n()];
        let bind = |id| {
            let config = UdpConfig { clock, ..UdpConfig::replica(ReplicaId(id), unknown.clone()) };
            Bound::bind(config).unwrap()
        };
        let mut bound: Vec<Bound> = (0..size.n() as u8).map(bind).collect();
        let addresses: Vec<_> = bound.iter().map(Bound::local_address).collect();
        let stop = Stop::new();
        let start = |(id, mut bound): (usize, Bound)| {
            bound.meet(addresses.clone());
            let (me, keys, stop) = (ReplicaId(id as u8), keys.clone(), stop.clone());
            let identity = identities[id].clone();
            thread::spawn(move || {
                let (mut transport, _) = Udp::open(bound, Backend::Sockets).unwrap();
                let keyring = Keyring::replica(me, &identity, keys, AuthMode::Mac).unwrap();
                let mut config = ReplicaConfig::new(protocol::Config::new(size, me));
                config.network.datagram_max = UdpConfig::DATAGRAM_DEFAULT;
                let mut replica = Replica::new(config, keyring, service, transport.now()).unwrap();
                drive(&mut replica, &mut transport, &stop, &WaitPolicy::default(), &Default::default());
            })
        };
        let threads = bound.drain(..).enumerate().map(start).collect();
        let target = Target {
            addresses,
            keys,
            mode: AuthMode::Mac,
            datagram_max: UdpConfig::DATAGRAM_DEFAULT,
            inline_max: protocol::Config::new(size, ReplicaId(0)).inline_max,
            read_only: true,
            request_timeout: Duration::from_secs(20),
            backend: Backend::Sockets,
            clock,
        };
        Embedded { target, stop, threads }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stop.stop();
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "a replica panicked");
        }
    }
}

fn client(i: u8) -> Identity {
    Identity::from_seed([100 + i; 32])
}

#[test]
fn load_is_answered_and_measured() {
    let cluster = Embedded::start(Null);
    let load = Load {
        clients: 3,
        outstanding: 20,
        sessions: 2,
        keys: None,
        request_bytes: 100,
        reply_bytes: 300,
        read_only: false,
        threads: 2,
        warm_up_seconds: 0.1,
        seconds: 0.5,
    };
    let identities = [client(0), client(1), client(2)];
    for read_only in [false, true] {
        let load = Load { read_only, ..load.clone() };
        let me = std::process::id();
        let measured = load::run(&load, &cluster.target, &identities, &[me], &Stop::new()).unwrap();
        assert!(measured.operations > 0, "{measured:?}");
        assert_eq!((measured.errors, measured.wrong, measured.transport), (0, 0, "sockets"), "{measured:?}");
        assert!(measured.window >= Duration::from_millis(500));
        assert!(measured.latencies.micros().max > 0.0);
        // Replicas and clients are one process here, so both readings are of the same.
        assert!(measured.cpu_clients > Duration::ZERO && measured.cpu_replicas[0] > Duration::ZERO);
        assert!(measured.resident[0] > 0);
    }
}

#[test]
fn puts_are_answered_and_measured() {
    let cluster = Embedded::start(Kv);
    let load = Load {
        clients: 2,
        outstanding: 16,
        sessions: 1,
        keys: Some(500),
        request_bytes: 100,
        reply_bytes: load::PUT_ANSWER,
        read_only: false,
        threads: 1,
        warm_up_seconds: 0.1,
        seconds: 0.3,
    };
    let identities = [client(0), client(1)];
    let measured = load::run(&load, &cluster.target, &identities, &[], &Stop::new()).unwrap();
    assert!(measured.operations > 0, "{measured:?}");
    assert_eq!((measured.errors, measured.wrong), (0, 0), "every put was done: {measured:?}");
}

#[test]
fn work_is_accounted_for() {
    let cluster = Embedded::start(Kv);
    let progress = Progress::new();
    let job = Job { threads: 2, workers: 3, seed: 5, prefix: "of this test/".into() };
    let identity = client(0);
    let mut record = thread::scope(|scope| {
        let work = scope.spawn(|| demo::work(&job, &cluster.target, &identity, &progress));
        while progress.operations() < 500 {
            thread::sleep(Duration::from_millis(5));
        }
        progress.stop();
        work.join().unwrap().unwrap()
    });
    assert!(record.worked() >= 500);
    demo::close(&mut record, &job, &cluster.target, &identity, 128, &progress).unwrap();
    let verdict = record.judge();
    assert_eq!(verdict.errors, Vec::<String>::new());
    assert_eq!(verdict.linearizable, Ok(()));
    assert_eq!((verdict.lost, verdict.duplicated), (0, 0));
    assert!(verdict.ops > record.worked());
}

/// Runs the real binary to its end and gives its JSON.
fn castra(arguments: &[&str]) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_castra")).args(arguments).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "castra {arguments:?}: {}\n{out}\n{err}", output.status);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error} in {out}"))
}

#[test]
fn the_demo_loses_nothing_and_says_so() {
    let report = castra(&["demo", "--seconds", "2", "--json"]);
    assert!(report["ops"].as_u64().unwrap() > 0, "{report:#}");
    assert!(report["ops_per_s"].as_f64().unwrap() > 0.0, "{report:#}");
    assert!(report["seconds"].as_f64().unwrap() >= 2.0, "{report:#}");
    for none in ["lost", "duplicated", "unanswered"] {
        assert_eq!(report[none], 0, "{report:#}");
    }
    for yes in ["linearizable", "digests_equal"] {
        assert_eq!(report[yes], true, "{report:#}");
    }
    assert_eq!(report["digests_of"].as_array().unwrap().len(), 4, "{report:#}");
    let blows = report["blows"].as_array().unwrap();
    let what: Vec<(&str, bool)> =
        blows.iter().map(|blow| (blow["fault"].as_str().unwrap(), blow["primary"].as_bool().unwrap())).collect();
    assert_eq!(what, [("kill", true), ("stop", true)], "{report:#}");
    for blow in blows {
        assert!(blow["gap_ms"].as_f64().unwrap() > 0.0 && blow["healed_ms"].as_f64().unwrap() > 0.0, "{report:#}");
        assert!(blow["view_after"].as_u64() > blow["view_before"].as_u64(), "{report:#}");
        assert!(blow["gap_ms"].as_f64() <= report["gap_ms"].as_f64(), "{report:#}");
    }
    assert_eq!(report["caught_up"], true, "{report:#}");
    assert!(report["view_changes"].as_u64().unwrap() >= 2, "{report:#}");
    for phase in ["before", "during", "after"] {
        assert!(report[phase]["writes"]["ops"].as_u64().unwrap() > 0, "{report:#}");
        assert!(report[phase]["reads"]["p50"].as_f64().unwrap() > 0.0, "{report:#}");
    }
}

#[test]
fn the_bare_pattern_is_measured_in_processes_of_its_own() {
    for (clients, outstanding, more) in [("1", "1", None), ("2", "16", None), ("2", "1", Some("--read-only"))] {
        let mut arguments = vec!["bench", "net", "--seconds", "0.3", "--json", "--transport", "sockets"];
        arguments.extend(["--clients", clients, "--outstanding", outstanding]);
        arguments.extend(more);
        let report = castra(&arguments);
        for positive in ["ops_per_s", "cpu_us_per_op"] {
            assert!(report["pattern"][positive].as_f64().unwrap() > 0.0, "{report:#}");
        }
        let latency = &report["pattern"]["latency_us"];
        assert!(
            latency["p50"].as_f64().unwrap() > 0.0 && latency["p99"].as_f64() <= latency["max"].as_f64(),
            "{report:#}"
        );
        assert!(report["costs_ns"]["datagram_64"].as_f64().unwrap() > 100.0, "no datagram is that cheap: {report:#}");
    }
    let output =
        Command::new(env!("CARGO_BIN_EXE_castra")).args(["bench", "net", "--outstanding", "0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_cluster_is_compared_with_a_server_that_is_not_replicated() {
    let arguments = ["bench", "compare", "--rounds", "2", "--seconds", "0.2", "--clients", "2", "--outstanding", "3"];
    let report = castra(&[&arguments[..], &["--transport", "sockets", "--json"]].concat());
    let rows = report["operations"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["operation"].as_str().unwrap()).collect();
    assert_eq!(names, ["0/0", "4/0", "0/4"], "{report:#}");
    for row in rows {
        for way in ["unreplicated", "read_write", "read_only"] {
            for positive in ["ops_per_s", "p50_us", "p99_us", "cpu_us_per_op"] {
                assert!(row[way][positive].as_f64().unwrap() > 0.0, "{way} {positive}: {report:#}");
            }
        }
        let p50 = |way: &str| row[way]["p50_us"].as_f64().unwrap();
        let overhead = row["read_write_overhead_percent"]["latency"].as_f64().unwrap();
        assert!((overhead - (p50("read_write") / p50("unreplicated") - 1.0) * 100.0).abs() < 0.1, "{report:#}");
        assert!(overhead > 0.0, "five messages take longer than two: {report:#}");
    }
    assert_eq!((&report["rounds"], &report["outstanding"]), (&2.into(), &3.into()), "{report:#}");
}

#[test]
fn load_is_measured_on_processes() {
    for (transport, more) in [("uring", None), ("sockets", Some("--read-only")), ("sockets", Some("--no-bound"))] {
        let mut arguments =
            vec!["bench", "load", "--seconds", "1", "--warm-up", "0.2", "--clients", "2", "--outstanding", "8"];
        arguments.extend(["--request", "100", "--reply", "200", "--transport", transport, "--json"]);
        arguments.extend(more);
        let report = castra(&arguments);
        assert!(report["operations"].as_u64().unwrap() > 0, "{report:#}");
        for positive in ["ops_per_s", "rss_mib_per_replica", "measured_seconds", "system_calls_per_op"] {
            assert!(report[positive].as_f64().unwrap() > 0.0, "{positive}: {report:#}");
        }
        let latency = |name: &str| report["latency_us"][name].as_f64().unwrap();
        assert!(0.0 < latency("p50") && latency("p50") <= latency("p99"), "{report:#}");
        assert!(latency("p99") <= latency("p999") && latency("p999") <= latency("max"), "{report:#}");
        let cpu = |name: &str| report["cpu_us_per_op"][name].as_f64().unwrap();
        assert!((cpu("replicas") + cpu("clients") - cpu("total")).abs() < 0.05, "{report:#}");
        assert!(cpu("replicas") > 0.0 && cpu("clients") > 0.0, "{report:#}");
        assert_eq!((&report["errors"], &report["wrong_results"]), (&0.into(), &0.into()), "{report:#}");
        assert!(report["view_changes"].is_u64(), "{report:#}");
        assert_eq!(report["replicas"].as_array().unwrap().len(), 4);
        if transport == "uring" && report["configuration"]["transport_replicas"] == "io_uring" {
            // One call waits, receives and sends for a turn. A busy machine makes turns longer, not calls more.
            for replica in report["replicas"].as_array().unwrap() {
                let count = |name: &str| replica[name].as_u64().unwrap();
                let datagrams = count("datagrams_sent") + count("datagrams_received");
                assert!(count("system_calls") <= datagrams, "more than a call for each datagram: {replica:#}");
            }
        }
        let configuration = &report["configuration"];
        assert_eq!((&configuration["clients"], &configuration["outstanding"]), (&2.into(), &8.into()));
        assert_eq!(configuration["read_only"], more == Some("--read-only"));
        let bound = &report["bound"];
        assert_eq!(bound.is_null(), more == Some("--no-bound"), "{report:#}");
        if !bound.is_null() {
            let ratio = report["ops_per_s"].as_f64().unwrap() / bound["ops_per_s"].as_f64().unwrap();
            assert!((bound["ops_ratio"].as_f64().unwrap() - ratio).abs() < 0.001 && ratio > 0.0, "{report:#}");
            assert!(
                bound["p50_us"].as_f64().unwrap() > 0.0 && bound["p50_ratio"].as_f64().unwrap() > 0.0,
                "{report:#}"
            );
        }
        if transport == "sockets" {
            assert_eq!(configuration["transport_replicas"], "sockets");
        }
        assert!(!report["machine"]["cpu"].as_str().unwrap().is_empty());
    }
}

/// A short one: that memory and view stay is for `castra bench overload` to say, in ten minutes.
#[test]
fn overload_is_answered_and_judged() {
    let arguments = ["bench", "overload", "--seconds", "3", "--clients", "4", "--outstanding", "256", "--json"];
    let output = Command::new(env!("CARGO_BIN_EXE_castra")).args(arguments).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.success(), report["passed"].as_bool().unwrap(), "{report:#}");
    assert_eq!(report["passed"], report["wrong"].as_array().unwrap().is_empty(), "{report:#}");
    for none in ["errors", "wrong_results"] {
        assert_eq!(report[none], 0, "{report:#}");
    }
    assert!(report["operations"].as_u64().unwrap() > 0, "{report:#}");
    // On a slow machine no look may fall into a tenth of so short a time: then it says that.
    let looked = ["rss_mib_early", "rss_mib_late"].map(|memory| report[memory].as_array().unwrap().len());
    let said = report["wrong"].to_string().contains("could not be looked at often enough");
    assert!(looked == [4, 4] || said, "{report:#}");
}

#[test]
fn a_failover_is_measured_and_loses_nothing() {
    for how in ["kill", "stop"] {
        let arguments = ["bench", "failover", "--whom", "backup", "--fresh", "--kills", "2", "--how", how, "--json"];
        let report = castra(&arguments);
        let kills = report["kills"].as_array().unwrap();
        assert_eq!(kills.len(), 2, "{report:#}");
        for kill in kills {
            assert_eq!(kill["victim"], "r3", "{report:#}");
            assert!(kill["gap_ms"].as_f64().unwrap() > 0.0, "{report:#}");
            assert!(kill["gap_any_ms"].as_f64() <= kill["gap_ms"].as_f64(), "{report:#}");
            assert!(kill["healed_ms"].is_null(), "each has a cluster of its own: {report:#}");
        }
        assert!(report["gap_ms"]["median"].as_f64() <= report["gap_ms"]["max"].as_f64(), "{report:#}");
        assert!(report["operations"].as_u64().unwrap() > 0, "{report:#}");
        for none in ["lost", "duplicated", "unanswered"] {
            assert_eq!(report[none], 0, "{report:#}");
        }
        assert_eq!((&report["linearizable"], &report["how"]), (&true.into(), &how.into()), "{report:#}");
    }
}

#[test]
fn p42_primaries_are_killed_one_after_the_other_and_each_recovers() {
    let report = castra(&["bench", "failover", "--kills", "3", "--rest", "0.3", "--json"]);
    let kills = report["kills"].as_array().unwrap();
    let victims: Vec<&str> = kills.iter().map(|kill| kill["victim"].as_str().unwrap()).collect();
    assert!(victims.windows(2).all(|pair| pair[0] != pair[1]), "the next is another view's primary: {report:#}");
    for kill in kills {
        assert!(kill["healed_ms"].as_f64().unwrap() > 0.0, "{report:#}");
        assert!(kill["view_after"].as_u64() > kill["view_before"].as_u64(), "{report:#}");
    }
    for none in ["lost", "duplicated", "unanswered"] {
        assert_eq!(report[none], 0, "{report:#}");
    }
    assert_eq!(report["linearizable"], true, "{report:#}");
}

#[test]
fn chaos_on_processes_loses_nothing_and_leaves_the_cluster_whole() {
    let report = castra(&["chaos", "--seed", "11", "--seconds", "3", "--faults", "kill,stop", "--json"]);
    let blows = report["blows"].as_array().unwrap();
    assert!(!blows.is_empty() && report["seed"] == 11, "{report:#}");
    for blow in blows {
        assert!(["kill", "stop"].contains(&blow["fault"].as_str().unwrap()), "{report:#}");
        assert!(blow["healed_ms"].is_f64() && blow["operations"].as_u64().unwrap() > 0, "{report:#}");
    }
    for none in ["lost", "duplicated", "unanswered"] {
        assert_eq!(report[none], 0, "{report:#}");
    }
    assert_eq!((&report["linearizable"], &report["digests"]["equal"]), (&true.into(), &true.into()), "{report:#}");
}

/// Namespaces of this machine that processes with `word` among their arguments are in.
fn namespaces_of(word: &str) -> std::collections::BTreeSet<std::path::PathBuf> {
    let of = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        let line = std::fs::read(path.join("cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(word).then_some(())?;
        std::fs::read_link(path.join("ns/net")).ok()
    };
    std::fs::read_dir("/proc").unwrap().filter_map(of).collect()
}

#[test]
fn chaos_cuts_lines_where_it_may_and_leaves_no_process_behind() {
    let faults = "isolate,mute,deaf,part,halve";
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().to_str().unwrap();
    let run = |more: &[&str]| {
        let mut chaos = Command::new(env!("CARGO_BIN_EXE_castra"));
        chaos.args(["chaos", "--faults", faults, "--seed", "5"]).args(more).env("TMPDIR", folder.path());
        chaos.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let output = run(&["--seconds", "3", "--json"]).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(2) {
        // Where it may not it says so.
        assert!(said.contains("no network namespaces here") && said.contains("no line can be cut"), "{said}");
        return;
    }
    assert!(output.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let blows = report["blows"].as_array().unwrap();
    assert!(!blows.is_empty() && blows.iter().all(|blow| faults.contains(blow["fault"].as_str().unwrap())));
    assert_eq!((&report["lost"], &report["digests"]["equal"]), (&0.into(), &true.into()), "{report:#}");

    // Killed in the middle, it has time to do nothing: the namespaces end with the processes in them.
    let mut chaos = run(&["--seconds", "60"]);
    let until = Instant::now() + Duration::from_secs(30);
    while processes_of(name) < 4 {
        assert!(Instant::now() < until && chaos.try_wait().unwrap().is_none(), "four replicas start");
        thread::sleep(Duration::from_millis(20));
    }
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert!(!namespaces_of(name).contains(&ours), "no replica is in our namespace");
    chaos.kill().unwrap();
    chaos.wait().unwrap();
    while processes_of(name) > 0 {
        assert!(Instant::now() < until, "the replicas end with it");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_transfer_under_load_is_measured() {
    let arguments = ["bench", "transfer", "--state", "8", "--differs", "5", "--seconds", "0.5", "--json"];
    let report = castra(&arguments);
    assert!(report["state_mib"].as_f64().unwrap() >= 8.0, "{report:#}");
    // What others still hold in their logs is executed, not fetched: fewer pages than values that changed.
    assert!(report["pages"].as_u64().unwrap() > 0, "{report:#}");
    assert!(report["bytes"].as_u64().unwrap() > 0 && report["transfer_ms"].as_f64().unwrap() > 0.0, "{report:#}");
    assert!(report["ops_per_s"]["during"].as_f64().unwrap() > 0.0, "{report:#}");
    assert_eq!((&report["linearizable"], &report["digests_equal"]), (&true.into(), &true.into()), "{report:#}");
}

#[test]
fn wrong_use_is_told_from_failure() {
    for arguments in [
        &["bench", "load", "--replicas", "5"][..],
        &["bench", "load", "--clients", "0"],
        &["bench", "load", "--outstanding", "3000", "--sessions", "1"],
        &["bench", "load", "--seconds", "nan"],
        &["bench", "compare", "--rounds", "0"],
        &["bench", "compare", "--replicas", "5"],
        &["bench", "failover", "--kills", "0"],
        &["bench", "failover", "--rest", "nan"],
        &["bench", "overload", "--seconds", "nan"],
        &["bench", "overload", "--replicas", "5"],
        &["demo", "--seconds", "100"],
        &["chaos", "--seconds", "0"],
        &["chaos", "--faults", "flood"],
        &["bench", "transfer", "--differs", "nan"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_castra")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Processes of this machine that hold `folder` in their arguments.
fn processes_of(folder: &str) -> usize {
    let holds = |entry: std::io::Result<std::fs::DirEntry>| {
        let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(folder).then_some(())
    };
    std::fs::read_dir("/proc").unwrap().filter_map(holds).count()
}

#[test]
fn no_replica_outlives_a_demo_that_is_stopped_or_killed() {
    for signal in [Signal::TERM, Signal::KILL] {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().to_str().unwrap();
        let mut demo = Command::new(env!("CARGO_BIN_EXE_castra"));
        demo.args(["demo", "--seconds", "45", "--json"]).env("TMPDIR", folder.path()).stdout(Stdio::null());
        let mut demo = demo.spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        while processes_of(name) < 4 {
            assert!(Instant::now() < until && demo.try_wait().unwrap().is_none(), "four replicas start");
            thread::sleep(Duration::from_millis(20));
        }
        kill_process(Pid::from_child(&demo), signal).unwrap();
        let exit = demo.wait().unwrap();
        if signal == Signal::TERM {
            assert_eq!(exit.code(), Some(130));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "its folder is gone");
        }
        while processes_of(name) > 0 {
            assert!(Instant::now() < until, "the replicas end with it");
            thread::sleep(Duration::from_millis(20));
        }
    }
}
