//! `castra sim`: whole clusters under hostile circumstances, each from one seed, on all cores.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::errors::Error;
use super::output::{self, line, note};
use crate::auth::AuthMode;
use crate::runtime::{Stop, StopOnSignals};
use crate::sim::{self, Failure, Keys, Report};
use crate::types::ClusterSize;

/// `castra sim`
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  castra sim                         a hundred fresh seeds\n  \
                  castra sim --seeds 0..10000        these\n  \
                  castra sim --seed 17               one again\n  \
                  castra sim --seeds 0..500 --f 2 --faults byzantine\n\
                  Every seed is a cluster of its own, with its clients, its network and its faults, in one thread \
                  and without a clock. All the time it is checked that replicas agree, vote once, execute once and in \
                  order, reach equal states, and hold nothing against correct ones; at the end, that clients saw one \
                  correct server. Build with --release first.")]
pub struct SimArgs {
    /// Play this seed
    #[arg(long, value_name = "N", conflicts_with = "seeds")]
    pub seed: Option<u64>,
    /// Play the seeds from A to below B
    #[arg(long, value_name = "A..B", value_parser = range)]
    pub seeds: Option<Range<u64>>,
    /// Liars, crashed and recovering replicas at any time, of 3f + 1
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub f: u8,
    /// Which kinds of faults a seed may draw
    #[arg(long, value_enum, default_value_t = Kinds::All)]
    pub faults: Kinds,
    /// Protocol events of each seed, at least: datagrams handled and timers gone off
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub events: u64,
    /// Print one JSON object, and nothing else
    #[arg(long)]
    pub json: bool,
}

/// Kinds of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kinds {
    /// Every kind; each seed draws which it has
    All,
    /// Loss, partitions, pauses, clocks
    Network,
    /// Replicas that stop, or start again without their memory
    Crash,
    /// Replicas that lie
    Byzantine,
}

impl Kinds {
    fn faults(self) -> sim::Faults {
        match self {
            Kinds::All => sim::Faults::ALL,
            Kinds::Network => sim::Faults::NETWORK,
            Kinds::Crash => sim::Faults::CRASH,
            Kinds::Byzantine => sim::Faults::BYZANTINE,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kinds::All => "all",
            Kinds::Network => "network",
            Kinds::Crash => "crash",
            Kinds::Byzantine => "byzantine",
        }
    }
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let parts = text.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    parts.filter(|seeds: &Range<u64>| !seeds.is_empty()).ok_or_else(|| "seeds are A..B, two numbers, A below B".into())
}

/// Failures after which no more seeds are begun.
const FAILURES_MAX: usize = 10;
/// Fresh seeds, if none are named.
const FRESH: u64 = 100;
/// How often progress is told where there is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What all seeds came to.
#[derive(Serialize, Default)]
struct Sum {
    from: u64,
    to: u64,
    f: u8,
    faults: &'static str,
    events_min: u64,
    played: u64,
    operations: u64,
    events: u64,
    view_changes: u64,
    restarts: u64,
    transfers: u64,
    caught: BTreeMap<&'static str, u64>,
    seconds: f64,
    seeds_per_minute: f64,
    failures: Vec<Failed>,
}

#[derive(Serialize)]
struct Failed {
    seed: u64,
    wrong: String,
    again: String,
}

impl Sum {
    fn add(&mut self, report: &Report) {
        self.operations += report.operations as u64;
        self.events += report.handled;
        self.view_changes += report.view_changes;
        self.restarts += report.restarts;
        self.transfers += report.transfers;
        for (name, count) in &report.caught {
            *self.caught.entry(name).or_default() += count;
        }
    }
}

fn again(args: &SimArgs, seed: u64) -> String {
    let SimArgs { f, faults, events, .. } = args;
    format!("castra sim --seed {seed} --f {f} --faults {} --events {events}", faults.name())
}

