//! The NFS gateway as a process: what its clients see over TCP, on one file system in its process and on a cluster of four,
//! whose primary is killed meanwhile.
#![cfg(feature = "cli")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use castra::bfs::rpc::{self, MOUNT, NFS};
use castra::bfs::xdr::Sink as _;
use castra::bfs::{Answer, CreateHow, Handle, NewAttributes, Place, Procedure, Request, Status};

const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway that runs; its drop ends it.
struct Gateway {
    process: Child,
    address: String,
}

impl Gateway {
    fn start(args: &[&str]) -> Gateway {
        let mut command = Command::new(env!("CARGO_BIN_EXE_castra"));
        let mut process = command.args(["bfs", "nfs"]).args(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let address = said.strip_prefix("nfs://").and_then(|rest| rest.split('/').next());
        let address = address.unwrap_or_else(|| panic!("{said}")).to_owned();
        Gateway { process, address }
    }

    fn connect(&self) -> Caller {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Caller { stream, xid: 0, uid: 0 }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Caller {
    stream: TcpStream,
    xid: u32,
    /// As whom it asks.
    uid: u32,
}

/// A call as root, without its record mark.
fn record(xid: u32, program: u32, version: u32, procedure: u32, arguments: &[u8]) -> Vec<u8> {
    record_as(0, xid, program, version, procedure, arguments)
}

/// A call of a user who is in the group of the same number.
fn record_as(uid: u32, xid: u32, program: u32, version: u32, procedure: u32, arguments: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    for word in [xid, 0, 2, program, version, procedure, 1, 20, 0, 0, uid, uid, 0, 0, 0] {
        record.put_u32(word);
    }
    record.put(arguments);
    record
}

fn marked(record: &[u8]) -> Vec<u8> {
    [&(record.len() as u32 | 0x8000_0000).to_be_bytes()[..], record].concat()
}

impl Caller {
    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next reply, from its xid on; `None` if the other end has closed.
    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header).ok()?;
        let (len, last) = rpc::fragment(header);
        assert!(last);
        let mut reply = vec![0; len];
        self.stream.read_exact(&mut reply).unwrap();
        Some(reply)
    }

    /// accept_stat and results.
    fn ask(&mut self, program: u32, version: u32, procedure: u32, arguments: &[u8]) -> (u32, Vec<u8>) {
        self.xid += 1;
        let xid = self.xid;
        self.send(&marked(&record_as(self.uid, xid, program, version, procedure, arguments)));
        let reply = self.receive().expect("a reply");
        assert_eq!(reply[..20], [&xid.to_be_bytes()[..], &[0, 0, 0, 1], &[0; 12]].concat());
        (u32::from_be_bytes(reply[20..24].try_into().unwrap()), reply[24..].to_vec())
    }

    fn nfs(&mut self, request: Request<'_>) -> Vec<u8> {
        let mut arguments = Vec::new();
        request.encode(&mut arguments);
        let (accepted, results) = self.ask(NFS, 3, request.procedure() as u32, &arguments);
        assert_eq!(accepted, 0, "{request:?}");
        results
    }

    fn create(&mut self, name: &str) -> Handle {
        let at = Place { directory: Some(Handle::ROOT), name: name.as_bytes() };
        let results = self.nfs(Request::Create { at, how: CreateHow::Guarded(NewAttributes::mode(0o644)) });
        Answer::parse(Procedure::Create, &results).unwrap().handle.unwrap()
    }

    fn write(&mut self, file: Handle, offset: u64, data: &[u8]) {
        let write = Request::Write { file: Some(file), offset, count: data.len() as u32, stable: 0, data };
        let results = self.nfs(write);
        assert_eq!(Answer::parse(Procedure::Write, &results).unwrap().count, data.len() as u32);
    }

    fn read(&mut self, file: Handle, offset: u64, count: u32) -> Vec<u8> {
        let results = self.nfs(Request::Read { file: Some(file), offset, count });
        Answer::parse(Procedure::Read, &results).unwrap().data.to_vec()
    }
}

#[test]
fn a_gateway_speaks_rpc_as_the_protocol_has_it() {
    let gateway = Gateway::start(&["--unreplicated", "--size", "16", "--listen", "127.0.0.1:0"]);
    let caller = &mut gateway.connect();
    assert_eq!(caller.ask(NFS, 3, 0, &[]), (0, vec![]));
    assert_eq!(caller.ask(MOUNT, 3, 0, &[]), (0, vec![]));
    assert_eq!(caller.ask(NFS, 2, 0, &[]).0, 2, "PROG_MISMATCH");
    assert_eq!(caller.ask(100_000, 2, 0, &[]).0, 1, "PROG_UNAVAIL");
    assert_eq!(caller.ask(NFS, 3, 22, &[]), (3, vec![]), "PROC_UNAVAIL");
    for own in Procedure::ALL.into_iter().filter(|procedure| !procedure.is_nfs()) {
        assert_eq!(caller.ask(NFS, 3, own as u32, &[0; 8]), (3, vec![]), "{own:?} is not NFS's");
    }
    assert_eq!(caller.ask(NFS, 3, 1, &[1, 2, 3]), (4, vec![]), "GARBAGE_ARGS");
    assert_eq!(caller.ask(MOUNT, 3, 1, &[0xff; 4]), (4, vec![]), "GARBAGE_ARGS");
    let mut path = Vec::new();
    path.put_opaque(b"/");
    let (_, mounted) = caller.ask(MOUNT, 3, 1, &path);
    assert_eq!(mounted, rpc::mounted(Ok(Handle::ROOT)));
    path.clear();
    path.put_opaque(b"/none");
    assert_eq!(caller.ask(MOUNT, 3, 1, &path).1, (Status::NoEnt as u32).to_be_bytes());
    assert_eq!(caller.ask(MOUNT, 3, 5, &[]).1, rpc::exports(&["127.0.0.0/8".to_owned(), "::1".to_owned()]));

    // A call in fragments of three bytes.
    let mut bytes = Vec::new();
    let call = record(1_000, NFS, 3, 0, &[]);
    for part in call.chunks(3) {
        bytes.put_u32(part.len() as u32);
        bytes.put(part);
    }
    let last = bytes.len() - call.chunks(3).last().unwrap().len() - 4;
    bytes[last] = 0x80;
    caller.send(&bytes);
    assert_eq!(caller.receive().unwrap()[..4], 1_000u32.to_be_bytes());
    // What is no RPC ends the connection, and nobody else's.
    let others = &mut gateway.connect();
    for bytes in [vec![0xff; 8], marked(b"GET / HTTP/1.1"), vec![0x80, 0, 0, 0], vec![0; 4]] {
        let hostile = &mut gateway.connect();
        hostile.send(&bytes);
        assert_eq!(hostile.receive(), None, "{bytes:?}");
    }
    assert_eq!(others.ask(NFS, 3, 0, &[]), (0, vec![]));
}

#[test]
fn a_read_only_gateway_changes_nothing() {
    let gateway = Gateway::start(&["--unreplicated", "--size", "16", "--listen", "127.0.0.1:0", "--read-only"]);
    let caller = &mut gateway.connect();
    let (object, new) = (Some(Handle::ROOT), NewAttributes::mode(0o755));
    let [at, to] = [&b"a"[..], b"b"].map(|name| Place { directory: object, name });
    let rofs = |caller: &mut Caller, request: Request<'_>| {
        let results = caller.nfs(request);
        assert_eq!(Answer::parse(request.procedure(), &results).unwrap().status, Err(Status::RoFs), "{request:?}");
    };
    rofs(caller, Request::MkDir { at, new });
    rofs(caller, Request::SetAttr { object, new, guard: None });
    rofs(caller, Request::Rename { from: at, to });
    rofs(caller, Request::Link { file: object, at });
    rofs(caller, Request::Remove { at });
    let results = caller.nfs(Request::Lookup { at });
    assert_eq!(Answer::parse(Procedure::Lookup, &results).unwrap().status, Err(Status::NoEnt));
    let results = caller.nfs(Request::Access { object, wanted: 0x3f });
    assert_eq!(Answer::parse(Procedure::Access, &results).unwrap().granted, 0x03, "read and look up");
}

