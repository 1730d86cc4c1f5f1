//! Which cores a process may use, and which role gets which (E014).
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use super::error::CoresError;

/// Below this many cores a replica is fused by default: the roles of a split one would take turns on what there is, and
/// every hand-over would wait for a turn.
pub const SPLIT_MIN: usize = 4;

/// What the operator asked for.
///
/// As text: `auto`, `fused`, one core's number (fused and pinned), or `network=0,1 execution=2 checkpoint=3`, with
/// `clients=4,5` for cores of their own to clients' datagrams.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Cores {
    /// Split if the process may use [`SPLIT_MIN`] cores, else fused; of more, up to four are for clients. For a replica that
    /// has its host, or its cpuset, to itself; for several on one host see [`Cores::place_among`].
    #[default]
    Auto,
    /// One thread, on any core.
    Fused,
    /// As said.
    Explicit(Placement),
}

/// Where the roles run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Placement {
    /// All roles on one thread, pinned if a core is named.
    Fused {
        /// The core.
        core: Option<usize>,
    },
    /// Each role on threads of its own.
    Split {
        /// The first has the sockets and authentication. The second, if there is one, has agreement, else the first too.
        network: Vec<usize>,
        /// Each has a socket for some of the clients, and authenticates what they send and what is sent to them. If there
        /// is none, the first network core does.
        clients: Vec<usize>,
        /// The service.
        execution: usize,
        /// Digests, signatures, files.
        checkpoint: usize,
    },
}

/// The cores that the calling thread may use, ascending. Ask before anything is pinned: a pinned thread, and those it
/// starts, may use its own core only.
pub fn allowed() -> Vec<usize> {
    let mut cores: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    cores.sort_unstable();
    cores
}

/// Pins the calling thread.
pub fn pin(core: usize) -> Result<(), CoresError> {
    match core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        true => Ok(()),
        false => Err(CoresError::Refused { core }),
    }
}

impl Cores {
    /// The placement on a host where `allowed` may be used.
    pub fn place(&self, allowed: &[usize]) -> Result<Placement, CoresError> {
        let placement = match self {
            Cores::Fused => Placement::Fused { core: None },
            Cores::Explicit(placement) => placement.clone(),
            Cores::Auto => match allowed {
                [others @ .., execution, checkpoint] if allowed.len() >= SPLIT_MIN => {
                    let (network, clients) = others.split_at(NETWORK_MAX);
                    Placement::Split {
                        network: network.to_vec(),
                        clients: clients[..clients.len().min(CLIENTS_AUTO)].to_vec(),
                        execution: *execution,
                        checkpoint: *checkpoint,
                    }
                }
                _ => Placement::Fused { core: None },
            },
        };
        placement.check(allowed)?;
        Ok(placement)
    }

    /// As [`place`](Self::place), for replica `i` of `n` that are all on this host: `auto` takes its [`share`] of the cores.
    pub fn place_among(&self, allowed: &[usize], i: usize, n: usize) -> Result<Placement, CoresError> {
        match (self, share(allowed, i, n)) {
            (Cores::Auto, []) => Ok(Placement::Fused { core: None }),
            (Cores::Auto, own @ [first, ..]) if own.len() < SPLIT_MIN => Ok(Placement::Fused { core: Some(*first) }),
            (Cores::Auto, own) => self.place(own),
            (Cores::Fused | Cores::Explicit(_), _) => self.place(allowed),
        }
    }
}

/// The cores of the `i`-th of `n` replicas of one host: as many as each of the others has, give or take one, and as many are
/// left for clients where there are more cores than replicas. Where there are fewer, none: the kernel divides them, for the
/// primary, the reserve and the clients need of them now more, now less.
pub fn share(allowed: &[usize], i: usize, n: usize) -> &[usize] {
    let parties = if allowed.len() > n { n + 1 } else { n };
    let begin = |i: usize| i * allowed.len() / parties;
    if allowed.len() < n { &[] } else { &allowed[begin(i)..begin(i + 1)] }
}

/// One network core has the sockets, authentication and agreement; the second takes agreement from it.
const NETWORK_MAX: usize = 2;

/// Cores for clients that `auto` takes: one digests and MACs some hundred thousand of their datagrams a second.
const CLIENTS_AUTO: usize = 4;

/// Cores for clients: each is a ring to and from other roles.
const CLIENTS_MAX: usize = 16;

const _: () = assert!(SPLIT_MIN == NETWORK_MAX + 2, "`auto` gives each role a core");

impl Placement {
    /// All cores named, in the order network, clients, execution, checkpoint.
    pub fn cores(&self) -> Vec<usize> {
        match self {
            Placement::Fused { core } => core.iter().copied().collect(),
            Placement::Split { network, clients, execution, checkpoint } => {
                network.iter().chain(clients).chain([execution, checkpoint]).copied().collect()
            }
        }
    }

