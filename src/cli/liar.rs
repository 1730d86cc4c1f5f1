//! A replica that lies among real processes, for tests of the others: `castra replica --lie`, on loopback only.

use super::errors::Error;
use super::files;
use crate::auth::Keyring;
use crate::execution::Service;
use crate::limits::DATAGRAM_MAX;
use crate::replica::{Replica, ReplicaConfig};
use crate::runtime::bind::Bound;
use crate::runtime::{Backend, LoopCounters, Stop, Udp, WaitPolicy, drive};
use crate::sim::{Liar, Lie, Rng, Tongue};

/// What it lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Manner {
    /// Results, positions and finality that it tells clients
    Replies,
    /// Pages, tree nodes and headers that it serves to replicas that fetch a state
    Pages,
}

/// Of a thousand occasions.
const PERMILLE: u32 = 500;

/// Runs it until stopped. It has no status: what it would say of itself is not worth asking for.
pub fn run<S: Service>(
    manner: Manner,
    mut config: ReplicaConfig,
    keys: Keyring,
    service: S,
    (bound, backend): (Bound, Backend),
    (policy, stop): (&WaitPolicy, &Stop),
) -> Result<(), Error> {
    let lies = match manner {
        Manner::Replies => vec![Lie::Replies],
        Manner::Pages => vec![Lie::States],
    };
    let liar = Liar { replica: config.protocol.me, lies, permille: PERMILLE, twin: false };
    let datagram_max = std::mem::replace(&mut config.network.datagram_max, DATAGRAM_MAX);
    let now = bound.config().clock.now();
    let honest = Replica::new(config, keys.clone(), service, now).map_err(Error::Usage)?;
    let mut tongue = Tongue::new(&liar, honest, keys, datagram_max, Rng::new(files::random_u64()?));
    let (mut transport, _) = Udp::open(bound, backend)?;
    drive(&mut tongue, &mut transport, stop, policy, &LoopCounters::default());
    Ok(())
}
