//! What the source must look like: import arrows, purity of the core, where `unsafe` may stand, no holes, no wildcard
//! arms over the protocol's enums, files of one noun. An ordinary test, so that it runs where the others run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Who may use whom. A module that is not listed here may not exist.
const ARROWS: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("types", &["limits"]),
    ("transport", &["types", "limits"]),
    ("wire", &["transport", "types", "limits"]),
    ("auth", &["wire", "transport", "types", "limits"]),
    ("state", &["types", "limits"]),
    ("protocol", &["auth", "wire", "types", "limits"]),
    ("execution", &["state", "auth", "wire", "types", "limits"]),
    ("services", &["execution", "state", "types", "limits"]),
    ("bfs", &["execution", "state", "types", "limits"]),
    ("replica", &["protocol", "execution", "state", "auth", "wire", "transport", "types", "limits"]),
    ("client", &["auth", "wire", "transport", "types", "limits"]),
    (
        "sim",
        &[
            "client",
            "replica",
            "services",
            "protocol",
            "execution",
            "state",
            "auth",
            "wire",
            "transport",
            "types",
            "limits",
        ],
    ),
    (
        "runtime",
        &["client", "replica", "protocol", "execution", "state", "auth", "wire", "transport", "types", "limits"],
    ),
    (
        "lab",
        &[
            "sim",
            "runtime",
            "client",
            "replica",
            "bfs",
            "services",
            "protocol",
            "execution",
            "state",
            "auth",
            "wire",
            "transport",
            "types",
            "limits",
        ],
    ),
    (
        "cli",
        &[
            "lab",
            "runtime",
            "sim",
            "client",
            "replica",
            "bfs",
            "services",
            "protocol",
            "execution",
            "state",
            "auth",
            "wire",
            "transport",
            "types",
            "limits",
        ],
    ),
];

/// Modules that may meet the world: clocks, threads, files, sockets.
const EDGE: &[&str] = &["runtime", "lab", "cli"];

/// The only modules and files with `unsafe`.
const UNSAFE: &[&str] = &["runtime", "auth/mac/x86.rs"];

/// What a pure module never names.
const IMPURE: &[&str] = &[
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime::now",
    "std::thread",
    "std::fs",
    "std::io::",
    "std::env",
    "std::process",
    "UdpSocket",
    "TcpListener",
    "TcpStream",
    "HashMap",
    "HashSet",
    "thread_rng",
    "getrandom",
    "OsRng",
    "println!",
    "eprintln!",
];

/// Enums of which every variant is named wherever one is matched.
const NO_WILDCARD: &[&str] = &["Message", "Event", "Action", "Command", "Output"];

const LINES_WARN: usize = 800;
const LINES_MAX: usize = 1_000;

struct Source {
    path: PathBuf,
    /// The first part of the path below `src`: `wire`, `types`, `lib`, `main`.
    module: String,
    /// Comments and the content of literals blanked, line structure kept.
    code: String,
    /// `code` without what stands under `#[cfg(test)]`.
    honest: String,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    files.sort();
    assert!(!files.is_empty(), "no sources under {}", root.display());
    let load = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let relative = path.strip_prefix(&root).unwrap().to_owned();
        let module = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = module.trim_end_matches(".rs").to_owned();
        let code = blank(&text);
        let test_file = relative.components().any(|part| {
            let name = part.as_os_str().to_str().unwrap();
            name == "tests" || name == "tests.rs" || name.ends_with("_tests.rs")
        });
        let honest = if test_file { String::new() } else { without_tests(&code) };
        Source { path: relative, module, lines: text.lines().count(), code, honest }
    };
    files.into_iter().map(load).collect()
}

fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Replaces comments and the content of string and character literals by spaces.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    let fill = |out: &mut Vec<u8>, part: &[u8]| out.extend(part.iter().map(|&b| if b == b'\n' { b'\n' } else { b' ' }));
    while at < bytes.len() {
        let rest = &bytes[at..];
        let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let skip = if rest.starts_with(b"//") {
            rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            block_comment(rest)
        } else if let Some(len) = (!word_before).then(|| raw_string(rest)).flatten() {
            len
        } else if rest[0] == b'"' {
            quoted(rest, b'"')
        } else if rest[0] == b'\'' && (rest.get(1) == Some(&b'\\') || rest.get(2) == Some(&b'\'')) {
            quoted(rest, b'\'')
        } else {
            0
        };
        if skip == 0 {
            out.push(rest[0]);
            at += 1;
        } else {
            fill(&mut out, &rest[..skip]);
            at += skip;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < rest.len() {
        match &rest[at..rest.len().min(at + 2)] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of the raw string that begins here, if one does.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let start = match rest {
        [b'r', ..] => 1,
        [b'b' | b'c', b'r', ..] => 2,
        _ => return None,
    };
    let hashes = rest[start..].iter().take_while(|&&b| b == b'#').count();
    if rest.get(start + hashes) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    let body = start + hashes + 1;
    let end = rest[body..].windows(close.len()).position(|w| w == close).unwrap_or(rest.len() - body);
    Some((body + end + close.len()).min(rest.len()))
}

/// Blanks the item after each `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    for (start, _) in code.match_indices("#[cfg(test)]") {
        let (mut depth, mut end) = (0, code.len());
        for (at, byte) in code.bytes().enumerate().skip(start + "#[cfg(test)]".len()) {
            match byte {
                b'{' | b'(' | b'[' => depth += 1,
                b'}' | b')' | b']' => depth -= 1,
                _ => {}
            }
            if depth == 0 && (byte == b';' || byte == b'}') {
                end = at + 1;
                break;
            }
        }
        out[start..end].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
    }
    String::from_utf8(out).unwrap()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Where `word` stands in `code` as a whole path: not as the tail of a longer name.
fn find_word(code: &str, word: &str) -> Vec<usize> {
    let ends_open = !is_word(*word.as_bytes().last().unwrap());
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(|&at| at == 0 || !is_word(code.as_bytes()[at - 1]))
        .filter(|&at| ends_open || code.as_bytes().get(at + word.len()).is_none_or(|&b| !is_word(b)))
        .collect()
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

fn report(findings: Vec<String>, rule: &str) {
    assert!(findings.is_empty(), "{rule}\n  {}", findings.join("\n  "));
}

/// The modules of this crate that `code` names: `crate::x`, `crate::{x, y::z}`.
fn crate_modules(code: &str) -> Vec<(usize, String)> {
    let name = |text: &str| text.trim_start().bytes().take_while(|&b| is_word(b)).map(char::from).collect::<String>();
    let mut found = Vec::new();
    for at in find_word(code, "crate::") {
        let rest = &code[at + "crate::".len()..];
        if !rest.starts_with('{') {
            found.push((at, name(rest)));
            continue;
        }
        let (mut depth, mut item) = (0, 1);
        for (i, byte) in rest.bytes().enumerate() {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            if (depth == 1 && byte == b',') || depth == 0 {
                found.push((at, name(&rest[item..i])));
                item = i + 1;
            }
            if depth == 0 {
                break;
            }
        }
    }
    found.retain(|(_, module)| !module.is_empty());
    found
}

#[test]
fn imports_point_down() {
    let arrows: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(m, to)| (*m, to.iter().copied().collect())).collect();
    let mut findings = Vec::new();
    for source in sources() {
        if source.module == "lib" || source.module == "main" {
            continue;
        }
        let Some(allowed) = arrows.get(source.module.as_str()) else {
            findings.push(format!("src/{}: module `{}` is not on the map", source.path.display(), source.module));
            continue;
        };
        for (at, target) in crate_modules(&source.honest) {
            if target != source.module && !allowed.contains(target.as_str()) && arrows.contains_key(target.as_str()) {
                let line = line_of(&source.code, at);
                findings.push(format!("src/{}:{line}: {} uses {target}", source.path.display(), source.module));
            }
        }
    }
    report(findings, "imports go one way (ARROWS in tests/tidy.rs)");
}

#[test]
fn the_core_is_pure() {
    let mut findings = Vec::new();
    for source in sources() {
        if EDGE.contains(&source.module.as_str()) || source.module == "main" {
            continue;
        }
        for word in IMPURE {
            for at in find_word(&source.honest, word) {
                findings.push(format!("src/{}:{}: {word}", source.path.display(), line_of(&source.code, at)));
            }
        }
    }
    report(findings, "no clock, thread, file, socket, hash map or random number in the core");
}

#[test]
fn unsafe_stands_in_the_runtime_and_the_mac_kernel_alone() {
    let mut findings = Vec::new();
    for source in sources() {
        if UNSAFE.iter().any(|at| *at == source.module || source.path.ends_with(at)) {
            continue;
        }
        for at in find_word(&source.code, "unsafe") {
            findings.push(format!("src/{}:{}", source.path.display(), line_of(&source.code, at)));
        }
    }
    report(findings, "`unsafe` outside the runtime and the MAC kernel");
}

#[test]
fn nothing_is_left_to_do() {
    let mut findings = Vec::new();
    for source in sources() {
        for word in ["todo!", "unimplemented!", "dbg!"] {
            for at in find_word(&source.code, word) {
                findings.push(format!("src/{}:{}: {word}", source.path.display(), line_of(&source.code, at)));
            }
        }
    }
    report(findings, "holes in the source");
}

#[test]
fn a_file_has_one_noun() {
    let mut findings = Vec::new();
    for source in sources() {
        if source.lines > LINES_WARN {
            eprintln!("src/{}: {} lines: which noun is hiding in it?", source.path.display(), source.lines);
        }
        if source.lines > LINES_MAX {
            findings.push(format!("src/{}: {} lines", source.path.display(), source.lines));
        }
    }
    report(findings, "files of more than 1,000 lines");
}

/// The patterns of the match whose body begins at `open` (a `{`).
fn arms(code: &str, open: usize) -> Vec<(usize, String)> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let mut at = open + 1;
    while at < bytes.len() {
        // The pattern, up to `=>` outside of brackets.
        let start = at;
        let mut depth = 0;
        loop {
            match bytes.get(at) {
                None => return found,
                Some(b'}') if depth == 0 => return found,
                Some(b'{' | b'(' | b'[') => depth += 1,
                Some(b'}' | b')' | b']') => depth -= 1,
                Some(b'=') if depth == 0 && bytes.get(at + 1) == Some(&b'>') => break,
                Some(_) => {}
            }
            at += 1;
        }
        found.push((start, code[start..at].trim().to_owned()));
        at += 2;
        // The body: a block, or an expression up to a comma.
        while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        let block = bytes.get(at) == Some(&b'{');
        let mut depth = 0;
        loop {
            match bytes.get(at) {
                None => return found,
                Some(b'}') if depth == 0 => return found,
                Some(b'{' | b'(' | b'[') => depth += 1,
                Some(b'}' | b')' | b']') => depth -= 1,
                Some(b',') if depth == 0 => break,
                Some(_) => {}
            }
            at += 1;
            if block && depth == 0 {
                break;
            }
        }
        while bytes.get(at).is_some_and(|b| b.is_ascii_whitespace() || *b == b',') {
            at += 1;
        }
    }
    found
}