    /// The placement that a bare list means: one core is fused; three are network, execution, checkpoint; of four the
    /// first two are network. None of them is for clients alone.
    pub fn of(cores: &[usize]) -> Option<Placement> {
        match *cores {
            [core] => Some(Placement::Fused { core: Some(core) }),
            [ref network @ .., execution, checkpoint] if (1..=NETWORK_MAX).contains(&network.len()) => {
                Some(Placement::Split { network: network.to_vec(), clients: Vec::new(), execution, checkpoint })
            }
            _ => None,
        }
    }

    fn check(&self, allowed: &[usize]) -> Result<(), CoresError> {
        if let Placement::Split { network, clients, .. } = self
            && (!(1..=NETWORK_MAX).contains(&network.len()) || clients.len() > CLIENTS_MAX)
        {
            return Err(CoresError::Malformed { text: self.to_string() });
        }
        let cores = self.cores();
        let wanted: Vec<usize> = cores.iter().copied().filter(|core| !allowed.contains(core)).collect();
        if !wanted.is_empty() {
            return Err(CoresError::Outside { wanted, allowed: allowed.to_vec() });
        }
        let twice = cores.iter().enumerate().find(|(i, core)| cores[..*i].contains(core));
        twice.map_or(Ok(()), |(_, &core)| Err(CoresError::Shared { core, allowed: allowed.to_vec() }))
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Placement::Fused { core: None } => f.write_str("fused"),
            Placement::Fused { core: Some(core) } => write!(f, "{core}"),
            Placement::Split { network, clients, execution, checkpoint } => {
                let list = |cores: &[usize]| cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
                write!(f, "network={} ", list(network))?;
                if !clients.is_empty() {
                    write!(f, "clients={} ", list(clients))?;
                }
                write!(f, "execution={execution} checkpoint={checkpoint}")
            }
        }
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cores::Auto => f.write_str("auto"),
            Cores::Fused => f.write_str("fused"),
            Cores::Explicit(placement) => placement.fmt(f),
        }
    }
}

impl FromStr for Cores {
    type Err = CoresError;

