//! Properties of every layout, both ways.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

use super::codec::{self, frame_type};
use super::fragment::{Assembled, OVERHEAD, ReassemblyLimits, TOTAL_MAX};
use super::frame::{self, FRAME_HEAD, Messages};
use super::header::{HEADER, Parts, Principal};
use super::*;
use crate::limits;
use crate::types::{
    ClientId, ClusterSize, Digest, Domain, EndpointId, Hasher, Position, RegionId, ReplicaId, ReplicaSet, SeqNum,
    SessionId, Time, View,
};

fn digests() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn short_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![4 => vec(any::<u8>(), 0..80), 1 => vec(any::<u8>(), 200..700)]
}

fn signatures() -> impl Strategy<Value = [u8; 64]> {
    vec(any::<u8>(), 64).prop_map(|bytes| bytes.try_into().unwrap())
}

/// Packs of one kind of request, under a vector or a signature.
fn packs() -> impl Strategy<Value = Pack> {
    let request = (1..u64::MAX, any::<u64>(), any::<u64>(), 0..3u8, short_bytes());
    let proof = (any::<bool>(), vec(any::<[u8; 8]>(), 1..8), signatures(), any::<bool>());
    (any::<[u64; 2]>(), any::<bool>(), vec(request, 1..6), proof).prop_map(|(ids, read_only, requests, proof)| {
        let mut builder = PackBuilder::new(ClientId(ids[0]), EndpointId(ids[1]));
        for (session, a, b, kind, op) in &requests {
            let (low, t) = (*a.min(b), *a.max(b));
            let opening = [t.to_le_bytes(), 16u64.to_le_bytes()].concat();
            let (session, kind, op) = match (read_only, kind) {
                (true, _) => (SessionId::NONE, RequestKind::ReadOnly, op.as_slice()),
                (false, 0) => (SessionId(*session), RequestKind::Ordered, op.as_slice()),
                (false, 1) => (SessionId::NONE, RequestKind::Open, opening.as_slice()),
                (false, _) => (SessionId(*session), RequestKind::Close, &[][..]),
            };
            builder.push(&Request { session, t, low, kind, op });
        }
        let (signed, entries, signature, full) = proof;
        builder.finish(full, |_, writer| match signed {
            true => writer.write(Proof::Signature { identity: &[7; 64], signature: &signature }),
            false => writer.write(Proof::Vector(&entries)),
        })
    })
}

fn view_of(bits: u64) -> View {
    View(bits & limits::VIEW_MAX)
}

fn sequence_of(bits: u64) -> SeqNum {
    SeqNum(bits & limits::SEQUENCE_MAX)
}

fn checkpoints() -> impl Strategy<Value = SignedCheckpoint> {
    (0..=limits::SEQUENCE_MAX, digests(), 0..limits::REPLICAS_MAX as u8, any::<u64>(), signatures()).prop_map(
        |(n, root, replica, boot, signature)| SignedCheckpoint {
            n: SeqNum(n),
            root,
            replica: ReplicaId(replica),
            boot,
            signature,
        },
    )
}

fn bitmaps() -> impl Strategy<Value = Vec<u64>> {
    vec(any::<u64>(), 0..5).prop_map(|mut words| {
        while words.last() == Some(&0) {
            words.pop();
        }
        words
    })
}

fn choices() -> impl Strategy<Value = Choice> {
    (any::<u64>(), any::<u64>()).prop_map(|(time, seed)| Choice { time, seed })
}

fn regions() -> impl Strategy<Value = RegionId> {
    any::<bool>().prop_map(|service| RegionId::BOTH[usize::from(service)])
}

fn state_items() -> impl Strategy<Value = StateItem> {
    prop_oneof![
        (regions(), 0..8u8, any::<u32>()).prop_map(|(region, level, group)| StateItem::Nodes { region, level, group }),
        (regions(), any::<u32>()).prop_map(|(region, page)| StateItem::Page { region, page }),
    ]
}

fn state_contents() -> impl Strategy<Value = StateContent> {
    let head = || (any::<u32>(), any::<[u8; 32]>()).prop_map(|(pages, root)| RegionHead { pages, root });
    let page = (vec(any::<u8>(), 0..limits::PAGE), 1..=u8::MAX, any::<bool>()).prop_map(|(mut bytes, last, empty)| {
        bytes.push(last);
        StatePart::Page(if empty { Bytes::new() } else { bytes.into() })
    });
    let part = prop_oneof![vec(any::<[u8; 32]>(), 1..=16).prop_map(StatePart::Nodes), page];
    prop_oneof![
        proptest::collection::btree_set(0..=limits::SEQUENCE_MAX, 0..limits::STATE_HELD_MAX)
            .prop_map(|held| StateContent::Absent(held.into_iter().map(sequence_of).collect())),
        [head(), head()].prop_map(StateContent::Header),
        vec(part, 0..5).prop_map(StateContent::Parts),
    ]
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    vec((0..9u64, any::<u64>(), digests()), 0..6).prop_map(|entries| {
        let entries =
            entries.into_iter().map(|(n, view, digest)| Entry { n: sequence_of(n), view: view_of(view), digest });
        let mut entries: Vec<Entry> = entries.collect();
        entries.sort_by_key(|e| (e.n, e.digest));
        entries
    })
}

