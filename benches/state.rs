//! What the state costs: a random put over many keys, a lookup, a copy, a digest.
//!
//! `cargo bench --bench state`. Not a criterion group: the steps of one checkpoint interval belong together.

use std::time::Instant;

use castra::state::{Digester, Keep, Map, Progress, State};
use castra::types::SeqNum;

const MAP: Map = Map::at(0);
const KEYS: u64 = 1_000_000;
const BATCH: u64 = 64;

fn key(i: u64) -> [u8; 16] {
    let mut key = *b"key-\0\0\0\0\0\0\0\0\0\0\0\0";
    key[8..].copy_from_slice(&i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key
}

/// Nanoseconds that this thread ran: on a shared machine the wall tells another story. 0 where the system does not say.
fn cpu_ns() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0)
}

fn timed(what: &str, count: u64, work: impl FnOnce()) {
    let (start, cpu) = (Instant::now(), cpu_ns());
    work();
    let wall = start.elapsed().as_nanos() as f64 / count as f64;
    println!("{what:48} {wall:8.0} ns, of which on the CPU {:8.0}", (cpu_ns() - cpu) / count as f64);
}

fn main() {
    let mut state = State::new(16, 1 << 20);
    let mut digester = Digester::new(Keep::default());
    timed("insert, 1 M new keys of 16 B with 100 B", KEYS, || {
        for i in 0..KEYS {
            MAP.insert(&mut state.service, &key(i), &[i as u8; 100]).expect("there is room");
        }
    });
    println!("{:48} {:8} pages", "", state.service.pages());
    let mut random = 88_172_645_463_325_252u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % KEYS
    };
    timed("get", KEYS, || {
        for _ in 0..KEYS {
            assert_eq!(MAP.value(&state.service, &key(next())).map(|value| value.len()), Some(100));
        }
    });
    timed("scan, a key", KEYS, || assert_eq!(MAP.iter(&state.service).count() as u64, KEYS));
    for (n, puts) in [8_192, 65_536, 131_072].into_iter().enumerate() {
        for round in 0..2 {
            digester.begin(state.seal(SeqNum(10 * n as u64 + round)));
            while let Some(shipment) = state.ship(1_000) {
                digester.accept(shipment);
            }
            timed(&format!("digest, {puts} puts a checkpoint, a put"), puts, || {
                while let Progress::Working = digester.step(1_000) {}
            });
            state.give_back(digester.take_done());
            timed("put of 100 B over 1 M keys, tentative", puts, || {
                for i in 0..puts {
                    if i % BATCH == 0 {
                        state.begin_tentative();
                    }
                    MAP.insert(&mut state.service, &key(next()), &[i as u8; 100]).expect("there is room");
                    if i % BATCH == BATCH - 1 {
                        state.commit();
                    }
                }
            });
        }
    }
}
