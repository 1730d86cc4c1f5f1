//! Golden scripts: every `scenarios/*.txt` is played, and its trace must be the one that is written in it.
//!
//! `CASTRA_BLESS=1 cargo test scenarios` writes the traces instead. Read them before they are kept: a trace that nobody
//! read enshrines whatever the code did that day.

use std::fs;
use std::path::{Path, PathBuf};

use similar::TextDiff;

use super::script::play;

fn scripts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sim/tests/scenarios");
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut scripts: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "txt")).collect();
    scripts.sort();
    scripts
}

#[test]
fn every_script_has_the_trace_that_is_written_in_it() {
    let bless = std::env::var_os("CASTRA_BLESS").is_some();
    let mut wrong = Vec::new();
    for path in scripts() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let written = fs::read_to_string(&path).unwrap();
        match play(&written) {
            Err(why) => wrong.push(format!("{name}: {why}")),
            Ok(played) if played == written => {}
            Ok(played) if bless => fs::write(&path, played).unwrap(),
            Ok(played) => {
                let diff = TextDiff::from_lines(&written, &played);
                wrong.push(diff.unified_diff().context_radius(3).header(&name, "played").to_string());
            }
        }
    }
    assert!(wrong.is_empty(), "CASTRA_BLESS=1 writes what was played\n\n{}", wrong.join("\n"));
}

/// Each says at its head what it shows, and which rules.
#[test]
fn every_script_names_its_rules() {
    let scripts = scripts();
    assert!(scripts.len() >= 16, "{} scripts", scripts.len());
    for path in scripts {
        let text = fs::read_to_string(&path).unwrap();
        let head: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
        let named = head.join(" ").split(|c: char| !c.is_ascii_alphanumeric()).any(|word| {
            word.strip_prefix('P').is_some_and(|number| number.parse::<u8>().is_ok_and(|rule| (1..=52).contains(&rule)))
        });
        assert!((2..=8).contains(&head.len()) && named, "{}: its head names no rule", path.display());
    }
}

#[test]
fn a_trace_that_differs_is_found() {
    let script = "cluster 4\nrequest c0 1\n    r0 does something else\ndeliver all\n";
    let played = play(script).unwrap();
    assert_ne!(played, script);
    assert_eq!(play(&played).unwrap(), played, "what was played once is what will be played");
    let first = played.lines().nth(2).unwrap();
    assert_eq!(first, "    r0 <- c0:1: sends pre-prepare v0 n1 [c0:1]");
}

#[test]
fn a_step_that_makes_no_sense_is_an_error() {
    let steps = [
        "request c0 1",
        "cluster 5",
        "cluster 4 K=0",
        "cluster 4\nfly",
        "cluster 4\nrequest r0 1",
        "cluster 4\ndeliver r0->r1",
        "cluster 4\ndeliver r0->r9",
        "cluster 4\ndrop r0->r1 prepare",
        "cluster 4\nsay r0->r1 prepare v0 n1 null",
        "cluster 4\nliar r0\nsay r0->r1 prepare v0 n1 A",
        "cluster 4\nliar r0\nsay r0->r1 new-view v1 of r1,r2,r3 h=0",
        "cluster 4\nadvance 3",
        "cluster 4\ncluster 4",
    ];
    for script in steps {
        assert!(play(script).is_err(), "{script}");
    }
}

#[test]
fn p37_a_status_that_crosses_a_statement_does_not_draw_it_again() {
    // r2's STATUS of view 0 is older than the view-change that r1 sends to all.
    let crossing = |wait: &str| {
        let script =
            "cluster 4\nrequest c0 1 to *\ndeliver r0->* pre-prepare\nadvance 98ms\nhold *->* status\nadvance 3ms\n";
        let played = play(&format!("{script}{wait}\ndrop *->* view-change\ndeliver r2->r1 status\n")).unwrap();
        played.lines().last().unwrap().to_owned()
    };
    assert_eq!(crossing("advance 1ms"), "    nothing");
    let again = crossing("advance 5ms");
    assert!(again.contains("sends r2 view-change v1 of r1"), "{again}");
}
