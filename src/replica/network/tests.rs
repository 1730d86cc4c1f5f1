//! The network role between real parties: four replicas and a client, bytes and keys as they are.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::auth::{Clients, ClusterKeys, FreshKey, Identity, Rights};
use crate::types::{Digest, Position, SeqNum, SessionId};
use crate::wire::header::HEADER;
use crate::wire::{
    Choice, Committed, PackBuilder, PrePrepare, Reassembler, ReplyKind, ReplyPack, Request, RequestKind, Vote,
};

const ENDPOINT: EndpointId = EndpointId(11);
const NOW: Time = Time(1_000_000_000);

fn identity(k: u8) -> Identity {
    Identity::from_seed([k; 32])
}

fn cluster() -> Arc<ClusterKeys> {
    let replicas = (0..4).map(|i| identity(i).public()).collect();
    let clients = Clients::listed([100, 101].map(|k| (identity(k).public(), Rights::READ_WRITE)));
    Arc::new(ClusterKeys { cluster: Digest([5; 32]), instance: 1, replicas, clients })
}

fn network_with(i: u8, mode: AuthMode, config: NetworkConfig) -> Network {
    let keys = Keyring::replica(ReplicaId(i), &identity(i), cluster(), mode).unwrap();
    Network::new(config, keys, ClusterSize::of(4).unwrap()).unwrap()
}

fn network(i: u8) -> Network {
    network_with(i, AuthMode::Mac, NetworkConfig::default())
}

fn client(k: u8, mode: AuthMode) -> Keyring {
    Keyring::client(&identity(k), ENDPOINT, cluster(), mode).unwrap()
}

