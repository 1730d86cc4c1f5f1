//! Keys and proofs between whole parties.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::transport::Head;
use crate::types::{Digest, EndpointId, ReplicaId, SeqNum, SessionId, Time, View};
use crate::wire::header::{HEADER, MAC};
use crate::wire::{
    Claim, Committed, FrameBuffer, Frames, Malformed, Message, NewView, Outcome, Pack, PackBuilder, ReplyEntry,
    ReplyKind, ReplyResult, Request, RequestKind, SignedCheckpoint, ViewChange,
};

fn identity(k: u8) -> Identity {
    Identity::from_seed([k; 32])
}

const ENDPOINT: EndpointId = EndpointId(77);

fn cluster(clients: Clients) -> ClusterKeys {
    let replicas = (0..4).map(|i| identity(i).public()).collect();
    ClusterKeys { cluster: Digest([5; 32]), instance: 1, replicas, clients }
}

fn listed() -> Clients {
    Clients::listed([
        (identity(100).public(), Rights::READ_WRITE),
        (identity(101).public(), Rights::READ),
        (identity(102).public(), Rights { read: false, write: true, administer: false }),
    ])
}

fn replica(i: u8, keys: &ClusterKeys, mode: AuthMode) -> Keyring {
    Keyring::replica(ReplicaId(i), &identity(i), Arc::new(keys.clone()), mode).unwrap()
}

fn client(k: u8, keys: &ClusterKeys, mode: AuthMode) -> Keyring {
    Keyring::client(&identity(k), ENDPOINT, Arc::new(keys.clone()), mode).unwrap()
}

fn said(n: u64) -> Message {
    Message::Committed(Committed { n: SeqNum(n), digest: Digest([n as u8; 32]) })
}

fn frames(messages: &[Message]) -> Frames {
    let mut buffer = FrameBuffer::default();
    assert!(messages.iter().all(|message| buffer.push(message)));
    buffer.take()
}

fn datagram(head: &Head, body: &[u8]) -> Bytes {
    [head.as_slice(), body].concat().into()
}

fn envelope(from: &Keyring, to: u8, messages: &[Message]) -> Bytes {
    let frames = frames(messages);
    let head = from.seal(Principal::Replica(ReplicaId(to)), &[(&frames, 0..frames.len())]).unwrap();
    datagram(&head, frames.bytes())
}

fn open_messages(keys: &mut Keyring, bytes: &Bytes) -> Result<Vec<Message>, Reject> {
    match keys.open(bytes)? {
        Opened::Envelope(envelope) => envelope.map(|message| message.map(Verified::into_inner)).collect(),
        other => panic!("not an envelope: {other:?}"),
    }
}

fn pack_of(keys: &Keyring, kind: RequestKind, signed: bool) -> Pack {
    let Principal::Client(id, endpoint) = keys.me() else { panic!("a client's keys") };
    let open = [3u64.to_le_bytes(), 8u64.to_le_bytes()].concat();
    let (session, op): (_, &[u8]) = match kind {
        RequestKind::Ordered => (SessionId(9), b"op"),
        RequestKind::ReadOnly => (SessionId::NONE, b"op"),
        RequestKind::Open => (SessionId::NONE, &open),
        RequestKind::Close => (SessionId(9), b""),
    };
    let mut builder = PackBuilder::new(id, endpoint);
    builder.push(&Request { session, t: 3, low: 1, kind, op });
    keys.seal_pack(&mut builder, false, signed)
}

fn send_pack(from: &Keyring, to: u8, pack: &Pack) -> Bytes {
    datagram(&from.seal_pack_hop(ReplicaId(to), pack), pack.encoded())
}

fn open_pack(keys: &mut Keyring, bytes: &Bytes) -> Result<Verified<Pack>, Reject> {
    match keys.open(bytes)? {
        Opened::Pack { pack, .. } => keys.verify_pack(pack),
        other => panic!("not a pack: {other:?}"),
    }
}

