//! `castra bfs nfs`: a server of NFSv3 and MOUNT over TCP that is a client of the cluster.
//!
//! A connection has a thread that reads calls and hands them over without waiting for results, and one that waits for
//! results and replies; so calls of one connection are under way together, as many as the client's window has. It keeps
//! nothing that a client relies on: one that starts again serves the same handles.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::{self, Receiver, Sender};

use super::Source;
use super::duplicates::{Duplicates, Key, Seen};
use super::exports::{LOOPBACK, Net};
use super::volume::Volume;
use crate::bfs::rpc::{self, Call, MountCall, Refused};
use crate::bfs::{Accepted, Answer, Credentials, Handle, Place, Procedure, Request, Status};
use crate::cli::errors::Error;
use crate::cli::output::{line, note};
use crate::runtime::client::Pending;
use crate::runtime::{Stop, StopOnSignals};
use crate::transport::Wake;

/// What `--help` ends with.
pub const EXAMPLE: &str = "Example:\n  castra bfs nfs --cluster lab --listen 127.0.0.1:2049\n  mount -t nfs -o \
    vers=3,proto=tcp,mountproto=tcp,port=2049,mountport=2049,nolock 127.0.0.1:/ /mnt\n  \
    castra bfs nfs --cluster lab --listen 10.1.0.5:2049 --allow 127.0.0.1,10.1.0.0/16 --read-only\nNFS believes the \
    client's machine who its users are: serve it to machines that you trust. Without --allow it is served to this one.";

/// Connections at a time.
const CONNECTIONS_MAX: usize = 256;
/// Calls of one connection that are under way.
const CALLS_MAX: usize = 256;
/// How long a client may leave a reply unread.
const PATIENCE: Duration = Duration::from_secs(30);

/// `castra bfs nfs`
#[derive(clap::Args, Debug)]
pub struct Nfs {
    #[command(flatten)]
    source: Source,
    /// Where to listen, for NFS and MOUNT alike
    #[arg(long, default_value = "127.0.0.1:2049", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Who may connect: addresses and networks (10.1.0.0/16, fd00::/8). This machine alone, unless told
    #[arg(long, value_name = "NET[,NET...]", value_delimiter = ',')]
    allow: Vec<Net>,
    /// Change nothing: whatever would is refused (NFS3ERR_ROFS), and does not go to the cluster
    #[arg(long)]
    read_only: bool,
}

