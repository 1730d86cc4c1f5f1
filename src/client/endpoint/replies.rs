//! What replicas answer: datagrams opened, new keys learned, replies counted in certificates (P5 to P8, P40).

use std::mem;

use bytes::Bytes;

use super::Endpoint;
use crate::auth::{Learned, Opened, Principal, Reject, Replies};
use crate::client::certificate::{Accepted, Certificate, Inserted, Verdict};
use crate::client::completion::{RequestError, RequestId, Session};
use crate::client::rtt::Rtt;
use crate::client::session::{Live, Phase};
use crate::types::{ReplicaId, SessionId, Time, View};
use crate::wire::fragment::Assembled;
use crate::wire::{NewKey, Outcome, Receipt, Refusal, ReplyKind, ReplyView, RequestKind, ResultView};

impl Endpoint {
    pub(super) fn on_datagram(&mut self, bytes: &Bytes) {
        match self.keyring.open(bytes) {
            Ok(Opened::Replies(replies)) => self.on_envelope(replies),
            Ok(Opened::Fragment { from: Principal::Replica(from), header, piece }) => {
                let reassembler = &mut self.reassembly[usize::from(from.0)];
                let mut dropped = 0;
                let inserted = reassembler.insert(self.now, 0, header, &piece, &mut dropped);
                self.stats.rejects.auth.add(Reject::ReassemblyDropped, dropped);
                match inserted {
                    Ok(Assembled::Partial | Assembled::NoRoom) => {}
                    Ok(Assembled::Complete(whole)) => self.on_reassembled(&whole),
                    Err(malformed) => self.stats.rejects.count(Reject::Malformed(malformed)),
                }
            }
            Ok(Opened::NewKey { key, .. }) => self.on_new_key(&key),
            Ok(Opened::Receipt { from, receipt }) => self.on_receipt(from, &receipt),
            Ok(Opened::Fragment { from: Principal::Client(..), .. } | Opened::Envelope(_) | Opened::Pack { .. }) => {
                self.stats.rejects.count(Reject::WrongRole);
            }
            Err(reject) => self.stats.rejects.count(reject),
        }
    }

    /// What was cut was a datagram of replies; fragments of fragments are nobody's.
    fn on_reassembled(&mut self, whole: &Bytes) {
        match self.keyring.open(whole) {
            Ok(Opened::Replies(replies)) => self.on_envelope(replies),
            Ok(
                Opened::Fragment { .. }
                | Opened::Envelope(_)
                | Opened::Pack { .. }
                | Opened::NewKey { .. }
                | Opened::Receipt { .. },
            ) => {
                self.stats.rejects.count(Reject::WrongRole);
            }
            Err(reject) => self.stats.rejects.count(reject),
        }
    }

    /// P54: while replicas say what they have of a large request, it is not sent again.
    fn on_receipt(&mut self, from: ReplicaId, receipt: &Receipt) {
        self.health[usize::from(from.0)].last_heard = Some(self.now);
        let Some(heard) = self.sender.on_receipt(self.now, from, receipt) else { return };
        let Some(r) = self.requests.get_mut(heard.request) else { return };
        let Some(sent_at) = r.sent_at else { return };
        let patience = match r.kind {
            RequestKind::ReadOnly if r.asked.len() < self.size.n() => self.rtt.hedge() + Self::QUERY_APART,
            _ if heard.complete => self.rtt.timeout(r.retransmissions, Rtt::NO_JITTER),
            RequestKind::ReadOnly | RequestKind::Ordered | RequestKind::Open | RequestKind::Close => {
                Self::RECEIPTS_APART
            }
        };
        let until = (heard.at + patience).min(sent_at + Self::RECEIPTS_FOR).min(r.deadline);
        if until > r.due {
            r.due = until;
            self.timers.push(until, heard.request, &self.requests);
        }
    }

    /// P40: a replica that has started since we last heard of it. What it could not open is sent again shortly, when
    /// others that started with it have told their keys too.
    fn on_new_key(&mut self, key: &NewKey) {
        let Some(checks) = self.key_checks.get_mut(usize::from(key.replica.0)) else { return };
        if self.keyring.is_news(key) {
            if self.now.since(checks.0) >= Self::KEYS_WINDOW {
                *checks = (self.now, 0);
            }
            checks.1 += 1;
            if checks.1 > Self::KEYS_MAX {
                return self.stats.rejects.count(Reject::SignatureQuota);
            }
        }
        match self.keyring.learn(self.now, key) {
            Ok(Learned::News) => {
                self.rekeyed.insert(key.replica);
                let soon = (self.now + Self::KEYS_TOGETHER).max(self.rekeyed_at + Self::KEYS_WINDOW);
                self.rekey_due = self.rekey_due.min(soon);
            }
            Ok(Learned::Known) => {}
            Err(reject) => self.stats.rejects.count(reject),
        }
    }