#[test]
fn envelopes_convince_their_receiver_alone() {
    let keys = cluster(listed());
    for mode in [AuthMode::Mac, AuthMode::Signature] {
        let mut ring: Vec<_> = (0..4).map(|i| replica(i, &keys, mode)).collect();
        let bytes = envelope(&ring[0], 1, &[said(1), said(2)]);
        assert_eq!(open_messages(&mut ring[1], &bytes), Ok(vec![said(1), said(2)]));
        assert_eq!(open_messages(&mut ring[2], &bytes), Err(Reject::WrongReceiver));
        assert_eq!(open_messages(&mut ring[0], &bytes), Err(Reject::WrongReceiver));
        // Redirected: the pair's key binds the receiver. One signature is for all.
        let mut redirected = BytesMut::from(&bytes[..]);
        redirected[6] = 2;
        let opened = open_messages(&mut ring[2], &redirected.freeze());
        match mode {
            AuthMode::Mac => assert_eq!(opened, Err(Reject::BadMac)),
            AuthMode::Signature => assert!(opened.is_ok()),
        }
        // Reflected to its sender.
        let mut reflected = BytesMut::from(&bytes[..]);
        (reflected[6], reflected[7]) = (0, 1);
        assert!(open_messages(&mut ring[0], &reflected.freeze()).is_err());
    }
}

