//! Fetchers against servers in memory, some of which lie.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::limits::PAGE;
use crate::state::{Digester, Keep, PageId, Progress, State};
use crate::types::{Digest, ReplicaId, Time};
use crate::wire::{FetchState, Message, RegionHead, StateAnswer, StateContent, StateItem, StatePart};

const KEEP: Keep = Keep { checkpoints: 3, pages: 100_000 };

/// A state and its digests, as the execution and checkpoint roles hold them.
struct Held {
    state: State,
    digester: Digester,
}

impl Held {
    fn new(library: u32, service: u32) -> Held {
        let mut state = State::new(1 << 20, 1 << 20);
        state.library.grow(library - 1).unwrap();
        state.service.grow(service - 1).unwrap();
        Held { state, digester: Digester::new(KEEP) }
    }

    /// Fills a page with bytes that depend on `mark` and do not compress.
    fn mark(&mut self, region: RegionId, page: u32, mark: u64) {
        let mut bytes = [0; PAGE];
        blake3::Hasher::new()
            .update(&[page.to_le_bytes(), (mark as u32).to_le_bytes()].concat())
            .finalize_xof()
            .fill(&mut bytes);
        self.state.region_mut(region).write(PageId(page), 0..PAGE).copy_from_slice(&bytes);
    }

    fn seal(&mut self, n: u64) -> Digest {
        self.digester.begin(self.state.seal(SeqNum(n)));
        loop {
            if let Some(shipment) = self.state.ship(1_000) {
                self.digester.accept(shipment);
            }
            let progress = self.digester.step(1_000);
            self.state.give_back(self.digester.take_done());
            if let Progress::Done(checkpoint) = progress {
                assert_eq!(checkpoint.root, self.state.full_root());
                return checkpoint.root;
            }
        }
    }
}

/// What a server does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    Honest,
    Silent,
    /// It has the header, and then nothing.
    HeaderOnly,
    WrongHeader,
    WrongNodes,
    WrongPages,
    /// Nodes for pages, pages for nodes.
    Confused,
    /// It answers with nothing at all.
    Empty,
    /// More parts than it was asked for.
    Talkative,
    /// It says that it does not have what it has.
    Denies,
}

const LIES: [Manner; 9] = [
    Manner::Silent,
    Manner::HeaderOnly,
    Manner::WrongHeader,
    Manner::WrongNodes,
    Manner::WrongPages,
    Manner::Confused,
    Manner::Empty,
    Manner::Talkative,
    Manner::Denies,
];

fn lie(manner: Manner, answer: StateAnswer) -> Option<StateAnswer> {
    let StateAnswer { n, nonce, content } = answer;
    let content = match (manner, content) {
        (Manner::Silent, _) | (Manner::HeaderOnly, StateContent::Parts(_)) => return None,
        (Manner::Denies, _) => StateContent::Absent(vec![SeqNum(1)]),
        (Manner::WrongHeader, StateContent::Header([a, b])) => {
            StateContent::Header([RegionHead { pages: a.pages + 1, ..a }, b])
        }
        (Manner::Empty, StateContent::Parts(_)) => StateContent::Parts(Vec::new()),
        (Manner::Talkative, StateContent::Parts(mut parts)) => {
            parts.extend(parts.clone());
            StateContent::Parts(parts)
        }
        (manner, StateContent::Parts(parts)) => StateContent::Parts(
            parts
                .into_iter()
                .map(|part| match (manner, part) {
                    (Manner::WrongNodes, StatePart::Nodes(mut nodes)) => {
                        nodes[0][7] ^= 1;
                        StatePart::Nodes(nodes)
                    }
                    (Manner::WrongPages, StatePart::Page(bytes)) => {
                        let mut bytes = bytes.to_vec();
                        bytes.resize(PAGE, 0);
                        bytes[100] ^= 1;
                        StatePart::Page(bytes.into())
                    }
                    (Manner::Confused, StatePart::Nodes(_)) => StatePart::Page(Bytes::from_static(b"x")),
                    (Manner::Confused, StatePart::Page(_)) => StatePart::Nodes(vec![[0; 32]]),
                    (_, part) => part,
                })
                .collect(),
        ),
        (_, content) => content,
    };
    Some(StateAnswer { n, nonce, content })
}

