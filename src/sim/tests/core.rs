//! An agreement core with just enough around it to run: an execution role of a few lines, a disk that takes its time,
//! and no keys. What comes of an event is a list of effects, in order.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::{Principal, Verified};
use crate::protocol::{Action, Agreement, Config, Event, Notice, PersistToken};
use crate::sim::agreement::{Agreement as Agreed, Disagreement};
use crate::types::{
    ClientId, ClusterSize, Digest, Domain, EndpointId, Executed, ReplicaId, SeqNum, SessionId, Time, View,
};
use crate::wire::{
    Batch, Claim, Message, NewView, Pack, PackBuilder, Proof, Request, RequestKind, Signed, SignedCheckpoint,
    ViewChange,
};

/// What an event came to.
#[derive(Clone, Debug)]
pub enum Effect {
    /// A message to one replica, or to all others.
    Sent(Option<ReplicaId>, Message),
    /// A batch was executed, and its clients answered.
    Executed { n: SeqNum, view: View, batch: Arc<Batch>, tentative: bool },
    /// The tentative batch is committed.
    Committed(SeqNum, Digest),
    /// The tentative batch is undone.
    RolledBack(SeqNum),
    /// A pack came again that was executed at this place: its client is answered from the cache.
    Repeated(Pack, SeqNum),
    /// A read-only pack is answered from the state after this place, which is tentative or not (P18).
    Answered(Pack, SeqNum, bool),
    /// The root of the state at a checkpoint that was reached by execution.
    Sealed(SeqNum, Digest),
    /// The state at a checkpoint came from others.
    Fetched(SeqNum),
    /// A checkpoint is stable.
    Stable(SeqNum),
    /// For the operator.
    Noticed(Notice),
}

/// What any core had executed at each root: what a transfer brings.
#[derive(Clone, Default)]
pub struct States(Rc<RefCell<BTreeMap<Digest, BTreeMap<Digest, SeqNum>>>>);

/// The core of one replica.
pub struct Core {
    pub me: ReplicaId,
    size: ClusterSize,
    k: u64,
    pub agreement: Agreement,
    /// Packs executed, and the chain over all batches: before the tentative one.
    executed: BTreeMap<Digest, SeqNum>,
    root: Digest,
    last: SeqNum,
    tentative: Option<(SeqNum, Arc<Batch>)>,
    queries: Vec<(Pack, SeqNum)>,
    states: States,
    disk: Duration,
    writes: Vec<(Time, PersistToken)>,
    pub effects: Vec<Effect>,
}

fn claim(claim: Claim) -> Event {
    Event::Claim(Verified::assume(Principal::Replica(claim.signer()), claim))
}

