//! `kv import` and `kv export`: files of any size, many requests in flight.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, IsTerminal as _, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::pairs::{BadLine, Format, Pair, Reader, Writer};
use super::{SCAN_PAGE, Store, shown, unexpected};
use crate::cli::connect::failed;
use crate::cli::errors::Error;
use crate::cli::output;
use crate::runtime::client::Pending;
use crate::runtime::{Stop, StopOnSignals};
use crate::services::kv::{Answer, Change, Op, VALUE_MAX};

/// `castra kv import`
#[derive(clap::Args, Debug)]
pub struct Import {
    /// The file; `-` is standard input
    file: PathBuf,
    /// How it is written; by default its name tells
    #[arg(long)]
    format: Option<Format>,
    /// Pass over the first line
    #[arg(long)]
    header: bool,
}

impl Import {
    /// The file must be there before a cluster is looked for.
    pub(super) fn checked(self) -> Result<Import, Error> {
        if !is_standard(&self.file) {
            File::open(&self.file)
                .map_err(Error::reading(&self.file, "name a file of pairs, or - for standard input"))?;
        }
        Ok(self)
    }
}

/// `castra kv export`
#[derive(clap::Args, Debug)]
pub struct Export {
    /// The file; `-` is standard output
    file: PathBuf,
    /// How to write it; by default its name tells
    #[arg(long)]
    format: Option<Format>,
    /// Only keys that begin with it
    #[arg(long, default_value = "")]
    prefix: String,
}

fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// The value in a file, refused if it is too long.
pub fn read_value(path: &Path) -> Result<Vec<u8>, Error> {
    let fail = Error::reading(path, "name a file that you may read");
    let input: Box<dyn Read> = if is_standard(path) {
        Box::new(io::stdin())
    } else {
        match File::open(path) {
            Ok(file) => Box::new(file),
            Err(error) => return Err(fail(error)),
        }
    };
    let mut value = Vec::new();
    // One byte more than fits: the verb refuses it with the service's own words.
    input.take(VALUE_MAX as u64 + 1).read_to_end(&mut value).map_err(fail)?;
    Ok(value)
}

/// A bar on a terminal, a line now and then elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    total: Option<u64>,
    said: Instant,
}

/// Between plain lines.
const SAY_EVERY: Duration = Duration::from_secs(2);

impl Progress {
    fn new(what: &'static str, total: Option<u64>) -> Progress {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            let template = match total {
                Some(_) => "{bar:40} {bytes}/{total_bytes} {msg} {eta}",
                None => "{spinner} {msg}",
            };
            bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress { bar, what, total, said: Instant::now() }
    }

    fn at(&mut self, bytes: u64, pairs: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(bytes);
                bar.set_message(format!("{pairs} pairs"));
            }
            None if self.said.elapsed() >= SAY_EVERY => {
                self.said = Instant::now();
                match self.total {
                    Some(total) => {
                        output::note(format!("{} {pairs} pairs, {} %", self.what, bytes * 100 / total.max(1)))
                    }
                    None => output::note(format!("{} {pairs} pairs", self.what)),
                }
            }
            None => {}
        }
    }

    /// Says something beside the bar.
    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::note(text)),
            None => output::note(text),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Requests in flight. Two changes of one key never are: within a window the order is free, and the later line must win.
struct InFlight<'a> {
    store: &'a Store,
    queue: VecDeque<(u64, Vec<u8>, Pending)>,
    keys: BTreeSet<Vec<u8>>,
    max: usize,
    stored: u64,
    refused: Vec<BadLine>,
}

impl InFlight<'_> {
    fn put(&mut self, pair: Pair) -> Result<(), Error> {
        while self.queue.len() >= self.max || self.keys.contains(&pair.key) {
            self.settle()?;
        }
        let op = Op::Change(Change::Put { key: &pair.key, value: &pair.value }).encode();
        let op = match op {
            Ok(op) => op,
            Err(fault) => {
                self.refused.push(BadLine { line: pair.line, why: fault.to_string() });
                return Ok(());
            }
        };
        let connected = &self.store.connected;
        let pending = connected.client.submit(op).map_err(|error| failed("import", connected.timeout, error))?;
        self.keys.insert(pair.key.clone());
        self.queue.push_back((pair.line, pair.key, pending));
        Ok(())
    }

    /// Waits for the oldest.
    fn settle(&mut self) -> Result<(), Error> {
        let Some((line, key, pending)) = self.queue.pop_front() else { return Ok(()) };
        let name = || format!("line {line}, put {}", shown(&key));
        let answer = pending.wait().map_err(|error| failed(&name(), self.store.connected.timeout, error))?;
        match Answer::parse(&answer) {
            Some(Answer::Done) => self.stored += 1,
            other => return Err(unexpected(&name(), other)),
        }
        self.keys.remove(&key);
        Ok(())
    }
}