fn view_changes() -> impl Strategy<Value = Signed<ViewChange>> {
    let ids = (0..limits::REPLICAS_MAX as u8, any::<[u64; 3]>());
    (ids, checkpoints(), 0..5u8, entries(), entries(), signatures()).prop_map(
        |((replica, [boot, view, stable]), first, proofs, mut prepared, pre_prepared, signature)| {
            prepared.dedup_by_key(|entry| entry.n);
            let proof = (0..proofs).map(|i| SignedCheckpoint { replica: ReplicaId(i), ..first }).collect();
            let (replica, view, stable) = (ReplicaId(replica), view_of(view), sequence_of(stable));
            Signed::new(ViewChange { replica, boot, view, stable, proof, prepared, pre_prepared }, |_| signature)
        },
    )
}

fn new_views() -> impl Strategy<Value = Signed<NewView>> {
    let ids = (0..limits::REPLICAS_MAX as u8, any::<[u64; 3]>());
    (ids, vec(digests(), 0..5), vec(digests(), 0..5), signatures()).prop_map(
        |((replica, [boot, view, stable]), members, chosen, signature)| {
            let members = members.into_iter().enumerate().map(|(i, digest)| (ReplicaId(i as u8), digest)).collect();
            let (replica, view, stable) = (ReplicaId(replica), view_of(view), sequence_of(stable));
            Signed::new(NewView { replica, boot, view, members, stable, chosen }, |_| signature)
        },
    )
}

/// Every kind of message.
fn messages() -> impl Strategy<Value = Message> {
    let vote = || {
        (any::<u64>(), any::<u64>(), digests()).prop_map(|(v, n, digest)| Vote {
            view: view_of(v),
            n: sequence_of(n),
            digest,
        })
    };
    let committed = || (any::<u64>(), digests()).prop_map(|(n, digest)| Committed { n: sequence_of(n), digest });
    let proposed = prop_oneof![packs().prop_map(Proposed::Inline), digests().prop_map(Proposed::ByDigest)];
    let pre_prepare = (any::<u64>(), any::<u64>(), choices(), vec(proposed, 0..4)).prop_map(|(v, n, choice, packs)| {
        Message::PrePrepare(PrePrepare { view: view_of(v), n: sequence_of(n), choice, packs })
    });
    let batch = (any::<u64>(), choices(), vec(packs(), 0..4))
        .prop_map(|(n, choice, packs)| Message::Batch(sequence_of(n), Arc::new(Batch::new(choice, packs))));
    let stable = (checkpoints(), 1..8u8).prop_map(|(first, count)| {
        Message::Stable((0..count).map(|i| SignedCheckpoint { replica: ReplicaId(i), ..first }).collect())
    });
    let status = (any::<[u64; 7]>(), any::<[bool; 3]>(), bitmaps(), bitmaps()).prop_map(
        |([view, stable, executed, nonce, held, until, floor], [recovering, wants, pending], prepared, committed)| {
            let (view, stable, executed) = (view_of(view), sequence_of(stable), sequence_of(executed));
            let view_changes = ReplicaSet::from_bits(held);
            Message::Status(Status {
                view,
                stable,
                executed,
                recovering,
                until: sequence_of(until),
                floor: view_of(floor),
                wants,
                pending,
                view_changes,
                nonce,
                prepared,
                committed,
            })
        },
    );
    let nonces = || any::<[u64; 2]>();
    let fetch_state = (nonces(), vec(state_items(), 0..20))
        .prop_map(|([n, nonce], items)| Message::FetchState(FetchState { n: sequence_of(n), nonce, items }));
    let state = (nonces(), state_contents())
        .prop_map(|([n, nonce], content)| Message::State(StateAnswer { n: sequence_of(n), nonce, content }));
    prop_oneof![
        fetch_state,
        state,
        pre_prepare,
        vote().prop_map(Message::Prepare),
        vote().prop_map(Message::Commit),
        committed().prop_map(Message::Committed),
        checkpoints().prop_map(Message::Checkpoint),
        stable,
        status,
        committed().prop_map(Message::FetchBatch),
        batch,
        digests().prop_map(Message::FetchPack),
        packs().prop_map(Message::Relay),
        any::<u64>().prop_map(Message::Answered),
        view_changes().prop_map(|v| Message::ViewChange(Arc::new(v))),
        new_views().prop_map(|v| Message::NewView(Arc::new(v))),
        (any::<u64>(), 0..limits::REPLICAS_MAX as u8, digests()).prop_map(|(view, replica, digest)| {
            let (view, replica) = (view_of(view), ReplicaId(replica));
            Message::FetchViewChange(WantedViewChange { view, replica, digest })
        }),
        any::<u64>().prop_map(Message::QueryStable),
        (any::<[u64; 3]>(), proptest::option::of(view_changes())).prop_map(|([nonce, signed, prepared], held)| {
            let (signed, prepared, view_change) = (sequence_of(signed), sequence_of(prepared), held.map(Arc::new));
            Message::StableAnswer(StableAnswer { nonce, signed, prepared, view_change })
        }),
    ]
}

