//! What the state costs: a random put over many keys, a lookup, a copy, a digest; and a checkpoint by its dirty pages.
//!
//! `cargo bench --bench state`. Not a criterion group: the steps of one checkpoint interval belong together.

use std::time::Instant;

use castra::state::{Digester, Keep, Map, PageId, Progress, State};
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

/// All of a checkpoint, from seal to root, on one thread.
fn checkpoints(pages: u32) {
    const ROUNDS: u32 = 9;
    let mut state = State::new(16, pages);
    let mut digester = Digester::new(Keep::default());
    state.service.grow(pages - 1).expect("it may have so many");
    (0..pages).for_each(|page| state.service.write(PageId(page), 0..8).copy_from_slice(&u64::from(page).to_le_bytes()));
    let mut n = 0;
    let mut checkpoint = |state: &mut State| {
        n += 1;
        digester.begin(state.seal(SeqNum(n)));
        while let Some(shipment) = state.ship(256) {
            digester.accept(shipment);
            while let Progress::Working = digester.step(256) {}
        }
        state.give_back(digester.take_done());
    };
    let mib = u64::from(pages) * 4 / 1_024;
    timed(&format!("the first checkpoint of {mib} MiB, a page"), pages.into(), || checkpoint(&mut state));
    for dirty in [1, 100, 1_000, 10_000] {
        let mut took: Vec<f64> = (0..ROUNDS)
            .map(|round| {
                for i in 0..dirty {
                    // The factor is odd, so that the pages differ; they lie apart.
                    let page = PageId((i * 26_041 + round) % pages);
                    state.service.write(page, 100..104).copy_from_slice(&(i ^ round).to_le_bytes());
                }
                let start = Instant::now();
                checkpoint(&mut state);
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        took.sort_by(f64::total_cmp);
        println!(
            "{:48} {:8.3} ms, median of {ROUNDS}",
            format!("checkpoint of {dirty} dirty pages"),
            took[took.len() / 2]
        );
    }
}

fn main() {
    checkpoints(262_144);
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