/// Stores every pair of a file.
pub fn import(store: &Store, args: &Import, as_json: bool) -> Result<(), Error> {
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    let fail = |error| Error::reading(&args.file, "the pairs before it were stored; import it again")(error);
    let (input, total): (Box<dyn Read>, Option<u64>) = if is_standard(&args.file) {
        (Box::new(io::stdin()), None)
    } else {
        let file = File::open(&args.file).map_err(fail)?;
        let total = file.metadata().ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len());
        (Box::new(file), total)
    };
    let format = args.format.unwrap_or_else(|| Format::of(&args.file));
    let mut reader = Reader::new(BufReader::with_capacity(1 << 18, input), format);
    let mut progress = Progress::new("stored", total);
    let started = Instant::now();
    let max = store.connected.config.file.window;
    let mut flight =
        InFlight { store, queue: VecDeque::new(), keys: BTreeSet::new(), max, stored: 0, refused: Vec::new() };
    let mut bad = 0;
    let mut header = args.header;
    let mut last_line = 0;
    let outcome = loop {
        if stop.is_stopped() {
            break Ok(());
        }
        match reader.read() {
            Ok(None) => break Ok(()),
            Err(error) => break Err(fail(error)),
            Ok(Some(_)) if std::mem::take(&mut header) => {}
            Ok(Some(Ok(pair))) => {
                last_line = pair.line;
                if let Err(error) = flight.put(pair) {
                    break Err(error);
                }
            }
            Ok(Some(Err(line))) => flight.refused.push(line),
        }
        for line in flight.refused.drain(..) {
            bad += 1;
            progress.note(&format!("{}:{}: {}", args.file.display(), line.line, line.why));
        }
        progress.at(reader.bytes(), flight.stored);
    };
    let outcome = outcome.and_then(|()| {
        while !flight.queue.is_empty() {
            flight.settle()?;
        }
        Ok(())
    });
    progress.end();
    let seconds = started.elapsed().as_secs_f64();
    let stored = flight.stored;
    // What was stored is said in every case.
    if as_json {
        let complete = outcome.is_ok() && !stop.is_stopped();
        output::json(&json!({
            "stored": stored, "malformed": bad, "seconds": seconds, "per_second": stored as f64 / seconds.max(1e-9),
            "complete": complete,
        }))?;
    } else {
        output::line(format!("{stored} pairs stored in {seconds:.1} s, {bad} malformed lines"))?;
    }
    outcome?;
    if stop.is_stopped() {
        output::note(format!("interrupted: everything up to line {last_line} is stored"));
        return Err(Error::Interrupted);
    }
    match bad {
        0 => Ok(()),
        count => Err(Error::BadLines { path: args.file.clone(), count, stored }),
    }
}

/// Writes every pair to a file, sorted.
pub fn export(store: &Store, args: &Export, as_json: bool) -> Result<(), Error> {
    let started = Instant::now();
    let standard = is_standard(&args.file);
    let partial = {
        let mut name = args.file.clone().into_os_string();
        name.push(".partial");
        PathBuf::from(name)
    };
    let fail = |error: io::Error| match (standard, error.kind()) {
        (true, _) => output::stdout_error(error),
        (false, io::ErrorKind::InvalidData) => Error::Usage(error.to_string()),
        (false, _) => Error::writing(&args.file)(error),
    };
    let out: Box<dyn Write> =
        if standard { Box::new(io::stdout()) } else { Box::new(File::create(&partial).map_err(fail)?) };
    let format = args.format.unwrap_or_else(|| Format::of(&args.file));
    let mut writer = Writer::new(BufWriter::with_capacity(1 << 18, out), format);
    let mut progress = Progress::new("written", None);
    let mut written = 0;
    let mut after = Vec::new();
    let mut copy = || loop {
        let page = store.scan(args.prefix.as_bytes(), &after, SCAN_PAGE)?;
        for (key, value) in &page.pairs {
            writer.write(key, value).map_err(fail)?;
        }
        written += page.pairs.len() as u64;
        progress.at(0, written);
        match page.pairs.last() {
            Some((key, _)) if page.more => after.clone_from(key),
            _ => return writer.flush().map_err(fail),
        }
    };
    let copied = copy();
    drop(writer);
    progress.end();
    if !standard {
        // A file that is there is whole.
        match &copied {
            Ok(()) => fs::rename(&partial, &args.file).map_err(fail)?,
            Err(_) => drop(fs::remove_file(&partial)),
        }
    }
    copied?;
    let seconds = started.elapsed().as_secs_f64();
    if standard {
        output::note(format!("{written} pairs written"));
        return Ok(());
    }
    if as_json {
        return output::json(&json!({ "written": written, "seconds": seconds }));
    }
    output::line(format!("{written} pairs written to {} in {seconds:.1} s", args.file.display()))
}