fn wildcards(code: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    for at in find_word(code, "match") {
        let Some(open) = code[at..].find('{').map(|i| at + i) else { continue };
        let arms = arms(code, open);
        let names =
            |pattern: &str, name: &str| find_word(pattern, &format!("{name}::")).first().is_some_and(|&i| i == 0);
        let Some(name) = NO_WILDCARD.iter().find(|name| arms.iter().any(|(_, pattern)| names(pattern, name))) else {
            continue;
        };
        found.extend(arms.iter().filter(|(_, pattern)| pattern == "_").map(|(at, _)| (*at, *name)));
    }
    found
}

#[test]
fn every_message_is_matched_by_name() {
    let mut findings = Vec::new();
    for source in sources() {
        for (at, name) in wildcards(&source.honest) {
            let line = line_of(&source.code, at);
            findings.push(format!("src/{}:{line}: `_ =>` over {name}", source.path.display()));
        }
    }
    report(findings, "a new variant must not fall into a wildcard arm");
}

mod of_the_checks_themselves {
    use super::*;

    #[test]
    fn blank_hides_comments_and_literals() {
        let code =
            blank("a // unsafe\nb /* todo!() /* x */ */ c \"unsafe \\\" {\" d 'x' e '{' f: &'static r#\"un\"safe\"# g");
        assert!(!code.contains("unsafe") && !code.contains("todo") && !code.contains('{'), "{code}");
        assert!(code.contains("&'static"), "{code}");
        assert_eq!(line_of(&code, code.find(" c ").unwrap()), 2);
    }

    #[test]
    fn tests_are_taken_out() {
        let code = without_tests("fn a() {}\n#[cfg(test)]\nmod tests { fn b() { crate::sim } }\nfn c() {}");
        assert!(code.contains("fn a") && code.contains("fn c") && !code.contains("sim"), "{code}");
        assert!(!without_tests("#[cfg(test)]\nmod tests;\nfn c() {}").contains("tests"));
    }

    #[test]
    fn grouped_imports_are_seen() {
        let found = crate_modules("use crate::{wire::{A, B}, types, auth::C}; crate::sim::x(); my_crate::y");
        let names: Vec<_> = found.into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["wire", "types", "auth", "sim"]);
    }

    #[test]
    fn wildcard_arms_are_seen() {
        let bad = "match m { Message::A(x) => f(x, g), Message::B { y } => { h(y) } _ => {} }";
        assert_eq!(wildcards(bad).len(), 1);
        let nested = "match e { Event::A => match x { 1 => 2, _ => 3 }, Event::B => 4 }";
        assert_eq!(wildcards(nested), []);
        assert_eq!(wildcards("match x { Some(Message::A) => 1, _ => 2 }"), [], "a pattern about something else");
    }
}
