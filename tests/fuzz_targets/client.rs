//! A client endpoint whose replicas all lie, with real keys: it must not panic, and what it accepts must be what a
//! quorum of them said (P5).

use std::time::Duration;

use bytes::Bytes;
use castra::auth::{FreshKey, Keyring, Opened, Principal};
use castra::client::{Endpoint, EndpointConfig, Session};
use castra::transport::{Datagram, Machine, Outgoing, Peer};
use castra::types::{Digest, Position, ReplicaId, SessionId, Time, View};
use castra::wire::{FrameBuffer, Outcome, Refusal, ReplyEntry, ReplyKind, ReplyResult, Request};

use super::hostile::{Recent, Record, keys, size};

const EPOCH: Time = Time(1_700_000_000_000_000_000);

/// What a request that the endpoint sent is known by.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Asked {
    session: SessionId,
    t: u64,
}

struct Show {
    now: Time,
    endpoint: Endpoint,
    liars: Vec<Keyring>,
    boots: Vec<u64>,
    sessions: Vec<Session>,
    asked: Recent<Asked>,
    inbox: Vec<Datagram>,
}

pub fn run(data: &[u8]) {
    let config = EndpointConfig {
        first_counter: 100,
        sessions_max: 4,
        queries_max: 8,
        request_timeout: Duration::from_secs(3),
        held_bytes_max: castra::limits::OPERATION_MAX,
        evidence: true,
        ..EndpointConfig::default()
    };
    let mut show = Show {
        now: EPOCH,
        endpoint: Endpoint::new(config, keys().clients[0].clone(), 1),
        liars: keys().replicas.clone(),
        boots: vec![0; size().n()],
        sessions: Vec::new(),
        asked: Recent::default(),
        inbox: Vec::new(),
    };
    for record in data.chunks(Record::BYTES).take(128) {
        show.play(&mut Record::new(record));
    }
}

impl Show {
    fn play(&mut self, record: &mut Record<'_>) {
        match record.byte() % 12 {
            0 => self.sessions.extend(self.endpoint.open_session(1 + u64::from(record.byte() % 6))),
            1 | 2 => {
                let op = Bytes::from(vec![record.byte(); usize::from(record.byte())]);
                if let Some(session) = self.sessions.get(usize::from(record.byte()) % self.sessions.len().max(1)) {
                    let _ = self.endpoint.submit(*session, op);
                }
            }
            3 => {
                let _ = self.endpoint.query(Bytes::from(vec![record.byte(); 9]));
            }
            4 => {
                if let Some(session) = self.sessions.get(usize::from(record.byte()) % self.sessions.len().max(1)) {
                    self.endpoint.close_session(*session);
                }
            }
            5 | 6 => {
                let ms = [0, 1, 30, 70, 200, 600, 3_500, 2_000_000][usize::from(record.byte() % 8)];
                self.now = self.now + Duration::from_millis(ms);
            }
            7 => self.restart(record),
            _ => self.reply(record),
        }
        self.turn();
    }

    /// Some liars answer something that was asked, or was not.
    fn reply(&mut self, record: &mut Record<'_>) {
        let mask = record.byte();
        let view = View(u64::from(record.byte() % 16));
        let mut replies = Vec::new();
        for _ in 0..1 + record.byte() % 3 {
            let asked = self.asked.back(record.byte()).copied();
            let asked = asked.unwrap_or(Asked { session: SessionId::NONE, t: u64::from(record.byte()) });
            let kind = [ReplyKind::ReadOnly, ReplyKind::Tentative, ReplyKind::Committed];
            let number = u64::from(record.byte());
            let number = if record.chance(16) { u64::MAX - number } else { number };
            let outcome = match record.byte() % 12 {
                0 => Outcome::Gone,
                1 => Outcome::NoSession,
                2 => Outcome::Refused(Refusal::Counter { last: number }),
                3 => Outcome::Refused(Refusal::Quota { sessions_max: number }),
                4 => Outcome::Refused(Refusal::Window { window_max: number }),
                5 => Outcome::Refused(Refusal::Full { sessions_max: number }),
                6 => Outcome::Done(Bytes::from(vec![number as u8; 700])),
                7 => Outcome::Done(Bytes::new()),
                _ => Outcome::Done(Bytes::from(vec![number as u8 % 2; 8])),
            };
            let result = match record.byte() {
                0..=159 => ReplyResult::Full(outcome),
                160..=239 => ReplyResult::Digest(outcome.digest()),
                b => ReplyResult::Digest(Digest([b; 32])),
            };
            replies.push(ReplyEntry {
                session: asked.session,
                t: asked.t,
                kind: kind[usize::from(record.byte()) % 3],
                position: Position(number << 20),
                result,
            });
        }
        let mut buffer = FrameBuffer::default();
        assert!(buffer.push_replies(view, &replies));
        let frames = buffer.take();
        for (i, liar) in self.liars.iter().enumerate() {
            if mask >> i & 1 == 0
                && let Some(head) = liar.seal(keys().clients[0].me(), &[(&frames, 0..1)])
            {
                let bytes = Bytes::from([head.as_slice(), frames.bytes()].concat());
                self.inbox.push(Datagram { from: Peer::Replica(ReplicaId(i as u8)), bytes });
            }
        }
    }

    fn restart(&mut self, record: &mut Record<'_>) {
        let i = usize::from(record.byte()) % self.liars.len();
        self.boots[i] += u64::from(record.byte() % 3);
        let fresh = FreshKey::at_boot(self.boots[i], [7; 32]);
        self.liars[i].begin(&fresh).expect("the keys are those of the cluster");
        let (head, body) = self.liars[i].seal_new_key(keys().clients[0].me()).expect("it has a key of its own");
        let bytes = Bytes::from([head.as_slice(), &body].concat());
        self.inbox.push(Datagram { from: Peer::Replica(ReplicaId(i as u8)), bytes });
    }

    fn turn(&mut self) {
        for turn in 0.. {
            assert!(turn < 10_000, "an endpoint that never comes to rest (P44)");
            let mut outbox = Vec::new();
            self.endpoint.turn(self.now, &mut self.inbox, &mut outbox);
            outbox.iter().for_each(|outgoing| self.hear(outgoing));
            while let Some(completion) = self.endpoint.poll_completion() {
                if completion.result.is_ok() {
                    assert!(completion.members.len() >= size().quorum(), "P5: {completion:?}");
                }
            }
            if self.endpoint.deadline() > self.now {
                return;
            }
        }
    }

    /// The liars hear what is asked, and so have the endpoint's keys.
    fn hear(&mut self, outgoing: &Outgoing) {
        let Peer::Replica(to) = outgoing.to else { return };
        let Ok(Opened::Pack { pack, .. }) = self.liars[usize::from(to.0)].open(&outgoing.to_bytes()) else { return };
        assert_eq!(keys().clients[0].me(), Principal::Client(pack.client(), pack.endpoint()));
        for Request { session, t, .. } in pack.requests() {
            self.asked.push(Asked { session, t });
        }
    }
}