fn reply_entries() -> impl Strategy<Value = ReplyEntry> {
    let refusal = prop_oneof![
        any::<u64>().prop_map(|last| Refusal::Counter { last }),
        any::<u64>().prop_map(|sessions_max| Refusal::Quota { sessions_max }),
        any::<u64>().prop_map(|window_max| Refusal::Window { window_max }),
        any::<u64>().prop_map(|sessions_max| Refusal::Full { sessions_max }),
    ];
    let outcome = prop_oneof![
        short_bytes().prop_map(|bytes| Outcome::Done(bytes.into())),
        Just(Outcome::Gone),
        Just(Outcome::NoSession),
        refusal.prop_map(Outcome::Refused),
    ];
    let result = prop_oneof![outcome.prop_map(ReplyResult::Full), digests().prop_map(ReplyResult::Digest)];
    let kind = prop_oneof![
        Just(ReplyKind::ReadOnly),
        Just(ReplyKind::Tentative),
        Just(ReplyKind::Committed),
        Just(ReplyKind::TentativeRead)
    ];
    (any::<[u64; 3]>(), kind, result).prop_map(|([session, t, position], kind, result)| ReplyEntry {
        session: SessionId(session),
        t,
        kind,
        position: Position(position),
        result,
    })
}

fn encode(message: &Message) -> (u8, Bytes) {
    let mut out = BytesMut::new();
    codec::encode_body(message, &mut out);
    (codec::frame_type_of(message), out.freeze())
}

/// What decodes is what was encoded, whatever the bytes: one message has one encoding.
fn check_canonical(kind: u8, body: &Bytes) {
    if let Ok(message) = decode_frame(kind, body) {
        assert_eq!(encode(&message), (kind, body.clone()));
    }
    if let Ok(replies) = decode_replies(body) {
        let mut buffer = FrameBuffer::default();
        assert!(buffer.push_replies(replies.view, &replies.replies));
        assert_eq!(&buffer.take().bytes()[FRAME_HEAD..], body);
    }
    if let Ok(pack) = Pack::parse(body.clone()) {
        assert_eq!(pack.requests().count(), pack.len());
        assert!(pack.requests().all(|request| request.low <= request.t));
        let _ = (pack.proof(), pack.wants_full());
    }
}