#[test]
fn who_is_not_allowed_is_not_served() {
    let start = |allow: &str| {
        let args = ["--unreplicated", "--size", "16", "--listen", "127.0.0.1:0", "--allow", allow];
        Gateway::start(&args)
    };
    let others = start("10.1.0.0/16,127.0.0.2,fd00::/8");
    let mut connection = others.connect();
    // It may be closed before the call is sent, or after.
    let _ = connection.stream.write_all(&marked(&record(1, NFS, 3, 0, &[])));
    assert_eq!(connection.receive(), None);
    let us = start("10.1.0.0/16,127.0.0.0/30");
    let caller = &mut us.connect();
    assert_eq!(caller.ask(NFS, 3, 0, &[]), (0, vec![]));
    let shown = ["10.1.0.0/16", "127.0.0.0/30"].map(str::to_owned);
    assert_eq!(caller.ask(MOUNT, 3, 5, &[]).1, rpc::exports(&shown));
}

#[test]
fn a_call_that_comes_twice_is_carried_out_once() {
    let gateway = Gateway::start(&["--unreplicated", "--size", "16", "--listen", "127.0.0.1:0"]);
    let caller = &mut gateway.connect();
    let mut arguments = Vec::new();
    let at = Place { directory: Some(Handle::ROOT), name: b"a" };
    Request::MkDir { at, new: NewAttributes::mode(0o755) }.encode(&mut arguments);
    let call = marked(&record(7, NFS, 3, Procedure::MkDir as u32, &arguments));
    caller.send(&call);
    let first = caller.receive().unwrap();
    assert_eq!(first[20..28], [0; 8]);
    caller.send(&call);
    assert_eq!(caller.receive().unwrap(), first);
    let again = &mut gateway.connect();
    again.send(&call);
    assert_eq!(again.receive().unwrap(), first, "also by another connection");
    again.send(&marked(&record(8, NFS, 3, Procedure::MkDir as u32, &arguments)));
    assert_eq!(again.receive().unwrap()[24..28], (Status::Exist as u32).to_be_bytes());
}