/// Bytes of a message as it travels, with its share of the datagrams that carry it.
fn wire_bytes(message: &Message) -> usize {
    let mut buffer = crate::wire::FrameBuffer::default();
    assert!(buffer.push(message));
    let len = buffer.len() + 48;
    let datagrams = len.div_ceil(1_452 - 64);
    len + datagrams * 64
}

struct Outcome {
    /// Of requests and answers, whole datagrams.
    bytes: usize,
    requests: usize,
    took: Duration,
    absent: Vec<u64>,
}

/// Fetches until done, or until `patience` of virtual time is over; every message takes a millisecond.
fn fetch(
    behind: &mut Held,
    fetcher: &mut Fetch,
    servers: &mut [(Held, Manner)],
    patience: Duration,
    mut each: impl FnMut(&mut [(Held, Manner)], usize),
) -> (bool, Outcome) {
    let begin = Time(1_000_000_000);
    let mut now = begin;
    let mut serves: Vec<Serve> = servers.iter().map(|_| Serve::default()).collect();
    let mut outcome = Outcome { bytes: 0, requests: 0, took: Duration::ZERO, absent: Vec::new() };
    let mut arriving: Vec<(Time, ReplicaId, StateAnswer)> = Vec::new();
    let mut found = Vec::new();
    while now.since(begin) < patience {
        let mirror = behind.digester.mirror_mut();
        for (_, from, answer) in arriving.extract_if(.., |(at, ..)| *at <= now) {
            fetcher.answer(now, mirror, from, answer);
        }
        fetcher.poll(now, mirror, &mut found);
        for found in found.drain(..) {
            match found {
                Found::Ask(peer, request) => {
                    outcome.requests += 1;
                    outcome.bytes += wire_bytes(&Message::FetchState(request.clone()));
                    serves[usize::from(peer.0)].accept(ReplicaId(9), request);
                }
                Found::Absent(n) => outcome.absent.push(n.0),
                Found::Compared => return (true, outcome),
                Found::Complete { pages, .. } => {
                    assert!(behind.state.install(pages));
                    outcome.took = now.since(begin);
                    return (true, outcome);
                }
            }
        }
        for (i, serve) in serves.iter_mut().enumerate() {
            while serve.deadline() <= now {
                let Some((_, answer)) = serve.answer(now, Some(&mut servers[i].0.digester)) else { break };
                outcome.bytes += wire_bytes(&Message::State(answer.clone()));
                if let Some(answer) = lie(servers[i].1, answer) {
                    arriving.push((now + Duration::from_millis(1), ReplicaId(i as u8), answer));
                }
            }
        }
        each(servers, outcome.requests);
        now = now + Duration::from_micros(500);
    }
    (false, outcome)
}

fn fetcher(servers: usize) -> Fetch {
    Fetch::new((0..servers as u8).map(ReplicaId), 0)
}

fn pages_of(state: &State) -> Vec<[u8; PAGE]> {
    let of = |id| (0..state.region(id).pages()).map(move |page| *state.region(id).read(PageId(page)));
    RegionId::BOTH.into_iter().flat_map(of).collect()
}

/// A cluster of equal states of so many service pages, and one replica that lacks `marks`.
fn cluster(pages: u32, marks: &[u32], manners: &[Manner]) -> (Held, Vec<(Held, Manner)>, Digest) {
    let old = || {
        let mut held = Held::new(3, pages);
        for page in 0..pages {
            held.mark(RegionId::Service, page, 1);
        }
        held.seal(4);
        held
    };
    let mut root = Digest::default();
    let mut servers = Vec::new();
    for manner in manners {
        let mut held = old();
        for &page in marks {
            held.mark(RegionId::Service, page, 2);
        }
        held.mark(RegionId::Library, 1, 2);
        root = held.seal(8);
        servers.push((held, *manner));
    }
    (old(), servers, root)
}