proptest! {
    #[test]
    fn p44_messages_survive_the_wire(messages in vec(messages(), 1..6)) {
        let mut buffer = FrameBuffer::default();
        for message in &messages {
            prop_assert!(buffer.push(message));
        }
        let frames = buffer.take();
        prop_assert_eq!(frames.len(), messages.len());
        let decoded: Result<Vec<_>, _> = Messages::new(frames.bytes().clone()).collect();
        prop_assert_eq!(decoded, Ok(messages));
    }

    #[test]
    fn p44_replies_survive_the_wire(view: u64, replies in vec(reply_entries(), 1..6)) {
        let mut buffer = FrameBuffer::default();
        let view = view_of(view);
        prop_assert!(buffer.push_replies(view, &replies));
        let frames = buffer.take();
        let lens: usize = replies.iter().map(replies::reply_len).sum();
        prop_assert_eq!(frames.bytes().len(), FRAME_HEAD + replies::REPLIES_HEAD + lens);
        let mut frames = Messages::new(frames.bytes().clone());
        let decoded = frames.next_replies().map(|frame| frame.map(|frame| frame.to_pack()));
        prop_assert_eq!(decoded, Some(Ok(ReplyPack { view, replies })));
        prop_assert!(frames.next_replies().is_none());
    }

    #[test]
    fn p44_truncation_is_always_noticed(message in messages(), cut in any::<prop::sample::Index>()) {
        let (kind, body) = encode(&message);
        // Every cut of what is short: one in hundreds can be where a message may end.
        let cuts = (0..body.len().min(1_000)).chain([cut.index(body.len())]);
        for len in cuts {
            match (decode_frame(kind, &body.slice(..len)), &message) {
                // Two are messages too without what comes last: the frame's length, which is proved, says which it is.
                (Ok(Message::Stable(proof)), Message::Stable(whole)) => prop_assert!(whole.len() > proof.len()),
                (Ok(Message::StableAnswer(StableAnswer { view_change: None, .. })), Message::StableAnswer(whole)) => {
                    prop_assert!(whole.view_change.is_some());
                }
                (Ok(other), _) => prop_assert!(false, "{len} of {} bytes were taken for {other:?}", body.len()),
                (Err(_), _) => {}
            }
        }
    }

    #[test]
    fn p44_flipped_bits_are_rejected_or_canonical(message in messages(), bits in vec(any::<prop::sample::Index>(), 1..4)) {
        let (kind, body) = encode(&message);
        let mut damaged = body.to_vec();
        for bit in bits {
            let bit = bit.index(8 * damaged.len());
            damaged[bit / 8] ^= 1 << (bit % 8);
        }
        check_canonical(kind, &damaged.into());
    }

    #[test]
    fn p44_any_bytes_are_rejected_or_canonical(kind in prop_oneof![1u8..21, Just(64), any::<u8>()], body in vec(any::<u8>(), 0..400)) {
        check_canonical(kind, &body.into());
    }

    #[test]
    fn p44_any_bytes_as_frames_and_headers(bytes in vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let count = frame::absorb_received(&bytes, &mut Hasher::new(Domain::Envelope), &mut PackDigests::default());
        prop_assert!(Messages::new(bytes.clone()).count() <= count.unwrap_or(bytes.len() / FRAME_HEAD) + 1);
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert_eq!(&header.encode(), &bytes[..HEADER]);
            let _ = Parts::split(header, &bytes);
        }
    }

    #[test]
    fn p44_a_damaged_frame_drops_the_rest_and_keeps_what_was_before(messages in vec(messages(), 2..6), at in any::<prop::sample::Index>()) {
        let at = at.index(messages.len());
        let mut buffer = FrameBuffer::default();
        let mut damaged_at = 0;
        for (i, message) in messages.iter().enumerate() {
            if i == at {
                damaged_at = buffer.len();
            }
            prop_assert!(buffer.push(message));
        }
        let mut bytes = buffer.take().bytes().to_vec();
        bytes[damaged_at] = 0xee;
        let decoded: Vec<_> = Messages::new(bytes.into()).collect();
        prop_assert_eq!(decoded.len(), at + 1);
        for (decoded, message) in decoded.iter().zip(&messages[..at]) {
            prop_assert_eq!(decoded.as_ref(), Ok(message));
        }
        prop_assert_eq!(&decoded[at], &Err(Malformed::UnknownTag));
    }

    #[test]
    fn p44_a_proof_covers_every_bit_of_every_frame(messages in vec(messages(), 1..4), bit in any::<prop::sample::Index>()) {
        let mut buffer = FrameBuffer::default();
        for message in &messages {
            prop_assert!(buffer.push(message));
        }
        let mut bytes = buffer.take().bytes().to_vec();
        let digest = |bytes: &[u8]| {
            let mut hasher = Hasher::new(Domain::Envelope);
            frame::absorb_received(bytes, &mut hasher, &mut PackDigests::default()).map(|_| hasher.finish())
        };
        let before = digest(&bytes);
        prop_assert!(before.is_ok());
        let bit = bit.index(8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_ne!(digest(&bytes), before);
    }

    #[test]
    fn runs_cover_all_frames_and_both_ends_digest_alike(messages in vec(messages(), 1..12), max in 64usize..2_000) {
        let mut buffer = FrameBuffer::default();
        for message in &messages {
            prop_assert!(buffer.push(message));
        }
        let frames = buffer.take();
        let mut at = 0;
        let mut bytes = Vec::new();
        for run in frames.runs(max) {
            prop_assert_eq!(run.start, at);
            at = run.end;
            let slice = frames.slice(run.clone());
            prop_assert!(slice.len() <= max || run.len() == 1);
            bytes.extend_from_slice(&slice);
            let (mut sent, mut received) = (Hasher::new(Domain::Envelope), Hasher::new(Domain::Envelope));
            frames.absorb(run.clone(), &mut sent);
            let mut known = PackDigests::default();
            prop_assert_eq!(frame::absorb_received(&slice, &mut received, &mut known), Ok(run.len()));
            prop_assert_eq!(sent.finish(), received.finish());
            let decoded: Vec<_> = Messages::with(slice.clone(), known).map(Result::unwrap).collect();
            prop_assert_eq!(&decoded[..], &messages[run]);
        }
        prop_assert_eq!(at, messages.len());
        prop_assert_eq!(&bytes[..], &frames.bytes()[..]);
    }

    #[test]
    fn headers_survive_the_wire(kind in 0..5usize, replica in 0..64u8, ids: [u64; 3], epochs: [u32; 2], shape in 0..3) {
        let replica = Principal::Replica(ReplicaId(replica));
        let client = Principal::Client(ClientId(ids[0]), EndpointId(ids[1]));
        let (sender, receiver) = match shape {
            0 => (replica, client),
            1 => (client, replica),
            _ => (replica, Principal::Replica(ReplicaId(63))),
        };
        let kind = [Kind::Envelope, Kind::Pack, Kind::Fragment, Kind::NewKey, Kind::Receipt][kind];
        let proof = if kind == Kind::NewKey { ProofKind::Signature } else { ProofKind::Mac };
        let [sender_epoch, receiver_epoch] = epochs;
        let header =
            Header { kind, proof, receiver, sender, cluster: ids[2], sender_epoch, receiver_epoch };
        prop_assert_eq!(Header::parse(&header.encode()), Ok(header));
    }

    #[test]
    fn p01_the_digest_covers_every_request_and_not_the_hints(pack in packs(), bit in any::<prop::sample::Index>()) {
        let body = pack.encoded();
        let body_len = u32::from_le_bytes(body[20..24].try_into().unwrap()) as usize;
        let hinted = |flip: u8| {
            let mut bytes = body.to_vec();
            bytes[body_len] ^= flip;
            Pack::parse(bytes.into()).unwrap()
        };
        prop_assert_eq!(hinted(1).digest(), pack.digest());
        prop_assert_ne!(hinted(1).wants_full(), pack.wants_full());
        let bit = bit.index(8 * body_len);
        let mut bytes = body.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = Pack::parse(bytes.into()) {
            prop_assert_ne!(other.digest(), pack.digest());
        }
        prop_assert_eq!(&pack.settle(), &pack);
    }

    #[test]
    fn p44_fragments_in_any_order_make_the_whole(
        total in 1usize..100_000, datagram_max in limits::DATAGRAM_MIN..9_000, order: [u8; 32], resend: bool,
    ) {
        let whole: Vec<u8> = (0..total).map(|i| (i % 251) as u8).collect();
        let plan = FragmentPlan::new(total, datagram_max);
        let mut pieces: Vec<usize> = (0..plan.count()).chain((0..plan.count()).filter(|_| resend)).collect();
        pieces.sort_by_key(|i| Digest::of(Domain::Body, &[&order, &i.to_le_bytes()]).0);
        let mut reassembler = Reassembler::new(ReassemblyLimits::default());
        let (mut complete, mut dropped) = (0, 0);
        for i in pieces {
            let piece = &whole[plan.range(i)];
            prop_assert!(!piece.is_empty() && piece.len() + OVERHEAD <= datagram_max);
            match reassembler.insert(Time(1), 0, plan.header(9, i), piece, &mut dropped).unwrap() {
                Assembled::NoRoom => prop_assert!(false, "one message always has room"),
                Assembled::Partial => {}
                Assembled::Complete(bytes) => {
                    prop_assert_eq!(&bytes[..], &whole[..]);
                    complete += 1;
                }
            }
        }
        prop_assert_eq!((complete, dropped, reassembler.len(), reassembler.bytes()), (1, 0, 0, 0));
    }

    #[test]
    fn p21_reassembly_stays_within_its_bounds(
        pieces in vec((0..40u64, any::<u16>(), 1..4_200u16, 1..5_000_000u32, 0..3_000usize, 0..900u64), 0..40),
    ) {
        let limits = ReassemblyLimits { entries_max: 5, ..ReassemblyLimits::default() };
        let mut reassembler = Reassembler::new(limits);
        let (mut now, mut dropped) = (Time(0), 0);
        for (message, index, count, total, len, millis) in pieces {
            now = now + Duration::from_millis(millis / 100);
            let header = FragmentHeader { message, index: index % count, count, total };
            // Mostly pieces of the right length.
            let right = (total as usize).div_ceil(usize::from(count)).min(5_000);
            let len = if len % 4 == 0 { len } else { right };
            let _ = reassembler.insert(now, 0, header, &vec![1; len], &mut dropped);
            prop_assert!(reassembler.len() <= limits.entries_max && reassembler.bytes() <= limits.bytes_max);
        }
        reassembler.expire(now + limits.timeout);
        prop_assert_eq!((reassembler.len(), reassembler.bytes()), (0, 0));
    }
}

