//! Plays a golden script: text whose steps are lines at the margin and whose trace is indented below each step.
//!
//! ```text
//! cluster 4 K=4 L=8 pipeline=2    n replicas, none has said anything; first of all
//! request c0 1 [to r1] [signed]   c0's request 1, to the primary that c0 believes in, or to r1; signed: to all
//! query c0 2                      a read-only request, to all
//! deliver r0->r1,r2 [prepare …]   what is under way on these links now, of these kinds
//! deliver all                     everything, and what comes of it, until nothing is under way
//! drop r0->* [kinds]              what is under way there is lost
//! hold r0->* [kinds]              `deliver all` and `run` leave that under way, until `release`
//! partition {r0 r1} {r2 r3}       what is under way or sent between the groups is lost, until `heal`
//! advance 100ms                   time passes, timers fire, nothing arrives
//! run 100ms                       time passes, timers fire, everything arrives at once; the trace has the milestones only
//! crash r0                        for ever
//! liar r0                         from now on r0 says nothing but what `say` makes it say
//! batch A c0:1 c0:2               a batch to be named in `say`
//! say r0->r1 prepare v0 n1 A      puts a message under way: pre-prepare, prepare, commit, committed n1 A,
//!                                 view-change v1 h=0 P n1=A@v0 Q n1=A@v0,n2=null@v0, new-view v1 of r1,r2,r3 h=0 A null
//! show                            where every replica is
//! ```
//! `*` is all replicas, `r0,r2` several. A batch is named by its requests, `[c0:1 c1:4]`, with a `'` for each other batch
//! of the same requests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::core::{Core, Effect, States, observe, pack};
use crate::protocol::{Config, Notice};
use crate::sim::agreement::Agreement;
use crate::sim::describe;
use crate::types::{ClusterSize, Digest, ReplicaId, ReplicaSet, SeqNum, Time, View};
use crate::wire::{
    Batch, Choice, Committed, Entry, Message, NewView, Pack, PrePrepare, Proposed, RequestKind, Signed, Status,
    ViewChange, Vote,
};

const START: Time = Time(1_000_000_000_000);
/// More messages than this in one step, and it will not end.
const STEP_MAX: usize = 20_000;

/// Plays `script`, and returns it with the traces that it should have.
pub fn play(script: &str) -> Result<String, String> {
    let mut play: Option<Play> = None;
    let mut out = String::new();
    for (i, line) in script.lines().enumerate() {
        if line.starts_with("    ") {
            continue;
        }
        out.push_str(line);
        out.push('\n');
        let step = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = step.split_whitespace().collect();
        let traced = match (&mut play, words.as_slice()) {
            (_, []) => Ok(Vec::new()),
            (none @ None, ["cluster", rest @ ..]) => Play::new(rest).map(|new| {
                *none = Some(new);
                Vec::new()
            }),
            (None, _) => Err("a script begins with `cluster`".to_owned()),
            (Some(play), words) => play.step(words),
        };
        for traced in traced.map_err(|why| format!("line {}: {step}: {why}", i + 1))? {
            out.push_str("    ");
            out.push_str(&traced);
            out.push('\n');
        }
    }
    Ok(out)
}

struct Flight {
    from: ReplicaId,
    to: ReplicaId,
    message: Message,
}

/// Links, and kinds of messages on them; no kind: all.
struct Pattern {
    from: ReplicaSet,
    to: ReplicaSet,
    kinds: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    TentativeRead,
    Tentative,
    Committed,
}

impl Kind {
    fn is_ordered(self) -> bool {
        match self {
            Kind::Tentative | Kind::Committed => true,
            Kind::Read | Kind::TentativeRead => false,
        }
    }
}

#[derive(Clone, Copy)]
struct Reply {
    view: View,
    at: SeqNum,
    kind: Kind,
}

/// A client: P5 and P8, in a few lines.
#[derive(Default)]
struct Client {
    view: View,
    replies: BTreeMap<Digest, BTreeMap<ReplicaId, Reply>>,
    accepted: BTreeSet<Digest>,
}

/// What batches, packs and states are called.
#[derive(Default)]
struct Names {
    packs: BTreeMap<Digest, String>,
    batches: BTreeMap<Digest, String>,
    roots: BTreeMap<SeqNum, Vec<Digest>>,
}