fn address(port: u16) -> Peer {
    Peer::Address(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn pack(keys: &Keyring, kind: RequestKind, t: u64, op: &[u8], signed: bool) -> Pack {
    let Principal::Client(id, endpoint) = keys.me() else { panic!("a client's keys") };
    let mut builder = PackBuilder::new(id, endpoint);
    let session = if kind == RequestKind::ReadOnly { SessionId::NONE } else { SessionId(9) };
    builder.push(&Request { session, t, low: 0, kind, op });
    keys.seal_pack(&mut builder, false, signed)
}

fn pack_datagram(keys: &Keyring, to: u8, pack: &Pack, port: u16) -> Datagram {
    let bytes = [keys.seal_pack_hop(ReplicaId(to), pack).as_slice(), pack.encoded()].concat();
    Datagram { from: address(port), bytes: bytes.into() }
}

fn receive(network: &mut Network, now: Time, datagram: Datagram) -> Vec<Inbound> {
    let mut inbound = Vec::new();
    network.receive(now, datagram, &mut inbound);
    inbound
}

/// Flushes until nothing waits, and gives what was sent.
fn flush(network: &mut Network) -> Vec<Outgoing> {
    let (mut now, mut out) = (NOW, Vec::new());
    network.flush(now, &mut out);
    while network.pacer.deadline() != Time::NEVER {
        now = network.pacer.deadline();
        network.flush(now, &mut out);
    }
    assert!(out.iter().all(|outgoing| outgoing.len() <= network.config.datagram_max));
    out
}

/// Delivers what replica `from` sent to `to`; what came of it.
fn deliver(sent: &[Outgoing], from: u8, to: &mut Network) -> Vec<Inbound> {
    let (mut inbound, me) = (Vec::new(), Peer::Replica(to.me));
    for outgoing in sent.iter().filter(|outgoing| outgoing.to == me) {
        let datagram = Datagram { from: Peer::Replica(ReplicaId(from)), bytes: outgoing.to_bytes() };
        to.receive(NOW, datagram, &mut inbound);
    }
    inbound
}

fn said(n: u64) -> Message {
    Message::Committed(Committed { n: SeqNum(n), digest: Digest([n as u8; 32]) })
}

fn messages(inbound: Vec<Inbound>) -> Vec<Message> {
    let message = |item| match item {
        Inbound::Message(message) => message.into_inner(),
        other => panic!("not a message: {other:?}"),
    };
    inbound.into_iter().map(message).collect()
}

fn reply(t: u64, result: Vec<u8>) -> Reply {
    Reply {
        client: identity(100).public().client_id(),
        endpoint: ENDPOINT,
        session: SessionId(9),
        t,
        view: View(3),
        kind: ReplyKind::Committed,
        position: Position::new(SeqNum(4), 0),
        outcome: Outcome::Done(result.into()),
        full: false,
    }
}

/// What a client makes of datagrams from one replica.
fn open_replies(keys: &mut Keyring, sent: &[Outgoing]) -> Vec<ReplyPack> {
    let mut reassembler = Reassembler::new(ReassemblyLimits::default());
    let mut packs = Vec::new();
    for outgoing in sent {
        let mut opened = keys.open(&outgoing.to_bytes()).unwrap();
        if let Opened::Fragment { header, piece, .. } = &opened {
            match reassembler.insert(NOW, 0, *header, piece, &mut 0).unwrap() {
                Assembled::Complete(whole) => opened = keys.open(&whole).unwrap(),
                Assembled::Partial | Assembled::NoRoom => continue,
            }
        }
        let Opened::Replies(replies) = opened else { panic!("not replies: {opened:?}") };
        packs.extend(replies.map(|pack| pack.unwrap().to_pack()));
    }
    packs
}

#[test]
fn one_envelope_for_each_peer_in_a_turn() {
    for mode in [AuthMode::Mac, AuthMode::Signature] {
        let mut from = network_with(0, mode, NetworkConfig::default());
        from.broadcast(said(1));
        from.send(ReplicaId(2), said(2));
        from.broadcast(said(3));
        let sent = flush(&mut from);
        assert_eq!(sent.len(), 3);
        for i in 1..4u8 {
            let mut to = network_with(i, mode, NetworkConfig::default());
            let expected = if i == 2 { vec![said(1), said(3), said(2)] } else { vec![said(1), said(3)] };
            assert_eq!(messages(deliver(&sent, 0, &mut to)), expected);
        }
        // Replicas 1 and 3 got one body.
        let bodies: Vec<_> =
            sent.iter().filter(|o| o.to != Peer::Replica(ReplicaId(2))).map(|o| o.body.as_ptr()).collect();
        assert_eq!(bodies[0], bodies[1]);
        assert_eq!(flush(&mut from).len(), 0);
    }
}

#[test]
fn envelopes_split_between_frames_at_the_datagram_size() {
    let mut from = network(0);
    (0..100).for_each(|n| from.broadcast(said(n)));
    from.send(ReplicaId(1), said(200));
    let sent = flush(&mut from);
    assert_eq!(sent.len(), 3 * (100usize * 48).div_ceil(1_404 / 48 * 48) + 1);
    let mut got = messages(deliver(&sent, 0, &mut network(1)));
    assert_eq!(got.remove(0), said(200));
    assert_eq!(got, (0..100).map(said).collect::<Vec<_>>());
    assert_eq!(messages(deliver(&sent, 0, &mut network(3))).len(), 100);
}

#[test]
fn p03_messages_up_to_a_mebibyte_travel_at_any_datagram_size() {
    let keys = client(100, AuthMode::Mac);
    let large = pack(&keys, RequestKind::Ordered, 1, &vec![7; limits::OPERATION_MAX], false);
    for datagram_max in [limits::DATAGRAM_MIN, 8_192, limits::DATAGRAM_MAX] {
        for mode in [AuthMode::Mac, AuthMode::Signature] {
            let config = NetworkConfig { datagram_max, ..NetworkConfig::default() };
            let mut from = network_with(0, mode, config.clone());
            let batch = crate::wire::Batch::new(Choice::default(), vec![large.clone()]);
            let message = Message::Batch(SeqNum(1), Arc::new(batch));
            from.broadcast(message.clone());
            from.send(ReplicaId(1), said(5));
            let sent = flush(&mut from);
            assert_eq!(messages(deliver(&sent, 0, &mut network_with(2, mode, config.clone()))), vec![message.clone()]);
            let mut got = messages(deliver(&sent, 0, &mut network_with(1, mode, config)));
            got.sort_by_key(|m| *m == message);
            assert_eq!(got, [said(5), message]);
        }
    }
}

#[test]
fn p03_a_client_sends_large_packs_in_fragments() {
    let keys = client(100, AuthMode::Mac);
    let large = pack(&keys, RequestKind::Ordered, 1, &vec![7; 300_000], false);
    let mut to = network(1);
    let heads = [(Principal::Replica(ReplicaId(1)), keys.seal_pack_hop(ReplicaId(1), &large))];
    let mut inbound = Vec::new();
    keys.fragment(5, 1_400, &heads, large.encoded(), |_, head, body| {
        let outgoing = Outgoing { to: Peer::Replica(ReplicaId(1)), head, body };
        to.receive(NOW, Datagram { from: address(9), bytes: outgoing.to_bytes() }, &mut inbound);
    });
    let [Inbound::Request { pack, signed: false }] = &inbound[..] else { panic!("{inbound:?}") };
    assert_eq!(pack.get(), &large);
    assert_eq!(to.clients.address(large.client(), ENDPOINT), Some(address(9)));
}

#[test]
fn fragments_are_paced() {
    let mut from = network(0);
    let keys = client(100, AuthMode::Mac);
    from.send(ReplicaId(1), Message::Relay(pack(&keys, RequestKind::Ordered, 1, &vec![7; 1 << 20], false)));
    let (mut now, mut turns) = (NOW, 0);
    loop {
        let mut out = Vec::new();
        from.flush(now, &mut out);
        let bytes: usize = out.iter().map(Outgoing::len).sum();
        assert!(bytes <= from.config.pace.bytes + from.config.datagram_max);
        turns += 1;
        // Asked again too early, it sends nothing more.
        out.clear();
        from.flush(now + Duration::from_nanos(1), &mut out);
        assert!(out.is_empty());
        now = from.deadline();
        if now == Time::NEVER {
            break;
        }
    }
    assert!((8..=10).contains(&turns), "{turns} turns");
}

#[test]
fn p12_packs_within_a_pre_prepare_are_checked_each() {
    let keys = client(100, AuthMode::Mac);
    let good = pack(&keys, RequestKind::Ordered, 1, b"good", false);
    let signed = pack(&keys, RequestKind::Ordered, 2, b"signed", true);
    let mut garbled = good.encoded().to_vec();
    garbled[good.encoded().len() - 3 * 8] ^= 1; // the entry of replica 1
    let garbled = Pack::parse(garbled.into()).unwrap();
    let query = pack(&keys, RequestKind::ReadOnly, 3, b"query", false);
    let mut from = network(0);
    let [at_one, query_digest] = [garbled.digest(), query.digest()];
    let packs = vec![
        Proposed::Inline(good.clone()),
        Proposed::Inline(garbled),
        Proposed::ByDigest(good.digest()),
        Proposed::Inline(signed),
        Proposed::Inline(query),
    ];
    from.broadcast(Message::PrePrepare(PrePrepare { view: View(0), n: SeqNum(1), choice: Choice::default(), packs }));
    let sent = flush(&mut from);
    for (i, expected) in [(1, vec![at_one, query_digest]), (2, vec![query_digest])] {
        let inbound = deliver(&sent, 0, &mut network(i));
        let [Inbound::PrePrepare(message, unproven)] = &inbound[..] else { panic!("{inbound:?}") };
        assert_eq!(message.replica(), Some(ReplicaId(0)));
        assert_eq!(*unproven, expected);
    }
}

#[test]
fn relays_are_requests_if_good_and_bodies_if_not() {
    let keys = client(100, AuthMode::Mac);
    let signed = pack(&keys, RequestKind::Ordered, 1, b"x", true);
    let mut bad = signed.encoded().to_vec();
    *bad.last_mut().unwrap() ^= 1;
    let bad = Pack::parse(bad.into()).unwrap();
    let query = pack(&keys, RequestKind::ReadOnly, 1, b"x", true);
    let mut from = network(2);
    [&signed, &bad, &query].into_iter().for_each(|pack| from.send(ReplicaId(0), Message::Relay(pack.clone())));
    let sent = flush(&mut from);
    let mut to = network(0);
    let inbound = deliver(&sent, 2, &mut to);
    let [Inbound::Relayed(pack), Inbound::Body(body)] = &inbound[..] else { panic!("{inbound:?}") };
    assert_eq!((pack.get(), body), (&signed, &bad));
    assert_eq!((to.rejected(Reject::BadSignature), to.rejected(Reject::RelayedQuery)), (1, 1));
    let caught: Vec<_> = to.misdeeds(ReplicaId(2)).collect();
    assert_eq!(caught, [("bad_signature", 1), ("relayed_query", 1)], "a correct replica hands on neither");
    // Who relays is not the client: replies do not go there.
    assert_eq!(to.clients.address(signed.client(), ENDPOINT), None);
}

#[test]
fn replies_go_where_the_last_authentic_pack_came_from() {
    let mut keys = client(100, AuthMode::Mac);
    let mut to = network(0);
    let ordered = pack(&keys, RequestKind::Ordered, 1, b"x", false);
    assert_eq!(receive(&mut to, NOW, pack_datagram(&keys, 0, &ordered, 1)).len(), 1);
    assert_eq!(receive(&mut to, NOW, pack_datagram(&keys, 0, &ordered, 2)).len(), 1);
    // A replica that holds the pack cannot draw replies to itself: it does not know the hop's key.
    let mut stolen = pack_datagram(&keys, 0, &ordered, 3);
    let mut bytes = stolen.bytes.to_vec();
    bytes[HEADER] ^= 1;
    stolen.bytes = bytes.into();
    assert_eq!(receive(&mut to, NOW, stolen).len(), 0);
    to.reply(reply(1, b"result".to_vec()));
    to.reply(reply(2, b"other".to_vec()));
    let sent = flush(&mut to);
    assert_eq!((sent.len(), sent[0].to), (1, address(2)));
    let packs = open_replies(&mut keys, &sent);
    assert_eq!((packs.len(), packs[0].view, packs[0].replies.len()), (1, View(3), 2));
    // Nobody known: counted.
    to.reply(Reply { endpoint: EndpointId(99), ..reply(1, Vec::new()) });
    assert!(flush(&mut to).is_empty());
    assert_eq!(to.rejected(Reject::NoAddress), 1);
}

#[test]
fn p07_one_replica_sends_a_large_result_and_the_others_its_digest() {
    let mut keys = client(100, AuthMode::Mac);
    let (small, large) = (vec![1; limits::SMALL_RESULT_MAX], vec![2; limits::SMALL_RESULT_MAX + 1]);
    for t in 1..=20u64 {
        let mut full = 0;
        for i in 0..4 {
            let mut network = network(i);
            let ordered = pack(&keys, RequestKind::Ordered, t, b"x", false);
            receive(&mut network, NOW, pack_datagram(&keys, i, &ordered, 1));
            network.reply(reply(t, small.clone()));
            network.reply(reply(t, large.clone()));
            network.reply(Reply { full: true, ..reply(t, large.clone()) });
            let packs = open_replies(&mut keys, &flush(&mut network));
            let results: Vec<_> = packs.iter().flat_map(|pack| &pack.replies).map(|entry| &entry.result).collect();
            assert!(matches!(results[0], ReplyResult::Full(_)) && matches!(results[2], ReplyResult::Full(_)));
            assert_eq!(results[1].digest(), results[2].digest());
            if matches!(results[1], ReplyResult::Full(_)) {
                assert_eq!(
                    default_replier(SessionId(9), t, reply(t, vec![]).view, ClusterSize::of(4).unwrap()),
                    ReplicaId(i)
                );
                full += 1;
            }
        }
        assert_eq!(full, 1, "t = {t}");
    }
}

#[test]
fn replies_of_any_number_and_size_arrive() {
    for mode in [AuthMode::Mac, AuthMode::Signature] {
        let mut keys = client(100, mode);
        let mut from = network_with(0, mode, NetworkConfig::default());
        receive(&mut from, NOW, pack_datagram(&keys, 0, &pack(&keys, RequestKind::Ordered, 1, b"x", true), 1));
        let sizes: Vec<usize> = (0..3_000).map(|i| if i == 77 { limits::OPERATION_MAX } else { i % 100 }).collect();
        for (t, size) in sizes.iter().enumerate() {
            from.reply(Reply { full: true, ..reply(t as u64, vec![3; *size]) });
        }
        let packs = open_replies(&mut keys, &flush(&mut from));
        let mut got: Vec<_> = packs.iter().flat_map(|pack| &pack.replies).collect();
        got.sort_by_key(|entry| entry.t);
        assert_eq!(got.len(), sizes.len());
        for (entry, size) in got.iter().zip(&sizes) {
            assert!(matches!(&entry.result, ReplyResult::Full(Outcome::Done(bytes)) if bytes.len() == *size));
        }
    }
}

#[test]
fn p02_signature_checks_have_a_quota_for_each_client() {
    let window = Duration::from_millis(100);
    let config = NetworkConfig { signatures: Rate { count: 3, window }, ..NetworkConfig::default() };
    let mut to = network_with(0, AuthMode::Mac, config);
    let (flooder, other) = (client(100, AuthMode::Mac), client(101, AuthMode::Mac));
    let mut sent = |keys: &Keyring, now, t| {
        let pack = pack(keys, RequestKind::Ordered, t, b"x", true);
        receive(&mut to, now, pack_datagram(keys, 0, &pack, 1)).len()
    };
    assert_eq!((1..=5).map(|t| sent(&flooder, NOW, t)).sum::<usize>(), 3);
    // What was checked is not checked again; others have their own quota; the next window is new.
    assert_eq!(sent(&flooder, NOW, 1), 1);
    assert_eq!(sent(&other, NOW, 1), 1);
    assert_eq!(sent(&flooder, NOW + window, 6), 1);
    assert_eq!(to.rejected(Reject::SignatureQuota), 2);
}

#[test]
fn p02_nobody_uses_up_another_clients_quota() {
    let window = Duration::from_millis(100);
    let config = NetworkConfig { signatures: Rate { count: 3, window }, ..NetworkConfig::default() };
    let mut to = network_with(0, AuthMode::Mac, config);
    let keys = client(100, AuthMode::Mac);
    let signed = pack(&keys, RequestKind::Ordered, 1, b"x", true);
    let forged = |t: u64| {
        let mut bytes = pack(&keys, RequestKind::Ordered, t, b"y", true).encoded().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        Pack::parse(bytes.into()).unwrap()
    };
    // Strangers in the client's name fail at the hop; a faulty replica uses up its own quota.
    for t in 2..20 {
        let mut datagram = pack_datagram(&keys, 0, &forged(t), 6);
        let mut bytes = datagram.bytes.to_vec();
        bytes[HEADER] ^= 1;
        datagram.bytes = bytes.into();
        assert_eq!(receive(&mut to, NOW, datagram).len(), 0);
    }
    assert_eq!(to.rejected(Reject::BadMac), 18);
    let mut liar = network(3);
    (2..20).for_each(|t| liar.send(ReplicaId(0), Message::Relay(forged(t))));
    liar.send(ReplicaId(0), Message::Relay(signed.clone()));
    let inbound = deliver(&flush(&mut liar), 3, &mut to);
    assert!(inbound.iter().all(|item| matches!(item, Inbound::Body(_))));
    assert_eq!((to.rejected(Reject::BadSignature), to.rejected(Reject::SignatureQuota)), (3, 16));
    assert_eq!(receive(&mut to, NOW, pack_datagram(&keys, 0, &signed, 1)).len(), 1);
}

#[test]
fn p21_a_reply_that_waits_to_leave_does_not_wait_twice() {
    let (mut from, keys) = (network(0), client(100, AuthMode::Mac));
    let asked = pack(&keys, RequestKind::Ordered, 1, b"op", false);
    assert_eq!(receive(&mut from, NOW, pack_datagram(&keys, 0, &asked, 1)).len(), 1);
    let answer = || Reply { full: true, ..reply(1, vec![7; 1 << 20]) };
    let mut once = network(0);
    receive(&mut once, NOW, pack_datagram(&keys, 0, &asked, 1));
    once.reply(answer());
    let count = flush(&mut once).len();
    let mut out = Vec::new();
    for _ in 0..3 {
        from.reply(answer());
        from.flush(NOW, &mut out);
    }
    assert!(out.len() < count);
    out.extend(flush(&mut from));
    assert_eq!(out.len(), count);
    from.reply(answer());
    assert_eq!(flush(&mut from).len(), count, "it has left, and may be lost");
}

#[test]
fn p21_a_flooding_client_exhausts_its_own_reassembly_alone() {
    let client_reassembly = ReassemblyLimits::default();
    let config = NetworkConfig { client_reassembly, clients_reassembly_max: 40 << 20, ..NetworkConfig::default() };
    let mut to = network_with(0, AuthMode::Mac, config);
    let (flooder, other) = (client(100, AuthMode::Mac), client(101, AuthMode::Mac));
    let op = vec![7; 1 << 20];
    let fragments = |keys: &Keyring, message: u64| {
        let large = pack(keys, RequestKind::Ordered, message, &op, false);
        let heads = [(Principal::Replica(ReplicaId(0)), keys.seal_pack_hop(ReplicaId(0), &large))];
        let mut sent = Vec::new();
        keys.fragment(message, 60_000, &heads, large.encoded(), |_, head, body| {
            let outgoing = Outgoing { to: address(0), head, body };
            sent.push(Datagram { from: address(1), bytes: outgoing.to_bytes() });
        });
        sent
    };
    let honest = fragments(&other, 1);
    let (last, first) = honest.split_last().unwrap();
    for datagram in first {
        assert!(receive(&mut to, NOW, datagram.clone()).is_empty());
    }
    // The flooder begins far more than it may hold, and ends none.
    for message in 1..60 {
        let now = NOW + Duration::from_nanos(message);
        fragments(&flooder, message)
            .into_iter()
            .take(5)
            .for_each(|piece| assert!(receive(&mut to, now, piece).is_empty()));
    }
    assert!(to.rejected(Reject::ReassemblyDropped) > 30);
    assert_eq!(receive(&mut to, NOW + Duration::from_millis(1), last.clone()).len(), 1);
    // What is left times out, and nothing is due then.
    assert!(to.deadline() < Time::NEVER);
    to.flush(NOW + Duration::from_secs(2), &mut Vec::new());
    to.flush(NOW + Duration::from_secs(4), &mut Vec::new());
    assert_eq!(to.deadline(), Time::NEVER);
}

#[test]
fn strangers_and_wrong_keys_are_told_apart_for_status() {
    let mut to = network(0);
    let mut foreign = (*cluster()).clone();
    foreign.cluster = Digest([6; 32]);
    let foreign = Keyring::replica(ReplicaId(1), &identity(1), Arc::new(foreign), AuthMode::Mac).unwrap();
    let mut frames = FrameBuffer::default();
    assert!(frames.push(&said(1)));
    let frames = frames.take();
    let mut send = |keys: &Keyring| {
        let head = keys.seal(Principal::Replica(ReplicaId(0)), &[(&frames, 0..1)]).unwrap();
        let bytes = [head.as_slice(), frames.bytes()].concat().into();
        receive(&mut to, NOW, Datagram { from: address(4), bytes })
    };
    assert!(send(&foreign).is_empty());
    let mut restarted = (*cluster()).clone();
    restarted.instance = 2;
    assert!(
        send(&Keyring::replica(ReplicaId(2), &identity(2), Arc::new(restarted), AuthMode::Mac).unwrap()).is_empty()
    );
    assert_eq!(to.foreign(), Some(Foreign { cluster: 0x0606_0606_0606_0606, from: address(4), at: NOW }));
    assert_eq!([0, 1, 2, 3].map(|i| to.bad_macs(ReplicaId(i))), [0, 0, 1, 0]);
    assert_eq!(to.rejects(), [("bad_mac", 1), ("foreign_cluster", 1)]);
}

#[test]
fn a_batch_that_is_too_large_to_send_is_counted() {
    let keys = client(100, AuthMode::Mac);
    let packs = (1..6).map(|t| pack(&keys, RequestKind::Ordered, t, &vec![7; 1 << 20], false)).collect();
    let batch = crate::wire::Batch::new(Choice::default(), packs);
    let mut from = network(0);
    from.send(ReplicaId(1), Message::Batch(SeqNum(1), Arc::new(batch)));
    assert!(flush(&mut from).is_empty());
    assert_eq!(from.rejected(Reject::TooLargeToSend), 1);
}

/// Real datagrams, to be damaged.
fn seeds() -> Vec<Bytes> {
    let keys = client(100, AuthMode::Mac);
    let ordered = pack(&keys, RequestKind::Ordered, 1, b"x", false);
    let mut from = network(0);
    from.broadcast(Message::Prepare(Vote { view: View(0), n: SeqNum(1), digest: Digest([1; 32]) }));
    from.broadcast(Message::Relay(ordered.clone()));
    from.broadcast(Message::Relay(pack(&keys, RequestKind::Ordered, 2, &[1; 3_000], false)));
    let mut sent: Vec<Bytes> = flush(&mut from).iter().map(Outgoing::to_bytes).collect();
    sent.push(pack_datagram(&keys, 1, &ordered, 1).bytes);
    sent.push(pack_datagram(&keys, 1, &pack(&keys, RequestKind::Ordered, 3, b"x", true), 1).bytes);
    sent
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn p44_any_bytes_from_any_address_leave_the_role_unharmed_and_counted(
        noise in proptest::collection::vec((any::<u16>(), proptest::collection::vec(any::<u8>(), 0..300)), 1..20),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1..=255u8, any::<bool>()), 1..60),
    ) {
        let mut to = network(1);
        for (i, (port, bytes)) in noise.into_iter().enumerate() {
            let inbound = receive(&mut to, NOW, Datagram { from: address(port), bytes: bytes.into() });
            prop_assert_eq!(inbound.len(), 0);
            prop_assert_eq!(to.rejects.total(), i as u64 + 1);
        }
        let seeds = seeds();
        for (seed, at, flip, cut) in damage {
            let mut bytes = seed.get(&seeds).to_vec();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= flip };
            let before = to.rejects.total();
            let inbound = receive(&mut to, NOW, Datagram { from: Peer::Replica(ReplicaId(0)), bytes: bytes.into() });
            // A pack lives through damage to others' entries.
            let request = matches!(inbound[..], [Inbound::Request { .. }]);
            prop_assert!(to.rejects.total() > before || request);
        }
        prop_assert!(to.clients.len() <= 1);
        // And the honest are heard as before.
        let mut from = network(0);
        from.broadcast(said(1));
        prop_assert_eq!(messages(deliver(&flush(&mut from), 0, &mut to)), vec![said(1)]);
    }
}

