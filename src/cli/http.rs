//! Plain HTTP answers for operators: status and metrics.
//!
//! One thread of its own, one connection at a time, one `GET` for each, bounded in bytes and in time whatever the other
//! end does: a replica must not be brought down through its own gauges. Requests are parsed by `httparse`; a server with
//! threads for each connection would be the larger risk.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::errors::Error;

/// Bytes of a request; more is refused.
const REQUEST_MAX: usize = 8 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// How long the other end has to ask, and again to take the answer.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// What is answered.
pub struct Answer {
    status: &'static str,
    kind: &'static str,
    body: Vec<u8>,
}

impl Answer {
    /// 200, with `body` of this content type.
    pub fn of(kind: &'static str, body: Vec<u8>) -> Answer {
        Answer { status: "200 OK", kind, body }
    }

    /// Another status, with a line of text.
    pub fn error(status: &'static str, text: &str) -> Answer {
        Answer { status, kind: "text/plain; charset=utf-8", body: format!("{text}\n").into_bytes() }
    }
}

/// Answers on a thread of its own, for as long as the process lives. `answer` gets the path, without its query.
pub fn serve(name: &str, listener: TcpListener, answer: impl Fn(&str) -> Answer + Send + 'static) -> Result<(), Error> {
    let body = move || {
        for stream in listener.incoming() {
            match stream {
                // A peer that goes away in the middle harms nobody.
                Ok(stream) => drop(attend(stream, &answer)),
                // Out of descriptors, for example: do not spin on it.
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    };
    let spawned = thread::Builder::new().name(format!("castra-{name}")).spawn(body);
    spawned.map(drop).map_err(Error::system(format!("start the {name} thread")))
}

fn attend(mut stream: TcpStream, answer: &impl Fn(&str) -> Answer) -> io::Result<()> {
    let found = match ask(&mut stream)? {
        Ok(path) => answer(&path),
        Err(refusal) => refusal,
    };
    let head = format!(
        "HTTP/1.0 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        found.status,
        found.kind,
        found.body.len()
    );
    let until = Instant::now() + PATIENCE;
    write_until(&mut stream, head.as_bytes(), until)?;
    write_until(&mut stream, &found.body, until)
}

/// The path that is asked for, or what to answer instead.
fn ask(stream: &mut TcpStream) -> io::Result<Result<String, Answer>> {
    let until = Instant::now() + PATIENCE;
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err(Answer::error("408 Request Timeout", "ask sooner")));
        }
        stream.set_read_timeout(Some(left))?;
        let count = stream.read(&mut chunk)?;
        request.extend_from_slice(&chunk[..count]);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut headers);
        match parsed.parse(&request) {
            Ok(httparse::Status::Complete(_)) => {
                return Ok(match (parsed.method, parsed.path) {
                    (Some("GET"), Some(path)) => Ok(path.split('?').next().unwrap_or_default().to_owned()),
                    _ => Err(Answer::error("405 Method Not Allowed", "GET is all there is")),
                });
            }
            Ok(httparse::Status::Partial) if count > 0 && request.len() <= REQUEST_MAX => {}
            Ok(httparse::Status::Partial) | Err(_) => {
                return Ok(Err(Answer::error("400 Bad Request", "a request of at most 8 KiB")));
            }
        }
    }
}

fn write_until(stream: &mut TcpStream, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(bytes)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => bytes = &bytes[count..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn served() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = |path: &str| match path {
            "/large" => Answer::of("text/plain", vec![b'x'; 32 << 20]),
            "/status" => Answer::of("text/plain", b"well".to_vec()),
            other => Answer::error("404 Not Found", other),
        };
        serve("test", listener, answer).unwrap();
        address
    }

    /// The first line of the answer and its last.
    fn exchange(address: SocketAddr, request: &[u8]) -> (String, String) {
        let mut stream = TcpStream::connect(address).unwrap();
        // The server may close before it has read all of a hostile request: a reset is an answer too.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let line = |line: Option<&str>| line.unwrap_or_default().to_owned();
        (line(text.lines().next()), line(text.lines().last()))
    }

    #[test]
    fn a_path_is_asked_for_and_answered() {
        let address = served();
        let (first, last) = exchange(address, b"GET /status?x=1 HTTP/1.1\r\nHost: here\r\n\r\n");
        assert_eq!((first.as_str(), last.as_str()), ("HTTP/1.0 200 OK", "well"));
        assert_eq!(exchange(address, b"GET /etc/passwd HTTP/1.1\r\n\r\n").0, "HTTP/1.0 404 Not Found");
    }

    #[test]
    fn p44_what_is_no_request_is_refused_and_the_next_is_answered() {
        let address = served();
        assert_eq!(exchange(address, b"POST /status HTTP/1.1\r\n\r\n").0, "HTTP/1.0 405 Method Not Allowed");
        for bytes in [&b"\xff\x00\r\n\r\n"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n x y"] {
            assert_eq!(exchange(address, bytes).0, "HTTP/1.0 400 Bad Request", "{bytes:?}");
        }
        let many = [b"GET / HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(HEADERS_MAX + 1)].concat();
        assert_eq!(exchange(address, &many).0, "HTTP/1.0 400 Bad Request");
        let endless = [b"GET /".to_vec(), vec![b'x'; REQUEST_MAX * 3]].concat();
        let refused = exchange(address, &endless).0;
        assert!(refused.is_empty() || refused == "HTTP/1.0 400 Bad Request", "{refused}");
        assert_eq!(exchange(address, b"GET /status HTTP/1.0\r\n\r\n").1, "well");
    }

    #[test]
    fn p44_who_neither_asks_nor_reads_holds_nobody_up_for_long() {
        let address = served();
        let silent = TcpStream::connect(address).unwrap();
        let mut deaf = TcpStream::connect(address).unwrap();
        deaf.write_all(b"GET /large HTTP/1.1\r\n\r\n").unwrap();
        let started = Instant::now();
        assert_eq!(exchange(address, b"GET /status HTTP/1.0\r\n\r\n").1, "well");
        assert!(started.elapsed() < Duration::from_secs(30));
        drop((silent, deaf));
    }
}