    /// Sends again what replicas with new keys could not open: what went to all of them, and ordered requests if the
    /// believed primary is one of them. Those are signed now, and go to all (P2).
    pub(super) fn rekey(&mut self) {
        let rekeyed = mem::take(&mut self.rekeyed);
        (self.rekey_due, self.rekeyed_at) = (Time::NEVER, self.now);
        let primary = rekeyed.contains(self.size.primary(self.view));
        for (id, r) in self.requests.iter_mut().filter(|(_, r)| r.sent_at.is_some()) {
            match r.kind {
                RequestKind::ReadOnly if !rekeyed.iter().any(|id| r.asked.contains(id)) => {}
                RequestKind::Open | RequestKind::ReadOnly => {
                    // Its timers start anew with this send.
                    (r.sent_at, r.due) = (None, Time::NEVER);
                    r.to = self.size.replicas().collect();
                    self.first.push(id);
                }
                RequestKind::Ordered | RequestKind::Close if primary => self.again.push(id),
                RequestKind::Ordered | RequestKind::Close => {}
            }
        }
    }

    /// P5 to P8.
    fn on_envelope(&mut self, envelope: Replies) {
        let from = envelope.from();
        self.health[usize::from(from.0)].last_heard = Some(self.now);
        for pack in envelope {
            let pack = match pack {
                Ok(pack) => pack.into_inner(),
                Err(reject) => {
                    self.stats.rejects.count(reject);
                    continue;
                }
            };
            for reply in pack.iter() {
                self.health[usize::from(from.0)].replies += 1;
                self.repliers.heard(from, reply.position, self.accepted);
                self.readers.heard(from, reply.position, self.accepted);
                self.reserve.heard(from, reply.position);
                match self.asked(&reply) {
                    Some(request) => self.on_reply(from, pack.view(), request, &reply),
                    None => self.stats.rejects.unsolicited += 1,
                }
            }
        }
    }

    /// The outstanding request that the reply answers. Kinds never mix: a read-only reply is to a query, any other to
    /// an ordered request or a session-open.
    fn asked(&self, reply: &ReplyView<'_>) -> Option<RequestId> {
        match (reply.kind, reply.session) {
            (ReplyKind::ReadOnly | ReplyKind::TentativeRead, SessionId::NONE) => self.queries.get(&reply.t).copied(),
            (ReplyKind::ReadOnly | ReplyKind::TentativeRead, _) => None,
            (ReplyKind::Tentative | ReplyKind::Committed, SessionId::NONE) => self.opens.get(&reply.t).copied(),
            (ReplyKind::Tentative | ReplyKind::Committed, id) => {
                match &self.sessions.get(*self.by_id.get(&id)?)?.phase {
                    Phase::Open(live) => live.get(reply.t),
                    Phase::Closed | Phase::Opening => None,
                }
            }
        }
    }

    fn on_reply(&mut self, from: ReplicaId, view: View, request: RequestId, reply: &ReplyView<'_>) {
        if matches!(reply.result, ResultView::Gone) {
            return self.on_gone(from, view, request, reply);
        }
        let Some(r) = self.requests.get_mut(request) else { return };
        let held = &mut self.held[usize::from(from.0)];
        let before = r.certificate.held(from);
        let room = (self.config.held_bytes_max + before).saturating_sub(*held);
        let inserted = r.certificate.insert(from, view, reply, room);
        *held = *held + r.certificate.held(from) - before;
        if inserted == Inserted::Repeated {
            self.stats.rejects.repeated += 1;
            return;
        }
        match r.certificate.verdict() {
            // P6: those asked cannot agree any more.
            Verdict::Open if r.kind == RequestKind::ReadOnly && !r.certificate.can_be_proved_by(r.asked) => {
                self.hedge(request, false);
            }
            // P53: nor can those preferred.
            Verdict::Open if r.hedging && self.size.preferred(self.view).without(r.certificate.heard()).is_empty() => {
                let random = self.random.next();
                self.summon(request, true, random);
            }
            Verdict::Open | Verdict::ResultMissing => {}
            Verdict::Hopeless => {
                if self.config.fallback {
                    self.fall_back(request);
                }
            }
            Verdict::Accepted(accepted) => self.on_accepted(request, &accepted),
        }
    }

    /// P4: the result is not kept there any more. It may be on its way all the same, sent when the operation was executed.
    fn on_gone(&mut self, from: ReplicaId, view: View, request: RequestId, reply: &ReplyView<'_>) {
        let is_arriving = self.is_arriving(request);
        let Some(r) = self.requests.get_mut(request) else { return };
        let rule = r.certificate.rule();
        let gone = r.gone.get_or_insert_with(|| Box::new(Certificate::new(self.size, rule)));
        if gone.insert(from, view, reply, 0) == Inserted::Repeated {
            self.stats.rejects.repeated += 1;
        }
        if let (Verdict::Accepted(accepted), false) = (gone.verdict(), is_arriving) {
            self.drop_held(request);
            let Some(r) = self.requests.get_mut(request) else { return };
            if let Some(gone) = r.gone.take() {
                r.certificate = *gone;
            }
            self.on_accepted(request, &accepted);
        }
    }