#[test]
fn many_calls_of_one_connection_are_under_way_together() {
    let gateway = Gateway::start(&["--unreplicated", "--size", "16", "--listen", "127.0.0.1:0"]);
    let caller = &mut gateway.connect();
    let mut arguments = Vec::new();
    Request::GetAttr { object: Some(Handle::ROOT) }.encode(&mut arguments);
    let calls: Vec<u8> = (0..1_000u32).flat_map(|xid| marked(&record(xid, NFS, 3, 1, &arguments))).collect();
    caller.send(&calls);
    for xid in 0..1_000u32 {
        assert_eq!(caller.receive().unwrap()[..4], xid.to_be_bytes());
    }
}

fn castra(args: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_castra")).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
}

/// A cluster that runs; its drop ends it.
struct Lab {
    _folder: tempfile::TempDir,
    dir: String,
}

impl Lab {
    fn bfs() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("lab").to_str().unwrap().to_owned();
        let lab = Lab { _folder: folder, dir };
        castra(&["cluster", "init", &lab.dir, "--service", "bfs"]);
        castra(&["up", &lab.dir]);
        lab
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut down = Command::new(env!("CARGO_BIN_EXE_castra"));
        let _ = down.args(["down", &self.dir]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

#[test]
fn files_survive_the_primary_and_the_gateway() {
    let lab = Lab::bfs();
    let start = || Gateway::start(&["--cluster", &lab.dir, "--listen", "127.0.0.1:0"]);
    let gateway = start();
    let caller = &mut gateway.connect();
    let file = caller.create("file");
    let content: Vec<u8> = (0..400_000u32).map(|i| (i / 7) as u8).collect();
    for (i, part) in content.chunks(20_000).enumerate() {
        if i == 7 {
            let pid = std::fs::read_to_string(Path::new(&lab.dir).join("r0.pid")).unwrap();
            let pid = pid.split_whitespace().next().unwrap().to_owned();
            assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        }
        caller.write(file, i as u64 * 20_000, part);
    }
    // The handle outlives the gateway that gave it out.
    drop(gateway);
    let gateway = start();
    let caller = &mut gateway.connect();
    for (i, part) in content.chunks(50_000).enumerate() {
        assert_eq!(caller.read(file, i as u64 * 50_000, 50_000), part);
    }
}

/// The one JSON object of `castra bfs fsck`, which must end with `status`, and what it said on standard error.
fn fsck(dir: &str, more: &[&str], status: i32) -> (serde_json::Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_castra"));
    let output = command.args(["bfs", "fsck", "--json", "--cluster", dir]).args(more).output().unwrap();
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
}

#[test]
fn fsck_checks_every_replica_while_it_serves() {
    let lab = Lab::bfs();
    let (none, said) = fsck(&lab.dir, &["--last"], 1);
    assert!(none["checkpoint"].is_null() && said.contains("E028"), "{none} {said}");

    let gateway = Gateway::start(&["--cluster", &lab.dir, "--listen", "127.0.0.1:0"]);
    let caller = &mut gateway.connect();
    for i in 0..20u32 {
        let file = caller.create(&format!("file-{i}"));
        caller.write(file, 0, &vec![7; 5_000]);
    }
    let (found, said) = fsck(&lab.dir, &[], 0);
    assert_eq!((&found["clean"], said.as_str()), (&true.into(), ""), "{found}");
    assert_eq!(found["agreeing"].as_array().unwrap().len(), 4, "{found}");
    for replica in found["replicas"].as_object().unwrap().values() {
        let counts = &replica["counts"];
        assert_eq!(counts["directories"], 1);
        assert_eq!(counts["files"], 20, "what was just written is checked");
        assert_eq!(counts["bytes"], 100_000);
        assert_eq!(replica["digest"], found["replicas"]["r0"]["digest"]);
        assert_eq!(replica["faults"].as_array().unwrap().len(), 0);
    }

    // While others write, all still come to one checkpoint; and without one of the replicas it goes on.
    let pid = std::fs::read_to_string(Path::new(&lab.dir).join("r3.pid")).unwrap();
    let pid = pid.split_whitespace().next().unwrap().to_owned();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let caller = &mut gateway.connect();
            let file = caller.create("busy");
            let mut writes = 0u64;
            while !done.load(Ordering::Relaxed) {
                caller.write(file, writes % 50 * 4_096, &[writes as u8; 4_096]);
                writes += 1;
            }
            writes
        });
        let looks: Vec<_> = (0..3).map(|_| fsck(&lab.dir, &[], 0).0).collect();
        done.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
        for found in looks {
            assert_eq!(found["agreeing"], serde_json::json!(["r0", "r1", "r2"]), "{found}");
            assert_eq!(found["replicas"]["r3"]["checked"], false);
        }
    });

    castra(&["down", &lab.dir]);
    let (_, said) = fsck(&lab.dir, &["--last"], 1);
    assert!(said.contains("E028") && said.contains("castra status"), "{said}");
}

