//! Key-value pairs in files, of any size, one record at a time.
//!
//! | format | a record | bytes that need care |
//! |---|---|---|
//! | `tsv` | key, tab, value, newline | `\\ \t \n \r`, and `\xHH` for control characters and bytes that are not UTF-8 |
//! | `tsv-raw` | the same | none: a backslash is a backslash; values with tabs or newlines cannot be written |
//! | `csv` | key, comma, value, newline (RFC 4180) | a field with comma, quote or newline stands in quotes, a quote is doubled |
//!
//! Export writes what import reads: any bytes survive `tsv` and `csv`. A malformed record costs its first line only; the
//! lines after it are read as if it had not been there (a stray quote does not swallow the file).

use std::collections::VecDeque;
use std::io::{self, BufRead, Write};
use std::path::Path;

use crate::services::kv::{KEY_MAX, VALUE_MAX};

/// How pairs are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Format {
    /// Tab-separated, with escapes
    Tsv,
    /// Tab-separated, every byte as it is
    TsvRaw,
    /// Comma-separated, RFC 4180
    Csv,
}

impl Format {
    /// By the ending of a name: `.csv`, else tab-separated.
    pub fn of(path: &Path) -> Format {
        match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("csv") => Format::Csv,
            _ => Format::Tsv,
        }
    }
}

/// A pair, and the line that it began at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    /// From 1.
    pub line: u64,
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

/// A line that is no pair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadLine {
    /// From 1.
    pub line: u64,
    /// What is wrong with it.
    pub why: String,
}

/// Bytes of a record: every byte escaped, and room for the rest.
const RECORD_MAX: usize = 4 * (KEY_MAX + VALUE_MAX) + 64;

/// Reads pairs.
pub struct Reader<R> {
    lines: Lines<R>,
    format: Format,
}

impl<R: BufRead> Reader<R> {
    /// Reads `format` from `input`.
    pub fn new(input: R, format: Format) -> Reader<R> {
        Reader { lines: Lines { input, number: 0, pushed_back: VecDeque::new(), bytes: 0 }, format }
    }

    /// The next pair or malformed line; `None` at the end. Empty lines are passed over.
    pub fn read(&mut self) -> io::Result<Option<Result<Pair, BadLine>>> {
        loop {
            let Some((line, first)) = self.lines.next()? else { return Ok(None) };
            let bad = |why: String| Ok(Some(Err(BadLine { line, why })));
            let Some(first) = first else { return bad(format!("longer than {RECORD_MAX} bytes")) };
            if without_end(&first).is_empty() {
                continue;
            }
            let fields = match self.format {
                Format::Csv => self.csv(first)?,
                Format::Tsv => tsv(&first, true),
                Format::TsvRaw => tsv(&first, false),
            };
            let pair = fields.and_then(|fields| pair(line, fields));
            return match pair {
                Ok(pair) => Ok(Some(Ok(pair))),
                Err(why) => bad(why),
            };
        }
    }

    /// Bytes of input used up.
    pub fn bytes(&self) -> u64 {
        self.lines.bytes
    }

    /// The fields of the record that begins with `first`; it goes on over as many lines as a quote stays open.
    fn csv(&mut self, first: Vec<u8>) -> io::Result<Result<Vec<Vec<u8>>, String>> {
        let mut scanner = Csv::default();
        let mut size = first.len();
        let mut more: Vec<(u64, Option<Vec<u8>>)> = Vec::new();
        let mut outcome = scanner.feed(&first);
        let why = loop {
            match outcome {
                Ok(true) => return Ok(Ok(scanner.fields)),
                Ok(false) => {}
                Err(why) => break why,
            }
            let Some((number, line)) = self.lines.next()? else { break "a quote is never closed".to_owned() };
            size += line.as_ref().map_or(RECORD_MAX, Vec::len);
            outcome = match &line {
                Some(line) if size <= RECORD_MAX => scanner.feed(line),
                _ => Err("a quote is not closed within the largest record".to_owned()),
            };
            more.push((number, line));
        };
        self.lines.push_back(more);
        Ok(Err(why))
    }
}

fn pair(line: u64, fields: Vec<Vec<u8>>) -> Result<Pair, String> {
    let count = fields.len();
    let Ok([key, value]) = <[Vec<u8>; 2]>::try_from(fields) else {
        return Err(format!("{count} fields, a pair has 2"));
    };
    if key.is_empty() || key.len() > KEY_MAX {
        return Err(format!("a key of {} bytes, 1 to {KEY_MAX} are possible", key.len()));
    }
    if value.len() > VALUE_MAX {
        return Err(format!("a value of {} bytes, at most {VALUE_MAX} are possible", value.len()));
    }
    Ok(Pair { line, key, value })
}

/// Lines with their ends, and those that were given back.
struct Lines<R> {
    input: R,
    number: u64,
    pushed_back: VecDeque<(u64, Option<Vec<u8>>)>,
    bytes: u64,
}

