//! What the verbs print. A reader of our standard output may go away at any time: that is no panic and no failure.

use std::io::{self, Write as _};

use serde::Serialize;

use super::errors::Error;

/// Writes `text` and a newline to standard output.
pub fn line(text: impl std::fmt::Display) -> Result<(), Error> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes `content` to standard output as it is.
pub fn bytes(content: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(content).and_then(|()| out.flush()).map_err(stdout_error)
}

/// Standard output failed.
pub fn stdout_error(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Error::OutputClosed,
        _ => Error::system("write to standard output")(error),
    }
}

/// Writes one JSON object and a newline to standard output.
pub fn json(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::system("make JSON")(error.into()))?;
    line(text)
}

/// Says something beside the results, on standard error. Nobody listening is fine.
pub fn note(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
