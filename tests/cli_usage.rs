//! How the command line answers right and wrong use where no replica runs: exit status and text.
#![cfg(feature = "cli")]

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn castra(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_castra"));
    command.args(args).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn expect(output: &Output, status: i32, words: &[&str]) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in:\n{text}");
    }
    text
}

/// A laboratory that nobody starts.
fn lab() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let lab = folder.path().join("lab").to_str().unwrap().to_owned();
    expect(&castra(&["cluster", "init", &lab]), 0, &["4 replicas", "tolerates 1"]);
    (folder, lab)
}

fn change(path: impl AsRef<Path>, from: &str, to: &str) {
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn every_verb_has_help_with_an_example() {
    for verb in [
        "cluster init",
        "cluster assemble",
        "node keygen",
        "config check",
        "replica",
        "up",
        "down",
        "status",
        "diff-state",
        "kv",
        "kv get",
        "kv put",
        "kv del",
        "kv cas",
        "kv scan",
        "kv import",
        "kv export",
        "bench load",
        "bench failover",
        "bench overload",
        "bfs",
        "bfs nfs",
        "bfs mount",
        "bfs fsck",
        "bfs quota",
        "sim",
        "bench transfer",
        "demo",
        "chaos",
    ] {
        let args: Vec<&str> = verb.split(' ').chain(["--help"]).collect();
        expect(&castra(&args), 0, &["Usage: castra", "Example", &format!("castra {}", args[0])]);
    }
    expect(&castra(&["--version"]), 0, &[env!("CARGO_PKG_VERSION")]);
}

#[test]
fn wrong_use_is_status_2() {
    expect(&castra(&[]), 2, &["Usage"]);
    expect(&castra(&["levitate"]), 2, &["levitate"]);
    expect(&castra(&["kv", "put", "k"]), 2, &["VALUE"]);
    expect(&castra(&["kv", "--timeout", "0", "get", "k"]), 2, &["timeout"]);
    expect(&castra(&["kv", "get", ""]), 2, &["a key has 1 to 1024 bytes"]);
    expect(&castra(&["kv", "cas", "k", "--new", "x"]), 2, &["--expect"]);
    expect(&castra(&["cluster", "init", "/tmp/never-made", "--f", "22"]), 2, &["f = 22", "from 1 (4 replicas) to 21"]);
    expect(&castra(&["cluster", "init", "/tmp/never-made", "--base-port", "65530"]), 2, &["leaves no room"]);
    expect(&castra(&["node", "keygen"]), 2, &["--replica"]);
    expect(&castra(&["status", "--interval", "2"]), 2, &["--watch"]);
    expect(&castra(&["status", "--watch", "--interval", "0"]), 2, &["from 0.1 to 3600"]);
}

#[test]
fn arguments_of_any_bytes_are_answered() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    for bytes in [&b"\xff\xfe"[..], b"\x01", b"--", b"-", b"\xc3"] {
        for verb in ["status", "up", "down"] {
            let output = Command::new(env!("CARGO_BIN_EXE_castra")).arg(verb).arg(OsStr::from_bytes(bytes)).output();
            let output = output.unwrap();
            assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");
        }
    }
}

