//! Large packs on their way: cut as they leave, at a pace, as much as the replicas grant, and again what was lost (P3, P54).

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::completion::RequestId;
use super::config::EndpointConfig;
use super::pace::Pacer;
use crate::auth::{Keyring, Principal};
use crate::limits::{BULK_ASKS, BULK_UNASKED};
use crate::transport::{Head, Outgoing, Peer};
use crate::types::{ClusterSize, ReplicaId, Time};
use crate::wire::fragment::OVERHEAD;
use crate::wire::{FragmentPlan, Receipt};

/// The large packs of one endpoint.
#[derive(Debug)]
pub(super) struct Bulk {
    size: ClusterSize,
    datagram_max: usize,
    pacer: Pacer,
    messages: Vec<Leaving>,
    /// Bytes that may leave unasked, as each replica said last.
    starts: Vec<usize>,
    pub(super) pieces_again: u64,
}

/// One of them, under one number.
#[derive(Debug)]
struct Leaving {
    message: u64,
    request: RequestId,
    body: Bytes,
    plan: FragmentPlan,
    /// The first piece that has not left, and the first that may not leave yet.
    next: usize,
    credit: usize,
    left_at: Time,
    /// The request is over: it goes on for those that have not all of it, and not for long.
    over: bool,
    receivers: Vec<Receiver>,
}

#[derive(Debug)]
struct Receiver {
    id: ReplicaId,
    head: (Principal, Head),
    granted: usize,
    has_all: bool,
    heard: Time,
    /// How many pieces it has, and since when.
    has: usize,
    has_since: Time,
    /// When it is asked what it has, and how long it may be silent then.
    probe_at: Time,
    quiet: Duration,
    /// Pieces that were lost on the way to it.
    lost: VecDeque<usize>,
    /// When something was last sent to it again; what it misses is on its way then until a piece arrives that left later.
    repaired_at: Time,
    repaired_before: usize,
    repaired: usize,
}

/// What the replicas say of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Heard {
    pub(super) request: RequestId,
    /// When f + 1 of them had said something.
    pub(super) at: Time,
    /// f + 1 of them have all of it.
    pub(super) complete: bool,
}

impl Bulk {
    /// Bytes that leave unasked while no replica has said how many may.
    const START: usize = 64 << 10;
    /// What left so long ago and is not there is lost, even if nothing that left later is there, when nothing else has
    /// come there since. (A replica that has not got to its socket yet says that it has little.)
    const SILENT: Duration = Duration::from_millis(8);
    /// A replica that says nothing of a message for so long may have got nothing of it; each time for twice as long.
    const QUIET: Duration = Duration::from_millis(10);
    /// After the answer it waits so long for what others miss.
    const LINGER: Duration = Duration::from_millis(100);

    pub(super) fn new(size: ClusterSize, config: &EndpointConfig) -> Bulk {
        Bulk {
            size,
            datagram_max: config.datagram_max,
            pacer: Pacer::new(size.n(), config.pace_bytes, config.pace_interval, config.datagram_max),
            messages: Vec::new(),
            starts: vec![Self::START; size.n()],
            pieces_again: 0,
        }
    }

    /// Sends `body` under `heads`, instead of what is on its way for this request under another number. `again`: by P2, so
    /// that it waits for nobody's grant.
    pub(super) fn push(
        &mut self,
        message: u64,
        request: RequestId,
        heads: impl Iterator<Item = (ReplicaId, Head)>,
        body: Bytes,
        again: bool,
    ) {
        let start = said_by(self.size.f() + 1, self.starts.iter().copied()).unwrap_or(Self::START);
        let receivers: Vec<Receiver> = heads
            .map(|(id, head)| Receiver {
                id,
                head: (Principal::Replica(id), head),
                granted: 0,
                has_all: false,
                heard: Time(0),
                has: 0,
                has_since: Time(0),
                probe_at: Time::NEVER,
                quiet: Self::QUIET,
                lost: VecDeque::new(),
                repaired_at: Time(0),
                repaired_before: 0,
                repaired: 0,
            })
            .collect();
        let Some(first) = receivers.first() else { return };
        let plan = FragmentPlan::new(first.head.1.as_slice().len() + body.len(), self.datagram_max);
        let all = again || plan.total() <= BULK_UNASKED || receivers.len() < self.size.quorum();
        let credit = if all { plan.count() } else { (start / self.datagram_max).clamp(1, plan.count()) };
        self.messages.push(Leaving {
            message,
            request,
            body,
            plan,
            next: 0,
            credit,
            left_at: Time(0),
            over: false,
            receivers,
        });
    }

