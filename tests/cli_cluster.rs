//! Four real processes on loopback, from the command line: init, up, kv, status, down. One at a time (`.config`,
//! `ci/check`), ports that the kernel chose, progress within 30 s.
#![cfg(feature = "cli")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// A laboratory that runs; its drop ends it.
struct Lab {
    _folder: tempfile::TempDir,
    dir: PathBuf,
}

impl Lab {
    fn up(init: &[&str]) -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let lab = Lab { dir: folder.path().join("lab"), _folder: folder };
        let dir = lab.dir.to_str().unwrap();
        ok(&castra(&[&["cluster", "init", dir], init].concat()));
        ok(&castra(&["up", dir]));
        lab
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    fn kv(&self, args: &[&str]) -> Output {
        castra(&[&["kv", "--timeout", "30", "-c", self.dir.to_str().unwrap()], args].concat())
    }

    fn status(&self) -> serde_json::Value {
        let output = castra(&["status", "--json", self.dir.to_str().unwrap()]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// Waits until the status is as wished.
    #[track_caller]
    fn until(&self, wish: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let started = Instant::now();
        loop {
            let status = self.status();
            if wish(&status) {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "{status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn kill(&self, id: usize) {
        let killed = Command::new("kill").args(["-9", &self.pid(id).to_string()]).status().unwrap();
        assert!(killed.success());
    }

    fn pid(&self, id: usize) -> u32 {
        let text = fs::read_to_string(self.path(&format!("r{id}.pid"))).unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = castra(&["down", self.dir.to_str().unwrap()]);
    }
}

fn castra(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_castra")).args(args).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn fails(output: &Output, words: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text.contains(words), "{text}");
}

#[test]
fn the_store_from_the_command_line() {
    let lab = Lab::up(&[]);
    let dir = lab.dir.to_str().unwrap();
    fails(&castra(&["up", dir]), "run already");

    ok(&lab.kv(&["put", "greeting", "hello"]));
    assert_eq!(ok(&lab.kv(&["get", "greeting"])), "hello\n");
    assert_eq!(ok(&lab.kv(&["get", "greeting", "--raw"])), "hello");
    fails(&lab.kv(&["get", "nothing"]), "no such key");
    ok(&lab.kv(&["cas", "greeting", "--expect", "hello", "--new", "salve"]));
    fails(&lab.kv(&["cas", "greeting", "--expect", "hello", "--new", "x"]), "its value is `salve`");
    ok(&lab.kv(&["cas", "lock", "--absent", "--new", "me"]));
    ok(&lab.kv(&["cas", "lock", "--expect", "me", "--delete"]));
    fails(&lab.kv(&["del", "lock"]), "no such key");
    ok(&lab.kv(&["put", "tab\there", "new\nline"]));
    assert_eq!(ok(&lab.kv(&["scan"])), "greeting\tsalve\ntab\\there\tnew\\nline\n");
    assert_eq!(ok(&lab.kv(&["scan", "gr", "--limit", "1"])), "greeting\tsalve\n");
    let found: serde_json::Value = serde_json::from_str(&ok(&lab.kv(&["--json", "get", "greeting"]))).unwrap();
    assert_eq!((found["found"].as_bool(), found["value"].as_str()), (Some(true), Some("salve")));

    let status = lab.until(|status| status["health"] == "HEALTHY");
    assert_eq!(status["replicas"].as_array().unwrap().len(), 4);
    assert!(ok(&castra(&["status", dir])).contains("HEALTHY, can lose 1 more replica"));
    assert_eq!(ok(&castra(&["diff-state", dir, "r2"])), "r2: no difference was found since it started\n");
    let differs: serde_json::Value = serde_json::from_str(&ok(&castra(&["diff-state", dir, "--json"]))).unwrap();
    assert_eq!((differs["differs"].as_bool(), differs["replicas"].as_object().unwrap().len()), (Some(false), 4));
    assert_eq!(castra(&["diff-state", dir, "r9"]).status.code(), Some(2));

    ok(&castra(&["down", dir]));
    fails(&castra(&["status", dir]), "E007");
    assert!(!lab.dir.join("r0.pid").exists());
    // A new life: nothing of the old is there.
    ok(&castra(&["up", dir]));
    fails(&lab.kv(&["get", "greeting"]), "no such key");
}

#[test]
fn values_of_any_size_and_bytes() {
    let lab = Lab::up(&[]);
    let big: Vec<u8> = (0..1_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    fs::write(lab.path("big"), &big).unwrap();
    ok(&lab.kv(&["put", "big", "--file", &lab.path("big")]));
    let got = lab.kv(&["get", "--raw", "big"]);
    assert!(got.status.success() && got.stdout == big, "{:?}", got.status);
    fs::write(lab.path("huge"), vec![0; 1 << 20]).unwrap();
    let refused = lab.kv(&["put", "huge", "--file", &lab.path("huge")]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    for name in ["all.tsv", "all.csv"] {
        ok(&lab.kv(&["export", &lab.path(name)]));
        ok(&lab.kv(&["del", "big"]));
        ok(&lab.kv(&["import", &lab.path(name)]));
        assert_eq!(lab.kv(&["get", "--raw", "big"]).stdout, big, "{name}");
    }
}

#[test]
fn a_large_file_in_and_out_and_one_digest_everywhere() {
    let lab = Lab::up(&[]);
    let pairs = 100_000;
    let text: String = (0..pairs).map(|i| format!("key/{i:08}\tvalue {} of {i}\n", i * 31 % 997)).collect();
    fs::write(lab.path("in.tsv"), &text).unwrap();
    let said = ok(&lab.kv(&["import", &lab.path("in.tsv"), "--json"]));
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((said["stored"].as_u64(), said["malformed"].as_u64()), (Some(pairs), Some(0)), "{said}");
    ok(&lab.kv(&["export", &lab.path("out.tsv")]));
    assert!(fs::read_to_string(lab.path("out.tsv")).unwrap() == text, "what came out is what went in");
    let status = lab.until(|status| status["digests_equal"] == true);
    assert!(status["digests_compared_at"].as_u64().unwrap() > 0);
}

#[test]
fn malformed_lines_are_named_and_lose_nothing_else() {
    let lab = Lab::up(&[]);
    fs::write(lab.path("in.csv"), "a,1\nbroken\nb,\"2\nc,3\nc,4\n").unwrap();
    let output = lab.kv(&["import", &lab.path("in.csv")]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("in.csv:2: 1 fields") && text.contains("in.csv:3: a quote is never closed"), "{text}");
    assert!(text.contains("E024") && text.contains("2 malformed lines"), "{text}");
    // The later line of one key wins, though both were in flight.
    assert_eq!(ok(&lab.kv(&["scan"])), "a\t1\nc\t4\n");
}

#[test]
fn p42_the_primary_is_killed_twice_and_each_recovers() {
    let lab = Lab::up(&[]);
    let dir = lab.dir.to_str().unwrap();
    ok(&lab.kv(&["put", "k", "0"]));
    for round in 1..=2 {
        let status = lab.until(|status| status["health"] == "HEALTHY");
        let id: usize = status["primary"].as_str().unwrap()[1..].parse().unwrap();
        lab.kill(id);
        ok(&lab.kv(&["put", "k", &round.to_string()]));
        let status = lab.until(|status| status["health"] == "DEGRADED" && status["can_lose"] == 0);
        assert_eq!(status["budget"]["silent"], serde_json::json!([format!("r{id}")]), "{status:#}");
        ok(&castra(&["up", dir]));
        // Whoever asks meanwhile is served.
        assert_eq!(ok(&lab.kv(&["get", "k"])), format!("{round}\n"));
        let status = lab.until(|status| status["health"] == "HEALTHY" && status["can_lose"] == 1);
        let back = &status["replicas"][id];
        assert_eq!((&back["state"], &back["boot"]), (&"normal".into(), &2.into()), "{status:#}");
    }
    assert!(ok(&castra(&["status", dir])).contains("HEALTHY, can lose 1 more replica"));
}

#[test]
fn a_replica_by_hand_is_known_to_down() {
    let lab = Lab::up(&[]);
    lab.kill(3);
    lab.until(|status| status["health"] == "DEGRADED");
    let mut back = Command::new(env!("CARGO_BIN_EXE_castra"));
    back.args(["replica", "--config", &lab.path("r3.toml")]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut back = back.stderr(Stdio::null()).spawn().unwrap();
    ok(&lab.kv(&["put", "k", "3"]));
    lab.until(|status| status["replicas"][3]["state"] == "normal");
    // SIGTERM ends it cleanly.
    ok(&castra(&["down", lab.dir.to_str().unwrap()]));
    assert!(back.wait().unwrap().success());
}

#[test]
fn p42_f_when_too_many_have_forgotten_status_says_so_and_a_new_life_helps() {
    let lab = Lab::up(&[]);
    let dir = lab.dir.to_str().unwrap();
    ok(&lab.kv(&["put", "k", "v"]));
    lab.kill(1);
    lab.kill(2);
    // `up` would refuse; by hand nobody does.
    let by_hand = |id: usize| {
        let mut replica = Command::new(env!("CARGO_BIN_EXE_castra"));
        replica.args(["replica", "--config", &lab.path(&format!("r{id}.toml"))]).stdin(Stdio::null());
        replica.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut reborn = [by_hand(1), by_hand(2)];
    let lost = |status: &serde_json::Value| (1..3).all(|id: usize| status["replicas"][id]["state"] == "lost");
    let status = lab.until(lost);
    assert_eq!((&status["health"], &status["budget"]["left"]), (&"DOWN".into(), &0.into()), "{status:#}");
    assert_eq!(status["budget"]["recovering"], serde_json::json!(["r1", "r2"]), "{status:#}");
    let said = ok(&castra(&["status", dir]));
    assert!(said.contains("memory lost: start a new instance") && said.contains("2 of 1 spent"), "{said}");
    ok(&castra(&["down", dir]));
    assert!(reborn.iter_mut().all(|replica| replica.wait().unwrap().success()));
    ok(&castra(&["up", dir]));
    lab.until(|status| status["health"] == "HEALTHY");
    fails(&lab.kv(&["get", "k"]), "no such key");
}

#[test]
fn chaos_strikes_a_cluster_that_runs_and_leaves_it_whole() {
    let lab = Lab::up(&[]);
    let dir = lab.dir.to_str().unwrap();
    ok(&lab.kv(&["put", "k", "mine"]));
    for seed in ["1", "2"] {
        let said = ok(&castra(&["chaos", dir, "--seed", seed, "--seconds", "1", "--json"]));
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!((&report["lost"], &report["linearizable"]), (&0.into(), &true.into()), "{report:#}");
        let status = lab.until(|status| status["health"] == "HEALTHY");
        assert!(status["replicas"].as_array().unwrap().iter().all(|replica| replica["state"] == "normal"));
    }
    // Nothing of it is left in the store, and what was there still is.
    assert_eq!(ok(&lab.kv(&["scan"])), "k\tmine\n");
    ok(&castra(&["down", dir]));
    fails(&castra(&["chaos", dir, "--seed", "1"]), "castra up");
}

#[test]
fn up_starts_what_is_missing_and_refuses_when_too_much_is_forgotten() {
    let lab = Lab::up(&[]);
    let dir = lab.dir.to_str().unwrap();
    let instance = fs::read_to_string(lab.path("instance")).unwrap();
    lab.kill(2);
    lab.until(|status| status["replicas"][2]["reachable"] == false);
    let said: serde_json::Value = serde_json::from_str(&ok(&castra(&["up", "--json", dir]))).unwrap();
    assert_eq!((&said["started"], &said["new_life"]), (&serde_json::json!(["r2"]), &false.into()), "{said}");
    assert_eq!(fs::read_to_string(lab.path("instance")).unwrap(), instance, "the same life");
    let status = lab.until(|status| status["replicas"][2]["reachable"] == true);
    assert_eq!(status["replicas"][2]["boot"], 2);
    ok(&lab.kv(&["put", "k", "v"]));
    lab.until(|status| status["health"] == "HEALTHY");
    lab.kill(1);
    lab.kill(3);
    lab.until(|status| [1, 3].iter().all(|&id: &usize| status["replicas"][id]["reachable"] == false));
    fails(&castra(&["up", dir]), "2 of 4 replicas are down and their memory is lost");
}

#[test]
fn status_is_followed_until_a_signal() {
    let lab = Lab::up(&[]);
    for (json, wanted) in [(false, "HEALTHY"), (true, "\"health\":\"HEALTHY\"")] {
        let mut watch = Command::new(env!("CARGO_BIN_EXE_castra"));
        watch.args(["status", "--watch", "--interval", "0.1", lab.dir.to_str().unwrap()]).stdin(Stdio::null());
        watch.args(json.then_some("--json"));
        let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(watch.stdout.take().unwrap()).lines().map_while(Result::ok);
        let healthy = lines.filter(|line| line.contains(wanted)).take(3).count();
        assert_eq!(healthy, 3, "it shows it again and again");
        // The pipe is closed now, which ends it too: either is a clean end.
        let _ = Command::new("kill").args(["-INT", &watch.id().to_string()]).status();
        assert_eq!(watch.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn metrics_are_the_figures_of_status() {
    let folder = tempfile::tempdir().unwrap();
    let lab = Lab { dir: folder.path().join("lab"), _folder: folder };
    let dir = lab.dir.to_str().unwrap().to_owned();
    ok(&castra(&["cluster", "init", &dir]));
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let file = lab.path("r1.toml");
    fs::write(&file, format!("{}metrics = \"{address}\"\n", fs::read_to_string(&file).unwrap())).unwrap();
    ok(&castra(&["up", &dir]));
    ok(&lab.kv(&["put", "k", "v"]));
    let get = |path: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let page = get("/metrics");
    assert!(page.starts_with("HTTP/1.0 200 OK") && page.contains("application/openmetrics-text"), "{page}");
    for line in ["castra_view{replica=\"r1\"} 0.0", "castra_state{replica=\"r1\",state=\"normal\"} 1.0", "# EOF"] {
        assert!(page.lines().any(|l| l == line), "no {line} in {page}");
    }
    assert!(page.contains("castra_bad_mac_total{replica=\"r1\",peer=\"r0\"} 0"), "{page}");
    assert!(get("/").contains("castra_executed"));
    assert!(get("/status").starts_with("HTTP/1.0 404"));
}

#[test]
fn datagrams_of_any_bytes_leave_it_unharmed_and_counted() {
    let lab = Lab::up(&[]);
    let cluster = fs::read_to_string(lab.path("cluster.toml")).unwrap();
    let addresses = cluster.lines().filter_map(|line| line.strip_prefix("address = ")).map(|a| a.trim_matches('"'));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut seed = 1u64;
    for address in addresses {
        for len in [0, 1, 3, 4, 5, 23, 24, 40, 48, 64, 100, 1_000, 8_000] {
            for kind in 0..6 {
                let mut bytes: Vec<u8> = (0..len)
                    .map(|_| {
                        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        (seed >> 56) as u8
                    })
                    .collect();
                if kind > 0 && len >= 8 {
                    bytes[..5].copy_from_slice(&[b'c', b's', b't', 1, kind]);
                }
                let _ = socket.send_to(&bytes, address);
            }
        }
    }
    ok(&lab.kv(&["put", "k", "v"]));
    let rejected = |status: &serde_json::Value, id: usize| -> u64 {
        let rejects = status["replicas"][id]["rejects"].as_object().cloned().unwrap_or_default();
        rejects.values().filter_map(serde_json::Value::as_u64).sum()
    };
    let status = lab.until(|status| (0..4).all(|id| rejected(status, id) >= 50));
    assert_eq!(status["health"], "HEALTHY");
}

#[test]
fn e005_one_changed_byte_is_another_cluster() {
    let lab = Lab::up(&[]);
    let other = lab.dir.join("other");
    fs::create_dir(&other).unwrap();
    for file in ["client.toml", "client.key", "instance"] {
        fs::copy(lab.dir.join(file), other.join(file)).unwrap();
    }
    let text = fs::read_to_string(lab.path("cluster.toml")).unwrap();
    fs::write(other.join("cluster.toml"), format!("{text}\n")).unwrap();
    let output = castra(&["kv", "-c", other.to_str().unwrap(), "--timeout", "0.3", "put", "k", "v"]);
    fails(&output, "E013");
    let status = lab.until(|status| !status["replicas"][0]["foreign"].is_null());
    assert!(status["replicas"][0]["foreign"][1].as_str().unwrap().starts_with("127.0.0.1:"), "{status:#}");
    assert!(ok(&castra(&["status", lab.dir.to_str().unwrap()])).contains("of another cluster"));
}

#[test]
fn the_slow_ways_work_too() {
    let lab = Lab::up(&["--signatures", "--open", "--f", "1"]);
    ok(&lab.kv(&["put", "k", "v"]));
    assert_eq!(ok(&lab.kv(&["get", "k"])), "v\n");
    ok(&castra(&["down", lab.dir.to_str().unwrap()]));
    for id in 0..4 {
        let path = lab.path(&format!("r{id}.toml"));
        fs::write(&path, format!("{}transport = \"sockets\"\n", fs::read_to_string(&path).unwrap())).unwrap();
    }
    ok(&castra(&["up", lab.dir.to_str().unwrap()]));
    ok(&lab.kv(&["put", "k", "v"]));
    assert_eq!(lab.status()["replicas"][0]["transport"], "sockets");
}

#[test]
fn sigterm_ends_a_replica_cleanly_and_a_taken_port_is_named() {
    let lab = Lab::up(&[]);
    let mut second = Command::new(env!("CARGO_BIN_EXE_castra"));
    let second = second.args(["replica", "--config", &lab.path("r0.toml")]).output().unwrap();
    fails(&second, "E022");
    // Without its pid file only the port tells.
    let pid = lab.pid(0);
    fs::remove_file(lab.path("r0.pid")).unwrap();
    let second = castra(&["replica", "--config", &lab.path("r0.toml")]);
    fails(&second, "E003");
    fails(&second, &format!("pid {pid}"));

    let id = lab.pid(1);
    assert!(Command::new("kill").arg(id.to_string()).status().unwrap().success());
    let started = Instant::now();
    while lab.dir.join("r1.pid").exists() {
        assert!(started.elapsed() < PATIENCE, "r1 does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = BufReader::new(fs::File::open(lab.path("r1.log")).unwrap());
    let last = log.lines().map_while(Result::ok).last().unwrap();
    assert!(last.contains("r1 stops"), "{last}");
    // r0 has no pid file any more: end it by the pid that we know.
    assert!(Command::new("kill").arg(pid.to_string()).status().unwrap().success());
}
