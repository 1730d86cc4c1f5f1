//! The executor against a simple model of exactly-once execution (P4, P9, P16, P17, P19), on random batches with
//! duplicates, stale requests, foreign requests and any order, some of them executed tentatively and rolled back.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::wire::Refusal;

/// What a client asks. Sessions are named by the order in which they were opened.
#[derive(Clone, Debug)]
enum Ask {
    Open { client: u64, counter: u64, window: u64 },
    Close { client: u64, session: usize, t: u64 },
    Ordered { client: u64, session: usize, t: u64, low: u64, size: Option<usize> },
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Executed,
    Committed,
    RolledBack,
    /// Rolled back, then executed after all.
    Retried,
}

#[derive(Clone, Debug, Default)]
struct Model {
    sessions: BTreeMap<SessionId, MSession>,
    /// Every session ever opened.
    opened: Vec<SessionId>,
    last: BTreeMap<ClientId, u64>,
    time: u64,
    count: u64,
    /// Bytes of large results so far.
    large: u64,
}

#[derive(Clone, Debug)]
struct MSession {
    client: ClientId,
    counter: u64,
    window: u64,
    low: u64,
    used: u64,
    /// Position, result, and for large ones where they begin among all large results.
    replies: BTreeMap<u64, (Position, Bytes, Option<u64>)>,
}

/// What is said, and whether it may be *gone* instead.
type Said = Option<(Position, Outcome, bool)>;

/// Whether replies are what the model says.
fn right(replies: &[(u64, Position, Outcome)], expected: &[(u64, Position, Outcome, bool)]) -> bool {
    replies.len() == expected.len()
        && replies.iter().zip(expected).all(|((t, at, outcome), (other_t, other_at, other, may_be_gone))| {
            (t, at) == (other_t, other_at) && (outcome == other || *may_be_gone && *outcome == Outcome::Gone)
        })
}

impl Model {
    fn session(&self, index: usize) -> SessionId {
        let unknown = SessionId(7);
        if self.opened.is_empty() { unknown } else { self.opened[index % self.opened.len()] }
    }

    fn pack(&self, ask: &Ask) -> Pack {
        match ask {
            Ask::Open { client, counter, window } => open(ClientId(*client), *counter, *window),
            Ask::Close { client, session, t } => close(ClientId(*client), self.session(*session), *t),
            Ask::Ordered { client, session, t, low, size } => {
                let op = size.map_or(b"+".to_vec(), big);
                let (session, low) = (self.session(*session), *low.min(t));
                pack_of(ClientId(*client), &[request(session, *t, low, RequestKind::Ordered, &op)])
            }
        }
    }

    fn execute(&mut self, request: &Request<'_>, client: ClientId, at: Position, config: &ExecutorConfig) -> Said {
        match request.kind {
            RequestKind::ReadOnly => None,
            RequestKind::Open => {
                let (at, outcome) = self.open(request, client, at, config);
                Some((at, outcome, false))
            }
            RequestKind::Ordered | RequestKind::Close => self.in_session(request, client, at, config),
        }
    }

    fn in_session(&mut self, request: &Request<'_>, client: ClientId, at: Position, config: &ExecutorConfig) -> Said {
        let Some(session) = self.sessions.get_mut(&request.session) else {
            return Some((at, Outcome::NoSession, false));
        };
        let l = session.low.max(request.low);
        if session.client != client || request.t < l || request.t >= l + session.window {
            return None;
        }
        if let Some((position, result, start)) = session.replies.get(&request.t) {
            let may_be_gone = start.is_some_and(|start| self.large - start > config.reply_store as u64);
            return Some((*position, Outcome::Done(result.clone()), may_be_gone));
        }
        if request.kind == RequestKind::Close {
            self.sessions.remove(&request.session);
            return Some((at, Outcome::Done(Bytes::new()), false));
        }
        self.count += 1;
        let result = match request.op {
            [b'b', size @ ..] => vec![self.count as u8; u32::from_le_bytes(size.try_into().unwrap()) as usize].into(),
            _ => Bytes::copy_from_slice(&self.count.to_le_bytes()),
        };
        let start = (result.len() > crate::limits::SMALL_RESULT_MAX).then_some(self.large);
        self.large += start.map_or(0, |_| result.len() as u64);
        (session.low, session.used) = (l, self.time);
        session.replies.insert(request.t, (at, result.clone(), start));
        Some((at, Outcome::Done(result), false))
    }

    fn evict(&mut self, id: SessionId) -> Option<Refusal> {
        self.sessions.remove(&id);
        None
    }

