//! The last things that happened, kept cheaply and written out only when somebody wants to read them.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;

use super::world::HostId;
use crate::types::{Digest, Time};

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum TraceEvent {
    /// A datagram reached a host's inbox.
    Arrived {
        /// Its sender.
        from: HostId,
        /// Its receiver.
        to: HostId,
        /// The datagram.
        bytes: Bytes,
    },
    /// A datagram was not delivered.
    Dropped {
        /// Its sender.
        from: HostId,
        /// Where it would have gone.
        to: HostId,
        /// Its length.
        len: usize,
        /// Why.
        reason: &'static str,
    },
    /// A host handled what it had, or a timer.
    Turned {
        /// The host.
        host: HostId,
        /// Datagrams handled.
        received: usize,
        /// Datagrams sent.
        sent: usize,
    },
    /// A fault began or ended, an operation was submitted or completed, and the like.
    Note(String),
}

/// The last events, and a digest of all of them: equal digests, equal runs.
pub struct Trace {
    tail: VecDeque<(Time, TraceEvent)>,
    tail_max: usize,
    hasher: blake3::Hasher,
    events: u64,
}

impl Trace {
    /// A trace that keeps the last `tail_max` events.
    pub fn new(tail_max: usize) -> Trace {
        Trace { tail: VecDeque::with_capacity(tail_max), tail_max, hasher: blake3::Hasher::new(), events: 0 }
    }

    /// Appends an event.
    pub fn push(&mut self, at: Time, event: TraceEvent) {
        self.events += 1;
        let mut fixed = [0u8; 24];
        fixed[..8].copy_from_slice(&at.0.to_le_bytes());
        match &event {
            TraceEvent::Arrived { from, to, bytes } => {
                fixed[8..10].copy_from_slice(&[from.0 as u8, to.0 as u8]);
                fixed[16..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
                self.hasher.update(&fixed);
                self.hasher.update(bytes);
            }
            TraceEvent::Dropped { from, to, len, .. } => {
                fixed[8..11].copy_from_slice(&[from.0 as u8, to.0 as u8, 1]);
                fixed[16..].copy_from_slice(&(*len as u64).to_le_bytes());
                self.hasher.update(&fixed);
            }
            TraceEvent::Turned { host, received, sent } => {
                fixed[8..11].copy_from_slice(&[host.0 as u8, 0, 2]);
                fixed[16..20].copy_from_slice(&(*received as u32).to_le_bytes());
                fixed[20..].copy_from_slice(&(*sent as u32).to_le_bytes());
                self.hasher.update(&fixed);
            }
            TraceEvent::Note(text) => {
                fixed[8] = 3;
                self.hasher.update(&fixed);
                self.hasher.update(text.as_bytes());
            }
        }
        if self.tail_max == 0 {
            return;
        }
        if self.tail.len() == self.tail_max {
            self.tail.pop_front();
        }
        self.tail.push_back((at, event));
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The digest of every event so far.
    pub fn digest(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }

    /// The events that are kept, oldest first.
    pub fn tail(&self) -> impl Iterator<Item = &(Time, TraceEvent)> {
        self.tail.iter()
    }

    /// The tail as text, one event a line; `name` names hosts, `describe` says what a datagram is.
    pub fn render(&self, name: impl Fn(HostId) -> String, describe: impl Fn(&Bytes) -> String) -> String {
        use fmt::Write;
        let mut out = String::new();
        for (at, event) in &self.tail {
            let ms = at.0 as f64 / 1e6;
            let _ = write!(out, "{ms:>12.4} ms  ");
            let _ = match event {
                TraceEvent::Arrived { from, to, bytes } => {
                    writeln!(out, "{} -> {}  {:>6} B  {}", name(*from), name(*to), bytes.len(), describe(bytes))
                }
                TraceEvent::Dropped { from, to, len, reason } => {
                    writeln!(out, "{} -x {}  {len:>6} B  {reason}", name(*from), name(*to))
                }
                TraceEvent::Turned { host, received, sent } => {
                    writeln!(out, "{} turns: {received} in, {sent} out", name(*host))
                }
                TraceEvent::Note(text) => writeln!(out, "{text}"),
            };
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_bounded_and_the_digest_covers_all() {
        let run = |texts: &[&str]| {
            let mut trace = Trace::new(2);
            for text in texts {
                trace.push(Time(1_500_000), TraceEvent::Note((*text).to_owned()));
            }
            trace
        };
        let trace = run(&["a", "b", "c"]);
        assert_eq!(trace.events(), 3);
        assert_eq!(trace.render(|_| unreachable!(), |_| unreachable!()), "      1.5000 ms  b\n      1.5000 ms  c\n");
        assert_eq!(trace.digest(), run(&["a", "b", "c"]).digest());
        assert_ne!(trace.digest(), run(&["x", "b", "c"]).digest());
    }
}