fn quiet_status() -> Status {
    Status {
        view: View(0),
        stable: SeqNum(0),
        executed: SeqNum(0),
        recovering: false,
        until: SeqNum(0),
        floor: View(0),
        wants: false,
        pending: false,
        view_changes: ReplicaSet::EMPTY,
        nonce: 0,
        prepared: vec![0; 8],
        committed: vec![5, 0, 0],
    }
}

/// Every message that names a view or a sequence number, with these, and which of the two it names.
fn naming(view: u64, n: u64) -> Vec<(Message, bool, bool)> {
    let (v, n, digest) = (View(view), SeqNum(n), Digest([1; 32]));
    let (replica, nonce, choice) = (ReplicaId(1), 1, Choice { time: 1, seed: 1 });
    let vote = Vote { view: v, n, digest };
    let status = Status { view: v, stable: n, executed: n, until: n, floor: v, ..quiet_status() };
    let entries = vec![Entry { n, view: v, digest }];
    let view_change = ViewChange {
        replica,
        boot: 1,
        view: v,
        stable: n,
        proof: vec![],
        prepared: entries.clone(),
        pre_prepared: entries,
    };
    let new_view = NewView { replica, boot: 1, view: v, members: vec![], stable: n, chosen: vec![] };
    vec![
        (Message::PrePrepare(PrePrepare { view: v, n, choice, packs: vec![] }), true, true),
        (Message::Prepare(vote), true, true),
        (Message::Commit(vote), true, true),
        (Message::Committed(Committed { n, digest }), false, true),
        (Message::FetchBatch(Committed { n, digest }), false, true),
        (Message::Batch(n, Arc::new(Batch::new(choice, vec![]))), false, true),
        (Message::Checkpoint(SignedCheckpoint { n, root: digest, replica, boot: 1, signature: [0; 64] }), false, true),
        (Message::Status(status), true, true),
        (Message::FetchState(FetchState { n, nonce, items: vec![] }), false, true),
        (Message::State(StateAnswer { n, nonce, content: StateContent::Parts(vec![]) }), false, true),
        (Message::FetchViewChange(WantedViewChange { view: v, replica, digest }), true, false),
        (Message::StableAnswer(StableAnswer { nonce, signed: n, prepared: n, view_change: None }), false, true),
        (Message::ViewChange(Arc::new(Signed::new(view_change, |_| [0; 64]))), true, true),
        (Message::NewView(Arc::new(Signed::new(new_view, |_| [0; 64]))), true, true),
    ]
}

