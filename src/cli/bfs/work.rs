//! Programs that anyone has, at work in a folder: what `castra bfs demo` shows.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::Serialize;

/// What a step did, or what it did in all rounds together.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Step {
    /// One word.
    pub name: &'static str,
    /// In the past tense.
    pub did: String,
    /// How often.
    pub times: usize,
    /// In all.
    pub seconds: f64,
    /// Why it could not be tried here.
    pub skipped: Option<String>,
    /// What went wrong.
    pub wrong: Option<String>,
}

/// Rows that the database gets, in transactions of [`ROWS_EACH`].
const ROWS: usize = 2_000;
const ROWS_EACH: usize = 20;

/// Why a step did not succeed.
enum Not {
    /// The machine lacks something.
    Tried(String),
    /// It went wrong.
    Done(String),
}

impl From<std::io::Error> for Not {
    fn from(error: std::io::Error) -> Not {
        Not::Done(error.to_string())
    }
}

fn step(name: &'static str, act: impl FnOnce() -> Result<String, Not>) -> Step {
    let begun = Instant::now();
    let (did, skipped, wrong) = match act() {
        Ok(did) => (did, None, None),
        Err(Not::Tried(why)) => (String::new(), Some(why), None),
        Err(Not::Done(wrong)) => (String::new(), None, Some(wrong)),
    };
    Step { name, did, times: 1, seconds: begun.elapsed().as_secs_f64(), skipped, wrong }
}

/// Works in `folder`, which is made, with what `scratch`, on another file system, has to compare with.
pub fn round(folder: &Path, scratch: &Path) -> Vec<Step> {
    let made = fs::create_dir(folder).and_then(|()| fs::create_dir(scratch));
    if let Err(error) = made {
        return vec![step("begin", || Err(error.into()))];
    }
    vec![
        step("unpack", || unpack(folder, scratch)),
        step("build", || build(folder)),
        step("database", || database(&folder.join("bank.db"))),
    ]
}

/// Each step once: its first fault if it had one, and the times of all rounds together.
pub fn summed(rounds: Vec<Vec<Step>>) -> Vec<Step> {
    let mut sum: Vec<Step> = Vec::new();
    for step in rounds.into_iter().flatten() {
        match sum.iter_mut().find(|seen| seen.name == step.name) {
            Some(seen) => {
                seen.times += step.times;
                seen.seconds += step.seconds;
                seen.wrong = seen.wrong.take().or(step.wrong);
            }
            None => sum.push(step),
        }
    }
    sum
}

/// Runs a program: what it printed, or why it failed.
fn program(command: &mut Command, input: &str) -> Result<String, Not> {
    let name = command.get_program().to_string_lossy().into_owned();
    let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Not::Tried(format!("{name} is not installed")));
        }
        Err(error) => return Err(Not::Done(format!("{name}: {error}"))),
    };
    if let Some(mut stdin) = child.stdin.take() {
        // Who does not read its input says why by its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("; ");
    Err(Not::Done(format!("{name}: {}: {last}", output.status)))
}

/// The sources of liburing, as cargo fetched them for castra: they are within those of glommio.
fn sources() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))?;
    let registries = fs::read_dir(home.join("registry/cache")).ok()?;
    let crates = registries.flatten().filter_map(|registry| fs::read_dir(registry.path()).ok());
    let found = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("glommio-0") && name.ends_with(".crate")
    };
    crates.flat_map(Iterator::flatten).map(|entry| entry.path()).find(found)
}

fn unpack(folder: &Path, scratch: &Path) -> Result<String, Not> {
    let missing = || Not::Tried("cargo has not fetched castra's own dependencies on this machine".to_owned());
    let archive = sources().ok_or_else(missing)?;
    for place in [folder, scratch] {
        program(
            Command::new("tar")
                .args(["--no-same-owner", "--strip-components=1", "-xzf"])
                .arg(&archive)
                .arg("-C")
                .arg(place),
            "",
        )?;
    }
    let files = compare(folder, scratch)?;
    Ok(format!("{files} files of liburing and its Rust user unpacked, and compared byte by byte"))
}