struct Play {
    size: ClusterSize,
    now: Time,
    cores: Vec<Core>,
    down: ReplicaSet,
    liars: ReplicaSet,
    groups: Vec<ReplicaSet>,
    holds: Vec<Pattern>,
    flights: VecDeque<Flight>,
    clients: BTreeMap<u64, Client>,
    names: Names,
    batches: BTreeMap<String, Arc<Batch>>,
    /// The last view-changes sent, for new-views that are made up.
    view_changes: BTreeMap<(ReplicaId, View), Digest>,
    misdeeds: BTreeMap<(ReplicaId, ReplicaId, &'static str), u64>,
    agreed: Agreement,
    /// Only what moves the cluster on is traced.
    milestones: bool,
    timed: bool,
    trace: Vec<String>,
}

impl Play {
    fn new(words: &[&str]) -> Result<Play, String> {
        let [n, options @ ..] = words else { return Err("cluster N [K=…] [L=…] [pipeline=…]".to_owned()) };
        let size = number(n).ok().and_then(|n| ClusterSize::of(n as usize)).ok_or("n is not 3f + 1")?;
        let states = States::default();
        let mut cores = Vec::new();
        for me in size.replicas() {
            let mut config = Config::new(size, me);
            (config.checkpoint_interval, config.log_window, config.pipeline_max) = (4, 8, 2);
            config.commit_delay = Duration::from_micros(200);
            for option in options {
                match option.split_once('=') {
                    Some(("K", k)) => config.checkpoint_interval = number(k)?,
                    Some(("L", l)) => config.log_window = number(l)?,
                    Some(("pipeline", p)) => config.pipeline_max = number(p)?,
                    _ => return Err(format!("{option} is no option")),
                }
            }
            config.validate()?;
            cores.push(Core::new(config, START, Duration::ZERO, &states));
        }
        let mut names = Names::default();
        names.batches.insert(Batch::null().digest(), "null".to_owned());
        Ok(Play {
            size,
            now: START,
            cores,
            down: ReplicaSet::EMPTY,
            liars: ReplicaSet::EMPTY,
            groups: vec![size.replicas().collect()],
            holds: Vec::new(),
            flights: VecDeque::new(),
            clients: BTreeMap::new(),
            names,
            batches: BTreeMap::from([("null".to_owned(), Arc::new(Batch::null()))]),
            view_changes: BTreeMap::new(),
            misdeeds: BTreeMap::new(),
            agreed: Agreement::default(),
            milestones: false,
            timed: false,
            trace: Vec::new(),
        })
    }

    fn step(&mut self, words: &[&str]) -> Result<Vec<String>, String> {
        (self.milestones, self.timed) = (words[0] == "run", matches!(words[0], "run" | "advance"));
        let expects_trace = match words {
            ["request", client, t, rest @ ..] => self.ask(client, t, RequestKind::Ordered, rest).map(|()| true),
            ["query", client, t] => self.ask(client, t, RequestKind::ReadOnly, &["to", "*"]).map(|()| true),
            ["deliver", "all"] => self.deliver_all().map(|()| true),
            ["deliver", links @ ..] => self.deliver(&self.pattern(links)?).map(|()| true),
            ["drop", links @ ..] => {
                let pattern = self.pattern(links)?;
                let before = self.flights.len();
                self.flights.retain(|flight| !pattern.matches(flight));
                if before == self.flights.len() { Err("nothing to drop".to_owned()) } else { Ok(false) }
            }
            ["hold", links @ ..] => {
                let pattern = self.pattern(links)?;
                self.holds.push(pattern);
                Ok(false)
            }
            ["release"] => {
                self.holds.clear();
                Ok(false)
            }
            ["partition", ..] => self.partition(&words[1..].join(" ")).map(|()| false),
            ["heal"] => {
                self.groups = vec![self.size.replicas().collect()];
                Ok(false)
            }
            ["advance", time] => self.pass(duration(time)?, false).map(|()| true),
            ["run", time] => self.pass(duration(time)?, true).map(|()| true),
            ["crash", who] => {
                self.down.insert(self.replica(who)?);
                let down = self.down;
                self.flights.retain(|flight| !down.contains(flight.from) && !down.contains(flight.to));
                Ok(false)
            }
            ["liar", who] => {
                self.liars.insert(self.replica(who)?);
                Ok(false)
            }
            ["batch", name, packs @ ..] => self.make_batch(name, packs).map(|()| false),
            ["say", link, message @ ..] => self.say(link, message).map(|()| false),
            ["show"] => {
                self.show();
                Ok(true)
            }
            _ => Err("no such step".to_owned()),
        }?;
        let mut trace = std::mem::take(&mut self.trace);
        if expects_trace && trace.is_empty() {
            trace.push("nothing".to_owned());
        }
        Ok(trace)
    }

