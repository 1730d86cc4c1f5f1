//! What a datagram says, in one line for a person.

use std::fmt::Write;

use bytes::Bytes;

use crate::types::ReplicaId;
use crate::wire::frame::Messages;
use crate::wire::header::{Parts, Principal};
use crate::wire::{
    Committed, Header, Kind, Malformed, Message, NewKey, Outcome, Pack, Receipt, ReplyKind, ReplyPack, ReplyResult,
    SignedCheckpoint, StateContent, Vote,
};

/// One line about `datagram`: no proof is checked, nothing is assumed of its bytes.
pub fn describe(datagram: &Bytes) -> String {
    let Ok(header) = Header::parse(datagram) else { return "not a datagram of ours".to_owned() };
    let Ok(parts) = Parts::split(header, datagram) else { return "a header and nothing behind it".to_owned() };
    match header.kind {
        Kind::Pack => match Pack::parse(parts.body) {
            Ok(pack) => self::pack(&pack),
            Err(malformed) => format!("malformed pack: {malformed}"),
        },
        Kind::Fragment => match parts.fragment {
            Some(f) => format!("fragment {} of {} of message {} ({} B)", f.index + 1, f.count, f.message, f.total),
            None => "fragment".to_owned(),
        },
        Kind::Envelope => envelope(&header, parts.body),
        Kind::Receipt => match Receipt::decode(&parts.body) {
            Ok(Receipt { message, start, granted, pieces }) => {
                let (here, count) = (pieces.len(), pieces.count());
                format!("receipt {here} of {count} of message {message}, granted {granted}, start {start} B")
            }
            Err(malformed) => format!("malformed receipt: {malformed}"),
        },
        Kind::NewKey => match new_key(&header, &parts) {
            Ok(key) => format!("new-key epoch {} boot {} of {}", key.epoch, key.boot, key.replica),
            Err(malformed) => format!("malformed new-key: {malformed}"),
        },
    }
}

fn new_key(header: &Header, parts: &Parts) -> Result<NewKey, Malformed> {
    let Principal::Replica(id) = header.sender else { return Err(Malformed::Inconsistent) };
    NewKey::decode(id, header.sender_epoch, &parts.proof, &parts.body)
}

fn envelope(header: &Header, body: Bytes) -> String {
    let mut frames = Messages::new(body);
    let mut said = Vec::new();
    if let Principal::Client(..) = header.receiver {
        while let Some(frame) = frames.next_replies() {
            said.push(
                frame.map_or_else(|malformed| format!("malformed frame: {malformed}"), |pack| replies(&pack.to_pack())),
            );
        }
    } else {
        for frame in frames {
            said.push(frame.map_or_else(|malformed| format!("malformed frame: {malformed}"), |m| message(&m)));
        }
    }
    said.join(" + ")
}

fn pack(pack: &Pack) -> String {
    let mut out = if pack.is_read_only() { "query" } else { "request" }.to_owned();
    let requests: Vec<_> = pack.requests().take(4).map(|r| format!("s{}:{}", r.session.0 & 0xffff_ffff, r.t)).collect();
    let _ = write!(out, " {}", requests.join(" "));
    if pack.len() > requests.len() {
        let _ = write!(out, " … {} in all", pack.len());
    }
    out.push_str(if pack.is_signed() { ", signed" } else { "" });
    out.push_str(if pack.wants_full() { ", full" } else { "" });
    out
}

fn replies(pack: &ReplyPack) -> String {
    let mut out = format!("replies {}:", pack.view);
    for reply in pack.replies.iter().take(4) {
        let kind = match reply.kind {
            ReplyKind::ReadOnly => "read",
            ReplyKind::TentativeRead => "tentative read",
            ReplyKind::Tentative => "tentative",
            ReplyKind::Committed => "committed",
        };
        let what = match &reply.result {
            ReplyResult::Full(Outcome::Done(bytes)) => format!("{} B", bytes.len()),
            ReplyResult::Full(Outcome::Gone) => "gone".to_owned(),
            ReplyResult::Full(Outcome::NoSession) => "no session".to_owned(),
            ReplyResult::Full(Outcome::Refused(_)) => "refused".to_owned(),
            ReplyResult::Digest(digest) => format!("{digest:?}"),
        };
        let (session, t) = (reply.session.0 & 0xffff_ffff, reply.t);
        let _ = write!(out, " s{session}:{t} {kind} at {} {what}", reply.position.batch());
    }
    if pack.replies.len() > 4 {
        let _ = write!(out, " … {} in all", pack.replies.len());
    }
    out
}