#[test]
fn a_lab_is_whole_secret_and_never_overwritten() {
    let (_folder, lab) = lab();
    for file in ["cluster.toml", "instance", "client.toml", "r0.toml", "r3.key"] {
        assert!(Path::new(&lab).join(file).exists(), "{file}");
    }
    for key in ["r0.key", "r3.key", "client.key"] {
        let mode = fs::metadata(Path::new(&lab).join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    let cluster = fs::read(format!("{lab}/cluster.toml")).unwrap();
    expect(&castra(&["cluster", "init", &lab]), 1, &["E022", "is not empty", "nothing was changed"]);
    assert_eq!(fs::read(format!("{lab}/cluster.toml")).unwrap(), cluster);
    let out = expect(&castra(&["config", "check", &lab]), 0, &["checkpoint_interval", "poll_budget_us", "window"]);
    assert!(!out.contains("secret"), "{out}");
    expect(&castra(&["config", "check", "--json", &format!("{lab}/r1.toml")]), 0, &["\"id\": 1"]);
}

#[test]
fn w016_a_lab_stays_on_loopback() {
    let folder = tempfile::tempdir().unwrap();
    let lab = folder.path().join("lab").to_str().unwrap().to_owned();
    expect(&castra(&["cluster", "init", &lab, "--address", "0.0.0.0"]), 2, &["W016", "--lab"]);
    assert!(!Path::new(&lab).exists());
    expect(&castra(&["cluster", "init", &lab, "--address", "0.0.0.0", "--lab"]), 0, &[]);
    let config = format!("{lab}/r0.toml");
    let lie = castra(&["replica", "--config", &config, "--lab", "--lie", "replies"]);
    expect(&lie, 2, &["--lie", "on loopback only"]);
    expect(&castra(&["up", &lab]), 2, &["W016", "all its keys were made in one place"]);
    expect(&castra(&["replica", "--config", &format!("{lab}/r0.toml")]), 2, &["W016"]);
}

#[test]
fn e003_a_port_in_use_names_the_next_free_range() {
    let folder = tempfile::tempdir().unwrap();
    let lab = folder.path().join("lab").to_str().unwrap().to_owned();
    let held = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let output = castra(&["cluster", "init", &lab, "--base-port", &port.to_string()]);
    expect(&output, 1, &["E003", &format!("127.0.0.1:{port} is in use"), "--base-port"]);
    assert!(!Path::new(&lab).exists());
}

#[test]
fn e020_metrics_stay_on_loopback_unless_told() {
    let (_folder, lab) = lab();
    let file = format!("{lab}/r0.toml");
    let text = fs::read_to_string(&file).unwrap();
    let with = |more: &str| fs::write(&file, format!("{text}{more}")).unwrap();
    with("metrics = \"0.0.0.0:9100\"\n");
    let words = ["E020", "not loopback", "127.0.0.1:9100", "metrics_beyond_loopback = true"];
    expect(&castra(&["config", "check", &file]), 2, &words);
    with("metrics = \"0.0.0.0:9100\"\nmetrics_beyond_loopback = true\n");
    expect(&castra(&["config", "check", &file]), 0, &["metrics = \"0.0.0.0:9100\""]);
    let status = text.lines().find_map(|line| line.strip_prefix("status = ")).unwrap();
    with(&format!("metrics = {status}\n"));
    expect(&castra(&["config", "check", &file]), 2, &["E020", "a port of its own"]);
}

#[test]
fn e004_a_key_of_another_replica_is_refused() {
    let (_folder, lab) = lab();
    fs::copy(format!("{lab}/r1.key"), format!("{lab}/r2.key")).unwrap();
    let file = format!("{lab}/r2.toml");
    for args in [&["replica", "--config", &file][..], &["config", "check", &file], &["up", &lab]] {
        expect(&castra(args), 2, &["E004", "the key of r2", "fingerprint", "expected"]);
    }
}

#[test]
fn e015_a_key_that_others_can_read_is_refused() {
    let (_folder, lab) = lab();
    let key = format!("{lab}/r0.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    expect(&castra(&["replica", "--config", &format!("{lab}/r0.toml")]), 2, &["E015", &format!("chmod 600 {key}")]);
    let key = format!("{lab}/client.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o604)).unwrap();
    expect(&castra(&["kv", "-c", &lab, "get", "k"]), 2, &["E015", &format!("chmod 600 {key}")]);
}

#[test]
fn e014_cores_that_cannot_be_had() {
    let (_folder, lab) = lab();
    let file = format!("{lab}/r0.toml");
    fs::write(&file, format!("{}cores = \"1000\"\n", fs::read_to_string(&file).unwrap())).unwrap();
    expect(&castra(&["replica", "--config", &file]), 2, &["E014", "1000", "allowed here"]);
    change(&file, "\"1000\"", "\"some\"");
    expect(&castra(&["config", "check", &file]), 2, &["E014", "some"]);
}

#[test]
fn unknown_keys_missing_files_and_nonsense_are_named() {
    let (_folder, lab) = lab();
    let (cluster, r0) = (format!("{lab}/cluster.toml"), format!("{lab}/r0.toml"));
    change(&r0, "status", "statsu");
    expect(
        &castra(&["config", "check", &r0]),
        2,
        &["E020", "r0.toml:3", "unknown key `statsu`", "did you mean `status`?"],
    );
    change(&cluster, "f = 1", "f = 2");
    expect(&castra(&["config", "check", &cluster]), 2, &["4 replicas are listed", "exactly 7"]);
    change(&cluster, "f = 2", "f = 99");
    expect(&castra(&["config", "check", &cluster]), 2, &["f = 99", "from 1 to 21"]);
    change(&cluster, "f = 99", "f = 1\nclients = \"shut\"");
    expect(&castra(&["config", "check", &cluster]), 2, &["cluster.toml:", "duplicate key"]);
    fs::write(&cluster, b"\xff\xfe = [[[").unwrap();
    expect(&castra(&["config", "check", &cluster]), 1, &["cluster.toml"]);
    fs::write(&cluster, "f = \n").unwrap();
    expect(&castra(&["status", &lab]), 2, &["cluster.toml:1"]);
    expect(&castra(&["config", "check", "/nonexistent/r0.toml"]), 1, &["E021", "/nonexistent/r0.toml"]);
    expect(&castra(&["replica", "--config", "/proc/self/mem"]), 1, &["E021"]);
    expect(&castra(&["up", "/nonexistent"]), 1, &["E021", "castra cluster init"]);
    expect(&castra(&["kv", "-c", "/nonexistent", "get", "k"]), 1, &["E021"]);
}

#[test]
fn clients_are_open_or_listed() {
    let folder = tempfile::tempdir().unwrap();
    let lab = folder.path().join("lab").to_str().unwrap().to_owned();
    expect(&castra(&["cluster", "init", "--open", &lab]), 0, &[]);
    let cluster = format!("{lab}/cluster.toml");
    expect(&castra(&["config", "check", &cluster]), 0, &["anybody who reaches it may read and write"]);
    change(&cluster, "\"open\"", "\"shut\"");
    expect(&castra(&["config", "check", &cluster]), 2, &["shut", "`clients = \"open\"` or [[clients]] tables"]);
}

#[test]
fn values_out_of_bounds_name_the_bound() {
    let (_folder, lab) = lab();
    let cluster = format!("{lab}/cluster.toml");
    let with = |line: &str| change(&cluster, "[protocol]\n", &format!("[protocol]\n{line}\n"));
    with("checkpoint_interval = 100\nlog_window = 150");
    expect(&castra(&["config", "check", &cluster]), 2, &["log_window (150)", "multiple of checkpoint_interval"]);
    change(&cluster, "log_window = 150", "log_window = 200\nheartbeat_ms = 0");
    expect(&castra(&["config", "check", &cluster]), 2, &["protocol.heartbeat_ms = 0", "from 1 to 60000"]);
    change(&cluster, "heartbeat_ms = 0", "commit_delay_us = -1");
    expect(&castra(&["config", "check", &cluster]), 2, &["cluster.toml:"]);
}

#[test]
fn a_client_that_is_not_listed_hears_it_at_once() {
    let (folder, lab) = lab();
    let out = folder.path().to_str().unwrap();
    expect(&castra(&["node", "keygen", "--client", "eve", "--out", out]), 0, &["client eve", "fingerprint"]);
    fs::copy(format!("{out}/eve.key"), format!("{lab}/client.key")).unwrap();
    expect(&castra(&["kv", "-c", &lab, "get", "k"]), 2, &["is not listed"]);
}

#[test]
fn a_real_cluster_is_assembled_from_public_parts_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mut parts = Vec::new();
    for id in 0..4 {
        let (id, address) = (id.to_string(), format!("10.0.0.{}:7000", id + 1));
        let out = castra(&["node", "keygen", "--replica", &id, "--address", &address, "--out", &path("")]);
        expect(&out, 0, &["it stays on this host"]);
        parts.push(path(&format!("r{id}.pub.toml")));
    }
    let alice = ["--client", "alice", "--rights", "read", "--uids", "1000,1001", "--gids", "100", "--out", &path("")];
    expect(&castra(&[&["node", "keygen"], &alice[..]].concat()), 0, &[]);
    parts.push(path("alice.pub.toml"));
    let out = path("cluster.toml");
    let assemble = |parts: &[String]| {
        let mut args = vec!["cluster", "assemble", "--name", "bank", "--out", &out];
        args.extend(parts.iter().map(String::as_str));
        castra(&args)
    };
    expect(&assemble(&parts[..3]), 2, &["3 replicas are no cluster", "next is 4"]);
    expect(&assemble(&[parts[0].clone(), path("r1.key")]), 2, &["this is a secret key"]);
    expect(&assemble(&[parts[0].clone(), parts[0].clone()]), 2, &["r0 stands in"]);
    assert!(!Path::new(&out).exists());
    expect(&assemble(&parts), 0, &["4 replicas, tolerates 1", "1 clients"]);
    let text = expect(&castra(&["config", "check", &out]), 0, &["W016", "alice", "\"read\""]);
    assert!(fs::read_to_string(&out).unwrap().contains("uids = [1000, 1001]\ngids = [100]\n"), "{text}");
    assert!(!text.contains("castra-secret"), "{text}");
    expect(&castra(&["config", "check", &path("r2.toml")]), 0, &["replica r2"]);
    // Again: it compares.
    expect(&assemble(&parts), 0, &["agree with it, nothing was written"]);
    fs::remove_file(path("r2.key")).unwrap();
    fs::remove_file(&parts[2]).unwrap();
    let again = castra(&["node", "keygen", "--replica", "2", "--address", "10.0.0.3:7000", "--out", &path("")]);
    expect(&again, 0, &[]);
    expect(&assemble(&parts), 2, &["E004", "the key of r2"]);
    expect(&castra(&["config", "check", &path("r2.toml")]), 2, &["E004"]);
}

#[test]
fn e007_e013_a_cluster_that_is_down() {
    let (_folder, lab) = lab();
    expect(&castra(&["status", &lab]), 1, &["DOWN", "E007", "0 of 4 replicas answer, 3 are needed (n = 4, f = 1)"]);
    expect(&castra(&["status", "--json", &lab]), 1, &["\"health\": \"DOWN\"", "\"reachable\": false"]);
    let words = ["E013", "no 3 of 4 replicas agreed", "0 matching", "4 silent (r0, r1, r2, r3)"];
    expect(&castra(&["kv", "-c", &lab, "--timeout", "0.3", "put", "k", "v"]), 1, &words);
    expect(&castra(&["down", &lab]), 0, &["no replica"]);
}

#[test]
fn a_stranger_on_a_status_port_is_no_replica() {
    let (_folder, lab) = lab();
    let text = fs::read_to_string(format!("{lab}/r0.toml")).unwrap();
    let address = text.lines().find_map(|line| line.strip_prefix("status = ")).unwrap().trim_matches('"');
    let stranger = TcpListener::bind(address).unwrap();
    let server = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = stranger.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n");
    });
    expect(&castra(&["status", &lab]), 1, &["E007", "r0  away", "does not answer as a castra replica"]);
    server.join().unwrap();
}

#[test]
fn nobody_is_ended_by_a_stale_pid_file() {
    let (_folder, lab) = lab();
    let mut bystander = Command::new("sleep").arg("60").spawn().unwrap();
    // The pid of a process that lives, but is no replica; and one with a wrong start time.
    fs::write(format!("{lab}/r0.pid"), format!("{} 1\n", bystander.id())).unwrap();
    fs::write(format!("{lab}/r1.pid"), format!("{} 1\n", std::process::id())).unwrap();
    fs::write(format!("{lab}/r2.pid"), "no pid at all").unwrap();
    expect(&castra(&["down", &lab]), 0, &["no replica"]);
    assert!(bystander.try_wait().unwrap().is_none(), "it lives");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let (_folder, lab) = lab();
    let command =
        format!("{} config check {lab} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_castra"));
    let output = Command::new("bash").args(["-c", &command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert_eq!(text, "0", "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

#[test]
fn seeds_are_played_and_counted() {
    expect(&castra(&["sim", "--seeds", "3..6", "--events", "300"]), 0, &["3 seeds", "none failed", "a minute"]);
    let json = expect(&castra(&["sim", "--seed", "5", "--faults", "byzantine", "--events", "300", "--json"]), 0, &[]);
    let told: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&told["played"], &told["f"], &told["failures"]), (&1.into(), &1.into(), &serde_json::json!([])));
    assert!(told["events"].as_u64().unwrap() >= 300, "{told}");
    let seven = ["sim", "--seed", "1", "--f", "2", "--faults", "network", "--events", "200"];
    expect(&castra(&seven), 0, &["1 seed,", "7 replicas", "none failed"]);
}

#[test]
fn wrong_seeds_are_status_2() {
    expect(&castra(&["sim", "--seeds", "5..5"]), 2, &["5..5", "A..B"]);
    expect(&castra(&["sim", "--seeds", "many"]), 2, &["many", "A..B"]);
    expect(&castra(&["sim", "--seed", "1", "--seeds", "1..2"]), 2, &["--seed"]);
    expect(&castra(&["sim", "--seed", "1", "--f", "3"]), 2, &["3"]);
    expect(&castra(&["sim", "--seed", "1", "--faults", "none"]), 2, &["none", "byzantine"]);
}