    // ---- steps ----------------------------------------------------------------------------------------------------

    fn ask(&mut self, client: &str, t: &str, kind: RequestKind, rest: &[&str]) -> Result<(), String> {
        let id = number(client.strip_prefix('c').ok_or("a client is c0, c1, …")?)?;
        let believed = self.size.primary(self.clients.entry(id).or_default().view);
        let (to, signed) = match rest {
            [] => (ReplicaSet::from_iter([believed]), false),
            ["signed"] => (self.size.replicas().collect(), true),
            ["to", to] => (self.replicas(to)?, false),
            ["to", to, "signed"] => (self.replicas(to)?, true),
            _ => return Err("request C T [to R] [signed]".to_owned()),
        };
        let pack = self.pack(id, number(t)?, kind);
        let down = self.down;
        for to in to.iter().filter(|to| !down.contains(*to)) {
            self.cores[usize::from(to.0)].on_pack(self.now, pack.clone(), signed);
            let name = self.names.packs[&pack.digest()].clone();
            self.settle(to, &format!(" <- {name}"))?;
        }
        Ok(())
    }

    fn pack(&mut self, client: u64, t: u64, kind: RequestKind) -> Pack {
        let pack = pack(client + 1, t, kind, 8);
        self.names.packs.insert(pack.digest(), format!("c{client}:{t}"));
        pack
    }

    fn deliver(&mut self, pattern: &Pattern) -> Result<(), String> {
        let (matching, rest): (VecDeque<Flight>, _) =
            std::mem::take(&mut self.flights).into_iter().partition(|f| pattern.matches(f));
        self.flights = rest;
        if matching.is_empty() {
            return Err("nothing is under way there".to_owned());
        }
        matching.into_iter().try_for_each(|flight| self.arrive(flight))
    }

    fn deliver_all(&mut self) -> Result<(), String> {
        for _ in 0..STEP_MAX {
            let free = |f: &Flight| !self.holds.iter().any(|hold| hold.matches(f));
            let Some(next) = self.flights.iter().position(free) else { return Ok(()) };
            let flight = self.flights.remove(next).expect("found");
            self.arrive(flight)?;
        }
        Err("it does not end".to_owned())
    }

    fn arrive(&mut self, flight: Flight) -> Result<(), String> {
        let cause = format!(" <- {} {}", flight.from, self.message(&flight.message));
        self.cores[usize::from(flight.to.0)].on_message(self.now, flight.from, flight.message);
        self.settle(flight.to, &cause)
    }

    fn pass(&mut self, time: Duration, delivers: bool) -> Result<(), String> {
        let end = self.now + time;
        for _ in 0..STEP_MAX {
            if delivers {
                self.deliver_all()?;
            }
            let up: Vec<ReplicaId> = self.size.replicas().filter(|r| !self.down.contains(*r)).collect();
            let due = up.iter().map(|r| self.cores[usize::from(r.0)].deadline()).min().unwrap_or(Time::NEVER);
            if due > end {
                self.now = end;
                return Ok(());
            }
            self.now = self.now.max(due);
            for r in up {
                let core = &mut self.cores[usize::from(r.0)];
                if core.deadline() <= self.now {
                    core.on_timeout(self.now);
                    self.settle(r, " timer")?;
                }
            }
        }
        Err("it does not end".to_owned())
    }

    fn partition(&mut self, groups: &str) -> Result<(), String> {
        let mut parsed = Vec::new();
        for group in groups.split('}').map(str::trim).filter(|group| !group.is_empty()) {
            let names = group.strip_prefix('{').ok_or("partition {r0 r1} {r2 r3}")?;
            let members: Result<ReplicaSet, String> = names.split_whitespace().map(|r| self.replica(r)).collect();
            parsed.push(members?);
        }
        self.groups = parsed;
        let groups = &self.groups;
        self.flights.retain(|f| groups.iter().any(|g| g.contains(f.from) && g.contains(f.to)));
        Ok(())
    }