fn prepare(n: u64) -> Message {
    Message::Prepare(Vote { view: View(0), n: SeqNum(n), digest: Digest([n as u8; 32]) })
}

fn receivers(out: &[Outgoing]) -> Vec<u8> {
    let id = |outgoing: &Outgoing| match outgoing.to {
        Peer::Replica(id) => id.0,
        Peer::Address(_) => panic!("to nobody else"),
    };
    out.iter().map(id).collect()
}

#[test]
fn p53_what_orders_waits_for_company_to_who_is_patient() {
    let (mut network, mut last) = (network(0), network(3));
    let (ms, patient) = (Duration::from_millis, [ReplicaId(3)].into_iter().collect::<ReplicaSet>());
    let mut out = Vec::new();
    for n in 1..=5 {
        network.broadcast(prepare(n));
        network.gather(patient, ms(2));
        network.flush(NOW + n as u32 * ms(2) / 10, &mut out);
        assert_eq!(receivers(&out), [1, 2], "{n}");
        out.clear();
    }
    let due = NOW + ms(2) / 10 + ms(2);
    assert_eq!(network.deadline(), due, "from the first on");
    network.flush(Time(due.0 - 1), &mut out);
    assert!(out.is_empty());
    network.flush(due, &mut out);
    assert_eq!(receivers(&out), [3], "in one datagram");
    assert_eq!(messages(deliver(&out, 0, &mut last)), (1..=5).map(prepare).collect::<Vec<_>>(), "in order");
    assert_eq!(network.deadline(), Time::NEVER);
    // What is asked for takes along what waits.
    out.clear();
    network.broadcast(prepare(6));
    network.flush(due, &mut out);
    network.send(ReplicaId(3), said(1));
    network.broadcast(prepare(7));
    network.flush(due, &mut out);
    assert_eq!(receivers(&out), [1, 2, 3, 1, 2]);
    assert_eq!(messages(deliver(&out, 0, &mut last)), [prepare(6), said(1), prepare(7)]);
    // So does the end of all patience.
    out.clear();
    network.broadcast(prepare(8));
    network.flush(due, &mut out);
    network.gather(ReplicaSet::EMPTY, ms(2));
    network.flush(due, &mut out);
    assert_eq!(receivers(&out), [1, 2, 3]);
    assert_eq!((messages(deliver(&out, 0, &mut last)), network.deadline()), (vec![prepare(8)], Time::NEVER));
}

