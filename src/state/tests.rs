use proptest::prelude::*;

use super::*;
use crate::limits::PAGE;

/// Ships and digests everything that is sealed, `budget` pages at a time; the last checkpoint.
fn digest(state: &mut State, digester: &mut Digester, budget: usize) -> Checkpoint {
    while let Some(shipment) = state.ship(budget) {
        digester.accept(shipment);
    }
    let mut last = None;
    loop {
        let progress = digester.step(budget);
        state.give_back(digester.take_done());
        match progress {
            Progress::Done(checkpoint) => last = Some(checkpoint),
            Progress::Working => {}
            Progress::Idle => return last.expect("a checkpoint was sealed"),
        }
    }
}

/// A copy of everything, for comparison.
fn copy(state: &State) -> [Vec<[u8; PAGE]>; 2] {
    RegionId::BOTH.map(|id| {
        let region = state.region(id);
        (0..region.pages()).map(|page| *region.read(PageId(page))).collect()
    })
}

fn root_of(content: &[Vec<[u8; PAGE]>; 2]) -> Digest {
    digest::state_root(
        &content.each_ref().map(|pages| RegionRoot {
            pages: pages.len() as u32,
            root: *blake3::hash(pages.as_flattened()).as_bytes(),
        }),
    )
}

#[test]
fn p23_root_of_a_fresh_state_is_the_full_hash() {
    let mut state = State::new(8, 8);
    let mut digester = Digester::new(Keep::default());
    digester.begin(state.seal(SeqNum(0)));
    let checkpoint = digest(&mut state, &mut digester, 1);
    assert_eq!(checkpoint.root, state.full_root());
    assert_eq!(checkpoint.regions[1].root, *blake3::hash(&[0; PAGE]).as_bytes());
}

#[test]
fn p23_tree_of_any_size_has_the_root_of_the_plain_hash() {
    for step in [1, 2, 3, 7, 16, 33] {
        let (mut state, mut digester) = (State::new(8, 300), Digester::new(Keep::default()));
        for n in 0.. {
            digester.begin(state.seal(SeqNum(n)));
            let checkpoint = digest(&mut state, &mut digester, 5);
            assert_eq!(checkpoint.root, root_of(&copy(&state)), "{} pages", state.service.pages());
            let Ok(page) = state.service.grow(step) else { break };
            state.service.write(page, 17..20).copy_from_slice(&[n as u8; 3]);
        }
    }
}

#[test]
fn p23_cost_grows_with_what_changed() {
    let (mut state, mut digester) = (State::new(8, 5_000), Digester::new(Keep::default()));
    state.service.grow(4_000).unwrap();
    digester.begin(state.seal(SeqNum(0)));
    digest(&mut state, &mut digester, 100);
    for page in [5, 6, 3_000] {
        state.service.write(PageId(page), 0..1)[0] = 1;
    }
    let sealed = state.seal(SeqNum(1));
    assert_eq!(sealed.changed, [0, 3]);
    digester.begin(sealed);
    let mut steps = 0;
    digester.accept(state.ship(10).unwrap());
    while let Progress::Working = digester.step(1) {
        steps += 1;
    }
    assert!(steps < 20, "{steps} steps of one page's work each");
}

#[test]
fn p22_sealed_content_is_not_reached_by_later_writes() {
    let mut state = State::new(8, 8);
    let page = state.service.grow(2).unwrap();
    state.service.write(page, 0..5).copy_from_slice(b"first");
    state.seal(SeqNum(1));
    state.service.write(page, 0..5).copy_from_slice(b"other");
    let shipment = state.ship(usize::MAX).unwrap();
    assert!(shipment.last);
    let sealed = |id| &shipment.pages.iter().find(|(_, page, _)| *page == id).unwrap().2.bytes()[..5];
    assert_eq!(sealed(page), b"first");
    state.service.write(PageId(2), 0..5).copy_from_slice(b"later");
    assert_eq!(sealed(PageId(2)), [0; 5]);
    assert_eq!(&state.service.read(page)[..5], b"other");
}