#[test]
fn a_gateway_speaks_for_its_users_alone() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("lab").to_str().unwrap().to_owned();
    let lab = Lab { _folder: folder, dir };
    castra(&["cluster", "init", &lab.dir, "--service", "bfs"]);
    // The last table is the client's.
    let path = Path::new(&lab.dir).join("cluster.toml");
    let file = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{file}uids = [1000]\n")).unwrap();
    castra(&["up", &lab.dir]);
    let gateway = Gateway::start(&["--cluster", &lab.dir, "--listen", "127.0.0.1:0"]);
    let caller = &mut gateway.connect();
    assert_eq!(caller.nfs(Request::GetAttr { object: Some(Handle::ROOT) })[..4], [0; 4]);
    let at = Place { directory: Some(Handle::ROOT), name: b"a" };
    // It says that root asks, who owns the directory.
    let results = caller.nfs(Request::MkDir { at, new: NewAttributes::mode(0o755) });
    assert_eq!(Answer::parse(Procedure::MkDir, &results).unwrap().status, Err(Status::Access));
}

/// What `castra bfs quota --json` prints: the quotas.
fn quotas(dir: &str, args: &[&str]) -> Vec<serde_json::Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_castra"));
    let output = command.args(["bfs", "quota", "--as-root", "--json", "--cluster", dir]).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    printed["quotas"].as_array().unwrap().clone()
}

#[test]
fn limits_are_set_and_shown_by_the_command_and_hold_for_nfs() {
    let lab = Lab::bfs();
    let gateway = Gateway::start(&["--cluster", &lab.dir, "--listen", "127.0.0.1:0"]);
    let caller = &mut gateway.connect();
    let new = NewAttributes { uid: Some(4_321), ..NewAttributes::mode(0o644) };
    let at = Place { directory: Some(Handle::ROOT), name: b"file" };
    let results = caller.nfs(Request::Create { at, how: CreateHow::Guarded(new) });
    let file = Answer::parse(Procedure::Create, &results).unwrap().handle.unwrap();
    let set = quotas(&lab.dir, &["--user", "4321", "--bytes", "8K", "--files", "9"]);
    let expected = serde_json::json!({
        "kind": "user", "id": 4_321, "name": null, "bytes": 0, "bytes_max": 8_192, "files": 1, "files_max": 9,
    });
    assert_eq!(set, [expected]);
    caller.uid = 4_321;
    caller.write(file, 0, &[1; 4_096]);
    let write = |offset| Request::Write { file: Some(file), offset, count: 1, stable: 0, data: b"x" };
    let results = caller.nfs(write(4_096));
    assert_eq!(Answer::parse(Procedure::Write, &results).unwrap().status, Err(Status::DQuot));
    quotas(&lab.dir, &["--user", "4321", "--bytes", "none"]);
    caller.nfs(write(4_096));
    let listed = quotas(&lab.dir, &[]);
    let user = listed.iter().find(|quota| quota["kind"] == "user" && quota["id"] == 4_321).unwrap();
    assert_eq!((&user["bytes"], &user["bytes_max"], &user["files_max"]), (&12_288.into(), &().into(), &9.into()));
    let (_, said) = fsck(&lab.dir, &[], 0);
    assert!(said.is_empty(), "{said}");
}