#[test]
fn p38_only_what_differs_is_fetched() {
    let marks = [0, 17, 18, 300, 999];
    let (mut behind, mut servers, root) = cluster(1_000, &marks, &[Manner::Honest; 3]);
    let mut fetcher = fetcher(3);
    fetcher.begin(behind.digester.mirror_mut(), SeqNum(8), root, false);
    let (done, outcome) = fetch(&mut behind, &mut fetcher, &mut servers, Duration::from_secs(1), |_, _| {});
    assert!(done);
    assert_eq!(fetcher.stats().pages, marks.len() as u64 + 1);
    assert!(outcome.took < Duration::from_millis(15), "{:?}: a few round trips", outcome.took);
    assert_eq!(pages_of(&behind.state), pages_of(&servers[0].0.state));
    assert_eq!(behind.state.full_root(), root);
}

/// The figure of the claim: 256 MiB, 1 % of the pages scattered. `cargo test --release -- --nocapture p38_bytes`.
#[test]
fn p38_bytes_moved_are_at_most_1_3_times_the_differing_pages() {
    let pages = 65_536;
    let marks: Vec<u32> = (0..655).map(|i| (i * 7_919 * 13 + i * i) % pages).collect();
    let (mut behind, mut servers, root) = cluster(pages, &marks, &[Manner::Honest; 1]);
    let differing = {
        let mut unique = marks.clone();
        unique.sort();
        unique.dedup();
        unique.len() + 1
    };
    let mut fetcher = fetcher(1);
    fetcher.begin(behind.digester.mirror_mut(), SeqNum(8), root, false);
    let (done, outcome) = fetch(&mut behind, &mut fetcher, &mut servers, Duration::from_secs(9), |_, _| {});
    assert!(done);
    let ratio = outcome.bytes as f64 / (differing * PAGE) as f64;
    println!(
        "{differing} of {pages} pages differ: {} bytes moved in {} requests and their answers, headers of datagrams \
         included: {ratio:.3} times the pages",
        outcome.bytes, outcome.requests
    );
    assert!(ratio <= 1.3, "{ratio}");
}

#[test]
fn p38_whatever_f_peers_send_it_ends_and_the_liar_is_named() {
    for lie in LIES {
        let marks: Vec<u32> = (0..200).map(|i| i * 5).collect();
        let (mut behind, mut servers, root) = cluster(1_000, &marks, &[lie, Manner::Honest, Manner::Honest]);
        let mut fetcher = fetcher(3);
        fetcher.begin(behind.digester.mirror_mut(), SeqNum(8), root, false);
        let (done, _) = fetch(&mut behind, &mut fetcher, &mut servers, Duration::from_secs(3), |_, _| {});
        assert!(done, "{lie:?}");
        assert_eq!(behind.state.full_root(), root, "{lie:?}");
        let caught: Vec<&str> = fetcher.misdeeds(ReplicaId(0)).map(|(name, _)| name).collect();
        let expected: &[&str] = match lie {
            Manner::WrongNodes => &["wrong_tree_node"],
            Manner::WrongPages => &["wrong_page"],
            Manner::Talkative => &["wrong_state_header"],
            // Found out only if it was asked for a header, or for both kinds.
            Manner::WrongHeader | Manner::Confused => &caught.clone(),
            Manner::Honest | Manner::Silent | Manner::HeaderOnly | Manner::Empty | Manner::Denies => &[],
        };
        assert_eq!(caught, expected, "{lie:?}");
        for honest in [1, 2] {
            assert_eq!(fetcher.misdeeds(ReplicaId(honest)).count(), 0, "{lie:?}");
        }
    }
}