#[test]
fn p53_company_of_a_datagram_is_enough() {
    let (mut network, mut last) = (network(0), network(3));
    network.gather([ReplicaId(3)].into_iter().collect(), Duration::from_secs(1));
    let (mut out, mut n) = (Vec::new(), 0);
    while !receivers(&out).contains(&3) {
        n += 1;
        network.broadcast(prepare(n));
        network.flush(NOW, &mut out);
    }
    assert!(out.iter().all(|outgoing| outgoing.len() <= network.config.datagram_max));
    assert!((20..40).contains(&n), "{n} votes of 56 bytes");
    assert_eq!(messages(deliver(&out, 0, &mut last)).len() as u64, n);
    // What would have to be copied at length leaves at once, behind what waits.
    out.clear();
    network.broadcast(prepare(1));
    network.flush(NOW, &mut out);
    let large = PrePrepare {
        view: View(0),
        n: SeqNum(2),
        choice: Choice::default(),
        packs: vec![Proposed::Inline(pack(&client(100, AuthMode::Mac), RequestKind::Ordered, 1, &[7; 20_000], false))],
    };
    network.broadcast(Message::PrePrepare(large));
    let sent = [out, flush(&mut network)].concat();
    let inbound = deliver(&sent, 0, &mut last);
    assert!(matches!(&inbound[..], [Inbound::Message(_), Inbound::PrePrepare(..)]), "{inbound:?}");
}