    fn from_str(text: &str) -> Result<Cores, CoresError> {
        let malformed = || CoresError::Malformed { text: text.to_owned() };
        let number = |word: &str| word.trim().parse::<usize>().map_err(|_| malformed());
        match text.trim() {
            "auto" => return Ok(Cores::Auto),
            "fused" => return Ok(Cores::Fused),
            _ => {}
        }
        if !text.contains('=') {
            return Ok(Cores::Explicit(Placement::Fused { core: Some(number(text)?) }));
        }
        let (mut network, mut clients, mut execution, mut checkpoint) = (None, None, None, None);
        for part in text.split_whitespace() {
            let (role, list) = part.split_once('=').ok_or_else(malformed)?;
            let place = match role {
                "network" => &mut network,
                "clients" => &mut clients,
                "execution" => &mut execution,
                "checkpoint" => &mut checkpoint,
                _ => return Err(malformed()),
            };
            let list = list.split(',').map(number).collect::<Result<Vec<usize>, CoresError>>()?;
            if place.replace(list).is_some() {
                return Err(malformed());
            }
        }
        let one = |list: Option<Vec<usize>>| match list.as_deref() {
            Some([core]) => Ok(*core),
            _ => Err(malformed()),
        };
        Ok(Cores::Explicit(Placement::Split {
            network: network.ok_or_else(malformed)?,
            clients: clients.unwrap_or_default(),
            execution: one(execution)?,
            checkpoint: one(checkpoint)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(network: &[usize], execution: usize, checkpoint: usize) -> Placement {
        split_for(network, &[], execution, checkpoint)
    }

    fn split_for(network: &[usize], clients: &[usize], execution: usize, checkpoint: usize) -> Placement {
        Placement::Split { network: network.to_vec(), clients: clients.to_vec(), execution, checkpoint }
    }

    #[test]
    fn auto_fuses_on_few_cores_and_splits_on_many() {
        let fused = Placement::Fused { core: None };
        assert_eq!(Cores::Auto.place(&[]), Ok(fused.clone()));
        assert_eq!(Cores::Auto.place(&[0, 1, 2]), Ok(fused.clone()));
        assert_eq!(Cores::Auto.place(&[4, 5, 6, 7]), Ok(split(&[4, 5], 6, 7)));
        assert_eq!(Cores::Auto.place(&[1, 3, 5, 7, 9]), Ok(split_for(&[1, 3], &[5], 7, 9)));
        let many: Vec<usize> = (0..64).collect();
        assert_eq!(Cores::Auto.place(&many), Ok(split_for(&[0, 1], &[2, 3, 4, 5], 62, 63)));
        assert_eq!(Cores::Fused.place(&[4, 5, 6, 7]), Ok(fused));
    }

    #[test]
    fn replicas_of_one_host_take_equal_shares() {
        let of = |cores: usize, n: usize| {
            let allowed: Vec<usize> = (10..10 + cores).collect();
            (0..n).map(|i| share(&allowed, i, n).to_vec()).collect::<Vec<Vec<usize>>>()
        };
        assert_eq!(of(3, 4), vec![Vec::<usize>::new(); 4]);
        assert_eq!(of(4, 4), [[10], [11], [12], [13]]);
        assert_eq!(of(5, 4), [[10], [11], [12], [13]], "the last is for clients");
        assert_eq!(of(10, 4), [[10, 11], [12, 13], [14, 15], [16, 17]]);
        for (cores, n) in (13..70).flat_map(|cores| [4, 7, 13].map(|n| (cores, n))) {
            let shares = of(cores, n);
            assert!(shares.concat().is_sorted_by(|a, b| a < b), "nobody shares: {cores} {n}");
            let (least, most) = (shares.iter().map(Vec::len).min(), shares.iter().map(Vec::len).max());
            assert!(least >= Some(1) && most <= least.map(|least| least + 1), "{cores} {n}");
        }
    }

    #[test]
    fn auto_among_others_fuses_or_splits_on_its_share() {
        let allowed: Vec<usize> = (0..20).collect();
        let auto = |cores: usize, i| Cores::Auto.place_among(&allowed[..cores], i, 4);
        assert_eq!(auto(0, 3), Ok(Placement::Fused { core: None }));
        assert_eq!(auto(2, 1), Ok(Placement::Fused { core: None }));
        assert_eq!(auto(4, 3), Ok(Placement::Fused { core: Some(3) }));
        assert_eq!(auto(16, 0), Ok(Placement::Fused { core: Some(0) }), "three cores, of sixteen for five");
        assert_eq!(auto(20, 3), Ok(split(&[12, 13], 14, 15)));
        assert_eq!(Cores::Fused.place_among(&allowed, 1, 4), Ok(Placement::Fused { core: None }));
        let explicit = "7".parse::<Cores>().unwrap();
        assert_eq!(explicit.place_among(&allowed, 1, 4), Ok(Placement::Fused { core: Some(7) }), "as said");
    }

    #[test]
    fn explicit_cores_must_be_allowed_and_apart() {
        let place = |text: &str| text.parse::<Cores>().and_then(|cores| cores.place(&[0, 1, 2, 3]));
        assert_eq!(place("network=0,1 execution=2 checkpoint=3"), Ok(split(&[0, 1], 2, 3)));
        assert_eq!(place("network=0 clients=1 execution=2 checkpoint=3"), Ok(split_for(&[0], &[1], 2, 3)));
        assert_eq!(place("2"), Ok(Placement::Fused { core: Some(2) }));
        let many = (2..19).map(|core| core.to_string()).collect::<Vec<_>>().join(",");
        let many = place(&format!("network=0 clients={many} execution=1 checkpoint=3"));
        assert!(matches!(many, Err(CoresError::Malformed { .. })));
        let allowed = vec![0, 1, 2, 3];
        assert!(matches!(place("network=0,1,2 execution=3 checkpoint=4"), Err(CoresError::Malformed { .. })));
        assert_eq!(place("9"), Err(CoresError::Outside { wanted: vec![9], allowed: allowed.clone() }));
        assert_eq!(
            place("network=0,1 execution=1 checkpoint=3"),
            Err(CoresError::Shared { core: 1, allowed: allowed.clone() })
        );
        assert_eq!(
            place("network=0 clients=2,2 execution=1 checkpoint=3"),
            Err(CoresError::Shared { core: 2, allowed: allowed.clone() })
        );
        assert_eq!(
            place("network=7 execution=1 checkpoint=8"),
            Err(CoresError::Outside { wanted: vec![7, 8], allowed })
        );
    }

    #[test]
    fn a_list_is_read_in_the_order_of_the_roles() {
        assert_eq!(Placement::of(&[3]), Some(Placement::Fused { core: Some(3) }));
        assert_eq!(Placement::of(&[0, 1, 2]), Some(split(&[0], 1, 2)));
        assert_eq!(Placement::of(&[0, 1, 2, 3]), Some(split(&[0, 1], 2, 3)));
        for list in [&[][..], &[0, 1], &[0, 1, 2, 3, 4]] {
            assert_eq!(Placement::of(list), None);
        }
    }

    #[test]
    fn cores_read_what_they_write_and_refuse_the_rest() {
        let split = ["network=0,1 execution=2 checkpoint=3", "network=0 clients=4,5 execution=2 checkpoint=3"];
        for text in ["auto", "fused", "3"].into_iter().chain(split) {
            assert_eq!(text.parse::<Cores>().unwrap().to_string(), text);
        }
        for text in ["", "x", "-1", "1,2", "network=1", "network=1 execution=2,3 checkpoint=4", "network= execution=1"]
        {
            assert!(matches!(text.parse::<Cores>(), Err(CoresError::Malformed { .. })), "{text:?}");
        }
        assert!("network=1 network=2 execution=3 checkpoint=4".parse::<Cores>().is_err());
    }

    #[test]
    fn a_thread_is_pinned_within_the_allowed_set() {
        let before = allowed();
        std::thread::spawn(move || {
            let last = *before.last().unwrap();
            pin(last).unwrap();
            assert_eq!(allowed(), [last]);
            assert_eq!(pin(1_023), Err(CoresError::Refused { core: 1_023 }));
        })
        .join()
        .unwrap();
    }
}
