//! The inputs that fuzzing kept, played again: each was once a way to somewhere new, or a way to break something.
//! `tests/fuzz/README.md` says how to look for more.

mod fuzz_targets;

use std::fs;
use std::path::Path;

/// Plays the corpus of `target` and returns how many inputs there were.
fn replay(target: &str) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for file in &files {
        // A panic names the input by what was printed last.
        println!("{}", file.display());
        fuzz_targets::run(target, &fs::read(file).unwrap());
    }
    files.len()
}

#[test]
fn p44_every_decoder_plays_its_corpus() {
    assert!(replay("wire") > 0, "an empty corpus checks nothing");
}

#[test]
fn p44_a_replica_plays_its_corpus_of_hostile_messages() {
    assert!(replay("replica") > 0, "an empty corpus checks nothing");
}

#[test]
fn p44_a_client_plays_its_corpus_of_hostile_replies() {
    assert!(replay("client") > 0, "an empty corpus checks nothing");
}
