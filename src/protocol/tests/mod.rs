//! Agreement cores that talk to each other in memory: no bytes, no keys, no clock but ours.

use std::sync::Arc;
use std::time::Duration;

mod bounds;
mod checkpoints;
mod committed;
mod config;
mod leaving;
mod new_view;
mod normal_case;
mod recovery;
mod reserve;
mod status;
mod together;
mod transfer;
mod view_timer;

use super::*;
use crate::auth::{Principal, Verified};
use crate::types::{ClientId, ClusterSize, EndpointId, Executed, SessionId};
use crate::wire::{
    Batch, Claim, Committed, Entry, NewView, Pack, PackBuilder, Proof, Proposed, Request, RequestKind, Signed,
    SignedCheckpoint, Status, ViewChange, WantedViewChange,
};

const K: u64 = 4;
const L: u64 = 12;

pub(super) fn pack(client: u64, t: u64, bytes: usize) -> Pack {
    let op = vec![t as u8; bytes];
    let request = Request { session: SessionId(client), t, low: 0, kind: RequestKind::Ordered, op: &op };
    let mut builder = PackBuilder::new(ClientId(client), EndpointId(client));
    builder.push(&request);
    builder.finish(false, |_, writer| writer.write(Proof::Vector(&[[0; 8]; 4])))
}

fn from_replica<T>(from: u8, inner: T) -> Verified<T> {
    Verified::assume(Principal::Replica(ReplicaId(from)), inner)
}

fn from_client(pack: Pack) -> Verified<Pack> {
    let principal = Principal::Client(pack.client(), pack.endpoint());
    Verified::assume(principal, pack)
}

fn pre_prepare(view: u64, n: u64, time: u64, packs: &[Pack]) -> PrePrepare {
    let packs = packs.iter().cloned().map(Proposed::Inline).collect();
    PrePrepare { view: View(view), n: SeqNum(n), choice: Choice { time, seed: 0 }, packs }
}

fn vote(n: u64, digest: Digest) -> Vote {
    vote_in(0, n, digest)
}

fn vote_in(view: u64, n: u64, digest: Digest) -> Vote {
    Vote { view: View(view), n: SeqNum(n), digest }
}

fn entry(n: u64, digest: Digest, view: u64) -> Entry {
    Entry { n: SeqNum(n), digest, view: View(view) }
}

/// What `from` says as it leaves for `view`, if nothing was ever pre-prepared there.
fn view_change(from: u8, view: u64) -> ViewChange {
    let (proof, prepared, pre_prepared) = Default::default();
    let (replica, view) = (ReplicaId(from), View(view));
    ViewChange { replica, boot: 0, view, stable: SeqNum(0), proof, prepared, pre_prepared }
}

/// The same with a proof of `stable`.
fn view_change_at(from: u8, view: u64, stable: u64, root: u8) -> ViewChange {
    let proof = [0, 2, 3].map(|r| signed_checkpoint(r, stable, root)).to_vec();
    ViewChange { stable: SeqNum(stable), proof, ..view_change(from, view) }
}

fn signed(v: ViewChange) -> Arc<Signed<ViewChange>> {
    Arc::new(Signed::new(v, |_| [0; 64]))
}

/// The NEW-VIEW of the primary of `view` over `members`, whatever it is worth.
fn new_view(view: u64, members: &[&Arc<Signed<ViewChange>>], stable: u64, chosen: &[Digest]) -> Arc<Signed<NewView>> {
    let members = members.iter().map(|v| (v.statement().replica, v.digest())).collect();
    let (replica, stable) = (ReplicaId((view % 4) as u8), SeqNum(stable));
    Arc::new(Signed::new(
        NewView { replica, boot: 0, view: View(view), members, stable, chosen: chosen.to_vec() },
        |_| [0; 64],
    ))
}

fn signed_checkpoint(from: u8, n: u64, root: u8) -> SignedCheckpoint {
    let root = Digest([root; 32]);
    SignedCheckpoint { n: SeqNum(n), root, replica: ReplicaId(from), boot: 0, signature: [0; 64] }
}

/// What a replica did, as its execution role sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Did {
    Tentative(u64),
    Committed(u64),
    Rollback(u64),
}

