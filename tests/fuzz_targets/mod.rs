//! What the fuzzer calls, and what `tests/fuzz_corpus.rs` calls with the inputs that are kept. A target takes any bytes
//! and must neither panic, nor run for ever, nor keep more memory than it has bounds for (P44).
//!
//! They use the public interface alone, and real keys: whatever gets past authentication here, a liar can send.

mod client;
mod hostile;
mod replica;
mod wire;

/// A target's body.
pub type Target = fn(&[u8]);

/// Every target, by the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[("wire", wire::run), ("replica", replica::run), ("client", client::run)];

/// The target of that name.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target's name");
    target(data);
}