impl<R: BufRead> Lines<R> {
    /// The next line with its number; `None` for its text if it is too long.
    #[allow(clippy::type_complexity, reason = "a line, numbered, if there is one")]
    fn next(&mut self) -> io::Result<Option<(u64, Option<Vec<u8>>)>> {
        if let Some(line) = self.pushed_back.pop_front() {
            return Ok(Some(line));
        }
        let mut text = Vec::new();
        let read = io::Read::take(&mut self.input, RECORD_MAX as u64).read_until(b'\n', &mut text)?;
        if read == 0 {
            return Ok(None);
        }
        self.bytes += read as u64;
        self.number += 1;
        if self.number == 1 && text.starts_with(b"\xef\xbb\xbf") {
            text.drain(..3);
        }
        if text.last() != Some(&b'\n') && read == RECORD_MAX {
            self.bytes += self.input.skip_until(b'\n')? as u64;
            return Ok(Some((self.number, None)));
        }
        Ok(Some((self.number, Some(text))))
    }

    fn push_back(&mut self, lines: Vec<(u64, Option<Vec<u8>>)>) {
        for line in lines.into_iter().rev() {
            self.pushed_back.push_front(line);
        }
    }
}

fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn tsv(line: &[u8], escapes: bool) -> Result<Vec<Vec<u8>>, String> {
    let fields = without_end(line).split(|&b| b == b'\t');
    fields.map(|field| if escapes { unescape(field) } else { Ok(field.to_vec()) }).collect()
}

fn unescape(field: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let (&kind, after) = rest.split_first().ok_or("a backslash ends the field; write \\\\")?;
        rest = after;
        out.push(match kind {
            b'\\' => b'\\',
            b't' => b'\t',
            b'n' => b'\n',
            b'r' => b'\r',
            b'x' => {
                let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                let digits = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                rest = rest.get(2..).unwrap_or_default();
                byte.ok_or("\\x takes two hexadecimal digits")?
            }
            other => {
                let shown = char::from(other).escape_default();
                return Err(format!("\\{shown} is no escape; a backslash is written \\\\ (or use --format tsv-raw)"));
            }
        });
    }
    Ok(out)
}

fn escape(field: &[u8], out: &mut Vec<u8>) {
    for chunk in field.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.extend_from_slice(b"\\\\"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                c if c.is_ascii_control() => out.extend_from_slice(format!("\\x{:02x}", u32::from(c)).as_bytes()),
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        for byte in chunk.invalid() {
            out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
        }
    }
}

/// Takes a CSV record apart, line by line. (The `csv` crate writes; it reads too leniently to find the end of a damaged
/// record.)
#[derive(Default)]
struct Csv {
    fields: Vec<Vec<u8>>,
    field: Vec<u8>,
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum At {
    #[default]
    Start,
    Bare,
    Quoted,
    /// After a quote within quotes: the field's end, or the first of two.
    Quote,
}

impl Csv {
    /// Takes one line with its end. True: the record is complete.
    fn feed(&mut self, line: &[u8]) -> Result<bool, String> {
        let body = without_end(line);
        for &byte in body {
            self.at = match (self.at, byte) {
                (At::Start, b'"') => At::Quoted,
                (At::Quoted, b'"') => At::Quote,
                (At::Quote, b'"') => {
                    self.field.push(b'"');
                    At::Quoted
                }
                (At::Quoted, byte) => {
                    self.field.push(byte);
                    At::Quoted
                }
                (At::Start | At::Bare | At::Quote, b',') => {
                    self.fields.push(std::mem::take(&mut self.field));
                    At::Start
                }
                (At::Quote, _) => return Err("text after a closing quote".to_owned()),
                (At::Bare, b'"') => return Err("a quote within a field that does not begin with one".to_owned()),
                (At::Start | At::Bare, byte) => {
                    self.field.push(byte);
                    At::Bare
                }
            };
        }
        if self.at == At::Quoted {
            self.field.extend_from_slice(&line[body.len()..]);
            return Ok(false);
        }
        self.fields.push(std::mem::take(&mut self.field));
        Ok(true)
    }
}

/// Writes pairs.
pub enum Writer<W: Write> {
    /// Tab-separated, with or without escapes.
    Tsv(W, bool),
    /// Comma-separated.
    Csv(Box<csv::Writer<W>>),
}

impl<W: Write> Writer<W> {
    /// Writes `format` to `output`.
    pub fn new(output: W, format: Format) -> Writer<W> {
        match format {
            Format::Tsv => Writer::Tsv(output, true),
            Format::TsvRaw => Writer::Tsv(output, false),
            Format::Csv => Writer::Csv(Box::new(csv::Writer::from_writer(output))),
        }
    }

    /// Writes one pair. `InvalidData` if the format cannot hold it.
    pub fn write(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let (output, escapes) = match self {
            Writer::Csv(writer) => return writer.write_record([key, value]).map_err(io::Error::from),
            Writer::Tsv(output, escapes) => (output, *escapes),
        };
        let mut record = Vec::with_capacity(key.len() + value.len() + 2);
        for (field, end) in [(key, b'\t'), (value, b'\n')] {
            if escapes {
                escape(field, &mut record);
            } else if field.iter().any(|b| b"\t\n\r".contains(b)) {
                let why = "a pair with a tab or newline cannot be written as tsv-raw; use tsv or csv";
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            } else {
                record.extend_from_slice(field);
            }
            record.push(end);
        }
        output.write_all(&record)
    }