    /// Sends no more of what is on its way for `request`.
    pub(super) fn withdraw(&mut self, request: RequestId) {
        self.messages.retain(|m| m.request != request);
    }

    /// The request is over: whoever has not all of it still gets it, so that it need not ask other replicas.
    pub(super) fn over(&mut self, request: RequestId) {
        for m in self.messages.iter_mut().filter(|m| m.request == request) {
            m.over = true;
            m.credit = m.plan.count();
        }
    }

    /// When f + 1 had said something of what goes to all and waits for a quorum's grants. (Of some of them a quorum may not
    /// be there.)
    pub(super) fn waits_since(&self, request: RequestId) -> Option<Time> {
        let waits = |m: &Leaving| m.credit < m.plan.count() && m.receivers.len() == self.size.n();
        let index = self.messages.iter().position(|m| m.request == request && waits(m))?;
        Some(self.heard(index).at)
    }

    /// A large pack was answered that was sent once.
    pub(super) fn arrived(&mut self) {
        self.pacer.arrived();
    }

    /// A large pack has to be sent again.
    pub(super) fn lost(&mut self, now: Time) {
        self.pacer.lost(now);
    }

    /// A replica says what it has. `None` if that is of nothing that is on its way.
    pub(super) fn on_receipt(&mut self, now: Time, from: ReplicaId, receipt: &Receipt) -> Option<Heard> {
        let index = self.messages.iter().position(|m| m.message == receipt.message)?;
        let m = &mut self.messages[index];
        if receipt.pieces.count() != m.plan.count() {
            return None;
        }
        let r = m.receivers.iter_mut().find(|r| r.id == from)?;
        self.starts[usize::from(from.0)] = receipt.start as usize;
        r.heard = now;
        r.granted = r.granted.max(usize::from(receipt.granted));
        r.has_all |= receipt.pieces.is_full();
        if receipt.pieces.is_empty() {
            // There is no room: the next piece that it is sent asks for some.
            return Some(self.heard(index));
        }
        r.quiet = Self::QUIET;
        r.probe_at = if r.has_all { Time::NEVER } else { now + BULK_ASKS };
        if receipt.pieces.len() > r.has || r.has_since == Time(0) {
            (r.has, r.has_since) = (receipt.pieces.len(), now);
        }
        // Less than thrice the message goes to it again, whatever it says.
        let overtaken = receipt.pieces.end();
        let silent = now.since(m.left_at.max(r.has_since).max(r.repaired_at)) >= Self::SILENT;
        let settled = silent || overtaken > r.repaired_before;
        if r.lost.is_empty() && settled && !r.has_all && r.repaired < 2 * m.plan.count() {
            let left = if silent { m.next } else { overtaken.min(m.next) };
            r.lost.extend((0..left).filter(|&piece| !receipt.pieces.contains(piece)));
        }
        let granted = said_by(self.size.quorum(), m.receivers.iter().map(|r| r.granted)).unwrap_or(m.plan.count());
        m.credit = m.credit.max(granted);
        Some(self.heard(index))
    }

    fn heard(&self, index: usize) -> Heard {
        let (m, weak) = (&self.messages[index], self.size.f() + 1);
        Heard {
            request: m.request,
            at: said_by(weak, m.receivers.iter().map(|r| r.heard)).unwrap_or(Time(0)),
            complete: said_by(weak, m.receivers.iter().map(|r| r.has_all)).unwrap_or(true),
        }
    }

    /// When pieces may leave again.
    pub(super) fn next(&self) -> Time {
        let next = |m: &Leaving| {
            let waits = m.next < m.credit || m.receivers.iter().any(|r| !r.lost.is_empty());
            let probe = m.receivers.iter().map(|r| r.probe_at).min().unwrap_or(Time::NEVER);
            if waits { probe.min(self.pacer.refill_at()) } else { probe }
        };
        self.messages.iter().map(next).min().unwrap_or(Time::NEVER)
    }