    fn open(
        &mut self,
        request: &Request<'_>,
        client: ClientId,
        at: Position,
        config: &ExecutorConfig,
    ) -> (Position, Outcome) {
        let (counter, window) = request.open().unwrap();
        let done = |id: SessionId, window: u64| {
            (Position(id.0), Outcome::Done([id.0.to_le_bytes(), window.to_le_bytes()].concat().into()))
        };
        let mine = |(id, s): (&SessionId, &MSession)| (s.client == client).then_some((*id, s.counter, s.window));
        let live: Vec<_> = self.sessions.iter().filter_map(mine).collect();
        if let Some((id, _, window)) = live.iter().find(|(_, c, _)| *c == counter) {
            return done(*id, *window);
        }
        let last = self.last.get(&client).copied().unwrap_or(0);
        let idle = config.session_idle.as_nanos() as u64;
        let expired = |model: &Model, own: bool| {
            let all = model.sessions.iter().filter(|(_, s)| !own || s.client == client);
            all.map(|(id, s)| (s.used, *id)).min().filter(|(used, _)| model.time - used >= idle).map(|(_, id)| id)
        };
        let refused = if window > config.window_max {
            Some(Refusal::Window { window_max: config.window_max })
        } else if counter <= last {
            Some(Refusal::Counter { last })
        } else if live.len() >= config.sessions_per_client as usize {
            match expired(self, true) {
                Some(id) => self.evict(id),
                None => Some(Refusal::Quota { sessions_max: config.sessions_per_client.into() }),
            }
        } else if self.sessions.len() >= config.sessions_max as usize {
            match expired(self, true).or(expired(self, false)) {
                Some(id) => self.evict(id),
                None => Some(Refusal::Full { sessions_max: config.sessions_max.into() }),
            }
        } else {
            None
        };
        if let Some(refusal) = refused {
            return (at, Outcome::Refused(refusal));
        }
        let id = SessionId(at.0);
        let (low, used, replies) = (0, self.time, BTreeMap::new());
        self.sessions.insert(id, MSession { client, counter, window, low, used, replies });
        self.opened.push(id);
        self.last.insert(client, counter);
        done(id, window)
    }
}

fn ask() -> impl Strategy<Value = Ask> {
    let size = prop_oneof![6 => Just(None), 2 => (0usize..300).prop_map(Some), 1 => (0usize..600_000).prop_map(Some)];
    prop_oneof![
        3 => (1u64..4, 1u64..12, 1u64..36)
            .prop_map(|(client, counter, window)| Ask::Open { client, counter, window }),
        1 => (1u64..4, 0usize..9, 0u64..8).prop_map(|(client, session, t)| Ask::Close { client, session, t }),
        12 => (1u64..4, 0usize..9, 0u64..40, 0u64..12, size)
            .prop_map(|(client, session, t, low, size)| Ask::Ordered { client, session, t, low, size }),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![Just(Fate::Executed), Just(Fate::Committed), Just(Fate::RolledBack), Just(Fate::Retried)]
}

fn batch() -> impl Strategy<Value = (Vec<Ask>, u64, Fate)> {
    (prop::collection::vec(ask(), 1..6), 0u64..4, fate())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn p04_p17_whatever_the_path_execution_is_exactly_once(script in prop::collection::vec(batch(), 1..60)) {
        let config = ExecutorConfig {
            sessions_max: 5,
            sessions_per_client: 2,
            window_max: 32,
            session_idle: Duration::from_secs(8),
            ..config()
        };
        let mut model = Model::default();
        let (mut moved, mut plain) = (Bench::with(config.clone()), Bench::with(config.clone()));
        for (asks, seconds, fate) in script {
            let packs: Vec<Pack> = asks.iter().map(|ask| model.pack(ask)).collect();
            let proposed = model.time + seconds * SECOND;
            let before = model.clone();
            model.time = proposed.max(model.time + 1);
            let n = SeqNum(moved.next);
            let expected: Vec<_> = packs
                .iter()
                .enumerate()
                .filter_map(|(i, pack)| {
                    let (request, at) = (pack.requests().next().unwrap(), Position::new(n, i));
                    let said = model.execute(&request, pack.client(), at, &config);
                    said.map(|(at, outcome, may_be_gone)| (request.t, at, outcome, may_be_gone))
                })
                .collect();
            let said = |replies: Vec<Reply>| -> Vec<_> {
                replies.into_iter().map(|r| (r.t, r.position, r.outcome)).collect()
            };
            moved.view = moved.view.next();
            let tentative = !matches!(fate, Fate::Executed);
            let first = replies(moved.batch_at(proposed, &packs, tentative));
            for reply in &first {
                let fresh = tentative && reply.position.batch() == n;
                prop_assert_eq!(reply.kind, if fresh { ReplyKind::Tentative } else { ReplyKind::Committed });
            }
            let first = said(first);
            prop_assert!(right(&first, &expected), "{first:?} instead of {expected:?}");
            match fate {
                Fate::Executed => {}
                Fate::Committed => drop(moved.commit()),
                Fate::RolledBack => {
                    moved.rollback();
                    model = before;
                    prop_assert_eq!(moved.root(), plain.root());
                    continue;
                }
                Fate::Retried => {
                    moved.rollback();
                    prop_assert_eq!(&said(replies(moved.batch_at(proposed, &packs, false))), &first);
                }
            }
            prop_assert_eq!(said(replies(plain.batch_at(proposed, &packs, false))), first);
            prop_assert_eq!(moved.root(), plain.root());
            prop_assert_eq!(moved.executor.sessions(), model.sessions.len());
            prop_assert_eq!(moved.executor.time(), Time(model.time));
        }
    }
}