    fn make_batch(&mut self, name: &str, packs: &[&str]) -> Result<(), String> {
        let mut held = Vec::new();
        for pack in packs {
            let (client, t) = pack.strip_prefix('c').and_then(|p| p.split_once(':')).ok_or("a pack is c0:1")?;
            held.push(self.pack(number(client)?, number(t)?, RequestKind::Ordered));
        }
        let choice = Choice { time: self.now.0, seed: self.batches.len() as u64 };
        let batch = Arc::new(Batch::new(choice, held));
        self.names.batches.insert(batch.digest(), name.to_owned());
        self.batches.insert(name.to_owned(), batch);
        Ok(())
    }

    fn say(&mut self, link: &str, words: &[&str]) -> Result<(), String> {
        let (from, to) = link.split_once("->").ok_or("say r0->r1 …")?;
        let (from, to) = (self.replica(from)?, self.replicas(to)?);
        if !self.liars.contains(from) {
            return Err(format!("{from} is no liar"));
        }
        let message = self.made_up(from, words)?;
        if let Message::ViewChange(signed) = &message {
            self.view_changes.insert((from, signed.statement().view), signed.digest());
        }
        for to in to.iter().filter(|to| *to != from) {
            self.send(from, to, message.clone());
        }
        Ok(())
    }

    fn show(&mut self) {
        for core in &self.cores {
            let a = &core.agreement;
            self.trace.push(match core.me {
                r if self.down.contains(r) => format!("{r} is crashed"),
                r if self.liars.contains(r) => format!("{r} lies"),
                r => {
                    let waits = if a.is_pending() { ", waits for the new view" } else { "" };
                    format!("{r} {} h={} executed {}{waits}", a.view(), a.last_stable().0, a.last_executed())
                }
            });
        }
    }

    // ---- what comes of them ---------------------------------------------------------------------------------------

    fn send(&mut self, from: ReplicaId, to: ReplicaId, message: Message) {
        let connected = self.groups.iter().any(|group| group.contains(from) && group.contains(to));
        if connected && !self.down.contains(to) {
            self.flights.push_back(Flight { from, to, message });
        }
    }

    /// Sees to everything that `r` did.
    fn settle(&mut self, r: ReplicaId, cause: &str) -> Result<(), String> {
        let core = &mut self.cores[usize::from(r.0)];
        let effects = std::mem::take(&mut core.effects);
        let lies = self.liars.contains(r);
        let mut said = Vec::new();
        let mut accepted = Vec::new();
        for effect in effects {
            if lies {
                continue;
            }
            observe(&mut self.agreed, r, &effect).map_err(|disagreement| disagreement.to_string())?;
            said.extend(self.effect(r, effect, &mut accepted));
        }
        if lies {
            return Ok(());
        }
        let core = &self.cores[usize::from(r.0)];
        for (peer, state) in core.agreement.peers() {
            for (name, count) in state.misdeeds.iter() {
                let before = self.misdeeds.entry((r, peer, name)).or_default();
                if *before < count {
                    said.push(format!("catches {peer}: {name}"));
                }
                *before = count;
            }
        }
        let at = match self.timed {
            true => format!("{:>5.1} ms  ", self.now.since(START).as_secs_f64() * 1e3),
            false => String::new(),
        };
        if !said.is_empty() {
            let cause = if self.milestones { "" } else { cause };
            self.trace.push(format!("{at}{r}{cause}: {}", said.join("; ")));
        }
        self.trace.extend(accepted.into_iter().map(|line| format!("{at}{line}")));
        Ok(())
    }

