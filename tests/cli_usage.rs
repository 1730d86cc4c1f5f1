//! How the command line answers right and wrong use: exit status and text.
#![cfg(feature = "cli")]

use std::process::Command;

fn castra() -> Command {
    Command::new(env!("CARGO_BIN_EXE_castra"))
}

#[test]
fn the_binary_starts() {
    assert!(castra().output().is_ok());
}