#[test]
fn p38_regions_grow_and_shrink() {
    for (ours, theirs) in [(1, 1), (1, 2), (2, 1), (1, 17), (16, 17), (17, 16), (300, 4_097), (4_097, 300), (257, 1)] {
        let mut behind = Held::new(2, ours);
        (0..ours).for_each(|page| behind.mark(RegionId::Service, page, 1));
        behind.seal(4);
        let mut ahead = Held::new(5, theirs);
        (0..theirs).for_each(|page| ahead.mark(RegionId::Service, page, u64::from(page % 3 == 0)));
        let root = ahead.seal(8);
        let mut fetcher = fetcher(1);
        let mut servers = [(ahead, Manner::Honest)];
        fetcher.begin(behind.digester.mirror_mut(), SeqNum(8), root, false);
        let (done, _) = fetch(&mut behind, &mut fetcher, &mut servers, Duration::from_secs(2), |_, _| {});
        assert!(done, "{ours} to {theirs}");
        assert_eq!(behind.state.full_root(), root, "{ours} to {theirs}");
        // And the state lives on: it is written, sealed and digested as any other.
        behind.mark(RegionId::Service, 0, 77);
        behind.mark(RegionId::Library, 4, 78);
        behind.seal(12);
        behind.seal(16);
    }
}

#[test]
fn p38_what_was_fetched_and_still_fits_is_kept_when_the_target_moves() {
    let marks: Vec<u32> = (0..400).collect();
    let (mut behind, mut servers, root) = cluster(1_000, &marks, &[Manner::Honest]);
    let mut fetcher = fetcher(1);
    fetcher.begin(behind.digester.mirror_mut(), SeqNum(8), root, false);
    // In the middle the server moves on, so far that it does not keep checkpoint 8.
    let mut newest = root;
    let (done, outcome) =
        fetch(&mut behind, &mut fetcher, &mut servers, Duration::from_millis(300), |servers, asked| {
            if asked > 30 && newest == root {
                for n in 9..20 {
                    servers[0].0.mark(RegionId::Service, 500 + n, 3);
                    newest = servers[0].0.seal(4 * u64::from(n));
                }
            }
        });
    assert!(!done);
    assert!(!outcome.absent.is_empty() && outcome.absent.iter().all(|n| *n == 8));
    let before = fetcher.stats().pages;
    assert!((100..401).contains(&before), "{before}");
    fetcher.begin(behind.digester.mirror_mut(), SeqNum(76), newest, false);
    let (done, _) = fetch(&mut behind, &mut fetcher, &mut servers, Duration::from_secs(1), |_, _| {});
    assert!(done);
    assert_eq!(fetcher.stats().pages, 401 + 11, "nothing twice");
    assert_eq!(behind.state.full_root(), newest);
}

#[test]
fn p38_older_checkpoints_are_served_while_execution_goes_on() {
    let (mut behind, mut servers, root) = cluster(500, &[1, 2, 3], &[Manner::Honest]);
    let mut fetcher = fetcher(1);
    fetcher.begin(behind.digester.mirror_mut(), SeqNum(8), root, false);
    let mut n = 2u64;
    let (done, _) = fetch(&mut behind, &mut fetcher, &mut servers, Duration::from_secs(1), |servers, asked| {
        // Two more checkpoints, and one half digested.
        if asked > 1 && n < 5 {
            n += 1;
            let server = &mut servers[0].0;
            [1, 2, 200, 499].into_iter().for_each(|page| server.mark(RegionId::Service, page, n));
            server.state.service.grow(40).unwrap();
            if n < 5 {
                server.seal(4 * n);
            } else {
                server.digester.begin(server.state.seal(SeqNum(20)));
                server.digester.accept(server.state.ship(5).unwrap());
                server.digester.step(3);
            }
        }
    });
    assert!(done && n == 5);
    assert_eq!(behind.state.full_root(), root);
}