/// How many files are in `a` and `b`, which must be the same.
fn compare(a: &Path, b: &Path) -> Result<usize, Not> {
    let names = |folder: &Path| -> std::io::Result<Vec<_>> {
        let mut names =
            fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>()?;
        names.sort();
        Ok(names)
    };
    let (here, there) = (names(a)?, names(b)?);
    if here != there {
        return Err(Not::Done(format!("{} does not hold the files that were unpacked", a.display())));
    }
    let mut files = 0;
    for name in here {
        let (a, b) = (a.join(&name), b.join(&name));
        let kind = fs::symlink_metadata(&b)?.file_type();
        if kind.is_dir() {
            files += compare(&a, &b)?;
            continue;
        }
        let same =
            if kind.is_symlink() { fs::read_link(&a)? == fs::read_link(&b)? } else { fs::read(&a)? == fs::read(&b)? };
        if !same {
            return Err(Not::Done(format!("{} is not as it was unpacked", a.display())));
        }
        files += 1;
    }
    Ok(files)
}

fn build(folder: &Path) -> Result<String, Not> {
    let at = folder.join("liburing");
    if !at.join("configure").exists() {
        return Err(Not::Tried("nothing was unpacked".to_owned()));
    }
    for needed in ["make", "cc"] {
        program(Command::new(needed).arg("--version"), "")?;
    }
    program(Command::new("sh").args(["-c", "./configure && make -C src"]).current_dir(&at), "")?;
    match fs::metadata(at.join("src/liburing.a")) {
        Ok(library) if library.len() > 0 => Ok("liburing configured and built".to_owned()),
        _ => Err(Not::Done("make left no liburing.a".to_owned())),
    }
}

/// SQLite by its own program, or by Python's.
fn database(path: &Path) -> Result<String, Not> {
    let mut sql = String::from("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);\n");
    for transaction in 0..ROWS / ROWS_EACH {
        sql.push_str("BEGIN;\n");
        for row in 0..ROWS_EACH {
            sql.push_str(&format!("INSERT INTO account (balance) VALUES ({});\n", transaction * ROWS_EACH + row));
        }
        sql.push_str("COMMIT;\n");
    }
    let ask = "PRAGMA integrity_check;\nSELECT count(*), sum(balance) FROM account;\n";
    let expected = format!("ok\n{ROWS}|{}\n", ROWS * (ROWS - 1) / 2);
    let said = match program(Command::new("sqlite3").arg("-bail").arg(path), &format!("{sql}{ask}")) {
        Err(Not::Tried(_)) => {
            let python = "import sqlite3, sys\n\
                db = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
                db.executescript(sys.stdin.read())\n\
                print(*db.execute('PRAGMA integrity_check').fetchone())\n\
                print(*db.execute('SELECT count(*), sum(balance) FROM account').fetchone(), sep='|')\n";
            let said = program(Command::new("python3").args(["-c", python]).arg(path), &sql);
            said.map_err(|error| match error {
                Not::Tried(_) => Not::Tried("neither sqlite3 nor python3 is installed".to_owned()),
                Not::Done(wrong) => Not::Done(wrong),
            })?
        }
        said => said?,
    };
    match said == expected {
        true => {
            Ok(format!("SQLite took {} transactions of {ROWS_EACH} rows, and found itself whole", ROWS / ROWS_EACH))
        }
        false => Err(Not::Done(format!("SQLite says {said:?} instead of {expected:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_or_differs_is_found() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [&a, &b] {
            fs::create_dir(folder.path().join("sub")).unwrap();
            fs::write(folder.path().join("sub/file"), b"same").unwrap();
            std::os::unix::fs::symlink("sub/file", folder.path().join("link")).unwrap();
        }
        assert!(matches!(compare(a.path(), b.path()), Ok(2)));
        fs::write(a.path().join("sub/file"), b"some").unwrap();
        assert!(matches!(compare(a.path(), b.path()), Err(Not::Done(wrong)) if wrong.contains("sub/file")));
        fs::remove_file(a.path().join("sub/file")).unwrap();
        assert!(matches!(compare(a.path(), b.path()), Err(Not::Done(_))));
    }

    #[test]
    fn what_fails_is_told_from_what_is_not_there() {
        let failed = program(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), "");
        assert!(matches!(failed, Err(Not::Done(wrong)) if wrong.contains("why")));
        assert!(matches!(program(&mut Command::new("no-such-program-at-all"), ""), Err(Not::Tried(_))));
        assert!(matches!(program(&mut Command::new("cat"), "text"), Ok(said) if said == "text"));
    }

    #[test]
    fn a_fault_of_any_round_is_kept() {
        let good = step("build", || Ok("built".to_owned()));
        let bad = step("build", || Err(Not::Done("no".to_owned())));
        let sum = summed(vec![vec![good.clone()], vec![bad], vec![good]]);
        assert_eq!((sum.len(), sum[0].times, sum[0].wrong.as_deref()), (1, 3, Some("no")));
    }
}