#[test]
fn p22_writes_after_a_seal_copy_only_what_they_touch() {
    let mut state = State::new(8, 100);
    state.service.grow(50).unwrap();
    for page in 0..51 {
        state.service.write(PageId(page), 0..1)[0] = 1;
    }
    state.seal(SeqNum(1));
    assert_eq!(state.lent(), 0);
    for _ in 0..3 {
        state.service.write(PageId(7), 9..10)[0] += 1;
        state.service.write(PageId(8), 9..10)[0] += 1;
    }
    assert_eq!(state.lent(), 2);
    let shipment = state.ship(usize::MAX).unwrap();
    state.service.write(PageId(9), 9..10)[0] += 1;
    assert_eq!(state.lent(), 3, "shipped pages are held by the digest role");
    state.give_back(shipment.pages.into_iter().map(|(region, _, page)| (region, page)));
    assert_eq!(state.lent(), 0, "everything came back");
    state.service.write(PageId(10), 9..10)[0] += 1;
    assert_eq!(state.lent(), 0, "a page that came back is not copied");
}

#[test]
fn what_is_looked_at_stays_as_it_was_sealed_and_does_not_count_as_lent() {
    let (mut state, mut digester) = (State::new(8, 50), Digester::new(Keep { checkpoints: 2, pages: 100 }));
    state.service.grow(5).unwrap();
    let mut sealed = Vec::new();
    for n in 1..=4u8 {
        let page = PageId(u32::from(n));
        state.service.write(page, 0..1)[0] = n;
        state.service.write(PageId(1), 1..2)[0] = n;
        let grown = state.service.grow(1).unwrap();
        state.service.write(grown, 0..1)[0] = 9;
        digester.begin(state.seal(SeqNum(u64::from(n))));
        let checkpoint = digest(&mut state, &mut digester, 100);
        sealed.push((checkpoint, copy(&state)[RegionId::Service as usize].clone()));
    }
    // One more that is half digested.
    state.service.write(PageId(1), 0..PAGE).fill(7);
    state.service.write(PageId(2), 0..PAGE).fill(7);
    digester.begin(state.seal(SeqNum(5)));
    while let Some(shipment) = state.ship(100) {
        digester.accept(shipment);
    }
    assert_eq!(digester.step(1), Progress::Working);
    assert!(digester.mirror().snapshot(SeqNum(2)).is_none(), "no longer kept");
    assert!(digester.mirror().snapshot(SeqNum(5)).is_none(), "not digested yet");
    let views: Vec<Snapshot> = [3, 4].into_iter().filter_map(|n| digester.mirror().snapshot(SeqNum(n))).collect();
    let look = |views: &[Snapshot]| {
        assert_eq!(views.len(), 2);
        for (view, (checkpoint, pages)) in views.iter().zip(&sealed[2..]) {
            assert_eq!(view.checkpoint(), checkpoint);
            let seen: Vec<_> = (0..view.service().pages()).map(|page| *view.service().read(PageId(page))).collect();
            assert!(&seen == pages && view.is_intact());
        }
    };
    look(&views);
    for n in 6..=12 {
        (0..6).for_each(|page| state.service.write(PageId(page), 0..PAGE).fill(n as u8));
        digester.begin(state.seal(SeqNum(n)));
        digest(&mut state, &mut digester, 3);
    }
    look(&views);
    // What the kept checkpoints hold, and nothing for those that are looked at.
    assert_eq!(state.lent(), 12);
}

#[test]
#[should_panic(expected = "never rolled back")]
fn p22_a_tentative_state_is_not_sealed() {
    let mut state = State::new(8, 8);
    state.begin_tentative();
    state.seal(SeqNum(1));
}