#[test]
fn fsck_is_for_clusters_of_this_service() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("lab").to_str().unwrap().to_owned();
    castra(&["cluster", "init", &dir, "--service", "kv"]);
    let (_, said) = fsck(&dir, &[], 2);
    assert!(said.contains("E020") && said.contains("the service of this cluster is kv"), "{said}");
}

/// A mounted file system; its drop ends it.
struct Mount {
    process: Child,
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
}

impl Mount {
    fn start(source: &[&str]) -> Mount {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let mut command = Command::new(env!("CARGO_BIN_EXE_castra"));
        let command = command.args(["bfs", "mount"]).args(source).arg(&path).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("file system"), "{said}");
        Mount { process, _folder: folder, path }
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// As SIGTERM does; whether it ended well.
    fn end(mut self) -> bool {
        self.terminate();
        self.process.wait().unwrap().success()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // An unmounted one has ended, and this does nothing.
        let _ = Command::new("umount").arg("-l").arg(&self.path).stderr(Stdio::null()).status();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "needs root and /dev/fuse: ci/check test"]
fn needs_fuse_programs_use_a_mounted_folder() {
    use std::fs;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};

    let mount = Mount::start(&["--unreplicated", "--size", "64"]);
    let at = |name: &str| mount.path.join(name);
    fs::create_dir(at("folder")).unwrap();
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i >> 3) as u8).collect();
    fs::write(at("folder/large"), &large).unwrap();
    assert_eq!(fs::read(at("folder/large")).unwrap(), large);
    fs::hard_link(at("folder/large"), at("second")).unwrap();
    assert_eq!(fs::metadata(at("second")).unwrap().nlink(), 2);
    symlink("second", at("third")).unwrap();
    assert_eq!(fs::metadata(at("third")).unwrap().len(), 3_000_000);
    fs::set_permissions(at("second"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(at("folder/large")).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::remove_dir(at("folder")).unwrap_err().raw_os_error(), Some(39), "ENOTEMPTY");
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.write_at(b"end", 1 << 40).unwrap();
    let metadata = sparse.metadata().unwrap();
    assert_eq!(metadata.len(), (1 << 40) + 3);
    assert!(metadata.blocks() < 100);
    drop(sparse); // A folder in use cannot be unmounted.

    // More names than one answer has, each seen once.
    fs::create_dir(at("many")).unwrap();
    (0..2_000).for_each(|i| drop(fs::File::create(at(&format!("many/{i}"))).unwrap()));
    let mut names: Vec<u32> = fs::read_dir(at("many"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, (0..2_000).collect::<Vec<_>>());
    fs::remove_dir_all(at("many")).unwrap();

    // What is removed or replaced while it is open can be read until it is closed.
    let open = fs::File::open(at("second")).unwrap();
    fs::remove_file(at("folder/large")).unwrap();
    fs::write(at("new"), b"new").unwrap();
    fs::rename(at("new"), at("second")).unwrap();
    let mut start = [0; 100];
    open.read_exact_at(&mut start, 50_000).unwrap();
    assert_eq!(start[..], large[50_000..50_100]);
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    assert_eq!(fs::read(at("second")).unwrap(), b"new");
    drop(open);
    fs::remove_dir(at("folder")).unwrap();
    let left: Vec<_> = fs::read_dir(&mount.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.len() >= 3, "{left:?}");
    assert!(mount.end());
}

#[test]
#[ignore = "needs root and /dev/fuse: ci/check test"]
fn needs_fuse_a_read_only_mount_refuses_changes() {
    let mount = Mount::start(&["--unreplicated", "--size", "64", "--read-only"]);
    let refused = std::fs::write(mount.path.join("file"), b"content").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(30), "EROFS");
    assert_eq!(std::fs::create_dir(mount.path.join("folder")).unwrap_err().raw_os_error(), Some(30));
    assert_eq!(std::fs::read_dir(&mount.path).unwrap().count(), 0);
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|line| line.contains(mount.path.to_str().unwrap())).unwrap();
    assert!(line.contains(" ro,"), "{line}");
    assert!(mount.end());
}