/// Plays the seeds.
pub fn sim(args: &SimArgs) -> Result<(), Error> {
    let seeds = match (args.seed, &args.seeds) {
        (Some(seed), _) => seed..seed.saturating_add(1),
        (None, Some(seeds)) => seeds.clone(),
        (None, None) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let first = u64::try_from(now.as_micros()).unwrap_or(0);
            first..first + FRESH
        }
    };
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    if cfg!(debug_assertions) && !args.json {
        note("this build is not optimised: `cargo build --release` plays more seeds a minute");
    }
    // An assertion that fails is part of a seed's report.
    std::panic::set_hook(Box::new(|_| {}));
    let (mut sum, mut failures) = play(args, seeds.clone(), &stop);
    let _ = std::panic::take_hook();
    failures.sort_by_key(|failure| failure.seed);
    sum.failures = failures
        .iter()
        .map(|failure| Failed { seed: failure.seed, wrong: failure.wrong.to_string(), again: failure.replay.clone() })
        .collect();
    if args.json {
        output::json(&sum)?;
    } else {
        tell(&sum, &failures)?;
    }
    match (failures.is_empty(), stop.is_stopped()) {
        (false, _) => Err(Error::Reported),
        (true, true) => Err(Error::Interrupted),
        (true, false) => Ok(()),
    }
}

fn play(args: &SimArgs, seeds: Range<u64>, stop: &Stop) -> (Sum, Vec<Failure>) {
    let size = ClusterSize::tolerating(usize::from(args.f)).expect("clap allows 1 and 2");
    let keys = Keys::new(size, 4, AuthMode::Mac);
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let sum = Sum { from: seeds.start, to: seeds.end, f: args.f, faults: args.faults.name(), ..Sum::default() };
    let sum = Mutex::new(Sum { events_min: args.events, ..sum });
    let failures: Mutex<Vec<Failure>> = Mutex::default();
    let teller = Teller::new(args.json, seeds.end - seeds.start);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                while !stop.is_stopped() && locked(&failures).len() < FAILURES_MAX {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        break;
                    }
                    let simulation = sim::hostile(seed, &keys, args.faults.faults(), args.events);
                    let result = simulation.replay(again(args, seed)).run();
                    let mut sum = locked(&sum);
                    sum.played += 1;
                    match result {
                        Ok(report) => sum.add(&report),
                        Err(failure) => {
                            teller.say(&format!("seed {seed} failed: {}", failure.wrong));
                            locked(&failures).push(*failure);
                        }
                    }
                    teller.played(sum.played, began.elapsed());
                }
            });
        }
    });
    let mut sum = sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    sum.seconds = began.elapsed().as_secs_f64();
    sum.seeds_per_minute = sum.played as f64 / sum.seconds * 60.0;
    (sum, failures.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn tell(sum: &Sum, failures: &[Failure]) -> Result<(), Error> {
    if let Some(first) = failures.first() {
        line(first)?;
    }
    let Sum { played, operations, events, view_changes, restarts, transfers, .. } = sum;
    let seeds = if *played == 1 { "seed" } else { "seeds" };
    line(format!(
        "{played} {seeds}, {} replicas, faults {}: {operations} operations, {events} events, {view_changes} \
         view changes, {restarts} restarts, {transfers} transfers, in {:.1} s ({:.0} a minute)",
        3 * sum.f + 1,
        sum.faults,
        sum.seconds,
        sum.seeds_per_minute
    ))?;
    if !sum.caught.is_empty() {
        let caught: Vec<String> = sum.caught.iter().map(|(name, count)| format!("{name} {count}")).collect();
        line(format!("liars were caught at: {}", caught.join(", ")))?;
    }
    if failures.is_empty() {
        return line("none failed");
    }
    line(format!("{} failed:", failures.len()))?;
    failures.iter().try_for_each(|failure| line(format!("  {}", failure.replay)))
}

/// Says how far it is: a bar on a terminal, a line now and then elsewhere.
struct Teller {
    quiet: bool,
    count: u64,
    bar: Option<ProgressBar>,
    told_at: Mutex<Duration>,
}

impl Teller {
    fn new(quiet: bool, count: u64) -> Teller {
        let bar = (!quiet && io::stderr().is_terminal()).then(|| {
            let template = "{bar:40} {pos} of {len} seeds, {msg}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(count).with_style(style)
        });
        Teller { quiet, count, bar, told_at: Mutex::default() }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    fn played(&self, played: u64, elapsed: Duration) {
        let pace = format!("{:.0} a minute", played as f64 / elapsed.as_secs_f64().max(1e-3) * 60.0);
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => {
                bar.set_position(played);
                bar.set_message(pace);
            }
            None => {
                let mut told_at = locked(&self.told_at);
                if elapsed.saturating_sub(*told_at) >= TELL_EVERY {
                    *told_at = elapsed;
                    note(format!("{played} of {} seeds, {pace}", self.count));
                }
            }
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