#[test]
fn p17_rollback_restores_bytes_and_growth() {
    let mut state = State::new(8, 100);
    state.service.grow(3).unwrap();
    state.service.write(PageId(2), 0..4).copy_from_slice(b"once");
    let before = copy(&state);
    state.begin_tentative();
    state.service.write(PageId(2), 1..4).copy_from_slice(b"ver");
    state.service.write(PageId(2), 0..4).copy_from_slice(b"more");
    let grown = state.service.grow(10).unwrap();
    state.service.write(grown, 0..PAGE).fill(7);
    state.library.allocate().unwrap();
    state.rollback();
    assert_eq!(copy(&state), before);
    let again = state.service.grow(1).unwrap();
    assert_eq!(again, grown);
    assert_eq!(state.service.read(again), &[0; PAGE], "what a rollback dropped does not come back");
}

#[test]
fn a_failed_attempt_changes_nothing_and_nests() {
    let mut region = Region::new(20);
    let page = region.grow(1).unwrap();
    let result = region.attempt(|region| {
        region.write(page, 0..1)[0] = 1;
        let inner: Result<(), Full> = region.attempt(|region| {
            region.write(page, 0..2).fill(2);
            region.grow(3)?;
            region.write(PageId(4), 0..1)[0] = 3;
            Err(Full)
        });
        assert_eq!((inner, region.pages(), region.read(page)[..2].to_vec()), (Err(Full), 2, vec![1, 0]));
        let new = region.grow(1)?;
        region.attempt(|region| -> Result<(), Full> {
            region.write(new, 0..1)[0] = 4;
            Ok(())
        })?;
        Ok::<_, Full>(new)
    });
    assert_eq!(result, Ok(PageId(2)));
    assert_eq!((region.read(page)[0], region.read(PageId(2))[0]), (1, 4));
}

#[test]
fn growth_ends_at_the_limit_and_freed_pages_are_used_again() {
    let mut region = Region::new(2_500);
    let pages: Vec<PageId> = std::iter::from_fn(|| region.allocate().ok()).collect();
    assert_eq!((pages.len(), region.available()), (2_499, 0));
    assert_eq!(region.grow(1), Err(Full));
    for &page in &pages {
        region.release(page);
    }
    assert_eq!(region.available(), 2_499);
    let mut again: Vec<PageId> = std::iter::from_fn(|| region.allocate().ok()).collect();
    again.sort();
    assert_eq!(again, pages);
}

#[test]
fn p25_differing_pages_are_found_by_tree_and_by_list() {
    let tree = |marks: &[u32], pages: u32| {
        let (mut state, mut digester) = (State::new(8, 5_000), Digester::new(Keep::default()));
        state.service.grow(pages - 1).unwrap();
        marks.iter().for_each(|&page| state.service.write(PageId(page), 9..10)[0] = 1);
        digester.begin(state.seal(SeqNum(0)));
        digest(&mut state, &mut digester, 1_000);
        digester.tree(RegionId::Service).clone()
    };
    let base = tree(&[], 1_000);
    for (marks, pages) in [(&[][..], 1_000), (&[3, 4, 999], 1_000), (&[7], 1_030), (&[7], 3_000), (&[0], 1)] {
        let other = tree(marks, pages);
        let mut expected: Vec<PageId> = marks.iter().copied().map(PageId).collect();
        expected.extend((pages.min(1_000)..pages.max(1_000)).map(PageId));
        assert_eq!(base.differing(&other), expected);
        assert_eq!(other.differing(&base), expected);
        assert_eq!(differing_pages(base.level(0), other.level(0)), expected);
    }
}