#[test]
fn p53_replies_that_nobody_may_need_are_kept_for_a_while() {
    let (mut network, mut keys) = (network(3), client(100, AuthMode::Mac));
    let ordered = pack(&keys, RequestKind::Ordered, 1, b"x", false);
    receive(&mut network, NOW, pack_datagram(&keys, 3, &ordered, 1));
    let ms = Duration::from_millis;
    let mut told = |network: &mut Network| {
        let packs = open_replies(&mut keys, &flush(network));
        packs.iter().flat_map(|pack| &pack.replies).map(|entry| entry.t).collect::<Vec<_>>()
    };
    network.keep(NOW, NOW + ms(10), reply(1, vec![1]));
    network.keep(NOW + ms(5), NOW + ms(15), reply(2, vec![2]));
    assert!(told(&mut network).is_empty());
    network.release(NOW + ms(11));
    assert_eq!(told(&mut network), [2], "the first is too old to be waited for");
    network.keep(NOW, NOW, Reply { full: true, ..reply(3, vec![3]) });
    network.keep(NOW, NOW, Reply { kind: ReplyKind::ReadOnly, session: SessionId::NONE, ..reply(4, vec![4]) });
    network.keep(NOW, NOW, Reply { kind: ReplyKind::TentativeRead, session: SessionId::NONE, ..reply(5, vec![5]) });
    assert_eq!(told(&mut network), [3, 4, 5], "who asks for it needs it");
    // However many there are, they take no more than so much room.
    for t in 0..100 {
        network.keep(NOW, NOW, reply(t, vec![0; 100_000]));
    }
    network.release(NOW);
    let mut last = told(&mut network);
    last.sort_unstable();
    assert_eq!(last, (59..100).collect::<Vec<_>>());
}

