//! A network of this machine's own: each replica in a network namespace, a link from there to a bridge in ours, and cuts
//! between any two of them, in either direction.
//!
//! Nothing of it has a name outside of the processes that hold it: [`enter`] puts this whole program into a namespace,
//! and the replicas' namespaces are held by children whose standard input we hold. However we end, all of it ends.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::child::{Child, Launch};

/// How to get namespaces: as root, or as anybody where the system lets users make their own.
const WAYS: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];
/// What is needed inside: tried before anything is promised.
const TRIAL: &str = "ip link add name castra type bridge && ip link add name a type veth peer name b && \
                     ip neigh replace 198.18.0.2 lladdr 02:00:00:00:00:01 dev castra nud permanent && \
                     unshare --net nsenter --net=/proc/$$/ns/net true";
/// Datagrams of a laboratory are larger than Ethernet's.
const MTU: &str = "16000";
/// How long a namespace may take to appear.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);
/// A station that does not exist: what is sent to it is lost without a word, as on a cut line.
const NOBODY: &str = "02:ca:57:ff:ff:ff";

/// Replaces this program by itself in a network namespace of its own, with `more` arguments: that is how it knows. Only
/// returns if that is not allowed here: why.
pub fn enter(more: &[&str]) -> String {
    let mut why = String::new();
    for way in WAYS {
        let trial = Command::new("unshare").args(way).args(["sh", "-c", TRIAL]).stdin(Stdio::null()).output();
        match trial {
            Ok(output) if output.status.success() => {
                let Ok(program) = std::env::current_exe() else { break };
                let arguments = std::env::args_os().skip(1);
                let failed = Command::new("unshare").args(way).arg(program).args(arguments).args(more).exec();
                return failed.to_string();
            }
            Ok(output) => why = one_line(&output),
            Err(error) => return format!("unshare: {error}"),
        }
    }
    why
}

fn one_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().find(|line| !line.trim().is_empty()).map_or_else(|| output.status.to_string(), str::to_owned)
}

/// The bridge, and a namespace for each replica. Only in a program that [`enter`] began.
#[derive(Debug)]
pub struct Network {
    /// Each holds a namespace.
    hosts: Vec<Child>,
    /// From whom to whom nothing comes through.
    cuts: BTreeSet<(usize, usize)>,
}

impl Network {
    /// Makes `n` namespaces. What their holders say goes to files in `folder`.
    ///
    /// # Errors
    /// The system's, or what `ip` said.
    pub fn new(n: usize, folder: &Path) -> io::Result<Network> {
        let here = format!(
            "link set lo up\nlink add name castra type bridge\nlink set castra mtu {MTU} up\naddr add {}/24 dev castra\n",
            Network::outside()
        );
        ip(None, &here)?;
        let mut network = Network { hosts: Vec::new(), cuts: BTreeSet::new() };
        for i in 0..n {
            network.add_host(i, folder)?;
        }
        // Whom each finds where is settled once: nobody has to ask, and a cut is a wrong entry.
        for from in 0..n {
            let entries: String = (0..n).filter(|&to| to != from).map(|to| entry(to, &station(to))).collect();
            ip(Some(network.hosts[from].pid()), &entries)?;
        }
        Ok(network)
    }

    fn add_host(&mut self, i: usize, folder: &Path) -> io::Result<()> {
        let launch = Launch {
            name: format!("host{i}"),
            program: "unshare".into(),
            arguments: vec!["--net".into(), "cat".into()],
            log: folder.join(format!("host{i}.log")),
        };
        let mut host = Child::start(launch)?;
        let until = Instant::now() + PATIENCE;
        let ours = std::fs::read_link("/proc/self/ns/net")?;
        while std::fs::read_link(format!("/proc/{}/ns/net", host.pid())).map_or(true, |its| its == ours) {
            if host.ended().is_some() || Instant::now() > until {
                return Err(io::Error::other(format!("no namespace for host {i}: {}", host.last_words())));
            }
            thread::sleep(LOOK);
        }
        let pid = host.pid();
        let link = format!("link add name host{i} mtu {MTU} type veth peer name eth0 mtu {MTU} netns {pid}\n");
        ip(None, &(link + &format!("link set host{i} master castra up\n")))?;
        let inside = format!(
            "link set lo up\nlink set eth0 address {}\naddr add {}/24 dev eth0\nlink set eth0 up\n",
            station(i),
            Network::address(i)
        );
        ip(Some(pid), &inside)?;
        self.hosts.push(host);
        Ok(())
    }

    /// Where replica `i` is.
    pub fn address(i: usize) -> IpAddr {
        // A range that RFC 2544 sets aside for measurements: no route of the real world leads there.
        IpAddr::V4(Ipv4Addr::new(198, 18, 0, 10 + i as u8))
    }

    /// Where we are.
    pub fn outside() -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1))
    }

    /// Replicas that fit.
    pub const HOSTS_MAX: usize = 200;

    /// The program and arguments that run `program` where replica `i` is.
    pub fn inside(&self, i: usize, program: &Path, arguments: Vec<OsString>) -> (std::path::PathBuf, Vec<OsString>) {
        let enter = format!("--net=/proc/{}/ns/net", self.hosts[i].pid());
        let all = [OsString::from(enter), program.into()].into_iter().chain(arguments).collect();
        ("nsenter".into(), all)
    }

    /// From now on nothing that `from` sends reaches `to` for these pairs, and for no others.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn cut(&mut self, cuts: BTreeSet<(usize, usize)>) -> io::Result<()> {
        for (from, host) in self.hosts.iter().enumerate() {
            let changed = cuts.symmetric_difference(&self.cuts).filter(|(f, _)| *f == from);
            let entries = changed.map(|cut| match cuts.contains(cut) {
                true => entry(cut.1, NOBODY),
                false => entry(cut.1, &station(cut.1)),
            });
            let entries: String = entries.collect();
            if !entries.is_empty() {
                ip(Some(host.pid()), &entries)?;
            }
        }
        self.cuts = cuts;
        Ok(())
    }

    /// From whom to whom nothing comes through.
    pub fn cuts(&self) -> &BTreeSet<(usize, usize)> {
        &self.cuts
    }
}

fn station(i: usize) -> String {
    format!("02:ca:57:00:00:{:02x}", 10 + i)
}

fn entry(to: usize, station: &str) -> String {
    format!("neigh replace {} lladdr {station} dev eth0 nud permanent\n", Network::address(to))
}

/// Runs lines of `ip`, here or where process `host` is.
fn ip(host: Option<u32>, lines: &str) -> io::Result<()> {
    let mut command = match host {
        None => Command::new("ip"),
        Some(pid) => {
            let mut command = Command::new("nsenter");
            command.args([&format!("--net=/proc/{pid}/ns/net"), "ip"]);
            command
        }
    };
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A group of its own: Ctrl-C does not leave a cut half made.
    let mut child = command.process_group(0).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(lines.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("ip: {}", one_line(&output)))),
    }
}
