//! What a transport counts.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($(#[$live_doc:meta])* $live:ident, $(#[$plain_doc:meta])* $plain:ident { $($(#[$doc:meta])* $name:ident,)* }) => {
        $(#[$live_doc])*
        #[derive(Debug, Default)]
        pub struct $live {
            $($(#[$doc])* pub $name: Counter,)*
        }

        $(#[$plain_doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct $plain {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl $live {
            /// A reading.
            pub fn read(&self) -> $plain {
                $plain { $($name: self.$name.get(),)* }
            }
        }

        impl $plain {
            /// Both together.
            #[must_use]
            pub fn plus(self, other: Self) -> Self {
                $plain { $($name: self.$name + other.$name,)* }
            }

            /// Names and values, in order.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}
pub(crate) use counters;

/// A number that one thread changes and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `k`. Only one thread may add; a read-modify-write instruction would cost ten times as much.
    pub fn add(&self, k: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(k), Relaxed);
    }

    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

counters! {
    /// Counted by one transport; shared with whoever reports.
    Counters,
    /// A reading of [`Counters`].
    Counts {
        /// Datagrams handed up.
        received,
        /// Of them, those that the kernel handed up with others in one receive.
        coalesced,
        /// Datagrams handed to the path.
        sent,
        /// Of them, those that left with others in one send, to be cut apart by the kernel.
        segmented,
        /// Datagrams not sent because the path was full.
        send_full,
        /// Datagrams not sent because nobody listens there.
        send_refused,
        /// Datagrams not sent for any other reason: no such peer, too long, no route.
        send_failed,
        /// Datagrams dropped because they are longer than a datagram may be here.
        oversize,
        /// Datagrams that the kernel dropped because a socket's buffer was full (E009).
        kernel_drops,
        /// Datagrams copied out of their slot because few slots were left.
        copied_scarce,
        /// Receives ended for want of a slot; the datagrams waited in the socket.
        slots_out,
        /// Multishot receives armed again after they ended.
        rearmed,
        /// System calls to receive, to send, to sleep and to read the drops. The yields of a loop that polls, and the wakes
        /// that other threads write, are not among them.
        system_calls,
    }
}