/// Serves until a signal.
pub fn run(args: &Nfs) -> Result<(), Error> {
    let (volume, what) = args.source.open()?;
    let listener = TcpListener::bind(args.listen).map_err(Error::system(format!("listen on {}", args.listen)))?;
    let address = listener.local_addr().map_err(Error::system("ask for the own address"))?;
    let stop = Stop::new();
    stop.wakes(Arc::new(Knock(address)));
    let signals = StopOnSignals::new(stop.clone())?;
    line(format!("nfs://{address}/ is {what}"))?;
    if args.allow.is_empty() && !address.ip().is_loopback() {
        note("Without --allow only this machine may connect");
    }
    let allowed = if args.allow.is_empty() { LOOPBACK.to_vec() } else { args.allow.clone() };
    let gateway = Arc::new(Gateway::new(volume, allowed, args.read_only));
    while !stop.is_stopped() {
        match listener.accept() {
            Ok((stream, from)) if !stop.is_stopped() => gateway.clone().attend(stream, from.ip()),
            Ok(_) => {}
            // Out of descriptors, for example: do not spin on it.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
    drop(signals);
    Ok(())
}

/// Ends the wait for a connection by being one.
struct Knock(SocketAddr);

impl Wake for Knock {
    fn wake(&self) {
        let _ = TcpStream::connect_timeout(&self.0, Duration::from_secs(1));
    }
}

/// One client's connection, for replies.
struct Connection {
    stream: Mutex<TcpStream>,
    broken: AtomicBool,
    from: IpAddr,
}

/// A connection that waits for a reply; the same one is equal.
#[derive(Clone)]
struct Waiter(Arc<Connection>);

impl PartialEq for Waiter {
    fn eq(&self, other: &Waiter) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Connection {
    fn send(&self, reply: &[u8]) {
        if self.broken.load(Ordering::Relaxed) {
            return;
        }
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if stream.write_all(reply).is_err() {
            // A part of a record may be out: what follows would make no sense.
            self.broken.store(true, Ordering::Relaxed);
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn close(&self) {
        self.broken.store(true, Ordering::Relaxed);
        let _ = self.stream.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Both);
    }
}

/// A call whose result is awaited.
struct Work {
    xid: u32,
    procedure: Procedure,
    asked: Pending,
    /// Of one that changes something.
    key: Option<Key>,
}

struct Gateway {
    volume: Volume,
    /// Who may connect.
    allowed: Vec<Net>,
    read_only: bool,
    duplicates: Duplicates<Waiter>,
    connections: AtomicUsize,
}

impl Gateway {
    fn new(volume: Volume, allowed: Vec<Net>, read_only: bool) -> Gateway {
        Gateway { volume, allowed, read_only, duplicates: Duplicates::new(), connections: AtomicUsize::new(0) }
    }

    /// Serves a connection on threads of its own, if it comes from who may connect.
    fn attend(self: Arc<Gateway>, stream: TcpStream, from: IpAddr) {
        if !self.allowed.iter().any(|net| net.contains(from)) {
            note(format!("{from}: closed, for --allow does not name it"));
            return;
        }
        if self.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let gateway = self.clone();
        let spawned = thread::Builder::new().name("castra-nfs".to_owned()).spawn(move || {
            if let Err(error) = gateway.serve(stream, from)
                && error.kind() == io::ErrorKind::InvalidData
            {
                note(format!("{from}: {error}"));
            }
            gateway.connections.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn serve(self: &Arc<Gateway>, mut stream: TcpStream, from: IpAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let replies = Mutex::new(stream.try_clone()?);
        let connection = Arc::new(Connection { stream: replies, broken: AtomicBool::new(false), from });
        let (hand_over, work) = channel::bounded(CALLS_MAX);
        let (gateway, replier) = (self.clone(), connection.clone());
        let replying = thread::Builder::new().name("castra-nfs-reply".to_owned());
        let replying = replying.spawn(move || gateway.reply(&work, &replier))?;
        let mut record = Vec::new();
        let result = loop {
            match read_record(&mut stream, &mut record).and_then(|()| self.call(&record, &connection, &hand_over)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // What was handed over is carried out, whether or not anyone still wants to know.
        drop(hand_over);
        let _ = replying.join();
        connection.close();
        result
    }

    /// Takes one call.
    fn call(&self, record: &[u8], connection: &Arc<Connection>, hand_over: &Sender<Work>) -> io::Result<()> {
        let call = match Call::parse(record) {
            Ok(call) => call,
            Err(Refused::Reply(reply)) => {
                connection.send(&reply);
                return Ok(());
            }
            Err(Refused::NoCall) => return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no RPC")),
        };
        match call.program {
            (rpc::NFS, rpc::VERSION) => self.nfs(&call, record, connection, hand_over),
            (rpc::MOUNT, rpc::VERSION) => {
                let reply = match MountCall::parse(call.procedure, call.arguments) {
                    Ok(MountCall::Nothing) => rpc::reply(call.xid, Accepted::Success, &[]),
                    Ok(MountCall::Dump) => rpc::reply(call.xid, Accepted::Success, &[0; 4]),
                    Ok(MountCall::Export) => rpc::reply(call.xid, Accepted::Success, &self.exports()),
                    Ok(MountCall::Mount(path)) => {
                        rpc::reply(call.xid, Accepted::Success, &rpc::mounted(self.mount(&call.cred, path)))
                    }
                    Err(refused) => rpc::reply(call.xid, refused, &[]),
                };
                connection.send(&reply);
                Ok(())
            }
            (program, _) => {
                connection.send(&rpc::no_program(call.xid, program));
                Ok(())
            }
        }
    }

    fn nfs(
        &self,
        call: &Call<'_>,
        record: &[u8],
        connection: &Arc<Connection>,
        hand_over: &Sender<Work>,
    ) -> io::Result<()> {
        let Some(procedure) = Procedure::from_number(call.procedure).filter(|procedure| procedure.is_nfs()) else {
            // What castra adds to NFSv3 is for its own mounts.
            connection.send(&rpc::reply(call.xid, Accepted::NoProcedure, &[]));
            return Ok(());
        };
        if self.read_only
            && let Some(refusal) = rpc::read_only_refusal(procedure)
        {
            connection.send(&rpc::reply(call.xid, Accepted::Success, &refusal));
            return Ok(());
        }
        let key = (!procedure.is_read_only()).then(|| Key::new(connection.from, call.xid, record));
        if let Some(key) = key {
            match self.duplicates.begin(key, Waiter(connection.clone())) {
                Seen::New => {}
                Seen::Running => return Ok(()),
                Seen::Replied(reply) => {
                    connection.send(&reply);
                    return Ok(());
                }
            }
        }
        let asked = self.volume.submit(call.procedure, &call.cred, call.arguments);
        let work = asked.map_err(io::Error::other).map(|asked| Work { xid: call.xid, procedure, asked, key });
        let handed = work.and_then(|work| hand_over.send(work).map_err(|_| io::Error::other("the replies ended")));
        if let (Err(_), Some(key)) = (&handed, key) {
            self.duplicates.forget(&key);
        }
        handed
    }

    /// Waits for results, and replies.
    fn reply(&self, work: &Receiver<Work>, connection: &Arc<Connection>) {
        for Work { xid, procedure, asked, key } in work {
            match (asked.wait(), key) {
                (Ok(result), Some(key)) => {
                    let reply = Bytes::from(rpc::relay(xid, &result));
                    self.duplicates.finish(&key, &reply).iter().for_each(|waiter| waiter.0.send(&reply));
                }
                (Ok(result), None) => {
                    let other = if self.read_only { rpc::as_read_only(procedure, &result) } else { None };
                    connection.send(&rpc::relay(xid, other.as_deref().unwrap_or(&result)));
                }
                (Err(error), key) => {
                    // No reply is the one that says nothing wrong: the client connects and asks again.
                    note(format!("a call came to nothing: {error}"));
                    if let Some(key) = key {
                        self.duplicates.forget(&key).iter().for_each(|waiter| waiter.0.close());
                    }
                    connection.close();
                }
            }
        }
    }

    fn exports(&self) -> Vec<u8> {
        rpc::exports(&self.allowed.iter().map(Net::to_string).collect::<Vec<_>>())
    }

    /// The handle of a path, or mountstat3 (whose numbers are those of nfsstat3).
    fn mount(&self, cred: &Credentials, path: &[u8]) -> Result<Handle, u32> {
        let mut handle = Handle::ROOT;
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            let mut arguments = Vec::new();
            Request::Lookup { at: Place { directory: Some(handle), name } }.encode(&mut arguments);
            let asked = self.volume.submit(Procedure::Lookup as u32, cred, &arguments).and_then(Pending::wait);
            let result = asked.map_err(|_| Status::ServerFault as u32)?;
            let answer = result.get(4..).and_then(|results| Answer::parse(Procedure::Lookup, results).ok());
            let answer = answer.ok_or(Status::ServerFault as u32)?;
            answer.status.map_err(|status| status as u32)?;
            handle = answer.handle.ok_or(Status::ServerFault as u32)?;
        }
        Ok(handle)
    }
}

/// Reads one record, in as many fragments as it comes.
fn read_record(stream: &mut TcpStream, record: &mut Vec<u8>) -> io::Result<()> {
    record.clear();
    loop {
        let mut header = [0; 4];
        stream.read_exact(&mut header)?;
        let (len, last) = rpc::fragment(header);
        if record.len() + len > rpc::RECORD_MAX {
            let text = format!("a record of more than {} bytes", rpc::RECORD_MAX);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if len == 0 && !last {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an empty fragment"));
        }
        let start = record.len();
        record.resize(start + len, 0);
        stream.read_exact(&mut record[start..])?;
        if last {
            return Ok(());
        }
    }
}
