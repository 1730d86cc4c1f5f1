//! Asks replicas.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::ReplicaStatus;
use crate::cli::config::{self, Cluster};
use crate::cli::errors::Error;
use crate::cli::http::PATIENCE;
use crate::cli::inspection::{self, InspectionReport};
use crate::types::ReplicaId;

/// Bytes of an answer; more is not read.
const ANSWER_MAX: u64 = 4 << 20;
/// How often someone who waits asks.
const LOOK: Duration = Duration::from_millis(20);

/// What is at `path` of the replica at `address`: the status of the answer, and its body.
fn get(address: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = to_another(TcpStream::connect_timeout(&address, PATIENCE)?)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut text = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut text)?;
    let body = text.windows(4).position(|w| w == b"\r\n\r\n").map(|at| text[at + 4..].to_vec());
    let status = text.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
    match status.filter(|_| text.starts_with(b"HTTP/1.")) {
        Some(status) => Ok((status, body.unwrap_or_default())),
        None => Err(stranger()),
    }
}

/// `stream`, if it leads to another socket. Where nobody listens at a port that the kernel gives away, the asking socket
/// can be given that very port, and so be connected to itself; held on to, it keeps the replica from coming back.
fn to_another(stream: TcpStream) -> io::Result<TcpStream> {
    if stream.local_addr()? != stream.peer_addr()? {
        return Ok(stream);
    }
    // No lingering: the port is free at once.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Err(io::ErrorKind::ConnectionRefused.into())
}

fn stranger() -> io::Error {
    io::Error::other("it does not answer as a castra replica does")
}

/// Asks the replica at `address`.
fn ask(address: SocketAddr) -> io::Result<ReplicaStatus> {
    match get(address, "/status")? {
        (200, body) => serde_json::from_slice(&body).map_err(io::Error::from),
        _ => Err(stranger()),
    }
}

/// Has the replica at `address` check its state at checkpoint `n`. `None`: it does not hold it, also after a while.
fn inspect(address: SocketAddr, n: u64, patience: Duration) -> io::Result<Option<InspectionReport>> {
    let begun = Instant::now();
    loop {
        match get(address, &format!("{}{n}", inspection::PATH))? {
            (200, body) => return serde_json::from_slice(&body).map(Some).map_err(io::Error::from),
            // One that is behind comes to it.
            (410, _) if begun.elapsed() > PATIENCE.min(patience) => return Ok(None),
            (202 | 410, _) if begun.elapsed() < patience => thread::sleep(LOOK),
            (202, _) => {
                return Err(io::Error::other(format!("its check takes longer than {} s", patience.as_secs())));
            }
            (503, _) => return Err(io::Error::other("the replica does not answer")),
            (404 | 501, _) => return Err(io::Error::other("it has no check")),
            _ => return Err(stranger()),
        }
    }
}

/// One replica, asked.
pub struct Asked {
    /// Who.
    pub id: ReplicaId,
    /// Its answer, or why there is none.
    pub answer: Result<ReplicaStatus, String>,
}

/// Knows where the replicas of a cluster answer.
#[derive(Clone, Debug)]
pub struct Observer {
    cluster: String,
    /// A replica whose file is not here, or names no address, cannot be asked.
    addresses: Vec<(ReplicaId, Option<SocketAddr>)>,
}

impl Observer {
    /// Of the cluster whose files are in `folder`.
    pub fn new(folder: &Path, cluster: &Cluster) -> Observer {
        let of = |id: ReplicaId| config::Replica::load(&folder.join(format!("{id}.toml"))).ok()?.file.status;
        let addresses = cluster.size.replicas().map(|id| (id, of(id))).collect();
        Observer { cluster: cluster.id.to_string(), addresses }
    }

    /// Asks all at once.
    pub fn ask_all(&self) -> Vec<Asked> {
        self.ask_those(|_| true)
    }

    /// Asks one.
    pub fn ask(&self, id: ReplicaId) -> Result<ReplicaStatus, String> {
        let answer = self.ask_those(|other| other == id).pop().map(|asked| asked.answer);
        answer.unwrap_or_else(|| Err(format!("there is no {id}")))
    }

    /// Asks those that are `meant`, at once. An answer of another cluster counts as none.
    pub fn ask_those(&self, meant: impl Fn(ReplicaId) -> bool) -> Vec<Asked> {
        let ask_one = |id, address| {
            let status = ask(address).map_err(|error| format!("{address}: {error}"))?;
            self.check(id, address, &status.id, &status.cluster)?;
            Ok(status)
        };
        self.gather(meant, ask_one).into_iter().map(|(id, answer)| Asked { id, answer }).collect()
    }

    /// Has all check their state at checkpoint `n`, at once. `None`: it does not hold it.
    pub fn inspect_all(
        &self,
        n: u64,
        patience: Duration,
    ) -> Vec<(ReplicaId, Result<Option<InspectionReport>, String>)> {
        let inspect_one = |id, address| {
            let report = inspect(address, n, patience).map_err(|error| format!("{address}: {error}"))?;
            if let Some(report) = &report {
                self.check(id, address, &report.id, &report.cluster)?;
                if report.n != n {
                    return Err(format!("{address}: it checked checkpoint {} instead of {n}", report.n));
                }
            }
            Ok(report)
        };
        self.gather(|_| true, inspect_one)
    }