/// One core and the actions that it took, for tests of a single replica against scripted others.
struct One {
    core: Agreement,
    me: ReplicaId,
    now: Time,
    sent: Vec<(Option<ReplicaId>, Message)>,
    did: Vec<Did>,
    notices: Vec<Notice>,
    /// What each query must see, and whether the tentative state will do.
    queries: Vec<(SeqNum, bool)>,
    /// Transfers asked for: n, and whether because of a divergence.
    transfers: Vec<(u64, bool)>,
    /// Comparisons asked for: n, and with how many.
    compared: Vec<(u64, usize)>,
    /// Answers of the disk are held back.
    slow_disk: bool,
    /// Execution is asked, and has not answered yet.
    lags: bool,
    tokens: Vec<PersistToken>,
    /// NEW-VIEWs that it asked to be signed.
    signs: Vec<NewView>,
    /// Packs that would not execute any more.
    executed: Vec<Digest>,
    /// Requests that it asked about, and whether something in them would still execute.
    rechecked: usize,
    executes: bool,
}

impl One {
    fn new(me: u8) -> One {
        One::with(me, |_| {})
    }

    fn with(me: u8, change: impl FnOnce(&mut Config)) -> One {
        let mut config = Config::new(ClusterSize::of(4).unwrap(), ReplicaId(me));
        (config.checkpoint_interval, config.log_window, config.pipeline_max) = (K, L, 8);
        config.view_timeout = Duration::from_secs(3_600);
        config.commit_delay = Duration::from_micros(200);
        change(&mut config);
        let now = Time(1_000_000_000);
        let core = Agreement::new(config, now).unwrap();
        let (sent, did, notices, queries, transfers, compared, tokens, signs) = Default::default();
        let (me, slow_disk, lags, rechecked, executes) = (ReplicaId(me), false, false, 0, true);
        One {
            core,
            me,
            now,
            sent,
            did,
            notices,
            queries,
            transfers,
            compared,
            slow_disk,
            lags,
            tokens,
            signs,
            executed: Vec::new(),
            rechecked,
            executes,
        }
    }

    /// What `replica` was caught at.
    fn caught(&self, replica: u8) -> Vec<(&'static str, u64)> {
        let peer = self.core.peers().find(|(id, _)| *id == ReplicaId(replica));
        peer.map_or_else(Vec::new, |(_, peer)| peer.misdeeds.iter().collect())
    }

    fn event(&mut self, event: Event) -> &mut One {
        let now = self.now;
        self.core.handle(now, event);
        self.drain();
        self
    }

    fn message(&mut self, from: u8, message: Message) -> &mut One {
        self.event(Event::Message(from_replica(from, message)))
    }

    fn pre_prepare(&mut self, from: u8, p: &PrePrepare, authentic: bool) -> &mut One {
        let inline = |proposed: &Proposed| match proposed {
            Proposed::Inline(pack) => Some(pack.digest()),
            Proposed::ByDigest(_) => None,
        };
        let unproven = if authentic { Vec::new() } else { p.packs.iter().filter_map(inline).collect() };
        self.event(Event::PrePrepare(from_replica(from, Message::PrePrepare(p.clone())), unproven))
    }

    fn request(&mut self, pack: Pack) -> &mut One {
        self.event(Event::Request { pack: from_client(pack), signed: false })
    }

    /// Signed, so it is worth a view timer (P26).
    fn signed_request(&mut self, pack: Pack) -> &mut One {
        self.event(Event::Request { pack: from_client(pack), signed: true })
    }

    fn hears(&mut self, v: &Arc<Signed<ViewChange>>) -> &mut One {
        self.event(Event::Claim(from_replica(v.statement().replica.0, Claim::ViewChange(v.clone()))))
    }

    fn hears_all(&mut self, s: &[Arc<Signed<ViewChange>>]) -> &mut One {
        for v in s {
            self.hears(v);
        }
        self
    }

    fn begins(&mut self, v: &Arc<Signed<NewView>>) -> &mut One {
        self.event(Event::Claim(from_replica(v.statement().replica.0, Claim::NewView(v.clone()))))
    }

    /// `others` leave for `view`, with nothing to say.
    fn leave(&mut self, others: &[u8], view: u64) -> &mut One {
        for &from in others {
            self.hears(&signed(view_change(from, view)));
        }
        self
    }

    /// The VIEW-CHANGE that it sent last.
    fn left(&self) -> Arc<Signed<ViewChange>> {
        let of = |m: &Message| if let Message::ViewChange(v) = m { Some(v.clone()) } else { None };
        let own = self.sent.iter().rev().filter_map(|(_, m)| of(m));
        own.into_iter().find(|v| v.statement().replica == self.me).expect("it left its view")
    }