    /// Sends, answers, and says what happened.
    fn effect(&mut self, r: ReplicaId, effect: Effect, accepted: &mut Vec<String>) -> Option<String> {
        let view = self.cores[usize::from(r.0)].agreement.view();
        match effect {
            Effect::Sent(to, message) => {
                if let Message::ViewChange(signed) = &message {
                    self.view_changes.insert((r, signed.statement().view), signed.digest());
                }
                let text = self.message(&message);
                let moves = matches!(message, Message::ViewChange(_) | Message::NewView(_)) && to.is_none();
                // What comes again and again while time passes, and receipts, say nothing.
                let idle = match &message {
                    Message::Status(s) => self.timed || !s.wants,
                    message => matches!(message, Message::Answered(_)),
                };
                for receiver in self.cores[usize::from(r.0)].receivers(to) {
                    self.send(r, receiver, message.clone());
                }
                let whom = to.map_or_else(String::new, |to| format!("{to} "));
                (!idle && (moves || !self.milestones)).then(|| format!("sends {whom}{text}"))
            }
            Effect::Executed { n, view, batch, tentative } => {
                let name = self.names.batch_of(&batch);
                let kind = if tentative { Kind::Tentative } else { Kind::Committed };
                for pack in batch.packs() {
                    let at = self.cores[usize::from(r.0)].executed_at(&pack.digest()).unwrap_or(n);
                    accepted.extend(self.reply(r, pack, Reply { view, at, kind }));
                }
                Some(format!("executes {n} {name}{}", if tentative { " tentatively" } else { "" }))
            }
            Effect::Committed(n, _) => Some(format!("commits {n}")),
            Effect::RolledBack(n) => Some(format!("rolls back {n}")),
            Effect::Repeated(pack, at) => {
                accepted.extend(self.reply(r, &pack, Reply { view, at, kind: Kind::Committed }));
                Some(format!("answers {} again", self.names.packs[&pack.digest()]))
            }
            Effect::Answered(pack, at, tentative) => {
                let kind = if tentative { Kind::TentativeRead } else { Kind::Read };
                accepted.extend(self.reply(r, &pack, Reply { view, at, kind }));
                let how = if tentative { " tentatively" } else { "" };
                Some(format!("answers {}{how} from {at}", self.names.packs[&pack.digest()]))
            }
            Effect::Sealed(..) => None,
            Effect::Fetched(n) => Some(format!("fetches the state at {n}")),
            Effect::Stable(n) => Some(format!("{n} is stable")),
            Effect::Noticed(notice) => match notice {
                Notice::ViewChange(view) => Some(format!("leaves for {view}")),
                Notice::NewView(view) => Some(format!("{view} begins")),
                Notice::Equivocation { n } => Some(format!("sees two proposals for {n}")),
                Notice::Transferred { .. } => None,
                other => Some(format!("notes {other:?}")),
            },
        }
    }

    /// A reply reaches its client at once.
    fn reply(&mut self, r: ReplicaId, pack: &Pack, reply: Reply) -> Option<String> {
        let (id, digest) = (pack.client().0 - 1, pack.digest());
        let (quorum, weak) = (self.size.quorum(), self.size.weak_quorum());
        let client = self.clients.entry(id).or_default();
        let replies = client.replies.entry(digest).or_default();
        let older = replies.get(&r).is_some_and(|old| old.kind == Kind::Committed && reply.kind == Kind::Tentative);
        if older {
            return None;
        }
        replies.insert(r, reply);
        let counts = |of: &&Reply| match of.kind {
            Kind::Tentative => of.at == reply.at && of.view == reply.view && reply.kind.is_ordered(),
            Kind::Committed => of.at == reply.at && reply.kind.is_ordered(),
            // Here a read's result is the place that it was answered from.
            Kind::Read if reply.kind == Kind::Read => of.at == reply.at,
            Kind::Read | Kind::TentativeRead => of.at == reply.at && of.view == reply.view && !reply.kind.is_ordered(),
        };
        let mut views: Vec<View> = replies.values().filter(counts).map(|of| of.view).collect();
        if views.len() < quorum || !client.accepted.insert(digest) {
            return None;
        }
        views.sort_by(|a, b| b.cmp(a));
        client.view = client.view.max(views[weak - 1]);
        let (name, view) = (&self.names.packs[&digest], client.view);
        Some(format!("c{id}: accepts {name} at {}, believes {view}", reply.at))
    }

    // ---- text -----------------------------------------------------------------------------------------------------