#[test]
fn p25_a_diverged_replica_knows_which_pages_were_wrong_at_the_checkpoint() {
    let (mut behind, mut servers, root) = cluster(500, &[1, 2, 3], &[Manner::Honest]);
    [1, 2, 3].into_iter().for_each(|page| behind.mark(RegionId::Service, page, 2));
    behind.mark(RegionId::Library, 1, 2);
    behind.mark(RegionId::Service, 77, 666);
    behind.mark(RegionId::Service, 444, 666);
    assert_ne!(behind.seal(8), root);
    // It has gone on since.
    (200..260).for_each(|page| behind.mark(RegionId::Service, page, 5));
    behind.state.service.grow(9).unwrap();
    behind.seal(11);
    let mut fetcher = fetcher(1);
    fetcher.begin(behind.digester.mirror_mut(), SeqNum(8), root, true);
    let (done, _) = fetch(&mut behind, &mut fetcher, &mut servers, Duration::from_secs(1), |_, _| {});
    assert!(done);
    assert_eq!(behind.state.full_root(), root);
    assert_eq!(fetcher.stats().pages, 2, "only what was wrong: it went back to its own checkpoint first");
    let pages = vec![(RegionId::Service, 444), (RegionId::Service, 77)];
    let found = fetcher.divergence().unwrap();
    let mut named = found.pages.clone();
    named.sort_by_key(|(_, page)| std::cmp::Reverse(*page));
    assert_eq!((named, found.count, found.exact, found.healed), (pages, 2, true, true));
}

#[test]
fn p25_states_are_compared_without_a_page_being_moved() {
    let (mut ours, mut servers, _) = cluster(500, &[], &[Manner::Honest]);
    let mut theirs = [3, 400, 401];
    theirs.iter().for_each(|&page| servers[0].0.mark(RegionId::Service, page, 9));
    let root = servers[0].0.seal(12);
    ours.mark(RegionId::Library, 1, 2);
    ours.seal(12);
    ours.mark(RegionId::Service, 0, 5);
    ours.seal(16);
    let before = ours.digester.mirror().current().unwrap().root;
    let mut mirror = ours.digester.mirror().clone();
    let mut fetcher = Fetch::compare(ReplicaId(0), 0, &mut mirror, SeqNum(12), root);
    let mut copy = Held { state: State::new(1, 1), digester: Digester::new(KEEP) };
    *copy.digester.mirror_mut() = mirror;
    let (done, _) = fetch(&mut copy, &mut fetcher, &mut servers, Duration::from_secs(1), |_, _| {});
    assert!(done);
    let found = fetcher.divergence().unwrap();
    let mut pages: Vec<u32> = found.pages.iter().map(|(_, page)| *page).collect();
    pages.sort();
    theirs.sort();
    assert_eq!((pages.as_slice(), found.exact, found.healed), (&theirs[..], true, false));
    assert_eq!(fetcher.stats().pages, 0);
    assert_eq!(ours.digester.mirror().current().unwrap().root, before, "our own state is as it was");
}

#[test]
fn p38_an_own_page_whose_node_is_wrong_is_fetched_too() {
    let (mut behind, mut servers, root) = cluster(40, &[1], &[Manner::Honest]);
    let mirror = behind.digester.mirror_mut();
    let mut fetcher = fetcher(1);
    fetcher.begin(mirror, SeqNum(8), root, false);
    let cv = *mirror.tree(RegionId::Service).node(0, 20).unwrap();
    mirror.put(RegionId::Service, PageId(20), crate::state::Page::zeroed(), cv);
    // Nodes say that it is right. What is found at the end is the root, which is made of nodes: so this one stays, as
    // would a bit that flipped in memory. But one whose node is wrong does not.
    mirror.put(RegionId::Service, PageId(21), crate::state::Page::zeroed(), [9; 32]);
    mirror.refresh_all();
    let (done, _) = fetch(&mut behind, &mut fetcher, &mut servers, Duration::from_secs(1), |_, _| {});
    assert!(done);
    assert_eq!(behind.state.service.read(PageId(21)), servers[0].0.state.service.read(PageId(21)));
}