impl Core {
    /// A core that starts at `now`; `disk` is how long it takes to make something durable.
    pub fn new(config: Config, now: Time, disk: Duration, states: &States) -> Core {
        Core {
            me: config.me,
            size: config.size,
            k: config.checkpoint_interval,
            agreement: Agreement::new(config, now).unwrap(),
            executed: BTreeMap::new(),
            root: Digest::default(),
            last: SeqNum(0),
            tentative: None,
            queries: Vec::new(),
            states: states.clone(),
            disk,
            writes: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// Who `to` is for this core.
    pub fn receivers(&self, to: Option<ReplicaId>) -> Vec<ReplicaId> {
        to.map_or_else(|| self.size.others(self.me).collect(), |to| vec![to])
    }

    /// Where a pack was executed first.
    pub fn executed_at(&self, pack: &Digest) -> Option<SeqNum> {
        self.executed.get(pack).copied()
    }

    /// A pack of a client, authentic.
    pub fn on_pack(&mut self, now: Time, pack: Pack, signed: bool) {
        if let Some(&n) = self.executed.get(&pack.digest()) {
            self.effects.push(Effect::Repeated(pack, n));
            return;
        }
        let read_only = pack.is_read_only();
        let pack = Verified::assume(Principal::Client(pack.client(), pack.endpoint()), pack);
        self.handle(now, if read_only { Event::Query(pack) } else { Event::Request { pack, signed } });
    }

    /// A message of another replica, authentic; its signatures are good.
    pub fn on_message(&mut self, now: Time, from: ReplicaId, message: Message) {
        let events = match message {
            Message::Checkpoint(c) => vec![claim(Claim::Checkpoint(c))],
            Message::ViewChange(signed) => vec![claim(Claim::ViewChange(signed))],
            Message::NewView(signed) => vec![claim(Claim::NewView(signed))],
            Message::Stable(proof) => vec![claim(Claim::Stable(proof))],
            Message::Relay(pack) if self.executed.contains_key(&pack.digest()) => vec![],
            Message::Relay(pack) => {
                let pack = Verified::assume(Principal::Client(pack.client(), pack.endpoint()), pack);
                vec![Event::Request { pack, signed: true }]
            }
            Message::PrePrepare(p) => {
                let message = Message::PrePrepare(p);
                vec![Event::PrePrepare(Verified::assume(Principal::Replica(from), message), Vec::new())]
            }
            Message::StableAnswer(answer) => {
                vec![Event::Claim(Verified::assume(Principal::Replica(from), Claim::StableAnswer(from, answer)))]
            }
            message => vec![Event::Message(Verified::assume(Principal::Replica(from), message))],
        };
        for event in events {
            self.handle(now, event);
        }
    }

    /// When something is due.
    pub fn deadline(&self) -> Time {
        let disk = self.writes.iter().map(|(at, _)| *at).min().unwrap_or(Time::NEVER);
        self.agreement.poll_timeout().min(disk)
    }

    /// Does what is due.
    pub fn on_timeout(&mut self, now: Time) {
        let (done, rest) = self.writes.iter().partition(|(at, _)| *at <= now);
        self.writes = rest;
        for (_, token) in done {
            self.handle(now, Event::Persisted(token));
        }
        if self.agreement.poll_timeout() <= now {
            self.agreement.handle_timeout(now);
            self.pump(now);
        }
    }

    fn handle(&mut self, now: Time, event: Event) {
        self.agreement.handle(now, event);
        self.pump(now);
    }

    fn pump(&mut self, now: Time) {
        while let Some(action) = self.agreement.poll_action() {
            match action {
                Action::Send(to, message) => self.effects.push(Effect::Sent(Some(to), message)),
                Action::Broadcast(message) => self.effects.push(Effect::Sent(None, message)),
                Action::Execute { n, batch, tentative, view } => {
                    assert!(self.tentative.is_none(), "P16: one tentative batch");
                    self.effects.push(Effect::Executed { n, view, batch: batch.clone(), tentative });
                    match tentative {
                        true => self.tentative = Some((n, batch)),
                        false => self.commit(now, n, &batch),
                    }
                    self.agreement.handle(now, Event::Executed(Executed { n, requests: 1, result_bytes: 0 }));
                }
                Action::Commit(n) => {
                    let (at, batch) = self.tentative.take().expect("P16: it was executed tentatively");
                    assert_eq!(at, n);
                    self.effects.push(Effect::Committed(n, batch.digest()));
                    self.commit(now, n, &batch);
                }
                Action::Rollback(n) => {
                    assert_eq!(self.tentative.take().map(|(at, _)| at), Some(n));
                    self.effects.push(Effect::RolledBack(n));
                }
                // It comes at once, whole: how it is fetched is not the agreement core's.
                Action::Transfer { n, root, .. } => {
                    let states = self.states.0.clone();
                    self.executed = states.borrow().get(&root).cloned().expect("q replicas sealed it");
                    (self.root, self.last) = (root, n);
                    self.effects.push(Effect::Fetched(n));
                    self.answer_queries();
                    self.agreement.handle(now, Event::Transferred(n));
                }
                Action::SignViewChange(v) => {
                    let signed = Signed::new(ViewChange { replica: self.me, ..v }, |_| [0; 64]);
                    self.agreement.handle(now, claim(Claim::ViewChange(Arc::new(signed))));
                }
                Action::SignNewView(v) => {
                    let signed = Signed::new(NewView { replica: self.me, ..v }, |_| [0; 64]);
                    self.agreement.handle(now, claim(Claim::NewView(Arc::new(signed))));
                }
                Action::Recheck(pack) => {
                    let event = match self.executed.contains_key(&pack.digest()) {
                        true => Event::Settled(pack.digest()),
                        false => Event::Request { pack, signed: true },
                    };
                    self.agreement.handle(now, event);
                }
                Action::Query { pack, after, tentative: true } => {
                    assert!(
                        self.tentative.as_ref().is_some_and(|(n, _)| *n == after),
                        "P18: that is the tentative state"
                    );
                    self.effects.push(Effect::Answered(pack, after, true));
                }
                Action::Query { pack, after, tentative: false } => {
                    self.queries.push((pack, after));
                    self.answer_queries();
                }
                Action::Stable { n, .. } => self.effects.push(Effect::Stable(n)),
                Action::Notice(notice) => self.effects.push(Effect::Noticed(notice)),
                Action::Compare { .. } => {}
                Action::Persist(token, _) if self.disk.is_zero() => {
                    self.agreement.handle(now, Event::Persisted(token));
                }
                Action::Persist(token, _) => self.writes.push((now + self.disk, token)),
            }
        }
    }

    /// P18: on the first committed state that includes what they wait for.
    fn answer_queries(&mut self) {
        let last = self.last;
        for (pack, _) in self.queries.extract_if(.., |(_, after)| *after <= last) {
            self.effects.push(Effect::Answered(pack, last, false));
        }
    }

    fn commit(&mut self, now: Time, n: SeqNum, batch: &Batch) {
        self.last = n;
        for pack in batch.packs() {
            self.executed.entry(pack.digest()).or_insert(n);
        }
        self.root = Digest::of(Domain::State, &[&self.root.0, &batch.digest().0]);
        self.answer_queries();
        if n.0.is_multiple_of(self.k) {
            self.states.0.borrow_mut().entry(self.root).or_insert_with(|| self.executed.clone());
            let c = SignedCheckpoint { n, root: self.root, replica: self.me, boot: 0, signature: [0; 64] };
            self.effects.push(Effect::Sealed(n, self.root));
            self.agreement.handle(now, claim(Claim::Checkpoint(c)));
        }
    }
}

/// Tells the checker what `replica` did.
pub fn observe(agreed: &mut Agreed, replica: ReplicaId, effect: &Effect) -> Result<(), Box<Disagreement>> {
    match effect {
        Effect::Executed { n, batch, tentative: false, .. } => agreed.committed(replica, *n, batch.digest()),
        Effect::Committed(n, digest) => agreed.committed(replica, *n, *digest),
        Effect::Sealed(n, root) => agreed.checkpoint(replica, *n, *root),
        Effect::Fetched(n) => {
            agreed.fetched(replica, *n);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A pack of one request, of about `bytes` bytes.
pub fn pack(client: u64, t: u64, kind: RequestKind, bytes: usize) -> Pack {
    let op = vec![t as u8; bytes];
    let session = if kind == RequestKind::ReadOnly { SessionId::NONE } else { SessionId(client) };
    let request = Request { session, t, low: 0, kind, op: &op };
    let mut builder = PackBuilder::new(ClientId(client), EndpointId(client));
    builder.push(&request);
    builder.finish(false, |_, writer| writer.write(Proof::Vector(&[[0; 8]; 4])))
}
