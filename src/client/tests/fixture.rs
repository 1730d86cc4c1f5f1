//! Replicas that only hear and say what a test tells them, with real keys and real bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::auth::{AuthMode, Clients, ClusterKeys, FreshKey, Identity, Keyring, Opened, Principal, Rights};
use crate::client::{Completion, Endpoint, EndpointConfig, RequestError, Session};
use crate::transport::{Datagram, Machine, Outgoing, Peer};
use crate::types::{Digest, EndpointId, Position, ReplicaId, SeqNum, SessionId, Time, View};
use crate::wire::fragment::{Assembled, ReassemblyLimits};
use crate::wire::header::Parts;
use crate::wire::pack::Pack;
use crate::wire::{
    FrameBuffer, Header, Outcome, Reassembler, Receipt, ReplyEntry, ReplyKind, ReplyResult, RequestKind,
};

pub(super) const READ_ONLY: ReplyKind = ReplyKind::ReadOnly;
pub(super) const TENTATIVE: ReplyKind = ReplyKind::Tentative;
pub(super) const COMMITTED: ReplyKind = ReplyKind::Committed;

/// The session that [`Stage::open`] opens.
pub(super) const SESSION: SessionId = SessionId(77);

/// A request as a replica read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Asked {
    pub(super) session: SessionId,
    pub(super) t: u64,
    pub(super) low: u64,
    pub(super) kind: RequestKind,
    pub(super) op: Vec<u8>,
}

/// A pack as a replica received it.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) to: u8,
    pub(super) signed: bool,
    pub(super) full: bool,
    pub(super) bytes: usize,
    pub(super) asked: Vec<Asked>,
}

pub(super) struct Stage {
    pub(super) endpoint: Endpoint,
    pub(super) now: Time,
    me: Principal,
    replicas: Vec<Keyring>,
    keys: Arc<ClusterKeys>,
    reassembly: Vec<Reassembler>,
    inbox: Vec<Datagram>,
    messages: u64,
    /// Datagrams that left in the last turn, and which of them are lost.
    pub(super) sent: Vec<Outgoing>,
    pub(super) lose: Box<dyn FnMut(&Outgoing) -> bool>,
}

pub(super) fn config() -> EndpointConfig {
    EndpointConfig { first_counter: 1_000, evidence: true, ..EndpointConfig::default() }
}

fn identity(replica: u8) -> Identity {
    Identity::from_seed([replica + 1; 32])
}

fn replica(id: u8, keys: &Arc<ClusterKeys>) -> Keyring {
    Keyring::replica(ReplicaId(id), &identity(id), keys.clone(), AuthMode::Mac).unwrap()
}

impl Stage {
    pub(super) fn new(config: EndpointConfig) -> Stage {
        Stage::of(4, config)
    }

    pub(super) fn of(n: u8, config: EndpointConfig) -> Stage {
        let client = Identity::from_seed([99; 32]);
        let keys = Arc::new(ClusterKeys {
            cluster: Digest([5; 32]),
            instance: 1,
            replicas: (0..n).map(|i| identity(i).public()).collect(),
            clients: Clients::listed([(client.public(), Rights::READ_WRITE)]),
        });
        let keyring = Keyring::client(&client, EndpointId(31), keys.clone(), AuthMode::Mac).unwrap();
        Stage {
            me: keyring.me(),
            endpoint: Endpoint::new(config, keyring, 1),
            now: Time(1_000_000_000),
            replicas: (0..n).map(|i| replica(i, &keys)).collect(),
            keys,
            reassembly: (0..n).map(|_| Reassembler::new(ReassemblyLimits::default())).collect(),
            inbox: Vec::new(),
            messages: 0,
            sent: Vec::new(),
            lose: Box::new(|_| false),
        }
    }

    /// One turn; what the replicas heard.
    pub(super) fn turn(&mut self) -> Vec<Heard> {
        self.sent.clear();
        self.endpoint.turn(self.now, &mut self.inbox, &mut self.sent);
        let mut heard = Vec::new();
        for out in self.sent.clone() {
            if (self.lose)(&out) {
                continue;
            }
            let Peer::Replica(to) = out.to else { panic!("clients speak to replicas") };
            let opened = self.replicas[usize::from(to.0)].open(&out.to_bytes()).unwrap();
            self.hear(to, opened, &mut heard);
        }
        heard
    }