#[test]
fn p44_views_and_sequence_numbers_that_nothing_could_follow_are_malformed() {
    let read = |message: &Message| {
        let mut buffer = FrameBuffer::default();
        assert!(buffer.push(message));
        Messages::new(buffer.take().bytes().clone()).next().unwrap().map(|_| ())
    };
    let within = naming(limits::VIEW_MAX, limits::SEQUENCE_MAX);
    let (late, far) = (naming(limits::VIEW_MAX + 1, 1), naming(1, limits::SEQUENCE_MAX + 1));
    let bound = |is_named: bool| if is_named { Err(Malformed::OutOfBounds) } else { Ok(()) };
    for (i, (message, views, sequences)) in within.iter().enumerate() {
        assert_eq!(read(message), Ok(()), "{message:?}");
        assert_eq!(read(&late[i].0), bound(*views), "{:?}", late[i].0);
        assert_eq!(read(&far[i].0), bound(*sequences), "{:?}", far[i].0);
    }
}

#[test]
fn p21_a_message_that_stands_still_makes_room_and_one_that_moves_on_does_not() {
    let limits = ReassemblyLimits { entries_max: 2, ..ReassemblyLimits::default() };
    let mut reassembler = Reassembler::new(limits);
    let plan = FragmentPlan::new(3_000, limits::DATAGRAM_MIN);
    let mut dropped = 0;
    let mut insert = |message: u64, index: usize, ms: u64| {
        let piece = vec![7; plan.range(index).len()];
        reassembler.insert(Time(ms * 1_000_000), 0, plan.header(message, index), &piece, &mut dropped).unwrap()
    };
    assert_eq!(plan.count(), 3);
    insert(1, 0, 10);
    insert(2, 0, 20);
    insert(1, 1, 90);
    assert_eq!(insert(3, 0, 1_019), Assembled::NoRoom);
    assert_eq!(insert(3, 0, 1_020), Assembled::Partial, "2 goes");
    assert!(matches!(insert(1, 2, 1_021), Assembled::Complete(_)));
    insert(2, 1, 1_022);
    insert(3, 1, 1_023);
    assert!(matches!(insert(3, 2, 1_024), Assembled::Complete(_)));
    assert_eq!(insert(2, 2, 1_025), Assembled::Partial);
    assert_eq!(insert(1, 0, 1_026), Assembled::Partial, "it was completed");
    assert_eq!(dropped, 2);
}