    /// Whether who answered is who was asked.
    fn check(&self, id: ReplicaId, address: SocketAddr, said: &str, cluster: &str) -> Result<(), String> {
        match cluster == self.cluster && said == id.to_string() {
            true => Ok(()),
            false => Err(format!("{address} is {said} of another cluster.toml")),
        }
    }

    /// Asks those that are `meant`, at once.
    fn gather<T: Send>(
        &self,
        meant: impl Fn(ReplicaId) -> bool,
        ask_one: impl Fn(ReplicaId, SocketAddr) -> Result<T, String> + Sync,
    ) -> Vec<(ReplicaId, Result<T, String>)> {
        let ask_one = |id: ReplicaId, address: Option<SocketAddr>| {
            ask_one(id, address.ok_or_else(|| format!("{id}.toml names no status address here"))?)
        };
        let ask_one = &ask_one;
        thread::scope(|scope| {
            let meant = self.addresses.iter().filter(|(id, _)| meant(*id));
            let asking: Vec<_> = meant.map(|&(id, at)| (id, scope.spawn(move || ask_one(id, at)))).collect();
            let gather = |(id, asked): (_, ScopedJoinHandle<'_, Result<T, String>>)| {
                (id, asked.join().unwrap_or_else(|_| Err("asking it failed".to_owned())))
            };
            asking.into_iter().map(gather).collect()
        })
    }

    /// Waits until each of `replicas` answers in life `instance` of the cluster and is as `enough` wants it. After
    /// `patience`: who is not, and why. `meanwhile` looks whether waiting still makes sense.
    pub fn wait(
        &self,
        replicas: &[ReplicaId],
        instance: u64,
        patience: Duration,
        mut meanwhile: impl FnMut() -> Result<(), Error>,
        enough: impl Fn(&ReplicaStatus) -> bool,
    ) -> Result<Vec<String>, Error> {
        let until = Instant::now() + patience;
        loop {
            meanwhile()?;
            let late = |asked: Asked| match asked.answer {
                Ok(answer) if answer.instance != instance => {
                    Some(format!("{} (another life of the cluster)", asked.id))
                }
                Ok(answer) if enough(&answer) => None,
                Ok(answer) => Some(format!("{} ({})", asked.id, answer.state)),
                Err(why) => Some(format!("{} ({why})", asked.id)),
            };
            let late: Vec<String> = self.ask_those(|id| replicas.contains(&id)).into_iter().filter_map(late).collect();
            if late.is_empty() || Instant::now() >= until {
                return Ok(late);
            }
            thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::cli::http;
    use crate::cli::status::answer;

    fn served(report: impl Fn() -> Option<ReplicaStatus> + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        http::serve("test", listener, move |path| answer(path, report())).unwrap();
        address
    }

    #[test]
    fn a_status_comes_back_as_it_was() {
        let status = ReplicaStatus { id: "r1".into(), executed: 7, ..ReplicaStatus::default() };
        let copy = status.clone();
        assert_eq!(ask(served(move || Some(copy.clone()))).unwrap(), status);
        assert!(ask(served(|| None)).is_err(), "a replica that does not answer");
    }

    #[test]
    fn who_reaches_itself_is_refused_and_lets_the_port_go() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap();
        socket.connect(&address).unwrap();
        let refused = to_another(socket.into()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        TcpListener::bind(address.as_socket().unwrap()).unwrap();
    }

    fn observer(addresses: &[Option<SocketAddr>]) -> Observer {
        let addresses = addresses.iter().enumerate().map(|(id, address)| (ReplicaId(id as u8), *address)).collect();
        Observer { cluster: "c".into(), addresses }
    }

    #[test]
    fn who_is_late_is_named_with_the_reason() {
        let status = |id: &str, state: &str, instance| ReplicaStatus {
            id: id.into(),
            cluster: "c".into(),
            state: state.into(),
            instance,
            ..ReplicaStatus::default()
        };
        let serve = |status: ReplicaStatus| Some(served(move || Some(status.clone())));
        let mut stranger = status("r2", "normal", 1);
        stranger.cluster = "d".into();
        let all = [
            serve(status("r0", "normal", 1)),
            serve(status("r1", "normal", 2)),
            serve(stranger),
            serve(status("r3", "recovering", 1)),
            None,
        ];
        let wait = |ids: &[u8], enough: &dyn Fn(&ReplicaStatus) -> bool| {
            let ids: Vec<ReplicaId> = ids.iter().map(|&id| ReplicaId(id)).collect();
            observer(&all).wait(&ids, 1, Duration::ZERO, || Ok(()), enough).unwrap()
        };
        let normal = |status: &ReplicaStatus| status.state == "normal";
        assert_eq!(wait(&[0], &normal), Vec::<String>::new());
        assert_eq!(wait(&[0, 3], &|_| true), Vec::<String>::new());
        assert_eq!(wait(&[0, 1, 3], &normal), ["r1 (another life of the cluster)", "r3 (recovering)"]);
        let said = wait(&[2, 4], &normal);
        assert!(said[0].ends_with("is r2 of another cluster.toml)") && said[1].contains("names no status address"));
    }
}