    fn message(&mut self, message: &Message) -> String {
        let kind = kind(message);
        let names = &mut self.names;
        let vote = |v: &Vote| format!("{kind} {} {} {}", v.view, v.n, names.batch(v.digest));
        match message {
            Message::PrePrepare(p) => {
                let packs: Vec<Digest> = p.packs.iter().map(Proposed::digest).collect();
                format!("{kind} {} {} {}", p.view, p.n, names.learn(p.digest(), &packs))
            }
            Message::Prepare(v) | Message::Commit(v) => vote(v),
            Message::Committed(c) | Message::FetchBatch(c) => format!("{kind} {} {}", c.n, names.batch(c.digest)),
            Message::Batch(n, batch) => format!("{kind} {n} {}", names.batch_of(batch)),
            Message::Checkpoint(c) => format!("{kind} {}{}", c.n, names.root(c.n, c.root)),
            Message::Stable(proof) => proof.first().map_or(kind.to_owned(), |c| format!("{kind} {}", c.n)),
            Message::Relay(pack) => format!("{kind} {}", names.packs[&pack.digest()]),
            Message::FetchPack(digest) => format!("{kind} {}", names.packs[digest]),
            Message::Status(s) => status(s),
            Message::ViewChange(signed) => {
                let v = signed.statement();
                let mut text = format!("{kind} {} of {} h={}", v.view, v.replica, v.stable.0);
                for (set, entries) in [("P", &v.prepared), ("Q", &v.pre_prepared)] {
                    let entry = |e: &Entry| format!("{}={}@{}", e.n, names.batch(e.digest), e.view);
                    let entries: Vec<String> = entries.iter().map(entry).collect();
                    if !entries.is_empty() {
                        text.push_str(&format!(" {set} {}", entries.join(",")));
                    }
                }
                text
            }
            Message::NewView(signed) => {
                let v = signed.statement();
                let members: Vec<String> = v.members.iter().map(|(r, _)| r.to_string()).collect();
                let chosen: Vec<String> = v.chosen.iter().map(|digest| names.batch(*digest)).collect();
                let chosen = if chosen.is_empty() { String::new() } else { format!(" {}", chosen.join(" ")) };
                format!("{kind} {} of {} h={}{chosen}", v.view, members.join(","), v.stable.0)
            }
            Message::FetchViewChange(wanted) => format!("{kind} {} of {}", wanted.view, wanted.replica),
            other => describe::message(other),
        }
    }

    /// A message in the words of the trace.
    fn made_up(&self, from: ReplicaId, words: &[&str]) -> Result<Message, String> {
        let batch = |name: &str| self.batches.get(name).cloned().ok_or(format!("{name} is no batch"));
        let view = |word: &str| number(word.strip_prefix('v').ok_or("a view is v1")?).map(View);
        let place = |word: &str| number(word.strip_prefix('n').ok_or("a place is n1")?).map(SeqNum);
        let low = |word: &str| number(word.strip_prefix("h=").ok_or("h=0")?).map(SeqNum);
        let vote = |v: &str, n: &str, name: &str| -> Result<Vote, String> {
            Ok(Vote { view: view(v)?, n: place(n)?, digest: batch(name)?.digest() })
        };
        match words {
            ["pre-prepare", v, n, name] => {
                let batch = batch(name)?;
                let packs = batch.packs().iter().cloned().map(Proposed::Inline).collect();
                Ok(Message::PrePrepare(PrePrepare { view: view(v)?, n: place(n)?, choice: batch.choice(), packs }))
            }
            ["prepare", v, n, name] => Ok(Message::Prepare(vote(v, n, name)?)),
            ["commit", v, n, name] => Ok(Message::Commit(vote(v, n, name)?)),
            ["committed", n, name] => Ok(Message::Committed(Committed { n: place(n)?, digest: batch(name)?.digest() })),
            ["view-change", v, h, sets @ ..] => {
                let entries = |set: &str| -> Result<Vec<Entry>, String> {
                    let Some(at) = sets.iter().position(|word| *word == set) else { return Ok(Vec::new()) };
                    let entries = sets.get(at + 1).ok_or("P n1=A@v0,…")?.split(',').map(|entry| {
                        let (n, rest) = entry.split_once('=').ok_or("n1=A@v0")?;
                        let (name, v) = rest.split_once('@').ok_or("n1=A@v0")?;
                        Ok(Entry { n: place(n)?, digest: batch(name)?.digest(), view: view(v)? })
                    });
                    let mut entries: Vec<Entry> = entries.collect::<Result<_, String>>()?;
                    entries.sort();
                    Ok(entries)
                };
                let (prepared, pre_prepared) = (entries("P")?, entries("Q")?);
                let (view, stable, proof) = (view(v)?, low(h)?, Vec::new());
                let lie = ViewChange { replica: from, boot: 0, view, stable, proof, prepared, pre_prepared };
                Ok(Message::ViewChange(Arc::new(Signed::new(lie, |_| [0; 64]))))
            }
            ["new-view", v, "of", members, h, chosen @ ..] => {
                let (view, stable) = (view(v)?, low(h)?);
                let member = |r: ReplicaId| {
                    let sent = self.view_changes.get(&(r, view));
                    sent.map(|digest| (r, *digest)).ok_or(format!("{r} has sent no view-change for {view}"))
                };
                let members = self.replicas(members)?.iter().map(member).collect::<Result<_, String>>()?;
                let chosen = chosen.iter().map(|name| Ok(batch(name)?.digest())).collect::<Result<_, String>>()?;
                let lie = NewView { replica: from, boot: 0, view, members, stable, chosen };
                Ok(Message::NewView(Arc::new(Signed::new(lie, |_| [0; 64]))))
            }
            _ => Err("no such message".to_owned()),
        }
    }