    /// Until the last piece that may leave has left.
    pub(super) fn drain_time(&self) -> Duration {
        let bytes = self.messages.iter().map(|m| m.credit.saturating_sub(m.next) * m.piece_len()).sum();
        self.pacer.time_for(bytes)
    }

    /// What the pace allows: lost pieces first, then one message after the other.
    pub(super) fn release(&mut self, now: Time, keyring: &Keyring, outbox: &mut Vec<Outgoing>) {
        if self.messages.is_empty() {
            return;
        }
        self.pacer.refill(now);
        for m in self.messages.iter_mut() {
            m.probe(now);
            self.pieces_again += m.repair(now, &mut self.pacer, keyring, outbox);
        }
        for m in self.messages.iter_mut() {
            if !m.leave(now, &mut self.pacer, keyring, outbox) {
                break;
            }
        }
        self.messages.retain(|m| {
            let left = m.next == m.plan.count();
            let needed = m.receivers.iter().any(|r| !r.has_all) && now.since(m.left_at) < Self::LINGER;
            !(m.over && left) || needed
        });
    }
}

impl Leaving {
    /// Bytes of a datagram with a piece, at most.
    fn piece_len(&self) -> usize {
        self.plan.range(0).len() + OVERHEAD
    }

    /// Sends one piece again to those that have said nothing for long: they will say what they have.
    fn probe(&mut self, now: Time) {
        for r in self.receivers.iter_mut().filter(|r| r.probe_at <= now) {
            if r.lost.is_empty() && self.next > 0 {
                r.lost.push_back(self.next - 1);
            }
            r.quiet = (r.quiet * 2).min(BULK_ASKS);
            r.probe_at = now + r.quiet;
        }
    }

    /// How many pieces it sent again.
    fn repair(&mut self, now: Time, pacer: &mut Pacer, keyring: &Keyring, outbox: &mut Vec<Outgoing>) -> u64 {
        let (len, before) = (self.piece_len(), outbox.len());
        for r in self.receivers.iter_mut().filter(|r| !r.lost.is_empty()) {
            while let Some(&piece) = r.lost.front()
                && pacer.take(r.id, len)
            {
                r.lost.pop_front();
                r.repaired += 1;
                (r.repaired_at, r.repaired_before) = (now, self.next);
                let head = std::slice::from_ref(&r.head);
                keyring.fragment_piece(self.plan, self.message, piece, head, &self.body, push(outbox));
            }
        }
        (outbox.len() - before) as u64
    }

    /// False if the pace forbade more.
    fn leave(&mut self, now: Time, pacer: &mut Pacer, keyring: &Keyring, outbox: &mut Vec<Outgoing>) -> bool {
        if self.next >= self.credit {
            return true;
        }
        let len = self.piece_len();
        let heads: Vec<(Principal, Head)> = self.receivers.iter().map(|r| r.head).collect();
        while self.next < self.credit {
            if !self.receivers.iter().all(|r| pacer.has(r.id, len)) {
                return false;
            }
            for r in &self.receivers {
                pacer.take(r.id, len);
            }
            keyring.fragment_piece(self.plan, self.message, self.next, &heads, &self.body, push(outbox));
            self.next += 1;
            self.left_at = now;
        }
        if self.plan.total() > BULK_UNASKED {
            self.receivers.iter_mut().filter(|r| !r.has_all).for_each(|r| r.probe_at = now + r.quiet);
        }
        true
    }
}

/// What so many replicas said, or more.
fn said_by<T: Ord>(count: usize, said: impl Iterator<Item = T>) -> Option<T> {
    let mut said: Vec<T> = said.collect();
    said.sort_unstable_by(|a, b| b.cmp(a));
    said.into_iter().nth(count - 1)
}

fn push(outbox: &mut Vec<Outgoing>) -> impl FnMut(Principal, Head, Bytes) {
    |to, head, body| {
        if let Principal::Replica(id) = to {
            outbox.push(Outgoing { to: Peer::Replica(id), head, body });
        }
    }
}