#[test]
fn p21_what_has_begun_has_room_to_grow_though_more_would_begin() {
    let limits = ReassemblyLimits { bytes_max: 2 * TOTAL_MAX, entries_max: 1_000, ..ReassemblyLimits::default() };
    let mut reassembler = Reassembler::new(limits);
    let plan = FragmentPlan::new(limits::OPERATION_MAX, limits::DATAGRAM_MIN);
    let insert = |reassembler: &mut Reassembler, message: u64, index: usize| {
        let piece = vec![7; plan.range(index).len()];
        reassembler.insert(Time(1), 0, plan.header(message, index), &piece, &mut 0).unwrap()
    };
    assert_eq!(insert(&mut reassembler, 0, 0), Assembled::Partial);
    let began = reassembler.bytes();
    assert!(began < 32 << 10, "it announces much, and has {began} bytes");
    let more = (1..).take_while(|message| insert(&mut reassembler, *message, 60) == Assembled::Partial).count();
    assert_eq!(more, 3, "each has so much that all of it must have room: {}", reassembler.bytes());
    for index in 1..plan.count() - 1 {
        assert_eq!(insert(&mut reassembler, 0, index), Assembled::Partial);
    }
    assert!(matches!(insert(&mut reassembler, 0, plan.count() - 1), Assembled::Complete(_)));
}

#[test]
fn unfinished_messages_time_out() {
    let limits = ReassemblyLimits::default();
    let mut reassembler = Reassembler::new(limits);
    let plan = FragmentPlan::new(3_000, limits::DATAGRAM_MIN);
    let piece = vec![7; plan.range(0).len()];
    reassembler.insert(Time(0), 0, plan.header(1, 0), &piece, &mut 0).unwrap();
    let due = Time(0) + limits.timeout;
    assert_eq!((reassembler.expire(Time(due.0 - 1)), reassembler.len()), (0, 1));
    assert_eq!((reassembler.expire(due), reassembler.len()), (1, 0));
}

#[test]
fn p44_the_largest_message_fits_the_smallest_datagram() {
    let plan = FragmentPlan::new(TOTAL_MAX, limits::DATAGRAM_MIN);
    assert!(plan.count() <= limits::FRAGMENTS_MAX);
}

