//! The file system under the simulator: a lossy network, and everything that can go wrong, with liars. The model is the
//! same file system alone; `src/bfs/tests` compares that with one that shares nothing with it.

mod sim_harness;

use castra::bfs::{
    Account, Amount, Bfs, CreateHow, Credentials, Given, Handle, InodeId, LeaseCall, LockOwner, LockRange,
    NewAttributes, Place, Request,
};
use castra::sim::{Ask, Config, Faults, Keys, Rng, Simulation};
use castra::state::SnapshotId;
use sim_harness::sweep;

/// The root directory, what is likely to be a file, or to have been one: inodes are given out from 2 on, snapshots from 1.
fn handle(rng: &mut Rng) -> Given {
    let inode = InodeId(rng.between(1, 9) as u32);
    Some(match rng.below(100) {
        0..40 => Handle::ROOT,
        40..45 => Handle::Snapshots,
        45..52 => Handle::Then { snapshot: SnapshotId(rng.between(1, 4)), inode },
        _ => Handle::Now { inode, generation: rng.below(3) },
    })
}

fn place(rng: &mut Rng) -> Place<'static> {
    const NAMES: [&[u8]; 5] = [b"a", b"b", b"c", b"dir", b"..."];
    Place { directory: handle(rng), name: NAMES[rng.index(NAMES.len())] }
}

fn ask(_client: usize, _index: u64, rng: &mut Rng) -> Ask {
    let mut data = vec![0; *rng.pick(&[1, 100, 5_000, 20_000])];
    rng.fill(&mut data);
    let new = NewAttributes::mode(0o777);
    let offset = rng.below(50_000);
    let owner = LockOwner { mount: rng.below(2), owner: rng.below(2), pid: 1 };
    let (start, end) = (offset, offset + rng.below(20_000));
    let range = LockRange { start, end, exclusive: rng.chance(500) };
    let account = *rng.pick(&[Account::User(5), Account::Group(5), Account::User(0)]);
    let limit = Amount { bytes: rng.below(100_000), files: rng.below(9) };
    let request = match rng.below(22) {
        0..3 => Request::Create { at: place(rng), how: CreateHow::Unchecked(NewAttributes { size: Some(0), ..new }) },
        3 => Request::MkDir { at: place(rng), new },
        4 => Request::Symlink { at: place(rng), new, target: b"where" },
        5 => Request::Remove { at: place(rng) },
        6 => Request::RmDir { at: place(rng) },
        7 => Request::Rename { from: place(rng), to: place(rng) },
        8 => Request::Link { file: handle(rng), at: place(rng) },
        9 | 10 => Request::Write { file: handle(rng), offset, count: data.len() as u32, stable: 0, data: &data },
        11 => {
            let new = NewAttributes { size: rng.chance(500).then_some(offset), ..new };
            Request::SetAttr { object: handle(rng), new, guard: None }
        }
        12 => Request::Read { file: handle(rng), offset, count: 8_192 },
        13 => Request::ReadDirPlus { directory: handle(rng), cookie: 0, verifier: [0; 8], names: 9_000, count: 9_000 },
        14 => Request::Lookup { at: place(rng) },
        15 => Request::Lease {
            mount: rng.below(2),
            how: *rng.pick(&[LeaseCall::Begin, LeaseCall::Renew, LeaseCall::End]),
        },
        16 | 17 => Request::Lock { file: handle(rng), owner, range },
        18 => Request::Unlock { file: handle(rng), owner, start, end },
        19 => Request::TestLock { file: handle(rng), owner, range },
        20 if rng.chance(300) => Request::SetQuota { account, limit },
        20 => Request::ListQuota { cookie: 0, count: 10 },
        _ => Request::GetAttr { object: handle(rng) },
    };
    let mut arguments = Vec::new();
    request.encode(&mut arguments);
    let cred = if rng.chance(700) { Credentials::ROOT } else { Credentials::new(5, 5, &[6]) };
    let op = Bfs::operation(request.procedure() as u32, &cred, &arguments);
    if request.procedure().is_read_only() && rng.chance(900) { Ask::query(op) } else { Ask::ordered(op) }
}

fn bfs() -> Bfs {
    Bfs { mode: 0o777, ..Bfs::default() }
}

#[test]
fn bfs_is_linearizable_on_a_lossy_network() {
    let config = Config { window: 8, operations: 60, ..Config::lossy() };
    let keys = Keys::new(config.size, config.clients, config.auth);
    sweep("bfs_is_linearizable_on_a_lossy_network", 0..60, &[], |seed| {
        Simulation::with_keys(seed, config.clone(), &keys, bfs, ask).run()
    });
}

/// Seeds that once failed, whatever the fault was.
const KEPT: &[u64] = &[
    // The last operation was answered by q tentative replies before any replica had committed its batch, and judged
    // without the time that was agreed for it: the simulator's fault.
    156,
];

/// Networks, crashes, and up to f liars, as each seed draws them.
#[test]
fn bfs_among_liars() {
    let keys = Keys::new(Config::calm().size, 4, Config::calm().auth);
    sweep("bfs_among_liars", 0..60, KEPT, |seed| {
        Simulation::with_keys(seed, Config::hostile(seed, keys.size(), Faults::ALL, 1_000), &keys, bfs, ask).run()
    });
}

/// Watched page by page: the first operation at which two replicas differ would be named.
#[test]
fn bfs_is_deterministic() {
    let config = Config { watch: true, ..Config::lossy() };
    let keys = Keys::new(config.size, config.clients, config.auth);
    sweep("bfs_is_deterministic", 0..20, &[], |seed| {
        Simulation::with_keys(seed, config.clone(), &keys, bfs, ask).run()
    });
}