    fn hear(&mut self, to: ReplicaId, opened: Opened, heard: &mut Vec<Heard>) {
        match opened {
            Opened::Pack { pack, hop } => {
                assert!(hop);
                heard.push(self.read(to, pack));
            }
            Opened::Fragment { header, piece, .. } => {
                let reassembler = &mut self.reassembly[usize::from(to.0)];
                if let Assembled::Complete(whole) = reassembler.insert(self.now, 31, header, &piece, &mut 0).unwrap() {
                    let opened = self.replicas[usize::from(to.0)].open(&whole).unwrap();
                    self.hear(to, opened, heard);
                }
            }
            Opened::Envelope(_) | Opened::Replies(_) | Opened::NewKey { .. } | Opened::Receipt { .. } => {
                panic!("clients send packs")
            }
        }
    }

    fn read(&mut self, to: ReplicaId, pack: Pack) -> Heard {
        let pack = self.replicas[usize::from(to.0)].verify_pack(pack).unwrap().into_inner();
        let asked =
            pack.requests().map(|r| Asked { session: r.session, t: r.t, low: r.low, kind: r.kind, op: r.op.to_vec() });
        let (signed, full, bytes) = (pack.is_signed(), pack.wants_full(), pack.encoded().len());
        Heard { to: to.0, signed, full, bytes, asked: asked.collect() }
    }

    /// Turns through `time`, whenever a timer is due; what the replicas heard, with the time since the start.
    pub(super) fn pass(&mut self, time: Duration) -> Vec<(Duration, Heard)> {
        let (start, end) = (self.now, self.now + time);
        let mut heard = Vec::new();
        loop {
            let next = self.endpoint.deadline().max(self.now);
            if next > end {
                self.now = end;
                return heard;
            }
            self.now = next;
            let at = self.now.since(start);
            heard.extend(self.turn().into_iter().map(|h| (at, h)));
        }
    }

    /// Replica `from` says `entries` in `view`; they arrive with the next turn.
    pub(super) fn say(&mut self, from: u8, view: u64, entries: &[ReplyEntry]) {
        let mut buffer = FrameBuffer::default();
        assert!(buffer.push_replies(View(view), entries));
        let frames = buffer.take();
        let keyring = &self.replicas[usize::from(from)];
        let head = keyring.seal(self.me, &[(&frames, 0..frames.len())]).expect("the replica has heard the client");
        let body = frames.slice(0..frames.len());
        let peer = Peer::Replica(ReplicaId(from));
        if head.as_slice().len() + body.len() <= 1_452 {
            let bytes = [head.as_slice(), &body].concat().into();
            self.inbox.push(Datagram { from: peer, bytes });
            return;
        }
        self.messages += 1;
        let inbox = &mut self.inbox;
        keyring.fragment(self.messages, 1_452, &[(self.me, head)], &body, |_, head, body| {
            inbox.push(Datagram { from: peer, bytes: [head.as_slice(), &body].concat().into() });
        });
    }

    /// Replica `from` says what it has of a large message; it arrives with the next turn.
    pub(super) fn receipt(&mut self, from: u8, receipt: &Receipt) {
        let keyring = &self.replicas[usize::from(from)];
        let (head, body) = keyring.seal_receipt(self.me, receipt).expect("the replica has heard the client");
        let bytes = [head.as_slice(), &body].concat().into();
        self.inbox.push(Datagram { from: Peer::Replica(ReplicaId(from)), bytes });
    }

    /// The pieces of large messages that left in the last turn: to whom, of which message, which, of how many.
    pub(super) fn pieces(&self) -> Vec<(u8, u64, usize, usize)> {
        let piece = |out: &Outgoing| {
            let bytes = out.to_bytes();
            let header = Header::parse(&bytes).unwrap();
            let Peer::Replica(to) = out.to else { panic!("clients speak to replicas") };
            let fragment = Parts::split(header, &bytes).unwrap().fragment?;
            Some((to.0, fragment.message, usize::from(fragment.index), usize::from(fragment.count)))
        };
        self.sent.iter().filter_map(piece).collect()
    }

