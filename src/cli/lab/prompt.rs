//! `castra demo --interactive`: a prompt over a cluster that one may break.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use clap::Parser;

use super::Laboratory;
use super::stage::Stage as _;
use crate::cli::errors::Error;
use crate::cli::output::{line, note};
use crate::cli::{kv, status};
use crate::runtime::Stop;
use crate::types::ReplicaId;

/// A line at the prompt.
#[derive(Parser, Debug)]
#[command(name = "", no_binary_name = true, disable_version_flag = true, disable_help_flag = true)]
#[command(help_template = "{subcommands}")]
struct Line {
    #[command(subcommand)]
    word: Word,
}

#[derive(clap::Subcommand, Debug)]
enum Word {
    #[command(flatten)]
    Kv(kv::Verb),
    /// Kill a replica by SIGKILL: kill r3
    Kill {
        #[arg(value_parser = replica)]
        replica: ReplicaId,
    },
    /// Stop a replica by SIGSTOP: it stands still and forgets nothing: stop r3
    Stop {
        #[arg(value_parser = replica)]
        replica: ReplicaId,
    },
    /// Let it go on after a stop: cont r3
    Cont {
        #[arg(value_parser = replica)]
        replica: ReplicaId,
    },
    /// Start it again after a kill: it has forgotten everything and recovers: start r3
    Start {
        #[arg(value_parser = replica)]
        replica: ReplicaId,
    },
    /// Show what the replicas say of themselves
    Status,
    /// End
    #[command(visible_alias = "exit")]
    Quit,
}

fn replica(text: &str) -> Result<ReplicaId, String> {
    let number = text.strip_prefix('r').unwrap_or(text).parse();
    number.map(ReplicaId).map_err(|_| "a replica: r0, r1, …".to_owned())
}

/// A request is given up after this long.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often the prompt looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Reads lines until the end of input, `quit` or a signal. A line that fails says so; the prompt goes on.
pub fn run(lab: &mut Laboratory, stop: &Stop) -> Result<(), Error> {
    let asks = io::stdin().is_terminal();
    let (send, lines) = mpsc::channel();
    // It ends with the process: nothing interrupts a read.
    let read = move || io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| send.send(line));
    thread::spawn(read);
    line(
        "put KEY VALUE, get KEY, del KEY, cas …, scan [PREFIX], kill rN, start rN, stop rN, cont rN, status, help, quit",
    )?;
    loop {
        if asks {
            let _ = write!(io::stdout(), "castra> ").and_then(|()| io::stdout().flush());
        }
        let text = loop {
            match lines.recv_timeout(LOOK) {
                Ok(text) => break text,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) if stop.is_stopped() => return Err(Error::Interrupted),
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        let done = match Line::try_parse_from(words) {
            Ok(Line { word: Word::Quit }) => return Ok(()),
            Ok(Line { word }) => act(lab, word, stop),
            Err(error) => {
                note(error.to_string().trim_end());
                Ok(())
            }
        };
        match done {
            Err(error @ (Error::OutputClosed | Error::Interrupted)) => return Err(error),
            Err(error) => note(error),
            Ok(()) => {}
        }
    }
}

fn act(lab: &mut Laboratory, word: Word, stop: &Stop) -> Result<(), Error> {
    match word {
        Word::Kv(verb) => kv::run(kv::Kv::new(lab.dir(), TIMEOUT, verb)),
        Word::Status => status::status(&status::Status::of(lab.dir())),
        Word::Kill { replica } => {
            lab.known(replica)?;
            if !lab.runs(replica) {
                return line(format!("{replica} is dead already"));
            }
            let primary = lab.cluster().size.primary(lab.view(None));
            lab.kill(replica)?;
            line(format!("{replica} is killed"))?;
            if primary == replica {
                note("it was the primary: the others change to the next view as soon as somebody asks for something");
            }
            too_many(lab);
            Ok(())
        }
        Word::Stop { replica } => {
            lab.known(replica)?;
            if !lab.runs(replica) || lab.is_paused(replica) {
                return line(format!("{replica} does not run"));
            }
            lab.pause(replica)?;
            line(format!("{replica} is stopped"))?;
            too_many(lab);
            Ok(())
        }
        Word::Cont { replica } => {
            lab.known(replica)?;
            if !lab.runs(replica) || !lab.is_paused(replica) {
                return line(format!("{replica} is not stopped"));
            }
            lab.go_on(replica)?;
            line(format!("{replica} goes on"))
        }
        Word::Start { replica } => {
            lab.known(replica)?;
            if lab.runs(replica) {
                return line(format!("{replica} runs, or is stopped: then `cont {replica}` lets it go on"));
            }
            lab.restart(replica, stop)?;
            line(format!(
                "{replica} is started again and has forgotten everything: `status` says \"recovering\" until it holds a \
                 certified state beyond all that it may have said before"
            ))
        }
        Word::Quit => Ok(()),
    }
}

/// Says so if more replicas are away than may be (P50).
fn too_many(lab: &mut Laboratory) {
    let size = lab.cluster().size;
    let away = size.replicas().filter(|&id| !lab.runs(id) || lab.is_paused(id)).count();
    if away > size.f() {
        note(format!("{away} are away and only {} may be: nothing is ordered until one is back", size.f()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Word, String> {
        Line::try_parse_from(text.split_whitespace()).map(|line| line.word).map_err(|error| error.to_string())
    }

    #[test]
    fn lines_are_words() {
        assert!(matches!(parsed("put a b"), Ok(Word::Kv(_))));
        assert!(matches!(parsed("scan"), Ok(Word::Kv(_))));
        assert!(matches!(parsed("kill r2"), Ok(Word::Kill { replica: ReplicaId(2) })));
        assert!(matches!(parsed("start 3"), Ok(Word::Start { replica: ReplicaId(3) })));
        assert!(matches!(parsed("cont r1"), Ok(Word::Cont { replica: ReplicaId(1) })));
        assert!(matches!(parsed("stop r1"), Ok(Word::Stop { replica: ReplicaId(1) })));
        assert!(matches!(parsed("exit"), Ok(Word::Quit)));
        for wrong in ["kill", "kill x", "kill r999", "put a", "frobnicate", "--", "-x"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
        assert!(parsed("help").unwrap_err().contains("kill"));
    }
}
