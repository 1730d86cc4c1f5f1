use super::*;
use crate::limits::PAGE;

/// Ships and digests everything that is sealed.
fn digest(state: &mut State, digester: &mut Digester, budget: usize) -> Checkpoint {
    while let Some(shipment) = state.ship(budget) {
        digester.accept(shipment);
    }
    loop {
        let progress = digester.step(budget);
        state.give_back(digester.take_done());
        match progress {
            Progress::Done(checkpoint) => return checkpoint,
            Progress::Working => {}
            Progress::Idle => panic!("the digester is idle in the middle of a checkpoint"),
        }
    }
}

#[test]
fn p23_root_of_a_fresh_state_is_the_full_hash() {
    let mut state = State::new(8, 8);
    let mut digester = Digester::new();
    digester.begin(state.seal(SeqNum(0)));
    let checkpoint = digest(&mut state, &mut digester, 1);
    assert_eq!(checkpoint.root, state.full_root());
    assert_eq!(checkpoint.regions[1].root, *blake3::hash(&[0; PAGE]).as_bytes());
}
