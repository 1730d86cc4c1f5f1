//! Every decoder, on any bytes. What decodes must encode to the same bytes: two encodings of one message would be two
//! digests of it.

use std::time::Duration;

use arbitrary::Unstructured;
use bytes::Bytes;
use castra::types::{Digest, Domain, Hasher, ReplicaId, Time};
use castra::wire::fragment::{Assembled, ReassemblyLimits, TOTAL_MAX};
use castra::wire::frame::{Messages, absorb_received};
use castra::wire::header::Parts;
use castra::wire::{
    FragmentHeader, FragmentPlan, FrameBuffer, Header, Message, NewKey, NewView, Pack, PackBuilder, PackDigests,
    Reassembler, ReplyPack, Signed, Statement, ViewChange, decode_frame, decode_replies,
};

/// The first byte says which decoder the others are for.
pub fn run(data: &[u8]) {
    let Some((&which, data)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(data);
    match which % 8 {
        0 => datagram(&bytes),
        1 => envelope(&bytes),
        2 => frame(&bytes),
        3 => replies(&bytes),
        4 => pack(&bytes),
        5 => signed::<ViewChange>(&bytes),
        6 => signed::<NewView>(&bytes),
        _ => fragments(data),
    }
}

fn datagram(bytes: &Bytes) {
    let Ok(header) = Header::parse(bytes) else { return };
    let Ok(parts) = Parts::split(header, bytes) else { return };
    let fragment = parts.fragment.map(|fragment| fragment.encode());
    let again = [&header.encode()[..], fragment.as_ref().map_or(&[], |f| &f[..]), &parts.proof, &parts.body].concat();
    assert_eq!(&again, bytes);
    if let Ok(key) = NewKey::decode(ReplicaId(0), header.sender_epoch, &parts.proof, &parts.body) {
        assert_eq!((&key.encode(), &key.signature[..]), (&parts.body, &parts.proof[..]));
    }
    envelope(&parts.body);
    pack(&parts.body);
}

/// The frames of an envelope, and what its proof is over.
fn envelope(body: &Bytes) {
    let mut received = Hasher::new(Domain::Envelope);
    let mut known = PackDigests::default();
    let count = absorb_received(body, &mut received, &mut known);
    let same = Messages::with(body.clone(), known).eq(Messages::new(body.clone()));
    assert!(same, "digests computed for the proof are the packs'");
    let mut buffer = FrameBuffer::default();
    let mut good = 0;
    for message in Messages::new(body.clone()) {
        match message {
            Ok(message) => {
                assert!(buffer.push(&message), "what came in a frame goes into one");
                good += 1;
            }
            Err(_) => break,
        }
    }
    let frames = buffer.take();
    assert_eq!(frames.bytes(), &body[..frames.bytes().len()]);
    if frames.bytes().len() == body.len() && count == Ok(good) {
        let mut sent = Hasher::new(Domain::Envelope);
        frames.absorb(0..good, &mut sent);
        assert_eq!(sent.finish(), received.finish(), "both ends digest the same");
    }
}

fn frame(bytes: &Bytes) {
    if bytes.is_empty() {
        return;
    }
    let (kind, body) = (bytes[0], bytes.slice(1..));
    let Ok(message) = decode_frame(kind, &body) else { return };
    same_frame(kind, &body, |buffer| buffer.push(&message));
    if let Message::Relay(inner) = &message {
        pack(inner.encoded());
    }
}

fn replies(body: &Bytes) {
    let Ok(ReplyPack { view, replies }) = decode_replies(body) else { return };
    same_frame(castra::wire::codec::frame_type::REPLIES, body, |buffer| buffer.push_replies(view, &replies));
}

fn same_frame(kind: u8, body: &Bytes, push: impl FnOnce(&mut FrameBuffer) -> bool) {
    let mut buffer = FrameBuffer::default();
    assert!(push(&mut buffer), "what came in a frame goes into one");
    let frames = buffer.take();
    assert_eq!((frames.bytes()[0], &frames.bytes()[8..]), (kind, &body[..]));
}

fn pack(bytes: &Bytes) {
    let Ok(pack) = Pack::parse(bytes.clone()) else { return };
    assert_eq!(pack.encoded(), bytes);
    assert_eq!(pack.requests().len(), pack.len());
    let mut builder = PackBuilder::new(pack.client(), pack.endpoint());
    for request in pack.requests() {
        assert!(request.low <= request.t, "P4");
        // A sender keeps its packs below half of what a receiver takes.
        if !builder.accepts(&request) {
            return;
        }
        builder.push(&request);
    }
    let again = builder.finish(pack.wants_full(), |_, writer| writer.write(pack.proof()));
    assert_eq!(again, pack);
    assert_eq!(pack.settle(), pack);
}

fn signed<T: Statement + PartialEq + std::fmt::Debug>(bytes: &Bytes) {
    let Ok(signed) = Signed::<T>::decode(bytes) else { return };
    let mut again = bytes::BytesMut::new();
    signed.statement().encode(&mut again);
    assert_eq!(again.len() + 64, bytes.len());
    assert_eq!(again, bytes[..again.len()]);
    assert_eq!(signed.digest(), Digest::of(T::DOMAIN, &[&again]));
    assert_eq!((&signed.signature()[..], signed.encoded()), (&bytes[again.len()..], bytes));
}

/// The content of message `message` of `origin`, so that a whole can be told from a patchwork.
fn content(origin: u64, message: u64, at: usize) -> u8 {
    (origin * 7 + message * 31 + at as u64 % 251) as u8
}

/// Pieces in any order, of any plan, for a reassembler with bounds of its own.
fn fragments(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let limits = ReassemblyLimits { bytes_max: 2 * TOTAL_MAX, entries_max: 4, timeout: Duration::from_secs(1) };
    let mut reassembler = Reassembler::new(limits);
    let mut now = Time(0);
    let mut dropped = 0;
    while let Ok(step) = u.arbitrary::<u8>() {
        if u.is_empty() {
            return;
        }
        let mut number = |max: u64| u.int_in_range(0..=max).unwrap_or(0);
        let (origin, message) = (number(2), number(3));
        let (header, piece) = if step < 200 {
            // A plan that a sender may have.
            let plan = FragmentPlan::new(1 + number(9_000) as usize, 1_232 + number(300) as usize);
            let index = number(plan.count() as u64 - 1) as usize;
            let piece = plan.range(index).map(|at| content(origin, message, at)).collect();
            (plan.header(message, index), piece)
        } else {
            let header = FragmentHeader {
                message,
                index: number(u64::from(u16::MAX)) as u16,
                count: number(u64::from(u16::MAX)) as u16,
                total: number(u64::from(u32::MAX)) as u32,
            };
            (header, vec![0; number(2_000) as usize])
        };
        now = now + Duration::from_millis(number(1_200));
        let before = dropped;
        let came = reassembler.insert(now, origin, header, &piece, &mut dropped);
        assert!(dropped >= before && reassembler.bytes() <= limits.bytes_max);
        assert!(reassembler.len() <= limits.entries_max);
        if let (Ok(Assembled::Complete(whole)), true) = (came, step < 200) {
            assert_eq!(whole.len(), header.total as usize);
            // Of one plan, but perhaps with pieces that a liar filled with zeroes.
            let own = whole.iter().enumerate().all(|(at, &byte)| byte == content(origin, message, at) || byte == 0);
            assert!(own, "every byte is where its piece put it");
        }
    }
}