pub(super) fn message(message: &Message) -> String {
    let vote = |name: &str, v: &Vote| format!("{name} {} {} {:?}", v.view, v.n, v.digest);
    let named = |name: &str, c: &Committed| format!("{name} {} {:?}", c.n, c.digest);
    match message {
        Message::PrePrepare(p) => {
            format!("pre-prepare {} {} {:?} {} packs", p.view, p.n, p.digest(), p.packs.len())
        }
        Message::Prepare(v) => vote("prepare", v),
        Message::Commit(v) => vote("commit", v),
        Message::Committed(c) => named("committed", c),
        Message::Checkpoint(SignedCheckpoint { n, root, replica: ReplicaId(i), .. }) => {
            format!("checkpoint {n} {root:?} by r{i}")
        }
        Message::Stable(proof) => format!("stable {}", proof.first().map_or("?".to_owned(), |c| c.n.to_string())),
        Message::Status(s) => format!(
            "status {} h={} executed={}{}{}{}",
            s.view,
            s.stable,
            s.executed,
            if s.wants { " wants" } else { "" },
            if s.recovering { " recovering" } else { "" },
            if s.pending { " pending" } else { "" }
        ),
        Message::FetchBatch(c) => named("fetch-batch", c),
        Message::Batch(n, batch) => format!("batch {n} {:?} {} packs", batch.digest(), batch.packs().len()),
        Message::FetchPack(digest) => format!("fetch-pack {digest:?}"),
        Message::Relay(p) => format!("relay {}", pack(p)),
        Message::Answered(nonce) => format!("answered {nonce:x}"),
        Message::FetchState(fetch) if fetch.items.is_empty() => format!("fetch-state {} header", fetch.n),
        Message::FetchState(fetch) => format!("fetch-state {} {} items", fetch.n, fetch.items.len()),
        Message::State(answer) => match &answer.content {
            StateContent::Absent(held) => format!("state {} absent, {} held", answer.n, held.len()),
            StateContent::Header(_) => format!("state {} header", answer.n),
            StateContent::Parts(parts) => format!("state {} {} parts", answer.n, parts.len()),
        },
        Message::ViewChange(signed) => {
            let v = signed.statement();
            let (p, q) = (v.prepared.len(), v.pre_prepared.len());
            format!("view-change {} by {} h={} P {p} Q {q}", v.view, v.replica, v.stable)
        }
        Message::NewView(signed) => {
            let v = signed.statement();
            let members: Vec<String> = v.members.iter().map(|(r, _)| r.to_string()).collect();
            format!("new-view {} of {} h={} {} chosen", v.view, members.join(" "), v.stable, v.chosen.len())
        }
        Message::QueryStable(nonce) => format!("query-stable {nonce:x}"),
        Message::StableAnswer(a) => format!(
            "stable-answer {:x} signed {} prepared {} {:?}",
            a.nonce,
            a.signed,
            a.prepared,
            a.view_change.as_ref().map(|signed| signed.statement().view)
        ),
        Message::FetchViewChange(wanted) => format!("fetch-view-change {} of {}", wanted.view, wanted.replica),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p44_anything_can_be_described() {
        let mut rng = crate::sim::Rng::new(9);
        for len in 0..300 {
            let mut bytes = vec![0; len];
            rng.fill(&mut bytes);
            if len > 8 {
                bytes[..8].copy_from_slice(&[b'c', b's', b't', 1, 1 + (len % 4) as u8, 1 + (len / 4 % 2) as u8, 0, 1]);
            }
            describe(&bytes.into());
        }
    }
}