#[test]
fn p53_who_receives_large_messages_is_told_so() {
    let (mut first, mut last, keys) = (network(0), network(3), client(100, AuthMode::Mac));
    let small = pack(&keys, RequestKind::Ordered, 1, &[1; 1_000], false);
    receive(&mut last, NOW, pack_datagram(&keys, 3, &small, 1));
    assert!(!last.receives_bulk(NOW));
    let large = pack(&keys, RequestKind::Ordered, 2, &[1; 10_000], false);
    receive(&mut last, NOW, pack_datagram(&keys, 3, &large, 1));
    let ms = Duration::from_millis;
    assert!(last.receives_bulk(NOW + ms(19)) && !last.receives_bulk(NOW + ms(20)), "in one datagram");
    first.send(ReplicaId(3), Message::Relay(large));
    let pieces = flush(&mut first);
    assert!(pieces.len() > 1);
    let bytes = pieces[0].to_bytes();
    receive(&mut last, NOW + ms(100), Datagram { from: Peer::Replica(ReplicaId(0)), bytes });
    assert!(last.receives_bulk(NOW + ms(119)) && !last.receives_bulk(NOW + ms(120)), "in pieces");
}

#[test]
fn p12_whom_another_network_role_met_is_known_inside_pre_prepares() {
    let open = Arc::new(ClusterKeys { clients: Clients::Open, ..(*cluster()).clone() });
    let replica = |i: u8| {
        let keys = Keyring::replica(ReplicaId(i), &identity(i), open.clone(), AuthMode::Mac).unwrap();
        Network::new(NetworkConfig::default(), keys, ClusterSize::of(4).unwrap()).unwrap()
    };
    let (mut primary, mut other, mut backup) = (replica(0), replica(1), replica(1));
    let client = Keyring::client(&identity(100), ENDPOINT, open.clone(), AuthMode::Mac).unwrap();
    let (signed, maced) =
        (pack(&client, RequestKind::Ordered, 1, b"a", true), pack(&client, RequestKind::Ordered, 2, b"b", false));
    let proposal = |packs| PrePrepare { view: View(0), n: SeqNum(1), choice: Choice::default(), packs };
    primary.broadcast(Message::PrePrepare(proposal(vec![Proposed::Inline(maced.clone())])));
    let datagram = flush(&mut primary).into_iter().find(|o| o.to == Peer::Replica(ReplicaId(1))).unwrap();
    let datagram = Datagram { from: Peer::Replica(ReplicaId(0)), bytes: datagram.to_bytes() };
    let unproven = |backup: &mut Network| {
        let inbound = receive(backup, NOW, datagram.clone());
        let [Inbound::PrePrepare(_, unproven)] = &inbound[..] else { panic!("{inbound:?}") };
        unproven.clone()
    };
    assert_eq!(unproven(&mut backup), [maced.digest()]);
    // The network role that has this client's socket.
    let inbound = receive(&mut other, NOW, pack_datagram(&client, 1, &signed, 9));
    let [Inbound::Request { pack, signed: true }] = &inbound[..] else { panic!("{inbound:?}") };
    backup.meet(pack);
    assert_eq!(unproven(&mut backup), []);
}

#[test]
fn p40_a_network_role_for_clients_tells_no_replica_its_key() {
    let keys = || {
        let mut keys = Keyring::replica(ReplicaId(0), &identity(0), cluster(), AuthMode::Mac).unwrap();
        keys.begin(&FreshKey::at_boot(1, [7; 32])).unwrap();
        keys
    };
    let size = ClusterSize::of(4).unwrap();
    let mut first = Network::new(NetworkConfig::default(), keys(), size).unwrap();
    assert_eq!(flush(&mut first).len(), 3);
    let mut for_clients = Network::for_clients(NetworkConfig::default(), keys(), size).unwrap();
    assert_eq!((flush(&mut for_clients).len(), for_clients.deadline()), (0, Time::NEVER));
    // A client that does not know the key is told it here.
    let keys = client(100, AuthMode::Mac);
    let request = pack(&keys, RequestKind::Ordered, 1, b"x", true);
    assert!(receive(&mut for_clients, NOW, pack_datagram(&keys, 0, &request, 9)).is_empty());
    assert_eq!(flush(&mut for_clients).len(), 1);
}
