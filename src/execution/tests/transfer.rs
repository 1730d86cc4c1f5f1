//! A state that others certified takes the place of the own one (P38, P39).

use super::*;
use crate::state::{Page, RegionId};

/// All pages of `state`, as the checkpoint role hands them over.
fn pages_of(bench: &Bench<Tally>) -> [Vec<Arc<Page>>; 2] {
    [RegionId::Library, RegionId::Service].map(|id| {
        let region = bench.executor.state().region(id);
        (0..region.pages()).map(|i| Arc::new(Page(*region.read(crate::state::PageId(i))))).collect()
    })
}

fn halt(bench: &mut Bench<Tally>) -> Vec<&'static str> {
    let out = bench.handle(Command::Halt { n: SeqNum(4), root: Digest([1; 32]), diverged: false });
    out.iter()
        .map(|output| match output {
            Output::Sealed(_) => "sealed",
            Output::Halted { .. } => "halted",
            other => panic!("{other:?}"),
        })
        .collect()
}

/// One that has executed up to batch 4, and its session.
fn ahead(config: ExecutorConfig) -> (Bench<Tally>, SessionId) {
    let mut ahead = Bench::with(config);
    let s = ahead.session(ALICE, 8);
    for t in 0..3 {
        ahead.committed(&[ordered(ALICE, s, t, b"+")]);
    }
    assert_eq!(ahead.executor.executed(), SeqNum(4));
    (ahead, s)
}

#[test]
fn p38_p39_an_installed_state_brings_its_sessions_and_replies_and_drops_caches() {
    let (ahead, s) = ahead(config());
    let mut behind = Bench::new();
    let own = behind.session(BOB, 8);
    behind.committed(&[ordered(BOB, own, 0, b"+")]);
    // What was executed since the last checkpoint is sealed too, once.
    assert_eq!(halt(&mut behind), ["sealed", "halted"]);
    assert_eq!(halt(&mut behind), ["halted"]);
    assert!(behind.query(query(BOB, 1, b"="), 0).is_empty());
    assert_eq!(behind.admit(&ordered(BOB, own, 0, b"+")), (vec![], false), "asked again later");
    assert_eq!((behind.executor.counters().queries_refused, behind.executor.held_queries()), (1, 0));

    let out = behind.handle(Command::Install { n: SeqNum(4), pages: pages_of(&ahead) });
    assert!(matches!(out[..], [Output::Installed(SeqNum(4))]), "{out:?}");
    assert_eq!((behind.root(), behind.executor.counters().installed), (ahead.root(), 1));
    let (kept, unexecuted) = behind.admit(&ordered(ALICE, s, 2, b"+"));
    assert_eq!((&kept[0].outcome, unexecuted), (&count(3), false));
    behind.next = 5;
    let next = behind.committed(&[ordered(ALICE, s, 3, b"+"), ordered(BOB, own, 1, b"+")]);
    assert_eq!(
        next.iter().map(|reply| &reply.outcome).collect::<Vec<_>>(),
        [&count(4)],
        "Bob's session is Alice's there"
    );
    assert_eq!(behind.query(query(BOB, 2, b"="), 5)[0].outcome, count(4));
    // What it holds is that checkpoint: nothing to seal.
    let mut again = Bench::new();
    again.handle(Command::Install { n: SeqNum(4), pages: pages_of(&ahead) });
    assert_eq!(halt(&mut again), ["halted"]);
}

#[test]
fn p38_a_state_that_does_not_fit_says_why_and_is_not_taken() {
    let unfit = |bench: &mut Bench<Tally>, pages| {
        let out = bench.handle(Command::Install { n: SeqNum(4), pages });
        let [Output::Unfit(why)] = &out[..] else { panic!("{out:?}") };
        why.clone()
    };
    let (ahead, _) = ahead(config());
    let mut small = Bench::with(ExecutorConfig { service_pages: 2, ..config() });
    let mut pages = pages_of(&ahead);
    pages[1].resize(3, Page::zeroed());
    let said = unfit(&mut small, pages);
    assert!(said.contains("is larger than service_pages"), "{said}");
    let mut other = Bench::with(ExecutorConfig { window_max: 63, ..config() });
    let said = unfit(&mut other, pages_of(&ahead));
    assert!(said.contains("another configuration"), "{said}");
    assert_eq!(other.executor.counters().installed, 0);
}

#[test]
fn a_state_of_nothing_is_nobodys() {
    let empty = crate::state::State::new(100, 100);
    assert!(Executor::resume(Tally, config(), empty).is_err());
}
