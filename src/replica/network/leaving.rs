//! From what is to be said to datagrams: as few as can be, sealed, cut where they are too large.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::{COPY_MAX, Network, SPARE_MAX, peer_of};
use crate::auth::{AuthMode, Part, Principal, Reject};
use crate::limits;
use crate::transport::{Head, Outgoing, Peer};
use crate::types::{ReplicaSet, Time};
use crate::wire::Frames;
use crate::wire::frame::FRAME_HEAD;
use crate::wire::header::{HEADER, MAC, SIGNATURE};
use crate::wire::replies::{REPLIES_HEAD, reply_len};

impl Network {
    pub(super) fn flush_receipts(&mut self, now: Time, out: &mut Vec<Outgoing>) {
        let (clients, keys) = (&self.clients, &self.keys);
        let progress = |key: &_| clients.progress(key);
        self.receipts.flush(now, progress, |(client, endpoint, _), from, receipt| {
            // A stranger can send an old piece again, from anywhere: where the endpoint proved to be counts for more.
            let to = clients.address(client, endpoint).unwrap_or(from);
            let sealed = keys.seal_receipt(Principal::Client(client, endpoint), &receipt);
            out.extend(sealed.map(|(head, body)| Outgoing { to, head, body }));
        });
    }

    fn head_len(&self) -> usize {
        HEADER
            + match self.keys.mode() {
                AuthMode::Mac => MAC,
                AuthMode::Signature => SIGNATURE,
            }
    }

    /// Bytes of frames that fit a datagram.
    pub(super) fn body_max(&self) -> usize {
        self.config.datagram_max - self.head_len()
    }

    pub(super) fn flush_replies(&mut self, now: Time, out: &mut Vec<Outgoing>) {
        let body_max = self.body_max();
        while let Some(((client, endpoint), mut replies)) = self.replies.pop_first() {
            let Some(peer) = self.clients.address(client, endpoint) else {
                self.rejects.add(Reject::NoAddress, replies.len() as u64);
                continue;
            };
            let (buffer, entries) = (&mut self.reply_frames, &mut self.reply_entries);
            let mut waiting = replies.drain(..).peekable();
            while let Some((view, entry)) = waiting.next() {
                let mut len = FRAME_HEAD + REPLIES_HEAD + reply_len(&entry);
                entries.push(entry);
                while entries.len() < limits::PACK_REQUESTS_MAX
                    && let Some((_, next)) =
                        waiting.next_if(|(next_view, next)| *next_view == view && len + reply_len(next) <= body_max)
                {
                    len += reply_len(&next);
                    entries.push(next);
                }
                if !buffer.push_replies(view, entries) {
                    self.rejects.count(Reject::TooLargeToSend);
                }
                entries.clear();
            }
            drop(waiting);
            if self.spare_replies.len() < SPARE_MAX {
                self.spare_replies.push(replies);
            }
            let frames = buffer.take();
            let to = Principal::Client(client, endpoint);
            for run in frames.runs(body_max) {
                match self.keys.seal(to, &[(&frames, run.clone())]) {
                    Some(head) => self.emit(now, &[(to, head)], |_| Some(peer), frames.slice(run), out),
                    None => self.rejects.count(Reject::NoAddress),
                }
            }
            self.reply_frames.reuse(frames);
        }
    }

    pub(super) fn flush_envelopes(&mut self, now: Time, out: &mut Vec<Outgoing>) {
        let shared = self.shared.take();
        let body_max = self.body_max();
        let mut shared_to: ReplicaSet = self.size.others(self.me).collect();
        for id in self.size.others(self.me) {
            let own = &mut self.own[usize::from(id.0)];
            let gathers = self.company.is_patient(id) && shared.bytes().len() <= COPY_MAX;
            if gathers {
                own.append(&shared);
                shared_to.remove(id);
            }
            if gathers && !own.is_empty() && self.company.waits(now, id, own.len() >= body_max) {
                continue;
            }
            self.company.leaves(id);
            if own.is_empty() {
                continue;
            }
            let own = own.take();
            let to = Principal::Replica(id);
            let bytes = shared.bytes().len() + own.bytes().len();
            let together = shared_to.contains(id)
                && !shared.is_empty()
                && bytes <= body_max
                && shared.bytes().len() <= COPY_MAX
                && shared.len() + own.len() <= limits::FRAMES_MAX;
            let seal = |parts: &[Part<'_>]| self.keys.seal(to, parts).expect("another replica");
            if together {
                shared_to.remove(id);
                let head = seal(&[(&shared, 0..shared.len()), (&own, 0..own.len())]);
                let mut body = BytesMut::with_capacity(bytes);
                body.extend_from_slice(shared.bytes());
                body.extend_from_slice(own.bytes());
                self.emit(now, &[(to, head)], peer_of, body.freeze(), out);
                self.own[usize::from(id.0)].reuse(own);
                continue;
            }
            for run in own.runs(body_max) {
                let head = self.keys.seal(to, &[(&own, run.clone())]).expect("another replica");
                self.emit(now, &[(to, head)], peer_of, own.slice(run), out);
            }
            self.own[usize::from(id.0)].reuse(own);
        }
        for run in shared.runs(body_max) {
            self.emit_shared(now, shared_to, &shared, run, out);
        }
        self.shared.reuse(shared);
    }

    fn emit_shared(&mut self, now: Time, to: ReplicaSet, frames: &Frames, run: Range<usize>, out: &mut Vec<Outgoing>) {
        let mut heads = std::mem::take(&mut self.heads);
        self.keys.seal_broadcast(to.iter(), &[(frames, run.clone())], &mut heads);
        self.emit(now, &heads, peer_of, frames.slice(run), out);
        heads.clear();
        self.heads = heads;
    }

    /// Sends one body under the head of each receiver, in fragments if it is too large.
    fn emit(
        &mut self,
        now: Time,
        heads: &[(Principal, Head)],
        address: impl Fn(Principal) -> Option<Peer>,
        body: Bytes,
        out: &mut Vec<Outgoing>,
    ) {
        if body.len() <= self.body_max() {
            let outgoing = |(to, head): &(Principal, Head)| {
                address(*to).map(|to| Outgoing { to, head: *head, body: body.clone() })
            };
            return out.extend(heads.iter().filter_map(outgoing));
        }
        // Rising across restarts too, as long as the clock is.
        self.next_message = (self.next_message + 1).max(now.0);
        let number = match heads {
            [(to, head)] => self.resent.number(*to, head, self.next_message),
            _ => self.next_message,
        };
        let (pacer, rejects) = (&mut self.pacer, &mut self.rejects);
        // What is sent again while it still waits to leave need not wait twice.
        let is_fresh = number == self.next_message;
        let is_new = |to: &Principal| is_fresh || address(*to).is_none_or(|peer| !pacer.has_queued(peer, number));
        let heads: Vec<_> = heads.iter().filter(|(to, _)| is_new(to)).copied().collect();
        let has_room = |to: &Principal| address(*to).is_some_and(|peer| pacer.has_room(peer, body.len()));
        let receivers: Vec<_> = heads.iter().filter(|(to, _)| has_room(to)).copied().collect();
        rejects.add(Reject::SendQuota, (heads.len() - receivers.len()) as u64);
        self.keys.fragment(number, self.config.datagram_max, &receivers, &body, |to, head, body| {
            if let Some(to) = address(to) {
                pacer.push(number, Outgoing { to, head, body });
            }
        });
    }
}