#[test]
fn p44_counts_do_not_allocate_what_has_not_arrived() {
    // A pre-prepare, a batch, replies and a pack that announce much and hold nothing.
    let mut pre_prepare = vec![0; 32];
    pre_prepare.extend_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode_frame(frame_type::PRE_PREPARE, &pre_prepare.into()), Err(Malformed::OutOfBounds));
    let mut batch = vec![0; 24];
    batch.extend_from_slice(&1_000u32.to_le_bytes());
    assert_eq!(decode_frame(frame_type::BATCH, &batch.into()), Err(Malformed::OutOfBounds));
    let mut replies = vec![0; 8];
    replies.extend_from_slice(&1_000u32.to_le_bytes());
    assert_eq!(decode_replies(&replies.into()), Err(Malformed::OutOfBounds));
    let mut pack = vec![0; 16];
    pack.extend_from_slice(&[0xff, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(Pack::parse(pack.into()), Err(Malformed::OutOfBounds));
}

/// A pack of one request whose fields are written as given, checked by nobody.
fn raw_pack(requests: &[Request<'_>]) -> Bytes {
    let mut bytes = vec![0; 24];
    bytes[16..18].copy_from_slice(&(requests.len() as u16).to_le_bytes());
    for request in requests {
        for field in [request.session.0, request.t, request.low] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&[request.kind as u8, 0, 0, 0]);
        bytes.extend_from_slice(&(request.op.len() as u32).to_le_bytes());
        bytes.extend_from_slice(request.op);
    }
    let body_len = bytes.len() as u32;
    bytes[20..24].copy_from_slice(&body_len.to_le_bytes());
    bytes.extend_from_slice(&[0, 1, 1]);
    bytes.extend_from_slice(&[0; 8]);
    bytes.into()
}

#[test]
fn p04_a_low_above_t_is_malformed() {
    let request = Request { session: SessionId(1), t: 5, low: 5, kind: RequestKind::Ordered, op: b"x" };
    assert!(Pack::parse(raw_pack(&[request])).is_ok());
    let above = Request { low: 6, ..request };
    assert_eq!(Pack::parse(raw_pack(&[above])), Err(Malformed::LowAboveT));
}

#[test]
fn p46_read_only_and_ordered_requests_do_not_mix() {
    let ordered = Request { session: SessionId(1), t: 5, low: 5, kind: RequestKind::Ordered, op: b"x" };
    let query = Request { session: SessionId::NONE, kind: RequestKind::ReadOnly, ..ordered };
    assert!(Pack::parse(raw_pack(&[query, query])).unwrap().is_read_only());
    assert_eq!(Pack::parse(raw_pack(&[query, ordered])), Err(Malformed::MixedKinds));
    let mut builder = PackBuilder::new(ClientId(1), EndpointId(2));
    assert!(builder.push(&ordered).accepts(&ordered) && !builder.accepts(&query));
}

#[test]
fn p09_requests_must_suit_their_kind() {
    let open = [9u64.to_le_bytes(), 64u64.to_le_bytes()].concat();
    let good = Request { session: SessionId::NONE, t: 9, low: 0, kind: RequestKind::Open, op: &open };
    assert_eq!(Pack::parse(raw_pack(&[good])).unwrap().requests().next().unwrap().open(), Some((9, 64)));
    for bad in [
        Request { t: 8, ..good },
        Request { session: SessionId(1), ..good },
        Request { op: &open[1..], ..good },
        Request { kind: RequestKind::Ordered, ..good },
        Request { kind: RequestKind::Close, ..good },
        Request { kind: RequestKind::Close, session: SessionId(1), ..good },
        Request { kind: RequestKind::ReadOnly, session: SessionId(1), ..good },
    ] {
        assert_eq!(Pack::parse(raw_pack(&[bad])), Err(Malformed::Inconsistent), "{bad:?}");
    }
}

#[test]
fn p07_p53_default_repliers_are_spread_over_the_preferred_quorum() {
    let size = ClusterSize::of(4).unwrap();
    for (session, view) in [(0, 0), (1 << 20, 1), (77 << 20, 6), (5, u64::MAX)] {
        let mut counts = [0; 4];
        for t in 1..=3_000 {
            counts[usize::from(default_replier(SessionId(session), t, View(view), size).0)] += 1;
        }
        for id in size.replicas() {
            let expected = if size.preferred(View(view)).contains(id) { 800..1_200 } else { 0..1 };
            assert!(expected.contains(&counts[usize::from(id.0)]), "session {session}, view {view}: {counts:?}");
        }
    }
}

#[test]
fn a_status_without_news_is_small() {
    let status = quiet_status();
    let (kind, body) = encode(&Message::Status(status.clone()));
    assert_eq!(body.len(), 62 + 8);
    let trimmed = Status { prepared: vec![], committed: vec![5], ..status };
    assert_eq!(decode_frame(kind, &body), Ok(Message::Status(trimmed)));
}

#[test]
fn p45_entries_are_sorted_and_p_has_one_for_each_n() {
    let entry = |n: u64, d: u8| Entry { n: SeqNum(n), view: View(0), digest: Digest([d; 32]) };
    let decoded = |prepared: &[Entry], pre_prepared: &[Entry], signers: &[u8]| {
        let checkpoint = |r: &u8| SignedCheckpoint {
            n: SeqNum(8),
            root: Digest([1; 32]),
            replica: ReplicaId(*r),
            boot: 0,
            signature: [0; 64],
        };
        let v = ViewChange {
            replica: ReplicaId(1),
            boot: 0,
            view: View(1),
            stable: SeqNum(8),
            proof: signers.iter().map(checkpoint).collect(),
            prepared: prepared.to_vec(),
            pre_prepared: pre_prepared.to_vec(),
        };
        Signed::<ViewChange>::decode(Signed::new(v, |_| [0; 64]).encoded()).map(drop)
    };
    let (p, q) = ([entry(9, 2), entry(11, 1)], [entry(9, 1), entry(9, 2), entry(10, 1)]);
    assert_eq!(decoded(&p, &q, &[0, 1, 3]), Ok(()));
    assert_eq!(decoded(&[p[1], p[0]], &q, &[0, 1, 3]), Err(Malformed::Inconsistent));
    assert_eq!(decoded(&[p[0], entry(9, 3)], &q, &[0, 1, 3]), Err(Malformed::Inconsistent), "two for one n");
    assert_eq!(decoded(&p, &[q[0], q[2], q[1]], &[0, 1, 3]), Err(Malformed::Inconsistent));
    assert_eq!(decoded(&p, &[q[1], q[0]], &[0, 1, 3]), Err(Malformed::Inconsistent), "digests are sorted too");
    assert_eq!(decoded(&p, &[q[0], q[0]], &[0, 1, 3]), Err(Malformed::Inconsistent), "one digest twice");
    assert_eq!(decoded(&p, &q, &[0, 3, 1]), Err(Malformed::Inconsistent));
    assert_eq!(decoded(&p, &q, &[0, 0, 1]), Err(Malformed::Inconsistent), "one signer twice");
}
