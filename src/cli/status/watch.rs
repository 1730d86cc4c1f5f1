//! `castra status --watch`: the same again and again, in place on a terminal, in blocks elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use crossterm::cursor::{Hide, MoveTo, MoveToNextLine, Show};
use crossterm::style::Print;
use crossterm::terminal::{self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{execute, queue};

use crate::cli::errors::Error;
use crate::cli::output;
use crate::runtime::{Stop, StopOnSignals};

/// How often something without an event is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Shows what `draw` gives every `interval`, until a signal: that is the way to end it, and no failure.
pub fn watch(interval: Duration, mut draw: impl FnMut() -> Result<Vec<String>, Error>) -> Result<(), Error> {
    let stop = Stop::new();
    let _signals = StopOnSignals::new(stop.clone())?;
    let mut screen = io::stdout().is_terminal().then(Screen::enter).transpose().map_err(output::stdout_error)?;
    let mut shown = Vec::new();
    while !stop.is_stopped() {
        let begun = Instant::now();
        shown = draw()?;
        match &mut screen {
            Some(screen) => screen.show(&shown).map_err(output::stdout_error)?,
            // Blocks are set apart.
            None => output::line(shown.join("\n") + if shown.len() > 1 { "\n" } else { "" })?,
        }
        while !stop.is_stopped() && begun.elapsed() < interval {
            thread::sleep(LOOK.min(interval.saturating_sub(begun.elapsed())));
        }
    }
    // The last of it stays on the terminal.
    if screen.take().is_some() {
        output::line(shown.join("\n"))?;
    }
    Ok(())
}

/// The terminal's other screen; its drop gives the first one back as it was.
struct Screen;

impl Screen {
    fn enter() -> io::Result<Screen> {
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        Ok(Screen)
    }

    /// Line over line, so that nothing flickers; what does not fit is cut off.
    fn show(&mut self, lines: &[String]) -> io::Result<()> {
        // A terminal that does not know its size says 0 by 0.
        let size = terminal::size().ok().filter(|(columns, rows)| *columns > 0 && *rows > 0);
        let (columns, rows) = size.unwrap_or((80, 24));
        let mut out = io::stdout().lock();
        queue!(out, MoveTo(0, 0))?;
        for line in fitting(lines, columns.into(), rows.into()) {
            queue!(out, Print(line), Clear(ClearType::UntilNewLine), MoveToNextLine(1))?;
        }
        queue!(out, Clear(ClearType::FromCursorDown))?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = execute!(io::stdout(), Show, LeaveAlternateScreen);
    }
}

/// As much as a screen of this size holds, with its last line left empty.
fn fitting(lines: &[String], columns: usize, rows: usize) -> Vec<String> {
    let cut = |line: &String| line.chars().take(columns.saturating_sub(1)).collect();
    lines.iter().take(rows.saturating_sub(1)).map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_screen_holds_what_fits() {
        let lines: Vec<String> = ["über…", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(fitting(&lines, 4, 3), ["übe", "b"]);
        assert_eq!(fitting(&lines, 80, 24), lines);
        assert_eq!(fitting(&lines, 0, 0), Vec::<String>::new());
    }
}