#[test]
fn p21_a_server_bounds_what_one_peer_draws() {
    let (_, mut servers, _) = cluster(1_000, &[], &[Manner::Honest]);
    let mut serve = Serve::default();
    let now = Time(1_000_000_000);
    let items: Vec<_> = (0..128).map(|page| StateItem::Page { region: RegionId::Service, page }).collect();
    let (mut bytes, mut answers) = (0, 0);
    for nonce in 0..1_000 {
        serve.accept(ReplicaId(3), FetchState { n: SeqNum(8), nonce, items: items.clone() });
        while serve.deadline() <= now
            && let Some((_, answer)) = serve.answer(now, Some(&mut servers[0].0.digester))
        {
            let len = wire_bytes(&Message::State(answer));
            assert!(len < 80_000, "{len} bytes in one answer");
            (bytes, answers) = (bytes + len, answers + 1);
        }
    }
    assert!(bytes < 4_000_000 && answers < 60, "{bytes} bytes in {answers} answers at one moment");
    assert!(serve.dropped() > 900);
    serve.accept(ReplicaId(2), FetchState { n: SeqNum(8), nonce: 1, items: Vec::new() });
    assert!(serve.deadline() <= now, "another peer is served at once");
    assert_eq!(serve.answer(now, Some(&mut servers[0].0.digester)).unwrap().0, ReplicaId(2));
    assert!(serve.deadline() > now && serve.deadline() <= now + Duration::from_millis(50));
}

#[test]
fn p44_requests_for_what_does_not_exist_get_an_empty_answer() {
    let (_, mut servers, _) = cluster(40, &[], &[Manner::Honest]);
    let mut serve = Serve::default();
    let region = RegionId::Service;
    for item in [
        StateItem::Page { region, page: 40 },
        StateItem::Page { region, page: u32::MAX },
        StateItem::Nodes { region, level: 7, group: 0 },
        StateItem::Nodes { region, level: 0, group: 3 },
        StateItem::Nodes { region, level: 0, group: u32::MAX },
    ] {
        serve.accept(ReplicaId(3), FetchState { n: SeqNum(8), nonce: 1, items: vec![item] });
        let (_, answer) = serve.answer(Time(1), Some(&mut servers[0].0.digester)).unwrap();
        assert_eq!(answer.content, StateContent::Parts(Vec::new()), "{item:?}");
    }
    serve.accept(ReplicaId(3), FetchState { n: SeqNum(9), nonce: 1, items: Vec::new() });
    let (_, answer) = serve.answer(Time(1), Some(&mut servers[0].0.digester)).unwrap();
    assert_eq!(answer.content, StateContent::Absent(vec![SeqNum(4), SeqNum(8)]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Any two states; after the transfer they are byte-equal, whatever one of four peers does.
    #[test]
    fn p38_after_a_transfer_the_states_are_equal(
        sizes in [1u32..6, 1..700, 1..6, 1..700],
        ours in proptest::collection::vec((any::<bool>(), any::<u32>(), 0..3u64), 0..120),
        theirs in proptest::collection::vec((any::<bool>(), any::<u32>(), 0..3u64), 0..120),
        liar in 0..LIES.len(),
        sealed in any::<bool>(),
    ) {
        let build = |library: u32, service: u32, marks: &[(bool, u32, u64)]| {
            let mut held = Held::new(library, service);
            for &(in_service, page, mark) in marks {
                let (region, pages) = if in_service { (RegionId::Service, service) } else { (RegionId::Library, library) };
                held.mark(region, page % pages, mark);
            }
            held
        };
        let mut behind = build(sizes[0], sizes[1], &ours);
        if sealed {
            behind.seal(4);
        }
        let mut servers = Vec::new();
        let mut root = Digest::default();
        for i in 0..4 {
            let mut held = build(sizes[2], sizes[3], &theirs);
            root = held.seal(8);
            servers.push((held, if i == 2 { LIES[liar] } else { Manner::Honest }));
        }
        let mut fetcher = fetcher(4);
        fetcher.begin(behind.digester.mirror_mut(), SeqNum(8), root, false);
        let (done, _) = fetch(&mut behind, &mut fetcher, &mut servers, Duration::from_secs(5), |_, _| {});
        prop_assert!(done);
        prop_assert!(pages_of(&behind.state) == pages_of(&servers[0].0.state));
        prop_assert_eq!(behind.state.full_root(), root);
    }
}