#[test]
#[ignore = "needs root and /dev/fuse: ci/check test"]
fn needs_fuse_a_mount_that_is_in_use_leaves_its_folder_and_ends_with_its_last_user() {
    let mut mount = Mount::start(&["--unreplicated", "--size", "64"]);
    let path = mount.path.join("file");
    std::fs::write(&path, b"kept").unwrap();
    let open = std::fs::File::open(&path).unwrap();
    mount.terminate();
    let start = Instant::now();
    while path.exists() {
        assert!(start.elapsed() < Duration::from_secs(30), "it is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut read = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&open, &mut read, 0).unwrap();
    assert_eq!((&read, mount.process.try_wait().unwrap()), (b"kept", None));
    drop(open);
    assert!(mount.process.wait().unwrap().success());
}

/// Locks as it is told on standard input: `lock|wait|flock x|s START LEN`, `free START LEN`, `test START LEN`, `close`,
/// `count`, which adds one to the number in the file and tells it.
/// `alarm` comes 0.3 s later, and is told as EINTR by whom it interrupts.
const LOCKER: &str = r#"
import errno, fcntl, os, signal, struct, sys
class Came(Exception): pass
def came(*_): raise Came()
signal.signal(signal.SIGALRM, came)
f = os.open(sys.argv[1], os.O_RDWR)
def how(word): return fcntl.LOCK_EX if word == 'x' else fcntl.LOCK_SH
def act(what, args):
    if what == 'lock': fcntl.lockf(f, how(args[0]) | fcntl.LOCK_NB, int(args[2]), int(args[1]))
    elif what == 'wait': fcntl.lockf(f, how(args[0]), int(args[2]), int(args[1]))
    elif what == 'flock': fcntl.flock(f, how(args[0]) | fcntl.LOCK_NB)
    elif what == 'free': fcntl.lockf(f, fcntl.LOCK_UN, int(args[1]), int(args[0]))
    elif what == 'alarm': signal.setitimer(signal.ITIMER_REAL, 0.3)
    elif what == 'count':
        number = int(os.pread(f, 8, 0)) + 1
        os.pwrite(f, b'%08d' % number, 0)
        return str(number)
    elif what == 'close': os.close(os.dup(f))
    elif what == 'test':
        asked = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, int(args[0]), int(args[1]), 0)
        kind, _, start, length, pid = struct.unpack('hhqqi4x', fcntl.fcntl(f, fcntl.F_GETLK, asked))
        return 'free' if kind == fcntl.F_UNLCK else f"{'x' if kind == fcntl.F_WRLCK else 's'} {start} {length} {pid}"
    return 'ok'
print('ready', flush=True)
for line in sys.stdin:
    what, *args = line.split()
    try: said = act(what, args)
    except Came: said = 'EINTR'
    except OSError as error: said = errno.errorcode[error.errno]
    print(said, flush=True)
"#;

/// A program that locks; its drop kills it.
struct Locker {
    process: Child,
    said: std::sync::mpsc::Receiver<String>,
}

impl Locker {
    fn start(file: &Path) -> Locker {
        let mut command = Command::new("python3");
        let command = command.args(["-c", LOCKER]).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (say, said) = std::sync::mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| say.send(line)));
        let locker = Locker { process, said };
        assert_eq!(locker.hear(), "ready");
        locker
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{what}").unwrap();
    }

    fn hear(&self) -> String {
        self.said.recv_timeout(PATIENCE).expect("it says something")
    }

    fn hears_nothing(&self) -> bool {
        self.said.recv_timeout(Duration::from_millis(500)).is_err()
    }

    fn ask(&mut self, what: &str) -> String {
        self.tell(what);
        self.hear()
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits for what comes by itself.
#[track_caller]
fn soon(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs root and /dev/fuse: ci/check test"]
fn needs_fuse_two_mounts_of_a_cluster_exclude_each_other_by_locks() {
    let lab = Lab::bfs();
    let mounts = [(), ()].map(|()| Mount::start(&["--cluster", &lab.dir]));
    std::fs::write(mounts[0].path.join("file"), b"content").unwrap();
    let start = |mount: usize| Locker::start(&mounts[mount].path.join("file"));
    let (mut a, mut b, mut c) = (start(0), start(1), start(0));

    // Ranges by fcntl, across the mounts and within one.
    assert_eq!((a.ask("lock x 0 10"), b.ask("lock s 20 10")), ("ok".to_owned(), "ok".to_owned()));
    for other in [&mut b, &mut c] {
        assert_eq!(other.ask("lock s 9 1"), "EAGAIN");
        assert_eq!((other.ask("lock s 20 5"), other.ask("lock s 10 1")), ("ok".to_owned(), "ok".to_owned()));
    }
    assert_eq!(b.ask("test 5 1"), "x 0 10 0", "whose process it is, is not known here");
    assert_eq!(c.ask("test 5 1"), format!("x 0 10 {}", a.process.id()));
    assert_eq!(a.ask("test 0 10"), "free", "nobody is in his own way");
    assert!(a.ask("test 11 0").starts_with("s 20 "), "two share what begins there");
    assert_eq!(a.ask("lock x 22 1"), "EAGAIN");
    // What is freed is free, and what is left is not.
    assert_eq!(a.ask("free 4 2"), "ok");
    assert_eq!(
        (b.ask("lock x 4 2"), b.ask("lock x 3 1"), b.ask("lock x 6 1")),
        ("ok".into(), "EAGAIN".into(), "EAGAIN".into())
    );

    // Who waits gets it when it is free: here and there. Others are served meanwhile.
    for other in [&mut b, &mut c] {
        other.tell("wait x 7 1");
        assert!(other.hears_nothing());
    }
    assert_eq!(std::fs::read(mounts[1].path.join("file")).unwrap(), b"content");
    assert_eq!(a.ask("free 6 4"), "ok");
    let (mut said, mut first, mut second) = (None, &mut b, &mut c);
    soon("somebody has the lock", || {
        std::mem::swap(&mut first, &mut second);
        said = first.said.try_recv().ok();
        said.is_some()
    });
    assert_eq!((said.as_deref(), second.hears_nothing()), (Some("ok"), true), "one at a time");
    assert_eq!((first.ask("free 7 1"), second.hear()), ("ok".to_owned(), "ok".to_owned()));
    assert_eq!((c.ask("free 7 1"), b.ask("lock x 7 1")), ("ok".to_owned(), "ok".to_owned()));

    // A signal ends the waiting, and so does death.
    assert_eq!(c.ask("alarm"), "ok");
    c.tell("wait x 7 1");
    assert_eq!(c.hear(), "EINTR");
    assert_eq!(c.ask("test 7 1").split(' ').next(), Some("x"));
    c.tell("wait x 7 1");
    assert!(c.hears_nothing());
    c.kill();

    // Whoever dies or closes the file has no locks; flock and fcntl see each other.
    assert_eq!((b.ask("close"), a.ask("lock x 0 0")), ("ok".to_owned(), "ok".to_owned()));
    assert_eq!((b.ask("lock s 100 1"), b.ask("flock s")), ("EAGAIN".to_owned(), "EAGAIN".to_owned()));
    a.kill();
    assert_eq!((b.ask("lock x 0 0"), b.ask("close")), ("ok".to_owned(), "ok".to_owned()));
    let mut d = start(0);
    assert_eq!(
        (b.ask("flock x"), d.ask("flock s"), d.ask("lock s 3 1")),
        ("ok".into(), "EAGAIN".into(), "EAGAIN".into())
    );
    assert_eq!((b.ask("close"), d.ask("flock s")), ("ok".to_owned(), "EAGAIN".to_owned()), "it is open still");
    let flock = |mount: usize, how: &str| {
        let mut command = Command::new("flock");
        command.args(["-n", how]).arg(mounts[mount].path.join("file")).arg("true").status().unwrap().success()
    };
    assert!(!flock(0, "-x") && !flock(1, "-s"));
    let (found, _) = fsck(&lab.dir, &[], 0);
    assert_eq!((&found["clean"], &found["replicas"]["r1"]["counts"]["locks"]), (&true.into(), &1.into()), "{found}");
    b.kill();
    // The kernel tells of the last close of a file, which gives up flock's locks, when it has the time.
    soon("it is free", || flock(0, "-x") && flock(1, "-x"));
    soon("it is shared", || d.ask("flock s") == "ok");
    soon("it is shared again", || flock(1, "-s"));
    assert!(!flock(1, "-x"));

    // What was written under a lock is there for who locks next, whatever his kernel had of the file.
    std::fs::write(mounts[0].path.join("number"), b"00000000").unwrap();
    let mut counters = [0, 1, 0].map(|mount| Locker::start(&mounts[mount].path.join("number")));
    for number in 1..=60 {
        let counter = &mut counters[number % 5 % 3];
        assert_eq!((counter.ask("wait x 0 0"), counter.ask("count")), ("ok".to_owned(), number.to_string()));
        assert_eq!(counter.ask("free 0 0"), "ok");
    }
    drop(counters);
    soon("it is closed", || std::fs::remove_file(mounts[0].path.join("number")).is_ok());

    // A removed file keeps its locks until it is closed.
    std::fs::remove_file(mounts[0].path.join("file")).unwrap();
    soon("nobody shares it", || d.ask("flock x") == "ok");
    d.kill();
    soon("it is gone", || std::fs::read_dir(&mounts[1].path).unwrap().count() == 0);
    let (found, _) = fsck(&lab.dir, &[], 0);
    assert_eq!((&found["clean"], &found["replicas"]["r1"]["counts"]["locks"]), (&true.into(), &0.into()), "{found}");
    for mount in mounts {
        assert!(mount.end());
    }
}

#[test]
#[ignore = "needs root and /dev/fuse: ci/check test"]
fn needs_fuse_a_folder_keeps_snapshots() {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    let mount = Mount::start(&["--unreplicated", "--size", "64"]);
    let at = |name: &str| mount.path.join(name);
    fs::create_dir_all(at("folder/below")).unwrap();
    fs::write(at("folder/below/file"), b"before").unwrap();
    fs::create_dir(at(".snapshot/monday")).unwrap();
    fs::write(at("folder/below/file"), b"after").unwrap();
    fs::write(at("folder/new"), b"").unwrap();
    let was = at(".snapshot/monday/folder/below/file");
    assert_eq!(fs::read(&was).unwrap(), b"before");
    assert_eq!(fs::read(at("folder/below/file")).unwrap(), b"after");
    let number = |path: &std::path::Path| fs::metadata(path).unwrap().ino();
    assert_ne!(number(&was), number(&at("folder/below/file")));
    assert_ne!(number(&at(".snapshot/monday")), number(&mount.path));
    let names = |path: &str| -> Vec<_> {
        fs::read_dir(at(path)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!((names(""), names(".snapshot")), (vec!["folder".to_owned()], vec!["monday".to_owned()]));
    assert_eq!(names(".snapshot/monday/folder"), ["below"]);
    // Every change is refused: EROFS.
    let refused = |result: std::io::Result<()>| assert_eq!(result.unwrap_err().raw_os_error(), Some(30));
    refused(fs::write(&was, b"changed"));
    refused(fs::remove_file(&was));
    refused(fs::write(at(".snapshot/monday/new"), b""));
    refused(fs::rename(&was, at("file")));
    refused(fs::hard_link(&was, at("file")));
    refused(fs::write(at(".snapshot/file"), b""));
    assert_eq!(fs::remove_dir(at(".snapshot")).unwrap_err().raw_os_error(), Some(1), "EPERM");
    assert_eq!(fs::create_dir(at(".snapshot/monday")).unwrap_err().raw_os_error(), Some(17), "EEXIST");
    let open = fs::File::open(&was).unwrap();
    fs::remove_dir(at(".snapshot/monday")).unwrap();
    assert!(!at(".snapshot/monday").exists());
    assert_eq!(names(".snapshot"), [""; 0]);
    drop(open);
    assert!(mount.end());
}

/// As nobody: opens a file, and when it is told to, writes to it page by page until it may not. Says how often it could.
const WRITER: &str = "
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
file = os.open(sys.argv[1], os.O_RDWR)
print('open', flush=True)
sys.stdin.readline()
written = 0
try:
    while written < 1000:
        os.pwrite(file, b'x' * 4096, 4096 * written)
        written += 1
except OSError as error:
    print(written, error.errno, flush=True)
try:
    os.close(os.open(sys.argv[1], os.O_RDONLY))
except OSError as error:
    print(error.errno, flush=True)
";

#[test]
#[ignore = "needs root and /dev/fuse: ci/check test"]
fn needs_fuse_a_file_stays_open_to_who_opened_it_within_its_owners_quota() {
    use std::os::unix::fs::{PermissionsExt as _, chown};

    let lab = Lab::bfs();
    let mount = Mount::start(&["--cluster", &lab.dir]);
    let file = mount.path.join("file");
    std::fs::write(&file, b"content").unwrap();
    chown(&file, Some(7), Some(7)).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let mut command = Command::new("python3");
    let mut writer =
        command.args(["-c", WRITER]).arg(&file).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "open");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    castra(&["bfs", "quota", "--cluster", &lab.dir, "--user", "7", "--bytes", "64K"]);
    writeln!(writer.stdin.take().unwrap(), "go on").unwrap();
    // A page of the 16 is that of the index. EDQUOT; EACCES.
    assert_eq!(lines.collect::<Vec<_>>(), ["15 122", "13"]);
    assert!(writer.wait().unwrap().success());
    assert!(mount.end());
}

#[test]
#[ignore = "needs root and /dev/fuse: ci/check test"]
fn needs_fuse_the_demo_shows_programs_that_notice_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_castra")).args(["bfs", "demo", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{report:#}");
    assert_eq!((&report["journal_whole"], &report["digests_equal"]), (&true.into(), &true.into()), "{report:#}");
    let blows: Vec<_> = report["blows"].as_array().unwrap().iter().map(|blow| blow["how"].as_str().unwrap()).collect();
    assert_eq!(blows, ["killed", "stopped"]);
    let steps = report["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 3);
    assert!(steps.iter().all(|step| step["wrong"].is_null()), "{report:#}");
    assert!(report["records"].as_u64().unwrap() > 10, "{report:#}");
}