    fn replica(&self, word: &str) -> Result<ReplicaId, String> {
        let id = word.strip_prefix('r').and_then(|id| id.parse().ok()).map(ReplicaId);
        id.filter(|id| self.size.contains(*id)).ok_or(format!("{word} is no replica"))
    }

    fn replicas(&self, words: &str) -> Result<ReplicaSet, String> {
        match words {
            "*" => Ok(self.size.replicas().collect()),
            names => names.split(',').map(|name| self.replica(name)).collect(),
        }
    }

    fn pattern(&self, words: &[&str]) -> Result<Pattern, String> {
        let [link, kinds @ ..] = words else { return Err("which links?".to_owned()) };
        let (from, to) = link.split_once("->").ok_or("a link is r0->r1")?;
        let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        Ok(Pattern { from: self.replicas(from)?, to: self.replicas(to)?, kinds })
    }
}

impl Pattern {
    fn matches(&self, flight: &Flight) -> bool {
        let of_kind = self.kinds.is_empty() || self.kinds.iter().any(|k| k == kind(&flight.message));
        self.from.contains(flight.from) && self.to.contains(flight.to) && of_kind
    }
}

impl Names {
    fn batch(&self, digest: Digest) -> String {
        self.batches.get(&digest).cloned().unwrap_or_else(|| format!("{digest:?}"))
    }

    fn batch_of(&mut self, batch: &Batch) -> String {
        let packs: Vec<Digest> = batch.packs().iter().map(Pack::digest).collect();
        self.learn(batch.digest(), &packs)
    }

    fn learn(&mut self, digest: Digest, packs: &[Digest]) -> String {
        if !self.batches.contains_key(&digest) {
            let packs: Vec<&str> = packs.iter().map(|pack| self.packs[pack].as_str()).collect();
            let mut name = format!("[{}]", packs.join(" "));
            while self.batches.values().any(|taken| *taken == name) {
                name.push('\'');
            }
            self.batches.insert(digest, name);
        }
        self.batch(digest)
    }

    /// A `'` for each other state that there is at `n`.
    fn root(&mut self, n: SeqNum, root: Digest) -> String {
        let roots = self.roots.entry(n).or_default();
        let at = roots.iter().position(|known| *known == root).unwrap_or_else(|| {
            roots.push(root);
            roots.len() - 1
        });
        "'".repeat(at)
    }
}

fn status(s: &Status) -> String {
    let mut text = format!("status {} h={} executed {}", s.view, s.stable.0, s.executed);
    for (_, what) in [(s.wants, ", wants"), (s.pending, ", waits for the new view")].iter().filter(|(is, _)| *is) {
        text.push_str(what);
    }
    text
}

fn kind(message: &Message) -> &'static str {
    match message {
        Message::PrePrepare(_) => "pre-prepare",
        Message::Prepare(_) => "prepare",
        Message::Commit(_) => "commit",
        Message::Committed(_) => "committed",
        Message::Checkpoint(_) => "checkpoint",
        Message::Stable(_) => "stable",
        Message::Status(_) => "status",
        Message::FetchBatch(_) => "fetch-batch",
        Message::Batch(..) => "batch",
        Message::FetchPack(_) => "fetch-pack",
        Message::Relay(_) => "relay",
        Message::Answered(_) => "answered",
        Message::ViewChange(_) => "view-change",
        Message::NewView(_) => "new-view",
        Message::FetchViewChange(_) => "fetch-view-change",
        Message::QueryStable(_) => "query-stable",
        Message::StableAnswer(_) => "stable-answer",
        _ => "other",
    }
}

fn number(word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("{word} is no number"))
}

fn duration(word: &str) -> Result<Duration, String> {
    let micros = word.strip_suffix("us").map(number);
    let millis = word.strip_suffix("ms").map(|ms| number(ms).map(|ms| ms * 1_000));
    micros.or(millis).unwrap_or(Err(format!("{word} is neither …ms nor …us"))).map(Duration::from_micros)
}