#[test]
fn p38_parts_of_the_tree_are_checked_against_the_node_above() {
    let (mut state, mut digester) = (State::new(8, 5_000), Digester::new(Keep::default()));
    state.service.grow(1_234).unwrap();
    for page in 0..1_235u32 {
        state.service.write(PageId(page), 0..4).copy_from_slice(&page.to_le_bytes());
    }
    digester.begin(state.seal(SeqNum(0)));
    digest(&mut state, &mut digester, 1_000);
    let tree = digester.tree(RegionId::Service);
    for level in (Tree::FANOUT_LEVELS..=tree.top()).step_by(Tree::FANOUT_LEVELS).chain([tree.top()]) {
        for (index, node) in tree.level(level).iter().enumerate() {
            let children = tree.children(level, index);
            assert!(children.len() <= 1 << Tree::FANOUT_LEVELS);
            assert_eq!(Tree::parent_of(children).as_ref(), Some(node), "level {level}, node {index}");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(bool, u16, u16, u16, u8),
    Grow(bool, u8),
    Begin,
    Commit,
    Rollback,
    Seal,
    Ship(u8),
    Digest(u8),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (any::<bool>(), any::<u16>(), 0u16..4096, 1u16..300, any::<u8>())
            .prop_map(|(service, page, at, len, fill)| Step::Write(service, page, at, len, fill)),
        3 => (any::<bool>(), 0u8..6).prop_map(|(service, pages)| Step::Grow(service, pages)),
        2 => Just(Step::Begin),
        2 => Just(Step::Commit),
        2 => Just(Step::Rollback),
        2 => Just(Step::Seal),
        4 => (1u8..8).prop_map(Step::Ship),
        4 => (1u8..8).prop_map(Step::Digest),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Writes, growth, rollbacks, seals, shipping and hashing in any order: every digest is that of the state as it was
    /// when it was sealed, and no page is lost on the way.
    #[test]
    fn p22_p23_every_incremental_digest_equals_the_full_hash(steps in proptest::collection::vec(steps(), 1..200)) {
        let (mut state, mut digester) = (State::new(40, 60), Digester::new(Keep::default()));
        let mut model = copy(&state);
        let mut before = None;
        let mut sealed = VecDeque::new();
        let mut n = 0;
        for step in steps {
            match step {
                Step::Write(service, page, at, len, fill) => {
                    let region = &mut [&mut state.library, &mut state.service][usize::from(service)];
                    let page = u32::from(page) % region.pages();
                    let range = usize::from(at)..usize::from(at + len).min(PAGE);
                    region.write(PageId(page), range.clone()).fill(fill);
                    model[usize::from(service)][page as usize][range].fill(fill);
                }
                Step::Grow(service, pages) => {
                    let region = &mut [&mut state.library, &mut state.service][usize::from(service)];
                    let first = region.pages();
                    match region.grow(pages.into()) {
                        Ok(page) => {
                            prop_assert_eq!(page, PageId(first));
                            let model = &mut model[usize::from(service)];
                            model.resize(model.len() + usize::from(pages), [0; PAGE]);
                        }
                        Err(Full) => prop_assert!(first + u32::from(pages) > region.limit()),
                    }
                }
                Step::Begin if before.is_none() => {
                    state.begin_tentative();
                    before = Some(model.clone());
                }
                Step::Commit if before.is_some() => {
                    state.commit();
                    before = None;
                }
                Step::Rollback if before.is_some() => {
                    state.rollback();
                    model = before.take().unwrap();
                    prop_assert!(copy(&state) == model);
                }
                Step::Seal if before.is_none() => {
                    n += 1;
                    digester.begin(state.seal(SeqNum(n)));
                    sealed.push_back((SeqNum(n), root_of(&model)));
                }
                Step::Ship(budget) => {
                    if let Some(shipment) = state.ship(budget.into()) {
                        digester.accept(shipment);
                    }
                }
                Step::Digest(budget) => {
                    if let Progress::Done(checkpoint) = digester.step(budget.into()) {
                        prop_assert_eq!(Some((checkpoint.n, checkpoint.root)), sealed.pop_front());
                    }
                    if budget % 2 == 0 {
                        state.give_back(digester.take_done());
                    }
                }
                Step::Begin | Step::Commit | Step::Rollback | Step::Seal => {}
            }
        }
        prop_assert!(copy(&state) == model);
        if before.is_some() {
            state.rollback();
        }
        n += 1;
        digester.begin(state.seal(SeqNum(n)));
        let last = digest(&mut state, &mut digester, 1);
        prop_assert_eq!(last.root, state.full_root());
        prop_assert_eq!(state.lent(), 0, "whatever was lent came back");
        let all = digester.tree(RegionId::Service);
        prop_assert_eq!(all.root(), last.regions[1].root);
    }
}