    /// Replica `id` starts again, and says so with the next turn.
    pub(super) fn restart(&mut self, id: u8, boot: u64) {
        let mut ring = replica(id, &self.keys);
        ring.begin(&FreshKey::at_boot(boot, [boot as u8; 32])).unwrap();
        let (head, body) = ring.seal_new_key(self.me).unwrap();
        self.replicas[usize::from(id)] = ring;
        let bytes = [head.as_slice(), &body].concat().into();
        self.inbox.push(Datagram { from: Peer::Replica(ReplicaId(id)), bytes });
    }

    /// Bytes from nowhere, with the next turn.
    pub(super) fn inject(&mut self, bytes: Bytes) {
        self.inbox.push(Datagram { from: Peer::Replica(ReplicaId(0)), bytes });
    }

    /// What waits to arrive with the next turn.
    pub(super) fn arriving(&mut self) -> &mut Vec<Datagram> {
        &mut self.inbox
    }

    /// A session that is open as [`SESSION`]. Every replica has heard the client then.
    pub(super) fn open(&mut self, window: u64) -> Session {
        let session = self.endpoint.open_session(window).unwrap();
        let heard = self.turn();
        self.grant(&heard, SESSION);
        self.turn();
        assert_eq!(self.endpoint.session_id(session), Some(SESSION));
        session
    }

    /// Replicas 0 to 2 answer the one open in `heard` with `id`.
    pub(super) fn grant(&mut self, heard: &[Heard], id: SessionId) {
        self.answer_open(heard, Outcome::Done(id.0.to_le_bytes().to_vec().into()));
    }

    pub(super) fn answer_open(&mut self, heard: &[Heard], outcome: Outcome) {
        let open = heard.iter().flat_map(|h| &h.asked).find(|a| a.kind == RequestKind::Open).expect("an open").clone();
        for from in 0..3 {
            let result = ReplyResult::Full(outcome.clone());
            self.say(from, 0, &[entry(SessionId::NONE, open.t, COMMITTED, 1, result)]);
        }
    }

    pub(super) fn completion(&mut self) -> Option<Completion> {
        self.endpoint.poll_completion()
    }

    /// One turn, then the result of the one request that it completed.
    pub(super) fn result(&mut self) -> Result<Bytes, RequestError> {
        self.turn();
        self.completion().expect("a completion").result
    }

    /// One turn that completes nothing.
    pub(super) fn nothing(&mut self) {
        self.turn();
        assert!(self.completion().is_none());
    }
}

pub(super) fn entry(session: SessionId, t: u64, kind: ReplyKind, n: u64, result: ReplyResult) -> ReplyEntry {
    ReplyEntry { session, t, kind, position: Position::new(SeqNum(n), 0), result }
}

/// A full reply in [`SESSION`] at batch 5.
pub(super) fn full(t: u64, kind: ReplyKind, result: &[u8]) -> ReplyEntry {
    entry(SESSION, t, kind, 5, done(result))
}

/// A digest reply in [`SESSION`] at batch 5.
pub(super) fn digest(t: u64, kind: ReplyKind, result: &[u8]) -> ReplyEntry {
    entry(SESSION, t, kind, 5, ReplyResult::Digest(done(result).digest()))
}

/// A reply to query `t`, answered at batch `n`.
pub(super) fn read(t: u64, n: u64, result: &[u8]) -> ReplyEntry {
    entry(SessionId::NONE, t, READ_ONLY, n, done(result))
}

pub(super) fn done(result: &[u8]) -> ReplyResult {
    ReplyResult::Full(Outcome::Done(Bytes::copy_from_slice(result)))
}

/// Who heard something.
pub(super) fn receivers(heard: &[Heard]) -> Vec<u8> {
    let mut to: Vec<u8> = heard.iter().map(|h| h.to).collect();
    to.sort_unstable();
    to.dedup();
    to
}

/// Everything asked of replica `to`, by number.
pub(super) fn asked_of(heard: &[Heard], to: u8) -> BTreeMap<(SessionId, u64), Asked> {
    let asked = heard.iter().filter(|h| h.to == to).flat_map(|h| h.asked.clone());
    asked.map(|a| ((a.session, a.t), a)).collect()
}