    fn on_accepted(&mut self, request: RequestId, accepted: &Accepted) {
        let Some(r) = self.requests.get(request) else { return };
        if let (0, false, Some(sent_at)) = (r.retransmissions, r.fell_back, r.sent_at) {
            self.rtt.sample(self.now.since(sent_at));
            self.sender.answered(r.op.len());
        } else if r.kind == RequestKind::Ordered {
            self.rtt.ambiguous(r.retransmissions);
        }
        for replica in r.certificate.contradicting(accepted).iter() {
            self.health[usize::from(replica.0)].contradicted += 1;
            match r.kind {
                RequestKind::ReadOnly => self.readers.failed(replica, self.now),
                RequestKind::Ordered => self.reserve.contradicted(self.now, self.view, replica),
                RequestKind::Open | RequestKind::Close => {}
            }
        }
        self.drop_held(request);
        let Some(r) = self.requests.get_mut(request) else { return };
        let outcome = r.certificate.take(accepted);
        self.view = self.view.max(accepted.view);
        if r.kind == RequestKind::Ordered {
            self.reserve.accepted(self.now, self.view, accepted);
        }
        self.readers.agreed(accepted.members);
        self.accepted = self.accepted.max(accepted.position);
        let (kind, session) = (r.kind, r.session);
        match (kind, outcome) {
            (RequestKind::Ordered | RequestKind::ReadOnly, Outcome::Done(bytes)) => {
                self.finish(request, Ok(bytes), Some(accepted));
            }
            (RequestKind::Ordered, Outcome::Gone) => {
                let gone = RequestError::ResultGone { position: accepted.position };
                self.finish(request, Err(gone), Some(accepted));
            }
            (RequestKind::Ordered, Outcome::NoSession) => session.into_iter().for_each(|s| self.lose(s)),
            // Not a query, says the service: order it.
            (RequestKind::ReadOnly, _) if self.config.fallback => self.fall_back(request),
            (RequestKind::ReadOnly, _) | (RequestKind::Ordered, Outcome::Refused(_)) => {
                self.finish(request, Err(RequestError::Impossible), Some(accepted));
            }
            (RequestKind::Close, _) => self.finish(request, Ok(Bytes::new()), Some(accepted)),
            (RequestKind::Open, outcome) => {
                self.on_opened(request, session.expect("an open is a session's"), outcome);
            }
        }
    }

    /// P9: the answer to a session-open.
    fn on_opened(&mut self, request: RequestId, session: Session, outcome: Outcome) {
        self.finish(request, Ok(Bytes::new()), None);
        let state = self.sessions.get_mut(session).expect("a session outlives its open");
        state.phase = Phase::Closed;
        match outcome {
            Outcome::Done(bytes) => match session_opened(&bytes) {
                Some(id) if !self.by_id.contains_key(&id) => {
                    self.stats.sessions_opened += 1;
                    self.by_id.insert(id, session);
                    state.phase = Phase::Open(Live::new(id, self.now));
                }
                Some(_) | None => self.fail_waiting(session, &RequestError::Impossible),
            },
            // Another process of this identity was ahead; try above it. By a leap of our own: two that were refused
            // together must not meet at one counter, for the second would be given the session of the first.
            Outcome::Refused(Refusal::Counter { last }) if last < Self::COUNTER_MAX => {
                self.next_counter = self.next_counter.max(last) + 1 + self.random.next() % Self::COUNTER_LEAP;
                self.start_open(session);
            }
            // The endpoint's own session takes what it gets.
            Outcome::Refused(Refusal::Window { window_max }) if Some(session) == self.fallback && window_max > 0 => {
                state.window = state.window.min(window_max);
                self.start_open(session);
            }
            // Opened, and the answer no longer kept: that session is nobody's and expires.
            Outcome::Gone => self.start_open(session),
            Outcome::Refused(refusal) => self.fail_waiting(session, &RequestError::Refused(refusal)),
            Outcome::NoSession => self.fail_waiting(session, &RequestError::Impossible),
        }
    }

    fn fail_waiting(&mut self, session: Session, error: &RequestError) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        for request in mem::take(&mut state.waiting) {
            self.finish(request, Err(error.clone()), None);
        }
    }
}

/// The answer to a session-open is the session's id (P9).
fn session_opened(result: &[u8]) -> Option<SessionId> {
    let id = result.first_chunk::<8>().map(|id| SessionId(u64::from_le_bytes(*id)))?;
    (id != SessionId::NONE).then_some(id)
}