#[test]
fn a_broadcast_is_one_body_under_a_head_for_each() {
    let keys = cluster(listed());
    for mode in [AuthMode::Mac, AuthMode::Signature] {
        let from = replica(3, &keys, mode);
        let large =
            Message::Stable((0..4).map(|i| replica(i, &keys, mode).signer()).map(|s| checkpoint(&s, 8, 1)).collect());
        let frames = frames(&[said(1), large.clone(), said(2)]);
        let mut heads = Vec::new();
        from.seal_broadcast([0, 1, 2].map(ReplicaId).into_iter(), &[(&frames, 0..3)], &mut heads);
        for (i, (to, head)) in heads.iter().enumerate() {
            assert_eq!(*to, Principal::Replica(ReplicaId(i as u8)));
            assert_eq!(head.as_slice(), from.seal(*to, &[(&frames, 0..1), (&frames, 1..3)]).unwrap().as_slice());
            let opened = open_messages(&mut replica(i as u8, &keys, mode), &datagram(head, frames.bytes()));
            assert_eq!(opened, Ok(vec![said(1), large.clone(), said(2)]));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn p44_any_flipped_bit_of_an_envelope_is_noticed(bit in any::<prop::sample::Index>(), n: u64) {
        let keys = cluster(listed());
        let (from, mut to) = (replica(0, &keys, AuthMode::Mac), replica(1, &keys, AuthMode::Mac));
        let mut bytes = envelope(&from, 1, &[said(n), said(n / 2)]).to_vec();
        let bit = bit.index(8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(open_messages(&mut to, &bytes.into()).is_err());
    }

    #[test]
    fn p44_any_flipped_bit_of_a_pack_is_noticed_but_by_others_entries(bit in any::<prop::sample::Index>(), signed: bool) {
        let keys = cluster(listed());
        let (from, mut to) = (client(100, &keys, AuthMode::Mac), replica(1, &keys, AuthMode::Mac));
        let pack = pack_of(&from, RequestKind::Ordered, signed);
        let mut bytes = send_pack(&from, 1, &pack).to_vec();
        let bit = bit.index(8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        let entries = bytes.len() - 4 * 8;
        let own = entries + 8..entries + 16;
        let others = !signed && bit / 8 >= entries && !own.contains(&(bit / 8));
        prop_assert_eq!(open_pack(&mut to, &bytes.into()).is_ok(), others);
    }

    #[test]
    fn p44_any_bytes_open_nothing(tail in proptest::collection::vec(any::<u8>(), 0..200), header: [u8; 6], ours: bool) {
        let keys = cluster(listed());
        let mut to = replica(1, &keys, AuthMode::Mac);
        let mut bytes = tail;
        if ours && bytes.len() >= HEADER {
            bytes[..4].copy_from_slice(b"cst\x01");
            bytes[4..8].copy_from_slice(&[header[0] % 4, header[1] % 3, 1, header[2] % 5]);
            bytes[8..16].copy_from_slice(&[5; 8]);
            bytes[32..40].fill(0);
        }
        prop_assert!(to.open(&bytes.into()).is_err());
    }
}

#[test]
fn p40_keys_differ_by_pair_direction_cluster_instance_and_endpoint() {
    let keys = cluster(listed());
    let bytes = envelope(&replica(0, &keys, AuthMode::Mac), 1, &[said(1)]);
    let open = |keys: &ClusterKeys| open_messages(&mut replica(1, keys, AuthMode::Mac), &bytes);
    assert!(open(&keys).is_ok());
    assert_eq!(open(&ClusterKeys { instance: 2, ..keys.clone() }), Err(Reject::BadMac));
    // The same first eight bytes of the cluster id, which are all that a header shows.
    let mut other = keys.clone();
    other.cluster.0[31] ^= 1;
    assert_eq!(open(&other), Err(Reject::BadMac));
    other.cluster.0[0] ^= 1;
    assert_eq!(open(&other), Err(Reject::ForeignCluster(0x0505_0505_0505_0505)));
    // Two endpoints of one identity.
    let (from, mut to) = (client(100, &keys, AuthMode::Mac), replica(1, &keys, AuthMode::Mac));
    let pack = pack_of(&from, RequestKind::Ordered, false);
    let mut moved = BytesMut::from(&send_pack(&from, 1, &pack)[..]);
    moved[24] ^= 1; // the header's endpoint
    moved[HEADER + MAC + 8] ^= 1; // the pack's
    assert_eq!(open_pack(&mut to, &moved.freeze()), Err(Reject::BadMac));
    // Every replica's vector entry is its own.
    let crate::wire::Proof::Vector(entries) = pack.proof() else { panic!("a vector") };
    let distinct: std::collections::BTreeSet<_> = entries.iter().collect();
    assert_eq!(distinct.len(), 4);
}

#[test]
fn p40_unknown_epochs_are_not_opened() {
    let keys = cluster(listed());
    let mut bytes = BytesMut::from(&envelope(&replica(0, &keys, AuthMode::Mac), 1, &[said(1)])[..]);
    bytes[32] = 1;
    assert_eq!(open_messages(&mut replica(1, &keys, AuthMode::Mac), &bytes.freeze()), Err(Reject::UnknownEpoch));
}

/// A replica in its `boot`-th start.
fn begun(i: u8, boot: u64, keys: &ClusterKeys, mode: AuthMode) -> Keyring {
    let mut ring = replica(i, keys, mode);
    ring.begin(&FreshKey::at_boot(boot, [10 * i + boot as u8; 32])).unwrap();
    ring
}

fn new_key(from: &Keyring, to: Principal) -> Bytes {
    let (head, body) = from.seal_new_key(to).unwrap();
    datagram(&head, &body)
}

/// `to` takes the NEW-KEY of `from`.
fn introduce(from: &Keyring, to: &mut Keyring, now: Time) -> Result<Learned, Reject> {
    match to.open(&new_key(from, to.me()))? {
        Opened::NewKey { key, .. } => to.learn(now, &key),
        other => panic!("not a new key: {other:?}"),
    }
}

const NOW: Time = Time(1_000_000_000);

#[test]
fn p40_replicas_that_began_speak_under_fresh_keys_once_they_know_them() {
    let keys = cluster(listed());
    for mode in [AuthMode::Mac, AuthMode::Signature] {
        let (mut a, mut b) = (begun(0, 1, &keys, mode), begun(1, 4, &keys, mode));
        assert_eq!(open_messages(&mut b, &envelope(&a, 1, &[said(1)])), Err(Reject::UnknownEpoch));
        assert_eq!(introduce(&a, &mut b, NOW), Ok(Learned::News));
        // It knows whose key it is now, but the sender does not know its own.
        assert_eq!(open_messages(&mut b, &envelope(&a, 1, &[said(1)])), Err(Reject::UnknownEpoch));
        assert_eq!(introduce(&b, &mut a, NOW), Ok(Learned::News));
        assert_eq!(open_messages(&mut b, &envelope(&a, 1, &[said(1)])), Ok(vec![said(1)]));
        assert_eq!(open_messages(&mut a, &envelope(&b, 0, &[said(2)])), Ok(vec![said(2)]));
        assert_eq!((a.epoch_of(ReplicaId(1)), a.boot_of(ReplicaId(1)), b.boot_of(ReplicaId(0))), (4, 4, 1));
        assert_eq!(introduce(&b, &mut a, NOW), Ok(Learned::Known));
    }
}

#[test]
fn p40_what_a_new_key_says_of_the_receiver_is_not_believed_and_what_it_says_of_its_sender_is_signed() {
    let keys = cluster(listed());
    let from = begun(0, 2, &keys, AuthMode::Mac);
    let good = new_key(&from, Principal::Replica(ReplicaId(1)));
    for at in [32, 40, 104, 112, 120, 151] {
        let mut to = begun(1, 1, &keys, AuthMode::Mac);
        let mut bytes = good.to_vec();
        bytes[at] ^= 1;
        let Ok(Opened::NewKey { key, .. }) = to.open(&bytes.into()) else { panic!("a new key, byte {at}") };
        assert!(to.learn(NOW, &key).is_err(), "byte {at}");
        assert_eq!(to.epoch_of(ReplicaId(0)), 0);
    }
    // Another instance's, and another replica's.
    let other = begun(0, 2, &ClusterKeys { instance: 2, ..keys.clone() }, AuthMode::Mac);
    let mut to = begun(1, 1, &keys, AuthMode::Mac);
    assert_eq!(introduce(&other, &mut to, NOW), Err(Reject::BadSignature));
    let mut bytes = good.to_vec();
    bytes[7] = 2;
    let Ok(Opened::NewKey { key, .. }) = to.open(&bytes.into()) else { panic!("a new key") };
    assert_eq!(to.learn(NOW, &key), Err(Reject::BadSignature));
}

#[test]
fn p40_keys_that_are_not_above_the_last_are_refused() {
    let keys = cluster(listed());
    let mut to = begun(1, 1, &keys, AuthMode::Mac);
    let [first, second, third] = [1, 2, 3].map(|boot| begun(0, boot, &keys, AuthMode::Mac));
    assert_eq!(introduce(&second, &mut to, NOW), Ok(Learned::News));
    assert_eq!(introduce(&first, &mut to, NOW), Err(Reject::StaleKey));
    assert_eq!(introduce(&third, &mut to, NOW), Ok(Learned::News));
    assert_eq!(introduce(&second, &mut to, NOW), Err(Reject::StaleKey));
    assert_eq!(to.boot_of(ReplicaId(0)), 3);
}

#[test]
fn p40_p42_nothing_of_an_earlier_boot_is_opened_once_a_later_one_is_known() {
    let keys = cluster(listed());
    for mode in [AuthMode::Mac, AuthMode::Signature] {
        let mut to = begun(1, 1, &keys, mode);
        let (mut old, new) = (begun(0, 1, &keys, mode), begun(0, 2, &keys, mode));
        introduce(&to, &mut old, NOW).unwrap();
        introduce(&old, &mut to, NOW).unwrap();
        let late = envelope(&old, 1, &[said(1)]);
        assert!(open_messages(&mut to, &late).is_ok());
        introduce(&new, &mut to, NOW).unwrap();
        assert_eq!(open_messages(&mut to, &late), Err(Reject::UnknownEpoch));
    }
}

#[test]
fn p40_a_key_before_the_last_of_the_same_boot_dies_after_its_grace() {
    let keys = cluster(listed());
    let mut to = begun(1, 1, &keys, AuthMode::Mac);
    let mut old = begun(0, 1, &keys, AuthMode::Mac);
    let mut new = replica(0, &keys, AuthMode::Mac);
    new.begin(&FreshKey { epoch: 2, ..FreshKey::at_boot(1, [99; 32]) }).unwrap();
    introduce(&to, &mut old, NOW).unwrap();
    introduce(&old, &mut to, NOW).unwrap();
    let late = envelope(&old, 1, &[said(1)]);
    introduce(&new, &mut to, NOW).unwrap();
    to.expire(NOW + KEY_GRACE / 2);
    assert!(open_messages(&mut to, &late).is_ok(), "in its grace");
    to.expire(NOW + KEY_GRACE);
    assert_eq!(open_messages(&mut to, &late), Err(Reject::UnknownEpoch));
}

#[test]
fn p40_clients_learn_new_keys_and_old_entries_are_nobodys_fault() {
    let keys = cluster(listed());
    let mut from = client(100, &keys, AuthMode::Mac);
    let mut to = begun(0, 2, &keys, AuthMode::Mac);
    let old = pack_of(&from, RequestKind::Ordered, false);
    assert_eq!(open_pack(&mut to, &send_pack(&from, 0, &old)), Err(Reject::UnknownEpoch));
    assert_eq!(to.verify_pack(old.clone()), Err(Reject::UnknownEpoch), "handed on by another replica");
    assert!(to.verify_pack(pack_of(&from, RequestKind::Ordered, true)).is_ok(), "signed, it needs no key");
    assert_eq!(to.verify_pack(old.clone()), Err(Reject::UnknownEpoch), "who signed may not know our key yet");
    assert_eq!(introduce(&to, &mut from, NOW), Ok(Learned::News));
    let new = pack_of(&from, RequestKind::Ordered, false);
    assert!(open_pack(&mut to, &send_pack(&from, 0, &new)).is_ok());
    assert_eq!(to.verify_pack(old), Err(Reject::BadEntry), "now it knows better");
}

#[test]
fn p40_p42_checkpoints_name_the_signers_boot() {
    let keys = cluster(listed());
    let checkpoint = checkpoint(&begun(0, 7, &keys, AuthMode::Mac).signer(), 8, 1);
    assert_eq!(checkpoint.boot, 7);
    let reader = replica(1, &keys, AuthMode::Mac).signer();
    assert!(reader.verify_checkpoint(checkpoint).is_ok(), "proofs may hold any boot's");
    let earlier = crate::wire::SignedCheckpoint { boot: 6, ..checkpoint };
    assert_eq!(reader.verify_checkpoint(earlier), Err(Reject::BadSignature));
}

#[test]
fn p12_every_replica_checks_its_own_entry() {
    let keys = cluster(listed());
    let from = client(100, &keys, AuthMode::Mac);
    let pack = pack_of(&from, RequestKind::Ordered, false);
    // Entry 2 garbled: the others still accept.
    let mut garbled = BytesMut::from(&pack.encoded()[..]);
    let at = garbled.len() - 2 * 8;
    garbled[at] ^= 1;
    let garbled = Pack::parse(garbled.freeze()).unwrap();
    for i in 0..4 {
        let mut ring = replica(i, &keys, AuthMode::Mac);
        assert_eq!(ring.verify_pack(pack.clone()).map(|p| p.from()), Ok(from.me()));
        let expected = if i == 2 { Err(Reject::BadEntry) } else { Ok(from.me()) };
        assert_eq!(ring.verify_pack(garbled.clone()).map(|p| p.from()), expected);
    }
}

#[test]
fn rights_and_lists_are_kept() {
    let keys = cluster(listed());
    let mut to = replica(0, &keys, AuthMode::Mac);
    let mut verify = |k: u8, kind, signed| {
        let pack = pack_of(&client(k, &keys, AuthMode::Mac), kind, signed);
        to.verify_pack(pack).map(drop)
    };
    for signed in [false, true] {
        assert_eq!(verify(100, RequestKind::Ordered, signed), Ok(()));
        assert_eq!(verify(100, RequestKind::ReadOnly, signed), Ok(()));
        assert_eq!(verify(101, RequestKind::Ordered, signed), Err(Reject::NotPermitted));
        assert_eq!(verify(101, RequestKind::ReadOnly, signed), Ok(()));
        assert_eq!(verify(102, RequestKind::Ordered, signed), Ok(()));
        assert_eq!(verify(102, RequestKind::ReadOnly, signed), Err(Reject::NotPermitted));
        assert_eq!(verify(103, RequestKind::Ordered, signed), Err(Reject::UnknownClient));
    }
    assert_eq!(verify(101, RequestKind::Open, true), Err(Reject::NotPermitted));
    assert_eq!(verify(100, RequestKind::Open, true), Ok(()));
}

#[test]
fn p09_an_open_without_signature_is_refused() {
    let keys = cluster(listed());
    let from = client(100, &keys, AuthMode::Mac);
    let signed = pack_of(&from, RequestKind::Open, true);
    let body = u32::from_le_bytes(signed.encoded()[20..24].try_into().unwrap()) as usize;
    let mut vector = BytesMut::from(&signed.encoded()[..body + 1]);
    vector.extend_from_slice(&[1, 4]);
    vector.extend_from_slice(&[0; 32]);
    let unsigned = Pack::parse(vector.freeze()).unwrap();
    assert_eq!(replica(0, &keys, AuthMode::Mac).verify_pack(unsigned), Err(Reject::UnsignedOpen));
}

#[test]
fn p02_signed_packs_convince_every_replica_and_are_checked_once() {
    let keys = cluster(listed());
    let pack = pack_of(&client(100, &keys, AuthMode::Mac), RequestKind::Ordered, true);
    for i in 0..4 {
        let mut ring = replica(i, &keys, AuthMode::Mac);
        assert!(ring.costs_signature(&pack));
        assert!(ring.verify_pack(pack.clone()).is_ok());
        assert!(!ring.costs_signature(&pack));
        // Another signature over the same requests is another matter.
        let mut bytes = pack.encoded().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        let forged = Pack::parse(bytes.into()).unwrap();
        assert!(ring.costs_signature(&forged));
        assert_eq!(ring.verify_pack(forged), Err(Reject::BadSignature));
    }
    // Signed by somebody else in the client's name.
    let mut stolen = pack.encoded().to_vec();
    let at = stolen.len() - 128;
    stolen[at..at + 64].copy_from_slice(&identity(101).public().to_bytes());
    let stolen = Pack::parse(stolen.into()).unwrap();
    assert_eq!(replica(0, &keys, AuthMode::Mac).verify_pack(stolen), Err(Reject::IdentityMismatch));
}

#[test]
fn p21_only_good_proofs_enter_the_table_of_endpoints() {
    let keys = cluster(listed());
    let mut to = replica(0, &keys, AuthMode::Mac);
    let from = client(100, &keys, AuthMode::Mac);
    let pack = pack_of(&from, RequestKind::Ordered, false);
    for endpoint in 0..50u8 {
        let mut bytes = send_pack(&from, 0, &pack).to_vec();
        (bytes[24], bytes[HEADER + MAC + 8]) = (endpoint, endpoint);
        if endpoint != 77 {
            assert!(to.open(&bytes.into()).is_err());
        }
    }
    assert_eq!(to.clients.endpoints(), 0);
    assert!(open_pack(&mut to, &send_pack(&from, 0, &pack)).is_ok());
    assert_eq!(to.clients.endpoints(), 1);
}

#[test]
fn open_clusters_learn_identities_from_signed_packs() {
    let keys = cluster(Clients::Open);
    let mut to = replica(0, &keys, AuthMode::Mac);
    let from = client(200, &keys, AuthMode::Mac);
    let (plain, signed) = (pack_of(&from, RequestKind::Ordered, false), pack_of(&from, RequestKind::Open, true));
    assert_eq!(to.open(&send_pack(&from, 0, &plain)).err(), Some(Reject::UnknownClient));
    assert!(matches!(to.open(&send_pack(&from, 0, &signed)), Ok(Opened::Pack { hop: false, .. })));
    assert!(open_pack(&mut to, &send_pack(&from, 0, &signed)).is_ok());
    assert!(matches!(to.open(&send_pack(&from, 0, &plain)), Ok(Opened::Pack { hop: true, .. })));
    assert!(open_pack(&mut to, &send_pack(&from, 0, &plain)).is_ok());
}

#[test]
fn replies_reach_their_endpoint_alone() {
    let keys = cluster(listed());
    for mode in [AuthMode::Mac, AuthMode::Signature] {
        let (mut from, mut to) = (replica(2, &keys, mode), client(100, &keys, mode));
        let mut buffer = FrameBuffer::default();
        let result = ReplyResult::Full(Outcome::Done(Bytes::from_static(b"42")));
        let entry = ReplyEntry {
            session: SessionId(9),
            t: 3,
            kind: ReplyKind::Tentative,
            position: Default::default(),
            result,
        };
        assert!(buffer.push_replies(View(4), &[entry]));
        let frames = buffer.take();
        assert!(from.seal(to.me(), &[(&frames, 0..1)]).is_none(), "who proved nothing gets nothing");
        let pack = pack_of(&to, RequestKind::Ordered, true);
        assert!(open_pack(&mut from, &send_pack(&to, 2, &pack)).is_ok());
        let bytes = datagram(&from.seal(to.me(), &[(&frames, 0..1)]).unwrap(), frames.bytes());
        let Ok(Opened::Replies(mut replies)) = to.open(&bytes) else { panic!("replies") };
        let pack = replies.next().unwrap().unwrap();
        assert_eq!((pack.replica(), pack.view(), pack.iter().count()), (Some(ReplicaId(2)), View(4), 1));
        assert!(replies.next().is_none());
        assert_eq!(client(101, &keys, mode).open(&bytes).err(), Some(Reject::WrongReceiver));
    }
}

fn checkpoint(signer: &Signer, n: u64, root: u8) -> SignedCheckpoint {
    match signer.sign_checkpoint(SeqNum(n), Digest([root; 32])).into_inner() {
        Claim::Checkpoint(checkpoint) => checkpoint,
        other => panic!("a checkpoint, not {other:?}"),
    }
}

#[test]
fn frames_speak_for_their_sender_alone() {
    let keys = cluster(listed());
    let other = checkpoint(&replica(2, &keys, AuthMode::Mac).signer(), 8, 1);
    let bytes = envelope(&replica(0, &keys, AuthMode::Mac), 1, &[Message::Checkpoint(other)]);
    assert_eq!(open_messages(&mut replica(1, &keys, AuthMode::Mac), &bytes), Err(Reject::NotTheSpeaker));
}

#[test]
fn p24_q_signed_checkpoints_convince_anyone() {
    let keys = cluster(listed());
    let signers: Vec<_> = (0..4).map(|i| replica(i, &keys, AuthMode::Mac).signer()).collect();
    let signed = |i: usize, n: u64| checkpoint(&signers[i], n, 9);
    let proof = vec![signed(0, 16), signed(1, 16), signed(3, 16)];
    assert_eq!(signers[2].verify_stable(&proof).map(|p| p.len()), Ok(3));
    let inconsistent = Err(Reject::Malformed(Malformed::Inconsistent));
    let check = |proof: &[_]| signers[2].verify_stable(proof).map(|p| p.len());
    assert_eq!(check(&proof[..2]), inconsistent);
    assert_eq!(check(&[signed(0, 16), signed(0, 16), signed(1, 16)]), inconsistent);
    assert_eq!(check(&[signed(0, 16), signed(1, 24), signed(3, 16)]), inconsistent);
    let mut forged = proof.clone();
    forged[1].signature = forged[0].signature;
    assert_eq!(check(&forged), Err(Reject::BadSignature));
    // Not of another instance of the cluster.
    let later = Signer::new(ReplicaId(2), 0, &identity(2), Arc::new(ClusterKeys { instance: 2, ..keys })).unwrap();
    assert_eq!(later.verify_checkpoint(proof[0]), Err(Reject::BadSignature));
}

#[test]
fn wrong_key_files_are_told_apart() {
    let keys = Arc::new(cluster(listed()));
    let made = |i, k, keys: &Arc<ClusterKeys>| {
        Keyring::replica(ReplicaId(i), &identity(k), keys.clone(), AuthMode::Mac).map(drop)
    };
    assert_eq!(made(0, 0, &keys), Ok(()));
    assert_eq!(made(0, 1, &keys), Err(KeyError::NotThisReplica(ReplicaId(0))));
    assert_eq!(made(9, 1, &keys), Err(KeyError::NotThisReplica(ReplicaId(9))));
    let mut twice = (*keys).clone();
    twice.replicas[3] = twice.replicas[0];
    assert_eq!(made(0, 0, &Arc::new(twice)), Err(KeyError::Duplicate(ReplicaId(0), ReplicaId(3))));
    let mut three = (*keys).clone();
    three.replicas.pop();
    assert_eq!(made(0, 0, &Arc::new(three)), Err(KeyError::Size(3)));
}

#[test]
fn p44_fragments_of_a_broadcast_carry_each_receivers_own_head() {
    let keys = cluster(listed());
    for mode in [AuthMode::Mac, AuthMode::Signature] {
        let from = replica(0, &keys, mode);
        let pack = {
            let from = client(100, &keys, mode);
            let Principal::Client(id, endpoint) = from.me() else { panic!("a client") };
            let mut builder = PackBuilder::new(id, endpoint);
            let op = vec![3; 50_000];
            builder.push(&Request { session: SessionId(1), t: 1, low: 0, kind: RequestKind::Ordered, op: &op });
            from.seal_pack(&mut builder, false, false)
        };
        let message = Message::Relay(pack);
        let frames = frames(std::slice::from_ref(&message));
        let mut heads = Vec::new();
        from.seal_broadcast([1, 2, 3].map(ReplicaId).into_iter(), &[(&frames, 0..1)], &mut heads);
        let mut sent: Vec<Vec<Bytes>> = vec![Vec::new(); 4];
        from.fragment(1, 1_400, &heads, frames.bytes(), |to, head, body| {
            let Principal::Replica(to) = to else { panic!("a replica") };
            assert!(head.as_slice().len() + body.len() <= 1_400);
            sent[usize::from(to.0)].push(datagram(&head, &body));
        });
        for (i, sent) in sent.iter().enumerate().skip(1) {
            let mut ring = replica(i as u8, &keys, mode);
            let mut reassembler = crate::wire::Reassembler::new(Default::default());
            let mut whole = None;
            for bytes in sent {
                let Ok(Opened::Fragment { from, header, piece }) = ring.open(bytes) else { panic!("a fragment") };
                assert_eq!(from, Principal::Replica(ReplicaId(0)));
                let result = reassembler.insert(crate::types::Time(1), 0, header, &piece, &mut 0).unwrap();
                if let crate::wire::fragment::Assembled::Complete(bytes) = result {
                    whole = Some(bytes);
                }
                let mut damaged = bytes.to_vec();
                *damaged.last_mut().unwrap() ^= 1;
                assert_eq!(ring.open(&damaged.into()).err(), Some(Reject::BadMac));
            }
            assert_eq!(open_messages(&mut ring, &whole.unwrap()), Ok(vec![message.clone()]));
        }
    }
}

#[test]
fn p45_a_view_change_needs_its_signature_and_the_proof_of_its_h() {
    let keys = cluster(listed());
    let signers: Vec<_> = (0..4).map(|i| replica(i, &keys, AuthMode::Mac).signer()).collect();
    let signed = |i: usize, n: u64| checkpoint(&signers[i], n, 9);
    let leaves = |stable: u64, proof: &[SignedCheckpoint]| {
        let (replica, view, stable, proof) = (ReplicaId(1), View(3), SeqNum(stable), proof.to_vec());
        ViewChange { replica, boot: 0, view, stable, proof, prepared: vec![], pre_prepared: vec![] }
    };
    let proof = [signed(0, 16), signed(1, 16), signed(3, 16)];
    let check = |stable: u64, proof: &[SignedCheckpoint]| {
        signers[2].verify_claim(signers[1].sign_view_change(leaves(stable, proof)).into_inner()).map(drop)
    };
    let inconsistent = Err(Reject::Malformed(Malformed::Inconsistent));
    assert_eq!((check(0, &[]), check(16, &proof)), (Ok(()), Ok(())));
    assert_eq!(check(16, &[]), inconsistent, "only h = 0 needs no proof (P31)");
    assert_eq!(check(0, &proof), inconsistent);
    assert_eq!(check(24, &proof), inconsistent, "a proof of another h");
    assert_eq!(check(16, &proof[..2]), inconsistent);
    assert_eq!(check(16, &[signed(0, 16), signed(1, 16), signed(2, 16), signed(3, 16)]), inconsistent);
    assert_eq!(check(16, &[proof[0], checkpoint(&signers[1], 16, 8), proof[2]]), inconsistent, "of another root");
    let mut forged = proof;
    forged[2].signature = forged[1].signature;
    assert_eq!(check(16, &forged), Err(Reject::BadSignature));
    // Signed by another, or for another instance of the cluster.
    let own = |v: ViewChange| Claim::ViewChange(Arc::new(crate::wire::Signed::new(v, |_| [7; 64])));
    assert_eq!(signers[2].verify_claim(own(leaves(0, &[]))).err(), Some(Reject::BadSignature));
    let later = Signer::new(ReplicaId(2), 0, &identity(2), Arc::new(ClusterKeys { instance: 2, ..keys })).unwrap();
    let claim = signers[1].sign_view_change(leaves(0, &[])).into_inner();
    assert_eq!(later.verify_claim(claim).err(), Some(Reject::BadSignature));
}

#[test]
fn p33_a_new_view_is_the_primarys_and_names_at_least_a_quorum() {
    let keys = cluster(listed());
    let signers: Vec<_> = (0..4).map(|i| replica(i, &keys, AuthMode::Mac).signer()).collect();
    let begins = |view: u64, members: &[u8]| NewView {
        replica: ReplicaId(0),
        boot: 0,
        view: View(view),
        members: members.iter().map(|r| (ReplicaId(*r), Digest([*r; 32]))).collect(),
        stable: SeqNum(0),
        chosen: vec![],
    };
    let check = |by: usize, v: NewView| signers[2].verify_claim(signers[by].sign_new_view(v).into_inner()).map(drop);
    assert_eq!(check(3, begins(3, &[0, 1, 3])), Ok(()));
    assert_eq!(check(1, begins(3, &[0, 1, 3])), Err(Reject::NotTheSpeaker), "view 3 is not replica 1's");
    assert_eq!(check(3, begins(3, &[0, 3])), Err(Reject::Malformed(Malformed::Inconsistent)));
    assert_eq!(check(3, begins(3, &[0, 1, 9])), Err(Reject::Malformed(Malformed::Inconsistent)), "9 is no replica");
    let forged = NewView { replica: ReplicaId(3), ..begins(3, &[0, 1, 3]) };
    let forged = Claim::NewView(Arc::new(crate::wire::Signed::new(forged, |_| [7; 64])));
    assert_eq!(signers[2].verify_claim(forged).err(), Some(Reject::BadSignature));
}