    /// Follows others into `view`, which begins with nothing.
    fn follow(&mut self, view: u64) -> &mut One {
        let primary = (view % 4) as u8;
        let others: Vec<_> = (0..4).filter(|r| *r != self.me.0).map(|from| signed(view_change(from, view))).collect();
        self.hears_all(&others);
        if primary != self.me.0 {
            let members: Vec<_> = others.iter().collect();
            self.begins(&new_view(view, &members, 0, &[]));
        }
        assert!(self.core.view() == View(view) && !self.core.is_pending());
        self
    }

    fn pass(&mut self, time: Duration) -> &mut One {
        let until = self.now + time;
        while self.core.poll_timeout() <= until {
            self.now = self.now.max(self.core.poll_timeout());
            let now = self.now;
            self.core.handle_timeout(now);
            self.drain();
        }
        self.now = until;
        self
    }

    fn drain(&mut self) {
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Send(to, message) => self.sent.push((Some(to), message)),
                Action::Broadcast(message) => self.sent.push((None, message)),
                Action::Execute { n, tentative, .. } => {
                    self.did.push(if tentative { Did::Tentative(n.0) } else { Did::Committed(n.0) });
                    if !self.lags {
                        self.core.handle(self.now, executed(n.0));
                    }
                }
                Action::Commit(n) => self.did.push(Did::Committed(n.0)),
                Action::Rollback(n) => self.did.push(Did::Rollback(n.0)),
                Action::Query { after, tentative, .. } => self.queries.push((after, tentative)),
                Action::Compare { n, others } => self.compared.push((n.0, others.len())),
                Action::Transfer { n, diverged, .. } => self.transfers.push((n.0, diverged)),
                Action::Persist(token, _) if self.slow_disk => self.tokens.push(token),
                Action::Persist(token, _) => self.core.handle(self.now, Event::Persisted(token)),
                Action::Stable { .. } => {}
                Action::SignViewChange(v) => {
                    let me = self.me;
                    let boot = self.core.config.boot;
                    let signed = Signed::new(ViewChange { replica: me, boot, ..v }, |_| [0; 64]);
                    let claim = Claim::ViewChange(std::sync::Arc::new(signed));
                    self.core.handle(self.now, Event::Claim(from_replica(me.0, claim)));
                }
                Action::SignNewView(v) => {
                    let me = self.me;
                    self.signs.push(v.clone());
                    let boot = self.core.config.boot;
                    let signed = Signed::new(NewView { replica: me, boot, ..v }, |_| [0; 64]);
                    let claim = Claim::NewView(std::sync::Arc::new(signed));
                    self.core.handle(self.now, Event::Claim(from_replica(me.0, claim)));
                }
                Action::Recheck(pack) => {
                    self.rechecked += 1;
                    let event = match self.executes && !self.executed.contains(&pack.digest()) {
                        true => Event::Request { pack, signed: true },
                        false => Event::Settled(pack.digest()),
                    };
                    self.core.handle(self.now, event);
                }
                Action::Notice(notice) => self.notices.push(notice),
            }
        }
    }

    /// What was sent since the last look, statuses left out.
    fn took(&mut self) -> Vec<Message> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_iter().map(|(_, m)| m).filter(|m| !matches!(m, Message::Status(_))).collect()
    }

    /// Lets `n` be agreed on with the help of two others; `self` is backup 1.
    fn agree(&mut self, n: u64) -> Digest {
        let p = pre_prepare(0, n, n, &[pack(9, n, 8)]);
        let d = p.digest();
        self.pre_prepare(0, &p, true);
        self.message(2, Message::Prepare(vote(n, d)));
        self.message(0, Message::Commit(vote(n, d)));
        self.message(2, Message::Commit(vote(n, d)));
        d
    }

    fn checkpoint(&mut self, from: u8, n: u64, root: u8) -> &mut One {
        self.event(Event::Claim(from_replica(from, Claim::Checkpoint(signed_checkpoint(from, n, root)))))
    }
}

fn status(executed: u64, stable: u64) -> Status {
    let (executed, stable) = (SeqNum(executed), SeqNum(stable));
    let (prepared, committed) = (vec![], vec![]);
    Status {
        view: View(0),
        stable,
        executed,
        recovering: false,
        until: SeqNum(0),
        floor: View(0),
        wants: true,
        pending: false,
        view_changes: crate::types::ReplicaSet::EMPTY,
        nonce: 77,
        prepared,
        committed,
    }
}

/// Batch `n` was executed: one request, with a result of no bytes.
fn executed(n: u64) -> Event {
    Event::Executed(Executed { n: SeqNum(n), requests: 1, result_bytes: 0 })
}
