//! Ctrl-C and SIGTERM.
#![forbid(unsafe_code)]

use std::thread::{self, JoinHandle};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::emulate_default_handler;

use super::{Error, Stop};

/// While it lives, the first SIGINT or SIGTERM stops, and the second ends the process at once.
pub struct StopOnSignals {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl StopOnSignals {
    /// Stops `stop` on a signal.
    pub fn new(stop: Stop) -> Result<StopOnSignals, Error> {
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Error::io("signal handlers"))?;
        let handle = signals.handle();
        let wait = move || {
            for signal in signals.forever() {
                if stop.is_stopped() {
                    let _ = emulate_default_handler(signal);
                }
                stop.stop();
            }
        };
        let thread = thread::Builder::new().name("castra-signals".to_owned()).spawn(wait);
        Ok(StopOnSignals { handle, thread: Some(thread.map_err(Error::io("starting a thread"))?) })
    }
}

impl Drop for StopOnSignals {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::transport::Wake;

    #[test]
    fn a_signal_stops_and_wakes() {
        struct Woken(mpsc::Sender<()>);
        impl Wake for Woken {
            fn wake(&self) {
                let _ = self.0.send(());
            }
        }
        let stop = Stop::new();
        let (woken, wakes) = mpsc::channel();
        stop.wakes(std::sync::Arc::new(Woken(woken)));
        let guard = StopOnSignals::new(stop.clone()).unwrap();
        signal_hook::low_level::raise(SIGTERM).unwrap();
        wakes.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(stop.is_stopped());
        drop(guard);
    }
}