    /// Hands everything on.
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Writer::Tsv(output, _) => output.flush(),
            Writer::Csv(writer) => writer.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(text: &[u8], format: Format) -> (Vec<Pair>, Vec<BadLine>) {
        let (mut pairs, mut bad) = (vec![], vec![]);
        let mut reader = Reader::new(text, format);
        while let Some(item) = reader.read().unwrap() {
            match item {
                Ok(pair) => pairs.push(pair),
                Err(line) => bad.push(line),
            }
        }
        assert_eq!(reader.bytes(), text.len() as u64);
        (pairs, bad)
    }

    fn keys(pairs: &[Pair]) -> Vec<(u64, &str)> {
        pairs.iter().map(|pair| (pair.line, std::str::from_utf8(&pair.key).unwrap())).collect()
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let special = prop::sample::select(b"\\\t\n\r\",x\x00\xff\xc3\xa9".to_vec());
        prop::collection::vec(prop_oneof![special, any::<u8>()], 0..12)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pairs in prop::collection::vec((bytes(), bytes()), 0..6)) {
            for format in [Format::Tsv, Format::Csv] {
                let mut text = Vec::new();
                let mut writer = Writer::new(&mut text, format);
                let pairs: Vec<_> = pairs.iter().filter(|(key, _)| !key.is_empty()).collect();
                for (key, value) in &pairs {
                    writer.write(key, value).unwrap();
                }
                writer.flush().unwrap();
                drop(writer);
                let (read, bad) = read_all(&text, format);
                prop_assert_eq!(bad, vec![]);
                let read: Vec<_> = read.into_iter().map(|pair| (pair.key, pair.value)).collect();
                prop_assert_eq!(read, pairs.into_iter().cloned().collect::<Vec<_>>());
            }
        }

        #[test]
        fn any_bytes_are_pairs_or_bad_lines(text in prop::collection::vec(any::<u8>(), 0..200)) {
            for format in [Format::Tsv, Format::TsvRaw, Format::Csv] {
                read_all(&text, format);
            }
        }

        #[test]
        fn quotes_anywhere_end_and_lose_no_line_numbers(text in "[a\",\n]{0,60}") {
            let (pairs, bad) = read_all(text.as_bytes(), Format::Csv);
            let lines = text.split('\n').count() as u64;
            prop_assert!(pairs.iter().map(|p| p.line).chain(bad.iter().map(|b| b.line)).all(|line| line <= lines));
        }
    }

    #[test]
    fn malformed_lines_lose_nothing_else() {
        let (pairs, bad) = read_all(b"a\t1\nno tab\nb\t2\tx\n\nc\\q\t3\n\t4\nd\t5", Format::Tsv);
        assert_eq!(keys(&pairs), [(1, "a"), (7, "d")]);
        assert_eq!(bad.iter().map(|b| b.line).collect::<Vec<_>>(), [2, 3, 5, 6]);
        assert_eq!(bad[0].why, "1 fields, a pair has 2");
    }

    #[test]
    fn a_stray_quote_costs_its_own_line() {
        let (pairs, bad) = read_all(b"a,1\nb,\"2\nc,3\nd,4\n", Format::Csv);
        assert_eq!(keys(&pairs), [(1, "a"), (3, "c"), (4, "d")]);
        assert_eq!(bad, [BadLine { line: 2, why: "a quote is never closed".into() }]);
        let (pairs, bad) = read_all(b"a,\"1\" x\nb,\"2\r\n3\"\nc,3", Format::Csv);
        assert_eq!(keys(&pairs), [(2, "b"), (4, "c")]);
        assert_eq!(pairs[0].value, b"2\r\n3");
        assert_eq!(bad.len(), 1);
    }

    #[test]
    fn lines_beyond_all_bounds_are_passed_over() {
        let mut text = vec![b'x'; RECORD_MAX + 10];
        text.extend_from_slice(b"\nk\tv\n");
        let (pairs, bad) = read_all(&text, Format::Tsv);
        assert_eq!((keys(&pairs), bad[0].line), (vec![(2, "k")], 1));
        let mut text = vec![b'y'; VALUE_MAX + 5];
        text.splice(..0, *b"k\t");
        assert_eq!(read_all(&text, Format::Tsv).1.len(), 1);
    }

    #[test]
    fn raw_means_raw() {
        let (pairs, _) = read_all(b"c:\\temp\tv\r\n", Format::TsvRaw);
        assert_eq!(keys(&pairs), [(1, "c:\\temp")]);
        let refused = Writer::new(Vec::new(), Format::TsvRaw).write(b"k", b"a\tb");
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn formats_by_name() {
        assert_eq!(Format::of(Path::new("x.CSV")), Format::Csv);
        assert_eq!(Format::of(Path::new("x.tsv")), Format::Tsv);
        assert_eq!(Format::of(Path::new("-")), Format::Tsv);
    }
}
